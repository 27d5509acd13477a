//! Flow control arithmetic: one receive window per stream, and the session's budget that they share.

use std::time::{Duration, Instant};

/// Credit that every stream has, however short the budget is, in bytes: most webhooks need no more.
pub const FLOOR: u32 = 16 * 1024;

/// Credit that a stream starts with while the budget is free, in bytes.
pub const INITIAL: u32 = 256 * 1024;

/// The least time over which a reader's speed is taken. In less, what had piled up while one of both ends was busy says more
/// of the speed of memory than of that of the link.
const SAMPLE: Duration = Duration::from_millis(5);

/// A link of a shorter round trip needs no window that grows: what a stream starts with lets 256 MB/s through.
const SHORT: Duration = Duration::from_millis(1);

/// Streams that the budget has floors for.
const FLOORS: u32 = 1024;

/// A session's memory for bodies in one direction.
///
/// With 1,024 streams: 16 MiB of floors, 4 MiB for what streams start with above the floor, 12 MiB for windows that
/// grow. Together 32 MiB, and never more, because a window takes what it is larger than the floor from one of the
/// two pools before it gives it away as credit.
///
/// A stream that has closed gives its floor and its initial credit back, because both ends book that at the same
/// frame. What the application has not read of it by then takes the place of floors, of which new streams find fewer.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// Left for initial credit above the floor. Whoever opens the stream takes from it; both ends keep the account.
    initial: u64,
    /// Left for windows that grow; the receiver's own affair.
    growth: u64,
    /// Unread bytes of closed streams that the growth pool does not pay for.
    lingering: u64,
}

impl Budget {
    pub(super) const INITIAL_POOL: u64 = 4 * 1024 * 1024;
    pub(super) const GROWTH_POOL: u64 = 12 * 1024 * 1024;

    pub(super) const fn new() -> Self {
        Self { initial: Self::INITIAL_POOL, growth: Self::GROWTH_POOL, lingering: 0 }
    }

    /// The credit for a new stream: a sixteenth of what is left, so that it shrinks towards the floor as streams come.
    pub(super) fn take_initial(&mut self) -> u32 {
        let share = (self.initial / 16).min(u64::from(INITIAL - FLOOR));
        self.initial -= share;
        FLOOR + u32::try_from(share).unwrap_or(0)
    }

    /// Accepts the credit that the peer took for a stream of its own, unless it is not its to take.
    pub(super) fn accept_initial(&mut self, credit: u32) -> bool {
        let Some(share) = credit.checked_sub(FLOOR).map(u64::from) else { return false };
        if credit > INITIAL || share > self.initial {
            return false;
        }
        self.initial -= share;
        true
    }

    pub(super) fn give_back_initial(&mut self, credit: u32) {
        self.initial += u64::from(credit - FLOOR);
    }

    /// Whether there is a floor for one more stream beside `open` ones of at most `max`.
    pub(super) fn has_floor(&self, open: u32, max: u32) -> bool {
        let floors = u64::from(max.max(FLOORS)) * u64::from(FLOOR);
        self.lingering + (u64::from(open) + 1) * u64::from(FLOOR) <= floors
    }

    /// What is left of the two pools, and what closed streams hold: initial, growth, lingering.
    pub(super) const fn left(&self) -> (u64, u64, u64) {
        (self.initial, self.growth, self.lingering)
    }
}

/// What one stream may still receive, and what it holds unread.
///
/// ```text
/// size  =  outstanding credit  +  unread bytes  +  bytes read but not yet given back as credit
/// ```
#[derive(Debug)]
pub(super) struct Window {
    initial: u32,
    /// Above `initial`, out of the budget's growth pool.
    grown: u64,
    outstanding: u64,
    unread: u64,
    /// Bytes read, and given back as credit, since `since`.
    read: u64,
    since: Instant,
    /// The peer sends nothing more.
    ended: bool,
    /// Both directions have ended.
    closed: bool,
    /// Of `unread`, what the budget counts as lingering.
    lingering: u64,
}

