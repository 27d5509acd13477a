//! Whether a request was signed by who it says it is from.
//!
//! A [`Rule`] of the table says where a signature stands, what it covers and how it is made; nothing here knows any
//! provider.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    condition::Conditions,
    credentials::{Credentials, Secret},
    request::{Place, Request, Url},
    scheme::{Encoding, Key, KeyForm, Scheme, pem_key},
    table::Provider,
    template::{Lacking, Scope, Template, lossy, sha256},
    time::Time,
    token,
    verdict::{Judgement, Verdict},
};

/// The most signatures of one request that are looked at: providers send two while a secret is renewed, and one as
/// many as it has keys.
const SIGNATURES_MAX: usize = 100;

/// The longest URL of a published key, in bytes: people are shown it, and keys are kept by it.
const URL_MAX: usize = 2048;

/// The same where each is held against a public key, which costs some 70 µs for each of them and for each key: a stranger
/// could keep a processor busy with a few requests.
const PROOFS_MAX: usize = 8;

/// How one provider signs: a row of `[[provider.signature]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) scheme: Scheme,
    /// Where the signature stands. A request that has nothing there is not signed by this rule.
    pub(super) from: Place,
    /// What separates several signatures there, or a signature from other things.
    pub(super) list: Option<char>,
    /// What those begin with that are meant, as in `v1=`.
    #[serde(default)]
    pub(super) prefix: Template,
    #[serde(default)]
    pub(super) encoding: Encoding,
    /// What is signed.
    #[serde(default)]
    pub(super) content: Template,
    #[serde(default)]
    pub(super) key: KeyForm,
    /// When else it is this rule: the first that applies decides, and is not [for some secrets only](Self::only_secret).
    #[serde(default)]
    pub(super) when: Conditions,
    /// Only for secrets that begin so. What none of them has signed is judged by the next rule that applies.
    pub(super) only_secret: Option<String>,
    pub(super) timestamp: Option<Time>,
    /// All the values that stand there must be right, and not one.
    #[serde(default)]
    pub(super) every: bool,
    /// Whether the provider may write the default port into the URL that it signs, or leave it out.
    #[serde(default)]
    pub(super) any_port: bool,
    /// The characters that the provider writes bare in the URL that it signs, though they were sent as `%XX`.
    #[serde(default)]
    pub(super) bare: String,
    /// Where the SHA-256 of the body stands in hex, when the content covers that instead of the body.
    pub(super) body_sha256: Option<Place>,
    /// Places that must say the same as a template, where the settings that it needs are given: a signature by a key for
    /// everybody says who has sent a request, and not for whom.
    #[serde(default)]
    pub(super) equal: BTreeMap<Place, Template>,
    /// The claims of a token that must be as computed.
    #[serde(default)]
    pub(super) claims: Vec<token::Claim>,
    /// How old a token may be, in seconds, that does not say when it ends.
    pub(super) max_age: Option<i64>,
    /// Where the provider publishes the key, and the hosts that it may be fetched from.
    pub(super) key_url: Option<KeyUrl>,
}

/// A page of the provider's that a request names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyUrl {
    pub(super) from: Template,
    /// Names of hosts, in which a `*` stands for one label or a part of it.
    pub(super) hosts: Vec<String>,
}

impl KeyUrl {
    /// The URL, if it is on one of the hosts.
    pub(super) fn on_its_host(&self, scope: &Scope<'_, '_>) -> Result<String, Judgement> {
        let url = self.from.bytes(scope).map_err(lacking)?;
        if url.len() > URL_MAX {
            let reason = format!("it names a URL of {} bytes, and no provider's has more than {URL_MAX}", url.len());
            return Err(Judgement::of(Verdict::BadSignature, reason));
        }
        let url = String::from_utf8_lossy(&url).into_owned();
        let host = Url::of(&url).origin.strip_prefix("https://").unwrap_or("").to_ascii_lowercase();
        let allowed = self.hosts.iter().any(|allowed| match allowed.split_once('*') {
            Some((begins, ends)) => {
                let middle = host.strip_prefix(begins).and_then(|rest| rest.strip_suffix(ends));
                middle.is_some_and(|middle| !middle.is_empty() && !middle.contains('.'))
            }
            None => host == *allowed,
        });
        // A name that ends as the provider's must be a name: no user, no port, nothing encoded.
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
        if allowed && is_name {
            return Ok(url);
        }
        let reason = format!("it names {url:?}, which is on none of the provider's hosts, {}", self.hosts.join(", "));
        Err(Judgement::of(Verdict::BadSignature, reason))
    }
}

