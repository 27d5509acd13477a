//! `relay run PORT -- COMMAND`: a command with a tunnel around it.
//!
//! ```text
//!   connect ─▶ probe through the public URL ─▶ COMMAND with RELAY_PUBLIC_URL ─▶ close ─▶ its exit code
//! ```
//!
//! Standard output is the command's alone; what there is to say of the tunnel goes to standard error or to a file.

use std::ffi::OsString;
use std::io;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::capture::saved::halves;
use crate::cli::Exit;
use crate::client::ClientError;
use crate::commands::open;
use crate::config::Settings;
use crate::event::{Event, Observer};
use crate::platform::{self, Signal};
use crate::session::dial::{RelayUrlError, TargetError};
use crate::session::probe::{Probe, ProbeError};
use crate::terminal::screen::{PROBE, Screen};
use crate::upstream::address::UpstreamAddr;

/// How long the tunnel may finish what is under way once the command has ended: what that has left behind, as an event
/// stream that nobody reads any more, holds nobody up.
const LEAVE: Duration = Duration::from_millis(500);

/// Why a command was not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no tunnel for it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The CA that is to be trusted cannot be.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The tunnel's public URL is none that can be dialled.
    #[error(transparent)]
    Url(#[from] RelayUrlError),
    /// The tunnel does not answer on its public URL.
    #[error("the tunnel is up, but {0}")]
    Probe(#[from] ProbeError),
    /// The command did not start.
    #[error("cannot run {program}: {error}")]
    Start {
        /// Its first word.
        program: String,
        /// What the system says.
        error: io::Error,
    },
    /// The system has no randomness, or lost the command.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// What is known of a tunnel once it is up.
#[derive(Debug)]
struct Ready {
    url: String,
    ca_file: Option<String>,
}

/// Runs `words` as a command while a tunnel to `upstream` is up, and returns its exit code. `signals` yields each signal
/// that the command should get, too.
///
/// A tunnel that is lost for good while the command runs is reported on the `screen`; the command goes on, because it
/// may have something to clean up.
///
/// # Errors
/// [`RunError`]: the command did not run.
pub async fn run(
    settings: Settings,
    upstream: UpstreamAddr,
    words: &[OsString],
    mut screen: Screen,
    mut signals: impl AsyncFnMut() -> Signal,
) -> Result<u8, RunError> {
    let client = open::client(upstream, settings)?;
    let relay = client.target().clone();
    let probe = Probe::new().ok_or_else(|| io::Error::other("the system has no randomness"))?;
    let (ready, is_ready) = oneshot::channel();
    let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
    let client = screen.prove(client, Some(probe.clone())).probe(probe.clone()).drain(LEAVE);
    let mut watcher = Watcher { observer: &mut screen, ready: Some(ready) };
    let tunnel = async {
        let ended = client.run(&mut watcher, stop.cancelled()).await;
        // Nobody waits for a tunnel that does not come. One that was there and is gone is news.
        let was_ready = watcher.ready.take().is_none();
        if let Some(error) = ended.as_ref().err().filter(|_| was_ready) {
            watcher.observe(&Event::Notice(&error.to_string()));
            watcher.pause();
        }
        gone.cancel();
        ended
    };
    let job = async {
        let ready = tokio::select! {
            // Where the tunnel ends before it is up, the tunnel says why.
            ready = is_ready => match ready {
                Ok(ready) => ready,
                Err(_) => return Ok(None),
            },
            signal = signals() => {
                stop.cancel();
                return Ok(Some(Exit::from(signal) as u8));
            }
        };
        let job = async {
            let (server, below) = halves(&ready.url);
            let public = relay.to(server.parse()?)?;
            tokio::select! {
                answered = probe.come_back(&public, below, PROBE) => answered?,
                () = gone.cancelled() => return Ok(None),
                signal = signals() => return Ok(Some(Exit::from(signal) as u8)),
            }
            let status = supervise(start(words, &ready)?, signals).await?;
            Ok(Some(platform::code_of(status)))
        };
        let ended: Result<_, RunError> = job.await;
        stop.cancel();
        ended
    };
    let (mut tunnel, mut job) = (pin!(tunnel), pin!(job));
    let (tunnel, job) = tokio::select! {
        job = &mut job => (tunnel.await, job),
        ended = &mut tunnel => (ended, job.await),
    };
    match (job?, tunnel) {
        (Some(code), _) => Ok(code),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Err(io::Error::other("the tunnel ended before the command").into()),
    }
}

fn start(words: &[OsString], ready: &Ready) -> Result<Child, RunError> {
    let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
    let mut command = Command::new(program);
    command.args(arguments).env("RELAY_PUBLIC_URL", &ready.url).kill_on_drop(true);
    match &ready.ca_file {
        Some(file) => command.env("RELAY_CA_FILE", file),
        None => command.env_remove("RELAY_CA_FILE"),
    };
    let program = program.to_string_lossy().into_owned();
    command.spawn().map_err(|error| RunError::Start { program, error })
}

/// Waits for the command, and passes on what it is sent.
async fn supervise(mut child: Child, mut signals: impl AsyncFnMut() -> Signal) -> Result<ExitStatus, RunError> {
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            signal = signals() => platform::pass_on(&child, signal),
        }
    }
}

/// Sees when the tunnel is up.
struct Watcher<'a> {
    observer: &'a mut dyn Observer,
    ready: Option<oneshot::Sender<Ready>>,
}

impl Observer for Watcher<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Ready { url, ca_file, .. } = event
            && let Some(ready) = self.ready.take()
        {
            // Whoever waited may have given up.
            let _ = ready.send(Ready { url: (*url).to_owned(), ca_file: ca_file.map(str::to_owned) });
        }
        self.observer.observe(event);
    }

    fn pause(&mut self) -> bool {
        self.observer.pause()
    }
}
