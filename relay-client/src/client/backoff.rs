//! Pauses before trying again.

use std::time::Duration;

/// A pause drawn at random below a bound: half the time that nothing has worked, within these limits, so that attempts
/// come ever more rarely. Drawn anew each time, so that those who were refused together do not come together again.
pub(super) fn backoff(hopeless: Duration, (least, most): (Duration, Duration)) -> Duration {
    let bound = (hopeless / 2).clamp(least.min(most), most);
    let mut random = [0; 4];
    // Without randomness everybody waits as long as they may, which does no harm.
    let drawn = aws_lc_rs::rand::fill(&mut random)
        .map_or(1.0, |()| f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX));
    bound.mul_f64(drawn).max(Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

    #[test]
    fn pauses_grow_to_their_bound_and_no_further() {
        let drawn = |hopeless: u64, limits| (0..200).map(move |_| backoff(Duration::from_millis(hopeless), limits));
        for hopeless in [0, 1, 500, 10_000, 30_000, 86_400_000] {
            assert!(drawn(hopeless, LIMITS).all(|pause| pause <= LIMITS.1), "{hopeless}");
        }
        assert!(drawn(0, LIMITS).all(|pause| pause <= LIMITS.0));
        assert!(
            drawn(2000, LIMITS).all(|pause| pause <= Duration::from_secs(1)),
            "back in the time that a restart takes"
        );
        assert!(drawn(3_600_000, LIMITS).any(|pause| pause > Duration::from_secs(10)), "they do grow");
        let longer = (LIMITS.0 * 4, LIMITS.1);
        assert!(drawn(0, longer).any(|pause| pause > LIMITS.0), "where the least is more");
    }

    /// A day without a relay costs attempts that can be counted.
    #[test]
    fn an_outage_is_not_hammered() {
        let (mut gone, mut attempts) = (Duration::ZERO, 0);
        while gone < Duration::from_secs(60) {
            gone += backoff(gone, LIMITS);
            attempts += 1;
        }
        assert!((8..80).contains(&attempts), "{attempts} attempts in the first minute");
    }
}
