//! An authority's directory, and the way to it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use jiff::Timestamp;
use serde::Deserialize;

use super::AcmeError;
use crate::outgoing::Outgoing;

/// Longer pauses that an authority asks for are cut to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// How an authority is asked: by instant-acme, and by us for what that leaves out.
#[derive(Clone, Debug)]
pub(super) struct Way {
    outgoing: Outgoing,
    /// How long the last refusal asks us to wait.
    pause: Arc<Mutex<Option<Duration>>>,
}

/// What a directory says (RFC 8555, section 7.1.1; RFC 9773, section 4).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Directory {
    new_nonce: String,
    new_account: String,
    new_order: String,
    /// Where it says when to renew, if it does.
    renewal_info: Option<String>,
    pub(super) meta: Meta,
}

/// What a directory says of its authority.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    /// Its names in CAA records.
    pub(super) caa_identities: Vec<String>,
    pub(super) terms_of_service: Option<String>,
    /// Whether an account has to be bound to one that was made by hand.
    pub(super) external_account_required: bool,
}

/// When an authority wants a certificate renewed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Window,
}

/// RFC 9773, section 4.2.
#[derive(Debug, Deserialize)]
struct Window {
    start: String,
    end: String,
}

impl Directory {
    /// Whether the authority says when to renew.
    pub(super) fn renews(&self) -> bool {
        self.renewal_info.is_some()
    }
}

impl Window {
    /// Both ends, in seconds since 1970.
    fn seconds(&self) -> Option<(i64, i64)> {
        let [start, end] =
            [&self.start, &self.end].map(|text| text.parse::<Timestamp>().map(|time| time.as_second()).ok());
        start.zip(end).filter(|(start, end)| start <= end)
    }
}

impl Way {
    pub(super) fn new(outgoing: Outgoing) -> Self {
        Self { outgoing, pause: Arc::default() }
    }

    /// Reads the directory at this URL.
    pub(super) async fn directory(&self, url: &str) -> Result<Directory, AcmeError> {
        let invalid = |reason: String| AcmeError::Directory { url: url.to_owned(), reason };
        let directory: Directory = self.get(url).await?;
        let Directory { new_nonce, new_account, new_order, .. } = &directory;
        // instant-acme takes for granted that these are URLs.
        let bad = [new_nonce, new_account, new_order].into_iter().find(|url| !is_secure(url));
        match bad.map(|bad| invalid(format!("{bad:?} is not an https URL"))) {
            Some(error) => Err(error),
            None => Ok(directory),
        }
    }

    /// Between which moments the authority wants this certificate renewed, in seconds since 1970, if it says so.
    pub(super) async fn window(&self, directory: &Directory, certificate: &str) -> Option<(i64, i64)> {
        let url = format!("{}/{certificate}", directory.renewal_info.as_deref()?.trim_end_matches('/'));
        match self.get::<RenewalInfo>(&url).await {
            Ok(info) => info.suggested_window.seconds(),
            Err(error) => {
                tracing::warn!(%error, "the authority does not say when to renew");
                None
            }
        }
    }

    async fn get<T: for<'a> Deserialize<'a>>(&self, url: &str) -> Result<T, AcmeError> {
        let invalid = |reason: String| AcmeError::Directory { url: url.to_owned(), reason };
        let request = Request::get(url).body(Bytes::new()).map_err(|error| invalid(error.to_string()))?;
        let response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(invalid(response.status().to_string()));
        }
        serde_json::from_slice(response.body()).map_err(|error| invalid(error.to_string()))
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, AcmeError> {
        if request.uri().scheme() != Some(&Scheme::HTTPS) {
            return Err(AcmeError::Insecure { url: request.uri().to_string() });
        }
        let agent = http::HeaderValue::from_static(concat!("relay-server/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let url = request.uri().clone();
        let response = self.outgoing.send(request).await?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = retry_after(&response);
        }
        if status.is_server_error() && serde_json::from_slice::<serde::de::IgnoredAny>(response.body()).is_err() {
            return Err(AcmeError::Directory { url: url.to_string(), reason: status.to_string() });
        }
        Ok(response)
    }

    /// How long the last refusal asked us to wait; only once.
    pub(super) fn take_pause(&self) -> Option<Duration> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl HttpClient for Way {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let way = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_or_else(|never| match never {}, |body| body.to_bytes());
            let response = way.send(Request::from_parts(head, body)).await;
            let response = response.map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(response.map(Full::new)))
        })
    }
}

/// Whether this is a URL that an authority may have: nothing is signed for others to read.
pub(crate) fn is_secure(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|url| url.scheme() == Some(&Scheme::HTTPS) && url.authority().is_some())
}

/// RFC 9110, section 10.2.3, as seconds; a date is as good as silence, because the clock here may be wrong.
fn retry_after(response: &Response<Bytes>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}
