//! What the relay gives browsers to keep, so that it need not: sealed, so that they can neither read nor change it.
//!
//! The key is a file in the data directory, so that logins outlive the process. Where there is none they end with it.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::certs::replace;

/// The file's name in the data directory.
pub(super) const FILE: &str = "login.key";

/// Bytes of a key, and of what nobody is to guess.
const BYTES: usize = 32;

/// Why nothing can be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is in it.
    #[error("{} has no key in it: remove it, and the relay makes another; whoever is logged in then has to do so anew", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it, and so pass for anybody.
    #[error("{} can be read by others (mode {mode:o}): remove it, and the relay makes another; whoever is logged in then has to do so anew", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The machine has no randomness to give.
    #[error("this machine gives no random numbers")]
    Random,
}

/// Seals and opens.
pub(crate) struct Sealer {
    /// Strangers have as much sealed as they like, more than random nonces of 96 bits are good for with one key; this
    /// algorithm bears a nonce that comes twice (RFC 8452).
    aead: RandomizedNonceKey,
    mac: hmac::Key,
}

impl Sealer {
    /// By the key of a data directory, which is made if there is none, or by one of its own. It blocks.
    ///
    /// # Errors
    /// [`SealError`].
    pub(super) fn of(directory: Option<&Path>) -> Result<Self, SealError> {
        let Some(path) = directory.map(|directory| directory.join(FILE)) else {
            return Self::new(&key()?).map_err(|_| SealError::Random);
        };
        let failed = |source| SealError::Io { path: path.clone(), source };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => {
                // A group has it where a volume is given to one, as in Kubernetes by fsGroup.
                let mode = std::fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o7777;
                if mode & 0o007 != 0 {
                    return Err(SealError::Open { path: path.clone(), mode });
                }
                text
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = URL_SAFE_NO_PAD.encode(key()?);
                replace(&path, &format!("{text}\n"), 0o600).map_err(failed)?;
                text
            }
            Err(error) => return Err(failed(error)),
        };
        let key = URL_SAFE_NO_PAD.decode(text.trim()).ok().filter(|key| key.len() == BYTES);
        key.and_then(|key| Self::new(&key).ok()).ok_or(SealError::Other { path })
    }

    fn new(key: &[u8]) -> Result<Self, Unspecified> {
        // One key for each use (RFC 5869, section 2.3).
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let aead = RandomizedNonceKey::new(&AES_256_GCM_SIV, hmac::sign(&key, b"seal").as_ref())?;
        Ok(Self { aead, mac: hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, b"derive").as_ref()) })
    }

    /// Seals something, as it is about this: it opens for nothing else. None where the machine gives no random numbers.
    pub(crate) fn seal(&self, about: &[&str], content: &[u8]) -> Option<String> {
        let mut sealed = content.to_vec();
        let nonce = self.aead.seal_in_place_append_tag(Aad::from(joined(about)), &mut sealed).ok()?;
        Some(URL_SAFE_NO_PAD.encode([nonce.as_ref(), sealed.as_slice()].concat()))
    }

    /// What was sealed about this.
    pub(crate) fn open(&self, about: &[&str], text: &str) -> Option<Vec<u8>> {
        let mut sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.aead.open_in_place(nonce, Aad::from(joined(about)), sealed).ok().map(|content| content.to_vec())
    }

    /// What nobody else can tell of this: 43 letters, digits, `-` and `_`.
    pub(crate) fn derive(&self, about: &[&str]) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.mac, &joined(about)))
    }

    /// Whether this was [derived](Self::derive) of that. How long it takes says nothing of it.
    pub(crate) fn is_derived(&self, text: &str, about: &[&str]) -> bool {
        verify_slices_are_equal(text.as_bytes(), self.derive(about).as_bytes()).is_ok()
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

/// What nobody can guess, in the form of [`Sealer::derive`]. None where the machine gives no random numbers.
pub(crate) fn random() -> Option<String> {
    key().ok().map(|key| URL_SAFE_NO_PAD.encode(key))
}

fn key() -> Result<[u8; BYTES], SealError> {
    let mut key = [0; BYTES];
    rand::fill(&mut key).map(|()| key).map_err(|_| SealError::Random)
}

/// So that no two lists are the same bytes.
fn joined(about: &[&str]) -> Vec<u8> {
    about.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), part.as_bytes()].concat()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Sealer::of(Some(directory.path())).unwrap();
        let again = Sealer::of(Some(directory.path())).unwrap();
        let sealed = first.seal(&["a"], b"content").unwrap();
        assert_eq!(again.open(&["a"], &sealed).unwrap(), b"content");
        assert_eq!(first.derive(&["a"]), again.derive(&["a"]));
        assert_eq!(Sealer::of(None).unwrap().open(&["a"], &sealed), None, "by another key");
        let file = directory.path().join(FILE);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "sesame\n").unwrap();
        let error = Sealer::of(Some(directory.path())).unwrap_err().to_string();
        assert!(error.contains("login.key has no key") && !error.contains("sesame"), "{error}");
    }

    #[test]
    fn what_is_sealed_about_one_thing_opens_for_no_other() {
        let sealer = Sealer::of(None).unwrap();
        let sealed = sealer.seal(&["session", "ab", "c"], b"content").unwrap();
        for other in
            [&["session", "a", "bc"][..], &["state", "ab", "c"], &["session", "ab"], &["session", "ab", "c", ""]]
        {
            assert_eq!(sealer.open(other, &sealed), None, "{other:?}");
            assert!(!sealer.is_derived(&sealer.derive(&["session", "ab", "c"]), other));
        }
        assert!(!sealed.contains("content"));
        assert_ne!(sealed, sealer.seal(&["session", "ab", "c"], b"content").unwrap());
    }

    proptest! {
        #[test]
        fn what_was_changed_does_not_open(content: Vec<u8>, at: prop::sample::Index, bit in 0..8_u8) {
            let sealer = Sealer::of(None).unwrap();
            let sealed = sealer.seal(&["a"], &content).unwrap();
            prop_assert_eq!(sealer.open(&["a"], &sealed), Some(content));
            let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(sealer.open(&["a"], &URL_SAFE_NO_PAD.encode(&bytes)), None);
            prop_assert_eq!(sealer.open(&["a"], &URL_SAFE_NO_PAD.encode(&bytes[..at])), None);
        }

        #[test]
        fn nothing_that_comes_panics(text in "\\PC*") {
            prop_assert_eq!(Sealer::of(None).unwrap().open(&["a"], &text), None);
        }
    }
}
