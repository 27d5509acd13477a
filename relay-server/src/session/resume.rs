//! Resume keys: what lets a client that comes back have its names at once.
//!
//! ```text
//!   Welcome ─▶ live ── the session ends ─▶ ended ── Limits::resume later ─▶ forgotten
//!                └──────── used ──────────────┴── the next Welcome is heard, or used too often ─▶ forgotten
//! ```
//!
//! Only a key's SHA-256 is kept and looked up, as with tokens: 256 random bits need no slow hash, and how long a look-up
//! takes tells nothing of them. A client that does not hear the Welcome of the session that it goes on with has no other
//! key than the one it has used, and uses that again. There is one for each live session, and at most
//! [`Limits::resume_keys`] for ended ones, of which no token can take what another one needs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::{digest, rand};
use tokio::time::Instant;
use ulid::Ulid;

use crate::limits::Limits;
use crate::store::TokenId;

/// The keys that can still be used.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tokens: HashMap<TokenId, OfToken>,
    /// Keys of ended sessions of all tokens.
    ended: usize,
}

/// The keys of one token.
#[derive(Debug, Default)]
struct OfToken {
    keys: HashMap<Hash, Key>,
    /// Those of ended sessions and when they expire, in that order.
    ended: VecDeque<(Instant, Hash)>,
}

/// What is kept of a key.
pub(super) type Hash = [u8; 32];

#[derive(Debug)]
struct Key {
    session: Ulid,
    /// The sessions that it was used for, and those that took the place of its own one, late, with the key before it.
    used: Vec<Ulid>,
    /// It is among those of ended sessions.
    has_ended: bool,
}

/// How often a key can be used by a client that never hears the Welcome: more often than a network that brings the Hello
/// and not its answer happens to. Each such session ends when the next one comes.
const USES: usize = 8;

impl Keys {
    /// A fresh key for a live session, and its hash for [`Self::end`].
    pub(super) fn issue(&self, token: TokenId, session: Ulid, now: Instant) -> ([u8; 32], Hash) {
        let mut key = [0; 32];
        // Without randomness there is no TLS either, and such a key resumes nothing.
        let is_random = rand::fill(&mut key).is_ok();
        let hash = hash(&key);
        self.lock().of(token, now, |of| {
            if is_random {
                of.keys.insert(hash, Key { session, used: Vec::new(), has_ended: false });
            }
        });
        (key, hash)
    }

    /// Uses a key for a session. Returns its hash, the session that it resumes, and those that it was used for before, of
    /// which the client has not heard. None for a key that is unknown, of another token, expired, used for a session
    /// that the client has heard of, or used too often.
    pub(super) fn take(
        &self,
        key: &[u8; 32],
        token: TokenId,
        session: Ulid,
        is_heard: impl Fn(Ulid) -> bool,
        now: Instant,
    ) -> Option<(Hash, Ulid, Vec<Ulid>)> {
        let hash = hash(key);
        // A stranger's guess, however good, leaves its owner's key alone.
        self.lock().of(token, now, |of| {
            let key = of.keys.get_mut(&hash)?;
            if key.used.len() >= USES || key.used.iter().any(|session| is_heard(*session)) {
                of.forget(hash);
                return None;
            }
            let (from, unheard) = (key.session, key.used.clone());
            key.used.push(session);
            // It takes the place of these, whose client may have heard of one after all, and come with that one's key.
            if !unheard.is_empty() {
                let theirs = of.keys.values_mut().filter(|key| unheard.contains(&key.session));
                theirs.for_each(|key| key.used.push(session));
            }
            Some((hash, from, unheard))
        })
    }

    /// The client has heard of the session that it has used a key for, and so has another.
    pub(super) fn spend(&self, token: TokenId, hash: Hash, now: Instant) {
        self.lock().of(token, now, |of| of.forget(hash));
    }

    /// The session of a key has ended, or one that it was used for, so that the key will, too: some time after the last of
    /// them. `leave` hears whether it can be used until then, and
    /// leaves behind what is of use for so long. No [`Self::revoke`] comes in between: what it does not hear of is there
    /// to be found by whoever revokes.
    pub(super) fn end(&self, token: TokenId, hash: Hash, limits: &Limits, now: Instant, leave: impl FnOnce(bool)) {
        let mut inner = self.lock();
        inner.of(token, now, |of| {
            let had_ended = of.keys.get_mut(&hash).map(|key| std::mem::replace(&mut key.has_ended, true));
            if had_ended == Some(true) {
                of.ended.retain(|(_, ended)| *ended != hash);
            }
            if had_ended.is_some() {
                of.ended.push_back((now + limits.resume, hash));
            }
            leave(had_ended.is_some());
        });
        inner.shrink(token, limits.resume_keys, now);
    }

