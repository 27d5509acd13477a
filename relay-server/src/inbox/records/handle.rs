//! What people do with an inbox: look, try again, throw away. And what time does.
//!
//! What people do names the token, too: a name may be another's by now.

use rusqlite::{Connection, OptionalExtension as _, Rows, params};
use ulid::Ulid;

use super::accept::look_for_reusable;
use super::deliver::load;
use super::lease::Leases;
use super::webhook::{ROW_COLUMNS, row_from};
use super::{Attempt, Id, Quota, Records, Retention, Row, STEP, STEP_BYTES, Seq, State, Stored, Which};
use super::{inbox_id, inbox_of, reserve};
use crate::store::writer::Access;
use crate::store::{StoreError, TokenId};

/// A page of a list ends once its heads have as many bytes, so that long heads do not fill the memory.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

impl Records {
    /// Webhooks of an inbox, those that came last first: in one state or in any, that came before `before`. A page has at
    /// most `limit` and at most [`STEP`], fewer where heads are long. Returns whether there are more, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn list(
        &self,
        inbox: &str,
        token: TokenId,
        state: Option<State>,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<(Vec<Row>, bool), StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        self.read(move |db| match inbox_of(db, &inbox, token)? {
            Some(inbox) => list(db, &leases, inbox, state, before, limit.min(STEP)),
            None => Ok((Vec::new(), false)),
        })
        .await
    }

    /// A webhook of an inbox with the attempts at it, numbered, the newest last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn show(
        &self,
        inbox: &str,
        token: TokenId,
        id: Ulid,
    ) -> Result<Option<(Stored, Vec<(u32, Attempt)>)>, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        self.read(move |db| {
            let Some(inbox) = inbox_of(db, &inbox, token)? else { return Ok(None) };
            let Some((seq, _)) = place(db, inbox, id)? else { return Ok(None) };
            let Some(stored) = load(db, &leases, seq)? else { return Ok(None) };
            let sql = "SELECT number, at, duration_ms, status, error FROM attempts WHERE seq = ?1 ORDER BY number";
            let mut statement = db.prepare_cached(sql)?;
            let attempts = statement.query_map([seq], |row| {
                let attempt = Attempt {
                    at: row.get("at")?,
                    duration_ms: row.get("duration_ms")?,
                    status: row.get("status")?,
                    error: row.get("error")?,
                };
                Ok((row.get("number")?, attempt))
            });
            let attempts = attempts?.collect::<rusqlite::Result<_>>()?;
            Ok(Some((stored, attempts)))
        })
        .await
    }

    /// Makes webhooks due at once, with all their tries before them, and their age begins anew; dead ones wait again. What was
    /// never tried keeps its age. One that is being tried, or was delivered, is passed over. Returns how many there were. Each [`STEP`] is atomic.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn retry(&self, inbox: &str, token: TokenId, which: Which, now: i64) -> Result<u64, StoreError> {
        let leases = self.leases.clone();
        self.in_steps(inbox, token, which, move |db, seqs| {
            let sql = "UPDATE webhooks SET since = CASE WHEN state = 0 AND tries = 0 THEN since ELSE ?2 END,
                           state = 0, due_at = 0, tries = 0, ended_at = NULL, reason = NULL
                       WHERE seq = ?1 AND state <> 1";
            let mut retry = db.prepare_cached(sql)?;
            let mut count = 0;
            for seq in seqs.iter().filter(|seq| !leases.is_taken(**seq)) {
                count += retry.execute(params![seq, now])?;
            }
            Ok((count, Vec::new()))
        })
        .await
    }

    /// Removes webhooks, in whatever state. Returns how many there were. Each [`STEP`] is atomic.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn drop(&self, inbox: &str, token: TokenId, which: Which) -> Result<u64, StoreError> {
        self.in_steps(inbox, token, which, remove).await
    }

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

    /// Runs `step` over webhooks of an inbox, [`STEP`] at a time, and removes the bodies that it says.
    async fn in_steps(
        &self,
        inbox: &str,
        token: TokenId,
        which: Which,
        step: impl Fn(&Connection, &[Seq]) -> rusqlite::Result<Removed> + Clone + Send + 'static,
    ) -> Result<u64, StoreError> {
        let mut total = 0;
        let mut rest = Rest::of(which);
        loop {
            let (inbox, step) = (inbox.to_owned(), step.clone());
            let work = self.drain(Access::Write, move |db| {
                let mut rest = rest;
                let seqs = match inbox_of(db, &inbox, token)? {
                    Some(inbox) => rest.next(db, inbox)?,
                    None => Vec::new(),
                };
                let done = step(db, &seqs)?;
                Ok((rest, seqs.is_empty(), done))
            });
            let (left, is_over, (count, spooled)) = work.await?;
            if is_over {
                return Ok(total);
            }
            rest = left;
            total += count as u64;
            self.spool.remove(spooled).await;
        }
    }
}

