//! The PROXY protocol, versions 1 and 2: a proxy that passes bytes on says first whose they are.
//!
//! ```text
//!   1  PROXY TCP4 203.0.113.9 192.0.2.1 51234 443\r\n
//!   2  \r\n\r\n\0\r\nQUIT\n | version, command | family, transport | length | addresses | extensions
//! ```
//!
//! The numbers are those of <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. It is pure, and has nothing of
//! the relay's, so that a fuzzer builds it alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What begins version 1.
const TEXT: &[u8] = b"PROXY ";
/// The longest line of version 1, with its end.
const LONGEST_TEXT: usize = 107;
/// What begins version 2.
const BINARY: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2, up to its length.
const FIXED: usize = 16;
/// The longest header that is taken. Proxies send some hundred bytes: addresses, a name, what is known of a certificate.
pub(crate) const LONGEST: usize = 4096;

/// The extension that tells of the sender's TLS, and the bit in it which says that there is some.
const SSL: u8 = 0x20;
const CLIENT_SSL: u8 = 0x01;

/// Who is at the other end of a proxy's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// Somebody whom the proxy names.
    Sender {
        /// From where.
        address: IpAddr,
        /// The proxy has spoken TLS with the sender, and says so.
        encrypted: bool,
    },
    /// The proxy itself, as when it looks whether the relay lives, or somebody without an address.
    Unknown,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Something else has begun.
    #[error("there is none")]
    Missing,
    /// It does not end where it must.
    #[error("it is too long")]
    TooLong,
    /// It has begun as one.
    #[error("{0}")]
    Wrong(&'static str),
}

/// Reads the header that `bytes` begin with, and how many of them it is; none where more have to come first.
///
/// # Errors
/// [`Malformed`]. That something else has begun is said at its first byte that does not fit.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if begins(bytes, BINARY) {
        return binary(bytes);
    }
    if begins(bytes, TEXT) { text(bytes) } else { Err(Malformed::Missing) }
}

/// Whether one is the beginning of the other.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(byte, expected)| byte == expected)
}

fn text(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let window = bytes.get(..LONGEST_TEXT).unwrap_or(bytes);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < LONGEST_TEXT { Ok(None) } else { Err(Malformed::TooLong) };
    };
    let used = end + 2;
    let line = window.get(TEXT.len()..end).unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Wrong("its line is no text"))?;
    // What follows that word means nothing.
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(Some((Header::Unknown, used)));
    }
    let words: Vec<&str> = line.split(' ').collect();
    let [family, source, destination, from, to] = words[..] else {
        return Err(Malformed::Wrong("its line has not six words"));
    };
    let address = match family {
        "TCP4" => both::<Ipv4Addr>(source, destination).map(IpAddr::V4),
        "TCP6" => both::<Ipv6Addr>(source, destination).map(IpAddr::V6),
        _ => return Err(Malformed::Wrong("its protocol is neither TCP4, TCP6 nor UNKNOWN")),
    };
    let address = address.ok_or(Malformed::Wrong("its addresses are none"))?;
    if !(is_port(from) && is_port(to)) {
        return Err(Malformed::Wrong("its ports are none"));
    }
    Ok(Some((Header::Sender { address: address.to_canonical(), encrypted: false }, used)))
}

/// The first of two addresses, where both are.
fn both<A: FromStr>(source: &str, destination: &str) -> Option<A> {
    destination.parse::<A>().ok()?;
    source.parse().ok()
}

