//! What the relay remembers across restarts: tokens, and which tunnel name belongs to which token.
//!
//! [`Store`] is the surface: plain operations, each of them atomic, each taking the time as an
//! argument (Unix seconds). Behind it is one SQLite file and the one thread that touches it
//! (`writer.rs`). An operation that returned `Ok` is on disk.
//!
//! A tunnel name is in one of four states:
//!
//! ```text
//!            claim                      30 days unused
//!   free ──────────────► leased ───────────────────────────► free
//!     │                    ▲ claim, by the token that had it   ▲
//!     └──► reserved ──► resting ───────────────────────────────┘
//!  reserve       release, or its        30 days
//!                token was revoked
//! ```
//!
//! While a name is leased or resting, only its own token gets it: a webhook that still arrives for
//! it must never reach a stranger. Leases stay when their token expires or is revoked, and a new
//! token that bears a revoked one's name takes over its names, so that a leaked token can be replaced.
//!
//! Custom domains are no strangers' to have: whose they are, the operator says, or a record in DNS. So one that is leased rests
//! once its token is revoked, and neither a lease nor a rest holds against the operator, or against a token that the record shows.

mod audit;
mod blocks;
pub(crate) mod database;
mod name;
mod schema;
mod secret;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use relay_protocol::access::MAX_NETWORKS;
use relay_protocol::network::Network;
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

pub use crate::clock::unix_now;
use crate::clock::{Month, moment};
use crate::histogram::Histogram;

pub use self::blocks::BlockError;
pub use self::name::{MAX_NAME_BYTES, Name, NameError};
pub use self::secret::{Secret, SecretError};
use self::writer::{Access, Failure, Writer};

/// The database's file in the data directory.
pub const DATABASE_FILE: &str = "relay.db";

/// How long a name stays its token's after its last use or its release, in seconds: 30 days.
pub const NAME_REST_SECONDS: i64 = 30 * 24 * 60 * 60;

/// How many generated names a token keeps; beyond it, the one unused for longest is forgotten.
/// More than anybody has tunnels open at once, so a name in use is never the one that goes.
pub const GENERATED_NAMES_KEPT: u32 = 1000;

/// A lease that would grow by less than this is left alone, and a token's last use is no more exact
/// than this, in seconds: so sessions that come and go seldom write to the disk.
const USE_STEP_SECONDS: i64 = 60;

/// Token names are for people: they appear in lists, logs and messages.
const MAX_TOKEN_NAME_BYTES: usize = 64;

/// Who has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) token: TokenId,
    pub(crate) held: Held,
}

/// How somebody has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// The operator has said so.
    Reserved,
    /// It has claimed it.
    Leased,
    /// It had it, and may have it back.
    Resting,
}

/// A handle on the store; clones share it. Dropping the last one finishes what is queued, closes the
/// file and joins the thread, which takes as long as a commit does.
#[derive(Clone)]
pub struct Store {
    writer: Arc<Writer>,
}

/// Identifies a token for as long as the store exists; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub(crate) i64);

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a token's owner may have at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLimits {
    /// Tunnels open at the same time, over all sessions.
    pub max_tunnels: u32,
    /// Names held (reserved or leased), generated ones aside. It binds what a client takes, not what
    /// the operator reserves for it.
    pub max_names: u32,
    /// Sessions at the same time.
    pub max_sessions: u32,
    /// Requests of the public in a second, to all of its tunnels.
    #[serde(default)]
    pub max_rate: Option<u32>,
    /// Those under way at the same time.
    #[serde(default)]
    pub max_streams: Option<u32>,
    /// Bytes of their bodies and of those of their answers, in a calendar month in UTC.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// The longest body of a request, in bytes.
    #[serde(default)]
    pub max_body: Option<u64>,
    /// Where requests may come from, whatever its tunnels let in; empty for anywhere. At most [`MAX_NETWORKS`].
    #[serde(default)]
    pub allow: Vec<Network>,
}

impl Default for TokenLimits {
    /// Twenty of each: a developer's every project and its tests. As much of the public as comes.
    fn default() -> Self {
        let (max_tunnels, max_names, max_sessions) = (20, 20, 20);
        Self {
            max_tunnels,
            max_names,
            max_sessions,
            max_rate: None,
            max_streams: None,
            max_bytes: None,
            max_body: None,
            allow: Vec::new(),
        }
    }
}

impl TokenLimits {
    /// None of them is zero, which would be no token, and each request can be held against them.
    fn check(&self) -> Result<(), BadLimit> {
        let Self { max_tunnels, max_names, max_sessions, max_rate, max_streams, max_bytes, max_body, ref allow } =
            *self;
        let zeroes = [
            ("max_tunnels", max_tunnels == 0),
            ("max_names", max_names == 0),
            ("max_sessions", max_sessions == 0),
            ("max_rate", max_rate == Some(0)),
            ("max_streams", max_streams == Some(0)),
            ("max_bytes", max_bytes == Some(0)),
            ("max_body", max_body == Some(0)),
        ];
        match zeroes.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((limit, _)) => Err(BadLimit::Zero(limit)),
            None if allow.len() > MAX_NETWORKS => Err(BadLimit::Networks),
            None => Ok(()),
        }
    }
}

/// A limit that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadLimit {
    /// It would leave nothing.
    #[error("{0} is at least 1; revoke the token where it is to have nothing")]
    Zero(&'static str),
    /// It would take long to look for an address in them.
    #[error("a token is confined to at most {MAX_NETWORKS} networks")]
    Networks,
}

/// What is to be different of a token's limits. What is not said stays; those of the public can be said to be no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitChange {
    /// [`TokenLimits::max_tunnels`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tunnels: Option<u32>,
    /// [`TokenLimits::max_names`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_names: Option<u32>,
    /// [`TokenLimits::max_sessions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// [`TokenLimits::max_rate`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub max_rate: Option<Option<u32>>,
    /// [`TokenLimits::max_streams`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub max_streams: Option<Option<u32>>,
    /// [`TokenLimits::max_bytes`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub max_bytes: Option<Option<u64>>,
    /// [`TokenLimits::max_body`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub max_body: Option<Option<u64>>,
    /// [`TokenLimits::allow`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Network>>,
}

impl LimitChange {
    /// What leads from one to the other.
    pub(crate) fn between(from: TokenLimits, to: TokenLimits) -> Self {
        fn other<T: PartialEq>(from: T, to: T) -> Option<T> {
            (from != to).then_some(to)
        }
        Self {
            max_tunnels: other(from.max_tunnels, to.max_tunnels),
            max_names: other(from.max_names, to.max_names),
            max_sessions: other(from.max_sessions, to.max_sessions),
            max_rate: other(from.max_rate, to.max_rate),
            max_streams: other(from.max_streams, to.max_streams),
            max_bytes: other(from.max_bytes, to.max_bytes),
            max_body: other(from.max_body, to.max_body),
            allow: other(from.allow, to.allow),
        }
    }

    /// These limits, changed.
    #[must_use]
    pub fn apply(self, limits: TokenLimits) -> TokenLimits {
        TokenLimits {
            max_tunnels: self.max_tunnels.unwrap_or(limits.max_tunnels),
            max_names: self.max_names.unwrap_or(limits.max_names),
            max_sessions: self.max_sessions.unwrap_or(limits.max_sessions),
            max_rate: self.max_rate.unwrap_or(limits.max_rate),
            max_streams: self.max_streams.unwrap_or(limits.max_streams),
            max_bytes: self.max_bytes.unwrap_or(limits.max_bytes),
            max_body: self.max_body.unwrap_or(limits.max_body),
            allow: self.allow.unwrap_or(limits.allow),
        }
    }
}

/// What is there was said, and `null` is no limit.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A token to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// What people call it: 1 to 64 bytes of letters, digits and `. _ - @ +`.
    pub name: String,
    /// Tunnel names that are to be its own from the start.
    pub reserve: Vec<Name>,
    /// When it ends (Unix seconds), if ever.
    pub expires_at: Option<i64>,
    /// What its owner may have at once.
    pub limits: TokenLimits,
}

