//! Forwards one exchange to the local service.
//!
//! Everything about an exchange happens in one future, in the session's own task: it polls the connection to the
//! service itself, so that a request costs no task and no channel.
//!
//! ```text
//!   stream ─▶ request head, rewritten ─▶ pooled or new connection ─▶ response head, rewritten back ─▶ stream
//! ```

pub mod address;
mod body;
mod connection;
pub(crate) mod knock;
pub mod rewrite;
pub mod service;
mod socket;

use std::collections::VecDeque;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::iter::successors;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme as UriScheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_protocol::exchange::{X_FORWARDED_PROTO, append_framed, end_to_end, end_to_end_trailers};
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{MessageError, Payload, RequestHead, ResponseHead};
use relay_protocol::mux::StreamError;
use relay_protocol::splice::splice;
use relay_protocol::trace::{self, TraceContext};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capture::Recording;
pub(crate) use crate::upstream::body::{Gathered, RequestBody, Room, SHORT};
use crate::upstream::connection::{Connection, Multiplexed, Noted, Share};
use crate::upstream::rewrite::Rewriter;
use crate::upstream::service::Destination;
use crate::upstream::socket::{Refused, Socket, connect};
use crate::value::UpstreamProtocol;

/// A pooled connection that is older is not used again: Node closes after 5 s of silence, gunicorn after 2, and a
/// request that meets the close is lost.
pub(crate) const POOL_IDLE: Duration = Duration::from_secs(1);

/// Idle connections kept; more only cost the service descriptors.
const POOL_SIZE: usize = 128;

/// How long a local service has to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the service may leave `Expect: 100-continue` unanswered before the body is sent anyway (RFC 9110, section
/// 10.1.1 lets a client decide).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// An upgraded connection on which nothing moves; the relay has its own limit and usually comes first.
const UPGRADE_IDLE: Duration = Duration::from_secs(2 * 3600);

/// The service behind one tunnel.
#[derive(Debug)]
pub(crate) struct Upstream {
    destination: Destination,
    protocol: UpstreamProtocol,
    rewriter: Rewriter,
    /// For exchanges whose service is to be told its public name.
    untouched: Rewriter,
    /// Which of several addresses answered last.
    preferred: AtomicUsize,
    idle: Mutex<VecDeque<Idle>>,
    http2: Mutex<Option<Arc<Multiplexed>>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idle").field("since", &self.since).finish_non_exhaustive()
    }
}

/// How an exchange with a service ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// What the public sender was answered with.
    pub(crate) status: Option<StatusCode>,
    /// A stable code.
    pub(crate) error: Option<&'static str>,
    /// More than the code says, for a person at this machine.
    pub(crate) detail: Option<String>,
}

impl Ending {
    /// Of an exchange that was reset, where `ours` is the status of an answer that is on its way already.
    pub(crate) fn by(reset: Reset, ours: Option<StatusCode>, detail: Option<String>) -> Self {
        let (status, code) = match reset {
            Reset::UpstreamRefused | Reset::UpstreamInvalid => (ours.or(Some(StatusCode::BAD_GATEWAY)), reset.name()),
            // These are said only before a head is passed on: ours came too late.
            Reset::Deadline => (Some(StatusCode::GATEWAY_TIMEOUT), reset.name()),
            Reset::TooLarge => (Some(StatusCode::PAYLOAD_TOO_LARGE), reset.name()),
            Reset::Refused if ours.is_none() => (Some(StatusCode::TOO_MANY_REQUESTS), "too-many-requests"),
            Reset::SignatureInvalid => (Some(StatusCode::UNAUTHORIZED), reset.name()),
            Reset::Malformed => (Some(StatusCode::BAD_REQUEST), "bad-request"),
            Reset::Idle if ours.is_none() => (Some(StatusCode::REQUEST_TIMEOUT), "body-timeout"),
            _ => (ours, reset.name()),
        };
        Ending { status, error: Some(code), detail }
    }
}

