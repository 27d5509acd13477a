//! How much of a token's tunnels the public may use, and how much it has.
//!
//! Requests per second are counted by the generic cell rate algorithm, which needs one instant; those under way are counted
//! as they come and go; the bytes of a month are counted here, and written down every few seconds, so that no request waits
//! for a disk. Two processes may count at once while one takes the place of the other: each adds what it has seen itself.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::{Instant, sleep};

use crate::Shared;
use crate::clock::{Month, moment, unix_now};
use crate::store::{Store, StoreError, TokenId, TokenLimits};

/// How often bytes are written down. So many seconds of them are lost where the relay is killed.
const SAVE: Duration = Duration::from_secs(10);

/// Of the requests of one second, so many at once.
const BURST: Duration = Duration::from_secs(1);

/// What is counted, by token. There are no more of them than tokens that were used since the start.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    meters: DashMap<TokenId, Arc<Meter>>,
    /// Held while one is made, so that it is not made of limits that are changed in that moment.
    making: tokio::sync::Mutex<()>,
}

impl Quotas {
    /// What counts for a token.
    ///
    /// # Errors
    /// [`StoreError`], where it was not used since the start and cannot be looked up.
    pub(crate) async fn meter(&self, store: &Store, token: TokenId) -> Result<Arc<Meter>, StoreError> {
        let known = || self.meters.get(&token).map(|meter| meter.clone());
        if let Some(meter) = known() {
            return Ok(meter);
        }
        let _making = self.making.lock().await;
        if let Some(meter) = known() {
            return Ok(meter);
        }
        let month = Month::of(unix_now());
        let (limits, used) = store.quota(token, month).await?;
        let meter = Arc::new(Meter::new(token, limits, month, used));
        self.meters.insert(token, meter.clone());
        Ok(meter)
    }

    /// A token has other limits from now on: those that the store has.
    ///
    /// # Errors
    /// [`StoreError`]; they are as they were.
    pub(crate) async fn limit(&self, store: &Store, token: TokenId) -> Result<(), StoreError> {
        // Held while they are read, too: what was changed first is not to win over what was changed last.
        let _making = self.making.lock().await;
        let Some(meter) = self.meters.get(&token).map(|meter| meter.clone()) else { return Ok(()) };
        let (limits, _) = store.quota(token, Month::of(unix_now())).await?;
        meter.lock().limits = limits;
        Ok(())
    }

    /// How many tokens have used up their bytes of this month.
    pub(crate) fn exhausted(&self, unix: i64) -> usize {
        self.meters.iter().filter(|meter| meter.lock().bytes_left(unix) == Some(0)).count()
    }

    /// Writes down what was counted since the last time.
    ///
    /// # Errors
    /// [`StoreError`]; it is tried again with the next one.
    pub(crate) async fn save(&self, store: &Store) -> Result<(), StoreError> {
        let counted: Vec<_> = self.meters.iter().flat_map(|meter| meter.counted()).collect();
        if counted.is_empty() {
            return Ok(());
        }
        let totals = store.count_bytes(counted.clone()).await?;
        for ((token, month, bytes), total) in counted.into_iter().zip(totals) {
            if let Some(meter) = self.meters.get(&token) {
                meter.saved(month, bytes, total);
            }
        }
        Ok(())
    }
}

/// Writes down what is counted, until the relay closes. What is left then is the caller's to save.
pub(crate) async fn run(shared: Arc<Shared>) {
    while shared.closing.run_until_cancelled(sleep(SAVE)).await.is_some() {
        if let Err(error) = shared.quotas.save(&shared.store).await {
            tracing::error!(%error, "the bytes that tokens have used were not written down, which is tried again");
        }
    }
}

/// What counts for one token.
#[derive(Debug)]
pub(crate) struct Meter {
    token: TokenId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: TokenLimits,
    /// When the token has paid for the requests that it has had.
    paid: Option<Instant>,
    /// Requests under way.
    streams: u32,
    /// The bytes of this month, and of months before that are not written down yet.
    months: Vec<Bytes>,
    /// When this month is over, in Unix seconds.
    until: i64,
}

/// The bytes of a month.
#[derive(Debug)]
struct Bytes {
    month: Month,
    /// Those that the store knows of.
    saved: u64,
    /// Those that it does not.
    unsaved: u64,
}

