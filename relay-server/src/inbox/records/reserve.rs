//! A piece of the disk that is given up once the disk is full, so that what waits can still be delivered and dropped.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file's name in the data directory.
const FILE: &str = "inbox.reserve";

/// Its bytes: room for the write-ahead log at its usual length, twice. A delivery or a removal needs no more.
pub(super) const SIZE: u64 = 8 << 20;

/// The reserve of a data directory; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Reserve(Arc<PathBuf>);

impl Reserve {
    pub(super) fn of(directory: &Path) -> Self {
        Self(Arc::new(directory.join(FILE)))
    }

    /// Lays it by, if that has not been done. It blocks.
    pub(super) fn lay_by(&self) -> io::Result<()> {
        let path = self.0.as_path();
        if path.metadata().is_ok_and(|file| file.len() == SIZE) {
            return Ok(());
        }
        let write = || {
            let mut file = File::create(path)?;
            // What is only as long takes no room.
            let piece = [0; 64 * 1024];
            for _ in 0..SIZE / piece.len() as u64 {
                file.write_all(&piece)?;
            }
            file.sync_all()
        };
        write().inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// Gives it up. Returns whether there was one.
    pub(super) fn give_up(&self) -> bool {
        let was_there = std::fs::remove_file(self.0.as_path()).is_ok();
        if was_there {
            tracing::warn!("the disk is full: what was kept back of it serves to deliver and to drop webhooks now");
        }
        was_there
    }
}
