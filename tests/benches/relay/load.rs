//! Where the load comes from: wrk, callers of our own, thousands of idle sessions, and a wire that takes its time.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_client::{Status, Tunnel};
use relay_protocol::frame::SessionKind;
use relay_protocol::link::{Driver, Link, Signal, websocket_config};
use relay_protocol::message::{Hello, Payload as _, TunnelSpec, Welcome};
use relay_protocol::mux::{Limits, Side};
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use tokio::task::JoinSet;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::Result;
use crate::world::{DOMAIN, Front, Process, Relay, World};

/// A webhook's usual size in bytes.
const HOOK: usize = 1024;

/// What wrk saw.
pub(crate) struct Storm {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Posts webhooks over this many connections; `close` takes a new one for each.
pub(crate) fn storm(world: &World, front: &Front, connections: u32, seconds: u32, close: bool) -> Result<Storm> {
    let script = world.dir.path().join("hook.lua");
    fs::write(&script, include_str!("hook.lua"))?;
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s", "-s"]).arg(script);
    wrk.args([&format!("https://{}/hook", front.addr), "--", &front.host]);
    let out = wrk.args(close.then_some("close")).output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).ok_or_else(|| format!("wrk: {text}"))?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
    let &[requests, micros, p50, p99, errors] = &numbers[..] else { return Err(format!("wrk: {line}").into()) };
    // wrk counts the connections that its own end cuts.
    if requests == 0.0 || errors > requests / 1000.0 {
        return Err(format!("{errors} of {requests} requests failed").into());
    }
    Ok(Storm { requests, per_second: requests / micros * 1e6, p50_ms: p50 / 1e3, p99_ms: p99 / 1e3 })
}

/// A caller's HTTP/1.1 connection over TLS; blocking, so that no runtime of ours is in the way.
pub(crate) struct Conn {
    tls: StreamOwned<ClientConnection, Wire>,
    host: String,
    got: Vec<u8>,
}

/// rustls asks for 4 KiB at a time; this asks the system for more.
struct Wire {
    tcp: TcpStream,
    buffer: Box<[u8]>,
    ready: std::ops::Range<usize>,
}

impl Conn {
    /// Connects, with the handshake.
    pub(crate) fn open(front: &Front) -> Result<Self> {
        let tcp = TcpStream::connect(front.addr)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        tcp.set_write_timeout(Some(Duration::from_secs(10)))?;
        let connection = ClientConnection::new(front.tls.clone(), ServerName::try_from(front.host.clone())?)?;
        let wire = Wire { tcp, buffer: vec![0; 64 * 1024].into(), ready: 0..0 };
        Ok(Self { tls: StreamOwned::new(connection, wire), host: front.host.clone(), got: Vec::new() })
    }

    /// GET; the status, once the body has come.
    pub(crate) fn get(&mut self, path: &str) -> Result<u16> {
        self.send("GET", path, b"")?;
        self.answer()
    }

    /// A webhook; the status, once the body has come.
    pub(crate) fn hook(&mut self) -> Result<u16> {
        self.send("POST", "/hook", &[b'x'; HOOK])?;
        self.answer()
    }

    /// Reads `/size/N`, at most `pace` bytes a second, until everything has come or `stop` says so; the bytes.
    pub(crate) fn download(&mut self, n: u64, pace: Option<f64>, stop: &AtomicBool) -> Result<u64> {
        self.send("GET", &format!("/size/{n}"), b"")?;
        let (status, _) = self.head()?;
        let (begun, mut chunk) = (Instant::now(), vec![0; 64 * 1024]);
        let mut read = self.got.len() as u64;
        self.got.clear();
        while status == 200 && read < n && !stop.load(Relaxed) {
            let count = self.tls.read(&mut chunk)?;
            if count == 0 {
                return Err(format!("the download ended after {read} of {n} bytes").into());
            }
            read += count as u64;
            if let Some(pace) = pace {
                let due = Duration::from_secs_f64(read as f64 / pace);
                std::thread::sleep(due.saturating_sub(begun.elapsed()).min(Duration::from_millis(200)));
            }
        }
        if status == 200 { Ok(read) } else { Err(format!("the download was answered with {status}").into()) }
    }

