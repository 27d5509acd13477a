//! `relay`: see `relay --help`.

use std::io::{ErrorKind, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use relay_client::commands::cli::{Cli, Command, ConfigCommand, Exit, ServiceArgs};
use relay_client::commands::listen;
use relay_client::commands::listen::Answer;
use relay_client::commands::login;
use relay_client::commands::login::LoginError;
use relay_client::commands::open;
use relay_client::commands::pages;
use relay_client::commands::run;
use relay_client::commands::run::RunError;
use relay_client::commands::start::{Start, StartError};
use relay_client::commands::status;
use relay_client::commands::wait;
use relay_client::commands::wait::WaitError;
use relay_client::config::check::Report;
use relay_client::config::{Files, Places, Settings};
use relay_client::control::ControlError;
use relay_client::platform::hangup_is_ignored;
use relay_client::session::probe::Probe;
use relay_client::terminal::screen::Screen;
use relay_client::terminal::{Destination, Output, tell};
use relay_client::{ClientError, ConnectError};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut cli = match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => {
            // A closed pipe is no reason to fail differently.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let quiet = if cli.command.takes_the_terminal() { "off" } else { "warn,hyper=error,h2=error" };
    let filter = EnvFilter::try_from_env("RELAY_LOG").unwrap_or_else(|_| EnvFilter::new(quiet));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // It would complain on standard error that nobody reads standard error, and panic.
    log.log_internal_errors(false).init();
    // What neither waits nor listens needs no runtime, and Ctrl-C ends it as it ends everything.
    match &mut cli.command {
        Command::Login(args) => {
            if let Err(error) = login::ask(args) {
                return fail(exit_of_login(&error), &error);
            }
        }
        Command::Logout => return say(login::logout(&Places::of_process())),
        Command::Config(ConfigCommand::Check { output }) => return check(*output),
        Command::Completions { shell } => return print(&pages::completions(*shell)),
        Command::Man { directory } => {
            return match pages::manual(directory) {
                Ok(()) => Exit::Done.into(),
                Err(error) => fail(Exit::Failed, &format_args!("{}: {error}", directory.display())),
            };
        }
        _ => {}
    }
    // One thread: an exchange then costs no switch, and the local service has the other cores.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, &error),
    };
    runtime.block_on(run(cli.command))
}

