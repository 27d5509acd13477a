//! Bodies on their way in: short ones in memory, longer ones in files of their own.
//!
//! ```text
//!   push, push, push ──► up to 256 KiB in memory ──────────────► Body::Inline, for the database
//!                    └─► beyond that the file `inbox/<id>` ────► fsync(file), fsync(directory) ──► Body::Spooled
//! ```
//!
//! A file is on disk before the row that leads to it is written. So each file without a row is what is left of a webhook
//! that nobody was told is stored, and goes when the relay starts. Where an fsync fails, all acceptance ends, as it does
//! with one of the database's: nobody knows what is on disk then.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use bytes::{Bytes, BytesMut};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use ulid::Ulid;

use crate::store::writer::Failure;
use crate::store::{OpenError, StoreError};

/// The longest body that is kept in memory and in the database, in bytes. SQLite reads and writes a value as a whole; at
/// this length it is still faster than a file with two fsyncs of its own.
pub(crate) const MAX_INLINE: usize = 256 * 1024;

/// A directory of bodies; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    directory: Arc<Directory>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Nobody has a use for it after us.
    temporary: bool,
    /// So many bytes of its disk stay free.
    floor: u64,
    /// Bytes of the database that nothing is in any more. It keeps them, for what is written to it next.
    reusable: AtomicU64,
    /// That of the records.
    failure: Failure,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed lies where the system cleans up.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl Spool {
    /// The spool in a directory that is there.
    pub(super) fn at(path: PathBuf, floor: u64, failure: Failure) -> Self {
        Self {
            directory: Arc::new(Directory { path, temporary: false, floor, reusable: AtomicU64::default(), failure }),
        }
    }

    /// One that goes with its last clone.
    pub(super) fn temporary(failure: Failure) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("relay-inbox-{}", Ulid::generate()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self {
            directory: Arc::new(Directory { path, temporary: true, floor: 0, reusable: AtomicU64::default(), failure }),
        })
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Whether there is room for so many bytes on the disk, beside what stays free.
    ///
    /// # Errors
    /// [`StoreError::Full`]; [`StoreError::Engine`] where the system does not say.
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.is_free(bytes, 0)
    }

    /// As [`Spool::has_room`], for what goes into the database.
    pub(super) fn has_room_in_database(&self, bytes: u64) -> Result<(), StoreError> {
        self.is_free(bytes, self.directory.reusable.load(Ordering::Relaxed))
    }

    /// Takes note of what the database keeps of the disk without a use for it.
    pub(super) fn set_reusable(&self, bytes: u64) {
        self.directory.reusable.store(bytes, Ordering::Relaxed);
    }

    fn is_free(&self, bytes: u64, reusable: u64) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(self.directory.path.as_path());
        let disk = disk.map_err(|error| StoreError::Engine { reason: error.to_string().into() })?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(reusable);
        if free < self.directory.floor.saturating_add(bytes) { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Begins a body. Nothing is written before there is too much of it for memory.
    pub(crate) fn receive(&self, id: Ulid) -> Incoming {
        Incoming {
            spool: self.clone(),
            id,
            size: 0,
            hash: Context::new(&SHA256),
            place: Place::Memory(BytesMut::new()),
        }
    }

    /// Opens a body for reading.
    ///
    /// # Errors
    /// The system's: it is not there, or cannot be read.
    pub(crate) async fn open(&self, id: Ulid) -> io::Result<File> {
        File::open(self.path(id)).await
    }

    /// Removes bodies. Those that are not there are passed over, and those that cannot be removed go with the next start.
    pub(crate) async fn remove(&self, ids: impl IntoIterator<Item = Ulid>) {
        for id in ids {
            if let Err(error) = tokio::fs::remove_file(self.path(id)).await
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%id, %error, "a stored body cannot be removed");
            }
        }
    }

    /// Removes every body that `is_known` does not know. Returns how many.
    pub(super) fn remove_orphans(
        &self,
        mut is_known: impl FnMut(Ulid) -> rusqlite::Result<bool>,
    ) -> Result<u64, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.directory.path).map_err(at(&self.directory.path))? {
            let entry = entry.map_err(at(&self.directory.path))?;
            // What is not ours by its name stays.
            let id = entry.file_name().to_str().and_then(|name| Ulid::from_string(name).ok());
            if let Some(id) = id
                && !is_known(id)?
            {
                std::fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn path(&self, id: Ulid) -> PathBuf {
        self.directory.path.join(id.to_string())
    }
}

/// A whole body, on disk already if it is long.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// In memory.
    Inline {
        /// The bytes.
        bytes: Bytes,
        /// Their SHA-256.
        sha256: [u8; 32],
    },
    /// In the spool, under the webhook's id.
    Spooled {
        /// Its length in bytes.
        size: u64,
        /// Its SHA-256.
        sha256: [u8; 32],
        /// Where it is, for as long as no row leads to it.
        file: Arc<Unclaimed>,
    },
}

