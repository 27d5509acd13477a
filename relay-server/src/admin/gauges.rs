//! How things stand at the moment of a scrape. What has happened since the start is counted in [`Metrics`].
//!
//! [`Metrics`]: super::metrics::Metrics

use std::fmt::{Display, Write as _};

use x509_parser::prelude::Validity;

use super::process::Process;
use crate::Shared;
use crate::clock::{unix_millis, unix_now};
use crate::inbox::records::Totals;
use crate::status::readiness;
use crate::store::StoreError;

/// The text of gauges, as OpenMetrics has it.
#[derive(Debug, Default)]
pub(crate) struct Gauges(String);

impl Gauges {
    /// Reads all of them. It blocks on the disk.
    pub(super) fn read(shared: &Shared, totals: Option<&Totals>) -> Self {
        let mut gauges = Self::default();
        gauges.relay(shared);
        gauges.certificates(shared);
        gauges.stores(shared);
        if let Some(totals) = totals {
            gauges.inboxes(totals);
        }
        gauges.process(shared);
        gauges
    }

    /// The text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn relay(&mut self, shared: &Shared) {
        self.put(
            "relay_ready",
            "Whether the relay takes requests, as /readyz says",
            u8::from(readiness(shared).is_ok()),
        );
        self.put(
            "relay_stopping",
            "Whether the relay ends what is under way, and stops",
            u8::from(shared.is_stopping()),
        );
        let help = "Whether the process that this one has taken over from still ends what it has under way";
        self.put("relay_predecessor", help, u8::from(shared.has_predecessor()));
        self.put("relay_sessions", "Clients that are connected", shared.sessions.count());
        self.put("relay_tunnels", "Names that a connected client serves", shared.registry.online());
        self.put("relay_connections", "Public connections that are open", shared.places.taken());
        let help = "Tokens that have used up their bytes of this month, of those used since the start";
        self.put("relay_tokens_over_quota", help, shared.quotas.exhausted(unix_now()));
    }

    /// Behind a proxy nobody sees them.
    fn certificates(&mut self, shared: &Shared) {
        if shared.config.https.is_none() {
            return;
        }
        let (own, domains) = (shared.certificates.validity(), shared.certificates.first_of_domains());
        // Without one it is as if it had expired long ago.
        let kinds = [Some(("own", own)), domains.map(|first| ("domains", Some(first)))];
        let each = |moment: fn(&Validity) -> i64| {
            let of =
                move |(kind, validity): &(&'static str, Option<Validity>)| (*kind, validity.as_ref().map_or(0, moment));
            kinds.iter().flatten().map(of).collect::<Vec<_>>()
        };
        let help =
            "When a certificate expires, in seconds since 1970: the relay's own, and the first of custom domains";
        let expiry = each(|validity| validity.not_after.timestamp());
        self.put_by("relay_certificate_expiry_timestamp_seconds", help, "kind", &expiry);
        let help = "From when on the same certificate holds, in seconds since 1970";
        let start = each(|validity| validity.not_before.timestamp());
        self.put_by("relay_certificate_start_timestamp_seconds", help, "kind", &start);
        let help = "Whether something stands in the way of the relay's next certificate, as /readyz says";
        self.put("relay_certificate_trouble", help, u8::from(shared.certificates.has_trouble()));
        let (domains, failing) = shared.domains.as_ref().map_or((0, 0), |domains| domains.count());
        self.put("relay_domains", "Custom domains that the relay gets certificates for", domains);
        self.put("relay_domains_failing", "Custom domains whose last order has failed", failing);
    }

    fn stores(&mut self, shared: &Shared) {
        let failed = |health: Result<(), StoreError>| u8::from(matches!(health, Err(StoreError::Failed { .. })));
        let failed = [("relay", failed(shared.store.health())), ("inbox", failed(shared.inboxes.records().health()))];
        self.put_by("relay_store_failed", "Whether a database takes no more changes", "database", &failed);
        let directory = shared.config.data_dir.as_deref();
        if let Some(disk) = directory.and_then(|directory| rustix::fs::statvfs(directory).ok()) {
            let help = "What the relay may still write to the disk of its data directory";
            self.put("relay_disk_available_bytes", help, disk.f_bavail.saturating_mul(disk.f_frsize));
            let help = "How large the disk of the data directory is";
            self.put("relay_disk_size_bytes", help, disk.f_blocks.saturating_mul(disk.f_frsize));
        }
    }

    fn inboxes(&mut self, totals: &Totals) {
        let oldest = totals.oldest_at.map_or(0, |at| u64::try_from(unix_millis() - at).unwrap_or(0) / 1000);
        self.put("relay_inboxes", "Tunnel names that have an inbox", totals.inboxes);
        self.put("relay_inbox_waiting", "Webhooks that wait in inboxes", totals.waiting);
        self.put("relay_inbox_dead", "Dead letters in inboxes", totals.dead);
        self.put("relay_inbox_bytes", "Bytes of what waits and of dead letters", totals.bytes);
        self.put("relay_inbox_oldest_seconds", "Age of the webhook that has waited longest", oldest);
    }

    /// By the names that every program has for these.
    fn process(&mut self, shared: &Shared) {
        let start = shared.metrics.started;
        self.put("process_start_time_seconds", "When the process began, in seconds since 1970", start);
        let Process { resident, descriptors, descriptors_max, cpu } = Process::read();
        if let Some(resident) = resident {
            self.put("process_resident_memory_bytes", "Memory that the process has of the machine", resident);
        }
        if let Some(descriptors) = descriptors {
            self.put("process_open_fds", "Descriptors that the process has open", descriptors);
        }
        if let Some(most) = descriptors_max {
            self.put("process_max_fds", "Descriptors that it may have open", most);
        }
        let cpu = cpu.as_secs_f64();
        self.family("process_cpu_seconds", "counter", "Time of processors that the process has used");
        self.sample("process_cpu_seconds_total", "", cpu);
    }

    fn put(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    /// One for each value of a label, which is nobody's but ours.
    fn put_by(&mut self, name: &str, help: &str, label: &str, values: &[(&'static str, impl Display)]) {
        self.family(name, "gauge", help);
        for (value_of_label, value) in values {
            self.sample(name, &format!("{{{label}=\"{value_of_label}\"}}"), value);
        }
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}
