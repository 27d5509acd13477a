//! What is known before anything is looked at: the configuration, the relay that runs, and the ways to the world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpStream;

use super::finding::Finding;
use crate::config::{CertificateSource, Config, OwnDns};
use crate::control::{Control, Reply, Request};
use crate::dns::{self, Lookup, PlaceError};
use crate::outgoing::{self, Outgoing, OutgoingError};
use crate::status::Status;

/// What is looked at.
#[derive(Debug)]
pub(super) struct Patient {
    pub(super) config: Config,
    /// The relay that runs on the data directory, or why that is not known.
    pub(super) running: Result<Option<Status>, String>,
    /// None where nobody is to be asked.
    pub(super) lookup: Option<Lookup>,
    /// The addresses under which the world sees this machine.
    pub(super) public: Result<Vec<IpAddr>, PlaceError>,
    /// Judges certificates as clients do.
    pub(super) judge: Arc<WebPkiServerVerifier>,
    /// The way to the authority.
    pub(super) outgoing: Outgoing,
}

/// Where a host of the relay's is reached; nowhere where its name leads nowhere and no relay runs.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) addresses: Vec<SocketAddr>,
    /// Why it is not the way that others take, if it is not.
    pub(super) detour: Option<String>,
}

impl Patient {
    pub(super) async fn new(config: Config, relay_ca: Option<&Path>) -> Result<Self, OutgoingError> {
        let (authority, own) = match &config.certificate {
            CertificateSource::Acme(acme) => (acme.ca.clone(), None),
            CertificateSource::Development { dir } => (None, Some(dir.join("ca.pem")).filter(|path| path.exists())),
            CertificateSource::Files { .. } => (None, None),
        };
        let roots = outgoing::roots(relay_ca.or(own.as_deref()))?;
        Ok(Self {
            running: running(config.data_dir.as_deref()).await,
            lookup: Lookup::new(config.resolver),
            public: dns::seen_as(&config.public_ips, config.https),
            judge: judge(roots)?,
            outgoing: Outgoing::new(authority.as_deref())?,
            config,
        })
    }

    /// The relay that runs.
    pub(super) fn status(&self) -> Option<&Status> {
        self.running.as_ref().ok().and_then(Option::as_ref)
    }

    /// Whether the relay is for more than this machine.
    pub(super) fn is_public(&self) -> bool {
        // Without HTTPS a proxy has the certificate.
        self.config.https.is_none() || !matches!(self.config.certificate, CertificateSource::Development { .. })
    }

    /// Whether this connection leads to the relay itself, from an address of which it wants a PROXY header.
    pub(super) fn is_taken_for_a_proxy(&self, connection: &TcpStream) -> bool {
        let is_trusted = |ip| self.config.trusted_proxies.iter().any(|network| network.contains(ip));
        let bound = self.status().and_then(|status| status.https);
        self.config.proxy_protocol
            && connection.local_addr().is_ok_and(|own| is_trusted(own.ip()))
            && connection.peer_addr().is_ok_and(|to| Some(to.port()) == bound.map(|at| at.port()) && is_own(to.ip()))
    }

    /// The relay's own name server, where it is to have one.
    pub(super) fn own_dns(&self) -> Option<&OwnDns> {
        match &self.config.certificate {
            CertificateSource::Acme(acme) => acme.dns.own(),
            CertificateSource::Files { .. } | CertificateSource::Development { .. } => None,
        }
    }

    /// The port in public URLs.
    pub(super) fn port(&self) -> u16 {
        let bound = self.status().and_then(|status| status.https).or(self.config.https);
        self.config.public_port.or(bound.map(|address| address.port())).unwrap_or(443)
    }

    /// The public authority of a host: with the port where it is not 443.
    pub(super) fn authority(&self, host: &str) -> String {
        let url = self.config.public_url(host, self.port());
        url.trim_start_matches("https://").to_owned()
    }

    /// How the world comes to a host of the relay's; where that is not known, how this machine does.
    pub(super) async fn way(&self, host: &str) -> Way {
        let port = self.port();
        let found = match (&self.lookup, dns::absolute(host)) {
            (Some(lookup), Ok(name)) => lookup.addresses(&name).await.map_err(|error| error.to_string()),
            (_, Err(error)) => Err(error.to_string()),
            (None, Ok(_)) => Err("nobody is asked for names".to_owned()),
        };
        let why = match found {
            Ok(found) if !found.is_empty() => {
                let addresses = found.into_iter().map(|ip| SocketAddr::from((ip, port))).collect();
                return Way { addresses, detour: None };
            }
            Ok(_) => "its name leads nowhere".to_owned(),
            Err(error) => error,
        };
        let bound = self.status().and_then(|status| status.https).map(reachable);
        Way { addresses: bound.into_iter().collect(), detour: Some(why) }
    }

    /// What runs.
    pub(super) fn relay(&self) -> Finding {
        const CHECK: &str = "relay";
        let dir = self.config.data_dir.as_deref().unwrap_or(Path::new("")).display();
        match &self.running {
            Err(error) => {
                Finding::unknown(CHECK, error).mend(["sudo relay-server doctor ..., or as the relay's own user"])
            }
            Ok(None) => Finding::unknown(CHECK, format!("no relay runs on {dir}, so that less can be told"))
                .mend(["relay-server serve ..., or --data-dir of the one that runs"]),
            Ok(Some(Status { version, process, url, ready: true, trouble: None, note, .. })) => {
                let found = format!("version {version} runs on {dir} (process {process}) as {url}");
                match note {
                    None => Finding::ok(CHECK, found),
                    Some(note) => Finding::note(CHECK, format!("{found}; {note}")),
                }
            }
            Ok(Some(Status { ready, trouble, .. })) => {
                let trouble = trouble.as_deref().unwrap_or("it does not say why");
                let state = if *ready { "runs, but" } else { "is not ready:" };
                Finding::wrong(CHECK, format!("the relay on {dir} {state} {trouble}"))
            }
        }
    }
}

/// Asks whoever has the data directory.
async fn running(directory: Option<&Path>) -> Result<Option<Status>, String> {
    let Some(directory) = directory else { return Ok(None) };
    let Some(relay) = Control::find(directory).await.map_err(|error| error.to_string())? else { return Ok(None) };
    match relay.request(Request::Status).await {
        Ok(Reply::Status(status)) => Ok(Some(*status)),
        Ok(Reply::Refused { message, .. }) => Err(message),
        Ok(_) => {
            Err("the relay gave an answer that does not fit: restart it, so that both are of one version".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn judge(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, OutgoingError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| OutgoingError::NoRoots { reason: error.to_string() })
}

/// Where this machine reaches what listens there.
pub(super) fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port())),
        _ => bound,
    }
}

/// Whether this machine has the address itself, and not a router before it.
pub(super) fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}
