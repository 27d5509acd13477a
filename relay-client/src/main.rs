//! `relay`: see `relay --help`.

use std::fmt::Display;
use std::io::ErrorKind;
use std::pin::pin;
use std::process::ExitCode;

#[cfg(feature = "embedded")]
use relay_client::cli::DevArgs;
use relay_client::cli::{
    Cli, Command, ConfigCommand, Exit, HttpArgs, ListenArgs, LoginArgs, RunArgs, ServiceArgs, StartArgs, VerifyArgs,
};
use relay_client::commands::check::Report;
use relay_client::commands::delivery::DeliveryError;
#[cfg(feature = "embedded")]
use relay_client::commands::dev::{self, DevError};
use relay_client::commands::export::{self, ExportError};
use relay_client::commands::inbox::{self, InboxCommandError, InboxesError};
use relay_client::commands::listen::{self, Answer, AnswerError};
use relay_client::commands::login::{self, LoginError};
use relay_client::commands::replay::{self, ReplayCommandError};
use relay_client::commands::requests::{self, HistoryError};
use relay_client::commands::run::{self, RunError};
use relay_client::commands::start::{Start, StartError};
use relay_client::commands::verify::{self, VerifyError};
use relay_client::commands::wait::{self, WaitError};
use relay_client::commands::{open, pages, send, show, status, trigger};
#[cfg(feature = "embedded")]
use relay_client::config::DevSettings;
use relay_client::config::{ConfigError, Files, Places, Settings};
use relay_client::control::ControlError;
use relay_client::platform::{Signal, Signals};
use relay_client::session::dial::TargetError;
use relay_client::session::probe::Probe;
use relay_client::terminal::screen::Screen;
use relay_client::terminal::{self, tell};
use relay_client::value::Output;
use relay_client::{ClientError, ConnectError};
use tokio::runtime::Builder;
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
    // What neither waits nor listens needs no signals: Ctrl-C ends it as it ends everything.
    let done = match &mut cli.command {
        Command::Login(args) => login::read_token(args).map(|()| None).map_err(Failure::from),
        Command::Logout => login::logout(&Places::of_process()).map_err(Failure::from).map(|done| {
            tell(&done);
            Some(Exit::Done as u8)
        }),
        Command::Config(ConfigCommand::Check { output }) => check(*output).map(Some),
        Command::Verify(args) => verify(args).map(Some),
        Command::Completions { shell } => print(&pages::completions(*shell)).map(Some),
        Command::Man { directory } => pages::manual(directory)
            .map_err(|error| Failure::new(Exit::Failed, &format_args!("{}: {error}", directory.display())))
            .map(|()| Some(Exit::Done as u8)),
        _ => Ok(None),
    };
    match done {
        Ok(None) => {}
        Ok(Some(code)) => return ExitCode::from(code),
        Err(Failure { exit, message }) => return fail(exit, &message),
    }
    // One thread: an exchange then costs no switch, and the local service has the other cores.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, &error),
    };
    runtime.block_on(run(cli.command))
}

/// How a command has ended, or why it could not go on.
type Ended = Result<u8, Failure>;

/// What people are told, and the exit code that programs are told.
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, error: &dyn Display) -> Self {
        Self { exit, message: error.to_string() }
    }
}

async fn run(command: Command) -> ExitCode {
    let ended = async {
        let mut signals = Signals::new()?;
        let places = Places::of_process();
        match command {
            Command::Http(args) => http(args, Files::load(&places)?, &mut signals).await,
            Command::Listen(args) => listen(args, Files::load(&places)?, &mut signals).await,
            Command::Start(args) => start(args, places, &mut signals).await,
            Command::Run(args) => run_command(args, Files::load(&places)?, &mut signals).await,
            #[cfg(feature = "embedded")]
            Command::Dev(args) => dev(args, Files::load(&places)?, &mut signals).await,
            Command::Wait(args) => {
                let mut by = Exit::Done;
                wait::run(args, &mut Files::load(&places)?, async { by = signals.next().await.into() }).await?;
                Ok(by as u8)
            }
            Command::Trigger(args) => until_signal(&mut signals, trigger::run(args, &Files::load(&places)?)).await,
            Command::Send(args) => until_signal(&mut signals, send::run(args, &Files::load(&places)?)).await,
            Command::Login(args) => login(args, &places, &mut signals).await,
            Command::Status { output } => status(output, &mut signals).await,
            Command::Inbox(args) => until_signal(&mut signals, inbox::run(args, &mut Files::load(&places)?)).await,
            Command::Requests(args) => until_signal(&mut signals, requests::run(args)).await,
            Command::Export(args) => until_signal(&mut signals, export::run(args, &Files::load(&places)?)).await,
            Command::Replay(args) => {
                let files = Files::load(&places)?;
                tokio::select! {
                    done = replay::run(args, &files) => Ok(if done? { Exit::Done } else { Exit::Failed } as u8),
                    by = signals.next() => Ok(Exit::from(by) as u8),
                }
            }
            Command::Show(args) => until_signal(&mut signals, show::run(args, &Files::load(&places)?)).await,
            Command::Logout
            | Command::Config(_)
            | Command::Verify(_)
            | Command::Completions { .. }
            | Command::Man { .. } => Ok(Exit::Done as u8),
        }
    };
    match Box::pin(ended).await {
        Ok(code) => ExitCode::from(code),
        Err(Failure { exit, message }) => fail(exit, &message),
    }
}

