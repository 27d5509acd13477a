//! Other people's programs, started for a test: the applications of `tests/apps` and the clients that call them.
//!
//! Nothing is skipped where a program is missing: the test fails and says what installs it. Every application
//! takes a port of its own, says which, and ends with the [`App`] that stands for it, however the test ends.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot start its tools fails by panicking")]

use std::{
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use relay_client::upstream::address::UpstreamAddr;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    task::JoinSet,
    time::timeout,
};

/// How long an application may take to answer, and a client to finish: a cold start beside a running build.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running application; it ends when this is dropped.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its life hangs on this child's standard input, which closes on drop or with our process.
    _tether: Child,
    /// Reads what it goes on to print, so that it never blocks on a full pipe.
    _reader: JoinSet<()>,
}

impl App {
    /// `http://ADDR` followed by `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

impl From<&App> for UpstreamAddr {
    fn from(app: &App) -> Self {
        app.addr.to_string().parse().expect("an address is an upstream")
    }
}

/// [httpbin](https://github.com/psf/httpbin) under gunicorn.
pub async fn httpbin() -> App {
    gunicorn("httpbin:app").await
}

/// `environ.py` under gunicorn: answers with the WSGI environment that it saw, as `{"environ", "body_base64"}`.
///
/// Header names that differ in `-` and `_` only arrive under one name there, as with servers that do not guard
/// against it.
pub async fn environ() -> App {
    gunicorn("environ:app").await
}

/// Serves the bare repositories below `root` for clone, fetch and push, to anybody.
pub async fn git_server(root: &Path) -> App {
    start(Command::new(program("python3")).arg(app_file("git_server.py")).arg(root)).await
}

/// `grpc_echo.py` in plaintext HTTP/2: one method of each kind. [`grpc_calls`] calls them.
pub async fn grpc_server() -> App {
    start(python().arg(app_file("grpc_echo.py")).arg("serve")).await
}

/// How [`grpc_calls`] and [`hot_reload`] reach a public name over TLS.
#[derive(Debug, Clone, Copy)]
pub struct Tls<'a> {
    /// The authority that must have signed the server's certificate, as PEM.
    pub ca: &'a Path,
    /// The name that the certificate must carry and the request is for.
    pub host: &'a str,
}

/// Calls every method of [`grpc_server`] at `addr`, in plaintext or over TLS, and returns what came back:
/// `unary_intact` (4 MiB there and back), `initial` and `trailing` (`"me"`), `trailing_binary_intact`, `count`
/// (0 to 99, streamed to the client), `join` (`"a,b,c"`, streamed to the server), `chat` (three words, each
/// said only after the last was answered) and `failure` (`code`, `message`, `details_intact`).
pub async fn grpc_calls(addr: SocketAddr, tls: Option<Tls<'_>>) -> Value {
    let mut client = python();
    client.arg(app_file("grpc_echo.py")).args(["call", "--address", &addr.to_string()]);
    if let Some(Tls { ca, host }) = tls {
        client.arg("--ca").arg(ca).args(["--authority", host]);
    }
    json(&mut client).await
}

/// A Vite development server and the project that it watches, which a test may edit.
#[derive(Debug)]
pub struct Vite {
    /// The server.
    pub app: App,
    /// A copy of `tests/apps/vite`.
    pub project: TempDir,
}

/// Starts Vite as its documentation says, with no configuration.
pub async fn vite() -> Vite {
    let project = tempfile::tempdir().expect("a temporary directory");
    for name in ["index.html", "main.js", "message.js"] {
        std::fs::copy(app_file("vite").join(name), project.path().join(name)).expect("a copy of the project");
    }
    let mut server = Command::new(program("node"));
    server.arg(node_modules().join("vite/bin/vite.js")).arg(project.path()).args(["--host", "127.0.0.1"]);
    Vite { app: start(server.env("NO_COLOR", "1")).await, project }
}

/// Opens `url` in headless Chromium, edits `project` below it, and returns how the page took it: `before` and
/// `after` (the text shown), `expected` (the text written), `reloaded` (whether the whole page was loaded
/// again), `sockets` (the WebSockets opened, without their queries) and `errors`. With `tls`, its host is
/// dialled at `addr` and must prove itself.
pub async fn hot_reload(url: &str, project: &Path, addr: SocketAddr, tls: Option<Tls<'_>>) -> Value {
    let mut browser = Command::new(program("node"));
    browser.arg(app_file("hot_reload.cjs")).arg(url).arg(project).args(["--address", &addr.to_string()]);
    if let Some(Tls { ca, .. }) = tls {
        browser.arg("--ca").arg(ca);
    }
    json(browser.env("NODE_PATH", node_modules())).await
}

