//! The file in which a user's exchanges are kept: one SQLite database, shared by all clients that run.
//!
//! ```text
//!   exchange   what lists show and ask for, by the exchange's id, which begins with its time
//!      └─ content   every byte of it, by a number that grows; the oldest have the least
//! ```
//!
//! Lists must be quick where a hundred thousand are kept, so what they look at stands apart from the bytes, and there is
//! no index beside the two keys: to write one costs every request, and to look at all summaries takes milliseconds.
//!
//! Write-ahead logging without a wait for the disk at each commit: a power cut takes the last moments and spoils nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relay_protocol::message::{HeaderList, Payload, RequestHead, ResponseHead};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, params,
};

use super::entry::Entry;
use super::exchange::{Exchange, Part, Summary, Timings};
use super::filter;
use crate::platform::{Base, base_directory, create_private_directory, create_private_file};

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

/// The tables of version 1. Heads and trailers are as on the wire, `PROTOCOL.md` describes them.
const SCHEMA: &str = "
    CREATE TABLE exchange (
        id TEXT PRIMARY KEY,
        content INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, -- since 1970
        tunnel TEXT,
        method TEXT NOT NULL,
        path TEXT NOT NULL,
        remote TEXT NOT NULL,
        status INTEGER,
        error TEXT,
        edge_ms INTEGER NOT NULL,
        upstream_us INTEGER,
        total_us INTEGER,
        allowed_ms INTEGER,
        provider TEXT,
        provider_name TEXT,
        event_id TEXT,
        event_type TEXT,
        verdict TEXT,
        reason TEXT,
        request_size INTEGER NOT NULL,
        request_cut INTEGER NOT NULL,
        response_size INTEGER,
        response_cut INTEGER,
        replay_of TEXT,
        attempt INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE content (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        request_head BLOB NOT NULL,
        request_body BLOB NOT NULL,
        request_trailers BLOB,
        response_head BLOB,
        response_body BLOB,
        response_trailers BLOB
    ) STRICT;
    PRAGMA user_version = 1;";

const VERSION: i64 = 1;

/// The columns of a [`Summary`], in the order in which [`summary`] reads them.
pub(super) const SUMMARY: &str = "id, tunnel, at_ms, method, path, status, error, total_us, allowed_ms, provider, \
    provider_name, event_id, event_type, verdict, request_size, response_size, remote, replay_of, attempt";

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    pub(super) connection: Connection,
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

    /// Opens the file; nothing where it is not there.
    pub(super) fn open_existing(place: &Place) -> Result<Option<Self>, StoreError> {
        let file = place.file();
        // One that is empty is being made at this moment.
        if !std::fs::metadata(file).is_ok_and(|found| found.len() > 0) {
            return Ok(None);
        }
        let store = Self::connect(file)?;
        store.check()?;
        Ok(Some(store))
    }

    fn connect(file: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags).map_err(|error| explain(file, &error))?;
        let store = Self { file: file.to_owned(), connection };
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
        if self.version()? == 0 {
            let transaction = rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
            if self.version()? == 0 {
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

    /// Stores exchanges, all or none, and lets the oldest go that are beyond the limits.
    pub(super) fn insert<'a>(
        &mut self,
        entries: impl Iterator<Item = impl std::ops::Deref<Target = Entry> + 'a>,
        limits: &Limits,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let inserted =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
                {
                    let mut statements = Statements::new(&transaction)?;
                    for entry in entries {
                        statements.insert(&entry)?;
                    }
                }
                tidy(&transaction, limits, now_ms)?;
                transaction.commit()
            });
        inserted.map_err(|error| self.error(&error))
    }

    /// Removes everything, and gives the room back. How much there was.
    pub(super) fn clear(&self) -> Result<u64, StoreError> {
        let clear = || {
            let count: i64 = self.connection.query_row("SELECT count(*) FROM exchange", [], |row| row.get(0))?;
            self.connection.execute_batch(
                "BEGIN IMMEDIATE; DELETE FROM exchange; DELETE FROM content; COMMIT;
                 VACUUM; PRAGMA wal_checkpoint(TRUNCATE);",
            )?;
            Ok(u64::try_from(count).unwrap_or_default())
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

/// What each exchange is stored with.
struct Statements<'a> {
    content: CachedStatement<'a>,
    exchange: CachedStatement<'a>,
    replace: CachedStatement<'a>,
    connection: &'a Connection,
}

impl<'a> Statements<'a> {
    fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        let content = "INSERT INTO content (id, request_head, request_body, request_trailers, response_head, \
                       response_body, response_trailers) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let exchange = "INSERT OR IGNORE INTO exchange (id, content, at_ms, tunnel, method, path, remote, status, \
                        error, edge_ms, upstream_us, total_us, allowed_ms, provider, provider_name, event_id, \
                        event_type, verdict, reason, request_size, request_cut, response_size, response_cut, \
                        replay_of, attempt) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, \
                        ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25)";
        Ok(Self {
            content: connection.prepare_cached(content)?,
            exchange: connection.prepare_cached(exchange)?,
            replace: connection.prepare_cached("DELETE FROM content WHERE id = ?1 AND number < ?2")?,
            connection,
        })
    }

    fn insert(&mut self, entry: &Entry) -> rusqlite::Result<()> {
        let (request, response) = (&entry.request, entry.response.as_ref());
        fn some(bytes: &[u8]) -> Option<&[u8]> {
            Some(bytes).filter(|bytes| !bytes.is_empty())
        }
        self.content.execute(params![
            &*entry.id,
            request.head(),
            request.body(),
            some(&request.trailers),
            response.map(|response| response.head()),
            response.map(|response| response.body()),
            response.and_then(|response| some(&response.trailers)),
        ])?;
        let number = self.connection.last_insert_rowid();
        if self.exchange(entry, number)? == 0 {
            // The same request once more: the last one counts.
            self.connection.execute("DELETE FROM exchange WHERE id = ?1", [&*entry.id])?;
            self.replace.execute(params![&*entry.id, number])?;
            self.exchange(entry, number)?;
        }
        Ok(())
    }

    fn exchange(&mut self, entry: &Entry, number: i64) -> rusqlite::Result<usize> {
        let (request, response) = (&entry.request, entry.response.as_ref());
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let note = entry.annotation();
        let text = |of: fn(&super::Annotation) -> &Option<String>| note.and_then(|note| of(note).as_deref());
        self.exchange.execute(params![
            &*entry.id,
            number,
            integer(entry.at_ms),
            entry.tunnel.as_deref(),
            entry.method.as_str(),
            &*entry.path,
            &*entry.remote,
            entry.status.map(|status| status.as_u16()),
            entry.ended.and_then(|end| end.error),
            entry.edge_ms,
            entry.upstream.map(micros),
            entry.ended.map(|end| micros(end.duration)),
            integer(entry.allowed_ms()),
            text(|note| &note.provider),
            text(|note| &note.provider_name),
            text(|note| &note.event_id),
            text(|note| &note.event_type),
            note.and_then(|note| note.verdict).map(|verdict| verdict.as_str()),
            text(|note| &note.reason),
            integer(request.size),
            request.is_truncated(),
            response.map(|response| integer(response.size)),
            response.map(|response| response.is_truncated()),
            entry.replay_of.as_deref(),
            note.map_or(1, |note| note.attempt.max(1)),
        ])
    }
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Lets the oldest go that are beyond the limits.
fn tidy(connection: &Connection, limits: &Limits, now_ms: u64) -> rusqlite::Result<()> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    loop {
        // Numbers have no gaps, but where somebody's request came twice.
        let ends = "SELECT (SELECT min(number) FROM content), (SELECT max(number) FROM content)";
        let ends = connection.prepare_cached(ends)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (Some(first), Some(last)): (Option<i64>, Option<i64>) = ends else { return Ok(()) };
        let count = last - first + 1;
        let oldest = "SELECT at_ms FROM content JOIN exchange USING (id) WHERE number = ?1";
        let oldest: Option<i64> = connection.prepare_cached(oldest)?.query_row([first], |row| row.get(0)).optional()?;
        let used = (pragma("page_count")? - pragma("freelist_count")?) * i64::from(PAGE);
        let age = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
        let keep_from = if count > i64::from(limits.count) {
            last - i64::from(limits.count) + 1
        } else if used > integer(limits.bytes) && count > 1 || oldest.is_none_or(|at| at < integer(now_ms) - age) {
            // A few at a time, until it fits.
            first + (count / 64).max(1)
        } else {
            return Ok(());
        };
        let exchanges = "DELETE FROM exchange WHERE id IN (SELECT id FROM content WHERE number < ?1) AND content < ?1";
        connection.prepare_cached(exchanges)?.execute([keep_from])?;
        connection.prepare_cached("DELETE FROM content WHERE number < ?1")?.execute([keep_from])?;
    }
}

