//! What sessions take of the relay's limits and of their tokens'.
//!
//! ```text
//!              the token has room
//!   enter ──────────────────────────────▶ a seat ─▶ free again: the place is dropped, or another session takes over
//!     │                                     ▲
//!     └── it has none ─▶ a spare seat ──────┘ there is room by now, or the session takes over the seat of another
//! ```
//!
//! Every step is one step under one lock, so that no seat and no tunnel can be counted twice, or be given to a third
//! session on its way from one to another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::TokenId;

/// What all sessions take.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    /// Places taken, by sessions that are live and by upgrades on their way to be.
    all: AtomicUsize,
    used: Mutex<HashMap<TokenId, Used>>,
}

/// What the sessions of a token take of its limits.
#[derive(Debug, Default)]
struct Used {
    sessions: u32,
    /// Those beyond the limit; see [`Seat::spare`].
    spares: u32,
    tunnels: u32,
}

/// What one session takes of its token's limits. Changed only under the lock of [`Seats::used`].
#[derive(Debug)]
pub(crate) struct Seat {
    /// It is one more than the token may have: a session that resumes another has that one's seat, but says so only in
    /// its Hello.
    spare: AtomicBool,
    tunnels: AtomicU32,
    /// It takes nothing any more: the session has ended, or another has resumed it and will end it.
    vacant: AtomicBool,
}

/// Why there is no place for another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// The relay has no more.
    #[error("the relay has as many sessions as it takes")]
    Relay,
    /// The token has no more.
    #[error("the token has {0} sessions, as many as it may")]
    Token(u32),
}

impl Seats {
    /// Places taken.
    pub(crate) fn all(&self) -> usize {
        self.all.load(Relaxed)
    }

    /// A place for a session of which nothing is known but its token. Beyond the token's limit it is a spare one, of
    /// which there are as many again, so that each session can be resumed while the relay still believes in it.
    ///
    /// # Errors
    /// [`Full`]: the relay has `most` sessions, or the token has `of_token` and as many spare ones.
    pub(crate) fn enter(self: &Arc<Self>, token: TokenId, of_token: u32, most: usize) -> Result<Place, Full> {
        self.used(token, |used| {
            let spare = used.sessions >= of_token;
            if spare && used.spares >= of_token {
                return Err(Full::Token(of_token));
            }
            let one_more = |all| (all < most).then_some(all + 1);
            self.all.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| Full::Relay)?;
            *if spare { &mut used.spares } else { &mut used.sessions } += 1;
            let seat = Seat { spare: spare.into(), tunnels: AtomicU32::new(0), vacant: AtomicBool::new(false) };
            Ok(Place { seats: self.clone(), token, seat: Arc::new(seat) })
        })
    }

    fn used<R>(&self, token: TokenId, change: impl FnOnce(&mut Used) -> R) -> R {
        let mut tokens = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = tokens.entry(token).or_default();
        let result = change(used);
        if used.sessions + used.spares == 0 {
            tokens.remove(&token);
        }
        result
    }
}

impl Used {
    /// Frees a seat, and returns whether that was one of those that the token may have.
    fn vacate(&mut self, seat: &Seat) -> bool {
        if seat.vacant.swap(true, Relaxed) {
            return false;
        }
        self.tunnels -= seat.tunnels.swap(0, Relaxed);
        let spare = seat.spare.load(Relaxed);
        *if spare { &mut self.spares } else { &mut self.sessions } -= 1;
        !spare
    }
}

/// A place among the sessions of the relay and of a token, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    seats: Arc<Seats>,
    token: TokenId,
    seat: Arc<Seat>,
}

impl Place {
    /// What another session needs to take this one's seat over.
    pub(crate) fn seat(&self) -> Arc<Seat> {
        self.seat.clone()
    }

    /// Sees to it that the place is not a spare one, now that it is known what the session is for. One that resumes
    /// others, of the same token, has their seat from here on, however many others want one.
    ///
    /// # Errors
    /// [`Full::Token`]: the token has `of_token` sessions.
    pub(crate) fn settle<'a>(&self, of_token: u32, resumed: impl IntoIterator<Item = &'a Seat>) -> Result<(), Full> {
        self.seats.used(self.token, |used| {
            let inherits = resumed.into_iter().fold(false, |inherits, seat| used.vacate(seat) | inherits);
            if !self.seat.spare.load(Relaxed) {
                return Ok(());
            }
            if used.sessions >= of_token && !inherits {
                return Err(Full::Token(of_token));
            }
            used.spares -= 1;
            used.sessions += 1;
            self.seat.spare.store(false, Relaxed);
            Ok(())
        })
    }

    /// Counts one more tunnel; `None` when the token's sessions have `most` already. Looked at and counted at once,
    /// because binding takes its time, and others bind meanwhile.
    pub(crate) fn count_tunnel(&self, most: u32) -> Option<Counted> {
        self.seats.used(self.token, |used| {
            // A session that another has resumed, and that ends, has no share of the limits any more.
            if used.tunnels >= most || self.seat.vacant.load(Relaxed) {
                return None;
            }
            self.seat.tunnels.fetch_add(1, Relaxed);
            used.tunnels += 1;
            let (seats, token, seat) = (self.seats.clone(), self.token, self.seat.clone());
            Some(Counted { seats, token, seat, ended: AtomicBool::new(false) })
        })
    }

    /// Gives the seat back, before the place is.
    pub(crate) fn vacate(&self) {
        self.seats.used(self.token, |used| used.vacate(&self.seat));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.vacate();
        self.seats.all.fetch_sub(1, Relaxed);
    }
}

