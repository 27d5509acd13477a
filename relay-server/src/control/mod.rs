//! How `relay-server token …`, `relay-server inbox …` and others reach the relay that owns a data directory. What they ask
//! for is done at the desk, as is what comes over HTTP.
//!
//! A running relay listens on a Unix socket in its data directory; a request is one line of JSON, so
//! is the reply, then the connection is closed. With no relay running, the command does the same
//! work itself on the files. Which of the two it is, a lock file decides, so that there is
//! never more than one owner:
//!
//! ```text
//!   relay.lock held by a relay  ──►  ask it, on control.sock
//!   relay.lock free             ──►  hold it, open relay.db and inbox.db, do it here
//! ```

pub(crate) mod deeds;
mod desk;
#[doc(hidden)]
pub mod secret;
mod words;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use self::desk::{Desk, webhooks};
pub use self::words::{Change, InboxRequest, Reply, Request, Why};
use crate::audit::By;
use crate::descriptors::{self, Handle, What};
use crate::inbox::Inboxes;
use crate::inbox::records::Records;
use crate::limits::Limits;
use crate::line::{read_line, to_line};
use crate::reload::Reloader;
use crate::store::{OpenError, Store};
use crate::succession::{self, Office};

const SOCKET_FILE: &str = "control.sock";
const LOCK_FILE: &str = "relay.lock";

/// A request is a few names; this is room for a thousand of them.
const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// A reply lists tokens, some 400 bytes each, or has a webhook: 25 MiB in base64, and what an operator may allow beyond.
const MAX_REPLY_BYTES: u64 = 256 * 1024 * 1024;
/// Commands served at once; the others wait in the socket's backlog.
const MAX_CONVERSATIONS: usize = 16;
/// From connecting to the end of the request, on the relay's side.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// From there to the end of the reply. Most work takes one commit; of a million webhooks it takes a thousand. Another process
/// gets ready in less.
const WORK_TIME: Duration = Duration::from_secs(305);
/// On the command's side, for what takes one commit, and for what may take many.
const REPLY_TIME: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(310)];
/// How long to wait for the lock while a command, or a relay that starts or stops, has it.
const LOCK_TIME: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// What stands between a command and the store, or between a relay and its data directory.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The lock is held.
    #[error(
        "the data directory {} is in use by another relay{}; stop that one, or choose another --data-dir",
        directory.display(),
        process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// Who says that it holds the lock.
        process: Option<u32>,
    },
    /// No relay runs, and the files are somebody else's: what we would write, that user could not.
    #[error(
        "no relay runs on {}, and only the directory's owner (user id {owner}) may change it then: \
         run this as that user, for example with `sudo -u '#{owner}'` and --data-dir {0}",
        directory.display()
    )]
    NotOwner {
        /// The data directory.
        directory: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// What was asked for is a running relay's to do.
    #[error("no relay runs on {}; give --data-dir, or the relay's own --config", directory.display())]
    NotRunning {
        /// The data directory.
        directory: PathBuf,
    },
    /// A file, the directory or the socket.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store's files cannot be opened here.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The relay has the socket open, but did not answer in time.
    #[error(
        "the relay did not answer within {} s; `token list` and `inbox list` tell whether it did what was asked",
        within.as_secs()
    )]
    Silent {
        /// In what time.
        within: Duration,
    },
    /// The relay answered something that this program does not understand.
    #[error(
        "the relay's answer cannot be read ({reason}); \
         restart the relay if it was upgraded while it ran, so that both are of one version"
    )]
    Reply {
        /// What is wrong with it.
        reason: String,
    },
}

// ---- the relay's side ------------------------------------------------------------------------------

/// A relay's hold on its data directory, and the socket on which it takes requests.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<UnixListener>,
    path: PathBuf,
    /// Held as long as requests may come.
    lock: Arc<Lock>,
    /// Nobody else has both, so that the socket goes with this.
    owned: bool,
}

