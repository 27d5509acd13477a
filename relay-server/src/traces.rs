//! Traces of exchanges, sent to a collector over OTLP.
//!
//! ```text
//!   edge      ├──────────────────────────────────────────────┤  from the request's head to the end of its response
//!   tunnel      ├────────────────────────────────┤              until the head of the answer, once for each link
//!   upstream         ├────────────────────┤                     as the client has measured it
//! ```
//!
//! The service sees `upstream` as its parent in `traceparent`. All three are told by the relay: clients need no way to a
//! collector, and no clock that agrees with any other.
//!
//! An exchange that has ended is made text at once and put into a queue, which a task empties. A collector that is slow, or
//! away, costs traces and nothing else.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use prometheus_client::metrics::counter::Counter;
use relay_protocol::message::HeaderList;
use relay_protocol::trace::{TRACESTATE, TraceContext, took_of};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::log::{AccessLine, cut};
use crate::outgoing::Outgoing;

/// Most exchanges that wait to be sent, of about two kibibytes each.
const QUEUE: usize = 2048;

/// Most of them in one request.
const BATCH: usize = 512;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// The waits between the attempts to send a batch. Each is a fifth longer or shorter.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// What the collector gets of a relay's last moments.
const LAST: Duration = Duration::from_secs(2);

/// Links that an exchange is followed over. One that is lost so often has other troubles.
const LEGS: usize = 4;

/// Longest `tracestate` that is told, in bytes (W3C Trace Context, section 3.3.1.5, asks for as many).
const STATE: usize = 512;

/// Where traces go, and how many are written.
#[derive(Clone, PartialEq)]
pub struct Traces {
    /// The collector's address for traces, such as `http://127.0.0.1:4318/v1/traces`.
    pub url: Uri,
    /// What it is to be sent beside them, such as a key; not shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How many requests that are part of no trace begin one, from 0 to 1. Those that are part of one say themselves whether
    /// it is written down.
    pub sample: f64,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, headers, sample } = self;
        let host = url.host().unwrap_or_default();
        f.debug_struct("Traces").field("host", &host).field("headers", &headers.len()).field("sample", sample).finish()
    }
}

/// Begins traces, and takes them when they are over.
#[derive(Debug)]
pub(crate) struct Tracer {
    sample: f64,
    queue: mpsc::Sender<Vec<u8>>,
    dropped: Counter,
}

/// The trace of an exchange that goes on.
#[derive(Debug)]
pub(crate) struct Trace {
    id: u128,
    parent: Option<u64>,
    state: Option<HeaderValue>,
    edge: u64,
    legs: Vec<Leg>,
}

/// The way through one link and back.
#[derive(Debug)]
struct Leg {
    tunnel: u64,
    upstream: u64,
    sent: Instant,
    answered: Option<(Instant, Option<Duration>)>,
}

impl Tracer {
    /// A tracer, and what empties its queue once it [runs](Exporter::run).
    pub(crate) fn new(traces: &Traces, outgoing: Outgoing, sent: Counter, dropped: Counter) -> (Self, Exporter) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let tracer = Self { sample: traces.sample, queue, dropped: dropped.clone() };
        (tracer, Exporter { traces: traces.clone(), outgoing, waiting, sent, dropped, is_away: false })
    }

    /// Begins the trace of a request, or takes it over, where it is to be written; the head then names the edge as parent.
    pub(crate) fn begin(&self, headers: &mut HeaderList) -> Option<Box<Trace>> {
        let asking = TraceContext::of(headers);
        let is_written = asking.map_or_else(|| fastrand::f64() < self.sample, |asking| asking.sampled);
        if !is_written {
            return None;
        }
        if asking.is_none() {
            // Of no trace, or of one that cannot be read (section 4.3).
            headers.retain(|(name, _)| *name != TRACESTATE);
        }
        let state = headers.iter().find(|(name, _)| *name == TRACESTATE).map(|(_, value)| value.clone());
        let trace = Trace {
            id: asking.map_or_else(|| fastrand::u128(1..), |asking| asking.trace),
            parent: asking.map(|asking| asking.span),
            state,
            edge: span(),
            legs: Vec::new(),
        };
        trace.ask_as(trace.edge, headers);
        Some(Box::new(trace))
    }

    /// Takes the trace of an exchange that is over.
    pub(crate) fn end(&self, trace: &Trace, line: &AccessLine<'_>, started: Instant) {
        let spans = trace.spans(line, Clock::now(), started);
        // What cannot be written is a bug of ours and no concern of the exchange's.
        if let Ok(text) = serde_json::to_vec(&spans)
            && let Some(inner) = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]"))
            && self.queue.try_send(inner.to_vec()).is_err()
        {
            self.dropped.inc();
        }
    }
}

