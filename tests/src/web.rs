//! The rest of the world: every host over HTTPS, behind a proxy that is the only way there.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::app::listener;
use crate::body::Body;

/// Answers for every host that a program is led to by its environment.
#[derive(Debug)]
pub struct Web {
    proxy: SocketAddr,
    ca: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
    _directory: TempDir,
    _tasks: JoinSet<()>,
}

impl Web {
    /// Answers each URL with what `answer` makes of it.
    pub async fn start(answer: impl Fn(&str) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("a certificate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("web.pem");
        std::fs::write(&ca, issuer.pem()).expect("a file");
        let listener = listener().await;
        let proxy = listener.local_addr().expect("it listens");
        let (issuer, asked) = (Arc::new(issuer), Arc::<Mutex<Vec<String>>>::default());
        let mut tasks = JoinSet::new();
        let seen = asked.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, issuer.clone(), seen.clone(), answer.clone()));
            }
        });
        Self { proxy, ca, asked, _directory: directory, _tasks: tasks }
    }

    /// What leads a program here, and has it trust what it finds.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [("HTTPS_PROXY", format!("http://{}", self.proxy)), ("SSL_CERT_FILE", self.ca.display().to_string())]
    }

    /// The URLs that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut tcp: TcpStream,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    asked: Arc<Mutex<Vec<String>>>,
    answer: impl Fn(&str) -> Response<Body>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !tcp.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
            return;
        }
    }
    let head = String::from_utf8(head).expect("a CONNECT");
    let host = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(':').next()).expect("a CONNECT").to_owned();
    let _ = tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec![host.clone()]).expect("a name").signed_by(&key, &issuer).expect("signed");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a certificate and its key");
    let Ok(tls) = TlsAcceptor::from(Arc::new(config)).accept(tcp).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let url = format!("https://{host}{}", request.uri());
        let response = answer(&url);
        asked.lock().unwrap().push(url);
        async { Ok::<_, Infallible>(response) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
}
