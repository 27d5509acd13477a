//! A webhook on its way through an inbox, and the rows that it stands in.

use bytes::Bytes;
use relay_protocol::webhook::Verdict;
use rusqlite::Row as SqlRow;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::Quotas;
use super::lease::{Lease, Leases};
use crate::inbox::spool::Body;
use crate::store::TokenId;

/// The place of a webhook in the order of arrival, over all inboxes; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Seq(pub(super) i64);

impl Seq {
    /// As a text that means nothing to anybody else.
    pub(crate) fn to_text(self) -> String {
        format!("{:x}", self.0)
    }

    /// The place of such a text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        i64::from_str_radix(text, 16).ok().map(Self)
    }
}

/// A webhook to be stored.
#[derive(Clone, Debug)]
pub(crate) struct New {
    /// Its id, which is the exchange's.
    pub(crate) id: Ulid,
    /// The name of the inbox.
    pub(crate) inbox: String,
    /// The token that the name belongs to.
    pub(crate) token: TokenId,
    /// When it came.
    pub(crate) received_at: i64,
    /// The same by a clock that does not jump: what its waits, its age and copies of it go by.
    pub(crate) since: i64,
    /// Whether the caller is about to deliver it itself.
    pub(crate) take: Take,
    /// The request's head as it goes to the client.
    pub(crate) head: Bytes,
    /// Its trailers.
    pub(crate) trailers: Bytes,
    /// Its body.
    pub(crate) body: Body,
    /// Who sent it, if that is known.
    pub(crate) provider: Option<String>,
    /// The provider's own id of the event.
    pub(crate) event_id: Option<String>,
    /// The provider's type of the event.
    pub(crate) event_type: Option<String>,
    /// What was made of its signature, where that was looked at.
    pub(crate) verdict: Option<Verdict>,
    /// How far back the first copy of the same event may lie; `None` for no look at copies.
    pub(crate) dedupe_since: Option<i64>,
    /// What may be stored at most.
    pub(crate) quotas: Quotas,
    /// Nobody waits for it any more: it is stored only if that is so already.
    pub(crate) abandoned: CancellationToken,
}

/// Who delivers a webhook that is being stored. In a paused inbox it is nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Whoever asks what is due.
    No,
    /// The caller.
    Now,
    /// The caller, unless another one waits before it.
    IfFirst,
}

/// What became of a webhook that was to be stored.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It waits.
    Stored {
        /// It, where it is the caller's to deliver.
        due: Option<Due>,
    },
    /// A copy of one that waits: its head and trailers took the place of that one's.
    Newer {
        /// The first, where it is the caller's to deliver. If not, an attempt at it may be under way.
        due: Option<Due>,
        /// The first.
        of: Ulid,
    },
    /// A copy of one that was delivered, and answered with 2xx. Nothing was stored.
    Delivered {
        /// The first.
        of: Ulid,
    },
}

/// Where a webhook is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// To be delivered.
    Waiting,
    /// Its receiver has answered. Its body is gone.
    Delivered,
    /// Given up.
    Dead,
}

impl State {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Waiting, Self::Delivered, Self::Dead];

    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// A webhook that is to be delivered now, by whoever has this.
#[derive(Debug)]
pub(crate) struct Due {
    /// Drop it once what became of it is noted: only then is it due again.
    pub(super) _lease: Lease,
    /// Its place.
    pub(crate) seq: Seq,
    /// Its id.
    pub(crate) id: Ulid,
    /// From when on its age counts: since it came, or was last retried by hand.
    pub(crate) since: i64,
    /// The attempts so far.
    pub(crate) attempts: u32,
    /// Those of them since then: what its wait and its end go by.
    pub(crate) tries: u32,
}

/// A webhook as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// What lists tell of it, with its head.
    pub(crate) row: Row,
    /// Its trailers.
    pub(crate) trailers: Bytes,
    /// The head of its first copy, where a later one's took its place.
    pub(crate) head_first: Option<Bytes>,
    /// That one is to be sent.
    pub(super) sends_first: bool,
    /// Its body.
    pub(crate) body: StoredBody,
}

impl Stored {
    /// The head to send, and when it came: that of the newest copy, or in turns with it that of the first, where the app
    /// answers 4xx. Somebody may have sent again what it has seen, with a signature that is not right.
    pub(crate) fn sent(&self) -> (&Bytes, i64) {
        match &self.head_first {
            Some(first) if self.sends_first => (first, self.row.first_at),
            _ => (&self.row.head, self.row.received_at),
        }
    }
}

