//! An exchange as other tools take it: as a command that sends it once more, a program, raw HTTP, or an HTTP archive.
//!
//! What lets somebody in is masked unless it is asked for: see [`mask`].

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, FORWARDED, HOST, HeaderName};
use relay_protocol::message::HeaderList;
use relay_protocol::webhook::{Request, Table};
use serde_json::{Value, json};

use super::exchange::{Exchange, timestamp};
use super::fixture::{About, Fixture, FixtureRequest, FixtureResponse};
use super::saved::{Saved, origin};
use super::{mask, text};
use crate::terminal::{Quoted, hazardous};

/// A form of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// A line for a shell with curl
    Curl,
    /// A line for a shell with HTTPie
    Httpie,
    /// JavaScript: a call of fetch
    Fetch,
    /// Python: a call of requests
    Python,
    /// The request as it was sent, as `relay verify` reads it
    Http,
    /// An HTTP archive (HAR 1.2), as browsers read it
    Har,
    /// What `relay show --output json` prints
    Json,
    /// A directory that git can hold, as `relay replay` reads it
    Fixture,
}

/// Takes out of an exchange what lets in whoever knows it.
pub(crate) fn masked(mut exchange: Exchange, table: &Table) -> Exchange {
    let url = exchange.url();
    let head = &mut exchange.request.head;
    let provider = exchange.summary.provider.as_deref().and_then(|id| table.get(id));
    let request = Request::new(&head.method, &url, &head.headers, &exchange.request.body);
    let provider = provider.or_else(|| table.recognise(&request)).map(AsRef::as_ref);
    let draft = mask::request(&request, provider);
    if let Some(target) = draft.url.get(origin(&draft.url).map_or(0, str::len)..)
        && let Ok(target) = target.parse()
    {
        head.target = target;
        exchange.summary.path = head.target.to_string();
    }
    (head.headers, exchange.request.body) = (draft.headers, draft.body);
    if let Some(response) = &mut exchange.response {
        mask::headers(&mut response.head.headers);
    }
    exchange
}

/// The exchange as one text, or the bytes of raw HTTP. A [fixture](Form::Fixture) is none; it is as [`Form::Json`].
pub(crate) fn write(exchange: &Exchange, form: Form, table: &Table) -> Vec<u8> {
    let text = match form {
        Form::Http => return http(exchange),
        Form::Curl => curl(exchange),
        Form::Httpie => httpie(exchange),
        Form::Fetch => fetch(exchange),
        Form::Python => python(exchange),
        Form::Har => format!("{:#}\n", har(std::slice::from_ref(exchange))),
        Form::Json | Form::Fixture => crate::terminal::json_line(&exchange.detail(Some(table))),
    };
    text.into_bytes()
}

/// As a directory.
pub(crate) fn fixture(exchange: &Exchange) -> Fixture {
    let Exchange { summary, request, response, .. } = exchange;
    Fixture {
        about: About {
            id: summary.id.clone(),
            at: format!("{:.3}", timestamp(summary.at_ms)),
            url: exchange.url(),
            tunnel: summary.tunnel.clone(),
            provider: summary.provider.clone(),
            event_id: summary.event_id.clone(),
            event_type: summary.event_type.clone(),
            request_truncated: request.body_truncated,
            response_truncated: response.as_ref().is_some_and(|response| response.body_truncated),
        },
        request: FixtureRequest {
            method: request.head.method.clone(),
            target: request.head.target.to_string(),
            headers: with_host(exchange),
            body: request.body.clone(),
        },
        response: response.as_ref().map(|response| FixtureResponse {
            status: response.head.status,
            headers: response.head.headers.clone(),
            body: response.body.clone(),
        }),
    }
}

fn with_host(exchange: &Exchange) -> HeaderList {
    let head = &exchange.request.head;
    let host = http::HeaderValue::from_str(&head.authority).ok().map(|host| (HOST, host));
    host.into_iter().chain(head.headers.iter().filter(|(name, _)| *name != HOST).cloned()).collect()
}

fn http(exchange: &Exchange) -> Vec<u8> {
    let head = &exchange.request.head;
    let target = head.target.as_str();
    Saved { method: head.method.clone(), target, headers: with_host(exchange), body: &exchange.request.body }.write()
}

