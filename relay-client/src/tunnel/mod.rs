//! One tunnel for a program: what tests and other programs embed.

pub(crate) mod builder;
pub(crate) mod received;

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::capture::Capture;
use crate::capture::replay::Resign;
use crate::client::{Client, ClientError};
use crate::door::{Answer, Door, LocalError};
use crate::event::{Event, Observer};
use crate::options::TunnelOptions;
use crate::tunnel::builder::TunnelBuilder;
use crate::tunnel::received::{Received, ReceivedRequest};

/// Exchanges that a [`Tunnel`] holds for its owner; later ones are dropped until it takes some.
const KEPT: usize = 1024;

/// How long a tunnel whose owner is gone may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// An exchange that a [`Tunnel`] has seen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Exchange {
    /// Its id, as in `Relay-Request-Id`.
    pub id: String,
    /// The request's method.
    pub method: String,
    /// The raw target with its query.
    pub path: String,
    /// `None` when no answer was sent.
    pub status: Option<u16>,
    /// From the deadline's start to the end of the body.
    pub duration: Duration,
    /// A stable code.
    pub error: Option<String>,
}

/// How a [`Tunnel`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It has not been up yet.
    Connecting,
    /// The relay takes requests for it, and they arrive.
    Up,
    /// The session is lost. It comes back by itself, with the same URL.
    Lost {
        /// What happened, as a sentence's part: `the connection was reset`.
        reason: String,
        /// Until the next attempt.
        retry_in: Duration,
    },
    /// It is over: closed, or lost for good.
    Ended {
        /// Why, where it was not closed.
        reason: Option<String>,
    },
}

/// A public URL for as long as this lives.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use relay_client::Tunnel;
///
/// let tunnel = Tunnel::builder().relay("https://relay.example.com").token("rly_…").upstream(3000).open().await?;
/// println!("{}", tunnel.url());
/// tunnel.close().await?;
/// # Ok(()) }
/// ```
///
/// It lives in a task of its own. [`Tunnel::close`] waits for what is under way; dropping it tells the relay at once
/// that the name is free, gives what is under way at most a second, and does not block.
#[derive(Debug)]
pub struct Tunnel {
    name: String,
    url: String,
    status: watch::Receiver<Status>,
    exchanges: mpsc::Receiver<Exchange>,
    received: Option<Received>,
    door: Door,
    ends: Ends,
    task: JoinHandle<Result<(), ClientError>>,
}

