//! The inbox: a tunnel's webhooks are on disk before their senders are told that they are accepted, and are delivered
//! when somebody is there to take them.
//!
//! ```text
//!   edge ──▶ arrival ──▶ records: inbox.db, and long bodies in the spool
//!               │             │
//!               │          delivery: what had to wait
//!               └──────▶ attempt ──▶ session
//! ```
//!
//! A webhook that was acknowledged is delivered at least once: an answer that the relay could not note before it was killed
//! is asked for again.

pub(crate) mod arrival;
mod attempt;
mod delivery;
pub(crate) mod handle;
mod news;
pub(crate) mod records;
pub(crate) mod spool;
pub(crate) mod view;

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use futures_util::FutureExt as _;
use relay_protocol::access::Access;
use relay_protocol::inbox::Inbox;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::news::News;
use self::records::{OpenInboxError, Quota, Quotas, Records, Retention, Seq};
use crate::Shared;
use crate::clock::{millis, unix_millis, unix_now};
use crate::limits::Limits;
use crate::pace::Pace;
use crate::store::{Name, Store, StoreError, TokenId};
use crate::tunnels::Asked;

/// How often what is too old is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// How long after a panic a delivery begins anew.
const AGAIN: Duration = Duration::from_secs(1);

/// All inboxes of the relay, by their names.
#[derive(Debug)]
pub(crate) struct Inboxes {
    records: Records,
    open: DashMap<Box<str>, Arc<Open>>,
    /// Held while an inbox is opened or closed, so that what is in `open` is what the records say.
    changing: tokio::sync::Mutex<()>,
    /// When the relay started, by two clocks.
    began: (i64, Instant),
    /// Places for webhooks that are on their way to the disk.
    arriving: Arc<Semaphore>,
    /// Room for the bodies of those that are tried as they come, in [units](arrival::UNIT).
    sending: Semaphore,
    /// For a process that takes over.
    news: Arc<News>,
}

/// Webhooks of all inboxes that may be on their way to the disk: as many as share a few of its commits. More come only where it
/// is stuck.
const ARRIVING: usize = 1024;

/// An inbox that takes webhooks.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) token: TokenId,
    settings: Mutex<Arc<Settings>>,
    /// Places for those that are tried as they come.
    live: Semaphore,
    /// Where there is a limit to their number in a second.
    pace: Pace,
    /// There may be something to deliver that was not there before.
    changed: Notify,
    /// Who is to know of that, too.
    news: Arc<News>,
    /// It takes no more.
    closed: CancellationToken,
}

/// What is said of an inbox, as it is kept with it. Of what is secret there are hashes only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) inbox: Inbox,
    /// The id of the provider that the tunnel is for.
    pub(crate) provider: Option<String>,
    /// The deadline that its client asks for.
    pub(crate) timeout_ms: Option<u64>,
    /// Who may call its tunnel, where not everybody may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<Arc<Access>>,
}

impl Settings {
    /// What a client has said of a tunnel with an inbox.
    pub(crate) fn of(asked: &Asked) -> Option<Self> {
        let timeout_ms = asked.timeout.and_then(|timeout| u64::try_from(timeout.as_millis()).ok());
        let inbox = asked.inbox.clone()?;
        let access = asked.access.as_deref().map(|access| Arc::new(access.without_secret()));
        Some(Self { inbox, provider: asked.webhooks.provider.clone(), timeout_ms, access })
    }

    /// What is kept of an inbox.
    fn kept(row: &records::Inbox) -> Self {
        // Written by this program: what does not read is of a later version, and its webhooks are kept all the same.
        serde_json::from_str(&row.settings).unwrap_or_else(|error| {
            tracing::warn!(
                name = %row.name, %error,
                "the settings of an inbox cannot be read; it has those of a new one, and takes nothing until its client is back"
            );
            Self { access: Some(Arc::new(Access::nobody())), ..Self::default() }
        })
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }

