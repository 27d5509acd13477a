//! What time does in an inbox, and what makes room in it: what has waited for too long is given up, what ended long ago and
//! what is too much goes.

use rusqlite::{Connection, OptionalExtension as _, Rows, params};
use ulid::Ulid;

use super::lease::Leases;
use super::{Id, Quota, Records, Retention, STEP, STEP_BYTES, Seq, State, inbox_id, reserve};
use crate::inbox::spool::Spool;
use crate::store::StoreError;
use crate::store::writer::Access;

impl Records {
    /// Does a piece of what time does in an inbox: gives up what has waited for too long, removes what ended long ago and
    /// what is too much.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sweep(&self, inbox: &str, now: i64, retention: Retention) -> Result<Swept, StoreError> {
        let (inbox, leases, spool) = (inbox.to_owned(), self.leases.clone(), self.spool.clone());
        let swept = self.drain(Access::Write, move |db| {
            look_for_reusable(db, &spool)?;
            sweep(db, &leases, &inbox, now, retention)
        });
        let (swept, spooled) = swept.await?;
        self.spool.remove(spooled).await;
        Ok(swept)
    }

    /// Removes a piece of what closed inboxes held. Returns whether there may be more. Then it sees to it that there is
    /// something to give up once the disk is full.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sweep_closed(&self) -> Result<bool, StoreError> {
        let (more, spooled) = self.drain(Access::Write, sweep_closed).await?;
        self.spool.remove(spooled).await;
        if !more && self.spool.has_room(reserve::SIZE).is_ok() {
            let reserve = self.reserve.clone();
            let laid_by = tokio::task::spawn_blocking(move || reserve.lay_by()).await;
            if let Ok(Err(error)) = laid_by {
                tracing::warn!(%error, "nothing of the disk could be kept back for when it is full");
            }
        }
        Ok(more)
    }
}

/// How many webhooks were dealt with, and which bodies have to go for it.
pub(super) type Removed = (usize, Vec<Ulid>);

/// Removes webhooks. Returns how many there were, and whose files have to go.
pub(super) fn remove(db: &Connection, seqs: &[Seq]) -> rusqlite::Result<Removed> {
    let mut delete = db.prepare_cached("DELETE FROM webhooks WHERE seq = ?1 RETURNING id, spooled")?;
    let (mut count, mut files) = (0, Vec::new());
    for seq in seqs {
        let removed = delete.query_row([seq], |row| Ok((row.get::<_, Id>(0)?.0, row.get(1)?)));
        if let Some((id, is_spooled)) = removed.optional()? {
            count += 1;
            files.extend(Some(id).filter(|_| is_spooled));
        }
    }
    Ok((count, files))
}

/// The delivered webhooks beyond so many, at most `limit`, those delivered first.
pub(super) fn surplus(db: &Connection, inbox: i64, most: Quota, limit: usize) -> rusqlite::Result<Vec<Seq>> {
    let kept = "SELECT delivered, delivered_bytes FROM inboxes WHERE id = ?1";
    let kept = db.prepare_cached(kept)?.query_row([inbox], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (mut count, mut bytes): (u64, u64) = kept;
    let mut seqs = Vec::new();
    let mut ended = db.prepare_cached(ENDED)?;
    let mut rows = ended.query(params![inbox, State::Delivered, i64::MAX])?;
    while (count > most.count || bytes > most.bytes) && seqs.len() < limit {
        let Some(row) = rows.next()? else { break };
        seqs.push(row.get("seq")?);
        count = count.saturating_sub(1);
        bytes = bytes.saturating_sub(row.get("cost")?);
    }
    Ok(seqs)
}

// What is selected has no limit of its own, because its rows are read by `step`. Their cost are the bytes in the database.

pub(super) const TOO_OLD: &str = "\
    SELECT seq, size - body_size * spooled AS cost FROM webhooks INDEXED BY webhooks_age
    WHERE inbox = ?1 AND state = 0 AND since < ?2";

pub(super) const ENDED: &str = "\
    SELECT seq, size - body_size * spooled AS cost FROM webhooks INDEXED BY webhooks_ended
    WHERE inbox = ?1 AND state = ?2 AND ended_at < ?3 ORDER BY ended_at";

/// Gives up what has waited since before `since`. One that is being tried may be delivered yet, and is left alone.
fn expire(db: &Connection, leases: &Leases, inbox: i64, now: i64, since: i64) -> rusqlite::Result<Swept> {
    let mut old = db.prepare_cached(TOO_OLD)?;
    let (old, more) = step(old.query(params![inbox, since])?, |seq| leases.is_taken(seq))?;
    let mut expire =
        db.prepare_cached("UPDATE webhooks SET state = 2, ended_at = ?2, reason = 'expired' WHERE seq = ?1")?;
    for seq in &old {
        expire.execute(params![seq, now])?;
    }
    Ok(Swept { more, expired: old.len() as u64 })
}

/// What was done of what time does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// There may be more to do.
    pub(crate) more: bool,
    /// Webhooks that were given up, because they have waited for too long.
    pub(crate) expired: u64,
}

