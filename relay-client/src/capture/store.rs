//! The file in which a user's exchanges are kept: one SQLite database, shared by all clients that run.
//!
//! ```text
//!   summary   what lists show and ask for, by the greatest of their ids, which begin with a time
//!   batch     every byte of the same exchanges, by a number that grows; the oldest have the least
//! ```
//!
//! Lists must be quick where a hundred thousand are kept, so what they look at stands apart from the bytes, and there is
//! no index beside the two keys. A row costs more than what stands in it, and so exchanges that are stored together share
//! one in each table.
//!
//! Write-ahead logging without a wait for the disk at each commit: a power cut takes the last moments and spoils nothing.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::blob::ZeroBlob;
use rusqlite::config::DbConfig;
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::entry::Entry;
use super::exchange::Exchange;
use super::packed::{self, pack_id, pack_lengths, pack_record, pack_summary, parts};
use crate::platform::{Base, base_directory, create_private_directory, create_private_file, file_number};

/// How much is kept, of all clients of a user together. What is older than the newest that fit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exchanges.
    pub count: u32,
    /// Bytes of the file that are in use.
    pub bytes: u64,
    /// Time since an exchange.
    pub age: Duration,
    /// Bytes of one body; what comes behind them is counted.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { count: 100_000, bytes: 1 << 30, age: Duration::from_secs(30 * 24 * 60 * 60), body: 10 << 20 }
    }
}

/// Where the file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// `$XDG_STATE_HOME/relay/history.db`, or else in `~/.local/state`; none where there is no home.
    pub(crate) fn of_user() -> Option<Self> {
        base_directory(Base::State).map(|state| Self(state.join("relay/history.db")))
    }

    /// This file.
    #[cfg(test)]
    pub(super) fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// The file.
    pub(crate) fn file(&self) -> &Path {
        &self.0
    }
}

/// Why the history is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made.
    #[error("cannot make {}: {source}", file.display())]
    Create {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was made by another version of this program.
    #[error("{} was made by a later version of relay; use that, or move the file away", .0.display())]
    Newer(PathBuf),
    /// It is no database, or a damaged one.
    #[error("{} is damaged ({reason}); move it away, and a new one is made", file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// There is no room.
    #[error("the disk of {} is full", .0.display())]
    Full(PathBuf),
    /// Anything else.
    #[error("{}: {reason}", file.display())]
    Other {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        reason: String,
    },
}

/// Large pages, because each costs a system call twice on its way to the disk.
const PAGE: u32 = 16 << 10;

/// Pages of the log that are moved into the database at a time: 16 MiB.
const LOG: u32 = 1024;

/// How long another client may take to write.
const BUSY: Duration = Duration::from_secs(5);

/// Bytes of exchanges that share a row. What is looked for in them is read as a whole.
const BATCH: usize = 256 << 10;

/// Rows that exchanges fill at least before the oldest ones go: a row goes as a whole.
const BATCHES: u32 = 64;

