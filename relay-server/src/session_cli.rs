//! `relay-server session …`: the clients that are connected, for the operator and for scripts.

use std::io::{self, Write};
use std::path::Path;

use clap::Subcommand;

use crate::control::{Control, Reply, Request};
use crate::table;
use crate::token_cli::{CliError, Output};

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Show the clients that are connected, with the names that they serve
    List {
        /// For people, or one JSON object per line
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// End a session; its client comes back where it may
    ///
    /// To keep it out, revoke its token or block its address.
    End {
        /// The session's id
        session: String,
    },
}

/// Carries out a command on the relay that runs on this data directory.
///
/// # Errors
/// [`CliError`] says what was not done, and why.
pub async fn run(command: SessionCommand, data_dir: &Path) -> Result<(), CliError> {
    let ask = async |request| match Control::running(data_dir).await?.request(request).await? {
        Reply::Refused { message, .. } => Err(CliError::Refused { message }),
        reply => Ok(reply),
    };
    let (mut out, mut talk) = (io::stdout(), io::stderr());
    match command {
        SessionCommand::List { output } => {
            let Reply::Sessions { sessions } = ask(Request::ListSessions).await? else {
                return Err(CliError::Unexpected);
            };
            if sessions.is_empty() {
                writeln!(talk, "No client is connected.")?;
            }
            match output {
                Output::Text => {
                    let rows: Vec<_> = sessions
                        .into_iter()
                        .map(|it| [it.id, it.token, it.address.to_string(), it.since, it.client, it.tunnels.join(", ")])
                        .collect();
                    table::write(&mut out, ["SESSION", "TOKEN", "ADDRESS", "SINCE", "CLIENT", "TUNNELS"], &rows)?;
                }
                Output::Json => {
                    for session in &sessions {
                        writeln!(out, "{}", serde_json::to_string(session).map_err(io::Error::from)?)?;
                    }
                }
            }
        }
        SessionCommand::End { session } => {
            ask(Request::EndSession { session }).await?;
            writeln!(talk, "The session is ended.")?;
        }
    }
    Ok(out.flush()?)
}
