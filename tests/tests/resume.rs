//! What a client's owner and his callers notice when its link is lost and it comes back. The client is written by hand, so
//! that it can have seen, or claim to have seen, whatever a test wants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use relay_protocol::frame::{Frame, GoAway, Reset, SessionKind};
use relay_protocol::message::{Payload as _, Resume, TunnelSpec, Welcome};
use relay_server::store::TokenLimits;
use relay_tests::body::{empty, full};
use relay_tests::peer::{Opened, Socket, connect_on, head, id, resuming, sessions, spec};
use relay_tests::process::run;
use relay_tests::{Answer, World, within};
use tokio::task::JoinHandle;

/// A world whose requests wait for as long as a test takes, so that a short wait is seen to be none, and a token.
async fn patient() -> (World, String) {
    let world = World::with(|config| config.limits.client_wait = Duration::from_secs(25)).await;
    let token = world.token().await;
    (world, token)
}

/// Less than what a patient world waits.
const AT_ONCE: Duration = Duration::from_secs(15);

async fn connect(world: &World, token: &str) -> Socket {
    connect_on(world.raw("relay.test").await, token).await
}

/// A session with these tunnels that goes on with another, if it may.
async fn begin(world: &World, token: &str, resume: Option<Resume>, names: &[&str]) -> (Socket, Welcome) {
    let mut socket = connect(world, token).await;
    let welcome = within("a Welcome", socket.welcome(resume, specs(names))).await;
    (socket, welcome)
}

/// A session that goes on with no other, and has the tunnel `hooks`.
async fn fresh(world: &World, token: &str) -> (Socket, Welcome) {
    begin(world, token, None, &["hooks"]).await
}

/// As [`begin`]; all of it is granted.
async fn resume(world: &World, token: &str, old: &Welcome, last_stream: u32, names: &[&str]) -> (Socket, Welcome) {
    let (socket, welcome) = begin(world, token, Some(with(old, last_stream)), names).await;
    assert!(welcome.resumed && refusals(&welcome).is_empty(), "{welcome:?}");
    (socket, welcome)
}

fn with(old: &Welcome, last_stream: u32) -> Resume {
    Resume { key: old.resume_key, last_stream }
}

fn specs(names: &[&str]) -> Vec<TunnelSpec> {
    names.iter().zip(1..).map(|(name, number)| spec(number, name)).collect()
}

/// A Welcome to a session that goes on with another. The relay does not hear that it has come.
async fn unanswered(socket: &mut Socket, old: &Welcome) -> Welcome {
    socket.send(&[resuming(Some(with(old, 0)), specs(&["hooks"]))]).await;
    loop {
        if let Frame::Session(SessionKind::Welcome, payload) = within("a Welcome", socket.next()).await.unwrap() {
            return Welcome::from_bytes(&payload).unwrap();
        }
    }
}

/// A request has come as far as this session's socket, and nobody says so.
async fn unseen(socket: &mut Socket) {
    within("the request", async { while !matches!(socket.next().await.expect("a session"), Frame::Open { .. }) {} })
        .await;
}

fn refusals(welcome: &Welcome) -> Vec<&str> {
    welcome.tunnels.iter().filter_map(|bound| Some(bound.result.as_ref().err()?.code.as_str())).collect()
}

/// A session that lives on, and why it ends.
fn live(mut socket: Socket) -> JoinHandle<Option<GoAway>> {
    tokio::spawn(async move { socket.farewell().await })
}

/// A POST that is under way.
async fn post(world: &World, path: &str, body: impl Into<Bytes>) -> JoinHandle<Answer> {
    let mut http = world.http1(&world.host("hooks")).await;
    let request = Request::post(world.url("hooks", path)).body(full(body)).unwrap();
    tokio::spawn(async move { http.answer(request).await })
}

