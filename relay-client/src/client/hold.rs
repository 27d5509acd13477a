//! Holds on to a session: connects, watches it, and comes back.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use relay_protocol::frame::GoAway;
use relay_protocol::inbox::api::Inbox;
use relay_protocol::message::Refusal;
use relay_protocol::mux::Ended;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, timeout};

use super::backoff::backoff;
use super::tunnels::{Asked, Tunnels};
use super::{Client, ClientError, Failed};
use crate::capture::Capture;
use crate::door::Knock;
use crate::event::{Event, Observer};
use crate::options::TunnelOptions;
use crate::platform::{address_towards, time_with_sleep};
use crate::session::watch::{PERIOD, Reading, Sign, Watch};
use crate::session::{News, Serve, Session, because};

/// The least and the greatest bound of the pauses between attempts to come back. Each pause is drawn anew below a bound
/// that grows with the time that the session has been lost, so that the clients of a relay that restarts do not come all
/// at once, and yet are back in about the time that the restart took.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// How long the relay has to answer where it is to be found out whether a link is alive: four of its round trips, but
/// no less and no more than this.
const PROBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));

/// How long a client that ends waits for what is under way without a word.
const QUIETLY: Duration = Duration::from_millis(500);

/// Of a relay that does not say which of the two it was.
const TAKEN_OVER: &str =
    "Another client with the same token has taken the name over, or the relay's operator has blocked it.";

/// Holds on to a session for a [`Client`].
///
/// ```text
///              a session                     lost, drained, or taken for dead
///   Connecting ─────────▶ Up ──────────────────────────────────────────────────┐
///     ▲   │                                                                     │
///     │   └── none ──▶ Waiting ◀────────────────────────────────────────────────┤ lost: after a pause
///     └────────────────────┘ ◀──────────────────────────────────────────────────┘ otherwise at once
/// ```
///
/// Whatever is under way on an old session goes on meanwhile.
pub(super) struct Hold<'a> {
    client: &'a Client,
    pub(super) tunnels: Tunnels,
    /// What the tunnels shall be.
    wanted: watch::Receiver<Vec<TunnelOptions>>,
    serve: Serve,
    way: Way<'a>,
    /// Since there is no session, or only one that drains.
    lost: Option<Lost>,
    /// Sessions one after the other that did not last.
    short: u32,
    watch: Option<Watching>,
    probe: Option<Probing>,
    /// A question to the relay how the inboxes stand.
    inboxes: Option<Pin<Box<dyn Future<Output = Vec<Inbox>> + Send>>>,
}

/// A session, and what it was asked for.
pub(super) type Tried = Result<(Box<Session>, Vec<Asked>), Failed>;

enum Way<'a> {
    Up { since: Instant },
    Waiting(Pin<Box<Sleep>>),
    Connecting(Pin<Box<dyn Future<Output = Tried> + Send + 'a>>),
}

impl Way<'_> {
    /// `None` when it is time to try again.
    async fn next(&mut self) -> Option<Tried> {
        match self {
            Way::Up { .. } => std::future::pending().await,
            Way::Waiting(pause) => {
                pause.await;
                None
            }
            Way::Connecting(attempt) => Some(attempt.await),
        }
    }
}

struct Lost {
    /// Since when nothing is served; `None` while the old session still serves what it has.
    unserved: Option<Instant>,
    /// From when the pauses grow: since then nothing has spoken for trying harder.
    hopeless: Instant,
    /// Why, or why the last attempt failed.
    reason: String,
    /// The observer knows. Where a new session is up in no time, there is nothing to say.
    told: bool,
}

struct Watching {
    watch: Watch,
    tick: Interval,
    peer: SocketAddr,
}

impl Watching {
    fn new(peer: SocketAddr) -> Self {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { watch: Watch::new(reading(peer)), tick, peer }
    }

    fn look(&mut self) -> Option<Sign> {
        self.watch.tick(reading(self.peer))
    }
}

fn reading(peer: SocketAddr) -> Reading {
    Reading { awake: std::time::Instant::now(), passed: time_with_sleep(), address: address_towards(peer) }
}

/// A question to the relay whether the link is alive.
struct Probing {
    why: Sign,
    answer: Pin<Box<dyn Future<Output = bool> + Send>>,
}

