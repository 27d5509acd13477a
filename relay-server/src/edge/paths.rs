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

/// What answers would say of a whole host, and so of all tunnels: what it keeps in a browser, which service worker has it,
/// how it is reached, and who is told of errors.
const OF_THE_HOST: &[&str] = &[
    "accept-ch",
    "alt-svc",
    "clear-site-data",
    "nel",
    "public-key-pins",
    "report-to",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
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
