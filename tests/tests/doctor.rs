//! What `relay-server doctor` finds, and `relay-server init` writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use relay_tests::pebble::{Front, Settings};
use relay_tests::process::{Ended, run};
use relay_tests::{Network, Parent, Pebble, Process, RelayServer};
use serde_json::Value;
use tempfile::TempDir;

const DOMAIN: &str = "relay.example.com";

/// What was found, by the name of the check.
struct Findings(Vec<Value>);

impl Findings {
    fn of(ended: &Ended) -> Self {
        Self(ended.lines())
    }

    fn get(&self, check: &str) -> &Value {
        self.0.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check}: {self:?}"))
    }

    /// What was found there, which must be thought of so.
    fn is(&self, check: &str, verdict: &str) -> &str {
        let finding = self.get(check);
        assert_eq!(finding["verdict"], verdict, "{finding}");
        finding["found"].as_str().unwrap()
    }

    /// Nothing is wrong, unless it is with this machine's disk, to which others may write much.
    fn are_well(&self, ended: &Ended) {
        let wrong = self.0.iter().filter(|finding| finding["verdict"] == "wrong");
        let (disk, wrong): (Vec<_>, Vec<_>) = wrong.partition(|finding| finding["check"] == "disk.write");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(ended.code(), i32::from(!disk.is_empty()), "{self:?}\n{}", ended.stderr);
    }

    fn mends(&self, check: &str) -> Vec<&str> {
        self.get(check)["mend"].as_array().unwrap().iter().map(|mend| mend.as_str().unwrap()).collect()
    }
}

impl std::fmt::Debug for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

async fn doctor(words: &[&str]) -> Ended {
    run("relay-server", ["doctor", "--output", "json"].iter().chain(words)).await
}

fn delegated(here: Ipv4Addr) -> [String; 2] {
    ["relay.example.com. NS ns-relay.example.com.".to_owned(), format!("ns-relay.example.com. A {here}")]
}

struct Machine {
    network: Network,
    parent: Parent,
    pebble: Pebble,
    admin: String,
}

impl Machine {
    async fn new() -> Self {
        let network = Network::new();
        let parent = Parent::start(&network).await;
        let dns = Some(parent.address());
        let pebble = Pebble::start(&network, Settings { dns, ..Settings::default() }).await;
        Self { network, parent, pebble, admin: "127.0.0.1:0".to_owned() }
    }

    /// The flags of a relay on the near end of the cable, which gets its certificate by itself.
    fn flags(&self) -> Vec<String> {
        self.flags_to(&self.pebble.directory())
    }

    /// As [`Machine::flags`], from the authority with this directory.
    fn flags_to(&self, directory: &str) -> Vec<String> {
        let (https, http) = (format!("{}:443", self.network.here()), format!("{}:80", self.network.here()));
        let (ca, resolver) = (self.pebble.ca_file().display().to_string(), self.parent.address().ip().to_string());
        let all = [
            ["--domain", DOMAIN],
            ["--https", &https],
            ["--http", &http],
            ["--admin", &self.admin],
            ["--acme", "you@example.com"],
            ["--acme-directory", directory],
            ["--acme-ca", &ca],
            ["--resolver", &resolver],
        ];
        all.as_flattened().iter().map(|word| (*word).to_owned()).collect()
    }

    /// The doctor, with the flags of the relay.
    async fn doctor(&self, data: &Path, more: &[&str]) -> Ended {
        let (flags, data) = (self.flags(), data.display().to_string());
        let words: Vec<&str> = flags.iter().map(String::as_str).chain(["--data-dir", &data]).collect();
        doctor(&[&words, more].concat()).await
    }
}

const ALL: [&str; 16] = [
    "relay",
    "dns.delegation",
    "dns.address",
    "dns.wildcard",
    "dns.challenge",
    "dns.caa",
    "port.https",
    "port.http",
    "port.dns",
    "port.admin",
    "certificate.file",
    "certificate.served",
    "clock",
    "disk.room",
    "connect",
    "tunnel",
];

