//! What a person sees who sits before a terminal, and what the client leaves behind there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use http::Request;
use relay_tests::body::empty;
use relay_tests::terminal::Terminal;
use relay_tests::world::connect_tls;
use relay_tests::{App, Http, Process, RelayServer, within};
use rustix::process::Signal;

const DEFAULTS: [&str; 0] = [];

/// A relay, and how a client gets to its tunnel `hooks`.
struct World {
    relay: RelayServer,
    way: Vec<String>,
}

impl World {
    async fn start() -> Self {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let (addr, ca) = (relay.https.to_string(), relay.ca_file().display().to_string());
        let token = relay.token("me").await;
        let way = ["--relay", &relay.url, "--relay-addr", &addr, "--relay-ca", &ca, "--token", &token];
        let way = way.iter().chain(&["--subdomain", "hooks"]).map(|word| (*word).to_owned()).collect();
        Self { relay, way }
    }

    async fn open(&self, size: (usize, usize), variables: &[(&str, &str)], words: &[&str]) -> Terminal {
        let all: Vec<&str> =
            ["relay"].iter().chain(words).copied().chain(self.way.iter().map(String::as_str)).collect();
        Terminal::open(size, variables, &all).await
    }

    fn url(&self) -> String {
        format!("https://hooks.relay.test:{}", self.relay.https.port())
    }