    /// A token's keys die with it.
    pub(super) fn revoke(&self, token: TokenId, now: Instant) {
        self.lock().of(token, now, |of| *of = OfToken::default());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Changes the keys of a token, without those that have expired.
    fn of<R>(&mut self, token: TokenId, now: Instant, change: impl FnOnce(&mut OfToken) -> R) -> R {
        let of = self.tokens.entry(token).or_default();
        self.ended -= of.ended.len();
        of.expire(now);
        let result = change(of);
        self.ended += of.ended.len();
        if of.keys.is_empty() {
            self.tokens.remove(&token);
        }
        result
    }

    /// Forgets keys of ended sessions until there are no more than `most`: those that have expired, and then of whichever
    /// token has the most, the earliest. `last` is the token whose session has ended just now.
    fn shrink(&mut self, last: TokenId, most: usize, now: Instant) {
        if self.ended <= most {
            return;
        }
        self.tokens.retain(|_, of| {
            of.expire(now);
            !of.keys.is_empty()
        });
        self.ended = self.tokens.values().map(|of| of.ended.len()).sum();
        while self.ended > most {
            let fullest = self.tokens.iter_mut().max_by_key(|(token, of)| (of.ended.len(), **token == last));
            let Some(of) = fullest.map(|(_, of)| of) else { return };
            if let Some((_, hash)) = of.ended.pop_front() {
                of.keys.remove(&hash);
            }
            self.ended -= 1;
        }
    }
}

impl OfToken {
    fn expire(&mut self, now: Instant) {
        while let Some((until, hash)) = self.ended.front()
            && *until <= now
        {
            self.keys.remove(hash);
            self.ended.pop_front();
        }
    }

    fn forget(&mut self, hash: Hash) {
        self.keys.remove(&hash);
        self.ended.retain(|(_, ended)| *ended != hash);
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
        assert_eq!(inner.tokens.values().map(|of| of.ended.len()).sum::<usize>(), inner.ended);
        (inner.tokens.values().map(|of| of.keys.len()).sum(), inner.ended)
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
        keys.end(mine, hash, &Limits::default(), now, drop);
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
        keys.end(mine, hash, &Limits::default(), now, drop);
        keys.spend(mine, hash, now);
        assert_eq!(keys.take(&key, mine, second, |_| false, now), None);
        assert_eq!(held(&keys), (0, 0));
    }

    /// An attempt comes late and takes the place of a session whose client has its Welcome by then.
    #[test]
    fn a_key_resumes_what_has_taken_the_place_of_its_session_too() {
        let (keys, now, mine) = (Keys::default(), Instant::now(), token(1));
        let [first, second, late, third] = [(); 4].map(|()| Ulid::generate());
        let (before, _) = keys.issue(mine, first, now);
        assert!(keys.take(&before, mine, second, |_| false, now).is_some());
        let (key, hash) = keys.issue(mine, second, now);
        let (of_late, _) = keys.issue(mine, late, now);
        assert!(keys.take(&before, mine, late, |_| false, now).is_some());
        assert_eq!(keys.take(&key, mine, third, |_| false, now), Some((hash, second, vec![late])));
        assert_eq!(keys.take(&key, mine, Ulid::generate(), |id| id == late, now), None, "that one has a client");
        let taken = keys.take(&of_late, mine, Ulid::generate(), |_| false, now);
        assert_eq!(taken.map(|(_, from, unheard)| (from, unheard)), Some((late, vec![third])));
    }

    #[test]
    fn a_key_that_never_brings_a_welcome_is_not_used_for_ever() {
        let (keys, now, mine) = (Keys::default(), Instant::now(), token(1));
        let (key, _) = keys.issue(mine, Ulid::generate(), now);
        let uses = (0..100).map_while(|_| keys.take(&key, mine, Ulid::generate(), |_| false, now));
        let unheard: Vec<_> = uses.map(|(_, _, unheard)| unheard.len()).collect();
        assert_eq!(unheard, (0..USES).collect::<Vec<_>>(), "it ends all those that it was used for before");
        assert_eq!(held(&keys), (0, 0));
    }

