//! What a running client says of itself, and `relay status`, which asks all of this user's.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use relay_protocol::link::Link;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::control::{ControlError, Found, running};
use crate::session::Observer;
use crate::terminal::{Event, Output, Shown, harmless_json};

/// What is known of a running client; clones share it. The client writes, whoever asks reads.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<Known>);

#[derive(Debug)]
struct Known {
    since: Timestamp,
    requests: AtomicU64,
    session: Mutex<Session>,
}

#[derive(Debug, Default)]
struct Session {
    relay: String,
    tunnels: Vec<Tunnel>,
    link: Option<Link>,
    /// Of the session that there is, or of the last one.
    connected_since: Option<Timestamp>,
    /// Why there is none, and when the next attempt comes.
    lost: Option<(String, Instant)>,
}

impl Board {
    /// A client that starts now.
    pub(crate) fn new() -> Self {
        let known = Known { since: Timestamp::now(), requests: AtomicU64::new(0), session: Mutex::default() };
        Self(Arc::new(known))
    }

    /// There is a session.
    pub(crate) fn up(&self, link: &Link) {
        let mut session = self.session();
        session.link = Some(link.clone());
        session.connected_since = Some(Timestamp::now());
        session.lost = None;
    }

    /// What holds at this moment.
    pub(crate) fn status(&self) -> Status {
        let session = self.session();
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
            state,
            connected_since: session.connected_since.filter(|_| state == State::Connected).map(rfc3339),
            reason,
            retry_in_ms,
            last_heard_ms: session.link.as_ref().map(|link| milliseconds(link.last_heard().elapsed())),
            requests: self.0.requests.load(Relaxed),
            tunnels: session.tunnels.clone(),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.0.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Exchange { .. } => drop(self.0.requests.fetch_add(1, Relaxed)),
            Event::Connecting { relay } => (*relay).clone_into(&mut self.session().relay),
            Event::Ready { tunnel, name, url, upstream, .. } => {
                let text = |text: &&str| (*text).to_owned();
                let tunnel =
                    Tunnel { tunnel: text(tunnel), name: text(name), url: text(url), upstream: text(upstream) };
                let mut session = self.session();
                session.tunnels.retain(|other| other.tunnel != tunnel.tunnel);
                session.tunnels.push(tunnel);
            }
            Event::Closed { tunnel, name, .. } => {
                self.session().tunnels.retain(|known| known.tunnel != *tunnel || known.name != *name);
            }
            Event::Disconnected { reason, retry_in_ms } => {
                let retry = Instant::now() + Duration::from_millis(*retry_in_ms);
                self.session().lost = Some(((*reason).to_owned(), retry));
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
    /// Its tunnels.
    pub(crate) tunnels: Vec<Tunnel>,
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
}

impl Status {
    /// For people: a line of the client, and one for each tunnel.
    fn show(&self, now: Timestamp, out: &mut String) {
        let ago = |since: &String| {
            let since = since.parse::<Timestamp>().unwrap_or(now);
            short(Duration::try_from(now.duration_since(since)).unwrap_or_default())
        };
        let heard = self.last_heard_ms.map(|time| format!(", heard {} ago", short(Duration::from_millis(time))));
        let heard = heard.unwrap_or_default();
        let state = match self.state {
            State::Connecting => "connecting".to_owned(),
            State::Connected => {
                format!("connected for {}{heard}", self.connected_since.as_ref().map_or_else(String::new, ago))
            }
            State::Reconnecting => {
                let wait = short(Duration::from_millis(self.retry_in_ms.unwrap_or_default()));
                let reason = Shown(self.reason.as_deref().unwrap_or_default()).to_string();
                format!("reconnecting in {wait}{heard}: {reason}")
            }
        };
        let _ = writeln!(
            out,
            "process {}, started {} ago, {} requests\n  {}: {state}",
            self.pid,
            ago(&self.since),
            self.requests,
            Shown(&self.relay)
        );
        let width = self.tunnels.iter().map(|tunnel| tunnel.url.chars().count()).max().unwrap_or_default();
        for tunnel in &self.tunnels {
            let (url, upstream) = (Shown(&tunnel.url).to_string(), Shown(&tunnel.upstream));
            let _ = writeln!(out, "  {url:<width$}  {upstream}");
        }
    }
}

fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `3 s`, `5 min`, `2 h 3 min` or `4 d 1 h`.
fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// What `relay status` prints.
#[derive(Debug)]
pub struct Report {
    /// For standard output.
    pub shown: String,
    /// For standard error: a sentence each.
    pub notices: Vec<String>,
}

/// Asks the running clients of this user: a line of JSON each, or lines for people.
///
/// # Errors
/// [`ControlError`] where they cannot be looked for.
pub async fn report(output: Output) -> Result<Report, ControlError> {
    let mut report = Report { shown: String::new(), notices: Vec::new() };
    let found = running().await?;
    if found.is_empty() {
        report.notices.push("no client of this user runs".to_owned());
    }
    for client in found {
        match client {
            Found::Answers(client) => match output {
                Output::Json => report.shown.push_str(&harmless_json(&client.status)),
                Output::Text => client.status.show(Timestamp::now(), &mut report.shown),
            },
            Found::Silent { pid, why } => report.notices.push(format!("the client of process {pid} {why}")),
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_board_says_what_happened_last() {
        let board = Board::new();
        assert_eq!(board.status().state, State::Connecting);
        board.observe(&Event::Connecting { relay: "https://relay.example" });
        let ready = Event::Ready {
            tunnel: "web",
            name: "hooks",
            url: "https://hooks.relay.example",
            upstream: "http://localhost:3000",
            relay: "https://relay.example",
            ca_file: None,
            local_url: None,
        };
        board.observe(&ready);
        board.observe(&ready);
        board.observe(&Event::Disconnected { reason: "it\u{1b}[2J broke", retry_in_ms: 3_600_000 });
        let status = board.status();
        assert_eq!(status.state, State::Reconnecting);
        assert!((3_000_000..=3_600_000).contains(&status.retry_in_ms.unwrap()), "{status:?}");
        assert_eq!((status.tunnels.len(), status.relay.as_str()), (1, "https://relay.example"));
        let mut text = String::new();
        status.show(Timestamp::now(), &mut text);
        assert!(text.contains("reconnecting in ") && text.contains(": it\\u{1b}[2J broke\n"), "{text}");
        assert!(text.contains("  https://hooks.relay.example  http://localhost:3000\n"), "{text}");
        let json = harmless_json(&status);
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        let (name, url) = ("hooks", "https://hooks.relay.example");
        board.observe(&Event::Closed { tunnel: "web", name, url, reason: "it is no longer wanted" });
        assert!(board.status().tunnels.is_empty());
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7380, "2 h 3 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}
