//! One exchange, from the request's head to the end of its response.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version, request};
use hyper::body::Incoming;
use hyper::ext::{Protocol, ReasonPhrase};
use hyper::upgrade::OnUpgrade;
use relay_protocol::exchange::{
    X_FORWARDED_PREFIX, X_FORWARDED_PROTO, append_all, append_framed, content_length, end_to_end, is_owned, upgrade_of,
};
use relay_protocol::frame::{Reset, StreamId};
use relay_protocol::link::Stream;
use relay_protocol::message::{MessageError, Payload, RequestHead, ResponseHead};
use relay_protocol::mux::{Item, OpenError, StreamError};
use relay_protocol::webhook::Judgement;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::access;
use super::body::{EdgeBody, Upload, UploadError, discard};
use super::close;
use super::gate::PublicHost;
use super::inbox;
use super::io::InFlight;
use super::login::Login;
use super::paths::{self, Below};
use super::record::Exchange;
use super::respond::{answer, explain, is_edges};
use super::sender::{Sender, X_FORWARDED_FOR};
use super::upgrade;
use super::webhook::{Allowed, handshake, verify};
use crate::Shared;
use crate::cause::Cause;
use crate::clock::unix_now;
use crate::quota::{Meter, Over};
use crate::session::resumes;
use crate::store::TokenId;
use crate::tunnels::{Asked, Found, Loss, SEEN, Tunnel};

/// A body that is still arriving after a second is an upload and not a webhook. Where nobody but the relay has set the
/// deadline, the service's time to answer then counts from the last byte, as long as there come this many in each second.
pub(super) const SLOWEST_UPLOAD: u64 = 1024;

