//! `relay start`: several tunnels over one session, and a file that changes under it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use http::Request;
use relay_tests::app::ok;
use relay_tests::body::empty;
use relay_tests::process::Ended;
use relay_tests::world::connect_tls;
use relay_tests::{Answer, App, Http, Process, RelayServer, within};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

const DEFAULTS: [&str; 0] = [];

/// A directory with a `relay.toml`, and the relay that it leads to.
struct Project {
    home: Arc<TempDir>,
    /// The keys above the tables.
    way: String,
}

impl Project {
    fn new(relay: &RelayServer, token: &str) -> Self {
        let way = format!(
            "relay = \"{}\"\nrelay_addr = \"{}\"\nrelay_ca = \"{}\"\ntoken = \"{token}\"\n",
            relay.url,
            relay.https,
            relay.ca_file().display()
        );
        Self { home: Arc::new(tempfile::tempdir().unwrap()), way }
    }

    /// Puts a new file in the place of the old one, as most editors do. Each table is a name and its keys.
    fn write(&self, tables: &[(&str, &str)]) {
        let mut text = self.way.clone();
        for (name, keys) in tables {
            write!(text, "[tunnels.{name}]\n{keys}\n").unwrap();
        }
        self.write_text(&text);
    }

    fn write_text(&self, text: &str) {
        let (beside, file) = (self.home.path().join("new"), self.home.path().join("relay.toml"));
        std::fs::write(&beside, text).unwrap();
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(beside, file).unwrap();
    }

    async fn start(&self, arguments: &[&str]) -> Process {
        let all = [&["start"], arguments].concat();
        Process::spawn_in(self.home.clone(), "relay", all, &[]).await
    }

    /// Starts it, and waits for so many tunnels.
    async fn ready(&self, tunnels: usize, arguments: &[&str]) -> (Process, BTreeMap<String, String>) {
        let mut process = self.start(&[&["--output", "json"], arguments].concat()).await;
        let mut urls = BTreeMap::new();
        for _ in 0..tunnels {
            let ready = process.json().await;
            assert_eq!(ready["event"], "tunnel.ready");
            urls.insert(text(&ready["tunnel"]), text(&ready["url"]));
        }
        assert_eq!(urls.len(), tunnels, "{urls:?}");
        (process, urls)
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).await.wait().await
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

async fn says(text: &'static str) -> App {
    App::serve(move |_| async move { ok(text) }).await
}

fn upstream(app: &App) -> String {
    format!("upstream = \"{}\"", app.addr())
}

async fn connect(relay: &RelayServer, url: &str) -> Http {
    let host = url.strip_prefix("https://").unwrap().to_owned();
    Http::one(connect_tls(relay.https, &host, &relay.ca_file(), &[b"http/1.1"]).await).await
}

async fn get(relay: &RelayServer, url: &str) -> Answer {
    connect(relay, url).await.answer(Request::get(url).body(empty()).unwrap()).await
}

fn url(relay: &RelayServer, name: &str) -> String {
    format!("https://{name}.{}:{}", RelayServer::DOMAIN, relay.https.port())
}

/// Asks until the answer is as it should be.
async fn until(relay: &RelayServer, url: &str, what: impl Fn(&Answer) -> bool) {
    within(format!("the awaited answer of {url}"), async { while !what(&get(relay, url).await) {} }).await;
}

/// Requests to some URLs, one after the other on several connections for each, of which every one must be answered with
/// 200 until it is told to stop.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    senders: JoinSet<()>,
}

