//! The relay's own answers.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use relay_protocol::trace::RELAY_TOOK;

use super::body::EdgeBody;
use crate::Shared;
use crate::cause::Cause;

/// Names the cause, on every answer that the relay itself makes.
pub(crate) const RELAY_ERROR: HeaderName = HeaderName::from_static("relay-error");

/// On the answer to a handshake: whose it was. No service has seen that.
pub(crate) const RELAY_HANDSHAKE: HeaderName = HeaderName::from_static("relay-handshake");

/// On an acknowledgement: that nobody has seen the webhook yet, or which one it is a copy of.
pub(crate) const RELAY_INBOX: HeaderName = HeaderName::from_static("relay-inbox");

/// Whether a header of an answer is the edge's own word, so that nobody behind a tunnel can say it, or the client's to the
/// edge.
pub(crate) fn is_edges(name: &HeaderName) -> bool {
    *name == RELAY_ERROR || *name == RELAY_HANDSHAKE || *name == RELAY_INBOX || *name == RELAY_TOOK
}

/// The answer to a request with `headers`: JSON, unless it asks for HTML.
pub(crate) fn answer(shared: &Shared, cause: Cause, headers: &HeaderMap) -> Response<EdgeBody> {
    explain(shared, cause, headers, cause.message())
}

/// As [`answer`], with a message that says more than the table does.
pub(crate) fn explain(shared: &Shared, cause: Cause, headers: &HeaderMap, message: &str) -> Response<EdgeBody> {
    let live = shared.live.borrow().clone();
    render(cause, headers, message, live.report_url.as_deref())
}

/// `report` is where strangers can report what they have found.
fn render(cause: Cause, headers: &HeaderMap, message: &str, report: Option<&str>) -> Response<EdgeBody> {
    let (kind, body) = if wants_html(headers) {
        ("text/html; charset=utf-8", html(cause, message, report))
    } else {
        let mut error = serde_json::json!({ "code": cause.code(), "message": message, "hint": cause.hint() });
        if let (Some(report), Some(error)) = (report, error.as_object_mut()) {
            error.insert("report".to_owned(), report.into());
        }
        ("application/json", format!("{}\n", serde_json::json!({ "error": error })))
    };
    let mut response = Response::new(EdgeBody::full(Bytes::from(body)));
    *response.status_mut() = cause.status();
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    out.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out.insert(RELAY_ERROR, HeaderValue::from_static(cause.code()));
    if let Some(seconds) = cause.retry_after() {
        out.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if cause == Cause::Unauthorized {
        out.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Browsers name HTML first of all; programs name JSON, or nothing, or everything.
fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let at = |kind: &str| accept.find(kind).unwrap_or(usize::MAX);
    at("text/html") < at("application/json")
}

fn html(cause: Cause, message: &str, report: Option<&str>) -> String {
    let report = report.map(|url| format!("<p><a rel=\"nofollow\" href=\"{}\">Report abuse</a>", escape(url)));
    let report = report.unwrap_or_default();
    let (status, code, hint) = (cause.status(), cause.code(), escape(cause.hint()));
    let message = escape(message);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{status}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;\
         padding:0 1.5rem;color:#1c2024}}h1{{font-size:1.25rem}}code{{color:#6b7280}}\
         @media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}}}</style>\
         <h1>{message}</h1><p>{hint}{report}<p><code>{code} · {status}</code></html>\n",
        status = status.as_u16(),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn browsers_get_html_and_programs_json() {
        let accept = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            render(Cause::Deadline, &headers, "", None).headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert!(accept("text/html,application/xhtml+xml,*/*;q=0.8").starts_with("text/html"));
        assert_eq!(accept("*/*"), "application/json");
        assert_eq!(accept("application/json, text/html"), "application/json");
    }

    #[test]
    fn pages_escape_what_they_show() {
        assert!(!html(Cause::BadRequest, "<script>", None).contains("<script>"));
        let page = html(Cause::Blocked, "", Some("https://example.com/?a=1&b=\"><script>"));
        assert!(page.contains("href=\"https://example.com/?a=1&amp;b=&quot;&gt;&lt;script&gt;\""), "{page}");
    }
}
