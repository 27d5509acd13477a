//! The requests of a running client, kept so that they can be looked at, waited for and sent once more.
//!
//! ```text
//!   session ── head ──▶ Arrival ─┐
//!                                ▼                       ┌──▶ Ring: the newest, in memory ──▶ Reader ──▶ who watches
//!   upstream ── body ──▶ Recording ──▶ Entry ── news ────┤
//!            └─ answer ──▶ ┘                 └─ its end ─┴──▶ Writer ──▶ history.db: all of them ──▶ History
//! ```
//!
//! An `Entry` is shared by all three: the recording writes it, the ring shows it, and once the exchange is over the
//! writer stores it. The ring has a bound of its count, and all entries together have one of their bytes, wherever they
//! are: the ring gives way first, oldest first, then bodies are cut, and what the disk does not take in time is not
//! stored. Nothing of that ever holds a request up. Of long bodies that are stored only the beginning stays in memory.

pub(crate) mod entry;
pub(crate) mod exchange;
pub mod export;
pub mod filter;
pub mod fixture;
pub(crate) mod history;
mod packed;
pub(crate) mod replay;
pub mod saved;
pub(crate) mod store;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use relay_protocol::message::RequestHead;
pub(crate) use relay_protocol::webhook::mask;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(crate) use self::entry::Entry;
use self::entry::{Annotation, End};
use self::exchange::{Exchange, Summary};
use self::filter::StatusPattern;
use self::history::Query;
use self::packed::pack;
use self::store::{Limits, Place};
use self::writer::Writer;

/// How much a capture keeps in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests that can be looked at.
    pub(crate) count: usize,
    /// Bytes that they have together, with what it takes to keep them. With those that are under way or wait for the disk it
    /// may be twice that.
    pub(crate) together: usize,
    /// Bytes of one body; what comes behind them is counted.
    pub(crate) body: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { count: 1000, together: 32 << 20, body: 10 << 20 }
    }
}

/// The requests of a client; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Capture(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    bounds: Bounds,
    ring: Mutex<Ring>,
    /// Bytes of all entries that are alive: see [`Entry::cost`].
    held: Arc<AtomicUsize>,
    /// How many [`Reader`]s there are.
    readers: AtomicUsize,
    /// A request has arrived, or has been answered.
    news: Notify,
    /// Stores what is over; none where history is kept in memory only.
    writer: Option<Writer>,
    /// Where others of this user ask for it, once they can.
    socket: OnceLock<PathBuf>,
}

/// An entry whose bytes are counted as long as it is alive.
#[derive(Debug)]
struct Kept {
    /// The entry's, for whoever looks for it: the ring waits for no entry.
    id: Arc<str>,
    /// The entry's.
    at_ms: u64,
    entry: Mutex<Entry>,
    held: Arc<AtomicUsize>,
    /// It is in the history, or was.
    is_stored: AtomicBool,
}

impl Kept {
    fn new(entry: Entry, held: &Arc<AtomicUsize>) -> Arc<Self> {
        held.fetch_add(entry.cost(), Relaxed);
        let (id, at_ms, is_stored) = (entry.id.clone(), entry.at_ms, AtomicBool::new(false));
        Arc::new(Self { id, at_ms, entry: Mutex::new(entry), held: held.clone(), is_stored })
    }

    fn is_over(&self) -> bool {
        self.entry().ended.is_some()
    }

