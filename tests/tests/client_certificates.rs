//! Tunnels that let in only those who show a client certificate, as those notice it who have one and those who have not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Request, Version};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use relay_protocol::message::{Extra, TunnelSpec};
use relay_server::config::HttpMode;
use relay_tests::body::{empty, full};
use relay_tests::peer::{connect_on, spec};
use relay_tests::process::run;
use relay_tests::world::{Identity, caller, connect_by};
use relay_tests::{Answer, App, Http, Place, Process, RelayClient, RelayServer, World, within};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;

/// Somebody who gives out certificates.
struct Authority(&'static str, CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &'static str) -> Self {
        Self(name, CertifiedIssuer::self_signed(Self::params(name), KeyPair::generate().unwrap()).unwrap())
    }

    /// One that this one has certified.
    fn below(&self, name: &'static str) -> Self {
        Self(name, CertifiedIssuer::signed_by(Self::params(name), KeyPair::generate().unwrap(), &self.1).unwrap())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// A certificate for a caller, which is not as usual.
    fn gives(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = named("a caller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.1).unwrap();
        (vec![certificate.der().clone()], key.into())
    }

    /// A file with its own certificate.
    fn file(&self, directory: &Path) -> PathBuf {
        let file = directory.join(format!("{}.pem", self.0));
        std::fs::write(&file, self.1.pem()).unwrap();
        file
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A relay, an authority, and a tunnel `hooks` that lets in those who have a certificate from it.
struct Scene {
    world: World,
    token: String,
    app: App,
    authority: Authority,
    client: RelayClient,
    directory: tempfile::TempDir,
}

impl Scene {
    async fn start(flags: &[&str]) -> Self {
        let (world, directory) = (World::start().await, tempfile::tempdir().unwrap());
        let (token, app, authority) = (world.token().await, App::recording().await, Authority::new("Callers"));
        let file = authority.file(directory.path());
        let flags = [&["--client-ca", file.to_str().unwrap()], flags].concat();
        let client = client(&world, &token, &app, "hooks", &flags).await;
        Self { world, token, app, authority, client, directory }
    }

    fn post(&self, name: &str) -> Request<relay_tests::body::Body> {
        Request::post(self.world.url(name, "/")).body(full("x")).unwrap()
    }

    /// A connection for this tunnel's host, by somebody who shows that.
    async fn http(&self, name: &str, version: Version, identity: Option<Identity>) -> Http {
        self.http_by(name, &self.caller(version, identity)).await
    }

    fn caller(&self, version: Version, identity: Option<Identity>) -> Arc<ClientConfig> {
        let protocol: &[u8] = if version == Version::HTTP_2 { b"h2" } else { b"http/1.1" };
        caller(self.world.ca_file(), &[protocol], identity)
    }

    async fn http_by(&self, name: &str, caller: &Arc<ClientConfig>) -> Http {
        let tls = self.world.tls_by(caller, &self.world.host(name)).await;
        if tls.get_ref().1.alpn_protocol() == Some(b"h2") { Http::two(tls).await } else { Http::one(tls).await }
    }

    async fn ask(&self, version: Version, identity: Option<Identity>) -> Answer {
        self.http("hooks", version, identity).await.answer(self.post("hooks")).await
    }
}

async fn client(world: &World, token: &str, app: &App, name: &str, flags: &[&str]) -> RelayClient {
    let target = app.addr().to_string();
    let words = [&["http", &target, "--subdomain", name, "--output", "json"], flags].concat();
    RelayClient::spawn(world.arguments(token, &words)).await
}

/// The relay lets the requests under way end, and takes no more on it.
async fn is_over(http: &Http) {
    within("the end of a connection", async {
        while !http.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn is_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.code(), answer.error()), (status, Some(code)), "{answer:?}");
}

#[tokio::test]
async fn who_shows_a_certificate_of_the_authority_comes_in_and_the_service_is_told_which() {
    let mut scene = Scene::start(&[]).await;
    let between = scene.authority.below("Callers of a department");
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let direct = scene.authority.gives(|_| {});
        let (mut chain, key) = between.gives(|params| params.extended_key_usages.clear());
        chain.push(between.1.der().clone());
        for identity in [direct, (chain, key)] {
            let own = identity.0[0].clone();
            let mut http = scene.http("hooks", version, Some(identity)).await;
            for _ in 0..2 {
                let forged = Request::post(scene.world.url("hooks", "/")).header("client-cert", ":Zm9yZ2Vk:");
                let forged = forged.header("client-cert-chain", ":Zm9yZ2Vk:");
                assert_eq!(http.answer(forged.body(full("x")).unwrap()).await.code(), 200);
                let seen = scene.app.last();
                let told: Vec<_> = seen.headers.get_all("client-cert").iter().collect();
                assert_eq!(told, [format!(":{}:", BASE64_STANDARD.encode(&own)).as_str()]);
                assert!(!seen.headers.contains_key("client-cert-chain"));
            }
        }
    }

    let before = scene.app.requests();
    let a = &scene.authority;
    let other = Authority::new("Callers");
    for (identity, why) in [
        (None, "it has shown no client certificate"),
        (Some(other.gives(|_| {})), "its client certificate is not from an authority of this tunnel's"),
        (Some(between.gives(|_| {})), "its client certificate is not from an authority of this tunnel's"),
        (Some(a.gives(|params| params.not_after = date_time_ymd(2020, 1, 1))), "its client certificate has expired"),
        (
            Some(a.gives(|params| params.not_before = date_time_ymd(3000, 1, 1))),
            "its client certificate is not valid yet",
        ),
        (
            Some(a.gives(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
            "its certificate is not for clients",
        ),
    ] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let identity = identity.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
            let mut http = scene.http("hooks", version, identity).await;
            let answer = http.answer(scene.post("hooks")).await;
            is_refused(&answer, 403, "certificate-required");
            // Nothing else can be shown on it, so that whoever has something to show comes back on another.
            is_over(&http).await;
            assert!(answer.text().contains(why), "{why}: {answer:?}");
        }
    }
    assert_eq!(scene.app.requests(), before);
    let told = scene.client.process.event("requests.withheld").await;
    assert_eq!(
        (&told["error"], &told["reason"]),
        (&"certificate-required".into(), &"it has shown no client certificate".into())
    );
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_certificate_is_for_the_host_that_it_was_shown_for() {
    let scene = Scene::start(&[]).await;
    let open = client(&scene.world, &scene.token, &scene.app, "open", &[]).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        // Nothing was asked for there, also where there is something to show.
        let mut http = scene.http("open", version, Some(scene.authority.gives(|_| {}))).await;
        assert_eq!(http.answer(scene.post("open")).await.code(), 200);
        let misdirected = http.answer(scene.post("hooks")).await;
        is_refused(&misdirected, 421, "misdirected");
        if version == Version::HTTP_2 {
            assert_eq!(http.answer(scene.post("open")).await.code(), 200, "it is as good as ever for its own host");
        }
        // The other way round nothing is asked for, and nothing told.
        let mut http = scene.http("hooks", version, Some(scene.authority.gives(|_| {}))).await;
        assert_eq!(http.answer(scene.post("hooks")).await.code(), 200);
        assert_eq!(http.answer(scene.post("open")).await.code(), 200);
        assert!(!scene.app.last().headers.contains_key("client-cert"));
        assert_eq!(http.answer(scene.post("hooks")).await.code(), 200);
    }
    // A tunnel with the same authority is another host all the same.
    let file = scene.authority.file(scene.directory.path());
    let flags = ["--client-ca", file.to_str().unwrap()];
    let twin = client(&scene.world, &scene.token, &scene.app, "twin", &flags).await;
    let mut http = scene.http("twin", Version::HTTP_2, Some(scene.authority.gives(|_| {}))).await;
    assert_eq!(http.answer(scene.post("twin")).await.code(), 200);
    is_refused(&http.answer(scene.post("hooks")).await, 421, "misdirected");
    // A connection of HTTP/1.1 is of no more use then.
    let host = scene.world.host("hooks");
    let mut wire = scene.world.raw(&scene.world.host("open")).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let answer = wire.message().await.unwrap();
    assert_eq!((answer.status(), answer.values("connection")), (421, vec!["close"]), "{answer:?}");
    drop((open, twin));
    scene.world.shutdown().await;
}

/// Neither a session that was begun when nobody was asked, nor one that the last authority's certificate has begun, nor a
/// connection that is still there, lets anybody in.
#[tokio::test]
async fn nothing_that_was_shown_before_counts_once_the_rules_are_others() {
    let world = World::start().await;
    let (token, app, directory) = (world.token().await, App::recording().await, Arc::new(tempfile::tempdir().unwrap()));
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let write = |authority: Option<&Authority>| {
        let access = authority.map(|authority| {
            let file = authority.file(directory.path());
            format!("[tunnels.web.access]\nclient_ca = '{}'\n", file.file_name().unwrap().to_str().unwrap())
        });
        let tunnel = format!("[tunnels.web]\nupstream = '{}'\nsubdomain = 'hooks'\n", app.addr());
        std::fs::write(directory.path().join("relay.toml"), tunnel + &access.unwrap_or_default()).unwrap();
    };
    write(None);
    let words = world.arguments(&token, &["start", "--output", "json"]);
    let mut client = RelayClient::of(Process::spawn_in(directory.clone(), "relay", words, &[]).await).await;
    let by = |identity: Identity| caller(world.ca_file(), &[b"http/1.1"], Some(identity));
    let (of_first, of_second) = (by(first.gives(|_| {})), by(second.gives(|_| {})));
    // What comes on a connection, and whether that goes on with an earlier session.
    let connect = async |caller: &Arc<ClientConfig>| {
        let tls = world.tls_by(caller, &world.host("hooks")).await;
        let resumes = tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        (Http::one(tls).await, resumes)
    };
    let get = || Request::get(world.url("hooks", "/")).body(empty()).unwrap();

    let (mut before, _) = connect(&of_first).await;
    assert_eq!(before.answer(get()).await.code(), 200);
    let (mut again, resumes) = connect(&of_first).await;
    assert!(resumes, "without a rule sessions are resumed");
    assert_eq!(again.answer(get()).await.code(), 200);

    write(Some(&first));
    client.process.event("tunnel.ready").await;
    is_refused(&before.answer(get()).await, 421, "misdirected");
    let mut kept = Vec::new();
    for _ in 0..2 {
        let (mut http, resumes) = connect(&of_first).await;
        assert!(!resumes);
        assert_eq!(http.answer(get()).await.code(), 200);
        kept.push(http);
    }
    is_refused(&connect(&of_second).await.0.answer(get()).await, 403, "certificate-required");

    write(Some(&second));
    client.process.event("tunnel.ready").await;
    for mut http in kept {
        is_refused(&http.answer(get()).await, 403, "certificate-required");
    }
    is_refused(&connect(&of_first).await.0.answer(get()).await, 403, "certificate-required");
    assert_eq!(connect(&of_second).await.0.answer(get()).await.code(), 200);
    world.shutdown().await;
}

#[tokio::test]
async fn an_inbox_asks_for_certificates_while_its_client_is_away() {
    let mut scene = Scene::start(&["--inbox"]).await;
    scene.client.process.terminate().await;
    for restarted in [false, true] {
        if restarted {
            scene.world.stop().await;
            scene.world.start_again().await;
        }
        is_refused(&scene.ask(Version::HTTP_2, None).await, 403, "certificate-required");
        let own = scene.authority.gives(|_| {});
        assert_eq!(scene.ask(Version::HTTP_2, Some(own)).await.code(), 202, "restarted {restarted}");
    }
    scene.world.shutdown().await;
}

/// They are kept for as long as the connection is there.
#[tokio::test]
async fn nobody_can_show_more_than_a_few_certificates() {
    let scene = Scene::start(&[]).await;
    let long = |params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::OrganizationName, "a".repeat(20_000));
    };
    let with = |count: usize| {
        let (mut chain, key) = scene.authority.gives(|_| {});
        chain.resize(count, scene.authority.1.der().clone());
        (chain, key)
    };
    for (identity, passes) in [(with(8), true), (with(9), false), (scene.authority.gives(long), false)] {
        let by = scene.caller(Version::HTTP_2, Some(identity));
        let tcp = TcpStream::connect(scene.world.https()).await.unwrap();
        let name = scene.world.host("hooks");
        let name = name.split(':').next().unwrap().to_owned().try_into().unwrap();
        // With TLS 1.3 a client hears of it once its own side is done.
        let answer = match TlsConnector::from(by).connect(name, tcp).await {
            Ok(tls) => Http::two(tls).await.try_answer(scene.post("hooks")).await,
            Err(_) => None,
        };
        assert_eq!(answer.map(|answer| answer.code()), passes.then_some(200));
    }
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_handshake_that_names_no_host_is_told_so() {
    let scene = Scene::start(&[]).await;
    let mut by = (*scene.caller(Version::HTTP_2, Some(scene.authority.gives(|_| {})))).clone();
    by.enable_sni = false;
    let mut http = scene.http_by("hooks", &Arc::new(by)).await;
    let answer = http.answer(scene.post("hooks")).await;
    is_refused(&answer, 403, "certificate-required");
    assert!(answer.text().contains("has not named the host (SNI)"), "{answer:?}");
    scene.world.shutdown().await;
}

/// With the commands that the page has. Without their extensions it would be one of version 1, which nothing here reads.
#[tokio::test]
async fn a_certificate_that_openssl_has_made_comes_in() {
    let scene = Scene::start(&[]).await;
    let directory = scene.directory.path();
    std::fs::write(directory.join("callers.pem"), scene.authority.1.pem()).unwrap();
    std::fs::write(directory.join("callers.key"), scene.authority.1.key().serialize_pem()).unwrap();
    let page = include_str!("../../docs/access.md");
    let commands = page.split("```\n").find(|block| block.starts_with("openssl req")).unwrap();
    let made = Command::new("sh").args(["-ec", commands]).current_dir(directory).output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let chain = CertificateDer::pem_file_iter(directory.join("caller.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(directory.join("caller.key")).unwrap();
    assert_eq!(scene.ask(Version::HTTP_2, Some((chain, key))).await.code(), 200);
    scene.world.shutdown().await;
}

/// The handshake waits for the client, which says what is to be asked for.
#[tokio::test]
async fn who_calls_while_another_process_takes_over_is_asked_as_before() {
    let (mut place, directory, app) = (Place::new().await, tempfile::tempdir().unwrap(), App::echo().await);
    let authority = Authority::new("Callers");
    let file = authority.file(directory.path());
    let client = place.client(&app, "hooks", &["--inspect", "off", "--client-ca", file.to_str().unwrap()]).await;
    client.process.signal(Signal::STOP);
    let next = place.relay.successor(&[]).await;
    let _old = std::mem::replace(&mut place.relay, next);
    let by = caller(&place.relay.ca_file(), &[b"h2"], Some(authority.gives(|_| {})));
    let host = format!("hooks.{}", RelayServer::DOMAIN);
    let asked = async {
        let mut http = Http::two(connect_by(&by, place.relay.https, &host).await).await;
        let request = Request::post("/").body(full("x")).unwrap();
        http.answer(place.request("hooks", request)).await
    };
    let (answer, ()) = tokio::join!(asked, async { client.process.signal(Signal::CONT) });
    assert_eq!(answer.code(), 200, "{answer:?}");
}

/// Where the handshakes for a tunnel are not the relay's, its owner is told, and nobody is let in by mistake.
#[tokio::test]
async fn a_relay_that_has_not_the_handshakes_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("Callers");
    let file = authority.file(directory.path());
    let world = World::with(|config| config.path_mode = true).await;
    let token = world.token().await;
    let words = ["http", "1", "--subdomain", "hooks", "--client-ca", file.to_str().unwrap()];
    let ended = run("relay", world.arguments(&token, &words)).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("its tunnels share one host"), "{ended:?}");
    world.shutdown().await;

    let world = World::with(|config| (config.https, config.http_mode) = (None, HttpMode::Serve)).await;
    let certificate = BASE64_STANDARD.encode(authority.1.der());
    let extra = Extra { tag: 7, value: format!("{{\"client_ca\":[\"{certificate}\"]}}").into() };
    let mut socket = connect_on(world.plain().await, &world.token().await).await;
    let bound = socket.hello(vec![TunnelSpec { extra: vec![extra], ..spec(1, "hooks") }]).await;
    let refusal = bound[0].result.as_ref().expect_err("a refusal");
    assert_eq!(refusal.code, "not-allowed", "{refusal:?}");
    assert!(refusal.message.contains("a proxy in front of it has the handshakes"), "{refusal:?}");
    world.shutdown().await;
}

#[tokio::test]
async fn a_plain_connection_shows_nothing() {
    let world = World::with(|config| config.http_mode = HttpMode::Serve).await;
    let (token, app, directory) = (world.token().await, App::recording().await, tempfile::tempdir().unwrap());
    let file = Authority::new("Callers").file(directory.path());
    let _client = client(&world, &token, &app, "hooks", &["--client-ca", file.to_str().unwrap()]).await;
    let mut wire = world.plain().await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {}\r\nClient-Cert: :Zm9yZ2Vk:\r\n\r\n", world.host("hooks"))).await;
    assert_eq!(wire.message().await.unwrap().status(), 403);
    assert_eq!(app.requests(), 0);
    world.shutdown().await;
}

#[tokio::test]
async fn a_file_without_an_authority_is_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("callers.pem");
    for (text, said) in [
        ("", "it is empty"),
        ("no certificate", "it has no certificate of an authority in PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "it has no certificate of an authority in PEM",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let words = ["http", "1", "--relay", "https://relay.example", "--client-ca", file.to_str().unwrap()];
        let ended = run("relay", words).await;
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains(said) && ended.stderr.contains("callers.pem"), "{ended:?}");
    }
}
