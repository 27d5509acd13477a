//! The screen of a running command: it observes a client, shows what happens, and does what has to be done beside that.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crossterm::event::{Event as Input, EventStream};
use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::capture::saved::halves;
use crate::session::dial::Target;
use crate::session::probe::Probe;
use crate::terminal::full_screen::{FullScreen, Wish};
use crate::upstream::knock::{Change, PERIOD, Services, knock};
use crate::{
    atomic,
    capture::Capture,
    client::Client,
    config::{Files, ShowSettings},
    event::{Event, Observer},
    platform,
    terminal::{Printer, Style, json_line, since_1970},
    value::Output,
};

/// How often a slow reader is offered what it did not take.
const UNREAD: Duration = Duration::from_millis(20);

/// Between two frames of a full screen.
const FRAME: Duration = Duration::from_millis(50);

/// How long a public URL has to answer once the relay has given it.
pub(crate) const PROBE: Duration = Duration::from_secs(15);

/// A handle on what this process shows; clones share it.
#[derive(Clone, Debug)]
pub struct Screen {
    state: Arc<Mutex<State>>,
    /// Nobody reads any more, or what was asked for cannot be done.
    over: CancellationToken,
    /// Standard output is for a program, without which there is nothing to do.
    piped: bool,
    /// There is a service to knock at.
    doubt: Arc<Notify>,
    /// There is a tunnel to prove.
    news: Arc<Notify>,
    /// Something was not taken by whoever reads.
    unread: Arc<Notify>,
    /// The full screen no longer shows what is true.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    printer: Printer,
    /// Shown instead of the printer's lines, from the first tunnel on.
    full: Option<FullScreen>,
    wants_full: bool,
    /// What was sent with the last requests.
    capture: Option<Capture>,
    services: Option<Services>,
    ready: Option<ReadyFile>,
    /// Why the client cannot go on.
    failed: Option<String>,
    /// What is shown is not what the command is for: it goes on when nobody reads.
    aside: bool,
}

/// The file of `--ready-file`: a line for each tunnel, once all of them have answered on their public URLs.
#[derive(Debug)]
struct ReadyFile {
    file: PathBuf,
    tunnels: Vec<ReadyTunnel>,
    /// How they are asked.
    way: Option<(Probe, Target)>,
}

#[derive(Debug)]
struct ReadyTunnel {
    tunnel: String,
    url: String,
    line: String,
    is_proven: bool,
}

impl Screen {
    /// Shows what was asked for, after the warnings of the configuration.
    pub fn new(show: &ShowSettings, files: &Files) -> Self {
        Self::with(Printer::stdio(show.output, show.plain), show, files)
    }

    /// As [`Screen::new`], for a tunnel that answers by itself: `what`.
    pub fn answering(show: &ShowSettings, files: &Files, what: String) -> Self {
        Self::with(Printer::stdio(show.output, show.plain).answering(what), show, files)
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
        {
            let mut state = screen.state();
            state.aside = true;
            // Often it is the command that starts the service.
            state.services = None;
        }
        Ok(Self { piped: false, ..screen })
    }

    fn with(printer: Printer, show: &ShowSettings, files: &Files) -> Self {
        let mut printer = printer.url_only(show.url_only).qr(show.qr);
        files.warnings.iter().for_each(|warning| printer.push(&Event::Notice(warning)));
        let ready = show.ready_file.clone().map(|file| {
            // One that an earlier run has left behind would tell of a tunnel that is gone.
            let _ = std::fs::remove_file(&file);
            ReadyFile { file, tunnels: Vec::new(), way: None }
        });
        let services = Some(Services::default());
        let wants_full = show.tui && Style::of_stdout().can_be_full_screen();
        let state =
            State { printer, full: None, wants_full, capture: None, services, ready, failed: None, aside: false };
        Self {
            state: Arc::new(Mutex::new(state)),
            over: CancellationToken::new(),
            doubt: Arc::default(),
            news: Arc::default(),
            unread: Arc::default(),
            changed: Arc::default(),
            piped: show.output == Output::Json,
        }
    }

    /// Gets to know the client, and makes it provable where that is asked for: its tunnels are asked for `probe`, which it answers itself.
    #[must_use]
    pub fn prove(&self, client: Client, probe: Option<Probe>) -> Client {
        let mut state = self.state();
        state.capture = client.capture().cloned();
        let Some(ready) = &mut state.ready else { return client };
        ready.way = probe.map(|probe| (probe, client.target().clone()));
        match &ready.way {
            Some((probe, _)) => client.probe(probe.clone()),
            None => client,
        }
    }

