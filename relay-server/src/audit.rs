//! Who did what with the relay: each thing that was done for whoever operates it, and none that was refused.

use std::fmt;
use std::net::IpAddr;

use relay_protocol::inbox::api::Which;
use serde::{Deserialize, Serialize};

use crate::control::{InboxRequest, Request};
use crate::store::{LimitChange, Name};

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

impl Deed {
    /// What a request would do; none where it only looks.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let deed =
            |operation, subject: &str, detail: String| Some(Self { operation, subject: subject.to_owned(), detail });
        let none = String::new;
        match request {
            Request::CreateToken(new) => {
                let reserve = if new.reserve.is_empty() { none() } else { format!("reserve {}", listed(&new.reserve)) };
                deed("token.create", &new.name, reserve)
            }
            // It says what they are.
            Request::LimitToken { change, .. } if *change == LimitChange::default() => None,
            Request::LimitToken { token, change } => {
                deed("token.limit", token, serde_json::to_string(change).unwrap_or_default())
            }
            Request::RevokeToken { token } => deed("token.revoke", token, none()),
            Request::ForgetToken { token } => deed("token.forget", token, none()),
            Request::Reserve { token, names, provider, inbox } => {
                let provider = provider.as_ref().map(|provider| format!(", provider {provider}")).unwrap_or_default();
                let inbox = inbox.as_ref().map(|inbox| format!(", inbox {inbox}")).unwrap_or_default();
                deed("name.reserve", &listed(names), format!("for {token}{provider}{inbox}"))
            }
            Request::Release { names, forget } => {
                deed("name.release", &listed(names), if *forget { "forget webhooks".to_owned() } else { none() })
            }
            Request::Inbox(request) => Self::of_inbox(request),
            Request::EndSession { session } => deed("session.end", session, none()),
            Request::Block { target, reason } => deed("block.add", &target.to_string(), reason.clone()),
            Request::Unblock { id } => deed("block.remove", &id.to_string(), none()),
            Request::AdminToken { renew: true } => deed("admin-token.renew", "", none()),
            Request::AdminToken { renew: false } => deed("admin-token.show", "", none()),
            Request::Reload => deed("relay.reload", "", none()),
            Request::Upgrade => deed("relay.upgrade", "", none()),
            Request::Ping
            | Request::ListTokens
            | Request::Status
            | Request::ListSessions
            | Request::ListTunnels
            | Request::ListCertificates
            | Request::ListBlocks
            | Request::Audit { .. }
            | Request::TakeOver { .. } => None,
        }
    }

    /// To look at a webhook is a deed: it is somebody's.
    fn of_inbox(request: &InboxRequest) -> Option<Self> {
        let (operation, subject, detail) = match request {
            InboxRequest::List | InboxRequest::Page { .. } => return None,
            InboxRequest::Show { inbox, id } => ("inbox.show", inbox, id.clone()),
            InboxRequest::Retry { inbox, which } => ("inbox.retry", inbox, told(which)),
            InboxRequest::Drop { inbox, which } => ("inbox.drop", inbox, told(which)),
            InboxRequest::Pause { inbox, paused: true } => ("inbox.pause", inbox, String::new()),
            InboxRequest::Pause { inbox, paused: false } => ("inbox.resume", inbox, String::new()),
            InboxRequest::Close { inbox } => ("inbox.close", inbox, String::new()),
        };
        Some(Self { operation, subject: subject.clone(), detail })
    }
}

fn told(which: &Which) -> String {
    match which {
        Which::Ids(ids) => ids.join(" "),
        Which::All(state) => format!("all {state}"),
    }
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn the_documentation_lists_every_operation() {
        let source = include_str!("audit.rs").split("#[cfg(test)]").next().unwrap();
        let page = include_str!("../../docs/admin-api.md");
        let words = source.split('"').filter(|word| {
            word.contains('.') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'-')
        });
        let words: std::collections::BTreeSet<_> = words.collect();
        assert!(words.len() >= 15, "{words:?}");
        for word in words {
            assert!(page.contains(&format!("`{word}`")), "docs/admin-api.md lacks {word}");
        }
    }

    #[test]
    fn who_it_was_is_told_in_words_and_in_json() {
        let by = By::Api { address: "::1".parse().unwrap() };
        assert_eq!(
            (by.to_string(), serde_json::to_string(&by).unwrap()),
            ("API, ::1".into(), r#"{"via":"api","address":"::1"}"#.into())
        );
        assert_eq!(By::Command { user: 0, process: Some(7) }.to_string(), "user 0, process 7");
    }
}
