//! Fetches a page of a provider: a key that it publishes, or one that completes a handshake.
//!
//! One `GET` over HTTPS and HTTP/1.1, on a connection of its own: nothing is sent along, nothing is followed, and time
//! and bytes have a limit. Which URL may be fetched is for the caller to know: it stands in what a stranger has sent.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AGE, CACHE_CONTROL, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::task::spawn_blocking;

use crate::outgoing::{self, Answer, BODY_MAX, SendError};
use crate::session::dial::{DialError, Peer, RelayUrl, RelayUrlError, Target, TargetError, Trust};

/// The whole of it: resolving, connecting, the answer and its body.
const WITHIN: Duration = Duration::from_secs(5);

/// Fetches pages, and remembers whom to trust.
#[derive(Debug, Default)]
pub(crate) struct Fetcher {
    trust: Trust,
    /// The way to the last host: reading the machine's CAs for each would take milliseconds.
    last: Mutex<Option<Target>>,
}

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Page {
    /// All of it.
    pub(crate) body: Bytes,
    /// For how long it may be kept, where the answer says that (RFC 9111, section 4.2.1).
    pub(crate) fresh: Option<Duration>,
}

/// Why a page was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The URL is none that can be fetched.
    #[error("{0:?} is not the URL of a page")]
    Url(String),
    /// Its host is none.
    #[error(transparent)]
    Host(#[from] RelayUrlError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The host is not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// What it says is no answer.
    #[error("{host} did not answer: {source}")]
    Broken {
        /// Where that was.
        host: String,
        /// What hyper made of it.
        source: hyper::Error,
    },
    /// It answered with something else.
    #[error("{host} answered with status {}", status.as_u16())]
    Status {
        /// Where that was.
        host: String,
        /// The status: 200 would have been right.
        status: StatusCode,
    },
    /// The page is too large: a set of keys has some thousand bytes.
    #[error("{host} answered with more than {} KiB", BODY_MAX >> 10)]
    TooLarge {
        /// Where that was.
        host: String,
    },
    /// The program ends.
    #[error("this program ends")]
    Ended,
    /// It took too long.
    #[error("{host} did not answer within {} s", WITHIN.as_secs())]
    Slow {
        /// Where that was.
        host: String,
    },
}

impl Fetcher {
    /// Trusts these CAs.
    #[cfg(test)]
    pub(crate) fn trusting(trust: Trust) -> Self {
        Self { trust, last: Mutex::default() }
    }

    /// Fetches a page, within 5 s and 64 KiB. Dropping the future ends it.
    ///
    /// # Errors
    /// [`FetchError`]: also for an answer that leads elsewhere, and any other than 200.
    pub(crate) async fn get(&self, url: &str) -> Result<Page, FetchError> {
        let not_one = || FetchError::Url(url.to_owned());
        let rest = url.strip_prefix("https://").ok_or_else(not_one)?;
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let target = self.target(host.parse()?).await?;
        let headers = [
            (ACCEPT, HeaderValue::from_static("*/*")),
            (USER_AGENT, HeaderValue::from_static(concat!("relay/", env!("CARGO_PKG_VERSION")))),
        ];
        let at = || host.to_owned();
        let page =
            outgoing::send(&target, &Method::GET, path, &headers, Vec::new(), WITHIN, (BODY_MAX as u64, BODY_MAX))
                .await;
        let Answer { status, headers, body, size, .. } = page.map_err(|error| match error {
            SendError::Dial(error) => error.into(),
            SendError::Request(_) => not_one(),
            SendError::Broken(source) => FetchError::Broken { host: at(), source },
            SendError::Late(_) => FetchError::Slow { host: at() },
        })?;
        if status != StatusCode::OK {
            return Err(FetchError::Status { host: at(), status });
        }
        if size > body.len() as u64 {
            return Err(FetchError::TooLarge { host: at() });
        }
        Ok(Page { body: body.into(), fresh: fresh(&headers) })
    }

    async fn target(&self, url: RelayUrl) -> Result<Target, FetchError> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last().clone();
        let target = match known {
            Some(known) => known.to(url)?,
            None => {
                let trust = self.trust.clone();
                let read = spawn_blocking(move || Target::new(url, &trust));
                read.await.map_err(|_| FetchError::Ended)??.naming(Peer::Provider)
            }
        };
        *last() = Some(target.clone());
        Ok(target)
    }
}

/// For how long an answer says that it holds, less the time for which a cache has kept it already.
fn fresh(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    let mut directives = directives.flat_map(|value| value.split(',')).map(|directive| directive.trim());
    let seconds = |text: &str| text.trim_matches('"').parse::<u64>().ok();
    let said = directives.find_map(|directive| match directive.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("max-age") => Some(seconds(value).unwrap_or(0)),
        None if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") => Some(0),
        _ => None,
    })?;
    let age = headers.get(AGE).and_then(|value| seconds(value.to_str().ok()?)).unwrap_or(0);
    Some(Duration::from_secs(said.saturating_sub(age)))
}
