//! How one process takes the place of another on the same data directory, so that an upgrade refuses nothing and loses
//! nothing.
//!
//! ```text
//!   the old process                                    the new one
//!     ◀──────────────────── take over, on the control socket ── configuration read
//!   the lock, the control socket, every listener ──────────────▶ certificates, listeners, databases
//!     ◀────────────────────────────────────────────── ready ──  nothing can fail any more
//!   delivers no more webhooks ── what it is still at ──────────▶ serves
//!     ◀──────────────────────────────────────────── serving ──
//!   accepts no more, has its clients move,
//!   ends what is under way ─── what it is still at ────────────▶ delivers what the old one has done with
//!   exits
//! ```
//!
//! Whoever fails before the last step changes nothing for the other: the old process serves on as if nothing had been.
//!
//! The descriptors themselves are handed over, so that no connection that waits in a listener's queue is lost, and the lock is
//! never free in between. Both processes write to the databases for as long as the old one has something to finish, each
//! change a transaction of SQLite's; so a migration must leave what the version before works with. Who delivers which webhook is
//! kept in memory, and so by one process alone: the old one takes on no more from the moment that it tells, and says of each
//! when it has done with it. What else is there ends with it: who was refused, keys of sessions that could be resumed, and what
//! clients that are away have left for handshakes.

mod give;
mod take;

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt as _};

pub(crate) use self::give::{Candidate, Office, give, upgrade};
pub(crate) use self::take::{Predecessor, approach};
use crate::inbox::records::Seq;
use crate::line::{read_line, to_line};

/// How long a process has to get ready. Databases may have to be migrated.
const READY: Duration = Duration::from_secs(300);

/// For what takes no time.
const SHORT: Duration = Duration::from_secs(30);

/// Of a message: as many webhooks as are delivered at once have their numbers in one.
const MAX_LINE: u64 = 16 << 20;

/// What one process says to the other, once it is on its way to take over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
enum Word {
    /// From the new process: nothing can fail any more.
    Ready,
    /// From the old one: it delivers nothing more but these webhooks, by their places in the order of arrival.
    Yours {
        /// The webhooks.
        leased: Vec<Seq>,
    },
    /// From the new process: it accepts connections.
    Serving,
    /// From the old one.
    News {
        /// It has done with these webhooks.
        released: Vec<Seq>,
        /// Something is different with these names and their inboxes.
        names: Vec<String>,
    },
}

/// Why no other process was taken over from.
#[derive(Debug, Error)]
pub enum TakeOverError {
    /// There is none.
    #[error("nothing is kept on disk, so that there is nothing to take over")]
    NoDirectory,
    /// It says no.
    #[error("the relay that runs does not hand over: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// It is of a version that does not know how.
    #[error("the relay that runs handed over no {missing}; stop it, and start the new one")]
    Incomplete {
        /// What is missing.
        missing: &'static str,
    },
    /// It does not answer, or says what nobody understands.
    #[error("the relay that runs does not hand over: {0}")]
    Conversation(#[from] io::Error),
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), word: &Word) -> io::Result<()> {
    writer.write_all(&to_line(word)?).await
}

async fn hear(reader: impl AsyncBufRead + Unpin) -> io::Result<Word> {
    Ok(serde_json::from_slice(&read_line(reader, MAX_LINE).await?)?)
}

fn unexpected(word: &Word) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{word:?} is not what is said here"))
}