impl Listener {
    /// Takes hold of a data directory, which is created (mode 0700) if it is not there.
    ///
    /// # Errors
    ///
    /// [`ControlError::InUse`] if another relay has it, or [`ControlError::Io`].
    pub async fn bind(directory: &Path) -> Result<Self, ControlError> {
        create(directory)?;
        let deadline = Instant::now() + LOCK_TIME;
        let lock = loop {
            match Lock::acquire(directory) {
                Err(ControlError::InUse { .. }) if Instant::now() < deadline => sleep(LOCK_RETRY).await,
                outcome => break outcome?,
            }
        };
        let path = directory.join(SOCKET_FILE);
        // Ours is the lock, so a socket that is there was left by a relay that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path, error)),
            _ => {}
        }
        let socket = UnixListener::bind(&path).map_err(|source| at(&path, source))?;
        let listener = Self { socket: Arc::new(socket), path, lock: Arc::new(lock), owned: true };
        let private = Permissions::from_mode(0o600);
        fs::set_permissions(&listener.path, private).map_err(|source| at(&listener.path, source))?;
        Ok(listener)
    }

    /// As [`Listener::bind`], with what another process has handed over. That one owns it until [`Listener::claim`].
    pub(crate) fn inherit(
        directory: &Path,
        lock: File,
        socket: std::os::unix::net::UnixListener,
    ) -> Result<Self, ControlError> {
        let path = directory.join(SOCKET_FILE);
        let socket = socket.set_nonblocking(true).and_then(|()| UnixListener::from_std(socket));
        let socket = socket.map_err(|source| at(&path, source))?;
        Ok(Self { socket: Arc::new(socket), path, lock: Arc::new(Lock(lock)), owned: false })
    }

    /// It is this process's from now on.
    pub(crate) fn claim(&mut self) {
        self.owned = true;
        if let Err(error) = self.lock.sign() {
            tracing::warn!(%error, "the lock does not say whose it is now");
        }
    }

    /// What another process needs to be the owner.
    pub(crate) fn offer(&self) -> [(What, Handle); 2] {
        [(What::Lock, descriptors::handle(&self.lock)), (What::Control, descriptors::handle(&self.socket))]
    }

    /// Answers requests until `shutdown`, or until another process does, then finishes those that have begun.
    pub(crate) async fn serve(
        mut self,
        desk: Desk,
        (reloader, office): (Reloader, Office),
        shutdown: CancellationToken,
        handed_over: CancellationToken,
    ) {
        let mut conversations = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = handed_over.cancelled() => break,
                Some(ended) = conversations.join_next() => report(ended),
                accepted = self.socket.accept(), if conversations.len() < MAX_CONVERSATIONS => match accepted {
                    Ok((stream, _)) => {
                        let (desk, reloader, office) = (desk.clone(), reloader.clone(), office.clone());
                        let shutdown = shutdown.clone();
                        conversations.spawn(async move { converse(stream, &desk, &reloader, &office, &shutdown).await });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: some time may bring some back.
                        tracing::warn!(%error, "cannot accept a control connection");
                        sleep(LOCK_RETRY).await;
                    }
                },
            }
        }
        self.owned &= !handed_over.is_cancelled();
        while let Some(ended) = conversations.join_next().await {
            report(ended);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.owned {
            // Still under the lock. One that stays is removed by the next relay.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn report(ended: Result<io::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a control connection ended early"),
        Err(error) => tracing::error!(%error, "a control connection's task failed"),
    }
}

async fn converse(
    stream: UnixStream,
    desk: &Desk,
    reloader: &Reloader,
    office: &Office,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    // The socket's mode says the same, but not between its making and the setting of its mode.
    let peer = stream.peer_cred()?;
    let user = peer.uid();
    if user != rustix::process::geteuid().as_raw() && user != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {user} is not the owner")));
    }
    let by = By::Command { user, process: peer.pid().and_then(|process| process.try_into().ok()) };
    let mut stream = BufReader::new(stream);
    // One that has asked gets its answer; one that has not yet need not any more.
    let request = timeout(REQUEST_TIME, read_line(&mut stream, MAX_REQUEST_BYTES));
    let Some(line) = shutdown.run_until_cancelled(request).await else {
        return Ok(());
    };
    let line = line??;
    let mut stream = stream.into_inner();
    let answer = async {
        let reply = match serde_json::from_slice(&line) {
            Ok(Request::TakeOver { version }) => {
                let give = succession::give(stream, office, version);
                return shutdown.run_until_cancelled(give).await.unwrap_or(Ok(()));
            }
            Ok(request @ (Request::Upgrade | Request::Reload)) => {
                let reply = match request {
                    Request::Upgrade => succession::upgrade(office).await,
                    _ => match reloader.reload().await {
                        Ok(reloaded) => Reply::Reloaded(reloaded),
                        Err(error) => Reply::failed(format!("the configuration stays as it was: {error}")),
                    },
                };
                desk.note(&by, deeds::of(&request), &reply).await;
                reply
            }
            // What it changed here, those who are connected there would not notice.
            Ok(_) if reloader.shared.has_successor() => {
                Reply::failed("another process of the relay has just taken over; try again")
            }
            Ok(request) => desk.ask(&by, request).await,
            Err(error) => Reply::failed(format!(
                "the relay, version {}, does not understand the request ({error}); \
                 restart it if it was upgraded while it ran",
                env!("CARGO_PKG_VERSION")
            )),
        };
        stream.write_all(&to_line(&reply)?).await?;
        stream.shutdown().await
    };
    timeout(WORK_TIME, answer).await?
}

