//! The relay: a public HTTPS edge whose tunnels end at localhost.
//!
//! ```text
//!   public HTTPS ──▶ edge ──▶ inbox ──▶ tunnels ──▶ the client's WebSocket
//!                     │                    ▲
//!                     └─ certs          session ──▶ store: tokens and names
//! ```
//!
//! A test embeds it by [`Relay::start`]; programs that want a say in how it ends use [`Relay::bind`] and [`Relay::run`].
//!
//! What the documentation does not show is the `relay-server` program's own, and may change with every version.

#[doc(hidden)]
pub mod admin;
mod alert;
mod cause;
#[doc(hidden)]
pub mod certs;
pub mod config;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod dns;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod edge;
mod inbox;
#[doc(hidden)]
pub mod inbox_cli;
#[doc(hidden)]
pub mod init;
mod judge;
pub mod log;
#[doc(hidden)]
pub mod outgoing;
mod places;
mod running;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod status;
pub mod store;
#[doc(hidden)]
pub mod token_cli;
mod tunnels;

pub use self::running::RunningRelay;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use relay_protocol::webhook::{Table, TableError};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admin::metrics::Metrics;
use self::certs::Certificates;
use self::certs::acme::Acme;
use self::config::{AcmeConfig, CertificateSource, Config, Limits};
use self::control::{Change, Data};
use self::edge::Purpose;
use self::edge::connect::Refusals;
use self::edge::janitor::Janitor;
use self::edge::room::Room;
use self::inbox::Inboxes;
use self::inbox::records::Records;
use self::log::AccessLog;
use self::outgoing::Outgoing;
use self::places::Places;
use self::session::Sessions;
use self::status::Present;
use self::store::{Store, StoreError, TokenSummary};
use self::tunnels::Registry;

/// How long tasks that were told to end have to do so.
const LAST_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 4096;

/// What every part of a running relay shares.
#[derive(Debug)]
pub(crate) struct Shared {
    config: Config,
    limits: Arc<Limits>,
    /// Who sends webhooks, and how long each waits.
    providers: Table,
    /// For bodies that are held until their signatures are judged.
    judging: Arc<Room>,
    /// In public URLs.
    https_port: u16,
    certificates: Arc<Certificates>,
    store: Store,
    inboxes: Arc<Inboxes>,
    registry: Registry,
    sessions: Sessions,
    places: Places,
    janitor: Janitor,
    refusals: Refusals,
    turns: edge::api::Turns,
    metrics: Metrics,
    access: AccessLog,
    /// Every task of the relay, so that none outlives it.
    tasks: TaskTracker,
    /// No new work is taken.
    stopping: CancellationToken,
    /// What is under way is given up.
    closing: CancellationToken,
}

impl Shared {
    /// The name of the tunnel that `host` is for, if it can be one: a single label below the base domain.
    fn name_of<'a>(&'a self, host: &'a str) -> Option<&'a str> {
        match host.strip_suffix(self.config.domain.as_str()).and_then(|rest| rest.strip_suffix('.')) {
            Some(name) if !name.is_empty() && !name.contains('.') => Some(name),
            Some(_) => None,
            None => {
                self.config.localhost_tunnel.as_deref().filter(|_| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
            }
        }
    }

    /// Whether the relay takes no new work.
    fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Whether `peer` is a proxy whose forwarded headers are believed.
    fn trusts(&self, peer: std::net::IpAddr) -> bool {
        self.config.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    /// Runs a task that the relay owns. A panic in it ends nobody else's, and is counted: it is a bug.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let shared = self.clone();
        self.tasks.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                shared.metrics.panics.inc();
                tracing::error!("a task panicked; this is a bug in the relay");
            }
        })
    }

    /// Does what a change of tokens and names means for those who are connected or expected.
    async fn follow(self: Arc<Self>, change: Change) -> Result<(), StoreError> {
        match change {
            Change::Created(_) => inbox::hand_over(&self).await?,
            Change::Revoked(token) => {
                self.sessions.end(token, relay_protocol::frame::GoAway::Revoked, "The token was revoked.");
                self.registry.revoke(token);
                inbox::revoke(&self, token);
            }
            Change::Reserved { token, names, provider, inbox } => {
                for name in names.iter().map(store::Name::as_str) {
                    self.registry.reserve(name, token, provider.as_deref());
                    inbox::open_reserved(&self, name, token, inbox.as_ref(), provider.as_deref()).await?;
                }
            }
            Change::Released { names } => {
                for name in names.iter().map(store::Name::as_str) {
                    self.registry.release(name);
                    inbox::close(&self.inboxes, name, None).await?;
                }
            }
        }
        Ok(())
    }

    fn public_url(&self, host: &str) -> String {
        self.config.public_url(host, self.https_port)
    }
}