#[tokio::test]
async fn where_all_is_well_every_line_says_so() {
    let machine = Machine::new().await;
    let here = machine.network.here();
    machine.parent.set(&delegated(here));
    let mut relay = RelayServer::spawn(machine.flags()).await;
    relay.process.error_line("a new certificate is in use").await;
    let roots = machine.pebble.root_file().await.display().to_string();
    let ended = machine.doctor(relay.data_dir(), &["--relay-ca", &roots]).await;
    let findings = Findings::of(&ended);
    for check in ALL {
        // Pebble may not say what it is called.
        if check != "dns.caa" {
            findings.is(check, "ok");
        }
    }
    findings.are_well(&ended);
    assert!(findings.is("dns.delegation", "ok").contains("hands relay.example.com. over"), "{findings:?}");
    assert!(findings.is("dns.wildcard", "ok").contains(&format!("leads to {here}")), "{findings:?}");
    assert!(findings.is("port.https", "ok").contains(&format!("{here}:443")), "{findings:?}");
    assert!(findings.is("tunnel", "ok").contains(".relay.example.com came through"), "{findings:?}");
    assert!(!ended.stdout.contains("rly_"), "{}", ended.stdout);
    // Nothing of it stays.
    assert_eq!(relay.token_command(&["list", "--output", "json"]).await.stdout, "");
    assert!(
        !std::fs::read_dir(relay.data_dir())
            .unwrap()
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().starts_with("doctor") })
    );

    // Who is not told of the root is told that others are not, either.
    let ended = machine.doctor(relay.data_dir(), &[]).await;
    let findings = Findings::of(&ended);
    assert_eq!(ended.code(), 1, "{findings:?}");
    assert!(findings.is("certificate.served", "wrong").contains("do not trust"), "{findings:?}");
    assert!(findings.mends("certificate.served").concat().contains("--relay-ca"), "{findings:?}");
    findings.is("connect", "wrong");
    findings.is("tunnel", "unknown");
}

/// The relay is well, and so is its admin socket; whoever has the domain has to do something.
#[tokio::test]
async fn a_domain_that_fails_is_told_of_and_nothing_is_wrong_with_the_relay() {
    let mut machine = Machine::new().await;
    let (here, elsewhere) = (machine.network.here(), machine.network.another_here(54));
    let records = [&delegated(here)[..], &[format!("hooks.customer.example.com. A {elsewhere}")]].concat();
    machine.parent.set(&records);
    let home = Arc::new(tempfile::tempdir().unwrap());
    let socket = home.path().join("admin.sock");
    machine.admin = format!("unix:{}", socket.display());
    let mut relay = RelayServer::spawn_in(home, machine.flags()).await;
    relay.process.error_line("a new certificate is in use").await;
    relay.token("me").await;
    relay.token_command(&["reserve", "me", "hooks.customer.example.com"]).await;
    relay.process.error_line("no certificate for a custom domain").await;
    let roots = machine.pebble.root_file().await.display().to_string();
    let more = ["--relay-ca", &roots];
    let ended = machine.doctor(relay.data_dir(), &more).await;
    let findings = Findings::of(&ended);
    findings.are_well(&ended);
    assert!(findings.is("relay", "note").contains("1 of 1 custom domain cannot have"), "{findings:?}");
    assert!(findings.is("port.admin", "ok").ends_with(&machine.admin), "{findings:?}");

    // Who has taken the file away has taken the way to it.
    let data = relay.data_dir().to_owned();
    std::fs::remove_file(&socket).unwrap();
    let findings = Findings::of(&machine.doctor(&data, &more).await);
    assert!(findings.is("port.admin", "wrong").contains("does not answer there"), "{findings:?}");
    relay.process.terminate().await;
    let findings = Findings::of(&machine.doctor(&data, &more).await);
    assert!(findings.is("port.admin", "ok").contains("is free"), "{findings:?}");
}

