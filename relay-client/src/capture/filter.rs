//! Which requests somebody wants: the conditions of `relay wait`, all of which must hold.
//!
//! ```text
//!   --path /hooks/*   --method POST   --header 'X-Kind: a'   --json /type=invoice.paid
//! ```

use http::HeaderName;
use relay_protocol::webhook::Verdict;
use serde::Deserialize as _;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde_json::Value;

use crate::capture::{Captured, Since, unix_now};
use crate::value::duration;

/// What a request must be like. The empty filter takes every request.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Where it goes.
    pub path: Option<PathPattern>,
    /// Its method, in any case.
    pub method: Option<String>,
    /// Headers that it has.
    pub headers: Vec<HeaderPattern>,
    /// What its body says.
    pub json: Vec<JsonPattern>,
    /// The name of the tunnel that it comes through.
    pub tunnel: Option<String>,
}

impl Filter {
    /// What is in the way, a sentence's part each; nothing where the request is wanted.
    pub(crate) fn mismatches(&self, request: &Captured) -> Vec<String> {
        let mut found = self.head_mismatches(request);
        found.extend(self.body_mismatches(&request.body));
        found
    }

    /// What in its body is in the way. That is taken apart, and where it may be large this is nothing for a task.
    pub(crate) fn body_mismatches(&self, body: &[u8]) -> Vec<String> {
        if self.json.is_empty() {
            return Vec::new();
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(body) => self.json.iter().filter_map(|json| json.mismatch(&body)).collect(),
            Err(_) => vec!["its body is not JSON".to_owned()],
        }
    }

    /// What is in the way of it, whatever its body says.
    pub(crate) fn head_mismatches(&self, request: &Captured) -> Vec<String> {
        let mut found = Vec::new();
        if self.tunnel.is_some() && self.tunnel != request.tunnel {
            found.push(format!("its tunnel is {}", request.tunnel.as_deref().unwrap_or("another one")));
        }
        if let Some(path) = self.path.as_ref().filter(|path| !path.matches(&request.path)) {
            found.push(format!("its path is not {}", path.0));
        }
        if let Some(method) = self.method.as_ref().filter(|method| !method.eq_ignore_ascii_case(&request.method)) {
            found.push(format!("its method is not {method}"));
        }
        found.extend(self.headers.iter().filter_map(|header| header.mismatch(&request.headers)));
        found
    }
}

/// A path: exact, or what it begins with where a `*` stands at the end. A query counts only where the pattern has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(String);

impl PathPattern {
    pub(super) fn matches(&self, target: &str) -> bool {
        let path = if self.0.contains('?') { target } else { target.split('?').next().unwrap_or(target) };
        match self.0.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == self.0,
        }
    }
}

/// A condition that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No path begins like that.
    #[error("{0:?} is not a path; it begins with a slash, as in /hooks, and may end with a *, as in /hooks/*")]
    Path(String),
    /// No header has such a name.
    #[error("{0:?} is not a header; write 'Name: value', or only the name")]
    Header(String),
    /// There is no value.
    #[error("{0:?} has no value; write POINTER=VALUE, as in /type=invoice.paid")]
    NoValue(String),
    /// RFC 6901 knows no such pointer.
    #[error("{0:?} is not a JSON pointer; write /member/0/member, with ~1 for a slash and ~0 for a tilde in a name")]
    Pointer(String),
    /// No answer has it.
    #[error("{0:?} is not a status; write one, as in 404, a class of them, as in 4xx, or error")]
    Status(String),
    /// No signature is judged so.
    #[error(
        "{0:?} is not a verdict; write valid, bad_signature, stale, future, missing, malformed, no_secret or unsupported"
    )]
    Verdict(String),
    /// Neither a moment nor an id.
    #[error("{0:?} is not a time; write now, a time that has passed, as in 30s, or the id of a request")]
    Since(String),
}

/// Reads `/hooks`, `/hooks/*` or `/hooks?a=1`.
///
/// # Errors
/// What cannot be the beginning of a path.
pub fn path(text: &str) -> Result<PathPattern, FilterError> {
    if text.starts_with('/') || text == "*" {
        Ok(PathPattern(text.to_owned()))
    } else {
        Err(FilterError::Path(text.to_owned()))
    }
}

