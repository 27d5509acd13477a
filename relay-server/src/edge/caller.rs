//! Who calls, as far as the connection says: by the certificate that was shown in its handshake.
//!
//! A certificate is for one host: HTTP/2 clients send requests for several hosts on one connection, and what was shown for
//! one of them says nothing to another, whose handshake would have asked for something else. Such a request is answered with
//! 421, and its sender comes back on a connection of its own (RFC 9110, section 15.5.20).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use relay_protocol::access::{Access, Authority};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use tokio::time::Instant;

use super::gate::is_of;

/// What tells a service which certificate has let a request in: the certificate itself (RFC 9440, section 2.1).
pub(super) const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");

/// How long a verdict holds, on one connection and by the same rules. A certificate may expire meanwhile.
const HOLDS: Duration = Duration::from_secs(60);

/// What a connection says of its client.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Nothing: its TLS ends elsewhere, if it has any.
    Elsewhere,
    /// Nothing: its handshake has named no host, and so it could not be asked.
    Unnamed,
    /// It was not asked for a certificate in its handshake, which was for this host, in lower case.
    Unasked(Arc<str>),
    /// It was.
    Asked(Arc<Shown>),
}

/// What was shown in a handshake that asked for a certificate. That the client has its key is proven.
pub(crate) struct Shown {
    /// The host that the handshake was for, in lower case.
    host: String,
    /// The client's own first; empty where it has shown none.
    chain: Vec<CertificateDer<'static>>,
    /// What was found last, by which rules, and when.
    judged: Mutex<Option<(Arc<Access>, Instant, Verdict)>>,
}

/// Whether what was shown lets requests in.
pub(super) type Verdict = Result<(), Unknown>;

/// Why nobody knows who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The connection was not made for this host, or before certificates were asked for.
    Misdirected,
    /// No certificate can be shown on it.
    Elsewhere,
    /// Its handshake has named no host, and so nobody knew whose certificates to ask for.
    Unnamed,
    /// None was shown.
    Missing,
    /// It holds no more.
    Expired,
    /// It does not hold yet.
    Early,
    /// It is not for clients.
    Purpose,
    /// None of the authorities has issued it.
    Stranger,
}

impl Caller {
    /// Whether it may call the tunnel at this authority by these rules, which ask for a certificate.
    pub(super) fn judge(&self, authority: &str, access: &Arc<Access>) -> Verdict {
        match self {
            Self::Elsewhere => Err(Unknown::Elsewhere),
            Self::Unnamed => Err(Unknown::Unnamed),
            Self::Unasked(_) => Err(Unknown::Misdirected),
            Self::Asked(shown) if !is_of(authority, &shown.host) => Err(Unknown::Misdirected),
            Self::Asked(shown) => shown.judge(access),
        }
    }

    /// Whether the connection was made for the host of this authority. Then nothing that comes on it for that host later is
    /// let in either, once this was not.
    pub(super) fn is_for(&self, authority: &str) -> bool {
        match self {
            Self::Elsewhere | Self::Unnamed => false,
            Self::Unasked(host) => is_of(authority, host),
            Self::Asked(shown) => is_of(authority, &shown.host),
        }
    }

    /// What the service is told of it.
    pub(super) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let Self::Asked(shown) = self else { return None };
        let certificate = STANDARD.encode(shown.chain.first()?);
        Some((CLIENT_CERT, HeaderValue::try_from(format!(":{certificate}:")).ok()?))
    }
}

impl Shown {
    pub(super) fn new(host: String, chain: Vec<CertificateDer<'static>>) -> Self {
        Self { host, chain, judged: Mutex::default() }
    }

    fn judge(&self, access: &Arc<Access>) -> Verdict {
        let now = Instant::now();
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, verdict)) = judged.as_ref().filter(|(by, at, _)| by == access && now < *at + HOLDS) {
            return *verdict;
        }
        let verdict = self.judge_now(&access.client_ca, UnixTime::now());
        *judged = Some((access.clone(), now, verdict));
        verdict
    }

    fn judge_now(&self, authorities: &[Authority], now: UnixTime) -> Verdict {
        let Some((own, others)) = self.chain.split_first() else { return Err(Unknown::Missing) };
        let verifier = verifier(authorities, Arc::new(aws_lc_rs::default_provider())).map_err(|_| Unknown::Stranger)?;
        verifier.verify_client_cert(own, others, now).map(drop).map_err(|error| match error {
            rustls::Error::InvalidCertificate(wrong) => match wrong {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Unknown::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Unknown::Early,
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Unknown::Purpose,
                _ => Unknown::Stranger,
            },
            _ => Unknown::Stranger,
        })
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Unknown {
    /// For whoever has sent the request, and for the tunnel's owner.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Misdirected => "its connection was made for another host, or before certificates were asked for",
            Self::Elsewhere => {
                "its connection is not encrypted by the relay, so that no client certificate can be shown on it"
            }
            Self::Unnamed => {
                "its TLS handshake has not named the host (SNI), so that no client certificate was asked for"
            }
            Self::Missing => "it has shown no client certificate",
            Self::Expired => "its client certificate has expired",
            Self::Early => "its client certificate is not valid yet",
            Self::Purpose => "its certificate is not for clients",
            Self::Stranger => "its client certificate is not from an authority of this tunnel's",
        }
    }
}

/// What finds whether one of the authorities has issued a certificate.
///
/// # Errors
/// There is none, or one is no certificate.
pub(crate) fn verifier(
    authorities: &[Authority],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.der().into_owned()))?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}
