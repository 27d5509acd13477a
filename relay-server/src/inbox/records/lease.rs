//! Who is delivering what.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Seq;

/// The webhooks that somebody is delivering. In memory alone: who delivers ends with the relay, and no clock says for how
/// long.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<HashSet<Seq>>>);

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
        self.lock().insert(seq).then(|| Lease { seq, leases: self.clone() })
    }

    /// Whether somebody has it.
    pub(super) fn is_taken(&self, seq: Seq) -> bool {
        self.lock().contains(&seq)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Seq>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.seq);
    }
}
