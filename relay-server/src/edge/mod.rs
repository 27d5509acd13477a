//! The public side: listeners, limits, routing by host, and the relay's own answers.
//!
//! ```text
//!   accept ─▶ PROXY header, TLS ─▶ hyper ─▶ gate ─▶ route ─▶ forward ─▶ the session's link
//!                                                     └────▶ the relay's own host: connect ─▶ session
//! ```

mod access;
pub(crate) mod api;
pub(crate) mod attempts;
pub(crate) mod body;
pub(crate) mod caller;
pub(crate) mod connect;
mod forward;
mod gate;
mod inbox;
pub(crate) mod io;
pub(crate) mod janitor;
mod login;
pub(crate) mod paths;
mod proxy_protocol;
mod record;
mod respond;
pub(crate) mod room;
mod sender;
mod tls;
mod upgrade;
mod webhook;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::LOCATION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::body::{EdgeBody, discard};
use self::gate::PublicHost;
use self::io::{Clock, Conn, InFlight, NoHeader, Watched, read_header};
pub(crate) use self::login::shown;
use self::paths::Below;
use self::proxy_protocol::Header;
use self::respond::{answer, explain};
use self::sender::Sender;
pub(crate) use self::tls::Tls;
use crate::Shared;
use crate::cause::Cause;
use crate::certs::PROOF;
use crate::config::HttpMode;
use crate::limits::HTTP2_WINDOW;
use crate::places::Place;
use relay_protocol::gather::Gathered;

/// Of a response: the last one of its connection, also where that speaks HTTP/2 and other requests are under way on it.
#[derive(Clone, Copy, Debug)]
struct Last;

/// As many headers as hyper allows where it is told nothing. It makes room for them on the stack then, and else clears some
/// kibibytes of the heap for every request.
const HYPERS_HEADERS: usize = 100;

/// How long connections stay open for another request, once another process serves.
const LINGER: Duration = Duration::from_secs(5);

/// The largest window that there is (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What a listener does with its connections.
#[derive(Clone)]
pub(crate) enum Purpose {
    Https(Tls),
    Http(HttpMode),
}

