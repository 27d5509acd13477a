//! Secrets of our own for samples: made when one is first needed, and the same from then on, so that an app is told once.
//! Each user has others, because an app on a public URL takes what is signed with them for the provider's.

use std::fs::{File, read_to_string};
use std::io::{self, Write as _};
use std::path::PathBuf;

use relay_protocol::webhook::{KeyPair, Provider};

use crate::atomic::{create, replace};
use crate::platform::{Base, base_directory, create_private_directory};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep a secret for tests in {}: {problem}; give one with --secret", .file.display())]
pub struct TestSecretError {
    file: PathBuf,
    problem: io::Error,
}

/// The secret for a provider's samples. `new` is kept where there is none yet.
///
/// # Errors
/// Where it can be neither read nor written.
pub(super) fn of(provider: &Provider, new: KeyPair) -> Result<KeyPair, TestSecretError> {
    // Without a home it is good for this once.
    let Some(state) = base_directory(Base::State) else { return Ok(new) };
    let directory = state.join("relay").join("test-secrets");
    let file = directory.join(&provider.id);
    let kept = |problem| TestSecretError { file: file.clone(), problem };
    let read = || match read_to_string(&file) {
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            let pair = lines.next().zip(lines.next());
            Ok(pair.map(|(private, public)| KeyPair { private: private.into(), public }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(kept(problem)),
    };
    if let Some(known) = read()? {
        return Ok(known);
    }
    create_private_directory(&directory).map_err(kept)?;
    let write = |out: &mut File| writeln!(out, "{}\n{}", new.private.expose(), new.public);
    match create(&file, true, write) {
        Ok(()) => Ok(new),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match read()? {
            // Another one was faster.
            Some(known) => Ok(known),
            // What stands there is no secret.
            None => replace(&file, true, write).map(|()| new).map_err(kept),
        },
        Err(problem) => Err(kept(problem)),
    }
}
