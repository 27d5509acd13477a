//! The tables, as numbered migrations.
//!
//! A migration that was released is never edited: a change is a new entry at the end.

use rusqlite::{Connection, TransactionBehavior};

use super::OpenError;

/// Migration N (counted from 1) takes a database from version N - 1 to version N, which SQLite
/// keeps as `user_version`. Times are Unix seconds.
const MIGRATIONS: &[&str] = &[
    // 1: tokens, and who holds which tunnel name.
    "CREATE TABLE tokens (
         id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: sessions remember it
         name TEXT NOT NULL,
         secret_sha256 BLOB NOT NULL UNIQUE,
         created_at INTEGER NOT NULL,
         expires_at INTEGER,
         revoked_at INTEGER,
         last_used_at INTEGER,
         max_tunnels INTEGER NOT NULL,
         max_names INTEGER NOT NULL,
         max_sessions INTEGER NOT NULL
     ) STRICT;
     CREATE UNIQUE INDEX tokens_in_force ON tokens (name) WHERE revoked_at IS NULL;

     CREATE TABLE names (
         name TEXT PRIMARY KEY,
         token_id INTEGER NOT NULL REFERENCES tokens (id),
         state TEXT NOT NULL CHECK (state IN ('reserved', 'leased', 'resting')),
         generated INTEGER NOT NULL CHECK (generated IN (0, 1)),
         free_at INTEGER, -- from when on anybody may have it
         CHECK ((state = 'reserved') = (free_at IS NULL))
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX names_of_token ON names (token_id, state);
     CREATE INDEX names_by_end ON names (free_at);",
    // 2: the provider whose webhooks a reserved name is for.
    "ALTER TABLE names ADD COLUMN provider TEXT CHECK (provider IS NULL OR state = 'reserved');",
];

/// Brings the database up to date, all or nothing.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    migrate_to(connection, MIGRATIONS.len())
}

/// As [`migrate`], to this version.
pub(super) fn migrate_to(connection: &mut Connection, version: usize) -> Result<(), OpenError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(found).ok().filter(|&done| done <= MIGRATIONS.len());
    let Some(done) = done else {
        return Err(OpenError::Newer { found, known: MIGRATIONS.len() });
    };
    for migration in MIGRATIONS.iter().take(version).skip(done) {
        transaction.execute_batch(migration)?;
    }
    if done < version {
        transaction.execute_batch(&format!("PRAGMA user_version = {version}"))?;
    }
    transaction.commit()?;
    Ok(())
}
