//! What the inbox keeps: which names have one, and the webhooks in it.
//!
//! [`Records`] is the surface: plain operations, each of them atomic, each taking the time as an argument (Unix
//! milliseconds). Behind it are one SQLite file of its own, because bodies must not stand in the way of tokens, a thread that
//! writes it and one that reads it ([`Writer`]), and the [`Spool`] for long bodies. An operation that returned `Ok` is on disk.
//!
//! A webhook is in one of three states:
//!
//! ```text
//!   accept ──► waiting ──── delivered ────► delivered ──► removed: by age, by number, or by hand
//!                ▲  │ ▲ │
//!                │  │ └─┘ lease, attempt, again
//!           retry│  └────── given up, or too old ──► dead ──► removed: by age, or by hand
//!                └────────────────────────────────────┘
//! ```
//!
//! Who delivers one holds a [`Lease`] on it, so that no two do.

mod accept;
mod copy;
mod deliver;
mod handle;
mod lease;
mod reserve;
mod schema;
mod sweep;
#[cfg(test)]
mod tests;
mod webhook;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row as SqlRow, params};
use thiserror::Error;
use ulid::Ulid;

pub(crate) use self::copy::{Copied, copy};
pub(crate) use self::lease::Lease;
use self::lease::Leases;
use self::reserve::Reserve;
use self::webhook::Id;
pub(crate) use self::webhook::{Accepted, Attempt, Due, New, Outcome, Row, Seq, State, Stored, StoredBody, Take};
use super::spool::{self, Spool};
use crate::histogram::Histogram;
use crate::store::writer::{Access, Failure, Writer};
use crate::store::{OpenError, StoreError, TokenId, database};

/// The database's file in the data directory.
pub(crate) const DATABASE_FILE: &str = "inbox.db";

/// The most webhooks that one transaction goes through, so that nobody waits long behind it.
pub(crate) const STEP: usize = 1000;

/// Once it has gone through so many bytes of them, it goes through no more.
const STEP_BYTES: u64 = 4 << 20;

/// The newest attempts of each webhook that are kept.
pub(crate) const ATTEMPTS_KEPT: i64 = 20;

/// A handle on the records; clones share it. Dropping the last one finishes what is queued, closes the file and joins
/// the thread, which takes as long as a commit does.
#[derive(Clone)]
pub(crate) struct Records {
    writer: Arc<Writer>,
    /// On a connection of its own, so that lists do not stand in the way of what is accepted.
    reader: Arc<Writer>,
    spool: Spool,
    leases: Leases,
    reserve: Reserve,
    newest: i64,
}

/// An inbox. Its counters are those of its webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inbox {
    /// The tunnel's name.
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) token: TokenId,
    /// What its owner set, as JSON that nobody reads here.
    pub(crate) settings: String,
    /// When it was opened.
    pub(crate) opened_at: i64,
    /// Whether deliveries rest.
    pub(crate) paused: bool,
    /// Webhooks that wait.
    pub(crate) waiting: u64,
    /// Webhooks that were delivered and are still listed.
    pub(crate) delivered: u64,
    /// Webhooks that were given up.
    pub(crate) dead: u64,
    /// What those that wait and those that were given up take: heads, trailers and bodies.
    pub(crate) bytes: u64,
    /// When the one that came first of those that wait did.
    pub(crate) oldest_at: Option<i64>,
}

/// What is in all inboxes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// How many inboxes there are.
    pub(crate) inboxes: u64,
    /// Webhooks that wait.
    pub(crate) waiting: u64,
    /// Webhooks that were delivered and are still listed.
    pub(crate) delivered: u64,
    /// Webhooks that were given up.
    pub(crate) dead: u64,
    /// What those that wait and those that were given up take: heads, trailers and bodies.
    pub(crate) bytes: u64,
    /// When the one that came first of those that wait did.
    pub(crate) oldest_at: Option<i64>,
}

/// How much there may be of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Webhooks.
    pub(crate) count: u64,
    /// What is kept of them: heads, trailers and bodies.
    pub(crate) bytes: u64,
}

/// How much may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quotas {
    /// In the inbox, of what is not delivered.
    pub(crate) inbox: Quota,
    /// In the inbox, of what is delivered. Beyond it the first to have been go, for what is stored anew.
    pub(crate) delivered: Quota,
    /// Bytes in all inboxes of its token.
    pub(crate) token_bytes: u64,
    /// Bytes in all inboxes.
    pub(crate) total_bytes: u64,
}

