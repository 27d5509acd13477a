//! One session: connect, say what is wanted, and serve until it ends.
//!
//! Everything of a session runs in one task. A pass of it takes in what has arrived, moves every exchange that can
//! move, prints what ended, and sends what is queued as one message.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use relay_protocol::frame::{GoAway, Reset, SessionKind};
use relay_protocol::link::{Driver, Link, Signal, Stream};
use relay_protocol::message::{Hello, Payload, Refusal, RequestHead, TunnelSpec, Welcome};
use relay_protocol::mux::{Ended, Item, Limits, Side};
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};
use tokio::time::{Instant, Sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use crate::dial::{DialError, Stream as Wire, Target};
use crate::terminal::Event;
use crate::upstream::{Outcome, Upstream};
use crate::value::Secret;

/// How long the relay has to answer the upgrade and the Hello. It may probe another session for a second meanwhile.
const ANSWER: Duration = Duration::from_secs(10);

/// Longest refusal that is read.
const MAX_REFUSAL: usize = 16 * 1024;

/// One session has one buffer, so it may be large enough for an upload's messages.
const READ_BUFFER: usize = 16 * 1024;

/// Exchanges at once. A relay that opens more streams is told of each that it is refused, and answers 429.
const MOST_EXCHANGES: usize = 4096;

/// Streams of the session. `Welcome` says how many the relay allows itself, but they are counted from before it comes,
/// and a relay that keeps its word is not accused. So there is room for as many again as are being refused. Together
/// they hold at most 144 MiB of bodies: 16 KiB each, and 16 MiB that they share.
const MOST_STREAMS: u32 = 2 * MOST_EXCHANGES as u32;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The relay is not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The relay answered, and not with a session.
    #[error("{message}{}", if .hint.is_empty() { String::new() } else { format!(" {}", .hint) })]
    Refused {
        /// The status of its answer.
        status: StatusCode,
        /// Its code, such as `unauthorized`.
        code: String,
        /// What happened.
        message: String,
        /// What to do.
        hint: String,
    },
    /// What answers there is not a relay.
    #[error("what answers at {relay} is not a relay: {reason}")]
    NotRelay {
        /// The relay's URL.
        relay: String,
        /// What it did.
        reason: String,
    },
    /// The connection broke before there was a session.
    #[error("the connection broke while the session was set up: {0}")]
    Broken(String),
    /// The relay did not answer in time.
    #[error("the relay did not answer within {} s", ANSWER.as_secs())]
    Silent,
    /// The token cannot stand in a header.
    #[error("the token has characters that a token cannot have")]
    BadToken,
}

/// A session that is set up.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: Link,
    driver: Driver<Wire>,
    pub(crate) welcome: Welcome,
}

impl Session {
    /// Says goodbye, so that the relay need not wonder.
    pub(crate) async fn close(self) {
        self.link.go_away(GoAway::Shutdown, false, "The client does not want the session.");
        self.driver.await;
    }
}

/// Whoever wants to know what happens. Called in the session's task, so it must not block.
pub trait Observer: Send {
    /// Something happened.
    fn observe(&mut self, event: &Event<'_>);

    /// Nothing more happens at this moment: the time to write out what has gathered. False ends the session, because
    /// nobody is interested any more.
    fn pause(&mut self) -> bool {
        true
    }
}

/// Connects, and asks for tunnels.
///
/// # Errors
/// [`ConnectError`] says why there is no session. Tunnels that are refused are in the [`Welcome`].
pub(crate) async fn connect(
    target: &Target,
    token: Option<&Secret>,
    tunnels: Vec<TunnelSpec>,
) -> Result<Session, ConnectError> {
    let wire = target.dial().await?;
    timeout(ANSWER, open(wire, target, token, tunnels)).await.unwrap_or(Err(ConnectError::Silent))
}

async fn open(
    wire: Wire,
    target: &Target,
    token: Option<&Secret>,
    tunnels: Vec<TunnelSpec>,
) -> Result<Session, ConnectError> {
    let broken = |error: &dyn std::fmt::Display| ConnectError::Broken(error.to_string());
    let request = upgrade_request(target, token)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(|error| broken(&error))?;
    let mut connection = pin!(connection.with_upgrades());
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| not_http(target, &error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(target, response).await);
        }
        hyper::upgrade::on(response).await.map_err(|error| broken(&error))
    };
    let mut exchange = pin!(exchange);
    // The connection ends with the upgrade or with an error that the exchange gets too.
    let upgraded = poll_fn(|cx| {
        if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        let _ = connection.as_mut().poll(cx);
        exchange.as_mut().poll(cx)
    })
    .await?;
    let Ok(parts) = upgraded.downcast::<TokioIo<Wire>>() else {
        return Err(ConnectError::Broken("the connection changed its kind".to_owned()));
    };
    let socket = Driver::websocket(parts.io.into_inner(), parts.read_buf, Side::Client, READ_BUFFER).await;
    let limits = Limits { max_streams: MOST_STREAMS, ..Limits::default() };
    let (link, mut driver) = Driver::new(Side::Client, limits, socket);
    let hello = Hello {
        client: "relay".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
        tunnels,
        resume: None,
        extra: Vec::new(),
    };
    let hello = hello.to_bytes().map_err(|error| broken(&error))?;
    link.send_message(SessionKind::Hello, hello).map_err(|error| broken(&error))?;
    let signal = tokio::select! {
        biased;
        signal = link.signal() => signal,
        ended = &mut driver => Signal::Ended(ended),
    };
    match signal {
        Signal::Message(SessionKind::Welcome, payload) => {
            let welcome = Welcome::from_bytes(&payload).map_err(|error| broken(&error))?;
            Ok(Session { link, driver, welcome })
        }
        Signal::GoAway { text, .. } => Err(ConnectError::Broken(text)),
        Signal::Ended(ended) => Err(broken(&ended)),
        Signal::Message(..) | Signal::Opened(_) => {
            let reason = "its first message is not a Welcome".to_owned();
            Err(ConnectError::NotRelay { relay: target.url().to_string(), reason })
        }
    }
}

