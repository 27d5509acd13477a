//! The page: its files are built in, under fixed names.

use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use super::answer::{Answer, Problem, bytes};
use super::is_get;

/// The name of each file, its type, and what is in it.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("", "text/html; charset=utf-8", include_bytes!("dist/index.html")),
    ("app.js", "text/javascript; charset=utf-8", include_bytes!("dist/app.js")),
    ("app.css", "text/css; charset=utf-8", include_bytes!("dist/app.css")),
];

/// The file of this name.
pub(super) fn answer(file: &str, head: &Parts) -> Result<Answer, Problem> {
    let (_, kind, content) = FILES.into_iter().find(|(name, ..)| *name == file).ok_or(Problem::NoPath)?;
    if !is_get(head) {
        return Err(Problem::Method("GET, HEAD"));
    }
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    let tag: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{tag}\"");
    let is_known = head.headers.get(IF_NONE_MATCH).is_some_and(|known| known == tag.as_str());
    let mut answer = match is_known {
        true => bytes(StatusCode::NOT_MODIFIED, kind, ""),
        false => bytes(StatusCode::OK, kind, content),
    };
    // A client that is newer has another page at the same address.
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    Ok(answer)
}
