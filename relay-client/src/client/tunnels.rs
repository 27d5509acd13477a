//! The tunnels of a client: which are wanted, which the relay has given, and what it is asked for meanwhile.
//!
//! ```text
//!   wanted ── not what is given ──▶ asked ── Bound ──▶ given ── no longer wanted ──▶ given back
//!                                   ▲   └── refused ──▶ rests ── the name is another's ──▶ lost
//!                                   └── time, a session, or another wish ──┘
//! ```
//!
//! Numbers are never used twice, so that a request on its way finds its service though the tunnel has moved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::access::Access;
use relay_protocol::frame::{MAX_HEAD, SessionKind};
use relay_protocol::inbox::{Inbox, api};
use relay_protocol::link::Link;
use relay_protocol::message::{Bound, Extra, Payload, PublicName, Refusal, TunnelSpec};
use relay_protocol::oidc::Oidc;
use relay_protocol::webhook::{Verify, Webhooks};
use tokio::time::Instant;

use super::backoff::backoff;
use super::{Client, ClientError};
use crate::event::{Event, InboxState, Observer};
use crate::intake::Intake;
use crate::intake::faults::Injector;
use crate::intake::routes;
use crate::options::TunnelOptions;
use crate::session::{ConnectError, explain};
use crate::upstream::Upstream;
use crate::upstream::rewrite::HostHeader;
use crate::upstream::service::Destination;

/// How long requests still find the service of a tunnel that was given back: they may have been on their way.
const LINGER: Duration = Duration::from_secs(10);

/// The bounds of the pauses before the relay is asked again for a tunnel that it has refused. It may be refused for good,
/// and the others go on, so that less is lost than with a session.
const RESTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Most bytes that the first message of a session has beside what it says of tunnels.
const BESIDE_TUNNELS: usize = 1024;

/// How long the relay may believe in a session of ours that is gone, and so in our having a name that we ask for: 15 s
/// without a sign of life, and some more for a relay that is busy.
const BELIEF: Duration = Duration::from_secs(20);

/// Where requests go, by the tunnel's number.
pub(super) type Routes = Arc<HashMap<u32, Arc<Intake>>>;

/// All tunnels of a client.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    held: Vec<Held>,
    routes: Routes,
    /// Numbers of what was given back, and when that was.
    retired: Vec<(u32, Instant)>,
    /// The next number.
    next: u32,
    /// Whether the relay can judge signatures.
    relay_judges: bool,
    /// The tunnels that have inboxes already, by their numbers; none where the relay has no inboxes.
    kept: Option<Vec<u32>>,
    /// Whether the relay can refuse those who may not call.
    relay_guards: bool,
    /// Whether it can have people log in.
    relay_logs_in: bool,
}

/// What a relay cannot do that would leave alone what it is told of that.
const KEEPS_NOT: &str = "the relay is too old to keep webhooks; leave out --inbox, or have its operator update it";
const GUARDS_NOT: &str = "the relay is too old to refuse those who may not call the tunnel; have its operator update it, or leave \
                          out --allow, --deny, --client-ca, --oidc, --basic-auth, --api-key, --allow-method, --allow-path, \
                          --rate-limit and --body-limit, and let everybody in";
const LOGS_IN_NOT: &str =
    "the relay is too old to have people log in; have its operator update it, or leave out --oidc";
const JUDGES_NOT: &str = "the relay is too old to judge signatures; leave out --verify-at edge, and the client does it";

/// A tunnel that is wanted.
#[derive(Debug)]
struct Held {
    options: TunnelOptions,
    given: Option<Given>,
    asked: Option<Asked>,
    rests: Option<Rests>,
    /// Since when each attempt to have it was refused.
    refused: Option<Instant>,
    /// Why it is refused, and whether it answers all the same, as the observer was told.
    told: Option<(String, bool)>,
}

/// Why a tunnel is not asked for at present.
#[derive(Debug)]
enum Rests {
    /// The relay refused it, and is asked again then.
    Until(Instant),
    /// Somebody else has its name, and means it. How that came, as a sentence.
    Lost(String),
}

/// What a refusal means to a client that has had a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Somebody else has the name now.
    Lost,
    /// It may pass by itself: the relay may have been full, broken, or of another version at that moment.
    ForNow,
    /// It passes when somebody sees to it.
    AsThingsAre,
}

/// What the relay has given.
#[derive(Debug)]
struct Given {
    number: u32,
    /// What it was asked for.
    options: TunnelOptions,
    public: PublicName,
    /// The remembered name is in use by another client, whose it stays.
    beside: bool,
    /// The session that there is does not have it, because the relay has refused it since. Its name is asked for again.
    away: bool,
}

/// What the relay is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) number: u32,
    options: TunnelOptions,
    name: Option<String>,
    /// The name is that of last time, and any other will do.
    remembered: bool,
    beside: bool,
    takeover: bool,
}

impl Asked {
    pub(super) fn spec(&self) -> TunnelSpec {
        let timeout = self.options.timeout.or_else(|| self.options.webhooks.timeout());
        let timeout = timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        // What was read from options can be said.
        let mut extra = self.options.webhooks.told().extras().unwrap_or_default();
        extra.extend(self.options.inbox.as_ref().and_then(|inbox| inbox.extra().ok()));
        extra.extend(self.options.access.extras().unwrap_or_default());
        let (domain, name) = match self.options.domain {
            Some(_) => (self.name.clone(), None),
            None => (None, self.name.clone()),
        };
        TunnelSpec { tunnel: self.number, name, domain, timeout_ms: timeout, takeover: self.takeover, extra }
    }

