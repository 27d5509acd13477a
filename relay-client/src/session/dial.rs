//! Connecting to the relay: from its URL to an encrypted stream.
//!
//! ```text
//!   RelayUrl ─► Target (who to trust, where to dial, which proxy; made once) ─► dial() ─► Stream
//!                                                                    │
//!                     resolve ─► race the addresses ─► CONNECT (behind a proxy) ─► TLS
//! ```
//!
//! A [`Target`] is kept for the life of the program: its TLS configuration remembers the relay's
//! session tickets, so that dialling again costs one round trip less.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use relay_protocol::gather::Gathered;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::platform::tune;
use crate::upstream::address::{AddressError, Host, HostPort};

/// Resolving, connecting, the proxy's answer and the TLS handshake together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// When the next address is tried while one is still silent (RFC 8305, section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The longest answer of a proxy to CONNECT that is read.
const PROXY_HEAD_MAX: usize = 16 * 1024;

/// Where a relay is: `https://relay.example.com[:port]`. Plain `http://` is taken only on loopback,
/// because a token would travel readable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayUrl {
    tls: bool,
    at: HostPort,
}

impl RelayUrl {
    /// The host: what the certificate must be valid for.
    pub fn host(&self) -> &Host {
        &self.at.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.at.port
    }

    /// The `Host` of requests to the relay.
    pub fn authority(&self) -> String {
        match (self.tls, self.at.port) {
            (true, 443) | (false, 80) => self.at.host.to_string(),
            _ => self.at.to_string(),
        }
    }
}

impl FromStr for RelayUrl {
    type Err = RelayUrlError;

    fn from_str(input: &str) -> Result<Self, RelayUrlError> {
        let url = Self::of_any_server(input)?;
        if !url.tls && !url.at.host.is_loopback() {
            return Err(RelayUrlError::Plain { at: url.at });
        }
        Ok(url)
    }
}

