//! `--host-header`: what the local service sees as its own name, and what its answers call it.
//!
//! Development servers answer only to names they know: Vite and Rails refuse a foreign `Host`,
//! Django and Next compare `Origin` with it. So by default a request arrives as if it had been sent
//! to the local address, and a redirect to that address leaves as one to the public URL. Everything
//! else passes unchanged.
//!
//! ```text
//!   request   Host: hooks.relay.example              →  Host: localhost:3000
//!             Origin: https://hooks.relay.example    →  Origin: http://localhost:3000
//!             Origin: https://elsewhere.example         (unchanged: foreign stays foreign)
//!   response  Location: https://hooks.relay.example/b  ←  Location: http://localhost:3000/b
//! ```
//!
//! Where the relay has tunnels below a path of its own host, the public URL has that path: redirects get it, and as others
//! share the origin, `Origin` and `Referer` are nobody's.
//!
//! Left alone on purpose:
//! - `Set-Cookie`: browsers refuse a cookie for `Domain=localhost` without any tunnel, so services
//!   do not send it, and a wider domain is the service's own decision about who sees the cookie;
//! - `Link` and bodies: they name resources, not a redirect; translating URLs in one without the
//!   other would not help, and signatures may cover bodies.

use std::{ops::Range, str::FromStr};

use bytes::Bytes;
use bytestring::ByteString;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_LOCATION, Entry, LOCATION, ORIGIN, REFERER, REFRESH},
};

use crate::upstream::address::{Scheme, UpstreamAddr};

/// The choice of `--host-header`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// As [`HostHeader::Rewrite`], but as [`HostHeader::Preserve`] for requests of a provider whose signature covers the
    /// public URL: an app that verifies it puts that URL together from what it is told.
    #[default]
    Auto,
    /// `Host` becomes the upstream's own.
    Rewrite,
    /// `Host` stays the public name, and no header is translated in either direction.
    Preserve,
    /// `Host` becomes this, and the translations are made as if this were the upstream's name.
    Value(HeaderValue),
}

impl FromStr for HostHeader {
    type Err = HostHeaderError;

    fn from_str(text: &str) -> Result<Self, HostHeaderError> {
        match text {
            "auto" => Ok(Self::Auto),
            "rewrite" => Ok(Self::Rewrite),
            "preserve" => Ok(Self::Preserve),
            _ => match (split_authority(text.as_bytes()), HeaderValue::from_str(text)) {
                (Some(_), Ok(value)) => Ok(Self::Value(value)),
                _ => Err(HostHeaderError { input: text.to_owned() }),
            },
        }
    }
}

/// A `--host-header` that could not stand in a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a host; write auto, rewrite, preserve, or a host such as app.test or app.test:8080")]
pub struct HostHeaderError {
    input: String,
}

/// The public URL of a tunnel is neither an origin (`https://host[:port]`) nor a path below one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay gave {url:?} as the tunnel's public URL, which is not of the form https://host[:port][/path]")]
pub struct PublicUrlError {
    url: String,
}

/// The translations of one tunnel, worked out once: what a request costs is comparing a few names.
#[derive(Clone, Debug)]
pub struct Rewriter {
    public: Origin,
    /// The path below which the tunnel is: `/t/hooks`, or nothing.
    prefix: String,
    /// None under `preserve`.
    local: Option<Local>,
}

impl Rewriter {
    /// The translations between the upstream and `public_url`, as the relay named it.
    ///
    /// # Errors
    /// Where `public_url` is not an HTTP origin or a path below one.
    pub fn new(mode: &HostHeader, upstream: &UpstreamAddr, public_url: &str) -> Result<Self, PublicUrlError> {
        let wrong = || PublicUrlError { url: public_url.to_owned() };
        let (text, prefix) = split_base(public_url.strip_suffix('/').unwrap_or(public_url)).ok_or_else(wrong)?;
        let public = Origin::parse(text).ok_or_else(wrong)?;
        let local = match mode {
            HostHeader::Preserve => None,
            HostHeader::Auto | HostHeader::Rewrite => Local::new(upstream, &upstream.host_header()),
            HostHeader::Value(host) => host.to_str().ok().and_then(|host| Local::new(upstream, host)),
        };
        Ok(Self { public, prefix: prefix.to_owned(), local })
    }

