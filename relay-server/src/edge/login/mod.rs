//! People who log in at a tunnel, in a browser, by OpenID Connect.
//!
//! ```text
//!   a page ─▶ no login ─▶ 302 to the issuer, which sends back to CALLBACK ─▶ a code ─▶ a person ─▶ 302 to the page
//!                 sealed into `state`: the page, and which browser it was
//! ```
//!
//! The relay keeps nothing of it: what it has to know again is sealed and with the browser, about this tunnel, issuer and client
//! alone. Several pages can be on their way at once. The URLs that browsers are sent to are whole and of this host, so that no
//! path leads elsewhere.

mod cookies;

use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use relay_protocol::access::Access;
use relay_protocol::exchange::append_all;
use relay_protocol::message::{HeaderList, RequestHead};
use relay_protocol::oidc::Oidc;
use relay_protocol::query::fields_lossy;
use relay_protocol::webhook::{Secret, plain};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(crate) use self::cookies::Cookies;
use self::cookies::{BROWSER, SESSION};
use super::body::EdgeBody;
use super::gate;
use super::record::Exchange;
use super::respond::{Link, explain_with, page};
use crate::Shared;
use crate::cause::Cause;
use crate::clock::unix_now;
use crate::judge::refused;
use crate::oidc::{Grant, Issuer, IssuerError, Issuers, Person, seal};
use crate::tunnels::Found;

/// Where an issuer sends people back to: what is registered there.
const CALLBACK: &str = "/_relay/oidc/callback";

/// Where people log in as whom they choose, also where the issuer knows them.
const CHOOSE: &str = "/_relay/oidc/login";

/// Where people end their login.
const LOGOUT: &str = "/_relay/oidc/logout";

/// What the service is told of who is there. Strangers cannot say it: all headers that begin so are the relay's.
const USER_SUB: HeaderName = HeaderName::from_static("relay-user-sub");
const USER_EMAIL: HeaderName = HeaderName::from_static("relay-user-email");

/// How long a login may take, in seconds.
const PENDING: u64 = 600;

/// The longest code that is taken to an issuer, in bytes.
const LONGEST_CODE: usize = 4096;

/// The most cookies of a name that are looked at.
const MOST: usize = 4;

/// The longest path that people come back to. It travels within the URLs of the issuer.
const LONGEST: usize = 1024;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Why a request does not come in as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stranger {
    /// A browser wants a page, and nobody has logged in.
    Begins,
    /// The issuer has sent somebody back.
    Returns,
    /// Somebody ends the login.
    Leaves,
    /// Nobody has logged in, and nobody could see a page for it.
    Unknown,
    /// There is a login, and a page of another origin makes use of it.
    Foreign,
    /// There is one, of somebody who may not come: the address, where the issuer has verified any.
    Unwanted(Option<String>),
}

/// What is left to be done about it, which takes a while.
#[derive(Debug)]
pub(super) struct Login {
    stranger: Stranger,
    /// The tunnel.
    name: String,
    /// Its rules.
    access: Arc<Access>,
}

/// A login that holds.
#[derive(Debug, Serialize, Deserialize)]
struct Session {
    #[serde(rename = "s")]
    subject: String,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// In seconds since 1970.
    #[serde(rename = "u")]
    until: i64,
}

/// What tells a browser that has begun logins.
#[derive(Debug, Serialize, Deserialize)]
struct Browser {
    #[serde(rename = "r")]
    random: String,
    /// In seconds since 1970. Before, other logins may be begun by it.
    #[serde(rename = "u")]
    until: i64,
}

/// A login that has begun.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    /// Derived of what the browser has.
    #[serde(rename = "b")]
    browser: String,
    /// Tells it from the others of the same browser.
    #[serde(rename = "r")]
    random: String,
    /// The page, with its query.
    #[serde(rename = "p")]
    page: String,
    #[serde(rename = "u")]
    until: i64,
}

/// What may be shown of a target, as in a log: what an issuer sends people back with opens a door.
pub(crate) fn shown(target: &PathAndQuery) -> &str {
    if target.path() == CALLBACK { CALLBACK } else { target.as_str() }
}

/// Takes back what the service would be told of who is there.
pub(super) fn untell(headers: &mut HeaderList) {
    headers.retain(|(name, _)| *name != USER_SUB && *name != USER_EMAIL);
}

