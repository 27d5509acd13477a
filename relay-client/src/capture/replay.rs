//! A request that is sent once more: byte for byte as it came, but for what says so, or signed anew.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use relay_protocol::exchange::public_url;
use relay_protocol::message::{HeaderList, RequestHead};
use relay_protocol::webhook::{Credentials, Draft, Provider, Request, SignError, Table, Verdict};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::entry::REPLAY_OF;
use super::exchange::Exchange;
use super::mask;
use super::saved::{base, origin};

/// How long an answer is waited for where nobody knows how long its sender would.
const PATIENT: Duration = Duration::from_secs(30);

/// A request that is to be sent once more.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    /// The id of the first one; none of a request that no client has forwarded.
    pub(crate) of: Option<String>,
    /// The tunnel that it came through.
    pub(crate) tunnel: Option<String>,
    /// Who has sent it: the id of a row of the provider table.
    pub(crate) provider: Option<String>,
    /// Its method.
    pub(crate) method: Method,
    /// The URL that its sender called.
    pub(crate) url: String,
    /// In their order, without Host, which its URL names.
    pub(crate) headers: HeaderList,
    /// Byte for byte.
    pub(crate) body: Vec<u8>,
    /// How long its sender waited for an answer.
    pub(crate) within: Duration,
    /// The address of its first sender.
    pub(crate) remote: String,
    /// Behind its body.
    pub(crate) trailers: HeaderList,
    /// What it was before somebody changed it here.
    pub(crate) before: Option<Box<Self>>,
}

/// Whether a request is signed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Resign {
    /// Where its signature was right, and is too old by now or no more that of what was changed here, and there is a secret.
    #[default]
    Stale,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

/// Why a request cannot be sent once more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Not all of it was kept.
    #[error(
        "{id} cannot be sent as it came: only {kept} of the {size} bytes of its body were kept, see `[capture] body` \
         in docs/configuration.md"
    )]
    Cut {
        /// Which one.
        id: String,
        /// Bytes that were kept.
        kept: u64,
        /// Bytes that there were.
        size: u64,
    },
    /// Not all of it came.
    #[error("{0} cannot be sent as it came: it was answered before its whole body was here")]
    Early(String),
    /// It would be another protocol.
    #[error("{0} asked to switch to another protocol, and what was said in that was not kept")]
    Upgrade(String),
    /// Nobody is known to have signed it.
    #[error("nobody is known to sign such a request, so that it cannot be signed anew; leave --resign out")]
    Nobody,
    /// Nothing is known to sign it with.
    #[error("there is no secret to sign it with; --secret takes it, @FILE or env:NAME")]
    NoSecret,
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It was changed into something that is no request.
    #[error("it is no request that can be sent: {0}")]
    Malformed(String),
}

impl Replay {
    /// A request of ours. Its headers are without Host.
    pub(crate) fn new(method: Method, url: String, headers: HeaderList, body: Vec<u8>) -> Self {
        Self {
            of: None,
            tunnel: None,
            provider: None,
            method,
            url,
            headers,
            body,
            within: PATIENT,
            remote: String::new(),
            trailers: HeaderList::new(),
            before: None,
        }
    }

    /// This exchange's request.
    ///
    /// # Errors
    /// Where not all of it is there.
    pub(crate) fn of(exchange: &Exchange) -> Result<Self, ReplayError> {
        let (summary, request) = (&exchange.summary, &exchange.request);
        let id = summary.id.clone();
        let kept = request.body.len() as u64;
        match (request.body_truncated, request.body_size) {
            (false, _) => {}
            (true, size) if size > kept => return Err(ReplayError::Cut { id, kept, size }),
            (true, _) => return Err(ReplayError::Early(id)),
        }
        if request.head.upgrade.is_some() {
            return Err(ReplayError::Upgrade(id));
        }
        // What the relay has said of the original, such as that its signature was right, it has not said of this.
        let is_theirs = |name: &HeaderName| *name != HOST && !name.as_str().starts_with("relay-");
        let headers = request.head.headers.iter().filter(|(name, _)| is_theirs(name)).cloned().collect();
        Ok(Self {
            of: Some(id),
            tunnel: summary.tunnel.clone(),
            provider: summary.provider.clone(),
            within: summary.allowed_ms.filter(|allowed| *allowed > 0).map_or(PATIENT, Duration::from_millis),
            remote: summary.remote.clone(),
            trailers: request.trailers.clone(),
            ..Self::new(request.head.method.clone(), exchange.url(), headers, request.body.clone())
        })
    }

    /// The request of this head and body, which somebody else has made.
    pub(crate) fn made(head: RequestHead, provider: Option<String>, body: Vec<u8>) -> Self {
        Self {
            provider,
            within: Duration::from_millis(head.deadline_ms.into()),
            remote: head.remote.to_string(),
            ..Self::new(head.method.clone(), public_url(&head), head.headers, body)
        }
    }

    /// The same for another URL, of the same service or of another.
    pub(crate) fn with_url(self, url: String) -> Self {
        if url == self.url { self } else { Self { url, before: Some(Box::new(self.clone())), ..self } }
    }

