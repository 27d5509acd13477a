//! The multiplexer: many exchanges over one session, as a state machine without sockets and without a clock.
//!
//! Drive it like this:
//! - hand every WebSocket message to [`Mux::handle_message`], and wake-ups of the clock to [`Mux::handle_timeout`];
//! - while the link can take bytes, call [`Mux::poll_transmit`] and send what it appended as one message;
//! - sleep until [`Mux::timeout`];
//! - take [`Mux::poll_event`] for what concerns the session, and close the link once [`Mux::is_finished`].
//!
//! Applications use streams by their id: [`Mux::open`], [`Mux::send_head`], [`Mux::poll_send`], [`Mux::finish`],
//! [`Mux::reset`] and [`Mux::poll_recv`], and [`Mux::release`] when they are done.
//!
//! A stream, seen from one end:
//!
//! ```text
//!                 both halves ended,
//!                 or a reset in either direction
//!   open ─────────────────────────────────────────▶ closed ──────────────────▶ gone
//!        holds a stream number, credit and a place         the application
//!        among `max_streams`                               releases it
//! ```
//!
//! What a peer can make us hold, per session: [`Limits::max_streams`] streams; bodies within a budget of 32 MiB
//! (`window.rs` has the arithmetic); 8 MiB of unread heads; 256 KiB of unread session messages; one pong; and as many closed
//! streams that the application has not released. What we hold to send: 1 MiB of bodies plus 16 KiB for each stream.

mod half;
mod window;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

pub use self::half::Item;
use self::half::{Credits, RecvHalf, RecvState, SendHalf, SendState, Turn, note, own};
use self::window::{Budget, Window};
pub use self::window::{FLOOR, INITIAL};
use crate::frame::{Frame, FrameError, GoAway, MAX_DATA, MAX_MESSAGE, Reset, SessionKind, StreamId};

/// Which end of a session a multiplexer is. Only the relay opens streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that opens streams.
    Relay,
    /// The end that answers them, and that keeps the session alive.
    Client,
}

/// The limits of one session.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most streams open at once. The budget's floors are made for 1,024.
    pub max_streams: u32,
    /// The client pings at least this often.
    pub heartbeat: Duration,
    /// The link is dead after this much silence.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_streams: 1024, heartbeat: Duration::from_secs(10), silence: Duration::from_secs(15) }
    }
}

/// How much a message gathers before it is sent: large enough that many small exchanges share one system call, small
/// enough that the next one waits for no more than four frames of bulk.
const BATCH: usize = 64 * 1024;

/// Body bytes that all streams together may queue; beyond it each may queue one frame.
const SEND_BUFFER: usize = 1024 * 1024;

/// What one stream may queue.
const STREAM_BUFFER: usize = 64 * 1024;

/// Unread bytes of heads and trailers of all streams together.
const UNREAD_HEADS: usize = 8 * 1024 * 1024;

/// Most interim heads of one stream: that a sender writes, and that a receiver holds unread.
pub const MAX_INTERIM: usize = 8;

/// Session messages that nobody has taken yet: a client may bind and unbind all its tunnels at once.
const UNREAD_MESSAGES: usize = 256;

/// Bytes of those.
const UNREAD_MESSAGE_BYTES: usize = MAX_MESSAGE;

/// The round trip is measured so often at once where a session begins. Later ones pass through what the link is full of, and
/// the very first waits for what a peer does with a Hello or a Welcome.
const FIRST_PINGS: u64 = 4;

/// The least time between two measurements of the round trip while bodies flow.
const PING_PAUSE: Duration = Duration::from_secs(1);

/// What concerns the session and not one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream. Whoever takes this owns the stream and must release it.
    Opened(StreamId),
    /// A session message came.
    Session(SessionKind, Bytes),
    /// The peer ends the session.
    GoAway {
        /// Why.
        reason: GoAway,
        /// Streams that are open may finish.
        drain: bool,
        /// What a person should read.
        text: String,
    },
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The peer did what the protocol does not allow.
    #[error("the other end broke the protocol ({reason}): {detail}")]
    Violation {
        /// The code that the peer was sent.
        reason: GoAway,
        /// What it did.
        detail: String,
    },
    /// Nothing was heard from the peer for too long.
    #[error("nothing was heard from the other end for {} s", .0.as_secs())]
    Silent(Duration),
    /// We ended it.
    #[error("ended by this end ({0})")]
    Local(GoAway),
    /// The peer ended it.
    #[error("ended by the other end ({reason}): {text}")]
    Remote {
        /// Why.
        reason: GoAway,
        /// What a person should read.
        text: String,
    },
    /// The link broke below us.
    #[error("the link broke: {0}")]
    Link(String),
}

