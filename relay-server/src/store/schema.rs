//! The tables, as numbered migrations.
//!
//! A migration that was released is never edited: a change is a new entry at the end.

/// Times are Unix seconds.
pub(super) const MIGRATIONS: &[&str] = &[
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
    // 3: how much of a token's tunnels the public may use, where that is limited, and how much it has.
    "ALTER TABLE tokens ADD COLUMN max_rate INTEGER;
     ALTER TABLE tokens ADD COLUMN max_streams INTEGER;
     ALTER TABLE tokens ADD COLUMN max_bytes INTEGER;
     CREATE TABLE months (
         token_id INTEGER NOT NULL REFERENCES tokens (id),
         month INTEGER NOT NULL, -- in UTC, since the year 0
         bytes INTEGER NOT NULL,
         PRIMARY KEY (token_id, month)
     ) STRICT, WITHOUT ROWID;",
    // 4: who did what.
    "CREATE TABLE audit (
         id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: pages are told apart by it
         at INTEGER NOT NULL,
         by TEXT NOT NULL, -- JSON
         operation TEXT NOT NULL,
         subject TEXT NOT NULL,
         detail TEXT NOT NULL
     ) STRICT;",
    // 5: what the operator keeps out.
    "CREATE TABLE blocks (
         id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: it is what a block is removed by
         kind TEXT NOT NULL,
         target TEXT NOT NULL, -- a network, a tunnel name, or the name of a token
         reason TEXT NOT NULL,
         at INTEGER NOT NULL,
         UNIQUE (kind, target)
     ) STRICT;",
    // 6: what a token's tunnels may let in at most.
    "ALTER TABLE tokens ADD COLUMN max_body INTEGER;
     ALTER TABLE tokens ADD COLUMN allow TEXT; -- networks, as JSON; none for anywhere",
];
