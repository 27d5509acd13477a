//! What differs between Linux, macOS and Windows, and nothing else.
//!
//! Linux is what the tests run on. The file of each system has the same functions, and what they promise is said here.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

#[cfg(unix)]
use self::unix as system;
#[cfg(windows)]
use self::windows as system;

// ---- the machine and the network -------------------------------------------------------------------

/// Time that goes on while the machine sleeps, from any fixed point on. On Windows it is the time of day, which a person
/// may set, and whoever uses this must bear that.
pub(crate) use self::system::time_with_sleep;

/// When a silent connection is probed, and how often. The session's own heartbeat notices a dead relay first; this
/// keeps the entry of a NAT alive while the process is stopped.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));

/// Makes a connection to the relay quick, and quick to notice that it is dead.
///
/// # Errors
/// Where an option is refused. The connection works all the same.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    system::tune(&socket)
}

/// The address of this machine from which the system would reach `peer`; `None` where there is no way. Connecting a UDP
/// socket looks the route up and sends nothing.
pub(crate) fn address_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any = match peer {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_unspecified())
}

// ---- signals and processes -------------------------------------------------------------------------

/// What a person, or the system, wants of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C: SIGINT.
    Interrupt,
    /// It shall end: SIGTERM; on Windows Ctrl-Break, and the end of the user's session.
    Terminate,
    /// Its terminal is closed: SIGHUP, where whoever started it has not decided that it outlives that, as `nohup` does.
    /// Only Linux tells.
    HangUp,
}

/// The signals that this process gets. They do not end it while this lives.
pub use self::system::Signals;

/// Sends this process what Ctrl-C sends where the terminal does it; whether it could.
pub(crate) use self::system::interrupt;

/// Stops this process and those that it was started with, as Ctrl-Z does where the terminal sees to it, until somebody
/// continues them. Returns at once where there is no such thing.
pub(crate) use self::system::suspend;

/// Sends a command what this process was sent. Where this process is in the foreground of its terminal, an interrupt is
/// Ctrl-C, and that has reached the command already; on Windows everything has.
pub(crate) use self::system::pass_on;

/// A command's exit code as a shell would report it: 128 and the signal's number where one ended it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let signalled = system::signal_that_ended(status).map(|signal| 128 + signal);
    let code = status.code().or(signalled).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

// ---- standard output and the terminal --------------------------------------------------------------

/// Writes of `bytes` what the reader takes without keeping this process waiting, whether or not the file itself would
/// wait. On Windows it may wait.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where that is nothing at present, and whatever else is in the way.
pub(crate) use self::system::write_now;

/// Waits so long at most until [`write_now`] takes something; whether it does.
///
/// # Errors
/// Where the system cannot tell, as when a signal came.
pub(crate) use self::system::is_ready;

/// How often is looked whether standard output can still be read.
const LOOK: Duration = Duration::from_millis(500);

/// Ends when nobody can read standard output any more, where that is a pipe or a socket. A program that is quiet would
/// otherwise learn it from its next line, and outlive whoever has started it and was killed. Never ends where the
/// system does not tell.
///
/// It looks now and then, because to be told one would have to make the pipe non-blocking for all who share it.
pub(crate) async fn stdout_unread() {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !system::hung_up(&io::stdout()) {
        looks.tick().await;
    }
}

/// Whether a terminal takes escape sequences for colours and movement, as far as the system knows.
pub(crate) use self::system::terminal_knows_escapes;

// ---- files -----------------------------------------------------------------------------------------

/// What a user's files are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// What the user sets: `$XDG_CONFIG_HOME` or `~/.config`; on Windows `%APPDATA%`.
    Config,
    /// What a program makes for itself: `$XDG_DATA_HOME` or `~/.local/share`; on Windows `%LOCALAPPDATA%`.
    Data,
    /// What a program remembers: `$XDG_STATE_HOME` or `~/.local/state`; on Windows `%LOCALAPPDATA%`.
    State,
}

/// Where they are; `None` where the environment has no absolute path.
pub(crate) fn base_directory(base: Base) -> Option<PathBuf> {
    system::directory_of(base).filter(|directory| directory.is_absolute())
}

