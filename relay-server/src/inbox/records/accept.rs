//! The way in: what is stored, what is a copy of something, and what is too much.

use std::sync::Arc;

use relay_protocol::webhook::Verdict;
use rusqlite::{Connection, OptionalExtension as _, params};
use ulid::Ulid;

use super::deliver::due_from;
use super::lease::Leases;
use super::sweep::{look_for_reusable, remove, surplus};
use super::{AcceptError, Accepted, Due, Id, Measure, New, Quotas, Records, Seq, State, Take};
use crate::inbox::spool::{Body, MAX_INLINE, Spool, Unclaimed};
use crate::store::writer::Access;
use crate::store::{StoreError, TokenId};

/// The newest webhooks of one event and the same bytes that a copy is held against. There are more where the app keeps
/// refusing it, which makes none of them an original.
const COPIES: i64 = 32;

/// So many delivered ones go for each that is stored, once there are too many: more than come.
const MAKES_WAY: usize = 2;

impl Records {
    /// Stores a webhook. The answer comes once it is on disk, and nobody may be told that it is accepted before.
    ///
    /// With [`New::dedupe_since`] it is first held against the webhooks of the same event that came since then. One that is
    /// known to be badly signed is no copy, and none is a copy of such a one: what is forged must neither stand for the real
    /// one nor take its place. A copy of one that was given up, or answered with anything but 2xx, is stored anew.
    ///
    /// A spooled body that is of no use in the end is removed.
    ///
    /// # Errors
    /// [`AcceptError`]: nothing was stored.
    pub(crate) async fn accept(&self, new: New) -> Result<Accepted, AcceptError> {
        // Whoever drops the last handle on the file removes it, which should not be the thread that others wait for.
        let file = new.body.file().map(Arc::clone);
        let (leases, spool) = (self.leases.clone(), self.spool.clone());
        let accepted = self.writer.run(Access::Write, move |db| accept(db, &leases, &spool, &new)).await;
        // After a failed write nobody knows whether there is a row; the next start does.
        let is_certain = !matches!(accepted, Err(AcceptError::Store(StoreError::Failed { .. } | StoreError::Closed)));
        if let Some(file) = file
            && accepted.is_err()
            && is_certain
        {
            file.set_claimed(false);
        }
        accepted
    }

    /// Whether an inbox has room for so many bytes more: what is to be known before a long body is taken in.
    ///
    /// # Errors
    /// [`AcceptError`], as [`Records::accept`] would say.
    pub(crate) async fn has_room(
        &self,
        inbox: &str,
        token: TokenId,
        bytes: u64,
        quotas: Quotas,
    ) -> Result<(), AcceptError> {
        let (name, spool) = (inbox.to_owned(), self.spool.clone());
        let has_room = move |db: &Connection| match into(db, &name, token)? {
            Some(into) => {
                look_for_reusable(db, &spool)?;
                Ok(into.has_room(&spool, bytes, quotas))
            }
            None => Ok(Err(AcceptError::Closed { name })),
        };
        self.reader.run(Access::Read, has_room).await
    }
}

fn accept(
    db: &Connection,
    leases: &Leases,
    spool: &Spool,
    new: &New,
) -> rusqlite::Result<Result<Accepted, AcceptError>> {
    if new.abandoned.is_cancelled() {
        // It comes again, and would be here twice.
        return Ok(Err(AcceptError::Abandoned));
    }
    let Some(into) = into(db, &new.inbox, new.token)? else {
        return Ok(Err(AcceptError::Closed { name: new.inbox.clone() }));
    };
    let mut differs_from = None;
    match original(db, &into, new)? {
        None => {}
        Some(Original::Delivered { id }) => return Ok(Ok(Accepted::Delivered { of: id })),
        Some(Original::Waiting { id, seq, is_better: true }) => {
            db.prepare_cached("UPDATE webhooks SET copies = copies + 1 WHERE seq = ?1")?.execute([seq])?;
            return Ok(Ok(Accepted::Newer { due: None, of: id }));
        }
        Some(Original::Waiting { id, seq, is_better: false }) => {
            let due = replace(db, leases, &into, seq, new)?;
            return Ok(Ok(Accepted::Newer { due, of: id }));
        }
        Some(Original::Differs { id }) => differs_from = Some(id),
    }
    let size = (new.head.len() as u64).saturating_add(new.trailers.len() as u64).saturating_add(new.body.size());
    look_for_reusable(db, spool)?;
    if let Err(full) = into.has_room(spool, size, new.quotas) {
        return Ok(Err(full));
    }
    remove(db, &surplus(db, into.inbox, new.quotas.delivered, MAKES_WAY)?)?;
    let seq = insert(db, &into, new, size, differs_from)?;
    let lease = if into.gives(new.take, into.waiting == 0) { leases.take(seq) } else { None };
    let due = lease.map(|lease| Due { _lease: lease, seq, id: new.id, since: new.since, attempts: 0, tries: 0 });
    Ok(Ok(Accepted::Stored { due }))
}

