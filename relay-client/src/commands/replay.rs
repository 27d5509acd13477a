//! `relay replay`: sends a stored request, or a fixture, once more.
//!
//! ```text
//!   history or fixture ──▶ Replay, signed anew where it is stale ──▶ the client that has the tunnel ──▶ its service
//!                                                                └─▶ a server of the user's choice
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use relay_protocol::webhook::Credentials;
use serde::Serialize;

use crate::capture::fixture::{Fixture, FixtureError};
use crate::capture::history::{FindError, History};
use crate::capture::replay::{Replay, ReplayError, Resign};
use crate::capture::saved::origin;
use crate::cli::ReplayArgs;
use crate::commands::requests::{self, HistoryError};
use crate::commands::test_secret;
use crate::config::{ConfigError, Files};
use crate::control::{Ask, Asked, ControlError, Found, PATIENCE, Replayed, ask_all};
use crate::event::Body;
use crate::outgoing::{BODY_MAX, SendError, send};
use crate::session::dial::{Peer, RelayUrl, RelayUrlError, Target, TargetError, Trust};
use crate::terminal::{self, Shown, answer_body, compact, json_line, tell};
use crate::value::Output;

/// Who sends a fixture: this machine.
const HERE: &str = "127.0.0.1";

/// Why nothing was sent, or no more.
#[derive(Debug, thiserror::Error)]
pub enum ReplayCommandError {
    /// The request is not to be had.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The fixture is none.
    #[error(transparent)]
    Fixture(#[from] FixtureError),
    /// It cannot be sent once more.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A secret is not to be had.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Running clients cannot be looked for.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No client has the tunnel.
    #[error("no running client has {}; start one, as with `relay http 3000`, or say where to with --to URL", which(.0, .1))]
    NoTunnel(Option<String>, Vec<String>),
    /// The URL leads nowhere.
    #[error(transparent)]
    Url(#[from] RelayUrlError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Nobody is reached.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The client that has it does not send it.
    #[error("the client of process {pid} did not send it: {problem}")]
    Client {
        /// Its process.
        pid: u32,
        /// Why.
        problem: io::Error,
    },
}

impl From<FindError> for ReplayCommandError {
    fn from(error: FindError) -> Self {
        Self::History(error.into())
    }
}

fn which(wanted: &Option<String>, known: &[String]) -> String {
    let known = if known.is_empty() { String::new() } else { format!(" (there are {})", known.join(", ")) };
    wanted.as_ref().map_or_else(
        || format!("a tunnel, or only one{known}: say which with --tunnel"),
        |wanted| format!("a tunnel {wanted}{known}"),
    )
}

/// What became of a replay. In JSON these are the fields.
#[derive(Debug, Serialize)]
struct Report<'a> {
    id: Option<&'a str>,
    replay_of: Option<&'a str>,
    tunnel: Option<&'a str>,
    method: &'a str,
    url: &'a str,
    signed: bool,
    status: Option<u16>,
    error: Option<&'a str>,
    duration_ms: f64,
    #[serde(flatten)]
    body: Body<'a>,
    body_size: u64,
    body_truncated: bool,
}

/// Sends what was asked for, one after the other. Whether every answer was a success.
///
/// # Errors
/// [`ReplayCommandError`] at the first that cannot be sent.
pub async fn run(args: ReplayArgs, files: &Files) -> Result<bool, ReplayCommandError> {
    let table = files.table();
    let mut history = None;
    let mut all = true;
    for wanted in &args.what {
        let mut first = load(wanted, &mut history).await?;
        if args.tunnel.is_some() {
            first.tunnel.clone_from(&args.tunnel);
        }
        let way = match &args.to {
            Some(to) => {
                // Whoever signs the URL signs this one.
                let url = url_at(to, first.target());
                first = first.with_url(url);
                Way::to(to)?
            }
            None => Way::Client(client_of(&mut first).await?),
        };
        let credentials = match (files.credentials(args.credentials.clone(), first.tunnel.as_deref()), &way) {
            // The client may have been given what is not to be had here.
            (Err(_), Way::Client(_)) if args.credentials.secrets.is_empty() => Credentials::default(),
            (credentials, _) => credentials?,
        };
        for _ in 0..args.times {
            let mut replay = first.clone();
            // The client may know a secret that nobody has told us.
            let (mut resign, mut is_signed) = (args.resign(), false);
            if resign == Resign::Stale && credentials.secrets.is_empty() {
                is_signed = test_secret::renew(&mut replay, &table)?;
            }
            if !credentials.secrets.is_empty() {
                is_signed = replay.sign(resign, &table, &credentials, Timestamp::now())?;
                // A secret that was given is the one that counts.
                resign = Resign::Never;
            }
            let mut done = match &way {
                Way::Client(client) => {
                    let done = client.replay(replay.tunnel.as_deref().unwrap_or_default(), &replay, resign).await;
                    done.map_err(|problem| ReplayCommandError::Client { pid: client.status.pid, problem })?
                }
                Way::Server(target) => {
                    replay.tunnel = None;
                    straight(&replay, resign, target).await?
                }
            };
            done.signed |= is_signed;
            let took = Duration::from_secs_f64(done.duration_ms.max(0.0) / 1e3);
            if took > replay.within {
                let within = compact(replay.within.as_secs_f64() * 1e3);
                tell(&format!("too late: in the tunnel its sender was answered after {within}"));
            }
            all &= done.error.is_none() && done.status.is_some_and(|status| (200..300).contains(&status));
            let shown = show(&replay, &done, args.output);
            requests::quietly(terminal::print(shown.as_bytes()))?;
        }
    }
    Ok(all)
}

/// A stored request by its id, or a fixture by its path.
async fn load(wanted: &str, history: &mut Option<History>) -> Result<Replay, ReplayCommandError> {
    let path = Path::new(wanted);
    if wanted.contains(['/', '\\', '.']) || path.is_dir() {
        let Fixture { about, request, .. } = Fixture::read(path)?;
        let id = Some(about.id).filter(|id| !id.is_empty());
        if about.request_truncated {
            let (id, kept) = (id.unwrap_or_else(|| wanted.to_owned()), request.body.len() as u64);
            return Err(ReplayError::Cut { id, kept, size: kept + 1 }.into());
        }
        let headers = request.headers.into_iter().filter(|(name, _)| *name != http::header::HOST).collect();
        return Ok(Replay {
            of: id,
            tunnel: about.tunnel,
            provider: about.provider,
            remote: HERE.to_owned(),
            ..Replay::new(request.method, about.url, headers, request.body)
        });
    }
    let history = match history {
        Some(history) => history,
        None => history.insert(requests::open().await?),
    };
    Ok(Replay::of(&history.find(wanted)?)?)
}

/// Where it goes.
enum Way {
    /// To the service of a tunnel of this client.
    Client(Box<Asked>),
    /// To this server.
    Server(Target),
}

impl Way {
    fn to(url: &str) -> Result<Self, ReplayCommandError> {
        let server = RelayUrl::of_any_server(origin(url).unwrap_or(url))?;
        Ok(Self::Server(Target::new(server, &Trust::System)?.naming(Peer::Server)))
    }
}

/// What follows the host in a URL.
fn path(url: &str) -> &str {
    url.get(origin(url).map_or(0, str::len)..).unwrap_or_default()
}

/// The URL that a request goes to: where `to` has neither path nor query, with those that its service has seen.
fn url_at(to: &str, target: &str) -> String {
    let path = if path(to).is_empty() { target } else { path(to) };
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{}{slash}{path}", origin(to).unwrap_or(to))
}

/// Sends it to the server of its URL.
async fn straight(replay: &Replay, resign: Resign, target: &Target) -> Result<Replayed, ReplayCommandError> {
    if resign == Resign::Always {
        // Whoever had a secret has signed it.
        return Err(ReplayError::NoSecret.into());
    }
    if !replay.trailers.is_empty() {
        tell("what followed its body, its trailers, goes only to a service of a running client");
    }
    let (headers, path) = (replay.marked_headers(), path(&replay.url));
    let sent =
        send(target, &replay.method, path, &headers, replay.body.clone(), replay.within, (u64::MAX, BODY_MAX)).await;
    let (status, error, body, body_size, took) = match sent {
        Ok(answer) => (Some(answer.status.as_u16()), None, answer.body, answer.size, answer.took),
        Err(error @ SendError::Late(after)) => (None, Some(error.to_string()), Vec::new(), 0, after),
        Err(error @ SendError::Broken(_)) => (None, Some(error.to_string()), Vec::new(), 0, Duration::ZERO),
        Err(error) => return Err(error.into()),
    };
    let duration_ms = took.as_secs_f64() * 1e3;
    // It has no id, because no client of ours has seen it.
    Ok(Replayed { id: String::new(), signed: false, status, error, duration_ms, body, body_size })
}

/// The client that has the tunnel, or the only one that there is where that is known of none.
async fn client_of(replay: &mut Replay) -> Result<Box<Asked>, ReplayCommandError> {
    let mut clients = Vec::new();
    for found in ask_all(&Ask::Status, PATIENCE).await? {
        match found {
            Found::Answers(client) => clients.push(client),
            Found::Silent { pid, why } => tell(&format!("the client of process {pid} {why}")),
        }
    }
    let tunnels = clients.iter().flat_map(|client| &client.status.tunnels);
    let mut known: Vec<_> = tunnels.map(|tunnel| tunnel.tunnel.clone()).collect();
    known.sort_unstable();
    if let (None, [only]) = (&replay.tunnel, known.as_slice()) {
        replay.tunnel = Some(only.clone());
    }
    let wanted = replay.tunnel.as_deref();
    let mut clients = clients.into_iter();
    let found = clients.find(|client| client.status.tunnels.iter().any(|tunnel| Some(&*tunnel.tunnel) == wanted));
    found.ok_or_else(|| ReplayCommandError::NoTunnel(replay.tunnel.clone(), known))
}

fn show(replay: &Replay, done: &Replayed, output: Output) -> String {
    let truncated = done.body_size > done.body.len() as u64;
    let report = Report {
        id: Some(&*done.id).filter(|id| !id.is_empty()),
        replay_of: replay.of.as_deref(),
        tunnel: replay.tunnel.as_deref(),
        method: replay.method.as_str(),
        url: &replay.url,
        signed: done.signed,
        status: done.status,
        error: done.error.as_deref(),
        duration_ms: done.duration_ms,
        body: Body::new(&done.body, truncated),
        body_size: done.body_size,
        body_truncated: truncated,
    };
    if output == Output::Json {
        return json_line(&report);
    }
    let outcome = done.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let error = done.error.as_ref().map_or_else(String::new, |error| format!(" {error}"));
    let signed = if done.signed { ", signed anew" } else { "" };
    let id = report.id.map_or_else(String::new, |id| format!(", as {}", Shown(id)));
    let mut text = format!(
        "{} {}: {outcome}{} in {}{signed}{id}\n",
        Shown(report.method),
        Shown(report.url),
        Shown(&error),
        compact(report.duration_ms),
    );
    if report.body_size > 0 {
        text.push_str(&answer_body(report.body, report.body_size, truncated));
    }
    text
}
