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

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::frame::GoAway;
use relay_protocol::message::{Bound, PublicName, Refusal, Resume, TunnelSpec};
use relay_protocol::mux::Ended;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::address::UpstreamAddr;
use crate::dial::Target;
use crate::names::Names;
use crate::platform::{address_towards, time_with_sleep};
use crate::probe::Probe;
use crate::rewrite::{HostHeader, Rewriter};
use crate::session::{ConnectError, News, Observer, Serve, Session, because, connect, explain};
use crate::terminal::Event;
use crate::upstream::Upstream;
use crate::value::{Secret, UpstreamProtocol};
use crate::watch::{PERIOD, Reading, Sign, Watch};

/// The least and the greatest bound of the pauses between attempts to come back. Each pause is drawn anew below a bound
/// that grows with the time that the session has been lost, so that the clients of a relay that restarts do not come all
/// at once, and yet are back in about the time that the restart took.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// How long the relay has to answer where it is to be found out whether a link is alive: four of its round trips, but
/// no less and no more than this.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));

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

/// Holds on to a session for a [`Client`].
///
/// ```text
///              a session                     lost, drained, or taken for dead
///   Connecting ─────────▶ Up ──────────────────────────────────────────────────┐
///     ▲   │                                                                     │
///     │   └── none ──▶ Waiting ◀────────────────────────────────────────────────┤ lost: after a pause
///     └────────────────────┘ ◀──────────────────────────────────────────────────┘ otherwise at once
/// ```
///
/// Whatever is under way on an old session goes on meanwhile.
struct Hold<'a> {
    client: &'a Client,
    served: Served,
    serve: Serve,
    way: Way<'a>,
    /// Since there is no session, or only one that drains.
    lost: Option<Lost>,
    /// Sessions one after the other that did not last.
    short: u32,
    watch: Option<Watching>,
    probe: Option<Probing>,
}

/// A session with all tunnels, and whether that took another name than the one remembered.
type Tried = Result<(Box<Session>, bool), Failed>;

enum Way<'a> {
    Up { since: Instant },
    Waiting(Pin<Box<Sleep>>),
    Connecting(Pin<Box<dyn Future<Output = Tried> + Send + 'a>>),
}

impl Way<'_> {
    /// `None` when it is time to try again.
    async fn next(&mut self) -> Option<Tried> {
        match self {
            Way::Up { .. } => std::future::pending().await,
            Way::Waiting(pause) => {
                pause.await;
                None
            }
            Way::Connecting(attempt) => Some(attempt.await),
        }
    }
}

struct Lost {
    since: Instant,
    /// From when the pauses grow: since then nothing has spoken for trying harder.
    hopeless: Instant,
    /// Why, or why the last attempt failed.
    reason: String,
    /// The old session still serves what it has.
    drains: bool,
    /// The observer knows. Where a new session is up in no time, there is nothing to say.
    told: bool,
}

struct Watching {
    watch: Watch,
    tick: Interval,
    peer: SocketAddr,
}

impl Watching {
    fn new(peer: SocketAddr) -> Self {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { watch: Watch::new(reading(peer)), tick, peer }
    }

    fn look(&mut self) -> Option<Sign> {
        self.watch.tick(reading(self.peer))
    }
}

fn reading(peer: SocketAddr) -> Reading {
    Reading { awake: std::time::Instant::now(), passed: time_with_sleep(), address: address_towards(peer) }
}

/// A question to the relay whether the link is alive.
struct Probing {
    why: Sign,
    answer: Pin<Box<dyn Future<Output = bool> + Send>>,
}

enum Step {
    News(News),
    Way(Option<Tried>),
    Tick,
    Probed(bool),
}

impl<'a> Hold<'a> {
    fn new(client: &'a Client) -> Self {
        let served = Served::default();
        let first = Box::pin(client.connect(Ask::first()));
        let way = Way::Connecting(first);
        Self {
            client,
            served,
            serve: Serve::new(client.own.clone()),
            way,
            lost: None,
            short: 0,
            watch: None,
            probe: None,
        }
    }

