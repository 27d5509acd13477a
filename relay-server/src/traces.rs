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
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use prometheus_client::metrics::counter::Counter;
use relay_protocol::message::{HeaderList, ResponseHead};
use relay_protocol::trace::{TRACESTATE, TraceContext, took_of};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::log::{AccessLine, cut, harmless};
use crate::outgoing::Outgoing;

/// Most exchanges that wait to be sent, of about two kibibytes each.
const QUEUE: usize = 2048;

/// Most of them in one request.
const BATCH: usize = 512;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long a collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The longest wait that a collector can ask for.
const LATER: Duration = Duration::from_secs(30);

/// How often the log says that traces are lost because there are too many.
const TOLD_S: u64 = 60;

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
    /// How many requests are written down, from 0 to 1, of those whose sender does not say that they are not.
    pub sample: f64,
    /// Whether all of those are whose sender says so. Any stranger can then have any number of them written.
    pub follow: bool,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, headers, sample, follow } = self;
        let (host, headers) = (url.host().unwrap_or_default(), headers.len());
        let mut all = f.debug_struct("Traces");
        all.field("host", &host).field("headers", &headers).field("sample", sample).field("follow", follow).finish()
    }
}

/// Begins traces, and takes them when they are over.
#[derive(Debug)]
pub(crate) struct Tracer {
    sample: f64,
    follow: bool,
    queue: mpsc::Sender<Vec<u8>>,
    dropped: Counter,
    /// When the log has last said so, in seconds since 1970.
    told: AtomicU64,
}

/// The trace of an exchange that goes on.
#[derive(Debug)]
pub(crate) struct Trace {
    id: u128,
    parent: Option<u64>,
    state: Option<HeaderValue>,
    edge: u64,
    legs: Vec<Leg>,
    /// The last of them goes on.
    is_on_the_way: bool,
}

/// The way through one link and back.
#[derive(Debug)]
struct Leg {
    tunnel: u64,
    upstream: u64,
    sent: Instant,
    ended: Option<Instant>,
    answer: Option<Answer>,
}

/// What a service has said.
#[derive(Clone, Copy, Debug)]
struct Answer {
    status: StatusCode,
    /// How long it took, as its client has measured it; not every client does.
    took: Option<Duration>,
}