impl Provider {
    /// Judges a request's signature at the time `now`, that of its arrival.
    ///
    /// Costs one hash of the body for each secret, kind of secret and form of the URL. What a bad signature may come from is
    /// not looked for: that is [`Provider::explain`].
    #[must_use]
    pub fn judge(&self, request: &Request<'_>, credentials: &Credentials, now: Timestamp) -> Judgement {
        let mut best: Option<Judgement> = None;
        for attempt in self.attempts(request, credentials) {
            let judgement = attempt.and_then(|attempt| attempt.verify(self, credentials, now));
            let judgement = judgement.unwrap_or_else(|judgement| judgement);
            if judgement.secret.is_some() {
                return judgement;
            }
            // A wrong signature says more than none.
            let is_bad = |judgement: &Judgement| judgement.verdict == Verdict::BadSignature;
            if best.as_ref().is_none_or(|best| is_bad(&judgement) && !is_bad(best)) {
                best = Some(judgement);
            }
        }
        best.unwrap_or_else(|| self.unsigned())
    }

    /// The judgement on a request whose body has not come, where every body would lead to it: no rule has a signature in
    /// the head, nor looks for one in the body.
    #[must_use]
    pub fn judge_head(&self, request: &Request<'_>, credentials: &Credentials) -> Option<Judgement> {
        let may_be_signed = |rule: &Rule| rule.from.is_in_body() || rule.from.is_there(request);
        if self.signature.iter().any(may_be_signed) {
            return None;
        }
        self.attempts(request, credentials).next().map_or_else(|| Some(self.unsigned()), Result::err)
    }

    /// Where the key is published that a request says it is signed with; nothing for a provider without such keys. What
    /// is fetched from there goes to [`Credentials::published`].
    ///
    /// # Errors
    /// The judgement, where the request names another place than the provider's own: it must not be asked.
    pub fn key_url(&self, request: &Request<'_>, credentials: &Credentials) -> Result<Option<String>, Judgement> {
        // Most providers publish none, and then it is all the same by which of its rules this one is signed.
        let publishes = self.signature.iter().any(|rule| rule.key_url.is_some());
        // Nor is it asked for where no key makes the request a valid one.
        if !publishes {
            return Ok(None);
        }
        let attempts = self.attempts(request, credentials).flatten();
        let mut urls = attempts.filter_map(|attempt| attempt.rule.published_at(&attempt.scope).transpose());
        urls.next().transpose()
    }

    /// Whether its signatures can be judged where nothing may be fetched.
    #[must_use]
    pub fn signs_with_given_secret(&self) -> bool {
        self.signature.iter().any(|rule| rule.key_url.is_none())
    }

    /// Why a secret cannot be one of the provider's; nothing where it can, or where there is none to be given.
    #[must_use]
    pub fn refuses(&self, secret: &Secret) -> Option<String> {
        let is_key = |rule: &Rule| match rule.scheme.is_token() {
            true => token::is_key(rule.scheme, secret.expose()),
            false => secret.key(rule.scheme, rule.key, rule.secret_prefix(self)).is_some(),
        };
        let mut rules = self.signature.iter().filter(|rule| rule.key_url.is_none()).peekable();
        rules.peek()?;
        let takes = rules.any(|rule| rule.takes(secret, self) && is_key(rule));
        (!takes).then(|| self.not_a_secret())
    }

    fn not_a_secret(&self) -> String {
        format!("the secret is not in the form of one of {}: {}", self.name, self.ask_for_secret())
    }

    /// Whether the public URL is part of what is signed, so that the app must see it as the provider called it.
    #[must_use]
    pub fn signs_url(&self) -> bool {
        let claims = |rule: &Rule| rule.claims.iter().any(|claim| claim.content.has_url());
        self.signature.iter().any(|rule| rule.content.has_url() || claims(rule))
    }

    /// Whether a valid signature says that the whole body is the provider's, and not only that the sender knew a secret.
    #[must_use]
    pub fn signs_body(&self) -> bool {
        self.signature.iter().all(Rule::signs_body) && !self.signature.is_empty()
    }

