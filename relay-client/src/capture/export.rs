//! An exchange as other tools take it: as a command that sends it once more, a program, raw HTTP, or an HTTP archive.
//!
//! What lets somebody in is masked unless it is asked for: see [`mask`].

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, FORWARDED, HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use relay_protocol::message::HeaderList;
use relay_protocol::webhook::{Request, Table};
use serde_json::{Value, json};

use super::exchange::{Exchange, Part, timestamp};
use super::fixture::{About, Fixture, FixtureRequest, FixtureResponse};
use super::saved::{Saved, base};
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
    let Part { head, body, trailers, .. } = &mut exchange.request;
    let provider = exchange.summary.provider.as_deref().and_then(|id| table.get(id));
    let request = Request::new(&head.method, &url, &head.headers, body);
    let provider = provider.or_else(|| table.recognise(&request)).map(AsRef::as_ref);
    if let Some(Part { head, body, trailers, .. }) = &mut exchange.response {
        mask::answer(&request, provider, &mut head.headers, body);
        mask::headers(trailers);
    }
    let draft = mask::request(&request, provider);
    let target =
        draft.url.get(base(&draft.url, &draft.headers).map_or(0, str::len)..).and_then(|target| target.parse().ok());
    if draft.url != url {
        // What cannot be a target any more is not shown, either.
        head.target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
        exchange.summary.path = head.target.to_string();
    }
    (head.headers, *body) = (draft.headers, draft.body);
    mask::headers(trailers);
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