    /// Why it was refused, for a person who may have several tunnels.
    pub(super) fn explain(&self, refusal: &Refusal) -> String {
        self.options.of_it(&explain(refusal))
    }

    /// Asks for any name where the one of last time is not to be had, as when tests run side by side. False where the
    /// name was meant.
    pub(super) fn forget_name(&mut self) -> bool {
        let forgets = self.remembered;
        if forgets {
            (self.name, self.remembered, self.beside) = (None, false, true);
        }
        forgets
    }
}

impl Rests {
    fn are_for_good(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

impl Tunnels {
    /// These are wanted.
    pub(super) fn new(wanted: &[TunnelOptions]) -> Self {
        let held = wanted.iter().cloned().map(Held::new).collect();
        Self { held, ..Self::default() }
    }

    /// Takes in which tunnels are wanted from now on.
    pub(super) fn want(&mut self, wanted: &[TunnelOptions], link: Option<&Link>, observer: &mut dyn Observer) {
        let mut others = std::mem::take(&mut self.held);
        for options in wanted {
            let known = others.iter().position(|held| held.options.label == options.label);
            self.held.push(match known.map(|at| others.remove(at)) {
                Some(held) if held.options == *options => {
                    Held { rests: held.rests.filter(Rests::are_for_good), ..held }
                }
                Some(held) => {
                    // What is refused now is said anew.
                    let told = held.told.map(|(_, answers)| (String::new(), answers));
                    Held { options: options.clone(), rests: None, refused: None, told, ..held }
                }
                None => Held::new(options.clone()),
            });
        }
        for Held { options, given, .. } in others {
            // What is still asked for is given back once it is there.
            let Some(given) = given else { continue };
            self.give_back(given.number, link);
            tell_closed(&options, &given.public, "it is no longer wanted", observer);
        }
    }

    /// What the first message of a session asks for: all that there was in the last one, and in the first one all that is
    /// wanted; of either what fits into one message.
    pub(super) fn hello(&mut self, client: &Client, first: bool) -> Vec<Asked> {
        for held in &mut self.held {
            held.asked = None;
            held.rests = held.rests.take().filter(Rests::are_for_good);
        }
        let mut room = MAX_HEAD - BESIDE_TUNNELS;
        for at in 0..self.held.len() {
            let Some(held) = self.held.get(at) else { break };
            let asked = match &held.given {
                Some(given) => Asked {
                    number: given.number,
                    options: given.options.clone(),
                    name: Some(given.public.name.clone()),
                    remembered: false,
                    beside: given.beside,
                    takeover: false,
                },
                None if first => self.ask(held, client),
                None => continue,
            };
            // What does not fit is asked for by itself once there is a session, as whatever is not given then.
            let bytes = asked.spec().to_bytes().map_or(MAX_HEAD, |spec| spec.len());
            if room < bytes {
                continue;
            }
            room -= bytes;
            self.next = self.next.max(asked.number.saturating_add(1));
            if let Some(held) = self.held.get_mut(at) {
                held.asked = Some(asked);
            }
        }
        self.held.iter().filter_map(|held| held.asked.clone()).collect()
    }

    /// Whether there is a tunnel that asks for an inbox, or has one without that.
    pub(super) fn have_inboxes(&self) -> bool {
        let kept = self.kept.as_deref().unwrap_or_default();
        let is_kept = |held: &Held| held.given.as_ref().is_some_and(|given| kept.contains(&given.number));
        self.held.iter().any(|held| held.options.inbox.is_some() || is_kept(held))
    }

    /// Says how the inboxes of tunnels that there are stand.
    pub(super) fn tell_inboxes(&self, inboxes: Vec<api::Inbox>, observer: &mut dyn Observer) {
        for inbox in inboxes {
            let is_its = |held: &&Held| held.given.as_ref().is_some_and(|given| given.public.name == inbox.name);
            let Some(held) = self.held.iter().find(is_its) else { continue };
            let tunnel = held.options.label.clone().unwrap_or_else(|| inbox.name.clone());
            observer.observe(&Event::Inbox { tunnel: &tunnel, state: &InboxState::of(inbox) });
        }
    }

    /// What the relay would leave alone of what these options ask of it.
    fn cannot(&self, options: &TunnelOptions) -> Option<String> {
        let judges = options.webhooks.told().verify != Verify::Off && !self.relay_judges;
        let keeps = options.inbox.is_some() && self.kept.is_none();
        let guards = !options.access.is_open() && !self.relay_guards;
        let unsaid = || Some(options.inbox.as_ref()?.extra().err()?.to_string());
        let unguarded = || Some(options.access.extras().err()?.to_string());
        let logs_in = options.access.oidc.is_some() && !self.relay_logs_in;
        let cannot = [(guards, GUARDS_NOT), (logs_in, LOGS_IN_NOT), (judges, JUDGES_NOT), (keeps, KEEPS_NOT)];
        let cannot = cannot.into_iter().find(|(cannot, _)| *cannot).map(|(_, why)| why.to_owned());
        cannot.or_else(unsaid).or_else(unguarded)
    }

    /// Whether a session may follow this answer to what it was asked for, and what the relay has said of itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&mut self, asked: &[Asked], bound: &[Bound], said: &[Extra]) -> Result<(), ClientError> {
        (self.relay_judges, self.kept) = (Webhooks::are_known(said), Inbox::all_known(said));
        (self.relay_guards, self.relay_logs_in) = (Access::is_known(said), Oidc::is_known(said));
        for asked in asked {
            if let Some(why) = self.cannot(&asked.options) {
                return Err(ClientError::Refused(why));
            }
            let Some(bound) = bound.iter().find(|bound| bound.tunnel == asked.number) else {
                let reason = "the relay did not say what became of a tunnel".to_owned();
                return Err(ClientError::Unreachable(ConnectError::Broken(reason)));
            };
            if let Ok(public) = &bound.result {
                asked.options.upstream.rewriter(&asked.options.host_header, &public.url)?;
            }
        }
        Ok(())
    }

    /// Whether a session that answers so to what it was asked for has nothing to serve, and none is left to ask for.
    pub(super) fn are_all_refused(&self, asked: &[Asked], bound: &[Bound]) -> bool {
        let is_refused = |number| bound.iter().any(|bound| bound.tunnel == number && bound.result.is_err());
        let is_left = |held: &Held| held.lost().is_none() && held.asked.is_none();
        !asked.is_empty() && asked.iter().all(|asked| is_refused(asked.number)) && !self.held.iter().any(is_left)
    }

    /// Takes in such an answer. Returns why trying again can help; none where all that was asked for is lost, and
    /// something else is wanted.
    ///
    /// # Errors
    /// What trying again cannot mend.
    pub(super) fn judge_all(
        &mut self,
        asked: &[Asked],
        bound: &[Bound],
        resumed: bool,
        observer: &mut dyn Observer,
    ) -> Result<Option<String>, ClientError> {
        let (mut passes, mut lasts) = (None, None);
        for bound in bound {
            let (Err(refusal), Some(asked)) = (&bound.result, asked.iter().find(|asked| asked.number == bound.tunnel))
            else {
                continue;
            };
            let Some(held) = self.held.iter_mut().find(|held| held.is_asked(asked.number)) else { continue };
            let text = asked.explain(refusal);
            match held.judge(asked, refusal, resumed)? {
                Verdict::Lost => self.lose(asked.number, &lost_while_away(refusal), observer)?,
                Verdict::ForNow => drop(passes.get_or_insert(text)),
                Verdict::AsThingsAre => drop(lasts.get_or_insert(text)),
            }
        }
        match (passes, lasts) {
            (None, Some(text)) => Err(ClientError::Refused(text)),
            (passes, _) => Ok(passes),
        }
    }

    /// Forgets how often tunnels were refused: an attempt has come to something else, perhaps to a session that the relay
    /// believes in.
    pub(super) fn forget_refusals(&mut self) {
        self.held.iter_mut().for_each(|held| held.refused = None);
    }

    /// Takes in what became of the tunnels of a session's first message, as they were asked for in the end. With `resumed`
    /// the relay has let go of the session before.
    pub(super) fn welcome(
        &mut self,
        asked: &[Asked],
        bound: Vec<Bound>,
        resumed: bool,
        client: &Client,
        link: Option<&Link>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        // What was asked for on the session before has no answer any more.
        for held in &mut self.held {
            held.asked =
                held.asked.take().and_then(|old| asked.iter().find(|asked| asked.number == old.number).cloned());
            // There was no room for it in that message.
            if let (Some(given), None) = (&mut held.given, &held.asked) {
                given.away = true;
            }
        }
        bound.into_iter().try_for_each(|bound| self.bound(bound, resumed, client, link, observer))
    }

    /// Takes in what became of a tunnel that was asked for; `resumed` as in [`Self::welcome`].
    ///
    /// # Errors
    /// What ends the client.
    pub(super) fn bound(
        &mut self,
        bound: Bound,
        resumed: bool,
        client: &Client,
        link: Option<&Link>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        let number = bound.tunnel;
        let at = self.held.iter().position(|held| held.is_asked(number));
        let Some((at, held)) = at.and_then(|at| self.held.get_mut(at).map(|held| (at, held))) else {
            if bound.result.is_ok() {
                self.give_back(number, link);
            }
            return Ok(());
        };
        let Some(mut asked) = held.asked.take() else { return Ok(()) };
        let public = match bound.result {
            Ok(public) => public,
            Err(_) if asked.forget_name() => {
                self.send_ask(at, asked, link);
                return Ok(());
            }
            // There may be room for the new name once the old one has gone.
            Err(refusal) if refusal.code == "too-many-tunnels" && held.has_another(number) => {
                if let Some(given) = held.given.take() {
                    self.give_back(given.number, link);
                }
                self.send_ask(at, asked, link);
                return Ok(());
            }
            Err(refusal) => {
                let verdict = held.judge(&asked, &refusal, resumed)?;
                if verdict == Verdict::Lost {
                    let number = held.given.as_ref().map_or(number, |given| given.number);
                    return self.lose(number, &lost_while_away(&refusal), observer);
                }
                held.rest(&explain(&refusal), observer);
                return Ok(());
            }
        };
        let before = held.given.take();
        let is_as_before = before.as_ref().is_some_and(|before| before.number == number && before.public == public);
        let given = Given { number, options: asked.options, public, beside: asked.beside, away: false };
        if !is_as_before {
            let intake = match given.intake(client) {
                Ok(upstream) => upstream,
                Err(error) => {
                    held.given = before;
                    held.rest(&error.to_string(), observer);
                    self.give_back(number, link);
                    return Ok(());
                }
            };
            Arc::make_mut(&mut self.routes).insert(number, Arc::new(intake));
            let is_asked_for = given.options.subdomain.is_some() || given.options.domain.is_some();
            if let (false, Some(names), false) = (is_asked_for, &client.names, given.beside) {
                names.of_tunnel(given.options.label.as_deref()).remember(&given.public.name);
            }
        }
        // Whoever was told that it does not answer is told that it does again.
        if !is_as_before || held.told.as_ref().is_some_and(|(_, answers)| !answers) {
            client.announce(&given.options, &given.public, observer);
            held.told = None;
        }
        held.refused = None;
        // One that has no name but the relay's is another one now.
        if let Some(before) = &before
            && held.options.label.is_none()
            && before.public.name != given.public.name
        {
            tell_closed(&held.options, &before.public, "it has another name now", observer);
        }
        held.given = Some(given);
        if let Some(before) = before.filter(|before| before.number != number) {
            self.give_back(before.number, link);
        }
        Ok(())
    }

    /// Asks for what is wanted and not given, once there is a session. What changes on this machine alone changes at once.
    ///
    /// # Errors
    /// [`ClientError::NameLost`] where all that is wanted is lost.
    pub(super) fn settle(
        &mut self,
        client: &Client,
        link: Option<&Link>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        self.check_left()?;
        if link.is_none() {
            return Ok(());
        }
        for at in 0..self.held.len() {
            let cannot = self.held.get(at).and_then(|held| self.cannot(&held.options));
            let Some(held) = self.held.get_mut(at).filter(|held| held.asked.is_none() && !held.rests()) else {
                continue;
            };
            held.rests = None;
            match &mut held.given {
                Some(given) if !given.away && given.options == held.options => {
                    // What was refused is wanted no more.
                    if held.told.take().is_some() {
                        client.announce(&given.options, &given.public, observer);
                    }
                }
                Some(given) if !given.away && given.is_bound_as(&held.options) => {
                    given.options = held.options.clone();
                    let intake = given.intake(client)?;
                    Arc::make_mut(&mut self.routes).insert(given.number, Arc::new(intake));
                    client.announce(&given.options, &given.public, observer);
                }
                _ if cannot.is_some() => held.rest(&cannot.unwrap_or_default(), observer),
                _ => {
                    if let Some(asked) = self.held.get(at).map(|held| self.ask(held, client)) {
                        self.next = asked.number.saturating_add(1);
                        self.send_ask(at, asked, link);
                    }
                }
            }
        }
        Ok(())
    }

    /// The relay has given a tunnel's name to somebody else.
    ///
    /// # Errors
    /// [`ClientError::NameLost`] where it was the last one.
    pub(super) fn lose(&mut self, number: u32, text: &str, observer: &mut dyn Observer) -> Result<(), ClientError> {
        let is_it = |held: &&mut Held| held.given.as_ref().is_some_and(|given| given.number == number);
        let Some(held) = self.held.iter_mut().find(is_it) else { return Ok(()) };
        let Some(given) = held.given.take() else { return Ok(()) };
        self.retired.push((number, Instant::now()));
        // It moves: to another number, or because another tunnel of ours has its name now.
        if held.asked.as_ref().is_some_and(|asked| asked.number != number) {
            return Ok(());
        }
        held.asked = None;
        // One whose change was refused is not after that name any more.
        held.rests.get_or_insert_with(|| Rests::Lost(text.to_owned()));
        self.check_left()?;
        if let Some(held) = self.held.iter().find(|held| held.options.label == given.options.label) {
            tell_closed(&held.options, &given.public, text, observer);
        }
        Ok(())
    }

    /// A client of which nothing is left that could come back ends, whether its last tunnel is lost or no longer wanted.
    fn check_left(&self) -> Result<(), ClientError> {
        let mut lost: Vec<_> = self.held.iter().map_while(Held::lost).collect();
        if lost.is_empty() || lost.len() < self.held.len() {
            return Ok(());
        }
        lost.dedup();
        Err(ClientError::NameLost(lost.join(" ")))
    }

    /// Where requests go.
    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// Forgets the services of tunnels that were given back long enough ago. What is under way keeps its own.
    pub(super) fn tidy(&mut self) {
        let routes = &mut self.routes;
        self.retired.retain(|(number, since)| {
            let stays = since.elapsed() < LINGER;
            if !stays {
                Arc::make_mut(routes).remove(number);
            }
            stays
        });
    }

    /// Ends what runs beside the exchanges.
    pub(super) async fn close(&self) {
        for upstream in self.routes.values() {
            upstream.close().await;
        }
    }

    /// What a tunnel is asked for with.
    fn ask(&self, held: &Held, client: &Client) -> Asked {
        let options = &held.options;
        let kept = held.given.as_ref().filter(|given| given.options.has_same_name_as(options));
        let meant = kept.map(|given| given.public.name.clone());
        let meant = meant.or_else(|| options.domain.clone()).or_else(|| options.subdomain.clone());
        let is_ours = |name: &String| {
            self.held
                .iter()
                .filter_map(|held| held.given.as_ref())
                .any(|given| !given.away && given.public.name == *name)
        };
        let asked_already = |name: &String| {
            self.held.iter().filter_map(|held| held.asked.as_ref()).any(|asked| asked.name.as_ref() == Some(name))
        };
        let of_last_time =
            || client.names.as_ref().and_then(|names| names.of_tunnel(options.label.as_deref()).remembered());
        let remembered =
            if meant.is_none() { of_last_time().filter(|name| !is_ours(name) && !asked_already(name)) } else { None };
        // A name of our own may move. Whoever takes one over from us later means it, too.
        let takeover = meant.as_ref().is_some_and(is_ours) || (options.takeover && held.given.is_none());
        Asked {
            number: self.next,
            options: options.clone(),
            remembered: remembered.is_some(),
            name: meant.or(remembered),
            beside: kept.is_some_and(|given| given.beside),
            takeover,
        }
    }

    fn send_ask(&mut self, at: usize, asked: Asked, link: Option<&Link>) {
        let Ok(spec) = asked.spec().to_bytes() else { return };
        let sent = link.is_some_and(|link| link.send_message(SessionKind::Bind, spec).is_ok());
        // Where the session is ending, the next one settles it.
        if let Some(held) = self.held.get_mut(at).filter(|_| sent) {
            held.asked = Some(asked);
        }
    }

    fn give_back(&mut self, number: u32, link: Option<&Link>) {
        if let (Some(link), Ok(payload)) = (link, number.to_bytes()) {
            // One that cannot be queued goes to a session that is ending.
            let _ = link.send_message(SessionKind::Unbind, payload);
        }
        self.retired.push((number, Instant::now()));
    }
}

impl Held {
    fn new(options: TunnelOptions) -> Self {
        Self { options, given: None, asked: None, rests: None, refused: None, told: None }
    }

