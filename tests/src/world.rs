//! A relay in this process, tunnels on it, and the public that calls them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_client::session::dial::{Target, Trust};
use relay_client::upstream::address::UpstreamAddr;
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_server::Relay;
use relay_server::config::{Config, HttpMode};
use relay_server::log::AccessLog;
use relay_server::store::{NewToken, Store, TokenLimits, unix_now};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::body::{self, Body};
use crate::wire::{Transport, Wire};
use crate::within;

/// The relay's own host.
pub const DOMAIN: &str = "relay.test";

/// A running relay. It ends when this is dropped.
#[derive(Debug)]
pub struct World {
    config: Config,
    running: Running,
    ca: PathBuf,
    _dir: TempDir,
}

#[derive(Debug)]
struct Running {
    https: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
    store: Store,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

impl World {
    /// A relay with the defaults of a real one, and a development certificate.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A relay whose configuration the test has changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let free = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into());
        let mut config = Config {
            http_mode: HttpMode::Redirect,
            admin: free,
            data_dir: Some(dir.path().join("data")),
            ..Config::on_loopback(DOMAIN, dir.path().join("ca"))
        };
        change(&mut config);
        let (running, ca) = Running::start(config.clone()).await;
        let ca = ca.unwrap_or_else(|| dir.path().join("ca/ca.pem"));
        Self { config, running, ca, _dir: dir }
    }

    /// Stops the relay as SIGTERM would, and waits until it has drained.
    pub async fn shutdown(mut self) {
        self.running.stop().await;
    }

    /// As [`World::shutdown`]; the world stays, for [`World::start_again`].
    pub async fn stop(&mut self) {
        self.running.stop().await;
    }

    /// Tells the relay to stop and does not wait.
    pub fn begin_shutdown(&mut self) {
        drop(self.running.stop.take());
    }

    /// Starts the relay again after [`World::stop`]: the same ports, the same data.
    pub async fn start_again(&mut self) {
        let mut config = self.config.clone();
        config.https = Some(self.running.https);
        config.http = Some(self.running.http);
        config.admin = Some(self.running.admin.into());
        let (running, _) = Running::start(config).await;
        self.running = running;
    }

    /// Where HTTPS is served.
    pub fn https(&self) -> SocketAddr {
        self.running.https
    }

    /// Where plain HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.running.http
    }

    /// Where health and metrics are served.
    pub fn admin(&self) -> SocketAddr {
        self.running.admin
    }

    /// Tokens and names.
    pub fn store(&self) -> &Store {
        &self.running.store
    }

    /// The CA that the public and the clients trust.
    pub fn ca_file(&self) -> &Path {
        &self.ca
    }

    /// The data directory, for the real `relay-server token …`.
    pub fn data_dir(&self) -> &Path {
        self.config.data_dir.as_deref().expect("a world keeps its data")
    }

    /// What a client's `--relay` says.
    pub fn relay_url(&self) -> String {
        format!("https://{DOMAIN}:{}", self.https().port())
    }

    /// The public URL of `path` at the tunnel with this name.
    pub fn url(&self, name: &str, path: &str) -> String {
        format!("https://{name}.{DOMAIN}:{}{path}", self.https().port())
    }

    /// The public host of a name, with the port.
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{DOMAIN}:{}", self.https().port())
    }

    /// A token without any limit of its own.
    pub async fn token(&self) -> String {
        self.token_with(|_| {}).await.0
    }

    /// A token as the test wants it, and its name.
    pub async fn token_with(&self, change: impl FnOnce(&mut NewToken)) -> (String, String) {
        let many =
            TokenLimits { max_tunnels: 10_000, max_names: 10_000, max_sessions: 10_000, ..TokenLimits::default() };
        let name = format!("t{}", self.store().list_tokens(unix_now()).await.expect("the store answers").len());
        let mut new = NewToken { name, reserve: Vec::new(), expires_at: None, limits: many };
        change(&mut new);
        let name = new.name.clone();
        let (secret, _) = self.store().create_token(new, unix_now()).await.expect("a token");
        (secret.expose().to_owned(), name)
    }

    /// As [`arguments`](crate::process::arguments), to this relay.
    pub fn arguments(&self, token: &str, words: &[&str]) -> Vec<String> {
        crate::process::arguments(&self.relay_url(), self.https(), self.ca_file(), token, words)
    }

    /// The relay, as a client dials it.
    pub fn target(&self) -> Target {
        let trust = Trust::only(&self.ca).expect("the CA is there");
        let target = Target::new(self.relay_url().parse().expect("a URL"), &trust).expect("a target");
        target.dialling(Some(self.https().to_string().parse().expect("an address")))
    }

    /// A client with a token of its own and no tunnel yet.
    pub async fn client(&self) -> Client {
        Client::new(self.target()).token(self.token().await.into())
    }

    /// A tunnel with a random name to an [`App`](crate::App) or an address.
    pub async fn tunnel(&self, upstream: impl Into<UpstreamAddr>) -> Tunnel {
        self.tunnel_with(TunnelOptions::new(upstream.into())).await
    }

    /// A tunnel as the test wants it.
    pub async fn tunnel_with(&self, options: TunnelOptions) -> Tunnel {
        let started = Tunnel::start(self.client().await, options);
        within("a tunnel", started).await.expect("the relay gives a tunnel")
    }

    /// GET over HTTP/1.1, on a connection of its own.
    pub async fn get(&self, url: &str) -> Answer {
        self.send(Request::get(url).body(body::empty()).expect("a request")).await
    }

    /// POST over HTTP/1.1 with a body of known length, on a connection of its own.
    pub async fn post(&self, url: &str, bytes: impl Into<Bytes>) -> Answer {
        self.send(Request::post(url).body(body::full(bytes)).expect("a request")).await
    }

    /// Any request over HTTP/1.1, on a connection of its own. Its URI is absolute.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let host = request.uri().host().expect("an absolute URI").to_owned();
        let mut http = self.http1(&host).await;
        within(format!("an answer to {} {}", request.method(), request.uri()), http.answer(request)).await
    }

    /// GET from the admin listener: `/healthz`, `/readyz` or `/metrics`.
    pub async fn get_admin(&self, path: &str) -> Answer {
        let tcp = TcpStream::connect(self.admin()).await.expect("the relay listens");
        let mut http = Http::one(tcp).await;
        http.answer(Request::get(format!("http://{}{path}", self.admin())).body(body::empty()).expect("a request"))
            .await
    }

    /// A public HTTP/1.1 connection.
    pub async fn http1(&self, host: &str) -> Http {
        Http::one(self.tls(host, &[b"http/1.1"]).await).await
    }

    /// A public HTTP/2 connection.
    pub async fn http2(&self, host: &str) -> Http {
        let tls = self.tls(host, &[b"h2"]).await;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Http::two(tls).await
    }

    /// A public TLS connection on which the test speaks HTTP/1.1 byte by byte.
    pub async fn raw(&self, host: &str) -> Wire {
        Wire::new(self.tls(host, &[b"http/1.1"]).await)
    }

    /// A connection to the plain HTTP listener.
    pub async fn plain(&self) -> Wire {
        Wire::new(TcpStream::connect(self.http()).await.expect("the relay listens"))
    }

    /// A TLS connection to the relay. `host` is what the certificate must be for, with or without a port.
    pub async fn tls(&self, host: &str, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        connect_tls(self.https(), host, &self.ca, protocols).await
    }

    /// As [`World::tls`], by this [caller](caller()).
    pub async fn tls_by(&self, caller: &Arc<ClientConfig>, host: &str) -> TlsStream<TcpStream> {
        connect_by(caller, self.https(), host).await
    }
}

