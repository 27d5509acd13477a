//! What is measured: an origin, nginx before it, a relay and a client before it, and the readings of their processes.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use crate::Result;
use crate::load::Conn;

/// The relay's domain; tunnels are below it, and the certificate is for both.
pub(crate) const DOMAIN: &str = "bench.localhost";

/// How long a program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything that outlives one measurement.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) origin: SocketAddr,
    pub(crate) tls: Arc<ClientConfig>,
    /// Which of the two a measurement asks first.
    pub(crate) nginx_first: bool,
    /// How many idle sessions are opened.
    pub(crate) sessions: usize,
    /// How many webhooks wait in an inbox.
    pub(crate) waiting: usize,
    binaries: PathBuf,
}

/// One who answers at a public address.
pub(crate) struct Front {
    pub(crate) addr: SocketAddr,
    pub(crate) host: String,
    pub(crate) tls: Arc<ClientConfig>,
}

/// A started nginx.
pub(crate) struct Nginx {
    pub(crate) front: Front,
    pub(crate) process: Process,
}

/// A started relay.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    pub(crate) token: String,
    pub(crate) process: Process,
    /// Tokens are kept here, and inboxes.
    data: TempDir,
}

/// A relay, a client, and the tunnel between them.
pub(crate) struct Tunnel {
    pub(crate) front: Front,
    pub(crate) relay: Relay,
    pub(crate) client: Process,
}

impl World {
    /// Builds the two programs, makes certificates, and starts the origin.
    pub(crate) fn new(sessions: usize, waiting: usize) -> Result<Self> {
        for tool in ["nginx", "wrk"] {
            let found = Command::new(tool).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
            found.map_err(|_| format!("{tool} is missing; on Debian: apt-get install nginx-light wrk"))?;
        }
        // Descriptors for the idle sessions, here and in every program that is started from here.
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
        let dir = tempfile::Builder::new().prefix("relay-bench-").tempdir()?;
        for i in 0..5 {
            fs::create_dir(dir.path().join(format!("nginx{i}")))?;
        }
        let tls = certificates(dir.path())?;
        let origin = origin()?;
        Ok(Self { dir, origin, tls, nginx_first: true, sessions, waiting, binaries: binaries()? })
    }

    /// Asks nginx and the relay the same, in the order of this round.
    pub(crate) fn both<T>(
        &self,
        nginx: impl FnOnce() -> Result<T>,
        ours: impl FnOnce() -> Result<T>,
    ) -> Result<(T, T)> {
        if self.nginx_first {
            let first = nginx()?;
            Ok((first, ours()?))
        } else {
            let first = ours()?;
            Ok((nginx()?, first))
        }
    }

    /// Starts nginx as one hop before the origin.
    pub(crate) fn nginx(&self) -> Result<Nginx> {
        let (dir, addr) = (self.dir.path(), free_addr()?);
        let config = nginx_config(dir, addr, self.origin);
        let path = dir.join("nginx.conf");
        fs::write(&path, config)?;
        let process = Process::start(Command::new("nginx").arg("-c").arg(path), dir, "nginx")?;
        let front = self.front(addr, DOMAIN);
        front.wait("nginx", &process)?;
        Ok(Nginx { front, process })
    }

    /// Starts a relay with its default settings, and makes a token.
    pub(crate) fn relay(&self) -> Result<Relay> {
        self.relay_with("")
    }

