//! What a running client says of itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use relay_protocol::link::Link;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::meter::{Meter, Reading};
use crate::event::{Event, InboxState, Observer};

/// What is known of a running client; clones share it. The client writes, whoever asks reads.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<Known>);

#[derive(Debug)]
struct Known {
    since: Timestamp,
    traffic: Mutex<Traffic>,
    session: watch::Sender<Session>,
}

/// What changes with every exchange. Nobody waits for it.
#[derive(Debug, Default)]
struct Traffic {
    requests: u64,
    /// By the tunnel.
    meters: HashMap<String, Meter>,
}

#[derive(Debug, Default)]
struct Session {
    relay: String,
    inspector: Option<String>,
    relay_ca: Option<String>,
    relay_addr: Option<String>,
    tunnels: Vec<Tunnel>,
    refused: Vec<Refused>,
    link: Option<Link>,
    /// Of the session that there is, or of the last one.
    connected_since: Option<Timestamp>,
    /// Why there is none, and when the next attempt comes.
    lost: Option<(String, Instant)>,
}

impl Board {
    /// A client that starts now.
    pub(crate) fn new() -> Self {
        let session = watch::Sender::default();
        let known = Known { since: Timestamp::now(), traffic: Mutex::default(), session };
        Self(Arc::new(known))
    }

    /// How the relay is reached, and with it the public URLs: whom to trust, where that is no public CA, and where to dial
    /// instead of where the name leads.
    pub(crate) fn reached(&self, ca: Option<&str>, addr: Option<String>) {
        self.change(|session| (session.relay_ca, session.relay_addr) = (ca.map(str::to_owned), addr));
    }

    /// There is a session.
    pub(crate) fn up(&self, link: &Link) {
        self.change(|session| {
            session.link = Some(link.clone());
            session.connected_since = Some(Timestamp::now());
            session.lost = None;
        });
    }

    /// There is an inspector, at this URL.
    pub(crate) fn inspected(&self, url: &str) {
        self.change(|session| session.inspector = Some(url.to_owned()));
    }

    /// Waits until what holds is as wanted; returns what `find` makes of it then.
    pub(crate) async fn until<T>(&self, find: impl Fn(&Status) -> Option<T>) -> T {
        let mut changes = self.0.session.subscribe();
        loop {
            if let Some(found) = find(&self.status()) {
                return found;
            }
            // The other end is here.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// What holds at this moment.
    pub(crate) fn status(&self) -> Status {
        let session = self.0.session.borrow();
        let (state, reason, retry_in_ms) = match (&session.lost, &session.link) {
            (Some((reason, retry)), _) => {
                let left = retry.saturating_duration_since(Instant::now());
                (State::Reconnecting, Some(reason.clone()), Some(milliseconds(left)))
            }
            (None, Some(_)) => (State::Connected, None, None),
            (None, None) => (State::Connecting, None, None),
        };
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: rfc3339(self.0.since),
            relay: session.relay.clone(),
            inspector: session.inspector.clone(),
            relay_ca: session.relay_ca.clone(),
            relay_addr: session.relay_addr.clone(),
            state,
            connected_since: session.connected_since.filter(|_| state == State::Connected).map(rfc3339),
            reason,
            retry_in_ms,
            last_heard_ms: session.link.as_ref().map(|link| milliseconds(link.last_heard().elapsed())),
            requests: self.traffic().requests,
            tunnels: session.tunnels.clone(),
            refused: session.refused.clone(),
        }
    }

    /// How long the relay takes to answer, as far as that is known.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.0.session.borrow().link.as_ref()?.rtt()
    }

    /// Forgets what was refused and is not wanted any more: it is not in this list of tunnels.
    pub(crate) fn keep_refused(&self, is_wanted: impl Fn(&str) -> bool) {
        self.change(|session| session.refused.retain(|refused| is_wanted(&refused.tunnel)));
    }

