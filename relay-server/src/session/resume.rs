//! Resume keys: what lets a client that comes back have its names at once.
//!
//! ```text
//!   Welcome ─▶ live ── the session ends ─▶ ended ── Limits::resume later ─▶ forgotten
//!                └──────── used ──────────────┴── the next Welcome is heard ─▶ forgotten
//! ```
//!
//! Only a key's SHA-256 is kept and looked up, as with tokens: 256 random bits need no slow hash, and how long a look-up
//! takes tells nothing of them. A client that does not hear the Welcome of the session that it goes on with has no other
//! key than the one it has used, and uses that again. There is one for each live session, and at most [`Limits::resume_keys`] for ended ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::{digest, rand};
use tokio::time::Instant;
use ulid::Ulid;

use crate::config::Limits;
use crate::store::TokenId;

/// The keys that can still be used.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    keys: HashMap<Hash, Key>,
    /// Keys of ended sessions and when they expire, in that order. Some have been used since.
    ended: VecDeque<(Instant, Hash)>,
}

/// What is kept of a key.
pub(super) type Hash = [u8; 32];

#[derive(Debug)]
struct Key {
    token: TokenId,
    session: Ulid,
    /// The sessions that it was used for.
    used: Vec<Ulid>,
}

/// Sessions that one key can be used for, whose Welcomes have not arrived. Of more the earliest are forgotten, and what is
/// under way there ends.
const UNHEARD: usize = 8;

impl Keys {
    /// A fresh key for a live session, and its hash for [`Self::end`].
    pub(super) fn issue(&self, token: TokenId, session: Ulid, now: Instant) -> ([u8; 32], Hash) {
        let mut key = [0; 32];
        // Without randomness there is no TLS either, and such a key resumes nothing.
        let is_random = rand::fill(&mut key).is_ok();
        let hash = hash(&key);
        let mut inner = self.lock();
        inner.purge(now, usize::MAX);
        if is_random {
            inner.keys.insert(hash, Key { token, session, used: Vec::new() });
        }
        (key, hash)
    }

    /// Uses a key for a session. Returns its hash, the session that it resumes, and those that it was used for before, of
    /// which the client has not heard. None for a key that is unknown, of another token, expired, or used for a session
    /// that the client has heard of.
    pub(super) fn take(
        &self,
        key: &[u8; 32],
        token: TokenId,
        session: Ulid,
        is_heard: impl Fn(Ulid) -> bool,
        now: Instant,
    ) -> Option<(Hash, Ulid, Vec<Ulid>)> {
        let hash = hash(key);
        let mut inner = self.lock();
        inner.purge(now, usize::MAX);
        // A stranger's guess, however good, leaves its owner's key alone.
        let key = inner.keys.get_mut(&hash).filter(|key| key.token == token)?;
        if key.used.iter().any(|session| is_heard(*session)) {
            inner.keys.remove(&hash);
            return None;
        }
        let unheard = key.used.clone();
        key.used.push(session);
        if key.used.len() > UNHEARD {
            key.used.remove(0);
        }
        Some((hash, key.session, unheard))
    }

    /// The client has heard of the session that it has used a key for, and so has another.
    pub(super) fn spend(&self, hash: Hash) {
        self.lock().keys.remove(&hash);
    }

    /// The session of a key has ended, so that the key will, too.
    pub(super) fn end(&self, hash: Hash, limits: &Limits, now: Instant) {
        let mut inner = self.lock();
        if inner.keys.contains_key(&hash) {
            inner.ended.push_back((now + limits.resume, hash));
        }
        inner.purge(now, limits.resume_keys);
    }

