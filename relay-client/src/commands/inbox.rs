//! `relay inbox`: what the relay keeps of one's own tunnels, and what becomes of it.
//!
//! ```text
//!   arguments ─▶ the relay's API, over HTTPS ─▶ lines for people, or JSON
//! ```

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use relay_protocol::inbox::api::{Inbox, MAX_PAGE, Page, Webhook, Which, Whole};
use relay_protocol::inbox::lines::{Piece, Tone};
use relay_protocol::webhook::Table;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::capture::saved::Saved;
use crate::capture::text as lossy;
use crate::cli::{INBOX_LISTED, InboxArgs, InboxCommand, InboxState, Secrets, WhichArgs};
use crate::commands::requests::{HistoryError, quietly, when};
use crate::config::{ConfigError, Files, Way};
use crate::event::Body;
use crate::inboxes::{Action, Api, Listed};
use crate::session::dial::TargetError;
use crate::terminal::{Part, RED, Shown, Style, json_line, line_of, outcome_colour, plain_body, print, tell};
use crate::value::Output;

pub use crate::inboxes::InboxesError;

/// How often is looked whether an inbox is empty.
const LOOK: Duration = Duration::from_millis(300);

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum InboxCommandError {
    /// No relay is named, or the like.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The relay's CA cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is no token to show.
    #[error("the relay tells of inboxes only to whom they belong; give --token, RELAY_TOKEN, or use relay login")]
    NoToken,
    /// A name stands where a word is to stand, and a word behind it.
    #[error("{0} stands before what is to be done; write it behind, as in relay inbox list {0}")]
    Both(String),
    /// The relay is not reached, or says no.
    #[error(transparent)]
    Inboxes(#[from] InboxesError),
    /// The body of a webhook is gone.
    #[error("the webhook was delivered, and its body is not kept any more")]
    Gone,
    /// None of those that were meant is there.
    #[error("no such webhook is in the inbox {0}, so nothing was done; relay inbox list {0} shows those that are")]
    Nothing(String),
    /// There is still something in it.
    #[error(
        "{left} webhooks of {name} wait still; relay inbox list {name} shows what came of their attempts, and without any, \
         its client is away"
    )]
    Waits {
        /// How many.
        left: u64,
        /// In which inbox.
        name: String,
    },
    /// Some were given up meanwhile.
    #[error("none waits any more, and {count} became dead letters; relay inbox list {name} --state dead shows why")]
    Died {
        /// How many.
        count: u64,
        /// In which inbox.
        name: String,
    },
    /// It cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl From<HistoryError> for InboxCommandError {
    fn from(error: HistoryError) -> Self {
        Self::Output(io::Error::other(error.to_string()))
    }
}