async fn http(args: HttpArgs, mut files: Files, signals: &mut Signals) -> Ended {
    let settings = Settings::new(args.open, args.service, &mut files)?;
    let screen = Screen::new(&settings.show, &files);
    let client = screen.prove(open::client(args.upstream, settings)?, Probe::new());
    let (mut observer, stop) = (screen.clone(), CancellationToken::new());
    attend(signals, client.run(&mut observer, stop.cancelled()), &stop, &screen).await
}

async fn listen(args: ListenArgs, mut files: Files, signals: &mut Signals) -> Ended {
    let answer = Answer::new(&args)?;
    let settings = Settings::new(args.open, ServiceArgs::default(), &mut files)?;
    let screen = Screen::answering(&settings.show, &files, answer.describe());
    let (client, mut observer) = listen::open(settings, answer, screen.clone())?;
    let stop = CancellationToken::new();
    attend(signals, client.run(&mut observer, stop.cancelled()), &stop, &screen).await
}

async fn start(args: StartArgs, places: Places, signals: &mut Signals) -> Ended {
    let (start, files) = Start::new(args, places)?;
    let (screen, stop) = (Screen::new(start.show(), &files), CancellationToken::new());
    attend(signals, Box::pin(start.run(screen.clone(), stop.cancelled())), &stop, &screen).await
}

async fn run_command(args: RunArgs, mut files: Files, signals: &mut Signals) -> Ended {
    let settings = Settings::new(args.open, args.service, &mut files)?;
    let screen = Screen::aside(&settings.show, &files, args.events.as_deref());
    let screen = screen.map_err(|error| Failure::new(Exit::Failed, &format_args!("--events: {error}")))?;
    let next = async || signals.next().await;
    let run = Box::pin(run::run(settings, args.upstream, &args.command, screen.clone(), next));
    let ended = screen.during(run).await;
    let failed = screen.close();
    match (ended?, failed) {
        (0, Some(message)) => Err(Failure { exit: Exit::Failed, message }),
        (code, _) => Ok(code),
    }
}

#[cfg(feature = "embedded")]
async fn dev(args: DevArgs, files: Files, signals: &mut Signals) -> Ended {
    let settings = DevSettings::new(args, &files)?;
    let screen = match settings.upstream {
        Some(_) => Screen::new(&settings.show, &files),
        None => Screen::answering(&settings.show, &files, dev::DEMO.to_owned()),
    };
    let stop = CancellationToken::new();
    attend(signals, Box::pin(dev::run(settings, screen.clone(), stop.cancelled())), &stop, &screen).await
}

async fn login(args: LoginArgs, places: &Places, signals: &mut Signals) -> Ended {
    let mut by = Exit::Interrupted;
    match login::login(args, places, async { by = signals.next().await.into() }).await {
        Ok(done) => {
            tell(&done);
            Ok(Exit::Done as u8)
        }
        Err(error @ LoginError::Interrupted) => Err(Failure::new(by, &error)),
        Err(error) => Err(error.into()),
    }
}

async fn status(output: Output, signals: &mut Signals) -> Ended {
    let report = tokio::select! {
        report = status::report(output) => report?,
        by = signals.next() => return Ok(Exit::from(by) as u8),
    };
    report.notices.iter().for_each(tell);
    print(report.shown.as_bytes())
}

/// A command that a signal ends at once.
async fn until_signal<E: Into<Failure>>(signals: &mut Signals, run: impl Future<Output = Result<(), E>>) -> Ended {
    tokio::select! {
        ended = run => ended.map(|()| Exit::Done as u8).map_err(Into::into),
        by = signals.next() => Ok(Exit::from(by) as u8),
    }
}