    fn entry(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is in the history by now, where whoever wants all of a long body finds it.
    fn stored(&self) {
        self.is_stored.store(true, Relaxed);
        let entry = self.entry();
        let is_long = entry.ended.is_some() && entry.is_longer(SHOWN);
        drop(entry);
        if is_long {
            self.change(|entry| entry.shorten(SHOWN));
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Entry) -> R) -> R {
        let mut entry = self.entry();
        let before = entry.cost();
        let result = change(&mut entry);
        let after = entry.cost();
        drop(entry);
        if after > before {
            self.held.fetch_add(after - before, Relaxed);
        } else if after < before {
            self.held.fetch_sub(before - after, Relaxed);
        }
        result
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let cost = self.entry.get_mut().unwrap_or_else(PoisonError::into_inner).cost();
        self.held.fetch_sub(cost, Relaxed);
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the oldest go while there is too much.
    fn make_room(&self) {
        let is_too_much = || self.held.load(Relaxed) > self.bounds.together;
        if is_too_much() {
            let mut ring = self.ring();
            while is_too_much() && ring.drop_oldest() {}
        }
    }

    /// How much of a body may be kept at present.
    fn most(&self) -> usize {
        if self.held.load(Relaxed) > 2 * self.bounds.together { 0 } else { self.bounds.body }
    }

    fn tell(&self) {
        if self.readers.load(Relaxed) > 0 {
            self.news.notify_waiters();
        }
    }
}

impl Capture {
    /// Keeps so much, in memory only.
    pub(crate) fn within(bounds: Bounds) -> Self {
        Self(Arc::new(Shared { bounds, ..Shared::default() }))
    }

    /// Keeps the newest in memory, and stores all of them there, within these limits.
    pub(crate) fn stored(place: Place, limits: Limits) -> Self {
        let bounds = Bounds { body: limits.body, ..Bounds::default() };
        let writer = Writer::start(place, limits, bounds.together);
        Self(Arc::new(Shared { bounds, writer: Some(writer), ..Shared::default() }))
    }

    /// A request whose encoded head has come just now.
    pub(crate) fn arrival(&self, encoded: Bytes) -> Arrival {
        Arrival(Some((self.clone(), encoded)))
    }

    /// Reads what is kept in memory, and then what comes.
    pub(crate) fn read(&self, since: Since) -> Reader {
        self.0.readers.fetch_add(1, Relaxed);
        let ring = self.0.ring();
        let (first, after) = match since {
            Since::Start => (ring.first, None),
            Since::Now => (ring.end(), None),
            Since::Time { at_ms } => (ring.find(|kept| kept.at_ms >= at_ms).unwrap_or(ring.end()), None),
            Since::Id { id } => match ring.find(|kept| *kept.id == *id) {
                Some(seq) => (seq + 1, None),
                None => (ring.first, Some(id)),
            },
        };
        drop(ring);
        let (capture, open, tells) = (self.clone(), VecDeque::new(), Tells::Arrival);
        let mut reader =
            Reader { capture, next: 0, after, open, left: 0, missed: 0, clearings: 0, cleared: false, tells };
        reader.begin(first, |_| true);
        reader
    }

    /// The request of this id, as long as it is kept in memory.
    pub(crate) fn get(&self, id: &str) -> Option<Captured> {
        let (seq, kept) = self.find(id)?;
        let entry = kept.entry();
        Some(captured(seq, &entry, entry.decode()?))
    }

    /// Whether the request of this id is kept in memory.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.find(id).is_some()
    }

    /// As [`Capture::get`], with its answer as far as there is one, and whether that is all that was kept of its bodies:
    /// otherwise the history had the rest.
    pub(crate) fn exchange(&self, id: &str) -> Option<(Exchange, bool)> {
        let (_, kept) = self.find(id)?;
        let entry = kept.entry();
        Some((entry.exchange()?, !entry.is_shortened))
    }

    fn find(&self, id: &str) -> Option<(u64, Arc<Kept>)> {
        let ring = self.0.ring();
        let seq = ring.find(|kept| *kept.id == *id)?;
        Some((seq, ring.get(seq)?.clone()))
    }

    /// All that are kept in memory, the newest first, also those that are under way.
    pub(crate) fn kept(&self) -> Vec<Summary> {
        let all = self.0.ring().all();
        all.iter().rev().map(|(_, kept)| kept.entry().summary()).collect()
    }

    /// How many of those that are kept in memory are under way, through this tunnel.
    pub(crate) fn under_way(&self, tunnel: &str) -> u64 {
        let is_it = |kept: &Kept| !kept.is_over() && kept.entry().tunnel.as_deref() == Some(tunnel);
        self.0.ring().all().iter().filter(|(_, kept)| is_it(kept)).count() as u64
    }

    /// Those of [`Capture::kept`] that are asked for and are not in the history, because they are under way or could not be
    /// stored. It takes as long as their bodies do where a text is looked for, so it is no call for a task. Bodies that are
    /// under way are not looked through: whoever brings them would have to wait.
    pub(crate) fn unstored(&self, query: &Query) -> Vec<Summary> {
        let (all, mut packed) = (self.0.ring().all(), Vec::new());
        let unstored = all.iter().rev().filter(|(_, kept)| !kept.is_stored.load(Relaxed));
        unstored
            .filter_map(|(_, kept)| {
                let entry = kept.entry();
                // Where nothing has gone wrong yet, nothing has.
                if entry.ended.is_none() && query.status == Some(StatusPattern::Error) {
                    return None;
                }
                packed.clear();
                pack(&entry.line(), &mut packed);
                let is_in_bodies =
                    || entry.ended.is_some() && query.text.as_ref().is_some_and(|text| entry.bodies_have(text));
                Some(query.take(&kept.id, &packed, is_in_bodies)?.owned())
            })
            .collect()
    }

    /// Lets go of all that is over, in memory: to whoever comes now it has not been there. Whoever reads keeps what he
    /// knows, and has missed what he was not told of.
    pub(crate) fn forget(&self) {
        let all = self.0.ring().all();
        let over: Vec<_> = all.into_iter().filter(|(_, kept)| kept.is_over()).collect();
        let mut ring = self.0.ring();
        over.iter().for_each(|(seq, _)| ring.forget(*seq));
    }

    /// As [`Capture::forget`], with all that whoever reads was told of.
    pub(crate) fn clear(&self) {
        self.forget();
        let mut ring = self.0.ring();
        (ring.clearings, ring.cleared) = (ring.clearings + 1, ring.end());
        drop(ring);
        self.0.news.notify_waiters();
    }

    /// Others ask for it at this socket.
    pub(crate) fn is_asked_at(&self, socket: &Path) {
        let _ = self.0.socket.set(socket.to_owned());
    }

    /// Where others ask for it, which whoever asks all of them leaves out.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.0.socket.get().map(PathBuf::as_path)
    }

    /// What is wrong with the history, once for each time that something is: a sentence.
    pub(crate) fn notice(&self) -> Option<String> {
        self.0.writer.as_ref()?.notice()
    }

