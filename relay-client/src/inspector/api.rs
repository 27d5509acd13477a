//! `/api/v1`: what the page and programs of today ask.

use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::{Answer, Problem, json as answer_json, nothing};
use super::query::Query;
use super::tunnels::Wish;
use super::{Desk, is_get, read_json};
use crate::control::board::{Refused, Tunnel};

/// A tunnel as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTunnel {
    name: Option<String>,
    upstream: String,
    subdomain: Option<String>,
    host_header: Option<String>,
    timeout: Option<String>,
}

/// A tunnel as it is told of.
#[derive(Debug, Serialize)]
struct ShownTunnel<'a> {
    /// What it is called on this machine, and in this API.
    name: &'a str,
    public_url: &'a str,
    upstream: &'a str,
}

impl<'a> From<&'a Tunnel> for ShownTunnel<'a> {
    fn from(tunnel: &'a Tunnel) -> Self {
        Self { name: &tunnel.tunnel, public_url: &tunnel.url, upstream: &tunnel.upstream }
    }
}

impl Desk {
    pub(super) async fn api(&self, path: &[&str], head: &Parts, body: Incoming) -> Result<Answer, Problem> {
        // There is none that a call may have.
        Query::of(&head.uri)?.finish()?;
        match path {
            ["status"] if is_get(head) => Ok(answer_json(StatusCode::OK, &self.control.board.status())),
            ["tunnels"] if is_get(head) => {
                let status = self.control.board.status();
                let tunnels: Vec<_> = status.tunnels.iter().map(ShownTunnel::from).collect();
                let refused =
                    status.refused.iter().map(|Refused { tunnel, reason }| json!({ "name": tunnel, "reason": reason }));
                let refused: Vec<_> = refused.collect();
                Ok(answer_json(StatusCode::OK, &json!({ "tunnels": tunnels, "refused": refused })))
            }
            ["tunnels"] if head.method == Method::POST => {
                let NewTunnel { name, upstream, subdomain, host_header, timeout } = read_json(body).await?;
                let tunnel = self.tunnels.add(Wish { name, upstream, subdomain, host_header, timeout }).await?;
                Ok(answer_json(StatusCode::CREATED, &ShownTunnel::from(&tunnel)))
            }
            ["tunnels", name] if is_get(head) => {
                Ok(answer_json(StatusCode::OK, &ShownTunnel::from(&self.tunnels.get(name)?)))
            }
            ["tunnels", name] if head.method == Method::DELETE => {
                self.tunnels.remove(name).await?;
                Ok(nothing())
            }
            ["status"] => Err(Problem::Method("GET, HEAD")),
            ["tunnels"] => Err(Problem::Method("GET, HEAD, POST")),
            ["tunnels", _] => Err(Problem::Method("GET, HEAD, DELETE")),
            _ => Err(Problem::NoPath),
        }
    }
}
