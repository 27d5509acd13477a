//! `relay listen`: a private request bin. There is no service: the client shows each request and answers it by itself.
//!
//! ```text
//!   session ──▶ upstream ──▶ Bin, a service in this process: read, show, wait, answer
//! ```
//!
//! The bin is a service like any other to the tunnel, so everything that holds for services holds for it.

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use serde::de::IgnoredAny;

use crate::capture::text;
use crate::cli::ListenArgs;
use crate::commands::open::client;
use crate::session::dial::TargetError;
use crate::session::probe::Probe;
use crate::terminal::screen::Screen;
use crate::upstream::service::{self, BoxError, Service};
use crate::{
    client::Client,
    config::Settings,
    event::{Body, Event, Observer},
};

/// Bytes of bodies that are kept at once; what arrives beyond is counted, and its request marked.
const KEPT_TOGETHER: usize = 128 << 20;

/// The largest body of an answer.
const ANSWER_MAX: u64 = 64 << 20;

/// What each request is answered, and how much of it is kept.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    delay: Duration,
    max_body: usize,
}

impl Answer {
    /// Settles what was typed: a body that stands in a file is read, and gets a type where none is given.
    ///
    /// # Errors
    /// Where the file cannot be read, or the status has no body.
    pub fn new(args: &ListenArgs) -> Result<Self, AnswerError> {
        let body = match args.body.as_deref().map(|body| body.strip_prefix('@').ok_or(body)) {
            None => Bytes::new(),
            Some(Err(text)) => Bytes::copy_from_slice(text.as_bytes()),
            Some(Ok(file)) => read(file.into())?,
        };
        if !body.is_empty() && matches!(args.respond, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Err(AnswerError::NoBody { status: args.respond });
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &args.headers {
            headers.append(name, value.clone());
        }
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(type_of(&body)));
        }
        let delay = args.delay.unwrap_or_default();
        Ok(Self { status: args.respond, headers, body, delay, max_body: args.max_body })
    }

    /// As a person is told.
    pub fn describe(&self) -> String {
        let after = if self.delay.is_zero() { String::new() } else { format!(" after {:?}", self.delay) };
        format!("answers {}{after}, and shows each request here", self.status.as_u16())
    }

    fn response(&self) -> Response<service::Body> {
        let mut response = Response::new(self.body.clone().into());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

fn read(file: PathBuf) -> Result<Bytes, AnswerError> {
    let mut body = Vec::new();
    let result = std::fs::File::open(&file).and_then(|open| open.take(ANSWER_MAX + 1).read_to_end(&mut body));
    match result {
        Err(source) => Err(AnswerError::Read { file, source }),
        Ok(_) if body.len() as u64 > ANSWER_MAX => Err(AnswerError::TooLarge { file }),
        Ok(_) => Ok(body.into()),
    }
}

fn type_of(body: &[u8]) -> &'static str {
    match std::str::from_utf8(body) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    }
}

/// An answer that cannot be given. These are usage errors.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The body's file is not to be had.
    #[error("--body @{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What reading it said.
        source: io::Error,
    },
    /// The body's file is larger than 64 MiB.
    #[error("--body @{}: an answer has at most {} MiB here", file.display(), ANSWER_MAX >> 20)]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// A body where the status forbids one (RFC 9110, section 6.4.1).
    #[error("an answer of {} has no body; leave --body out, or choose another --respond", status.as_u16())]
    NoBody {
        /// The status.
        status: StatusCode,
    },
}

/// The client whose requests end at the bin, and what it is observed by.
///
/// # Errors
/// Where the relay's CA cannot be used.
pub fn open(
    settings: Settings,
    answer: Answer,
    screen: Screen,
) -> Result<(Client, impl Observer + 'static), TargetError> {
    let bin = Arc::new(Bin { answer, kept: AtomicUsize::new(0), screen: screen.clone() });
    let service = Service::new("listen", move |request| bin.clone().answer(request));
    let client = screen.prove(client(service, settings)?, Probe::new());
    Ok((client, Failures(screen)))
}

/// Shows requests and answers them.
struct Bin {
    answer: Answer,
    /// Bytes of bodies that are kept at the moment.
    kept: AtomicUsize,
    screen: Screen,
}

