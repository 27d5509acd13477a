//! The old process: what it hands over, and to whom.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{READY, Word, hear, say, unexpected};
use crate::control::Reply;
use crate::descriptors::{Handle, Held, What, pass};
use crate::inbox::Inboxes;
use crate::inbox::records::Seq;
use crate::line::to_line;
use crate::program::Program;

/// Says that a process is to take over.
const TAKE_OVER: &str = "--take-over";

/// Of what a process says that did not get ready.
const MAX_REASON: u64 = 16 * 1024;

/// Where another process asks to take over.
#[derive(Clone, Debug)]
pub(crate) struct Office(Arc<Desk>);

struct Desk {
    program: Option<Arc<Program>>,
    offer: Vec<(What, Handle)>,
    candidates: mpsc::Sender<Candidate>,
    /// One at a time.
    one: Semaphore,
    /// The process before this one has ended.
    alone: CancellationToken,
    /// Somebody has taken over.
    handed_over: CancellationToken,
    heir: OnceLock<(Option<u32>, String)>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Office {
    /// Whoever is ready to take over comes out of the receiver. `alone` says when the process before this one has ended, and
    /// `handed_over` is this one's to set.
    pub(crate) fn open(
        program: Option<Arc<Program>>,
        offer: Vec<(What, Handle)>,
        alone: CancellationToken,
        handed_over: CancellationToken,
    ) -> (Self, mpsc::Receiver<Candidate>) {
        let (candidates, ready) = mpsc::channel(1);
        let (one, heir) = (Semaphore::new(1), OnceLock::new());
        (Self(Arc::new(Desk { program, offer, candidates, one, alone, handed_over, heir })), ready)
    }

    /// The program that the relay is, where it is one of its own.
    pub(crate) fn program(&self) -> Option<&Arc<Program>> {
        self.0.program.as_ref()
    }

    /// From now on this one has taken over.
    pub(crate) fn install(&self, successor: &Successor) {
        // There is one.
        let _ = self.0.heir.set((successor.process, successor.version.clone()));
        self.0.handed_over.cancel();
    }

    /// What is handed over, unless this is not the moment.
    fn offer(&self) -> Result<Vec<(What, Held)>, &'static str> {
        if std::process::id() == 1 {
            // With it ends all that runs there, its successor first of all.
            return Err("it is the first process of its container, which ends with it; replace the container instead");
        }
        if !self.0.alone.is_cancelled() {
            return Err(
                "the process that it took over from still ends what it had under way; try again in half a minute",
            );
        }
        let offer = self.0.offer.iter().map(|(what, handle)| Some((*what, handle.upgrade()?)));
        offer.collect::<Option<Vec<_>>>().ok_or("it is stopping")
    }
}

/// Hands descriptors to a process that has asked for them, and waits until it is ready.
pub(crate) async fn give(mut stream: UnixStream, office: &Office, version: String) -> io::Result<()> {
    let desk = &office.0;
    let offer = match desk.one.try_acquire() {
        Ok(one) => office.offer().map(|offer| (one, offer)),
        Err(_) => Err("another process is taking over already"),
    };
    let (_one, offer) = match offer {
        Ok(offer) => offer,
        Err(why) => return stream.write_all(&to_line(&Reply::failed(why))?).await,
    };
    let process = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    tracing::info!(process, version, "a process is to take over");
    let reply = Reply::Descriptors { what: offer.iter().map(|(what, _)| *what).collect() };
    let handles: Vec<_> = offer.iter().map(|(_, handle)| handle.as_fd()).collect();
    pass::send(&mut stream, &to_line(&reply)?, &handles).await?;
    // Not held any longer: where this relay stops meanwhile, nobody is to wait in a queue that it does not look at.
    drop(handles);
    drop(offer);
    let ready = async {
        match hear(BufReader::new(&mut stream)).await? {
            Word::Ready => Ok(()),
            word => Err(unexpected(&word)),
        }
    };
    match timeout(READY, ready).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        // Nobody takes it where the relay stops: dropped, it tells the other.
        Ok(()) => drop(desk.candidates.send(Candidate { stream, process, version }).await),
        Err(error) => {
            tracing::error!(%error, process, "the process that was to take over did not get ready; this one goes on");
        }
    }
    Ok(())
}

