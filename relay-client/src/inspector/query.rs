//! The parameters behind a `?`.

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::answer::Problem;

/// What stands for itself wherever it is (RFC 3986, section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A part of a path, or of a parameter.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// The parameters of a request that have not been taken yet, in their order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Result<Self, Problem> {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            let decoded = percent_decode_str(&spaced).decode_utf8().map(std::borrow::Cow::into_owned);
            decoded.map_err(|_| Problem::Parameter { name: "a parameter", reason: "it is not UTF-8".to_owned() })
        };
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The first value of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(at).1)
    }

    /// Nothing is left that nobody has asked for: a filter that is written wrongly must not be none.
    pub(super) fn finish(self) -> Result<(), Problem> {
        self.0.into_iter().next().map_or(Ok(()), |(name, _)| Err(Problem::UnknownParameter(name)))
    }

    /// What is left, behind a path.
    pub(super) fn behind(&self, path: &str) -> String {
        let pairs: Vec<_> =
            self.0.iter().map(|(name, value)| format!("{}={}", segment(name), segment(value))).collect();
        // Two slashes would begin another host's name.
        let path = format!("/{}", path.trim_start_matches(['/', '\\']));
        if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn parameters_are_read_once_and_none_is_overlooked() {
        let mut query = Query::of(&"/a?q=a+b%26c&limit=5&q=2&empty=&flag".parse().unwrap()).unwrap();
        assert_eq!(query.take("q").as_deref(), Some("a b&c"));
        assert_eq!((query.take("limit").as_deref(), query.take("empty").as_deref()), (Some("5"), Some("")));
        assert_eq!(query.behind("//evil.example/"), "/evil.example/?q=2&flag=");
        assert_eq!(query.finish().unwrap_err().to_string(), "There is no parameter \"q\" here.");
        assert!(Query::of(&"/?a=%ff".parse().unwrap()).is_err());
    }
}