/// Why a webhook was not stored. Nobody may be told that it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum AcceptError {
    /// The token has no inbox of that name.
    #[error("the inbox {name} is closed")]
    Closed {
        /// The name.
        name: String,
    },
    /// It holds as much as it may.
    #[error("{what} {limit}, as much as may be; start the client, drop what is not needed, or allow more")]
    Full {
        /// Of what.
        what: Measure,
        /// How much.
        limit: u64,
    },
    /// Its sender did not wait for it.
    #[error("its sender has not waited for it")]
    Abandoned,
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What [`Quotas`] limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The count of [`Quotas::inbox`].
    Webhooks,
    /// Its bytes.
    Bytes,
    /// [`Quotas::token_bytes`].
    TokenBytes,
    /// [`Quotas::total_bytes`].
    TotalBytes,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Webhooks => "the webhooks in the inbox that are not delivered are",
            Self::Bytes => "the bytes in the inbox that are not delivered are",
            Self::TokenBytes => "the bytes in the inboxes of its token are",
            Self::TotalBytes => "the bytes in the inboxes of this relay are",
        })
    }
}

/// Which webhooks of an inbox something is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// These.
    Ids(Vec<Ulid>),
    /// All that are in this state at first.
    All(State),
}

/// How long and how many webhooks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Delivered ones, for so many milliseconds.
    pub(crate) delivered_ms: i64,
    /// Delivered ones, as many; those delivered first go first.
    pub(crate) delivered: Quota,
    /// Dead ones, for so many milliseconds.
    pub(crate) dead_ms: i64,
    /// Waiting ones, for so many milliseconds until they are given up.
    pub(crate) max_age_ms: i64,
}

/// Why an inbox was not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum OpenInboxError {
    /// The token has as many as it may.
    #[error("the token has {limit} inboxes, as many as it may")]
    TooMany {
        /// How many.
        limit: u64,
    },
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<OpenInboxError> for StoreError {
    fn from(error: OpenInboxError) -> Self {
        match error {
            OpenInboxError::Store(error) => error,
            OpenInboxError::TooMany { .. } => Self::Engine { reason: error.to_string().into() },
        }
    }
}

impl Records {
    /// Opens the records in `directory`, which is created (mode 0700) if it is not there. Bodies that no webhook
    /// needs are removed. Webhooks leave `floor` bytes of the disk free. It blocks.
    ///
    /// # Errors
    /// [`OpenError`]: the directory, a file, or its contents.
    pub(crate) fn open(directory: &Path, floor: u64) -> Result<Self, OpenError> {
        Self::open_as(directory, floor, true)
    }

