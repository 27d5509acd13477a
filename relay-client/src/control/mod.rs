//! The local socket of a running client: whoever is the same user asks it how it is, and what has come.
//!
//! ```text
//!   relay status, relay wait ── a line of JSON ──▶ $XDG_RUNTIME_DIR/relay/PID-RANDOM.sock ──▶ Board, Capture
//!   relay replay, trigger    ◀── lines of JSON ──                                        └──▶ Door, to a service
//! ```
//!
//! Each client has a socket of mode 0600 in a directory of mode 0700 that is this user's. One question is a line, and so
//! is each answer; every conversation begins with the client's status. A socket on which nobody listens is removed by
//! whoever finds it. Its name is random, because clients in two containers that share a home may have the same process
//! number, and clients in one process have.

pub(crate) mod board;
pub(crate) mod meter;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use http::Method;
use relay_protocol::message::{HeaderList, MessageError, Payload};
use relay_protocol::webhook::{Draft, Settings};
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf,
    split,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::board::{Board, Status};
use crate::capture::replay::{Replay, Resign};
use crate::capture::store::{Limits, Place};
use crate::capture::{Capture, News, Since, base64_text};
use crate::door::Door;
use crate::platform::{self, Base, Connected, Listener, base_directory};
use crate::value::Inspect;

/// The protocol's number. One that is asked in another one refuses, and says its own.
const VERSION: u32 = 1;

/// Those at once who have not been answered yet; others wait in the socket's backlog.
const ASKING: usize = 16;

/// Those at once who are told of requests; others are refused. Each costs a descriptor, and for a moment the memory of
/// the request that it is told of.
const WATCHING: usize = 64;

/// The longest question: a head of 64 KiB in base64.
const QUESTION: usize = 128 * 1024;

/// The largest body behind a question.
const BODY: u64 = 256 << 20;

/// The longest answer: 1 MiB of body in base64, and 64 KiB of head, of which each byte may be escaped.
const ANSWER: usize = 4 << 20;

/// How long a client that is alive may take for a question or for its first answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long those who are told of requests may take for the last ones, once the client has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long whoever asked may take to read an answer.
const STUCK: Duration = Duration::from_secs(30);

/// What stands in the way of a socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory is not safe to be used.
    #[error("cannot use {}, where running clients are found: {source}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// There is no place for one.
    #[error(
        "running clients are found in XDG_RUNTIME_DIR or below the home directory, and neither is known; set HOME, or \
         on Windows LOCALAPPDATA"
    )]
    Homeless,
    /// The socket itself.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket has no room for its own path.
    #[error(
        "cannot listen on {}: that is longer than the path of a socket may be (107 bytes on Linux); set \
         XDG_RUNTIME_DIR to a directory of yours with a shorter path", .0.display()
    )]
    TooLong(PathBuf),
}

/// What can be asked of a client.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    version: u32,
    #[serde(flatten)]
    ask: Ask,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// How it is.
    Status,
    /// How it is, once everything that is over has been stored.
    Stored,
    /// The same, and to forget all that is over.
    Clear,
    /// The requests that it keeps, and then those that come.
    Requests {
        /// From which one on.
        since: Since,
    },
    /// To send a request to a tunnel's service, as if the relay had sent it. Its body follows the question.
    Replay {
        /// Which tunnel.
        tunnel: String,
        /// Its head as on the wire, in base64. Its id and its tunnel do not count.
        head: String,
        /// Who has sent it, where that is known.
        provider: Option<String>,
        /// Whether the client signs it with what it knows.
        resign: Resign,
        /// Bytes of its body.
        body: u64,
        /// What follows its body, as on the wire, in base64; empty for nothing.
        #[serde(default)]
        trailers: String,
    },
    /// To sign a request with what a tunnel knows, so that its secret stays where it is. Its body follows the question.
    Sign {
        /// Which tunnel.
        tunnel: String,
        /// Whose request it is: the id of a row of the provider table.
        provider: String,
        /// What the signature may need where the client does not know it.
        settings: Settings,
        /// Its method.
        method: String,
        /// The URL that it is sent to.
        url: String,
        /// Its headers as on the wire, in base64.
        headers: String,
        /// Bytes of its body.
        body: u64,
    },
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// How the client is.
    Status(Status),
    /// Something has come.
    News(News),
    /// The request was sent to the service.
    Replayed(Replayed),
    /// The request is signed; none where the client knows no secret for that.
    Signed(Option<Signed>),
    /// The question is not answered, and why.
    Refused(String),
}