    /// Waits until all that is over has been stored, or is not going to be. It takes as long as the disk does, so it is
    /// no call for a task.
    pub(crate) fn flush(&self) {
        self.0.writer.iter().for_each(Writer::flush);
    }

    /// The client has ended. Whoever reads is told what there still is, and then that this was all; what was under way is
    /// stored as it is.
    pub(crate) fn close(&self) {
        let mut ring = self.0.ring();
        let (was_closed, all) = (std::mem::replace(&mut ring.closed, true), ring.all());
        drop(ring);
        if let (false, Some(writer)) = (was_closed, &self.0.writer) {
            all.iter().filter(|(_, kept)| !kept.is_over()).for_each(|(_, kept)| writer.push(kept));
        }
        self.0.news.notify_waiters();
    }
}

/// From which request on one wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Since {
    /// All that are kept.
    #[default]
    Start,
    /// Those that come.
    Now,
    /// Those that came at this time or later.
    Time {
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// Those that came after this one. Where it is not kept, those whose id is a later one: ids begin with their time.
    Id {
        /// An exchange's id.
        id: String,
    },
}

/// A request that may be kept, once it is known what came with its head.
#[derive(Debug, Default)]
pub(crate) struct Arrival(Option<(Capture, Bytes)>);

impl Arrival {
    /// Keeps the request, which came through this tunnel, with what of its body is there; `whole` says that this is all.
    pub(crate) fn keep(self, head: &RequestHead, tunnel: Option<Arc<str>>, body: &[Bytes], whole: bool) -> Recording {
        let Some((Capture(shared), encoded)) = self.0 else { return Recording::default() };
        let entry = Entry::new(&encoded, head, tunnel, body, whole, shared.most());
        let kept = Kept::new(entry, &shared.held);
        let mut ring = shared.ring();
        ring.entries.push_back(Some(kept.clone()));
        if ring.entries.len() > shared.bounds.count {
            ring.drop_oldest();
        }
        drop(ring);
        shared.make_room();
        shared.tell();
        Recording(Some((shared, kept)))
    }
}

/// A request that is being recorded, or is not. The ring may have dropped it meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording(Option<(Arc<Shared>, Arc<Kept>)>);

impl Recording {
    /// A part of the request's body has come.
    pub(crate) fn data(&self, bytes: &[u8]) {
        self.change(|entry, most| entry.data(bytes, most));
    }

    /// The request is here as a whole, with these encoded trailers.
    pub(crate) fn whole(&self, trailers: &Bytes) {
        self.change(|entry, _| entry.arrive(trailers));
    }

    /// Something was found out about the request.
    pub(crate) fn annotate(&self, note: impl FnOnce(&mut Annotation)) {
        self.change(|entry, _| {
            note(&mut entry.annotation);
            false
        });
    }

    /// The service has answered with this encoded head. A body of about `room` bytes will follow.
    pub(crate) fn response(&self, encoded: &[u8], room: u64) {
        self.change(|entry, most| {
            // What a service says of its body need not be true.
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(most).min(64 << 10);
            entry.respond(encoded, room);
            false
        });
    }

    /// A part of the response's body has been sent on.
    pub(crate) fn response_data(&self, bytes: &[u8]) {
        self.change(|entry, most| {
            entry.response_data(bytes, most);
            false
        });
    }

    /// The response has been sent on as a whole, with these encoded trailers.
    pub(crate) fn response_whole(&self, trailers: &Bytes) {
        self.change(|entry, _| {
            entry.responded(trailers);
            false
        });
    }

    /// The head of the answer has been sent on, and the rest of it takes a while.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.change(|entry, _| {
            entry.status = Some(status);
            true
        });
    }

    /// The exchange is over.
    pub(crate) fn ended(&self, status: Option<StatusCode>, duration: Duration, error: Option<&'static str>) {
        let is_over = self.change(|entry, _| entry.end(status, End { duration, error }));
        if let (true, Some((shared, kept))) = (is_over, &self.0)
            && let Some(writer) = &shared.writer
        {
            writer.push(kept);
        }
    }

    /// Changes the entry, of which so many bytes of body may be kept, and wakes those who read where the change says that
    /// it is news.
    fn change(&self, change: impl FnOnce(&mut Entry, usize) -> bool) -> bool {
        let Some((shared, kept)) = &self.0 else { return false };
        let most = shared.most();
        let is_news = kept.change(|entry| change(entry, most));
        shared.make_room();
        if is_news {
            shared.tell();
        }
        is_news
    }
}

/// The newest requests, numbered in the order in which their heads came.
#[derive(Debug, Default)]
struct Ring {
    /// The number of the oldest one.
    first: u64,
    /// None in the place of one that was cleared.
    entries: VecDeque<Option<Arc<Kept>>>,
    /// How often it was cleared.
    clearings: u64,
    /// The number of the first one that has come since.
    cleared: u64,
    /// No more will come, and nothing will become of those that there are.
    closed: bool,
}