/// A certificate with those that lead to its authority, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Running {
    async fn start(config: Config) -> (Self, Option<PathBuf>) {
        let relay = Relay::bind(config, AccessLog::off()).await.expect("a relay starts");
        let unused = SocketAddr::from(([0, 0, 0, 0], 0));
        let (https, http) = (relay.https_addr().unwrap_or(unused), relay.http_addr().unwrap_or(unused));
        let admin = relay.admin_addr().unwrap_or(unused);
        let (store, ca) = (relay.store().clone(), relay.ca_file().map(Path::to_owned));
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            relay
                .run(async {
                    // Dropping the sender is how it is told.
                    let _ = stopped.await;
                })
                .await;
        });
        (Self { https, http, admin, store, stop: Some(stop), tasks }, ca)
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        while let Some(ended) = within("the relay's end", self.tasks.join_next()).await {
            ended.expect("the relay does not panic");
        }
    }
}

/// What somebody makes connections with who trusts the CA in a file, and shows this certificate where one is asked for. It
/// remembers its sessions, to resume them.
pub fn caller(ca: &Path, protocols: &[&[u8]], identity: Option<Identity>) -> Arc<ClientConfig> {
    Arc::new(client_config(ca, protocols, identity))
}

/// A TLS connection to `addr` by this [caller](caller()).
pub async fn connect_by(caller: &Arc<ClientConfig>, addr: SocketAddr, host: &str) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(addr).await.expect("the relay listens");
    let connected = TlsConnector::from(caller.clone()).connect(server_name(host), tcp);
    within("a TLS handshake", connected).await.expect("the relay speaks TLS")
}

/// A TLS connection to `addr` that trusts the CA in a file and no other.
pub async fn connect_tls(addr: SocketAddr, host: &str, ca: &Path, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let connected = try_connect_tls(addr, host, ca, protocols);
    within("a TLS handshake", connected).await.expect("the relay listens, and speaks TLS")
}

/// As [`connect_tls`], where there may be nobody.
///
/// # Errors
/// Nobody listens, or whoever does breaks the handshake off.
pub async fn try_connect_tls(
    addr: SocketAddr,
    host: &str,
    ca: &Path,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(addr).await?;
    let _ = tcp.set_nodelay(true);
    over(tcp, host, ca, protocols).await
}

/// TLS over a connection that there is, as [`try_connect_tls`].
///
/// # Errors
/// The handshake is broken off.
pub async fn over(tcp: TcpStream, host: &str, ca: &Path, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let config = client_config(ca, protocols, None);
    TlsConnector::from(Arc::new(config)).connect(server_name(host), tcp).await
}

