//! The one thread that touches the database.
//!
//! ```text
//!   callers ──► bounded queue ──► all that wait ──► BEGIN, each in its SAVEPOINT, COMMIT ──► answers
//! ```
//!
//! An answer is given only after the commit that covers it has reached the disk. One commit, and so
//! one fsync, covers everything that came while the previous one was under way.

use std::sync::{Arc, OnceLock};
use std::thread;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Callers beyond this wait for room in the queue.
const QUEUE: usize = 1024;
/// Operations in one transaction: enough to share the fsync, few enough to bound the wait for it.
const GROUP: usize = 256;

/// Whether an operation changes anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Runs even after the store has failed.
    Read,
    /// Is refused once the store has failed.
    Write,
}

/// The owner of the thread. Dropping it lets queued operations finish, then joins the thread.
pub(crate) struct Writer {
    queue: Option<mpsc::Sender<Message>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Why the store takes no more writes; set once, for good.
    failed: Arc<OnceLock<Arc<str>>>,
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
    pub(crate) fn start(connection: Connection) -> std::io::Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let failed = Arc::new(OnceLock::new());
        let thread = thread::Builder::new().name("relay-store".to_owned()).spawn({
            let failed = Arc::clone(&failed);
            move || serve(connection, messages, &failed)
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), failed })
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
        self.failed.get().map(|reason| StoreError::Failed { reason: Arc::clone(reason) })
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
fn serve(connection: Connection, mut queue: mpsc::Receiver<Message>, failed: &OnceLock<Arc<str>>) {
    let mut messages = Vec::with_capacity(GROUP);
    let mut closers = Vec::new();
    while queue.blocking_recv_many(&mut messages, GROUP) > 0 {
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
        run_group(&connection, group, failed);
    }
    if let Err((_, error)) = connection.close() {
        // Everything acknowledged is in the write-ahead log; the next start reads it from there.
        tracing::warn!(%error, "the store did not close cleanly");
    }
    for closer in closers {
        let _ = closer.send(());
    }
}

fn run_group(connection: &Connection, group: Vec<Operation>, failed: &OnceLock<Arc<str>>) {
    let failure = failed.get().map(|reason| StoreError::Failed { reason: Arc::clone(reason) });
    if failure.is_some() || group.iter().all(|operation| operation.access == Access::Read) {
        for Operation { access, run } in group {
            let refusal = failure.clone().filter(|_| access == Access::Write);
            let (_, answer) = run(refusal.map_or(Ok(connection), Err));
            answer(Ok(()));
        }
        return;
    }

    let mut answers = Vec::with_capacity(group.len());
    let mut group = group.into_iter();
    let result = transact(connection, &mut group, &mut answers);
    if let Err(error) = &result {
        if !connection.is_autocommit() {
            // Where even this fails, so does everything after it.
            let _ = connection.execute_batch("ROLLBACK");
        }
        if let StoreError::Failed { reason } = error
            && failed.set(Arc::clone(reason)).is_ok()
        {
            tracing::error!(%error, "the store has failed");
        }
        // Those that had not run yet share the fate of those that had.
        answers.extend(group.map(|operation| (operation.run)(Err(error.clone())).1));
    }
    for answer in answers {
        answer(result.clone());
    }
}

/// One transaction over the whole group; an error is that of the whole group.
fn transact(
    connection: &Connection,
    group: &mut impl Iterator<Item = Operation>,
    answers: &mut Vec<Answer>,
) -> Result<(), StoreError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for operation in group {
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
    connection.execute_batch("COMMIT").map_err(|error| match StoreError::from(error) {
        // After a failed fsync nobody knows what is on disk, and asking again may falsely succeed.
        StoreError::Engine { reason } => StoreError::Failed { reason },
        other => other,
    })
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let reason = || error.to_string().into();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
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
        Writer::start(connection).unwrap()
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

    #[tokio::test]
    async fn closing_answers_what_was_queued() {
        let writer = writer();
        let (results, ()) = tokio::join!(join_all((0..50).map(|i| insert(&writer, i))), writer.close());
        assert!(results.iter().all(Result::is_ok));
        assert!(matches!(insert(&writer, 51).await, Err(StoreError::Closed)));
    }
}
