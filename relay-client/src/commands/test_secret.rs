//! Secrets of our own for samples: made when one is first needed, and the same from then on, so that an app is told once.
//! Each user has others, because an app on a public URL takes what is signed with them for the provider's.

use std::fs::{File, read_to_string};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, KeyPair, Provider, Table};

use crate::atomic::{create, replace};
use crate::capture::replay::{Replay, ReplayError, Resign};
use crate::platform::{Base, base_directory, create_private_directory};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep a secret for tests in {}: {problem}; give one with --secret", .file.display())]
pub struct TestSecretError {
    file: PathBuf,
    problem: io::Error,
}

/// Signs a replay anew that a secret of ours has signed, where that is to be. Whether it was.
///
/// # Errors
/// Where it cannot be signed.
pub(super) fn renew(replay: &mut Replay, table: &Table) -> Result<bool, ReplayError> {
    let provider = replay.provider.as_deref().and_then(|id| table.get(id));
    let known = provider.and_then(|provider| read(&file(provider)?).ok()?);
    let (Some(provider), Some(KeyPair { private, public })) = (provider, known) else { return Ok(false) };
    // One verifies and the other signs, where they are two.
    let credentials = Credentials { secrets: vec![public.into(), private], ..Credentials::default() };
    let now = Timestamp::now();
    if replay.was_signed_with(provider, &credentials, now) {
        replay.sign(Resign::Stale, table, &credentials, now)
    } else {
        Ok(false)
    }
}

/// The secret for a provider's samples. `new` is kept where there is none yet.
///
/// # Errors
/// Where it can be neither read nor written.
pub(super) fn of(provider: &Provider, new: KeyPair) -> Result<KeyPair, TestSecretError> {
    // Without a home it is good for this once.
    let Some(file) = file(provider) else { return Ok(new) };
    let kept = |problem| TestSecretError { file: file.clone(), problem };
    let read = || read(&file).map_err(kept);
    if let Some(known) = read()? {
        return Ok(known);
    }
    file.parent().map_or(Ok(()), create_private_directory).map_err(kept)?;
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

fn file(provider: &Provider) -> Option<PathBuf> {
    Some(base_directory(Base::State)?.join("relay").join("test-secrets").join(&provider.id))
}

/// What is kept; nothing where there is none yet.
fn read(file: &Path) -> io::Result<Option<KeyPair>> {
    match read_to_string(file) {
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            let pair = lines.next().zip(lines.next());
            Ok(pair.map(|(private, public)| KeyPair { private: private.into(), public }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
