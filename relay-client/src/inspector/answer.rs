//! What the inspector answers with, and what it says where it refuses.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, Entry, HeaderName,
    LOCATION, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use relay_protocol::message::MAX_TUNNELS;
use serde::Serialize;
use serde_json::json;

use crate::inboxes::InboxesError;
use crate::upstream::service::Body;

pub(super) type Answer = Response<Body>;

/// The page needs its own files and calls its own API. Whatever else a payload would load, it does not get.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// What stands in every answer: no other site may frame, read or guess at what it gets here, and nothing is left behind.
const SEAL: [(HeaderName, HeaderValue); 7] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Adds what stands in every answer.
pub(super) fn seal(answer: &mut Answer) {
    for (name, value) in SEAL {
        // The page's own files may be kept, as long as it is asked whether they are still the same.
        if let Entry::Vacant(vacant) = answer.headers_mut().entry(name) {
            vacant.insert(value);
        }
    }
}

/// Bytes of a type.
pub(super) fn bytes(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    self::body(status, kind, body.into().into())
}

/// As [`bytes`], where they arrive over time.
pub(super) fn body(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A value as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(status, "application/json", body),
        // What we serialize has names for keys, so this does not happen.
        Err(error) => Problem::History(error.to_string()).answer(Form::Ours),
    }
}

/// Bytes to be kept in a file, whatever they are: nothing here may look at them.
pub(super) fn download(kind: &'static str, name: &str, body: impl Into<Bytes>) -> Answer {
    as_download(bytes(StatusCode::OK, kind, body), name)
}

/// An answer to be kept in a file of this name.
pub(super) fn as_download(mut answer: Answer, name: &str) -> Answer {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = name.chars().filter(|c| is_safe(*c)).collect();
    let attached = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    answer.headers_mut().insert(CONTENT_DISPOSITION, attached.unwrap_or(HeaderValue::from_static("attachment")));
    answer
}

/// Done, and nothing to say.
pub(super) fn nothing() -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// Somewhere else.
pub(super) fn redirect(location: &str) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SEE_OTHER;
    answer.headers_mut().insert(LOCATION, HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/")));
    answer
}