/// An exchange as it is forwarded.
#[derive(Clone, Copy, Debug)]
struct Call<'a> {
    stream: &'a Stream,
    head: &'a RequestHead,
    rewriter: &'a Rewriter,
    /// When its head came, where somebody writes its trace.
    traced: Option<Instant>,
}

/// What an exchange has said of its answer.
#[derive(Debug)]
struct Sent<'a> {
    recording: Recording,
    status: Option<StatusCode>,
    /// The session's turn in which the head was queued, and the present one. At the end of a turn what is queued is
    /// sent.
    turn: u64,
    turns: &'a AtomicU64,
}

impl Sent<'_> {
    fn head(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.turn = self.turns.load(Relaxed);
    }

    /// Sends what comes behind the head. Mostly it is there, and the end of the exchange tells of both.
    async fn behind<T>(&self, rest: impl Future<Output = T>) -> T {
        let (mut rest, mut told) = (pin!(rest), false);
        poll_fn(|cx| {
            let polled = rest.as_mut().poll(cx);
            if let (Poll::Pending, false, Some(status)) = (&polled, told, self.status) {
                told = true;
                self.recording.answered(status);
            }
            polled
        })
        .await
    }

    /// The status that the relay has been told, as well as we can know it: a link that is stuck holds it back for longer.
    fn on_the_way(&self) -> Option<StatusCode> {
        self.status.filter(|_| self.turn != self.turns.load(Relaxed))
    }
}

/// Why an exchange failed, and what the relay is told.
#[derive(Debug)]
struct Failure {
    reset: Reset,
    detail: Option<String>,
}

impl From<Reset> for Failure {
    fn from(reset: Reset) -> Self {
        Self { reset, detail: None }
    }
}

/// The stream is gone: nobody needs to be told.
impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(reset) => reset.into(),
            StreamError::SessionEnded | StreamError::Closed => Reset::LinkLost.into(),
        }
    }
}

impl Upstream {
    pub(crate) fn new(destination: Destination, protocol: UpstreamProtocol, rewriter: Rewriter) -> Self {
        let protocol = match destination {
            Destination::Address(_) => protocol,
            Destination::Service(_) => UpstreamProtocol::Http1,
        };
        Self {
            destination,
            protocol,
            untouched: rewriter.preserving(),
            rewriter,
            preferred: AtomicUsize::new(0),
            idle: Mutex::default(),
            http2: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Forwards the request of a stream whose head has been taken off it; with `as_called` the service sees the name that
    /// its sender has called, whatever it sees otherwise. `turns` counts how often the session has sent what was queued.
    pub(crate) async fn forward(
        &self,
        stream: &Stream,
        head: &RequestHead,
        body: RequestBody,
        as_called: bool,
        turns: &AtomicU64,
    ) -> Ending {
        let rewriter = if as_called { &self.untouched } else { &self.rewriter };
        let mut sent = Sent { recording: body.recording(), status: None, turn: 0, turns };
        // Dropping the exchange aborts the call to the service, so it must be dropped when the stream is reset.
        //
        // That is how a deadline ends it. The relay's clock alone decides, and may give a slow upload more time than
        // `head.deadline_ms` said; its reset comes when a clock of ours would strike, at the time that the head came
        // plus what it left. Where the link is dead, the session ends within 15 s and every exchange with it.
        let traced = TraceContext::of(&head.headers).filter(|context| context.sampled).map(|_| Instant::now());
        let result = {
            let mut exchange = pin!(self.exchange(Call { stream, head, rewriter, traced }, body, &mut sent));
            poll_fn(|cx| match exchange.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                // What looks like the service's failure may be ours, made of a request that ended before its time.
                Poll::Ready(Err(failure)) => Poll::Ready(Err(match stream.check() {
                    Err(StreamError::Reset(reset)) => reset.into(),
                    _ => failure,
                })),
                Poll::Pending => stream.poll_reset(cx).map(|error| Err(error.into())),
            })
            .await
        };
        let Failure { reset, detail } = match result {
            Ok(()) => return Ending { status: sent.status, error: None, detail: None },
            Err(failure) => failure,
        };
        // This takes back what is still queued, the head too. The relay then answers for us, and this is how.
        stream.reset(reset);
        Ending::by(reset, sent.on_the_way(), detail)
    }
    /// Closes connections that have been idle for too long. Returns when to ask again.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut idle = self.idle();
        while idle.front().is_some_and(|oldest| now.saturating_duration_since(oldest.since) >= POOL_IDLE) {
            idle.pop_front();
        }
        let next = idle.front().map(|oldest| oldest.since + POOL_IDLE);
        let mut http2 = self.http2();
        http2.take_if(|known| known.is_stale(now));
        next.into_iter().chain(http2.as_ref().and_then(Multiplexed::idle_until)).min()
    }

