//! `relay inbox`: what the relay keeps of one's own tunnels, and what becomes of it.
//!
//! ```text
//!   arguments ─▶ the relay's API, over HTTPS ─▶ lines for people, or JSON
//! ```

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use relay_protocol::inbox::api::{self, Done, Inbox, Inboxes, PATH, Page, Webhook, Which, Whole};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::capture::saved::{Headers, Saved};
use crate::cli::{InboxArgs, InboxCommand, WhichArgs};
use crate::commands::requests::{HistoryError, quietly, when};
use crate::config::{ConfigError, Files, Way};
use crate::outgoing::{self, SendError};
use crate::session::dial::{Target, TargetError};
use crate::terminal::{Part, RED, Style, json_line, line_of, outcome_colour, print, tell};
use crate::value::Output;

/// How long the relay may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most bytes of an answer: a webhook of 25 MiB in base64, and what an operator may allow beyond.
const MAX_ANSWER: usize = 256 << 20;

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
    /// The relay is not reached.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The relay says no.
    #[error("the relay answered {status}: {message}")]
    Refused {
        /// How.
        status: StatusCode,
        /// Why.
        message: String,
    },
    /// The relay answered something else than it should.
    #[error("the relay's answer is not what it should be ({0}); update whichever of client and relay is older")]
    Answer(serde_json::Error),
    /// The body of a webhook is gone.
    #[error("the webhook was delivered, and its body is not kept any more")]
    Gone,
    /// There is still something in it.
    #[error("{left} webhooks wait still; relay inbox list {name} says why")]
    Waits {
        /// How many.
        left: u64,
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
    let InboxArgs { way, output, command } = args;
    let relay = Relay::of(Way::new(way, files)?)?;
    match command.unwrap_or(InboxCommand::List { name: None, state: None, limit: 50 }) {
        InboxCommand::List { name: None, .. } => {
            let Inboxes { inboxes } = relay.get("").await?;
            if inboxes.is_empty() {
                tell("none of this token's tunnels has an inbox; relay http 3000 --subdomain NAME --inbox opens one");
            }
            show(output, &inboxes, inbox_parts)
        }
        InboxCommand::List { name: Some(name), state, limit } => {
            let state = state.map(|state| format!("&state={state}")).unwrap_or_default();
            let Page { inbox, mut webhooks } = relay.get(&format!("/{name}?limit={limit}{state}")).await?;
            webhooks.reverse();
            show(output, &webhooks, webhook_parts)?;
            if output == Output::Text {
                show(output, &[inbox], inbox_parts)?;
            }
            Ok(())
        }
        InboxCommand::Show { name, id } => {
            let whole: Whole = relay.get(&format!("/{name}/{id}")).await?;
            match output {
                Output::Json => Ok(quietly(print(json_line(&whole).as_bytes()))?),
                Output::Text => show_whole(&whole),
            }
        }
        InboxCommand::Export { name, id } => {
            let whole: Whole = relay.get(&format!("/{name}/{id}")).await?;
            Ok(quietly(print(&raw(&whole)?))?)
        }
        InboxCommand::Retry { name, which } => relay.act(&name, "retry", which, output).await,
        InboxCommand::Drop { name, which } => relay.act(&name, "drop", which, output).await,
        InboxCommand::Pause { name } => {
            let inbox: Inbox = relay.post(&format!("/{name}/pause"), &()).await?;
            show(output, &[inbox], inbox_parts)
        }
        InboxCommand::Resume { name } => {
            let inbox: Inbox = relay.post(&format!("/{name}/resume"), &()).await?;
            show(output, &[inbox], inbox_parts)
        }
        InboxCommand::Drain { name, within } => relay.drain(&name, within, output).await,
        InboxCommand::Close { name } => {
            let done: Done = relay.send(Method::DELETE, &format!("/{name}"), Vec::new()).await?;
            show(output, &[done], |done| vec![Part::plain(format!("{}", done.count))])
        }
    }
}

/// The relay's API.
struct Relay {
    target: Target,
    authorization: HeaderValue,
}

