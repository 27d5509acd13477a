//! The name of a tunnel: one DNS label, or a domain of somebody's own, checked once and then passed around as a [`Name`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::secret::random_symbols;

/// The longest label that DNS carries, in bytes (RFC 1035, section 2.3.4).
pub const MAX_NAME_BYTES: usize = 63;

/// The longest domain name without its last dot, in bytes (RFC 1035, section 2.3.4).
const MAX_DOMAIN_BYTES: usize = 253;

/// Labels that no tunnel may have.
///
/// Software looks some of them up by itself below a domain it was given, and would believe what it
/// finds; the others are where people expect the relay's operator, not one of its users. `api` and
/// `hooks` are left out on purpose: they are what webhook receivers are called.
const REFUSED: &[&str] = &[
    // Looked up by software: proxy and mail auto-configuration, mail policy (RFC 8461), IPv6 (RFC 5214).
    "autoconfig",
    "autodiscover",
    "isatap",
    "mta-sts",
    "wpad",
    // The infrastructure of a domain.
    "dns",
    "ftp",
    "imap",
    "mail",
    "mx",
    "ns",
    "ns1",
    "ns2",
    "ns3",
    "ns4",
    "pop",
    "smtp",
    "webmail",
    // Names that mean "this machine" (RFC 6761).
    "local",
    "localdomain",
    "localhost",
    // The operator's own.
    "abuse",
    "account",
    "admin",
    "administrator",
    "auth",
    "dashboard",
    "login",
    "metrics",
    "postmaster",
    "relay",
    "root",
    "security",
    "status",
    "support",
    "www",
];

/// Letters and digits that cannot be mistaken for one another when read aloud or copied by hand:
/// no `0`/`o`, no `1`/`l`/`i`. The letters stand first, so that a prefix of it is "letters only".
const READABLE: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
/// How many symbols of [`READABLE`] are letters.
const READABLE_LETTERS: usize = 23;
/// The length of a random name: log2(23) + 12 × log2(31) = 63.97 bits, which nobody guesses.
const RANDOM_SYMBOLS: usize = 13;

/// A tunnel's name: the label in front of the relay's base domain, or a custom domain, which has a
/// dot: see [`Name::is_domain`].
///
/// A label is 1 to [`MAX_NAME_BYTES`] bytes of `a-z`, `0-9` and inner hyphens (the letter-digit-hyphen rule of
/// RFC 5890, section 2.3.1), always lower case, never one of the labels that the relay refuses. Two
/// names are the same tunnel exactly if they are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks `text` and puts it in lower case.
    ///
    /// # Errors
    ///
    /// [`NameError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.to_ascii_lowercase();
        if name.contains('.') {
            check_domain(&name)?
        } else {
            check(&name)?
        }
        Ok(Self(name))
    }

    /// Whether it is that domain, or below it.
    pub(crate) fn is_of(&self, domain: &str) -> bool {
        self.as_str().strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Whether it is a custom domain, and no label below the relay's own.
    #[must_use]
    pub fn is_domain(&self) -> bool {
        self.0.contains('.')
    }

    /// A new name that nobody can guess: 13 readable symbols (almost 64 bits), a letter first.
    #[must_use]
    pub fn random() -> Self {
        let (letters, _digits) = READABLE.split_at(READABLE_LETTERS);
        Self(random_symbols(letters, 1) + &random_symbols(READABLE, RANDOM_SYMBOLS - 1))
    }

    /// Whether it looks like one that [`Name::random`] made. Somebody can have chosen such a one, too.
    pub(crate) fn is_random(label: &str) -> bool {
        let (letters, _digits) = READABLE.split_at(READABLE_LETTERS);
        label.len() == RANDOM_SYMBOLS
            && label.bytes().all(|byte| READABLE.contains(&byte))
            && label.bytes().next().is_some_and(|first| letters.contains(&first))
    }

    /// A name that was checked before it was stored. It is not checked again: names already given
    /// away outlive a rule that has become stricter since.
    pub(super) fn stored(label: String) -> Self {
        Self(label)
    }

    /// The label or domain, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with a name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a tunnel name cannot be empty")]
    Empty,
    /// Longer than a DNS label can be.
    #[error("a tunnel name has at most {MAX_NAME_BYTES} bytes, this one has {length}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Something else than letters, digits and hyphens.
    #[error("a tunnel name is made of the letters a-z, digits and hyphens; {character:?} is none of them")]
    Character {
        /// The first character that does not belong.
        character: char,
    },
    /// A hyphen at one end.
    #[error("a tunnel name neither begins nor ends with a hyphen")]
    EdgeHyphen,
    /// Hyphens in third and fourth place, without being an internationalised name.
    #[error("a tunnel name with \"--\" in third and fourth place is kept for encodings such as \"xn--\" (RFC 5891)")]
    ReservedHyphens,
    /// `xn--` in front of something that is not Punycode.
    #[error("what follows \"xn--\" in this tunnel name is not valid Punycode (RFC 3492)")]
    Punycode,
    /// A domain with a label that is none.
    #[error("{domain:?} is not a domain such as hooks.example.com")]
    Domain {
        /// What was given.
        domain: String,
    },
    /// One of the names that no tunnel may have.
    #[error("the name {name:?} is kept for the relay itself; choose another one")]
    Refused {
        /// The name.
        name: String,
    },
}