/// The headers that a tool has to be told: those that its sender wrote and that do not follow from the rest.
fn told(exchange: &Exchange) -> Vec<(String, String)> {
    let is_theirs = |name: &HeaderName| {
        let name_text = name.as_str();
        !matches!(*name, HOST | CONTENT_LENGTH | FORWARDED)
            && !name_text.starts_with("x-forwarded-")
            && !name_text.starts_with("relay-")
            && name_text != "x-real-ip"
    };
    let headers = exchange.request.head.headers.iter().filter(|(name, _)| is_theirs(name));
    headers.map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}

/// The body where it can stand in a shell's quotes; otherwise it is handed over in base64.
fn plain(body: &[u8]) -> Option<&str> {
    let fits = |c: char| !hazardous(c) || c == '\n' || c == '\t';
    std::str::from_utf8(body).ok().filter(|text| text.chars().all(fits))
}

fn curl(exchange: &Exchange) -> String {
    let (head, body) = (&exchange.request.head, &exchange.request.body);
    let headers = told(exchange);
    let mut line = String::from("curl --globoff --path-as-is");
    let _ = match head.method {
        http::Method::HEAD => write!(line, " --head"),
        _ => write!(line, " -X {}", Quoted(head.method.as_str())),
    };
    let _ = write!(line, " {}", Quoted(&exchange.url()));
    for (name, value) in &headers {
        // curl takes a name and a semicolon for a header without a value.
        let header = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        let _ = write!(line, " \\\n  -H {}", Quoted(&header));
    }
    // What curl would add by itself.
    let added = if body.is_empty() { &["accept", "user-agent"][..] } else { &["accept", "user-agent", "content-type"] };
    for name in added.iter().filter(|added| headers.iter().all(|(name, _)| name != *added)) {
        let _ = write!(line, " \\\n  -H '{name}:'");
    }
    with_body(
        line,
        body,
        |line, text| {
            let _ = write!(line, " \\\n  --data-raw {}", Quoted(text));
        },
        " \\\n  --data-binary @-",
    )
}

fn httpie(exchange: &Exchange) -> String {
    let (head, body) = (&exchange.request.head, &exchange.request.body);
    let method = Quoted(head.method.as_str());
    let mut line = format!("http --ignore-stdin {method} {}", Quoted(&exchange.url()));
    if plain(body).is_none() {
        line = line.replacen(" --ignore-stdin", "", 1);
    }
    for (name, value) in told(exchange) {
        let header = if value.is_empty() { format!("{name};") } else { format!("{name}:{value}") };
        let _ = write!(line, " \\\n  {}", Quoted(&header));
    }
    with_body(
        line,
        body,
        |line, text| {
            let _ = write!(line, " \\\n  --raw {}", Quoted(text));
        },
        "",
    )
}

/// A command with its body: in the line where it can stand there, and otherwise on standard input.
fn with_body(mut line: String, body: &[u8], inline: impl FnOnce(&mut String, &str), stdin: &str) -> String {
    match plain(body) {
        Some("") => {}
        Some(text) => inline(&mut line, text),
        None => line = format!("printf %s {} | base64 -d | {line}{stdin}", STANDARD.encode(body)),
    }
    line.push('\n');
    line
}

fn fetch(exchange: &Exchange) -> String {
    let (head, body) = (&exchange.request.head, &exchange.request.body);
    let mut out = format!("await fetch({}, {{\n  method: \"{}\",\n", json!(exchange.url()), head.method);
    out.push_str("  headers: [\n");
    for header in told(exchange) {
        let _ = writeln!(out, "    {},", json!([header.0, header.1]));
    }
    out.push_str("  ],\n");
    let _ = match std::str::from_utf8(body) {
        Ok("") => Ok(()),
        Ok(text) => writeln!(out, "  body: {},", json!(text)),
        Err(_) => {
            let encoded = STANDARD.encode(body);
            writeln!(out, "  body: Uint8Array.from(atob(\"{encoded}\"), (c) => c.charCodeAt(0)),")
        }
    };
    out.push_str("});\n");
    out
}

