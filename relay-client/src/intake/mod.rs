//! What comes through a tunnel, before its service sees it: who has sent it, and what follows from that.
//!
//! ```text
//!   session ── head, body ──▶ Caller ──▶ Gate ──▶ Routes ──▶ upstream ── what became of it ──▶ Outcome
//! ```
//!
//! The table of providers says what is known of a sender. Nothing is held back for that: a sender that cannot be told by
//! its head, or by the body that has come with it, is told when the request is here as a whole.

mod caller;
pub mod faults;
mod gate;
pub mod routes;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join;
use relay_protocol::exchange::public_url;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::RequestHead;
use relay_protocol::webhook::{Event, Fact, Judgement, Provider, Request};
use tokio::time::Instant;

use self::caller::Caller;
use self::faults::{Injector, Met};
use self::gate::{Findings, Gate};
use self::routes::{Body, Routes, Way};
use crate::capture::Arrival;
use crate::event;
use crate::upstream::{Ending, RequestBody, Room, Upstream};
use crate::webhooks::WebhookOptions;

/// How an exchange ended, for whoever reports it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What the tunnel is called on this machine, where there is one.
    pub(crate) tunnel: Option<Arc<str>>,
    pub(crate) head: Option<RequestHead>,
    /// How long it took its service, or us, to answer: from the start of the deadline.
    pub(crate) duration: Duration,
    /// What it is as a webhook, where it is one that we know.
    pub(crate) webhook: Option<Webhook>,
    pub(crate) ending: Ending,
}

/// A request of a known provider.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) provider: Arc<Provider>,
    /// What has happened, in the provider's words.
    pub(crate) event: Arc<Event>,
    pub(crate) found: Findings,
}

impl Webhook {
    /// As it is told.
    pub(crate) fn shown(&self) -> event::Webhook<'_> {
        let provider = &*self.provider;
        event::Webhook {
            provider: &provider.id,
            name: &provider.name,
            event_id: self.event.id.as_deref(),
            event_type: self.event.kind.as_deref(),
            verdict: self.found.judgement.as_ref().map(|judgement| judgement.verdict),
            reason: self.found.judgement.as_ref().map(|judgement| judgement.reason.as_ref()),
            handshake: self.found.handshake,
            limit_ms: provider.limit().map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            limit_source: provider
                .source(Fact::Limit)
                .map(|source| source.confidence)
                .filter(|_| provider.limit().is_some()),
        }
    }
}

/// The service behind a tunnel, and what is between the two.
#[derive(Debug)]
pub(crate) struct Intake {
    /// What the tunnel is called on this machine.
    name: Arc<str>,
    webhooks: WebhookOptions,
    /// A provider that signs the URL which it calls has its requests arrive under that name.
    by_provider: bool,
    gate: Gate,
    /// None where nothing goes wrong on purpose.
    injector: Option<Injector>,
    routes: Arc<Routes>,
    /// For what no route fits.
    upstream: Upstream,
    /// For bodies that are kept.
    room: Arc<Room>,
}

impl Intake {
    /// Of the tunnel that is called so on this machine; with `by_provider` the service's public name is preserved where
    /// a signature covers it.
    pub(crate) fn new(
        name: &str,
        webhooks: WebhookOptions,
        by_provider: bool,
        injector: Option<Injector>,
        routes: Routes,
        upstream: Upstream,
    ) -> Self {
        let gate = Gate::new(&webhooks);
        Self {
            name: name.into(),
            webhooks,
            by_provider,
            gate,
            injector,
            routes: Arc::new(routes),
            upstream,
            room: Arc::default(),
        }
    }

    /// Takes in the request of a stream whose head has been taken off it, until it is answered. `turns` counts how often
    /// the session has sent what was queued.
    pub(crate) async fn take(&self, stream: Stream, head: RequestHead, turns: &AtomicU64, arrival: Arrival) -> Outcome {
        let arrived = Instant::now();
        let body = RequestBody::of(&stream, &self.room, &head, |body, whole| {
            arrival.keep(&head, Some(self.name()), body, whole)
        });
        let mut found = Findings::default();
        let (mut ending, took, known) = {
            let (url, whole) = (public_url(&head), OnceLock::new());
            let mut caller = Caller::new(&stream, &head, &body, &self.webhooks, &url, &whole).await;
            let (ending, took) = match self.admit(&mut caller, &mut found).await {
                Ok((upstream, met)) => {
                    let served = self.serve(upstream, &mut caller, &mut found, turns, arrived);
                    match met {
                        None => served.await,
                        // Boxed, because it is rare and every exchange would have the room for it.
                        Some(met) => Box::pin(met.with(served)).await,
                    }
                }
                Err(ending) => {
                    let took = arrived.elapsed();
                    // What has met a fault or a route is judged as what the service has answered.
                    if found.handshake.is_none() {
                        self.look_after(&mut caller, &mut found).await;
                    }
                    (ending, took)
                }
            };
            (ending, took, caller.into_known())
        };
        ending.detail = ending.detail.or_else(|| found.note.take()).or_else(|| found.complaint());
        let recording = body.recording();
        recording.annotate(|note| {
            if let Some(Judgement { verdict, reason, .. }) = &found.judgement {
                (note.verdict, note.reason) = (Some(*verdict), Some(reason.clone()));
            }
            if let Some((provider, event)) = &known {
                note.provider = Some(provider.clone());
                note.event_id.clone_from(&event.id);
                note.event_type.clone_from(&event.kind);
            }
        });
        let webhook = known.map(|(provider, event)| Webhook { provider, event, found });
        let duration = since_start(&head, took);
        recording.ended(ending.status, duration, ending.error);
        Outcome { tunnel: Some(self.name()), head: Some(head), duration, webhook, ending }
    }

