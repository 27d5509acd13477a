//! `relay show`: one request and its answer, with everything that is known of them.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::tz::TimeZone;
use relay_protocol::inbox::Delivery;

use crate::capture::exchange::{Exchange, Part};
use crate::capture::text;
use crate::cli::ShowOneArgs;
use crate::commands::requests::{self, HistoryError, event, quietly};
use crate::config::Files;
use crate::event::{Body, short};
use crate::terminal::{self, Shown, compact, json_line, plain_body};
use crate::value::Output;

/// Prints the request that was asked for.
///
/// # Errors
/// [`HistoryError`].
pub async fn run(args: ShowOneArgs, files: &Files) -> Result<(), HistoryError> {
    let exchange = requests::open().await?.find(&args.id)?;
    let shown = match args.output {
        Output::Json => json_line(&exchange.detail(Some(&files.table()))),
        Output::Text => show(&exchange, &TimeZone::system()),
    };
    quietly(terminal::print(shown.as_bytes()))
}

fn show(exchange: &Exchange, zone: &TimeZone) -> String {
    let Exchange { summary, timings, .. } = exchange;
    let mut out = String::new();
    let _ = writeln!(out, "{} {}", Shown(&summary.method), Shown(&exchange.url()));
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "  {name:<9} {}", Shown(&value));
        }
    };
    fact("id", Some(summary.id.clone()));
    fact("at", Some(requests::when(summary.at_ms, zone)));
    fact("from", Some(summary.remote.clone()));
    fact("tunnel", summary.tunnel.clone());
    fact("event", event(summary));
    fact("event id", summary.event_id.clone());
    let reason = exchange.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    fact("signature", summary.verdict.map(|verdict| format!("{}{reason}", verdict.as_str().replace('_', " "))));
    let of = summary.allowed_ms.map_or_else(String::new, |allowed| format!(" of {}", compact(allowed as f64)));
    let edge = format!("{} at the edge", compact(timings.edge_ms as f64));
    let upstream = timings.upstream_ms.map_or_else(String::new, |time| format!(", {} for the service", compact(time)));
    fact("time", timings.total_ms.map(|total| format!("{}{of} ({edge}{upstream})", compact(total))));
    let delivery = exchange.delivery().map(|Delivery { id, attempt, age_s }| {
        format!("{id}, attempt {attempt}, {} old", short(Duration::from_secs(age_s)))
    });
    fact("inbox", delivery);
    fact("repeats", summary.replay_of.clone());
    fact("attempts", Some(summary.attempt).filter(|attempt| *attempt > 1).map(|attempt| attempt.to_string()));
    let headers = exchange.request_headers().map(|(name, value)| (name.to_owned(), text(value)));
    side(&mut out, headers, &exchange.request);
    out.push('\n');
    let error = summary.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    let _ = match summary.status {
        Some(status) => writeln!(out, "{status}{}", Shown(&error)),
        None => writeln!(out, "not answered{}", Shown(&error)),
    };
    if let Some(response) = &exchange.response {
        let headers = response.head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
        side(&mut out, headers, response);
    }
    out
}

fn side<H>(out: &mut String, headers: impl Iterator<Item = (String, String)>, part: &Part<H>) {
    let line = |out: &mut String, name: &str, value: &str| {
        let _ = writeln!(out, "  {}: {}", Shown(name), Shown(value));
    };
    out.push('\n');
    headers.for_each(|(name, value)| line(out, &name, &value));
    if part.body_size > 0 {
        out.push('\n');
        out.push_str(&plain_body(Body::new(&part.body, part.body_truncated), part.body_size, part.body_truncated));
    }
    if !part.trailers.is_empty() {
        out.push('\n');
        part.trailers.iter().for_each(|(name, value)| line(out, name.as_str(), &text(value.as_bytes())));
    }
}
