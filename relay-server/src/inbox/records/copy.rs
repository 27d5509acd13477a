//! A copy of the records, made while they are in use.
//!
//! ```text
//!   inbox.db ── at one moment ──► inbox.db ── each long body that it leads to ──► inbox/<id>
//!                                     └───── or none any more: it was delivered ──► removed here, too
//! ```

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::Connection;

use super::{DATABASE_FILE, Id, Seq, spool, sweep};
use crate::store::{OpenError, database};

/// What a copy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// How many inboxes there are.
    pub(crate) inboxes: u64,
    /// Webhooks that wait.
    pub(crate) waiting: u64,
    /// Webhooks that were given up.
    pub(crate) dead: u64,
}

/// Copies the records of one data directory into another, which is there and has none: every webhook that was stored when
/// this was called, unless it was delivered or dropped meanwhile. It is not on disk yet. It blocks.
///
/// # Errors
/// [`OpenError`]. What has been copied by then is of no use.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Copied, OpenError> {
    let file = to.join(DATABASE_FILE);
    database::copy(&from.join(DATABASE_FILE), &file)?;
    let (bodies, copies) = (spool::directory(from), spool::directory(to));
    database::make_directory(&copies)?;
    let mut db = Connection::open(&file)?;
    db.execute_batch("PRAGMA foreign_keys = ON;")?;

    let mut gone = Vec::new();
    let mut spooled = db.prepare("SELECT seq, id FROM webhooks WHERE spooled = 1")?;
    let mut rows = spooled.query([])?;
    while let Some(row) = rows.next()? {
        let (seq, Id(id)): (Seq, Id) = (row.get(0)?, row.get(1)?);
        let body = bodies.join(id.to_string());
        match fs::copy(&body, copies.join(id.to_string())) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => gone.push(seq),
            Err(source) => return Err(OpenError::Io { path: body, source }),
        }
    }
    drop(rows);
    drop(spooled);

    let transaction = db.transaction()?;
    sweep::remove(&transaction, &gone)?;
    let sql = "SELECT count(*), coalesce(sum(waiting), 0), coalesce(sum(dead), 0) FROM inboxes WHERE name IS NOT NULL";
    let copied = transaction
        .query_row(sql, [], |row| Ok(Copied { inboxes: row.get(0)?, waiting: row.get(1)?, dead: row.get(2)? }))?;
    transaction.commit()?;
    Ok(copied)
}
