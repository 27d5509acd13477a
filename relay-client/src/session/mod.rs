//! Sessions: connect, say what is wanted, and serve until they end.
//!
//! Everything runs in one task. A pass of it takes in what has arrived, moves every exchange that can move, prints what
//! ended, and sends what is queued as one message. Mostly there is one session; while a relay drains, or a lost link is
//! being closed, there is an old one beside it, which ends what it has begun.

pub mod dial;
pub mod probe;
pub(crate) mod watch;

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
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
use relay_protocol::inbox::Delivery;
use relay_protocol::link::{Driver, Link, Signal, Stream};
use relay_protocol::message::{
    Bound, Hello, Lost, MOVES, Payload, Refusal, RequestHead, Resume, TunnelSpec, Welcome, Withheld,
};
use relay_protocol::mux::{Ended, Item, Limits, Side};
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use crate::capture::Capture;
use crate::door::{Knock, LocalError, Way};
use crate::event::{Event, Observer};
use crate::intake::{Intake, Outcome, Webhook};
use crate::session::dial::{DialError, Stream as Wire, Target};
use crate::session::probe::Probe;
use crate::upstream::Ending;
use crate::upstream::service::BoxError;
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
/// they hold at most 144 MiB of unread bodies: 16 KiB each, and 16 MiB that they share.
const MOST_STREAMS: u32 = 2 * MOST_EXCHANGES as u32;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The relay is not reached.
    #[error(transparent)]
    Dial(BoxError),
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
    /// The relay let the token in and took that back before there was a session.
    #[error("{0}")]
    Revoked(String),
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

impl From<DialError> for ConnectError {
    fn from(error: DialError) -> Self {
        Self::Dial(error.into())
    }
}

/// A session that is set up.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: Link,
    driver: Driver<Wire>,
    pub(crate) welcome: Welcome,
    /// Whom the connection leads to: the relay, or a proxy before it.
    pub(crate) peer: Option<SocketAddr>,
}

impl Session {
    /// Says goodbye, so that the relay need not wonder.
    pub(crate) async fn close(self) {
        self.link.go_away(GoAway::Shutdown, false, "The client does not want the session.");
        self.driver.await;
    }
}

/// Connects, and asks for tunnels; with `resume`, as the session that was lost.
///
/// # Errors
/// [`ConnectError`] says why there is no session. Tunnels that are refused are in the [`Welcome`].
pub(crate) async fn connect(
    target: &Target,
    token: Option<&Secret>,
    tunnels: Vec<TunnelSpec>,
    resume: Option<Resume>,
) -> Result<Session, ConnectError> {
    let wire = target.dial().await?;
    timeout(ANSWER, open(wire, target, token, tunnels, resume)).await.unwrap_or(Err(ConnectError::Silent))
}

async fn open(
    wire: Wire,
    target: &Target,
    token: Option<&Secret>,
    tunnels: Vec<TunnelSpec>,
    resume: Option<Resume>,
) -> Result<Session, ConnectError> {
    let peer = wire.tcp().peer_addr().ok();
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
        features: vec![MOVES.to_owned()],
        tunnels,
        resume,
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
            tracing::debug!(session = welcome.session, resumed = welcome.resumed, "a session");
            Ok(Session { link, driver, welcome, peer })
        }
        Signal::GoAway { reason: GoAway::Revoked | GoAway::Expired, text, .. }
        | Signal::Ended(Ended::Remote { reason: GoAway::Revoked | GoAway::Expired, text }) => {
            Err(ConnectError::Revoked(text))
        }
        Signal::GoAway { text, .. } => Err(ConnectError::Broken(text)),
        Signal::Ended(ended) => Err(ConnectError::Broken(because(&ended))),
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

/// What happens to the session that counts: the last one that was added.
#[derive(Debug)]
pub(crate) enum News {
    /// The relay ends it once its streams have ended, or those that it still opens. It is served until then.
    Drains(String),
    /// It has ended. What has to be said is still being said.
    Ended(Ended),
    /// The relay gave this tunnel's name to somebody else, or to nobody, and why, if it says so.
    Unbound(u32, Option<Refusal>),
    /// What became of a tunnel that was asked for.
    Bound(Bound),
    /// The observer has seen enough.
    Unwatched,
}