/// The tables of version 4; those before it were never released. `packed` tells what is in their bytes.
const SCHEMA: &str = "
    DROP TABLE IF EXISTS exchange;
    DROP TABLE IF EXISTS content;
    DROP TABLE IF EXISTS batch;
    DROP TABLE IF EXISTS summary;
    CREATE TABLE summary (
        newest TEXT NOT NULL, -- the greatest of the ids
        batch INTEGER NOT NULL,
        oldest TEXT NOT NULL, -- the least of the ids
        count INTEGER NOT NULL,
        ids BLOB NOT NULL,
        summaries BLOB NOT NULL,
        PRIMARY KEY (newest, batch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE batch (
        number INTEGER PRIMARY KEY, -- of the last exchange in it, in the order in which they were stored
        at_ms INTEGER NOT NULL, -- when that was, since 1970
        ids BLOB NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    PRAGMA user_version = 4;";

const VERSION: i64 = 4;

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    /// The file's number. Another one may have taken its name.
    number: Option<u64>,
    pub(super) connection: Connection,
    /// Empty between two calls, with its memory.
    batch: Batch,
}

impl Store {
    /// Opens the file, and makes it where it is not there.
    pub(super) fn open(place: &Place) -> Result<Self, StoreError> {
        let file = place.file();
        let made = file.parent().map_or(Ok(()), create_private_directory).and_then(|()| create_private_file(file));
        match made {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Create { file: file.to_owned(), source });
            }
            _ => {}
        }
        let store = Self::connect(file)?;
        store.prepare().map_err(|error| store.error(&error))?;
        store.check()?;
        Ok(store)
    }

    /// Opens the file; nothing where it is not there, or has no tables yet because it is being made at this moment.
    pub(super) fn open_existing(place: &Place) -> Result<Option<Self>, StoreError> {
        let file = place.file();
        if !std::fs::metadata(file).is_ok_and(|found| found.len() > 0) {
            return Ok(None);
        }
        let store = Self::connect(file)?;
        store.check()?;
        let has_tables = store.version().map_err(|error| store.error(&error))? == VERSION;
        Ok(Some(store).filter(|_| has_tables))
    }

    /// Whether the file is still the one of its name. Where it is not, it was moved or removed.
    pub(super) fn is_current(&self) -> bool {
        let is_current = self.number.is_some() && self.number == number_of(&self.file);
        if !is_current {
            // The log that has its name now may be another file's, and closing would remove it.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
        is_current
    }

    fn connect(file: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags).map_err(|error| explain(file, &error))?;
        let store = Self { file: file.to_owned(), number: number_of(file), connection, batch: Batch::default() };
        store.connection.busy_timeout(BUSY).map_err(|error| store.error(&error))?;
        Ok(store)
    }

    /// Makes the tables where there are none.
    fn prepare(&self) -> rusqlite::Result<()> {
        let connection = &self.connection;
        connection.execute_batch(&format!("PRAGMA page_size = {PAGE}; PRAGMA synchronous = NORMAL;"))?;
        connection.execute_batch(&format!(
            "PRAGMA wal_autocheckpoint = {LOG}; PRAGMA journal_size_limit = {};",
            u64::from(LOG) * u64::from(PAGE) * 2
        ))?;
        if self.version()? < VERSION {
            let transaction = rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            if self.version()? < VERSION {
                connection.execute_batch(SCHEMA)?;
            }
            transaction.commit()?;
        }
        // The file stays in this mode, and SQLite waits for nobody here: whoever is in the way is doing the same, or the
        // next one does it.
        match connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
            done => done,
        }
    }

    fn version(&self) -> rusqlite::Result<i64> {
        self.connection.query_row("PRAGMA user_version", [], |row| row.get(0))
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.version() {
            Ok(0..=VERSION) => Ok(()),
            Ok(_) => Err(StoreError::Newer(self.file.clone())),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// What went wrong, for a person.
    pub(super) fn error(&self, error: &rusqlite::Error) -> StoreError {
        explain(&self.file, error)
    }

    /// Stores exchanges, all or none, and lets the oldest go that are beyond the limits. Each is looked at as often as there
    /// is room for more of it, and let go of before the disk is waited for.
    pub(super) fn insert<G: Deref<Target = Entry>>(
        &mut self,
        entries: impl Iterator<Item = impl Fn() -> G>,
        limits: &Limits,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let (connection, batch) = (&mut self.connection, &mut self.batch);
        let inserted = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
            let last = transaction.prepare_cached(LAST)?.query_row([], |row| row.get::<_, Option<i64>>(0))?;
            let mut number = last.unwrap_or_default();
            for look in entries {
                let entry = look();
                if entry.is_longer(BATCH) {
                    drop(entry);
                    batch.store(&transaction, &mut number, now_ms, 0)?;
                    let lengths = batch.begin(&look());
                    let behind = batch.content.len();
                    batch.store(&transaction, &mut number, now_ms, lengths.iter().sum())?;
                    write_parts(&transaction, number, behind, lengths, look)?;
                    continue;
                }
                batch.add(&entry);
                drop(entry);
                if batch.is_full(limits) {
                    batch.store(&transaction, &mut number, now_ms, 0)?;
                }
            }
            batch.store(&transaction, &mut number, now_ms, 0)?;
            tidy(&transaction, limits, now_ms)?;
            transaction.commit()
        });
        self.batch.clear();
        inserted.map_err(|error| self.error(&error))
    }

    /// Removes everything, and gives the room back. How much there was.
    pub(super) fn clear(&self) -> Result<u64, StoreError> {
        let clear = || {
            let count = count(&self.connection)?;
            self.connection.execute_batch(
                "BEGIN IMMEDIATE; DELETE FROM summary; DELETE FROM batch; COMMIT;
                 VACUUM; PRAGMA wal_checkpoint(TRUNCATE);",
            )?;
            Ok(count)
        };
        clear().map_err(|error| self.error(&error))
    }
}

