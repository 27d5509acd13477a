//! `relay-server health`, `reload`, `upgrade` and `admin-token`: what a relay says and does about itself.

use std::io::Write;
use std::path::Path;

use crate::control::{Control, Reply, Request};
use crate::reload::Reloaded;
use crate::token_cli::{self, CliError};

/// Has the relay on this data directory read its configuration anew.
///
/// # Errors
/// [`CliError`] says why it stays as it was.
pub async fn reload(data_dir: &Path) -> Result<(), CliError> {
    let Reply::Reloaded(Reloaded { changed, waiting }) = ask(data_dir, Request::Reload).await? else {
        return Err(CliError::Unexpected);
    };
    let mut out = std::io::stdout();
    match changed.is_empty() {
        true => writeln!(out, "nothing has changed that a running relay can change")?,
        false => writeln!(out, "in force now: {}", changed.join(", "))?,
    }
    if !waiting.is_empty() {
        writeln!(out, "in force after `relay-server upgrade`: {}", waiting.join(", "))?;
    }
    Ok(())
}

/// Has the relay on this data directory start the program that is installed by now, and hand over to it.
///
/// # Errors
/// [`CliError`] says why the relay goes on as it was.
pub async fn upgrade(data_dir: &Path) -> Result<(), CliError> {
    let Reply::Upgraded { process, version } = ask(data_dir, Request::Upgrade).await? else {
        return Err(CliError::Unexpected);
    };
    let process = process.map(|process| format!(" (process {process})")).unwrap_or_default();
    let rest = "the one before it ends what it has under way, and then stops";
    Ok(writeln!(std::io::stdout(), "version {version}{process} serves now; {rest}")?)
}

/// Asks the relay on this data directory whether it takes requests.
///
/// # Errors
/// [`CliError`] says why it does not, or that there is none.
pub async fn health(data_dir: &Path) -> Result<(), CliError> {
    let Reply::Status(status) = ask(data_dir, Request::Status).await? else { return Err(CliError::Unexpected) };
    let mut out = std::io::stdout();
    match (status.ready, status.trouble.or(status.note)) {
        (true, None) => Ok(writeln!(out, "ready")?),
        (true, Some(caveat)) => Ok(writeln!(out, "ready, but {caveat}")?),
        (false, reason) => Err(CliError::Refused { message: format!("not ready: {}", reason.unwrap_or_default()) }),
    }
}

/// Prints the secret of the admin API, or makes another one and prints that.
///
/// # Errors
/// [`CliError`] says why it could not.
pub async fn admin_token(data_dir: &Path, renew: bool) -> Result<(), CliError> {
    let Reply::AdminToken { secret } = token_cli::ask(data_dir, Request::AdminToken { renew }).await? else {
        return Err(CliError::Unexpected);
    };
    Ok(writeln!(std::io::stdout(), "{}", secret.expose())?)
}

async fn ask(data_dir: &Path, request: Request) -> Result<Reply, CliError> {
    match Control::running(data_dir).await?.request(request).await? {
        Reply::Refused { message, .. } => Err(CliError::Refused { message }),
        reply => Ok(reply),
    }
}