/// Opens, lists and closes tunnels to `upstream` with pyngrok, at the agent API of the inspector at `url`, and returns what
/// it saw: `before` and `after` (the public URLs), for each version of its configuration that it knows (`2`, `3`) a
/// tunnel's `public_url`, `upstream`, `count` of requests, and whether it was `listed`, and the status `refused` of one of
/// another protocol.
pub async fn pyngrok_calls(url: &str, upstream: &str) -> Value {
    json(python().arg(app_file("pyngrok_calls.py")).args([url, upstream])).await
}

/// Runs what `relay export` has printed in one of its forms that are programs; panics where it fails.
pub async fn exported(form: &str, text: &str) {
    let mut command = match form {
        "python" => python(),
        "fetch" => Command::new(program("node")),
        _ => Command::new("sh"),
    };
    match form {
        // The web's own fetch is of modules, which await without a function around them.
        "fetch" => command.args(["--no-warnings", "--input-type=module", "--eval", text]),
        _ => command.args(["-c", text]),
    };
    let tools = installed("python/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)));
    let home = tempfile::tempdir().expect("a temporary directory");
    // Nothing that a user has set for these programs counts.
    command.env("PATH", path.expect("a path")).env("HOME", home.path()).env("NO_PROXY", "*");
    output(&mut command).await;
}

/// Calls everything that an OpenAPI document at `url` describes, with what it allows and what it does not, and with this
/// `id` where one is asked for; panics where an answer is none that the document has. `/events` and `/wait` are left out,
/// because they take their time.
pub async fn keeps_to_openapi(url: &str, id: &str) {
    keeps_to_openapi_with(url, &format!("[parameters]\nid = \"{id}\"\n"), &[]).await;
}

/// As [`keeps_to_openapi`], with these settings of its own and these words behind `schemathesis run URL`.
pub async fn keeps_to_openapi_with(url: &str, settings: &str, words: &[&str]) {
    // It leaves things behind where it works.
    let place = tempfile::tempdir().expect("a directory");
    std::fs::write(place.path().join("settings"), settings).expect("it is written");
    let mut command = python();
    command.current_dir(&place).args(["-m", "schemathesis.cli", "--config-file", "settings", "run", url]);
    command.args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]);
    command.args(["--checks", "response_schema_conformance", "--phases", "coverage", "--seed", "1"]);
    command
        .args(["--generation-database", "none", "--no-color", "--exclude-path-regex", "/(events|wait)$"])
        .args(words);
    output_within(Duration::from_secs(600), &mut command).await;
}

/// A Django project under its development server.
#[derive(Debug)]
pub struct Django {
    /// The server. `/admin/login/` has a form, whose forgery protection compares origins.
    pub app: App,
    _project: TempDir,
}

/// Starts a new project with `runserver`, as its tutorial says: it answers to the names of this machine only.
pub async fn django() -> Django {
    let project = tempfile::tempdir().expect("a temporary directory");
    output(python().args(["-m", "django", "startproject", "mysite"]).arg(project.path())).await;
    let manage = project.path().join("manage.py");
    output(python().arg(&manage).args(["migrate", "--verbosity", "0"])).await;
    let mut server = python();
    server.args(["-u"]).arg(&manage).args(["runserver", "--noreload", "127.0.0.1:0"]);
    Django { app: start(&server).await, _project: project }
}

/// Python, with the packages of `tests/apps/requirements.txt`.
pub fn python() -> Command {
    Command::new(python_tool("python"))
}

/// The modules of [cloud-init](https://cloud-init.io) as Debian has it, and a Python that runs them.
pub fn cloud_init() -> (PathBuf, Command) {
    (installed("cloud-init/usr/lib/python3/dist-packages"), python())
}

