//! `--tui`: the whole terminal as a list of requests, and what is known of the one that is chosen.
//!
//! ```text
//! https://hooks.relay.example  forwards to http://localhost:3000
//! 14:03:12 POST    /hooks?a=1        200    12.3 ms │ POST /hooks?a=1
//! 14:03:11 GET     /favicon.ico      404     3.0 ms │ content-type: application/json
//! ● connected since 14:03:11 · last heard 2 s ago · 2 requests
//! ↑↓ choose  Enter detail  c copy as curl  ? help  q quit
//! ```
//!
//! [`View`] is pure: events, keys and the time go in, a frame comes out. [`FullScreen`] is the terminal that it is drawn on.

use std::collections::VecDeque;
use std::io::{self, Stdout, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{execute, terminal as tty};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, Wrap};
use ratatui::{Frame, Terminal};

use crate::capture::Captured;
use crate::event::{Body, Event, beside};
use crate::platform;
use crate::terminal::state_line::StateLine;
use crate::terminal::{
    CYAN, Clock, GREEN, Part, Quoted, RED, Shown, YELLOW, compact, hazardous, is_added, outcome_colour, plain_body,
};

/// Requests that are listed.
const ROWS: usize = 1000;

/// Bytes of a path that the list keeps; a detail has all of it.
const PATH: usize = 1024;

/// Bytes of what can be copied: terminals take about this much at once.
const COPY: usize = 48 * 1024;

/// Below this many columns the detail stands under the list, and not beside it.
const WIDE: u16 = 100;

/// What a key asks of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To end.
    Quit,
    /// What Ctrl-C asks for where nobody reads keys.
    Interrupt,
    /// What Ctrl-Z asks for there.
    Suspend,
    /// To put this on the clipboard.
    Copy(String),
}

/// What is shown, and what of it is chosen.
#[derive(Debug, Default)]
pub(crate) struct View {
    tunnels: Vec<Tunnel>,
    /// The newest first.
    rows: VecDeque<Entry>,
    /// Requests so far, which numbers them.
    count: u64,
    /// The number of the one that is chosen; none for the newest, whichever that is.
    chosen: Option<u64>,
    detail: bool,
    scroll: u16,
    help: bool,
    /// The last thing that was said to people.
    said: String,
    state: StateLine,
    /// The detail that was shown last, and of which request.
    known: Option<(u64, Vec<String>)>,
}

#[derive(Debug)]
struct Tunnel {
    tunnel: String,
    url: String,
    upstream: String,
    ca_file: Option<String>,
    local_url: Option<String>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    at: Duration,
    tunnel: String,
    id: String,
    method: String,
    path: String,
    status: Option<u16>,
    duration_ms: Option<f64>,
    error: Option<String>,
    detail: Option<String>,
    webhook: Option<String>,
}

impl View {
    /// Takes in what happened at this time, after 1970.
    pub(crate) fn observe(&mut self, now: Duration, event: &Event<'_>) {
        self.state.observe(now, event);
        match event {
            Event::Ready { tunnel, url, upstream, ca_file, local_url, .. } => {
                self.tunnels.retain(|known| known.tunnel != *tunnel);
                self.tunnels.push(Tunnel {
                    tunnel: (*tunnel).to_owned(),
                    url: Shown(url).to_string(),
                    upstream: Shown(upstream).to_string(),
                    ca_file: ca_file.map(str::to_owned),
                    local_url: local_url.map(str::to_owned),
                });
            }
            Event::Closed { tunnel, url, reason, .. } => {
                self.tunnels.retain(|known| known.tunnel != *tunnel);
                self.said = format!("{url} has ended: {reason}");
            }
            Event::Exchange { tunnel, id, method, path, status, duration_ms, error, detail, webhook, delivery } => self
                .add(Entry {
                    number: 0,
                    at: now,
                    tunnel: (*tunnel).to_owned(),
                    id: (*id).to_owned(),
                    method: (*method).to_owned(),
                    path: clipped(path),
                    status: *status,
                    duration_ms: Some(*duration_ms),
                    error: error.map(str::to_owned),
                    detail: detail.map(str::to_owned),
                    webhook: beside(webhook.as_ref(), *delivery, *duration_ms),
                }),
            Event::Request { id, method, path, status, .. } => self.add(Entry {
                number: 0,
                at: now,
                tunnel: self.tunnels.first().map(|tunnel| tunnel.tunnel.clone()).unwrap_or_default(),
                id: (*id).to_owned(),
                method: (*method).to_owned(),
                path: clipped(path),
                status: *status,
                duration_ms: None,
                error: None,
                detail: None,
                webhook: None,
            }),
            Event::Notice(text) => self.said = (*text).to_owned(),
            Event::Refused { tunnel, reason, .. } => self.said = format!("the tunnel {tunnel} is refused: {reason}"),
            Event::Withheld { count, method, path, reason, .. } => {
                self.said = format!("refused by the relay: {count}, last {method} {}: {reason}", clipped(path));
            }
            // There are no lines here.
            Event::Unread { .. } => {}
            Event::Rejected { reason } => self.said = format!("the new configuration is wrong: {reason}"),
            Event::UpstreamDown { upstream, reason, .. } => {
                self.said =
                    format!("nothing listens on {upstream} ({reason}); start your service, or give its address");
            }
            Event::UpstreamUp { upstream, .. } => self.said = format!("the service on {upstream} answers"),
            Event::Disconnected { reason, .. } => self.said = format!("disconnected: {reason}"),
            Event::Reconnected { relay, .. } => self.said = format!("connected again to {relay}"),
            Event::Inbox { tunnel, state } => self.said = format!("inbox of {tunnel}: {state}"),
            Event::Connecting { .. } | Event::Heard { .. } => {}
        }
    }