impl Trace {
    /// As logs say it.
    pub(crate) fn id(&self) -> u128 {
        self.id
    }

    /// The request is about to be sent into a tunnel.
    pub(crate) fn leaves(&mut self, headers: &mut HeaderList) {
        let (tunnel, upstream) = (span(), span());
        if self.legs.len() < LEGS {
            self.legs.push(Leg { tunnel, upstream, sent: Instant::now(), answered: None });
            self.ask_as(upstream, headers);
        }
    }

    /// The head of its answer is there.
    pub(crate) fn arrives(&mut self, headers: &HeaderList) {
        if let Some(leg) = self.legs.last_mut() {
            leg.answered = Some((Instant::now(), took_of(headers)));
        }
    }

    fn ask_as(&self, span: u64, headers: &mut HeaderList) {
        TraceContext { trace: self.id, span, sampled: true }.write(headers);
    }

    fn spans<'a>(&'a self, line: &'a AccessLine<'a>, clock: Clock, started: Instant) -> Vec<Span<'a>> {
        let state = self.state.as_ref().and_then(|state| state.to_str().ok()).filter(|state| state.len() <= STATE);
        let span = |id, parent: Option<u64>, name, kind, (from, to): (Instant, Instant)| Span {
            trace_id: format!("{:032x}", self.id),
            span_id: hex(id),
            parent_span_id: parent.map(hex),
            trace_state: state,
            name,
            kind,
            start_time_unix_nano: clock.nanos(from).to_string(),
            end_time_unix_nano: clock.nanos(to).to_string(),
            attributes: Vec::new(),
            status: None,
        };
        let mut edge = span(self.edge, self.parent, method(line.method), Kind::SERVER, (started, clock.now));
        edge.attributes = attributes(line);
        let is_failure = line.status.is_none_or(|status| status.is_server_error());
        edge.status = is_failure.then_some(Status { code: Status::ERROR });
        let mut spans = vec![edge];
        for leg in &self.legs {
            let end = leg.answered.map_or(clock.now, |(at, _)| at);
            let mut tunnel = span(leg.tunnel, Some(self.edge), "tunnel", Kind::INTERNAL, (leg.sent, end));
            if leg.answered.is_none() {
                tunnel.status = Some(Status { code: Status::ERROR });
            }
            spans.push(tunnel);
            if let Some((_, Some(took))) = leg.answered {
                // The way there is as long as the way back, as far as anybody knows.
                let there = end.saturating_duration_since(leg.sent).saturating_sub(took) / 2;
                let from = leg.sent + there;
                let to = end.min(from + took.min(end.saturating_duration_since(from)));
                let mut upstream = span(leg.upstream, Some(leg.tunnel), "upstream", Kind::CLIENT, (from, to));
                upstream.attributes = vec![text("http.request.method", method(line.method))];
                upstream.attributes.extend(line.status.map(status_of));
                spans.push(upstream);
            }
        }
        spans
    }
}

/// A moment on both clocks.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    nanos: u64,
}

impl Clock {
    fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Nanoseconds since 1970.
    fn nanos(self, at: Instant) -> u64 {
        let ago = self.now.saturating_duration_since(at).as_nanos();
        self.nanos.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
    }
}

fn span() -> u64 {
    fastrand::u64(1..)
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

/// What the edge's span says, in the names of OpenTelemetry's conventions for HTTP. No query is in it, no header and no
/// body: any of them can hold a secret.
fn attributes<'a>(line: &AccessLine<'a>) -> Vec<Attribute<'a>> {
    let path = line.target.split_once('?').map_or(line.target, |(path, _)| path);
    let version = match line.version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    let mut all = vec![
        text("http.request.method", method(line.method)),
        text("server.address", cut(line.host)),
        text("url.path", cut(path)),
        text("client.address", cut(line.remote)),
        text("network.protocol.version", version),
        number("http.request.body.size", line.received),
        number("http.response.body.size", line.sent),
        text("relay.request.id", line.id),
    ];
    all.extend(line.status.map(status_of));
    all.extend(line.provider.map(|provider| text("relay.provider", cut(provider))));
    all.extend(line.error.map(|error| text("error.type", error)));
    all
}

