//! Custom domains: whose they are, and the certificates that the relay gets for them, from Pebble.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use relay_tests::pebble::{Front, Settings};
use relay_tests::process::{Ended, arguments, run};
use relay_tests::world::{connect_tls, try_connect_tls};
use relay_tests::{App, Http, Network, Parent, Pebble, RelayClient, RelayServer, body, within};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const CUSTOM: &str = "hooks.customer.example.com";
const IN_USE: &str = "a certificate for a custom domain is in use";

/// A relay that has its own certificate, and the world around it.
struct Scene {
    network: Network,
    parent: Parent,
    pebble: Pebble,
    roots: PathBuf,
    relay: RelayServer,
    token: String,
}

impl Scene {
    /// `records` are beside those that hand the relay's own domain over.
    async fn new(validity: Duration, records: &[String]) -> Self {
        Self::with(Settings { validity, ..Settings::default() }, |flags| flags, records).await
    }

    /// As [`Scene::new`], with flags that are changed.
    async fn with(settings: Settings, change: impl FnOnce(Vec<String>) -> Vec<String>, records: &[String]) -> Self {
        let network = Network::new();
        let parent = Parent::start(&network).await;
        let dns = Some(parent.address());
        let pebble = Pebble::start(&network, Settings { dns, ..settings }).await;
        let roots = pebble.root_file().await;
        set(&parent, network.here(), records);
        let mut relay = RelayServer::spawn(change(flags(&network, &parent, &pebble))).await;
        relay.process.error_line("a new certificate is in use").await;
        let token = relay.token("me").await;
        Self { network, parent, pebble, roots, relay, token }
    }

    fn set(&self, records: &[String]) {
        set(&self.parent, self.network.here(), records);
    }

    /// The arguments of a client of the custom domain.
    fn client(&self, token: &str, app: &App) -> Vec<String> {
        let upstream = app.upstream().to_string();
        let words = ["http", &upstream, "--domain", CUSTOM, "--output", "json"];
        arguments(&self.relay.url, self.relay.https, &self.roots, token, &words)
    }

    /// What a client is told that does not get the domain.
    async fn refused(&self, token: &str, app: &App) -> Ended {
        let ended = run("relay", self.client(token, app)).await;
        assert_ne!(ended.code(), 0, "{ended:?}");
        ended
    }

    /// As a provider does: by the public URL, trusting the authority.
    async fn post(&self, url: &str, text: &'static str) -> (u16, String) {
        let tls = connect_tls(self.relay.https, CUSTOM, &self.roots, &[b"http/1.1"]).await;
        let request = Request::post(format!("{url}/a")).body(body::full(text)).unwrap();
        let answer = Http::one(tls).await.answer(request).await;
        (answer.status.as_u16(), answer.text().to_owned())
    }

    /// What the admin API tells of the one for the custom domain.
    async fn certificate(&self) -> Value {
        let secret = std::fs::read_to_string(self.relay.data_dir().join("admin.token")).unwrap();
        let uri = format!("http://{}/api/v1/certificates", self.relay.admin.unwrap());
        let request = Request::get(uri).header("authorization", format!("Bearer {}", secret.trim()));
        let tcp = TcpStream::connect(self.relay.admin.unwrap()).await.unwrap();
        let answer = Http::one(tcp).await.answer(request.body(body::full("")).unwrap()).await;
        let all = answer.json()["certificates"].as_array().unwrap().clone();
        assert_eq!((all.len(), &all[0]["domain"], &all[1]["domain"]), (2, &json!(null), &json!(CUSTOM)), "{all:?}");
        all[1].clone()
    }

    /// How many certificates Pebble has been asked for. Requests are more, as it refuses some nonces.
    fn orders(&self) -> usize {
        self.pebble.process.said().matches("Added order").count()
    }
}

fn set(parent: &Parent, here: Ipv4Addr, records: &[String]) {
    let own = ["relay.example.com. NS ns-relay.example.com.".to_owned(), format!("ns-relay.example.com. A {here}")];
    parent.set(&[&own, records].concat());
}

fn leads_to(ip: Ipv4Addr) -> String {
    format!("{CUSTOM}. A {ip}")
}

