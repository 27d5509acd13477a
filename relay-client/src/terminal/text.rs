//! What strangers have written, as it may stand on a terminal: in columns, and with what could do harm escaped.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthChar as _;

/// Text that is written into bytes.
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

impl Text<'_> {
    pub(super) fn push(&mut self, ascii: char) {
        let _ = self.write_char(ascii);
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn write_char(&mut self, character: char) -> fmt::Result {
        self.write_str(character.encode_utf8(&mut [0; 4]))
    }
}

/// A string of a stranger's, with the characters escaped that could do more than stand there.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl Shown<'_> {
    fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.0.chars().map(Piece::of)
    }

    /// Columns that it takes.
    pub(super) fn columns(&self) -> usize {
        match self.0.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            true => self.0.len(),
            false => self.pieces().map(|piece| piece.columns()).sum(),
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return f.pad(self.0);
        }
        self.pieces().try_for_each(|piece| piece.fmt(f))
    }
}

/// A character as it stands there.
pub(super) enum Piece {
    Plain(char),
    Escape(char),
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(character) => f.write_char(*character),
            Self::Escape(character) => character.escape_unicode().fmt(f),
        }
    }
}

impl Piece {
    pub(super) fn of(character: char) -> Self {
        if hazardous(character) { Self::Escape(character) } else { Self::Plain(character) }
    }

    fn columns(&self) -> usize {
        match self {
            // Two for most of East Asia's and for emoji, none for an accent that joins the character before it (UAX #11).
            Self::Plain(character) => character.width().unwrap_or(0),
            Self::Escape(character) => character.escape_unicode().len(),
        }
    }
}

/// Control characters (C0, DEL, C1), line and paragraph separators, what changes the direction of
/// text (UAX #9), and what has no width of its own and so hides or joins others.
pub(crate) fn hazardous(character: char) -> bool {
    match character {
        ' '..='~' => false,
        _ => {
            character.is_control()
                || matches!(character,
                    '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                    | '\u{e0000}'..='\u{e007f}')
        }
    }
}

/// Fills up to `width` with spaces. What is longer than `cut` loses its end to an ellipsis, never
/// in the middle of an escape.
pub(super) fn pad(out: &mut Text<'_>, text: &Shown<'_>, width: usize, cut: Option<usize>) {
    let columns = text.columns();
    let mut used = columns;
    match cut {
        Some(cut) if columns > cut => {
            used = 0;
            for piece in text.pieces() {
                if used + piece.columns() >= cut {
                    break;
                }
                used += piece.columns();
                let _ = write!(out, "{piece}");
            }
            out.push('…');
            used += 1;
        }
        _ => {
            let _ = write!(out, "{text}");
        }
    }
    for _ in used..width {
        out.push(' ');
    }
}

/// A line of a text of several. A tab does no harm, and neither does the end of a line of DOS.
pub(super) fn tabbed_line(out: &mut Text<'_>, line: &str) {
    for (index, part) in line.split('\t').enumerate() {
        let _ = write!(out, "{}{}", if index == 0 { "" } else { "\t" }, Shown(part));
    }
    out.push('\n');
}

/// One word for a shell, in single quotes where it needs them: bash, zsh, fish and any other POSIX shell read it alike. Between
/// single quotes fish obeys a backslash and the others do not, so a backslash and a quote stand outside, each behind a backslash.
///
/// What is pasted must be what is meant, so hazardous characters are escaped even though the word is then wrong; all but
/// a tab and the end of a line, which stand between quotes like any other.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@,".contains(&byte);
        if self.0.is_empty() {
            return f.write_str("''");
        }
        if self.0.bytes().all(plain) {
            return f.write_str(self.0);
        }
        let mut quoted = false;
        for character in self.0.chars() {
            let outside = matches!(character, '\'' | '\\');
            if outside == quoted {
                f.write_char('\'')?;
                quoted = !quoted;
            }
            match character {
                _ if outside => write!(f, "\\{character}"),
                '\t' | '\n' => f.write_char(character),
                _ if hazardous(character) => Piece::Escape(character).fmt(f),
                _ => f.write_char(character),
            }?;
        }
        if quoted { f.write_char('\'') } else { Ok(()) }
    }
}

/// Ten columns for everything below a hundred minutes.
pub(super) fn duration(out: &mut Text<'_>, milliseconds: f64) {
    let _ = match milliseconds {
        // Half a step below each limit, so that nothing is rounded up to it.
        ..999.95 => write!(out, "{milliseconds:>7.1} ms"),
        ..59_995.0 => write!(out, "{:>8.2} s", milliseconds / 1000.0),
        _ => {
            let seconds = (milliseconds / 1000.0).round() as u64;
            write!(out, "{:>3} min {:>02}", seconds / 60, seconds % 60)
        }
    };
}

/// A duration in as few columns as it takes.
pub(crate) fn compact(milliseconds: f64) -> String {
    let mut text = Vec::new();
    duration(&mut Text(&mut text), milliseconds);
    String::from_utf8_lossy(&text).trim_start().to_owned()
}

/// Ten columns for everything below a million gibibytes.
pub(super) fn size(out: &mut Text<'_>, bytes: u64) {
    let scaled = bytes as f64;
    let _ = match scaled {
        ..1024.0 => write!(out, "{bytes:>8} B"),
        // Half a step below each limit, so that nothing is rounded up to it.
        ..1_048_524.8 => write!(out, "{:>6.1} KiB", scaled / 1024.0),
        ..1_073_689_395.2 => write!(out, "{:>6.1} MiB", scaled / f64::from(1 << 20)),
        _ => write!(out, "{:>6.1} GiB", scaled / f64::from(1 << 30)),
    };
}

/// A value as a line of JSON that is harmless on a terminal, too.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    let mut line = Vec::new();
    write_json(value, &mut line);
    String::from_utf8(line).unwrap_or_default()
}

pub(super) fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let mut json = serde_json::Serializer::with_formatter(&mut *out, Harmless);
    // A buffer takes everything, and every field has a JSON form.
    let _ = value.serialize(&mut json);
    out.push(b'\n');
}

/// Compact JSON that is harmless on a terminal too: what JSON leaves bare and [`hazardous`] names
/// is written as `\u` escapes, which mean the same to every parser.
struct Harmless;

impl serde_json::ser::Formatter for Harmless {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        // JSON's own escapes are written elsewhere; a fragment is free of them.
        if text.is_ascii() && !text.contains('\x7f') {
            return out.write_all(text.as_bytes());
        }
        for character in text.chars() {
            if hazardous(character) {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            } else {
                out.write_all(character.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn durations_keep_their_column() {
        for (milliseconds, expected) in [
            (0.04, "    0.0 ms"),
            (12.34, "   12.3 ms"),
            (999.94, "  999.9 ms"),
            (999.96, "    1.00 s"),
            (59_994.0, "   59.99 s"),
            (60_000.0, "  1 min 00"),
            (5_999_000.0, " 99 min 59"),
        ] {
            let mut bytes = Vec::new();
            duration(&mut Text(&mut bytes), milliseconds);
            assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn sizes_keep_their_column() {
        for (bytes, expected) in [
            (0, "       0 B"),
            (1023, "    1023 B"),
            (1024, "   1.0 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "   1.0 MiB"),
            (16 << 20, "  16.0 MiB"),
            (1_073_689_396, "   1.0 GiB"),
        ] {
            let mut text = Vec::new();
            size(&mut Text(&mut text), bytes);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