/// Reads the columns of [`SUMMARY`].
pub(super) fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
    let verdict: Option<String> = row.get(13)?;
    // What a later version says is not known.
    let verdict = verdict.and_then(|verdict| filter::verdict(&verdict).ok());
    Ok(Summary {
        id: row.get(0)?,
        tunnel: row.get(1)?,
        at_ms: unsigned(row.get(2)?),
        method: row.get(3)?,
        path: row.get(4)?,
        status: row.get(5)?,
        error: row.get(6)?,
        duration_ms: row.get::<_, Option<i64>>(7)?.map(milliseconds),
        allowed_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
        provider: row.get(9)?,
        provider_name: row.get(10)?,
        event_id: row.get(11)?,
        event_type: row.get(12)?,
        verdict,
        request_size: unsigned(row.get(14)?),
        response_size: row.get::<_, Option<i64>>(15)?.map(unsigned),
        remote: row.get(16)?,
        replay_of: row.get(17)?,
        attempt: row.get(18)?,
    })
}

/// Of microseconds.
fn milliseconds(micros: i64) -> f64 {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default()).as_secs_f64() * 1e3
}

/// The whole exchange of this id.
pub(super) fn exchange(connection: &Connection, id: &str) -> rusqlite::Result<Option<Exchange>> {
    let sql = format!(
        "SELECT {SUMMARY}, reason, edge_ms, upstream_us, request_cut, response_cut, request_head, request_body, \
         request_trailers, response_head, response_body, response_trailers \
         FROM (SELECT * FROM exchange WHERE id = ?1) JOIN (SELECT number, request_head, request_body, \
         request_trailers, response_head, response_body, response_trailers FROM content) ON number = content"
    );
    connection
        .prepare_cached(&sql)?
        .query_row([id], |row| {
            let summary = summary(row)?;
            let timings = Timings {
                edge_ms: row.get::<_, i64>(20).map(|edge| u64::try_from(edge).unwrap_or_default())?,
                upstream_ms: row.get::<_, Option<i64>>(21)?.map(milliseconds),
                total_ms: summary.duration_ms,
            };
            let request = Part {
                head: decode::<RequestHead>(row, 24)?,
                body: row.get(25)?,
                body_size: summary.request_size,
                body_truncated: row.get(22)?,
                trailers: trailers(row, 26)?,
            };
            let response = match row.get::<_, Option<bool>>(23)? {
                None => None,
                Some(body_truncated) => Some(Part {
                    head: decode::<ResponseHead>(row, 27)?,
                    body: row.get(28)?,
                    body_size: summary.response_size.unwrap_or_default(),
                    body_truncated,
                    trailers: trailers(row, 29)?,
                }),
            };
            Ok(Exchange { reason: row.get(19)?, timings, request, response, summary })
        })
        .optional()
}