fn status_of<'a>(status: StatusCode) -> Attribute<'a> {
    number("http.response.status_code", status.as_u16().into())
}

/// A method that everybody knows, or the word that the conventions have for others: there may be any number of them.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn text<'a>(key: &'static str, value: &'a str) -> Attribute<'a> {
    Attribute { key, value: Value::Text(value) }
}

fn number<'a>(key: &'static str, value: u64) -> Attribute<'a> {
    Attribute { key, value: Value::Number(value.to_string()) }
}

/// A span as OTLP writes it in JSON (`opentelemetry/proto/trace/v1/trace.proto`): numbers of 64 bits are texts, and ids are
/// in hexadecimal digits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Span<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<&'a str>,
    name: &'static str,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<Attribute<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

/// `SpanKind`.
struct Kind;

impl Kind {
    const INTERNAL: u8 = 1;
    const SERVER: u8 = 2;
    const CLIENT: u8 = 3;
}

#[derive(Debug, Serialize)]
struct Status {
    code: u8,
}

impl Status {
    /// `STATUS_CODE_ERROR`.
    const ERROR: u8 = 2;
}

#[derive(Debug, Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Debug, Serialize)]
enum Value<'a> {
    #[serde(rename = "stringValue")]
    Text(&'a str),
    #[serde(rename = "intValue")]
    Number(String),
}

/// Sends what is in the queue.
#[derive(Debug)]
pub(crate) struct Exporter {
    traces: Traces,
    outgoing: Outgoing,
    waiting: mpsc::Receiver<Vec<u8>>,
    sent: Counter,
    dropped: Counter,
    /// Nobody has taken the last batch, which was told.
    is_away: bool,
}

impl Exporter {
    /// Until `stop`; what waits then is sent within two seconds, or not at all.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        while let Some(1..) = stop.run_until_cancelled(self.waiting.recv_many(&mut batch, BATCH)).await {
            if batch.len() < BATCH && stop.run_until_cancelled(sleep(GATHER)).await.is_some() {
                self.fill(&mut batch);
            }
            // A stop ends the waits for a collector that is away, too.
            if stop.run_until_cancelled(self.send(&batch, &WAITS)).await.is_none() {
                break;
            }
            batch.clear();
        }
        self.fill(&mut batch);
        if !batch.is_empty() {
            // Nobody is told any more.
            let _ = timeout(LAST, self.send(&batch, &[])).await;
        }
    }

    fn fill(&mut self, batch: &mut Vec<Vec<u8>>) {
        while batch.len() < BATCH
            && let Ok(more) = self.waiting.try_recv()
        {
            batch.push(more);
        }
    }

    async fn send(&mut self, batch: &[Vec<u8>], waits: &[Duration]) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let body = envelope(batch);
        let mut waits = waits.iter();
        let why = loop {
            let (why, again) = match self.outgoing.send(self.request(body.clone())).await {
                Ok(answer) if answer.status().is_success() => {
                    self.sent.inc_by(count);
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!("traces are taken again");
                    }
                    return;
                }
                // OTLP, "OTLP/HTTP Response": these are worth another attempt, and no others.
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    (format!("the collector answered {status}"), matches!(status, 429 | 502..=504))
                }
                Err(error) => (error.to_string(), true),
            };
            match waits.next().filter(|_| again) {
                Some(wait) => sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())).await,
                None => break why,
            }
        };
        self.dropped.inc_by(count);
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(%why, "traces are not taken and are dropped until they are");
        }
    }

    fn request(&self, body: Bytes) -> http::Request<Bytes> {
        let mut request = http::Request::new(body);
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&self.traces.url);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("relay-server/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.traces.headers.iter().cloned());
        request
    }
}

/// An `ExportTraceServiceRequest` around spans that are text already.
fn envelope(batch: &[Vec<u8>]) -> Bytes {
    const BEGIN: &str = concat!(
        r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"relay-server"}},"#,
        r#"{"key":"service.version","value":{"stringValue":""#,
        env!("CARGO_PKG_VERSION"),
        r#""}}]},"scopeSpans":[{"scope":{"name":"relay-server","version":""#,
        env!("CARGO_PKG_VERSION"),
        r#""},"spans":["#
    );
    let spans = batch.join(&b',');
    [BEGIN.as_bytes(), &spans, b"]}]}]}"].concat().into()
}
