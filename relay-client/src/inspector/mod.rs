//! The inspector: what a running client has received, as a page for people and as an API for programs of this machine.
//!
//! ```text
//!   browser, curl, scripts ──▶ guard ──▶ routes ──▶ assets    the page
//!                                          ├──────▶ api       /api/v1: requests, events, waiting, tunnels
//!                                          ├──────▶ inboxes   /api/v1/inboxes ──▶ the relay
//!                                          └──────▶ agent     /api: the calls that scripts for ngrok make
//! ```
//!
//! It only reads what the client keeps, so whoever looks, and however slowly, holds no request up. What it may change is
//! which tunnels there are.

mod agent;
mod answer;
mod api;
mod archive;
mod assets;
mod connections;
mod events;
mod guard;
mod inboxes;
mod limits;
mod query;
mod records;
mod replay;
mod tunnels;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Form, Problem};
use self::guard::{Guard, Pass};
use self::limits::{BODY, BODY_TIME, FAREWELL, WATCHERS};
use self::records::Records;
use self::tunnels::Tunnels;
use crate::capture::Capture;
use crate::control::Control;
use crate::door::Door;
use crate::inboxes::Api;
use crate::options::TunnelOptions;
use crate::value::Secret;
use crate::webhooks::built_in;

/// Where tools for tunnels are looked for, and so many ports behind it for the clients that run beside the first.
const USUAL: (u16, u16) = (4040, 4056);

/// What an inspector is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectorSettings {
    /// Where it listens.
    pub address: InspectorAddress,
    /// What it asks everybody for.
    pub token: Option<Secret>,
    /// Programs may open tunnels to more than the ports of this machine.
    pub remote_upstreams: bool,
}

/// Where an inspector listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InspectorAddress {
    /// On 127.0.0.1:4040, or where that is taken on one of the next 16 ports, or else on any.
    Usual,
    /// There and nowhere else.
    Only(SocketAddr),
}

/// Why there is no inspector.
#[derive(Debug, thiserror::Error)]
pub enum InspectorError {
    /// The address is not to be had.
    #[error(
        "the inspector cannot listen on {address}: {source}; choose another address with --inspect, or leave it out for \
         any free port from 4040 on"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system has no randomness.
    #[error("the inspector cannot start: the system has no randomness")]
    Random,
}

impl InspectorAddress {
    fn bind(self) -> Result<TcpListener, InspectorError> {
        let bind = |address| TcpListener::bind(address).map_err(|source| InspectorError::Listen { address, source });
        let usual = |port| bind((Ipv4Addr::LOCALHOST, port).into());
        match self {
            Self::Only(address) => bind(address),
            Self::Usual => (USUAL.0..=USUAL.1).find_map(|port| usual(port).ok()).map_or_else(|| usual(0), Ok),
        }
    }
}

/// A client's inspector. It is gone when this is.
#[derive(Debug)]
pub(crate) struct Inspector {
    url: String,
    closing: CancellationToken,
    /// Ends with this.
    task: JoinSet<()>,
}

impl Inspector {
    /// Listens, and serves until the returned value is closed or dropped. `wanted` are the client's tunnels, `door`
    /// leads to their services, and `inboxes` are those of its token.
    pub(crate) fn start(
        settings: InspectorSettings,
        control: Control,
        capture: Capture,
        wanted: watch::Sender<Vec<TunnelOptions>>,
        door: Door,
        inboxes: Option<Arc<Api>>,
    ) -> Result<Self, InspectorError> {
        let remote = settings.remote_upstreams;
        let listener = settings.address.bind()?;
        let address = listener.local_addr();
        let listening = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
        let unknown = SocketAddr::from((Ipv4Addr::LOCALHOST, USUAL.0));
        let failed = |source| InspectorError::Listen { address: unknown, source };
        let (address, listener) = (address.map_err(failed)?, listening.map_err(failed)?);
        let guard = Guard::new(address, settings.token).ok_or(InspectorError::Random)?;
        let closing = CancellationToken::new();
        // All tunnels of a client have the same: the built-in one, with what the user's files add.
        let table = wanted.borrow().first().map_or_else(built_in, |options| options.webhooks.table.clone());
        let (board, turn) = (control.board.clone(), Semaphore::new(1));
        let tunnels = Tunnels { wanted, board, turn, own: address.port(), remote, table: table.clone() };
        let watchers = Arc::new(Semaphore::new(WATCHERS));
        let (records, ends) = (Records::new(capture, table), closing.clone());
        let desk = Arc::new(Desk { guard, control, door, tunnels, inboxes, records, watchers, closing: ends });
        let mut task = JoinSet::new();
        task.spawn(connections::serve(listener, desk, closing.clone()));
        Ok(Self { url: url(address), closing, task })
    }

    /// Its URL, as a person opens it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The client has ended: whoever is being answered gets the rest, within [`FAREWELL`].
    pub(crate) async fn close(mut self) {
        self.closing.cancel();
        let _ = timeout(FAREWELL, self.task.join_next()).await;
    }
}

/// Of an address, or where that is all of this machine's, of the one that this machine's browser takes.
fn url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

/// What it takes to answer.
#[derive(Debug)]
struct Desk {
    guard: Guard,
    control: Control,
    /// The way to the services.
    door: Door,
    tunnels: Tunnels,
    /// Where the relay is asked for them; none without a token.
    inboxes: Option<Arc<Api>>,
    records: Records,
    /// Places for those who are told of events.
    watchers: Arc<Semaphore>,
    closing: CancellationToken,
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let decode = |segment| percent_decode_str(segment).decode_utf8().ok();
        let path: Option<Vec<_>> = head.uri.path().split('/').skip(1).map(decode).collect();
        let path = path.unwrap_or_default();
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let form = if path.starts_with(&["api", "v1"]) { Form::Ours } else { Form::Agent };
        let mut answer = match self.guard.check(&head) {
            Ok(Pass::In) => self.route(&path, &head, body).await.unwrap_or_else(|problem| problem.answer(form)),
            Ok(Pass::SignIn { location, cookie }) => answer::sign_in(&location, &cookie),
            Err(problem) => problem.answer(form),
        };
        answer::seal(&mut answer);
        answer
    }

    /// Answers by the decoded segments of the path, of which there are none where they are no UTF-8.
    async fn route(&self, path: &[&str], head: &Parts, body: Incoming) -> Result<Answer, Problem> {
        match path {
            ["api", "v1", rest @ ..] => self.api(rest, head, body).await,
            ["api", rest @ ..] => self.agent(rest, head, body).await,
            // Where scripts and people look for ngrok's.
            ["inspect", "http"] | ["status"] => Ok(answer::redirect("/")),
            [file] => assets::answer(file, head),
            _ => Err(Problem::NoPath),
        }
    }
}

/// A request's whole body.
async fn read(body: Incoming) -> Result<Bytes, Problem> {
    let read = timeout(BODY_TIME, Limited::new(body, BODY).collect()).await.map_err(|_| Problem::SlowBody)?;
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::TooLarge),
        Err(error) => Err(Problem::Json(error.to_string())),
    }
}

/// Reads a request's body as JSON.
async fn read_json<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T, Problem> {
    serde_json::from_slice(&read(body).await?).map_err(|error| Problem::Json(error.to_string()))
}

/// GET, and HEAD, of which hyper leaves out the body.
fn is_get(head: &Parts) -> bool {
    matches!(head.method, Method::GET | Method::HEAD)
}