impl Window {
    /// A window whose initial credit the peer already knows.
    pub(super) const fn new(initial: u32, now: Instant) -> Self {
        Self {
            initial,
            grown: 0,
            outstanding: initial as u64,
            unread: 0,
            read: 0,
            since: now,
            ended: false,
            closed: false,
            lingering: 0,
        }
    }

    const fn size(&self) -> u64 {
        self.initial as u64 + self.grown
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) const fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Takes in `bytes` of body; false when the peer had no credit for them.
    pub(super) fn receive(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let Some(left) = self.outstanding.checked_sub(bytes) else { return false };
        self.outstanding = left;
        self.unread += bytes;
        true
    }

    /// The application took `bytes`. Returns the credit to grant, once that is a quarter of the window: grants are then few,
    /// and the peer still has most of a window to go on with while one is on its way.
    ///
    /// A window that is less than two and a half times what is read in a round trip may hold the reader back, as the round trip
    /// of a busy link is longer than the shortest one. It becomes eight times as large as that, as far as the budget goes: so
    /// it grows about fourfold at once. One that is large enough stays as it is, because it would fill where this end is the
    /// slower one, and everything else on the link would stand behind what is in it.
    pub(super) fn consume(
        &mut self,
        bytes: usize,
        now: Instant,
        rtt: Option<Duration>,
        budget: &mut Budget,
    ) -> Option<u32> {
        self.unread = self.unread.saturating_sub(bytes as u64);
        if self.ended {
            self.settle(budget);
            return None;
        }
        let idle = self.size() - self.outstanding - self.unread;
        if idle < self.size() / 4 {
            return None;
        }
        self.read += idle;
        let more = self.growth(now, rtt).min(budget.growth);
        budget.growth -= more;
        self.grown += more;
        let credit = u32::try_from(idle + more).unwrap_or(u32::MAX);
        self.outstanding += u64::from(credit);
        Some(credit)
    }

    /// By how much it is too small, as far as that can be told now.
    fn growth(&mut self, now: Instant, rtt: Option<Duration>) -> u64 {
        let taken = now.saturating_duration_since(self.since);
        if taken < rtt.map_or(SAMPLE, |rtt| SAMPLE.max(3 * rtt / 2)) {
            return 0;
        }
        let read = std::mem::take(&mut self.read);
        self.since = now;
        let product =
            rtt.filter(|rtt| *rtt >= SHORT).map_or(0, |rtt| u128::from(read) * rtt.as_nanos() / taken.as_nanos());
        let product = u64::try_from(product).unwrap_or(u64::MAX);
        if 2 * self.size() < product.saturating_mul(5) { product.saturating_mul(8) - self.size() } else { 0 }
    }

    /// The peer sends nothing more. Unread bytes stay on the account until they are read.
    pub(super) fn end(&mut self, budget: &mut Budget) {
        self.ended = true;
        self.outstanding = 0;
        self.settle(budget);
    }

    /// Both directions have ended, and the stream's initial credit goes back to its pool.
    pub(super) fn close(&mut self, budget: &mut Budget) {
        self.closed = true;
        self.end(budget);
    }

