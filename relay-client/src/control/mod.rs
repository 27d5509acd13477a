//! The local socket of a running client: whoever is the same user asks it how it is, and what has come.
//!
//! ```text
//!   relay status, relay wait ── a line of JSON ──▶ $XDG_RUNTIME_DIR/relay/PID.sock ──▶ Board, Capture
//!                            ◀── lines of JSON ──
//! ```
//!
//! Each client has a socket of mode 0600 in a directory of mode 0700 that is this user's. One question is a line, and so
//! is each answer; every conversation begins with the client's status. A socket whose process is dead is removed by
//! whoever finds it.

pub(crate) mod board;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::board::{Board, Status};
use crate::capture::{Capture, News, Since};
use crate::config::base_directory;
use crate::config::value::Inspect;
use crate::platform;

/// The protocol's number. One that is asked in another one refuses, and says its own.
const VERSION: u32 = 1;

/// Conversations at once; others wait in the socket's backlog.
const CONVERSATIONS: usize = 16;

/// The longest question.
const QUESTION: usize = 4 * 1024;

/// The longest answer: 1 MiB of body in base64, and 64 KiB of head, of which each byte may be escaped.
const ANSWER: usize = 4 << 20;

/// How long a client that is alive may take for a question or for its first answer.
const PATIENCE: Duration = Duration::from_secs(2);

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
    #[error("running clients are found in XDG_RUNTIME_DIR or below the home directory, and neither is known; set HOME")]
    Homeless,
    /// The socket itself.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What can be asked of a client.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    version: u32,
    #[serde(flatten)]
    ask: Ask,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// How it is.
    Status,
    /// The requests that it keeps, and then those that come.
    Requests {
        /// From which one on.
        since: Since,
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
    /// The question is not answered, and why.
    Refused(String),
}

// ---- the client's side -----------------------------------------------------------------------------

/// What others of this user may know of a client.
#[derive(Clone, Debug)]
pub struct Control {
    pub(crate) board: Board,
    pub(crate) capture: Option<Capture>,
}

impl Control {
    /// Of a client that starts now. It keeps its last requests unless it must not.
    pub fn new(inspect: Option<Inspect>) -> Self {
        let capture = (inspect != Some(Inspect::Off)).then(Capture::default);
        Self { board: Board::new(), capture }
    }

