//! The rules between heads on the wire and HTTP: what is the next hop's business and what is not.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::message::{HeaderList, RequestHead};

/// The scheme that a request was sent by. On the wire it stands among the headers, where that is not `https`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What the public path of a request has before what its service sees, such as `/t/hooks`: where the relay's tunnels are below
/// its own host. On the wire it stands among the headers.
pub const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The header lines that belong to the message and not to the connection it came on, in order.
///
/// Left out, by RFC 9110, section 7.6.1: `Connection` and every name that it lists (whatever its case), `Keep-Alive`,
/// `Proxy-Connection`, `Transfer-Encoding`, `Upgrade`, `TE`, and the proxy authentication pair. `TE: trailers` stays,
/// because gRPC asks for it end to end. `Host` is left out too: the authority travels by itself. So is `Content-Length`
/// beside `Transfer-Encoding`, which overrides it (RFC 9112, section 6.3).
pub fn end_to_end(headers: &HeaderMap) -> HeaderList {
    let connection = ConnectionNames::of(headers);
    let is_overridden = headers.contains_key(header::TRANSFER_ENCODING);
    let mut list = Vec::with_capacity(headers.len() + 8);
    for (name, value) in headers {
        if *name == header::TE {
            if asks_for_trailers(value) {
                list.push((header::TE, HeaderValue::from_static("trailers")));
            }
        } else if is_overridden && *name == header::CONTENT_LENGTH {
            continue;
        } else if !is_hop_by_hop(name) && *name != header::HOST && !connection.contains(name) {
            list.push((name.clone(), value.clone()));
        }
    }
    list
}

