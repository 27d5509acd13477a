//! Who answers for which public name at this moment.
//!
//! A name's slot is either bound to a tunnel of a live session, or away: its client was here and is expected back.
//! Every binding has a generation, and only the binding that is there can be removed: a session that ends late never
//! removes the one that took its place.

mod loss;
pub(crate) mod seats;
mod withheld;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use relay_protocol::access::Access;
use relay_protocol::frame::{GoAway, Reset, SessionKind};
use relay_protocol::inbox::Inbox;
use relay_protocol::link::Link;
use relay_protocol::message::Payload;
use relay_protocol::webhook::{Credentials, Webhooks};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use ulid::Ulid;

pub(crate) use self::loss::Loss;
use self::seats::Counted;
pub(crate) use self::withheld::Untold;
use crate::pace::Pace;
use crate::quota::Meter;
use crate::store::TokenId;

/// A client that has not said anything of a request for so long is asked whether it has got it, because what it has got
/// is answered at once when its link is lost. Most requests are answered sooner, and cost no question.
pub(crate) const SEEN: Duration = Duration::from_millis(200);

/// A public name that is bound to a session.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The label below the base domain, or a custom domain.
    pub name: String,
    /// The client's number for it.
    pub number: u32,
    /// What the client has said of it.
    pub asked: Arc<Asked>,
    /// Where its exchanges go.
    pub link: Link,
    /// Whose it is.
    pub token: TokenId,
    /// The session that it belongs to.
    pub session: Ulid,
    /// What that session goes on with.
    pub resumed: Option<Arc<Resumed>>,
    /// Tells this binding from every other one that this process has made.
    pub generation: u64,
    /// The client has been told that it has the tunnel, so that requests may follow.
    pub announced: AtomicBool,
    /// Why it has lost its name, where it has.
    pub(crate) lost: OnceLock<Loss>,
    /// Requests that were refused, of which it has still to be told.
    pub untold: Untold,
    /// What its token may have.
    pub(crate) meter: Arc<Meter>,
    /// Its place among the tunnels of its token.
    pub(crate) counted: Counted,
}

/// What a client says of a tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The deadline that it asks for.
    pub timeout: Option<Duration>,
    /// What its webhooks are.
    pub webhooks: Webhooks,
    /// Its inbox, where it has one.
    pub inbox: Option<Inbox>,
    /// Who may call it, where not everybody may.
    pub access: Option<Arc<Access>>,
}

/// What a session goes on with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The last session that its client has had.
    pub from: Ulid,
    /// The highest stream number that the client has seen on it, by its own account.
    pub last_stream: u32,
    /// Sessions that were to go on with that one, and whose Welcome has not arrived.
    pub unheard: Vec<Ulid>,
}

impl Resumed {
    /// Whether it goes on with this session.
    pub(crate) fn goes_on_with(&self, session: Ulid) -> bool {
        self.from == session || self.unheard.contains(&session)
    }

    /// Whether the client has not seen this stream of this session.
    pub(crate) fn is_unseen(&self, session: Ulid, stream: u32) -> bool {
        (self.from == session && self.last_stream < stream) || self.unheard.contains(&session)
    }
}

/// All names, by their label or custom domain in lower case.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: DashMap<Box<str>, Arc<Slot>>,
    generations: AtomicU64,
}

/// Names that are remembered as away, or bound. Beyond it those that are away become unknown: their requests are
/// answered with 404 and not with 503.
const MAX_SLOTS: usize = 100_000;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Slot {
    tunnel: Mutex<Option<Arc<Tunnel>>>,
    known: Mutex<Known>,
    changed: Notify,
    waiters: AtomicU64,
    /// Its requests in a second, where its client has set a limit.
    pace: Pace,
    /// Those who log in there.
    logins: Pace,
}

/// What is known of a name while nobody has it.
#[derive(Debug, Default)]
struct Known {
    left: Option<Left>,
    /// What the operator has said who reserved it for a token.
    reserved: Option<(TokenId, Arc<Asked>)>,
    /// Who may call it, by the last client's word. That holds for as long as the name is its token's, also where the client
    /// has said goodbye: nobody is let in because somebody has gone.
    access: Option<Arc<Access>>,
}

/// What the last client has said of its tunnel, until its session cannot be resumed any more. Secrets may be among it.
#[derive(Debug)]
struct Left {
    token: TokenId,
    asked: Arc<Asked>,
    until: Instant,
}

/// What a request finds at a name.
#[derive(Debug)]
pub(crate) enum Found {
    /// A tunnel.
    Tunnel(Arc<Tunnel>),
    /// The client is away. What is known of the tunnel, and whose it is.
    Away(Option<(TokenId, Arc<Asked>)>),
    /// Nobody has ever asked for that name, or it was given up.
    Nothing,
}