/// An error's text as a sentence.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({what}): {error}{}", hint(.error, .address))]
    Listen {
        /// What it is for: the flag's name.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Tokens and names cannot be read.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The store did not answer.
    #[error(transparent)]
    StoreRead(#[from] store::StoreError),
    /// There is no usable certificate.
    #[error(transparent)]
    Certificate(#[from] certs::CertificateError),
    /// Certificates cannot be asked for.
    #[error(transparent)]
    Acme(#[from] certs::AcmeError),
    /// There is no development CA.
    #[error(transparent)]
    DevCa(#[from] certs::DevCaError),
    /// Another relay uses the data directory, or its socket cannot be made.
    #[error(transparent)]
    Control(#[from] control::ControlError),
    /// What is known of providers cannot be read.
    #[error(transparent)]
    Providers(#[from] TableError),
    /// Alerts could not be sent.
    #[error("alerts cannot be sent: {0}")]
    Alerts(#[from] outgoing::OutgoingError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

fn hint(error: &io::Error, address: &SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "; ports below 1024 need the right to bind them: choose another port, or grant it with `setcap cap_net_bind_service=+ep`, not {}",
                address.port()
            )
        }
        io::ErrorKind::AddrInUse => "; another program listens there: stop it, or choose another port".into(),
        _ => String::new(),
    }
}

/// A relay that is bound to its addresses and not yet running.
pub struct Relay {
    shared: Arc<Shared>,
    ca_file: Option<std::path::PathBuf>,
    acme: Option<(Acme, dns::Server)>,
    control: Option<control::Listener>,
    /// The inboxes that there were when the relay stopped.
    waiting: Vec<inbox::records::Inbox>,
    https: Option<(TcpListener, TlsAcceptor)>,
    http: Option<TcpListener>,
    admin: Option<TcpListener>,
    alerts: Option<Outgoing>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Relay {
    /// Opens the store, loads the certificate and binds every address. Port 0 becomes a free one.
    ///
    /// # Errors
    /// [`StartError`] says what is in the way.
    pub async fn bind(config: Config, access: AccessLog) -> Result<Self, StartError> {
        let control = match &config.data_dir {
            Some(dir) => Some(control::Listener::bind(dir).await?),
            None => None,
        };
        let store = match &config.data_dir {
            Some(dir) => Store::open(dir).await?,
            None => Store::in_memory()?,
        };
        let records = match config.data_dir.clone() {
            Some(dir) => Records::open(&dir, config.limits.inbox_free)?,
            None => Records::temporary()?,
        };
        let inboxes = Arc::new(Inboxes::new(records, &config.limits));
        let (mut ca_file, mut acme) = (None, None);
        let certificates = match &config.certificate {
            CertificateSource::Files { cert, key } => Arc::new(Certificates::from_files(cert, key)?),
            CertificateSource::Acme(settings) => {
                let (keeper, server) = self::acme(settings, &config)?;
                acme.insert((keeper, server)).0.certificates().clone()
            }
            CertificateSource::Development { dir } => {
                let ca = certs::DevCa::load_or_create(dir, &config.domain)?;
                ca_file = Some(ca.ca_file());
                Arc::new(ca.certificates())
            }
        };
        let https = match config.https {
            Some(address) => Some((listen("--https", address)?, TlsAcceptor::from(tls(certificates.clone())?))),
            None => None,
        };
        let https_port = https.as_ref().and_then(|(listener, _)| listener.local_addr().ok()).map_or(443, |a| a.port());
        let limits = Arc::new(config.limits.clone());
        let shared = Arc::new(Shared {
            places: Places::new(limits.connections, limits.connections_per_address),
            judging: Room::new(limits.verify_bytes, limits.session_streams as usize),
            providers: Table::built_in()?,
            limits,
            https_port,
            certificates,
            store,
            inboxes,
            registry: Registry::default(),
            sessions: Sessions::default(),
            janitor: Janitor::default(),
            refusals: Refusals::default(),
            turns: edge::api::Turns::default(),
            metrics: Metrics::new(),
            access,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            closing: CancellationToken::new(),
            config,
        });
        // Names that belong to somebody are away, not unknown: their clients come back after a restart.
        let ended: HashSet<_> = shared.store.ended(store::unix_now()).await?.into_iter().collect();
        for TokenSummary { token, reserved, leased, providers } in shared.store.list_tokens(store::unix_now()).await? {
            leased.iter().for_each(|name| shared.registry.expect(name.as_str()));
            for name in reserved {
                shared.registry.reserve(name.as_str(), token.id, providers.get(&name).map(String::as_str));
            }
        }
        shared.inboxes.records().hand_over(shared.store.heirs().await?).await?;
        let mut waiting = shared.inboxes.records().inboxes().await?;
        // Nobody could take what came for a token that has ended.
        waiting.retain(|inbox| !ended.contains(&inbox.token));
        let http = shared.config.http.map(|address| listen("--http", address)).transpose()?;
        let admin = shared.config.admin.map(|address| listen("--admin", address)).transpose()?;
        let alerts = shared.config.alert.as_ref().map(|_| Outgoing::new(None)).transpose()?;
        Ok(Self { shared, ca_file, acme, control, waiting, https, http, admin, alerts })
    }

    /// Where HTTPS is served.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Where plain HTTP is served.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where health and metrics are served.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where DNS is answered.
    pub fn dns_addrs(&self) -> Vec<SocketAddr> {
        self.acme.iter().flat_map(|(_, server)| server.addresses()).collect()
    }

    /// The development CA's certificate, where one is used.
    pub fn ca_file(&self) -> Option<&std::path::Path> {
        self.ca_file.as_deref()
    }

    /// The relay's own public URL: what a client's `--relay` says.
    pub fn url(&self) -> String {
        self.shared.public_url(&self.shared.config.domain)
    }

    /// Tokens and names, for a program that embeds the relay.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Serves until `shutdown` ends, then drains: no new work is taken, clients are told, what is under way may finish
    /// within [`Limits::drain`], and the rest is given up. Dropping the future gives everything up at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (https, http, admin, dns) = (self.https_addr(), self.http_addr(), self.admin_addr(), self.dns_addrs());
        let present = Present { shared: self.shared.clone(), https, http, admin, dns };
        let Self { shared, acme, control, waiting, https, http, admin, alerts, .. } = self;
        let tasks = shared.tasks.clone();
        let (ended, stop) = (shared.closing.clone(), CancellationToken::new());
        // The tasks are nobody's children: whoever drops this future, as `select!` does, ends them too.
        let _end = [&shared.stopping, &ended, &stop].map(|token| token.clone().drop_guard());
        inbox::start(&shared, waiting);
        if let Some((listener, acceptor)) = https {
            tasks.spawn(edge::serve(shared.clone(), listener, Purpose::Https(acceptor)));
        }
        if let Some(listener) = http {
            tasks.spawn(edge::serve(shared.clone(), listener, Purpose::Http(shared.config.http_mode)));
        }
        if let Some(listener) = admin {
            tasks.spawn(admin::serve(shared.clone(), listener));
        }
        if let Some(listener) = control {
            let (owner, closing) = (shared.clone(), ended.clone());
            tasks.spawn(async move {
                let (store, inboxes) = (owner.store.clone(), owner.inboxes.clone());
                let data = Data { store, inboxes, present: Some(present) };
                let changed = move |change| owner.clone().follow(change).boxed();
                listener.serve(data, Arc::new(changed), closing).await;
            });
        }
        if let Some((keeper, server)) = acme {
            server.serve(&shared);
            shared.spawn(keeper.run(shared.clone()));
        }
        let (watch, closing) = (shared.certificates.clone(), ended.clone());
        tasks.spawn(async move { watch.watch(closing).await });
        tasks.spawn(inbox::sweep(shared.clone()));
        if let Some(outgoing) = alerts {
            shared.spawn(alert::run(shared.clone(), outgoing));
        }
        let (janitor, closing) = (shared.clone(), ended.clone());
        tasks.spawn(async move { janitor.janitor.run(&janitor.limits, &janitor.registry, closing).await });
        let (access, last) = (shared.access.clone(), stop.clone());
        let logging = tokio::spawn(async move { access.run(last).await });

        shutdown.await;
        // Readiness first, so that nobody sends more here; then listeners, keep-alive connections and clients.
        shared.stopping.cancel();
        tasks.close();
        tracing::info!(wait_s = shared.limits.drain.as_secs(), "shutting down: waiting for what is under way");
        let drained = async {
            while shared.sessions.count() > 0 || shared.places.taken() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(shared.limits.drain, drained).await.is_err() {
            tracing::warn!("shutting down: giving up what is still under way");
        }
        shared.closing.cancel();
        if tokio::time::timeout(LAST_WAIT, tasks.wait()).await.is_err() {
            tracing::error!(tasks = tasks.len(), "shutting down: some tasks do not end");
        }
        // What is noted of the last deliveries is on disk before the next relay reads it.
        shared.inboxes.records().close().await;
        stop.cancel();
        // It only flushes; a panic there has been reported already.
        let _ = logging.await;
    }
}

/// Who keeps the certificate fresh, and the name server that proves whose the domain is.
fn acme(settings: &AcmeConfig, config: &Config) -> Result<(Acme, dns::Server), StartError> {
    let public = dns::seen_as(&config.public_ips, config.https).map_err(certs::AcmeError::from)?;
    let addresses = if settings.dns.is_empty() { dns::listen_at(&public) } else { settings.dns.clone() };
    let records = dns::records(&config.domain, &settings.dns_name, &public);
    // It grows as long as clocks do not go back, and nobody transfers the zone.
    let serial = u32::try_from(store::unix_now()).unwrap_or_default();
    let wrong = |error: hickory_proto::ProtoError| certs::AcmeError::Zone(error.to_string());
    let parent = dns::Lookup::new(config.resolver)
        .map(|lookup| dns::Parent::new(lookup, &config.domain, &settings.dns_name, public.clone()));
    let parent = parent.transpose().map_err(wrong)?;
    let zone = dns::Zone::new(&config.domain, &settings.dns_name, public, serial);
    let zone = Arc::new(zone.map_err(wrong)?);
    let server = dns::Server::bind(&addresses, zone.clone())?;
    Ok((Acme::open(settings, &config.domain, records, zone, parent)?, server))
}

fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for the last connections' timeouts.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|error| StartError::Listen { what, address, error })
}

/// TLS for the public side: HTTP/2 and HTTP/1.1, and AES-128 first, which is as safe here and cheaper with every
/// handshake.
fn tls(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut provider: CryptoProvider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let preferred = [
            cipher_suite::TLS13_AES_128_GCM_SHA256.suite(),
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256.suite(),
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256.suite(),
        ];
        !preferred.contains(&suite.suite())
    });
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    /// A relay on free ports of loopback, whose data is gone with it.
    pub(crate) async fn relay(ca: &std::path::Path) -> Relay {
        let free = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let config = Config { admin: free, ..Config::on_loopback("relay.test", ca) };
        Relay::bind(config, AccessLog::off()).await.unwrap()
    }

    #[tokio::test]
    async fn a_relay_whose_run_is_dropped_leaves_nothing_behind() {
        let ca = tempfile::tempdir().unwrap();
        let relay = relay(ca.path()).await;
        let addresses = [relay.https_addr().unwrap(), relay.http_addr().unwrap(), relay.admin_addr().unwrap()];
        let tasks = relay.shared.tasks.clone();
        let running = tokio::spawn(relay.run(std::future::pending()));
        let mut connections = Vec::new();
        for address in addresses {
            // One that says nothing: it waits in the TLS handshake, or for a request.
            connections.push(TcpStream::connect(address).await.unwrap());
        }
        timeout(Duration::from_secs(5), async {
            // Three listeners, the janitor, and a task for each connection.
            while tasks.len() < 7 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        tasks.close();
        timeout(Duration::from_secs(5), tasks.wait()).await.expect("the relay's tasks end");
        for (mut connection, address) in connections.into_iter().zip(addresses) {
            let mut rest = Vec::new();
            let _ = timeout(Duration::from_secs(5), connection.read_to_end(&mut rest)).await.expect("it is closed");
            assert!(TcpStream::connect(address).await.is_err(), "nobody listens at {address}");
        }
    }
}
