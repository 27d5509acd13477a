//! What can be asked of an inbox, by its owner or by the relay's operator.

use relay_protocol::inbox::api;
use relay_protocol::inbox::api::{Done, Inbox, MAX_IDS, MAX_PAGE, Page, Whole};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use ulid::Ulid;

use super::records::{State, StoredBody, Which};
use super::{Inboxes, close, now, view};
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
    let all = inboxes.records().inboxes().await?;
    let inboxes = all.iter().filter(|inbox| whose.is_none_or(|token| inbox.token == token)).map(view::inbox).collect();
    Ok(api::Inboxes { inboxes })
}

/// The inbox of a name, if it is this token's where one is given.
pub(crate) async fn inbox(inboxes: &Inboxes, whose: Option<TokenId>, name: &str) -> Result<Inbox, HandleError> {
    let inbox = inboxes.records().inbox(name).await?;
    let inbox = inbox.filter(|inbox| whose.is_none_or(|token| inbox.token == token));
    inbox.map(|inbox| view::inbox(&inbox)).ok_or_else(|| HandleError::NoInbox(name.to_owned()))
}

/// Webhooks of an inbox, in one state or in any.
pub(crate) async fn page(
    inboxes: &Inboxes,
    inbox: Inbox,
    state: Option<&str>,
    before: Option<&str>,
    limit: Option<usize>,
) -> Result<Page, HandleError> {
    let records = inboxes.records();
    let before = match before {
        Some(id) => {
            let found = records.show(&inbox.name, ulid(id)?).await?;
            Some(found.ok_or_else(|| HandleError::NoWebhook(id.to_owned()))?.0.row.seq)
        }
        None => None,
    };
    let state = state.map(state_of).transpose()?;
    let rows = records.list(&inbox.name, state, before, limit.unwrap_or(100).min(MAX_PAGE)).await?;
    // A page may be shorter than what was asked for; the one after the last is empty.
    let next = rows.last().map(|row| row.id.to_string());
    Ok(Page { inbox, webhooks: rows.iter().map(view::webhook).collect(), next })
}

/// A webhook with all that is kept of it.
pub(crate) async fn whole(inboxes: &Inboxes, inbox: &Inbox, id: &str) -> Result<Whole, HandleError> {
    let records = inboxes.records();
    let id = ulid(id)?;
    let found = records.show(&inbox.name, id).await?;
    let (stored, attempts) = found.ok_or_else(|| HandleError::NoWebhook(id.to_string()))?;
    let body_base64 = match stored.body {
        StoredBody::Inline(bytes) => Some(view::base64(&bytes)),
        StoredBody::Spooled => {
            let mut body = Vec::new();
            records.spool().open(id).await?.take(stored.row.body_size).read_to_end(&mut body).await?;
            Some(view::base64(&body))
        }
        StoredBody::Gone => None,
    };
    let headers = view::headers(&stored.row.head);
    let headers_first = stored.head_first.as_ref().map(view::headers);
    let tried = attempts.into_iter().map(view::tried).collect();
    Ok(Whole { webhook: view::webhook(&stored.row), headers, headers_first, body_base64, tried })
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
        Action::Retry => records.retry(&inbox.name, which, now()).await?,
        Action::Drop => records.drop(&inbox.name, which).await?,
    };
    wake(inboxes, &inbox.name);
    Ok(Done { count })
}

/// Lets deliveries rest, or go on.
pub(crate) async fn pause(inboxes: &Inboxes, mut inbox: Inbox, paused: bool) -> Result<Inbox, HandleError> {
    inboxes.records().pause(&inbox.name, paused).await?;
    wake(inboxes, &inbox.name);
    inbox.paused = paused;
    Ok(inbox)
}

/// Closes an inbox, with all that is in it.
pub(crate) async fn remove(inboxes: &Inboxes, inbox: &Inbox) -> Result<Done, HandleError> {
    Ok(Done { count: close(inboxes, &inbox.name).await?.into() })
}

fn wake(inboxes: &Inboxes, name: &str) {
    if let Some(open) = inboxes.get(name) {
        open.wake();
    }
}

fn state_of(word: &str) -> Result<State, HandleError> {
    let state = State::ALL.into_iter().find(|state| state.as_str() == word);
    state.ok_or_else(|| HandleError::State(word.chars().take(64).collect()))
}

fn ulid(id: &str) -> Result<Ulid, HandleError> {
    Ulid::from_string(id).map_err(|_| HandleError::Id(id.chars().take(64).collect()))
}
