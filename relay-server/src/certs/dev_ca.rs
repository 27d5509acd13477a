//! A certificate authority for development, kept in a directory of its own.
//!
//! Somebody who trusts it should have nothing to fear from whoever steals its key: by its name
//! constraints (RFC 5280, section 4.2.1.10) it can vouch for the loopback names and addresses, and
//! for the base domain it was made for, but for nobody else's. It signs no further authorities.
//!
//! The authority is kept, so that it needs to be trusted only once; the server's certificate is
//! made anew at each start and never stored.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Certificates, certified_key, replace};
use crate::clock::unix_now;

/// The authority's certificate, for `curl --cacert` and trust stores.
const CERTIFICATE_FILE: &str = "ca.pem";
/// Its private key.
const KEY_FILE: &str = "ca.key";
/// Held while one process looks at the directory or makes the authority.
const LOCK_FILE: &str = "ca.lock";

const DAY: u64 = 24 * 60 * 60;
/// Long enough to be trusted once and forgotten.
const AUTHORITY_DAYS: u64 = 3650;
/// Of the server's certificate. Short, as it is made at each start; a relay that runs longer than
/// this with a development certificate must be restarted.
const SERVER_DAYS: u64 = 90;
/// Both begin a day ago, for containers and machines whose clocks lag.
const BACKDATED_DAYS: u64 = 1;

/// A development authority and the certificates that it issued for this start.
pub struct DevCa {
    directory: PathBuf,
    pem: String,
    named: Arc<CertifiedKey>,
    unnamed: Arc<CertifiedKey>,
}

/// Why there is no development authority.
#[derive(Debug, Error)]
pub enum DevCaError {
    /// The directory or a file in it.
    #[error("cannot use {} for the development CA: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No certificate can be made for it.
    #[error("{domain:?} is not a domain name, so no certificate can be issued for it")]
    BadDomain {
        /// The base domain.
        domain: String,
    },
    /// The library could not make a key or a certificate.
    #[error("cannot issue a development certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// What was made does not serve TLS.
    #[error("cannot use the development certificate: {0}")]
    Use(#[from] rustls::Error),
}

impl DevCa {
    /// Takes the authority kept in `directory`, or makes one there: if there is none, if it is
    /// damaged or about to expire, or if it may not vouch for `base_domain`. Then issues a
    /// certificate for `base_domain`, `*.base_domain` and `localhost`, and one for 127.0.0.1 and
    /// ::1 too. They are two because BoringSSL, and so gRPC, refuses every certificate with an
    /// address whose authority is constrained to addresses, whatever name it is asked for.
    ///
    /// Any number of processes may do this at once; they get the same authority. Blocks on the
    /// file system.
    ///
    /// # Errors
    ///
    /// [`DevCaError`].
    pub fn load_or_create(directory: &Path, base_domain: &str) -> Result<Self, DevCaError> {
        let domain = base_domain.strip_suffix('.').unwrap_or(base_domain).to_ascii_lowercase();
        if DnsName::try_from(domain.as_str()).is_err() {
            return Err(DevCaError::BadDomain { domain: base_domain.to_owned() });
        }
        let mut builder = DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(directory);
        created.map_err(|source| at(directory, source))?;

        let lock = lock(&directory.join(LOCK_FILE))?;
        let authority = match Authority::load(directory, &domain)? {
            Some(authority) => authority,
            None => Authority::create(directory, &domain)?,
        };
        drop(lock);
        let named = Arc::new(authority.issue(&domain, &[])?);
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let unnamed = Arc::new(authority.issue(&domain, &loopback)?);
        Ok(Self { directory: directory.to_owned(), pem: authority.pem, named, unnamed })
    }

    /// Where the authority's certificate is.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join(CERTIFICATE_FILE)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// The certificates that were issued, for the edge.
    #[must_use]
    pub fn certificates(&self) -> Certificates {
        Certificates::fixed(Arc::clone(&self.named), Arc::clone(&self.unnamed))
    }
}

impl std::fmt::Debug for DevCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevCa").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// What signs: the authority's certificate and key.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// `None`, with the reason in the log, where the files do not make an authority for `domain`.
    fn load(directory: &Path, domain: &str) -> Result<Option<Self>, DevCaError> {
        let (key_file, certificate_file) = (directory.join(KEY_FILE), directory.join(CERTIFICATE_FILE));
        let (Some(key), Some(pem)) = (read(&key_file)?, read(&certificate_file)?) else {
            return Ok(None);
        };
        match Self::check(key, pem, domain) {
            Ok(authority) => {
                let private = Permissions::from_mode(0o600);
                fs::set_permissions(&key_file, private).map_err(|source| at(&key_file, source))?;
                Ok(Some(authority))
            }
            Err(why) => {
                let file = certificate_file.display();
                tracing::warn!(%file, why, "the development CA is replaced; what trusted the old one must trust the new one");
                Ok(None)
            }
        }
    }

