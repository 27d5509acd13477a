//! What an ID token has to say before it is believed (OpenID Connect Core 1.0, section 3.1.3.7), once it is known who has
//! signed it.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde_json::{Map, Value};

use super::Person;

/// How far the clocks of two machines may be apart, in seconds.
const SKEW: f64 = 60.0;

/// How old a token may be that was asked for just now, in seconds.
const AGE: f64 = 600.0;

/// Most bytes of an address, and of what an issuer calls somebody (section 2).
const MAX_EMAIL: usize = 254;
const MAX_SUBJECT: usize = 255;

/// What is asked of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
}

/// Why a token says nothing of who is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimsError {
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another client than {0:?}")]
    Audience(String),
    #[error("the token has expired: compare the clocks")]
    Expired,
    #[error("the token is from another time: compare the clocks")]
    Issued,
    #[error("the token is for another login")]
    Nonce,
    #[error("the token does not say who it is about")]
    Subject,
}

/// Whom a token is about, by the clock of that moment, in seconds since 1970.
///
/// # Errors
/// [`ClaimsError`].
pub(super) fn judge(claims: &Map<String, Value>, expected: Expected<'_>, now: i64) -> Result<Person, ClaimsError> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let seconds = |name: &str| claims.get(name).and_then(Value::as_f64);
    if text("iss") != Some(expected.issuer) {
        return Err(ClaimsError::Issuer);
    }
    let own = Some(expected.client_id);
    let is_for_us = match claims.get("aud") {
        Some(Value::Array(all)) => {
            // What is for others, too, says by whom it may be shown.
            all.iter().any(|one| one.as_str() == own) && (all.len() == 1 || text("azp") == own)
        }
        one => one.and_then(Value::as_str) == own,
    };
    if !is_for_us || claims.contains_key("azp") && text("azp") != own {
        return Err(ClaimsError::Audience(expected.client_id.to_owned()));
    }
    // Exact as far as seconds of our time go.
    #[expect(clippy::cast_precision_loss, reason = "2^53 seconds are far away")]
    let now = now as f64;
    if !seconds("exp").is_some_and(|ends| now < ends + SKEW) {
        return Err(ClaimsError::Expired);
    }
    if !seconds("iat").is_some_and(|begins| begins - SKEW <= now && now <= begins + AGE + SKEW) {
        return Err(ClaimsError::Issued);
    }
    let is_nonce = |nonce: &str| verify_slices_are_equal(nonce.as_bytes(), expected.nonce.as_bytes()).is_ok();
    if !text("nonce").is_some_and(is_nonce) {
        return Err(ClaimsError::Nonce);
    }
    let is_subject =
        |text: &&str| (1..=MAX_SUBJECT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let subject = text("sub").filter(is_subject).ok_or(ClaimsError::Subject)?;
    Ok(Person { subject: subject.to_owned(), email: email(claims) })
}

/// The address that the issuer has verified (section 5.1), if it says one.
pub(super) fn email(claims: &Map<String, Value>) -> Option<String> {
    // Some write it as a text.
    let is_verified = match claims.get("email_verified")? {
        Value::Bool(verified) => *verified,
        Value::String(text) => text == "true",
        _ => false,
    };
    let is_email = |text: &&str| {
        text.len() <= MAX_EMAIL && text.contains('@') && !text.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    claims.get("email").and_then(Value::as_str).filter(|_| is_verified).filter(is_email).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const EXPECTED: Expected<'_> = Expected { issuer: "https://issuer.example", client_id: "own", nonce: "n" };

    fn judged(change: Value) -> Result<Person, ClaimsError> {
        let mut claims = json!({
            "iss": "https://issuer.example", "aud": "own", "exp": NOW + 300, "iat": NOW, "nonce": "n", "sub": "248289761001",
            "email": "alice@example.com", "email_verified": true,
        });
        let all = claims.as_object_mut().unwrap();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(all.remove(name)),
                value => drop(all.insert(name.clone(), value.clone())),
            }
        }
        judge(all, EXPECTED, NOW)
    }

    #[test]
    fn a_token_says_who_is_there_only_where_all_of_it_holds() {
        let alice = Person { subject: "248289761001".to_owned(), email: Some("alice@example.com".to_owned()) };
        for right in [
            json!({}),
            json!({ "aud": ["own"] }),
            json!({ "aud": ["other", "own"], "azp": "own" }),
            json!({ "azp": "own" }),
            json!({ "exp": NOW - 59 }),
            json!({ "iat": NOW + 59, "exp": NOW as f64 + 300.5 }),
            json!({ "email_verified": "true" }),
        ] {
            assert_eq!(judged(right.clone()), Ok(alice.clone()), "{right}");
        }
        let audience = || ClaimsError::Audience("own".to_owned());
        for (wrong, error) in [
            (json!({ "iss": "https://issuer.example/" }), ClaimsError::Issuer),
            (json!({ "iss": null }), ClaimsError::Issuer),
            (json!({ "aud": "other" }), audience()),
            (json!({ "aud": [] }), audience()),
            (json!({ "aud": null }), audience()),
            (json!({ "aud": ["other", "own"] }), audience()),
            (json!({ "aud": ["other", "own"], "azp": "other" }), audience()),
            (json!({ "azp": "other" }), audience()),
            (json!({ "azp": 1 }), audience()),
            (json!({ "exp": NOW - 60 }), ClaimsError::Expired),
            (json!({ "exp": null }), ClaimsError::Expired),
            (json!({ "exp": "1900000000" }), ClaimsError::Expired),
            (json!({ "iat": NOW + 61 }), ClaimsError::Issued),
            (json!({ "iat": NOW - 661 }), ClaimsError::Issued),
            (json!({ "iat": null }), ClaimsError::Issued),
            (json!({ "nonce": "m" }), ClaimsError::Nonce),
            (json!({ "nonce": null }), ClaimsError::Nonce),
            (json!({ "sub": null }), ClaimsError::Subject),
            (json!({ "sub": "" }), ClaimsError::Subject),
            (json!({ "sub": "a\r\nb" }), ClaimsError::Subject),
            (json!({ "sub": "x".repeat(256) }), ClaimsError::Subject),
        ] {
            assert_eq!(judged(wrong.clone()), Err(error), "{wrong}");
        }
    }

    #[test]
    fn an_address_counts_once_it_was_verified() {
        for none in [
            json!({ "email_verified": false }),
            json!({ "email_verified": null }),
            json!({ "email_verified": "false" }),
            json!({ "email_verified": 1 }),
            json!({ "email": null }),
            json!({ "email": "alice" }),
            json!({ "email": "alice@example.com\r\nrelay-user-sub: 1" }),
            json!({ "email": format!("{}@example.com", "a".repeat(250)) }),
        ] {
            assert_eq!(judged(none.clone()).unwrap().email, None, "{none}");
        }
    }
}
