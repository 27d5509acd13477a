//! Signing a request as a provider does: the rule that judges, read backwards.

use std::borrow::Cow;

use http::Method;
use jiff::Timestamp;

use super::{
    credentials::{Credentials, Secret},
    request::{Draft, Place, Request},
    scheme::{KeyPair, Scheme, SigningKey},
    signature::{Attempt, Rule},
    table::Provider,
    template::{Lacking, Scope, Template, sha256},
};

/// Why a request cannot be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No secret is given, or none that this provider's requests are signed with.
    #[error("there is no secret of {0} to sign with")]
    NoSecret(String),
    /// Only the provider has what is needed.
    #[error("only {0} itself can sign its requests: the key that is given here verifies")]
    OnlyTheProvider(String),
    /// Nothing is signed.
    #[error("{0} does not sign its requests")]
    Unsigned(String),
    /// The request lacks something that the signature covers.
    #[error("{0}")]
    Lacking(String),
    /// What is signed would have the signature in it.
    #[error("the request says that its own signature is a part of what is signed")]
    Circular,
    /// The signature has no place in the request.
    #[error("the request has no place for the signature: it lacks {0}")]
    NoPlace(String),
}

impl Provider {
    /// Signs a request anew, as the provider would at the time `now`, with the secret that has signed it, or else the
    /// first that fits.
    ///
    /// # Errors
    /// [`SignError`]; most often the provider signs with a key that it alone has.
    pub fn sign(&self, request: &Request<'_>, credentials: &Credentials, now: Timestamp) -> Result<Draft, SignError> {
        let (rule, signer) = self.rule_to_sign(request, credentials);
        let rule = rule.ok_or_else(|| SignError::Unsigned(self.name.clone()))?;
        if rule.key_url.is_some() || rule.scheme.is_token() {
            return Err(SignError::OnlyTheProvider(self.name.clone()));
        }
        // What has verified it once does so again.
        let signer = signer.and_then(|index| credentials.secrets.get(index));
        let taken = signer.into_iter().chain(&credentials.secrets).filter(|secret| rule.takes(secret, self));
        let mut taken = taken.peekable();
        let is_given = taken.peek().is_some();
        let (secret, key) =
            taken.find_map(|secret| Some((secret, rule.signing_key(secret, self)?))).ok_or_else(|| {
                if is_given && !rule.scheme.is_symmetric() {
                    SignError::OnlyTheProvider(self.name.clone())
                } else {
                    SignError::NoSecret(self.name.clone())
                }
            })?;
        rule.sign(request, credentials, secret, &key, now)
    }

    /// The rule that has signed a request, and the number of the secret; of one that is not signed, or so that it cannot be
    /// told, the first rule that it and the secrets fit.
    fn rule_to_sign<'r>(
        &'r self,
        request: &'r Request<'_>,
        credentials: &'r Credentials,
    ) -> (Option<&'r Rule>, Option<usize>) {
        let signed_by = |attempt: Attempt<'r, '_>| {
            let signer = attempt.signer(self, credentials).ok().flatten();
            signer.map(|signer| (attempt.rule, signer))
        };
        if let Some((rule, signer)) = self.attempts(request, credentials).flatten().find_map(signed_by) {
            return (Some(rule), Some(signer));
        }
        let has_key = |rule: &&Rule| {
            let mut secrets = credentials.secrets.iter().filter(|secret| rule.takes(secret, self));
            secrets.any(|secret| rule.signing_key(secret, self).is_some())
        };
        let fitting = self.signature.iter().filter(|rule| rule.when.hold(request));
        let mut rules = self.rules(request, credentials).chain(fitting).peekable();
        let first = rules.peek().copied().or(self.signature.first());
        (rules.find(has_key).or(first), None)
    }

    /// A new key pair, to sign samples for an app that is given the public half; nothing for a provider whose two sides
    /// share one secret.
    #[must_use]
    pub fn key_pair(&self) -> Option<KeyPair> {
        self.signature.iter().find_map(|rule| KeyPair::generate(rule.scheme, rule.key))
    }

    /// A new secret in the form of the provider's own, for samples: the shared one where it can sign with one, and else a
    /// key pair. Nothing for a provider that does not sign, or with a key that only it can have.
    #[must_use]
    pub fn new_secret(&self) -> Option<KeyPair> {
        let shared = |rule: &Rule| {
            let prefix = rule.secret_prefix(self).unwrap_or_default();
            KeyPair::shared(rule.scheme, rule.key, rule.encoding, prefix)
        };
        let mut rules = self.signature.iter().filter(|rule| rule.when.is_empty() && rule.key_url.is_none());
        rules.find_map(shared).or_else(|| self.key_pair())
    }

    /// The request with `instead` in the place of everything that lets in whoever knows it: a shared token, a password, the
    /// key of all that follows. Signatures stay as they are: they tell nothing of their key. A body in which such a thing
    /// may stand, and which cannot be read, is replaced as a whole.
    #[must_use]
    pub fn mask(&self, request: &Request<'_>, instead: &str) -> Draft {
        let mut draft = Draft::from(request);
        if self.secret_places().any(Place::is_in_body) && !request.is_understood() {
            draft.body = instead.into();
        }
        self.secret_places().for_each(|place| draft.mask(place, instead));
        draft
    }

    /// What [`Provider::mask`] takes out; `None` where that is not known, because not all of the body can be read.
    #[must_use]
    pub fn secrets_in(&self, request: &Request<'_>) -> Option<Vec<Vec<u8>>> {
        let secrets = || self.secret_places().flat_map(|place| place.all(request)).map(Cow::into_owned).collect();
        self.secret_places().all(|place| place.is_read(request)).then(secrets)
    }

    /// Whether two requests carry the same signature, whatever it is worth.
    #[must_use]
    pub fn is_signed_alike(&self, one: &Request<'_>, other: &Request<'_>) -> bool {
        self.signature.iter().all(|rule| rule.from.all(one) == rule.from.all(other))
    }

    fn secret_places(&self) -> impl Iterator<Item = &Place> {
        let shared = self.signature.iter().filter(|rule| rule.scheme == Scheme::Equal);
        shared.map(|rule| &rule.from).chain(&self.secrets)
    }

    /// What the provider's first scheme makes of a text: some handshakes ask for that as a proof.
    pub(super) fn sign_text(&self, credentials: &Credentials, text: &[u8]) -> Option<String> {
        let rule = self.signature.first()?;
        let secret = credentials.secrets.iter().find(|secret| rule.takes(secret, self))?;
        let key = rule.signing_key(secret, self)?;
        key.sign(text).map(|signature| rule.encoding.encode(&signature))
    }
}

