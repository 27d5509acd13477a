//! A request to any server, as a provider makes it: over HTTP/1.1, on a connection of its own, following nothing.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use crate::session::dial::{DialError, Target};

/// What every request says anew.
const OWN: [HeaderName; 3] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];

/// What is kept of an answer's body that is to be looked at, in bytes.
pub(crate) const BODY_MAX: usize = 64 << 10;

/// What a server has answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Of its body so much as is kept.
    pub(crate) body: Vec<u8>,
    /// Bytes of the body.
    pub(crate) size: u64,
    /// From the first byte to the last, with the time to connect.
    pub(crate) took: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nobody is reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// What is to be sent is no request.
    #[error("it cannot be sent: {0}")]
    Request(#[from] http::Error),
    /// The connection has broken.
    #[error("the connection ended before the answer did: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// Sends a request to a server's `path`, which begins with a slash and may have a query, and waits for the answer for at
/// most `within`: all of it, unless its body is longer than `most`, of which a little more is taken. So much of the body is
/// kept as the second number says. The headers keep their
/// order; those that are about the connection or the length of the body are made anew, and Host is the server's own unless
/// one is given.
///
/// # Errors
/// [`SendError`].
pub(crate) async fn send(
    to: &Target,
    method: &Method,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: Vec<u8>,
    within: Duration,
    most: (u64, usize),
) -> Result<Answer, SendError> {
    let mut request = Request::builder().method(method.clone()).uri(path);
    if headers.iter().all(|(name, _)| name != HOST) {
        request = request.header(HOST, to.url().authority());
    }
    for (name, value) in headers.iter().filter(|(name, _)| !OWN.contains(name)) {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    timeout(within, Box::pin(exchange(to, request, most))).await.map_err(|_| SendError::Late(within))?
}

async fn exchange(to: &Target, request: Request<Full<Bytes>>, most: (u64, usize)) -> Result<Answer, SendError> {
    let began = Instant::now();
    let stream = to.dial().await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async { receive(sender.send_request(request).await?, began, most).await };
    let (mut answered, mut connection) = (pin!(answered), pin!(connection));
    tokio::select! {
        biased;
        answered = &mut answered => Ok(answered?),
        ended = &mut connection => {
            ended?;
            // What had come is still to be read.
            Ok(answered.await?)
        }
    }
}

async fn receive(
    response: Response<Incoming>,
    began: Instant,
    (most, room): (u64, usize),
) -> Result<Answer, hyper::Error> {
    let (head, mut body) = response.into_parts();
    let (mut kept, mut size) = (Vec::new(), 0);
    while size <= most
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            size += data.len() as u64;
            kept.extend_from_slice(data.get(..(room - kept.len()).min(data.len())).unwrap_or_default());
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body: kept, size, took: began.elapsed() })
}
