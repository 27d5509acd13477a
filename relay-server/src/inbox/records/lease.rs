//! Who is delivering what.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Seq;

/// The webhooks that somebody is delivering. In memory alone: who delivers ends with the relay, and no clock says for how
/// long. A process that takes over is told of them; see [`succession`](crate::succession).
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Desk>);

#[derive(Debug, Default)]
struct Desk {
    held: Mutex<Held>,
    /// One was given back that another process waits for.
    given_back: Notify,
}

#[derive(Debug, Default)]
struct Held {
    taken: HashSet<Seq>,
    /// All others are another process's.
    given_up: bool,
}

/// The right to deliver a webhook. Nobody else gets it while this is there, and whoever drops it, also by a panic or because
/// its caller went away, gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    seq: Seq,
    leases: Leases,
}

impl Leases {
    /// The lease on a webhook, unless somebody has it.
    pub(super) fn take(&self, seq: Seq) -> Option<Lease> {
        let mut held = self.lock();
        (!held.given_up && held.taken.insert(seq)).then(|| Lease { seq, leases: self.clone() })
    }

    /// Whether somebody has it.
    pub(super) fn is_taken(&self, seq: Seq) -> bool {
        self.lock().taken.contains(&seq)
    }

    /// From now on none is taken here, or as before.
    pub(super) fn set_given_up(&self, given_up: bool) {
        self.lock().given_up = given_up;
    }

    /// Those that somebody has.
    pub(super) fn taken(&self) -> HashSet<Seq> {
        self.lock().taken.clone()
    }

    /// Waits until one is given back, once all others are another process's.
    pub(super) async fn given_back(&self) {
        self.0.given_back.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.leases.lock();
        held.taken.remove(&self.seq);
        let given_up = held.given_up;
        drop(held);
        if given_up {
            self.leases.0.given_back.notify_one();
        }
    }
}
