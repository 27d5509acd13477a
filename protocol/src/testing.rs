//! Two multiplexers with a link between them, and a machine that plays any bytes as operations on them.
//!
//! Property tests and fuzz targets share it, so that what the fuzzer finds replays as a test. It is compiled with the
//! feature `testing` only. Everything here panics where the multiplexer breaks a promise: that is its purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::missing_panics_doc)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::frame::{GoAway, HEADER_LEN, MAX_MESSAGE, Reset, SessionKind, StreamId};
use crate::mux::{Event, Item, Limits, Mux, Side, StreamError};

/// Both ends of a session and the messages that are on their way between them.
#[derive(Debug)]
pub struct Pair {
    /// The end that opens streams.
    pub relay: Mux,
    /// The end that answers them.
    pub client: Mux,
    /// The clock of both.
    pub now: Instant,
    to_relay: VecDeque<Bytes>,
    to_client: VecDeque<Bytes>,
}

impl Pair {
    /// A session that has just been agreed on.
    pub fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            relay: Mux::new(Side::Relay, limits, now),
            client: Mux::new(Side::Client, limits, now),
            now,
            to_relay: VecDeque::new(),
            to_client: VecDeque::new(),
        }
    }

    /// One end's multiplexer.
    pub const fn mux(&mut self, side: Side) -> &mut Mux {
        match side {
            Side::Relay => &mut self.relay,
            Side::Client => &mut self.client,
        }
    }

    /// The messages that are on their way to `side`.
    pub const fn wire(&mut self, side: Side) -> &mut VecDeque<Bytes> {
        match side {
            Side::Relay => &mut self.to_relay,
            Side::Client => &mut self.to_client,
        }
    }

    /// Puts the next message of `side` on the wire; false when it has nothing to say.
    pub fn transmit(&mut self, side: Side) -> bool {
        let mut out = BytesMut::new();
        let spoke = self.mux(side).poll_transmit(&mut out);
        assert_eq!(spoke, !out.is_empty(), "poll_transmit says whether it wrote");
        assert!(out.len() <= MAX_MESSAGE, "a message of {} bytes, which the peer refuses", out.len());
        if spoke {
            self.wire(other(side)).push_back(out.freeze());
        }
        spoke
    }

    /// Hands the next message to `side`, which must not accuse its honest peer; false when there is none.
    pub fn deliver(&mut self, side: Side) -> bool {
        let Some(message) = self.wire(side).pop_front() else { return false };
        let now = self.now;
        let mux = self.mux(side);
        if mux.ended().is_none() {
            mux.handle_message(message, now).unwrap_or_else(|ended| panic!("{side:?} accuses an honest peer: {ended}"));
        }
        true
    }

    /// Moves messages both ways until nothing is left to say.
    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let mut moved = false;
            for side in [Side::Relay, Side::Client] {
                moved |= self.transmit(side);
                moved |= self.deliver(other(side));
            }
            self.assert_consistent();
            if !moved {
                return;
            }
        }
        panic!("the two ends talk for ever");
    }

    /// Lets time pass at both ends.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        for side in [Side::Relay, Side::Client] {
            let now = self.now;
            let mux = self.mux(side);
            if mux.timeout().is_some_and(|at| at <= now) {
                mux.handle_timeout(now);
                assert!(mux.timeout().is_none_or(|at| at > now), "a timeout that was handled stays in the past");
            }
        }
    }

    /// Checks the books of both ends.
    pub fn assert_consistent(&self) {
        self.relay.assert_consistent();
        self.client.assert_consistent();
    }
}

/// The opposite end.
pub const fn other(side: Side) -> Side {
    match side {
        Side::Relay => Side::Client,
        Side::Client => Side::Relay,
    }
}

/// Counts how often it was woken.
#[derive(Debug, Default)]
pub struct Bell(AtomicUsize);

