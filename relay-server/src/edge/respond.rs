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
    explain_with(shared, cause, headers, message, None)
}

/// As [`explain`], with a way on.
pub(crate) fn explain_with(
    shared: &Shared,
    cause: Cause,
    headers: &HeaderMap,
    message: &str,
    link: Option<&Link>,
) -> Response<EdgeBody> {
    let live = shared.live.borrow().clone();
    render(cause, headers, message, link, live.report_url.as_deref())
}

/// Where whoever reads an answer can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// A URL.
    pub(crate) url: String,
    /// What is done there.
    pub(crate) text: &'static str,
}

/// `report` is where strangers can report what they have found.
fn render(
    cause: Cause,
    headers: &HeaderMap,
    message: &str,
    link: Option<&Link>,
    report: Option<&str>,
) -> Response<EdgeBody> {
    let (kind, body) = if wants_html(headers) {
        ("text/html; charset=utf-8", html(cause, message, link, report))
    } else {
        let mut error = serde_json::json!({ "code": cause.code(), "message": message, "hint": cause.hint() });
        let more = [("link", link.map(|link| link.url.as_str())), ("report", report)];
        if let Some(error) = error.as_object_mut() {
            error.extend(more.into_iter().filter_map(|(name, url)| Some((name.to_owned(), url?.into()))));
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

/// A page that is no error.
pub(crate) fn page(heading: &str, text: &str, link: &Link) -> Response<EdgeBody> {
    let mut response = Response::new(EdgeBody::full(Bytes::from(document(heading, heading, text, Some(link), ""))));
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    out.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Browsers name HTML first of all; programs name JSON, or nothing, or everything.
fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let at = |kind: &str| accept.find(kind).unwrap_or(usize::MAX);
    at("text/html") < at("application/json")
}

fn html(cause: Cause, message: &str, link: Option<&Link>, report: Option<&str>) -> String {
    let report = report.map(|url| format!("<p><a rel=\"nofollow\" href=\"{}\">Report abuse</a>", escape(url)));
    let report = report.unwrap_or_default();
    let (status, code) = (cause.status().as_u16(), cause.code());
    let rest = format!("{report}<p><code>{code} · {status}</code>");
    document(&status.to_string(), message, cause.hint(), link, &rest)
}

/// `rest` is HTML; all else is text.
fn document(title: &str, heading: &str, text: &str, link: Option<&Link>, rest: &str) -> String {
    // Out of the frame that it may be shown in.
    let link =
        link.map(|link| format!("<p><a target=\"_top\" href=\"{}\">{}</a>", escape(&link.url), escape(link.text)));
    let (link, title, heading, text) = (link.unwrap_or_default(), escape(title), escape(heading), escape(text));
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;\
         padding:0 1.5rem;color:#1c2024}}h1{{font-size:1.25rem}}code{{color:#6b7280}}\
         @media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}}}</style>\
         <main><h1>{heading}</h1><p>{text}{link}{rest}</main></html>\n",
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
            render(Cause::Deadline, &headers, "", None, None).headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        assert!(accept("text/html,application/xhtml+xml,*/*;q=0.8").starts_with("text/html"));
        assert_eq!(accept("*/*"), "application/json");
        assert_eq!(accept("application/json, text/html"), "application/json");
    }

    #[test]
    fn pages_escape_what_they_show() {
        let link = Link { url: "https://a.example/\"><script>".to_owned(), text: "Begin again" };
        assert!(!html(Cause::BadRequest, "<script>", Some(&link), None).contains("<script>"));
        let page = html(Cause::Blocked, "", None, Some("https://example.com/?a=1&b=\"><script>"));
        assert!(page.contains("href=\"https://example.com/?a=1&amp;b=&quot;&gt;&lt;script&gt;\""), "{page}");
    }
}
