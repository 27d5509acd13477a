//! Shows that a tunnel answers from outside: a request to its public URL that only this client can answer.
//!
//! ```text
//!   probe ── GET /.relay/probe/<nonce> ──▶ the public name ──▶ the relay ──▶ this client, which answers 204 by itself
//! ```
//!
//! The path has a nonce of 128 bits, so that nobody else can take a probe for the service's answer, and the service
//! never sees it.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use relay_protocol::link::Stream;
use relay_protocol::message::{Payload as _, ResponseHead};
use tokio::time::{Instant, sleep, timeout_at};

use crate::outgoing::{self, SendError};
use crate::session::dial::{DialError, Target};

/// Between two attempts: a name that was bound this very moment may need one more.
const PAUSE: Duration = Duration::from_millis(50);

/// How long one may take.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Where the answer's secret stands.
const ANSWER: HeaderName = HeaderName::from_static("probe-answer");

/// A path that this client answers by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Shared by clones, of which each request takes one.
    path: ByteString,
    /// What the answer says, and nobody else can know.
    answer: HeaderValue,
}

/// Why a probe did not come back.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The public name is not reached from here.
    #[error("{url} is not reached from this machine: {error}")]
    Dial {
        /// The tunnel's public URL.
        url: String,
        /// What stood in the way.
        error: DialError,
    },
    /// Something else answered.
    #[error("{url} is answered by something else than this tunnel ({what}); check where its DNS name points to")]
    Elsewhere {
        /// The tunnel's public URL.
        url: String,
        /// What came instead.
        what: String,
    },
}

impl Probe {
    /// A probe with a nonce of its own; `None` where the system has no randomness.
    pub fn new() -> Option<Self> {
        let nonce = || {
            let mut nonce = [0; 16];
            aws_lc_rs::rand::fill(&mut nonce).ok()?;
            Some(format!("{:032x}", u128::from_be_bytes(nonce)))
        };
        let answer = HeaderValue::try_from(nonce()?).ok()?;
        Some(Self { path: format!("/.relay/probe/{}", nonce()?).into(), answer })
    }

    /// Whether this request is the probe. Any tunnel of the client answers it: which of them a name leads to is the relay's
    /// word alone, for every request, and nobody else knows the path.
    pub(crate) fn is(&self, target: &str) -> bool {
        *target == *self.path
    }

    /// Answers the probe.
    pub(crate) fn answer(&self, stream: &Stream) {
        let head = ResponseHead { status: StatusCode::NO_CONTENT, headers: vec![(ANSWER, self.answer.clone())] };
        // Where the stream is gone, whoever asked has gone, too.
        if let Ok(head) = head.to_bytes() {
            let _ = stream.send_head(head, false).and_then(|()| stream.finish(Bytes::new()));
        }
    }

    /// Asks until the answer comes, for at most `within`. `public` is the way to the origin of the tunnel's public URL, and
    /// `below` the path that it has there, if it has one.
    ///
    /// # Errors
    /// [`ProbeError`]: what the last attempt came to.
    pub async fn come_back(&self, public: &Target, below: &str, within: Duration) -> Result<(), ProbeError> {
        let deadline = Instant::now() + within;
        let path = [below, &self.path].concat();
        loop {
            let attempt = timeout_at(deadline, self.attempt(public, &path)).await;
            let failed = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(elsewhere(public, format!("no answer within {} s", within.as_secs()))),
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(failed);
            }
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, public: &Target, path: &str) -> Result<(), ProbeError> {
        let asked = outgoing::send(public, &Method::GET, path, &[], Vec::new(), ATTEMPT, (0, 0)).await;
        let answer = asked.map_err(|error| match error {
            SendError::Dial(error) => ProbeError::Dial { url: public.url().to_string(), error },
            other => elsewhere(public, other.to_string()),
        })?;
        match answer.headers.get(ANSWER) {
            Some(proof) if *proof == self.answer => Ok(()),
            _ => Err(elsewhere(public, format!("status {}", answer.status))),
        }
    }
}

fn elsewhere(public: &Target, what: String) -> ProbeError {
    ProbeError::Elsewhere { url: public.url().to_string(), what }
}