/// Why a request is one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// So many in a second are allowed.
    Rate(u32),
    /// So many at once are.
    Streams(u32),
    /// So many bytes in a month are, and there are more again from that moment on, in Unix seconds.
    Bytes(u64, i64),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ones = |number: u32| if number == 1 { "" } else { "s" };
        match *self {
            Self::Rate(most) => write!(
                f,
                "The tunnel's owner may have {most} request{} per second, which are used up; try again in a second.",
                ones(most)
            ),
            Self::Streams(most) => write!(
                f,
                "The tunnel's owner may have {most} request{} under way at once, as many as there are; try again when one has ended.",
                ones(most)
            ),
            Self::Bytes(most, until) => write!(
                f,
                "The tunnel's owner has used up the {} of this month; there are more again on {}.",
                relay_protocol::inbox::sized(most),
                moment(until)
            ),
        }
    }
}

impl Meter {
    fn new(token: TokenId, limits: TokenLimits, month: Month, saved: u64) -> Self {
        let months = vec![Bytes { month, saved, unsaved: 0 }];
        let state = State { limits, paid: None, streams: 0, months, until: month.end() };
        Self { token, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose it is.
    pub(crate) fn token(&self) -> TokenId {
        self.token
    }

    /// What the token may have, as it is now.
    pub(crate) fn limits(&self) -> TokenLimits {
        self.lock().limits.clone()
    }

    /// Whether requests may come from there. None: that is not known, and so nowhere where it matters.
    pub(crate) fn admits_address(&self, address: Option<IpAddr>) -> bool {
        let state = self.lock();
        let allow = &state.limits.allow;
        allow.is_empty() || address.is_some_and(|address| allow.iter().any(|network| network.contains(address)))
    }

    /// The longest body that a request may have, where there is a limit.
    pub(crate) fn max_body(&self) -> Option<u64> {
        self.lock().limits.max_body
    }

    /// Lets a request in that comes at that moment, by both clocks; it is under way for as long as the pass is there.
    ///
    /// # Errors
    /// [`Over`]: the token has used up what it may.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant, unix: i64) -> Result<Pass, Over> {
        let mut state = self.lock();
        let TokenLimits { max_bytes, max_streams, max_rate, .. } = state.limits;
        if let Some(most) = max_bytes.filter(|_| state.bytes_left(unix) == Some(0)) {
            return Err(Over::Bytes(most, state.until));
        }
        if let Some(most) = max_streams.filter(|most| state.streams >= *most) {
            return Err(Over::Streams(most));
        }
        if let Some(most) = max_rate {
            let each = BURST / most.max(1);
            let from = state.paid.map_or(now, |paid| paid.max(now));
            if from + each > now + BURST {
                return Err(Over::Rate(most));
            }
            state.paid = Some(from + each);
        }
        state.streams += 1;
        Ok(Pass(self.clone()))
    }

    fn count(&self, bytes: u64, unix: i64) {
        let mut state = self.lock();
        state.turn(unix);
        if let Some(month) = state.months.last_mut() {
            month.unsaved = month.unsaved.saturating_add(bytes);
        }
    }

    /// What the store does not know of.
    fn counted(&self) -> Vec<(TokenId, Month, u64)> {
        let state = self.lock();
        let unsaved = state.months.iter().filter(|bytes| bytes.unsaved > 0);
        unsaved.map(|bytes| (self.token, bytes.month, bytes.unsaved)).collect()
    }

    /// The store knows of so many more of a month, of which there are so many in all.
    fn saved(&self, month: Month, bytes: u64, total: u64) {
        let mut state = self.lock();
        if let Some(of) = state.months.iter_mut().find(|of| of.month == month) {
            of.unsaved = of.unsaved.saturating_sub(bytes);
            of.saved = total;
        }
        let last = state.months.last().map(|bytes| bytes.month);
        state.months.retain(|bytes| Some(bytes.month) == last || bytes.unsaved > 0);
    }
}

impl State {
    /// How many bytes the token may still have in this month, where they are limited.
    fn bytes_left(&mut self, unix: i64) -> Option<u64> {
        let most = self.limits.max_bytes?;
        self.turn(unix);
        let used = self.months.last().map_or(0, |bytes| bytes.saved.saturating_add(bytes.unsaved));
        Some(most.saturating_sub(used))
    }

