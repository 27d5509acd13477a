//! `relay wait`: until requests have arrived that are wanted.
//!
//! ```text
//!   running clients ── their sockets ──┐
//!                                      ├──▶ Tally: wanted? ──▶ a line of JSON each
//!   a tunnel of its own ── Capture ────┘
//! ```
//!
//! A request counts once it has arrived as a whole. It is printed once its sender has been answered, so that its status
//! can be told; where that takes longer than there is time, without one.

use std::cmp::Reverse;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream, SelectAll};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::capture::filter::Filter;
use crate::capture::{Answer, Captured, News, Reader, Since};
use crate::cli::{OpenArgs, ServiceArgs, SessionArgs, TunnelArgs, WaitArgs};
use crate::client::ClientError;
use crate::commands::open;
use crate::config::{ConfigError, Files, Settings, ShowSettings};
use crate::control::board::{Refused, Status};
use crate::control::{Ask, Asked, ControlError, Found, PATIENCE, ask_all};
use crate::event::{Body, Event};
use crate::session::dial::TargetError;
use crate::terminal::screen::Screen;
use crate::terminal::{Shown, json_line, tell};
use crate::upstream::service::{self, Service};

/// Requests that did not match and are told of in the end: those that came nearest.
const NEAR: usize = 3;

/// Why there was nothing to wait for, or not enough.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The time has passed.
    #[error("{0}")]
    NotYet(String),
    /// Nobody is left who could tell.
    #[error("the client has ended; {0}")]
    Ended(String),
    /// The tunnel that is asked for is none of a running client, not even one that the relay refuses at present.
    #[error("no running client has a tunnel {wanted}; {}", others(.known))]
    NoTunnel {
        /// Its name.
        wanted: String,
        /// The tunnels that there are.
        known: Vec<String>,
    },
    /// Clients run, and none of them tells of its requests.
    #[error("no running client can be watched: {0}")]
    Silent(String),
    /// Nothing runs, and nothing can be opened.
    #[error("no client of this user runs; start one, as with `relay http 3000`, or name a relay with --relay")]
    NoClient,
    /// Running clients cannot be looked for, and nothing can be opened.
    #[error(transparent)]
    Control(ControlError),
    /// The configuration of a tunnel of our own is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The relay's CA cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The tunnel of our own ended.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What has arrived cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn others(known: &[String]) -> String {
    if known.is_empty() { "none has any".to_owned() } else { format!("there are {}", known.join(", ")) }
}

/// Waits until what was asked for has been printed, or `shutdown` ends.
///
/// # Errors
/// [`WaitError`], also where not enough has come in time.
pub async fn run(args: WaitArgs, files: &mut Files, shutdown: impl Future<Output = ()>) -> Result<(), WaitError> {
    let WaitArgs { path, method, headers, json, count, within, since, tunnel, subdomain, connection } = args;
    let filter = Filter { path, method, headers, json, tunnel };
    let mut tally = Tally::new(filter, count.into(), within);
    let mut shutdown = pin!(shutdown);
    let mut in_the_way = None;
    if subdomain.is_none() {
        // Half of the time is for what they tell.
        let patience = within.map_or(PATIENCE, |within| PATIENCE.min(within / 2));
        let ask = Ask::Requests { since: since.unwrap_or_default() };
        let found = tokio::select! {
            found = ask_all(&ask, patience) => found,
            () = &mut shutdown => return Ok(()),
        };
        let found = found.unwrap_or_else(|error| {
            in_the_way = Some(error);
            Vec::new()
        });
        if !found.is_empty() {
            let sources = watch(found, tally.filter.tunnel.as_deref())?;
            return tokio::select! {
                ended = tally.wait(sources) => ended,
                () = shutdown => Ok(()),
            };
        }
    }
    if let Some(wanted) = tally.filter.tunnel.clone() {
        return Err(in_the_way.map_or(WaitError::NoTunnel { wanted, known: Vec::new() }, WaitError::Control));
    }
    let tunnel = TunnelArgs { subdomain, ..TunnelArgs::default() };
    let open = OpenArgs { tunnel, random: false, session: SessionArgs { connection, ..SessionArgs::default() } };
    let settings = match Settings::new(open, ServiceArgs::default(), files) {
        Err(ConfigError::NoRelay) => return Err(in_the_way.map_or(WaitError::NoClient, WaitError::Control)),
        settings => settings?,
    };
    if let Some(error) = in_the_way {
        tell(&format!("running clients cannot be watched: {error}"));
    }
    own(settings, files, tally, shutdown).await
}