fn is_port(text: &str) -> bool {
    let is_short = text == "0" || !text.starts_with('0');
    is_short && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn binary(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let Some([version, family, high, low]) = bytes.get(BINARY.len()..FIXED) else { return Ok(None) };
    let used = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if version >> 4 != 2 {
        return Err(Malformed::Wrong("its version is not 2"));
    }
    let is_sender = match version & 0x0f {
        0 => false,
        1 => true,
        _ => return Err(Malformed::Wrong("its command is neither LOCAL nor PROXY")),
    };
    if family >> 4 > 3 || family & 0x0f > 2 {
        return Err(Malformed::Wrong("its family or transport is unknown"));
    }
    if used > LONGEST {
        return Err(Malformed::TooLong);
    }
    let Some(rest) = bytes.get(FIXED..used) else { return Ok(None) };
    if !is_sender {
        return Ok(Some((Header::Unknown, used)));
    }
    let short = Malformed::Wrong("it is shorter than its addresses");
    let (address, extensions) = match family {
        0x11 => {
            let (addresses, extensions) = rest.split_first_chunk::<12>().ok_or(short)?;
            let [a, b, c, d, ..] = *addresses;
            (Some(IpAddr::from([a, b, c, d])), extensions)
        }
        0x21 => {
            let (addresses, extensions) = rest.split_first_chunk::<36>().ok_or(short)?;
            let address = addresses.first_chunk::<16>().copied().map(IpAddr::from);
            (address, extensions)
        }
        // Of a family without addresses of the net, and of what is no stream, nothing is known that would help.
        _ => (None, &[][..]),
    };
    let encrypted = is_encrypted(extensions)?;
    let header =
        address.map_or(Header::Unknown, |address| Header::Sender { address: address.to_canonical(), encrypted });
    Ok(Some((header, used)))
}

/// Looks through the extensions: a kind, a length of two bytes, and the value.
fn is_encrypted(mut extensions: &[u8]) -> Result<bool, Malformed> {
    let cut = Malformed::Wrong("an extension is cut off");
    let mut encrypted = false;
    while !extensions.is_empty() {
        let ([kind, high, low], rest) = extensions.split_first_chunk::<3>().ok_or(cut)?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low]))).ok_or(cut)?;
        if *kind == SSL {
            encrypted = value.first().is_some_and(|client| client & CLIENT_SSL != 0);
        }
        extensions = rest;
    }
    Ok(encrypted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn sender(address: IpAddr, encrypted: bool) -> Header {
        Header::Sender { address: address.to_canonical(), encrypted }
    }

    /// As version 1 writes it.
    fn line(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.port(), destination.port());
        format!("PROXY {family} {} {} {from} {to}\r\n", source.ip(), destination.ip()).into_bytes()
    }

    /// As version 2 writes it.
    fn block(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&BINARY[..], &[0x20 | command, family], &length, rest].concat()
    }

    fn addresses(source: SocketAddr, destination: SocketAddr) -> (u8, Vec<u8>) {
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x11, [&source.octets()[..], &destination.octets(), &ports].concat())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (0x21, [&source.octets()[..], &destination.octets(), &ports].concat())
            }
            other => panic!("{other:?}"),
        }
    }

    fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<(([u8; 4], u16), ([u8; 4], u16))>().prop_map(|(from, to)| (from.into(), to.into()));
        let v6 = any::<(([u8; 16], u16), ([u8; 16], u16))>().prop_map(|(from, to)| (from.into(), to.into()));
        prop_oneof![v4, v6]
    }

    proptest! {
        /// However the bytes come, and whatever follows them.
        #[test]
        fn what_a_proxy_writes_is_read(
            (source, destination) in ends(),
            is_text in any::<bool>(),
            encrypted in any::<bool>(),
            behind in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (header, encrypted) = if is_text {
                (line(source, destination), false)
            } else {
                let (family, mut rest) = addresses(source, destination);
                // A name, and what HAProxy says of TLS.
                rest.extend([&b"\x02\x00\x03abc"[..], &[SSL, 0, 5, u8::from(encrypted), 0, 0, 0, 0]].concat());
                (block(1, family, &rest), encrypted)
            };
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Ok(None), "{} bytes of {:?}", cut, header);
            }
            let whole = [&header[..], &behind].concat();
            prop_assert_eq!(parse(&whole), Ok(Some((sender(source.ip(), encrypted), header.len()))));
        }

        /// No bytes are a panic, and what is refused or taken once stays so with more of them.
        #[test]
        fn more_bytes_change_no_verdict(
            start in prop_oneof![Just(&b""[..]), Just(TEXT), Just(&BINARY[..]), Just(&b"PROXY TCP4 1.2.3.4 "[..])],
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = [start, &bytes].concat();
            let mut verdict = Ok(None);
            for end in 0..=whole.len() {
                let next = parse(&whole[..end]);
                prop_assert!(verdict == Ok(None) || next == verdict, "{:?} after {:?}", next, verdict);
                verdict = next;
            }
        }
    }

    #[test]
    fn the_examples_of_the_document_are_read() {
        let v6 = ["ffff"; 8].join(":");
        let longest = format!("PROXY UNKNOWN {v6} {v6} 65535 65535\r\n");
        assert_eq!(longest.len(), LONGEST_TEXT);
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], longest.as_bytes(), &block(0, 0, b""), &block(0, 0x11, b"anything")]
        {
            assert_eq!(parse(unknown), Ok(Some((Header::Unknown, unknown.len()))), "{unknown:?}");
        }
        let v4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(v4), Ok(Some((sender(Ipv4Addr::BROADCAST.into(), false), 56))));
        let mapped = b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n";
        assert_eq!(parse(mapped), Ok(Some((sender(Ipv4Addr::new(192, 0, 2, 7).into(), false), mapped.len()))));
    }

    #[test]
    fn senders_without_an_address_are_unknown() {
        for family in [0x00, 0x10, 0x01, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32] {
            let header = block(1, family, &[7; 216]);
            assert_eq!(parse(&header), Ok(Some((Header::Unknown, header.len()))), "{family:#x}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for other in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"P ", b"PRI * HTTP/2.0", b"\r\n\r\n\0\r\nQUIT\r", b"X"]
        {
            assert_eq!(parse(other), Err(Malformed::Missing), "{other:?}");
        }
        for wrong in [
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY \r\n",
        ] {
            assert!(matches!(parse(wrong.as_bytes()), Err(Malformed::Wrong(_))), "{wrong:?}");
        }
        assert_eq!(parse(&[TEXT, &[b'x'; 101]].concat()), Err(Malformed::TooLong));

        let (family, rest) = addresses("1.2.3.4:5".parse().unwrap(), "6.7.8.9:10".parse().unwrap());
        let mut version = block(1, family, &rest);
        version[12] = 0x11;
        let beyond = [&rest[..], &[0xee, 0, 2, 1]].concat();
        let half = [&rest[..], &[0xee, 0]].concat();
        for wrong in [
            version,
            block(2, family, &rest),
            block(1, 0x13, &rest),
            block(1, 0x41, &rest),
            block(1, family, &rest[..11]),
            block(1, 0x21, &rest),
            block(1, family, &beyond),
            block(1, family, &half),
        ] {
            assert!(matches!(parse(&wrong), Err(Malformed::Wrong(_))), "{wrong:?}");
        }
        // Before so much has come.
        let long = block(1, family, &[0; LONGEST]);
        assert_eq!(parse(&long[..FIXED]), Err(Malformed::TooLong));
    }
}