/// Somewhere else, with a cookie that opens it.
pub(super) fn sign_in(location: &str, cookie: &str) -> Answer {
    let mut answer = redirect(location);
    if let Ok(mut cookie) = HeaderValue::from_str(&format!("{cookie}; Path=/; HttpOnly; SameSite=Strict")) {
        cookie.set_sensitive(true);
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

/// In which form a problem is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As the relay's own errors.
    Ours,
    /// So, and as ngrok's agent does, too.
    Agent,
}

/// Why a call is not answered as asked. The text says what happened; [`Problem::hint`] what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("The Host header names neither this machine nor this port.")]
    Host,
    #[error("The request has come through a proxy or a tunnel, and so perhaps from anywhere.")]
    Forwarded,
    #[error("The request was made by a page of another site.")]
    CrossSite,
    #[error("This inspector asks for a token.")]
    Unauthorized,
    #[error("The body is not declared as JSON.")]
    MediaType,
    #[error("There is nothing at this path.")]
    NoPath,
    #[error("This path does not take the method.")]
    Method(&'static str),
    #[error("The body has more than {} MiB.", super::limits::BODY >> 20)]
    TooLarge,
    #[error("The body has not arrived within {} s.", super::limits::BODY_TIME.as_secs())]
    SlowBody,
    #[error("The body is not understood: {0}.")]
    Json(String),
    #[error("{name} is not understood: {reason}.")]
    Parameter { name: &'static str, reason: String },
    #[error("There is no parameter {0:?} here.")]
    UnknownParameter(String),
    #[error("There is no request {0:?}.")]
    NoExchange(String),
    #[error("There is no answer to {0:?}.")]
    NoResponse(String),
    #[error("It cannot be sent once more: {0}.")]
    NoReplay(String),
    #[error("No such request has arrived within {0:?}.")]
    NotYet(Duration),
    #[error("{} others are told of events or wait already, which is as many as may.", super::limits::WATCHERS)]
    Watchers,
    #[error("The client has ended.")]
    Ended,
    #[error("No tunnel is called {0:?}.")]
    NoTunnel(String),
    #[error("There is a tunnel called {0:?} already.")]
    TunnelExists(String),
    #[error("A session has at most {MAX_TUNNELS} tunnels.")]
    TooManyTunnels,
    #[error("The relay refuses the tunnel: {0}")]
    TunnelRefused(String),
    #[error("There is no answer from the relay.")]
    RelayAway,
    #[error("{0} is not a port of this machine.")]
    RemoteUpstream(String),
    #[error("{0} is the inspector itself.")]
    OwnUpstream(String),
    #[error("The client of process {pid} {why}: what it still has may come again.")]
    NotCleared { pid: u32, why: String },
    #[error("No tunnel of this client has an inbox {0:?}.")]
    NoInbox(String),
    #[error("The webhook {0:?} was delivered, and its body is not kept any more.")]
    NoBody(String),
    #[error("The relay does not tell of the inbox: {0}.")]
    Inboxes(#[from] InboxesError),
    #[error("What was recorded cannot be read: {0}.")]
    History(String),
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::Host | Self::Forwarded | Self::CrossSite | Self::RemoteUpstream(_) | Self::OwnUpstream(_) => {
                StatusCode::FORBIDDEN
            }
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoInbox(_) | Self::NoBody(_) | Self::Inboxes(InboxesError::Path(_)) => StatusCode::NOT_FOUND,
            Self::Inboxes(InboxesError::Refused { status, .. }) if status.is_client_error() => *status,
            Self::Inboxes(_) => StatusCode::BAD_GATEWAY,
            // Of what may be said of a wait that was for nothing, this is what nobody asks again for by himself.
            Self::NoPath | Self::NoTunnel(_) | Self::NoExchange(_) | Self::NoResponse(_) | Self::NotYet(_) => {
                StatusCode::NOT_FOUND
            }
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Json(_) | Self::Parameter { .. } | Self::UnknownParameter(_) => StatusCode::BAD_REQUEST,
            Self::TunnelExists(_) | Self::TooManyTunnels | Self::TunnelRefused(_) | Self::NoReplay(_) => {
                StatusCode::CONFLICT
            }
            Self::RelayAway | Self::Watchers | Self::Ended | Self::NotCleared { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::History(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Host => "host-not-allowed",
            Self::Forwarded => "forwarded",
            Self::CrossSite => "cross-site",
            Self::Unauthorized => "unauthorized",
            Self::MediaType => "unsupported-media-type",
            Self::NoPath => "not-found",
            Self::Method(_) => "method-not-allowed",
            Self::TooLarge => "body-too-large",
            Self::SlowBody => "body-timeout",
            Self::Json(_) | Self::Parameter { .. } | Self::UnknownParameter(_) => "bad-request",
            Self::NoExchange(_) => "exchange-not-found",
            Self::NoResponse(_) => "response-not-found",
            Self::NoReplay(_) => "not-replayable",
            Self::NotYet(_) => "not-yet",
            Self::Watchers => "too-many-watchers",
            Self::Ended => "client-ended",
            Self::NoTunnel(_) => "tunnel-not-found",
            Self::TunnelExists(_) => "tunnel-exists",
            Self::TooManyTunnels => "too-many-tunnels",
            Self::TunnelRefused(_) => "tunnel-refused",
            Self::RelayAway => "relay-away",
            Self::RemoteUpstream(_) => "remote-upstream",
            Self::OwnUpstream(_) => "own-upstream",
            Self::NotCleared { .. } => "not-all-cleared",
            Self::NoInbox(_) => "inbox-not-found",
            Self::NoBody(_) => "body-not-kept",
            Self::Inboxes(_) => "relay-refused",
            Self::History(_) => "history-unreadable",
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Host => "Call it as localhost or 127.0.0.1, with its port; elsewhere it takes an --inspect-token.",
            Self::Forwarded => "Call it directly on this machine, or give it an --inspect-token.",
            Self::CrossSite => "Only its own page and programs may call it.",
            Self::Unauthorized => "Send Authorization: Bearer TOKEN, or open its page with ?token=TOKEN once.",
            Self::MediaType => "Send Content-Type: application/json.",
            Self::NoPath => "The paths are listed by /api/v1/openapi.json.",
            Self::Method(_) => "The Allow header lists those that it takes.",
            Self::TooLarge | Self::SlowBody => "Send less.",
            Self::Json(_) | Self::Parameter { .. } | Self::UnknownParameter(_) => {
                "What each call takes is listed by /api/v1/openapi.json."
            }
            Self::NoExchange(_) => "GET the list of requests for their ids; the oldest go when there are too many.",
            Self::NoResponse(_) => "The service has not answered.",
            Self::NoReplay(_) => "Change what stands in the way, as with body or resign.",
            Self::NotYet(_) => "Wait again, with since=ID of the last one that is known.",
            Self::Watchers => "Close a page that shows this one.",
            Self::Ended => "Start it again.",
            Self::NoTunnel(_) => "GET the list of tunnels for their names.",
            Self::TunnelExists(_) => "Choose another name, or delete that one first.",
            Self::TooManyTunnels => "Delete one first.",
            Self::TunnelRefused(_) => "It is not asked for again.",
            Self::RelayAway => "Try again when GET /api/v1/status says connected.",
            Self::RemoteUpstream(_) => "Start the client with --allow-remote-upstreams if that is meant.",
            Self::OwnUpstream(_) => "It is not meant for the public.",
            Self::NotCleared { .. } => "All else is removed. End that client, and clear once more.",
            Self::NoInbox(_) => "GET the list of inboxes for their names.",
            Self::NoBody(_) => "The list of requests may still have it.",
            Self::Inboxes(_) => "Try again when GET /api/v1/status says connected.",
            Self::History(_) => "Look at what the client says on its terminal.",
        }
    }

    pub(super) fn answer(&self, form: Form) -> Answer {
        let (status, message) = (self.status(), self.to_string());
        let mut body = json!({ "error": { "code": self.code(), "message": message, "hint": self.hint() } });
        if let (Form::Agent, Some(body)) = (form, body.as_object_mut()) {
            body.insert("status_code".to_owned(), status.as_u16().into());
            body.insert("msg".to_owned(), message.into());
            body.insert("details".to_owned(), json!({ "err": self.hint() }));
        }
        let mut answer = bytes(status, "application/json", body.to_string());
        match self {
            Self::Method(allowed) => drop(answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed))),
            Self::Unauthorized => {
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                // Whoever is not let in has a connection for one try.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        answer
    }
}