fn explain(file: &Path, error: &rusqlite::Error) -> StoreError {
    let (file, reason) = (file.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(file),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Broken { file, reason },
        _ => StoreError::Other { file, reason },
    }
}

fn number_of(file: &Path) -> Option<u64> {
    std::fs::metadata(file).ok().map(|data| file_number(&data))
}

/// The number of the exchange that was stored last.
pub(super) const LAST: &str = "SELECT max(number) FROM batch";

/// How many exchanges there are.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    let count = "SELECT sum(count) FROM summary";
    let count = connection.prepare_cached(count)?.query_row([], |row| row.get::<_, Option<i64>>(0))?;
    Ok(u64::try_from(count.unwrap_or_default()).unwrap_or_default())
}

/// Exchanges that are stored together.
#[derive(Debug, Default)]
struct Batch {
    count: usize,
    ids: Vec<u8>,
    summaries: Vec<u8>,
    content: Vec<u8>,
}

impl Batch {
    fn add(&mut self, entry: &Entry) {
        self.list(entry);
        pack_record(entry, &mut self.content);
    }

    /// As [`Batch::add`], without the parts, of which it returns the lengths.
    fn begin(&mut self, entry: &Entry) -> [usize; 7] {
        self.list(entry);
        pack_lengths(entry, &mut self.content)
    }

    fn list(&mut self, entry: &Entry) {
        pack_id(&entry.id, &mut self.ids);
        pack_summary(&entry.line(), &mut self.summaries);
        self.count += 1;
    }

    fn is_full(&self, limits: &Limits) -> bool {
        let (count, bytes) = (limits.count / BATCHES, limits.bytes / u64::from(BATCHES));
        self.count >= count as usize || self.content.len() as u64 >= bytes.min(BATCH as u64)
    }

    /// Stores them behind that number, which becomes that of the last one, with room for so many bytes behind them.
    fn store(&mut self, connection: &Connection, number: &mut i64, now_ms: u64, behind: usize) -> rusqlite::Result<()> {
        let (ids, once) = (packed::ids(&self.ids), packed::ids(&self.ids).collect::<HashSet<_>>());
        let (Some(newest), Some(oldest), true) = (ids.clone().max(), ids.min(), self.count > 0) else { return Ok(()) };
        take_out(connection, &once, oldest, newest)?;
        *number += self.count as i64;
        let ids = if once.len() < self.count { Cow::Owned(last_ones(&self.ids)) } else { Cow::Borrowed(&self.ids) };
        let summary =
            "INSERT INTO summary (newest, batch, oldest, count, ids, summaries) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let mut summary = connection.prepare_cached(summary)?;
        summary.execute(params![newest, *number, oldest, once.len() as i64, *ids, self.summaries])?;
        let mut batch =
            connection.prepare_cached("INSERT INTO batch (number, at_ms, ids, content) VALUES (?1, ?2, ?3, ?4)")?;
        if behind == 0 && self.content.len() <= BATCH {
            batch.execute(params![*number, integer(now_ms), self.ids, self.content])?;
        } else {
            // A value that is given to a statement is copied, and a body can be long.
            let room = ZeroBlob((self.content.len() + behind) as u64);
            batch.execute(params![*number, integer(now_ms), self.ids, room])?;
            connection.blob_open("main", "batch", "content", *number, false)?.write_at(&self.content, 0)?;
        }
        self.clear();
        Ok(())
    }

    fn clear(&mut self) {
        if self.content.capacity() > 4 * BATCH {
            *self = Self::default();
        }
        self.count = 0;
        self.ids.clear();
        self.summaries.clear();
        self.content.clear();
    }
}

