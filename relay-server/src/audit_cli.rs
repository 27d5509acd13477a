//! `relay-server audit`: who did what, for the operator and for scripts.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use crate::control::{Reply, Request};
use crate::table;
use crate::token_cli::{CliError, Output, ask};

/// The flags of `relay-server audit`.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// So many at most, the latest
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Those before this one, by its number in the JSON output
    #[arg(long, value_name = "ID")]
    pub before: Option<i64>,
    /// For people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub output: Output,
}

/// Prints what was done with the relay whose data directory this is, the latest last.
///
/// # Errors
/// [`CliError`] says why it cannot be told.
pub async fn run(args: AuditArgs, data_dir: &Path) -> Result<(), CliError> {
    let AuditArgs { limit, before, output } = args;
    let Reply::Audit { mut entries } = ask(data_dir, Request::Audit { before, limit: limit.into() }).await? else {
        return Err(CliError::Unexpected);
    };
    entries.reverse();
    let mut out = io::stdout();
    match output {
        Output::Text => {
            let rows: Vec<_> =
                entries.into_iter().map(|it| [it.at, it.by.to_string(), it.operation, it.subject, it.detail]).collect();
            table::write(&mut out, ["WHEN", "WHO", "WHAT", "WITH", "HOW"], &rows)?;
        }
        Output::Json => {
            for entry in &entries {
                writeln!(out, "{}", serde_json::to_string(entry).map_err(io::Error::from)?)?;
            }
        }
    }
    Ok(out.flush()?)
}
