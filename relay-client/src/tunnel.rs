//! Tunnels for programs: what the `relay` command is made of, and what tests and other programs embed.
//!
//! [`Client`] is the whole: it connects, keeps reconnecting, and serves in the caller's task until it is told to stop.
//! [`Tunnel`] is the short form: one tunnel in a task of its own.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use relay_client::{Client, Tunnel, TunnelOptions, dial};
//!
//! let target = dial::Target::new("https://relay.example.com".parse()?, &dial::Trust::System)?;
//! let client = Client::new(target).token("rly_…".to_owned().into());
//! let tunnel = Tunnel::start(client, TunnelOptions::new("3000".parse()?)).await?;
//! println!("{}", tunnel.url());
//! tunnel.close().await?;
//! # Ok(()) }
//! ```

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::frame::GoAway;
use relay_protocol::message::{Bound, PublicName, Refusal, TunnelSpec};
use relay_protocol::mux::Ended;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::address::UpstreamAddr;
use crate::dial::Target;
use crate::names::Names;
use crate::rewrite::{HostHeader, Rewriter};
use crate::session::{ConnectError, Observer, Over, Serve, Session, connect, explain, is_final};
use crate::terminal::Event;
use crate::upstream::Upstream;
use crate::value::{Secret, UpstreamProtocol};

/// The first and the longest pause between two attempts to come back. Each is drawn anew below a bound that doubles,
/// so that the clients of a relay that restarts do not come all at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// How long a client that was told to stop waits for what is under way.
const DRAIN: Duration = Duration::from_secs(10);

