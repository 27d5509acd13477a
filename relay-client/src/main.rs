//! `relay`: see `relay --help`.

use std::process::ExitCode;

use relay_client::cli::{Cli, Command, Exit};
use relay_client::config::{Files, Places, Settings};
use relay_client::dial::{Target, Trust};
use relay_client::names::Names;
use relay_client::terminal::{Event, Output, Printer};
use relay_client::{Client, ClientError, Observer, TunnelOptions};
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
            let settings = match Settings::new(args, &mut files) {
                Ok(settings) => settings,
                Err(error) => return fail(Exit::Usage, &error),
            };
            let mut screen = Screen::new(settings.tunnel.output, &files);
            let client = match client(settings) {
                Ok(client) => client,
                Err(error) => return fail(Exit::Usage, &error),
            };
            client
                .run(&mut screen, async { by = signals.next().await })
                .await
                .map_err(|error| (exit_of(&error), error.to_string()))
        }
        #[cfg(feature = "embedded")]
        Command::Dev(args) => {
            use relay_client::{config::DevSettings, dev};
            let settings = DevSettings::new(args, &files);
            let mut screen = Screen::new(settings.tunnel.output, &files);
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

fn client(settings: Settings) -> Result<Client, relay_client::dial::TargetError> {
    let trust = settings.relay_ca.as_deref().map_or(Ok(Trust::System), Trust::only)?;
    let names = Names::here(&settings.relay, settings.token.as_ref());
    let target = Target::new(settings.relay, &trust)?.dialling(settings.relay_addr);
    let mut client = Client::new(target).tunnel(TunnelOptions {
        upstream: settings.upstream,
        subdomain: settings.tunnel.subdomain,
        timeout: settings.tunnel.timeout,
        host_header: settings.tunnel.host_header,
        protocol: settings.tunnel.upstream_protocol,
        takeover: settings.takeover,
    });
    if !settings.random {
        client = client.remember(names);
    }
    if let Some(token) = settings.token {
        client = client.token(token);
    }
    if let Some(limit) = settings.max_reconnect_time {
        client = client.max_reconnect_time(limit);
    }
    if let Some(ca) = settings.relay_ca {
        let ca = std::path::absolute(&ca).unwrap_or(ca);
        client = client.ca_file(ca.display().to_string());
    }
    Ok(client)
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

/// The printer as it observes a client.
struct Screen(Printer);

impl Screen {
    fn new(output: Output, files: &Files) -> Self {
        let mut printer = Printer::stdio(output);
        files.warnings.iter().for_each(|warning| printer.push(&Event::Notice(warning)));
        Self(printer)
    }
}

impl Observer for Screen {
    fn observe(&mut self, event: &Event<'_>) {
        self.0.push(event);
    }

    fn pause(&mut self) -> bool {
        self.0.pending() == 0 || self.0.flush_stdio().is_ok()
    }
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
