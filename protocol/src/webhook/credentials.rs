//! What a user knows of a provider: secrets, settings, and keys that the provider publishes.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

/// Values that a scheme needs beside the secret, by the names that the provider's row gives them.
pub type Settings = BTreeMap<String, String>;

/// All that judging and signing may need to know. Debug output shows no secret, and of the settings the names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The secrets that may have signed, the current one first: several while one takes another's place. Of a provider
    /// that signs with a key pair these are its public keys, in the form in which it shows them, or as PEM.
    pub secrets: Vec<Secret>,
    /// What [`Provider::settings`](super::Provider::settings) asks for.
    pub settings: Settings,
    /// Keys and certificates (PEM, or a JSON Web Key Set) that were fetched from where
    /// [`Provider::key_url`](super::Provider::key_url) says, by that URL.
    pub published: BTreeMap<String, String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secrets, settings, published } = self;
        let (settings, published): (Vec<_>, Vec<_>) = (settings.keys().collect(), published.keys().collect());
        f.debug_struct("Credentials")
            .field("secrets", secrets)
            .field("settings", &settings)
            .field("published", &published)
            .finish()
    }
}

/// A signing secret. It prints as `[redacted]`; [`Secret::expose`] is the one way to the text. Two of
/// the user's own may be compared; what a request says is held against one in constant time, elsewhere.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
