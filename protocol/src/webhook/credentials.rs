//! What a user knows of a provider: secrets, settings, and keys that the provider publishes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use serde::Deserialize;

use super::scheme::{Key, KeyForm, Scheme, pem_key};

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
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub struct Secret {
    text: String,
    /// The first key that was made of it. Mostly all of them are for one provider's requests, of which there are many.
    made: OnceLock<Made>,
}

/// A key, and what it was made for.
#[derive(Clone)]
struct Made {
    scheme: Scheme,
    form: KeyForm,
    prefix: Option<String>,
    key: Option<Arc<Key>>,
}

impl Made {
    fn new(text: &str, scheme: Scheme, form: KeyForm, prefix: Option<&str>) -> Self {
        let der = if scheme.is_symmetric() { None } else { pem_key(text) };
        let bytes = der.or_else(|| form.key(text, prefix));
        let key = bytes.and_then(|bytes| Key::new(scheme, bytes)).map(Arc::new);
        Self { scheme, form, prefix: prefix.map(str::to_owned), key }
    }

    fn is_for(&self, scheme: Scheme, form: KeyForm, prefix: Option<&str>) -> bool {
        self.scheme == scheme && self.form == form && self.prefix.as_deref() == prefix
    }
}

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The key that verifies, of a secret in this form that may begin with `prefix`, or of a public key as PEM. `None`: it
    /// is in no such form.
    pub(super) fn key(&self, scheme: Scheme, form: KeyForm, prefix: Option<&str>) -> Option<Arc<Key>> {
        let make = || Made::new(&self.text, scheme, form, prefix);
        let made = self.made.get_or_init(make);
        if made.is_for(scheme, form, prefix) { made.key.clone() } else { make().key }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Secret {}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self { text, made: OnceLock::new() }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
