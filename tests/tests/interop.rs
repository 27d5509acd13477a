//! Other people's programs on both sides of a tunnel: what works without it must work through it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::future::poll_fn;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use relay_client::upstream::address::UpstreamAddr;
use relay_tests::body::{self, empty, full};
use relay_tests::tools::{self, Tls, output};
use relay_tests::world::connect_tls;
use relay_tests::{AT_ONCE, Answer, App, Http, Process, RelayClient, RelayServer, World, within};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

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

/// git's smart HTTP: large bodies of unknown length both ways, compressed requests, an answer that goes by protocol.
mod git {
    use super::*;

    #[tokio::test]
    async fn clones_and_pushes_over_both_versions() {
        let served = tempfile::tempdir().unwrap();
        let work = tempfile::tempdir().unwrap();
        let app = tools::git_server(served.path()).await;
        let world = World::start().await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/a.git", tunnel.url());
        let reached = |version: &str, directory: &Path| {
            let mut git = tools::git(directory);
            let resolve = format!("http.curloptResolve={}:{}", world.host(tunnel.name()), world.https().ip());
            git.arg("-c").arg(resolve).arg("-c").arg(format!("http.version={version}"));
            git.env("GIT_SSL_CAINFO", world.ca_file());
            git.env("GIT_CURL_VERBOSE", "1").env("GIT_TRACE_CURL_NO_DATA", "1");
            git
        };
        output(tools::git(served.path()).args(["init", "--quiet", "--bare", "a.git"])).await;
        // So many branches that a clone, which asks for each, has enough to say to compress it.
        let first = work.path().join("first");
        output(tools::git(work.path()).args(["init", "--quiet", "first"])).await;
        for number in 0..40u32 {
            std::fs::write(first.join(format!("{number}.bin")), incompressible(100_000, number)).unwrap();
            output(tools::git(&first).args(["add", "."])).await;
            output(tools::git(&first).args(["commit", "--quiet", "-m", "more"])).await;
            output(tools::git(&first).args(["branch", &format!("branch-{number}")])).await;
        }

        let mut push = reached("HTTP/1.1", &first);
        let said = errors(push.args(["push", "--all", &url])).await;
        assert!(said.contains("transfer-encoding: chunked"), "a large push goes in chunks:\n{said}");
        for version in ["HTTP/1.1", "HTTP/2"] {
            let name = version.replace('/', "-");
            let said = errors(reached(version, work.path()).args(["clone", "--quiet", &url, &name])).await;
            assert!(said.contains("content-encoding: gzip"), "a long request is compressed:\n{said}");
            let clone = work.path().join(&name);
            output(tools::git(&clone).args(["fsck", "--full", "--strict"])).await;
            assert_eq!(head(&clone).await, head(&first).await);

            // There and back: the clone pushes, the first one fetches.
            std::fs::write(clone.join(&name), incompressible(3_000_000, 1000)).unwrap();
            output(tools::git(&clone).args(["add", "."])).await;
            output(tools::git(&clone).args(["commit", "--quiet", "-m", "from the clone"])).await;
            let said = errors(reached(version, &clone).args(["push", "origin", "HEAD"])).await;
            assert!(said.contains(&format!("recv header: {} 200", version.to_lowercase())), "{version}:\n{said}");
            output(reached(version, &first).args(["pull", "--quiet", &url, "HEAD"])).await;
            assert_eq!(head(&clone).await, head(&first).await);
            assert_eq!(head(&clone).await, head(&served.path().join("a.git")).await);
        }
        output(tools::git(&served.path().join("a.git")).args(["fsck", "--full", "--strict"])).await;
    }

    async fn head(repository: &Path) -> String {
        output(tools::git(repository).args(["rev-parse", "HEAD"])).await
    }

    /// What a git that succeeds writes to standard error, in lower case.
    async fn errors(git: &mut Command) -> String {
        let done = within("git", git.output()).await.unwrap();
        let said = String::from_utf8_lossy(&done.stderr).to_lowercase();
        assert!(done.status.success(), "{git:?}:\n{said}");
        said
    }