/// A token as the relay knows it. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its identity.
    pub id: TokenId,
    /// What people call it; unique among the tokens that are not revoked.
    pub name: String,
    /// What its owner may have at once.
    pub limits: TokenLimits,
    /// When it was made.
    pub created_at: i64,
    /// When it ends, if ever.
    pub expires_at: Option<i64>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<i64>,
    /// When it last claimed or used a name, to the minute.
    pub last_used_at: Option<i64>,
}

/// A token with the names that it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSummary {
    /// The token.
    pub token: Token,
    /// The names that are its own for good, in alphabetical order.
    pub reserved: Vec<Name>,
    /// The names that are its own until they have gone unused for 30 days.
    pub leased: Vec<Name>,
    /// Of the reserved ones, those that are for the webhooks of a provider, and its id.
    #[serde(default)]
    pub providers: BTreeMap<Name, String>,
    /// Bytes that the public has had of its tunnels in this calendar month, in UTC, some seconds ago.
    #[serde(default)]
    pub month_bytes: u64,
}

/// Why the store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory or a file in it.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was written by a newer relay.
    #[error(
        "the database has version {found}, but this relay knows only versions up to {known}: \
         run the newer relay that wrote it, or restore a backup from before the upgrade"
    )]
    Newer {
        /// The file's version.
        found: i64,
        /// The newest version that this program knows.
        known: usize,
    },
    /// SQLite could not open, read or upgrade it.
    #[error("the database cannot be opened: {0}")]
    Engine(#[from] rusqlite::Error),
}

/// What can befall any operation. The operation has then changed nothing that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// A write did not reach the disk. It is not tried again: nobody could know what is on disk.
    /// Reads still work, every write gets this until a restart.
    #[error(
        "the store takes no more changes since a write to its disk failed ({reason}); \
         check the disk, then restart the relay"
    )]
    Failed {
        /// What SQLite said.
        reason: Arc<str>,
    },
    /// No room; the next operation may find some.
    #[error("the disk that holds the store is full; nothing was changed")]
    Full,
    /// The store was closed.
    #[error("the store is closed; the relay is stopping")]
    Closed,
    /// SQLite refused this one operation.
    #[error("the store could not do this: {reason}")]
    Engine {
        /// What SQLite said.
        reason: Arc<str>,
    },
}