impl Bell {
    /// How often it was woken.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A waker that rings it.
    pub fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Plays `script` as operations on a pair of multiplexers and then drives both to their end, checking throughout:
/// - what is read is what was written, in order, and an end is seen only after everything before it;
/// - nobody waits for something that could go on, without having been woken;
/// - an honest peer is never accused, books balance, and memory stays within the budget;
/// - while readers read, everything ends; and when everybody has let go, nothing is left behind.
pub fn run(script: &[u8]) {
    let mut input = Input(script);
    let max_streams = [1, 3, 12, 1024][usize::from(input.byte() & 3)];
    let mut world = World::new(Limits { max_streams, ..Limits::default() });
    while !input.0.is_empty() {
        world.step(&mut input);
        world.pair.assert_consistent();
        world.assert_accounts_agree();
        world.assert_nothing_is_lost();
        world.assert_woken();
    }
    world.finale(usize::from(script.len().is_multiple_of(2)));
}

/// Plays `script` as what a hostile peer sends to one multiplexer: frames that almost fit, and raw bytes. The
/// multiplexer may end the session, and must keep its books and bounds whatever comes.
pub fn run_hostile(script: &[u8]) {
    let mut input = Input(script);
    let side = if input.byte() & 1 == 0 { Side::Relay } else { Side::Client };
    let mut now = Instant::now();
    let mut mux = Mux::new(side, Limits { max_streams: 8, ..Limits::default() }, now);
    let (mut mine, mut out) = (Vec::new(), BytesMut::new());
    let cx = Context::from_waker(Waker::noop());
    while !input.0.is_empty() && mux.ended().is_none() {
        match input.byte() % 12 {
            0 => {
                let len = usize::from(input.byte());
                let _ = mux.handle_message(input.take(len), now);
            }
            1..=5 => {
                let frames = 1 + usize::from(input.byte() % 8);
                let mut message = BytesMut::new();
                (0..frames).for_each(|_| input.hostile_frame(&mut message));
                let _ = mux.handle_message(message.freeze(), now);
            }
            6 => {
                out.clear();
                mux.poll_transmit(&mut out);
                assert!(out.len() <= MAX_MESSAGE);
            }
            7 if side == Side::Relay => mine.extend(mux.open(Bytes::from_static(b"head"), now)),
            7 | 8 => {
                while let Poll::Ready(event) = mux.poll_event(&cx) {
                    if let Event::Opened(id) = event {
                        mine.push(id);
                    }
                }
            }
            9 => {
                if let Some(&id) = pick(&mine, input.byte()) {
                    let _ = mux.poll_recv(id, now, &cx);
                }
            }
            10 => {
                let (which, what) = (input.byte(), input.byte());
                if let Some(&id) = pick(&mine, which) {
                    match what % 5 {
                        0 => mux.release(id),
                        1 => mux.reset(id, Reset::Cancelled),
                        2 => drop(mux.finish(id, Bytes::new())),
                        3 => drop(mux.send_head(id, Bytes::from_static(b"head"), what & 64 != 0)),
                        _ => drop(mux.poll_send(id, &mut Bytes::from(vec![7; 40 * usize::from(what)]), &cx)),
                    }
                    if what % 5 == 0 {
                        mine.retain(|other| *other != id);
                    }
                }
            }
            _ => {
                now += Duration::from_millis(10 * u64::from(input.byte()));
                mux.handle_timeout(now);
            }
        }
        mux.assert_consistent();
    }
    while let Poll::Ready(event) = mux.poll_event(&cx) {
        if let Event::Opened(id) = event {
            mine.push(id);
        }
    }
    mine.into_iter().for_each(|id| mux.release(id));
    while mux.poll_transmit(&mut out) {
        out.clear();
    }
    mux.assert_consistent();
    mux.assert_idle();
}

/// The script, byte by byte; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, len: usize) -> Bytes {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        Bytes::copy_from_slice(taken)
    }

    /// A length from 1 byte to 254 KiB, small ones more often.
    fn len(&mut self) -> usize {
        let (size, fine) = (usize::from(self.byte()), usize::from(self.byte()));
        1 + fine + (size * size * 4) / (1 + fine % 4 * 40)
    }

    /// A frame whose header is right for its kind more often than not.
    fn hostile_frame(&mut self, out: &mut BytesMut) {
        let kind = match self.byte() {
            byte @ 0..200 => [1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x13][usize::from(byte) % 14],
            byte => byte,
        };
        let (flags, stream) = (self.byte() & self.byte() & 0x87, u32::from(self.byte() % 12));
        let len = match kind {
            5 => 2,
            6 => 4,
            7 | 8 => 8,
            1 => 8 + usize::from(self.byte() % 32),
            _ => usize::from(self.byte()) << (self.byte() % 8),
        };
        let mut payload = vec![self.byte(); len];
        if kind == 1 && len >= 8 {
            // Initial credits that are often acceptable.
            payload[..4].copy_from_slice(&(16 * 1024 + 64 * u32::from(self.byte())).to_be_bytes());
        }
        let stream = if kind < 7 { stream } else { 0 };
        let flags = if kind < 4 || kind == 9 || kind > 0x14 { flags } else { 0 };
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&payload);
    }
}