/// The clients that tell of requests, each with a place in the list.
fn watch(found: Vec<Found>, tunnel: Option<&str>) -> Result<SelectAll<Source>, WaitError> {
    let (mut sources, mut known, mut silent) = (SelectAll::new(), Vec::new(), Vec::new());
    for client in found {
        match client {
            Found::Answers(client) => {
                let Status { tunnels, refused, .. } = &client.status;
                // They may be up soon. One whose change is refused is up.
                let is_down = |refused: &&Refused| tunnels.iter().all(|tunnel| tunnel.tunnel != refused.tunnel);
                let down: Vec<_> = refused.iter().filter(is_down).collect();
                let names = tunnels.iter().map(|tunnel| &tunnel.tunnel).chain(down.iter().map(|down| &down.tunnel));
                let names: Vec<_> = names.cloned().collect();
                if tunnel.is_none_or(|wanted| names.iter().any(|name| name == wanted)) {
                    tunnels.iter().for_each(|tunnel| tell(&format!("waiting for requests to {}", tunnel.url)));
                    for Refused { tunnel, reason } in down {
                        tell(&format!("waiting for requests to {tunnel}, which is refused at present: {reason}"));
                    }
                    sources.push(of_client(sources.len(), client));
                }
                known.extend(names);
            }
            Found::Silent { pid, why } => silent.push(format!("the client of process {pid} {why}")),
        }
    }
    if !sources.is_empty() {
        silent.iter().for_each(tell);
        return Ok(sources);
    }
    match tunnel {
        Some(wanted) if silent.is_empty() => Err(WaitError::NoTunnel { wanted: wanted.to_owned(), known }),
        _ => Err(WaitError::Silent(silent.join("; "))),
    }
}

/// Waits at a tunnel that answers 200 to everything.
async fn own(
    mut settings: Settings,
    files: &Files,
    mut tally: Tally,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WaitError> {
    // Lines for people, whatever a file says, and what it waits for is kept.
    settings.show = ShowSettings::default();
    let mut screen = Screen::aside(&settings.show, files, None)?;
    let client = open::client(Service::new("wait", accept), settings)?;
    let mut sources = SelectAll::new();
    sources.extend(client.capture().map(|capture| of_capture(capture.read(Since::Start))));
    let (stop, stopped) = oneshot::channel::<()>();
    let mut tunnel = pin!(client.run(&mut screen, async {
        tokio::select! {
            _ = stopped => {}
            () = shutdown => {}
        }
    }));
    let counted = {
        let mut counting = pin!(tally.wait(sources));
        tokio::select! {
            ended = &mut tunnel => return Ok(ended?),
            counted = &mut counting => counted,
        }
    };
    drop(stop);
    // The sender that was waited for is still being answered.
    tunnel.await?;
    counted
}

async fn accept(request: Request<service::Body>) -> Response<service::Body> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Response::default()
}

/// News, each with the number of its source; `None` at its end.
type Source = BoxStream<'static, (usize, Option<News>)>;

fn of_client(number: usize, client: Box<Asked>) -> Source {
    let next = move |client: Option<Box<Asked>>| async move {
        let mut client = client?;
        match client.next().await {
            Ok(Some(news)) => Some(((number, Some(news)), Some(client))),
            Ok(None) => Some(((number, None), None)),
            Err(error) => {
                tracing::debug!(%error, "a client is not understood any more");
                Some(((number, None), None))
            }
        }
    };
    stream::unfold(Some(client), next).boxed()
}