#[tokio::test]
async fn records_that_are_missing_are_told_word_for_word() {
    let machine = Machine::new().await;
    let here = machine.network.here();
    let data = tempfile::tempdir().unwrap();
    let ended = machine.doctor(data.path(), &[]).await;
    let findings = Findings::of(&ended);
    assert_eq!(ended.code(), 1, "{findings:?}");
    findings.is("relay", "unknown");
    let found = findings.is("dns.delegation", "wrong");
    assert!(
        found.contains("relay.example.com does not lead to this machine: the zone example.com. has no NS"),
        "{found}"
    );
    let mends = findings.mends("dns.delegation");
    assert_eq!(mends[..2], delegated(here));
    assert!(mends[2].ends_with("_acme-challenge.relay.example.com. NS ns-relay.example.com."), "{mends:?}");
    for check in ["dns.address", "dns.wildcard"] {
        assert!(findings.is(check, "wrong").ends_with(" leads nowhere"), "{findings:?}");
        assert_eq!(findings.mends(check), delegated(here));
    }
    for check in ["port.https", "port.http", "port.dns"] {
        assert!(findings.is(check, "ok").contains("is free"), "{findings:?}");
    }
    for check in ["certificate.file", "certificate.served", "connect", "tunnel"] {
        findings.is(check, "unknown");
    }
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "nothing is made");

    // What they say is what mends it.
    machine.parent.set(&mends[..2]);
    let findings = Findings::of(&machine.doctor(data.path(), &[]).await);
    findings.is("dns.delegation", "ok");
    // Nobody answers for it while no relay runs.
    findings.is("dns.wildcard", "unknown");

    // Two servers, of which one is not ours, and an authority that may not issue.
    machine.parent.set(&[
        "relay.example.com. NS ns-relay.example.com.".to_owned(),
        "relay.example.com. NS ns-old.example.com.".to_owned(),
        format!("ns-relay.example.com. A {here}"),
        format!("ns-old.example.com. A {}", machine.network.another_here(54)),
    ]);
    let findings = Findings::of(&machine.doctor(data.path(), &[]).await);
    findings.is("dns.delegation", "wrong");
    assert_eq!(findings.mends("dns.delegation"), ["remove: relay.example.com. NS ns-old.example.com."]);
}

#[tokio::test]
async fn records_that_lead_elsewhere_are_told_with_where() {
    let machine = Machine::new().await;
    let (here, elsewhere) = (machine.network.here(), machine.network.another_here(54));
    machine.parent.set(&[
        format!("relay.example.com. A {elsewhere}"),
        format!("*.relay.example.com. A {here}"),
        "_acme-challenge.relay.example.com. NS ns-relay.example.com.".to_owned(),
        format!("ns-relay.example.com. A {here}"),
        "example.com. CAA 0 issue \"other.example\"".to_owned(),
    ]);
    // Pebble does not say what it is called in such records.
    let front = Front::start(&machine.network, &machine.pebble, ["2100-01-01T00:00:00Z", "2100-01-02T00:00:00Z"]).await;
    let flags = machine.flags_to(front.directory());
    let mut relay = RelayServer::spawn(&flags).await;
    relay.process.error_line("a new certificate is in use").await;
    let data = relay.data_dir().display().to_string();
    let words: Vec<&str> = flags.iter().map(String::as_str).chain(["--data-dir", &data]).collect();
    let findings = Findings::of(&doctor(&words).await);
    assert!(findings.is("dns.caa", "wrong").contains("do not let pebble.example issue a certificate"), "{findings:?}");
    assert_eq!(findings.mends("dns.caa"), ["example.com. CAA 0 issue \"pebble.example\""]);
    assert!(
        findings.is("dns.delegation", "ok").contains("hands _acme-challenge.relay.example.com. over"),
        "{findings:?}"
    );
    assert!(findings.is("dns.address", "wrong").contains(&format!("leads to {elsewhere}, and this machine is {here}")));
    let mends = findings.mends("dns.address");
    assert_eq!(mends, [format!("remove: relay.example.com. A {elsewhere}"), format!("relay.example.com. A {here}")]);
    findings.is("dns.wildcard", "ok");
    findings.is("dns.challenge", "ok");
}