    async fn run(
        &mut self,
        observer: &mut dyn Observer,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ClientError> {
        observer.observe(&Event::Connecting { relay: &self.client.target.url().to_string() });
        observer.pause();
        loop {
            let (watch, probe) = (&mut self.watch, &mut self.probe);
            let tick = async {
                match watch {
                    Some(watch) => drop(watch.tick.tick().await),
                    None => std::future::pending().await,
                }
            };
            let probed = async {
                match probe {
                    Some(probe) => probe.answer.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let step = tokio::select! {
                () = &mut shutdown => {
                    // What does not end in time is given up; the relay answers for it.
                    let _ = timeout(DRAIN, self.serve.finish(observer)).await;
                    return Ok(());
                }
                news = self.serve.next(observer) => Step::News(news),
                tried = self.way.next() => Step::Way(tried),
                () = tick => Step::Tick,
                alive = probed => Step::Probed(alive),
            };
            match step {
                Step::News(News::Unwatched) => return Ok(()),
                Step::News(News::Ended(ended)) => self.ended(&ended, observer)?,
                Step::News(News::Drains(reason)) => self.drains(reason),
                Step::News(News::Unbound(tunnel)) => self.unbound(tunnel, observer)?,
                Step::Way(None) => self.dial(),
                Step::Way(Some(Ok((session, beside)))) => self.up(session, beside, observer)?,
                Step::Way(Some(Err(Failed::Final(error)))) => return Err(error),
                Step::Way(Some(Err(Failed::ForNow(reason)))) => self.wait(reason, observer)?,
                Step::Tick => self.look_around(observer)?,
                Step::Probed(true) => self.probe = None,
                Step::Probed(false) => {
                    let why = self.probe.take().map_or(Sign::Moved, |probe| probe.why);
                    self.serve.give_up();
                    self.lost(why.to_string(), observer)?;
                    self.dial();
                }
            }
            observer.pause();
        }
    }

    fn dial(&mut self) {
        // A relay that drains is gone when somebody answers in its place, and the streams that it still has must not be
        // ended by our coming back.
        let drains = self.lost.as_ref().is_some_and(|lost| lost.drains);
        let resume = self.serve.resume().filter(|_| !drains).cloned();
        let (names, gone) = (self.served.names.clone(), self.served.gone.clone());
        let ask = Ask { names, gone, resume, first: self.watch.is_none() };
        self.way = Way::Connecting(Box::pin(self.client.connect(ask)));
    }

    fn up(&mut self, session: Box<Session>, beside: bool, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let first = self.watch.is_none();
        self.served.beside |= beside;
        match self.client.accept(&mut self.served, &session.welcome.tunnels) {
            Ok(()) => {}
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::ForNow(reason)) if first => {
                return Err(ClientError::Unreachable(ConnectError::Broken(reason)));
            }
            Err(Failed::ForNow(reason)) => return self.wait(reason, observer),
        }
        // Without an address the clocks are watched all the same.
        let nobody = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 9));
        self.watch = Some(Watching::new(session.peer.unwrap_or(nobody)));
        self.probe = None;
        self.serve.add(*session, self.served.upstreams.clone());
        self.way = Way::Up { since: Instant::now() };
        let lost = self.lost.take();
        if first {
            self.client.announce(&self.served, observer);
        } else if let Some(lost) = lost.filter(|lost| lost.told) {
            observer.observe(&Event::Reconnected { relay: &self.client.target.url().to_string() });
            let away = lost.since.elapsed().as_secs_f64();
            observer.observe(&Event::Notice(&format!("the session was away for {away:.1} s")));
        }
        Ok(())
    }

    fn ended(&mut self, ended: &Ended, observer: &mut dyn Observer) -> Result<(), ClientError> {
        match ended {
            Ended::Remote { reason: GoAway::Replaced, text } => return Err(ClientError::NameLost(text.clone())),
            Ended::Remote { reason: GoAway::Revoked | GoAway::Expired, text } => {
                return Err(ClientError::Unauthorized(text.clone()));
            }
            _ => {}
        }
        if let Some(lost) = &mut self.lost {
            // It had said that it would end, and the next one is on its way.
            lost.drains = false;
            return Ok(());
        }
        // A machine that wakes finds its session ended by the silence of its own sleep.
        let sign = self.probe.take().map(|probe| probe.why);
        let sign = sign.or_else(|| self.watch.as_mut().and_then(Watching::look));
        match sign {
            Some(sign) => {
                self.lost(sign.to_string(), observer)?;
                self.dial();
                Ok(())
            }
            None => {
                self.begin_lost(because(ended), false);
                self.wait(because(ended), observer)
            }
        }
    }

    fn drains(&mut self, reason: String) {
        if self.lost.is_none() {
            self.probe = None;
            self.begin_lost(reason, true);
            self.dial();
        }
    }

    fn unbound(&mut self, tunnel: u32, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let text = "Another client with the same token has taken the name over.";
        let Some(public) = self.served.names.remove(&tunnel) else { return Ok(()) };
        if self.served.names.is_empty() {
            return Err(ClientError::NameLost(text.to_owned()));
        }
        self.served.gone.insert(tunnel);
        Arc::make_mut(&mut self.served.upstreams).remove(&tunnel);
        self.serve.set_upstreams(self.served.upstreams.clone());
        observer.observe(&Event::Notice(&format!("{} has ended: {text} The other tunnels go on.", public.url)));
        Ok(())
    }

