//! Attempts that failed, by address: whoever guesses tokens, or logs in again and again, has to wait.

use std::net::IpAddr;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::places::block_of;

/// How many there were from each address, in the last minute or so.
#[derive(Debug, Default)]
pub(crate) struct Attempts(DashMap<IpAddr, (Instant, u32)>);

impl Attempts {
    /// Counts one.
    pub(super) fn note(&self, peer: IpAddr) {
        // Strangers can fill this only as fast as they connect; those whose minute is over make room.
        if self.0.len() > 10_000 {
            self.0.retain(|_, (since, _)| since.elapsed() < Duration::from_secs(60));
        }
        let mut entry = self.0.entry(block_of(peer)).or_insert((Instant::now(), 0));
        if entry.0.elapsed() >= Duration::from_secs(60) {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
    }

    /// Takes back one that was counted before it was known to be good.
    pub(super) fn forgive(&self, peer: IpAddr) {
        if let Some(mut entry) = self.0.get_mut(&block_of(peer)) {
            entry.1 = entry.1.saturating_sub(1);
        }
    }

    /// Whether there were so many that the next one has to wait.
    pub(super) fn has_to_wait(&self, peer: IpAddr, per_minute: u32) -> bool {
        let entry = self.0.get(&block_of(peer));
        entry.is_some_and(|entry| entry.1 >= per_minute && entry.0.elapsed() < Duration::from_secs(60))
    }
}