/// Exchanges that a [`Tunnel`] holds for its owner; later ones are dropped until it takes some.
const KEPT: usize = 1024;

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
    pub async fn run(
        mut self,
        observer: &mut dyn Observer,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ClientError> {
        let mut shutdown = pin!(shutdown);
        let relay = self.target.url().to_string();
        let mut served = Served::default();
        let mut lost: Option<Instant> = None;
        let mut attempt = 0;
        observer.observe(&Event::Connecting { relay: &relay });
        observer.pause();
        loop {
            let connected = tokio::select! {
                () = &mut shutdown => break,
                connected = self.connect(&mut served, lost.is_none()) => connected,
            };
            let reason = match connected {
                Ok(session) => {
                    self.announce(&served, lost.is_some(), observer);
                    lost = None;
                    let began = Instant::now();
                    let over = self.serve(session, &served, observer, shutdown.as_mut()).await?;
                    // A relay that takes us and drops us at once is asked once or twice a second, and not eight times.
                    attempt = if began.elapsed() >= PAUSES.1 { 0 } else { attempt.min(2) };
                    match over {
                        Some(reason) => reason,
                        None => break,
                    }
                }
                Err(Failed::Final(error)) => {
                    served.close().await;
                    return Err(error);
                }
                Err(Failed::ForNow(reason)) => reason,
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if let Some(limit) = self.max_reconnect_time.filter(|limit| since.elapsed() >= *limit) {
                served.close().await;
                return Err(ClientError::GaveUp { after: limit, last: reason });
            }
            let pause = backoff(attempt);
            attempt += 1;
            let retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            observer.observe(&Event::Disconnected { reason: &reason, retry_in_ms });
            observer.pause();
            tokio::select! {
                () = &mut shutdown => break,
                () = sleep(pause) => {}
            }
        }
        served.close().await;
        Ok(())
    }

    /// One attempt: a session, with all tunnels bound.
    async fn connect(&self, served: &mut Served, first: bool) -> Result<Session, Failed> {
        let mut remembered =
            if served.names.is_empty() { self.names.as_ref().and_then(Names::remembered) } else { None };
        loop {
            let specs = self.specs(served, remembered.as_deref());
            let session = match connect(&self.target, self.token.as_ref(), specs).await {
                Ok(session) => session,
                Err(error) => return Err(Failed::to_connect(error, first)),
            };
            let Some(refusal) = self.accept(served, &session.welcome.tunnels)? else { return Ok(session) };
            session.close().await;
            // The name of last time is in use, as when tests run side by side: any other will do.
            if remembered.take().is_none() {
                return Err(Failed::to_bind(&refusal, first));
            }
            served.beside = true;
        }
    }

    /// What is asked for: the names of this run, the one remembered, or what was given.
    fn specs(&self, served: &Served, remembered: Option<&str>) -> Vec<TunnelSpec> {
        let spec = |(i, options): (usize, &TunnelOptions)| {
            let number = number(i);
            let known = served.names.get(&number).map(|public| public.name.clone());
            let remembered = remembered.filter(|_| i == 0).map(str::to_owned);
            TunnelSpec {
                tunnel: number,
                name: known.or_else(|| options.subdomain.clone()).or(remembered),
                domain: None,
                timeout_ms: options.timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)),
                takeover: options.takeover,
                extra: Vec::new(),
            }
        };
        self.tunnels.iter().enumerate().map(spec).collect()
    }

    /// Takes in what the relay gave; the first refusal, if there is one.
    fn accept(&self, served: &mut Served, bound: &[Bound]) -> Result<Option<Refusal>, Failed> {
        if let Some(refusal) = bound.iter().find_map(|bound| bound.result.as_ref().err()) {
            return Ok(Some(refusal.clone()));
        }
        for (i, options) in self.tunnels.iter().enumerate() {
            let number = number(i);
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
        Ok(None)
    }

    fn announce(&self, served: &Served, again: bool, observer: &mut dyn Observer) {
        let relay = self.target.url().to_string();
        if again {
            observer.observe(&Event::Reconnected { relay: &relay });
        }
        for (i, options) in self.tunnels.iter().enumerate().filter(|_| !again) {
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
        observer.pause();
    }

    /// Serves a session; the reason why it ended, or `None` where that was our own wish.
    async fn serve(
        &mut self,
        session: Session,
        served: &Served,
        observer: &mut dyn Observer,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<String>, ClientError> {
        let link = session.link.clone();
        let mut serving = pin!(Serve::new(session, served.upstreams.clone(), observer));
        let over = tokio::select! {
            over = &mut serving => over,
            () = &mut shutdown => {
                link.go_away(GoAway::Shutdown, true, "The client stops.");
                // What does not end in time is given up; the relay answers for it.
                let _ = timeout(DRAIN, serving).await;
                return Ok(None);
            }
        };
        match over {
            Over::Unwatched => Ok(None),
            Over::Replaced => {
                Err(ClientError::NameLost("Another client with the same token has taken the name over.".to_owned()))
            }
            Over::Ended(ended) => match &ended {
                Ended::Remote { reason: GoAway::Replaced, text } => Err(ClientError::NameLost(text.clone())),
                Ended::Remote { text, .. } if is_final(&ended) => Err(ClientError::Unauthorized(text.clone())),
                _ => Ok(Some(ended.to_string())),
            },
        }
    }
}

/// What the relay has given this run.
#[derive(Debug, Default)]
struct Served {
    /// The remembered name is in use by another client, whose it stays.
    beside: bool,
    names: HashMap<u32, PublicName>,
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

/// A pause drawn at random below a bound that doubles with each attempt.
fn backoff(attempt: u32) -> Duration {
    let bound = PAUSES.0.saturating_mul(1 << attempt.min(10)).min(PAUSES.1);
    let mut random = [0; 4];
    // Without randomness all clients wait as long as they may, which does no harm.
    let drawn = aws_lc_rs::rand::fill(&mut random)
        .map_or(1.0, |()| f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX));
    bound.mul_f64(drawn).max(Duration::from_millis(10))
}

/// An exchange that a [`Tunnel`] has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// Its id, as in `Relay-Request-Id`.
    pub id: String,
    /// The request's method.
    pub method: String,
    /// The raw target with its query.
    pub path: String,
    /// `None` when no answer was sent.
    pub status: Option<u16>,
    /// From the deadline's start to the end of the body.
    pub duration: Duration,
    /// A stable code.
    pub error: Option<String>,
}

/// A tunnel in a task of its own.
#[derive(Debug)]
pub struct Tunnel {
    name: String,
    url: String,
    exchanges: mpsc::Receiver<Exchange>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Tunnel {
    /// Connects `client` with this one tunnel, and waits until it answers.
    ///
    /// # Errors
    /// [`ClientError`] when there is no tunnel.
    pub async fn start(client: Client, options: TunnelOptions) -> Result<Self, ClientError> {
        let (ready, is_ready) = oneshot::channel();
        let (seen, exchanges) = mpsc::channel(KEPT);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut task = tokio::spawn(async move {
            let mut watcher = Watcher { ready: Some(ready), seen };
            client.tunnel(options).run(&mut watcher, stopped.cancelled()).await
        });
        tokio::select! {
            Ok((name, url)) = is_ready => Ok(Self { name, url, exchanges, stop, task }),
            ended = &mut task => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(ClientError::Refused("the tunnel's task ended".to_owned())),
            },
        }
    }

    /// The name below the relay's base domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next exchange that ended; `None` once the tunnel has. 1,024 wait to be taken; those that come then are dropped.
    pub async fn exchange(&mut self) -> Option<Exchange> {
        self.exchanges.recv().await
    }

    /// Takes the tunnel down, after what is under way.
    ///
    /// # Errors
    /// [`ClientError`] when it had ended by itself before.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.stop.cancel();
        match (&mut self.task).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Refused("the tunnel's task ended".to_owned())),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

struct Watcher {
    ready: Option<oneshot::Sender<(String, String)>>,
    seen: mpsc::Sender<Exchange>,
}

impl Observer for Watcher {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready { name, url, .. } => {
                if let Some(ready) = self.ready.take() {
                    // Whoever waited may have given up; the task ends with the handle.
                    let _ = ready.send(((*name).to_owned(), (*url).to_owned()));
                }
            }
            Event::Exchange { id, method, path, status, duration_ms, error } => {
                let exchange = Exchange {
                    id: (*id).to_owned(),
                    method: (*method).to_owned(),
                    path: (*path).to_owned(),
                    status: *status,
                    duration: Duration::from_secs_f64(duration_ms / 1e3),
                    error: error.map(str::to_owned),
                };
                // A full channel means that nobody looks.
                let _ = self.seen.try_send(exchange);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_no_further() {
        for attempt in 0..40 {
            assert!(backoff(attempt) <= PAUSES.1);
        }
        assert!((0..50).any(|_| backoff(20) > Duration::from_secs(3)), "they do grow");
        assert!((0..50).all(|_| backoff(0) <= PAUSES.0));
    }
}
