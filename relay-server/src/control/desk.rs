//! Where requests are done, whoever brings them: a command on the socket, a program over HTTP, or a command itself where no
//! relay runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use relay_protocol::frame::GoAway;
use relay_protocol::inbox::api::{self, Which};
use ulid::Ulid;

use super::words::{Change, InboxRequest, Reply, Request, Why};
use super::{deeds, secret};
use crate::audit::{By, Deed};
use crate::clock::unix_now;
use crate::inbox::handle::{self, Action, HandleError};
use crate::inbox::{self, Inboxes};
use crate::status::Present;
use crate::store::{
    BlockError, CreateTokenError, LimitError, Name, NewToken, ReleaseError, ReserveError, RevokeError, Store,
    StoreError,
};

/// Does what a change means beside the store, before the request is answered.
pub(crate) type Follow = dyn Fn(Change) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync;

/// What requests are about; clones share it.
#[derive(Clone)]
pub(crate) struct Desk {
    directory: PathBuf,
    store: Store,
    inboxes: Arc<Inboxes>,
    /// The relay; none where none runs.
    present: Option<Present>,
    changed: Arc<Follow>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Desk {
    /// `changed` is called for each change that matters to those who are connected or expected, once it is in the store.
    pub(crate) fn new(
        directory: &Path,
        store: Store,
        inboxes: Arc<Inboxes>,
        present: Option<Present>,
        changed: Arc<Follow>,
    ) -> Self {
        Self { directory: directory.to_owned(), store, inboxes, present, changed }
    }

    /// That of a directory on which no relay runs: the next one finds what has changed.
    pub(super) fn alone(directory: &Path, store: Store, inboxes: Arc<Inboxes>) -> Self {
        let changing = inboxes.clone();
        let changed = move |change| note(changing.clone(), change).boxed();
        Self::new(directory, store, inboxes, None, Arc::new(changed))
    }

    /// Finishes what is queued.
    pub(super) async fn close(self) {
        self.inboxes.records().close().await;
        self.store.close().await;
    }

    /// Does what was asked, and notes who has asked for it.
    pub(crate) async fn ask(&self, by: &By, request: Request) -> Reply {
        let mut deed = deeds::of(&request);
        let mut begun = false;
        let reply = self.answer(request, &mut begun).await;
        match (&reply, &mut deed) {
            // It is in the store, and something that follows from it has failed.
            (Reply::Refused { message, .. }, Some(deed)) if begun => {
                let separator = if deed.detail.is_empty() { "" } else { ", " };
                deed.detail = format!("{}{separator}done in part: {message}", deed.detail);
                self.write(by, deed.clone()).await;
            }
            _ => self.note(by, deed, &reply).await,
        }
        reply
    }

    /// Notes who has done what, unless it was refused.
    pub(super) async fn note(&self, by: &By, deed: Option<Deed>, reply: &Reply) {
        if let Some(deed) = deed.filter(|_| !matches!(reply, Reply::Refused { .. })) {
            self.write(by, deed).await;
        }
    }

    async fn write(&self, by: &By, deed: Deed) {
        if let Err(error) = self.store.note(by, deed.clone(), unix_now()).await {
            tracing::error!(%error, %by, ?deed, "what was done is not in the audit log");
        }
    }

    /// That of these names which is the domain of the relay that runs, or below it.
    fn own<'n>(&self, names: &'n [Name]) -> Option<&'n Name> {
        let domain = &self.present.as_ref()?.shared.config.domain;
        names.iter().find(|name| name.is_of(domain))
    }

    /// `begun` is whether the store has changed by now.
    async fn answer(&self, request: Request, begun: &mut bool) -> Reply {
        let (store, now) = (&self.store, unix_now());
        if let Request::CreateToken(NewToken { reserve: names, .. }) | Request::Reserve { names, .. } = &request
            && let Some(name) = self.own(names)
        {
            let message =
                format!("{name} is the relay's own domain, or below it; of those below it, reserve the label alone");
            return Reply::Refused { why: Why::Invalid, message };
        }
        match request {
            Request::Ping => Reply::Pong { version: env!("CARGO_PKG_VERSION").to_owned() },
            Request::CreateToken(new) => match store.create_token(new, now).await {
                Ok((secret, token)) => {
                    tracing::info!(token = %token.name, "a token was created");
                    if let Err(error) = (self.changed)(Change::Created(token.id)).await {
                        // The next start does it.
                        tracing::error!(token = %token.name, %error, "a token did not take over the inboxes of the one that it replaces");
                    }
                    Reply::Created { secret, token }
                }
                Err(error) => refused(error),
            },
            Request::LimitToken { token, change } => match store.limit_token(&token, change).await {
                Ok((id, limits)) => {
                    *begun = true;
                    tracing::debug!(%token, ?limits, "what a token may have was said or changed");
                    let changed = (self.changed)(Change::Limited(id)).await;
                    changed.map_or_else(refused, |()| Reply::Limited { limits })
                }
                Err(error) => refused(error),
            },
            Request::ListTokens => match store.list_tokens(now).await {
                Ok(tokens) => Reply::Tokens { tokens },
                Err(error) => refused(error),
            },
            Request::FindToken { token } => match store.find_token(&token, now).await {
                Ok(token) => Reply::Tokens { tokens: token.into_iter().collect() },
                Err(error) => refused(error),
            },
            Request::RevokeToken { token } => match store.revoke_token(&token, now).await {
                Ok(id) => {
                    *begun = true;
                    tracing::info!(%token, "a token was revoked");
                    (self.changed)(Change::Revoked(id)).await.map_or_else(refused, |()| Reply::Revoked)
                }
                Err(error) => refused(error),
            },
            Request::ForgetToken { token } => match store.revoke_token(&token, now).await {
                Ok(id) => {
                    *begun = true;
                    let ended = (self.changed)(Change::Revoked(id)).await;
                    let forgotten = store.forget_token(id).await;
                    ended.and(forgotten).map_or_else(refused, |()| Reply::Revoked)
                }
                Err(error) => refused(error),
            },
            Request::Reserve { token, names, provider, inbox } => {
                match store.reserve(&token, names.clone(), provider.as_deref(), now).await {
                    Ok(token) => {
                        *begun = true;
                        match (self.changed)(Change::Reserved { token, names, provider, inbox: inbox.map(Box::new) })
                            .await
                        {
                            Ok(()) => Reply::Reserved,
                            Err(error) => Reply::failed(format!(
                                "the names are reserved, and not all of their inboxes are open: {error}"
                            )),
                        }
                    }
                    Err(error) => refused(error),
                }
            }
            Request::Release { names, forget } => self.release(names, forget, now, begun).await,
            Request::Inbox(request) => self.inbox(request).await.unwrap_or_else(refused),
            Request::Block { target, reason } => match store.block(target, reason, now).await {
                Ok(block) => {
                    *begun = true;
                    tracing::info!(block = %block.target, "something is kept out");
                    (self.changed)(Change::Blocks).await.map_or_else(refused, |()| Reply::Blocked { block })
                }
                Err(error) => refused(error),
            },
            Request::Unblock { id } => match store.unblock(id).await {
                Ok(Some(block)) => {
                    *begun = true;
                    tracing::info!(block = %block.target, "something is not kept out any more");
                    (self.changed)(Change::Blocks).await.map_or_else(refused, |()| Reply::Unblocked { block })
                }
                Ok(None) => {
                    let message = format!("there is no block {id}; `block list` shows them all");
                    Reply::Refused { why: Why::Unknown, message }
                }
                Err(error) => refused(error),
            },
            Request::ListBlocks => match store.blocks().await {
                Ok((blocks, _)) => Reply::Blocks { blocks },
                Err(error) => refused(error),
            },
            Request::Audit { before, limit } => match store.audit(before, limit.clamp(1, api::MAX_PAGE)).await {
                Ok(entries) => Reply::Audit { entries },
                Err(error) => refused(error),
            },
            Request::AdminToken { renew } => {
                let directory = self.directory.clone();
                let make = move || if renew { secret::renew(&directory) } else { secret::of(&directory) };
                match tokio::task::spawn_blocking(make).await {
                    Ok(Ok(secret)) => Reply::AdminToken { secret },
                    Ok(Err(error)) => Reply::failed(error.to_string()),
                    Err(error) => Reply::failed(error.to_string()),
                }
            }
            Request::Status | Request::ListSessions | Request::ListTunnels | Request::ListCertificates => {
                match &self.present {
                    Some(present) => tell(present, &request).await,
                    None => Reply::failed("no relay runs"),
                }
            }
            Request::EndSession { session } => match &self.present {
                Some(present) => end_session(present, &session),
                None => Reply::failed("no relay runs"),
            },
            Request::Reload | Request::Upgrade | Request::TakeOver { .. } => Reply::failed("no relay runs here"),
        }
    }

    /// Gives names up, unless that would lose webhooks and nobody has said that it may.
    async fn release(&self, names: Vec<Name>, forget: bool, now: i64, begun: &mut bool) -> Reply {
        let (mut closed, mut forgotten) = (0, 0);
        for name in &names {
            match self.inboxes.records().inbox(name.as_str()).await {
                Ok(None) => {}
                Ok(Some(inbox)) => (closed, forgotten) = (closed + 1, forgotten + inbox.waiting + inbox.dead),
                Err(error) => return refused(error),
            }
        }
        if forgotten > 0 && !forget {
            let message = format!(
                "{} would be forgotten, and nothing was released: have them delivered or export them, or say \
                 --forget-webhooks",
                webhooks(forgotten)
            );
            return Reply::Refused { why: Why::Conflict, message };
        }
        match self.store.release(names.clone(), now).await {
            Err(error) => refused(error),
            Ok(()) => {
                *begun = true;
                match (self.changed)(Change::Released { names }).await {
                    Ok(()) => Reply::Released { closed, forgotten },
                    Err(error) => Reply::failed(format!(
                        "the names are released, and not all of their inboxes are closed: {error}"
                    )),
                }
            }
        }
    }

    /// Does what is to be done with inboxes and their webhooks.
    async fn inbox(&self, request: InboxRequest) -> Result<Reply, HandleError> {
        let inboxes = &*self.inboxes;
        let act = async |name: &str, action, which: &Which| {
            let inbox = handle::inbox(inboxes, None, name).await?;
            handle::act(inboxes, &inbox, action, which).await.map(Reply::Done)
        };
        let mut reply = match request {
            InboxRequest::List => Reply::Inboxes(handle::inboxes(inboxes, None).await?),
            InboxRequest::Page { inbox, state, before, limit } => {
                let inbox = handle::inbox(inboxes, None, &inbox).await?;
                Reply::Webhooks(handle::page(inboxes, inbox, state.as_deref(), before.as_deref(), Some(limit)).await?)
            }
            InboxRequest::Show { inbox, id } => {
                let inbox = handle::inbox(inboxes, None, &inbox).await?;
                Reply::Webhook(Box::new(handle::whole(inboxes, &inbox, &id, u64::MAX).await?))
            }
            InboxRequest::Retry { inbox, which } => act(&inbox, Action::Retry, &which).await?,
            InboxRequest::Drop { inbox, which } => act(&inbox, Action::Drop, &which).await?,
            InboxRequest::Pause { inbox, paused } => {
                let inbox = handle::inbox(inboxes, None, &inbox).await?;
                Reply::Inbox(handle::pause(inboxes, inbox, paused).await?)
            }
            InboxRequest::Close { inbox } => {
                let inbox = handle::inbox(inboxes, None, &inbox).await?;
                Reply::Done(handle::remove(inboxes, &inbox).await?)
            }
        };
        let told = match &mut reply {
            Reply::Inboxes(api::Inboxes { inboxes }) => inboxes.as_mut_slice(),
            Reply::Webhooks(api::Page { inbox, .. }) | Reply::Inbox(inbox) => std::slice::from_mut(inbox),
            _ => &mut [],
        };
        if !told.is_empty() {
            let owners = inbox::owners(inboxes, &self.store).await?;
            told.iter_mut().for_each(|inbox| inbox.token = owners.get(&inbox.name).cloned());
        }
        Ok(reply)
    }
}

