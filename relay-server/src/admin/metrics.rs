//! What Prometheus is told. Labels come from closed sets only: a stranger cannot make series.

use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::cause::Cause;
use crate::inbox::records::Outcome;

/// The relay's counters. Gauges are read when somebody asks.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// By the hundreds of the status: 1xx to 5xx.
    classes: [Counter; 6],
    causes: Family<CauseLabel, Counter>,
    duration: Histogram,
    sent: Counter,
    received: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) unauthorized: Counter,
    pub(crate) panics: Counter,
    pub(crate) inbox_accepted: Counter,
    pub(crate) inbox_acknowledged: Counter,
    attempts: [Counter; 3],
    dead_letters: Counter,
    pub(crate) alerts_sent: Counter,
    pub(crate) alerts_failed: Counter,
    pub(crate) dns_questions: Counter,
    pub(crate) dns_limited: Counter,
    pub(crate) certificates_obtained: Counter,
    pub(crate) certificate_failures: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("relay");
        let classes = Family::<ClassLabel, Counter>::default();
        registry.register("exchanges", "Exchanges by the class of their status", classes.clone());
        let causes = Family::<CauseLabel, Counter>::default();
        registry.register("errors", "Exchanges that the relay answered itself, by cause", causes.clone());
        for cause in Cause::ALL {
            drop(causes.get_or_create(&CauseLabel { error: cause.code() }));
        }
        let duration =
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        let help = "From the start of an exchange's deadline to the end of its response";
        registry.register_with_unit("exchange_duration", help, Unit::Seconds, duration.clone());
        let attempts = Family::<OutcomeLabel, Counter>::default();
        registry.register("inbox_attempts", "Attempts to deliver webhooks of inboxes, by outcome", attempts.clone());
        let alerts = Family::<OutcomeLabel, Counter>::default();
        registry.register("alerts", "Alerts to the operator's own receiver, by outcome", alerts.clone());
        let [alerts_sent, alerts_failed] =
            ["sent", "failed"].map(|outcome| alerts.get_or_create(&OutcomeLabel { outcome }).clone());
        let counter = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            classes: CLASSES.map(|class| classes.get_or_create(&ClassLabel { class }).clone()),
            causes,
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
            dns_questions: counter(&mut registry, "dns_questions", "Questions about names that were looked at"),
            dns_limited: counter(&mut registry, "dns_limited", "Questions about names beyond a network's rate"),
            certificates_obtained: counter(&mut registry, "certificates_obtained", "Certificates that were obtained"),
            certificate_failures: counter(
                &mut registry,
                "certificate_failures",
                "Attempts to obtain a certificate that failed",
            ),
            panics: counter(&mut registry, "panics", "Tasks that panicked; each is a bug"),
            inbox_accepted: counter(&mut registry, "inbox_accepted", "Webhooks that inboxes took, or knew as copies"),
            inbox_acknowledged: counter(
                &mut registry,
                "inbox_acknowledged",
                "Webhooks that were answered by the relay, because the app had not",
            ),
            attempts: ["delivered", "failed", "unsent"]
                .map(|outcome| attempts.get_or_create(&OutcomeLabel { outcome }).clone()),
            dead_letters: counter(&mut registry, "inbox_dead_letters", "Webhooks that were given up"),
            alerts_sent,
            alerts_failed,
            registry,
        }
    }

    /// Counts an exchange that has ended.
    pub(crate) fn exchange(
        &self,
        status: Option<StatusCode>,
        error: Option<&'static str>,
        duration: Duration,
        sent: u64,
        received: u64,
    ) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(counter) = self.classes.get(class) {
            counter.inc();
        }
        if let Some(error) = error {
            self.causes.get_or_create(&CauseLabel { error }).inc();
        }
        self.duration.observe(duration.as_secs_f64());
        self.sent.inc_by(sent);
        self.received.inc_by(received);
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
        causes.iter().map(|cause| self.causes.get_or_create(&CauseLabel { error: cause.code() }).get()).sum()
    }

    /// The text that a scrape gets, with `gauges` behind it.
    pub(crate) fn text(&self, gauges: &[(&str, &str, u64)]) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        for (name, help, value) in gauges {
            text.push_str(&format!("# HELP relay_{name} {help}.\n# TYPE relay_{name} gauge\nrelay_{name} {value}\n"));
        }
        text.push_str("# EOF\n");
        Ok(text)
    }
}