/// Whether DNS and certificates can have it: the letter-digit-hyphen rule, and a last label that makes it no address.
fn check_domain(domain: &str) -> Result<(), NameError> {
    let is_label = |label: &str| {
        (1..=MAX_NAME_BYTES).contains(&label.len())
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = domain.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if domain.len() <= MAX_DOMAIN_BYTES && domain.split('.').all(is_label) && !is_number {
        Ok(())
    } else {
        Err(NameError::Domain { domain: domain.chars().take(MAX_DOMAIN_BYTES).collect() })
    }
}

fn check(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::Empty);
    }
    let foreign = |c: &char| !matches!(c, 'a'..='z' | '0'..='9' | '-');
    if let Some(character) = label.chars().find(foreign) {
        return Err(NameError::Character { character });
    }
    if label.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { length: label.len() });
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::EdgeHyphen);
    }
    if let Some(encoded) = label.strip_prefix("xn--") {
        if !is_punycode(encoded) {
            return Err(NameError::Punycode);
        }
    } else if label.get(2..4) == Some("--") {
        return Err(NameError::ReservedHyphens);
    }
    if REFUSED.contains(&label) {
        return Err(NameError::Refused { name: label.to_owned() });
    }
    Ok(())
}

/// Whether `encoded` decodes as Punycode (RFC 3492, section 6.2) to code points outside ASCII.
///
/// The relay routes by the encoded form alone, so this only keeps out labels that browsers refuse
/// or show as something odd; it does not judge the characters themselves.
fn is_punycode(encoded: &str) -> bool {
    let (basic, deltas) = encoded.rsplit_once('-').unwrap_or(("", encoded));
    !deltas.is_empty() && decode_deltas(basic.len(), deltas).is_some()
}

