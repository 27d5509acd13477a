//! The one thread that writes the database.
//!
//! ```text
//!   callers ──► bounded queue ──► all that wait ──► BEGIN, each in its SAVEPOINT, COMMIT ──► answers ──► checkpoint
//! ```
//!
//! An answer is given only after the commit that covers it has reached the disk. One commit, and so
//! one fsync, covers everything that came while the previous one was under way.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, ffi};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use super::StoreError;
use crate::histogram::Histogram;

/// Callers beyond this wait for room in the queue.
const QUEUE: usize = 1024;
/// Operations in one transaction: enough to share the fsync, few enough to bound the wait for it.
const GROUP: usize = 256;
/// After so long a transaction takes no more operations: those that are many rows each must not hold up the others. In
/// this time about 20 MB are written.
const GROUP_TIME: Duration = Duration::from_millis(10);
/// What nobody waits for waits so long for another's commit.
const DEFERRED: Duration = Duration::from_millis(5);
/// The write-ahead log goes back into the database at so many pages (4 MB), as SQLite would have it by itself: small enough
/// that nobody waits long for it.
const CHECKPOINT: i64 = 1000;

/// What commits are counted by: they take from much less on a disk of its own to seconds on one that is overloaded.
const COMMITS_S: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// Whether an operation changes anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Runs even after the store has failed.
    Read,
    /// Is refused once the store has failed.
    Write,
    /// As [`Access::Write`], of which nobody waits for the answer: for a moment it waits for others to share their commit, so
    /// that it costs no fsync of its own and holds up none.
    Deferred,
}

/// Why a store takes no more writes, if so: set once, for good. What happens beside the database, but belongs to what it
/// promises, can fail it, too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failure(Arc<OnceLock<Arc<str>>>);

impl Failure {
    /// Fails the store.
    pub(crate) fn set(&self, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        if self.0.set(Arc::clone(&reason)).is_ok() {
            tracing::error!(%reason, "the store has failed");
        }
    }

    /// The failure, if there is one.
    pub(crate) fn get(&self) -> Option<StoreError> {
        self.0.get().map(|reason| StoreError::Failed { reason: Arc::clone(reason) })
    }
}

/// The owner of the thread. Dropping it lets queued operations finish, then joins the thread.
pub(crate) struct Writer {
    queue: Option<mpsc::Sender<Message>>,
    thread: Option<thread::JoinHandle<()>>,
    failure: Failure,
    commits: Histogram,
}

enum Message {
    Operation(Operation),
    Close(oneshot::Sender<()>),
}

/// A queued operation. Given an error instead of the database, it answers with that.
struct Operation {
    access: Access,
    run: Run,
}

impl Message {
    fn is_deferred(&self) -> bool {
        matches!(self, Self::Operation(Operation { access: Access::Deferred, .. }))
    }
}

type Run = Box<dyn FnOnce(Result<&Connection, StoreError>) -> (Verdict, Answer) + Send>;

/// What becomes of an operation's changes.
enum Verdict {
    Keep,
    /// The operation itself said no.
    Undo,
    /// SQLite did.
    Broken(StoreError),
}

