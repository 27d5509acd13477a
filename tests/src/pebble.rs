//! [Pebble](https://github.com/letsencrypt/pebble), an authority that is stricter than those whose certificates are trusted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::world::connect_tls;
use crate::{Body, Http, Network, Process, body, within};

/// How it is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long its certificates hold, from a whole second.
    pub validity: Duration,
    /// How many seconds it takes at most to look at a challenge; it is at once where this is 0.
    pub dawdle: u32,
    /// The name server that it asks for names; port 53 of the machine here unless said.
    pub dns: Option<SocketAddr>,
    /// It binds accounts to this key id and key, in base64url, and takes no others.
    pub external_account: Option<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { validity: Duration::from_secs(24 * 3600), dawdle: 0, dns: None, external_account: None }
    }
}

/// Pebble, behind a cable. It believes nothing that it has not looked up, and refuses some nonces, as it does by default.
#[derive(Debug)]
pub struct Pebble {
    /// Its process.
    pub process: Process,
    host: String,
    place: TempDir,
}

impl Pebble {
    /// Starts it, strict, and waits until it can be asked.
    pub async fn start(network: &Network, settings: Settings) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let host = network.address(2).to_string();
        own_certificate(place.path(), vec![host.clone(), network.here().to_string()]);
        let file = |name: &str| place.path().join(name).display().to_string();
        let mut config = serde_json::json!({
            "listenAddress": format!("{host}:14000"),
            "managementListenAddress": format!("{host}:15000"),
            "certificate": file("cert.pem"),
            "privateKey": file("key.pem"),
            "httpPort": 5002,
            "tlsPort": 443,
            "certificateValidityPeriod": settings.validity.as_secs(),
        });
        if let Some((id, key)) = settings.external_account {
            config["externalAccountBindingRequired"] = true.into();
            config["externalAccountMACKeys"] = serde_json::json!({ id: key });
        }
        let path = file("pebble.json");
        std::fs::write(&path, serde_json::json!({ "pebble": config }).to_string()).expect("a file");
        let hurry = match settings.dawdle {
            0 => "PEBBLE_VA_NOSLEEP=1".to_owned(),
            seconds => format!("PEBBLE_VA_SLEEPTIME={seconds}"),
        };
        let dns = settings.dns.unwrap_or((network.here(), 53).into()).to_string();
        let arguments = [&hurry, "pebble", "-strict", "-config", &path, "-dnsserver", &dns].map(str::to_owned);
        let mut process = network.spawn("/usr/bin/env", arguments).await;
        loop {
            let Some(line) = process.line().await else {
                panic!("Pebble ended; tests/run installs it:\n{}", process.said());
            };
            if line.contains("ACME directory available") {
                break;
            }
        }
        // It says so before it listens.
        for port in [14000, 15000] {
            let listens = async {
                while TcpStream::connect((host.as_str(), port)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            within("Pebble", listens).await;
        }
        Self { process, host, place }
    }

    /// Its directory.
    pub fn directory(&self) -> String {
        format!("https://{}:14000/dir", self.host)
    }

    /// The authority of its own certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.place.path().join("ca.pem")
    }

    /// A file with the root that its certificates end in.
    pub async fn root_file(&self) -> PathBuf {
        let addr = format!("{}:15000", self.host).parse().expect("an address");
        let mut http = Http::one(connect_tls(addr, &self.host, &self.ca_file(), &[]).await).await;
        let request = Request::get(format!("https://{addr}/roots/0")).body(body::empty()).expect("a request");
        let path = self.place.path().join("root.pem");
        std::fs::write(&path, http.answer(request).await.text()).expect("a file");
        path
    }
}

/// Pebble with renewal information (RFC 9773) and a name in CAA records, `pebble.example`, which it lacks: what it answers is
/// passed on, and these are added.
#[derive(Debug)]
pub struct Front {
    directory: String,
    said: Arc<Said>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Said {
    pebble: String,
    ca: PathBuf,
    /// Between which moments certificates are to be renewed, in RFC 3339.
    window: [String; 2],
    /// Which certificates orders have replaced.
    replaced: Mutex<Vec<String>>,
}

impl Front {
    /// Stands before `pebble`, on the near end of its cable, with the same certificate. Certificates are to be renewed in
    /// this window, whose ends are in RFC 3339.
    pub async fn start(network: &Network, pebble: &Pebble, window: [&str; 2]) -> Self {
        let file = |name: &str| pebble.place.path().join(name);
        let chain = CertificateDer::from_pem_file(file("cert.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(file("key.pem")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("a certificate and its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((network.here(), 0)).await.expect("a port");
        let directory = format!("https://{}/dir", listener.local_addr().expect("it listens"));
        let (window, replaced) = (window.map(str::to_owned), Mutex::default());
        let said = Arc::new(Said { pebble: pebble.host.clone(), ca: pebble.ca_file(), window, replaced });
        let (mut task, owner) = (JoinSet::new(), said.clone());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, said) = (acceptor.clone(), owner.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|request| {
                        let said = said.clone();
                        async move { Ok::<_, Infallible>(said.answer(request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { directory, said, _task: task }
    }

    /// Its directory.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The certificates that orders have replaced.
    pub fn replaced(&self) -> Vec<String> {
        self.said.replaced.lock().unwrap().clone()
    }
}

impl Said {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, sent) = request.into_parts();
        if head.uri.path().starts_with("/renewal-info/") {
            let [start, end] = &self.window;
            let info = serde_json::json!({ "suggestedWindow": { "start": start, "end": end } });
            return Response::new(body::full(info.to_string()));
        }
        let own = head.headers["host"].to_str().expect("a host").to_owned();
        let sent = sent.collect().await.expect("a body").to_bytes();
        let replaces = payload(&sent).and_then(|order| order["replaces"].as_str().map(str::to_owned));
        head.uri = format!("https://{own}{}", head.uri).parse().expect("a URL");
        let addr = format!("{}:14000", self.pebble).parse().expect("an address");
        let mut pebble = Http::one(connect_tls(addr, &self.pebble, &self.ca, &[]).await).await;
        let mut answer = pebble.answer(Request::from_parts(head, body::full(sent))).await;
        let mut bytes = answer.body.clone();
        if let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) {
            if value.get("newOrder").is_some() {
                value["renewalInfo"] = format!("https://{own}/renewal-info").into();
                value["meta"]["caaIdentities"] = serde_json::json!(["pebble.example"]);
            } else if let Some(replaces) = replaces.filter(|_| answer.status.is_success()) {
                value["replaces"] = replaces.clone().into();
                self.replaced.lock().unwrap().push(replaces);
            }
            bytes = value.to_string().into();
            answer.headers.remove("content-length");
        }
        let mut response = Response::new(body::full(bytes));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        response
    }
}

/// What is signed in a request (RFC 7515, section 7.2.2).
fn payload(sent: &[u8]) -> Option<Value> {
    let signed: Value = serde_json::from_slice(sent).ok()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed["payload"].as_str()?).ok()?).ok()
}

/// What it shows those who ask it, with the authority for that.
fn own_certificate(place: &Path, hosts: Vec<String>) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = CertifiedIssuer::self_signed(params, key()).expect("an authority");
    let (own, params) = (key(), CertificateParams::new(hosts).expect("a name"));
    let certificate = params.signed_by(&own, &ca).expect("a certificate");
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", certificate.pem()), ("key.pem", own.serialize_pem())] {
        std::fs::write(place.join(name), text).expect("a file");
    }
}