/// The headers that a tool has to be told: those that its sender wrote and that do not follow from the rest. Each character
/// of a value is a byte of it.
fn told(exchange: &Exchange) -> Vec<(String, String)> {
    let is_theirs = |name: &HeaderName| {
        let name_text = name.as_str();
        !matches!(*name, HOST | CONTENT_LENGTH | FORWARDED)
            && !name_text.starts_with("x-forwarded-")
            && !name_text.starts_with("relay-")
            && name_text != "x-real-ip"
    };
    let headers = exchange.request.head.headers.iter().filter(|(name, _)| is_theirs(name));
    let bytes = |value: &HeaderValue| value.as_bytes().iter().copied().map(char::from).collect();
    headers.map(|(name, value)| (name.to_string(), bytes(value))).collect()
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
        let _ = match header.is_ascii() {
            true => write!(line, " \\\n  -H {}", Quoted(&header)),
            // A shell would write a character as two bytes.
            false => write!(line, " \\\n  -H \"$(printf '{}')\"", octal(&header)),
        };
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

/// Bytes as the format of printf writes them.
fn octal(bytes: &str) -> String {
    let piece = |c: char| match c {
        ' ' | '=' | ':' | ';' | ',' | '.' | '-' | '_' | '/' => c.to_string(),
        c if c.is_ascii_alphanumeric() => c.to_string(),
        c => format!("\\{:03o}", u32::from(c)),
    };
    bytes.chars().map(piece).collect()
}

fn httpie(exchange: &Exchange) -> String {
    let (head, body) = (&exchange.request.head, &exchange.request.body);
    let mut headers = told(exchange);
    // It takes another method for a URL, and writes other bytes.
    let is_letters = head.method.as_str().bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_letters || !headers.iter().all(|(_, value)| is_for_httpie(value)) {
        return "# HTTPie cannot send this request as it came; curl can: relay export --as curl\n".to_owned();
    }
    if !body.is_empty() && headers.iter().all(|(name, _)| name != CONTENT_TYPE.as_str()) {
        // A colon without a value takes away what it would add by itself.
        headers.push((format!("{CONTENT_TYPE}:"), String::new()));
    }
    let mut line = String::from("http --path-as-is");
    if let Some(text) = plain(body) {
        line.push_str(" --ignore-stdin");
        if !text.is_empty() {
            let _ = write!(line, " --raw {}", Quoted(text));
        }
    }
    let _ = write!(line, " {} {}", head.method, Quoted(&exchange.url()));
    if headers.iter().any(|(name, _)| name.starts_with('-')) {
        line.push_str(" --");
    }
    for (name, value) in headers {
        let header = match value.chars().next() {
            None if name.ends_with(':') => name,
            None => format!("{name};"),
            // They would make it a file's name, or JSON.
            Some('@' | '=') => format!("{name}:\\{value}"),
            Some(_) => format!("{name}:{value}"),
        };
        let _ = write!(line, " \\\n  {}", Quoted(&header));
    }
    with_body(line, body, |_, _| (), "")
}

/// Whether HTTPie can send a header's value: it writes UTF-8, and takes a backslash before a separator away.
fn is_for_httpie(value: &str) -> bool {
    value.is_ascii() && [':', ';', '=', '@'].iter().all(|separator| !value.contains(&format!("\\{separator}")))
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
    let has_type = exchange.request.head.headers.iter().any(|(name, _)| *name == CONTENT_TYPE);
    let _ = match std::str::from_utf8(body) {
        Ok("") => Ok(()),
        Ok(text) if has_type => writeln!(out, "  body: {},", json!(text)),
        // A text would be given a type.
        Ok(text) => writeln!(out, "  body: new TextEncoder().encode({}),", json!(text)),
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

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use clap::ValueEnum as _;
    use http::{Method, StatusCode};
    use relay_protocol::message::{RequestHead, ResponseHead};

    use super::*;
    use crate::capture::exchange::{Summary, Timings};

    /// The rows of the table, as they are written.
    const TABLE: &str = include_str!("../../../protocol/src/webhook/providers.toml");

    const SECRET: &str = "s3cr3t-of-mine";

    /// A request of this provider's that came like this.
    pub(in crate::capture) fn exchange(
        provider: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Exchange {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let head = RequestHead {
            tunnel: 0,
            id: "01KB2Z4QJ5".into(),
            deadline_ms: 1000,
            elapsed_ms: 0,
            method: Method::POST,
            target: target.parse().unwrap(),
            authority: "t.example".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers,
        };
        let summary = Summary {
            id: "01KB2Z4QJ5".to_owned(),
            tunnel: Some("web".to_owned()),
            at_ms: 0,
            method: "POST".to_owned(),
            path: target.to_owned(),
            status: Some(200),
            error: None,
            duration_ms: None,
            allowed_ms: None,
            provider: Some(provider.to_owned()),
            provider_name: None,
            event_id: None,
            event_type: None,
            verdict: None,
            request_size: body.len() as u64,
            response_size: Some(0),
            remote: "192.0.2.1".to_owned(),
            replay_of: None,
            attempt: 1,
            inbox_attempt: None,
        };
        fn part<H>(head: H, body: &[u8]) -> Part<H> {
            let (body, size) = (body.to_vec(), body.len() as u64);
            Part { head, body, body_size: size, body_truncated: false, trailers: HeaderList::new() }
        }
        // The service says what it was told.
        let echo = ("x-hook-secret".parse().unwrap(), SECRET.parse().unwrap());
        let headers = if provider == "asana" { vec![echo] } else { Vec::new() };
        let answer = ResponseHead { status: StatusCode::OK, headers };
        let timings = Timings::default();
        let response = Some(part(answer, format!("{{\"token\":\"{SECRET}\"}}").as_bytes()));
        Exchange { summary, reason: None, timings, request: part(head, body), response }
    }

    /// Every form of it.
    fn written(exchange: &Exchange, table: &Table) -> Vec<(String, String)> {
        let forms = Form::value_variants().iter().map(|form| {
            let text = match form {
                Form::Fixture => fixture(exchange).files().unwrap().into_iter().flat_map(|(_, text)| text).collect(),
                form => write(exchange, *form, table),
            };
            (format!("{form:?}"), String::from_utf8(text).unwrap())
        });
        forms.collect()
    }

    /// JSON in which a pointer leads to the secret.
    fn document(pointer: &str) -> String {
        let steps: Vec<_> = pointer.split('/').skip(1).collect();
        steps.iter().rev().fold(format!("\"{SECRET}\""), |inner, step| match *step {
            "*" => format!("[{inner}, {inner}]"),
            name => format!("{{\"a\": 1, \"{name}\": {inner}}}"),
        })
    }

    /// Requests that have the secret at a place, read or not.
    fn requests(provider: &str, place: &str) -> Vec<Exchange> {
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
        const JSON: (&str, &str) = ("content-type", "application/json");
        match place.split_once(':').unwrap() {
            ("header", name) => vec![exchange(provider, "/hooks?a=1", &[(name, SECRET), ("x-a", "1")], b"{}")],
            ("query", name) => vec![exchange(provider, &format!("/hooks?a=1&{name}={SECRET}&b=%20"), &[], b"{}")],
            ("json", pointer) => {
                let whole = document(pointer);
                let cut = whole.get(..whole.rfind(SECRET).unwrap() + SECRET.len() + 1).unwrap();
                let texts = [whole.clone(), cut.to_owned(), format!("{whole}}}"), format!("\u{feff}{whole}")];
                texts.iter().map(|text| exchange(provider, "/hooks", &[JSON], text.as_bytes())).collect()
            }
            ("form", field) => {
                let (name, value) = match field.split_once('#') {
                    Some((name, pointer)) => (name, document(pointer)),
                    None => (field, SECRET.to_owned()),
                };
                let encoded = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
                let whole = format!("a=1&{name}={encoded}&b=2");
                let cut = whole.get(..whole.rfind("mine").unwrap() + 4).unwrap();
                let texts = [whole.as_str(), cut, &whole.replace("a=1", &"a=1&".repeat(5000))];
                let mut all: Vec<_> = texts.map(|text| exchange(provider, "/", &[FORM], text.as_bytes())).into();
                let part = format!("--x\r\ncontent-disposition: form-data; name={name}\r\n\r\n{value}");
                let kind = ("content-type", "multipart/form-data; boundary=x");
                all.push(exchange(provider, "/", &[kind], part.as_bytes()));
                // Without its type it is nothing that is understood.
                all.push(exchange(provider, "/", &[], whole.as_bytes()));
                all
            }
            _ => panic!("{provider}: {place}"),
        }
    }

    #[test]
    fn nothing_that_a_row_calls_secret_is_in_any_form_of_an_export() {
        let table = Table::built_in().unwrap();
        let rows: toml::Table = toml::from_str(TABLE).unwrap();
        let mut places = Vec::new();
        for row in rows["provider"].as_array().unwrap() {
            let rules = row.get("signature").and_then(|rules| rules.as_array()).into_iter().flatten();
            let shared = rules.filter(|rule| rule["scheme"].as_str() == Some("equal")).map(|rule| &rule["from"]);
            let secrets = row.get("secrets").and_then(|secrets| secrets.as_array()).into_iter().flatten();
            let all = shared.chain(secrets).map(|place| (row["id"].as_str().unwrap(), place.as_str().unwrap()));
            places.extend(all);
        }
        assert!(places.len() > 15, "{places:?}");
        for (provider, place) in places {
            for (i, exchange) in requests(provider, place).into_iter().enumerate() {
                let shown = written(&exchange, &table);
                let encoded = SECRET.replace('-', "%2D");
                // Some are in base64.
                let shows = |text: &str| text.contains(SECRET) || text.contains(&encoded);
                assert!(shown.iter().filter(|(_, text)| shows(text)).count() > 3, "{provider} {place} {i}");
                for (form, text) in written(&masked(exchange, &table), &table) {
                    // In some it is in base64.
                    assert!(form != "Http" || text.contains("***"), "{provider} {place} {i} as {form}: {text}");
                    for left in ["s3cr3t", "mine"] {
                        assert!(!text.contains(left), "{provider} {place} {i} as {form}: {text}");
                    }
                }
            }
        }
    }
}