/// What a service has answered to a request that was sent once more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Replayed {
    /// The new request's id.
    pub(crate) id: String,
    /// Whether the client has signed it anew.
    pub(crate) signed: bool,
    /// None where it has not answered.
    pub(crate) status: Option<u16>,
    /// What went wrong: a stable code.
    pub(crate) error: Option<String>,
    /// Milliseconds that it took.
    pub(crate) duration_ms: f64,
    /// The answer's body, as far as it was kept.
    #[serde(with = "base64_text")]
    pub(crate) body: Vec<u8>,
    /// Bytes of it.
    pub(crate) body_size: u64,
}

/// A request that a client has signed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Signed {
    url: String,
    /// As on the wire, in base64.
    headers: String,
    /// None where it is as it was.
    body: Option<String>,
}

// ---- the client's side -----------------------------------------------------------------------------

/// What others of this user may know of a client.
#[derive(Clone, Debug)]
pub struct Control {
    pub(crate) board: Board,
    pub(crate) capture: Option<Capture>,
}

impl Control {
    /// Of a client that starts now. It keeps its requests unless it must not, and stores them within these limits.
    pub fn new(inspect: Option<Inspect>, limits: Limits) -> Self {
        let capture = || match Place::of_user() {
            Some(place) => Capture::stored(place, limits),
            None => Capture::default(),
        };
        Self { board: Board::new(), capture: (inspect != Some(Inspect::Off)).then(capture) }
    }

    /// Answers questions until the returned value is closed or dropped. A client does not need it: what is in the way is
    /// worth a warning and no more.
    pub(crate) fn serve(&self, door: Door) -> Option<Serving> {
        match directory().and_then(|directory| Serving::start(&directory, self.clone(), door)) {
            Ok(serving) => Some(serving),
            Err(error) => {
                tracing::warn!("relay status and relay wait will not find this client: {error}");
                None
            }
        }
    }
}

/// A client's socket. It is gone when this is.
#[derive(Debug)]
pub(crate) struct Serving {
    path: PathBuf,
    capture: Option<Capture>,
    closing: CancellationToken,
    /// Ends with this.
    task: JoinSet<()>,
}

impl Serving {
    fn start(directory: &Path, control: Control, door: Door) -> Result<Self, ControlError> {
        platform::own_directory(directory)
            .map_err(|source| ControlError::Directory { path: directory.to_owned(), source })?;
        let (path, listener) = bind(directory)?;
        let (capture, closing) = (control.capture.clone(), CancellationToken::new());
        capture.iter().for_each(|capture| capture.is_asked_at(&path));
        let mut task = JoinSet::new();
        task.spawn(listen(listener, control, door, closing.clone()));
        Ok(Self { path, capture, closing, task })
    }