    fn add(&mut self, mut entry: Entry) {
        self.count += 1;
        entry.number = self.count;
        self.rows.push_front(entry);
        self.rows.truncate(ROWS);
        // The one that was chosen may have gone.
        let oldest = self.rows.back().map_or(0, |entry| entry.number);
        self.chosen = self.chosen.map(|chosen| chosen.max(oldest));
    }

    /// Takes in a key. `look` finds what was sent with the request of an id.
    pub(crate) fn key(&mut self, key: KeyEvent, look: impl Fn(&str) -> Option<Captured>) -> Option<Wish> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let help = std::mem::take(&mut self.help);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Some(Wish::Interrupt),
            KeyCode::Char('z') if key.modifiers.contains(KeyModifiers::CONTROL) => return Some(Wish::Suspend),
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?') => self.help = !help,
            KeyCode::Enter | KeyCode::Right => self.detail = true,
            KeyCode::Esc | KeyCode::Left if self.detail => self.detail = false,
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            KeyCode::Home | KeyCode::Char('g') => self.choose(-i64::MAX),
            KeyCode::End | KeyCode::Char('G') => self.choose(i64::MAX),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll = self.scroll.saturating_add(10),
            KeyCode::Char('c') => return self.copy(look),
            _ => {}
        }
        None
    }

    fn choose(&mut self, by: i64) {
        let at = i64::try_from(self.at()).unwrap_or(i64::MAX).saturating_add(by);
        let last = self.rows.len().saturating_sub(1);
        let at = usize::try_from(at.max(0)).unwrap_or(usize::MAX).min(last);
        self.scroll = 0;
        // The first one is whichever comes.
        self.chosen = self.rows.get(at).filter(|_| at > 0).map(|entry| entry.number);
    }

    /// The row that is chosen.
    fn at(&self) -> usize {
        let is_it = |entry: &Entry| Some(entry.number) == self.chosen;
        self.rows.iter().position(is_it).unwrap_or(0)
    }

    fn copy(&mut self, look: impl Fn(&str) -> Option<Captured>) -> Option<Wish> {
        let entry = self.rows.get(self.at())?;
        let tunnel = self.tunnels.iter().find(|tunnel| tunnel.tunnel == entry.tunnel).or(self.tunnels.first());
        let content = look(&entry.id);
        let line = tunnel.and_then(|tunnel| curl(entry, tunnel, content.as_ref()));
        match line {
            Some(line) => {
                self.said = "copied, if your terminal lets programs do it".to_owned();
                Some(Wish::Copy(line))
            }
            None => {
                self.said = "this request cannot be copied: it is too large, no text, or was not kept whole".to_owned();
                None
            }
        }
    }

    /// Draws it all, as of this time. `look` is as for [`View::key`].
    pub(crate) fn draw(
        &mut self,
        frame: &mut Frame<'_>,
        now: Duration,
        clock: &mut Clock,
        look: impl Fn(&str) -> Option<Captured>,
    ) {
        let tunnels = u16::try_from(self.tunnels.len().clamp(1, 4)).unwrap_or(4);
        let parts = [Constraint::Length(tunnels), Constraint::Fill(1), Constraint::Length(1), Constraint::Length(1)];
        let [top, middle, state, keys] = Layout::vertical(parts).areas(frame.area());
        let lines: Vec<Line<'_>> = self
            .tunnels
            .iter()
            .map(|tunnel| {
                let url = Span::styled(tunnel.url.as_str(), Style::new().add_modifier(Modifier::BOLD));
                Line::from(vec![url, Span::raw(format!("  forwards to {}", tunnel.upstream))])
            })
            .collect();
        frame.render_widget(Paragraph::new(lines), top);
        if self.help {
            frame.render_widget(Paragraph::new(HELP).wrap(Wrap { trim: false }), middle);
        } else if self.detail && !self.rows.is_empty() {
            let halves = [Constraint::Fill(1), Constraint::Fill(1)];
            let wide = middle.width >= WIDE;
            let [list, detail] = if wide { Layout::horizontal(halves) } else { Layout::vertical(halves) }.areas(middle);
            self.draw_list(frame, list, clock);
            let border = if wide { Borders::LEFT } else { Borders::TOP };
            self.draw_detail(frame, detail, border, look);
        } else {
            self.draw_list(frame, middle, clock);
        }
        let parts = self.state.parts(now, clock);
        let spans =
            parts.iter().enumerate().flat_map(|(i, part)| [Span::raw(if i > 0 { " · " } else { "" }), span(part)]);
        frame.render_widget(Line::from_iter(spans), state);
        let last = if self.said.is_empty() { KEYS.to_owned() } else { format!("{KEYS}  │ {}", Shown(&self.said)) };
        frame.render_widget(Line::styled(last, Style::new().add_modifier(Modifier::DIM)), keys);
    }

    fn draw_list(&self, frame: &mut Frame<'_>, area: Rect, clock: &mut Clock) {
        if self.rows.is_empty() {
            frame.render_widget(Paragraph::new("\n  no request yet"), area);
            return;
        }
        let (at, height) = (self.at(), usize::from(area.height));
        let first = (at + 1).saturating_sub(height);
        let narrow = area.width < 60;
        let several = self.tunnels.len() > 1 && !narrow;
        let rows = self.rows.iter().enumerate().skip(first).take(height).map(|(i, entry)| {
            let outcome = Style::new().fg(colour(outcome_colour(entry.status)));
            let status = entry.status.map_or("---".to_owned(), |status| status.to_string());
            let time = entry.duration_ms.map(compact).unwrap_or_default();
            let method: String = Shown(&entry.method).to_string().chars().take(7).collect();
            let mut cells = Vec::with_capacity(6);
            if !narrow {
                let second = i64::try_from(entry.at.as_secs()).unwrap_or(i64::MAX);
                cells.push(Line::raw(clock.at(second).to_owned()));
            }
            if several {
                cells.push(Line::raw(Shown(&entry.tunnel).to_string()));
            }
            cells.push(Line::raw(method));
            cells.push(Line::raw(Shown(&entry.path).to_string()));
            cells.push(Line::styled(status, outcome));
            cells.push(Line::raw(time).right_aligned());
            if !narrow {
                cells.push(Line::styled(entry.error.clone().unwrap_or_default(), outcome));
            }
            let style = if i == at { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            Row::new(cells).style(style)
        });
        let length = Constraint::Length;
        let mut widths = vec![length(7), Constraint::Fill(1), length(3), length(10)];
        if several {
            let longest = self.tunnels.iter().map(|tunnel| tunnel.tunnel.chars().count()).max().unwrap_or(0);
            widths.insert(0, length(u16::try_from(longest).unwrap_or(u16::MAX).min(16)));
        }
        if !narrow {
            widths.insert(0, length(8));
            let longest = self.rows.iter().skip(first).take(height).filter_map(|entry| entry.error.as_ref());
            let longest = longest.map(String::len).max().unwrap_or(0);
            widths.push(length(u16::try_from(longest).unwrap_or(u16::MAX).min(24)));
        }
        frame.render_widget(Table::new(rows, widths), area);
    }

    fn draw_detail(
        &mut self,
        frame: &mut Frame<'_>,
        area: Rect,
        border: Borders,
        look: impl Fn(&str) -> Option<Captured>,
    ) {
        let Some(entry) = self.rows.get(self.at()) else { return };
        if self.known.as_ref().is_none_or(|(number, _)| *number != entry.number) {
            self.known = Some((entry.number, detail(entry, look(&entry.id).as_ref())));
        }
        let lines = self.known.as_ref().map(|(_, lines)| lines.as_slice()).unwrap_or_default();
        let most = u16::try_from(lines.len().saturating_sub(1)).unwrap_or(u16::MAX);
        self.scroll = self.scroll.min(most);
        let shown = lines.iter().skip(self.scroll.into()).take(area.height.into());
        let text: Vec<Line<'_>> = shown.map(|line| Line::raw(line.as_str())).collect();
        frame.render_widget(Paragraph::new(text).block(Block::new().borders(border)), area);
    }
}