impl Body {
    #[cfg(test)]
    /// A body that is in memory already; longer than [`MAX_INLINE`] is possible and slow.
    pub(crate) fn inline(bytes: Bytes) -> Self {
        let sha256 = array(aws_lc_rs::digest::digest(&SHA256, &bytes));
        Self::Inline { bytes, sha256 }
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Inline { bytes, .. } => bytes.len() as u64,
            Self::Spooled { size, .. } => *size,
        }
    }

    /// Its SHA-256.
    pub(crate) fn sha256(&self) -> &[u8; 32] {
        match self {
            Self::Inline { sha256, .. } | Self::Spooled { sha256, .. } => sha256,
        }
    }

    /// Its file, where it is spooled.
    pub(super) fn file(&self) -> Option<&Arc<Unclaimed>> {
        match self {
            Self::Inline { .. } => None,
            Self::Spooled { file, .. } => Some(file),
        }
    }
}

/// A body that is still coming. Dropped before [`Incoming::finish`], it leaves nothing behind. How much may come is the
/// caller's to limit.
pub(crate) struct Incoming {
    spool: Spool,
    id: Ulid,
    size: u64,
    hash: Context,
    place: Place,
}

enum Place {
    Memory(BytesMut),
    File(File, Unclaimed),
}

/// A file of the spool that goes when this is dropped, so that senders who hang up leave nothing behind; unless a row
/// has come to lead to it.
#[derive(Debug)]
pub(crate) struct Unclaimed {
    path: PathBuf,
    claimed: AtomicBool,
}

impl Unclaimed {
    /// Says whether a row leads to it.
    pub(super) fn set_claimed(&self, claimed: bool) {
        self.claimed.store(claimed, Ordering::Release);
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if !*self.claimed.get_mut() {
            // The next start finds it, too.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Incoming {
    /// How many bytes have come.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The system's: the file cannot be made or written. The body is of no use then.
    pub(crate) async fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        self.hash.update(bytes);
        let is_long = self.size > MAX_INLINE as u64;
        if (is_long || !self.is_in_memory()) && self.spool.has_room(bytes.len() as u64) == Err(StoreError::Full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if is_long {
            self.spill().await?;
        }
        match &mut self.place {
            Place::Memory(held) => {
                held.extend_from_slice(bytes);
                Ok(())
            }
            Place::File(file, _) => file.write_all(bytes).await,
        }
    }

    /// Whether what has come is in memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// Goes on in a file, however short it is: there is no room for it in memory.
    ///
    /// # Errors
    /// As of [`Incoming::push`].
    pub(crate) async fn spill(&mut self) -> io::Result<()> {
        if let Place::Memory(held) = &mut self.place {
            let path = self.spool.path(self.id);
            let unclaimed = Unclaimed { path, claimed: AtomicBool::new(false) };
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unclaimed.path).await?;
            file.write_all(held).await?;
            self.place = Place::File(file, unclaimed);
        }
        Ok(())
    }

    /// The body, which is on disk now if it is long: the file and its name.
    ///
    /// # Errors
    /// The system's: it did not reach the disk.
    pub(crate) async fn finish(self) -> io::Result<Body> {
        let Self { spool, size, hash, place, .. } = self;
        let sha256 = array(hash.finish());
        match place {
            Place::Memory(bytes) => Ok(Body::Inline { bytes: bytes.freeze(), sha256 }),
            Place::File(mut file, unclaimed) => {
                // Tokio writes behind our back; only this tells of an error then.
                file.flush().await?;
                let directory = File::open(&spool.directory.path).await?;
                let synced = match file.sync_all().await {
                    Ok(()) => directory.sync_all().await,
                    failed => failed,
                };
                synced.inspect_err(|error| {
                    if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                        spool.directory.failure.set(error.to_string());
                    }
                })?;
                Ok(Body::Spooled { size, sha256, file: Arc::new(unclaimed) })
            }
        }
    }
}

fn array(digest: Digest) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    array
}

/// Where the spool lies in a data directory.
pub(super) fn directory(data: &Path) -> PathBuf {
    data.join("inbox")
}