    #[test]
    fn a_key_expires_some_time_after_its_session_and_not_before() {
        let limits = Limits { resume: Duration::from_secs(600), ..Limits::default() };
        let (keys, start, mine) = (Keys::default(), Instant::now(), token(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let [early, late, live] = [(); 3].map(|()| keys.issue(mine, Ulid::generate(), start));
        keys.end(mine, early.1, &limits, at(0), drop);
        keys.end(mine, late.1, &limits, at(10), drop);
        assert!(take(&keys, &early.0, mine, at(599)).is_some());
        assert_eq!(take(&keys, &late.0, mine, at(610)), None);
        assert!(take(&keys, &live.0, mine, at(1_000_000)).is_some(), "a live session's key does not expire");
        keys.spend(mine, live.1, at(1_000_000));
        assert_eq!(held(&keys), (0, 0));
        keys.end(mine, keys.issue(mine, Ulid::generate(), at(0)).1, &limits, at(0), drop);
        keys.issue(mine, Ulid::generate(), at(600));
        assert_eq!(held(&keys), (1, 0), "a new one makes those go whose time is over");
    }

    /// That of the session before, and each that was lost before its Welcome.
    #[test]
    fn a_key_that_several_sessions_have_used_expires_once_after_the_last_of_them() {
        let limits = Limits { resume: Duration::from_secs(600), ..Limits::default() };
        let (keys, start, mine) = (Keys::default(), Instant::now(), token(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let (key, hash) = keys.issue(mine, Ulid::generate(), start);
        for seconds in [0, 1, 300] {
            keys.end(mine, hash, &limits, at(seconds), |is_known| assert!(is_known));
            assert_eq!(held(&keys), (1, 1));
        }
        assert!(take(&keys, &key, mine, at(899)).is_some());
        keys.end(mine, hash, &limits, at(900), |is_known| assert!(!is_known));
        assert_eq!(held(&keys), (0, 0));
    }

    /// What a session leaves behind, secrets among it, must not outlive a token that is revoked just then.
    #[test]
    fn a_token_ends_before_or_after_what_a_session_leaves_behind() {
        let (keys, now, mine) = (Keys::default(), Instant::now(), token(1));
        let mut left = None;
        let (_, hash) = keys.issue(mine, Ulid::generate(), now);
        keys.end(mine, hash, &Limits::default(), now, |is_known| {
            assert!(keys.0.try_lock().is_err(), "nobody can revoke it meanwhile");
            left = Some(is_known);
        });
        assert_eq!(left, Some(true));
        let (_, hash) = keys.issue(mine, Ulid::generate(), now);
        keys.revoke(mine, now);
        keys.end(mine, hash, &Limits::default(), now, |is_known| left = Some(is_known));
        assert_eq!(left, Some(false));
    }

    #[test]
    fn keys_die_with_their_token() {
        let (keys, now) = (Keys::default(), Instant::now());
        let [(mine, ended), (theirs, _)] = [token(1), token(2)].map(|token| keys.issue(token, Ulid::generate(), now));
        keys.end(token(1), ended, &Limits::default(), now, drop);
        keys.revoke(token(1), now);
        assert_eq!(take(&keys, &mine, token(1), now), None);
        assert!(take(&keys, &theirs, token(2), now).is_some());
        assert_eq!(held(&keys), (1, 0));
    }

    /// Whoever comes and goes all the time takes room from himself, however much of it there is.
    #[test]
    fn keys_are_bounded_and_no_token_takes_those_of_another() {
        let limits = Limits { resume_keys: 10, ..Limits::default() };
        let (keys, now) = (Keys::default(), Instant::now());
        let ended = |number: i64, count: usize| -> Vec<[u8; 32]> {
            let all = (0..count).map(|_| {
                let (key, hash) = keys.issue(token(number), Ulid::generate(), now);
                keys.end(token(number), hash, &limits, now, drop);
                key
            });
            all.collect()
        };
        let first = ended(1, 3);
        let busy = ended(2, 1000);
        assert_eq!(held(&keys), (10, 10));
        let is_there = |number, key| take(&keys, key, token(number), now).is_some();
        assert!(first.iter().all(|key| is_there(1, key)), "the earliest of all, and not the busy token's");
        assert!(busy[993..].iter().all(|key| is_there(2, key)) && !is_there(2, &busy[992]));
        // Late as they come, they have their part.
        let late = ended(3, 3);
        assert_eq!(held(&keys), (10, 10));
        assert!(late.iter().all(|key| is_there(3, key)));
        let many: Vec<_> = (4..20).map(|number| (number, ended(number, 1))).collect();
        assert_eq!(held(&keys), (10, 10));
        let (number, key) = many.last().unwrap();
        assert!(!is_there(*number, &key[0]), "where nobody has more than one, there is no room for another");
    }

    /// Those that have expired make room, whosever they are.
    #[test]
    fn keys_that_have_expired_take_nobodys_place() {
        let limits = Limits { resume_keys: 4, resume: Duration::from_secs(600), ..Limits::default() };
        let (keys, start) = (Keys::default(), Instant::now());
        let end = |number, at| {
            let (key, hash) = keys.issue(token(number), Ulid::generate(), at);
            keys.end(token(number), hash, &limits, at, drop);
            key
        };
        let later = start + Duration::from_secs(600);
        let _expired = [1, 2, 3].map(|number| end(number, start));
        let (one, two) = (end(4, later), end(4, later));
        assert!([one, two].iter().all(|key| take(&keys, key, token(4), later).is_some()));
        assert_eq!(held(&keys), (2, 2));
    }
}
