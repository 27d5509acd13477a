//! Other people's programs on both sides of a tunnel: what works without it must work through it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use relay_tests::body::{self, empty, full};
use relay_tests::tools;
use relay_tests::{Answer, Http, World};
use tokio::net::TcpStream;

/// [httpbin](https://httpbin.org), asked directly and through a tunnel.
mod httpbin {
    use super::*;

    /// A request as all three ways send it.
    struct Case {
        method: Method,
        path: String,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
        /// Without a length.
        streamed: bool,
    }

    impl Case {
        fn new(method: &str, path: impl Into<String>) -> Self {
            let method = method.parse().unwrap();
            Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), streamed: false }
        }

        fn get(path: impl Into<String>) -> Self {
            Self::new("GET", path)
        }

        fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
            self.headers.push((name, value.into()));
            self
        }

        fn body(mut self, body: impl Into<Bytes>) -> Self {
            self.body = body.into();
            self
        }

        fn streamed(mut self) -> Self {
            self.streamed = true;
            self
        }

        fn request(&self, origin: &str) -> Request<body::Body> {
            let mut request = Request::builder().method(&self.method).uri(format!("{origin}{}", self.path));
            for (name, value) in &self.headers {
                request = request.header(*name, value);
            }
            let body = if self.streamed {
                let (pipe, body) = body::pipe();
                let bytes = self.body.clone();
                tokio::spawn(async move { pipe.send(bytes).await });
                body
            } else if self.body.is_empty() {
                empty()
            } else {
                full(self.body.clone())
            };
            request.body(body).unwrap()
        }
    }

    fn cases() -> Vec<Case> {
        let mut cases: Vec<Case> = [
            // Pages and documents.
            "/",
            "/html",
            "/robots.txt",
            "/deny",
            "/forms/post",
            "/xml",
            "/json",
            "/encoding/utf8",
            "/links/10/3",
            "/links/4",
            "/image/png",
            "/image/jpeg",
            "/image/webp",
            "/image/svg",
            "/base64/aGVsbG8gd29ybGQ=",
            "/base64/not%20base64",
            "/nothing/here",
            // What it says about the request.
            "/ip",
            "/headers",
            "/user-agent",
            "/get?a=1&a=2&b=%2F%20%c3%a9&c",
            "/anything/with/%2e%2e/dots?and=query&&=",
            // Encoded by the origin: not one byte may change.
            "/gzip",
            "/deflate",
            "/brotli",
            // In pieces, and in pieces over time.
            "/stream/0",
            "/stream/20",
            "/bytes/0",
            "/bytes/1?seed=1",
            "/bytes/102400?seed=7",
            "/stream-bytes/102400?seed=7&chunk_size=1000",
            "/stream-bytes/3?seed=7&chunk_size=1",
            "/drip?duration=0.2&numbytes=20&code=200&delay=0",
            "/drip?duration=0.1&numbytes=2&code=503&delay=0.1",
            "/delay/0.1",
            "/range/10240",
            "/range/1024?chunk_size=100&duration=0.1",
            // Elsewhere.
            "/redirect/3",
            "/relative-redirect/2",
            "/absolute-redirect/2",
            "/redirect-to?url=https%3A%2F%2Fexample.com%2Fa%3Fb&status_code=308",
            "/redirect-to?url=%2Frelative%3Fx%3D1&status_code=307",
            "/redirect-to?url=%2F%2Fexample.com%2F",
            // State.
            "/cookies",
            "/cookies/set?one=1&two=2&three=a%20b",
            "/cookies/set/name/value",
            "/cookies/delete?one",
            "/cache/60",
            "/etag/abc",
            "/basic-auth/user/password",
            "/hidden-basic-auth/user/password",
            "/bearer",
            "/response-headers?X-One=1&X-One=2&x-two=a%2C%20b&Content-Language=de&Warning=199%20x%20%22y%22",
        ]
        .map(Case::get)
        .into();

        // 407 is between a client and its proxy, and its challenge does not travel (RFC 9110, section 11.7.1).
        let statuses = [
            200, 201, 202, 203, 204, 205, 206, 207, 226, 300, 301, 302, 303, 304, 305, 307, 308, 400, 401, 402, 403,
            404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 425, 426, 428, 429, 431,
            451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599,
        ];
        cases.extend(statuses.map(|status| Case::get(format!("/status/{status}"))));
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            cases.push(Case::new(method, "/status/204"));
            cases.push(Case::new(method, "/status/418"));
            let kind = "application/x-www-form-urlencoded";
            let form = Case::new(method, format!("/{}", method.to_lowercase())).header("content-type", kind);
            cases.push(form.body("a=1&b=%20&b=2"));
            let json = Case::new(method, "/anything").header("content-type", "application/json");
            cases.push(json.body("{\"a\": [1, 2.50, \"\\u00e9\"]}"));
            cases.push(Case::new(method, "/anything/empty"));
            cases.push(Case::new(method, "/anything/streamed").body(body::noise(100_000)).streamed());
        }
        cases.push(Case::new("OPTIONS", "/get"));
        cases.push(Case::new("OPTIONS", "/anything"));
        cases.push(Case::new("POST", "/get"));
        cases.push(Case::new("DELETE", "/post"));
        cases.push(Case::new("PROPFIND", "/anything"));

        let mut form = Vec::new();
        form.extend_from_slice(b"--frontier\r\nContent-Disposition: form-data; name=\"field\"\r\n\r\nv\xc3\xa4lue\r\n");
        form.extend_from_slice(b"--frontier\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n");
        form.extend_from_slice(b"Content-Type: application/octet-stream\r\n\r\n");
        form.extend_from_slice(&body::noise(300_000));
        form.extend_from_slice(b"\r\n--frontier--\r\n");
        let upload = Case::new("POST", "/post").header("content-type", "multipart/form-data; boundary=frontier");
        cases.push(upload.body(form));

        cases.extend([
            Case::get("/range/10240").header("range", "bytes=100-299"),
            Case::get("/range/10240").header("range", "bytes=-100"),
            Case::get("/range/10240").header("range", "bytes=10200-"),
            Case::get("/range/10240").header("range", "bytes=20000-30000"),
            Case::get("/etag/abc").header("if-none-match", "\"abc\""),
            Case::get("/etag/abc").header("if-none-match", "W/\"abc\", \"other\""),
            Case::get("/etag/abc").header("if-match", "\"other\""),
            Case::get("/cache").header("if-none-match", "\"x\""),
            Case::get("/cache").header("if-modified-since", "Sat, 29 Oct 1994 19:43:31 GMT"),
            Case::get("/cookies").header("cookie", "a=1; b=\"2 3\"; c=%20"),
            Case::get("/basic-auth/user/password").header("authorization", "Basic dXNlcjpwYXNzd29yZA=="),
            Case::get("/bearer").header("authorization", "Bearer abc.def"),
            Case::get("/image").header("accept", "image/webp"),
            Case::get("/image").header("accept", "application/pdf"),
            Case::get("/brotli").header("accept-encoding", "br"),
            Case::get("/headers").header("accept", "text/html;q=0.9, */*;q=0.1").header("accept", "x/y"),
            // As large as gunicorn takes them.
            Case::get("/headers").header("x-big", "b".repeat(8000)).header("x-bigger", "c".repeat(8000)),
            Case::get(format!("/get?long={}", "l".repeat(3900))),
            Case::get(format!("/response-headers?X-Big={}&X-Bigger={}", "a".repeat(1900), "b".repeat(1900))),
        ]);
        // HEAD of each.
        let heads = |case: &Case| Case { headers: case.headers.clone(), ..Case::new("HEAD", &case.path) };
        let heads: Vec<Case> = cases.iter().filter(|case| case.method == Method::GET).map(heads).collect();
        cases.extend(heads);
        cases
    }

    #[tokio::test]
    async fn answers_as_it_does_without_a_tunnel() {
        let app = tools::httpbin().await;
        let world = World::start().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let (mut one, mut two) = (world.http1(&host).await, world.http2(&host).await);
        let local = app.url("");
        let mut wrong = String::new();
        let cases = cases();
        for case in &cases {
            // A connection of its own: gunicorn closes idle ones.
            let mut direct = Http::one(TcpStream::connect(app.addr).await.unwrap()).await;
            let expected = Seen::of(case, direct.answer(case.request(&local)).await, &local, &local).await;
            for (version, http) in [("HTTP/1.1", &mut one), ("HTTP/2", &mut two)] {
                let answer = http.answer(case.request(tunnel.url())).await;
                let seen = Seen::of(case, answer, tunnel.url(), &local).await;
                // What arrives all at once can be told a length that the application did not know yet.
                let lengthened = Seen { length: expected.length || seen.length, ..expected.clone() };
                if seen != lengthened {
                    let Case { method, path, headers, .. } = case;
                    wrong += &format!("{method} {path:.200} {headers:.100?} over {version}:\n");
                    wrong += &format!("{seen:#?}\ninstead of\n{expected:#?}\n");
                }
            }
        }
        assert!(wrong.is_empty(), "of {} cases:\n{wrong}", cases.len());
    }

    /// An answer without what every proxy changes.
    #[derive(Clone, PartialEq, Eq)]
    struct Seen {
        status: StatusCode,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        /// Whether its head tells how long it is.
        length: bool,
    }

    impl std::fmt::Debug for Seen {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let body = String::from_utf8_lossy(&self.body);
            let Self { status, headers, length, .. } = self;
            write!(f, "{status} {headers:#?}\n{} bytes, told: {length}: {body:.2000}", self.body.len())
        }
    }

    impl Seen {
        /// `origin` is how the application was called, `local` where it is.
        async fn of(case: &Case, answer: Answer, origin: &str, local: &str) -> Self {
            assert_eq!(answer.error(), None, "{} {}", case.method, case.path);
            let body = match answer.headers.get("content-encoding") {
                Some(encoding) if case.method == Method::GET => decoded(encoding.to_str().unwrap(), &answer.body).await,
                _ => answer.body.to_vec(),
            };
            let body = told(&body, local);
            let length = answer.headers.get("content-length").map(|length| length.to_str().unwrap().to_owned());
            if case.method != Method::HEAD && answer.status != StatusCode::NOT_MODIFIED {
                let real = answer.body.len().to_string();
                assert_eq!(length.as_ref().unwrap_or(&real), &real, "{} {}", case.method, case.path);
            }
            let mut headers = Vec::new();
            for (name, value) in &answer.headers {
                let value = String::from_utf8(value.as_bytes().to_vec()).unwrap();
                headers.push(match name.as_str() {
                    // Of each answer, or of each connection.
                    "date" | "connection" | "keep-alive" | "transfer-encoding" | "content-length" => continue,
                    "location" => (name.to_string(), value.replace(origin, "ORIGIN")),
                    // To whom HTTPS is told, cookies are secure.
                    "set-cookie" => (name.to_string(), value.replace("Secure; ", "")),
                    _ => (name.to_string(), value),
                });
            }
            Self { status: answer.status, headers, body, length: length.is_some() }
        }
    }

    /// What a body says that the application has compressed; it shows the request, so its bytes differ.
    async fn decoded(encoding: &str, body: &[u8]) -> Vec<u8> {
        const DECODE: &str = "import sys, gzip, zlib, brotlicffi; kind, file = sys.argv[1:]; \
            decode = {'gzip': gzip.decompress, 'deflate': zlib.decompress, 'br': brotlicffi.decompress}[kind]; \
            sys.stdout.write(decode(open(file, 'rb').read()).decode())";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), body).unwrap();
        tools::output(tools::python().args(["-c", DECODE, encoding]).arg(file.path())).await.into_bytes()
    }

    /// A body in which the application shows the request, without what every proxy changes in that.
    fn told(body: &[u8], local: &str) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(body) else { return body.to_vec() };
        // Through the tunnel it knows that it was called by HTTPS, and says so.
        let text = text.replace(&local.replace("http:", "https:"), local);
        if let Some(told) = tidied(&text) {
            return told.into();
        }
        // `/stream` says it once a line.
        text.split_inclusive('\n').flat_map(|line| tidied(line).unwrap_or(line.to_owned()).into_bytes()).collect()
    }

    fn tidied(text: &str) -> Option<String> {
        let mut json = serde_json::from_str(text).ok()?;
        tidy(&mut json).then(|| json.to_string())
    }

    /// Whether it shows the request.
    fn tidy(json: &mut serde_json::Value) -> bool {
        let Some(fields) = json.as_object_mut() else { return false };
        let origin = fields.remove("origin");
        let Some(headers) = fields.get_mut("headers").and_then(|headers| headers.as_object_mut()) else {
            return origin.is_some();
        };
        let added = |name: &str| name.starts_with("X-Forwarded-") || name == "Forwarded" || name == "Relay-Request-Id";
        headers.retain(|name, _| !added(name));
        // HTTP/1.1 asks whoever sends a POST without a body to say so (RFC 9110, section 8.6).
        if headers.get("Content-Length").is_some_and(|length| length == "0") {
            headers.remove("Content-Length");
        }
        true
    }
}