/// What a relay that runs says of itself.
async fn tell(present: &Present, request: &Request) -> Reply {
    match request {
        Request::ListSessions => Reply::Sessions { sessions: present.sessions() },
        Request::ListTunnels => Reply::Tunnels { tunnels: present.tunnels() },
        Request::ListCertificates => Reply::Certificates { certificates: present.certificates() },
        _ => Reply::Status(Box::new(present.status().await)),
    }
}

fn end_session(present: &Present, session: &str) -> Reply {
    let unknown = || Reply::Refused {
        why: Why::Unknown,
        message: "there is no such session; `session list` shows them all".to_owned(),
    };
    let Ok(id) = Ulid::from_string(session) else { return unknown() };
    let text = "The relay's operator has ended the session.";
    if present.shared.sessions.disconnect(id, GoAway::Shutdown, text) {
        tracing::info!(session = %id, "a session was ended by the operator");
        Reply::Done(api::Done { count: 1 })
    } else {
        unknown()
    }
}

/// So many that were not delivered, as a sentence has them.
pub(crate) fn webhooks(count: u64) -> String {
    let plural = if count == 1 { "webhook that was" } else { "webhooks that were" };
    format!("{count} {plural} not delivered")
}

/// What a change means where no relay runs: the next one finds it so.
async fn note(inboxes: Arc<Inboxes>, change: Change) -> Result<(), StoreError> {
    match change {
        Change::Created(_) | Change::Limited(_) | Change::Blocks | Change::Revoked(_) => {}
        Change::Reserved { token, names, provider, inbox } => {
            for name in &names {
                inbox::note_reserved(&inboxes, name.as_str(), token, inbox.as_deref(), provider.as_deref()).await?;
            }
        }
        Change::Released { names } => {
            for name in &names {
                inbox::close(&inboxes, name.as_str(), None).await?;
            }
        }
    }
    Ok(())
}