    /// As [`Records::open`], beside another process that has them open. Bodies that no webhook needs may just come to that
    /// one, and stay.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn open_beside(directory: &Path, floor: u64) -> Result<Self, OpenError> {
        Self::open_as(directory, floor, false)
    }

    fn open_as(directory: &Path, floor: u64, alone: bool) -> Result<Self, OpenError> {
        let connection = database::open(directory, DATABASE_FILE, schema::MIGRATIONS)?;
        let path = spool::directory(directory);
        database::make_directory(&path)?;
        let failure = Failure::default();
        let spool = Spool::at(path, floor, failure.clone());
        let mut known = connection.prepare("SELECT 1 FROM webhooks WHERE id = ?1 AND spooled = 1")?;
        let orphans = if alone { spool.remove_orphans(|id| known.exists([Id(id)]))? } else { 0 };
        if orphans > 0 {
            tracing::info!(orphans, "removed stored bodies whose webhooks were never accepted");
        }
        drop(known);
        let records = Self::start(connection, directory, spool, failure)?;
        if records.spool.has_room(reserve::SIZE).is_ok()
            && let Err(error) = records.reserve.lay_by()
        {
            tracing::warn!(%error, "nothing of the disk could be kept back for when it is full");
        }
        Ok(records)
    }

    /// Records that are gone with their last handle, in a temporary directory. Nobody waits until they are on disk.
    ///
    /// # Errors
    /// [`OpenError`] where the system has no memory, files or threads to give.
    pub(crate) fn temporary() -> Result<Self, OpenError> {
        let failure = Failure::default();
        let spool = Spool::temporary(failure.clone());
        let spool = spool.map_err(|source| OpenError::Io { path: std::env::temp_dir(), source })?;
        let directory = spool.directory().to_owned();
        let connection = database::open(&directory, DATABASE_FILE, schema::MIGRATIONS)?;
        connection.execute_batch("PRAGMA synchronous = OFF;")?;
        Self::start(connection, &directory, spool, failure)
    }

    fn start(connection: Connection, directory: &Path, spool: Spool, failure: Failure) -> Result<Self, OpenError> {
        let start = |connection: Connection| {
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
            connection.execute_batch(PRAGMAS)?;
            let writer = Writer::start(connection, failure.clone());
            writer.map(Arc::new).map_err(|source| OpenError::Io { path: DATABASE_FILE.into(), source })
        };
        let newest = connection.query_row(NEWEST, [], |row| row.get(0))?;
        let writer = start(connection)?;
        let reader = start(database::reader(directory, DATABASE_FILE)?)?;
        Ok(Self { writer, reader, spool, leases: Leases::default(), reserve: Reserve::of(directory), newest })
    }

    /// The [`New::since`] of the newest webhook that waited when the records were opened; 0 where none did.
    pub(crate) fn newest(&self) -> i64 {
        self.newest
    }

    /// Whether the records still take webhooks: what readiness should tell.
    ///
    /// # Errors
    /// [`StoreError::Failed`] with the reason why they take no changes, [`StoreError::Full`] while the disk has no room.
    pub(crate) fn health(&self) -> Result<(), StoreError> {
        self.writer.failure().map_or(Ok(()), Err)?;
        self.spool.has_room_in_database(0)
    }

    /// How long its commits have taken, in seconds.
    pub(crate) fn commits(&self) -> Histogram {
        self.writer.commits()
    }

    /// Finishes what is queued and closes the file, for all handles. Operations that come later get
    /// [`StoreError::Closed`].
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// From now on no webhook is delivered here but those that are returned: all others are another process's.
    pub(crate) fn give_up(&self) -> HashSet<Seq> {
        self.leases.set_given_up(true);
        self.leases.taken()
    }

    /// All is to be delivered here again.
    pub(crate) fn take_back(&self) {
        self.leases.set_given_up(false);
    }

    /// The webhooks that are being delivered here.
    pub(crate) fn leased(&self) -> HashSet<Seq> {
        self.leases.taken()
    }

    /// Waits until one of them is done with, after [`Records::give_up`].
    pub(crate) async fn given_back(&self) {
        self.leases.given_back().await;
    }

    /// Leaves these webhooks to another process, for as long as the leases are kept.
    pub(crate) fn leave(&self, seqs: impl IntoIterator<Item = Seq>) -> HashMap<Seq, Lease> {
        seqs.into_iter().filter_map(|seq| Some((seq, self.leases.take(seq)?))).collect()
    }

    /// Where long bodies are.
    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Opens an inbox for a token, or sets what its owner wants of it now. An inbox of that name that another token has
    /// is closed first: a name that changes hands shows nothing of its past. A token has `most` of them.
    ///
    /// # Errors
    /// [`OpenInboxError`].
    pub(crate) async fn open_inbox(
        &self,
        name: &str,
        token: TokenId,
        settings: String,
        most: u64,
        now: i64,
    ) -> Result<(), OpenInboxError> {
        let name = name.to_owned();
        let open = move |db: &Connection| {
            let sql = "UPDATE inboxes SET settings = ?3 WHERE name = ?1 AND token_id = ?2";
            if db.prepare_cached(sql)?.execute(params![name, token.0, settings])? > 0 {
                return Ok(Ok(()));
            }
            let sql = "SELECT count(*) FROM inboxes WHERE token_id = ?1 AND name IS NOT NULL";
            if db.prepare_cached(sql)?.query_row([token.0], |row| row.get::<_, u64>(0))? >= most {
                return Ok(Err(OpenInboxError::TooMany { limit: most }));
            }
            close_inbox(db, &name)?;
            let sql = "INSERT INTO inboxes (name, token_id, settings, opened_at) VALUES (?1, ?2, ?3, ?4)";
            db.prepare_cached(sql)?.execute(params![name, token.0, settings, now])?;
            Ok(Ok(()))
        };
        self.writer.run(Access::Write, open).await
    }

    /// Gives all inboxes of the first token of each pair to the second one. Returns those that it moved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn hand_over(&self, heirs: Vec<(TokenId, TokenId)>) -> Result<Vec<Inbox>, StoreError> {
        self.drain(Access::Write, move |db| {
            let mut names = Vec::new();
            let sql = "UPDATE inboxes SET token_id = ?2 WHERE token_id = ?1 AND name IS NOT NULL RETURNING name";
            let mut update = db.prepare_cached(sql)?;
            for (from, to) in heirs {
                for name in update.query_map([from.0, to.0], |row| row.get::<_, String>(0))? {
                    names.push(name?);
                }
            }
            let mut row = db.prepare_cached(&format!("{INBOX} WHERE name = ?1"))?;
            names.iter().map(|name| row.query_row([name], inbox_from)).collect()
        })
        .await
    }

    /// Closes an inbox, with all that is in it. Nothing leads there any more; [`Records::sweep_closed`] removes it, because
    /// a million webhooks are too many for one transaction. Returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn close_inbox(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |db| close_inbox(db, &name)).await
    }

    /// As [`Records::close_inbox`], if nothing in it waits or is dead.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn close_empty(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |db| {
            let sql = "UPDATE inboxes SET name = NULL WHERE name = ?1 AND waiting = 0 AND dead = 0";
            Ok(db.prepare_cached(sql)?.execute([name])? > 0)
        })
        .await
    }

    /// All inboxes, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn inboxes(&self) -> Result<Vec<Inbox>, StoreError> {
        self.read(|db| {
            let mut rows = db.prepare_cached(&format!("{INBOX} WHERE name IS NOT NULL ORDER BY name"))?;
            rows.query_map([], inbox_from)?.collect()
        })
        .await
    }

    /// The inboxes of a token, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn inboxes_of(&self, token: TokenId) -> Result<Vec<Inbox>, StoreError> {
        self.read(move |db| {
            let sql = format!("{INBOX} WHERE token_id = ?1 AND name IS NOT NULL ORDER BY name");
            db.prepare_cached(&sql)?.query_map([token.0], inbox_from)?.collect()
        })
        .await
    }

    /// What is in all inboxes together. It costs a row per inbox, and not one per webhook.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn totals(&self) -> Result<Totals, StoreError> {
        let inboxes = self.inboxes().await?;
        Ok(inboxes.iter().fold(Totals::default(), |mut totals, inbox| {
            totals.inboxes += 1;
            totals.waiting += inbox.waiting;
            totals.delivered += inbox.delivered;
            totals.dead += inbox.dead;
            totals.bytes += inbox.bytes;
            totals.oldest_at = totals.oldest_at.into_iter().chain(inbox.oldest_at).min();
            totals
        }))
    }

    /// The inbox of that name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn inbox(&self, name: &str) -> Result<Option<Inbox>, StoreError> {
        let name = name.to_owned();
        self.read(move |db| {
            let mut row = db.prepare_cached(&format!("{INBOX} WHERE name = ?1"))?;
            row.query_row([name], inbox_from).optional()
        })
        .await
    }

    /// Lets the deliveries of an inbox rest, or go on. It accepts webhooks all the same. Returns whether there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn pause(&self, name: &str, token: TokenId, paused: bool) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |db| {
            let mut update = db.prepare_cached("UPDATE inboxes SET paused = ?3 WHERE name = ?1 AND token_id = ?2")?;
            Ok(update.execute(params![name, token.0, paused])? > 0)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.reader.run(Access::Read, |db| operation(db).map(Ok)).await
    }

    async fn write<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.run(Access::Write, |db| operation(db).map(Ok)).await
    }

    /// A write that notes a delivery, or makes room. Where the disk is full it has what was kept back.
    async fn drain<T: Send + 'static>(
        &self,
        access: Access,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
    ) -> Result<T, StoreError> {
        let again = operation.clone();
        match self.writer.run(access, |db| again(db).map(Ok)).await {
            Err(StoreError::Full) if self.reserve.give_up() => self.write(operation).await,
            done => done,
        }
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("failure", &self.writer.failure()).finish_non_exhaustive()
    }
}