/// Tells the caller, once it is known whether the changes are on disk.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Writer {
    pub(crate) fn start(connection: Connection, failure: Failure) -> std::io::Result<Self> {
        Self::start_with(connection, failure, DEFERRED)
    }

    fn start_with(connection: Connection, failure: Failure, patience: Duration) -> std::io::Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let clock = Builder::new_current_thread().enable_time().build()?;
        let commits = Histogram::new(COMMITS_S);
        let thread = thread::Builder::new().name("relay-store".to_owned()).spawn({
            let (failure, commits) = (failure.clone(), commits.clone());
            move || serve(connection, messages, (&clock, patience), &failure, &commits)
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), failure, commits })
    }

    /// Runs `operation` on the thread and gives its result once that is durable.
    ///
    /// The outer `Result` of `operation` is SQLite's, the inner one its own: either error undoes
    /// what it changed, and nothing else. If the caller stops waiting, the operation still happens.
    pub(crate) async fn run<T, E>(
        &self,
        access: Access,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        let run = Box::new(move |connection: Result<&Connection, StoreError>| {
            let done = connection.and_then(|connection| Ok(operation(connection)?));
            let (verdict, result) = match done {
                Ok(Ok(value)) => (Verdict::Keep, Ok(value)),
                Ok(Err(refusal)) => (Verdict::Undo, Err(refusal)),
                Err(error) => (Verdict::Broken(error.clone()), Err(E::from(error))),
            };
            let answer: Answer = Box::new(move |durable: Result<(), StoreError>| {
                // Nobody listens any more if the caller stopped waiting.
                let _ = sender.send(durable.map_err(E::from).and(result));
            });
            (verdict, answer)
        });
        self.send(Message::Operation(Operation { access, run })).await?;
        result.await.unwrap_or_else(|_| Err(E::from(StoreError::Closed)))
    }

    /// Finishes what is queued and closes the database; operations that come later find it closed.
    pub(crate) async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        if self.send(Message::Close(sender)).await.is_ok() {
            // An error means that the thread has gone already: just as closed.
            let _ = closed.await;
        }
    }

    /// Why the store takes no more writes, if so.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failure.get()
    }

    /// How long the commits have taken, in seconds.
    pub(crate) fn commits(&self) -> Histogram {
        self.commits.clone()
    }

    async fn send(&self, message: Message) -> Result<(), StoreError> {
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(message).await.map_err(|_| StoreError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when nobody can send to it any more.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The thread: group after group until the queue is closed and empty.
fn serve(
    connection: Connection,
    mut queue: mpsc::Receiver<Message>,
    (clock, patience): (&Runtime, Duration),
    failure: &Failure,
    commits: &Histogram,
) {
    // SQLite's own checkpoints keep to themselves what fails in them: an fsync that is never to be tried again.
    if let Err(error) = connection.pragma_update(None, "wal_autocheckpoint", 0) {
        failure.set(error.to_string());
    }
    let mut messages = Vec::with_capacity(GROUP);
    let mut closers = Vec::new();
    while clock.block_on(receive(&mut queue, &mut messages, patience)) {
        let mut group = Vec::with_capacity(messages.len());
        for message in messages.drain(..) {
            match message {
                Message::Operation(operation) => group.push(operation),
                Message::Close(closer) => {
                    queue.close();
                    closers.push(closer);
                }
            }
        }
        let mut group = group.into_iter();
        while group.len() > 0 {
            run_group(&connection, &mut group, failure, commits);
        }
    }
    if let Err((_, error)) = connection.close() {
        // Everything acknowledged is in the write-ahead log; the next start reads it from there.
        tracing::warn!(%error, "the store did not close cleanly");
    }
    for closer in closers {
        let _ = closer.send(());
    }
}

/// Whatever waits; where all of it can, what comes in that time with it. False once the queue is closed and empty.
async fn receive(queue: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>, patience: Duration) -> bool {
    queue.recv_many(messages, GROUP).await;
    let until = tokio::time::Instant::now() + patience;
    while messages.len() < GROUP && !messages.is_empty() && messages.iter().all(Message::is_deferred) {
        match timeout_at(until, queue.recv_many(messages, GROUP)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    !messages.is_empty()
}

/// Runs the operations, or as many of them as there is time for in one transaction.
fn run_group(
    connection: &Connection,
    group: &mut std::vec::IntoIter<Operation>,
    failure: &Failure,
    commits: &Histogram,
) {
    let failed = failure.get();
    if failed.is_some() || group.as_slice().iter().all(|operation| operation.access == Access::Read) {
        for Operation { access, run } in group {
            let refusal = failed.clone().filter(|_| access != Access::Read);
            let (_, answer) = run(refusal.map_or(Ok(connection), Err));
            answer(Ok(()));
        }
        return;
    }

    let mut answers = Vec::with_capacity(group.len());
    let result = transact(connection, group, &mut answers, commits);
    if let Err(error) = &result {
        if !connection.is_autocommit() {
            // Where even this fails, so does everything after it.
            let _ = connection.execute_batch("ROLLBACK");
        }
        if let StoreError::Failed { reason } = error {
            failure.set(Arc::clone(reason));
        }
        // Those that had not run yet share the fate of those that had.
        answers.extend(group.map(|operation| (operation.run)(Err(error.clone())).1));
    }
    for answer in answers {
        answer(result.clone());
    }
    if let Err(StoreError::Failed { reason }) = checkpoint(connection) {
        failure.set(reason);
    }
}

/// Writes back into the database what has been committed, once it is much. Without room for it the log goes on growing.
fn checkpoint(connection: &Connection) -> Result<(), StoreError> {
    let pages = |sql| connection.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(1));
    if pages("PRAGMA wal_checkpoint(NOOP)")? >= CHECKPOINT {
        pages("PRAGMA wal_checkpoint(PASSIVE)")?;
    }
    Ok(())
}

/// One transaction; an error is that of the whole group.
fn transact(
    connection: &Connection,
    group: &mut impl Iterator<Item = Operation>,
    answers: &mut Vec<Answer>,
    commits: &Histogram,
) -> Result<(), StoreError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let before = connection.total_changes();
    let began = Instant::now();
    while began.elapsed() < GROUP_TIME
        && let Some(operation) = group.next()
    {
        connection.execute_batch("SAVEPOINT operation")?;
        let (verdict, answer) = (operation.run)(Ok(connection));
        answers.push(answer);
        match verdict {
            Verdict::Keep => connection.execute_batch("RELEASE operation")?,
            // On some errors SQLite rolls back the whole transaction by itself
            // (https://sqlite.org/lang_transaction.html, section 3).
            Verdict::Broken(error) if connection.is_autocommit() || matches!(error, StoreError::Failed { .. }) => {
                return Err(error);
            }
            Verdict::Undo | Verdict::Broken(_) => {
                connection.execute_batch("ROLLBACK TO operation; RELEASE operation")?;
            }
        }
    }
    let began = Instant::now();
    let committed = connection.execute_batch("COMMIT");
    // Where nothing has changed, nothing was written either.
    if connection.total_changes() != before {
        commits.observe(began.elapsed());
    }
    committed.map_err(|error| match StoreError::from(error) {
        // After a failed fsync nobody knows what is on disk, and asking again may falsely succeed.
        StoreError::Engine { reason } => StoreError::Failed { reason },
        other => other,
    })
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let reason = || error.to_string().into();
        let extended = error.sqlite_error().map(|error| error.extended_code);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            // A full disk has no room for the log's index.
            _ if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => Self::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Failed { reason: reason() }
            }
            _ => Self::Engine { reason: reason() },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use futures_util::future::join_all;

    use super::*;

    fn writer() -> Writer {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "PRAGMA foreign_keys = ON;
                 CREATE TABLE t (i INTEGER PRIMARY KEY);
                 CREATE TABLE child (i REFERENCES t (i) DEFERRABLE INITIALLY DEFERRED);",
            )
            .unwrap();
        Writer::start(connection, Failure::default()).unwrap()
    }

    async fn insert(writer: &Writer, i: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO t VALUES (?1)";
        writer.run(Access::Write, move |db| Ok(Ok(db.execute(sql, [i]).map(drop)?))).await
    }

    async fn count(writer: &Writer) -> i64 {
        let sql = "SELECT count(*) FROM t";
        let count = writer.run(Access::Read, move |db| Ok(Ok(db.query_row(sql, [], |r| r.get(0))?)));
        count.await.map_err(|error: StoreError| error).unwrap()
    }

    #[tokio::test]
    async fn what_fails_is_undone_alone() {
        let writer = writer();
        // Polled together, so they share transactions; every second one is refused after writing.
        let results = join_all((0..100).map(|i| {
            writer.run(Access::Write, move |db| {
                db.execute("INSERT INTO t VALUES (?1)", [i])?;
                Ok(if i % 2 == 0 { Ok(()) } else { Err(StoreError::Closed) })
            })
        }));
        let refused = results.await.iter().filter(|result| result.is_err()).count();
        assert_eq!((refused, count(&writer).await), (50, 50));
        assert!(matches!(insert(&writer, 0).await, Err(StoreError::Engine { .. })), "a duplicate");
        insert(&writer, 1).await.expect("the refused one left nothing behind");
    }

    #[tokio::test]
    async fn a_failed_commit_fails_the_store_for_good() {
        let writer = writer();
        insert(&writer, 1).await.unwrap();
        // A deferred constraint is the failure that only COMMIT can notice.
        let orphan = |db: &Connection| Ok(Ok(db.execute("INSERT INTO child VALUES (99)", []).map(drop)?));
        let (failed, neighbour) = tokio::join!(writer.run(Access::Write, orphan), insert(&writer, 2));
        assert!(matches!(failed, Err(StoreError::Failed { .. })), "{failed:?}");
        assert!(matches!(neighbour, Err(StoreError::Failed { .. })), "it shared the commit");
        assert!(matches!(insert(&writer, 3).await, Err(StoreError::Failed { .. })));
        let message = writer.failure().unwrap().to_string();
        assert!(message.contains("failed (FOREIGN KEY constraint failed)"), "{message}");
        assert_eq!(count(&writer).await, 1, "reads go on, over what was durable");
    }

    #[tokio::test]
    async fn a_full_disk_passes() {
        let writer = writer();
        let pages = |sql: &'static str| {
            writer.run(Access::Read, move |db| {
                Ok(Ok::<_, StoreError>(db.query_row(sql, [], |row| row.get::<_, i64>(0))?))
            })
        };
        pages("PRAGMA max_page_count = 4").await.unwrap();
        let fill = || {
            writer.run(Access::Write, |db| {
                db.execute_batch("CREATE TABLE big (b); INSERT INTO big VALUES (zeroblob(100000))")?;
                Ok(Ok(()))
            })
        };
        assert!(matches!(fill().await, Err(StoreError::Full)));
        assert!(writer.failure().is_none());
        pages("PRAGMA max_page_count = 1000").await.unwrap();
        fill().await.expect("there is room again");
    }

    #[test]
    fn no_room_for_the_index_of_the_log_is_a_full_disk() {
        let error = |code| StoreError::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        assert_eq!(error(ffi::SQLITE_IOERR_SHMSIZE), StoreError::Full);
        assert!(matches!(error(ffi::SQLITE_IOERR_FSYNC), StoreError::Failed { .. }));
    }

    #[tokio::test]
    async fn operations_that_take_long_do_not_share_a_transaction() {
        let writer = writer();
        let slow = |i: i64| {
            writer.run(Access::Write, move |db| {
                db.execute("INSERT INTO t VALUES (?1)", [i])?;
                // As one does that is a thousand rows.
                thread::sleep(GROUP_TIME);
                Ok(Ok::<_, StoreError>(()))
            })
        };
        // Polled together, so they are in the queue together; what fails is the commit of the last one.
        let orphan =
            |db: &Connection| Ok(Ok::<_, StoreError>(db.execute("INSERT INTO child VALUES (99)", []).map(drop)?));
        let (one, two, three) = tokio::join!(slow(1), slow(2), writer.run(Access::Write, orphan));
        assert_eq!((one, two), (Ok(()), Ok(())), "they did not share its commit");
        assert!(matches!(three, Err(StoreError::Failed { .. })), "{three:?}");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_shares_the_commit_of_the_next() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("PRAGMA foreign_keys = ON; CREATE TABLE t (i INTEGER PRIMARY KEY);").unwrap();
        connection.execute_batch("CREATE TABLE child (i REFERENCES t (i) DEFERRABLE INITIALLY DEFERRED);").unwrap();
        let writer = Writer::start_with(connection, Failure::default(), Duration::from_secs(3600)).unwrap();
        let note = |sql: &'static str| {
            writer.run(Access::Deferred, move |db| Ok(Ok::<_, StoreError>(db.execute(sql, []).map(drop)?)))
        };
        let (noted, other) = tokio::join!(note("INSERT INTO t VALUES (1)"), insert(&writer, 2));
        assert_eq!((noted, other), (Ok(()), Ok(())), "the next comes, and nobody waits for an hour");
        let (noted, read) = tokio::join!(note("INSERT INTO t VALUES (3)"), count(&writer));
        assert_eq!((noted, read), (Ok(()), 3), "who reads sees it");
        // What is wrong with it only COMMIT can notice.
        let (noted, other) = tokio::join!(note("INSERT INTO child VALUES (99)"), insert(&writer, 4));
        assert!(matches!(noted, Err(StoreError::Failed { .. })), "{noted:?}");
        assert!(matches!(other, Err(StoreError::Failed { .. })), "it shared the commit: {other:?}");
    }

    /// The log does not grow for ever, and what is in it goes to where SQLite would put it.
    #[tokio::test]
    async fn the_log_goes_back_into_the_database() {
        let directory = tempfile::tempdir().unwrap();
        let connection = super::super::database::open(directory.path(), "t.db", &["CREATE TABLE t (b BLOB)"]).unwrap();
        let writer = Writer::start(connection, Failure::default()).unwrap();
        for _ in 0..10 {
            let insert = writer.run(Access::Write, |db| {
                db.execute("INSERT INTO t VALUES (zeroblob(2000000))", [])?;
                Ok(Ok::<_, StoreError>(()))
            });
            insert.await.unwrap();
        }
        let size = |file: &str| std::fs::metadata(directory.path().join(file)).unwrap().len();
        assert!(size("t.db-wal") < 12_000_000, "{}", size("t.db-wal"));
        assert!(size("t.db") > 15_000_000, "{}", size("t.db"));
    }

    #[tokio::test]
    async fn closing_answers_what_was_queued() {
        let writer = writer();
        let (results, ()) = tokio::join!(join_all((0..50).map(|i| insert(&writer, i))), writer.close());
        assert!(results.iter().all(Result::is_ok));
        assert!(matches!(insert(&writer, 51).await, Err(StoreError::Closed)));
    }
}
