//! What is refused before routing: requests that two readers could read differently, or that imitate our own headers.
//!
//! hyper has parsed the head by now. What it lets through and this gate does not: several or missing `Host` lines, an
//! absolute target that disagrees with `Host`, `CONNECT` and `*` targets, framing that is odd where it is still
//! visible, look-alikes of headers that we own, and forbidden trailers.

use bytestring::ByteString;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Version, request};
use hyper::ext::Protocol;
use relay_protocol::exchange::{is_forbidden_trailer, is_hop_by_hop, is_look_alike, is_owned};

use super::paths::Below;
use crate::Shared;

/// A request's public host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicHost {
    /// As the sender wrote it, for `X-Forwarded-Host`.
    pub(crate) authority: ByteString,
    /// In lower case, without port and trailing dot: what routing and authorisation use.
    pub(crate) host: String,
    /// Which tunnel it is for, where the path says that.
    pub(crate) below: Option<Below>,
}

impl PublicHost {
    /// The name of the tunnel that a request is for, if it can be for one.
    pub(crate) fn tunnel<'a>(&'a self, shared: &'a Shared) -> Option<&'a str> {
        match &self.below {
            Some(below) => Some(&below.name),
            None => shared.name_of(&self.host),
        }
    }
}

/// Why a request is refused, for a person.
pub(crate) type Refusal = &'static str;

/// Whether the header is one whose truth the relay states, or would be taken for one.
pub(crate) fn imitates_ours(name: &HeaderName) -> bool {
    is_owned(name) || is_look_alike(name.as_str())
}

/// Checks a request, and finds the host that it is for.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(parts: &request::Parts) -> Result<PublicHost, Refusal> {
    if parts.version < Version::HTTP_10 {
        return Err("HTTP/0.9 is not served");
    }
    if parts.method == Method::CONNECT {
        let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
        if protocol != Some("websocket") {
            return Err("CONNECT is not served");
        }
    }
    if !(parts.uri.path().starts_with('/') || parts.uri.path().is_empty() && parts.uri.scheme().is_some()) {
        return Err("the target must be a path");
    }
    for (name, value) in &parts.headers {
        check_line(parts.version, name, value)?;
    }
    public_host(parts)
}

fn check_line(version: Version, name: &HeaderName, value: &HeaderValue) -> Result<(), Refusal> {
    if *name == header::TRANSFER_ENCODING {
        if version != Version::HTTP_11 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err("Transfer-Encoding must be chunked, and nothing else");
        }
    } else if *name == header::CONTENT_LENGTH {
        if value.is_empty() || !value.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err("Content-Length must be one number");
        }
    } else if *name == header::TRAILER {
        let forbidden = |name: &str| {
            name.trim()
                .parse::<HeaderName>()
                .is_ok_and(|n| is_forbidden_trailer(&n) || is_hop_by_hop(&n) || is_owned(&n))
        };
        if value.to_str().unwrap_or_default().split(',').any(forbidden) {
            return Err("Trailer names a header that cannot be a trailer");
        }
    } else if is_look_alike(name.as_str()) {
        return Err("a header imitates one that the relay states");
    }
    Ok(())
}

fn public_host(parts: &request::Parts) -> Result<PublicHost, Refusal> {
    let mut lines = parts.headers.get_all(header::HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err("more than one Host header");
    }
    let line = line.map(|value| value.to_str().map_err(|_| "the Host header is not text")).transpose()?;
    let target = parts.uri.authority().map(Authority::as_str);
    let authority = match (target, line) {
        (Some(_), None) if parts.version < Version::HTTP_2 => return Err("the Host header is missing"),
        (Some(target), Some(line)) if !is_same(target, line, parts.uri.scheme_str()) => {
            return Err("the target and the Host header disagree");
        }
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err("the Host header is missing"),
    };
    let parsed: Authority = authority.parse().map_err(|_| "the Host header is not a host")?;
    if authority.contains('@') {
        return Err("the Host header is not a host");
    }
    // The authority is passed on as it was written: a port that is none could name a second host there.
    let name = parsed.host();
    let port = authority.strip_prefix(name).map(|rest| rest.strip_prefix(':').unwrap_or(rest));
    if !port.is_some_and(|port| port.is_empty() || port.bytes().all(|b| b.is_ascii_digit()) && parsed.port().is_some())
    {
        return Err("the port is not a number");
    }
    let host = name.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host.len() > 253 || name.ends_with("..") {
        return Err("the Host header is not a host");
    }
    Ok(PublicHost { authority: authority.into(), host, below: None })
}

