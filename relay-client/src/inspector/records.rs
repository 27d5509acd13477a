//! What was recorded, as the inspector reads it: the newest from memory, and all that is over from the history, which
//! takes a thread of its own for as long as the disk does.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use relay_protocol::webhook::Table;
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Answer, Problem};
use super::limits::{LINES, LINES_MAX, PAGE};
use super::query::Query as Parameters;
use crate::capture::Capture;
use crate::capture::exchange::{Exchange, Summary};
use crate::capture::filter;
use crate::capture::history::{History, Query};
use crate::capture::store::{Place, StoreError};
use crate::control::{Ask, Found, PATIENCE, ask_others};
use crate::upstream::service::{Body, BoxError};

/// What a client and its user have recorded. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Records {
    capture: Capture,
    /// None where there is no place for it.
    history: Option<Arc<History>>,
    table: Arc<Table>,
    /// Whoever looks has gone.
    given_up: CancellationToken,
}

/// A list, the newest first.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    exchanges: Vec<Summary>,
    /// How many there are on all pages.
    total: u64,
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::History(error.to_string())
    }
}

impl Records {
    pub(super) fn new(capture: Capture, table: Arc<Table>) -> Self {
        let history = Place::of_user().map(|place| Arc::new(History::of(place)));
        Self { capture, history, table, given_up: CancellationToken::new() }
    }

    /// What comes.
    pub(super) fn capture(&self) -> &Capture {
        &self.capture
    }

