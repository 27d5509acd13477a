//! The real binaries, as a user starts them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::disk::Disk;
use crate::world::{Answer, Http, connect_tls};
use crate::{Wire, body, within};

/// A program with a home directory of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    stdout: mpsc::Receiver<String>,
    stderr: mpsc::Receiver<String>,
    /// The last of both, for whoever has to say what went wrong.
    said: Arc<Mutex<VecDeque<String>>>,
    readers: JoinSet<()>,
    home: Arc<TempDir>,
}

impl Process {
    /// Starts one of our binaries in an empty home.
    pub async fn spawn(binary: &str, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        Self::spawn_in(Arc::new(tempfile::tempdir().expect("a home")), binary, arguments, &[]).await
    }

    /// As [`Process::spawn`], in a home that outlives it, and with these variables.
    pub async fn spawn_in(
        home: Arc<TempDir>,
        binary: &str,
        arguments: impl IntoIterator<Item: AsRef<OsStr>>,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = command(binary, home.path()).await;
        command.args(arguments).envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pid = child.id().expect("it was just started");
        let mut readers = JoinSet::new();
        let said: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let stdout = lines(child.stdout.take().expect("piped"), &said, &mut readers);
        let stderr = lines(child.stderr.take().expect("piped"), &said, &mut readers);
        Self { child, pid, stdout, stderr, said, readers, home }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its home, for another process that is to share it.
    pub fn home(&self) -> &Arc<TempDir> {
        &self.home
    }

    /// The next line on standard output; `None` at its end.
    pub async fn line(&mut self) -> Option<String> {
        within("a line on standard output", self.stdout.recv()).await
    }

    /// The next line on standard output as JSON.
    pub async fn json(&mut self) -> Value {
        let Some(line) = self.line().await else { panic!("standard output ended:\n{}", self.said()) };
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
    }

    /// The next line of JSON on standard output that is this event; others are skipped.
    pub async fn event(&mut self, event: &str) -> Value {
        loop {
            let value = self.json().await;
            if value["event"] == event {
                return value;
            }
        }
    }

    /// The next line on standard error that contains `text`.
    pub async fn error_line(&mut self, text: &str) -> String {
        let found = async {
            while let Some(line) = self.stderr.recv().await {
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        };
        let Some(line) = within(format!("{text:?} on standard error"), found).await else {
            panic!("no {text:?} on standard error before its end:\n{}", self.said());
        };
        line
    }

    /// Waits for the end. What was not read of standard output and error comes with it.
    pub async fn wait(&mut self) -> Ended {
        let status = within("the process's end", self.child.wait()).await.expect("a status");
        // Its output may still be in the pipes.
        while self.readers.join_next().await.is_some() {}
        let rest = |lines: &mut mpsc::Receiver<String>| {
            let mut all = String::new();
            while let Ok(line) = lines.try_recv() {
                all.push_str(&line);
                all.push('\n');
            }
            all
        };
        Ended { status, stdout: rest(&mut self.stdout), stderr: rest(&mut self.stderr) }
    }

    /// Waits for the end alone: what it has started may go on with its outputs.
    pub async fn exited(&mut self) -> ExitStatus {
        within("the process's end", self.child.wait()).await.expect("a status")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// SIGTERM, and the end.
    pub async fn terminate(&mut self) -> Ended {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// SIGKILL, and the end.
    pub async fn kill(&mut self) -> Ended {
        self.signal(Signal::KILL);
        self.wait().await
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs").count()
    }

    /// TCP sockets on which it listens.
    pub fn listeners(&self) -> usize {
        self.ports().len()
    }

    /// The TCP ports on which it listens.
    pub fn ports(&self) -> Vec<u16> {
        let table = |name: &str| std::fs::read_to_string(format!("/proc/{}/net/{name}", self.pid)).unwrap_or_default();
        let tables = table("tcp") + &table("tcp6");
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs");
        let open: Vec<_> = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        // proc(5): the second field is the local address, the fourth the state, of which 0A is LISTEN, the tenth the inode.
        let listening = tables.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let listening = listening.filter(|fields| fields.get(3) == Some(&"0A")).filter_map(|fields| {
            let (socket, (_, port)) = (format!("socket:[{}]", fields.get(9)?), fields.get(1)?.rsplit_once(':')?);
            let is_own = open.iter().any(|target| target.as_os_str() == socket.as_str());
            is_own.then(|| u16::from_str_radix(port, 16).ok())?
        });
        listening.collect()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        memory(self.pid, "VmRSS:")
    }

    /// What of it is its own, in bytes: without the program itself, which is large as built for debugging, and of which
    /// the system maps as much as it likes.
    pub fn anonymous(&self) -> u64 {
        memory(self.pid, "RssAnon:")
    }

    /// The most memory of its own so far, in bytes. Of the program, as much is taken off as there is now.
    pub fn peak(&self) -> u64 {
        memory(self.pid, "VmHWM:").saturating_sub(memory(self.pid, "RssFile:"))
    }

    /// The processor time that it has taken. Linux counts it in hundredths of a second.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("it runs");
        // proc(5): utime and stime are the 14th and the 15th field, the 2nd is the name in parentheses.
        let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(11).take(2);
        Duration::from_millis(fields.map(|field| field.parse::<u64>().expect("a number") * 10).sum())
    }

    /// How often its threads have gone to sleep by themselves, and with that, have been woken.
    pub fn naps(&self) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it runs").flatten();
        // One that has just ended says nothing.
        let said = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
        let naps = said.filter_map(|said| {
            let line = said.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        });
        naps.sum()
    }

    /// Waits until it rests: a second in which it takes less than a tenth of a processor. Who still has something to do comes
    /// to that, and who spins never does.
    pub async fn rests(&self) {
        let looks = async {
            loop {
                let (before, since) = (self.cpu(), Instant::now());
                sleep(Duration::from_secs(1)).await;
                if (self.cpu() - before) * 10 < since.elapsed() {
                    return;
                }
            }
        };
        within(format!("process {} comes to rest", self.pid), looks).await;
    }

    /// The last lines of both outputs.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().iter().map(|line| format!("{line}\n")).collect()
    }
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What had not been read of its standard output.
    pub stdout: String,
    /// What had not been read of its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit code; panics where a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{}: {}", self.status, self.stderr))
    }

