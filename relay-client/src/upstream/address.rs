//! Where things are: the local service that a tunnel forwards to, and plain `HOST:PORT` pairs.
//!
//! An address is parsed once, at the edge of the program, and everything that later needs a piece
//! of it (the sockets to try, the `Host` header, the text for a person) asks the parsed value.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::platform::SOCKET_PATH_MAX;

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP over TCP.
    Http,
    /// HTTP over TLS.
    Https,
    /// Plain HTTP over a Unix domain socket.
    Unix,
}

impl Scheme {
    /// The name as it stands before the colon of an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
        }
    }

    /// The port that a URL of this scheme need not write; none for Unix sockets.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Unix => None,
        }
    }
}

/// The address of the local service: `3000`, `:3000`, `127.0.0.1:3000`, `localhost:3000`,
/// `[::1]:3000`, `http://host:port`, `https://host:port` or `unix:/path`.
///
/// A bare port means `localhost`, and so does `0.0.0.0` or `[::]`, which is what many servers
/// print: it names where they listen, not where they can be called.
///
/// `Display` gives the canonical form, with a default port left out: `http://localhost:3000`,
/// `unix:/run/app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(Place);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Tcp { tls: bool, at: HostPort, known: Vec<SocketAddr> },
    Unix(PathBuf),
}