fn flags(network: &Network, parent: &Parent, pebble: &Pebble) -> Vec<String> {
    let https = format!("{}:443", network.here());
    let (ca, resolver) = (pebble.ca_file().display().to_string(), parent.address().ip().to_string());
    let all = [
        ["--domain", "relay.example.com"],
        ["--https", &https],
        ["--acme", "you@example.com"],
        ["--acme-directory", &pebble.directory()],
        ["--acme-ca", &ca],
        ["--resolver", &resolver],
    ];
    all.as_flattened().iter().map(|word| (*word).to_owned()).collect()
}

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn shown(relay: &RelayServer, name: &str, roots: &Path) -> Vec<u8> {
    let tls = connect_tls(relay.https, name, roots, &[b"http/1.1"]).await;
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_domain_that_the_operator_gives_a_token_is_served_with_a_certificate_of_its_own() {
    let mut scene = Scene::new(DAY, &[]).await;
    scene.set(&[leads_to(scene.network.here())]);
    let app = App::echo().await;
    let ended = scene.relay.token_command(&["reserve", "me", CUSTOM]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    scene.relay.process.error_line(IN_USE).await;
    let client = RelayClient::spawn(scene.client(&scene.token, &app)).await;
    assert_eq!((client.url(), &client.ready["name"]), (&*format!("https://{CUSTOM}"), &CUSTOM.into()));
    assert_eq!(scene.post(client.url(), "hello").await, (200, "hello".to_owned()));
    // The relay's own names have theirs, and those of strangers none.
    let own = shown(&scene.relay, "relay.example.com", &scene.roots).await;
    let custom = shown(&scene.relay, CUSTOM, &scene.roots).await;
    assert_ne!(own, custom);
    assert!(try_connect_tls(scene.relay.https, "other.customer.example.com", &scene.roots, &[]).await.is_err());
    let other = scene.relay.token("other").await;
    let told = scene.refused(&other, &app).await;
    assert!(told.stderr.contains("_relay-challenge") || told.stdout.contains("_relay-challenge"), "{told:?}");

    // Authority and process are gone; the certificate is not.
    let (home, flags) = (scene.relay.process.home().clone(), flags(&scene.network, &scene.parent, &scene.pebble));
    scene.pebble.process.kill().await;
    assert_eq!(scene.relay.process.terminate().await.code(), 0);
    let mut relay = RelayServer::spawn_in(home, flags).await;
    assert_eq!(shown(&relay, CUSTOM, &scene.roots).await, custom);
    let ended = relay.token_command(&["release", CUSTOM]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    // Nobody is shown it any more, and nobody finds its key.
    relay.process.error_line("a custom domain is nobody's any more").await;
    assert!(try_connect_tls(relay.https, CUSTOM, &scene.roots, &[b"http/1.1"]).await.is_err());
    relay.process.terminate().await;
}

/// The value in what a client is told of the record that is missing.
fn value_in(told: &Ended) -> String {
    let text = format!("{}{}", told.stdout, told.stderr).replace("\\\"", "\"");
    let (_, rest) =
        text.split_once(&format!("_relay-challenge.{CUSTOM}. TXT \"")).unwrap_or_else(|| panic!("{told:?}"));
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_record_shows_whose_a_domain_is_and_is_looked_for_again_before_each_renewal() {
    let mut scene = Scene::new(Duration::from_secs(27), &[]).await;
    let here = leads_to(scene.network.here());
    scene.set(std::slice::from_ref(&here));
    let app = App::echo().await;
    let other = scene.relay.token("other").await;
    let (value, others) =
        (value_in(&scene.refused(&scene.token, &app).await), value_in(&scene.refused(&other, &app).await));
    assert_ne!(value, others);
    assert!(value.len() == 43 && !scene.token.contains(&value), "{value}");

    let record = format!("_relay-challenge.{CUSTOM}. TXT {value}");
    scene.set(&[here.clone(), record.clone()]);
    scene.refused(&other, &app).await;
    let client = RelayClient::spawn(scene.client(&scene.token, &app)).await;
    scene.relay.process.error_line(IN_USE).await;
    assert_eq!(scene.post(client.url(), "hello").await, (200, "hello".to_owned()));
    let first = shown(&scene.relay, CUSTOM, &scene.roots).await;

    // Once it is gone, so is the right to another certificate; this one serves on, and so does the tunnel.
    scene.set(std::slice::from_ref(&here));
    let complaint = scene.relay.process.error_line("no certificate for a custom domain").await;
    assert!(complaint.contains("is not known to be yours") && complaint.contains(&value), "{complaint}");
    assert_eq!(shown(&scene.relay, CUSTOM, &scene.roots).await, first);
    scene.set(&[here, record]);
    scene.relay.process.error_line(IN_USE).await;
    assert_ne!(shown(&scene.relay, CUSTOM, &scene.roots).await, first);
}

#[tokio::test]
async fn nothing_is_asked_for_before_the_domain_leads_here() {
    let mut scene = Scene::new(DAY, &[]).await;
    let (here, elsewhere) = (scene.network.here(), scene.network.another_here(54));
    scene.set(&[leads_to(elsewhere), leads_to(here)]);
    let before = scene.orders();
    scene.relay.token_command(&["reserve", "me", CUSTOM]).await;
    let complaint = scene.relay.process.error_line("no certificate for a custom domain").await;
    let told = format!("does not lead to this machine ({here}) but to");
    assert!(complaint.contains(&told) && complaint.contains(&elsewhere.to_string()), "{complaint}");
    assert_eq!(scene.orders(), before);

    // Whoever looks sees it, and who may see it sees which and why.
    let tells = async |relay: &RelayServer| {
        let ready = relay.get_admin("/readyz").await;
        let metrics = relay.get_admin("/metrics").await.text().to_owned();
        (ready.code(), ready.text().trim_end().to_owned(), metrics)
    };
    let (code, ready, metrics) = tells(&scene.relay).await;
    assert!(code == 200 && ready.contains("1 of 1 custom domain") && !ready.contains(CUSTOM), "{ready}");
    assert!(metrics.contains("\nrelay_domains_failing 1\n") && !metrics.contains("kind=\"domains\""), "{metrics}");
    let certificate = scene.certificate().await;
    assert_eq!((&certificate["names"], &certificate["not_after"]), (&json!([]), &json!(null)));
    assert!(certificate["trouble"].as_str().unwrap().contains(&told), "{certificate}");

    scene.set(&[leads_to(here)]);
    scene.relay.process.error_line(IN_USE).await;
    assert_eq!(scene.orders(), before + 1);
    // It is noted right behind the line in the log.
    within("an end of the trouble", async { while scene.certificate().await["trouble"] != json!(null) {} }).await;
    let certificate = scene.certificate().await;
    assert_eq!(certificate["names"], json!([CUSTOM]));
    let (code, ready, metrics) = tells(&scene.relay).await;
    assert_eq!((code, &*ready), (200, "ready"));
    assert!(metrics.contains("\nrelay_domains_failing 0\n"), "{metrics}");
    let expiry = "relay_certificate_expiry_timestamp_seconds{kind=\"domains\"} ";
    let (_, expiry) = metrics.split_once(expiry).unwrap();
    let moment: jiff::Timestamp = certificate["not_after"].as_str().unwrap().parse().unwrap();
    assert_eq!(expiry.lines().next().unwrap(), moment.as_second().to_string());
}

#[tokio::test]
async fn a_relay_that_gets_no_certificates_by_itself_serves_no_domains() {
    let relay = RelayServer::spawn([""; 0]).await;
    let token = relay.token("me").await;
    let words = ["http", "3000", "--domain", CUSTOM];
    let ended = run("relay", relay.arguments(&token, &words)).await;
    assert!(ended.code() != 0 && ended.stderr.contains("does not serve custom domains"), "{ended:?}");
}

/// A client of the domain with an inbox, which it is to lose.
async fn client_with_inbox(scene: &Scene, app: &App) -> RelayClient {
    let mut words = scene.client(&scene.token, app);
    words.push("--inbox".to_owned());
    RelayClient::spawn(words).await
}

/// The record that a token has to show, by what it is told without one.
async fn record(scene: &Scene, token: &str, app: &App) -> String {
    format!("_relay-challenge.{CUSTOM}. TXT {}", value_in(&scene.refused(token, app).await))
}

#[tokio::test]
async fn a_domain_whose_record_is_anothers_by_now_is_taken_from_who_had_it() {
    let mut scene = Scene::new(DAY, &[]).await;
    let here = leads_to(scene.network.here());
    scene.set(std::slice::from_ref(&here));
    let app = App::echo().await;
    let other = scene.relay.token("other").await;
    let (first, second) = (record(&scene, &scene.token, &app).await, record(&scene, &other, &app).await);
    scene.set(&[here.clone(), first.clone()]);
    let mut client = client_with_inbox(&scene, &app).await;
    scene.relay.process.error_line(IN_USE).await;

    // Both at once: who was first stays.
    scene.set(&[here.clone(), first.clone(), second.clone()]);
    let told = scene.refused(&other, &app).await;
    assert!(told.stderr.contains("whose TXT record is there beside yours"), "{told:?}");
    assert_eq!(scene.post(client.url(), "first").await, (200, "first".to_owned()));

    scene.set(&[here.clone(), second]);
    let taken = RelayClient::spawn(scene.client(&other, &app)).await;
    let lost = within("the loss", client.process.wait()).await;
    assert_eq!(lost.code(), 7, "{lost:?}");
    assert!(lost.stderr.contains("is another token's now, which a TXT record at _relay-challenge"), "{lost:?}");
    assert_eq!(scene.post(taken.url(), "second").await, (200, "second".to_owned()));
    let inboxes = scene.relay.command("inbox", &["list", "--output", "json"]).await;
    assert_eq!((inboxes.code(), inboxes.stdout.trim()), (0, ""), "{inboxes:?}");
    // Whoever has lost it is told what would bring it back.
    assert_eq!(record(&scene, &scene.token, &app).await, first);

    // What cannot be seen is not gone: who has the domain keeps it.
    drop(taken);
    scene.set(&[here, first]);
    scene.parent.stop().await;
    let told = scene.refused(&scene.token, &app).await;
    assert!(told.stderr.contains("t cannot be seen whether"), "{told:?}");
    let kept = RelayClient::spawn(scene.client(&other, &app)).await;
    assert_eq!(scene.post(kept.url(), "third").await, (200, "third".to_owned()));
}

#[tokio::test]
async fn a_domain_that_is_shown_by_a_record_ends_with_its_release_and_with_its_token() {
    let mut scene = Scene::new(DAY, &[]).await;
    let here = leads_to(scene.network.here());
    scene.set(std::slice::from_ref(&here));
    let app = App::echo().await;
    let other = scene.relay.token("other").await;
    let (first, second) = (record(&scene, &scene.token, &app).await, record(&scene, &other, &app).await);
    scene.set(&[here.clone(), first.clone()]);
    let mut client = RelayClient::spawn(scene.client(&scene.token, &app)).await;
    scene.relay.process.error_line(IN_USE).await;
    let released = scene.relay.token_command(&["release", CUSTOM]).await;
    assert_eq!(released.code(), 0, "{released:?}");
    let lost = within("the loss", client.process.wait()).await;
    assert!(lost.code() == 7 && lost.stderr.contains("has given the domain"), "{lost:?}");
    scene.relay.process.error_line("a custom domain is nobody's any more").await;
    // Nothing rests: it may be another's at once, by the operator's word, which is above any record.
    let ended = scene.relay.token_command(&["reserve", "other", CUSTOM]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let told = scene.refused(&scene.token, &app).await;
    assert!(told.stderr.contains("has reserved"), "{told:?}");
    scene.relay.token_command(&["release", CUSTOM]).await;

    let client = RelayClient::spawn(scene.client(&scene.token, &app)).await;
    scene.relay.process.error_line(IN_USE).await;
    assert_eq!(scene.relay.token_command(&["revoke", "me"]).await.code(), 0);
    scene.relay.process.error_line("a custom domain is nobody's any more").await;
    drop(client);
    // Both records are there, and the first is of a token that is worth nothing.
    scene.set(&[here, first, second]);
    let client = RelayClient::spawn(scene.client(&other, &app)).await;
    assert_eq!(client.url(), format!("https://{CUSTOM}"));
}

/// An order of the custom domain that is under way.
fn order(relay: &RelayServer) -> Option<PathBuf> {
    let own = std::fs::read_dir(relay.data_dir().join("acme")).ok()?;
    let kept = own.flatten().map(|entry| entry.path().join(format!("orders/{CUSTOM}.json")));
    kept.into_iter().find(|path| path.exists())
}

#[tokio::test]
async fn an_order_for_a_domain_goes_on_after_a_crash() {
    let mut scene = Scene::with(Settings { dawdle: 6, ..Settings::default() }, |flags| flags, &[]).await;
    scene.set(&[leads_to(scene.network.here())]);
    let before = scene.orders();
    scene.relay.token_command(&["reserve", "me", CUSTOM]).await;
    let placed = async {
        while order(&scene.relay).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("an order", placed).await;
    let (home, flags) = (scene.relay.process.home().clone(), flags(&scene.network, &scene.parent, &scene.pebble));
    let pebble = scene.pebble.process.said().matches("Added order").count();
    assert_eq!(pebble, before + 1);
    scene.relay.process.kill().await;
    let mut relay = RelayServer::spawn_in(home, flags).await;
    relay.process.error_line("going on with the order of before").await;
    relay.process.error_line(IN_USE).await;
    assert_eq!(scene.pebble.process.said().matches("Added order").count(), before + 1);
    assert!(order(&relay).is_none(), "it is done");
}

/// An authority counts what it has refused.
#[tokio::test]
async fn a_relay_that_starts_anew_does_not_ask_again_for_what_was_refused() {
    // Where the authority looks for the proof, nobody is.
    let elsewhere = |mut flags: Vec<String>| {
        flags.iter_mut().filter(|flag| flag.ends_with(":443")).for_each(|flag| *flag = flag.replace(":443", ":8443"));
        flags
    };
    let mut scene = Scene::with(Settings::default(), elsewhere, &[]).await;
    let other = "other.customer.example.com";
    let here = scene.network.here();
    scene.set(&[leads_to(here), format!("{other}. A {here}")]);
    let before = scene.orders();
    scene.relay.token_command(&["reserve", "me", CUSTOM]).await;
    let complaint = scene.relay.process.error_line("no certificate for a custom domain").await;
    assert!(complaint.contains("does not see that the domain is yours"), "{complaint}");
    let (home, flags) =
        (scene.relay.process.home().clone(), elsewhere(flags(&scene.network, &scene.parent, &scene.pebble)));
    scene.relay.process.kill().await;
    let mut relay = RelayServer::spawn_in(home, flags).await;
    // Behind the one that was refused, if that was to be asked for.
    relay.token_command(&["reserve", "me", other]).await;
    let complaint = relay.process.error_line("no certificate for a custom domain").await;
    assert!(complaint.contains(other), "{complaint}");
    assert_eq!(scene.orders(), before + 2);
}

#[tokio::test]
async fn the_certificate_of_a_domain_is_renewed_when_the_authority_says_so() {
    let network = Network::new();
    let parent = Parent::start(&network).await;
    let settings = Settings { dns: Some(parent.address()), validity: Duration::from_secs(60), ..Settings::default() };
    let pebble = Pebble::start(&network, settings).await;
    let front = Front::start(&network, &pebble, ["2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"]).await;
    set(&parent, network.here(), &[leads_to(network.here())]);
    let mut words = flags(&network, &parent, &pebble);
    let at = words.iter().position(|word| word == "--acme-directory").unwrap() + 1;
    words[at] = front.directory().to_owned();
    let roots = pebble.root_file().await;
    let mut relay = RelayServer::spawn(words).await;
    relay.process.error_line("a new certificate is in use").await;
    relay.token("me").await;
    relay.token_command(&["reserve", "me", CUSTOM]).await;
    relay.process.error_line(IN_USE).await;
    let first = shown(&relay, CUSTOM, &roots).await;
    // As soon as that does not go on for ever, which is behind a third of its life, 20 s. By itself it is behind two, and that is
    // longer than is waited for here.
    relay.process.error_line(IN_USE).await;
    let (_, first) = X509Certificate::from_der(&first).unwrap();
    // The serial number stands behind the dot (RFC 9773, section 4.1).
    let serial = format!(".{}", URL_SAFE_NO_PAD.encode(first.tbs_certificate.raw_serial()));
    assert!(front.replaced().iter().any(|replaced| replaced.ends_with(&serial)), "{:?} {serial}", front.replaced());
}
