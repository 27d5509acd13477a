//! A client: a session with a relay that is kept up, and the tunnels on it.
//!
//! [`Client`] is the whole: it connects, keeps reconnecting, and serves in the caller's task until it is told to stop.
//! [`Tunnel`](crate::Tunnel) is the short form: one tunnel in a task of its own.

mod hold;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::message::{Bound, PublicName, Refusal, Resume, TunnelSpec};

use self::hold::{Hold, Tried};
use crate::address::UpstreamAddr;
use crate::dial::Target;
use crate::names::Names;
use crate::probe::Probe;
use crate::rewrite::{HostHeader, Rewriter};
use crate::session::{ConnectError, Observer, connect, explain};
use crate::terminal::Event;
use crate::upstream::Upstream;
use crate::value::{Secret, UpstreamProtocol};

/// One tunnel's settings.
#[derive(Clone, Debug)]
pub struct TunnelOptions {
    /// Where requests go.
    pub upstream: UpstreamAddr,
    /// The name asked for; `None` for a random one.
    pub subdomain: Option<String>,
    /// The deadline of response heads; `None` for the relay's choice.
    pub timeout: Option<Duration>,
    /// What the service sees as its name.
    pub host_header: HostHeader,
    /// How the service is spoken to.
    pub protocol: UpstreamProtocol,
    /// Take the name over from a live session of the same token.
    pub takeover: bool,
}

impl TunnelOptions {
    /// A tunnel with a random name, and otherwise the defaults of `relay http`.
    pub fn new(upstream: UpstreamAddr) -> Self {
        Self {
            upstream,
            subdomain: None,
            timeout: None,
            host_header: HostHeader::default(),
            protocol: UpstreamProtocol::default(),
            takeover: false,
        }
    }

    /// Asks for a name.
    #[must_use]
    pub fn subdomain(mut self, name: impl Into<String>) -> Self {
        self.subdomain = Some(name.into());
        self
    }
}

/// Why a client stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The relay does not accept the token, or no longer does.
    #[error("{0}")]
    Unauthorized(String),
    /// The name asked for is not to be had.
    #[error("{0}")]
    NameTaken(String),
    /// The name went to somebody else while the tunnel was up.
    #[error("{0}")]
    NameLost(String),
    /// There is no session at the start.
    #[error(transparent)]
    Unreachable(ConnectError),
    /// The session was lost and did not come back in time.
    #[error("gave up after {} s without a session: {last}", after.as_secs())]
    GaveUp {
        /// How long was tried.
        after: Duration,
        /// What the last attempt failed with.
        last: String,
    },
    /// The relay refuses a tunnel for another reason.
    #[error("{0}")]
    Refused(String),
    /// The relay gave a public URL that is none.
    #[error(transparent)]
    PublicUrl(#[from] crate::rewrite::PublicUrlError),
}

/// A session with a relay that is kept up, and the tunnels on it.
#[derive(Debug)]
pub struct Client {
    target: Target,
    token: Option<Secret>,
    tunnels: Vec<TunnelOptions>,
    names: Option<Names>,
    max_reconnect_time: Option<Duration>,
    ca_file: Option<String>,
    local_url: Option<String>,
    own: Option<Probe>,
}