/// Where to connect to reach an upstream; several addresses are tried in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates<'a> {
    /// Socket addresses known without asking DNS. `localhost` has two, because a service may listen
    /// on either family.
    Addresses(&'a [SocketAddr]),
    /// A host name and port still to be resolved.
    Name(&'a str, u16),
    /// The path of a Unix domain socket.
    Socket(&'a Path),
}

impl UpstreamAddr {
    /// The service on this port of this machine.
    pub fn localhost(port: u16) -> Self {
        Self::tcp(false, HostPort { host: Host::localhost(), port })
    }

    /// How the upstream is spoken to.
    pub fn scheme(&self) -> Scheme {
        match &self.0 {
            Place::Tcp { tls: false, .. } => Scheme::Http,
            Place::Tcp { tls: true, .. } => Scheme::Https,
            Place::Unix(_) => Scheme::Unix,
        }
    }

    /// The host and port; none for a Unix socket.
    pub fn host_port(&self) -> Option<&HostPort> {
        match &self.0 {
            Place::Tcp { at, .. } => Some(at),
            Place::Unix(_) => None,
        }
    }

    /// The upstream's own `Host` (RFC 9110, section 7.2): the port is left out where it is the
    /// scheme's default. A Unix socket has no name, so it is called `localhost`.
    pub fn host_header(&self) -> String {
        match &self.0 {
            Place::Tcp { at, .. } if self.scheme().default_port() == Some(at.port) => at.host.to_string(),
            Place::Tcp { at, .. } => at.to_string(),
            Place::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Where to connect, in the order to try.
    pub fn candidates(&self) -> Candidates<'_> {
        match &self.0 {
            Place::Unix(path) => Candidates::Socket(path),
            Place::Tcp { at: HostPort { host: Host::Name(name), port }, known, .. } if known.is_empty() => {
                Candidates::Name(name, *port)
            }
            Place::Tcp { known, .. } => Candidates::Addresses(known),
        }
    }

    /// Whether the upstream is certainly on this machine.
    pub fn is_loopback(&self) -> bool {
        match &self.0 {
            Place::Tcp { at, .. } => at.host.is_loopback(),
            Place::Unix(_) => true,
        }
    }

    fn tcp(tls: bool, at: HostPort) -> Self {
        let known = at.addresses().unwrap_or_default();
        Self(Place::Tcp { tls, at, known })
    }

    fn unix(path: &str, input: &str) -> Result<Self, AddressError> {
        // `unix:///run/app.sock`, as some tools write it, is `unix:/run/app.sock`.
        let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let input = input.to_owned();
        let Some(longest) = SOCKET_PATH_MAX else { return Err(AddressError::NoSockets { input }) };
        if path.is_empty() || path.len() > longest || path.contains('\0') {
            return Err(AddressError::SocketPath { input, longest });
        }
        Ok(Self(Place::Unix(PathBuf::from(path))))
    }
}

/// In a file it is a port, or a target as it is typed.
impl<'de> Deserialize<'de> for UpstreamAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port, or a target such as \"localhost:3000\"")]
        enum Target {
            Port(u16),
            Text(String),
        }
        let text = match Target::deserialize(deserializer)? {
            Target::Port(port) => port.to_string(),
            Target::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for UpstreamAddr {
    type Err = AddressError;

    fn from_str(input: &str) -> Result<Self, AddressError> {
        if let Some(path) = input.strip_prefix("unix:") {
            return Self::unix(path, input);
        }
        let (tls, place) = match input.split_once("://") {
            None => (None, input),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(false), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(true), rest),
            Some((scheme, _)) => {
                return Err(AddressError::Scheme { scheme: scheme.to_owned(), input: input.to_owned() });
            }
        };
        // Only a URL has a default port. Without a scheme, `myapp` is more likely a slip than port
        // 80 of a machine.
        let default_port = tls.map(|tls| if tls { 443 } else { 80 });
        let place = if tls.is_some() { place.strip_suffix('/').unwrap_or(place) } else { place };
        let mut at = match place.strip_prefix(':').unwrap_or(place) {
            port if tls.is_none() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                HostPort { host: Host::localhost(), port: parse_port(port, input)? }
            }
            _ => HostPort::parse(place, default_port, input)?,
        };
        if matches!(&at.host, Host::Ip(ip) if ip.is_unspecified()) {
            at.host = Host::localhost();
        }
        Ok(Self::tcp(tls.unwrap_or(false), at))
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Tcp { .. } => write!(f, "{}://{}", self.scheme().as_str(), self.host_header()),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host and a port, as in `relay.example.com:443` or `[::1]:8443`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The TCP port; never 0.
    pub port: u16,
}

impl HostPort {
    /// Parses `host[:port]`; a port must be written unless there is a default. `input` is what the
    /// user typed, for error messages.
    pub(crate) fn parse(text: &str, default_port: Option<u16>, input: &str) -> Result<Self, AddressError> {
        if text.contains('@') {
            return Err(AddressError::Userinfo);
        }
        if let Some(at) = text.find(['/', '?', '#']) {
            return Err(AddressError::Path { path: text.get(at..).unwrap_or_default().to_owned() });
        }
        let brackets = || AddressError::Brackets { input: input.to_owned() };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']').ok_or_else(brackets)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| brackets())?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(brackets)?) };
            (Host::Ip(ip.into()), port)
        } else {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err(brackets());
            }
            (Host::parse(host, input)?, port)
        };
        let port = match (port, default_port) {
            (Some(port), _) => parse_port(port, input)?,
            (None, Some(port)) => port,
            (None, None) => return Err(AddressError::NoPort { input: input.to_owned() }),
        };
        Ok(Self { host, port })
    }

    /// The socket addresses, where they are known without DNS: of an IP address itself, and both
    /// loopback addresses of `localhost` and every `*.localhost` (RFC 6761, section 6.3).
    pub fn addresses(&self) -> Option<Vec<SocketAddr>> {
        match &self.host {
            Host::Ip(ip) => Some(vec![SocketAddr::new(*ip, self.port)]),
            Host::Name(_) if self.host.is_loopback() => Some(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), self.port),
            ]),
            Host::Name(_) => None,
        }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(input: &str) -> Result<Self, AddressError> {
        Self::parse(input, None, input)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A host: an IP address, or a DNS name in lower case.
///
/// `Display` is the form that URLs and `Host` use, with brackets around IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A DNS name: lower case, ASCII, at most 253 bytes (RFC 1035, section 2.3.4).
    Name(String),
}

impl Host {
    fn localhost() -> Self {
        Self::Name("localhost".to_owned())
    }

