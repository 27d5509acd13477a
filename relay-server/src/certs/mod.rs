//! The certificate that the edge shows: from files that an operator keeps fresh, or from a
//! development authority that the relay keeps itself.
//!
//! Both end in a [`Certificates`], which a rustls server configuration asks at each handshake; so a
//! new certificate serves the next connection, and open ones go on.

mod dev_ca;
mod files;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

pub use self::dev_ca::{DevCa, DevCaError};
pub use self::files::CertificateError;
use self::files::{Change, Files};

/// How often the files are looked at: two `stat` calls each time.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The one certificate in use, which may be replaced while connections come in.
pub struct Certificates {
    current: RwLock<Arc<CertifiedKey>>,
    /// For clients that name no host, because they were given an address; else they see the same.
    unnamed: Option<Arc<CertifiedKey>>,
    /// Where it came from, if it can change.
    files: Option<Mutex<Files>>,
}

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
        Ok(Self { current: RwLock::new(Arc::new(loaded)), unnamed: None, files: Some(Mutex::new(files)) })
    }

    /// Certificates that stay: for clients that name a host, and for those that were given an address and do not
    /// (RFC 6066, section 3).
    fn fixed(named: Arc<CertifiedKey>, unnamed: Arc<CertifiedKey>) -> Self {
        Self { current: RwLock::new(named), unnamed: Some(unnamed), files: None }
    }

    fn shown_to(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        match (name, &self.unnamed) {
            (None, Some(key)) => Arc::clone(key),
            _ => self.current(),
        }
    }

    /// The chain and key that the next handshake shows, if its client names a host.
    #[must_use]
    pub fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
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
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
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

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown_to(hello.server_name()))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Joins a chain and a key, which must belong together. Which cryptography is used is said here and
/// not left to a default of the process.
fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
}