/// A request that the session `old` has been sent, and its answer to come.
async fn posted(world: &World, old: &mut Socket, body: impl Into<Bytes>) -> (Opened, JoinHandle<Answer>) {
    let answer = post(world, "/first?a=%2F", body).await;
    (within("the request", old.opened()).await, answer)
}

/// The relay has taken in what it was sent on this session.
async fn taken_in(session: &mut Socket) {
    session.send(&[Frame::Ping(99)]).await;
    within("a Pong", async { while session.next().await.unwrap() != Frame::Pong(99) {} }).await;
}

async fn answered(answer: JoinHandle<Answer>) -> Answer {
    within("an answer", answer).await.unwrap()
}

fn is_lost(answer: &Answer) {
    assert_eq!((answer.code(), answer.error()), (502, Some("link-lost")), "{answer:?}");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
}

/// The session works, and what it is sent first is this.
async fn serves(world: &World, socket: &mut Socket) {
    let answer = post(world, "/second", "").await;
    let opened = within("the second request", socket.opened()).await;
    assert_eq!(opened.head.target, "/second", "nothing else was sent");
    socket.answer(opened.stream, "served").await;
    assert_eq!(answered(answer).await.text(), "served");
}

/// As [`serves`]; then its client goes.
async fn serves_to_its_end(world: &World, mut socket: Socket) {
    serves(world, &mut socket).await;
    drop(socket);
    sessions(world, 0).await;
}

/// Bytes in which a piece lost, doubled or out of place shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24).to_le_bytes()[..1].to_vec()).collect()
}

mod keys {
    use super::*;

    /// A laptop that changes its network is back long before anybody can know that its old connection is dead.
    #[tokio::test]
    async fn give_the_names_back_while_the_old_link_is_alive() {
        let world = World::start().await;
        let token = world.token().await;
        let (old, first) = begin(&world, &token, None, &["hooks", "other"]).await;
        let old = live(old);
        let (_, refused) = fresh(&world, &token).await;
        assert_eq!(refusals(&refused), ["name-in-use"], "without the key");
        let (mut new, welcome) = resume(&world, &token, &first, 0, &["hooks", "other"]).await;
        assert_ne!(welcome.session, first.session);
        assert_ne!(welcome.resume_key, first.resume_key, "each Welcome brings a new one");
        assert_eq!(within("the old one's end", old).await.unwrap(), Some(GoAway::Replaced));
        serves(&world, &mut new).await;
        sessions(&world, 1).await;
        serves(&world, &mut new).await;
    }

    #[tokio::test]
    async fn outlive_their_session_for_a_while() {
        for keeps in [Duration::from_secs(600), Duration::ZERO] {
            let world = World::with(|config| config.limits.resume = keeps).await;
            let token = world.token().await;
            let (old, first) = fresh(&world, &token).await;
            drop(old);
            sessions(&world, 0).await;
            let (mut new, welcome) = begin(&world, &token, Some(with(&first, 0)), &["hooks"]).await;
            assert_eq!(welcome.resumed, !keeps.is_zero(), "kept for {keeps:?}");
            serves(&world, &mut new).await;
        }
    }

    #[tokio::test]
    async fn are_worth_nothing_to_others_or_a_second_time() {
        let world = World::start().await;
        let (mine, theirs) = (world.token().await, world.token().await);
        let (old, first) = begin(&world, &mine, None, &["hooks"]).await;
        let old = live(old);
        let (_, stolen) = begin(&world, &theirs, Some(with(&first, 0)), &["hooks", "their-own"]).await;
        assert!(!stolen.resumed);
        assert_eq!(refusals(&stolen), ["name-taken"], "a session like any other");
        let guess = Resume { key: [7; 32], last_stream: 0 };
        let (_, guessed) = begin(&world, &mine, Some(guess), &["hooks"]).await;
        assert!(!guessed.resumed);
        assert_eq!(refusals(&guessed), ["name-in-use"]);

        let (mut new, _) = resume(&world, &mine, &first, 0, &["hooks"]).await;
        assert_eq!(within("the old one's end", old).await.unwrap(), Some(GoAway::Replaced));
        // What it has sent tells that its Welcome has arrived.
        serves(&world, &mut new).await;
        let new = live(new);
        let (_, again) = begin(&world, &mine, Some(with(&first, 0)), &["hooks"]).await;
        assert!(!again.resumed);
        assert_eq!(refusals(&again), ["name-in-use"]);
        assert!(!new.is_finished());
    }

