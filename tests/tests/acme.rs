//! Certificates that the relay gets by itself, from Pebble, and the name server that proves whose the domain is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use relay_tests::bind::keygen;
use relay_tests::pebble::{Front, Settings};
use relay_tests::process::run;
use relay_tests::process::{arguments, command};
use relay_tests::tools::script;
use relay_tests::world::{connect_tls, try_connect_tls};
use relay_tests::{App, Bind, Http, Network, Parent, Pebble, RelayClient, RelayServer, body, within};
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
    assert!(!metrics.contains("relay_certificate_expiry_timestamp_seconds{kind=\"own\"} 0\n"), "{metrics}");

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
    assert!(relay.get_admin("/metrics").await.text().contains("relay_certificate_trouble 1\n"));
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

/// BIND with these records and those that lead to the relay, and Pebble, which asks it.
async fn served_elsewhere(network: &Network, records: &[&str]) -> (Bind, Pebble) {
    let here = network.here();
    let own = [format!("relay A {here}"), "*.relay CNAME relay".to_owned()];
    let records: Vec<_> = own.iter().map(String::as_str).chain(records.iter().copied()).collect();
    let bind = Bind::start(network, &records).await;
    let dns = Some(bind.address());
    (bind, Pebble::start(network, Settings { dns, ..Settings::default() }).await)
}

/// As [`flags`], where BIND is asked what the world sees.
fn flags_beside(bind: &Bind, network: &Network, pebble: &Pebble, more: &[&str]) -> Vec<String> {
    let mut flags = flags(network, &pebble.directory(), &pebble.ca_file());
    flags.pop();
    flags.push(bind.address().ip().to_string());
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    flags
}

const PROOF: &str = "_acme-challenge.relay.example.com";

/// The TXT records that BIND has at a name, and not at the one that a wildcard leads to.
async fn texts(bind: &Bind, name: &str) -> Vec<String> {
    let said = dig(&bind.address(), &format!("+short TXT {name}")).await;
    said.lines().filter(|line| line.starts_with('"')).map(str::to_owned).collect()
}

