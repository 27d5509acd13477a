//! The relay's own cookies, among those of the service.

use http::HeaderValue;
use http::header::COOKIE;
use relay_protocol::message::HeaderList;

/// The login that holds. By its prefix it is for this host alone, and from it: no sibling can set it (RFC 6265bis, section
/// 4.1.3.2).
pub(super) const SESSION: &str = "__Host-relay-session";

/// What tells the browser that a login was begun in.
pub(super) const BROWSER: &str = "__Host-relay-login";

/// How both begin.
const PREFIX: &[u8] = b"__Host-relay-";

/// Those of the relay that were in a request.
#[derive(Debug, Default)]
pub(crate) struct Cookies {
    pub(super) sessions: Vec<String>,
    pub(super) browsers: Vec<String>,
}

impl Cookies {
    /// Takes them out of a request's head. All other bytes stay as they are, in whichever lines they stand: HTTP/2 gives each
    /// cookie its own (RFC 9113, section 8.2.3).
    pub(crate) fn take(&mut self, headers: &mut HeaderList) {
        headers.retain_mut(|(name, value)| {
            if *name != COOKIE {
                return true;
            }
            match self.rest(value.as_bytes()) {
                None => true,
                Some(rest) if rest.is_empty() => false,
                // Some bytes of what was a value are one.
                Some(rest) => HeaderValue::from_bytes(&rest).map(|rest| *value = rest).is_ok(),
            }
        });
    }

    /// A line without them; none where there are none.
    fn rest(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        if !line.windows(PREFIX.len()).any(|part| part == PREFIX) {
            return None;
        }
        let all: Vec<_> = line.split(|byte| *byte == b';').collect();
        let kept: Vec<_> = all.iter().copied().filter(|pair| !self.keep(pair)).collect();
        let has_changed = kept.len() < all.len();
        has_changed.then(|| kept.join(&b';').trim_ascii_start().to_vec())
    }

    /// Keeps what a pair says, if it is one of them.
    fn keep(&mut self, pair: &[u8]) -> bool {
        let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at_checked(equals).unwrap_or_default();
        let all = match name.trim_ascii() {
            name if name == SESSION.as_bytes() => &mut self.sessions,
            name if name == BROWSER.as_bytes() => &mut self.browsers,
            _ => return false,
        };
        let value = str::from_utf8(value.get(1..).unwrap_or_default().trim_ascii()).unwrap_or_default();
        // The one of before may stand behind a login that has begun.
        all.extend(value.split('.').map(str::to_owned));
        true
    }
}

/// The line that sets one, for so many seconds; 0 takes it back.
pub(super) fn set(name: &str, value: &str, seconds: u64) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax")).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::header::ACCEPT;
    use proptest::prelude::*;

    use super::*;

    fn taken(lines: &[&str]) -> (Vec<String>, Cookies) {
        let mut headers: HeaderList = lines.iter().map(|line| (COOKIE, HeaderValue::from_str(line).unwrap())).collect();
        let mut cookies = Cookies::default();
        cookies.take(&mut headers);
        (headers.iter().map(|(_, value)| value.to_str().unwrap().to_owned()).collect(), cookies)
    }

    #[test]
    fn only_our_own_are_taken() {
        for (lines, rest, sessions) in [
            (&["a=1; b=2"][..], &["a=1; b=2"][..], &[][..]),
            (&["__Host-relay-session=x"], &[], &["x"]),
            (&["a=1; __Host-relay-session=x; b=2"], &["a=1; b=2"], &["x"]),
            (&["__Host-relay-session=x; a=1"], &["a=1"], &["x"]),
            (&["a=1; __Host-relay-session=x"], &["a=1"], &["x"]),
            (&["a=1", "__Host-relay-session=x", "b=2"], &["a=1", "b=2"], &["x"]),
            (&["a=1;__Host-relay-session = x ;b=2;"], &["a=1;b=2;"], &["x"]),
            (&["__Host-relay-session=x=; __Host-relay-session=y"], &[], &["x=", "y"]),
            (&["__Host-relay-session"], &[], &[""]),
            (
                &["__host-relay-session=x; x__Host-relay-session=y"],
                &["__host-relay-session=x; x__Host-relay-session=y"],
                &[],
            ),
            (&["a=__Host-relay-session=x", ";; ="], &["a=__Host-relay-session=x", ";; ="], &[]),
        ] {
            let (left, cookies) = taken(lines);
            assert_eq!(
                (left, cookies.sessions),
                (rest.iter().map(ToString::to_string).collect(), sessions.iter().map(ToString::to_string).collect()),
                "{lines:?}"
            );
        }
        assert_eq!(taken(&["__Host-relay-login=b; a=1"]).1.browsers, ["b"]);
    }

    proptest! {
        /// Wherever ours stand, and however the others are split into lines.
        #[test]
        fn what_is_not_ours_stays_byte_for_byte(
            theirs in prop::collection::vec(("[a-z]{1,3}", "[ -:<-~\\x80-\\xff]{0,8}"), 0..6),
            ours in prop::collection::vec((prop::sample::select(vec![SESSION, BROWSER]), "[A-Za-z0-9_-]{0,20}", 0..7_usize), 0..4),
            is_split: bool,
        ) {
            let theirs: Vec<Vec<u8>> = theirs.iter().map(|(name, value)| {
                [name.as_bytes(), b"=", value.trim().as_bytes()].concat()
            }).collect();
            let mut all = theirs.clone();
            for (name, value, at) in &ours {
                all.insert((*at).min(all.len()), format!("{name}={value}").into_bytes());
            }
            let lines = |pairs: &[Vec<u8>]| -> HeaderList {
                let joined = pairs.join(&b"; "[..]);
                let lines = if is_split { pairs.to_vec() } else { vec![joined] };
                lines.into_iter().filter(|line| !line.is_empty()).map(|line| (COOKIE, HeaderValue::from_bytes(&line).unwrap())).collect()
            };
            let other = (ACCEPT, HeaderValue::from_static("__Host-relay-session=x"));
            let mut headers = lines(&all);
            headers.push(other.clone());
            let mut cookies = Cookies::default();
            cookies.take(&mut headers);
            let mut expected = lines(&theirs);
            expected.push(other);
            prop_assert_eq!(headers, expected);
            prop_assert_eq!(cookies.sessions.len() + cookies.browsers.len(), ours.len());
        }
    }
}
