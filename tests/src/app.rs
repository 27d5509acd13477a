//! Local services behind a tunnel, as tests need them. Other people's real ones are in [`crate::tools`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_client::upstream::address::UpstreamAddr;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::body::{self, Body};
use crate::wire::{Transport, Wire};
use crate::within;

/// A request as an [`App`] saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The raw target.
    pub target: String,
    /// The version.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
    /// What stood behind it.
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    /// The one value of a header; panics where there are several or none.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        assert!(values.next().is_none(), "several {name} in {:?}", self.headers);
        value.to_str().unwrap_or_else(|_| panic!("{name} is no text: {value:?}"))
    }
}

/// A local service. It ends, with all its connections, when this is dropped.
#[derive(Debug)]
pub struct App {
    addr: Option<SocketAddr>,
    upstream: UpstreamAddr,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Counts {
    connections: AtomicUsize,
    /// How many requests have begun.
    requests: watch::Sender<usize>,
    /// What a recording application has seen.
    seen: Mutex<Vec<Seen>>,
}

impl App {
    /// Answers every request over HTTP/1.1 with what `answer` makes of it.
    pub async fn serve<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::on(listener().await, answer)
    }

    /// As [`App::serve`], on a listener of the caller's.
    pub fn on<F, R>(listener: TcpListener, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::accept(listener, move |tcp, counts| http1(tcp, counts, answer.clone()))
    }

    /// As [`App::serve`], over HTTP/2 without TLS.
    pub async fn h2c<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::accept(listener().await, move |tcp, counts| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    counts.requests.send_modify(|n| *n += 1);
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.enable_connect_protocol().serve_connection(TokioIo::new(tcp), service).await;
            }
        })
    }

    /// As [`App::serve`], on a Unix socket at `path`.
    pub fn unix<F, R>(path: &std::path::Path, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = UnixListener::bind(path).expect("a free path");
        let upstream = format!("unix:{}", path.display()).parse().expect("an upstream");
        Self::start(None, upstream, |counts| async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counts.connections.fetch_add(1, Relaxed);
                connections.spawn(http1(stream, counts.clone(), answer.clone()));
            }
        })
    }

    /// Whose answers never end: `/wait` has not begun, `/socket` has switched protocols, and all others say `piece` again and again, as
    /// does what it has switched to.
    pub async fn endless(piece: Bytes) -> Self {
        Self::serve(move |mut request: Request<Incoming>| {
            let piece = piece.clone();
            async move {
                match request.uri().path() {
                    "/wait" => std::future::pending().await,
                    "/socket" => {
                        let upgraded = hyper::upgrade::on(&mut request);
                        tokio::spawn(async move {
                            let mut io = TokioIo::new(upgraded.await?);
                            while io.write_all(&piece).await.is_ok() {
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                            Ok::<_, hyper::Error>(())
                        });
                        let response = Response::builder().status(101);
                        let response = response.header("connection", "upgrade").header("upgrade", "own");
                        response.body(body::empty()).expect("a response")
                    }
                    _ => {
                        let (pipe, body) = body::pipe();
                        tokio::spawn(async move {
                            while pipe.send(piece.clone()).await {
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                        });
                        Response::new(body)
                    }
                }
            }
        })
        .await
    }

    /// Sends every body back as it arrives, with the request's `Content-Type`.
    pub async fn echo() -> Self {
        Self::serve(echo).await
    }

    /// Takes each request whole, records it, and answers 200 with `ok`.
    pub async fn recording() -> Self {
        Self::recording_on(listener().await)
    }

    /// As [`App::recording`], on a listener of the caller's.
    pub fn recording_on(listener: TcpListener) -> Self {
        Self::accept(listener, |tcp, counts| {
            let record = counts.clone();
            http1(tcp, counts, move |request| record_it(record.clone(), request))
        })
    }

    /// Hands every connection, with its number from 0, to `serve`.
    pub async fn raw<F, R>(serve: F) -> Self
    where
        F: Fn(Wire, usize) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::accept(listener().await, move |tcp, counts| {
            let number = counts.connections.load(Relaxed) - 1;
            serve(Wire::new(tcp), number)
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("it listens on TCP")
    }

    /// As a tunnel's target.
    pub fn upstream(&self) -> UpstreamAddr {
        self.upstream.clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    /// Requests begun so far.
    pub fn requests(&self) -> usize {
        *self.counts.requests.borrow()
    }

    /// Waits until so many requests have begun.
    pub async fn reached(&self, requests: usize) {
        let mut count = self.counts.requests.subscribe();
        within(format!("request {requests} at the application"), count.wait_for(|n| *n >= requests))
            .await
            .expect("the application runs");
    }

    /// What a recording application has seen, in the order of completion.
    pub fn seen(&self) -> Vec<Seen> {
        self.counts.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    pub fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "requests seen: {seen:?}");
        seen.remove(0)
    }

    /// The last request so far.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request was seen")
    }

    fn accept<F, R>(listener: TcpListener, serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<Counts>) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let addr = listener.local_addr().expect("it listens");
        Self::start(Some(addr), addr.to_string().parse().expect("an upstream"), |counts| async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = tcp.set_nodelay(true);
                let (counts, serve) = (counts.clone(), serve.clone());
                connections.spawn(async move {
                    // Somebody who only looks whether anybody listens says nothing, and is no client.
                    if !matches!(tcp.peek(&mut [0]).await, Ok(0)) {
                        counts.connections.fetch_add(1, Relaxed);
                        serve(tcp, counts).await;
                    }
                });
            }
        })
    }

    fn start<R>(addr: Option<SocketAddr>, upstream: UpstreamAddr, run: impl FnOnce(Arc<Counts>) -> R) -> Self
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let counts = Arc::new(Counts {
            connections: AtomicUsize::new(0),
            requests: watch::Sender::new(0),
            seen: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(run(counts.clone()));
        Self { addr, upstream, counts, _tasks: tasks }
    }
}

impl From<&App> for UpstreamAddr {
    fn from(app: &App) -> Self {
        app.upstream()
    }
}

/// The answer of [`App::echo`].
pub async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let mut response = Response::new(body::incoming(incoming));
    if let Some(kind) = parts.headers.get(http::header::CONTENT_TYPE) {
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind.clone());
    }
    response
}

/// A 200 with this body.
pub fn ok(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(body::full(text))
}

async fn record_it(counts: Arc<Counts>, request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    // A request that breaks off was not seen.
    if let Ok(collected) = incoming.collect().await {
        let trailers = collected.trailers().cloned();
        let seen = Seen {
            method: parts.method,
            target: parts.uri.to_string(),
            version: parts.version,
            headers: parts.headers,
            body: collected.to_bytes(),
            trailers,
        };
        counts.seen.lock().unwrap().push(seen);
    }
    ok("ok")
}

async fn http1<F, R>(io: impl Transport + 'static, counts: Arc<Counts>, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        counts.requests.send_modify(|n| *n += 1);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Tests break connections on purpose.
    let builder = hyper::server::conn::http1::Builder::new();
    let _ = builder.serve_connection(TokioIo::new(io), service).with_upgrades().await;
}

/// A free port of loopback.
pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}
