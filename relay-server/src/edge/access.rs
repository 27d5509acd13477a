//! Who may call a tunnel: the first thing that is looked at, so that nothing of a request that may not come is counted,
//! kept, judged or answered by anybody else.
//!
//! What a client has said holds while it is away, too: with its inbox on the disk, and without one for as long as the relay
//! runs.

use std::sync::Arc;

use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use relay_protocol::access::Access;
use relay_protocol::exchange::{append_all, content_length, prefix};
use relay_protocol::inbox::sized;
use relay_protocol::message::{HeaderList, RequestHead};
use tokio::time::Instant;

use super::body::{EdgeBody, Upload};
use super::caller::{CLIENT_CERT, Unknown};
use super::forward::Instead;
use super::login::{self, Cookies};
use super::record::Exchange;
use super::respond::explain;
use super::{Last, close};
use crate::Shared;
use crate::cause::Cause;
use crate::judge::refused;
use crate::quota::Meter;
use crate::tunnels::{Found, Tunnel};

/// Why a request may not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The operator does not let it in, whatever the tunnel's owner does.
    Confined,
    /// The operator lets so many bytes in, whatever the tunnel's owner does.
    ConfinedBody(u64),
    Address,
    /// By its certificate.
    Unknown(Unknown),
    Credentials,
    Path,
    Method,
    /// So many bytes may.
    Body(u64),
    /// So many in a second may.
    Rate(u32),
}

/// By what a request was let in. The rules may have changed by the time that it goes on, and it is judged by them as it came.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    /// The rules.
    access: Option<Arc<Access>>,
    /// The lines of its head that were taken out of it.
    shown: HeaderList,
    /// The relay's own cookies, which were taken out of it, too.
    pub(super) cookies: Cookies,
    /// It counts among the requests of its second.
    is_paced: bool,
}

/// Lets a request in that may call the tunnel of that name, and takes the credential out of it that it was let in by: it is
/// the edge's, and nobody behind it has to keep it secret. `meter` is what counts for the name's token, where it is known.
pub(super) fn check(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    name: &str,
    meter: Option<&Meter>,
    upload: &mut Upload,
) -> Result<(), Instead> {
    match shared.registry.find(name) {
        Found::Tunnel(tunnel) => check_for(shared, exchange, &tunnel, upload),
        Found::Away(_) | Found::Nothing => judge(shared, exchange, left(shared, name), (name, None), meter, upload),
    }
}

/// Who may call the tunnel of that name.
pub(super) fn of(shared: &Shared, name: &str) -> Option<Arc<Access>> {
    match shared.registry.find(name) {
        Found::Tunnel(tunnel) => tunnel.asked.access.clone(),
        Found::Away(_) | Found::Nothing => left(shared, name),
    }
}

/// Who may call the tunnel of that name, whose client is away.
fn left(shared: &Shared, name: &str) -> Option<Arc<Access>> {
    let kept = shared.inboxes.get(name).map(|inbox| inbox.settings().access.clone());
    kept.unwrap_or_else(|| shared.registry.left_access(name))
}

/// As [`check`], for a tunnel that is there.
pub(super) fn check_for(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    tunnel: &Arc<Tunnel>,
    upload: &mut Upload,
) -> Result<(), Instead> {
    let (access, meter) = (tunnel.asked.access.clone(), &tunnel.meter);
    judge(shared, exchange, access, (&tunnel.name, Some(tunnel)), Some(meter), upload)
}

fn judge(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    access: Option<Arc<Access>>,
    (name, tunnel): (&str, Option<&Arc<Tunnel>>),
    meter: Option<&Meter>,
    upload: &mut Upload,
) -> Result<(), Instead> {
    let confined = meter.map_or(Ok(()), |meter| confine(exchange, meter, upload));
    // It may have been let in by the same rules before. What the service is told by others is not these ones' word.
    let is_admitted = exchange.admitted.access == access;
    if !is_admitted {
        login::untell(&mut exchange.head.headers);
        if exchange.admitted.access.is_some() {
            exchange.head.headers.retain(|(name, _)| *name != CLIENT_CERT);
        }
    }
    let access = access.filter(|_| !is_admitted);
    let mut decided = confined.and_then(|()| match &access {
        Some(access) => admit_sender(exchange, access),
        None => Ok(()),
    });
    if decided.is_ok()
        && let Some(access) = &access
    {
        if let Some(oidc) = &access.oidc {
            let Exchange { head, admitted, .. } = exchange;
            let checked = login::check(shared, head, &admitted.cookies, (access, oidc, name));
            checked.map_err(|login| Instead::Login(Box::new(login)))?;
        }
        decided = admit_request(shared, exchange, access, name, upload);
    }
    let Err(refusal) = decided else {
        if !is_admitted {
            exchange.admitted.access = access;
        }
        return Ok(());
    };
    let access = access.unwrap_or_default();
    let cause = refusal.cause();
    exchange.failed(cause);
    if let Some(tunnel) = tunnel {
        tunnel.withhold(shared, refused(&exchange.head, cause.code(), refusal.reason()));
    }
    Err(Instead::Answered(Box::new(answer(shared, exchange, &access, refusal))))
}

