//! Why a signature does not match, where it can be found out: by trying what people and programs do to a secret, a URL
//! or a body, until the signature fits.

use std::borrow::Cow;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::Timestamp;
use percent_encoding::percent_decode;

use super::{
    credentials::Credentials,
    json::{self, STYLES},
    request::{Request, Url},
    scheme::{Encoding, Key, KeyForm, lenient_base64},
    signature::{Attempt, other_port},
    table::Provider,
    template::{Scope, sha256},
    verdict::{Judgement, Verdict},
};

/// The longest body, in bytes, that is tried in other forms: some thirty of them are hashed.
const BODY_MAX: usize = 64 << 10;

impl Provider {
    /// As [`Provider::judge`], and a bad signature's reason says what was done to the request or the secret, if that can
    /// be found.
    ///
    /// A bad signature costs some thirty hashes of the body for each secret, of a body of at most 64 KiB: this is for
    /// showing to a person, and not for what strangers can send without end.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>, credentials: &Credentials, now: Timestamp) -> Judgement {
        let mut judgement = self.judge(request, credentials, now);
        // Where a secret is named the signature is right, and what it says is not.
        if judgement.verdict != Verdict::BadSignature || judgement.secret.is_some() {
            return judgement;
        }
        let attempts = self.attempts(request, credentials).flatten();
        let attempts: Vec<_> = attempts.filter(|attempt| !attempt.rule.scheme.is_token()).collect();
        if let Some(cause) = attempts.iter().find_map(|attempt| attempt.cause(self, credentials)) {
            judgement.reason = cause.into();
        } else if attempts.iter().any(|attempt| attempt.rule.body_sha256.is_none()) {
            // Else the signature fits, and the body not its hash: there is nothing to say of the secret.
            judgement.reason.to_mut().push_str(&self.hint(request, credentials));
        }
        judgement
    }

    /// What to look at when nothing was found.
    fn hint(&self, request: &Request<'_>, credentials: &Credentials) -> String {
        let mut hint = String::new();
        if let Some(prefix) = self.secret_prefix()
            && !credentials.secrets.iter().any(|secret| secret.expose().starts_with(prefix))
        {
            hint.push_str(&format!("; a secret of {} begins with {prefix}, and none that is given does", self.name));
        }
        if let Some(mode) = self.mode(request) {
            hint.push_str(&format!("; this is a {mode} event, whose secret is another than the other mode's"));
        }
        hint
    }
}

impl Attempt<'_, '_> {
    /// What makes the signature fit, as a sentence.
    fn cause(&self, provider: &Provider, credentials: &Credentials) -> Option<String> {
        let keys = self.rule.keys(provider, credentials, &self.scope).ok()?;
        let name = &provider.name;
        for (index, key, secret) in &keys {
            let scope = Scope { secret: secret.as_bytes(), ..self.scope };
            let fits = |scope: &Scope<'_, '_>| self.matches(key, scope).unwrap_or(false);
            if let Some(place) = &self.rule.body_sha256
                && self.rule.urls(self.scope.url).iter().any(|url| fits(&Scope { url, ..scope }))
            {
                let named = place.one(self.scope.request).ok()??;
                let how = altered(self.scope.body, |body| *sha256(body).as_bytes() == *named)?;
                return Some(format!("the secret is right, and the body was altered on its way: {how}"));
            }
            if let Some(encoding) = self.other_encoding(key, &scope) {
                let own = self.rule.encoding.name();
                return Some(format!("the signature is right, but in {}, and {name} writes {own}", encoding.name()));
            }
            if self.rule.content.has_url()
                && let Some((url, how)) = other_urls(self.scope.url).find(|(url, _)| fits(&Scope { url, ..scope }))
            {
                return Some(format!("the secret is right, and the URL is not: {name} signed {url} ({how})"));
            }
            if self.rule.content.has_body_bytes()
                && let Some(how) = altered(self.scope.body, |body| fits(&Scope { body, ..scope }))
            {
                return Some(format!("the secret is right, and the body was altered on its way: {how}"));
            }
            if let Some(how) = self.other_secret(secret, provider) {
                let which = if keys.len() > 1 { format!(" {}", index + 1) } else { String::new() };
                return Some(format!("the secret{which} is almost right: {how}"));
            }
        }
        None
    }

    /// Whether the right signature stands there in another encoding than the provider's.
    fn other_encoding(&self, key: &Key, scope: &Scope<'_, '_>) -> Option<Encoding> {
        let timestamp = self.timestamp.as_deref().unwrap_or_default();
        let scope = Scope { timestamp, ..*scope };
        let expected = key.expected(&|out| self.rule.content.write(&scope, out)).ok()??;
        let others = [Encoding::Hex, Encoding::Base64, Encoding::Base64Url];
        let is_there = |other: &Encoding| {
            *other != self.rule.encoding
                && self.texts.iter().any(|text| {
                    other.decode(text).is_some_and(|bytes| verify_slices_are_equal(&bytes, &expected).is_ok())
                })
        };
        others.into_iter().find(is_there)
    }