    /// How much may be stored: as much as the relay and its client allow.
    pub(crate) fn quotas(&self, limits: &Limits) -> Quotas {
        Quotas {
            inbox: Quota {
                count: less(self.inbox.count, limits.inbox_count),
                bytes: less(self.inbox.bytes, limits.inbox_bytes),
            },
            delivered: Quota { count: limits.inbox_delivered_count, bytes: limits.inbox_delivered_bytes },
            token_bytes: limits.inbox_token_bytes,
            total_bytes: limits.inbox_total_bytes,
        }
    }

    /// The most bytes of a body.
    pub(crate) fn body(&self, limits: &Limits) -> u64 {
        less(self.inbox.body, limits.inbox_body)
    }

    fn retention(&self, limits: &Limits) -> Retention {
        let keep = self.inbox.keep_s.map(Duration::from_secs);
        Retention {
            delivered_ms: millis(less(keep, limits.inbox_delivered)),
            delivered: self.quotas(limits).delivered,
            dead_ms: millis(limits.inbox_dead),
            max_age_ms: millis(Duration::from_secs(self.inbox.age_s)),
        }
    }
}

/// What an owner asks for, as far as the relay allows it.
fn less<T: Ord>(own: Option<T>, relays: T) -> T {
    match own {
        Some(own) => own.min(relays),
        None => relays,
    }
}

impl Open {
    fn new(shared: &Shared, name: &str, token: TokenId, settings: Settings) -> Arc<Self> {
        let limits = shared.limits();
        Arc::new(Self {
            name: name.to_owned(),
            token,
            settings: Mutex::new(Arc::new(settings)),
            live: Semaphore::new(limits.inbox_live.min(Semaphore::MAX_PERMITS)),
            pace: Pace::default(),
            changed: Notify::new(),
            news: shared.inboxes.news.clone(),
            closed: CancellationToken::new(),
        })
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one more webhook may come now, which counts then: as many as the owner allows in a second, and those of a
    /// second at once.
    pub(crate) fn admits(&self) -> bool {
        let Some(limit) = self.settings().inbox.limit else { return true };
        self.pace.admits(limit, Instant::now())
    }

    /// Says that there may be something to deliver.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
        self.news.note(&self.name);
    }
}

impl Inboxes {
    pub(crate) fn new(records: Records, limits: &Limits) -> Self {
        let units = usize::try_from(limits.inbox_live_bytes / arrival::UNIT).unwrap_or(usize::MAX);
        Self {
            began: (unix_millis().max(records.newest()), Instant::now()),
            records,
            open: DashMap::new(),
            changing: tokio::sync::Mutex::default(),
            arriving: Arc::new(Semaphore::new(ARRIVING)),
            sending: Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS)),
            news: Arc::default(),
        }
    }

    /// From now on no webhook is delivered here but those that are returned: all others are another process's, which has to be
    /// told what [has news](Self::has_news).
    pub(crate) fn give_up(&self) -> HashSet<Seq> {
        self.news.set_given_up(true);
        self.records.give_up()
    }

    /// That process delivers none after all.
    pub(crate) fn take_back(&self) {
        self.records.take_back();
        self.news.set_given_up(false);
        self.open.iter().for_each(|open| open.wake());
    }

    /// The webhooks that are being delivered here.
    pub(crate) fn leased(&self) -> HashSet<Seq> {
        self.records.leased()
    }

    /// Waits until there is something that the other process has to know.
    pub(crate) async fn has_news(&self) {
        tokio::select! {
            () = self.records.given_back() => {}
            () = self.news.changed() => {}
        }
    }

    /// The names with which, or with whose inboxes, something is different since this was last called.
    pub(crate) fn take_names(&self) -> Vec<String> {
        self.news.take()
    }

    /// Waits for as long as another process delivers.
    async fn in_charge(&self) {
        self.news.in_charge().await;
    }

    /// Says that something is different with a name.
    pub(crate) fn note(&self, name: &str) {
        self.news.note(name);
    }

    /// The present as waits and ages go by it: the system's clock as it was when the relay started, and what has passed
    /// since. Somebody may set that clock, and no webhook is late or too old because of that. One that went back while the
    /// relay was stopped does not make anything wait that was stored before.
    pub(crate) fn steady(&self) -> i64 {
        let (at, since) = self.began;
        at.saturating_add(millis(since.elapsed()))
    }

    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    /// The inbox of that name, if it has one.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Open>> {
        self.open.get(name).map(|open| open.value().clone())
    }

    /// Takes nothing more for a name, and delivers nothing.
    fn shut(&self, name: &str) {
        if let Some((_, open)) = self.open.remove(name) {
            open.closed.cancel();
        }
    }
}

