//! Sessions: what a client asks for, and how long it lasts. Nothing here knows of HTTP.
//!
//! ```text
//!   place ─▶ live ─▶ Hello ─▶ bind names ─▶ Welcome ─▶ serve ─▶ names are away
//!                      │                       │
//!                      └── resumes with ◀── a key for the next time
//! ```

mod resume;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use relay_protocol::access::Access;
use relay_protocol::frame::{GoAway, SessionKind};
use relay_protocol::inbox::Inbox;
use relay_protocol::link::{Driver, Link, Signal};
use relay_protocol::message::{Bound, Hello, MOVES, Payload, PublicName, Refusal, Resume, TunnelSpec, Welcome};
use relay_protocol::mux::{Ended, Limits as MuxLimits, Side};
use relay_protocol::oidc::Oidc;
use relay_protocol::webhook::{Table, Verify, Webhooks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use ulid::Ulid;

use self::resume::{Hash, Keys};
use crate::Shared;
use crate::blocks::Blocks;
use crate::certs::DomainError;
use crate::certs::acme::record_of;
use crate::clock::{moment, unix_now};
use crate::config::Config;
use crate::inbox::records::OpenInboxError;
use crate::inbox::{self, Settings};
use crate::quota::Meter;
use crate::sentence;
use crate::status;
use crate::store::{AuthError, ClaimError, Held, Name, NameError, StoreError, Token, TokenId};
use crate::tunnels::seats::{Counted, Full, Place, Seat, Seats};
use crate::tunnels::{Asked, Loss, Resumed, Tunnel, Untold, send};

/// tungstenite zero-fills this much at each read; more would be the greater part of an idle session's memory.
const READ_BUFFER: usize = 4 * 1024;

/// What a client is told that is kept out.
pub(crate) const BLOCKED: &str = "The relay's operator has blocked this client; ask them why.";

/// How long a link whose name somebody else asks for has to show that it is alive.
const PROBE: Duration = Duration::from_secs(1);

/// The shortest and the longest deadline that a client may ask for.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// The live sessions, what each token has of them, and what lets a client come back to one.
#[derive(Debug, Default)]
pub struct Sessions {
    live: DashMap<Ulid, Live>,
    seats: Arc<Seats>,
    keys: Keys,
}

/// What others need of a live session.
#[derive(Clone, Debug)]
struct Live {
    token: TokenId,
    link: Link,
    seat: Arc<Seat>,
    welcomed: Welcomed,
    told: Arc<Told>,
}

/// What the operator is told of a session.
#[derive(Debug)]
struct Told {
    token: String,
    address: IpAddr,
    /// In Unix seconds.
    since: i64,
    /// What the client calls itself, once it has said so.
    client: OnceLock<String>,
}

/// The ping behind a session's Welcome, once there is one. Its answer says that the Welcome has arrived, and with it the
/// key for the next time.
type Welcomed = Arc<OnceLock<u64>>;

fn is_heard(link: &Link, welcomed: &Welcomed) -> bool {
    welcomed.get().is_some_and(|ping| link.is_answered(*ping))
}

impl Sessions {
    /// Sessions that are live, or about to be.
    pub fn count(&self) -> usize {
        self.seats.all()
    }

    /// Whether every client that has connected has been told what it has.
    pub(crate) fn are_welcomed(&self) -> bool {
        let welcomed = self.live.iter().filter(|live| live.welcomed.get().is_some()).count();
        welcomed == self.seats.all()
    }

    /// Those that are live, without their tunnels.
    pub(crate) fn list(&self) -> Vec<(Ulid, status::Session)> {
        let told = self.live.iter().map(|live| {
            let Told { token, address, since, client } = &*live.told;
            let session = status::Session {
                id: live.key().to_string(),
                token: token.clone(),
                address: *address,
                client: client.get().cloned().unwrap_or_default(),
                since: moment(*since),
                streams: live.link.open_streams(),
                tunnels: Vec::new(),
            };
            (*live.key(), session)
        });
        told.collect()
    }

    /// Ends one session, which its client may resume; whether there is one.
    pub(crate) fn disconnect(&self, session: Ulid, reason: GoAway, text: &str) -> bool {
        let link = self.live.get(&session).map(|live| live.link.clone());
        link.inspect(|link| link.go_away(reason, false, text)).is_some()
    }

    /// Ends the sessions of those who are kept out. Their clients stop, because they would be refused.
    pub(crate) fn keep_out(&self, blocks: &Blocks) {
        let blocked = |live: &Live| blocks.has_token(live.token) || blocks.has_address(live.told.address);
        let links: Vec<Link> = self.live.iter().filter(|live| blocked(live)).map(|live| live.link.clone()).collect();
        links.iter().for_each(|link| link.go_away(GoAway::Revoked, false, BLOCKED));
    }

    /// Ends every session of a token, at once and for good.
    pub fn end(&self, token: TokenId, reason: GoAway, text: &str) {
        self.keys.revoke(token, Instant::now());
        let links: Vec<Link> =
            self.live.iter().filter(|live| live.token == token).map(|live| live.link.clone()).collect();
        links.iter().for_each(|link| link.go_away(reason, false, text));
    }
}

/// One client's session, from its Hello to its end.
pub(crate) struct Session {
    shared: Arc<Shared>,
    id: Ulid,
    peer: IpAddr,
    token: Token,
    tunnels: Vec<Arc<Tunnel>>,
    /// What this one goes on with.
    resumed: Option<Arc<Resumed>>,
    /// Of the key with which it does.
    used: Option<Hash>,
    /// Of the key that resumes this one.
    key: Option<Hash>,
    welcomed: Welcomed,
    told: Arc<Told>,
    /// What its token may have.
    meter: Arc<Meter>,
    place: Place,
}

impl Session {
    /// A place for a session of this token, before anything else is known of it.
    pub(crate) fn place(shared: &Shared, token: &Token) -> Result<Place, Full> {
        shared.sessions.seats.enter(token.id, token.limits.max_sessions, shared.limits().sessions)
    }

    pub(crate) fn new(shared: Arc<Shared>, peer: IpAddr, token: Token, meter: Arc<Meter>, place: Place) -> Self {
        let (id, tunnels, welcomed) = (Ulid::generate(), Vec::new(), Welcomed::default());
        let (name, client) = (token.name.clone(), OnceLock::new());
        let told = Arc::new(Told { token: name, address: peer.to_canonical(), since: unix_now(), client });
        Self { shared, id, peer, token, tunnels, resumed: None, used: None, key: None, welcomed, told, meter, place }
    }

    /// Serves a client on an upgraded connection, of which `read` has been read already.
    pub(crate) async fn run<T>(mut self, conn: T, read: Bytes)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = MuxLimits { max_streams: self.shared.limits().session_streams, ..MuxLimits::default() };
        let socket = Driver::websocket(conn, read, Side::Relay, READ_BUFFER).await;
        let (link, driver) = Driver::new(Side::Relay, limits, socket);
        // From here on it is found by whoever ends the sessions of its token.
        let (seat, welcomed) = (self.place.seat(), self.welcomed.clone());
        let told = self.told.clone();
        let live = Live { token: self.token.id, link: link.clone(), seat, welcomed, told };
        self.shared.sessions.live.insert(self.id, live);
        // A task of its own: an exchange then wakes nothing but the driver.
        let mut driver = AbortOnDropHandle::new(self.shared.tasks.spawn(driver));
        let since = Instant::now();
        let ended = tokio::select! {
            ended = &mut driver => ended,
            never = self.attend(&link) => match never {},
        };
        match ended {
            Ok(ended) => self.log_end(&ended, since),
            Err(panic) => {
                self.shared.metrics.panics.inc();
                tracing::error!(session = %self.id, %panic, "a session's driver failed; this is a bug in the relay");
            }
        }
        self.leave(&link).await;
    }

    /// Hears the client out, and does what it asks for. The driver ends it.
    async fn attend(&mut self, link: &Link) -> std::convert::Infallible {
        // Boxed, because what either needs would be part of every idle session.
        match Box::pin(self.hello(link)).await {
            Ok(hello) => Box::pin(self.serve(link, hello)).await,
            Err((reason, text)) => {
                link.go_away(reason, false, &text);
                std::future::pending().await
            }
        }
    }

    /// The client's first message, or why the session ends without it.
    async fn hello(&self, link: &Link) -> Result<Hello, (GoAway, String)> {
        // A token that ended after it was presented and before the session was live: nobody else would notice.
        self.shared.store.check_token(self.token.id, unix_now()).await.map_err(|error| {
            let reason = match &error {
                AuthError::Expired { .. } => GoAway::Expired,
                AuthError::Revoked | AuthError::Unknown => GoAway::Revoked,
                AuthError::Store(_) => GoAway::Internal,
            };
            (reason, sentence(&error))
        })?;
        // What is kept out since then: as above, nobody else would notice.
        if self.shared.blocks.has_token(self.token.id) || self.shared.blocks.has_address(self.peer) {
            return Err((GoAway::Revoked, BLOCKED.to_owned()));
        }
        tokio::select! {
            hello = timeout(self.shared.limits().hello, hello(link)) => {
                hello.unwrap_or_else(|_| Err("no Hello came in time".into())).map_err(|text| (GoAway::Protocol, text))
            }
            () = self.shared.leaving.cancelled() => Err((GoAway::Shutdown, "The relay shuts down.".into())),
        }
    }

    /// Binds what the Hello asks for, and then does what the client and the clock ask for. The driver ends it.
    async fn serve(&mut self, link: &Link, hello: Hello) -> std::convert::Infallible {
        let moves = hello.features.iter().any(|feature| feature == MOVES);
        // There is one Hello.
        let _ = self.told.client.set(format!("{} {}", show(&hello.client), show(&hello.version)));
        let old = hello.resume.map(|resume| self.resume(&resume)).unwrap_or_default();
        let seats = old.iter().map(|old| &*old.seat);
        if let Err(full) = self.place.settle(self.meter.limits().max_sessions, seats) {
            link.go_away(GoAway::Limit, false, &sentence(&full));
            return std::future::pending().await;
        }
        let mut bound = Vec::with_capacity(hello.tunnels.len());
        let mut mute = Vec::new();
        for spec in hello.tunnels {
            // Boxed, because what binding needs would be part of every idle session.
            bound.push(Box::pin(self.bind(link, spec, &mut mute)).await);
        }
        // Not before its names are ours. Its requests that its client has not seen follow them, and the others end.
        drop(old);
        let names: Vec<&str> = self.tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
        tracing::info!(
            session = %self.id, peer = %self.peer, token = %self.token.name, client = %show(&hello.client),
            version = %show(&hello.version), tunnels = ?names, resumed = self.resumed.is_some(), "a client connected"
        );
        let kept = self.tunnels.iter().filter(|tunnel| self.shared.inboxes.get(&tunnel.name).is_some());
        let kept: Vec<u32> = kept.map(|tunnel| tunnel.number).collect();
        let (resume_key, hash) = self.shared.sessions.keys.issue(self.token.id, self.id, Instant::now());
        self.key = Some(hash);
        let welcome = Welcome {
            session: self.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            resume_key,
            resumed: self.resumed.is_some(),
            heartbeat_ms: millis(MuxLimits::default().heartbeat),
            max_streams: self.shared.limits().session_streams,
            tunnels: bound,
            extra: vec![Webhooks::known(), Inbox::known(&kept), Access::known(), Oidc::known()],
        };
        send(link, SessionKind::Welcome, &welcome);
        // There is one Welcome.
        let _ = self.welcomed.set(link.ping());
        self.announce();
        let expiry = self.expiry();
        let mut expired = pin!(async move {
            match expiry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        let mut daily = pin!(sleep(DAY));
        loop {
            tokio::select! {
                signal = link.signal() => match signal {
                    Signal::Message(kind, payload) => self.message(link, kind, &payload).await,
                    // The driver ends the session in a moment, once its streams have ended.
                    Signal::GoAway { .. } => {}
                    Signal::Ended(_) => std::future::pending().await,
                    Signal::Opened(_) => link.go_away(GoAway::Protocol, false, "clients do not open streams"),
                },
                () = &mut expired => {
                    link.go_away(GoAway::Expired, false, "The token has expired; ask the relay's operator for a new one.");
                    std::future::pending::<()>().await;
                }
                () = self.shared.stopping.cancelled() => return Box::pin(self.send_away(link, moves)).await,
                () = &mut daily => {
                    Box::pin(self.touch()).await;
                    daily.set(sleep(DAY));
                }
            }
        }
    }

    /// Has the client go, to the process that serves from now on where there is one. The driver ends the session.
    async fn send_away(&self, link: &Link, moves: bool) -> std::convert::Infallible {
        if moves && self.shared.has_successor() {
            // Not all in the same instant: what it costs to take them in again would be more than each of them waits for.
            let spread = MOVE.saturating_mul(u32::try_from(self.shared.sessions.count()).unwrap_or(u32::MAX));
            sleep(spread.min(self.shared.limits().drain / 2).mul_f64(fastrand::f64())).await;
            // One that cannot be queued goes to a session that is ending.
            let _ = link.send_message(SessionKind::Move, Bytes::new());
            // Meanwhile more may come for it on connections that lead here.
            self.shared.leaving.cancelled().await;
        }
        link.go_away(GoAway::Shutdown, true, "The relay shuts down.");
        self.shared.closing.cancelled().await;
        link.go_away(GoAway::Shutdown, false, "The relay shuts down.");
        std::future::pending().await
    }

    /// Uses a resume key. Returns the sessions that it resumes, where they are still live.
    fn resume(&mut self, resume: &Resume) -> Vec<Replaced> {
        let sessions = &self.shared.sessions;
        let is_heard = |id: Ulid| sessions.live.get(&id).is_some_and(|live| is_heard(&live.link, &live.welcomed));
        let used = sessions.keys.take(&resume.key, self.token.id, self.id, is_heard, Instant::now());
        let Some((hash, from, unheard)) = used else { return Vec::new() };
        let all = unheard.iter().chain([&from]).filter_map(|id| sessions.live.get(id));
        let replaced = all.map(|live| Replaced { link: live.link.clone(), seat: live.seat.clone() }).collect();
        self.used = Some(hash);
        self.resumed = Some(Arc::new(Resumed { from, last_stream: resume.last_stream, unheard }));
        replaced
    }

    async fn message(&mut self, link: &Link, kind: SessionKind, payload: &Bytes) {
        match kind {
            SessionKind::Bind => match TunnelSpec::from_bytes(payload) {
                Ok(spec) => {
                    let bound = Box::pin(self.bind(link, spec, &mut Vec::new())).await;
                    send(link, SessionKind::Bound, &bound);
                    self.announce();
                }
                Err(error) => link.go_away(GoAway::Protocol, false, &error.to_string()),
            },
            SessionKind::Unbind => match u32::from_bytes(payload) {
                Ok(number) => self.unbind(number),
                Err(error) => link.go_away(GoAway::Protocol, false, &error.to_string()),
            },
            SessionKind::Hello
            | SessionKind::Welcome
            | SessionKind::Bound
            | SessionKind::Withheld
            | SessionKind::Move
            | SessionKind::Lost => {
                link.go_away(GoAway::Protocol, false, "a session message out of turn");
            }
        }
    }

    /// Lets requests come, now that the client has been told of its tunnels.
    fn announce(&self) {
        for tunnel in self.tunnels.iter().filter(|tunnel| !tunnel.announced.load(Relaxed)) {
            if !self.shared.registry.announce(tunnel) {
                tunnel.tell_lost(tunnel.lost.get().copied().unwrap_or(Loss::TakenOver));
            }
            if let Some(inbox) = self.shared.inboxes.get(&tunnel.name) {
                inbox.wake();
            }
        }
    }

    /// Gives the client the tunnel that it asks for, or says why not. `mute` are links that have been found dead just now.
    async fn bind(&mut self, link: &Link, spec: TunnelSpec, mute: &mut Vec<Link>) -> Bound {
        let tunnel = spec.tunnel;
        let result = self.try_bind(link, spec, mute).await.map(|tunnel| PublicName {
            name: tunnel.name.clone(),
            url: self.shared.config.tunnel_url(&tunnel.name, self.shared.https_port),
        });
        Bound { tunnel, result }
    }

    async fn try_bind(&mut self, link: &Link, spec: TunnelSpec, mute: &mut Vec<Link>) -> Result<Arc<Tunnel>, Refusal> {
        // Those that another session has taken over, and whose client has been told or will be.
        self.tunnels.retain(|tunnel| !tunnel.announced.load(Relaxed) || !tunnel.counted.has_ended());
        if self.tunnels.iter().any(|tunnel| tunnel.number == spec.tunnel) {
            return Err(refusal("bad-request", "The session has a tunnel of that number.", "Choose another number."));
        }
        let most = self.meter.limits().max_tunnels;
        // A name that is bound is the same token's, and the tunnel that has it goes when this one comes.
        let asked = spec.domain.as_deref().or(spec.name.as_deref());
        let replaces = asked.is_some_and(|name| self.shared.registry.is_bound(&name.to_ascii_lowercase()));
        let is_full = self.tunnels.len() >= self.shared.limits().session_tunnels;
        let counted = self.place.count_tunnel(if replaces { u32::MAX } else { most }).filter(|_| !is_full);
        let Some(counted) = counted else {
            let message = format!("The token has {most} tunnels open, as many as it may.");
            return Err(refusal("too-many-tunnels", &message, "Close one, or ask the relay's operator for more."));
        };
        let tunnel = self.bind_counted(link, spec, counted, mute).await?;
        // Before anything is waited for: where the session ends meanwhile, this one ends with it.
        self.tunnels.push(tunnel.clone());
        // Another process that serves by now expects its client from here on.
        self.shared.inboxes.note(&tunnel.name);
        // Now that it has the name, and before a request comes.
        if let Err(error) = self.keep_inbox(&tunnel).await {
            self.tunnels.retain(|other| other.generation != tunnel.generation);
            tunnel.counted.end();
            self.shared.registry.unbind(&tunnel, None);
            return Err(match error {
                OpenInboxError::TooMany { .. } => {
                    let hint = "Close one with `relay inbox close NAME`, or ask the relay's operator for more.";
                    refusal("too-many-inboxes", &sentence(&error), hint)
                }
                OpenInboxError::Store(error) => {
                    tracing::error!(%error, "an inbox was not opened, or not closed");
                    refusal("internal", &sentence(&error), "Ask the relay's operator to look at its log.")
                }
            });
        }
        Ok(tunnel)
    }

    async fn bind_counted(
        &self,
        link: &Link,
        spec: TunnelSpec,
        counted: Counted,
        mute: &mut Vec<Link>,
    ) -> Result<Arc<Tunnel>, Refusal> {
        let asked = Arc::new(asked(&self.shared, &spec)?);
        let name = match (&spec.domain, &spec.name) {
            (Some(domain), None) => self.claim_domain(domain).await?,
            (None, name) => self.claim(name.as_deref()).await?,
            (Some(_), Some(_)) => {
                return Err(refusal("bad-request", "A tunnel has a name or a domain.", "Ask for one of the two."));
            }
        };
        let tunnel = Arc::new(Tunnel {
            name: name.as_str().to_owned(),
            number: spec.tunnel,
            asked,
            link: link.clone(),
            token: self.token.id,
            session: self.id,
            resumed: self.resumed.clone(),
            generation: self.shared.registry.next_generation(),
            announced: AtomicBool::new(false),
            lost: OnceLock::new(),
            untold: Untold::default(),
            meter: self.meter.clone(),
            counted,
        });
        while let Err(other) = self.shared.registry.bind_if_free(tunnel.clone()) {
            if other.token != self.token.id {
                self.check_still_ours(&name).await?;
            }
            // Whoever resumes the session that has the name is the client that has it.
            let ours = self.resumed.as_ref().is_some_and(|resumed| resumed.goes_on_with(other.session));
            if !ours && !spec.takeover && is_alive(&other.link, mute).await {
                let message = format!("The name {name} is in use by another client with the same token.");
                let hint = "Stop the other client, choose another --subdomain, or take the name over with --takeover.";
                return Err(refusal("name-in-use", &message, hint));
            }
            // Only that very binding: a third session may have been faster.
            if let Some(told) = self.shared.registry.replace(&other, tunnel.clone()) {
                // Its session may have others, and live on with them.
                other.counted.end();
                if !ours {
                    tracing::info!(session = %self.id, %name, "a name was taken over");
                }
                // Whose client does not know of it yet tells it once it does.
                if told && !ours {
                    other.tell_lost(Loss::TakenOver);
                }
                break;
            }
        }
        if name.is_domain()
            && let Err(refusal) = self.check_still_ours(&name).await
        {
            self.shared.registry.unbind(&tunnel, None);
            return Err(refusal);
        }
        // Blocked since it was looked at, before it was bound: nobody else would notice.
        if let Err(refusal) = self.check_block(&name) {
            self.shared.registry.unbind(&tunnel, None);
            return Err(refusal);
        }
        Ok(tunnel)
    }

    /// Opens the inbox of a tunnel that is to have one; one that the name has stays, if it is its owner's.
    async fn keep_inbox(&self, tunnel: &Tunnel) -> Result<(), OpenInboxError> {
        match Settings::of(&tunnel.asked) {
            Some(settings) => inbox::open(&self.shared, &tunnel.name, tunnel.token, settings, false).await,
            None => {
                inbox::leave_to(&self.shared.inboxes, &tunnel.name, tunnel.token).await?;
                inbox::guard(&self.shared, &tunnel.name, tunnel.token, tunnel.asked.access.clone()).await
            }
        }
    }

    /// A name below the relay's own domain that the token may use.
    async fn claim(&self, asked: Option<&str>) -> Result<Name, Refusal> {
        let claimed = match asked {
            None => self.shared.store.claim_random_name(self.token.id, unix_now()).await,
            Some(asked) => {
                let dot = NameError::Character { character: '.' };
                let name = Name::parse(asked).and_then(|name| if name.is_domain() { Err(dot) } else { Ok(name) });
                let name = name.map_err(|error| {
                    refusal("name-invalid", &sentence(&error), "Use letters, digits and hyphens, such as my-app.")
                })?;
                self.check_block(&name)?;
                self.claim_name(name).await
            }
        };
        claimed.map_err(unclaimed)
    }

    /// A custom domain that the token may use: the operator has said that it is its own, or the world sees the record that
    /// only its owner and the token's can have agreed upon.
    async fn claim_domain(&self, asked: &str) -> Result<Name, Refusal> {
        let Some(domains) = &self.shared.domains else {
            let hint = "Use --subdomain NAME, or ask the relay's operator: it takes a relay that gets its certificates by itself.";
            return Err(refusal("not-allowed", "This relay does not serve custom domains.", hint));
        };
        let name = Name::parse(asked).map_err(|error| refusal("name-invalid", &sentence(&error), ""))?;
        let own = &self.shared.config.domain;
        if !name.is_domain() || name.is_of(own) {
            let message = format!("{name} is no domain outside of {own}.");
            return Err(refusal("name-invalid", &message, "For a name below it, use --subdomain NAME."));
        }
        self.check_block(&name)?;
        let owner = self.shared.store.owner(&name, unix_now()).await.map_err(|error| unclaimed(error.into()))?;
        let held = owner.filter(|owner| owner.token == self.token.id).map(|owner| owner.held);
        if held == Some(Held::Reserved) {
            self.claim_name(name.clone()).await.map_err(unclaimed)?;
        } else {
            match domains.check_proof_of(&self.shared, &name, self.token.id).await {
                Ok(texts) => self.claim_proven(&name, &texts).await?,
                // It was seen before, and is seen again before a certificate is renewed.
                Err(DomainError::Unseen { .. }) if held == Some(Held::Leased) => {
                    self.claim_name(name.clone()).await.map_err(unclaimed)?;
                }
                Err(error) => return Err(unproven(&error, &self.token.name)),
            }
        }
        if domains.want(&name, self.shared.limits().domains) {
            return Ok(name);
        }
        let message = "The relay has as many custom domains as it may.";
        Err(refusal("too-many-names", message, "Ask the relay's operator to raise limits.domains."))
    }

    /// Claims a domain that the world sees to be this token's, among `texts`. Whoever had it by such a record, which is not there any
    /// more, loses it: the domain may be another owner's by now. What the operator has said stands above that.
    async fn claim_proven(&self, name: &Name, texts: &[String]) -> Result<(), Refusal> {
        match self.claim_name(name.clone()).await {
            Err(ClaimError::OwnedByOther { .. } | ClaimError::Resting { .. }) => {}
            claimed => return claimed.map(drop).map_err(unclaimed),
        }
        let (store, now) = (&self.shared.store, unix_now());
        let reserved = || {
            let message = format!("The relay's operator has reserved {name} for another token.");
            refusal("name-taken", &message, "Ask the operator to release it.")
        };
        let failed = |error: StoreError| unclaimed(error.into());
        let former = store.owner(name, now).await.map_err(failed)?;
        let Some(former) = former.filter(|former| former.held != Held::Reserved) else { return Err(reserved()) };
        let is_in_force = match store.check_token(former.token, now).await {
            Ok(()) => true,
            Err(AuthError::Store(error)) => return Err(failed(error)),
            Err(_) => false,
        };
        let theirs = match store.domain_proof(former.token, name).await {
            Ok(value) => Some(value),
            Err(AuthError::Store(error)) => return Err(failed(error)),
            Err(_) => None,
        };
        if is_in_force && theirs.is_some_and(|theirs| texts.contains(&theirs)) {
            let message = format!("{name} is another token's, whose TXT record is there beside yours.");
            let hint = format!("Remove the other values at {}, and try again.", record_of(name));
            return Err(refusal("name-taken", &message, &hint));
        }
        store.take_domain(self.token.id, former.token, name, now).await.map_err(|error| match error {
            ClaimError::OwnedByOther { .. } => reserved(),
            error => unclaimed(error),
        })?;
        tracing::warn!(domain = %name, token = %self.token.name, former = %former.token, "a custom domain is another token's now, by its record");
        if let Err(error) = inbox::leave_to(&self.shared.inboxes, name.as_str(), self.token.id).await {
            // It is tried again when the tunnel is there.
            tracing::error!(%error, domain = %name, "the inbox of who had a domain was not closed");
        }
        self.shared.registry.evict(name.as_str(), Loss::Proven, |tunnel| tunnel.token != self.token.id);
        Ok(())
    }

    /// Whether nobody is to have the name, before it is claimed or a certificate is asked for.
    fn check_block(&self, name: &Name) -> Result<(), Refusal> {
        if !self.shared.blocks.has_name(name.as_str()) {
            return Ok(());
        }
        let message = format!("The relay's operator has blocked the name {name}.");
        Err(refusal("not-allowed", &message, "Choose another --subdomain, or ask the operator why."))
    }

    /// Whether a domain is this token's still. What is asked for before it is bound may have changed meanwhile, and whoever takes
    /// it looks at what is bound behind that.
    async fn check_still_ours(&self, name: &Name) -> Result<(), Refusal> {
        let owner = self.shared.store.owner(name, unix_now()).await.map_err(|error| unclaimed(error.into()))?;
        if owner.is_some_and(|owner| owner.token == self.token.id && owner.held != Held::Resting) {
            return Ok(());
        }
        Err(unclaimed(ClaimError::OwnedByOther { name: name.clone() }))
    }

    async fn claim_name(&self, name: Name) -> Result<Name, ClaimError> {
        let claims = self.shared.store.claim_names(self.token.id, std::slice::from_ref(&name), unix_now()).await;
        match claims.map(|mut claims| claims.pop()) {
            Ok(Some(Ok(()))) => Ok(name),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) => Err(ClaimError::TokenEnded),
            Err(error) => Err(ClaimError::Store(error)),
        }
    }

    fn unbind(&mut self, number: u32) {
        let gone: Vec<_> = self.tunnels.extract_if(.., |tunnel| tunnel.number == number).collect();
        for tunnel in gone {
            // First, so that whoever asks for the name once it is free finds room for it, too.
            tunnel.counted.end();
            match self.shared.inboxes.get(&tunnel.name) {
                // What comes for it goes on to be kept.
                Some(_) => self.shared.registry.unbind(&tunnel, None),
                None => self.shared.registry.forget(&tunnel.name, Some(tunnel.generation)),
            }
        }
    }

    /// The client is away now.
    async fn leave(self, link: &Link) {
        // At once, because the client may be back before the store has answered. In this order: whoever does not find the
        // session among the live ones finds its seat vacant.
        self.place.vacate();
        let keys = &self.shared.sessions.keys;
        if let Some(used) = self.used.filter(|_| is_heard(link, &self.welcomed)) {
            keys.spend(self.token.id, used, Instant::now());
        }
        self.shared.sessions.live.remove(&self.id);
        let comes_back = link.ended().is_some_and(|ended| resumes(&ended));
        let until = comes_back.then(|| Instant::now() + self.shared.limits().resume);
        let until = until.map(|until| self.expiry().map_or(until, |expiry| until.min(expiry)));
        // What it leaves behind goes with its key, and so with its token: whoever ends that finds no session any more.
        let leave = |is_resumable: bool| {
            let until = until.filter(|_| is_resumable);
            self.tunnels.iter().for_each(|tunnel| self.shared.registry.unbind(tunnel, until));
        };
        // A client that was lost before its Welcome comes back with the key that it had.
        match self.key.or(self.used) {
            Some(key) => keys.end(self.token.id, key, &self.shared.limits(), Instant::now(), leave),
            None => leave(false),
        }
        self.touch().await;
    }

    async fn touch(&self) {
        let names: Vec<Name> = self.tunnels.iter().filter_map(|tunnel| Name::parse(&tunnel.name).ok()).collect();
        if names.is_empty() {
            return;
        }
        if let Err(error) = self.shared.store.touch_names(self.token.id, &names, unix_now()).await {
            tracing::warn!(%error, "the store did not note the use of a name");
        }
    }

    fn expiry(&self) -> Option<Instant> {
        let left = u64::try_from(self.token.expires_at? - unix_now()).unwrap_or(0);
        Instant::now().checked_add(Duration::from_secs(left))
    }

    fn log_end(&self, ended: &Ended, since: Instant) {
        let seconds = since.elapsed().as_secs();
        match ended {
            Ended::Violation { .. } => {
                tracing::warn!(session = %self.id, peer = %self.peer, token = %self.token.name, seconds, %ended, "a session ended");
            }
            _ => {
                tracing::info!(session = %self.id, peer = %self.peer, token = %self.token.name, seconds, %ended, "a session ended")
            }
        }
    }
}

/// Whether the client of a session that has ended so may come back to it: whoever has said goodbye, or was sent away, does
/// not.
pub(crate) fn resumes(ended: &Ended) -> bool {
    match ended {
        Ended::Silent(_) | Ended::Link(_) | Ended::Local(GoAway::Replaced) => true,
        Ended::Remote { reason, .. } => *reason != GoAway::Shutdown,
        Ended::Local(_) | Ended::Violation { .. } => false,
    }
}

/// A session that another goes on with. It ends when this is dropped, whatever becomes of the other.
struct Replaced {
    link: Link,
    seat: Arc<Seat>,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        self.link.go_away(GoAway::Replaced, false, "The client goes on with another session.");
    }
}