    /// As it would be under `preserve`.
    #[must_use]
    pub fn preserving(&self) -> Self {
        Self { local: None, ..self.clone() }
    }

    /// The `Host` that the upstream gets, where the sender called `authority`. An authority that no header can hold is
    /// replaced by the tunnel's public one.
    pub fn host(&self, authority: &ByteString) -> HeaderValue {
        match &self.local {
            Some(local) => local.origin.host.clone(),
            None => HeaderValue::from_maybe_shared(authority.as_bytes().clone())
                .unwrap_or_else(|_| self.public.host.clone()),
        }
    }

    /// Makes the request's headers speak of the upstream.
    pub fn request(&self, headers: &mut HeaderMap) {
        let Some(local) = self.local.as_ref().filter(|_| self.prefix.is_empty()) else { return };
        for name in [ORIGIN, REFERER] {
            let is_referer = name == REFERER;
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            for value in values.iter_mut() {
                let Some((url, rest)) = Url::split(value.as_bytes()) else { continue };
                if !self.public.is(&url) {
                    continue;
                }
                if rest.is_empty() {
                    *value = local.origin.text.clone();
                } else if is_referer {
                    replace(value, [local.origin.text.as_bytes(), rest].concat());
                }
            }
        }
    }

    /// Makes the response's headers speak of the public URL where they name the upstream: redirects
    /// (`Location`, `Content-Location`, `Refresh`), and the origin that [`Rewriter::request`] put
    /// in, where `Access-Control-Allow-Origin` repeats it.
    pub fn response(&self, headers: &mut [(HeaderName, HeaderValue)]) {
        let Some(local) = &self.local else { return };
        for (name, value) in headers {
            if *name == LOCATION || *name == CONTENT_LOCATION {
                let all = 0..value.len();
                self.translate(local, value, all);
            } else if *name == REFRESH {
                if let Some(url) = refresh_url(value.as_bytes()) {
                    self.translate(local, value, url);
                }
            } else if *name == ACCESS_CONTROL_ALLOW_ORIGIN && self.prefix.is_empty() && *value == local.origin.text {
                *value = self.public.text.clone();
            }
        }
    }

    /// Translates the URL in a part of the value, if it names the upstream. A relative one needs no
    /// translation, but for the prefix where it begins with a path, and `//host` stays without its scheme.
    fn translate(&self, local: &Local, value: &mut HeaderValue, part: Range<usize>) {
        let bytes = value.as_bytes();
        let (Some(before), Some(text), Some(after)) =
            (bytes.get(..part.start), bytes.get(part.clone()), bytes.get(part.end..))
        else {
            return;
        };
        let (slashes, public, rest) = match Url::split(text) {
            Some((url, rest)) if local.is(&url) => match url.https {
                Some(_) => (&b""[..], self.public.text.as_bytes(), rest),
                None => (&b"//"[..], self.public.host.as_bytes(), rest),
            },
            None if !self.prefix.is_empty() && text.starts_with(b"/") && !text.starts_with(b"//") => {
                (&b""[..], &b""[..], text)
            }
            _ => return,
        };
        // A service that goes by `X-Forwarded-Prefix` has put it there itself.
        let prefix = if below(rest, self.prefix.as_bytes()) { "" } else { &self.prefix };
        replace(value, [before, slashes, public, prefix.as_bytes(), rest, after].concat());
    }
}

/// Whether a path begins with another one.
fn below(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|byte| b"/?#".contains(byte)))
}

/// The origin of a tunnel's public URL, and the path below which the tunnel is.
fn split_base(url: &str) -> Option<(&str, &str)> {
    let start = url.find("://")? + 3;
    let end = url.get(start..)?.find('/').map_or(url.len(), |slash| start + slash);
    let (origin, prefix) = url.split_at_checked(end)?;
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    prefix.bytes().all(is_path).then_some((origin, prefix))
}

/// The upstream's side of the translation.
#[derive(Clone, Debug)]
struct Local {
    /// What the upstream is told.
    origin: Origin,
    /// The names and ports that the upstream may call itself by.
    selves: Vec<(Vec<u8>, u16)>,
}

