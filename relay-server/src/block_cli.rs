//! `relay-server block …`: what the operator keeps out.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};

use crate::blocks::Target;
use crate::control::{Reply, Request};
use crate::store::Name;
use crate::table;
use crate::token_cli::{CliError, Output, ask};
use relay_protocol::network::Network;

/// What can be done with blocks.
#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Keep an address, a tunnel name or a token out, at once
    ///
    /// What is there of it ends: sessions of the address, tunnels of the name, sessions of the token. No further request is
    /// let in; what is under way for a name, or on a connection, goes to its end.
    Add {
        /// What is kept out.
        #[command(flatten)]
        target: TargetArgs,
        /// Why, for whoever looks at it later
        #[arg(long, value_name = "TEXT", default_value_t, hide_default_value = true)]
        reason: String,
    },
    /// Show what is kept out
    List {
        /// For people, or one JSON object per line
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Keep something out no longer
    Remove {
        /// The block's number
        id: i64,
    },
}

/// What is kept out: one of these.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Whoever comes from this address or network, such as 192.0.2.0/24
    #[arg(long, value_name = "CIDR")]
    address: Option<Network>,
    /// This tunnel name, whoever has it
    #[arg(long, value_name = "TUNNEL")]
    name: Option<Name>,
    /// This token, and all of its tunnels
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

/// Carries out a command on the relay whose data directory this is.
///
/// # Errors
/// [`CliError`] says what was not done, and why.
pub async fn run(command: BlockCommand, data_dir: &Path) -> Result<(), CliError> {
    let (mut out, mut talk) = (io::stdout(), io::stderr());
    match command {
        BlockCommand::Add { target: TargetArgs { address, name, token }, reason } => {
            let target = address.map(Target::Address).or(name.map(Target::Name)).or(token.map(Target::Token));
            let target = target.ok_or(CliError::Unexpected)?;
            let Reply::Blocked { block } = ask(data_dir, Request::Block { target, reason }).await? else {
                return Err(CliError::Unexpected);
            };
            writeln!(talk, "Blocked: {}; `relay-server block remove {}` lets it in again.", block.target, block.id)?;
        }
        BlockCommand::List { output } => {
            let Reply::Blocks { blocks } = ask(data_dir, Request::ListBlocks).await? else {
                return Err(CliError::Unexpected);
            };
            if blocks.is_empty() {
                writeln!(talk, "Nothing is blocked.")?;
            }
            match output {
                Output::Text => {
                    let rows: Vec<_> = blocks
                        .into_iter()
                        .map(|block| [block.id.to_string(), block.target.to_string(), block.at, block.reason])
                        .collect();
                    table::write(&mut out, ["BLOCK", "OF", "SINCE", "REASON"], &rows)?;
                }
                Output::Json => {
                    for block in &blocks {
                        writeln!(out, "{}", serde_json::to_string(block).map_err(io::Error::from)?)?;
                    }
                }
            }
        }
        BlockCommand::Remove { id } => {
            let Reply::Unblocked { block } = ask(data_dir, Request::Unblock { id }).await? else {
                return Err(CliError::Unexpected);
            };
            writeln!(talk, "Not blocked any more: {}.", block.target)?;
        }
    }
    Ok(out.flush()?)
}