    /// Ends what runs beside the exchanges.
    pub(crate) async fn close(&self) {
        self.idle().clear();
        self.http2().take();
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs what an exchange leaves to a task.
    fn owned(&self) -> Owned {
        Owned { tasks: self.tasks.clone(), closing: self.closing.clone() }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http2(&self) -> MutexGuard<'_, Option<Arc<Multiplexed>>> {
        self.http2.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, call: Call<'_>, mut body: RequestBody, sent: &mut Sent<'_>) -> Result<(), Failure> {
        let upgrades = call.head.upgrade.is_some();
        if self.protocol == UpstreamProtocol::H2c && !upgrades {
            return self.exchange_http2(call, body, sent).await;
        }
        let mut reused = if upgrades { None } else { self.checkout() };
        let mut attempt = 1;
        loop {
            let connection = match reused.take() {
                Some(connection) => connection,
                None => self.connect(upgrades).await?,
            };
            let is_fresh = connection.is_fresh;
            let request = call.request(body.clone(), Version::HTTP_11, attempt)?;
            match self.exchange_http1(call, connection, request, sent).await {
                // The service closed a connection that it had kept open, and has not seen the request.
                Err(Attempt::Unanswered(_)) if !is_fresh && body.rewind() => {
                    attempt += 1;
                    sent.recording.annotate(|note| note.attempt = attempt);
                }
                Err(Attempt::Unanswered(failure) | Attempt::Final(failure)) => return Err(failure),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// A connection that was used before, is not too old, and is still open.
    fn checkout(&self) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let Idle { mut connection, since } = self.idle().pop_back()?;
            if now.saturating_duration_since(since) < POOL_IDLE && connection.is_open() {
                return Some(connection);
            }
        }
    }

    fn checkin(&self, mut connection: Connection) {
        connection.is_fresh = false;
        let mut idle = self.idle();
        idle.push_back(Idle { connection, since: Instant::now() });
        if idle.len() > POOL_SIZE {
            idle.pop_front();
        }
    }

    async fn connect(&self, upgrades: bool) -> Result<Connection, Failure> {
        let socket = self.socket().await?;
        Connection::new(socket, upgrades).await.map_err(|error| invalid(&error))
    }

    async fn socket(&self) -> Result<Socket, Failure> {
        let addr = match &self.destination {
            Destination::Address(addr) => addr,
            Destination::Service(service) => {
                let (socket, serving) = service.connect();
                hyper::rt::Executor::execute(&self.owned(), serving);
                return Ok(Box::new(socket));
            }
        };
        let connected = timeout(CONNECT, connect(addr, &self.preferred)).await;
        connected.unwrap_or_else(|_| Err(Refused::slow(addr))).map_err(|refused| Failure {
            reset: if refused.is_not_tls() { Reset::UpstreamInvalid } else { Reset::UpstreamRefused },
            detail: Some(refused.to_string()),
        })
    }

    async fn exchange_http1(
        &self,
        call: Call<'_>,
        mut connection: Connection,
        request: Request<RequestBody>,
        sent: &mut Sent<'_>,
    ) -> Result<(), Attempt> {
        let Call { stream, head, .. } = call;
        let answer = connection.sender.send_request(request);
        let waits = expects_continue(head);
        let response = connection.wire.drive(with_continue(stream, waits, answer)).await;
        let mut response = match response {
            Ok(response) => response,
            Err(error) if error.is_user() => return Err(Attempt::Final(body_failure(stream))),
            Err(error) if connection.wire.has_read() => return Err(Attempt::Final(invalid(&error))),
            Err(error) => return Err(Attempt::Unanswered(invalid(&error))),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Boxed, because it is rare and every exchange would have the room for it.
            return Box::pin(switch(call, connection, response, sent)).await.map_err(Attempt::Final);
        }
        call.send_head(&response, None, sent).map_err(Attempt::Final)?;
        let pumped = {
            let pump = pump(response.body_mut(), stream, sent.recording.clone());
            sent.behind(connection.wire.drive(pump)).await
        };
        pumped.map_err(Attempt::Final)?;
        drop(response);
        if connection.is_reusable() {
            self.checkin(connection);
        }
        Ok(())
    }

    async fn exchange_http2(&self, call: Call<'_>, mut body: RequestBody, sent: &mut Sent<'_>) -> Result<(), Failure> {
        let Call { stream, head, .. } = call;
        let mut attempt = 1;
        loop {
            let reused = self.share_http2();
            let is_fresh = reused.is_none();
            let share = match reused {
                Some(share) => share,
                None => self.connect_http2().await?,
            };
            let request = call.request(body.clone(), Version::HTTP_2, attempt)?;
            let read = || share.0.read.load(Relaxed);
            let before = read();
            let answer = share.0.sender.clone().send_request(request);
            let mut response = match with_continue(stream, expects_continue(head), answer).await {
                Ok(response) => response,
                Err(error) if attempt == 1 && !is_fresh && is_unseen(&error, read() == before) && body.rewind() => {
                    // Another exchange may have noticed before, and have a new one already.
                    self.http2().take_if(|known| Arc::ptr_eq(known, &share.0));
                    attempt += 1;
                    sent.recording.annotate(|note| note.attempt = attempt);
                    continue;
                }
                Err(error) if error.is_user() => return Err(body_failure(stream)),
                Err(error) => return Err(invalid(&error)),
            };
            call.send_head(&response, None, sent)?;
            let pump = pump(response.body_mut(), stream, sent.recording.clone());
            return sent.behind(pump).await;
        }
    }

    /// A share in the HTTP/2 connection, if there is one that has not been idle for too long, and is still open.
    fn share_http2(&self) -> Option<Share> {
        let mut known = self.http2();
        known.take_if(|known| known.sender.is_closed() || known.is_stale(Instant::now()));
        known.clone().map(Share)
    }

    async fn connect_http2(&self) -> Result<Share, Failure> {
        let socket = self.socket().await?;
        let executor = self.owned();
        let mut builder = http2::Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024);
        let read = Arc::new(AtomicU64::new(0));
        let io = TokioIo::new(Noted::new(socket, &read, false));
        let (sender, connection) = builder.handshake(io).await.map_err(|error| invalid(&error))?;
        hyper::rt::Executor::execute(&executor, async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the HTTP/2 connection to the upstream ended");
            }
        });
        let connection = Arc::new(Multiplexed { sender, read, left: Mutex::new(Instant::now()) });
        *self.http2() = Some(connection.clone());
        Ok(Share(connection))
    }
}