    fn check(key: String, pem: String, domain: &str) -> Result<Self, &'static str> {
        let key = KeyPair::from_pem(&key).map_err(|_| "its key is damaged")?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "its certificate is damaged")?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| "its certificate is damaged")?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err("its key and certificate are not a pair");
        }
        if !certificate.is_ca() || certificate.verify_signature(None).is_err() {
            return Err("its certificate is damaged");
        }
        let needed_until = unix_now().saturating_add_unsigned(SERVER_DAYS * DAY);
        if certificate.validity().not_after.timestamp() < needed_until {
            return Err("it expires soon");
        }
        if !permits(&certificate, domain) {
            return Err("it was made for another base domain");
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|_| "its certificate is damaged")?;
        Ok(Self { pem, issuer })
    }

    fn create(directory: &Path, domain: &str) -> Result<Self, DevCaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = valid_for_days(AUTHORITY_DAYS);
        // Authorities of the same name but with other keys confuse some verifiers.
        let id: String = params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = common_name(&format!("relay development CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut permitted_subtrees = vec![GeneralSubtree::DnsName("localhost".to_owned())];
        if !is_below(domain, "localhost") {
            permitted_subtrees.push(GeneralSubtree::DnsName(domain.to_owned()));
        }
        permitted_subtrees.extend([
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(Ipv6Addr::LOCALHOST.into(), 128)),
        ]);
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });

        let pem = params.self_signed(&key)?.pem();
        for (file, text, mode) in [(KEY_FILE, &*key.serialize_pem(), 0o600), (CERTIFICATE_FILE, &pem, 0o644)] {
            let path = directory.join(file);
            replace(&path, text, mode).map_err(|source| at(&path, source))?;
        }
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    fn issue(&self, domain: &str, addresses: &[IpAddr]) -> Result<CertifiedKey, DevCaError> {
        let mut names = vec![domain.to_owned(), "localhost".to_owned(), format!("*.{domain}")];
        names.dedup();
        let mut params = valid_for_days(SERVER_DAYS);
        params.distinguished_name = common_name("relay development server");
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;

        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(certified_key(vec![certificate.der().clone()], private.into())?)
    }
}

fn valid_for_days(days: u64) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(Duration::from_secs(BACKDATED_DAYS * DAY));
    params.not_after = epoch + now + Duration::from_secs(days * DAY);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Whether the authority's constraints let it vouch for `domain` and what is below it.
fn permits(authority: &X509Certificate<'_>, domain: &str) -> bool {
    let constraints = authority.name_constraints().ok().flatten();
    let permitted = constraints.and_then(|extension| extension.value.permitted_subtrees.as_ref());
    permitted.is_some_and(|subtrees| {
        subtrees.iter().any(|subtree| matches!(subtree.base, GeneralName::DNSName(name) if is_below(domain, name)))
    })
}

/// Whether `domain` is `ancestor` or below it; both in lower case.
fn is_below(domain: &str, ancestor: &str) -> bool {
    domain.strip_suffix(ancestor).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Waits until no other process has the lock; it is ours until the file is closed.
fn lock(path: &Path) -> Result<File, DevCaError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(|source| at(path, source))?;
    file.lock().map_err(|source| at(path, source))?;
    Ok(file)
}

/// The text of a file; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>, DevCaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(at(path, source)),
    }
}