/// How long a request's body is in bytes, where its head says that.
pub fn content_length(head: &RequestHead) -> Option<u64> {
    let (_, value) = head.headers.iter().find(|(name, _)| *name == header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// The URL that the sender of a request called, as providers sign it: `http` only where the edge or a proxy in front of it
/// says so.
pub fn public_url(head: &RequestHead) -> String {
    let is_plain = |(name, value): &(HeaderName, HeaderValue)| *name == X_FORWARDED_PROTO && value == "http";
    let scheme = if head.headers.iter().any(is_plain) { "http" } else { "https" };
    // At once, because every request is asked for it, and a format grows its text piece by piece.
    [scheme, "://", &head.authority, prefix(&head.headers), head.target.as_str()].concat()
}

/// What a request's public URL has before the target: [`X_FORWARDED_PREFIX`], or nothing.
pub fn prefix(headers: &[(HeaderName, HeaderValue)]) -> &str {
    let line = headers.iter().find(|(name, _)| *name == X_FORWARDED_PREFIX);
    line.and_then(|(_, value)| value.to_str().ok()).unwrap_or_default()
}

/// The trailers that may follow a body: RFC 9110, section 6.5.1 forbids what is needed before it.
pub fn end_to_end_trailers(trailers: &HeaderMap) -> HeaderList {
    let allowed = |name: &HeaderName| !is_hop_by_hop(name) && !is_forbidden_trailer(name);
    trailers.iter().filter(|(name, _)| allowed(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Several lengths of one message that differ, or one that is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Content-Length is not one number")]
pub struct Unframed;

/// Adds the lines of a head that came from the other end to `headers`, with one framing at most, and returns the length
/// that it declares.
///
/// Whoever sent it may be anybody: with two lengths, or with a coding of its own, its body would end elsewhere for the
/// next reader than for us (RFC 9112, section 6.3).
///
/// # Errors
/// [`Unframed`]: nobody can say where the body ends.
pub fn append_framed(
    headers: &mut HeaderMap,
    list: impl Iterator<Item = (HeaderName, HeaderValue)>,
) -> Result<Option<u64>, Unframed> {
    headers.reserve(list.size_hint().0);
    let mut declared = None;
    for (name, value) in list {
        if name == header::CONTENT_LENGTH {
            let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length: u64 = digits.and_then(|text| text.parse().ok()).ok_or(Unframed)?;
            match declared.replace(length) {
                None => {}
                Some(other) if other == length => continue,
                Some(_) => return Err(Unframed),
            }
        } else if is_hop_by_hop(&name) && name != header::TE {
            continue;
        }
        headers.append(name, value);
    }
    Ok(declared)
}

/// Whether a name means something to one connection only.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
    matches!(
        *name,
        header::CONNECTION
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::TE
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
    ) || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == HTTP2_SETTINGS
}

/// Headers whose truth the relay or its client states; nobody else may.
const OWNED: &[&str] = &[
    "client-cert",
    "client-cert-chain",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-real-ip",
];

/// Headers that frame or route: an alias of one would be read differently by a server that folds `_` into `-`.
const FRAMING: &[&str] = &["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "expect"];

/// Whether the relay states this header's truth, so that a public request's own line is dropped.
pub fn is_owned(name: &HeaderName) -> bool {
    is_owned_name(name.as_str())
}

fn is_owned_name(name: &str) -> bool {
    name.starts_with("relay-") || OWNED.contains(&name)
}

/// Whether a name frames or routes the message that it stands in.
pub(crate) fn is_framing(name: &str) -> bool {
    FRAMING.contains(&name)
}

/// Whether a server that folds `_` and `.` into `-` would take this name for one that the relay owns, or that frames.
pub fn is_look_alike(name: &str) -> bool {
    if !name.bytes().any(|b| matches!(b, b'_' | b'.')) {
        return false;
    }
    let folded = name.replace(['_', '.'], "-");
    is_owned_name(&folded) || is_framing(&folded)
}

/// Whether a name must not stand in trailers, because it frames, routes, authenticates or describes the body that has
/// already been read.
pub fn is_forbidden_trailer(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_RANGE
            | header::HOST
            | header::TRAILER
            | header::AUTHORIZATION
            | header::COOKIE
            | header::SET_COOKIE
            | header::CACHE_CONTROL
            | header::EXPECT
            | header::MAX_FORWARDS
            | header::LOCATION
            | header::AGE
            | header::EXPIRES
            | header::DATE
            | header::VARY
            | header::RETRY_AFTER
            | header::WARNING
            | header::PRAGMA
            | header::RANGE
            | header::IF_MATCH
            | header::IF_NONE_MATCH
            | header::IF_MODIFIED_SINCE
            | header::IF_UNMODIFIED_SINCE
            | header::IF_RANGE
            | header::WWW_AUTHENTICATE
    )
}

/// The protocol that a request asks to upgrade to: `Connection: upgrade` with one `Upgrade` line.
///
/// A wish for HTTP or TLS is none, as RFC 9110, section 7.8, allows: whoever carried their bytes would carry requests
/// that no rule of his sees.
pub fn upgrade_of(headers: &HeaderMap) -> Option<&str> {
    let asked = headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| tokens(value).any(|t| t.eq_ignore_ascii_case("upgrade")));
    let mut lines = headers.get_all(header::UPGRADE).iter();
    let line = lines.next()?;
    let is_sound = asked && lines.next().is_none() && !tokens(line).any(carries_requests);
    line.to_str().ok().filter(|_| is_sound)
}

/// Whether a protocol, with or without a version, is HTTP or TLS: `h2c`, `HTTP/2.0`, `TLS/1.0`.
fn carries_requests(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default().trim_end();
    // Drafts of HTTP/2 had names such as h2c-14.
    ["http", "https", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
        || name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("h2") || start.eq_ignore_ascii_case("h3"))
}

/// Adds `list` to `headers`, keeping repeats.
pub fn append_all(headers: &mut HeaderMap, list: HeaderList) {
    headers.reserve(list.len());
    for (name, value) in list {
        headers.append(name, value);
    }
}

/// The names that `Connection` lists. Nearly always it is absent or `keep-alive`, which costs nothing here.
struct ConnectionNames<'a>(Vec<&'a str>);

impl<'a> ConnectionNames<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let common = |token: &&str| {
            !["keep-alive", "close", "upgrade", "te", ""].iter().any(|known| token.eq_ignore_ascii_case(known))
        };
        Self(headers.get_all(header::CONNECTION).iter().flat_map(tokens).filter(common).collect())
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_str()))
    }
}

fn asks_for_trailers(value: &HeaderValue) -> bool {
    tokens(value).any(|token| token.eq_ignore_ascii_case("trailers"))
}