impl Drop for Upstream {
    /// Whoever had no time to [`Upstream::close`] it leaves no task behind either.
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Call<'_> {
    /// The request as the service gets it.
    fn request(self, body: RequestBody, version: Version, attempt: u32) -> Result<Request<RequestBody>, Failure> {
        let Self { stream, head, rewriter, .. } = self;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.version_mut() = version;
        let host = rewriter.host(&head.authority);
        if version == Version::HTTP_2 {
            // HTTP/2 has an authority where HTTP/1.1 has Host (RFC 9113, section 8.3.1).
            let authority = Authority::try_from(host.as_bytes()).map_err(|_| Reset::Malformed)?;
            let uri = Uri::builder().scheme(UriScheme::HTTP).authority(authority).path_and_query(head.target.clone());
            *request.uri_mut() = uri.build().map_err(|_| Reset::Malformed)?;
        } else {
            *request.uri_mut() = Uri::from(head.target.clone());
        }
        let headers = request.headers_mut();
        headers.reserve(head.headers.len() + OWN_LINES);
        if version != Version::HTTP_2 {
            // First, as RFC 9110, section 7.2 asks.
            headers.insert(header::HOST, host);
        }
        let theirs = head.headers.iter().filter(|(name, _)| *name != header::HOST).cloned();
        append_framed(headers, theirs).map_err(|_| Reset::Malformed)?;
        rewriter.request(headers);
        forwarded(head, headers);
        if attempt > 1 {
            headers.insert(RELAY_ATTEMPT, HeaderValue::from(attempt));
        }
        if let Some(protocol) = &head.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, line(protocol.clone()));
        }
        if expects_continue(head) {
            let stream = stream.clone();
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    send_continue(&stream);
                }
            });
        }
        Ok(request)
    }

    /// Sends a response's head into the stream.
    fn send_head(
        self,
        response: &Response<Incoming>,
        upgrade: Option<HeaderValue>,
        sent: &mut Sent<'_>,
    ) -> Result<(), Failure> {
        let mut headers = end_to_end(response.headers());
        self.rewriter.response(&mut headers);
        headers.extend(upgrade.map(|protocol| (header::UPGRADE, protocol)));
        let status = response.status();
        let length = response.body().size_hint().exact();
        let mut head = ResponseHead { status, headers };
        let written = head.to_bytes().map_err(unpassable)?;
        sent.recording.response(&written, length.unwrap_or_default());
        let written = match self.traced {
            // Not the service's word, and so not in its record.
            Some(begun) => {
                head.headers.push(trace::took(begun.elapsed()));
                head.to_bytes().map_err(unpassable)?
            }
            None => written,
        };
        self.stream.send_head(written, false)?;
        sent.head(status);
        Ok(())
    }
}