impl Ring {
    /// The number of the next one.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn at(&self, seq: u64) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.first)?).ok()
    }

    fn get(&self, seq: u64) -> Option<&Arc<Kept>> {
        self.entries.get(self.at(seq)?)?.as_ref()
    }

    /// The number of the first one that `is` it.
    fn find(&self, is: impl Fn(&Kept) -> bool) -> Option<u64> {
        let at = self.entries.iter().position(|kept| kept.as_ref().is_some_and(|kept| is(kept)))?;
        Some(self.first + at as u64)
    }

    /// All of them with their numbers, for whoever takes a look at each: that may take its time, and the ring must not.
    fn all(&self) -> Vec<(u64, Arc<Kept>)> {
        let numbered = (self.first..).zip(&self.entries);
        numbered.filter_map(|(seq, kept)| Some((seq, kept.clone()?))).collect()
    }

    /// Its number stays, so that all others keep theirs.
    fn forget(&mut self, seq: u64) {
        if let Some(kept) = self.at(seq).and_then(|at| self.entries.get_mut(at)) {
            *kept = None;
        }
    }

    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.entries.pop_front();
        self.first += u64::from(oldest.is_some());
        oldest.is_some()
    }
}

/// A request as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// Its number among the requests of its client.
    pub(crate) seq: u64,
    /// The tunnel, as in `tunnel.ready`; none where it is not known.
    pub(crate) tunnel: Option<String>,
    /// When its head came: milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The exchange's id.
    pub(crate) id: String,
    /// Its method.
    pub(crate) method: String,
    /// The raw target with its query.
    pub(crate) path: String,
    /// Name and value of each header as the sender wrote it, `host` first.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, as far as it was kept.
    #[serde(with = "base64_text")]
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that have come.
    pub(crate) body_size: u64,
    /// Whether `body` is not all of it.
    pub(crate) body_truncated: bool,
    /// None while it has none.
    pub(crate) answer: Option<Answer>,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// None where none was sent.
    pub(crate) status: Option<u16>,
    /// From the start of the deadline to the end of the body; none while that goes on.
    pub(crate) duration_ms: Option<f64>,
    /// A stable code.
    pub(crate) error: Option<String>,
}

/// What a [`Reader`] has to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News<T = Captured> {
    /// A request has arrived.
    Request(T),
    /// One that was told of before has been answered.
    Answered {
        /// Its number.
        seq: u64,
        /// With what.
        answer: Answer,
    },
    /// So many were dropped before they could be told of.
    Missed(u64),
    /// All that was over was cleared. Those that are under way are told of once more.
    Cleared,
}

/// Tells of each request when it has arrived, and once more when it has been answered, if that is later. It holds
/// numbers only, so one that is slow keeps nothing and holds nobody up: it misses what the ring drops.
#[derive(Debug)]
pub(crate) struct Reader {
    capture: Capture,
    /// The first request that it has not looked at.
    next: u64,
    /// Only requests with a later id are of interest.
    after: Option<String>,
    /// Those that have not ended, and whether they have been told of.
    open: VecDeque<(u64, bool)>,
    /// How many of `open` are still to be looked at before waiting again.
    left: usize,
    missed: u64,
    /// How often the ring had been cleared when it was looked at.
    clearings: u64,
    /// It was cleared again, which has not been told.
    cleared: bool,
    tells: Tells,
}

/// When a [`Reader`] tells of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    /// When it has arrived, and of its answer by itself.
    Arrival,
    /// Once, when it has been answered.
    Answer,
    /// When its head has come, and once more when its exchange is over.
    Both,
}

impl Reader {
    /// Tells of each request when it has been answered, and of no answer.
    pub(crate) fn when_answered(mut self) -> Self {
        self.tells = Tells::Answer;
        self
    }

    /// Tells of each exchange that is under way and of each that comes when its head has come, and once more when it is
    /// over; never [`News::Answered`], but of each [clearing](Capture::clear). What is over by now is for whoever reads
    /// the history.
    pub(crate) fn twice(mut self) -> Self {
        self.tells = Tells::Both;
        let first = self.open.front().map_or(self.next, |(seq, _)| *seq);
        self.begin(first, |kept| !kept.is_over());
        self
    }

    /// Begins with those of this number and later that are kept and are of interest.
    fn begin(&mut self, first: u64, is_of_interest: impl Fn(&Kept) -> bool) {
        let ring = self.capture.0.ring();
        let all = ring.all();
        (self.next, self.clearings) = (ring.end(), ring.clearings);
        drop(ring);
        let open = all.iter().filter(|(seq, kept)| *seq >= first && is_of_interest(kept));
        self.open = open.map(|(seq, _)| (*seq, false)).collect();
        self.left = self.open.len();
    }

    /// The next news of a list that is kept up to date, of a reader that tells [twice](Self::twice).
    pub(crate) async fn next_summary(&mut self) -> Option<News<Summary>> {
        self.next_as(|_, entry, _| entry.summary()).await
    }