/// Writes the parts of an exchange into the row of that number, behind its first `at` bytes and piece by piece: a long body
/// is in memory once.
fn write_parts<G: Deref<Target = Entry>>(
    connection: &Connection,
    number: i64,
    mut at: usize,
    lengths: [usize; 7],
    look: impl Fn() -> G,
) -> rusqlite::Result<()> {
    let mut blob = connection.blob_open("main", "batch", "content", number, false)?;
    let mut piece = Vec::with_capacity(BATCH);
    for (which, length) in lengths.into_iter().enumerate() {
        for from in (0..length).step_by(BATCH) {
            // Nothing is taken from an exchange before it is stored, so that all of these bytes are there.
            let entry = look();
            let part = parts(&entry).get(which).copied().flatten().unwrap_or_default();
            piece.clear();
            piece.extend_from_slice(part.get(from..length.min(from + BATCH)).unwrap_or_default());
            drop(entry);
            blob.write_at(&piece, at + from)?;
        }
        at += length;
    }
    Ok(())
}

/// The same request once more is stored beside the first, and takes its place in lists: an empty id stands there then.
fn take_out(connection: &Connection, ids: &HashSet<&str>, oldest: &str, newest: &str) -> rusqlite::Result<()> {
    let mut changed = Vec::new();
    // Mostly it is the batch before and nothing in it, because ids begin with their time.
    let sql = "SELECT newest, batch, ids FROM summary WHERE newest >= ?1 AND oldest <= ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([oldest, newest])?;
    while let Some(row) = rows.next()? {
        let theirs = row.get_ref(2)?.as_blob()?;
        if packed::ids(theirs).any(|id| ids.contains(id)) {
            let mut left = Vec::with_capacity(theirs.len());
            packed::ids(theirs).for_each(|id| pack_id(if ids.contains(id) { "" } else { id }, &mut left));
            changed.push((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, left));
        }
    }
    for (newest, batch, ids) in changed {
        let count = packed::ids(&ids).filter(|id| !id.is_empty()).count() as i64;
        let mut summary =
            connection.prepare_cached("UPDATE summary SET ids = ?3, count = ?4 WHERE newest = ?1 AND batch = ?2")?;
        summary.execute(params![newest, batch, ids, count])?;
    }
    Ok(())
}

/// Ids that were packed together, with an empty one where the same comes again.
fn last_ones(ids: &[u8]) -> Vec<u8> {
    let mut last = Vec::with_capacity(ids.len());
    for (at, id) in packed::ids(ids).enumerate() {
        let comes_again = packed::ids(ids).skip(at + 1).any(|other| other == id);
        pack_id(if comes_again { "" } else { id }, &mut last);
    }
    last
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Lets the oldest go that are beyond the limits.
fn tidy(connection: &Connection, limits: &Limits, now_ms: u64) -> rusqlite::Result<()> {
    let pragma = |name: &str| -> rusqlite::Result<i64> {
        connection.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
    };
    let last: Option<i64> = connection.prepare_cached(LAST)?.query_row([], |row| row.get(0))?;
    let Some(last) = last else { return Ok(()) };
    let age = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
    loop {
        let oldest = "SELECT number, at_ms, ids FROM batch ORDER BY number LIMIT 1";
        let mut oldest = connection.prepare_cached(oldest)?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?));
        let Some((number, at_ms, ids)): Option<(_, _, Vec<u8>)> = oldest.query_row([], read).optional()? else {
            return Ok(());
        };
        let count = last - number + packed::ids(&ids).count() as i64;
        let used = (pragma("page_count")? - pragma("freelist_count")?) * i64::from(PAGE);
        let is_too_much = number < last && (count > i64::from(limits.count) || used > integer(limits.bytes));
        if !is_too_much && at_ms >= integer(now_ms) - age {
            return Ok(());
        }
        let mut summary = connection.prepare_cached("DELETE FROM summary WHERE newest = ?1 AND batch = ?2")?;
        summary.execute(params![packed::ids(&ids).max(), number])?;
        connection.prepare_cached("DELETE FROM batch WHERE number = ?1")?.execute([number])?;
    }
}

/// The whole exchange of this id.
pub(super) fn exchange(connection: &Connection, id: &str) -> rusqlite::Result<Option<Exchange>> {
    let damaged = || rusqlite::Error::InvalidColumnType(0, "content".to_owned(), Type::Blob);
    let Some((batch, at, summary)) = find(connection, id)? else { return Ok(None) };
    let summary = packed::unpack(id, &summary).ok_or_else(damaged)?.owned();
    let mut statement = connection.prepare_cached("SELECT content FROM batch WHERE number = ?1")?;
    let mut rows = statement.query([batch])?;
    let Some(row) = rows.next()? else { return Err(damaged()) };
    let record = packed::records(row.get_ref(0)?.as_blob()?).nth(at);
    record.and_then(|record| record.exchange(summary)).map(Some).ok_or_else(damaged)
}