/// Passes one request to its tunnel and the answer back.
pub(crate) async fn forward(
    shared: Arc<Shared>,
    sender: Sender,
    host: PublicHost,
    started: Instant,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<EdgeBody> {
    let (mut parts, body) = request.into_parts();
    // One that comes by itself is closed where it is kept out; a proxy's is not.
    let address = sender.address_or_peer(&parts.headers);
    let proxied = sender.trusted.then_some(address);
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let head = request_head(&parts, &sender, &host);
    let mut exchange = Box::new(Exchange::new(shared.clone(), head, parts.version, started, in_flight));
    exchange.caller = sender.caller;
    // The relay's own, of every tunnel: who has the name may have asked for a login yesterday, and will again tomorrow.
    exchange.admitted.cookies.take(&mut exchange.head.headers);
    let mut upload = Some(Upload::new(body, shared.limits()));
    if upload.as_mut().is_some_and(|upload| !upload.is_done()) {
        // Where a body ends and another protocol begins is read differently by different servers. RFC 9110, section
        // 7.8, lets us ignore the wish.
        exchange.head.upgrade = None;
    }
    let expects = expects_continue(parts.version, &parts.headers);
    let kept_out = async {
        match proxied {
            Some(address) => shared.blocks.until_address(address).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        biased;
        result = deliver(&shared, &mut exchange, &host, &mut upload, expects, on_upgrade) => result,
        // Since it was let in. What the service was asked is taken back with the stream that has asked it.
        () = kept_out => {
            exchange.arrives(None);
            Err(blocked(&shared).into())
        }
    };
    let mut uploads_to = None;
    let mut response = match result {
        Ok(Delivered { response, switched: None, uploads_to: stream }) => {
            uploads_to = stream;
            response
        }
        Ok(Delivered { response, switched: Some((stream, on_upgrade)), .. }) => {
            exchange.answered(response.status());
            shared.spawn(upgrade::run(shared.clone(), address, on_upgrade, stream, exchange));
            return response;
        }
        Err(Instead::Answered(response)) => *response,
        // Boxed, because few need it, and an issuer is asked meanwhile.
        Err(Instead::Login(login)) => Box::pin(login.answer(&shared, &mut exchange)).await,
        Err(Instead::Failed(Failure { cause, message })) => {
            exchange.failed(cause);
            match message {
                Some(message) => explain(&shared, cause, &parts.headers, &message),
                None => answer(&shared, cause, &parts.headers),
            }
        }
    };
    exchange.answered(response.status());
    // A sender that was to wait for a 100, and got none, may send another request where the body would be.
    let unasked = expects && upload.as_ref().is_some_and(|upload| !(upload.has_ended() || upload.is_asked_for()));
    if unasked && !response.status().is_success() {
        close(parts.version, &mut response);
    }
    if let Some(upload) = upload.filter(|upload| uploads_to.is_some() || !(upload.has_ended() || unasked)) {
        let answered = CancellationToken::new();
        response.body_mut().ends(answered.clone().drop_guard());
        let rest = rest(upload, uploads_to, unasked, answered, &exchange);
        let closing = shared.closing.clone();
        shared.spawn(async move { closing.run_until_cancelled(rest).await.unwrap_or_default() });
    }
    response.body_mut().record(exchange);
    if let Some((progress, stream)) = response.body().watch() {
        shared.janitor.watch(progress, &stream, proxied);
        if proxied.is_some_and(|address| shared.blocks.has_address(address)) {
            // Since it was let in.
            stream.reset(Reset::Cancelled);
        }
    }
    response
}

/// What came back through the tunnel.
pub(super) struct Delivered {
    pub(super) response: Response<EdgeBody>,
    /// After a 101: what is to be carried between the sender and the tunnel.
    pub(super) switched: Option<(Stream, OnUpgrade)>,
    /// Where what is left of the request goes.
    pub(super) uploads_to: Option<Stream>,
}

/// What a sender gets instead of its service's answer.
#[derive(Debug)]
pub(super) enum Instead {
    /// Why there is none.
    Failed(Failure),
    /// The answer to a handshake.
    Answered(Box<Response<EdgeBody>>),
    /// Somebody is to log in first, or does.
    Login(Box<Login>),
}

impl<F: Into<Failure>> From<F> for Instead {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

/// Why an exchange is answered by the relay itself.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) message: Option<String>,
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self { cause, message: None }
    }
}

/// Why there is no response head.
enum Stopped {
    /// For a reason that the sender is told.
    Failed(Failure),
    /// The session ended under the request.
    Lost,
}

async fn deliver(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    host: &PublicHost,
    request_body: &mut Option<Upload>,
    expects: bool,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Delivered, Instead> {
    let Some(upload) = request_body else { return Err(Cause::Internal.into()) };
    if host.below.is_some() {
        paths::admit(&exchange.head.headers)?;
    }
    if let Some(declared) = content_length(&exchange.head).filter(|n| *n > shared.limits().body_bytes) {
        let limit = shared.limits().body_bytes;
        let message = Some(format!("The request's body has {declared} bytes; this relay allows {limit}."));
        return Err(Failure { cause: Cause::BodyTooLarge, message }.into());
    }
    if host.tunnel(shared).is_some_and(|name| shared.blocks.has_name(name)) {
        return Err(blocked(shared).into());
    }
    if let Some(name) = host.tunnel(shared) {
        let meter = meter_of(shared, name).await?;
        access::check(shared, exchange, name, meter.as_deref(), upload)?;
        if let Some(meter) = meter {
            admit(shared, exchange, &meter)?;
        }
    }
    if let Some(kept) = inbox::keep(shared, exchange, host, upload).await? {
        exchange.taken = true;
        return Ok(kept);
    }
    let (stream, head, uploading) = request(shared, exchange, host, upload, expects).await?;
    upload.forget();
    let head = ResponseHead::from_bytes(&head).map_err(|error| {
        tracing::warn!(%error, "a client sent a response head that does not decode");
        Cause::UpstreamInvalid
    })?;
    exchange.arrives(Some(&head));
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(switch(exchange, head, stream, on_upgrade)?);
    }
    respond(exchange, head, stream, uploading)
}

/// What counts for the token whose name the request is for, where somebody or something is there to take it.
async fn meter_of(shared: &Shared, name: &str) -> Result<Option<Arc<Meter>>, Failure> {
    if let Found::Tunnel(tunnel) = shared.registry.find(name) {
        return Ok(Some(tunnel.meter.clone()));
    }
    match shared.inboxes.get(name) {
        Some(inbox) => meter(shared, inbox.token).await.map(Some),
        None => Ok(None),
    }
}

/// What counts for that token.
async fn meter(shared: &Shared, token: TokenId) -> Result<Arc<Meter>, Failure> {
    shared.quotas.meter(&shared.store, token).await.map_err(|error| {
        tracing::error!(%error, "what a token may have cannot be read");
        Cause::InboxFailed.into()
    })
}

/// Counts a request for a token, where that was not done yet and the token is not kept out.
fn admit(shared: &Shared, exchange: &mut Exchange, meter: &Arc<Meter>) -> Result<(), Failure> {
    if shared.blocks.has_token(meter.token()) {
        return Err(blocked(shared));
    }
    if exchange.pass.is_none() {
        exchange.pass = Some(meter.admit(Instant::now(), unix_now()).map_err(|over| over_quota(shared, over))?);
    }
    Ok(())
}

fn over_quota(shared: &Shared, over: Over) -> Failure {
    shared.metrics.over(over);
    let cause = match over {
        Over::Bytes(..) => Cause::QuotaExceeded,
        Over::Rate(_) | Over::Streams(_) => Cause::TooManyRequests,
    };
    Failure { cause, message: Some(over.to_string()) }
}

/// The operator keeps out the name, its token, or the sender.
fn blocked(shared: &Shared) -> Failure {
    shared.metrics.blocked_requests.inc();
    Cause::Blocked.into()
}

/// The app's answer, as the sender gets it.
pub(super) fn respond(
    exchange: &Exchange,
    head: ResponseHead,
    stream: Stream,
    uploading: bool,
) -> Result<Delivered, Instead> {
    if head.status.is_informational() {
        return Err(Cause::UpstreamInvalid.into());
    }
    if exchange.version == Version::HTTP_2 && exchange.head.upgrade.is_some() && head.status.is_success() {
        // RFC 8441: to the sender any success would say that the WebSocket is open.
        let message = "The local service answered the WebSocket request with something else.".to_owned();
        stream.reset(Reset::UpstreamInvalid);
        return Err(Failure { cause: Cause::UpstreamInvalid, message: Some(message) }.into());
    }
    if exchange.head.upgrade.is_some() {
        // Nothing is to come after all. A stream that is gone has nothing to be told.
        let _ = stream.finish(Bytes::new());
    }
    // A client is not believed: its answer must not end elsewhere for a proxy in front of us than for us.
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    // Taken off the list, because taking it off the map would change the order of what remains.
    let theirs = head.headers.into_iter().filter(|(name, _)| !is_edges(name));
    let declared = append_framed(&mut headers, theirs).map_err(|_| Cause::UpstreamInvalid)?;
    let is_bodyless = exchange.head.method == Method::HEAD
        || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let uploads_to = uploading.then(|| stream.clone());
    let mut response = Response::new(EdgeBody::download(stream, uploading, declared, is_bodyless));
    *response.status_mut() = head.status;
    if head.status.canonical_reason().is_none() {
        // None, which is allowed (RFC 9112, section 4), instead of words that say so.
        response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    }
    *response.headers_mut() = headers;
    Ok(Delivered { response, switched: None, uploads_to })
}

/// What is left of a request whose answer has begun. It goes on beside the answer, which must not wait for a sender that
/// reads slowly; that holds for one that was to wait for a 100, too, as it may send its body without.
///
/// Behind the answer it is [discarded](discard), unless it is not known whether it is the body.
fn rest(
    mut upload: Upload,
    to: Option<Stream>,
    unasked: bool,
    answered: CancellationToken,
    exchange: &Exchange,
) -> impl Future<Output = ()> + Send + use<> {
    upload.forget();
    let receiving = upload.follow();
    exchange.receiving(receiving.clone());
    let clock = exchange.in_flight.clock().clone();
    async move {
        if let Some(stream) = to {
            let sent = poll_fn(|cx| {
                let polled = upload.poll(&stream, cx);
                if receiving.settle().is_err() { Poll::Ready(Err(UploadError::Quota)) } else { polled }
            });
            match answered.run_until_cancelled(sent).await {
                // The response goes on: its stream says what became of the exchange.
                Some(Ok(()) | Err(UploadError::Silent)) => return,
                Some(Err(UploadError::Unwanted)) | None => {}
                // There is no whole request for the service to answer. The sender has the head of an answer already,
                // so that the client is not told of another one.
                Some(Err(error)) => {
                    // The task ends once.
                    let _ = receiving.stopped.set(error.cause());
                    return stream.reset(Reset::Cancelled);
                }
            }
        }
        // At once, because much may be held that nobody wants any more, and a sender may be slow to read the answer.
        let body = upload.into_body();
        answered.cancelled().await;
        if unasked {
            return;
        }
        // Not sooner: a peer that reads none of its answers is to be known by that.
        let _in_flight = clock.hold();
        discard(body).await;
    }
}

/// Sends the request, and waits for the head of its answer. Where the link is lost, the request moves to the one that its
/// client comes back on. The stream, the head, and whether the rest of the body is still to be sent.
async fn request(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    host: &PublicHost,
    upload: &mut Upload,
    expects: bool,
) -> Result<(Stream, Bytes, bool), Instead> {
    if !expects {
        let first = first_part(upload).await;
        exchange.received(upload.received());
        first.map_err(UploadError::cause)?;
    }
    let mut tunnel = find(shared, exchange, host, upload).await?;
    access::check_for(shared, exchange, &tunnel, upload)?;
    // Its client has come back just now.
    admit(shared, exchange, &tunnel.meter)?;
    let mut judged: Option<Arc<Asked>> = None;
    let mut latest = exchange.started;
    loop {
        // While its body was awaited, or its link was lost, the tunnel may have begun to ask for something else.
        access::check_for(shared, exchange, &tunnel, upload)?;
        if judged.as_ref().is_none_or(|judged| judged.webhooks != tunnel.asked.webhooks) {
            if judged.replace(tunnel.asked.clone()).is_some() {
                Judgement::untell(&mut exchange.head.headers);
            }
            verify(shared, exchange, &tunnel, upload).await?;
        }
        let allowed = Allowed::of(shared, exchange, &tunnel.asked, upload.held());
        let deadline = latest.max(exchange.started + allowed.time);
        let now = Instant::now();
        exchange.leaves();
        exchange.head.tunnel = tunnel.number;
        exchange.head.elapsed_ms = millis(now - exchange.started);
        exchange.head.deadline_ms = millis(deadline.saturating_duration_since(now));
        let head = match exchange.head.to_bytes() {
            Ok(head) => head,
            Err(error) => {
                exchange.stays();
                return Err(head_failure(error).into());
            }
        };
        let (held, ended) = upload.first();
        // With an upgrade, what the sender says after the 101 is still to come.
        let last = ended && exchange.head.upgrade.is_none();
        let opened = tunnel.link.open_for(tunnel.number, head, held, last);
        if opened.is_err() {
            exchange.stays();
        }
        let stream = match opened {
            Ok(stream) => stream,
            Err(OpenError::TooMany(_)) => return Err(Cause::TooManyRequests.into()),
            // It ended just now, and its client knows nothing of the request.
            Err(OpenError::Ending) => {
                tunnel = find(shared, exchange, host, upload).await?;
                continue;
            }
        };
        // From here on its bytes are the token's.
        exchange.taken = true;
        if tunnel.lost.get() == Some(&Loss::Blocked) {
            // It was cut before this one was there.
            stream.reset(Reset::Cancelled);
        }
        let mut attempt = Attempt {
            stream,
            uploading: !upload.is_done(),
            paused: expects,
            timer: pin!(sleep_until(deadline.min(now + SEEN))),
            deadline,
            allowed,
        };
        let answered = poll_fn(|cx| attempt.poll(exchange, upload, cx)).await;
        if answered.is_err() {
            exchange.arrives(None);
        }
        match answered {
            Ok(head) => return Ok((attempt.stream, head, attempt.uploading)),
            Err(Stopped::Failed(_)) if tunnel.lost.get() == Some(&Loss::Blocked) => return Err(Cause::Blocked.into()),
            Err(Stopped::Failed(failure)) => return Err(failure.into()),
            Err(Stopped::Lost) => {
                latest = attempt.deadline;
                let (id, seen) = (attempt.stream.id(), attempt.stream.is_seen());
                drop(attempt.stream);
                // What its client has seen must not be sent twice.
                if seen || !upload.rewind() {
                    return Err(Cause::LinkLost.into());
                }
                tunnel = come_back(shared, &tunnel, id, latest).await.ok_or(Cause::LinkLost)?;
            }
        }
    }
}

/// A body that has arrived with its head travels with it. hyper hands it over one poll later.
pub(super) async fn first_part(upload: &mut Upload) -> Result<(), UploadError> {
    let mut polls = 0;
    poll_fn(|cx| match upload.poll_first(cx) {
        Poll::Pending if polls > 0 => Poll::Ready(Ok(())),
        Poll::Pending => {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        ready => ready,
    })
    .await
}

/// A request on one stream, until the head of its answer is there.
struct Attempt<'a> {
    stream: Stream,
    /// The rest of the body is still to be sent.
    uploading: bool,
    /// It is sent once the upstream asks for it.
    paused: bool,
    /// Goes off when the client is to be asked whether it has seen the request, and then at the deadline.
    timer: Pin<&'a mut Sleep>,
    deadline: Instant,
    allowed: Allowed<'a>,
}

impl Attempt<'_> {
    /// The head of the answer.
    fn poll(&mut self, exchange: &Exchange, upload: &mut Upload, cx: &mut Context<'_>) -> Poll<Result<Bytes, Stopped>> {
        loop {
            match self.stream.poll_recv(cx) {
                Poll::Ready(Ok(Some(Item::Head { head, interim: false }))) => return Poll::Ready(Ok(head)),
                Poll::Ready(Ok(Some(Item::Head { interim: true, .. }))) => self.paused = false,
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Stopped::Failed(Cause::UpstreamInvalid.into()))),
                Poll::Ready(Err(StreamError::SessionEnded)) => return Poll::Ready(Err(Stopped::Lost)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stopped::Failed(Cause::from(error).into()))),
                Poll::Pending => break,
            }
        }
        let stopped = match self.send(exchange, upload, cx) {
            Ok(()) => ready!(self.poll_deadline(exchange, upload, cx)),
            Err(failure) => failure,
        };
        Poll::Ready(Err(Stopped::Failed(stopped)))
    }

    /// Sends of the body what there is and what the client takes.
    fn send(&mut self, exchange: &Exchange, upload: &mut Upload, cx: &mut Context<'_>) -> Result<(), Failure> {
        if !self.uploading || self.paused {
            return Ok(());
        }
        let polled = upload.poll(&self.stream, cx);
        // At once, because a sender that goes away takes this future with it.
        exchange.received(upload.received());
        if let Err(over) = exchange.settle() {
            self.stream.reset(Reset::Cancelled);
            return Err(over_quota(exchange.shared(), over));
        }
        match polled {
            // The stream itself says why it wants no more.
            Poll::Ready(Ok(()) | Err(UploadError::Unwanted)) => self.uploading = false,
            Poll::Ready(Err(error)) => {
                self.stream.reset(error.reset());
                return Err(error.cause().into());
            }
            Poll::Pending => {}
        }
        Ok(())
    }

    fn poll_deadline(&mut self, exchange: &Exchange, upload: &Upload, cx: &mut Context<'_>) -> Poll<Failure> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.timer.deadline() < self.deadline {
                self.stream.ask();
                self.timer.as_mut().reset(self.deadline);
                continue;
            }
            // A large body that takes its time is no fault of the service, which has not seen all of it.
            let extended = upload.moved().filter(|moved| {
                let waited = moved.saturating_duration_since(exchange.started).as_secs();
                self.allowed.extends() && waited > 0 && upload.received() / waited >= SLOWEST_UPLOAD
            });
            match extended.map(|moved| moved + self.allowed.time).filter(|later| *later > self.deadline) {
                Some(later) => {
                    self.deadline = later;
                    self.timer.as_mut().reset(later);
                }
                None => {
                    self.stream.reset(Reset::Deadline);
                    return Poll::Ready(Failure { cause: Cause::Deadline, message: Some(self.allowed.passed()) });
                }
            }
        }
    }
}

