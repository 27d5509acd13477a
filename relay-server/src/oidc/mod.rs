//! Logins by OpenID Connect: whom the operator lets the relay ask, what those answer, and what is sealed for browsers to keep.
//!
//! ```text
//!   edge::login ──▶ issuer: discovery ─▶ token endpoint ─▶ keys ─▶ claims ──▶ a person
//!        └────────▶ seal: the login that has begun, and the one that holds
//! ```
//!
//! Nobody else is ever asked: a client names one of the operator's issuers, and all other addresses are from that one's own
//! discovery document.

mod claims;
mod issuer;
pub(crate) mod seal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::issuer::{Grant, Issuer, IssuerError};
use self::seal::{SealError, Sealer};
use crate::outgoing::{Outgoing, OutgoingError};

/// Whom tunnels may have the relay ask who somebody is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OidcConfig {
    /// Their URLs, as their own discovery documents have them. Empty: nobody.
    pub issuers: Vec<String>,
    /// Further authorities that may vouch for them, in a PEM file.
    pub ca: Option<PathBuf>,
}

/// Why nobody could log in.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// Issuers could not be asked.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// Logins could not be kept.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Somebody whom an issuer knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// What the issuer calls them, and nobody else ever.
    pub(crate) subject: String,
    /// Their address, where the issuer has verified it.
    pub(crate) email: Option<String>,
}

/// The issuers of the operator.
#[derive(Debug)]
pub(crate) struct Issuers {
    all: Vec<Arc<Issuer>>,
    pub(crate) sealer: Sealer,
    config: OidcConfig,
    /// What was in the files that it names, and in that of the key.
    files: Vec<Option<Vec<u8>>>,
}

impl Issuers {
    /// How long an issuer may take for one answer: a person waits for several of them.
    const WITHIN: Duration = Duration::from_secs(10);

    /// The most bytes of one. Documents and sets of keys have a few KiB.
    const MOST: usize = 64 << 10;

    /// Those of a configuration. It blocks.
    ///
    /// # Errors
    /// [`OidcError`].
    pub(crate) fn new(config: &OidcConfig, data: Option<&Path>) -> Result<Self, OidcError> {
        let config = config.clone();
        if config.issuers.is_empty() {
            // Nothing is written, or read, for what is not asked for.
            return Ok(Self { all: Vec::new(), sealer: Sealer::of(None)?, files: files(&config, data), config });
        }
        let outgoing = Outgoing::new(config.ca.as_deref())?.bounded(Self::WITHIN, Self::MOST);
        let all = config.issuers.iter().map(|url| Arc::new(Issuer::new(url, outgoing.clone()))).collect();
        let sealer = Sealer::of(data)?;
        Ok(Self { all, sealer, files: files(&config, data), config })
    }

    /// Whether they are those of this configuration, and of its files as they are. It blocks.
    pub(crate) fn are_of(&self, config: &OidcConfig, data: Option<&Path>) -> bool {
        self.config == *config && self.files == files(config, data)
    }

    /// The one with this URL. Whether that ends with a slash is easily mistaken, and says nothing.
    pub(crate) fn get(&self, url: &str) -> Option<&Arc<Issuer>> {
        let bare = |url: &str| url.strip_suffix('/').unwrap_or(url).to_owned();
        self.all.iter().find(|issuer| bare(issuer.url()) == bare(url))
    }
}

/// What is in the files of a configuration: whoever removes the key ends all logins.
fn files(config: &OidcConfig, data: Option<&Path>) -> Vec<Option<Vec<u8>>> {
    let key = data.filter(|_| !config.issuers.is_empty()).map(|data| data.join(seal::FILE));
    config.ca.iter().chain(&key).map(|path| std::fs::read(path).ok()).collect()
}