/// The batch of the exchange of this id, its place there and its summary.
pub(super) fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<(i64, usize, Vec<u8>)>> {
    // Mostly the first one: what takes long is stored with others that came later.
    let sql = "SELECT batch, ids, summaries FROM summary WHERE newest >= ?1 AND oldest <= ?1 ORDER BY newest";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let all = packed::ids(row.get_ref(1)?.as_blob()?).zip(packed::summaries(row.get_ref(2)?.as_blob()?));
        if let Some((at, (_, summary))) = all.enumerate().find(|(_, (other, _))| *other == id) {
            return Ok(Some((row.get(0)?, at, summary.to_owned())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use bytes::Bytes;
    use http::header::{HeaderName, HeaderValue};
    use http::{Method, StatusCode};
    use relay_protocol::message::{Payload as _, RequestHead, ResponseHead};
    use relay_protocol::webhook::{Table, Verdict};
    use tempfile::TempDir;

    use super::super::entry::End;
    use super::super::exchange::Summary;
    use super::super::filter;
    use super::super::history::{FindError, History, Query, searched};
    use super::*;

    fn place() -> (TempDir, Place) {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path().join("relay/history.db"));
        (directory, place)
    }

    fn entry(id: &str, path: &str, body: &[u8]) -> Entry {
        let odd = HeaderValue::from_bytes(b"\xff\x80 ").unwrap();
        let head = RequestHead {
            tunnel: 7,
            id: id.into(),
            deadline_ms: 4000,
            elapsed_ms: 3,
            method: Method::POST,
            target: path.parse().unwrap(),
            authority: "hooks.relay.example:8443".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers: vec![
                (HeaderName::from_static("x-b"), odd),
                (HeaderName::from_static("x-a"), "1".parse().unwrap()),
            ],
        };
        let encoded = head.to_bytes().unwrap();
        let tunnel: Option<Arc<str>> = Some("hooks".into());
        Entry::new(&encoded, &head, tunnel, &[Bytes::copy_from_slice(body)], true, 1 << 20)
    }

    fn answered(mut entry: Entry, status: u16, body: &[u8]) -> Entry {
        let status = StatusCode::from_u16(status).unwrap();
        let headers = vec![(HeaderName::from_static("x-c"), "2".parse().unwrap())];
        entry.respond(&ResponseHead { status, headers }.to_bytes().unwrap(), body.len());
        entry.response_data(body, 1 << 20);
        entry.responded(&Bytes::new());
        entry.end(Some(status), End { duration: Duration::from_micros(12_345), error: None });
        entry
    }

    fn store(place: &Place, limits: &Limits, entries: &[Entry]) {
        Store::open(place)
            .unwrap()
            .insert(entries.iter().map(|entry| move || entry), limits, super::super::unix_now())
            .unwrap();
    }

    fn ids(list: &[Summary]) -> Vec<&str> {
        list.iter().map(|summary| summary.id.as_str()).collect()
    }

    #[test]
    fn every_byte_comes_back() {
        let (_directory, place) = place();
        let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut first = answered(entry("01A", "/a?b=%2F", &body), 201, b"\x00\xff");
        let note = &mut first.annotation;
        note.provider = Table::built_in().unwrap().get("stripe").cloned();
        (note.event_id, note.event_type) = (Some("evt_1".to_owned()), Some("invoice.paid".to_owned()));
        (note.verdict, note.reason) = (Some(Verdict::Stale), Some("it is old".into()));
        let summary = first.summary();
        let mut failed = entry("01B", "/b", b"");
        failed.end(None, End { duration: Duration::ZERO, error: Some("upstream-refused") });
        store(&place, &Limits::default(), &[first, failed]);
        let history = History::of(place.clone());
        let exchange = history.get("01A").unwrap().unwrap();
        assert_eq!(exchange.summary, summary);
        assert_eq!((exchange.request.body.as_slice(), exchange.request.body_truncated), (&body[..], false));
        assert_eq!(exchange.url(), "https://hooks.relay.example:8443/a?b=%2F");
        let headers: Vec<_> = exchange.request_headers().collect();
        assert_eq!(headers, [("host", &b"hooks.relay.example:8443"[..]), ("x-b", b"\xff\x80 "), ("x-a", b"1")]);
        let response = exchange.response.as_ref().unwrap();
        assert_eq!((response.head.status.as_u16(), response.body.as_slice()), (201, &b"\x00\xff"[..]));
        assert_eq!(exchange.timings.edge_ms, 3);
        let detail = serde_json::to_value(exchange.detail(None)).unwrap();
        assert_eq!((&detail["verdict"], &detail["reason"]), (&"stale".into(), &"it is old".into()));
        assert_eq!((&detail["duration_ms"], &detail["allowed_ms"]), (&12.345.into(), &8000.into()));
        assert_eq!(detail["request"]["headers"][1][1], "\u{ff}\u{80} ");
        assert_eq!(detail["response"]["body_base64"], "AP8=");
        let failed = history.get("01B").unwrap().unwrap();
        assert_eq!((failed.summary.error.as_deref(), failed.response), (Some("upstream-refused"), None));
    }

    /// It has a row to itself, into which it is written piece by piece.
    #[test]
    fn long_bodies_come_back_and_so_do_their_neighbours() {
        let (_directory, place) = place();
        let body: Vec<u8> = (0..=250).cycle().take(2 * BATCH + 1).collect();
        let long = answered(entry("01B", "/b", &body), 200, &body[1..]);
        let answer = answered(entry("01C", "/c", b"short"), 200, &body);
        let mut cut = entry("01D", "/d", &body);
        cut.end(None, End { duration: Duration::ZERO, error: Some("deadline") });
        let small = |id| answered(entry(id, "/", b"in"), 200, b"out");
        store(&place, &Limits::default(), &[small("01A"), long, answer, cut, small("01E")]);
        let history = History::of(place);
        let bodies = |id| {
            let exchange = history.get(id).unwrap().unwrap();
            (exchange.request.body, exchange.response.map(|response| response.body))
        };
        assert_eq!(bodies("01A"), (b"in".to_vec(), Some(b"out".to_vec())));
        assert!(bodies("01B") == (body.clone(), Some(body[1..].to_vec())));
        assert!(bodies("01C") == (b"short".to_vec(), Some(body.clone())));
        assert!(bodies("01D") == (body, None));
        assert_eq!(bodies("01E"), (b"in".to_vec(), Some(b"out".to_vec())));
    }

    #[test]
    fn lists_show_what_is_asked_for() {
        let (_directory, place) = place();
        let entries: Vec<_> = (0..10_u16)
            .map(|i| {
                let (asked, said) = (format!("\0Asked {i}"), format!("Said {i}%"));
                let entry = entry(&format!("01{i}"), &format!("/hooks/{i}?q=[x]"), asked.as_bytes());
                let mut entry = answered(entry, 200 + 50 * i, said.as_bytes());
                entry.annotation.event_type = Some(if i % 2 == 0 { "invoice.paid" } else { "in*" }.to_owned());
                entry
            })
            .collect();
        store(&place, &Limits::default(), &entries);
        let history = History::of(place.clone());
        let list = |query: Query| {
            let list = history.list(&query, 4).unwrap();
            let (page, count) = history.page(&query, 4).unwrap();
            assert_eq!(list, page);
            (ids(&list).join(" "), count)
        };
        let query = Query::default;
        for (query, expected, count) in [
            (query(), "019 018 017 016", 10),
            (Query { before: Some("012".to_owned()), ..query() }, "011 010", 10),
            (Query { after: Some("017".to_owned()), ..query() }, "019 018", 2),
            (Query { event_type: Some("invoice.*".to_owned()), ..query() }, "018 016 014 012", 5),
            (Query { event_type: Some("in*".to_owned()), ..query() }, "019 018 017 016", 10),
            (Query { event_type: Some("invoice".to_owned()), ..query() }, "", 0),
            (Query { status: Some(filter::StatusPattern::Class(4)), ..query() }, "015 014", 2),
            (Query { status: Some(filter::StatusPattern::Code(250)), ..query() }, "011", 1),
            (Query { status: Some(filter::StatusPattern::Error), ..query() }, "", 0),
            (Query { path: Some(filter::path("/hooks/3").unwrap()), ..query() }, "013", 1),
            (Query { path: Some(filter::path("/hooks/*").unwrap()), ..query() }, "019 018 017 016", 10),
            (Query { path: Some(filter::path("/hooks/3?q=[x]").unwrap()), ..query() }, "013", 1),
            (Query { path: Some(filter::path("/hook").unwrap()), ..query() }, "", 0),
            (
                Query { method: Some("post".to_owned()), tunnel: Some("hooks".to_owned()), ..query() },
                "019 018 017 016",
                10,
            ),
            (Query { text: Some("HOOKS/7".to_owned()), ..query() }, "017", 1),
            (Query { text: Some("_".to_owned()), ..query() }, "", 0),
            (Query { text: Some("Asked 4".to_owned()), ..query() }, "014", 1),
            (Query { text: Some("Said 4%".to_owned()), after: Some("013".to_owned()), ..query() }, "014", 1),
            (Query { text: Some("said 4".to_owned()), ..query() }, "", 0),
            (Query { since_ms: Some(u64::MAX), ..query() }, "", 0),
        ] {
            assert_eq!(list(query.clone()), (expected.to_owned(), count), "{query:?}");
        }
        assert_eq!(history.find("last").unwrap().summary.id, "019");
        assert_eq!(history.find("013").unwrap().summary.id, "013");
        assert!(matches!(history.find("01"), Err(FindError::Several { .. })));
        assert!(matches!(history.find("02"), Err(FindError::Unknown(_))));
        assert_eq!(history.clear().unwrap(), 10);
        assert!(matches!(history.find("last"), Err(FindError::Empty)));
    }

    #[test]
    fn who_looks_for_what_is_new_does_not_pay_for_what_is_old() {
        let (_directory, place) = place();
        let mut store = Store::open(&place).unwrap();
        // The last one that was stored took so long that it is the oldest.
        for ids in [["01B", "01C"], ["01D", "01E"], ["01A", "01A"]] {
            let entries = ids.map(|id| entry(id, "/", b"needle"));
            store
                .insert(entries.iter().map(|entry| move || entry), &Limits::default(), super::super::unix_now())
                .unwrap();
        }
        let look = |after: &str| {
            let query = Query { text: Some("needle".to_owned()), after: Some(after.to_owned()), ..Query::default() };
            let (found, count) = History::of(place.clone()).page(&query, 9).unwrap();
            (ids(&found).join(" "), count, searched(&store.connection, &query).unwrap())
        };
        assert_eq!(look("01C"), ("01E 01D".to_owned(), 2, 3));
        assert_eq!(look("01D"), ("01E".to_owned(), 1, 3));
        assert_eq!(look("01E"), (String::new(), 0, 0));
        assert_eq!(look("").2, 5);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_much_or_too_old() {
        let (_directory, place) = place();
        let count = |limits: Limits, body: usize, now_ms: u64| {
            let mut store = Store::open(&place).unwrap();
            for i in 0..40 {
                let entries = [entry(&format!("01{body:06}{i:02}"), "/", &vec![b'x'; body])];
                store.insert(entries.iter().map(|entry| move || entry), &limits, now_ms).unwrap();
            }
            let history = History::of(place.clone());
            assert_eq!(history.list(&Query::default(), 1).unwrap()[0].id, format!("01{body:06}39"), "the newest stays");
            history.page(&Query::default(), 0).unwrap().1
        };
        let (all, now) = (Limits::default(), super::super::unix_now());
        assert_eq!(count(Limits { count: 7, ..all }, 1, now), 7);
        let some = count(Limits { bytes: 2 << 20, ..all }, 200_000, now);
        assert!((5..=11).contains(&some), "{some}");
        let mut store = Store::open(&place).unwrap();
        let hour = Limits { age: Duration::from_secs(3600), ..all };
        store.insert([entry("02A", "/", b"")].iter().map(|entry| move || entry), &hour, now).unwrap();
        let history = History::of(place.clone());
        assert_eq!(history.page(&Query::default(), 0).unwrap().1, some + 1);
        store.insert([entry("02B", "/", b"")].iter().map(|entry| move || entry), &hour, now + 7_200_000).unwrap();
        assert_eq!(ids(&history.list(&Query::default(), 9).unwrap()), ["02B"]);
    }

    #[test]
    fn who_follows_misses_nothing_also_when_numbers_begin_anew() {
        let (_directory, place) = place();
        let history = History::of(place.clone());
        let next = |number, text: Option<&str>| {
            let query = Query { text: text.map(str::to_owned), ..Query::default() };
            let (number, found) = history.stored_after(number, &query).unwrap();
            (number, ids(&found).join(" "))
        };
        assert_eq!(next(0, None), (0, String::new()));
        store(&place, &Limits::default(), &[entry("01A", "/", b"one"), entry("01B", "/", b"two")]);
        store(&place, &Limits::default(), &[entry("01C", "/", b"two")]);
        assert_eq!(next(0, None), (3, "01A 01B 01C".to_owned()));
        assert_eq!(next(0, Some("two")), (3, "01B 01C".to_owned()));
        assert_eq!((next(2, None), next(3, None)), ((3, "01C".to_owned()), (3, String::new())));
        // Emptied, and filled anew before the next look.
        assert_eq!(history.clear().unwrap(), 3);
        store(&place, &Limits::default(), &[entry("01D", "/", b"")]);
        assert_eq!(next(3, None), (1, "01D".to_owned()));
        // Moved away, and another one in its place.
        std::fs::rename(place.file(), place.file().with_extension("old")).unwrap();
        assert_eq!(history.get("01D").unwrap(), None);
        store(&place, &Limits::default(), &[entry("01E", "/", b"")]);
        assert_eq!(ids(&history.list(&Query::default(), 9).unwrap()), ["01E"]);
    }

    #[test]
    fn a_file_without_tables_is_one_that_is_being_made() {
        let (_directory, place) = place();
        std::fs::create_dir_all(place.file().parent().unwrap()).unwrap();
        Connection::open(place.file()).unwrap().execute_batch("CREATE TABLE x (y); DROP TABLE x").unwrap();
        assert!(std::fs::metadata(place.file()).unwrap().len() > 0);
        let history = History::of(place.clone());
        assert!(history.list(&Query::default(), 1).unwrap().is_empty());
        store(&place, &Limits::default(), &[entry("01A", "/", b"")]);
        assert_eq!(ids(&history.list(&Query::default(), 1).unwrap()), ["01A"]);
    }

    #[test]
    fn the_same_request_once_more_takes_the_place_of_the_first() {
        let (_directory, place) = place();
        store(&place, &Limits::default(), &[answered(entry("01A", "/", b"1"), 500, b""), entry("01B", "/", b"")]);
        store(&place, &Limits::default(), &[answered(entry("01A", "/", b"2"), 200, b"")]);
        let history = History::of(place.clone());
        let told = |body: &[u8]| {
            let (list, count) = history.page(&Query::default(), 9).unwrap();
            assert_eq!((ids(&list), count), (vec!["01B", "01A"], 2));
            assert_eq!(ids(&history.stored_after(0, &Query::default()).unwrap().1), ["01B", "01A"]);
            assert_eq!(history.get("01A").unwrap().unwrap().request.body, body);
        };
        told(b"2");
        // Also where both come together.
        let twice = [b"3", b"4"].map(|body| answered(entry("01A", "/", body), 200, b""));
        store(&place, &Limits::default(), &twice);
        told(b"4");
    }

    #[test]
    fn the_file_is_its_owners_alone_and_what_is_no_history_is_left_alone() {
        let (_directory, place) = place();
        assert!(History::of(place.clone()).list(&Query::default(), 1).unwrap().is_empty() && !place.file().exists());
        store(&place, &Limits::default(), &[entry("01A", "/", b"")]);
        for file in ["history.db", "history.db-wal"] {
            let file = place.file().with_file_name(file);
            if let Ok(data) = std::fs::metadata(&file) {
                assert_eq!(data.permissions().mode() & 0o777, 0o600, "{}", file.display());
            }
        }
        Store::open(&place).unwrap().connection.execute_batch("PRAGMA user_version = 99").unwrap();
        assert!(matches!(Store::open(&place), Err(StoreError::Newer(_))));
        assert!(matches!(History::of(place.clone()).list(&Query::default(), 1), Err(StoreError::Newer(_))));
        std::fs::write(place.file(), "this is no database, and it is long enough to be looked at".repeat(99)).unwrap();
        assert!(matches!(Store::open(&place), Err(StoreError::Broken { .. })));
        assert!(matches!(History::of(place.clone()).list(&Query::default(), 1), Err(StoreError::Broken { .. })));
    }
}
