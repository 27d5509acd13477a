//! `relay verify`: whether a saved request was signed by who it says it is from.

use std::path::PathBuf;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, Provider, Request, Verdict};
use serde::Serialize;

use crate::capture::saved::{self, Saved, SavedError};
use crate::cli::VerifyArgs;
use crate::config::Files;
use crate::keys::Keys;
use crate::secret::{ReadError, SecretError};
use crate::terminal::{Shown, json_line};
use crate::value::Output;
use crate::webhooks::{UnknownProvider, UnknownSetting, named};

/// Why nothing was judged.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The request is not there.
    #[error("{}: {}", .file.display(), .problem)]
    File {
        /// Where it was looked for; `-` is standard input.
        file: PathBuf,
        /// Why.
        problem: ReadError,
    },
    /// What is there is no request.
    #[error("{}: {}", .file.display(), .problem)]
    Request {
        /// Where it is; `-` is standard input.
        file: PathBuf,
        /// Why.
        problem: SavedError,
    },
    /// A secret is not where it was said to be.
    #[error("--secret {0}")]
    Secret(#[from] SecretError),
    /// No provider has that name.
    #[error(transparent)]
    Provider(#[from] UnknownProvider),
}

/// What was found. In JSON these are the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The provider's id; none where nobody's request it is.
    pub provider: Option<String>,
    /// Whether it was signed.
    pub verdict: Verdict,
    /// Why, as a sentence without its full stop.
    pub reason: String,
    /// What the provider calls the event, the same when it is sent again.
    pub event_id: Option<String>,
    /// The event's kind.
    pub event_type: Option<String>,
    /// What else to say to people.
    #[serde(skip)]
    pub notices: Vec<String>,
}

impl Report {
    /// Whether the provider signed it, recently enough.
    pub fn is_valid(&self) -> bool {
        self.verdict == Verdict::Valid
    }

    /// For standard output: a line.
    pub fn show(&self, output: Output) -> String {
        let event = [&self.event_type, &self.event_id].into_iter().flatten().map(|text| format!(" {}", Shown(text)));
        match output {
            Output::Json => json_line(self),
            Output::Text => format!(
                "{}: {}{}: {}\n",
                self.verdict.as_str().replace('_', " "),
                self.provider.as_deref().unwrap_or("unknown provider"),
                event.collect::<String>(),
                Shown(&self.reason)
            ),
        }
    }
}

/// Judges the request in the file. Nothing is fetched unless that is asked for.
///
/// # Errors
/// [`VerifyError`]; a request that is not valid is none.
pub async fn verify(args: &VerifyArgs, files: &Files) -> Result<Report, VerifyError> {
    let table = files.table();
    let named = args.provider.as_deref().map(|wanted| named(&table, wanted)).transpose()?;
    let credentials = Arc::new(args.credentials.read()?);
    let file = saved::load(&args.file).map_err(|problem| VerifyError::File { file: args.file.clone(), problem })?;
    let saved = Saved::read(&file).map_err(|problem| VerifyError::Request { file: args.file.clone(), problem })?;
    let url = args.url.as_deref().map_or_else(|| saved.url(), |url| saved.url_at(url).into());
    let request = Request::new(&saved.method, &url, &saved.headers, saved.body);
    let Some(provider) = named.or_else(|| table.recognise(&request)) else {
        return Ok(Report {
            provider: None,
            verdict: Verdict::Unsupported,
            reason: "no provider that is known sends such a request; name it with --provider".to_owned(),
            event_id: None,
            event_type: None,
            notices: Vec::new(),
        });
    };
    let key_url = provider.key_url(&request, &credentials).ok().flatten();
    let is_published = key_url.is_some();
    let complete = Keys::default().complete(&credentials, key_url.filter(|_| args.fetch_keys)).await;
    let now = args.now.unwrap_or_else(Timestamp::now);
    let judgement = complete.map_or_else(|judgement| judgement, |known| provider.explain(&request, &known, now));
    let mut reason = judgement.reason.into_owned();
    let mut add = |more: &str| reason.extend(["; ", more]);
    judgement.warning.iter().for_each(|warning| add(warning));
    if judgement.verdict == Verdict::NoSecret && credentials.secrets.is_empty() {
        add("--secret takes it, @FILE or env:NAME");
    }
    if judgement.verdict == Verdict::Unsupported && is_published && !args.fetch_keys {
        add("--fetch-keys fetches it");
    }
    if judgement.verdict == Verdict::BadSignature {
        if provider.signs_url() && args.url.is_none() {
            add(&format!("the URL was taken to be {url}: --url says another"));
        }
        let length = saved.header(&CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        if let Some(length) = length.filter(|length| *length != saved.body.len()) {
            add(&format!("its Content-Length is {length}, and the file has a body of {} bytes", saved.body.len()));
        }
    }
    let event = provider.event(&request);
    Ok(Report {
        provider: Some(provider.id.clone()),
        verdict: judgement.verdict,
        reason,
        event_id: event.id,
        event_type: event.kind,
        notices: unknown_settings(provider, &credentials),
    })
}

/// A sentence about each setting that means nothing, as one that was mistyped.
fn unknown_settings(provider: &Provider, credentials: &Credentials) -> Vec<String> {
    let unknown = credentials.settings.keys().filter(|name| !provider.settings().contains_key(*name));
    unknown.map(|name| UnknownSetting::of(provider, name).to_string()).collect()
}
