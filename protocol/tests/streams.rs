//! What an application may rely on: two honest ends, the cases that multiplexers have got wrong before, each by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_protocol::frame::{Frame, GoAway, MAX_MESSAGE, Reset, StreamId};
use relay_protocol::mux::{Ended, Event, Item, Limits, MAX_INTERIM, Mux, OpenError, Side, StreamError};
use relay_protocol::testing::{Bell, Pair, other};

const HEAD: Bytes = Bytes::from_static(b"head");
const NONE: Bytes = Bytes::new();

fn limits(max_streams: u32) -> Limits {
    Limits { max_streams, ..Limits::default() }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A session whose first pings are answered.
fn pair(max_streams: u32) -> Pair {
    let mut pair = Pair::new(limits(max_streams));
    pair.settle();
    pair
}

fn open(pair: &mut Pair) -> StreamId {
    let now = pair.now;
    pair.relay.open(HEAD, now).unwrap()
}

/// The client's next new stream.
fn accept(pair: &mut Pair) -> StreamId {
    match pair.client.poll_event(&noop()) {
        Poll::Ready(Event::Opened(id)) => id,
        other => panic!("{other:?}"),
    }
}

fn open_and_accept(pair: &mut Pair) -> StreamId {
    let id = open(pair);
    pair.settle();
    assert_eq!(accept(pair), id);
    id
}

fn recv(pair: &mut Pair, side: Side, id: StreamId) -> Poll<Result<Option<Item>, StreamError>> {
    let now = pair.now;
    pair.mux(side).poll_recv(id, now, &noop())
}

fn ready(item: Item) -> Poll<Result<Option<Item>, StreamError>> {
    Poll::Ready(Ok(Some(item)))
}

fn head() -> Poll<Result<Option<Item>, StreamError>> {
    ready(Item::Head { head: HEAD, interim: false })
}

/// Sends all of `len` bytes, or as much as is taken now; what was taken.
fn send(pair: &mut Pair, side: Side, id: StreamId, len: usize) -> usize {
    let mut bytes = Bytes::from(vec![7; len]);
    if let Poll::Ready(result) = pair.mux(side).poll_send(id, &mut bytes, &noop()) {
        result.unwrap();
    }
    len - bytes.len()
}

/// Everything that is readable now; whether the end was seen.
fn drain(pair: &mut Pair, side: Side, id: StreamId) -> (usize, bool) {
    let mut len = 0;
    loop {
        match recv(pair, side, id) {
            Poll::Ready(Ok(Some(Item::Data(bytes)))) => len += bytes.len(),
            Poll::Ready(Ok(Some(Item::Head { .. } | Item::End(_)))) => {}
            Poll::Ready(Ok(None)) => return (len, true),
            Poll::Ready(Err(_)) | Poll::Pending => return (len, false),
        }
    }
}

#[test]
fn a_client_that_answers_early_does_not_accuse_the_relay_of_one_stream_too_many() {
    let mut pair = pair(1);
    let id = open_and_accept(&mut pair);
    // The whole answer goes out before the request has ended, and the client lets go.
    pair.client.send_head(id, HEAD, false).unwrap();
    pair.client.finish(id, NONE).unwrap();
    pair.client.release(id);
    assert!(pair.transmit(Side::Client));
    assert!(pair.deliver(Side::Relay));
    assert_eq!(drain(&mut pair, Side::Relay, id), (0, true));
    // Before the client's reset is written, the relay ends the request, which closes the stream, and opens another.
    pair.relay.finish(id, NONE).unwrap();
    while pair.transmit(Side::Relay) {}
    pair.relay.release(id);
    let next = open(&mut pair);
    while pair.transmit(Side::Relay) {}
    while pair.deliver(Side::Client) {}
    pair.settle();
    assert_eq!(accept(&mut pair), next);
    assert_eq!(pair.client.open_streams(), 1);
}

#[test]
fn a_body_that_was_cut_by_our_own_reset_never_reads_as_complete() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    pair.client.send_head(id, HEAD, false).unwrap();
    send(&mut pair, Side::Client, id, 1000);
    pair.client.finish(id, NONE).unwrap();
    pair.settle();
    assert_eq!(recv(&mut pair, Side::Relay, id), head());
    pair.relay.reset(id, Reset::Deadline);
    assert_eq!(recv(&mut pair, Side::Relay, id), Poll::Ready(Err(StreamError::Closed)));
    pair.settle();
    assert_eq!(recv(&mut pair, Side::Relay, id), Poll::Ready(Err(StreamError::Closed)));
}