    /// The rules that a request may be signed by: the first that applies, and before it those for some secrets only.
    pub(super) fn rules<'r>(
        &'r self,
        request: &'r Request<'_>,
        credentials: &'r Credentials,
    ) -> impl Iterator<Item = &'r Rule> {
        let applies = |rule: &&Rule| {
            rule.from.is_there(request)
                && rule.when.hold(request)
                && (rule.only_secret.is_none() || credentials.secrets.iter().any(|secret| rule.takes(secret, self)))
        };
        let mut is_over = false;
        self.signature.iter().filter(applies).take_while(move |rule| {
            let is_next = !is_over;
            is_over |= rule.only_secret.is_none();
            is_next
        })
    }

    /// What stands in a request for each of its rules.
    pub(super) fn attempts<'r, 'a>(
        &'r self,
        request: &'r Request<'a>,
        credentials: &'r Credentials,
    ) -> impl Iterator<Item = Result<Attempt<'r, 'a>, Judgement>> {
        self.rules(request, credentials).map(|rule| {
            let attempt = Attempt::new(rule, Scope::of(request, &credentials.settings))?;
            if rule.every && attempt.texts.len() != self.event(request).count {
                let reason = format!("{} does not stand in every event of the request", rule.from);
                return Err(Judgement::of(Verdict::Malformed, reason));
            }
            Ok(attempt)
        })
    }

    /// The judgement on a request that no rule is for.
    fn unsigned(&self) -> Judgement {
        if self.signature.is_empty() {
            let reason = format!("{} does not sign its requests, as far as is known here", self.name);
            return Judgement::of(Verdict::Unsupported, reason);
        }
        let places: BTreeMap<_, ()> = self.signature.iter().map(|rule| (rule.from.to_string(), ())).collect();
        let places: Vec<_> = places.into_keys().collect();
        let reason = format!("it is not signed: a request of {} has {}", self.name, places.join(" or "));
        Judgement::of(Verdict::Missing, reason)
    }
}

/// What stands in a request for a rule to judge.
pub(super) struct Attempt<'r, 'a> {
    pub(super) rule: &'r Rule,
    pub(super) scope: Scope<'r, 'a>,
    /// The texts of the signatures, and what they decode to.
    pub(super) texts: Vec<String>,
    pub(super) signatures: Vec<Vec<u8>>,
    pub(super) timestamp: Option<Vec<u8>>,
}

impl<'r, 'a> Attempt<'r, 'a> {
    fn new(rule: &'r Rule, scope: Scope<'r, 'a>) -> Result<Self, Judgement> {
        let texts = items(&rule.from, rule.list, &rule.prefix, rule.every, &scope)?;
        if texts.len() > PROOFS_MAX && !rule.scheme.is_symmetric() {
            return Err(Judgement::of(
                Verdict::Malformed,
                format!("{} has more than {PROOFS_MAX} signatures", rule.from),
            ));
        }
        if texts.is_empty() {
            let is_blank = rule.from.all(scope.request).iter().all(|value| value.trim_ascii().is_empty());
            return Err(match rule.prefix.text(&scope).filter(|_| !is_blank) {
                Some(prefix) => {
                    let reason = format!("{} has no signature that begins with {prefix:?}", rule.from);
                    Judgement::of(Verdict::Malformed, reason)
                }
                None => Judgement::of(Verdict::Missing, format!("{} has no signature in it", rule.from)),
            });
        }
        let timestamp = match &rule.timestamp {
            None => None,
            Some(time) => {
                let place = time.from.as_ref().unwrap_or(&rule.from);
                let list = if time.from.is_none() { rule.list } else { None };
                if !place.is_there(scope.request) {
                    let verdict = if matches!(place, Place::Header(_)) { Verdict::Missing } else { Verdict::Malformed };
                    return Err(Judgement::of(verdict, format!("the time of signing is not there: it lacks {place}")));
                }
                let times = items(place, list, &time.prefix, false, &scope)?;
                let [time] = times.as_slice() else {
                    let reason = format!("{place} does not say once when it was signed");
                    return Err(Judgement::of(Verdict::Malformed, reason));
                };
                Some(time.clone().into_bytes())
            }
        };
        let decoded: Vec<_> = texts.iter().map(|text| rule.decode(text)).collect();
        let all = decoded.len();
        let signatures: Vec<_> = decoded.into_iter().flatten().collect();
        if signatures.is_empty() || (rule.every && signatures.len() < all) {
            return Err(Judgement::of(Verdict::Malformed, rule.malformed(&texts)));
        }
        Ok(Self { rule, scope, texts, signatures, timestamp })
    }