/// The tunnel that serves `host`, waiting for its client where that is away and the request is no handshake that can be
/// answered for it.
async fn find(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    host: &PublicHost,
    upload: &mut Upload,
) -> Result<Arc<Tunnel>, Instead> {
    let name = host.tunnel(shared).ok_or(Cause::UnknownHost)?;
    match shared.registry.find(name) {
        Found::Tunnel(tunnel) => Ok(tunnel),
        Found::Nothing => {
            let message = format!("No tunnel has the name {name}.");
            Err(Failure { cause: Cause::TunnelNotFound, message: Some(message) }.into())
        }
        Found::Away(known) => {
            let asked = known.as_ref().map(|(_, asked)| asked.clone()).unwrap_or_default();
            let until = exchange.started + Allowed::of(shared, exchange, &asked, upload.held()).time;
            // Who may call, only the process knows that its client moves here from, and so the client says it first.
            if let Some((token, asked)) = known.as_ref().filter(|_| !shared.has_predecessor()) {
                if shared.blocks.has_token(*token) {
                    return Err(blocked(shared).into());
                }
                let meter = meter(shared, *token).await?;
                access::check(shared, exchange, name, Some(&meter), upload)?;
                if let Some(answer) = handshake(shared, exchange, (*token, asked), upload, until).await? {
                    return Err(Instead::Answered(Box::new(answer)));
                }
            }
            let found = wait(shared, name, until).await;
            let stops = shared.stopping.is_cancelled();
            found.ok_or_else(|| if stops { Cause::Draining } else { Cause::ClientOffline }.into())
        }
    }
}

