//! Who may call the admin API: programs that have the secret, and of the pages that a browser shows only the dashboard.
//!
//! ```text
//!   Host ── on a loopback address or a socket, another name: a site that points its name here (DNS rebinding) ──▶ refused
//!   Sec-Fetch-Site, Origin ── a page of another site, or of another port of this machine ──▶ refused
//!   Authorization ── not the secret ──▶ refused
//!   Content-Type ── a form that needs no permission (CORS) ──▶ refused
//! ```
//!
//! A header that only browsers send proves something by being there: what has none comes from a program. The secret alone
//! would do, because no browser adds it by itself; a page that has got hold of it is not to use it all the same.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, TRANSFER_ENCODING};
use http::request::Parts;

use super::problem::Problem;
use crate::control::secret::is_it;
use crate::store::Secret;

/// Where browsers say what page a request is made by.
const FETCH_SITE: &str = "sec-fetch-site";

/// The one name that the caller has for this machine, which is served at that address; or at a socket, to which SSH can lead from a loopback address of
/// another machine.
pub(super) fn check_host(head: &Parts, address: Option<SocketAddr>) -> Result<&str, Problem> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (Some(host), None, None) = (hosts.next(), hosts.next(), head.uri.authority()) else {
        return Err(Problem::Host);
    };
    let host = host.to_str().map_err(|_| Problem::Host)?;
    // Any port: an SSH tunnel has one of its own.
    if address.is_none_or(|address| address.ip().is_loopback()) && !is_loopback(host) {
        return Err(Problem::Host);
    }
    Ok(host)
}

/// Whether no page has made the request but our own.
pub(super) fn check_origin(head: &Parts, address: Option<SocketAddr>) -> Result<(), Problem> {
    let host = check_host(head, address)?;
    let site = head.headers.get(FETCH_SITE).map(|value| value.as_bytes());
    let is_ours = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    };
    let is_same = matches!(site, None | Some(b"same-origin" | b"none"));
    if is_same && head.headers.get_all(ORIGIN).iter().all(|origin| is_ours(origin.as_bytes())) {
        Ok(())
    } else {
        Err(Problem::CrossSite)
    }
}

/// Whether whoever calls has the secret.
pub(super) fn check_secret(headers: &HeaderMap, secret: &Secret) -> Result<(), Problem> {
    let mut bearers = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    if bearers.any(|token| is_it(token, secret)) { Ok(()) } else { Err(Problem::Unauthorized) }
}

/// A body is JSON, which a page of another site cannot send without asking.
pub(super) fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let has_body =
        headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    let is_json = |kind: &str| {
        kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    };
    if kind.map_or(!has_body, is_json) { Ok(()) } else { Err(Problem::MediaType) }
}

fn is_loopback(host: &str) -> bool {
    // With or without a port; only that of an IPv6 address stands in brackets.
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::Request;

    use super::*;

    fn head(request: &str, headers: &[(&str, &str)]) -> Parts {
        let (method, target) = request.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn origin(address: &str, headers: &[(&str, &str)]) -> &'static str {
        match check_origin(&head("GET /api/v1/status", headers), address.parse().ok()) {
            Ok(()) => "in",
            Err(Problem::Host) => "host",
            Err(Problem::CrossSite) => "site",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_name_that_leads_to_loopback_is_not_to_be_had_by_a_stranger() {
        for (host, result) in [
            ("127.0.0.1:9180", "in"),
            ("127.0.0.1", "in"),
            ("LocalHost:2222", "in"),
            ("[::1]:9180", "in"),
            ("evil.example:9180", "host"),
            ("localhost.evil.example", "host"),
            ("127.0.0.1.evil.example:9180", "host"),
            ("192.0.2.1:9180", "host"),
            ("[::2]", "host"),
            ("", "host"),
        ] {
            assert_eq!(origin("127.0.0.1:9180", &[("host", host)]), result, "{host}");
        }
        assert_eq!(origin("10.0.0.1:9180", &[("host", "relay.lan:9180")]), "in", "there the secret stands for it");
        for (host, result) in [("localhost", "in"), ("127.0.0.1:2222", "in"), ("evil.example:2222", "host")] {
            assert_eq!(origin("a socket", &[("host", host)]), result, "{host}");
        }
        assert_eq!(origin("127.0.0.1:9180", &[]), "host");
        assert_eq!(origin("127.0.0.1:9180", &[("host", "localhost"), ("host", "localhost")]), "host");
        let proxied = head("GET http://localhost/api/v1/status", &[("host", "localhost")]);
        assert!(matches!(check_origin(&proxied, "127.0.0.1:1".parse().ok()), Err(Problem::Host)));
    }

    #[test]
    fn no_page_of_another_site_may_call() {
        let site = |name: &'static str, value: &'static str| {
            origin("127.0.0.1:9180", &[("host", "127.0.0.1:9180"), (name, value)])
        };
        for (fetch, result) in [("same-origin", "in"), ("none", "in"), ("same-site", "site"), ("cross-site", "site")] {
            assert_eq!(site("sec-fetch-site", fetch), result);
        }
        for (origin, result) in [
            ("http://127.0.0.1:9180", "in"),
            ("http://127.0.0.1:3000", "site"),
            ("https://evil.example", "site"),
            ("null", "site"),
        ] {
            assert_eq!(site("origin", origin), result, "{origin}");
        }
    }

    #[test]
    fn only_the_secret_lets_in_and_only_json_changes_anything() {
        let [secret, other] = [(); 2].map(|()| Secret::generate());
        let check = |value: &str| check_secret(&head("GET /", &[("authorization", value)]).headers, &secret).is_ok();
        let text = secret.expose();
        assert!(check(&format!("Bearer {text}")) && check(&format!("bearer {text}")));
        for wrong in [other.expose(), "", &text[1..], &format!("{text}x")] {
            assert!(!check(&format!("Bearer {wrong}")), "{wrong}");
        }
        assert!(!check(text) && !check(&format!("Basic {text}")));
        assert!(check_secret(&HeaderMap::new(), &secret).is_err());

        let kind = |headers: &[(&str, &str)]| check_type(&head("POST /", headers).headers).is_ok();
        assert!(kind(&[("content-type", "Application/JSON; charset=utf-8"), ("content-length", "2")]));
        for wrong in ["text/plain", "text/plain; application/json", "application/jsonp", ""] {
            assert!(!kind(&[("content-type", wrong)]), "{wrong}");
        }
        assert!(kind(&[]) && kind(&[("content-length", "0")]) && !kind(&[("content-length", "2")]));
    }
}
