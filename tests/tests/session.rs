//! What a client's owner and his callers notice of sessions: tokens, names, takeover, drains and losses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use relay_client::{Client, ClientError, Event, Observer, Tunnel, TunnelOptions, UpstreamProtocol};
use relay_protocol::frame::{Frame, SessionKind};
use relay_protocol::message::{Bound, Payload as _, TunnelSpec};
use relay_server::config::HttpMode;
use relay_server::store::{TokenLimits, unix_now};
use relay_tests::app::ok;
use relay_tests::body::{empty, full, pipe};
use relay_tests::process::run;
use relay_tests::{App, Body, Http, Process, Wire, World, peer, within};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// A client of this token.
fn client(world: &World, token: &str) -> Client {
    Client::new(world.target()).token(token.to_owned().into())
}

async fn start(world: &World, token: &str, options: TunnelOptions) -> Result<Tunnel, ClientError> {
    within("a tunnel or a refusal", Tunnel::start(client(world, token), options)).await
}

fn named(app: &App, name: &str) -> TunnelOptions {
    TunnelOptions::new(app.upstream()).subdomain(name)
}

/// An application that says its name.
async fn says(name: &'static str) -> App {
    App::serve(move |_| async move { ok(name) }).await
}

/// The real `relay http`, ready.
async fn process(world: &World, token: &str, app: &App, arguments: &[&str]) -> Process {
    let mut process = begin(world, token, app, arguments).await;
    assert_eq!(process.json().await["event"], "tunnel.ready");
    process
}

/// The real `relay http`, just started.
async fn begin(world: &World, token: &str, app: &App, arguments: &[&str]) -> Process {
    let target = app.addr().to_string();
    let words = [&["http", &target, "--output", "json"], arguments].concat();
    Process::spawn("relay", world.arguments(token, &words)).await
}

/// `relay-server token …` on the world's data.
async fn token_command(world: &World, arguments: &[&str]) -> relay_tests::process::Ended {
    let data = world.data_dir().display().to_string();
    run("relay-server", ["token", "--data-dir", &data].into_iter().chain(arguments.iter().copied())).await
}

mod connecting {
    use super::*;

    const PATH: &str = "/_relay/connect";

    fn upgrade(host: &str, lines: &str) -> String {
        format!(
            "GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{lines}\r\n"
        )
    }