#[tokio::test]
async fn a_name_server_that_the_world_does_not_reach_is_told() {
    let machine = Machine::new().await;
    let here = machine.network.here();
    machine.parent.set(&delegated(here));
    // As where a firewall lets nothing through to port 53.
    let elsewhere = format!("{here}:5353");
    let flags = machine.flags();
    let relay = RelayServer::spawn(flags.iter().map(String::as_str).chain(["--dns", &elsewhere])).await;
    let findings = Findings::of(&machine.doctor(relay.data_dir(), &["--dns", &elsewhere]).await);
    findings.is("dns.delegation", "ok");
    for check in ["dns.address", "dns.wildcard", "dns.challenge"] {
        assert!(findings.is(check, "wrong").contains("cannot reach the relay's name server"), "{findings:?}");
        let mends = findings.mends(check).concat();
        assert!(mends.contains(&format!("UDP and TCP port 53 through to {here}")), "{mends}");
    }
    assert!(findings.is("port.dns", "wrong").contains(&format!("{here}:53 does not answer")), "{findings:?}");
    for check in ["relay", "certificate.file", "certificate.served"] {
        findings.is(check, "wrong");
    }
}

#[tokio::test]
async fn a_port_that_is_somebody_elses_is_told_with_whose() {
    let machine = Machine::new().await;
    machine.parent.set(&delegated(machine.network.here()));
    let _taken = std::net::TcpListener::bind((machine.network.here(), 80)).unwrap();
    let data = tempfile::tempdir().unwrap();
    let findings = Findings::of(&machine.doctor(data.path(), &[]).await);
    let found = findings.is("port.http", "wrong");
    let own = format!("(process {}) listens on {}:80", std::process::id(), machine.network.here());
    assert!(found.contains(&own), "{found}");

    // Another relay has the ports, whose data is somewhere else.
    drop(_taken);
    let relay = RelayServer::spawn(machine.flags()).await;
    let findings = Findings::of(&machine.doctor(data.path(), &[]).await);
    let found = findings.is("port.dns", "wrong");
    assert!(found.contains(&format!("relay-server (process {})", relay.process.pid())), "{found}");
    assert!(findings.mends("port.dns").concat().contains("--data-dir"), "{findings:?}");
}

