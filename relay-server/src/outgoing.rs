//! The few HTTP requests that the relay makes by itself: to a certificate authority, to whom the operator wants told, and to
//! whom the operator lets it ask who somebody is.
//!
//! Each has a connection of its own, because they are hours apart, and limits, because the other side is a stranger, too.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// From the first packet to the last byte of the answer.
const WITHIN: Duration = Duration::from_secs(30);

/// Of an answer's body. A chain of certificates has about 6 KiB.
pub(crate) const BODY: usize = 1 << 20;

/// Makes requests over HTTP/1.1 and TLS. Follows no redirects and knows no cookies.
#[derive(Clone)]
pub struct Outgoing {
    tls: TlsConnector,
    within: Duration,
    body: usize,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// The file of further authorities.
    #[error("cannot use the certificates in {}: {reason}", path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No server could be trusted.
    #[error("no trusted certificate authorities on this machine ({reason}): install the package ca-certificates")]
    NoRoots {
        /// What the system said.
        reason: String,
    },
    /// Nothing that can be asked.
    #[error("{0} is not a URL such as https://example.com/path")]
    Url(Uri),
    /// The way there.
    #[error("cannot connect to {to}: {error}")]
    Connect {
        /// Host and port.
        to: String,
        /// What the system, or TLS, said.
        error: std::io::Error,
    },
    /// The exchange.
    #[error("{to} gave no answer: {error}")]
    Exchange {
        /// Host and port.
        to: String,
        /// What happened.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("{to} gave no answer within {} s", within.as_secs())]
    Slow {
        /// Host and port.
        to: String,
        /// What it had.
        within: Duration,
    },
}

impl Outgoing {
    /// Trusts the authorities of this machine and those in `ca`, a PEM file. Blocks on the file system.
    ///
    /// # Errors
    /// [`OutgoingError::Ca`] and [`OutgoingError::NoRoots`].
    pub fn new(ca: Option<&Path>) -> Result<Self, OutgoingError> {
        let roots = roots(ca)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| OutgoingError::NoRoots { reason: error.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(config).into(), within: WITHIN, body: BODY })
    }

    /// This, for answers that come sooner and have at most so many bytes.
    #[must_use]
    pub fn bounded(self, within: Duration, body: usize) -> Self {
        Self { within, body, ..self }
    }

    /// Sends a request with an absolute `http` or `https` URI and takes the whole answer, whatever its status.
    ///
    /// # Errors
    /// [`OutgoingError`], but not for a status.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, OutgoingError> {
        let uri = request.uri().clone();
        let (Some(authority), Some(scheme)) = (uri.authority().cloned(), uri.scheme().cloned()) else {
            return Err(OutgoingError::Url(uri));
        };
        let (secure, port) = match scheme {
            _ if scheme == Scheme::HTTPS => (true, 443),
            _ if scheme == Scheme::HTTP => (false, 80),
            _ => return Err(OutgoingError::Url(uri)),
        };
        let to = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(port));
        let exchange = async {
            let failed = |error| OutgoingError::Connect { to: to.clone(), error };
            let tcp = TcpStream::connect(&to).await.map_err(failed)?;
            if !secure {
                return exchange(tcp, &to, &authority, request, self.body).await;
            }
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(host).map_err(|_| OutgoingError::Url(uri.clone()))?;
            let tls = self.tls.connect(name, tcp).await.map_err(failed)?;
            exchange(tls, &to, &authority, request, self.body).await
        };
        // Boxed, because it is big and callers hold it across their own waits.
        let slow = OutgoingError::Slow { to: to.clone(), within: self.within };
        timeout(self.within, Box::pin(exchange)).await.unwrap_or(Err(slow))
    }
}

