//! What others must not read of an exchange that is handed on: credentials, cookies, and the secrets that a provider sends
//! as they are.

use http::{HeaderName, HeaderValue};
use relay_protocol::webhook::{Draft, Provider, Request};

/// What stands where a secret stood.
pub const MASK: &str = "***";

/// Headers whose value lets in whoever knows it.
const SECRET: [&str; 8] = [
    "api-key",
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
    "x-auth-token",
    "x-hook-secret",
];

/// The request without what is secret in it. Signatures stay: they tell nothing of their key.
pub fn request(request: &Request<'_>, provider: Option<&Provider>) -> Draft {
    let mut draft = match provider {
        Some(provider) => provider.mask(request, MASK),
        None => request.into(),
    };
    headers(&mut draft.headers);
    draft
}

/// The same for headers by themselves, as those of an answer.
pub fn headers(headers: &mut [(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        if SECRET.contains(&name.as_str()) {
            *value = HeaderValue::from_static(MASK);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::Method;
    use relay_protocol::webhook::Table;

    use super::*;

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
            ("https://t.example/?access_token=secret&b=%20", br#"{"value":[{"clientState":"secret","n":1.0}]}"#);
        let asked = Request::new(&Method::POST, url, &list, body);
        let masked = |provider| request(&asked, table.get(provider).map(AsRef::as_ref));
        let nobodys = masked("none");
        assert_eq!((nobodys.url.as_str(), nobodys.body.as_slice()), (url, &body[..]));
        let values: Vec<_> = nobodys.headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
        assert_eq!(values, [MASK, MASK, "secret", "t=1,v1=00", "Push Hook"]);
        assert_eq!(masked("gitlab").headers[2].1, MASK);
        assert_eq!(masked("cloudevents").url, "https://t.example/?b=%20&access_token=***");
        assert_eq!(masked("microsoft-graph").body, br#"{"value":[{"clientState":"***","n":1.0}]}"#);
        let mut answer = vec![("set-cookie".parse().unwrap(), HeaderValue::from_static("secret"))];
        headers(&mut answer);
        assert_eq!(answer[0].1, MASK);
    }
}
