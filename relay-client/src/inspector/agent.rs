//! The calls that scripts for ngrok's agent make, with the answers that they expect. What that API lacks is in `api`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use relay_protocol::query::escaped;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{Answer, Problem, json as answer_json, nothing};
use super::query::Query;
use super::records::Records;
use super::replay::Changes;
use super::tunnels::Wish;
use super::{Desk, is_get, read_json};
use crate::capture::exchange::{Exchange, timestamp};
use crate::capture::text;
use crate::control::board::{State, Tunnel};
use crate::control::meter::Reading;
use crate::upstream::address::HostPort;

/// Requests in a list where nobody says.
const REQUESTS: usize = 50;

/// What is said of a message's protocol: it crosses the wire in another one, and reaches the service so.
const PROTO: &str = "HTTP/1.1";

/// A tunnel, as `POST /api/tunnels` asks for it. What would protect it and is not known here is refused, not overlooked;
/// what changes nothing is taken and left alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTunnel {
    name: Option<String>,
    proto: Option<String>,
    addr: Addr,
    subdomain: Option<String>,
    domain: Option<String>,
    hostname: Option<String>,
    host_header: Option<String>,
    #[serde(rename = "inspect")]
    _inspect: Option<bool>,
    #[serde(rename = "schemes")]
    _schemes: Option<IgnoredAny>,
    #[serde(rename = "bind_tls")]
    _bind_tls: Option<IgnoredAny>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "pooling_enabled")]
    _pooling_enabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "addr is a port or an address, as in \"http://localhost:3000\"")]
enum Addr {
    Port(u16),
    Text(String),
}

/// An endpoint, as `POST /api/endpoints` asks for it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewEndpoint {
    name: Option<String>,
    url: Option<String>,
    upstream: NewUpstream,
    #[serde(rename = "inspect")]
    _inspect: Option<bool>,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(rename = "description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "pooling_enabled")]
    _pooling_enabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUpstream {
    url: Addr,
    protocol: Option<String>,
}

/// What is sent once more.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Again {
    id: String,
    tunnel_name: Option<String>,
}

impl From<Addr> for String {
    fn from(addr: Addr) -> Self {
        match addr {
            Addr::Port(port) => port.to_string(),
            Addr::Text(text) => text,
        }
    }
}

/// How busy a tunnel is. Rates are per second, and the percentiles in nanoseconds.
#[derive(Debug, Serialize)]
struct Metrics {
    #[serde(skip_serializing_if = "Option::is_none")]
    gauge: Option<u64>,
    count: u64,
    rate1: f64,
    rate5: f64,
    rate15: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
}

impl Metrics {
    fn new(reading: &Reading, gauge: Option<u64>) -> Self {
        let [rate1, rate5, rate15] = reading.rates;
        let [p50, p90, p95, p99] = reading.percentiles.map(|time| time.as_secs_f64() * 1e9);
        Self { gauge, count: reading.count, rate1, rate5, rate15, p50, p90, p95, p99 }
    }
}

impl Desk {
    pub(super) async fn agent(&self, path: &[&str], head: &Parts, body: Incoming) -> Result<Answer, Problem> {
        let ok = |value: &Value| Ok(answer_json(StatusCode::OK, value));
        match path {
            ["" | "status"] if is_get(head) => ok(&self.agent_status()),
            ["requests", "http"] if is_get(head) => self.requests(head).await,
            ["requests", "http"] if head.method == Method::POST => {
                let Again { id, tunnel_name } = read_json(body).await?;
                self.replay(&id, Changes::none(tunnel_name)).await?;
                Ok(nothing())
            }
            ["requests", "http"] if head.method == Method::DELETE => {
                self.records.capture().forget();
                Ok(nothing())
            }
            ["requests", "http", id] if is_get(head) => {
                let id = (*id).to_owned();
                let look = move |records: &Records| {
                    if !records.capture().has(&id) {
                        return Err(Problem::NoExchange(id));
                    }
                    Ok(answer_json(StatusCode::OK, &captured(&records.get(&id)?)))
                };
                self.records.look(look).await
            }
            ["tunnels"] if is_get(head) => {
                let tunnels: Vec<_> = self.all().iter().map(|tunnel| self.agent_tunnel(tunnel)).collect();
                ok(&json!({ "tunnels": tunnels, "uri": "/api/tunnels" }))
            }
            ["tunnels"] if head.method == Method::POST => {
                let tunnel = self.tunnels.add(self.of_tunnel(read_json(body).await?)?).await?;
                Ok(answer_json(StatusCode::CREATED, &self.agent_tunnel(&tunnel)))
            }
            ["tunnels", name] if is_get(head) => ok(&self.agent_tunnel(&self.tunnels.get(name)?)),
            ["endpoints"] if is_get(head) => {
                let endpoints: Vec<_> = self.all().iter().map(|tunnel| self.endpoint(tunnel)).collect();
                ok(&json!({ "endpoints": endpoints, "uri": "/api/endpoints" }))
            }
            ["endpoints"] if head.method == Method::POST => {
                let tunnel = self.tunnels.add(self.of_endpoint(read_json(body).await?)?).await?;
                Ok(answer_json(StatusCode::CREATED, &self.endpoint(&tunnel)))
            }
            ["endpoints", name] if is_get(head) => ok(&self.endpoint(&self.tunnels.get(name)?)),
            ["endpoints", name] if head.method == Method::PUT => {
                let tunnel = self.tunnels.change(name, self.of_endpoint(read_json(body).await?)?).await?;
                ok(&self.endpoint(&tunnel))
            }
            ["tunnels" | "endpoints", name] if head.method == Method::DELETE => {
                self.tunnels.remove(name).await?;
                Ok(nothing())
            }
            ["tunnels" | "endpoints"] => Err(Problem::Method("GET, HEAD, POST")),
            ["tunnels", _] => Err(Problem::Method("GET, HEAD, DELETE")),
            ["endpoints", _] => Err(Problem::Method("GET, HEAD, PUT, DELETE")),
            ["requests", "http"] => Err(Problem::Method("GET, HEAD, POST, DELETE")),
            ["" | "status"] | ["requests", "http", _] => Err(Problem::Method("GET, HEAD")),
            _ => Err(Problem::NoPath),
        }
    }

