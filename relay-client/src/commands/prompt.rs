//! A secret from standard input: typed on a terminal without being shown, or piped.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::pin::pin;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal;
use futures_util::StreamExt as _;

use crate::platform;
use crate::value::Secret;

/// Longer than any token, in bytes; whatever comes behind is not read.
const LONGEST: u64 = 4096;

/// The first line of a pipe or a file. Whoever writes it may keep the pipe open. It blocks.
///
/// # Errors
/// Where standard input cannot be read.
pub(crate) fn piped() -> io::Result<Secret> {
    let mut text = String::new();
    io::stdin().lock().take(LONGEST).read_line(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned().into())
}

/// What somebody types until Enter, asked with `question`. The terminal is as before at the end, however that comes.
///
/// # Errors
/// Where the terminal cannot be read. `Interrupted` means Ctrl-C, or that `interrupted` has ended.
pub(crate) async fn typed(question: &str, interrupted: impl Future<Output = ()>) -> io::Result<Secret> {
    let (mut interrupted, mut keys) = (pin!(interrupted), EventStream::new());
    let mut line = String::new();
    let mut hidden = Hidden::new(question)?;
    loop {
        let input = tokio::select! {
            () = &mut interrupted => return Err(ErrorKind::Interrupted.into()),
            input = keys.next() => input.unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into()))?,
        };
        let Event::Key(key) = input else { continue };
        match edit(&mut line, key) {
            Wish::More => {}
            Wish::Done => return Ok(line.into()),
            Wish::Interrupt => return Err(ErrorKind::Interrupted.into()),
            Wish::Suspend => {
                drop(hidden);
                platform::suspend();
                hidden = Hidden::new(question)?;
            }
        }
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    More,
    Done,
    Interrupt,
    Suspend,
}

/// Does to the line what a terminal would that edits lines and signals.
fn edit(line: &mut String, key: KeyEvent) -> Wish {
    if key.kind == KeyEventKind::Release {
        return Wish::More;
    }
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Enter, _) | (KeyCode::Char('d' | 'j' | 'm'), true) => return Wish::Done,
        (KeyCode::Char('c'), true) => return Wish::Interrupt,
        (KeyCode::Char('z'), true) => return Wish::Suspend,
        (KeyCode::Char('u'), true) => line.clear(),
        (KeyCode::Backspace, _) | (KeyCode::Char('h'), true) => drop(line.pop()),
        (KeyCode::Char(character), false) if (line.len() as u64) < LONGEST => line.push(character),
        _ => {}
    }
    Wish::More
}

/// A terminal that shows nothing of what is typed, and leaves Ctrl-C and Ctrl-Z to us: were they signals, it would stay so.
struct Hidden;

impl Hidden {
    fn new(question: &str) -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // Who has closed standard error knows what is asked.
        let _ = write!(io::stderr(), "{question}");
        Ok(Self)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
        let _ = writeln!(io::stderr());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn control(letter: char) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL)
    }

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn a_line_can_be_mended_while_it_is_typed() {
        let mut line = String::new();
        let mut press = |key| edit(&mut line, key);
        for pressed in [key(KeyCode::Char('x')), control('u'), key(KeyCode::Backspace)] {
            assert_eq!(press(pressed), Wish::More);
        }
        for letter in "abdD".chars() {
            press(key(KeyCode::Char(letter)));
        }
        for pressed in [key(KeyCode::Backspace), control('h'), key(KeyCode::Tab), control('w')] {
            press(pressed);
        }
        press(key(KeyCode::Char('c')));
        for (pressed, wish) in [
            (key(KeyCode::Enter), Wish::Done),
            (control('d'), Wish::Done),
            (control('j'), Wish::Done),
            (control('c'), Wish::Interrupt),
            (control('z'), Wish::Suspend),
        ] {
            assert_eq!(press(pressed), wish);
        }
        assert_eq!(line, "abc");
    }

    #[test]
    fn a_line_has_an_end() {
        let mut line = String::new();
        for _ in 0..LONGEST + 9 {
            edit(&mut line, key(KeyCode::Char('x')));
        }
        assert_eq!(line.len() as u64, LONGEST);
    }
}
