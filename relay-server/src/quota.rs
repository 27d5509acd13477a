//! How much of a token's tunnels the public may use, and how much it has.
//!
//! Requests per second are counted by the generic cell rate algorithm, which needs one instant; those under way are counted
//! as they come and go; the bytes of a month are counted here, at the end of an exchange or whenever there were [many](EACH), and
//! written down every few seconds, so that no request waits for a disk. Two processes may count at once while one takes the place of the other: each adds what it has seen itself.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
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

/// Bytes of an exchange that goes on are counted when there are so many more of them.
pub(crate) const EACH: u64 = 1 << 20;

/// What is under way when a month is used up may go on for this share of it, or for [`EACH`] where that is more: most would not have
/// been much longer. What goes beyond is ended.
const BEYOND: u64 = 10;

/// Months that are remembered beside the present one.
const MONTHS: i32 = 13;

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

    /// As [`Quotas::limit`], for all tokens: another process may have changed them.
    ///
    /// # Errors
    /// [`StoreError`]; some are as they were.
    pub(crate) async fn limit_all(&self, store: &Store) -> Result<(), StoreError> {
        let tokens: Vec<TokenId> = self.meters.iter().map(|meter| *meter.key()).collect();
        for token in tokens {
            self.limit(store, token).await?;
        }
        Ok(())
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
    let mut pruned = None;
    while shared.closing.run_until_cancelled(sleep(SAVE)).await.is_some() {
        let month = Month::of(unix_now());
        if pruned != Some(month) {
            match shared.store.forget_months(Month(month.0 - MONTHS)).await {
                Ok(()) => pruned = Some(month),
                Err(error) => tracing::error!(%error, "the bytes of months long ago were not forgotten"),
            }
        }
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
    /// The bytes of this month, by the clock that may have been set since, and its seconds.
    month: Bytes,
    span: Range<i64>,
    /// Those of others that are not written down yet.
    others: Vec<Bytes>,
}

/// The bytes of a month.
#[derive(Debug)]
struct Bytes {
    month: Month,
    /// Those that the store knows of.
    saved: u64,
    /// Those that it does not.
    unsaved: u64,
    /// What the store knows is known here.
    is_known: bool,
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
        let (span, others) = (month.span(), Vec::new());
        let month = Bytes { month, saved, unsaved: 0, is_known: true };
        let state = State { limits, paid: None, streams: 0, month, span, others };
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

    /// Whether requests may come from an address, which is asked for only where it matters, and the longest body that they may
    /// have, where there is a limit. No address: that is not known, and so is nowhere.
    pub(crate) fn confines(&self, address: impl FnOnce() -> Option<IpAddr>) -> (bool, Option<u64>) {
        let limits = &self.lock().limits;
        let is_in = |address| limits.allow.iter().any(|network| network.contains(address));
        (limits.allow.is_empty() || address().is_some_and(is_in), limits.max_body)
    }

    /// Lets a request in that comes at that moment, by both clocks; it is under way for as long as the pass is there.
    ///
    /// # Errors
    /// [`Over`]: the token has used up what it may.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant, unix: i64) -> Result<Pass, Over> {
        let mut state = self.lock();
        let TokenLimits { max_bytes, max_streams, max_rate, .. } = state.limits;
        if let Some(most) = max_bytes.filter(|_| state.bytes_left(unix) == Some(0)) {
            return Err(Over::Bytes(most, state.span.end));
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

    /// Counts bytes of a request.
    ///
    /// # Errors
    /// [`Over`]: that is so much more than the token may have that the request is to end.
    pub(crate) fn count(&self, bytes: u64, unix: i64) -> Result<(), Over> {
        let mut state = self.lock();
        let month = state.turn(unix);
        month.unsaved = month.unsaved.saturating_add(bytes);
        let used = month.saved.saturating_add(month.unsaved);
        match state.limits.max_bytes {
            Some(most) if used >= most.saturating_add((most / BEYOND).max(EACH)) => {
                Err(Over::Bytes(most, state.span.end))
            }
            _ => Ok(()),
        }
    }

    /// What the store does not know of.
    fn counted(&self) -> Vec<(TokenId, Month, u64)> {
        let state = self.lock();
        let all = state.others.iter().chain([&state.month]);
        let unsaved = all.filter(|bytes| bytes.unsaved > 0 || !bytes.is_known);
        unsaved.map(|bytes| (self.token, bytes.month, bytes.unsaved)).collect()
    }

    /// The store knows of so many more of a month, of which there are so many in all.
    fn saved(&self, month: Month, bytes: u64, total: u64) {
        let mut state = self.lock();
        let State { month: now, others, .. } = &mut *state;
        if let Some(of) = others.iter_mut().chain([now]).find(|of| of.month == month) {
            of.unsaved = of.unsaved.saturating_sub(bytes);
            (of.saved, of.is_known) = (total, true);
        }
        others.retain(|bytes| bytes.unsaved > 0);
    }
}

impl State {
    /// How many bytes the token may still have in this month, where they are limited.
    fn bytes_left(&mut self, unix: i64) -> Option<u64> {
        let most = self.limits.max_bytes?;
        let month = self.turn(unix);
        Some(most.saturating_sub(month.saved.saturating_add(month.unsaved)))
    }

    /// The month of that moment, which is this one from now on: months begin, and clocks are set, both ways.
    fn turn(&mut self, unix: i64) -> &mut Bytes {
        if !self.span.contains(&unix) {
            let month = Month::of(unix);
            self.span = month.span();
            let known = self.others.iter().position(|bytes| bytes.month == month).map(|at| self.others.swap_remove(at));
            // What the store knows of it is learned when it is next written to.
            let next = known.unwrap_or(Bytes { month, saved: 0, unsaved: 0, is_known: false });
            let before = std::mem::replace(&mut self.month, next);
            self.others.extend(Some(before).filter(|before| before.unsaved > 0));
        }
        &mut self.month
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Meter>);

impl Pass {
    /// What it counts for.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.0
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

    use std::collections::BTreeMap;

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
        pass.0.count(100, LAST).unwrap();
        let over = admit(LAST).unwrap_err();
        assert_eq!(over, Over::Bytes(1000, LAST + 1));
        assert!(over.to_string().contains("1000 of this month") && over.to_string().contains("2026-12-01T00:00:00Z"));
        let next = admit(LAST + 1).expect("another month");
        next.0.count(7, LAST + 1).unwrap();
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
        meter.admit(Instant::now(), unix_now()).unwrap().meter().count(10, unix_now()).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_forth_and_back_neither_gives_nor_takes_a_month() {
        let meter = meter(TokenLimits { max_bytes: Some(1000), ..TokenLimits::default() }, 0);
        let (month, year) = (Month::of(LAST), 365 * 24 * 3600);
        meter.count(600, LAST).unwrap();
        meter.count(900, LAST + year).unwrap();
        meter.count(300, LAST).unwrap();
        let counted = |meter: &Meter| {
            meter.counted().into_iter().map(|(_, month, bytes)| (month, bytes)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(counted(&meter), BTreeMap::from([(month, 900), (Month::of(LAST + year), 900)]));
        meter.saved(month, 900, 900);
        meter.saved(Month::of(LAST + year), 900, 900);
        meter.admit(Instant::now(), LAST).unwrap();
        meter.count(100, LAST).unwrap();
        assert_eq!(meter.admit(Instant::now(), LAST).unwrap_err(), Over::Bytes(1000, LAST + 1));

        // A month that is come back to is asked for, though nothing is added to it.
        meter.saved(month, 100, 1000);
        meter.admit(Instant::now(), LAST + year).unwrap();
        meter.saved(month, 0, 1000);
        meter.admit(Instant::now(), LAST).unwrap();
        assert_eq!(counted(&meter), BTreeMap::from([(month, 0)]));
        meter.saved(month, 0, 1000);
        assert!(meter.admit(Instant::now(), LAST).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_may_go_on_for_a_tenth_or_for_a_mebibyte() {
        let meter = meter(TokenLimits { max_bytes: Some(100 * EACH), ..TokenLimits::default() }, 99 * EACH);
        meter.count(EACH, LAST).unwrap();
        meter.count(10 * EACH - 1, LAST).unwrap();
        assert_eq!(meter.count(1, LAST).unwrap_err(), Over::Bytes(100 * EACH, LAST + 1));
        let meter = self::meter(TokenLimits { max_bytes: Some(10), ..TokenLimits::default() }, 9);
        meter.count(EACH, LAST).unwrap();
        assert!(meter.count(1, LAST).is_err());
    }
}
