//! What a person or a program sees of a tunnel.
//!
//! Events go in, bytes come out: [`Printer::push`] formats an event into a buffer that is used
//! again and again, [`Printer::flush`] writes what has gathered with one system call. Whoever owns
//! the printer flushes when it has drained its events, so that a busy tunnel costs one write for
//! many lines and a quiet one shows each line at once.
//!
//! # The JSON form
//!
//! One object per line on standard output and nothing else there; the names and types of these
//! fields, which [`Event`] gives them, are a contract and never change:
//!
//! ```json
//! {"event":"tunnel.ready","name":"hooks","url":"https://hooks.relay.example","upstream":"http://localhost:3000","relay":"https://relay.example","ca_file":null,"local_url":null,"inspector":null,"tunnel":"hooks"}
//! {"event":"exchange","id":"01J…","method":"POST","path":"/hooks?a=1","status":200,"duration_ms":12.25,"error":null,"tunnel":"hooks","webhook":null,"delivery":null}
//! {"event":"request","id":"01J…","method":"POST","path":"/hooks","status":200,"headers":[["host","hooks.relay.example"]],"body":"hello","body_size":5,"body_truncated":false}
//! {"event":"requests.withheld","tunnel":"hooks","count":1,"id":"01J…","method":"POST","path":"/hooks","remote":"203.0.113.9","error":"signature-invalid","provider":"stripe","verdict":"stale","reason":"…"}
//! {"event":"inbox","tunnel":"hooks","waiting":12,"oldest_at":"2026-…","dead":0,"paused":false,"at":"2026-…"}
//! {"event":"upstream.down","tunnel":"hooks","upstream":"http://localhost:3000","reason":"connection refused by 127.0.0.1:3000 and [::1]:3000"}
//! {"event":"upstream.up","tunnel":"hooks","upstream":"http://localhost:3000"}
//! {"event":"session.disconnected","reason":"the connection was reset","retry_in_ms":250}
//! {"event":"session.reconnected","relay":"https://relay.example","after_ms":1250}
//! ```
//!
//! # The text form
//!
//! The public URL stands first and alone on its line, then a line per exchange:
//!
//! ```text
//! https://hooks.relay.example
//!   forwards to http://localhost:3000
//!
//! 14:03:11 POST    /hooks?a=1                               200    12.3 ms
//! ```
//!
//! On a terminal more than a person can follow is summed up, and the last line says how things
//! stand: it is erased before other lines are written, and written again behind them.
//!
//! Several tunnels have a line each, and every exchange says which one it is about:
//!
//! ```text
//! https://8k3jq0v5mwz2.relay.example  api     http://localhost:4000
//! https://hooks.relay.example         web     http://localhost:3000
//!
//! 14:03:11 web     POST    /hooks?a=1                               200    12.3 ms
//! ```
//!
//! Methods, paths and reasons come from strangers. Characters that could move the cursor, recolour
//! the screen or reorder a line are escaped in both forms.

mod body;
mod full_screen;
mod qr;
pub mod screen;
mod state_line;
mod text;
mod traffic;

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    fs::File,
    io::{self, IsTerminal, Stderr, Stdout, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use jiff::{Timestamp, tz::TimeZone};
use unicode_width::UnicodeWidthStr as _;

use crate::event::{Body, Event, beside};
use crate::platform::{is_ready, terminal_knows_escapes, write_now};
use crate::terminal::body::write_body;
use crate::terminal::state_line::StateLine;
use crate::terminal::text::{Text, duration, pad, size, tabbed_line, write_json};
use crate::terminal::traffic::{Sum, Traffic};
use crate::value::Output;

pub(crate) use self::body::{answer_body, plain_body};
pub(crate) use self::text::{Quoted, Shown, compact, hazardous, json_line};

/// Says something to people on standard error, where no [`Printer`] is at hand. It may have several lines, and strangers'
/// words in them. That nobody reads it is no reason to fail.
pub fn tell(what: &(impl fmt::Display + ?Sized)) {
    let mut said = b"relay: ".to_vec();
    what.to_string().lines().for_each(|line| tabbed_line(&mut Text(&mut said), line));
    // What is said last may be said to a pipe that is full, and the process ends all the same.
    let _ = Destination::Stderr(io::stderr()).write_within(PATIENCE, &mut said);
}

/// Writes what a command is for on standard output, and waits for its reader however long that takes.
///
/// # Errors
/// Where nobody reads it.
pub fn print(data: &[u8]) -> io::Result<()> {
    Destination::Stdout(io::stdout()).write_within(Duration::MAX, &mut data.to_vec())
}

/// How long a process that ends waits for whoever reads what it has still to say.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes of a buffer what the reader takes now, and leaves the rest in it.
///
/// # Errors
/// Where it takes nothing any more. What could not be written is dropped.
fn drain(out: &mut impl Write, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut written = 0;
    let result = loop {
        let rest = buffer.get(written..).unwrap_or_default();
        if rest.is_empty() {
            break out.flush();
        }
        match out.write(rest) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let gone = if result.is_ok() { written.min(buffer.len()) } else { buffer.len() };
    buffer.drain(..gone);
    // One large body is no reason to keep its room for ever.
    buffer.shrink_to(BUFFER_KEPT);
    result
}

/// How standard output can show things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Outcomes are coloured.
    pub colour: bool,
    /// Paths are cut so that a line fits this many columns.
    pub columns: Option<usize>,
    /// More requests than a person can follow are summed up.
    pub sums: bool,
    /// The last line says how things stand.
    pub state_line: bool,
}

impl Style {
    /// Of this process's standard output: colours on a terminal only and not against `NO_COLOR`
    /// (<https://no-color.org>) or on a dumb one. A line that moves needs a terminal that is not dumb, and one that
    /// standard error shares, so that nothing is written into it.
    pub fn of_stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::default();
        }
        let is = |name: &str, wanted: &dyn Fn(&str) -> bool| {
            std::env::var_os(name).is_some_and(|value| wanted(&value.to_string_lossy()))
        };
        let dumb = is("TERM", &|value| value == "dumb") || !terminal_knows_escapes();
        let colour = !dumb && !is("NO_COLOR", &|value| !value.is_empty());
        let state_line = !dumb && io::stderr().is_terminal();
        Self { colour, columns: columns(), sums: true, state_line }
    }

    /// Whether a terminal can be had as a whole: one with colours that moves, and somebody who presses keys.
    pub fn can_be_full_screen(&self) -> bool {
        self.colour && self.state_line && io::stdin().is_terminal()
    }

    /// Nothing but lines, one for each request.
    #[must_use]
    pub fn plain(self) -> Self {
        Self { sums: false, state_line: false, ..self }
    }
}

fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Where a process's printer writes. It never waits for a reader: what is not taken now is [`io::ErrorKind::WouldBlock`].
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout(Stdout),
    /// Standard error.
    Stderr(Stderr),
    /// A file.
    File(File),
}

impl Destination {
    /// Writes a buffer, within so long at most. What nobody has read by then stays in it.
    fn write_within(&mut self, patience: Duration, buffer: &mut Vec<u8>) -> io::Result<()> {
        let begun = Instant::now();
        drain(self, buffer)?;
        while !buffer.is_empty() && begun.elapsed() < patience && self.is_ready(patience) {
            drain(self, buffer)?;
        }
        Ok(())
    }

