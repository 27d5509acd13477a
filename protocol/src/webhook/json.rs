//! JSON as it stands in a body: looked up and laid out anew without losing a byte of what a signature covers.
//!
//! Values are slices of the body, so that a number keeps its digits and an object its order; only the parts on the way
//! to what is asked for are read closely.

use std::{borrow::Cow, cmp::Ordering, fmt, str::FromStr};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The most members of one object or array that are looked at. A body with more says nothing to us: no provider sends
/// so many, and a stranger could make us hold millions.
const MEMBERS_MAX: usize = 10_000;

/// A path into a document (RFC 6901), where a step `*` stands for every member. The shallow ones, which are cheaper to
/// follow, come first in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer(Vec<Step>);

impl Pointer {
    /// The last name on the way: most documents that do not have what is pointed to do not have that either, and need not
    /// be read.
    pub(super) fn name(&self) -> Option<&str> {
        let is_index = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        let names = self.0.iter().rev().filter_map(|step| match step {
            Step::Named(name) if !is_index(name) => Some(name.as_str()),
            Step::Named(_) | Step::Every => None,
        });
        names.into_iter().next()
    }
}

impl Ord for Pointer {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for Pointer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Named(String),
    Every,
}

/// What is no JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no JSON pointer: it begins with a slash, as in /data/id")]
pub(super) struct PointerError(String);

impl FromStr for Pointer {
    type Err = PointerError;

    fn from_str(text: &str) -> Result<Self, PointerError> {
        let steps = match text.strip_prefix('/') {
            Some(steps) => steps.split('/'),
            None if text.is_empty() => return Ok(Self(Vec::new())),
            None => return Err(PointerError(text.to_owned())),
        };
        let step = |step: &str| match step {
            "*" => Step::Every,
            name => Step::Named(name.replace("~1", "/").replace("~0", "~")),
        };
        Ok(Self(steps.map(step).collect()))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| match step {
            Step::Named(name) => write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")),
            Step::Every => f.write_str("/*"),
        })
    }
}

/// One level of a document; what lies below is read when somebody goes there.
#[derive(Debug)]
pub(super) enum Level<'a> {
    Object(Vec<(String, &'a RawValue)>),
    Array(Vec<&'a RawValue>),
    /// A string, a number, a boolean, null, what is no JSON, and what has more members than anybody sends.
    Leaf,
}

impl<'a> Level<'a> {
    pub(super) fn read(json: &'a [u8]) -> Self {
        if !has_members(json) {
            return Self::Leaf;
        }
        serde_json::from_slice(json).unwrap_or(Self::Leaf)
    }

    /// Everything that a pointer leads to, in the order of the document: several where it says so with `*`, or where an
    /// object has one name twice.
    pub(super) fn find(&self, pointer: &Pointer) -> Vec<&'a RawValue> {
        self.look_for(pointer).0
    }

    /// The same, where that is all that stands there; `None` where some of it is more than is looked at.
    pub(super) fn find_all(&self, pointer: &Pointer) -> Option<Vec<&'a RawValue>> {
        let (found, is_all) = self.look_for(pointer);
        is_all.then_some(found)
    }

    fn look_for(&self, pointer: &Pointer) -> (Vec<&'a RawValue>, bool) {
        let (mut found, mut is_all) = (Vec::new(), true);
        if let Some((step, rest)) = pointer.0.split_first() {
            self.children(step, |child| is_all &= descend(child, rest, &mut found));
        }
        (found, is_all)
    }

    fn children(&self, step: &Step, mut each: impl FnMut(&'a RawValue)) {
        match (self, step) {
            (Self::Object(members), Step::Named(wanted)) => {
                members.iter().filter(|(name, _)| name == wanted).for_each(|(_, child)| each(child));
            }
            (Self::Object(members), Step::Every) => members.iter().for_each(|(_, child)| each(child)),
            (Self::Array(members), Step::Named(index)) => {
                let child = index.parse().ok().and_then(|index: usize| members.get(index));
                child.into_iter().for_each(|child| each(child));
            }
            (Self::Array(members), Step::Every) => members.iter().for_each(|child| each(child)),
            (Self::Leaf, _) => {}
        }
    }
}

/// Whether it begins as an object or an array does.
pub(super) fn has_members(json: &[u8]) -> bool {
    matches!(json.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{' | b'['))
}

/// Whether everything was looked at.
fn descend<'a>(value: &'a RawValue, rest: &[Step], found: &mut Vec<&'a RawValue>) -> bool {
    match rest.split_first() {
        _ if found.len() == MEMBERS_MAX => false,
        None => {
            found.push(value);
            true
        }
        Some((step, rest)) => {
            let level = Level::read(value.get().as_bytes());
            let mut is_all = !matches!(level, Level::Leaf) || !has_members(value.get().as_bytes());
            level.children(step, |child| is_all &= descend(child, rest, found));
            is_all
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Level<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Level<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object or an array of at most {MEMBERS_MAX} members")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Level<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    if members.len() == MEMBERS_MAX {
                        return Err(A::Error::invalid_length(MEMBERS_MAX, &self));
                    }
                    members.push(member);
                }
                Ok(Level::Object(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Level<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = seq.next_element()? {
                    if members.len() == MEMBERS_MAX {
                        return Err(A::Error::invalid_length(MEMBERS_MAX, &self));
                    }
                    members.push(member);
                }
                Ok(Level::Array(members))
            }
        }

        deserializer.deserialize_any(Members)
    }
}

/// A value as text: a string without its quotes, a number or a boolean as it is written; nothing else has one.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let raw = value.get();
    match raw.as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(raw).ok().map(Cow::Owned),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(raw)),
    }
}

