//! Forwards one exchange to the local service.
//!
//! Everything about an exchange happens in one future, in the session's own task: it polls the connection to the
//! service itself, so that a request costs no task and no channel.
//!
//! ```text
//!   stream ─▶ request head, rewritten ─▶ pooled or new connection ─▶ response head, rewritten back ─▶ stream
//! ```

pub mod address;
pub(crate) mod knock;
pub mod rewrite;
pub mod service;
mod socket;

use std::collections::VecDeque;
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme as UriScheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_protocol::exchange::{append_all, append_framed, end_to_end, end_to_end_trailers};
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{HeaderList, Payload, RequestHead, ResponseHead};
use relay_protocol::mux::{Item, StreamError};
use relay_protocol::splice::splice;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capture::{Arrival, Recording};
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

/// A request body up to this many bytes is kept, so that it can be sent once more.
const REPLAY: usize = 64 * 1024;

/// What all exchanges with one service keep for that. Beyond it a body passes through and is gone.
const KEPT: usize = 8 * 1024 * 1024;

/// An upgraded connection on which nothing moves; the relay has its own limit and usually comes first.
const UPGRADE_IDLE: Duration = Duration::from_secs(2 * 3600);

/// The service behind one tunnel.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// What the tunnel is called on this machine.
    name: Arc<str>,
    destination: Destination,
    protocol: UpstreamProtocol,
    rewriter: Rewriter,
    /// Which of several addresses answered last.
    preferred: AtomicUsize,
    idle: Mutex<VecDeque<Idle>>,
    http2: Mutex<Option<Arc<Multiplexed>>>,
    /// Bytes of request bodies that are kept at the moment.
    kept: Arc<AtomicUsize>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// The HTTP/2 connection of all exchanges.
#[derive(Debug)]
struct Multiplexed {
    sender: http2::SendRequest<RequestBody>,
    /// Bytes read from it.
    read: Arc<AtomicU64>,
    /// When the last exchange let go of it.
    left: Mutex<Instant>,
}

/// An exchange's hold on the HTTP/2 connection.
#[derive(Debug)]
struct Share(Arc<Multiplexed>);

impl Drop for Share {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idle").field("since", &self.since).finish_non_exhaustive()
    }
}

/// How an exchange ended, for whoever reports it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What the tunnel is called on this machine, where there is one.
    pub(crate) tunnel: Option<Arc<str>>,
    pub(crate) head: Option<RequestHead>,
    /// When the head arrived here.
    pub(crate) arrived: Instant,
    /// What the public sender was answered with.
    pub(crate) status: Option<StatusCode>,
    /// A stable code.
    pub(crate) error: Option<&'static str>,
    /// More than the code says, for a person at this machine.
    pub(crate) detail: Option<String>,
}

