//! `relay status`: asks the running clients of this user how they are.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use crate::control::board::{State, Status};
use crate::control::{Ask, ControlError, Found, PATIENCE, ask_all};
use crate::event::short;
use crate::terminal::{Shown, json_line};
use crate::value::Output;

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
    let found = ask_all(&Ask::Status, PATIENCE).await?;
    if found.is_empty() {
        report.notices.push("no client of this user runs".to_owned());
    }
    for client in found {
        match client {
            Found::Answers(client) => match output {
                Output::Json => report.shown.push_str(&json_line(&client.status)),
                Output::Text => show(&client.status, Timestamp::now(), &mut report.shown),
            },
            Found::Silent { pid, why } => report.notices.push(format!("the client of process {pid} {why}")),
        }
    }
    Ok(report)
}

/// For people: a line of the client, and one for each tunnel.
fn show(status: &Status, now: Timestamp, out: &mut String) {
    let ago = |since: &String| {
        let since = since.parse::<Timestamp>().unwrap_or(now);
        short(Duration::try_from(now.duration_since(since)).unwrap_or_default())
    };
    let heard = status.last_heard_ms.map(|time| format!(", heard {} ago", short(Duration::from_millis(time))));
    let heard = heard.unwrap_or_default();
    let state = match status.state {
        State::Connecting => "connecting".to_owned(),
        State::Connected => {
            format!("connected for {}{heard}", status.connected_since.as_ref().map_or_else(String::new, ago))
        }
        State::Reconnecting => {
            let wait = short(Duration::from_millis(status.retry_in_ms.unwrap_or_default()));
            let reason = Shown(status.reason.as_deref().unwrap_or_default()).to_string();
            format!("reconnecting in {wait}{heard}: {reason}")
        }
    };
    let _ = writeln!(
        out,
        "process {}, started {} ago, {} requests\n  {}: {state}",
        status.pid,
        ago(&status.since),
        status.requests,
        Shown(&status.relay)
    );
    let width = status.tunnels.iter().map(|tunnel| tunnel.url.chars().count()).max().unwrap_or_default();
    for tunnel in &status.tunnels {
        let (url, upstream) = (Shown(&tunnel.url).to_string(), Shown(&tunnel.upstream));
        let _ = writeln!(out, "  {url:<width$}  {upstream}");
        if let Some(inbox) = &tunnel.inbox {
            let _ = writeln!(out, "    inbox {} ago: {inbox}", ago(&inbox.at));
        }
    }
    for refused in &status.refused {
        let _ = writeln!(out, "  {} is refused: {}", Shown(&refused.tunnel), Shown(&refused.reason));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::control::board::Board;
    use crate::event::{Event, InboxState, READY};

    #[test]
    fn a_board_says_what_happened_last() {
        let board = Board::new();
        assert_eq!(board.status().state, State::Connecting);
        board.observe(&Event::Connecting { relay: "https://relay.example" });
        board.observe(&READY);
        board.observe(&READY);
        let refused = |url| Event::Refused { tunnel: "hooks", reason: "\u{1b}[2Jin use", url };
        board.observe(&refused(Some("https://hooks.relay.example")));
        board.observe(&Event::Disconnected { reason: "it\u{1b}[2J broke", retry_in_ms: 3_600_000 });
        let status = board.status();
        assert_eq!(status.state, State::Reconnecting);
        assert!((3_000_000..=3_600_000).contains(&status.retry_in_ms.unwrap()), "{status:?}");
        assert_eq!((status.tunnels.len(), status.relay.as_str()), (1, "https://relay.example"));
        let mut text = String::new();
        show(&status, Timestamp::now(), &mut text);
        assert!(text.contains("reconnecting in ") && text.contains(": it\\u{1b}[2J broke\n"), "{text}");
        assert!(text.contains("  https://hooks.relay.example  http://localhost:3000\n"), "{text}");
        assert!(text.ends_with("  hooks is refused: \\u{1b}[2Jin use\n"), "{text}");
        let json = json_line(&status);
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        let inbox =
            InboxState { waiting: 3, oldest_at: None, dead: 1, paused: false, at: format!("{:.3}", Timestamp::now()) };
        board.observe(&Event::Inbox { tunnel: "hooks", state: &inbox });
        assert_eq!(board.status().tunnels[0].inbox.as_ref(), Some(&inbox));
        let mut text = String::new();
        show(&board.status(), Timestamp::now(), &mut text);
        assert!(text.contains("\n    inbox 0 s ago: 3 waiting, 1 dead letter\n"), "{text}");
        board.observe(&refused(None));
        assert_eq!((board.status().tunnels.len(), board.status().refused.len()), (0, 1));
        board.observe(&READY);
        assert_eq!((board.status().tunnels.len(), board.status().refused.len()), (1, 0));
        let (name, url) = ("hooks", "https://hooks.relay.example");
        board.observe(&Event::Closed { tunnel: name, name, url, reason: "it is no longer wanted" });
        assert!(board.status().tunnels.is_empty());
    }
}
