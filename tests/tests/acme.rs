//! Certificates that the relay gets by itself, from Pebble, and the name server that proves whose the domain is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use relay_tests::pebble::{Front, Settings};
use relay_tests::process::run;
use relay_tests::process::{arguments, command};
use relay_tests::world::{connect_tls, try_connect_tls};
use relay_tests::{App, Http, Network, Parent, Pebble, RelayClient, RelayServer, body, within};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

const DOMAIN: &str = "relay.example.com";

/// What a user types, with this authority, on the near end of the cable: HTTPS on 443, and DNS on 53 by default. There is
/// no zone above, as in a network of one's own.
fn flags(network: &Network, directory: &str, ca: &Path) -> Vec<String> {
    let https = format!("{}:443", network.here());
    let ca = ca.display().to_string();
    let all = [
        "--domain",
        DOMAIN,
        "--https",
        &https,
        "--acme",
        "you@example.com",
        "--acme-directory",
        directory,
        "--acme-ca",
        &ca,
        "--resolver",
        "off",
    ];
    all.map(str::to_owned).to_vec()
}

/// As [`flags`], where the world is asked.
fn flags_below(parent: &Parent, network: &Network, pebble: &Pebble) -> Vec<String> {
    let mut flags = flags(network, &pebble.directory(), &pebble.ca_file());
    flags.pop();
    flags.push(parent.address().ip().to_string());
    flags
}

async fn relay(network: &Network, pebble: &Pebble, home: Arc<TempDir>) -> RelayServer {
    RelayServer::spawn_in(home, flags(network, &pebble.directory(), &pebble.ca_file())).await
}

fn home() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

const NEW: &str = "a new certificate is in use";