fn pick<T>(all: &[T], which: u8) -> Option<&T> {
    all.get(usize::from(which) % all.len().max(1))
}

/// Bodies are slices of one pattern whose period is a prime, so that comparing is cheap and a slip never fits.
const PERIOD: usize = 65_521;
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 1_u32;
    let period: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(PERIOD)
    .collect();
    period.iter().cycle().take(PERIOD * 6).copied().collect()
});

/// `len` bytes of the body of `stream` from `offset` on; at most 320 KiB.
pub fn body(side: Side, stream: StreamId, offset: u64, len: usize) -> Bytes {
    let start = (offset + u64::from(stream.get()) * 977 + side as u64 * 31_337) % PERIOD as u64;
    let start = usize::try_from(start).unwrap();
    PATTERN.slice(start..start + len)
}

/// The two applications above a pair.
struct World {
    pair: Pair,
    apps: [App; 2],
    lost: bool,
}

#[derive(Default)]
struct App {
    streams: BTreeMap<StreamId, Use>,
    /// What was written on streams, also on those that were let go of.
    written: BTreeMap<StreamId, Written>,
    messages_sent: u32,
    messages_got: u32,
    bell: Arc<Bell>,
    waits: Option<usize>,
}

/// What one end has written on a stream.
#[derive(Default)]
struct Written {
    heads: Vec<(Bytes, bool)>,
    body: u64,
    end: Option<Bytes>,
    /// It has reset the stream or let go of it.
    gave_up: bool,
}

