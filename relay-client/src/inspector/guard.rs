//! Who may call the inspector: programs of this machine and its own page, and no other page that a browser shows.
//!
//! ```text
//!   Host ── another name: a site that points its name here (DNS rebinding) ──▶ refused
//!   Forwarded, X-Forwarded-For, Relay-Request-Id ── through a tunnel ──▶ refused
//!   Sec-Fetch-Site, Origin ── another site, or another port of this machine ──▶ refused, but for a link to the page
//!   Authorization, cookie, ?token= ── where a token was given ──▶ asked for
//!   Content-Type ── a form that needs no permission (CORS) ──▶ refused
//! ```
//!
//! A header that only browsers send proves something by being there: what has none comes from a program.

use std::net::SocketAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, FORWARDED, HOST, HeaderName, ORIGIN, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, Method};

use super::answer::Problem;
use super::query::Query;
use crate::upstream::address::{Host, HostPort};
use crate::value::Secret;

/// Where browsers say what page a request is made by, and what for.
const FETCH_SITE: &str = "sec-fetch-site";
const FETCH_MODE: &str = "sec-fetch-mode";
const FETCH_DEST: &str = "sec-fetch-dest";

/// Where a link of another site may lead: to the page, and to where ngrok has its own. Answers there say nothing of what was
/// captured, change nothing and take no time.
const PAGES: [&str; 3] = ["/", "/inspect/http", "/status"];

/// What tells that a request has been passed on. Our own tunnels add all of them.
const PASSED_ON: [HeaderName; 3] =
    [FORWARDED, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("relay-request-id")];

/// Lets in who may call.
#[derive(Debug)]
pub(super) struct Guard {
    address: SocketAddr,
    token: Option<Token>,
}

#[derive(Debug)]
struct Token {
    given: Secret,
    /// The name and the value of the cookie that stands for it while this process runs.
    cookie: (String, Secret),
}

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// It is answered.
    In,
    /// It has brought the token in its URL, which a browser would remember: it is sent there instead, with a cookie.
    SignIn { location: String, cookie: String },
}

impl Guard {
    /// Of an inspector that listens there. None where the system has no randomness.
    pub(super) fn new(address: SocketAddr, token: Option<Secret>) -> Option<Self> {
        let token = match token {
            None => None,
            Some(given) => {
                let mut random = [0; 32];
                aws_lc_rs::rand::fill(&mut random).ok()?;
                let value: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                // Cookies do not know ports, and several clients may run here.
                Some(Token { given, cookie: (format!("relay_inspector_{}", address.port()), value.into()) })
            }
        };
        Some(Self { address, token })
    }

    /// Whether a request is to be answered.
    pub(super) fn check(&self, head: &Parts) -> Result<Pass, Problem> {
        let host = self.host(head)?;
        if self.token.is_none() && PASSED_ON.iter().any(|name| head.headers.contains_key(name)) {
            return Err(Problem::Forwarded);
        }
        if !is_same_site(head, host) {
            return Err(Problem::CrossSite);
        }
        let pass = match &self.token {
            Some(token) => token.check(head)?,
            None => Pass::In,
        };
        match head.method {
            Method::GET | Method::HEAD | Method::OPTIONS => {}
            _ if is_json(&head.headers) || (head.method == Method::DELETE && !has_body(&head.headers)) => {}
            _ => return Err(Problem::MediaType),
        }
        Ok(pass)
    }

    /// The one Host that a request has. A name that leads to loopback addresses only is not to be had by a stranger;
    /// elsewhere the token, which no browser sends under a stranger's name, stands for that.
    fn host<'a>(&self, head: &'a Parts) -> Result<&'a str, Problem> {
        let mut hosts = head.headers.get_all(HOST).iter();
        let (Some(host), None, None) = (hosts.next(), hosts.next(), head.uri.authority()) else {
            return Err(Problem::Host);
        };
        let host = host.to_str().map_err(|_| Problem::Host)?;
        let HostPort { host: name, port } = HostPort::parse(host, Some(80), host).map_err(|_| Problem::Host)?;
        let is_here = match &name {
            Host::Ip(ip) => ip.is_loopback() || *ip == self.address.ip(),
            Host::Name(name) => name == "localhost",
        };
        let is_asked_for = self.token.is_some() && !self.address.ip().is_loopback();
        if is_asked_for || (is_here && port == self.address.port()) { Ok(host) } else { Err(Problem::Host) }
    }
}

