//! The program that a relay is.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::config::{Config, ConfigError};

/// The program that a relay is, so that it can start its successor and read its configuration anew.
pub struct Program {
    /// Where it is: what is there by the time of an upgrade is started.
    path: PathBuf,
    /// What it was started with.
    arguments: Vec<OsString>,
    /// Reads what it is configured by.
    read: Box<ReadConfig>,
    /// Held while it does, so that what was read first does not win over what was read last.
    reading: Mutex<()>,
}

impl Program {
    /// A program at that path, started with these arguments, which is configured by what `read` reads.
    pub fn new(path: PathBuf, arguments: Vec<OsString>, read: Box<ReadConfig>) -> Self {
        Self { path, arguments, read, reading: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Reads the configuration anew and lets `apply` have it, one after another. It blocks.
    pub(crate) fn configure<T, E: From<ConfigError>>(
        &self,
        apply: impl FnOnce(Config) -> Result<T, E>,
    ) -> Result<T, E> {
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        apply((self.read)()?)
    }
}

/// Reads a configuration.
pub type ReadConfig = dyn Fn() -> Result<Config, ConfigError> + Send + Sync;

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments are the operator's, and none of them is a secret.
        f.debug_struct("Program").field("path", &self.path).field("arguments", &self.arguments).finish_non_exhaustive()
    }
}