    /// Waits so long at most until there is a reader.
    fn is_ready(&self, patience: Duration) -> bool {
        let ready = match self {
            Self::Stdout(out) => is_ready(out, patience),
            Self::Stderr(out) => is_ready(out, patience),
            Self::File(out) => is_ready(out, patience),
        };
        // A signal is no reason to give up, and what else is wrong is said by the next attempt.
        ready.unwrap_or(true)
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => write_now(out, bytes),
            Self::Stderr(out) => write_now(out, bytes),
            Self::File(out) => write_now(out, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing is held back.
        Ok(())
    }
}

/// Formats events for `out` (what was asked for) and `err` (what is said besides).
#[derive(Debug)]
pub struct Printer<O = Destination, E = Destination> {
    output: Output,
    style: Style,
    out: O,
    err: E,
    out_buffer: Vec<u8>,
    err_buffer: Vec<u8>,
    clock: Clock,
    ready: bool,
    /// The tunnels that there are, by what they are called.
    tunnels: BTreeSet<String>,
    /// Columns that lines leave to what is said of their senders.
    beside: usize,
    /// Those that people have not been told of yet: they stand together.
    fresh: Vec<Fresh>,
    /// They have been told of one.
    announced: bool,
    answers: Option<String>,
    url_only: bool,
    qr: bool,
    /// The last moment that was told.
    now: Duration,
    traffic: Option<Traffic>,
    state: Option<StateLine>,
    /// What the state line says on the terminal.
    drawn: Vec<u8>,
    /// The state line no longer says what is true.
    stale: bool,
    /// The last line about a lost session, and the last detail of a failure: they are not said twice.
    said: (String, String),
    /// Lines that were left out because nobody has read those before them.
    unread: u64,
}

/// Bytes that wait for a reader, from which on requests get no lines: a reader who has stopped for good must not take all
/// memory, and must not stop the tunnel. One line more fits beyond it.
const UNREAD: usize = 64 << 20;

/// A tunnel that is news.
#[derive(Debug)]
struct Fresh {
    tunnel: String,
    url: String,
    upstream: String,
    ca_file: Option<String>,
    local_url: Option<String>,
    inspector: Option<String>,
}

impl Printer {
    /// A printer on this process's standard output and error; `plain` has nothing but lines.
    pub fn stdio(output: Output, plain: bool) -> Self {
        let style = if plain { Style::of_stdout().plain() } else { Style::of_stdout() };
        Self::new(output, style, None, Destination::Stdout(io::stdout()), Destination::Stderr(io::stderr()))
    }

    /// A printer that leaves standard output to somebody else: it writes to standard error.
    pub fn stderr(output: Output) -> Self {
        Self::new(output, Style::default(), None, Destination::Stderr(io::stderr()), Destination::Stderr(io::stderr()))
    }

    /// A printer that writes JSON to a file, and what is said besides to standard error.
    pub fn file(file: File) -> Self {
        Self::new(Output::Json, Style::default(), None, Destination::File(file), Destination::Stderr(io::stderr()))
    }

    /// Formats an event as of now, for the terminal's width of now; nothing is written before [`Printer::flush`].
    pub fn push(&mut self, event: &Event<'_>) {
        self.measure();
        self.push_at(since_1970(), event);
    }

    /// What shows the time: as of now. To be called about once a second where [`Printer::keeps_time`].
    pub fn tick(&mut self) {
        self.measure();
        self.tick_at(since_1970());
    }

    /// As [`Printer::flush`], at the end: gives a slow reader another second.
    ///
    /// # Errors
    /// As [`Printer::flush`].
    pub fn finish(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            self.flush()?;
            let waits = match (&self.out, &self.err) {
                (out, _) if !self.out_buffer.is_empty() => out,
                (_, err) if !self.err_buffer.is_empty() => err,
                _ => return Ok(()),
            };
            let left = PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() || !waits.is_ready(left) {
                return Ok(());
            }
        }
    }

    /// Learns the terminal's width anew, should it have changed, once for all that is written together.
    fn measure(&mut self) {
        if self.style.columns.is_some() && self.pending() == 0 {
            self.style.columns = columns();
        }
    }
}

impl<O: Write, E: Write> Printer<O, E> {
    /// A printer on any two writers, showing times of the given zone, or of the system's.
    pub fn new(output: Output, style: Style, zone: Option<TimeZone>, out: O, err: E) -> Self {
        let for_people = output == Output::Text;
        Self {
            output,
            style,
            out,
            err,
            out_buffer: Vec::new(),
            err_buffer: Vec::new(),
            clock: Clock::new(zone),
            ready: false,
            tunnels: BTreeSet::new(),
            beside: 0,
            fresh: Vec::new(),
            announced: false,
            answers: None,
            url_only: false,
            qr: false,
            now: Duration::ZERO,
            traffic: (for_people && style.sums).then(Traffic::default),
            state: (for_people && style.state_line).then(StateLine::default),
            drawn: Vec::new(),
            stale: false,
            said: Default::default(),
            unread: 0,
        }
    }

    /// Leaves standard output to the URL alone: the other lines for people go to standard error.
    #[must_use]
    pub fn url_only(mut self, only: bool) -> Self {
        self.url_only = only;
        self
    }

    /// Shows each public URL as a QR code, too.
    #[must_use]
    pub fn qr(mut self, wanted: bool) -> Self {
        self.qr = wanted;
        self
    }

    /// Says to people what a tunnel answers, instead of where it forwards to.
    #[must_use]
    pub fn answering(mut self, what: String) -> Self {
        self.answers = Some(what);
        self
    }

    /// Formats an event as of this long after 1970.
    pub fn push_at(&mut self, now: Duration, event: &Event<'_>) {
        let second = self.advance(now);
        if let Some(state) = &mut self.state {
            self.stale |= state.observe(now, event);
        }
        if !matches!(event, Event::Ready { .. }) {
            self.announce();
        }
        match event {
            Event::Ready { tunnel, .. } => {
                self.ready = true;
                self.tunnels.insert((*tunnel).to_owned());
            }
            Event::Closed { tunnel, .. } => {
                self.tunnels.remove(*tunnel);
            }
            _ => {}
        }
        match (self.output, event) {
            (_, Event::Heard { .. }) => {}
            (_, Event::Exchange { .. } | Event::Request { .. } | Event::Withheld { .. } | Event::Notice(_))
                if self.pending() > UNREAD =>
            {
                self.unread += 1;
            }
            (Output::Json, Event::Exchange { id, detail, .. }) if self.ready => {
                write_json(event, &mut self.out_buffer);
                self.detail(second, id, *detail);
            }
            // A program's first line is `tunnel.ready`. What comes before is for people.
            (Output::Json, Event::Notice(_) | Event::Connecting { .. }) => self.aside(second, event),
            (Output::Json, _) if !self.ready => self.aside(second, event),
            (Output::Json, _) => {
                write_json(event, &mut self.out_buffer);
                if let (Event::Ready { url, .. }, true) = (event, self.qr) {
                    let _ = qr::write(&mut Text(&mut self.err_buffer), url, None, false);
                }
            }
            (Output::Text, Event::Ready { tunnel, url, upstream, ca_file, local_url, inspector, .. }) => {
                self.fresh.push(Fresh {
                    tunnel: (*tunnel).to_owned(),
                    url: (*url).to_owned(),
                    upstream: (*upstream).to_owned(),
                    ca_file: ca_file.map(str::to_owned),
                    local_url: local_url.map(str::to_owned),
                    inspector: inspector.map(str::to_owned),
                })
            }
            (
                Output::Text,
                Event::Exchange { tunnel, id, method, path, status, duration_ms, error, detail, webhook, delivery },
            ) => {
                if self.has_line(*status, *error, Some(*duration_ms)) {
                    let figure = |out: &mut Text<'_>| duration(out, *duration_ms);
                    let beside = beside(webhook.as_ref(), *delivery, *duration_ms);
                    self.line(second, Some(tunnel), method, path, *status, figure, beside, *error);
                    self.detail(second, id, *detail);
                }
            }
            (Output::Text, Event::Request { id, method, path, status, headers, body, body_size, body_truncated }) => {
                if self.has_line(*status, None, None) {
                    self.line(second, None, method, path, *status, |out| size(out, *body_size), None, None);
                    self.request(id, headers, *body, *body_size, *body_truncated);
                }
            }
            (Output::Text, _) => self.aside(second, event),
        }
    }