    /// Begins another month where this one is over.
    fn turn(&mut self, unix: i64) {
        if unix >= self.until {
            let month = Month::of(unix);
            self.until = month.end();
            self.months.push(Bytes { month, saved: 0, unsaved: 0 });
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Meter>);

impl Pass {
    /// What it counts for.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        self.0.clone()
    }

    /// Counts the bytes that it has had.
    pub(crate) fn count(&self, bytes: u64) {
        self.0.count(bytes, unix_now());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.lock().streams -= 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::store::LimitChange;

    /// The last second of November 2026.
    const LAST: i64 = 1_796_083_199;

    fn meter(limits: TokenLimits, used: u64) -> Arc<Meter> {
        Arc::new(Meter::new(TokenId(1), limits, Month::of(LAST), used))
    }

    #[test]
    fn months_are_those_of_the_calendar_in_utc() {
        assert_eq!((Month::of(LAST).end(), Month::of(LAST + 1)), (LAST + 1, Month(Month::of(LAST).0 + 1)));
        assert_eq!(moment(Month::of(LAST + 1).end()), "2027-01-01T00:00:00Z");
        assert_eq!(Month(i32::MAX).end(), i64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_has_as_many_requests_as_are_allowed_and_no_more_later() {
        let meter = meter(TokenLimits { max_rate: Some(5), ..TokenLimits::default() }, 0);
        let start = Instant::now();
        let admitted = |at: Instant| (0..20).filter(|_| meter.admit(at, LAST).is_ok()).count();
        assert_eq!(admitted(start), 5);
        assert_eq!(meter.admit(start, LAST).unwrap_err(), Over::Rate(5));
        assert_eq!(admitted(start + Duration::from_millis(200)), 1);
        assert_eq!(admitted(start + Duration::from_secs(60)), 5, "what was not used is not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_under_way_until_its_pass_is_gone() {
        let meter = meter(TokenLimits { max_streams: Some(2), ..TokenLimits::default() }, 0);
        let admit = || meter.admit(Instant::now(), LAST);
        let (first, _second) = (admit().unwrap(), admit().unwrap());
        assert_eq!(admit().unwrap_err(), Over::Streams(2));
        drop(first);
        admit().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_bytes_of_a_month_end_with_it() {
        let meter = meter(TokenLimits { max_bytes: Some(1000), ..TokenLimits::default() }, 900);
        let admit = |unix| meter.admit(Instant::now(), unix);
        let pass = admit(LAST).unwrap();
        pass.0.count(100, LAST);
        let over = admit(LAST).unwrap_err();
        assert_eq!(over, Over::Bytes(1000, LAST + 1));
        assert!(over.to_string().contains("1000 of this month") && over.to_string().contains("2026-12-01T00:00:00Z"));
        let next = admit(LAST + 1).expect("another month");
        next.0.count(7, LAST + 1);
        let (month, following) = (Month::of(LAST), Month::of(LAST + 1));
        assert_eq!(meter.counted(), [(TokenId(1), month, 100), (TokenId(1), following, 7)]);
        meter.saved(month, 100, 1000);
        meter.saved(following, 5, 2000);
        assert_eq!(meter.counted(), [(TokenId(1), following, 2)], "and another process has counted as well");
        assert!(admit(LAST + 1).is_err());
    }

    #[tokio::test]
    async fn what_was_counted_is_there_after_a_restart() {
        let store = Store::in_memory().unwrap();
        let new = crate::store::NewToken {
            name: "a".to_owned(),
            reserve: Vec::new(),
            expires_at: None,
            limits: TokenLimits { max_bytes: Some(10), ..TokenLimits::default() },
        };
        let (_, token) = store.create_token(new, unix_now()).await.unwrap();
        let quotas = Quotas::default();
        let meter = quotas.meter(&store, token.id).await.unwrap();
        meter.admit(Instant::now(), unix_now()).unwrap().count(10);
        assert!(meter.admit(Instant::now(), unix_now()).is_err());
        quotas.save(&store).await.unwrap();
        quotas.save(&store).await.unwrap();
        let quotas = Quotas::default();
        let meter = quotas.meter(&store, token.id).await.unwrap();
        assert!(matches!(meter.admit(Instant::now(), unix_now()), Err(Over::Bytes(10, _))), "{meter:?}");
        assert_eq!(quotas.exhausted(unix_now()), 1);
        let change = LimitChange { max_bytes: Some(Some(11)), ..LimitChange::default() };
        store.limit_token("a", change).await.unwrap();
        quotas.limit(&store, token.id).await.unwrap();
        assert!(meter.admit(Instant::now(), unix_now()).is_ok());
        assert_eq!(quotas.exhausted(unix_now()), 0);
        assert_eq!(store.list_tokens(unix_now()).await.unwrap()[0].month_bytes, 10, "once, however often it is saved");
    }
}