// ---- the command's side ----------------------------------------------------------------------------

/// The way to a data directory's tokens, names and inboxes.
#[derive(Debug)]
pub struct Control(Way);

#[derive(Debug)]
enum Way {
    /// A relay runs.
    Relay { stream: UnixStream, path: PathBuf },
    /// None does, and none starts while we hold the lock.
    Here { desk: Desk, _lock: Lock },
}

impl Control {
    /// Finds the relay that runs on `directory`, or else opens the store there.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotOwner`] if no relay runs and the directory is not ours;
    /// [`ControlError::InUse`] if one has the directory but takes no requests;
    /// [`ControlError::Store`] or [`ControlError::Io`].
    pub async fn open(directory: &Path) -> Result<Self, ControlError> {
        let path = directory.join(SOCKET_FILE);
        let deadline = Instant::now() + LOCK_TIME;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Ok(Self(Way::Relay { stream, path })),
                Err(error) if nobody_listens(&error) => {}
                Err(error) => return Err(at(&path, error)),
            }
            create(directory)?;
            check_owner(directory, rustix::process::geteuid().as_raw())?;
            match Lock::acquire(directory) {
                Ok(lock) => {
                    let store = Store::open(directory).await?;
                    let inboxes = Arc::new(Inboxes::new(Records::open(directory, 0)?, &Limits::default()));
                    return Ok(Self(Way::Here { desk: Desk::alone(directory, store, inboxes), _lock: lock }));
                }
                // A relay that is starting or stopping, or another command.
                Err(ControlError::InUse { .. }) if Instant::now() < deadline => sleep(LOCK_RETRY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// The relay that runs on `directory`, if one does. Nothing is made there.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] where it cannot be told, as for a user who may not look into the directory.
    pub async fn find(directory: &Path) -> Result<Option<Self>, ControlError> {
        let path = directory.join(SOCKET_FILE);
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(Self(Way::Relay { stream, path }))),
            Err(error) if nobody_listens(&error) => Ok(None),
            Err(error) => Err(at(&path, error)),
        }
    }

    /// The relay that runs on `directory`, which has to: what is wanted is its to do.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::Io`].
    pub async fn running(directory: &Path) -> Result<Self, ControlError> {
        let found = Self::find(directory).await?;
        found.ok_or_else(|| ControlError::NotRunning { directory: directory.to_owned() })
    }

    /// Whether a relay runs there, so that webhooks are delivered.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.0, Way::Relay { .. })
    }

    /// Has one thing done. A refusal is a [`Reply`] like others.
    ///
    /// # Errors
    ///
    /// [`ControlError`] where there was no reply.
    pub async fn request(self, request: Request) -> Result<Reply, ControlError> {
        match self.0 {
            Way::Relay { stream, path } => {
                let within = request.patience();
                let reply = timeout(within, ask(stream, &request)).await;
                let reply = reply.map_err(|_| ControlError::Silent { within })?;
                let line = reply.map_err(|source| at(&path, source))?;
                serde_json::from_slice(&line).map_err(|error| ControlError::Reply { reason: error.to_string() })
            }
            Way::Here { desk, _lock } => {
                let reply = desk.ask(&By::this(), request).await;
                desk.close().await;
                Ok(reply)
            }
        }
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn check_owner(directory: &Path, user: u32) -> Result<(), ControlError> {
    let owner = fs::metadata(directory).map_err(|source| at(directory, source))?.uid();
    if owner == user { Ok(()) } else { Err(ControlError::NotOwner { directory: directory.to_owned(), owner }) }
}

async fn ask(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.write_all(&to_line(request)?).await?;
    read_line(BufReader::new(stream), MAX_REPLY_BYTES).await
}

/// The relay that runs on `directory`.
///
/// # Errors
/// [`ControlError::NotRunning`], [`ControlError::Io`].
pub(crate) async fn connect(directory: &Path) -> Result<UnixStream, ControlError> {
    let path = directory.join(SOCKET_FILE);
    UnixStream::connect(&path).await.map_err(|error| match nobody_listens(&error) {
        true => ControlError::NotRunning { directory: directory.to_owned() },
        false => at(&path, error),
    })
}

// ---- both sides ------------------------------------------------------------------------------------

/// The right to own a data directory, until it is dropped or its process ends, however it ends.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn acquire(directory: &Path) -> Result<Self, ControlError> {
        let path = directory.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|source| at(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(ControlError::InUse { directory: directory.to_owned(), process });
            }
            Err(TryLockError::Error(source)) => return Err(at(&path, source)),
        }
        let lock = Self(file);
        lock.sign().map_err(|source| at(&path, source))?;
        Ok(lock)
    }

    /// Writes down whose it is, for the message above alone: the lock is what counts. Whoever got it from another process
    /// shares that one's place in the file.
    fn sign(&self) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.write_all_at(format!("{}\n", process::id()).as_bytes(), 0)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn create(directory: &Path) -> Result<(), ControlError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory).map_err(|source| at(directory, source))
}