    fn verify(&self, provider: &Provider, credentials: &Credentials, now: Timestamp) -> Result<Judgement, Judgement> {
        if self.rule.scheme.is_token() {
            return token::judge(self, provider, credentials, now);
        }
        if let Some(secret) = self.signer(provider, credentials)? {
            let secrets = if self.rule.key_url.is_some() { 0 } else { credentials.secrets.len() };
            return self.accepted(provider, secret, secrets, now);
        }
        let reason = match self.covered() {
            Some(covered) => {
                format!("the signature does not match: another secret signed it, or {covered} was altered")
            }
            None => format!("what stands in {} is not the secret that is given here", self.rule.from),
        };
        Err(Judgement::of(Verdict::BadSignature, reason))
    }

    /// The number of the secret that has signed, whenever it was.
    pub(super) fn signer(&self, provider: &Provider, credentials: &Credentials) -> Result<Option<usize>, Judgement> {
        for (index, key, secret) in &self.rule.keys(provider, credentials, &self.scope)? {
            for url in self.rule.urls(self.scope.url) {
                let scope = Scope { url: &url, secret: secret.as_bytes(), ..self.scope };
                if self.matches(key, &scope).map_err(lacking)? {
                    return Ok(Some(*index));
                }
            }
        }
        Ok(None)
    }

    /// Whether a key signed what `scope` says.
    pub(super) fn matches(&self, key: &Key, scope: &Scope<'_, '_>) -> Result<bool, Lacking> {
        let timestamp = self.timestamp.as_deref().unwrap_or_default();
        let scope = Scope { timestamp, ..*scope };
        let right = key.verify(&|out| self.rule.content.write(&scope, out), &self.signatures)?;
        Ok(if self.rule.every { right.iter().all(|right| *right) } else { right.contains(&true) })
    }

    /// What a signature covers, in a person's words; a secret by itself covers nothing.
    fn covered(&self) -> Option<&'static str> {
        let content = &self.rule.content;
        match (content.has_body(), content.has_url()) {
            _ if content.is_empty() => None,
            (true, true) => Some("the URL or the body"),
            (false, true) => Some("the URL"),
            (true, false) => Some("the body"),
            (false, false) => Some("what it covers"),
        }
    }

    /// The signature is right: now the rest.
    fn accepted(
        &self,
        provider: &Provider,
        secret: usize,
        secrets: usize,
        now: Timestamp,
    ) -> Result<Judgement, Judgement> {
        if let Some(place) = &self.rule.body_sha256 {
            let named = place.one(self.scope.request).ok().flatten().unwrap_or_default();
            if *named != *sha256(self.scope.body).as_bytes() {
                let reason = format!("the body was altered: its SHA-256 is not the one in {place}");
                return Err(Judgement::of(Verdict::BadSignature, reason));
            }
        }
        for (place, wanted) in &self.rule.equal {
            let wanted = match wanted.bytes(&self.scope) {
                Err(Lacking::Setting(_)) => continue,
                wanted => wanted.map_err(lacking)?,
            };
            if place.one(self.scope.request).ok().flatten().is_none_or(|given| *given != *wanted) {
                let reason =
                    format!("{} has signed it for somebody else: {place} is not {}", provider.name, lossy(&wanted));
                return Err(Judgement { secret: Some(secret), ..Judgement::of(Verdict::BadSignature, reason) });
            }
        }
        let which = match secrets {
            0 | 1 => String::new(),
            _ => format!(" with secret {} of {secrets}", secret + 1),
        };
        let mut judgement = Judgement::of(Verdict::Valid, format!("signed by {}{which}", provider.name));
        judgement.secret = Some(secret);
        if let (Some(time), Some(text)) = (&self.rule.timestamp, &self.timestamp) {
            time.judge(provider, text, now, &mut judgement)?;
        }
        if !self.rule.signs_body() && !self.scope.body.is_empty() && judgement.warning.is_none() {
            let signed: Vec<_> = self.rule.content.places().filter(|place| place.is_in_body()).collect();
            let signed: Vec<_> = signed.into_iter().map(ToString::to_string).collect();
            judgement.warning = Some(match signed.join(", ") {
                none if none.is_empty() => "the sender is proven, and the body is not: it is not signed".to_owned(),
                signed => format!("of the body only this is signed: {signed}"),
            });
        }
        Ok(judgement)
    }
}

