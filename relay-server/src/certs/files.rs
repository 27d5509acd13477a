//! A certificate and its key in PEM files, which somebody else replaces now and then.
//!
//! Certbot swaps symbolic links, Kubernetes swaps a link to the directory, a person copies over the
//! file: all of them change what `stat` says about the resolved path. The two files do not change in
//! the same instant; until they fit together again, the pair loaded last stays in use.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::InconsistentKeys;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::prelude::{FromDer, Validity, X509Certificate};

use super::certified_key;
use crate::clock::unix_now;

/// Why a pair of files does not serve as a certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// One of them cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of them is not well-formed PEM; perhaps it is only half there.
    #[error("{} is not valid PEM: {source}", path.display())]
    Pem {
        /// Which one.
        path: PathBuf,
        /// What the parser said.
        source: pem::Error,
    },
    /// The certificate file holds none.
    #[error(
        "{} has no \"BEGIN CERTIFICATE\" section; it should hold the server's certificate, \
         then the intermediate ones",
        path.display()
    )]
    NoCertificate {
        /// The certificate file.
        path: PathBuf,
    },
    /// The key file holds none.
    #[error(
        "{} has no \"BEGIN PRIVATE KEY\" section; it should hold the certificate's private key \
         (are the two files swapped?)",
        path.display()
    )]
    NoKey {
        /// The key file.
        path: PathBuf,
    },
    /// The key can be used only with a passphrase, which nobody is there to type.
    #[error(
        "the private key in {} is encrypted; decrypt it first, for example with `openssl pkey`",
        path.display()
    )]
    EncryptedKey {
        /// The key file.
        path: PathBuf,
    },
    /// What stands in the certificate section is not one.
    #[error("the first certificate in {} cannot be read: {reason}", path.display())]
    BadCertificate {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key of a kind that TLS servers do not use, or damaged.
    #[error("the private key in {} cannot be used: {reason}", path.display())]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Each is good, but they are not a pair.
    #[error(
        "the private key in {} does not belong to the certificate in {}",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
}

/// The two files, and how they were when last read.
#[derive(Debug)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// Of the pair in use.
    seen: [Stamp; 2],
    /// What was last said about them in the log, if they are bad at present.
    complaint: Option<String>,
}

/// What a look found.
pub(super) enum Change {
    None,
    New(CertifiedKey),
    Broken(CertificateError),
}

impl Files {
    pub(super) fn load(certificate: PathBuf, key: PathBuf) -> Result<(Self, CertifiedKey), CertificateError> {
        // Before reading: what is written meanwhile then counts as a change.
        let seen = stamps(&certificate, &key)?;
        let loaded = read_pair(&certificate, &key)?;
        Ok((Self { certificate, key, seen, complaint: None }, loaded))
    }

    pub(super) fn poll(&mut self) -> Change {
        let reading = stamps(&self.certificate, &self.key).and_then(|stamps| {
            // A bad pair is read again although its stamps stay: a write in place can end within
            // the tick of the clock that stamped its beginning.
            let unchanged = stamps == self.seen && self.complaint.is_none();
            if unchanged {
                return Ok(None);
            }
            read_pair(&self.certificate, &self.key).map(|loaded| Some((stamps, loaded)))
        });
        match reading {
            Ok(None) => Change::None,
            Ok(Some((stamps, loaded))) => {
                tracing::info!(certificate = %self.certificate.display(), "the certificate was reloaded");
                self.seen = stamps;
                self.complaint = None;
                Change::New(loaded)
            }
            Err(error) => {
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(%error, "the certificate files changed, but the old certificate stays in use");
                    self.complaint = Some(complaint);
                }
                Change::Broken(error)
            }
        }
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

fn stamps(certificate: &Path, key: &Path) -> Result<[Stamp; 2], CertificateError> {
    Ok([stamp(certificate)?, stamp(key)?])
}

fn stamp(path: &Path) -> Result<Stamp, CertificateError> {
    // Follows symbolic links: it is the file at their end that counts.
    let metadata = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    Ok(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Reads chain and key, and whether they belong together.
pub(crate) fn read_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let chain = read_chain(certificate)?;
    let private = read_key(key)?;
    let validity = match chain.first().map(|leaf| X509Certificate::from_der(leaf)) {
        Some(Ok((_, leaf))) => leaf.validity().clone(),
        Some(Err(error)) => {
            let reason = error.to_string();
            return Err(CertificateError::BadCertificate { path: certificate.to_owned(), reason });
        }
        None => return Err(CertificateError::NoCertificate { path: certificate.to_owned() }),
    };
    let pair = certified_key(chain, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            CertificateError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(_) => {
            CertificateError::BadCertificate { path: certificate.to_owned(), reason: error.to_string() }
        }
        _ => CertificateError::BadKey { path: key.to_owned(), reason: error.to_string() },
    })?;
    warn_if_out_of_date(certificate, &validity, unix_now());
    Ok(pair)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = fs::read(path).map_err(|source| unreadable(path, source))?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| CertificateError::Pem { path: path.to_owned(), source })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let text = fs::read(path).map_err(|source| unreadable(path, source))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|source| {
        let path = path.to_owned();
        let marker = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
        match source {
            pem::Error::NoItemsFound if text.windows(marker.len()).any(|part| part == marker) => {
                CertificateError::EncryptedKey { path }
            }
            pem::Error::NoItemsFound => CertificateError::NoKey { path },
            source => CertificateError::Pem { path, source },
        }
    })
}