impl RelayUrl {
    /// As it is parsed, and plain HTTP may lead anywhere: for requests that carry no token.
    ///
    /// # Errors
    /// What is no URL of HTTP, or has more than a host and a port in it.
    pub(crate) fn of_any_server(input: &str) -> Result<Self, RelayUrlError> {
        let (tls, rest) = match input.split_once("://") {
            None => (true, input),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some(_) => return Err(RelayUrlError::Scheme { input: input.to_owned() }),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let at = HostPort::parse(rest, Some(if tls { 443 } else { 80 }), input)?;
        Ok(Self { tls, at })
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// Why a relay's URL was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayUrlError {
    /// Another scheme than `https`.
    #[error("{input:?} is not the URL of a relay; write https://relay.example.com")]
    Scheme {
        /// What was typed.
        input: String,
    },
    /// Plain HTTP to another machine.
    #[error("http://{at} would send the token readable over the network; write https://{at}")]
    Plain {
        /// The relay's host and port.
        at: HostPort,
    },
    /// The host or port is not one.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Who may vouch for the relay's certificate.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// The CAs that this machine trusts.
    #[default]
    System,
    /// These CAs and no others.
    Only(Vec<CertificateDer<'static>>),
}

impl Trust {
    /// The CAs of a PEM file, and no others: who runs a private CA does not want a public one to be
    /// able to stand in.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds no certificate.
    pub fn only(file: &Path) -> Result<Self, TargetError> {
        let error = |reason: String| TargetError::CaFile { file: file.to_owned(), reason };
        let certificates = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|reason| error(reason.to_string()))?;
        if certificates.is_empty() {
            return Err(error("it holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned()));
        }
        Ok(Self::Only(certificates))
    }
}

/// A relay, and the way to it.
#[derive(Clone, Debug)]
pub struct Target {
    url: RelayUrl,
    /// Dialled instead of what the URL names.
    addr: Option<HostPort>,
    proxies: Option<Arc<Matcher>>,
    tls: Option<Tls>,
    /// Who is there.
    peer: Peer,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    private: bool,
}

impl Target {
    /// The way to the relay at `url`, through a proxy where the environment names one.
    ///
    /// Reads the machine's trusted CAs where they are needed, which takes a few milliseconds.
    ///
    /// # Errors
    /// Where this machine has no trusted CAs, or one that was given is not a CA.
    pub fn new(url: RelayUrl, trust: &Trust) -> Result<Self, TargetError> {
        let tls = if url.tls { Some(Tls::new(&url, trust)?) } else { None };
        Ok(Self { url, addr: None, proxies: proxies_of_environment().map(Arc::new), tls, peer: Peer::Relay })
    }

    /// Says in messages that somebody else than the relay is there.
    #[must_use]
    pub(crate) fn naming(mut self, peer: Peer) -> Self {
        self.peer = peer;
        self
    }

    /// Dials this address instead of the one that the URL names. The certificate must still be
    /// valid for the URL's host.
    #[must_use]
    pub fn dialling(mut self, addr: Option<HostPort>) -> Self {
        self.addr = addr;
        self
    }

    /// The address that is dialled instead of what the URL names.
    pub(crate) fn addr(&self) -> Option<&HostPort> {
        self.addr.as_ref()
    }

    /// Dials without a proxy, whatever the environment says.
    #[must_use]
    pub fn unproxied(mut self) -> Self {
        self.proxies = None;
        self
    }

    /// The way to another URL with the same trust and by the same detours, as to a tunnel of this relay.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub(crate) fn to(&self, url: RelayUrl) -> Result<Self, TargetError> {
        let tls = match &self.tls {
            _ if !url.tls => None,
            Some(tls) => Some(Tls { name: server_name(&url)?, ..tls.clone() }),
            None => Some(Tls::new(&url, &Trust::System)?),
        };
        Ok(Self { url, tls, ..self.clone() })
    }

    /// The relay's URL.
    pub fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Connects, within 10 s in all. Dropping the future closes what it had opened.
    ///
    /// # Errors
    /// The first thing that stood in the way; see [`DialError`].
    pub async fn dial(&self) -> Result<Stream, DialError> {
        self.dial_by(Instant::now() + DIAL_TIMEOUT).await
    }

    async fn dial_by(&self, deadline: Instant) -> Result<Stream, DialError> {
        let at = self.addr.as_ref().unwrap_or(&self.url.at);
        let tcp = match self.proxy(at)? {
            Some(proxy) => proxy.connect(at, deadline).await?,
            None => connect(self.peer, at, deadline).await?,
        };
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(tcp)) };
        match timeout_at(deadline, tls.connector.connect(tls.name.clone(), Gathered::new(tcp))).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => Err(tls.explain(self.peer, at, error)),
            Err(_) => Err(DialError::Silent { peer: self.peer, at: at.clone() }),
        }
    }

    /// A relay on this machine is never behind a proxy.
    fn proxy(&self, at: &HostPort) -> Result<Option<Proxy>, DialError> {
        if at.host.is_loopback() || self.url.at.host.is_loopback() {
            return Ok(None);
        }
        let uri = Uri::builder().scheme("https").authority(self.url.at.to_string()).path_and_query("/");
        let (Some(proxies), Ok(uri)) = (&self.proxies, uri.build()) else { return Ok(None) };
        let Some(found) = proxies.intercept(&uri) else { return Ok(None) };
        let refused = || DialError::ProxyScheme { proxy: found.uri().to_string() };
        if found.uri().scheme_str() != Some("http") {
            return Err(refused());
        }
        let authority = found.uri().authority().map(ToString::to_string).unwrap_or_default();
        let at = HostPort::parse(&authority, Some(80), &authority).map_err(|_| refused())?;
        Ok(Some(Proxy { at, authorization: found.basic_auth().cloned() }))
    }
}

fn server_name(url: &RelayUrl) -> Result<ServerName<'static>, TargetError> {
    Ok(match &url.at.host {
        Host::Ip(ip) => ServerName::from(*ip),
        Host::Name(name) => ServerName::try_from(name.clone())?,
    })
}