/// Opens the inboxes that there were when the relay stopped.
pub(crate) fn start(shared: &Arc<Shared>, rows: Vec<records::Inbox>) {
    for row in rows {
        begin(shared, Open::new(shared, &row.name, row.token, Settings::kept(&row)));
    }
}

/// Has the inbox of this name, or every one, be as the records have it: another process may have changed it.
pub(crate) async fn look_again(shared: &Arc<Shared>, name: Option<&str>) {
    let inboxes = &shared.inboxes;
    let _changing = inboxes.changing.lock().await;
    let rows = match name {
        Some(name) => inboxes.records.inbox(name).await.map(|row| row.into_iter().collect()),
        None => inboxes.records.inboxes().await,
    };
    let rows: Vec<records::Inbox> = match rows {
        Ok(rows) => rows,
        Err(error) => return tracing::error!(%error, "inboxes cannot be read; what has changed in them is found later"),
    };
    let ended: HashSet<TokenId> = shared.store.ended(unix_now()).await.unwrap_or_default().into_iter().collect();
    let there: HashSet<(&str, TokenId)> = rows.iter().map(|row| (row.name.as_str(), row.token)).collect();
    inboxes.open.retain(|its, open| {
        let stays = name.is_some_and(|name| name != &**its) || there.contains(&(open.name.as_str(), open.token));
        if !stays {
            open.closed.cancel();
        }
        stays
    });
    drop(there);
    // Nobody could take what came for a token that has ended.
    for row in rows.into_iter().filter(|row| !ended.contains(&row.token)) {
        match inboxes.get(&row.name) {
            Some(open) => {
                *open.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Settings::kept(&row));
                open.wake();
            }
            None => begin(shared, Open::new(shared, &row.name, row.token, Settings::kept(&row))),
        }
    }
}

/// Opens the inbox of a name for its token, or gives it other settings. It is open when this returns, and stays so until it
/// is closed. For reserved names a token has as many as its operator wants.
///
/// # Errors
/// [`OpenInboxError`]: it is not open, or has the settings that it had.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    name: &str,
    token: TokenId,
    settings: Settings,
    is_reserved: bool,
) -> Result<(), OpenInboxError> {
    let inboxes = &shared.inboxes;
    let known = || inboxes.get(name).filter(|open| open.token == token);
    // Most clients that come say what they said before, and need not wait for a disk that others wait for.
    if known().is_some_and(|open| *open.settings() == settings) {
        return Ok(());
    }
    let _changing = inboxes.changing.lock().await;
    let known = known();
    let most = if is_reserved { u64::MAX } else { shared.limits().inboxes_per_token };
    let open_inbox = || inboxes.records.open_inbox(name, token, json(&settings), most, unix_millis());
    match open_inbox().await {
        Err(OpenInboxError::TooMany { .. }) if close_idle(shared, token).await? => open_inbox().await?,
        opened => opened?,
    }
    match known {
        Some(open) => {
            *open.settings.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
            open.wake();
        }
        None => begin(shared, Open::new(shared, name, token, settings)),
    }
    Ok(())
}

/// Has the inbox that a name of the token has, if it has one, take what this client lets in, also once it is away.
///
/// # Errors
/// [`OpenInboxError`]: it takes what it took.
pub(crate) async fn guard(
    shared: &Arc<Shared>,
    name: &str,
    token: TokenId,
    access: Option<Arc<Access>>,
) -> Result<(), OpenInboxError> {
    match shared.inboxes.get(name).filter(|open| open.token == token) {
        Some(there) => {
            let access = access.map(|access| Arc::new(access.without_secret()));
            let settings = Settings { access, ..Settings::clone(&there.settings()) };
            open(shared, name, token, settings, true).await
        }
        None => Ok(()),
    }
}

