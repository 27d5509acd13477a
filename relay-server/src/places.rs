//! Places for connections: a stranger has so many, whatever he connects to.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::Semaphore;

/// Places for connections: so many in all, so many for one address.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    size: usize,
    addresses: Arc<DashMap<IpAddr, usize>>,
    each: usize,
}

impl Places {
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), size: all, addresses: Arc::default(), each }
    }

    /// Connections that are open: never fewer than there are.
    pub(crate) fn taken(&self) -> usize {
        self.size.saturating_sub(self.all.available_permits())
    }

    /// A place for a connection from `peer`. A trusted proxy speaks for many senders, so it is not counted as one.
    pub(crate) fn enter(&self, peer: IpAddr, trusted: bool) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let address = self.count(peer, trusted)?;
        Some(Place { address, addresses: self.addresses.clone(), _permit: permit })
    }

    /// Makes a proxy's place that of the sender whom it speaks for, where he has not too many. Whether it is.
    pub(crate) fn pass_on(&self, place: &mut Place, sender: IpAddr, trusted: bool) -> bool {
        let Some(address) = self.count(sender, trusted) else { return false };
        leave(&self.addresses, &std::mem::replace(&mut place.address, address));
        true
    }

    /// One more of an address.
    fn count(&self, peer: IpAddr, trusted: bool) -> Option<IpAddr> {
        let address = block_of(peer);
        let mut count = self.addresses.entry(address).or_insert(0);
        if *count >= self.each && !trusted {
            return None;
        }
        *count += 1;
        Some(address)
    }
}

/// One less of an address.
fn leave(addresses: &DashMap<IpAddr, usize>, address: &IpAddr) {
    addresses.remove_if_mut(address, |_, count| {
        *count -= 1;
        *count == 0
    });
}

/// One connection's place.
#[derive(Debug)]
pub(crate) struct Place {
    address: IpAddr,
    addresses: Arc<DashMap<IpAddr, usize>>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        leave(&self.addresses, &self.address);
    }
}

/// What one stranger has: an address, or with IPv6 the /64 that every host gets.
pub(crate) fn block_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}
