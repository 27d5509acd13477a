//! The audit log: entries are added, and the oldest go when there are too many.

use rusqlite::params;

use super::{Store, StoreError};
use crate::audit::{By, Deed, Entry, KEPT};
use crate::clock::moment;

impl Store {
    /// Notes that somebody has done something.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn note(&self, by: &By, deed: Deed, now: i64) -> Result<(), StoreError> {
        let by = serde_json::to_string(by).unwrap_or_default();
        self.write(move |db| {
            let Deed { operation, subject, detail } = deed;
            db.prepare_cached("INSERT INTO audit (at, by, operation, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![now, by, operation, subject, detail])?;
            db.prepare_cached("DELETE FROM audit WHERE id <= ?1")?.execute([db.last_insert_rowid() - KEPT])?;
            Ok(Ok(()))
        })
        .await
    }

    /// The entries before one of them, or the latest, so many at most; the latest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.read(move |db| {
            let mut entries = db.prepare_cached(
                "SELECT id, at, by, operation, subject, detail FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let entries = entries.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
                let by: String = row.get("by")?;
                // Another version may know more ways.
                let Ok(by) = serde_json::from_str(&by) else { return Ok(None) };
                Ok(Some(Entry {
                    id: row.get("id")?,
                    at: moment(row.get("at")?),
                    by,
                    operation: row.get("operation")?,
                    subject: row.get("subject")?,
                    detail: row.get("detail")?,
                }))
            })?;
            Ok(Ok(entries.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[tokio::test]
    async fn the_latest_come_first_and_the_oldest_go() {
        let store = Store::in_memory().unwrap();
        let by = By::Command { user: 1000, process: None };
        let note = |number: i64| {
            let deed = Deed { operation: "token.create", subject: format!("t{number}"), detail: String::new() };
            store.note(&by, deed, number)
        };
        futures_util::future::join_all((1..=10).map(note)).await;
        let page = store.audit(None, 3).await.unwrap();
        let subjects: Vec<_> = page.iter().map(|entry| entry.subject.as_str()).collect();
        assert_eq!((subjects, &page[0].by), (vec!["t10", "t9", "t8"], &by));
        assert_eq!(store.audit(Some(page[2].id), 100).await.unwrap().len(), 7);

        // As if so many had been noted since.
        store
            .write(|db| Ok(Ok::<_, StoreError>(db.execute("UPDATE audit SET id = id + ?1 WHERE id = 10", [KEPT - 5])?)))
            .await
            .unwrap();
        note(11).await.unwrap();
        let left: Vec<_> = store.audit(None, 100).await.unwrap().into_iter().map(|entry| entry.subject).collect();
        assert_eq!(left, ["t11", "t10", "t9", "t8", "t7"]);
    }
}