const KEYS: &str = "↑↓ choose  Enter detail  c copy as curl  ? help  q quit";

const HELP: &str = "
  ↑ ↓, k j          choose a request; at the top the newest one stays chosen
  Home End, g G     the newest and the oldest
  Enter, →          what was sent with it
  Esc, ←            only the list
  PageUp PageDown   scroll in it
  c                 copy the request as a curl line
  Ctrl-Z            stop until fg; requests are not answered meanwhile
  q, Ctrl-C         end the tunnel, and this
";

fn clipped(path: &str) -> String {
    path.get(..path.floor_char_boundary(PATH)).unwrap_or_default().to_owned()
}

fn colour(sequence: &str) -> Color {
    match sequence {
        RED => Color::Red,
        GREEN => Color::Green,
        YELLOW => Color::Yellow,
        CYAN => Color::Cyan,
        _ => Color::Reset,
    }
}

fn span(part: &Part) -> Span<'static> {
    Span::styled(Shown(&part.text).to_string(), Style::new().fg(colour(part.colour)))
}

/// All that is known of a request, in lines.
fn detail(entry: &Entry, content: Option<&Captured>) -> Vec<String> {
    let path = content.map_or(&entry.path, |content| &content.path);
    let mut lines = vec![format!(" {} {}", Shown(&entry.method), Shown(path))];
    let status = entry.status.map_or("no answer".to_owned(), |status| status.to_string());
    let time = entry.duration_ms.map(|time| format!(" in {}", compact(time))).unwrap_or_default();
    let error = entry.error.as_ref().map(|error| format!(", {}", Shown(error))).unwrap_or_default();
    let webhook = entry.webhook.as_ref().map(|webhook| format!(" {}", Shown(webhook))).unwrap_or_default();
    lines.push(format!(" {status}{time}{webhook}{error}"));
    lines.extend(entry.detail.as_ref().map(|detail| format!(" {}", Shown(detail))));
    lines.push(format!(" {} {}", Shown(&entry.tunnel), Shown(&entry.id)));
    lines.push(String::new());
    let Some(Captured { headers, body, body_size, body_truncated, .. }) = content else {
        lines.push(" its headers and its body are not kept".to_owned());
        return lines;
    };
    lines.extend(headers.iter().map(|(name, value)| format!(" {}: {}", Shown(name), Shown(value))));
    lines.push(String::new());
    let body = plain_body(Body::new(body, *body_truncated), *body_size, *body_truncated);
    lines.extend(body.lines().map(|line| line.replace('\t', "    ")));
    lines
}

