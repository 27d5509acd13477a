//! The way in for a request of our own, which goes the way of those that come from the relay.
//!
//! ```text
//!   replay ── a link within this process ──▶ Serve ──▶ upstream, capture, observer
//! ```
//!
//! So it has the same limits, is recorded and shown, and reaches a tunnel's service and nothing else.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use relay_protocol::frame::{GoAway, Reset};
use relay_protocol::link::{Driver, Link, Stream};
use relay_protocol::message::{MessageError, Payload as _, RequestHead, ResponseHead};
use relay_protocol::mux::{Item, Limits, OpenError, Side, StreamError};
use relay_protocol::webhook::{Settings, SignError};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::capture::replay::{Replay, ReplayError, Resign};
use crate::webhooks::WebhookOptions;

/// Requests of our own that wait to be let in; others wait for their turn.
const WAITING: usize = 16;

/// Bytes on their way through the process.
const BUFFER: usize = 64 * 1024;

/// What is kept of an answer's body; the rest is counted.
const BODY_MAX: usize = 1 << 20;

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// The way into a client that runs. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Door(mpsc::Sender<Knock>);

/// Somebody who wants to be let in.
#[derive(Debug)]
pub(crate) struct Knock {
    /// To which tunnel.
    pub(crate) tunnel: String,
    pub(crate) link: Link,
    pub(crate) driver: Driver<DuplexStream>,
    /// Told what is there.
    pub(crate) opened: oneshot::Sender<Result<Way, LocalError>>,
}

/// The tunnel of a request of our own.
#[derive(Debug)]
pub(crate) struct Way {
    /// The number that the head must name.
    pub(crate) number: u32,
    /// What is known of its webhooks.
    pub(crate) webhooks: WebhookOptions,
}

/// What the service has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The new request's id.
    pub(crate) id: String,
    /// Whether it was signed anew here.
    pub(crate) signed: bool,
    /// None where it did not.
    pub(crate) status: Option<StatusCode>,
    /// What went wrong: a stable code.
    pub(crate) error: Option<&'static str>,
    /// Of the body so much as is kept.
    pub(crate) body: Vec<u8>,
    /// Bytes of the body.
    pub(crate) body_size: u64,
}

/// Why a request of our own was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    /// There is no such tunnel.
    #[error("the client has no tunnel {0} any more")]
    NoTunnel(String),
    /// It cannot be signed, or is no request.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// It is no request that can cross a link.
    #[error("it cannot be sent: {0}")]
    Request(#[from] MessageError),
    /// The client has ended, or is about to.
    #[error("the client has ended")]
    Ended,
}

impl From<OpenError> for LocalError {
    fn from(_: OpenError) -> Self {
        Self::Ended
    }
}

/// A door, and where its knocks are heard.
pub(crate) fn door() -> (Door, mpsc::Receiver<Knock>) {
    let (knocks, heard) = mpsc::channel(WAITING);
    (Door(knocks), heard)
}

impl Door {
    /// Sends a request to the service of a tunnel, signed anew with what the tunnel knows where that is to be, and waits for
    /// its answer as long as its first sender did.
    ///
    /// # Errors
    /// [`LocalError`]; what happens at the service is an answer.
    pub(crate) async fn ask(&self, tunnel: &str, mut replay: Replay, resign: Resign) -> Result<Answer, LocalError> {
        let Inside { way: Way { number, webhooks }, link, mut driver } = self.enter(tunnel).await?;
        let signed = replay.sign(resign, &webhooks.table, &webhooks.credentials, Timestamp::now())?;
        let head = RequestHead { tunnel: number, ..replay.head()? };
        let trailers = if replay.trailers.is_empty() { Bytes::new() } else { replay.trailers.to_bytes()? };
        let mut rest = Bytes::from(replay.body);
        let stream = link.open(head.to_bytes()?, &mut rest, trailers.is_empty())?;
        let id = head.id.to_string();
        let mut answer = Answer { id, signed, status: None, error: None, body: Vec::new(), body_size: 0 };
        let exchange = timeout(replay.within, exchange(&stream, rest, trailers, &mut answer));
        let ended = tokio::select! {
            ended = exchange => ended.unwrap_or_else(|_| {
                stream.reset(Reset::Deadline);
                Err(StreamError::Reset(Reset::Deadline))
            }),
            // The client ends.
            _ = &mut driver => Err(StreamError::SessionEnded),
        };
        answer.error = match ended {
            Ok(()) => None,
            Err(StreamError::Reset(reset)) => Some(reset.name()),
            Err(StreamError::SessionEnded | StreamError::Closed) => Some(Reset::LinkLost.name()),
        };
        drop(stream);
        leave(link, driver).await;
        Ok(answer)
    }