    /// As [`Self::relay`], with a configuration file.
    pub(crate) fn relay_with(&self, config: &str) -> Result<Relay> {
        let (dir, addr) = (self.dir.path(), free_addr()?);
        let data = tempfile::Builder::new().prefix("data-").tempdir_in(dir)?;
        let program = self.binaries.join("relay-server");
        let mut create = Command::new(&program);
        create.args(["token", "create", "bench", "--max-tunnels", "100000", "--max-names", "100000"]);
        let made = create.args(["--max-sessions", "100000", "--data-dir"]).arg(data.path()).output()?;
        if !made.status.success() {
            return Err(format!("no token: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let token = String::from_utf8(made.stdout)?.trim().to_owned();
        fs::write(data.path().join("relay-server.toml"), config)?;
        Ok(Relay { addr, token, process: self.serve(addr, data.path())?, data })
    }

    fn serve(&self, addr: SocketAddr, data: &Path) -> Result<Process> {
        let dir = self.dir.path();
        let mut serve = Command::new(self.binaries.join("relay-server"));
        serve.args(["serve", "--domain", DOMAIN, "--https", &addr.to_string()]);
        serve.args(["--http", &free_addr()?.to_string(), "--admin", &free_addr()?.to_string()]);
        serve.arg("--config").arg(data.join("relay-server.toml"));
        serve.arg("--data-dir").arg(data).arg("--cert").arg(dir.join("chain.pem"));
        let process = Process::start(serve.arg("--key").arg(dir.join("key.pem")), dir, "relay")?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(addr).is_err() {
            process.check("the relay", begun)?;
        }
        Ok(process)
    }

    /// Starts a client with its default settings; `at` is where it dials the relay.
    pub(crate) fn client(&self, relay: &Relay, at: SocketAddr, name: &str) -> Result<(Front, Process)> {
        self.client_with(relay, at, name, &[])
    }

    /// As [`Self::client`], with more arguments.
    pub(crate) fn client_with(
        &self,
        relay: &Relay,
        at: SocketAddr,
        name: &str,
        arguments: &[&str],
    ) -> Result<(Front, Process)> {
        let dir = self.dir.path();
        let mut http = Command::new(self.binaries.join("relay"));
        http.args(["http", &self.origin.to_string(), "--subdomain", name, "--output", "json"]).args(arguments);
        http.args(["--relay", &relay.url(), "--relay-addr", &at.to_string()]);
        http.arg("--relay-ca").arg(dir.join("ca.pem")).env("RELAY_TOKEN", &relay.token);
        let process = Process::start(&mut http, dir, "client")?;
        Ok((relay.front(self, name), process))
    }

    /// Starts a relay and a client, and waits for the first answer.
    pub(crate) fn tunnel(&self) -> Result<Tunnel> {
        let relay = self.relay()?;
        let (front, client) = self.client(&relay, relay.addr, "web")?;
        front.wait("the tunnel", &client)?;
        Ok(Tunnel { front, relay, client })
    }

    fn front(&self, addr: SocketAddr, host: &str) -> Front {
        Front { addr, host: host.to_owned(), tls: self.tls.clone() }
    }
}

impl Relay {
    /// Where senders find a tunnel of this name.
    pub(crate) fn front(&self, world: &World, name: &str) -> Front {
        world.front(self.addr, &format!("{name}.{DOMAIN}"))
    }

    /// As what a client connects to; its CA is in [`World::dir`].
    pub(crate) fn url(&self) -> String {
        format!("https://{DOMAIN}:{}", self.addr.port())
    }

    /// Kills it, and starts it again with what it has left.
    pub(crate) fn crash(self, world: &World) -> Result<Self> {
        let Self { addr, token, mut process, data } = self;
        process.child.kill()?;
        process.child.wait()?;
        Ok(Self { process: world.serve(addr, data.path())?, addr, token, data })
    }
}

impl Front {
    /// Asks until the origin's answer comes.
    pub(crate) fn wait(&self, who: &str, process: &Process) -> Result<()> {
        let begun = Instant::now();
        loop {
            // A connection is kept while it serves: asking must not be what takes the time.
            if let Ok(mut conn) = Conn::open(self) {
                while let Ok(status) = conn.get("/") {
                    if status == 200 {
                        return Ok(());
                    }
                    process.check(who, begun)?;
                }
            }
            process.check(who, begun)?;
        }
    }
}

/// A started program; it ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, dir: &Path, name: &str) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log)?;
        for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("RELAY_")) {
            if command.get_envs().all(|(set, _)| set != variable.as_str()) {
                command.env_remove(variable);
            }
        }
        // Nobody's own settings take part.
        command.current_dir(dir).env("HOME", dir).env_remove("XDG_CONFIG_HOME").env_remove("RUST_LOG");
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
        let child = child.map_err(|error| format!("{name} did not start: {error}"))?;
        Ok(Self { child, log })
    }