/// `git` with no configuration but its defaults and an author, working in `directory`.
pub fn git(directory: &Path) -> Command {
    let mut git = Command::new(program("git"));
    git.current_dir(directory).kill_on_drop(true).stdin(Stdio::null());
    for (name, value) in [
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_AUTHOR_NAME", "Somebody"),
        ("GIT_AUTHOR_EMAIL", "somebody@example.com"),
        ("GIT_COMMITTER_NAME", "Somebody"),
        ("GIT_COMMITTER_EMAIL", "somebody@example.com"),
    ] {
        git.env(name, value);
    }
    git
}

/// Runs a command to its end and returns what it printed on standard output; panics with all that it printed
/// when it fails or takes more than a minute.
pub async fn output(command: &mut Command) -> String {
    output_within(PATIENCE, command).await
}

async fn output_within(patience: Duration, command: &mut Command) -> String {
    command.kill_on_drop(true).stdin(Stdio::null());
    let done = timeout(patience, command.output())
        .await
        .unwrap_or_else(|_| panic!("not done after {patience:?}: {command:?}"))
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{command:?}: {}\n{stdout}{stderr}", done.status);
    stdout.into_owned()
}

/// The path of a command of the system.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the last two, where `ip` and `iptables` live.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(name)).find(|file| file.is_file()).unwrap_or_else(|| missing(name))
}

async fn gunicorn(app: &str) -> App {
    let mut gunicorn = Command::new(python_tool("gunicorn"));
    gunicorn.args(["--bind", "127.0.0.1:0", "--threads", "8", "--header-map", "dangerous"]);
    gunicorn.arg("--chdir").arg(app_file("")).arg(app);
    start(&gunicorn).await
}

/// Runs `"$@"` in a process group of its own and kills the group as soon as standard input closes: an
/// application and all its children end with the test, also with one that was killed itself. It lets go of the
/// output first, so that the end of the output is the end of the application. An interrupt ends `cat`, and so
/// the application too.
const TETHER: &str = r#"trap : INT; setsid "$@" </dev/null 2>&1 & exec >/dev/null 2>&1; cat; kill -s KILL -- "-$!""#;

/// Starts an application that says `http://127.0.0.1:PORT` once it listens, and waits until it answers there.
async fn start(command: &Command) -> App {
    let command = command.as_std();
    let mut tether = Command::new("sh");
    tether.args(["-c", TETHER, "tether"]).arg(command.get_program()).args(command.get_args());
    tether.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    tether.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tether = tether.spawn().expect("a shell starts");
    let mut lines = BufReader::new(tether.stdout.take().expect("it is piped")).lines();

    let addr = timeout(PATIENCE, announced(&mut lines, command.get_program()))
        .await
        .unwrap_or_else(|_| panic!("no address after {PATIENCE:?}: {command:?}"));
    let mut reader = JoinSet::new();
    reader.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    timeout(PATIENCE, answered(addr))
        .await
        .unwrap_or_else(|_| panic!("no answer from {addr} after {PATIENCE:?}: {command:?}"))
        .unwrap_or_else(|error| panic!("no answer from {addr}: {error}: {command:?}"));
    App { addr, _tether: tether, _reader: reader }
}

/// The address in the first line that has one; panics with all lines when they end before that.
async fn announced(lines: &mut Lines<BufReader<ChildStdout>>, name: &OsStr) -> SocketAddr {
    let mut said = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(addr) = address_in(&line) {
            return addr;
        }
        said.push_str(&line);
        said.push('\n');
    }
    panic!("{name:?} ended before it listened:\n{said}");
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    rest.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').next()?.parse().ok()
}

/// Waits for the first byte of any answer: a status line, or the settings that an HTTP/2 server begins with.
async fn answered(addr: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    stream.read_u8().await.map(drop)
}