    /// How busy a tunnel has been.
    pub(crate) fn traffic_of(&self, tunnel: &str) -> Reading {
        self.traffic().meters.get_mut(tunnel).map(|meter| meter.read(Instant::now())).unwrap_or_default()
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.0.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Session)) {
        self.0.session.send_modify(change);
    }

    pub(crate) fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Exchange { tunnel, duration_ms, .. } => {
                let mut traffic = self.traffic();
                traffic.requests += 1;
                if let Some(meter) = traffic.meters.get_mut(*tunnel) {
                    let took = Duration::try_from_secs_f64(duration_ms / 1e3).unwrap_or_default();
                    meter.add(Instant::now(), took);
                }
            }
            Event::Connecting { relay } => self.change(|session| (*relay).clone_into(&mut session.relay)),
            Event::Ready { tunnel, name, url, upstream, .. } => {
                let text = |text: &&str| (*text).to_owned();
                let tunnel = Tunnel {
                    tunnel: text(tunnel),
                    name: text(name),
                    url: text(url),
                    upstream: text(upstream),
                    inbox: None,
                };
                self.traffic().meters.entry(tunnel.tunnel.clone()).or_insert_with(|| Meter::new(Instant::now()));
                self.change(|session| {
                    session.tunnels.retain(|other| other.tunnel != tunnel.tunnel);
                    session.refused.retain(|other| other.tunnel != tunnel.tunnel);
                    session.tunnels.push(tunnel);
                });
            }
            Event::Closed { tunnel, name, .. } => {
                self.traffic().meters.remove(*tunnel);
                self.change(|session| {
                    session.tunnels.retain(|known| known.tunnel != *tunnel || known.name != *name);
                    session.refused.retain(|known| known.tunnel != *tunnel);
                });
            }
            Event::Refused { tunnel, reason, url } => self.change(|session| {
                session.refused.retain(|known| known.tunnel != *tunnel);
                if url.is_none() {
                    session.tunnels.retain(|known| known.tunnel != *tunnel);
                }
                session.refused.push(Refused { tunnel: (*tunnel).to_owned(), reason: (*reason).to_owned() });
            }),
            Event::Inbox { tunnel, state } => self.change(|session| {
                let known = session.tunnels.iter_mut().filter(|known| known.tunnel == *tunnel);
                known.for_each(|known| known.inbox = Some((*state).clone()));
            }),
            Event::Disconnected { reason, retry_in_ms } => {
                let retry = Instant::now() + Duration::from_millis(*retry_in_ms);
                self.change(|session| session.lost = Some(((*reason).to_owned(), retry)));
            }
            _ => {}
        }
    }
}

/// An observer, and a board beside it where there is one.
pub(crate) struct Beside<'a> {
    /// Whoever observes.
    pub(crate) observer: &'a mut dyn Observer,
    /// What is kept up to date.
    pub(crate) board: Option<Board>,
}

impl Observer for Beside<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        if let Some(board) = &self.board {
            board.observe(event);
        }
        self.observer.observe(event);
    }

    fn pause(&mut self) -> bool {
        self.observer.pause()
    }
}

/// What a running client says of itself. Its JSON form is a contract: fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// When it started (RFC 3339).
    pub(crate) since: String,
    /// The relay's URL.
    pub(crate) relay: String,
    /// The inspector's URL; none where it has none.
    #[serde(default)]
    pub(crate) inspector: Option<String>,
    /// The file with the CA that its callers must trust, where it is no public one.
    #[serde(default)]
    pub(crate) relay_ca: Option<String>,
    /// The address that is dialled instead of the one that its name leads to.
    #[serde(default)]
    pub(crate) relay_addr: Option<String>,
    /// Whether there is a session.
    pub(crate) state: State,
    /// Since when (RFC 3339); none where there is none.
    pub(crate) connected_since: Option<String>,
    /// Why there is none any more.
    pub(crate) reason: Option<String>,
    /// Milliseconds until the next attempt; 0 while one is made.
    pub(crate) retry_in_ms: Option<u64>,
    /// Milliseconds since something came from the relay.
    pub(crate) last_heard_ms: Option<u64>,
    /// Requests that have ended.
    pub(crate) requests: u64,
    /// Its tunnels that answer while there is a session.
    pub(crate) tunnels: Vec<Tunnel>,
    /// Its tunnels that the relay refuses. One whose change is refused is among the others, too.
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
}

/// Whether there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// There has been none yet.
    Connecting,
    /// There is.
    Connected,
    /// There was.
    Reconnecting,
}

/// A tunnel of a running client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    /// What it is called on this machine, as in `tunnel.ready`.
    pub(crate) tunnel: String,
    /// The name below the relay's base domain.
    pub(crate) name: String,
    /// The public URL.
    pub(crate) url: String,
    /// Where requests go.
    pub(crate) upstream: String,
    /// How its inbox stood when the client had connected; none where it has none, or that is not known.
    #[serde(default)]
    pub(crate) inbox: Option<InboxState>,
}

/// A tunnel that the relay refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// What it is called on this machine.
    pub(crate) tunnel: String,
    /// Why, and what to do.
    pub(crate) reason: String,
}

fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
