//! A peer that breaks the rules: it is told so and disconnected, or it is borne in bounded memory. It never makes us
//! panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use cap::Cap;
use relay_protocol::frame::{Frame, GoAway, MAX_MESSAGE, Reset, SessionKind, StreamId};
use relay_protocol::mux::{Ended, Event, FLOOR, INITIAL, Limits, MAX_INTERIM, Mux, Side};
use relay_protocol::testing::Pair;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Memory is counted for the whole process, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `run` leaves allocated behind, in bytes, and what it returns.
fn held<R>(run: impl FnOnce() -> R) -> (usize, R) {
    let before = MEMORY.allocated();
    let result = run();
    (MEMORY.allocated().saturating_sub(before), result)
}

const HEAD: Bytes = Bytes::from_static(b"head");

fn id(n: u32) -> StreamId {
    StreamId::new(n).unwrap()
}

/// A multiplexer and its clock, which stands still.
struct Victim {
    mux: Mux,
    now: Instant,
}

impl Victim {
    fn new(side: Side, max_streams: u32) -> Self {
        let now = Instant::now();
        Self { mux: Mux::new(side, Limits { max_streams, ..Limits::default() }, now), now }
    }

    /// A relay whose first `n` streams are written.
    fn relay(n: u32) -> Self {
        let mut victim = Self::new(Side::Relay, 1024);
        for _ in 0..n {
            victim.mux.open(HEAD, victim.now).unwrap();
        }
        victim.written();
        victim
    }

    fn client() -> Self {
        Self::new(Side::Client, 1024)
    }

    fn send(&mut self, frames: impl IntoIterator<Item = Frame>) -> Result<(), Ended> {
        let mut message = BytesMut::new();
        frames.into_iter().for_each(|frame| frame.encode(&mut message));
        self.raw(&message)
    }

    fn raw(&mut self, message: &[u8]) -> Result<(), Ended> {
        let result = self.mux.handle_message(Bytes::copy_from_slice(message), self.now);
        self.mux.assert_consistent();
        result
    }