    #[tokio::test]
    async fn without_a_valid_token_is_refused_in_words() {
        let world = World::start().await;
        let wrong = format!("rly_{}", "a".repeat(49));
        let (ended, name) = world.token_with(|new| new.expires_at = Some(unix_now() - 1)).await;
        let (revoked, revoked_name) = world.token_with(|_| {}).await;
        world.store().revoke_token(&revoked_name, unix_now()).await.unwrap();
        assert_ne!(name, revoked_name);
        for authorization in [
            String::new(),
            "Authorization: Basic Zm9vOmJhcg==\r\n".to_owned(),
            format!("Authorization: Bearer {wrong}\r\n"),
            format!("Authorization: Bearer {ended}\r\n"),
            format!("Authorization: Bearer {revoked}\r\n"),
        ] {
            let mut wire = world.raw("relay.test").await;
            let lines = format!("Sec-WebSocket-Protocol: relay.v1\r\n{authorization}");
            wire.send(upgrade("relay.test", &lines)).await;
            let answer = wire.message().await.unwrap();
            assert_eq!(answer.status(), 401, "{authorization}");
            assert_eq!(answer.values("relay-error"), ["unauthorized"]);
            assert_eq!(answer.values("www-authenticate"), ["Bearer"]);
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["error"]["code"], "unauthorized");
            assert!(body["error"]["hint"].as_str().unwrap().contains("relay-server token create"), "{body}");
            let shown = String::from_utf8_lossy(&answer.body).into_owned() + &answer.head;
            assert!(!shown.contains("rly_"), "a token is not repeated: {shown}");
        }
        let app = App::echo().await;
        let refused = start(&world, &revoked, TunnelOptions::new(app.upstream())).await;
        assert!(matches!(refused, Err(ClientError::Unauthorized(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn with_another_protocol_is_told_which_one_is_spoken() {
        let world = World::start().await;
        let token = world.token().await;
        for lines in [
            format!("Sec-WebSocket-Protocol: relay.v9\r\nAuthorization: Bearer {token}\r\n"),
            format!("Authorization: Bearer {token}\r\n"),
        ] {
            let mut wire = world.raw("relay.test").await;
            wire.send(upgrade("relay.test", &lines)).await;
            let answer = wire.message().await.unwrap();
            assert_eq!((answer.status(), answer.values("relay-error")), (426, vec!["upgrade-required"]));
            assert_eq!(answer.values("sec-websocket-protocol"), ["relay.v1"]);
        }
        let plain = world.get(&format!("{}{PATH}", world.relay_url())).await;
        assert_eq!((plain.code(), plain.error()), (426, Some("upgrade-required")));
    }

    /// On a tunnel's host the path is the tunnel's own, and elsewhere nothing is given away.
    #[tokio::test]
    async fn is_possible_at_one_place_only() {
        let world = World::start().await;
        let app = says("app").await;
        let tunnel = world.tunnel(&app).await;
        assert_eq!(world.get(&format!("{}{PATH}", tunnel.url())).await.text(), "app");
        for path in ["/", "/_relay", "/_relay/connect/x", "/metrics"] {
            let answer = world.get(&format!("{}{path}", world.relay_url())).await;
            assert_eq!((answer.code(), answer.error()), (404, Some("not-found")), "{path}");
        }
    }

    /// Those who come through one proxy are many, and each is counted for itself.
    #[tokio::test]
    async fn through_a_trusted_proxy_is_counted_by_the_address_that_it_names() {
        for trusted in [true, false] {
            let world = World::with(|config| {
                config.trusted_proxies = Vec::from_iter(trusted.then(|| "127.0.0.0/8".parse().unwrap()));
                config.limits.refusals_per_minute = 2;
            })
            .await;
            let mut statuses = Vec::new();
            // What stands before the last address may be made up by the sender.
            for from in ["203.0.113.7", "203.0.113.7", "203.0.113.7", "203.0.113.7, 203.0.113.8"] {
                let mut wire = world.raw("relay.test").await;
                let lines = format!(
                    "Sec-WebSocket-Protocol: relay.v1\r\nAuthorization: Bearer rly_guess\r\nX-Forwarded-For: {from}\r\n"
                );
                wire.send(upgrade("relay.test", &lines)).await;
                statuses.push(wire.message().await.unwrap().status());
            }
            assert_eq!(statuses, [401, 401, 429, if trusted { 401 } else { 429 }], "trusted: {trusted}");
        }
    }

    /// A proxy's own connections are those of everybody behind it.
    #[tokio::test]
    async fn of_one_address_are_limited_unless_it_is_a_trusted_proxys() {
        for trusted in [true, false] {
            let world = World::with(|config| {
                config.trusted_proxies = Vec::from_iter(trusted.then(|| "127.0.0.1".parse().unwrap()));
                config.http_mode = HttpMode::Serve;
                config.limits.connections_per_address = 2;
            })
            .await;
            let mut held = Vec::new();
            let mut answered = 0;
            for _ in 0..5 {
                let mut wire = world.plain().await;
                let _ = wire.try_send("GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n").await;
                answered += usize::from(wire.message().await.is_some());
                held.push(wire);
            }
            assert_eq!(answered, if trusted { 5 } else { 2 }, "trusted: {trusted}");
        }
    }

    #[tokio::test]
    async fn takes_no_more_sessions_and_tunnels_than_the_token_may_have() {
        let world = World::start().await;
        let (token, _) = world
            .token_with(|new| {
                new.limits = TokenLimits { max_tunnels: 2, max_names: 2, max_sessions: 3, ..TokenLimits::default() }
            })
            .await;
        let app = says("app").await;
        let options = || TunnelOptions::new(app.upstream());
        let one = start(&world, &token, options()).await.unwrap();
        let _two = start(&world, &token, options()).await.unwrap();
        let refused = start(&world, &token, options()).await;
        assert!(matches!(&refused, Err(ClientError::Refused(text)) if text.contains("2 tunnels")), "{refused:?}");
        assert_eq!(world.get(one.url()).await.text(), "app");
        one.close().await.unwrap();
        // Closing is done when the relay has heard of it; a session and a tunnel are free then.
        let again = within("a place", async {
            loop {
                if let Ok(tunnel) = start(&world, &token, options()).await {
                    return tunnel;
                }
            }
        });
        assert_eq!(world.get(again.await.url()).await.text(), "app");
    }
}

mod tokens {
    use super::*;

    #[tokio::test]
    async fn that_are_revoked_end_their_sessions_and_no_others() {
        let world = World::start().await;
        let app = says("app").await;
        let (token, name) = world.token_with(|_| {}).await;
        let mut client = process(&world, &token, &app, &["--subdomain", "mine"]).await;
        let other = world.tunnel(&app).await;
        let revoked = token_command(&world, &["revoke", &name]).await;
        assert!(revoked.status.success(), "{revoked:?}");
        let ended = client.wait().await;
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(ended.stderr.contains("revoked"), "{ended:?}");
        assert_eq!(world.get(other.url()).await.text(), "app");
        let again = begin(&world, &token, &app, &[]).await.wait().await;
        assert_eq!(again.code(), 3, "{again:?}");
        assert!(!again.stderr.contains("rly_"), "a token is not shown: {again:?}");
    }

    #[tokio::test]
    async fn that_expire_end_their_sessions() {
        let world = World::start().await;
        let app = says("app").await;
        let (token, _) = world.token_with(|new| new.expires_at = Some(unix_now() + 8)).await;
        let mut client = process(&world, &token, &app, &[]).await;
        let ended = client.wait().await;
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(ended.stderr.contains("expired"), "{ended:?}");
    }
}

mod names {
    use super::*;

    #[tokio::test]
    async fn that_nobody_asked_for_cannot_be_guessed() {
        let world = World::start().await;
        let app = says("app").await;
        let token = world.token().await;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10 {
            let tunnel = start(&world, &token, TunnelOptions::new(app.upstream())).await.unwrap();
            let name = tunnel.name().to_owned();
            assert!(name.len() >= 12 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{name}");
            assert_eq!(tunnel.url(), world.url(&name, ""));
            assert_eq!(world.get(tunnel.url()).await.text(), "app");
            assert!(seen.insert(name), "each time another one");
        }
    }

    /// A webhook must not reach a stranger because a laptop was closed.
    #[tokio::test]
    async fn stay_with_the_token_that_had_them_first() {
        let world = World::start().await;
        let app = says("app").await;
        let (mine, others) = (world.token().await, world.token().await);
        let tunnel = start(&world, &mine, named(&app, "Hooks")).await.unwrap();
        assert_eq!(tunnel.name(), "hooks", "in lower case");
        for _ in 0..2 {
            let refused = start(&world, &others, named(&app, "hooks")).await;
            assert!(matches!(refused, Err(ClientError::NameTaken(_))), "{refused:?}");
            assert_eq!(world.get(&world.url("HOOKS", "/")).await.text(), "app");
        }
        tunnel.close().await.unwrap();
        let refused = start(&world, &others, named(&app, "hooks")).await;
        assert!(matches!(refused, Err(ClientError::NameTaken(_))), "also while it is closed: {refused:?}");
        let mine = start(&world, &mine, named(&app, "hooks")).await.unwrap();
        assert_eq!(world.get(mine.url()).await.text(), "app");
    }

    #[tokio::test]
    async fn that_are_reserved_belong_to_their_token() {
        let world = World::start().await;
        let app = says("app").await;
        let others = world.token().await;
        let made = token_command(&world, &["create", "alice", "--reserve", "hooks,api"]).await;
        let alice = made.stdout.trim();
        for name in ["hooks", "api"] {
            let refused = start(&world, &others, named(&app, name)).await;
            assert!(matches!(refused, Err(ClientError::NameTaken(_))), "{refused:?}");
            let tunnel = start(&world, alice, named(&app, name)).await.unwrap();
            assert_eq!(world.get(tunnel.url()).await.text(), "app");
        }
    }

    #[tokio::test]
    async fn that_mislead_are_not_given() {
        let world = World::start().await;
        let app = says("app").await;
        let token = world.token().await;
        for name in ["www", "admin", "_relay", "a.b", "-a", "a-", "", "ä", &"a".repeat(64)] {
            let refused = start(&world, &token, named(&app, name)).await;
            assert!(matches!(refused, Err(ClientError::NameTaken(_))), "{name}: {refused:?}");
        }
        let longest = "a".repeat(63);
        assert_eq!(start(&world, &token, named(&app, &longest)).await.unwrap().name(), longest);
    }

    #[tokio::test]
    async fn without_a_tunnel_say_whether_they_are_unknown_or_away() {
        let world = World::with(|config| config.limits.client_wait = Duration::from_millis(50)).await;
        let app = says("app").await;
        let token = world.token().await;
        let unknown = world.get(&world.url("hooks", "/")).await;
        assert_eq!((unknown.code(), unknown.error()), (404, Some("tunnel-not-found")));
        start(&world, &token, named(&app, "hooks")).await.unwrap().close().await.unwrap();
        let away = world.get(&world.url("hooks", "/")).await;
        assert_eq!((away.code(), away.error()), (503, Some("client-offline")));
        assert!(away.header("retry-after").parse::<u32>().unwrap() > 0);
        let foreign = Request::get(world.url("a.b", "/")).header("host", "elsewhere.example").body(empty()).unwrap();
        let mut http = world.http1("relay.test").await;
        let foreign = http.answer(foreign).await;
        assert_eq!((foreign.code(), foreign.error()), (421, Some("unknown-host")));
    }

    /// A laptop that wakes up in time loses nothing.
    #[tokio::test]
    async fn of_a_client_that_comes_back_in_time_lose_no_request() {
        let world = World::start().await;
        let app = says("app").await;
        let token = world.token().await;
        start(&world, &token, named(&app, "hooks")).await.unwrap().close().await.unwrap();
        let mut http = world.http1("hooks.relay.test").await;
        let answer = http.begin(Request::post(world.url("hooks", "/")).body(full("x")).unwrap());
        let _tunnel = start(&world, &token, named(&app, "hooks")).await.unwrap();
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.text()), (200, "app"));
    }

    /// A sender who waits for a client that cannot come any more is told so, and holds no restart up.
    #[tokio::test]
    async fn of_a_relay_that_stops_wait_for_nobody() {
        let mut world = World::with(|config| config.limits.client_wait = Duration::from_secs(60)).await;
        let app = says("app").await;
        let token = world.token().await;
        start(&world, &token, named(&app, "hooks")).await.unwrap().close().await.unwrap();
        let mut http = world.http1("hooks.relay.test").await;
        let waiting = http.begin(Request::post(world.url("hooks", "/")).body(full("x")).unwrap());
        // Whatever comes after it has been answered, so it has been read.
        assert_eq!(world.get(&world.url("unknown", "/")).await.code(), 404);
        world.begin_shutdown();
        let answer = within("an answer", waiting).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (503, Some("draining")));
        world.stop().await;
    }
}

/// Two clients of one owner want one name.
mod takeover {
    use super::*;

    #[tokio::test]
    async fn of_a_live_tunnel_must_be_asked_for() {
        let world = World::start().await;
        let (first, second) = (says("first").await, says("second").await);
        let token = world.token().await;
        let mut one = process(&world, &token, &first, &["--subdomain", "hooks"]).await;
        let refused = begin(&world, &token, &second, &["--subdomain", "hooks"]).await.wait().await;
        assert_eq!(refused.code(), 4, "{refused:?}");
        assert!(refused.stderr.contains("in use") && refused.stderr.contains("--takeover"), "{refused:?}");
        assert_eq!(refused.stdout, "", "nothing was ready");
        let url = world.url("hooks", "/");
        assert_eq!(world.get(&url).await.text(), "first");

        let _two = process(&world, &token, &second, &["--subdomain", "hooks", "--takeover"]).await;
        assert_eq!(world.get(&url).await.text(), "second");
        let evicted = one.wait().await;
        assert_eq!(evicted.code(), 7, "{evicted:?}");
        assert!(evicted.stderr.contains("taken"), "{evicted:?}");
        assert_eq!(world.get(&url).await.text(), "second", "the first one's end takes nothing with it");
    }

    /// A session that goes on with its other tunnels has room again for the one that it lost.
    #[tokio::test]
    async fn takes_the_tunnel_off_what_its_loser_counts_for() {
        let world = World::start().await;
        let limits = TokenLimits { max_tunnels: 3, max_names: 10, max_sessions: 10, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        let mut loser = peer::session_of(&world, &token, vec![peer::spec(1, "one"), peer::spec(2, "two")]).await;
        let take = TunnelSpec { takeover: true, ..peer::spec(1, "one") };
        let mut winner = peer::session_of(&world, &token, vec![take]).await;
        let lost: u32 = within("the loss", loser.next_message(SessionKind::Unbind)).await;
        assert_eq!(lost, 1);
        // Two are open; also under the number of the lost one there is room for a third.
        assert_eq!(bind(&mut loser, &peer::spec(1, "three")).await, Ok(()));
        assert_eq!(bind(&mut winner, &peer::spec(2, "four")).await, Err("too-many-tunnels".to_owned()));
        // It counts neither twice nor for less than nothing: a late word of the loser changes nothing.
        drop(winner);
        peer::sessions(&world, 1).await;
        assert_eq!(bind(&mut loser, &peer::spec(3, "four")).await, Ok(()));
        assert_eq!(bind(&mut loser, &peer::spec(4, "five")).await, Err("too-many-tunnels".to_owned()));
    }

    /// Asks for one more tunnel, and hears whether there is one, or the code of the refusal.
    async fn bind(socket: &mut peer::Socket, spec: &TunnelSpec) -> Result<(), String> {
        socket.send(&[Frame::Session(SessionKind::Bind, spec.to_bytes().unwrap())]).await;
        let bound: Bound = within("a Bound", socket.next_message(SessionKind::Bound)).await;
        bound.result.map(drop).map_err(|refusal| refusal.code)
    }

    /// Whoever is gone late must not pull down who came after him.
    #[tokio::test]
    async fn is_exact_however_often_it_happens() {
        let world = World::start().await;
        let (even, odd) = (says("even").await, says("odd").await);
        let token = world.token().await;
        let mut current = start(&world, &token, named(&even, "hooks")).await.unwrap();
        for n in 1..40 {
            let app = if n % 2 == 0 { &even } else { &odd };
            let options = TunnelOptions { takeover: true, ..named(app, "hooks") };
            let next = start(&world, &token, options).await.unwrap();
            let text = if n % 2 == 0 { "even" } else { "odd" };
            assert_eq!(world.get(next.url()).await.text(), text, "{n}");
            let lost = within("the evicted one's end", current.close()).await;
            assert!(matches!(lost, Err(ClientError::NameLost(_)) | Ok(())), "{lost:?}");
            assert_eq!(world.get(next.url()).await.text(), text, "{n}, after the evicted one has gone");
            current = next;
        }
    }

    /// A session that has fallen silent is asked once whether it lives, and not for each of its names: the client that wants
    /// them all would not wait for so long.
    #[tokio::test]
    async fn of_many_names_of_a_dead_link_asks_it_once() {
        let world = World::start().await;
        let token = world.token().await;
        let names: Vec<_> = (0..15).map(|n| peer::spec(n, &format!("hooks-{n}"))).collect();
        let mut mute = peer::session_of(&world, &token, names.clone()).await;
        let _next = peer::session_of(&world, &token, names).await;
        let (mut asked, mut lost) = (0, 0);
        while lost < 15 {
            match within("a frame", mute.next()).await.unwrap() {
                Frame::Ping(_) => asked += 1,
                Frame::Session(SessionKind::Unbind, _) => lost += 1,
                _ => {}
            }
        }
        // Its heartbeats are among them.
        assert!(asked < 5, "{asked} pings");
    }

    /// A laptop that sleeps keeps its connection open and answers nothing.
    #[tokio::test]
    async fn of_a_dead_link_needs_no_asking() {
        let world = World::start().await;
        let (first, second) = (says("first").await, says("second").await);
        let token = world.token().await;
        let mut one = process(&world, &token, &first, &["--subdomain", "hooks"]).await;
        one.signal(Signal::STOP);
        let _two = process(&world, &token, &second, &["--subdomain", "hooks"]).await;
        let url = world.url("hooks", "/");
        assert_eq!(world.get(&url).await.text(), "second");
        one.signal(Signal::CONT);
        let lost = one.wait().await;
        assert_eq!(lost.code(), 7, "the sleeper is told: {lost:?}");
        assert_eq!(world.get(&url).await.text(), "second");
    }
}

mod requests {
    use super::*;

    /// RFC 8441 has no 101: to the sender any success would say that the WebSocket is open.
    #[tokio::test]
    async fn for_a_websocket_that_are_answered_with_a_page_fail_over_http2() {
        let world = World::start().await;
        let app = App::serve(|_| async { ok("a page") }).await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let request = Request::connect(format!("{}/socket", tunnel.url()))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(empty())
            .unwrap();
        let answer = http.answer(request).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
        let plain = http.answer(Request::get(tunnel.url()).body(empty()).unwrap()).await;
        assert_eq!((plain.code(), plain.text()), (200, "a page"), "the connection goes on");
    }

    /// HTTP/2 has an authority in the place of Host, and all else stays where it was.
    #[tokio::test]
    async fn have_their_headers_in_one_order_whatever_the_service_speaks() {
        let world = World::start().await;
        let (names, mut seen) = mpsc::channel(1);
        let answer = move |request: Request<Incoming>| {
            let names = names.clone();
            async move {
                let all = request.headers().keys().map(|name| name.to_string());
                names.send(all.filter(|name| name != "host").collect::<Vec<_>>()).await.unwrap();
                ok("seen")
            }
        };
        let (one, two) = (App::serve(answer.clone()).await, App::h2c(answer).await);
        let mut orders = Vec::new();
        for (app, protocol) in [(&one, UpstreamProtocol::Http1), (&two, UpstreamProtocol::H2c)] {
            let tunnel = world.tunnel_with(TunnelOptions { protocol, ..TunnelOptions::new(app.upstream()) }).await;
            let host = world.host(tunnel.name());
            let mut wire = world.raw(&host).await;
            wire.send(format!(
                "GET / HTTP/1.1\r\nX-Z: 1\r\nAccept: */*\r\nHost: {host}\r\nX-A: 2\r\nCookie: c=d\r\n\r\n"
            ))
            .await;
            assert_eq!(wire.message().await.unwrap().status(), 200);
            orders.push(seen.recv().await.unwrap());
        }
        assert_eq!(orders[0][..4], ["x-z", "accept", "x-a", "cookie"]);
        assert_eq!(orders[0], orders[1]);
    }
}

mod sessions {
    use super::*;

    /// Passes each tunnel's URL on.
    struct Urls(mpsc::Sender<String>);

    impl Observer for Urls {
        fn observe(&mut self, event: &Event<'_>) {
            if let Event::Ready { url, .. } = event {
                self.0.try_send((*url).to_owned()).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn carry_several_tunnels() {
        let world = World::start().await;
        let (one, two, three) = (says("one").await, says("two").await, says("three").await);
        let client = world.client().await.tunnel(named(&one, "one")).tunnel(named(&two, "two"));
        let client = client.tunnel(TunnelOptions::new(three.upstream()));
        let (url, mut urls) = mpsc::channel(3);
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move { client.run(&mut Urls(url), async { drop(stopped.await) }).await });
        for name in ["one", "two", "three"] {
            let url = within("a URL", urls.recv()).await.unwrap();
            assert_eq!(world.get(&url).await.text(), name);
        }
        let metrics = world.get_admin("/metrics").await;
        assert!(metrics.text().lines().any(|line| line.ends_with("sessions 1")), "{}", metrics.text());
        assert!(metrics.text().lines().any(|line| line.ends_with("tunnels 3")), "{}", metrics.text());
        drop(stop);
        within("the client's end", running).await.unwrap().unwrap();
    }

    /// A client that is told to stop finishes what it has begun.
    #[tokio::test]
    async fn that_are_closed_finish_what_is_under_way() {
        let world = World::start().await;
        let release = std::sync::Arc::new(Notify::new());
        let wait = release.clone();
        let app = App::serve(move |_| {
            let wait = wait.clone();
            async move {
                wait.notified().await;
                ok("finished")
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let answer = http.begin(Request::get(tunnel.url()).body(empty()).unwrap());
        app.reached(1).await;
        let closing = tokio::spawn(tunnel.close());
        release.notify_one();
        assert_eq!(within("an answer", answer).await.unwrap().text(), "finished");
        within("the client's end", closing).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn come_back_with_the_same_name_when_the_relay_does() {
        let mut world = World::start().await;
        let app = says("app").await;
        let random = world.tunnel(&app).await;
        let asked = world.tunnel_with(named(&app, "hooks")).await;
        for _ in 0..2 {
            world.stop().await;
            world.start_again().await;
            // The relay knows the names and waits for their clients.
            assert_eq!(world.get(random.url()).await.text(), "app");
            assert_eq!(world.get(asked.url()).await.text(), "app");
        }
    }

    #[tokio::test]
    async fn of_a_relay_that_drains_finish_what_is_under_way() {
        let mut world = World::start().await;
        let release = std::sync::Arc::new(Notify::new());
        let wait = release.clone();
        let app = App::serve(move |_| {
            let wait = wait.clone();
            async move {
                let (feed, body) = pipe();
                tokio::spawn(async move {
                    feed.send("be").await;
                    wait.notified().await;
                    feed.send("gun").await;
                });
                http::Response::new(body)
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let response = within("a head", http.request(Request::get(tunnel.url()).body(empty()).unwrap())).await.unwrap();
        world.begin_shutdown();
        within("the listener to close", async {
            while tokio::net::TcpStream::connect(world.https()).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        release.notify_one();
        let body = within("the body", response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(body, "begun");
        world.stop().await;
        drop(tunnel);
    }

    /// The sender must know that nothing, or not everything, has come.
    #[tokio::test]
    async fn that_die_never_end_an_answer_cleanly() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            let request = wire.head().await.unwrap();
            if request.starts_with("GET /body") {
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
            }
            wire.rest().await.ok();
        })
        .await;
        let token = world.token().await;
        for version in [1, 2] {
            let mut client = process(&world, &token, &app, &["--subdomain", "hooks"]).await;
            let connections = app.connections();
            let connect = || async {
                match version {
                    1 => world.http1("hooks.relay.test").await,
                    _ => world.http2("hooks.relay.test").await,
                }
            };
            let (mut one, mut two) = (connect().await, connect().await);
            let unanswered = one.begin(Request::get(world.url("hooks", "/head")).body(empty()).unwrap());
            let half = within("a head", two.request(Request::get(world.url("hooks", "/body")).body(empty()).unwrap()));
            let half = half.await.unwrap();
            assert_eq!(half.status(), 200);
            within("both at the service", async {
                while app.connections() < connections + 2 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            client.kill().await;
            let answer = within("an answer", unanswered).await.unwrap();
            assert_eq!((answer.code(), answer.error()), (502, Some("link-lost")));
            assert!(answer.headers.contains_key("retry-after"));
            within("the body's end", half.into_body().collect()).await.expect_err("half a body is no body");
        }
    }
}

/// What one sender holds is not lost to the others.
mod places {
    use super::*;

    /// So few that they are all taken long before the first of them is given up.
    const PLACES: usize = 5;

    /// HTTP/2 has a window for each response: a sender that reads none holds them all open and loses nothing by it.
    #[tokio::test]
    async fn that_responses_hold_which_nobody_reads_come_back() {
        let world = World::with(|config| {
            config.limits.write_idle = Duration::from_secs(2);
            // A connection is looked at as often as its shortest limit asks for, and first after this one.
            config.limits.head = Duration::from_secs(3);
            config.limits.session_streams = PLACES as u32;
            // The one that waits does so for as long as the test takes.
            config.limits.deadline = Duration::from_secs(300);
        })
        .await;
        let (go, gate) = watch::channel(false);
        let app = App::serve(move |request| {
            let mut gate = gate.clone();
            async move {
                match request.uri().path() {
                    "/large" => {
                        let (feed, body) = pipe();
                        tokio::spawn(async move { while feed.send(vec![b'x'; 64 * 1024]).await {} });
                        http::Response::new(body)
                    }
                    "/slow" => {
                        gate.wait_for(|open| *open).await.unwrap();
                        // A body would wait for the window that the unread ones have taken.
                        http::Response::new(empty())
                    }
                    _ => ok("small"),
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let get = |path: &str| Request::get(world.url(tunnel.name(), path)).body(empty()).unwrap();
        let host = world.host(tunnel.name());
        let mut http = world.http2(&host).await;
        let waiting = http.begin(get("/slow"));
        app.reached(1).await;
        let mut unread = Vec::new();
        // What is left of a response that was given up is no place either.
        for round in 1..=2 {
            within("places", async {
                while unread.len() < round * (PLACES - 1) {
                    unread.extend(begin_large(&mut http, get("/large")).await);
                }
            })
            .await;
            within("the last of them", async {
                while let Some(response) = begin_large(&mut http, get("/large")).await {
                    unread.push(response);
                }
            })
            .await;
        }
        within("a place", async { while world.get(&world.url(tunnel.name(), "/")).await.code() != 200 {} }).await;

        // A connection that has nothing else is ended.
        let mut other = world.http2(&host).await;
        let only = async {
            loop {
                if let Some(response) = begin_large(&mut other, get("/large")).await {
                    return response;
                }
            }
        };
        unread.push(within("a response", only).await);
        within("the end of the connection whose only response nobody reads", async {
            while !other.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        go.send_replace(true);
        assert_eq!(within("an answer", waiting).await.unwrap().code(), 200, "the first connection goes on");
        for response in unread {
            within("the body's end", response.into_body().collect()).await.expect_err("half a body is no body");
        }
    }

    /// A response that has begun, if there was a place for it; if not, the sender was told so.
    async fn begin_large(http: &mut Http, request: Request<Body>) -> Option<http::Response<Incoming>> {
        http.ready().await;
        let response = within("a head", http.request(request)).await.unwrap();
        let refused = (429, Some(&b"too-many-requests"[..]));
        let error = response.headers().get("relay-error").map(|code| code.as_bytes());
        assert!(response.status() == 200 || (response.status().as_u16(), error) == refused, "{response:?}");
        (response.status() == 200).then_some(response)
    }
}

/// What the client's JSON lines say of exchanges that the relay has answered in the service's place.
mod lines {
    use super::*;

    async fn read_all(request: Request<Incoming>) -> http::Response<Body> {
        match request.into_body().collect().await {
            Ok(_) => ok("whole"),
            Err(_) => std::future::pending().await,
        }
    }

    #[tokio::test]
    async fn tell_of_bodies_that_the_relay_has_refused() {
        let world = World::with(|config| {
            config.limits.body_bytes = 100_000;
            // For as long, the client may take to have the head.
            config.limits.body_idle = Duration::from_secs(3);
        })
        .await;
        let app = App::serve(read_all).await;
        let mut client = process(&world, &world.token().await, &app, &["--subdomain", "hooks"]).await;
        let host = world.host("hooks");
        for (path, body, status, code) in [
            ("/large", format!("{:x}\r\n{}\r\n", 90_000, "x".repeat(90_000)).repeat(2), 413, "body-too-large"),
            ("/silent", "5\r\nhello\r\n".to_owned(), 408, "body-timeout"),
            ("/broken", "5\r\nhello\r\nnonsense\r\n".to_owned(), 400, "bad-request"),
        ] {
            let requests = app.requests();
            let mut wire = world.raw(&host).await;
            wire.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
            // So that the client has the request before its body fails.
            app.reached(requests + 1).await;
            let _ = wire.try_send(body).await;
            let answer = wire.message().await.unwrap_or_else(|| panic!("{path} gets no answer"));
            assert_eq!((answer.status(), answer.values("relay-error")), (status, vec![code]), "{path}");
            let line = client.event("exchange").await;
            let said = (&line["path"], &line["status"], &line["error"]);
            assert_eq!(said, (&json!(path), &json!(status), &json!(code)));
        }
    }
}

mod listeners {
    use super::*;

    /// 308 keeps the method and the body, so that a webhook does not become a GET.
    #[tokio::test]
    async fn without_tls_send_everybody_to_https() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let host = format!("{}.relay.test", tunnel.name());
        let mut wire = world.plain().await;
        wire.send(format!("POST /hooks?a=%2F HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!(
            (answer.status(), answer.values("location")),
            (308, vec![format!("{}/hooks?a=%2F", tunnel.url()).as_str()])
        );
        let mut wire = world.plain().await;
        wire.send("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.values("location"), [""; 0], "nobody is sent elsewhere");
        assert_eq!(app.requests(), 0);
    }

    #[tokio::test]
    async fn take_a_new_certificate_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let issue = || {
            let names = ["relay.test".to_owned(), "*.relay.test".to_owned()];
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            std::fs::write(&cert, made.cert.pem()).unwrap();
            made.cert.der().clone()
        };
        let first = issue();
        let source = relay_server::config::CertificateSource::Files { cert: cert.clone(), key: key.clone() };
        let world = World::with(|config| config.certificate = source).await;
        let shown = || async {
            let tls = relay_tests::world::connect_tls(world.https(), "a.relay.test", &cert, &[b"http/1.1"]).await;
            tls.get_ref().1.peer_certificates().unwrap()[0].clone()
        };
        assert_eq!(shown().await, first);
        let trusting_first = dir.path().join("first.pem");
        std::fs::copy(&cert, &trusting_first).unwrap();
        let second = issue();
        let both = dir.path().join("both.pem");
        let pems = [std::fs::read(&trusting_first).unwrap(), std::fs::read(&cert).unwrap()].concat();
        std::fs::write(&both, pems).unwrap();
        within("the new certificate", async {
            loop {
                let tls = relay_tests::world::connect_tls(world.https(), "a.relay.test", &both, &[b"http/1.1"]).await;
                if tls.get_ref().1.peer_certificates().unwrap()[0] == second {
                    return;
                }
                // A connection each 50 ms, so as not to measure handshakes.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}
