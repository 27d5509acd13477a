//! What is found of a request's signature, and how a relay that has judged it says so to the client and the app: in header
//! lines of the request. No stranger's line of these names passes the edge.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

type Headers = Vec<(HeaderName, HeaderValue)>;

/// The verdict.
const RELAY_VERDICT: HeaderName = HeaderName::from_static("relay-verdict");

/// Why, in words.
const RELAY_VERDICT_REASON: HeaderName = HeaderName::from_static("relay-verdict-reason");

/// The most of these words, in bytes.
const REASON_MAX: usize = 512;

/// What became of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Signed with a secret that we know, and recently enough.
    Valid,
    /// Signed with another secret, or altered since.
    BadSignature,
    /// Signed rightly, and too long ago.
    Stale,
    /// Signed rightly, and by a clock that is too far ahead of ours.
    Future,
    /// Not signed, or without what the signature covers.
    Missing,
    /// Signed in a form that cannot be read.
    Malformed,
    /// Signed, and we have no secret to hold it against.
    NoSecret,
    /// Not signed by this provider, or in a way that cannot be checked here.
    Unsupported,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Valid,
        Self::BadSignature,
        Self::Stale,
        Self::Future,
        Self::Missing,
        Self::Malformed,
        Self::NoSecret,
        Self::Unsupported,
    ];

    /// The word that stands for it in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::BadSignature => "bad_signature",
            Self::Stale => "stale",
            Self::Future => "future",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::NoSecret => "no_secret",
            Self::Unsupported => "unsupported",
        }
    }
}

/// It is no word for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no verdict")]
pub struct NoVerdict;

impl FromStr for Verdict {
    type Err = NoVerdict;

    fn from_str(word: &str) -> Result<Self, NoVerdict> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == word).ok_or(NoVerdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A verdict and why, for somebody who wants to do something about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason, as a sentence without its full stop.
    pub reason: Cow<'static, str>,
    /// Which of the secrets signed, when one did.
    pub secret: Option<usize>,
    /// What to know although it is valid.
    pub warning: Option<String>,
    /// It is valid, and older than the provider's own library takes.
    pub is_late: bool,
}

impl Judgement {
    /// A verdict and its reason, and nothing more.
    pub fn of(verdict: Verdict, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { verdict, reason: reason.into(), secret: None, warning: None, is_late: false }
    }

    /// Says it in the header lines of a request that has none.
    pub fn tell(self, headers: &mut Headers) {
        headers.push((RELAY_VERDICT, HeaderValue::from_static(self.verdict.as_str())));
        let reason = self.warning.map_or(self.reason, Cow::Owned);
        headers.extend(HeaderValue::try_from(plain(&reason)).ok().map(|reason| (RELAY_VERDICT_REASON, reason)));
    }

    /// Takes it out of the header lines of a request.
    pub fn untell(headers: &mut Headers) {
        headers.retain(|(name, _)| *name != RELAY_VERDICT && *name != RELAY_VERDICT_REASON);
    }

    /// What the header lines of a request say of it.
    #[must_use]
    pub fn told(headers: &[(HeaderName, HeaderValue)]) -> Option<Self> {
        let line = |wanted: &HeaderName| headers.iter().find(|(name, _)| name == wanted)?.1.to_str().ok();
        let reason = line(&RELAY_VERDICT_REASON).unwrap_or_default().to_owned();
        Some(Self::of(line(&RELAY_VERDICT)?.parse().ok()?, reason))
    }
}

/// A reason, which may quote the request, as it can be a header's value anywhere.
#[must_use]
pub fn plain(reason: &str) -> String {
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    reason.chars().map(plain).take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn what_is_told_of_a_request_is_heard() {
        let other = (HeaderName::from_static("x-other"), HeaderValue::from_static("1"));
        let mut headers = vec![other.clone()];
        assert_eq!(Judgement::told(&headers), None);
        let warning = Some("signed with the second secret \u{1b}".to_owned());
        Judgement { warning, ..Judgement::of(Verdict::Valid, "") }.tell(&mut headers);
        let told = Judgement::of(Verdict::Valid, "signed with the second secret ?");
        assert_eq!(Judgement::told(&headers), Some(told));
        Judgement::untell(&mut headers);
        assert_eq!(headers, [other]);
    }

    #[test]
    fn each_word_is_read_as_it_is_written() {
        for verdict in Verdict::ALL {
            assert_eq!(verdict.as_str().parse(), Ok(verdict));
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
        assert!("good".parse::<Verdict>().is_err());
    }
}