/// Does what was asked for.
///
/// # Errors
/// [`InboxCommandError`].
pub async fn run(args: InboxArgs, files: &mut Files) -> Result<(), InboxCommandError> {
    let InboxArgs { way, output, command, name } = args;
    let command = match (command, name) {
        (Some(_), Some(name)) => return Err(InboxCommandError::Both(name)),
        (Some(command), None) => command,
        (None, name) => InboxCommand::List { name, state: None, limit: INBOX_LISTED },
    };
    let way = Way::new(way, files)?;
    let token = way.token.clone().ok_or(InboxCommandError::NoToken)?;
    let api = Api::new(way.target()?, &token)?;
    match command {
        InboxCommand::List { name: None, .. } => {
            let inboxes = api.list().await?;
            if inboxes.is_empty() {
                tell("none of this token's tunnels has an inbox; relay http 3000 --subdomain NAME --inbox opens one");
            }
            show(output, &inboxes, |inbox| inbox.line(moment))
        }
        InboxCommand::List { name: Some(name), state, limit } => {
            let state = state.map(|state| state.to_string());
            let (inbox, mut webhooks) = list(&api, &name, state.as_deref(), limit as usize).await?;
            if webhooks.is_empty() {
                tell(&format!("no {}webhook is in the inbox {name}", state.map(|of| of + " ").unwrap_or_default()));
            }
            webhooks.reverse();
            show(output, &webhooks, |webhook| webhook.line(moment))?;
            if output == Output::Text {
                show(output, &[inbox], |inbox| inbox.line(moment))?;
            }
            Ok(())
        }
        InboxCommand::Show { name, id, secrets } => {
            let mut whole = api.complete(&name, &id).await?;
            if secrets == Secrets::Mask {
                mask(&mut whole, &files.table());
            }
            match output {
                Output::Json => Ok(quietly(print(json_line(&whole).as_bytes()))?),
                Output::Text => show_whole(&whole),
            }
        }
        InboxCommand::Export { name, id } => {
            let whole = api.complete(&name, &id).await?;
            let body = whole.body().ok_or(InboxCommandError::Gone)?;
            let (method, target) = (method_of(&whole), whole.webhook.path.as_str());
            let saved = Saved { method, target, headers: whole.header_list(), body: &body };
            Ok(quietly(print(&saved.write()))?)
        }
        InboxCommand::Retry { name, which } => act(&api, name, Action::Retry, which, output).await,
        InboxCommand::Drop { name, which } => act(&api, name, Action::Drop, which, output).await,
        InboxCommand::Pause { name } => show(output, &[api.pause(&name, true).await?], |inbox| inbox.line(moment)),
        InboxCommand::Resume { name } => show(output, &[api.pause(&name, false).await?], |inbox| inbox.line(moment)),
        InboxCommand::Drain { name, within } => drain(&api, name, within, output).await,
        InboxCommand::Close { name } => {
            let count = api.close(&name).await?;
            tell(&format!("the inbox {name} is closed; a client that asks for one opens it anew"));
            show(output, &[Counted { count }], Counted::line)
        }
    }
}

/// With how many webhooks something was done.
#[derive(Serialize)]
struct Counted {
    count: u64,
}

impl Counted {
    fn line(&self) -> Vec<Piece<'_>> {
        vec![Piece { text: self.count.to_string().into(), tone: Tone::Plain }]
    }
}

/// An inbox, and so many of its webhooks, the newest first: as many pages as that takes.
async fn list(api: &Api, name: &str, state: Option<&str>, most: usize) -> Result<(Inbox, Vec<Webhook>), InboxesError> {
    let mut listed = Listed { state, limit: most.min(MAX_PAGE), next: None };
    let Page { inbox, mut webhooks, mut next } = api.page(name, &listed).await?;
    while next.is_some() && webhooks.len() < most {
        listed = Listed { limit: (most - webhooks.len()).min(MAX_PAGE), next, ..listed };
        let page = api.page(name, &listed).await?;
        next = page.next.filter(|_| !page.webhooks.is_empty());
        webhooks.extend(page.webhooks);
    }
    Ok((inbox, webhooks))
}

async fn act(
    api: &Api,
    name: String,
    action: Action,
    which: WhichArgs,
    output: Output,
) -> Result<(), InboxCommandError> {
    let meant = which.ids.len() as u64;
    let which = which.all.map_or(Which::Ids(which.ids), |state| Which::All(state.to_string()));
    let count = api.act(&name, action, &which).await?;
    if count == 0 {
        return Err(InboxCommandError::Nothing(name));
    }
    if count < meant {
        tell(&format!("{} of these {meant} webhooks are not in the inbox {name} any more", meant - count));
    }
    show(output, &[Counted { count }], Counted::line)
}

