//! Inboxes and webhooks as the API and `relay-server inbox` tell of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use relay_protocol::exchange::public_url;
use relay_protocol::inbox::api::{Inbox, Tried, Webhook};
use relay_protocol::message::{Payload as _, RequestHead};

use super::Settings;
use super::records::{self, Attempt, Row};

/// A moment, in milliseconds, in UTC.
fn moment(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| millis.to_string(), |moment| moment.to_string())
}

pub(crate) fn inbox(inbox: &records::Inbox) -> Inbox {
    let settings: Settings = serde_json::from_str(&inbox.settings).unwrap_or_default();
    Inbox {
        name: inbox.name.clone(),
        token: None,
        how: settings.inbox.to_string(),
        paused: inbox.paused,
        waiting: inbox.waiting,
        delivered: inbox.delivered,
        dead: inbox.dead,
        bytes: inbox.bytes,
        oldest_at: inbox.oldest_at.map(moment),
    }
}

pub(crate) fn webhook(row: &Row) -> Webhook {
    // Written by this program; a head of another version is shown without what is in it.
    let head = RequestHead::from_bytes(&row.head).ok();
    let text = |of: fn(&RequestHead) -> String| head.as_ref().map(of).unwrap_or_default();
    Webhook {
        id: row.id.to_string(),
        state: row.state.as_str().to_owned(),
        method: text(|head| head.method.to_string()),
        path: text(|head| head.target.to_string()),
        url: text(public_url),
        remote: text(|head| head.remote.to_string()),
        received_at: moment(row.received_at),
        first_at: moment(row.first_at),
        due_at: row.due_at.map(moment),
        under_way: row.leased,
        attempts: row.attempts,
        copies: row.copies,
        status: row.status,
        ended_at: row.ended_at.map(moment),
        reason: row.reason.clone(),
        provider: row.provider.clone(),
        event_id: row.event_id.clone(),
        event_type: row.event_type.clone(),
        verdict: row.verdict.clone(),
        differs_from: row.differs_from.map(|id| id.to_string()),
        size: row.body_size,
    }
}

/// The header lines of a webhook.
pub(crate) fn headers(head: &Bytes) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
    let text = |value: &HeaderValue| value.to_str().map_or_else(|_| text(value), str::to_owned);
    let head = RequestHead::from_bytes(head).ok();
    let lines = head.into_iter().flat_map(|head| head.headers);
    lines.map(|(name, value)| (name.as_str().to_owned(), text(&value))).collect()
}

pub(crate) fn tried((number, attempt): (u32, Attempt)) -> Tried {
    let Attempt { at, duration_ms, status, error } = attempt;
    Tried { number, at: moment(at), duration_ms, status, error }
}

pub(crate) fn base64(body: &[u8]) -> String {
    STANDARD.encode(body)
}