    /// Answers questions for as long as the returned value lives. A client does not need it: what is in the way is
    /// worth a warning and no more.
    pub(crate) fn serve(&self) -> Option<Serving> {
        match Serving::start(self.clone()) {
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
    /// Ends with this.
    _task: JoinSet<()>,
}

impl Serving {
    fn start(control: Control) -> Result<Self, ControlError> {
        let directory = directory()?;
        platform::own_directory(&directory)
            .map_err(|source| ControlError::Directory { path: directory.clone(), source })?;
        let path = directory.join(format!("{}.sock", std::process::id()));
        // No other process has our number, so whoever left it is dead.
        let _ = std::fs::remove_file(&path);
        let failed = |source| ControlError::Socket { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        platform::make_private(&path).map_err(failed)?;
        let mut task = JoinSet::new();
        task.spawn(listen(listener, control));
        Ok(Self { path, _task: task })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn listen(listener: UnixListener, control: Control) {
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = conversations.join_next() => {}
            accepted = listener.accept(), if conversations.len() < CONVERSATIONS => match accepted {
                Ok((stream, _)) => {
                    let control = control.clone();
                    conversations.spawn(async move {
                        if let Err(error) = converse(stream, &control).await {
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
}

async fn converse(stream: UnixStream, control: &Control) -> io::Result<()> {
    if stream.peer_cred()?.uid() != platform::user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader, QUESTION);
    let question = timeout(PATIENCE, lines.next()).await??.ok_or(io::ErrorKind::UnexpectedEof)?;
    let since = match understand(&question) {
        Ok(Ask::Status) => None,
        Ok(Ask::Requests { since }) => Some(since),
        Err(refusal) => return say(&mut writer, &Reply::Refused(refusal)).await,
    };
    // Reading begins before the status is said: whoever has that will miss nothing.
    let mut news = match (since, &control.capture) {
        (None, _) => return say(&mut writer, &Reply::Status(control.board.status())).await,
        (Some(since), Some(capture)) => capture.read(since),
        (Some(_), None) => {
            let refusal = "it keeps no requests, because it runs with --inspect off".to_owned();
            return say(&mut writer, &Reply::Refused(refusal)).await;
        }
    };
    say(&mut writer, &Reply::Status(control.board.status())).await?;
    loop {
        let news = tokio::select! {
            news = news.next() => news,
            // Whoever asked has gone, or says what nobody has asked for.
            _ = lines.next() => return Ok(()),
        };
        say(&mut writer, &Reply::News(news)).await?;
    }
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
    lines: Lines<OwnedReadHalf>,
    /// Held open: closing it ends the conversation.
    _writer: OwnedWriteHalf,
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
            Reply::Status(_) | Reply::Refused(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The running clients of this user, by process, as they are.
///
/// # Errors
/// [`ControlError::Directory`].
pub(crate) async fn running() -> Result<Vec<Found>, ControlError> {
    ask_all(|| Ask::Status).await
}

/// Asks every running client of this user.
///
/// # Errors
/// [`ControlError::Directory`].
pub(crate) async fn ask_all(ask: impl Fn() -> Ask) -> Result<Vec<Found>, ControlError> {
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
            let pid = path.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()?;
            Some((pid, path))
        })
        .collect();
    sockets.sort_unstable();
    let mut found = Vec::new();
    for (pid, path) in sockets {
        let silent = |why: &str| Found::Silent { pid, why: why.to_owned() };
        match timeout(PATIENCE, put(&path, ask())).await {
            Err(_) => found.push(silent("does not answer")),
            Ok(Ok(Put::Answered(asked))) => found.push(Found::Answers(asked)),
            Ok(Ok(Put::Refused(why))) => found.push(silent(&format!("does not answer: {why}"))),
            // It was ending just now, or is dead.
            Ok(Err(error)) => {
                tracing::debug!(%error, pid, "a socket without a client");
                if error.kind() == io::ErrorKind::ConnectionRefused && !platform::is_running(pid) {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
    }
    Ok(found)
}

enum Put {
    Answered(Box<Asked>),
    Refused(String),
}

async fn put(path: &Path, ask: Ask) -> io::Result<Put> {
    let (reader, mut writer) = UnixStream::connect(path).await?.into_split();
    say(&mut writer, &Question { version: VERSION, ask }).await?;
    let mut lines = Lines::new(reader, ANSWER);
    let first = lines.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match serde_json::from_slice(&first) {
        Ok(Reply::Status(status)) => Ok(Put::Answered(Box::new(Asked { status, lines, _writer: writer }))),
        Ok(Reply::Refused(why)) => Ok(Put::Refused(why)),
        Ok(Reply::News(_)) | Err(_) => Ok(Put::Refused("its answer is not understood".to_owned())),
    }
}

/// Where this user's clients have their sockets: nowhere that others can make directories, too.
fn directory() -> Result<PathBuf, ControlError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|path| path.is_absolute() && path.is_dir()).map(|path| path.join("relay"));
    let state = || base_directory("XDG_STATE_HOME", ".local/state").map(|path| path.join("relay/clients"));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    /// What a client answers to these bytes, up to its silence or the end.
    async fn answer(control: &Control, question: &[u8]) -> Vec<String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = ours.into_split();
        let mut lines = Lines::new(reader, ANSWER);
        let ask = async {
            let _ = writer.write_all(question).await;
            let mut said = Vec::new();
            while let Ok(Some(line)) = lines.next().await {
                said.push(String::from_utf8(line).unwrap());
            }
            said
        };
        let (said, _) = tokio::join!(ask, converse(theirs, control));
        said
    }

    #[tokio::test]
    async fn a_question_is_answered_or_refused() {
        let (keeps, does_not) = (Control::new(None), Control::new(Some(Inspect::Off)));
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