    /// Whether it is not to be asked for now.
    fn rests(&self) -> bool {
        match &self.rests {
            None => false,
            Some(Rests::Until(then)) => Instant::now() < *then,
            Some(Rests::Lost(_)) => true,
        }
    }

    /// How its name was lost, for a person who may have several tunnels.
    fn lost(&self) -> Option<String> {
        match &self.rests {
            Some(Rests::Lost(text)) => Some(self.options.of_it(text)),
            _ => None,
        }
    }

    /// Whether the session has it under another number.
    fn has_another(&self, number: u32) -> bool {
        self.given.as_ref().is_some_and(|given| !given.away && given.number != number)
    }

    /// Takes in that it was refused. With `resumed` no session of ours can have its name.
    ///
    /// # Errors
    /// [`ClientError::Unauthorized`]: nothing is given to this client any more.
    fn judge(&mut self, asked: &Asked, refusal: &Refusal, resumed: bool) -> Result<Verdict, ClientError> {
        let perhaps_ours = !resumed && self.refused.get_or_insert_with(Instant::now).elapsed() < BELIEF;
        if let Some(given) = self.given.as_mut().filter(|given| given.number == asked.number) {
            given.away = true;
        }
        let had_it =
            self.given.as_ref().is_some_and(|given| given.away && asked.name.as_ref() == Some(&given.public.name));
        Ok(match refusal.code.as_str() {
            "unauthorized" => return Err(ClientError::Unauthorized(asked.explain(refusal))),
            "name-taken" if had_it => Verdict::Lost,
            "name-in-use" if had_it && !perhaps_ours => Verdict::Lost,
            "name-invalid" | "not-allowed" | "too-many-names" | "bad-request" => Verdict::AsThingsAre,
            _ => Verdict::ForNow,
        })
    }