    /// Once a second.
    fn look_around(&mut self, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let sign = self.watch.as_mut().and_then(Watching::look);
        match (&mut self.lost, sign) {
            (None, Some(why)) if self.probe.is_none() => {
                if let Some(link) = self.serve.link().cloned() {
                    let patience = link.rtt().map_or(PROBE.1, |rtt| (rtt * 4).clamp(PROBE.0, PROBE.1));
                    self.probe = Some(Probing { why, answer: Box::pin(async move { link.probe(patience).await }) });
                }
            }
            (None, _) => {}
            (Some(lost), sign) => {
                if !lost.told && self.serve.link().is_none() {
                    lost.told = true;
                    observer.observe(&Event::Disconnected { reason: &lost.reason, retry_in_ms: 0 });
                }
                self.give_up_in_time()?;
                if let (Some(lost), Some(_)) = (&mut self.lost, sign) {
                    // What kept us from the relay may have gone; an attempt from before hangs on the old way.
                    lost.hopeless = Instant::now();
                    self.dial();
                }
            }
        }
        Ok(())
    }

    fn begin_lost(&mut self, reason: String, drains: bool) {
        if let Way::Up { since } = &self.way {
            self.short = if since.elapsed() >= PAUSES.1 { 0 } else { self.short + 1 };
        }
        let now = Instant::now();
        self.lost.get_or_insert(Lost { since: now, hopeless: now, reason, drains, told: false });
    }

    /// The session is lost, and the caller dials at once.
    fn lost(&mut self, reason: String, observer: &mut dyn Observer) -> Result<(), ClientError> {
        observer.observe(&Event::Disconnected { reason: &reason, retry_in_ms: 0 });
        self.begin_lost(reason, false);
        if let Some(lost) = &mut self.lost {
            lost.told = true;
        }
        self.give_up_in_time()
    }

    /// There is no session, for this reason: tries again after a pause.
    fn wait(&mut self, reason: String, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let Some(lost) = &mut self.lost else { return Ok(()) };
        let pause = backoff(lost.hopeless.elapsed(), self.short);
        // What began it is said once, and then why it goes on.
        let reason = if lost.told { reason } else { lost.reason.clone() };
        lost.told = true;
        lost.reason.clone_from(&reason);
        self.give_up_in_time()?;
        let retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        observer.observe(&Event::Disconnected { reason: &reason, retry_in_ms });
        self.way = Way::Waiting(Box::pin(sleep(pause)));
        Ok(())
    }

    fn give_up_in_time(&self) -> Result<(), ClientError> {
        match (self.client.max_reconnect_time, &self.lost) {
            (Some(after), Some(lost)) if lost.since.elapsed() >= after => {
                Err(ClientError::GaveUp { after, last: lost.reason.clone() })
            }
            _ => Ok(()),
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

/// A pause drawn at random below a bound: half the time that nothing has worked, so that attempts come ever more rarely.
/// A relay that takes us and drops us at once is asked once or twice a second, and not eight times.
fn backoff(hopeless: Duration, short: u32) -> Duration {
    let bound = (hopeless / 2).clamp(PAUSES.0 * (1 << short.min(2)), PAUSES.1);
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
        let drawn = |hopeless: u64, short| (0..200).map(move |_| backoff(Duration::from_millis(hopeless), short));
        for hopeless in [0, 1, 500, 10_000, 30_000, 86_400_000] {
            assert!((0..40).all(|short| drawn(hopeless, short).all(|pause| pause <= PAUSES.1)), "{hopeless}");
        }
        assert!(drawn(0, 0).all(|pause| pause <= PAUSES.0));
        assert!(drawn(2000, 0).all(|pause| pause <= Duration::from_secs(1)), "back in the time that a restart takes");
        assert!(drawn(3_600_000, 0).any(|pause| pause > Duration::from_secs(10)), "they do grow");
        assert!(drawn(0, 9).any(|pause| pause > PAUSES.0), "a session that does not last is asked for less often");
    }

    /// A day without a relay costs attempts that can be counted.
    #[test]
    fn an_outage_is_not_hammered() {
        let (mut gone, mut attempts) = (Duration::ZERO, 0);
        while gone < Duration::from_secs(60) {
            gone += backoff(gone, 0);
            attempts += 1;
        }
        assert!((8..80).contains(&attempts), "{attempts} attempts in the first minute");
    }
}
