//! Logs: events by `tracing`, and an access line per exchange.
//!
//! Access lines are gathered and written together, a few times a second or when 16 KiB are there: a system call for
//! each would cost as much as a tenth of the request. Everything goes to standard error, in order.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use http::{Method, StatusCode, Version};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Gathered before they are written.
const GATHER: usize = 16 * 1024;

/// How long a gathered line waits at most.
const PAUSE: Duration = Duration::from_millis(200);

/// Longest target in a line, in bytes.
const MAX_TARGET: usize = 512;

/// Where access lines and events go.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<Arc<Output>>);

#[derive(Debug)]
struct Output {
    format: LogFormat,
    gathered: Mutex<Vec<u8>>,
    clock: Mutex<Clock>,
}

/// The time as text. Lines come by the thousand in a second, and working out its date costs more than the rest of one.
#[derive(Debug, Default)]
struct Clock {
    second: i64,
    text: String,
}

impl Clock {
    fn write(&mut self, now: Timestamp, out: &mut Vec<u8>) -> io::Result<()> {
        if self.second != now.as_second() || self.text.is_empty() {
            self.second = now.as_second();
            self.text = now.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        write!(out, "{}.{:03}Z", self.text, now.subsec_millisecond())
    }
}

/// What an access line says.
pub(crate) struct AccessLine<'a> {
    pub(crate) id: &'a str,
    pub(crate) remote: &'a str,
    pub(crate) version: Version,
    pub(crate) method: &'a Method,
    pub(crate) host: &'a str,
    /// Of the path, what led to the tunnel.
    pub(crate) prefix: &'a str,
    pub(crate) target: &'a str,
    pub(crate) status: Option<StatusCode>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) duration: Duration,
    /// An id of the provider table, or of a client's own.
    pub(crate) provider: Option<&'a str>,
    pub(crate) error: Option<&'static str>,
    /// The trace that it is part of, where that is written.
    pub(crate) trace: Option<u128>,
}

impl AccessLog {
    /// No access lines: for a relay inside another program.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Access lines and `tracing` events on standard error; `RELAY_LOG` filters the events.
    pub fn stderr(format: LogFormat) -> Self {
        let log = Self(Some(Arc::new(Output { format, gathered: Mutex::default(), clock: Mutex::default() })));
        let filter = EnvFilter::try_from_env("RELAY_LOG")
            .unwrap_or_else(|_| EnvFilter::new("info,hyper=error,h2=error,hickory_proto=error"));
        let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_target(false);
        // A program that has set a subscriber of its own keeps it.
        let _ = match format {
            LogFormat::Text => tracing::subscriber::set_global_default(events.with_ansi(false).finish()),
            LogFormat::Json => tracing::subscriber::set_global_default(events.json().flatten_event(true).finish()),
        };
        log
    }

    /// Adds a line.
    pub(crate) fn exchange(&self, line: &AccessLine<'_>) {
        let Some(output) = &self.0 else { return };
        let mut gathered = output.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to memory does not fail.
        let _ = match output.format {
            LogFormat::Text => {
                let mut clock = output.clock.lock().unwrap_or_else(PoisonError::into_inner);
                clock.write(Timestamp::now(), &mut gathered).and_then(|()| line.text(&mut gathered))
            }
            LogFormat::Json => line.json(&mut gathered),
        };
        if gathered.len() >= GATHER {
            write_out(&mut gathered);
        }
    }

    /// Writes what is gathered every now and then, and at the end.
    pub(crate) async fn run(&self, closed: CancellationToken) {
        let Some(output) = &self.0 else { return };
        while closed.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
            output.flush();
        }
        output.flush();
    }
}

impl Output {
    fn flush(&self) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if !gathered.is_empty() {
            write_out(&mut gathered);
        }
    }
}

/// Lines of exchanges that end after the last look, as when a relay is dropped.
impl Drop for Output {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write_out(gathered: &mut Vec<u8>) {
    // A closed standard error is no reason to stop serving.
    let _ = io::stderr().write_all(gathered);
    gathered.clear();
}

impl<'a> MakeWriter<'a> for AccessLog {
    type Writer = EventWriter;

    fn make_writer(&'a self) -> EventWriter {
        EventWriter(self.clone())
    }
}

/// Writes an event behind the access lines that came before it.
#[derive(Debug)]
pub struct EventWriter(AccessLog);

impl io::Write for EventWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(output) = &self.0.0 {
            let mut gathered = output.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.extend_from_slice(bytes);
            write_out(&mut gathered);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AccessLine<'_> {
    /// The line behind its time. Written piece by piece: there is one for each request.
    fn text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let mut number = itoa::Buffer::new();
        let tenths = self.duration.as_micros() / 100;
        put(out, [" ", self.id, " "]);
        put_safe(out, self.remote)?;
        put(out, [" "]);
        put_safe(out, self.method.as_str())?;
        put(out, [" "]);
        put_safe(out, self.host)?;
        put_safe(out, self.prefix)?;
        put_safe(out, self.target)?;
        put(out, [" ", number.format(self.status.map_or(0, |status| status.as_u16()))]);
        put(out, [" ", number.format(self.received)]);
        put(out, ["/", number.format(self.sent)]);
        put(out, [" B ", number.format(tenths / 10)]);
        put(out, [".", number.format(tenths % 10)]);
        put(out, [" ms"]);
        if let Some(provider) = self.provider {
            put(out, [" provider="]);
            put_safe(out, provider)?;
        }
        if let Some(error) = self.error {
            put(out, [" ", error]);
        }
        put(out, ["\n"]);
        Ok(())
    }