/// Why a token was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CreateTokenError {
    /// Its name is not one.
    #[error("a token name has 1 to {MAX_TOKEN_NAME_BYTES} letters, digits and \". _ - @ +\", which {name:?} has not")]
    BadName {
        /// The name.
        name: String,
    },
    /// Another one has that name.
    #[error("there is a token named {name:?} already; revoke it first, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// One of its limits is none.
    #[error(transparent)]
    Limit(#[from] BadLimit),
    /// A tunnel name could not be reserved for it.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token's limits are as they were.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// No token in force has that name.
    #[error("there is no token named {token:?} in force; `token list` shows them all")]
    NoSuchToken {
        /// The name given.
        token: String,
    },
    /// One of them is none.
    #[error(transparent)]
    Limit(#[from] BadLimit),
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why names were not reserved. None was, then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// No token in force has that name.
    #[error("there is no token named {token:?}; `token list` shows them all")]
    NoSuchToken {
        /// The name given.
        token: String,
    },
    /// Another token holds the tunnel name.
    #[error("the tunnel name {name} belongs to the token {owner:?}")]
    OwnedByOther {
        /// The tunnel name.
        name: Name,
        /// The name of the token that holds it.
        owner: String,
    },
    /// It was given up not long ago, by another token.
    #[error("the tunnel name {name} was released by the token {owner:?} and rests until {}", moment(*until))]
    Resting {
        /// The tunnel name.
        name: Name,
        /// The name of the token that had it.
        owner: String,
        /// When it becomes free (Unix seconds).
        until: i64,
    },
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why names were not released. None was, then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReleaseError {
    /// Nobody has reserved it.
    #[error("the tunnel name {name} is not reserved, so there is nothing to release")]
    NotReserved {
        /// The tunnel name.
        name: Name,
    },
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token was not revoked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RevokeError {
    /// There never was one of that name.
    #[error("there is no token named {token:?}; `token list` shows them all")]
    NoSuchToken {
        /// The name given.
        token: String,
    },
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a client is not let in. The messages are for its user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// This relay has not issued it.
    #[error("this relay does not know the token; check that it was issued by this relay")]
    Unknown,
    /// Its time is over.
    #[error("the token expired on {}; ask the relay's operator for a new one", moment(*at))]
    Expired {
        /// When (Unix seconds).
        at: i64,
    },
    /// The operator took it back.
    #[error("the token was revoked; ask the relay's operator for a new one")]
    Revoked,
    /// The store's own trouble: no verdict on the token.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token does not get a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// It is another token's, by reservation or by use.
    #[error("the name {name} belongs to another token; choose another name")]
    OwnedByOther {
        /// The name.
        name: Name,
    },
    /// It was another token's not long ago.
    #[error("the name {name} was given up recently and rests until {}; choose another name", moment(*until))]
    Resting {
        /// The name.
        name: Name,
        /// When it becomes free (Unix seconds).
        until: i64,
    },
    /// The token holds as many names as it may.
    #[error(
        "the token holds {limit} names, as many as it may; use one of them, let one go unused for \
         30 days, or ask the relay's operator for more"
    )]
    TooManyNames {
        /// The token's limit.
        limit: u32,
    },
    /// The token was revoked or has expired meanwhile.
    #[error("the token is no longer valid; ask the relay's operator for a new one")]
    TokenEnded,
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Opens the store in `directory`, which is created (mode 0700) if it is not there.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: the directory, the file, or its contents.
    pub async fn open(directory: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let directory = directory.into();
        let path = directory.clone();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&directory)).await;
        opened.map_err(|error| OpenError::Io { path, source: io::Error::other(error) })?
    }

    /// The same for callers outside a runtime.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open_blocking(directory: &Path) -> Result<Self, OpenError> {
        Self::start(database::open(directory, DATABASE_FILE, schema::MIGRATIONS)?)
    }

    /// A store that is gone with its last handle.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where the system has no memory or threads to give.
    pub fn in_memory() -> Result<Self, OpenError> {
        Self::start(database::in_memory(schema::MIGRATIONS)?)
    }

    fn start(connection: Connection) -> Result<Self, OpenError> {
        let writer = Writer::start(connection, Failure::default())
            .map_err(|source| OpenError::Io { path: DATABASE_FILE.into(), source })?;
        Ok(Self { writer: Arc::new(writer) })
    }

    /// Makes a token. Its secret is in the answer, and from then on only with its owner.
    ///
    /// If a revoked token had the same name, the new one takes over the names that it held.
    ///
    /// # Errors
    ///
    /// [`CreateTokenError`]; nothing is made then.
    pub async fn create_token(&self, new: NewToken, now: i64) -> Result<(Secret, Token), CreateTokenError> {
        if !is_token_name(&new.name) {
            return Err(CreateTokenError::BadName { name: new.name });
        }
        new.limits.check()?;
        let secret = Secret::generate();
        let hash = secret.sha256();
        let token = self.write(move |db| create_token(db, new, &hash, now)).await?;
        Ok((secret, token))
    }

    /// Changes what a token in force may have. Returns its identity, and its limits as they are now; sessions that it has are
    /// the caller's to tell.
    ///
    /// # Errors
    ///
    /// [`LimitError`].
    pub async fn limit_token(&self, name: &str, change: LimitChange) -> Result<(TokenId, TokenLimits), LimitError> {
        let name = name.to_owned();
        self.write(move |db| limit_token(db, name, change)).await
    }

    /// What a token may have, and the bytes that it has used of a month. A token that nobody knows has the usual limits.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn quota(&self, token: TokenId, month: Month) -> Result<(TokenLimits, u64), StoreError> {
        self.read(move |db| {
            let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE id = ?1");
            let token = db.prepare_cached(&sql)?.query_row([token.0], token_from).optional()?;
            let used = match &token {
                Some(token) => used_bytes(db, token.id, month)?,
                None => 0,
            };
            Ok(Ok((token.map(|token| token.limits).unwrap_or_default(), used)))
        })
        .await
    }

    /// Adds bytes to those that tokens have used of months, and returns for each how many that are in all.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn count_bytes(&self, counted: Vec<(TokenId, Month, u64)>) -> Result<Vec<u64>, StoreError> {
        self.write(move |db| {
            let mut add = db.prepare_cached(
                "INSERT INTO months (token_id, month, bytes) SELECT id, ?2, ?3 FROM tokens WHERE id = ?1
                 ON CONFLICT (token_id, month) DO UPDATE SET bytes = bytes + excluded.bytes",
            )?;
            let totals = counted.into_iter().map(|(token, month, bytes)| {
                add.execute(params![token.0, month.0, i64::try_from(bytes).unwrap_or(i64::MAX)])?;
                used_bytes(db, token, month)
            });
            Ok(Ok(totals.collect::<rusqlite::Result<_>>()?))
        })
        .await
    }

    /// Forgets what tokens have used of months before this one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn forget_months(&self, before: Month) -> Result<(), StoreError> {
        self.write(move |db| Ok(Ok(db.execute("DELETE FROM months WHERE month < ?1", [before.0]).map(drop)?))).await
    }

    /// All tokens, revoked ones too, in the order they were made.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list_tokens(&self, now: i64) -> Result<Vec<TokenSummary>, StoreError> {
        self.read(move |db| list_tokens(db, now).map(Ok)).await
    }

    /// The token of this name; of several, all but the last of which were revoked, that one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn find_token(&self, name: &str, now: i64) -> Result<Option<TokenSummary>, StoreError> {
        let name = name.to_owned();
        self.read(move |db| find_token(db, &name, now).map(Ok)).await
    }

    /// Ends a token. Its sessions are the caller's to end; its reserved names now rest. Revoking it
    /// again changes nothing.
    ///
    /// # Errors
    ///
    /// [`RevokeError`].
    pub async fn revoke_token(&self, name: &str, now: i64) -> Result<TokenId, RevokeError> {
        let name = name.to_owned();
        self.write(move |db| revoke_token(db, name, now)).await
    }

    /// Knows nothing more of a token that has ended, nor of the names that it had: anybody may have them at once, so that it
    /// is for tokens whose names nobody was told.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn forget_token(&self, token: TokenId) -> Result<(), StoreError> {
        self.write(move |db| {
            db.execute("DELETE FROM names WHERE token_id = ?1", [token.0])?;
            db.execute("DELETE FROM months WHERE token_id = ?1", [token.0])?;
            db.execute("DELETE FROM tokens WHERE id = ?1", [token.0])?;
            Ok(Ok(()))
        })
        .await
    }

    /// The tokens that are not in force any more.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn ended(&self, now: i64) -> Result<Vec<TokenId>, StoreError> {
        self.read(move |db| {
            let mut ended =
                db.prepare_cached("SELECT id FROM tokens WHERE revoked_at IS NOT NULL OR expires_at <= ?1")?;
            let ended = ended.query_map([now], |row| row.get(0).map(TokenId))?;
            Ok(Ok(ended.collect::<rusqlite::Result<_>>()?))
        })
        .await
    }

    /// The tokens that were revoked, each with the one in force that bears its name now, to which what it had belongs.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn heirs(&self) -> Result<Vec<(TokenId, TokenId)>, StoreError> {
        self.read(|db| {
            let mut heirs = db.prepare_cached(
                "SELECT revoked.id, heir.id FROM tokens AS revoked JOIN tokens AS heir USING (name)
                 WHERE revoked.revoked_at IS NOT NULL AND heir.revoked_at IS NULL",
            )?;
            let heirs = heirs.query_map([], |row| Ok((TokenId(row.get(0)?), TokenId(row.get(1)?))))?;
            Ok(Ok(heirs.collect::<rusqlite::Result<_>>()?))
        })
        .await
    }

    /// The token that a client presents, if it is in force. This only reads: a full or failed disk
    /// locks nobody out.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub async fn authenticate(&self, secret: &Secret, now: i64) -> Result<Token, AuthError> {
        let hash = secret.sha256();
        self.read(move |db| authenticate(db, &hash, now)).await
    }

    /// Whether a token that was in force when it was presented is so still.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub async fn check_token(&self, token: TokenId, now: i64) -> Result<(), AuthError> {
        self.read(move |db| check_token(db, token, now)).await
    }

    /// Makes tunnel names a token's own for good; all of them or none. They are for the webhooks of the provider of that id
    /// from now on, or for none. Returns the token's identity.
    ///
    /// # Errors
    ///
    /// [`ReserveError`].
    pub async fn reserve(
        &self,
        token: &str,
        names: Vec<Name>,
        provider: Option<&str>,
        now: i64,
    ) -> Result<TokenId, ReserveError> {
        let (token, provider) = (token.to_owned(), provider.map(str::to_owned));
        self.write(move |db| match token_in_force(db, &token)? {
            Some(id) => Ok(reserve(db, id, &names, provider.as_deref(), now)?.map(|()| id)),
            None => Ok(Err(ReserveError::NoSuchToken { token })),
        })
        .await
    }

    /// Gives up reservations, and whatever a token has of a custom domain; all of them or none. The names rest for 30 days, during
    /// which only the token that had them may have them back; domains are free.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`].
    pub async fn release(&self, names: Vec<Name>, now: i64) -> Result<(), ReleaseError> {
        self.write(move |db| release(db, names, now)).await
    }

    /// Takes names for a token, or renews its hold on them: free ones become its own until 30 days
    /// after their last use. One answer per name, in order; one refusal does not affect the others.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if there is no answer for any of them.
    pub async fn claim_names(
        &self,
        token: TokenId,
        names: &[Name],
        now: i64,
    ) -> Result<Vec<Result<(), ClaimError>>, StoreError> {
        let names = names.to_vec();
        self.write(move |db| claim_names(db, token, &names, now).map(Ok)).await
    }

    /// Takes a custom domain for a token that has shown that it is its own, in the place of `former`, which has not, or of nobody.
    ///
    /// # Errors
    ///
    /// [`ClaimError::OwnedByOther`] where the operator has given it to somebody, or a third token was faster; and as of
    /// [`Store::claim_names`].
    pub(crate) async fn take_domain(
        &self,
        token: TokenId,
        former: TokenId,
        domain: &Name,
        now: i64,
    ) -> Result<(), ClaimError> {
        let domain = domain.clone();
        self.write(move |db| {
            let Some(limit) = name_limit(db, token, now)? else { return Ok(Err(ClaimError::TokenEnded)) };
            match holding(db, &domain, now)? {
                Some(holding) if holding.token == former && holding.state != RESERVED => {
                    lease(db, token, limit, &domain, now)
                }
                _ => claim(db, token, limit, &domain, now),
            }
        })
        .await
    }

    /// The custom domains that a token has, or had.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn domains_of(&self, token: TokenId) -> Result<Vec<Name>, StoreError> {
        self.read(move |db| {
            let mut names = db.prepare_cached("SELECT name FROM names WHERE token_id = ?1 AND instr(name, '.') > 0")?;
            let names = names.query_map([token.0], |row| row.get(0).map(Name::stored))?;
            Ok(Ok(names.collect::<rusqlite::Result<_>>()?))
        })
        .await
    }

    /// Who has a name now, or had it and may have it back.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn owner(&self, name: &Name, now: i64) -> Result<Option<Owner>, StoreError> {
        let name = name.clone();
        self.read(move |db| {
            let holding = holding(db, &name, now)?;
            Ok(Ok(holding.map(|Holding { token, state, .. }| {
                let held = match &*state {
                    RESERVED => Held::Reserved,
                    LEASED => Held::Leased,
                    _ => Held::Resting,
                };
                Owner { token, held }
            })))
        })
        .await
    }

    /// What shows that somebody has this token and a domain: 43 symbols of base64url, which say nothing of the token.
    ///
    /// # Errors
    ///
    /// [`AuthError`] where there is no such token.
    pub(crate) async fn domain_proof(&self, token: TokenId, domain: &Name) -> Result<String, AuthError> {
        let domain = domain.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT secret_sha256 FROM tokens WHERE id = ?1")?;
            let secret = statement.query_row([token.0], |row| row.get::<_, [u8; 32]>(0)).optional()?;
            let Some(secret) = secret else { return Ok(Err(AuthError::Unknown)) };
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let tag = hmac::sign(&key, format!("relay-challenge {domain}").as_bytes());
            Ok(Ok(URL_SAFE_NO_PAD.encode(tag)))
        })
        .await
    }

    /// A new random name for a token. It is leased as any other, but does not count against the
    /// token's limit of names: of these, the [`GENERATED_NAMES_KEPT`] used last are kept.
    ///
    /// # Errors
    ///
    /// [`ClaimError::TokenEnded`] or [`ClaimError::Store`].
    pub async fn claim_random_name(&self, token: TokenId, now: i64) -> Result<Name, ClaimError> {
        self.write(move |db| claim_random_name(db, token, now)).await
    }

    /// Notes that a token uses these names now: at a session's end, and once a day during it. Names
    /// that are not leased to it are passed over.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn touch_names(&self, token: TokenId, names: &[Name], now: i64) -> Result<(), StoreError> {
        let names = names.to_vec();
        self.write(move |db| touch_names(db, token, &names, now).map(Ok)).await
    }

    /// Whether the store still takes changes: what readiness should tell.
    ///
    /// # Errors
    ///
    /// [`StoreError::Failed`] with the reason why it does not.
    pub fn health(&self) -> Result<(), StoreError> {
        self.writer.failure().map_or(Ok(()), Err)
    }

    /// How long its commits have taken, in seconds.
    pub(crate) fn commits(&self) -> Histogram {
        self.writer.commits()
    }

    /// Finishes what is queued and closes the file, for all handles. Operations that come later get
    /// [`StoreError::Closed`].
    pub async fn close(self) {
        self.writer.close().await;
    }

    async fn read<T, E>(
        &self,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.writer.run(Access::Read, operation).await
    }

    async fn write<T, E>(
        &self,
        operation: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.writer.run(Access::Write, operation).await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("failure", &self.writer.failure()).finish_non_exhaustive()
    }
}