    fn tick_at(&mut self, now: Duration) {
        self.advance(now);
        self.stale = self.state.is_some();
    }

    /// Whether it shows anything that changes with time alone.
    pub fn keeps_time(&self) -> bool {
        self.traffic.is_some() || self.state.is_some()
    }

    /// Leaves the terminal as others expect it: with what was still to be said, and without a state line.
    pub fn close(&mut self) {
        self.advance(self.now + Duration::from_secs(1));
        self.state = None;
        self.stale = true;
    }

    /// Sums the last second up where it is over. Returns the present one.
    fn advance(&mut self, now: Duration) -> i64 {
        self.now = now;
        let second = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some((of, sum)) = self.traffic.as_mut().and_then(|traffic| traffic.begin(second)) {
            self.sum(of, sum);
        }
        second
    }

    fn has_line(&mut self, status: Option<u16>, error: Option<&str>, milliseconds: Option<f64>) -> bool {
        self.traffic.as_mut().is_none_or(|traffic| traffic.take(status, error, milliseconds))
    }

    /// Whether there is something for [`Printer::flush`] to write.
    pub fn is_due(&self) -> bool {
        self.stale || self.pending() > 0 || !self.fresh.is_empty()
    }

    /// Bytes formatted and not yet written.
    pub fn pending(&self) -> usize {
        self.out_buffer.len() + self.err_buffer.len()
    }