async fn json(command: &mut Command) -> Value {
    let text = output(command).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

fn python_tool(name: &str) -> PathBuf {
    installed(&format!("python/bin/{name}"))
}

/// The directory of the npm packages of `tests/apps/package.json`.
pub fn node_modules() -> PathBuf {
    installed("node/node_modules")
}

fn installed(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools").join(name);
    if file.exists() { file } else { missing(&file.display().to_string()) }
}

/// The variables with which a program's clock shows what `clock` says, such as `+1y`, also when the file changes while it
/// runs. The clock that nobody can set is left as it is.
pub fn faketime(clock: &Path) -> [(&'static str, String); 4] {
    [
        ("LD_PRELOAD", library("faketime/libfaketime.so.1")),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// The variable with which a program's fsync does nothing, and its data is lost with the power: the control of every test
/// that something is on disk.
pub fn eatmydata() -> (&'static str, String) {
    ("LD_PRELOAD", library("libeatmydata.so"))
}

/// A library below one of the directories of this machine's architecture.
fn library(name: &str) -> String {
    let dirs = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(|dir| Some(dir.ok()?.path()));
    let library = dirs.map(|dir| dir.join(name)).find(|library| library.exists());
    library.unwrap_or_else(|| missing(name)).display().to_string()
}

fn missing(what: &str) -> ! {
    panic!("{what} is missing: run tests/run, which installs it (tests/run --install does only that)")
}

/// A file of `tests/apps`.
pub fn app_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(name)
}

/// Each application called directly: what fails here fails for a reason of its own, not for the tunnel's.
/// Writes a program for the shell.
pub fn script(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;

    // Beside, and then in its place: one that runs must not change.
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{text}")).expect("a file");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("a program");
    std::fs::rename(&new, path).expect("a place");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    async fn curl(arguments: &[&str]) -> String {
        output(Command::new(program("curl")).args(["--silent", "--show-error"]).args(arguments)).await
    }

    #[tokio::test]
    async fn httpbin_answers_and_ends_with_its_handle() {
        let app = httpbin().await;
        let seen: Value = serde_json::from_str(&curl(&["-d", "a=b", &app.url("/post")]).await).unwrap();
        assert_eq!(seen["form"]["a"], "b");
        let addr = app.addr;
        drop(app);
        let gone = async {
            while TcpStream::connect(addr).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("nobody listens there any more");
    }

    #[tokio::test]
    async fn environ_folds_names() {
        let app = environ().await;
        let answer = curl(&["-H", "X-Real_IP: forged", "-d", "abc", &app.url("/p%20q?r")]).await;
        let seen: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(seen["environ"]["HTTP_X_REAL_IP"], "forged");
        assert_eq!(seen["environ"]["RAW_URI"], "/p%20q?r");
        assert_eq!(seen["body_base64"], "YWJj");
    }

    #[tokio::test]
    async fn git_clones_and_pushes() {
        let served = tempfile::tempdir().unwrap();
        let work = tempfile::tempdir().unwrap();
        let app = git_server(served.path()).await;
        output(git(served.path()).args(["init", "--bare", "a.git"])).await;
        output(git(work.path()).args(["clone", &app.url("/a.git"), "a"])).await;
        // More than git buffers (1 MiB), so that the push goes in chunks.
        let large: Vec<u8> = (0..800_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let first = work.path().join("a");
        std::fs::write(first.join("large"), &large).unwrap();
        output(git(&first).args(["add", "."])).await;
        output(git(&first).args(["commit", "-m", "large"])).await;
        output(git(&first).args(["push", "origin", "HEAD"])).await;
        output(git(work.path()).args(["clone", &app.url("/a.git"), "b"])).await;
        assert!(std::fs::read(work.path().join("b/large")).unwrap() == large);
    }

    #[tokio::test]
    async fn grpc_calls_every_kind_of_method() {
        let app = grpc_server().await;
        let seen = grpc_calls(app.addr, None).await;
        assert_eq!(seen["unary_intact"], true);
        assert_eq!(seen["trailing_binary_intact"], true);
        assert_eq!(seen["chat"], serde_json::json!(["one", "two", "three"]));
        assert_eq!(seen["failure"]["code"], "FAILED_PRECONDITION");
        assert_eq!(seen["failure"]["details_intact"], true);
    }

    #[tokio::test]
    async fn a_page_takes_an_edit_without_reloading() {
        let Vite { app, project } = vite().await;
        let seen = hot_reload(&app.url("/"), project.path(), app.addr, None).await;
        assert_eq!(seen["before"], "before");
        assert_eq!(seen["after"], seen["expected"]);
        assert_eq!(seen["reloaded"], false);
    }

    #[test]
    fn addresses_are_found_in_what_servers_say() {
        let found = |line| address_in(line).map(|addr| addr.port());
        assert_eq!(found("[INFO] Listening at: http://127.0.0.1:37209 (22390)"), Some(37209));
        assert_eq!(found("  ➜  Local:   http://127.0.0.1:5173/"), Some(5173));
        assert_eq!(found("see http://example.com:80/"), None);
    }
}
