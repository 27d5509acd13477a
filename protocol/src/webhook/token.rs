//! Requests that are vouched for by a JSON Web Token (RFC 7519): its signature covers claims, and the claims what the
//! request is about.

use std::convert::Infallible;

use aws_lc_rs::{constant_time::verify_slices_are_equal, signature::RsaPublicKeyComponents};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    credentials::Credentials,
    scheme::{Encoding, Key, KeyForm, Scheme, pem_key},
    signature::{Attempt, lacking},
    table::Provider,
    template::{Scope, Template, sha256},
    verdict::{Judgement, Verdict},
};

/// A claim that must be what the request says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    name: String,
    pub(super) content: Template,
    /// The claim is the SHA-256 of that in hex.
    #[serde(default)]
    sha256: bool,
}

/// How far the clocks of two machines may be apart, in seconds, where a token says to the second when it ends.
const SKEW: i64 = 10;

/// How many keys of a set are tried for a token that does not name its own.
const KEYS_MAX: usize = 16;

pub(super) fn judge(
    attempt: &Attempt<'_, '_>,
    provider: &Provider,
    credentials: &Credentials,
    now: Timestamp,
) -> Result<Judgement, Judgement> {
    let malformed = |reason: &str| Judgement::of(Verdict::Malformed, reason.to_owned());
    let rule = attempt.rule;
    let text = attempt.texts.first().map_or("", String::as_str);
    let token = Token::read(text).ok_or_else(|| malformed("it is no JSON Web Token"))?;
    let algorithm = match rule.scheme {
        Scheme::JwtRs256 => "RS256",
        Scheme::JwtEs256 => "ES256",
        _ => "HS256",
    };
    // The rule says how it is signed, and never the token.
    if token.head.get("alg").and_then(Value::as_str) != Some(algorithm) {
        return Err(malformed(&format!("the token is not signed by {algorithm}")));
    }
    let keys = keys(attempt, provider, credentials, token.head.get("kid").and_then(Value::as_str))?;
    let content = |out: &mut dyn FnMut(&[u8])| -> Result<(), Judgement> {
        out(token.signed.as_bytes());
        Ok(())
    };
    let mut secret = None;
    for (index, key) in &keys {
        if key.verify(&content, std::slice::from_ref(&token.signature))?.contains(&true) {
            secret = Some(*index);
            break;
        }
    }
    if secret.is_none() {
        let reason = format!("the token is not signed by a key of {} that is known here", provider.name);
        return Err(Judgement::of(Verdict::BadSignature, reason));
    }
    for claim in &rule.claims {
        claim.check(&token.claims, &attempt.scope)?;
    }
    let mut judgement = Judgement::of(Verdict::Valid, format!("signed by {}", provider.name));
    judgement.secret = secret;
    let seconds = |name: &str| token.claims.get(name).and_then(Value::as_i64);
    let now = now.as_second();
    let (issued, expires) = (seconds("iat"), seconds("exp"));
    if let Some(late) = expires.map(|expires| now.saturating_sub(expires)).filter(|late| *late > SKEW) {
        return Err(Judgement::of(Verdict::Stale, format!("the token has ended {late} s ago")));
    }
    if let Some(early) = issued.map(|issued| issued.saturating_sub(now)).filter(|early| *early > 300) {
        return Err(Judgement::of(Verdict::Future, format!("the token is from {early} s ahead: compare the clocks")));
    }
    match (rule.max_age, issued, expires) {
        (Some(max), Some(issued), _) if now.saturating_sub(issued) > max => {
            let age = now.saturating_sub(issued);
            let reason = format!("the token is {age} s old, and {max} s are allowed");
            Err(Judgement::of(Verdict::Stale, reason))
        }
        (Some(_), None, _) => Err(malformed("the token does not say when it was issued")),
        (None, _, None) => Err(malformed("the token does not say when it ends")),
        _ => Ok(judgement),
    }
}

/// Why a token says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It cannot be read.
    #[error("it is no JSON Web Token")]
    Malformed,
    /// By nothing that only its issuer could have signed it with.
    #[error("it is signed by {0:?}, and not by RS256 or ES256")]
    Algorithm(String),
    /// The key may be newer than the keys.
    #[error("none of the keys is the one that it says that it is signed by")]
    NoKey,
    /// Somebody else has, or it was altered.
    #[error("its signature is wrong")]
    Signature,
}

/// The claims of a JSON Web Token that one of these keys, a JSON Web Key Set (RFC 7517), has signed with RS256 or ES256 (RFC
/// 7518). What they say is for the caller to judge.
///
/// # Errors
/// [`Unsigned`].
pub fn signed_claims(token: &str, keys: &str) -> Result<Map<String, Value>, Unsigned> {
    let token = Token::read(token).ok_or(Unsigned::Malformed)?;
    let scheme = match token.head.get("alg").and_then(Value::as_str) {
        Some("RS256") => Scheme::JwtRs256,
        Some("ES256") => Scheme::JwtEs256,
        other => return Err(Unsigned::Algorithm(other.unwrap_or_default().chars().take(16).collect())),
    };
    let keys = key_set(scheme, keys, token.head.get("kid").and_then(Value::as_str));
    if keys.is_empty() {
        return Err(Unsigned::NoKey);
    }
    let content = |out: &mut dyn FnMut(&[u8])| -> Result<(), Infallible> {
        out(token.signed.as_bytes());
        Ok(())
    };
    let signature = std::slice::from_ref(&token.signature);
    let is_signed_by = |key: &Key| key.verify(&content, signature).is_ok_and(|found| found.contains(&true));
    if keys.iter().any(is_signed_by) { Ok(token.claims) } else { Err(Unsigned::Signature) }
}