    /// The client has ended: those who are told of requests get to know of the last ones, within [`FAREWELL`], and that no
    /// more will come.
    pub(crate) async fn close(mut self) {
        self.closing.cancel();
        if let Some(capture) = &self.capture {
            capture.close();
        }
        // Who is slower than that is left behind.
        let _ = timeout(FAREWELL, self.task.join_next()).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn bind(directory: &Path) -> Result<(PathBuf, Listener), ControlError> {
    let mut random = [0; 4];
    let path = aws_lc_rs::rand::fill(&mut random)
        .map(|()| directory.join(format!("{}-{:08x}.sock", std::process::id(), u32::from_be_bytes(random))))
        .map_err(|_| io::Error::other("the system has no randomness"))
        .map_err(|source| ControlError::Socket { path: directory.to_owned(), source })?;
    // Nobody must find it before there is somebody who listens, and take it for one that was left behind.
    let new = path.with_extension("new");
    let bound = Listener::bind(&new).and_then(|listener| {
        std::fs::rename(&new, &path)?;
        Ok(listener)
    });
    match bound {
        Ok(listener) => Ok((path, listener)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(ControlError::TooLong(path)),
        Err(source) => {
            let _ = std::fs::remove_file(&new);
            Err(ControlError::Socket { path, source })
        }
    }
}

async fn listen(mut listener: Listener, control: Control, door: Door, closing: CancellationToken) {
    let (asking, watching) = (Arc::new(Semaphore::new(ASKING)), Arc::new(Semaphore::new(WATCHING)));
    let mut conversations = JoinSet::new();
    loop {
        let next = async {
            let turn = asking.clone().acquire_owned().await;
            listener.accept().await.map(|stream| (stream, turn))
        };
        tokio::select! {
            () = closing.cancelled() => break,
            Some(_) = conversations.join_next() => {}
            accepted = next => match accepted {
                Ok((stream, turn)) => {
                    let (control, door, watching) = (control.clone(), door.clone(), watching.clone());
                    conversations.spawn(async move {
                        if let Err(error) = converse(stream, &control, &door, turn, &watching).await {
                            tracing::debug!(%error, "a question on the local socket came to nothing");
                        }
                    });
                }
                // Out of descriptors, mostly: give others time to close some.
                Err(error) => {
                    tracing::debug!(%error, "the local socket takes no connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    // Who comes now is refused.
    drop(listener);
    while conversations.join_next().await.is_some() {}
}

/// Answers one question. `turn` is given back when that was the short part of it.
async fn converse(
    stream: impl AsyncRead + AsyncWrite,
    control: &Control,
    door: &Door,
    turn: impl Send,
    watching: &Semaphore,
) -> io::Result<()> {
    let (reader, mut writer) = split(stream);
    let mut lines = Lines::new(reader, QUESTION);
    let question = timeout(PATIENCE, lines.next()).await??.ok_or(io::ErrorKind::UnexpectedEof)?;
    let since = match understand(&question) {
        Ok(Ask::Status) => return say(&mut writer, &Reply::Status(control.board.status())).await,
        Ok(ask @ (Ask::Stored | Ask::Clear)) => {
            if let Some(capture) = control.capture.clone() {
                if matches!(ask, Ask::Clear) {
                    capture.clear();
                }
                tokio::task::spawn_blocking(move || capture.flush()).await?;
            }
            return say(&mut writer, &Reply::Status(control.board.status())).await;
        }
        Ok(Ask::Requests { since }) => since,
        Ok(Ask::Replay { tunnel, head, provider, resign, body, trailers }) => {
            let body = timeout(STUCK, lines.bytes(body)).await??;
            say(&mut writer, &Reply::Status(control.board.status())).await?;
            drop(turn);
            let asked = async {
                let head = from_text(&head)?;
                let trailers = if trailers.is_empty() { HeaderList::new() } else { from_text(&trailers)? };
                let request = Replay { trailers, ..Replay::made(head, provider, body) };
                replay(door, &tunnel, request, resign).await
            };
            let reply = tokio::select! {
                reply = asked => reply.unwrap_or_else(Reply::Refused),
                // Whoever asked has gone, and the request goes with him.
                _ = lines.next() => return Ok(()),
            };
            return say(&mut writer, &reply).await;
        }
        Ok(Ask::Sign { tunnel, provider, settings, method, url, headers, body }) => {
            let body = timeout(STUCK, lines.bytes(body)).await??;
            say(&mut writer, &Reply::Status(control.board.status())).await?;
            drop(turn);
            let signed = async {
                let headers: HeaderList = from_text(&headers)?;
                let method = method.parse().map_err(|_| "it has no method".to_owned())?;
                let request = Replay { provider: Some(provider), ..Replay::new(method, url, headers, body.clone()) };
                let signed = door.sign(&tunnel, request, settings).await.map_err(|error| error.to_string())?;
                let signed = signed.map(|signed| {
                    let is_same = signed.body == body;
                    Ok::<_, String>(Signed {
                        url: signed.url,
                        headers: to_text(&signed.headers).map_err(|error| error.to_string())?,
                        body: (!is_same).then(|| STANDARD.encode(&signed.body)),
                    })
                });
                Ok(Reply::Signed(signed.transpose()?))
            };
            let reply = signed.await.unwrap_or_else(Reply::Refused);
            return say(&mut writer, &reply).await;
        }
        Err(refusal) => return say(&mut writer, &Reply::Refused(refusal)).await,
    };
    let (capture, _place) = match (&control.capture, watching.try_acquire()) {
        (Some(capture), Ok(place)) => (capture, place),
        (None, _) => {
            let refusal = "it keeps no requests, because it runs with --inspect off".to_owned();
            return say(&mut writer, &Reply::Refused(refusal)).await;
        }
        (Some(_), Err(_)) => {
            let refusal = format!("{WATCHING} others watch it already, which is as many as may");
            return say(&mut writer, &Reply::Refused(refusal)).await;
        }
    };
    // Reading begins before the status is said: whoever has that will miss nothing.
    let mut news = capture.read(since);
    say(&mut writer, &Reply::Status(control.board.status())).await?;
    drop(turn);
    loop {
        let news = tokio::select! {
            news = news.next() => news,
            // Whoever asked has gone, or says what nobody has asked for.
            _ = lines.next() => return Ok(()),
        };
        match news {
            Some(news) => say(&mut writer, &Reply::News(news)).await?,
            None => return Ok(()),
        }
    }
}

/// A part of a request as on the wire, in base64.
fn to_text(part: &impl Payload) -> Result<String, MessageError> {
    Ok(STANDARD.encode(part.to_bytes()?))
}

fn from_text<T: Payload>(text: &str) -> Result<T, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    T::from_bytes(&bytes.into()).map_err(|error| error.to_string())
}

/// Sends a request to a service. What stands in the way is a sentence.
async fn replay(door: &Door, tunnel: &str, replay: Replay, resign: Resign) -> Result<Reply, String> {
    let began = Instant::now();
    let answer = door.ask(tunnel, replay, resign).await.map_err(|error| error.to_string())?;
    Ok(Reply::Replayed(Replayed {
        id: answer.id,
        signed: answer.signed,
        status: answer.status.map(|status| status.as_u16()),
        error: answer.error.map(str::to_owned),
        duration_ms: began.elapsed().as_secs_f64() * 1e3,
        body: answer.body,
        body_size: answer.body_size,
    }))
}

fn understand(question: &[u8]) -> Result<Ask, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let other = || format!("it speaks version {VERSION} of the local protocol; use one version of relay for both");
    let version: Version = serde_json::from_slice(question).map_err(|_| other())?;
    if version.version != VERSION {
        return Err(other());
    }
    serde_json::from_slice(question).map(|question: Question| question.ask).map_err(|_| other())
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    timeout(STUCK, writer.write_all(&line)).await?
}

// ---- the side that asks ----------------------------------------------------------------------------

/// A client that has a socket.
#[derive(Debug)]
pub(crate) enum Found {
    /// It answers.
    Answers(Box<Asked>),
    /// It does not, as one that is stopped, or refuses.
    Silent {
        /// Its process.
        pid: u32,
        /// What it does instead, as a sentence's part.
        why: String,
    },
}

/// A client that was asked something.
#[derive(Debug)]
pub(crate) struct Asked {
    /// How it was then.
    pub(crate) status: Status,
    /// Where it is asked.
    socket: PathBuf,
    lines: Lines<ReadHalf<Connected>>,
    /// Held open: closing it ends the conversation.
    _writer: WriteHalf<Connected>,
}

impl Asked {
    /// The next news; `None` when the client has ended.
    ///
    /// # Errors
    /// Where it breaks off, or says what is not understood.
    pub(crate) async fn next(&mut self) -> io::Result<Option<News>> {
        let Some(line) = self.lines.next().await? else { return Ok(None) };
        match serde_json::from_slice(&line)? {
            Reply::News(news) => Ok(Some(news)),
            Reply::Status(_) | Reply::Refused(_) | Reply::Replayed(_) | Reply::Signed(_) => {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }

    /// Asks the same client to send a request to the service of one of its tunnels, and waits for the answer.
    ///
    /// # Errors
    /// Where it breaks off, and where it refuses.
    pub(crate) async fn replay(&self, tunnel: &str, replay: &Replay, resign: Resign) -> io::Result<Replayed> {
        let has_trailers = !replay.trailers.is_empty();
        let trailers = has_trailers.then(|| to_text(&replay.trailers)).transpose().map_err(io::Error::other)?;
        let ask = Ask::Replay {
            tunnel: tunnel.to_owned(),
            head: to_text(&replay.head().map_err(io::Error::other)?).map_err(io::Error::other)?,
            provider: replay.provider.clone(),
            resign,
            body: replay.body.len() as u64,
            trailers: trailers.unwrap_or_default(),
        };
        match self.put(ask, &replay.body).await? {
            Reply::Replayed(replayed) => Ok(replayed),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks the same client to sign a request with what one of its tunnels knows; `None` where it knows no secret for that.
    ///
    /// # Errors
    /// Where it breaks off, and where it refuses.
    pub(crate) async fn sign(
        &self,
        tunnel: &str,
        provider: &str,
        settings: Settings,
        method: &Method,
        draft: Draft,
    ) -> io::Result<Option<Draft>> {
        let ask = Ask::Sign {
            tunnel: tunnel.to_owned(),
            provider: provider.to_owned(),
            settings,
            method: method.to_string(),
            url: draft.url,
            headers: to_text(&draft.headers).map_err(io::Error::other)?,
            body: draft.body.len() as u64,
        };
        let signed = match self.put(ask, &draft.body).await? {
            Reply::Signed(Some(signed)) => signed,
            Reply::Signed(None) => return Ok(None),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let headers = from_text(&signed.headers).map_err(io::Error::other)?;
        let body = signed.body.map(|body| STANDARD.decode(body)).transpose().map_err(io::Error::other)?;
        Ok(Some(Draft { url: signed.url, headers, body: body.unwrap_or(draft.body) }))
    }

    /// What the same client answers to another question, after its status.
    async fn put(&self, ask: Ask, body: &[u8]) -> io::Result<Reply> {
        let mut asked = match put(&self.socket, ask, body).await? {
            Put::Answered(asked) => asked,
            Put::Refused(why) => return Err(io::Error::other(why)),
        };
        let line = asked.lines.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match serde_json::from_slice(&line)? {
            Reply::Refused(why) => Err(io::Error::other(why)),
            reply => Ok(reply),
        }
    }
}

/// Asks every running client of this user, all at once; by process. One that has not answered after `patience` is silent.
///
/// # Errors
/// [`ControlError::Directory`] and [`ControlError::Homeless`].
pub(crate) async fn ask_all(ask: &Ask, patience: Duration) -> Result<Vec<Found>, ControlError> {
    ask_others(None, ask, patience).await
}

/// As [`ask_all`], but the one at this socket, which is whoever asks.
///
/// # Errors
/// As [`ask_all`].
pub(crate) async fn ask_others(own: Option<&Path>, ask: &Ask, patience: Duration) -> Result<Vec<Found>, ControlError> {
    let directory = directory()?;
    let failed = |source| ControlError::Directory { path: directory.clone(), source };
    match platform::is_own_directory(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        checked => checked.map_err(failed)?,
    }
    let mut sockets: Vec<(u32, PathBuf)> = std::fs::read_dir(&directory)
        .map_err(failed)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (pid, _) = path.file_name()?.to_str()?.strip_suffix(".sock")?.split_once('-')?;
            Some((pid.parse().ok()?, path))
        })
        .filter(|(_, path)| Some(path.as_path()) != own)
        .collect();
    sockets.sort_unstable();
    let asked = sockets.iter().map(|(pid, path)| find(*pid, path, ask, patience));
    Ok(join_all(asked).await.into_iter().flatten().collect())
}

/// Who listens on a socket; `None` where that is nobody.
async fn find(pid: u32, path: &Path, ask: &Ask, patience: Duration) -> Option<Found> {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    let why = match timeout(patience, put(path, ask.clone(), &[])).await {
        Err(_) => "does not answer".to_owned(),
        Ok(Ok(Put::Answered(asked))) => return Some(Found::Answers(asked)),
        Ok(Ok(Put::Refused(why))) => format!("refuses: {why}"),
        Ok(Err(error)) => match error.kind() {
            // What a client that was killed has left behind.
            ConnectionRefused => {
                let _ = std::fs::remove_file(path);
                return None;
            }
            // It was ending just now.
            BrokenPipe | ConnectionReset | NotFound | UnexpectedEof => return None,
            _ => format!("cannot be asked: {error}"),
        },
    };
    Some(Found::Silent { pid, why })
}

enum Put {
    Answered(Box<Asked>),
    Refused(String),
}

async fn put(path: &Path, ask: Ask, body: &[u8]) -> io::Result<Put> {
    let (reader, mut writer) = split(platform::connect(path).await?);
    say(&mut writer, &Question { version: VERSION, ask }).await?;
    timeout(STUCK, writer.write_all(body)).await??;
    let mut lines = Lines::new(reader, ANSWER);
    let first = lines.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match serde_json::from_slice(&first) {
        Ok(Reply::Status(status)) => {
            Ok(Put::Answered(Box::new(Asked { status, socket: path.to_owned(), lines, _writer: writer })))
        }
        Ok(Reply::Refused(why)) => Ok(Put::Refused(why)),
        Ok(Reply::News(_) | Reply::Replayed(_) | Reply::Signed(_)) | Err(_) => {
            Ok(Put::Refused("its answer is not understood".to_owned()))
        }
    }
}

/// Where this user's clients have their sockets: nowhere that others can make directories, too.
fn directory() -> Result<PathBuf, ControlError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    // It may be another user's, as after `sudo -E`.
    let runtime = runtime.filter(|path| platform::is_users(path)).map(|path| path.join("relay"));
    let state = || base_directory(Base::State).map(|path| path.join("relay/clients"));
    runtime.or_else(state).ok_or(ControlError::Homeless)
}

// ---- both sides ------------------------------------------------------------------------------------

/// Lines of at most so many bytes.
#[derive(Debug)]
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    longest: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R, longest: usize) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new(), longest }
    }

    /// The next line; `None` at the end. Nothing is lost where this is given up.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let piece = self.reader.fill_buf().await?;
            let newline = piece.iter().position(|byte| *byte == b'\n');
            let taken = piece.get(..newline.unwrap_or(piece.len())).unwrap_or_default();
            if self.line.len() + taken.len() > self.longest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            self.line.extend_from_slice(taken);
            let (used, ended) = (taken.len() + usize::from(newline.is_some()), piece.is_empty());
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if ended {
                return Ok(None);
            }
        }
    }
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// So many bytes behind the last line.
    async fn bytes(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > BODY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a body is too large"));
        }
        let mut bytes = Vec::new();
        (&mut self.reader).take(size).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 == size { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::door::door;

    /// Of a client that stores nothing.
    fn control(inspect: Option<Inspect>) -> Control {
        let capture = (inspect != Some(Inspect::Off)).then(Capture::default);
        Control { board: Board::new(), capture }
    }

    /// What a client answers to these bytes, up to its silence or the end.
    async fn answer(control: &Control, question: &[u8]) -> Vec<String> {
        let (ours, theirs) = tokio::io::duplex(2 * QUESTION);
        let (reader, mut writer) = split(ours);
        let mut lines = Lines::new(reader, ANSWER);
        let ask = async {
            let _ = writer.write_all(question).await;
            let mut said = Vec::new();
            while let Ok(Some(line)) = lines.next().await {
                said.push(String::from_utf8(line).unwrap());
            }
            said
        };
        let watching = Semaphore::new(1);
        let (door, _knocks) = door();
        let (said, _) = tokio::join!(ask, converse(theirs, control, &door, (), &watching));
        said
    }

    #[tokio::test]
    async fn a_question_is_answered_or_refused() {
        let (keeps, does_not) = (control(None), control(Some(Inspect::Off)));
        let said = answer(&keeps, b"{\"version\":1,\"ask\":\"status\"}\n").await;
        assert!(said[0].contains("\"state\":\"connecting\""), "{said:?}");
        for (control, question, hint) in [
            (&keeps, "{\"version\":2,\"ask\":\"status\"}\n", "version 1"),
            (&keeps, "{\"version\":1,\"ask\":\"everything\"}\n", "version 1"),
            (&keeps, "GET / HTTP/1.1\n", "version 1"),
            (&does_not, "{\"version\":1,\"ask\":\"requests\",\"since\":{\"from\":\"start\"}}\n", "--inspect off"),
        ] {
            let said = answer(control, question.as_bytes()).await;
            assert!(said.len() == 1 && said[0].contains("refused") && said[0].contains(hint), "{question}: {said:?}");
        }
        assert!(answer(&keeps, &vec![b'x'; QUESTION + 1]).await.is_empty());
    }

    #[tokio::test]
    async fn who_ends_is_found_no_more_and_disturbs_no_other() {
        let parent = tempfile::tempdir().unwrap();
        let start = || Serving::start(&parent.path().join("clients"), control(None), door().0).unwrap();
        let (one, two) = (start(), start());
        let ask = Ask::Requests { since: Since::Start };
        let mut watching = Vec::new();
        for client in [&one, &two] {
            let Some(Found::Answers(asked)) = find(7, &client.path, &ask, PATIENCE).await else { panic!("no answer") };
            watching.push(asked);
        }
        let path = one.path.clone();
        one.close().await;
        assert!(watching[0].next().await.unwrap().is_none());
        assert!(!path.exists() && two.path.exists());
        assert!(find(7, &path, &ask, PATIENCE).await.is_none());
        // Killed, it leaves its socket behind.
        drop(Listener::bind(&path).unwrap());
        assert!(find(7, &path, &ask, PATIENCE).await.is_none() && !path.exists());
        assert!(matches!(find(7, &two.path, &Ask::Status, PATIENCE).await, Some(Found::Answers(_))));
    }

    #[tokio::test]
    async fn lines_survive_being_given_up() {
        let (mut writer, reader) = tokio::io::duplex(1024);
        let mut lines = Lines::new(reader, 8);
        for piece in [&b"ab"[..], b"cd", b"\nef\n"] {
            writer.write_all(piece).await.unwrap();
            tokio::select! {
                biased;
                line = lines.next() => assert_eq!(line.unwrap().unwrap(), b"abcd"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(lines.next().await.unwrap().unwrap(), b"ef");
        writer.write_all(b"123456789\n").await.unwrap();
        assert!(lines.next().await.is_err());
    }
}
