//! The printer of a running command: it observes a client, and whatever else has something to show.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{
    atomic,
    config::{Files, ShowSettings},
    platform,
    session::Observer,
    terminal::{Event, Output, Printer},
};

/// A handle on this process's printer; clones share it.
#[derive(Clone, Debug)]
pub struct Screen {
    state: Arc<Mutex<State>>,
    /// Nobody reads any more, or what was asked for cannot be done.
    over: CancellationToken,
    /// Standard output is for a program, without which there is nothing to do.
    piped: bool,
}

#[derive(Debug)]
struct State {
    printer: Printer,
    /// Says that the tunnel is up.
    ready_file: Option<PathBuf>,
    /// Why the client cannot go on.
    failed: Option<String>,
    /// What is shown is not what the command is for: it goes on when nobody reads.
    aside: bool,
}

impl Screen {
    /// Prints what was asked for, after the warnings of the configuration.
    pub fn new(show: &ShowSettings, files: &Files) -> Self {
        Self::with(Printer::stdio(show.output), show, files)
    }

    /// As [`Screen::new`], for a tunnel that answers by itself: `what`.
    pub fn answering(show: &ShowSettings, files: &Files, what: String) -> Self {
        Self::with(Printer::stdio(show.output).answering(what), show, files)
    }

    /// For a command that has standard output to itself: JSON into a file, or lines on standard error.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn aside(show: &ShowSettings, files: &Files, events: Option<&Path>) -> io::Result<Self> {
        let printer = match events {
            Some(file) => Printer::file(File::create(file)?),
            None => Printer::stderr(show.output),
        };
        let screen = Self::with(printer, show, files);
        screen.state().aside = true;
        Ok(Self { piped: false, ..screen })
    }

    fn with(printer: Printer, show: &ShowSettings, files: &Files) -> Self {
        let mut printer = printer.url_only(show.url_only);
        files.warnings.iter().for_each(|warning| printer.push(&Event::Notice(warning)));
        let ready_file = show.ready_file.clone();
        if let Some(file) = &ready_file {
            // One that an earlier run has left behind would tell of a tunnel that is gone.
            let _ = std::fs::remove_file(file);
        }
        let state = State { printer, ready_file, failed: None, aside: false };
        let piped = show.output == Output::Json;
        Self { state: Arc::new(Mutex::new(state)), over: CancellationToken::new(), piped }
    }

    /// Ends when there is no reason to go on: nobody reads any more, or what was asked for cannot be done.
    pub async fn over(&self) {
        tokio::select! {
            () = self.over.cancelled() => {}
            () = platform::stdout_unread(), if self.piped => {}
        }
    }

    /// The client has ended; says why it could not go on, if that was so.
    pub fn close(&self) -> Option<String> {
        let mut state = self.state();
        if let Some(file) = state.ready_file.take() {
            let _ = std::fs::remove_file(file);
        }
        state.failed.take()
    }

    /// Shows an event at once.
    pub fn show(&self, event: &Event<'_>) {
        let mut state = self.state();
        state.printer.push(event);
        self.flush(&mut state);
    }

    fn flush(&self, state: &mut State) {
        if state.printer.pending() > 0 && state.printer.flush_stdio().is_err() && !state.aside {
            self.over.cancel();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left at worst half a line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Screen {
    fn observe(&mut self, event: &Event<'_>) {
        let mut state = self.state();
        state.printer.push(event);
        if let (Event::Ready { .. }, Some(file)) = (event, &state.ready_file)
            && let Err(error) = atomic::replace(file, &event.to_json(), false)
        {
            state.failed = Some(format!("--ready-file {}: {error}", file.display()));
            self.over.cancel();
        }
    }

    fn pause(&mut self) -> bool {
        self.flush(&mut self.state());
        !self.over.is_cancelled()
    }
}
