//! Many requests in one line: what a second of them comes to, where a line for each would only scroll by.
//!
//! ```text
//! 12:00:01    213 requests  205× 200  6× 404  2× 502 upstream-refused  p50 3.1 ms  max 41.0 ms
//! ```

use std::fmt::Write as _;

use crate::terminal::{Part, compact, outcome_colour};

/// Lines a second that a person can follow.
const LINES: u32 = 20;

/// Below this it is calm again; between the two it stays as it was, so that lines and sums do not take turns.
const CALM: u32 = LINES / 2;

/// Failures that have a line of their own in each second that is summed up.
const FAILURES: u32 = 3;

/// Outcomes that a sum tells apart. Services can make up hundreds of statuses; nobody reads as many.
const KINDS: usize = 8;

/// Durations of a second that its median is taken of, in 128 KiB.
const DURATIONS: usize = 16 * 1024;

/// Decides for each request whether it has a line of its own, and sums the others up.
///
/// The first [`LINES`] of a second have lines. A second after one that had more is summed up whole, until one is calm.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    second: i64,
    seen: u32,
    failures: u32,
    busy: bool,
    sum: Sum,
}

impl Traffic {
    /// Begins this second, in seconds since 1970. What the one before came to is returned with its time, if there is
    /// something that had no line.
    pub(crate) fn begin(&mut self, second: i64) -> Option<(i64, Sum)> {
        if second == self.second {
            return None;
        }
        let busy = self.seen > if self.busy { CALM } else { LINES } && second == self.second.saturating_add(1);
        let sum = Sum { whole: busy, ..Sum::default() };
        let last = std::mem::replace(self, Self { second, seen: 0, failures: 0, busy, sum });
        (last.sum.count > 0).then_some((last.second, last.sum))
    }

    /// Takes in a request of the second that has begun; true where it has a line of its own.
    pub(crate) fn take(&mut self, status: Option<u16>, error: Option<&str>, milliseconds: Option<f64>) -> bool {
        self.seen = self.seen.saturating_add(1);
        let failed = error.is_some() || status.is_none_or(|status| status >= 500);
        let shown = if !self.busy && self.seen <= LINES {
            true
        } else if failed && self.failures < FAILURES {
            self.failures += 1;
            true
        } else {
            false
        };
        if self.busy || !shown {
            self.sum.add(status, error, milliseconds);
        }
        shown
    }
}

/// What requests came to.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    count: u32,
    /// All of its second, and not what came after some lines.
    whole: bool,
    kinds: Vec<Kind>,
    durations: Vec<f64>,
    longest: f64,
}

#[derive(Debug)]
struct Kind {
    status: Option<u16>,
    error: Option<String>,
    count: u32,
}

impl Sum {
    fn add(&mut self, status: Option<u16>, error: Option<&str>, milliseconds: Option<f64>) {
        self.count = self.count.saturating_add(1);
        let same = |kind: &&mut Kind| kind.status == status && kind.error.as_deref() == error;
        if let Some(kind) = self.kinds.iter_mut().find(same) {
            kind.count = kind.count.saturating_add(1);
        } else if self.kinds.len() < KINDS {
            self.kinds.push(Kind { status, error: error.map(str::to_owned), count: 1 });
        }
        if let Some(time) = milliseconds.filter(|time| time.is_finite()) {
            self.longest = self.longest.max(time);
            if self.durations.len() < DURATIONS {
                self.durations.push(time);
            }
        }
    }

