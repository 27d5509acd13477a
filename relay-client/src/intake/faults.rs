//! Faults on purpose: what networks, providers and tired services do to an app once in a while, done so often that it can
//! be tested whether the app bears it.
//!
//! ```text
//!   --fault delay=2s@30%,duplicate@10%,reorder@20%,drop@5%,500@5%,seed=7
//! ```
//!
//! Each is drawn for each request by itself, and what was drawn happens in one order: delay, reorder, status, drop,
//! duplicate. A request that is sent once more, by a person or by a fault, meets none.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join;
use http::StatusCode;
use relay_protocol::frame::Reset;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::caller::Caller;
use super::gate::{BODY_MAX, refused, reset_of, send, unless_gone};
use crate::capture::entry::REPLAY_OF;
use crate::capture::replay::{Replay, Resign};
use crate::door::{Answer, Door, LocalError};
use crate::upstream::{Ending, Gathered};
use crate::value::duration;

/// The longest time for which a request is held until a later one has passed it.
const REORDER_MAX: Duration = Duration::from_secs(5);

/// Which faults a tunnel has, and how often.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    faults: Vec<Fault>,
    /// With the same number the same requests meet the same faults.
    seed: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Fault {
    kind: Kind,
    /// Of a hundred requests.
    percent: f64,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The service gets it so much later.
    Delay(Duration),
    /// The service gets it after one that came later.
    Reorder,
    /// The service does not get it, and its sender is told this.
    Status(StatusCode),
    /// The service gets it, and its sender hears nothing of the answer.
    Drop,
    /// The service gets it twice at once.
    Duplicate,
}

/// What names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// There is none of that name.
    #[error("{0:?} is no fault: there are delay=2s, duplicate, reorder, drop, a status such as 500, and seed=7")]
    Unknown(String),
    /// It cannot be so often.
    #[error("{0:?} is no share of requests: write one from 0 to 100, as in drop@5%")]
    Share(String),
}

impl FromStr for Faults {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut all = Self::default();
        for written in text.split(',').map(str::trim).filter(|written| !written.is_empty()) {
            let unknown = || FaultError::Unknown(written.to_owned());
            if let Some(seed) = written.strip_prefix("seed=") {
                all.seed = Some(seed.parse().map_err(|_| unknown())?);
                continue;
            }
            let (kind, share) = written.split_once('@').unwrap_or((written, "100"));
            let kind = match kind.split_once('=') {
                Some(("delay", time)) => Kind::Delay(duration(time).map_err(|_| unknown())?),
                None if kind == "duplicate" => Kind::Duplicate,
                None if kind == "reorder" => Kind::Reorder,
                None if kind == "drop" => Kind::Drop,
                None => Kind::Status(kind.parse().ok().filter(is_failure).ok_or_else(unknown)?),
                Some(_) => return Err(unknown()),
            };
            let percent = share.strip_suffix('%').unwrap_or(share).parse().ok();
            let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
            all.faults.push(Fault { kind, percent: percent.ok_or_else(|| FaultError::Share(written.to_owned()))? });
        }
        Ok(all)
    }
}

fn is_failure(status: &StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.faults.iter().map(ToString::to_string);
        let seed = self.seed.map(|seed| format!("seed={seed}"));
        f.write_str(&faults.chain(seed).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Delay(time) => write!(f, "delay={time:?}")?,
            Kind::Duplicate => f.write_str("duplicate")?,
            Kind::Reorder => f.write_str("reorder")?,
            Kind::Drop => f.write_str("drop")?,
            Kind::Status(status) => f.write_str(status.as_str())?,
        }
        write!(f, "@{}%", self.percent)
    }
}

/// What brings the faults about.
#[derive(Debug)]
pub(crate) struct Injector {
    faults: Vec<Fault>,
    rng: Mutex<Rng>,
    /// By which a request comes in once more.
    door: Door,
    /// How many requests have come.
    come: AtomicU64,
    /// The last to come of those that were answered, counted so.
    answered: watch::Sender<u64>,
}

