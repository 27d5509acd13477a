//! Whether the ports, and the socket in the place of one, are the relay's, or whose they are, and whether they answer under the public addresses.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use hickory_proto::rr::RecordType;
use http::uri::Authority;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::finding::Finding;
use super::holder::{Kind, holder};
use super::patient::{Patient, is_own, reachable};
use crate::config::AdminAddr;
use crate::status::Status;
use crate::{dns, outgoing};

/// For a connection to this machine itself, through a router at most.
const WITHIN: Duration = Duration::from_secs(3);

/// What of the admin address is looked at, which may be a Unix socket.
const ADMIN: &str = "port.admin";

/// A port as it is configured.
struct Port {
    check: &'static str,
    flag: &'static str,
    address: SocketAddr,
    /// Where the relay that runs has it.
    bound: Option<SocketAddr>,
    /// The port under which the world comes to it, if it does.
    public: Option<u16>,
    /// What else it is bound for.
    udp: bool,
}

pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    let (config, status) = (&patient.config, patient.status());
    let bound = |which: fn(&Status) -> Option<SocketAddr>| status.and_then(which);
    let port = |check, flag, address, bound, public| Port { check, flag, address, bound, public, udp: false };
    let mut ports = Vec::new();
    if let Some(address) = config.https {
        let public = patient.is_public().then(|| patient.port());
        ports.push(port("port.https", "--https", address, bound(|status| status.https), public));
    }
    if let Some(address) = config.http {
        let bound = bound(|status| status.http);
        // Behind a proxy, and on loopback, the world does not come to it.
        let is_public = patient.is_public() && config.https.is_some() && !address.ip().is_loopback();
        let public = is_public.then(|| bound.unwrap_or(address).port());
        ports.push(port("port.http", "--http", address, bound, public));
    }
    if let Some(own) = patient.own_dns() {
        let public = patient.public.as_deref().unwrap_or_default();
        let all = if own.listen.is_empty() { dns::listen_at(public) } else { own.listen.clone() };
        for address in all {
            let is_it = |other: &SocketAddr| address.port() == 0 || *other == address;
            let bound = status.and_then(|status| status.dns.iter().copied().find(is_it));
            let port = port("port.dns", "--dns", address, bound, Some(53));
            ports.push(Port { udp: true, ..port });
        }
    }
    if let Some(AdminAddr::Tcp(address)) = config.admin {
        let bound = bound(|status| status.admin.as_ref().and_then(AdminAddr::tcp));
        ports.push(port(ADMIN, "--admin", address, bound, None));
    }
    let mut findings = Vec::with_capacity(ports.len());
    for port in ports {
        findings.push(port.look(patient).await);
    }
    if let Some(AdminAddr::Unix(path)) = &config.admin {
        findings.push(socket(path, patient).await);
    }
    findings
}

impl Port {
    async fn look(&self, patient: &Patient) -> Finding {
        let Self { check, flag, address, bound, .. } = self;
        let fits = |bound: &SocketAddr| address.port() == 0 || bound == address;
        match (patient.status(), bound.filter(fits)) {
            (None, _) => self.is_free(patient.running.is_err()),
            (Some(_), None) => {
                Finding::wrong(check, format!("the relay that runs does not listen on {address} ({flag})"))
                    .mend(["restart it, so that it does as it is configured"])
            }
            (Some(_), Some(bound)) => self.answers(patient, bound).await,
        }
    }

    /// Whether the relay will have it; with `doubt`, it may be the relay who has it.
    fn is_free(&self, doubt: bool) -> Finding {
        let Self { check, flag, address, udp, .. } = self;
        let kinds = if *udp { &[Kind::Tcp, Kind::Udp][..] } else { &[Kind::Tcp] };
        let taken = kinds.iter().find_map(|kind| Some((*kind, try_bind(*kind, *address).err()?)));
        let Some((kind, error)) = taken else {
            return Finding::ok(check, format!("{address} is free, for the relay to listen on ({flag})"));
        };
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let holder = holder(kind, *address);
                let who = holder.as_deref().unwrap_or("another program, which only root is told,");
                let found = format!("{who} listens on {address} ({flag})");
                match holder {
                    None if doubt => Finding::unknown(check, found),
                    Some(who) if who.starts_with("relay-server ") => {
                        Finding::wrong(check, found).mend(["give the --data-dir of that relay, or stop it"])
                    }
                    _ => Finding::wrong(check, found).mend([format!("stop it, or choose another {flag}")]),
                }
            }
            io::ErrorKind::PermissionDenied => Finding::unknown(
                check,
                format!(
                    "this user may not listen on {address} ({flag}); whether the relay's user may is another question"
                ),
            )
            .mend(["setcap cap_net_bind_service=+ep /usr/local/bin/relay-server"]),
            _ => Finding::wrong(check, format!("nobody can listen on {address} ({flag}): {error}")),
        }
    }

    /// Whether it answers there, and where the world looks for it.
    async fn answers(&self, patient: &Patient, bound: SocketAddr) -> Finding {
        let Self { check, flag, udp, .. } = self;
        let at = reachable(bound);
        if let Err(error) = knock(at, *udp, patient).await {
            return Finding::wrong(
                check,
                format!("the relay listens on {bound} ({flag}), and {at} does not answer: {error}"),
            )
            .mend([format!("let this machine's own firewall pass what comes to {at}")]);
        }
        let listens = format!("the relay listens on {bound}");
        let (Some(port), Ok(public)) = (self.public, &patient.public) else {
            return Finding::ok(check, listens);
        };
        for ip in public {
            let to = SocketAddr::from((*ip, port));
            let Err(error) = knock(to, *udp, patient).await else { continue };
            let forward = format!("forward port {port} of {ip} to port {} of this machine", bound.port());
            // A router before it may not let a machine come to itself through it.
            return if is_own(*ip) {
                Finding::wrong(check, format!("{listens}, and {to} does not answer: {error}"))
                    .mend([format!("{flag} {to}, or a firewall rule that lets it pass")])
            } else {
                Finding::unknown(
                    check,
                    format!("{listens}; whether the world reaches {to} is not seen from here: {error}"),
                )
                .mend([forward])
            };
        }
        let answered: Vec<_> = public.iter().map(|ip| SocketAddr::from((*ip, port)).to_string()).collect();
        match public.iter().all(|ip| is_own(*ip)) {
            true => Finding::ok(check, format!("{listens}; {} answers to this machine", answered.join(", "))),
            false => Finding::ok(check, format!("{listens}, and is reached as {}", answered.join(", "))),
        }
    }
}