/// Whether there is something: null is as good as absent.
pub(super) fn is_something(value: &RawValue) -> bool {
    value.get() != "null"
}

/// Whether a value is written as a number.
pub(super) fn is_number(value: &RawValue) -> bool {
    value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// Whether a value is a string.
pub(super) fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// How a program writes JSON. The names say who does so by default.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// What a person calls it.
    pub(super) name: &'static str,
    /// One step of indentation, where each member has its own line.
    indent: Option<&'static str>,
    comma: &'static str,
    colon: &'static str,
    escape: Escape,
}

/// Which characters of a string are escaped beyond those that must be.
#[derive(Clone, Copy, Debug, Default)]
struct Escape {
    beyond_ascii: bool,
    slash: bool,
    html: bool,
}

/// What the common libraries write.
pub(super) const STYLES: &[Style] = {
    const PLAIN: Escape = Escape { beyond_ascii: false, slash: false, html: false };
    const ASCII: Escape = Escape { beyond_ascii: true, ..PLAIN };
    const PHP: Escape = Escape { beyond_ascii: true, slash: true, html: false };
    const fn style(
        name: &'static str,
        indent: Option<&'static str>,
        comma: &'static str,
        colon: &'static str,
        escape: Escape,
    ) -> Style {
        Style { name, indent, comma, colon, escape }
    }
    &[
        style("written without spaces", None, ",", ":", PLAIN),
        style("written without spaces and with \\u escapes", None, ",", ":", ASCII),
        style("written without spaces and with \\/ for slashes", None, ",", ":", Escape { slash: true, ..PLAIN }),
        style("written as PHP's json_encode does", None, ",", ":", PHP),
        style("written as Go's encoding/json does", None, ",", ":", Escape { html: true, ..PLAIN }),
        style("written with a space after commas and colons", None, ", ", ": ", PLAIN),
        style("written as Python's json.dumps does", None, ", ", ": ", ASCII),
        style("indented by two spaces", Some("  "), ",", ": ", PLAIN),
        style("indented by two spaces and with \\u escapes", Some("  "), ",", ": ", ASCII),
        style("indented by four spaces", Some("    "), ",", ": ", PLAIN),
        style("indented by four spaces and with \\u escapes", Some("    "), ",", ": ", ASCII),
        style("indented as PHP's JSON_PRETTY_PRINT does", Some("    "), ",", ": ", PHP),
        style("indented by tabs", Some("\t"), ",", ": ", PLAIN),
    ]
};

/// How many times as long as it was a document may become in another style.
const GROWTH_MAX: usize = 16;

