//! Path mode: tunnels below the relay's own host, for whom there is no wildcard in DNS.
//!
//! ```text
//!   https://relay.example.com/t/hooks/stripe?a=1  ─▶  the tunnel hooks, /stripe?a=1, X-Forwarded-Prefix: /t/hooks
//! ```
//!
//! All tunnels then have one origin, and to a browser one site: scripts, cookies and service workers of one of them would
//! have the others' pages. So this is for webhooks alone. Pages are not asked for, and nothing that comes back is one, sets
//! a cookie, or holds for the whole host. `docs/path-mode.md` has the rules.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use relay_protocol::message::HeaderList;

use crate::cause::Cause;
use crate::config::PATH_START;
use crate::store::MAX_NAME_BYTES;

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// What answers would say of a whole host, and so of all tunnels. What holds for one document or one answer alone stays, such as
/// `Reporting-Endpoints`, `Permissions-Policy`, `Speculation-Rules` and `Supports-Loading-Mode`: nothing here is a document.
const OF_THE_HOST: &[&str] = &[
    // Which hints a browser sends with every request from then on (RFC 8942), and with the same one once more.
    "accept-ch",
    "accept-ch-lifetime",
    "critical-ch",
    // Where else the host is (RFC 7838).
    "alt-svc",
    // Whose visitors have seen or done what: kept for the site that says so (Attribution Reporting).
    "attribution-reporting-register-os-source",
    "attribution-reporting-register-os-trigger",
    "attribution-reporting-register-source",
    "attribution-reporting-register-trigger",
    // What a browser has of the host is forgotten.
    "clear-site-data",
    // How connections to the host have to be, for as long as it says, and who hears of others (RFC 6797, RFC 7469, RFC 9163).
    "expect-ct",
    "public-key-pins",
    "public-key-pins-report-only",
    "strict-transport-security",
    // Who hears of errors with the whole host (Network Error Logging, and the first version of the Reporting API).
    "nel",
    "report-to",
    // What the visitor is interested in is noted for the site (Topics).
    "observe-browsing-topics",
    // Whether documents of one host can share memory: the first that says so decides.
    "origin-agent-cluster",
    // Sessions that are bound to a device, which stand for the host's cookies (Device Bound Session Credentials, in both spellings).
    "sec-session-challenge",
    "sec-session-registration",
    "secure-session-challenge",
    "secure-session-registration",
    // How much of the host a service worker may have.
    "service-worker-allowed",
    // Cookies (RFC 6265; RFC 2965).
    "set-cookie",
    "set-cookie2",
    // Whether the visitor has logged in to the host (Login Status).
    "set-login",
    // What is kept for the host, and read from elsewhere (Shared Storage).
    "shared-storage-write",
    // By what other answers of the host are compressed, whichever paths it names (RFC 9842).
    "use-as-dictionary",
];

/// A tunnel by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Below {
    /// As the sender wrote it: `/t/Hooks`.
    pub(crate) prefix: HeaderValue,
    /// The tunnel's, in lower case.
    pub(crate) name: String,
}

impl Below {
    /// The tunnel that a path leads to.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let name = path.strip_prefix(PATH_START)?;
        let name = name.split_once('/').map_or(name, |(name, _)| name);
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let prefix = path.get(..PATH_START.len() + name.len()).filter(|_| is_name)?;
        Some(Self { prefix: HeaderValue::from_str(prefix).ok()?, name: name.to_ascii_lowercase() })
    }
}

/// Drops what a browser keeps for the host, and so for all tunnels.
pub(super) fn drop_cookies(headers: &mut HeaderList) {
    headers.retain(|(name, _)| *name != header::COOKIE && name.as_str() != "cookie2");
}

/// Refuses what a browser asks for on its own behalf: a page, or a script that is to stand between it and the host.
pub(super) fn admit(headers: &HeaderList) -> Result<(), Cause> {
    let is_page = |(name, value): &(HeaderName, HeaderValue)| {
        *name == SEC_FETCH_MODE && value.as_bytes().starts_with(b"navigate")
            || *name == SEC_FETCH_DEST && value == "serviceworker"
            || *name == SERVICE_WORKER
    };
    if headers.iter().any(is_page) { Err(Cause::NoPages) } else { Ok(()) }
}

/// Makes an answer one that is no page, and that says nothing of the host. Whatever else the service allows its page less
/// stays, because a browser goes by each policy.
pub(super) fn seal(headers: &mut HeaderMap) {
    OF_THE_HOST.iter().for_each(|name| drop(headers.remove(*name)));
    headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_tunnel_is_found_by_its_path() {
        let found = |path| Below::of(path).map(|below| (below.prefix.to_str().unwrap().to_owned(), below.name));
        for path in ["/t/hooks", "/t/hooks/", "/t/hooks/a/b", "/t/hooks//t/other", "/t/hooks/../other"] {
            assert_eq!(found(path), Some(("/t/hooks".to_owned(), "hooks".to_owned())), "{path}");
        }
        assert_eq!(found("/t/Hooks-1/A"), Some(("/t/Hooks-1".to_owned(), "hooks-1".to_owned())));
        let long = format!("/t/{}/", "a".repeat(MAX_NAME_BYTES + 1));
        for path in
            ["", "/", "/t", "/t/", "/t//", "/T/hooks", "/t/a.b/", "/t/a_b", "/t/%61/", "//t/hooks", "/x/t/a", &long]
        {
            assert_eq!(found(path), None, "{path}");
        }
    }
}