/// What a request was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusPattern {
    /// This status.
    Code(u16),
    /// One with this first digit.
    Class(u8),
    /// Something went wrong on the way, or there was no answer at all.
    Error,
}

/// Reads `valid`, `bad_signature` and the other verdicts.
///
/// # Errors
/// Everything else, with a hint.
pub fn verdict(text: &str) -> Result<Verdict, FilterError> {
    let text = text.replace('-', "_");
    Verdict::deserialize(StrDeserializer::<ValueError>::new(&text)).map_err(|_| FilterError::Verdict(text))
}

/// Reads `404`, `4xx` or `error`.
///
/// # Errors
/// Everything else, with a hint.
pub fn status(text: &str) -> Result<StatusPattern, FilterError> {
    let class = text.strip_suffix("xx").or(text.strip_suffix("XX")).and_then(|class| class.parse().ok());
    match (text, class, text.parse().ok()) {
        ("error", ..) => Ok(StatusPattern::Error),
        (_, Some(class @ 1..=5), _) => Ok(StatusPattern::Class(class)),
        (_, _, Some(code @ 100..=599)) => Ok(StatusPattern::Code(code)),
        _ => Err(FilterError::Status(text.to_owned())),
    }
}

/// A header, by its name in any case, with one exact value or with any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderPattern {
    name: HeaderName,
    value: Option<String>,
}

impl HeaderPattern {
    fn mismatch(&self, headers: &[(String, String)]) -> Option<String> {
        let mut values = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(self.name.as_str())).peekable();
        let Some((_, first)) = values.peek() else { return Some(format!("it has no {}", self.name)) };
        let wanted = self.value.as_ref()?;
        let other = format!("its {} is {first:?}", self.name);
        values.all(|(_, value)| value != wanted).then_some(other)
    }
}

/// Reads `Name: value`, or `Name`.
///
/// # Errors
/// What is no header's name.
pub fn header(text: &str) -> Result<HeaderPattern, FilterError> {
    let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
    let name = name.trim().parse().map_err(|_| FilterError::Header(text.to_owned()))?;
    Ok(HeaderPattern { name, value: value.map(|value| value.trim().to_owned()) })
}

/// A place in a JSON document (RFC 6901), and what stands there.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPattern {
    pointer: String,
    wanted: Value,
}

impl JsonPattern {
    fn mismatch(&self, body: &Value) -> Option<String> {
        match body.pointer(&self.pointer) {
            None => Some(format!("its body has no {}", self.pointer)),
            Some(found) if is_same(found, &self.wanted) => None,
            Some(found @ (Value::Object(_) | Value::Array(_))) => {
                let kind = if found.is_array() { "a list" } else { "an object" };
                Some(format!("its {} is {kind}", self.pointer))
            }
            Some(found) => Some(format!("its {} is {found}", self.pointer)),
        }
    }
}

/// Numbers are the same however they are written: 1 is 1.0.
fn is_same(one: &Value, other: &Value) -> bool {
    let floats = one.is_f64() || other.is_f64();
    one == other || (floats && one.as_f64().is_some() && one.as_f64() == other.as_f64())
}

/// Reads `POINTER=VALUE`. The value is a number, `true`, `false`, `null` or a string in quotes where it can be one, and
/// otherwise a string as it stands.
///
/// # Errors
/// What has no value, and what is no pointer by RFC 6901, section 3.
pub fn json(text: &str) -> Result<JsonPattern, FilterError> {
    let (pointer, value) = text.split_once('=').ok_or_else(|| FilterError::NoValue(text.to_owned()))?;
    let starts = pointer.is_empty() || pointer.starts_with('/');
    let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if !starts || !escapes {
        return Err(FilterError::Pointer(pointer.to_owned()));
    }
    let parsed = serde_json::from_str(value).ok().filter(|value: &Value| !value.is_object() && !value.is_array());
    Ok(JsonPattern { pointer: pointer.to_owned(), wanted: parsed.unwrap_or_else(|| value.into()) })
}