fn upgrade_request(target: &Target, token: Option<&Secret>) -> Result<Request<Empty<Bytes>>, ConnectError> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = http::Uri::from_static(CONNECT_PATH);
    let headers = request.headers_mut();
    let host = HeaderValue::try_from(target.url().authority()).unwrap_or(HeaderValue::from_static("relay"));
    headers.insert(HOST, host);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    // Base64 is always a header value; the other arm is any valid key.
    let key = generate_key().try_into().unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="));
    headers.insert(SEC_WEBSOCKET_KEY, key);
    if let Some(token) = token {
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut bearer = bearer.map_err(|_| ConnectError::BadToken)?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Ok(request)
}

fn not_http(target: &Target, error: &hyper::Error) -> ConnectError {
    if error.is_parse() {
        ConnectError::NotRelay { relay: target.url().to_string(), reason: "it does not speak HTTP".to_owned() }
    } else {
        ConnectError::Broken(error.to_string())
    }
}

/// What the relay says instead of a session.
async fn refusal(target: &Target, response: Response<Incoming>) -> ConnectError {
    let status = response.status();
    let is_relay = response.headers().contains_key("relay-error");
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |field: &str| {
        answer.pointer(&format!("/error/{field}")).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
    };
    if is_relay {
        ConnectError::Refused { status, code: text("code"), message: text("message"), hint: text("hint") }
    } else {
        ConnectError::NotRelay { relay: target.url().to_string(), reason: format!("it answers with status {status}") }
    }
}

/// Why serving ended.
#[derive(Debug)]
pub(crate) enum Over {
    /// The session ended.
    Ended(Ended),
    /// The relay gave one of our names to another session.
    Replaced,
    /// The observer has seen enough.
    Unwatched,
}

type Exchanges = FuturesUnordered<Pin<Box<dyn Future<Output = Outcome> + Send>>>;

/// Serves a session until it ends. With `draining`, the relay has been told that we go.
pub(crate) struct Serve<'a> {
    session: Session,
    upstreams: Arc<HashMap<u32, Arc<Upstream>>>,
    observer: &'a mut dyn Observer,
    exchanges: Exchanges,
    sweep: Option<Pin<Box<Sleep>>>,
    bell: Arc<Bell>,
    /// How often what was queued has been sent.
    turns: Arc<AtomicU64>,
}

/// Passes of [`Serve`] before it lets the runtime look at its sockets again.
const PASSES: u32 = 4;

/// Wakes the session's task, unless it is at work and will look again by itself. Most of what an exchange waits for
/// happens in the very pass that it waits in, and waking a task that runs costs a trip through the runtime.
#[derive(Debug, Default)]
struct Bell {
    task: AtomicWaker,
    at_work: AtomicBool,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, SeqCst);
        if !self.at_work.load(SeqCst) {
            self.task.wake();
        }
    }
}

impl<'a> Serve<'a> {
    pub(crate) fn new(
        session: Session,
        upstreams: Arc<HashMap<u32, Arc<Upstream>>>,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let (bell, turns) = Default::default();
        Self { session, upstreams, observer, exchanges: FuturesUnordered::new(), sweep: None, bell, turns }
    }