/// What becomes of a request that meets no fault that ends it.
#[derive(Debug)]
pub(super) struct Met<'i> {
    injector: &'i Injector,
    tunnel: &'i str,
    /// The how many-th it is of the tunnel's.
    number: u64,
    /// What it has met already, for a person.
    notes: Vec<String>,
    /// It is sent once more besides.
    again: Option<Replay>,
}

impl Met<'_> {
    /// How it ends, with what it has met, while it is sent once more where that was drawn.
    pub(super) async fn with(self, served: impl Future<Output = (Ending, Duration)>) -> (Ending, Duration) {
        let Self { injector, tunnel, number, mut notes, again } = self;
        let served = async {
            let served = served.await;
            injector.was_answered(number);
            served
        };
        let ((mut ending, took), note) = join(served, injector.send_again(tunnel, again)).await;
        notes.extend(note);
        if !notes.is_empty() {
            let notes = format!("fault: {}", notes.join("; "));
            ending.detail = Some(ending.detail.map_or(notes.clone(), |detail| format!("{detail}; {notes}")));
        }
        (ending, took)
    }
}

impl Injector {
    /// None where there are no faults.
    pub(crate) fn new(faults: &Faults, door: Door) -> Option<Self> {
        let rng = faults.seed.map_or_else(Rng::new, Rng::with_seed);
        let mut faults = faults.faults.clone();
        faults.sort_by_key(|fault| fault.kind);
        let (come, answered) = (AtomicU64::new(0), watch::Sender::new(0));
        (!faults.is_empty()).then(|| Self { faults, rng: Mutex::new(rng), door, come, answered })
    }

    /// What a request meets before its service has it.
    ///
    /// # Errors
    /// How it has ended, where it is one that a fault ends.
    pub(super) async fn meet<'i>(&'i self, tunnel: &'i str, caller: &mut Caller<'_>) -> Result<Met<'i>, Ending> {
        let number = self.come.fetch_add(1, Relaxed) + 1;
        let mut met = Met { injector: self, tunnel, number, notes: Vec::new(), again: None };
        let is_again = caller.head.headers.iter().any(|(name, _)| *name == REPLAY_OF);
        if is_again || caller.head.upgrade.is_some() {
            return Ok(met);
        }
        let gone = |error| refused(caller.stream, reset_of(error), None);
        for kind in self.draw() {
            match kind {
                Kind::Status(status) => {
                    let body = b"A fault that was asked for: the service has not seen this request.\n".to_vec();
                    send(caller, status, Vec::new(), body).await.map_err(gone)?;
                    let detail = format!("fault: answered with {} instead of the service", status.as_u16());
                    return Err(Ending { status: Some(status), error: Some(FAULT), detail: Some(detail) });
                }
                Kind::Delay(time) => {
                    unless_gone(caller.stream, sleep(time)).await.map_err(gone)?;
                    met.notes.push(format!("delayed by {time:?}"));
                }
                Kind::Reorder => {
                    let most = REORDER_MAX.min(Duration::from_millis(caller.head.deadline_ms.into()) / 2);
                    let mut answered = self.answered.subscribe();
                    let later = timeout(most, answered.wait_for(|number| *number > met.number));
                    met.notes.push(match unless_gone(caller.stream, later).await.map_err(gone)? {
                        Ok(_) => "held until a later one was answered".to_owned(),
                        Err(_) => format!("held for {most:?}, in which no later one was answered"),
                    });
                }
                Kind::Duplicate | Kind::Drop => match caller.hold(BODY_MAX).await.map_err(gone)? {
                    Gathered::Whole if kind == Kind::Drop => return Err(self.drop_answer(tunnel, caller).await),
                    Gathered::Whole => met.again = Some(again(caller)),
                    Gathered::TooLong => met.notes.push("its body is too long to be kept for a fault".to_owned()),
                    Gathered::NoRoom => {
                        met.notes.push("too much of others is kept to keep its body for a fault, too".to_owned());
                    }
                },
            }
        }
        Ok(met)
    }

    /// Sends a request once more where that was drawn; what a person is told of it.
    async fn send_again(&self, tunnel: &str, again: Option<Replay>) -> Option<String> {
        Some(match self.door.ask(tunnel, again?, Resign::Never).await {
            Ok(answer) => format!("sent twice; to {} the service {}", answer.id, said(&answer)),
            Err(error) => not_sent(&error),
        })
    }

    fn was_answered(&self, number: u64) {
        self.answered.send_if_modified(|last| {
            let is_later = number > *last;
            *last = (*last).max(number);
            is_later
        });
    }

    /// The service is asked by a request of our own, so that nothing of its answer reaches the sender.
    async fn drop_answer(&self, tunnel: &str, caller: &Caller<'_>) -> Ending {
        let asked = unless_gone(caller.stream, self.door.ask(tunnel, again(caller), Resign::Never)).await;
        let note = match asked {
            Ok(Ok(answer)) => format!("the answer was dropped; to {} the service {}", answer.id, said(&answer)),
            Ok(Err(error)) => not_sent(&error),
            Err(error) => return refused(caller.stream, reset_of(error), None),
        };
        let ending = refused(caller.stream, Reset::Deadline, Some(format!("fault: {note}")));
        Ending { error: Some(FAULT), ..ending }
    }

    fn draw(&self) -> Vec<Kind> {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        // One number for each, whatever comes of the others.
        let drawn = self.faults.iter().filter(|fault| rng.f64() * 100.0 < fault.percent);
        drawn.map(|fault| fault.kind).collect()
    }
}

