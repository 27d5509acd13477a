//! Why the admin API does not do what it was asked: one table from cause to status, code and what to do.

use http::StatusCode;
use thiserror::Error;

use crate::control::{Reply, Why};

/// Why a call is refused.
#[derive(Debug, Error)]
pub(super) enum Problem {
    /// The name that the caller has for this machine is a stranger's, or there are two.
    #[error("This Host is not served here.")]
    Host,
    /// A page has made the call.
    #[error("Pages of other sites may not call this API.")]
    CrossSite,
    /// The secret is missing or wrong.
    #[error("The admin token is missing or wrong.")]
    Unauthorized,
    /// The body is no JSON by its type.
    #[error("The body has to be JSON, and its Content-Type has to say so.")]
    MediaType,
    /// There is nothing at the path.
    #[error("There is nothing at this path.")]
    NoPath,
    /// The path is known, and not for this method.
    #[error("This path takes only {0}.")]
    Method(&'static str),
    /// The body, a parameter or a part of the path is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// The body is longer than any has to be.
    #[error("The body has more than {0} bytes.")]
    TooLarge(usize),
    /// The body does not come.
    #[error("The body did not arrive in time.")]
    Slow,
    /// The relay says no.
    #[error("{message}")]
    Refused {
        /// Of what kind that is.
        why: Why,
        /// Its words.
        message: String,
    },
    /// Another process of the relay has taken over.
    #[error("Another process of the relay has taken over.")]
    HandedOver,
    /// The relay's own fault.
    #[error("The relay failed: {0}")]
    Internal(String),
}

impl Problem {
    /// What the relay's reply means where another one was expected.
    pub(super) fn of(reply: Reply) -> Self {
        match reply {
            Reply::Refused { why, message } => Self::Refused { why, message: sentence(message) },
            other => Self::Internal(format!("it answered {other:?}")),
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::CrossSite => StatusCode::FORBIDDEN,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoPath | Self::Refused { why: Why::Unknown, .. } => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Invalid(_) | Self::Refused { why: Why::Invalid, .. } => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Refused { why: Why::Conflict, .. } => StatusCode::CONFLICT,
            Self::HandedOver | Self::Refused { why: Why::Failed, .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable code; `docs/admin-api.md` lists them.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Host => "unknown-host",
            Self::CrossSite => "cross-site",
            Self::Unauthorized => "unauthorized",
            Self::MediaType => "unsupported-media-type",
            Self::NoPath | Self::Refused { why: Why::Unknown, .. } => "not-found",
            Self::Method(_) => "method-not-allowed",
            Self::Invalid(_) | Self::Refused { why: Why::Invalid, .. } => "bad-request",
            Self::TooLarge(_) => "body-too-large",
            Self::Slow => "body-timeout",
            Self::Refused { why: Why::Conflict, .. } => "conflict",
            Self::HandedOver => "draining",
            Self::Refused { why: Why::Failed, .. } => "failed",
            Self::Internal(_) => "internal",
        }
    }

    /// What to do about it.
    pub(super) const fn hint(&self) -> &'static str {
        match self {
            Self::Host => "Call it by localhost or by its address.",
            Self::CrossSite => "Use the dashboard at this address, or call it without Origin and Sec-Fetch-Site.",
            Self::Unauthorized => "`relay-server admin-token` prints it; send it as Authorization: Bearer TOKEN.",
            Self::MediaType => "Send Content-Type: application/json.",
            Self::NoPath | Self::Method(_) => "/api/v1/openapi.json lists the paths and what they take.",
            Self::Invalid(_) | Self::TooLarge(_) | Self::Refused { why: Why::Invalid, .. } => {
                "/api/v1/openapi.json says what each call takes."
            }
            Self::Slow | Self::HandedOver => "Send it again, on another connection.",
            Self::Refused { why: Why::Unknown, .. } => "The list above it shows those that there are.",
            Self::Refused { why: Why::Conflict, .. } => "See what the message says is in the way.",
            Self::Refused { why: Why::Failed, .. } | Self::Internal(_) => "Look at the relay's log.",
        }
    }
}

/// The relay's words, which stand behind `relay-server:` on a command line, as a sentence.
fn sentence(message: String) -> String {
    let mut letters = message.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if message.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_code_with_its_status() {
        let refused = |why| Problem::Refused { why, message: String::new() };
        let all = [
            Problem::Host,
            Problem::CrossSite,
            Problem::Unauthorized,
            Problem::MediaType,
            Problem::NoPath,
            Problem::Method(""),
            Problem::Invalid(String::new()),
            Problem::TooLarge(0),
            Problem::Slow,
            Problem::HandedOver,
            Problem::Internal(String::new()),
            refused(Why::Conflict),
            refused(Why::Failed),
        ];
        let page = include_str!("../../../docs/admin-api.md");
        for problem in &all {
            let row = format!("| `{}` | {} |", problem.code(), problem.status().as_u16());
            assert!(page.contains(&row), "docs/admin-api.md lacks the row {row}");
        }
        let (_, table) = page.split_once("| code | status |").unwrap_or_default();
        let (table, _) = table.split_once("\n\n").unwrap_or((table, ""));
        assert_eq!(table.lines().filter(|line| line.starts_with("| `")).count(), all.len());
    }

    #[test]
    fn what_a_command_says_is_a_sentence_here() {
        assert_eq!(sentence("there is no token named \"a\"".to_owned()), "There is no token named \"a\".");
        assert_eq!(sentence(String::new()), ".");
    }
}