    fn all(&self) -> Vec<Tunnel> {
        self.control.board.status().tunnels
    }

    fn agent_status(&self) -> Value {
        let status = self.control.board.status();
        let online = status.state == State::Connected;
        let legs: Vec<_> = self
            .control
            .board
            .latency()
            .map(|latency| json!({ "region": host(&status.relay), "latency": latency.as_nanos() as f64 }))
            .into_iter()
            .collect();
        json!({
            "status": if online { "online" } else { "connecting" },
            "agent_version": status.version,
            "session": { "legs": legs },
            "uri": "/api/status",
        })
    }

    /// The last requests of this client that are in memory, as they are read: the answer is larger than they are.
    async fn requests(&self, head: &Parts) -> Result<Answer, Problem> {
        let mut parameters = Query::of(&head.uri)?;
        let limit = parameters.parse::<usize>("limit")?.unwrap_or(REQUESTS);
        let tunnel = parameters.take("tunnel_name");
        let ids = move |records: &Records| {
            let all = records.capture().kept().into_iter();
            let asked = all.filter(|summary| tunnel.is_none() || summary.tunnel == tunnel);
            Ok(asked.take(limit).map(|summary| summary.id).collect())
        };
        let ids = self.records.look(ids).await?;
        let start = r#"{"uri":"/api/requests/http","requests":["#.to_owned();
        let write = |_: &Records, exchange: Exchange| captured(&exchange).to_string().into_bytes();
        Ok(self.records.stream(ids, None, (start, "]}".to_owned()), write))
    }

    fn metrics(&self, tunnel: &Tunnel) -> Value {
        let reading = self.control.board.traffic_of(&tunnel.tunnel);
        let under_way = self.records.capture().under_way(&tunnel.tunnel);
        json!({ "conns": Metrics::new(&reading, Some(under_way)), "http": Metrics::new(&reading, None) })
    }

    fn agent_tunnel(&self, tunnel: &Tunnel) -> Value {
        json!({
            "name": tunnel.tunnel,
            "uri": format!("/api/tunnels/{}", escaped(&tunnel.tunnel)),
            "public_url": tunnel.url,
            "proto": "https",
            "config": { "addr": tunnel.upstream, "inspect": true },
            "metrics": self.metrics(tunnel),
        })
    }

    fn endpoint(&self, tunnel: &Tunnel) -> Value {
        json!({
            "name": tunnel.tunnel,
            "uri": format!("/api/endpoints/{}", escaped(&tunnel.tunnel)),
            "url": tunnel.url,
            "upstream": { "url": tunnel.upstream, "protocol": "http1" },
            "inspect": true,
            "pooling_enabled": false,
            "metrics": self.metrics(tunnel),
        })
    }

    fn of_tunnel(&self, new: NewTunnel) -> Result<Wish, Problem> {
        if !matches!(new.proto.as_deref(), None | Some("http" | "https")) {
            let reason = "there is http, whose public side is HTTPS, and nothing else".to_owned();
            return Err(Problem::Parameter { name: "proto", reason });
        }
        let host = new.domain.or(new.hostname);
        let subdomain = match (new.subdomain, host) {
            (None, Some(host)) => Some(self.subdomain_of(&host)?),
            (subdomain, _) => subdomain,
        };
        let (name, upstream, host_header) = (new.name, new.addr.into(), new.host_header);
        Ok(Wish { name, upstream, subdomain, host_header, timeout: None })
    }