    fn take_signals(&mut self, cx: &Context<'_>) -> Poll<Over> {
        loop {
            match self.session.link.poll_signal(cx) {
                Poll::Ready(Signal::Opened(stream)) => self.start(stream),
                Poll::Ready(Signal::Message(SessionKind::Unbind, payload)) => {
                    if u32::from_bytes(&payload).is_ok() {
                        return Poll::Ready(Over::Replaced);
                    }
                }
                Poll::Ready(Signal::Message(kind, _)) => tracing::debug!(?kind, "an unexpected session message"),
                Poll::Ready(Signal::GoAway { reason, drain, text }) => {
                    tracing::debug!(%reason, drain, text, "the relay says goodbye");
                }
                // The driver ends in a moment, once it has said everything.
                Poll::Ready(Signal::Ended(_)) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn start(&mut self, stream: Stream) {
        let (upstreams, turns) = (self.upstreams.clone(), self.turns.clone());
        let is_full = self.exchanges.len() >= MOST_EXCHANGES;
        self.exchanges.push(Box::pin(async move {
            let arrived = Instant::now();
            let fail = |reset: Reset, detail: String| Outcome {
                head: None,
                arrived,
                status: None,
                error: Some(reset.name()),
                detail: Some(detail),
            };
            let head = match stream.recv().await {
                Ok(Some(Item::Head { head, .. })) => RequestHead::from_bytes(&head).map_err(|error| error.to_string()),
                Ok(_) => Err("the stream did not begin with a head".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match head.map(|head| (upstreams.get(&head.tunnel).cloned(), head)) {
                Ok((_, head)) if is_full => {
                    stream.reset(Reset::Refused);
                    let status = Some(StatusCode::TOO_MANY_REQUESTS);
                    let detail = Some(format!("{MOST_EXCHANGES} exchanges are under way, which is the most"));
                    Outcome { head: Some(head), arrived, status, error: Some("too-many-requests"), detail }
                }
                Ok((Some(upstream), head)) => upstream.forward(stream, head, &turns).await,
                Ok((None, _)) => {
                    stream.reset(Reset::Refused);
                    fail(Reset::Refused, "the relay named a tunnel that this client does not have".to_owned())
                }
                Err(detail) => {
                    stream.reset(Reset::Malformed);
                    fail(Reset::Malformed, detail)
                }
            }
        }));
    }

    fn take_outcomes(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(outcome)) = self.exchanges.poll_next_unpin(cx) {
            report(self.observer, &outcome);
        }
    }

    /// Closes upstream connections that nobody has used for a while.
    fn sweep(&mut self, cx: &mut Context<'_>) {
        if let Some(sleep) = &mut self.sweep {
            if sleep.as_mut().poll(cx).is_pending() {
                return;
            }
            self.sweep = None;
        }
        let now = Instant::now();
        if let Some(next) = self.upstreams.values().filter_map(|upstream| upstream.expire(now)).min() {
            let mut sleep = Box::pin(tokio::time::sleep_until(next));
            // Polled once, so that it wakes us.
            let _ = sleep.as_mut().poll(cx);
            self.sweep = Some(sleep);
        }
    }
}

impl Future for Serve<'_> {
    type Output = Over;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Over> {
        let this = &mut *self;
        let bell = this.bell.clone();
        bell.task.register(cx.waker());
        bell.at_work.store(true, SeqCst);
        let waker = Waker::from(bell.clone());
        this.session.driver.poll_incoming(cx);
        for _ in 0..PASSES {
            bell.rung.store(false, SeqCst);
            let inner = &mut Context::from_waker(&waker);
            if let Poll::Ready(over) = this.take_signals(inner) {
                return Poll::Ready(over);
            }
            this.take_outcomes(inner);
            if !bell.rung.load(SeqCst) {
                break;
            }
        }
        // The answer first, and then what is said of it.
        let ended = this.session.driver.poll_outgoing(cx);
        this.turns.fetch_add(1, Relaxed);
        let watched = this.observer.pause();
        this.sweep(cx);
        bell.at_work.store(false, SeqCst);
        if bell.rung.swap(false, SeqCst) {
            cx.waker().wake_by_ref();
        }
        match ended {
            Poll::Ready(ended) => {
                // Every exchange hears of the end, and is reported.
                this.take_outcomes(&mut Context::from_waker(&waker));
                Poll::Ready(Over::Ended(ended))
            }
            Poll::Pending if watched => Poll::Pending,
            Poll::Pending => Poll::Ready(Over::Unwatched),
        }
    }
}

fn report(observer: &mut dyn Observer, outcome: &Outcome) {
    let Some(head) = &outcome.head else {
        tracing::warn!(error = outcome.error, detail = outcome.detail, "a request could not be taken");
        return;
    };
    let duration = Duration::from_millis(head.elapsed_ms.into()) + outcome.arrived.elapsed();
    observer.observe(&Event::Exchange {
        id: &head.id,
        method: head.method.as_str(),
        path: head.target.as_str(),
        status: outcome.status.map(|status| status.as_u16()),
        duration_ms: duration.as_secs_f64() * 1e3,
        error: outcome.error,
    });
    if let Some(detail) = &outcome.detail {
        observer.observe(&Event::Notice(&format!("{}: {detail}", head.id)));
    }
}

/// A refusal of one of the tunnels, for a person.
pub(crate) fn explain(refusal: &Refusal) -> String {
    if refusal.hint.is_empty() { refusal.message.clone() } else { format!("{} {}", refusal.message, refusal.hint) }
}

/// Whether the relay says that coming back is no use.
pub(crate) fn is_final(ended: &Ended) -> bool {
    matches!(ended, Ended::Remote { reason: GoAway::Revoked | GoAway::Expired | GoAway::Replaced, .. })
}
