//! So many in a second, by the generic cell rate algorithm, which needs one instant.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Of those of one second, so many at once.
const BURST: Duration = Duration::from_secs(1);

/// What keeps to a number in a second.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Whether one more may come at that moment, which counts then.
    pub(crate) fn admits(&self, rate: u32, now: Instant) -> bool {
        self.admits_in(BURST, rate, now)
    }

    /// As [`admits`](Self::admits), of so many in another span of time.
    pub(crate) fn admits_in(&self, span: Duration, rate: u32, now: Instant) -> bool {
        let mut paid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let after = paid.map_or(now, |paid| paid.max(now)) + span / rate.max(1);
        let is_admitted = after <= now + span;
        if is_admitted {
            *paid = Some(after);
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_a_second_may_come_at_once_and_no_more() {
        let (pace, now) = (Pace::default(), Instant::now());
        let admitted = |at: Instant| (0..10).filter(|_| pace.admits(4, at)).count();
        assert_eq!(admitted(now), 4);
        assert_eq!(admitted(now + Duration::from_millis(250)), 1);
        assert_eq!(admitted(now + Duration::from_secs(60)), 4, "what was not used is not saved up");
    }
}