/// The comma-separated tokens of a value; none where it is not text.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn shown(list: &HeaderList) -> Vec<String> {
        list.iter().map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect()
    }

    #[test]
    fn a_head_keeps_one_framing() {
        let settle = |lines: &[(&'static str, &'static str)]| {
            let line = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            let mut headers = HeaderMap::new();
            append_framed(&mut headers, lines.iter().map(line)).map(|length| (length, headers.len()))
        };
        let length = "content-length";
        assert_eq!(settle(&[("te", "trailers"), ("x-a", "1")]), Ok((None, 2)));
        assert_eq!(settle(&[(length, "3"), ("transfer-encoding", "gzip"), (length, "3")]), Ok((Some(3), 1)));
        for odd in ["", "+3", "3, 3", "0x3", "18446744073709551616"] {
            assert_eq!(settle(&[(length, odd)]), Err(Unframed), "{odd}");
        }
        assert_eq!(settle(&[(length, "3"), (length, "4")]), Err(Unframed));
    }

    #[test]
    fn a_public_url_is_what_the_sender_called() {
        let url = |lines: &[(&'static str, &'static str)]| {
            let line = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            let head = RequestHead {
                tunnel: 1,
                id: "1".into(),
                deadline_ms: 0,
                elapsed_ms: 0,
                method: http::Method::GET,
                target: http::uri::PathAndQuery::from_static("/a//b?c=%31"),
                authority: "Relay.example:8443".into(),
                remote: "".into(),
                upgrade: None,
                headers: lines.iter().map(line).collect(),
            };
            public_url(&head)
        };
        assert_eq!(url(&[]), "https://Relay.example:8443/a//b?c=%31");
        assert_eq!(url(&[("x-forwarded-proto", "http")]), "http://Relay.example:8443/a//b?c=%31");
        assert_eq!(url(&[("x-forwarded-prefix", "/t/Hooks")]), "https://Relay.example:8443/t/Hooks/a//b?c=%31");
    }

    #[test]
    fn keeps_order_repeats_and_bytes() {
        let mut headers = map(&[("b", "1"), ("a", "2"), ("b", "3"), ("c", "4")]);
        headers.append("d", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(shown(&end_to_end(&headers)), ["b: 1", "b: 3", "a: 2", "c: 4", "d: \\xff"]);
    }

    #[test]
    fn drops_what_connection_lists_whatever_its_case() {
        let headers = map(&[
            ("connection", "Close, X-Forwarded-FOR"),
            ("connection", "x-one"),
            ("x-forwarded-for", "1"),
            ("X-One", "1"),
            ("keep-alive", "1"),
            ("proxy-connection", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "x"),
            ("host", "x"),
            ("x-two", "2"),
        ]);
        assert_eq!(shown(&end_to_end(&headers)), ["x-two: 2"]);
    }

    #[test]
    fn te_says_trailers_or_nothing() {
        assert_eq!(shown(&end_to_end(&map(&[("te", "gzip, Trailers;q=1")]))), Vec::<String>::new());
        assert_eq!(shown(&end_to_end(&map(&[("te", "gzip, Trailers"), ("connection", "te")]))), ["te: trailers"]);
    }

    #[test]
    fn trailers_cannot_frame_or_authenticate() {
        let trailers =
            map(&[("grpc-status", "0"), ("content-length", "1"), ("authorization", "x"), ("connection", "x")]);
        assert_eq!(shown(&end_to_end_trailers(&trailers)), ["grpc-status: 0"]);
    }

    #[test]
    fn an_upgrade_needs_both_lines() {
        assert_eq!(
            upgrade_of(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])),
            Some("websocket")
        );
        assert_eq!(upgrade_of(&map(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade_of(&map(&[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")])), None);
    }

    #[test]
    fn http_and_tls_are_no_protocols_to_upgrade_to() {
        let asked = |protocol: &'static str| {
            let headers = map(&[("connection", "upgrade, http2-settings"), ("upgrade", protocol)]);
            upgrade_of(&headers).is_some()
        };
        for protocol in
            ["h2c", "H2C", "h2", "h2c-14", "h3", "HTTP/2.0", "http", "TLS/1.2", "tls", "websocket, h2c", "TLS /1.0"]
        {
            assert!(!asked(protocol), "{protocol}");
        }
        for protocol in ["websocket", "WebSocket", "foo/1", "h", "https-like", "SHTTP/1.3", "docker,tcp"] {
            assert!(asked(protocol), "{protocol}");
        }
    }
}
