//! Who did what with the relay: each thing that was done for whoever operates it, also in part, and none that was refused.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Entries that are kept; of more, the oldest go.
pub(crate) const KEPT: i64 = 100_000;

/// Who has asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "via", rename_all = "snake_case")]
pub enum By {
    /// A command of this machine.
    Command {
        /// Its user's id.
        user: u32,
        /// Its process, where the system knows it.
        process: Option<u32>,
    },
    /// A program that bears the admin token.
    Api {
        /// Where it called from.
        address: IpAddr,
    },
    /// Whoever has sent the relay a signal, which the system does not say.
    Signal,
}

impl By {
    /// This process.
    pub(crate) fn this() -> Self {
        Self::Command { user: rustix::process::geteuid().as_raw(), process: Some(std::process::id()) }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { user, process: Some(process) } => write!(f, "user {user}, process {process}"),
            Self::Command { user, process: None } => write!(f, "user {user}"),
            Self::Api { address } => write!(f, "API, {address}"),
            Self::Signal => f.write_str("a signal"),
        }
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deed {
    /// A word of a closed set, such as `token.create`.
    pub(crate) operation: &'static str,
    /// With what: a token, a name, a webhook.
    pub(crate) subject: String,
    /// How, where there is more to say.
    pub(crate) detail: String,
}

/// An entry as it is told. The fields are not renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number; they grow with time.
    pub id: i64,
    /// When it was, in RFC 3339, UTC.
    pub at: String,
    /// Who has asked.
    pub by: By,
    /// A word of a closed set, such as `token.create`.
    pub operation: String,
    /// With what: a token, a name, a webhook.
    pub subject: String,
    /// How, where there is more to say.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn who_it_was_is_told_in_words_and_in_json() {
        let by = By::Api { address: "::1".parse().unwrap() };
        assert_eq!(
            (by.to_string(), serde_json::to_string(&by).unwrap()),
            ("API, ::1".into(), r#"{"via":"api","address":"::1"}"#.into())
        );
        assert_eq!(By::Command { user: 0, process: Some(7) }.to_string(), "user 0, process 7");
        assert_eq!(serde_json::to_string(&By::Signal).unwrap(), r#"{"via":"signal"}"#);
    }
}