/// The authorities of this machine and those in `ca`, a PEM file. Blocks on the file system.
///
/// # Errors
/// [`OutgoingError::Ca`] and [`OutgoingError::NoRoots`].
pub(crate) fn roots(ca: Option<&Path>) -> Result<RootCertStore, OutgoingError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let bad = |reason: String| OutgoingError::Ca { path: path.to_owned(), reason };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))? {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("there are none".to_owned()));
        }
    }
    let found = rustls_native_certs::load_native_certs();
    // A machine's store may hold certificates that no current library accepts.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(OutgoingError::NoRoots { reason });
    }
    Ok(roots)
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

/// One exchange on a connection of its own, whose answer has a body of at most `most` bytes. The request's URI may be absolute;
/// `to` is for messages.
pub(crate) async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    to: &str,
    authority: &Authority,
    request: Request<Bytes>,
    most: usize,
) -> Result<Response<Bytes>, OutgoingError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| OutgoingError::Exchange { to: to.to_owned(), error };
    let (mut head, body) = request.into_parts();
    head.uri = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into();
    // Without the user's name, which is no part of a host.
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    head.headers.insert(HOST, HeaderValue::from_str(host).map_err(|error| failed(error.into()))?);
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| failed(error.into()))?;
    let answer = async move {
        let response = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    // The connection ends once the sender has gone; what it says of its end then is about nobody's request.
    let (answer, _) = tokio::join!(answer, connection);
    answer.map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::certs::DevCa;

    /// Answers one connection with `answer`, over TLS where there is a CA, and gives what it was asked.
    async fn answer(listener: TcpListener, ca: Option<DevCa>, answer: Vec<u8>) -> String {
        let (tcp, _) = listener.accept().await.unwrap();
        match ca {
            None => serve(tcp, &answer).await,
            Some(ca) => {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let config = rustls::ServerConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(ca.certificates()));
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
                serve(acceptor.accept(tcp).await.unwrap(), &answer).await
            }
        }
    }

    async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
        let mut asked = vec![0; 4096];
        let read = io.read(&mut asked).await.unwrap();
        // Somebody may have had enough of a long answer.
        let _ = io.write_all(answer).await;
        let _ = io.shutdown().await;
        String::from_utf8_lossy(&asked[..read]).into_owned()
    }

    fn get(url: &str) -> Request<Bytes> {
        Request::get(url).body(Bytes::new()).unwrap()
    }

    #[tokio::test]
    async fn a_server_that_the_file_vouches_for_is_asked() {
        let place = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(place.path(), "relay.test").unwrap();
        let outgoing = Outgoing::new(Some(&ca.ca_file())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}/a?b", listener.local_addr().unwrap().port());
        let said = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno".to_vec();
        let (asked, answered) = tokio::join!(answer(listener, Some(ca), said), outgoing.send(get(&url)));
        let answered = answered.unwrap();
        assert_eq!((answered.status().as_u16(), &answered.body()[..]), (404, &b"no"[..]));
        assert!(asked.starts_with("GET /a?b HTTP/1.1\r\nhost: 127.0.0.1:"), "{asked}");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_end_is_given_up() {
        let place = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(place.path(), "relay.test").unwrap();
        let outgoing = Outgoing::new(Some(&ca.ca_file())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let said = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; BODY + 1]].concat();
        let (_, answered) = tokio::join!(answer(listener, None, said), outgoing.send(get(&url)));
        assert!(matches!(answered, Err(OutgoingError::Exchange { .. })), "{answered:?}");
    }

    #[tokio::test]
    async fn mistakes_say_what_is_wrong() {
        let place = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(place.path(), "relay.test").unwrap();
        let empty = place.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        assert!(matches!(Outgoing::new(Some(&empty)), Err(OutgoingError::Ca { .. })));
        let outgoing = Outgoing::new(Some(&ca.ca_file())).unwrap();
        for bad in ["/path", "ftp://example.com/"] {
            assert!(matches!(outgoing.send(get(bad)).await, Err(OutgoingError::Url(_))), "{bad}");
        }
    }
}
