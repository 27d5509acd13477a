//! What senders, clients and the operator notice when another process takes the place of a relay: nothing fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use relay_client::session::dial::{Target, Trust};
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_protocol::inbox::Inbox;
use relay_tests::app::{echo, listener, ok};
use relay_tests::body::{full, noise, pipe};
use relay_tests::process::{Ended, run};
use relay_tests::tools::{app_file, program};
use relay_tests::world::{over as tls_over, try_connect_tls};
use relay_tests::{App, Body, Http, Place, Process, RelayClient, RelayServer, Wire, within};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// A relay, and how to reach it, whichever process it is.
#[derive(Clone)]
struct Way {
    https: SocketAddr,
    url: String,
    ca: PathBuf,
    token: String,
}

impl Way {
    fn to(place: &Place) -> Self {
        let (https, url) = (place.relay.https, place.relay.url.clone());
        Self { https, url, ca: place.relay.ca_file(), token: place.token.clone() }
    }

    fn host(name: &str) -> String {
        format!("{name}.{}", RelayServer::DOMAIN)
    }

    fn target(&self, name: &str, path: &str) -> String {
        format!("https://{}:{}{path}", Self::host(name), self.https.port())
    }

    async fn connect(&self, name: &str, protocol: &'static [u8]) -> Result<Http, String> {
        let tls = try_connect_tls(self.https, &Self::host(name), &self.ca, &[protocol]).await;
        let tls = tls.map_err(|error| format!("no connection: {error}"))?;
        Ok(if protocol == b"h2" { Http::two(tls).await } else { Http::one(tls).await })
    }

    /// A client of the library, with one tunnel.
    async fn tunnel(&self, options: TunnelOptions) -> Result<Tunnel, String> {
        let trust = Trust::only(&self.ca).unwrap();
        let target = Target::new(self.url.parse().unwrap(), &trust).unwrap();
        let client = Client::new(target.dialling(Some(self.https.to_string().parse().unwrap())));
        Tunnel::start(client.token(self.token.clone().into()), options).await.map_err(|error| error.to_string())
    }
}

/// What is done all the time, from several sides, and what of it failed.
struct Load {
    way: Way,
    app: App,
    /// Webhooks by what is in their paths, and how often the app has had each.
    webhooks: Arc<Mutex<BTreeMap<String, usize>>>,
    acknowledged: Mutex<Vec<String>>,
    done: Mutex<BTreeMap<&'static str, usize>>,
    failed: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Load {
    async fn new(way: Way) -> Arc<Self> {
        let webhooks: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let taken = webhooks.clone();
        let app = App::serve(move |request| {
            if request.uri().path().starts_with("/webhook/") {
                *taken.lock().unwrap().entry(request.uri().path().to_owned()).or_default() += 1;
            }
            answer(request)
        })
        .await;
        let (acknowledged, done, failed) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { way, app, webhooks, acknowledged, done, failed, over: AtomicBool::new(false) })
    }