/// The certificate that a client sees who asks for this name and trusts these roots.
async fn shown(relay: &RelayServer, name: &str, roots: &Path) -> Vec<u8> {
    let tls = connect_tls(relay.https, name, roots, &[b"http/1.1"]).await;
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn dig(relay: &SocketAddr, words: &str) -> String {
    let mut dig = command("/usr/bin/dig", Path::new("/")).await;
    let at = [format!("@{}", relay.ip()), "-p".to_owned(), relay.port().to_string(), "+norecurse".to_owned()];
    let output: Output = within("dig", dig.args(at).args(words.split(' ')).output()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_relay_gets_its_certificate_and_keeps_it_over_a_restart() {
    let network = Network::new();
    let mut pebble = Pebble::start(&network, Settings::default()).await;
    let roots = pebble.root_file().await;
    let mut relay = relay(&network, &pebble, home()).await;
    relay.process.error_line(NEW).await;
    assert_eq!(relay.get_admin("/readyz").await.text(), "ready\n");
    let metrics = relay.get_admin("/metrics").await.text().to_owned();
    assert!(metrics.contains("relay_certificates_obtained_total 1\n"), "{metrics}");
    assert!(!metrics.contains("relay_certificate_expires_seconds 0\n"), "{metrics}");

    // A tunnel below the domain, which only the wildcard is for.
    let app = App::echo().await;
    let token = relay.token("me").await;
    let upstream = app.upstream().to_string();
    let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json"];
    let client = RelayClient::spawn(arguments(&relay.url, relay.https, &roots, &token, &words)).await;
    assert_eq!(client.url(), "https://hooks.relay.example.com");
    let tls = connect_tls(relay.https, "hooks.relay.example.com", &roots, &[b"http/1.1"]).await;
    let request = Request::post(format!("{}/a", client.url())).body(body::full("hello")).unwrap();
    let answer = Http::one(tls).await.answer(request).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));

    // What is kept is for nobody else to read.
    let kept = relay.data_dir().join("acme");
    for entry in [&kept, &kept.join("certificate.pem")] {
        let mode = std::fs::metadata(entry).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", entry.display());
    }
    // The challenges are gone.
    let dns = SocketAddr::from((network.here(), 53));
    assert_eq!(dig(&dns, "+short TXT _acme-challenge.relay.example.com").await, "");

    // The authority is gone, and so is the process; the certificate is not.
    let before = shown(&relay, DOMAIN, &roots).await;
    pebble.process.kill().await;
    let home = relay.process.home().clone();
    assert_eq!(relay.process.terminate().await.code(), 0);
    let relay = self::relay(&network, &pebble, home).await;
    assert_eq!(shown(&relay, "other.relay.example.com", &roots).await, before);
    assert_eq!(relay.get_admin("/readyz").await.text(), "ready\n");
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_stays_where_that_fails() {
    let network = Network::new();
    let settings = Settings { validity: Duration::from_secs(27), ..Settings::default() };
    let mut pebble = Pebble::start(&network, settings).await;
    let roots = pebble.root_file().await;
    let mut relay = relay(&network, &pebble, home()).await;
    relay.process.error_line(NEW).await;
    let first = shown(&relay, DOMAIN, &roots).await;
    let mut open = Http::one(connect_tls(relay.https, DOMAIN, &roots, &[b"http/1.1"]).await).await;
    let request = || Request::get("https://relay.example.com/").body(body::empty()).unwrap();
    let before = open.answer(request()).await.status;

    relay.process.error_line(NEW).await;
    let second = shown(&relay, DOMAIN, &roots).await;
    assert_ne!(first, second);
    // Who was connected has noticed nothing.
    assert_eq!(open.answer(request()).await.status, before);

    pebble.process.kill().await;
    let complaint = relay.process.error_line("no certificate").await;
    assert!(complaint.contains("cannot connect to"), "{complaint}");
    assert_eq!(shown(&relay, DOMAIN, &roots).await, second, "the old one stays");
    let ready = relay.get_admin("/readyz").await;
    assert!(ready.status == 200 && ready.text().contains("there is no next certificate yet"), "{}", ready.text());
    assert!(relay.get_admin("/metrics").await.text().contains("relay_certificate_failures_total 1\n"));
}

#[tokio::test]
async fn a_certificate_is_renewed_when_the_authority_says_so() {
    let network = Network::new();
    let settings = Settings { validity: Duration::from_secs(60), ..Settings::default() };
    let pebble = Pebble::start(&network, settings).await;
    // It has passed: renewal is due as soon as that does not go on for ever, which is after a third of a minute.
    let front = Front::start(&network, &pebble, ["2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"]).await;
    let mut relay = RelayServer::spawn(flags(&network, front.directory(), &pebble.ca_file())).await;
    relay.process.error_line(NEW).await;
    assert_eq!(front.replaced(), [""; 0], "the first one");
    relay.process.error_line(NEW).await;
    // Key identifier and serial number of the first one (RFC 9773, section 4.1).
    let [replaced] = &front.replaced()[..] else { panic!("{:?}", front.replaced()) };
    assert!(replaced.split_once('.').is_some_and(|(key, serial)| key.len() > 20 && serial.len() > 8), "{replaced}");
}

#[tokio::test]
async fn an_order_goes_on_after_a_crash() {
    let network = Network::new();
    let pebble = Pebble::start(&network, Settings { dawdle: 6, ..Settings::default() }).await;
    let mut relay = relay(&network, &pebble, home()).await;
    let order = |relay: &RelayServer| -> Option<PathBuf> {
        let own = std::fs::read_dir(relay.data_dir().join("acme")).ok()?;
        own.flatten().map(|entry| entry.path().join("order.json")).find(|path| path.exists())
    };
    let placed = async {
        while order(&relay).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("an order", placed).await;
    let home = relay.process.home().clone();
    relay.process.kill().await;
    let mut relay = self::relay(&network, &pebble, home).await;
    relay.process.error_line("going on with the order of before").await;
    relay.process.error_line(NEW).await;
    assert!(order(&relay).is_none(), "it is done");
}

#[tokio::test]
async fn without_a_certificate_the_relay_says_what_it_waits_for() {
    let network = Network::new();
    // Nobody answers there, as where a parent zone leads elsewhere.
    let dns = Some((network.here(), 5353).into());
    let pebble = Pebble::start(&network, Settings { dns, ..Settings::default() }).await;
    let roots = pebble.root_file().await;
    let mut relay = relay(&network, &pebble, home()).await;
    let asking = relay.process.error_line("asking for the first certificate").await;
    let here = network.here();
    let records = format!("relay.example.com. NS ns-relay.example.com. | ns-relay.example.com. A {here}");
    assert!(asking.contains(&records), "{asking}");
    let complaint = relay.process.error_line("are these records in the parent zone").await;
    assert!(complaint.contains(&records) && complaint.contains("the authority does not see"), "{complaint}");
    let ready = relay.get_admin("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("there is no certificate yet: the authority does not see"), "{}", ready.text());
    assert!(try_connect_tls(relay.https, DOMAIN, &roots, &[]).await.is_err());
}

#[tokio::test]
async fn nothing_is_asked_for_before_the_zone_above_leads_here() {
    let network = Network::new();
    let parent = Parent::start(&network).await;
    let dns = Some(parent.address());
    let pebble = Pebble::start(&network, Settings { dns, ..Settings::default() }).await;
    let (here, elsewhere) = (network.here(), network.another_here(54));
    // Somebody has moved, and the record has not.
    parent.set(&["relay.example.com. NS ns-relay.example.com.", &format!("ns-relay.example.com. A {elsewhere}")]);
    let mut relay = RelayServer::spawn(flags_below(&parent, &network, &pebble)).await;
    let complaint = relay.process.error_line("no certificate was asked for").await;
    let records = format!("relay.example.com. NS ns-relay.example.com. | ns-relay.example.com. A {here}");
    let there = format!("relay.example.com. NS ns-relay.example.com. ({elsewhere})");
    assert!(complaint.contains(&records) && complaint.contains(&there), "{complaint}");
    assert!(complaint.contains("_acme-challenge.relay.example.com. NS ns-relay.example.com."), "{complaint}");
    let ready = relay.get_admin("/readyz").await;
    assert!(ready.status == 503 && ready.text().contains(&records), "{}", ready.text());
    // Pebble tells of each request.
    const ORDER: &str = "/order-plz";
    assert!(!pebble.process.said().contains(ORDER), "{}", pebble.process.said());

    parent.set(&["relay.example.com. NS ns-relay.example.com.", &format!("ns-relay.example.com. A {here}")]);
    relay.process.error_line(NEW).await;
    assert!(pebble.process.said().contains(ORDER), "{}", pebble.process.said());
    assert_eq!(relay.get_admin("/readyz").await.text(), "ready\n");
}

#[tokio::test]
async fn where_nobody_can_tell_the_authority_is_asked() {
    let network = Network::new();
    let pebble = Pebble::start(&network, Settings::default()).await;
    let mut flags = flags(&network, &pebble.directory(), &pebble.ca_file());
    flags.pop();
    // The relay's own name server knows nothing of zones above.
    flags.push(network.here().to_string());
    let mut relay = RelayServer::spawn(flags).await;
    let warning = relay.process.error_line("asking the authority all the same").await;
    assert!(warning.contains("does not say what example.com. is"), "{warning}");
    relay.process.error_line(NEW).await;
}

#[tokio::test]
async fn the_challenge_alone_is_enough() {
    let network = Network::new();
    let parent = Parent::start(&network).await;
    let dns = Some(parent.address());
    let pebble = Pebble::start(&network, Settings { dns, ..Settings::default() }).await;
    let roots = pebble.root_file().await;
    let here = network.here();
    // The other records are in the zone above, and stay there.
    parent.set(&[
        format!("relay.example.com. A {here}"),
        format!("*.relay.example.com. A {here}"),
        "_acme-challenge.relay.example.com. NS ns-relay.example.com.".to_owned(),
        format!("ns-relay.example.com. A {here}"),
    ]);
    let mut relay = RelayServer::spawn(flags_below(&parent, &network, &pebble)).await;
    relay.process.error_line(NEW).await;
    assert!(dig(&parent.address(), "NS relay.example.com +noall +answer").await.is_empty(), "the domain is not ours");
    connect_tls(relay.https, "hooks.relay.example.com", &roots, &[]).await;
}

/// From a machine with nothing on it to a webhook that arrives: two DNS records, one command.
#[tokio::test]
async fn from_an_empty_machine_to_a_working_url() {
    let network = Network::new();
    let parent = Parent::start(&network).await;
    let dns = Some(parent.address());
    let pebble = Pebble::start(&network, Settings { dns, ..Settings::default() }).await;
    let roots = pebble.root_file().await;
    let app = App::echo().await;
    let home = home();
    let at = |name: &str| home.path().join(name).display().to_string();
    let (config, data, here) = (at("relay-server.toml"), at("data"), network.here().to_string());
    let words = ["init", "--domain", DOMAIN, "--acme", "you@example.com", "--output", "json"];
    let places = ["--config", &config, "--data-dir", &data, "--public-ip", &here];
    let made = run("relay-server", words.iter().chain(&places)).await;
    assert_eq!(made.code(), 0, "{made:?}");
    let made = made.lines().remove(0);
    // Word for word as they are told.
    let records: Vec<_> = made["records"].as_array().unwrap().iter().map(|record| record.as_str().unwrap()).collect();
    assert_eq!(records.len(), 2, "{records:?}");
    parent.set(&records);

    let begin = std::time::Instant::now();
    let mut flags = flags_below(&parent, &network, &pebble);
    flags.extend(["--config".to_owned(), config]);
    let mut relay = RelayServer::spawn_in(home, flags).await;
    relay.process.error_line(NEW).await;
    let upstream = app.upstream().to_string();
    let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json"];
    let token = made["token"].as_str().unwrap();
    let client = RelayClient::spawn(arguments(&relay.url, relay.https, &roots, token, &words)).await;
    assert_eq!(client.url(), "https://hooks.relay.example.com");
    // As a provider comes: by the name, whose address the world knows from the relay itself.
    assert_eq!(dig(&parent.address(), "+recurse +short A hooks.relay.example.com").await, format!("{here}\n"));
    let tls = connect_tls(relay.https, "hooks.relay.example.com", &roots, &[b"http/1.1"]).await;
    let request = Request::post(format!("{}/a", client.url())).body(body::full("hello")).unwrap();
    let answer = Http::one(tls).await.answer(request).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));
    let took = begin.elapsed().as_secs_f64();
    println!("from an empty machine to a working URL: {took:.1} s (under 60 s are wanted)");
}

#[tokio::test]
async fn an_account_is_bound_to_one_that_was_made_by_hand() {
    let network = Network::new();
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let external_account = Some(("kid-1".to_owned(), key.to_owned()));
    let pebble = Pebble::start(&network, Settings { external_account, ..Settings::default() }).await;
    let mut flags = flags(&network, &pebble.directory(), &pebble.ca_file());
    let mut relay = RelayServer::spawn(&flags).await;
    relay.process.error_line("give --acme-eab-kid and --acme-eab-key-file").await;
    relay.process.terminate().await;

    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("eab.key");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let file = file.display().to_string();
    flags.extend(["--acme-eab-kid", "kid-1", "--acme-eab-key-file", &file].map(str::to_owned));
    let mut relay = RelayServer::spawn(&flags).await;
    relay.process.error_line(NEW).await;
}

#[tokio::test]
async fn the_name_server_answers_for_its_zone_alone() {
    let words = ["--domain", DOMAIN, "--acme", "you@example.com", "--acme-directory", "https://127.0.0.1:1/dir"];
    let more =
        ["--dns", "127.0.0.1:0", "--public-ip", "203.0.113.7", "--public-ip", "2001:db8::7", "--resolver", "off"];
    let mut relay = RelayServer::spawn(words.iter().chain(&more)).await;
    let line: serde_json::Value =
        serde_json::from_str(&relay.process.error_line("answering DNS for the domain").await).unwrap();
    let dns: SocketAddr = line["dns"].as_str().unwrap().parse().unwrap();
    assert_eq!(dns.ip(), IpAddr::from([127, 0, 0, 1]));
    for (asked, answer) in [
        ("+short A relay.example.com", "203.0.113.7\n"),
        ("+short A hooks.relay.example.com", "203.0.113.7\n"),
        ("+short +tcp AAAA hooks.relay.example.com", "2001:db8::7\n"),
        ("+short NS relay.example.com", "ns-relay.example.com.\n"),
        ("+short MX relay.example.com", ""),
        ("+short ANY relay.example.com", "\"RFC8482\" \"\"\n"),
        ("+short A example.com", ""),
    ] {
        assert_eq!(dig(&dns, asked).await, answer, "{asked}");
    }
    for (asked, status) in [
        ("SOA relay.example.com", "status: NOERROR"),
        ("A example.com", "status: REFUSED"),
        ("A _x._acme-challenge.relay.example.com", "status: NXDOMAIN"),
        ("+tcp AXFR relay.example.com", "Transfer failed."),
        ("+opcode=NOTIFY SOA relay.example.com", "status: NOTIMP"),
        ("+edns=1 +noednsneg A relay.example.com", "status: BADVERS"),
        ("CH TXT version.bind", "status: REFUSED"),
    ] {
        let said = dig(&dns, asked).await;
        assert!(said.contains(status), "{asked}: {said}");
        assert!(!said.contains(" ra;") && !said.contains(" ra "), "{asked}: {said}");
    }
    // Connections that say nothing are few from one address, and in nobody's way.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(dns).await.unwrap());
    }
    for connection in &mut silent[16..] {
        // Refused by an end or by a reset, as the kernel has it.
        let end = within("an end", connection.read(&mut [0])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert_eq!(dig(&dns, "+short A relay.example.com").await, "203.0.113.7\n");
}