impl Token {
    fn check(&self, head: &Parts) -> Result<Pass, Problem> {
        let (name, value) = &self.cookie;
        let bearer = head.headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        if bearer.into_iter().any(|token| is_same(token, &self.given)) {
            return Ok(Pass::In);
        }
        let cookies = head.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let is_known = pairs.any(|(known, given)| known == name && is_same(given, value));
        let mut query = Query::of(&head.uri)?;
        match query.take("token") {
            Some(token) if head.method == Method::GET && is_same(&token, &self.given) => {
                let cookie = format!("{name}={}", value.expose());
                Ok(Pass::SignIn { location: query.behind(head.uri.path()), cookie })
            }
            _ if is_known => Ok(Pass::In),
            _ => Err(Problem::Unauthorized),
        }
    }
}

fn is_same(given: &str, wanted: &Secret) -> bool {
    verify_slices_are_equal(given.as_bytes(), wanted.expose().as_bytes()).is_ok()
}

/// Whether no page of another site has made the request; another port of this machine is another site, whose page may be
/// anybody's. A link may lead to our page, which tells whoever has made it nothing.
fn is_same_site(head: &Parts, host: &str) -> bool {
    let value = |name: &str| head.headers.get(name).map(|value| value.as_bytes());
    let is_link = head.method == Method::GET
        && value(FETCH_MODE) == Some(b"navigate")
        && value(FETCH_DEST) == Some(b"document")
        && !head.headers.contains_key(ORIGIN)
        // As it stands, so that there is one way only to write each of them.
        && PAGES.contains(&head.uri.path());
    let site = match value(FETCH_SITE) {
        None | Some(b"same-origin" | b"none") => true,
        Some(_) => is_link,
    };
    let is_ours = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    };
    site && head.headers.get_all(ORIGIN).iter().all(|origin| is_ours(origin.as_bytes()))
}