fn client_config(ca: &Path, protocols: &[&[u8]], identity: Option<Identity>) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("the CA file is there") {
        roots.add(certificate.expect("a certificate")).expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a certificate and its key"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

fn server_name(host: &str) -> ServerName<'static> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned();
    ServerName::try_from(name).expect("a host")
}

/// A public client's connection.
#[derive(Debug)]
pub struct Http {
    sender: Sender,
    _task: JoinSet<()>,
}

#[derive(Debug)]
enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Http {
    /// HTTP/1.1 on any connection.
    pub async fn one(io: impl Transport + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.expect("a connection");
        let mut task = JoinSet::new();
        task.spawn(async move { drop(connection.with_upgrades().await) });
        Self { sender: Sender::One(sender), _task: task }
    }

    /// HTTP/2 on any connection.
    pub async fn two(io: impl Transport + 'static) -> Self {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io));
        let (sender, connection) = handshake.await.expect("a connection");
        let mut task = JoinSet::new();
        task.spawn(async move { drop(connection.await) });
        Self { sender: Sender::Two(sender), _task: task }
    }

    /// Sends a request with an absolute URI, which becomes target and `Host` where HTTP/1.1 wants that. Returns with
    /// the head of the answer. The request is under way when the call returns, whether or not it is awaited.
    ///
    /// # Errors
    /// Where there is no answer.
    pub fn request(
        &mut self,
        mut request: Request<Body>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static {
        type Answer = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;
        let answer: Answer = match &mut self.sender {
            Sender::One(sender) => {
                let uri = std::mem::take(request.uri_mut());
                if let Some(authority) = uri.authority().filter(|_| !request.headers().contains_key(HOST)) {
                    let host = HeaderValue::from_str(authority.as_str()).expect("an authority");
                    request.headers_mut().insert(HOST, host);
                }
                *request.uri_mut() = uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
                Box::pin(sender.send_request(request))
            }
            Sender::Two(sender) => Box::pin(sender.send_request(request)),
        };
        answer
    }

    /// As [`Http::request`], with what the connection is switched to: a protocol of the test's own, over HTTP/1.1.
    pub async fn switch(&mut self, mut request: Request<Body>) -> TokioIo<hyper::upgrade::Upgraded> {
        self.ready().await;
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("own"));
        let mut response = within("an answer", self.request(request)).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "{response:?}");
        TokioIo::new(within("the upgrade", hyper::upgrade::on(&mut response)).await.expect("an upgrade"))
    }

    /// As [`Http::request`], with the answer read to its end. Panics where it breaks.
    pub async fn answer(&mut self, request: Request<Body>) -> Answer {
        self.ready().await;
        let response = self.request(request).await.expect("an answer");
        Answer::read(response).await
    }

    /// As [`Http::answer`]; none where the connection breaks.
    pub async fn try_answer(&mut self, request: Request<Body>) -> Option<Answer> {
        let ready = match &mut self.sender {
            Sender::One(sender) => sender.ready().await,
            Sender::Two(sender) => sender.ready().await,
        };
        ready.ok()?;
        let (parts, incoming) = self.request(request).await.ok()?.into_parts();
        let collected = incoming.collect().await.ok()?;
        let (trailers, body) = (collected.trailers().cloned(), collected.to_bytes());
        Some(Answer { status: parts.status, version: parts.version, headers: parts.headers, body, trailers })
    }

    /// As [`Http::answer`], on its own: several can be under way at once on HTTP/2.
    ///
    /// # Panics
    /// Where the answer breaks.
    pub fn begin(&mut self, request: Request<Body>) -> tokio::task::JoinHandle<Answer> {
        let answer = self.request(request);
        tokio::spawn(async move { Answer::read(answer.await.expect("an answer")).await })
    }

    /// Waits until another request can be sent.
    pub async fn ready(&mut self) {
        let ready = async {
            match &mut self.sender {
                Sender::One(sender) => sender.ready().await,
                Sender::Two(sender) => sender.ready().await,
            }
        };
        within("a connection that is ready", ready).await.expect("the connection is open");
    }

    /// Whether the relay has closed the connection.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_closed(),
            Sender::Two(sender) => sender.is_closed(),
        }
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its version.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What stood behind the body.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads a response to its end; panics where it breaks.
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, incoming) = response.into_parts();
        let collected = within("a body's end", incoming.collect()).await.expect("a whole body");
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        Self { status: parts.status, version: parts.version, headers: parts.headers, body, trailers }
    }

    /// The status as a number.
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|_| panic!("not text: {:?}", self.body))
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The one value of a header; panics where there are several, or none.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        assert!(values.next().is_none(), "several {name} in {:?}", self.headers);
        value.to_str().unwrap_or_else(|_| panic!("{name} is no text: {value:?}"))
    }

    /// The `Relay-Error` code, where the relay itself has answered.
    pub fn error(&self) -> Option<&str> {
        self.headers.get("relay-error").map(|value| value.to_str().expect("a code"))
    }
}