    /// A client that lost its link again before the Welcome was there has no other key.
    #[tokio::test]
    async fn serve_again_where_the_welcome_did_not_arrive() {
        let (world, _) = patient().await;
        let limits = TokenLimits { max_tunnels: 1, max_names: 1, max_sessions: 1, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        for alive in [true, false] {
            let (mut old, first) = fresh(&world, &token).await;
            let (lost, answer) = posted(&world, &mut old, "hello").await;
            let again = || resuming(Some(with(&first, lost.stream - 1)), specs(&["hooks"]));
            let mut deaf = Vec::new();
            for _ in 0..2 {
                let mut socket = connect(&world, &token).await;
                socket.send(&[again()]).await;
                unseen(&mut socket).await;
                deaf.push(socket);
            }
            drop(old);
            if !alive {
                deaf.clear();
                sessions(&world, 0).await;
            }
            let (mut new, _) = resume(&world, &token, &first, lost.stream - 1, &["hooks"]).await;
            let moved = within("the request", new.opened()).await;
            assert_eq!(moved.head.id, lost.head.id);
            new.answer(moved.stream, "moved").await;
            assert_eq!(answered(answer).await.text(), "moved");
            serves(&world, &mut new).await;
            let mut late = connect(&world, &token).await;
            late.send(&[again()]).await;
            assert_eq!(within("a refusal", late.farewell()).await, Some(GoAway::Limit), "the key was used up");
            drop((new, late, deaf));
            sessions(&world, 0).await;
        }
    }

    /// An attempt that its client has given up arrives after the one that took its place, and ends that. The client has
    /// the key of the one that was ended, and nobody is behind the late one.
    #[tokio::test]
    async fn bring_back_a_client_whose_session_was_ended_by_an_attempt_from_before() {
        let world = World::start().await;
        let token = world.token().await;
        for closed in [true, false] {
            let (old, first) = fresh(&world, &token).await;
            drop(old);
            sessions(&world, 0).await;
            let mut late = connect(&world, &token).await;
            let mut socket = connect(&world, &token).await;
            let welcome = unanswered(&mut socket, &first).await;
            assert!(unanswered(&mut late, &first).await.resumed);
            assert_eq!(within("its end", socket.farewell()).await, Some(GoAway::Replaced));
            let late = (!closed).then_some(late);
            let (mut new, _) = resume(&world, &token, &welcome, 0, &["hooks"]).await;
            serves(&world, &mut new).await;
            drop((new, late, socket));
            sessions(&world, 0).await;
        }
    }

    /// The same with a token that has one seat, where the late attempt has come over a network that is gone, so that nothing
    /// tells the relay that nobody is behind it. What was sent meanwhile has not been seen, and comes along.
    #[tokio::test]
    async fn bring_back_a_client_and_its_requests_while_the_attempt_from_before_seems_alive() {
        let (world, _) = patient().await;
        let limits = TokenLimits { max_tunnels: 1, max_names: 1, max_sessions: 1, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        let (old, first) = fresh(&world, &token).await;
        drop(old);
        sessions(&world, 0).await;
        let mut socket = connect(&world, &token).await;
        let mut late = connect(&world, &token).await;
        let welcome = unanswered(&mut socket, &first).await;
        let one = post(&world, "/one", "1").await;
        unseen(&mut socket).await;
        assert!(unanswered(&mut late, &first).await.resumed);
        assert_eq!(within("its end", socket.farewell()).await, Some(GoAway::Replaced));
        unseen(&mut late).await;
        let two = post(&world, "/two", "2").await;
        unseen(&mut late).await;
        let (mut new, _) = resume(&world, &token, &welcome, 0, &["hooks"]).await;
        let mut served = Vec::new();
        for _ in 0..2 {
            let opened = within("a request", new.opened()).await;
            new.answer(opened.stream, "served").await;
            served.push(opened.head.target.to_string());
        }
        served.sort();
        assert_eq!(served, ["/one", "/two"]);
        for answer in [one, two] {
            assert_eq!(answered(answer).await.text(), "served");
        }
    }

    /// Somebody who comes and goes all the time costs others nothing.
    #[tokio::test]
    async fn of_one_token_are_not_pushed_out_by_those_of_another() {
        let world = World::with(|config| config.limits.resume_keys = 4).await;
        let (mine, theirs) = (world.token().await, world.token().await);
        let (old, first) = fresh(&world, &mine).await;
        drop(old);
        sessions(&world, 0).await;
        for _ in 0..10 {
            drop(begin(&world, &theirs, None, &["theirs"]).await);
            sessions(&world, 0).await;
        }
        resume(&world, &mine, &first, 0, &["hooks"]).await;
    }

    /// A stranger on the wire who lets every Welcome vanish does not keep a key alive.
    #[tokio::test]
    async fn that_never_bring_a_welcome_end() {
        let world = World::start().await;
        let token = world.token().await;
        let (old, first) = fresh(&world, &token).await;
        drop(old);
        sessions(&world, 0).await;
        let mut resumed = 0;
        for _ in 0..12 {
            let mut socket = connect(&world, &token).await;
            let welcome = unanswered(&mut socket, &first).await;
            resumed += u32::from(welcome.resumed);
            drop(socket);
            sessions(&world, 0).await;
        }
        assert_eq!(resumed, 8);
    }

    #[tokio::test]
    async fn die_with_their_token() {
        let world = World::start().await;
        let (token, name) = world.token_with(|_| {}).await;
        // The program may have to be built first, for longer than a session may be silent.
        run("relay-server", ["--version"]).await;
        let (old, first) = fresh(&world, &token).await;
        let old = live(old);
        let data = world.data_dir().display().to_string();
        let revoked = run("relay-server", ["token", "--data-dir", &data, "revoke", &name]).await;
        assert!(revoked.status.success(), "{revoked:?}");
        assert_eq!(within("the old one's end", old).await.unwrap(), Some(GoAway::Revoked));
        // One of the same name has its names, but is another.
        let (token, _) = world.token_with(|new| new.name = name).await;
        let (_, welcome) = begin(&world, &token, Some(with(&first, 0)), &["hooks"]).await;
        assert!(!welcome.resumed && refusals(&welcome).is_empty(), "{welcome:?}");
    }

    /// The session that is resumed is no second one.
    #[tokio::test]
    async fn hand_over_what_the_token_may_have() {
        let world = World::start().await;
        let limits = TokenLimits { max_tunnels: 2, max_names: 3, max_sessions: 1, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        let (socket, mut last) = begin(&world, &token, None, &["hooks", "other"]).await;
        let mut old = live(socket);
        for round in 0..10 {
            let mut stranger = connect(&world, &token).await;
            stranger.send(&[relay_tests::peer::hello(specs(&["more"]))]).await;
            assert_eq!(within("a refusal", stranger.farewell()).await, Some(GoAway::Limit), "{round}");
            // Also where it asks for other names than before.
            let other = if round % 2 == 0 { "third" } else { "other" };
            let (mut socket, welcome) = resume(&world, &token, &last, 0, &["hooks", other]).await;
            assert_eq!(within("the old one's end", old).await.unwrap(), Some(GoAway::Replaced), "{round}");
            let bind = relay_protocol::message::Payload::to_bytes(&spec(9, "hooks2")).unwrap();
            socket.send(&[Frame::Session(SessionKind::Bind, bind)]).await;
            let kind = SessionKind::Bound;
            let bound: relay_protocol::message::Bound = within("a Bound", socket.next_message(kind)).await;
            assert_eq!(bound.result.unwrap_err().code, "too-many-tunnels", "{round}");
            serves(&world, &mut socket).await;
            (old, last) = (live(socket), welcome);
        }
        sessions(&world, 1).await;
        assert!(!old.is_finished());
    }
}

/// Requests that were under way when the link was lost.
mod requests {
    use super::*;

    #[tokio::test]
    async fn that_the_client_has_not_seen_move_with_their_bodies() {
        let (world, token) = patient().await;
        for (len, alive) in [(0, true), (2, false), (40_000, true), (64 * 1024, false)] {
            let body = pattern(len);
            let (mut old, first) = fresh(&world, &token).await;
            let (lost, answer) = posted(&world, &mut old, body.clone()).await;
            // The relay notices the end of one, and is told of the other's.
            let _alive = alive.then_some(old);
            let (mut new, _) = resume(&world, &token, &first, lost.stream - 1, &["more", "hooks"]).await;
            let moved = within("the request", new.opened()).await;
            assert_eq!((&moved.head.id, &moved.head.target), (&lost.head.id, &lost.head.target));
            assert_eq!(moved.head.headers, lost.head.headers);
            assert_eq!((lost.head.tunnel, moved.head.tunnel), (1, 2), "by its number in the new session");
            assert!(moved.head.deadline_ms <= lost.head.deadline_ms && moved.head.elapsed_ms >= lost.head.elapsed_ms);
            assert_eq!(within("its body", new.body(&moved)).await, body, "{len}");
            new.answer(moved.stream, "moved").await;
            assert_eq!(answered(answer).await.text(), "moved", "{len}");
            serves_to_its_end(&world, new).await;
        }
    }

    #[tokio::test]
    async fn whose_bodies_are_still_coming_go_on_where_they_were() {
        let (world, token) = patient().await;
        let (mut old, first) = fresh(&world, &token).await;
        let host = world.host("hooks");
        let mut public = world.raw(&host).await;
        let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        let body = pattern(90_000);
        let (sent, rest) = body.split_at(30_000);
        let trailers = "Trailer: x-sum\r\n";
        let head = format!("POST /first HTTP/1.1\r\nHost: {host}\r\n{trailers}Transfer-Encoding: chunked\r\n\r\n");
        public.send([head.into_bytes(), chunk(&sent[..1]), chunk(&sent[1..])].concat()).await;
        let lost = within("the request", old.opened()).await;
        // All of it that was sent has come, so that it is lost now.
        let mut seen = 0;
        while seen < sent.len() {
            // Without an answer to the relay's question whether it has been seen.
            match within("its body", old.next()).await.unwrap() {
                Frame::Data { bytes, .. } => seen += bytes.len(),
                Frame::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let (mut new, _) = resume(&world, &token, &first, 0, &["hooks"]).await;
        let moved = within("the request", new.opened()).await;
        assert_eq!(moved.head.id, lost.head.id);
        public.send([chunk(rest), b"0\r\nx-sum: 7\r\n\r\n".to_vec()].concat()).await;
        assert!(within("its body", new.body(&moved)).await == body);
        new.answer(moved.stream, "moved").await;
        let answer = within("an answer", public.message()).await.unwrap();
        assert_eq!((answer.status(), &answer.body[..]), (200, &b"moved"[..]));
    }

    /// The body waits for the service's word, also for the second one's.
    #[tokio::test]
    async fn that_wait_for_a_100_and_upgrades_move_too() {
        let (world, token) = patient().await;
        let host = world.host("hooks");
        for (lines, sends, interim, status) in [
            ("Content-Length: 4\r\nExpect: 100-continue\r\n", "body", Some(100), 200),
            ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "", None, 101),
        ] {
            let (mut old, first) = fresh(&world, &token).await;
            let mut public = world.raw(&host).await;
            public.send(format!("POST /first HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")).await;
            within("the request", old.opened()).await;
            let (mut new, _) = resume(&world, &token, &first, 0, &["hooks"]).await;
            let moved = within("the request", new.opened()).await;
            if let Some(interim) = interim {
                let head =
                    Frame::Head { stream: id(moved.stream), interim: true, last: false, head: head(interim, &[]) };
                new.send(&[head]).await;
                let word = within("the word", public.head()).await.unwrap();
                assert!(word.starts_with("HTTP/1.1 100"), "{word}");
                public.send(sends).await;
                assert_eq!(within("its body", new.body(&moved)).await, sends.as_bytes());
            } else {
                assert_eq!(moved.head.upgrade.as_deref(), Some("websocket"));
            }
            let head = Frame::Head { stream: id(moved.stream), interim: false, last: false, head: head(status, &[]) };
            new.send(&[head]).await;
            let answer = within("an answer", public.head()).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            drop(new);
            sessions(&world, 0).await;
        }
    }

    /// A webhook that is delivered twice is worse than one that its provider sends again.
    #[tokio::test]
    async fn that_the_client_has_seen_fail_and_are_not_sent_again() {
        let (world, token) = patient().await;
        for extra in [0, 1, u32::MAX] {
            let (mut old, first) = fresh(&world, &token).await;
            let (lost, answer) = posted(&world, &mut old, "hello").await;
            let last = lost.stream.saturating_add(extra);
            let (new, _) = resume(&world, &token, &first, last, &["hooks"]).await;
            is_lost(&answered(answer).await);
            serves_to_its_end(&world, new).await;
        }
    }

    /// Whoever has said something of a request has seen it, whatever he says later.
    #[tokio::test]
    async fn that_the_client_denies_to_have_seen_are_not_sent_again_either() {
        let (world, token) = patient().await;
        for (status, interim) in [(103, true), (200, false)] {
            let (mut old, first) = fresh(&world, &token).await;
            let (lost, answer) = posted(&world, &mut old, "hello").await;
            let answer = tokio::spawn(async move {
                // Half an answer is none; whether it has begun is the sender's to know.
                answer.await.ok()
            });
            let head = Frame::Head { stream: id(lost.stream), interim, last: false, head: head(status, &[]) };
            old.send(&[head]).await;
            taken_in(&mut old).await;
            let (new, _) = resume(&world, &token, &first, 0, &["hooks"]).await;
            match within("an end", answer).await.unwrap() {
                Some(answer) => is_lost(&answer),
                None => assert!(!interim, "the sender is told"),
            }
            serves_to_its_end(&world, new).await;
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    /// A program that was killed does not come back, and what it has got would not be sent again if it did.
    #[tokio::test]
    async fn that_the_client_is_known_to_have_seen_fail_at_once() {
        let (world, token) = patient().await;
        let (mut old, _) = fresh(&world, &token).await;
        let (_, answer) = posted(&world, &mut old, "hello").await;
        // The relay asks by itself.
        let question = async {
            loop {
                if let Frame::Ping(nonce) = old.next().await.unwrap() {
                    return nonce;
                }
            }
        };
        let nonce = within("a question", question).await;
        old.send(&[Frame::Pong(nonce)]).await;
        taken_in(&mut old).await;
        let since = Instant::now();
        drop(old);
        is_lost(&answered(answer).await);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn that_are_too_large_to_keep_fail_at_once() {
        let (world, token) = patient().await;
        let (mut old, first) = fresh(&world, &token).await;
        let body = pattern(100_000);
        let (lost, answer) = posted(&world, &mut old, body.clone()).await;
        assert_eq!(within("its body", old.body(&lost)).await.len(), body.len());
        let since = Instant::now();
        drop(old);
        is_lost(&answered(answer).await);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        let (mut new, _) = resume(&world, &token, &first, 0, &["hooks"]).await;
        serves(&world, &mut new).await;
    }

    #[tokio::test]
    async fn that_are_lost_again_move_again() {
        let (world, token) = patient().await;
        let (mut old, mut last) = fresh(&world, &token).await;
        let (lost, answer) = posted(&world, &mut old, "hello").await;
        let mut opened = lost;
        for round in 0..3 {
            let alive = (round % 2 == 0).then_some(old);
            let (mut new, welcome) = resume(&world, &token, &last, opened.stream - 1, &["hooks"]).await;
            drop(alive);
            opened = within("the request", new.opened()).await;
            (old, last) = (new, welcome);
        }
        let (mut new, _) = resume(&world, &token, &last, opened.stream, &["hooks"]).await;
        is_lost(&answered(answer).await);
        serves(&world, &mut new).await;
    }

    #[tokio::test]
    async fn of_a_client_that_comes_back_without_its_key_fail_at_once() {
        let (world, token) = patient().await;
        let (mut old, _) = fresh(&world, &token).await;
        let (_, answer) = posted(&world, &mut old, "hello").await;
        drop(old);
        sessions(&world, 0).await;
        let since = Instant::now();
        let (mut new, welcome) = fresh(&world, &token).await;
        assert!(!welcome.resumed);
        is_lost(&answered(answer).await);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        serves(&world, &mut new).await;
    }

    #[tokio::test]
    async fn of_a_client_that_has_said_goodbye_fail_at_once() {
        let (world, token) = patient().await;
        let (mut old, _) = fresh(&world, &token).await;
        let (_, answer) = posted(&world, &mut old, "hello").await;
        let since = Instant::now();
        old.send(&[Frame::GoAway { reason: GoAway::Shutdown, drain: false, text: String::new() }]).await;
        is_lost(&answered(answer).await);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn that_the_client_resets_are_answered_as_it_says() {
        let (world, token) = patient().await;
        let (mut old, _) = fresh(&world, &token).await;
        let (lost, answer) = posted(&world, &mut old, "hello").await;
        let since = Instant::now();
        old.send(&[Frame::Reset { stream: id(lost.stream), reset: Reset::LinkLost }]).await;
        is_lost(&answered(answer).await);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    /// Nobody waits longer than the relay says, neither those under way nor those that come in the gap.
    #[tokio::test]
    async fn of_a_client_that_does_not_come_back_fail_in_time() {
        let world = World::with(|config| config.limits.client_wait = Duration::from_millis(100)).await;
        let token = world.token().await;
        let (mut old, _) = fresh(&world, &token).await;
        let (_, answer) = posted(&world, &mut old, "hello").await;
        drop(old);
        is_lost(&answered(answer).await);
        sessions(&world, 0).await;
        let late = answered(post(&world, "/late", "hello").await).await;
        assert_eq!((late.code(), late.error()), (503, Some("client-offline")));
        assert!(late.header("retry-after").parse::<u32>().unwrap() > 0);
    }

    #[tokio::test]
    async fn that_come_while_the_client_is_away_wait_for_it() {
        let (world, token) = patient().await;
        let (old, first) = fresh(&world, &token).await;
        drop(old);
        sessions(&world, 0).await;
        let mut http = world.http2(&world.host("hooks")).await;
        let requests: Vec<_> =
            (0..20).map(|_| http.begin(Request::get(world.url("hooks", "/")).body(empty()).unwrap())).collect();
        let (mut new, _) = resume(&world, &token, &first, 0, &["hooks"]).await;
        for _ in 0..requests.len() {
            let opened = within("a request", new.opened()).await;
            new.answer(opened.stream, "late").await;
        }
        for request in requests {
            assert_eq!(answered(request).await.text(), "late");
        }
    }
}