/// An error that says no to whoever has asked.
trait Refusal: std::error::Error {
    fn why(&self) -> Why;
}

fn refused(error: impl Refusal) -> Reply {
    Reply::Refused { why: error.why(), message: error.to_string() }
}

impl Refusal for StoreError {
    fn why(&self) -> Why {
        Why::Failed
    }
}

impl Refusal for CreateTokenError {
    fn why(&self) -> Why {
        match self {
            Self::BadName { .. } | Self::Limit(_) => Why::Invalid,
            Self::NameTaken { .. } => Why::Conflict,
            Self::Reserve(error) => error.why(),
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for BlockError {
    fn why(&self) -> Why {
        match self {
            Self::NoSuchToken { .. } => Why::Unknown,
            Self::TooMany => Why::Conflict,
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for LimitError {
    fn why(&self) -> Why {
        match self {
            Self::NoSuchToken { .. } => Why::Unknown,
            Self::Limit(_) => Why::Invalid,
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for ReserveError {
    fn why(&self) -> Why {
        match self {
            Self::NoSuchToken { .. } => Why::Unknown,
            Self::OwnedByOther { .. } | Self::Resting { .. } => Why::Conflict,
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for ReleaseError {
    fn why(&self) -> Why {
        match self {
            Self::NotReserved { .. } => Why::Unknown,
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for RevokeError {
    fn why(&self) -> Why {
        match self {
            Self::NoSuchToken { .. } => Why::Unknown,
            Self::Store(error) => error.why(),
        }
    }
}

impl Refusal for HandleError {
    fn why(&self) -> Why {
        match self {
            Self::NoInbox(_) | Self::NoWebhook(_) | Self::NoBody(_) => Why::Unknown,
            Self::Id(_) | Self::State(_) | Self::Page(_) | Self::TooMany => Why::Invalid,
            Self::Body(_) | Self::Store(_) => Why::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::blocks::Target;
    use crate::inbox::records::Records;
    use crate::limits::Limits;
    use crate::store::TokenLimits;

    /// Nothing that follows from a change can be done here.
    fn desk(place: &Path) -> Desk {
        let inboxes = Arc::new(Inboxes::new(Records::temporary().unwrap(), &Limits::default()));
        let failing = |_| async { Err(StoreError::Full) }.boxed();
        Desk::new(place, Store::in_memory().unwrap(), inboxes, None, Arc::new(failing))
    }

    #[tokio::test]
    async fn what_was_done_in_part_is_in_the_audit_log_and_what_was_refused_is_not() {
        let place = tempfile::tempdir().unwrap();
        let desk = desk(place.path());
        let limits = TokenLimits { max_bytes: Some(7), ..TokenLimits::default() };
        let new = NewToken { name: "ci".into(), reserve: vec![], expires_at: Some(1_796_083_200), limits };
        let ask = async |request| desk.ask(&By::this(), request).await;
        assert!(matches!(ask(Request::CreateToken(new.clone())).await, Reply::Created { .. }));
        assert!(matches!(ask(Request::CreateToken(new)).await, Reply::Refused { why: Why::Conflict, .. }));
        let names = vec![Name::parse("hooks").unwrap()];
        for (request, operation) in [
            (Request::Block { target: Target::Token("ci".into()), reason: "spam".into() }, "block.add"),
            (
                Request::Reserve { token: "ci".into(), names: names.clone(), provider: None, inbox: None },
                "name.reserve",
            ),
            (Request::Release { names: names.clone(), forget: false }, "name.release"),
            (Request::RevokeToken { token: "ci".into() }, "token.revoke"),
        ] {
            assert!(matches!(ask(request).await, Reply::Refused { .. }));
            let entry = desk.store.audit(None, 1).await.unwrap().remove(0);
            assert_eq!(entry.operation, operation);
            assert!(entry.detail.contains("done in part: ") && entry.detail.contains("is full"), "{entry:?}");
        }
        assert!(matches!(ask(Request::Release { names, forget: false }).await, Reply::Refused { .. }));
        let entries = desk.store.audit(None, 10).await.unwrap();
        assert_eq!(entries.len(), 5, "{entries:?}");
        assert_eq!(entries[4].detail, r#"expires 2026-12-01T00:00:00Z, {"max_bytes":7}"#);
    }
}