impl Tls {
    fn new(url: &RelayUrl, trust: &Trust) -> Result<Self, TargetError> {
        let name = server_name(url)?;
        let provider = Arc::new(crypto_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(trust)?)
            .with_no_client_auth();
        // The session starts as an HTTP/1.1 upgrade.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let private = matches!(trust, Trust::Only(_));
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, private })
    }

    fn explain(&self, peer: Peer, at: &HostPort, error: io::Error) -> DialError {
        let name = self.name.to_str().into_owned();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => {
                let reason = Distrust::new(peer, reason, self.private);
                DialError::Untrusted { peer, name, reason, source: error }
            }
            Some(rustls::Error::InvalidMessage(_)) => DialError::NotTls { at: at.clone(), source: error },
            _ => DialError::Handshake { at: at.clone(), source: error },
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).field("private", &self.private).finish_non_exhaustive()
    }
}

/// aws-lc with AES-128-GCM first: it costs a tenth less per connection than AES-256-GCM, and the
/// relay takes the first suite that it knows.
pub(crate) fn crypto_provider() -> CryptoProvider {
    use rustls::CipherSuite as Suite;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            Suite::TLS13_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

fn roots(trust: &Trust) -> Result<RootCertStore, TargetError> {
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::Only(certificates) => {
            for certificate in certificates {
                roots.add(certificate.clone()).map_err(TargetError::Ca)?;
            }
        }
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            // A machine's store may hold certificates that no current library accepts.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
                return Err(TargetError::NoRoots { reason });
            }
        }
    }
    Ok(roots)
}

/// `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case, as curl reads them.
fn proxies_of_environment() -> Option<Matcher> {
    // The matcher applies `*` to names only; a relay may be named by its address.
    let none = ["NO_PROXY", "no_proxy"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .any(|list| list.split(',').any(|entry| entry.trim() == "*"));
    (!none).then(Matcher::from_env)
}

/// An HTTP proxy that connects us by CONNECT (RFC 9110, section 9.3.6).
struct Proxy {
    at: HostPort,
    authorization: Option<HeaderValue>,
}

impl Proxy {
    async fn connect(&self, to: &HostPort, deadline: Instant) -> Result<TcpStream, DialError> {
        let mut tcp = connect(Peer::Proxy, &self.at, deadline).await?;
        let failed = |source| DialError::Proxy { proxy: self.at.clone(), source };
        match timeout_at(deadline, self.ask(&mut tcp, to)).await {
            Ok(Ok(200..=299)) => Ok(tcp),
            Ok(Ok(status)) => Err(DialError::ProxyRefused { proxy: self.at.clone(), status }),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(DialError::Silent { peer: Peer::Proxy, at: self.at.clone() }),
        }
    }

    async fn ask(&self, tcp: &mut TcpStream, to: &HostPort) -> io::Result<u16> {
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
        if let Some(value) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        tcp.write_all(&request).await?;

        let mut head = Vec::with_capacity(512);
        loop {
            if tcp.read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                let status = connect_status(&head).ok_or_else(|| invalid("its answer is not HTTP"))?;
                // The relay waits for our first byte: what follows here was never sent by it. A
                // refusal may have a body.
                return match status {
                    200..=299 if head.len() > end + 4 => Err(invalid("it sent bytes of its own")),
                    status => Ok(status),
                };
            }
            if head.len() > PROXY_HEAD_MAX {
                return Err(invalid("its answer has no end"));
            }
        }
    }
}