    /// Waits a moment; fails once patience ends or the program has.
    pub(crate) fn check(&self, who: &str, begun: Instant) -> Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        let ended = read(&format!("/proc/{}/stat", self.child.id())).is_none_or(|stat| state(&stat) == Some("Z"));
        if !ended && begun.elapsed() < PATIENCE {
            return Ok(());
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        let what = if ended { "ended" } else { "does not answer" };
        Err(format!("{who} {what}: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" / ")).into())
    }

    /// User and system time so far, in seconds, with all children.
    pub(crate) fn cpu(&self) -> f64 {
        // USER_HZ: 100 on every architecture (proc_pid_stat(5)).
        const TICKS: f64 = 100.0;
        let ticks = |stat: &str| fields(stat).skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
        self.family().iter().filter_map(|pid| read(&format!("/proc/{pid}/stat"))).map(|stat| ticks(&stat)).sum::<f64>()
            / TICKS
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most that was resident since [`Self::reset_peak`], in bytes.
    pub(crate) fn peak(&self) -> f64 {
        self.status("VmHWM:")
    }

    /// Forgets the peak so far (`proc_pid_clear_refs(5)`).
    pub(crate) fn reset_peak(&self) {
        self.family().iter().for_each(|pid| drop(fs::write(format!("/proc/{pid}/clear_refs"), "5")));
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    fn status(&self, key: &str) -> f64 {
        let of = |pid: &u32| {
            let status = read(&format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        self.family().iter().filter_map(of).sum::<f64>() * 1024.0
    }

    /// The process and its children, which are nginx's workers.
    fn family(&self) -> Vec<u32> {
        let own = self.child.id();
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let parent = |pid: u32| fields(&read(&format!("/proc/{pid}/stat"))?).nth(1)?.parse::<u32>().ok();
        pids.filter(|pid| *pid == own || parent(*pid) == Some(own)).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's workers live on if their master is killed.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        for _ in 0..300 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor, and how busy others keep it.
pub(crate) fn machine() -> String {
    let busy = |_| {
        let stat = read("/proc/stat").unwrap_or_default();
        let times: Vec<f64> = stat.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        let all: f64 = times.iter().sum();
        (all - times.get(3).unwrap_or(&0.0) - times.get(4).unwrap_or(&0.0), all)
    };
    let before = busy(());
    std::thread::sleep(Duration::from_millis(500));
    let after = busy(());
    let others = 100.0 * (after.0 - before.0) / (after.1 - before.1).max(1.0);
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} × {model}; others used {others:.0} % of it before the start (above 5 %, times mean little).")
}

/// Builds both programs as they are shipped, and says where they are.
fn binaries() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--bins", "-p", "relay-server", "-p", "relay-client"]);
    if !build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?.success() {
        return Err("the programs do not build".into());
    }
    // This program is TARGET/release/deps/relay-HASH.
    let own = std::env::current_exe()?;
    Ok(own.parent().and_then(Path::parent).ok_or("this program is in no target directory")?.to_owned())
}

/// A CA and a leaf that it signed: what nginx and the relay show, and what callers trust.
fn certificates(dir: &Path) -> Result<Arc<ClientConfig>> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![DOMAIN.to_owned(), format!("*.{DOMAIN}")])?.signed_by(&key, &ca)?;
    fs::write(dir.join("ca.pem"), ca.pem())?;
    fs::write(dir.join("chain.pem"), format!("{}{}", leaf.pem(), ca.pem()))?;
    fs::write(dir.join("key.pem"), key.serialize_pem())?;
    // Read as a server would, so that a broken key is noticed here.
    let _: PrivateKeyDer<'_> = key.into();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn nginx_config(dir: &Path, addr: SocketAddr, origin: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off; worker_processes auto; pid {dir}/nginx.pid; error_log {dir}/nginx.err warn;
         worker_rlimit_nofile 8192;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; client_max_body_size 0; tcp_nodelay on; keepalive_requests 100000000;
           client_body_temp_path {dir}/nginx0; proxy_temp_path {dir}/nginx1; fastcgi_temp_path {dir}/nginx2;
           uwsgi_temp_path {dir}/nginx3; scgi_temp_path {dir}/nginx4;
           upstream origin {{ server {origin}; keepalive 256; keepalive_requests 100000000; }}
           server {{
             listen {addr} ssl backlog=4096; ssl_session_cache shared:S:1m; ssl_protocols TLSv1.2 TLSv1.3;
             ssl_certificate {dir}/chain.pem; ssl_certificate_key {dir}/key.pem;
             location / {{
               proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';
               proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
               proxy_set_header X-Forwarded-Proto https;
               proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_read_timeout 120s;
             }}
           }}
         }}"
    )
}

/// The local service, on a thread of its own: one, so that it never takes more than a core from what is measured.
///
/// `/` and anything else: the length of the body that came; `/size/N`: N bytes; `/hold`: 1 KiB and then silence.
fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // It serves as long as the program runs.
    std::thread::Builder::new().name("origin".into()).spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            loop {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                let _ = tcp.set_nodelay(true);
                let serve =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(answer));
                tokio::spawn(serve);
            }
        });
    })?;
    Ok(addr)
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// How many webhooks the origin has had so far.
pub(crate) fn hooks_taken() -> usize {
    TAKEN.load(Relaxed)
}

async fn answer(request: Request<Incoming>) -> hyper::Result<Response<Either<Full<Bytes>, Fill>>> {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path();
    let fill = path.strip_prefix("/size/").and_then(|n| n.parse().ok()).map(|left| Fill { left, hold: false });
    let fill = fill.or((path == "/hold").then_some(Fill { left: 1024, hold: true }));
    if let Some(fill) = fill {
        return Ok(Response::new(Either::Right(fill)));
    }
    if parts.method == hyper::Method::POST {
        TAKEN.fetch_add(1, Relaxed);
    }
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    let mut response = Response::new(Either::Left(Full::from(format!("{{\"ok\":true,\"n\":{length}}}"))));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A body of a known length, or one that never ends.
struct Fill {
    left: u64,
    hold: bool,
}

impl Body for Fill {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        if self.left == 0 {
            // Nothing wakes it: its connection ends when the caller goes.
            return if self.hold { Poll::Pending } else { Poll::Ready(None) };
        }
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK.len());
        self.left -= n as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..n])))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.hold { SizeHint::default() } else { SizeHint::with_exact(self.left) }
    }
}

/// nginx takes no port 0, and clients must know the relay's.
fn free_addr() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The fields of a stat file behind the program's name, which may have blanks of its own; the state is the first.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace()
}

fn state(stat: &str) -> Option<&str> {
    fields(stat).next()
}
