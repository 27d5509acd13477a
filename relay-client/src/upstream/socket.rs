//! Connections to the local service: TCP, TLS over TCP, and Unix sockets.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::platform;
use crate::upstream::address::{Candidates, Scheme, UpstreamAddr};

/// A connection to the local service, whatever it is made of.
pub(crate) type Socket = Box<dyn Transport>;

/// What can be read and written.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Nothing accepted a connection: each place that was tried, with what came of it.
#[derive(Debug)]
pub(crate) struct Refused(pub(super) Vec<(String, io::Error)>);

impl Refused {
    /// The service did not accept in time.
    pub(crate) fn slow(addr: &UpstreamAddr) -> Self {
        Self::one(addr, io::Error::new(io::ErrorKind::TimedOut, "did not accept a connection in time"))
    }

    /// The service is there, and speaks something else than TLS.
    pub(crate) fn is_not_tls(&self) -> bool {
        self.0.iter().any(|(_, why)| why.kind() == io::ErrorKind::InvalidData)
    }

    fn one(addr: &UpstreamAddr, why: io::Error) -> Self {
        Self(vec![(addr.to_string(), why)])
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = |why: &io::Error| why.kind() == io::ErrorKind::ConnectionRefused;
        if self.0.iter().all(|(_, why)| refused(why)) {
            let places: Vec<_> = self.0.iter().map(|(place, _)| place.as_str()).collect();
            return write!(f, "connection refused by {}", places.join(" and "));
        }
        for (i, (place, why)) in self.0.iter().enumerate() {
            write!(f, "{}{place}: {why}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Connects to the service. `preferred` remembers which of several addresses answered, and is tried first.
pub(crate) async fn connect(addr: &UpstreamAddr, preferred: &AtomicUsize) -> Result<Socket, Refused> {
    let plain = reach(addr, preferred).await?;
    if addr.scheme() != Scheme::Https {
        return Ok(plain);
    }
    let refused = |error: &dyn fmt::Display| Refused::one(addr, io::Error::other(format!("TLS failed: {error}")));
    let host = addr.host_port().map(|at| at.host.to_string()).unwrap_or_default();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| refused(&error))?;
    let config = tls_config(addr.is_loopback()).map_err(|error| refused(&error))?;
    match TlsConnector::from(config).connect(name, plain).await {
        Ok(tls) => Ok(Box::new(tls)),
        Err(error) if is_plain(&error) => {
            let why = "no TLS is spoken there; a service that speaks HTTP is named as http://localhost:PORT";
            Err(Refused::one(addr, io::Error::new(io::ErrorKind::InvalidData, why)))
        }
        Err(error) => Err(refused(&error)),
    }
}

/// Whether a handshake has failed because the answer to it was none.
fn is_plain(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// A connection on which nothing has been said yet, TLS neither.
pub(crate) async fn reach(addr: &UpstreamAddr, preferred: &AtomicUsize) -> Result<Socket, Refused> {
    let refused = |error| Refused::one(addr, error);
    let tcp = match addr.candidates() {
        Candidates::Socket(path) => {
            return Ok(Box::new(platform::connect_to_service(path).await.map_err(refused)?));
        }
        Candidates::Addresses(addresses) => first_of(addresses, preferred).await?,
        Candidates::Name(name, port) => {
            let found = lookup_host((name, port)).await.map_err(refused)?;
            first_of(&found.collect::<Vec<_>>(), preferred).await?
        }
    };
    // Failing to set it costs latency, not correctness.
    let _ = tcp.set_nodelay(true);
    Ok(Box::new(tcp))
}

async fn first_of(addresses: &[SocketAddr], preferred: &AtomicUsize) -> Result<TcpStream, Refused> {
    let first = preferred.load(Relaxed);
    let mut tried = Vec::new();
    for i in 0..addresses.len() {
        let at = (first + i) % addresses.len();
        let Some(address) = addresses.get(at) else { continue };
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                preferred.store(at, Relaxed);
                return Ok(tcp);
            }
            Err(error) => tried.push((address.to_string(), error)),
        }
    }
    Err(Refused(tried))
}

/// A service on this machine may have any certificate, since nobody else can be there; one elsewhere must be trusted.
fn tls_config(loopback: bool) -> Result<Arc<ClientConfig>, rustls::Error> {
    static CONFIGS: [OnceLock<Arc<ClientConfig>>; 2] = [OnceLock::new(), OnceLock::new()];
    let known = CONFIGS.get(usize::from(loopback));
    if let Some(config) = known.and_then(OnceLock::get) {
        return Ok(config.clone());
    }
    let provider = Arc::new(crate::session::dial::crypto_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = if loopback {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    let config = Arc::new(config);
    Ok(known.map_or(config.clone(), |known| known.get_or_init(|| config).clone()))
}

/// Accepts whatever certificate the service has made for itself, but checks that it holds the key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    /// A head and a body are then one system call.
    #[tokio::test]
    async fn several_slices_are_written_at_once() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let _unix = UnixListener::bind(&path).unwrap();
        for addr in [tcp.local_addr().unwrap().to_string(), format!("unix:{}", path.display())] {
            let socket = connect(&addr.parse().unwrap(), &AtomicUsize::new(0)).await.unwrap();
            assert!(socket.is_write_vectored(), "{addr}");
        }
    }
}