/// The status of `HTTP/1.1 200 Connection established`.
fn connect_status(head: &[u8]) -> Option<u16> {
    let line = str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A TCP connection to a host: the first of its addresses that answers.
async fn connect(peer: Peer, at: &HostPort, deadline: Instant) -> Result<TcpStream, DialError> {
    let addresses = match (at.addresses(), &at.host) {
        (None, Host::Name(name)) => {
            let unresolved = |source| DialError::Resolve { peer, name: name.clone(), source };
            match timeout_at(deadline, tokio::net::lookup_host((name.as_str(), at.port))).await {
                Ok(Ok(found)) => alternate(found),
                Ok(Err(error)) => return Err(unresolved(error)),
                Err(_) => return Err(unresolved(io::ErrorKind::TimedOut.into())),
            }
        }
        (known, _) => known.unwrap_or_default(),
    };
    let tcp =
        race(&addresses, deadline).await.map_err(|attempts| DialError::Connect { peer, at: at.clone(), attempts })?;
    // A socket that cannot be tuned still works.
    if let Err(error) = tune(&tcp) {
        tracing::debug!(%error, "socket options");
    }
    Ok(tcp)
}

/// The families in turn, starting with the resolver's first choice: where one family leads
/// nowhere, its addresses do not all have to be tried first (RFC 8305, section 4).
fn alternate(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found: Vec<_> = found.collect();
    found.dedup();
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    std::iter::from_fn(|| Some([first.next(), second.next()]))
        .take_while(|pair| pair.iter().any(Option::is_some))
        .flatten()
        .flatten()
        .collect()
}

/// Starts with the first address and adds the next one when an attempt fails or 250 ms pass.
/// Whichever connects first wins; otherwise the result says what became of each address.
async fn race(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Vec<(SocketAddr, io::Error)>> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(async move { (address, TcpStream::connect(address).await) });
        } else if attempts.is_empty() {
            return Err(failed);
        }
        tokio::select! {
            Some((address, result)) = attempts.next() => match result {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failed.push((address, error)),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
            () = tokio::time::sleep_until(deadline) => {
                let silent = |address: &SocketAddr| !failed.iter().any(|(failed, _)| failed == address);
                let silent: Vec<_> = addresses.iter().copied().filter(silent).collect();
                failed.extend(silent.into_iter().map(|address| (address, io::ErrorKind::TimedOut.into())));
                return Err(failed);
            }
        }
    }
}

/// A connection to the relay.
#[derive(Debug)]
pub enum Stream {
    /// Encrypted.
    Tls(Box<TlsStream<Gathered<TcpStream>>>),
    /// Readable; on loopback only.
    Plain(TcpStream),
}

impl Stream {
    /// The connection below TLS.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tls(stream) => stream.get_ref().0.get_ref(),
            Self::Plain(stream) => stream,
        }
    }
}

/// Calls the method of whichever stream it is.
macro_rules! either {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tls(boxed) => {
                let $stream = Pin::new(&mut **boxed);
                $call
            }
            Stream::Plain(plain) => {
                let $stream = Pin::new(plain);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

/// Whom we connect to; in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The relay itself.
    Relay,
    /// The proxy that the environment names.
    Proxy,
    /// Who sends webhooks, and publishes keys.
    Provider,
    /// Whom we send webhooks to.
    Server,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "the relay",
            Self::Proxy => "the proxy (of HTTPS_PROXY or ALL_PROXY)",
            Self::Provider => "the provider",
            Self::Server => "the server",
        })
    }
}

/// Why a [`Target`] could not be made. Nothing has been sent yet, and trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The CA file cannot be used.
    #[error("cannot use the CA file {}: {reason}", file.display())]
    CaFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate that was given is not one of a CA.
    #[error("a certificate of the CA file cannot be used as a CA: {0}")]
    Ca(#[source] rustls::Error),
    /// This machine trusts nobody.
    #[error(
        "this machine has no trusted CAs ({reason}); install them (on Debian: the package ca-certificates), or name \
         the relay's own with --relay-ca FILE"
    )]
    NoRoots {
        /// What looking for them said.
        reason: String,
    },
    /// No certificate can be valid for the relay's host.
    #[error("the relay's host cannot stand in a certificate: {0}")]
    Name(#[from] InvalidDnsNameError),
    /// The TLS library refused its settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why the relay could not be reached. All of these may pass: the caller decides how long to try.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("could not resolve {name}, the host of {peer}: {source}; is the name right, and this machine online?")]
    Resolve {
        /// Whose name it is.
        peer: Peer,
        /// The name.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address let us in.
    #[error("could not connect to {peer} at {at}: {}", Attempts(attempts))]
    Connect {
        /// Who did not answer.
        peer: Peer,
        /// Where it should be.
        at: HostPort,
        /// What became of each address.
        attempts: Vec<(SocketAddr, io::Error)>,
    },
    /// Connected, and then nothing.
    #[error("{peer} at {at} accepted the connection and then did not answer in time")]
    Silent {
        /// Who did not answer.
        peer: Peer,
        /// Where it is.
        at: HostPort,
    },
    /// The certificate is not to be trusted.
    #[error("the certificate that {peer} showed for {name} is not to be trusted: {reason}")]
    Untrusted {
        /// Who showed it.
        peer: Peer,
        /// The name it should be valid for.
        name: String,
        /// What is wrong with it, and what to do.
        reason: Distrust,
        /// The handshake's error.
        source: io::Error,
    },
    /// The other side does not speak TLS.
    #[error("{at} does not speak TLS; is it an HTTPS port?")]
    NotTls {
        /// Where we connected to.
        at: HostPort,
        /// The handshake's error.
        source: io::Error,
    },
    /// The TLS handshake failed for another reason.
    #[error("the TLS handshake with {at} failed: {source}")]
    Handshake {
        /// Where we connected to.
        at: HostPort,
        /// The handshake's error.
        source: io::Error,
    },
    /// The proxy is not an HTTP proxy.
    #[error(
        "the proxy {proxy} is of a kind that is not supported; name an http:// one in HTTPS_PROXY, or the host in \
         NO_PROXY to go without"
    )]
    ProxyScheme {
        /// The proxy's URL, without its password.
        proxy: String,
    },
    /// The proxy does not let us through.
    #[error("the proxy {proxy} refused to connect us (status {status}){}", match status {
        407 => "; put its user and password into HTTPS_PROXY, as in http://user:password@host:port",
        _ => "",
    })]
    ProxyRefused {
        /// The proxy.
        proxy: HostPort,
        /// The HTTP status of its answer.
        status: u16,
    },
    /// The proxy failed to answer.
    #[error("the proxy {proxy} failed: {source}")]
    Proxy {
        /// The proxy.
        proxy: HostPort,
        /// What went wrong.
        source: io::Error,
    },
}