// ---- tokens, on the writer's thread ----------------------------------------------------------------

/// SQLite's own trouble outside, the operation's refusal inside.
type Outcome<T, E> = rusqlite::Result<Result<T, E>>;

const TOKEN_COLUMNS: &str = "id, name, max_tunnels, max_names, max_sessions, max_rate, max_streams, max_bytes, max_body, \
                             allow, created_at, expires_at, revoked_at, last_used_at";

fn token_from(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        id: TokenId(row.get("id")?),
        name: row.get("name")?,
        limits: TokenLimits {
            max_tunnels: row.get("max_tunnels")?,
            max_names: row.get("max_names")?,
            max_sessions: row.get("max_sessions")?,
            max_rate: row.get("max_rate")?,
            max_streams: row.get("max_streams")?,
            max_bytes: row.get("max_bytes")?,
            max_body: row.get("max_body")?,
            allow: networks(row)?,
        },
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
        last_used_at: row.get("last_used_at")?,
    })
}

/// Where requests to a token's tunnels may come from. What cannot be read is an error, and not anywhere.
fn networks(row: &Row<'_>) -> rusqlite::Result<Vec<Network>> {
    let Some(text) = row.get::<_, Option<String>>("allow")? else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|error| FromSqlError::other(error).into())
}

fn is_token_name(name: &str) -> bool {
    (1..=MAX_TOKEN_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@+".contains(&b))
}

fn token_in_force(db: &Connection, name: &str) -> rusqlite::Result<Option<TokenId>> {
    let sql = "SELECT id FROM tokens WHERE name = ?1 AND revoked_at IS NULL";
    db.prepare_cached(sql)?.query_row([name], |row| row.get(0).map(TokenId)).optional()
}

fn create_token(db: &Connection, new: NewToken, hash: &[u8; 32], now: i64) -> Outcome<Token, CreateTokenError> {
    if token_in_force(db, &new.name)?.is_some() {
        return Ok(Err(CreateTokenError::NameTaken { name: new.name }));
    }
    db.execute(
        "INSERT INTO tokens (name, secret_sha256, created_at, expires_at, max_tunnels, max_names, max_sessions)
         VALUES (?1, ?2, ?3, ?4, 1, 1, 1)",
        params![new.name, hash, now, new.expires_at],
    )?;
    let id = TokenId(db.last_insert_rowid());
    set_limits(db, id, &new.limits)?;
    let token = Token {
        id,
        name: new.name,
        limits: new.limits,
        created_at: now,
        expires_at: new.expires_at,
        revoked_at: None,
        last_used_at: None,
    };
    db.execute(
        "UPDATE names SET token_id = ?1
         WHERE token_id IN (SELECT id FROM tokens WHERE name = ?2 AND id <> ?1)",
        params![token.id.0, token.name],
    )?;
    Ok(reserve(db, token.id, &new.reserve, None, now)?.map(|()| token).map_err(Into::into))
}

fn set_limits(db: &Connection, token: TokenId, limits: &TokenLimits) -> rusqlite::Result<()> {
    let TokenLimits { max_tunnels, max_names, max_sessions, max_rate, max_streams, max_bytes, max_body, allow } =
        limits;
    // More than a column holds is more than anybody has.
    let [max_bytes, max_body] =
        [max_bytes, max_body].map(|most| most.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)));
    let allow = (!allow.is_empty()).then(|| serde_json::to_string(allow)).transpose();
    let allow = allow.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached(
        "UPDATE tokens SET max_tunnels = ?2, max_names = ?3, max_sessions = ?4, max_rate = ?5, max_streams = ?6,
                           max_bytes = ?7, max_body = ?8, allow = ?9 WHERE id = ?1",
    )?
    .execute(params![token.0, max_tunnels, max_names, max_sessions, max_rate, max_streams, max_bytes, max_body, allow])
    .map(drop)
}

fn limit_token(db: &Connection, name: String, change: LimitChange) -> Outcome<(TokenId, TokenLimits), LimitError> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE name = ?1 AND revoked_at IS NULL");
    let found = db.prepare_cached(&sql)?.query_row([&name], token_from).optional()?;
    let Some(token) = found else {
        return Ok(Err(LimitError::NoSuchToken { token: name }));
    };
    let limits = change.apply(token.limits);
    if let Err(zero) = limits.check() {
        return Ok(Err(zero.into()));
    }
    set_limits(db, token.id, &limits)?;
    Ok(Ok((token.id, limits)))
}

/// Of a month.
fn used_bytes(db: &Connection, token: TokenId, month: Month) -> rusqlite::Result<u64> {
    let mut used = db.prepare_cached("SELECT bytes FROM months WHERE token_id = ?1 AND month = ?2")?;
    let used = used.query_row(params![token.0, month.0], |row| row.get::<_, i64>(0)).optional()?;
    Ok(used.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
}

fn list_tokens(db: &Connection, now: i64) -> rusqlite::Result<Vec<TokenSummary>> {
    let mut tokens = db.prepare(&format!("SELECT {TOKEN_COLUMNS} FROM tokens ORDER BY id"))?;
    tokens.query_map([], token_from)?.map(|token| summary(db, token?, now)).collect()
}

fn find_token(db: &Connection, name: &str, now: i64) -> rusqlite::Result<Option<TokenSummary>> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE name = ?1 ORDER BY id DESC LIMIT 1");
    let found = db.prepare_cached(&sql)?.query_row([name], token_from).optional()?;
    found.map(|token| summary(db, token, now)).transpose()
}

