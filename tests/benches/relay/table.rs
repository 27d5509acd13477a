//! The rows, what they must reach, and what was seen.

use std::collections::BTreeMap;
use std::fmt;

/// A bound that a row is held against.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
pub(crate) struct Row {
    /// What measurements call it.
    id: &'static str,
    label: &'static str,
    unit: &'static str,
    /// How many digits stand behind the point.
    digits: usize,
    must: Option<Bound>,
    aim: Option<Bound>,
}

use Bound::{AtLeast, AtMost};

const fn row(
    id: &'static str,
    label: &'static str,
    unit: &'static str,
    digits: usize,
    must: Option<Bound>,
    aim: Option<Bound>,
) -> Row {
    Row { id, label, unit, digits, must, aim }
}

/// All lines in their order. A row with a figure beside ours is judged by the ratio to it, any other by its own figure.
const ROWS: &[Row] = &[
    row("cpu", "CPU per 10,000 requests, 64 connections", "s", 2, Some(AtMost(1.8)), Some(AtMost(1.15))),
    row("cpu.relay", "… of it the relay", "s", 2, None, None),
    row("cpu.client", "… of it the client", "s", 2, None, None),
    row("rps", "requests per second, 64 connections", "/s", 0, Some(AtLeast(0.65)), Some(AtLeast(0.95))),
    row("rps.p99", "p99 of them", "ms", 2, None, None),
    row("seq", "sequential p50, one connection", "µs", 0, Some(AtMost(1.8)), Some(AtMost(1.3))),
    row("seq.cpu", "CPU per 10,000 sequential requests", "s", 2, None, None),
    row("conn", "a TLS connection per request: CPU per 10,000", "s", 2, Some(AtMost(0.9)), Some(AtMost(0.65))),
    row("conn.rps", "a TLS connection per request: per second", "/s", 0, None, None),
    row("down", "one 256 MiB download", "MB/s", 0, Some(AtLeast(0.6)), Some(AtLeast(0.85))),
    row("up", "one 256 MiB upload", "MB/s", 0, Some(AtLeast(0.6)), Some(AtLeast(0.85))),
    row("down.cpu", "CPU of the download", "s/GiB", 2, None, None),
    row("up.cpu", "CPU of the upload", "s/GiB", 2, None, None),
    row("bulk.relay", "peak memory of the relay during both", "MiB", 1, Some(AtMost(40.0)), Some(AtMost(20.0))),
    row("bulk.client", "peak memory of the client during both", "MiB", 1, Some(AtMost(40.0)), Some(AtMost(20.0))),
    row("h2.relay", "memory of the relay, 1,000 streams open", "MiB", 1, Some(AtMost(40.0)), Some(AtMost(20.0))),
    row("h2.client", "memory of the client, 1,000 streams open", "MiB", 1, Some(AtMost(40.0)), Some(AtMost(20.0))),
    row("h1.relay", "… the relay, with a TLS connection each", "MiB", 1, None, None),
    row("h1.client", "… the client, with a TLS connection each", "MiB", 1, None, None),
    row("fast", "p99 beside a full-speed download", "ms", 2, Some(AtMost(8.0)), Some(AtMost(3.0))),
    row("fast.bulk", "that download", "MB/s", 0, None, None),
    row("slow", "p99 beside a reader that takes 1 MB/s", "ms", 2, Some(AtMost(2.0)), Some(AtMost(1.2))),
    row("far", "tunnel leg of 50 ms: a request costs", "RTT", 3, Some(AtMost(1.05)), Some(AtMost(1.02))),
    row("far.down", "that leg, 32 MiB download", "MB/s", 0, Some(AtLeast(60.0)), Some(AtLeast(150.0))),
    row("far.up", "that leg, 32 MiB upload", "MB/s", 0, Some(AtLeast(60.0)), Some(AtLeast(150.0))),
    row("far.down256", "that leg, 256 MiB download", "MB/s", 0, None, None),
    row("far.up256", "that leg, 256 MiB upload", "MB/s", 0, None, None),
    row("idle", "memory of the relay per idle tunnel", "KiB", 1, Some(AtMost(24.0)), Some(AtMost(15.0))),
    row("idle.fds", "descriptors per idle tunnel", "", 2, Some(AtMost(1.0)), None),
    row("idle.cpu", "CPU of 1,000 idle tunnels", "% of a core", 2, Some(AtMost(0.6)), None),
    row("idle.open", "CPU of the relay to open one", "ms", 2, None, None),
    row("herd.open", "clients that come one after another: CPU of the relay each", "ms", 2, None, None),
    row("herd", "… and all at once, after a crash: until the last is back", "s", 1, Some(AtMost(30.0)), None),
    row("herd.p50", "… until half of them are", "s", 1, None, None),
    row("herd.cpu", "… CPU of the relay each, with what came to nothing", "ms", 2, None, None),
    row("herd.memory", "… peak memory of the relay", "MiB", 0, None, None),
    row("inbox.disk", "inbox: the disk alone, 32 KiB and an fsync", "/s", 0, None, None),
    row("inbox.disk.p50", "… p50", "ms", 2, None, None),
    row("inbox.disk.p99", "… p99", "ms", 2, None, None),
    row("inbox.groups", "inbox: the disk alone, 580 KiB (64 webhooks) and an fsync", "/s", 0, None, None),
    row("inbox.groups.p99", "… p99", "ms", 2, None, None),
    row("inbox.live", "inbox: live requests, 64 senders", "/s", 0, None, None),
    row(
        "inbox.away",
        "… kept, client away; beside half of live or 60 % of the disk",
        "/s",
        0,
        Some(AtLeast(1.0)),
        None,
    ),
    row("inbox.there", "… kept and delivered; beside the same", "/s", 0, None, None),
    row("inbox.p50", "… acknowledged, client away: p50", "ms", 2, None, None),
    row("inbox.p99", "… p99; beside the disk's with 64", "ms", 2, Some(AtMost(3.0)), None),
    row("inbox.one", "inbox: kept and answered, one sender: p99; beside the disk's", "ms", 2, Some(AtMost(3.0)), None),
    row("inbox.one.p50", "… p50", "ms", 2, None, None),
    row("inbox.cpu", "inbox: CPU of the relay per 10,000 kept", "s", 2, None, None),
    row("inbox.waiting", "inbox: webhooks that wait", "", 0, None, None),
    row("inbox.memory", "… memory of the relay for them", "MiB", 1, Some(AtMost(32.0)), None),
    row("inbox.start", "… from a crash to the first that is kept", "s", 2, Some(AtMost(5.0)), None),
    row("inbox.started", "… memory of the relay then", "MiB", 1, None, None),
    row("inbox.drain", "… delivered per second", "/s", 0, None, None),
    row("inbox.draining", "… memory of the relay meanwhile", "MiB", 1, None, None),
    row("start", "from starting the client to the first 200", "ms", 1, Some(AtMost(60.0)), Some(AtMost(25.0))),
];

