//! Notices that the machine has slept or has moved to another network, without waiting for a connection to fall silent.
//!
//! ```text
//!   once a second: two clocks and our own address ──▶ Watch ──▶ Slept, Stopped, Moved, or nothing
//! ```
//!
//! A connection that was there before a sleep or a move may be dead without either end having been told. What is to be
//! done about a sign is the caller's business: it may be a false one, as where somebody sets the time of day.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often [`Watch::tick`] wants to be called.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// How much later than that a call may come. A machine that is only busy is hardly ever this late.
const LATE: Duration = Duration::from_secs(5);

/// What is to be seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// A clock that may stand still while the machine sleeps.
    pub(crate) awake: Instant,
    /// A clock that does not. It may jump: on some systems it is the time of day.
    pub(crate) passed: Duration,
    /// From which address the relay would be reached; `None` where there is no way to it.
    pub(crate) address: Option<IpAddr>,
}

/// Why a connection may be dead though nothing says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The machine slept.
    Slept(Duration),
    /// The machine was awake, or its clock goes on in its sleep, and this program did not run.
    Stopped(Duration),
    /// The relay is reached from another address, or can be reached again.
    Moved,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slept(time) => write!(f, "this machine slept for {} s", time.as_secs()),
            Self::Stopped(time) => write!(f, "this program did not run for {} s", time.as_secs()),
            Self::Moved => f.write_str("the network changed"),
        }
    }
}

/// Compares each reading with the one before.
#[derive(Debug)]
pub(crate) struct Watch {
    last: Reading,
    /// The last address that there was; what is lost and comes back is a sign even if it is the same.
    home: Option<IpAddr>,
}

impl Watch {
    /// Starts with this reading, when the relay was reached.
    pub(crate) fn new(first: Reading) -> Self {
        Self { last: first, home: first.address }
    }

    /// Takes in the next reading: after [`PERIOD`], or earlier.
    pub(crate) fn tick(&mut self, now: Reading) -> Option<Sign> {
        let last = std::mem::replace(&mut self.last, now);
        let back = now.address.is_some() && last.address.is_none();
        let moved = now.address.is_some() && now.address != self.home;
        self.home = now.address.or(self.home);
        let awake = now.awake.saturating_duration_since(last.awake);
        let passed = now.passed.saturating_sub(last.passed);
        if awake > PERIOD + LATE {
            Some(Sign::Stopped(awake))
        } else if passed > PERIOD + LATE {
            Some(Sign::Slept(passed))
        } else if moved || back {
            Some(Sign::Moved)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    /// A machine whose clocks and network a test moves.
    struct Laptop {
        now: Reading,
        watch: Watch,
    }

    impl Laptop {
        fn new() -> Self {
            let passed = Duration::from_secs(1000);
            let now = Reading { awake: Instant::now(), passed, address: Some([10, 0, 0, 2].into()) };
            Self { now, watch: Watch::new(now) }
        }

        /// The clocks go on by so many milliseconds, and a tick follows.
        fn after(&mut self, awake: u64, passed: u64) -> Option<Sign> {
            self.now.awake += Duration::from_millis(awake);
            self.now.passed += Duration::from_millis(passed);
            self.watch.tick(self.now)
        }

        fn at(&mut self, address: Option<[u8; 4]>) -> Option<Sign> {
            self.now.address = address.map(IpAddr::from);
            self.after(1000, 1000)
        }
    }

    #[test]
    fn a_machine_that_is_awake_gives_no_sign_however_busy() {
        let mut laptop = Laptop::new();
        for late in [1000, 1001, 1500, 3000, 6000, 0, 1, 1000] {
            assert_eq!(laptop.after(late, late), None, "{late}");
        }
    }

    #[test]
    fn sleep_shows_on_the_clock_that_goes_on() {
        let mut laptop = Laptop::new();
        laptop.after(1000, 1000);
        assert_eq!(laptop.after(300, 3_600_000), Some(Sign::Slept(Duration::from_secs(3600))));
        assert_eq!(laptop.after(1000, 1000), None, "once");
        assert_eq!(laptop.after(0, 6001), Some(Sign::Slept(Duration::from_millis(6001))));
    }

    #[test]
    fn a_stopped_program_shows_on_both_clocks() {
        let mut laptop = Laptop::new();
        assert_eq!(laptop.after(20_000, 20_000), Some(Sign::Stopped(Duration::from_secs(20))));
        assert_eq!(laptop.after(6000, 6000), None);
        assert_eq!(laptop.after(6001, 6001), Some(Sign::Stopped(Duration::from_millis(6001))));
    }

    #[test]
    fn a_time_of_day_that_is_set_back_is_no_sign() {
        let mut laptop = Laptop::new();
        laptop.now.passed -= Duration::from_secs(900);
        assert_eq!(laptop.after(1000, 1000), None);
        assert_eq!(laptop.after(1000, 1000), None);
    }

    #[test]
    fn another_address_is_a_move_and_none_is_not_yet() {
        let mut laptop = Laptop::new();
        assert_eq!(laptop.at(Some([10, 0, 0, 2])), None);
        assert_eq!(laptop.at(Some([192, 168, 0, 9])), Some(Sign::Moved));
        assert_eq!(laptop.at(Some([192, 168, 0, 9])), None);
        assert_eq!(laptop.at(None), None);
        assert_eq!(laptop.at(None), None);
        assert_eq!(laptop.at(Some([192, 168, 0, 9])), Some(Sign::Moved), "the same one came back");
        assert_eq!(laptop.at(None), None);
        assert_eq!(laptop.at(Some([10, 0, 0, 2])), Some(Sign::Moved));
        assert_eq!(laptop.at(Some([10, 0, 0, 2])), None);
    }

    #[test]
    fn a_machine_that_starts_without_a_network_moves_once_it_has_one() {
        let mut now = Laptop::new().now;
        now.address = None;
        let mut laptop = Laptop { now, watch: Watch::new(now) };
        assert_eq!(laptop.at(None), None);
        assert_eq!(laptop.at(Some([10, 0, 0, 2])), Some(Sign::Moved));
    }

    #[test]
    fn a_sign_says_what_happened() {
        assert_eq!(Sign::Slept(Duration::from_millis(3_600_400)).to_string(), "this machine slept for 3600 s");
        assert_eq!(Sign::Stopped(Duration::from_secs(20)).to_string(), "this program did not run for 20 s");
        assert_eq!(Sign::Moved.to_string(), "the network changed");
    }
}