/// Accepts connections until the relay stops accepting. Each is served by a task of its own, so that a slow handshake
/// delays nobody. At the end every connection that was accepted has its place.
pub(crate) async fn serve(shared: Arc<Shared>, listener: Arc<TcpListener>, purpose: Purpose) {
    let stopping = shared.stopping.clone();
    let mut stopped = pin!(stopping.cancelled());
    loop {
        let accepted = tokio::select! {
            // First, so that whoever waits in the queue comes to the process that serves on.
            biased;
            () = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely. Waiting lets connections end; spinning would not.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let trusted = shared.trusts(peer.ip());
        // Before it costs anything.
        let place =
            if is_kept_out(&shared, peer.ip(), trusted) { None } else { shared.places.enter(peer.ip(), trusted) };
        let Some(place) = place else {
            shared.metrics.connections_refused.inc();
            continue;
        };
        let (shared, purpose) = (shared.clone(), purpose.clone());
        let owner = shared.clone();
        owner.spawn(async move {
            connection(&shared, tcp, peer, place, purpose).await;
        });
    }
}

async fn connection(shared: &Arc<Shared>, tcp: TcpStream, peer: SocketAddr, mut place: Place, purpose: Purpose) {
    let accepted = Instant::now();
    // Failing to set it costs latency, not correctness.
    let _ = tcp.set_nodelay(true);
    let beginning = timeout(shared.limits().handshake, begin(shared, tcp, peer.ip(), &mut place, &purpose));
    let (conn, sender) = match shared.closing.run_until_cancelled(beginning).await {
        Some(Ok(Ok(begun))) => begun,
        Some(Ok(Err(Unbegun::Full))) => {
            shared.metrics.connections_refused.inc();
            return;
        }
        Some(Ok(Err(error))) => {
            match error {
                // That is a mistake in a configuration, and of nobody else: strangers need no header.
                Unbegun::Header(NoHeader::Malformed(error)) => tracing::warn!(
                    %peer, %error,
                    "a trusted proxy does not begin with a PROXY header: have it send one, or serve without proxy_protocol"
                ),
                // Whoever gives out certificates looks here for why one of theirs does not do.
                Unbegun::Tls(error) if shows_a_bad_certificate(&error) => {
                    tracing::info!(%peer, %error, "a client certificate cannot be read; it has to be of version 3");
                }
                error => tracing::debug!(%peer, %error, "a connection did not begin"),
            }
            shared.metrics.handshakes_failed.inc();
            return;
        }
        Some(Err(_)) => {
            shared.metrics.handshakes_failed.inc();
            return;
        }
        None => return,
    };
    // The handshake was all that an authority wants which looks for the proof of a domain.
    if matches!(&conn, Conn::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(PROOF)) {
        return;
    }
    let http2 = matches!(&conn, Conn::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2"));
    let clock = Clock::new(accepted, http2, place);
    let limits = shared.limits();
    let io = TokioIo::new(Watched::new(conn, clock.clone(), limits.clone()));
    let times = clock.clone();
    let (owner, own) = (shared.clone(), (!sender.trusted).then_some(sender.peer));
    let over = CancellationToken::new();
    let ends = over.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (started, in_flight) = times.begin(sender.trusted);
        let (shared, purpose, from, ends) = (owner.clone(), purpose.clone(), sender.clone(), ends.clone());
        async move {
            let version = request.version();
            let mut response = handle(shared.clone(), from, &purpose, started, in_flight, request).await;
            // The next one is another process's, or nobody's.
            if shared.is_stopping() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                close(version, &mut response);
            }
            if response.extensions().get::<Last>().is_some() {
                ends.cancel();
            }
            Ok::<_, Infallible>(response)
        }
    });
    // A trusted proxy speaks for many, of whom each request is looked at by itself.
    let kept_out = async {
        match own {
            Some(address) => shared.blocks.until_address(address).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(kept_out);
    let result = if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .max_concurrent_streams(limits.http2_streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(HTTP2_WINDOW)
            .initial_connection_window_size(limits.http2_streams.saturating_mul(HTTP2_WINDOW).min(MAX_WINDOW))
            .max_send_buf_size(64 * 1024);
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let ends = async {
            tokio::select! { () = shared.stopping.cancelled() => {}, () = over.cancelled() => {} }
        };
        tokio::select! {
            result = connection.as_mut() => result,
            () = &mut kept_out => Ok(()),
            () = ends => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    () = kept_out => Ok(()),
                    () = shared.closing.cancelled() => Ok(()),
                }
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.max_header_size(limits.head_bytes).max_buf_size(128 * 1024);
        if limits.headers != HYPERS_HEADERS {
            builder.max_headers(limits.headers);
        }
        let connection = builder.serve_connection(io, service).with_upgrades();
        tokio::pin!(connection);
        // hyper closes at once what has not been used yet, and the first request may be on its way: HTTP/1.1 has no word
        // for it that it will not be answered.
        let stopped = async {
            shared.stopping.cancelled().await;
            if shared.has_successor() {
                // Nor are senders asked again whose next request crosses our closing of a connection that they keep. What
                // comes on it closes it; one that has been silent for so long may be closed at any time.
                tokio::time::sleep(LINGER).await;
            } else {
                clock.first_request().await;
            }
        };
        tokio::select! {
            result = connection.as_mut() => result,
            () = &mut kept_out => Ok(()),
            () = stopped => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection => result,
                    () = kept_out => Ok(()),
                    () = shared.closing.cancelled() => Ok(()),
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

/// Why a connection is over before a request.
#[derive(Debug, thiserror::Error)]
enum Unbegun {
    #[error(transparent)]
    Header(#[from] NoHeader),
    #[error("its sender has as many as it may")]
    Full,
    #[error("it speaks HTTP where TLS is served")]
    Plain,
    #[error("the TLS handshake failed: {0}")]
    Tls(std::io::Error),
}

/// What comes before HTTP: who is there, and TLS.
async fn begin(
    shared: &Shared,
    tcp: TcpStream,
    peer: IpAddr,
    place: &mut Place,
    purpose: &Purpose,
) -> Result<(Conn, Sender), Unbegun> {
    let encrypted = matches!(purpose, Purpose::Https(_));
    let mut sender = Sender::new(peer, shared.trusts(peer), encrypted);
    let tcp = if sender.trusted && shared.config.proxy_protocol {
        let (header, tcp) = read_header(tcp).await?;
        // The proxy passes on what it gets: also what its sender says of others before him, who may be anybody.
        sender.trusted = false;
        if let Header::Sender { address, encrypted: before } = header {
            let encrypted = encrypted || before;
            sender = Sender::new(address, shared.trusts(address), encrypted);
            let is_kept_out = is_kept_out(shared, address, sender.trusted);
            if is_kept_out || !shared.places.pass_on(place, address, sender.trusted) {
                return Err(Unbegun::Full);
            }
        }
        tcp
    } else {
        if encrypted {
            refuse_plain(&tcp).await?;
        }
        Gathered::new(tcp)
    };
    let conn = match purpose {
        Purpose::Http(_) => Conn::Plain(tcp),
        Purpose::Https(tls) => {
            let (tls, caller) = tls.accept(shared, tcp).await.map_err(Unbegun::Tls)?;
            sender.caller = caller;
            Conn::Tls(Box::new(tls))
        }
    };
    Ok((conn, sender))
}

/// Answers HTTP where TLS is served: whoever has typed `http://` would see nothing but a connection that ends.
async fn refuse_plain(tcp: &TcpStream) -> Result<(), Unbegun> {
    let mut first = [0];
    // A handshake begins with 22 (RFC 8446, section 5.1), and a request with the name of a method.
    if !matches!(tcp.peek(&mut first).await, Ok(1)) || !first[0].is_ascii_uppercase() {
        return Ok(());
    }
    // What is left unread resets the connection, and the answer with it.
    let _ = tcp.try_read(&mut [0; 4096]);
    // There is room for it on a new connection, and who does not take it loses nothing.
    let _ = tcp.try_write(PLAIN.as_bytes());
    Err(Unbegun::Plain)
}

const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    This port speaks HTTPS, and the request came without TLS: call it with https:// instead of http://.\n";

/// Whether a handshake has failed because nobody can read what the client has shown.
fn shows_a_bad_certificate(error: &std::io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether connections from there are closed. A trusted proxy speaks for many, of whom each is looked at by itself.
fn is_kept_out(shared: &Shared, address: IpAddr, trusted: bool) -> bool {
    let is_kept_out = !trusted && shared.blocks.has_address(address);
    if is_kept_out {
        shared.metrics.blocked_connections.inc();
    }
    is_kept_out
}

async fn handle(
    shared: Arc<Shared>,
    sender: Sender,
    purpose: &Purpose,
    started: Instant,
    in_flight: InFlight,
    request: Request<Incoming>,
) -> Response<EdgeBody> {
    let (parts, body) = request.into_parts();
    let mut host = gate::check(&parts);
    if let Ok(host) = &mut host
        && shared.config.path_mode
        && host.host == shared.config.domain
    {
        host.below = Below::of(parts.uri.path());
    }
    let mut request = Request::from_parts(parts, body);
    let mut response = match host {
        Err(refusal) => {
            shared.metrics.refused.inc();
            let mut response = explain(&shared, Cause::BadRequest, request.headers(), &format!("Refused: {refusal}."));
            close(request.version(), &mut response);
            response
        }
        // It was not when the connection began, or a trusted proxy speaks for it.
        Ok(_) if shared.blocks.has_sender(sender.address(request.headers())) => {
            shared.metrics.blocked_requests.inc();
            let mut response = answer(&shared, Cause::Blocked, request.headers());
            close(request.version(), &mut response);
            response
        }
        Ok(host) if matches!(purpose, Purpose::Http(HttpMode::Redirect)) => redirect(&shared, &host, &request),
        Ok(host) if host.host == shared.config.domain && host.below.is_none() => {
            connect::own_host(&shared, sender, &mut request).await
        }
        // It brings a token, which is no service's business.
        Ok(_) if connect::is_client(&request) => connect::elsewhere(&shared, request.headers()),
        Ok(host) => {
            let is_below = host.below.is_some();
            let mut response = forward::forward(shared, sender, host, started, in_flight, request).await;
            if is_below {
                paths::seal(response.headers_mut());
            }
            return response;
        }
    };
    // A sender that waits for a 100 gets this answer instead, and the connection ends with it.
    if !request.body().is_end_stream() && !forward::expects_continue(request.version(), request.headers()) {
        let (answered, clock) = (CancellationToken::new(), in_flight.clock().clone());
        response.body_mut().ends(answered.clone().drop_guard());
        let rest = async move {
            answered.cancelled().await;
            let _in_flight = clock.hold();
            discard(request.into_body()).await;
        };
        let closing = shared.closing.clone();
        shared.spawn(async move { closing.run_until_cancelled(rest).await.unwrap_or_default() });
    }
    response
}

/// Ends the connection after an answer to a request whose end may be misread.
fn close(version: Version, response: &mut Response<EdgeBody>) {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Sends a plain request to HTTPS. 308 keeps method and body, so that a webhook sent there is not turned into a GET.
fn redirect(shared: &Shared, host: &PublicHost, request: &Request<Incoming>) -> Response<EdgeBody> {
    if host.host != shared.config.domain && host.tunnel(shared).is_none() {
        return answer(shared, Cause::UnknownHost, request.headers());
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let location = format!("{}{target}", shared.public_url(&host.host));
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    match HeaderValue::try_from(location) {
        Ok(location) => drop(response.headers_mut().insert(LOCATION, location)),
        Err(_) => return answer(shared, Cause::BadRequest, request.headers()),
    }
    response
}