/// The length of a request's id, a ULID.
const ID: usize = 26;

/// Reads `now`, a time that has passed, as `30s`, or a request's id.
///
/// # Errors
/// Everything else, with a hint.
pub fn since(text: &str) -> Result<Since, FilterError> {
    let id = text.to_ascii_uppercase();
    if text == "now" {
        Ok(Since::Now)
    } else if let Ok(ago) = duration(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Ok(Since::Time { at_ms: unix_now().saturating_sub(ago) })
    } else if id.len() == ID && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        Ok(Since::Id { id })
    } else {
        Err(FilterError::Since(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Captured {
        Captured {
            seq: 0,
            tunnel: Some("hooks".to_owned()),
            at_ms: 0,
            id: "01A".to_owned(),
            method: method.to_owned(),
            path: target.to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: body.into(),
            body_size: body.len() as u64,
            body_truncated: false,
            answer: None,
        }
    }

    #[test]
    fn paths_are_exact_or_begin_as_said() {
        for (pattern, target, matches) in [
            ("/hooks", "/hooks", true),
            ("/hooks", "/hooks?a=1", true),
            ("/hooks", "/hooks/", false),
            ("/hooks", "/Hooks", false),
            ("/hooks*", "/hooks/a?b=1", true),
            ("/hooks/*", "/hooks", false),
            ("/hooks/*", "/hooks/", true),
            ("*", "/anything", true),
            ("/hooks?a=1", "/hooks?a=1", true),
            ("/hooks?a=1", "/hooks?a=1&b=2", false),
            ("/hooks?a=1*", "/hooks?a=1&b=2", true),
            ("/hooks?", "/hooks", false),
        ] {
            assert_eq!(path(pattern).unwrap().matches(target), matches, "{pattern} {target}");
        }
        for wrong in ["", "hooks", "https://x/hooks"] {
            assert!(path(wrong).unwrap_err().to_string().contains("slash"), "{wrong}");
        }
    }

    #[test]
    fn headers_are_compared_by_value_or_only_looked_for() {
        let headers = [("x-kind", "a"), ("x-kind", "b: c"), ("x-empty", "")];
        let request = request("POST", "/", &headers, "");
        for (pattern, matches) in [
            ("X-Kind", true),
            ("X-KIND: a", true),
            ("x-kind:b: c", true),
            ("x-kind: A", false),
            ("x-kind: a, b: c", false),
            ("x-empty:", true),
            ("x-kind:", false),
            ("x-none", false),
        ] {
            let filter = Filter { headers: vec![header(pattern).unwrap()], ..Filter::default() };
            assert_eq!(filter.mismatches(&request).is_empty(), matches, "{pattern}");
        }
        assert!(header("a b: c").is_err() && header(": c").is_err() && header("").is_err());
    }

    #[test]
    fn json_is_compared_where_the_pointer_leads() {
        let body = r#"{"type":"invoice.paid","n":1,"f":1.5,"t":true,"z":null,"s":"1","a":[{"x":"deep"}],"a/b":"slash",
                       "m~n":"tilde","":"empty","big":9007199254740993}"#;
        let request = request("POST", "/", &[], body);
        for (pattern, matches) in [
            ("/type=invoice.paid", true),
            ("/type=\"invoice.paid\"", true),
            ("/type=invoice.created", false),
            ("/n=1", true),
            ("/n=1.0", true),
            ("/n=\"1\"", false),
            ("/f=1.5", true),
            ("/f=15e-1", true),
            ("/s=1", false),
            ("/s=\"1\"", true),
            ("/t=true", true),
            ("/z=null", true),
            ("/none=null", false),
            ("/a/0/x=deep", true),
            ("/a/00/x=deep", false),
            ("/a=deep", false),
            ("/a~1b=slash", true),
            ("/m~0n=tilde", true),
            ("/=empty", true),
            ("/big=9007199254740993", true),
            ("/big=9007199254740992", false),
            ("=x", false),
        ] {
            let filter = Filter { json: vec![json(pattern).unwrap()], ..Filter::default() };
            assert_eq!(filter.mismatches(&request).is_empty(), matches, "{pattern}");
        }
        let text = super::tests::request("POST", "/", &[], "type=invoice.paid");
        let filter = Filter { json: vec![json("/type=x").unwrap()], ..Filter::default() };
        assert_eq!(filter.mismatches(&text), ["its body is not JSON"]);
        let scalar = super::tests::request("POST", "/", &[], "3");
        assert!(Filter { json: vec![json("=3").unwrap()], ..Filter::default() }.mismatches(&scalar).is_empty());
        assert!(matches!(json("/type"), Err(FilterError::NoValue(_))));
        for wrong in ["type=x", "/a~=x", "/a~2=x", "#/a=x"] {
            assert!(matches!(json(wrong), Err(FilterError::Pointer(_))), "{wrong}");
        }
    }

    #[test]
    fn since_is_a_moment_or_a_request() {
        assert_eq!(since("now").unwrap(), Since::Now);
        let Since::Time { at_ms } = since("30s").unwrap() else { panic!("no time") };
        assert!((29_000..60_000).contains(&(unix_now() - at_ms)));
        let id = "01KB2Z4QJ5K3Y7N8M9P0R1S2T3";
        assert_eq!(since(&id.to_lowercase()).unwrap(), Since::Id { id: id.to_owned() });
        for wrong in ["", "yesterday", "30", "01KB2Z4QJ5K3Y7N8M9P0R1S2T", "01KB2Z4QJ5K3Y7N8M9P0R1S2T/"] {
            assert!(since(wrong).unwrap_err().to_string().contains("now"), "{wrong}");
        }
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let filter = Filter {
            path: Some(path("/hooks").unwrap()),
            method: Some("post".to_owned()),
            headers: vec![header("x-kind: a").unwrap()],
            json: vec![json("/type=paid").unwrap()],
            tunnel: Some("hooks".to_owned()),
        };
        let near = request("POST", "/hooks", &[("x-kind", "a")], r#"{"type":"draft"}"#);
        assert_eq!(filter.mismatches(&near), ["its /type is \"draft\""]);
        let far = Captured { tunnel: None, ..request("GET", "/", &[], "") };
        assert_eq!(
            filter.mismatches(&far),
            [
                "its tunnel is another one",
                "its path is not /hooks",
                "its method is not post",
                "it has no x-kind",
                "its body is not JSON"
            ]
        );
    }

    proptest! {
        /// A pattern made of a path matches that path, with any query, and a prefix of it with a star does too.
        #[test]
        fn a_path_matches_itself(target in "/[a-z/%.*]{0,12}", query in "\\?[a-z=&]{0,8}", cut in 1usize..12) {
            prop_assume!(!target.ends_with('*'));
            let (asked, longer) = (format!("{target}{query}"), format!("{target}x"));
            let beginning = format!("{}*", &target[..cut.min(target.len())]);
            prop_assert!(path(&target).unwrap().matches(&asked));
            prop_assert!(path(&asked).unwrap().matches(&asked));
            prop_assert!(path(&beginning).unwrap().matches(&target));
            prop_assert!(!path(&target).unwrap().matches(&longer));
        }

        /// Whatever stands in a body is found by its pointer, and nothing else is.
        #[test]
        fn a_member_is_found_by_its_name(name in "\\PC{0,6}", value in "\\PC{0,6}", other in "\\PC{0,6}") {
            prop_assume!(!name.contains('='));
            let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            let body = serde_json::json!({ name: value.clone() });
            let means = |value: &String| format!("{pointer}={}", serde_json::json!(value));
            prop_assert_eq!(json(&means(&value)).unwrap().mismatch(&body), None);
            prop_assert_eq!(json(&means(&other)).unwrap().mismatch(&body).is_none(), value == other);
        }

        /// Whatever is typed is understood or refused.
        #[test]
        fn nothing_typed_panics(text in "\\PC{0,20}") {
            let _ = (path(&text), header(&text), json(&text));
        }
    }
}
