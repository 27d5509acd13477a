//! The time by the system's clock, as records and people want it.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// The present in Unix seconds.
#[must_use]
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The present in Unix milliseconds.
pub(crate) fn unix_millis() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A moment of Unix seconds, in RFC 3339.
pub(crate) fn moment(unix_seconds: i64) -> String {
    Timestamp::from_second(unix_seconds).map_or_else(|_| format!("second {unix_seconds}"), |moment| moment.to_string())
}

/// A month in UTC, as the number of months since the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Month(pub(crate) i32);

impl Month {
    /// That of a moment, in Unix seconds.
    pub(crate) fn of(unix: i64) -> Self {
        let date = Timestamp::from_second(unix).unwrap_or_default().to_zoned(TimeZone::UTC).date();
        Self(i32::from(date.year()) * 12 + i32::from(date.month()) - 1)
    }

    /// Its seconds, in Unix time.
    pub(crate) fn span(self) -> Range<i64> {
        Self(self.0.saturating_sub(1)).end()..self.end()
    }

    /// When it is over, in Unix seconds.
    pub(crate) fn end(self) -> i64 {
        let year = i16::try_from(self.0.div_euclid(12)).unwrap_or(i16::MAX);
        let month = i8::try_from(self.0.rem_euclid(12) + 1).unwrap_or(1);
        let first = Date::new(year, month, 1).and_then(|first| first.checked_add(1.month()));
        let next = first.and_then(|first| first.to_zoned(TimeZone::UTC));
        // Of the last month that there is nobody sees the end.
        next.map_or(i64::MAX, |next| next.timestamp().as_second())
    }
}
