//! Reading what a user's clients have stored, while they run and after.
//!
//! Each call looks at the file, which takes milliseconds or, where the disk is busy, longer: in a task it belongs into
//! `spawn_blocking`.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memchr::memmem::Finder;
use relay_protocol::webhook::Verdict;
use rusqlite::{Connection, OptionalExtension};
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchange, Summary};
use super::filter::{PathPattern, StatusPattern};
use super::packed::{self, has, says};
use super::store::{self, LAST, Place, Store, StoreError};

/// The bodies in which a text is looked for are the last that were stored, up to so many bytes with their heads: they are
/// read for each letter that somebody types.
const SEARCHED: usize = 64 << 20;

/// Connections that are kept for the next who look.
const IDLE: usize = 4;

/// Rows of exchanges that are read at once of those that were stored.
const READ_BATCHES: u32 = 16;

/// What is asked for; all of it must hold. The empty query asks for everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// The id of a row of the provider table.
    pub(crate) provider: Option<String>,
    /// The event's kind; with a `*` at its end, all that begin so.
    pub(crate) event_type: Option<String>,
    /// What the provider calls the event.
    pub(crate) event_id: Option<String>,
    /// What it was answered with.
    pub(crate) status: Option<StatusPattern>,
    /// Its method, in any case.
    pub(crate) method: Option<String>,
    /// Where it goes.
    pub(crate) path: Option<PathPattern>,
    /// The tunnel, as in `tunnel.ready`.
    pub(crate) tunnel: Option<String>,
    /// Whether it was signed.
    pub(crate) verdict: Option<Verdict>,
    /// Text in any case that stands in its path, event, provider, tunnel, id, method, error or address, or in this case
    /// in one of its bodies, where those are among the last [`SEARCHED`] bytes that were stored.
    pub(crate) text: Option<String>,
    /// Those that came at this time or later: milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Those with a lesser id, which came earlier.
    pub(crate) before: Option<String>,
    /// Those with a greater id, which came later.
    pub(crate) after: Option<String>,
    /// Whoever asks has gone: what was found by then is enough.
    pub(crate) given_up: CancellationToken,
}

/// A user's stored exchanges. There are none while there is no file, and when another one takes its name they are those of
/// that one.
#[derive(Debug)]
pub(crate) struct History {
    place: Place,
    /// Nobody waits for others who look.
    idle: Mutex<Vec<Store>>,
}