    /// Looks into it without holding up anything else. Where this is given up, a long search is, too.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let own = Self { given_up: CancellationToken::new(), ..self.clone() };
        let _asks = own.given_up.clone().drop_guard();
        let looked = spawn_blocking(move || look(&own)).await;
        looked.unwrap_or_else(|_| Err(Problem::History("reading it failed".to_owned())))
    }

    /// The exchange of this id. Where the history has lost the rest of a long body, what is in memory has to do.
    pub(super) fn get(&self, id: &str) -> Result<Exchange, Problem> {
        let kept = match self.capture.exchange(id) {
            Some((exchange, true)) => return Ok(exchange),
            kept => kept.map(|(exchange, _)| exchange),
        };
        let stored = self.history.as_ref().map_or(Ok(None), |history| history.get(id));
        match (stored, kept) {
            (Ok(Some(exchange)), _) | (_, Some(exchange)) => Ok(exchange),
            (Ok(None), None) => Err(Problem::NoExchange(id.to_owned())),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// Those that are asked for, and how many there are of them.
    pub(super) fn page(&self, query: &Query, limit: usize) -> Result<Page, Problem> {
        let (own, query) = (self.own(query)?, Query { given_up: self.given_up.clone(), ..query.clone() });
        let stored = self.history.as_ref().map(|history| history.page(&query, limit)).transpose()?;
        let (exchanges, total) = stored.unwrap_or_default();
        let total = total + own.iter().filter(|summary| query.is_after(&summary.id)).count() as u64;
        Ok(Page { exchanges: merged(exchanges, own, &query, limit), total })
    }

    /// Those that are asked for.
    fn list(&self, query: &Query, limit: usize) -> Result<Vec<Summary>, Problem> {
        let own = self.own(query)?;
        let stored = self.history.as_ref().map(|history| history.list(query, limit)).transpose()?;
        Ok(merged(stored.unwrap_or_default(), own, query, limit))
    }

    /// Those of this client that are asked for, on all pages, and are not in the history. All that is over by now is,
    /// where it can be.
    fn own(&self, query: &Query) -> Result<Vec<Summary>, Problem> {
        self.capture.flush();
        let (mut own, history) = (Vec::new(), self.history.as_ref());
        for summary in self.capture.unstored(query) {
            // Under way when the list was made, and stored since.
            if !history.map_or(Ok(false), |history| history.has(&summary.id))? {
                own.push(summary);
            }
        }
        Ok(own)
    }

    /// Removes all that is over, also what other clients have in memory.
    pub(super) async fn clear(&self) -> Result<(), Problem> {
        // The others first: what comes here while they are asked goes from memory and from the file alike.
        let asked = ask_others(self.capture.socket(), &Ask::Clear, PATIENCE).await.unwrap_or_default();
        let clear = |records: &Self| {
            records.capture.clear();
            records.capture.flush();
            records.history.as_ref().map(|history| history.clear()).transpose()?;
            Ok(())
        };
        self.look(clear).await?;
        let silent = asked.into_iter().find_map(|found| match found {
            Found::Silent { pid, why } => Some(Problem::NotCleared { pid, why }),
            Found::Answers(_) => None,
        });
        silent.map_or(Ok(()), Err)
    }

    /// What is known of providers.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// JSON of a long list, the newest first, that is made as it is read: `head`, each exchange as `write` has it, with
    /// commas between them, and `tail`. The exchanges are those of the ids, and behind them those of the query.
    pub(super) fn stream(
        &self,
        ids: VecDeque<String>,
        query: Option<Query>,
        (head, tail): (String, String),
        write: fn(&Self, Exchange) -> Vec<u8>,
    ) -> Answer {
        let walk = Walk { records: self.clone(), ids, query, is_first: true };
        let parts = stream::unfold((Some(walk), Some(head), tail), move |(walk, head, tail)| async move {
            if let Some(head) = head {
                return Some((Ok(Frame::data(Bytes::from(head))), (walk, None, tail)));
            }
            match walk?.next(write).await {
                Ok((walk, Some(part))) => Some((Ok(Frame::data(part)), (Some(walk), None, tail))),
                Ok((_, None)) => Some((Ok(Frame::data(Bytes::from(tail))), (None, None, String::new()))),
                // The status is out: the answer breaks off, so that nobody takes it for all.
                Err(problem) => Some((Err(BoxError::from(problem.to_string())), (None, None, tail))),
            }
        });
        answer::body(StatusCode::OK, "application/json", Body::new(StreamBody::new(Box::pin(parts))))
    }
}

/// The newest of two lists of which each has its newest first.
fn merged(stored: Vec<Summary>, own: Vec<Summary>, query: &Query, limit: usize) -> Vec<Summary> {
    let mut all = stored;
    all.extend(own.into_iter().filter(|summary| query.is_on_page(&summary.id)));
    all.sort_by(|one, other| other.id.cmp(&one.id));
    all.truncate(limit);
    all
}

/// A long list that is being read.
struct Walk {
    records: Records,
    /// Those that come next.
    ids: VecDeque<String>,
    /// Those behind them.
    query: Option<Query>,
    is_first: bool,
}

impl Walk {
    /// The next exchange as `write` has it.
    async fn next(mut self, write: fn(&Records, Exchange) -> Vec<u8>) -> Result<(Self, Option<Bytes>), Problem> {
        let records = self.records.clone();
        let step = move |records: &Records| {
            loop {
                if self.ids.is_empty()
                    && let Some(query) = &self.query
                {
                    self.ids.extend(records.list(query, PAGE)?.into_iter().map(|summary| summary.id));
                }
                let Some(id) = self.ids.pop_front() else { return Ok((self, None)) };
                let found = records.get(&id);
                self.query.iter_mut().for_each(|query| query.before = Some(id.clone()));
                match found {
                    Ok(exchange) => {
                        let mut part = if self.is_first { Vec::new() } else { vec![b','] };
                        part.extend(write(records, exchange));
                        self.is_first = false;
                        return Ok((self, Some(Bytes::from(part))));
                    }
                    // It went meanwhile, as the oldest do.
                    Err(Problem::NoExchange(_)) => {}
                    Err(problem) => return Err(problem),
                }
            }
        };
        records.look(step).await
    }
}

/// What a list is asked for with, and how many lines of it.
pub(super) fn query(parameters: &mut Parameters) -> Result<(Query, usize), Problem> {
    let limit = parameters.parse::<usize>("limit")?.unwrap_or(LINES).min(LINES_MAX);
    let text = |text: &str| Ok::<_, filter::FilterError>(text.to_owned());
    let since = parameters.read("since", filter::since)?;
    let mut query = Query {
        provider: parameters.read("provider", text)?,
        event_type: parameters.read("type", text)?,
        event_id: parameters.read("event_id", text)?,
        status: parameters.read("status", filter::status)?,
        method: parameters.read("method", text)?,
        path: parameters.read("path", filter::path)?,
        tunnel: parameters.read("tunnel", text)?,
        verdict: parameters.read("verdict", filter::verdict)?,
        text: parameters.read("q", text)?,
        before: parameters.read("before", text)?,
        after: parameters.read("after", text)?,
        ..Query::default()
    };
    match since {
        Some(crate::capture::Since::Time { at_ms }) => query.since_ms = Some(at_ms),
        Some(crate::capture::Since::Now) => query.since_ms = Some(crate::capture::unix_now()),
        Some(crate::capture::Since::Id { id }) => query.after = Some(id),
        Some(crate::capture::Since::Start) | None => {}
    }
    Ok((query, limit))
}