/// Where a webhook goes.
struct Into {
    inbox: i64,
    paused: bool,
    waiting: u64,
    dead: u64,
    bytes: u64,
    /// In all inboxes of its token.
    token_bytes: u64,
    /// In all inboxes.
    total_bytes: u64,
}

pub(super) const INTO: &str = "\
    SELECT *, (SELECT sum(bytes + delivered_bytes) FROM inboxes WHERE token_id = ?2) AS token_bytes,
              (SELECT bytes FROM total) AS total_bytes
    FROM inboxes WHERE name = ?1 AND token_id = ?2";

fn into(db: &Connection, name: &str, token: TokenId) -> rusqlite::Result<Option<Into>> {
    let into = db.prepare_cached(INTO)?.query_row(params![name, token.0], |row| {
        Ok(Into {
            inbox: row.get("id")?,
            paused: row.get("paused")?,
            waiting: row.get("waiting")?,
            dead: row.get("dead")?,
            bytes: row.get("bytes")?,
            token_bytes: row.get("token_bytes")?,
            total_bytes: row.get("total_bytes")?,
        })
    });
    into.optional()
}

impl Into {
    /// Whether there is room for another webhook of so many bytes.
    fn has_room(&self, spool: &Spool, size: u64, quotas: Quotas) -> Result<(), AcceptError> {
        let full = |what, limit| Err(AcceptError::Full { what, limit });
        if self.waiting + self.dead >= quotas.inbox.count {
            return full(Measure::Webhooks, quotas.inbox.count);
        }
        for (what, bytes, limit) in [
            (Measure::Bytes, self.bytes, quotas.inbox.bytes),
            (Measure::TokenBytes, self.token_bytes, quotas.token_bytes),
            (Measure::TotalBytes, self.total_bytes, quotas.total_bytes),
        ] {
            if bytes.saturating_add(size) > limit {
                return full(what, limit);
            }
        }
        let is_long = size > MAX_INLINE as u64;
        Ok(if is_long { spool.has_room(size) } else { spool.has_room_in_database(size) }?)
    }

    /// Whether the caller gets the lease that it wishes for.
    fn gives(&self, wish: Take, is_first: bool) -> bool {
        !self.paused && (wish == Take::Now || wish == Take::IfFirst && is_first)
    }
}

/// What a webhook is a copy of.
enum Original {
    /// One that was delivered.
    Delivered { id: Ulid },
    /// One that waits.
    Waiting {
        id: Ulid,
        seq: Seq,
        /// Its signature was found to be right, which is not known of the copy's.
        is_better: bool,
    },
    /// None, although this one has the same event id: the bodies differ.
    Differs { id: Ulid },
}

/// Whether a signature that was judged so says nothing against the webhook.
fn is_good(verdict: Option<Verdict>) -> bool {
    matches!(verdict, None | Some(Verdict::Valid | Verdict::NoSecret | Verdict::Unsupported))
}

