//! How the relay's databases are opened: the file and its mode, what SQLite is told, the migrations.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::OpenError;

/// How long to wait for another program (a backup, a person with `sqlite3`) that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens `file` in `directory`, which is created (mode 0700) if it is not there, and brings it up to date.
pub(crate) fn open(directory: &Path, file: &str, migrations: &[&str]) -> Result<Connection, OpenError> {
    let file = directory.join(file);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    make_directory(directory)?;
    // Made before SQLite makes it, for its mode, which the -wal and -shm files then follow.
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&file);
    let opened = opened.map_err(at(&file))?;
    opened.set_permissions(Permissions::from_mode(0o600)).map_err(at(&file))?;

    prepare(Connection::open(&file)?, migrations)
}

/// A database that is gone with its connection.
pub(crate) fn in_memory(migrations: &[&str]) -> Result<Connection, OpenError> {
    prepare(Connection::open_in_memory()?, migrations)
}

/// A second connection to a database that is open, on which nothing can be changed.
pub(crate) fn reader(directory: &Path, file: &str) -> Result<Connection, OpenError> {
    let connection = Connection::open(directory.join(file))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch("PRAGMA query_only = ON;")?;
    Ok(connection)
}

/// Copies a database as it is at this moment, with all that has been committed, also while others write to it: their log
/// grows meanwhile. `to` is made, with mode 0600, and is whole or of no use. It is not on disk yet.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    // Says better than SQLite does what is in the way.
    File::open(from).map_err(at(from))?;
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(to).map_err(at(to))?;
    let text = to.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidFilename, "it is no UTF-8"));
    let text = text.map_err(at(to))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute("VACUUM INTO ?1", [text])?;
    Ok(())
}

/// Makes a directory for the relay's own files, with those above it, if it is not there. Its own entry is on disk then.
pub(crate) fn make_directory(path: &Path) -> Result<(), OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
    match path.parent().filter(|above| !above.as_os_str().is_empty()) {
        // Where we may not read there is nothing that we made.
        Some(above) => match File::open(above) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            opened => opened.and_then(|above| above.sync_all()).map_err(at(above)),
        },
        None => Ok(()),
    }
}

fn prepare(mut connection: Connection, migrations: &[&str]) -> Result<Connection, OpenError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // FULL: each commit is followed by an fsync of the write-ahead log.
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
    migrate(&mut connection, migrations)?;
    Ok(connection)
}

/// Brings the database up to date, all or nothing: migration N (counted from 1) takes it from version N - 1 to version
/// N, which SQLite keeps as `user_version`.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), OpenError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(found).ok().filter(|&done| done <= migrations.len());
    let Some(done) = done else {
        return Err(OpenError::Newer { found, known: migrations.len() });
    };
    for migration in migrations.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    if done < migrations.len() {
        transaction.execute_batch(&format!("PRAGMA user_version = {}", migrations.len()))?;
    }
    transaction.commit()?;
    Ok(())
}
