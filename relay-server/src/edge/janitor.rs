//! Ends downloads that do not move: a receiver that does not read, or a tunnel that sends nothing. And lets what clients
//! have left behind be forgotten.
//!
//! Receivers that stop asking leave nobody who could run a timer, and a timer for each response would cost every
//! request. One task looks at those that outlive their first piece, every few seconds.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_protocol::frame::Reset;
use relay_protocol::link::{Stream, WeakStream};
use tokio::time::{Instant, sleep};

use super::body::Progress;
use crate::Shared;
use crate::blocks::Blocks;
use crate::limits::Limits;

/// The downloads that are watched.
#[derive(Debug, Default)]
pub(crate) struct Janitor {
    watched: Mutex<Vec<Watched>>,
}

#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    stream: WeakStream,
    /// Who gets it, behind a trusted proxy.
    proxied: Option<IpAddr>,
}

impl Janitor {
    /// Watches a download for as long as its stream lives.
    pub(crate) fn watch(&self, progress: Arc<Progress>, stream: &Stream, proxied: Option<IpAddr>) {
        let stream = stream.downgrade();
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(Watched { progress, stream, proxied });
    }

    /// Ends those of whoever is kept out, but for those on connections of their own, which end themselves.
    pub(crate) fn keep_out(&self, blocks: &Blocks) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let blocked =
            watched.iter().filter(|watched| watched.proxied.is_some_and(|address| blocks.has_address(address)));
        let blocked: Vec<_> = blocked.filter_map(|watched| watched.stream.upgrade()).collect();
        drop(watched);
        blocked.into_iter().for_each(|stream| stream.reset(Reset::Cancelled));
    }

    /// Looks every few seconds, until the relay closes.
    pub(crate) async fn run(&self, shared: &Shared) {
        loop {
            let limits = shared.limits();
            let pause = limits.write_idle.min(limits.response_idle) / 4;
            let pause = sleep(pause.clamp(Duration::from_millis(20), Duration::from_secs(5)));
            if shared.closing.run_until_cancelled(pause).await.is_none() {
                return;
            }
            self.sweep(&limits);
            shared.registry.sweep(Instant::now());
        }
    }

    fn sweep(&self, limits: &Limits) {
        let mut stuck = Vec::new();
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).retain(|Watched { progress, stream, .. }| {
            let Some(stream) = stream.upgrade() else { return false };
            let is_stuck = progress.is_stuck(limits);
            if is_stuck {
                progress.accuse();
                stuck.push(stream);
            }
            !is_stuck
        });
        // hyper holds on to a body that its receiver does not read; the tunnel has its place back all the same.
        stuck.into_iter().for_each(|stream| stream.abandon(Reset::Idle));
    }
}