/// Whether somebody answers there.
async fn knock(to: SocketAddr, udp: bool, patient: &Patient) -> Result<(), String> {
    let connected = timeout(WITHIN, TcpStream::connect(to)).await;
    connected.map_err(|_| format!("no answer within {} s", WITHIN.as_secs()))?.map_err(|error| error.to_string())?;
    if udp {
        let domain = dns::absolute(&patient.config.domain).map_err(|error| error.to_string())?;
        dns::ask(to, &domain, RecordType::SOA, false).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Whether the relay answers on its Unix socket; without a relay, whether nobody else does.
async fn socket(path: &Path, patient: &Patient) -> Finding {
    let at = format!("unix:{}", path.display());
    let asked = ask(path).await;
    match (patient.status(), asked) {
        (Some(status), _) if status.admin != Some(AdminAddr::Unix(path.to_owned())) => {
            Finding::wrong(ADMIN, format!("the relay that runs does not listen on {at} (--admin)"))
                .mend(["restart it, so that it does as it is configured"])
        }
        (Some(_), Ok(())) => Finding::ok(ADMIN, format!("the relay listens on {at}")),
        (Some(_), Err(error)) => {
            Finding::wrong(ADMIN, format!("the relay listens on {at} (--admin), and does not answer there: {error}"))
                .mend(["restart it: whoever has removed or replaced the file has taken the way to it"])
        }
        (None, Ok(())) if patient.running.is_err() => {
            Finding::unknown(ADMIN, format!("a program, which may be the relay, listens on {at} (--admin)"))
        }
        (None, Ok(())) => Finding::wrong(ADMIN, format!("another relay listens on {at} (--admin)"))
            .mend(["give the --data-dir of that relay, or choose another --admin"]),
        // What a relay has left there that was killed gives way to the next one.
        (None, Err(_)) => match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                Finding::wrong(ADMIN, format!("{} is there, and is no socket (--admin)", path.display()))
                    .mend(["remove it, or choose another --admin"])
            }
            _ => Finding::ok(ADMIN, format!("{at} is free, for the relay to listen on (--admin)")),
        },
    }
}

/// Whether a relay answers there.
async fn ask(path: &Path) -> Result<(), String> {
    let asked = async {
        let connection = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        let request = http::Request::get("/healthz").body(Bytes::new()).map_err(|error| error.to_string())?;
        let to = path.display().to_string();
        let answer =
            outgoing::exchange(connection, &to, &Authority::from_static("localhost"), request, outgoing::BODY).await;
        match answer.map_err(|error| error.to_string())?.status() {
            http::StatusCode::OK => Ok(()),
            status => Err(format!("it says {status} to GET /healthz")),
        }
    };
    timeout(WITHIN, asked).await.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())))
}

/// Takes it and lets it go.
fn try_bind(kind: Kind, address: SocketAddr) -> io::Result<()> {
    match kind {
        Kind::Udp => std::net::UdpSocket::bind(address).map(drop),
        // As the relay does: what is left of ended connections is nobody's.
        Kind::Tcp => {
            let family = match address.ip() {
                IpAddr::V4(_) => socket2::Domain::IPV4,
                IpAddr::V6(_) => socket2::Domain::IPV6,
            };
            let socket = socket2::Socket::new(family, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(1)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_port_is_free_or_somebodys() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let port = Port { check: "port.http", flag: "--http", address, bound: None, public: None, udp: false };
        let taken = port.is_free(false);
        let own = format!("(process {}) listens on {address} (--http)", std::process::id());
        assert!(taken.verdict == Verdict::Wrong && taken.found.ends_with(&own), "{taken:?}");
        drop(listener);
        assert_eq!(port.is_free(false).verdict, Verdict::Ok);
        let elsewhere = Port { address: "192.0.2.250:0".parse().unwrap(), ..port };
        assert_eq!(elsewhere.is_free(false).verdict, Verdict::Wrong, "this machine does not have it");
    }
}