/// Keeps to what the operator lets the tunnel's token let in.
fn confine(exchange: &Exchange, meter: &Meter, upload: &mut Upload) -> Result<(), Refusal> {
    let (is_in, most) = meter.confines(|| exchange.head.remote.parse().ok());
    if !is_in {
        return Err(Refusal::Confined);
    }
    most.map_or(Ok(()), |most| shorten(&exchange.head, most, upload).map_err(|()| Refusal::ConfinedBody(most)))
}

/// Takes no longer body than that.
fn shorten(head: &RequestHead, most: u64, upload: &mut Upload) -> Result<(), ()> {
    upload.allow(most);
    match content_length(head) {
        Some(declared) if declared > most => Err(()),
        _ => Ok(()),
    }
}

/// Whoever may not come at all is told nothing of what others may ask for.
fn admit_sender(exchange: &mut Exchange, access: &Arc<Access>) -> Result<(), Refusal> {
    let Exchange { head, admitted, caller, .. } = exchange;
    head.headers.append(&mut admitted.shown);
    head.headers.retain(|(name, _)| *name != CLIENT_CERT);
    if !access.admits_address(head.remote.parse().ok()) {
        return Err(Refusal::Address);
    }
    if !access.client_ca.is_empty() {
        caller.judge(&head.authority, access).map_err(Refusal::Unknown)?;
        head.headers.extend(caller.header());
    }
    if access.asks_for_credentials() {
        admitted.shown = head.headers.extract_if(.., |(name, value)| access.is_credential(name, value)).collect();
        if admitted.shown.is_empty() {
            return Err(Refusal::Credentials);
        }
    }
    Ok(())
}

