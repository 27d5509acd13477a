//! One issuer: what it publishes, and what it says of somebody who comes back from it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode, Uri};
use relay_protocol::query::{escaped, written};
use relay_protocol::webhook::{Unsigned, plain, signed_claims};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::claims::{self, ClaimsError, Expected};
use super::{Issuers, Person};
use crate::clock::unix_now;
use crate::outgoing::Outgoing;

/// How long what an issuer publishes is believed.
const FRESH: Duration = Duration::from_secs(3600);

/// How long an issuer that has failed is left alone: strangers can begin as many logins as they like.
const REST: Duration = Duration::from_secs(10);

/// How often its keys are fetched because of one that is not among them.
const KEYS: Duration = Duration::from_secs(60);

/// Whom the operator lets the relay ask.
#[derive(Debug)]
pub(crate) struct Issuer {
    url: String,
    outgoing: Outgoing,
    known: Mutex<Known>,
    /// A place for whoever fetches its keys.
    fetching: Semaphore,
    /// Places for those who redeem a code.
    redeeming: Semaphore,
}

type Found = Result<Arc<Endpoints>, IssuerError>;

type Asking = Shared<BoxFuture<'static, Found>>;

#[derive(Debug, Default)]
struct Known {
    endpoints: Option<(Instant, Found)>,
    /// They are asked for since then, for all who wait: whoever leaves takes the question from nobody else.
    asking: Option<(Instant, Asking)>,
    keys: Option<(Instant, Arc<str>)>,
}

/// Where an issuer is asked for what (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Deserialize)]
pub(crate) struct Endpoints {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// What somebody has brought from an issuer, and what it was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Grant<'a> {
    pub(crate) code: &'a str,
    /// Of RFC 7636.
    pub(crate) verifier: &'a str,
    pub(crate) nonce: &'a str,
    pub(crate) redirect_uri: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) secret: &'a str,
    /// Somebody without a verified address is not let in.
    pub(crate) needs_email: bool,
}

/// Why an issuer does not say who somebody is. The first words are for the sentence "… does not say who you are: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IssuerError {
    #[error("{0}")]
    Unreachable(String),
    #[error("{what} was answered with {status}")]
    Status { what: String, status: u16 },
    #[error("{what} is not what OpenID Connect has there: {reason}")]
    Malformed { what: String, reason: String },
    #[error("its discovery document is that of {0}; the relay's operator has to write it exactly so")]
    Other(String),
    #[error("its discovery document names {0}, which is no https URL")]
    Insecure(String),
    #[error("it refuses the login: {0}")]
    Refused(String),
    #[error("the token: {0}")]
    Unsigned(#[from] Unsigned),
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    #[error("too many log in at once")]
    Busy,
}

impl IssuerError {
    /// Whether it says nothing of what was brought: the issuer could not even be asked.
    pub(crate) fn is_on_the_way(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy)
    }
}

/// What a token endpoint answers (RFC 6749, section 5.1; OpenID Connect Core 1.0, section 3.1.3.3).
#[derive(Deserialize)]
struct Tokens {
    id_token: String,
    access_token: Option<String>,
}

impl Issuer {
    /// Codes that are redeemed at once. An issuer that hangs holds up so many people, and no more of the relay.
    const AT_ONCE: usize = 8;

    pub(super) fn new(url: &str, outgoing: Outgoing) -> Self {
        Self {
            url: url.to_owned(),
            outgoing,
            known: Mutex::default(),
            fetching: Semaphore::new(1),
            redeeming: Semaphore::new(Self::AT_ONCE),
        }
    }

    /// As the operator has written it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where a browser is sent to log in, with these parameters.
    ///
    /// # Errors
    /// [`IssuerError`]: it does not say where that is.
    pub(crate) async fn login_url(&self, parameters: &[(&str, &str)]) -> Result<String, IssuerError> {
        let endpoints = self.endpoints().await?;
        let url = &endpoints.authorization_endpoint;
        let between = if url.contains('?') { "&" } else { "?" };
        Ok(format!("{url}{between}{}", written(parameters.iter().copied())))
    }