/// A token, with what it has.
fn summary(db: &Connection, token: Token, now: i64) -> rusqlite::Result<TokenSummary> {
    let mut names = db.prepare_cached(
        "SELECT name, state, provider FROM names
         WHERE token_id = ?1 AND (state = 'reserved' OR (state = 'leased' AND free_at > ?2))
         ORDER BY name",
    )?;
    let (mut reserved, mut leased, mut providers) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut rows = names.query(params![token.id.0, now])?;
    while let Some(row) = rows.next()? {
        let name = Name::stored(row.get("name")?);
        if let Some(provider) = row.get("provider")? {
            providers.insert(name.clone(), provider);
        }
        match row.get_ref("state")?.as_str()? {
            RESERVED => reserved.push(name),
            _ => leased.push(name),
        }
    }
    let month_bytes = used_bytes(db, token.id, Month::of(now))?;
    Ok(TokenSummary { token, reserved, leased, providers, month_bytes })
}

fn revoke_token(db: &Connection, name: String, now: i64) -> Outcome<TokenId, RevokeError> {
    let last = "SELECT id FROM tokens WHERE name = ?1 ORDER BY id DESC LIMIT 1";
    let found = db.query_row(last, [&name], |row| row.get(0).map(TokenId)).optional()?;
    let Some(id) = found else {
        return Ok(Err(RevokeError::NoSuchToken { token: name }));
    };
    db.execute("UPDATE tokens SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL", params![id.0, now])?;
    // A domain that is leased is its own only as long as it can show that.
    db.execute(
        "UPDATE names SET state = 'resting', free_at = ?2, provider = NULL
         WHERE token_id = ?1 AND (state = 'reserved' OR (state = 'leased' AND free_at > ?3 AND instr(name, '.') > 0))",
        params![id.0, rested(now), now],
    )?;
    Ok(Ok(id))
}

fn authenticate(db: &Connection, hash: &[u8; 32], now: i64) -> Outcome<Token, AuthError> {
    let found = db
        .prepare_cached(&by_secret())?
        .query_row([hash], |row| Ok((token_from(row)?, row.get::<_, [u8; 32]>("secret_sha256")?)))
        .optional()?;
    // The index finds by the hash of what was presented, whose prefixes nobody can choose; the last
    // word is a comparison that takes the same time for any hash.
    let known = found.filter(|(_, stored)| constant_time::verify_slices_are_equal(stored, hash).is_ok());
    Ok(in_force(known.map(|(token, _)| token), now))
}

fn by_secret() -> String {
    format!("SELECT {TOKEN_COLUMNS}, secret_sha256 FROM tokens WHERE secret_sha256 = ?1")
}

fn check_token(db: &Connection, token: TokenId, now: i64) -> Outcome<(), AuthError> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE id = ?1");
    let found = db.prepare_cached(&sql)?.query_row([token.0], token_from).optional()?;
    Ok(in_force(found, now).map(drop))
}

fn in_force(token: Option<Token>, now: i64) -> Result<Token, AuthError> {
    match token {
        None => Err(AuthError::Unknown),
        Some(Token { revoked_at: Some(_), .. }) => Err(AuthError::Revoked),
        Some(Token { expires_at: Some(at), .. }) if at <= now => Err(AuthError::Expired { at }),
        Some(token) => Ok(token),
    }
}

// ---- names, on the writer's thread -----------------------------------------------------------------

const RESERVED: &str = "reserved";
const LEASED: &str = "leased";
const RESTING: &str = "resting";

/// Who has a name that is not free.
struct Holding {
    token: TokenId,
    owner: String,
    state: String,
    /// `None` for a reserved one.
    free_at: Option<i64>,
}

fn holding(db: &Connection, name: &Name, now: i64) -> rusqlite::Result<Option<Holding>> {
    let mut statement = db.prepare_cached(
        "SELECT token_id, tokens.name AS owner, state, free_at
         FROM names JOIN tokens ON tokens.id = token_id
         WHERE names.name = ?1 AND (free_at IS NULL OR free_at > ?2)",
    )?;
    let holding = statement.query_row(params![name.as_str(), now], |row| {
        Ok(Holding {
            token: TokenId(row.get("token_id")?),
            owner: row.get("owner")?,
            state: row.get("state")?,
            free_at: row.get("free_at")?,
        })
    });
    holding.optional()
}

/// Gives a name to a token, whoever had it: the caller has checked that it may.
fn give(
    db: &Connection,
    name: &Name,
    token: TokenId,
    state: &str,
    generated: bool,
    free_at: Option<i64>,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(
        "INSERT OR REPLACE INTO names (name, token_id, state, generated, free_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    statement.execute(params![name.as_str(), token.0, state, generated, free_at]).map(drop)
}

fn reserve(
    db: &Connection,
    token: TokenId,
    names: &[Name],
    provider: Option<&str>,
    now: i64,
) -> Outcome<(), ReserveError> {
    for name in names {
        match holding(db, name, now)? {
            Some(Holding { state, .. }) if state == RESTING && name.is_domain() => {}
            Some(Holding { token: holder, owner, state, free_at }) if holder != token => {
                let name = name.clone();
                return Ok(Err(match free_at.filter(|_| state == RESTING) {
                    Some(until) => ReserveError::Resting { name, owner, until },
                    None => ReserveError::OwnedByOther { name, owner },
                }));
            }
            _ => {}
        }
        give(db, name, token, RESERVED, false, None)?;
        db.prepare_cached("UPDATE names SET provider = ?2 WHERE name = ?1")?
            .execute(params![name.as_str(), provider])?;
    }
    Ok(Ok(()))
}

fn release(db: &Connection, names: Vec<Name>, now: i64) -> Outcome<(), ReleaseError> {
    let mut statement = db.prepare_cached(
        "UPDATE names SET state = 'resting', free_at = ?2, provider = NULL WHERE name = ?1 AND state = 'reserved'",
    )?;
    let mut free = db.prepare_cached("DELETE FROM names WHERE name = ?1 AND (free_at IS NULL OR free_at > ?2)")?;
    for name in names {
        let released = if name.is_domain() {
            free.execute(params![name.as_str(), now])?
        } else {
            statement.execute(params![name.as_str(), rested(now)])?
        };
        if released == 0 {
            return Ok(Err(ReleaseError::NotReserved { name }));
        }
    }
    Ok(Ok(()))
}

fn claim_names(
    db: &Connection,
    token: TokenId,
    names: &[Name],
    now: i64,
) -> rusqlite::Result<Vec<Result<(), ClaimError>>> {
    let Some(limit) = name_limit(db, token, now)? else {
        return Ok(names.iter().map(|_| Err(ClaimError::TokenEnded)).collect());
    };
    touch_names(db, token, names, now)?;
    names.iter().map(|name| claim(db, token, limit, name, now)).collect()
}

fn claim(db: &Connection, token: TokenId, limit: u32, name: &Name, now: i64) -> Outcome<(), ClaimError> {
    if let Some(Holding { token: holder, state, free_at, .. }) = holding(db, name, now)? {
        let name = name.clone();
        match (holder == token, state == RESTING) {
            (true, false) => return Ok(Ok(())),
            (true, true) => {}
            (false, true) => {
                return Ok(Err(ClaimError::Resting { name, until: free_at.unwrap_or(now) }));
            }
            (false, false) => return Ok(Err(ClaimError::OwnedByOther { name })),
        }
    }
    lease(db, token, limit, name, now)
}

/// Takes a name for a token, unless it has as many as it may, whoever had it: the caller has checked that it may.
fn lease(db: &Connection, token: TokenId, limit: u32, name: &Name, now: i64) -> Outcome<(), ClaimError> {
    let held: u32 = db
        .prepare_cached(
            "SELECT count(*) FROM names WHERE token_id = ?1 AND NOT generated
             AND (state = 'reserved' OR (state = 'leased' AND free_at > ?2))",
        )?
        .query_row(params![token.0, now], |row| row.get(0))?;
    if held >= limit {
        return Ok(Err(ClaimError::TooManyNames { limit }));
    }
    forget_old_names(db, now)?;
    give(db, name, token, LEASED, false, Some(rested(now)))?;
    Ok(Ok(()))
}

fn claim_random_name(db: &Connection, token: TokenId, now: i64) -> Outcome<Name, ClaimError> {
    if name_limit(db, token, now)?.is_none() {
        return Ok(Err(ClaimError::TokenEnded));
    }
    touch_names(db, token, &[], now)?;
    let mut name = Name::random();
    while holding(db, &name, now)?.is_some() {
        name = Name::random();
    }
    forget_old_names(db, now)?;
    give(db, &name, token, LEASED, true, Some(rested(now)))?;
    db.prepare_cached(
        "DELETE FROM names WHERE token_id = ?1 AND generated AND name <> ?2 AND name NOT IN (
             SELECT name FROM names WHERE token_id = ?1 AND generated AND name <> ?2
             ORDER BY free_at DESC LIMIT ?3)",
    )?
    .execute(params![token.0, name.as_str(), GENERATED_NAMES_KEPT - 1])?;
    Ok(Ok(name))
}

