//! Custom domains: whose they are, and the certificates that the relay gets for them, from Pebble.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Request;
use relay_tests::pebble::Settings;
use relay_tests::process::{Ended, arguments, run};
use relay_tests::world::{connect_tls, try_connect_tls};
use relay_tests::{App, Http, Network, Parent, Pebble, RelayClient, RelayServer, body, within};
use serde_json::{Value, json};
use tokio::net::TcpStream;

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
        let network = Network::new();
        let parent = Parent::start(&network).await;
        let dns = Some(parent.address());
        let pebble = Pebble::start(&network, Settings { dns, validity, ..Settings::default() }).await;
        let roots = pebble.root_file().await;
        set(&parent, network.here(), records);
        let mut relay = RelayServer::spawn(flags(&network, &parent, &pebble)).await;
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