/// What was seen, over all rounds.
#[derive(Default)]
pub(crate) struct Table {
    seen: BTreeMap<&'static str, Vec<Seen>>,
    failed: Vec<(&'static str, String)>,
}

#[derive(Clone, Copy)]
struct Seen {
    nginx: Option<f64>,
    ours: f64,
}

impl Table {
    /// A figure beside nginx's, or beside what the row names.
    pub(crate) fn beside(&mut self, id: &'static str, nginx: f64, ours: f64) {
        self.put(id, Some(nginx), ours);
    }

    /// A figure without a counterpart.
    pub(crate) fn alone(&mut self, id: &'static str, ours: f64) {
        self.put(id, None, ours);
    }

    fn put(&mut self, id: &'static str, nginx: Option<f64>, ours: f64) {
        assert!(ROWS.iter().any(|row| row.id == id), "{id} is not a row");
        self.seen.entry(id).or_default().push(Seen { nginx, ours });
    }

    /// A measurement that came to nothing.
    pub(crate) fn failed(&mut self, name: &'static str, why: String) {
        self.failed.push((name, why));
    }

    /// Whether nothing failed.
    pub(crate) fn is_whole(&self) -> bool {
        self.failed.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| measure | beside | relay | ratio | ± | must | aim | |\n|---|--:|--:|--:|--:|--:|--:|---|")?;
        for row in ROWS {
            let Some(seen) = self.seen.get(row.id) else { continue };
            let ours = median(seen.iter().map(|seen| seen.ours));
            let nginx: Vec<f64> = seen.iter().filter_map(|seen| seen.nginx).collect();
            // Paired by round: what disturbs a round disturbs both.
            let ratios: Vec<f64> = seen.iter().filter_map(|seen| Some(seen.ours / seen.nginx?)).collect();
            let judged = if ratios.is_empty() { seen.iter().map(|seen| seen.ours).collect() } else { ratios.clone() };
            let (middle, spread) = (median(judged.iter().copied()), spread(&judged));
            let figure = |value: f64| format!("{value:.*} {}", row.digits, row.unit).trim_end().to_owned();
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                row.label,
                if nginx.is_empty() { "–".into() } else { figure(median(nginx.into_iter())) },
                figure(ours),
                if ratios.is_empty() { "–".into() } else { format!("{middle:.2} ×") },
                spread.map_or("–".into(), |spread| format!("{spread:.0} %")),
                row.must.map_or("–".into(), |bound| bound.to_string()),
                row.aim.map_or("–".into(), |bound| bound.to_string()),
                verdict(row, middle),
            )?;
        }
        self.failed.iter().try_for_each(|(name, why)| writeln!(f, "\n{name} failed: {why}"))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
        }
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

fn verdict(row: &Row, value: f64) -> &'static str {
    match (row.must, row.aim) {
        (None, _) => "",
        (Some(must), _) if !must.holds(value) => "**missed**",
        (Some(_), Some(aim)) if aim.holds(value) => "aim",
        (Some(_), _) => "must",
    }
}

/// The middle value; of two, their mean.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { f64::midpoint(values[(n - 1) / 2], values[n / 2]) }
}

/// Half the range over the rounds, in percent of the median.
fn spread(values: &[f64]) -> Option<f64> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    (values.len() > 1).then(|| 50.0 * (most - least) / median(values.iter().copied()))
}
