//! The last line of a terminal: how things stand at this moment.
//!
//! ```text
//! ● connected since 14:03:11 · last heard 2 s ago · 213 requests
//! ○ next attempt in 3 s · lost at 14:05:02 · nothing was heard from the relay for 15 s
//! ```
//!
//! Pure: events and the time go in, parts of a line come out.

use std::time::Duration;

use crate::event::Event;
use crate::terminal::{Clock, GREEN, Part, RED, YELLOW};

/// What the line says, as far as events have told.
#[derive(Debug, Default)]
pub(crate) struct StateLine {
    session: Session,
    /// When the relay was last heard, as all times here since 1970.
    heard: Duration,
    requests: u64,
    /// Tunnels, and their upstreams where nobody listens.
    down: Vec<(String, String)>,
    /// Tunnels that the relay refuses, and why.
    refused: Vec<(String, String)>,
}

#[derive(Debug, Default)]
enum Session {
    /// Nothing has been said yet.
    #[default]
    None,
    Connecting {
        relay: String,
    },
    Up {
        since: Duration,
    },
    Lost {
        since: Duration,
        retry: Duration,
        reason: String,
    },
}

impl StateLine {
    /// Takes in what happened at this time. Whether anything but a number has changed.
    pub(crate) fn observe(&mut self, now: Duration, event: &Event<'_>) -> bool {
        match event {
            Event::Connecting { relay } => self.session = Session::Connecting { relay: (*relay).to_owned() },
            Event::Ready { .. } | Event::Reconnected { .. } => {
                if let Event::Ready { tunnel, .. } = event {
                    self.down.retain(|(down, _)| down != tunnel);
                    self.refused.retain(|(refused, _)| refused != tunnel);
                }
                if !matches!(self.session, Session::Up { .. }) {
                    self.session = Session::Up { since: now };
                    self.heard = now;
                }
            }
            Event::Disconnected { reason, retry_in_ms } => {
                let since = match self.session {
                    Session::Lost { since, .. } => since,
                    _ => now,
                };
                let retry = now + Duration::from_millis(*retry_in_ms);
                self.session = Session::Lost { since, retry, reason: (*reason).to_owned() };
            }
            Event::Heard { ago } => {
                self.heard = now.saturating_sub(*ago);
                return false;
            }
            Event::Exchange { .. } | Event::Request { .. } => {
                self.requests += 1;
                return false;
            }
            Event::UpstreamDown { tunnel, upstream, .. } => {
                self.down.push(((*tunnel).to_owned(), (*upstream).to_owned()));
            }
            Event::UpstreamUp { tunnel, .. } => self.down.retain(|(down, _)| down != tunnel),
            Event::Closed { tunnel, .. } => {
                self.down.retain(|(down, _)| down != tunnel);
                self.refused.retain(|(refused, _)| refused != tunnel);
            }
            Event::Refused { tunnel, reason, url: None } => {
                self.refused.retain(|(refused, _)| refused != tunnel);
                self.refused.push(((*tunnel).to_owned(), (*reason).to_owned()));
            }
            Event::Refused { url: Some(_), .. }
            | Event::Withheld { .. }
            | Event::Inbox { .. }
            | Event::Rejected { .. }
            | Event::Unread { .. }
            | Event::Notice(_) => return false,
        }
        true
    }

    /// The line's parts at this time, the most telling first.
    pub(crate) fn parts(&self, now: Duration, clock: &mut Clock) -> Vec<Part> {
        let mut at = |time: Duration| clock.at(i64::try_from(time.as_secs()).unwrap_or(i64::MAX)).to_owned();
        let mut parts = Vec::new();
        let is_up = matches!(self.session, Session::Up { .. });
        for (_, upstream) in self.down.iter().filter(|_| is_up) {
            let text = format!("{}nothing listens on {upstream}", if parts.is_empty() { "○ " } else { "" });
            parts.push(Part { text, colour: RED });
        }
        for (tunnel, reason) in self.refused.iter().filter(|_| is_up) {
            let text = format!("{}{tunnel} is refused: {reason}", if parts.is_empty() { "○ " } else { "" });
            parts.push(Part { text, colour: RED });
        }
        let heard = Part::plain(format!("last heard {} ago", coarse(now.saturating_sub(self.heard))));
        match &self.session {
            Session::None => {}
            Session::Connecting { relay } => {
                parts.push(Part { text: format!("○ connecting to {relay}"), colour: YELLOW });
            }
            Session::Up { since } => {
                let days = now.saturating_sub(*since).as_secs() / 86_400;
                let ago = if days > 0 { format!(", {days} d ago") } else { String::new() };
                let dot = if parts.is_empty() { "● " } else { "" };
                parts.push(Part { text: format!("{dot}connected since {}{ago}", at(*since)), colour: GREEN });
                parts.push(heard);
            }
            Session::Lost { since, retry, reason } => {
                let left = retry.saturating_sub(now);
                let text = match left {
                    Duration::ZERO => "○ trying to reconnect".to_owned(),
                    // Rounded up: it is not "in 0 s" before it is.
                    _ => format!("○ reconnecting in {} s", left.as_millis().div_ceil(1000)),
                };
                parts.push(Part { text, colour: YELLOW });
                parts.push(Part::plain(reason.clone()));
                parts.push(Part::plain(format!("lost at {}", at(*since))));
            }
        }
        if self.requests > 0 {
            let noun = if self.requests == 1 { "request" } else { "requests" };
            parts.push(Part::plain(format!("{} {noun}", self.requests)));
        }
        parts
    }
}

