//! A tunnel, as a client opens it and a provider calls it: its request goes out of this machine and comes back through the
//! relay.
//!
//! ```text
//!   doctor ── POST ──▶ https://<a random name>.<domain> ──▶ the relay ──▶ the tunnel ──▶ doctor, which answers
//! ```

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use relay_protocol::frame::{GoAway, SessionKind};
use relay_protocol::link::{Driver, Link, Signal, Stream};
use relay_protocol::message::{Hello, Payload as _, RequestHead, ResponseHead, TunnelSpec, Welcome};
use relay_protocol::mux::{Item, Limits, Side};
use tokio::time::{Instant, timeout};

use super::endpoint::Session;
use super::finding::Finding;
use super::handshake::shake_hands;
use super::patient::Patient;
use crate::outgoing;

const CHECK: &str = "tunnel";

/// From the client's first word to the end of the answer.
const WITHIN: Duration = Duration::from_secs(20);

/// Of request and answer: too much for one packet, and too little for anybody to wait.
const BODY: usize = 4096;

/// Opens a tunnel with a random name, sends a request to its public URL, and compares what comes out at either end.
pub(super) async fn check(patient: &Patient, session: Option<Session>) -> Finding {
    let Some(Session { socket, trial }) = session else {
        return match patient.status() {
            Some(_) => Finding::unknown(CHECK, "there is no tunnel to try without a session: see connect above"),
            None => Finding::unknown(CHECK, "there is no tunnel to try without a relay: start it, and run this again"),
        };
    };
    let (link, mut driver) = Driver::new(Side::Client, Limits::default(), socket);
    let tried = Box::pin(timeout(WITHIN, try_out(patient, &link)));
    let outcome = tokio::select! {
        tried = tried => {
            link.go_away(GoAway::Shutdown, false, "The doctor has seen enough.");
            // Whether the goodbye is heard is of no interest.
            let _ = timeout(Duration::from_secs(2), driver).await;
            tried.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())))
        }
        ended = &mut driver => Err(format!("the session ended: {ended:?}")),
    };
    let left = trial.end().await.err();
    let finding = match outcome {
        Ok(found) => Finding::ok(CHECK, found),
        Err(error) => Finding::wrong(CHECK, error),
    };
    finding.mend(left)
}

async fn try_out(patient: &Patient, link: &Link) -> Result<String, String> {
    let url = open(link).await?;
    let public = url.parse::<http::Uri>().ok();
    let host = public.as_ref().and_then(http::Uri::host).ok_or_else(|| format!("{url} is no URL"))?.to_owned();
    let base = public.map(|public| public.path().trim_end_matches('/').to_owned()).unwrap_or_default();
    let [sent, answer] = [noise(), noise()];
    let target = format!("/doctor?{:016x}", fastrand::u64(..));
    let begin = Instant::now();
    let mut served = pin!(serve(link, answer.clone()));
    let path = format!("{base}{target}");
    let mut called = pin!(call(patient, &url, &host, &path, sent.clone()));
    // The answer ends it: one that does not come through the tunnel leaves nothing to be served.
    let mut came = None;
    let response = loop {
        tokio::select! {
            served = &mut served, if came.is_none() => came = Some(served?),
            response = &mut called => break response?,
        }
    };
    let took = begin.elapsed();
    let status = response.status();
    if let Some(code) = response.headers().get("relay-error").and_then(|code| code.to_str().ok()) {
        return Err(format!("{url} answers {status} ({code})"));
    }
    let Some((head, body)) = came else {
        return Err(format!(
            "{url} is answered by something else than the tunnel ({status}): where does its name lead?"
        ));
    };
    if head.method != Method::POST || head.target.as_str() != target || body != sent {
        return Err(format!("a request to {url} has come as another one than was sent"));
    }
    if status != StatusCode::OK || *response.body() != answer {
        return Err(format!("the answer to a request to {url} has come as another one than was sent ({status})"));
    }
    Ok(format!("a request to {url} came through, and so did its answer, in {} ms", took.as_millis()))
}