impl Tracer {
    /// A tracer, and what empties its queue once it [runs](Exporter::run).
    pub(crate) fn new(traces: &Traces, outgoing: Outgoing, sent: Counter, dropped: Counter) -> (Self, Exporter) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let Traces { sample, follow, .. } = *traces;
        let tracer = Self { sample, follow, queue, dropped: dropped.clone(), told: AtomicU64::new(0) };
        let exporter =
            Exporter { traces: traces.clone(), outgoing, waiting, sent, dropped, under_way: 0, is_away: false };
        (tracer, exporter)
    }

    /// Begins the trace of a request, or takes it over, where it is to be written; the head then names the edge as parent.
    pub(crate) fn begin(&self, headers: &mut HeaderList) -> Option<Box<Trace>> {
        let asking = TraceContext::of(headers);
        let is_written = match asking {
            Some(TraceContext { sampled: false, .. }) => false,
            Some(_) if self.follow => true,
            _ => fastrand::f64() < self.sample,
        };
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
            is_on_the_way: false,
        };
        trace.ask_as(trace.edge, headers);
        Some(Box::new(trace))
    }

    /// Takes the trace of an exchange that is over.
    pub(crate) fn end(&self, trace: &Trace, line: &AccessLine<'_>, (scheme, started): (&str, Instant)) {
        let clock = Clock::now();
        let spans = trace.spans(line, clock, (scheme, started));
        // What cannot be written is a bug of ours and no concern of the exchange's.
        if let Ok(text) = serde_json::to_vec(&spans)
            && let Some(inner) = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]"))
            && self.queue.try_send(inner.to_vec()).is_err()
        {
            self.dropped.inc();
            let (now, told) = (clock.nanos / 1_000_000_000, self.told.load(Relaxed));
            if now.saturating_sub(told) >= TOLD_S && self.told.compare_exchange(told, now, Relaxed, Relaxed).is_ok() {
                tracing::warn!("there are more traces than the collector takes, and some are dropped");
            }
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
        self.is_on_the_way = self.legs.len() < LEGS;
        if self.is_on_the_way {
            let (tunnel, upstream) = (span(), span());
            self.legs.push(Leg { tunnel, upstream, sent: Instant::now(), ended: None, answer: None });
            self.ask_as(upstream, headers);
        }
    }

    /// It was not sent after all.
    pub(crate) fn stays(&mut self) {
        if std::mem::take(&mut self.is_on_the_way) {
            self.legs.pop();
        }
    }

    /// The head of its answer is there, or none will come on this way.
    pub(crate) fn arrives(&mut self, head: Option<&ResponseHead>) {
        if std::mem::take(&mut self.is_on_the_way)
            && let Some(leg) = self.legs.last_mut()
        {
            leg.ended = Some(Instant::now());
            leg.answer = head.map(|head| Answer { status: head.status, took: took_of(&head.headers) });
        }
    }

    fn ask_as(&self, span: u64, headers: &mut HeaderList) {
        TraceContext { trace: self.id, span, sampled: true }.write(headers);
    }

    fn spans<'a>(
        &'a self,
        line: &'a AccessLine<'a>,
        clock: Clock,
        (scheme, started): (&'a str, Instant),
    ) -> Vec<Span<'a>> {
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
        let name = if method(line.method) == OTHER { "HTTP" } else { method(line.method) };
        let mut edge = span(self.edge, self.parent, name, Kind::SERVER, (started, clock.now));
        edge.attributes = attributes(line, scheme);
        // What the sender has done wrong is no failure of ours.
        let is_failure = line
            .status
            .is_none_or(|status| status.is_server_error() || (line.error.is_some() && !status.is_client_error()));
        edge.status = is_failure.then_some(Status { code: Status::ERROR });
        let mut spans = vec![edge];
        for leg in &self.legs {
            let end = leg.ended.unwrap_or(clock.now);
            let mut tunnel = span(leg.tunnel, Some(self.edge), "tunnel", Kind::INTERNAL, (leg.sent, end));
            // The service may have seen it as its parent, whatever has come of it.
            let whole = end.saturating_duration_since(leg.sent);
            let took = leg.answer.and_then(|answer| answer.took).unwrap_or(whole).min(whole);
            // The way there is as long as the way back, as far as anybody knows.
            let from = leg.sent + (whole - took) / 2;
            let mut upstream = span(leg.upstream, Some(leg.tunnel), "upstream", Kind::CLIENT, (from, from + took));
            upstream.attributes = vec![text("http.request.method", method(line.method))];
            upstream.attributes.extend(leg.answer.map(|answer| status_of(answer.status)));
            let error = Status { code: Status::ERROR };
            tunnel.status = leg.answer.is_none().then_some(error);
            upstream.status = leg.answer.is_none_or(|answer| is_error(answer.status)).then_some(error);
            spans.extend([tunnel, upstream]);
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
fn attributes<'a>(line: &AccessLine<'a>, scheme: &'a str) -> Vec<Attribute<'a>> {
    let path = line.target.split_once('?').map_or(line.target, |(path, _)| path);
    let version = match line.version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    // The port of an address in brackets is behind them (RFC 3986, section 3.2.2).
    let (host, port) = match line.host.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (line.host, None),
    };
    let mut all = vec![
        text("http.request.method", method(line.method)),
        text("url.scheme", scheme),
        text("server.address", cut(host)),
        text("url.path", cut(path)),
        text("client.address", cut(line.remote)),
        text("network.protocol.version", version),
        number("http.request.body.size", line.received),
        number("http.response.body.size", line.sent),
        text("relay.request.id", line.id),
    ];
    all.extend(port.map(|port: u16| number("server.port", port.into())));
    all.extend(line.status.map(status_of));
    all.extend(line.provider.map(|provider| text("relay.provider", cut(provider))));
    all.extend(line.error.map(|error| text("error.type", error)));
    all
}

/// For whoever asks, any status from 400 on is one.
fn is_error(status: StatusCode) -> bool {
    status.as_u16() >= 400
}

fn status_of<'a>(status: StatusCode) -> Attribute<'a> {
    number("http.response.status_code", status.as_u16().into())
}

/// A method that everybody knows, or the word that the conventions have for others: there may be any number of them.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER)
}

