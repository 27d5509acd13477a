//! Tells systemd how the service stands (sd_notify(3)): one datagram each, where it has asked for them.

use std::io;
use std::os::unix::net::UnixDatagram;

/// Where the service manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The service takes requests.
pub fn ready() {
    tell("READY=1");
}

/// The service stops.
pub fn stopping() {
    tell("STOPPING=1");
}

/// The service goes on in another process, whose end is its end.
pub(crate) fn main_process(process: Option<u32>) {
    if let Some(process) = process {
        tell(&format!("MAINPID={process}"));
    }
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let told = (|| {
        let datagram = UnixDatagram::unbound()?;
        match socket.to_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => send_abstract(&datagram, name, state),
            None => datagram.send_to(state.as_bytes(), &socket),
        }
    })();
    if let Err(error) = told {
        tracing::warn!(%error, state, "the service manager was not told");
    }
}

/// A name that begins with `@` is no file (unix(7)).
#[cfg(target_os = "linux")]
fn send_abstract(datagram: &UnixDatagram, name: &str, state: &str) -> io::Result<usize> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    datagram.send_to_addr(state.as_bytes(), &SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn send_abstract(_: &UnixDatagram, _: &str, _: &str) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
