//! `relay login` and `relay logout`: a relay and a token that every later command finds by itself.
//!
//! They stand in a file of their own, so that nothing in a file that somebody has written by hand is ever rewritten.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    pin::pin,
};

use serde::Serialize;

use crate::cli::LoginArgs;
use crate::commands::prompt;
use crate::session::dial::{Target, TargetError, Trust};
use crate::value::Secret;
use crate::{
    atomic,
    config::{Files, Places},
    platform::create_private_directory,
    session::{ConnectError, connect},
};

/// Why nothing was stored, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Standard input gave none.
    #[error("cannot read the token: {0}")]
    Ask(io::Error),
    /// Somebody pressed Ctrl-C.
    #[error("nothing was stored")]
    Interrupted,
    /// There is no token, or it cannot be one.
    #[error(
        "a token is one word of letters, digits and _, and {} was given; type or pipe it into relay login, or use \
         --token or RELAY_TOKEN",
        if *.empty { "none" } else { "something else" }
    )]
    Token {
        /// Nothing was given.
        empty: bool,
    },
    /// The relay's CA cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The relay does not take the token, or is not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// This user has no home.
    #[error("there is no directory for settings: set HOME or XDG_CONFIG_HOME, or on Windows APPDATA")]
    NoHome,
    /// The file cannot be written or removed.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes the token from standard input where none was given and that is no terminal. It blocks, so nothing may wait for it.
///
/// # Errors
/// Where it cannot be read.
pub fn read_token(args: &mut LoginArgs) -> Result<(), LoginError> {
    if args.way.token.is_none() && !io::stdin().is_terminal() {
        args.way.token = Some(prompt::piped().map_err(LoginError::Ask)?);
    }
    Ok(())
}

/// Asks whoever sits at the terminal for the token where there is none yet, and stores it with its relay once that has
/// taken it; says what was done.
///
/// # Errors
/// [`LoginError`]; nothing was stored then.
pub async fn login(
    args: LoginArgs,
    places: &Places,
    interrupted: impl Future<Output = ()>,
) -> Result<String, LoginError> {
    let mut interrupted = pin!(interrupted);
    let token = match args.way.token {
        Some(token) => token,
        None => {
            let typed = prompt::typed(&format!("Token for {}: ", args.relay), interrupted.as_mut()).await;
            typed.map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => LoginError::Interrupted,
                _ => LoginError::Ask(error),
            })?
        }
    };
    if token.expose().is_empty() {
        return Err(LoginError::Token { empty: true });
    }
    if !token.is_one_word() {
        return Err(LoginError::Token { empty: false });
    }
    let file = places.login.as_deref().ok_or(LoginError::NoHome)?;
    let relay_ca = args.way.relay_ca.map(|ca| std::path::absolute(&ca).unwrap_or(ca));
    let trust = relay_ca.as_deref().map_or(Ok(Trust::System), Trust::only)?;
    let target = Target::new(args.relay.clone(), &trust)?.dialling(args.way.relay_addr.clone());
    if !takes(target, &token, interrupted).await? {
        return Err(LoginError::Interrupted);
    }
    let stored = Stored {
        relay: args.relay.to_string(),
        token: token.expose(),
        relay_ca: relay_ca.as_deref(),
        relay_addr: args.way.relay_addr.map(|addr| addr.to_string()),
    };
    store(file, &stored).map_err(|source| LoginError::File { file: file.to_owned(), source })?;
    let mut said = format!("{} takes the token. Both are stored in {}, for you alone.", args.relay, file.display());
    let (files, _) = Files::load_all(places);
    if places.only.is_some() || files.file.relay.is_some_and(|relay| relay != args.relay) {
        said.push_str("\nAnother file stands before it here: see relay config check.");
    }
    Ok(said)
}

/// Whether there was an answer before `interrupted` ended. A session without a tunnel costs the relay nothing.
async fn takes(target: Target, token: &Secret, interrupted: impl Future<Output = ()>) -> Result<bool, ConnectError> {
    tokio::select! {
        () = interrupted => Ok(false),
        session = connect(&target, Some(token), Vec::new(), None) => {
            session?.close().await;
            Ok(true)
        }
    }
}

/// The file, with keys as in `relay.toml`.
#[derive(Serialize)]
struct Stored<'a> {
    relay: String,
    token: &'a str,
    relay_ca: Option<&'a Path>,
    relay_addr: Option<String>,
}

fn store(file: &Path, stored: &Stored<'_>) -> io::Result<()> {
    create_private_directory(file.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let text = toml::to_string(stored).map_err(io::Error::other)?;
    // The relay shows a token once.
    atomic::replace(file, true, |new| {
        write!(new, "# Written by relay login; relay logout removes it.\n{text}").and_then(|()| new.sync_all())
    })
}

/// Removes what [`login`] has stored; says what was done.
///
/// # Errors
/// Where the file cannot be removed.
pub fn logout(places: &Places) -> Result<String, LoginError> {
    let file = places.login.as_deref().ok_or(LoginError::NoHome)?;
    match fs::remove_file(file) {
        Ok(()) => Ok(format!("Removed {}. The token itself stays valid until the relay revokes it.", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("There was nothing stored.".to_owned()),
        Err(source) => Err(LoginError::File { file: file.to_owned(), source }),
    }
}
