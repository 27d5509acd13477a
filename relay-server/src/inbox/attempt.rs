//! One attempt to hand a webhook to the app: it goes through its tunnel, and is answered or not.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{Payload, RequestHead, ResponseHead};
use relay_protocol::mux::{Item, OpenError, StreamError};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::time::{sleep, timeout};

use crate::Shared;
use crate::cause::Cause;
use crate::tunnels::{SEEN, Tunnel};

/// How long the rest of an answer is read that nobody waits for, and how much of it.
const REST: (Duration, usize) = (Duration::from_secs(5), 1 << 20);

/// Bytes of a long body that are read at once.
const PIECE: usize = 64 * 1024;

/// A webhook, whole.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) head: RequestHead,
    pub(super) body: Source,
    /// As they cross the wire.
    pub(super) trailers: Bytes,
}

/// The body of a webhook, wherever it is.
#[derive(Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    File(File),
}

/// An answer of the app: its head, and where its body comes from.
pub(crate) type Answer = (ResponseHead, Stream);

/// Why there is none.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The client has not seen it.
    Unsent,
    /// Nor this one, because it has as much to do as it may.
    Busy,
    /// It is not let in, and never will be: it is not signed rightly, say.
    Refused(Cause),
    /// It was sent, and nobody knows what became of it, or the client has said why nothing did.
    Failed(Cause),
}

impl From<StreamError> for Unanswered {
    fn from(error: StreamError) -> Self {
        match Cause::from(error) {
            cause @ (Cause::SignatureInvalid | Cause::BodyTooLarge | Cause::BadRequest) => Self::Refused(cause),
            cause => Self::Failed(cause),
        }
    }
}

/// Sends a webhook, and waits for the head of its answer, `within` that time from when the app has all of it.
pub(super) async fn send(
    shared: &Arc<Shared>,
    tunnel: &Tunnel,
    webhook: Webhook,
    within: Duration,
) -> Result<Answer, Unanswered> {
    let invalid = |_| Unanswered::Failed(Cause::UpstreamInvalid);
    let Webhook { mut head, body, trailers } = webhook;
    head.tunnel = tunnel.number;
    head.elapsed_ms = 0;
    head.deadline_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
    let head = head.to_bytes().map_err(invalid)?;
    let (mut first, file) = match body {
        Source::Bytes(bytes) => (bytes, None),
        Source::File(file) => (Bytes::new(), Some(file)),
    };
    let whole = file.is_none() && trailers.is_empty();
    let stream = tunnel.link.open(head, &mut first, whole).map_err(|error| match error {
        OpenError::TooMany(_) => Unanswered::Busy,
        OpenError::Ending => Unanswered::Unsent,
    })?;
    // Most have all of it at once.
    let is_sent = whole && first.is_empty();
    let mut uploading = (!is_sent).then(|| Box::pin(upload(stream.clone(), first, file, trailers, within)));
    let answer = async {
        loop {
            match stream.recv().await {
                Ok(Some(Item::Head { head, interim: false })) => {
                    return ResponseHead::from_bytes(&head).map_err(invalid);
                }
                Ok(Some(Item::Head { interim: true, .. })) => {}
                Ok(_) => return Err(Unanswered::Failed(Cause::UpstreamInvalid)),
                Err(StreamError::SessionEnded) if !stream.is_seen() => return Err(Unanswered::Unsent),
                Err(error) => return Err(error.into()),
            }
        }
    };
    let late = async {
        if let Some(upload) = &mut uploading {
            upload.await;
        }
        uploading = None;
        let ask = SEEN.min(within);
        sleep(ask).await;
        // What brings its client down must not come back for ever as one that was never tried.
        stream.ask();
        sleep(within - ask).await;
        stream.reset(Reset::Deadline);
        Err(Unanswered::Failed(Cause::Deadline))
    };
    let head = tokio::select! {
        biased;
        head = answer => head?,
        late = late => late?,
    };
    if let Some(upload) = uploading {
        // Many apps answer before they have read all.
        let closing = shared.closing.clone();
        shared.spawn(async move { closing.run_until_cancelled(upload).await.unwrap_or_default() });
    }
    Ok((head, stream))
}

/// Sends what the stream was not opened with, as long as each piece is taken `within` that time.
async fn upload(stream: Stream, first: Bytes, file: Option<File>, trailers: Bytes, within: Duration) {
    let send = async |piece: Bytes| {
        let sent = timeout(within, stream.send(piece)).await;
        if sent.is_err() {
            stream.reset(Reset::Deadline);
        }
        // Where the stream is over, its answer says why no more of it is wanted.
        matches!(sent, Ok(Ok(())))
    };
    if !first.is_empty() && !send(first).await {
        return;
    }
    if let Some(mut file) = file {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            match file.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) if send(piece.freeze()).await => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "the body of a webhook cannot be read now");
                    return stream.reset(Reset::Cancelled);
                }
            }
        }
    }
    let _ = stream.finish(trailers);
}

/// Reads on what nobody waits for, so that the app is not cut off.
pub(super) async fn rest(stream: Stream) {
    let (time, most) = REST;
    let read = async {
        let mut bytes = 0;
        while let Ok(Some(Item::Data(piece))) = stream.recv().await {
            bytes += piece.len();
            if bytes > most {
                break;
            }
        }
    };
    let _ = timeout(time, read).await;
}