/// Where the body of a webhook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredBody {
    /// Here.
    Inline(Bytes),
    /// In the spool, under its id.
    Spooled,
    /// Nowhere any more: it was delivered.
    Gone,
}

/// A webhook as lists tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its place.
    pub(crate) seq: Seq,
    /// Its id.
    pub(crate) id: Ulid,
    /// Where it is on its way.
    pub(crate) state: State,
    /// When the copy came whose head is here.
    pub(crate) received_at: i64,
    /// When its first copy came.
    pub(crate) first_at: i64,
    /// While it waits: when it is tried next; `None` for at once.
    pub(crate) due_at: Option<i64>,
    /// Whether an attempt is under way.
    pub(crate) leased: bool,
    /// The attempts so far.
    pub(crate) attempts: u32,
    /// Those of them since it came or was last retried by hand.
    pub(crate) tries: u32,
    /// How many copies came after the first.
    pub(crate) copies: u32,
    /// The status that the last attempt was answered with.
    pub(crate) status: Option<u16>,
    /// When it was delivered or given up.
    pub(crate) ended_at: Option<i64>,
    /// Why it was given up.
    pub(crate) reason: Option<String>,
    /// Who sent it.
    pub(crate) provider: Option<String>,
    /// The provider's own id of the event.
    pub(crate) event_id: Option<String>,
    /// The provider's type of the event.
    pub(crate) event_type: Option<String>,
    /// What was made of its signature.
    pub(crate) verdict: Option<String>,
    /// The one with the same event id and another body.
    pub(crate) differs_from: Option<Ulid>,
    /// The length of its body.
    pub(crate) body_size: u64,
    /// The request's head.
    pub(crate) head: Bytes,
}

/// One try to hand a webhook over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// When it began.
    pub(crate) at: i64,
    /// How long it took.
    pub(crate) duration_ms: u64,
    /// The status that it was answered with.
    pub(crate) status: Option<u16>,
    /// Why there was no answer.
    pub(crate) error: Option<String>,
}

/// What follows from an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its receiver has it.
    Delivered,
    /// Its sender has the receiver's answer. Where that is no 2xx, and senders of copies were told that it is kept, this
    /// comes of it; otherwise it counts as delivered.
    Answered(Box<Outcome>),
    /// It is tried again.
    Again {
        /// When.
        at: i64,
    },
    /// It is given up.
    Dead {
        /// Why.
        reason: String,
    },
}

pub(super) const ROW_COLUMNS: &str = "seq, webhooks.id, state, received_at, first_at, due_at, attempts, tries, copies, \
                           status, ended_at, reason, provider, event_id, event_type, verdict, differs_from, spooled, \
                           body_size, head";

pub(super) fn row_from(row: &SqlRow<'_>, leases: &Leases) -> rusqlite::Result<Row> {
    let (seq, state) = (row.get("seq")?, row.get("state")?);
    let due_at: i64 = row.get("due_at")?;
    Ok(Row {
        seq,
        id: row.get::<_, Id>("id")?.0,
        state,
        received_at: row.get("received_at")?,
        first_at: row.get("first_at")?,
        due_at: (state == State::Waiting && due_at != 0).then_some(due_at),
        leased: leases.is_taken(seq),
        attempts: row.get("attempts")?,
        tries: row.get("tries")?,
        copies: row.get("copies")?,
        status: row.get("status")?,
        ended_at: row.get("ended_at")?,
        reason: row.get("reason")?,
        provider: row.get("provider")?,
        event_id: row.get("event_id")?,
        event_type: row.get("event_type")?,
        verdict: row.get("verdict")?,
        differs_from: row.get::<_, Option<Id>>("differs_from")?.map(|id| id.0),
        body_size: row.get("body_size")?,
        head: row.get::<_, Vec<u8>>("head")?.into(),
    })
}

/// A ULID as SQLite has it: as text, so that a person with `sqlite3` finds it.
pub(super) struct Id(pub(super) Ulid);

impl FromSql for Id {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ulid::from_string(value.as_str()?).map(Self).map_err(FromSqlError::other)
    }
}

impl ToSql for Id {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}

impl FromSql for Seq {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self)
    }
}

impl ToSql for Seq {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_i64()? {
            0 => Ok(Self::Waiting),
            1 => Ok(Self::Delivered),
            2 => Ok(Self::Dead),
            other => Err(FromSqlError::OutOfRange(other)),
        }
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number: i64 = match self {
            Self::Waiting => 0,
            Self::Delivered => 1,
            Self::Dead => 2,
        };
        Ok(number.into())
    }
}