    fn of_endpoint(&self, new: NewEndpoint) -> Result<Wish, Problem> {
        if !matches!(new.upstream.protocol.as_deref(), None | Some("http1")) {
            let reason = "there is http1, and nothing else".to_owned();
            return Err(Problem::Parameter { name: "protocol", reason });
        }
        let subdomain = new.url.as_deref().map(|url| self.subdomain_of(url)).transpose()?;
        Ok(Wish { name: new.name, upstream: new.upstream.url.into(), subdomain, ..Wish::default() })
    }

    /// The name of a host, or of a URL, below the relay's base domain.
    fn subdomain_of(&self, url: &str) -> Result<String, Problem> {
        let relay = self.control.board.status().relay;
        let (base, host) = (host(&relay), host(url));
        let name = host.strip_suffix(base).and_then(|name| name.strip_suffix('.'));
        name.map(str::to_owned).ok_or_else(|| Problem::Parameter {
            name: "the host",
            reason: format!("{host:?} is not below the relay's domain, {base}"),
        })
    }
}

/// An exchange as ngrok's agent shows it.
fn captured(exchange: &Exchange) -> Value {
    let Exchange { summary, request, response, .. } = exchange;
    let headers = |list: &mut dyn Iterator<Item = (String, String)>| {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        list.for_each(|(name, value)| map.entry(name).or_default().push(value));
        map
    };
    let asked = format!("{} {} {PROTO}", summary.method, summary.path);
    let mut theirs = exchange.request_headers().map(|(name, value)| (canonical(name), text(value)));
    let response = response.as_ref().map(|response| {
        let status = response.head.status;
        let line = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
        let lines = response.head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let raw = raw(&format!("{PROTO} {line}"), lines.clone(), &response.body);
        let headers = headers(&mut lines.map(|(name, value)| (canonical(name), text(value))));
        json!({ "status": line, "status_code": status.as_u16(), "proto": PROTO, "headers": headers, "raw": raw })
    });
    json!({
        "uri": format!("/api/requests/http/{}", escaped(&summary.id)),
        "id": summary.id,
        "tunnel_name": summary.tunnel,
        "remote_addr": summary.remote,
        "start": format!("{:.3}", timestamp(summary.at_ms)),
        "duration": summary.duration_ms.map_or(0, |time| (time * 1e6) as u64),
        "request": {
            "method": summary.method,
            "proto": PROTO,
            "headers": headers(&mut theirs),
            "uri": summary.path,
            "raw": raw(&asked, exchange.request_headers(), &request.body),
        },
        "response": response,
    })
}

/// A message as HTTP/1.1 has it, in base64.
fn raw<'a>(start: &str, headers: impl Iterator<Item = (&'a str, &'a [u8])>, body: &[u8]) -> String {
    let mut raw = format!("{start}\r\n").into_bytes();
    for (name, value) in headers {
        raw.extend([canonical(name).as_bytes(), b": ", value, b"\r\n"].concat());
    }
    raw.extend(b"\r\n");
    raw.extend(body);
    STANDARD.encode(raw)
}

/// A header's name as Go writes it, and scripts look it up.
fn canonical(name: &str) -> String {
    let mut begins = true;
    let letter = |c: char| {
        let c = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        c
    };
    name.chars().map(letter).collect()
}

/// The host of a URL, or of what stands in one behind the scheme.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let has_port = authority.parse::<HostPort>().is_ok();
    authority.rsplit_once(':').filter(|_| has_port).map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hosts_stand_in_urls_with_and_without_a_port() {
        for (url, expected) in [
            ("https://relay.example.com", "relay.example.com"),
            ("https://relay.example.com:8443/a?b", "relay.example.com"),
            ("hooks.relay.example.com", "hooks.relay.example.com"),
            ("https://[::1]:80", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(host(url), expected);
        }
    }

    #[test]
    fn what_would_protect_a_tunnel_is_not_overlooked() {
        let read = |text: &str| serde_json::from_str::<NewTunnel>(text).map_err(|error| error.to_string());
        // What pyngrok sends.
        read(r#"{"name":"http-3000-1f","proto":"http","addr":"http://localhost:3000","schemes":["https"]}"#).unwrap();
        read(r#"{"addr":3000,"bind_tls":true,"inspect":false,"metadata":"x"}"#).unwrap();
        for wrong in ["basic_auth", "oauth", "ip_restriction", "verify_webhook", "traffic_policy"] {
            let error = read(&format!(r#"{{"addr":"3000","{wrong}":["x"]}}"#)).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(read(r#"{"proto":"http"}"#).is_err());
    }
}