/// Makes a directory, and those above it, for this user alone. On Windows a user's own directories are that already.
///
/// # Errors
/// As [`std::fs::DirBuilder::create`].
pub(crate) use self::system::create_private_directory;

/// Makes a file for this user alone, and opens it for writing.
///
/// # Errors
/// As [`std::fs::OpenOptions::open`]; also where the file is there already.
pub(crate) use self::system::create_private_file;

/// Whether others than the owner can do anything with a file. On Windows nobody looks.
pub(crate) use self::system::readable_by_others;

/// What tells a file from one that takes its place under the same name, where the system has that.
pub(crate) use self::system::file_number;

/// Whether a directory is this user's, and no other user can make anything in it.
pub(crate) fn is_users(directory: &Path) -> bool {
    std::fs::metadata(directory)
        .is_ok_and(|found| found.is_dir() && !system::belongs_to_another(&found) && !system::writable_by_others(&found))
}

/// Makes a directory for this user alone, where others can make some, too; one that is there must be so already.
///
/// # Errors
/// Where it cannot be made, or is somebody else's, or open to others.
pub(crate) fn own_directory(directory: &Path) -> io::Result<()> {
    match create_private_directory(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    is_own_directory(directory)
}

/// Checks that a directory is this user's alone, and no link to one.
///
/// # Errors
/// Where it is not, or not there.
pub(crate) fn is_own_directory(directory: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(directory)?;
    let denied = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
    if !found.is_dir() {
        return denied("it is not a directory; remove it");
    }
    if system::belongs_to_another(&found) {
        return denied("it belongs to another user; set XDG_RUNTIME_DIR to a directory of yours");
    }
    if readable_by_others(&found) {
        return denied("others can open it; chmod 700 it");
    }
    Ok(())
}

// ---- local sockets ---------------------------------------------------------------------------------

/// The longest path of a Unix socket in bytes; `None` where there are no such sockets.
pub(crate) use self::system::SOCKET_PATH_MAX;

/// Connects to a service that listens on a Unix socket.
///
/// # Errors
/// As that of TCP, and where there are no such sockets.
pub(crate) use self::system::connect_to_service;

/// Listens for other processes of this user, under a path in a directory that is this user's alone. Strangers are turned
/// away. Whoever binds it removes what is there then.
pub(crate) use self::system::Listener;

/// Connects to a [`Listener`] of this user.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] where its process has gone, and whatever else is in the way.
pub(crate) use self::system::connect;

/// What that makes.
pub(crate) use self::system::Connected;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn the_way_to_this_machine_starts_on_it() {
        assert_eq!(address_towards("127.0.0.1:9".parse().unwrap()), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address_towards("127.0.0.1:9".parse().unwrap()), Some(Ipv4Addr::LOCALHOST.into()), "and stays");
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_others_could_use_is_not_ours() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("relay");
        assert_eq!(is_own_directory(&directory).unwrap_err().kind(), io::ErrorKind::NotFound);
        own_directory(&directory).unwrap();
        own_directory(&directory).unwrap();
        let set = |mode| std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
        set(0o750);
        assert!(own_directory(&directory).unwrap_err().to_string().contains("chmod 700"));
        set(0o700);
        let link = parent.path().join("link");
        symlink(&directory, &link).unwrap();
        assert!(own_directory(&link).is_err());
        assert!(is_users(&directory) && is_users(&link), "what a link leads to is");
        set(0o770);
        assert!(!is_users(&directory) && !is_users(&parent.path().join("nowhere")));
        set(0o700);
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(own_directory(&file).is_err());
    }

    #[test]
    fn time_with_sleep_goes_forward() {
        let (before, awake) = (time_with_sleep(), std::time::Instant::now());
        let mut last = before;
        // A clock that stands still is seen after a second that the other one counts.
        while last == before {
            let counted = awake.elapsed();
            last = time_with_sleep();
            assert!(last > before || counted < Duration::from_secs(1), "it stands still");
        }
        for _ in 0..1000 {
            let now = time_with_sleep();
            assert!(now >= last, "{now:?} comes after {last:?}");
            last = now;
        }
        assert!(last - before <= awake.elapsed() + Duration::from_secs(60), "{:?}", last - before);
    }
}