/// Why one exchange is not found by what was typed.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None has such an id.
    #[error("no request of the history has an id that begins with {0:?}; `relay requests` lists them")]
    Unknown(String),
    /// There is none at all.
    #[error("the history is empty; requests are kept in it once a client has forwarded some")]
    Empty,
    /// More than one.
    #[error("several requests have an id that begins with {wanted:?}: {}, …; write more of it", found.join(", "))]
    Several {
        /// What was typed.
        wanted: String,
        /// Some of them.
        found: Vec<String>,
    },
    /// The history is not to be had.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl History {
    pub(crate) fn of(place: Place) -> Self {
        Self { place, idle: Mutex::default() }
    }

    /// The newest `limit` of those that are asked for, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn list(&self, query: &Query, limit: usize) -> Result<Vec<Summary>, StoreError> {
        self.read(|connection| {
            let (wanted, mut found) = (Wanted::new(connection, query)?, Vec::new());
            let bounds = (query.after.as_deref(), query.before.as_deref());
            let is_wanted = |id: &str, batch, packed: &[u8]| wanted.take(id, batch, packed).is_some();
            each(connection, bounds, &query.given_up, is_wanted, |id, packed| {
                found.extend(packed::unpack(id, packed).map(|summary| summary.owned()));
                found.len() < limit
            })?;
            found.truncate(limit);
            Ok(found)
        })
    }

    /// As [`History::list`], and how many are asked for on all pages, of those behind [`Query::after`] where it is given:
    /// who asks for what is new does not pay for what is old.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn page(&self, query: &Query, limit: usize) -> Result<(Vec<Summary>, u64), StoreError> {
        if query.is_all() {
            let total = self.read(|connection| match &query.after {
                None => store::count(connection),
                Some(after) => {
                    let mut total = 0;
                    let count = |_: &str, _, _: &[u8]| {
                        total += 1;
                        false
                    };
                    each(connection, (Some(after), None), &query.given_up, count, |_, _| true)?;
                    Ok(total)
                }
            })?;
            return Ok((self.list(query, limit)?, total));
        }
        self.read(|connection| {
            let (wanted, mut found, mut total) = (Wanted::new(connection, query)?, Vec::new(), 0);
            let left = Cell::new(limit);
            let is_shown = |id: &str, batch, packed: &[u8]| {
                let is_wanted = wanted.take(id, batch, packed).is_some();
                total += u64::from(is_wanted);
                is_wanted && left.get() > 0 && query.is_on_page(id)
            };
            each(connection, (query.after.as_deref(), None), &query.given_up, is_shown, |id, packed| {
                if left.get() > 0 {
                    left.set(left.get() - 1);
                    found.extend(packed::unpack(id, packed).map(|summary| summary.owned()));
                }
                true
            })?;
            Ok((found, total))
        })
    }

    /// The exchange of this id, with every byte that was kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn get(&self, id: &str) -> Result<Option<Exchange>, StoreError> {
        self.read(|connection| store::exchange(connection, id))
    }

    /// The exchange of an id, of its beginning in any case, or of `last`.
    ///
    /// # Errors
    /// [`FindError`].
    pub(crate) fn find(&self, wanted: &str) -> Result<Exchange, FindError> {
        let unknown = || FindError::Unknown(wanted.to_owned());
        let upper = wanted.to_ascii_uppercase();
        let found: Vec<String> = if wanted == "last" {
            let last = self.read(|connection| {
                let last = connection.query_row("SELECT max(newest) FROM summary", [], |row| row.get(0)).optional()?;
                Ok(last.flatten())
            })?;
            vec![last.ok_or(FindError::Empty)?]
        } else {
            // Beyond everything that begins so.
            let end = format!("{upper}\u{10ffff}");
            self.read(|connection| {
                let mut found = Vec::new();
                if store::find(connection, wanted)?.is_some() {
                    found.push(wanted.to_owned());
                }
                let goes_on = CancellationToken::new();
                each(
                    connection,
                    (None, Some(&end)),
                    &goes_on,
                    |_, _, _| true,
                    |id, _| {
                        let is_meant = id >= upper.as_str() && found.len() < 4;
                        if is_meant && id != wanted {
                            found.push(id.to_owned());
                        }
                        is_meant
                    },
                )?;
                Ok(found)
            })?
        };
        let exact = found.iter().find(|id| *id == wanted || **id == upper);
        match (exact, found.as_slice()) {
            (Some(id), _) | (None, [id]) => self.get(id)?.ok_or_else(unknown),
            (None, []) => Err(unknown()),
            (None, several) => {
                Err(FindError::Several { wanted: wanted.to_owned(), found: several.iter().take(3).cloned().collect() })
            }
        }
    }

    /// Those of the next that were stored after this number and are asked for, in that order, and the number to go on with.
    /// Where everything was removed meanwhile, numbers begin anew.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn stored_after(&self, number: i64, query: &Query) -> Result<(i64, Vec<Summary>), StoreError> {
        self.read(|connection| {
            let last = connection.prepare_cached(LAST)?.query_row([], |row| row.get::<_, Option<i64>>(0))?;
            let (mut reached, mut found) = (if last.unwrap_or_default() < number { 0 } else { number }, Vec::new());
            let batches = format!(
                "SELECT number, ids, CASE WHEN ?2 THEN content END FROM batch \
                 WHERE number > ?1 ORDER BY number LIMIT {READ_BATCHES}"
            );
            let (mut batches, mut summary) = (
                connection.prepare_cached(&batches)?,
                connection.prepare_cached("SELECT ids, summaries FROM summary WHERE newest = ?1 AND batch = ?2")?,
            );
            let mut rows = batches.query((reached, query.text.is_some()))?;
            while let Some(row) = rows.next()? {
                reached = row.get(0)?;
                let mut wanted = Wanted { query, in_bodies: HashMap::new() };
                if let Some(text) = &query.text {
                    wanted.search(reached, row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?, &Finder::new(text));
                }
                let newest = packed::ids(row.get_ref(1)?.as_blob()?).max();
                let mut rows = summary.query((newest, reached))?;
                let Some(row) = rows.next()? else { continue };
                let all = packed::ids(row.get_ref(0)?.as_blob()?).zip(packed::summaries(row.get_ref(1)?.as_blob()?));
                for (id, summary) in all.filter(|(id, _)| !id.is_empty()) {
                    let summary = wanted.take(id, reached, summary).filter(|_| query.is_on_page(id));
                    found.extend(summary.map(|summary| summary.owned()));
                }
            }
            Ok((reached, found))
        })
    }

    /// The number of the one that was stored last; 0 where none is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn last_stored(&self) -> Result<i64, StoreError> {
        self.read(|connection| {
            Ok(connection.query_row(LAST, [], |row| row.get::<_, Option<i64>>(0))?.unwrap_or_default())
        })
    }

    /// Whether one of this id is stored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn has(&self, id: &str) -> Result<bool, StoreError> {
        self.read(|connection| Ok(store::find(connection, id)?.is_some()))
    }

    /// Removes everything from the file. How much there was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn clear(&self) -> Result<u64, StoreError> {
        self.with(Store::clear)
    }

    fn read<T: Default>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.with(|store| read(&store.connection).map_err(|error| store.error(&error)))
    }

    /// What `look` makes of the file; the default where there is none.
    fn with<T: Default>(&self, look: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.idle().pop().filter(Store::is_current);
        let store = match idle {
            Some(store) => store,
            None => match Store::open_existing(&self.place)? {
                Some(store) => store,
                None => return Ok(T::default()),
            },
        };
        let looked = look(&store)?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(store);
        }
        Ok(looked)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Store>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows each exchange whose id is greater than one and less than another and which is wanted by its id, its batch and its