    /// The next news; `None` when the client has ended and all is told. Nothing is lost where this is given up.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.next_as(captured).await
    }

    /// As [`Reader::next`], with nothing of the bodies.
    pub(crate) async fn next_head(&mut self) -> Option<News> {
        self.next_as(|seq, entry, head| shown(seq, entry, head, 0)).await
    }

    /// As [`Reader::next`], with requests as `show` makes them: of their number, what was kept, and the head from that.
    pub(crate) async fn next_as<T>(&mut self, show: fn(u64, &Entry, RequestHead) -> T) -> Option<News<T>> {
        let shared = self.capture.0.clone();
        loop {
            if let Some(news) = self.look(show) {
                return Some(news);
            }
            let mut changed = pin!(shared.news.notified());
            // From here on, what happens is heard of; what has happened before is seen.
            changed.as_mut().enable();
            let closed = self.extend();
            if let Some(news) = self.look(show) {
                return Some(news);
            }
            if closed {
                return None;
            }
            changed.await;
        }
    }

    /// Begins another round with what has come. Whether it is the last one.
    fn extend(&mut self) -> bool {
        let ring = self.capture.0.ring();
        let (first, end, closed, clearings) = (ring.first, ring.end(), ring.closed, ring.clearings);
        let cleared = ring.cleared;
        drop(ring);
        if self.tells == Tells::Both && clearings != self.clearings {
            // All that is there was under way then, or has come since, as have those that had to go meanwhile.
            (self.cleared, self.missed) = (true, first.saturating_sub(cleared));
            self.begin(0, |_| true);
            return closed;
        }
        self.missed += first.saturating_sub(self.next);
        self.open.extend((self.next.max(first)..end).map(|seq| (seq, false)));
        self.next = end;
        self.left = self.open.len();
        closed
    }

    /// Goes on with the round.
    fn look<T>(&mut self, show: fn(u64, &Entry, RequestHead) -> T) -> Option<News<T>> {
        loop {
            if std::mem::take(&mut self.cleared) {
                return Some(News::Cleared);
            }
            if self.missed > 0 {
                return Some(News::Missed(std::mem::take(&mut self.missed)));
            }
            self.left = self.left.checked_sub(1)?;
            let (seq, told) = self.open.pop_front()?;
            let kept = self.capture.0.ring().get(seq).cloned();
            let Some(kept) = kept else {
                if told && self.tells == Tells::Arrival {
                    // What became of it nobody will know.
                    return Some(News::Answered { seq, answer: Answer::default() });
                }
                self.missed += u64::from(!told || self.tells == Tells::Both);
                continue;
            };
            let entry = kept.entry();
            let (arrived, answered) = (entry.has_arrived(), entry.is_answered());
            let is_due = match self.tells {
                Tells::Arrival if told && answered => {
                    return Some(News::Answered { seq, answer: entry.answer() });
                }
                Tells::Arrival => !told && arrived,
                Tells::Answer => arrived && answered,
                Tells::Both => !told || entry.ended.is_some(),
            };
            if !is_due {
                self.open.push_back((seq, told));
                continue;
            }
            let Some(head) = entry.decode() else { continue };
            if self.after.as_ref().is_some_and(|after| *head.id <= **after) {
                continue;
            }
            let is_done = if self.tells == Tells::Both { entry.ended.is_some() } else { answered };
            if !is_done {
                self.open.push_back((seq, true));
            }
            return Some(News::Request(show(seq, &entry, head)));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.capture.0.readers.fetch_sub(1, Relaxed);
    }
}

/// Bytes of a body that are told of with a request, which is one line on a socket, and that stay in memory once all of it is
/// in the history.
const SHOWN: usize = 1 << 20;

/// A kept request as it is shown.
fn captured(seq: u64, entry: &Entry, head: RequestHead) -> Captured {
    shown(seq, entry, head, SHOWN)
}

/// The same with at most so many bytes of its body.
fn shown(seq: u64, entry: &Entry, head: RequestHead, most: usize) -> Captured {
    let host = ("host".to_owned(), head.authority.to_string());
    let body = entry.body().get(..most).unwrap_or(entry.body());
    let theirs = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())));
    Captured {
        seq,
        tunnel: entry.tunnel.as_deref().map(str::to_owned),
        at_ms: entry.at_ms,
        id: entry.id.to_string(),
        method: head.method.as_str().to_owned(),
        path: head.target.as_str().to_owned(),
        headers: std::iter::once(host).chain(theirs).collect(),
        body: body.to_vec(),
        body_size: entry.request.size,
        body_truncated: entry.is_truncated() || body.len() < entry.body().len(),
        answer: entry.is_answered().then(|| entry.answer()),
    }
}

/// A header's value: UTF-8, or else ISO 8859-1, as such bytes were meant once (RFC 9110, section 5.5).
pub(crate) fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).map_or_else(|_| value.iter().copied().map(char::from).collect(), str::to_owned)
}

