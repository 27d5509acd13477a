//! One tunnel for a program: what tests and other programs embed.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use relay_client::{Client, Tunnel, TunnelOptions, dial};
//!
//! let target = dial::Target::new("https://relay.example.com".parse()?, &dial::Trust::System)?;
//! let client = Client::new(target).token("rly_…".to_owned().into());
//! let tunnel = Tunnel::start(client, TunnelOptions::new("3000".parse()?)).await?;
//! println!("{}", tunnel.url());
//! tunnel.close().await?;
//! # Ok(()) }
//! ```

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError, TunnelOptions};
use crate::session::Observer;
use crate::terminal::Event;

/// Exchanges that a [`Tunnel`] holds for its owner; later ones are dropped until it takes some.
const KEPT: usize = 1024;

/// An exchange that a [`Tunnel`] has seen.
#[derive(Clone, Debug, PartialEq)]
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

/// A tunnel in a task of its own.
#[derive(Debug)]
pub struct Tunnel {
    name: String,
    url: String,
    exchanges: mpsc::Receiver<Exchange>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Tunnel {
    /// Connects `client` with this one tunnel, and waits until it answers.
    ///
    /// # Errors
    /// [`ClientError`] when there is no tunnel.
    pub async fn start(client: Client, options: TunnelOptions) -> Result<Self, ClientError> {
        let (ready, is_ready) = oneshot::channel();
        let (seen, exchanges) = mpsc::channel(KEPT);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut task = tokio::spawn(async move {
            let mut watcher = Watcher { ready: Some(ready), seen };
            client.tunnel(options).run(&mut watcher, stopped.cancelled()).await
        });
        tokio::select! {
            Ok((name, url)) = is_ready => Ok(Self { name, url, exchanges, stop, task }),
            ended = &mut task => match ended {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(ClientError::Refused("the tunnel's task ended".to_owned())),
            },
        }
    }

    /// The name below the relay's base domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next exchange that ended; `None` once the tunnel has. 1,024 wait to be taken; those that come then are dropped.
    pub async fn exchange(&mut self) -> Option<Exchange> {
        self.exchanges.recv().await
    }

    /// Takes the tunnel down, after what is under way.
    ///
    /// # Errors
    /// [`ClientError`] when it had ended by itself before.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.stop.cancel();
        match (&mut self.task).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Refused("the tunnel's task ended".to_owned())),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

struct Watcher {
    ready: Option<oneshot::Sender<(String, String)>>,
    seen: mpsc::Sender<Exchange>,
}

impl Observer for Watcher {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready { name, url, .. } => {
                if let Some(ready) = self.ready.take() {
                    // Whoever waited may have given up; the task ends with the handle.
                    let _ = ready.send(((*name).to_owned(), (*url).to_owned()));
                }
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
