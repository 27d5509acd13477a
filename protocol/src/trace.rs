//! Traces that go through a tunnel: the context of [W3C Trace Context](https://www.w3.org/TR/trace-context/), level 1, and
//! what a client says of its part.
//!
//! A relay that writes traces puts itself into `traceparent` as the service's parent. The client then says in
//! [`RELAY_TOOK`] how long the service took, by its own clock; the relay, which knows when it asked and when it was
//! answered, needs no other clock to tell the service's time from the tunnel's.

use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::message::HeaderList;

/// Where the context of a trace stands.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What vendors say of it; worth nothing without a valid [`TRACEPARENT`].
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// On a response head of a client, where the request is part of a trace that somebody writes: the microseconds from the
/// request's head to the service's answer. The relay takes it out.
pub const RELAY_TOOK: HeaderName = HeaderName::from_static("relay-took");

/// Of which trace a request is part, and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not zero.
    pub trace: u128,
    /// The span that asks; not zero.
    pub span: u64,
    /// Somebody writes it down.
    pub sampled: bool,
}

impl TraceContext {
    /// What a head says; none where that is nothing, or nothing that is valid.
    #[must_use]
    pub fn of(headers: &HeaderList) -> Option<Self> {
        let mut lines = headers.iter().filter(|(name, _)| *name == TRACEPARENT);
        let (_, value) = lines.next()?;
        // Of two nobody knows which one is meant.
        lines.next().is_none().then(|| Self::read(value.as_bytes())).flatten()
    }

    /// Section 3.2.2 and, for versions to come, 4.3: what they have in common is the beginning.
    fn read(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(5, |byte| *byte == b'-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        let is_known = version < 0xff && (version > 0 || parts.next().is_none());
        let this = Self { trace, span: u64::try_from(span).ok()?, sampled: flags & 1 == 1 };
        (is_known && this.trace != 0 && this.span != 0).then_some(this)
    }

    /// Says it in a head, and nothing else.
    pub fn write(self, headers: &mut HeaderList) {
        headers.retain(|(name, _)| *name != TRACEPARENT);
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.push((TRACEPARENT, value));
        }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A number of so many digits, in lower case.
fn hex(text: &[u8], digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| u128::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()).flatten()
}

/// The line in which a client says how long its service took.
#[must_use]
pub fn took(time: Duration) -> (HeaderName, HeaderValue) {
    (RELAY_TOOK, u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into())
}

/// What a client says of that.
#[must_use]
pub fn took_of(headers: &HeaderList) -> Option<Duration> {
    // The last is the client's; a service may say what it likes.
    let (_, value) = headers.iter().rfind(|(name, _)| *name == RELAY_TOOK)?;
    value.to_str().ok()?.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn head(lines: &[&'static str]) -> HeaderList {
        lines.iter().map(|line| (TRACEPARENT, HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn a_context_is_read_as_the_recommendation_has_it() {
        let expected = TraceContext {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 0xb7ad_6b71_6920_3331,
            sampled: true,
        };
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceContext::of(&head(&[whole])), Some(expected));
        assert_eq!(expected.to_string(), whole);
        let unsampled = TraceContext::of(&head(&["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02"])).unwrap();
        assert!(!unsampled.sampled);
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes";
        assert_eq!(TraceContext::of(&head(&[later])), Some(expected));
        for wrong in [
            "",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::of(&head(&[wrong])), None, "{wrong:?}");
        }
        assert_eq!(TraceContext::of(&head(&[whole, whole])), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut headers = head(&["00-1", "00-2"]);
        let context = TraceContext { trace: 1, span: 2, sampled: true };
        context.write(&mut headers);
        assert_eq!((headers.len(), TraceContext::of(&headers)), (1, Some(context)));
        headers.push(took(Duration::from_micros(1_234_567)));
        assert_eq!(took_of(&headers), Some(Duration::from_micros(1_234_567)));
    }
}
