//! The thread that stores what is over.
//!
//! ```text
//!   Recording ──▶ Waiting, bounded ── all that have come, ten times a second ──▶ one transaction ──▶ history.db
//! ```
//!
//! Whoever records never waits: what the disk does not take in time is dropped and counted. A disk that is full or a file
//! that is damaged is worth one word, and the tunnel goes on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::store::{Limits, Place, Store, StoreError};
use super::{Kept, unix_now};

/// How long the first one waits for others, so that many share a transaction.
const GATHER: Duration = Duration::from_millis(100);

/// So many that wait are as many as may, a second's worth of a very busy client. Their bytes have a bound, too.
const WAITING: usize = 32 << 10;

/// How long is waited after a failure that may pass.
const PAUSE: Duration = Duration::from_secs(1);

/// The owner of the thread. Dropping it stores what waits, then ends the thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Arc<Queue>,
    /// None where there was none to be had.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something waits for the first time, too much waits, somebody waits for it to be stored, or it has been.
    changed: Condvar,
    /// Bytes that may wait.
    room: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Arc<Kept>>,
    bytes: usize,
    /// How many have come, of which `entries` are the last.
    come: u64,
    /// How many of them are stored, or are not going to be.
    done: u64,
    /// So many of them somebody waits for.
    wanted: u64,
    closed: bool,
    /// Nothing will be stored any more.
    failed: bool,
    /// Not stored since the last word about it.
    dropped: u64,
    notice: Option<String>,
}

impl Waiting {
    /// Somebody waits for one of those that wait here.
    fn is_urgent(&self) -> bool {
        self.wanted > self.come - self.entries.len() as u64
    }
}

impl Writer {
    /// Stores there, within these limits, while `room` bytes at most wait. The file is opened with the first exchange.
    pub(super) fn start(place: Place, limits: Limits, room: usize) -> Self {
        let queue = Arc::new(Queue { waiting: Mutex::default(), changed: Condvar::new(), room });
        let thread = thread::Builder::new().name("relay-history".to_owned()).spawn({
            let queue = queue.clone();
            move || queue.serve(&place, &limits)
        });
        if let Err(error) = &thread {
            let mut waiting = queue.waiting();
            waiting.failed = true;
            waiting.notice = Some(format!("requests are not stored: {error}"));
        }
        Self { queue, thread: thread.ok() }
    }

    /// Stores an exchange that is over, soon.
    pub(super) fn push(&self, kept: &Arc<Kept>) {
        let cost = kept.entry().cost();
        let mut waiting = self.queue.waiting();
        if waiting.failed {
            return;
        }
        if waiting.entries.len() >= WAITING || waiting.bytes + cost > self.queue.room {
            waiting.dropped += 1;
            return;
        }
        let (before, urgent) = (waiting.bytes, self.queue.room / 4);
        waiting.entries.push(kept.clone());
        waiting.come += 1;
        waiting.bytes += cost;
        // Most of the time the thread sleeps until enough has come, and waking it would cost each request.
        let wakes = waiting.entries.len() == 1 || before < urgent && waiting.bytes >= urgent;
        drop(waiting);
        if wakes {
            self.queue.changed.notify_all();
        }
    }

    /// Waits until everything that has come by now has been stored, or could not be. What comes meanwhile is not waited
    /// for.
    pub(super) fn flush(&self) {
        let mut waiting = self.queue.waiting();
        let wanted = waiting.come;
        waiting.wanted = wanted;
        self.queue.changed.notify_all();
        let is_busy = |waiting: &mut Waiting| !waiting.failed && waiting.done < wanted;
        drop(self.queue.changed.wait_while(waiting, is_busy));
    }

    /// A word that has not been said yet.
    pub(super) fn notice(&self) -> Option<String> {
        self.queue.waiting().notice.take()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.waiting().closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: batch after batch until it is closed and empty.
    fn serve(&self, place: &Place, limits: &Limits) {
        let (mut store, mut troubled) = (None, false);
        while let Some(batch) = self.next() {
            store = store.filter(Store::is_current);
            let stored = match &mut store {
                Some(store) => Ok(store),
                None => Store::open(place).map(|opened| store.insert(opened)),
            };
            let entries = batch.iter().map(|kept| || kept.entry());
            let stored = stored.and_then(|store| store.insert(entries, limits, unix_now()));
            let count = batch.len() as u64;
            if stored.is_ok() {
                batch.iter().for_each(|kept| kept.stored());
            }
            drop(batch);
            let mut waiting = self.waiting();
            waiting.done += count;
            self.changed.notify_all();
            match stored {
                Ok(()) => {
                    if waiting.dropped > 0 {
                        let dropped = std::mem::take(&mut waiting.dropped);
                        waiting.notice = Some(format!("{dropped} requests were not stored; others are again"));
                    }
                    troubled = false;
                }
                Err(error) => {
                    waiting.dropped += count;
                    if !std::mem::replace(&mut troubled, true) {
                        waiting.notice = Some(format!("requests are not stored: {error}"));
                    }
                    if matches!(error, StoreError::Broken { .. } | StoreError::Newer(_)) {
                        (waiting.failed, waiting.entries) = (true, Vec::new());
                    } else {
                        let may_wait = |waiting: &mut Waiting| !waiting.closed && !waiting.is_urgent();
                        drop(self.changed.wait_timeout_while(waiting, PAUSE, may_wait));
                    }
                }
            }
        }
    }

    /// What has come, a moment after the first one did; nothing once no more will come.
    fn next(&self) -> Option<Vec<Arc<Kept>>> {
        let is_idle = |waiting: &mut Waiting| waiting.entries.is_empty() && !waiting.closed;
        let waiting = self.changed.wait_while(self.waiting(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let is_patient =
            |waiting: &mut Waiting| !waiting.closed && !waiting.is_urgent() && waiting.bytes < self.room / 4;
        let gathered = self.changed.wait_timeout_while(waiting, GATHER, is_patient);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        if waiting.entries.is_empty() {
            return None;
        }
        waiting.bytes = 0;
        // Room for as many as came this time.
        let room = Vec::with_capacity(waiting.entries.len());
        Some(std::mem::replace(&mut waiting.entries, room))
    }
}
