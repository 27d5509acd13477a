//! The body of a request as people see it: readable JSON, text, or hexadecimal.

use std::fmt::Write as _;

use serde::de::IgnoredAny;

use crate::event::Body;
use crate::terminal::text::{Piece, Text, tabbed_line};

/// Bytes of a textual body that people are shown: some thousand lines. Programs get all of it.
pub(super) const TEXT_SHOWN: usize = 64 * 1024;
/// Bytes of a page that people are shown who asked for something else: as far as its title.
const PAGE_SHOWN: usize = 1024;
/// Bytes of any other body that people are shown.
const BYTES_SHOWN: usize = 256;

/// A body as people see it: readable JSON, text, or hexadecimal, as far as it is shown. `colour` begins and ends what is
/// said of it.
pub(super) fn write_body(out: &mut Text<'_>, body: Body<'_>, size: u64, truncated: bool, colour: (&str, &str)) {
    let shown = match body {
        Body::Text(text) if text.len() <= TEXT_SHOWN && !truncated && is_json(text) => {
            pretty(out, text);
            text.len()
        }
        Body::Text(text) => {
            let shown = text.get(..text.floor_char_boundary(TEXT_SHOWN)).unwrap_or_default();
            shown.lines().for_each(|line| {
                let _ = out.write_str("  ");
                tabbed_line(out, line);
            });
            shown.len()
        }
        Body::Bytes(bytes) => {
            let shown = bytes.get(..BYTES_SHOWN).unwrap_or(bytes);
            hex(out, shown);
            shown.len()
        }
    };
    let more = size.saturating_sub(shown as u64);
    if more > 0 {
        let kept = if truncated && shown == body.as_bytes().len() { "were not kept" } else { "are not shown" };
        let _ = writeln!(out, "  {}… {more} more bytes {kept}{}", colour.0, colour.1);
    }
}

/// An answer's body in short: of a page, as an app shows where it has failed, the beginning alone.
pub(crate) fn answer_body(body: Body<'_>, size: u64, truncated: bool) -> String {
    match body {
        Body::Text(page) if is_page(page) => {
            let shown = page.get(..page.floor_char_boundary(PAGE_SHOWN)).unwrap_or_default();
            plain_body(Body::Text(shown), size, false)
        }
        body => plain_body(body, size, truncated),
    }
}

fn is_page(text: &str) -> bool {
    let begins = |with: &str| text.trim_start().get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    begins("<!doctype html") || begins("<html")
}

/// A body as people see it, without colours.
pub(crate) fn plain_body(body: Body<'_>, size: u64, truncated: bool) -> String {
    let mut text = Vec::new();
    write_body(&mut Text(&mut text), body, size, truncated, ("", ""));
    String::from_utf8_lossy(&text).into_owned()
}

/// An object or an array; a bare number or word reads no better than as text.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Valid JSON with a line for each member. Only the space between tokens changes: numbers, escapes and the order of
/// members stay what the sender wrote.
fn pretty(out: &mut Text<'_>, json: &str) {
    let mut lines = Lines { out, depth: 0 };
    let (mut string, mut escaped) = (false, false);
    let mut all = json.chars().peekable();
    lines.begin();
    while let Some(character) = all.next() {
        if string {
            string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            lines.put(character);
            continue;
        }
        match character {
            '{' | '[' => {
                lines.put(character);
                while all.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = all.next_if(|next| matches!(next, '}' | ']')) {
                    lines.put(close);
                } else {
                    lines.depth += 1;
                    lines.end();
                }
            }
            '}' | ']' => {
                lines.depth = lines.depth.saturating_sub(1);
                lines.end();
                lines.put(character);
            }
            ',' => {
                lines.put(character);
                lines.end();
            }
            ':' => {
                lines.put(character);
                lines.put(' ');
            }
            _ if character.is_ascii_whitespace() => {}
            _ => {
                string = character == '"';
                lines.put(character);
            }
        }
    }
    lines.out.push('\n');
}

struct Lines<'a, 'b> {
    out: &'a mut Text<'b>,
    depth: usize,
}

impl Lines<'_, '_> {
    fn begin(&mut self) {
        // What is nested deeper than anybody reads must not multiply its size.
        let _ = write!(self.out, "{:1$}", "", 2 + 2 * self.depth.min(DEPTH_SHOWN));
    }

    fn end(&mut self) {
        self.out.push('\n');
        self.begin();
    }

    fn put(&mut self, character: char) {
        let _ = write!(self.out, "{}", Piece::of(character));
    }
}

/// JSON is indented by this many levels and no more.
const DEPTH_SHOWN: usize = 24;

/// Sixteen bytes a line: where they are, what they are, and what they would be as ASCII.
fn hex(out: &mut Text<'_>, bytes: &[u8]) {
    for (index, row) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "  {:08x} ", index * 16);
        for column in 0..16 {
            let gap = if column == 8 { " " } else { "" };
            let _ = match row.get(column) {
                Some(byte) => write!(out, "{gap} {byte:02x}"),
                None => write!(out, "{gap}   "),
            };
        }
        out.push(' ');
        out.push(' ');
        row.iter().for_each(|byte| out.push(if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' }));
        out.push('\n');
    }
}
