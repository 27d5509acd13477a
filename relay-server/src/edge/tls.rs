//! TLS for the public side. Where a tunnel lets in only those whom an authority of its owner's has given a certificate, the
//! handshake for its host asks for one.
//!
//! It only asks: who shows none, or another's, gets an answer that says so, and not a broken handshake. What is shown is
//! judged with each request, by the rules that hold then; see [`caller`](super::caller). Handshakes that ask are never
//! resumed: nothing that was shown once is believed later, and nobody keeps a session in which nothing was asked.

use std::io;
use std::sync::Arc;

use relay_protocol::access::Authority;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::access;
use super::caller::{Caller, Shown, verifier};
use crate::Shared;
use crate::certs::{Certificates, PROOF};
use crate::tunnels::Found;

/// Most certificates that a client may show, of which it takes two or three, and most bytes of all of them: they are kept
/// for as long as its connection, and whoever asks may make them up.
const MOST_SHOWN: usize = 8;
const MOST_SHOWN_BYTES: usize = 16 * 1024;

/// What is spoken behind a handshake (RFC 7301, section 6). Whoever names none of these is sent away, and shops that call with
/// curl's HTTP/1.0 name nothing but that.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// What handshakes are made with.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    certificates: Arc<Certificates>,
    /// For all hosts whose tunnels ask for no certificate.
    usual: Arc<ServerConfig>,
}

impl Tls {
    /// HTTP/2 and HTTP/1.1, and AES-128 first, which is as safe here and cheaper with every handshake.
    ///
    /// # Errors
    /// The cryptography has none of what it takes.
    pub(crate) fn new(certificates: Arc<Certificates>) -> Result<Self, rustls::Error> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| {
            let preferred = [
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.suite(),
                aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256.suite(),
                aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256.suite(),
            ];
            !preferred.contains(&suite.suite())
        });
        let provider = Arc::new(provider);
        let mut usual = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificates.clone());
        usual.alpn_protocols = PROTOCOLS.iter().chain([&PROOF]).map(|name| name.to_vec()).collect();
        // Whoever calls from a server puts AES-256 first, and has the instructions for both.
        usual.ignore_client_order = true;
        usual.ticketer = aws_lc_rs::Ticketer::new()?;
        usual.send_tls13_tickets = 1;
        Ok(Self { provider, certificates, usual: Arc::new(usual) })
    }

    /// Takes a connection, and what its client shows of itself.
    ///
    /// # Errors
    /// The handshake has failed.
    pub(super) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        shared: &Shared,
        connection: T,
    ) -> io::Result<(TlsStream<T>, Caller)> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), connection).await?;
        let host = host(&start.client_hello());
        let authorities = match &host {
            Some(host) => authorities(shared, host).await,
            None => None,
        };
        let (host, authorities) = match (host, authorities) {
            (Some(host), Some(authorities)) => (host, authorities),
            (host, _) => {
                let caller = host.map_or(Caller::Unnamed, |host| Caller::Unasked(host.into()));
                return Ok((start.into_stream(self.usual.clone()).await?, caller));
            }
        };
        let config = self.asking(&authorities).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let tls = start.into_stream(Arc::new(config)).await?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = Shown::new(host, chain.iter().map(|one| one.clone().into_owned()).collect());
        Ok((tls, Caller::Asked(Arc::new(shown))))
    }

    /// The configuration of a handshake that asks for a certificate of these authorities.
    fn asking(&self, authorities: &[Authority]) -> Result<ServerConfig, rustls::Error> {
        let asking = Asking(verifier(authorities, self.provider.clone())?);
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(asking))
            .with_cert_resolver(self.certificates.clone());
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Whom a handshake is for, in lower case. An authority that looks for a proof is nobody's caller.
fn host(hello: &ClientHello<'_>) -> Option<String> {
    let is_proof = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == PROOF));
    hello.server_name().filter(|_| !is_proof).map(str::to_ascii_lowercase)
}

/// Whose certificates are asked for at that host; none where none are.
async fn authorities(shared: &Shared, host: &str) -> Option<Vec<Authority>> {
    let name = shared.name_of(host)?;
    if shared.has_predecessor() && !matches!(shared.registry.find(name), Found::Tunnel(_)) {
        // Its client is about to move here from another process, and says only then what is to be asked for.
        let limits = shared.limits();
        shared.registry.wait(name, Instant::now() + limits.handshake / 2, limits.connections as u64).await;
    }
    let access = access::of(shared, name)?;
    Some(access.client_ca.clone()).filter(|authorities| !authorities.is_empty())
}

/// Has clients prove that they have the keys of their certificates, and leaves it to others what those are worth.
#[derive(Debug)]
struct Asking(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whose certificates are let in is nothing for strangers.
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bytes: usize = others.iter().map(|one| one.len()).sum();
        if others.len() >= MOST_SHOWN || own.len() + bytes > MOST_SHOWN_BYTES {
            let text =
                format!("a client shows more than {MOST_SHOWN} certificates, or {MOST_SHOWN_BYTES} bytes of them");
            return Err(rustls::Error::General(text));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