    /// Sends a body of `n` bytes, and waits for the answer.
    pub(crate) fn upload(&mut self, n: u64) -> Result<()> {
        let head = format!("POST /sink HTTP/1.1\r\nHost: {}\r\nContent-Length: {n}\r\n\r\n", self.host);
        self.tls.write_all(head.as_bytes())?;
        let chunk = vec![b'x'; 64 * 1024];
        let mut left = n;
        while left > 0 {
            let count = left.min(chunk.len() as u64);
            self.tls.write_all(&chunk[..usize::try_from(count)?])?;
            left -= count;
        }
        match self.answer()? {
            200 => Ok(()),
            status => Err(format!("the upload was answered with {status}").into()),
        }
    }

    /// GET of `path`; returns when the head is there and leaves the body where it is.
    pub(crate) fn start(&mut self, path: &str) -> Result<u16> {
        self.send("GET", path, b"")?;
        Ok(self.head()?.0)
    }

    fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Result<()> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench\r\n", self.host);
        if !body.is_empty() {
            bytes += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        bytes += "\r\n";
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(body);
        Ok(self.tls.write_all(&bytes)?)
    }

    fn answer(&mut self) -> Result<u16> {
        let (status, length) = self.head()?;
        let length = length.ok_or("an answer without a length")?;
        while self.got.len() < length {
            self.more()?;
        }
        self.got.drain(..length);
        Ok(status)
    }

    /// The status and the body's length, if it has one.
    fn head(&mut self) -> Result<(u16, Option<usize>)> {
        let end = loop {
            match self.got.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end,
                None => self.more()?,
            }
        };
        let head = String::from_utf8(self.got.drain(..end + 4).collect())?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("an answer without a status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        Ok((status, length))
    }