    fn json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let now = Timestamp::now();
        write!(
            out,
            "{{\"timestamp\":\"{now:.6}\",\"level\":\"INFO\",\"event\":\"exchange\",\"id\":\"{}\",\"remote\":\"{}\",\
             \"version\":\"{:?}\",\"method\":\"{}\",\"host\":\"{}\",\"target\":\"{}{}\",\"status\":{},\"received\":{},\
             \"sent\":{},\"duration_ms\":{:.3},\"provider\":",
            self.id,
            Quoted(self.remote),
            self.version,
            Quoted(self.method.as_str()),
            Quoted(self.host),
            Quoted(self.prefix),
            Quoted(self.target),
            self.status.map_or(0, |status| status.as_u16()),
            self.received,
            self.sent,
            self.duration.as_secs_f64() * 1e3,
        )?;
        match self.provider {
            Some(provider) => write!(out, "\"{}\"", Quoted(provider))?,
            None => put(out, ["null"]),
        }
        match self.error {
            Some(error) => write!(out, ",\"error\":\"{error}\"")?,
            None => put(out, [",\"error\":null"]),
        }
        if let Some(trace) = self.trace {
            write!(out, ",\"trace_id\":\"{trace:032x}\"")?;
        }
        put(out, ["}\n"]);
        Ok(())
    }
}

fn put<const N: usize>(out: &mut Vec<u8>, pieces: [&str; N]) {
    pieces.iter().for_each(|piece| out.extend_from_slice(piece.as_bytes()));
}

fn put_safe(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    if text.len() <= MAX_TARGET && text.bytes().all(|b| b.is_ascii_graphic()) {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    write!(out, "{}", Safe(text))
}

/// A stranger's text, cut to size, without anything that a terminal would act on.
struct Safe<'a>(&'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = cut(self.0);
        if text.bytes().all(|b| b.is_ascii_graphic()) {
            return f.write_str(text);
        }
        text.chars().try_for_each(|c| match c {
            ' ' => f.write_str("\\x20"),
            c if is_harmless(c) => fmt::Write::write_char(f, c),
            c => write!(f, "{}", c.escape_unicode()),
        })
    }
}

/// Whether a character does nothing but stand there, on any terminal.
pub(crate) fn is_harmless(c: char) -> bool {
    c.is_ascii_graphic() || (c.is_alphanumeric() && !c.is_control())
}

/// A stranger's text in one line, without anything that a terminal would act on.
pub(crate) fn harmless(text: &str) -> String {
    let piece = |c: char| if c == ' ' || is_harmless(c) { c.to_string() } else { c.escape_unicode().to_string() };
    text.chars().map(piece).collect()
}

/// A stranger's text between the quotes of a JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = cut(self.0);
        if text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            return f.write_str(text);
        }
        text.chars().try_for_each(|c| match c {
            '"' => f.write_str("\\\""),
            '\\' => f.write_str("\\\\"),
            c if c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() => fmt::Write::write_char(f, c),
            c => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}")),
        })
    }
}

/// The beginning of a stranger's text.
pub(crate) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TARGET)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn line<'a>(target: &'a str) -> AccessLine<'a> {
        AccessLine {
            id: "01K",
            remote: "192.0.2.1",
            version: Version::HTTP_11,
            method: &Method::POST,
            host: "web.relay.example.com",
            prefix: "",
            target,
            status: Some(StatusCode::OK),
            received: 1,
            sent: 2,
            duration: Duration::from_micros(1500),
            provider: None,
            error: None,
            trace: None,
        }
    }

    #[test]
    fn a_stranger_cannot_write_a_line_of_his_own() {
        for target in ["/a\nb", "/\u{1b}[31m", "/\u{202e}x", "/\"}\\", "/a b", "/\u{7f}\u{85}"] {
            let (mut text, mut json) = (Vec::new(), Vec::new());
            line(target).text(&mut text).unwrap();
            line(target).json(&mut json).unwrap();
            assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 1);
            let text = String::from_utf8(text).unwrap();
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{85}', '\u{7f}']), "{text:?}");
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(json["target"], target);
        }
    }

    #[test]
    fn long_targets_are_cut() {
        let target = format!("/{}", "ä".repeat(1000));
        let mut text = Vec::new();
        line(&target).text(&mut text).unwrap();
        assert!(text.len() < 700);
    }
}