#[test]
fn readers_and_writers_are_woken_by_a_reset_of_either_end() {
    for by in [Side::Relay, Side::Client] {
        for waits in [Side::Relay, Side::Client] {
            let mut pair = pair(4);
            let id = open_and_accept(&mut pair);
            pair.client.send_head(id, HEAD, false).unwrap();
            pair.settle();
            drain(&mut pair, waits, id);
            let (reader, writer) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
            let now = pair.now;
            assert!(pair.mux(waits).poll_recv(id, now, &Context::from_waker(&reader.waker())).is_pending());
            let mut much = Bytes::from(vec![0; 1 << 20]);
            assert!(pair.mux(waits).poll_send(id, &mut much, &Context::from_waker(&writer.waker())).is_pending());
            pair.mux(by).reset(id, Reset::Deadline);
            if by != waits {
                pair.transmit(by);
                pair.deliver(waits);
            }
            assert_eq!((reader.count(), writer.count()), (1, 1), "{waits:?} waits, {by:?} resets");
        }
    }
}

#[test]
fn a_reset_before_the_open_was_written_wakes_and_says_nothing() {
    let mut pair = pair(4);
    let id = open(&mut pair);
    let (reader, writer) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let now = pair.now;
    assert!(pair.relay.poll_recv(id, now, &Context::from_waker(&reader.waker())).is_pending());
    let mut much = Bytes::from(vec![0; 1 << 20]);
    assert!(pair.relay.poll_send(id, &mut much, &Context::from_waker(&writer.waker())).is_pending());
    pair.relay.reset(id, Reset::Cancelled);
    assert_eq!((reader.count(), writer.count()), (1, 1));
    assert!(!pair.transmit(Side::Relay), "the client never hears of the stream");
    pair.relay.release(id);
    pair.relay.assert_idle();
}

#[test]
fn everybody_is_woken_when_the_session_ends() {
    let ends: [fn(&mut Pair); 3] = [
        |pair| pair.relay.link_lost("cut".into()),
        |pair| pair.relay.go_away(GoAway::Revoked, false, "revoked"),
        |pair| pair.advance(Duration::from_secs(15)),
    ];
    for end in ends {
        let mut pair = pair(4);
        let id = open_and_accept(&mut pair);
        let (reader, writer, events) = (Arc::<Bell>::default(), Arc::<Bell>::default(), Arc::<Bell>::default());
        let now = pair.now;
        assert!(pair.relay.poll_recv(id, now, &Context::from_waker(&reader.waker())).is_pending());
        let mut much = Bytes::from(vec![0; 1 << 20]);
        assert!(pair.relay.poll_send(id, &mut much, &Context::from_waker(&writer.waker())).is_pending());
        assert!(pair.relay.poll_event(&Context::from_waker(&events.waker())).is_pending());
        end(&mut pair);
        assert_eq!((reader.count(), writer.count(), events.count()), (1, 1, 1));
        assert_eq!(recv(&mut pair, Side::Relay, id), Poll::Ready(Err(StreamError::SessionEnded)));
        assert!(matches!(pair.relay.poll_send(id, &mut much, &noop()), Poll::Ready(Err(StreamError::SessionEnded))));
        pair.relay.release(id);
        while pair.transmit(Side::Relay) {}
        pair.relay.assert_idle();
        assert!(pair.relay.is_finished());
    }
}

#[test]
fn a_reset_after_the_end_keeps_buffered_data_readable() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    pair.client.send_head(id, HEAD, false).unwrap();
    send(&mut pair, Side::Client, id, 50_000);
    pair.client.finish(id, Bytes::from_static(b"trailers")).unwrap();
    while pair.transmit(Side::Client) {}
    pair.client.reset(id, Reset::Cancelled);
    pair.settle();
    assert_eq!(recv(&mut pair, Side::Relay, id), head());
    assert_eq!(drain(&mut pair, Side::Relay, id), (50_000, true), "the answer is whole");
    assert_eq!(send_error(&mut pair, Side::Relay, id), StreamError::Reset(Reset::Cancelled));
}