    /// Who has brought a code.
    ///
    /// # Errors
    /// [`IssuerError`]: nobody knows.
    pub(crate) async fn redeem(&self, grant: Grant<'_>) -> Result<Person, IssuerError> {
        let endpoints = self.endpoints().await?;
        let place = timeout(Issuers::WITHIN, self.redeeming.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(IssuerError::Busy) };
        let tokens = self.tokens(&endpoints, grant).await?;
        let claims = self.verified(&endpoints, &tokens.id_token).await?;
        let expected = Expected { issuer: &endpoints.issuer, client_id: grant.client_id, nonce: grant.nonce };
        let mut person = claims::judge(&claims, expected, unix_now())?;
        if person.email.is_none() && !claims.contains_key("email_verified") {
            let email = match self.email(&endpoints, &tokens, &person.subject).await {
                // Whoever has logged in is not to blame.
                Err(error) if grant.needs_email => return Err(IssuerError::Unreachable(error.to_string())),
                Err(error) => {
                    tracing::warn!(issuer = self.url, %error, "no address of who logs in");
                    None
                }
                Ok(email) => email,
            };
            // Where the token says one, it is the same.
            let said = claims.get("email").and_then(Value::as_str);
            person.email = email.filter(|email| said.is_none_or(|said| said.eq_ignore_ascii_case(email)));
        }
        Ok(person)
    }

