//! Linux and macOS.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

#[cfg(target_os = "linux")]
use relay_protocol::link::UNSENT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, geteuid, getpgrp, getpid, kill_current_process_group, kill_process};
use rustix::termios::tcgetpgrp;
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind, signal};

use super::{Base, Signal};

/// The one that goes on while the machine sleeps. macOS calls it so, and has another one that does not.
#[cfg(target_os = "linux")]
const WITH_SLEEP: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const WITH_SLEEP: ClockId = ClockId::Monotonic;

pub(crate) fn time_with_sleep() -> Duration {
    Duration::try_from(clock_gettime(WITH_SLEEP)).unwrap_or_default()
}

pub(crate) fn file_number(data: &Metadata) -> u64 {
    data.ino()
}

/// How long sent bytes may stay unacknowledged: a dead link is noticed within 15 s even while we write to it.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(15);

#[cfg(target_os = "linux")]
pub(super) fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn tune(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

// ---- signals and processes -------------------------------------------------------------------------

/// SIGINT, SIGTERM, and SIGHUP, which comes when the terminal is closed.
#[derive(Debug)]
pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    /// None under `nohup`.
    hangup: Option<unix::Signal>,
}

impl Signals {
    /// Signals that come from now on do not end the process.
    ///
    /// # Errors
    /// Where the system does not hand them over.
    pub fn new() -> io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup })
    }

    /// The next one. None is lost where this is given up.
    pub async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = hangup => Signal::HangUp,
        }
    }
}

/// Whether whoever started this process wants it to outlive the terminal, as `nohup` does. Only Linux tells; elsewhere
/// the terminal's end is this process's.
fn hangup_is_ignored() -> bool {
    // The first bit of a mask is signal 1, SIGHUP.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

pub(crate) fn interrupt() -> bool {
    kill_process(getpid(), rustix::process::Signal::INT).is_ok()
}

pub(crate) fn suspend() {
    // A process may always signal its own group.
    let _ = kill_current_process_group(rustix::process::Signal::TSTP);
}

pub(crate) fn pass_on(child: &Child, sent: Signal) {
    let signal = match sent {
        Signal::Interrupt if is_in_foreground() => return,
        Signal::Interrupt => rustix::process::Signal::INT,
        Signal::Terminate | Signal::HangUp => rustix::process::Signal::TERM,
    };
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    // One that has ended meanwhile is about to be noticed.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

/// Whether what is typed on the terminal, wherever input and output come from and go, is for this process's group.
fn is_in_foreground() -> bool {
    // Without a terminal there is no such file.
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal) == Ok(getpgrp()))
}

pub(super) fn signal_that_ended(status: ExitStatus) -> Option<i32> {
    status.signal()
}

// ---- output ----------------------------------------------------------------------------------------

/// A pipe that is ready takes so many bytes at once: `PIPE_BUF` of pipe(7), and what POSIX asks of every system.
const PIPE_BUF: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

pub(crate) fn write_now(out: &mut impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    if !is_ready(out, Duration::ZERO)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(rustix::io::write(&*out, bytes.get(..PIPE_BUF).unwrap_or(bytes))?)
}

pub(crate) fn is_ready(out: &impl AsFd, patience: Duration) -> io::Result<bool> {
    // What does not fit is longer than anybody waits.
    let patience = Timespec::try_from(patience).ok();
    Ok(poll(&mut [PollFd::new(out, PollFlags::OUT)], patience.as_ref())? > 0)
}

pub(super) fn hung_up(out: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

pub(crate) fn terminal_knows_escapes() -> bool {
    true
}

// ---- files -----------------------------------------------------------------------------------------

pub(super) fn directory_of(base: Base) -> Option<PathBuf> {
    let (variable, below_home) = match base {
        Base::Config => ("XDG_CONFIG_HOME", ".config"),
        Base::Data => ("XDG_DATA_HOME", ".local/share"),
        Base::State => ("XDG_STATE_HOME", ".local/state"),
    };
    let given = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    given.or_else(|| std::env::home_dir().map(|home| home.join(below_home)))
}

pub(crate) fn create_private_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(directory)
}

pub(crate) fn create_private_file(file: &Path) -> io::Result<File> {
    OpenOptions::new().mode(0o600).write(true).create_new(true).open(file)
}

pub(crate) fn readable_by_others(data: &Metadata) -> bool {
    data.mode() & 0o077 != 0
}

pub(super) fn writable_by_others(data: &Metadata) -> bool {
    data.mode() & 0o022 != 0
}

pub(super) fn belongs_to_another(data: &Metadata) -> bool {
    data.uid() != user()
}

fn user() -> u32 {
    geteuid().as_raw()
}

// ---- sockets ---------------------------------------------------------------------------------------

/// `sun_path` of Linux is 108 bytes with its final zero (unix(7)); other systems have 104.
pub(crate) const SOCKET_PATH_MAX: Option<usize> = Some(if cfg!(target_os = "linux") { 107 } else { 103 });

pub(crate) async fn connect_to_service(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

type Accepted = UnixStream;
pub(crate) type Connected = UnixStream;

#[derive(Debug)]
pub(crate) struct Listener(UnixListener);

impl Listener {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(Self(listener))
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Accepted> {
        loop {
            let (stream, _) = self.0.accept().await?;
            if is_own(&stream) {
                return Ok(stream);
            }
        }
    }
}

pub(crate) async fn connect(path: &Path) -> io::Result<Connected> {
    let stream = UnixStream::connect(path).await?;
    if is_own(&stream) {
        return Ok(stream);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's"))
}

/// Whether the other side is this user's. One that has gone already is nobody's.
fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user())
}
