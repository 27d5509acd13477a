//! What of that which is asked for goes into the audit log, and in which words.

use relay_protocol::inbox::api::Which;

use super::words::{InboxRequest, Request};
use crate::audit::Deed;
use crate::clock::moment;
use crate::store::{LimitChange, Name, TokenLimits};

/// What a request would do; none where it only looks.
pub(crate) fn of(request: &Request) -> Option<Deed> {
    let deed = |operation, subject: &str, detail: String| Some(Deed { operation, subject: subject.to_owned(), detail });
    let none = String::new;
    match request {
        Request::CreateToken(new) => {
            let reserve = (!new.reserve.is_empty()).then(|| format!("reserve {}", listed(&new.reserve)));
            let expires = new.expires_at.map(|at| format!("expires {}", moment(at)));
            let limits = LimitChange::between(TokenLimits::default(), new.limits.clone());
            let limits = (limits != LimitChange::default()).then(|| in_json(&limits));
            let all: Vec<_> = [reserve, expires, limits].into_iter().flatten().collect();
            deed("token.create", &new.name, all.join(", "))
        }
        // It says what they are.
        Request::LimitToken { change, .. } if *change == LimitChange::default() => None,
        Request::LimitToken { token, change } => deed("token.limit", token, in_json(change)),
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
        Request::Inbox(request) => of_inbox(request),
        Request::EndSession { session } => deed("session.end", session, none()),
        Request::Block { target, reason } => deed("block.add", &target.to_string(), reason.clone()),
        Request::Unblock { id } => deed("block.remove", &id.to_string(), none()),
        Request::AdminToken { renew: true } => deed("admin-token.renew", "", none()),
        Request::AdminToken { renew: false } => deed("admin-token.show", "", none()),
        Request::Reload => deed("relay.reload", "", none()),
        Request::Upgrade => deed("relay.upgrade", "", none()),
        Request::Ping
        | Request::ListTokens
        | Request::FindToken { .. }
        | Request::Status
        | Request::ListSessions
        | Request::ListTunnels
        | Request::ListCertificates
        | Request::ListBlocks
        | Request::Audit { .. }
        | Request::TakeOver { .. } => None,
    }
}

fn in_json(change: &LimitChange) -> String {
    serde_json::to_string(change).unwrap_or_default()
}

/// To look at a webhook is a deed: it is somebody's.
fn of_inbox(request: &InboxRequest) -> Option<Deed> {
    let (operation, subject, detail) = match request {
        InboxRequest::List | InboxRequest::Page { .. } => return None,
        InboxRequest::Show { inbox, id } => ("inbox.show", inbox, id.clone()),
        InboxRequest::Retry { inbox, which } => ("inbox.retry", inbox, told(which)),
        InboxRequest::Drop { inbox, which } => ("inbox.drop", inbox, told(which)),
        InboxRequest::Pause { inbox, paused: true } => ("inbox.pause", inbox, String::new()),
        InboxRequest::Pause { inbox, paused: false } => ("inbox.resume", inbox, String::new()),
        InboxRequest::Close { inbox } => ("inbox.close", inbox, String::new()),
    };
    Some(Deed { operation, subject: subject.clone(), detail })
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

    #[test]
    fn the_documentation_lists_every_operation() {
        let source = include_str!("deeds.rs").split("#[cfg(test)]").next().unwrap();
        let page = include_str!("../../../docs/admin-api.md");
        let words = source.split('"').filter(|word| {
            word.contains('.') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'-')
        });
        let words: std::collections::BTreeSet<_> = words.collect();
        assert!(words.len() >= 15, "{words:?}");
        for word in words {
            assert!(page.contains(&format!("`{word}`")), "docs/admin-api.md lacks {word}");
        }
    }
}