/// Waits for the client of `name`. Where the relay stops, none comes back any more, and nobody waits for one.
async fn wait(shared: &Shared, name: &str, until: Instant) -> Option<Arc<Tunnel>> {
    let limits = &shared.limits();
    // One that is about to move here from another process is as good as here: nobody is to notice that it was not.
    let (patience, waiters) = match shared.has_predecessor() {
        true => (limits.drain, limits.connections),
        false => (limits.client_wait, limits.client_waiters),
    };
    let until = until.min(Instant::now() + patience);
    tokio::select! {
        biased;
        () = shared.stopping.cancelled() => None,
        found = shared.registry.wait(name, until, waiters as u64) => found,
    }
}

/// The tunnel on which the client of a lost one is back, if it has not seen the request that was stream `id` there.
async fn come_back(shared: &Shared, lost: &Tunnel, id: StreamId, deadline: Instant) -> Option<Arc<Tunnel>> {
    if !resumes(&lost.link.ended()?) {
        return None;
    }
    let tunnel = wait(shared, &lost.name, deadline).await?;
    let unseen = tunnel.resumed.as_ref().is_some_and(|resumed| resumed.is_unseen(lost.session, id.get()));
    unseen.then_some(tunnel)
}

/// The head as it crosses the wire. The tunnel's number and the times are filled in when it is sent.
fn request_head(parts: &request::Parts, sender: &Sender, host: &PublicHost) -> RequestHead {
    let mut headers = end_to_end(&parts.headers);
    headers.retain(|(name, _)| !is_owned(name));
    if let Some(below) = &host.below {
        paths::drop_cookies(&mut headers);
        headers.push((X_FORWARDED_PREFIX, below.prefix.clone()));
    }
    if sender.trusted {
        if let Some(chain) = sender.chain(&parts.headers) {
            headers.push((X_FORWARDED_FOR, chain));
        }
        if let Some(proto) = parts.headers.get(X_FORWARDED_PROTO) {
            headers.push((X_FORWARDED_PROTO, proto.clone()));
        }
    } else if !sender.encrypted {
        headers.push((X_FORWARDED_PROTO, HeaderValue::from_static("http")));
    }
    let upgrade = match parts.extensions.get::<Protocol>() {
        // RFC 8441: the upstream speaks HTTP/1.1, where a handshake has a key.
        Some(protocol) => {
            headers.retain(|(name, _)| *name != header::SEC_WEBSOCKET_KEY);
            headers.push((header::SEC_WEBSOCKET_KEY, upgrade::websocket_key()));
            Some(protocol.as_str().into())
        }
        None if parts.version == Version::HTTP_11 => upgrade_of(&parts.headers).map(ByteString::from),
        None => None,
    };
    let method = if parts.method == Method::CONNECT { Method::GET } else { parts.method.clone() };
    RequestHead {
        tunnel: 0,
        id: Ulid::generate().to_string().into(),
        deadline_ms: 0,
        elapsed_ms: 0,
        method,
        target: target(parts, host.below.as_ref()),
        authority: host.authority.clone(),
        remote: sender.written(&parts.headers),
        upgrade,
        headers,
    }
}