    /// Signs a request with what a tunnel knows, and with these settings where it knows none; `None` where it knows no
    /// secret to sign such a request with.
    ///
    /// # Errors
    /// [`LocalError`].
    pub(crate) async fn sign(
        &self,
        tunnel: &str,
        mut request: Replay,
        mut settings: Settings,
    ) -> Result<Option<Replay>, LocalError> {
        let Inside { way: Way { webhooks, .. }, link, driver } = self.enter(tunnel).await?;
        leave(link, driver).await;
        let mut credentials = webhooks.credentials;
        settings.append(&mut credentials.settings);
        credentials.settings = settings;
        match request.sign(Resign::Always, &webhooks.table, &credentials, Timestamp::now()) {
            Ok(_) => Ok(Some(request)),
            Err(ReplayError::Sign(SignError::NoSecret(_) | SignError::OnlyTheProvider(_) | SignError::Unsigned(_))) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn enter(&self, tunnel: &str) -> Result<Inside, LocalError> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let socket = Driver::websocket(ours, Bytes::new(), Side::Relay, BUFFER).await;
        let (link, driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let socket = Driver::websocket(theirs, Bytes::new(), Side::Client, BUFFER).await;
        let (inside, moves) = Driver::new(Side::Client, Limits::default(), socket);
        let (opened, way) = oneshot::channel();
        let knock = Knock { tunnel: tunnel.to_owned(), link: inside, driver: moves, opened };
        self.0.send(knock).await.map_err(|_| LocalError::Ended)?;
        let way = way.await.map_err(|_| LocalError::Ended)??;
        Ok(Inside { way, link, driver })
    }
}

/// Our end of a link within this process.
struct Inside {
    way: Way,
    link: Link,
    driver: Driver<DuplexStream>,
}

async fn leave(link: Link, driver: Driver<DuplexStream>) {
    link.go_away(GoAway::Shutdown, true, "That was all.");
    // What is still to be said is lost with a client that does not listen.
    let _ = timeout(GOODBYE, driver).await;
}

/// Sends the rest of the body, and takes the answer to its end.
async fn exchange(stream: &Stream, rest: Bytes, trailers: Bytes, answer: &mut Answer) -> Result<(), StreamError> {
    let send = async {
        if !rest.is_empty() || !trailers.is_empty() {
            let sent = stream.send(rest).await.and_then(|()| stream.finish(trailers));
            tracing::debug!(?sent, "the body of a request of our own");
        }
        // A service may answer without having read it all, and what went wrong the other direction tells.
        std::future::pending::<()>().await;
    };
    let receive = async {
        while let Some(item) = stream.recv().await? {
            match item {
                Item::Head { head, interim: false } => {
                    answer.status = ResponseHead::from_bytes(&head).ok().map(|head| head.status);
                }
                Item::Head { .. } => {}
                Item::Data(bytes) => {
                    answer.body_size += bytes.len() as u64;
                    let room = BODY_MAX.saturating_sub(answer.body.len());
                    answer.body.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
                }
                Item::End(_) => break,
            }
        }
        Ok(())
    };
    tokio::select! {
        received = receive => received,
        () = send => Ok(()),
    }
}
