//! How busy a tunnel is, in the figures that tools for tunnels show.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How often the rates move.
const TICK: Duration = Duration::from_secs(5);

/// The minutes over which the three rates look back: like a Unix load average, older requests count ever less.
const MINUTES: [f64; 3] = [1.0, 5.0, 15.0];

/// Durations that the percentiles are of.
const RECENT: usize = 1024;

/// Counts the exchanges of one tunnel.
#[derive(Debug)]
pub(crate) struct Meter {
    count: u64,
    /// Per second, as of the last tick.
    rates: [f64; 3],
    /// Since the last tick.
    fresh: u64,
    ticked: Instant,
    recent: VecDeque<Duration>,
}

/// What a [`Meter`] says at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// All exchanges so far.
    pub(crate) count: u64,
    /// Exchanges per second, over 1, 5 and 15 minutes.
    pub(crate) rates: [f64; 3],
    /// The durations that 50, 90, 95 and 99 of 100 of the last exchanges did not exceed.
    pub(crate) percentiles: [Duration; 4],
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { count: 0, rates: [0.0; 3], fresh: 0, ticked: now, recent: VecDeque::new() }
    }

    /// An exchange that took so long has ended.
    pub(crate) fn add(&mut self, now: Instant, took: Duration) {
        self.tick(now);
        (self.count, self.fresh) = (self.count + 1, self.fresh + 1);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }

    pub(crate) fn read(&mut self, now: Instant) -> Reading {
        self.tick(now);
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let percentile = |of_100: usize| {
            let at = (sorted.len() * of_100).div_ceil(100).saturating_sub(1);
            sorted.get(at).copied().unwrap_or_default()
        };
        Reading { count: self.count, rates: self.rates, percentiles: [50, 90, 95, 99].map(percentile) }
    }

    /// Lets the rates move for all the ticks that have passed.
    fn tick(&mut self, now: Instant) {
        let ticks = now.saturating_duration_since(self.ticked).as_secs() / TICK.as_secs();
        let Ok(ticks @ 1..) = u32::try_from(ticks) else { return };
        let fresh = std::mem::take(&mut self.fresh) as f64 / TICK.as_secs_f64();
        for (rate, minutes) in self.rates.iter_mut().zip(MINUTES) {
            let stays = (-TICK.as_secs_f64() / (minutes * 60.0)).exp();
            // The first one moves it towards what came, and those behind it towards nothing.
            let moved = *rate * stays + fresh * (1.0 - stays);
            *rate = moved * stays.powf(f64::from(ticks - 1));
        }
        self.ticked += TICK * ticks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_what_comes_and_fade() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            for _ in 0..10 {
                meter.add(now, Duration::from_millis(1));
            }
        }
        let busy = meter.read(start + Duration::from_secs(600));
        assert_eq!(busy.count, 6000);
        let [one, five, fifteen] = busy.rates;
        assert!((9.9..=10.1).contains(&one) && one > five && five > fifteen && fifteen > 4.0, "{busy:?}");
        let [one, five, fifteen] = meter.read(start + Duration::from_secs(900)).rates;
        assert!(one < 0.1 && one < five && five < fifteen, "{one} {five} {fifteen}");
        let ages = meter.read(start + Duration::from_secs(u64::from(u32::MAX) * 4));
        assert!(ages.rates.iter().all(|rate| *rate < 0.001), "{ages:?}");
    }

    #[test]
    fn percentiles_are_of_the_last_ones() {
        let now = Instant::now();
        let mut meter = Meter::new(now);
        assert_eq!(meter.read(now), Reading::default());
        for _ in 0..RECENT {
            meter.add(now, Duration::from_secs(9));
        }
        for milliseconds in (0..RECENT as u64).rev() {
            meter.add(now, Duration::from_millis(milliseconds));
        }
        let [p50, p90, .., p99] = meter.read(now).percentiles;
        assert_eq!(
            (p50, p90, p99),
            (Duration::from_millis(511), Duration::from_millis(921), Duration::from_millis(1013))
        );
    }
}