impl Registry {
    /// A number for a new binding.
    pub(crate) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Relaxed) + 1
    }

    /// Binds a tunnel to its name in the place of this very binding, and returns whether the old one's client has been
    /// told that it has the name, and so must be told that it has lost it. None when another binding is there by now.
    pub(crate) fn replace(&self, old: &Tunnel, tunnel: Arc<Tunnel>) -> Option<bool> {
        // The entry is held until the tunnel is in it, so that nobody can forget the slot in between.
        let slot = self.slots.entry(tunnel.name.as_str().into()).or_default();
        let mut current = slot.lock();
        if current.as_ref().is_none_or(|current| current.generation != old.generation) {
            return None;
        }
        slot.take(&mut current, tunnel);
        // Nobody else has taken it out of its place.
        let _ = old.lost.set(Loss::TakenOver);
        Some(old.announced.load(Acquire))
    }

    /// Lets requests reach a tunnel, whose client knows of it now. False when another binding has taken its place before
    /// that: its client must be told.
    pub(crate) fn announce(&self, tunnel: &Tunnel) -> bool {
        let Some(slot) = self.slot(&tunnel.name) else { return false };
        let current = slot.lock();
        // Under the lock, so that whoever replaces it and whoever announces it agree on who tells the client.
        tunnel.announced.store(true, Release);
        let is_current = current.as_ref().is_some_and(|current| current.generation == tunnel.generation);
        drop(current);
        slot.changed.notify_waiters();
        is_current
    }

    /// Whether somebody has the name, or has had it.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.slots.contains_key(name)
    }

    /// Whether some session, alive or not, has the name.
    pub(crate) fn is_bound(&self, name: &str) -> bool {
        self.slot(name).is_some_and(|slot| slot.lock().is_some())
    }

    /// Whether `tunnel` could be bound without replacing a live one, and binds it if so.
    ///
    /// # Errors
    /// The tunnel that has the name now.
    pub(crate) fn bind_if_free(&self, tunnel: Arc<Tunnel>) -> Result<(), Arc<Tunnel>> {
        let slot = self.slots.entry(tunnel.name.as_str().into()).or_default();
        {
            let mut current = slot.lock();
            match &*current {
                Some(other) if other.link.is_accepting() => return Err(other.clone()),
                _ => slot.take(&mut current, tunnel),
            }
        }
        Ok(())
    }

    /// Marks the name as away, if this very binding still has it. What its client has said of it is known until `until`,
    /// where that one may come back.
    pub(crate) fn unbind(&self, tunnel: &Tunnel, until: Option<Instant>) {
        if let Some(slot) = self.slot(&tunnel.name) {
            let mut current = slot.lock();
            if current.as_ref().is_some_and(|current| current.generation == tunnel.generation) {
                *current = None;
                let mut known = slot.known();
                known.left = until.map(|until| Left::by(tunnel, until));
                known.remember(tunnel);
            }
        }
        if self.slots.len() > MAX_SLOTS {
            // One that is bound and not yet announced stays, too.
            self.slots.retain(|_, slot| slot.lock().is_some());
        }
    }

    /// Takes the name from whoever has it now, if `is_it`, and tells its client why, if that knows of it by now; else whoever
    /// [announces](Self::announce) it does. The tunnel that had it.
    pub(crate) fn evict(&self, name: &str, loss: Loss, is_it: impl FnOnce(&Tunnel) -> bool) -> Option<Arc<Tunnel>> {
        let slot = self.slot(name)?;
        let mut current = slot.lock();
        let tunnel = current.take_if(|tunnel| is_it(tunnel))?;
        slot.known().left = None;
        // Nobody else has taken it out of its place.
        let _ = tunnel.lost.set(loss);
        let is_told = tunnel.announced.load(Acquire);
        drop(current);
        tunnel.counted.end();
        if is_told {
            tunnel.tell_lost(loss);
        }
        if loss == Loss::Blocked {
            // Whoever has lost a name otherwise may end what is under way.
            tunnel.link.cut(tunnel.number, Reset::Cancelled);
        }
        Some(tunnel)
    }

    /// Forgets a name altogether, if this very binding still has it, or nobody has.
    pub(crate) fn forget(&self, name: &str, generation: Option<u64>) {
        self.slots.remove_if(name, |_, slot| match &*slot.lock() {
            Some(current) => generation == Some(current.generation),
            None => true,
        });
    }

    /// Expects a client at `name`, which is then away and not unknown.
    pub(crate) fn expect(&self, name: &str) {
        self.slots.entry(name.into()).or_default();
    }

    /// Expects a client of that token at a name that is reserved for it, and for the webhooks of a provider, if for any.
    pub(crate) fn reserve(&self, name: &str, token: TokenId, provider: Option<&str>) {
        let reserved = provider.map(|id| {
            let webhooks = Webhooks { provider: Some(id.to_owned()), handshake: true, ..Webhooks::default() };
            (token, Arc::new(Asked { webhooks, ..Asked::default() }))
        });
        self.slots.entry(name.into()).or_default().known().reserved = reserved;
    }

    /// A name belongs to nobody any more.
    pub(crate) fn release(&self, name: &str) {
        if let Some(slot) = self.slot(name) {
            *slot.known() = Known::default();
        }
    }

    /// Knows nothing any more of what a token has said, or was said of it.
    pub(crate) fn revoke(&self, token: TokenId) {
        for slot in self.slots.iter() {
            let mut known = slot.known();
            known.left.take_if(|left| left.token == token);
            known.reserved.take_if(|(owner, _)| *owner == token);
        }
    }

    /// Forgets what clients have said whose time is over.
    pub(crate) fn sweep(&self, now: Instant) {
        for slot in self.slots.iter() {
            slot.known().left.take_if(|left| left.until <= now);
        }
    }

    /// What is at `name` now.
    pub(crate) fn find(&self, name: &str) -> Found {
        match self.slot(name) {
            None => Found::Nothing,
            Some(slot) => match slot.online() {
                Some(tunnel) => Found::Tunnel(tunnel),
                None => Found::Away(slot.known().asked(Instant::now())),
            },
        }
    }

    /// Who may call the tunnel of that name, whose client is away, by that one's word.
    pub(crate) fn left_access(&self, name: &str) -> Option<Arc<Access>> {
        self.slot(name)?.known().access.clone()
    }

    /// Whether one more request may come to that name now, which counts then, of so many in a second.
    pub(crate) fn paces(&self, name: &str, rate: u32, now: Instant) -> bool {
        let slot = self.slot(name).unwrap_or_else(|| self.slots.entry(name.into()).or_default().clone());
        slot.pace.admits(rate, now)
    }

    /// Whether one more person may log in at that name now, who counts then, of so many in a minute.
    pub(crate) fn paces_login(&self, name: &str, rate: u32, now: Instant) -> bool {
        self.slot(name).is_some_and(|slot| slot.logins.admits_in(MINUTE, rate, now))
    }

    /// Waits for the client of `name` to come back, until `deadline`. At most `waiters` requests wait at one name.
    pub(crate) async fn wait(&self, name: &str, deadline: Instant, waiters: u64) -> Option<Arc<Tunnel>> {
        let slot = self.slot(name)?;
        let _waiter = Waiter::enter(&slot, waiters)?;
        loop {
            let changed = slot.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no binding can slip in between.
            changed.as_mut().enable();
            if let Some(tunnel) = slot.online() {
                return Some(tunnel);
            }
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// Names that are bound to a live session.
    pub(crate) fn online(&self) -> usize {
        self.slots.iter().filter(|slot| slot.online().is_some()).count()
    }

    /// What those are bound to.
    pub(crate) fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.slots.iter().filter_map(|slot| slot.online()).collect()
    }

    fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.get(name).map(|slot| slot.value().clone())
    }
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Tunnel>>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the name, whose lock that is, to this tunnel. Who may call by the word of the one before, if there is one, holds
    /// until this one has been announced: its session may be lost before.
    fn take(&self, current: &mut Option<Arc<Tunnel>>, tunnel: Arc<Tunnel>) {
        let mut known = self.known();
        known.left = None;
        if let Some(old) = current.replace(tunnel) {
            known.remember(&old);
        }
    }

    /// The tunnel, unless its session takes no more requests.
    fn online(&self) -> Option<Arc<Tunnel>> {
        self.lock().clone().filter(|tunnel| tunnel.announced.load(Acquire) && tunnel.link.is_accepting())
    }
}