/// The same document in another style, members in their order and numbers as they are written; nothing where the input
/// is no JSON, or would be many times as long: indenting makes a deep document grow by its depth.
pub(super) fn restyle(json: &str, style: &Style) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(json).ok()?;
    let mut out = String::with_capacity(json.len() + json.len() / 2);
    let mut depth = 0_usize;
    let mut rest = json.trim_start();
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    while let Some(first) = rest.chars().next() {
        if out.len() / GROWTH_MAX > json.len() {
            return None;
        }
        let token = match first {
            '"' => string_token(rest),
            '{' | '}' | '[' | ']' | ',' | ':' => 1,
            _ => rest.find([',', '}', ']', ' ', '\t', '\r', '\n']).unwrap_or(rest.len()).max(1),
        };
        let (token, after) = rest.split_at_checked(token)?;
        rest = after.trim_start();
        match first {
            '"' => write_string(&mut out, token, style.escape),
            '{' | '[' => {
                out.push(first);
                if rest.starts_with(['}', ']']) {
                    out.push_str(rest.get(..1)?);
                    rest = rest.get(1..)?.trim_start();
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(first);
            }
            ',' => {
                out.push_str(style.comma);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(style.colon),
            _ => out.push_str(token),
        }
    }
    Some(out)
}

/// The length of the string that `json` begins with, its quotes included.
fn string_token(json: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

fn write_string(out: &mut String, token: &str, escape: Escape) {
    // Half of a surrogate pair is no character: such a string stays as it is.
    let Ok(text) = serde_json::from_str::<String>(token) else { return out.push_str(token) };
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '/' if escape.slash => out.push_str("\\/"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if escape.html => escape_unicode(out, c),
            '\0'..' ' => escape_unicode(out, c),
            '\u{80}'.. if escape.beyond_ascii => escape_unicode(out, c),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn escape_unicode(out: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, pointer: &str) -> Vec<String> {
        let level = Level::read(json.as_bytes());
        level.find(&pointer.parse().unwrap()).into_iter().map(|value| value.get().to_owned()).collect()
    }

    #[test]
    fn a_pointer_leads_to_the_bytes_as_they_stand() {
        let json = r#"{"a": {"b": [1.50, {"c": "x\u00e9"}]}, "a~b/c": true, "n": null}"#;
        assert_eq!(find(json, "/a/b/0"), ["1.50"]);
        assert_eq!(find(json, "/a/b/1/c"), [r#""x\u00e9""#]);
        assert_eq!(find(json, "/a~0b~1c"), ["true"]);
        assert_eq!(find(json, "/a/b/2"), [""; 0]);
        assert_eq!(find(json, "/a/b/c"), [""; 0]);
        assert_eq!(find(r#"[{"id":1},{"id":2},{"no":3}]"#, "/*/id"), ["1", "2"]);
        assert_eq!(find("not json", "/a"), [""; 0]);
    }

    #[test]
    fn a_name_that_stands_twice_is_found_twice() {
        assert_eq!(find(r#"{"a":1,"a":2}"#, "/a"), ["1", "2"]);
    }

    #[test]
    fn more_members_than_anybody_sends_say_nothing() {
        let few = format!("[{}0]", "0,".repeat(MEMBERS_MAX - 1));
        assert_eq!(find(&few, "/0"), ["0"]);
        let many = format!("[{}0]", "0,".repeat(MEMBERS_MAX));
        assert_eq!(find(&many, "/0"), [""; 0]);
    }

    #[test]
    fn a_deep_document_is_no_deep_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(find(&deep, "/0/0/0/1"), [""; 0]);
        assert_eq!(restyle(&deep, &STYLES[0]).as_ref(), Some(&deep));
        assert_eq!(restyle(&deep, STYLES.last().unwrap()), None, "indented, it is thousands of times as long");
    }

    #[test]
    fn each_style_writes_what_its_library_does() {
        let json = "{\"a\":[1.0,{}],\n \"u\":\"é/<\\ud83d\\ude80\", \"e\" : [ ]}";
        let styled = |name: &str| restyle(json, STYLES.iter().find(|style| style.name == name).unwrap()).unwrap();
        assert_eq!(styled("written without spaces"), r#"{"a":[1.0,{}],"u":"é/<🚀","e":[]}"#);
        assert_eq!(styled("written as PHP's json_encode does"), r#"{"a":[1.0,{}],"u":"\u00e9\/<\ud83d\ude80","e":[]}"#);
        assert_eq!(styled("written as Go's encoding/json does"), r#"{"a":[1.0,{}],"u":"é/\u003c🚀","e":[]}"#);
        assert_eq!(
            styled("written as Python's json.dumps does"),
            r#"{"a": [1.0, {}], "u": "\u00e9/<\ud83d\ude80", "e": []}"#
        );
        let indented = "{\n  \"a\": [\n    1.0,\n    {}\n  ],\n  \"u\": \"é/<🚀\",\n  \"e\": []\n}";
        assert_eq!(styled("indented by two spaces"), indented);
        assert!(restyle("{", &STYLES[0]).is_none());
    }
}