/// A page of another site can send a form without asking, but not this.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::Request;

    use super::*;

    fn guard(address: &str, token: Option<&str>) -> Guard {
        Guard::new(address.parse().unwrap(), token.map(|token| token.to_owned().into())).unwrap()
    }

    fn head(request: &str, headers: &[(&str, &str)]) -> Parts {
        let (method, target) = request.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn code(guard: &Guard, request: &str, headers: &[(&str, &str)]) -> &'static str {
        match guard.check(&head(request, headers)) {
            Ok(Pass::In) => "in",
            Ok(Pass::SignIn { .. }) => "sign in",
            Err(Problem::Host) => "host",
            Err(Problem::Forwarded) => "forwarded",
            Err(Problem::CrossSite) => "site",
            Err(Problem::Unauthorized) => "token",
            Err(Problem::MediaType) => "type",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_this_machine_and_this_port_may_be_called() {
        let guard = guard("127.0.0.1:4040", None);
        for (host, result) in [
            ("127.0.0.1:4040", "in"),
            ("localhost:4040", "in"),
            ("LOCALHOST:4040", "in"),
            ("[::1]:4040", "in"),
            ("127.0.0.2:4040", "in"),
            ("127.0.0.1", "host"),
            ("127.0.0.1:80", "host"),
            ("127.0.0.1:3000", "host"),
            ("evil.example:4040", "host"),
            ("localhost.evil.example:4040", "host"),
            ("127.0.0.1.evil.example:4040", "host"),
            ("192.0.2.1:4040", "host"),
            ("user@127.0.0.1:4040", "host"),
            ("", "host"),
        ] {
            assert_eq!(code(&guard, "GET /api/v1/status", &[("host", host)]), result, "{host}");
        }
        assert_eq!(code(&guard, "GET /", &[]), "host");
        let two = [("host", "127.0.0.1:4040"), ("host", "127.0.0.1:4040")];
        assert_eq!(code(&guard, "GET /", &two), "host");
        assert_eq!(code(&guard, "GET http://127.0.0.1:4040/", &two[..1]), "host", "as a proxy is asked");
    }

    #[test]
    fn no_other_site_may_call_and_a_link_may_lead_to_the_page() {
        let guard = guard("127.0.0.1:4040", None);
        let site = |request: &str, headers: &[(&str, &str)]| {
            code(&guard, request, &[&[("host", "127.0.0.1:4040")], headers].concat())
        };
        let data = "GET /api/v1/exchanges";
        for (fetch, result) in [("same-origin", "in"), ("none", "in"), ("same-site", "site"), ("cross-site", "site")] {
            assert_eq!(site(data, &[("sec-fetch-site", fetch)]), result);
        }
        for (origin, result) in [
            ("http://127.0.0.1:4040", "in"),
            ("http://localhost:4040", "site"),
            ("http://127.0.0.1:3000", "site"),
            ("https://evil.example", "site"),
            ("null", "site"),
            ("", "site"),
        ] {
            assert_eq!(site(data, &[("origin", origin)]), result, "{origin}");
        }
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for page in ["GET /", "GET /?a=b", "GET /inspect/http", "GET /status"] {
            assert_eq!(site(page, &link), "in", "{page}");
        }
        let encoded = "GET /%61pi/v1/exchanges.har";
        for other in [data, encoded, "GET /a%70i/v1/wait", "GET //", "GET /app.js", "GET /%73tatus", "POST /"] {
            assert_eq!(site(other, &link), "site", "{other}");
        }
        let frame = [link[0], link[1], ("sec-fetch-dest", "iframe")];
        assert_eq!(site("GET /", &frame), "site");
        assert_eq!(site("GET /app.js", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]), "site");
        assert_eq!(site("GET /api/v1/status", &[("x-forwarded-for", "192.0.2.1")]), "forwarded");
        assert_eq!(site("GET /", &[("relay-request-id", "01J")]), "forwarded");
    }

    #[test]
    fn what_changes_something_is_json() {
        let guard = guard("[::1]:4040", None);
        let call = |request: &str, headers: &[(&str, &str)]| {
            code(&guard, request, &[&[("host", "[::1]:4040")], headers].concat())
        };
        for (kind, result) in [
            ("application/json", "in"),
            ("Application/JSON; charset=utf-8", "in"),
            ("text/plain", "type"),
            ("application/x-www-form-urlencoded", "type"),
            ("text/plain; application/json", "type"),
            ("application/jsonp", "type"),
        ] {
            assert_eq!(call("POST /api/tunnels", &[("content-type", kind)]), result, "{kind}");
        }
        assert_eq!((call("POST /api/tunnels", &[]), call("PUT /api/endpoints/a", &[])), ("type", "type"));
        assert_eq!(call("DELETE /api/tunnels/a", &[]), "in");
        assert_eq!(call("DELETE /api/tunnels/a", &[("content-length", "0")]), "in");
        assert_eq!(call("DELETE /api/tunnels/a", &[("content-length", "2")]), "type");
    }

    #[test]
    fn a_token_opens_it_once_and_then_its_cookie() {
        let guard = guard("0.0.0.0:4040", Some("s3cret"));
        let host = ("host", "laptop.lan:4040");
        let call = |request: &str, headers: &[(&str, &str)]| code(&guard, request, &[&[host], headers].concat());
        assert_eq!(call("GET /", &[]), "token");
        assert_eq!(call("GET /", &[("authorization", "Bearer s3cret")]), "in");
        assert_eq!(call("GET /", &[("authorization", "bearer s3cret"), ("x-forwarded-for", "192.0.2.1")]), "in");
        for wrong in ["Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer "] {
            assert_eq!(call("GET /", &[("authorization", wrong)]), "token", "{wrong}");
        }
        assert_eq!(call("GET /?token=other", &[]), "token");
        assert_eq!(call("POST /?token=s3cret", &[("content-type", "application/json")]), "token");
        let Ok(Pass::SignIn { location, cookie }) = guard.check(&head("GET /a?x=%26&token=s3cret&y=1", &[host])) else {
            panic!("it is not let in")
        };
        assert_eq!(location, "/a?x=%26&y=1");
        assert!(cookie.starts_with("relay_inspector_4040=") && !cookie.contains("s3cret"), "{cookie}");
        assert_eq!(call("GET /api/v1/status", &[("cookie", &format!("a=b; {cookie}"))]), "in");
        assert_eq!(call("GET /", &[("cookie", "relay_inspector_4040=")]), "token");
        let other = Guard::new("0.0.0.0:4040".parse().unwrap(), Some("s3cret".to_owned().into())).unwrap();
        assert_eq!(code(&other, "GET /", &[host, ("cookie", &cookie)]), "token", "another process");
        assert!(!format!("{guard:?}").contains("s3cret") && !format!("{guard:?}").contains(&cookie));
        assert_eq!(call("GET /", &[("cookie", &cookie), ("sec-fetch-site", "cross-site")]), "site");
        let here = self::guard("127.0.0.1:4040", Some("s3cret"));
        assert_eq!(code(&here, "GET /", &[host, ("authorization", "Bearer s3cret")]), "host");
    }
}