/// Dropped, it ends the tunnel's task.
#[derive(Debug)]
struct Ends {
    stop: CancellationToken,
    _gone: DropGuard,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Tunnel {
    /// Says what the tunnel is to be.
    pub fn builder() -> TunnelBuilder {
        TunnelBuilder::default()
    }

    /// Connects `client` with this one tunnel, and waits until it answers.
    ///
    /// # Errors
    /// [`ClientError`] when there is no tunnel.
    #[doc(hidden)]
    pub async fn start(client: Client, options: TunnelOptions) -> Result<Self, ClientError> {
        Self::open(client, options, None).await
    }

    pub(crate) async fn open(
        client: Client,
        options: TunnelOptions,
        capture: Option<Capture>,
    ) -> Result<Self, ClientError> {
        let received = capture.as_ref().map(Received::of);
        let client = match &capture {
            Some(capture) => client.capturing(capture.clone()),
            None => client,
        };
        let door = client.door();
        let (ready, is_ready) = oneshot::channel();
        let (seen, exchanges) = mpsc::channel(KEPT);
        let (said, status) = watch::channel(Status::Connecting);
        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        // Whoever waits here may give up: that ends the task, too.
        let ends = Ends { stop: stop.clone(), _gone: gone.clone().drop_guard() };
        let mut task = tokio::spawn(async move {
            let mut watcher = Watcher { ready: Some(ready), seen, status: said };
            let patience = async {
                gone.cancelled().await;
                sleep(GOODBYE).await;
            };
            let ended = tokio::select! {
                ended = client.tunnel(options).run(&mut watcher, stop.cancelled()) => ended,
                () = patience => Ok(()),
            };
            let reason = ended.as_ref().err().map(ToString::to_string);
            watcher.status.send_replace(Status::Ended { reason });
            if let Some(capture) = capture {
                capture.close();
            }
            ended
        });
        tokio::select! {
            Ok((name, url)) = is_ready => Ok(Self { name, url, status, exchanges, received, door, ends, task }),
            ended = &mut task => Err(result(ended).err().unwrap_or_else(gave_way)),
        }
    }

    /// The name below the relay's base domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public URL, without a trailing slash. It stays the same as long as the tunnel lives.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How the tunnel is, and tells when that changes: see [`watch::Receiver::wait_for`]. Who is slow misses what was
    /// in between, and never what is.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The next exchange that ended; `None` once the tunnel has. 1,024 wait to be taken; those that come then are dropped.
    pub async fn exchange(&mut self) -> Option<Exchange> {
        self.exchanges.recv().await
    }

    /// The next request that a tunnel with [`TunnelBuilder::capture`] has received and that was answered; `None` once the
    /// tunnel has ended, or where it captures nothing. The last 1,024 are kept, with up to 64 MiB; the next one behind
    /// those that had to go tells how many were [missed](ReceivedRequest::missed). Nothing is lost where the future is
    /// dropped.
    pub async fn next_request(&mut self) -> Option<ReceivedRequest> {
        match &mut self.received {
            Some(received) => received.next().await,
            None => None,
        }
    }

    /// Sends a request that the tunnel has received to whoever answers, once more: byte for byte as it came, with an id of
    /// its own and the first one's in `Relay-Replay-Of`. Waits for the answer for at most 30 s. The new request is an
    /// [exchange](Tunnel::exchange), and is received like any other.
    ///
    /// # Errors
    /// [`ReplayError`] where it was not sent. What happens at whoever answers is in [`Replayed`].
    pub async fn replay(&self, request: &ReceivedRequest) -> Result<Replayed, ReplayError> {
        let replay = request.again().map_err(|error| ReplayError(error.into()))?;
        let answer = self.door.ask(&self.name, replay, Resign::Never).await.map_err(ReplayError)?;
        let Answer { id, status, error, body, .. } = answer;
        Ok(Replayed { id, status, error: error.map(str::to_owned), body: body.into() })
    }

    /// Takes the tunnel down, after what is under way, which has 10 s for that.
    ///
    /// # Errors
    /// [`ClientError`] when it had ended by itself before.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.ends.stop.cancel();
        result((&mut self.task).await)
    }
}

/// What came of a request that was sent once more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// The new request's id, as in `Relay-Request-Id`.
    pub id: String,
    /// What it was answered with; `None` where it was not.
    pub status: Option<StatusCode>,
    /// A stable code, where something went wrong.
    pub error: Option<String>,
    /// The first MiB of the answer's body.
    pub body: Bytes,
}

/// Why a request was not sent once more: not all of it was kept, or the tunnel has ended.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReplayError(LocalError);

fn result(ended: Result<Result<(), ClientError>, tokio::task::JoinError>) -> Result<(), ClientError> {
    ended.unwrap_or_else(|_| Err(gave_way()))
}

fn gave_way() -> ClientError {
    ClientError::Refused("the tunnel's task ended".to_owned())
}

struct Watcher {
    ready: Option<oneshot::Sender<(String, String)>>,
    seen: mpsc::Sender<Exchange>,
    status: watch::Sender<Status>,
}

impl Observer for Watcher {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready { name, url, .. } => {
                self.status.send_replace(Status::Up);
                if let Some(ready) = self.ready.take() {
                    // Whoever waited may have given up; the task ends with the handle.
                    let _ = ready.send(((*name).to_owned(), (*url).to_owned()));
                }
            }
            Event::Reconnected { .. } => {
                self.status.send_replace(Status::Up);
            }
            Event::Disconnected { reason, retry_in_ms } => {
                let retry_in = Duration::from_millis(*retry_in_ms);
                self.status.send_replace(Status::Lost { reason: (*reason).to_owned(), retry_in });
            }
            Event::Exchange { id, method, path, status, duration_ms, error, .. } => {
                let exchange = Exchange {
                    id: (*id).to_owned(),
                    method: (*method).to_owned(),
                    path: (*path).to_owned(),
                    status: *status,
                    duration: Duration::from_secs_f64(duration_ms / 1e3),
                    error: error.map(str::to_owned),
                };
                // A full channel means that nobody looks.
                let _ = self.seen.try_send(exchange);
            }
            _ => {}
        }
    }
}