impl Rule {
    fn signing_key(&self, secret: &Secret, provider: &Provider) -> Option<SigningKey> {
        if self.scheme.is_symmetric() {
            return secret.key(self.scheme, self.key, self.secret_prefix(provider)).map(SigningKey::Symmetric);
        }
        SigningKey::from_pkcs8(self.scheme, secret.expose())
    }

    fn sign(
        &self,
        request: &Request<'_>,
        credentials: &Credentials,
        secret: &Secret,
        key: &SigningKey,
        now: Timestamp,
    ) -> Result<Draft, SignError> {
        let method: &Method = request.method;
        let mut draft = Draft::from(request);
        let put = |draft: &mut Draft, place: &Place, text: &str| {
            draft.set(method, place, text).ok_or_else(|| SignError::NoPlace(place.to_string()))
        };
        let lacking = |lacking: Lacking| SignError::Lacking(lacking.to_string());
        let scope = Scope::of(request, &credentials.settings);
        let prefix = |template: &Template| match template.bytes(&scope) {
            Ok(prefix) => Ok(String::from_utf8_lossy(&prefix).into_owned()),
            Err(error) => Err(lacking(error)),
        };
        let (mut timestamp, mut beside) = (String::new(), None);
        if let Some(time) = &self.timestamp {
            timestamp = time.unit.write(now);
            let text = prefix(&time.prefix)? + &timestamp;
            match &time.from {
                Some(place) => put(&mut draft, place, &text)?,
                None => beside = Some(text),
            }
        }
        if let Some(place) = &self.body_sha256 {
            let hash = sha256(&draft.body);
            put(&mut draft, place, &hash)?;
        }
        let content = |draft: &Draft| {
            let signed = Request::new(method, &draft.url, &draft.headers, &draft.body);
            let scope = Scope {
                timestamp: timestamp.as_bytes(),
                secret: secret.expose().as_bytes(),
                ..Scope::of(&signed, &credentials.settings)
            };
            self.content.bytes(&scope).map_err(lacking)
        };
        let covered = content(&draft)?;
        let signature = key.sign(&covered);
        let signature = signature.map(|signature| self.encoding.encode(&signature)).unwrap_or_default();
        let mut text = prefix(&self.prefix)? + &signature;
        if let (Some(before), Some(separator)) = (beside, self.list) {
            text = format!("{before}{separator}{text}");
        }
        put(&mut draft, &self.from, &text)?;
        // A request may list the headers that are signed, and whoever sent it may have listed any.
        if content(&draft)? != covered { Err(SignError::Circular) } else { Ok(draft) }
    }
}