    fn incompressible(length: usize, seed: u32) -> Vec<u8> {
        let mut state = u64::from(seed) + 1;
        let next = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }
}

/// WebSockets between two ends that know nothing of a tunnel.
mod websocket {
    use super::*;
    use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    /// Sends each message back, and the last ones at once.
    async fn echo() -> (std::net::SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).unwrap();
                connections.spawn(async move {
                    let Ok(mut socket) = tokio_tungstenite::accept_async(tcp).await else { return };
                    while let Some(message) = socket.next().await {
                        let message = message.expect("a message");
                        if message.is_close() {
                            continue;
                        }
                        socket.feed(message).await.expect("the other side reads");
                        while let Some(Some(Ok(message))) = socket.next().now_or_never() {
                            if !message.is_close() {
                                socket.feed(message).await.expect("the other side reads");
                            }
                        }
                        let _ = socket.flush().await;
                    }
                });
            }
        });
        (addr, tasks)
    }

    fn message(number: u32) -> Message {
        match number % 3 {
            0 => Message::text(format!("message {number}")),
            1 => Message::binary(Bytes::copy_from_slice(&number.to_be_bytes())),
            _ => Message::text("é".repeat(number as usize % 50)),
        }
    }

    /// Sends so many messages as fast as they go and reads their echoes; then closes as one should.
    async fn converse<S>(socket: WebSocketStream<S>, messages: u32)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, mut receiver) = socket.split();
        let sending = async move {
            for number in 0..messages {
                sender.feed(message(number)).await.expect("the other side reads");
                if number % 1000 == 999 {
                    sender.flush().await.expect("the other side reads");
                }
            }
            sender.flush().await.expect("the other side reads");
            sender
        };
        let receiving = async {
            for number in 0..messages {
                let echoed = within("an echo", receiver.next()).await.expect("no end yet").expect("a message");
                assert_eq!(echoed, message(number), "message {number}");
            }
        };
        let (mut sender, ()) = tokio::join!(sending, receiving);
        sender.send(Message::Close(None)).await.unwrap();
        let last = within("the closing handshake", receiver.next()).await;
        assert!(matches!(last, Some(Ok(Message::Close(_)))), "{last:?}");
        assert!(within("the end", receiver.next()).await.is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn echoes_a_million_messages_in_order() {
        let (addr, _app) = echo().await;
        let world = World::start().await;
        let tunnel = world.tunnel(addr.to_string().parse::<UpstreamAddr>().unwrap()).await;
        let host = world.host(tunnel.name());
        let tls = world.tls(&host, &[b"http/1.1"]).await;
        let (socket, response) = tokio_tungstenite::client_async(format!("wss://{host}/chat?a=b"), tls).await.unwrap();
        assert_eq!(response.status(), 101);
        let began = Instant::now();
        converse(socket, 1_000_000).await;
        println!("a million messages there and back: {:.1?}", began.elapsed());
    }

    /// RFC 8441: the browser's way since HTTP/2, one stream of a connection that carries others.
    #[tokio::test]
    async fn echoes_over_extended_connect() {
        let (addr, _app) = echo().await;
        let world = World::start().await;
        let tunnel = world.tunnel(addr.to_string().parse::<UpstreamAddr>().unwrap()).await;
        let host = world.host(tunnel.name());
        let (client, connection) = h2::client::handshake(world.tls(&host, &[b"h2"]).await).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let mut client = client.ready().await.unwrap();
        // The relay's settings come first of all, and this request follows them.
        let plain = Request::get(format!("https://{host}/")).body(()).unwrap();
        drop(within("an answer", client.send_request(plain, true).unwrap().0).await.unwrap());
        assert!(client.is_extended_connect_protocol_enabled());

        for messages in [1, 50_000] {
            let request = Request::connect(format!("https://{host}/chat?a=b"))
                .extension(h2::ext::Protocol::from_static("websocket"))
                .header("sec-websocket-version", "13")
                .body(())
                .unwrap();
            client = client.ready().await.unwrap();
            let (response, mut send) = client.send_request(request, false).unwrap();
            let response = within("an answer", response).await.unwrap();
            assert_eq!(response.status(), 200);
            let mut receive = response.into_body();

            let (near, far) = tokio::io::duplex(64 * 1024);
            let (mut from, mut to) = tokio::io::split(far);
            tasks.spawn(async move {
                let mut buffer = vec![0; 16 * 1024];
                loop {
                    let n = from.read(&mut buffer).await.unwrap();
                    if n == 0 {
                        break drop(send.send_data(Bytes::new(), true));
                    }
                    send.reserve_capacity(n);
                    while send.capacity() < n {
                        poll_fn(|cx| send.poll_capacity(cx)).await.expect("the stream lives").unwrap();
                    }
                    send.send_data(Bytes::copy_from_slice(&buffer[..n]), false).unwrap();
                }
            });
            tasks.spawn(async move {
                while let Some(bytes) = receive.data().await {
                    let bytes = bytes.expect("no reset");
                    receive.flow_control().release_capacity(bytes.len()).unwrap();
                    if to.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                let _ = to.shutdown().await;
            });
            converse(WebSocketStream::from_raw_socket(near, Role::Client, None).await, messages).await;
        }
    }
}

/// Server-sent events: each must arrive as soon as it is sent, for as long as the stream is open.
mod events {
    use super::*;

    /// An application with a stream of events that the test sends.
    async fn stream() -> (App, mpsc::Receiver<body::Pipe>) {
        let (opened, streams) = mpsc::channel(4);
        let app = App::serve(move |_| {
            let opened = opened.clone();
            async move {
                let (pipe, body) = body::pipe();
                opened.send(pipe).await.unwrap();
                let response = Response::builder().header("content-type", "text/event-stream");
                response.header("cache-control", "no-cache").body(body).unwrap()
            }
        })
        .await;
        (app, streams)
    }

    struct Reader {
        body: hyper::body::Incoming,
        read: Vec<u8>,
        _http: Http,
    }

    impl Reader {
        async fn open(mut http: Http, url: &str) -> Self {
            let request = Request::get(url).header("accept", "text/event-stream").body(empty()).unwrap();
            let response = within("a head", http.request(request)).await.unwrap();
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            Self { body: response.into_body(), read: Vec::new(), _http: http }
        }

        async fn event(&mut self) -> String {
            loop {
                if let Some(end) = self.read.windows(2).position(|window| window == b"\n\n") {
                    return String::from_utf8(self.read.drain(..end + 2).collect()).unwrap();
                }
                let frame = self.body.frame().await.expect("no end").expect("no break");
                self.read.extend_from_slice(frame.data_ref().expect("no trailers"));
            }
        }
    }

    /// The next event is sent when the last has been read: one that waits for company hangs.
    #[tokio::test]
    async fn arrive_one_by_one() {
        let (app, mut streams) = stream().await;
        let world = World::start().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for http in [world.http1(&host).await, world.http2(&host).await] {
            let mut reader = Reader::open(http, tunnel.url()).await;
            let pipe = within("a stream", streams.recv()).await.unwrap();
            for number in 0..2000 {
                let event = format!("id: {number}\ndata: {}\n\n", "x".repeat(number % 300));
                assert!(pipe.send(event.clone()).await);
                let read = timeout(AT_ONCE, reader.event()).await;
                assert_eq!(read.unwrap_or_else(|_| panic!("event {number} was held back")), event);
            }
        }
    }

    /// In real time, because what closes silent streams or flushes late does so by the clock.
    #[tokio::test]
    async fn arrive_for_a_minute() {
        let (app, mut streams) = stream().await;
        let relay = RelayServer::spawn([""; 0]).await;
        let client = relay.client(&relay.token("me").await, &app.addr().to_string(), &[]).await;
        let host = client.url().strip_prefix("https://").unwrap();
        let mut open = Vec::new();
        for version in [&b"http/1.1"[..], b"h2"] {
            let tls = connect_tls(relay.https, host, &relay.ca_file(), &[version]).await;
            let http = if version == b"h2" { Http::two(tls).await } else { Http::one(tls).await };
            let reader = Reader::open(http, client.url()).await;
            open.push((within("a stream", streams.recv()).await.unwrap(), reader));
        }
        let mut worst = Duration::ZERO;
        let began = Instant::now();
        for second in 0..=60 {
            tokio::time::sleep_until((began + Duration::from_secs(second)).into()).await;
            // Silence in between: events, then none for 10 s and more.
            if (20..35).contains(&second) {
                continue;
            }
            for (pipe, reader) in &mut open {
                let sent = Instant::now();
                assert!(pipe.send(format!("data: {second}\n\n")).await);
                let read = timeout(AT_ONCE, reader.event()).await;
                assert_eq!(read.expect("the event was held back"), format!("data: {second}\n\n"));
                worst = worst.max(sent.elapsed());
            }
        }
        println!("the slowest of 92 events in a minute: {worst:.1?}");
        for (pipe, reader) in open {
            drop(pipe);
            let rest = within("the end", reader.body.collect()).await.expect("a proper end");
            assert!(rest.to_bytes().is_empty());
        }
    }
}

/// Whole applications and the programs that their users call them with.
mod applications {
    use super::*;

    #[tokio::test]
    async fn grpc_calls_of_every_kind() {
        let app = tools::grpc_server().await;
        let relay = RelayServer::spawn([""; 0]).await;
        let target = app.addr.to_string();
        let client = relay.client(&relay.token("me").await, &target, &["--upstream-protocol", "h2c"]).await;
        let (ca, host) = (relay.ca_file(), client.url().strip_prefix("https://").unwrap());
        let seen = tools::grpc_calls(relay.https, Some(Tls { ca: &ca, host })).await;
        assert_eq!(seen, tools::grpc_calls(app.addr, None).await, "as without a tunnel");
        assert_eq!((&seen["unary_intact"], &seen["trailing_binary_intact"]), (&true.into(), &true.into()));
        assert_eq!(seen["count"].as_array().unwrap().len(), 100);
        assert_eq!(seen["join"], "a,b,c");
        assert_eq!(seen["chat"], json!(["one", "two", "three"]));
        assert_eq!(seen["failure"]["code"], "FAILED_PRECONDITION");
        assert_eq!(seen["failure"]["details_intact"], true);
    }

    /// Vite refuses hosts that it does not know, and its client opens a WebSocket to where the page came from.
    #[tokio::test]
    async fn vite_reloads_what_is_edited() {
        let vite = tools::vite().await;
        let world = World::start().await;
        let tunnel = world.tunnel(&vite.app).await;
        let host = world.host(tunnel.name());
        let tls = Tls { ca: world.ca_file(), host: &host };
        let seen =
            tools::hot_reload(&format!("{}/", tunnel.url()), vite.project.path(), world.https(), Some(tls)).await;
        assert_eq!(seen["before"], "before");
        assert_eq!(seen["after"], seen["expected"], "{seen}");
        assert_eq!(seen["reloaded"], false, "{seen}");
        assert_eq!(seen["sockets"], json!([format!("wss://{host}/")]), "through the tunnel, and at the first attempt");
        assert_eq!(seen["errors"], json!([]));
    }

    /// Django refuses hosts that it does not know, and forms from another origin than it believes to be at.
    #[tokio::test]
    async fn django_takes_a_form_without_being_configured() {
        let django = tools::django().await;
        let world = World::start().await;
        let tunnel = world.tunnel(&django.app).await;
        let url = format!("{}/admin/login/?next=/admin/", tunnel.url());
        let redirected = world.get(&format!("{}/admin/", tunnel.url())).await;
        assert_eq!((redirected.code(), redirected.header("location")), (302, "/admin/login/?next=/admin/"));
        let page = world.get(&url).await;
        assert_eq!(page.code(), 200, "{}", page.text());
        let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
        let (_, rest) = page.text().split_once("name=\"csrfmiddlewaretoken\" value=\"").expect("a form");
        let token = rest.split('"').next().unwrap();
        for (origin, status) in [(tunnel.url(), 200), ("https://elsewhere.example", 403)] {
            let form = format!("csrfmiddlewaretoken={token}&username=nobody&password=wrong&next=/admin/");
            let login = Request::post(&url)
                .header("content-type", "application/x-www-form-urlencoded")
                .header("cookie", &cookie)
                .header("origin", origin)
                .header("referer", format!("{origin}/admin/login/"))
                .body(full(form))
                .unwrap();
            let answer = world.send(login).await;
            assert_eq!(answer.code(), status, "from {origin}: {}", answer.text());
            assert_eq!(answer.text().contains("Please enter the correct username"), status == 200);
        }
    }

    #[tokio::test]
    async fn h2load_with_a_hundred_streams_loses_nothing() {
        let app = App::echo().await;
        let relay = RelayServer::spawn([""; 0]).await;
        let client = relay.client(&relay.token("me").await, &app.addr().to_string(), &[]).await;
        let body = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(body.path(), body::noise(1024)).unwrap();
        for (connections, upload) in [(1, false), (8, false), (8, true)] {
            let mut h2load = Command::new(tools::program("h2load"));
            h2load.args(["--requests=20000", "--max-concurrent-streams=100", "--threads=1"]);
            h2load.arg(format!("--clients={connections}")).arg(format!("--connect-to={}", relay.https));
            if upload {
                h2load.arg("--data").arg(body.path());
            }
            let said = output(h2load.arg(format!("{}/hooks", client.url()))).await;
            let requests = "20000 total, 20000 started, 20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout";
            assert!(said.contains(requests), "{said}");
            assert!(said.contains("status codes: 20000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{said}");
            assert!(said.contains("ALPN: h2") || said.contains("Application protocol: h2"), "{said}");
        }
    }
}

/// Somebody who looks for what is wrong with a server's TLS.
mod testssl {
    use super::*;

    /// What no certificate of a private authority has, and what of testssl's own openssl is missing.
    const OF_NO_CONCERN: [&str; 2] = ["cert_revocation", "engine_problem"];

    #[tokio::test]
    async fn finds_nothing_above_low() {
        let relay = RelayServer::spawn([""; 0]).await;
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("found.json");
        let mut testssl = Command::new(tools::program("testssl"));
        testssl.args(["--quiet", "--warnings=off", "--color=0", "--ip=127.0.0.1"]);
        // All but what a browser of ten years ago would choose.
        testssl.args(["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers"]);
        testssl.arg("--vulnerable").arg("--add-ca").arg(relay.ca_file()).arg("--jsonfile").arg(&file);
        // Seconds for an answer that does not come, which is what most of it hopes for.
        testssl.envs([("MAX_WAITSOCK", "2"), ("CCS_MAX_WAITSOCK", "2"), ("HEARTBLEED_MAX_WAITSOCK", "2")]);
        testssl.current_dir(&home).stdin(Stdio::null()).kill_on_drop(true);
        testssl.arg(format!("https://{}:{}", RelayServer::DOMAIN, relay.https.port()));
        let done = timeout(Duration::from_secs(300), testssl.output()).await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&done.stdout);

        let found: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&file).expect(&said))
            .unwrap_or_else(|error| panic!("{error}: {said}"));
        let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        let found: Vec<_> = found.iter().map(|line| ["id", "severity", "finding"].map(|key| text(line, key))).collect();
        // It has looked, and with trust in the authority.
        for (id, severity) in [("TLS1_3", "OK"), ("cert_chain_of_trust", "OK"), ("heartbleed", "OK"), ("RC4", "OK")] {
            assert!(found.iter().any(|[its, how, _]| its == id && how == severity), "{id}: {said}");
        }
        // On a loaded machine one of its many connections is too slow for it, which says nothing of TLS.
        let is_untold = |severity: &str, finding: &str| severity == "WARN" && finding.contains("connect problem");
        let is_well = |severity: &str| ["OK", "INFO", "LOW"].contains(&severity);
        let wrong: Vec<_> = found
            .iter()
            .filter(|[id, _, _]| !OF_NO_CONCERN.contains(&id.as_str()))
            .filter(|[_, severity, finding]| !is_well(severity) && !is_untold(severity, finding))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// `relay dev` and what people call it with: each knows names and certificates in its own way.
mod development {
    use super::*;

    #[tokio::test]
    async fn its_curl_line_works_as_pasted() {
        let mut dev = Process::spawn("relay", ["dev", "--https", "0", "--data-dir", "it's here"]).await;
        let url = dev.line().await.unwrap();
        assert!(url.starts_with("https://app.relay.localhost:"), "{url}");
        let line = loop {
            let line = dev.line().await.expect("a curl line");
            if line.trim_start().starts_with("curl ") {
                break line;
            }
        };
        let mut shell = Command::new("sh");
        shell.current_dir(dev.home().path()).args(["-c", &format!("{line} --silent --show-error --fail")]);
        assert!(!output(&mut shell).await.is_empty());
        let line = within("the request's line", async {
            loop {
                let line = dev.line().await.expect("it runs");
                if !line.is_empty() {
                    break line;
                }
            }
        });
        let line = line.await;
        assert!(line.contains("GET") && line.contains("200"), "{line}");
    }

    /// Python, Node and OpenSSL, by the name that all of them resolve.
    #[tokio::test]
    async fn others_trust_its_authority_at_the_local_url() {
        let app = App::echo().await;
        let port = app.addr().port().to_string();
        let dev = RelayClient::spawn(["dev", &port, "--https", "0", "--output", "json"]).await;
        let local = dev.ready["local_url"].as_str().unwrap();
        let ca = dev.ready["ca_file"].as_str().unwrap();
        let name = dev.url().strip_prefix("https://").unwrap().split(':').next().unwrap().to_owned();
        let address = local.strip_prefix("https://").unwrap();

        let requests = "import sys, requests; url, ca = sys.argv[1:]; \
            answer = requests.post(url + '/a', data=b'sent by requests', verify=ca, timeout=30); \
            answer.raise_for_status(); sys.stdout.write(answer.text)";
        let mut python = tools::python();
        assert_eq!(output(python.args(["-c", requests, local, ca])).await, "sent by requests");

        let fetch = "fetch(process.argv[1] + '/a', { method: 'POST', body: 'sent by fetch' }) \
            .then((answer) => answer.text()).then((text) => process.stdout.write(text))";
        let mut node = Command::new(tools::program("node"));
        node.env("NODE_EXTRA_CA_CERTS", ca).args(["-e", fetch, local]);
        assert_eq!(output(&mut node).await, "sent by fetch");

        for host in ["localhost", &name] {
            for version in ["-tls1_2", "-tls1_3"] {
                let mut openssl = Command::new(tools::program("openssl"));
                openssl.args(["s_client", "-connect", address, "-servername", host, "-verify_hostname", host]);
                openssl.args(["-CAfile", ca, "-verify_return_error", "-x509_strict", version, "-alpn", "h2"]);
                let said = output(&mut openssl).await;
                assert!(said.contains("Verify return code: 0 (ok)") || said.contains("Verification: OK"), "{said}");
                assert!(said.contains("ALPN protocol: h2"), "{said}");
            }
        }
    }
}

/// Bodies that no memory holds.
mod bulk {
    use super::*;
    use aws_lc_rs::digest::{Context, SHA256};

    const GIB: u64 = 1 << 30;
    const PIECE: usize = 64 * 1024;

    /// What either process may have held at most, whatever passed through.
    const MEMORY: u64 = 64 << 20;

    /// The same bytes each time, in which no two pieces nearby are equal.
    fn pieces(length: u64) -> impl Iterator<Item = Bytes> + Send {
        let noise = body::noise((1 << 20) + PIECE);
        let count = length.div_ceil(PIECE as u64);
        (0..count).map(move |number| {
            let at = (number.wrapping_mul(7919) % (1 << 20)) as usize;
            let left = (length - number * PIECE as u64).min(PIECE as u64) as usize;
            noise.slice(at..at + left)
        })
    }

    /// Of known length, given as fast as it is taken.
    struct Large<I>(I, u64);

    impl<I: Iterator<Item = Bytes> + Unpin> hyper::body::Body for Large<I> {
        type Data = Bytes;
        type Error = body::Error;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, body::Error>>> {
            let next = self.0.next();
            self.1 -= next.as_ref().map_or(0, |bytes| bytes.len() as u64);
            std::task::Poll::Ready(next.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
        }

        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(self.1)
        }
    }

    async fn hash(mut body: hyper::body::Incoming) -> (u64, String) {
        let (mut length, mut context) = (0, Context::new(&SHA256));
        while let Some(frame) = within("more of a body", body.frame()).await {
            let bytes = frame.expect("a whole body").into_data().expect("no trailers");
            length += bytes.len() as u64;
            context.update(&bytes);
        }
        (length, hex(context))
    }

    fn hex(context: Context) -> String {
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// `RELAY_TESTS_GIB=10` makes them as large as the design promises.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_gibibytes_up_and_down_in_bounded_memory() {
        let size = std::env::var("RELAY_TESTS_GIB").map_or(2, |gib| gib.parse().expect("a number of GiB")) * GIB;
        let app = App::serve(move |request| async move {
            match *request.method() {
                Method::GET => Response::new(Large(pieces(size), size).boxed_unsync()),
                _ => {
                    let (length, hash) = hash(request.into_body()).await;
                    Response::new(full(format!("{length} {hash}")))
                }
            }
        })
        .await;
        let relay = RelayServer::spawn([""; 0]).await;
        // An upload is answered when it has arrived, and the answer has a deadline.
        let patient = ["--timeout", "10m"];
        let client = relay.client(&relay.token("me").await, &app.addr().to_string(), &patient).await;
        let host = client.url().strip_prefix("https://").unwrap();
        let mut context = Context::new(&SHA256);
        pieces(size).for_each(|piece| context.update(&piece));
        let expected = (size, hex(context));
        for version in [&b"http/1.1"[..], b"h2"] {
            let tls = connect_tls(relay.https, host, &relay.ca_file(), &[version]).await;
            let mut http = if version == b"h2" { Http::two(tls).await } else { Http::one(tls).await };
            let name = String::from_utf8_lossy(version);
            // Each direction over one of the versions: what they do to a body otherwise shows with small ones.
            let began = Instant::now();
            let direction = if version == b"h2" {
                let upload = Request::post(client.url()).body(Large(pieces(size), size).boxed_unsync()).unwrap();
                let response = http.request(upload).await.unwrap();
                let told = Answer::read(response).await;
                assert_eq!((told.code(), told.text()), (200, &*format!("{} {}", expected.0, expected.1)));
                "up"
            } else {
                let download = Request::get(client.url()).body(empty()).unwrap();
                let response = within("a head", http.request(download)).await.unwrap();
                assert_eq!(response.headers()["content-length"], size.to_string());
                assert_eq!(hash(response.into_body()).await, expected);
                "down"
            };
            let (of_relay, of_client) = (relay.process.peak(), client.process.peak());
            let mib = |bytes: u64| bytes >> 20;
            let speed = mib(size) as f64 / began.elapsed().as_secs_f64();
            println!(
                "{} MiB {direction} over {name}: {speed:.0} MiB/s; at most {} MiB in the relay, {} MiB in the client",
                mib(size),
                mib(of_relay),
                mib(of_client)
            );
            assert!(of_relay < MEMORY && of_client < MEMORY);
        }
    }
}
