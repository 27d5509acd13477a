//! Windows. A user's own directories are closed to others there already, and what has no counterpart is said to be so.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::windows::io::AsHandle;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::SockRef;
use tokio::io::DuplexStream;
use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions};
use tokio::process::Child;
use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown};
use tokio::time::sleep;

use super::{Base, Signal};

pub(crate) fn time_with_sleep() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub(crate) fn file_number(_: &Metadata) -> u64 {
    0
}

pub(super) fn tune(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

// ---- signals and processes -------------------------------------------------------------------------

/// What a console tells its processes.
#[derive(Debug)]
pub struct Signals {
    interrupt: CtrlC,
    terminate: CtrlBreak,
    close: CtrlClose,
    logoff: CtrlLogoff,
    shutdown: CtrlShutdown,
}

impl Signals {
    /// Signals that come from now on do not end the process.
    ///
    /// # Errors
    /// Where the system does not hand them over.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: windows::ctrl_c()?,
            terminate: windows::ctrl_break()?,
            close: windows::ctrl_close()?,
            logoff: windows::ctrl_logoff()?,
            shutdown: windows::ctrl_shutdown()?,
        })
    }

    /// The next one. None is lost where this is given up. After all but the first two the system waits for 5 s or so
    /// until it ends the process by force.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.close.recv() => Signal::HangUp,
            _ = self.logoff.recv() => Signal::Terminate,
            _ = self.shutdown.recv() => Signal::Terminate,
        }
    }
}

pub(crate) fn interrupt() -> bool {
    false
}

pub(crate) fn suspend() {}

/// Each process of a console is told by the console itself.
pub(crate) fn pass_on(_: &Child, _: Signal) {}

pub(super) fn signal_that_ended(_: ExitStatus) -> Option<i32> {
    None
}

// ---- output ----------------------------------------------------------------------------------------

/// May wait for the reader.
pub(crate) fn write_now(out: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let written = out.write(bytes)?;
    out.flush()?;
    Ok(written)
}

pub(crate) fn is_ready(_: &impl AsHandle, _: Duration) -> io::Result<bool> {
    Ok(true)
}

pub(super) fn hung_up(_: &impl AsHandle) -> bool {
    false
}

/// Windows' own console, before version 10, does not. Since then it has to be asked for.
pub(crate) fn terminal_knows_escapes() -> bool {
    crossterm::ansi_support::supports_ansi()
}

// ---- files -----------------------------------------------------------------------------------------

pub(super) fn directory_of(base: Base) -> Option<PathBuf> {
    // What a user sets up may follow him to another machine, and what a program remembers does not.
    let variable = match base {
        Base::Config => "APPDATA",
        Base::Data | Base::State => "LOCALAPPDATA",
    };
    std::env::var_os(variable).map(PathBuf::from)
}

pub(crate) fn create_private_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(directory)
}

pub(crate) fn create_private_file(file: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(file)
}

pub(crate) fn readable_by_others(_: &Metadata) -> bool {
    false
}

pub(super) fn writable_by_others(_: &Metadata) -> bool {
    false
}

pub(super) fn belongs_to_another(_: &Metadata) -> bool {
    false
}

// ---- sockets ---------------------------------------------------------------------------------------

pub(crate) const SOCKET_PATH_MAX: Option<usize> = None;

/// There are such sockets, but not for Rust.
pub(crate) async fn connect_to_service(_: &Path) -> io::Result<DuplexStream> {
    Err(io::ErrorKind::Unsupported.into())
}

type Accepted = NamedPipeServer;
pub(crate) type Connected = NamedPipeClient;

/// `ERROR_PIPE_BUSY`: every instance of the pipe has its client, and the next one is not there yet.
const BUSY: i32 = 231;

/// When to try again then.
const SOON: Duration = Duration::from_millis(20);

/// A named pipe, and a file in the place of a socket, which says that it is there. The name is the file's, so that who
/// cannot look into the directory does not know it beforehand; strangers may connect to a pipe, but not write to it, and
/// nothing is said to those who do not ask.
#[derive(Debug)]
pub(crate) struct Listener {
    pipe: PathBuf,
    /// Waits for a client.
    next: NamedPipeServer,
}

impl Listener {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let pipe = pipe(path)?;
        let next = ServerOptions::new().first_pipe_instance(true).reject_remote_clients(true).create(&pipe)?;
        create_private_file(path)?;
        Ok(Self { pipe, next })
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Accepted> {
        if let Err(error) = self.next.connect().await {
            // A client came, and has gone.
            self.next.disconnect()?;
            return Err(error);
        }
        // Where that fails, the client is still there the next time.
        let next = ServerOptions::new().reject_remote_clients(true).create(&self.pipe)?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

pub(crate) async fn connect(path: &Path) -> io::Result<Connected> {
    let pipe = pipe(path)?;
    loop {
        match ClientOptions::new().open(&pipe) {
            Err(error) if error.raw_os_error() == Some(BUSY) => sleep(SOON).await,
            // Only the file is left.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            opened => return opened,
        }
    }
}

fn pipe(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_stem().ok_or(io::ErrorKind::InvalidInput)?;
    let mut pipe = std::ffi::OsString::from(r"\\.\pipe\relay-");
    pipe.push(name);
    Ok(pipe.into())
}
