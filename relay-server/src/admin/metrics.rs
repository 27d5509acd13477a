//! What Prometheus is told. Labels come from closed sets only: a stranger cannot make series.

use std::time::{Duration, Instant};

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::gauges::Gauges;
use crate::cause::Cause;
use crate::clock::unix_now;
use crate::histogram::Histogram;
use crate::inbox::records::Outcome;
use crate::quota::Over;
use crate::status::{Traffic, Waits};

/// The relay's counters. How things stand is [read](Gauges) when somebody asks.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// When this process began, in seconds since 1970.
    pub(crate) started: i64,
    begun: Instant,
    /// By the hundreds of the status: 1xx to 5xx.
    classes: [Counter; 6],
    causes: Family<Label, Counter>,
    under_way: Gauge,
    head: Histogram,
    duration: Histogram,
    sent: Counter,
    received: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) unauthorized: Counter,
    /// By what has been used up: requests per second, those under way, bytes of a month.
    over_quota: [Counter; 3],
    pub(crate) blocked_connections: Counter,
    pub(crate) blocked_requests: Counter,
    admin_refused: [Counter; 4],
    pub(crate) panics: Counter,
    pub(crate) inbox_accepted: Counter,
    pub(crate) inbox_acknowledged: Counter,
    attempts: [Counter; 3],
    dead_letters: Counter,
    pub(crate) alerts_sent: Counter,
    pub(crate) alerts_failed: Counter,
    pub(crate) traces_sent: Counter,
    pub(crate) traces_dropped: Counter,
    pub(crate) dns_questions: Counter,
    pub(crate) dns_limited: Counter,
    pub(crate) dns_refused: Counter,
    pub(crate) certificates_obtained: Counter,
    pub(crate) certificate_failures: Counter,
}

/// A name and a value. Neither is anybody's but ours.
type Label = [(&'static str, &'static str); 1];

fn of(cause: &'static str) -> Label {
    [("error", cause)]
}

/// The refusals of the admin API that tell of somebody who may not call it, or does not know how.
const ADMIN: [&str; 4] = ["unauthorized", "unknown-host", "cross-site", "method-not-allowed"];

