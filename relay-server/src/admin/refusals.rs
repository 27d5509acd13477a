//! Calls of the admin API that were made by somebody who may not, or does not know how: counted, and told in the log, but no
//! faster than anybody reads it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::problem::Problem;
use crate::Shared;
use crate::audit::By;

/// Between two lines in the log.
const PAUSE: Duration = Duration::from_secs(10);

/// The refusals that were not told yet.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    /// Counts a refusal, and tells of it where its turn has come.
    pub(super) fn note(&self, shared: &Shared, by: &By, problem: &Problem) {
        let code = problem.code();
        if !shared.metrics.admin_refused(code) {
            return;
        }
        if let Some(untold) = self.turn(Instant::now()) {
            tracing::warn!(%by, error = code, untold, "a call of the admin API was refused");
        }
    }

    /// Where another one may be told: how many were not, since the last one that was.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            state.1 = untold.saturating_add(1);
            return None;
        }
        *state = (Some(now), 0);
        Some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_told_in_one_line() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.turn(start), Some(0));
        assert_eq!([1, 2, 9].map(|s| refusals.turn(start + Duration::from_secs(s))), [None; 3]);
        assert_eq!(refusals.turn(start + PAUSE), Some(3));
        assert_eq!(refusals.turn(start + PAUSE), None);
        assert_eq!(refusals.turn(start + 2 * PAUSE), Some(1));
    }
}