    /// Anything but an IPv6 address, which only [`HostPort::parse`] can tell from its port.
    fn parse(text: &str, input: &str) -> Result<Self, AddressError> {
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        // The underscore is no hostname character, but container networks use it (`my_app:3000`).
        let ldh = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label = |label: &str| matches!(label.len(), 1..=63) && label.bytes().all(ldh);
        // A last label of digits would be an IPv4 address to some resolvers and a name to others.
        let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let last = text.rsplit('.').next().unwrap_or_default();
        if text.len() > 253 || !text.split('.').all(label) || numeric(last) {
            return Err(AddressError::Host { host: text.to_owned(), input: input.to_owned() });
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }

    /// Whether this is certainly this machine: a loopback address, `localhost`, or below
    /// `.localhost`.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_loopback(),
            Self::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn parse_port(text: &str, input: &str) -> Result<u16, AddressError> {
    // `u16::from_str` would take `+3000`.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(AddressError::Port { port: text.to_owned(), input: input.to_owned() }),
    }
}

/// Why an address was not understood. What was typed is quoted with its control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The scheme is not one that we speak.
    #[error(
        "{input:?}: cannot speak {scheme:?}; write http://, https:// or unix:/path (WebSockets pass through http://)"
    )]
    Scheme {
        /// What stood before `://`.
        scheme: String,
        /// The whole address.
        input: String,
    },
    /// No port, and no scheme that would give one.
    #[error("{input:?} has no port; write {input}:PORT, or only the port for this machine, as in 3000")]
    NoPort {
        /// The whole address.
        input: String,
    },
    /// The port is not a number from 1 to 65535.
    #[error("{input:?}: {port:?} is not a port; a port is a number from 1 to 65535")]
    Port {
        /// What stood where the port should be.
        port: String,
        /// The whole address.
        input: String,
    },
    /// The host is neither an IP address nor a DNS name.
    #[error(
        "{input:?}: {host:?} is not a host; write a name of letters, digits, hyphens and dots (an international name \
         in its xn-- form), or an IP address"
    )]
    Host {
        /// What stood where the host should be.
        host: String,
        /// The whole address.
        input: String,
    },
    /// An IPv6 address without brackets, or with something else inside them.
    #[error("{input:?}: an IPv6 address stands in brackets, as in [::1]:3000")]
    Brackets {
        /// The whole address.
        input: String,
    },
    /// A path or query: requests bring their own, and it is passed on unchanged because signatures
    /// may cover it.
    #[error("an address ends after the port: leave out {path:?}; each request's own path and query pass unchanged")]
    Path {
        /// What followed the port.
        path: String,
    },
    /// A user or password: it would end up in process lists and logs. The address is not repeated
    /// here for that reason.
    #[error("an address holds no user or password (the part before '@'); leave it out")]
    Userinfo,
    /// The path of the Unix socket is empty or too long.
    #[error("{input:?}: write unix:/path/to/socket, with a path of at most {longest} bytes")]
    SocketPath {
        /// The whole address.
        input: String,
        /// How many bytes it may have here.
        longest: usize,
    },
    /// There are no Unix sockets here.
    #[error("{input:?}: Unix sockets cannot be used on this system; let the service listen on a port, and give that")]
    NoSockets {
        /// The whole address.
        input: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn accepts_what_people_type() {
        for (typed, shown, host) in [
            ("3000", "http://localhost:3000", "localhost:3000"),
            (":3000", "http://localhost:3000", "localhost:3000"),
            ("80", "http://localhost", "localhost"),
            ("localhost:3000", "http://localhost:3000", "localhost:3000"),
            ("LocalHost:3000", "http://localhost:3000", "localhost:3000"),
            ("127.0.0.1:3000", "http://127.0.0.1:3000", "127.0.0.1:3000"),
            ("0.0.0.0:3000", "http://localhost:3000", "localhost:3000"),
            ("[::]:3000", "http://localhost:3000", "localhost:3000"),
            ("[::1]:3000", "http://[::1]:3000", "[::1]:3000"),
            ("[0:0::1]:3000", "http://[::1]:3000", "[::1]:3000"),
            ("my_app:3000", "http://my_app:3000", "my_app:3000"),
            ("http://app.test", "http://app.test", "app.test"),
            ("http://app.test:80/", "http://app.test", "app.test"),
            ("HTTPS://app.test", "https://app.test", "app.test"),
            ("https://app.test:8443", "https://app.test:8443", "app.test:8443"),
            ("https://[::1]", "https://[::1]", "[::1]"),
            ("http://localhost:443", "http://localhost:443", "localhost:443"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "localhost"),
            ("unix:///run/app.sock", "unix:/run/app.sock", "localhost"),
            ("unix:app.sock", "unix:app.sock", "localhost"),
        ] {
            let addr: UpstreamAddr = typed.parse().unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!(addr.to_string(), shown, "{typed}");
            assert_eq!(addr.host_header(), host, "{typed}");
            assert_eq!(shown.parse::<UpstreamAddr>().as_ref(), Ok(&addr), "{shown} reads back");
        }
    }

    #[test]
    fn refuses_with_a_hint() {
        for (typed, hint) in [
            ("", "is not a host"),
            (":", "is not a host"),
            ("0", "from 1 to 65535"),
            ("65536", "from 1 to 65535"),
            ("localhost", "has no port"),
            ("localhost:", "from 1 to 65535"),
            ("localhost:+80", "from 1 to 65535"),
            ("localhost:3000x", "from 1 to 65535"),
            ("::1:3000", "in brackets"),
            ("[::1", "in brackets"),
            ("[app]:1", "in brackets"),
            ("[::1]3000", "in brackets"),
            ("x[::1]:3000", "in brackets"),
            ("localhost:3000/hooks", "leave out \"/hooks\""),
            ("http://localhost:3000/hooks?a=1", "leave out \"/hooks?a=1\""),
            ("http://localhost:3000//", "leave out \"/\""),
            ("http://localhost?x", "leave out \"?x\""),
            ("http://me:secret@localhost:3000", "user or password"),
            ("http://:3000", "is not a host"),
            ("ws://localhost:3000", "WebSockets pass through"),
            ("ftp://localhost", "cannot speak"),
            ("bücher.test:80", "xn--"),
            ("a b:80", "is not a host"),
            ("a..b:80", "is not a host"),
            ("1.2.3:80", "is not a host"),
            ("300.1.1.1:80", "is not a host"),
            ("evil\u{1b}[2J:80", "\\u{1b}"),
            ("unix:", "unix:/path"),
        ] {
            let error = typed.parse::<UpstreamAddr>().expect_err(typed).to_string();
            assert!(error.contains(hint), "{typed:?}: {error}");
            assert!(!error.contains("secret"), "{error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_MAX.unwrap()));
        assert!(matches!(long.parse::<UpstreamAddr>(), Err(AddressError::SocketPath { .. })));
    }

    #[test]
    fn localhost_has_both_families() {
        let both = ["127.0.0.1:3000".parse().unwrap(), "[::1]:3000".parse().unwrap()];
        for typed in ["3000", "localhost:3000", "app.localhost:3000", "0.0.0.0:3000"] {
            let addr: UpstreamAddr = typed.parse().unwrap();
            assert_eq!(addr.candidates(), Candidates::Addresses(&both), "{typed}");
            assert!(addr.is_loopback());
        }
        let one: UpstreamAddr = "[::1]:3000".parse().unwrap();
        assert_eq!(one.candidates(), Candidates::Addresses(&both[1..]));
        let named: UpstreamAddr = "http://localhost.example:3000".parse().unwrap();
        assert_eq!(named.candidates(), Candidates::Name("localhost.example", 3000));
        assert!(!named.is_loopback());
        let socket: UpstreamAddr = "unix:/run/app.sock".parse().unwrap();
        assert_eq!(socket.candidates(), Candidates::Socket(Path::new("/run/app.sock")));
    }
}
