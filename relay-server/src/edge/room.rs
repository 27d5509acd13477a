//! Room for the bodies that are held until their signatures are judged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::places::block_of;
use crate::store::TokenId;

/// So many bytes of all bodies together. The tunnels of one token never take more of them than they leave to all others:
/// half where they are alone, and a third each of two that want as much. So one token that strangers flood, or that floods
/// itself, leaves the next a quarter of all; each further one at the same time halves that. Bytes that every request may
/// have do not count, and for them there are so many bodies of each token, an eighth of which may be of one sender.
#[derive(Debug)]
pub(crate) struct Room {
    inner: Mutex<Inner>,
    bodies: usize,
}

#[derive(Debug)]
struct Inner {
    free: usize,
    taken: HashMap<TokenId, Taken>,
}

/// What the bodies of one token take.
#[derive(Debug, Default)]
struct Taken {
    bodies: usize,
    bytes: usize,
    /// The bodies of each sender.
    of: HashMap<Option<IpAddr>, usize>,
}

/// What one body takes, which is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    whose: TokenId,
    from: Option<IpAddr>,
    bytes: usize,
}

impl Room {
    /// Room for so many bytes, and of each token for so many bodies.
    pub(crate) fn new(bytes: usize, bodies: usize) -> Arc<Self> {
        let inner = Inner { free: bytes, taken: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(inner), bodies })
    }

    /// The share of a body that comes to a tunnel of this token from this address, which has no bytes yet; those whose
    /// address is not known are one sender. None where there are too many.
    pub(crate) fn share(self: &Arc<Self>, whose: TokenId, from: Option<IpAddr>) -> Option<Share> {
        let from = from.map(block_of);
        let mut inner = self.lock();
        let taken = inner.taken.entry(whose).or_default();
        let of_sender = taken.of.get(&from).copied().unwrap_or_default();
        if taken.bodies >= self.bodies || of_sender >= self.bodies.div_ceil(8) {
            return None;
        }
        taken.bodies += 1;
        taken.of.insert(from, of_sender + 1);
        Some(Share { room: self.clone(), whose, from, bytes: 0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Sees to it that so many bytes have their room. False where there is none.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let mut inner = self.room.lock();
        let Inner { free, taken } = &mut *inner;
        let taken = taken.entry(self.whose).or_default();
        let all = taken.bytes.saturating_add(more);
        let Some(left) = free.checked_sub(more).filter(|left| all <= *left) else { return false };
        (*free, taken.bytes, self.bytes) = (left, all, bytes);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inner = self.room.lock();
        inner.free += self.bytes;
        let taken = inner.taken.entry(self.whose).or_default();
        taken.bytes -= self.bytes;
        taken.bodies -= 1;
        if let Entry::Occupied(mut of_sender) = taken.of.entry(self.from) {
            *of_sender.get_mut() -= 1;
            if *of_sender.get() == 0 {
                of_sender.remove();
            }
        }
        if taken.bodies == 0 {
            inner.taken.remove(&self.whose);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn token(number: i64) -> TokenId {
        serde_json::from_value(number.into()).unwrap()
    }

    #[test]
    fn nobody_takes_more_than_is_left_for_others() {
        let room = Room::new(60, 32);
        // As many bodies of ten bytes as fit.
        let shares = |whose: i64| -> Vec<Share> {
            let bodies = std::iter::repeat_with(|| room.share(token(whose), None));
            bodies.map_while(|share| share.and_then(|mut share| share.grow(10).then_some(share))).collect()
        };
        let first = shares(1);
        assert_eq!(first.len(), 3, "half of it");
        let second = shares(2);
        assert_eq!(second.len(), 1, "as much as it leaves");
        drop(first);
        assert_eq!(shares(2).len(), 2);
        let (second_more, third) = (shares(2), shares(3));
        assert_eq!((second.len() + second_more.len(), third.len()), (3, 1));
        drop((second, second_more, third));
        let inner = room.lock();
        assert_eq!((inner.free, inner.taken.len()), (60, 0), "all of it is given back");
    }

    #[test]
    fn nobody_has_more_bodies_than_there_may_be() {
        let room = Room::new(60, 9);
        let share = |whose, from: &str| room.share(token(whose), from.parse().ok());
        let mut shares = Vec::new();
        for from in ["203.0.113.7", "2001:db8::7", "2001:db8:0:1::7", "unknown"] {
            shares.extend([share(1, from).unwrap(), share(1, from).unwrap()]);
            assert!(share(1, from).is_none(), "{from} has an eighth of them");
        }
        assert!(share(1, "2001:db8::8").is_none(), "it may be the same one's");
        shares.push(share(1, "203.0.113.8").unwrap());
        assert!(share(1, "203.0.113.8").is_none() && share(2, "203.0.113.7").is_some());
        shares.remove(0);
        shares.push(share(1, "203.0.113.7").unwrap());
        drop(shares);
        assert!(room.lock().taken.is_empty());
    }
}