    /// Signs it anew where that is to be. Whether it was.
    ///
    /// # Errors
    /// Where it must be signed and cannot.
    pub(crate) fn sign(
        &mut self,
        resign: Resign,
        table: &Table,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<bool, ReplayError> {
        if resign == Resign::Never || resign == Resign::Stale && credentials.secrets.is_empty() {
            return Ok(false);
        }
        let headers = self.seen_headers();
        let request = Request::new(&self.method, &self.url, &headers, &self.body);
        let known = self.provider.as_deref().and_then(|id| table.get(id));
        let Some(provider) = known.or_else(|| table.recognise(&request)) else {
            return if resign == Resign::Always { Err(ReplayError::Nobody) } else { Ok(false) };
        };
        if resign == Resign::Stale && !self.is_due(&request, provider, credentials, now) {
            return Ok(false);
        }
        let signed = provider.sign(&request, credentials, now);
        let Draft { url, mut headers, body } = match signed {
            Ok(draft) => draft,
            // It goes as it came, which is the most that can be done.
            Err(_) if resign == Resign::Stale => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.names_host() {
            headers.retain(|(name, _)| *name != HOST);
        }
        (self.url, self.headers, self.body) = (url, headers, body);
        Ok(true)
    }

    /// Whether one of these secrets has signed it, whenever that was, as it was before it was changed here.
    pub(crate) fn was_signed_with(&self, provider: &Provider, credentials: &Credentials, now: Timestamp) -> bool {
        let first = self.before.as_deref().unwrap_or(self);
        let headers = first.seen_headers();
        let request = Request::new(&first.method, &first.url, &headers, &first.body);
        provider.judge(&request, credentials, now).secret.is_some()
    }

    /// Whether its signature was right once and is so no more, for us or for the provider's own library.
    fn is_due(&self, request: &Request<'_>, provider: &Provider, credentials: &Credentials, now: Timestamp) -> bool {
        let judgement = provider.judge(request, credentials, now);
        match judgement.verdict {
            Verdict::Stale => true,
            Verdict::Valid => judgement.is_late,
            Verdict::Missing => false,
            _ if mask::is_masked(request, &self.url, provider) => true,
            _ => self.before.as_ref().is_some_and(|before| {
                let headers = before.seen_headers();
                let first = Request::new(&before.method, &before.url, &headers, &before.body);
                let was = provider.judge(&first, credentials, now).verdict;
                // Whoever writes another signature means that one.
                matches!(was, Verdict::Valid | Verdict::Stale) && provider.is_signed_alike(request, &first)
            }),
        }
    }

    /// Its headers as whoever signs the URL by its host has seen them.
    fn seen_headers(&self) -> HeaderList {
        let host = self.host().filter(|_| !self.names_host()).map(|host| (HOST, host));
        self.headers.iter().cloned().chain(host).collect()
    }

    fn names_host(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == HOST)
    }

    /// Its head as it crosses a link, with an id of its own and the word that it is a replay.
    ///
    /// # Errors
    /// Where it was changed into something that is no request.
    pub(crate) fn head(&self) -> Result<RequestHead, ReplayError> {
        let malformed = |what: &str| ReplayError::Malformed(what.to_owned());
        let start = origin(&self.url).ok_or_else(|| malformed("its URL has no host"))?;
        let authority = start.split_once("://").map_or(start, |(_, authority)| authority);
        let target = Some(self.target()).filter(|target| !target.is_empty()).unwrap_or("/");
        let target = target.parse().map_err(|_| malformed("its path is none"))?;
        let within = u32::try_from(self.within.as_millis()).unwrap_or(u32::MAX);
        Ok(RequestHead {
            tunnel: 0,
            id: Ulid::generate().to_string().into(),
            deadline_ms: within,
            elapsed_ms: 0,
            method: self.method.clone(),
            target,
            authority: authority.into(),
            remote: self.remote.as_str().into(),
            upgrade: None,
            headers: self.marked_headers(),
        })
    }

    /// Path and query, as its service sees them.
    pub(crate) fn target(&self) -> &str {
        self.url.get(base(&self.url, &self.headers).map_or(0, str::len)..).unwrap_or_default()
    }

    /// Its headers, with the length of its body as it is, and the word that it is a replay.
    pub(crate) fn marked_headers(&self) -> HeaderList {
        let mut headers = self.headers.clone();
        for (name, value) in &mut headers {
            if *name == CONTENT_LENGTH {
                *value = HeaderValue::from(self.body.len());
            }
        }
        let of = self.of.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
        headers.extend(of.map(|id| (REPLAY_OF, id)));
        headers
    }

    fn host(&self) -> Option<HeaderValue> {
        let start = origin(&self.url)?;
        HeaderValue::from_str(start.split_once("://").map_or(start, |(_, host)| host)).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::capture::export::tests::exchange;

    #[test]
    fn what_is_not_whole_says_whether_it_was_not_kept_or_did_not_come() {
        let said = |size| {
            let mut exchange = exchange("github", "/", &[], b"abc");
            (exchange.request.body_size, exchange.request.body_truncated) = (size, true);
            Replay::of(&exchange).unwrap_err().to_string()
        };
        assert!(said(3).contains("answered before its whole body was here"), "{}", said(3));
        assert!(said(5).contains("only 3 of the 5 bytes") && said(5).contains("[capture] body"), "{}", said(5));
    }
}