impl Load {
    async fn on(relay: &RelayServer, urls: &[&str]) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut senders = JoinSet::new();
        for url in urls.iter().flat_map(|url| [url; 3]) {
            let mut http = connect(relay, url).await;
            let (url, over, answered) = ((*url).to_owned(), over.clone(), answered.clone());
            senders.spawn(async move {
                while !over.load(Relaxed) {
                    let answer = http.answer(Request::get(&url).body(empty()).unwrap()).await;
                    assert_eq!(answer.code(), 200, "{url}: {:?} {}", answer.error(), answer.text());
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        Self { over, answered, senders }
    }

    /// How many requests were answered, all of them well.
    async fn stop(mut self) -> usize {
        self.over.store(true, Relaxed);
        while let Some(ended) = within("the last answers", self.senders.join_next()).await {
            ended.expect("every request is answered with 200");
        }
        self.answered.load(Relaxed)
    }
}

mod tunnels_of_a_file {
    use super::*;

    #[tokio::test]
    async fn are_all_there_and_told_apart() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let (one, two) = (says("one").await, App::recording().await);
        let port = format!("upstream = {}\nsubdomain = \"hooks\"", one.addr().port());
        project.write(&[("web", &port), ("api", &format!("{}\nhost_header = \"preserve\"", upstream(&two)))]);
        let (mut client, urls) = project.ready(2, &["--ready-file", "ready"]).await;
        assert_eq!(urls["web"], url(&relay, "hooks"));
        assert_eq!(get(&relay, &urls["web"]).await.text(), "one");
        assert_eq!(client.event("exchange").await["tunnel"], "web");
        assert_eq!(get(&relay, &urls["api"]).await.code(), 200);
        assert_eq!(client.event("exchange").await["tunnel"], "api");
        let file = project.home.path().join("ready");
        within("the file of both", async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
        assert_eq!(format!("https://{}", two.only().header("host")), urls["api"], "its own keys hold");
        let metrics = relay.get_admin("/metrics").await;
        assert!(metrics.text().lines().any(|line| line.ends_with("sessions 1")), "{}", metrics.text());
        assert_eq!(client.terminate().await.code(), 143);

        // The random name is the table's, with or without the other.
        let (mut client, again) = project.ready(1, &["api"]).await;
        assert_eq!(again["api"], urls["api"]);
        client.terminate().await;
        let (mut client, again) = project.ready(2, &["--all"]).await;
        assert_eq!(again, urls);
        client.terminate().await;
    }

    #[tokio::test]
    async fn stand_with_their_urls_first_for_people() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let app = says("one").await;
        project.write(&[
            ("web", &format!("{}\nsubdomain = \"hooks\"", upstream(&app))),
            ("worker", &format!("{}\nsubdomain = \"w\"", upstream(&app))),
        ]);
        let mut client = project.start(&["--url-only"]).await;
        let lines = [client.line().await.unwrap(), client.line().await.unwrap()];
        assert_eq!(lines, [url(&relay, "hooks"), url(&relay, "w")]);
        client.terminate().await;

        let mut client = project.start(&["--plain"]).await;
        let lines = [client.line().await.unwrap(), client.line().await.unwrap()];
        let port = relay.https.port();
        let expected = [
            format!("https://hooks.relay.test:{port}  web     http://{}", app.addr()),
            format!("https://w.relay.test:{port}      worker  http://{}", app.addr()),
        ];
        assert_eq!(lines, expected);
        get(&relay, &url(&relay, "w")).await;
        let exchange = loop {
            let line = client.line().await.unwrap();
            if line.contains(" GET ") {
                break line;
            }
        };
        assert!(exchange.contains(" worker GET     / "), "{exchange}");
        client.terminate().await;
    }

    #[tokio::test]
    async fn that_are_not_there_are_a_usage_error() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        project.write(&[]);
        let ended = project.run(&[]).await;
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains("[tunnels.web]"), "{ended:?}");
        project.write(&[("web", "upstream = 1"), ("api", "upstream = 2")]);
        let ended = project.run(&["web", "wbe"]).await;
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains("wbe") && ended.stderr.contains("api, web"), "{ended:?}");
    }

    #[tokio::test]
    async fn of_which_one_is_taken_are_not_started_by_halves() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let (mine, other) = (relay.token("me").await, relay.token("other").await);
        let app = says("one").await;
        let (project, stranger) = (Project::new(&relay, &mine), Project::new(&relay, &other));
        stranger.write(&[("a", &format!("{}\nsubdomain = \"taken\"", upstream(&app)))]);
        let (mut holder, _) = stranger.ready(1, &[]).await;
        let free = format!("{}\nsubdomain = \"free\"", upstream(&app));
        project.write(&[("a-web", &free), ("b-api", &format!("{}\nsubdomain = \"taken\"", upstream(&app)))]);
        let ended = project.run(&["--output", "json"]).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (4, ""), "{ended:?}");
        assert!(ended.stderr.contains("b-api") && ended.stderr.contains("taken"), "{ended:?}");
        assert_ne!(get(&relay, &url(&relay, "free")).await.code(), 200);
        project.write(&[("web", &free)]);
        let (mut client, _) = project.ready(1, &[]).await;
        client.terminate().await;
        holder.terminate().await;
    }
}

mod a_client_that_comes_back {
    use super::*;

