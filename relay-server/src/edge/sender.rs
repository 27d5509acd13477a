//! Whom a request is from: the peer of its connection, or whom the trusted proxy in front of the relay names.

use std::net::{IpAddr, SocketAddr};
use std::str;

use bytestring::ByteString;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::caller::Caller;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a request came from.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// The peer of the connection, or of the proxy that passes its bytes on.
    pub(crate) peer: IpAddr,
    /// It as text: written once for all requests of a connection.
    written: ByteString,
    /// The peer is a proxy whose forwarded headers are believed.
    pub(crate) trusted: bool,
    /// The connection is encrypted.
    pub(crate) encrypted: bool,
    /// Who the connection says that it is.
    pub(crate) caller: Caller,
}

impl Sender {
    /// Whoever is at the other end of a connection, and says nothing of itself.
    pub(super) fn new(peer: IpAddr, trusted: bool, encrypted: bool) -> Self {
        let written = peer.to_canonical().to_string().into();
        Self { peer, written, trusted, encrypted, caller: Caller::Elsewhere }
    }

    /// Whom a request with these headers is from: the peer, or whom the trusted proxy in front of us names. None where it
    /// names nobody by an address: then it is somebody whom we do not know, and never the proxy itself.
    pub(crate) fn address(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let lines = headers.get_all(X_FORWARDED_FOR);
        // A line of the proxy's own stands behind its sender's.
        match lines.iter().next_back().filter(|_| self.trusted) {
            Some(line) => last_address(line.as_bytes()),
            None => Some(self.peer.to_canonical()),
        }
    }

    /// As [`address`](Self::address), for what only counts and shows: there somebody whom we do not know counts as the proxy.
    pub(super) fn address_or_peer(&self, headers: &HeaderMap) -> IpAddr {
        self.address(headers).unwrap_or(self.peer)
    }

    /// The same, as it is told.
    pub(super) fn written(&self, headers: &HeaderMap) -> ByteString {
        match self.address(headers) {
            Some(address) if address == self.peer.to_canonical() => self.written.clone(),
            Some(address) => address.to_string().into(),
            None => ByteString::from_static("unknown"),
        }
    }

    /// Through whom a request with these headers has come, on one line: what the trusted proxy has said as it was, and the
    /// proxy.
    pub(super) fn chain(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut chain = Vec::new();
        for line in headers.get_all(X_FORWARDED_FOR) {
            chain.extend_from_slice(line.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(self.written.as_bytes());
        HeaderValue::from_bytes(&chain).ok()
    }
}

/// The address at the end of a line, which is what the proxy has added; all before it are its sender's words, and need not
/// be text. Some proxies write a port behind it, and IPv6 in brackets then, as in RFC 7239, section 6.
fn last_address(line: &[u8]) -> Option<IpAddr> {
    let last = line.rsplit(|byte| *byte == b',').next()?.trim_ascii();
    let text = str::from_utf8(last).ok()?;
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address: Option<IpAddr> = text.parse().ok().or_else(in_brackets);
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn sender(trusted: bool) -> Sender {
        Sender::new("::ffff:10.0.0.1".parse().unwrap(), trusted, true)
    }

    fn headers(lines: &[&[u8]]) -> HeaderMap {
        lines.iter().map(|line| (X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap())).collect()
    }

    #[test]
    fn a_sender_is_whom_the_proxy_has_named_last_whatever_stands_before_it() {
        for (line, address) in [
            (&b"198.51.100.7"[..], Some("198.51.100.7")),
            (b"\xff, 198.51.100.7", Some("198.51.100.7")),
            (b"203.0.113.1,198.51.100.7", Some("198.51.100.7")),
            (b"198.51.100.7:50123", Some("198.51.100.7")),
            (b"::ffff:198.51.100.7", Some("198.51.100.7")),
            (b"2001:db8::7", Some("2001:db8::7")),
            (b"[2001:db8::7]", Some("2001:db8::7")),
            (b"[2001:db8::7]:50123", Some("2001:db8::7")),
            (b"", None),
            (b"unknown", None),
            (b"198.51.100.7, \xff", None),
            (b"198.51.100.7,", None),
            (b"198.51.100.7:", None),
        ] {
            let found = sender(true).address(&headers(&[line]));
            assert_eq!(found, address.map(|text| text.parse().unwrap()), "{}", line.escape_ascii());
        }
        let two = headers(&[b"203.0.113.1", b"198.51.100.7"]);
        assert_eq!(sender(true).address(&two), Some("198.51.100.7".parse().unwrap()));
        let peer = Some("10.0.0.1".parse().unwrap());
        assert_eq!(sender(true).address(&headers(&[])), peer, "the proxy speaks for itself");
        assert_eq!(sender(false).address(&two), peer, "anybody can write that");
    }

    #[test]
    fn what_was_said_of_others_is_passed_on_as_it_was() {
        let chain = sender(true).chain(&headers(&[b"\xff, 203.0.113.1", b"198.51.100.7:1"])).unwrap();
        assert_eq!(chain.as_bytes(), b"\xff, 203.0.113.1, 198.51.100.7:1, 10.0.0.1");
        assert_eq!(sender(true).chain(&headers(&[])).unwrap(), "10.0.0.1");
    }
}
