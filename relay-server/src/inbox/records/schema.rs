//! The tables, as numbered migrations.
//!
//! A migration that was released is never edited: a change is a new entry at the end.

/// Times are Unix milliseconds, sizes bytes.
pub(super) const MIGRATIONS: &[&str] = &[
    // 1: inboxes, and the webhooks in them.
    "CREATE TABLE inboxes (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         name TEXT UNIQUE, -- NULL once it is closed and its webhooks wait for their removal
         token_id INTEGER NOT NULL,
         settings TEXT NOT NULL,
         opened_at INTEGER NOT NULL,
         paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
         -- Of its webhooks, kept by the triggers below: nobody has to count a million rows.
         waiting INTEGER NOT NULL DEFAULT 0,
         delivered INTEGER NOT NULL DEFAULT 0,
         dead INTEGER NOT NULL DEFAULT 0,
         bytes INTEGER NOT NULL DEFAULT 0, -- of those that are not delivered
         delivered_bytes INTEGER NOT NULL DEFAULT 0 -- of the others
     ) STRICT;
     CREATE INDEX inboxes_closed ON inboxes (id) WHERE name IS NULL;
     CREATE INDEX inboxes_of_token ON inboxes (token_id);

     -- Of all inboxes, closed ones too.
     CREATE TABLE total (bytes INTEGER NOT NULL) STRICT;
     INSERT INTO total VALUES (0);
     CREATE TRIGGER inboxes_updated AFTER UPDATE OF bytes, delivered_bytes ON inboxes BEGIN
         UPDATE total SET bytes = bytes + NEW.bytes - OLD.bytes + NEW.delivered_bytes - OLD.delivered_bytes;
     END;

     CREATE TABLE webhooks (
         seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of arrival
         id TEXT NOT NULL UNIQUE,
         inbox INTEGER NOT NULL REFERENCES inboxes (id),
         state INTEGER NOT NULL DEFAULT 0 CHECK (state IN (0, 1, 2)), -- waiting, delivered, dead
         received_at INTEGER NOT NULL, -- of the copy whose head is sent
         first_at INTEGER NOT NULL, -- of the first copy
         since INTEGER NOT NULL, -- from when on its age counts
         due_at INTEGER NOT NULL DEFAULT 0, -- while it waits: 0 for at once
         attempts INTEGER NOT NULL DEFAULT 0,
         tries INTEGER NOT NULL DEFAULT 0, -- the attempts since it came, or was retried by hand
         copies INTEGER NOT NULL DEFAULT 0, -- that came after the first
         status INTEGER, -- of the last attempt
         ended_at INTEGER, -- when it was delivered or died
         reason TEXT, -- of its death
         provider TEXT,
         event_id TEXT,
         event_type TEXT,
         verdict TEXT,
         differs_from TEXT, -- the id of one with the same event id and another body
         spooled INTEGER NOT NULL CHECK (spooled IN (0, 1)), -- the body is a file, not in bodies
         body_size INTEGER NOT NULL,
         body_sha256 BLOB NOT NULL,
         size INTEGER NOT NULL, -- of all that is kept of it
         -- Last, because they can be long: what stands behind them costs reading them.
         head BLOB NOT NULL,
         trailers BLOB NOT NULL,
         head_first BLOB, -- of the first copy, where a later one took its place
         sends_first INTEGER NOT NULL DEFAULT 0 CHECK (sends_first IN (0, 1)) -- it goes with the next attempt
     ) STRICT;
     CREATE INDEX webhooks_due ON webhooks (inbox, due_at) WHERE state = 0;
     CREATE INDEX webhooks_age ON webhooks (inbox, since) WHERE state = 0;
     CREATE INDEX webhooks_ended ON webhooks (inbox, state, ended_at) WHERE ended_at IS NOT NULL;
     CREATE INDEX webhooks_state ON webhooks (inbox, state);
     -- What is known to be badly signed is no copy of anything. Many bodies under one event hide none of them.
     CREATE INDEX webhooks_event ON webhooks (inbox, event_id, body_sha256)
         WHERE event_id IS NOT NULL AND (verdict IS NULL OR verdict IN ('valid', 'no_secret', 'unsupported'));

     CREATE TRIGGER webhooks_inserted AFTER INSERT ON webhooks BEGIN
         UPDATE inboxes SET waiting = waiting + (NEW.state = 0), delivered = delivered + (NEW.state = 1),
                            dead = dead + (NEW.state = 2), bytes = bytes + NEW.size * (NEW.state <> 1),
                            delivered_bytes = delivered_bytes + NEW.size * (NEW.state = 1)
         WHERE id = NEW.inbox;
     END;
     CREATE TRIGGER webhooks_updated AFTER UPDATE OF state, size ON webhooks BEGIN
         UPDATE inboxes SET waiting = waiting + (NEW.state = 0) - (OLD.state = 0),
                            delivered = delivered + (NEW.state = 1) - (OLD.state = 1),
                            dead = dead + (NEW.state = 2) - (OLD.state = 2),
                            bytes = bytes + NEW.size * (NEW.state <> 1) - OLD.size * (OLD.state <> 1),
                            delivered_bytes = delivered_bytes + NEW.size * (NEW.state = 1) - OLD.size * (OLD.state = 1)
         WHERE id = NEW.inbox;
     END;
     CREATE TRIGGER webhooks_deleted AFTER DELETE ON webhooks BEGIN
         UPDATE inboxes SET waiting = waiting - (OLD.state = 0), delivered = delivered - (OLD.state = 1),
                            dead = dead - (OLD.state = 2), bytes = bytes - OLD.size * (OLD.state <> 1),
                            delivered_bytes = delivered_bytes - OLD.size * (OLD.state = 1)
         WHERE id = OLD.inbox;
     END;

     -- Beside the webhooks, so that walking those does not read bodies.
     CREATE TABLE bodies (
         seq INTEGER PRIMARY KEY REFERENCES webhooks (seq) ON DELETE CASCADE,
         body BLOB NOT NULL
     ) STRICT;

     CREATE TABLE attempts (
         seq INTEGER NOT NULL REFERENCES webhooks (seq) ON DELETE CASCADE,
         number INTEGER NOT NULL,
         at INTEGER NOT NULL,
         duration_ms INTEGER NOT NULL,
         status INTEGER,
         error TEXT,
         PRIMARY KEY (seq, number)
     ) STRICT, WITHOUT ROWID;",
];
