//! `relay`: see `relay --help`.

use std::process::ExitCode;

use relay_client::cli::{Cli, Command, Exit, ServiceArgs};
use relay_client::config::{Files, Places, Settings};
use relay_client::listen::{Answer, ListenError};
use relay_client::screen::Screen;
use relay_client::{ClientError, listen, open};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => {
            // A closed pipe is no reason to fail differently.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let filter = EnvFilter::try_from_env("RELAY_LOG").unwrap_or_else(|_| EnvFilter::new("warn,hyper=error,h2=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
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
    let mut files = match Files::load(&Places::of_process()) {
        Ok(files) => files,
        Err(error) => return fail(Exit::Usage, &error),
    };
    let mut by = Exit::Done;
    let result = match command {
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
            client
                .run(&mut screen, async { by = signals.next().await })
                .await
                .map_err(|error| (exit_of(&error), error.to_string()))
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
            let shutdown = async { by = signals.next().await };
            listen::run(settings, answer, screen, shutdown).await.map_err(|error| match &error {
                ListenError::Client(client) => (exit_of(client), error.to_string()),
                ListenError::Target(_) => (Exit::Usage, error.to_string()),
                _ => (Exit::Failed, error.to_string()),
            })
        }
        #[cfg(feature = "embedded")]
        Command::Dev(args) => {
            use relay_client::{config::DevSettings, dev};
            let settings = DevSettings::new(args, &files);
            let mut screen = Screen::new(&settings.show, &files);
            dev::run(settings, &mut screen, async { by = signals.next().await }).await.map_err(|error| match &error {
                dev::DevError::Client(client) => (exit_of(client), error.to_string()),
                _ => (Exit::Failed, error.to_string()),
            })
        }
    };
    match result {
        Ok(()) => by.into(),
        Err((exit, message)) => fail(exit, &message),
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Unauthorized(_) => Exit::Unauthorized,
        ClientError::NameTaken(_) => Exit::NameTaken,
        ClientError::NameLost(_) => Exit::NameLost,
        ClientError::Unreachable(_) => Exit::Unreachable,
        ClientError::GaveUp { .. } => Exit::GaveUp,
        ClientError::Refused(_) | ClientError::PublicUrl(_) => Exit::Failed,
    }
}

fn fail(exit: Exit, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("relay: {error}");
    exit.into()
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}