    /// Writes what was pushed, as far as its readers take it now; [`Printer::pending`] is what is left for the next time.
    ///
    /// # Errors
    /// Where standard output does not take it. `BrokenPipe` means that nobody reads any more, as
    /// behind `head`: time to stop. What could not be written is dropped.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        self.announce();
        let state = self.state_line();
        if self.pending() == 0 && state == self.drawn {
            return Ok(());
        }
        if !self.drawn.is_empty() {
            self.err_buffer.splice(0..0, ERASE_LINE.bytes());
            self.drawn.clear();
        }
        // Where standard error has no reader the lines of standard output may have one.
        let _ = drain(&mut self.err, &mut self.err_buffer);
        let result = drain(&mut self.out, &mut self.out_buffer);
        if self.pending() == 0 {
            if !state.is_empty() {
                self.err_buffer.extend_from_slice(&state);
                let _ = drain(&mut self.err, &mut self.err_buffer);
            }
            self.drawn = state;
            self.tell_unread();
        }
        result
    }

    /// Says how much was left out, once there is a reader again.
    fn tell_unread(&mut self) {
        let lines = std::mem::take(&mut self.unread);
        if lines > 0 {
            self.push_at(self.now, &Event::Unread { lines });
        }
    }

    /// What the state line has to say, in one line of the terminal.
    fn state_line(&mut self) -> Vec<u8> {
        self.stale = false;
        let mut text = Vec::new();
        if let Some(state) = &self.state {
            let parts = state.parts(self.now, &mut self.clock);
            row(&mut Text(&mut text), &parts, " · ", self.style);
        }
        text
    }

    /// The line of a second's requests that had none of their own.
    fn sum(&mut self, second: i64, sum: Sum) {
        let out = &mut Text(if self.url_only { &mut self.err_buffer } else { &mut self.out_buffer });
        let _ = write!(out, "{} ", self.clock.at(second));
        let columns = self.style.columns.map(|columns| columns.saturating_sub(9));
        row(out, &sum.parts(), "  ", Style { columns, ..self.style });
        out.push('\n');
    }

    /// More about an exchange that failed, unless it was just said.
    fn detail(&mut self, second: i64, id: &str, detail: Option<&str>) {
        let Some(detail) = detail else { return };
        if self.said.1 != detail {
            self.said.1 = detail.to_owned();
            self.aside(second, &Event::Notice(&format!("{id}: {detail}")));
        }
    }

    /// Tells people of the tunnels that are news.
    fn announce(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        if let ([only], ..=1) = (fresh.as_slice(), self.tunnels.len()) {
            self.ready(only);
            self.announced = true;
        } else if !fresh.is_empty() {
            self.ready_several(&fresh);
        }
    }

    fn ready(&mut self, Fresh { url, upstream, ca_file, local_url, inspector, .. }: &Fresh) {
        let (bold, plain) = if self.style.colour { ("\x1b[1m", RESET) } else { ("", "") };
        let _ = writeln!(Text(&mut self.out_buffer), "{bold}{}{plain}", Shown(url));
        let out = &mut Text(if self.url_only { &mut self.err_buffer } else { &mut self.out_buffer });
        if self.qr {
            let _ = qr::write(out, url, self.style.columns, self.style.colour);
        }
        let _ = match &self.answers {
            Some(what) => writeln!(out, "  {}", Shown(what)),
            None => writeln!(out, "  forwards to {}", Shown(upstream)),
        };
        // Once: it is the client's, and stays where it is.
        if let Some(inspector) = inspector.as_ref().filter(|_| !self.announced) {
            let _ = writeln!(out, "  inspect at {inspector}");
        }
        if let Some(ca) = ca_file {
            // The local URL, because not every resolver knows names below `.localhost`.
            let url = local_url.as_ref().unwrap_or(url);
            let _ = writeln!(out, "  curl --cacert {} {}", Quoted(ca), Quoted(&format!("{url}/")));
        }
        let _ = writeln!(out);
    }

    /// A line each, and what goes for all of them.
    fn ready_several(&mut self, fresh: &[Fresh]) {
        let (bold, plain) = if self.style.colour { ("\x1b[1m", RESET) } else { ("", "") };
        let label = self.label_columns();
        let longest = fresh.iter().map(|fresh| fresh.url.chars().count()).max().unwrap_or(0);
        for Fresh { tunnel, url, upstream, .. } in fresh {
            let gap = longest.saturating_sub(url.chars().count());
            let _ = write!(Text(&mut self.out_buffer), "{bold}{}{plain}", Shown(url));
            if self.url_only {
                self.out_buffer.push(b'\n');
                let _ = writeln!(Text(&mut self.err_buffer), "{tunnel:<label$}  {}  {}", Shown(url), Shown(upstream));
            } else {
                let _ = writeln!(Text(&mut self.out_buffer), "{:gap$}  {tunnel:<label$}  {}", "", Shown(upstream));
            }
        }
        let out = &mut Text(if self.url_only { &mut self.err_buffer } else { &mut self.out_buffer });
        if self.qr {
            for Fresh { tunnel, url, .. } in fresh {
                let _ = writeln!(out, "\n{}", Shown(tunnel));
                let _ = qr::write(out, url, self.style.columns, self.style.colour);
            }
        }
        // Once, because there is one inspector, and one CA.
        if !std::mem::replace(&mut self.announced, true) {
            if let Some(Fresh { inspector: Some(inspector), .. }) = fresh.first() {
                let _ = writeln!(out, "  inspect at {inspector}");
            }
            if let Some(Fresh { url, ca_file: Some(ca), .. }) = fresh.first() {
                let _ = writeln!(out, "  curl --cacert {} {}", Quoted(ca), Quoted(&format!("{url}/")));
            }
            let _ = writeln!(out);
        }
    }

    /// The width of what tells several tunnels apart.
    fn label_columns(&self) -> usize {
        self.tunnels.iter().map(String::len).max().unwrap_or(0).min(LABEL_MAX)
    }

    /// A line about an exchange, whose `figure` fills ten columns.
    #[expect(clippy::too_many_arguments, reason = "one for each column")]
    fn line(
        &mut self,
        second: i64,
        tunnel: Option<&str>,
        method: &str,
        path: &str,
        status: Option<u16>,
        figure: impl FnOnce(&mut Text<'_>),
        beside: Option<String>,
        error: Option<&str>,
    ) {
        // Only where there are others.
        let tunnel = tunnel.filter(|_| self.tunnels.len() > 1).map(|tunnel| (tunnel, self.label_columns()));
        let out = &mut Text(if self.url_only { &mut self.err_buffer } else { &mut self.out_buffer });
        // Either every line has the same width, or nothing is cut.
        let error_columns = error.map_or(0, |code| code.len() + 2);
        let fixed = FIXED_COLUMNS + tunnel.map_or(0, |(_, width)| width + 1);
        // Where there is no room for it beside a path that can be read, it is left out.
        let has_room = |wide: usize| self.style.columns.is_none_or(|columns| columns >= fixed + wide + PATH_WISHED);
        let beside = beside.map(|text| Shown(&text).to_string()).filter(|text| has_room(text.width() + 1));
        // The columns of the lines that follow stay where they are now.
        self.beside = self.beside.max(beside.as_ref().map_or(0, |text| text.width() + 1));
        let fixed = fixed + self.beside;
        let is_narrow = self.style.columns.is_some_and(|columns| columns < fixed + PATH_MIN);
        let (width, cut) = match self.style.columns {
            Some(columns) => {
                let fixed = if is_narrow { fixed - TIME_COLUMNS } else { fixed };
                let width = columns.saturating_sub(fixed + error_columns).max(PATH_MIN);
                (width, Some(width))
            }
            None => (PATH_UNCUT, None),
        };
        if !is_narrow {
            let _ = write!(out, "{} ", self.clock.at(second));
        }
        if let Some((tunnel, width)) = tunnel {
            pad(out, &Shown(tunnel), width, Some(width));
            out.push(' ');
        }
        pad(out, &Shown(method), 7, Some(METHOD_MAX));
        out.push(' ');
        pad(out, &Shown(path), width, cut);

        let (colour, plain) = if self.style.colour { (outcome_colour(status), RESET) } else { ("", "") };
        let _ = match status {
            Some(status) => write!(out, " {colour}{status:>3}{plain} "),
            None => write!(out, " {colour}---{plain} "),
        };
        figure(out);
        if let Some(text) = beside {
            let _ = write!(out, " {text}");
        }
        if let Some(code) = error {
            let (colour, plain) = if self.style.colour { (RED, RESET) } else { ("", "") };
            let _ = write!(out, "  {colour}{}{plain}", Shown(code));
        }
        out.push('\n');
    }

    /// What follows the line of a request: its headers, and the beginning of its body.
    fn request(&mut self, id: &str, headers: &[(String, String)], body: Body<'_>, size: u64, truncated: bool) {
        let out = &mut Text(if self.url_only { &mut self.err_buffer } else { &mut self.out_buffer });
        let (dim, plain) = if self.style.colour { (DIM, RESET) } else { ("", "") };
        for (name, value) in headers.iter().filter(|(name, value)| !is_added(name, value, id)) {
            let _ = writeln!(out, "  {dim}{}:{plain} {}", Shown(name), Shown(value));
        }
        if size > 0 {
            out.push('\n');
        }
        write_body(out, body, size, truncated, (dim, plain));
        out.push('\n');
    }

    /// A line on standard error.
    fn aside(&mut self, second: i64, event: &Event<'_>) {
        let out = &mut Text(&mut self.err_buffer);
        let time = self.clock.at(second);
        let (red, green, plain) = if self.style.colour { (RED, GREEN, RESET) } else { ("", "", "") };
        let _ = match event {
            Event::Notice(text) => writeln!(out, "{time} {}", Shown(text)),
            Event::Connecting { .. } if self.state.is_some() => Ok(()),
            Event::Connecting { relay } => writeln!(out, "{time} connecting to {}", Shown(relay)),
            // The state line says when, and counts down to it.
            Event::Disconnected { reason, .. } if self.state.is_some() => {
                if self.said.0 != *reason {
                    self.said.0 = (*reason).to_owned();
                    let _ = writeln!(out, "{time} {red}disconnected{plain}: {}", Shown(reason));
                }
                Ok(())
            }
            Event::Disconnected { reason, retry_in_ms } => {
                let wait = *retry_in_ms as f64 / 1000.0;
                writeln!(
                    out,
                    "{time} disconnected: {}; next attempt in {wait:.1} s",
                    Shown(reason.trim_end_matches('.'))
                )
            }
            Event::Closed { url, reason, .. } => writeln!(out, "{time} {} has ended: {}", Shown(url), Shown(reason)),
            Event::Refused { tunnel, reason, .. } => {
                writeln!(out, "{time} the tunnel {} is refused: {}", Shown(tunnel), Shown(reason))
            }
            Event::Withheld { count, method, path, remote, error, verdict, reason, .. } => {
                let others = match count {
                    0 | 1 => String::new(),
                    _ => format!(", the last of {count}"),
                };
                // Where no signature was judged, there is none.
                let verdict =
                    if verdict.is_empty() { String::new() } else { format!(", {}", verdict.replace('_', " ")) };
                writeln!(
                    out,
                    "{time} {red}the relay has refused{plain} {} {} from {}{others}: {}{}: {}",
                    Shown(method),
                    Shown(path),
                    Shown(remote),
                    Shown(error),
                    Shown(&verdict),
                    Shown(reason)
                )
            }
            Event::Unread { lines } => {
                writeln!(out, "{time} {lines} lines were left out, because nobody has read those before them")
            }
            Event::Rejected { reason } => {
                writeln!(
                    out,
                    "{time} the configuration has changed and is wrong, so nothing changes: {}",
                    Shown(reason)
                )
            }
            Event::Reconnected { relay, after_ms } => {
                self.said.0.clear();
                let away = *after_ms as f64 / 1000.0;
                writeln!(out, "{time} {green}connected again{plain} to {} after {away:.1} s", Shown(relay))
            }
            Event::UpstreamDown { upstream, reason, .. } => writeln!(
                out,
                "{time} {red}nothing listens on {}{plain} ({}); start your service, or give its address: until then \
                 callers get 502",
                Shown(upstream),
                Shown(reason)
            ),
            Event::UpstreamUp { upstream, .. } => {
                writeln!(out, "{time} {green}the service on {} answers{plain}", Shown(upstream))
            }
            Event::Inbox { tunnel, state } => {
                writeln!(out, "{time} inbox of {}: {}", Shown(tunnel), Shown(&state.to_string()))
            }
            // Before its tunnel is ready there is no exchange to tell of.
            Event::Ready { .. } | Event::Exchange { .. } | Event::Request { .. } | Event::Heard { .. } => Ok(()),
        };
    }
}

/// A part of a line that is made of several.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) text: String,
    /// The sequence that begins its colour, or nothing.
    pub(crate) colour: &'static str,
}

impl Part {
    pub(crate) fn plain(text: String) -> Self {
        Self { text, colour: "" }
    }
}

/// Parts in one line, as far as they fit. The last one that does is cut where that leaves something to read.
fn row(out: &mut Text<'_>, parts: &[Part], gap: &str, style: Style) {
    // The last column stays free, because some terminals wrap as soon as it is filled.
    let mut left = style.columns.map_or(usize::MAX, |columns| columns.saturating_sub(1));
    for (i, part) in parts.iter().enumerate() {
        let gap = if i == 0 { "" } else { gap };
        let shown = Shown(&part.text);
        let columns = shown.columns();
        left = left.saturating_sub(gap.chars().count());
        if columns > left && left < PART_MIN {
            break;
        }
        let (colour, plain) = if style.colour && !part.colour.is_empty() { (part.colour, RESET) } else { ("", "") };
        let _ = write!(out, "{gap}{colour}");
        pad(out, &shown, 0, Some(left));
        let _ = write!(out, "{plain}");
        left = left.saturating_sub(columns);
    }
}

