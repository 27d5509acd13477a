//! A TLS handshake as a client makes it, which goes on where a client would not, to see what is wrong.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::patient::Patient;

/// For connection and handshake, with one address.
const WITHIN: Duration = Duration::from_secs(5);

/// What was shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) stream: TlsStream<TcpStream>,
    /// The certificates, the server's own first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Why a client would end the connection here.
    pub(super) fault: Option<rustls::Error>,
}

/// Connects to the first address that answers, and asks for `host`.
pub(super) async fn shake_hands(addresses: &[SocketAddr], host: &str, patient: &Patient) -> io::Result<Shown> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "no address is known");
    for address in addresses {
        let shown = timeout(WITHIN, one(*address, host, patient)).await;
        match shown.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))) {
            Ok(shown) => return Ok(shown),
            Err(error) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failure)
}

async fn one(address: SocketAddr, host: &str, patient: &Patient) -> io::Result<Shown> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let witness = Arc::new(Witness { judge: patient.judge.clone(), fault: Mutex::default() });
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let mut tcp = TcpStream::connect(address).await?;
    if patient.is_taken_for_a_proxy(&tcp) {
        tcp.write_all(b"PROXY UNKNOWN\r\n").await?;
    }
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let fault = witness.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(Shown { stream, chain, fault })
}

/// Notes what a client thinks of a certificate, and goes on. Whoever uses the connection looks at that first.
#[derive(Debug)]
struct Witness {
    judge: Arc<WebPkiServerVerifier>,
    fault: Mutex<Option<rustls::Error>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = judged.err();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}
