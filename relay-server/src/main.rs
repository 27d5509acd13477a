//! `relay-server`: see `relay-server --help`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use relay_server::Relay;
use relay_server::audit_cli::{self, AuditArgs};
use relay_server::backup::{self, Backup};
use relay_server::block_cli::{self, BlockCommand};
use relay_server::config::{Config, ServeArgs, default_data_dir};
use relay_server::descriptors::Sockets;
use relay_server::doctor::{self, DoctorArgs, DoctorError};
use relay_server::inbox_cli::{self, InboxArgs};
use relay_server::init::{self, InitArgs};
use relay_server::log::AccessLog;
use relay_server::notify;
use relay_server::program::Program;
use relay_server::service_cli;
use relay_server::session_cli::{self, SessionCommand};
use relay_server::token_cli::{self, TokenCommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Readings of the configuration at once, one after another; the signals of others wait.
const RELOADS: usize = 2;

/// A self-hosted tunnel relay for webhooks.
#[derive(Parser)]
#[command(name = "relay-server", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay
    Serve(ServeArgs),
    /// Create, list, revoke tokens, and reserve names for them
    Token {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR", global = true)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Look after webhooks that wait for their clients, whoever's they are
    Inbox {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR", global = true)]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        args: InboxArgs,
    },
    /// Ask the relay whether it takes requests; exit code 1 where it does not, or none runs
    Health {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Copy all that the relay keeps into a new directory, on which a relay can be started; it may run meanwhile
    Backup {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
        /// The new directory
        #[arg(value_name = "TO")]
        to: PathBuf,
    },
    /// Show the clients that are connected, and end their sessions
    Session {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR", global = true)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Keep addresses, tunnel names and tokens out
    Block {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR", global = true)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: BlockCommand,
    },
    /// Show who did what with this relay, by a command or over the admin API
    Audit {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        args: AuditArgs,
    },
    /// Print the token of the admin API
    AdminToken {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
        /// Make another one first; the one before is worth nothing then
        #[arg(long)]
        renew: bool,
    },
    /// Check flags and configuration file without running
    CheckConfig(ServeArgs),
    /// Say what is wrong between the world and the relay, from the DNS records to a tunnel, and what mends it
    ///
    /// It takes the flags of `serve`, and looks from this machine, at a relay that runs or at what there is without one.
    Doctor(DoctorArgs),
    /// Write a configuration file, say which DNS records to set, and make the first token
    Init(InitArgs),
    /// Have the running relay read its configuration anew, as SIGHUP does
    Reload {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Have the running relay hand over to the program that is installed by now; no request fails
    Upgrade {
        /// Where the relay keeps its data [default: /var/lib/relay for root, else ~/.local/share/relay]
        #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Where to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let at = |data_dir: Option<PathBuf>| data_dir.unwrap_or_else(default_data_dir);
    let done = match Cli::parse().command {
        Command::Serve(args) => serve(args),
        Command::Token { data_dir, command } => run(token_cli::run(command, &at(data_dir))),
        Command::Inbox { data_dir, args } => run(inbox_cli::run(args, &at(data_dir))),
        Command::Health { data_dir } => run(service_cli::health(&at(data_dir))),
        Command::Reload { data_dir } => run(service_cli::reload(&at(data_dir))),
        Command::Upgrade { data_dir } => run(service_cli::upgrade(&at(data_dir))),
        Command::Backup { data_dir, to } => back_up(&at(data_dir), &to),
        Command::Session { data_dir, command } => run(session_cli::run(command, &at(data_dir))),
        Command::Audit { data_dir, args } => run(audit_cli::run(args, &at(data_dir))),
        Command::Block { data_dir, command } => run(block_cli::run(command, &at(data_dir))),
        Command::AdminToken { data_dir, renew } => run(service_cli::admin_token(&at(data_dir), renew)),
        Command::CheckConfig(args) => check(&args),
        Command::Doctor(args) => return diagnose(&args),
        Command::Init(args) => run(init::run(&args)),
        Command::Completions { shell } => completions(shell),
        Command::Man { directory } => manual(&directory),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let takes_over = args.take_over;
    let served = serve_on(args);
    if let Err(error) = &served
        && takes_over
        && !std::io::stdout().is_terminal()
    {
        // For the relay that has started this, and tells whoever has asked for it, where it still listens.
        let _ = writeln!(std::io::stdout(), "{error:#}");
    }
    served
}

fn serve_on(args: ServeArgs) -> anyhow::Result<()> {
    let config = Config::resolve(&args)?;
    let (takes_over, log) = (args.take_over, args.log);
    let sockets = Sockets::from_environment()?;
    let runtime = runtime(config.threads)?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let path = own_path().context("cannot find this program again, for an upgrade")?;
        let arguments = std::env::args_os().skip(1).collect();
        let program = Program::new(path, arguments, Box::new(move || Config::resolve(&args)));
        let access = AccessLog::stderr(log);
        let relay = if takes_over {
            Relay::take_over(config, access, Some(program)).await?
        } else {
            Relay::bind_as(config, access, sockets, Some(program)).await?
        };
        announce(&relay);
        notify::ready();
        let reloader = relay.reloader();
        relay
            .run(async {
                // Beside the others, because files may be on a network that hangs. It says in the log what has come of it.
                let mut reading = JoinSet::new();
                loop {
                    tokio::select! {
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                        _ = hangup.recv(), if reading.len() < RELOADS => {
                            let reloader = reloader.clone();
                            reading.spawn(async move { reloader.reload_by_signal().await });
                        }
                        Some(_) = reading.join_next() => {}
                    }
                }
                notify::stopping();
            })
            .await;
        Ok(())
    });
    // Whatever still hangs on a file has nothing to say any more.
    runtime.shutdown_background();
    served
}

/// Where this program was started, so that whatever is there later is the next one: also a link that leads elsewhere by then.
fn own_path() -> std::io::Result<PathBuf> {
    let typed = std::env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    typed.map_or_else(std::env::current_exe, std::path::absolute)
}

fn announce(relay: &Relay) {
    let show = |address: Option<std::net::SocketAddr>| address.map_or("off".into(), |address| address.to_string());
    let (https, http) = (show(relay.https_addr()), show(relay.http_addr()));
    let admin = relay.admin().map_or("off".into(), |address| address.to_string());
    tracing::info!(url = %relay.url(), %https, %http, %admin, "the relay is ready");
    for dns in relay.dns_addrs() {
        tracing::info!(%dns, "answering DNS for the domain");
    }
    if let Some(ca) = relay.ca_file() {
        tracing::info!(ca_file = %ca.display(), "using a development certificate; give clients --relay-ca");
    }
}

fn check(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::resolve(args)?;
    let port = config.https.map_or(443, |address| address.port());
    println!("the configuration is valid; tunnels would be at {}", config.tunnel_url("NAME", port));
    Ok(())
}

/// As an exit code: 0 where nothing is wrong, 1 where something is, 2 where it cannot be looked for.
fn diagnose(args: &DoctorArgs) -> ExitCode {
    let wrong = match runtime(1).map(|rt| rt.block_on(doctor::run(args))) {
        Ok(Ok(wrong)) => return if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        // Whoever reads has seen enough.
        Ok(Err(DoctorError::Output(error))) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            return ExitCode::FAILURE;
        }
        Ok(Err(error)) => error.into(),
        Err(error) => error,
    };
    eprintln!("relay-server: {wrong:#}");
    ExitCode::from(2)
}

fn back_up(data: &Path, to: &Path) -> anyhow::Result<()> {
    let Backup { tokens, inboxes, waiting, dead } = backup::make(data, to)?;
    println!("{}: {tokens} tokens, {inboxes} inboxes, {waiting} webhooks that wait, {dead} dead letters", to.display());
    Ok(())
}

fn completions(shell: Shell) -> anyhow::Result<()> {
    // At once, because whoever reads may have gone.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "relay-server", &mut script);
    std::io::stdout().write_all(&script).context("cannot print the script")
}

/// `relay-server.1`, and a page for each command.
fn manual(directory: &Path) -> anyhow::Result<()> {
    let written = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.with_context(|| format!("cannot write into {}", directory.display()))
}

/// Runs a command that needs no more than one thread.
fn run<E: Into<anyhow::Error>>(command: impl Future<Output = Result<(), E>>) -> anyhow::Result<()> {
    runtime(1)?.block_on(command).map_err(Into::into)
}

/// One thread serves best while one core is enough: exchanges then meet in the same batches.
fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().context("cannot start the runtime")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn the_documented_commands_are_understood() {
        let pages = [
            include_str!("../../README.md"),
            include_str!("../../docs/backup.md"),
            include_str!("../../docs/admin-api.md"),
            include_str!("../../docs/commands.md"),
            include_str!("../../docs/configuration.md"),
            include_str!("../../docs/inbox.md"),
            include_str!("../../docs/install.md"),
            include_str!("../../docs/path-mode.md"),
            include_str!("../../docs/self-hosting.md"),
            include_str!("../../docs/upgrade.md"),
        ];
        let mut seen = 0;
        for page in pages {
            let page = page.replace("\\\n", " ");
            let blocks = page.split("```").skip(1).step_by(2);
            for line in blocks.flat_map(str::lines).map(str::trim).filter(|line| line.starts_with("relay-server ")) {
                seen += 1;
                let words = line.split(" > ").next().unwrap().split_whitespace();
                assert!(Cli::try_parse_from(words).is_ok(), "{line}");
            }
        }
        assert!(seen >= 8, "only {seen} commands were found");
    }
}