pub(super) fn lacking(lacking: Lacking) -> Judgement {
    let verdict = match lacking {
        Lacking::Value(_) => Verdict::Missing,
        Lacking::Ambiguous(_) | Lacking::Form => Verdict::Malformed,
        Lacking::Setting(_) | Lacking::Signature => Verdict::NoSecret,
    };
    Judgement::of(verdict, lacking.to_string())
}

/// The values of a list that begin with a prefix, without it.
fn items(
    place: &Place,
    list: Option<char>,
    prefix: &Template,
    every: bool,
    scope: &Scope<'_, '_>,
) -> Result<Vec<String>, Judgement> {
    let prefix = if prefix.is_empty() { Vec::new() } else { prefix.bytes(scope).map_err(lacking)? };
    let prefix = lossy(&prefix);
    let values = if every || matches!(place, Place::Headers(_)) {
        place.all(scope.request)
    } else {
        let one = place.one(scope.request).map_err(|_| lacking(Lacking::Ambiguous(place.clone())))?;
        one.into_iter().collect()
    };
    let mut found = Vec::new();
    for value in &values {
        let value = lossy(value);
        let mut take = |part: &str| {
            let item = part.strip_prefix(&*prefix).filter(|item| !item.trim().is_empty());
            found.extend(item.map(str::to_owned));
        };
        match list {
            Some(separator) => value.split(separator).map(str::trim).for_each(take),
            None => take(&value),
        }
    }
    if found.len() > SIGNATURES_MAX {
        return Err(Judgement::of(Verdict::Malformed, format!("{place} has more than {SIGNATURES_MAX} signatures")));
    }
    Ok(found)
}

/// A key that may have signed, with the number of its secret and that secret.
pub(super) type Candidate<'c> = (usize, Arc<Key>, &'c str);

impl Rule {
    fn signs_body(&self) -> bool {
        let in_claims = || self.claims.iter().any(|claim| claim.content.has_body());
        self.content.has_body() || self.body_sha256.is_some() || in_claims()
    }

    /// Whether a secret can be one of this rule. An empty one is none: a variable was not set, and everybody knows it. Nor is
    /// another rule's public key, which everybody knows, too; and no other rule's secret is sent as it is.
    pub(super) fn takes(&self, secret: &Secret, provider: &Provider) -> bool {
        let text = secret.expose();
        let Some(prefix) = &self.only_secret else {
            let is_of =
                |other: &Rule| other.only_secret.as_ref().is_some_and(|prefix| text.starts_with(prefix.as_str()));
            let bars = |other: &Rule| (self.scheme == Scheme::Equal || !other.scheme.is_symmetric()) && is_of(other);
            return !text.trim().is_empty() && !provider.signature.iter().any(bars);
        };
        text.starts_with(prefix.as_str())
    }

    /// What its secrets begin with, which is no part of the key.
    pub(super) fn secret_prefix<'p>(&'p self, provider: &'p Provider) -> Option<&'p str> {
        self.only_secret.as_deref().or(provider.secret_prefix())
    }

    fn decode(&self, text: &str) -> Option<Vec<u8>> {
        let bytes = self.encoding.decode(text);
        let Some(length) = self.scheme.signature_len() else { return bytes };
        // The right digest in the wrong encoding can be told from a wrong one later, when the secret is at hand.
        let in_hex = || Encoding::Hex.decode(text).is_some_and(|bytes| bytes.len() == length);
        let is_other = || self.scheme.is_symmetric() && self.encoding != Encoding::Hex && in_hex();
        bytes.filter(|bytes| bytes.len() == length || is_other())
    }

    fn malformed(&self, texts: &[String]) -> String {
        let text = texts.first().map_or("", String::as_str);
        let encoding = self.encoding.name();
        match (self.encoding.decode(text), self.scheme.signature_len()) {
            (Some(bytes), Some(length)) => {
                format!(
                    "the signature in {} has {} bytes, not {length}: it was cut or is in another encoding than {encoding}",
                    self.from,
                    bytes.len()
                )
            }
            _ => format!("the signature in {} is not {encoding}", self.from),
        }
    }