    /// Whether the secret fits in a form in which it is not meant.
    fn other_secret(&self, secret: &str, provider: &Provider) -> Option<&'static str> {
        if !self.rule.scheme.is_symmetric() {
            return None;
        }
        let prefix = self.rule.secret_prefix(provider);
        let form = self.rule.key;
        let bare = prefix.and_then(|prefix| secret.strip_prefix(prefix)).unwrap_or(secret);
        let with_prefix = format!("{}{secret}", prefix.unwrap_or_default());
        let trimmed = secret.trim();
        let unquoted = trimmed.trim_matches(['"', '\'']);
        // The key, the secret as a template may have it, and what was done to it.
        let as_text = |text: &str, how| Some((form.key(text, prefix)?, text.to_owned(), how));
        let decoded = |key: Option<Vec<u8>>, how| Some((key?, secret.to_owned(), how));
        let tries = [
            as_text(trimmed, "it has white space around it"),
            as_text(unquoted, "it has quotation marks around it"),
            as_text(&with_prefix, "its beginning is missing"),
            as_text(bare, "whoever signed left out its beginning"),
            decoded(Some(bare.as_bytes().to_vec()), "whoever signed did not decode it"),
            decoded(lenient_base64(bare), "whoever signed decoded it from base64 first"),
            decoded(KeyForm::Hex.key(bare, None), "whoever signed decoded it from hex first"),
        ];
        let fits = |key: Vec<u8>, secret: &str| {
            let scope = Scope { secret: secret.as_bytes(), ..self.scope };
            Key::new(self.rule.scheme, key).is_some_and(|key| self.matches(&key, &scope).unwrap_or(false))
        };
        tries.into_iter().flatten().find_map(|(key, secret, how)| fits(key, &secret).then_some(how))
    }
}

/// Forms of a URL that are taken for the same, and how each differs.
fn other_urls(url: &str) -> impl Iterator<Item = (String, &'static str)> {
    let parts = Url::of(url);
    let query = parts.query.map(|query| format!("?{query}")).unwrap_or_default();
    let (origin, path) = (parts.origin, parts.path);
    let scheme = match url.split_once("://") {
        Some(("https", rest)) => format!("http://{rest}"),
        Some((_, rest)) => format!("https://{rest}"),
        None => String::new(),
    };
    let slash = match path.strip_suffix('/') {
        Some(path) => format!("{origin}{path}{query}"),
        None => format!("{origin}{path}/{query}"),
    };
    let decoded = String::from_utf8_lossy(&percent_decode(url.as_bytes()).collect::<Vec<_>>()).into_owned();
    let forms = [
        (scheme, "another scheme"),
        (slash, "the slash at the end of the path"),
        (format!("{origin}{path}"), "without the query"),
        (other_port(url), "the default port"),
        (decoded, "with %XX decoded"),
        (format!("{path}{query}"), "without scheme and host"),
    ];
    let url = url.to_owned();
    forms.into_iter().filter(move |(form, _)| *form != url)
}

/// What was done to a body, if undoing it makes the signature fit.
fn altered(body: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<Cow<'static, str>> {
    if body.len() > BODY_MAX {
        return None;
    }
    let text = std::str::from_utf8(body).ok();
    for ending in ["\r\n", "\n"] {
        if body.strip_suffix(ending.as_bytes()).is_some_and(&fits) {
            return Some("a newline was added at its end".into());
        }
        if fits(&[body, ending.as_bytes()].concat()) {
            return Some("the newline at its end was removed".into());
        }
    }
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if body.strip_prefix(MARK).is_some_and(&fits) {
        return Some("a byte order mark was added".into());
    }
    if fits(&[MARK, body].concat()) {
        return Some("its byte order mark was removed".into());
    }
    let text = match text {
        Some(text) => text,
        // As an ISO-8859-1 reader sees it, which has a character for every byte.
        None => {
            let utf8: String = body.iter().copied().map(char::from).collect();
            return fits(utf8.as_bytes()).then_some("it was re-encoded from UTF-8 to ISO-8859-1".into());
        }
    };
    if text.contains("\r\n") && fits(text.replace("\r\n", "\n").as_bytes()) {
        return Some("its line ends were changed from LF to CRLF".into());
    }
    if !text.contains('\r') && text.contains('\n') && fits(text.replace('\n', "\r\n").as_bytes()) {
        return Some("its line ends were changed from CRLF to LF".into());
    }
    let latin: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
    if !text.is_ascii() && latin.is_some_and(|latin| fits(&latin)) {
        return Some("it was re-encoded as UTF-8, though it was none or was that already".into());
    }
    if lenient_base64(text.trim()).is_some_and(|bytes| !bytes.is_empty() && fits(&bytes)) {
        return Some("it was encoded in base64".into());
    }
    if text.contains("%20") && fits(text.replace("%20", "+").as_bytes()) {
        return Some("its form was written anew, with %20 for what was +".into());
    }
    if text.contains('+') && fits(text.replace('+', "%20").as_bytes()) {
        return Some("its form was written anew, with + for what was %20".into());
    }
    let style = STYLES.iter().find(|style| json::restyle(text, style).is_some_and(|json| fits(json.as_bytes())))?;
    Some(format!("the JSON was parsed and written anew, and the signature is over the same JSON {}", style.name).into())
}
