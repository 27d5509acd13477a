//! How much of one network is answered, so that nobody floods others through the relay.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of one network, for as long as it likes: one in 20 ms, which is more than the resolvers of a large provider need.
const EACH: Duration = Duration::from_millis(20);
/// Of one network at once, beyond that: what comes in four seconds.
const BURST: Duration = Duration::from_secs(4);
/// Networks that are counted apart, of about 48 bytes each. All others share what one may have.
const NETWORKS: usize = 32_768;
/// How often those are looked through that have been silent.
const SWEEP: Duration = Duration::from_secs(1);

/// Counts questions by network: the generic cell rate algorithm, which needs one instant for each.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// When a network has paid for what it has asked.
    paid: HashMap<Option<IpAddr>, Instant>,
    swept: Option<Instant>,
}

impl Rate {
    /// Whether a question from `peer` is answered.
    pub(super) fn allows(&self, peer: IpAddr, now: Instant) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { paid, swept } = &mut *counts;
        let mut network = Some(network_of(peer));
        if paid.len() >= NETWORKS && !paid.contains_key(&network) {
            if swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
                *swept = Some(now);
                paid.retain(|_, paid| *paid > now);
            }
            if paid.len() >= NETWORKS {
                network = None;
            }
        }
        let paid = paid.entry(network).or_insert(now);
        let from = (*paid).max(now);
        let allowed = from.saturating_duration_since(now) <= BURST;
        if allowed {
            *paid = from + EACH;
        }
        allowed
    }
}

/// What one operator has: a /24, or with IPv6 a /56.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) & (u32::MAX << 8)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & (u128::MAX << 72)).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_its_burst_and_then_its_rate() {
        let (rate, start) = (Rate::default(), Instant::now());
        let answered = (0..1000).filter(|last| rate.allows(ip(&format!("192.0.2.{}", last % 256)), start)).count();
        assert_eq!(answered, 201);
        assert!(rate.allows(ip("192.0.3.1"), start), "another network has its own");
        assert!(rate.allows(ip("2001:db8::1"), start) && rate.allows(ip("2001:db8:0:100::1"), start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| rate.allows(ip("192.0.2.9"), later)).count(), 50);
    }

    #[test]
    fn forged_senders_fill_no_memory_and_silence_nobody_else() {
        let (rate, start) = (Rate::default(), Instant::now());
        for number in 0..NETWORKS as u32 + 1000 {
            rate.allows(IpAddr::V4((number << 8).into()), start);
        }
        assert!(rate.0.lock().unwrap().paid.len() <= NETWORKS + 1);
        assert!(rate.allows(ip("0.0.5.1"), start), "who was there has its own still");
        assert!(rate.allows(ip("198.51.100.1"), start + SWEEP), "and there is room again");
        assert!(rate.0.lock().unwrap().paid.len() < 10);
    }
}
