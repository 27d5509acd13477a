//! Reading what a user's clients have stored, while they run and after.
//!
//! Each call looks at the file, which takes milliseconds or, where the disk is busy, longer: in a task it belongs into
//! `spawn_blocking`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use relay_protocol::webhook::Verdict;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::exchange::{Exchange, Summary};
use super::filter::{PathPattern, StatusPattern};
use super::store::{self, Place, SUMMARY, Store, StoreError};

/// The bodies in which a text is looked for are those of so many exchanges. All of them may be a gibibyte, but rarely are:
/// with a few KiB each this takes tens of milliseconds.
const SEARCHED: i64 = 10_000;

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
    /// in one of its bodies, where it is among the last [`SEARCHED`] that were stored.
    pub(crate) text: Option<String>,
    /// Those that came at this time or later: milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Those with a lesser id, which came earlier.
    pub(crate) before: Option<String>,
    /// Those with a greater id, which came later.
    pub(crate) after: Option<String>,
}

/// A user's stored exchanges.
#[derive(Debug)]
pub(crate) struct History {
    store: Mutex<Store>,
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
    /// Opens the file; nothing where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(place: &Place) -> Result<Option<Self>, StoreError> {
        Ok(Store::open_existing(place)?.map(|store| Self { store: Mutex::new(store) }))
    }

    /// The newest `limit` of those that are asked for, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn list(&self, query: &Query, limit: u32) -> Result<Vec<Summary>, StoreError> {
        let (wanted, mut values) = query.sql(true);
        let sql = format!("SELECT {SUMMARY} FROM exchange{wanted} ORDER BY id DESC LIMIT ?");
        values.push(i64::from(limit).into());
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params_from_iter(values), store::summary)?.collect()
        })
    }

    /// How many are asked for, on all pages.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn count(&self, query: &Query) -> Result<u64, StoreError> {
        let (wanted, values) = query.sql(false);
        let sql = format!("SELECT count(*) FROM exchange{wanted}");
        self.read(|connection| {
            let count: i64 = connection.prepare_cached(&sql)?.query_row(params_from_iter(values), |row| row.get(0))?;
            Ok(u64::try_from(count).unwrap_or_default())
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
                let last = connection.query_row("SELECT max(id) FROM exchange", [], |row| row.get(0)).optional()?;
                Ok(last.flatten())
            })?;
            vec![last.ok_or(FindError::Empty)?]
        } else {
            // Beyond everything that begins so.
            let end = format!("{upper}\u{10ffff}");
            self.read(|connection| {
                let sql = "SELECT id FROM exchange WHERE id = ?1 UNION SELECT id FROM exchange \
                           WHERE id >= ?2 AND id < ?3 LIMIT 4";
                connection.prepare(sql)?.query_map([wanted, &upper, &end], |row| row.get(0))?.collect()
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

    /// Those stored after this one, in the order in which they were; from the beginning where it is 0. Each with its
    /// number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn stored_after(&self, number: i64, query: &Query) -> Result<Vec<(i64, Summary)>, StoreError> {
        let (wanted, mut values) = query.sql(true);
        let and = if wanted.is_empty() { " WHERE" } else { " AND" };
        let sql =
            format!("SELECT {SUMMARY}, content FROM exchange{wanted}{and} content > ? ORDER BY content LIMIT 1000");
        values.push(number.into());
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params_from_iter(values), |row| Ok((row.get(19)?, store::summary(row)?)))?;
            rows.collect()
        })
    }

    /// The number of the one that was stored last; 0 where none is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn last_stored(&self) -> Result<i64, StoreError> {
        self.read(|connection| {
            let last = "SELECT max(number) FROM content";
            Ok(connection.query_row(last, [], |row| row.get::<_, Option<i64>>(0))?.unwrap_or_default())
        })
    }

    /// Removes everything from the file. How much there was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn clear(&self) -> Result<u64, StoreError> {
        self.store().clear()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let store = self.store();
        read(&store.connection).map_err(|error| store.error(&error))
    }
}

impl Query {
    /// The condition, and the values of its parameters; `paged` with those that tell one page from the next.
    fn sql(&self, paged: bool) -> (String, Vec<Value>) {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        let mut add = |condition: &str, value: Value| {
            conditions.push(condition.to_owned());
            values.push(value);
        };
        let mut text = |condition: &str, value: &Option<String>| {
            value.iter().for_each(|value| add(condition, value.clone().into()));
        };
        text("provider = ?", &self.provider);
        text("event_id = ?", &self.event_id);
        text("method = upper(?)", &self.method);
        text("tunnel = ?", &self.tunnel);
        if paged {
            text("id < ?", &self.before);
            text("id > ?", &self.after);
        }
        if let Some(kind) = &self.event_type {
            add("event_type GLOB ?", glob(kind).into());
        }
        if let Some(verdict) = self.verdict {
            add("verdict = ?", verdict.as_str().to_owned().into());
        }
        if let Some(since) = self.since_ms {
            add("at_ms >= ?", i64::try_from(since).unwrap_or(i64::MAX).into());
        }
        if let Some(path) = &self.path {
            let path = path.as_str();
            let of = if path.contains('?') { "path" } else { "substr(path, 1, instr(path || '?', '?') - 1)" };
            add(&format!("{of} GLOB ?"), glob(path).into());
        }
        match self.status {
            None => {}
            Some(StatusPattern::Code(code)) => add("status = ?", i64::from(code).into()),
            Some(StatusPattern::Class(class)) => add("status / 100 = ?", i64::from(class).into()),
            Some(StatusPattern::Error) => conditions.push("(error IS NOT NULL OR status IS NULL)".to_owned()),
        }
        if let Some(wanted) = &self.text {
            let everywhere = "concat_ws(char(10), path, event_type, event_id, provider, provider_name, tunnel, id, \
                              method, error, status, remote) LIKE ? ESCAPE '\\'";
            let bodies = "content IN (SELECT number FROM content WHERE number > (SELECT max(number) FROM content) - ? \
                          AND (instr(request_body, ?) OR instr(response_body, ?)))";
            let escaped = wanted.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            let bytes = || Value::Blob(wanted.as_bytes().to_vec());
            conditions.push(format!("({everywhere} OR {bodies})"));
            values.extend([format!("%{escaped}%").into(), SEARCHED.into(), bytes(), bytes()]);
        }
        match conditions.as_slice() {
            [] => (String::new(), values),
            all => (format!(" WHERE {}", all.join(" AND ")), values),
        }
    }
}

/// The pattern of SQLite that matches as this one, in which only a `*` at the end is special.
fn glob(pattern: &str) -> String {
    let (fixed, rest) = pattern.strip_suffix('*').map_or((pattern, ""), |fixed| (fixed, "*"));
    let mut glob = String::with_capacity(pattern.len());
    for c in fixed.chars() {
        match c {
            '*' | '?' | '[' => glob.extend(['[', c, ']']),
            _ => glob.push(c),
        }
    }
    glob + rest
}
