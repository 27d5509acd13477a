//! What a person sees who sits before a terminal, and what the client leaves behind there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use http::Request;
use relay_tests::body::empty;
use relay_tests::terminal::Terminal;
use relay_tests::wire::Message;
use relay_tests::world::connect_tls;
use relay_tests::{App, Http, Process, RelayServer, Wire, tools, within};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

const DEFAULTS: [&str; 0] = [];

/// A relay, of which clients get the tunnel `hooks`.
struct World {
    relay: RelayServer,
    token: String,
}

impl World {
    async fn start() -> Self {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        Self { relay, token }
    }

    async fn open(&self, size: (usize, usize), variables: &[(&str, &str)], words: &[&str]) -> Terminal {
        let words = self.words(words);
        let all: Vec<&str> = ["relay"].into_iter().chain(words.iter().map(String::as_str)).collect();
        Terminal::open(size, variables, &all).await
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        self.relay.arguments(&self.token, &[words, &["--subdomain", "hooks"]].concat())
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
        let program = relay_tests::process::command("relay", std::path::Path::new("/")).await;
        let line = world.words(&words).iter().map(|word| format!(" '{word}'")).collect::<String>();
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
    let mut client = Process::spawn("relay", world.words(&["http", &target, "--output", "json"])).await;
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

    let all = world.words(&words);
    let home = Arc::new(tempfile::tempdir().unwrap());
    let mut client = Process::spawn_in(home, "relay", &all, &[]).await;
    assert_eq!(client.line().await, Some(world.url()));
    client.signal(Signal::HUP);
    assert_eq!(client.wait().await.code(), 129);
    let home = Arc::new(tempfile::tempdir().unwrap());
    let script = "exec nohup \"$0\" \"$@\"";
    let program = relay_tests::process::command("relay", home.path()).await;
    let program = program.as_std().get_program().to_string_lossy().into_owned();
    let words = ["-c", script, &program].map(str::to_owned).into_iter().chain(all);
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
                kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
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

/// What of a request is the sender's own: its first line, headers and body.
fn sent(message: &Message) -> (String, Vec<String>, Vec<u8>) {
    let theirs = |line: &&str| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        !name.starts_with("x-forwarded-")
            && !["forwarded", "relay-request-id", "x-request-id", "x-real-ip"].contains(&name.as_str())
    };
    let mut headers: Vec<_> = message.head.split("\r\n").skip(1).filter(theirs).map(str::to_owned).collect();
    // Where the length stands is up to curl.
    headers.sort();
    (message.first_line().to_owned(), headers, message.body.clone())
}

#[tokio::test]
async fn a_copied_request_is_the_same_from_every_shell() {
    let (arrived, mut requests) = mpsc::channel(9);
    let app = App::raw(move |mut wire, _| {
        let arrived = arrived.clone();
        async move {
            while let Some(message) = wire.message().await {
                arrived.send(message).await.unwrap();
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let world = World::start().await;
    let terminal = world.open((200, 20), &[], &["http", &app.addr().to_string(), "--tui"]).await;
    terminal.shows("no request yet").await;
    let host = world.url().trim_start_matches("https://").to_owned();
    let tls = connect_tls(world.relay.https, &host, &world.relay.ca_file(), &[b"http/1.1"]).await;
    let mut sender = Wire::new(tls);

    let way = tempfile::tempdir().unwrap();
    let (ca, port) = (world.relay.ca_file().display().to_string(), world.relay.https.port());
    let settings = format!("silent\ncacert = {ca}\nconnect-to = hooks.relay.test:{port}:127.0.0.1:{port}\n");
    std::fs::write(way.path().join(".curlrc"), settings).unwrap();

    let odd = r#"a '\'' "q" $HOME $(id) `id` !! \\ \ %self ~ {a,b} *? # \"#;
    let body = format!("{odd}\n\t{odd}\n\n'\\'é😀\n");
    let length = body.len();
    let all = [
        format!(
            "GET /a/../b/./%2e%2E/[1-3]{{x,y}}/it's$(id)!*~%2f%41?q={{a}}&r=[1]&s='$HOME'& HTTP/1.1\r\nx-odd: {odd}\r\nx-empty:\r\n"
        ),
        format!("POST /hooks HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nUser-Agent: me\r\n"),
        "POST /hooks HTTP/1.1\r\nContent-Length: 1\r\nAccept: */*\r\n".to_owned(),
        "POST /hooks HTTP/1.1\r\nContent-Length: 0\r\n".to_owned(),
        "HEAD /? HTTP/1.1\r\n".to_owned(),
        "PURGE'$x /~ HTTP/1.1\r\n".to_owned(),
    ];
    let bodies = ["", &body, "@", "", "", ""];
    let mut line = String::new();
    for (number, (head, body)) in all.iter().zip(bodies).enumerate() {
        sender.send(format!("{head}Host: {host}\r\n\r\n{body}")).await;
        let original = within("the request", requests.recv()).await.unwrap();
        sender.head().await.unwrap();
        // Those before were sent by each shell, too.
        terminal.shows(&format!(" · {} request", number * 5 + 1)).await;
        terminal.press(&["c"]).await;
        let news = async {
            loop {
                let copied = terminal.clipboard().await;
                if copied != line {
                    return copied;
                }
            }
        };
        line = within("the copy", news).await;
        for shell in ["sh", "bash", "zsh", "fish"] {
            let mut copy = relay_tests::process::command("/usr/bin/env", way.path()).await;
            tools::output(copy.arg(tools::program(shell)).args(["-c", &line])).await;
            let again = within("the copy", requests.recv()).await.unwrap();
            assert_eq!(sent(&again), sent(&original), "{shell}: {line}");
        }
    }
}

#[tokio::test]
async fn wide_characters_stand_in_their_columns() {
    let world = World::start().await;
    let app = App::echo().await;
    let terminal = world.open((100, 20), &[], &["http", &app.addr().to_string()]).await;
    terminal.shows("forwards to").await;
    let host = world.url().trim_start_matches("https://").to_owned();
    let tls = connect_tls(world.relay.https, &host, &world.relay.ca_file(), &[b"http/1.1"]).await;
    let mut sender = Wire::new(tls);
    for path in ["/ab", "/注文😀"] {
        sender.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(sender.message().await.unwrap().status(), 200);
    }
    let text = terminal.shows(" · 2 requests").await;
    let before = |path: &str| {
        let line = text.lines().find(|line| line.contains(path)).unwrap();
        line.split(" 200 ").next().unwrap().chars().count()
    };
    assert_eq!(before("/ab"), before("/注文😀") + 3, "three of them take two columns each: {text}");
}

/// A terminal that edits lines, shows what is typed and signals, as `stty -a` says it.
const SANE: &str = "isig icanon iexten echo echoe";

#[tokio::test]
async fn a_full_screen_is_put_aside_and_taken_up_again() {
    let world = World::start().await;
    let app = App::echo().await;
    let relay = relay_tests::process::binary("relay").await;
    // A shell that leaves the terminal to its commands.
    let terminal = Terminal::open((200, 24), &[], &["/bin/sh", "-i"]).await;
    let words = world.words(&["http", &app.addr().to_string(), "--tui"]).join(" ");
    terminal.type_line(&format!("{} {words}", relay.display())).await;
    terminal.shows("no request yet").await;
    for path in ["/first", "/second"] {
        terminal.press(&["C-z"]).await;
        terminal.shows("Stopped").await;
        assert!(!terminal.is_full().await);
        terminal.type_line("clear; stty -a").await;
        terminal.shows(SANE).await;
        terminal.type_line("clear; fg").await;
        terminal.shows(" connected since ").await;
        assert!(terminal.is_full().await);
        world.send(path, 1).await;
        terminal.shows(path).await;
    }
    terminal.press(&["q"]).await;
    terminal.until("the shell", |text| !text.contains("/second")).await;
    terminal.type_line("stty -a").await;
    terminal.shows(SANE).await;
}

#[tokio::test]
async fn a_terminal_that_was_asked_for_a_token_is_as_before() {
    let relay = relay_tests::process::binary("relay").await.display().to_string();
    for (end, code) in [("C-c", 130), ("INT", 130), ("TERM", 143), ("HUP", 129), ("Enter", 3)] {
        let server = RelayServer::spawn(DEFAULTS).await;
        let (ca, addr) = (server.ca_file().display().to_string(), server.https);
        let line = format!("{relay} login {} --relay-ca {ca} --relay-addr {addr}; echo code $?; stty -a", server.url);
        let terminal = Terminal::open((200, 24), &[], &["/bin/sh", "-c", &line]).await;
        terminal.shows(&format!("Token for {}:", server.url)).await;
        let signal = match end {
            "INT" => Some(Signal::INT),
            "TERM" => Some(Signal::TERM),
            "HUP" => Some(Signal::HUP),
            _ => None,
        };
        if let Some(signal) = signal {
            let shell = terminal.pid().await;
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
            let login = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
            kill_process(login, signal).unwrap();
        } else {
            // Both in one stream: a signal could be ahead of what is typed, which is shown then.
            terminal.press(&["rly_secret", end]).await;
        }
        let text = terminal.shows(SANE).await;
        assert!(text.contains(&format!("code {code}\n")) && !text.contains("secret"), "{end}: {text}");
    }
}

#[tokio::test]
async fn a_question_for_a_token_is_asked_again_after_a_stop() {
    let server = RelayServer::spawn(DEFAULTS).await;
    let (token, ca, addr) = (server.token("me").await, server.ca_file().display().to_string(), server.https);
    let relay = relay_tests::process::binary("relay").await.display().to_string();
    let terminal = Terminal::open((200, 24), &[], &["/bin/sh", "-i"]).await;
    terminal.type_line(&format!("{relay} login {} --relay-ca {ca} --relay-addr {addr}", server.url)).await;
    let question = format!("Token for {}:", server.url);
    terminal.shows(&question).await;
    terminal.press(&["C-z"]).await;
    terminal.shows("Stopped").await;
    terminal.type_line("clear; stty -a").await;
    terminal.shows(SANE).await;
    terminal.type_line("clear; fg").await;
    terminal.shows(&question).await;
    terminal.type_line(&token).await;
    let text = terminal.shows("takes the token").await;
    assert!(!text.contains(&token), "{text}");
}
