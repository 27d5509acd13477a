//! A relay in a task of its own: what a test embeds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::unix_now;
use crate::config::Config;
use crate::log::AccessLog;
use crate::store::{CreateTokenError, NewToken, Store, TokenLimits};
use crate::{Relay, StartError};

/// A relay that serves for as long as this lives.
///
/// ```no_run
/// # async fn example(directory: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
/// use relay_server::Relay;
/// use relay_server::config::Config;
///
/// let relay = Relay::start(Config::on_loopback("relay.localhost", directory)).await?;
/// let token = relay.create_token("tests").await?;
/// println!("{} {token} {:?}", relay.url(), relay.ca_file());
/// relay.shutdown().await;
/// # Ok(()) }
/// ```
///
/// Dropping it gives up what is under way.
#[derive(Debug)]
pub struct RunningRelay {
    url: String,
    https: Option<SocketAddr>,
    http: Option<SocketAddr>,
    ca_file: Option<PathBuf>,
    store: Store,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Relay {
    /// [Binds](Relay::bind) a relay and runs it, without an access log, in a task of the current tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] says what is in the way.
    pub async fn start(config: Config) -> Result<RunningRelay, StartError> {
        let relay = Self::bind(config, AccessLog::off()).await?;
        let stop = CancellationToken::new();
        Ok(RunningRelay {
            url: relay.url(),
            https: relay.https_addr(),
            http: relay.http_addr(),
            ca_file: relay.ca_file().map(Path::to_owned),
            store: relay.store().clone(),
            stop: stop.clone(),
            task: tokio::spawn(async move { relay.run(stop.cancelled()).await }),
        })
    }
}

impl RunningRelay {
    /// Its own public URL: what a client is told.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where HTTPS is served.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Where plain HTTP is served.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The CA that clients and callers must trust, where the certificate is a development one.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// A new token with this name, and without limits of its own: the program that embeds the relay is its only user.
    ///
    /// # Errors
    /// [`CreateTokenError`], as where the name is taken.
    pub async fn create_token(&self, name: &str) -> Result<String, CreateTokenError> {
        let limits = TokenLimits {
            max_tunnels: u32::MAX,
            max_names: u32::MAX,
            max_sessions: u32::MAX,
            ..TokenLimits::default()
        };
        let new = NewToken { name: name.to_owned(), reserve: Vec::new(), expires_at: None, limits };
        let (token, _) = self.store.create_token(new, unix_now()).await?;
        Ok(token.expose().to_owned())
    }

    /// Stops as [`Relay::run`] does: clients are told, and what is under way may finish.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        // A panic in it has been reported.
        let _ = (&mut self.task).await;
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