impl Bin {
    async fn answer(self: Arc<Self>, request: Request<service::Body>) -> Response<service::Body> {
        let (head, mut incoming) = request.into_parts();
        let mut body = Kept { bytes: Vec::new(), size: 0, bin: &self };
        let whole = body.read(&mut incoming).await;
        let headers: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))).collect();
        let body_truncated = whole.is_err() || body.size > body.bytes.len() as u64;
        self.screen.show(&Event::Request {
            id: headers.iter().find(|(name, _)| name == "relay-request-id").map_or("", |(_, id)| id),
            method: head.method.as_str(),
            path: head.uri.path_and_query().map_or("/", |target| target.as_str()),
            status: whole.is_ok().then_some(self.answer.status.as_u16()),
            headers: &headers,
            body: Body::new(&body.bytes, body_truncated),
            body_size: body.size,
            body_truncated,
        });
        drop(body);
        if whole.is_err() {
            // Nobody waits for it.
            return Response::default();
        }
        if !self.answer.delay.is_zero() {
            tokio::time::sleep(self.answer.delay).await;
        }
        self.answer.response()
    }
}

/// What is kept of a body, within what all bodies may take together.
struct Kept<'a> {
    bytes: Vec<u8>,
    size: u64,
    bin: &'a Bin,
}

impl Kept<'_> {
    async fn read(&mut self, incoming: &mut service::Body) -> Result<(), BoxError> {
        while let Some(frame) = incoming.frame().await {
            if let Ok(data) = frame?.into_data() {
                self.add(&data);
            }
        }
        Ok(())
    }

    fn add(&mut self, data: &[u8]) {
        // Once something is missing, what comes behind it does not belong to the beginning.
        let whole = self.bytes.len() as u64 == self.size;
        self.size += data.len() as u64;
        if !whole {
            return;
        }
        let wanted = data.len().min(self.bin.answer.max_body.saturating_sub(self.bytes.len()));
        let taken = self.bin.kept.fetch_add(wanted, Relaxed);
        let allowed = wanted.min(KEPT_TOGETHER.saturating_sub(taken));
        self.bin.kept.fetch_sub(wanted - allowed, Relaxed);
        self.bytes.extend(data.iter().take(allowed));
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.bin.kept.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// What the tunnel tells, without what the bin has shown already.
struct Failures(Screen);

impl Observer for Failures {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Exchange { error: None, .. } => {}
            _ => self.0.observe(event),
        }
    }

    fn pause(&mut self) -> bool {
        self.0.pause()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::{Files, ShowSettings};

    fn settle(flags: &[&str]) -> Result<Answer, AnswerError> {
        let cli = Cli::from_arguments(["relay", "listen"].iter().chain(flags)).unwrap();
        let Command::Listen(args) = cli.command else { panic!("another command") };
        Answer::new(&args)
    }

    #[test]
    fn a_body_has_a_type_and_a_status_that_takes_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("answer");
        std::fs::write(&file, b"\xff\x00").unwrap();
        let file = format!("@{}", file.display());
        for (flags, kind) in [
            (&["--body", "hello"][..], Some("text/plain; charset=utf-8")),
            (&["--body", "{\"a\":1}"], Some("application/json")),
            (&["--body", &file], Some("application/octet-stream")),
            (&["--body", "x", "--header", "content-type: text/xml"], Some("text/xml")),
            (&[], None),
            (&["--respond", "204"], None),
        ] {
            let response = settle(flags).unwrap().response();
            let given = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap());
            assert_eq!(given, kind, "{flags:?}");
        }
        let error = settle(&["--body", "@/nowhere/at/all"]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
        assert!(settle(&["--body", "x", "--respond", "204"]).unwrap_err().to_string().contains("204"));
        let said = settle(&["--respond", "503", "--delay", "1500ms"]).unwrap().describe();
        assert!(said.starts_with("answers 503 after 1.5s,"), "{said}");
    }

    #[test]
    fn bodies_are_kept_within_their_bounds() {
        let answer = settle(&["--max-body", "10"]).unwrap();
        let screen = Screen::new(&ShowSettings::default(), &Files::default());
        let bin = Bin { answer, kept: AtomicUsize::new(0), screen };
        let mut one = Kept { bytes: Vec::new(), size: 0, bin: &bin };
        one.add(b"12345678");
        one.add(b"90ab");
        one.add(b"cd");
        assert_eq!((&one.bytes[..], one.size), (&b"1234567890"[..], 14));
        bin.kept.store(KEPT_TOGETHER - 3, Relaxed);
        let mut other = Kept { bytes: Vec::new(), size: 0, bin: &bin };
        other.add(b"12345");
        assert_eq!((&other.bytes[..], other.size, bin.kept.load(Relaxed)), (&b"123"[..], 5, KEPT_TOGETHER));
        drop(other);
        assert_eq!(bin.kept.load(Relaxed), KEPT_TOGETHER - 3);
    }
}