/// Whether two authorities are one, of which either may say the default port of its scheme (RFC 9110, section 4.2.3).
fn is_same(one: &str, other: &str, scheme: Option<&str>) -> bool {
    let default = match scheme {
        Some("http") => ":80",
        _ => ":443",
    };
    let bare = |authority: &str| authority.strip_suffix(default).unwrap_or(authority).to_ascii_lowercase();
    bare(one) == bare(other)
}

fn host_of(authority: &Authority) -> &str {
    authority.host().trim_end_matches('.')
}

/// The host of an authority that has passed, in lower case.
pub(crate) fn host(authority: &str) -> Option<String> {
    Some(host_of(&authority.parse().ok()?).to_ascii_lowercase())
}

/// Whether an authority that has passed is of this host, which is in lower case.
pub(crate) fn is_of(authority: &str, host: &str) -> bool {
    authority.parse().is_ok_and(|authority| host_of(&authority).eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::Request;

    use super::*;

    fn request(target: &str, lines: &[(&str, &str)]) -> Result<PublicHost, Refusal> {
        let mut request = Request::builder().uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_host_is_found_whatever_its_clothes() {
        for host in ["a.example", "A.EXAMPLE", "a.example.", "a.example:443", "a.example.:443", "a.example:"] {
            let found = request("/", &[("host", host)]).unwrap();
            assert_eq!((found.host.as_str(), &*found.authority), ("a.example", host));
            assert!(is_of(host, "a.example") && !is_of(host, "b.example"));
        }
        assert_eq!(request("http://a.example/", &[("host", "A.example")]).unwrap().host, "a.example");
    }

    #[test]
    fn hosts_that_can_be_read_twice_are_refused() {
        for lines in [
            vec![],
            vec![("host", "a.example"), ("host", "a.example")],
            vec![("host", "")],
            vec![("host", "a b")],
            vec![("host", "user@a.example")],
            vec![("host", "a.example..")],
            vec![("host", "a.example, b.example")],
            vec![("host", "a.example:1,b.example")],
            vec![("host", "a.example:b.example")],
            vec![("host", "a.example:65536")],
        ] {
            assert!(request("/", &lines).is_err(), "{lines:?}");
        }
        assert!(request("http://b.example/", &[("host", "a.example")]).is_err());
        for (target, line, is_one) in [
            ("https://a.example:443/", "a.example", true),
            ("https://a.example/", "a.example:443", true),
            ("http://a.example:80/", "A.example", true),
            ("https://a.example:80/", "a.example", false),
            ("http://a.example:443/", "a.example", false),
            ("https://a.example:8443/", "a.example", false),
        ] {
            assert_eq!(request(target, &[("host", line)]).is_ok(), is_one, "{target} {line}");
        }
        assert!(request("http://a.example/", &[]).is_err(), "HTTP/1.1 without Host");
        assert!(request("*", &[("host", "a.example")]).is_err());
        assert!(request("a.example:443", &[("host", "a.example:443")]).is_err(), "CONNECT's form");
    }

    #[test]
    fn look_alikes_and_odd_framing_are_refused() {
        for (name, value) in [
            ("x_forwarded_for", "1.2.3.4"),
            ("x.real.ip", "1.2.3.4"),
            ("Content_Length", "3"),
            ("relay_request_id", "x"),
            ("transfer-encoding", "gzip, chunked"),
            ("transfer-encoding", "identity"),
            ("content-length", "+3"),
            ("trailer", "x-a, Content-Length"),
            ("trailer", "x-forwarded-for"),
        ] {
            assert!(request("/", &[("host", "a.example"), (name, value)]).is_err(), "{name}: {value}");
        }
        for (name, value) in [("x_custom", "1"), ("transfer-encoding", "Chunked"), ("trailer", "grpc-status")] {
            assert!(request("/", &[("host", "a.example"), (name, value)]).is_ok(), "{name}: {value}");
        }
    }
}
