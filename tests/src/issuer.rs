//! Somebody who knows people: an issuer of OpenID Connect, which logs in whoever comes without asking.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::app::listener;
use crate::body::{self, Body};

/// By what a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// RS256, with a key that is published.
    Rs256,
    /// ES256, with a key that is published.
    Es256,
    /// ES256, with a key that is not.
    Elsewhere,
    /// ES256, by the name of the one that is published for RS256 and with another.
    Forged,
    /// HS256, with what everybody can know: the client id.
    Hs256,
    /// Not at all, and it says so.
    None,
}

/// How an issuer behaves.
#[derive(Clone, Debug)]
pub struct Manner {
    /// By what tokens are signed.
    pub signed: Signed,
    /// Claims that tokens have besides, or in the place of those that are right; without those that are null.
    pub claims: Value,
    /// The same of the discovery document.
    pub document: Value,
    /// Whom it says that it knows where it is asked by the token that it gives out for that.
    pub userinfo: Value,
    /// What somebody who comes to log in is sent back with in the place of a code.
    pub denies: Option<String>,
    /// The path of what does not answer.
    pub hangs: Option<&'static str>,
    /// The path of what is answered with 100 KiB more than there is to say.
    pub huge: Option<&'static str>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            signed: Signed::Es256,
            claims: json!({}),
            document: json!({}),
            userinfo: json!({}),
            denies: None,
            hangs: None,
            huge: None,
        }
    }
}

/// An issuer on `https://localhost`. It ends when this is dropped.
#[derive(Debug)]
pub struct Issuer {
    url: String,
    state: Arc<State>,
    ca: PathBuf,
    _directory: TempDir,
    _tasks: JoinSet<()>,
}