/// packed summary, the newest first, while that asks for more and nobody has given up.
fn each(
    connection: &Connection,
    (after, before): (Option<&str>, Option<&str>),
    given_up: &CancellationToken,
    mut is_wanted: impl FnMut(&str, i64, &[u8]) -> bool,
    mut show: impl FnMut(&str, &[u8]) -> bool,
) -> rusqlite::Result<()> {
    let (after, before) = (after.unwrap_or_default(), before.unwrap_or(BEYOND));
    let sql =
        "SELECT newest, batch, ids, summaries FROM summary WHERE newest > ?1 AND oldest < ?2 ORDER BY newest DESC";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((after, before))?;
    let mut open: Vec<Together> = Vec::new();
    loop {
        let row = rows.next()?;
        let newest = row.map(|row| row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)).transpose()?;
        // Whatever is newer than all of the next ones. What took long was stored with others that came later.
        while let Some(left) = open.iter_mut().max_by(|one, other| one.last().cmp(&other.last()))
            && let Some((id, summary)) = left.pop_if(|(id, _)| newest.is_none_or(|newest| **id > *newest))
        {
            if !show(&id, &summary) {
                return Ok(());
            }
        }
        open.retain(|left| !left.is_empty());
        let Some(row) = row.filter(|_| !given_up.is_cancelled()) else { return Ok(()) };
        let batch = row.get(1)?;
        let all = packed::ids(row.get_ref(2)?.as_blob()?).zip(packed::summaries(row.get_ref(3)?.as_blob()?));
        let wanted = all.filter(|(id, summary)| *id > after && *id < before && is_wanted(id, batch, summary));
        // Only these are copied: where much is looked through, most is not wanted.
        let mut left: Vec<_> = wanted.map(|(id, summary)| (id.to_owned(), summary.to_owned())).collect();
        left.sort_by(|(one, _), (other, _)| one.cmp(other));
        open.push(left);
    }
}

/// Of exchanges that were stored together those that have not been shown, with their packed summaries, the newest last.
type Together = Vec<(String, Vec<u8>)>;

/// Greater than every id.
const BEYOND: &str = "\u{10ffff}";

/// In the bodies of how many exchanges a text was found.
#[cfg(test)]
pub(super) fn searched(connection: &Connection, query: &Query) -> rusqlite::Result<usize> {
    Wanted::new(connection, query).map(|wanted| wanted.in_bodies.len())
}

/// What is asked for, and where its text stands.
struct Wanted<'a> {
    query: &'a Query,
    /// The exchanges in whose bodies it does, each with its batch.
    in_bodies: HashMap<String, i64>,
}

