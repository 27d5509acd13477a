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
#[doc(hidden)]
pub mod audit;
#[doc(hidden)]
pub mod audit_cli;
#[doc(hidden)]
pub mod backup;
#[doc(hidden)]
pub mod block_cli;
#[doc(hidden)]
pub mod blocks;
mod cause;
#[doc(hidden)]
pub mod certs;
mod clock;
pub mod config;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod descriptors;
#[doc(hidden)]
pub mod dns;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod edge;
mod histogram;
mod inbox;
#[doc(hidden)]
pub mod inbox_cli;
#[doc(hidden)]
pub mod init;
mod judge;
mod limits;
mod line;
pub mod log;
#[doc(hidden)]
pub mod notify;
mod oidc;
#[doc(hidden)]
pub mod outgoing;
mod pace;
mod places;
#[doc(hidden)]
pub mod program;
mod quota;
#[doc(hidden)]
pub mod reload;
mod running;
#[doc(hidden)]
pub mod service_cli;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod session_cli;
#[doc(hidden)]
pub mod status;
pub mod store;
#[doc(hidden)]
pub mod succession;
mod table;
#[doc(hidden)]
pub mod token_cli;
mod traces;
mod tunnels;

pub use self::running::RunningRelay;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use relay_protocol::webhook::{Table, TableError};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::admin::api::Api;
use self::admin::metrics::Metrics;
use self::blocks::Blocks;
use self::certs::Certificates;
use self::certs::acme::{Acme, Around, Challenge, Domains, Hook, Publisher};
use self::config::{AcmeConfig, AdminAddr, CertificateSource, Config, DnsConfig, Limits, OwnDns};
use self::control::{Change, Desk};
use self::descriptors::{Sockets, What};
use self::edge::attempts::Attempts;
use self::edge::janitor::Janitor;
use self::edge::room::Room;
use self::edge::{Purpose, Tls};
use self::inbox::Inboxes;
use self::inbox::records::Records;
use self::log::AccessLog;
use self::oidc::{Issuers, OidcError};
use self::outgoing::Outgoing;
use self::places::Places;
use self::program::Program;
use self::quota::Quotas;
use self::reload::{Live, Reloader};
use self::session::Sessions;
use self::status::Present;
use self::store::{Store, StoreError, TokenSummary};
use self::succession::{Candidate, Office, Predecessor};
use self::traces::{Exporter, Tracer};
use self::tunnels::{Loss, Registry};

/// How long tasks that were told to end have to do so.
const LAST_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 4096;

/// What every part of a running relay shares.
#[derive(Debug)]
pub(crate) struct Shared {
    /// As it was when the relay started.
    config: Config,
    /// What of it may be another by now.
    live: watch::Sender<Arc<Live>>,
    /// Who sends webhooks, and how long each waits.
    providers: Table,
    /// For bodies that are held until their signatures are judged.
    judging: Arc<Room>,
    /// In public URLs.
    https_port: u16,
    certificates: Arc<Certificates>,
    /// Custom domains, where the relay gets certificates by itself.
    domains: Option<Arc<Domains>>,
    store: Store,
    inboxes: Arc<Inboxes>,
    registry: Registry,
    sessions: Sessions,
    quotas: Quotas,
    blocks: Blocks,
    places: Places,
    janitor: Janitor,
    /// Tokens that were refused, by address.
    refusals: Attempts,
    /// Logins that came to nothing, by address.
    failed_logins: Attempts,
    turns: edge::api::Turns,
    metrics: Metrics,
    access: AccessLog,
    /// Where exchanges are traced.
    tracer: Option<Tracer>,
    /// Every task of the relay, so that none outlives it.
    tasks: TaskTracker,
    /// Another process serves from now on. No new work is taken then, but for the connections that lead here.
    handed_over: CancellationToken,
    /// No new work is taken.
    stopping: CancellationToken,
    /// Nothing more comes for clients: they are sent away once they have ended what they have.
    leaving: CancellationToken,
    /// What is under way is given up.
    closing: CancellationToken,
    /// The process that this one has taken over from has ended, or there was none.
    alone: CancellationToken,
}

