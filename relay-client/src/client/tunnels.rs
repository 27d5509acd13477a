//! The tunnels of a client: which are wanted, which the relay has given, and what it is asked for meanwhile.
//!
//! ```text
//!   wanted ── not what is given ──▶ asked ── Bound ──▶ given ── no longer wanted ──▶ given back
//!                                     └── refused: asked again with the next session, or when what is wanted changes
//! ```
//!
//! Numbers are never used twice, so that a request on its way finds its service though the tunnel has moved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use relay_protocol::frame::SessionKind;
use relay_protocol::link::Link;
use relay_protocol::message::{Bound, Payload, PublicName, TunnelSpec};
use tokio::time::Instant;

use super::{Client, ClientError, TunnelOptions};
use crate::event::{Event, Observer};
use crate::session::{ConnectError, explain};
use crate::upstream::Upstream;

/// How long requests still find the service of a tunnel that was given back: they may have been on their way.
const LINGER: Duration = Duration::from_secs(10);

/// Where requests go, by the tunnel's number.
pub(super) type Routes = Arc<HashMap<u32, Arc<Upstream>>>;

/// All tunnels of a client.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    held: Vec<Held>,
    routes: Routes,
    /// Numbers of what was given back, and when that was.
    retired: Vec<(u32, Instant)>,
    /// The next number.
    next: u32,
}

/// A tunnel that is wanted.
#[derive(Debug)]
struct Held {
    options: TunnelOptions,
    given: Option<Given>,
    asked: Option<Asked>,
    rests: Option<Rests>,
}

