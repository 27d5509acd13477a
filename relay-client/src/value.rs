//! What a setting can say, wherever it is written: on the command line, in the environment or in a file.

use std::{fmt, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::SignedDuration;
use serde::Deserialize;

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without an upgrade ("prior knowledge", RFC 9113, section 3.3), as gRPC servers speak.
    H2c,
}

/// A token. It is sent to the relay and shown to nobody.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(String);

impl Secret {
    /// The token itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The SHA-256 of the token: names it without telling it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        hash
    }

    /// What stands in a header is one word of visible ASCII (RFC 6750, section 2.1).
    pub(crate) fn is_one_word(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl From<String> for Secret {
    /// Without the newline that came with a file or a variable.
    fn from(text: String) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The longest time that can be asked for.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `10s`, `500ms`, `1m30s`, `2 min`: more than zero, at most a day.
///
/// # Errors
/// Everything else, with a hint.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError { input: text.to_owned() };
    let duration = text.trim().parse::<SignedDuration>().map_err(|_| error())?;
    let duration = Duration::try_from(duration).map_err(|_| error())?;
    let allowed = Duration::from_millis(1)..=DURATION_MAX;
    if allowed.contains(&duration) { Ok(duration) } else { Err(error()) }
}

/// A time that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a time from 1ms to 24h; write a number and a unit, as in 10s, 500ms or 1m30s")]
pub struct DurationError {
    input: String,
}

/// Reads a tunnel's name in any case: one DNS label (RFC 1123, section 2.1).
///
/// # Errors
/// Everything else, with a hint.
pub fn subdomain(text: &str) -> Result<String, SubdomainError> {
    let name = text.to_ascii_lowercase();
    if is_label(&name) { Ok(name) } else { Err(SubdomainError { input: text.to_owned() }) }
}

/// Letters, digits and inner hyphens, at most 63, in lower case.
pub(crate) fn is_label(name: &str) -> bool {
    matches!(name.len(), 1..=63)
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A name that cannot be a tunnel's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} cannot be a tunnel's name; write at most 63 letters, digits and hyphens, with no hyphen at either end \
     and no dot"
)]
pub struct SubdomainError {
    input: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::from("  rly_abc\n".to_owned());
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("rly_abc", "Secret(…)"));
        assert_ne!(secret.sha256(), Secret::from("rly_abd".to_owned()).sha256());
    }

    #[test]
    fn durations_and_names() {
        for (text, milliseconds) in [("10s", 10_000), ("500ms", 500), ("1m30s", 90_000), ("24h", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for bad in ["", "10", "0s", "-1s", "25h", "1us", "10 parsecs", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(subdomain("My-App2"), Ok("my-app2".to_owned()));
        for bad in ["", "-a", "a-", "a.b", "a_b", "ü", &"a".repeat(64)] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
    }
}
