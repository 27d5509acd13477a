//! A client: a session with a relay that is kept up, and the tunnels on it.
//!
//! [`Client`] is the whole: it connects, keeps reconnecting, and serves in the caller's task until it is told to stop.
//! [`Tunnel`](crate::Tunnel) is the short form: one tunnel in a task of its own.

mod backoff;
mod hold;
pub mod names;
mod tunnels;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::message::{PublicName, Resume};
use tokio::sync::{mpsc, watch};

use self::hold::{Hold, Tried};
use self::tunnels::Asked;
use crate::capture::Capture;
use crate::client::names::Names;
use crate::control::Control;
use crate::control::board::Beside;
use crate::door::{Door, Knock, door};
use crate::event::{Event, Observer};
use crate::inboxes::Api;
use crate::inspector::{Inspector, InspectorSettings};
use crate::options::TunnelOptions;
use crate::session::dial::Target;
use crate::session::probe::Probe;
use crate::session::{ConnectError, connect, explain};
use crate::upstream::rewrite::PublicUrlError;
use crate::value::Secret;

/// How long a client that ends waits for what is under way.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a client stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The relay does not accept the token, or no longer does.
    #[error("{0}")]
    Unauthorized(String),
    /// The name asked for is not to be had.
    #[error("{0}")]
    NameTaken(String),
    /// The name went to somebody else while the tunnel was up.
    #[error("{0}")]
    NameLost(String),
    /// There is no session at the start.
    #[error(transparent)]
    Unreachable(ConnectError),
    /// The session was lost and did not come back in time.
    #[error("gave up after {} s without a session: {last}", after.as_secs())]
    GaveUp {
        /// How long was tried.
        after: Duration,
        /// What the last attempt failed with.
        last: String,
    },
    /// The relay refuses a tunnel for another reason.
    #[error("{0}")]
    Refused(String),
    /// The inspector cannot listen where it was told to.
    #[error("{0}")]
    Inspector(String),
    /// The relay gave a public URL that is none.
    #[error("{0}")]
    PublicUrl(String),
}

impl From<PublicUrlError> for ClientError {
    fn from(error: PublicUrlError) -> Self {
        Self::PublicUrl(error.to_string())
    }
}

impl ClientError {
    /// The relay refuses a tunnel, and the client has no other.
    fn refused(code: &str, text: String) -> Self {
        match code {
            "unauthorized" => Self::Unauthorized(text),
            "name-in-use" | "name-taken" | "name-invalid" | "domain-unproven" => Self::NameTaken(text),
            _ => Self::Refused(text),
        }
    }
}

/// A session with a relay that is kept up, and the tunnels on it.
#[derive(Debug)]
pub struct Client {
    target: Target,
    token: Option<Secret>,
    tunnels: watch::Sender<Vec<TunnelOptions>>,
    names: Option<Names>,
    max_reconnect_time: Option<Duration>,
    ca_file: Option<String>,
    own: Option<Probe>,
    control: Option<Control>,
    drain: Duration,
    capture: Option<Capture>,
    inspector: Option<InspectorSettings>,
    /// Where it is, once it is.
    inspector_url: Option<String>,
    door: Door,
    knocks: mpsc::Receiver<Knock>,
}

impl Client {
    /// A client of this relay, without a token and without a tunnel.
    pub fn new(target: Target) -> Self {
        let (door, knocks) = door();
        Self {
            target,
            token: None,
            tunnels: watch::Sender::default(),
            names: None,
            max_reconnect_time: None,
            ca_file: None,
            own: None,
            control: None,
            drain: DRAIN,
            capture: None,
            inspector: None,
            inspector_url: None,
            door,
            knocks,
        }
    }

    /// Authenticates with this token.
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Adds a tunnel.
    #[must_use]
    pub fn tunnel(self, options: TunnelOptions) -> Self {
        self.tunnels.send_modify(|tunnels| tunnels.push(options));
        self
    }

    /// The tunnels, to be changed while the client runs. It compares them by their labels: what is new is bound on the
    /// session that there is, what is gone is given back once its requests have ended, and what is changed keeps its name
    /// where it can.
    pub fn tunnels(&self) -> watch::Sender<Vec<TunnelOptions>> {
        self.tunnels.clone()
    }

    /// Remembers the random names of tunnels, and asks for them again.
    #[must_use]
    pub fn remember(mut self, names: Names) -> Self {
        self.names = Some(names);
        self
    }

    /// Gives what is under way so long, and not 10 s, once the client is to end.
    #[must_use]
    pub(crate) fn drain(mut self, limit: Duration) -> Self {
        self.drain = limit;
        self
    }

    /// Gives up when the session has been lost for this long.
    #[must_use]
    pub fn max_reconnect_time(mut self, limit: Duration) -> Self {
        self.max_reconnect_time = Some(limit);
        self
    }

    /// Answers this probe itself: no service hears of it, and no observer.
    #[must_use]
    pub fn probe(mut self, probe: Probe) -> Self {
        self.own = Some(probe);
        self
    }

    /// The relay, and the way to it.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The inboxes of its token, where it has one.
    pub(crate) fn inboxes(&self) -> Option<Arc<Api>> {
        Api::new(self.target.clone(), self.token.as_ref()?).ok().map(Arc::new)
    }

