//! Attempts that failed, by address: whoever guesses tokens, or logs in again and again, has to wait.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::places::block_of;

/// So long an attempt counts.
const WINDOW: Duration = Duration::from_secs(60);

/// The most addresses that are counted. Whoever has more of them than that is not kept waiting by any count.
const MOST: usize = 10_000;

/// How many there were from each address, in the last minute or so.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    by: DashMap<IpAddr, (Instant, u32)>,
    /// When those whose minute was over have last made room.
    swept: Mutex<Option<Instant>>,
}

impl Attempts {
    /// Counts one.
    pub(super) fn note(&self, peer: IpAddr) {
        let block = block_of(peer);
        if self.by.len() >= MOST && !self.by.contains_key(&block) && !self.make_room() {
            return;
        }
        let mut entry = self.by.entry(block).or_insert((Instant::now(), 0));
        if entry.0.elapsed() >= WINDOW {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
    }

    /// Forgets those whose minute is over, once in a second at most, because it looks at all. Whether there is room.
    fn make_room(&self) -> bool {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_none_or(|swept| swept.elapsed() >= Duration::from_secs(1)) {
            self.by.retain(|_, (since, _)| since.elapsed() < WINDOW);
            *swept = Some(Instant::now());
        }
        self.by.len() < MOST
    }

    /// Takes back one that was counted before it was known to be good.
    pub(super) fn forgive(&self, peer: IpAddr) {
        if let Some(mut entry) = self.by.get_mut(&block_of(peer)) {
            entry.1 = entry.1.saturating_sub(1);
        }
    }

    /// Whether there were so many that the next one has to wait.
    pub(super) fn has_to_wait(&self, peer: IpAddr, per_minute: u32) -> bool {
        let entry = self.by.get(&block_of(peer));
        entry.is_some_and(|entry| entry.1 >= per_minute && entry.0.elapsed() < WINDOW)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_has_to_wait_until_its_minute_is_over() {
        let (attempts, peer) = (Attempts::default(), IpAddr::from(Ipv4Addr::LOCALHOST));
        for _ in 0..3 {
            assert!(!attempts.has_to_wait(peer, 3));
            attempts.note(peer);
        }
        assert!(attempts.has_to_wait(peer, 3));
        attempts.forgive(peer);
        assert!(!attempts.has_to_wait(peer, 3));
        attempts.note(peer);
        tokio::time::advance(WINDOW).await;
        assert!(!attempts.has_to_wait(peer, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_end_take_no_more_room_and_are_forgotten() {
        let attempts = Attempts::default();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        (0..20_000).for_each(|number| attempts.note(address(number)));
        assert_eq!(attempts.by.len(), MOST);
        attempts.note(address(1));
        assert!(attempts.has_to_wait(address(1), 2), "those that are counted are counted on");
        tokio::time::advance(WINDOW).await;
        attempts.note(address(50_000));
        assert!(attempts.has_to_wait(address(50_000), 1));
        assert_eq!(attempts.by.len(), 1);
    }
}
