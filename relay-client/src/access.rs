//! What a tunnel's user says of who may call it, and the hashes that the relay is told of that.

use std::fmt;
use std::path::PathBuf;

use http::HeaderName;
use relay_protocol::access::{ApiKey, Authority, Digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::secret::{SecretError, SecretSource};

/// The header of a key that has none.
const USUAL: &str = "authorization";

/// A key and where it stands: `KEY`, `HEADER=KEY`, and in the place of the key `@FILE` or `env:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct KeySource {
    header: Option<String>,
    /// Where the key is.
    pub(crate) source: SecretSource,
}

/// What stands before the first `=` is a header where it is written as one.
impl From<String> for KeySource {
    fn from(text: String) -> Self {
        let is_name = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let parts = text.split_once('=').filter(|(name, _)| is_name(name));
        match parts {
            Some((name, key)) => Self { header: Some(name.to_ascii_lowercase()), source: key.to_owned().into() },
            None => Self { header: None, source: text.into() },
        }
    }
}

/// A file with certificates of authorities.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct CaFile(pub(crate) SecretSource);

impl From<String> for CaFile {
    fn from(path: String) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<PathBuf> for CaFile {
    fn from(path: PathBuf) -> Self {
        Self(path.into())
    }
}

/// As it was written, but for a key.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.header {
            Some(header) => write!(f, "{header}={}", self.source),
            None => self.source.fmt(f),
        }
    }
}

/// Why a name and a password, or a key, is none. Nothing of it is shown.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It is not to be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// There is no name, or no password.
    #[error("{0}: it is a name and a password, written NAME:PASSWORD")]
    Pair(SecretSource),
    /// There is none in the file.
    #[error("{0}: it has no certificate of an authority in PEM")]
    Authority(SecretSource),
    /// There is no key behind the `=`, or all of it is one: keys in base64 end with `=`, too. What was meant, nobody can know,
    /// and a header's name would be a key that everybody knows.
    #[error(
        "VALUE: there is no key behind its =. Where all of it is the key, write its header, as in Authorization=KEY"
    )]
    Half,
    /// There is none, or none for the relay that another place names.
    #[error(
        "there is no client_secret; one in a file is told only to the relay that the same file names, or one below it: say both in \
         one place, or give --oidc and its like"
    )]
    NoClientSecret,
    /// No header can carry it.
    #[error("{0}: a key has visible ASCII characters only, and no spaces")]
    Key(KeySource),
}

/// What the relay is told of a name and a password.
///
/// # Errors
/// [`CredentialError`].
pub(crate) fn basic(source: &SecretSource) -> Result<Digest, CredentialError> {
    let pair = source.read()?;
    match pair.expose().split_once(':') {
        Some((name, password)) if !name.trim().is_empty() && !password.trim().is_empty() => {
            Ok(Digest::of(pair.expose().as_bytes()))
        }
        _ => Err(CredentialError::Pair(source.clone())),
    }
}

/// The authorities whose certificates are in a file.
///
/// # Errors
/// [`CredentialError`].
pub(crate) fn authorities(file: &CaFile) -> Result<Vec<Authority>, CredentialError> {
    let wrong = || CredentialError::Authority(file.0.clone());
    let text = file.0.read()?;
    let certificates = CertificateDer::pem_slice_iter(text.expose().as_bytes());
    let all = certificates.map(|one| Authority::new(one.map_err(|_| wrong())?.to_vec()).map_err(|_| wrong()));
    let all: Vec<Authority> = all.collect::<Result<_, _>>()?;
    if all.is_empty() { Err(wrong()) } else { Ok(all) }
}

/// What the relay is told of a key.
///
/// # Errors
/// [`CredentialError`].
pub(crate) fn key(source: &KeySource) -> Result<ApiKey, CredentialError> {
    if source.header.is_some() && source.source.is_text_like(|text| text.trim_matches('=').trim().is_empty()) {
        return Err(CredentialError::Half);
    }
    let key = source.source.read()?;
    let header = source.header.clone().unwrap_or_else(|| USUAL.to_owned());
    let is_sent = key.expose().bytes().all(|byte| byte.is_ascii_graphic());
    if !is_sent || HeaderName::from_lowercase(header.as_bytes()).is_err() {
        return Err(CredentialError::Key(source.clone()));
    }
    Ok(ApiKey { header, key: Digest::of(key.expose().as_bytes()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_key_stands_where_it_is_said() {
        let read = |text: &str| key(&text.to_owned().into()).unwrap();
        let is = |header: &str, key: &str| ApiKey { header: header.to_owned(), key: Digest::of(key.as_bytes()) };
        assert_eq!(read("X-Api-Key=abc"), is("x-api-key", "abc"));
        assert_eq!(read("Authorization=a=b"), is("authorization", "a=b"));
        for text in ["abc", "a/b=c", "+YWJj=", "=x"] {
            assert_eq!(read(text), is("authorization", text));
        }
        assert_eq!(read("Authorization=YWJj="), is("authorization", "YWJj="));
    }

    #[test]
    fn what_is_no_credential_is_refused_and_not_shown() {
        let keys = ["X-Key=two words", "kéy", "X-Key=env:RELAY_NO_SUCH_VARIABLE"];
        let errors = keys.map(|text| key(&text.to_owned().into()).unwrap_err().to_string());
        assert_eq!(errors[0], "x-key=VALUE: a key has visible ASCII characters only, and no spaces");
        assert!(!errors[1].contains("kéy") && errors[2].contains("not set"), "{errors:?}");
        // As from X-Api-Key=$KEY where KEY is empty, or as from a key in base64.
        for text in ["X-Api-Key=", "X-Api-Key= ", "Token=", "c2VjcmU=", "c2VjcmV0LQ=="] {
            let error = key(&text.to_owned().into()).unwrap_err().to_string();
            assert!(error.contains("no key behind its =") && !error.to_lowercase().contains(&text[..4].to_lowercase()));
        }
        for text in ["", " "] {
            assert!(key(&text.to_owned().into()).unwrap_err().to_string().contains("it is empty"));
        }
        for pair in ["secret", ":secret", "secret:", "secret: "] {
            let error = basic(&pair.to_owned().into()).unwrap_err().to_string();
            assert!(error.contains("NAME:PASSWORD") && !error.contains("secret"), "{error}");
        }
        assert_eq!(basic(&"ann:a:b".to_owned().into()).unwrap(), Digest::of(b"ann:a:b"));
    }
}