impl<'a> Wanted<'a> {
    fn new(connection: &Connection, query: &'a Query) -> rusqlite::Result<Self> {
        let mut wanted = Self { query, in_bodies: HashMap::new() };
        let Some(text) = &query.text else { return Ok(wanted) };
        let (finder, mut left) = (Finder::new(text), SEARCHED);
        // Long ones are stored later than others that came after them: the first batch is not found by the ids of the last.
        let first = match &query.after {
            Some(after) => {
                let first = "SELECT min(batch) FROM summary WHERE newest > ?1";
                connection.prepare_cached(first)?.query_row([after], |row| row.get::<_, Option<i64>>(0))?
            }
            None => Some(0),
        };
        let Some(first) = first else { return Ok(wanted) };
        let batches = "SELECT number, ids, content FROM batch WHERE number >= ?1 ORDER BY number DESC";
        let mut statement = connection.prepare_cached(batches)?;
        let mut rows = statement.query([first])?;
        while let Some(row) = rows.next()? {
            let content = row.get_ref(2)?.as_blob()?;
            wanted.search(row.get(0)?, row.get_ref(1)?.as_blob()?, content, &finder);
            left = left.saturating_sub(content.len());
            if left == 0 || query.given_up.is_cancelled() {
                break;
            }
        }
        Ok(wanted)
    }

    /// Looks for the text in the bodies of a batch.
    fn search(&mut self, batch: i64, ids: &[u8], content: &[u8], text: &Finder<'_>) {
        // Mostly it is nowhere.
        if text.find(content).is_some() {
            let found = packed::ids(ids).zip(packed::records(content)).filter(|(_, record)| record.has(text));
            for (id, _) in found {
                self.in_bodies.entry(id.to_owned()).or_insert(batch);
            }
        }
    }

    /// The summary of an exchange that is asked for.
    fn take<'p>(&self, id: &'p str, batch: i64, packed: &'p [u8]) -> Option<Summary<&'p str>> {
        let is_in_bodies = || self.in_bodies.get(id) == Some(&batch);
        self.query.take(id, packed, is_in_bodies)
    }
}

impl Query {
    /// Whether nothing is asked for but a page.
    fn is_all(&self) -> bool {
        let Self { provider, event_type, event_id, status, method, path, tunnel, verdict, text, since_ms, .. } = self;
        let texts = [provider, event_type, event_id, method, tunnel, text];
        texts.into_iter().all(Option::is_none)
            && status.is_none()
            && path.is_none()
            && verdict.is_none()
            && since_ms.is_none()
    }

    /// Whether an exchange's id is within what tells one page from the next.
    pub(crate) fn is_on_page(&self, id: &str) -> bool {
        self.before.as_deref().is_none_or(|before| id < before) && self.is_after(id)
    }

    /// Whether an exchange's id is among those that are counted.
    pub(crate) fn is_after(&self, id: &str) -> bool {
        self.after.as_deref().is_none_or(|after| id > after)
    }

    /// The packed summary of an exchange, where it is asked for. `is_in_bodies` says whether the text stands there.
    pub(super) fn take<'p>(
        &self,
        id: &'p str,
        packed: &'p [u8],
        is_in_bodies: impl FnOnce() -> bool,
    ) -> Option<Summary<&'p str>> {
        let is_found = |text: &String| says(packed, text) || has(id.as_bytes(), text);
        if !self.text.as_ref().is_none_or(|text| is_found(text) || is_in_bodies()) {
            return None;
        }
        let summary = packed::unpack(id, packed)?;
        self.wants(&summary).then_some(summary)
    }

    /// All but the text, and what tells one page from the next.
    fn wants(&self, summary: &Summary<&str>) -> bool {
        let is = |wanted: &Option<String>, found| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        is(&self.provider, summary.provider)
            && is(&self.event_id, summary.event_id)
            && is(&self.tunnel, summary.tunnel)
            && self.event_type.as_ref().is_none_or(|wanted| match (wanted.strip_suffix('*'), summary.event_type) {
                (Some(beginning), found) => found.is_some_and(|found| found.starts_with(beginning)),
                (None, found) => found == Some(wanted),
            })
            && self.method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(summary.method))
            && self.path.as_ref().is_none_or(|path| path.matches(summary.path))
            && self.verdict.is_none_or(|verdict| summary.verdict == Some(verdict))
            && self.since_ms.is_none_or(|since| summary.at_ms >= since)
            && match self.status {
                None => true,
                Some(StatusPattern::Code(code)) => summary.status == Some(code),
                Some(StatusPattern::Class(class)) => {
                    summary.status.is_some_and(|status| status / 100 == u16::from(class))
                }
                Some(StatusPattern::Error) => summary.error.is_some() || summary.status.is_none(),
            }
    }
}