/// With the bodies whose files have to go.
fn sweep(
    db: &Connection,
    leases: &Leases,
    inbox: &str,
    now: i64,
    retention: Retention,
) -> rusqlite::Result<(Swept, Vec<Ulid>)> {
    let Some(inbox) = inbox_id(db, inbox)? else { return Ok(Default::default()) };
    let before = |age: i64| now.saturating_sub(age);
    let mut swept = expire(db, leases, inbox, now, before(retention.max_age_ms))?;
    if swept.more {
        return Ok((swept, Vec::new()));
    }
    let surplus = surplus(db, inbox, retention.delivered, STEP)?;
    let (_, mut files) = remove(db, &surplus)?;
    swept.more = surplus.len() == STEP;
    for (state, age) in [(State::Delivered, retention.delivered_ms), (State::Dead, retention.dead_ms)] {
        let mut ended = db.prepare_cached(ENDED)?;
        let (old, left) = step(ended.query(params![inbox, state, before(age)])?, |_| false)?;
        files.extend(remove(db, &old)?.1);
        swept.more |= left;
    }
    Ok((swept, files))
}

pub(super) const CLOSED: &str = "\
    SELECT seq, size - body_size * spooled AS cost FROM webhooks WHERE inbox = ?1";

fn sweep_closed(db: &Connection) -> rusqlite::Result<(bool, Vec<Ulid>)> {
    let closed =
        db.prepare_cached("SELECT id FROM inboxes WHERE name IS NULL LIMIT 1")?.query_row([], |row| row.get(0));
    let Some(inbox) = closed.optional()? else { return Ok((false, Vec::new())) };
    let inbox: i64 = inbox;
    let (old, more) = step(db.prepare_cached(CLOSED)?.query([inbox])?, |_| false)?;
    let (_, files) = remove(db, &old)?;
    if !more {
        db.prepare_cached("DELETE FROM inboxes WHERE id = ?1")?.execute([inbox])?;
    }
    // There may be other inboxes, too.
    Ok((true, files))
}

/// As many webhooks as one transaction goes through, but those that are left alone, and whether there may be more.
pub(super) fn step(mut rows: Rows<'_>, is_left: impl Fn(Seq) -> bool) -> rusqlite::Result<(Vec<Seq>, bool)> {
    let (mut seqs, mut bytes) = (Vec::new(), 0);
    while seqs.len() < STEP && bytes < STEP_BYTES {
        let Some(row) = rows.next()? else { return Ok((seqs, false)) };
        let seq = row.get("seq")?;
        if !is_left(seq) {
            seqs.push(seq);
            bytes += row.get::<_, u64>("cost")?;
        }
    }
    Ok((seqs, true))
}

/// Notes how much of the database is free: SQLite gives nothing back to the disk, and uses it again.
pub(super) fn look_for_reusable(db: &Connection, spool: &Spool) -> rusqlite::Result<()> {
    let pragma = |name: &str| db.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get::<_, u64>(0));
    spool.set_reusable(pragma("freelist_count")?.saturating_mul(pragma("page_size")?));
    Ok(())
}
