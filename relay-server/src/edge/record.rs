//! What the access log and the metrics say of an exchange.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{StatusCode, Version};
use relay_protocol::exchange::{X_FORWARDED_PROTO, prefix};
use relay_protocol::message::{HeaderList, RequestHead, ResponseHead};
use tokio::time::Instant;

use super::access::Admitted;
use super::caller::Caller;
use super::io::InFlight;
use super::login::shown;
use crate::Shared;
use crate::admin::metrics::Ended;
use crate::cause::Cause;
use crate::clock::unix_now;
use crate::log::AccessLine;
use crate::quota::{EACH, Meter, Over, Pass};
use crate::traces::Trace;

/// The record of an exchange. It is written when it is dropped, with the response's body or with what the exchange was
/// upgraded to.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) head: RequestHead,
    /// When the sender began to count.
    pub(crate) started: Instant,
    pub(crate) version: Version,
    /// What the sender was answered, and after which time.
    answered: Option<(StatusCode, Duration)>,
    /// Whose webhook it is, where somebody had to know.
    pub(crate) provider: Option<String>,
    shared: Arc<Shared>,
    error: OnceLock<Cause>,
    sent: AtomicU64,
    received: AtomicU64,
    /// A request's body that goes on beside its response.
    receiving: OnceLock<Arc<Receiving>>,
    /// It counts for the token that it is for.
    pub(crate) pass: Option<Pass>,
    /// Who the connection says that its sender is.
    pub(crate) caller: Caller,
    /// By what it was let in, where its tunnel has rules.
    pub(crate) admitted: Admitted,
    /// Where it is written.
    trace: Option<Box<Trace>>,
    /// The token's client or its inbox has it, or has had some of it: what the relay alone refuses costs the token nothing.
    pub(crate) taken: bool,
    /// Of the bytes both ways, but for a body that goes on, so many were counted for the token.
    counted: AtomicU64,
    pub(crate) in_flight: InFlight,
}

/// What became of a request's body that was still arriving when its response began.
#[derive(Debug, Default)]
pub(crate) struct Receiving {
    /// All bytes so far.
    pub(crate) bytes: AtomicU64,
    /// Why there came no more of them.
    pub(crate) stopped: OnceLock<Cause>,
    /// So many of them were counted for the token, by this.
    counted: AtomicU64,
    meter: OnceLock<Arc<Meter>>,
}

impl Receiving {
    /// A body of which so much has come.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), ..Self::default() }
    }

    /// As [`Exchange::settle`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn settle(&self) -> Result<(), Over> {
        self.meter.get().map_or(Ok(()), |meter| settle(meter, &self.counted, self.bytes.load(Relaxed)))
    }
}

/// Counts what was not counted yet, where that is much: so a piece of a body costs no lock.
fn settle(meter: &Meter, counted: &AtomicU64, total: u64) -> Result<(), Over> {
    let more = total.saturating_sub(counted.load(Relaxed));
    if more < EACH {
        return Ok(());
    }
    counted.fetch_add(more, Relaxed);
    meter.count(more, unix_now())
}

impl Exchange {
    pub(crate) fn new(
        shared: Arc<Shared>,
        mut head: RequestHead,
        version: Version,
        started: Instant,
        in_flight: InFlight,
    ) -> Self {
        shared.metrics.begun();
        let trace = shared.tracer.as_ref().and_then(|tracer| tracer.begin(&mut head.headers));
        Self {
            head,
            started,
            version,
            answered: None,
            provider: None,
            shared,
            error: OnceLock::new(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            receiving: OnceLock::new(),
            pass: None,
            caller: Caller::Elsewhere,
            admitted: Admitted::default(),
            trace,
            taken: false,
            counted: AtomicU64::new(0),
            in_flight,
        }
    }

    /// The head of the response goes to the sender now.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.answered = Some((status, self.started.elapsed()));
    }