fn python(exchange: &Exchange) -> String {
    let (head, body) = (&exchange.request.head, &exchange.request.body);
    // A JSON string is one of Python, too, where all beyond ASCII is escaped.
    let string = |text: &str| ascii_json(text);
    let mut out = format!(
        "import base64\n\nimport requests\n\nresponse = requests.request(\n    {},\n    {},\n    headers={{\n",
        string(head.method.as_str()),
        string(&exchange.url())
    );
    let mut seen: Vec<(String, String)> = Vec::new();
    for (name, value) in told(exchange) {
        match seen.iter_mut().find(|(known, _)| *known == name) {
            // A dictionary has one of each; for most headers that is the same (RFC 9110, section 5.3).
            Some((_, values)) => values.extend([", ", &value]),
            None => seen.push((name, value)),
        }
    }
    for (name, value) in &seen {
        let _ = writeln!(out, "        {}: {},", string(name), string(value));
    }
    out.push_str("    },\n");
    let _ = match std::str::from_utf8(body) {
        Ok("") => Ok(()),
        Ok(text) => writeln!(out, "    data={}.encode(),", string(text)),
        Err(_) => writeln!(out, "    data=base64.b64decode(\"{}\"),", STANDARD.encode(body)),
    };
    out.push_str("    allow_redirects=False,\n)\nprint(response.status_code, response.text)\n");
    if std::str::from_utf8(body).is_ok() {
        out = out.replacen("import base64\n\n", "", 1);
    }
    out
}

/// A string of JSON in ASCII. Beyond the first plane it has Python's form, which differs.
fn ascii_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for c in json!(text).to_string().chars() {
        let _ = match u32::from(c) {
            0..=0x7e => write!(out, "{c}"),
            code @ ..=0xffff => write!(out, "\\u{code:04x}"),
            code => write!(out, "\\U{code:08x}"),
        };
    }
    out
}

/// An HTTP archive, as version 1.2 describes it (<http://www.softwareishard.com/blog/har-12-spec/>).
pub(crate) fn har(exchanges: &[Exchange]) -> Value {
    json!({ "log": {
        "version": "1.2",
        "creator": { "name": "relay", "version": env!("CARGO_PKG_VERSION") },
        "entries": exchanges.iter().map(entry).collect::<Vec<_>>(),
    }})
}

fn entry(exchange: &Exchange) -> Value {
    let Exchange { summary, timings, request, response, .. } = exchange;
    let pairs = |list: &mut dyn Iterator<Item = (String, String)>| {
        list.map(|(name, value)| json!({ "name": name, "value": value })).collect::<Vec<_>>()
    };
    let lines =
        |list: &HeaderList| pairs(&mut list.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))));
    let kind = |list: &HeaderList| {
        let found = list.iter().find(|(name, _)| *name == CONTENT_TYPE);
        found.map_or_else(|| "application/octet-stream".to_owned(), |(_, value)| text(value.as_bytes()))
    };
    let query = request.head.target.query().unwrap_or_default();
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut sent = json!({
        "method": summary.method,
        "url": exchange.url(),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": pairs(&mut exchange.request_headers().map(|(name, value)| (name.to_owned(), text(value)))),
        "queryString": pairs(&mut query.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        "headersSize": -1,
        "bodySize": request.body_size,
    });
    if request.body_size > 0
        && let Some(sent) = sent.as_object_mut()
    {
        let mut data = content(&request.body, kind(&request.head.headers));
        if let Some(data) = data.as_object_mut() {
            data.remove("size");
        }
        sent.insert("postData".to_owned(), data);
    }
    let answer = response.as_ref().map(|response| {
        json!({
            "status": response.head.status.as_u16(),
            "statusText": response.head.status.canonical_reason().unwrap_or_default(),
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": lines(&response.head.headers),
            "content": content(&response.body, kind(&response.head.headers)),
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": response.body_size,
        })
    });
    // Browsers write 0 where there is no answer.
    let none = || {
        json!({
            "status": 0, "statusText": "", "httpVersion": "", "cookies": [], "headers": [], "redirectURL": "",
            "content": { "size": 0, "mimeType": "x-unknown" }, "headersSize": -1, "bodySize": -1,
        })
    };
    let (wait, total) = (timings.upstream_ms.unwrap_or_default(), timings.total_ms.unwrap_or_default());
    let edge = timings.edge_ms as f64;
    json!({
        "startedDateTime": format!("{:.3}", timestamp(summary.at_ms)),
        "time": total,
        "request": sent,
        "response": answer.unwrap_or_else(none),
        "cache": {},
        "timings": { "blocked": -1, "send": edge, "wait": wait, "receive": (total - wait - edge).max(0.0) },
        "_id": summary.id,
        "_provider": summary.provider,
        "_event_type": summary.event_type,
    })
}

fn content(body: &[u8], kind: String) -> Value {
    match std::str::from_utf8(body) {
        Ok(text) => json!({ "size": body.len(), "mimeType": kind, "text": text }),
        Err(_) => json!({ "size": body.len(), "mimeType": kind, "text": STANDARD.encode(body), "encoding": "base64" }),
    }
}