fn original(db: &Connection, into: &Into, new: &New) -> rusqlite::Result<Option<Original>> {
    let (Some(since), Some(event)) = (new.dedupe_since, &new.event_id) else { return Ok(None) };
    if !is_good(new.verdict) {
        return Ok(None);
    }
    let sha256 = new.body.sha256();
    let mut copies = db.prepare_cached(COPIES_OF)?;
    let mut copies = copies.query(params![into.inbox, event, sha256, COPIES, new.provider, since])?;
    let mut waits = None;
    while let Some(row) = copies.next()? {
        let (id, status) = (row.get::<_, Id>("id")?.0, row.get("status")?);
        let is_valid = row.get_ref("verdict")?.as_str_or_null()? == Some(Verdict::Valid.as_str());
        let is_better = is_valid && new.verdict != Some(Verdict::Valid);
        match row.get("state")? {
            State::Delivered if matches!(status, Some(200..=299u16)) => return Ok(Some(Original::Delivered { id })),
            State::Waiting => waits = Some(Original::Waiting { id, seq: row.get("seq")?, is_better }),
            State::Delivered | State::Dead => {}
        }
    }
    if waits.is_some() {
        return Ok(waits);
    }
    let mut differs = db.prepare_cached(OTHERS_OF)?;
    let values = params![into.inbox, event, sha256, COPIES, new.provider, since];
    differs.query_row(values, |row| Ok(Original::Differs { id: row.get::<_, Id>(0)?.0 })).optional()
}

/// The newest webhooks of one event and body, newest first. The limit binds what is looked at, not what is found.
pub(super) const COPIES_OF: &str = "\
    SELECT seq, id, state, status, verdict
    FROM (SELECT * FROM webhooks WHERE inbox = ?1 AND event_id = ?2 AND body_sha256 = ?3
              AND (verdict IS NULL OR verdict IN ('valid', 'no_secret', 'unsupported'))
          ORDER BY seq DESC LIMIT ?4)
    WHERE provider IS ?5 AND since >= ?6";

/// One of the same event with another body.
pub(super) const OTHERS_OF: &str = "\
    SELECT id
    FROM (SELECT * FROM webhooks WHERE inbox = ?1 AND event_id = ?2
              AND (verdict IS NULL OR verdict IN ('valid', 'no_secret', 'unsupported'))
          LIMIT ?4)
    WHERE body_sha256 <> ?3 AND provider IS ?5 AND since >= ?6 LIMIT 1";

fn insert(db: &Connection, into: &Into, new: &New, size: u64, differs_from: Option<Ulid>) -> rusqlite::Result<Seq> {
    let mut insert = db.prepare_cached(
        "INSERT INTO webhooks (id, inbox, received_at, first_at, since, provider, event_id, event_type, verdict,
                               differs_from, spooled, body_size, body_sha256, size, head, trailers)
         VALUES (?1, ?2, ?3, ?3, ?15, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    insert.execute(params![
        Id(new.id),
        into.inbox,
        new.received_at,
        new.provider,
        new.event_id,
        new.event_type,
        new.verdict.map(Verdict::as_str),
        differs_from.map(Id),
        new.body.file().is_some(),
        new.body.size(),
        new.body.sha256(),
        size,
        &*new.head,
        &*new.trailers,
        new.since,
    ])?;
    let seq = Seq(db.last_insert_rowid());
    match &new.body {
        Body::Inline { bytes, .. } => {
            let mut insert = db.prepare_cached("INSERT INTO bodies (seq, body) VALUES (?1, ?2)")?;
            insert.execute(params![seq, &**bytes])?;
        }
        Body::Spooled { file, .. } => Unclaimed::set_claimed(file, true),
    }
    Ok(seq)
}

/// Lets a copy's head and trailers take the place of those of the first, whose signature has become old. The bodies are
/// the same. Returns the first where it is the caller's to deliver now.
fn replace(db: &Connection, leases: &Leases, into: &Into, seq: Seq, new: &New) -> rusqlite::Result<Option<Due>> {
    let mut update = db.prepare_cached(
        "UPDATE webhooks SET head_first = coalesce(head_first, head), head = ?2, trailers = ?3, received_at = ?4,
                             event_type = ?5, verdict = ?6, copies = copies + 1, sends_first = 0,
                             size = body_size + length(coalesce(head_first, head)) + length(?2) + length(?3)
         WHERE seq = ?1
         RETURNING seq, id, since, attempts, tries,
                   NOT EXISTS (SELECT 1 FROM webhooks AS before
                               WHERE before.inbox = webhooks.inbox AND before.state = 0 AND before.seq < webhooks.seq)
                   AS is_first",
    )?;
    let verdict = new.verdict.map(Verdict::as_str);
    let values = params![seq, &*new.head, &*new.trailers, new.received_at, new.event_type, verdict];
    update.query_row(
        values,
        |row| {
            if into.gives(new.take, row.get("is_first")?) { due_from(row, leases) } else { Ok(None) }
        },
    )
}
