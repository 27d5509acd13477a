//! `relay send`: any body, or a saved request, signed as a provider signs and sent.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use relay_protocol::webhook::{Provider, Request, Table};
use serde::de::IgnoredAny;

use crate::capture::saved::{Saved, load};
use crate::cli::SendArgs;
use crate::commands::delivery::{DeliveryError, Destination, Parcel, Signer, deliver, put};
use crate::config::Files;
use crate::samples;
use crate::webhooks::named as in_table;

/// Sends what was asked for.
///
/// # Errors
/// [`DeliveryError`].
pub async fn run(args: SendArgs, files: &Files) -> Result<(), DeliveryError> {
    let table = files.table();
    let named = args.provider.as_deref().map(|name| of(&table, name)).transpose()?;
    let file =
        load(&args.file).map_err(|problem| DeliveryError::File { file: args.file.display().to_string(), problem })?;
    // What begins with a request line is a request; no provider's body does.
    let (provider, parcel) = match Saved::read(&file) {
        Ok(saved) => (named.map(|(provider, _)| provider), saved_request(&saved, &args)),
        Err(_) => {
            let (provider, sender) = named.ok_or(DeliveryError::NoProvider)?;
            (Some(provider), body(provider, sender, file, &args)?)
        }
    };
    let to = Destination::find(&args.delivery).await?;
    let url = to.url(&parcel.target);
    let request = Request::new(&parcel.method, &url, &parcel.headers, &parcel.body);
    let provider = provider.or_else(|| Some(table.recognise(&request)?)).ok_or(DeliveryError::NoProvider)?;
    let signer = Signer::new(provider, &args.delivery, files, &to);
    deliver(&args.delivery, &to, signer, |_| Ok(parcel.clone())).await
}

/// The provider of that id, or the one that a sender signs as; with the name that its samples have.
fn of<'t, 'n>(table: &'t Table, name: &'n str) -> Result<(&'t Provider, &'n str), DeliveryError> {
    let id = samples::of(name).next().map_or(name, |sample| sample.provider);
    Ok((in_table(table, id)?, name))
}

fn saved_request(saved: &Saved<'_>, args: &SendArgs) -> Parcel {
    // They were about another connection.
    let own = [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];
    let mut headers = saved.headers.clone();
    headers.retain(|(name, _)| !own.contains(name));
    put(&mut headers, &args.delivery.headers);
    let method = args.method.clone().unwrap_or_else(|| saved.method.clone());
    Parcel { method, target: saved.path().to_owned(), headers, body: saved.body.to_vec(), signed: true }
}

/// A body with the headers that its sender's samples have.
fn body(provider: &Provider, sender: &str, body: Vec<u8>, args: &SendArgs) -> Result<Parcel, DeliveryError> {
    let kind = args.kind.as_deref();
    let sample = samples::of(sender).find(|sample| kind.is_none_or(|kind| sample.is_called(kind)));
    let model = sample.or_else(|| samples::of(sender).next());
    let mut headers = match model {
        Some(sample) => sample.fill("https://localhost/", &[], Timestamp::now())?.headers,
        None => Vec::new(),
    };
    if let (Some(kind), None) = (kind, sample) {
        let header = provider.type_header().and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok());
        let value = HeaderValue::from_str(kind).ok();
        let typed = header.zip(value).ok_or_else(|| DeliveryError::TypeInBody(provider.name.clone()))?;
        put(&mut headers, &[typed]);
    }
    if serde_json::from_slice::<IgnoredAny>(&body).is_ok() {
        let is_json = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("json"));
        if !headers.iter().any(|(name, value)| name == CONTENT_TYPE && is_json(value)) {
            put(&mut headers, &[(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        }
    }
    put(&mut headers, &args.delivery.headers);
    let method = args.method.clone().unwrap_or(Method::POST);
    Ok(Parcel { method, target: "/".to_owned(), headers, body, signed: true })
}