/// Opens the inboxes of a name that was reserved, or changes what is said of it. Where nothing is said of an inbox, one that is
/// the token's stays as it is.
///
/// # Errors
/// [`StoreError`], as [`open`].
pub(crate) async fn open_reserved(
    shared: &Arc<Shared>,
    name: &str,
    token: TokenId,
    how: Option<&Inbox>,
    provider: Option<&str>,
) -> Result<(), StoreError> {
    match reserved(&shared.inboxes, name, token, how, provider).await? {
        Some(settings) => open(shared, name, token, settings, true).await.map_err(Into::into),
        None => leave_to(&shared.inboxes, name, token).await,
    }
}

/// As [`open_reserved`] where no relay runs: the next one opens it.
///
/// # Errors
/// [`StoreError`]: it is not noted.
pub(crate) async fn note_reserved(
    inboxes: &Inboxes,
    name: &str,
    token: TokenId,
    how: Option<&Inbox>,
    provider: Option<&str>,
) -> Result<(), StoreError> {
    match reserved(inboxes, name, token, how, provider).await? {
        Some(settings) => {
            inboxes.records.open_inbox(name, token, json(&settings), u64::MAX, unix_millis()).await.map_err(Into::into)
        }
        None => leave_to(inboxes, name, token).await,
    }
}

/// The settings of a reserved name's inbox; none where it is to have none.
async fn reserved(
    inboxes: &Inboxes,
    name: &str,
    token: TokenId,
    how: Option<&Inbox>,
    provider: Option<&str>,
) -> Result<Option<Settings>, StoreError> {
    let there = inboxes.records.inbox(name).await?.filter(|inbox| inbox.token == token);
    if how.is_none() && there.is_none() {
        return Ok(None);
    }
    let mut settings = there.as_ref().map(Settings::kept).unwrap_or_default();
    if let Some(how) = how {
        settings.inbox = how.clone();
    }
    settings.provider = provider.map(str::to_owned);
    Ok(Some(settings))
}

/// The names of the tokens that have inboxes, by the names of those.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn owners(inboxes: &Inboxes, store: &Store) -> Result<HashMap<String, String>, StoreError> {
    let tokens = store.list_tokens(unix_now()).await?;
    let tokens: HashMap<TokenId, String> = tokens.into_iter().map(|one| (one.token.id, one.token.name)).collect();
    let all = inboxes.records.inboxes().await?;
    Ok(all.into_iter().filter_map(|inbox| Some((inbox.name, tokens.get(&inbox.token)?.clone()))).collect())
}

/// Settings as they are kept.
fn json(settings: &Settings) -> String {
    serde_json::to_string(settings).unwrap_or_default()
}