/// Starts another process of this program, and waits until it has taken over.
pub(crate) async fn upgrade(office: &Office) -> Reply {
    let desk = &office.0;
    let refused = |message: String| Reply::failed(message);
    let Some(program) = office.program() else {
        return refused("the relay is part of another program, which starts it".to_owned());
    };
    if let Err(why) = office.offer() {
        return refused(format!("the relay does not hand over: {why}"));
    }
    let mut command = Command::new(program.path());
    command.args(program.arguments()).stdin(Stdio::null()).stdout(Stdio::piped());
    if !program.arguments().iter().any(|argument| argument == TAKE_OVER) {
        command.arg(TAKE_OVER);
    }
    // They are about this process's descriptors.
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    let path = program.path().display();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return refused(format!("{path} cannot be started: {error}; the relay goes on as it was")),
    };
    // On standard output it says nothing but what is in its way.
    let said = child.stdout.take();
    tokio::select! {
        ended = child.wait() => {
            let mut reason = String::new();
            if let Some(said) = said {
                // Without it the status has to do.
                let _ = said.take(MAX_REASON).read_to_string(&mut reason).await;
            }
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            let reason = if reason.is_empty() { format!("{how}; the relay's log says why") } else { reason };
            refused(format!("the new process did not start, and the relay goes on as it was: {}", reason.trim()))
        }
        () = desk.handed_over.cancelled() => {
            let (process, version) = desk.heir.get().cloned().unwrap_or_default();
            Reply::Upgraded { process, version }
        }
        () = tokio::time::sleep(READY) => {
            // Ours, and nobody has waited for it yet, so that the number is its own.
            let _ = child.start_kill();
            refused(format!("the new process was not ready after {} s, and the relay goes on as it was", READY.as_secs()))
        }
    }
}

/// A process that is ready to take over.
#[derive(Debug)]
pub(crate) struct Candidate {
    stream: UnixStream,
    process: Option<u32>,
    version: String,
}

impl Candidate {
    /// Lets it begin. From here on no webhook is delivered that it does not know of; where it ends all the same, all is as it
    /// was. It may take its time: whoever gave it up while it lives could not know whether it has begun, and both would deliver.
    pub(crate) async fn install(self, inboxes: &Inboxes) -> Option<Successor> {
        let Self { mut stream, process, version } = self;
        let leased = inboxes.give_up();
        let begin = async {
            say(&mut stream, &Word::Yours { leased: leased.iter().copied().collect() }).await?;
            match hear(BufReader::new(&mut stream)).await? {
                Word::Serving => Ok(()),
                word => Err(unexpected(&word)),
            }
        };
        match begin.await {
            Ok(()) => {
                tracing::info!(process, version, "another process has taken over");
                Some(Successor { stream, process, version, leased })
            }
            Err(error) => {
                inboxes.take_back();
                tracing::error!(%error, process, "the process that was to take over did not begin; this one goes on");
                None
            }
        }
    }
}

/// The process that has taken over.
#[derive(Debug)]
pub(crate) struct Successor {
    stream: UnixStream,
    process: Option<u32>,
    version: String,
    /// The webhooks that this one still delivers.
    leased: HashSet<Seq>,
}

impl Successor {
    /// Its process id, where the system knows it.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process
    }

    /// Tells it what becomes of inboxes here, for as long as this is polled. When it is dropped, all that is left is its own.
    pub(crate) async fn tell(&mut self, inboxes: &Inboxes) {
        loop {
            inboxes.has_news().await;
            let left = inboxes.leased();
            let released: Vec<Seq> = self.leased.extract_if(|seq| !left.contains(seq)).collect();
            let names = inboxes.take_names();
            if released.is_empty() && names.is_empty() {
                continue;
            }
            if let Err(error) = say(&mut self.stream, &Word::News { released, names }).await {
                tracing::error!(%error, "the process that has taken over is gone");
                std::future::pending::<()>().await;
            }
        }
    }
}