    /// The lines of JSON on its standard output.
    pub fn lines(&self) -> Vec<Value> {
        let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        self.stdout.lines().map(read).collect()
    }
}

/// Runs the test that calls it once more, in a process of its own, because what others do beside it would be measured with
/// it. True there, where the test goes on; false where it has passed there.
pub async fn has_own_process() -> bool {
    const OWN: &str = "RELAY_TESTS_OWN_PROCESS";
    let thread = std::thread::current();
    // With one test at a time there is no thread of that name, and nobody beside it.
    let Some(test) = thread.name().filter(|name| *name != "main" && std::env::var_os(OWN).is_none()) else {
        return true;
    };
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args([test, "--exact"]).env(OWN, "1").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("this test starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Resident memory of this process in bytes. It is one's own only in a test that [has its own](has_own_process).
pub fn own_resident() -> u64 {
    memory(std::process::id(), "VmRSS:")
}

fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux says");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The arguments of `relay`: its words, with those that lead to this relay behind the first, the command.
pub fn arguments(relay: &str, addr: SocketAddr, ca: &Path, token: &str, words: &[&str]) -> Vec<String> {
    let (addr, ca) = (addr.to_string(), ca.display().to_string());
    let way = ["--relay", relay, "--relay-addr", &addr, "--relay-ca", &ca, "--token", token];
    let (command, rest) = words.split_at(1);
    [command, &way, rest].concat().into_iter().map(str::to_owned).collect()
}

/// Runs one of our binaries to its end.
pub async fn run(binary: &str, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Ended {
    Process::spawn(binary, arguments).await.wait().await
}

/// `relay-server serve` on free ports, with a development certificate.
#[derive(Debug)]
pub struct RelayServer {
    /// The process.
    pub process: Process,
    /// What a client's `--relay` says.
    pub url: String,
    /// Where HTTPS is served.
    pub https: SocketAddr,
    /// Where plain HTTP is served, where it is.
    pub http: Option<SocketAddr>,
    /// Where health and metrics are served, where they are.
    pub admin: Option<SocketAddr>,
    data: PathBuf,
}

impl RelayServer {
    /// The base domain.
    pub const DOMAIN: &str = crate::world::DOMAIN;

    /// Starts it, with JSON logs, and waits until it is ready. `arguments` come behind `serve` and the defaults; of
    /// the defaults, those that `arguments` give are left out.
    pub async fn spawn<S: AsRef<str>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::spawn_in(Arc::new(tempfile::tempdir().expect("a home")), arguments).await
    }

    /// As [`RelayServer::spawn`], with the data that another one has left in `home`.
    pub async fn spawn_in<S: AsRef<str>>(home: Arc<TempDir>, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::spawn_with(home, arguments, &[]).await
    }

    /// Starts another process that takes the place of this one, which then ends by itself, and waits until it is ready.
    pub async fn successor(&self, arguments: &[&str]) -> Self {
        let arguments = [&["--take-over"], arguments].concat();
        Self::spawn_in(self.process.home().clone(), arguments).await
    }

    /// As [`RelayServer::spawn_with`], from another place than where it was built.
    pub async fn spawn_from<S: AsRef<str>>(
        binary: &Path,
        home: Arc<TempDir>,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::spawn_as(&binary.display().to_string(), &[], home, arguments, variables).await
    }

    /// As [`RelayServer::spawn_in`], with these variables.
    pub async fn spawn_with<S: AsRef<str>>(
        home: Arc<TempDir>,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::spawn_under(&[], home, arguments, variables).await
    }

    /// As [`RelayServer::spawn_with`], with its data on a disk that nobody else sees. It needs root.
    pub async fn spawn_on<S: AsRef<str>>(
        disk: &Disk,
        home: Arc<TempDir>,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        let under = disk.mounted_at(&home.path().join("data"));
        Self::spawn_under(&under, home, arguments, variables).await
    }

    /// As [`RelayServer::spawn_with`], started by another program, which becomes the relay. Its data is where that sees it.
    async fn spawn_under<S: AsRef<str>>(
        under: &[String],
        home: Arc<TempDir>,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::spawn_as("relay-server", under, home, arguments, variables).await
    }

    async fn spawn_as<S: AsRef<str>>(
        relay: &str,
        under: &[String],
        home: Arc<TempDir>,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, &str)],
    ) -> Self {
        let data = home.path().join("data");
        let given: Vec<String> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let shown = data.display().to_string();
        let mut all = vec!["serve".to_owned()];
        for (flag, value) in [
            ("--domain", Self::DOMAIN),
            ("--https", "127.0.0.1:0"),
            ("--http", "127.0.0.1:0"),
            ("--admin", "127.0.0.1:0"),
            ("--data-dir", &shown),
            ("--log", "json"),
        ] {
            if !given.iter().any(|argument| argument == flag) {
                all.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        all.extend(given);
        let mut process = match under.split_first() {
            None => Process::spawn_in(home, relay, &all, variables).await,
            Some((program, rest)) => {
                let relay = binary(relay).await.display().to_string();
                let all = rest.iter().cloned().chain([relay]).chain(all);
                Process::spawn_in(home, program, all, variables).await
            }
        };
        let line = process.error_line("the relay is ready").await;
        let root = Path::new("/proc").join(process.pid().to_string()).join("root");
        let data = if under.is_empty() { data } else { root.join(data.strip_prefix("/").unwrap_or(&data)) };
        let (url, https, http, admin) = if line.starts_with('{') {
            let ready: Value = serde_json::from_str(&line).expect("JSON logs");
            let field = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
            (field("url"), field("https"), field("http"), field("admin"))
        } else {
            let field = |name: &str| {
                let rest = line.split_once(&format!(" {name}=")).map_or("", |(_, rest)| rest);
                rest.split(' ').next().unwrap_or_default().to_owned()
            };
            (field("url"), field("https"), field("http"), field("admin"))
        };
        let https = https.parse().unwrap_or_else(|_| panic!("no HTTPS address in {line}"));
        Self { process, url, https, http: http.parse().ok(), admin: admin.parse().ok(), data }
    }

    /// The development CA.
    pub fn ca_file(&self) -> PathBuf {
        self.data.join("ca/ca.pem")
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// GET from the admin listener: `/healthz`, `/readyz` or `/metrics`.
    pub async fn get_admin(&self, path: &str) -> Answer {
        let addr = self.admin.expect("it has an admin listener");
        let mut http = Http::one(TcpStream::connect(addr).await.expect("the relay listens")).await;
        http.answer(Request::get(format!("http://{addr}{path}")).body(body::empty()).expect("a request")).await
    }

    /// A public TLS connection on which the test speaks HTTP/1.1 byte by byte.
    pub async fn raw(&self, host: &str) -> Wire {
        Wire::new(connect_tls(self.https, host, &self.ca_file(), &[b"http/1.1"]).await)
    }

    /// `relay-server token …` on its data directory.
    pub async fn token_command(&self, arguments: &[&str]) -> Ended {
        self.command("token", arguments).await
    }

    /// `relay-server COMMAND …` on its data directory.
    pub async fn command(&self, command: &str, arguments: &[&str]) -> Ended {
        let data = self.data.display().to_string();
        let all = [command, "--data-dir", &data].into_iter().chain(arguments.iter().copied());
        run("relay-server", all).await
    }

    /// A new token of this name, made by `relay-server token create`.
    pub async fn token(&self, name: &str) -> String {
        let ended = self.token_command(&["create", name]).await;
        assert!(ended.status.success(), "{ended:?}");
        ended.stdout.trim().to_owned()
    }

    /// `relay http TARGET --output json …` as a client of this relay, ready.
    pub async fn client(&self, token: &str, target: &str, arguments: &[&str]) -> RelayClient {
        let words = [&["http", target, "--output", "json"], arguments].concat();
        RelayClient::spawn(self.arguments(token, &words)).await
    }

    /// As [`arguments`], to this relay.
    pub fn arguments(&self, token: &str, words: &[&str]) -> Vec<String> {
        arguments(&self.url, self.https, &self.ca_file(), token, words)
    }
}

/// `relay …`, with its JSON lines.
#[derive(Debug)]
pub struct RelayClient {
    /// The process.
    pub process: Process,
    /// The line `tunnel.ready`.
    pub ready: Value,
}

impl RelayClient {
    /// Starts `relay` with these arguments, among which is `--output json`, and waits for its first line.
    pub async fn spawn(arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        Self::of(Process::spawn("relay", arguments).await).await
    }

    /// As [`RelayClient::spawn`], started in another way.
    pub async fn of(mut process: Process) -> Self {
        let ready = process.json().await;
        assert_eq!(ready["event"], "tunnel.ready", "the first line: {ready}");
        Self { process, ready }
    }

    /// The public URL, without a slash at its end.
    pub fn url(&self) -> &str {
        self.ready["url"].as_str().expect("a URL")
    }

    /// The public host, with the port.
    pub fn host(&self) -> String {
        self.url().trim_start_matches("https://").to_owned()
    }

    /// The next line about an exchange.
    pub async fn exchange(&mut self) -> Value {
        self.process.event("exchange").await
    }
}

/// One of our binaries, or a program by its absolute path, with nothing of the developer's own settings around it.
pub async fn command(binary: &str, home: &Path) -> Command {
    let mut command = Command::new(self::binary(binary).await);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy().to_ascii_uppercase();
        let settings = name_text.starts_with("RELAY_") || name_text.starts_with("XDG_");
        if settings || name_text.ends_with("_PROXY") || name_text == "NO_COLOR" {
            command.env_remove(&name);
        }
    }
    // Clients in one home find each other, and no others.
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home).current_dir(home);
    command
}

/// The path of one of our binaries, or of an example: `examples/http`.
pub async fn binary(name: &str) -> PathBuf {
    static EXAMPLES: OnceCell<PathBuf> = OnceCell::const_new();
    match name.starts_with("examples/") {
        true => EXAMPLES.get_or_init(|| build("--examples")).await.join(name),
        false => binaries().await.join(name),
    }
}

/// Where the binaries are, built from what is there now. Cargo itself sees to it that this costs nothing where they
/// are, and that two test programs do not do it at once.
async fn binaries() -> &'static Path {
    static BINARIES: OnceCell<PathBuf> = OnceCell::const_new();
    BINARIES.get_or_init(|| build("--bins")).await
}

async fn build(what: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a program");
    // target/<profile>/deps/<test>
    let profile = test.ancestors().nth(2).expect("it is in a target directory").to_owned();
    let target = profile.parent().expect("it is in a target directory");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", what]).env("CARGO_TARGET_DIR", target);
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    match profile.file_name().and_then(OsStr::to_str) {
        None | Some("debug") => {}
        Some(name) => drop(cargo.args(["--profile", name])),
    }
    let done = cargo.output().await.expect("cargo starts");
    assert!(done.status.success(), "the binaries do not build:\n{}", String::from_utf8_lossy(&done.stderr));
    profile
}

fn lines(
    from: impl AsyncRead + Unpin + Send + 'static,
    said: &Arc<Mutex<VecDeque<String>>>,
    readers: &mut JoinSet<()>,
) -> mpsc::Receiver<String> {
    // A program that nobody listens to must not stop; what it says in a test fits.
    let (line, taken) = mpsc::channel(100_000);
    let said = said.clone();
    readers.spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(text)) = lines.next_line().await {
            let mut said = said.lock().unwrap();
            said.push_back(text.clone());
            if said.len() > 200 {
                said.pop_front();
            }
            let _ = line.try_send(text);
        }
    });
    taken
}