impl Local {
    /// `host` is what the upstream is told. The upstream may know itself by its address all the
    /// same.
    fn new(upstream: &UpstreamAddr, host: &str) -> Option<Self> {
        let scheme = if upstream.scheme() == Scheme::Https { "https" } else { "http" };
        let origin = Origin::parse(&format!("{scheme}://{host}"))?;
        let own = Origin::parse(&format!("{scheme}://{}", upstream.host_header()))?;
        let mut selves = vec![(origin.name.clone(), origin.port)];
        if upstream.is_loopback() {
            let names = [&b"localhost"[..], b"127.0.0.1", b"[::1]"];
            selves.extend(names.map(|name| (name.to_vec(), own.port)));
        }
        selves.push((own.name, own.port));
        Some(Self { origin, selves })
    }

    /// Whether a URL names the upstream. Its scheme may be either: a service that is told
    /// `X-Forwarded-Proto: https` says `https://localhost:3000`.
    fn is(&self, url: &Url<'_>) -> bool {
        let told = default_port(self.origin.https);
        self.selves.iter().any(|(name, port)| {
            name.eq_ignore_ascii_case(url.name)
                && match url.port {
                    Some(written) => written == *port,
                    None => *port == told || Some(*port) == url.https.map(default_port),
                }
        })
    }
}

/// An origin (RFC 6454, section 4) in the forms that headers need.
#[derive(Clone, Debug)]
struct Origin {
    /// `https://host[:port]`.
    text: HeaderValue,
    /// `host[:port]`.
    host: HeaderValue,
    name: Vec<u8>,
    port: u16,
    https: bool,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (url, rest) = Url::split(text.as_bytes())?;
        let https = url.https?;
        let (_, host) = text.split_once("//")?;
        rest.is_empty().then_some(Self {
            text: HeaderValue::from_str(text).ok()?,
            host: HeaderValue::from_str(host).ok()?,
            name: url.name.to_vec(),
            port: url.port.unwrap_or(default_port(https)),
            https,
        })
    }

    fn is(&self, url: &Url<'_>) -> bool {
        url.https == Some(self.https)
            && url.port.unwrap_or(default_port(self.https)) == self.port
            && self.name.eq_ignore_ascii_case(url.name)
    }
}

/// The beginning of an absolute or protocol-relative URL.
#[derive(Debug)]
struct Url<'a> {
    /// None where the scheme is left out: `//host/`.
    https: Option<bool>,
    /// With the brackets of an IPv6 address.
    name: &'a [u8],
    port: Option<u16>,
}

impl<'a> Url<'a> {
    /// The URL's origin and the rest of it, which is empty or starts with `/`, `?` or `#`. None for
    /// everything that is not plainly an HTTP URL, as with a user name: what is not understood is
    /// not touched.
    fn split(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (https, text) = if let Some(text) = strip_prefix(text, b"https://") {
            (Some(true), text)
        } else if let Some(text) = strip_prefix(text, b"http://") {
            (Some(false), text)
        } else {
            (None, strip_prefix(text, b"//")?)
        };
        let end = text.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(text.len());
        let (authority, rest) = text.split_at_checked(end)?;
        let (name, port) = split_authority(authority)?;
        Some((Self { https, name, port }, rest))
    }
}

/// `host[:port]`, in characters that a host can have.
fn split_authority(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let v6 = authority.first() == Some(&b'[');
    let end = match v6 {
        true => authority.iter().position(|byte| *byte == b']')? + 1,
        false => authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at_checked(end)?;
    let allowed = |byte: &u8| match byte {
        b'[' | b']' | b':' => v6,
        _ => byte.is_ascii_alphanumeric() || b"-._".contains(byte),
    };
    if name.is_empty() || !name.iter().all(allowed) {
        return None;
    }
    match port {
        [] => Some((name, None)),
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            Some((name, Some(str::from_utf8(digits).ok()?.parse().ok()?)))
        }
        _ => None,
    }
}

/// Where the URL stands in a `Refresh: 5; url='http://…'`, as browsers read it (HTML, "shared
/// declarative refresh steps").
fn refresh_url(value: &[u8]) -> Option<Range<usize>> {
    let separator = value.iter().position(|byte| b";,".contains(byte))?;
    let text = value.get(separator + 1..)?.trim_ascii_start();
    let text = strip_prefix(text, b"url")?.trim_ascii_start();
    let text = text.strip_prefix(b"=")?.trim_ascii_start();
    let (url, length) = match text {
        [quote @ (b'"' | b'\''), url @ ..] => (url, url.iter().position(|byte| byte == quote)),
        url => (url, None),
    };
    let start = value.len() - url.len();
    Some(start..start + length.unwrap_or(url.len()))
}

