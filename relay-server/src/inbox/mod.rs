//! The inbox: a tunnel's webhooks are on disk before their senders are told that they are accepted, and are delivered
//! when somebody is there to take them.
//!
//! ```text
//!   edge ──▶ spool: long bodies ──▶ records: inbox.db ──▶ delivery ──▶ session
//! ```

#![expect(dead_code, reason = "the edge does not accept webhooks yet")]

pub(crate) mod records;
pub(crate) mod spool;
