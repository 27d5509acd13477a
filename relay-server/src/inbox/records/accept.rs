//! The way in: what is stored, what is a copy of something, and what is too much.

use std::sync::Arc;

use relay_protocol::webhook::Verdict;
use rusqlite::{Connection, OptionalExtension as _, params};
use ulid::Ulid;

use super::deliver::due_from;
use super::lease::Leases;
use super::{AcceptError, Accepted, Due, Id, Measure, New, Records, Seq, State, Take};
use crate::inbox::spool::{Body, Unclaimed};
use crate::store::StoreError;
use crate::store::writer::Access;

/// The newest webhooks of one event that a copy is held against. A provider sends the same bytes again; only somebody
/// who makes up event ids has more, and gets them stored.
const COPIES: i64 = 32;

impl Records {
    /// Stores a webhook. The answer comes once it is on disk, and nobody may be told that it is accepted before.
    ///
    /// With [`New::dedupe_since`] it is first held against the webhooks of the same event that came since then. Only
    /// those with the same verdict count, and only where that is not a bad one: a forged copy must neither stand for the
    /// real one nor take its place. A copy of one that was given up, or answered with anything but 2xx, is stored anew.
    ///
    /// A spooled body that is of no use in the end is removed.
    ///
    /// # Errors
    /// [`AcceptError`]: nothing was stored.
    pub(crate) async fn accept(&self, new: New) -> Result<Accepted, AcceptError> {
        // Whoever drops the last handle on the file removes it, which should not be the thread that others wait for.
        let file = new.body.file().map(Arc::clone);
        let leases = self.leases.clone();
        let accepted = self.writer.run(Access::Write, move |db| accept(db, &leases, &new)).await;
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
}

fn accept(db: &Connection, leases: &Leases, new: &New) -> rusqlite::Result<Result<Accepted, AcceptError>> {
    let sql =
        "SELECT id, paused, waiting, waiting + dead AS held, bytes FROM inboxes WHERE name = ?1 AND token_id = ?2";
    let found = db.prepare_cached(sql)?.query_row(params![new.inbox, new.token.0], |row| {
        Ok(Into {
            inbox: row.get("id")?,
            paused: row.get("paused")?,
            waiting: row.get("waiting")?,
            held: row.get("held")?,
            bytes: row.get("bytes")?,
        })
    });
    let Some(into) = found.optional()? else {
        return Ok(Err(AcceptError::Closed { name: new.inbox.clone() }));
    };
    let mut differs_from = None;
    match original(db, &into, new)? {
        None => {}
        Some(Original { id, alike: true, waits_at: None }) => return Ok(Ok(Accepted::Delivered { of: id })),
        Some(Original { id, alike: true, waits_at: Some(seq) }) => {
            let due = replace(db, leases, &into, seq, new)?;
            return Ok(Ok(Accepted::Newer { due, of: id }));
        }
        Some(Original { id, alike: false, .. }) => differs_from = Some(id),
    }
    let size = (new.head.len() as u64).saturating_add(new.trailers.len() as u64).saturating_add(new.body.size());
    let full = |what, limit| Ok(Err(AcceptError::Full { what, limit }));
    if into.held >= new.quota.count {
        return full(Measure::Webhooks, new.quota.count);
    }
    if into.bytes.saturating_add(size) > new.quota.bytes {
        return full(Measure::Bytes, new.quota.bytes);
    }
    let seq = insert(db, &into, new, size, differs_from)?;
    let lease = if into.gives(new.take, into.waiting == 0) { leases.take(seq) } else { None };
    let due = lease.map(|lease| Due { _lease: lease, seq, id: new.id, since: new.received_at, attempts: 0, tries: 0 });
    Ok(Ok(Accepted::Stored { due }))
}

/// Where a webhook goes.
struct Into {
    inbox: i64,
    paused: bool,
    waiting: u64,
    held: u64,
    bytes: u64,
}

impl Into {
    /// Whether the caller gets the lease that it wishes for.
    fn gives(&self, wish: Take, is_first: bool) -> bool {
        !self.paused && (wish == Take::Now || wish == Take::IfFirst && is_first)
    }
}

/// What a webhook is a copy of.
struct Original {
    id: Ulid,
    /// Whether the bodies are the same.
    alike: bool,
    /// Its place, if it still waits.
    waits_at: Option<Seq>,
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
    let mut statement = db.prepare_cached(COPIES_OF)?;
    let verdict = new.verdict.map(Verdict::as_str);
    let mut rows = statement.query(params![into.inbox, event, COPIES, new.provider, verdict, since])?;
    let mut differs = None;
    let mut waits = None;
    while let Some(row) = rows.next()? {
        let (seq, id, state, status) =
            (row.get("seq")?, row.get::<_, Id>("id")?.0, row.get("state")?, row.get("status")?);
        let alike = row.get_ref("body_sha256")?.as_blob()? == new.body.sha256();
        let is_confirmed = matches!(status, Some(200..=299u16));
        match state {
            _ if !alike => differs = Some(Original { id, alike, waits_at: None }),
            State::Delivered if is_confirmed => return Ok(Some(Original { id, alike, waits_at: None })),
            State::Waiting => waits = Some(Original { id, alike, waits_at: Some(seq) }),
            State::Delivered | State::Dead => {}
        }
    }
    Ok(waits.or(differs))
}

/// The newest webhooks of one event, newest first. The limit binds what is looked at, not what is found.
pub(super) const COPIES_OF: &str = "\
    SELECT seq, id, state, status, body_sha256
    FROM (SELECT * FROM webhooks WHERE inbox = ?1 AND event_id = ?2 ORDER BY seq DESC LIMIT ?3)
    WHERE provider IS ?4 AND verdict IS ?5 AND first_at >= ?6";

fn insert(db: &Connection, into: &Into, new: &New, size: u64, differs_from: Option<Ulid>) -> rusqlite::Result<Seq> {
    let mut insert = db.prepare_cached(
        "INSERT INTO webhooks (id, inbox, received_at, first_at, since, provider, event_id, event_type, verdict,
                               differs_from, spooled, body_size, body_sha256, size, head, trailers)
         VALUES (?1, ?2, ?3, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
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
                             event_type = ?5, copies = copies + 1,
                             size = body_size + length(coalesce(head_first, head)) + length(?2) + length(?3)
         WHERE seq = ?1
         RETURNING seq, id, since, attempts, tries,
                   NOT EXISTS (SELECT 1 FROM webhooks AS before
                               WHERE before.inbox = webhooks.inbox AND before.state = 0 AND before.seq < webhooks.seq)
                   AS is_first",
    )?;
    let values = params![seq, &*new.head, &*new.trailers, new.received_at, new.event_type];
    update.query_row(
        values,
        |row| {
            if into.gives(new.take, row.get("is_first")?) { due_from(row, leases) } else { Ok(None) }
        },
    )
}