fn decode<T: Payload>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let bytes: Vec<u8> = row.get(column)?;
    T::from_bytes(&bytes.into())
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, error.into()))
}

fn trailers(row: &Row<'_>, column: usize) -> rusqlite::Result<HeaderList> {
    let is_there = row.get_ref(column)? != rusqlite::types::ValueRef::Null;
    if is_there { decode(row, column) } else { Ok(HeaderList::new()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use bytes::Bytes;
    use http::header::{HeaderName, HeaderValue};
    use http::{Method, StatusCode};
    use relay_protocol::webhook::Verdict;
    use tempfile::TempDir;

    use super::super::entry::End;
    use super::super::filter;
    use super::super::history::{FindError, History, Query};
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
        Store::open(place).unwrap().insert(entries.iter(), limits, super::super::unix_now()).unwrap();
    }

    fn ids(list: &[Summary]) -> Vec<&str> {
        list.iter().map(|summary| summary.id.as_str()).collect()
    }

    #[test]
    fn every_byte_comes_back() {
        let (_directory, place) = place();
        let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut first = answered(entry("01A", "/a?b=%2F", &body), 201, b"\x00\xff");
        let note = first.annotate();
        (note.provider, note.provider_name) = (Some("stripe".to_owned()), Some("Stripe".to_owned()));
        (note.event_id, note.event_type) = (Some("evt_1".to_owned()), Some("invoice.paid".to_owned()));
        (note.verdict, note.reason) = (Some(Verdict::Stale), Some("it is old".to_owned()));
        note.allowed = Some(Duration::from_secs(5));
        let summary = first.summary();
        let mut failed = entry("01B", "/b", b"");
        failed.end(None, End { duration: Duration::ZERO, error: Some("upstream-refused") });
        store(&place, &Limits::default(), &[first, failed]);
        let history = History::open(&place).unwrap().unwrap();
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
        assert_eq!((&detail["duration_ms"], &detail["allowed_ms"]), (&12.345.into(), &5000.into()));
        assert_eq!(detail["request"]["headers"][1][1], "\u{ff}\u{80} ");
        assert_eq!(detail["response"]["body_base64"], "AP8=");
        let failed = history.get("01B").unwrap().unwrap();
        assert_eq!((failed.summary.error.as_deref(), failed.response), (Some("upstream-refused"), None));
    }

    #[test]
    fn lists_show_what_is_asked_for() {
        let (_directory, place) = place();
        let entries: Vec<_> = (0..10_u16)
            .map(|i| {
                let (asked, said) = (format!("\0Asked {i}"), format!("Said {i}%"));
                let entry = entry(&format!("01{i}"), &format!("/hooks/{i}?q=[x]"), asked.as_bytes());
                let mut entry = answered(entry, 200 + 50 * i, said.as_bytes());
                entry.annotate().event_type = Some(if i % 2 == 0 { "invoice.paid" } else { "in*" }.to_owned());
                entry
            })
            .collect();
        store(&place, &Limits::default(), &entries);
        let history = History::open(&place).unwrap().unwrap();
        let list = |query: Query| {
            let list = history.list(&query, 4).unwrap();
            let count = history.count(&query).unwrap();
            (ids(&list).join(" "), count)
        };
        let query = Query::default;
        for (query, expected, count) in [
            (query(), "019 018 017 016", 10),
            (Query { before: Some("012".to_owned()), ..query() }, "011 010", 10),
            (Query { after: Some("017".to_owned()), ..query() }, "019 018", 10),
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
    fn the_oldest_go_when_there_are_too_many_or_too_much_or_too_old() {
        let (_directory, place) = place();
        let count = |limits: Limits, body: usize, now_ms: u64| {
            let mut store = Store::open(&place).unwrap();
            for i in 0..40 {
                let entries = [entry(&format!("01{body:06}{i:02}"), "/", &vec![b'x'; body])];
                store.insert(entries.iter(), &limits, now_ms).unwrap();
            }
            let history = History::open(&place).unwrap().unwrap();
            assert_eq!(history.list(&Query::default(), 1).unwrap()[0].id, format!("01{body:06}39"), "the newest stays");
            history.count(&Query::default()).unwrap()
        };
        let (all, now) = (Limits::default(), super::super::unix_now());
        assert_eq!(count(Limits { count: 7, ..all }, 1, now), 7);
        let some = count(Limits { bytes: 2 << 20, ..all }, 200_000, now);
        assert!((5..=11).contains(&some), "{some}");
        let mut store = Store::open(&place).unwrap();
        let hour = Limits { age: Duration::from_secs(3600), ..all };
        store.insert([entry("02A", "/", b"")].iter(), &hour, now).unwrap();
        let history = History::open(&place).unwrap().unwrap();
        assert_eq!(history.count(&Query::default()).unwrap(), some + 1);
        store.insert([entry("02B", "/", b"")].iter(), &hour, now + 7_200_000).unwrap();
        assert_eq!(history.count(&Query::default()).unwrap(), 0);
    }

    #[test]
    fn the_same_request_once_more_takes_the_place_of_the_first() {
        let (_directory, place) = place();
        store(&place, &Limits::default(), &[answered(entry("01A", "/", b"1"), 500, b""), entry("01B", "/", b"")]);
        store(&place, &Limits::default(), &[answered(entry("01A", "/", b"2"), 200, b"")]);
        let history = History::open(&place).unwrap().unwrap();
        assert_eq!(ids(&history.list(&Query::default(), 9).unwrap()), ["01B", "01A"]);
        assert_eq!(history.get("01A").unwrap().unwrap().request.body, b"2");
    }

    #[test]
    fn the_file_is_its_owners_alone_and_what_is_no_history_is_left_alone() {
        let (_directory, place) = place();
        assert!(History::open(&place).unwrap().is_none());
        store(&place, &Limits::default(), &[entry("01A", "/", b"")]);
        for file in ["history.db", "history.db-wal"] {
            let file = place.file().with_file_name(file);
            if let Ok(data) = std::fs::metadata(&file) {
                assert_eq!(data.permissions().mode() & 0o777, 0o600, "{}", file.display());
            }
        }
        Store::open(&place).unwrap().connection.execute_batch("PRAGMA user_version = 99").unwrap();
        assert!(matches!(Store::open(&place), Err(StoreError::Newer(_))));
        assert!(matches!(History::open(&place), Err(StoreError::Newer(_))));
        std::fs::write(place.file(), "this is no database, and it is long enough to be looked at".repeat(99)).unwrap();
        assert!(matches!(Store::open(&place), Err(StoreError::Broken { .. })));
        assert!(matches!(History::open(&place), Err(StoreError::Broken { .. })));
    }
}