/// Why a tunnel is not asked for at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rests {
    /// The relay refused it.
    Refused,
    /// Somebody else has its name, and means it.
    Lost,
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
        let timeout = self.options.timeout.map(|timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        TunnelSpec {
            tunnel: self.number,
            name: self.name.clone(),
            domain: None,
            timeout_ms: timeout,
            takeover: self.takeover,
            extra: Vec::new(),
        }
    }

    /// What the tunnel is called on this machine.
    pub(super) fn label(&self) -> Option<&str> {
        self.options.label.as_deref()
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
                    Held { rests: held.rests.filter(|rests| *rests == Rests::Lost), ..held }
                }
                Some(held) => Held { options: options.clone(), rests: None, ..held },
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
    /// wanted.
    pub(super) fn hello(&mut self, client: &Client, first: bool) -> Vec<Asked> {
        for held in &mut self.held {
            held.asked = None;
            held.rests = held.rests.filter(|rests| *rests == Rests::Lost);
        }
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
            self.next = self.next.max(asked.number.saturating_add(1));
            if let Some(held) = self.held.get_mut(at) {
                held.asked = Some(asked);
            }
        }
        self.held.iter().filter_map(|held| held.asked.clone()).collect()
    }

    /// Whether a session may follow this answer to what it was asked for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(asked: &[Asked], bound: &[Bound]) -> Result<(), ClientError> {
        for asked in asked {
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

    /// Takes in what became of the tunnels of a session's first message, as they were asked for in the end.
    pub(super) fn welcome(
        &mut self,
        asked: &[Asked],
        bound: Vec<Bound>,
        client: &Client,
        link: Option<&Link>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        // What was asked for on the session before has no answer any more.
        for held in &mut self.held {
            held.asked =
                held.asked.take().and_then(|old| asked.iter().find(|asked| asked.number == old.number).cloned());
        }
        bound.into_iter().try_for_each(|bound| self.bound(bound, client, link, observer))
    }

    /// Takes in what became of a tunnel that was asked for.
    pub(super) fn bound(
        &mut self,
        bound: Bound,
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
            Err(refusal) if refusal.code == "too-many-tunnels" && held.given.is_some() => {
                if let Some(given) = held.given.take() {
                    self.give_back(given.number, link);
                }
                self.send_ask(at, asked, link);
                return Ok(());
            }
            Err(refusal) => {
                held.rests = Some(Rests::Refused);
                let reason = explain(&refusal);
                observer
                    .observe(&Event::Refused { tunnel: held.options.label.as_deref().unwrap_or(""), reason: &reason });
                return Ok(());
            }
        };
        let before = held.given.take();
        let is_as_before = before.as_ref().is_some_and(|before| before.number == number && before.public == public);
        let given = Given { number, options: asked.options, public, beside: asked.beside };
        if !is_as_before {
            let upstream = match given.upstream() {
                Ok(upstream) => upstream,
                Err(error) => {
                    held.rests = Some(Rests::Refused);
                    let tunnel = given.options.label.as_deref().unwrap_or(&given.public.name);
                    observer.observe(&Event::Refused { tunnel, reason: &error.to_string() });
                    held.given = before;
                    self.give_back(number, link);
                    return Ok(());
                }
            };
            Arc::make_mut(&mut self.routes).insert(number, Arc::new(upstream));
            if let (None, Some(names), false) = (&given.options.subdomain, &client.names, given.beside) {
                names.of_tunnel(given.options.label.as_deref()).remember(&given.public.name);
            }
            client.announce(&given.options, &given.public, observer);
        }
        held.given = Some(given);
        if let Some(before) = before.filter(|before| before.number != number) {
            self.give_back(before.number, link);
        }
        Ok(())
    }

    /// Asks for what is wanted and not given, once there is a session. What changes on this machine alone changes at once.
    pub(super) fn settle(
        &mut self,
        client: &Client,
        link: Option<&Link>,
        observer: &mut dyn Observer,
    ) -> Result<(), ClientError> {
        if link.is_none() {
            return Ok(());
        }
        for at in 0..self.held.len() {
            let Some(held) = self.held.get_mut(at).filter(|held| held.asked.is_none() && held.rests.is_none()) else {
                continue;
            };
            match &mut held.given {
                Some(given) if given.options == held.options => {}
                Some(given) if given.is_bound_as(&held.options) => {
                    given.options = held.options.clone();
                    let upstream = given.upstream()?;
                    Arc::make_mut(&mut self.routes).insert(given.number, Arc::new(upstream));
                    client.announce(&given.options, &given.public, observer);
                }
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
        held.rests.get_or_insert(Rests::Lost);
        if self.held.iter().all(|held| held.rests == Some(Rests::Lost)) {
            return Err(ClientError::NameLost(text.to_owned()));
        }
        if let Some(held) = self.held.iter().find(|held| held.options.label == given.options.label) {
            tell_closed(&held.options, &given.public, text, observer);
        }
        Ok(())
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
        let kept = held.given.as_ref().filter(|given| given.options.subdomain == options.subdomain);
        let meant = kept.map(|given| given.public.name.clone()).or_else(|| options.subdomain.clone());
        let is_ours = |name: &String| {
            self.held.iter().filter_map(|held| held.given.as_ref()).any(|given| given.public.name == *name)
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
        Self { options, given: None, asked: None, rests: None }
    }

    fn is_asked(&self, number: u32) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.number == number)
    }
}

impl Given {
    fn upstream(&self) -> Result<Upstream, ClientError> {
        let options = &self.options;
        let rewriter = options.upstream.rewriter(&options.host_header, &self.public.url)?;
        let name = options.label.as_deref().unwrap_or(&self.public.name);
        Ok(Upstream::new(name, options.upstream.clone(), options.protocol, rewriter))
    }

    /// Whether the relay need not know of the difference.
    fn is_bound_as(&self, wanted: &TunnelOptions) -> bool {
        (&self.options.subdomain, self.options.timeout) == (&wanted.subdomain, wanted.timeout)
    }
}

fn tell_closed(options: &TunnelOptions, public: &PublicName, reason: &str, observer: &mut dyn Observer) {
    let tunnel = options.label.as_deref().unwrap_or(&public.name);
    observer.observe(&Event::Closed { tunnel, name: &public.name, url: &public.url, reason });
}