    /// The relay that it is at.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Counts bytes that went to the sender.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Says how much has gone to the sender and come from it.
    pub(crate) fn carried(&self, sent: u64, received: u64) {
        self.sent.store(sent, Relaxed);
        self.received(received);
    }

    /// Says how much has come from the sender.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.store(bytes, Relaxed);
    }

    /// Counts for the token what has come and gone since the last time, where that is much by now.
    ///
    /// # Errors
    /// [`Over`]: it has used up so much more than it may that the exchange is to end.
    pub(crate) fn settle(&self) -> Result<(), Over> {
        let Some(pass) = self.pass.as_ref().filter(|_| self.taken) else { return Ok(()) };
        // What goes on beside is settled by whoever reads it.
        let received = if self.receiving.get().is_some() { 0 } else { self.received.load(Relaxed) };
        let total = self.sent.load(Relaxed).saturating_add(received);
        settle(pass.meter(), &self.counted, total)
    }

    /// Follows a body that goes on.
    pub(crate) fn receiving(&self, body: Arc<Receiving>) {
        body.counted.store(self.counted.swap(0, Relaxed), Relaxed);
        if let Some(pass) = self.pass.as_ref().filter(|_| self.taken) {
            // A body goes on once.
            let _ = body.meter.set(pass.meter().clone());
        }
        let _ = self.receiving.set(body);
    }

    /// The request is about to be sent into a tunnel.
    pub(crate) fn leaves(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.leaves(&mut self.head.headers);
        }
    }

    /// It was not sent after all.
    pub(crate) fn stays(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.stays();
        }
    }

    /// The head of its answer has come back, or none will come on this way.
    pub(crate) fn arrives(&mut self, head: Option<&ResponseHead>) {
        if let Some(trace) = &mut self.trace {
            trace.arrives(head);
        }
    }

    /// Notes why the exchange failed; the first cause is the one.
    pub(crate) fn failed(&self, cause: Cause) {
        // A later failure is a consequence of the first.
        let _ = self.error.set(cause);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let receiving = self.receiving.get();
        // What stopped the body is the reason for what became of the response.
        let stopped = receiving.and_then(|body| body.stopped.get());
        let error = stopped.or(self.error.get()).map(|cause| cause.code());
        let received = receiving.map_or(&self.received, |body| &body.bytes);
        let (sent, received) = (self.sent.load(Relaxed), received.load(Relaxed));
        if let Some(pass) = self.pass.as_ref().filter(|_| self.taken) {
            let counted = self.counted.load(Relaxed) + receiving.map_or(0, |body| body.counted.load(Relaxed));
            // It is over, whatever it has cost.
            let _ = pass.meter().count(sent.saturating_add(received).saturating_sub(counted), unix_now());
        }
        let (answered, duration) = (self.answered, self.started.elapsed());
        self.shared.metrics.ended(&Ended { answered, error, duration, sent, received });
        let line = AccessLine {
            id: &self.head.id,
            remote: &self.head.remote,
            version: self.version,
            method: &self.head.method,
            host: &self.head.authority,
            prefix: prefix(&self.head.headers),
            target: shown(&self.head.target),
            status: answered.map(|(status, _)| status),
            received,
            sent,
            duration,
            provider: self.provider.as_deref(),
            error,
            trace: self.trace.as_ref().map(|trace| trace.id()),
        };
        self.shared.access.exchange(&line);
        if let (Some(tracer), Some(trace)) = (&self.shared.tracer, &self.trace) {
            tracer.end(trace, &line, (scheme(&self.head.headers), self.started));
        }
    }
}

/// How the sender has called: the edge notes what is not HTTPS, and a trusted proxy what it was.
fn scheme(headers: &HeaderList) -> &'static str {
    let line = headers.iter().find(|(name, _)| *name == X_FORWARDED_PROTO);
    if line.is_some_and(|(_, value)| value.as_bytes().eq_ignore_ascii_case(b"http")) { "http" } else { "https" }
}
