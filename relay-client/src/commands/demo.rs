//! The demo app of `relay dev` without a port: answers every request by telling what arrived, so
//! that a tunnel can be seen working before there is a service to put behind it.

use std::fmt;

use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use http_body_util::BodyExt;

use crate::upstream::service::{self, BoxError, Service};

/// Bytes of a body that are kept to be shown; the rest is read and counted.
const KEPT: usize = 1024 * 1024;
/// Characters of the kept bytes that are shown.
const PREVIEW: usize = 2000;

/// The demo app.
pub(crate) fn service() -> Service {
    Service::new("demo", |request| async {
        // Where the body breaks off, nobody waits for the answer.
        answer(request).await.unwrap_or_default()
    })
}

async fn answer(request: Request<service::Body>) -> Result<Response<service::Body>, BoxError> {
    let (head, mut body) = request.into_parts();
    let mut seen = Body::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            seen.add(&data);
        }
    }
    let html = head
        .headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| String::from_utf8_lossy(accept.as_bytes()).to_ascii_lowercase().contains("text/html"));
    let (kind, text) = match html {
        true => ("text/html; charset=utf-8", page(&head, &seen)),
        false => ("text/plain; charset=utf-8", text(&head, &seen)),
    };
    let mut response = Response::new(text.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The page shows a stranger's bytes as text; should an escape ever fail, nothing runs or loads.
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    Ok(response)
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// What arrived of a body.
#[derive(Default)]
struct Body {
    kept: Vec<u8>,
    size: u64,
}

impl Body {
    fn add(&mut self, data: &[u8]) {
        self.size += data.len() as u64;
        let room = KEPT - self.kept.len();
        self.kept.extend(data.iter().take(room));
    }

    /// The beginning as text. Line breaks and tabs stay, other control characters are shown.
    fn preview(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let mut preview = String::new();
        for character in text.chars().take(PREVIEW) {
            match character {
                '\n' | '\t' => preview.push(character),
                '\r' => {}
                _ if character.is_control() => preview.extend(character.escape_unicode()),
                _ => preview.push(character),
            }
        }
        if text.chars().nth(PREVIEW).is_some() || self.size > self.kept.len() as u64 {
            preview.push_str(" …");
        }
        preview
    }
}

fn text(head: &Parts, body: &Body) -> String {
    let (method, uri, headers) = (&head.method, &head.uri, head.headers.len());
    let mut text = format!(
        "The tunnel works: your request reached the demo app on this machine.\n\n  \
         {method} {uri}\n  {headers} headers, {} bytes of body\n",
        body.size
    );
    if body.size > 0 {
        for line in body.preview().lines() {
            text.push_str("\n  | ");
            text.push_str(line);
        }
        text.push('\n');
    }
    text.push_str("\nPut your own service behind it: relay dev 3000\n");
    text
}

fn page(head: &Parts, body: &Body) -> String {
    let (method, uri) = (Escaped(head.method.as_str()), head.uri.to_string());
    let (uri, headers, preview) = (Escaped(&uri), head.headers.len(), body.preview());
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>The tunnel works</title>\n\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}\
         pre{{background:#8882;padding:1rem;border-radius:.5rem;white-space:pre-wrap;overflow-wrap:anywhere}}\
         :root{{color-scheme:light dark}}</style>\n\
         <h1>The tunnel works</h1>\n\
         <p>Your request reached the demo app on this machine.\n\
         <pre>{method} {uri}\n{headers} headers, {} bytes of body</pre>\n{}\
         <p>Put your own service behind it: <code>relay dev 3000</code>\n",
        body.size,
        if body.size > 0 { format!("<pre>{}</pre>\n", Escaped(&preview)) } else { String::new() }
    )
}

/// Text inside HTML.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            _ => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    /// What a request is answered: the head's lines, and the body.
    async fn ask(request: http::request::Builder, body: &'static [u8]) -> String {
        let (head, body) = answer(request.body(body.into()).unwrap()).await.unwrap().into_parts();
        let body = body.bytes(usize::MAX).await.unwrap();
        format!("{head:?}\n{}", std::str::from_utf8(&body).unwrap())
    }

    #[tokio::test]
    async fn tells_curl_what_arrived() {
        let answer = ask(Request::post("/hooks?a=1").header(ACCEPT, "*/*"), b"{\"a\":1}\n\x1b[2J").await;
        for expected in
            ["status: 200", "text/plain", "POST /hooks?a=1", "1 headers, 12 bytes", "| {\"a\":1}\n", "| \\u{1b}[2J"]
        {
            assert!(answer.contains(expected), "{expected}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_page_runs_nothing() {
        let request = Request::put("/?a='b'&c").header(ACCEPT, "application/xml, Text/HTML;q=0.9");
        let answer = ask(request, b"<script>alert('&')</script>").await;
        assert!(answer.contains("\"content-security-policy\": \"default-src 'none';"), "{answer}");
        assert!(answer.contains("PUT /?a=&#39;b&#39;&amp;c\n"), "{answer}");
        assert!(answer.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"), "{answer}");
        assert!(!answer.contains("<script"), "{answer}");
    }

    #[tokio::test]
    async fn a_large_body_is_counted_and_not_kept() {
        let answer = ask(Request::post("/"), vec![b'x'; KEPT + 5].leak()).await;
        assert!(answer.contains(&format!("{} bytes of body", KEPT + 5)), "{answer}");
        assert!(answer.contains(" …") && answer.len() < 2 * PREVIEW, "{}", answer.len());
    }
}
