//! What happens, as it happens: server-sent events for the page, and waiting for one request.
//!
//! Whoever is slow misses something and is told how much; nothing is kept for anybody.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::answer::{self, Answer, Problem};
use super::limits::TOGETHER;
use super::query::Query;
use super::records::Records;
use crate::capture::exchange::Summary;
use crate::capture::filter::{self, Filter};
use crate::capture::{Captured, News, Reader, Since};
use crate::terminal::json_line;
use crate::upstream::service::{Body, BoxError};
use crate::value::duration;

/// How often whoever is told of nothing is told that there is nothing, so that a dead connection is noticed.
const QUIET: Duration = Duration::from_secs(15);

/// How long news gather before they are told. More often nobody looks, and each time costs.
const GATHER: Duration = Duration::from_millis(20);

/// How long a request is waited for where nobody says.
const WAIT: Duration = Duration::from_secs(30);

/// Somebody who is told.
struct Watcher {
    reader: Reader,
    closing: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// Tells of all exchanges: of each when it has come, and once more when it is over.
pub(super) fn watch(
    records: &Records,
    places: &Arc<Semaphore>,
    closing: &CancellationToken,
) -> Result<Answer, Problem> {
    let place = places.clone().try_acquire_owned().map_err(|_| Problem::Watchers)?;
    let reader = records.capture().read(Since::Start).twice();
    let watcher = Watcher { reader, closing: closing.clone(), _place: place };
    // The head is out before the first event, so that whoever watches knows that it begins.
    let hello = stream::once(async { Ok::<_, BoxError>(Frame::data(Bytes::from_static(b": events follow\n\n"))) });
    let events = stream::unfold(watcher, |mut watcher| async move {
        let told = watcher.next().await?;
        Some((Ok(Frame::data(Bytes::from(told))), watcher))
    });
    let body = Body::new(StreamBody::new(Box::pin(stream::StreamExt::chain(hello, events))));
    Ok(answer::body(StatusCode::OK, "text/event-stream", body))
}

impl Watcher {
    /// What is to be told next; `None` when the client has ended.
    async fn next(&mut self) -> Option<String> {
        let first = tokio::select! {
            news = self.reader.next_summary() => news?,
            () = sleep(QUIET) => return Some(": nothing new\n\n".to_owned()),
            () = self.closing.cancelled() => return None,
        };
        let mut told = String::new();
        tell(&first, &mut told);
        sleep(GATHER).await;
        for _ in 1..TOGETHER {
            match self.reader.next_summary().now_or_never() {
                Some(Some(news)) => tell(&news, &mut told),
                // The end is said by the next one.
                Some(None) | None => break,
            }
        }
        Some(told)
    }
}

fn tell(news: &News<Summary>, told: &mut String) {
    let _ = match news {
        News::Request(summary) => writeln!(told, "event: exchange\ndata: {}", json_line(summary)),
        News::Missed(count) => write!(told, "event: missed\ndata: {{\"count\":{count}}}\n\n"),
        News::Cleared => write!(told, "event: cleared\ndata: {{}}\n\n"),
        News::Answered { .. } => Ok(()),
    };
}

/// Waits for a request that is as wanted, and for its answer. Returns its id.
pub(super) async fn wait(
    records: &Records,
    places: &Arc<Semaphore>,
    query: &mut Query,
    closing: &CancellationToken,
) -> Result<String, Problem> {
    let _place = places.try_acquire().map_err(|_| Problem::Watchers)?;
    let text = |text: &str| Ok::<_, filter::FilterError>(text.to_owned());
    let filter = Arc::new(Filter {
        path: query.read("path", filter::path)?,
        method: query.read("method", text)?,
        headers: query.read_all("header", filter::header)?,
        json: query.read_all("json", filter::json)?,
        tunnel: query.read("tunnel", text)?,
    });
    let since = query.read("since", filter::since)?.unwrap_or_default();
    let within = query.read("within", duration)?.unwrap_or(WAIT);
    std::mem::take(query).finish()?;
    let end = Instant::now() + within;
    let mut reader = records.capture().read(since);
    let mut found: Option<(u64, String)> = None;
    let answered = async {
        loop {
            match reader.next_head().await {
                Some(News::Request(request)) if found.is_none() && is_wanted(records, &filter, &request).await? => {
                    let is_answered = request.answer.is_some();
                    found = Some((request.seq, request.id));
                    if is_answered {
                        return Ok(());
                    }
                }
                Some(News::Answered { seq, .. }) if found.as_ref().is_some_and(|(known, _)| *known == seq) => {
                    return Ok(());
                }
                Some(_) => {}
                None => return Err(Problem::Ended),
            }
        }
    };
    let ended = tokio::select! {
        ended = timeout_at(end, answered) => ended,
        () = closing.cancelled() => Ok(Err(Problem::Ended)),
    };
    match (found, ended) {
        // It has arrived, and that is what was asked for.
        (Some((_, id)), _) => Ok(id),
        (None, Ok(Err(problem))) => Err(problem),
        (None, _) => Err(Problem::NotYet(within)),
    }
}

/// Whether a request is as wanted. Its body is looked at last, where that holds up nothing else.
async fn is_wanted(records: &Records, filter: &Arc<Filter>, request: &Captured) -> Result<bool, Problem> {
    if !filter.head_mismatches(request).is_empty() {
        return Ok(false);
    }
    if filter.json.is_empty() {
        return Ok(true);
    }
    let (filter, id) = (filter.clone(), request.id.clone());
    let look = move |records: &Records| {
        // One that is gone by now is none that is waited for.
        Ok(records.get(&id).is_ok_and(|kept| filter.body_mismatches(&kept.request.body).is_empty()))
    };
    records.look(look).await
}
