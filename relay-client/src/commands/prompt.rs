//! A secret from standard input: typed on a terminal without being shown, or piped.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::config::value::Secret;

/// Longer than any token; whatever comes behind is not read.
const LONGEST: u64 = 4096;

/// Reads one line. A terminal is asked with `question`; a pipe is not.
///
/// # Errors
/// Where standard input cannot be read. `Interrupted` means Ctrl-C.
pub(crate) fn secret(question: &str) -> io::Result<Secret> {
    let stdin = io::stdin();
    let line = if stdin.is_terminal() {
        let _quiet = quiet::Terminal::new()?;
        // Who has closed standard error knows what is asked.
        let _ = write!(io::stderr(), "{question}");
        let line = typed(stdin.lock().bytes());
        let _ = writeln!(io::stderr());
        line?
    } else {
        piped(stdin.lock())?
    };
    Ok(line.into())
}

/// The first line. Whoever writes it may keep the pipe open.
fn piped(input: impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    input.take(LONGEST).read_line(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What was typed until Enter, where the terminal edits no line and signals nothing.
fn typed(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<String> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const BACKSPACE: u8 = 8;
    const CTRL_U: u8 = 21;
    const DELETE: u8 = 127;
    let mut line = Vec::new();
    for key in keys {
        match key? {
            b'\n' | b'\r' | CTRL_D => break,
            CTRL_C => return Err(io::ErrorKind::Interrupted.into()),
            CTRL_U => line.clear(),
            BACKSPACE | DELETE => drop(line.pop()),
            key if (line.len() as u64) < LONGEST => line.push(key),
            _ => {}
        }
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(unix)]
mod quiet {
    use std::io;

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// Standard input without echo. It is as before once this is dropped.
    pub(super) struct Terminal(Termios);

    impl Terminal {
        pub(super) fn new() -> io::Result<Self> {
            let before = tcgetattr(io::stdin())?;
            let mut quiet = before.clone();
            // Keys come one by one, Ctrl-C too: were it a signal, the terminal would stay without echo.
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
            tcsetattr(io::stdin(), OptionalActions::Drain, &quiet)?;
            Ok(Self(before))
        }
    }

    impl Drop for Terminal {
        fn drop(&mut self) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
        }
    }
}

#[cfg(not(unix))]
mod quiet {
    use std::io;

    /// Nothing here can hide what is typed.
    pub(super) enum Terminal {}

    impl Terminal {
        pub(super) fn new() -> io::Result<Self> {
            let message = "this terminal would show the token; use --token or RELAY_TOKEN, or pipe it";
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_line_can_be_mended_while_it_is_typed() {
        for (keys, line) in [
            ("abc\n", "abc"),
            ("abc\rdef", "abc"),
            ("abd\x7fc\x04", "abc"),
            ("x\x15abc\x08c\n", "abc"),
            ("\x7f\x7fa\n", "a"),
            ("", ""),
        ] {
            assert_eq!(typed(keys.bytes().map(Ok)).unwrap(), line, "{keys:?}");
        }
        let error = typed(b"ab\x03c\n".iter().copied().map(Ok)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(typed(b"\xff\n".iter().copied().map(Ok)).is_err());
    }
}