/// A tunnel among those of a token, until it has ended or is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    seats: Arc<Seats>,
    token: TokenId,
    seat: Arc<Seat>,
    ended: AtomicBool,
}

impl Counted {
    /// The tunnel counts no more: it was closed, or another session has its name now.
    pub(crate) fn end(&self) {
        self.seats.used(self.token, |used| {
            if !self.ended.swap(true, Relaxed) && !self.seat.vacant.load(Relaxed) {
                self.seat.tunnels.fetch_sub(1, Relaxed);
                used.tunnels -= 1;
            }
        });
    }

    /// Whether [`Self::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn token() -> TokenId {
        serde_json::from_value(1.into()).unwrap()
    }

    /// Sessions, spare ones and tunnels.
    fn used(seats: &Arc<Seats>) -> (u32, u32, u32) {
        seats.used(token(), |used| (used.sessions, used.spares, used.tunnels))
    }

    #[test]
    fn a_spare_place_is_for_who_resumes() {
        let seats = Arc::new(Seats::default());
        let enter = || seats.enter(token(), 1, 3);
        let first = enter().unwrap();
        first.settle(1, None).unwrap();
        let spare = enter().unwrap();
        assert_eq!(spare.settle(1, None), Err(Full::Token(1)));
        assert_eq!(enter().unwrap_err(), Full::Token(1), "there is one spare place for each");
        assert_eq!(seats.enter(token(), 9, 2).unwrap_err(), Full::Relay);
        assert_eq!(seats.all(), 2, "an upgrade on its way counts");
        spare.settle(1, Some(&*first.seat)).unwrap();
        assert_eq!(used(&seats), (1, 0, 0));
        // Whoever ends late gives nothing back twice.
        drop(first);
        assert_eq!((used(&seats), seats.all()), ((1, 0, 0), 1));
        drop(spare);
        assert_eq!((seats.all(), seats.used.lock().unwrap().len()), (0, 0), "a token that has nothing costs nothing");
    }

    /// Between two steps somebody else would take the seat, and the session that resumes would be refused.
    #[test]
    fn a_seat_that_changes_hands_is_never_free_in_between() {
        let seats = Arc::new(Seats::default());
        let mut holder = seats.enter(token(), 1, 10).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                let mut tries = 0;
                while !over.load(Relaxed) {
                    // As many spare places as there are seats: sometimes there is none.
                    let Ok(place) = seats.enter(token(), 1, 10) else { continue };
                    assert_eq!(place.settle(1, None), Err(Full::Token(1)));
                    tries += 1;
                }
                tries
            });
            let mut handed_over = 0;
            while handed_over < 10_000 {
                let Ok(place) = seats.enter(token(), 1, 10) else { continue };
                place.settle(1, Some(&*holder.seat)).expect("the seat is handed over");
                holder = place;
                handed_over += 1;
            }
            over.store(true, Relaxed);
            println!("{} tries of a stranger", stranger.join().unwrap());
        });
        drop(holder);
        assert_eq!(seats.all(), 0);
    }

    #[test]
    fn a_tunnel_counts_until_it_ends_and_once() {
        let seats = Arc::new(Seats::default());
        let [one, two] = [(); 2].map(|()| seats.enter(token(), 2, 10).unwrap());
        let first = one.count_tunnel(2).unwrap();
        let second = one.count_tunnel(2).unwrap();
        assert!(two.count_tunnel(2).is_none(), "the token has two");
        first.end();
        assert!(first.has_ended() && !second.has_ended());
        first.end();
        drop(first);
        assert_eq!(used(&seats), (2, 0, 1));
        let third = two.count_tunnel(2).unwrap();
        // What a session leaves behind goes with it.
        one.vacate();
        assert_eq!(used(&seats), (1, 0, 1));
        drop((one, second, third));
        assert_eq!(used(&seats), (1, 0, 0));
        two.vacate();
        assert!(two.count_tunnel(2).is_none(), "nothing is bound beside the limits while it ends");
        assert_eq!((used(&seats), seats.all()), ((0, 0, 0), 1));
    }
}
