//! The relay behind other people's proxies, as the examples in `deploy/` set them up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use relay_tests::body::{full, noise, pipe};
use relay_tests::tools::program;
use relay_tests::world::{connect_tls, try_connect_tls};
use relay_tests::{App, Http, Process, RelayClient, RelayServer, process, within};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::sleep;

const PORT: u16 = 8443;

/// A relay behind a proxy.
struct Behind {
    relay: RelayServer,
    proxy: Process,
    front: SocketAddr,
    ca: PathBuf,
    home: Arc<TempDir>,
}

/// An address of this machine that nobody else in the tests has, so that its port is free.
fn own_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 64 + high % 128, low, COUNT.fetch_add(1, Relaxed)), PORT).into()
}

impl Behind {
    /// Starts a relay and, before it, a proxy with this example, of which `own` makes what fits here: the front's address,
    /// the files of the certificate and of its key, and the home.
    async fn start(
        example: &str,
        command: &str,
        words: &[&str],
        own: impl Fn(String, SocketAddr, &str) -> String,
    ) -> Self {
        let (home, front) = (Arc::new(tempfile::tempdir().unwrap()), own_address());
        let path = |name: &str| home.path().join(name).display().to_string();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let names = vec![RelayServer::DOMAIN.to_owned(), format!("*.{}", RelayServer::DOMAIN)];
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(path("ca.pem"), issuer.pem()).unwrap();
        std::fs::write(path("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(path("both.pem"), leaf.pem() + &key.serialize_pem()).unwrap();

        let (port, network) = (PORT.to_string(), "127.0.0.0/8");
        let words_of_relay = ["--http-mode", "serve", "--public-port", &port, "--trusted-proxy", network];
        let relay = RelayServer::spawn(words_of_relay).await;
        let text = std::fs::read_to_string(format!("{}/../deploy/{example}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let text = text.replace("relay.example.com", RelayServer::DOMAIN);
        let text = text.replace("127.0.0.1:8080", &relay.http.unwrap().to_string());
        std::fs::write(path(example), own(text, front, &home.path().display().to_string())).unwrap();
        let command = program(command).display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("HOME", &path(""))).collect();
        let proxy = Process::spawn_in(home.clone(), &command, words, &[("XDG_DATA_HOME", &path("data"))]).await;
        let ca = home.path().join("ca.pem");
        within("the proxy listens", async {
            while try_connect_tls(front, RelayServer::DOMAIN, &ca, &[b"http/1.1"]).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Self { relay, proxy, front, ca, home }
    }

    async fn nginx() -> Self {
        // What Debian's own nginx.conf has around it.
        let around = |text: String, front: SocketAddr, home: &str| {
            let text = text.replace("listen 443", &format!("listen {front}"));
            let text =
                text.replace(&format!("/etc/letsencrypt/live/{}/fullchain.pem", RelayServer::DOMAIN), "cert.pem");
            let text = text.replace(&format!("/etc/letsencrypt/live/{}/privkey.pem", RelayServer::DOMAIN), "key.pem");
            let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let places: String = kinds.map(|kind| format!("{kind}_temp_path {home}/{kind};\n")).concat();
            format!(
                "daemon off; pid {home}/pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{text}}}\n"
            )
        };
        let words = ["-e", "stderr", "-p", "HOME", "-c", "HOMEnginx.conf"];
        Self::start("nginx.conf", "nginx", &words, around).await
    }

    async fn caddy() -> Self {
        let around = |text: String, front: SocketAddr, home: &str| {
            let text = text.replace(
                &format!("/etc/letsencrypt/live/{}/fullchain.pem", RelayServer::DOMAIN),
                &format!("{home}/cert.pem"),
            );
            let text = text.replace(
                &format!("/etc/letsencrypt/live/{}/privkey.pem", RelayServer::DOMAIN),
                &format!("{home}/key.pem"),
            );
            // Nothing of its own on ports that are not ours.
            let global =
                format!("admin off\nauto_https disable_redirects\nhttps_port {PORT}\ndefault_bind {}", front.ip());
            format!("{{\n{global}\n}}\n{text}")
        };
        let words = ["run", "--adapter", "caddyfile", "--config", "HOMECaddyfile"];
        Self::start("Caddyfile", "caddy", &words, around).await
    }

    async fn haproxy() -> Self {
        let around = |text: String, front: SocketAddr, home: &str| {
            let text = text.replace("bind :443", &format!("bind {front}"));
            text.replace(&format!("/etc/haproxy/{}.pem", RelayServer::DOMAIN), &format!("{home}/both.pem"))
        };
        Self::start("haproxy.cfg", "haproxy", &["-db", "-f", "HOMEhaproxy.cfg"], around).await
    }

    /// What its user would notice: a client gets there, a webhook arrives as it was sent and with its sender's address, what
    /// streams goes on at once, and both ends of a WebSocket.
    async fn serves(self) {
        let (seen, mut came) = mpsc::channel(1);
        let app = App::serve(move |request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                let (events, answer) = pipe();
                let body = body.collect().await.unwrap().to_bytes();
                tokio::spawn(async move {
                    events.send("data: first\n\n").await;
                    seen.send((head, body)).await.unwrap();
                    // Whoever waits for its end waits for ever.
                    pending::<()>().await;
                });
                Response::new(answer)
            }
        })
        .await;
        let token = self.relay.token("me").await;
        let url = format!("https://{}:{PORT}", RelayServer::DOMAIN);
        let upstream = app.upstream().to_string();
        let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json", "--inspect", "off"];
        let words = process::arguments(&url, self.front, &self.ca, &token, &words);
        let client = RelayClient::of(Process::spawn_in(self.home.clone(), "relay", words, &[]).await).await;
        let host = format!("hooks.{}", RelayServer::DOMAIN);
        assert_eq!(client.url(), format!("https://{host}:{PORT}"), "{}", self.proxy.said());

        // Larger than what a proxy keeps in memory, and a path that would be another one if it were put in order.
        let body = noise(3 << 20);
        let request = Request::post(format!("{}/a%2Fb//c/../d?e=%31&f=+", client.url()))
            .header("x-forwarded-for", "203.0.113.9")
            .header("x-forwarded-proto", "gopher")
            .body(full(body.clone()));
        let tls = connect_tls(self.front, &host, &self.ca, &[b"http/1.1"]).await;
        let mut http = Http::one(tls).await;
        http.ready().await;
        let answer = within("an answer", http.request(request.unwrap())).await.unwrap();
        assert_eq!(answer.status(), 200);
        let piece = within("the first event", answer.into_body().frame()).await.unwrap().unwrap();
        assert_eq!(piece.into_data().unwrap(), "data: first\n\n");
        let (head, got) = within("the request", came.recv()).await.unwrap();
        assert!(got == body, "byte for byte");
        assert_eq!(head.uri, "/a%2Fb//c/../d?e=%31&f=+");
        let line = |name: &str| head.headers[name].to_str().unwrap().to_owned();
        assert_eq!(
            (line("x-forwarded-for"), line("x-forwarded-proto")),
            ("127.0.0.1, 127.0.0.1".into(), "https".into())
        );
        assert_eq!(line("x-forwarded-host"), format!("{host}:{PORT}"));
    }
}

#[tokio::test]
async fn nginx_passes_everything_on() {
    Behind::nginx().await.serves().await;
}

#[tokio::test]
async fn caddy_passes_everything_on() {
    Behind::caddy().await.serves().await;
}

#[tokio::test]
async fn haproxy_passes_everything_on() {
    Behind::haproxy().await.serves().await;
}