    /// The service that a request goes to, with the faults that it has met on its way there.
    ///
    /// # Errors
    /// How it has ended, where it goes to none.
    async fn admit(
        &self,
        caller: &mut Caller<'_>,
        found: &mut Findings,
    ) -> Result<(&Upstream, Option<Met<'_>>), Ending> {
        self.gate.admit(caller, found).await?;
        let upstream = self.upstream(caller).await?;
        let met = match &self.injector {
            None => None,
            Some(injector) => Some(Box::pin(injector.meet(&self.name, caller)).await?),
        };
        Ok((upstream, met))
    }

    async fn upstream(&self, caller: &mut Caller<'_>) -> Result<&Upstream, Ending> {
        if self.routes.is_empty() {
            return Ok(&self.upstream);
        }
        let mut way = self.way(caller, if caller.is_seen() { Body::Whole } else { Body::ToCome }).await;
        if way == Way::Unknown {
            self.gate.hold_for_routes(caller).await?;
            way = self.way(caller, if caller.is_seen() { Body::Whole } else { Body::TooLong }).await;
        }
        match self.routes.at(way) {
            None => Ok(&self.upstream),
            Some((_, _, Some(upstream))) => Ok(upstream),
            Some((number, to, None)) => Err(gate::answer_by_route(caller, number, to).await),
        }
    }

    async fn way(&self, caller: &Caller<'_>, body: Body) -> Way {
        let (routes, table, known) = (self.routes.clone(), self.webhooks.table.clone(), caller.known().cloned());
        let find = move |request: &Request<'_>| {
            let known = known.as_ref().map(|(sender, event)| (&**sender, &**event));
            routes.find(request, &table, known, body)
        };
        caller.look(find).await
    }

    /// Has a request answered by its service. What is still to be found out of it is, while that is at work. Says how it
    /// ended, and how long after its arrival.
    async fn serve(
        &self,
        upstream: &Upstream,
        caller: &mut Caller<'_>,
        found: &mut Findings,
        turns: &AtomicU64,
        arrived: Instant,
    ) -> (Ending, Duration) {
        let (stream, head, body) = (caller.stream, caller.head, caller.body);
        let as_called = self.by_provider && caller.sender().is_some_and(|sender| sender.signs_url());
        // Pinned, because it is large, and each place that it is moved to would make room for it.
        let mut forward = pin!(async {
            let ending = upstream.forward(stream, head, body.clone(), as_called, turns).await;
            (ending, arrived.elapsed())
        });
        if caller.is_seen() && (found.judgement.is_some() || !self.gate.judges_late()) {
            body.release();
            return forward.await;
        }
        let look = async {
            self.look_after(caller, found).await;
            body.release();
        };
        let early = poll_fn(|cx| match forward.as_mut().poll(cx) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending if body.is_whole() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let Some(served) = early.await else { return join(forward, look).await.0 };
        look.await;
        served
    }

    /// Finds out what is still to be found out of a request.
    async fn look_after(&self, caller: &mut Caller<'_>, found: &mut Findings) {
        caller.look_again().await;
        if found.judgement.is_none() {
            found.judgement = self.gate.look_after(caller).await;
        }
    }

    /// Refuses a request, because there are too many.
    pub(crate) fn refuse(&self, stream: &Stream, head: RequestHead, arrival: Arrival, detail: String) -> Outcome {
        let recording = arrival.keep(&head, Some(self.name()), &[], false);
        let ending = gate::refused(stream, Reset::Refused, Some(detail));
        let duration = since_start(&head, Duration::ZERO);
        recording.ended(ending.status, duration, ending.error);
        Outcome { tunnel: Some(self.name()), head: Some(head), duration, webhook: None, ending }
    }

    /// What is known of its webhooks.
    pub(crate) fn webhooks(&self) -> &WebhookOptions {
        &self.webhooks
    }

    /// What the tunnel is called on this machine.
    pub(crate) fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Closes connections that have been idle for too long. Returns when to ask again.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        self.upstreams().filter_map(|upstream| upstream.expire(now)).min()
    }

    /// Ends what runs beside the exchanges.
    pub(crate) async fn close(&self) {
        for upstream in self.upstreams() {
            upstream.close().await;
        }
    }

    fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.routes.services().chain([&self.upstream])
    }
}

/// From the start of the deadline until so long after the arrival of the head here.
fn since_start(head: &RequestHead, took: Duration) -> Duration {
    Duration::from_millis(head.elapsed_ms.into()) + took
}