/// Whether somebody is at the other end. A link that is mute is asked once, and not for each name that its session has.
async fn is_alive(link: &Link, mute: &mut Vec<Link>) -> bool {
    if mute.iter().any(|known| known.is_same(link)) {
        return false;
    }
    let is_alive = link.probe(PROBE).await;
    if !is_alive {
        mute.push(link.clone());
    }
    is_alive
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Clients that have to move do so over that much time for each of them: about what taking one in costs.
const MOVE: Duration = Duration::from_millis(1);

async fn hello(link: &Link) -> Result<Hello, String> {
    match link.signal().await {
        Signal::Message(SessionKind::Hello, payload) => Hello::from_bytes(&payload).map_err(|error| error.to_string()),
        Signal::Ended(ended) => Err(ended.to_string()),
        _ => Err("the first message is not a Hello".into()),
    }
}

/// Whether handshakes for hosts of tunnels are the relay's, so that they can ask for client certificates.
fn can_ask(config: &Config) -> Result<(), Refusal> {
    let refused = |why| Err(refusal("not-allowed", why, "Ask for a key instead, as with --api-key."));
    match config {
        Config { path_mode: true, .. } => {
            refused("This relay cannot ask for client certificates: its tunnels share one host.")
        }
        Config { https: None, .. } => {
            refused("This relay cannot ask for client certificates: a proxy in front of it has the handshakes.")
        }
        _ => Ok(()),
    }
}

/// Whether people can log in at a tunnel: its host is its own, and the operator lets the relay ask that issuer.
fn can_log_in(shared: &Shared, oidc: &Oidc) -> Result<(), Refusal> {
    if shared.config.path_mode {
        let why = "Nobody can log in at a tunnel of this relay: its tunnels share one host, and so their cookies.";
        return Err(refusal("not-allowed", why, "Ask for a key instead, as with --api-key."));
    }
    if shared.live.borrow().issuers.get(&oidc.issuer).is_some() {
        return Ok(());
    }
    let why = format!("The operator of this relay does not let tunnels ask {} who somebody is.", oidc.issuer);
    let hint = format!(
        "Ask the operator to write issuers = [\"{}\"] below [oidc] in relay-server.toml, and to run: relay-server reload",
        oidc.issuer
    );
    Err(refusal("not-allowed", &why, &hint))
}

/// What a client has said of a tunnel beside its name.
fn asked(shared: &Shared, spec: &TunnelSpec) -> Result<Asked, Refusal> {
    let timeout = spec.timeout_ms.map(|ms| Duration::from_millis(ms.into()).clamp(TIMEOUTS.0, TIMEOUTS.1));
    let webhooks = Webhooks::of(&spec.extra)
        .map_err(|error| refusal("bad-request", &sentence(&error), "Update whichever of client and relay is older."))?;
    let inbox = Inbox::of(&spec.extra)
        .map_err(|error| refusal("bad-request", &sentence(&error), "Update whichever of client and relay is older."))?;
    let access = Access::of(&spec.extra)
        .map_err(|error| refusal("bad-request", &sentence(&error), "Update whichever of client and relay is older."))?;
    if access.as_ref().is_some_and(|access| !access.client_ca.is_empty()) {
        can_ask(&shared.config)?;
    }
    if let Some(oidc) = access.as_ref().and_then(|access| access.oidc.as_ref()) {
        can_log_in(shared, oidc)?;
    }
    match unjudgeable(&shared.providers, &webhooks) {
        Some(why) => Err(refusal("not-allowed", &why, "Judge them where the client is: --verify-at client.")),
        None => Ok(Asked { timeout, webhooks, inbox, access: access.map(Arc::new) }),
    }
}

/// Why the relay cannot judge signatures, where it is asked to. It must not be silent about it.
fn unjudgeable(providers: &Table, webhooks: &Webhooks) -> Option<String> {
    if webhooks.verify == Verify::Off {
        return None;
    }
    let id = webhooks.provider.as_deref();
    match id.map(|id| (id, providers.get(id))) {
        _ if webhooks.credentials.secrets.is_empty() => Some("The relay has no secret to judge signatures by.".into()),
        Some((id, None)) => Some(format!("This relay does not know the provider {id}.")),
        Some((_, Some(provider))) if !provider.signs_with_given_secret() => Some(format!(
            "{} does not sign, or with a key that must be fetched, which a relay does not.",
            provider.name
        )),
        _ => None,
    }
}

/// Why a token does not get a name.
fn unclaimed(error: ClaimError) -> Refusal {
    let code = match &error {
        ClaimError::OwnedByOther { .. } | ClaimError::Resting { .. } => "name-taken",
        ClaimError::TooManyNames { .. } => "too-many-names",
        ClaimError::TokenEnded => "unauthorized",
        ClaimError::Store(error) => {
            tracing::error!(%error, "the store did not claim a name");
            "internal"
        }
    };
    refusal(code, &sentence(&error), "")
}

/// Why a token does not get a custom domain, and what to do.
fn unproven(error: &DomainError, token: &str) -> Refusal {
    let hint = match error {
        DomainError::Unproven { domain, record, value } => format!(
            "Set this record where the domain's others are, and try again: {record}. TXT \"{value}\". Or have the relay's \
             operator run: relay-server token reserve {token} {domain}"
        ),
        _ => "Try again later, or ask the relay's operator to reserve the domain for the token.".to_owned(),
    };
    refusal("domain-unproven", &sentence(error), &hint)
}

fn refusal(code: &str, message: &str, hint: &str) -> Refusal {
    Refusal { code: code.to_owned(), message: message.to_owned(), hint: hint.to_owned() }
}

/// A stranger's words, fit for a log.
fn show(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use relay_protocol::webhook::Credentials;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::control::Change;
    use crate::store::{NewToken, TokenLimits};
    use crate::tunnels::Found;

    #[tokio::test]
    async fn a_token_revoked_between_its_check_and_the_sessions_start_ends_the_session() {
        let ca = tempfile::tempdir().unwrap();
        let relay = crate::tests::relay(ca.path()).await;
        let shared = relay.shared.clone();
        let limits = TokenLimits { max_sessions: 1, ..TokenLimits::default() };
        let new = NewToken { name: "late".to_owned(), reserve: Vec::new(), expires_at: None, limits };
        let (_, token) = shared.store.create_token(new, unix_now()).await.unwrap();

        let place = Session::place(&shared, &token).unwrap();
        shared.store.revoke_token("late", unix_now()).await.unwrap();
        shared.sessions.end(token.id, GoAway::Revoked, "This reaches nobody: there is no session yet.");

        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let session = tokio::spawn(in_place(&shared, &token, place).await.run(ours, Bytes::new()));
        let socket = Driver::websocket(theirs, Bytes::new(), Side::Client, READ_BUFFER).await;
        let (link, driver) = Driver::new(Side::Client, MuxLimits::default(), socket);
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let signal = timeout(Duration::from_secs(5), link.signal()).await.expect("the client is told");
        assert!(matches!(signal, Signal::GoAway { reason: GoAway::Revoked, drain: false, .. }), "{signal:?}");
        timeout(Duration::from_secs(5), session).await.expect("the session ends").unwrap();
        assert_eq!((shared.sessions.count(), shared.sessions.live.len()), (0, 0));
    }

    /// A token of a relay's that has just started, which is called `mine`.
    async fn token(shared: &Shared) -> Token {
        let (name, limits) = ("mine".to_owned(), TokenLimits::default());
        let new = NewToken { name, reserve: Vec::new(), expires_at: None, limits };
        shared.store.create_token(new, unix_now()).await.unwrap().1
    }

    async fn in_place(shared: &Arc<Shared>, token: &Token, place: Place) -> Session {
        let meter = shared.quotas.meter(&shared.store, token.id).await.unwrap();
        Session::new(shared.clone(), IpAddr::from([127, 0, 0, 1]), token.clone(), meter, place)
    }

    /// A session of which a test does each step by itself, the relay's end of its link, and what drives that; and the client's
    /// end of the connection.
    async fn by_hand(
        shared: &Arc<Shared>,
        token: &Token,
    ) -> (Session, Link, impl Future<Output = Ended>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let session = in_place(shared, token, Session::place(shared, token).unwrap()).await;
        let socket = Driver::websocket(ours, Bytes::new(), Side::Relay, READ_BUFFER).await;
        let (link, driver) = Driver::new(Side::Relay, MuxLimits::default(), socket);
        (session, link, driver, theirs)
    }

    /// The client's end of a session with tunnels of these names, each of which asks for handshakes or does not.
    async fn session(
        shared: &Arc<Shared>,
        token: &Token,
        names: &[(&str, bool)],
    ) -> (Link, Vec<AbortOnDropHandle<()>>) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let session = in_place(shared, token, Session::place(shared, token).unwrap()).await;
        let session = tokio::spawn(session.run(ours, Bytes::new()));
        let socket = Driver::websocket(theirs, Bytes::new(), Side::Client, READ_BUFFER).await;
        let (link, driver) = Driver::new(Side::Client, MuxLimits::default(), socket);
        let driver = tokio::spawn(async { drop(driver.await) });
        let tunnels = names.iter().zip(1..).map(|((name, handshake), tunnel)| {
            let credentials = Credentials { secrets: vec!["secret".into()], ..Credentials::default() };
            let webhooks = Webhooks { handshake: *handshake, credentials, ..Webhooks::default() };
            let name = Some((*name).to_owned());
            TunnelSpec { tunnel, name, extra: webhooks.extras().unwrap(), ..TunnelSpec::default() }
        });
        let (client, version, tunnels) = ("test".to_owned(), "0".to_owned(), tunnels.collect());
        let hello = Hello { client, version, features: Vec::new(), tunnels, resume: None, extra: Vec::new() };
        link.send_message(SessionKind::Hello, hello.to_bytes().unwrap()).unwrap();
        let signal = timeout(Duration::from_secs(5), link.signal()).await.expect("an answer");
        assert!(matches!(signal, Signal::Message(SessionKind::Welcome, _)), "{signal:?}");
        (link, vec![AbortOnDropHandle::new(driver), AbortOnDropHandle::new(session)])
    }

    /// What is left of a tunnel whose client is away.
    fn left(shared: &Shared, name: &str) -> Arc<Asked> {
        match shared.registry.find(name) {
            Found::Away(known) => known.map(|(_, asked)| asked).unwrap_or_default(),
            found => panic!("{name}: {found:?}"),
        }
    }

    #[tokio::test]
    async fn secrets_outlive_a_session_only_where_they_may_be_needed() {
        let ca = tempfile::tempdir().unwrap();
        let relay = crate::tests::relay(ca.path()).await;
        let shared = relay.shared.clone();
        let token = token(&shared).await;
        let secrets = |name: &str| left(&shared, name).webhooks.credentials.secrets.len();

        let (_link, mut tasks) = session(&shared, &token, &[("asks", true), ("plain", false)]).await;
        let session = tasks.pop().unwrap();
        drop(tasks);
        session.await.unwrap();
        assert_eq!((secrets("asks"), secrets("plain")), (1, 0));
        shared.clone().follow(Change::Revoked(token.id)).await.unwrap();
        assert_eq!(secrets("asks"), 0);
    }

    /// The connection may be lost again before the client has its Welcome, and then comes back with the key that it had.
    #[tokio::test]
    async fn a_session_that_is_lost_before_its_welcome_leaves_as_much_behind_as_the_one_before() {
        let ca = tempfile::tempdir().unwrap();
        let relay = crate::tests::relay(ca.path()).await;
        let shared = relay.shared.clone();
        let token = token(&shared).await;
        let (key, hash) = shared.sessions.keys.issue(token.id, Ulid::generate(), Instant::now());
        let resume = Resume { key, last_stream: 0 };

        for times in 1..=3 {
            let (mut session, link, driver, theirs) = by_hand(&shared, &token).await;
            session.resume(&resume);
            let webhooks = Webhooks { provider: Some("slack".to_owned()), handshake: true, ..Webhooks::default() };
            let spec = TunnelSpec {
                tunnel: 1,
                name: Some("hooks".to_owned()),
                extra: webhooks.extras().unwrap(),
                ..TunnelSpec::default()
            };
            assert!(session.bind(&link, spec, &mut Vec::new()).await.result.is_ok());
            drop(theirs);
            driver.await;
            session.leave(&link).await;
            assert!(left(&shared, "hooks").webhooks.handshake, "after {times}");
        }
        // A key whose token has ended leaves nothing.
        shared.sessions.keys.revoke(token.id, Instant::now());
        shared.clone().follow(Change::Revoked(token.id)).await.unwrap();
        assert!(!left(&shared, "hooks").webhooks.handshake);
        shared.sessions.keys.end(token.id, hash, &shared.limits(), Instant::now(), |is_known| assert!(!is_known));
    }

    /// Also where the relay has not noticed yet that the session before that one is gone.
    #[tokio::test]
    async fn who_may_call_is_known_also_after_a_session_that_was_lost_before_anybody_could() {
        let ca = tempfile::tempdir().unwrap();
        let relay = crate::tests::relay(ca.path()).await;
        let shared = relay.shared.clone();
        let token = token(&shared).await;
        let access = Access { methods: vec!["POST".to_owned()], ..Access::default() };
        for (name, is_noticed) in [("noticed", true), ("unnoticed", false)] {
            let bound = async || {
                let (mut session, link, driver, theirs) = by_hand(&shared, &token).await;
                let extra = access.extras().unwrap();
                let spec = TunnelSpec {
                    tunnel: 1,
                    name: Some(name.to_owned()),
                    takeover: true,
                    extra,
                    ..TunnelSpec::default()
                };
                assert!(session.bind(&link, spec, &mut Vec::new()).await.result.is_ok());
                (session, link, driver, theirs)
            };
            let (first, gone, driver, theirs) = bound().await;
            first.announce();
            let mut driver = Some(driver);
            if is_noticed {
                drop(theirs);
                drop(driver.take().unwrap().await);
            }
            let (second, link, ..) = bound().await;
            second.leave(&link).await;
            assert_eq!(shared.registry.left_access(name).as_deref(), Some(&access), "{name}");
            first.leave(&gone).await;
        }
    }
}