impl Outcome {
    /// From the start of the deadline until now; none where no head has come.
    pub(crate) fn duration(&self) -> Option<Duration> {
        let before = self.head.as_ref()?.elapsed_ms;
        Some(Duration::from_millis(before.into()) + self.arrived.elapsed())
    }
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
    pub(crate) fn new(name: &str, destination: Destination, protocol: UpstreamProtocol, rewriter: Rewriter) -> Self {
        let protocol = match destination {
            Destination::Address(_) => protocol,
            Destination::Service(_) => UpstreamProtocol::Http1,
        };
        Self {
            name: name.into(),
            destination,
            protocol,
            rewriter,
            preferred: AtomicUsize::new(0),
            idle: Mutex::default(),
            http2: Mutex::default(),
            kept: Arc::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Forwards the request of a stream whose head has been taken off it. `turns` counts how often the session has sent
    /// what was queued.
    pub(crate) async fn forward(
        &self,
        stream: Stream,
        head: RequestHead,
        turns: &AtomicU64,
        arrival: Arrival,
    ) -> Outcome {
        let arrived = Instant::now();
        let body = RequestBody::of(&stream, &self.kept, &head, |body, whole| {
            arrival.keep(&head, Some(self.name()), body, whole)
        });
        let mut sent = Sent { recording: body.recording(), status: None, turn: 0, turns };
        // Dropping the exchange aborts the call to the service, so it must be dropped when the stream is reset.
        //
        // That is how a deadline ends it. The relay's clock alone decides, and may give a slow upload more time than
        // `head.deadline_ms` said; its reset comes when a clock of ours would strike, at the time that the head came
        // plus what it left. Where the link is dead, the session ends within 15 s and every exchange with it.
        let result = {
            let mut exchange = pin!(self.exchange(&stream, &head, body, &mut sent));
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
        let (status, error, detail) = match result {
            Ok(()) => (sent.status, None, None),
            Err(Failure { reset, detail }) => {
                // This takes back what is still queued, the head too. The relay then answers for us, and this is how.
                stream.reset(reset);
                let ours = sent.on_the_way();
                let (status, code) = match reset {
                    Reset::UpstreamRefused | Reset::UpstreamInvalid => {
                        (ours.or(Some(StatusCode::BAD_GATEWAY)), reset.name())
                    }
                    // These are said only before a head is passed on: ours came too late.
                    Reset::Deadline => (Some(StatusCode::GATEWAY_TIMEOUT), reset.name()),
                    Reset::TooLarge => (Some(StatusCode::PAYLOAD_TOO_LARGE), reset.name()),
                    Reset::Malformed => (Some(StatusCode::BAD_REQUEST), "bad-request"),
                    Reset::Idle if ours.is_none() => (Some(StatusCode::REQUEST_TIMEOUT), "body-timeout"),
                    _ => (ours, reset.name()),
                };
                (status, Some(code), detail)
            }
        };
        let outcome = Outcome { tunnel: Some(self.name()), head: Some(head), arrived, status, error, detail };
        sent.recording.ended(status, outcome.duration().unwrap_or_default(), error);
        outcome
    }

    /// What the tunnel is called on this machine.
    pub(crate) fn name(&self) -> Arc<str> {
        self.name.clone()
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

    async fn exchange(
        &self,
        stream: &Stream,
        head: &RequestHead,
        mut body: RequestBody,
        sent: &mut Sent<'_>,
    ) -> Result<(), Failure> {
        if self.protocol == UpstreamProtocol::H2c && head.upgrade.is_none() {
            return self.exchange_http2(stream, head, body, sent).await;
        }
        let mut reused = head.upgrade.is_none().then(|| self.checkout()).flatten();
        let mut attempt = 1;
        loop {
            let connection = match reused.take() {
                Some(connection) => connection,
                None => self.connect(head.upgrade.is_some()).await?,
            };
            let is_fresh = connection.is_fresh;
            let request = self.request(head, body.clone(), Version::HTTP_11, attempt, stream)?;
            match self.exchange_http1(stream, head, connection, request, sent).await {
                // The service closed a connection that it had kept open, and has not seen the request.
                Err(Attempt::Unanswered(_)) if !is_fresh && body.rewind() => attempt += 1,
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
        connected
            .unwrap_or_else(|_| Err(Refused::slow(addr)))
            .map_err(|refused| Failure { reset: Reset::UpstreamRefused, detail: Some(refused.to_string()) })
    }

    /// The request as the service gets it.
    fn request(
        &self,
        head: &RequestHead,
        body: RequestBody,
        version: Version,
        attempt: u32,
        stream: &Stream,
    ) -> Result<Request<RequestBody>, Failure> {
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.version_mut() = version;
        let host = self.rewriter.host(&head.authority);
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
        self.rewriter.request(headers);
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

    async fn exchange_http1(
        &self,
        stream: &Stream,
        head: &RequestHead,
        mut connection: Connection,
        request: Request<RequestBody>,
        sent: &mut Sent<'_>,
    ) -> Result<(), Attempt> {
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
            return self.switch(stream, head, connection, response, sent).await.map_err(Attempt::Final);
        }
        self.send_head(stream, &response, None, sent).map_err(Attempt::Final)?;
        let pumped = {
            let pump = pump(response.body_mut(), stream);
            sent.behind(connection.wire.drive(pump)).await
        };
        pumped.map_err(Attempt::Final)?;
        drop(response);
        if connection.is_reusable() {
            self.checkin(connection);
        }
        Ok(())
    }

    async fn exchange_http2(
        &self,
        stream: &Stream,
        head: &RequestHead,
        mut body: RequestBody,
        sent: &mut Sent<'_>,
    ) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            let reused = self.share_http2();
            let is_fresh = reused.is_none();
            let share = match reused {
                Some(share) => share,
                None => self.connect_http2().await?,
            };
            let request = self.request(head, body.clone(), Version::HTTP_2, attempt, stream)?;
            let read = || share.0.read.load(Relaxed);
            let before = read();
            let answer = share.0.sender.clone().send_request(request);
            let mut response = match with_continue(stream, expects_continue(head), answer).await {
                Ok(response) => response,
                Err(error) if attempt == 1 && !is_fresh && is_unseen(&error, read() == before) && body.rewind() => {
                    // Another exchange may have noticed before, and have a new one already.
                    self.http2().take_if(|known| Arc::ptr_eq(known, &share.0));
                    attempt += 1;
                    continue;
                }
                Err(error) if error.is_user() => return Err(body_failure(stream)),
                Err(error) => return Err(invalid(&error)),
            };
            self.send_head(stream, &response, None, sent)?;
            return sent.behind(pump(response.body_mut(), stream)).await;
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

    /// Sends a response's head into the stream.
    fn send_head(
        &self,
        stream: &Stream,
        response: &Response<Incoming>,
        upgrade: Option<HeaderValue>,
        sent: &mut Sent<'_>,
    ) -> Result<(), Failure> {
        let mut headers = end_to_end(response.headers());
        self.rewriter.response(&mut headers);
        headers.extend(upgrade.map(|protocol| (header::UPGRADE, protocol)));
        let status = response.status();
        let head = ResponseHead { status, headers }.to_bytes().map_err(|error| Failure {
            reset: Reset::UpstreamInvalid,
            detail: Some(format!("the response's head cannot be passed on: {error}")),
        })?;
        stream.send_head(head, false)?;
        sent.head(status);
        Ok(())
    }

    /// The service speaks another protocol from here on.
    async fn switch(
        &self,
        stream: &Stream,
        head: &RequestHead,
        mut connection: Connection,
        response: Response<Incoming>,
        sent: &mut Sent<'_>,
    ) -> Result<(), Failure> {
        if head.upgrade.is_none() {
            let detail = "the service switched protocols without being asked".to_owned();
            return Err(Failure { reset: Reset::UpstreamInvalid, detail: Some(detail) });
        }
        let protocol = response.headers().get(header::UPGRADE).cloned();
        self.send_head(stream, &response, protocol, sent)?;
        sent.behind(async {
            let upgraded =
                connection.wire.drive(hyper::upgrade::on(response)).await.map_err(|error| invalid(&error))?;
            // Whichever side ends it, both have been told.
            let _ = splice(TokioIo::new(upgraded), stream.clone(), UPGRADE_IDLE).await;
            Ok(())
        })
        .await
    }
}

impl Drop for Upstream {
    /// Whoever had no time to [`Upstream::close`] it leaves no task behind either.
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Multiplexed {
    /// How long it is kept; `None` while an exchange uses it, which has a share of it then.
    fn idle_until(self: &Arc<Self>) -> Option<Instant> {
        let is_used = Arc::strong_count(self) > 1;
        (!is_used).then(|| *self.left.lock().unwrap_or_else(PoisonError::into_inner) + POOL_IDLE)
    }

    fn is_stale(self: &Arc<Self>, now: Instant) -> bool {
        self.idle_until().is_some_and(|until| until <= now)
    }
}

/// What an attempt on one connection came to.
enum Attempt {
    /// The connection closed before a byte of an answer.
    Unanswered(Failure),
    Final(Failure),
}

/// One HTTP/1.1 connection, polled by whichever exchange uses it.
struct Connection {
    sender: http1::SendRequest<RequestBody>,
    wire: Wire,
    is_fresh: bool,
}

/// The connection's own future, which moves its bytes.
struct Wire {
    connection: Option<Moving>,
    /// Bytes read since the last exchange began.
    read: Arc<AtomicU64>,
}

type Moving = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

impl Connection {
    async fn new(socket: Socket, upgrades: bool) -> Result<Self, hyper::Error> {
        let read = Arc::new(AtomicU64::new(0));
        let io = TokioIo::new(Noted::new(socket, &read, true));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(256 * 1024);
        let (sender, connection) = builder.handshake(io).await?;
        let connection: Moving = if upgrades { Box::pin(connection.with_upgrades()) } else { Box::pin(connection) };
        Ok(Self { sender, wire: Wire { connection: Some(connection), read }, is_fresh: true })
    }

    /// Whether the service has kept it open. Nothing is asked of it now, so nobody needs to be woken.
    fn is_open(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        self.wire.read.store(0, Relaxed);
        self.wire.poll(cx);
        self.wire.connection.is_some() && self.sender.is_ready() && !self.wire.has_read()
    }

    /// Whether it can take another request. What hyper does after a response's end takes one more poll.
    fn is_reusable(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        self.wire.poll(cx);
        self.wire.connection.is_some() && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

impl Wire {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    fn has_read(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// Runs `future`, and the connection beside it: first the future, which may have something to send, then the
    /// connection, and the future again, for which something may have arrived.
    async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// A socket that counts what is read from it.
struct Noted {
    socket: Socket,
    read: Arc<AtomicU64>,
    /// Whether it is read on when it takes nothing more. A service that answers before it has all of a request, as with
    /// 413, and closes, has said all it will: hyper would give up at the write that fails, and not look at the answer.
    hears_out: bool,
    /// Why it takes nothing more.
    broken: Option<io::Error>,
}

impl Noted {
    fn new(socket: Socket, read: &Arc<AtomicU64>, hears_out: bool) -> Self {
        Self { socket, read: read.clone(), hears_out, broken: None }
    }

    /// Writes, or waits for what reading brings where that is in vain: the answer, or the end.
    fn write<T>(&mut self, write: impl FnOnce(Pin<&mut Socket>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.broken.is_some() {
            return Poll::Pending;
        }
        match write(Pin::new(&mut self.socket)) {
            Poll::Ready(Err(error)) if self.hears_out => {
                self.broken = Some(error);
                Poll::Pending
            }
            written => written,
        }
    }
}

impl tokio::io::AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, out))?;
        let len = out.filled().len() - before;
        self.read.fetch_add(len as u64, Relaxed);
        match &self.broken {
            // The kernel reports a reset once, and then an end, which must not look like the end of an answer.
            Some(error) if len == 0 => Poll::Ready(Err(io::Error::new(error.kind(), error.to_string()))),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl tokio::io::AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(|socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
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

/// A request's body as the service gets it. Clones share it, so that it can be sent once more.
#[derive(Clone, Debug)]
pub(crate) struct RequestBody {
    sending: Arc<Mutex<Sending>>,
    /// Which attempt this clone is for.
    attempt: u32,
}

#[derive(Debug)]
struct Sending {
    stream: Stream,
    recording: Recording,
    /// The one attempt that may go on. HTTP/2 sends a body in a task of its own, which can outlive its attempt.
    attempt: u32,
    /// Taken off the stream and kept, while that is not too much.
    kept: Vec<Bytes>,
    /// What all exchanges keep.
    all: Arc<AtomicUsize>,
    kept_len: usize,
    /// How many of the kept pieces this attempt has sent.
    next: usize,
    replayable: bool,
    /// The body has ended, with these trailers.
    end: Option<Bytes>,
    ended: bool,
    failed: bool,
}

impl RequestBody {
    /// The body of a stream whose head was taken. What has arrived with the head is taken too, so that its length is
    /// known where it is all; `record` is told of it. An upgrade has no body: what comes belongs to the new protocol.
    fn of(
        stream: &Stream,
        kept: &Arc<AtomicUsize>,
        head: &RequestHead,
        record: impl FnOnce(&[Bytes], bool) -> Recording,
    ) -> Self {
        let mut sending = Sending::new(stream, kept);
        sending.end = head.upgrade.as_ref().map(|_| Bytes::new());
        let held_back = expects_continue(head);
        let cx = Context::from_waker(Waker::noop());
        while !held_back && sending.end.is_none() && sending.may_keep(1) {
            match stream.poll_recv(&cx) {
                Poll::Ready(Ok(Some(Item::Data(bytes)))) => sending.keep(&bytes),
                Poll::Ready(Ok(Some(Item::End(trailers)))) => sending.end = Some(trailers),
                // An error comes again when the body is asked for.
                _ => break,
            }
        }
        sending.replayable = sending.kept_len <= REPLAY;
        sending.recording = record(&sending.kept, sending.end.is_some());
        Self::new(sending)
    }

    fn new(sending: Sending) -> Self {
        Self { attempt: sending.attempt, sending: Arc::new(Mutex::new(sending)) }
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recording(&self) -> Recording {
        self.lock().recording.clone()
    }

    /// Starts again from the beginning, in this clone and those made of it; false when that is not held any more.
    fn rewind(&mut self) -> bool {
        let mut sending = self.lock();
        sending.next = 0;
        sending.ended = false;
        sending.attempt += 1;
        let (attempt, replayable) = (sending.attempt, sending.replayable);
        drop(sending);
        self.attempt = attempt;
        replayable
    }
}

impl Sending {
    fn new(stream: &Stream, all: &Arc<AtomicUsize>) -> Self {
        Self {
            stream: stream.clone(),
            recording: Recording::default(),
            attempt: 1,
            all: all.clone(),
            kept: Vec::new(),
            kept_len: 0,
            next: 0,
            replayable: true,
            end: None,
            ended: false,
            failed: false,
        }
    }

    /// The body has ended.
    fn ends(&mut self, trailers: Bytes) {
        self.recording.whole();
        self.end = Some(trailers);
    }

    fn may_keep(&self, len: usize) -> bool {
        self.replayable && self.kept_len + len <= REPLAY && self.all.load(Relaxed) < KEPT
    }

    fn keep(&mut self, bytes: &Bytes) {
        self.kept_len += bytes.len();
        self.all.fetch_add(bytes.len(), Relaxed);
        self.kept.push(bytes.clone());
    }

    fn forget(&mut self) {
        self.all.fetch_sub(std::mem::take(&mut self.kept_len), Relaxed);
        self.kept = Vec::new();
    }

    fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(bytes) = self.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if self.end.is_none() {
            match ready!(self.stream.poll_recv(cx)) {
                Ok(Some(Item::Data(bytes))) => {
                    self.recording.data(&bytes);
                    if self.may_keep(bytes.len()) {
                        self.keep(&bytes);
                        self.next += 1;
                    } else {
                        self.replayable = false;
                        self.forget();
                        self.next = 0;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Ok(Some(Item::End(trailers))) => self.ends(trailers),
                Ok(Some(Item::Head { .. }) | None) => self.ends(Bytes::new()),
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.ended = true;
        let trailers = self.end.as_ref().and_then(|end| HeaderList::from_bytes(end).ok()).unwrap_or_default();
        if trailers.is_empty() {
            return Poll::Ready(None);
        }
        let mut map = HeaderMap::new();
        append_all(&mut map, trailers);
        Poll::Ready(Some(Ok(Frame::trailers(map))))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let mut sending = self.lock();
        if sending.attempt != self.attempt {
            return Poll::Ready(Some(Err(StreamError::Closed)));
        }
        sending.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let sending = self.lock();
        let all_sent = sending.next == sending.kept.len();
        all_sent && (sending.ended || sending.end.as_ref().is_some_and(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        let sending = self.lock();
        if sending.replayable && sending.end.as_ref().is_some_and(Bytes::is_empty) {
            let left = sending.kept.iter().skip(sending.next).map(|bytes| bytes.len() as u64).sum();
            SizeHint::with_exact(left)
        } else {
            SizeHint::default()
        }
    }
}

/// Moves a response's body into the stream until its end.
async fn pump(body: &mut Incoming, stream: &Stream) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| invalid(&error))?;
        match frame.into_data() {
            Ok(bytes) => stream.send(bytes).await?,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                let trailers = end_to_end_trailers(&trailers).to_bytes().unwrap_or_default();
                return Ok(stream.finish(trailers)?);
            }
        }
    }
    Ok(stream.finish(Bytes::new())?)
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

fn send_continue(stream: &Stream) {
    let head = ResponseHead { status: StatusCode::CONTINUE, headers: Vec::new() };
    // A stream that is gone ends the exchange by itself; a second 100 does no harm.
    if let Ok(head) = head.to_bytes() {
        let _ = stream.send_head(head, true);
    }
}

fn expects_continue(head: &RequestHead) -> bool {
    let is_expect = |(name, value): &(HeaderName, HeaderValue)| {
        *name == header::EXPECT && value.as_bytes().eq_ignore_ascii_case(b"100-continue")
    };
    head.headers.iter().any(is_expect)
}

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RELAY_REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");
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
fn invalid(error: &dyn std::error::Error) -> Failure {
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        detail = format!("{detail}: {error}");
        source = error.source();
    }
    Failure { reset: Reset::UpstreamInvalid, detail: Some(detail) }
}

/// Whether HTTP/2 failed before the service looked at the request: it was never sent, the service says so (RFC 9113,
/// section 8.7), or the connection broke without a byte from the service since, as one does that was closed before.
fn is_unseen(error: &hyper::Error, is_silent: bool) -> bool {
    let sources = std::iter::successors(error.source(), |error| (*error).source());
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use relay_protocol::link::Driver;
    use relay_protocol::mux::{Limits, Side};

    use super::*;

    /// A service that takes nothing of a request but its beginning, and whose answer is seen only then.
    struct Hasty {
        answer: &'static [u8],
        written: bool,
        broken: bool,
        reader: Option<Waker>,
    }

    impl tokio::io::AsyncRead for Hasty {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.broken {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            out.put_slice(std::mem::take(&mut self.answer));
            Poll::Ready(Ok(()))
        }
    }

    impl tokio::io::AsyncWrite for Hasty {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            if !std::mem::replace(&mut self.written, true) {
                return Poll::Ready(Ok(1));
            }
            self.broken = true;
            self.reader.take().into_iter().for_each(Waker::wake);
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_also_where_the_request_is_not_taken() {
        let (io, _peer) = tokio::io::duplex(1024);
        let socket = Driver::websocket(io, Bytes::new(), Side::Relay, 1024).await;
        let (link, _driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let whole: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large";
        // Without a length nobody knows whether the answer was whole: the end is the one of a broken connection.
        let endless: &[u8] = b"HTTP/1.1 413 Too Large\r\n\r\ntoo large";
        for (answer, is_whole) in [(whole, true), (endless, false)] {
            let stream = link.open(Bytes::from_static(b"head"), &mut Bytes::new(), false).unwrap();
            let body = RequestBody::new(Sending::new(&stream, &Arc::default()));
            let hasty = Hasty { answer, written: false, broken: false, reader: None };
            let mut connection = Connection::new(Box::new(hasty), false).await.unwrap();
            let request = Request::post("/").header(header::HOST, "hasty").body(body).unwrap();
            let answer = connection.sender.send_request(request);
            let response = connection.wire.drive(answer).await.unwrap();
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let body = connection.wire.drive(response.into_body().collect()).await;
            assert_eq!(body.is_ok_and(|body| body.to_bytes() == "too large"), is_whole);
        }
    }

    #[tokio::test]
    async fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
        let (io, _peer) = tokio::io::duplex(1024);
        let socket = Driver::websocket(io, Bytes::new(), Side::Relay, 1024).await;
        let (link, _driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let stream = link.open(Bytes::from_static(b"head"), &mut Bytes::new(), false).unwrap();
        let mut sending = Sending::new(&stream, &Arc::default());
        sending.keep(&Bytes::from_static(b"body"));
        sending.end = Some(Bytes::new());
        let mut body = RequestBody::new(sending);
        let mut given_up = body.clone();
        assert!(body.rewind());
        assert!(given_up.frame().await.unwrap().is_err());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "body");
    }
}