enum Step {
    News(News),
    Way(Option<Tried>),
    Tick,
    Probed(bool),
    Inboxes(Vec<Inbox>),
    Wanted,
}

impl<'a> Hold<'a> {
    pub(super) fn new(client: &'a Client, knocks: mpsc::Receiver<Knock>) -> Self {
        let mut wanted = client.tunnels.subscribe();
        let mut tunnels = Tunnels::new(&wanted.borrow_and_update());
        let first = Box::pin(client.connect(tunnels.hello(client, true), None, true));
        let way = Way::Connecting(first);
        Self {
            client,
            tunnels,
            wanted,
            serve: Serve::new(client.own.clone(), client.capture().cloned(), knocks),
            way,
            lost: None,
            short: 0,
            watch: None,
            probe: None,
            inboxes: None,
        }
    }

    /// Until `shutdown` ends, or the client has to. What is under way then may finish; where the client ends by itself,
    /// until `shutdown` ends.
    pub(super) async fn run(
        &mut self,
        observer: &mut dyn Observer,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ClientError> {
        let result = self.hold(observer, shutdown.as_mut()).await;
        let finish = self.finish(observer);
        match &result {
            Ok(()) => finish.await,
            Err(_) => tokio::select! {
                () = finish => {}
                () = shutdown => {}
            },
        }
        result
    }

    /// What does not end in time is given up; the relay answers for it.
    async fn finish(&mut self, observer: &mut dyn Observer) {
        self.serve.say_goodbye();
        let drain = self.client.drain;
        let finished = timeout(QUIETLY.min(drain), self.serve.finish(observer)).await.is_ok();
        if !finished && drain > QUIETLY {
            let text =
                format!("finishing what is under way, for at most {} s; Ctrl-C ends it at once", drain.as_secs());
            observer.observe(&Event::Notice(&text));
            // The rest of the time.
            drop(timeout(drain - QUIETLY, self.serve.finish(observer)).await);
        }
    }

    async fn hold(
        &mut self,
        observer: &mut dyn Observer,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ClientError> {
        observer.observe(&Event::Connecting { relay: &self.client.target.url().to_string() });
        observer.pause();
        loop {
            let (watch, probe, inboxes) = (&mut self.watch, &mut self.probe, &mut self.inboxes);
            let tick = async {
                match watch {
                    Some(watch) => drop(watch.tick.tick().await),
                    None => std::future::pending().await,
                }
            };
            let probed = async {
                match probe {
                    Some(probe) => probe.answer.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let told = async {
                match inboxes {
                    Some(inboxes) => inboxes.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let step = tokio::select! {
                () = &mut shutdown => return Ok(()),
                news = self.serve.next(observer) => Step::News(news),
                tried = self.way.next() => Step::Way(tried),
                () = tick => Step::Tick,
                alive = probed => Step::Probed(alive),
                inboxes = told => Step::Inboxes(inboxes),
                // The client holds the other end for as long.
                Ok(()) = self.wanted.changed() => Step::Wanted,
            };
            match step {
                Step::News(News::Unwatched) => return Ok(()),
                Step::News(News::Ended(ended)) => self.ended(&ended, observer)?,
                Step::News(News::Drains(reason)) => self.drains(reason),
                Step::News(News::Unbound(tunnel, why)) => {
                    let told = why.map(|Refusal { message, hint, .. }| format!("{message} {hint}"));
                    self.lose(tunnel, told.as_deref().map_or(TAKEN_OVER, str::trim_end), observer)?;
                }
                Step::News(News::Bound(bound)) => {
                    self.tunnels.bound(bound, false, self.client, self.serve.link(), observer)?;
                    self.settle(observer)?;
                }
                Step::Wanted => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    self.tunnels.want(&wanted, self.serve.link(), observer);
                    if let Some(control) = &self.client.control {
                        let is_label = |name: &str| wanted.iter().any(|tunnel| tunnel.label.as_deref() == Some(name));
                        control.board.keep_refused(is_label);
                    }
                    self.settle(observer)?;
                }
                Step::Way(None) => self.dial(),
                Step::Way(Some(Ok((session, asked)))) => self.up(session, asked, observer)?,
                Step::Way(Some(Err(Failed::Final(error)))) => return Err(error),
                Step::Way(Some(Err(Failed::ForNow(reason)))) => {
                    self.tunnels.forget_refusals();
                    self.wait(reason, observer)?;
                }
                Step::Tick => self.look_around(observer)?,
                Step::Inboxes(inboxes) => {
                    self.inboxes = None;
                    self.tunnels.tell_inboxes(inboxes, observer);
                }
                Step::Probed(true) => self.probe = None,
                Step::Probed(false) => {
                    let why = self.probe.take().map_or(Sign::Moved, |probe| probe.why);
                    self.serve.give_up();
                    self.lost(why.to_string(), observer)?;
                    self.dial();
                }
            }
            observer.pause();
        }
    }

    fn dial(&mut self) {
        if let Way::Connecting(_) = self.way {
            // What becomes of that attempt is not known.
            self.tunnels.forget_refusals();
        }
        // A relay that drains is gone when somebody answers in its place, and the streams that it still has must not be
        // ended by our coming back.
        let drains = self.lost.as_ref().is_some_and(|lost| lost.unserved.is_none());
        let resume = self.serve.resume().filter(|_| !drains).cloned();
        let first = self.watch.is_none();
        let asked = self.tunnels.hello(self.client, first);
        self.way = Way::Connecting(Box::pin(self.client.connect(asked, resume, first)));
    }

    fn up(
        &mut self,
        mut session: Box<Session>,
        asked: Vec<Asked>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        let first = self.watch.is_none();
        let bound = std::mem::take(&mut session.welcome.tunnels);
        if let Err(error) = self.tunnels.check(&asked, &bound, &session.welcome.extra) {
            self.serve.dismiss(*session);
            return if first { Err(error) } else { self.wait(error.to_string(), observer) };
        }
        let resumed = session.welcome.resumed;
        if self.tunnels.are_all_refused(&asked, &bound) {
            self.serve.dismiss(*session);
            return match self.tunnels.judge_all(&asked, &bound, resumed, observer)? {
                Some(reason) => self.wait(reason, observer),
                // Those that are lost are not asked for again.
                None => {
                    self.dial();
                    Ok(())
                }
            };
        }
        // Without an address the clocks are watched all the same.
        let nobody = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 9));
        self.watch = Some(Watching::new(session.peer.unwrap_or(nobody)));
        self.probe = None;
        if let Some(control) = &self.client.control {
            control.board.up(&session.link);
        }
        self.serve.add(*session, self.tunnels.routes());
        self.way = Way::Up { since: Instant::now() };
        self.tunnels.welcome(&asked, bound, resumed, self.client, self.serve.link(), observer)?;
        self.settle(observer)?;
        // What waits is worth a word, and no reason to wait.
        self.inboxes = self.client.inboxes().filter(|_| self.tunnels.have_inboxes()).map(|api| {
            let asked = async move { api.list().await.unwrap_or_default() };
            Box::pin(asked) as Pin<Box<dyn Future<Output = Vec<Inbox>> + Send>>
        });
        if let Some(lost) = self.lost.take().filter(|lost| lost.told) {
            let after_ms = milliseconds(lost.unserved.map_or(Duration::ZERO, |since| since.elapsed()));
            observer.observe(&Event::Reconnected { relay: &self.client.target.url().to_string(), after_ms });
        }
        Ok(())
    }

    fn ended(&mut self, ended: &Ended, observer: &mut dyn Observer) -> Result<(), ClientError> {
        if let Ended::Remote { reason: GoAway::Revoked | GoAway::Expired, text } = ended {
            return Err(ClientError::Unauthorized(text.clone()));
        }
        // Where it was replaced, that was by an earlier attempt of our own, late on its way: nobody else has had its key.
        if let Some(lost) = &mut self.lost {
            // It had said that it would end, and the next one is on its way.
            lost.unserved.get_or_insert_with(Instant::now);
            return Ok(());
        }
        // A machine that wakes finds its session ended by the silence of its own sleep.
        let sign = self.probe.take().map(|probe| probe.why);
        let sign = sign.or_else(|| self.watch.as_mut().and_then(Watching::look));
        match sign {
            Some(sign) => {
                self.lost(sign.to_string(), observer)?;
                self.dial();
                Ok(())
            }
            None => {
                self.begin_lost(because(ended), false);
                self.wait(because(ended), observer)
            }
        }
    }

    fn drains(&mut self, reason: String) {
        if self.lost.is_none() {
            self.probe = None;
            self.begin_lost(reason, true);
            self.dial();
        }
    }

    /// Asks the relay for what is wanted and is not there.
    fn settle(&mut self, observer: &mut dyn Observer) -> Result<(), ClientError> {
        self.tunnels.settle(self.client, self.serve.link(), observer)?;
        self.serve.set_intakes(self.tunnels.routes());
        Ok(())
    }

    /// A tunnel's name is another's. The others go on, if there are any.
    fn lose(&mut self, number: u32, text: &str, observer: &mut dyn Observer) -> Result<(), ClientError> {
        self.tunnels.lose(number, text, observer)?;
        self.settle(observer)
    }

    /// Once a second.
    fn look_around(&mut self, observer: &mut dyn Observer) -> Result<(), ClientError> {
        self.tunnels.tidy();
        self.serve.set_intakes(self.tunnels.routes());
        if self.lost.is_none() {
            // Those that were refused may have rested long enough.
            self.settle(observer)?;
        }
        let sign = self.watch.as_mut().and_then(Watching::look);
        if let Some(link) = self.serve.link() {
            observer.observe(&Event::Heard { ago: link.last_heard().elapsed() });
        }
        if let Some(notice) = self.client.capture().and_then(Capture::notice) {
            observer.observe(&Event::Notice(&notice));
        }
        match (&mut self.lost, sign) {
            (None, Some(why)) if self.probe.is_none() => {
                if let Some(link) = self.serve.link().cloned() {
                    let patience = link.rtt().map_or(PROBE.1, |rtt| (rtt * 4).clamp(PROBE.0, PROBE.1));
                    self.probe = Some(Probing { why, answer: Box::pin(async move { link.probe(patience).await }) });
                }
            }
            (None, _) => {}
            (Some(lost), sign) => {
                if !lost.told && self.serve.link().is_none() {
                    lost.told = true;
                    observer.observe(&Event::Disconnected { reason: &lost.reason, retry_in_ms: 0 });
                }
                self.give_up_in_time()?;
                if let (Some(lost), Some(_)) = (&mut self.lost, sign) {
                    // What kept us from the relay may have gone; an attempt from before hangs on the old way.
                    lost.hopeless = Instant::now();
                    self.dial();
                }
            }
        }
        Ok(())
    }

    fn begin_lost(&mut self, reason: String, drains: bool) {
        if let Way::Up { since } = &self.way {
            self.short = if since.elapsed() >= PAUSES.1 { 0 } else { self.short + 1 };
        }
        let now = Instant::now();
        let unserved = (!drains).then_some(now);
        self.lost.get_or_insert(Lost { unserved, hopeless: now, reason, told: false });
    }

    /// The session is lost, and the caller dials at once.
    fn lost(&mut self, reason: String, observer: &mut dyn Observer) -> Result<(), ClientError> {
        observer.observe(&Event::Disconnected { reason: &reason, retry_in_ms: 0 });
        self.begin_lost(reason, false);
        if let Some(lost) = &mut self.lost {
            lost.told = true;
        }
        self.give_up_in_time()
    }

    /// There is no session, for this reason: tries again after a pause.
    fn wait(&mut self, reason: String, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let Some(lost) = &mut self.lost else { return Ok(()) };
        // A relay that takes us and drops us at once is asked once or twice a second, and not eight times.
        let least = PAUSES.0 * (1 << self.short.min(2));
        let pause = backoff(lost.hopeless.elapsed(), (least, PAUSES.1));
        // What began it is said once, and then why it goes on.
        let reason = if lost.told { reason } else { lost.reason.clone() };
        lost.told = true;
        lost.reason.clone_from(&reason);
        self.give_up_in_time()?;
        observer.observe(&Event::Disconnected { reason: &reason, retry_in_ms: milliseconds(pause) });
        self.way = Way::Waiting(Box::pin(sleep(pause)));
        Ok(())
    }

    fn give_up_in_time(&self) -> Result<(), ClientError> {
        match (self.client.max_reconnect_time, &self.lost) {
            (Some(after), Some(Lost { unserved: Some(since), reason, .. })) if since.elapsed() >= after => {
                Err(ClientError::GaveUp { after, last: reason.clone() })
            }
            _ => Ok(()),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