    /// Lets it rest for a while, and says why unless that was said before.
    fn rest(&mut self, reason: &str, observer: &mut dyn Observer) {
        let since = *self.refused.get_or_insert_with(Instant::now);
        self.rests = Some(Rests::Until(Instant::now() + backoff(since.elapsed(), RESTS)));
        let given = self.given.as_ref();
        let url = given.filter(|given| !given.away).map(|given| &*given.public.url);
        let told = Some((reason.to_owned(), url.is_some()));
        if self.told != told {
            let tunnel = self.options.label.as_deref().or(given.map(|given| &*given.public.name)).unwrap_or_default();
            observer.observe(&Event::Refused { tunnel, reason, url });
            self.told = told;
        }
    }

    fn is_asked(&self, number: u32) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.number == number)
    }
}

impl Given {
    fn intake(&self, client: &Client) -> Result<Intake, ClientError> {
        let options = &self.options;
        let rewriter = options.upstream.rewriter(&options.host_header, &self.public.url)?;
        let name = options.label.as_deref().unwrap_or(&self.public.name);
        let upstream = Upstream::new(options.upstream.clone(), options.protocol, rewriter.clone());
        let by_provider = options.host_header == HostHeader::Auto;
        let routes = routes::Routes::new(options.routes.clone(), |addr| {
            let destination = Destination::from(addr.clone());
            // The public URL has just been understood.
            let rewriter = destination.rewriter(&options.host_header, &self.public.url).unwrap_or(rewriter.clone());
            Upstream::new(destination, options.protocol, rewriter)
        });
        let injector = Injector::new(&options.faults, client.door());
        Ok(Intake::new(name, options.webhooks.clone(), by_provider, injector, routes, upstream))
    }