async fn until_there_are_only(bind: &Bind, name: &str, expected: &[&str]) {
    let look = async {
        while texts(bind, name).await != expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the records", look).await;
}

#[tokio::test]
async fn a_name_server_that_takes_updates_is_enough() {
    let network = Network::new();
    let (bind, pebble) = served_elsewhere(&network, &["_acme-challenge.relay TXT mine"]).await;
    let roots = pebble.root_file().await;
    let (server, key) = (bind.address().ip().to_string(), bind.key_file("relay-key").display().to_string());
    let flags = flags_beside(&bind, &network, &pebble, &["--dns-update", &server, "--dns-update-key-file", &key]);
    let mut relay = RelayServer::spawn(flags).await;
    relay.process.error_line(NEW).await;
    connect_tls(relay.https, "hooks.relay.example.com", &roots, &[]).await;
    // What is not ours stays.
    until_there_are_only(&bind, PROOF, &["\"mine\""]).await;
    std::net::UdpSocket::bind((network.here(), 53)).expect("the relay has no name server of its own");
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_told() {
    let network = Network::new();
    let (bind, pebble) = served_elsewhere(&network, &[]).await;
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let server = bind.address().to_string();
    let good = bind.key_file("relay-key").display().to_string();
    let secret = file("secret", keygen("relay-key").await);
    let nobody = file("nobody", keygen("nobody").await);
    let stranger = bind.key_file("stranger").display().to_string();
    let none = file("none", "sesame".to_owned());
    let check = async |server: &str, key: &str| {
        let flags = flags_beside(&bind, &network, &pebble, &["--dns-update", server, "--dns-update-key-file", key]);
        let data = place.path().join("data").display().to_string();
        let words = ["doctor", "--output", "json", "--data-dir", &data].map(str::to_owned);
        let findings = run("relay-server", words.into_iter().chain(flags)).await.lines();
        // What it would take to be the name server is not asked for.
        let unasked = ["dns.delegation", "port.dns"];
        assert!(!findings.iter().any(|finding| unasked.contains(&finding["check"].as_str().unwrap())), "{findings:?}");
        let finding = findings.into_iter().find(|finding| finding["check"] == "dns.challenge").unwrap();
        format!("{}: {}", finding["verdict"].as_str().unwrap(), finding["found"].as_str().unwrap())
    };
    let found = check(&server, &good).await;
    assert!(found.starts_with("ok:") && found.contains("in the zone example.com."), "{found}");
    for (server, key, said) in [
        (&server, &secret, "has another secret for the key relay-key than the key file (BADSIG)"),
        (&server, &nobody, "knows no key nobody of this algorithm (BADKEY)"),
        (&server, &stranger, "does not let the key stranger change _acme-challenge.relay.example.com."),
        (&server, &none, "it is not one key"),
        (&format!("{}:9", network.here()), &good, "cannot be asked"),
    ] {
        let found = check(server, key).await;
        assert!(found.starts_with("wrong:") && found.contains(said) && !found.contains("sesame"), "{found}");
    }

    let flags = flags_beside(&bind, &network, &pebble, &["--dns-update", &server, "--dns-update-key-file", &secret]);
    let mut relay = RelayServer::spawn(flags).await;
    let complaint = relay.process.error_line("no certificate").await;
    assert!(complaint.contains("BADSIG") && complaint.contains("relay-key"), "{complaint}");
    let ready = relay.get_admin("/readyz").await;
    assert!(ready.status == 503 && ready.text().contains("BADSIG"), "{}", ready.text());
}

#[tokio::test]
async fn an_alias_of_the_challenge_is_followed() {
    let network = Network::new();
    let (bind, pebble) = served_elsewhere(&network, &["_acme-challenge.relay CNAME proof"]).await;
    let (server, key) = (bind.address().to_string(), bind.key_file("relay-key").display().to_string());
    let flags = flags_beside(&bind, &network, &pebble, &["--dns-update", &server, "--dns-update-key-file", &key]);
    let mut relay = RelayServer::spawn(flags).await;
    relay.process.error_line(NEW).await;
    until_there_are_only(&bind, "proof.example.com", &[]).await;
}

/// The program of `docs/self-hosting.md`, and the two that it calls, which do so with BIND.
fn hook(place: &Path, bind: &Bind) -> String {
    let page = include_str!("../../docs/self-hosting.md");
    let (_, documented) = page.split_once("```sh\n#!/bin/sh\n").unwrap();
    let (documented, _) = documented.split_once("```").unwrap();
    for (name, word) in [("auth-hook", "add"), ("cleanup-hook", "delete")] {
        let record = "_acme-challenge.$CERTBOT_DOMAIN. 5 TXT $CERTBOT_VALIDATION";
        script(&place.join(name), &bind.nsupdate(&format!("update {word} {record}")));
    }
    let path = place.join("dns-hook");
    let log = format!("echo \"$*\" >> {}\n", place.join("calls").display());
    script(&path, &(log + &documented.replace("/etc/letsencrypt", &place.display().to_string())));
    path.display().to_string()
}

/// With what the hook was called.
fn calls(place: &Path) -> Vec<String> {
    std::fs::read_to_string(place.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_program_that_sets_the_record_is_enough() {
    let network = Network::new();
    let (bind, pebble) = served_elsewhere(&network, &[]).await;
    let roots = pebble.root_file().await;
    let place = tempfile::tempdir().unwrap();
    let hook = hook(place.path(), &bind);
    // One that fails on its second call.
    let good = std::fs::read_to_string(&hook).unwrap();
    let count = format!(
        "[ $(wc -l < {}) != 2 ] || {{ echo Quota exceeded >&2; exit 7; }}\n",
        place.path().join("calls").display()
    );
    let (log, rest) = good.trim_start_matches("#!/bin/sh\n").split_once('\n').unwrap();
    script(Path::new(&hook), &format!("{log}\n{count}{rest}"));
    let flags = flags_beside(&bind, &network, &pebble, &["--dns-hook", &hook]);
    let home = home();
    let mut relay = RelayServer::spawn_in(home.clone(), &flags).await;
    let complaint = relay.process.error_line("no certificate").await;
    assert!(complaint.contains("exit status: 7") && complaint.contains("Quota exceeded"), "{complaint}");
    // What was set is removed, and so is what may have been.
    let done = calls(place.path());
    let (verb, of): (Vec<_>, Vec<_>) = done.iter().map(|call| call.split_once(' ').unwrap()).unzip();
    assert_eq!(verb, ["present", "present", "cleanup", "cleanup"], "{done:?}");
    assert!(of[0] != of[1] && of[2..].contains(&of[0]) && of[2..].contains(&of[1]), "{done:?}");
    assert!(of.iter().all(|of| of.starts_with("_acme-challenge.relay.example.com. ")), "{done:?}");
    assert_eq!(texts(&bind, PROOF).await, [""; 0]);

    script(Path::new(&hook), good.trim_start_matches("#!/bin/sh\n"));
    relay.process.terminate().await;
    let mut relay = RelayServer::spawn_in(home, &flags).await;
    relay.process.error_line(NEW).await;
    connect_tls(relay.https, "hooks.relay.example.com", &roots, &[]).await;
    until_there_are_only(&bind, PROOF, &[]).await;
    assert_eq!(calls(place.path()).len(), 8);
}

#[tokio::test]
async fn the_authority_is_asked_once_the_record_is_to_be_seen() {
    let network = Network::new();
    let (bind, pebble) = served_elsewhere(&network, &[]).await;
    let place = tempfile::tempdir().unwrap();
    let (hook, calls) = (place.path().join("dns-hook"), place.path().join("calls"));
    // As with a provider that takes its time.
    script(&hook, &format!("echo \"update add $2 5 TXT $3\" >> {}\n", calls.display()));
    let flags = flags_beside(&bind, &network, &pebble, &["--dns-hook", &hook.display().to_string()]);
    let mut relay = RelayServer::spawn(flags).await;
    let called = async {
        loop {
            let lines = std::fs::read_to_string(&calls).unwrap_or_default();
            if lines.lines().count() == 2 {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let lines = within("two calls", called).await;
    let (one, both) = (lines.lines().next().unwrap(), lines.trim());
    // One of the two is not enough. The authority would refuse, and the relay rest for a minute.
    for (change, count) in [(one, 1), (both, 2)] {
        assert_eq!(relay.get_admin("/readyz").await.status, 503);
        assert!(!pebble.process.said().contains("/chalZ/"), "{}", pebble.process.said());
        let ended = run("/bin/sh", ["-c", &bind.nsupdate(change)]).await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert_eq!(texts(&bind, PROOF).await.len(), count);
    }
    relay.process.error_line(NEW).await;
    assert!(pebble.process.said().contains("/chalZ/"), "{}", pebble.process.said());
}

/// With paths in the place of names: one record, and nothing that could prove a wildcard.
#[tokio::test]
async fn without_a_wildcard_one_address_record_is_enough() {
    let network = Network::new();
    let parent = Parent::start(&network).await;
    let dns = Some(parent.address());
    let validity = Duration::from_secs(27);
    let pebble = Pebble::start(&network, Settings { dns, validity, ..Settings::default() }).await;
    let roots = pebble.root_file().await;
    let (here, elsewhere) = (network.here(), network.another_here(54));
    let flags = [flags_below(&parent, &network, &pebble), vec!["--path-mode".to_owned()]].concat();
    parent.set(&[format!("{DOMAIN}. A {elsewhere}")]);
    let mut relay = RelayServer::spawn(&flags).await;
    let complaint = relay.process.error_line("does not lead to this machine").await;
    assert!(complaint.contains(&format!("{DOMAIN}. A {here}")), "{complaint}");
    assert!(!pebble.process.said().contains("Added order"), "{}", pebble.process.said());

    parent.set(&[format!("{DOMAIN}. A {here}")]);
    relay.process.error_line(NEW).await;
    let first = shown(&relay, DOMAIN, &roots).await;
    let app = App::echo().await;
    let token = relay.token("me").await;
    let upstream = app.upstream().to_string();
    let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json"];
    let client = RelayClient::spawn(arguments(&relay.url, relay.https, &roots, &token, &words)).await;
    assert_eq!(client.url(), format!("https://{DOMAIN}/t/hooks"));
    let tls = connect_tls(relay.https, DOMAIN, &roots, &[b"http/1.1"]).await;
    let request = Request::post(format!("{}/a", client.url())).body(body::full("hello")).unwrap();
    assert_eq!(Http::one(tls).await.answer(request).await.text(), "hello");
    // The next one is proved in the same way, beside the one in use.
    relay.process.error_line(NEW).await;
    assert_ne!(shown(&relay, DOMAIN, &roots).await, first);
    assert!(relay.process.ports().iter().all(|port| *port != 53), "it is no name server");
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
    let metrics = relay.get_admin("/metrics").await;
    assert!(metrics.text().contains("relay_dns_refused_total 4\n"), "{}", metrics.text());
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