/// The code of what was asked for.
const FAULT: &str = "fault";

fn again(caller: &Caller<'_>) -> Replay {
    let provider = caller.sender().map(|sender| sender.id.clone());
    let body = caller.body.whole().map(Vec::from).unwrap_or_default();
    let trailers = caller.body.trailers();
    Replay { of: Some(caller.head.id.to_string()), trailers, ..Replay::made(caller.head.clone(), provider, body) }
}

fn said(answer: &Answer) -> String {
    match (answer.status, answer.error) {
        (Some(status), None) => format!("said {}", status.as_u16()),
        (_, Some(error)) => format!("gave no answer: {error}"),
        (None, None) => "gave no answer".to_owned(),
    }
}

fn not_sent(error: &LocalError) -> String {
    format!("it could not be sent for a fault: {error}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::door::door;

    #[test]
    fn faults_are_written_as_they_are_read() {
        for (text, wanted) in [
            ("delay=2s@30%", "delay=2s@30%"),
            (" drop@5% , duplicate ,500@0.5,seed=7", "drop@5%,duplicate@100%,500@0.5%,seed=7"),
            ("reorder@0%", "reorder@0%"),
            ("", ""),
        ] {
            let faults: Faults = text.parse().unwrap();
            assert_eq!(faults.to_string(), wanted);
            assert_eq!(faults.to_string().parse::<Faults>().unwrap(), faults);
        }
        for wrong in ["dorp", "delay", "delay=soon", "200", "99", "drop=1", "seed=x", "drop%5"] {
            assert!(matches!(wrong.parse::<Faults>(), Err(FaultError::Unknown(_))), "{wrong}");
        }
        for wrong in ["drop@101%", "drop@-1%", "drop@x", "drop@NaN", "drop@"] {
            assert!(matches!(wrong.parse::<Faults>(), Err(FaultError::Share(_))), "{wrong}");
        }
    }

    #[test]
    fn a_seed_draws_the_same_again_and_shares_are_kept() {
        let draws = |text: &str| {
            let injector = Injector::new(&text.parse().unwrap(), door().0).unwrap();
            (0..1000).map(|_| injector.draw()).collect::<Vec<_>>()
        };
        let first = draws("drop@20%,duplicate@50%,seed=7");
        assert_eq!(first, draws("drop@20%,duplicate@50%,seed=7"));
        assert_ne!(first, draws("drop@20%,duplicate@50%,seed=8"));
        let drops = first.iter().filter(|drawn| drawn.contains(&Kind::Drop)).count();
        assert!((150..250).contains(&drops), "{drops}");
        assert!(draws("drop@100%").iter().all(|drawn| drawn == &[Kind::Drop]));
        assert!(draws("drop@0%").iter().all(Vec::is_empty));
        assert!(Injector::new(&"seed=1".parse().unwrap(), door().0).is_none());
    }
}