    /// Does `work`, and meanwhile keeps true what is shown, looks for services that are not there, and proves tunnels.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let beside = async {
            tokio::join!(
                self.keep_time(),
                self.wait_for_reader(),
                self.be_full(),
                self.look_for_services(),
                self.prove_tunnels()
            );
            std::future::pending().await
        };
        tokio::select! {
            done = work => done,
            done = beside => done,
        }
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
        if let Some(ready) = state.ready.take() {
            let _ = std::fs::remove_file(ready.file);
        }
        state.full = None;
        state.printer.close();
        let _ = state.printer.finish();
        state.failed.take()
    }

    /// Shows an event at once.
    pub fn show(&self, event: &Event<'_>) {
        let mut state = self.state();
        self.push(&mut state, event);
        self.flush(&mut state);
    }

    fn push(&self, state: &mut State, event: &Event<'_>) {
        if state.wants_full && matches!(event, Event::Ready { .. }) {
            state.wants_full = false;
            state.printer.close();
            let _ = state.printer.flush();
            // Where it cannot be had there are lines.
            state.full = FullScreen::open().ok();
        }
        match &mut state.full {
            Some(full) if full.is_open() => {
                full.view.observe(since_1970(), event);
                self.changed.notify_one();
            }
            _ => state.printer.push(event),
        }
    }

    /// Once a second, just after it has begun, so that what it came to is told at once.
    async fn keep_time(&self) {
        while self.state().printer.keeps_time() {
            sleep(until_next_second()).await;
            let mut state = self.state();
            state.printer.tick();
            self.flush(&mut state);
        }
    }

    /// Writes what a slow reader did not take at once.
    async fn wait_for_reader(&self) {
        loop {
            self.unread.notified().await;
            while self.state().printer.pending() > 0 {
                sleep(UNREAD).await;
                self.flush(&mut self.state());
            }
        }
    }

    /// Draws the full screen when something has changed, at most once in [`FRAME`], and obeys its keys.
    async fn be_full(&self) {
        self.changed.notified().await;
        let mut keys = EventStream::new();
        while let Some(drawn) = self.draw() {
            if drawn.is_err() {
                return self.over.cancel();
            }
            sleep(FRAME).await;
            let mut pressed = tokio::select! {
                pressed = keys.next() => Some(pressed),
                () = self.changed.notified() => None,
                () = sleep(until_next_second()) => None,
            };
            while let Some(input) = pressed {
                match input {
                    Some(Ok(input)) => self.obey(&input),
                    // Nobody sits before it any more.
                    _ => return self.over.cancel(),
                }
                pressed = keys.next().now_or_never();
            }
        }
    }

    /// None where there is no full screen any more. An error means that the terminal is gone.
    fn draw(&self) -> Option<io::Result<()>> {
        let mut state = self.state();
        let State { full, capture, .. } = &mut *state;
        let look = |id: &str| capture.as_ref()?.get(id);
        let full = full.as_mut().filter(|full| full.is_open())?;
        Some(full.draw(since_1970(), look))
    }

    fn obey(&self, input: &Input) {
        let mut state = self.state();
        let State { full, capture, .. } = &mut *state;
        let (Some(full), Input::Key(key)) = (full, input) else { return };
        let look = |id: &str| capture.as_ref()?.get(id);
        match full.view.key(*key, look) {
            Some(Wish::Quit) => self.over.cancel(),
            // Where there are no signals, it ends as it does with `q`.
            Some(Wish::Interrupt) if platform::interrupt() => {}
            Some(Wish::Interrupt) => self.over.cancel(),
            Some(Wish::Suspend) if full.suspend().is_err() => self.over.cancel(),
            Some(Wish::Suspend) => self.changed.notify_one(),
            Some(Wish::Copy(text)) => full.copy(&text),
            None => {}
        }
    }

    async fn look_for_services(&self) {
        loop {
            let due = self.state().services.as_ref().map(Services::due).unwrap_or_default();
            if due.is_empty() {
                self.doubt.notified().await;
                continue;
            }
            let knocks = due.iter().map(async |service| (service, knock(&service.addr).await));
            for (service, knocked) in join_all(knocks).await {
                let (tunnel, upstream) = (&service.tunnel, &service.upstream);
                let mut state = self.state();
                match state.services.as_mut().and_then(|services| services.learn(service, knocked)) {
                    Some(Change::Down(reason)) => {
                        self.push(&mut state, &Event::UpstreamDown { tunnel, upstream, reason: &reason });
                    }
                    Some(Change::Up) => self.push(&mut state, &Event::UpstreamUp { tunnel, upstream }),
                    None => {}
                }
                self.flush(&mut state);
            }
            // However often requests are refused.
            sleep(PERIOD).await;
        }
    }

    async fn prove_tunnels(&self) {
        loop {
            let next = self.state().ready.as_ref().and_then(ReadyFile::next);
            let Some((url, way)) = next else {
                self.news.notified().await;
                continue;
            };
            let proven = match way {
                Some((probe, target)) => {
                    let (server, below) = halves(&url);
                    match server.parse().map(|server| target.to(server)) {
                        Ok(Ok(public)) => {
                            let answered = probe.come_back(&public, below, PROBE).await;
                            answered.map_err(|error| error.to_string())
                        }
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                None => Err("the system has no randomness for a probe".to_owned()),
            };
            let mut state = self.state();
            let Some(ready) = &mut state.ready else { return };
            // It may have gone meanwhile.
            if !ready.tunnels.iter().any(|tunnel| tunnel.url == url) {
                continue;
            }
            let written = proven.map_err(|error| format!("the tunnel is up, but {error}")).and_then(|()| {
                ready.proven(&url);
                ready.write().map_err(|error| error.to_string())
            });
            if let Err(error) = written {
                let message = format!("--ready-file {}: {error}", ready.file.display());
                self.fail(&mut state, message);
                return;
            }
        }
    }

    fn fail(&self, state: &mut State, message: String) {
        if state.aside {
            state.printer.push(&Event::Notice(&message));
            self.flush(state);
        }
        state.failed = Some(message);
        self.over.cancel();
    }

    fn flush(&self, state: &mut State) {
        if state.printer.is_due() && state.printer.flush().is_err() && !state.aside {
            self.over.cancel();
        }
        if state.printer.pending() > 0 {
            self.unread.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has left at worst half a line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn until_next_second() -> Duration {
    Duration::from_secs(1) - Duration::from_nanos(since_1970().subsec_nanos().into())
}

impl ReadyFile {
    fn add(&mut self, tunnel: &str, url: &str, line: String) {
        self.tunnels.retain(|known| known.tunnel != tunnel);
        self.tunnels.push(ReadyTunnel { tunnel: tunnel.to_owned(), url: url.to_owned(), line, is_proven: false });
    }

    /// A tunnel that is to be asked, and how.
    fn next(&self) -> Option<(String, Option<(Probe, Target)>)> {
        let tunnel = self.tunnels.iter().find(|tunnel| !tunnel.is_proven)?;
        Some((tunnel.url.clone(), self.way.clone()))
    }

    fn proven(&mut self, url: &str) {
        self.tunnels.iter_mut().filter(|tunnel| tunnel.url == url).for_each(|tunnel| tunnel.is_proven = true);
    }

    /// Writes the file where nothing is missing any more.
    fn write(&self) -> io::Result<()> {
        if self.tunnels.is_empty() || !self.tunnels.iter().all(|tunnel| tunnel.is_proven) {
            return Ok(());
        }
        atomic::replace(&self.file, false, |new| {
            self.tunnels.iter().try_for_each(|tunnel| new.write_all(tunnel.line.as_bytes()))
        })
    }
}

impl Observer for Screen {
    fn observe(&mut self, event: &Event<'_>) {
        let mut state = self.state();
        self.push(&mut state, event);
        match event {
            Event::Ready { tunnel, url, upstream, .. } => {
                if let Some(ready) = &mut state.ready {
                    ready.add(tunnel, url, json_line(event));
                    self.news.notify_one();
                }
                if state.services.as_mut().is_some_and(|services| services.add(tunnel, upstream)) {
                    self.doubt.notify_one();
                }
            }
            Event::Closed { tunnel, .. } => {
                if let Some(ready) = &mut state.ready {
                    ready.tunnels.retain(|ready| ready.tunnel != *tunnel);
                    // It was written before, so it can be again; and if not, it says too much rather than too little.
                    let _ = ready.write();
                }
                if let Some(services) = &mut state.services {
                    services.remove(tunnel);
                }
            }
            Event::Exchange { tunnel, error: Some("upstream-refused"), .. }
                if state.services.as_mut().is_some_and(|services| services.doubt(tunnel)) =>
            {
                self.doubt.notify_one();
            }
            _ => {}
        }
    }

    fn pause(&mut self) -> bool {
        self.flush(&mut self.state());
        !self.over.is_cancelled()
    }
}