/// Parts in one line, as far as they fit, and its end.
pub(crate) fn line_of(parts: &[Part], style: Style) -> Vec<u8> {
    let mut line = Vec::new();
    row(&mut Text(&mut line), parts, "  ", style);
    line.push(b'\n');
    line
}

/// The colour of an outcome: of a status, or of none.
pub(crate) fn outcome_colour(status: Option<u16>) -> &'static str {
    match status {
        Some(200..=299) => GREEN,
        Some(100..=399) => CYAN,
        Some(400..=499) => YELLOW,
        _ => RED,
    }
}

pub(crate) const RED: &str = "\x1b[31m";
pub(crate) const GREEN: &str = "\x1b[32m";
pub(crate) const YELLOW: &str = "\x1b[33m";
pub(crate) const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Moves to the beginning of the line and erases it (ECMA-48, CR and EL).
const ERASE_LINE: &str = "\r\x1b[K";
/// A part of a line is not cut below this.
const PART_MIN: usize = 16;
/// Room for lines that is kept between two writes.
const BUFFER_KEPT: usize = 1024 * 1024;

/// Everything of a line but its path: time 8, method 7, status 3, duration 10, and five spaces. The
/// last column stays free, because some terminals wrap as soon as it is filled.
const FIXED_COLUMNS: usize = 8 + 7 + 3 + 10 + 5;
/// The time with its space, which a narrow terminal has no room for.
const TIME_COLUMNS: usize = 9;
/// A path is not cut below this, however narrow the terminal.
const PATH_MIN: usize = 12;

/// Columns of a path that are not given away for what is said of its sender.
const PATH_WISHED: usize = 20;
/// The path's column where nothing is cut; longer paths push the rest to the right.
const PATH_UNCUT: usize = 40;
/// What a tunnel is called is cut to this.
const LABEL_MAX: usize = 16;
/// Methods longer than any registered one (RFC 9110, section 16.1) are cut.
const METHOD_MAX: usize = 20;

/// Whether a header says what the relay has added to every request, rather than what the sender wrote. The address of
/// the sender is worth a line.
fn is_added(name: &str, value: &str, id: &str) -> bool {
    match name {
        "forwarded" | "relay-request-id" | "x-forwarded-host" | "x-forwarded-proto" | "x-real-ip" => true,
        "x-request-id" => value == id,
        _ => false,
    }
}

/// The local time of day, worked out once per second.
#[derive(Debug)]
pub(crate) struct Clock {
    /// None until the first line that shows a time: finding the system's time zone reads hundreds of files, and a
    /// program that prints JSON never needs it.
    zone: Option<TimeZone>,
    second: i64,
    text: String,
}

impl Clock {
    pub(crate) fn new(zone: Option<TimeZone>) -> Self {
        Self { zone, second: i64::MIN, text: String::new() }
    }

    /// The time of day at so many seconds after 1970.
    pub(crate) fn at(&mut self, second: i64) -> &str {
        if second != self.second {
            self.second = second;
            self.text.clear();
            let zone = self.zone.get_or_insert_with(system_zone).clone();
            let time = Timestamp::from_second(second).unwrap_or_default().to_zoned(zone).time();
            let _ = write!(self.text, "{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second());
        }
        &self.text
    }
}

pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The system's time zone. Where nobody has set `TZ`, the file that says it is read by itself.
fn system_zone() -> TimeZone {
    if std::env::var_os("TZ").is_none()
        && let Some(zone) = std::fs::read("/etc/localtime").ok().and_then(|file| TimeZone::tzif("local", &file).ok())
    {
        return zone;
    }
    TimeZone::system()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::event::READY;
    use crate::terminal::body::TEXT_SHOWN;
    use serde_json::{Value, json};

    const NOW: Duration = Duration::from_secs(14 * 3600 + 3 * 60 + 11);

    fn exchange<'a>(method: &'a str, path: &'a str, status: Option<u16>) -> Event<'a> {
        Event::Exchange {
            tunnel: "hooks",
            id: "01J",
            method,
            path,
            status,
            duration_ms: 12.25,
            error: None,
            detail: None,
            webhook: None,
            delivery: None,
        }
    }

    /// What stands on both outputs after these events, at 14:03:11 UTC.
    fn print(output: Output, style: Style, events: &[Event<'_>]) -> (String, String) {
        let mut printer = Printer::new(output, style, Some(TimeZone::UTC), Vec::new(), Vec::new());
        for event in events {
            printer.push_at(NOW, event);
        }
        assert!(events.is_empty() || printer.is_due());
        printer.flush().unwrap();
        assert_eq!(printer.pending(), 0);
        (String::from_utf8(printer.out).unwrap(), String::from_utf8(printer.err).unwrap())
    }

    fn line(style: Style, event: &Event<'_>) -> String {
        let (out, _) = print(Output::Text, style, std::slice::from_ref(event));
        assert_eq!(out.matches('\n').count(), 1, "{out:?}");
        out.trim_end_matches('\n').to_owned()
    }

    #[test]
    fn the_json_contract() {
        let failed = Event::Exchange {
            tunnel: "hooks",
            id: "7",
            method: "GET",
            path: "/",
            status: None,
            duration_ms: 30000.0,
            error: Some("deadline"),
            detail: None,
            webhook: None,
            delivery: None,
        };
        let local = Event::Ready {
            tunnel: "web",
            name: "a",
            url: "https://a.relay.localhost:8443",
            upstream: "unix:/run/a",
            relay: "https://relay.localhost:8443",
            ca_file: Some("/ca.pem"),
            local_url: Some("https://localhost:8443"),
            inspector: Some("http://127.0.0.1:4040"),
        };
        let events = [
            Event::Connecting { relay: "https://relay.example" },
            READY,
            local,
            exchange("POST", "/hooks?a=1&b=\"", Some(200)),
            failed,
            Event::Disconnected { reason: "reset", retry_in_ms: 250 },
            Event::Reconnected { relay: "https://relay.example", after_ms: 1250 },
            Event::Notice("be careful"),
        ];
        let (out, err) = print(Output::Json, Style::default(), &events);
        let expected = [
            r#"{"event":"tunnel.ready","name":"hooks","url":"https://hooks.relay.example","upstream":"http://localhost:3000","relay":"https://relay.example","ca_file":null,"local_url":null,"inspector":null,"tunnel":"hooks"}"#,
            r#"{"event":"tunnel.ready","name":"a","url":"https://a.relay.localhost:8443","upstream":"unix:/run/a","relay":"https://relay.localhost:8443","ca_file":"/ca.pem","local_url":"https://localhost:8443","inspector":"http://127.0.0.1:4040","tunnel":"web"}"#,
            r#"{"event":"exchange","id":"01J","method":"POST","path":"/hooks?a=1&b=\"","status":200,"duration_ms":12.25,"error":null,"tunnel":"hooks","webhook":null,"delivery":null}"#,
            r#"{"event":"exchange","id":"7","method":"GET","path":"/","status":null,"duration_ms":30000.0,"error":"deadline","tunnel":"hooks","webhook":null,"delivery":null}"#,
            r#"{"event":"session.disconnected","reason":"reset","retry_in_ms":250}"#,
            r#"{"event":"session.reconnected","relay":"https://relay.example","after_ms":1250}"#,
        ];
        assert_eq!(out.lines().collect::<Vec<_>>(), expected);
        assert_eq!(err, "14:03:11 connecting to https://relay.example\n14:03:11 be careful\n");
    }

    #[test]
    fn nothing_precedes_the_ready_line_in_json() {
        let early = Event::Disconnected { reason: "refused.", retry_in_ms: 1500 };
        let (out, err) = print(Output::Json, Style::default(), &[early]);
        assert_eq!(out, "");
        assert_eq!(err, "14:03:11 disconnected: refused; next attempt in 1.5 s\n");
    }

    #[test]
    fn the_text_form() {
        let events = [
            READY,
            exchange("POST", "/hooks?a=1", Some(200)),
            exchange("PROPFIND", "/", None),
            Event::Reconnected { relay: "https://relay.example", after_ms: 1250 },
        ];
        let (out, err) = print(Output::Text, Style::default(), &events);
        let mut lines = out.lines();
        assert_eq!(lines.next(), Some("https://hooks.relay.example"));
        assert_eq!(lines.next(), Some("  forwards to http://localhost:3000"));
        assert_eq!(lines.next(), Some(""));
        let path = format!("{:40}", "/hooks?a=1");
        assert_eq!(lines.next(), Some(format!("14:03:11 POST    {path} 200    12.2 ms").as_str()));
        assert!(lines.next().unwrap().contains(" --- "));
        assert_eq!(lines.next(), None);
        assert_eq!(err, "14:03:11 connected again to https://relay.example after 1.2 s\n");
    }

    /// As [`READY`], of a tunnel of several.
    fn one_of_several<'a>(tunnel: &'a str, url: &'a str, upstream: &'a str) -> Event<'a> {
        let relay = "https://relay.example";
        let (ca_file, inspector) = (Some("/ca.pem"), Some("http://127.0.0.1:4040"));
        Event::Ready { tunnel, name: "n", url, upstream, relay, ca_file, local_url: None, inspector }
    }