fn unpassable(error: MessageError) -> Failure {
    Failure { reset: Reset::UpstreamInvalid, detail: Some(format!("the response's head cannot be passed on: {error}")) }
}

/// What an attempt on one connection came to.
enum Attempt {
    /// The connection closed before a byte of an answer.
    Unanswered(Failure),
    Final(Failure),
}

/// Runs the tasks of HTTP/2 and of handlers, and ends them with the upstream.
#[derive(Clone)]
struct Owned {
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move { closing.run_until_cancelled(future).await });
    }
}

/// The service speaks another protocol from here on.
async fn switch(
    call: Call<'_>,
    mut connection: Connection,
    response: Response<Incoming>,
    sent: &mut Sent<'_>,
) -> Result<(), Failure> {
    if call.head.upgrade.is_none() {
        let detail = "the service switched protocols without being asked".to_owned();
        return Err(Failure { reset: Reset::UpstreamInvalid, detail: Some(detail) });
    }
    let protocol = response.headers().get(header::UPGRADE).cloned();
    call.send_head(&response, protocol, sent)?;
    sent.behind(async {
        let upgraded = connection.wire.drive(hyper::upgrade::on(response)).await.map_err(|error| invalid(&error))?;
        // Whichever side ends it, both have been told.
        let _ = splice(TokioIo::new(upgraded), call.stream.clone(), UPGRADE_IDLE).await;
        Ok(())
    })
    .await
}

/// Moves a response's body into the stream until its end.
async fn pump(body: &mut Incoming, stream: &Stream, recording: Recording) -> Result<(), Failure> {
    let mut trailers = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| invalid(&error))?;
        match frame.into_data() {
            Ok(bytes) => {
                recording.response_data(&bytes);
                stream.send(bytes).await?;
            }
            Err(frame) => {
                let map = frame.into_trailers().unwrap_or_default();
                trailers = end_to_end_trailers(&map).to_bytes().unwrap_or_default();
                break;
            }
        }
    }
    recording.response_whole(&trailers);
    Ok(stream.finish(trailers)?)
}

/// Waits for the answer; where the body waits for a 100 that does not come, it is sent after a second.
async fn with_continue<T>(stream: &Stream, waits: bool, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    if waits {
        tokio::select! {
            biased;
            answer = answer.as_mut() => return answer,
            () = sleep(CONTINUE_WAIT) => send_continue(stream),
        }
    }
    answer.await
}

