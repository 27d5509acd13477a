//! Resume keys: what lets a client that comes back have its names at once.
//!
//! ```text
//!   Welcome ─▶ live ── the session ends ─▶ ended ── Limits::resume later ─▶ forgotten
//!                └──────── used ──────────────┴───────────────────────────▶ forgotten
//! ```
//!
//! Only a key's SHA-256 is kept and looked up, as with tokens: 256 random bits need no slow hash, and how long a look-up
//! takes tells nothing of them. There is one for each live session, and at most [`Limits::resume_keys`] for ended ones.

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

#[derive(Clone, Copy, Debug)]
struct Key {
    token: TokenId,
    session: Ulid,
}

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
            inner.keys.insert(hash, Key { token, session });
        }
        (key, hash)
    }

    /// Uses a key up. None for one that is unknown, of another token, used or expired.
    pub(super) fn take(&self, key: &[u8; 32], token: TokenId, now: Instant) -> Option<Ulid> {
        let hash = hash(key);
        let mut inner = self.lock();
        inner.purge(now, usize::MAX);
        // A stranger's guess, however good, leaves its owner's key alone.
        inner.keys.get(&hash).filter(|key| key.token == token)?;
        inner.keys.remove(&hash).map(|key| key.session)
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

    #[test]
    fn a_key_resumes_its_session_once_and_for_its_token_only() {
        let (keys, now) = (Keys::default(), Instant::now());
        let (mine, theirs) = (token(1), token(2));
        let session = Ulid::generate();
        let (key, hash) = keys.issue(mine, session, now);
        assert_ne!(key, hash, "what is kept is not the key");
        assert_eq!(keys.take(&key, theirs, now), None);
        assert_eq!(keys.take(&hash, mine, now), None);
        assert_eq!(keys.take(&key, mine, now), Some(session), "a stranger's try has not used it up");
        assert_eq!(keys.take(&key, mine, now), None);
        keys.end(hash, &Limits::default(), now);
        assert_eq!((keys.take(&key, mine, now), held(&keys)), (None, (0, 0)));
    }

    #[test]
    fn a_key_expires_some_time_after_its_session_and_not_before() {
        let limits = Limits { resume: Duration::from_secs(600), ..Limits::default() };
        let (keys, start, mine) = (Keys::default(), Instant::now(), token(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let [early, late, live] = [(); 3].map(|()| keys.issue(mine, Ulid::generate(), start));
        keys.end(early.1, &limits, at(0));
        keys.end(late.1, &limits, at(10));
        assert!(keys.take(&early.0, mine, at(599)).is_some());
        assert_eq!(keys.take(&late.0, mine, at(610)), None);
        assert!(keys.take(&live.0, mine, at(1_000_000)).is_some(), "a live session's key does not expire");
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
        assert_eq!(keys.take(&issued[6].0, mine, now), None, "the earliest have gone");
        let (theirs, _) = keys.issue(other, Ulid::generate(), now);
        keys.revoke(mine);
        assert_eq!(keys.take(&issued[9].0, mine, now), None);
        assert!(keys.take(&theirs, other, now).is_some());
    }
}