    /// Another client of the same owner has come first.
    #[tokio::test]
    async fn without_one_of_its_names_has_the_others_at_once_and_that_one_when_it_is_free() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let (one, two) = (says("one").await, says("two").await);
        let (project, elsewhere) = (Project::new(&relay, &token), Project::new(&relay, &token));
        let table = |app: &App, name: &str| format!("{}\nsubdomain = \"{name}\"", upstream(app));
        project.write(&[("web", &table(&one, "web")), ("api", &table(&one, "api"))]);
        elsewhere.write(&[("api", &table(&two, "api"))]);
        let (mut client, urls) = project.ready(2, &[]).await;
        client.signal(Signal::STOP);
        let (home, https) = (relay.process.home().clone(), relay.https.to_string());
        relay.process.kill().await;
        let relay = RelayServer::spawn_in(home, ["--https", https.as_str()]).await;
        let (mut other, _) = elsewhere.ready(1, &[]).await;
        client.signal(Signal::CONT);

        let refused = client.event("tunnel.refused").await;
        assert_eq!((&refused["tunnel"], &refused["url"]), (&"api".into(), &Value::Null));
        assert!(text(&refused["reason"]).contains("in use"), "{refused}");
        client.event("session.reconnected").await;
        assert_eq!(get(&relay, &urls["web"]).await.text(), "one");
        assert_eq!(get(&relay, &urls["api"]).await.text(), "two");
        let asked = Process::spawn_in(project.home.clone(), "relay", ["status", "--output", "json"], &[]).await;
        let status: Value = serde_json::from_str(&{ asked }.wait().await.stdout).unwrap();
        let names =
            |list: &str| status[list].as_array().unwrap().iter().map(|one| text(&one["tunnel"])).collect::<Vec<_>>();
        assert_eq!((names("tunnels"), names("refused")), (vec!["web".into()], vec!["api".into()]), "{status}");
        let wait = ["wait", "--tunnel", "api", "--path", "/hook"];
        let mut wait = Process::spawn_in(project.home.clone(), "relay", wait, &[]).await;
        wait.error_line("waiting for requests to api, which is refused at present: The name api is in use").await;

        other.terminate().await;
        let ready = client.event("tunnel.ready").await;
        assert_eq!((&ready["tunnel"], text(&ready["url"])), (&"api".into(), urls["api"].clone()));
        assert_eq!(get(&relay, &format!("{}/hook", urls["api"])).await.text(), "one");
        let ended = wait.wait().await;
        assert_eq!((ended.code(), ended.stdout.contains("/hook")), (0, true), "{ended:?}");
        client.terminate().await;
    }
}

mod a_file_that_changes {
    use super::*;

    /// Each kind of change, while requests come without a pause on one tunnel that does not change and on one that does
    /// without losing its name.
    #[tokio::test]
    async fn changes_the_tunnels_and_no_request_on_another_notices() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let (one, two, three) = (says("one").await, says("two").await, says("three").await);
        let web = format!("{}\nsubdomain = \"web\"", upstream(&one));
        let api = |app: &App, more: &str| format!("{}\nsubdomain = \"api\"\n{more}", upstream(app));
        project.write(&[("web", &web), ("api", &api(&two, ""))]);
        let (mut client, urls) = project.ready(2, &[]).await;
        let load = Load::on(&relay, &[&urls["web"], &urls["api"]]).await;

        // One comes.
        project.write(&[("web", &web), ("api", &api(&two, "")), ("new", &upstream(&three))]);
        let ready = client.event("tunnel.ready").await;
        assert_eq!(ready["tunnel"], "new");
        let new = text(&ready["url"]);
        assert_eq!(get(&relay, &new).await.text(), "three");

        // Another service behind the same URL.
        project.write(&[("web", &web), ("api", &api(&three, "")), ("new", &upstream(&three))]);
        let ready = client.event("tunnel.ready").await;
        assert_eq!((&ready["tunnel"], text(&ready["url"])), (&"api".into(), urls["api"].clone()));
        assert_eq!(ready["upstream"], format!("http://{}", three.addr()));
        assert_eq!(get(&relay, &urls["api"]).await.text(), "three");

        // Bound anew under its name.
        project.write(&[("web", &web), ("api", &api(&two, "timeout = \"20s\"")), ("new", &upstream(&three))]);
        let ready = client.event("tunnel.ready").await;
        assert_eq!((&ready["tunnel"], text(&ready["url"])), (&"api".into(), urls["api"].clone()));
        assert_eq!(get(&relay, &urls["api"]).await.text(), "two");

