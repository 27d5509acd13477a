//! Listeners that were there before the relay: those of the process that it takes over from, or systemd's.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The right to own the data directory.
    Lock,
    /// Where commands are taken.
    Control,
    /// Public HTTPS.
    Https,
    /// Public HTTP.
    Http,
    /// Health and metrics.
    Admin,
    /// The name server, over UDP or TCP.
    Dns,
    /// Something that another version has.
    #[serde(other)]
    Other,
}

/// Listeners that were there before the relay. Each is taken by whoever listens at its address.
#[derive(Debug, Default)]
pub struct Sockets {
    tcp: Vec<(Option<What>, TcpListener)>,
    udp: Vec<(Option<What>, UdpSocket)>,
    unix: Vec<(Option<What>, UnixListener)>,
}

impl Sockets {
    /// Those that a service manager has opened for this process: systemd's socket activation (sd_listen_fds(3)). Takes the
    /// variables that say so out of the environment, so that it is to be called before there is a second thread.
    ///
    /// # Errors
    /// The system's: what was passed is no socket that the relay could use.
    pub fn from_environment() -> io::Result<Self> {
        let (mut passed, mut sockets) = (ListenFd::from_env(), Self::default());
        for index in 0..passed.len() {
            match passed.take_tcp_listener(index) {
                Ok(listener) => sockets.tcp.extend(listener.map(|listener| (None, listener))),
                // Of another kind, which leaves it there.
                Err(_) => match passed.take_unix_listener(index) {
                    Ok(listener) => sockets.unix.extend(listener.map(|listener| (None, listener))),
                    Err(_) => {
                        let socket = passed.take_udp_socket(index).map_err(|error| {
                            let text = format!(
                                "the service manager has passed a socket that is none of TCP, UDP and a Unix listener: {error}"
                            );
                            io::Error::new(error.kind(), text)
                        })?;
                        sockets.udp.extend(socket.map(|socket| (None, socket)));
                    }
                },
            }
        }
        Ok(sockets)
    }

    /// Adds one of another process's.
    pub(crate) fn add(&mut self, what: What, descriptor: OwnedFd) -> io::Result<()> {
        match (socket_type(&descriptor)?, socket_domain(&descriptor)?) {
            (_, AddressFamily::UNIX) => self.unix.push((Some(what), descriptor.into())),
            (SocketType::DGRAM, _) => self.udp.push((Some(what), descriptor.into())),
            _ => self.tcp.push((Some(what), descriptor.into())),
        }
        Ok(())
    }

    /// The TCP listener for that, at that address, if there is one. Port 0 is any.
    pub(crate) fn take_tcp(&mut self, what: What, address: SocketAddr) -> Option<io::Result<tokio::net::TcpListener>> {
        let listener = take(&mut self.tcp, what, address, TcpListener::local_addr)?;
        Some(listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)))
    }

    /// The UDP socket for that, at that address, if there is one. Port 0 is any.
    pub(crate) fn take_udp(&mut self, what: What, address: SocketAddr) -> Option<io::Result<tokio::net::UdpSocket>> {
        let socket = take(&mut self.udp, what, address, UdpSocket::local_addr)?;
        Some(socket.set_nonblocking(true).and_then(|()| tokio::net::UdpSocket::from_std(socket)))
    }

    /// The Unix socket for that, at that path, if there is one.
    pub(crate) fn take_unix(&mut self, what: What, path: &Path) -> Option<io::Result<tokio::net::UnixListener>> {
        let fits = |(its, listener): &(Option<What>, UnixListener)| {
            let there = listener.local_addr();
            its.is_none_or(|its| its == what) && there.is_ok_and(|there| there.as_pathname() == Some(path))
        };
        let found = self.unix.iter().position(fits)?;
        let (_, listener) = self.unix.swap_remove(found);
        Some(listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener)))
    }

    /// Closes what nobody has taken, and says so: whoever connects there is refused.
    pub(crate) fn close_rest(self) {
        let tcp = self.tcp.iter().map(|(_, listener)| listener.local_addr());
        let ip = tcp.chain(self.udp.iter().map(|(_, socket)| socket.local_addr())).flatten();
        let unix = self.unix.iter().flat_map(|(_, listener)| listener.local_addr());
        let unix = unix.filter_map(|address| Some(format!("unix:{}", address.as_pathname()?.display())));
        for address in ip.map(|address| address.to_string()).chain(unix) {
            tracing::warn!(%address, "a listener was handed to the relay that is for none of its addresses, and is closed");
        }
    }
}

fn take<S>(
    sockets: &mut Vec<(Option<What>, S)>,
    what: What,
    wanted: SocketAddr,
    address: impl Fn(&S) -> io::Result<SocketAddr>,
) -> Option<S> {
    let fits = |(its, socket): &(Option<What>, S)| {
        let is_there =
            address(socket).is_ok_and(|there| there == wanted || (wanted.port() == 0 && there.ip() == wanted.ip()));
        its.is_none_or(|its| its == what) && is_there
    };
    let found = sockets.iter().position(fits)?;
    Some(sockets.swap_remove(found).1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[tokio::test]
    async fn each_listener_goes_to_whoever_listens_at_its_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut sockets = Sockets::default();
        let mut add = |what: Option<What>| {
            let listener = TcpListener::bind(any).unwrap();
            let address = listener.local_addr().unwrap();
            sockets.tcp.push((what, listener));
            address
        };
        let (http, https, unnamed) = (add(Some(What::Http)), add(Some(What::Https)), add(None));
        let udp = UdpSocket::bind(any).unwrap();
        let dns = udp.local_addr().unwrap();
        sockets.add(What::Dns, udp.into()).unwrap();

        let mut tcp = |what, address| Some(sockets.take_tcp(what, address)?.unwrap().local_addr().unwrap());
        assert_eq!(tcp(What::Admin, http), None, "it is for something else");
        assert_eq!(tcp(What::Http, "127.0.0.2:0".parse().unwrap()), None);
        assert_eq!(tcp(What::Admin, unnamed), Some(unnamed), "systemd does not say what it is for");
        assert_eq!(tcp(What::Https, any), Some(https), "any port");
        assert_eq!(tcp(What::Http, http), Some(http));
        assert_eq!(tcp(What::Http, http), None, "it is taken");
        assert_eq!(sockets.take_udp(What::Dns, dns).unwrap().unwrap().local_addr().unwrap(), dns);
    }
}