/// The request as a line for a shell; none where not all of it is there, or a terminal that it is pasted into may obey what
/// stands in it.
fn curl(entry: &Entry, tunnel: &Tunnel, content: Option<&Captured>) -> Option<String> {
    let Captured { path, headers, body, body_size, .. } = content.filter(|content| !content.body_truncated)?;
    let has = |name: &str| headers.iter().any(|(known, _)| known == name);
    let has_body = *body_size > 0 || has("content-length");
    let mut words = vec!["curl".to_owned()];
    if let Some(ca) = &tunnel.ca_file {
        words.extend(["--cacert".to_owned(), ca.clone()]);
    }
    // curl makes several requests of braces and brackets, and takes dots out of a path.
    if path.contains(['[', ']', '{', '}']) {
        words.push("--globoff".to_owned());
    }
    if path.contains("/.") || path.to_ascii_lowercase().contains("/%2e") {
        words.push("--path-as-is".to_owned());
    }
    // With another method curl would wait for the body of an answer that has none.
    if entry.method == "HEAD" && !has_body {
        words.push("--head".to_owned());
    } else {
        words.extend(["-X".to_owned(), entry.method.clone()]);
    }
    // The local URL, because not every resolver knows names below `.localhost`.
    words.push(format!("{}{path}", tunnel.local_url.as_ref().unwrap_or(&tunnel.url)));
    // What belongs to the connection curl says by itself, and what the relay adds it adds again.
    let own = ["host", "content-length", "transfer-encoding", "connection", "x-forwarded-for"];
    let theirs = |name: &str, value: &str| !own.contains(&name) && !is_added(name, value, &entry.id);
    for (name, value) in headers.iter().filter(|(name, value)| theirs(name, value)) {
        // A colon with nothing behind it takes a header away.
        let header = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        words.extend(["-H".to_owned(), header]);
    }
    // What curl would add where the sender had none.
    let added = ["accept", "user-agent", "content-type"].into_iter().filter(|name| has_body || *name != "content-type");
    for name in added.filter(|name| !has(name)) {
        words.extend(["-H".to_owned(), format!("{name}:")]);
    }
    if has_body {
        words.extend(["--data-raw".to_owned(), String::from_utf8(body.clone()).ok()?]);
    }
    let harmless = |character: char| matches!(character, '\n' | '\t') || !hazardous(character);
    if !words.iter().all(|word| word.chars().all(harmless)) {
        return None;
    }
    let line = words.iter().map(|word| Quoted(word).to_string()).collect::<Vec<_>>().join(" ");
    (line.len() <= COPY).then_some(line)
}