#[test]
fn what_came_before_a_reset_is_readable_and_then_the_reset_is_loud() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    pair.client.send_head(id, HEAD, false).unwrap();
    send(&mut pair, Side::Client, id, 50_000);
    while pair.transmit(Side::Client) {}
    pair.client.reset(id, Reset::UpstreamInvalid);
    pair.settle();
    assert_eq!(drain(&mut pair, Side::Relay, id), (50_000, false));
    let error = StreamError::Reset(Reset::UpstreamInvalid);
    assert_eq!(recv(&mut pair, Side::Relay, id), Poll::Ready(Err(error)));
    assert_eq!(pair.relay.check(id), Err(error));
}

fn send_error(pair: &mut Pair, side: Side, id: StreamId) -> StreamError {
    match pair.mux(side).poll_send(id, &mut Bytes::from_static(b"x"), &noop()) {
        Poll::Ready(Err(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_half_open_stream_whose_handle_is_dropped_goes_away_at_both_ends() {
    for by in [Side::Relay, Side::Client] {
        for finished in [Side::Relay, Side::Client] {
            let mut pair = pair(4);
            let id = open_and_accept(&mut pair);
            if finished == Side::Client {
                pair.client.send_head(id, HEAD, false).unwrap();
            }
            pair.mux(finished).finish(id, NONE).unwrap();
            pair.settle();
            pair.mux(by).release(id);
            pair.settle();
            assert_eq!(pair.relay.open_streams() + pair.client.open_streams(), 0, "{by:?} drops, {finished:?} ended");
            pair.mux(other(by)).release(id);
            pair.settle();
            pair.relay.assert_idle();
            pair.client.assert_idle();
        }
    }
}

#[test]
fn a_complete_answer_is_written_although_the_request_was_not_read() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    send(&mut pair, Side::Relay, id, 100_000);
    pair.settle();
    pair.client.send_head(id, HEAD, false).unwrap();
    assert_eq!(send(&mut pair, Side::Client, id, 60_000), 60_000);
    pair.client.finish(id, NONE).unwrap();
    pair.client.release(id);
    pair.settle();
    assert_eq!(drain(&mut pair, Side::Relay, id), (60_000, true));
    pair.relay.release(id);
    pair.settle();
    pair.relay.assert_idle();
    pair.client.assert_idle();
}

#[test]
fn many_interim_heads_neither_exceed_a_message_nor_get_the_sender_accused() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    let long = Bytes::from(vec![b'h'; 60_000]);
    for _ in 0..4 * MAX_INTERIM {
        pair.client.send_head(id, long.clone(), true).unwrap();
    }
    pair.client.send_head(id, long, false).unwrap();
    pair.settle();
    let mut interim = 0;
    while let Poll::Ready(Ok(Some(Item::Head { interim: true, .. }))) = recv(&mut pair, Side::Relay, id) {
        interim += 1;
    }
    assert_eq!(interim, MAX_INTERIM);
}

#[test]
fn a_client_that_only_listens_still_shows_that_it_is_alive() {
    let mut pair = pair(100);
    // A request every three seconds, none of which is answered for a while: the client has nothing to say.
    for _ in 0..20 {
        open(&mut pair);
        pair.settle();
        pair.advance(Duration::from_secs(3));
        assert_eq!((pair.relay.ended(), pair.client.ended()), (None, None));
    }
}

/// A relay that asks the peer, as often as it wants, and hears of it in time.
#[test]
fn the_relay_knows_what_its_client_has_got() {
    let mut pair = pair(16);
    let ids: Vec<_> = (0..6).map(|_| open(&mut pair)).collect();
    let seen = |pair: &Pair| ids.iter().filter(|id| pair.relay.has_seen(**id)).count();
    assert!(pair.transmit(Side::Relay) && pair.deliver(Side::Client));
    assert!(!pair.transmit(Side::Client), "what was got is not acknowledged by itself");
    assert_eq!(seen(&pair), 0);
    // Whoever speaks of a stream has got those before it, too.
    pair.client.reset(ids[1], Reset::Refused);
    pair.settle();
    assert_eq!(seen(&pair), 2);
    // Nor does it cost anything to ask for what is known.
    let now = pair.now;
    pair.relay.ask_for(ids[1], now);
    assert!(!pair.relay.has_output());
    pair.relay.ask_for(ids[3], now);
    pair.relay.ask_for(ids[2], now);
    assert!(pair.transmit(Side::Relay) && !pair.transmit(Side::Relay), "one question for all");
    pair.settle();
    assert_eq!(seen(&pair), 6);

    // A question that overtakes an opening says nothing of it, so that it is asked again.
    let late = open(&mut pair);
    pair.relay.ask_for(late, now);
    assert!(pair.transmit(Side::Relay) && pair.deliver(Side::Client));
    assert!(pair.transmit(Side::Client) && pair.deliver(Side::Relay));
    assert!(!pair.relay.has_seen(late) && pair.relay.has_output());
    pair.settle();
    assert!(pair.relay.has_seen(late) && !pair.relay.has_output());

    // What is on its way when the link is lost may never have come.
    let lost = open(&mut pair);
    pair.relay.ask_for(lost, now);
    assert!(pair.transmit(Side::Relay));
    pair.relay.link_lost("cut".into());
    assert!(pair.relay.has_seen(late) && !pair.relay.has_seen(lost));
    pair.relay.ask_for(lost, now);
    assert!(!pair.relay.has_output());
}

#[test]
fn both_ends_notice_silence_in_time() {
    let mut pair = Pair::new(limits(4));
    pair.settle();
    let start = pair.now;
    while pair.relay.ended().is_none() || pair.client.ended().is_none() {
        pair.advance(Duration::from_millis(100));
        assert!(pair.now - start <= Duration::from_secs(15), "silence was not noticed");
    }
    assert!(matches!(pair.relay.ended(), Some(Ended::Silent(_))));
}

#[test]
fn idle_sessions_stay_alive() {
    let mut pair = pair(4);
    for _ in 0..600 {
        pair.advance(Duration::from_millis(500));
        pair.settle();
    }
    assert_eq!((pair.relay.ended(), pair.client.ended()), (None, None));
}

#[test]
fn a_relay_that_drains_loses_no_stream_that_it_has_opened() {
    let mut pair = pair(200);
    // More than one message holds.
    let now = pair.now;
    let ids: Vec<_> = (0..100).map(|_| pair.relay.open(Bytes::from(vec![b'h'; 4000]), now).unwrap()).collect();
    pair.relay.go_away(GoAway::Shutdown, true, "restart");
    assert_eq!(pair.relay.open(HEAD, now), Err(OpenError::Ending));
    while pair.transmit(Side::Relay) || pair.deliver(Side::Client) {
        assert!(!pair.client.is_finished() || ids.is_empty(), "the client hangs up on streams that are on their way");
    }
    answer_all(&mut pair, &ids);
}

#[test]
fn a_client_that_drains_loses_no_stream_that_is_on_its_way() {
    let mut pair = pair(200);
    let now = pair.now;
    let mut ids = vec![open(&mut pair)];
    pair.transmit(Side::Relay);
    pair.client.go_away(GoAway::Shutdown, true, "ctrl-c");
    pair.transmit(Side::Client);
    assert!(!pair.client.is_finished(), "the relay may have opened streams that are still on their way");
    ids.push(pair.relay.open(HEAD, now).unwrap());
    pair.deliver(Side::Relay);
    assert_eq!(pair.relay.open(HEAD, now), Err(OpenError::Ending));
    pair.settle();
    assert!(!pair.client.is_finished());
    answer_all(&mut pair, &ids);
}

/// The client answers what was opened; then both ends have finished.
fn answer_all(pair: &mut Pair, ids: &[StreamId]) {
    let mut opened = Vec::new();
    while let Poll::Ready(event) = pair.client.poll_event(&noop()) {
        if let Event::Opened(id) = event {
            opened.push(id);
        }
    }
    assert_eq!(opened, ids);
    for &id in ids {
        pair.relay.finish(id, NONE).unwrap();
        pair.client.send_head(id, HEAD, false).unwrap();
        pair.client.finish(id, NONE).unwrap();
        pair.client.release(id);
    }
    pair.settle();
    for &id in ids {
        assert_eq!(drain(pair, Side::Relay, id), (0, true));
        pair.relay.release(id);
    }
    pair.settle();
    assert!(pair.relay.is_finished() && pair.client.is_finished());
}

#[test]
fn the_first_data_frame_may_fill_the_window_exactly_and_credit_follows_reading() {
    let mut pair = pair(4);
    let id = open_and_accept(&mut pair);
    let mut taken = 0;
    loop {
        let now = send(&mut pair, Side::Relay, id, 1 << 18);
        pair.settle();
        taken += now;
        if now == 0 {
            break;
        }
    }
    assert_eq!(taken, 256 * 1024, "the initial credit of an idle session");
    assert_eq!(recv(&mut pair, Side::Client, id), head());
    let mut read = 0;
    while read < 128 * 1024 {
        match recv(&mut pair, Side::Client, id) {
            Poll::Ready(Ok(Some(Item::Data(bytes)))) => read += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    pair.settle();
    assert!(send(&mut pair, Side::Relay, id, 1 << 18) > 0, "half a window was read");
}

#[test]
fn a_slow_reader_stalls_its_own_stream_only() {
    let mut pair = pair(1024);
    let stalled: Vec<_> = (0..1000).map(|_| open_and_accept(&mut pair)).collect();
    for &id in &stalled {
        pair.client.send_head(id, HEAD, false).unwrap();
    }
    for _ in 0..20 {
        for &id in &stalled {
            send(&mut pair, Side::Client, id, 1 << 18);
        }
        pair.settle();
    }
    let id = open_and_accept(&mut pair);
    pair.client.send_head(id, HEAD, false).unwrap();
    pair.settle();
    let mut read = 0;
    for _ in 0..400 {
        pair.now += Duration::from_millis(1);
        send(&mut pair, Side::Client, id, 1 << 18);
        pair.settle();
        read += drain(&mut pair, Side::Relay, id).0;
    }
    // The floor, less what is on its way, in every second turn.
    assert!(read >= 400 * 8 * 1000, "{read} bytes beside readers that do not read");
}

#[test]
fn a_small_exchange_is_written_within_the_next_round_of_bulk() {
    let mut pair = pair(64);
    let bulk: Vec<_> = (0..20).map(|_| open_and_accept(&mut pair)).collect();
    for &id in &bulk {
        pair.client.send_head(id, HEAD, false).unwrap();
        assert!(send(&mut pair, Side::Client, id, 64 * 1024) >= 16 * 1024);
    }
    let small = open_and_accept_beside(&mut pair);
    pair.client.send_head(small, HEAD, false).unwrap();
    send(&mut pair, Side::Client, small, 100);
    pair.client.finish(small, NONE).unwrap();
    let (mut before, mut out) = (0, BytesMut::new());
    'written: loop {
        out.clear();
        assert!(pair.client.poll_transmit(&mut out));
        let mut message = out.split().freeze();
        while let Some(frame) = Frame::decode(&mut message).unwrap() {
            match frame {
                Frame::Data { stream, last, .. } if stream == small => {
                    assert!(last, "head, body and end travel together");
                    break 'written;
                }
                Frame::Data { bytes, .. } => before += bytes.len(),
                _ => {}
            }
        }
    }
    assert!(before <= bulk.len() * 16 * 1024, "{before} bytes of bulk before a small answer");
}

/// Opens a stream without letting the client write.
fn open_and_accept_beside(pair: &mut Pair) -> StreamId {
    let id = open(pair);
    while pair.transmit(Side::Relay) || pair.deliver(Side::Client) {}
    assert_eq!(accept(pair), id);
    id
}

#[test]
fn windows_grow_with_bandwidth_and_delay_and_are_given_back() {
    let (mut pair, rtt) = (Pair::new(limits(16)), Duration::from_millis(50));
    // Both ends measure the round trip first.
    for side in [Side::Relay, Side::Client].repeat(8) {
        while pair.transmit(side) {}
        pair.now += rtt / 2;
        while pair.deliver(other(side)) {}
    }
    let id = open_and_accept(&mut pair);
    pair.client.send_head(id, HEAD, false).unwrap();
    let (mut read, mut best) = (0, 0);
    for _ in 0..60 {
        // A round trip: what the client may send arrives, and the credit for it goes back.
        loop {
            if send(&mut pair, Side::Client, id, 1 << 18) == 0 {
                break;
            }
            while pair.transmit(Side::Client) {}
        }
        pair.now += rtt / 2;
        while pair.deliver(Side::Relay) {}
        let got = drain(&mut pair, Side::Relay, id).0;
        (read, best) = (read + got, best.max(got));
        while pair.transmit(Side::Relay) {}
        pair.now += rtt / 2;
        while pair.deliver(Side::Client) {}
        pair.assert_consistent();
    }
    assert!(best >= 8 << 20, "{best} bytes in a round trip, {read} in all");
    pair.client.finish(id, NONE).unwrap();
    pair.relay.finish(id, NONE).unwrap();
    pair.settle();
    drain(&mut pair, Side::Relay, id);
    drain(&mut pair, Side::Client, id);
    pair.client.release(id);
    pair.relay.release(id);
    pair.settle();
    pair.relay.assert_idle();
    pair.client.assert_idle();
}

#[test]
fn a_crowd_of_large_heads_is_refused_and_nobody_is_accused() {
    let mut pair = pair(1024);
    let now = pair.now;
    for _ in 0..1024 {
        pair.relay.open(Bytes::from(vec![b'h'; 32_000]), now).unwrap();
    }
    pair.settle();
    assert_eq!((pair.relay.ended(), pair.client.ended()), (None, None));
    let refused = (1..=1024).filter(|id| {
        let id = StreamId::new(*id).unwrap();
        pair.relay.check(id) == Err(StreamError::Reset(Reset::Refused))
    });
    assert!((1..=1024 - 200).contains(&refused.count()));
}

#[test]
fn ended_streams_that_nobody_reads_stay_within_the_budget() {
    for ender in [Side::Relay, Side::Client] {
        let mut pair = pair(1024);
        let reader = other(ender);
        let mut held = 0;
        for _ in 0..1000 {
            let now = pair.now;
            let Ok(id) = pair.relay.open(HEAD, now) else { break };
            pair.settle();
            let Poll::Ready(Event::Opened(_)) = pair.client.poll_event(&noop()) else {
                assert_eq!(pair.relay.check(id), Err(StreamError::Reset(Reset::Refused)));
                break;
            };
            pair.client.send_head(id, HEAD, false).unwrap();
            for _ in 0..8 {
                held += send(&mut pair, ender, id, 1 << 18);
                pair.settle();
            }
            pair.relay.finish(id, NONE).unwrap();
            pair.client.finish(id, NONE).unwrap();
            pair.mux(ender).release(id);
            pair.settle();
        }
        assert_eq!(pair.relay.open_streams(), 0);
        assert!(held <= 32 << 20, "{reader:?} holds {} MiB of ended streams", held >> 20);
        assert!(held >= 8 << 20, "{reader:?} took {} MiB only", held >> 20);
        assert_eq!((pair.relay.ended(), pair.client.ended()), (None, None));
    }
}

#[test]
fn what_is_opened_and_reset_while_the_link_stands_still_leaves_no_trace() {
    let mut pair = pair(1024);
    let now = pair.now;
    for _ in 0..100_000 {
        let id = pair.relay.open(HEAD, now).unwrap();
        pair.relay.release(id);
    }
    pair.relay.assert_idle();
}

#[test]
fn messages_hold_no_more_than_the_peer_accepts() {
    let mut pair = pair(1024);
    let now = pair.now;
    for _ in 0..40 {
        let id = pair.relay.open(Bytes::from(vec![b'h'; 65_000]), now).unwrap();
        send(&mut pair, Side::Relay, id, 60_000);
        pair.relay.finish(id, Bytes::from(vec![b't'; 65_000])).unwrap();
    }
    for _ in 0..12 {
        let kind = relay_protocol::frame::SessionKind::Bind;
        pair.relay.send_message(kind, Bytes::from(vec![0; 65_000])).unwrap();
    }
    let mut out = BytesMut::new();
    while pair.relay.poll_transmit(&mut out) {
        assert!(out.len() <= MAX_MESSAGE, "{}", out.len());
        out.clear();
    }
}

#[test]
fn a_client_may_bind_and_unbind_all_its_tunnels_at_once() {
    let mut pair = pair(1);
    for _ in 0..2 * relay_protocol::message::MAX_TUNNELS {
        let payload = Bytes::from(vec![0; 300]);
        pair.client.send_message(relay_protocol::frame::SessionKind::Bind, payload).unwrap();
    }
    pair.settle();
    assert_eq!((pair.relay.ended(), pair.client.ended()), (None, None));
}

#[test]
fn a_multiplexer_that_was_just_made_pings() {
    let mut relay = Mux::new(Side::Relay, limits(1), std::time::Instant::now());
    assert!(relay.has_output());
    assert!(relay.poll_transmit(&mut BytesMut::new()));
    assert!(!relay.has_output());
}
