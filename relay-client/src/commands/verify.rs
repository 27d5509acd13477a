//! `relay verify`: whether a saved request was signed by who it says it is from.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use http::header::CONTENT_LENGTH;
use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, Provider, Request, Secret, Table, TableError, Verdict};
use serde::Serialize;

use crate::capture::saved::{Saved, SavedError};
use crate::cli::VerifyArgs;
use crate::terminal::{Shown, json_line};
use crate::value::Output;

/// The largest file with a request: providers send up to 25 MiB.
const FILE_MAX: u64 = 64 << 20;

/// The largest file with a secret; the longest ones are public keys.
const SECRET_MAX: u64 = 64 << 10;

/// Names of providers that are proposed for one that is not known.
const PROPOSED: usize = 3;

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
    #[error("--secret {from}: {problem}")]
    Secret {
        /// As it was written, but never a secret itself.
        from: String,
        /// Why.
        problem: SecretError,
    },
    /// Nobody has that name.
    #[error("no provider is called {wanted:?}; {}", proposals(.near))]
    Provider {
        /// As it was written.
        wanted: String,
        /// Those that are called alike.
        near: Vec<String>,
    },
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is too large.
    #[error("it has more than {} KiB", .0 >> 10)]
    TooLarge(u64),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// From a file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// From a variable.
    #[error("this variable is not set")]
    NotSet,
    /// Of bytes that are none.
    #[error("it is not text in UTF-8")]
    NotText,
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
}

fn proposals(near: &[String]) -> String {
    match near {
        [] => "docs/providers.md lists none like it; without --provider the request is recognised".to_owned(),
        near => format!("is it {}?", near.join(", ")),
    }
}

/// Where a secret is: what `--secret` says. It is shown nowhere, because it may be the secret itself.
#[derive(Clone)]
pub struct SecretSource(String);

impl From<String> for SecretSource {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretSource(…)")
    }
}

impl SecretSource {
    /// Fetches it. The end of its line is not part of it.
    fn secret(&self) -> Result<Secret, VerifyError> {
        let (from, text) = if let Some(file) = self.0.strip_prefix('@') {
            let bytes = File::open(file).map_err(ReadError::from).and_then(|file| read(file, SECRET_MAX));
            let text = bytes.map_err(SecretError::from);
            let text = text.and_then(|bytes| String::from_utf8(bytes).map_err(|_| SecretError::NotText));
            (self.0.as_str(), text)
        } else if let Some(name) = self.0.strip_prefix("env:") {
            let text = match env::var(name) {
                Ok(text) => Ok(text),
                Err(env::VarError::NotPresent) => Err(SecretError::NotSet),
                Err(env::VarError::NotUnicode(_)) => Err(SecretError::NotText),
            };
            (self.0.as_str(), text)
        } else {
            ("VALUE", Ok(self.0.clone()))
        };
        let text = text.and_then(|text| {
            let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
            if line.trim().is_empty() { Err(SecretError::Empty) } else { Ok(line.into()) }
        });
        text.map_err(|problem| VerifyError::Secret { from: from.to_owned(), problem })
    }
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

/// Judges the request in the file.
///
/// # Errors
/// [`VerifyError`]; a request that is not valid is none.
pub fn verify(args: &VerifyArgs) -> Result<Report, VerifyError> {
    let table = Table::built_in()?;
    let named = args.provider.as_deref().map(|wanted| named(&table, wanted)).transpose()?;
    let secrets = args.secrets.iter().map(SecretSource::secret).collect::<Result<_, _>>()?;
    let credentials =
        Credentials { secrets, settings: args.settings.iter().cloned().collect(), ..Credentials::default() };
    let file = input(&args.file).map_err(|problem| VerifyError::File { file: args.file.clone(), problem })?;
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
    let judgement = provider.explain(&request, &credentials, args.now.unwrap_or_else(Timestamp::now));
    let mut reason = judgement.reason.into_owned();
    let mut add = |more: &str| reason.extend(["; ", more]);
    judgement.warning.iter().for_each(|warning| add(warning));
    if judgement.verdict == Verdict::NoSecret && credentials.secrets.is_empty() {
        add("--secret takes it, @FILE or env:NAME");
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

fn named<'t>(table: &'t Table, wanted: &str) -> Result<&'t Provider, VerifyError> {
    table.get(wanted).ok_or_else(|| {
        let lower = wanted.to_lowercase();
        let likeness = |provider: &Provider| {
            let likeness = |name: &str| strsim::jaro_winkler(name, &lower);
            likeness(&provider.id).max(likeness(&provider.name.to_lowercase()))
        };
        let mut near: Vec<_> = table.iter().map(|provider| (likeness(provider), &provider.id)).collect();
        near.retain(|(likeness, _)| *likeness > 0.8);
        near.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let near = near.into_iter().take(PROPOSED).map(|(_, id)| id.clone()).collect();
        VerifyError::Provider { wanted: wanted.to_owned(), near }
    })
}

/// A sentence about each setting that means nothing, as one that was mistyped.
fn unknown_settings(provider: &Provider, credentials: &Credentials) -> Vec<String> {
    let known: Vec<&str> = provider.settings().keys().map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let unknown = credentials.settings.keys().filter(|name| !provider.settings().contains_key(*name));
    unknown.map(|name| format!("--set {name}: {} has no such setting; it has {known}", provider.name)).collect()
}

fn input(file: &Path) -> Result<Vec<u8>, ReadError> {
    if file == Path::new("-") { read(io::stdin().lock(), FILE_MAX) } else { read(File::open(file)?, FILE_MAX) }
}

fn read(from: impl Read, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut bytes)?;
    if read as u64 > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
}