/// What times are told apart by: from a service beside the relay to one that the longest deadline ends.
const LATENCIES_S: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// With what is counted of commits where they are made: those of tokens and names, and those of inboxes.
    pub(crate) fn new(store: Histogram, inboxes: Histogram) -> Self {
        let mut registry = Registry::with_prefix("relay");
        registry.register("build", "The version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let classes = family(&mut registry, "exchanges", "Exchanges by the class of their status", "class", CLASSES);
        let causes = Family::<Label, Counter>::default();
        registry.register("errors", "Exchanges that the relay answered itself, by cause", causes.clone());
        for cause in Cause::ALL {
            drop(causes.get_or_create(&of(cause.code())));
        }
        let under_way = Gauge::default();
        registry.register("exchanges_under_way", "Exchanges that have begun and not ended", under_way.clone());
        let [head, duration] = [LATENCIES_S; 2].map(Histogram::new);
        let help = "From the start of an exchange's deadline to the head of its response";
        registry.register_with_unit("exchange_head", help, Unit::Seconds, head.clone());
        let help = "From the start of an exchange's deadline to the end of its response";
        registry.register_with_unit("exchange_duration", help, Unit::Seconds, duration.clone());
        let help = "Attempts to deliver webhooks of inboxes, by outcome";
        let outcomes = ["delivered", "failed", "unsent"];
        let attempts = family(&mut registry, "inbox_attempts", help, "outcome", outcomes);
        let help = "Alerts to the operator's own receiver, by outcome";
        let [alerts_sent, alerts_failed] = family(&mut registry, "alerts", help, "outcome", ["sent", "failed"]);
        let help = "Requests beyond what their tunnel's token may have, by what it has used up";
        let over_quota = family(&mut registry, "quota_refused", help, "quota", ["rate", "streams", "bytes"]);
        let help = "What was refused because the operator has blocked it";
        let [blocked_connections, blocked_requests] =
            family(&mut registry, "blocked", help, "what", ["connection", "request"]);
        let help = "Calls of the admin API by whoever may not, or does not know how";
        let admin_refused = family(&mut registry, "admin_refused", help, "error", ADMIN);
        let help = "Commits to the database of tokens and names";
        registry.register_with_unit("store_commit_duration", help, Unit::Seconds, store);
        let help = "Commits to the database of inboxes";
        registry.register_with_unit("inbox_commit_duration", help, Unit::Seconds, inboxes);
        let help = "Traces of exchanges for the operator's collector, by outcome";
        let [traces_sent, traces_dropped] = family(&mut registry, "traces", help, "outcome", ["sent", "dropped"]);
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            started: unix_now(),
            begun: Instant::now(),
            classes,
            causes,
            under_way,
            head,
            duration,
            sent: counter(&mut registry, "sent_bytes", "Bytes of response bodies"),
            received: counter(&mut registry, "received_bytes", "Bytes of request bodies"),
            connections_refused: counter(&mut registry, "connections_refused", "Connections beyond the limits"),
            handshakes_failed: counter(
                &mut registry,
                "handshakes_failed",
                "TLS handshakes, and PROXY headers before them, that failed or took too long",
            ),
            refused: counter(&mut registry, "requests_refused", "Requests that the gate refused"),
            unauthorized: counter(&mut registry, "unauthorized", "Connect attempts without a valid token"),
            over_quota,
            blocked_connections,
            blocked_requests,
            dns_questions: counter(&mut registry, "dns_questions", "Questions about names that were looked at"),
            dns_limited: counter(&mut registry, "dns_limited", "Questions about names beyond a network's rate"),
            dns_refused: counter(&mut registry, "dns_refused", "Questions that were answered with a refusal"),
            certificates_obtained: counter(&mut registry, "certificates_obtained", "Certificates that were obtained"),
            certificate_failures: counter(
                &mut registry,
                "certificate_failures",
                "Attempts to obtain a certificate that failed",
            ),
            admin_refused,
            panics: counter(&mut registry, "panics", "Tasks that panicked; each is a bug"),
            inbox_accepted: counter(&mut registry, "inbox_accepted", "Webhooks that inboxes took, or knew as copies"),
            inbox_acknowledged: counter(
                &mut registry,
                "inbox_acknowledged",
                "Webhooks that were answered by the relay, because the app had not",
            ),
            attempts,
            dead_letters: counter(&mut registry, "inbox_dead_letters", "Webhooks that were given up"),
            alerts_sent,
            alerts_failed,
            traces_sent,
            traces_dropped,
            registry,
        }
    }

    /// Counts an exchange that begins.
    pub(crate) fn begun(&self) {
        self.under_way.inc();
    }

    /// Counts an exchange that has ended.
    pub(crate) fn ended(&self, exchange: &Ended) {
        self.under_way.dec();
        let class =
            exchange.answered.map_or(0, |(status, _)| usize::from(status.as_u16() / 100).min(CLASSES.len() - 1));
        if let Some(counter) = self.classes.get(class) {
            counter.inc();
        }
        if let Some((_, head)) = exchange.answered {
            self.head.observe(head);
        }
        if let Some(error) = exchange.error {
            self.causes.get_or_create(&of(error)).inc();
        }
        self.duration.observe(exchange.duration);
        self.sent.inc_by(exchange.sent);
        self.received.inc_by(exchange.received);
    }

    /// Counts a request that was one too many.
    pub(crate) fn over(&self, over: Over) {
        let [rate, streams, bytes] = &self.over_quota;
        match over {
            Over::Rate(_) => rate,
            Over::Streams(_) => streams,
            Over::Bytes(..) => bytes,
        }
        .inc();
    }

    /// Counts a call of the admin API that was refused; false where that is no matter of who has called.
    pub(crate) fn admin_refused(&self, code: &str) -> bool {
        let known = ADMIN.iter().zip(&self.admin_refused).find(|(known, _)| **known == code);
        known.map(|(_, counter)| counter.inc()).is_some()
    }

    /// Counts an attempt to deliver a webhook: one that was noted, or one that the client has not seen.
    pub(crate) fn attempt(&self, outcome: Option<&Outcome>) {
        let [delivered, failed, unsent] = &self.attempts;
        match outcome {
            Some(Outcome::Delivered | Outcome::Answered(_)) => delivered,
            Some(Outcome::Again { .. }) => failed,
            Some(Outcome::Dead { .. }) => {
                self.dead_letters.inc();
                failed
            }
            None => unsent,
        }
        .inc();
    }

    /// Counts webhooks that were given up because they have waited for too long.
    pub(crate) fn expired(&self, count: u64) {
        self.dead_letters.inc_by(count);
    }

    /// Webhooks that no inbox has taken, because it or the disk was full or had failed.
    pub(crate) fn refused_by_inboxes(&self) -> u64 {
        let causes = [Cause::InboxFull, Cause::InboxFailed];
        causes.iter().map(|cause| self.causes.get_or_create(&of(cause.code())).get()).sum()
    }

    /// What was counted of exchanges.
    pub(crate) fn traffic(&self) -> Traffic {
        let requests = CLASSES.iter().zip(&self.classes).map(|(class, count)| ((*class).to_owned(), count.get()));
        let errors = Cause::ALL.iter().map(|cause| cause.code());
        let errors = errors.map(|code| (code.to_owned(), self.causes.get_or_create(&of(code)).get()));
        Traffic {
            uptime_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            under_way: u64::try_from(self.under_way.get()).unwrap_or_default(),
            requests: requests.collect(),
            errors: errors.filter(|(_, count)| *count > 0).collect(),
            received_bytes: self.received.get(),
            sent_bytes: self.sent.get(),
            head: Waits { bounds_s: self.head.bounds().to_vec(), counts: self.head.counts() },
        }
    }

    /// The text that a scrape gets, with `gauges` behind it.
    pub(crate) fn text(&self, gauges: &Gauges) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        text.push_str(gauges.as_str());
        text.push_str("# EOF\n");
        Ok(text)
    }
}

/// What is counted of an exchange.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The status of its response, and how long that took to begin.
    pub(crate) answered: Option<(StatusCode, Duration)>,
    /// Why it failed.
    pub(crate) error: Option<&'static str>,
    /// How long it took.
    pub(crate) duration: Duration,
    /// Bytes of the response's body.
    pub(crate) sent: u64,
    /// Bytes of the request's.
    pub(crate) received: u64,
}

/// Counters that differ in one label, whose values are these.
fn family<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<Label, Counter>::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create(&[(label, value)]).clone())
}
