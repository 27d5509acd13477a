//! Why the relay answers a request itself: one table from cause to status, text and what to do.

use http::StatusCode;
use relay_protocol::frame::Reset;
use relay_protocol::mux::StreamError;

macro_rules! causes {
    ($($(#[$meta:meta])* $variant:ident = $code:literal, $status:ident, $retry:expr, $message:literal, $hint:literal;)*) => {
        /// Why the relay answers a request itself. The codes are stable; `docs/errors.md` lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Cause { $($(#[$meta])* $variant,)* }

        impl Cause {
            /// Every cause.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable code: the value of `Relay-Error`.
            pub(crate) const fn code(self) -> &'static str { match self { $(Self::$variant => $code,)* } }

            /// The status that it is answered with.
            pub(crate) const fn status(self) -> StatusCode { match self { $(Self::$variant => StatusCode::$status,)* } }

            /// Seconds after which trying again makes sense, where it does.
            pub(crate) const fn retry_after(self) -> Option<u32> { match self { $(Self::$variant => $retry,)* } }

            /// What happened, in the caller's terms.
            pub(crate) const fn message(self) -> &'static str { match self { $(Self::$variant => $message,)* } }

            /// What to do about it.
            pub(crate) const fn hint(self) -> &'static str { match self { $(Self::$variant => $hint,)* } }
        }
    };
}

causes! {
    /// Nobody has this name.
    TunnelNotFound = "tunnel-not-found", NOT_FOUND, None,
        "No tunnel has this name.",
        "Start one with `relay http PORT --subdomain NAME`, or check the URL for a typing error.";
    /// The tunnel's client is not connected.
    ClientOffline = "client-offline", SERVICE_UNAVAILABLE, Some(5),
        "The tunnel exists, but its client is not connected at the moment.",
        "Start `relay http` again, or wait until the machine that runs it is back online.";
    /// Nothing listens behind the client.
    UpstreamRefused = "upstream-refused", BAD_GATEWAY, Some(5),
        "The tunnel's client is connected, but nothing accepts connections on its local port.",
        "Start the local service, or give `relay http` the port that it listens on.";
    /// What answered behind the client is not HTTP.
    UpstreamInvalid = "upstream-invalid", BAD_GATEWAY, None,
        "The local service did not send a complete HTTP response.",
        "Look at the local service's log: it closed the connection early, or does not speak HTTP on that port.";
    /// The local service was too slow.
    Deadline = "deadline", GATEWAY_TIMEOUT, None,
        "The local service did not answer in time.",
        "Answer first and do slow work afterwards, or allow more time with `relay http --timeout`.";
    /// The session ended under the request.
    LinkLost = "link-lost", BAD_GATEWAY, Some(1),
        "The connection to the tunnel's client broke while the request was under way.",
        "Send the request again; the client reconnects by itself.";
    /// The inbox holds as much as it may, or the disk is full.
    InboxFull = "inbox-full", INSUFFICIENT_STORAGE, Some(60),
        "The tunnel's inbox has no room for the webhook, which was not accepted.",
        "Let its client take what waits, drop what is not wanted (`relay inbox drop`), or have the operator make room.";
    /// The inbox cannot be written.
    InboxFailed = "inbox-failed", SERVICE_UNAVAILABLE, Some(30),
        "The tunnel's inbox could not be written, so that the webhook was not accepted.",
        "Look at the relay's log: it says what is the matter with its disk.";
    /// Too much at once.
    TooManyRequests = "too-many-requests", TOO_MANY_REQUESTS, Some(1),
        "Too many requests are under way at once.",
        "Wait for the answers of earlier requests before sending more.";
    /// The token has had as much of the month as it may.
    QuotaExceeded = "quota-exceeded", TOO_MANY_REQUESTS, Some(3600),
        "The tunnel's owner has used up what this relay allows in a month.",
        "Wait for the next month, or have the relay's operator allow more (`relay-server token limit`).";
    /// The request's body is too large.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, None,
        "The request's body is larger than is allowed here.",
        "Send less, or have the limit raised: `--body-limit` by the tunnel's owner, whose `--verify reject` lets in no more than can be judged, `limits.body_bytes` or that of the token (`relay-server token limit --max-body`) by the relay's operator.";
    /// The request's body stopped coming.
    BodyTimeout = "body-timeout", REQUEST_TIMEOUT, None,
        "The request's body stopped arriving.",
        "Send the body without long pauses, or have the relay's operator raise `limits.body_idle`.";
    /// The operator keeps it out.
    Blocked = "blocked", FORBIDDEN, None,
        "The operator of this relay has blocked this address.",
        "Ask the relay's operator, where you think that it should not be.";
    /// The tunnel's owner lets in others only.
    AddressNotAllowed = "address-not-allowed", FORBIDDEN, None,
        "This tunnel does not take requests from your address.",
        "Send from an address that is let in, or ask for yours to be: the tunnel's owner (`relay http --allow`), or the relay's operator where that confines the owner (`relay-server token limit --allow`).";
    /// The tunnel's owner wants a client certificate.
    CertificateRequired = "certificate-required", FORBIDDEN, None,
        "This tunnel takes requests only from those who show a client certificate that its owner gives out.",
        "Send with that certificate and its key to the tunnel's own https:// URL, as in `curl --cert FILE --key FILE https://NAME.DOMAIN/`.";
    /// The connection was made for another host, or before a certificate was asked for.
    Misdirected = "misdirected", MISDIRECTED_REQUEST, None,
        "This tunnel asks for a client certificate, and this connection was made for another host or before that.",
        "Send the request again, on a connection of its own.";
    /// The tunnel's owner wants a name and a password, or a key.
    CredentialsRequired = "credentials-required", UNAUTHORIZED, None,
        "This tunnel wants a name and a password, or a key, that its owner gives out.",
        "Send what its owner has given you, as WWW-Authenticate names it.";
    /// The tunnel's owner wants people to log in.
    LoginRequired = "login-required", UNAUTHORIZED, None,
        "This tunnel wants you to log in, in a browser, and this request has no login.",
        "Open the URL itself in a browser. Programs need a path that the tunnel's owner has opened for them (`relay http --oidc-skip`).";
    /// A login was not finished where and when it was begun.
    LoginLost = "login-lost", BAD_REQUEST, None,
        "This login has taken too long, or was begun in another browser.",
        "Begin again. The browser has to take cookies from this address.";
    /// The issuer, or the tunnel's owner, does not let somebody in.
    LoginDenied = "login-denied", FORBIDDEN, None,
        "You are not let in.",
        "Ask the tunnel's owner to let you in (`relay http --oidc-allow`), or log in as somebody else.";
    /// Nobody says who somebody is.
    LoginFailed = "login-failed", BAD_GATEWAY, None,
        "The relay cannot find out who you are.",
        "Try again. If it stays so, tell the tunnel's owner, who is told of it as well.";
    /// The tunnel's owner has not opened that path.
    PathNotAllowed = "path-not-allowed", FORBIDDEN, None,
        "This tunnel does not take requests for that path.",
        "Check the URL for a typing error, or ask the tunnel's owner to open it (`relay http --allow-path`).";
    /// The tunnel's owner has not opened that method.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, None,
        "This tunnel does not take requests with that method.",
        "Use one of those that Allow names, or ask the tunnel's owner to open it (`relay http --allow-method`).";
    /// The token is missing or wrong.
    Unauthorized = "unauthorized", UNAUTHORIZED, None,
        "The token is missing, unknown, expired or revoked.",
        "Ask the relay's operator for a token (`relay-server token create NAME`), and give it as RELAY_TOKEN or --token.";
    /// The request is not signed as the tunnel's owner wants it.
    SignatureInvalid = "signature-invalid", UNAUTHORIZED, None,
        "The request is not signed as this tunnel wants it.",
        "Sign it as the provider does, with the secret that the tunnel was given, and send it without delay.";
    /// The relay shuts down.
    Draining = "draining", SERVICE_UNAVAILABLE, Some(5),
        "The relay is restarting.",
        "Send the request again in a few seconds.";
    /// The request is not one that can be passed on.
    BadRequest = "bad-request", BAD_REQUEST, None,
        "The request is not valid HTTP, or can be read in more than one way.",
        "Send one Host header, one body framing, and no header that imitates another.";
    /// The host is not one of ours.
    UnknownHost = "unknown-host", MISDIRECTED_REQUEST, None,
        "This relay does not serve that host.",
        "Check the Host header and the DNS record that led here.";
    /// A browser wants a page where only webhooks are served.
    NoPages = "no-pages", FORBIDDEN, None,
        "This address is for webhooks and other programs; it serves no pages to browsers.",
        "Open the service at its local address. The relay's operator can give tunnels hosts of their own, which can have pages.";
    /// Nothing is at this path of the relay's own host.
    NotFound = "not-found", NOT_FOUND, None,
        "There is nothing at this address of the relay.",
        "Tunnels are at https://NAME.DOMAIN, or at https://DOMAIN/t/NAME; `relay http PORT` starts one and says where.";
    /// The connect endpoint wants an upgrade that it knows.
    UpgradeRequired = "upgrade-required", UPGRADE_REQUIRED, None,
        "This endpoint is for relay clients that speak the protocol relay.v1.",
        "Use `relay http PORT`; if you do, update whichever of client and relay is older.";
    /// The relay failed.
    Internal = "internal", INTERNAL_SERVER_ERROR, None,
        "The relay failed in a way that is its own fault.",
        "Look at the relay's log.";
}

impl From<StreamError> for Cause {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(reset) => match reset {
                Reset::UpstreamRefused => Self::UpstreamRefused,
                Reset::Deadline => Self::Deadline,
                Reset::LinkLost => Self::LinkLost,
                Reset::Refused => Self::TooManyRequests,
                Reset::TooLarge => Self::BodyTooLarge,
                Reset::Malformed => Self::BadRequest,
                Reset::SignatureInvalid => Self::SignatureInvalid,
                _ => Self::UpstreamInvalid,
            },
            StreamError::SessionEnded | StreamError::Closed => Self::LinkLost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_cause_with_its_status() {
        let page = include_str!("../../docs/errors.md");
        let row = |cause: &Cause| {
            let retry = if cause.retry_after().is_some() { ", `Retry-After`" } else { "" };
            format!("| `{}` | {}{retry} |", cause.code(), cause.status().as_u16())
        };
        for cause in Cause::ALL {
            assert!(page.contains(&row(cause)), "docs/errors.md lacks the row {}", row(cause));
        }
        let listed = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(listed, Cause::ALL.len(), "docs/errors.md lists a code that does not exist");
    }

    #[test]
    fn every_cause_is_the_cause_of_something() {
        let (conversions, _) = include_str!("cause.rs").split_once("mod tests").unwrap_or_default();
        let sources = [
            conversions,
            include_str!("edge/access.rs"),
            include_str!("edge/api.rs"),
            include_str!("edge/body.rs"),
            include_str!("edge/connect.rs"),
            include_str!("edge/forward.rs"),
            include_str!("edge/inbox.rs"),
            include_str!("edge/login/mod.rs"),
            include_str!("edge/mod.rs"),
            include_str!("edge/paths.rs"),
            include_str!("edge/webhook.rs"),
        ]
        .concat()
        .replace("== Cause::", "== ");
        for cause in Cause::ALL {
            let given = [format!("Cause::{cause:?}"), format!("Self::{cause:?}")];
            assert!(given.iter().any(|given| sources.contains(given)), "nothing is answered with {cause:?}");
        }
    }

    #[test]
    fn codes_are_unique_and_every_cause_says_what_to_do() {
        let codes: std::collections::HashSet<_> = Cause::ALL.iter().map(|cause| cause.code()).collect();
        assert_eq!(codes.len(), Cause::ALL.len());
        for cause in Cause::ALL {
            assert!(!cause.message().is_empty() && !cause.hint().is_empty());
            assert!(!cause.status().is_success());
        }
    }
}