/// Path and query as they came, behind what led to the tunnel. An absolute form may leave out its path, which is then `/`
/// (RFC 9112, section 3.2.1).
fn target(parts: &request::Parts, below: Option<&Below>) -> PathAndQuery {
    let target = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let rest = target.as_str().get(below.map_or(0, |below| below.prefix.len())..).unwrap_or_default();
    if below.is_none() && rest.starts_with('/') {
        return target;
    }
    let slash = if rest.starts_with('/') { "" } else { "/" };
    PathAndQuery::try_from(format!("{slash}{rest}")).unwrap_or(PathAndQuery::from_static("/"))
}

pub(super) fn expects_continue(version: Version, headers: &HeaderMap) -> bool {
    let expects = headers.get(header::EXPECT);
    version == Version::HTTP_11 && expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn head_failure(error: MessageError) -> Failure {
    Failure { cause: Cause::BadRequest, message: Some(format!("The request's head cannot be passed on: {error}.")) }
}

/// The two sides speak another protocol from here on.
fn switch(
    exchange: &Exchange,
    head: ResponseHead,
    stream: Stream,
    on_upgrade: Option<OnUpgrade>,
) -> Result<Delivered, Failure> {
    let (Some(protocol), Some(on_upgrade)) = (&exchange.head.upgrade, on_upgrade) else {
        return Err(Cause::UpstreamInvalid.into());
    };
    let mut response = Response::new(EdgeBody::empty());
    let headers = response.headers_mut();
    let is_http2 = exchange.version == Version::HTTP_2;
    let mut list = head.headers;
    list.retain(|(name, _)| match *name {
        // RFC 9110, section 8.6: a 101 has no length.
        header::CONTENT_LENGTH => false,
        header::UPGRADE | header::SEC_WEBSOCKET_ACCEPT => !is_http2,
        _ => !is_edges(name),
    });
    append_all(headers, list);
    if !is_http2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if !headers.contains_key(header::UPGRADE)
            && let Ok(protocol) = HeaderValue::from_str(protocol)
        {
            headers.insert(header::UPGRADE, protocol);
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
    Ok(Delivered { response, switched: Some((stream, on_upgrade)), uploads_to: None })
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