/// What those who may come may ask for.
fn admit_request(
    shared: &Shared,
    exchange: &mut Exchange,
    access: &Access,
    name: &str,
    upload: &mut Upload,
) -> Result<(), Refusal> {
    let Exchange { head, admitted, .. } = exchange;
    if !access.admits_path(head.target.path()) {
        return Err(Refusal::Path);
    }
    if !access.admits_method(&head.method) {
        return Err(Refusal::Method);
    }
    if let Some(most) = access.body {
        shorten(head, most, upload).map_err(|()| Refusal::Body(most))?;
    }
    match access.rate {
        Some(rate) if !admitted.is_paced && !shared.registry.paces(name, rate, Instant::now()) => {
            Err(Refusal::Rate(rate))
        }
        Some(_) => {
            admitted.is_paced = true;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Refusal {
    fn cause(self) -> Cause {
        match self {
            Self::Confined | Self::Address => Cause::AddressNotAllowed,
            Self::Unknown(Unknown::Misdirected) => Cause::Misdirected,
            Self::Unknown(_) => Cause::CertificateRequired,
            Self::Credentials => Cause::CredentialsRequired,
            Self::Path => Cause::PathNotAllowed,
            Self::Method => Cause::MethodNotAllowed,
            Self::ConfinedBody(_) | Self::Body(_) => Cause::BodyTooLarge,
            Self::Rate(_) => Cause::TooManyRequests,
        }
    }

    /// For the tunnel's owner.
    const fn reason(self) -> &'static str {
        match self {
            Self::Confined => "the relay's operator does not let its address in",
            Self::ConfinedBody(_) => "its body is longer than the relay's operator lets the tunnel take",
            Self::Address => "its address is not let in",
            Self::Unknown(unknown) => unknown.reason(),
            Self::Credentials => "it has no credential of this tunnel",
            Self::Path => "its path is not let in",
            Self::Method => "its method is not let in",
            Self::Body(_) => "its body is longer than the tunnel takes",
            Self::Rate(_) => "more came in a second than the tunnel takes",
        }
    }

    /// For whoever has sent the request.
    fn message(self) -> String {
        match self {
            Self::Confined => {
                "The operator of this relay does not let this tunnel take requests from your address.".to_owned()
            }
            Self::ConfinedBody(most) => format!(
                "The request's body has more than {}, which is what the operator of this relay lets this tunnel take.",
                sized(most)
            ),
            Self::Body(most) => {
                format!("The request's body has more than {}, which is what this tunnel takes.", sized(most))
            }
            Self::Rate(1) => "This tunnel takes one request in a second; try again in a second.".to_owned(),
            Self::Rate(most) => format!("This tunnel takes {most} requests in a second; try again in a second."),
            Self::Unknown(Unknown::Misdirected) => self.cause().message().to_owned(),
            Self::Unknown(unknown) => format!(
                "This tunnel takes requests only from those who show a client certificate that its owner gives out; this one was \
                 refused, as {}.",
                unknown.reason()
            ),
            Self::Address | Self::Credentials | Self::Path | Self::Method => self.cause().message().to_owned(),
        }
    }

    /// What HTTP has the answer say beside its status.
    fn headers(self, access: &Access, realm: &str) -> Vec<(HeaderName, HeaderValue)> {
        let line = |name: HeaderName, text: &str| Some((name, HeaderValue::from_str(text).ok()?));
        match self {
            Self::Credentials => {
                challenges(access, realm).iter().filter_map(|text| line(WWW_AUTHENTICATE, text)).collect()
            }
            Self::Method => line(ALLOW, &access.methods.join(", ")).into_iter().collect(),
            Self::Confined
            | Self::ConfinedBody(_)
            | Self::Address
            | Self::Unknown(_)
            | Self::Path
            | Self::Body(_)
            | Self::Rate(_) => Vec::new(),
        }
    }
}

/// What may be shown, for programs that ask their users for it (RFC 9110, section 11.6.1).
fn challenges(access: &Access, realm: &str) -> Vec<String> {
    let realm: String = realm.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    let basic = (!access.basic.is_empty()).then(|| format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
    let mut all: Vec<String> = basic.into_iter().collect();
    for key in &access.keys {
        let challenge = match key.header.as_str() {
            "authorization" => format!("Bearer realm=\"{realm}\""),
            header => format!("ApiKey realm=\"{realm}\", header=\"{header}\""),
        };
        if !all.contains(&challenge) {
            all.push(challenge);
        }
    }
    all
}

fn answer(shared: &Shared, exchange: &Exchange, access: &Access, refusal: Refusal) -> Response<EdgeBody> {
    let mut asked = HeaderMap::new();
    append_all(&mut asked, exchange.head.headers.clone());
    let mut response = explain(shared, refusal.cause(), &asked, &refusal.message());
    // Tunnels that share an origin are realms of their own: what opens one is not to be sent to another.
    let realm = format!("{}{}", exchange.head.authority, prefix(&exchange.head.headers));
    append_all(response.headers_mut(), refusal.headers(access, &realm));
    if let Refusal::Unknown(unknown) = refusal {
        // What is shown is shown once, when a connection begins.
        close(exchange.version, &mut response);
        // One that was made for another host goes on for that one.
        if unknown != Unknown::Misdirected || exchange.caller.is_for(&exchange.head.authority) {
            response.extensions_mut().insert(Last);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use relay_protocol::access::{ApiKey, Digest};

    use super::*;

    #[test]
    fn a_challenge_names_each_way_once_and_stays_one_header() {
        let key = |header: &str| ApiKey { header: header.to_owned(), key: Digest::of(b"k") };
        let access = Access {
            basic: vec![Digest::of(b"a:b")],
            keys: vec![key("x-api-key"), key("authorization"), key("x-api-key")],
            ..Access::default()
        };
        let all = [
            "Basic realm=\"a.example:8443\", charset=\"UTF-8\"",
            "ApiKey realm=\"a.example:8443\", header=\"x-api-key\"",
            "Bearer realm=\"a.example:8443\"",
        ];
        assert_eq!(challenges(&access, "a.example:\"8443"), all);
    }

    #[test]
    fn every_refusal_says_what_http_wants_of_it() {
        let access = Access { methods: vec!["POST".to_owned(), "PUT".to_owned()], ..Access::default() };
        let headers = Refusal::Method.headers(&access, "a.example");
        assert_eq!(headers, [(ALLOW, HeaderValue::from_static("POST, PUT"))]);
        assert_eq!(Refusal::Rate(1).cause().retry_after(), Some(1));
        assert_eq!(Refusal::Credentials.cause().status().as_u16(), 401);
    }
}
