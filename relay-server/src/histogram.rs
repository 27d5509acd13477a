//! How long things take, counted without a lock: each request counts twice, and none waits for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// How many have taken how long; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// In seconds, ascending.
    bounds: &'static [f64],
    /// Those up to each bound and beyond the one before, and at last those beyond all.
    counts: Box<[AtomicU64]>,
    /// In nanoseconds: five centuries fit.
    sum: AtomicU64,
}

impl Histogram {
    /// One that tells apart what lies between these bounds, in seconds, ascending.
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Counts something that has taken so long.
    pub(crate) fn observe(&self, took: Duration) {
        let Inner { bounds, counts, sum } = &*self.0;
        let seconds = took.as_secs_f64();
        let place = bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = counts.get(place) {
            count.fetch_add(1, Relaxed);
        }
        sum.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The bounds, in seconds.
    pub(crate) fn bounds(&self) -> &'static [f64] {
        self.0.bounds
    }

    /// How many were up to each bound and beyond the one before, and at last how many were beyond all.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.0.counts.iter().map(|count| count.load(Relaxed)).collect()
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.counts();
        // The encoder adds them up, and calls the last bound infinite.
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
        let sum = Duration::from_nanos(self.0.sum.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn what_is_counted_is_told_as_prometheus_has_it() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [50, 100, 101, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.counts(), [2, 1, 1], "a bound is the last of what is below it");
        let mut registry = Registry::default();
        registry.register("took", "How long", histogram.clone());
        histogram.observe(Duration::ZERO);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE took histogram",
            "took_sum 5.251",
            "took_count 5",
            "took_bucket{le=\"0.1\"} 3",
            "took_bucket{le=\"1.0\"} 4",
            "took_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
    }
}
