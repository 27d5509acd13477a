//! The way out: what is due, and what came of it.

use rusqlite::{Connection, OptionalExtension as _, Params, params};
use ulid::Ulid;

use super::lease::Leases;
use super::webhook::{ROW_COLUMNS, row_from};
use super::{ATTEMPTS_KEPT, Attempt, Due, Id, Outcome, Records, STEP, Seq, State, Stored, StoredBody};
use crate::store::StoreError;
use crate::store::writer::Access;

impl Records {
    /// Takes webhooks that are due, at most `limit` and at most [`STEP`], in the order in which they came. Those that were
    /// tried already and are due again come before those that were not; `ordered` gives only the one that came first of all that wait, once it is due. An inbox that is paused, or not there, has none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn due(&self, inbox: &str, now: i64, ordered: bool, limit: usize) -> Result<Vec<Due>, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        // On the writer's thread what was noted of a webhook is seen before its lease is given back. A reader may look at
        // what was before that.
        let due = move |db: &Connection| due(db, &leases, &inbox, now, ordered, limit.min(STEP)).map(Ok);
        self.writer.run(Access::Read, due).await
    }

    /// When the next webhook of an inbox is due that nobody delivers: `None` where none waits or the inbox is paused. It may
    /// have been so for long; 0 stands for at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn next_due(&self, inbox: &str, ordered: bool) -> Result<Option<i64>, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        self.read(move |db| {
            let Some(inbox) = delivering(db, &inbox)? else { return Ok(None) };
            let mut waiting = db.prepare_cached(if ordered { FIRST_WAITING } else { NEXT_DUE })?;
            let mut rows = waiting.query([inbox])?;
            while let Some(row) = rows.next()? {
                if !leases.is_taken(row.get("seq")?) {
                    return row.get("due_at").map(Some);
                }
            }
            Ok(None)
        })
        .await
    }

    /// A webhook with all that is needed to send it; `None` if it does not wait any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn load(&self, seq: Seq) -> Result<Option<Stored>, StoreError> {
        let leases = self.leases.clone();
        let stored = self.read(move |db| load(db, &leases, seq)).await?;
        Ok(stored.filter(|stored| stored.row.state == State::Waiting))
    }

    /// Notes an attempt and what follows from it. Of one that is delivered the head is kept, and nothing else. One
    /// that was given up meanwhile may still turn out to be delivered. Returns whether it is still there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn attempted(
        &self,
        seq: Seq,
        attempt: Attempt,
        outcome: Outcome,
        access: Access,
    ) -> Result<bool, StoreError> {
        let Some(spooled) = self.drain(access, move |db| attempted(db, seq, &attempt, &outcome)).await? else {
            return Ok(false);
        };
        self.spool.remove(spooled).await;
        Ok(true)
    }
}

pub(super) const FIRST_WAITING: &str = "\
    SELECT seq, id, since, attempts, tries, due_at FROM webhooks WHERE inbox = ?1 AND state = 0 ORDER BY seq LIMIT 1";

// Those below have no limit, because what somebody delivers is passed over: they are read until there are enough.

pub(super) const NEXT_DUE: &str = "\
    SELECT seq, due_at FROM webhooks WHERE inbox = ?1 AND state = 0 ORDER BY due_at";

/// Those whose wait is over. Left to itself, SQLite would walk over all that wait, in order, for the few that are due.
pub(super) const DUE_AGAIN: &str = "\
    SELECT seq, id, since, attempts, tries FROM webhooks INDEXED BY webhooks_due
    WHERE inbox = ?1 AND state = 0 AND due_at > 0 AND due_at <= ?2 ORDER BY due_at, seq";

/// Those that need not wait.
pub(super) const DUE_AT_ONCE: &str = "\
    SELECT seq, id, since, attempts, tries FROM webhooks INDEXED BY webhooks_due
    WHERE inbox = ?1 AND state = 0 AND due_at = 0 ORDER BY seq";

/// The number of an inbox that is there and not paused.
fn delivering(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT id FROM inboxes WHERE name = ?1 AND NOT paused";
    db.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()
}

fn due(
    db: &Connection,
    leases: &Leases,
    inbox: &str,
    now: i64,
    ordered: bool,
    limit: usize,
) -> rusqlite::Result<Vec<Due>> {
    let Some(inbox) = delivering(db, inbox)? else { return Ok(Vec::new()) };
    if ordered {
        let mut first = db.prepare_cached(FIRST_WAITING)?;
        let first = first.query_row([inbox], |row| {
            let is_due = row.get::<_, i64>("due_at")? <= now && limit > 0;
            if is_due { due_from(row, leases) } else { Ok(None) }
        });
        return Ok(first.optional()?.flatten().into_iter().collect());
    }
    let mut found = dues(db, leases, DUE_AGAIN, params![inbox, now], limit)?;
    found.extend(dues(db, leases, DUE_AT_ONCE, params![inbox], limit.saturating_sub(found.len()))?);
    found.sort_unstable_by_key(|due| due.seq);
    Ok(found)
}

