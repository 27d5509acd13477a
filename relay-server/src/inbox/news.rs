//! What another process has to know of inboxes, once it has taken over and this one still ends what it had under way.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

/// What has happened since webhooks are delivered by another process.
#[derive(Debug, Default)]
pub(super) struct News {
    given_up: watch::Sender<bool>,
    /// At most as many as there are names.
    names: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl News {
    /// Notes that something is different with a name or its inbox.
    pub(super) fn note(&self, name: &str) {
        if *self.given_up.borrow() && self.lock().insert(name.to_owned()) {
            self.changed.notify_one();
        }
    }

    /// Says whether another process delivers.
    pub(super) fn set_given_up(&self, given_up: bool) {
        self.lock().clear();
        self.given_up.send_replace(given_up);
    }

    /// Waits for as long as another process delivers.
    pub(super) async fn in_charge(&self) {
        // The sender lives as long as this does.
        let _ = self.given_up.subscribe().wait_for(|given_up| !given_up).await;
    }

    /// Waits for what is to be told.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what is to be told.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