/// What is wrong with a certificate, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distrust(String);

impl Distrust {
    fn new(peer: Peer, reason: &CertificateError, private: bool) -> Self {
        use CertificateError as Reason;
        Self(match reason {
            Reason::UnknownIssuer | Reason::BadSignature if peer != Peer::Relay => {
                "no CA that this machine trusts has issued it".to_owned()
            }
            _ if peer != Peer::Relay => reason.to_string(),
            // A CA that was made anew under its old name shows as a bad signature.
            Reason::UnknownIssuer | Reason::BadSignature if private => {
                "it was not issued by the CA that was given (--relay-ca, RELAY_CA_FILE)".to_owned()
            }
            Reason::UnknownIssuer | Reason::BadSignature => {
                "no CA that this machine trusts has issued it; if the relay has a CA of its own, name its certificate \
                 with --relay-ca FILE"
                    .to_owned()
            }
            Reason::NotValidForName | Reason::NotValidForNameContext { .. } => {
                format!("{reason}; check the host of --relay")
            }
            Reason::Expired
            | Reason::ExpiredContext { .. }
            | Reason::NotValidYet
            | Reason::NotValidYetContext { .. } => {
                format!("{reason}; check this machine's clock, then the relay's certificate")
            }
            _ => reason.to_string(),
        })
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Attempts<'a>(&'a [(SocketAddr, io::Error)]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("its name has no address");
        }
        for (index, (address, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match error.kind() {
                io::ErrorKind::ConnectionRefused => write!(f, "{separator}{address} refused")?,
                io::ErrorKind::TimedOut => write!(f, "{separator}{address} did not answer")?,
                _ => write!(f, "{separator}{address}: {error}")?,
            }
        }
        let refused = self.0.iter().all(|(_, error)| error.kind() == io::ErrorKind::ConnectionRefused);
        f.write_str(if refused { "; does it run, at that port?" } else { "; is this machine online?" })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{
        ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    };
    use tokio::{net::TcpListener, task::JoinHandle};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn relay_urls() {
        for (typed, shown, authority) in [
            ("https://relay.example.com", "https://relay.example.com", "relay.example.com"),
            ("relay.example.com", "https://relay.example.com", "relay.example.com"),
            ("HTTPS://Relay.Example.com:443/", "https://relay.example.com", "relay.example.com"),
            ("https://relay.localhost:8443", "https://relay.localhost:8443", "relay.localhost:8443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]", "[2001:db8::1]"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://relay.localhost", "http://relay.localhost", "relay.localhost"),
        ] {
            let url: RelayUrl = typed.parse().unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!((url.to_string().as_str(), url.authority().as_str()), (shown, authority));
        }
        for (typed, hint) in [
            ("http://relay.example.com", "https://relay.example.com"),
            ("wss://relay.example.com", "https://relay.example.com"),
            ("https://relay.example.com/connect", "leave out \"/connect\""),
            ("https://me:secret@relay.example.com", "user or password"),
            ("https://", "is not a host"),
            ("", "is not a host"),
        ] {
            let error = typed.parse::<RelayUrl>().expect_err(typed).to_string();
            assert!(error.contains(hint) && !error.contains("secret"), "{typed}: {error}");
        }
    }

    #[test]
    fn families_take_turns() {
        let v4 = |last: u8| SocketAddr::from(([192, 0, 2, last], 443));
        let v6 = |last: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 443));
        let found = [v6(1), v6(2), v6(3), v4(1)];
        assert_eq!(alternate(found.into_iter()), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(alternate([v4(1), v4(2), v6(1)].into_iter()), [v4(1), v6(1), v4(2)]);
        assert_eq!(alternate(std::iter::empty()), []);
    }

    /// A TLS server, its CA, and its port.
    pub(crate) struct Server {
        pub(crate) ca: Trust,
        pub(crate) port: u16,
        task: JoinHandle<()>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// One that greets.
    async fn server(name: &str) -> Server {
        serving(name, false, |_| "hello".to_owned()).await
    }

    /// One that answers the head of a request, and closes.
    pub(crate) async fn answering(name: &str, answer: impl Fn(&str) -> String + Send + 'static) -> Server {
        serving(name, true, answer).await
    }

    async fn serving(name: &str, asks: bool, answer: impl Fn(&str) -> String + Send + 'static) -> Server {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let mut head = Vec::new();
                while asks && !head.ends_with(b"\r\n\r\n") && tls.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                }
                let said = answer(&String::from_utf8_lossy(&head));
                let _ = tls.write_all(said.as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
        Server { ca: Trust::Only(vec![issuer.der().clone()]), port, task }
    }

    /// The target without the environment's proxies.
    fn target(url: &str, trust: &Trust) -> Target {
        let mut target = Target::new(url.parse().unwrap(), trust).unwrap();
        target.proxies = None;
        target
    }

    async fn greeting(target: &Target) -> (String, Stream) {
        let mut stream = target.dial().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text, stream)
    }

    #[tokio::test]
    async fn localhost_names_are_loopback_and_the_session_is_resumed() {
        let server = server("relay.localhost").await;
        let target = target(&format!("https://relay.localhost:{}", server.port), &server.ca);
        let (text, stream) = greeting(&target).await;
        assert_eq!(text, "hello");
        assert!(stream.tcp().nodelay().unwrap());
        let Stream::Tls(tls) = stream else { panic!("not encrypted") };
        let connection = tls.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));

