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
use relay_tests::world::{over, try_connect_tls};
use relay_tests::{App, Http, Process, RelayClient, RelayServer, Wire, process, within};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

const PORT: u16 = 8443;

/// Where plain HTTP is, where it is.
const PLAIN_PORT: u16 = 8080;

/// Who sends. Proxies and clients are elsewhere on this machine.
const SENDER: Ipv4Addr = Ipv4Addr::new(127, 200, 0, 1);

/// A connection from an address of this machine.
async fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let tcp = within("a connection", socket.connect(to)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// What a proxy does.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// It has the certificate, and speaks HTTP with both sides.
    Http,
    /// It passes on bytes, and says whose they are.
    Bytes,
}

/// A relay behind a proxy.
struct Behind {
    kind: Kind,
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

/// nginx in the foreground, and in one process: workers would go on when the one that has started them is killed.
const ALONE: &str = "daemon off; master_process off;";

impl Behind {
    /// Starts a relay and, before it, a proxy with this example, of which `own` makes what fits here: the front's address,
    /// the files of the certificate and of its key, and the home.
    async fn start(
        kind: Kind,
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

        let port = PORT.to_string();
        let of_both = ["--public-port", &port, "--trusted-proxy", "127.0.0.1"];
        let of_kind = match kind {
            Kind::Http => &["--http-mode", "serve"][..],
            Kind::Bytes => &["--proxy-protocol"],
        };
        let relay = RelayServer::spawn([&of_both[..], of_kind].concat()).await;
        let text = std::fs::read_to_string(format!("{}/../deploy/{example}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let text = text.replace("relay.example.com", RelayServer::DOMAIN);
        let text = text.replace("127.0.0.1:8080", &relay.http.unwrap().to_string());
        let text = text.replace("127.0.0.1:8443", &relay.https.to_string());
        std::fs::write(path(example), own(text, front, &home.path().display().to_string())).unwrap();
        let command = program(command).display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("HOME", &path(""))).collect();
        let proxy = Process::spawn_in(home.clone(), &command, words, &[("XDG_DATA_HOME", &path("data"))]).await;
        let ca = match kind {
            Kind::Http => home.path().join("ca.pem"),
            Kind::Bytes => relay.ca_file(),
        };
        within("the proxy listens", async {
            while try_connect_tls(front, RelayServer::DOMAIN, &ca, &[b"http/1.1"]).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Self { kind, relay, proxy, front, ca, home }
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
                "{ALONE} pid {home}/pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{text}}}\n"
            )
        };
        let words = ["-e", "stderr", "-p", "HOME", "-c", "HOMEnginx.conf"];
        Self::start(Kind::Http, "nginx.conf", "nginx", &words, around).await
    }

    async fn nginx_with_bytes() -> Self {
        let around = |text: String, front: SocketAddr, home: &str| {
            let text = text.replace("listen 443", &format!("listen {front}"));
            let text = text.replace("listen 80", &format!("listen {}:{PLAIN_PORT}", front.ip()));
            let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
            format!("load_module {module};\n{ALONE} pid {home}/pid; error_log stderr;\nevents {{}}\n{text}\n")
        };
        let words = ["-e", "stderr", "-p", "HOME", "-c", "HOMEnginx-passthrough.conf"];
        Self::start(Kind::Bytes, "nginx-passthrough.conf", "nginx", &words, around).await
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
        Self::start(Kind::Http, "Caddyfile", "caddy", &words, around).await
    }

    async fn haproxy() -> Self {
        let around = |text: String, front: SocketAddr, home: &str| {
            let text = text.replace("bind :443", &format!("bind {front}"));
            text.replace(&format!("/etc/haproxy/{}.pem", RelayServer::DOMAIN), &format!("{home}/both.pem"))
        };
        Self::start(Kind::Http, "haproxy.cfg", "haproxy", &["-db", "-f", "HOMEhaproxy.cfg"], around).await
    }

    async fn haproxy_with_bytes() -> Self {
        let around = |text: String, front: SocketAddr, _: &str| {
            let text = text.replace("bind :443", &format!("bind {front}"));
            text.replace("bind :80", &format!("bind {}:{PLAIN_PORT}", front.ip()))
        };
        let words = ["-db", "-f", "HOMEhaproxy-passthrough.cfg"];
        Self::start(Kind::Bytes, "haproxy-passthrough.cfg", "haproxy", &words, around).await
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
        let tcp = connect_from(SENDER, self.front).await;
        let tls = within("TLS", over(tcp, &host, &self.ca, &[b"http/1.1"])).await.unwrap();
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
        let from = match self.kind {
            Kind::Http => format!("{SENDER}, 127.0.0.1"),
            Kind::Bytes => SENDER.to_string(),
        };
        assert_eq!((line("x-forwarded-for"), line("x-forwarded-proto")), (from, "https".into()));
        assert_eq!(line("x-forwarded-host"), format!("{host}:{PORT}"));
        if self.kind == Kind::Bytes {
            let mut plain = Wire::new(connect_from(SENDER, (self.front.ip(), PLAIN_PORT).into()).await);
            plain.send(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let answer = plain.message().await.unwrap();
            assert_eq!(answer.values("location"), [format!("{}/a", client.url())], "{answer:?}");
        }
    }
}

#[tokio::test]
async fn nginx_passes_everything_on() {
    Behind::nginx().await.serves().await;
}

#[tokio::test]
async fn nginx_passes_bytes_on_and_says_whose_they_are() {
    Behind::nginx_with_bytes().await.serves().await;
}

#[tokio::test]
async fn haproxy_passes_bytes_on_and_says_whose_they_are() {
    Behind::haproxy_with_bytes().await.serves().await;
}

#[tokio::test]
async fn caddy_passes_everything_on() {
    Behind::caddy().await.serves().await;
}

#[tokio::test]
async fn haproxy_passes_everything_on() {
    Behind::haproxy().await.serves().await;
}

/// As docs/path-mode.md has it, but that Caddy is its own authority: one name, and nothing to renew by hand.
#[tokio::test]
async fn caddy_and_one_name_are_all_that_paths_need() {
    let page = include_str!("../../docs/path-mode.md");
    let (_, block) = page.split_once("```\nrelay.example.com {").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let (home, front, port) = (Arc::new(tempfile::tempdir().unwrap()), own_address(), PORT.to_string());
    let words = ["--path-mode", "--http-mode", "serve", "--public-port", &port, "--trusted-proxy", "127.0.0.1"];
    let relay = RelayServer::spawn(words).await;
    let block = block.replace("127.0.0.1:8080", &relay.http.unwrap().to_string());
    let global = format!(
        "{{\nadmin off\nauto_https disable_redirects\nhttps_port {PORT}\ndefault_bind {}\nlocal_certs\nskip_install_trust\n}}",
        front.ip()
    );
    let config = home.path().join("Caddyfile").display().to_string();
    std::fs::write(&config, format!("{global}\n{} {{{block}", RelayServer::DOMAIN)).unwrap();
    let data = home.path().join("data");
    let words = ["run", "--adapter", "caddyfile", "--config", &config];
    let command = program("caddy").display().to_string();
    let _proxy =
        Process::spawn_in(home.clone(), &command, words, &[("XDG_DATA_HOME", &data.display().to_string())]).await;
    let ca = data.join("caddy/pki/authorities/local/root.crt");
    within("Caddy has a certificate", async {
        while !ca.exists() || try_connect_tls(front, RelayServer::DOMAIN, &ca, &[b"http/1.1"]).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    let app = App::recording().await;
    let (url, upstream) = (format!("https://{}:{PORT}", RelayServer::DOMAIN), app.upstream().to_string());
    let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json", "--inspect", "off"];
    let words = process::arguments(&url, front, &ca, &relay.token("me").await, &words);
    let client = RelayClient::of(Process::spawn_in(home.clone(), "relay", words, &[]).await).await;
    assert_eq!(client.url(), format!("{url}/t/hooks"));
    let tcp = connect_from(SENDER, front).await;
    let tls = within("TLS", over(tcp, RelayServer::DOMAIN, &ca, &[b"h2"])).await.unwrap();
    let request = Request::post(format!("{}/a%2Fb//c/../d?e", client.url())).header("x-forwarded-prefix", "/forged");
    let answer = Http::two(tls).await.answer(request.body(full("x")).unwrap()).await;
    assert_eq!((answer.code(), answer.header("content-security-policy")), (200, "sandbox"));
    let seen = app.only();
    assert_eq!((seen.target.as_str(), seen.header("x-forwarded-prefix")), ("/a%2Fb//c/../d?e", "/t/hooks"));
    assert_eq!(seen.header("x-forwarded-for"), format!("{SENDER}, 127.0.0.1"));
}

/// What a relay makes of the header that a proxy begins with.
mod header {
    use std::time::Duration;

    use relay_server::config::{Config, HttpMode};
    use relay_tests::{Answer, World};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// The only address that is trusted.
    const PROXY: Ipv4Addr = Ipv4Addr::new(127, 200, 0, 2);

    async fn behind_proxies(change: impl FnOnce(&mut Config)) -> World {
        World::with(|config| {
            config.trusted_proxies = vec![PROXY.to_string().parse().unwrap()];
            (config.proxy_protocol, config.http_mode) = (true, HttpMode::Serve);
            change(config);
        })
        .await
    }

    fn text(source: &str) -> Vec<u8> {
        format!("PROXY TCP4 {source} 192.0.2.1 51234 443\r\n").into_bytes()
    }

    /// Version 2, and what it says of the sender's TLS.
    fn binary(source: [u8; 4], extension: &[u8]) -> Vec<u8> {
        let length = u8::try_from(12 + extension.len()).unwrap();
        let begin = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"[..], &[length]].concat();
        [&begin, &source[..], &[192, 0, 2, 1, 200, 34, 1, 187], extension].concat()
    }

    /// A connection on which a proxy has sent this, in two pieces.
    async fn passed_on(to: SocketAddr, header: &[u8]) -> TcpStream {
        let mut tcp = connect_from(PROXY, to).await;
        let (begin, end) = header.split_at(header.len() / 2);
        for piece in [begin, end] {
            tcp.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        tcp
    }

    /// A request by somebody who claims to come from elsewhere.
    async fn ask(http: &mut Http, world: &World, name: &str) -> Answer {
        let request = Request::get(world.url(name, "/")).header("x-forwarded-for", "198.51.100.1");
        http.answer(request.header("x-forwarded-proto", "gopher").body(full("")).unwrap()).await
    }

    #[tokio::test]
    async fn of_a_trusted_proxy_says_who_sends_and_nobody_else_does() {
        let world = behind_proxies(|_| {}).await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let tls = [0x20, 0, 5, 1, 0, 0, 0, 0];
        for (header, from, proto) in [
            (text("203.0.113.9"), "203.0.113.9", "http"),
            (binary([203, 0, 113, 9], b""), "203.0.113.9", "http"),
            // The proxy has spoken TLS, and says so.
            (binary([203, 0, 113, 9], &tls), "203.0.113.9", "https"),
            // It says nothing of anybody.
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.200.0.2", "http"),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), "127.200.0.2", "http"),
        ] {
            let seen = || {
                let seen = app.last();
                (seen.header("x-forwarded-for").to_owned(), seen.header("x-forwarded-proto").to_owned())
            };
            let mut plain = Http::one(passed_on(world.http(), &header).await).await;
            assert_eq!(ask(&mut plain, &world, tunnel.name()).await.code(), 200);
            assert_eq!(seen(), (from.to_owned(), proto.to_owned()), "{header:?}");

            let host = world.host(tunnel.name());
            for protocol in ["http/1.1", "h2"] {
                let tcp = passed_on(world.https(), &header).await;
                let tls = within("TLS", over(tcp, &host, world.ca_file(), &[protocol.as_bytes()])).await.unwrap();
                let mut http = if protocol == "h2" { Http::two(tls).await } else { Http::one(tls).await };
                assert_eq!(ask(&mut http, &world, tunnel.name()).await.code(), 200);
                assert_eq!(seen(), (from.to_owned(), "https".to_owned()), "{header:?}");
            }
        }
    }

    /// A proxy behind another one, which speaks HTTP.
    #[tokio::test]
    async fn may_name_a_proxy_that_is_trusted_too() {
        let world = behind_proxies(|config| config.trusted_proxies.push("203.0.113.0/24".parse().unwrap())).await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let mut plain = Http::one(passed_on(world.http(), &text("203.0.113.9")).await).await;
        assert_eq!(ask(&mut plain, &world, tunnel.name()).await.code(), 200);
        assert_eq!(app.only().header("x-forwarded-for"), "198.51.100.1, 203.0.113.9");
    }

    #[tokio::test]
    async fn is_required_of_a_trusted_proxy() {
        let world = behind_proxies(|config| config.limits.handshake = Duration::from_secs(1)).await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", world.host(tunnel.name()));
        let cut = &text("203.0.113.9")[..20];
        // Where nothing more comes, it is waited for as long as for a handshake.
        for sent in [request.as_bytes(), b"PROXY TCP4 x y 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0", b"", cut] {
            for to in [world.http(), world.https()] {
                let mut wire = Wire::new(passed_on(to, sent).await);
                let got = wire.rest().await.unwrap_or_else(|(got, _)| got);
                assert!(got.is_empty(), "{sent:?} is answered with {got:?}");
            }
        }
        let host = world.host(tunnel.name());
        let tcp = connect_from(PROXY, world.https()).await;
        within("a refusal", over(tcp, &host, world.ca_file(), &[b"http/1.1"])).await.unwrap_err();
        assert!(app.seen().is_empty(), "{:?}", app.seen());
    }

    #[tokio::test]
    async fn of_anybody_else_is_not_believed() {
        let world = behind_proxies(|_| {}).await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", world.host(tunnel.name()));
        for header in [text("203.0.113.9"), binary([203, 0, 113, 9], b"")] {
            let mut wire = Wire::new(connect_from(SENDER, world.http()).await);
            wire.send([&header[..], request.as_bytes()].concat()).await;
            let got = wire.rest().await.unwrap_or_else(|(got, _)| got);
            assert!(got.is_empty() || got.starts_with(b"HTTP/1.1 400"), "{got:?}");
        }
        assert!(app.seen().is_empty(), "{:?}", app.seen());
        // Without one they are who they are.
        let mut plain = Http::one(connect_from(SENDER, world.http()).await).await;
        assert_eq!(ask(&mut plain, &world, tunnel.name()).await.code(), 200);
        assert_eq!(app.only().header("x-forwarded-for"), SENDER.to_string());
    }

    /// Whoever opens many connections through a balancer takes none from those who come the same way.
    #[tokio::test]
    async fn counts_connections_for_their_sender() {
        let world = behind_proxies(|config| config.limits.connections_per_address = 2).await;
        let mut held = Vec::new();
        let mut answered = Vec::new();
        for from in ["203.0.113.7", "203.0.113.7", "203.0.113.7", "203.0.113.8"] {
            let mut wire = Wire::new(passed_on(world.http(), &text(from)).await);
            let _ = wire.try_send("GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n").await;
            answered.push(wire.message().await.is_some());
            held.push(wire);
        }
        assert_eq!(answered, [true, true, false, true]);
        // A place is free again once its connection has ended.
        drop(held);
        let again = async {
            loop {
                let mut wire = Wire::new(passed_on(world.http(), &text("203.0.113.7")).await);
                let _ = wire.try_send("GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n").await;
                if wire.message().await.is_some() {
                    break;
                }
            }
        };
        within("a place", again).await;
    }
}
