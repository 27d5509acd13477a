//! A relay and one home, where clients and commands of one user meet.

use std::ffi::OsStr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Ended;
use crate::world::connect_tls;
use crate::{Answer, App, Body, Http, Process, RelayClient, RelayServer, body};

/// A relay, and a home in which clients and commands run.
#[derive(Debug)]
pub struct Place {
    /// The relay.
    pub relay: RelayServer,
    /// A token of it.
    pub token: String,
    /// The home.
    pub home: Arc<TempDir>,
}

impl Place {
    /// A relay with its defaults and an empty home.
    pub async fn new() -> Self {
        Self::of(RelayServer::spawn([""; 0]).await).await
    }

    /// A relay that was started in another way, and an empty home.
    pub async fn of(relay: RelayServer) -> Self {
        let token = relay.token("me").await;
        Self { relay, token, home: Arc::new(tempfile::tempdir().expect("a home")) }
    }

    /// The words of a command, with those that lead to the relay behind the first of them.
    pub fn with_way(&self, words: &[&str]) -> Vec<String> {
        self.relay.arguments(&self.token, words)
    }

    /// Starts `relay …`.
    pub async fn spawn(&self, words: impl IntoIterator<Item: AsRef<OsStr>>) -> Process {
        Process::spawn_in(self.home.clone(), "relay", words, &[]).await
    }

    /// Runs `relay …` to its end.
    pub async fn run(&self, words: &[&str]) -> Ended {
        self.spawn(words).await.wait().await
    }

    /// The lines of JSON of `relay … --output json`, which must succeed.
    pub async fn json(&self, words: &[&str]) -> Vec<Value> {
        let ended = self.run(&[words, &["--output", "json"]].concat()).await;
        assert!(ended.status.success(), "{words:?}: {ended:?}");
        ended.lines()
    }

    /// `relay http` with a tunnel of this name, ready.
    pub async fn client(&self, app: &App, name: &str, flags: &[&str]) -> RelayClient {
        let upstream = app.upstream().to_string();
        let words = [&["http", &upstream, "--subdomain", name, "--output", "json"], flags].concat();
        RelayClient::of(self.spawn(self.with_way(&words)).await).await
    }

    /// A request as the senders of this tunnel make it, from one whose URI is a path.
    pub fn request(&self, name: &str, request: Request<Body>) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let uri = format!("https://{name}.{}:{}{}", RelayServer::DOMAIN, self.relay.https.port(), parts.uri);
        parts.uri = uri.parse().expect("a URL");
        Request::from_parts(parts, body)
    }

    /// Sends it over HTTP/1.1, on a connection of its own.
    pub async fn send(&self, name: &str, request: Request<Body>) -> Answer {
        let host = format!("{name}.{}", RelayServer::DOMAIN);
        let tls = connect_tls(self.relay.https, &host, &self.relay.ca_file(), &[b"http/1.1"]).await;
        Http::one(tls).await.answer(self.request(name, request)).await
    }

    /// Posts this to a tunnel.
    pub async fn post(&self, name: &str, target: &str, bytes: impl Into<Bytes>) -> Answer {
        self.send(name, Request::post(target).body(body::full(bytes)).expect("a request")).await
    }
}