/// What one end knows of a stream that it holds.
#[derive(Default)]
struct Use {
    /// Reads everything as soon as it comes.
    eager: bool,
    heads: usize,
    body: u64,
    ended: bool,
    failed: bool,
    unsent: Bytes,
    read_bell: Arc<Bell>,
    write_bell: Arc<Bell>,
    read_waits: Option<usize>,
    write_waits: Option<usize>,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self { pair: Pair::new(limits), apps: [App::default(), App::default()], lost: false }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        let side = if op & 0x80 == 0 { Side::Relay } else { Side::Client };
        match op & 0x1f {
            0..=2 => self.open(input),
            3 => self.with_stream(side, input, |world, side, id, input| {
                if side == Side::Client {
                    let (interim, len) = (input.byte() % 24, input.len() % 4000);
                    (0..interim.saturating_sub(4)).for_each(|_| world.send_head(side, id, true, len));
                    world.send_head(side, id, interim == 4, len);
                }
            }),
            // What most exchanges are: a short body, its end, and whoever has the answer lets go.
            4 | 5 => self.with_stream(side, input, |world, side, id, input| {
                if side == Side::Client {
                    world.send_head(side, id, false, 10);
                }
                let len = input.len() % 2000;
                world.send(side, id, len);
                world.finish(side, id, Bytes::new());
                while world.recv(side, id) {}
                if side == Side::Client || world.app(side).streams[&id].ended {
                    world.release(side, id);
                }
            }),
            6..=9 => self.with_stream(side, input, |world, side, id, input| {
                let len = input.len();
                world.send(side, id, len);
            }),
            10 | 11 => self.with_stream(side, input, |world, side, id, input| {
                let trailers = input.byte();
                let trailers = if trailers < 128 { Bytes::new() } else { body(side, id, 0, usize::from(trailers)) };
                world.finish(side, id, trailers);
            }),
            12 => self.with_stream(side, input, |world, side, id, input| {
                let code = Reset::from_code(u16::from(input.byte()));
                world.app(side).written.get_mut(&id).unwrap().gave_up = true;
                world.pair.mux(side).reset(id, code);
            }),
            13 => self.with_stream(side, input, |world, side, id, _| world.release(side, id)),
            14..=17 => self.with_stream(side, input, |world, side, id, input| {
                let most = input.byte() % 16;
                (0..=most).all(|_| world.recv(side, id));
            }),
            18..=21 => {
                let how = input.byte();
                if self.pair.transmit(side) {
                    self.rebatch(other(side), how);
                }
            }
            22..=25 => {
                let most = input.byte() % 8;
                (0..=most).all(|_| self.pair.deliver(side));
                self.take_events(side);
                self.read_eagerly(side);
            }
            26 => self.take_events(side),
            27 => self.pair.advance(Duration::from_millis(1 << (input.byte() % 10))),
            28 => {
                let now = self.pair.now;
                self.pair.mux(side).ping(now);
            }
            // An application has few messages unanswered.
            29 if self.app(side).messages_sent - self.app(other(side)).messages_got < 100 => {
                let sent = self.pair.mux(side).send_message(SessionKind::Bind, Bytes::from_static(b"bind"));
                self.app(side).messages_sent += u32::from(sent.is_ok());
            }
            30 => match input.byte() {
                0..32 => self.pair.mux(side).go_away(GoAway::Shutdown, true, "drain"),
                32..36 => self.pair.mux(side).go_away(GoAway::Revoked, false, "now"),
                36..40 => self.lose_link(),
                40..44 => self.pair.advance(Duration::from_secs(4)),
                _ => {}
            },
            // Everything that is on its way arrives, and everybody who is woken goes on.
            _ => self.rest(),
        }
    }

    const fn app(&mut self, side: Side) -> &mut App {
        let [relay, client] = &mut self.apps;
        match side {
            Side::Relay => relay,
            Side::Client => client,
        }
    }

    fn with_stream(
        &mut self,
        side: Side,
        input: &mut Input<'_>,
        then: impl FnOnce(&mut Self, Side, StreamId, &mut Input<'_>),
    ) {
        let ids: Vec<_> = self.app(side).streams.keys().copied().collect();
        if let Some(&id) = pick(&ids, input.byte()) {
            then(self, side, id, input);
        }
    }

    fn open(&mut self, input: &mut Input<'_>) {
        let (len, eager) = (input.len() % 4000, input.byte() & 1 == 0);
        let now = self.pair.now;
        let head = PATTERN.slice(..len);
        if let Ok(id) = self.pair.relay.open(head.clone(), now) {
            let app = self.app(Side::Relay);
            app.streams.insert(id, Use { eager, ..Use::default() });
            app.written.insert(id, Written { heads: vec![(head, false)], ..Written::default() });
        }
    }

    fn send_head(&mut self, side: Side, id: StreamId, interim: bool, len: usize) {
        let head = body(side, id, 0, len);
        let interims = self.app(side).written[&id].heads.iter().filter(|(_, interim)| *interim).count();
        let dropped = interim && interims >= crate::mux::MAX_INTERIM;
        if self.pair.mux(side).send_head(id, head.clone(), interim).is_ok() && !dropped {
            self.app(side).written.get_mut(&id).unwrap().heads.push((head, interim));
        }
    }

    fn send(&mut self, side: Side, id: StreamId, len: usize) {
        let app = self.app(side);
        let (stream, written) = (app.streams.get_mut(&id).unwrap(), app.written.get_mut(&id).unwrap());
        let offset = written.body;
        let mut bytes = if stream.unsent.is_empty() { body(side, id, offset, len) } else { stream.unsent.clone() };
        let (before, bell) = (bytes.len(), Arc::clone(&stream.write_bell));
        let waker = bell.waker();
        let result = self.pair.mux(side).poll_send(id, &mut bytes, &Context::from_waker(&waker));
        let app = self.app(side);
        let (stream, written) = (app.streams.get_mut(&id).unwrap(), app.written.get_mut(&id).unwrap());
        written.body += (before - bytes.len()) as u64;
        stream.write_waits = result.is_pending().then(|| bell.count());
        stream.unsent = if result.is_pending() { bytes } else { Bytes::new() };
        if let Poll::Ready(Err(error)) = result {
            let headless = !written.heads.iter().any(|(_, interim)| !interim);
            let own_doing = written.end.is_some() || headless;
            self.assert_justified(side, id, error, own_doing);
        }
    }

    fn finish(&mut self, side: Side, id: StreamId, trailers: Bytes) {
        let stream = &self.app(side).streams[&id];
        if stream.unsent.is_empty() && self.pair.mux(side).finish(id, trailers.clone()).is_ok() {
            self.app(side).written.get_mut(&id).unwrap().end = Some(trailers);
        }
    }

    fn release(&mut self, side: Side, id: StreamId) {
        let app = self.app(side);
        app.streams.remove(&id);
        app.written.get_mut(&id).unwrap().gave_up = true;
        self.pair.mux(side).release(id);
    }

    /// Reads one piece; false when there was none to read.
    fn recv(&mut self, side: Side, id: StreamId) -> bool {
        let now = self.pair.now;
        let bell = Arc::clone(&self.app(side).streams[&id].read_bell);
        let waker = bell.waker();
        let result = self.pair.mux(side).poll_recv(id, now, &Context::from_waker(&waker));
        let [relay, client] = &mut self.apps;
        let (own, peer) = match side {
            Side::Relay => (relay, client),
            Side::Client => (client, relay),
        };
        let stream = own.streams.get_mut(&id).unwrap();
        stream.read_waits = result.is_pending().then(|| bell.count());
        let Poll::Ready(result) = result else { return false };
        let nothing = Written::default();
        let written = peer.written.get(&id).unwrap_or(&nothing);
        assert!(!(stream.ended || stream.failed) || matches!(result, Ok(None) | Err(_)), "{id}: more after the end");
        match result {
            Ok(Some(Item::Head { head, interim })) => {
                assert_eq!(written.heads[stream.heads], (head, interim), "{side:?} {id}: a head");
                assert_eq!(stream.body, 0, "heads come before the body");
                stream.heads += 1;
            }
            Ok(Some(Item::Data(bytes))) => {
                assert!(!bytes.is_empty());
                assert!(bytes == body(other(side), id, stream.body, bytes.len()), "{side:?} {id}: body");
                stream.body += bytes.len() as u64;
                assert!(stream.body <= written.body, "{side:?} {id}: more than was written");
            }
            Ok(Some(Item::End(trailers))) => {
                assert_eq!(Some(&trailers), written.end.as_ref(), "{side:?} {id}: trailers");
                assert_eq!(stream.body, written.body, "{side:?} {id}: an end before all of the body");
                assert_eq!(stream.heads, written.heads.len(), "{side:?} {id}: an end before all heads");
                stream.ended = true;
            }
            Ok(None) => {
                assert!(stream.ended, "{side:?} {id}: reads as ended although it was cut short");
                return false;
            }
            Err(error) => {
                stream.failed = true;
                self.assert_justified(side, id, error, false);
                return false;
            }
        }
        true
    }

    /// An error on a stream has somebody who caused it.
    fn assert_justified(&mut self, side: Side, id: StreamId, error: StreamError, own_doing: bool) {
        let gave_up = |app: &App| app.written.get(&id).is_none_or(|written| written.gave_up);
        let justified = match error {
            StreamError::Reset(_) => gave_up(self.app(other(side))),
            StreamError::Closed => own_doing || gave_up(self.app(side)),
            StreamError::SessionEnded => self.pair.mux(side).ended().is_some(),
        };
        assert!(justified, "{side:?} {id}: {error}, and nobody did it");
    }

    fn take_events(&mut self, side: Side) {
        let bell = Arc::clone(&self.app(side).bell);
        let waker = bell.waker();
        while let Poll::Ready(event) = self.pair.mux(side).poll_event(&Context::from_waker(&waker)) {
            match event {
                Event::Opened(id) => {
                    let app = self.app(side);
                    assert!(!app.written.contains_key(&id), "{id} was opened twice");
                    app.streams.insert(id, Use { eager: id.get() % 3 != 0, ..Use::default() });
                    app.written.insert(id, Written::default());
                }
                Event::Session(kind, payload) => {
                    assert_eq!((kind, &payload[..]), (SessionKind::Bind, &b"bind"[..]));
                    self.app(side).messages_got += 1;
                    let got = self.app(side).messages_got;
                    assert!(got <= self.app(other(side)).messages_sent);
                }
                Event::GoAway { .. } => {}
            }
        }
        self.app(side).waits = Some(bell.count());
    }

    fn read_eagerly(&mut self, side: Side) {
        let eager = self.app(side).streams.iter().filter(|(_, s)| s.eager).map(|(id, _)| *id).collect::<Vec<_>>();
        eager.into_iter().for_each(|id| while self.recv(side, id) {});
    }

    /// Cuts the newest message to `side` between frames, or joins it with the one before.
    fn rebatch(&mut self, side: Side, how: u8) {
        let wire = self.pair.wire(side);
        match how % 4 {
            0 => {
                let mut message = wire.pop_back().unwrap();
                while message.len() >= HEADER_LEN {
                    let len = HEADER_LEN + usize::from(u16::from_be_bytes([message[2], message[3]]));
                    wire.push_back(message.split_to(len));
                }
                assert!(message.is_empty(), "messages hold whole frames");
            }
            1 if wire.len() >= 2 => {
                let (last, before) = (wire.pop_back().unwrap(), wire.pop_back().unwrap());
                if last.len() + before.len() <= MAX_MESSAGE {
                    wire.push_back([before, last].concat().into());
                } else {
                    wire.extend([before, last]);
                }
            }
            _ => {}
        }
    }

    fn lose_link(&mut self) {
        self.lost = true;
        for side in [Side::Relay, Side::Client] {
            self.pair.mux(side).link_lost("the test cut it".into());
            self.pair.wire(side).clear();
        }
    }

    /// Whoever waits and was not woken has nothing to go on with.
    fn assert_woken(&mut self) {
        for side in [Side::Relay, Side::Client] {
            let waiting: Vec<_> =
                self.app(side).streams.iter().filter_map(|(id, s)| Some((*id, s.read_waits?))).collect();
            for (id, rung) in waiting {
                if self.app(side).streams[&id].read_bell.count() == rung {
                    self.recv(side, id);
                    assert!(self.app(side).streams[&id].read_waits.is_some(), "{side:?} {id}: a reader was not woken");
                }
            }
            let bell = Arc::clone(&self.app(side).bell);
            if self.app(side).waits == Some(bell.count()) {
                let waker = bell.waker();
                let event = self.pair.mux(side).poll_event(&Context::from_waker(&waker));
                assert_eq!(event, Poll::Pending, "{side:?}: who waits for events was not woken");
            }
        }
    }

    /// While nothing is on its way, a writer that waits and was not woken can write nothing.
    fn assert_writers_woken(&mut self) {
        for side in [Side::Relay, Side::Client] {
            let waiting: Vec<_> =
                self.app(side).streams.iter().filter_map(|(id, s)| Some((*id, s.write_waits?))).collect();
            for (id, rung) in waiting {
                if self.app(side).streams[&id].write_bell.count() == rung {
                    let before = self.app(side).streams[&id].unsent.len();
                    self.send(side, id, 1);
                    let after = &self.app(side).streams[&id];
                    assert!(
                        after.write_waits.is_some() && after.unsent.len() == before,
                        "{side:?} {id}: a writer waits"
                    );
                }
            }
        }
    }

    /// Delivers everything, lets eager readers read and woken writers write, until nothing moves.
    fn rest(&mut self) {
        loop {
            self.pair.settle();
            self.assert_accounts_agree();
            let mut moved = false;
            for side in [Side::Relay, Side::Client] {
                self.take_events(side);
                self.read_eagerly(side);
                let app = self.app(side);
                let woken = |s: &Use| s.write_waits.is_some_and(|rung| rung != s.write_bell.count());
                let woken: Vec<_> = app.streams.iter().filter(|(_, s)| woken(s)).map(|(id, _)| *id).collect();
                moved |= !woken.is_empty();
                woken.into_iter().for_each(|id| self.send(side, id, 1));
            }
            if !moved && !self.pair.relay.has_output() && !self.pair.client.has_output() {
                break;
            }
        }
        self.assert_woken();
        self.assert_writers_woken();
    }

    /// Where the client has read all that the relay has written, it counts no stream and no credit that the relay does
    /// not; and a client that has finished misses no stream.
    fn assert_accounts_agree(&mut self) {
        let Pair { relay, client, to_client, .. } = &self.pair;
        if !to_client.is_empty() || relay.ended().is_some() || client.ended().is_some() {
            return;
        }
        assert!(client.open_streams() <= relay.open_streams(), "the client counts a stream that the relay does not");
        let held = [relay, client].map(Mux::request_credit_left);
        assert!(held[0] <= held[1], "the relay may take credit that the client does not have: {held:?}");
    }

    /// A link that a finished end closes carries nothing that the other end would miss.
    fn assert_nothing_is_lost(&self) {
        let Pair { relay, client, .. } = &self.pair;
        if client.is_finished() && client.ended().is_none() && relay.ended().is_none() {
            let [relay_app, client_app] = &self.apps;
            let missed = relay_app
                .streams
                .keys()
                .find(|id| !client_app.written.contains_key(id) && !relay_app.written[id].gave_up);
            assert_eq!(missed, None, "the client has finished and never heard of a stream");
        }
    }

    fn finale(&mut self, drainer: usize) {
        self.rest();
        for round in 0.. {
            assert!(round < 20_000, "the two ends never come to rest");
            let mut moved = false;
            for side in [Side::Relay, Side::Client] {
                self.take_events(side);
                for id in self.app(side).streams.keys().copied().collect::<Vec<_>>() {
                    while self.recv(side, id) {
                        moved = true;
                    }
                    moved |= self.complete(side, id);
                }
                while self.pair.transmit(side) {
                    moved = true;
                }
                while self.pair.deliver(other(side)) {}
                self.pair.assert_consistent();
            }
            self.pair.now += Duration::from_millis(5);
            if !moved {
                break;
            }
        }
        let over = [Side::Relay, Side::Client].iter().any(|side| self.pair.mux(*side).ended().is_some());
        if over {
            self.lose_link();
        }
        for side in [Side::Relay, Side::Client] {
            for id in self.app(side).streams.keys().copied().collect::<Vec<_>>() {
                self.recv(side, id);
                let stream = &self.app(side).streams[&id];
                assert!(stream.ended || stream.failed, "{side:?} {id} has not ended although everybody reads");
                if !over && !stream.ended {
                    assert!(
                        self.apps.iter().any(|app| app.written.get(&id).is_none_or(|written| written.gave_up)),
                        "{side:?} {id} failed without anybody's doing"
                    );
                }
            }
        }
        for side in [Side::Relay, Side::Client] {
            for id in self.app(side).streams.keys().copied().collect::<Vec<_>>() {
                self.release(side, id);
            }
        }
        if !over {
            self.pair.settle();
            for side in [Side::Relay, Side::Client] {
                let sent = self.app(other(side)).messages_sent;
                assert_eq!(self.app(side).messages_got, sent, "session messages");
                self.pair.mux(side).assert_idle();
            }
            let drainer = [Side::Relay, Side::Client][drainer];
            self.pair.mux(drainer).go_away(GoAway::Shutdown, true, "done");
            self.pair.settle();
        }
        for side in [Side::Relay, Side::Client] {
            while self.pair.mux(side).has_output() {
                self.pair.transmit(side);
            }
            assert!(self.pair.mux(side).is_finished(), "{side:?} has not finished");
            self.pair.mux(side).assert_idle();
        }
    }

    /// Brings our direction of a stream to its end; whether that changed anything.
    fn complete(&mut self, side: Side, id: StreamId) -> bool {
        let before = self.app(side).written[&id].body;
        if !self.app(side).streams[&id].unsent.is_empty() {
            self.send(side, id, 1);
        }
        let written = &self.app(side).written[&id];
        let moved = written.body > before;
        if written.end.is_some() || !self.app(side).streams[&id].unsent.is_empty() {
            return moved;
        }
        if side == Side::Client {
            self.send_head(side, id, false, 10);
        }
        self.finish(side, id, Bytes::new());
        self.app(side).written[&id].end.is_some() || moved
    }
}
