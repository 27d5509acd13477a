//! The printer of a running command: it observes a client, and whatever else has something to show.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    config::{Files, ShowSettings},
    session::Observer,
    terminal::{Event, Printer},
};

/// A handle on this process's printer; clones share it.
#[derive(Clone, Debug)]
pub struct Screen(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    printer: Printer,
    /// Nobody reads any more.
    unwatched: bool,
}

impl Screen {
    /// Prints what was asked for, after the warnings of the configuration.
    pub fn new(show: &ShowSettings, files: &Files) -> Self {
        Self::with(Printer::stdio(show.output), files)
    }

    /// As [`Screen::new`], for a tunnel that answers by itself: `what`.
    pub fn answering(show: &ShowSettings, files: &Files, what: String) -> Self {
        Self::with(Printer::stdio(show.output).answering(what), files)
    }

    fn with(mut printer: Printer, files: &Files) -> Self {
        files.warnings.iter().for_each(|warning| printer.push(&Event::Notice(warning)));
        Self(Arc::new(Mutex::new(State { printer, unwatched: false })))
    }

    /// Shows an event at once.
    pub fn show(&self, event: &Event<'_>) {
        let mut state = self.state();
        state.printer.push(event);
        state.flush();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left at worst half a line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn flush(&mut self) {
        if self.printer.pending() > 0 {
            self.unwatched |= self.printer.flush_stdio().is_err();
        }
    }
}

impl Observer for Screen {
    fn observe(&mut self, event: &Event<'_>) {
        self.state().printer.push(event);
    }

    fn pause(&mut self) -> bool {
        let mut state = self.state();
        state.flush();
        !state.unwatched
    }
}