/// A terminal that shows nothing else. It is given back when this is dropped, and where the program panics.
pub(crate) struct FullScreen {
    taken: Taken,
    terminal: Terminal<CrosstermBackend<Stdout>>,
    pub(crate) view: View,
    clock: Clock,
}

impl std::fmt::Debug for FullScreen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FullScreen").field("view", &self.view).finish_non_exhaustive()
    }
}

impl FullScreen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn open() -> io::Result<Self> {
        let taken = Taken::default();
        let (before, at_panic) = (std::panic::take_hook(), taken.clone());
        std::panic::set_hook(Box::new(move |panic| {
            at_panic.give_back();
            before(panic);
        }));
        let opened = taken.take().and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        if opened.is_err() {
            taken.give_back();
        }
        Ok(Self { taken, terminal: opened?, view: View::default(), clock: Clock::new(None) })
    }

    /// Whether it still has the terminal: a panic has given it back, also one that did not end the program.
    pub(crate) fn is_open(&self) -> bool {
        self.taken.0.load(Relaxed)
    }

    /// Gives the terminal back while the process is stopped.
    ///
    /// # Errors
    /// Where it cannot be had again.
    pub(crate) fn suspend(&mut self) -> io::Result<()> {
        self.taken.give_back();
        platform::suspend();
        self.taken.take()?;
        self.terminal.clear()
    }

    /// Draws what there is, as of this time after 1970.
    ///
    /// # Errors
    /// Where the terminal is gone.
    pub(crate) fn draw(&mut self, now: Duration, look: impl Fn(&str) -> Option<Captured>) -> io::Result<()> {
        let Self { terminal, view, clock, .. } = self;
        terminal.draw(|frame| view.draw(frame, now, clock, look)).map(|_| ())
    }

    /// Asks the terminal to put this on the clipboard (OSC 52 of xterm's control sequences).
    pub(crate) fn copy(&mut self, text: &str) {
        let mut out = io::stdout();
        // A terminal that does not know it shows nothing.
        let _ = write!(out, "\x1b]52;c;{}\x07", STANDARD.encode(text)).and_then(|()| out.flush());
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        self.taken.give_back();
    }
}

/// Whether we have the terminal. It is given back once: the second time would move the cursor into what was written since.
#[derive(Clone, Debug, Default)]
struct Taken(Arc<AtomicBool>);

