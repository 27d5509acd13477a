//! What others must not read of an exchange that is handed on: credentials, cookies, and the secrets that a provider sends
//! as they are.

use http::{HeaderName, HeaderValue};
use memchr::memmem::Finder;

use super::{Draft, Provider, Request};
use crate::message::HeaderList;

/// What stands where a secret stood.
pub const MASK: &str = "***";

/// Headers whose value lets in whoever knows it.
const HEADERS: [&str; 7] =
    ["api-key", "authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-auth-token"];

/// Parameters of URLs of which the same is true, whoever the sender is.
const PARAMETERS: [&str; 10] =
    ["access_token", "api_key", "apikey", "auth", "auth_token", "client_secret", "key", "password", "secret", "token"];

/// The shortest secret that is looked for in an answer, in bytes: a shorter one stands in many a text by chance.
const ECHOED_MIN: usize = 8;

/// So many secrets of a request are looked for in its answer, which takes a pass for each: a stranger can write ten
/// thousand. Providers write one or two.
const ECHOED_MAX: usize = 100;

/// Schemes of `Authorization` (RFC 9110, section 11.1), which are no secret and say what to put in its place.
const SCHEMES: [&str; 3] = ["basic", "bearer", "jwt"];

/// The request without what is secret in it. Signatures stay: they tell nothing of their key.
pub fn request(request: &Request<'_>, provider: Option<&Provider>) -> Draft {
    let plain = Draft::from(request);
    let mut draft = match provider {
        Some(provider) => provider.mask(request, MASK),
        None => plain.clone(),
    };
    draft.mask_query(|name| PARAMETERS.iter().any(|known| name.eq_ignore_ascii_case(known)), MASK);
    for ((name, value), (_, plain)) in draft.headers.iter_mut().zip(&plain.headers) {
        if let Some(masked) = header(name, plain) {
            *value = masked;
        }
    }
    draft
}

/// Whether a request of this provider's says the mask where it said a secret.
pub fn is_masked(request: &Request<'_>, url: &str, provider: &Provider) -> bool {
    let secrets = provider.secrets_in(request).unwrap_or_default();
    let is_mask = |text: &[u8]| text.ends_with(MASK.as_bytes());
    secrets.iter().any(|text| is_mask(text)) || url.split(['?', '&']).any(|field| field.ends_with("=***"))
}

/// The same for headers by themselves.
pub fn headers(headers: &mut [(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        if let Some(masked) = header(name, value) {
            *value = masked;
        }
    }
}

/// What stands in the stead of a header's value, where that lets somebody in.
fn header(name: &HeaderName, value: &HeaderValue) -> Option<HeaderValue> {
    if !HEADERS.contains(&name.as_str()) {
        return None;
    }
    let scheme = value.to_str().ok().and_then(|value| value.split_once(' ')).map(|(scheme, _)| scheme);
    let scheme = scheme.filter(|scheme| SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)));
    let masked = scheme.and_then(|scheme| HeaderValue::from_str(&format!("{scheme} {MASK}")).ok());
    Some(masked.unwrap_or(HeaderValue::from_static(MASK)))
}

/// The same for an answer, which may say a secret of its request again.
pub fn answer(request: &Request<'_>, provider: Option<&Provider>, headers: &mut HeaderList, body: &mut Vec<u8>) {
    self::headers(headers);
    let secrets = provider.map_or(Some(Vec::new()), |provider| provider.secrets_in(request)).map(|mut secrets| {
        secrets.retain(|secret| secret.len() >= ECHOED_MIN);
        // A longer one may begin with a shorter one.
        secrets.sort_unstable_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        secrets.dedup();
        secrets
    });
    let Some(secrets) = secrets.filter(|secrets| secrets.len() <= ECHOED_MAX) else {
        *body = MASK.into();
        headers.iter_mut().for_each(|(_, value)| *value = HeaderValue::from_static(MASK));
        return;
    };
    for secret in &secrets {
        let secret = Finder::new(secret);
        if let Some(masked) = without(body, &secret) {
            *body = masked;
        }
        for (_, value) in headers.iter_mut().filter(|(_, value)| secret.find(value.as_bytes()).is_some()) {
            *value = HeaderValue::from_static(MASK);
        }
    }
}

