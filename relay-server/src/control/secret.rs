//! The secret that the admin API asks for: a file in the data directory, for whoever may read that.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use thiserror::Error;

use crate::certs::replace;
use crate::store::{Secret, SecretError};

/// The file's name in the data directory.
const FILE: &str = "admin.token";

/// Why there is no such secret.
#[derive(Debug, Error)]
pub enum AdminSecretError {
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is in it.
    #[error("{} has no admin token in it ({reason}); `relay-server admin-token --renew` makes one", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: SecretError,
    },
}

/// The secret of a data directory, which is made if there is none. It blocks.
///
/// # Errors
/// [`AdminSecretError`].
pub(crate) fn of(directory: &Path) -> Result<Secret, AdminSecretError> {
    match read(directory) {
        Err(AdminSecretError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => renew(directory),
        result => result,
    }
}

/// The secret of a data directory, for whoever only asks. It blocks.
///
/// # Errors
/// [`AdminSecretError`].
pub(crate) fn read(directory: &Path) -> Result<Secret, AdminSecretError> {
    let path = directory.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Secret::parse(&text).map_err(|reason| AdminSecretError::Other { path, reason }),
        Err(source) => Err(AdminSecretError::Io { path, source }),
    }
}

/// Another secret in its place: the one before is worth nothing from now on. It blocks.
///
/// # Errors
/// [`AdminSecretError::Io`].
pub(crate) fn renew(directory: &Path) -> Result<Secret, AdminSecretError> {
    let (path, secret) = (directory.join(FILE), Secret::generate());
    let written = replace(&path, &format!("{}\n", secret.expose()), 0o600);
    written.map(|()| secret).map_err(|source| AdminSecretError::Io { path, source })
}

/// Whether what was presented is the secret. How long it takes tells nothing of either.
pub(crate) fn is_it(presented: &str, secret: &Secret) -> bool {
    Secret::parse(presented).is_ok_and(|it| verify_slices_are_equal(&it.sha256(), &secret.sha256()).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let first = of(directory.path()).unwrap();
        assert!(is_it(first.expose(), &of(directory.path()).unwrap()));
        let mode = directory.path().join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = renew(directory.path()).unwrap();
        assert!(is_it(second.expose(), &of(directory.path()).unwrap()));
        assert!(!is_it(first.expose(), &second) && !is_it("", &second));
        std::fs::write(directory.path().join(FILE), "sesame\n").unwrap();
        let error = of(directory.path()).unwrap_err().to_string();
        assert!(error.contains("--renew") && !error.contains("sesame"), "{error}");
    }
}
