//! Tells a client of requests that it has asked the relay to refuse, and so never sees.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay_protocol::frame::SessionKind;
use relay_protocol::message::Withheld;
use tokio::time::sleep;

use super::{Tunnel, send};
use crate::Shared;

/// The time from one message to the next: strangers decide how many requests there are.
const PAUSE: Duration = Duration::from_secs(1);

/// Of what a client has not been told.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    requests: Option<Withheld>,
    /// Somebody is about to tell it.
    is_told: bool,
}

impl Untold {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is, for whoever tells it. Nothing ends that one's work.
    fn take(&self) -> Option<Withheld> {
        let mut state = self.lock();
        state.is_told = state.requests.is_some();
        state.requests.take()
    }
}

impl Tunnel {
    /// Tells the client of a request: at once, or together with those that follow within the second.
    pub(crate) fn withhold(self: &Arc<Self>, shared: &Arc<Shared>, request: Withheld) {
        let mut state = self.untold.lock();
        let before = state.requests.as_ref().map_or(0, |requests| requests.count);
        state.requests = Some(Withheld { tunnel: self.number, count: before.saturating_add(1), ..request });
        if std::mem::replace(&mut state.is_told, true) {
            return;
        }
        drop(state);
        let (tunnel, closing) = (self.clone(), shared.closing.clone());
        let tell = async move {
            while let Some(requests) = tunnel.untold.take() {
                send(&tunnel.link, SessionKind::Withheld, &requests);
                sleep(PAUSE).await;
            }
        };
        shared.spawn(async move { closing.run_until_cancelled(tell).await.unwrap_or_default() });
    }
}