struct Token<'a> {
    head: Map<String, Value>,
    claims: Map<String, Value>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let object = |part: &str| serde_json::from_slice(&Encoding::Base64Url.decode(part)?).ok();
        let signature = Encoding::Base64Url.decode(signature)?;
        let head: Map<String, Value> = object(head)?;
        // What has to be understood (RFC 7515, section 4.1.11) is not.
        if head.contains_key("crit") {
            return None;
        }
        Some(Self { head, claims: object(claims)?, signed, signature })
    }
}

impl Claim {
    fn check(&self, claims: &Map<String, Value>, scope: &Scope<'_, '_>) -> Result<(), Judgement> {
        let mut wanted = self.content.bytes(scope).map_err(lacking)?;
        if self.sha256 {
            wanted = sha256(&wanted).into_bytes();
        }
        let given = match claims.get(&self.name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(_) | Value::Number(_)) => claims.get(&self.name).map(Value::to_string).unwrap_or_default(),
            _ => {
                let reason = format!("the token does not say {:?}", self.name);
                return Err(Judgement::of(Verdict::Malformed, reason));
            }
        };
        if verify_slices_are_equal(&wanted, given.as_bytes()).is_ok() {
            return Ok(());
        }
        let altered = if self.content.has_body() { ": the body was altered" } else { "" };
        let reason = format!("the token is about another request: its {:?} is not this one's{altered}", self.name);
        Err(Judgement::of(Verdict::BadSignature, reason))
    }
}

/// The keys that may have signed a token: published ones, or what the user gave.
fn keys(
    attempt: &Attempt<'_, '_>,
    provider: &Provider,
    credentials: &Credentials,
    id: Option<&str>,
) -> Result<Vec<(usize, Key)>, Judgement> {
    let rule = attempt.rule;
    let read = |text: &str| key_set(rule.scheme, text, id);
    let keys: Vec<_> = if let Some(url) = rule.published_at(&attempt.scope)? {
        let text = credentials.published.get(&url).ok_or_else(|| {
            let reason = format!("{} publishes its keys at {url}, and they have not been fetched", provider.name);
            Judgement::of(Verdict::Unsupported, reason)
        })?;
        read(text).into_iter().map(|key| (0, key)).collect()
    } else if credentials.secrets.iter().all(|secret| secret.expose().trim().is_empty()) {
        return Err(Judgement::of(Verdict::NoSecret, provider.ask_for_secret()));
    } else {
        let secrets = credentials.secrets.iter().enumerate();
        secrets.flat_map(|(index, secret)| read(secret.expose()).into_iter().map(move |key| (index, key))).collect()
    };
    if keys.is_empty() {
        let reason = match id {
            Some(id) => format!("no key of {} that is known here is the token's, {id:?}", provider.name),
            None => format!("no key of {} is known here", provider.name),
        };
        return Err(Judgement::of(Verdict::NoSecret, reason));
    }
    Ok(keys)
}

/// Whether a text is a key, or has keys in it, that tokens of the scheme can be held against.
pub(super) fn is_key(scheme: Scheme, text: &str) -> bool {
    !key_set(scheme, text, None).is_empty()
}

/// The keys of a JSON Web Key (Set) (RFC 7517) that may be the one called `id`, of a PEM text, or of a shared secret.
fn key_set(scheme: Scheme, text: &str, id: Option<&str>) -> Vec<Key> {
    if scheme == Scheme::JwtHs256 {
        let key = KeyForm::Text.key(text, None).and_then(|bytes| Key::new(scheme, bytes));
        return key.into_iter().collect();
    }
    if let Some(der) = pem_key(text) {
        return Key::new(scheme, der).into_iter().collect();
    }
    let Ok(Value::Object(set)) = serde_json::from_str(text) else { return Vec::new() };
    let one = [Value::Object(set.clone())];
    let keys = set.get("keys").and_then(Value::as_array).map_or(one.as_slice(), Vec::as_slice);
    let word = |key: &Value, name: &str| key.get(name).and_then(Value::as_str).map(str::to_owned);
    let is_it = |key: &&Value| match (id, word(key, "kid")) {
        // One that is for secrets (RFC 7517, section 4.2) signs nothing.
        _ if word(key, "use").is_some_and(|purpose| purpose != "sig") => false,
        (Some(id), Some(kid)) => id == kid,
        _ => true,
    };
    keys.iter().filter(is_it).take(KEYS_MAX).filter_map(|key| jwk(scheme, key)).collect()
}

fn jwk(scheme: Scheme, key: &Value) -> Option<Key> {
    let part = |name| Encoding::Base64Url.decode(key.get(name)?.as_str()?);
    match scheme {
        Scheme::JwtEs256 => {
            // An uncompressed point (SEC 1, section 2.3.3).
            let (x, y) = (part("x")?, part("y")?);
            Key::new(scheme, [&[4], x.as_slice(), y.as_slice()].concat())
        }
        Scheme::JwtRs256 => Some(Key::Rsa(RsaPublicKeyComponents { n: part("n")?, e: part("e")? })),
        _ => None,
    }
}