/// Decodes what follows the last hyphen: where, and which, code points go between `basic` ASCII
/// characters. `None` where a number is cut short, overflows, or names no character that can be shown.
fn decode_deltas(basic: usize, deltas: &str) -> Option<()> {
    // The parameters of RFC 3492, section 5; the names are its own.
    const BASE: u32 = 36;
    const T_MIN: u32 = 1;
    const T_MAX: u32 = 26;
    const SKEW: u32 = 38;
    const DAMP: u32 = 700;

    let mut length = u32::try_from(basic).ok()?;
    let (mut code_point, mut position, mut bias) = (0x80_u32, 0_u32, 72_u32);
    let mut symbols = deltas.bytes().peekable();

    while symbols.peek().is_some() {
        let start = position;
        let (mut weight, mut k) = (1_u32, BASE);
        loop {
            let digit = match symbols.next()? {
                letter @ b'a'..=b'z' => u32::from(letter - b'a'),
                number @ b'0'..=b'9' => u32::from(number - b'0') + 26,
                _ => return None,
            };
            position = position.checked_add(digit.checked_mul(weight)?)?;
            let threshold = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
            if digit < threshold {
                break;
            }
            weight = weight.checked_mul(BASE - threshold)?;
            k += BASE;
        }

        length += 1;
        let mut delta = (position - start) / if start == 0 { DAMP } else { 2 };
        delta += delta / length;
        bias = 0;
        while delta > ((BASE - T_MIN) * T_MAX) / 2 {
            delta /= BASE - T_MIN;
            bias += BASE;
        }
        bias += ((BASE - T_MIN + 1) * delta) / (delta + SKEW);

        code_point = code_point.checked_add(position / length)?;
        char::from_u32(code_point).filter(|character| !character.is_control())?;
        position = position % length + 1;
    }
    Some(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_put_in_lower_case_and_kept() {
        for (typed, kept) in [("hooks", "hooks"), ("API", "api"), ("a", "a"), ("3-b-4", "3-b-4")] {
            assert_eq!(Name::parse(typed).unwrap().as_str(), kept);
        }
        assert_eq!(Name::parse(&"a".repeat(63)).unwrap().as_str().len(), 63);
    }

    #[test]
    fn each_fault_is_named() {
        let refused = |name: &str| NameError::Refused { name: name.to_owned() };
        for (typed, error) in [
            ("", NameError::Empty),
            ("a b", NameError::Character { character: ' ' }),
            ("_relay", NameError::Character { character: '_' }),
            ("caf\u{e9}", NameError::Character { character: '\u{e9}' }),
            // Lower-cases to `k` in Unicode, which is not what DNS does.
            ("\u{212a}", NameError::Character { character: '\u{212a}' }),
            ("-a", NameError::EdgeHyphen),
            ("a-", NameError::EdgeHyphen),
            ("ab--c", NameError::ReservedHyphens),
            ("WWW", refused("www")),
            ("mta-sts", refused("mta-sts")),
        ] {
            assert_eq!(Name::parse(typed), Err(error), "{typed:?}");
        }
        assert_eq!(Name::parse(&"a".repeat(64)), Err(NameError::TooLong { length: 64 }));
    }

    #[test]
    fn domains_are_names_too() {
        for (typed, kept) in
            [("Hooks.Example.com", "hooks.example.com"), ("a.b", "a.b"), ("www.xn--p1ai", "www.xn--p1ai")]
        {
            let name = Name::parse(typed).unwrap();
            assert_eq!((name.as_str(), name.is_domain()), (kept, true));
        }
        assert!(!Name::parse("hooks").unwrap().is_domain());
        let long = format!("{}a", "a.".repeat(127));
        for bad in
            [".", "a.", ".a", "a..b", "a_b.example", "-a.example", "*.example.com", "203.0.113.7", "a.b:443", &long]
        {
            assert!(matches!(Name::parse(bad), Err(NameError::Domain { .. })), "{bad}");
        }
    }

    #[test]
    fn punycode_must_decode() {
        // Samples of RFC 3492, section 7.1, (A) Arabic, (L) Japanese with digits, and two everyday ones.
        for good in ["xn--egbpdaj6bu4bxfgehfvwxn", "xn--3B-ww4c5e180e575a65lsy2b", "xn--bcher-kva", "xn--mnchen-3ya"] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["xn--a", "xn--zzzzzzzz", "xn--99999999", "xn--abc-d-", "xn--bcher-kv9"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Name::parse("xn--zzzzzzzz"), Err(NameError::Punycode));
    }

    #[test]
    fn random_names_are_readable_and_never_the_same() {
        let names: HashSet<Name> = (0..1000).map(|_| Name::random()).collect();
        assert_eq!(names.len(), 1000);
        for name in names {
            assert!(name.as_str().starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
            assert!(!name.as_str().contains(['0', 'o', '1', 'l', 'i', '-']), "{name}");
            assert!(Name::is_random(name.as_str()));
            assert_eq!(Name::parse(name.as_str()), Ok(name));
        }
        for chosen in ["hooks", "2bcdefghjkmnp", "abcdefghijklm", "abcdefghjkmnpq"] {
            assert!(!Name::is_random(chosen), "{chosen}");
        }
        let symbols = READABLE.len() as f64;
        let bits = (READABLE_LETTERS as f64).log2() + (RANDOM_SYMBOLS - 1) as f64 * symbols.log2();
        assert!(bits >= 60.0, "{bits}");
    }

    #[test]
    fn json_carries_checked_names() {
        assert_eq!(serde_json::from_str::<Name>("\"Hooks\"").unwrap().as_str(), "hooks");
        assert!(serde_json::from_str::<Name>("\"a_b\"").is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_made_of_dns_labels(text in ".{0,70}") {
            let Ok(name) = Name::parse(&text) else { return Ok(()) };
            prop_assert_eq!(Name::parse(name.as_str()), Ok(name.clone()));
            for label in name.as_str().split('.') {
                prop_assert!((1..=MAX_NAME_BYTES).contains(&label.len()));
                prop_assert!(label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')));
            }
        }

        #[test]
        fn punycode_never_panics(tail in "[a-z0-9-]{0,59}") {
            let _ = Name::parse(&format!("xn--{tail}"));
        }
    }
}