fn of_capture(reader: Reader) -> Source {
    let next = |mut reader: Reader| async move {
        match reader.next().await {
            Some(news) => Some(((0, Some(news)), reader)),
            // What has ended the tunnel, it says itself.
            None => std::future::pending().await,
        }
    };
    stream::unfold(reader, next).boxed()
}

/// What has come so far.
#[derive(Debug)]
struct Tally {
    filter: Filter,
    wanted: usize,
    /// How long there is, and since when.
    within: Option<Duration>,
    began: Instant,
    /// Those that count, in the order in which they came.
    found: Vec<Wanted>,
    /// The best of the others, each with what is in the way.
    near: Vec<(Captured, Vec<String>)>,
    others: u64,
    missed: u64,
}

#[derive(Debug)]
struct Wanted {
    source: usize,
    /// None once it has been printed.
    request: Option<Captured>,
    seq: u64,
}

impl Tally {
    fn new(filter: Filter, wanted: usize, within: Option<Duration>) -> Self {
        let (began, found, near) = (Instant::now(), Vec::new(), Vec::new());
        Self { filter, wanted, within, began, found, near, others: 0, missed: 0 }
    }

    /// Waits for news until enough has come.
    async fn wait(&mut self, mut sources: SelectAll<Source>) -> Result<(), WaitError> {
        let left = self.within.map(|within| within.saturating_sub(self.began.elapsed()));
        let all = async {
            while let Some((source, news)) = sources.next().await {
                match news {
                    Some(news) => self.take(source, news, &mut print)?,
                    None => self.give_up(source, &mut print)?,
                }
                if self.is_done() {
                    return Ok(true);
                }
            }
            Ok::<_, io::Error>(false)
        };
        let ended = match left {
            Some(left) => timeout(left, all).await.ok(),
            None => Some(all.await),
        };
        match ended {
            Some(Ok(true)) => Ok(()),
            // Whoever read has seen enough.
            Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(false)) => Err(WaitError::Ended(self.describe(None))),
            None => {
                // They have arrived, and that is what was asked for.
                self.print_all(&mut print)?;
                if self.is_done() { Ok(()) } else { Err(WaitError::NotYet(self.describe(self.within))) }
            }
        }
    }

    fn take(
        &mut self,
        source: usize,
        news: News,
        print: &mut impl FnMut(&Captured) -> io::Result<()>,
    ) -> io::Result<()> {
        match news {
            News::Missed(count) => self.missed += count,
            News::Cleared => {}
            News::Answered { seq, answer } => {
                let is = |wanted: &&mut Wanted| wanted.source == source && wanted.seq == seq;
                if let Some(mut request) = self.found.iter_mut().find(is).and_then(|wanted| wanted.request.take()) {
                    request.answer = Some(answer);
                    print(&request)?;
                }
            }
            News::Request(request) => {
                let mismatches = self.filter.mismatches(&request);
                if !mismatches.is_empty() {
                    self.others += 1;
                    self.near.push((request, mismatches));
                    // The last of those that are equally near.
                    self.near.sort_by_key(|(request, mismatches)| (mismatches.len(), Reverse(request.at_ms)));
                    self.near.truncate(NEAR);
                } else if self.found.len() < self.wanted {
                    let seq = request.seq;
                    let request = match request.answer {
                        Some(_) => {
                            print(&request)?;
                            None
                        }
                        None => Some(request),
                    };
                    self.found.push(Wanted { source, request, seq });
                }
            }
        }
        Ok(())
    }

    /// Prints what one source has told of and will say no more about.
    fn give_up(&mut self, source: usize, print: &mut impl FnMut(&Captured) -> io::Result<()>) -> io::Result<()> {
        let theirs = self.found.iter_mut().filter(|wanted| wanted.source == source);
        theirs.filter_map(|wanted| wanted.request.take()).try_for_each(|request| print(&request))
    }

    fn print_all(&mut self, print: &mut impl FnMut(&Captured) -> io::Result<()>) -> io::Result<()> {
        self.found.iter_mut().filter_map(|wanted| wanted.request.take()).try_for_each(|request| print(&request))
    }

    fn is_done(&self) -> bool {
        self.found.len() == self.wanted && self.found.iter().all(|wanted| wanted.request.is_none())
    }

    /// How far it came, and what was near.
    fn describe(&self, within: Option<Duration>) -> String {
        let (found, wanted) = (self.found.len(), self.wanted);
        let within = within.map(|within| format!(" within {within:?}")).unwrap_or_default();
        let mut text = format!("{found} of {wanted} such requests arrived{within}");
        match self.others {
            0 => text.push_str(", and no other"),
            1 => text.push_str(", and 1 other"),
            others => text.push_str(&format!(", and {others} others")),
        }
        if self.missed > 0 {
            text.push_str(&format!("; {} more came too fast to be looked at", self.missed));
        }
        for (request, mismatches) in &self.near {
            let (method, path) = (Shown(&request.method), Shown(&request.path));
            text.push_str(&format!("\n  {method} {path}: {}", Shown(&mismatches.join(", "))));
        }
        text
    }
}

