//! What can be asked of an inbox, by its owner or by the relay's operator.

use relay_protocol::inbox::api;
use relay_protocol::inbox::api::{Done, MAX_IDS, MAX_PAGE, Page, Whole};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use ulid::Ulid;

pub(crate) use super::attempt::Source;
use super::records::{Inbox, Seq, State, StoredBody, Which};
use super::{Inboxes, close, view};
use crate::store::{StoreError, TokenId};

/// What is done with webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// They are due at once; dead ones wait again.
    Retry,
    /// They are forgotten.
    Drop,
}

/// Why it was not done.
#[derive(Debug, Error)]
pub(crate) enum HandleError {
    /// There is no such inbox, or it is another token's.
    #[error("there is no inbox of the name {0}; `inbox list` shows those that there are")]
    NoInbox(String),
    /// There is no such webhook.
    #[error("there is no webhook {0} in this inbox")]
    NoWebhook(String),
    /// It is no id.
    #[error("{0:?} is no id of a webhook")]
    Id(String),
    /// It is no state.
    #[error("{0:?} is none of waiting, delivered and dead")]
    State(String),
    /// It is no `next` of a page.
    #[error("{0:?} is not where a page begins")]
    Page(String),
    /// It was delivered.
    #[error("the body of the webhook {0} is not kept any more, because it was delivered")]
    NoBody(String),
    /// That many ids.
    #[error("more than {MAX_IDS} ids at once")]
    TooMany,
    /// Its body cannot be read.
    #[error("the body of the webhook cannot be read: {0}")]
    Body(#[from] std::io::Error),
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The inboxes of a token, or all.
pub(crate) async fn inboxes(inboxes: &Inboxes, whose: Option<TokenId>) -> Result<api::Inboxes, HandleError> {
    let found = match whose {
        Some(token) => inboxes.records().inboxes_of(token).await?,
        None => inboxes.records().inboxes().await?,
    };
    Ok(api::Inboxes { inboxes: found.iter().map(view::inbox).collect() })
}

/// The inbox of a name, if it is this token's where one is given.
pub(crate) async fn inbox(inboxes: &Inboxes, whose: Option<TokenId>, name: &str) -> Result<Inbox, HandleError> {
    let inbox = inboxes.records().inbox(name).await?;
    let inbox = inbox.filter(|inbox| whose.is_none_or(|token| inbox.token == token));
    inbox.ok_or_else(|| HandleError::NoInbox(name.to_owned()))
}

/// Webhooks of an inbox, in one state or in any: the first page, or the one that another's `next` leads to.
pub(crate) async fn page(
    inboxes: &Inboxes,
    inbox: Inbox,
    state: Option<&str>,
    before: Option<&str>,
    limit: Option<usize>,
) -> Result<Page, HandleError> {
    let before = before.map(|before| Seq::from_text(before).ok_or_else(|| HandleError::Page(shorten(before))));
    let (before, state) = (before.transpose()?, state.map(state_of).transpose()?);
    let limit = limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let (rows, more) = inboxes.records().list(&inbox.name, inbox.token, state, before, limit).await?;
    let next = rows.last().filter(|_| more).map(|last| last.seq.to_text());
    Ok(Page { inbox: view::inbox(&inbox), webhooks: rows.iter().map(view::webhook).collect(), next })
}

/// A webhook with all that is kept of it; its body only where it has at most `most` bytes.
pub(crate) async fn whole(inboxes: &Inboxes, inbox: &Inbox, id: &str, most: u64) -> Result<Whole, HandleError> {
    let records = inboxes.records();
    let id = ulid(id)?;
    let found = records.show(&inbox.name, inbox.token, id).await?;
    let (stored, attempts) = found.ok_or_else(|| HandleError::NoWebhook(id.to_string()))?;
    let body = match stored.body {
        StoredBody::Inline(bytes) => Some(bytes.into()),
        StoredBody::Spooled if stored.row.body_size <= most => {
            let mut body = Vec::new();
            records.spool().open(id).await?.take(most).read_to_end(&mut body).await?;
            Some(body)
        }
        StoredBody::Spooled | StoredBody::Gone => None,
    };
    let headers = view::headers(&stored.row.head);
    let headers_first = stored.head_first.as_ref().map(view::headers);
    let tried = attempts.into_iter().map(view::tried).collect();
    let body_base64 = body.map(|body: Vec<u8>| view::base64(&body));
    Ok(Whole { webhook: view::webhook(&stored.row), headers, headers_first, body_base64, tried })
}

/// The body of a webhook, and its length.
pub(crate) async fn body(inboxes: &Inboxes, inbox: &Inbox, id: &str) -> Result<(Source, u64), HandleError> {
    let id = ulid(id)?;
    let found = inboxes.records().show(&inbox.name, inbox.token, id).await?;
    let (stored, _) = found.ok_or_else(|| HandleError::NoWebhook(id.to_string()))?;
    let source = match stored.body {
        StoredBody::Inline(bytes) => Source::Bytes(bytes),
        StoredBody::Spooled => Source::File(inboxes.records().spool().open(id).await?),
        StoredBody::Gone => return Err(HandleError::NoBody(id.to_string())),
    };
    Ok((source, stored.row.body_size))
}

/// Does something with webhooks.
pub(crate) async fn act(
    inboxes: &Inboxes,
    inbox: &Inbox,
    action: Action,
    which: &api::Which,
) -> Result<Done, HandleError> {
    let which = match which {
        api::Which::Ids(ids) if ids.len() > MAX_IDS => return Err(HandleError::TooMany),
        api::Which::Ids(ids) => Which::Ids(ids.iter().map(|id| ulid(id)).collect::<Result<_, _>>()?),
        api::Which::All(state) => Which::All(state_of(state)?),
    };
    let records = inboxes.records();
    let count = match action {
        Action::Retry => records.retry(&inbox.name, inbox.token, which, inboxes.steady()).await?,
        Action::Drop => records.drop(&inbox.name, inbox.token, which).await?,
    };
    wake(inboxes, &inbox.name);
    Ok(Done { count })
}

/// Lets deliveries rest, or go on.
pub(crate) async fn pause(inboxes: &Inboxes, mut inbox: Inbox, paused: bool) -> Result<api::Inbox, HandleError> {
    inboxes.records().pause(&inbox.name, inbox.token, paused).await?;
    wake(inboxes, &inbox.name);
    inbox.paused = paused;
    Ok(view::inbox(&inbox))
}

/// Closes an inbox, with all that is in it.
pub(crate) async fn remove(inboxes: &Inboxes, inbox: &Inbox) -> Result<Done, HandleError> {
    Ok(Done { count: close(inboxes, &inbox.name, Some(inbox.token)).await?.into() })
}

fn wake(inboxes: &Inboxes, name: &str) {
    if let Some(open) = inboxes.get(name) {
        open.wake();
    }
}

fn state_of(word: &str) -> Result<State, HandleError> {
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    state.ok_or_else(|| HandleError::State(shorten(word)))
}

fn ulid(id: &str) -> Result<Ulid, HandleError> {
    Ulid::from_string(id).map_err(|_| HandleError::Id(shorten(id)))
}

/// As much of what was typed as a message repeats.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}