fn check(output: Output) -> Ended {
    let report = Report::new(&Places::of_process(), |name| std::env::var_os(name));
    let shown = print(report.show(output).as_bytes());
    for line in report.warnings.iter().chain(&report.problems) {
        tell(line);
    }
    if report.problems.is_empty() { shown } else { Ok(Exit::Usage as u8) }
}

fn verify(args: &VerifyArgs) -> Ended {
    let files = Files::load(&Places::of_process())?;
    let report = Builder::new_current_thread().enable_all().build()?.block_on(verify::verify(args, &files))?;
    report.notices.iter().for_each(tell);
    let shown = print(report.show(args.output).as_bytes());
    if report.is_valid() { shown } else { shown.map(|_| Exit::Failed as u8) }
}

fn print(data: &[u8]) -> Ended {
    match terminal::print(data) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Done as u8),
    }
}

fn fail(exit: Exit, error: &dyn Display) -> ExitCode {
    tell(error);
    exit.into()
}

/// Each error's exit code.
macro_rules! exits {
    ($($error:ty: $exit:expr;)*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let exit: fn(&$error) -> Exit = $exit;
                Self::new(exit(&error), &error)
            }
        })*
    };
}

exits! {
    std::io::Error: |_| Exit::Failed;
    ConfigError: |_| Exit::Usage;
    TargetError: |_| Exit::Usage;
    AnswerError: |_| Exit::Usage;
    ControlError: |_| Exit::Failed;
    ClientError: exit_of;
    StartError: |error| match error {
        StartError::Client(error) => exit_of(error),
        StartError::Target(_) => Exit::Usage,
    };
    RunError: |error| match error {
        RunError::Client(error) => exit_of(error),
        _ => Exit::Failed,
    };
    WaitError: |error| match error {
        WaitError::Client(error) => exit_of(error),
        WaitError::Config(_) | WaitError::Target(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    InboxCommandError: |error| match error {
        InboxCommandError::Config(_) | InboxCommandError::Target(_) | InboxCommandError::Both(_) => Exit::Usage,
        InboxCommandError::NoToken => Exit::Unauthorized,
        InboxCommandError::Inboxes(InboxesError::Refused { status, .. }) if *status == http::StatusCode::UNAUTHORIZED => {
            Exit::Unauthorized
        }
        InboxCommandError::Inboxes(InboxesError::Send(_)) => Exit::Unreachable,
        _ => Exit::Failed,
    };
    HistoryError: |_| Exit::Failed;
    ExportError: |_| Exit::Failed;
    ReplayCommandError: |error| match error {
        ReplayCommandError::Config(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    VerifyError: |_| Exit::Usage;
    DeliveryError: |error| error.into();
    LoginError: |error| match error {
        LoginError::Connect(ConnectError::Refused { code, .. }) if code == "unauthorized" => Exit::Unauthorized,
        LoginError::Connect(ConnectError::Revoked(_)) => Exit::Unauthorized,
        LoginError::Connect(_) => Exit::Unreachable,
        LoginError::Token { .. } | LoginError::Target(_) => Exit::Usage,
        LoginError::Interrupted => Exit::Interrupted,
        LoginError::Ask(_) | LoginError::NoHome | LoginError::File { .. } => Exit::Failed,
    };
}

#[cfg(feature = "embedded")]
exits! {
    DevError: |error| match error {
        DevError::Client(error) => exit_of(error),
        _ => Exit::Failed,
    };
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

/// Runs a tunnel, and says what ended it. A signal, or the end of whatever the screen is for, lets it finish what is
/// under way; a second signal does not.
async fn attend<E: Into<Failure>>(
    signals: &mut Signals,
    tunnel: impl Future<Output = Result<(), E>>,
    stop: &CancellationToken,
    screen: &Screen,
) -> Ended {
    let mut by = Exit::Done;
    let ended = {
        let mut tunnel = pin!(screen.during(tunnel));
        loop {
            tokio::select! {
                ended = &mut tunnel => break ended,
                signal = signals.next() => {
                    // Of a terminal that is closed both the system and the shell may tell.
                    if signal == Signal::HangUp && by == Exit::HungUp {
                        continue;
                    }
                    by = signal.into();
                    if stop.is_cancelled() {
                        break Ok(());
                    }
                    stop.cancel();
                }
                () = screen.over(), if !stop.is_cancelled() => stop.cancel(),
            }
        }
    };
    let failed = screen.close();
    ended.map_err(Into::into)?;
    match failed {
        Some(message) => Err(Failure { exit: Exit::Failed, message }),
        None => Ok(by as u8),
    }
}
