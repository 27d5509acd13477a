//! What differs between Linux, macOS and Windows, and nothing else.
//!
//! Linux is what the tests run on. Everything here has an arm for the other two that needs nothing but what Rust's own
//! library and the sockets' promise there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

#[cfg(target_os = "linux")]
use relay_protocol::link::UNSENT;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::MissedTickBehavior;

/// When a silent connection is probed, and how often. The session's own heartbeat notices a dead relay first; this
/// keeps the entry of a NAT alive while the process is stopped.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));

/// How long sent bytes may stay unacknowledged: a dead link is noticed within 15 s even while we write to it.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Time that goes on while the machine sleeps, from any fixed point on. On Linux that is `CLOCK_BOOTTIME`; elsewhere it
/// is the time of day, which a person may set, and whoever uses this must bear that.
pub(crate) fn time_with_sleep() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }
    #[cfg(not(target_os = "linux"))]
    {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
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

/// What tells a file from one that takes its place under the same name, where the system has that.
pub(crate) fn file_number(data: &std::fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::ino(data)
    }
    #[cfg(not(unix))]
    {
        let _ = data;
        0
    }
}

/// Makes a connection to the relay quick, and quick to notice that it is dead.
///
/// # Errors
/// Where an option is refused. The connection works all the same.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

/// Sends a command what this process was sent: an interrupt, or the wish that it ends. Where this process is in the
/// foreground of its terminal, an interrupt is Ctrl-C, and that has reached the command already.
pub(crate) fn pass_on(child: &Child, interrupt: bool) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = match interrupt {
            true if is_in_foreground() => return,
            true => Signal::INT,
            false => Signal::TERM,
        };
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // One that has ended meanwhile is about to be noticed.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
    #[cfg(not(unix))]
    let _ = (child, interrupt);
}

/// Whether what is typed on the terminal, wherever input and output come from and go, is for this process's group.
#[cfg(unix)]
fn is_in_foreground() -> bool {
    use rustix::{process::getpgrp, termios::tcgetpgrp};
    // Without a terminal there is no such file.
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal) == Ok(getpgrp()))
}

/// Writes of `bytes` what the reader takes without keeping this process waiting, whether or not the file itself would
/// wait. Elsewhere than on Unix it may wait.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] where that is nothing at present, and whatever else is in the way.
pub(crate) fn write_now<O: io::Write + AsDescriptor>(out: &mut O, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(unix)]
    {
        /// A pipe that is ready takes so many at once: `PIPE_BUF` of pipe(7).
        const READY: usize = 4096;
        if !is_ready(out, Duration::ZERO)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(rustix::io::write(&*out, bytes.get(..READY).unwrap_or(bytes))?)
    }
    #[cfg(not(unix))]
    out.write(bytes)
}

/// Waits so long at most until [`write_now`] takes something; whether it does.
///
/// # Errors
/// Where the system cannot tell, as when a signal came.
pub(crate) fn is_ready(out: &impl AsDescriptor, patience: Duration) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // What does not fit is longer than anybody waits.
        let patience = Timespec::try_from(patience).ok();
        Ok(poll(&mut [PollFd::new(out, PollFlags::OUT)], patience.as_ref())? > 0)
    }
    #[cfg(not(unix))]
    {
        let _ = (out, patience);
        Ok(true)
    }
}

#[cfg(unix)]
pub(crate) use std::os::fd::AsFd as AsDescriptor;
#[cfg(windows)]
pub(crate) use std::os::windows::io::AsHandle as AsDescriptor;

/// Whether whoever started this process wants it to outlive the terminal, as `nohup` does. Only Linux tells; elsewhere
/// the terminal's end is this process's.
pub fn hangup_is_ignored() -> bool {
    #[cfg(target_os = "linux")]
    {
        // The first bit of a mask is signal 1, SIGHUP.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Sends this process what Ctrl-C sends where the terminal does it.
pub(crate) fn interrupt() {
    #[cfg(unix)]
    // A process may always signal itself.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
}

/// Stops this process and those that it was started with, as Ctrl-Z does where the terminal sees to it, until somebody
/// continues them. Returns at once where there is no such thing.
pub(crate) fn suspend() {
    #[cfg(unix)]
    // A process may always signal its own group.
    let _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
}

/// A command's exit code as a shell would report it: 128 and the signal's number where one ended it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    let signalled = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let signalled = None;
    let code = status.code().or(signalled).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

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
    while !hung_up(&io::stdout()) {
        looks.tick().await;
    }
}

#[cfg(unix)]
fn hung_up(out: &impl std::os::fd::AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
}

#[cfg(not(unix))]
fn hung_up(_: &io::Stdout) -> bool {
    false
}

/// Makes a directory, and those above it, for this user alone. On Windows a user's own directories are that already.
///
/// # Errors
/// As [`DirBuilder::create`].
pub(crate) fn create_private_directory(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory)
}

/// Makes a file for this user alone, and opens it for writing.
///
/// # Errors
/// As [`OpenOptions::open`]; also where the file is there already.
pub(crate) fn create_private_file(file: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(file)
}

/// This process's user. On Windows a number that is everybody's: what is compared by it, its own permissions protect.
pub(crate) fn user() -> u32 {
    #[cfg(unix)]
    let user = rustix::process::geteuid().as_raw();
    #[cfg(not(unix))]
    let user = 0;
    user
}

/// Whether a directory is this user's, and no other user can make anything in it.
pub(crate) fn is_users(directory: &Path) -> bool {
    std::fs::metadata(directory).is_ok_and(|found| {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            found.is_dir() && found.uid() == user() && found.mode() & 0o022 == 0
        }
        #[cfg(not(unix))]
        found.is_dir()
    })
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
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if found.uid() != user() {
            return denied("it belongs to another user; set XDG_RUNTIME_DIR to a directory of yours");
        }
        if found.mode() & 0o077 != 0 {
            return denied("others can open it; chmod 700 it");
        }
    }
    Ok(())
}

/// Closes a file to everybody else.
///
/// # Errors
/// As [`std::fs::set_permissions`].
pub(crate) fn make_private(file: &Path) -> io::Result<()> {
    #[cfg(unix)]
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

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
            assert!(awake.elapsed() < Duration::from_secs(1), "it stands still");
            last = time_with_sleep();
        }
        for _ in 0..1000 {
            let now = time_with_sleep();
            assert!(now >= last, "{now:?} comes after {last:?}");
            last = now;
        }
        assert!(last - before <= awake.elapsed() + Duration::from_secs(60), "{:?}", last - before);
    }
}