/// Lets a request in that has a login, or needs none. The service is told who it is.
pub(super) fn check(
    shared: &Shared,
    head: &mut RequestHead,
    kept: &Cookies,
    (access, oidc, name): (&Arc<Access>, &Oidc, &str),
) -> Result<(), Login> {
    let own = || base(shared, head);
    let found = match head.target.path() {
        CALLBACK => Err(Stranger::Returns),
        LOGOUT => Err(Stranger::Leaves),
        CHOOSE if is_page(head) => Err(Stranger::Begins),
        CHOOSE => Err(Stranger::Unknown),
        _ => match session(&shared.live.borrow().issuers, kept, oidc, name) {
            Some(_) if is_foreign(head, own) => Err(Stranger::Foreign),
            Some(session) if !oidc.admits(session.email.as_deref()) => Err(Stranger::Unwanted(session.email)),
            Some(session) => Ok(Some(session)),
            None if is_page(head) => Err(Stranger::Begins),
            None => Err(Stranger::Unknown),
        },
    };
    let skips = || ![CALLBACK, LOGOUT, CHOOSE].contains(&head.target.path()) && oidc.skips(head.target.path());
    let session = match found {
        Err(Stranger::Begins | Stranger::Unknown | Stranger::Foreign | Stranger::Unwanted(_)) if skips() => None,
        Err(stranger) => return Err(Login { stranger, name: name.to_owned(), access: access.clone() }),
        Ok(session) => session,
    };
    let told = session.into_iter().flat_map(|session| [(USER_SUB, Some(session.subject)), (USER_EMAIL, session.email)]);
    let told = told.filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?)));
    head.headers.extend(told);
    Ok(())
}

/// The public URL of a request's host.
fn base(shared: &Shared, head: &RequestHead) -> String {
    shared.public_url(&gate::host(&head.authority).unwrap_or_default())
}

/// The login of a request.
fn session(issuers: &Issuers, kept: &Cookies, oidc: &Oidc, name: &str) -> Option<Session> {
    // What the operator does not trust any more has let nobody in.
    issuers.get(&oidc.issuer)?;
    // A browser has one. Strangers send what they like, and each costs some arithmetic.
    let sessions = kept.sessions.iter().take(MOST);
    let mut sessions = sessions.filter_map(|text| opened::<Session>(issuers, "session", (oidc, name), text));
    sessions.find(|session| unix_now() < session.until)
}

/// What was sealed for a tunnel.
fn opened<T: DeserializeOwned>(issuers: &Issuers, what: &str, (oidc, name): (&Oidc, &str), text: &str) -> Option<T> {
    let content = issuers.sealer.open(&[what, name, &oidc.issuer, &oidc.client_id], text)?;
    serde_json::from_slice(&content).ok()
}

fn sealed(issuers: &Issuers, what: &str, (oidc, name): (&Oidc, &str), content: &impl Serialize) -> Option<String> {
    let content = serde_json::to_vec(content).ok()?;
    issuers.sealer.seal(&[what, name, &oidc.issuer, &oidc.client_id], &content)
}

/// Whether a browser wants a page as a whole, for a person to see.
fn is_page(head: &RequestHead) -> bool {
    let word = |name| value(head, name);
    let wants = match word(SEC_FETCH_MODE) {
        Some(mode) => mode == "navigate" && word(SEC_FETCH_DEST).is_none_or(|dest| dest == "document"),
        // Browsers of before 2023.
        None => word(ACCEPT).is_some_and(|accept| accept.contains("text/html")),
    };
    wants && head.method == Method::GET && head.upgrade.is_none()
}

/// Whether a request is the doing of a page of another origin, be it one of the same site: all tunnels of a relay may be one
/// (see docs/threat-model.md). A link that somebody follows is not.
fn is_foreign(head: &RequestHead, own: impl FnOnce() -> String) -> bool {
    match value(head, SEC_FETCH_SITE) {
        Some("same-origin" | "none") => false,
        Some(_) => !is_page(head),
        // Links have none.
        None => value(head, ORIGIN).is_some_and(|origin| !origin.eq_ignore_ascii_case(&own())),
    }
}

/// What a header says; nothing where it is not text.
fn value(head: &RequestHead, name: HeaderName) -> Option<&str> {
    let (_, value) = head.headers.iter().find(|(one, _)| *one == name)?;
    Some(value.to_str().unwrap_or_default())
}

/// Why nobody has logged in.
struct Failed {
    cause: Cause,
    /// For who is there.
    message: String,
    /// For the tunnel's owner.
    reason: String,
    link: Option<Link>,
}