    /// What is unread was thrown away, and so is what may still come.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        self.unread = 0;
        self.end(budget);
    }

    /// Keeps, after the end, no more of the budget than is unread.
    fn settle(&mut self, budget: &mut Budget) {
        let grown = self.grown.min(self.unread);
        budget.growth += self.grown - grown;
        self.grown = grown;
        let lingering = if self.closed { self.unread - grown } else { 0 };
        budget.lingering = budget.lingering + lingering - self.lingering;
        self.lingering = lingering;
    }

    /// What this window takes from the budget's growth pool.
    pub(super) const fn grown(&self) -> u64 {
        self.grown
    }

    /// What the budget counts as lingering of this window.
    pub(super) const fn lingering(&self) -> u64 {
        self.lingering
    }

    /// Bytes that the peer may make us hold, or has.
    pub(super) const fn held(&self) -> u64 {
        self.outstanding + self.unread
    }

    /// Whether the account adds up: credit and unread bytes never exceed the window.
    pub(super) const fn is_consistent(&self) -> bool {
        self.outstanding + self.unread <= self.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    #[test]
    fn grants_come_at_a_quarter_of_the_window() {
        let (now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(INITIAL, now);
        assert!(window.receive(INITIAL as usize));
        assert!(!window.receive(1), "no credit is left");
        assert_eq!(window.consume(1000, now, None, &mut budget), None);
        assert_eq!(window.consume(INITIAL as usize / 4, now, None, &mut budget), Some(INITIAL / 4 + 1000));
    }

    #[test]
    fn an_eager_reader_grows_to_the_budget_and_gives_it_back() {
        let (mut now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(budget.take_initial(), now);
        for _ in 0..12 {
            now += RTT;
            let bytes = usize::try_from(window.outstanding()).unwrap_or(0);
            assert!(window.receive(bytes));
            assert!(window.consume(bytes, now, Some(RTT), &mut budget).is_some());
        }
        assert_eq!(window.size(), u64::from(INITIAL) + Budget::GROWTH_POOL);
        window.end(&mut budget);
        assert_eq!(budget.left().1, Budget::GROWTH_POOL);
    }

    #[test]
    fn a_reader_that_was_busy_keeps_its_window() {
        let (mut now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(INITIAL, now);
        for _ in 0..10 {
            // What has come meanwhile is read at once, and the next comes when there is credit for it again.
            now += 3 * RTT;
            for _ in 0..2 {
                let bytes = INITIAL / 2;
                assert!(window.receive(bytes as usize));
                now += RTT / 10;
                assert_eq!(window.consume(bytes as usize, now, Some(RTT), &mut budget), Some(bytes));
            }
        }
        assert_eq!(window.size(), u64::from(INITIAL));
    }

    #[test]
    fn a_short_link_needs_no_more_however_fast_it_is() {
        let (mut now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(INITIAL, now);
        for turn in 0..10_000 {
            // 512 MB/s in bursts, as they come where one processor serves both ends.
            now += if turn % 8 == 0 { Duration::from_millis(2) } else { Duration::from_micros(10) };
            let bytes = INITIAL / 2;
            assert!(window.receive(bytes as usize));
            window.consume(bytes as usize, now, Some(Duration::from_micros(200)), &mut budget);
        }
        assert_eq!(window.size(), u64::from(INITIAL));
    }

    #[test]
    fn a_slow_reader_keeps_its_window() {
        let (mut now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(INITIAL, now);
        for _ in 0..10 {
            now += 4 * RTT;
            let bytes = usize::try_from(window.outstanding()).unwrap_or(0);
            assert!(window.receive(bytes));
            window.consume(bytes, now, Some(RTT), &mut budget);
        }
        assert_eq!(window.size(), u64::from(INITIAL));
    }

    #[test]
    fn unread_bytes_stay_on_the_account_after_the_end() {
        let (mut now, mut budget) = (Instant::now(), Budget::new());
        let mut window = Window::new(INITIAL, now);
        for _ in 0..4 {
            now += RTT;
            assert!(window.receive(200_000));
            window.consume(200_000, now, Some(RTT), &mut budget);
        }
        assert!(window.receive(1000));
        window.end(&mut budget);
        assert!(budget.left().1 < Budget::GROWTH_POOL);
        window.consume(1000, now, Some(RTT), &mut budget);
        assert_eq!(budget.left().1, Budget::GROWTH_POOL);
    }

    #[test]
    fn initial_credit_shrinks_to_the_floor_and_comes_back() {
        let mut budget = Budget::new();
        let mut peer = Budget::new();
        let taken: Vec<u32> = (0..1024).map(|_| budget.take_initial()).collect();
        assert!(taken.windows(2).all(|w| matches!(w, [a, b] if a >= b)));
        assert_eq!(taken.first(), Some(&INITIAL));
        assert!(taken.last().is_some_and(|&last| last < FLOOR + 64));
        assert!(taken.iter().all(|&credit| peer.accept_initial(credit)), "both ends keep the same account");
        assert!(!peer.accept_initial(INITIAL), "the pool is empty");
        assert!(!Budget::new().accept_initial(FLOOR - 1) && !Budget::new().accept_initial(INITIAL + 1));
        taken.iter().for_each(|&credit| budget.give_back_initial(credit));
        assert_eq!(budget.left().0, Budget::INITIAL_POOL);
    }
}
