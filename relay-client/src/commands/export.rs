//! `relay export`: a stored exchange as other tools take it.

use std::path::PathBuf;

use crate::capture::export::{self, Form};
use crate::capture::fixture::FixtureError;
use crate::cli::{ExportArgs, Secrets};
use crate::commands::requests::{self, HistoryError, quietly};
use crate::config::Files;
use crate::terminal::{self, tell};

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The exchange is not to be had, or cannot be printed.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The directory cannot be written.
    #[error(transparent)]
    Fixture(#[from] FixtureError),
}

/// Prints the exchange, or writes its directory.
///
/// # Errors
/// [`ExportError`].
pub async fn run(args: ExportArgs, files: &Files) -> Result<(), ExportError> {
    let mut exchange = requests::open().await?.find(&args.id).map_err(HistoryError::from)?;
    let table = files.table();
    if args.secrets == Secrets::Mask {
        exchange = export::masked(exchange, &table);
    }
    for (of, part) in [
        ("request", Some((exchange.request.body_truncated, exchange.request.body_size))),
        ("answer", exchange.response.as_ref().map(|response| (response.body_truncated, response.body_size))),
    ] {
        if let Some((true, size)) = part {
            tell(&format!("of the {size} bytes of the body of the {of} only the beginning was kept"));
        }
    }
    if args.form == Form::Fixture {
        let directory = args.to.unwrap_or_else(|| PathBuf::from(&exchange.summary.id));
        export::fixture(&exchange).write(&directory)?;
        return Ok(quietly(terminal::print(format!("{}\n", directory.display()).as_bytes()))?);
    }
    Ok(quietly(terminal::print(&export::write(&exchange, args.form, &table)))?)
}