/// The bytes without these ones; `None` where they are not among them.
fn without(bytes: &[u8], secret: &Finder<'_>) -> Option<Vec<u8>> {
    let find = |bytes: &[u8]| secret.find(bytes);
    let (mut rest, mut masked) = (bytes, Vec::new());
    while let Some((before, found)) = find(rest).and_then(|at| rest.split_at_checked(at)) {
        masked.extend_from_slice(before);
        masked.extend_from_slice(MASK.as_bytes());
        rest = found.get(secret.needle().len()..).unwrap_or_default();
    }
    masked.extend_from_slice(rest);
    (rest.len() < bytes.len()).then_some(masked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::Table;
    use super::*;
    use http::Method;

    #[test]
    fn what_lets_somebody_in_is_masked_and_nothing_else() {
        let table = Table::built_in().unwrap();
        let list = [
            ("authorization", "Basic c2VjcmV0"),
            ("cookie", "a=secret"),
            ("x-gitlab-token", "secret"),
            ("stripe-signature", "t=1,v1=00"),
            ("x-gitlab-event", "Push Hook"),
        ];
        let list: Vec<_> = list.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).into();
        let (url, body) =
            ("https://t.example/?ACCESS_token=secret&b=%20", br#"{"value":[{"clientState":"secret","n":1.0}]}"#);
        let asked = Request::new(&Method::POST, url, &list, body);
        let masked = |provider| request(&asked, table.get(provider).map(AsRef::as_ref));
        let nobodys = masked("none");
        assert_eq!(
            (nobodys.url.as_str(), nobodys.body.as_slice()),
            ("https://t.example/?ACCESS_token=***&b=%20", &body[..])
        );
        let values: Vec<_> = nobodys.headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
        assert_eq!(values, ["Basic ***", MASK, "secret", "t=1,v1=00", "Push Hook"]);
        assert_eq!(masked("gitlab").headers[2].1, MASK);
        assert_eq!(masked("microsoft-graph").body, br#"{"value":[{"clientState":"***","n":1.0}]}"#);
        let mut answer = vec![("set-cookie".parse().unwrap(), HeaderValue::from_static("secret"))];
        headers(&mut answer);
        assert_eq!(answer[0].1, MASK);
    }
    #[test]
    fn an_answer_says_no_secret_again_however_many_there_are() {
        let table = Table::built_in().unwrap();
        let (provider, url) = (table.get("microsoft-graph").map(AsRef::as_ref), "https://t.example/");
        let masked = |secrets: &[String], said: &[u8]| {
            let events: Vec<_> = secrets.iter().map(|secret| format!(r#"{{"clientState":"{secret}"}}"#)).collect();
            let body = format!(r#"{{"value":[{}]}}"#, events.join(","));
            let asked = Request::new(&Method::POST, url, &[], body.as_bytes());
            let (mut headers, mut body) =
                (vec![("x-a".parse().unwrap(), HeaderValue::from_static("a"))], said.to_vec());
            answer(&asked, provider, &mut headers, &mut body);
            (headers[0].1.to_str().unwrap().to_owned(), String::from_utf8(body).unwrap())
        };
        let same = vec!["secret-1".to_owned(); 1000];
        assert_eq!(masked(&same, b"a secret-1, secret-2"), ("a".to_owned(), "a ***, secret-2".to_owned()));
        let nested = ["secret-1".to_owned(), "secret-1-and-more".to_owned()];
        assert_eq!(masked(&nested, b"secret-1-and-more secret-1").1, "*** ***");
        // Each would take a pass over all of it.
        let many: Vec<_> = (0..1000).map(|i| format!("secret-{i}")).collect();
        assert_eq!(masked(&many, b"anything"), (MASK.to_owned(), MASK.to_owned()));
    }
}