fn at(path: &Path, source: io::Error) -> DevCaError {
    DevCaError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::thread;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    /// Whether a client that trusts only this authority accepts the certificate for `name`.
    fn accepts(ca_pem: &str, server: &CertifiedKey, name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&server.cert[0], &[], &name, &[], UnixTime::now()).map(drop)
    }

    fn is_trusted(ca: &DevCa, name: &str) -> bool {
        // Clients name no host where they have an address.
        let name_sent = Some(name).filter(|name| name.parse::<IpAddr>().is_err());
        accepts(ca.ca_pem(), &ca.certificates().shown_to(name_sent).unwrap(), name).is_ok()
    }

    #[test]
    fn clients_accept_the_loopback_names_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(directory.path(), "relay.localhost").unwrap();
        for good in ["relay.localhost", "hooks.relay.localhost", "localhost", "127.0.0.1", "::1"] {
            assert!(is_trusted(&ca, good), "{good}");
        }
        for bad in ["a.b.relay.localhost", "other.localhost", "example.com", "127.0.0.2"] {
            assert!(!is_trusted(&ca, bad), "{bad}");
        }
    }

    #[test]
    fn clients_that_name_a_host_see_no_address() {
        let directory = tempfile::tempdir().unwrap();
        let certificates = DevCa::load_or_create(directory.path(), "relay.test").unwrap().certificates();
        let addresses = |key: Arc<CertifiedKey>| {
            let (_, certificate) = X509Certificate::from_der(&key.cert[0]).unwrap();
            let names = certificate.subject_alternative_name().unwrap().unwrap();
            names.value.general_names.iter().filter(|name| matches!(name, GeneralName::IPAddress(_))).count()
        };
        assert_eq!(addresses(certificates.shown_to(Some("a.relay.test")).unwrap()), 0);
        assert_eq!(addresses(certificates.shown_to(None).unwrap()), 2);
    }

    #[test]
    fn a_stolen_key_vouches_for_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let ca = DevCa::load_or_create(directory.path(), "relay.test").unwrap();
        let thief = Authority::load(directory.path(), "relay.test").unwrap().unwrap();
        let forged = |domain: &str| accepts(ca.ca_pem(), &thief.issue(domain, &[]).unwrap(), domain);
        forged("deeper.relay.test").expect("the negative control: this one it may issue");
        for domain in ["bank.example", "xrelay.test", "test"] {
            let refused = forged(domain).unwrap_err().to_string();
            assert!(refused.contains("NameConstraintViolation"), "{refused}");
        }
    }

    #[test]
    fn the_authority_is_kept_and_the_certificate_is_not() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("made/ca");
        let first = DevCa::load_or_create(&directory, "relay.localhost").unwrap();
        let again = DevCa::load_or_create(&directory, "Relay.Localhost.").unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(fs::read_to_string(first.ca_file()).unwrap(), first.ca_pem());
        let (one, two) = (first.certificates().current(), again.certificates().current());
        assert_ne!(one.unwrap().cert, two.unwrap().cert);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(KEY_FILE))), (0o700, 0o600));
    }

    #[test]
    fn a_useless_authority_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let make = |domain: &str| DevCa::load_or_create(place.path(), domain).unwrap();
        let mut last = make("relay.localhost").pem;
        let mut is_replaced = |domain: &str, expected: bool| {
            let ca = make(domain);
            assert!(is_trusted(&ca, domain));
            assert_eq!(ca.pem != last, expected, "{domain}");
            last = ca.pem;
        };
        is_replaced("other.localhost", false);
        is_replaced("relay.test", true);
        is_replaced("relay.localhost", false);
        is_replaced("deeper.relay.test", false);

        let other = tempfile::tempdir().unwrap();
        DevCa::load_or_create(other.path(), "relay.test").unwrap();
        let (key, certificate) = (place.path().join(KEY_FILE), place.path().join(CERTIFICATE_FILE));
        fs::copy(other.path().join(KEY_FILE), &key).unwrap();
        is_replaced("relay.test", true);
        fs::remove_file(&certificate).unwrap();
        is_replaced("relay.test", true);
        fs::write(&key, [0xFF; 10]).unwrap();
        is_replaced("relay.test", true);

        // One bit of the signature, or of what it covers.
        let mut der = CertificateDer::from_pem_file(&certificate).unwrap().to_vec();
        let last_byte = der.len() - 1;
        der[last_byte] ^= 1;
        let damaged = "-----BEGIN CERTIFICATE-----\n".to_owned() + &base64(&der) + "\n-----END CERTIFICATE-----\n";
        fs::write(&certificate, damaged).unwrap();
        is_replaced("relay.test", true);
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |three: &[u8]| {
            let number = three.iter().fold(0, |n, &b| n << 8 | usize::from(b)) << (8 * (3 - three.len()));
            let digit = |i: usize| if i <= three.len() { DIGITS[number >> (18 - 6 * i) & 63] } else { b'=' };
            (0..4).map(move |i| char::from(digit(i))).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    #[test]
    fn an_expiring_authority_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = valid_for_days(SERVER_DAYS - 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let old = params.self_signed(&key).unwrap().pem();
        fs::write(place.path().join(KEY_FILE), key.serialize_pem()).unwrap();
        fs::write(place.path().join(CERTIFICATE_FILE), &old).unwrap();
        let ca = DevCa::load_or_create(place.path(), "relay.localhost").unwrap();
        assert_ne!(ca.pem, old);
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        let place = tempfile::tempdir().unwrap();
        for bad in ["", "a b", "-", "http://relay.test", "relay..test"] {
            let refused = DevCa::load_or_create(place.path(), bad);
            assert!(matches!(refused, Err(DevCaError::BadDomain { .. })), "{bad:?}");
        }
        assert_eq!(place.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn many_starts_at_once_share_one_authority() {
        let place = tempfile::tempdir().unwrap();
        let start = || DevCa::load_or_create(place.path(), "relay.localhost").unwrap();
        let all: Vec<DevCa> = thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        for ca in &all {
            assert_eq!(ca.pem, all[0].pem);
            assert!(is_trusted(ca, "localhost"));
        }
    }
}