pub(crate) fn send_continue(stream: &Stream) {
    let head = ResponseHead { status: StatusCode::CONTINUE, headers: Vec::new() };
    // A stream that is gone ends the exchange by itself; a second 100 does no harm.
    if let Ok(head) = head.to_bytes() {
        let _ = stream.send_head(head, true);
    }
}

pub(crate) fn expects_continue(head: &RequestHead) -> bool {
    let is_expect = |(name, value): &(HeaderName, HeaderValue)| {
        *name == header::EXPECT && value.as_bytes().eq_ignore_ascii_case(b"100-continue")
    };
    head.headers.iter().any(is_expect)
}

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const RELAY_REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");
/// On a request that is sent once more, because the service had closed the connection it was sent on first.
const RELAY_ATTEMPT: HeaderName = HeaderName::from_static("relay-attempt");

/// Lines that a request has beyond its sender's.
const OWN_LINES: usize = 9;

/// Adds the public truth: who asked, by which name and scheme. The relay has removed every line of these names that
/// the sender wrote; what is there now is the relay's own.
pub(crate) fn forwarded(head: &RequestHead, headers: &mut HeaderMap) {
    let proto = headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("https"));
    let scheme = proto.to_str().unwrap_or("https");
    let (remote, host) = (&head.remote, &head.authority);
    // RFC 7239, section 6: an IPv6 address is quoted and bracketed.
    let elements = match remote.contains(':') {
        true => format!("for=\"[{remote}]\";host=\"{host}\";proto={scheme}"),
        false => format!("for={remote};host=\"{host}\";proto={scheme}"),
    };
    let remote = line(remote.clone());
    headers.entry(FORWARDED).or_insert_with(|| line(elements.into()));
    headers.entry(X_FORWARDED_FOR).or_insert_with(|| remote.clone());
    headers.entry(X_FORWARDED_HOST).or_insert_with(|| line(host.clone()));
    headers.entry(X_REAL_IP).or_insert(remote);
    let id = line(head.id.clone());
    headers.entry(RELAY_REQUEST_ID).or_insert_with(|| id.clone());
    headers.entry(X_REQUEST_ID).or_insert(id);
}

/// Text that was checked when its head was decoded, as a header's value. Nothing is copied.
fn line(text: ByteString) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.into_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// The service said something that is not a complete HTTP response.
fn invalid(error: &hyper::Error) -> Failure {
    let causes: Vec<_> = successors(Some(error as &dyn Error), |error| (*error).source()).collect();
    let is_end = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    let ends = causes.iter().any(|cause| cause.downcast_ref().is_some_and(is_end));
    let detail = if ends || error.is_incomplete_message() {
        "the service closed the connection before its answer was complete".to_owned()
    } else if error.is_parse_too_large() {
        "the answer's head is longer than 256 KiB, or has more than 100 lines".to_owned()
    } else {
        let detail: Vec<_> = causes.iter().map(ToString::to_string).collect();
        let hint =
            if error.is_parse() { "; a service that speaks HTTPS is named as https://localhost:PORT" } else { "" };
        format!("{}{hint}", detail.join(": "))
    };
    Failure { reset: Reset::UpstreamInvalid, detail: Some(detail) }
}

/// Whether HTTP/2 failed before the service looked at the request: it was never sent, the service says so (RFC 9113,
/// section 8.7), or the connection broke without a byte from the service since, as one does that was closed before.
fn is_unseen(error: &hyper::Error, is_silent: bool) -> bool {
    let sources = successors(error.source(), |error| (*error).source());
    error.is_canceled()
        || sources.into_iter().any(|source| {
            let refused = |error: &h2::Error| {
                error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
            };
            (is_silent && source.is::<io::Error>()) || source.downcast_ref().is_some_and(refused)
        })
}

/// The request's body could not be sent on: its stream knows why.
fn body_failure(stream: &Stream) -> Failure {
    stream.check().err().map_or(Reset::Cancelled.into(), Failure::from)
}