impl Client {
    /// A client of this relay, without a token and without a tunnel.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            token: None,
            tunnels: Vec::new(),
            names: None,
            max_reconnect_time: None,
            ca_file: None,
            local_url: None,
            own: None,
        }
    }

    /// Authenticates with this token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Adds a tunnel.
    #[must_use]
    pub fn tunnel(mut self, options: TunnelOptions) -> Self {
        self.tunnels.push(options);
        self
    }

    /// Remembers the random name of the first tunnel, and asks for it again.
    #[must_use]
    pub fn remember(mut self, names: Names) -> Self {
        self.names = Some(names);
        self
    }

    /// Gives up when the session has been lost for this long.
    #[must_use]
    pub fn max_reconnect_time(mut self, limit: Duration) -> Self {
        self.max_reconnect_time = Some(limit);
        self
    }

    /// Answers this probe itself: no service hears of it, and no observer.
    #[must_use]
    pub fn probe(mut self, probe: Probe) -> Self {
        self.own = Some(probe);
        self
    }

    /// Says in [`Event::Ready`] which CA callers of the tunnels must trust.
    #[must_use]
    pub fn ca_file(mut self, file: String) -> Self {
        self.ca_file = Some(file);
        self
    }

    /// Says in [`Event::Ready`] where the first tunnel also answers on this machine.
    #[must_use]
    pub fn local_url(mut self, url: String) -> Self {
        self.local_url = Some(url);
        self
    }

    /// Connects and serves, coming back whenever the session is lost, until `shutdown` ends; then what is under way may
    /// finish within 10 s.
    ///
    /// # Errors
    /// [`ClientError`]: what trying again cannot mend.
    pub async fn run(self, observer: &mut dyn Observer, shutdown: impl Future<Output = ()>) -> Result<(), ClientError> {
        let mut hold = Hold::new(&self);
        let result = hold.run(observer, pin!(shutdown)).await;
        hold.served.close().await;
        result
    }

    /// One attempt.
    async fn connect(&self, ask: Ask) -> Tried {
        let mut remembered = if ask.names.is_empty() { self.names.as_ref().and_then(Names::remembered) } else { None };
        let mut beside = false;
        loop {
            let specs = self.specs(&ask, remembered.as_deref());
            let session = connect(&self.target, self.token.as_ref(), specs, ask.resume.clone()).await;
            let session = session.map_err(|error| Failed::to_connect(error, ask.first))?;
            let refusal = session.welcome.tunnels.iter().find_map(|bound| bound.result.as_ref().err());
            let Some(refusal) = refusal.cloned() else { return Ok((Box::new(session), beside)) };
            session.close().await;
            // The name of last time is in use, as when tests run side by side: any other will do.
            if remembered.take().is_none() {
                return Err(Failed::to_bind(&refusal, ask.first));
            }
            beside = true;
        }
    }

    /// What is asked for: the names of this run, the one remembered, or what was given.
    fn specs(&self, ask: &Ask, remembered: Option<&str>) -> Vec<TunnelSpec> {
        let spec = |(i, options): (usize, &TunnelOptions)| {
            let number = number(i);
            let known = ask.names.get(&number).map(|public| public.name.clone());
            let remembered = remembered.filter(|_| i == 0).map(str::to_owned);
            TunnelSpec {
                tunnel: number,
                name: known.or_else(|| options.subdomain.clone()).or(remembered),
                domain: None,
                timeout_ms: options.timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)),
                // Once: whoever takes the name over from us later means it, too.
                takeover: options.takeover && ask.first,
                extra: Vec::new(),
            }
        };
        let kept = self.tunnels.iter().enumerate().filter(|(i, _)| !ask.gone.contains(&number(*i)));
        kept.map(spec).collect()
    }

    /// Takes in what the relay gave.
    fn accept(&self, served: &mut Served, bound: &[Bound]) -> Result<(), Failed> {
        for (i, options) in self.tunnels.iter().enumerate() {
            let number = number(i);
            if served.gone.contains(&number) {
                continue;
            }
            let Some(Ok(public)) = bound.iter().find(|bound| bound.tunnel == number).map(|bound| &bound.result) else {
                let reason = "the relay did not say what became of a tunnel".to_owned();
                return Err(Failed::ForNow(reason));
            };
            if served.names.get(&number) == Some(public) {
                continue;
            }
            let rewriter = Rewriter::new(&options.host_header, &options.upstream, &public.url)
                .map_err(|error| Failed::Final(error.into()))?;
            let upstream = Upstream::new(options.upstream.clone(), options.protocol, rewriter);
            Arc::make_mut(&mut served.upstreams).insert(number, Arc::new(upstream));
            served.names.insert(number, public.clone());
            if let (0, None, Some(names), false) = (i, &options.subdomain, &self.names, served.beside) {
                names.remember(&public.name);
            }
        }
        Ok(())
    }

    fn announce(&self, served: &Served, observer: &mut dyn Observer) {
        let relay = self.target.url().to_string();
        for (i, options) in self.tunnels.iter().enumerate() {
            let Some(public) = served.names.get(&number(i)) else { continue };
            observer.observe(&Event::Ready {
                name: &public.name,
                url: &public.url,
                upstream: &options.upstream.to_string(),
                relay: &relay,
                ca_file: self.ca_file.as_deref(),
                local_url: self.local_url.as_deref().filter(|_| i == 0),
            });
        }
    }
}

/// What an attempt to connect asks for.
struct Ask {
    /// The names of this run.
    names: HashMap<u32, PublicName>,
    /// The tunnels that it has lost.
    gone: HashSet<u32>,
    resume: Option<Resume>,
    /// Nothing has been reached yet: what fails now is the caller's to know.
    first: bool,
}

impl Ask {
    fn first() -> Self {
        Self { names: HashMap::new(), gone: HashSet::new(), resume: None, first: true }
    }
}

/// What the relay has given this run.
#[derive(Debug, Default)]
struct Served {
    /// The remembered name is in use by another client, whose it stays.
    beside: bool,
    names: HashMap<u32, PublicName>,
    /// Tunnels whose names went to other sessions.
    gone: HashSet<u32>,
    upstreams: Arc<HashMap<u32, Arc<Upstream>>>,
}

impl Served {
    async fn close(&self) {
        for upstream in self.upstreams.values() {
            upstream.close().await;
        }
    }
}

/// Whether trying again can help.
enum Failed {
    Final(ClientError),
    ForNow(String),
}

impl Failed {
    fn to_connect(error: ConnectError, first: bool) -> Self {
        match &error {
            ConnectError::Refused { code, .. } if code == "unauthorized" => {
                Self::Final(ClientError::Unauthorized(error.to_string()))
            }
            ConnectError::Revoked(_) => Self::Final(ClientError::Unauthorized(error.to_string())),
            _ if first => Self::Final(ClientError::Unreachable(error)),
            _ => Self::ForNow(error.to_string()),
        }
    }

    fn to_bind(refusal: &Refusal, first: bool) -> Self {
        let text = explain(refusal);
        match refusal.code.as_str() {
            // Our own session, which the relay still believes in, may hold what we ask for.
            "name-in-use" | "too-many-tunnels" if !first => Self::ForNow(text),
            "name-in-use" | "name-taken" | "name-invalid" if first => Self::Final(ClientError::NameTaken(text)),
            "name-taken" => Self::Final(ClientError::NameLost(text)),
            "unauthorized" => Self::Final(ClientError::Unauthorized(text)),
            "internal" if !first => Self::ForNow(text),
            _ => Self::Final(ClientError::Refused(text)),
        }
    }
}

fn number(i: usize) -> u32 {
    u32::try_from(i).unwrap_or(u32::MAX)
}