fn print(request: &Captured) -> io::Result<()> {
    let Answer { status, .. } = request.answer.clone().unwrap_or_default();
    let event = Event::Request {
        id: &request.id,
        method: &request.method,
        path: &request.path,
        status,
        headers: &request.headers,
        body: Body::new(&request.body, request.body_truncated),
        body_size: request.body_size,
        body_truncated: request.body_truncated,
    };
    crate::terminal::print(json_line(&event).as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::capture::filter;

    fn request(seq: u64, path: &str, status: Option<u16>) -> News {
        News::Request(Captured {
            seq,
            tunnel: None,
            at_ms: seq,
            id: seq.to_string(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            body_size: 0,
            body_truncated: false,
            answer: status.map(|status| Answer { status: Some(status), ..Answer::default() }),
        })
    }

    #[test]
    fn each_is_printed_once_answered_and_only_as_many_as_wanted() {
        let filter = Filter { path: Some(filter::path("/a").unwrap()), ..Filter::default() };
        let mut tally = Tally::new(filter, 3, None);
        let mut printed = Vec::new();
        let mut print = |request: &Captured| {
            printed.push((request.id.clone(), request.answer.as_ref().and_then(|answer| answer.status)));
            Ok(())
        };
        let answered =
            |seq, status| News::Answered { seq, answer: Answer { status: Some(status), ..Answer::default() } };
        for (source, news) in [
            (0, request(0, "/b", Some(200))),
            (0, request(1, "/a", None)),
            (1, request(1, "/a", Some(201))),
            (0, request(2, "/a", None)),
            (0, request(3, "/a", Some(200))),
            (1, answered(1, 500)),
            (0, answered(2, 204)),
        ] {
            tally.take(source, news, &mut print).unwrap();
            assert!(!tally.is_done());
        }
        tally.give_up(0, &mut print).unwrap();
        assert!(tally.is_done());
        tally.take(0, answered(1, 200), &mut print).unwrap();
        let printed: Vec<_> = printed.iter().map(|(id, status)| (id.as_str(), *status)).collect();
        assert_eq!(printed, [("1", Some(201)), ("2", Some(204)), ("1", None)]);
    }

    #[test]
    fn what_came_close_is_told() {
        let filter =
            Filter { path: Some(filter::path("/a").unwrap()), method: Some("POST".to_owned()), ..Filter::default() };
        let mut tally = Tally::new(filter, 2, Some(Duration::from_millis(1500)));
        let mut nowhere = |_: &Captured| Ok(());
        for seq in 0..5 {
            tally.take(0, request(seq, &format!("/\u{1b}{seq}"), Some(200)), &mut nowhere).unwrap();
        }
        tally.take(0, request(9, "/a", Some(200)), &mut nowhere).unwrap();
        tally.take(0, News::Missed(4), &mut nowhere).unwrap();
        assert_eq!(
            tally.describe(tally.within),
            "1 of 2 such requests arrived within 1.5s, and 5 others; 4 more came too fast to be looked at\n  \
             POST /\\u{1b}4: its path is not /a\n  POST /\\u{1b}3: its path is not /a\n  \
             POST /\\u{1b}2: its path is not /a"
        );
    }
}