    /// As parts of a line, the most telling first.
    pub(crate) fn parts(mut self) -> Vec<Part> {
        let noun = match (self.whole, self.count) {
            (true, 1) => "request",
            (true, _) => "requests",
            (false, 1) => "more request",
            (false, _) => "more requests",
        };
        let mut parts = vec![Part::plain(format!("{:>6} {noun}", self.count))];
        self.kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
        let told: u32 = self.kinds.iter().map(|kind| kind.count).sum();
        for Kind { status, error, count } in &self.kinds {
            let mut text = match status {
                Some(status) => format!("{count}× {status}"),
                None => format!("{count}× ---"),
            };
            if let Some(error) = error {
                let _ = write!(text, " {error}");
            }
            parts.push(Part { text, colour: outcome_colour(*status) });
        }
        if told < self.count {
            parts.push(Part::plain(format!("{}× other", self.count - told)));
        }
        let middle = self.durations.len().saturating_sub(1) / 2;
        if !self.durations.is_empty() {
            let (_, median, _) = self.durations.select_nth_unstable_by(middle, f64::total_cmp);
            parts.push(Part::plain(format!("p50 {}", compact(*median))));
            parts.push(Part::plain(format!("max {}", compact(self.longest))));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn text(sum: Sum) -> String {
        sum.parts().into_iter().map(|part| part.text).collect::<Vec<_>>().join("  ")
    }

    fn lines(traffic: &mut Traffic, requests: u32, status: u16) -> u32 {
        (0..requests).map(|_| u32::from(traffic.take(Some(status), None, Some(1.0)))).sum()
    }

    #[test]
    fn a_calm_second_has_a_line_for_each_and_no_sum() {
        let mut traffic = Traffic::default();
        for second in 100..110 {
            assert!(traffic.begin(second).is_none());
            assert_eq!(lines(&mut traffic, LINES, 200), LINES);
        }
    }

    #[test]
    fn a_burst_begins_with_lines_goes_on_in_sums_and_ends_with_lines() {
        let mut traffic = Traffic::default();
        traffic.begin(100);
        assert_eq!(lines(&mut traffic, 200, 200), LINES);
        let (second, rest) = traffic.begin(101).unwrap();
        assert_eq!((second, text(rest)), (100, "   180 more requests  180× 200  p50 1.0 ms  max 1.0 ms".to_owned()));
        assert_eq!(lines(&mut traffic, 3, 200), 0);
        let (_, all) = traffic.begin(102).unwrap();
        assert!(text(all).starts_with("     3 requests  3× 200"));
        assert_eq!(lines(&mut traffic, 5, 200), 5, "it is calm again");
        assert!(traffic.begin(103).is_none());
    }

    #[test]
    fn a_pause_ends_a_burst() {
        let mut traffic = Traffic::default();
        traffic.begin(100);
        lines(&mut traffic, 200, 200);
        assert!(traffic.begin(102).is_some());
        assert_eq!(lines(&mut traffic, 5, 200), 5);
    }

    #[test]
    fn a_few_failures_keep_their_lines_and_all_are_counted() {
        let mut traffic = Traffic::default();
        traffic.begin(100);
        lines(&mut traffic, 200, 200);
        traffic.begin(101);
        assert_eq!(lines(&mut traffic, 205, 200) + lines(&mut traffic, 6, 404), 0);
        let refused = (0..10).filter(|_| traffic.take(Some(502), Some("upstream-refused"), Some(41.0))).count();
        assert_eq!(refused, FAILURES as usize);
        let (_, sum) = traffic.begin(102).unwrap();
        let expected = "   221 requests  205× 200  10× 502 upstream-refused  6× 404  p50 1.0 ms  max 41.0 ms";
        assert_eq!(text(sum), expected);
    }

    #[test]
    fn a_service_that_makes_up_statuses_does_not_fill_the_memory() {
        let mut sum = Sum { whole: true, ..Sum::default() };
        for i in 0..100_000_u32 {
            sum.add(Some(u16::try_from(100 + i % 900).unwrap()), None, Some(f64::from(i)));
        }
        assert!(sum.kinds.len() <= KINDS && sum.durations.len() <= DURATIONS);
        let text = text(sum);
        assert!(text.contains("× other") && text.ends_with("max 1 min 40"), "{text}");
    }
}