    /// Sends so many requests, one after the other, on one connection.
    async fn send(&self, path: &str, times: usize) {
        let host = self.url().trim_start_matches("https://").to_owned();
        let tls = connect_tls(self.relay.https, &host, &self.relay.ca_file(), &[b"http/1.1"]).await;
        let mut http = Http::one(tls).await;
        for _ in 0..times {
            let request = Request::get(format!("{}{path}", self.url())).body(empty()).unwrap();
            http.answer(request).await;
        }
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[tokio::test]
async fn the_url_stands_first_then_requests_and_last_how_things_stand() {
    let world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((100, 20), &[], &["http", &app.addr().to_string()]).await;
    let text = terminal.shows("● connected since ").await;
    assert_eq!(text.lines().next(), Some(world.url().as_str()));
    assert!(last_line(&text).contains(" · last heard "), "{text}");
    world.send("/orders?id=7", 1).await;
    let text = terminal.shows(" · 1 request").await;
    let lines: Vec<&str> = text.lines().collect();
    let request = lines[lines.len() - 2];
    assert!(request.contains(" GET     /orders?id=7 ") && request.contains(" 200 "), "{text}");
    assert_eq!(request.chars().count(), 99, "the whole width but the last column: {text}");
    let all = terminal.all().await;
    assert!(all.contains("\u{1b}[32m200"), "in green: {all:?}");

    terminal.press(&["C-c"]).await;
    assert_eq!(terminal.ended().await, 130);
    let text = terminal.text().await;
    assert!(!text.contains('●') && text.contains("/orders"), "only what is over stays: {text}");
}

#[tokio::test]
async fn a_narrow_terminal_has_whole_lines() {
    let world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((60, 20), &[], &["http", &app.addr().to_string()]).await;
    terminal.shows("● connected since ").await;
    terminal.resize(40, 20).await;
    terminal.until("a shorter state line", |text| !last_line(text).contains(" ago")).await;
    world.send("/a/rather/long/path/that/does/not/fit", 1).await;
    let text = terminal.until("a request's line", |text| text.contains(" ms")).await;
    let line = text.lines().find(|line| line.contains("GET")).unwrap();
    assert!(line.contains("… 200 ") && line.ends_with(" ms"), "{text}");
    assert!(last_line(&text).starts_with("● connected since "), "{text}");
    terminal.resize(90, 20).await;
    terminal.until("a longer state line", |text| last_line(text).contains(" ago")).await;
    world.send("/a/rather/long/path/that/does/not/fit", 1).await;
    terminal.shows("/a/rather/long/path/that/does/not/fit ").await;
}

#[tokio::test]
async fn a_dumb_terminal_and_plain_lines_have_nothing_that_moves() {
    let world = World::start().await;
    let app = App::echo().await;
    let target = app.addr().to_string();
    let raw = "raw";
    for (variable, words, is_coloured) in [
        (("TERM", "dumb"), vec!["http", &target], false),
        (("NO_COLOR", "1"), vec!["http", &target, "--plain"], false),
        (("TERM", "xterm"), vec!["http", &target, "--plain"], true),
    ] {
        // What is written, byte for byte.
        let inner: Vec<String> = std::iter::once("relay".to_owned())
            .chain(words.iter().map(|word| (*word).to_owned()))
            .chain(world.way.clone())
            .collect();
        let program = relay_tests::process::command("relay", std::path::Path::new("/")).await;
        let line = inner.iter().skip(1).map(|word| format!(" '{word}'")).collect::<String>();
        let line = format!("{}{line}", program.as_std().get_program().display());
        let script = ["/usr/bin/script", "-q", "-f", "-c", &line, raw];
        let terminal = Terminal::open((100, 20), &[variable], &script).await;
        terminal.shows("forwards to").await;
        world.send("/seen", 1).await;
        terminal.shows("/seen").await;
        terminal.press(&["C-c"]).await;
        terminal.ended().await;
        let written = std::fs::read_to_string(terminal.home().path().join(raw)).unwrap();
        let shown = written.split_once(&world.url()).unwrap().1;
        assert_eq!(shown.contains('\u{1b}'), is_coloured, "{variable:?}: {shown:?}");
        assert!(!shown.contains("\u{1b}[K") && !shown.contains('●'), "{variable:?}: {shown:?}");
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named_until_it_is() {
    let world = World::start().await;
    let listener = relay_tests::app::listener().await;
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let terminal = world.open((200, 20), &[], &["http", &addr.to_string()]).await;
    let text = terminal.shows("○ nothing listens on ").await;
    assert!(text.contains(&format!("(connection refused by {addr}); start your service")), "{text}");
    // Its port was free a moment ago, and whoever took it would be the service as well.
    let app = App::recording_on(tokio::net::TcpListener::bind(addr).await.unwrap());
    terminal.shows(&format!("the service on http://{addr} answers")).await;
    let text = terminal.until("no word of it", |text| !last_line(text).contains("nothing listens")).await;
    assert!(last_line(&text).starts_with('●'), "{text}");
    assert_eq!(app.requests(), 0, "nobody asked it anything");
    world.send("/", 1).await;
    terminal.shows(" 200 ").await;
    drop(app);
    world.send("/", 1).await;
    let text = terminal.shows("○ nothing listens on ").await;
    assert!(text.contains("502") && text.contains("upstream-refused"), "{text}");
}

#[tokio::test]
async fn programs_hear_of_the_service_too() {
    let world = World::start().await;
    let listener = relay_tests::app::listener().await;
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let target = addr.to_string();
    let all: Vec<&str> =
        ["http", &target, "--output", "json"].into_iter().chain(world.way.iter().map(String::as_str)).collect();
    let mut client = Process::spawn("relay", all).await;
    let down = client.event("upstream.down").await;
    assert_eq!((&down["tunnel"], &down["upstream"]), (&"hooks".into(), &format!("http://{addr}").into()));
    assert_eq!(down["reason"], format!("connection refused by {addr}"));
    let _app = App::recording_on(tokio::net::TcpListener::bind(addr).await.unwrap());
    assert_eq!(client.event("upstream.up").await["tunnel"], "hooks");
}

#[tokio::test]
async fn more_than_a_person_can_read_is_summed_up() {
    let world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((100, 50), &[], &["http", &app.addr().to_string()]).await;
    terminal.shows("● connected since ").await;
    world.send("/", 300).await;
    let text = terminal.shows(" · 300 requests").await;
    let lines = text.lines().filter(|line| line.contains(" GET ")).count();
    assert!(text.contains("× 200  p50 ") && lines < 300, "{text}");
    let summed: usize = text
        .lines()
        .filter(|line| line.contains("p50"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap())
        .sum();
    assert_eq!(lines + summed, 300, "none is forgotten: {text}");
}

#[tokio::test]
async fn a_lost_relay_is_counted_down_to_and_found_again() {
    let mut world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((120, 20), &[], &["http", &app.addr().to_string()]).await;
    terminal.shows("● connected since ").await;
    let (home, https) = (world.relay.process.home().clone(), world.relay.https.to_string());
    world.relay.process.kill().await;
    terminal.until("a count", |text| last_line(text).starts_with("○ reconnecting in ")).await;
    world.relay = RelayServer::spawn_in(home, ["--https", &https]).await;
    let text = terminal.until("a session", |text| last_line(text).starts_with("● connected since ")).await;
    assert!(text.contains("disconnected: ") && text.contains("connected again to "), "{text}");
}

#[tokio::test]
async fn a_qr_code_stands_under_the_url() {
    let world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((100, 40), &[("NO_COLOR", "1")], &["http", &app.addr().to_string(), "--qr"]).await;
    let text = terminal.shows("forwards to").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], world.url());
    let code: Vec<&&str> = lines[1..].iter().take_while(|line| line.starts_with(['█', '▀'])).collect();
    let width = code[0].chars().count();
    assert!(code.len() >= 15 && code.iter().all(|line| line.chars().count() == width), "{text}");
    assert!(width.div_ceil(2) == code.len(), "square: {text}");
}

#[tokio::test]
async fn a_closed_terminal_ends_the_client_and_its_ready_file() {
    let world = World::start().await;
    let app = App::echo().await;
    let target = app.addr().to_string();
    let words = ["http", &target, "--ready-file", "ready.json"];
    let terminal = world.open((100, 20), &[], &words).await;
    let file = terminal.home().path().join("ready.json");
    let there = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    within("the ready file", there).await;
    let pid = terminal.pid().await;
    terminal.close().await;
    let gone = async {
        while file.exists() || std::fs::exists(format!("/proc/{pid}/exe")).unwrap() {
            tokio::task::yield_now().await;
        }
    };
    within("the end of the client", gone).await;

    let all: Vec<&str> = words.into_iter().chain(world.way.iter().map(String::as_str)).collect();
    let home = Arc::new(tempfile::tempdir().unwrap());
    let mut client = Process::spawn_in(home, "relay", &all, &[]).await;
    assert_eq!(client.line().await, Some(world.url()));
    client.signal(Signal::HUP);
    assert_eq!(client.wait().await.code(), 129);
    let home = Arc::new(tempfile::tempdir().unwrap());
    let script = "exec nohup \"$0\" \"$@\"";
    let program = relay_tests::process::command("relay", home.path()).await;
    let program = program.as_std().get_program().to_string_lossy().into_owned();
    let words: Vec<&str> = ["-c", script, &program].into_iter().chain(all).collect();
    let mut patient = Process::spawn_in(home, "/bin/sh", words, &[]).await;
    assert_eq!(patient.line().await, Some(world.url()));
    patient.signal(Signal::HUP);
    world.send("/", 1).await;
    assert_eq!(patient.terminate().await.code(), 143, "nohup lets it live");
}

#[tokio::test]
async fn the_whole_terminal_is_taken_when_asked_and_given_back() {
    let world = World::start().await;
    let app = App::echo().await;
    let target = app.addr().to_string();
    for (end, code) in [("q", 0), ("C-c", 130), ("SIGTERM", 143)] {
        let terminal = world.open((110, 20), &[], &["http", &target, "--tui"]).await;
        terminal.shows("no request yet").await;
        assert!(terminal.is_full().await);
        world.send("/first", 1).await;
        world.send("/second?a=1", 1).await;
        let text = terminal.shows("/second").await;
        assert!(text.lines().next().unwrap().starts_with(&world.url()), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("/second") && text.contains(" · 2 requests"), "{text}");
        terminal.press(&["Down", "Enter"]).await;
        terminal.until("the detail", |text| text.lines().nth(1).unwrap_or_default().ends_with("│ GET /first")).await;
        terminal.shows(" host: hooks.relay.test").await;
        terminal.resize(60, 20).await;
        terminal.until("it under the list", |text| text.lines().any(|line| line == " GET /first")).await;
        match end {
            "SIGTERM" => {
                let pid = i32::try_from(terminal.pid().await).unwrap();
                rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
            }
            key => terminal.press(&[key]).await,
        }
        assert_eq!(terminal.ended().await, code, "{end}");
        assert!(!terminal.is_full().await && !terminal.text().await.contains("/first"), "{end}");
    }
    let terminal = world.open((110, 20), &[("NO_COLOR", "1")], &["http", &target, "--tui"]).await;
    terminal.shows("  forwards to ").await;
    assert!(!terminal.is_full().await, "lines, where a full screen would need colours");
}