    async fn tokens(&self, endpoints: &Endpoints, grant: Grant<'_>) -> Result<Tokens, IssuerError> {
        let Grant { code, verifier, redirect_uri, client_id, secret, .. } = grant;
        let mut parameters = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", verifier),
        ];
        let mut request = Request::post(&endpoints.token_endpoint)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        // The first where nothing is said (OpenID Connect Discovery 1.0, section 3).
        let methods = endpoints.token_endpoint_auth_methods_supported.as_deref();
        let takes = |method: &str| methods.is_none_or(|methods| methods.iter().any(|one| one == method));
        if takes("client_secret_basic") {
            // RFC 6749, section 2.3.1.
            let pair = format!("{}:{}", escaped(client_id), escaped(secret));
            let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)));
            let mut value = value.map_err(|error| malformed("the client secret", &error))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        } else {
            parameters.extend([("client_id", client_id), ("client_secret", secret)]);
        }
        let what = &endpoints.token_endpoint;
        let request = request.body(Bytes::from(written(parameters))).map_err(|error| malformed(what, &error))?;
        json(&self.outgoing, what, request).await
    }

    /// The claims of an ID token that is signed by this issuer.
    async fn verified(&self, endpoints: &Endpoints, token: &str) -> Result<Map<String, Value>, IssuerError> {
        let keys = self.keys(endpoints, FRESH).await?;
        match signed_claims(token, &keys) {
            // There may be a new one, which need not have a new name.
            Err(Unsigned::NoKey | Unsigned::Signature) => Ok(signed_claims(token, &self.keys(endpoints, KEYS).await?)?),
            claims => Ok(claims?),
        }
    }

    /// The verified address of somebody, from issuers that have it elsewhere than in the token (OpenID Connect Core 1.0, sections
    /// 5.3 and 5.4). Without, they have none: that is for the tunnel's rules to judge.
    ///
    /// # Errors
    /// [`IssuerError`]: it would tell, and has not.
    async fn email(
        &self,
        endpoints: &Endpoints,
        tokens: &Tokens,
        subject: &str,
    ) -> Result<Option<String>, IssuerError> {
        let (Some(url), Some(token)) = (&endpoints.userinfo_endpoint, &tokens.access_token) else { return Ok(None) };
        let bearer = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer = bearer.map_err(|error| malformed("the access token", &error))?;
        bearer.set_sensitive(true);
        let request = Request::get(url).header(AUTHORIZATION, bearer).header(ACCEPT, "application/json");
        let request = request.body(Bytes::new()).map_err(|error| malformed(url, &error))?;
        let claims = json::<Map<String, Value>>(&self.outgoing, url, request).await?;
        // Of somebody else it says nothing (section 5.3.2).
        Ok(claims::email(&claims).filter(|_| claims.get("sub").and_then(Value::as_str) == Some(subject)))
    }

    async fn endpoints(&self) -> Found {
        let asking = {
            let mut known = self.known();
            let holds = |at: &Instant, known: &Result<_, _>| at.elapsed() < if known.is_ok() { FRESH } else { REST };
            if let Some((_, known)) = known.endpoints.as_ref().filter(|(at, known)| holds(at, known)) {
                return known.clone();
            }
            match known.asking.as_ref().filter(|(since, _)| since.elapsed() < Issuers::WITHIN) {
                Some((_, asking)) => asking.clone(),
                None => {
                    let asking = discover(self.url.clone(), self.outgoing.clone()).boxed().shared();
                    known.asking = Some((Instant::now(), asking.clone()));
                    asking
                }
            }
        };
        let found = asking.await;
        let mut known = self.known();
        // The first who hears it.
        if known.asking.take().is_some() {
            if let Err(error) = &found {
                tracing::warn!(issuer = self.url, %error, "nobody can log in there");
            }
            known.endpoints = Some((Instant::now(), found.clone()));
        }
        found
    }

    /// Its keys, which are not older than that.
    async fn keys(&self, endpoints: &Endpoints, age: Duration) -> Result<Arc<str>, IssuerError> {
        let known = || self.known().keys.clone().filter(|(at, _)| at.elapsed() < age).map(|(_, keys)| keys);
        if let Some(keys) = known() {
            return Ok(keys);
        }
        let _place = self.place().await?;
        if let Some(keys) = known() {
            return Ok(keys);
        }
        let url = &endpoints.jwks_uri;
        let request = Request::get(url).header(ACCEPT, "application/json").body(Bytes::new());
        let body = send(&self.outgoing, url, request.map_err(|error| malformed(url, &error))?).await?;
        let keys: Arc<str> = str::from_utf8(&body).map_err(|error| malformed(url, &error))?.into();
        self.known().keys = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    async fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>, IssuerError> {
        match timeout(Issuers::WITHIN, self.fetching.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(IssuerError::Busy),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn discover(issuer: String, outgoing: Outgoing) -> Found {
    let url = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(&issuer));
    let request = Request::get(&url).header(ACCEPT, "application/json").body(Bytes::new());
    let found: Endpoints = json(&outgoing, &url, request.map_err(|error| malformed(&url, &error))?).await?;
    if found.issuer != issuer {
        return Err(IssuerError::Other(plain(&found.issuer)));
    }
    let named = [&found.authorization_endpoint, &found.token_endpoint, &found.jwks_uri];
    let insecure = named.into_iter().chain(&found.userinfo_endpoint).find(|url| !is_https(url));
    insecure.map_or(Ok(()), |url| Err(IssuerError::Insecure(plain(url))))?;
    Ok(Arc::new(found))
}

async fn json<T: DeserializeOwned>(outgoing: &Outgoing, what: &str, request: Request<Bytes>) -> Result<T, IssuerError> {
    let body = send(outgoing, what, request).await?;
    serde_json::from_slice(&body).map_err(|error| malformed(what, &error))
}

async fn send(outgoing: &Outgoing, what: &str, request: Request<Bytes>) -> Result<Bytes, IssuerError> {
    let answer = outgoing.send(request).await.map_err(|error| IssuerError::Unreachable(error.to_string()))?;
    let (status, body) = (answer.status(), answer.into_body());
    if status == StatusCode::OK {
        return Ok(body);
    }
    // RFC 6749, section 5.2.
    let error: Option<Map<String, Value>> = serde_json::from_slice(&body).ok();
    let word = |name| error.as_ref()?.get(name)?.as_str().map(plain);
    Err(match (word("error"), word("error_description")) {
        (Some(error), Some(description)) => IssuerError::Refused(format!("{error}: {description}")),
        (Some(error), None) => IssuerError::Refused(error),
        (None, _) => IssuerError::Status { what: what.to_owned(), status: status.as_u16() },
    })
}

fn malformed(what: &str, error: &dyn std::error::Error) -> IssuerError {
    IssuerError::Malformed { what: what.to_owned(), reason: plain(&error.to_string()) }
}

/// Whether the relay, or a browser, may be sent there.
fn is_https(url: &str) -> bool {
    let is_visible = url.bytes().all(|byte| byte.is_ascii_graphic()) && !url.contains('#');
    is_visible && url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_form_has_no_letters_that_mean_something_there() {
        let parameters =
            [("scope", "openid email"), ("redirect_uri", "https://a.example:1/b?c&d=e+f"), ("x", "a-b.c_d~é")];
        assert_eq!(
            written(parameters),
            "scope=openid%20email&redirect_uri=https%3A%2F%2Fa.example%3A1%2Fb%3Fc%26d%3De%2Bf&x=a-b.c_d~%C3%A9"
        );
    }

    #[test]
    fn nobody_is_sent_elsewhere_than_over_https() {
        for (url, is_one) in [
            ("https://issuer.example/login", true),
            ("https://issuer.example:8443/login?a=b", true),
            ("http://issuer.example/login", false),
            ("//issuer.example/login", false),
            ("/login", false),
            ("javascript:alert(1)", false),
            ("https://issuer.example/a b", false),
            ("https://issuer.example/#a", false),
            ("https://issuer.example/\r\nset-cookie: a=b", false),
            ("", false),
        ] {
            assert_eq!(is_https(url), is_one, "{url}");
        }
    }
}