fn at(path: &Path, source: io::Error) -> ControlError {
    ControlError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use futures_util::FutureExt as _;
    use tempfile::TempDir;
    use tokio::io::AsyncReadExt as _;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::clock::unix_now;
    use crate::store::{Name, NewToken, Secret, Token, TokenLimits};

    struct Relay {
        directory: TempDir,
        store: Store,
        changes: mpsc::Receiver<Change>,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Relay {
        async fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = Listener::bind(directory.path()).await.unwrap();
            let store = Store::open(directory.path()).await.unwrap();
            let inboxes = Arc::new(Inboxes::new(Records::open(directory.path(), 0).unwrap(), &Limits::default()));
            let (sender, changes) = mpsc::channel(8);
            let shutdown = CancellationToken::new();
            let changed = move |change| {
                sender.try_send(change).unwrap();
                std::future::ready(Ok(())).boxed()
            };
            let desk = Desk::new(directory.path(), store.clone(), inboxes, None, Arc::new(changed));
            let relay = crate::tests::relay(directory.path()).await;
            let operator = (relay.reloader(), relay.office.clone());
            let handed_over = CancellationToken::new();
            let task = tokio::spawn(listener.serve(desk, operator, shutdown.clone(), handed_over));
            Self { directory, store, changes, shutdown, task }
        }

        async fn stop(self) -> TempDir {
            self.shutdown.cancel();
            self.task.await.unwrap();
            self.store.close().await;
            self.directory
        }

        async fn raw(&self, line: &[u8]) -> String {
            let mut stream = UnixStream::connect(self.directory.path().join(SOCKET_FILE)).await.unwrap();
            // It may hang up before it has read all of a request that is too long.
            let _ = stream.write_all(line).await;
            let mut reply = String::new();
            let _ = stream.read_to_string(&mut reply).await;
            reply
        }
    }

    async fn request(directory: &Path, request: Request) -> Reply {
        Control::open(directory).await.unwrap().request(request).await.unwrap()
    }

    fn create(name: &str) -> Request {
        let limits = TokenLimits::default();
        Request::CreateToken(NewToken { name: name.to_owned(), reserve: vec![], expires_at: None, limits })
    }

    async fn token_names(directory: &Path) -> Vec<String> {
        match request(directory, Request::ListTokens).await {
            Reply::Tokens { tokens } => tokens.into_iter().map(|one| one.token.name).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_running_relay_does_what_it_is_asked() {
        let mut relay = Relay::start().await;
        let directory = relay.directory.path().to_owned();
        assert!(matches!(request(&directory, Request::Ping).await, Reply::Pong { .. }));
        let Reply::Created { secret, token } = request(&directory, create("alice")).await else { panic!() };
        assert_eq!(relay.store.authenticate(&secret, unix_now()).await.as_ref(), Ok(&token));
        let Reply::Refused { message, why: Why::Conflict } = request(&directory, create("alice")).await else {
            panic!()
        };
        assert!(message.contains("there is a token named \"alice\" already"), "{message}");

        let names = vec![Name::parse("hooks").unwrap()];
        let provider = Some("slack".to_owned());
        let (inbox, alice) = (Some("ordered".parse().unwrap()), "alice".to_owned());
        let (its, whose) = (inbox.clone(), provider.clone());
        let reserve = Request::Reserve { token: alice, names: names.clone(), provider: whose, inbox: its };
        assert!(matches!(request(&directory, reserve).await, Reply::Reserved));
        let reserved = Change::Reserved { token: token.id, names: names.clone(), provider, inbox: inbox.map(Box::new) };
        assert_eq!(relay.changes.try_recv(), Ok(Change::Created(token.id)), "before the reply");
        assert_eq!(relay.changes.try_recv(), Ok(reserved), "before the reply");
        let release = Request::Release { names: names.clone(), forget: false };
        assert!(matches!(request(&directory, release).await, Reply::Released { .. }));
        assert_eq!(relay.changes.try_recv(), Ok(Change::Released { names }));

        let revoke = Request::RevokeToken { token: "alice".to_owned() };
        assert!(matches!(request(&directory, revoke).await, Reply::Revoked));
        assert_eq!(relay.changes.try_recv(), Ok(Change::Revoked(token.id)));
        relay.stop().await;
    }

    #[tokio::test]
    async fn with_no_relay_the_command_does_it_itself() {
        let relay = Relay::start().await;
        request(relay.directory.path(), create("alice")).await;
        let directory = relay.stop().await;
        assert!(!directory.path().join(SOCKET_FILE).exists());
        request(directory.path(), create("bob")).await;
        // As after a kill: the socket is there, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET_FILE)).unwrap());
        assert_eq!(token_names(directory.path()).await, ["alice", "bob"]);
        Listener::bind(directory.path()).await.expect("a new relay replaces the socket");

        let fresh = directory.path().join("not/there/yet");
        assert_eq!(token_names(&fresh).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn one_relay_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Listener::bind(directory.path()).await.unwrap();
        let error = Listener::bind(directory.path()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", process::id())), "{error}");
        drop(first);
        Listener::bind(directory.path()).await.expect("it is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_holds_the_lock_without_listening_is_not_gone_round() {
        let directory = tempfile::tempdir().unwrap();
        let _lock = Lock::acquire(directory.path()).unwrap();
        assert!(matches!(Control::open(directory.path()).await, Err(ControlError::InUse { .. })));
    }

    #[test]
    fn only_the_owner_works_on_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let owner = directory.path().metadata().unwrap().uid();
        check_owner(directory.path(), owner).unwrap();
        let error = check_owner(directory.path(), owner + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("sudo -u '#{owner}'")), "{error}");
    }

    #[tokio::test]
    async fn nonsense_is_refused_and_harms_nobody() {
        let relay = Relay::start().await;
        for nonsense in
            [&b"\n"[..], b"hello\n", b"{\"request\":\"fly\"}\n", b"{\"request\":\"release\",\"names\":[\"a_b\"]}\n"]
        {
            let reply = relay.raw(nonsense).await;
            assert!(reply.contains("\"refused\""), "{reply}");
        }
        let endless = vec![b' '; 2 * usize::try_from(MAX_REQUEST_BYTES).unwrap()];
        assert_eq!(relay.raw(&endless).await, "");
        assert!(matches!(request(relay.directory.path(), Request::Ping).await, Reply::Pong { .. }));
        let mode = |file| relay.directory.path().join(file).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(SOCKET_FILE), mode(LOCK_FILE)), (0o600, 0o600));
        relay.stop().await;
    }

    #[tokio::test]
    async fn silent_callers_hold_up_neither_others_nor_the_end() {
        let relay = Relay::start().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONVERSATIONS - 1 {
            silent.push(UnixStream::connect(relay.directory.path().join(SOCKET_FILE)).await.unwrap());
        }
        assert!(matches!(request(relay.directory.path(), Request::Ping).await, Reply::Pong { .. }));
        timeout(REQUEST_TIME / 2, relay.stop()).await.expect("they are not waited for");
    }

    #[test]
    fn a_reply_does_not_print_its_secret() {
        let secret = Secret::generate();
        let text = secret.expose().to_owned();
        let now = 0;
        let token: Token = serde_json::from_value(serde_json::json!({
            "id": 1, "name": "alice", "created_at": now,
            "limits": {"max_tunnels": 1, "max_names": 1, "max_sessions": 1},
        }))
        .unwrap();
        let reply = Reply::Created { secret, token };
        assert!(!format!("{reply:?}").contains(&text[4..]));
        let line = to_line(&reply).unwrap();
        let Reply::Created { secret, .. } = serde_json::from_slice(&line).unwrap() else { panic!() };
        assert_eq!(secret.expose(), text);
    }
}
