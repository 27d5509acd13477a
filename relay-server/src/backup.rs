//! `relay-server backup`: a copy of a data directory on which a relay can be started, made while one runs.
//!
//! ```text
//!   webhooks ──► tokens and names ──► certificates ──► fsync ──► its name
//! ```
//!
//! Each database is copied as it is at one moment, with all that was acknowledged before. The tokens come behind the
//! webhooks, so that those that an inbox belongs to are there: the number of one that is not would be given to somebody
//! else. What is not finished has another name, and goes where that fails.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process;

use rusqlite::Connection;
use thiserror::Error;

use crate::certs;
use crate::inbox::records::{self, Copied};
use crate::store::{self, OpenError, database};

/// What a backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Tokens, also those that have ended.
    pub tokens: u64,
    /// Tunnel names that have an inbox.
    pub inboxes: u64,
    /// Webhooks that wait in those.
    pub waiting: u64,
    /// Dead letters in those.
    pub dead: u64,
}

/// Why there is no backup.
#[derive(Debug, Error)]
pub enum BackupError {
    /// There is nothing to be copied.
    #[error("there is no data of a relay in {}: say where it is by --data-dir", directory.display())]
    NoData {
        /// The data directory.
        directory: PathBuf,
    },
    /// The backup has the name of something else.
    #[error("{} is there already: choose a name that is free, such as one with the date", path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// A file or a directory.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A database cannot be copied.
    #[error(transparent)]
    Database(#[from] OpenError),
}

/// Copies the data directory `from` into a new directory `to`, for this user alone. Whether a relay runs on `from` does not
/// matter. `to` is whole and on disk when it appears. It blocks.
///
/// # Errors
/// [`BackupError`]; nothing is left behind then.
pub fn make(from: &Path, to: &Path) -> Result<Backup, BackupError> {
    let tokens = from.join(store::DATABASE_FILE);
    if !tokens.try_exists().map_err(at(&tokens))? {
        return Err(BackupError::NoData { directory: from.to_owned() });
    }
    if to.try_exists().map_err(at(to))? {
        return Err(BackupError::Exists { path: to.to_owned() });
    }
    let begun = Begun::beside(to)?;
    let Copied { inboxes, waiting, dead } = records::copy(from, &begun.0)?;
    let copy = begun.0.join(store::DATABASE_FILE);
    database::copy(&tokens, &copy)?;
    let count =
        Connection::open(&copy).and_then(|db| db.query_row("SELECT count(*) FROM tokens", [], |row| row.get(0)));
    let tokens = count.map_err(OpenError::from)?;
    for directory in certs::directories(from) {
        if let Some(name) = directory.file_name() {
            copy_files(&directory, &begun.0.join(name))?;
        }
    }
    begun.finish(to)?;
    Ok(Backup { tokens, inboxes, waiting, dead })
}

/// A backup that is not finished. Dropped as such, it leaves nothing behind.
struct Begun(PathBuf);

impl Begun {
    /// Where a rename makes it `to`.
    fn beside(to: &Path) -> Result<Self, BackupError> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.unfinished", process::id()));
        let path = to.with_file_name(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(at(&path))?;
        Ok(Self(path))
    }

    fn finish(self, to: &Path) -> Result<(), BackupError> {
        sync(&self.0)?;
        fs::rename(&self.0, to).map_err(at(to))?;
        let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(above).and_then(|above| above.sync_all()).map_err(at(above))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Not there any more once it is finished.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a directory, if it is there, with the files in it and below.
fn copy_files(from: &Path, to: &Path) -> Result<(), BackupError> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at(from))?,
    };
    DirBuilder::new().mode(0o700).create(to).map_err(at(to))?;
    for entry in entries {
        let entry = entry.map_err(at(from))?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(at(&path))?.is_dir() {
            copy_files(&path, &copy)?;
            continue;
        }
        match fs::copy(&path, &copy) {
            // It was about to take another one's place, and has.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => drop(copied.map_err(at(&path))?),
        }
    }
    Ok(())
}

/// Has a directory on disk, with all that is in it.
fn sync(directory: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        if path.is_dir() {
            sync(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(at(&path))?;
        }
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    |source| BackupError::Io { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn what_cannot_be_backed_up_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let (data, to) = (place.path().join("data"), place.path().join("backup"));
        assert!(matches!(make(&data, &to), Err(BackupError::NoData { .. })));
        fs::create_dir(&data).unwrap();
        fs::write(data.join(store::DATABASE_FILE), "").unwrap();
        fs::write(data.join(records::DATABASE_FILE), "no database ".repeat(100)).unwrap();
        assert!(matches!(make(&data, &to), Err(BackupError::Database(_))));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "only the data");
        fs::create_dir(&to).unwrap();
        assert!(matches!(make(&data, &to), Err(BackupError::Exists { .. })));
        // No name at all.
        assert!(matches!(make(&data, Path::new("/")), Err(BackupError::Exists { .. })));
    }
}