/// Two seconds, three minutes: as much as a glance takes in.
fn coarse(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use jiff::tz::TimeZone;

    use super::*;
    use crate::event::READY;

    const START: Duration = Duration::from_secs(14 * 3600 + 3 * 60 + 11);

    fn after(milliseconds: u64) -> Duration {
        START + Duration::from_millis(milliseconds)
    }

    fn text(line: &StateLine, milliseconds: u64) -> String {
        let mut clock = Clock::new(Some(TimeZone::UTC));
        let parts = line.parts(after(milliseconds), &mut clock);
        parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join(" · ")
    }

    fn up() -> StateLine {
        let mut line = StateLine::default();
        line.observe(START, &Event::Connecting { relay: "https://relay.example" });
        line.observe(START, &Event::Reconnected { relay: "", after_ms: 0 });
        line
    }

    #[test]
    fn it_says_since_when_and_what_was_heard_last() {
        let mut line = StateLine::default();
        assert_eq!(text(&line, 0), "");
        line.observe(START, &Event::Connecting { relay: "https://relay.example" });
        assert_eq!(text(&line, 0), "○ connecting to https://relay.example");
        let mut line = up();
        assert_eq!(text(&line, 2000), "● connected since 14:03:11 · last heard 2 s ago");
        line.observe(after(9000), &Event::Heard { ago: Duration::from_secs(1) });
        assert_eq!(text(&line, 9000), "● connected since 14:03:11 · last heard 1 s ago");
        assert_eq!(text(&line, 200_000), "● connected since 14:03:11 · last heard 3 min ago");
        assert!(text(&line, 2 * 86_400_000 + 9).starts_with("● connected since 14:03:11, 2 d ago · "));
    }

    #[test]
    fn it_counts_down_to_the_next_attempt() {
        let mut line = up();
        let lost = |retry_in_ms| Event::Disconnected { reason: "the relay shuts down", retry_in_ms };
        line.observe(after(5000), &lost(2500));
        for (at, left) in [(5000, 3), (5500, 2), (6500, 1), (7499, 1)] {
            let expected = format!("○ reconnecting in {left} s · the relay shuts down · lost at 14:03:16");
            assert_eq!(text(&line, at), expected);
        }
        assert!(text(&line, 7500).starts_with("○ trying to reconnect · "));
        line.observe(after(8000), &lost(9000));
        assert!(text(&line, 8000).ends_with("lost at 14:03:16"), "since the first time");
        line.observe(after(9000), &Event::Reconnected { relay: "", after_ms: 0 });
        assert_eq!(text(&line, 9000), "● connected since 14:03:20 · last heard 0 s ago");
    }

    #[test]
    fn it_names_the_services_that_are_not_there() {
        let mut line = up();
        let (web, api) = ("http://localhost:3000", "http://localhost:4000");
        for (tunnel, upstream) in [("web", web), ("api", api)] {
            line.observe(START, &Event::UpstreamDown { tunnel, upstream, reason: "" });
        }
        let both = "nothing listens on http://localhost:3000 · nothing listens on http://localhost:4000";
        assert_eq!(text(&line, 0), format!("○ {both} · connected since 14:03:11 · last heard 0 s ago"));
        line.observe(START, &Event::UpstreamUp { tunnel: "web", upstream: web });
        line.observe(START, &Event::Closed { tunnel: "api", name: "", url: "", reason: "" });
        assert_eq!(text(&line, 0), "● connected since 14:03:11 · last heard 0 s ago");
    }

    #[test]
    fn it_names_the_tunnels_that_are_refused() {
        let mut line = up();
        let refused = |url| Event::Refused { tunnel: "hooks", reason: "It is in use.", url };
        line.observe(START, &refused(Some("https://hooks.relay.example")));
        assert_eq!(text(&line, 0), "● connected since 14:03:11 · last heard 0 s ago", "it answers as before");
        line.observe(START, &refused(None));
        line.observe(START, &refused(None));
        let expected = "○ hooks is refused: It is in use. · connected since 14:03:11 · last heard 0 s ago";
        assert_eq!(text(&line, 0), expected);
        line.observe(START, &READY);
        assert_eq!(text(&line, 0), "● connected since 14:03:11 · last heard 0 s ago");
    }
}
