//! `/api/v1`: what the page and programs of today ask.

use std::collections::VecDeque;

use clap::ValueEnum as _;
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use relay_protocol::webhook::Table;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::{Answer, Problem, as_download, bytes, download, json as answer_json, nothing};
use super::archive::tar;
use super::query::Query;
use super::records::{self, Records};
use super::replay::Changes;
use super::tunnels::Wish;
use super::{Desk, events, is_get, read, read_json};
use crate::capture::exchange::Exchange;
use crate::capture::export::{self, Form};
use crate::capture::history;
use crate::control::board::{Refused, Tunnel};

/// All calls of this file and of `agent`, for programs.
const OPENAPI: &str = include_str!("openapi.json");

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
        let mut query = Query::of(&head.uri)?;
        match path {
            ["exchanges"] if is_get(head) => {
                let (query, limit) = parsed(query, records::query)?;
                let page = self.records.look(move |records| Ok(to_json(&records.page(&query, limit)?))).await?;
                return Ok(page);
            }
            ["exchanges.har"] if is_get(head) => {
                let (query, _) = parsed(query, records::query)?;
                return Ok(self.archive(query));
            }
            ["exchanges", id, "export"] if is_get(head) => {
                let (form, shown) = parsed(query, |query| Ok((query.read("as", form)?, query.take("secrets"))))?;
                let is_masked = shown.as_deref() != Some("show");
                return self.export((*id).to_owned(), form.unwrap_or(Form::Json), is_masked).await;
            }
            ["wait"] if is_get(head) => {
                let id = events::wait(&self.records, &self.watchers, &mut query, &self.closing).await?;
                return self.exchange(id).await;
            }
            ["inboxes", rest @ ..] => return self.inboxes(rest, head, query, body).await,
            // The others have none.
            _ => query.finish()?,
        }
        match path {
            ["exchanges"] if head.method == Method::DELETE => {
                self.records.clear().await?;
                Ok(nothing())
            }
            ["exchanges", id] if is_get(head) => self.exchange((*id).to_owned()).await,
            ["exchanges", id, side @ ("request" | "response"), "body"] if is_get(head) => {
                let (id, is_request) = ((*id).to_owned(), *side == "request");
                let name = format!("{id}-{side}.bin");
                let body = move |records: &Records| {
                    let exchange = records.get(&id)?;
                    let response = exchange.response.map(|response| response.body);
                    if is_request { Ok(exchange.request.body) } else { response.ok_or(Problem::NoResponse(id)) }
                };
                Ok(download("application/octet-stream", &name, self.records.look(body).await?))
            }
            ["exchanges", id, "replay"] if head.method == Method::POST => {
                let changes = Changes::read(&read(body).await?)?;
                Ok(answer_json(StatusCode::CREATED, &self.replay(id, changes).await?))
            }
            ["openapi.json"] if is_get(head) => Ok(bytes(StatusCode::OK, "application/json", OPENAPI)),
            ["events"] if is_get(head) => events::watch(&self.records, &self.watchers, &self.closing),
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
            ["exchanges", _, "replay"] => Err(Problem::Method("POST")),
            ["exchanges"] => Err(Problem::Method("GET, HEAD, DELETE")),
            ["status" | "events" | "wait" | "openapi.json" | "exchanges.har"]
            | ["exchanges", _]
            | ["exchanges", _, "export"]
            | ["exchanges", _, "request" | "response", "body"] => Err(Problem::Method("GET, HEAD")),
            ["tunnels"] => Err(Problem::Method("GET, HEAD, POST")),
            ["tunnels", _] => Err(Problem::Method("GET, HEAD, DELETE")),
            _ => Err(Problem::NoPath),
        }
    }

    /// An exchange as a file.
    async fn export(&self, id: String, form: Form, is_masked: bool) -> Result<Answer, Problem> {
        let file = move |records: &Records| {
            let (mut exchange, table) = (records.get(&id)?, records.table());
            if is_masked {
                exchange = export::masked(exchange, table);
            }
            let (end, kind, content) = exported(&exchange, form, table)?;
            Ok(download(kind, &format!("{id}.{end}"), content))
        };
        self.records.look(file).await
    }

    /// All exchanges that are asked for as an HTTP archive without their secrets, which is made as it is read.
    fn archive(&self, query: history::Query) -> Answer {
        let whole = export::har(&[]).to_string();
        let (head, tail) = whole.split_once("\"entries\":[]").unwrap_or_default();
        let around = (format!("{head}\"entries\":["), format!("]{tail}"));
        let answer = self.records.stream(VecDeque::new(), Some(query), around, |records, exchange| {
            let masked = export::masked(exchange, records.table());
            // The only one of its archive.
            let entry = export::har(&[masked]).pointer("/log/entries/0").map(ToString::to_string);
            entry.unwrap_or_default().into_bytes()
        });
        as_download(answer, "exchanges.har")
    }

    /// An exchange with all that is known of it.
    async fn exchange(&self, id: String) -> Result<Answer, Problem> {
        let show = move |records: &Records| {
            let exchange = records.get(&id)?;
            Ok(to_json(&exchange.detail(Some(records.table()))))
        };
        self.records.look(show).await
    }
}

/// Reads a form of an export.
fn form(text: &str) -> Result<Form, String> {
    let name = |form: &Form| Some(form.to_possible_value()?.get_name().to_owned());
    let known = || Form::value_variants().iter().filter_map(name).collect::<Vec<_>>().join(", ");
    Form::from_str(text, false).map_err(|_| format!("{text:?} is none of {}", known()))
}

/// An exchange in a form that others take: the end of a file's name, the type, and what is in it.
fn exported(exchange: &Exchange, form: Form, table: &Table) -> Result<(&'static str, &'static str, Vec<u8>), Problem> {
    let (end, kind) = match form {
        Form::Curl | Form::Httpie => ("sh", "text/plain; charset=utf-8"),
        Form::Fetch => ("js", "text/plain; charset=utf-8"),
        Form::Python => ("py", "text/plain; charset=utf-8"),
        Form::Http => ("http", "application/octet-stream"),
        Form::Har => ("har", "application/json"),
        Form::Json => ("json", "application/json"),
        Form::Fixture => {
            let files = export::fixture(exchange).files().map_err(|error| Problem::History(error.to_string()))?;
            return Ok(("tar", "application/x-tar", tar(&exchange.summary.id, &files)));
        }
    };
    Ok((end, kind, export::write(exchange, form, table)))
}

fn to_json(value: &impl Serialize) -> Answer {
    answer_json(StatusCode::OK, value)
}

/// What `read` makes of all parameters.
fn parsed<T>(mut query: Query, read: impl FnOnce(&mut Query) -> Result<T, Problem>) -> Result<T, Problem> {
    let parsed = read(&mut query)?;
    query.finish()?;
    Ok(parsed)
}