    /// A token's keys die with it.
    pub(super) fn revoke(&self, token: TokenId) {
        self.lock().keys.retain(|_, key| key.token != token);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets the keys that have expired, and the earliest ones beyond `most`.
    fn purge(&mut self, now: Instant, most: usize) {
        while let Some((until, hash)) = self.ended.front()
            && (*until <= now || self.ended.len() > most)
        {
            self.keys.remove(hash);
            self.ended.pop_front();
        }
    }
}

fn hash(key: &[u8; 32]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::time::Duration;

    use super::*;

    fn token(number: i64) -> TokenId {
        serde_json::from_value(number.into()).unwrap()
    }

    fn held(keys: &Keys) -> (usize, usize) {
        let inner = keys.lock();
        (inner.keys.len(), inner.ended.len())
    }

    /// The session that a key resumes for a session of which its client hears.
    fn take(keys: &Keys, key: &[u8; 32], token: TokenId, now: Instant) -> Option<Ulid> {
        let (_, from, _) = keys.take(key, token, Ulid::generate(), |_| true, now)?;
        Some(from)
    }

    #[test]
    fn a_key_resumes_its_session_once_and_for_its_token_only() {
        let (keys, now) = (Keys::default(), Instant::now());
        let (mine, theirs) = (token(1), token(2));
        let session = Ulid::generate();
        let (key, hash) = keys.issue(mine, session, now);
        assert_ne!(key, hash, "what is kept is not the key");
        assert_eq!(take(&keys, &key, theirs, now), None);
        assert_eq!(take(&keys, &hash, mine, now), None);
        assert_eq!(take(&keys, &key, mine, now), Some(session), "a stranger's try has not used it up");
        assert_eq!(take(&keys, &key, mine, now), None);
        keys.end(hash, &Limits::default(), now);
        assert_eq!((take(&keys, &key, mine, now), held(&keys)), (None, (0, 0)));
    }

    #[test]
    fn a_key_is_used_again_until_its_client_has_heard_of_the_next_one() {
        let (keys, now, mine) = (Keys::default(), Instant::now(), token(1));
        let [first, second, third] = [(); 3].map(|()| Ulid::generate());
        let (key, hash) = keys.issue(mine, first, now);
        assert_eq!(keys.take(&key, mine, second, |_| false, now), Some((hash, first, Vec::new())));
        assert_eq!(keys.take(&key, mine, third, |_| false, now), Some((hash, first, vec![second])));
        assert_eq!(keys.take(&key, mine, Ulid::generate(), |id| id == third, now), None);
        assert_eq!(keys.take(&key, mine, Ulid::generate(), |_| false, now), None, "it was used up by then");
        let (key, hash) = keys.issue(mine, first, now);
        for used in 0..20 {
            let (_, _, unheard) = keys.take(&key, mine, Ulid::generate(), |_| false, now).unwrap();
            assert_eq!(unheard.len(), used.min(UNHEARD));
        }
        keys.spend(hash);
        assert_eq!(keys.take(&key, mine, second, |_| false, now), None);
        assert_eq!(held(&keys), (0, 0));
    }

    #[test]
    fn a_key_expires_some_time_after_its_session_and_not_before() {
        let limits = Limits { resume: Duration::from_secs(600), ..Limits::default() };
        let (keys, start, mine) = (Keys::default(), Instant::now(), token(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let [early, late, live] = [(); 3].map(|()| keys.issue(mine, Ulid::generate(), start));
        keys.end(early.1, &limits, at(0));
        keys.end(late.1, &limits, at(10));
        assert!(take(&keys, &early.0, mine, at(599)).is_some());
        assert_eq!(take(&keys, &late.0, mine, at(610)), None);
        assert!(take(&keys, &live.0, mine, at(1_000_000)).is_some(), "a live session's key does not expire");
        keys.spend(live.1);
        assert_eq!(held(&keys), (0, 0));
        keys.end(keys.issue(mine, Ulid::generate(), at(0)).1, &limits, at(0));
        keys.issue(mine, Ulid::generate(), at(600));
        assert_eq!(held(&keys), (1, 0), "a new one makes those go whose time is over");
    }

    #[test]
    fn keys_are_bounded_and_die_with_their_token() {
        let limits = Limits { resume_keys: 3, ..Limits::default() };
        let (keys, now) = (Keys::default(), Instant::now());
        let (mine, other) = (token(1), token(2));
        let issued: Vec<_> = (0..10).map(|_| keys.issue(mine, Ulid::generate(), now)).collect();
        issued.iter().for_each(|(_, hash)| keys.end(*hash, &limits, now));
        assert_eq!(held(&keys), (3, 3));
        assert_eq!(take(&keys, &issued[6].0, mine, now), None, "the earliest have gone");
        let (theirs, _) = keys.issue(other, Ulid::generate(), now);
        keys.revoke(mine);
        assert_eq!(take(&keys, &issued[9].0, mine, now), None);
        assert!(take(&keys, &theirs, other, now).is_some());
    }
}
