//! `relay trigger`: a webhook as a provider would send it, for an app that wants one now.

use std::fmt::Write as _;

use http::Method;
use jiff::Timestamp;
use relay_protocol::webhook::{Draft, Provider, Request, Table};
use serde::Serialize;

use crate::cli::TriggerArgs;
use crate::commands::delivery::{DeliveryError, Destination, Parcel, Signer, deliver, put};
use crate::commands::test_secret;
use crate::config::Files;
use crate::samples::{self, Sample};
use crate::terminal::{json_line, print};
use crate::value::Output;
use crate::webhooks::{alike, named};

/// Sends what was asked for.
///
/// # Errors
/// [`DeliveryError`].
pub async fn run(args: TriggerArgs, files: &Files) -> Result<(), DeliveryError> {
    let table = files.table();
    let Some(sender) = args.sender.as_deref().filter(|_| !args.list) else {
        print(list(&table, args.sender.as_deref(), args.delivery.output)?.as_bytes())?;
        return Ok(());
    };
    let sample = find(sender, args.event.as_deref())?;
    let provider = named(&table, sample.provider)?;
    if args.print_secret {
        let new = provider.new_secret().ok_or_else(|| DeliveryError::Theirs(provider.name.clone()))?;
        print(format!("{}\n", test_secret::of(provider, new)?.public).as_bytes())?;
        return Ok(());
    }
    let to = Destination::find(&args.delivery).await?;
    let mut signer = Signer::new(provider, &args.delivery, files, &to);
    let settings: Vec<_> = sample.settings().map(|name| (name, signer.setting(name).to_owned())).collect();
    deliver(&args.delivery, &to, signer, |now| fill(sample, &args, &to, &settings, now)).await
}

fn unknown(sender: &str) -> DeliveryError {
    let near = alike(sender, samples::all().map(|sample| (sample.sender, sample.sender)));
    DeliveryError::Sender { wanted: sender.to_owned(), near }
}

fn find(sender: &str, event: Option<&str>) -> Result<&'static Sample, DeliveryError> {
    let mut of_sender = samples::of(sender).peekable();
    let first = *of_sender.peek().ok_or_else(|| unknown(sender))?;
    let Some(event) = event else { return Ok(first) };
    of_sender.find(|sample| sample.is_called(event)).ok_or_else(|| DeliveryError::Sample {
        sender: sender.to_owned(),
        wanted: event.to_owned(),
        known: samples::of(sender).map(|sample| sample.name.to_owned()).collect(),
    })
}

fn fill(
    sample: &Sample,
    args: &TriggerArgs,
    to: &Destination,
    settings: &[(&str, String)],
    now: Timestamp,
) -> Result<Parcel, DeliveryError> {
    let filled = sample.fill(&to.url("/"), settings, now)?;
    let mut draft = Draft { url: String::new(), headers: filled.headers, body: filled.body };
    for (pointer, value) in &args.overrides {
        draft.replace(pointer, value)?;
    }
    let Draft { mut headers, body, .. } = draft;
    put(&mut headers, &args.delivery.headers);
    // What else there is, are checks of a URL.
    let signed = filled.method == Method::POST;
    Ok(Parcel { method: filled.method, target: filled.target, headers, body, signed })
}

/// A sample in a list. In JSON these are the fields.
#[derive(Debug, Serialize)]
struct Listed {
    /// What the first argument says.
    sender: &'static str,
    /// What the second argument says.
    sample: &'static str,
    provider: &'static str,
    /// What its event is called by the provider.
    event_type: Option<String>,
    /// Whether we can sign it.
    signed: bool,
}

fn list(table: &Table, sender: Option<&str>, output: Output) -> Result<String, DeliveryError> {
    let mut shown = String::new();
    let mut before = "";
    let wanted: Vec<_> = samples::all().filter(|sample| sender.is_none_or(|name| name == sample.sender)).collect();
    if let (Some(wanted), []) = (sender, wanted.as_slice()) {
        return Err(unknown(wanted));
    }
    for sample in wanted {
        let Some(provider) = table.get(sample.provider) else { continue };
        let listed = Listed {
            sender: sample.sender,
            sample: sample.name,
            provider: sample.provider,
            event_type: event_type(sample, provider)?,
            signed: provider.new_secret().is_some(),
        };
        if output == Output::Json {
            shown.push_str(&json_line(&listed));
            continue;
        }
        if listed.sender != before {
            let unsigned = if listed.signed { "" } else { ", sent without a signature" };
            let _ = writeln!(shown, "{} ({}{unsigned})", listed.sender, provider.name);
            before = listed.sender;
        }
        let _ = writeln!(shown, "  {}", listed.sample);
    }
    Ok(shown)
}

fn event_type(sample: &Sample, provider: &Provider) -> Result<Option<String>, DeliveryError> {
    let settings: Vec<_> = sample.settings().map(|name| (name, String::new())).collect();
    let filled = sample.fill("https://hooks.example.com/", &settings, Timestamp::UNIX_EPOCH)?;
    let url = format!("https://hooks.example.com{}", filled.target);
    Ok(provider.event(&Request::new(&filled.method, &url, &filled.headers, &filled.body)).kind)
}