#[tokio::test]
async fn a_relay_for_this_machine_is_looked_at_too() {
    let relay = RelayServer::spawn([""; 0]).await;
    let data = relay.data_dir().display().to_string();
    let words = ["--domain", RelayServer::DOMAIN, "--https", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let more = ["--admin", "127.0.0.1:0", "--data-dir", &data, "--resolver", "off"];
    let ended = doctor(&[&words[..], &more].concat()).await;
    let findings = Findings::of(&ended);
    findings.are_well(&ended);
    for check in ["relay", "port.https", "certificate.served", "disk.room", "connect", "tunnel"] {
        findings.is(check, "ok");
    }
    assert!(findings.is("connect", "ok").contains("at its own address"), "{findings:?}");

    // For people, in columns.
    let text = run("relay-server", ["doctor"].iter().chain(&words).chain(&more)).await;
    assert!(text.stdout.lines().all(|line| line.len() > 36), "{}", text.stdout);
    assert!(text.stdout.contains("ok              tunnel              a request to https://"), "{}", text.stdout);
    assert!(text.stderr.contains(" could not"), "{}", text.stderr);
}

/// Where it wants to be told who connects, and tunnels have no names of their own.
#[tokio::test]
async fn a_relay_with_paths_behind_a_proxy_that_passes_bytes_on_is_looked_at_too() {
    let own = ["--path-mode", "--proxy-protocol", "--trusted-proxy", "127.0.0.1"];
    let relay = RelayServer::spawn(own).await;
    let data = relay.data_dir().display().to_string();
    let words = ["--domain", RelayServer::DOMAIN, "--https", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let more = ["--admin", "127.0.0.1:0", "--data-dir", &data, "--resolver", "off"];
    let ended = doctor(&[&own[..], &words, &more].concat()).await;
    let findings = Findings::of(&ended);
    findings.are_well(&ended);
    let served = findings.is("certificate.served", "ok");
    assert!(served.contains("for relay.test,") && !served.contains('*'), "{served}");
    assert!(findings.is("tunnel", "ok").contains("/t/"), "{findings:?}");
}

#[tokio::test]
async fn files_are_looked_at_without_a_relay() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let made = |names: &[&str]| {
        rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    };
    let (good, other) = (made(&[DOMAIN, "*.relay.example.com"]), made(&[DOMAIN]));
    let old = {
        let mut params = CertificateParams::new([DOMAIN.to_owned(), format!("*.{DOMAIN}")]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 4, 1));
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let data = place.path().join("data").display().to_string();
    for (cert, key, expected) in [
        (good.cert.pem(), good.signing_key.serialize_pem(), "do not trust"),
        (good.cert.pem(), other.signing_key.serialize_pem(), "does not belong"),
        (other.cert.pem(), other.signing_key.serialize_pem(), "is not for relay.example.com and *.relay.example.com"),
        (old.0, old.1, "has expired at 2020-04-01T00:00:00Z"),
        (String::new(), good.signing_key.serialize_pem(), "has no \"BEGIN CERTIFICATE\""),
    ] {
        let (cert, key) = (write("cert.pem", &cert), write("key.pem", &key));
        let words = ["--domain", DOMAIN, "--cert", &cert, "--key", &key, "--https", "127.0.0.1:0", "--http", "off"];
        let more = ["--admin", "off", "--resolver", "off", "--data-dir", &data];
        let findings = Findings::of(&doctor(&[&words[..], &more].concat()).await);
        assert!(findings.is("certificate.file", "wrong").contains(expected), "{expected}: {findings:?}");
        findings.is("disk.room", "unknown");
    }
}

#[tokio::test]
async fn what_is_no_configuration_is_not_looked_at() {
    for words in
        [&["--domain", "a_b"][..], &["--config", "/none.toml"], &["--resolver", "dns.example.com", "--domain", DOMAIN]]
    {
        let ended = doctor(words).await;
        assert!(ended.code() == 2 && ended.stdout.is_empty(), "{words:?}: {ended:?}");
    }
}

#[tokio::test]
async fn init_writes_what_the_relay_reads_and_says_what_is_left_to_do() {
    let home = std::sync::Arc::new(TempDir::new().unwrap());
    let init = async |more: &[&str]| {
        let words = ["init", "--domain", DOMAIN, "--acme", "you@example.com", "--public-ip", "203.0.113.7"];
        let words: Vec<_> = words.iter().chain(more).collect();
        Process::spawn_in(home.clone(), "relay-server", words, &[("RELAY_DATA_DIR", "data")]).await.wait().await
    };
    let made = init(&[]).await;
    assert_eq!(made.code(), 0, "{made:?}");
    for line in ["    relay.example.com. NS ns-relay.example.com.", "    ns-relay.example.com. A 203.0.113.7"] {
        assert!(made.stdout.lines().any(|said| said == line), "{}", made.stdout);
    }
    let token = made.stdout.lines().find_map(|line| line.trim().strip_prefix("rly_")).expect("a token");
    let check = async |config: &str| {
        let words = ["check-config", "--config", config];
        Process::spawn_in(home.clone(), "relay-server", words, &[]).await.wait().await
    };
    let checked = check("relay-server.toml").await;
    assert!(checked.code() == 0 && checked.stdout.contains("https://NAME.relay.example.com"), "{checked:?}");
    let data = home.path().join("data").display().to_string();
    let listed = run("relay-server", ["token", "--data-dir", &data, "list", "--output", "json"]).await.lines();
    assert_eq!((listed.len(), &listed[0]["name"]), (1, &"first".into()));

    // What is there stays, and nothing else is done.
    std::fs::write(home.path().join("relay-server.toml"), "domain = 'mine.example'\n").unwrap();
    let refused = init(&["--token", "second"]).await;
    assert!(refused.code() == 1 && refused.stderr.contains("--force"), "{refused:?}");
    let kept = std::fs::read_to_string(home.path().join("relay-server.toml")).unwrap();
    assert_eq!(kept, "domain = 'mine.example'\n");
    let forced = init(&["--force", "--output", "json"]).await;
    assert_eq!(forced.code(), 0, "{forced:?}");
    let forced = forced.lines().remove(0);
    assert!(forced["token"].is_null() && forced["records"].as_array().unwrap().len() == 2, "{forced}");
    assert_eq!(check("relay-server.toml").await.code(), 0);
    let again = run("relay-server", ["token", "--data-dir", &data, "list", "--output", "json"]).await.lines();
    assert_eq!(again.len(), 1, "the first token goes on");
    assert!(!token.is_empty());
}