/// Milliseconds since 1970.
pub(crate) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::header::{HeaderName, HeaderValue};
    use http::{Method, uri::PathAndQuery};
    use relay_protocol::message::Payload as _;

    use super::history::History;
    use super::*;

    const BODY: usize = 1 << 20;
    const COUNT: usize = 1000;

    fn head(id: &str) -> Bytes {
        let head = RequestHead {
            tunnel: 7,
            id: id.into(),
            deadline_ms: 1000,
            elapsed_ms: 0,
            method: Method::POST,
            target: PathAndQuery::from_static("/hooks?a=%2F"),
            authority: "hooks.relay.example".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers: vec![(HeaderName::from_static("x-odd"), HeaderValue::from_bytes(b"\xe9").unwrap())],
        };
        head.to_bytes().unwrap()
    }

    fn capture() -> Capture {
        Capture::within(Bounds { count: COUNT, together: 16 << 20, body: BODY })
    }

    fn begin(capture: &Capture, id: &str) -> Recording {
        let encoded = head(id);
        let head = RequestHead::from_bytes(&encoded).unwrap();
        capture.arrival(encoded).keep(&head, Some("hooks".into()), &[], false)
    }

    fn consistent(capture: &Capture) {
        let ring = capture.0.ring();
        let sum: usize = ring.all().iter().map(|(_, kept)| kept.entry().cost()).sum();
        let (held, bounds) = (capture.0.held.load(Relaxed), capture.0.bounds);
        assert!(held >= sum);
        assert!(sum <= bounds.together && ring.entries.len() <= bounds.count, "{} {}", sum, ring.entries.len());
    }

    async fn request(reader: &mut Reader) -> Captured {
        match reader.next().await {
            Some(News::Request(captured)) => captured,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_request_is_told_of_when_it_is_whole_and_when_it_is_answered() {
        let capture = capture();
        let mut reader = capture.read(Since::Start);
        let slow = begin(&capture, "1");
        slow.data(b"begin");
        let quick = begin(&capture, "2");
        quick.whole(&Bytes::new());
        let told = request(&mut reader).await;
        assert_eq!((told.id.as_str(), told.tunnel.as_deref(), told.answer), ("2", Some("hooks"), None));
        assert_eq!((told.method.as_str(), told.path.as_str()), ("POST", "/hooks?a=%2F"));
        let shown: Vec<_> = told.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(shown, [("host", "hooks.relay.example"), ("x-odd", "é")]);
        slow.data(b"ning");
        slow.whole(&Bytes::new());
        slow.answered(StatusCode::OK);
        let told = request(&mut reader).await;
        assert_eq!((told.id.as_str(), &told.body[..], told.body_size), ("1", &b"beginning"[..], 9));
        assert_eq!((told.body_truncated, told.answer.unwrap().status), (false, Some(200)));
        quick.ended(Some(StatusCode::BAD_GATEWAY), Duration::from_millis(3), Some("upstream-refused"));
        let Some(News::Answered { seq: 1, answer }) = reader.next().await else { panic!("no answer") };
        assert_eq!((answer.status, answer.duration_ms), (Some(502), Some(3.0)));
        assert_eq!(answer.error.as_deref(), Some("upstream-refused"));
        consistent(&capture);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_or_is_too_large_is_marked() {
        let capture = capture();
        let broken = begin(&capture, "1");
        broken.data(b"half");
        broken.ended(None, Duration::ZERO, Some("cancelled"));
        let large = begin(&capture, "2");
        for _ in 0..3 {
            large.data(&vec![b'x'; BODY / 2 + 1]);
            consistent(&capture);
        }
        large.whole(&Bytes::new());
        let mut reader = capture.read(Since::Start);
        let told = request(&mut reader).await;
        assert_eq!((told.body_truncated, &told.body[..]), (true, &b"half"[..]));
        let told = request(&mut reader).await;
        assert_eq!((told.body_truncated, told.body.len(), told.body_size), (true, BODY, 3 * (BODY as u64 / 2 + 1)));
        assert!(
            capture.0.ring().get(1).unwrap().entry().cost() <= BODY + BODY / 8,
            "what it does not need is given back"
        );
        consistent(&capture);
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_are_said_to_be_missed() {
        let capture = capture();
        let mut reader = capture.read(Since::Start);
        let first = begin(&capture, "0");
        first.whole(&Bytes::new());
        assert_eq!(request(&mut reader).await.seq, 0);
        for i in 1..COUNT + 50 {
            begin(&capture, &i.to_string()).whole(&Bytes::new());
            consistent(&capture);
        }
        first.answered(StatusCode::OK);
        first.data(b"to nobody");
        // The first one was told of; 49 were not.
        assert_eq!(reader.next().await, Some(News::Missed(49)));
        assert_eq!(reader.next().await, Some(News::Answered { seq: 0, answer: Answer::default() }));
        assert_eq!(request(&mut reader).await.seq, 50);
        for _ in 0..40 {
            let large = begin(&capture, "large");
            large.data(&vec![0; BODY]);
            consistent(&capture);
        }
        assert!(capture.0.ring().entries.len() < 20);
    }

    #[tokio::test]
    async fn one_can_begin_anywhere() {
        let capture = capture();
        for id in ["01A", "01B", "01D"] {
            begin(&capture, id).whole(&Bytes::new());
        }
        let mut now = capture.read(Since::Now);
        let mut after = capture.read(Since::Id { id: "01B".to_owned() });
        let mut between = capture.read(Since::Id { id: "01C".to_owned() });
        let mut future = capture.read(Since::Time { at_ms: unix_now() + 3_600_000 });
        let mut past = capture.read(Since::Time { at_ms: unix_now() - 3_600_000 });
        assert_eq!(request(&mut after).await.id, "01D");
        assert_eq!(request(&mut between).await.id, "01D");
        assert_eq!(request(&mut past).await.id, "01A");
        begin(&capture, "01E").whole(&Bytes::new());
        for reader in [&mut now, &mut after, &mut between, &mut future] {
            assert_eq!(request(reader).await.id, "01E");
        }
    }

    #[tokio::test]
    async fn at_the_end_all_that_has_arrived_is_told_and_then_the_end() {
        let capture = capture();
        let (mut reads, mut waits) = (capture.read(Since::Start), capture.read(Since::Now));
        begin(&capture, "0").whole(&Bytes::new());
        begin(&capture, "1").data(b"half");
        begin(&capture, "2").whole(&Bytes::new());
        let waiting = tokio::spawn(async move { (waits.next().await, waits.next().await, waits.next().await) });
        assert_eq!(request(&mut reads).await.seq, 0);
        capture.close();
        assert_eq!(request(&mut reads).await.seq, 2);
        assert_eq!((reads.next().await, reads.next().await), (None, None));
        let (Some(_), Some(_), None) = waiting.await.unwrap() else { panic!("both and the end") };
        assert_eq!(request(&mut capture.read(Since::Start)).await.seq, 0, "also to whoever comes late");
    }

    #[tokio::test]
    async fn what_only_memory_forgets_is_nobodys_news() {
        let capture = capture();
        let over = begin(&capture, "1");
        let mut all = capture.read(Since::Start).twice();
        let Some(News::Request(_)) = all.next_summary().await else { panic!("it is under way") };
        over.ended(Some(StatusCode::OK), Duration::ZERO, None);
        let Some(News::Request(_)) = all.next_summary().await else { panic!("it is over") };
        capture.forget();
        assert!(capture.kept().is_empty());
        begin(&capture, "2");
        let Some(News::Request(told)) = all.next_summary().await else { panic!("nothing but the next one is news") };
        assert_eq!(told.id, "2");
    }

    #[tokio::test]
    async fn what_memory_forgets_before_it_was_told_of_is_missed() {
        let capture = capture();
        let told = begin(&capture, "1");
        let mut all = capture.read(Since::Start).twice();
        let Some(News::Request(_)) = all.next_summary().await else { panic!("it is under way") };
        // One that comes and ends, and the end of one that was told of, while whoever reads is busy.
        let quick = begin(&capture, "2");
        let mut waits = capture.read(Since::Start).when_answered();
        quick.whole(&Bytes::new());
        quick.ended(Some(StatusCode::OK), Duration::ZERO, None);
        told.ended(Some(StatusCode::OK), Duration::ZERO, None);
        capture.forget();
        for _ in 0..2 {
            assert_eq!(waits.next().await, Some(News::Missed(1)));
            assert_eq!(all.next_summary().await, Some(News::Missed(1)));
        }
        // To whoever comes now they have not been there.
        begin(&capture, "3").whole(&Bytes::new());
        assert_eq!(request(&mut capture.read(Since::Start)).await.id, "3");
    }

    #[tokio::test]
    async fn what_comes_after_a_clearing_is_told_of_or_missed() {
        let capture = capture();
        let mut all = capture.read(Since::Start).twice();
        begin(&capture, "1").ended(None, Duration::ZERO, None);
        capture.clear();
        begin(&capture, "2").ended(None, Duration::ZERO, None);
        assert_eq!(all.next_summary().await, Some(News::Cleared));
        let Some(News::Request(told)) = all.next_summary().await else { panic!("one has come since") };
        assert_eq!(told.id, "2");
        capture.clear();
        for i in 0..COUNT + 5 {
            begin(&capture, &i.to_string());
        }
        assert_eq!(all.next_summary().await, Some(News::Cleared));
        assert_eq!(all.next_summary().await, Some(News::Missed(5)));
    }

    #[tokio::test]
    async fn what_is_over_can_be_cleared_and_nobody_misses_it() {
        let capture = capture();
        let mut all = capture.read(Since::Start).twice();
        let (over, open) = (begin(&capture, "1"), begin(&capture, "2"));
        over.whole(&Bytes::new());
        over.ended(Some(StatusCode::OK), Duration::ZERO, None);
        capture.clear();
        assert_eq!(all.next_summary().await, Some(News::Cleared));
        let Some(News::Request(told)) = all.next_summary().await else { panic!("one is under way") };
        assert_eq!(told.id, "2");
        let ids: Vec<_> = capture.kept().into_iter().map(|summary| summary.id).collect();
        assert_eq!(ids, ["2"]);
        assert!(capture.get("1").is_none() && capture.exchange("1").is_none());
        let mut late = capture.read(Since::Start);
        open.whole(&Bytes::new());
        open.ended(Some(StatusCode::CREATED), Duration::ZERO, None);
        let Some(News::Request(told)) = all.next_summary().await else { panic!("it is over") };
        assert_eq!((told.id.as_str(), told.status), ("2", Some(201)));
        assert_eq!(request(&mut late).await.id, "2");
        // The numbers of the others stay.
        begin(&capture, "3").whole(&Bytes::new());
        assert_eq!(request(&mut late).await.seq, 2);
        consistent(&capture);
    }

    #[test]
    fn what_is_in_no_history_is_listed_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let stored = Capture::stored(Place::new(directory.path().join("relay/history.db")), Limits::default());
        for (capture, is_stored) in [(capture(), false), (stored, true)] {
            let over = begin(&capture, "1");
            over.data(b"its Body");
            over.ended(Some(StatusCode::OK), Duration::ZERO, None);
            begin(&capture, "2").data(b"another");
            capture.flush();
            let listed = |query: Query| {
                let found = capture.unstored(&query).into_iter();
                found.map(|summary| summary.id).collect::<Vec<_>>().join(" ")
            };
            let (both, first) = if is_stored { ("2", "") } else { ("2 1", "1") };
            let text = |text: &str| Query { text: Some(text.to_owned()), ..Query::default() };
            assert_eq!((listed(Query::default()).as_str(), listed(text("HOOKS?a")).as_str()), (both, both));
            assert_eq!((listed(text("Body")).as_str(), listed(text("body")).as_str()), (first, ""));
            assert_eq!(listed(text("another")), "", "whoever brings it would wait");
            assert_eq!(listed(Query { status: Some(StatusPattern::Class(2)), ..Query::default() }), first);
            assert_eq!(listed(Query { status: Some(StatusPattern::Error), ..Query::default() }), "");
        }
    }

    #[test]
    fn of_a_long_body_that_is_stored_only_the_beginning_stays_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path().join("relay/history.db"));
        let (history, body) = (History::of(place.clone()), vec![b'x'; 8 << 20]);
        let stored = Capture::stored(place, Limits::default());
        for (capture, is_stored) in [(Capture::within(Bounds::default()), false), (stored, true)] {
            for (id, bytes) in [("1", &body[..]), ("2", b"short")] {
                let recording = begin(&capture, id);
                recording.data(bytes);
                recording.whole(&Bytes::new());
                recording.ended(None, Duration::ZERO, None);
            }
            capture.flush();
            let held = capture.0.held.load(Relaxed);
            assert_eq!(held < 2 * SHOWN, is_stored, "{held}");
            let shown = capture.get("1").unwrap();
            assert_eq!((shown.body.len(), shown.body_size, shown.body_truncated), (SHOWN, body.len() as u64, true));
            let bytes = |id| {
                let (exchange, is_whole) = capture.exchange(id).unwrap();
                (exchange.request.body.len(), exchange.request.body_truncated, is_whole)
            };
            assert!(capture.has("1") && !capture.has("3"));
            let long = if is_stored { (SHOWN, true, false) } else { (body.len(), false, true) };
            assert_eq!((bytes("1"), bytes("2")), (long, (5, false, true)));
            let stored = history.get("1").unwrap().map(|exchange| exchange.request.body.len());
            assert_eq!(stored, Some(body.len()).filter(|_| is_stored));
        }
    }

    /// The disk may hang while one is being stored.
    #[test]
    fn who_looks_for_one_waits_for_no_other() {
        let capture = capture();
        begin(&capture, "1").whole(&Bytes::new());
        begin(&capture, "2").whole(&Bytes::new());
        let kept = capture.0.ring().get(0).unwrap().clone();
        let held = kept.entry();
        let (done, waits) = std::sync::mpsc::channel();
        let looks = capture.clone();
        std::thread::spawn(move || {
            let found = looks.get("2").map(|found| found.id);
            looks.read(Since::Time { at_ms: u64::MAX });
            begin(&looks, "3");
            done.send(found).unwrap();
        });
        assert_eq!(waits.recv_timeout(Duration::from_secs(10)), Ok(Some("2".to_owned())));
        drop(held);
    }

    #[test]
    fn who_waits_for_the_disk_waits_only_for_what_has_come() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        // One that takes everything, and one where nothing can be stored.
        for file in ["relay/history.db", "file/history.db"] {
            let capture = Capture::stored(Place::new(directory.path().join(file)), Limits::default());
            let (stop, flushes) = (Arc::new(AtomicBool::new(false)), capture.clone());
            let busy = std::thread::spawn({
                let (capture, stop) = (capture.clone(), stop.clone());
                move || {
                    for i in 0_u64.. {
                        begin(&capture, &i.to_string()).ended(None, Duration::ZERO, None);
                        if stop.load(Relaxed) {
                            break;
                        }
                    }
                }
            });
            let (done, waits) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                (0..5).for_each(|_| flushes.flush());
                done.send(()).unwrap();
            });
            let flushed = waits.recv_timeout(Duration::from_secs(20));
            stop.store(true, Relaxed);
            busy.join().unwrap();
            assert_eq!(flushed, Ok(()), "{file}");
        }
    }

    /// Whatever comes while a reader is about to wait is told of.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_between_looking_and_waiting() {
        for _ in 0..50 {
            let capture = capture();
            let mut reader = capture.read(Since::Start);
            let writer = tokio::spawn(async move {
                for i in 0..100 {
                    let recording = begin(&capture, &i.to_string());
                    tokio::task::yield_now().await;
                    recording.whole(&Bytes::new());
                }
            });
            for i in 0..100 {
                assert_eq!(request(&mut reader).await.seq, i);
            }
            writer.await.unwrap();
        }
    }

    #[test]
    fn odd_values_of_headers_are_text() {
        assert_eq!((text("é".as_bytes()).as_str(), text(b"\xe9\x9b").as_str()), ("é", "é\u{9b}"));
    }

    #[test]
    fn news_survive_their_way_through_a_socket() {
        let capture = capture();
        let recording = begin(&capture, "1");
        recording.data(b"\xff\x00");
        recording.whole(&Bytes::new());
        let news = {
            let ring = capture.0.ring();
            let entry = ring.get(0).unwrap().entry();
            News::Request(captured(0, &entry, entry.decode().unwrap()))
        };
        let text = serde_json::to_string(&news).unwrap();
        assert_eq!(serde_json::from_str::<News>(&text).unwrap(), news);
    }
}