async fn run(command: Command) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(Exit::Failed, &error),
    };
    let places = Places::of_process();
    let command = match command {
        Command::Login(args) => {
            let mut by = Exit::Interrupted;
            return match login::login(args, &places, async { by = signals.next().await }).await {
                Err(error @ LoginError::Interrupted) => fail(by, &error),
                done => say(done),
            };
        }
        Command::Status { output } => {
            return tokio::select! {
                asked = status::report(output) => show(asked),
                by = signals.next() => by.into(),
            };
        }
        command => command,
    };
    let mut files = match Files::load(&places) {
        Ok(files) => files,
        Err(error) => return fail(Exit::Usage, &error),
    };
    let (mut by, stop) = (Exit::Done, CancellationToken::new());
    let (screen, result) = match command {
        Command::Http(args) => {
            let settings = match Settings::new(args.open, args.service, &mut files) {
                Ok(settings) => settings,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let mut screen = Screen::new(&settings.show, &files);
            let client = match open::client(args.upstream, settings) {
                Ok(client) => client,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let shown = screen.clone();
            let client = shown.prove(client, Probe::new());
            let (ended_by, result) = signals.attend(client.run(&mut screen, stop.cancelled()), &stop, &shown).await;
            by = ended_by;
            (shown, result.map_err(|error| (exit_of(&error), error.to_string())))
        }
        Command::Listen(args) => {
            let answer = match Answer::new(&args) {
                Ok(answer) => answer,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let settings = match Settings::new(args.open, ServiceArgs::default(), &mut files) {
                Ok(settings) => settings,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let screen = Screen::answering(&settings.show, &files, answer.describe());
            let (client, mut observer) = match listen::open(settings, answer, screen.clone()) {
                Ok(opened) => opened,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let running = client.run(&mut observer, stop.cancelled());
            let (ended_by, result) = signals.attend(running, &stop, &screen).await;
            by = ended_by;
            (screen, result.map_err(|error| (exit_of(&error), error.to_string())))
        }
        Command::Start(args) => {
            let (start, files) = match Start::new(args, places) {
                Ok(start) => start,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let screen = Screen::new(start.show(), &files);
            let running = start.run(screen.clone(), stop.cancelled());
            let (ended_by, result) = signals.attend(running, &stop, &screen).await;
            by = ended_by;
            let result = result.map_err(|error| match &error {
                StartError::Client(client) => (exit_of(client), error.to_string()),
                StartError::Target(_) => (Exit::Usage, error.to_string()),
            });
            (screen, result)
        }
        Command::Run(args) => {
            let settings = match Settings::new(args.open, args.service, &mut files) {
                Ok(settings) => settings,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let screen = match Screen::aside(&settings.show, &files, args.events.as_deref()) {
                Ok(screen) => screen,
                Err(error) => return fail(Exit::Failed, &format_args!("--events: {error}")),
            };
            let next = async || signals.next().await;
            let run = run::run(settings, args.upstream, &args.command, screen.clone(), next);
            let result = match screen.during(run).await {
                Ok(0) => Ok(()),
                Ok(code) => {
                    screen.close();
                    return ExitCode::from(code);
                }
                Err(RunError::Client(error)) => Err((exit_of(&error), error.to_string())),
                Err(error) => Err((Exit::Failed, error.to_string())),
            };
            (screen, result)
        }
        #[cfg(feature = "embedded")]
        Command::Dev(args) => {
            use relay_client::commands::dev;
            use relay_client::config::DevSettings;
            let settings = DevSettings::new(args, &files);
            let screen = match settings.upstream {
                Some(_) => Screen::new(&settings.show, &files),
                None => Screen::answering(&settings.show, &files, dev::DEMO.to_owned()),
            };
            let running = Box::pin(dev::run(settings, screen.clone(), stop.cancelled()));
            let (ended_by, result) = signals.attend(running, &stop, &screen).await;
            by = ended_by;
            let result = result.map_err(|error| match &error {
                dev::DevError::Client(client) => (exit_of(client), error.to_string()),
                _ => (Exit::Failed, error.to_string()),
            });
            (screen, result)
        }
        Command::Wait(args) => {
            let waited = wait::run(args, &mut files, async { by = signals.next().await }).await;
            return waited.map_or_else(|error| fail(exit_of_wait(&error), &error), |()| by.into());
        }
        Command::Login(_)
        | Command::Logout
        | Command::Status { .. }
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Man { .. } => return Exit::Done.into(),
    };
    let failed = screen.close();
    match result.and_then(|()| failed.map_or(Ok(()), |message| Err((Exit::Failed, message)))) {
        Ok(()) => by.into(),
        Err((exit, message)) => fail(exit, &message),
    }
}

fn check(output: Output) -> ExitCode {
    let report = Report::new(&Places::of_process(), |name| std::env::var_os(name));
    let shown = print(report.show(output).as_bytes());
    for line in report.warnings.iter().chain(&report.problems) {
        tell(line);
    }
    if report.problems.is_empty() { shown } else { Exit::Usage.into() }
}

fn show(asked: Result<status::Report, ControlError>) -> ExitCode {
    match asked {
        Ok(report) => {
            report.notices.iter().for_each(tell);
            print(report.shown.as_bytes())
        }
        Err(error) => fail(Exit::Failed, &error),
    }
}

fn print(data: &[u8]) -> ExitCode {
    match Destination::Stdout(std::io::stdout()).write_all(data) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done.into(),
        Err(error) => fail(Exit::Failed, &error),
        Ok(()) => Exit::Done.into(),
    }
}

/// What a command has done is told to people: standard output is for data.
fn say(done: Result<String, LoginError>) -> ExitCode {
    match done {
        Ok(text) => {
            tell(&text);
            Exit::Done.into()
        }
        Err(error) => fail(exit_of_login(&error), &error),
    }
}

fn exit_of_login(error: &LoginError) -> Exit {
    match error {
        LoginError::Connect(ConnectError::Refused { code, .. }) if code == "unauthorized" => Exit::Unauthorized,
        LoginError::Connect(ConnectError::Revoked(_)) => Exit::Unauthorized,
        LoginError::Connect(_) => Exit::Unreachable,
        LoginError::Token { .. } | LoginError::Target(_) => Exit::Usage,
        LoginError::Interrupted => Exit::Interrupted,
        LoginError::Ask(_) | LoginError::NoHome | LoginError::File { .. } => Exit::Failed,
    }
}

fn exit_of_wait(error: &WaitError) -> Exit {
    match error {
        WaitError::Client(error) => exit_of(error),
        WaitError::Config(_) | WaitError::Target(_) => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Unauthorized(_) => Exit::Unauthorized,
        ClientError::NameTaken(_) => Exit::NameTaken,
        ClientError::NameLost(_) => Exit::NameLost,
        ClientError::Unreachable(_) => Exit::Unreachable,
        ClientError::GaveUp { .. } => Exit::GaveUp,
        _ => Exit::Failed,
    }
}

fn fail(exit: Exit, error: &dyn std::fmt::Display) -> ExitCode {
    tell(error);
    exit.into()
}

/// Ctrl-C, SIGTERM, and SIGHUP, which comes when the terminal is closed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup })
    }

    async fn next(&mut self) -> Exit {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
            _ = hangup => Exit::HungUp,
        }
    }

    /// Runs a tunnel, and says what ended it. A signal, or the end of whatever the screen is for, lets it finish what is
    /// under way; a second signal does not.
    async fn attend<E>(
        &mut self,
        tunnel: impl Future<Output = Result<(), E>>,
        stop: &CancellationToken,
        screen: &Screen,
    ) -> (Exit, Result<(), E>) {
        let (mut tunnel, mut by) = (pin!(screen.during(tunnel)), Exit::Done);
        loop {
            tokio::select! {
                ended = &mut tunnel => return (by, ended),
                signal = self.next() => {
                    // Of a terminal that is closed both the system and the shell may tell.
                    if signal == Exit::HungUp && by == Exit::HungUp {
                        continue;
                    }
                    by = signal;
                    if stop.is_cancelled() {
                        return (by, Ok(()));
                    }
                    stop.cancel();
                }
                () = screen.over(), if !stop.is_cancelled() => stop.cancel(),
            }
        }
    }
}