    /// Does one kind of thing again and again until it is over.
    fn repeat<F: Future<Output = Result<(), String>> + Send>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        kind: &'static str,
        mut once: impl FnMut(Arc<Self>, usize) -> F + Send + 'static,
    ) {
        let load = self.clone();
        tasks.spawn(async move {
            for number in 0.. {
                if load.over.load(SeqCst) {
                    return;
                }
                match once(load.clone(), number).await {
                    Ok(()) => *load.done.lock().unwrap().entry(kind).or_default() += 1,
                    Err(error) => {
                        load.failed.lock().unwrap().push(format!("{kind} {number}: {error}"));
                        // Where nobody answers, thousands of failures say no more than some.
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        });
    }

    fn count(&self) -> usize {
        self.done.lock().unwrap().values().sum()
    }

    /// Waits until so much more of everything was done that whatever happens meanwhile is among it.
    async fn go_on(&self, more: usize) {
        let until = self.count() + more;
        let reached = async {
            while self.count() < until {
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(format!("{more} more requests"), reached).await;
    }

    fn begin(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..3 {
            let kept = Arc::new(tokio::sync::Mutex::new(None));
            self.repeat(&mut tasks, "on a connection that is kept", move |load, number| {
                let kept = kept.clone();
                async move { load.kept(&mut *kept.lock().await, b"http/1.1", number).await }
            });
        }
        let kept = Arc::new(tokio::sync::Mutex::new(None));
        self.repeat(&mut tasks, "over HTTP/2", move |load, number| {
            let kept = kept.clone();
            async move { load.kept(&mut *kept.lock().await, b"h2", number).await }
        });
        for _ in 0..2 {
            self.repeat(&mut tasks, "on a new connection", |load, number| async move {
                load.kept(&mut None, b"http/1.1", number).await
            });
        }
        self.repeat(&mut tasks, "an upload", |load, _| async move { load.upload().await });
        self.repeat(&mut tasks, "a WebSocket", |load, _| async move { load.socket().await });
        self.repeat(&mut tasks, "a new tunnel", |load, number| async move { load.new_tunnel(number).await });
        for sender in 0..2 {
            self.repeat(&mut tasks, "a webhook", move |load, number| async move {
                load.webhook(&format!("/webhook/{sender}/{number}")).await
            });
        }
        tasks
    }

    /// A request, on the connection that there is or a new one.
    async fn send(
        &self,
        kept: &mut Option<Http>,
        name: &str,
        protocol: &'static [u8],
        request: impl Fn() -> Request<Body>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        loop {
            let mut http = match kept.take() {
                Some(http) if !http.is_closed() => http,
                _ => self.way.connect(name, protocol).await?,
            };
            let response = match http.request(request()).await {
                Ok(response) => response,
                // It was not sent, because the connection was closed before.
                Err(error) if error.is_canceled() => continue,
                Err(error) => return Err(format!("no answer: {error:?}")),
            };
            let closes = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| format!("no whole answer: {error:?}"))?;
            if !closes {
                *kept = Some(http);
            }
            return Ok((status, body.to_bytes().to_vec()));
        }
    }

    async fn kept(&self, kept: &mut Option<Http>, protocol: &'static [u8], number: usize) -> Result<(), String> {
        let target = self.way.target("live", "/echo");
        let request = || Request::post(&target).body(full(number.to_string())).unwrap();
        let (status, body) = self.send(kept, "live", protocol, request).await?;
        if status != 200 || body != number.to_string().as_bytes() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        Ok(())
    }

    /// A body that takes a while, and comes back.
    async fn upload(&self) -> Result<(), String> {
        let mut http = self.way.connect("live", b"http/1.1").await?;
        let (pipe, body) = pipe();
        let target = self.way.target("live", "/echo");
        let answer = http.request(Request::post(&target).body(body).unwrap());
        let piece = noise(20_000);
        let sent = async {
            for _ in 0..30 {
                pipe.send(piece.clone()).await;
                sleep(Duration::from_millis(20)).await;
            }
            drop(pipe);
        };
        let received = async {
            let response = answer.await.map_err(|error| format!("no answer: {error:?}"))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| format!("no whole answer: {error:?}"))?;
            match (status.as_u16(), body.to_bytes().len()) {
                (200, 600_000) => Ok(()),
                (status, bytes) => Err(format!("{status} with {bytes} bytes")),
            }
        };
        tokio::join!(sent, received).1
    }

    /// A connection of another protocol, on which both sides talk.
    async fn socket(&self) -> Result<(), String> {
        let host = Way::host("live");
        let tls = try_connect_tls(self.way.https, &host, &self.way.ca, &[b"http/1.1"]).await;
        let mut wire = Wire::new(tls.map_err(|error| format!("no connection: {error}"))?);
        let head = format!("GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
        wire.try_send(head).await.map_err(|error| error.to_string())?;
        let head = wire.head().await.unwrap_or_default();
        if !head.starts_with("HTTP/1.1 101") {
            return Err(head);
        }
        for _ in 0..20 {
            wire.try_send("hello").await.map_err(|error| error.to_string())?;
            let mut heard = Vec::new();
            while heard.len() < 5 {
                match wire.some().await {
                    some if some.is_empty() => return Err("it broke off".to_owned()),
                    some => heard.extend(some),
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        wire.finish().await;
        Ok(())
    }

    /// A client that comes, has one request, and goes.
    async fn new_tunnel(&self, number: usize) -> Result<(), String> {
        let name = format!("new-{}", number % 5);
        let tunnel = self.way.tunnel(TunnelOptions::new(self.app.upstream()).subdomain(&name)).await?;
        let target = self.way.target(&name, "/echo");
        let request = || Request::post(&target).body(full("new")).unwrap();
        let (status, body) = self.send(&mut None, &name, b"http/1.1", request).await?;
        tunnel.close().await.map_err(|error| error.to_string())?;
        if status == 200 && body == b"new" { Ok(()) } else { Err(format!("{status}: {body:?}")) }
    }

    /// A webhook, which is answered or kept.
    async fn webhook(&self, path: &str) -> Result<(), String> {
        let target = self.way.target("hooks", path);
        let request = || Request::post(&target).body(full(path.to_owned())).unwrap();
        let (status, body) = self.send(&mut None, "hooks", b"http/1.1", request).await?;
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        self.acknowledged.lock().unwrap().push(path.to_owned());
        Ok(())
    }

    /// What became of the webhooks: those that are missing, and those that came twice.
    fn missing_and_twice(&self) -> (Vec<String>, Vec<String>) {
        let webhooks = self.webhooks.lock().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap();
        let missing = acknowledged.iter().filter(|path| !webhooks.contains_key(*path)).cloned().collect();
        let twice = webhooks.iter().filter(|(_, times)| **times > 1).map(|(path, _)| path.clone()).collect();
        (missing, twice)
    }
}

async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    if !request.headers().contains_key(UPGRADE) {
        return echo(request).await;
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut response = ok("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, "upgrade".parse().unwrap());
    response.headers_mut().insert(UPGRADE, "raw".parse().unwrap());
    response
}

/// The clients that stay.
async fn clients(place: &Place, load: &Load) -> [RelayClient; 2] {
    let live = place.client(&load.app, "live", &["--inspect", "off"]).await;
    let hooks = place.client(&load.app, "hooks", &["--inspect", "off", "--inbox"]).await;
    [live, hooks]
}

async fn over(load: &Load, mut tasks: JoinSet<()>) {
    load.over.store(true, SeqCst);
    within("the end of what is under way", async { while tasks.join_next().await.is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_under_load_fail_no_request() {
    let mut place = Place::new().await;
    let load = Load::new(Way::to(&place)).await;
    let clients = clients(&place, &load).await;
    let tasks = load.begin();
    let began = Instant::now();
    for number in 0..10 {
        load.go_on(100).await;
        let next = place.relay.successor(&[]).await;
        load.go_on(100).await;
        let mut old = std::mem::replace(&mut place.relay, next);
        let ended = old.process.wait().await;
        assert_eq!(ended.code(), 0, "{number}: {ended:?}");
        assert!(!ended.stderr.contains("giving up"), "{ended:?}");
    }
    load.go_on(100).await;
    over(&load, tasks).await;
    let done = load.done.lock().unwrap().clone();
    println!("{done:?} in {:?}, and failed: {}", began.elapsed(), load.failed.lock().unwrap().len());
    assert_eq!(*load.failed.lock().unwrap(), [""; 0]);
    assert_eq!(done.len(), 7, "each kind was among it: {done:?}");
    let delivered = async {
        while !load.missing_and_twice().0.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within("all webhooks", delivered).await;
    assert_eq!(load.missing_and_twice(), (vec![], vec![]), "each was delivered once");
    drop(clients);
}

/// The control: the load notices a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_it_fails_requests() {
    let mut place = Place::new().await;
    let load = Load::new(Way::to(&place)).await;
    let clients = clients(&place, &load).await;
    let tasks = load.begin();
    load.go_on(100).await;
    let home = place.relay.process.home().clone();
    let (https, http) = (place.relay.https.to_string(), place.relay.http.unwrap().to_string());
    assert_eq!(place.relay.process.terminate().await.code(), 0);
    place.relay = RelayServer::spawn_in(home, ["--https", &https, "--http", &http]).await;
    load.go_on(50).await;
    over(&load, tasks).await;
    assert!(!load.failed.lock().unwrap().is_empty(), "{:?}", load.done.lock().unwrap());
    drop(clients);
}

/// `relay-server serve --take-over`, which is not to get there.
async fn fails_to_take_over(place: &Place, admin: &str, words: &[&str]) -> Ended {
    let data = place.relay.data_dir().display().to_string();
    let own = ["serve", "--domain", RelayServer::DOMAIN, "--data-dir", &data, "--take-over"];
    let listeners = ["--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", admin];
    let ended = run("relay-server", [&own[..], &listeners, words].concat()).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    ended
}

#[tokio::test]
async fn whoever_does_not_get_ready_changes_nothing() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &["--inspect", "off", "--inbox"]).await;

    // Its configuration is wrong.
    let ended = fails_to_take_over(&place, "127.0.0.1:0", &["--trusted-proxy", "nobody"]).await;
    assert!(ended.stderr.contains("trusted_proxies"), "{ended:?}");
    // It is to listen elsewhere, where somebody else does.
    let other = listener().await;
    let ended = fails_to_take_over(&place, &other.local_addr().unwrap().to_string(), &[]).await;
    assert!(ended.stderr.contains("--admin") && ended.stderr.contains("another program listens"), "{ended:?}");

    // It goes away once it has the descriptors, and once it has been let in.
    let socket = place.relay.data_dir().join("control.sock");
    for says_ready in [false, true] {
        let ask = async || {
            let mut other = BufReader::new(UnixStream::connect(&socket).await.unwrap());
            let ask = b"{\"request\":\"take_over\",\"version\":\"9\"}\n";
            other.get_mut().write_all(ask).await.unwrap();
            let mut line = String::new();
            other.read_line(&mut line).await.unwrap();
            (other, line)
        };
        let (mut other, mut line) = ask().await;
        // That the one before has gone may not have been noticed yet.
        while line.contains("taking over already") {
            (other, line) = ask().await;
        }
        assert!(line.contains("\"descriptors\""), "{line}");
        if says_ready {
            other.get_mut().write_all(b"{\"word\":\"ready\"}\n").await.unwrap();
            line.clear();
            other.read_line(&mut line).await.unwrap();
            assert!(line.contains("\"yours\""), "{line}");
            // What comes in that moment is kept, and delivered once it is known that nobody else does.
            let answer = place.post("hooks", "/meanwhile", "1").await;
            assert!(answer.status.is_success(), "{answer:?}");
        }
        // One at a time.
        if !says_ready {
            let ended = fails_to_take_over(&place, "127.0.0.1:0", &[]).await;
            assert!(ended.stderr.contains("another process is taking over already"), "{ended:?}");
        }
        drop(other);
        app.reached(usize::from(says_ready)).await;
    }
    let answer = place.post("hooks", "/after", "2").await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    assert_eq!(place.relay.get_admin("/readyz").await.code(), 200);
    let targets: Vec<String> = app.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/meanwhile", "/after"]);
    drop(client);
}

/// Whoever has been let in may take its time, and is nobody to wait for.
#[tokio::test]
async fn a_relay_that_is_to_stop_does_not_wait_for_who_takes_over() {
    let mut place = Place::new().await;
    let socket = place.relay.data_dir().join("control.sock");
    let mut other = BufReader::new(UnixStream::connect(&socket).await.unwrap());
    let mut line = String::new();
    for (word, answer) in
        [("\"request\":\"take_over\",\"version\":\"9\"", "descriptors"), ("\"word\":\"ready\"", "yours")]
    {
        other.get_mut().write_all(format!("{{{word}}}\n").as_bytes()).await.unwrap();
        line.clear();
        other.read_line(&mut line).await.unwrap();
        assert!(line.contains(answer), "{line}");
    }
    let began = Instant::now();
    assert_eq!(place.relay.process.terminate().await.code(), 0);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    line.clear();
    assert_eq!(other.read_line(&mut line).await.unwrap(), 0, "it hears of that");
}

#[tokio::test]
async fn where_none_runs_there_is_nothing_to_take_over() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().display().to_string();
    for words in [
        &["serve", "--domain", "relay.test", "--https", "127.0.0.1:0", "--take-over", "--data-dir", &data][..],
        &["upgrade", "--data-dir", &data],
        &["reload", "--data-dir", &data],
    ] {
        let ended = run("relay-server", words).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains(&format!("no relay runs on {data}")), "{ended:?}");
    }
    assert!(!home.path().join("relay.lock").exists());
}

/// An app that answers when it is told to, and counts what it is asked.
async fn slow_app() -> (App, Arc<Notify>, Arc<AtomicUsize>) {
    let (go, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (told, counted) = (go.clone(), asked.clone());
    let app = App::serve(move |_| {
        let told = told.clone();
        let first = counted.fetch_add(1, SeqCst) == 0;
        async move {
            if first {
                told.notified().await;
            }
            ok("done")
        }
    })
    .await;
    (app, go, asked)
}

/// Waits until nothing waits in the inbox any more.
async fn drain(place: &Place) {
    let data = place.relay.data_dir().display().to_string();
    let ended = run("relay-server", ["inbox", "--data-dir", &data, "drain", "hooks"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
}

/// The old process is at a webhook, and the new one waits for what comes of it: none is delivered twice, and none overtakes.
#[tokio::test]
async fn what_the_old_one_delivers_the_new_one_does_not() {
    let mut place = Place::new().await;
    let (app, go, asked) = slow_app().await;
    let client = place.client(&app, "hooks", &["--inspect", "off", "--inbox=ordered"]).await;
    let first = place.post("hooks", "/1", "1").await;
    assert_eq!(first.code(), 202, "acknowledged, because the app takes long");
    assert_eq!(asked.load(SeqCst), 1);
    let next = place.relay.successor(&[]).await;
    let mut old = std::mem::replace(&mut place.relay, next);
    let second = place.post("hooks", "/2", "2").await;
    assert_eq!(second.code(), 202, "behind the first: {second:?}");
    assert_eq!(asked.load(SeqCst), 1);
    go.notify_one();
    app.reached(2).await;
    assert_eq!(old.process.wait().await.code(), 0);
    drain(&place).await;
    assert_eq!(asked.load(SeqCst), 2, "each once");
    drop(client);
}

#[tokio::test]
async fn what_the_old_one_cannot_finish_the_new_one_delivers() {
    let mut place = Place::new().await;
    let (app, _go, asked) = slow_app().await;
    let client = place.client(&app, "hooks", &["--inspect", "off", "--inbox"]).await;
    assert_eq!(place.post("hooks", "/1", "1").await.code(), 202);
    assert_eq!(asked.load(SeqCst), 1);
    let next = place.relay.successor(&[]).await;
    let mut old = std::mem::replace(&mut place.relay, next);
    old.process.kill().await;
    app.reached(2).await;
    drain(&place).await;
    drop(client);
}

/// One after the other: who has just taken over hands over once the one before it has ended.
#[tokio::test]
async fn a_relay_that_still_has_a_predecessor_does_not_hand_over() {
    let mut place = Place::new().await;
    let app = App::echo().await;
    let client = place.client(&app, "live", &["--inspect", "off"]).await;
    let (pipe, body) = pipe();
    let way = Way::to(&place);
    let mut http = way.connect("live", b"http/1.1").await.unwrap();
    let answer = http.request(Request::post(way.target("live", "/")).body(body).unwrap());
    pipe.send("1").await;
    let response = answer.await.unwrap();
    let next = place.relay.successor(&[]).await;
    let mut old = std::mem::replace(&mut place.relay, next);
    let ended = fails_to_take_over(&place, "127.0.0.1:0", &[]).await;
    assert!(ended.stderr.contains("still ends what it had under way"), "{ended:?}");
    assert!(place.relay.get_admin("/metrics").await.text().contains("relay_predecessor 1\n"));
    pipe.send("2").await;
    drop(pipe);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "12");
    assert_eq!(old.process.wait().await.code(), 0);
    let is_alone = async || place.relay.get_admin("/metrics").await.text().contains("relay_predecessor 0\n");
    within("word of its end", async { while !is_alone().await {} }).await;
    let next = place.relay.successor(&[]).await;
    assert_eq!(std::mem::replace(&mut place.relay, next).process.wait().await.code(), 0);
    assert_eq!(place.post("live", "/", "again").await.text(), "again");
    drop(client);
}

/// A process that nobody waits for, which ends with the test.
struct Orphan(u32);

impl Orphan {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0).unwrap()).unwrap()
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::KILL);
    }
}

/// A relay whose program is its own, so that it can be replaced, and a service manager that listens.
struct Service {
    relay: RelayServer,
    manager: UnixDatagram,
    binary: PathBuf,
    config: PathBuf,
}

impl Service {
    async fn start(config: &str) -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let (binary, file, socket) =
            (home.path().join("relay-server"), home.path().join("relay.toml"), home.path().join("notify"));
        std::fs::copy(relay_tests::process::binary("relay-server").await, &binary).unwrap();
        std::fs::write(&file, config).unwrap();
        let manager = UnixDatagram::bind(&socket).unwrap();
        let (path, socket) = (file.display().to_string(), socket.display().to_string());
        let relay = RelayServer::spawn_from(&binary, home, ["--config", &path], &[("NOTIFY_SOCKET", &socket)]).await;
        Self { relay, manager, binary, config: file }
    }

    /// What the service manager is told next.
    async fn told(&self) -> String {
        let mut told = [0; 256];
        let length = within("a word to the service manager", self.manager.recv(&mut told)).await.unwrap();
        String::from_utf8(told[..length].to_vec()).unwrap()
    }

    async fn command(&self, word: &str) -> Ended {
        run("relay-server", [word, "--data-dir", &self.relay.data_dir().display().to_string()]).await
    }

    /// Hands over, to the process that is returned.
    async fn upgrade(&self) -> (Ended, Orphan) {
        let ended = self.command("upgrade").await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        let process = ended.stdout.split_once("(process ").unwrap().1.split_once(')').unwrap().0.parse().unwrap();
        (ended, Orphan(process))
    }

    /// Another program takes its place, as a package manager does it.
    fn replace_binary(&self) {
        let new = self.binary.with_extension("new");
        std::fs::copy(&self.binary, &new).unwrap();
        std::fs::rename(new, &self.binary).unwrap();
    }
}

#[tokio::test]
async fn the_command_starts_the_program_that_is_there_by_then() {
    let mut service = Service::start("").await;
    assert_eq!(service.told().await, "READY=1");
    let token = service.relay.token("me").await;
    let app = App::echo().await;
    let client = service.relay.client(&token, &app.upstream().to_string(), &["--subdomain", "live"]).await;
    service.replace_binary();

    let (ended, new) = service.upgrade().await;
    let process = new.0.to_string();
    assert!(ended.stdout.starts_with(&format!("version {} ", env!("CARGO_PKG_VERSION"))), "{ended:?}");
    // The new one says that it is ready, and is heard once it is the main process.
    let mut told = [service.told().await, service.told().await];
    told.sort();
    assert_eq!(told, [format!("MAINPID={process}"), "READY=1".to_owned()]);
    assert!(service.relay.process.exited().await.success());
    assert_eq!(std::fs::read_link(format!("/proc/{process}/exe")).unwrap(), service.binary);
    assert_eq!(std::fs::read_to_string(service.relay.data_dir().join("relay.lock")).unwrap().trim(), process);
    let list = service.relay.token_command(&["list"]).await;
    assert!(list.code() == 0 && list.stdout.contains("live"), "commands reach the new one: {list:?}");
    let place = Way { https: service.relay.https, url: String::new(), ca: service.relay.ca_file(), token };
    let request = Request::post(place.target("live", "/")).body(full("again")).unwrap();
    let answer = place.connect("live", b"http/1.1").await.unwrap().answer(request).await;
    assert_eq!(answer.text(), "again");
    kill_process(new.pid(), Signal::TERM).unwrap();
    let stopped = async {
        while service.relay.data_dir().join("control.sock").exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    within("the end of the new one", stopped).await;
    drop(client);
}

#[tokio::test]
async fn requests_wait_for_a_client_that_is_on_its_way_to_the_new_process() {
    // Nobody waits for a client that is away.
    let service = Service::start("[limits]\nclient_wait = '1ms'\nclient_waiters = 1\n").await;
    let token = service.relay.token("me").await;
    let app = App::echo().await;
    let client = service.relay.client(&token, &app.upstream().to_string(), &["--subdomain", "live"]).await;
    client.process.signal(Signal::STOP);
    let (_, _new) = service.upgrade().await;
    let answers = join_all((0..8).map(|_| post(&service.relay, 10)));
    let (answers, ()) = tokio::join!(answers, async { client.process.signal(Signal::CONT) });
    assert_eq!(answers, [200; 8]);
}

/// Whichever process takes a connection that comes while the old one is told to stop, it has the client for what comes on it.
#[tokio::test]
async fn who_connects_in_the_moment_of_the_change_is_answered() {
    for _ in 0..4 {
        let (mut place, app) = (Place::new().await, App::echo().await);
        let _client = place.client(&app, "hooks", &["--inspect", "off"]).await;
        let next = place.relay.successor(&[]).await;
        let mut old = std::mem::replace(&mut place.relay, next);
        old.process.signal(Signal::STOP);
        // It serves, so that the old one finds its word and these connections when it looks.
        assert_eq!(place.relay.get_admin("/healthz").await.code(), 200);
        place.relay.process.signal(Signal::STOP);
        let connections = join_all((0..8).map(|_| TcpStream::connect(place.relay.https))).await;
        old.process.signal(Signal::CONT);
        old.process.error_line("shutting down").await;
        place.relay.process.signal(Signal::CONT);
        let (host, ca) = (Way::host("hooks"), place.relay.ca_file());
        let answers = connections.into_iter().map(async |tcp| {
            let tls = tls_over(tcp.unwrap(), &host, &ca, &[b"http/1.1"]).await.unwrap();
            let request = Request::post("/").body(full("x")).unwrap();
            Http::one(tls).await.answer(place.request("hooks", request)).await.code()
        });
        assert_eq!(join_all(answers).await, [200; 8]);
    }
}

/// What is changed meanwhile holds for those who are still with the old process.
#[tokio::test]
async fn a_limit_that_the_new_process_is_told_of_holds_in_the_old_one() {
    let service = Service::start("").await;
    let token = service.relay.token("me").await;
    let (go, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (wait, tell) = (go.clone(), told.clone());
    let app = App::serve(move |request| {
        let (wait, tell) = (wait.clone(), tell.clone());
        async move {
            if request.uri().path() == "/slow" {
                tell.notify_one();
                wait.notified().await;
            }
            Response::new(full("done"))
        }
    })
    .await;
    let client = service.relay.client(&token, &app.upstream().to_string(), &["--subdomain", "live"]).await;
    let way = Way { https: service.relay.https, url: String::new(), ca: service.relay.ca_file(), token };
    let post = |path: &str| Request::post(way.target("live", path)).body(full("")).unwrap();
    let mut connections = Vec::new();
    for _ in 0..16 {
        let mut connection = way.connect("live", b"http/1.1").await.unwrap();
        assert_eq!(connection.answer(post("/")).await.code(), 200);
        connections.push(connection);
    }
    let (mut slow, request) = (way.connect("live", b"http/1.1").await.unwrap(), post("/slow"));
    let slow = tokio::spawn(async move { slow.answer(request).await.code() });
    told.notified().await;
    let (_, _new) = service.upgrade().await;
    let limited = service.relay.token_command(&["limit", "me", "--max-streams", "1"]).await;
    assert_eq!(limited.code(), 0, "{limited:?}");
    // Each of them leads to the old one, and takes one more request.
    let mut codes = Vec::new();
    for mut connection in connections {
        codes.push(connection.answer(post("/")).await.code());
        if codes.last() == Some(&429) {
            break;
        }
        sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(codes.last(), Some(&429), "{codes:?}");
    go.notify_one();
    assert_eq!(slow.await.unwrap(), 200);
    drop(client);
}

#[tokio::test]
async fn a_new_program_that_does_not_start_is_told_of_and_the_old_one_serves_on() {
    let service = Service::start("timeout = '20s'\n").await;
    std::fs::write(&service.config, "timeout = '20'\n").unwrap();
    let ended = service.command("upgrade").await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    let all = "the new process did not start, and the relay goes on as it was: timeout = \"20\" is not a duration";
    assert!(ended.stderr.contains(all), "{ended:?}");
    assert_eq!(service.relay.get_admin("/readyz").await.code(), 200);
    std::fs::write(service.binary.with_extension("new"), "no program").unwrap();
    std::fs::rename(service.binary.with_extension("new"), &service.binary).unwrap();
    let ended = service.command("upgrade").await;
    assert!(ended.code() == 1 && ended.stderr.contains("cannot be started"), "{ended:?}");
    assert_eq!(service.relay.get_admin("/readyz").await.code(), 200);
}

/// The status of the answer to a body of so many bytes.
async fn post(relay: &RelayServer, body: usize) -> u16 {
    let way = Way { https: relay.https, url: String::new(), ca: relay.ca_file(), token: String::new() };
    let request = Request::post(way.target("live", "/")).body(full(noise(body))).unwrap();
    way.connect("live", b"http/1.1").await.unwrap().answer(request).await.code()
}

#[tokio::test]
async fn a_reload_changes_what_can_change_and_names_what_cannot() {
    let mut service = Service::start("[limits]\nbody_bytes = 1000\n").await;
    let token = service.relay.token("me").await;
    let app = App::echo().await;
    let client = service.relay.client(&token, &app.upstream().to_string(), &["--subdomain", "live"]).await;
    assert_eq!((post(&service.relay, 900).await, post(&service.relay, 1100).await), (200, 413));

    std::fs::write(&service.config, "public_port = 8443\n[limits]\nbody_bytes = 2000\nconnections = 77\n").unwrap();
    let ended = service.command("reload").await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let expected = "in force now: limits\nin force after `relay-server upgrade`: public_port, limits.connections\n";
    assert_eq!(ended.stdout, expected);
    let line = service.relay.process.error_line("stay as they were").await;
    assert!(line.contains("public_port") && line.contains("relay-server upgrade"), "{line}");
    assert_eq!((post(&service.relay, 1100).await, post(&service.relay, 2100).await), (200, 413));

    std::fs::write(&service.config, "[limits]\nbody_bytes = 'many'\n").unwrap();
    let ended = service.command("reload").await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("stays as it was") && ended.stderr.contains("line 2"), "{ended:?}");
    assert_eq!(post(&service.relay, 1100).await, 200);

    // A proxy that is trusted without what says who the sender is would have every sender believed.
    std::fs::write(
        &service.config,
        "trusted_proxies = ['127.0.0.1']\nproxy_protocol = true\n[limits]\nbody_bytes = 2000\n",
    )
    .unwrap();
    let ended = service.command("reload").await;
    let expected = "nothing has changed that a running relay can change\n\
                    in force after `relay-server upgrade`: proxy_protocol, trusted_proxies\n";
    assert_eq!(ended.stdout, expected);
    assert_eq!(post(&service.relay, 1100).await, 200, "no header is expected");
    // What is waited for below is said of each.
    service.relay.process.error_line("stay as they were").await;

    std::fs::write(&service.config, "[limits]\nbody_bytes = 3000\n").unwrap();
    service.relay.process.signal(Signal::HUP);
    service.relay.process.error_line("the configuration was read anew").await;
    assert_eq!((post(&service.relay, 2100).await, post(&service.relay, 3100).await), (200, 413));
    let ended = service.command("reload").await;
    assert_eq!(ended.stdout, "nothing has changed that a running relay can change\n");
    // Commands and signals are told apart in the audit log; what was refused is not there.
    let audit = service.relay.command("audit", &["--output", "json"]).await.lines();
    let reloads = audit.iter().filter(|entry| entry["operation"] == "relay.reload");
    let via: Vec<_> = reloads.map(|entry| entry["by"]["via"].as_str().unwrap()).collect();
    assert_eq!(via, ["command", "command", "signal", "command"]);
    drop(client);
}

/// systemd's socket activation: the sockets are there before the relay, and stay when it goes.
#[tokio::test]
async fn listeners_of_a_service_manager_are_used() {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let python = program("python3").display().to_string();
    let binary = relay_tests::process::binary("relay-server").await.display().to_string();
    let data = home.path().join("data").display().to_string();
    let script = app_file("activate.py").display().to_string();
    // In the place of {0} and {1} are the addresses that it has opened.
    let words = [&script, "2", &binary, "serve", "--domain", RelayServer::DOMAIN];
    let rest = ["--https", "{0}", "--http", "{1}", "--admin", "off", "--data-dir", &data, "--log", "json"];
    let mut relay = Process::spawn_in(home, &python, [&words[..], &rest].concat(), &[]).await;
    let line = relay.error_line("the relay is ready").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let https: SocketAddr = line["https"].as_str().unwrap().parse().unwrap();
    assert_ne!(https.port(), 0, "{line}");
    let ca = Path::new(&data).join("ca/ca.pem");
    try_connect_tls(https, RelayServer::DOMAIN, &ca, &[b"http/1.1"]).await.expect("it is served");
    // One socket each: it has bound none of its own.
    assert_eq!(relay.listeners(), 2);
    assert_eq!(relay.terminate().await.code(), 0);
}

#[tokio::test]
async fn names_are_kept_and_the_client_says_nothing_of_it() {
    let mut place = Place::new().await;
    let app = App::echo().await;
    let mut client = place.client(&app, "live", &["--inspect", "off"]).await;
    let random = {
        let way = Way::to(&place);
        let options =
            TunnelOptions { inbox: Some("on".parse::<Inbox>().unwrap()), ..TunnelOptions::new(app.upstream()) };
        way.tunnel(options).await.unwrap()
    };
    let name = random.name().to_owned();
    let next = place.relay.successor(&[]).await;
    let mut old = std::mem::replace(&mut place.relay, next);
    assert_eq!(old.process.wait().await.code(), 0);
    assert_eq!(place.post("live", "/", "1").await.text(), "1");
    assert_eq!(place.post(&name, "/", "2").await.text(), "2");
    random.close().await.unwrap();
    let ended = client.process.terminate().await;
    let events: Vec<String> = ended.lines().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["exchange"], "neither disconnected nor reconnected");
}