fn touch_names(db: &Connection, token: TokenId, names: &[Name], now: i64) -> rusqlite::Result<()> {
    let mut used = db.prepare_cached(
        "UPDATE tokens SET last_used_at = ?2
         WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?2 - ?3)",
    )?;
    used.execute(params![token.0, now, USE_STEP_SECONDS])?;
    let mut renew = db.prepare_cached(
        "UPDATE names SET free_at = ?3
         WHERE name = ?1 AND token_id = ?2 AND state = 'leased'
           AND free_at > ?5 AND free_at <= ?3 - ?4",
    )?;
    for name in names {
        let free_at = rested(now);
        renew.execute(params![name.as_str(), token.0, free_at, USE_STEP_SECONDS, now])?;
    }
    Ok(())
}

/// How many names a token may hold; `None` if it is not in force.
fn name_limit(db: &Connection, token: TokenId, now: i64) -> rusqlite::Result<Option<u32>> {
    let mut statement = db.prepare_cached(
        "SELECT max_names FROM tokens
         WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)",
    )?;
    statement.query_row(params![token.0, now], |row| row.get(0)).optional()
}

/// Rows of names that became free long ago. Not sooner: for as long again, a clock that was wrong
/// for a while costs nobody a name that nobody else wanted.
fn forget_old_names(db: &Connection, now: i64) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM names WHERE free_at <= ?1")?;
    statement.execute([now - NAME_REST_SECONDS]).map(drop)
}

