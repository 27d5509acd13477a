//! Whose webhook a request is, and whether that one has signed it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use relay_protocol::exchange::public_url;
use relay_protocol::message::{RequestHead, Withheld};
use relay_protocol::webhook::{Judgement, Provider, Reply, Request, Table, Verdict, Verify, Webhooks, plain};

use crate::Shared;
use crate::edge::shown;
use crate::limits::Limits;
use crate::tunnels::Asked;

/// The most of a refused request's target that its client is told, in bytes.
const TARGET_MAX: usize = 256;

/// The longest body, in bytes, that is judged where the request is served: well below a millisecond of arithmetic. A longer
/// one is judged elsewhere, because all others of that thread would wait for it.
const AT_ONCE_MAX: usize = 64 * 1024;

/// Whose webhook a request is: that of the provider that its tunnel is for, or of whom it is recognised to be from.
pub(crate) fn sender<'t>(
    table: &'t Table,
    named: Option<&str>,
    head: &RequestHead,
    body: &[u8],
) -> Option<&'t Arc<Provider>> {
    match named {
        Some(id) => table.get(id),
        // What is about to be no request any more is no webhook.
        None if head.upgrade.is_some() => None,
        None => table.recognise(&Request::new(&head.method, &public_url(head), &head.headers, body)),
    }
}

/// The most bytes of a body that is judged: what its provider sends at most, where that is known.
pub(crate) fn longest(limits: &Limits, provider: Option<&Provider>) -> usize {
    let its = provider.and_then(|provider| usize::try_from(provider.max_body?).ok());
    its.unwrap_or(limits.verify_body)
}

/// Why a request is not judged that is nobody's.
pub(crate) const NOBODYS: &str = "nobody is known who sends such requests";

/// The judgement on what is not looked at.
pub(crate) fn unjudged(reason: impl Into<Cow<'static, str>>) -> Judgement {
    Judgement::of(Verdict::Unsupported, reason)
}

/// What is found of a request as a whole.
#[derive(Debug)]
pub(crate) enum Judged {
    /// What answers it, as it needs no signature.
    Handshake(Reply),
    /// Whose it is, and whether that one has signed it.
    Signed(Option<String>, Judgement),
}

/// Judges a request of which everything is there, at the time `at` of its arrival. None: that failed, and was reported.
pub(crate) async fn judge(
    shared: &Arc<Shared>,
    head: &RequestHead,
    asked: &Arc<Asked>,
    body: &Bytes,
    at: Timestamp,
) -> Option<Judged> {
    if body.len() <= AT_ONCE_MAX {
        return Some(judge_now(&shared.providers, head, asked, body, at));
    }
    let (owner, head, asked, body) = (shared.clone(), head.clone(), asked.clone(), body.clone());
    let judged = shared.tasks.spawn_blocking(move || judge_now(&owner.providers, &head, &asked, &body, at));
    let reported = judged.await.inspect_err(|panic| {
        shared.metrics.panics.inc();
        tracing::error!(%panic, "a signature could not be judged; this is a bug in the relay");
    });
    reported.ok()
}

fn judge_now(providers: &Table, head: &RequestHead, asked: &Asked, body: &[u8], at: Timestamp) -> Judged {
    let Webhooks { provider: named, handshake, verify, credentials } = &asked.webhooks;
    let url = public_url(head);
    let request = Request::new(&head.method, &url, &head.headers, body);
    let Some(provider) = sender(providers, named.as_deref(), head, body) else {
        return Judged::Signed(None, unjudged(NOBODYS));
    };
    // Most handshakes are not signed, so that nothing else would come of them.
    if *verify == Verify::Reject
        && *handshake
        && named.is_some()
        && let Some(reply @ (Reply::Answer { confirm: None, .. } | Reply::Refuse { .. })) =
            provider.handshake(&request, credentials, at)
    {
        return Judged::Handshake(reply);
    }
    Judged::Signed(Some(provider.id.clone()), provider.judge(&request, credentials, at))
}

/// What the client is told of a request that is refused.
pub(crate) fn withheld(head: &RequestHead, provider: Option<String>, code: &str, judgement: &Judgement) -> Withheld {
    let verdict = judgement.verdict.as_str().to_owned();
    Withheld { provider, verdict, ..refused(head, code, &plain(&judgement.reason)) }
}

/// What a client is told of a request that is refused for another reason than its signature.
pub(crate) fn refused(head: &RequestHead, code: &str, reason: &str) -> Withheld {
    let target = shown(&head.target);
    Withheld {
        id: head.id.to_string(),
        method: head.method.as_str().chars().take(TARGET_MAX).collect(),
        target: target.get(..target.floor_char_boundary(TARGET_MAX)).unwrap_or_default().to_owned(),
        remote: head.remote.to_string(),
        code: code.to_owned(),
        reason: reason.to_owned(),
        ..Withheld::default()
    }
}