/// How many webhooks were dealt with, and which bodies have to go for it.
type Removed = (usize, Vec<Ulid>);

/// What is left of a [`Which`].
#[derive(Clone)]
enum Rest {
    Ids(std::vec::IntoIter<Ulid>),
    All {
        state: State,
        after: Seq,
        /// The last of those that were there at first.
        last: Option<Seq>,
    },
}

impl Rest {
    fn of(which: Which) -> Self {
        match which {
            Which::Ids(ids) => Self::Ids(ids.into_iter()),
            Which::All(state) => Self::All { state, after: Seq(0), last: None },
        }
    }

    /// The next ones, no more than for one step; none at the end.
    fn next(&mut self, db: &Connection, inbox: i64) -> rusqlite::Result<Vec<Seq>> {
        match self {
            Self::Ids(ids) => {
                let (mut found, mut bytes) = (Vec::new(), 0);
                // An id that is not there must not look like the end.
                for id in ids {
                    if let Some((seq, cost)) = place(db, inbox, id)? {
                        found.push(seq);
                        bytes += cost;
                    }
                    if found.len() >= STEP || bytes >= STEP_BYTES {
                        break;
                    }
                }
                Ok(found)
            }
            Self::All { state, after, last } => {
                let last = match *last {
                    Some(last) => last,
                    None => *last.insert(db.prepare_cached(LAST)?.query_row(params![inbox, *state], |row| row.get(0))?),
                };
                let mut statement = db.prepare_cached(NEXT)?;
                let (seqs, _) = step(statement.query(params![inbox, *state, *after, last])?, |_| false)?;
                *after = seqs.last().copied().unwrap_or(last);
                Ok(seqs)
            }
        }
    }
}

pub(super) const LAST: &str = "\
    SELECT coalesce(max(seq), 0) FROM webhooks WHERE inbox = ?1 AND state = ?2";

// What stands below has no limit of its own, because its rows are read by `step`. Their cost are the bytes in the database.

pub(super) const NEXT: &str = "\
    SELECT seq, size - body_size * spooled AS cost FROM webhooks
    WHERE inbox = ?1 AND state = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq";

/// As many webhooks as one transaction goes through, but those that are left alone, and whether there may be more.
fn step(mut rows: Rows<'_>, is_left: impl Fn(Seq) -> bool) -> rusqlite::Result<(Vec<Seq>, bool)> {
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

pub(super) const PAGE: &str = "\
    SELECT seq FROM webhooks WHERE inbox = ?1 AND state = ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4";

/// The place of a webhook, and its cost.
fn place(db: &Connection, inbox: i64, id: Ulid) -> rusqlite::Result<Option<(Seq, u64)>> {
    let sql = "SELECT seq, size - body_size * spooled FROM webhooks WHERE id = ?2 AND inbox = ?1";
    db.prepare_cached(sql)?.query_row(params![inbox, Id(id)], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

fn list(
    db: &Connection,
    leases: &Leases,
    inbox: i64,
    state: Option<State>,
    before: Option<Seq>,
    limit: usize,
) -> rusqlite::Result<(Vec<Row>, bool)> {
    // The index has each state in order, so the newest of all states are among the newest of each.
    let mut seqs = Vec::new();
    let mut page = db.prepare_cached(PAGE)?;
    for state in State::ALL.into_iter().filter(|each| state.is_none_or(|state| state == *each)) {
        let before = before.unwrap_or(Seq(i64::MAX));
        for seq in page.query_map(params![inbox, state, before, limit + 1], |row| row.get::<_, Seq>(0))? {
            seqs.push(seq?);
        }
    }
    seqs.sort_unstable_by(|one, other| other.cmp(one));
    let found = seqs.len();
    seqs.truncate(limit);

    let mut rows = Vec::with_capacity(seqs.len());
    let mut bytes = 0;
    let mut one = db.prepare_cached(&format!("SELECT {ROW_COLUMNS} FROM webhooks WHERE seq = ?1"))?;
    for seq in seqs {
        let row = one.query_row([seq], |row| row_from(row, leases))?;
        bytes += row.head.len();
        rows.push(row);
        if bytes > PAGE_BYTES {
            break;
        }
    }
    let more = rows.len() < found;
    Ok((rows, more))
}

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