impl Login {
    /// What the sender of the request gets in its place.
    pub(super) async fn answer(self, shared: &Arc<Shared>, exchange: &mut Exchange) -> Response<EdgeBody> {
        let here = Here { shared, login: &self, base: base(shared, &exchange.head) };
        let answered = match &self.stranger {
            Stranger::Begins => here.begin(&exchange.head, &exchange.admitted.cookies).await,
            Stranger::Returns => here.finish(&exchange.head, &exchange.admitted.cookies).await,
            Stranger::Leaves => here.leave(&exchange.head),
            Stranger::Unknown => Err(Failed {
                link: Some(here.again(&exchange.head, "Log in")),
                ..Failed::of(Cause::LoginRequired, "nobody has logged in")
            }),
            Stranger::Foreign => Err(Failed {
                message:
                    "This request is from a page of another address, where your login at this tunnel does not count."
                        .to_owned(),
                link: Some(here.again(&exchange.head, "Open it from here")),
                ..Failed::of(Cause::LoginRequired, "it is from a page of another origin, where a login does not count")
            }),
            Stranger::Unwanted(email) => Err(here.unwanted(email.as_deref())),
        };
        let mut response = answered.unwrap_or_else(|failed| here.explain(exchange, &failed));
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // What is in the callback's URL is not for the service.
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'";
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        response
    }

    fn oidc(&self) -> Result<&Oidc, Failed> {
        // Without one there are no strangers.
        self.access.oidc.as_deref().ok_or_else(|| Failed::of(Cause::Internal, ""))
    }
}

impl Failed {
    fn of(cause: Cause, reason: &str) -> Self {
        Self { cause, message: cause.message().to_owned(), reason: reason.to_owned(), link: None }
    }
}

/// A login, and where it is.
struct Here<'a> {
    shared: &'a Arc<Shared>,
    login: &'a Login,
    /// The public URL of the tunnel's host.
    base: String,
}