/// More than there are statements below, so that each is compiled once.
const STATEMENTS: usize = 64;

/// A group of long bodies, or a long list that is read meanwhile, can make the write-ahead log longer for once; what is above
/// 16 MiB is given back to the disk.
/// The cache (16 MiB) holds the inner pages of the indexes over a million webhooks.
const PRAGMAS: &str = "PRAGMA journal_size_limit = 16777216; PRAGMA cache_size = -16384;";

const NEWEST: &str = "\
    SELECT coalesce(max((SELECT since FROM webhooks WHERE inbox = inboxes.id AND state = 0 ORDER BY since DESC LIMIT 1)), 0)
    FROM inboxes";

const INBOX: &str = "SELECT *, (SELECT first_at FROM webhooks WHERE inbox = inboxes.id AND state = 0
                                ORDER BY seq LIMIT 1) AS oldest_at
                     FROM inboxes";

fn inbox_from(row: &SqlRow<'_>) -> rusqlite::Result<Inbox> {
    Ok(Inbox {
        name: row.get("name")?,
        token: TokenId(row.get("token_id")?),
        settings: row.get("settings")?,
        opened_at: row.get("opened_at")?,
        paused: row.get("paused")?,
        waiting: row.get("waiting")?,
        delivered: row.get("delivered")?,
        dead: row.get("dead")?,
        bytes: row.get("bytes")?,
        oldest_at: row.get("oldest_at")?,
    })
}

fn close_inbox(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached("UPDATE inboxes SET name = NULL WHERE name = ?1")?.execute([name])? > 0)
}

/// The number that stands for an inbox in its webhooks, where it is this token's.
fn inbox_of(db: &Connection, name: &str, token: TokenId) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT id FROM inboxes WHERE name = ?1 AND token_id = ?2";
    db.prepare_cached(sql)?.query_row(params![name, token.0], |row| row.get(0)).optional()
}

/// The number that stands for an inbox in its webhooks.
fn inbox_id(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM inboxes WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
}