    /// Says in [`Event::Ready`] which CA callers of the tunnels must trust.
    #[must_use]
    pub fn ca_file(mut self, file: String) -> Self {
        self.ca_file = Some(file);
        self
    }

    /// Lets others of this user look at the client while it runs, as `relay status` and `relay wait` do.
    #[must_use]
    pub fn control(mut self, control: Control) -> Self {
        self.capture.clone_from(&control.capture);
        self.control = Some(control);
        self
    }

    /// Shows the requests that it keeps, and lets programs of this machine ask for them and change the tunnels. It takes a
    /// [`Client::control`].
    #[must_use]
    pub fn inspector(mut self, settings: InspectorSettings) -> Self {
        self.inspector = Some(settings);
        self
    }

    /// Keeps requests here.
    pub(crate) fn capturing(mut self, capture: Capture) -> Self {
        self.capture = Some(capture);
        self
    }

    /// The requests that it keeps.
    pub(crate) fn capture(&self) -> Option<&Capture> {
        self.capture.as_ref()
    }

    /// The way in for requests of our own, while it runs.
    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Connects and serves, coming back whenever the session is lost, until `shutdown` ends; then what is under way may
    /// finish within 10 s.
    ///
    /// # Errors
    /// [`ClientError`]: what trying again cannot mend.
    pub async fn run(
        mut self,
        observer: &mut dyn Observer,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ClientError> {
        let inspector = self.inspect()?;
        let serving = self.control.as_ref().and_then(|control| control.serve(self.door()));
        let knocks = std::mem::replace(&mut self.knocks, mpsc::channel(1).1);
        let board = self.control.as_ref().map(|control| control.board.clone());
        if let Some(board) = &board {
            board.reached(self.ca_file.as_deref(), self.target.addr().map(ToString::to_string));
        }
        let mut hold = Hold::new(&self, knocks);
        let result = hold.run(&mut Beside { observer, board }, pin!(shutdown)).await;
        hold.tunnels.close().await;
        if let Some(serving) = serving {
            serving.close().await;
        }
        if let Some(inspector) = inspector {
            inspector.close().await;
        }
        result
    }

    fn inspect(&mut self) -> Result<Option<Inspector>, ClientError> {
        let (Some(settings), Some(control)) = (self.inspector.take(), self.control.clone()) else { return Ok(None) };
        let Some(capture) = control.capture.clone() else { return Ok(None) };
        let started =
            Inspector::start(settings, control.clone(), capture, self.tunnels.clone(), self.door(), self.inboxes());
        let inspector = started.map_err(|error| ClientError::Inspector(error.to_string()))?;
        control.board.inspected(inspector.url());
        self.inspector_url = Some(inspector.url().to_owned());
        Ok(Some(inspector))
    }

    /// One attempt to have a session with these tunnels: at the start with all of them, and later with whatever the relay
    /// gives.
    async fn connect(&self, mut asked: Vec<Asked>, resume: Option<Resume>, first: bool) -> Tried {
        loop {
            let specs = asked.iter().map(Asked::spec).collect();
            let session = connect(&self.target, self.token.as_ref(), specs, resume.clone()).await;
            let session = session.map_err(|error| Failed::to_connect(error, first))?;
            let mut is_whole = true;
            for bound in session.welcome.tunnels.iter().filter(|_| first) {
                let Err(refusal) = &bound.result else { continue };
                is_whole = false;
                let mut asked = asked.iter_mut().find(|asked| asked.number == bound.tunnel);
                if !asked.as_mut().is_some_and(|asked| asked.forget_name()) {
                    let error = ClientError::refused(
                        &refusal.code,
                        asked.map_or(explain(refusal), |asked| asked.explain(refusal)),
                    );
                    session.close().await;
                    return Err(Failed::Final(error));
                }
            }
            if is_whole {
                return Ok((Box::new(session), asked));
            }
            session.close().await;
        }
    }

    fn announce(&self, options: &TunnelOptions, public: &PublicName, observer: &mut dyn Observer) {
        observer.observe(&Event::Ready {
            tunnel: options.label.as_deref().unwrap_or(&public.name),
            name: &public.name,
            url: &public.url,
            upstream: &options.upstream.to_string(),
            relay: &self.target.url().to_string(),
            ca_file: self.ca_file.as_deref(),
            local_url: options.local_url.as_deref(),
            inspector: self.inspector_url.as_deref(),
        });
        if let Some(why) = options.webhooks.why_nothing_is_valid() {
            observer.observe(&Event::Notice(&options.of_it(&why)));
        }
    }
}

/// Whether trying again can help.
enum Failed {
    Final(ClientError),
    ForNow(String),
}

impl Failed {
    fn to_connect(error: ConnectError, first: bool) -> Self {
        match &error {
            ConnectError::Refused { code, .. } if code == "unauthorized" => {
                Self::Final(ClientError::Unauthorized(error.to_string()))
            }
            ConnectError::Revoked(_) => Self::Final(ClientError::Unauthorized(error.to_string())),
            _ if first => Self::Final(ClientError::Unreachable(error)),
            _ => Self::ForNow(error.to_string()),
        }
    }
}