/// Has everything tried at once, and waits until nothing waits.
async fn drain(api: &Api, name: String, within: Duration, output: Output) -> Result<(), InboxCommandError> {
    let until = Instant::now() + within;
    let look = Listed { limit: 1, ..Listed::default() };
    let Page { inbox: before, .. } = api.page(&name, &look).await?;
    if before.paused {
        api.pause(&name, false).await?;
        tell(&format!("the inbox {name} was paused, and delivers again"));
    }
    api.act(&name, Action::Retry, &Which::All(InboxState::Waiting.to_string())).await?;
    loop {
        let Page { inbox, .. } = api.page(&name, &look).await?;
        let died = inbox.dead.saturating_sub(before.dead);
        if inbox.waiting == 0 {
            show(output, &[inbox], |inbox| inbox.line(moment))?;
            return if died == 0 { Ok(()) } else { Err(InboxCommandError::Died { count: died, name }) };
        }
        if Instant::now() >= until {
            return Err(InboxCommandError::Waits { left: inbox.waiting, name });
        }
        sleep(LOOK).await;
    }
}

fn show<T: Serialize>(
    output: Output,
    list: &[T],
    line: impl Fn(&T) -> Vec<Piece<'_>>,
) -> Result<(), InboxCommandError> {
    let style = Style::of_stdout();
    let mut text = Vec::new();
    for one in list {
        match output {
            Output::Json => text.extend_from_slice(json_line(one).as_bytes()),
            Output::Text => text.extend(line_of(&line(one).into_iter().map(part).collect::<Vec<_>>(), style)),
        }
    }
    if text.is_empty() { Ok(()) } else { Ok(quietly(print(&text))?) }
}

/// A piece of a line in its colour.
fn part(Piece { text, tone }: Piece<'_>) -> Part {
    let colour = match tone {
        Tone::Plain => "",
        Tone::Bad => RED,
        Tone::Status(status) => outcome_colour(status),
    };
    Part { text: text.into_owned(), colour }
}

/// In this machine's zone.
fn moment(at: &str) -> String {
    let millis = at.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    millis.map_or_else(|| at.to_owned(), |millis| when(millis, &TimeZone::system()))
}

fn show_whole(whole: &Whole) -> Result<(), InboxCommandError> {
    show(Output::Text, std::slice::from_ref(&whole.webhook), |webhook| webhook.line(moment))?;
    show(Output::Text, &whole.tried, |tried| tried.line(moment))?;
    let mut text = String::from("\n");
    let _ = writeln!(text, "{} {}", Shown(&whole.webhook.method), Shown(&whole.webhook.url));
    for (name, value) in &whole.header_list() {
        let _ = writeln!(text, "  {name}: {}", Shown(&lossy(value.as_bytes())));
    }
    text.push('\n');
    match whole.body() {
        Some(body) => text.push_str(&plain_body(Body::new(&body, false), body.len() as u64, false)),
        None => text.push_str("  the body is not kept any more\n"),
    }
    Ok(quietly(print(text.as_bytes()))?)
}

fn method_of(whole: &Whole) -> Method {
    whole.webhook.method.parse().unwrap_or(Method::POST)
}

/// Takes out what lets somebody in.
fn mask(whole: &mut Whole, table: &Table) {
    let provider = whole.webhook.provider.clone().and_then(|id| table.get(&id));
    whole.mask(provider.map(AsRef::as_ref));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::webhooks::built_in;

    #[test]
    fn what_lets_somebody_in_is_not_shown() {
        let lines = [("authorization", "Bearer secret"), ("x-gitlab-token", "secret"), ("x-a", "\u{e9}")];
        let lines: Vec<_> = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let webhook = Webhook {
            method: "POST".into(),
            path: "/a?token=secret&b=1".into(),
            url: "https://t.example/a?token=secret&b=1".into(),
            provider: Some("gitlab".into()),
            ..Webhook::default()
        };
        let body_base64 = Some(STANDARD.encode([0xff, 0]));
        let mut whole =
            Whole { webhook, headers: lines.clone(), headers_first: Some(lines), body_base64, ..Whole::default() };
        mask(&mut whole, &built_in());
        let text = json_line(&whole);
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(whole.webhook.path, "/a?token=***&b=1");
        let value = whole.header_list()[3].1.clone();
        assert_eq!((value.as_bytes(), whole.body()), (&[0xe9][..], Some(vec![0xff, 0])), "the rest is as it was");
    }
}