fn dues(db: &Connection, leases: &Leases, sql: &str, values: impl Params, limit: usize) -> rusqlite::Result<Vec<Due>> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_and_then(values, |row| due_from(row, leases))?;
    rows.filter_map(Result::transpose).take(limit).collect()
}

/// The webhook of a row, unless somebody delivers it.
pub(super) fn due_from(row: &rusqlite::Row<'_>, leases: &Leases) -> rusqlite::Result<Option<Due>> {
    let seq = row.get("seq")?;
    let Some(lease) = leases.take(seq) else { return Ok(None) };
    Ok(Some(Due {
        _lease: lease,
        seq,
        id: row.get::<_, Id>("id")?.0,
        since: row.get("since")?,
        attempts: row.get("attempts")?,
        tries: row.get("tries")?,
    }))
}

pub(super) fn load(db: &Connection, leases: &Leases, seq: Seq) -> rusqlite::Result<Option<Stored>> {
    let sql = format!(
        "SELECT {ROW_COLUMNS}, trailers, head_first, sends_first,
                (SELECT body FROM bodies WHERE bodies.seq = webhooks.seq) AS body
         FROM webhooks JOIN inboxes ON inboxes.id = webhooks.inbox
         WHERE seq = ?1 AND inboxes.name IS NOT NULL"
    );
    let stored = db.prepare_cached(&sql)?.query_row([seq], |row| {
        let body = match row.get::<_, Option<Vec<u8>>>("body")? {
            Some(body) => StoredBody::Inline(body.into()),
            None if row.get("spooled")? => StoredBody::Spooled,
            None => StoredBody::Gone,
        };
        Ok(Stored {
            row: row_from(row, leases)?,
            trailers: row.get::<_, Vec<u8>>("trailers")?.into(),
            head_first: row.get::<_, Option<Vec<u8>>>("head_first")?.map(Into::into),
            sends_first: row.get("sends_first")?,
            body,
        })
    });
    stored.optional()
}

/// `None` if it is no longer there; otherwise its file in the spool, if it has to go.
fn attempted(
    db: &Connection,
    seq: Seq,
    attempt: &Attempt,
    outcome: &Outcome,
) -> rusqlite::Result<Option<Option<Ulid>>> {
    let counted = "UPDATE webhooks SET attempts = attempts + 1, tries = tries + 1, status = ?2 WHERE seq = ?1
                   RETURNING attempts, state, id, spooled, copies";
    let counted = db.prepare_cached(counted)?.query_row(params![seq, attempt.status], |row| {
        Ok((
            row.get::<_, i64>("attempts")?,
            row.get::<_, State>("state")?,
            row.get::<_, Id>("id")?.0,
            row.get::<_, bool>("spooled")?,
            row.get::<_, u32>("copies")?,
        ))
    });
    let Some((number, state, id, spooled, copies)) = counted.optional()? else { return Ok(None) };
    db.prepare_cached(
        "INSERT INTO attempts (seq, number, at, duration_ms, status, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![seq, number, attempt.at, attempt.duration_ms, attempt.status, attempt.error])?;
    if number > ATTEMPTS_KEPT {
        let old = "DELETE FROM attempts WHERE seq = ?1 AND number <= ?2";
        db.prepare_cached(old)?.execute(params![seq, number - ATTEMPTS_KEPT])?;
    }
    let ended_at = attempt.at.saturating_add_unsigned(attempt.duration_ms);
    let is_success = matches!(attempt.status, Some(200..=299));
    let outcome = match outcome {
        Outcome::Answered(otherwise) if copies > 0 && !is_success => otherwise,
        Outcome::Answered(_) => &Outcome::Delivered,
        outcome => outcome,
    };
    match outcome {
        Outcome::Delivered if state != State::Delivered => {
            let sql = "UPDATE webhooks SET state = 1, ended_at = ?2, reason = NULL, spooled = 0, trailers = x'',
                                           head_first = NULL, size = length(head)
                       WHERE seq = ?1";
            db.prepare_cached(sql)?.execute(params![seq, ended_at])?;
            db.prepare_cached("DELETE FROM bodies WHERE seq = ?1")?.execute([seq])?;
            return Ok(Some(spooled.then_some(id)));
        }
        Outcome::Again { at } if state == State::Waiting => {
            // What was found to be signed rightly is not refused for its signature.
            let sql = "UPDATE webhooks SET due_at = ?2, sends_first = CASE
                           WHEN ?3 AND head_first IS NOT NULL AND verdict IS NOT 'valid' THEN NOT sends_first
                           ELSE sends_first END
                       WHERE seq = ?1";
            db.prepare_cached(sql)?.execute(params![seq, at, matches!(attempt.status, Some(400..=499))])?;
        }
        Outcome::Dead { reason } if state == State::Waiting => {
            let sql = "UPDATE webhooks SET state = 2, ended_at = ?2, reason = ?3 WHERE seq = ?1";
            db.prepare_cached(sql)?.execute(params![seq, ended_at, reason])?;
        }
        // What ended meanwhile stays so.
        _ => {}
    }
    Ok(Some(None))
}