fn strip_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

/// The parts came from header values, so that together they are one; if they were not, the old
/// value stays.
fn replace(value: &mut HeaderValue, bytes: Vec<u8>) {
    if let Ok(new) = HeaderValue::from_maybe_shared(Bytes::from(bytes)) {
        *value = new;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    const PUBLIC: &str = "https://hooks.relay.example";

    fn rewriter(mode: &str, upstream: &str, public: &str) -> Rewriter {
        Rewriter::new(&mode.parse().unwrap(), &upstream.parse().unwrap(), public).unwrap()
    }

    fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
        (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    }

    fn request(rewriter: &Rewriter, name: &str, value: &str) -> String {
        let mut headers = HeaderMap::from_iter([header(name, value)]);
        rewriter.request(&mut headers);
        String::from_utf8(headers[name].as_bytes().to_vec()).unwrap()
    }

    fn response(rewriter: &Rewriter, name: &str, value: &str) -> String {
        let mut headers = vec![header(name, value)];
        rewriter.response(&mut headers);
        String::from_utf8(headers[0].1.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_option_is_read_and_checked() {
        assert_eq!("rewrite".parse(), Ok(HostHeader::Rewrite));
        assert_eq!("preserve".parse(), Ok(HostHeader::Preserve));
        for host in ["app.test", "app.test:8080", "[::1]:3000", "127.0.0.1"] {
            assert_eq!(host.parse(), Ok(HostHeader::Value(HeaderValue::from_static(host))));
        }
        for bad in ["", "a b", "http://app.test", "app.test/x", "a:b", "a:99999", "a\r\nX: y", "u@h"] {
            assert!(bad.parse::<HostHeader>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_mode_has_its_host() {
        for (mode, upstream, host) in [
            ("rewrite", "3000", "localhost:3000"),
            ("rewrite", "80", "localhost"),
            ("rewrite", "https://app.test", "app.test"),
            ("rewrite", "[::1]:3000", "[::1]:3000"),
            ("rewrite", "unix:/run/app.sock", "localhost"),
            ("preserve", "3000", "hooks.relay.example"),
            ("app.test:81", "3000", "app.test:81"),
        ] {
            assert_eq!(rewriter(mode, upstream, PUBLIC).host(&"hooks.relay.example".into()), host);
        }
        assert_eq!(rewriter("preserve", "3000", PUBLIC).host(&"not\r\na host".into()), "hooks.relay.example");
    }

    #[test]
    fn only_the_public_origin_is_translated_in_requests() {
        let plain = rewriter("rewrite", "3000", PUBLIC);
        let port = rewriter("rewrite", "3000", "https://hooks.relay.localhost:8443/");
        let named = rewriter("app.test", "https://10.0.0.1:9443", PUBLIC);
        for (rewriter, name, value, expected) in [
            (&plain, "origin", "https://hooks.relay.example", "http://localhost:3000"),
            (&plain, "origin", "https://hooks.relay.example:443", "http://localhost:3000"),
            (&plain, "origin", "HTTPS://Hooks.Relay.Example", "http://localhost:3000"),
            (&plain, "origin", "http://hooks.relay.example", ""),
            (&plain, "origin", "https://hooks.relay.example:8443", ""),
            (&plain, "origin", "https://hooks.relay.example.evil.example", ""),
            (&plain, "origin", "https://evilhooks.relay.example", ""),
            (&plain, "origin", "https://hooks.relay.example@evil.example", ""),
            (&plain, "origin", "https://hooks.relay.example/", ""),
            (&plain, "origin", "https://other.example", ""),
            (&plain, "origin", "http://localhost:3000", ""),
            (&plain, "origin", "null", ""),
            (&plain, "origin", "", ""),
            (&plain, "referer", "https://hooks.relay.example", "http://localhost:3000"),
            (&plain, "referer", "https://hooks.relay.example/a?b=c#d", "http://localhost:3000/a?b=c#d"),
            (&plain, "referer", "https://hooks.relay.example/ü", "http://localhost:3000/ü"),
            (&plain, "referer", "https://hooks.relay.example?x", "http://localhost:3000?x"),
            (&plain, "referer", "https://other.example/?https://hooks.relay.example/", ""),
            (&plain, "referer", "//hooks.relay.example/", ""),
            (&plain, "referer", "https://me@hooks.relay.example/", ""),
            (&plain, "x-origin", "https://hooks.relay.example", ""),
            (&port, "origin", "https://hooks.relay.localhost:8443", "http://localhost:3000"),
            (&port, "origin", "https://hooks.relay.localhost", ""),
            (&named, "origin", "https://hooks.relay.example", "https://app.test"),
            (&named, "referer", "https://hooks.relay.example/a", "https://app.test/a"),
        ] {
            let expected = if expected.is_empty() { value } else { expected };
            assert_eq!(request(rewriter, name, value), expected, "{name}: {value}");
        }
        let preserve = rewriter("preserve", "3000", PUBLIC);
        assert_eq!(request(&preserve, "origin", PUBLIC), PUBLIC);
    }

    #[test]
    fn redirects_to_the_upstream_leave_as_public_ones() {
        let plain = rewriter("rewrite", "3000", PUBLIC);
        let port = rewriter("rewrite", "3000", "https://hooks.relay.localhost:8443");
        let eighty = rewriter("rewrite", "http://127.0.0.1", PUBLIC);
        let remote = rewriter("rewrite", "https://app.test:9443", PUBLIC);
        let named = rewriter("app.test", "3000", PUBLIC);
        for (rewriter, value, expected) in [
            (&plain, "http://localhost:3000/a?b#c", "https://hooks.relay.example/a?b#c"),
            (&plain, "http://localhost:3000", "https://hooks.relay.example"),
            (&plain, "HTTP://LOCALHOST:3000/", "https://hooks.relay.example/"),
            (&plain, "http://127.0.0.1:3000/", "https://hooks.relay.example/"),
            (&plain, "http://[::1]:3000/", "https://hooks.relay.example/"),
            (&plain, "https://localhost:3000/", "https://hooks.relay.example/"),
            (&plain, "//localhost:3000/a", "//hooks.relay.example/a"),
            (&plain, "http://localhost:3000/\u{fc}", "https://hooks.relay.example/\u{fc}"),
            (&plain, "http://localhost:3001/", ""),
            (&plain, "http://localhost/", ""),
            (&plain, "http://localhost:3000@evil.example/", ""),
            (&plain, "http://me@localhost:3000/", ""),
            (&plain, "http://localhost:3000.evil.example/", ""),
            (&plain, "http://notlocalhost:3000/", ""),
            (&plain, "http:\\\\localhost:3000/", ""),
            (&plain, "https://hooks.relay.example/a", ""),
            (&plain, "https://other.example/?next=http://localhost:3000/", ""),
            (&plain, "/a?http://localhost:3000", ""),
            (&plain, "a", ""),
            (&plain, "", ""),
            (&plain, "myapp://localhost:3000/", ""),
            (&port, "http://localhost:3000/a", "https://hooks.relay.localhost:8443/a"),
            (&port, "//localhost:3000/a", "//hooks.relay.localhost:8443/a"),
            (&eighty, "http://localhost/a", "https://hooks.relay.example/a"),
            (&eighty, "http://127.0.0.1:80/a", "https://hooks.relay.example/a"),
            (&eighty, "https://127.0.0.1/a", "https://hooks.relay.example/a"),
            (&eighty, "//127.0.0.1/a", "//hooks.relay.example/a"),
            (&remote, "https://app.test:9443/a", "https://hooks.relay.example/a"),
            (&remote, "https://app.test/a", ""),
            (&remote, "https://localhost:9443/a", ""),
            (&named, "http://app.test/a", "https://hooks.relay.example/a"),
            (&named, "https://app.test/a", "https://hooks.relay.example/a"),
            (&named, "http://localhost:3000/a", "https://hooks.relay.example/a"),
            (&named, "http://app.test:3000/a", ""),
        ] {
            let expected = if expected.is_empty() { value } else { expected };
            assert_eq!(response(rewriter, "location", value), expected);
            assert_eq!(response(rewriter, "content-location", value), expected);
            assert_eq!(response(rewriter, "link", value), value);
        }
        let preserve = rewriter("preserve", "3000", PUBLIC);
        let value = "http://localhost:3000/";
        assert_eq!(response(&preserve, "location", value), value);
    }

    #[test]
    fn refresh_is_a_redirect_too() {
        let rewriter = rewriter("rewrite", "3000", PUBLIC);
        for (value, expected) in [
            ("0; url=http://localhost:3000/a", "0; url=https://hooks.relay.example/a"),
            ("5;URL = 'http://localhost:3000'", "5;URL = 'https://hooks.relay.example'"),
            ("5, url=\"http://localhost:3000/a\" x", "5, url=\"https://hooks.relay.example/a\" x"),
            ("0; url='//localhost:3000/a", "0; url='//hooks.relay.example/a"),
            ("0; url=/a", "0; url=/a"),
            ("0; url=", "0; url="),
            ("0; ur", "0; ur"),
            ("0; url='", "0; url='"),
            ("5", "5"),
        ] {
            assert_eq!(response(&rewriter, "refresh", value), expected);
        }
    }

    #[test]
    fn an_allowed_origin_is_translated_back_and_nothing_else_is() {
        let rewriter = rewriter("rewrite", "3000", PUBLIC);
        for (name, value, expected) in [
            ("access-control-allow-origin", "http://localhost:3000", PUBLIC),
            ("access-control-allow-origin", "*", "*"),
            ("access-control-allow-origin", "null", "null"),
            ("access-control-allow-origin", "http://localhost:3001", "http://localhost:3001"),
            ("access-control-allow-origin", "http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("set-cookie", "a=b; Domain=localhost", "a=b; Domain=localhost"),
            ("x-location", "http://localhost:3000", "http://localhost:3000"),
        ] {
            assert_eq!(response(&rewriter, name, value), expected, "{name}");
        }
    }

    #[test]
    fn a_public_url_is_an_origin() {
        let upstream = UpstreamAddr::localhost(3000);
        for url in ["", "hooks.example", "https://", "https://a/b?c", "https://a/b\"", "https://a?b", "ftp://a", "//a"]
        {
            let error = Rewriter::new(&HostHeader::Rewrite, &upstream, url).expect_err(url);
            assert!(error.to_string().contains("https://host[:port]"));
        }
    }

    #[test]
    fn below_a_path_redirects_get_it_and_the_origin_is_everybodys() {
        let upstream = UpstreamAddr::localhost(3000);
        let public = "https://relay.example/t/hooks";
        let rewriter = Rewriter::new(&HostHeader::Rewrite, &upstream, public).unwrap();
        for (name, value, expected) in [
            ("location", "http://localhost:3000/b?c", "https://relay.example/t/hooks/b?c"),
            ("location", "http://localhost:3000", "https://relay.example/t/hooks"),
            ("location", "//127.0.0.1:3000/b", "//relay.example/t/hooks/b"),
            ("location", "/b", "/t/hooks/b"),
            ("location", "/", "/t/hooks/"),
            ("content-location", "/t/hookshot", "/t/hooks/t/hookshot"),
            ("refresh", "5; url='/b'", "5; url='/t/hooks/b'"),
            // It has been put there already.
            ("location", "/t/hooks/b", "/t/hooks/b"),
            ("location", "/t/hooks", "/t/hooks"),
            ("location", "https://localhost:3000/t/hooks?b", "https://relay.example/t/hooks?b"),
            ("location", "b", "b"),
            ("location", "?b", "?b"),
            ("location", "https://elsewhere.example/b", "https://elsewhere.example/b"),
            ("location", "//elsewhere.example/b", "//elsewhere.example/b"),
            ("access-control-allow-origin", "http://localhost:3000", "http://localhost:3000"),
        ] {
            assert_eq!(response(&rewriter, name, value), expected, "{name}: {value}");
        }
        for name in ["origin", "referer"] {
            assert_eq!(request(&rewriter, name, "https://relay.example"), "https://relay.example");
        }
        let preserve = Rewriter::new(&HostHeader::Preserve, &upstream, public).unwrap();
        assert_eq!(response(&preserve, "location", "/b"), "/b");
        let host = Rewriter::new(&HostHeader::Rewrite, &upstream, "https://hooks.example").unwrap();
        assert_eq!(response(&host, "location", "/b"), "/b");
    }
}