    /// The keys that may have signed.
    pub(super) fn keys<'c>(
        &self,
        provider: &Provider,
        credentials: &'c Credentials,
        scope: &Scope<'_, '_>,
    ) -> Result<Vec<Candidate<'c>>, Judgement> {
        if let Some(url) = self.published_at(scope)? {
            let text = credentials.published.get(&url).ok_or_else(|| {
                let reason = format!("{} publishes its key at {url}, and it has not been fetched", provider.name);
                Judgement::of(Verdict::Unsupported, reason)
            })?;
            let key = pem_key(text).and_then(|der| Key::new(self.scheme, der)).ok_or_else(|| {
                let reason = format!("what {} publishes at {url} is no key that can be used", provider.name);
                Judgement::of(Verdict::Unsupported, reason)
            })?;
            return Ok(vec![(0, Arc::new(key), "")]);
        }
        let secrets = credentials.secrets.iter().enumerate();
        let fitting: Vec<_> = secrets.filter(|(_, secret)| self.takes(secret, provider)).collect();
        if fitting.is_empty() {
            return Err(Judgement::of(Verdict::NoSecret, provider.ask_for_secret()));
        }
        let prefix = self.secret_prefix(provider);
        let key = |(index, secret): (usize, &'c Secret)| {
            Some((index, secret.key(self.scheme, self.key, prefix)?, secret.expose()))
        };
        let keys: Vec<_> = fitting.into_iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(Judgement::of(Verdict::NoSecret, provider.not_a_secret()));
        }
        Ok(keys)
    }

    /// Where the key of a request is published, if the provider publishes keys and it is one of its own hosts.
    pub(super) fn published_at(&self, scope: &Scope<'_, '_>) -> Result<Option<String>, Judgement> {
        self.key_url.as_ref().map(|url| url.on_its_host(scope)).transpose()
    }

    /// The forms of the public URL that may have been signed.
    pub(super) fn urls<'u>(&self, url: &'u str) -> Vec<Cow<'u, str>> {
        let mut urls = vec![Cow::Borrowed(url)];
        if !self.content.has_url() {
            return urls;
        }
        let mut add = |form: &dyn Fn(&str) -> Option<String>| {
            let forms = urls.iter().filter_map(|url| form(url)).map(Cow::Owned);
            let new: Vec<_> = forms.filter(|form| !urls.contains(form)).collect();
            urls.extend(new);
        };
        if self.any_port {
            add(&|url| Some(other_port(url)));
        }
        if !self.bare.is_empty() {
            add(&|url| Some(unescape(url, &self.bare)));
        }
        // Whoever types in a host alone may have that signed, and not the path that it is called at.
        add(&without_path);
        urls
    }
}

/// The URL without its path, where that says nothing.
fn without_path(url: &str) -> Option<String> {
    let parts = Url::of(url);
    let query = parts.query.map(|query| format!("?{query}")).unwrap_or_default();
    (parts.path == "/").then(|| format!("{}{query}", parts.origin))
}

/// The URL with its default port written out, or left out where it is.
pub(super) fn other_port(url: &str) -> String {
    let origin = Url::of(url).origin;
    let rest = url.get(origin.len()..).unwrap_or("");
    let port = if origin.starts_with("http://") { ":80" } else { ":443" };
    match origin.strip_suffix(port) {
        Some(bare) => format!("{bare}{rest}"),
        None if origin.rsplit_once("://").is_some_and(|(_, host)| host.contains(':')) => url.to_owned(),
        None => format!("{origin}{port}{rest}"),
    }
}

/// The URL with those of its `%XX` decoded that stand for one of `bare`.
fn unescape(url: &str, bare: &str) -> String {
    let mut out = String::with_capacity(url.len());
    let mut parts = url.split('%');
    out.push_str(parts.next().unwrap_or(""));
    for part in parts {
        let decoded = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
        match decoded.filter(|c| bare.contains(*c)) {
            Some(c) => {
                out.push(c);
                out.push_str(part.get(2..).unwrap_or(""));
            }
            None => {
                out.push('%');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_port_comes_and_goes() {
        assert_eq!(other_port("https://a.example/p?q"), "https://a.example:443/p?q");
        assert_eq!(other_port("https://a.example:443/p?q"), "https://a.example/p?q");
        assert_eq!(other_port("http://a.example"), "http://a.example:80");
        assert_eq!(other_port("https://a.example:8443/"), "https://a.example:8443/");
    }

    #[test]
    fn only_what_is_named_is_unescaped() {
        assert_eq!(unescape("https://a.example/%3A%20%2F%zz%", ":/"), "https://a.example/:%20/%zz%");
    }
}