fn unreadable(path: &Path, source: io::Error) -> CertificateError {
    CertificateError::Read { path: path.to_owned(), source }
}

/// An old certificate is used all the same: the relay's clock may be the one that is wrong, and a
/// certificate error is easier to understand than a closed port.
fn warn_if_out_of_date(path: &Path, validity: &Validity, now: i64) {
    let path = path.display();
    if validity.not_after.timestamp() < now {
        tracing::warn!(certificate = %path, expired = %validity.not_after, "the certificate has expired: clients will refuse it");
    } else if validity.not_before.timestamp() > now {
        tracing::warn!(certificate = %path, begins = %validity.not_before, "the certificate is not valid yet: clients will refuse it");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::{Certificates, Reload};
    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(["relay.example.com".to_owned()]).unwrap();
        Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    struct Place(TempDir);

    impl Place {
        fn new(pair: &Pair) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            place.write("cert.pem", &pair.certificate);
            place.write("key.pem", &pair.key);
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn load(&self) -> Result<Certificates, CertificateError> {
            Certificates::from_files(self.path("cert.pem"), self.path("key.pem"))
        }
    }

    fn serves(certificates: &Certificates, pair: &Pair) -> bool {
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        certificates.current().unwrap().cert[0] == der
    }

    #[test]
    fn each_fault_names_its_file() {
        let (good, other) = (pair(), pair());
        let place = Place::new(&good);
        assert!(serves(&place.load().unwrap(), &good));

        let cut = &good.key[..good.key.len() / 2];
        let encrypted = good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (file, text, expected) in [
            ("cert.pem", "", "cert.pem has no \"BEGIN CERTIFICATE\""),
            ("cert.pem", &*good.key, "cert.pem has no \"BEGIN CERTIFICATE\""),
            ("cert.pem", noise, "certificate in"),
            ("cert.pem", &*other.certificate, "does not belong to the certificate in"),
            ("key.pem", &*good.certificate, "key.pem has no \"BEGIN PRIVATE KEY\""),
            ("key.pem", cut, "key.pem is not valid PEM"),
            ("key.pem", &*encrypted, "key.pem is encrypted"),
            ("key.pem", bad_key, "key.pem cannot be used"),
        ] {
            let place = Place::new(&good);
            place.write(file, text);
            let error = place.load().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(file), "{error} | {expected}");
        }
        fs::remove_file(place.path("key.pem")).unwrap();
        assert!(matches!(place.load(), Err(CertificateError::Read { .. })));
    }

    #[test]
    fn a_new_pair_is_taken_only_when_both_halves_are_there() {
        let (old, new) = (pair(), pair());
        let place = Place::new(&old);
        let certificates = place.load().unwrap();
        assert!(matches!(certificates.reload_if_changed(), Reload::Unchanged));

        place.write("cert.pem", &new.certificate[..100]);
        assert!(matches!(certificates.reload_if_changed(), Reload::Kept(_)));
        place.write("cert.pem", &new.certificate);
        let mismatch = certificates.reload_if_changed();
        assert!(matches!(mismatch, Reload::Kept(CertificateError::Mismatch { .. })), "{mismatch:?}");
        assert!(serves(&certificates, &old));

        place.write("key.pem", &new.key);
        assert!(matches!(certificates.reload_if_changed(), Reload::Replaced));
        assert!(serves(&certificates, &new));
        assert!(matches!(certificates.reload_if_changed(), Reload::Unchanged));
    }

    #[test]
    fn swapped_links_are_noticed() {
        // As Kubernetes mounts a secret: file -> ..data/file, ..data -> a directory per version.
        let (old, new) = (pair(), pair());
        let place = Place(tempfile::tempdir().unwrap());
        for (version, pair) in [("v1", &old), ("v2", &new)] {
            fs::create_dir(place.path(version)).unwrap();
            place.write(&format!("{version}/cert.pem"), &pair.certificate);
            place.write(&format!("{version}/key.pem"), &pair.key);
        }
        symlink("v1", place.path("data")).unwrap();
        symlink("data/cert.pem", place.path("cert.pem")).unwrap();
        symlink("data/key.pem", place.path("key.pem")).unwrap();
        let certificates = place.load().unwrap();

        symlink("v2", place.path("data.new")).unwrap();
        fs::rename(place.path("data.new"), place.path("data")).unwrap();
        assert!(matches!(certificates.reload_if_changed(), Reload::Replaced));
        assert!(serves(&certificates, &new));

        fs::remove_file(place.path("data")).unwrap();
        assert!(matches!(certificates.reload_if_changed(), Reload::Kept(_)));
        assert!(serves(&certificates, &new));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_takes_the_new_pair_and_stops_when_told() {
        let (old, new) = (pair(), pair());
        let place = Place::new(&old);
        let certificates = std::sync::Arc::new(place.load().unwrap());
        let shutdown = tokio_util::sync::CancellationToken::new();
        let watcher = tokio::spawn(std::sync::Arc::clone(&certificates).watch(shutdown.clone()));
        place.write("cert.pem", &new.certificate);
        place.write("key.pem", &new.key);
        while !serves(&certificates, &new) {
            tokio::time::sleep(super::super::POLL_INTERVAL).await;
        }
        shutdown.cancel();
        watcher.await.unwrap();
    }
}
