//! What the operator keeps out.

use std::collections::HashMap;

use rusqlite::{OptionalExtension as _, Row, params};
use thiserror::Error;

use super::{Store, StoreError, TokenId};
use crate::blocks::{Block, MOST, Target};
use crate::clock::moment;

/// Why something is not kept out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlockError {
    /// No token has that name.
    #[error("there is no token named {token:?}; `token list` shows them all")]
    NoSuchToken {
        /// The name given.
        token: String,
    },
    /// There are as many as there can be.
    #[error("there are {MOST} blocks, as many as there can be; block whole networks, or remove some")]
    TooMany,
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

const COLUMNS: &str = "id, kind, target, reason, at";

/// None for one that another version has written.
fn block_from(row: &Row<'_>) -> rusqlite::Result<Option<Block>> {
    let (kind, target): (String, String) = (row.get("kind")?, row.get("target")?);
    let (id, reason, at) = (row.get("id")?, row.get("reason")?, moment(row.get("at")?));
    Ok(Target::from_parts(&kind, &target).map(|target| Block { id, target, reason, at }))
}

impl Store {
    /// Keeps something out, or says why once more.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub(crate) async fn block(&self, target: Target, reason: String, now: i64) -> Result<Block, BlockError> {
        self.write(move |db| {
            let (kind, which) = target.parts();
            let is_known = |sql, which: &str| db.prepare_cached(sql)?.exists([which]);
            if matches!(target, Target::Token(_)) && !is_known("SELECT 1 FROM tokens WHERE name = ?1", &which)? {
                return Ok(Err(BlockError::NoSuchToken { token: which }));
            }
            let count: i64 = db.query_row("SELECT count(*) FROM blocks", [], |row| row.get(0))?;
            if count >= MOST {
                return Ok(Err(BlockError::TooMany));
            }
            db.prepare_cached(
                "INSERT INTO blocks (kind, target, reason, at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (kind, target) DO UPDATE SET reason = excluded.reason",
            )?
            .execute(params![kind, which, reason, now])?;
            let sql = format!("SELECT {COLUMNS} FROM blocks WHERE kind = ?1 AND target = ?2");
            let block = db.prepare_cached(&sql)?.query_row(params![kind, which], block_from)?;
            Ok(block
                .ok_or_else(|| BlockError::Store(StoreError::Engine { reason: "a block that cannot be read".into() })))
        })
        .await
    }

    /// Keeps something out no longer; none where there was no such block.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn unblock(&self, id: i64) -> Result<Option<Block>, StoreError> {
        self.write(move |db| {
            let sql = format!("DELETE FROM blocks WHERE id = ?1 RETURNING {COLUMNS}");
            Ok(Ok(db.prepare_cached(&sql)?.query_row([id], block_from).optional()?.flatten()))
        })
        .await
    }

    /// What is kept out, in the order in which it was said, and the tokens that bear the names which are.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn blocks(&self) -> Result<(Vec<Block>, HashMap<String, Vec<TokenId>>), StoreError> {
        self.read(|db| {
            let mut blocks = db.prepare_cached(&format!("SELECT {COLUMNS} FROM blocks ORDER BY id"))?;
            let blocks = blocks.query_map([], block_from)?.filter_map(Result::transpose);
            let blocks = blocks.collect::<rusqlite::Result<_>>()?;
            let mut tokens = db
                .prepare_cached("SELECT name, tokens.id FROM tokens JOIN blocks ON kind = 'token' AND target = name")?;
            let mut rows = tokens.query([])?;
            let mut ids: HashMap<String, Vec<TokenId>> = HashMap::new();
            while let Some(row) = rows.next()? {
                ids.entry(row.get(0)?).or_default().push(TokenId(row.get(1)?));
            }
            Ok(Ok((blocks, ids)))
        })
        .await
    }
}
