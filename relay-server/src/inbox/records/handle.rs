//! What people do with an inbox: look, try again, throw away. And what time does.

use rusqlite::{Connection, OptionalExtension as _, Params, params};
use ulid::Ulid;

use super::deliver::load;
use super::lease::Leases;
use super::{Attempt, Id, ROW_COLUMNS, Records, Retention, Row, STEP, Seq, State, Stored, Which};
use super::{inbox_id, row_from};
use crate::store::StoreError;

/// A page of a list ends once its heads have as many bytes, so that long heads do not fill the memory.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

impl Records {
    /// Webhooks of an inbox, those that came last first: in one state or in any, that came before `before`. A page has at
    /// most `limit` and at most [`STEP`], fewer where heads are long; the end is a page without any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn list(
        &self,
        inbox: &str,
        state: Option<State>,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        self.read(move |db| list(db, &leases, &inbox, state, before, limit.min(STEP))).await
    }

    /// A webhook of an inbox with the attempts at it, numbered, the newest last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn show(
        &self,
        inbox: &str,
        id: Ulid,
    ) -> Result<Option<(Stored, Vec<(u32, Attempt)>)>, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        self.read(move |db| {
            let Some(seq) = place(db, &inbox, id)? else { return Ok(None) };
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

    /// Makes webhooks due at once, with all their tries before them; dead ones wait again, and their age begins anew. One
    /// that is being tried, or was delivered, is passed over. Returns how many there were. Each [`STEP`] is atomic.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn retry(&self, inbox: &str, which: Which, now: i64) -> Result<u64, StoreError> {
        let leases = self.leases.clone();
        self.in_steps(inbox, which, move |db, seqs| {
            let sql = "UPDATE webhooks SET state = 0, due_at = 0, tries = 0, since = ?2, ended_at = NULL, reason = NULL
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
    pub(crate) async fn drop(&self, inbox: &str, which: Which) -> Result<u64, StoreError> {
        self.in_steps(inbox, which, |db, seqs| {
            let mut delete = db.prepare_cached("DELETE FROM webhooks WHERE seq = ?1 RETURNING id, spooled")?;
            removed(seqs.iter().map(|seq| delete.query_row([seq], removed_from).optional()))
        })
        .await
    }

    /// Does what time does in an inbox: gives up what has waited for too long, removes what ended long ago. At most
    /// [`STEP`] webhooks; returns how many, and with as many there may be more to do.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sweep(&self, inbox: &str, now: i64, retention: Retention) -> Result<u64, StoreError> {
        let (inbox, leases) = (inbox.to_owned(), self.leases.clone());
        let (count, spooled) = self.write(move |db| sweep(db, &leases, &inbox, now, retention)).await?;
        self.spool.remove(spooled).await;
        Ok(count as u64)
    }

    /// Removes what closed inboxes held, at most [`STEP`] webhooks; returns how many, and with as many there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn sweep_closed(&self) -> Result<u64, StoreError> {
        let (count, spooled) = self.write(sweep_closed).await?;
        self.spool.remove(spooled).await;
        Ok(count as u64)
    }

    /// Runs `step` over webhooks of an inbox, [`STEP`] at a time, and removes the bodies that it says.
    async fn in_steps(
        &self,
        inbox: &str,
        which: Which,
        step: impl Fn(&Connection, &[Seq]) -> rusqlite::Result<Removed> + Clone + Send + 'static,
    ) -> Result<u64, StoreError> {
        let mut total = 0;
        let mut rest = Rest::of(which);
        loop {
            let (inbox, step) = (inbox.to_owned(), step.clone());
            let work = self.write(move |db| {
                let seqs = match inbox_id(db, &inbox)? {
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

    /// The next ones, at most [`STEP`]; none at the end.
    fn next(&mut self, db: &Connection, inbox: i64) -> rusqlite::Result<Vec<Seq>> {
        match self {
            Self::Ids(ids) => {
                let mut found = Vec::new();
                // An id that is not there must not look like the end.
                while found.is_empty() && ids.len() > 0 {
                    for id in ids.take(STEP) {
                        found.extend(place_in(db, inbox, id)?);
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
                let seqs = statement.query_map(params![inbox, *state, *after, last, STEP], |row| row.get(0))?;
                let seqs = seqs.collect::<rusqlite::Result<Vec<Seq>>>()?;
                *after = seqs.last().copied().unwrap_or(last);
                Ok(seqs)
            }
        }
    }
}

pub(super) const LAST: &str = "\
    SELECT coalesce(max(seq), 0) FROM webhooks WHERE inbox = ?1 AND state = ?2";

pub(super) const NEXT: &str = "\
    SELECT seq FROM webhooks WHERE inbox = ?1 AND state = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq LIMIT ?5";

pub(super) const PAGE: &str = "\
    SELECT seq FROM webhooks WHERE inbox = ?1 AND state = ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4";

fn place(db: &Connection, inbox: &str, id: Ulid) -> rusqlite::Result<Option<Seq>> {
    match inbox_id(db, inbox)? {
        Some(inbox) => place_in(db, inbox, id),
        None => Ok(None),
    }
}

fn place_in(db: &Connection, inbox: i64, id: Ulid) -> rusqlite::Result<Option<Seq>> {
    let sql = "SELECT seq FROM webhooks WHERE id = ?2 AND inbox = ?1";
    db.prepare_cached(sql)?.query_row(params![inbox, Id(id)], |row| row.get(0)).optional()
}

fn list(
    db: &Connection,
    leases: &Leases,
    inbox: &str,
    state: Option<State>,
    before: Option<Seq>,
    limit: usize,
) -> rusqlite::Result<Vec<Row>> {
    let Some(inbox) = inbox_id(db, inbox)? else { return Ok(Vec::new()) };
    // The index has each state in order, so the newest of all states are among the newest of each.
    let mut seqs = Vec::new();
    let mut page = db.prepare_cached(PAGE)?;
    for state in State::ALL.into_iter().filter(|each| state.is_none_or(|state| state == *each)) {
        let before = before.unwrap_or(Seq(i64::MAX));
        for seq in page.query_map(params![inbox, state, before, limit], |row| row.get::<_, Seq>(0))? {
            seqs.push(seq?);
        }
    }
    seqs.sort_unstable_by(|one, other| other.cmp(one));
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
    Ok(rows)
}

fn removed_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Ulid, bool)> {
    Ok((row.get::<_, Id>(0)?.0, row.get(1)?))
}

/// Counts what was deleted and gathers the ids of what was spooled.
fn removed(rows: impl Iterator<Item = rusqlite::Result<Option<(Ulid, bool)>>>) -> rusqlite::Result<Removed> {
    let (mut count, mut spooled) = (0, Vec::new());
    for row in rows {
        if let Some((id, is_spooled)) = row? {
            count += 1;
            spooled.extend(is_spooled.then_some(id));
        }
    }
    Ok((count, spooled))
}

/// Deletes the webhooks that `which` selects.
fn delete(db: &Connection, which: &str, values: impl Params) -> rusqlite::Result<Removed> {
    let sql = format!("DELETE FROM webhooks WHERE seq IN ({which}) RETURNING id, spooled");
    let mut statement = db.prepare_cached(&sql)?;
    removed(statement.query_map(values, removed_from)?.map(|row| row.map(Some)))
}

pub(super) const TOO_OLD: &str = "\
    SELECT seq FROM webhooks INDEXED BY webhooks_age WHERE inbox = ?1 AND state = 0 AND since < ?2";

pub(super) const ENDED: &str = "\
    SELECT seq FROM webhooks INDEXED BY webhooks_ended
    WHERE inbox = ?1 AND state = ?2 AND ended_at < ?3 ORDER BY ended_at LIMIT ?4";

/// Gives up what has waited since before `since`. One that is being tried may be delivered yet, and is left alone.
fn expire(db: &Connection, leases: &Leases, inbox: i64, now: i64, since: i64) -> rusqlite::Result<usize> {
    let mut old = db.prepare_cached(TOO_OLD)?;
    let old = old.query_map(params![inbox, since], |row| row.get(0))?;
    let is_left = |seq: &rusqlite::Result<Seq>| seq.as_ref().map_or(true, |seq| !leases.is_taken(*seq));
    let old = old.filter(is_left).take(STEP).collect::<rusqlite::Result<Vec<Seq>>>()?;
    let mut expire =
        db.prepare_cached("UPDATE webhooks SET state = 2, ended_at = ?2, reason = 'expired' WHERE seq = ?1")?;
    for seq in &old {
        expire.execute(params![seq, now])?;
    }
    Ok(old.len())
}

fn sweep(db: &Connection, leases: &Leases, inbox: &str, now: i64, retention: Retention) -> rusqlite::Result<Removed> {
    let Some(inbox) = inbox_id(db, inbox)? else { return Ok((0, Vec::new())) };
    let before = |age: i64| now.saturating_sub(age);
    let mut count = expire(db, leases, inbox, now, before(retention.max_age_ms))?;
    let delivered = "SELECT delivered FROM inboxes WHERE id = ?1";
    let delivered: u64 = db.prepare_cached(delivered)?.query_row([inbox], |row| row.get(0))?;
    let mut spooled = Vec::new();
    for (state, before, most) in [
        (State::Delivered, i64::MAX, delivered.saturating_sub(retention.delivered_count)),
        (State::Delivered, before(retention.delivered_ms), u64::MAX),
        (State::Dead, before(retention.dead_ms), u64::MAX),
    ] {
        let limit = most.min(STEP.saturating_sub(count) as u64);
        let (more, files) = delete(db, ENDED, params![inbox, state, before, limit])?;
        count += more;
        spooled.extend(files);
    }
    Ok((count, spooled))
}

fn sweep_closed(db: &Connection) -> rusqlite::Result<Removed> {
    let mut closed = db.prepare_cached("SELECT id FROM inboxes WHERE name IS NULL LIMIT ?1")?;
    let closed = closed.query_map([STEP], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
    let (mut count, mut spooled) = (0, Vec::new());
    for inbox in closed {
        let left = STEP.saturating_sub(count);
        let (more, files) = delete(db, "SELECT seq FROM webhooks WHERE inbox = ?1 LIMIT ?2", params![inbox, left])?;
        count += more;
        spooled.extend(files);
        if count >= STEP {
            break;
        }
        db.prepare_cached("DELETE FROM inboxes WHERE id = ?1")?.execute([inbox])?;
    }
    Ok((count, spooled))
}
