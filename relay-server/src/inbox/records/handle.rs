//! What people do with an inbox: look, try again, throw away. All of it names the token, too: a name may be another's by
//! now.

use rusqlite::{Connection, OptionalExtension as _, params};
use ulid::Ulid;

use super::deliver::load;
use super::lease::Leases;
use super::sweep::{Removed, remove, step};
use super::webhook::{ROW_COLUMNS, row_from};
use super::{Attempt, Id, Records, Row, STEP, STEP_BYTES, Seq, State, Stored, Which, inbox_of};
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

/// Without a limit, because its rows are read by [`step`].
pub(super) const NEXT: &str = "\
    SELECT seq, size - body_size * spooled AS cost FROM webhooks
    WHERE inbox = ?1 AND state = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq";

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
