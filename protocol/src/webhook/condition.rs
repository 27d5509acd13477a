//! What a request must be like for a row, a rule, a handshake, a route or a filter to be meant.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::request::{Part, Place, Request};
use super::table::Event;

/// Which webhooks are meant: those of which all holds that is said here. Without a word, all are.
///
/// What it does not know it does not take: one that was narrowed down in a way that is not understood would mean too many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Those of this provider, by its [id](super::Provider::id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Those about events of this kind, in which `*` stands for anything.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Those that are like this.
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    pub when: Conditions,
}

impl Filter {
    /// Whether a request is meant, by who has sent it and what has happened, as far as that is known.
    #[must_use]
    pub fn matches(&self, provider: Option<&str>, request: &Request<'_>, event: &Event) -> bool {
        let is_about = |pattern: &String| {
            let kind = event.kind.as_ref();
            kind.is_some_and(|kind| like(pattern.as_bytes(), kind.as_bytes()))
        };
        self.provider.as_deref().is_none_or(|wanted| provider == Some(wanted))
            && self.kind.as_ref().is_none_or(is_about)
            && self.when.hold(request)
    }

    /// How much it asks for: its conditions, and the longest text in it, in bytes.
    pub(crate) fn extent(&self) -> (usize, usize) {
        let texts = self.when.0.values().filter_map(|test| if let Test::Like(text) = test { Some(text) } else { None });
        let texts = texts.chain(&self.kind).chain(&self.provider);
        (self.when.0.len(), texts.map(String::len).max().unwrap_or_default())
    }
}

/// What places of a request must be like, as the table writes it: all of them must hold, and none at all always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Conditions(BTreeMap<Place, Test>);

impl Conditions {
    /// Whether they do. The cheap ones come first: a body is read only for a request whose head fits.
    #[must_use]
    pub fn hold(&self, request: &Request<'_>) -> bool {
        self.0.iter().all(|(place, test)| test.holds(place, request))
    }

    /// Names that stand in each JSON body for which they hold, unless those are written with escapes.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let there = self.0.iter().filter(|(_, test)| **test != Test::NotThere);
        there.filter_map(|(place, _)| place.name_in_json())
    }

    /// A header without which they do not hold, and how its value begins: one that tells by being there, if there is one,
    /// because fewer requests have it.
    pub(super) fn header(&self) -> Option<(&str, &str)> {
        let headers = self.0.iter().filter_map(|(place, test)| match (place, test) {
            (Place::Header(name), Test::There) => Some((name.as_str(), "")),
            (Place::Header(name), Test::Like(text)) => {
                Some((name.as_str(), text.split('*').next().unwrap_or_default()))
            }
            _ => None,
        });
        headers.min_by_key(|(_, begin)| !begin.is_empty())
    }

    /// A part of a request without which they do not hold.
    pub(super) fn part(&self) -> Part {
        let there = self.0.iter().filter(|(_, test)| **test != Test::NotThere);
        there.map(|(place, _)| place.part()).max().unwrap_or_default()
    }

    /// Whether those hold that do not ask for the body.
    #[must_use]
    pub fn may_hold(&self, request: &Request<'_>) -> bool {
        self.0.iter().filter(|(place, _)| !place.is_in_body()).all(|(place, test)| test.holds(place, request))
    }

    /// Whether the body must be there to tell.
    #[must_use]
    pub fn need_body(&self) -> bool {
        self.0.keys().any(Place::is_in_body)
    }

    /// Whether they ask for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Of what stands at a place: `true`, it is there; `false`, it is not; a text, it is that text, in which `*` stands for
/// anything.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    There,
    NotThere,
    Like(String),
}

impl Test {
    fn holds(&self, place: &Place, request: &Request<'_>) -> bool {
        match self {
            Self::There => place.is_there(request),
            Self::NotThere => !place.is_there(request),
            Self::Like(pattern) => place.any(request, |text| like(pattern.as_bytes(), text)),
        }
    }
}

impl Serialize for Test {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::There => serializer.serialize_bool(true),
            Self::NotThere => serializer.serialize_bool(false),
            Self::Like(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for Test {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::Boolean(true) => Ok(Self::There),
            toml::Value::Boolean(false) => Ok(Self::NotThere),
            toml::Value::String(pattern) => Ok(Self::Like(pattern)),
            other => Err(D::Error::custom(format!("a condition is true, false or a text, and not {other}"))),
        }
    }
}

/// Whether `text` is `pattern`, in which `*` stands for any bytes.
pub(crate) fn like(pattern: &[u8], text: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts.filter(|part| !part.is_empty()) {
        let Some(at) = rest.windows(part.len()).position(|window| window == part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, is) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*b", "ab", true),
            ("ab*ba", "aba", false),
            ("*x*y*", "axbyc", true),
            ("*x*y*", "aybxc", false),
            ("*", "", true),
        ] {
            assert_eq!(like(pattern.as_bytes(), text.as_bytes()), is, "{pattern} {text}");
        }
    }
}
