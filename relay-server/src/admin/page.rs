//! The dashboard: a page whose files are built in, under fixed names. All that it shows and does, it asks of the API.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// The path of each file, its type, and what is in it.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("/", "text/html; charset=utf-8", include_bytes!("dist/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("dist/app.js")),
    ("/app.css", "text/css; charset=utf-8", include_bytes!("dist/app.css")),
];

/// The page needs its own files and calls the API beside it. Nothing that a stranger has called a tunnel becomes more than text.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

/// What stands in every answer.
const SEAL: [(HeaderName, HeaderValue); 7] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    // A relay that is newer has another page at the same address.
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

/// The file at a path, if one is there.
pub(super) fn at(path: &str, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
    let (_, kind, content) = FILES.into_iter().find(|(known, ..)| *known == path)?;
    let hash = digest(&SHA256, content);
    let tag: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = HeaderValue::try_from(format!("\"{tag}\"")).ok()?;
    let is_known = headers.get(IF_NONE_MATCH).is_some_and(|known| *known == tag);
    let mut answer = Response::new(Full::from(if is_known { Bytes::new() } else { Bytes::from_static(content) }));
    if is_known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    answer.headers_mut().extend(SEAL.into_iter().chain([(CONTENT_TYPE, HeaderValue::from_static(kind)), (ETAG, tag)]));
    Some(answer)
}