/// Why nothing more can be sent or received on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset it.
    #[error("the other end reset the stream: {0}")]
    Reset(Reset),
    /// The session ended.
    #[error("the session ended")]
    SessionEnded,
    /// It has already ended, by our own doing.
    #[error("the stream has already ended")]
    Closed,
}

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The session ends, or has ended.
    #[error("the session takes no more streams")]
    Ending,
    /// [`Limits::max_streams`] are open, or ended ones that nobody has read hold what more would need.
    #[error("the session is full: at most {0} streams, and 16 MiB of ended ones that nobody has read")]
    TooMany(u32),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    limits: Limits,
    streams: HashMap<StreamId, Stream, BuildHasherDefault<IdHasher>>,
    /// Streams in `streams` that are not closed.
    open: u32,
    /// The last stream that was opened, from either end's point of view.
    last: Option<StreamId>,
    /// The last stream whose opening is written, the last one that the peer is known to have got, and the last one of
    /// which somebody wants to know that. Used by the relay only.
    told: Option<StreamId>,
    seen: Option<StreamId>,
    asked: Option<StreamId>,
    /// What we may receive.
    budget: Budget,
    /// What the client lets the relay send as initial credit. Used by the relay only.
    peer_budget: Budget,
    /// Body bytes queued on all streams.
    queued: usize,
    unread_heads: usize,
    /// Body bytes that may still arrive on streams that we reset, before the peer knew.
    strays: u64,
    ready: VecDeque<StreamId>,
    control: Control,
    events: VecDeque<Event>,
    unread_messages: usize,
    event_waker: Option<Waker>,
    heard: Instant,
    pinged: Option<Ping>,
    last_ping: Instant,
    ping_count: u64,
    /// The last ping that was answered.
    answered: u64,
    rtt: Option<Duration>,
    /// No streams are opened any more.
    draining: Option<Ended>,
    /// The peer has said that it drains; a relay that has opens no more streams.
    peer_drains: bool,
    ended: Option<Ended>,
}

/// Frames that go before all streams. Each is bounded: one ping, one pong, one reset and one grant for each stream,
/// a few session messages, one farewell.
#[derive(Debug, Default)]
struct Control {
    ping: Option<u64>,
    pong: Option<u64>,
    resets: VecDeque<(StreamId, Reset)>,
    grants: VecDeque<StreamId>,
    messages: VecDeque<(SessionKind, Bytes)>,
    go_away: Option<Frame>,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    nonce: u64,
    sent: Instant,
    /// [`Mux::told`] when it was written: whoever answers has got those.
    told: Option<StreamId>,
}

#[derive(Debug)]
struct Stream {
    send: SendHalf,
    recv: RecvHalf,
    /// What the peer's windows gave it, and what the pools are given back at the end.
    credits: Credits,
    /// Credit that is due to the peer and not written yet.
    grant: u32,
    phase: Phase,
    released: bool,
    /// What it is for, where its opener wants to [cut](Mux::cut) all that are.
    of: u32,
    /// Who waits for nothing but the stream's end before its time.
    watcher: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// We reset it; the frame is not written yet. Where our end was `written` before, the peer closes the stream with
    /// its own end, whether our reset has reached it or not.
    Resetting {
        written: bool,
    },
    /// Both halves ended, or it was reset.
    Closed(Option<Reset>),
}

impl Mux {
    /// A multiplexer at one end of a session that has just been agreed on. Pings at once, to learn the round trip.
    pub fn new(side: Side, limits: Limits, now: Instant) -> Self {
        let mut mux = Self {
            side,
            limits,
            streams: HashMap::default(),
            open: 0,
            last: None,
            told: None,
            seen: None,
            asked: None,
            budget: Budget::new(),
            peer_budget: Budget::new(),
            queued: 0,
            unread_heads: 0,
            strays: 0,
            ready: VecDeque::new(),
            control: Control::default(),
            events: VecDeque::new(),
            unread_messages: 0,
            event_waker: None,
            heard: now,
            pinged: None,
            last_ping: now,
            ping_count: 0,
            answered: 0,
            rtt: None,
            draining: None,
            peer_drains: false,
            ended: None,
        };
        mux.ping(now);
        mux
    }

    // --- What comes from the link -------------------------------------------------------------------------------

