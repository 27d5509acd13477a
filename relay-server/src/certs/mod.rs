//! The certificate that the edge shows: from files that an operator keeps fresh, from an authority on
//! the internet that the relay asks by itself (ACME), or from a development authority of its own.
//!
//! All end in a [`Certificates`], which a rustls server configuration asks at each handshake; so a
//! new certificate serves the next connection, and open ones go on.

pub(crate) mod acme;
mod dev_ca;
mod files;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, GeneralName, Validity, X509Certificate};

pub use self::acme::{AcmeConfig, AcmeError, DomainError};
pub use self::dev_ca::{DevCa, DevCaError};
pub use self::files::CertificateError;
pub(crate) use self::files::read_pair;
use self::files::{Change, Files};

/// How often the files are looked at: two `stat` calls each time.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// From files, reloaded when they change.
    Files {
        /// The chain, PEM, the leaf first.
        cert: PathBuf,
        /// The leaf's key, PEM.
        key: PathBuf,
    },
    /// From an authority on the internet, which the relay asks by itself.
    Acme(Box<AcmeConfig>),
    /// From a development CA kept in a directory.
    Development {
        /// The directory.
        dir: PathBuf,
    },
}

/// Everything below a data directory that certificates are made of, or with.
pub(crate) fn directories(data: &Path) -> [PathBuf; 2] {
    [acme::directory(data), dev_directory(data)]
}

/// The place of the development authority below a data directory.
pub(crate) fn dev_directory(data: &Path) -> PathBuf {
    data.join("ca")
}

/// The one certificate in use, which may be replaced while connections come in.
pub struct Certificates {
    /// None before the first one: no handshake succeeds then.
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// For clients that name no host, because they were given an address; else they see the same.
    unnamed: Option<Arc<CertifiedKey>>,
    /// Where it came from, if it can change.
    files: Option<Mutex<Files>>,
    /// What stands in the way of a certificate, or of the next one.
    trouble: Mutex<Option<String>>,
    /// Those of custom domains.
    domains: RwLock<HashMap<String, Arc<CertifiedKey>>>,
    /// What an authority is shown in proof of one, while it looks (TLS-ALPN-01, RFC 8737).
    proofs: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

/// What a certificate says of itself. Moments are Unix seconds.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) names: Vec<String>,
    pub(crate) issuer: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// What an authority says that it wants to see a proof (RFC 8737, section 6.2). Nothing else is said on such a connection.
pub(crate) const PROOF: &[u8] = b"acme-tls/1";

/// What a look at the files led to.
#[derive(Debug)]
pub enum Reload {
    /// They are as they were, or there are none.
    Unchanged,
    /// They changed: the next handshake shows the new certificate.
    Replaced,
    /// They changed into something that cannot be used, perhaps because they are being written at
    /// this moment: the certificate stays as it was.
    Kept(CertificateError),
}

impl Certificates {
    /// Reads a certificate chain (the server's own first) and its private key, both PEM. Warns in
    /// the log if the certificate is out of date.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] names the file and what is wrong with it.
    pub fn from_files(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, CertificateError> {
        let (files, loaded) = Files::load(certificate.into(), key.into())?;
        Ok(Self { files: Some(Mutex::new(files)), ..Self::of(Some(loaded)) })
    }

    /// Certificates that stay: for clients that name a host, and for those that were given an address and do not
    /// (RFC 6066, section 3).
    fn fixed(named: Arc<CertifiedKey>, unnamed: Arc<CertifiedKey>) -> Self {
        Self { current: RwLock::new(Some(named)), unnamed: Some(unnamed), ..Self::of(None) }
    }

    /// A certificate that somebody [puts](Self::put) another in the place of, or none yet.
    fn of(first: Option<CertifiedKey>) -> Self {
        let current = RwLock::new(first.map(Arc::new));
        let (domains, proofs) = (RwLock::default(), RwLock::default());
        Self { current, unnamed: None, files: None, trouble: Mutex::default(), domains, proofs }
    }

    /// From now on handshakes show this one.
    fn put(&self, key: CertifiedKey) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    /// From now on handshakes for this domain show this one.
    fn put_for(&self, domain: &str, key: CertifiedKey) {
        self.domains.write().unwrap_or_else(PoisonError::into_inner).insert(domain.to_owned(), Arc::new(key));
    }

    /// From now on handshakes for this domain show what those for others do.
    fn take_from(&self, domain: &str) {
        self.domains.write().unwrap_or_else(PoisonError::into_inner).remove(domain);
    }

    /// What handshakes for this domain show, where it has one of its own.
    fn of_domain(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        self.domains.read().unwrap_or_else(PoisonError::into_inner).get(domain).cloned()
    }

    /// From now on an authority that looks at this domain sees this, or nothing.
    fn prove(&self, domain: &str, proof: Option<CertifiedKey>) {
        let mut proofs = self.proofs.write().unwrap_or_else(PoisonError::into_inner);
        match proof {
            Some(proof) => drop(proofs.insert(domain.to_owned(), Arc::new(proof))),
            None => drop(proofs.remove(domain)),
        }
    }

    /// Notes what stands in the way of a certificate, or that nothing does.
    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What stands in the way of the next certificate, or is wrong with the present one.
    ///
    /// # Errors
    /// What stands in the way of the first one. One that has expired serves on: it may be the clock that is wrong.
    pub(crate) fn health(&self, now: i64) -> Result<Option<String>, String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let with = |fault: &str| match &trouble {
            Some(trouble) => format!("{fault}: {trouble}"),
            None => fault.to_owned(),
        };
        match self.validity() {
            None => Err(with("there is no certificate yet")),
            Some(validity) if validity.not_after.timestamp() < now => Ok(Some(with("the certificate has expired"))),
            Some(_) => Ok(trouble.as_ref().map(|_| with("there is no next certificate yet"))),
        }
    }