type Exchanges = FuturesUnordered<Pin<Box<dyn Future<Output = Option<Outcome>> + Send>>>;

/// Serves sessions. It must be polled, by [`Serve::next`], for as long as any of them is to go on.
pub(crate) struct Serve {
    /// The last one is the one that counts, unless it is over; those before it end what they have.
    sessions: Vec<Live>,
    intakes: Arc<HashMap<u32, Arc<Intake>>>,
    exchanges: Exchanges,
    news: VecDeque<News>,
    /// What resumes the session that counts, or the last one that did.
    resume: Option<Resume>,
    sweep: Option<Pin<Box<Sleep>>>,
    bell: Arc<Bell>,
    /// How often what was queued has been sent.
    turns: Arc<AtomicU64>,
    /// A request that is ours to answer.
    own: Option<Probe>,
    /// Keeps what comes.
    capture: Option<Capture>,
    /// Requests of our own.
    knocks: mpsc::Receiver<Knock>,
}

/// A session that is served.
struct Live {
    link: Link,
    driver: Box<dyn Moves>,
    /// Nothing that happens to it matters any more, but the exchanges that it still has.
    old: bool,
}

/// What moves a session's messages, whatever they travel over: see [`Driver`].
trait Moves: Send {
    fn poll_incoming(&mut self, cx: &mut Context<'_>);
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Ended>;
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Moves for Driver<T> {
    fn poll_incoming(&mut self, cx: &mut Context<'_>) {
        Self::poll_incoming(self, cx);
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        Self::poll_outgoing(self, cx)
    }
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

impl Serve {
    /// Serves nothing yet. Whoever asks for `own` is answered here, and no service hears of it; whoever `knocks` is let in.
    pub(crate) fn new(own: Option<Probe>, capture: Option<Capture>, knocks: mpsc::Receiver<Knock>) -> Self {
        Self {
            sessions: Vec::new(),
            intakes: Arc::default(),
            exchanges: FuturesUnordered::new(),
            news: VecDeque::new(),
            resume: None,
            sweep: None,
            bell: Arc::default(),
            turns: Arc::default(),
            own,
            capture,
            knocks,
        }
    }

    /// Serves this session from now on, and any other only until its streams have ended.
    pub(crate) fn add(&mut self, session: Session, intakes: Arc<HashMap<u32, Arc<Intake>>>) {
        self.sessions.iter_mut().for_each(|live| live.old = true);
        // What happened to the others is of no interest now.
        self.news.clear();
        self.resume = Some(Resume { key: session.welcome.resume_key, last_stream: 0 });
        self.intakes = intakes;
        self.sessions.push(Live { link: session.link, driver: Box::new(session.driver), old: false });
    }

    /// Serves a link within this process beside the others.
    fn let_in(&mut self, knock: Knock) {
        let Knock { tunnel, link, driver, opened } = knock;
        // A tunnel that has moved has a greater number than it had.
        let of_name = self.intakes.iter().filter(|(_, intake)| *intake.name() == *tunnel);
        let found = of_name.max_by_key(|(number, _)| **number);
        let found = found.map(|(number, intake)| Way { number: *number, webhooks: intake.webhooks().clone() });
        let is_let_in = found.is_some();
        // Who has gone meanwhile needs no link.
        if opened.send(found.ok_or(LocalError::NoTunnel(tunnel))).is_ok() && is_let_in {
            self.sessions.insert(0, Live { link, driver: Box::new(driver), old: true });
        }
    }

    /// Says goodbye to a session that is not to be served. What went on with the last one that counted is lost with it,
    /// but for its key, which the relay has taken and replaced.
    pub(crate) fn dismiss(&mut self, session: Session) {
        if session.welcome.resumed {
            self.resume = Some(Resume { key: session.welcome.resume_key, last_stream: 0 });
        }
        session.link.go_away(GoAway::Shutdown, false, "The client does not want the session.");
        self.sessions.insert(0, Live { link: session.link, driver: Box::new(session.driver), old: true });
    }

    /// Where requests go from now on.
    pub(crate) fn set_intakes(&mut self, intakes: Arc<HashMap<u32, Arc<Intake>>>) {
        self.intakes = intakes;
    }

    /// The link of the session that counts, while there is one.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.sessions.last().filter(|live| !live.old).map(|live| &live.link)
    }

    /// What resumes the last session that counted, once it has ended.
    pub(crate) fn resume(&self) -> Option<&Resume> {
        self.resume.as_ref()
    }

    /// Takes the session that counts for dead: nothing is said to it, and no [`News`] comes of it.
    pub(crate) fn give_up(&mut self) {
        self.sessions.retain(|live| live.old);
        self.news.clear();
    }

    /// Waits for the next news.
    pub(crate) async fn next(&mut self, observer: &mut dyn Observer) -> News {
        poll_fn(|cx| self.poll(observer, cx)).await
    }

    /// Tells the relay that we go. [`Serve::finish`] is to follow.
    pub(crate) fn say_goodbye(&self) {
        for live in &self.sessions {
            live.link.go_away(GoAway::Shutdown, true, "The client stops.");
        }
    }

    /// Serves until all that is under way has ended and was reported.
    pub(crate) async fn finish(&mut self, observer: &mut dyn Observer) {
        let mut observer = ToTheEnd(observer);
        poll_fn(|cx| {
            while self.poll(&mut observer, cx).is_ready() {}
            if self.sessions.is_empty() && self.exchanges.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn poll(&mut self, observer: &mut dyn Observer, cx: &mut Context<'_>) -> Poll<News> {
        if let Some(news) = self.news.pop_front() {
            return Poll::Ready(news);
        }
        let bell = self.bell.clone();
        bell.task.register(cx.waker());
        bell.at_work.store(true, SeqCst);
        let waker = Waker::from(bell.clone());
        while let Poll::Ready(Some(knock)) = self.knocks.poll_recv(cx) {
            self.let_in(knock);
        }
        for live in &mut self.sessions {
            live.driver.poll_incoming(cx);
        }
        for _ in 0..PASSES {
            bell.rung.store(false, SeqCst);
            let inner = &mut Context::from_waker(&waker);
            self.take_signals(observer, inner);
            self.take_outcomes(observer, inner);
            if !bell.rung.load(SeqCst) {
                break;
            }
        }
        // The answer first, and then what is said of it.
        if self.send(cx) {
            // An exchange hears of its session's end, and is reported.
            self.take_outcomes(observer, &mut Context::from_waker(&waker));
        }
        if !observer.pause() {
            self.news.push_back(News::Unwatched);
        }
        self.sweep(cx);
        bell.at_work.store(false, SeqCst);
        if bell.rung.swap(false, SeqCst) {
            cx.waker().wake_by_ref();
        }
        self.news.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn take_signals(&mut self, observer: &mut dyn Observer, cx: &Context<'_>) {
        for at in 0..self.sessions.len() {
            let Some(live) = self.sessions.get_mut(at) else { break };
            let link = live.link.clone();
            // Requests for a tunnel may be right behind its Bound: first it must be known where they go.
            while !matches!(self.news.back(), Some(News::Bound(_))) {
                match link.poll_signal(cx) {
                    Poll::Ready(Signal::Opened(stream)) => self.start(at, stream),
                    Poll::Ready(Signal::Message(SessionKind::Unbind, payload)) => {
                        if let Ok(tunnel) = u32::from_bytes(&payload) {
                            self.tell(at, News::Unbound(tunnel, None));
                        }
                    }
                    // The Unbind behind it is then for a tunnel that nobody has.
                    Poll::Ready(Signal::Message(SessionKind::Lost, payload)) => match Lost::from_bytes(&payload) {
                        Ok(Lost { tunnel, why, .. }) => self.tell(at, News::Unbound(tunnel, Some(why))),
                        Err(error) => link.go_away(GoAway::Protocol, false, &error.to_string()),
                    },
                    Poll::Ready(Signal::Message(SessionKind::Bound, payload)) => match Bound::from_bytes(&payload) {
                        Ok(bound) => self.tell(at, News::Bound(bound)),
                        Err(error) => link.go_away(GoAway::Protocol, false, &error.to_string()),
                    },
                    Poll::Ready(Signal::Message(SessionKind::Withheld, payload)) => {
                        match Withheld::from_bytes(&payload) {
                            Ok(requests) => self.tell_withheld(observer, &requests),
                            Err(error) => link.go_away(GoAway::Protocol, false, &error.to_string()),
                        }
                    }
                    Poll::Ready(Signal::Message(SessionKind::Move, _)) => {
                        tracing::debug!("another process of the relay serves on");
                        self.tell(at, News::Drains("another process of the relay serves on".to_owned()));
                    }
                    Poll::Ready(Signal::Message(kind, _)) => tracing::debug!(?kind, "an unexpected session message"),
                    Poll::Ready(Signal::GoAway { reason, drain, text }) => {
                        tracing::debug!(%reason, drain, text, "the relay says goodbye");
                        if drain {
                            self.tell(at, News::Drains(because(&Ended::Remote { reason, text })));
                        }
                    }
                    // The driver goes on for a moment, until it has said everything. Nobody has to wait for that.
                    Poll::Ready(Signal::Ended(ended)) => {
                        self.bury(at, ended);
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
    }

    /// Sends what is queued, and lets go of sessions that are closed. Whether there were such.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let (mut at, before) = (0, self.sessions.len());
        while let Some(live) = self.sessions.get_mut(at) {
            match live.driver.poll_outgoing(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(ended) => {
                    self.bury(at, ended);
                    self.sessions.remove(at);
                }
            }
        }
        self.turns.fetch_add(1, Relaxed);
        self.sessions.len() < before
    }

    /// News of the session that counts are passed on.
    fn tell(&mut self, at: usize, news: News) {
        if self.sessions.get(at).is_some_and(|live| !live.old) {
            self.news.push_back(news);
        }
    }

    /// Tells of requests that the relay has refused. Those to a tunnel that is not wanted any more interest nobody.
    fn tell_withheld(&self, observer: &mut dyn Observer, requests: &Withheld) {
        let Some(tunnel) = self.intakes.get(&requests.tunnel).map(|intake| intake.name()) else { return };
        let Withheld { count, id, method, target, remote, code, provider, verdict, reason, .. } = requests;
        let (count, path, error, provider) = (*count, target, code, provider.as_deref());
        observer.observe(&Event::Withheld {
            tunnel: &tunnel,
            count,
            id,
            method,
            path,
            remote,
            error,
            provider,
            verdict,
            reason,
        });
    }

    fn bury(&mut self, at: usize, ended: Ended) {
        self.tell(at, News::Ended(ended));
        if let Some(live) = self.sessions.get_mut(at) {
            live.old = true;
        }
    }

    fn start(&mut self, at: usize, stream: Stream) {
        // Handed over from here on: if the link is lost, the relay must not send this request again.
        if self.sessions.get(at).is_some_and(|live| !live.old)
            && let Some(resume) = &mut self.resume
        {
            resume.last_stream = resume.last_stream.max(stream.id().get());
        }
        let (intakes, turns, own) = (self.intakes.clone(), self.turns.clone(), self.own.clone());
        let capture = self.capture.clone();
        let is_full = self.exchanges.len() >= MOST_EXCHANGES;
        self.exchanges.push(Box::pin(async move {
            let fail = |reset: Reset, detail: String| Outcome {
                tunnel: None,
                head: None,
                duration: Duration::ZERO,
                webhook: None,
                ending: Ending { status: None, error: Some(reset.name()), detail: Some(detail) },
            };
            let mut encoded = Bytes::new();
            let head = match stream.recv().await {
                Ok(Some(Item::Head { head, .. })) => {
                    encoded = head;
                    RequestHead::from_bytes(&encoded).map_err(|error| error.to_string())
                }
                Ok(_) => Err("the stream did not begin with a head".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            if let (Ok(head), Some(own)) = (&head, &own)
                && own.is(head.target.as_str())
            {
                own.answer(&stream);
                return None;
            }
            let found = head.map(|head| (intakes.get(&head.tunnel).cloned(), head));
            // An exchange that takes long keeps its own service, and not those of other tunnels.
            drop(intakes);
            let arrival = capture.map(|capture| capture.arrival(encoded)).unwrap_or_default();
            let outcome = match found {
                Ok((Some(intake), head)) if is_full => {
                    let detail = format!("{MOST_EXCHANGES} exchanges are under way, which is the most");
                    intake.refuse(&stream, head, arrival, detail)
                }
                Ok((Some(intake), head)) => intake.take(stream, head, &turns, arrival).await,
                Ok((None, _)) => {
                    stream.reset(Reset::Refused);
                    fail(Reset::Refused, "the relay named a tunnel that this client does not have".to_owned())
                }
                Err(detail) => {
                    stream.reset(Reset::Malformed);
                    fail(Reset::Malformed, detail)
                }
            };
            Some(outcome)
        }));
    }

    fn take_outcomes(&mut self, observer: &mut dyn Observer, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(outcome)) = self.exchanges.poll_next_unpin(cx) {
            if let Some(outcome) = outcome {
                report(observer, &outcome);
            }
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
        if let Some(next) = self.intakes.values().filter_map(|intake| intake.expire(now)).min() {
            let mut sleep = Box::pin(tokio::time::sleep_until(next));
            // Polled once, so that it wakes us.
            let _ = sleep.as_mut().poll(cx);
            self.sweep = Some(sleep);
        }
    }
}

/// An observer that does not end what goes on without it.
struct ToTheEnd<'a>(&'a mut dyn Observer);

impl Observer for ToTheEnd<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        self.0.observe(event);
    }

    fn pause(&mut self) -> bool {
        self.0.pause();
        true
    }
}

fn report(observer: &mut dyn Observer, outcome: &Outcome) {
    let Ending { status, error, detail } = &outcome.ending;
    let Some(head) = &outcome.head else {
        tracing::warn!(error, detail, "a request could not be taken");
        return;
    };
    let delivery = Delivery::of(&head.headers);
    observer.observe(&Event::Exchange {
        tunnel: outcome.tunnel.as_deref().unwrap_or_default(),
        id: &head.id,
        method: head.method.as_str(),
        path: head.target.as_str(),
        status: status.map(|status| status.as_u16()),
        duration_ms: outcome.duration.as_secs_f64() * 1e3,
        error: *error,
        detail: detail.as_deref(),
        webhook: outcome.webhook.as_ref().map(Webhook::shown),
        delivery: delivery.as_ref(),
    });
}

/// A refusal of one of the tunnels, for a person.
pub(crate) fn explain(refusal: &Refusal) -> String {
    if refusal.hint.is_empty() { refusal.message.clone() } else { format!("{} {}", refusal.message, refusal.hint) }
}

/// Why a session ended, as a sentence's part, in words that are true.
pub(crate) fn because(ended: &Ended) -> String {
    match ended {
        Ended::Silent(time) => format!("nothing was heard from the relay for {} s", time.as_secs()),
        Ended::Remote { reason: GoAway::Shutdown, .. } => "the relay shuts down".to_owned(),
        Ended::Remote { reason: GoAway::Silent, .. } => {
            "the relay heard nothing from this client for too long".to_owned()
        }
        Ended::Remote { reason, text } if text.is_empty() => format!("the relay ended the session ({reason})"),
        Ended::Remote { text, .. } => format!("the relay ended the session: {}", text.trim_end_matches('.')),
        Ended::Link(why) => format!("the connection to the relay broke: {why}"),
        Ended::Violation { reason, detail } => format!("the relay broke the protocol ({reason}): {detail}"),
        Ended::Local(_) => "this client ended the session".to_owned(),
    }
}