        // Another name; and one goes.
        let named = format!("{}\nsubdomain = \"named\"", upstream(&three));
        project.write(&[("web", &web), ("api", &api(&two, "timeout = \"20s\"")), ("new", &named)]);
        let ready = client.event("tunnel.ready").await;
        assert_eq!((&ready["tunnel"], text(&ready["url"])), (&"new".into(), url(&relay, "named")));
        until(&relay, &new, |answer| answer.error() == Some("tunnel-not-found")).await;
        project.write(&[("web", &web), ("api", &api(&two, "timeout = \"20s\""))]);
        let closed = client.event("tunnel.closed").await;
        assert_eq!((&closed["tunnel"], &closed["name"]), (&"new".into(), &"named".into()));
        until(&relay, &url(&relay, "named"), |answer| answer.error() == Some("tunnel-not-found")).await;

        let answered = load.stop().await;
        assert!(answered > 100, "{answered}");
        client.terminate().await;
    }

    #[tokio::test]
    async fn lets_what_is_under_way_finish() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let one = says("one").await;
        let (open, gate) = watch::channel(false);
        let slow = App::serve(move |request| {
            let mut gate = gate.clone();
            async move {
                // Who asks whether it is gone is answered while it is not.
                if request.uri().path() == "/slow" {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                ok("done")
            }
        })
        .await;
        project.write(&[("web", &upstream(&one)), ("slow", &upstream(&slow))]);
        let (mut client, urls) = project.ready(2, &[]).await;
        let mut http = connect(&relay, &urls["slow"]).await;
        let answer = http.begin(Request::get(format!("{}/slow", urls["slow"])).body(empty()).unwrap());
        slow.reached(1).await;
        project.write(&[("web", &upstream(&one))]);
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "slow");
        until(&relay, &urls["slow"], |answer| answer.error() == Some("tunnel-not-found")).await;
        open.send(true).unwrap();
        assert_eq!(within("the answer", answer).await.unwrap().text(), "done");
        client.terminate().await;
    }

    #[tokio::test]
    async fn and_is_wrong_changes_nothing() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let one = says("one").await;
        project.write(&[("web", &upstream(&one))]);
        let (mut client, urls) = project.ready(1, &[]).await;
        for (wrong, hint) in [
            (format!("{}[tunnels.web]\nupstraem = 1\n", project.way), "relay.toml:6:1: "),
            (format!("{}[tunnels.web", project.way), "relay.toml:5:"),
            (project.way.clone(), "no configuration file has a tunnel"),
            (String::new(), "no relay is named"),
        ] {
            project.write_text(&wrong);
            let reason = text(&client.event("config.rejected").await["reason"]);
            assert!(reason.contains(hint), "{hint}: {reason}");
            assert_eq!(get(&relay, &urls["web"]).await.text(), "one");
        }
        // In the file itself, and not beside it.
        let right = format!("{}[tunnels.web]\n{}\n[tunnels.api]\n{}\n", project.way, upstream(&one), upstream(&one));
        std::fs::write(project.home.path().join("relay.toml"), right).unwrap();
        assert_eq!(client.event("tunnel.ready").await["tunnel"], "api");

        let elsewhere = project.way.replace("token = \"rly_", "token = \"rly_x");
        project.write_text(&format!("{elsewhere}[tunnels.web]\n{}\n", upstream(&one)));
        client.error_line("takes a restart").await;
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "api");
        assert_eq!(get(&relay, &urls["web"]).await.text(), "one");
        client.terminate().await;
    }

    #[tokio::test]
    async fn and_leaves_only_what_is_lost_ends_the_client() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let (project, elsewhere) = (Project::new(&relay, &token), Project::new(&relay, &token));
        let app = says("one").await;
        let api = format!("{}\nsubdomain = \"api\"", upstream(&app));
        project.write(&[("web", &upstream(&app)), ("api", &api)]);
        elsewhere.write(&[("api", &api)]);
        let (mut client, _) = project.ready(2, &[]).await;
        let (mut other, _) = elsewhere.ready(1, &["--takeover"]).await;
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "api");
        project.write(&[("api", &api)]);
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "web");
        let ended = client.wait().await;
        assert_eq!(ended.code(), 7, "{ended:?}");
        assert!(ended.stderr.contains("api: Another client with the same token has taken the name over"), "{ended:?}");
        other.terminate().await;
    }

    #[tokio::test]
    async fn asks_again_for_what_was_refused() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let (mine, other) = (relay.token("me").await, relay.token("other").await);
        let app = says("one").await;
        let (project, stranger) = (Project::new(&relay, &mine), Project::new(&relay, &other));
        stranger.write(&[("a", &format!("{}\nsubdomain = \"taken\"", upstream(&app)))]);
        let (mut holder, _) = stranger.ready(1, &[]).await;
        project.write(&[("web", &upstream(&app))]);
        let (mut client, urls) = project.ready(1, &[]).await;
        let taken = format!("{}\nsubdomain = \"taken\"", upstream(&app));
        project.write(&[("web", &upstream(&app)), ("api", &taken)]);
        let refused = client.event("tunnel.refused").await;
        assert_eq!(refused["tunnel"], "api");
        assert!(text(&refused["reason"]).contains("taken"), "{refused}");
        assert_eq!(get(&relay, &urls["web"]).await.text(), "one", "the others go on");
        project.write(&[("web", &upstream(&app)), ("api", &format!("{taken}\ntimeout = \"9s\""))]);
        assert_eq!(client.event("tunnel.refused").await["tunnel"], "api");
        let free = format!("{}\nsubdomain = \"free\"", upstream(&app));
        project.write(&[("web", &upstream(&app)), ("api", &free)]);
        assert_eq!(client.event("tunnel.ready").await["url"], url(&relay, "free"));
        // A tunnel whose new name is refused keeps the one that it has.
        project.write(&[("web", &upstream(&app)), ("api", &taken)]);
        assert_eq!(client.event("tunnel.refused").await["tunnel"], "api");
        assert_eq!(get(&relay, &url(&relay, "free")).await.text(), "one");
        client.terminate().await;
        holder.terminate().await;
    }

    #[tokio::test]
    async fn may_let_tunnels_swap_their_names_and_replace_each_other_at_the_tokens_limit() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let created = relay.token_command(&["create", "two", "--max-tunnels", "2"]).await;
        let project = Project::new(&relay, created.stdout.trim());
        let (one, two) = (says("one").await, says("two").await);
        let table = |app: &App, name: &str| format!("{}\nsubdomain = \"{name}\"", upstream(app));
        project.write(&[("web", &table(&one, "a")), ("api", &table(&two, "b"))]);
        let (mut client, _) = project.ready(2, &[]).await;
        project.write(&[("web", &table(&one, "b")), ("api", &table(&two, "a"))]);
        for _ in 0..2 {
            client.event("tunnel.ready").await;
        }
        assert_eq!(get(&relay, &url(&relay, "b")).await.text(), "one");
        assert_eq!(get(&relay, &url(&relay, "a")).await.text(), "two");
        project.write(&[("web", &table(&one, "c")), ("other", &table(&two, "d"))]);
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "api");
        for _ in 0..2 {
            client.event("tunnel.ready").await;
        }
        assert_eq!(get(&relay, &url(&relay, "c")).await.text(), "one");
        assert_eq!(get(&relay, &url(&relay, "d")).await.text(), "two");
        client.terminate().await;
    }

    #[tokio::test]
    async fn while_there_is_no_session_holds_for_the_next_one() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let project = Project::new(&relay, &relay.token("me").await);
        let (one, two) = (says("one").await, says("two").await);
        let table = |app: &App, name: &str| format!("{}\nsubdomain = \"{name}\"", upstream(app));
        project.write(&[("gone", &table(&one, "gone")), ("stays", &table(&one, "stays"))]);
        let (mut client, _) = project.ready(2, &[]).await;
        let (home, https) = (relay.process.home().clone(), relay.https.to_string());
        relay.process.kill().await;
        client.event("session.disconnected").await;
        // Several changes, of which the last one counts.
        project.write(&[("gone", &table(&one, "gone")), ("stays", &table(&one, "other"))]);
        client.error_line("was read again").await;
        project.write(&[("new", &table(&two, "new")), ("stays", &table(&two, "stays"))]);
        assert_eq!(client.event("tunnel.closed").await["tunnel"], "gone");
        let relay = RelayServer::spawn_in(home, ["--https", https.as_str()]).await;
        until(&relay, &url(&relay, "new"), |answer| answer.code() == 200).await;
        assert_eq!(get(&relay, &url(&relay, "stays")).await.text(), "two");
        assert_ne!(get(&relay, &url(&relay, "gone")).await.code(), 200);
        client.terminate().await;
    }
}