impl Taken {
    fn take(&self) -> io::Result<()> {
        self.0.store(true, Relaxed);
        tty::enable_raw_mode()?;
        execute!(io::stdout(), tty::EnterAlternateScreen)
    }

    fn give_back(&self) {
        if self.0.swap(false, Relaxed) {
            let _ = execute!(io::stdout(), tty::LeaveAlternateScreen, crossterm::cursor::Show);
            let _ = tty::disable_raw_mode();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use jiff::tz::TimeZone;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::event::READY;

    const NOW: Duration = Duration::from_secs(14 * 3600 + 3 * 60 + 11);

    fn exchange<'a>(id: &'a str, path: &'a str, status: Option<u16>) -> Event<'a> {
        let error = (status == Some(502)).then_some("upstream-refused");
        Event::Exchange {
            tunnel: "hooks",
            id,
            method: "POST",
            path,
            status,
            duration_ms: 12.25,
            error,
            detail: None,
            webhook: None,
            delivery: None,
        }
    }

    fn view() -> View {
        let mut view = View::default();
        view.observe(NOW, &READY);
        view
    }

    fn content(id: &str) -> Option<Captured> {
        let headers = vec![("host".to_owned(), "a".to_owned()), ("x-a".to_owned(), "it's".to_owned())];
        let body = b"{\"a\":\"it's\"}".to_vec();
        Some(Captured {
            seq: 1,
            tunnel: None,
            at_ms: 0,
            id: id.to_owned(),
            method: "POST".to_owned(),
            path: "/hooks?a=1".to_owned(),
            headers,
            body_size: body.len() as u64,
            body,
            body_truncated: false,
            answer: None,
        })
    }

    fn drawn(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let mut clock = Clock::new(Some(TimeZone::UTC));
        terminal.draw(|frame| view.draw(frame, NOW, &mut clock, content)).unwrap();
        terminal.backend().to_string()
    }

    fn press(view: &mut View, code: KeyCode) -> Option<Wish> {
        view.key(KeyEvent::new(code, KeyModifiers::NONE), content)
    }

    #[test]
    fn the_newest_request_stands_first() {
        let mut view = view();
        assert!(drawn(&mut view, 80, 10).contains("no request yet"));
        view.observe(NOW, &exchange("1", "/first", Some(200)));
        view.observe(NOW, &exchange("2", "/second\u{1b}[2J\u{202e}", Some(502)));
        let text = drawn(&mut view, 80, 10);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("https://hooks.relay.example  forwards to http://localhost:3000"), "{text}");
        assert!(lines[1].contains("14:03:11 POST    /second\\u{1b}[2J\\u{202e}"), "{text}");
        assert!(lines[1].contains("502    12.2 ms upstream-refused"), "{text}");
        assert!(lines[2].contains("/first"), "{text}");
        assert!(lines[8].contains("● connected since 14:03:11 · last heard 0 s ago · 2 requests"), "{text}");
        assert!(lines[9].contains("q quit"), "{text}");
    }

    #[test]
    fn the_one_that_is_chosen_stays_chosen() {
        let mut view = view();
        for n in 0..5 {
            view.observe(NOW, &exchange(&n.to_string(), "/", Some(200)));
        }
        let chosen = |view: &View| view.rows[view.at()].id.clone();
        assert_eq!(chosen(&view), "4", "the newest");
        press(&mut view, KeyCode::Down);
        press(&mut view, KeyCode::Down);
        assert_eq!(chosen(&view), "2");
        view.observe(NOW, &exchange("5", "/", Some(200)));
        assert_eq!(chosen(&view), "2");
        press(&mut view, KeyCode::End);
        press(&mut view, KeyCode::Down);
        assert_eq!(chosen(&view), "0");
        for n in 6..2000 {
            view.observe(NOW, &exchange(&n.to_string(), "/", Some(200)));
        }
        assert_eq!((view.rows.len(), chosen(&view).as_str()), (ROWS, "1000"), "what has gone cannot be chosen");
        assert!(drawn(&mut view, 80, 10).contains("POST"), "and is scrolled to");
        press(&mut view, KeyCode::Home);
        view.observe(NOW, &exchange("2000", "/", Some(200)));
        assert_eq!(chosen(&view), "2000", "the newest again");
    }

    #[test]
    fn a_detail_shows_what_was_sent_and_nothing_else() {
        let mut view = view();
        view.observe(NOW, &exchange("1", "/hooks?a=1", Some(200)));
        press(&mut view, KeyCode::Enter);
        for (width, height) in [(120, 20), (60, 30), (40, 24)] {
            let text = drawn(&mut view, width, height);
            for part in ["200 in 12.2 ms", "x-a: it's", "\"a\": \"it's\"", "POST /hooks?a=1"] {
                assert!(text.contains(part), "{width}: no {part}\n{text}");
            }
        }
        press(&mut view, KeyCode::PageDown);
        assert!(!drawn(&mut view, 120, 20).contains("200 in"));
        press(&mut view, KeyCode::Esc);
        assert!(!drawn(&mut view, 120, 20).contains("x-a"));
    }

    #[test]
    fn keys_ask_for_what_they_say() {
        let mut view = view();
        assert_eq!(press(&mut view, KeyCode::Char('c')), None, "there is nothing to copy");
        view.observe(NOW, &exchange("1", "/hooks?a=1", Some(200)));
        let Some(Wish::Copy(line)) = press(&mut view, KeyCode::Char('c')) else { panic!("not copied") };
        let expected = "curl -X POST 'https://hooks.relay.example/hooks?a=1' -H 'x-a: it'\\''s' -H accept: -H user-agent: \
                        -H content-type: --data-raw '{\"a\":\"it'\\''s\"}'";
        assert_eq!(line, expected);
        view.tunnels[0].ca_file = Some("/my ca.pem".to_owned());
        view.tunnels[0].local_url = Some("https://localhost:8443".to_owned());
        let Some(Wish::Copy(line)) = press(&mut view, KeyCode::Char('c')) else { panic!("not copied") };
        let expected = "curl --cacert '/my ca.pem' -X POST 'https://localhost:8443/hooks?a=1' ";
        assert!(line.starts_with(expected), "as pasted where the tunnel is nobody else's: {line}");
        press(&mut view, KeyCode::Char('?'));
        assert!(drawn(&mut view, 80, 20).contains("copy the request"));
        assert!(drawn(&mut view, 34, 30).contains("meanwhile"), "nothing is cut");
        press(&mut view, KeyCode::Down);
        assert!(!drawn(&mut view, 80, 20).contains("copy the request"), "any key ends the help");
        assert_eq!(press(&mut view, KeyCode::Char('q')), Some(Wish::Quit));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.key(interrupt, content), Some(Wish::Interrupt));
        let suspend = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::CONTROL);
        assert_eq!(view.key(suspend, content), Some(Wish::Suspend));
    }

    /// Run once more in a terminal, this is a program in which a panic ends something and not everything.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        const NAME: &str = "terminal::full_screen::tests::a_panic_gives_the_terminal_back";
        if std::env::var_os("IN_A_TERMINAL").is_some() {
            let mut screen = FullScreen::open().unwrap();
            screen.draw(NOW, content).unwrap();
            assert!(screen.is_open() && tty::is_raw_mode_enabled().unwrap());
            std::thread::spawn(|| panic!("what has happened")).join().unwrap_err();
            assert!(!screen.is_open() && !tty::is_raw_mode_enabled().unwrap());
            return;
        }
        let program = std::env::current_exe().unwrap();
        let program = Quoted(program.to_str().unwrap());
        let line = format!("stty rows 24 cols 80; {program} --exact {NAME} --nocapture && stty -a");
        let mut script = std::process::Command::new("script");
        let done = script.args(["-qec", &line, "/dev/null"]).env("IN_A_TERMINAL", "1").output().unwrap();
        let shown = String::from_utf8(done.stdout).unwrap();
        let parts: Vec<&str> = shown.split("\u{1b}[?1049l").collect();
        assert_eq!(parts.len(), 2, "it is left once: {shown}");
        assert!(parts[0].contains("\u{1b}[?1049h") && parts[1].contains("what has happened"), "{shown}");
        assert!(parts[1].contains("isig icanon iexten echo echoe"), "{shown}");
    }

    #[test]
    fn it_can_be_drawn_however_small() {
        let mut view = view();
        view.observe(NOW, &exchange("1", "/", None));
        for detail in [false, true] {
            view.detail = detail;
            for (width, height) in [(1, 1), (2, 3), (10, 4), (39, 7), (400, 100)] {
                drawn(&mut view, width, height);
            }
        }
    }
}
