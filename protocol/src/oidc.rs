//! The login in a browser that a tunnel asks for, by OpenID Connect: one of the rules of [who may call it](crate::access).
//!
//! The client secret crosses the wire in an extra of its own. It is no part of the rule as that is written down, and the relay
//! has it for as long as the client is there.

use http::Uri;
use http::uri::Scheme;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::message::Extra;
use crate::paths::{self, MAX_PATTERNS, NoPath, clip};
use crate::webhook::Secret;

/// Most people and domains of people whom a tunnel names.
pub const MAX_PEOPLE: usize = 64;

/// Most bytes of an issuer's URL.
const MAX_ISSUER: usize = 512;

/// Most bytes of a client's id and of its secret: the longest known ones have a few hundred.
const MAX_CLIENT: usize = 1024;

/// Most bytes of an address (RFC 5321, section 4.5.3.1.3, without its brackets).
const MAX_EMAIL: usize = 254;

/// In a tunnel's spec: the client secret.
const SECRET: u16 = 8;

/// In the Welcome: the relay knows logins.
const KNOWN: u16 = 4;

/// A login by OpenID Connect Core 1.0, with the authorization code flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// Who knows the people: an `https` URL.
    pub issuer: String,
    /// What the tunnel is called there.
    pub client_id: String,
    /// The addresses that are let in, and domains of addresses, as in `@example.com`; empty for everybody whom the issuer knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Paths that need no login, in which `*` stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// By what the issuer knows that it is asked for this tunnel. None where its client is away.
    #[serde(skip)]
    pub secret: Option<Secret>,
}

/// Why something is no such login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcError {
    /// More than there is room for.
    #[error("a login has at most {MAX_PEOPLE} people or domains of people, and {MAX_PATTERNS} paths that need none")]
    TooMuch,
    /// Nobody can be asked there.
    #[error("{0:?} is no issuer of logins, such as https://accounts.example.com: an https URL without ? and #")]
    Issuer(String),
    /// No issuer gives out such a one.
    #[error("{0:?} is no client id: it has 1 to {MAX_CLIENT} visible ASCII characters, and no spaces")]
    ClientId(String),
    /// It is missing, or no issuer gives out such a one.
    #[error("a login takes one client secret, of 1 to {MAX_CLIENT} visible ASCII characters without spaces")]
    ClientSecret,
    /// Nobody has such an address.
    #[error("{0:?} is neither an address such as alice@example.com nor a domain such as @example.com")]
    Person(String),
    /// It is no pattern of paths.
    #[error(transparent)]
    Path(#[from] NoPath),
}

impl Oidc {
    /// # Errors
    /// [`OidcError`]: what is no such rule.
    pub(crate) fn check(&self) -> Result<(), OidcError> {
        let Self { issuer, client_id, allow, skip, secret: _ } = self;
        if allow.len() > MAX_PEOPLE || skip.len() > MAX_PATTERNS {
            return Err(OidcError::TooMuch);
        }
        if !is_issuer(issuer) {
            return Err(OidcError::Issuer(clip(issuer)));
        }
        if !is_word(client_id) {
            return Err(OidcError::ClientId(clip(client_id)));
        }
        if let Some(wrong) = allow.iter().find(|rule| !is_person(rule)) {
            return Err(OidcError::Person(clip(wrong)));
        }
        Ok(paths::check(skip)?)
    }

    /// What says the secret.
    pub(crate) fn secret_extra(&self) -> Option<Extra> {
        let value = self.secret.as_ref()?.expose().as_bytes().to_vec();
        Some(Extra { tag: SECRET, value })
    }

    /// Takes the secret from a tunnel's extras.
    ///
    /// # Errors
    /// [`OidcError::ClientSecret`]: there is none, or it is none.
    pub(crate) fn take_secret(&mut self, extras: &[Extra]) -> Result<(), OidcError> {
        let mut all = extras.iter().filter(|extra| extra.tag == SECRET);
        let text = all.next().and_then(|extra| str::from_utf8(&extra.value).ok()).filter(|text| is_word(text));
        match (text, all.next()) {
            (Some(text), None) => self.secret = Some(text.into()),
            _ => return Err(OidcError::ClientSecret),
        }
        Ok(())
    }

    /// What a relay says in its Welcome that knows logins.
    #[must_use]
    pub const fn known() -> Extra {
        Extra { tag: KNOWN, value: Vec::new() }
    }

    /// Whether the relay knows logins, by the extras of its Welcome.
    #[must_use]
    pub fn is_known(welcome: &[Extra]) -> bool {
        welcome.iter().any(|extra| extra.tag == KNOWN)
    }

    /// Whether somebody is let in whose address the issuer has verified to be that, or has not verified any. Case does not
    /// matter, because hardly any provider of mail tells addresses apart by it.
    #[must_use]
    pub fn admits(&self, email: Option<&str>) -> bool {
        let is_one = |email: &str, rule: &String| match rule.strip_prefix('@') {
            Some(domain) => {
                email.rsplit_once('@').is_some_and(|(user, own)| !user.is_empty() && own.eq_ignore_ascii_case(domain))
            }
            None => rule.eq_ignore_ascii_case(email),
        };
        self.allow.is_empty() || email.is_some_and(|email| self.allow.iter().any(|rule| is_one(email, rule)))
    }

    /// Whether a path, as it stands in the request and without its query, needs no login. One that leads elsewhere than it
    /// says does, and one of which servers see different parts: `/admin;a.css` is `/admin` for some.
    #[must_use]
    pub fn skips(&self, path: &str) -> bool {
        let is_odd = |byte: u8| byte == b';' || byte.is_ascii_control();
        paths::has(&self.skip, path) && !percent_decode_str(path).any(is_odd)
    }
}