impl Left {
    /// Secrets stay only where a handshake may need them.
    fn by(tunnel: &Tunnel, until: Instant) -> Self {
        let mut asked = tunnel.asked.clone();
        if let Some(access) = asked.access.as_ref().filter(|access| access.oidc.is_some()) {
            let access = Arc::new(access.without_secret());
            Arc::make_mut(&mut asked).access = Some(access);
        }
        if !asked.webhooks.handshake {
            Arc::make_mut(&mut asked).webhooks.credentials = Credentials::default();
        }
        Self { token: tunnel.token, asked, until }
    }
}

impl Known {
    /// Who may call while nobody has the name. A tunnel that nobody could call yet says nothing of that.
    fn remember(&mut self, gone: &Tunnel) {
        if gone.announced.load(Acquire) {
            self.access = gone.asked.access.as_deref().map(|access| Arc::new(access.without_secret()));
        }
    }

    /// What the client has said, which knows best; but whom its handshakes are from, the operator may know alone.
    fn asked(&self, now: Instant) -> Option<(TokenId, Arc<Asked>)> {
        let left = self.left.as_ref().filter(|left| left.until > now);
        let left = left.map(|left| (left.token, left.asked.clone()));
        let answers = left.clone().filter(|(_, asked)| asked.webhooks.handshake);
        answers.or_else(|| self.reserved.clone()).or(left)
    }
}

/// Queues a session message. One that cannot be queued goes to a session that is ending.
pub(crate) fn send(link: &Link, kind: SessionKind, message: &impl Payload) {
    match message.to_bytes() {
        Ok(payload) => drop(link.send_message(kind, payload)),
        Err(error) => link.go_away(GoAway::Internal, false, &error.to_string()),
    }
}

struct Waiter<'a>(&'a Slot);

impl<'a> Waiter<'a> {
    fn enter(slot: &'a Slot, most: u64) -> Option<Self> {
        let entered = Self(slot);
        (slot.waiters.fetch_add(1, Relaxed) < most).then_some(entered)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Relaxed);
    }
}