/// Closes the inbox of a token that can best be spared, because nothing is in it, nobody is there, and its name was nobody's
/// choice: those of `relay http` in many directories. Returns whether there is one.
async fn close_idle(shared: &Shared, token: TokenId) -> Result<bool, StoreError> {
    let mut inboxes = shared.inboxes.records.inboxes().await?;
    inboxes.retain(|inbox| {
        let is_empty = inbox.waiting == 0 && inbox.dead == 0;
        inbox.token == token && is_empty && Name::is_random(&inbox.name) && !shared.registry.is_bound(&inbox.name)
    });
    match inboxes.iter().min_by_key(|inbox| inbox.opened_at) {
        // What came meanwhile has been acknowledged.
        Some(idle) if shared.inboxes.records.close_empty(&idle.name).await? => {
            shared.inboxes.shut(&idle.name);
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}

/// Sees to it that a name which is a token's now has no other token's inbox.
///
/// # Errors
/// [`StoreError`]: it may still have one.
pub(crate) async fn leave_to(inboxes: &Inboxes, name: &str, token: TokenId) -> Result<(), StoreError> {
    // One of a token that has ended is not open, and is there all the same.
    let is_anothers = async || {
        let there = inboxes.records.inbox(name).await?;
        Ok::<_, StoreError>(there.is_some_and(|inbox| inbox.token != token))
    };
    if !is_anothers().await? {
        return Ok(());
    }
    let _changing = inboxes.changing.lock().await;
    if is_anothers().await? { end(inboxes, name).await.map(drop) } else { Ok(()) }
}

/// Gives the inboxes of tokens that were revoked to those that bear their names now, as their tunnel names go, too: a token
/// that has leaked can be replaced, and nothing that was accepted is lost.
///
/// # Errors
/// [`StoreError`]: they still belong to the old ones.
pub(crate) async fn hand_over(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let _changing = shared.inboxes.changing.lock().await;
    let heirs = shared.store.heirs().await?;
    start(shared, shared.inboxes.records.hand_over(heirs).await?);
    Ok(())
}

/// Takes no more webhooks for a token that has ended. What is there stays until its names are another's.
pub(crate) fn revoke(shared: &Shared, token: TokenId) {
    shared.inboxes.open.retain(|_, open| {
        let stays = open.token != token;
        if !stays {
            open.closed.cancel();
        }
        stays
    });
}

/// Closes the inbox of a name, if it is this token's where one is given, and forgets what is in it.
///
/// # Errors
/// [`StoreError`]: it is still there after the next start.
pub(crate) async fn close(inboxes: &Inboxes, name: &str, whose: Option<TokenId>) -> Result<bool, StoreError> {
    let _changing = inboxes.changing.lock().await;
    let there = inboxes.records.inbox(name).await?;
    match there.filter(|inbox| whose.is_none_or(|token| inbox.token == token)) {
        Some(_) => end(inboxes, name).await,
        None => Ok(false),
    }
}

async fn end(inboxes: &Inboxes, name: &str) -> Result<bool, StoreError> {
    inboxes.shut(name);
    let closed = inboxes.records.close_inbox(name).await;
    inboxes.note(name);
    closed
}

fn begin(shared: &Arc<Shared>, open: Arc<Open>) {
    // Its client is away, and not unknown.
    shared.registry.expect(&open.name);
    shared.inboxes.note(&open.name);
    if let Some(before) = shared.inboxes.open.insert(open.name.as_str().into(), open.clone()) {
        before.closed.cancel();
    }
    let owner = shared.clone();
    shared.spawn(async move {
        // An inbox takes webhooks as long as it is open, so that somebody must deliver them.
        while AssertUnwindSafe(delivery::run(&owner, &open)).catch_unwind().await.is_err() {
            owner.metrics.panics.inc();
            tracing::error!(name = %open.name, "the delivery of an inbox panicked and begins anew; this is a bug in the relay");
            let _ = owner.stopping.run_until_cancelled(sleep(AGAIN)).await;
        }
    });
}

/// Gives up what has waited for too long, and forgets what is over, until the relay stops.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    while shared.stopping.run_until_cancelled(sleep(SWEEP)).await.is_some() {
        // Tokens end by themselves, too.
        let ended = shared.store.ended(unix_now()).await.unwrap_or_default();
        ended.into_iter().for_each(|token| revoke(&shared, token));
        // What such a one has left grows old as well.
        for row in shared.inboxes.records.inboxes().await.unwrap_or_default() {
            let retention = Settings::kept(&row).retention(&shared.limits());
            let sweep = || async {
                let swept = shared.inboxes.records.sweep(&row.name, shared.inboxes.steady(), retention).await?;
                shared.metrics.expired(swept.expired);
                Ok(swept.more)
            };
            while more(sweep().await) && !shared.is_stopping() {}
        }
        while more(shared.inboxes.records.sweep_closed().await) && !shared.is_stopping() {}
    }
}

/// Whether there may be more where that was.
fn more(swept: Result<bool, StoreError>) -> bool {
    swept.unwrap_or_else(|error| {
        tracing::error!(%error, "an inbox could not be tidied up");
        false
    })
}