    /// All that it wants to say.
    fn written(&mut self) -> Vec<Frame> {
        let (mut out, mut frames) = (BytesMut::new(), Vec::new());
        while self.mux.poll_transmit(&mut out) {
            let mut message = out.split().freeze();
            while let Some(frame) = Frame::decode(&mut message).unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    fn recv(&mut self, id: StreamId) -> bool {
        matches!(self.mux.poll_recv(id, self.now, &Context::from_waker(Waker::noop())), Poll::Ready(Ok(Some(_))))
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Poll::Ready(event) = self.mux.poll_event(&Context::from_waker(Waker::noop())) {
            events.push(event);
        }
        events
    }
}

fn open(n: u32) -> Frame {
    open_with(n, FLOOR)
}

fn open_with(n: u32, request_credit: u32) -> Frame {
    Frame::Open { stream: id(n), request_credit, response_credit: FLOOR, last: false, head: HEAD }
}

fn head(n: u32) -> Frame {
    Frame::Head { stream: id(n), interim: false, last: false, head: HEAD }
}

fn interim(n: u32) -> Frame {
    Frame::Head { stream: id(n), interim: true, last: false, head: HEAD }
}

fn data(n: u32, len: usize) -> Frame {
    Frame::Data { stream: id(n), last: false, bytes: Bytes::from(vec![7; len]) }
}

fn end(n: u32) -> Frame {
    Frame::End { stream: id(n), trailers: Bytes::new() }
}

fn reset(n: u32) -> Frame {
    Frame::Reset { stream: id(n), reset: Reset::Cancelled }
}

fn credit(n: u32, bytes: u32) -> Frame {
    Frame::Credit { stream: id(n), bytes }
}

/// The peer did something forbidden: the session ends with `reason`, and it is told.
#[track_caller]
fn assert_accused(mut victim: Victim, result: &Result<(), Ended>, reason: GoAway) {
    let Err(Ended::Violation { reason: accused, detail }) = result else { panic!("{result:?}") };
    assert_eq!(*accused, reason, "{detail}");
    assert!(
        matches!(victim.written().last(), Some(Frame::GoAway { reason: said, drain: false, .. }) if *said == reason)
    );
    assert!(victim.mux.is_finished());
    assert_eq!(victim.send([Frame::Ping(1)]), result.clone(), "and it stays ended");
}

#[track_caller]
fn accuse(mut victim: Victim, frames: impl IntoIterator<Item = Frame>, reason: GoAway) {
    let result = victim.send(frames);
    assert_accused(victim, &result, reason);
}

#[test]
fn frames_in_wrong_states_end_the_session() {
    let _turn = alone();
    accuse(Victim::relay(1), [open(2)], GoAway::Protocol);
    accuse(Victim::client(), [open(1), head(1)], GoAway::Protocol);
    accuse(Victim::relay(1), [data(1, 1)], GoAway::Protocol);
    accuse(Victim::relay(1), [end(1)], GoAway::Protocol);
    accuse(Victim::relay(1), [head(1), head(1)], GoAway::Protocol);
    accuse(Victim::relay(1), [head(1), interim(1)], GoAway::Protocol);
    for frame in [head(2), data(2, 1), end(2), reset(2), credit(2, 1)] {
        accuse(Victim::relay(1), [frame], GoAway::Protocol);
    }
    for frame in [data(1, 1), end(1), reset(1), credit(1, 1)] {
        accuse(Victim::client(), [frame], GoAway::Protocol);
    }
    accuse(Victim::client(), [open(5), open(5)], GoAway::Protocol);
    accuse(Victim::client(), [open(5), reset(5), open(4)], GoAway::Protocol);
}

#[test]
fn bytes_that_are_no_frames_end_the_session() {
    let _turn = alone();
    for (bytes, reason) in [
        (&[][..], GoAway::Protocol),
        (&[7, 0, 0], GoAway::Protocol),
        (&[0x40, 0, 0, 0, 0, 0, 0, 0], GoAway::Protocol),
        (&[3, 0, 0, 0, 0, 0, 0, 1], GoAway::Protocol),
        (&vec![0; MAX_MESSAGE + 1], GoAway::Limit),
    ] {
        let mut victim = Victim::client();
        let result = victim.raw(bytes);
        assert_accused(victim, &result, reason);
    }
}

#[test]
fn bytes_beyond_credit_end_the_session() {
    let _turn = alone();
    // The first data frame is larger than the window.
    accuse(Victim::client(), [open(1), data(1, FLOOR as usize + 1)], GoAway::FlowControl);
    accuse(Victim::client(), [open(1), data(1, FLOOR as usize), data(1, 1)], GoAway::FlowControl);
    accuse(Victim::client(), [open(1), end(1), data(1, 1)], GoAway::FlowControl);
    accuse(Victim::client(), [open(1), reset(1), data(1, 1)], GoAway::FlowControl);
    let mut fits = Victim::client();
    assert_eq!(fits.send([open(1), data(1, FLOOR as usize)]), Ok(()));
}

#[test]
fn bytes_that_crossed_our_reset_are_borne_up_to_their_credit() {
    let _turn = alone();
    let mut victim = Victim::client();
    victim.send([open(1), data(1, 1000)]).unwrap();
    victim.events();
    victim.mux.reset(id(1), Reset::Cancelled);
    victim.mux.release(id(1));
    victim.written();
    victim.mux.assert_idle();
    victim.send([data(1, FLOOR as usize - 1000), end(1)]).unwrap();
    victim.mux.assert_idle();
    let result = victim.send([data(1, 1)]);
    assert_accused(victim, &result, GoAway::FlowControl);
}

#[test]
fn credit_that_is_not_the_peers_to_take_or_give_ends_the_session() {
    let _turn = alone();
    accuse(Victim::client(), [open_with(1, FLOOR - 1)], GoAway::FlowControl);
    accuse(Victim::client(), [open_with(1, INITIAL + 1)], GoAway::FlowControl);
    accuse(Victim::client(), (1..100).map(|n| open_with(n, INITIAL)), GoAway::FlowControl);
    accuse(Victim::relay(1), [credit(1, u32::MAX), credit(1, u32::MAX)], GoAway::FlowControl);
}

#[test]
fn more_streams_than_agreed_end_the_session() {
    let _turn = alone();
    accuse(Victim::new(Side::Client, 10), (1..=11).map(open), GoAway::Limit);
    let mut victim = Victim::new(Side::Client, 10);
    assert_eq!(victim.send((1..=10).map(open)), Ok(()));
}

#[test]
fn floods_of_what_must_be_kept_end_the_session() {
    let _turn = alone();
    accuse(Victim::relay(1), (0..=MAX_INTERIM).map(|_| interim(1)), GoAway::Limit);
    accuse(Victim::client(), (0..257).map(|_| Frame::Session(SessionKind::Bound, HEAD)), GoAway::Limit);
}

#[test]
fn large_session_messages_that_nobody_takes_end_the_session() {
    let _turn = alone();
    let mut victim = Victim::client();
    let large = || [Frame::Session(SessionKind::Bound, Bytes::from(vec![0; 60_000]))];
    (0..4).for_each(|_| victim.send(large()).unwrap());
    let result = victim.send(large());
    assert_accused(victim, &result, GoAway::Limit);
}

#[test]
fn floods_of_control_frames_leave_nothing_behind() {
    let _turn = alone();
    let go_away = |_| Frame::GoAway {
        reason: GoAway::Shutdown,
        drain: true,
        text: "x".repeat(relay_protocol::frame::MAX_REASON),
    };
    let floods: [(&str, &dyn Fn(u32) -> Frame); 8] = [
        ("ping", &|n| Frame::Ping(n.into())),
        ("pong", &|n| Frame::Pong(n.into())),
        ("go away", &go_away),
        ("credit", &|_| credit(1, 1)),
        ("credit for a stream that has ended", &|_| credit(2, 1)),
        ("reset of a stream that has ended", &|_| reset(2)),
        ("end of a stream that has ended", &|_| end(2)),
        ("skipped", &|_| Frame::Skipped),
    ];
    for (name, frame) in floods {
        let mut victim = Victim::relay(2);
        victim.send([reset(2)]).unwrap();
        victim.mux.release(id(2));
        let (bytes, ()) = held(|| {
            for n in 0..200 {
                victim.send((0..450).map(|m| frame(n * 450 + m))).unwrap();
            }
        });
        assert!(bytes < 8 * 1024, "{name}: {bytes} bytes are held");
        let mut out = BytesMut::new();
        while victim.mux.poll_transmit(&mut out) {}
        assert!(out.len() < 1024, "{name}: {} bytes to say", out.len());
        assert!(victim.events().len() <= 1, "{name}");
    }
}

#[test]
fn many_tiny_frames_hold_no_more_than_twice_their_bytes() {
    let _turn = alone();
    for size in [1, 2, 7, 100, 513, 1000, 1023, 1024, 1500] {
        let mut victim = Victim::client();
        victim.send([open_with(1, INITIAL)]).unwrap();
        let total = INITIAL as usize / size;
        let (bytes, ()) = held(|| {
            for chunk in (0..total).collect::<Vec<_>>().chunks(100) {
                victim.send(chunk.iter().map(|_| data(1, size))).unwrap();
            }
        });
        assert!(bytes <= 2 * INITIAL as usize + 64 * 1024, "frames of {size} bytes: {bytes} bytes are held");
    }
}

#[test]
fn tiny_frames_read_one_by_one_hold_little() {
    let _turn = alone();
    let mut victim = Victim::client();
    victim.send([open_with(1, INITIAL)]).unwrap();
    let (bytes, ()) = held(|| {
        for _ in 0..2_000 {
            victim.send((0..3).map(|_| data(1, 1))).unwrap();
            victim.recv(id(1));
        }
    });
    assert!(bytes < 64 * 1024, "{bytes} bytes are held");
}

#[test]
fn a_byte_to_keep_in_a_large_message_does_not_keep_the_message() {
    let _turn = alone();
    let padding = {
        let mut padding = BytesMut::new();
        while padding.len() < MAX_MESSAGE - 40_000 {
            // An unknown kind that may be skipped.
            padding.extend_from_slice(&[0x7e, 0x80, 0x40, 0, 0, 0, 0, 0]);
            padding.resize(padding.len() + 0x4000, 0);
        }
        padding
    };
    for size in [1, 1000, 16_000, 32_000] {
        let mut victim = Victim::client();
        victim.send([open_with(1, INITIAL)]).unwrap();
        let frames = (INITIAL as usize / size).min(500);
        let (bytes, ()) = held(|| {
            for _ in 0..frames {
                let mut message = padding.clone();
                data(1, size).encode(&mut message);
                victim.raw(&message).unwrap();
            }
        });
        assert!(bytes <= 2 * frames * size + 64 * 1024, "{frames} times {size} bytes hold {bytes}");
    }
}

#[test]
fn heads_are_kept_within_their_limit() {
    let _turn = alone();
    let mut victim = Victim::client();
    let (bytes, ()) = held(|| {
        for n in 1..=1024 {
            let head = Bytes::from(vec![b'h'; 60_000]);
            let frame = Frame::Open { stream: id(n), request_credit: FLOOR, response_credit: FLOOR, last: true, head };
            victim.send([frame]).unwrap();
        }
    });
    assert!(bytes <= 10 << 20, "{bytes} bytes are held");
    let refused = victim.written().into_iter().filter(|f| matches!(f, Frame::Reset { reset: Reset::Refused, .. }));
    assert!(refused.count() > 800);
}

#[test]
fn rapid_resets_leave_nothing_behind() {
    let _turn = alone();
    // An application that takes new streams at once, and one that never does.
    for takes in [true, false] {
        let mut victim = Victim::client();
        let (bytes, ()) = held(|| {
            for round in 0..1000 {
                let frames = (1..=100).flat_map(|n| [open_with(round * 100 + n, FLOOR + 1000), reset(round * 100 + n)]);
                victim.send(frames).unwrap();
                if takes {
                    for event in victim.events() {
                        let Event::Opened(id) = event else { panic!("{event:?}") };
                        victim.mux.release(id);
                    }
                }
            }
        });
        assert_eq!(victim.mux.open_streams(), 0);
        assert!(bytes < if takes { 256 * 1024 } else { 2 << 20 }, "{bytes} bytes are held");
        if takes {
            victim.written();
            victim.mux.assert_idle();
        }
    }
}

#[test]
fn rapid_resets_of_an_honest_relay_leave_both_ends_flat() {
    let _turn = alone();
    let mut pair = Pair::new(Limits::default());
    let (bytes, ()) = held(|| {
        for _ in 0..1000 {
            let now = pair.now;
            let ids: Vec<_> = (0..100).map(|_| pair.relay.open(HEAD, now).unwrap()).collect();
            while pair.transmit(Side::Relay) {}
            ids.iter().for_each(|&id| pair.relay.release(id));
            pair.settle();
            while let Poll::Ready(event) = pair.client.poll_event(&Context::from_waker(Waker::noop())) {
                let Event::Opened(id) = event else { panic!("{event:?}") };
                pair.client.release(id);
            }
        }
    });
    assert!(bytes < 256 * 1024, "{bytes} bytes are held");
    pair.relay.assert_idle();
    pair.client.assert_idle();
}

#[test]
fn a_writer_of_tiny_pieces_holds_no_more_than_twice_its_bytes() {
    let _turn = alone();
    let mut victim = Victim::client();
    victim.send([open(1), credit(1, 1 << 20)]).unwrap();
    victim.mux.send_head(id(1), HEAD, false).unwrap();
    let (bytes, sent) = held(|| {
        let (mut sent, cx) = (0, Context::from_waker(Waker::noop()));
        // Each piece is an allocation of its own, as an upstream may hand them out.
        while victim.mux.poll_send(id(1), &mut Bytes::from(vec![7]), &cx).is_ready() {
            sent += 1;
        }
        sent
    });
    assert_eq!(sent, 64 * 1024, "what one stream may queue");
    assert!(bytes <= 3 * sent, "{bytes} bytes are held");
    let frames = victim.written();
    let written: usize = frames.iter().map(|f| if let Frame::Data { bytes, .. } = f { bytes.len() } else { 0 }).sum();
    assert_eq!(written, sent);
    assert!(frames.len() < 200, "{} frames", frames.len());
}

#[test]
fn writers_hold_what_is_documented_however_many_they_are() {
    let _turn = alone();
    let mut victim = Victim::client();
    for n in 1..=1024 {
        victim.send([open(n), credit(n, 1 << 20)]).unwrap();
        victim.mux.send_head(id(n), HEAD, false).unwrap();
    }
    let (bytes, ()) = held(|| {
        let cx = Context::from_waker(Waker::noop());
        for n in (1..=1024).cycle().take(8 * 1024) {
            let _ = victim.mux.poll_send(id(n), &mut Bytes::from(vec![7; 16 * 1024]), &cx);
        }
    });
    assert!(bytes <= 18 << 20, "{} MiB are held", bytes >> 20);
}