    #[test]
    fn several_tunnels_stand_together_and_their_exchanges_apart() {
        let api = one_of_several("api", "https://8k3jq0v5mwz2.relay.example", "http://localhost:4000");
        let web = one_of_several("hooks", "https://hooks.relay.example", "http://localhost:3000");
        let closed = Event::Closed { tunnel: "api", name: "n", url: "https://8k3jq0v5mwz2.relay.example", reason: "r" };
        let again = one_of_several("api", "https://8k3jq0v5mwz2.relay.example", "http://localhost:5000");
        let events = [api, web, exchange("POST", "/a", Some(200)), again, closed, exchange("POST", "/b", Some(200))];
        let (out, _) = print(Output::Text, Style::default(), &events);
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[0], "https://8k3jq0v5mwz2.relay.example  api    http://localhost:4000");
        assert_eq!(lines[1], "https://hooks.relay.example         hooks  http://localhost:3000");
        assert_eq!(lines[2], "  inspect at http://127.0.0.1:4040");
        assert_eq!(out.matches("inspect at").count(), 1, "{out}");
        assert_eq!(lines[3..5], ["  curl --cacert /ca.pem https://8k3jq0v5mwz2.relay.example/", ""]);
        assert!(lines[5].starts_with("14:03:11 hooks POST    /a "), "{}", lines[5]);
        assert_eq!(lines[6], "https://8k3jq0v5mwz2.relay.example  api    http://localhost:5000");
        assert!(lines[7].starts_with("14:03:11 POST    /b "), "alone again: {}", lines[7]);
    }

    #[test]
    fn the_url_can_stand_alone_on_standard_output() {
        let mut printer = Printer::new(Output::Text, Style::default(), Some(TimeZone::UTC), Vec::new(), Vec::new());
        printer = printer.url_only(true);
        for event in [READY, exchange("GET", "/a", Some(200)), request(&[], b"hello", 5)] {
            printer.push_at(Duration::ZERO, &event);
        }
        printer.flush().unwrap();
        assert_eq!(printer.out, b"https://hooks.relay.example\n");
        let err = String::from_utf8(printer.err).unwrap();
        assert!(err.contains("forwards to") && err.contains(" /a ") && err.contains("  hello\n"), "{err}");
    }

    #[test]
    fn a_private_ca_comes_with_a_line_to_paste() {
        let event = Event::Ready {
            tunnel: "web",
            name: "a",
            url: "https://a.relay.localhost:8443",
            upstream: "http://localhost:3000",
            relay: "https://relay.localhost:8443",
            ca_file: Some("/home/o'neil/my ca.pem"),
            local_url: Some("https://localhost:8443"),
            inspector: Some("http://127.0.0.1:4040"),
        };
        let (out, _) = print(Output::Text, Style::default(), &[event]);
        assert_eq!(out.matches("  inspect at http://127.0.0.1:4040\n").count(), 1, "{out}");
        assert!(out.starts_with("https://a.relay.localhost:8443\n"), "{out}");
        assert!(out.contains(r"curl --cacert '/home/o'\''neil/my ca.pem' https://localhost:8443/"), "{out}");
        assert_eq!(Quoted("/home/me/ca.pem").to_string(), "/home/me/ca.pem");
        assert_eq!(Quoted("$(id)").to_string(), "'$(id)'");
        assert_eq!(Quoted("").to_string(), "''");
        assert_eq!(Quoted("=cat").to_string(), "'=cat'", "zsh would look for the program");
        assert_eq!(Quoted("it's").to_string(), r"'it'\''s'");
        assert_eq!(
            Quoted(r"\'a\").to_string(),
            r"\\\''a'\\",
            "nothing empty between: a setting of zsh reads that as a quote"
        );
        assert_eq!(Quoted("a\n\tb\u{1b}").to_string(), "'a\n\tb\\u{1b}'");
    }

    #[test]
    fn a_stranger_cannot_write_on_the_screen() {
        let path = "/\u{1b}[2J\r\n\u{9b}31m\u{202e}gnp.\u{2066}\u{2028}\u{7f}\0\u{200b}é日\u{e0041}";
        let text = line(Style::default(), &exchange("GE\u{1b}T", path, Some(200)));
        assert!(text.contains(r"GE\u{1b}T"), "{text}");
        assert!(text.contains(r"/\u{1b}[2J\u{d}\u{a}\u{9b}31m\u{202e}gnp.\u{2066}\u{2028}\u{7f}"));
        assert!(text.contains("é日"), "what is harmless stays readable: {text}");
        assert!(!text.chars().any(hazardous), "{text:?}");

        let (json, _) = print(Output::Json, Style::default(), &[READY, exchange("GET", path, None)]);
        assert!(!json.replace('\n', "").chars().any(hazardous), "{json:?}");
        let parsed: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
        assert_eq!(parsed["path"], json!(path), "the meaning is the same");
        let (_, err) = print(Output::Json, Style::default(), &[Event::Notice("a\nb\u{1b}")]);
        assert_eq!(err, "14:03:11 a\\u{a}b\\u{1b}\n");
    }

    #[test]
    fn lines_fit_the_terminal() {
        let long = format!("/{}", "x".repeat(300));
        for columns in [40, 60, 80, 200] {
            let style = Style { columns: Some(columns), ..Style::default() };
            let short = line(style, &exchange("GET", "/", Some(200)));
            let cut = line(style, &exchange("GET", &long, Some(200)));
            assert_eq!((short.chars().count(), cut.chars().count()), (columns - 1, columns - 1));
            assert!(cut.contains("x… 200 "), "{cut}");
            // The escape of six columns is kept whole or left out whole.
            for offset in 0..8 {
                let room = columns - if columns == 40 { 28 } else { 44 } - offset;
                let hostile = format!("/{}\u{1b}\u{1b}\u{1b}", "x".repeat(room));
                let cut = line(style, &exchange("GET", &hostile, Some(200)));
                assert_eq!(cut.chars().count(), columns - 1, "{cut}");
                assert_eq!(cut.matches('{').count(), cut.matches('}').count(), "{cut}");
            }
        }
        let narrow = line(Style { columns: Some(1), ..Style::default() }, &exchange("GET", &long, None));
        assert!(narrow.contains("/xxxxxxxxxx…"), "{narrow}");
        let uncut = line(Style::default(), &exchange("GET", &long, None));
        assert!(uncut.contains(&long));
        let method = line(Style::default(), &exchange(&"M".repeat(300), "/", None));
        assert!(method.len() < 120, "{method}");
    }

    #[test]
    fn wide_characters_keep_the_columns() {
        let style = Style { columns: Some(60), ..Style::default() };
        let long = "注文".repeat(20);
        for path in ["/注文/确认", "/😀", "/e\u{301}te\u{301}", &format!("/{long}"), &format!("/a{long}")] {
            let line = line(style, &exchange("GET", path, Some(200)));
            let (before, after) = line.split_once(" 200 ").unwrap();
            assert_eq!((before.width(), after.len()), (44, 10), "{line}");
        }
    }

    const TERMINAL: Style = Style { colour: false, columns: Some(80), sums: true, state_line: true };

    /// What a printer on a terminal has written since the last time: standard output, and standard error.
    fn written(printer: &mut Printer<Vec<u8>, Vec<u8>>) -> (String, String) {
        printer.flush().unwrap();
        let text = |bytes: &mut Vec<u8>| String::from_utf8(std::mem::take(bytes)).unwrap();
        (text(&mut printer.out), text(&mut printer.err))
    }

    fn on_terminal(output: Output, style: Style) -> Printer<Vec<u8>, Vec<u8>> {
        let mut printer = Printer::new(output, style, Some(TimeZone::UTC), Vec::new(), Vec::new());
        printer.push_at(NOW, &READY);
        printer
    }

    #[test]
    fn the_state_line_is_the_last_and_never_in_the_way() {
        let mut printer = on_terminal(Output::Text, TERMINAL);
        let up = "● connected since 14:03:11 · last heard 0 s ago";
        assert_eq!(written(&mut printer).1, up);
        assert_eq!(written(&mut printer), (String::new(), String::new()), "nothing has changed");
        printer.push_at(NOW, &exchange("GET", "/", Some(200)));
        let (out, err) = written(&mut printer);
        assert!(out.starts_with("14:03:11 GET ") && out.ends_with('\n'), "{out:?}");
        assert_eq!(err, format!("{ERASE_LINE}{up} · 1 request"), "erased before the line, and written behind it");
        printer.tick_at(NOW + Duration::from_secs(1));
        let up = "● connected since 14:03:11 · last heard 1 s ago · 1 request";
        assert_eq!(written(&mut printer), (String::new(), format!("{ERASE_LINE}{up}")));
        let lost = Event::Disconnected { reason: "the relay\u{1b} shuts down", retry_in_ms: 2500 };
        printer.push_at(NOW, &lost);
        let line = "○ reconnecting in 3 s · the relay\\u{1b} shuts down · lost at 14:03:11";
        let said = "14:03:11 disconnected: the relay\\u{1b} shuts down\n";
        assert_eq!(written(&mut printer).1, format!("{ERASE_LINE}{said}{line}"));
        printer.push_at(NOW + Duration::from_secs(3), &lost);
        assert_eq!(written(&mut printer).1, "", "the same is not said again, and the count begins anew");
        printer.close();
        assert_eq!(written(&mut printer), (String::new(), ERASE_LINE.to_owned()));
    }

    #[test]
    fn the_state_line_fits_the_terminal() {
        for columns in [1, 10, 20, 40, 60, 200] {
            let mut printer = on_terminal(Output::Text, Style { columns: Some(columns), ..TERMINAL });
            let (upstream, reason) = ("http://localhost:3000", "connection refused by 127.0.0.1:3000");
            printer.push_at(NOW, &Event::UpstreamDown { tunnel: "hooks", upstream, reason });
            let (_, err) = written(&mut printer);
            let line = err.rsplit('\n').next().unwrap().to_owned();
            assert!(line.chars().count() < columns, "{columns}: {line}");
            assert!(columns < 40 || line.starts_with("○ nothing listens on http://localhost:"), "{line}");
            assert!(columns < 200 || line.contains("http://localhost:3000 · connected"), "{line}");
        }
    }

    #[test]
    fn many_requests_are_summed_up_for_people_on_a_terminal_alone() {
        for (output, style, lines) in [
            (Output::Text, TERMINAL, 21),
            (Output::Text, TERMINAL.plain(), 200),
            (Output::Text, Style::default(), 200),
            (Output::Json, TERMINAL, 200),
        ] {
            let mut printer = on_terminal(output, style);
            written(&mut printer);
            for _ in 0..200 {
                printer.push_at(NOW, &exchange("GET", "/", Some(200)));
            }
            printer.tick_at(NOW + Duration::from_secs(1));
            let (out, err) = written(&mut printer);
            assert_eq!(out.lines().count(), lines, "{output:?} {style:?}");
            assert_eq!(printer.keeps_time(), lines == 21);
            assert_eq!(err.is_empty(), lines != 21, "no state line either: {err:?}");
            if lines == 21 {
                let sum = "14:03:11    180 more requests  180× 200  p50 12.2 ms  max 12.2 ms";
                assert_eq!(out.lines().last(), Some(sum));
            }
        }
    }

    #[test]
    fn what_failures_have_in_common_is_said_once() {
        let failed = |detail| Event::Exchange {
            tunnel: "hooks",
            id: "7",
            method: "GET",
            path: "/",
            status: Some(502),
            duration_ms: 1.0,
            error: Some("upstream-invalid"),
            detail,
            webhook: None,
            delivery: None,
        };
        for output in [Output::Text, Output::Json] {
            let events =
                [READY, failed(Some("it broke off")), failed(Some("it broke off")), failed(Some("it is HTTP/0.9"))];
            let (out, err) = print(output, Style::default(), &events);
            assert!(!out.contains("broke"), "{out}");
            assert_eq!(err, "14:03:11 7: it broke off\n14:03:11 7: it is HTTP/0.9\n");
        }
    }

    #[test]
    fn what_the_relay_has_refused_is_told_with_its_reason() {
        let withheld = |count| Event::Withheld {
            tunnel: "hooks",
            count,
            id: "7",
            method: "POST",
            path: "/hooks\u{1b}",
            remote: "203.0.113.9",
            error: "signature-invalid",
            provider: Some("stripe"),
            verdict: "bad_signature",
            reason: "another secret signed it",
        };
        let events = [READY, withheld(1), withheld(12)];
        let (_, err) = print(Output::Text, Style::default(), &events);
        let [first, second] = err.lines().collect::<Vec<_>>()[..] else { panic!("{err}") };
        assert!(first.starts_with("14:03:11 the relay has refused POST /hooks"), "{first}");
        assert!(!err.contains('\u{1b}'), "{err}");
        let reason = "signature-invalid, bad signature: another secret signed it";
        assert!(first.ends_with(&format!(" from 203.0.113.9: {reason}")), "{first}");
        assert!(second.ends_with(&format!(" from 203.0.113.9, the last of 12: {reason}")), "{second}");
        let (out, _) = print(Output::Json, Style::default(), &events);
        let line: Value = serde_json::from_str(out.lines().nth(2).unwrap()).unwrap();
        let said = json!({
            "event": "requests.withheld", "tunnel": "hooks", "count": 12, "id": "7", "method": "POST", "path": "/hooks\u{1b}",
            "remote": "203.0.113.9", "error": "signature-invalid", "provider": "stripe", "verdict": "bad_signature",
            "reason": "another secret signed it",
        });
        assert_eq!(line, said);
    }

    #[test]
    fn a_service_that_is_not_there_is_named_with_what_to_do() {
        let (upstream, reason) = ("http://localhost:3000", "connection refused by 127.0.0.1:3000 and [::1]:3000");
        let events = [
            READY,
            Event::UpstreamDown { tunnel: "hooks", upstream, reason },
            Event::UpstreamUp { tunnel: "hooks", upstream },
        ];
        let (_, err) = print(Output::Text, Style::default(), &events);
        let expected = "14:03:11 nothing listens on http://localhost:3000 (connection refused by 127.0.0.1:3000 and \
                        [::1]:3000); start your service, or give its address: until then callers get 502\n\
                        14:03:11 the service on http://localhost:3000 answers\n";
        assert_eq!(err, expected);
        let (out, err) = print(Output::Json, Style::default(), &events);
        assert_eq!(err, "");
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[1],
            json!({"event": "upstream.down", "tunnel": "hooks", "upstream": upstream, "reason": reason})
        );
        assert_eq!(lines[2], json!({"event": "upstream.up", "tunnel": "hooks", "upstream": upstream}));
    }

    #[test]
    fn outcomes_have_colours() {
        let style = Style { colour: true, ..Style::default() };
        for (status, colour) in
            [(Some(204), GREEN), (Some(302), CYAN), (Some(404), YELLOW), (Some(500), RED), (None, RED)]
        {
            assert!(line(style, &exchange("GET", "/", status)).contains(colour), "{status:?}");
            assert!(!line(Style::default(), &exchange("GET", "/", status)).contains('\x1b'));
        }
    }

    fn request<'a>(headers: &'a [(String, String)], bytes: &'a [u8], size: usize) -> Event<'a> {
        let body_truncated = size > bytes.len();
        Event::Request {
            id: "01J",
            method: "POST",
            path: "/hooks",
            status: Some(200),
            headers,
            body: Body::new(bytes, body_truncated),
            body_size: size as u64,
            body_truncated,
        }
    }

    /// What follows the first line, as people see it.
    fn shown(bytes: &[u8], size: usize) -> String {
        let (out, _) = print(Output::Text, Style::default(), &[request(&[], bytes, size)]);
        let (first, rest) = out.split_once('\n').unwrap();
        assert!(first.starts_with("14:03:11 POST    /hooks "), "{first}");
        assert!(!rest.chars().any(|c| hazardous(c) && !matches!(c, '\n' | '\t')), "{rest:?}");
        rest.to_owned()
    }

    #[test]
    fn a_request_in_json_has_its_headers_and_its_body() {
        let headers = [("host".to_owned(), "a".to_owned()), ("x".to_owned(), "\u{1b}".to_owned())];
        let (out, _) = print(Output::Json, Style::default(), &[READY, request(&headers, "é\n".as_bytes(), 3)]);
        let expected = r#"{"event":"request","id":"01J","method":"POST","path":"/hooks","status":200,"headers":[["host","a"],["x","\u001b"]],"body":"é\n","body_size":3,"body_truncated":false}"#;
        assert_eq!(out.lines().nth(1), Some(expected));
        let (out, _) = print(Output::Json, Style::default(), &[READY, request(&[], b"\xff\x00a", 9)]);
        assert!(out.contains(r#""body_base64":"/wBh","body_size":9,"body_truncated":true"#), "{out}");
        let half = "aé".as_bytes().get(..2).unwrap();
        assert_eq!(Body::new(half, true), Body::Text("a"), "the other half was cut off");
        assert_eq!(Body::new(half, false), Body::Bytes(half));
    }

    #[test]
    fn people_see_the_headers_of_the_sender() {
        let pairs = [("host", "a"), ("x-forwarded-for", "1.2.3.4"), ("x-real-ip", "1.2.3.4"), ("x-request-id", "01J")];
        let own = [("relay-request-id", "01J"), ("x-request-id", "mine")];
        let headers: Vec<_> = pairs.iter().chain(&own).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let (out, _) = print(Output::Text, Style::default(), &[request(&headers, b"", 0)]);
        let (_, shown) = out.split_once('\n').unwrap();
        assert_eq!(shown, "  host: a\n  x-forwarded-for: 1.2.3.4\n  x-request-id: mine\n\n");
    }

    #[test]
    fn json_is_shown_as_its_sender_wrote_it_and_readable() {
        let json = br#" {"b" : [1.0,  12345678901234567890123, {}, [ ]],"a":"x, {y}: \"\\","c":{"d":null}} "#;
        let expected = r#"
  {
    "b": [
      1.0,
      12345678901234567890123,
      {},
      []
    ],
    "a": "x, {y}: \"\\",
    "c": {
      "d": null
    }
  }

"#;
        assert_eq!(shown(json, json.len()), expected);
        assert_eq!(shown("{\"\u{202e}\":1}".as_bytes(), 9), "\n  {\n    \"\\u{202e}\": 1\n  }\n\n");
        assert_eq!(shown(b"{\"a\":", 5), "\n  {\"a\":\n\n", "broken JSON is text");
        let deep = ["[".repeat(100), "]".repeat(100)].concat();
        assert!(shown(deep.as_bytes(), 200).len() < 20_000);
    }

    #[test]
    fn other_bodies_are_shown_as_far_as_they_can_be_read() {
        assert_eq!(shown(b"", 0), "\n");
        assert_eq!(shown(b"a=1\r\n\tb\x1b[2J\n", 12), "\n  a=1\n  \tb\\u{1b}[2J\n\n");
        assert_eq!(shown(b"a\xff", 2), "\n  00000000  61 ff                                             a.\n\n");
        let all: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let hex = shown(&all, 1000);
        assert!(
            hex.contains("  00000060  60 61 62 63 64 65 66 67  68 69 6a 6b 6c 6d 6e 6f  `abcdefghijklmno\n"),
            "{hex}"
        );
        assert!(hex.ends_with("  … 744 more bytes are not shown\n\n"), "{hex}");
        assert!(shown(b"abc", 1000).ends_with("  abc\n  … 997 more bytes were not kept\n\n"));
        let long = "é".repeat(TEXT_SHOWN);
        assert!(shown(long.as_bytes(), long.len()).ends_with("… 65536 more bytes are not shown\n\n"));
    }

    #[test]
    fn odd_durations_are_still_json() {
        for odd in [f64::NAN, f64::INFINITY] {
            let event = Event::Exchange {
                tunnel: "",
                id: "",
                method: "",
                path: "",
                status: None,
                duration_ms: odd,
                error: None,
                detail: None,
                webhook: None,
                delivery: None,
            };
            let (out, _) = print(Output::Json, Style::default(), &[READY, event]);
            assert!(out.contains(r#""duration_ms":0.0"#), "{out}");
        }
    }

    #[test]
    fn a_flush_is_one_write_and_a_closed_pipe_is_told() {
        struct Counted(usize, bool);
        impl Write for Counted {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.1 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for closed in [false, true] {
            let out = Counted(0, closed);
            let mut printer = Printer::new(Output::Text, Style::default(), Some(TimeZone::UTC), out, io::sink());
            for _ in 0..1000 {
                printer.push_at(NOW, &exchange("GET", "/", Some(200)));
            }
            let result = printer.flush();
            assert_eq!(printer.out.0, 1);
            assert_eq!(result.map_err(|error| error.kind()).err(), closed.then_some(io::ErrorKind::BrokenPipe));
            assert_eq!(printer.pending(), 0);
        }
    }
}
