//! What stands in a query or a form, `application/x-www-form-urlencoded` (WHATWG URL standard, section 5).

use std::borrow::Cow;
use std::str::Utf8Error;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What stands for itself wherever it is (RFC 3986, section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The names and values, in their order. Without a `=` the value is empty.
///
/// # Errors
/// Some of it is not UTF-8.
pub fn fields(text: &str) -> Result<Vec<(String, String)>, Utf8Error> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8().map(Cow::into_owned);
    split(text).map(|(name, value)| Ok((decode(name)?, decode(value)?))).collect()
}

/// As [`fields`], where somebody else has written it: what is not UTF-8 becomes U+FFFD, as that standard says.
pub fn fields_lossy(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    split(text).map(|(name, value)| (decode(name), decode(value))).collect()
}

fn split(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let fields = text.split('&').filter(|field| !field.is_empty());
    fields.map(|field| field.split_once('=').unwrap_or((field, "")))
}

/// Names and values as [`fields`] reads them.
pub fn written<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let fields = fields.into_iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
    fields.collect::<Vec<_>>().join("&")
}

/// A text as a segment of a path, or as a name or a value of a query.
pub fn escaped(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_read_as_a_form() {
        let read = fields("state=a-b_c&code=1%2F2+3&&error&x%3D=y&code=other").unwrap();
        let is = [("state", "a-b_c"), ("code", "1/2 3"), ("error", ""), ("x=", "y"), ("code", "other")];
        assert_eq!(read, is.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(fields("").unwrap().is_empty());
        fields("a=%ff").unwrap_err();
        assert_eq!(
            fields_lossy("a=%ff&b=c"),
            [("a", "\u{fffd}"), ("b", "c")].map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in prop::collection::vec((".+", ".*"), 0..5)) {
            let text = written(all.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            prop_assert_eq!(fields(&text).unwrap(), all);
        }
    }
}