    /// From when until when the certificate in use holds.
    pub(crate) fn validity(&self) -> Option<Validity> {
        validity_of(&*self.current()?)
    }

    /// As [`Certificates::validity`], of that among those of custom domains which ends first.
    pub(crate) fn first_of_domains(&self) -> Option<Validity> {
        // Read outside of the lock, which handshakes wait for.
        let known: Vec<_> = self.domains.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        known.iter().filter_map(|key| validity_of(key)).min_by_key(|validity| validity.not_after.timestamp())
    }

    /// Whether something stands in the way of the next certificate.
    pub(crate) fn has_trouble(&self) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What the certificate in use says of itself.
    pub(crate) fn shown(&self) -> Option<Shown> {
        Shown::of(&*self.current()?)
    }

    /// As [`Certificates::shown`], of the one for a custom domain.
    pub(crate) fn shown_for(&self, domain: &str) -> Option<Shown> {
        let key = self.domains.read().unwrap_or_else(PoisonError::into_inner).get(domain).cloned();
        Shown::of(&*key?)
    }

    fn shown_to(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        match (name, &self.unnamed) {
            (None, Some(key)) => Some(Arc::clone(key)),
            _ => self.current(),
        }
    }

    /// The chain and key that the next handshake shows, if its client names a host; none where there is none yet.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on shows what is in these files, which may be the same; whether the handshake shows something else now. Blocks on
    /// the file system.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]; the certificate stays as it was.
    pub(crate) fn show(&self, certificate: &Path, key: &Path) -> Result<bool, CertificateError> {
        let Some(files) = &self.files else { return Ok(false) };
        let (new, loaded) = Files::load(certificate.to_owned(), key.to_owned())?;
        let is_new = self.current().is_none_or(|current| current.cert != loaded.cert);
        *files.lock().unwrap_or_else(PoisonError::into_inner) = new;
        self.put(loaded);
        Ok(is_new)
    }

    /// Looks at the files, and takes them if they changed and are good. Blocks on the file system.
    /// Complains in the log once about each fault.
    pub fn reload_if_changed(&self) -> Reload {
        let Some(files) = &self.files else {
            return Reload::Unchanged;
        };
        let change = files.lock().unwrap_or_else(PoisonError::into_inner).poll();
        match change {
            Change::None => Reload::Unchanged,
            Change::New(loaded) => {
                self.put(loaded);
                Reload::Replaced
            }
            Change::Broken(error) => Reload::Kept(error),
        }
    }

    /// Looks at the files every five seconds until `shutdown`: for a task of the owner's.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        if self.files.is_none() {
            return;
        }
        let look_for_ever = async {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                let certificates = Arc::clone(&self);
                // Not on a worker thread: the files may be on a network that hangs.
                let look = move || certificates.reload_if_changed();
                if let Err(error) = tokio::task::spawn_blocking(look).await {
                    tracing::error!(%error, "looking at the certificate files failed");
                }
            }
        };
        shutdown.run_until_cancelled(look_for_ever).await;
    }
}

impl Shown {
    fn of(key: &CertifiedKey) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(key.cert.first()?).ok()?;
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let validity = leaf.validity();
        Some(Self {
            names: names.collect(),
            issuer: leaf.issuer().to_string(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let of = |known: &RwLock<HashMap<String, Arc<CertifiedKey>>>| {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            let name = hello.server_name().filter(|_| !known.is_empty())?;
            known.get(&*name.to_ascii_lowercase()).cloned()
        };
        if hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == PROOF)) {
            return of(&self.proofs);
        }
        of(&self.domains).or_else(|| self.shown_to(hello.server_name()))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

fn validity_of(key: &CertifiedKey) -> Option<Validity> {
    X509Certificate::from_der(key.cert.first()?).ok().map(|(_, leaf)| leaf.validity().clone())
}

/// Joins a chain and a key, which must belong together. Which cryptography is used is said here and
/// not left to a default of the process.
fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
}

/// Writes a file beside the old one, then puts it in its place, on disk: nobody sees half of it. Only one may do this at a
/// time, so the name of the new one is free, or left from a crash.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // What stands beside us has no directory in its path.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