    /// Whether the relay need not know of the difference.
    fn is_bound_as(&self, wanted: &TunnelOptions) -> bool {
        let of = |options: &TunnelOptions| {
            let TunnelOptions { subdomain, domain, timeout, webhooks, inbox, access, .. } = options;
            let timeout = timeout.or_else(|| webhooks.timeout());
            (subdomain.clone(), domain.clone(), timeout, webhooks.told(), inbox.clone(), access.clone())
        };
        of(&self.options) == of(wanted)
    }
}

fn tell_closed(options: &TunnelOptions, public: &PublicName, reason: &str, observer: &mut dyn Observer) {
    let tunnel = options.label.as_deref().unwrap_or(&public.name);
    observer.observe(&Event::Closed { tunnel, name: &public.name, url: &public.url, reason });
}

/// Without the refusal's hint, which is for those who ask for the name: this client does so no more.
fn lost_while_away(refusal: &Refusal) -> String {
    format!("the name was lost while this client was away: {}", refusal.message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use relay_protocol::link::Driver;
    use relay_protocol::mux::{Limits, Side};
    use tokio::io::DuplexStream;
    use tokio::time::advance;

    use super::*;
    use crate::session::dial::{Target, Trust};
    use crate::upstream::address::UpstreamAddr;

    /// It would leave alone what it does not know, and everything would be let in.
    #[test]
    fn a_relay_that_cannot_judge_is_not_taken_for_one_that_does() {
        let mut options = wanted(&[0]).remove(0);
        options.webhooks.verify = Verify::Reject;
        let bound =
            [Bound { tunnel: 0, result: Ok(PublicName { name: "a".into(), url: "https://a.relay.example".into() }) }];
        let check = |options: &TunnelOptions, said: &[Extra]| {
            let asked = Asked {
                number: 0,
                options: options.clone(),
                name: None,
                remembered: false,
                beside: false,
                takeover: false,
            };
            Tunnels::default().check(&[asked], &bound, said).map_err(|error| error.to_string())
        };
        assert_eq!(check(&options, &[]), Ok(()), "the client judges");
        options.webhooks.verify_at = crate::webhooks::VerifyAt::Edge;
        assert_eq!(check(&options, &[Webhooks::known()]), Ok(()));
        assert_eq!(check(&options, &[]), Err(JUDGES_NOT.to_owned()));
        options.access.rate = Some(1);
        assert_eq!(check(&options, &[Webhooks::known()]), Err(GUARDS_NOT.to_owned()));
        assert_eq!(check(&options, &[Webhooks::known(), Access::known()]), Ok(()));
        options.access.oidc = Some(Box::new(Oidc {
            issuer: "https://issuer.example".to_owned(),
            client_id: "a".to_owned(),
            allow: Vec::new(),
            skip: Vec::new(),
            secret: Some("b".into()),
        }));
        assert_eq!(check(&options, &[Webhooks::known(), Access::known()]), Err(LOGS_IN_NOT.to_owned()));
        assert_eq!(check(&options, &[Webhooks::known(), Access::known(), Oidc::known()]), Ok(()));
    }

    /// What the relay answers: `None` is yes.
    type Answer = Option<&'static str>;

    const ANSWERS: [Answer; 10] = [
        None,
        None,
        None,
        Some("name-in-use"),
        Some("name-taken"),
        Some("too-many-tunnels"),
        Some("not-allowed"),
        Some("internal"),
        Some("of-a-later-version"),
        Some("unauthorized"),
    ];

    #[derive(Clone, Debug)]
    enum Step {
        /// A new session, with these answers to its first message.
        Session { resumed: bool, answers: Vec<usize> },
        /// The answer to a question on the session.
        Answer(usize),
        /// An attempt that comes to nothing.
        Attempt,
        /// Seconds.
        Wait(u64),
        /// Somebody takes the name of the tunnel with this place over.
        TakenOver(usize),
        /// Tunnels, and which of some names each asks for.
        Want(Vec<usize>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), vec(0..ANSWERS.len(), 4)).prop_map(|(resumed, answers)| Step::Session { resumed, answers }),
            (0..ANSWERS.len()).prop_map(Step::Answer),
            Just(Step::Attempt),
            (0..70_u64).prop_map(Step::Wait),
            (0..4_usize).prop_map(Step::TakenOver),
            vec(0..6_usize, 1..4).prop_map(Step::Want),
        ]
    }

    fn wanted(names: &[usize]) -> Vec<TunnelOptions> {
        let tunnels = names.iter().zip(["a", "b", "c", "d"]).map(|(name, label)| TunnelOptions {
            label: Some(label.to_owned()),
            // Of the others the relay chooses one.
            subdomain: ["one", "two", "three", "four"].get(*name).map(|name| (*name).to_owned()),
            ..TunnelOptions::new(UpstreamAddr::localhost(3000))
        });
        tunnels.collect()
    }

    /// What was told of each tunnel.
    #[derive(Default)]
    struct Told {
        up: BTreeMap<String, String>,
        refused: BTreeMap<String, String>,
        closed: BTreeMap<String, String>,
    }

    impl Observer for Told {
        fn observe(&mut self, event: &Event<'_>) {
            match event {
                Event::Ready { tunnel, name, .. } => {
                    self.up.insert((*tunnel).to_owned(), (*name).to_owned());
                    self.refused.remove(*tunnel);
                }
                Event::Closed { tunnel, reason, .. } => {
                    self.closed.insert((*tunnel).to_owned(), (*reason).to_owned());
                    self.up.remove(*tunnel);
                    self.refused.remove(*tunnel);
                }
                Event::Refused { tunnel, reason, url } => {
                    if url.is_none() {
                        self.up.remove(*tunnel);
                    }
                    self.refused.insert((*tunnel).to_owned(), (*reason).to_owned());
                }
                _ => {}
            }
        }
    }

    /// A client without its sockets: what it asks for goes nowhere, and what it is answered is made up.
    struct Machine {
        client: Client,
        tunnels: Tunnels,
        told: Told,
        link: Option<(Link, Driver<DuplexStream>)>,
        randoms: u32,
    }

    impl Machine {
        fn new(wanted: &[TunnelOptions]) -> Self {
            let target = Target::new("http://127.0.0.1:9".parse().unwrap(), &Trust::Only(Vec::new())).unwrap();
            Self {
                client: Client::new(target),
                tunnels: Tunnels::new(wanted),
                told: Told::default(),
                link: None,
                randoms: 0,
            }
        }

        fn answer(&mut self, asked: &Asked, answer: Answer) -> Bound {
            let result = match answer {
                None => {
                    let random = format!("random-{}", self.randoms);
                    self.randoms += 1;
                    let name = asked.name.clone().unwrap_or(random);
                    Ok(PublicName { url: format!("https://{name}.relay.example"), name })
                }
                Some(code) => Err(Refusal {
                    code: code.to_owned(),
                    message: format!("It is {code}."),
                    hint: "Take it over.".to_owned(),
                }),
            };
            Bound { tunnel: asked.number, result }
        }

        async fn session(&mut self, first: bool, resumed: bool, answers: &[Answer]) -> Result<(), ClientError> {
            self.link = None;
            let asked = self.tunnels.hello(&self.client, first);
            if !first {
                self.names_are_kept(&asked);
            }
            let bound: Vec<_> = asked.iter().zip(answers).map(|(asked, answer)| self.answer(asked, *answer)).collect();
            self.tunnels.check(&asked, &bound, &[Webhooks::known()])?;
            if self.tunnels.are_all_refused(&asked, &bound) {
                return self.tunnels.judge_all(&asked, &bound, resumed, &mut self.told).map(drop);
            }
            let (wire, _) = tokio::io::duplex(1024);
            let socket = Driver::websocket(wire, Bytes::new(), Side::Client, 1024).await;
            let (link, driver) = Driver::new(Side::Client, Limits::default(), socket);
            self.tunnels.welcome(&asked, bound, resumed, &self.client, Some(&link), &mut self.told)?;
            self.link = Some((link, driver));
            self.settle()
        }

        fn settle(&mut self) -> Result<(), ClientError> {
            let link = self.link.as_ref().map(|(link, _)| link);
            self.tunnels.settle(&self.client, link, &mut self.told)
        }

        async fn step(&mut self, step: &Step) -> Result<(), ClientError> {
            match step {
                Step::Session { resumed, answers } => {
                    let answers: Vec<_> = answers.iter().map(|answer| ANSWERS[*answer]).collect();
                    self.session(false, *resumed, &answers).await
                }
                Step::Answer(answer) => {
                    let asked = self.tunnels.held.iter().find_map(|held| held.asked.clone());
                    let (Some(asked), true) = (asked, self.link.is_some()) else { return Ok(()) };
                    let bound = self.answer(&asked, ANSWERS[*answer]);
                    let link = self.link.as_ref().map(|(link, _)| link);
                    self.tunnels.bound(bound, false, &self.client, link, &mut self.told)?;
                    self.settle()
                }
                Step::Attempt => {
                    self.link = None;
                    self.tunnels.hello(&self.client, false);
                    self.tunnels.forget_refusals();
                    Ok(())
                }
                Step::Wait(seconds) => {
                    advance(Duration::from_secs(*seconds)).await;
                    self.tunnels.tidy();
                    self.settle()
                }
                Step::TakenOver(at) => {
                    let given = self.tunnels.held.get(*at).and_then(|held| held.given.as_ref());
                    let (Some(number), true) = (given.map(|given| given.number), self.link.is_some()) else {
                        return Ok(());
                    };
                    self.tunnels.lose(number, "It was taken over.", &mut self.told)?;
                    self.settle()
                }
                Step::Want(names) => {
                    let link = self.link.as_ref().map(|(link, _)| link);
                    self.tunnels.want(&wanted(names), link, &mut self.told);
                    self.settle()
                }
            }
        }

        /// What a tunnel is asked for again is what it had, and never at somebody else's cost.
        fn names_are_kept(&self, asked: &[Asked]) {
            for asked in asked {
                let held = self.tunnels.held.iter().find(|held| held.is_asked(asked.number)).unwrap();
                let had = held.given.as_ref().expect("only what there was is asked for at once");
                assert_eq!(asked.name.as_ref(), Some(&had.public.name));
                assert!(!asked.takeover);
            }
        }

        fn check(&self) {
            let now = Instant::now();
            assert!(self.tunnels.held.iter().any(|held| held.lost().is_none()), "nothing is left to run for");
            for held in &self.tunnels.held {
                let live = held.given.as_ref().filter(|given| !given.away);
                match &held.rests {
                    Some(Rests::Lost(_)) => assert!(held.given.is_none() && held.asked.is_none(), "{held:?}"),
                    Some(Rests::Until(then)) => assert!(*then <= now + RESTS.1 && held.asked.is_none(), "{held:?}"),
                    None => {}
                }
                if self.link.is_none() {
                    continue;
                }
                assert!(live.is_some() || held.asked.is_some() || held.rests.is_some(), "nobody sees to {held:?}");
                let label = held.options.label.as_ref().unwrap();
                // One that is on its way to another name may have left the old one.
                if live.is_some() || held.asked.is_none() {
                    assert_eq!(self.told.up.get(label), live.map(|given| &given.public.name), "{held:?}");
                }
                if held.asked.is_none() && held.rests.is_none() {
                    assert!(!self.told.refused.contains_key(label), "{held:?}");
                }
                if let Some(given) = live {
                    assert!(self.tunnels.routes.contains_key(&given.number), "{held:?}");
                }
            }
        }
    }

    fn run(test: impl Future) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the relay answers, and whenever: every tunnel is up, asked for, or rests for a known time, what was told of
        /// it holds, and a client ends for the reasons that it may end for.
        #[test]
        fn tunnels_are_seen_to_one_by_one(
            names in vec(0..6_usize, 1..4),
            steps in vec(step(), 0..60),
        ) {
            run(async {
                let mut machine = Machine::new(&wanted(&names));
                machine.session(true, false, &[None; 4]).await.unwrap();
                machine.check();
                for step in &steps {
                    let before = format!("{:?}", machine.tunnels.held);
                    if let Err(error) = machine.step(step).await {
                        let all = |is: fn(&Held) -> bool| machine.tunnels.held.iter().all(is);
                        let may = match &error {
                            ClientError::Unauthorized(text) => text.contains("unauthorized"),
                            ClientError::NameLost(_) => all(|held| held.lost().is_some()),
                            ClientError::Refused(text) => text.contains("not-allowed") && all(|held| {
                                held.lost().is_some() || held.given.as_ref().is_none_or(|given| given.away)
                            }),
                            _ => false,
                        };
                        assert!(may, "{error:?} after {step:?} of {before}");
                        return;
                    }
                    machine.check();
                }
            });
        }
    }

    fn one() -> Machine {
        Machine::new(&wanted(&[0, 1]))
    }

    /// A name that another session has may be our own last one's for a while, and then it is not.
    #[test]
    fn a_name_in_use_is_lost_once_no_session_of_ours_can_have_it() {
        run(async {
            let mut machine = one();
            machine.session(true, false, &[None; 4]).await.unwrap();
            machine.session(false, false, &[Some("name-in-use"), None]).await.unwrap();
            let mut waited = 0;
            while machine.told.refused.contains_key("a") {
                machine.check();
                advance(Duration::from_secs(1)).await;
                waited += 1;
                machine.settle().unwrap();
                machine.step(&Step::Answer(3)).await.unwrap();
            }
            assert!((20..=30).contains(&waited), "{waited} s");
            assert_eq!(machine.told.up.keys().collect::<Vec<_>>(), ["b"]);
            machine.session(false, true, &[None]).await.unwrap();
            assert_eq!(machine.told.up.keys().collect::<Vec<_>>(), ["b"], "it is not asked for again");

            let mut machine = one();
            machine.session(true, false, &[None; 4]).await.unwrap();
            machine.session(false, true, &[Some("name-in-use"), None]).await.unwrap();
            assert_eq!(machine.told.up.keys().collect::<Vec<_>>(), ["b"]);
            assert!(machine.told.refused.is_empty(), "whose session was resumed knows at once");
        });
    }

    /// Whichever goes last: the one that is lost, or the one that is wanted no more.
    #[test]
    fn a_client_of_which_only_lost_tunnels_are_left_ends() {
        run(async {
            for with_session in [true, false] {
                let mut machine = one();
                machine.session(true, false, &[None; 4]).await.unwrap();
                machine.session(false, true, &[Some("name-in-use"), None]).await.unwrap();
                machine.link.take_if(|_| !with_session);
                let ended = machine.step(&Step::Want(vec![0])).await.unwrap_err();
                let lost = "the name was lost while this client was away: It is name-in-use.";
                assert_eq!(machine.told.closed["a"], lost, "advice would be of no use");
                assert!(matches!(&ended, ClientError::NameLost(text) if *text == format!("a: {lost}")), "{ended:?}");
            }
            // One that is asked for anew, under another name, is none of them.
            let mut machine = one();
            machine.session(true, false, &[None; 4]).await.unwrap();
            machine.session(false, true, &[Some("name-in-use"), None]).await.unwrap();
            machine.step(&Step::Want(vec![2])).await.unwrap();
            machine.step(&Step::Answer(0)).await.unwrap();
            assert_eq!(machine.told.up.keys().collect::<Vec<_>>(), ["a"]);
        });
    }

    #[test]
    fn a_tunnel_that_is_refused_is_asked_for_ever_more_rarely() {
        run(async {
            let mut machine = one();
            machine.session(true, false, &[None; 4]).await.unwrap();
            machine.session(false, false, &[Some("not-allowed"), None]).await.unwrap();
            let mut asked = Vec::new();
            for second in 0..3600_u32 {
                if machine.tunnels.held[0].asked.is_some() {
                    asked.push(second);
                    machine.step(&Step::Answer(6)).await.unwrap();
                }
                advance(Duration::from_secs(1)).await;
                machine.settle().unwrap();
            }
            assert!((60..300).contains(&asked.len()), "{asked:?}");
            assert!(asked[0] <= 2 && asked.last().unwrap() >= &3540, "{asked:?}");
        });
    }
}