    /// Takes in one message from the peer.
    ///
    /// # Errors
    /// The session has ended: the peer broke the protocol. A farewell is ready to be transmitted.
    pub fn handle_message(&mut self, message: Bytes, now: Instant) -> Result<(), Ended> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        self.heard = now;
        let len = message.len();
        self.frames(message, len, now).map_err(|violation| {
            let ended = Ended::Violation { reason: violation.reason, detail: violation.detail };
            self.end_with_farewell(ended.clone());
            ended
        })
    }

    fn frames(&mut self, mut message: Bytes, len: usize, now: Instant) -> Result<(), Violation> {
        if len > MAX_MESSAGE {
            return Err(Violation::new(GoAway::Limit, format!("a message of {len} bytes")));
        }
        if len == 0 {
            return Err(Violation::protocol("an empty message"));
        }
        while let Some(frame) = Frame::decode(&mut message)? {
            self.handle_frame(frame, len, now)?;
            if self.ended.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn handle_frame(&mut self, frame: Frame, message_len: usize, now: Instant) -> Result<(), Violation> {
        if let Frame::Head { stream, .. }
        | Frame::Data { stream, .. }
        | Frame::End { stream, .. }
        | Frame::Reset { stream, .. }
        | Frame::Credit { stream, .. } = frame
        {
            self.seen = self.seen.max(Some(stream));
        }
        match frame {
            Frame::Open { stream, request_credit, response_credit, last, head } => {
                let credits = Credits { request: request_credit, response: response_credit };
                self.handle_open(stream, credits, last, own(head, message_len), now)
            }
            Frame::Head { stream, interim, last, head } => {
                if self.side == Side::Client {
                    return Err(Violation::protocol("a response head from the relay"));
                }
                self.with_receiver(stream, last, |mux, id| mux.handle_head(id, interim, last, own(head, message_len)))
            }
            Frame::Data { stream, last, bytes } => {
                let len = bytes.len() as u64;
                if self.receiver(stream).is_some() {
                    return self.handle_data(stream, last, bytes, message_len);
                }
                self.handle_stray(stream, last)?;
                self.strays = self.strays.checked_sub(len).ok_or_else(|| {
                    Violation::new(GoAway::FlowControl, format!("{len} bytes for stream {stream}, which has ended"))
                })?;
                Ok(())
            }
            Frame::End { stream, trailers } => {
                self.with_receiver(stream, true, |mux, id| mux.handle_end(id, own(trailers, message_len)))
            }
            Frame::Reset { stream, reset } => {
                self.check_known(stream)?;
                self.handle_reset(stream, reset);
                Ok(())
            }
            Frame::Credit { stream, bytes } => {
                self.check_known(stream)?;
                self.handle_credit(stream, bytes)
            }
            Frame::Ping(nonce) => {
                self.control.pong = Some(nonce);
                Ok(())
            }
            Frame::Pong(nonce) => {
                if let Some(ping) = self.pinged.take_if(|ping| ping.nonce == nonce) {
                    self.answered = nonce;
                    let rtt = now.saturating_duration_since(ping.sent);
                    self.rtt = Some(self.rtt.map_or(rtt, |best| best.min(rtt)));
                    self.seen = self.seen.max(ping.told);
                    if nonce < FIRST_PINGS {
                        self.ping(now);
                    }
                    self.ask(now);
                }
                Ok(())
            }
            Frame::GoAway { reason, drain, text } => {
                let ended = Ended::Remote { reason, text: text.clone() };
                // Who drains says so once; saying it again adds nothing that an event should be kept for.
                if !(drain && self.peer_drains) {
                    self.push_event(Event::GoAway { reason, drain, text });
                }
                if !drain {
                    self.end(ended);
                    return Ok(());
                }
                if self.side == Side::Relay && self.draining.is_none() {
                    // The client must know which of our streams was the last before it can go.
                    let farewell = Frame::GoAway { reason, drain, text: String::new() };
                    self.control.go_away = Some(farewell);
                }
                self.peer_drains = true;
                self.draining.get_or_insert(ended);
                Ok(())
            }
            Frame::Session(kind, payload) => {
                self.unread_messages += 1;
                let unread = self.events.iter().map(|event| match event {
                    Event::Session(_, payload) => payload.len(),
                    Event::Opened(_) | Event::GoAway { .. } => 0,
                });
                let bytes = payload.len() + unread.sum::<usize>();
                if self.unread_messages > UNREAD_MESSAGES || bytes > UNREAD_MESSAGE_BYTES {
                    return Err(Violation::new(GoAway::Limit, "too many session messages at once".into()));
                }
                self.push_event(Event::Session(kind, own(payload, message_len)));
                if self.ping_count == 0 {
                    self.ping(now);
                }
                Ok(())
            }
            Frame::Skipped => Ok(()),
        }
    }

    fn handle_open(
        &mut self,
        id: StreamId,
        credits: Credits,
        last: bool,
        head: Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        if self.side == Side::Relay {
            return Err(Violation::protocol("a client cannot open streams"));
        }
        if self.last >= Some(id) {
            return Err(Violation::protocol(&format!("stream {id} was opened before")));
        }
        if self.open >= self.limits.max_streams {
            return Err(Violation::new(GoAway::Limit, format!("more than {} streams", self.limits.max_streams)));
        }
        if !self.budget.accept_initial(credits.request) {
            return Err(Violation::new(GoAway::FlowControl, format!("{} bytes of initial credit", credits.request)));
        }
        // The peer cannot know what our application leaves unread, so it is refused and not accused.
        let refused = !self.has_room() || self.unread_heads + head.len() > UNREAD_HEADS;
        self.last = Some(id);
        self.open += 1;
        let mut stream = Stream {
            send: SendHalf::new(credits.response, None),
            recv: RecvHalf::new(Window::new(credits.request, now)),
            credits,
            grant: 0,
            phase: Phase::Open,
            released: false,
            of: 0,
            watcher: None,
        };
        if refused {
            stream.released = true;
            self.streams.insert(id, stream);
            self.reset(id, Reset::Refused);
            return Ok(());
        }
        self.unread_heads += head.len();
        stream.recv.push_head(head, false);
        if last {
            stream.recv.push_end(Bytes::new());
            stream.recv.window.end(&mut self.budget);
        }
        self.streams.insert(id, stream);
        self.push_event(Event::Opened(id));
        Ok(())
    }

    /// Whether one more stream fits beside those that are open, and those that have closed and are not released.
    fn has_room(&self) -> bool {
        let closed = self.streams.len().saturating_sub(self.open as usize);
        closed < self.limits.max_streams.max(16) as usize && self.budget.has_floor(self.open, self.limits.max_streams)
    }

    fn handle_head(&mut self, id: StreamId, interim: bool, last: bool, head: Bytes) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let recv = &mut stream.recv;
        if recv.state != RecvState::Head {
            return Err(Violation::protocol(&format!("a second head on stream {id}")));
        }
        if interim && recv.interim_heads() >= MAX_INTERIM {
            return Err(Violation::new(GoAway::Limit, format!("too many interim heads on stream {id}")));
        }
        if self.unread_heads + head.len() > UNREAD_HEADS {
            return self.drop_stream(id, last);
        }
        self.unread_heads += head.len();
        recv.push_head(head, interim);
        wake(&mut recv.waker);
        if last { self.handle_end(id, Bytes::new()) } else { Ok(()) }
    }

    /// Gives a stream up whose heads find no room. The peer cannot know what others leave unread, so the session lives.
    fn drop_stream(&mut self, id: StreamId, last: bool) -> Result<(), Violation> {
        self.reset(id, Reset::Internal);
        self.handle_stray(id, last)
    }

    fn handle_data(&mut self, id: StreamId, last: bool, bytes: Bytes, message_len: usize) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let recv = &mut stream.recv;
        if recv.state != RecvState::Body {
            return Err(Violation::protocol(&format!("a body before its head on stream {id}")));
        }
        let len = bytes.len();
        if !recv.window.receive(len) {
            return Err(Violation::new(GoAway::FlowControl, format!("{len} bytes beyond the credit of stream {id}")));
        }
        if !stream.released {
            recv.push_data(bytes, message_len);
            wake(&mut recv.waker);
        }
        if last { self.handle_end(id, Bytes::new()) } else { Ok(()) }
    }

    fn handle_end(&mut self, id: StreamId, trailers: Bytes) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let recv = &mut stream.recv;
        if recv.state != RecvState::Body {
            return Err(Violation::protocol(&format!("an end before the head of stream {id}")));
        }
        if self.unread_heads + trailers.len() > UNREAD_HEADS {
            return self.drop_stream(id, true);
        }
        self.unread_heads += trailers.len();
        recv.push_end(trailers);
        recv.window.end(&mut self.budget);
        stream.grant = 0;
        wake(&mut recv.waker);
        self.close_if_ended(id);
        Ok(())
    }

    fn handle_reset(&mut self, id: StreamId, reset: Reset) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.phase {
            Phase::Open => {}
            // Both ends reset it at once: ours need not be sent.
            Phase::Resetting { .. } => self.control.resets.retain(|(other, _)| *other != id),
            Phase::Closed(_) => return,
        }
        self.queued -= stream.send.clear();
        stream.send.opening = None;
        stream.recv.window.end(&mut self.budget);
        wake(&mut stream.send.waker);
        wake(&mut stream.recv.waker);
        wake(&mut stream.watcher);
        self.close(id, Some(reset));
    }

    fn handle_credit(&mut self, id: StreamId, bytes: u32) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.phase != Phase::Open {
            return Ok(());
        }
        if !stream.send.grant(bytes) {
            return Err(Violation::new(GoAway::FlowControl, format!("credit beyond 4 GiB on stream {id}")));
        }
        wake(&mut stream.send.waker);
        self.schedule(id);
        Ok(())
    }

    /// Runs `then` on a stream whose peer may still send; ignores frames that crossed our reset.
    fn with_receiver(
        &mut self,
        id: StreamId,
        last: bool,
        then: impl FnOnce(&mut Self, StreamId) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        if self.receiver(id).is_some() { then(self, id) } else { self.handle_stray(id, last) }
    }

    /// A frame that nobody receives any more. With its `last` one the peer may have closed a stream that we still want
    /// to reset: it counts that stream no longer, so neither must we, and it need not hear of the reset.
    fn handle_stray(&mut self, id: StreamId, last: bool) -> Result<(), Violation> {
        self.check_known(id)?;
        if last && self.streams.get(&id).is_some_and(|s| s.phase == Phase::Resetting { written: true }) {
            self.control.resets.retain(|(other, _)| *other != id);
            self.close(id, None);
        }
        Ok(())
    }

    fn receiver(&mut self, id: StreamId) -> Option<&mut RecvHalf> {
        let stream = self.streams.get_mut(&id)?;
        (stream.phase == Phase::Open && stream.recv.state != RecvState::Ended).then_some(&mut stream.recv)
    }

    /// A frame for a stream that never was is a violation; for one that has ended it crossed our own.
    fn check_known(&self, id: StreamId) -> Result<(), Violation> {
        if self.last >= Some(id) { Ok(()) } else { Err(Violation::protocol(&format!("stream {id} was never opened"))) }
    }

    fn push_event(&mut self, event: Event) {
        self.events.push_back(event);
        wake(&mut self.event_waker);
    }

    // --- What goes to the link ----------------------------------------------------------------------------------

    /// Appends the next message to `out`: control frames, then each stream's share in turn, until 64 KiB are
    /// gathered. Returns false when there was nothing to say.
    pub fn poll_transmit(&mut self, out: &mut BytesMut) -> bool {
        let before = out.len();
        if self.queued > 0 {
            // Once, and not frame by frame.
            out.reserve((self.queued + 1024).min(BATCH + 2 * MAX_DATA));
        }
        self.write_control(out);
        while out.len() - before < BATCH {
            let Some(id) = self.ready.pop_front() else { break };
            self.write_stream(id, out);
        }
        self.write_farewell(out);
        for list in [&mut self.ready, &mut self.control.grants] {
            if list.is_empty() && list.capacity() > 64 {
                *list = VecDeque::new();
            }
        }
        out.len() > before
    }

    /// Whether [`Self::poll_transmit`] has something to say.
    pub fn has_output(&self) -> bool {
        let Control { ping, pong, resets, grants, messages, go_away } = &self.control;
        let control = ping.is_some() || pong.is_some() || go_away.is_some();
        !self.ready.is_empty() || control || !(resets.is_empty() && grants.is_empty() && messages.is_empty())
    }

    fn write_control(&mut self, out: &mut BytesMut) {
        let most = out.len() + BATCH;
        // First of all, because a session begins with them: Hello and Welcome.
        while out.len() < most
            && let Some((kind, payload)) = self.control.messages.pop_front()
        {
            Frame::Session(kind, payload).encode(out);
        }
        if let Some(nonce) = self.control.pong.take() {
            Frame::Pong(nonce).encode(out);
        }
        if let Some(nonce) = self.control.ping.take() {
            Frame::Ping(nonce).encode(out);
            if let Some(ping) = &mut self.pinged {
                ping.told = self.told;
            }
        }
        while out.len() < most
            && let Some((stream, reset)) = self.control.resets.pop_front()
        {
            Frame::Reset { stream, reset }.encode(out);
            self.close(stream, None);
        }
        while out.len() < most
            && let Some(stream) = self.control.grants.pop_front()
        {
            if let Some(bytes) = self.streams.get_mut(&stream).map(|s| std::mem::take(&mut s.grant)).filter(|b| *b > 0)
            {
                Frame::Credit { stream, bytes }.encode(out);
            }
        }
    }

    /// A farewell comes behind the streams that were opened before it, so that whoever reads it has seen them all.
    fn write_farewell(&mut self, out: &mut BytesMut) {
        if self.control.go_away.is_some()
            && self.streams.values().all(|stream| stream.send.opening.is_none())
            && let Some(farewell) = self.control.go_away.take()
        {
            farewell.encode(out);
        }
    }

    fn write_stream(&mut self, id: StreamId, out: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.send.queued();
        let opens = stream.send.opening.is_some();
        let turn = stream.send.write(id, out);
        if opens {
            self.told = Some(id);
        }
        let sent = before - stream.send.queued();
        self.queued -= sent;
        if sent > 0 {
            wake(&mut stream.send.waker);
        }
        stream.send.scheduled = turn == Turn::More;
        match turn {
            Turn::More => self.ready.push_back(id),
            Turn::Waiting => {}
            // The application is content with half a request: its response is out, so the peer may stop now.
            Turn::Ended if stream.released && stream.recv.state != RecvState::Ended => self.reset(id, Reset::Cancelled),
            Turn::Ended => self.close_if_ended(id),
        }
    }

    fn schedule(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.send.scheduled
            && stream.send.is_ready()
        {
            stream.send.scheduled = true;
            self.ready.push_back(id);
        }
    }

    // --- Time ---------------------------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn timeout(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let dead = self.heard + self.limits.silence;
        match self.side {
            Side::Client => Some(dead.min(self.last_ping + self.limits.heartbeat)),
            Side::Relay => Some(dead),
        }
    }

    /// Pings, and gives up on a peer that stays silent. The client pings at each heartbeat, also while it hears much:
    /// it may have nothing else to say, and the relay hears a heartbeat only from what is said.
    pub fn handle_timeout(&mut self, now: Instant) {
        let silent = now.saturating_duration_since(self.heard);
        if self.ended.is_some() {
        } else if silent >= self.limits.silence {
            self.end_with_farewell(Ended::Silent(silent));
        } else if self.side == Side::Client && now >= self.last_ping + self.limits.heartbeat {
            self.ping(now);
        }
    }

    /// Asks the peer for a sign of life now. The number of this ping, for [`Self::is_answered`].
    pub fn ping(&mut self, now: Instant) -> u64 {
        self.ping_count += 1;
        self.pinged = Some(Ping { nonce: self.ping_count, sent: now, told: None });
        self.last_ping = now;
        self.control.ping = Some(self.ping_count);
        self.ping_count
    }

    /// Whether the peer has answered a ping, or a later one. It has then taken in every session message that was queued
    /// before it.
    pub const fn is_answered(&self, ping: u64) -> bool {
        self.answered >= ping
    }

    /// Asks the peer for a sign that it has got a stream, where it has given none yet: see [`Self::has_seen`].
    pub fn ask_for(&mut self, id: StreamId, now: Instant) {
        self.asked = self.asked.max(Some(id));
        self.ask(now);
    }

    /// One question at a time, because only the latest is answered: a newer one would make this one worthless.
    fn ask(&mut self, now: Instant) {
        if self.asked > self.seen && self.pinged.is_none() && self.ended.is_none() {
            self.ping(now);
        }
    }

    /// Whether the peer is known to have got a stream that we opened, also after the session's end: it has said something
    /// of this stream or a later one, or has answered a ping that came behind it.
    pub fn has_seen(&self, id: StreamId) -> bool {
        self.seen >= Some(id)
    }

    /// When the peer was last heard.
    pub const fn last_heard(&self) -> Instant {
        self.heard
    }

    /// The shortest round trip seen on this session.
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    // --- The session --------------------------------------------------------------------------------------------

    /// The next thing that concerns the session.
    pub fn poll_event(&mut self, cx: &Context<'_>) -> Poll<Event> {
        match self.events.pop_front() {
            Some(event) => {
                if matches!(event, Event::Session(..)) {
                    self.unread_messages -= 1;
                }
                Poll::Ready(event)
            }
            None => {
                note(&mut self.event_waker, cx);
                Poll::Pending
            }
        }
    }

    /// Queues a session message.
    ///
    /// # Errors
    /// [`StreamError::SessionEnded`], and [`StreamError::Closed`] when too many wait to be written already.
    pub fn send_message(&mut self, kind: SessionKind, payload: Bytes) -> Result<(), StreamError> {
        if self.ended.is_some() {
            return Err(StreamError::SessionEnded);
        }
        if self.control.messages.len() >= UNREAD_MESSAGES {
            return Err(StreamError::Closed);
        }
        self.control.messages.push_back((kind, payload));
        Ok(())
    }

    /// Tells the peer that the session ends; with `drain` after the streams that are open, else at once.
    pub fn go_away(&mut self, reason: GoAway, drain: bool, text: &str) {
        if self.ended.is_some() {
            return;
        }
        self.control.go_away = Some(Frame::GoAway { reason, drain, text: text.to_owned() });
        if drain {
            self.draining = Some(Ended::Local(reason));
        } else {
            self.end(Ended::Local(reason));
        }
    }

    /// The link is gone.
    pub fn link_lost(&mut self, why: String) {
        self.end(Ended::Link(why));
    }

    /// Why the session has ended, once it has. What is ready to be transmitted should still be.
    pub const fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Whether either end has said that it takes no more streams.
    pub const fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether the link may be closed: the session has ended, or has drained, and everything is written. A client that
    /// drains waits until the relay says so too: streams that it has opened may be on their way until then.
    pub fn is_finished(&self) -> bool {
        let last_stream_is_known = self.side == Side::Relay || self.peer_drains;
        let drained = self.draining.is_some() && last_stream_is_known && self.streams.is_empty();
        (self.ended.is_some() || drained) && !self.has_output()
    }

    /// Why the link may be closed, for whoever closes it.
    pub fn epitaph(&self) -> Option<Ended> {
        self.ended.clone().or_else(|| self.draining.clone())
    }

    /// Streams that are open.
    pub const fn open_streams(&self) -> u32 {
        self.open
    }

    /// Wakes everybody who waits for anything.
    fn end(&mut self, ended: Ended) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ended);
        self.ready.clear();
        self.control.resets.clear();
        self.control.grants.clear();
        self.open = 0;
        self.queued = 0;
        for stream in self.streams.values_mut() {
            stream.send.clear();
            stream.send.opening = None;
            wake(&mut stream.send.waker);
            wake(&mut stream.recv.waker);
            wake(&mut stream.watcher);
        }
        let released: Vec<_> = self.streams.iter().filter(|(_, s)| s.released).map(|(id, _)| *id).collect();
        released.into_iter().for_each(|id| self.remove(id));
        wake(&mut self.event_waker);
    }

    fn end_with_farewell(&mut self, ended: Ended) {
        let reason = match &ended {
            Ended::Violation { reason, .. } => *reason,
            Ended::Silent(_) => GoAway::Silent,
            _ => GoAway::Internal,
        };
        self.control.go_away = Some(Frame::GoAway { reason, drain: false, text: ended.to_string() });
        self.end(ended);
    }

    // --- Streams ------------------------------------------------------------------------------------------------

    /// Opens a stream with a request's head. Only the relay may.
    ///
    /// # Errors
    /// [`OpenError`]: the session ends, or is full.
    pub fn open(&mut self, head: Bytes, now: Instant) -> Result<StreamId, OpenError> {
        debug_assert_eq!(self.side, Side::Relay, "only the relay opens streams");
        if self.ended.is_some() || self.draining.is_some() {
            return Err(OpenError::Ending);
        }
        if self.open >= self.limits.max_streams || !self.has_room() {
            return Err(OpenError::TooMany(self.limits.max_streams));
        }
        let Some(id) = self.last.map_or(Some(StreamId::FIRST), StreamId::next) else {
            self.go_away(GoAway::Exhausted, true, "all stream numbers of this session are used up");
            return Err(OpenError::Ending);
        };
        self.last = Some(id);
        self.open += 1;
        let credits = Credits { request: self.peer_budget.take_initial(), response: self.budget.take_initial() };
        let mut stream = Stream {
            send: SendHalf::new(credits.request, Some(credits)),
            recv: RecvHalf::new(Window::new(credits.response, now)),
            credits,
            grant: 0,
            phase: Phase::Open,
            released: false,
            of: 0,
            watcher: None,
        };
        stream.send.push_head(head, false);
        self.streams.insert(id, stream);
        self.schedule(id);
        Ok(id)
    }

    /// Queues a response's head. Only the client may; an interim one can be followed by more, and is dropped beyond
    /// [`MAX_INTERIM`]: it informs, and the peer holds no more of them.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Closed`] also for a second final head.
    pub fn send_head(&mut self, id: StreamId, head: Bytes, interim: bool) -> Result<(), StreamError> {
        let stream = self.sender(id)?;
        if stream.send.state != SendState::Head {
            return Err(StreamError::Closed);
        }
        if stream.send.push_head(head, interim) {
            self.schedule(id);
        }
        Ok(())
    }

    /// Queues what of `bytes` the peer's credit and our buffer allow, and is ready once all of it is queued.
    ///
    /// # Errors
    /// [`StreamError`]; what is left in `bytes` was not queued.
    pub fn poll_send(&mut self, id: StreamId, bytes: &mut Bytes, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let total = self.queued;
        let stream = match self.sender(id) {
            Ok(stream) if stream.send.state == SendState::Body => stream,
            Ok(_) => return Poll::Ready(Err(StreamError::Closed)),
            Err(error) => return Poll::Ready(Err(error)),
        };
        let room = if total < SEND_BUFFER { STREAM_BUFFER } else { MAX_DATA };
        let taken = stream.send.push_data(bytes, room.saturating_sub(stream.send.queued()));
        let done = bytes.is_empty();
        if !done {
            note(&mut stream.send.waker, cx);
        }
        self.queued += taken;
        self.schedule(id);
        if done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Queues the end of our direction, with trailers as [`message`](crate::message) encodes them, or empty.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Closed`] also before the final head.
    pub fn finish(&mut self, id: StreamId, trailers: Bytes) -> Result<(), StreamError> {
        let stream = self.sender(id)?;
        if stream.send.state != SendState::Body {
            return Err(StreamError::Closed);
        }
        stream.send.push_end(trailers);
        self.schedule(id);
        Ok(())
    }

    /// Waits until a stream's peer resets it or the session ends under it, for whoever works on something that would
    /// then be in vain.
    pub fn poll_reset(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Pending };
        match stream.phase {
            Phase::Closed(Some(reset)) => Poll::Ready(StreamError::Reset(reset)),
            Phase::Open if self.ended.is_some() => Poll::Ready(StreamError::SessionEnded),
            Phase::Open => {
                note(&mut stream.watcher, cx);
                Poll::Pending
            }
            // Our own doing, which its author knows of.
            Phase::Closed(None) | Phase::Resetting { .. } => Poll::Pending,
        }
    }

    /// Whether a stream's peer has reset it or the session has ended, for a sender that waits for something else.
    ///
    /// # Errors
    /// [`StreamError`] when so.
    pub fn check(&mut self, id: StreamId) -> Result<(), StreamError> {
        self.sender(id).map(|_| ())
    }

    /// The next piece of what the peer sends; `None` after its end.
    ///
    /// Bodies that arrived before a reset are readable before the error is; after the end of the peer's direction a
    /// reset is no error.
    ///
    /// # Errors
    /// [`StreamError`] when the peer's direction was cut short.
    pub fn poll_recv(
        &mut self,
        id: StreamId,
        now: Instant,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Item>, StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(StreamError::Closed)) };
        if matches!(stream.phase, Phase::Resetting { .. }) {
            return Poll::Ready(Err(StreamError::Closed));
        }
        let Some(item) = stream.recv.pop() else {
            return match (stream.recv.state, stream.phase) {
                (RecvState::Ended, _) => Poll::Ready(Ok(None)),
                (_, Phase::Closed(Some(reset))) => Poll::Ready(Err(StreamError::Reset(reset))),
                (_, Phase::Closed(None) | Phase::Resetting { .. }) => Poll::Ready(Err(StreamError::Closed)),
                (_, Phase::Open) if self.ended.is_some() => Poll::Ready(Err(StreamError::SessionEnded)),
                (_, Phase::Open) => {
                    note(&mut stream.recv.waker, cx);
                    Poll::Pending
                }
            };
        };
        self.unread_heads -= item.head_len();
        if let Item::Data(bytes) = &item
            && let Some(credit) = stream.recv.window.consume(bytes.len(), now, self.rtt, &mut self.budget)
            && self.ended.is_none()
        {
            if stream.grant == 0 {
                self.control.grants.push_back(id);
            }
            stream.grant = stream.grant.saturating_add(credit);
            // Windows are measured against the round trip, so it has to be known while bodies flow.
            if self.pinged.is_none() && now.saturating_duration_since(self.last_ping) >= PING_PAUSE {
                self.ping(now);
            }
        }
        Poll::Ready(Ok(Some(item)))
    }

    /// Ends both directions now.
    pub fn reset(&mut self, id: StreamId, reset: Reset) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.phase != Phase::Open || self.ended.is_some() {
            return;
        }
        let unsent = stream.send.opening.is_some();
        let written = stream.send.state == SendState::Ended;
        self.queued -= stream.send.clear();
        self.unread_heads -= stream.recv.unread_heads();
        stream.recv.cut();
        stream.grant = 0;
        wake(&mut stream.send.waker);
        wake(&mut stream.recv.waker);
        wake(&mut stream.watcher);
        if unsent {
            // The peer has never heard of it, and need not.
            stream.send.opening = None;
            self.close(id, None);
            return;
        }
        self.strays += stream.recv.window.outstanding();
        stream.recv.window.clear(&mut self.budget);
        stream.phase = Phase::Resetting { written };
        self.control.resets.push_back((id, reset));
    }

    /// Says what a stream is for.
    pub fn label(&mut self, id: StreamId, of: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.of = of;
        }
    }

    /// Resets all streams that are [for](Self::label) this.
    pub fn cut(&mut self, of: u32, reset: Reset) {
        let open = self.streams.iter().filter(|(_, stream)| stream.of == of && stream.phase == Phase::Open);
        let open: Vec<StreamId> = open.map(|(id, _)| *id).collect();
        open.into_iter().for_each(|id| self.reset(id, reset));
    }

    /// The application lets go of a stream. What has not ended is reset as cancelled, but a response that is complete
    /// is written first, even where the rest of the request was not wanted.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let received = stream.recv.state == RecvState::Ended;
        let finished = match stream.send.state {
            SendState::Head | SendState::Body => false,
            SendState::Ending => received || self.side == Side::Client,
            SendState::Ended => received,
        };
        if stream.phase == Phase::Open && !finished {
            self.reset(id, Reset::Cancelled);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.released = true;
        self.unread_heads -= stream.recv.unread_heads();
        stream.recv.clear();
        if self.ended.is_some() || matches!(stream.phase, Phase::Closed(_)) {
            self.remove(id);
        }
    }

    /// A stream on which we may send.
    fn sender(&mut self, id: StreamId) -> Result<&mut Stream, StreamError> {
        let ended = self.ended.is_some();
        let stream = self.streams.get_mut(&id).ok_or(StreamError::Closed)?;
        match stream.phase {
            Phase::Closed(Some(reset)) => Err(StreamError::Reset(reset)),
            Phase::Closed(None) | Phase::Resetting { .. } => Err(StreamError::Closed),
            Phase::Open if ended => Err(StreamError::SessionEnded),
            Phase::Open => Ok(stream),
        }
    }

    fn close_if_ended(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(&id)
            && stream.phase == Phase::Open
            && stream.send.state == SendState::Ended
            && stream.recv.state == RecvState::Ended
        {
            self.close(id, None);
        }
    }

    fn close(&mut self, id: StreamId, reset: Option<Reset>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if matches!(stream.phase, Phase::Closed(_)) {
            return;
        }
        stream.phase = Phase::Closed(reset);
        stream.recv.window.close(&mut self.budget);
        self.open -= 1;
        self.budget.give_back_initial(stream.recv.window.initial());
        // The initial credit of requests is an account that both ends keep, so both book it at the same frame.
        if self.side == Side::Relay {
            self.peer_budget.give_back_initial(stream.credits.request);
        }
        if stream.released {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: StreamId) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        // Lists that wait for the link may still name it. While the link stands still they must not grow.
        let (streams, most) = (&self.streams, 2 * self.streams.len() + 64);
        for list in [&mut self.ready, &mut self.control.grants] {
            if list.len() > most {
                list.retain(|id| streams.contains_key(id));
            }
        }
        self.unread_heads -= stream.recv.unread_heads();
        stream.recv.window.clear(&mut self.budget);
    }
}

/// What a peer did that it must not.
struct Violation {
    reason: GoAway,
    detail: String,
}

impl Violation {
    const fn new(reason: GoAway, detail: String) -> Self {
        Self { reason, detail }
    }

    fn protocol(detail: &str) -> Self {
        Self::new(GoAway::Protocol, detail.to_owned())
    }
}

impl From<FrameError> for Violation {
    fn from(error: FrameError) -> Self {
        Self::protocol(&error.to_string())
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}

/// Stream numbers are counted up, by the relay and never by a stranger: one multiplication spreads them.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Checks that the books balance. For tests and fuzzing, after every step.
impl Mux {
    /// # Panics
    /// Where an invariant of the multiplexer does not hold.
    #[doc(hidden)]
    pub fn assert_consistent(&self) {
        let streams = self.streams.values();
        assert!(streams.clone().all(|s| s.recv.window.is_consistent()), "a window is negative");
        assert_eq!(self.unread_heads, streams.clone().map(|s| s.recv.unread_heads()).sum::<usize>(), "unread heads");
        let (initial, growth, lingering) = self.budget.left();
        assert_eq!(lingering, streams.clone().map(|s| s.recv.window.lingering()).sum::<u64>(), "lingering bytes");
        if self.limits.max_streams <= 1024 {
            let held: u64 = streams.clone().map(|s| s.recv.window.held()).sum();
            assert!(held <= 32 << 20, "{held} bytes of bodies");
        }
        let grown: u64 = streams.clone().map(|s| s.recv.window.grown()).sum();
        assert_eq!(growth + grown, Budget::GROWTH_POOL, "the growth pool leaks");
        if self.ended.is_some() {
            return;
        }
        let is_open = |s: &&Stream| !matches!(s.phase, Phase::Closed(_));
        assert_eq!(self.open as usize, streams.clone().filter(is_open).count(), "open streams");
        assert_eq!(self.queued, streams.clone().map(|s| s.send.queued()).sum::<usize>(), "queued bytes");
        let given = |counted: &dyn Fn(&&Stream) -> bool, credit: &dyn Fn(&Stream) -> u32| -> u64 {
            streams.clone().filter(counted).map(|s| u64::from(credit(s) - FLOOR)).sum()
        };
        match self.side {
            Side::Relay => {
                let requests = given(&is_open, &|s| s.credits.request);
                assert_eq!(self.peer_budget.left().0 + requests, Budget::INITIAL_POOL, "request credit leaks");
                let responses = given(&is_open, &|s| s.recv.window.initial());
                assert_eq!(initial + responses, Budget::INITIAL_POOL, "response credit leaks");
            }
            Side::Client => {
                let requests = given(&is_open, &|s| s.credits.request);
                assert_eq!(initial + requests, Budget::INITIAL_POOL, "request credit leaks");
            }
        }
        for (id, stream) in &self.streams {
            let listed = self.ready.iter().filter(|other| *other == id).count();
            assert!(listed <= 1 || !stream.send.scheduled, "{id} is scheduled {listed} times");
            if stream.send.is_ready() && stream.phase == Phase::Open {
                assert!(stream.send.scheduled && listed == 1, "{id} is ready and not scheduled");
            }
            assert!(!(stream.released && matches!(stream.phase, Phase::Closed(_))), "{id} is left behind");
        }
    }

    /// What this end has left of the account from which requests take their initial credit.
    #[doc(hidden)]
    pub const fn request_credit_left(&self) -> u64 {
        match self.side {
            Side::Relay => self.peer_budget.left().0,
            Side::Client => self.budget.left().0,
        }
    }

    /// # Panics
    /// Where something is held although every stream has ended and was released.
    #[doc(hidden)]
    pub fn assert_idle(&self) {
        assert!(self.streams.is_empty(), "{} streams are left behind", self.streams.len());
        assert_eq!((self.open, self.queued, self.unread_heads), (0, 0, 0), "open, queued, unread heads");
        assert!(self.ready.len() <= 64 && self.control.grants.len() <= 64 && self.control.resets.is_empty());
        if self.ended.is_none() {
            assert_eq!(self.budget.left(), Budget::new().left(), "the budget leaks");
            assert_eq!(self.peer_budget.left(), Budget::new().left(), "the peer's budget leaks");
        }
    }
}