    fn more(&mut self) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.tls.read(&mut chunk)? {
            0 => Err("the connection ended before the answer".into()),
            n => {
                self.got.extend_from_slice(&chunk[..n]);
                Ok(())
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            self.ready = 0..self.tcp.read(&mut self.buffer)?;
        }
        let n = self.ready.len().min(out.len());
        out[..n].copy_from_slice(&self.buffer[self.ready.start..self.ready.start + n]);
        self.ready.start += n;
        Ok(n)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.tcp.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Webhooks one after another for this long, in milliseconds each, sorted.
pub(crate) fn sequence(front: &Front, time: Duration) -> Result<Vec<f64>> {
    let mut conn = Conn::open(front)?;
    for _ in 0..20 {
        conn.hook()?;
    }
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time || times.len() < 20 {
        let sent = Instant::now();
        let status = conn.hook()?;
        times.push(sent.elapsed().as_secs_f64() * 1e3);
        if status != 200 {
            return Err(format!("a webhook was answered with {status}").into());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The value below which this share of sorted values lies.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// A download that goes on until it is dropped.
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<f64>>>,
}

impl Background {
    /// Starts one, and lets it reach its speed.
    pub(crate) fn start(front: &Front, pace: Option<f64>) -> Result<Self> {
        let mut conn = Conn::open(front)?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            let read = conn.download(1 << 40, pace, &until)?;
            Ok(read as f64 / 1e6 / begun.elapsed().as_secs_f64())
        });
        std::thread::sleep(Duration::from_millis(700));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; its speed in MB/s.
    pub(crate) fn end(mut self) -> Result<f64> {
        self.stop.store(true, Relaxed);
        self.thread.take().ok_or("ended twice")?.join().map_err(|_| "the download's thread failed")?
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// How much a wire holds in one direction, in chunks of at most 64 KiB: more than any window in a test.
const IN_FLIGHT: usize = 1024;

/// A TCP proxy that delivers each byte after a delay, without a limit of speed.
///
/// Threads and plain sleeps: a runtime's timers round to a millisecond, which is a fiftieth of what is measured.
pub(crate) struct DelayedWire {
    pub(crate) addr: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    stop: Arc<AtomicBool>,
}

impl DelayedWire {
    pub(crate) fn start(to: SocketAddr, one_way: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let (open, stop) = (Arc::<Mutex<Vec<TcpStream>>>::default(), Arc::<AtomicBool>::default());
        let (known, stopped) = (open.clone(), stop.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(io::Result::ok) {
                if stopped.load(Relaxed) {
                    return;
                }
                let known = known.clone();
                std::thread::spawn(move || Self::join(&near, to, one_way, &known));
            }
        });
        Ok(Self { addr, open, stop })
    }

    /// The server hears of a connection after one and a half round trips, with the caller's first bytes.
    fn join(near: &TcpStream, to: SocketAddr, one_way: Duration, known: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
        std::thread::sleep(one_way * 3);
        let far = TcpStream::connect(to)?;
        for (from, into) in [(near, &far), (&far, near)] {
            from.set_nodelay(true)?;
            let (sender, receiver) = sync_channel(IN_FLIGHT);
            let (from, into) = (from.try_clone()?, into.try_clone()?);
            if let Ok(mut known) = known.lock() {
                known.push(from.try_clone()?);
            }
            std::thread::spawn(move || take(from, &sender));
            std::thread::spawn(move || deliver(into, &receiver, one_way));
        }
        Ok(())
    }
}

impl Drop for DelayedWire {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the listener's thread.
        let _ = TcpStream::connect(self.addr);
        if let Ok(open) = self.open.lock() {
            open.iter().for_each(|tcp| drop(tcp.shutdown(Shutdown::Both)));
        }
    }
}

fn take(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut chunk) {
        if sender.send((Instant::now(), chunk[..n].to_vec())).is_err() || n == 0 {
            return;
        }
    }
}

fn deliver(mut into: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>, after: Duration) {
    for (came, bytes) in receiver {
        std::thread::sleep((came + after).saturating_duration_since(Instant::now()));
        if bytes.is_empty() || into.write_all(&bytes).is_err() {
            let _ = into.shutdown(Shutdown::Write);
            return;
        }
    }
}

/// HTTP/2 streams that have begun and do not end; they end when this is dropped.
pub(crate) struct OpenStreams {
    _bodies: Vec<Incoming>,
    _connections: JoinSet<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl OpenStreams {
    /// Opens `count` over connections with 100 each.
    pub(crate) fn start(front: &Front, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (bodies, connections) = runtime.block_on(Self::open(front, count))?;
        Ok(Self { _bodies: bodies, _connections: connections, runtime: Some(runtime) })
    }

    async fn open(front: &Front, count: usize) -> Result<(Vec<Incoming>, JoinSet<()>)> {
        let mut config = (*front.tls).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let (mut bodies, mut connections) = (Vec::new(), JoinSet::new());
        while bodies.len() < count {
            let tcp = tokio::net::TcpStream::connect(front.addr).await?;
            let tls = connector.connect(ServerName::try_from(front.host.clone())?, tcp).await?;
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
            connections.spawn(async { drop(connection.await) });
            for _ in 0..100.min(count - bodies.len()) {
                let uri = format!("https://{}:{}/hold", front.host, front.addr.port());
                let request = http::Request::get(uri).body(Empty::<Bytes>::new())?;
                let response = sender.send_request(request).await?;
                let status = response.status();
                let mut body = response.into_body();
                if status != 200 || body.frame().await.is_none() {
                    return Err(format!("stream {} was answered with {status}", bodies.len()).into());
                }
                bodies.push(body);
            }
        }
        Ok((bodies, connections))
    }
}

impl Drop for OpenStreams {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sessions of this process with a tunnel each, on which nothing happens but heartbeats.
pub(crate) struct IdleSessions {
    _sessions: JoinSet<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl IdleSessions {
    /// Opens them; `numbers` are in their names.
    pub(crate) fn start(world: &World, relay: &Relay, numbers: std::ops::Range<usize>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let sessions = runtime.block_on(async {
            let connector = TlsConnector::from(world.tls.clone());
            let opening = numbers.map(|i| Self::open(&connector, relay, i));
            // As many at once as a relay sees when it comes back.
            let mut opening = stream::iter(opening).buffer_unordered(32);
            let mut sessions = JoinSet::new();
            while let Some(opened) = opening.next().await {
                let (link, driver) = opened?;
                sessions.spawn(async move {
                    let _link = link;
                    driver.await;
                });
            }
            Result::Ok(sessions)
        })?;
        Ok(Self { _sessions: sessions, runtime: Some(runtime) })
    }

    async fn open(
        connector: &TlsConnector,
        relay: &Relay,
        i: usize,
    ) -> Result<(Link, Driver<TlsStream<tokio::net::TcpStream>>)> {
        // The relay takes 2,000 connections from one address, so there are several.
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, 2 + u8::try_from(i / 1_000)?), 0).into())?;
        let tcp = socket.connect(relay.addr).await?;
        tcp.set_nodelay(true)?;
        let tls = connector.connect(ServerName::try_from(DOMAIN)?, tcp).await?;
        let mut request = format!("wss://{DOMAIN}:{}{CONNECT_PATH}", relay.addr.port()).into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {}", relay.token).parse()?);
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, tls, Some(websocket_config(4096))).await?;
        let (link, mut driver) = Driver::new(Side::Client, Limits::default(), socket);
        let tunnel = TunnelSpec {
            tunnel: 1,
            name: Some(format!("idle-{i}")),
            domain: None,
            timeout_ms: None,
            takeover: false,
            extra: Vec::new(),
        };
        let hello = Hello {
            client: "bench".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Vec::new(),
            tunnels: vec![tunnel],
            resume: None,
            extra: Vec::new(),
        };
        link.send_message(SessionKind::Hello, hello.to_bytes()?)?;
        let signal = tokio::select! {
            biased;
            signal = link.signal() => signal,
            ended = &mut driver => Signal::Ended(ended),
        };
        let Signal::Message(SessionKind::Welcome, payload) = signal else {
            return Err(format!("session {i}: {signal:?}").into());
        };
        let welcome = Welcome::from_bytes(&payload)?;
        match welcome.tunnels.first().map(|bound| &bound.result) {
            Some(Ok(_)) => Ok((link, driver)),
            other => Err(format!("session {i}: {other:?}").into()),
        }
    }
}

impl Drop for IdleSessions {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// How long clients have to come back.
const RETURN: Duration = Duration::from_secs(120);

/// Clients as they are, which come back when the relay was away: the library, in this process, with a tunnel each.
pub(crate) struct Herd {
    tunnels: Vec<Tunnel>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Herd {
    /// Opens the tunnels.
    pub(crate) fn start(world: &World, relay: &Relay, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (url, ca) = (relay.url(), world.dir.path().join("ca.pem"));
        let open = |i: usize| {
            let tunnel = Tunnel::builder().relay(&url).relay_addr(relay.addr).token(&relay.token).ca_file(&ca);
            tunnel.upstream(world.origin).subdomain(format!("herd-{i}")).open()
        };
        let tunnels = runtime.block_on(stream::iter((0..count).map(open)).buffer_unordered(32).try_collect())?;
        Ok(Self { tunnels, runtime: Some(runtime) })
    }

    /// Has the relay crash. When each client is back, in seconds since just before, the first of them first.
    pub(crate) fn outlive<T>(&self, crash: impl FnOnce() -> Result<T>) -> Result<(T, Vec<f64>)> {
        let runtime = self.runtime.as_ref().ok_or("the clients have ended")?;
        let (mut returning, begun) = (JoinSet::new(), Instant::now());
        for tunnel in &self.tunnels {
            let mut status = tunnel.status();
            status.mark_unchanged();
            returning.spawn_on(
                async move {
                    while status.changed().await.is_ok() {
                        if matches!(*status.borrow_and_update(), Status::Up) {
                            return Some(begun.elapsed().as_secs_f64());
                        }
                    }
                    None
                },
                runtime.handle(),
            );
        }
        let crashed = crash()?;
        let times = runtime.block_on(async { tokio::time::timeout(RETURN, returning.join_all()).await });
        let times = times.map_err(|_| format!("not all are back after {} s", RETURN.as_secs()))?;
        let mut times: Vec<f64> = times.into_iter().collect::<Option<_>>().ok_or("a client has ended")?;
        times.sort_by(f64::total_cmp);
        Ok((crashed, times))
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// CPU that processes take while something runs, in seconds.
pub(crate) fn cpu_of<T>(processes: &[&Process], run: impl FnOnce() -> Result<T>) -> Result<(T, Vec<f64>)> {
    let before: Vec<f64> = processes.iter().map(|process| process.cpu()).collect();
    let done = run()?;
    Ok((done, processes.iter().zip(before).map(|(process, before)| process.cpu() - before).collect()))
}