struct State {
    url: String,
    es256: EcdsaKeyPair,
    other: EcdsaKeyPair,
    rs256: RsaKeyPair,
    manner: Mutex<Manner>,
    /// What a code was given out for.
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
    asked: Mutex<Vec<String>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Issuer {
    /// What a tunnel is called here.
    pub const CLIENT: &str = "tunnel:1";
    /// What it shows.
    pub const SECRET: &str = "s3cret-of:the/client+=";

    /// Starts one that behaves well.
    pub async fn start() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("a certificate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("issuer.pem");
        std::fs::write(&ca, authority.pem()).expect("a file");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = params.signed_by(&key, &authority).expect("signed");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a certificate and its key");
        let listener = listener().await;
        let url = format!("https://localhost:{}", listener.local_addr().expect("it listens").port());
        let pair = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let state = Arc::new(State {
            url: url.clone(),
            es256: pair(),
            other: pair(),
            rs256: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            manner: Mutex::default(),
            codes: Mutex::default(),
            asked: Mutex::default(),
        });
        let (acceptor, owner, mut tasks) = (TlsAcceptor::from(Arc::new(config)), state.clone(), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, acceptor.clone(), owner.clone()));
            }
        });
        Self { url, state, ca, _directory: directory, _tasks: tasks }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The CA that has issued its certificate.
    pub fn ca_file(&self) -> &Path {
        &self.ca
    }

    /// Has it behave so from now on.
    pub fn behave(&self, change: impl FnOnce(&mut Manner)) {
        let mut manner = Manner::default();
        change(&mut manner);
        *self.state.manner() = manner;
    }

    /// The paths that it was asked for, without their queries, since this was asked last.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }

    /// What a browser gets that comes to this URL.
    pub async fn visit(&self, url: &str) -> crate::Answer {
        let port = self.url.rsplit(':').next().expect("a port");
        let address = format!("127.0.0.1:{port}").parse().expect("an address");
        let tls = crate::world::connect_tls(address, "localhost", &self.ca, &[b"http/1.1"]).await;
        let mut http = crate::Http::one(tls).await;
        http.answer(Request::get(url).body(body::empty()).expect("a request")).await
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(tls) = acceptor.accept(tcp).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let state = state.clone();
        async move {
            let path = request.uri().path().to_owned();
            state.asked.lock().unwrap().push(path.clone());
            let (hangs, huge) = {
                let manner = state.manner();
                (manner.hangs == Some(&path), manner.huge == Some(&path))
            };
            if hangs {
                std::future::pending::<()>().await;
            }
            let mut answer = state.answer(request).await;
            if huge {
                let body = answer.into_body().collect().await.expect("our own").to_bytes();
                answer = Response::new(body::full([body.to_vec(), vec![b' '; 100 << 10]].concat()));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
}

impl State {
    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, incoming) = request.into_parts();
        let sent = incoming.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/.well-known/openid-configuration") => document(self.document()),
            (&Method::GET, "/keys") => document(self.keys()),
            (&Method::GET, "/authorize") => self.authorize(&form(head.uri.query().unwrap_or_default())),
            (&Method::POST, "/token") => {
                let sent = form(std::str::from_utf8(&sent).expect("a form"));
                match self.token(header(AUTHORIZATION), &sent) {
                    Ok(tokens) => document(tokens),
                    Err(error) => {
                        let mut refused = document(json!({ "error": error }));
                        *refused.status_mut() = StatusCode::BAD_REQUEST;
                        refused
                    }
                }
            }
            (&Method::GET, "/userinfo") if header(AUTHORIZATION) == "Bearer an-access-token" => {
                document(self.manner().userinfo.clone())
            }
            _ => {
                let mut missing = Response::new(body::empty());
                *missing.status_mut() = StatusCode::NOT_FOUND;
                missing
            }
        }
    }

    fn document(&self) -> Value {
        let at = |path: &str| format!("{}{path}", self.url);
        let usual = json!({
            "issuer": self.url, "authorization_endpoint": at("/authorize"), "token_endpoint": at("/token"),
            "jwks_uri": at("/keys"), "userinfo_endpoint": at("/userinfo"), "response_types_supported": ["code"],
        });
        with(usual, &self.manner().document)
    }

    fn keys(&self) -> Value {
        // SEC 1, section 2.3.3, and RFC 8017, appendix A.1.1, of a key of 2048 bits.
        let (point, rsa) = (self.es256.public_key().as_ref(), self.rs256.public_key().as_ref());
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [
            { "kty": "RSA", "kid": "r", "use": "sig", "n": text(&rsa[9..265]), "e": text(&rsa[rsa.len() - 3..]) },
            { "kty": "EC", "crv": "P-256", "kid": "e", "x": text(&point[1..33]), "y": text(&point[33..65]) },
        ] })
    }

    /// Logs in whoever comes.
    fn authorize(&self, asked: &HashMap<String, String>) -> Response<Body> {
        let state = &asked["state"];
        for (name, value) in [
            ("response_type", "code"),
            ("client_id", Issuer::CLIENT),
            ("scope", "openid email"),
            ("code_challenge_method", "S256"),
        ] {
            assert_eq!(asked[name], value, "{asked:?}");
        }
        let back = |parameter: &str| format!("{}?{parameter}&state={state}", asked["redirect_uri"]);
        let location = match &self.manner().denies {
            Some(denies) => back(denies),
            None => {
                let mut codes = self.codes.lock().unwrap();
                let code = format!("code-{}", codes.len());
                let location = back(&format!("code={code}"));
                codes.insert(code, asked.clone());
                location
            }
        };
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(LOCATION, location.parse().expect("a URL"));
        response
    }

    /// Gives out tokens for a code, once, to whom it was given for.
    fn token(&self, authorization: &str, sent: &HashMap<String, String>) -> Result<Value, &'static str> {
        let pair = authorization.strip_prefix("Basic ").map(|text| BASE64_STANDARD.decode(text).expect("Base64"));
        let (id, secret) = match pair {
            Some(pair) => {
                let pair = String::from_utf8(pair).expect("text");
                let (id, secret) = pair.split_once(':').expect("a pair");
                (decoded(id), decoded(secret))
            }
            None => (sent["client_id"].clone(), sent["client_secret"].clone()),
        };
        if (id.as_str(), secret.as_str()) != (Issuer::CLIENT, Issuer::SECRET) {
            return Err("invalid_client");
        }
        let asked = self.codes.lock().unwrap().remove(&sent["code"]).ok_or("invalid_grant")?;
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, sent["code_verifier"].as_bytes()));
        let is_right = sent["grant_type"] == "authorization_code"
            && challenge == asked["code_challenge"]
            && sent["redirect_uri"] == asked["redirect_uri"];
        if !is_right {
            return Err("invalid_grant");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let usual = json!({
            "iss": self.url, "aud": Issuer::CLIENT, "exp": now + 300, "iat": now, "nonce": asked["nonce"],
            "sub": "248289761001", "email": "alice@example.com", "email_verified": true,
        });
        let manner = self.manner().clone();
        let token = self.signed(manner.signed, &with(usual, &manner.claims));
        Ok(json!({ "token_type": "Bearer", "access_token": "an-access-token", "id_token": token }))
    }

    fn signed(&self, by: Signed, claims: &Value) -> String {
        let (alg, kid) = match by {
            Signed::Rs256 => ("RS256", "r"),
            Signed::Es256 => ("ES256", "e"),
            Signed::Elsewhere => ("ES256", "new"),
            Signed::Forged => ("ES256", "e"),
            Signed::Hs256 => ("HS256", "e"),
            Signed::None => ("none", "e"),
        };
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({ "alg": alg, "kid": kid, "typ": "JWT" })), part(claims));
        let random = SystemRandom::new();
        let signature = match by {
            Signed::Es256 => self.es256.sign(&random, text.as_bytes()).expect("signed").as_ref().to_vec(),
            Signed::Elsewhere | Signed::Forged => {
                self.other.sign(&random, text.as_bytes()).expect("signed").as_ref().to_vec()
            }
            Signed::Rs256 => {
                let mut signature = vec![0; self.rs256.public_modulus_len()];
                self.rs256.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Signed::Hs256 => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, Issuer::CLIENT.as_bytes());
                hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
            }
            Signed::None => Vec::new(),
        };
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A document with others of these fields, and without those that are null.
fn with(mut document: Value, change: &Value) -> Value {
    let all = document.as_object_mut().expect("an object");
    all.extend(change.as_object().expect("an object").clone());
    all.retain(|_, value| !value.is_null());
    document
}

fn document(value: Value) -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::from(value.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a type"));
    response
}

/// What stands in a form, or a query.
fn form(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two digits")
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}