impl Shared {
    /// The name of the tunnel that `host` is for, if it can be one: a single label below the base domain, or a custom domain
    /// that somebody has, or has had.
    fn name_of<'a>(&'a self, host: &'a str) -> Option<&'a str> {
        match host.strip_suffix(self.config.domain.as_str()).and_then(|rest| rest.strip_suffix('.')) {
            Some(name) if !name.is_empty() && !name.contains('.') => Some(name),
            Some(_) => None,
            None if self.is_custom(host) => Some(host),
            None => {
                self.config.localhost_tunnel.as_deref().filter(|_| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
            }
        }
    }

    fn is_custom(&self, host: &str) -> bool {
        self.domains.is_some() && host.contains('.') && self.registry.knows(host)
    }

    /// Has a custom domain among these names get its certificate.
    fn want_certificates<'a>(&self, names: impl IntoIterator<Item = &'a store::Name>) {
        let Some(domains) = &self.domains else { return };
        for name in names.into_iter().filter(|name| name.is_domain()) {
            if name.is_of(&self.config.domain) {
                // It was taken while no relay was there to say no.
                tracing::error!(domain = %name, "a name of the relay's own domain is no custom domain; release it");
                continue;
            }
            if !domains.want(name, self.limits().domains) {
                tracing::error!(domain = %name, "no certificate: there are as many custom domains as limits.domains allows");
            }
        }
    }

    /// Whether the relay takes no new work.
    fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Whether `peer` is a proxy whose forwarded headers are believed.
    fn trusts(&self, peer: std::net::IpAddr) -> bool {
        self.live.borrow().trusted_proxies.iter().any(|network| network.contains(peer))
    }

    /// The limits as they are now.
    fn limits(&self) -> Arc<Limits> {
        self.live.borrow().limits.clone()
    }

    /// Whether another process serves by now.
    fn has_successor(&self) -> bool {
        self.handed_over.is_cancelled()
    }

    /// Whether clients of the process before this one may still be on their way here.
    fn has_predecessor(&self) -> bool {
        !self.alone.is_cancelled()
    }