const OTHER: &str = "_OTHER";

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

#[derive(Clone, Copy, Debug, Serialize)]
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
    /// How many are in the batch that is being sent.
    under_way: u64,
    /// Nobody has taken the last batch, which was told.
    is_away: bool,
}

/// A batch that was not taken.
struct Untaken {
    why: String,
    /// It may be another time, after this wait where the collector says so.
    again: Option<Duration>,
}

impl Exporter {
    /// Until `stop`; what waits then is sent within two seconds, or not at all.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let work = async {
            while let Some(batch) = self.gather(&stop).await {
                self.send(&batch, &stop).await;
            }
        };
        let last = async {
            stop.cancelled().await;
            sleep(LAST).await;
        };
        tokio::select! {
            () = work => {}
            () = last => {}
        }
        self.dropped.inc_by(self.under_way.saturating_add(self.waiting.len() as u64));
    }

    /// The next batch: what comes within a second of its first. None: there is nothing left.
    async fn gather(&mut self, stop: &CancellationToken) -> Option<Vec<Vec<u8>>> {
        let mut batch = Vec::new();
        let more = async {
            if self.waiting.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            let mut until = pin!(sleep(GATHER));
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    () = &mut until => return,
                    received = self.waiting.recv_many(&mut batch, room) => if received == 0 {
                        return;
                    },
                }
            }
        };
        stop.run_until_cancelled(more).await;
        while batch.len() < BATCH
            && let Ok(more) = self.waiting.try_recv()
        {
            batch.push(more);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch; a relay that stops does not wait to do it again.
    async fn send(&mut self, batch: &[Vec<u8>], stop: &CancellationToken) {
        self.under_way = batch.len() as u64;
        let (body, mut waits) = (envelope(batch), WAITS.iter());
        let taken = loop {
            let Untaken { why, again } = match self.post(body.clone()).await {
                Ok(()) => break Ok(()),
                Err(untaken) => untaken,
            };
            let wait =
                again.zip(waits.next()).map(|(later, wait)| later.max(wait.mul_f64(0.8 + 0.4 * fastrand::f64())));
            let Some(wait) = wait else { break Err(why) };
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                break Err(why);
            }
        };
        match taken {
            Ok(()) => {
                self.sent.inc_by(self.under_way);
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("traces are taken again");
                }
            }
            Err(why) => {
                self.dropped.inc_by(self.under_way);
                if !std::mem::replace(&mut self.is_away, true) {
                    tracing::warn!(%why, "traces are not taken and are dropped until they are");
                }
            }
        }
        self.under_way = 0;
    }

    /// Asks the collector once (OpenTelemetry Protocol, section "OTLP/HTTP Response").
    async fn post(&self, body: Bytes) -> Result<(), Untaken> {
        let silent = || Untaken { why: "the collector gives no answer".to_owned(), again: Some(Duration::ZERO) };
        let answer = match timeout(ANSWER, self.outgoing.send(self.request(body))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Untaken { why: error.to_string(), again: Some(Duration::ZERO) }),
            Err(_) => return Err(silent()),
        };
        let status = answer.status();
        if !status.is_success() {
            let later = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let later = later.map_or(Duration::ZERO, Duration::from_secs).min(LATER);
            // These are worth another attempt, and no others.
            let again = matches!(status.as_u16(), 429 | 502..=504).then_some(later);
            return Err(Untaken { why: format!("the collector answered {}", status.as_u16()), again });
        }
        let told: Told = serde_json::from_slice(answer.body()).unwrap_or_default();
        match told.partial_success {
            Some(partial) if partial.rejected() => Err(Untaken {
                why: format!("the collector has rejected some: {}", harmless(cut(&partial.error_message))),
                again: None,
            }),
            _ => Ok(()),
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

/// An `ExportTraceServiceResponse`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Told {
    partial_success: Option<Partial>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Partial {
    /// A number, or one as text, as protobuf has those of 64 bits in JSON.
    rejected_spans: serde_json::Value,
    error_message: String,
}

impl Partial {
    fn rejected(&self) -> bool {
        let text = self.rejected_spans.as_str().map(str::to_owned);
        text.unwrap_or_else(|| self.rejected_spans.to_string()).parse().is_ok_and(|count: u64| count > 0)
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