impl Here<'_> {
    /// Sends a browser to the issuer.
    async fn begin(&self, head: &RequestHead, kept: &Cookies) -> Result<Response<EdgeBody>, Failed> {
        let (oidc, name) = (self.login.oidc()?, self.login.name.as_str());
        let (issuers, issuer) = self.issuer(oidc)?;
        let chooses = head.target.path() == CHOOSE;
        let wanted = Some(head.target.as_str()).filter(|page| page.len() <= LONGEST).unwrap_or("/");
        self.secret(oidc, wanted).await?;
        let no_random = || Failed::of(Cause::Internal, "the relay's machine gives no random numbers");
        // One that it has is that of its other pages, which may be on their way back.
        let fresh = unix_now().saturating_add_unsigned(PENDING);
        let is_fresh = |text: &&String| {
            opened::<Browser>(&issuers, "browser", (oidc, name), text).is_some_and(|browser| browser.until >= fresh)
        };
        let (browser, cookie) = match kept.browsers.iter().take(MOST).find(is_fresh) {
            Some(known) => (known.clone(), kept.browsers.iter().take(2).cloned().collect::<Vec<_>>().join(".")),
            None => {
                let random = seal::random().ok_or_else(no_random)?;
                let browser = Browser { random, until: fresh.saturating_add_unsigned(PENDING) };
                let browser = sealed(&issuers, "browser", (oidc, name), &browser).ok_or_else(no_random)?;
                // Other pages may be on their way back with the one of before.
                let both: Vec<_> = iter::once(&browser).chain(kept.browsers.first()).cloned().collect();
                (browser, both.join("."))
            }
        };
        let random = seal::random().ok_or_else(no_random)?;
        let page = if chooses { "/" } else { wanted }.to_owned();
        let (nonce, verifier) = secrets(&issuers, &browser, &random);
        let until = unix_now().saturating_add_unsigned(PENDING);
        let begun = Begun { browser: issuers.sealer.derive(&["browser", &browser]), random, page, until };
        let state = sealed(&issuers, "state", (oidc, name), &begun).ok_or_else(no_random)?;
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
        let redirect_uri = self.url(CALLBACK);
        let mut parameters = vec![
            ("response_type", "code"),
            ("client_id", oidc.client_id.as_str()),
            ("redirect_uri", &redirect_uri),
            ("scope", "openid email"),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        if chooses {
            // OpenID Connect Core 1.0, section 3.1.2.1.
            parameters.push(("prompt", "select_account"));
        }
        let url = issuer.login_url(&parameters).await.map_err(|error| self.failed(&issuer, &error, wanted))?;
        self.redirect(&url, cookies::set(BROWSER, &cookie, 2 * PENDING))
    }

    /// Takes somebody back from the issuer.
    async fn finish(&self, head: &RequestHead, kept: &Cookies) -> Result<Response<EdgeBody>, Failed> {
        let (oidc, name) = (self.login.oidc()?, self.login.name.as_str());
        let (issuers, issuer) = self.issuer(oidc)?;
        let fields = fields_lossy(head.target.query().unwrap_or_default());
        let parameter = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let begun = parameter("state").and_then(|state| opened::<Begun>(&issuers, "state", (oidc, name), state));
        let begun = begun.ok_or_else(|| self.lost("/", "its state is not of this tunnel"))?;
        let page = begun.page.as_str();
        if unix_now() >= begun.until {
            return Err(self.lost(page, "the login has taken too long"));
        }
        let is_it = |browser: &&String| issuers.sealer.is_derived(&begun.browser, &["browser", browser]);
        let browser = kept.browsers.iter().take(MOST).find(is_it);
        let browser = browser.ok_or_else(|| self.lost(page, "the login was begun in another browser"))?;
        // RFC 9207, section 2.4.
        if parameter("iss").is_some_and(|iss| iss != issuer.url()) {
            return Err(self.lost(page, "the answer is from another issuer"));
        }
        if let Some(error) = parameter("error") {
            let description = parameter("error_description").map(|text| format!(": {text}")).unwrap_or_default();
            let said = plain(&format!("{error}{description}"));
            return Err(Failed {
                message: format!("{} has not logged you in. It says: {said}", issuer.url()),
                link: Some(self.link(page, "Try again")),
                ..Failed::of(Cause::LoginDenied, &format!("{} says {said}", issuer.url()))
            });
        }
        // RFC 6749, appendix A.11.
        let is_code = |code: &&str| {
            code.len() <= LONGEST_CODE && code.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        };
        let code = parameter("code").filter(is_code).ok_or_else(|| self.lost(page, "the answer has no code"))?;
        let secret = self.secret(oidc, page).await?;
        let address = self.pace(head, page)?;
        let (nonce, verifier) = secrets(&issuers, browser, &begun.random);
        let grant = Grant {
            code,
            verifier: &verifier,
            nonce: &nonce,
            redirect_uri: &self.url(CALLBACK),
            client_id: &oidc.client_id,
            secret: secret.expose(),
            needs_email: !oidc.allow.is_empty(),
        };
        let redeemed = issuer.redeem(grant).await;
        // Where the issuer could not be asked, that says nothing of the sender.
        if let Some(address) = address.filter(|_| redeemed.as_ref().err().is_none_or(IssuerError::is_on_the_way)) {
            self.shared.failed_logins.forgive(address);
        }
        let Person { subject, email } = redeemed.map_err(|error| {
            tracing::warn!(tunnel = name, issuer = issuer.url(), %error, "nobody has logged in");
            self.failed(&issuer, &error, page)
        })?;
        // Somebody who may not come is logged in, too: the page that says so has a way out.
        let lasts = self.shared.limits().login.as_secs();
        let until = unix_now().saturating_add_unsigned(lasts);
        let session = sealed(&issuers, "session", (oidc, name), &Session { subject, email, until });
        let cookie = session.and_then(|session| cookies::set(SESSION, &session, lasts));
        tracing::debug!(tunnel = name, issuer = issuer.url(), "somebody has logged in");
        self.redirect(&self.url(page), cookie)
    }

    /// Ends a login. A page of another address cannot: at most it leads here.
    fn leave(&self, head: &RequestHead) -> Result<Response<EdgeBody>, Failed> {
        if is_foreign(head, || self.base.clone()) {
            return Err(Failed {
                message: "A page of another address cannot log you out of this tunnel.".to_owned(),
                link: Some(self.link(LOGOUT, "Log out")),
                ..Failed::of(Cause::LoginRequired, "a page of another origin would end a login")
            });
        }
        let mut response = page(
            "You are logged out of this tunnel.",
            "You may still be logged in where you have done it, and then come in again without being asked.",
            &self.link(CHOOSE, "Log in again"),
        );
        response.headers_mut().extend(cookies::set(SESSION, "", 0).map(|line| (SET_COOKIE, line)));
        Ok(response)
    }

    /// Whom to ask, if the operator still lets the relay.
    fn issuer(&self, oidc: &Oidc) -> Result<(Arc<Issuers>, Arc<Issuer>), Failed> {
        let issuers = self.shared.live.borrow().issuers.clone();
        let issuer = issuers.get(&oidc.issuer).cloned();
        let reason = "the relay's operator has taken its issuer out of [oidc] issuers";
        issuer.map(|issuer| (issuers, issuer)).ok_or_else(|| Failed {
            message: format!("The operator of this relay does not let it ask {} any more.", oidc.issuer),
            ..Failed::of(Cause::LoginFailed, reason)
        })
    }

    /// The client secret, which the client brings along that is on its way back.
    async fn secret(&self, oidc: &Oidc, page: &str) -> Result<Secret, Failed> {
        if let Some(secret) = &oidc.secret {
            return Ok(secret.clone());
        }
        let patience = Instant::now() + self.shared.limits().client_wait;
        // Strangers are to leave places for those who are let in.
        let most = self.shared.limits().client_waiters.div_ceil(4);
        let tunnel = self.shared.registry.wait(&self.login.name, patience, most as u64).await;
        let rules = tunnel.and_then(|tunnel| tunnel.asked.access.as_ref()?.oidc.clone());
        let same = rules.filter(|rules| (&rules.issuer, &rules.client_id) == (&oidc.issuer, &oidc.client_id));
        same.and_then(|rules| rules.secret.clone()).ok_or_else(|| Failed {
            message: "The tunnel's client is not connected at the moment, and nobody can log in without it.".to_owned(),
            link: Some(self.link(page, "Try again")),
            ..Failed::of(Cause::ClientOffline, "nobody can log in while the client is away")
        })
    }

    /// Lets so many people log in, in a minute, and nobody try it again and again: what is tried from an address counts until
    /// it has turned out well, also where nobody waits for that.
    fn pace(&self, head: &RequestHead, page: &str) -> Result<Option<IpAddr>, Failed> {
        let most = self.shared.limits().logins_per_minute;
        let address: Option<IpAddr> = head.remote.parse().ok();
        let has_to_wait =
            address.is_some_and(|address| self.shared.failed_logins.has_to_wait(address, most.div_ceil(6)));
        if !has_to_wait && self.shared.registry.paces_login(&self.login.name, most, Instant::now()) {
            address.into_iter().for_each(|address| self.shared.failed_logins.note(address));
            return Ok(address);
        }
        Err(Failed {
            message: "Too many people log in at this tunnel; try again in a minute.".to_owned(),
            link: Some(self.link(page, "Try again")),
            ..Failed::of(Cause::TooManyRequests, "more people want to log in than the relay lets in a minute")
        })
    }

    fn unwanted(&self, email: Option<&str>) -> Failed {
        let message = match email {
            Some(email) => format!("You are logged in as {email}, whom the tunnel's owner has not let in."),
            None => {
                "Where you are logged in has not verified an address of yours, and this tunnel lets people in by it."
                    .to_owned()
            }
        };
        let reason = email.map_or("somebody without a verified address".to_owned(), str::to_owned);
        let link = Some(self.link(CHOOSE, "Log in as somebody else"));
        Failed { message, link, ..Failed::of(Cause::LoginDenied, &format!("{reason} is not let in")) }
    }

    fn lost(&self, page: &str, reason: &str) -> Failed {
        Failed { link: Some(self.link(page, "Log in")), ..Failed::of(Cause::LoginLost, reason) }
    }

    fn failed(&self, issuer: &Issuer, error: &IssuerError, page: &str) -> Failed {
        let cause = if *error == IssuerError::Busy { Cause::TooManyRequests } else { Cause::LoginFailed };
        let message = format!("{} does not say who you are: {error}.", issuer.url());
        Failed { cause, reason: message.clone(), message, link: Some(self.link(page, "Try again")) }
    }

    /// A way to a page, if it can be opened.
    fn again(&self, head: &RequestHead, text: &'static str) -> Link {
        self.link(if head.method == Method::GET { head.target.as_str() } else { "/" }, text)
    }

    fn link(&self, page: &str, text: &'static str) -> Link {
        Link { url: self.url(page), text }
    }

    /// The public URL of what begins with a slash.
    fn url(&self, page: &str) -> String {
        let slash = if page.starts_with('/') { "" } else { "/" };
        [&self.base, slash, page].concat()
    }

    fn redirect(&self, url: &str, cookie: Option<HeaderValue>) -> Result<Response<EdgeBody>, Failed> {
        let internal = || Failed::of(Cause::Internal, "a URL or a cookie is none");
        let mut response = Response::new(EdgeBody::empty());
        *response.status_mut() = StatusCode::FOUND;
        let headers = response.headers_mut();
        headers.insert(LOCATION, HeaderValue::try_from(url).map_err(|_| internal())?);
        headers.insert(SET_COOKIE, cookie.ok_or_else(internal)?);
        Ok(response)
    }

    fn explain(&self, exchange: &Exchange, failed: &Failed) -> Response<EdgeBody> {
        let Failed { cause, message, reason, link } = failed;
        exchange.failed(*cause);
        if let Found::Tunnel(tunnel) = self.shared.registry.find(&self.login.name) {
            tunnel.withhold(self.shared, refused(&exchange.head, cause.code(), &plain(reason)));
        }
        let mut asked = HeaderMap::new();
        append_all(&mut asked, exchange.head.headers.clone());
        let mut response = explain_with(self.shared, *cause, &asked, message, link.as_ref());
        if *cause == Cause::LoginRequired {
            // RFC 9110, section 15.5.2, wants one; no scheme is registered for this.
            let challenge = HeaderValue::try_from(format!("Cookie realm=\"{}\"", self.base));
            response.headers_mut().extend(challenge.map(|line| (WWW_AUTHENTICATE, line)));
        }
        response
    }
}