impl Relay {
    fn of(way: Way) -> Result<Self, InboxCommandError> {
        let token = way.token.as_ref().ok_or(InboxCommandError::NoToken)?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut authorization = bearer.map_err(|_| ConfigError::Token)?;
        authorization.set_sensitive(true);
        Ok(Self { target: way.target()?, authorization })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, InboxCommandError> {
        self.send(Method::GET, path, Vec::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, InboxCommandError> {
        self.send(Method::POST, path, serde_json::to_vec(body).map_err(InboxCommandError::Answer)?).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, InboxCommandError> {
        let headers =
            [(AUTHORIZATION, self.authorization.clone()), (CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let path = format!("{PATH}{path}");
        let answer =
            outgoing::send(&self.target, &method, &path, &headers, body, PATIENCE, (MAX_ANSWER as u64, MAX_ANSWER))
                .await?;
        if !answer.status.is_success() {
            let error: Result<serde_json::Value, _> = serde_json::from_slice(&answer.body);
            let message = error.ok().and_then(|error| Some(error.pointer("/error/message")?.as_str()?.to_owned()));
            let message =
                message.unwrap_or_else(|| "it is no relay, or one that is too old to have inboxes".to_owned());
            return Err(InboxCommandError::Refused { status: answer.status, message });
        }
        serde_json::from_slice(&answer.body).map_err(InboxCommandError::Answer)
    }

    async fn act(&self, name: &str, action: &str, which: WhichArgs, output: Output) -> Result<(), InboxCommandError> {
        let which = match which.all {
            Some(state) => Which::All(state.to_string()),
            None => Which::Ids(which.ids),
        };
        let done: Done = self.post(&format!("/{name}/{action}"), &which).await?;
        show(output, &[done], |done| vec![Part::plain(format!("{}", done.count))])
    }

    /// Has everything tried at once, and waits until nothing waits.
    async fn drain(&self, name: &str, within: Duration, output: Output) -> Result<(), InboxCommandError> {
        let until = Instant::now() + within;
        let _: Inbox = self.post(&format!("/{name}/resume"), &()).await?;
        let _: Done = self.post(&format!("/{name}/retry"), &Which::All("waiting".to_owned())).await?;
        loop {
            let Page { inbox, .. } = self.get(&format!("/{name}?limit=1")).await?;
            if inbox.waiting == 0 {
                return show(output, &[inbox], inbox_parts);
            }
            if Instant::now() >= until {
                return Err(InboxCommandError::Waits { left: inbox.waiting, name: name.to_owned() });
            }
            sleep(LOOK).await;
        }
    }
}

fn show<T: Serialize>(output: Output, list: &[T], parts: fn(&T) -> Vec<Part>) -> Result<(), InboxCommandError> {
    let style = Style::of_stdout();
    let mut text = Vec::new();
    for one in list {
        match output {
            Output::Json => text.extend_from_slice(json_line(one).as_bytes()),
            Output::Text => text.extend(line_of(&parts(one), style)),
        }
    }
    if text.is_empty() { Ok(()) } else { Ok(quietly(print(&text))?) }
}

fn inbox_parts(inbox: &Inbox) -> Vec<Part> {
    let Inbox { name, how, paused, waiting, delivered, dead, oldest_at, .. } = inbox;
    let mut parts = vec![
        Part::plain(name.clone()),
        Part::plain(format!("{waiting} waiting")),
        Part::plain(format!("{delivered} delivered")),
        Part { text: format!("{dead} dead"), colour: if *dead == 0 { "" } else { RED } },
        Part::plain(how.clone()),
    ];
    parts.extend(paused.then(|| Part { text: "paused".to_owned(), colour: RED }));
    parts.extend(oldest_at.as_deref().map(|at| Part::plain(format!("oldest of {}", moment(at)))));
    parts
}

fn webhook_parts(webhook: &Webhook) -> Vec<Part> {
    let Webhook { id, state, method, path, first_at, attempts, status, due_at, under_way, reason, .. } = webhook;
    let mut parts = vec![
        Part::plain(id.clone()),
        Part::plain(moment(first_at)),
        Part { text: format!("{state:<9}"), colour: if state == "dead" { RED } else { "" } },
    ];
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let outcome = status.map_or_else(|| "---".to_owned(), |status| status.as_u16().to_string());
    parts.push(Part { text: outcome, colour: outcome_colour(status.map(|status| status.as_u16())) });
    parts.push(Part::plain(format!("{method:<4} {path}")));
    let event = [webhook.provider.as_deref(), webhook.event_type.as_deref()].into_iter().flatten();
    let event: Vec<&str> = event.collect();
    parts.extend((!event.is_empty()).then(|| Part::plain(event.join(" "))));
    let plural = if *attempts == 1 { "" } else { "s" };
    parts.extend((*attempts > 0).then(|| Part::plain(format!("{attempts} attempt{plural}"))));
    if *under_way {
        parts.push(Part::plain("is being tried".to_owned()));
    } else if state == "waiting" && *attempts > 0 {
        parts.extend(due_at.as_deref().map(|at| Part::plain(format!("next {}", moment(at)))));
    }
    parts.extend(reason.clone().map(|text| Part { text, colour: RED }));
    parts.extend(webhook.differs_from.as_ref().map(|id| Part::plain(format!("differs from {id}"))));
    parts
}

/// In this machine's zone.
fn moment(at: &str) -> String {
    let millis = at.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    millis.map_or_else(|| at.to_owned(), |millis| when(millis, &TimeZone::system()))
}

fn show_whole(whole: &Whole) -> Result<(), InboxCommandError> {
    show(Output::Text, std::slice::from_ref(&whole.webhook), webhook_parts)?;
    let tried = |tried: &api::Tried| {
        let outcome = tried.status.map(|status| status.to_string()).or_else(|| tried.error.clone());
        vec![
            Part::plain(format!("attempt {}", tried.number)),
            Part::plain(moment(&tried.at)),
            Part::plain(format!("{} ms", tried.duration_ms)),
            Part::plain(outcome.unwrap_or_default()),
        ]
    };
    show(Output::Text, &whole.tried, tried)?;
    match raw(whole) {
        Ok(raw) => {
            // A stranger's bytes must not move the cursor.
            let shown = |c: char| if c.is_control() && !['\n', '\t'].contains(&c) { '\u{fffd}' } else { c };
            let text: String = String::from_utf8_lossy(&raw).chars().map(shown).collect();
            Ok(quietly(print(format!("\n{text}\n").as_bytes()))?)
        }
        Err(InboxCommandError::Gone) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The request as a file has it: what `relay verify` and `relay send` read.
fn raw(whole: &Whole) -> Result<Vec<u8>, InboxCommandError> {
    let body = whole.body_base64.as_deref().ok_or(InboxCommandError::Gone)?;
    let body = STANDARD.decode(body).map_err(|error| io::Error::other(error.to_string()))?;
    let latin = |value: &str| value.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect::<Vec<u8>>();
    let line = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&latin(value)).ok()?))
    };
    let host = whole.webhook.url.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let host = HeaderValue::try_from(host).ok().map(|host| (http::header::HOST, host));
    let headers: Headers = host.into_iter().chain(whole.headers.iter().filter_map(line)).collect();
    let method = whole.webhook.method.parse().unwrap_or(Method::POST);
    Ok(Saved { method, target: &whole.webhook.path, headers, body: &body }.write())
}