/// The public URL of a new tunnel with a random name.
async fn open(link: &Link) -> Result<String, String> {
    let hello = Hello {
        client: "doctor".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
        tunnels: vec![TunnelSpec::default()],
        resume: None,
        extra: Vec::new(),
    };
    let hello = hello.to_bytes().map_err(|error| error.to_string())?;
    link.send_message(SessionKind::Hello, hello).map_err(|error| error.to_string())?;
    let payload = match link.signal().await {
        Signal::Message(SessionKind::Welcome, payload) => payload,
        Signal::GoAway { text, .. } => return Err(format!("the relay ends the session: {text}")),
        other => return Err(format!("the relay does not begin a session: {other:?}")),
    };
    let welcome = Welcome::from_bytes(&payload).map_err(|error| error.to_string())?;
    match welcome.tunnels.into_iter().next().map(|bound| bound.result) {
        Some(Ok(public)) => Ok(public.url),
        Some(Err(refusal)) => Err(format!("the relay opens no tunnel: {} ({})", refusal.message, refusal.code)),
        None => Err("the relay does not say what becomes of the tunnel".to_owned()),
    }
}

/// As a provider does: one request to the public URL.
async fn call(patient: &Patient, url: &str, host: &str, target: &str, body: Bytes) -> Result<Response<Bytes>, String> {
    let way = patient.way(host).await;
    let shown = shake_hands(&way.addresses, host, patient).await;
    let shown = shown.map_err(|error| format!("{url} is not reached: {error}"))?;
    if let Some(fault) = shown.fault {
        return Err(format!("senders end the connection to {url} because of its certificate: {fault}"));
    }
    let authority = patient.authority(host).parse().map_err(|_| format!("{url} is no URL"))?;
    let request = Request::post(target).body(body).map_err(|error| error.to_string())?;
    outgoing::exchange(shown.stream, url, &authority, request, outgoing::BODY).await.map_err(|error| error.to_string())
}

/// As a client does: takes one request, and answers it. It is given with its body.
async fn serve(link: &Link, answer: Bytes) -> Result<(RequestHead, Bytes), String> {
    let stream = loop {
        match link.signal().await {
            Signal::Opened(stream) => break stream,
            Signal::GoAway { text, .. } => return Err(format!("the relay ends the session: {text}")),
            Signal::Ended(ended) => return Err(format!("the session ended: {ended:?}")),
            Signal::Message(..) => {}
        }
    };
    take_and_answer(&stream, answer).await.map_err(|error| format!("the request did not come as a whole: {error}"))
}

async fn take_and_answer(stream: &Stream, answer: Bytes) -> Result<(RequestHead, Bytes), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let (mut head, mut body) = (None, BytesMut::new());
    while let Some(item) = stream.recv().await.map_err(|error| words(&error))? {
        match item {
            Item::Head { head: bytes, .. } => {
                head = Some(RequestHead::from_bytes(&bytes).map_err(|error| words(&error))?);
            }
            Item::Data(bytes) if body.len() + bytes.len() <= 2 * BODY => body.extend_from_slice(&bytes),
            Item::Data(_) => return Err("it is longer than what was sent".to_owned()),
            Item::End(_) => break,
        }
    }
    let head = head.ok_or("it has no head")?;
    let response = ResponseHead { status: StatusCode::OK, headers: Vec::new() };
    let response = response.to_bytes().map_err(|error| words(&error))?;
    stream.send_head(response, false).map_err(|error| words(&error))?;
    stream.send(answer).await.map_err(|error| words(&error))?;
    stream.finish(Bytes::new()).map_err(|error| words(&error))?;
    Ok((head, body.freeze()))
}

/// Bytes that nobody else sends.
fn noise() -> Bytes {
    std::iter::repeat_with(|| fastrand::u8(..)).take(BODY).collect()
}
