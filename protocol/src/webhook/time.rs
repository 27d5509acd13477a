//! When a request was signed, and whether that is recent enough.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    request::Place,
    table::Provider,
    template::Template,
    verdict::{Judgement, Verdict},
};

/// When a request was signed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Time {
    /// Where it stands; beside the signature if nowhere else.
    pub(super) from: Option<Place>,
    #[serde(default)]
    pub(super) prefix: Template,
    pub(super) unit: Unit,
    /// How old a request may be, in seconds.
    #[serde(default = "window")]
    past: i64,
    /// How far a clock may be ahead of ours, in seconds.
    #[serde(default = "window")]
    future: i64,
    /// How old a request may be for the provider's own library, in seconds, where that is stricter.
    sdk_past: Option<i64>,
}

/// Five minutes: what most libraries take.
fn window() -> i64 {
    300
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "rfc3339")]
    Rfc3339,
}

impl Time {
    /// Holds the time of signing against the clock: too old or too new is an error.
    pub(super) fn judge(
        &self,
        provider: &Provider,
        text: &[u8],
        now: Timestamp,
        judgement: &mut Judgement,
    ) -> Result<(), Judgement> {
        let Some(signed) = self.unit.read(text) else {
            let reason = format!("the time of signing is not {}", self.unit.name());
            return Err(Judgement::of(Verdict::Malformed, reason));
        };
        let now = now.as_millisecond();
        // Whole seconds are held against whole seconds, as the libraries do.
        let now = if self.unit == Unit::Seconds { now.div_euclid(1000) * 1000 } else { now };
        let age = now.saturating_sub(signed);
        let span = |milliseconds: i64| words(Duration::from_millis(milliseconds.unsigned_abs()));
        let (past, future) = (self.past.saturating_mul(1000), self.future.saturating_mul(1000));
        let late = |verdict, reason| Err(Judgement { secret: judgement.secret, ..Judgement::of(verdict, reason) });
        if age > past {
            let reason = format!(
                "the signature is right and {} old, {} more than the {} that are allowed: a copy from earlier must be \
                 signed anew",
                span(age),
                span(age - past),
                span(past)
            );
            return late(Verdict::Stale, reason);
        }
        if -age > future {
            let reason = format!(
                "the signature is right and {} ahead of this machine's clock, {} more than the {} that are allowed: \
                 compare the clocks",
                span(age),
                span(-age - future),
                span(future)
            );
            return late(Verdict::Future, reason);
        }
        // Writing to a text does not fail.
        let _ = write!(judgement.reason.to_mut(), ", {} ago", span(age.max(0)));
        if let Some(past) = self.sdk_past.filter(|past| age > past.saturating_mul(1000)) {
            let allowed = span(past.saturating_mul(1000));
            let warning = format!("it is {} old, and {}'s own library takes {allowed}", span(age), provider.name);
            (judgement.warning, judgement.is_late) = (Some(warning), true);
        }
        Ok(())
    }
}

impl Unit {
    /// In milliseconds since 1970.
    fn read(self, text: &[u8]) -> Option<i64> {
        let text = std::str::from_utf8(text).ok()?;
        let number = || text.parse::<i64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        match self {
            Self::Seconds => number()?.checked_mul(1000),
            Self::Milliseconds => number(),
            Self::Rfc3339 => Some(text.parse::<Timestamp>().ok()?.as_millisecond()),
        }
    }

    pub(super) fn write(self, now: Timestamp) -> String {
        match self {
            Self::Seconds => now.as_second().to_string(),
            Self::Milliseconds => now.as_millisecond().to_string(),
            Self::Rfc3339 => now.to_string(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "a number of seconds since 1970",
            Self::Milliseconds => "a number of milliseconds since 1970",
            Self::Rfc3339 => "a time as in 2026-01-31T12:00:00Z",
        }
    }
}

/// A span of time as one says it: `0.4 s`, `12 s`, `6 min 1 s`, `3 h 20 min`, `2 d 4 h`.
pub(super) fn words(span: Duration) -> String {
    let (seconds, fraction) = (span.as_secs(), span.subsec_millis());
    let two = |large: u64, unit, small: u64, smaller| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {smaller}"),
    };
    match seconds {
        0..10 if fraction > 0 => format!("{seconds}.{fraction:03} s").replace("00 s", " s"),
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_as_one_says_it() {
        let said = |milliseconds| words(Duration::from_millis(milliseconds));
        assert_eq!(said(400), "0.4 s");
        assert_eq!(said(60_001), "1 min");
        assert_eq!(said(1), "0.001 s");
        assert_eq!(said(12_345), "12 s");
        assert_eq!(said(361_000), "6 min 1 s");
        assert_eq!(said(12_000_000), "3 h 20 min");
        assert_eq!(said(187_200_000), "2 d 4 h");
    }
}