/// The nonce (OpenID Connect Core 1.0, section 15.5.2) and the code verifier (RFC 7636, section 4.1) of a login, which nobody
/// can tell who has not got both.
fn secrets(issuers: &Issuers, browser: &str, random: &str) -> (String, String) {
    let derive = |what| issuers.sealer.derive(&[what, browser, random]);
    (derive("nonce"), derive("verifier"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn head(method: Method, headers: &[(&'static str, &'static str)]) -> RequestHead {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        RequestHead {
            tunnel: 1,
            id: "1".into(),
            deadline_ms: 0,
            elapsed_ms: 0,
            method,
            target: PathAndQuery::from_static("/a?b=c"),
            authority: "App.relay.example:8443".into(),
            remote: "".into(),
            upgrade: None,
            headers: headers.iter().map(line).collect(),
        }
    }

    #[test]
    fn only_who_wants_a_page_is_sent_to_log_in() {
        for (method, headers, is) in [
            (Method::GET, &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")][..], true),
            (Method::GET, &[("sec-fetch-mode", "navigate")], true),
            (Method::GET, &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")], true),
            (Method::GET, &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")], false),
            (Method::GET, &[("sec-fetch-mode", "cors"), ("accept", "text/html")], false),
            (Method::GET, &[("sec-fetch-mode", "websocket")], false),
            (Method::GET, &[("accept", "*/*")], false),
            (Method::GET, &[], false),
            (Method::POST, &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")], false),
            (Method::HEAD, &[("accept", "text/html")], false),
        ] {
            assert_eq!(is_page(&head(method.clone(), headers)), is, "{method} {headers:?}");
        }
        let upgrade =
            RequestHead { upgrade: Some("websocket".into()), ..head(Method::GET, &[("accept", "text/html")]) };
        assert!(!is_page(&upgrade));
    }

    #[test]
    fn a_login_counts_for_the_pages_of_the_tunnel_alone() {
        let own = "https://app.relay.example:8443";
        for (method, headers, is) in [
            (Method::POST, &[("sec-fetch-site", "same-origin"), ("origin", own)][..], false),
            (Method::GET, &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], false),
            (Method::GET, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], false),
            (
                Method::GET,
                &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
                true,
            ),
            (Method::POST, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], true),
            (Method::GET, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")], true),
            (Method::GET, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], true),
            (Method::POST, &[("origin", own)], false),
            (Method::POST, &[], false),
            (Method::POST, &[("origin", "https://evil.relay.example:8443")], true),
            (Method::POST, &[("origin", "https://app.relay.example")], true),
            (Method::POST, &[("origin", "null")], true),
            (Method::GET, &[("origin", "null"), ("accept", "text/html")], true),
            (Method::GET, &[("accept", "text/html")], false),
            (Method::GET, &[("origin", "https://evil.relay.example:8443"), ("upgrade", "websocket")], true),
        ] {
            assert_eq!(is_foreign(&head(method.clone(), headers), || own.to_owned()), is, "{method} {headers:?}");
        }
    }
}