    /// Does what is one process's to do, until the relay closes or another one does it.
    async fn while_in_charge<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.closing.run_until_cancelled(self.handed_over.run_until_cancelled(work)).await.flatten()
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
            Change::Created(_) => {
                // It may have the name of one that is kept out.
                self.blocks.load(&self.store).await?;
                inbox::hand_over(&self).await?;
            }
            Change::Limited(token) => self.quotas.limit(&self.store, token).await?,
            Change::Blocks => {
                self.blocks.load(&self.store).await?;
                self.keep_out();
                if let Some(domains) = &self.domains {
                    domains.look_at_blocked();
                }
            }
            Change::Revoked(token) => {
                self.sessions.end(token, relay_protocol::frame::GoAway::Revoked, "The token was revoked.");
                self.registry.revoke(token);
                inbox::revoke(&self, token);
                if let Some(domains) = &self.domains {
                    self.store.domains_of(token).await?.iter().for_each(|domain| domains.look_again(domain));
                }
            }
            Change::Reserved { token, names, provider, inbox } => {
                self.want_certificates(&names);
                for name in names.iter().map(store::Name::as_str) {
                    self.registry.reserve(name, token, provider.as_deref());
                    inbox::open_reserved(&self, name, token, inbox.as_deref(), provider.as_deref()).await?;
                }
            }
            Change::Released { names } => {
                if let Some(domains) = &self.domains {
                    names.iter().filter(|name| name.is_domain()).for_each(|name| domains.look_again(name));
                }
                for name in &names {
                    self.registry.release(name.as_str());
                    if name.is_domain() {
                        // It is nobody's at once; other names are for nobody but its client still.
                        self.registry.evict(name.as_str(), Loss::Released, |_| true);
                        self.registry.forget(name.as_str(), None);
                    }
                    inbox::close(&self.inboxes, name.as_str(), None).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends sessions and tunnels of those who are kept out, with what is under way. Their connections end by themselves.
    fn keep_out(&self) {
        self.sessions.keep_out(&self.blocks);
        self.janitor.keep_out(&self.blocks);
        for name in self.blocks.names() {
            self.registry.evict(name.as_str(), Loss::Blocked, |_| true);
        }
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
    /// A Unix socket cannot be listened on.
    #[error("cannot listen on unix:{} (--admin): {error}{}", path.display(), match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: stop it, or choose another path",
        io::ErrorKind::AlreadyExists => "; what is there is no socket: choose another path",
        _ => "",
    })]
    Socket {
        /// The path.
        path: std::path::PathBuf,
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
    /// The secret of the admin API cannot be read or made.
    #[error(transparent)]
    AdminSecret(#[from] control::secret::AdminSecretError),
    /// The relay that runs is not taken over from.
    #[error(transparent)]
    TakeOver(#[from] succession::TakeOverError),
    /// What is known of providers cannot be read.
    #[error(transparent)]
    Providers(#[from] TableError),
    /// Alerts could not be sent.
    #[error("alerts cannot be sent: {0}")]
    Alerts(#[from] outgoing::OutgoingError),
    /// Traces could not be sent.
    #[error("traces cannot be sent: {0}")]
    Traces(outgoing::OutgoingError),
    /// Nobody could log in.
    #[error("oidc: {0}")]
    Oidc(#[from] OidcError),
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
    acme: Option<(Acme, Option<dns::Server>)>,
    control: Option<control::Listener>,
    /// The inboxes that there were when the relay stopped.
    waiting: Vec<inbox::records::Inbox>,
    https: Option<(Arc<TcpListener>, Tls)>,
    http: Option<Arc<TcpListener>>,
    admin: Option<admin::listener::Listener>,
    alerts: Option<Outgoing>,
    exporter: Option<Exporter>,
    office: Office,
    candidates: mpsc::Receiver<Candidate>,
    /// The process that this one has taken over from.
    predecessor: Option<Predecessor>,
    /// It has ended, or there was none.
    alone: DropGuard,
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
        Self::bind_as(config, access, Sockets::default(), None).await
    }

    /// As [`Relay::bind`], by the program that a relay is: on listeners that a service manager has opened, as far as there are
    /// such.
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    pub async fn bind_as(
        config: Config,
        access: AccessLog,
        sockets: Sockets,
        program: Option<Program>,
    ) -> Result<Self, StartError> {
        let control = match &config.data_dir {
            Some(dir) => Some(control::Listener::bind(dir).await?),
            None => None,
        };
        Self::open(config, access, control, sockets, program, true).await
    }

    /// Takes the place of the relay that runs on the same data directory. It accepts no more and delivers no more webhooks once
    /// this one [runs](Relay::run), which has to be at once; see [`succession`]. Where this fails, it goes on.
    ///
    /// # Errors
    /// As of [`Relay::bind`], and where none runs or it does not hand over.
    #[doc(hidden)]
    pub async fn take_over(config: Config, access: AccessLog, program: Option<Program>) -> Result<Self, StartError> {
        let dir = config.data_dir.as_deref().ok_or(succession::TakeOverError::NoDirectory)?;
        let (waiting, control, sockets) = succession::approach(dir).await?.into_parts();
        let mut relay = Self::open(config, access, Some(control), sockets, program, false).await?;
        let (mut predecessor, leased) = waiting.claim().await?;
        predecessor.keep(relay.shared.inboxes.records().leave(leased));
        // What has changed while this process got ready. That it can be read was seen.
        match expected(&relay.shared).await {
            Ok(waiting) => relay.waiting = waiting,
            Err(error) => tracing::error!(%error, "names and inboxes are those of a moment ago"),
        }
        if let Some(control) = &mut relay.control {
            control.claim();
        }
        relay.predecessor = Some(predecessor);
        Ok(relay)
    }

    async fn open(
        config: Config,
        access: AccessLog,
        control: Option<control::Listener>,
        mut sockets: Sockets,
        program: Option<Program>,
        alone: bool,
    ) -> Result<Self, StartError> {
        let (mut ca_file, mut acme, mut domains) = (None, None, None);
        let certificates = match &config.certificate {
            CertificateSource::Files { cert, key } => Arc::new(Certificates::from_files(cert, key)?),
            CertificateSource::Acme(settings) => {
                let (keeper, server) = self::acme(settings, &config, &mut sockets)?;
                domains = Some(keeper.domains().clone());
                acme.insert((keeper, server)).0.certificates().clone()
            }
            CertificateSource::Development { dir } => {
                let ca = certs::DevCa::load_or_create(dir, &config.domain)?;
                // Behind a proxy clients see that one's certificate.
                ca_file = config.https.map(|_| ca.ca_file());
                Arc::new(ca.certificates())
            }
        };
        let https = match config.https {
            Some(address) => {
                let listener = listen("--https", What::Https, address, &mut sockets)?;
                Some((Arc::new(listener), Tls::new(certificates.clone())?))
            }
            None => None,
        };
        let http = config.http.map(|address| listen("--http", What::Http, address, &mut sockets)).transpose()?;
        let http = http.map(Arc::new);
        let admin = config.admin.as_ref().map(|address| listen_for_admin(address, &mut sockets)).transpose()?;
        if let Some(directory) = config.data_dir.as_deref().filter(|_| admin.is_some()) {
            // So that it is there before anybody asks for it.
            control::secret::of(directory)?;
        }
        sockets.close_rest();
        let alerts = config.alert.as_ref().map(|_| Outgoing::new(None)).transpose()?;
        let collector = match &config.traces {
            Some(traces) => Some((traces, Outgoing::new(None).map_err(StartError::Traces)?)),
            None => None,
        };
        let issuers = Issuers::new(&config.oidc, config.data_dir.as_deref())?;
        // Behind all that can fail, because they may be migrated.
        let store = match &config.data_dir {
            Some(dir) => Store::open(dir).await?,
            None => Store::in_memory()?,
        };
        let records = match &config.data_dir {
            Some(dir) if alone => Records::open(dir, config.limits.inbox_free)?,
            Some(dir) => Records::open_beside(dir, config.limits.inbox_free)?,
            None => Records::temporary()?,
        };
        let inboxes = Arc::new(Inboxes::new(records, &config.limits));
        let https_port = https.as_ref().and_then(|(listener, _)| listener.local_addr().ok()).map_or(443, |a| a.port());
        let metrics = Metrics::new(store.commits(), inboxes.records().commits());
        let traced = collector.map(|(traces, outgoing)| {
            Tracer::new(traces, outgoing, metrics.traces_sent.clone(), metrics.traces_dropped.clone())
        });
        let (tracer, exporter) = traced.unzip();
        let limits = &config.limits;
        let shared = Arc::new(Shared {
            places: Places::new(limits.connections, limits.connections_per_address),
            judging: Room::new(limits.verify_bytes, limits.session_streams as usize),
            providers: Table::built_in()?,
            live: Live::of(&config, issuers),
            https_port,
            certificates,
            domains,
            store,
            inboxes,
            registry: Registry::default(),
            sessions: Sessions::default(),
            quotas: Quotas::default(),
            blocks: Blocks::default(),
            janitor: Janitor::default(),
            refusals: Attempts::default(),
            failed_logins: Attempts::default(),
            turns: edge::api::Turns::default(),
            metrics,
            tracer,
            access,
            tasks: TaskTracker::new(),
            handed_over: CancellationToken::new(),
            stopping: CancellationToken::new(),
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
            alone: CancellationToken::new(),
            config,
        });
        let waiting = expected(&shared).await?;
        let listeners = [
            https.as_ref().map(|(listener, _)| (What::Https, descriptors::handle(listener))),
            http.as_ref().map(|listener| (What::Http, descriptors::handle(listener))),
            admin.as_ref().map(|listener| (What::Admin, listener.offer())),
        ];
        let dns = acme.iter().flat_map(|(_, server)| server).flat_map(dns::Server::offer);
        let own = control.iter().flat_map(control::Listener::offer);
        let offer = listeners.into_iter().flatten().chain(dns).chain(own).collect();
        let (program, alone) = (program.map(Arc::new), shared.alone.clone());
        let (office, candidates) = Office::open(program, offer, alone.clone(), shared.handed_over.clone());
        let alone = alone.drop_guard();
        let predecessor = None;
        Ok(Self {
            shared,
            ca_file,
            acme,
            control,
            waiting,
            https,
            http,
            admin,
            alerts,
            exporter,
            office,
            candidates,
            predecessor,
            alone,
        })
    }

    /// Reads the configuration anew when it is told to.
    #[doc(hidden)]
    pub fn reloader(&self) -> Reloader {
        Reloader { shared: self.shared.clone(), program: self.office.program().cloned() }
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
    pub fn admin(&self) -> Option<AdminAddr> {
        // A port of 0 is another one by now.
        let bound = self.admin.as_ref()?.address().map(AdminAddr::from);
        bound.or_else(|| self.shared.config.admin.clone())
    }

    /// As [`Relay::admin`], where it is no socket.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.address()
    }

    /// Where DNS is answered.
    pub fn dns_addrs(&self) -> Vec<SocketAddr> {
        self.acme.iter().flat_map(|(_, server)| server).flat_map(dns::Server::addresses).collect()
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

    /// Serves until `shutdown` ends, or another process takes over, then drains: no new work is taken, clients are told, what
    /// is under way may finish within [`Limits::drain`], and the rest is given up. Dropping the future gives everything up at
    /// once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (https, http, admin, dns) = (self.https_addr(), self.http_addr(), self.admin(), self.dns_addrs());
        let present = Present { shared: self.shared.clone(), https, http, admin, dns };
        let reloader = self.reloader();
        let Self { shared, acme, control, waiting, https, http, admin, alerts, exporter, office, .. } = self;
        let (mut candidates, predecessor, alone) = (self.candidates, self.predecessor, self.alone);
        let tasks = shared.tasks.clone();
        let (ended, stop) = (shared.closing.clone(), CancellationToken::new());
        // The tasks are nobody's children: whoever drops this future, as `select!` does, ends them too.
        let _end = [&shared.leaving, &shared.stopping, &ended, &stop].map(|token| token.clone().drop_guard());
        inbox::start(&shared, waiting);
        let https = https.map(|(listener, tls)| (listener, Purpose::Https(tls)));
        let http = http.map(|listener| (listener, Purpose::Http(shared.config.http_mode)));
        let accept = |(listener, purpose)| tasks.spawn(edge::serve(shared.clone(), listener, purpose));
        let accepting: Vec<_> = https.into_iter().chain(http).map(accept).collect();
        let desk = shared.config.data_dir.as_deref().map(|directory| {
            let (store, inboxes, owner) = (shared.store.clone(), shared.inboxes.clone(), shared.clone());
            let changed = move |change| owner.clone().follow(change).boxed();
            (directory, Desk::new(directory, store, inboxes, Some(present), Arc::new(changed)))
        });
        if let Some(listener) = admin {
            let api = desk.as_ref().map(|(directory, desk)| {
                Api::new(shared.clone(), desk.clone(), directory.to_path_buf(), listener.address())
            });
            tasks.spawn(admin::serve(shared.clone(), listener, api));
        }
        if let Some((listener, (_, desk))) = control.zip(desk) {
            let (closing, handed_over) = (shared.closing.clone(), shared.handed_over.clone());
            tasks.spawn(listener.serve(desk, (reloader, office.clone()), closing, handed_over));
        }
        if let Some((keeper, server)) = acme {
            if let Some(server) = server {
                server.serve(&shared);
            }
            shared.spawn(keeper.run(shared.clone()));
        }
        let (watch, closing) = (shared.certificates.clone(), ended.clone());
        tasks.spawn(async move { watch.watch(closing).await });
        tasks.spawn(inbox::sweep(shared.clone()));
        tasks.spawn(quota::run(shared.clone()));
        shared.spawn(alert::run(shared.clone(), alerts));
        let janitor = shared.clone();
        tasks.spawn(async move { janitor.janitor.run(&janitor).await });
        match predecessor {
            // It stops accepting now that this one does.
            Some(predecessor) => drop(shared.spawn(predecessor.follow(shared.clone(), alone))),
            None => drop(alone),
        }
        let (access, last) = (shared.access.clone(), stop.clone());
        let logging = tokio::spawn(async move { access.run(last).await });
        let tracing = exporter.map(|exporter| tokio::spawn(exporter.run(stop.clone())));

        let mut shutdown = pin!(shutdown);
        let mut successor = loop {
            let candidate = tokio::select! {
                () = &mut shutdown => break None,
                Some(candidate) = candidates.recv() => candidate,
            };
            let mut installed = pin!(candidate.install(&shared.inboxes));
            tokio::select! {
                installed = &mut installed => if installed.is_some() {
                    break installed;
                },
                // Whoever has heard that it may begin does, and says so in no time; nobody waits for one that hangs.
                () = &mut shutdown => break tokio::time::timeout(LAST_WAIT, installed).await.ok().flatten(),
            }
        };
        // Whoever is ready only now hears that it came too late.
        drop(candidates);
        match &successor {
            Some(successor) => {
                if office.program().is_some() {
                    notify::main_process(successor.process());
                }
                office.install(successor);
            }
            None => shared.leaving.cancel(),
        }
        // Readiness first, so that nobody sends more here; then listeners, keep-alive connections and clients.
        shared.stopping.cancel();
        tasks.close();
        let limit = shared.limits().drain;
        tracing::info!(wait_s = limit.as_secs(), "shutting down: waiting for what is under way");
        let told = async {
            match &mut successor {
                Some(successor) => successor.tell(&shared.inboxes).await,
                None => std::future::pending().await,
            }
        };
        let drained = async {
            tokio::select! {
                () = drain(&shared, accepting) => {}
                () = end_with_their_tokens(&shared) => {}
                () = told => {}
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("shutting down: giving up what is still under way");
        }
        shared.closing.cancel();
        if tokio::time::timeout(LAST_WAIT, tasks.wait()).await.is_err() {
            tracing::error!(tasks = tasks.len(), "shutting down: some tasks do not end");
        }
        if let Err(error) = shared.quotas.save(&shared.store).await {
            tracing::error!(%error, "the bytes that tokens have used last were not written down");
        }
        // What is noted of the last deliveries is on disk before the next relay reads it.
        shared.inboxes.records().close().await;
        // What is left of its webhooks is the other's from here on.
        drop(successor);
        stop.cancel();
        // They only flush; a panic there has been reported already.
        let _ = logging.await;
        if let Some(tracing) = tracing {
            let _ = tracing.await;
        }
    }
}

/// Waits until nothing is under way any more.
async fn drain(shared: &Shared, accepting: Vec<JoinHandle<()>>) {
    // One of them may be at a connection that has no place yet. A panic in it has been reported.
    join_all(accepting).await;
    loop {
        let no_connections = shared.places.taken() == 0;
        // Another request may come on each of them, and a client may be about to say what it wants.
        if no_connections && shared.sessions.are_welcomed() {
            shared.leaving.cancel();
        }
        if no_connections && shared.sessions.count() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Does what another process has changed for those who are still here, for as long as there is one: ends sessions whose tokens it
/// has revoked, keeps out whom it keeps out, and lets nobody have more than it does.
async fn end_with_their_tokens(shared: &Shared) {
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        for token in shared.store.ended(store::unix_now()).await.unwrap_or_default() {
            shared.sessions.end(token, relay_protocol::frame::GoAway::Revoked, "The token is not in force any more.");
        }
        // What cannot be read now is read in a second.
        let _ = shared.quotas.limit_all(&shared.store).await;
        if shared.blocks.load(&shared.store).await.is_ok() {
            shared.keep_out();
        }
    }
}

/// Expects the clients of names that belong to somebody: they are away, not unknown, and come back after a restart. Returns
/// the inboxes that there are.
async fn expected(shared: &Shared) -> Result<Vec<inbox::records::Inbox>, StoreError> {
    shared.blocks.load(&shared.store).await?;
    let ended: HashSet<_> = shared.store.ended(store::unix_now()).await?.into_iter().collect();
    for TokenSummary { token, reserved, leased, providers, .. } in shared.store.list_tokens(store::unix_now()).await? {
        leased.iter().for_each(|name| shared.registry.expect(name.as_str()));
        if !ended.contains(&token.id) {
            shared.want_certificates(leased.iter().chain(&reserved));
        }
        for name in reserved {
            shared.registry.reserve(name.as_str(), token.id, providers.get(&name).map(String::as_str));
        }
    }
    shared.inboxes.records().hand_over(shared.store.heirs().await?).await?;
    let mut waiting = shared.inboxes.records().inboxes().await?;
    // Nobody could take what came for a token that has ended.
    waiting.retain(|inbox| !ended.contains(&inbox.token));
    Ok(waiting)
}

/// Who keeps the certificate fresh, and the name server that proves whose the domain is, where it is the relay's own.
fn acme(
    settings: &AcmeConfig,
    config: &Config,
    sockets: &mut Sockets,
) -> Result<(Acme, Option<dns::Server>), StartError> {
    let public = dns::seen_as(&config.public_ips, config.https).map_err(certs::AcmeError::from);
    let lookup = dns::Lookup::new(config.resolver);
    let around = Around { lookup: lookup.clone(), public: public.as_deref().unwrap_or_default().to_vec() };
    let open = |records, publisher, parent| {
        let challenge = Challenge::new(&config.domain, publisher, lookup.clone()).map_err(not_a_name)?;
        Acme::open(settings, &config.domain, records, challenge, parent, around.clone())
    };
    match &settings.dns {
        DnsConfig::Own(own) => {
            let public = public?;
            let records = dns::records(&config.domain, &own.name, &public);
            let parent =
                lookup.clone().map(|lookup| dns::Parent::new(lookup, &config.domain, &own.name, public.clone()));
            let parent = parent.transpose().map_err(not_a_name)?;
            let (server, zone) = own_dns(own, &config.domain, public, sockets)?;
            Ok((open(records, Publisher::Own(zone), parent)?, Some(server)))
        }
        DnsConfig::Updates(settings) => {
            let updates = dns::Updates::new(settings).map_err(certs::AcmeError::from)?;
            Ok((open(leading_to(&config.domain, public), Publisher::Updates(Box::new(updates)), None)?, None))
        }
        DnsConfig::Hook { program } => {
            let hook = Hook::new(program, &config.domain);
            Ok((open(leading_to(&config.domain, public), Publisher::Hook(hook), None)?, None))
        }
        DnsConfig::AtOurPort => {
            let records = dns::address_records(&config.domain, &public.unwrap_or_default()).collect();
            Ok((open(records, Publisher::Nobody, None)?, None))
        }
    }
}

fn own_dns(
    own: &OwnDns,
    domain: &str,
    public: Vec<IpAddr>,
    sockets: &mut Sockets,
) -> Result<(dns::Server, Arc<dns::Zone>), StartError> {
    let addresses = if own.listen.is_empty() { dns::listen_at(&public) } else { own.listen.clone() };
    // It grows as long as clocks do not go back, and nobody transfers the zone.
    let serial = u32::try_from(store::unix_now()).unwrap_or_default();
    let zone = Arc::new(dns::Zone::new(domain, &own.name, public, serial).map_err(not_a_name)?);
    Ok((dns::Server::bind(&addresses, zone.clone(), sockets)?, zone))
}

/// The records of a domain that others serve, as far as it is known where they are to lead.
fn leading_to(domain: &str, public: Result<Vec<IpAddr>, certs::AcmeError>) -> Vec<String> {
    dns::own_records(domain, &public.unwrap_or_default())
}

fn not_a_name(error: hickory_proto::ProtoError) -> certs::AcmeError {
    certs::AcmeError::Zone(error.to_string())
}

/// The listener at an address: one that is there already, or a new one. `flag` is what an error names.
fn listen(
    flag: &'static str,
    what: What,
    address: SocketAddr,
    sockets: &mut Sockets,
) -> Result<TcpListener, StartError> {
    let mut open = || {
        if let Some(there) = sockets.take_tcp(what, address) {
            return there;
        }
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for the last connections' timeouts.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|error| StartError::Listen { what: flag, address, error })
}

fn listen_for_admin(address: &AdminAddr, sockets: &mut Sockets) -> Result<admin::listener::Listener, StartError> {
    use admin::listener::Listener;
    match address {
        AdminAddr::Tcp(address) => Ok(Listener::Tcp(Arc::new(listen("--admin", What::Admin, *address, sockets)?))),
        AdminAddr::Unix(path) => {
            Listener::at(path, sockets).map_err(|error| StartError::Socket { path: path.clone(), error })
        }
    }
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
        let config = Config { admin: free.map(Into::into), ..Config::on_loopback("relay.test", ca) };
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
