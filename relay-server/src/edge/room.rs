//! Room for the bodies that are held until their signatures are judged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::TokenId;

/// So many bytes of all bodies together. The tunnels of one token never take more of them than they leave to all others:
/// half where they are alone, and a third each of two that want as much. So nobody's webhooks go unjudged because of what
/// strangers send to somebody else's tunnels, nor because of what somebody sends to his own.
#[derive(Debug)]
pub(crate) struct Room(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    free: usize,
    taken: HashMap<TokenId, usize>,
}

/// What one body takes, which is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    whose: TokenId,
    bytes: usize,
}

impl Room {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner { free: bytes, taken: HashMap::new() })))
    }

    /// The share of a body that comes to a tunnel of this token. It has nothing yet.
    pub(crate) fn share(self: &Arc<Self>, whose: TokenId) -> Share {
        Share { room: self.clone(), whose, bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let taken = inner.taken.get(&self.whose).copied().unwrap_or_default().saturating_add(more);
        let Some(left) = inner.free.checked_sub(more).filter(|left| taken <= *left) else { return false };
        inner.free = left;
        inner.taken.insert(self.whose, taken);
        drop(inner);
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut inner = self.room.lock();
        inner.free += self.bytes;
        let left = inner.taken.get(&self.whose).copied().unwrap_or_default().saturating_sub(self.bytes);
        match left {
            0 => inner.taken.remove(&self.whose),
            left => inner.taken.insert(self.whose, left),
        };
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
        let room = Room::new(60);
        // As many bodies of ten bytes as fit.
        let shares = |whose: i64| -> Vec<Share> {
            let bodies = std::iter::repeat_with(|| room.share(token(whose)));
            bodies.map_while(|mut share| share.grow(10).then_some(share)).collect()
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
}