/// When a name used or given up now becomes free.
fn rested(now: i64) -> i64 {
    now.saturating_add(NAME_REST_SECONDS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::PermissionsExt as _;

    use futures_util::future::join_all;
    use proptest::prelude::*;
    use rusqlite::StatementStatus;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 60 * 60;

    fn name(label: &str) -> Name {
        Name::parse(label).unwrap()
    }

    fn names(labels: &[&str]) -> Vec<Name> {
        labels.iter().map(|label| name(label)).collect()
    }

    fn new_token(name: &str, reserve: &[&str]) -> NewToken {
        NewToken { name: name.to_owned(), reserve: names(reserve), expires_at: None, limits: TokenLimits::default() }
    }

    async fn token(store: &Store, name: &str, reserve: &[&str]) -> (Secret, Token) {
        store.create_token(new_token(name, reserve), NOW).await.unwrap()
    }

    async fn claim(store: &Store, token: &Token, label: &str, now: i64) -> Result<(), ClaimError> {
        store.claim_names(token.id, &[name(label)], now).await.unwrap().remove(0)
    }

    /// There is no public half of a token that could be right while the secret is wrong: a guess is hashed whole and
    /// looked up. The steps that SQLite takes for it depend neither on how near it is to a token, nor on how many
    /// there are.
    #[test]
    fn a_wrong_secret_costs_the_same_however_near_it_is() {
        let guess = Secret::generate().sha256();
        let steps = |hashes: &[[u8; 32]]| {
            let mut db = Connection::open_in_memory().unwrap();
            database::migrate(&mut db, schema::MIGRATIONS).unwrap();
            for (i, hash) in hashes.iter().enumerate() {
                create_token(&db, new_token(&format!("t{i}"), &[]), hash, NOW).unwrap().unwrap();
            }
            let seen = authenticate(&db, &guess, NOW).unwrap().map(|token| token.name);
            (seen, db.prepare_cached(&by_secret()).unwrap().get_status(StatementStatus::VmStep))
        };
        let near = |equal: usize| {
            let mut hash = guess;
            hash[equal..].iter_mut().for_each(|byte| *byte = !*byte);
            hash
        };
        let far = steps(&[near(0)]);
        assert!(far.0 == Err(AuthError::Unknown) && far.1 > 0, "{far:?}");
        assert_eq!(steps(&[near(31)]), far, "31 of 32 bytes are right");
        let many: Vec<_> = (0..32).map(near).chain((0..1000).map(|_| Secret::generate().sha256())).collect();
        assert_eq!(steps(&many), far, "a thousand tokens");
        assert_eq!(steps(&[guess]).0, Ok("t0".to_owned()), "as a control");

        // What cannot be counted is read: the last word is not that of `==`.
        let (_, rest) = include_str!("mod.rs").split_once("\nfn authenticate(").unwrap();
        let (body, _) = rest.split_once("\n}\n").unwrap();
        assert!(body.contains("constant_time::verify_slices_are_equal") && !body.contains("=="), "{body}");
    }

    #[tokio::test]
    async fn a_revoked_token_has_an_heir_where_another_bears_its_name() {
        let store = Store::in_memory().unwrap();
        let (_, first) = token(&store, "alice", &[]).await;
        let (_, other) = token(&store, "bob", &[]).await;
        assert_eq!(store.heirs().await, Ok(vec![]));
        store.revoke_token("alice", NOW).await.unwrap();
        store.revoke_token("bob", NOW).await.unwrap();
        assert_eq!(store.heirs().await, Ok(vec![]));
        let (_, second) = token(&store, "alice", &[]).await;
        assert_eq!(store.heirs().await, Ok(vec![(first.id, second.id)]));
        assert!(other.id != first.id);
    }

    #[tokio::test]
    async fn a_forgotten_token_leaves_nothing() {
        let store = Store::in_memory().unwrap();
        let (_, kept) = token(&store, "alice", &["hooks"]).await;
        let (secret, trial) = token(&store, "trial", &["api"]).await;
        claim(&store, &trial, "web", NOW).await.unwrap();
        store.forget_token(trial.id).await.unwrap();
        assert_eq!(store.authenticate(&secret, NOW).await, Err(AuthError::Unknown));
        claim(&store, &kept, "web", NOW).await.unwrap();
        let listed = store.list_tokens(NOW).await.unwrap();
        assert_eq!((listed.len(), &listed[0].reserved), (1, &names(&["hooks"])));
        let (_, next) = token(&store, "trial", &[]).await;
        assert!(next.id > trial.id, "sessions remember it");
    }

    #[tokio::test]
    async fn months_long_ago_are_forgotten() {
        let store = Store::in_memory().unwrap();
        let (_, one) = token(&store, "one", &[]).await;
        store.count_bytes((1..=3).map(|month| (one.id, Month(month), 7)).collect()).await.unwrap();
        store.forget_months(Month(3)).await.unwrap();
        let used = async |month| store.quota(one.id, Month(month)).await.unwrap().1;
        assert_eq!((used(1).await, used(2).await, used(3).await), (0, 0, 7));
    }

    #[tokio::test]
    async fn a_token_is_known_until_it_ends() {
        let store = Store::in_memory().unwrap();
        let expiring = NewToken { expires_at: Some(NOW + DAY), ..new_token("alice", &[]) };
        let (secret, token) = store.create_token(expiring, NOW).await.unwrap();
        assert_eq!(store.ended(NOW + DAY - 1).await, Ok(vec![]));
        assert_eq!(store.ended(NOW + DAY).await, Ok(vec![token.id]));
        assert_eq!(store.authenticate(&secret, NOW + DAY - 1).await.as_ref(), Ok(&token));
        let expired = Err(AuthError::Expired { at: NOW + DAY });
        assert_eq!(store.authenticate(&secret, NOW + DAY).await, expired);
        assert_eq!(store.check_token(token.id, NOW + DAY - 1).await, Ok(()));
        assert_eq!(store.check_token(token.id, NOW + DAY).await, expired.map(drop));
        assert_eq!(store.authenticate(&Secret::generate(), NOW).await, Err(AuthError::Unknown));

        assert_eq!(store.revoke_token("alice", NOW).await, Ok(token.id));
        assert_eq!(store.authenticate(&secret, NOW).await, Err(AuthError::Revoked));
        assert_eq!(store.check_token(token.id, NOW).await, Err(AuthError::Revoked));
        assert_eq!(store.revoke_token("alice", NOW + 5).await, Ok(token.id), "again is no error");
        let listed = store.list_tokens(NOW).await.unwrap();
        assert_eq!(listed[0].token.revoked_at, Some(NOW), "the first time counts");

        let nobody = RevokeError::NoSuchToken { token: "bob".to_owned() };
        assert_eq!(store.revoke_token("bob", NOW).await, Err(nobody));
        let ended = Err(ClaimError::TokenEnded);
        assert_eq!(claim(&store, &token, "hooks", NOW).await, ended);
        assert_eq!(store.claim_random_name(token.id, NOW).await, Err(ClaimError::TokenEnded));
    }

    #[tokio::test]
    async fn token_names_are_unique_and_readable() {
        let store = Store::in_memory().unwrap();
        token(&store, "ci@example.com", &[]).await;
        let again = store.create_token(new_token("ci@example.com", &[]), NOW).await;
        assert!(matches!(again, Err(CreateTokenError::NameTaken { .. })));
        for bad in ["", "a b", "a\u{1b}[31m", "\u{e9}", &"a".repeat(65)] {
            let refused = store.create_token(new_token(bad, &[]), NOW).await;
            assert!(matches!(refused, Err(CreateTokenError::BadName { .. })), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_lease_lasts_thirty_days_after_its_last_use() {
        let store = Store::in_memory().unwrap();
        let (_, alice) = token(&store, "alice", &[]).await;
        let (_, bob) = token(&store, "bob", &[]).await;
        let taken = || Err(ClaimError::OwnedByOther { name: name("hooks") });

        claim(&store, &alice, "hooks", NOW).await.unwrap();
        assert_eq!(claim(&store, &bob, "hooks", NOW + 30 * DAY - 1).await, taken());
        store.touch_names(alice.id, &[name("hooks")], NOW + 10 * DAY).await.unwrap();
        store.touch_names(bob.id, &[name("hooks")], NOW + 20 * DAY).await.unwrap();
        assert_eq!(claim(&store, &bob, "hooks", NOW + 40 * DAY - 1).await, taken());
        claim(&store, &bob, "hooks", NOW + 40 * DAY).await.expect("it is free now");
        assert!(claim(&store, &alice, "hooks", NOW + 41 * DAY).await.is_err());

        let used = store.list_tokens(NOW + 41 * DAY).await.unwrap();
        assert_eq!(used[0].token.last_used_at, Some(NOW + 41 * DAY));
        assert_eq!((&used[0].leased, &used[1].leased), (&vec![], &names(&["hooks"])));
    }

    #[tokio::test]
    async fn a_clock_that_steps_back_shortens_no_lease() {
        let store = Store::in_memory().unwrap();
        let (_, alice) = token(&store, "alice", &[]).await;
        let (_, bob) = token(&store, "bob", &[]).await;
        claim(&store, &alice, "hooks", NOW).await.unwrap();
        claim(&store, &alice, "hooks", NOW - 300 * DAY).await.unwrap();
        assert!(claim(&store, &bob, "hooks", NOW + 29 * DAY).await.is_err());
    }

    #[tokio::test]
    async fn names_of_an_ended_token_still_rest() {
        let store = Store::in_memory().unwrap();
        let (_, alice) = token(&store, "alice", &["api"]).await;
        let (_, bob) = token(&store, "bob", &[]).await;
        claim(&store, &alice, "hooks", NOW).await.unwrap();
        store.revoke_token("alice", NOW + DAY).await.unwrap();
        assert!(claim(&store, &bob, "hooks", NOW + 30 * DAY - 1).await.is_err());
        assert_eq!(
            claim(&store, &bob, "api", NOW + 31 * DAY - 1).await,
            Err(ClaimError::Resting { name: name("api"), until: NOW + 31 * DAY })
        );
        claim(&store, &bob, "hooks", NOW + 30 * DAY).await.unwrap();
        claim(&store, &bob, "api", NOW + 31 * DAY).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_token_of_a_revoked_ones_name_takes_over_its_names() {
        let store = Store::in_memory().unwrap();
        let (_, old) = token(&store, "alice", &["api"]).await;
        claim(&store, &old, "hooks", NOW).await.unwrap();
        store.revoke_token("alice", NOW).await.unwrap();
        let (_, new) = token(&store, "alice", &["api"]).await;
        assert_ne!(new.id, old.id);
        claim(&store, &new, "hooks", NOW).await.unwrap();
        let listed = store.list_tokens(NOW).await.unwrap();
        assert_eq!((&listed[0].reserved, &listed[0].leased), (&vec![], &vec![]));
        let expected = (&names(&["api"]), &names(&["hooks"]));
        assert_eq!((&listed[1].reserved, &listed[1].leased), expected);
    }

    #[tokio::test]
    async fn a_reservation_is_for_good_and_rests_after_its_release() {
        let store = Store::in_memory().unwrap();
        let (_, alice) = token(&store, "alice", &["hooks"]).await;
        let (_, bob) = token(&store, "bob", &[]).await;
        let much_later = NOW + 4000 * DAY;
        assert!(claim(&store, &bob, "hooks", much_later).await.is_err());
        claim(&store, &alice, "hooks", much_later).await.unwrap();

        store.release(names(&["hooks"]), NOW).await.unwrap();
        let until = NOW + 30 * DAY;
        let resting = Err(ClaimError::Resting { name: name("hooks"), until });
        assert_eq!(claim(&store, &bob, "hooks", until - 1).await, resting);
        let owner = "alice".to_owned();
        assert_eq!(
            store.reserve("bob", names(&["hooks"]), None, until - 1).await,
            Err(ReserveError::Resting { name: name("hooks"), owner, until })
        );
        store.reserve("alice", names(&["hooks"]), None, until - 1).await.expect("its own token may");
        store.release(names(&["hooks"]), NOW).await.unwrap();
        claim(&store, &bob, "hooks", until).await.expect("it has rested");
    }

    #[tokio::test]
    async fn a_reservation_says_whose_webhooks_a_name_is_for_until_it_ends() {
        let store = Store::in_memory().unwrap();
        token(&store, "alice", &["api"]).await;
        let of = async || {
            let providers = store.list_tokens(NOW).await.unwrap().remove(0).providers;
            providers.into_iter().map(|(name, id)| format!("{name}={id}")).collect::<Vec<_>>()
        };
        let reserve = |provider| store.reserve("alice", names(&["hooks", "api"]), provider, NOW);
        assert!(of().await.is_empty());
        reserve(Some("slack")).await.unwrap();
        assert_eq!(of().await, ["api=slack", "hooks=slack"]);
        store.release(names(&["api"]), NOW).await.unwrap();
        assert_eq!(of().await, ["hooks=slack"]);
        reserve(None).await.unwrap();
        assert!(of().await.is_empty(), "the last word counts");
        reserve(Some("slack")).await.unwrap();
        store.revoke_token("alice", NOW).await.unwrap();
        assert!(of().await.is_empty());
    }

    /// A database of the relay before this one.
    #[test]
    fn a_database_of_version_1_is_brought_up_to_date() {
        let mut db = Connection::open_in_memory().unwrap();
        database::migrate(&mut db, &schema::MIGRATIONS[..1]).unwrap();
        db.execute_batch(
            "INSERT INTO tokens (name, secret_sha256, created_at, max_tunnels, max_names, max_sessions)
             VALUES ('alice', x'00', 0, 1, 1, 1);
             INSERT INTO names (name, token_id, state, generated, free_at)
             VALUES ('hooks', 1, 'reserved', 0, NULL), ('api', 1, 'leased', 0, 1900000000);",
        )
        .unwrap();
        database::migrate(&mut db, schema::MIGRATIONS).unwrap();
        let listed = list_tokens(&db, NOW).unwrap().remove(0);
        assert_eq!((listed.reserved, listed.leased), (names(&["hooks"]), names(&["api"])));
        assert!(listed.providers.is_empty());
    }

    #[tokio::test]
    async fn reserving_and_releasing_are_all_or_nothing() {
        let store = Store::in_memory().unwrap();
        let (_, _alice) = token(&store, "alice", &["one"]).await;
        token(&store, "bob", &[]).await;
        let refused = store.reserve("bob", names(&["two", "one"]), None, NOW).await;
        assert!(matches!(refused, Err(ReserveError::OwnedByOther { ref owner, .. }) if owner == "alice"));
        let refused = store.release(names(&["one", "two"]), NOW).await;
        assert_eq!(refused, Err(ReleaseError::NotReserved { name: name("two") }));
        let refused = store.create_token(new_token("carol", &["three", "one"]), NOW).await;
        assert!(matches!(refused, Err(CreateTokenError::Reserve(_))));
        let refused = store.reserve("dave", names(&["four"]), None, NOW).await;
        assert!(matches!(refused, Err(ReserveError::NoSuchToken { .. })));

        let listed = store.list_tokens(NOW).await.unwrap();
        let reserved: Vec<_> = listed.iter().map(|one| (&*one.token.name, &one.reserved)).collect();
        assert_eq!(reserved, [("alice", &names(&["one"])), ("bob", &vec![])]);
    }

    #[tokio::test]
    async fn a_token_holds_as_many_names_as_it_may() {
        let store = Store::in_memory().unwrap();
        let limits = TokenLimits { max_names: 2, ..TokenLimits::default() };
        let new = NewToken { limits, ..new_token("alice", &["own"]) };
        let (_, alice) = store.create_token(new, NOW).await.unwrap();
        let too_many = || Err(ClaimError::TooManyNames { limit: 2 });
        let asked = names(&["one", "two", "own", "one"]);
        let answers = store.claim_names(alice.id, &asked, NOW).await.unwrap();
        assert_eq!(answers, [Ok(()), too_many(), Ok(()), Ok(())]);
        store.claim_random_name(alice.id, NOW).await.expect("generated ones do not count");
        assert_eq!(claim(&store, &alice, "two", NOW + 30 * DAY - 1).await, too_many());
        claim(&store, &alice, "two", NOW + 30 * DAY).await.expect("the first lease is over");
    }

    #[tokio::test]
    async fn the_generated_names_used_last_are_kept() {
        let store = Store::in_memory().unwrap();
        let (_, alice) = token(&store, "alice", &[]).await;
        let first = store.claim_random_name(alice.id, NOW).await.unwrap();
        let second = store.claim_random_name(alice.id, NOW + 1).await.unwrap();
        assert!(claim(&store, &token(&store, "bob", &[]).await.1, first.as_str(), NOW).await.is_err());
        store.touch_names(alice.id, std::slice::from_ref(&first), NOW + DAY).await.unwrap();
        let more = i64::from(GENERATED_NAMES_KEPT) - 1;
        join_all((0..more).map(|i| store.claim_random_name(alice.id, NOW + 2 + i))).await;
        let leased = store.list_tokens(NOW).await.unwrap().remove(0).leased;
        assert_eq!(leased.len(), 1000);
        assert!(leased.contains(&first) && !leased.contains(&second));
    }

    #[tokio::test]
    async fn of_many_that_want_a_name_one_gets_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let tokens = join_all((0..40).map(|i| {
            let store = store.clone();
            async move { token(&store, &format!("t{i}"), &[]).await.1 }
        }))
        .await;
        for round in 0..10 {
            let label = format!("wanted{round}");
            let claims = tokens.iter().map(|token| claim(&store, token, &label, NOW));
            let winners = join_all(claims).await.iter().filter(|answer| answer.is_ok()).count();
            assert_eq!(winners, 1);
        }
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("made/on/the/way");
        let store = Store::open(&data).await.unwrap();
        let (secret, alice) = token(&store, "alice", &["hooks"]).await;
        let copy = store.clone();
        store.close().await;
        assert_eq!(copy.authenticate(&secret, NOW).await, Err(AuthError::Store(StoreError::Closed)));
        drop(copy);

        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(DATABASE_FILE))), (0o700, 0o600));
        let again = Store::open(&data).await.unwrap();
        assert_eq!(again.authenticate(&secret, NOW).await, Ok(alice));
        for entry in data.read_dir().unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            let bytes = std::fs::read(&path).unwrap();
            let text = secret.expose().as_bytes();
            assert!(!bytes.windows(text.len()).any(|window| window == text), "the secret is stored");
        }
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open_blocking(directory.path()).unwrap());
        let raw = Connection::open(directory.path().join(DATABASE_FILE)).unwrap();
        raw.execute_batch("PRAGMA user_version = 77").unwrap();
        let error = Store::open_blocking(directory.path()).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 77, .. }), "{error}");
        raw.execute_batch("PRAGMA user_version = -1").unwrap();
        assert!(Store::open_blocking(directory.path()).is_err());
    }

    #[test]
    fn what_is_no_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(DATABASE_FILE), "not a database ".repeat(100)).unwrap();
        assert!(matches!(Store::open_blocking(directory.path()), Err(OpenError::Engine(_))));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim { token: usize, name: usize },
        Touch { token: usize, name: usize },
        Reserve { token: usize, name: usize },
        Release { name: usize },
        Wait { days: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let pair = || (0..3usize, 0..3usize);
        prop_oneof![
            4 => pair().prop_map(|(token, name)| Step::Claim { token, name }),
            2 => pair().prop_map(|(token, name)| Step::Touch { token, name }),
            1 => pair().prop_map(|(token, name)| Step::Reserve { token, name }),
            1 => (0..3usize).prop_map(|name| Step::Release { name }),
            2 => (1..25i64).prop_map(|days| Step::Wait { days }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever happens in whatever order: after a token held a name, no other gets it within
        /// thirty days of the last use.
        #[test]
        fn no_stranger_gets_a_name_within_thirty_days(steps in prop::collection::vec(step(), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let store = Store::in_memory().unwrap();
                let mut tokens = Vec::new();
                for owner in ["a", "b", "c"] {
                    tokens.push(token(&store, owner, &[]).await.1);
                }
                let labels = names(&["x", "y", "z"]);
                // Who held each name last, and when at the latest.
                let mut last: [Option<(usize, i64)>; 3] = [None; 3];
                let mut reserved: [Option<usize>; 3] = [None; 3];
                let mut now = NOW;
                for step in steps {
                    let (who, at) = match step {
                        Step::Wait { days } => { now += days * DAY; continue }
                        Step::Release { name } => {
                            let done = store.release(vec![labels[name].clone()], now).await.is_ok();
                            assert_eq!(done, reserved[name].is_some());
                            if let Some(holder) = reserved[name].take() {
                                last[name] = Some((holder, now));
                            }
                            continue;
                        }
                        Step::Claim { token, name } => {
                            let answer = claim(&store, &tokens[token], labels[name].as_str(), now).await;
                            if answer.is_err() { continue }
                            (token, name)
                        }
                        Step::Touch { token, name } => {
                            store.touch_names(tokens[token].id, &labels[name..=name], now).await.unwrap();
                            continue;
                        }
                        Step::Reserve { token, name } => {
                            let own = vec![labels[name].clone()];
                            if store.reserve(&tokens[token].name, own, None, now).await.is_err() { continue }
                            reserved[name] = Some(token);
                            (token, name)
                        }
                    };
                    if let Some((holder, used)) = last[at] {
                        assert!(holder == who || now - used >= 30 * DAY, "{holder} lost {at} to {who}");
                    }
                    assert!(reserved[at].is_none_or(|holder| holder == who));
                    last[at] = Some((who, now));
                }
            });
        }
    }
}
