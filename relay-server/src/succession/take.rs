//! The new process: it asks the old one, gets ready, and hears what becomes of what that one still has under way.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use super::{SHORT, TakeOverError, Word, hear, say, unexpected};
use crate::control::{self, ControlError, Listener, Reply, Request};
use crate::descriptors::{Sockets, What, pass};
use crate::inbox::records::{Lease, Seq};
use crate::line::to_line;
use crate::{Shared, StartError, inbox};

/// A process that is willing to hand over, and what it has handed over.
pub(crate) struct Approached {
    stream: UnixStream,
    control: Listener,
    sockets: Sockets,
}

/// Asks the relay that runs on `directory` for its descriptors.
///
/// # Errors
/// [`ControlError::NotRunning`], [`TakeOverError`].
pub(crate) async fn approach(directory: &Path) -> Result<Approached, StartError> {
    let mut stream = control::connect(directory).await?;
    let request = Request::TakeOver { version: env!("CARGO_PKG_VERSION").to_owned() };
    let asked = async {
        stream.write_all(&to_line(&request)?).await?;
        pass::receive(&stream).await
    };
    let asked = timeout(SHORT, asked).await.map_err(|_| ControlError::Silent { within: SHORT })?;
    let (line, descriptors) = asked.map_err(TakeOverError::from)?;
    let what = match serde_json::from_slice(&line).map_err(|error| TakeOverError::Conversation(error.into()))? {
        Reply::Descriptors { what } => what,
        Reply::Refused { message, .. } => return Err(TakeOverError::Refused { message }.into()),
        reply => return Err(TakeOverError::Refused { message: format!("it says {reply:?}") }.into()),
    };
    let (mut lock, mut socket, mut sockets) = (None, None, Sockets::default());
    for (what, descriptor) in what.into_iter().zip(descriptors) {
        match what {
            What::Lock => lock = Some(descriptor),
            What::Control => socket = Some(descriptor),
            What::Https | What::Http | What::Admin | What::Dns => {
                sockets.add(what, descriptor).map_err(TakeOverError::from)?;
            }
            What::Other => drop(descriptor),
        }
    }
    let lock = lock.ok_or(TakeOverError::Incomplete { missing: "lock" })?;
    let socket = socket.ok_or(TakeOverError::Incomplete { missing: "control socket" })?;
    let control = Listener::inherit(directory, lock.into(), socket.into())?;
    Ok(Approached { stream, control, sockets })
}

/// Whom to tell that this process is ready.
pub(crate) struct Waiting(UnixStream);

impl Approached {
    /// What was handed over.
    pub(crate) fn into_parts(self) -> (Waiting, Listener, Sockets) {
        (Waiting(self.stream), self.control, self.sockets)
    }
}

impl Waiting {
    /// Says that nothing can fail any more, and waits to be let in. Returns the webhooks that the old process still delivers.
    pub(crate) async fn claim(mut self) -> Result<(Predecessor, Vec<Seq>), TakeOverError> {
        let claim = async {
            say(&mut self.0, &Word::Ready).await?;
            match hear(BufReader::new(&mut self.0)).await? {
                Word::Yours { leased } => Ok(leased),
                word => Err(unexpected(&word)),
            }
        };
        let claim = timeout(SHORT, claim).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        Ok((Predecessor { stream: self.0, leases: HashMap::new() }, claim?))
    }
}

/// The process that was taken over from, until it has ended.
pub(crate) struct Predecessor {
    stream: UnixStream,
    /// On the webhooks that it still delivers.
    leases: HashMap<Seq, Lease>,
}

impl Predecessor {
    /// Keeps this process from delivering what the other one still delivers.
    pub(crate) fn keep(&mut self, leases: HashMap<Seq, Lease>) {
        self.leases = leases;
    }

    /// Tells it that this process serves, and follows what it does until it has ended. Then it drops `alone`.
    pub(crate) async fn follow(mut self, shared: Arc<Shared>, alone: DropGuard) {
        if let Err(error) = say(&mut self.stream, &Word::Serving).await {
            // Nobody else serves, so that this process does.
            tracing::error!(%error, "the process that was taken over from is gone");
        }
        let mut reader = BufReader::new(self.stream);
        // Where this process ends before the other one, the next one finds all in the databases.
        while let Some(Ok(Word::News { released, names })) = shared.closing.run_until_cancelled(hear(&mut reader)).await
        {
            released.iter().for_each(|seq| drop(self.leases.remove(seq)));
            for name in names {
                // Its client is on its way to this process.
                shared.registry.expect(&name);
                inbox::look_again(&shared, Some(&name)).await;
            }
        }
        // What it could not finish is this process's to deliver.
        drop(self.leases);
        inbox::look_again(&shared, None).await;
        tracing::info!("the process that was taken over from has ended");
        drop(alone);
    }
}
