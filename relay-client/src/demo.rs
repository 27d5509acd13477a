//! The demo app of `relay dev` without a port: answers every request by telling what arrived, so
//! that a tunnel can be seen working before there is a service to put behind it.

use std::{fmt, io, net::SocketAddr};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::local::LocalServer;

/// Bytes of a body that are kept to be shown; the rest is read and counted.
const KEPT: usize = 1024 * 1024;
/// Characters of the kept bytes that are shown.
const PREVIEW: usize = 2000;

/// A small HTTP/1.1 server on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Demo(LocalServer);

impl Demo {
    /// Takes a free port; connections wait until [`Demo::run`].
    ///
    /// # Errors
    /// Where loopback gives none.
    pub async fn bind() -> io::Result<Self> {
        LocalServer::bind().await.map(Self)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Serves until `shutdown` is done. Open connections end with it: by then the tunnel in front
    /// has been drained.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        self.0.run(answer, shutdown).await;
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
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
    let mut response = Response::new(Full::new(Bytes::from(text)));
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

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
    };

    use super::*;

    /// What a request of these bytes is answered.
    async fn ask(head: &str, body: &[u8]) -> String {
        let demo = Demo::bind().await.unwrap();
        let (addr, (stop, stopped)) = (demo.addr(), oneshot::channel::<()>());
        let ask = async {
            let mut tcp = TcpStream::connect(addr).await.unwrap();
            let length = body.len();
            let head = format!("{head}\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            tcp.write_all(head.as_bytes()).await.unwrap();
            tcp.write_all(body).await.unwrap();
            let mut answer = String::new();
            tcp.read_to_string(&mut answer).await.unwrap();
            stop.send(()).unwrap();
            answer
        };
        let run = demo.run(async { stopped.await.unwrap_or_default() });
        tokio::join!(ask, run).0
    }

    #[tokio::test]
    async fn tells_curl_what_arrived() {
        let answer = ask("POST /hooks?a=1 HTTP/1.1\r\nAccept: */*", b"{\"a\":1}\n\x1b[2J").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for expected in ["text/plain", "POST /hooks?a=1", "4 headers, 12 bytes", "| {\"a\":1}\n", "| \\u{1b}[2J"] {
            assert!(answer.contains(expected), "{expected}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_page_runs_nothing() {
        let head = "PUT /?a='b'&c HTTP/1.1\r\nAccept: application/xml, Text/HTML;q=0.9";
        let answer = ask(head, b"<script>alert('&')</script>").await;
        assert!(answer.contains("content-security-policy: default-src 'none';"), "{answer}");
        assert!(answer.contains("PUT /?a=&#39;b&#39;&amp;c\n"), "{answer}");
        assert!(answer.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"), "{answer}");
        assert!(!answer.contains("<script"), "{answer}");
    }

    #[tokio::test]
    async fn a_large_body_is_counted_and_not_kept() {
        let answer = ask("POST / HTTP/1.1", &vec![b'x'; KEPT + 5]).await;
        assert!(answer.contains(&format!("{} bytes of body", KEPT + 5)), "{answer}");
        assert!(answer.contains(" …") && answer.len() < 2 * PREVIEW, "{}", answer.len());
    }

    #[tokio::test]
    async fn shutdown_ends_open_connections() {
        let demo = Demo::bind().await.unwrap();
        let mut tcp = TcpStream::connect(demo.addr()).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = demo.run(async { stopped.await.unwrap_or_default() });
        let peer = async {
            tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                .await
                .unwrap();
            // The connection is being served: the demo asked for the body.
            let mut start = [0; 12];
            tcp.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 100");
            stop.send(()).unwrap();
        };
        tokio::join!(run, peer);
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
        assert_eq!(rest, b" Continue\r\n\r\n", "no answer was made up");
    }
}