/// Whether a text can be an issuer (OpenID Connect Discovery 1.0, section 3): an `https` URL without query and fragment.
#[must_use]
pub fn is_issuer(text: &str) -> bool {
    let is_url = |uri: Uri| {
        let is_host = uri.authority().is_some_and(|host| !host.as_str().contains('@') && !host.host().is_empty());
        uri.scheme() == Some(&Scheme::HTTPS) && is_host
    };
    text.len() <= MAX_ISSUER && !text.contains(['?', '#']) && is_word(text) && text.parse().is_ok_and(is_url)
}

/// Visible ASCII characters, as RFC 6749, appendix A, has them, but for spaces.
fn is_word(text: &str) -> bool {
    (1..=MAX_CLIENT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An address, or a domain behind `@`.
fn is_person(rule: &str) -> bool {
    let is_domain = |domain: &str| !domain.is_empty() && !domain.contains('@');
    rule.len() <= MAX_EMAIL
        && !rule.chars().any(|c| c.is_whitespace() || c.is_control())
        && rule.rsplit_once('@').is_some_and(|(user, domain)| is_domain(domain) && !user.starts_with('@'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::access::Access;

    fn oidc() -> Oidc {
        Oidc {
            issuer: "https://issuer.example/tenant".to_owned(),
            client_id: "tunnel-1".to_owned(),
            allow: vec!["Alice@example.com".to_owned(), "@example.org".to_owned()],
            skip: vec!["/hooks/*".to_owned()],
            secret: Some("s3cret".into()),
        }
    }

    fn access(oidc: Oidc) -> Access {
        Access { oidc: Some(oidc.into()), ..Access::default() }
    }

    #[test]
    fn the_secret_travels_beside_the_rule_and_not_in_it() {
        let all = access(oidc());
        let extras = all.extras().unwrap();
        assert_eq!(extras.len(), 2);
        assert_eq!(Access::of(&extras), Ok(Some(all.clone())));
        for text in [serde_json::to_string(&all).unwrap(), format!("{all:?}"), all.to_string()] {
            assert!(!text.contains("s3cret"), "{text}");
        }
        assert!(!format!("{extras:?}").contains("s3cret"));
        // The rule alone would be one that nobody can keep to.
        assert_eq!(Access::of(&extras[..1]), Err(OidcError::ClientSecret.into()));
        let twice = [extras[0].clone(), extras[1].clone(), extras[1].clone()];
        assert_eq!(Access::of(&twice), Err(OidcError::ClientSecret.into()));
        let odd = Extra { value: b"two words".to_vec(), ..extras[1].clone() };
        assert_eq!(Access::of(&[extras[0].clone(), odd]), Err(OidcError::ClientSecret.into()));
        let kept = all.without_secret();
        assert_eq!(kept, access(Oidc { secret: None, ..oidc() }));
        assert_eq!(kept.extras(), Err(OidcError::ClientSecret.into()));
        assert!(Oidc::is_known(&[Oidc::known()]) && !Oidc::is_known(&[Access::known()]));
    }

    #[test]
    fn what_is_no_login_is_refused() {
        let wrong = |change: fn(&mut Oidc)| {
            let mut oidc = oidc();
            change(&mut oidc);
            access(oidc).extras().unwrap_err().to_string()
        };
        for issuer in [
            "http://issuer.example",
            "issuer.example",
            "https://",
            "https://a@issuer.example",
            "https://issuer.example/?a=1",
            "https://issuer.example/#a",
            "https://issuer.example/a b",
            "",
        ] {
            assert!(!is_issuer(issuer), "{issuer}");
        }
        assert!(wrong(|oidc| oidc.issuer = "http://issuer.example".into()).contains("no issuer"));
        assert!(wrong(|oidc| oidc.client_id.clear()).contains("client id"));
        assert!(wrong(|oidc| oidc.skip = vec!["hooks".into()]).contains("no path"));
        for person in ["alice", "@", "alice@", "a b@example.com", "@@example.com", "@a@b", ""] {
            assert!(!is_person(person), "{person}");
        }
        assert!(wrong(|oidc| oidc.allow = vec!["alice".into()]).contains("alice@example.com"));
        assert!(wrong(|oidc| oidc.allow = vec!["@a.example".into(); MAX_PEOPLE + 1]).contains("64 people"));
    }

    #[test]
    fn people_are_let_in_by_a_verified_address_alone() {
        for (email, is_admitted) in [
            (Some("alice@example.com"), true),
            (Some("ALICE@Example.COM"), true),
            (Some("bob@example.com"), false),
            (Some("bob@example.org"), true),
            (Some("bob@sub.example.org"), false),
            (Some("bob@notexample.org"), false),
            (Some("bob@example.org@evil.example"), false),
            (Some("@example.org"), false),
            (Some("example.org"), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(oidc().admits(email), is_admitted, "{email:?}");
        }
        assert!(Oidc { allow: vec![], ..oidc() }.admits(None), "everybody whom the issuer knows");
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_not_skipped() {
        for (path, is_skipped) in [
            ("/hooks/a", true),
            ("/hooks", false),
            ("/", false),
            ("/hooks/../admin", false),
            ("/hooks/%2e%2e/admin", false),
            ("/hooks/..;/admin", false),
            ("/hooks/a;b=c", false),
            ("/hooks/a%3Bb", false),
            ("/hooks/a%00b", false),
        ] {
            assert_eq!(oidc().skips(path), is_skipped, "{path}");
        }
        assert!(!Oidc { skip: vec![], ..oidc() }.skips("/hooks/a"));
    }
}