        let (_, Stream::Tls(tls)) = greeting(&target).await else { panic!("not encrypted") };
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }

    #[tokio::test]
    async fn another_address_is_dialled_under_the_same_name() {
        let server = server("relay.example.com").await;
        let addr = format!("localhost:{}", server.port).parse().unwrap();
        let target = target("https://relay.example.com", &server.ca).dialling(Some(addr));
        assert_eq!(greeting(&target).await.0, "hello");
    }

    #[tokio::test]
    async fn a_stranger_is_not_trusted() {
        let (server, other) = (server("relay.localhost").await, server("relay.localhost").await);
        let error = |url: String, trust: Trust| async move {
            target(&url, &trust).dial().await.expect_err("must not connect").to_string()
        };
        let right = format!("https://relay.localhost:{}", server.port);
        let wrong = format!("https://other.localhost:{}", server.port);
        let message = error(right, other.ca.clone()).await;
        assert!(message.contains("relay.localhost") && message.contains("--relay-ca"), "{message}");
        let message = error(wrong, server.ca.clone()).await;
        assert!(message.contains("other.localhost") && message.contains("--relay"), "{message}");
    }

    #[tokio::test]
    async fn refusal_names_every_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let target = target(&format!("http://localhost:{port}"), &Trust::System);
        let error = target.dial().await.expect_err("nobody listens").to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} refused")), "{error}");
        assert!(error.contains(&format!("[::1]:{port}")), "{error}");
        assert!(
            error.ends_with("; does it run, at that port?") || error.ends_with("; is this machine online?"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_is_not_tls_is_named() {
        let ca = server("relay.localhost").await.ca.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("https://127.0.0.1:{port}");
        let answer = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let (tcp, _) = listener.accept().await.unwrap();
            tcp
        };
        let dial = async {
            let error = target(&url, &ca).dial().await.expect_err("plain");
            assert!(matches!(error, DialError::NotTls { .. }), "{error:?}");
            let soon = Instant::now() + Duration::from_millis(50);
            let error = target(&url, &ca).dial_by(soon).await.expect_err("silent");
            assert!(matches!(error, DialError::Silent { .. }), "{error:?}");
        };
        tokio::join!(answer, dial);
    }

    /// A proxy that answers as told, and returns what it was asked.
    async fn proxy(listener: TcpListener, answer: &str, to: u16) -> String {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            assert_ne!(tcp.read_buf(&mut asked).await.unwrap(), 0);
        }
        tcp.write_all(answer.as_bytes()).await.unwrap();
        let mut upstream = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut tcp, &mut upstream).await;
        String::from_utf8(asked).unwrap()
    }

    #[tokio::test]
    async fn a_proxy_connects_us_or_says_why_not() {
        let server = server("relay.example.com").await;
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", Ok("hello")),
            ("HTTP/1.1 407 Authenticate\r\nContent-Length: 2\r\n\r\nno", Err("user:password")),
            ("HTTP/1.1 503 Unavailable\r\n\r\n", Err("status 503")),
            ("HTTP/1.1 200 OK\r\n\r\nI am the relay", Err("bytes of its own")),
            ("SSH-2.0-OpenSSH\r\n\r\n", Err("not HTTP")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://user:p%40ss@{}", listener.local_addr().unwrap());
            let mut target = target("https://relay.example.com:8443", &server.ca);
            target.proxies = Some(Arc::new(Matcher::builder().all(url).build()));
            let dial = async {
                let mut stream = target.dial().await.map_err(|error| error.to_string())?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                Ok::<_, String>(text)
            };
            let (asked, result) = tokio::join!(proxy(listener, answer, server.port), dial);
            assert!(asked.starts_with("CONNECT relay.example.com:8443 HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n"), "{asked}");
            match (result, expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(hint)) => {
                    assert!(error.contains(hint) && !error.contains("p@ss"), "{error}");
                }
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn who_is_asked_for_a_proxy() {
        let with = |url: &str, all: &str, no: &str| {
            let mut target = target(url, &Trust::Only(vec![]));
            target.proxies = Some(Arc::new(Matcher::builder().all(all).no(no).build()));
            let at = target.url.at.clone();
            target.proxy(&at).map(|proxy| proxy.map(|proxy| proxy.at.to_string()))
        };
        let (relay, proxy) = ("https://relay.example.com", "http://10.0.0.1:3128");
        assert_eq!(with(relay, proxy, "").unwrap(), Some("10.0.0.1:3128".to_owned()));
        assert_eq!(with(relay, "10.0.0.1", "").unwrap(), Some("10.0.0.1:80".to_owned()));
        assert_eq!(with(relay, proxy, "other.example,example.com").unwrap(), None);
        assert_eq!(with(relay, proxy, "*").unwrap(), None);
        assert_eq!(with("https://192.0.2.7", proxy, "192.0.2.0/24").unwrap(), None);
        assert_eq!(with("https://relay.localhost", proxy, "").unwrap(), None);
        assert_eq!(with("https://[::1]", proxy, "").unwrap(), None);
        assert_eq!(with(relay, "", "").unwrap(), None);
        let error = with(relay, "socks5://user:secret@10.0.0.1", "").expect_err("no SOCKS").to_string();
        assert!(error.contains("socks5://10.0.0.1") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_ca_file_that_holds_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Trust::only(file.path()).expect_err("empty").to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        let error = Trust::only(Path::new("/nonexistent/ca.pem")).expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
