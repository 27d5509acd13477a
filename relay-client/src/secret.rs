//! The secrets of webhooks: where a setting says that one is, and what stands there.

use std::env;
use std::fmt;
use std::fs::{File, canonicalize};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use relay_protocol::webhook::Secret;
use serde::Deserialize;

/// The largest file with a secret; the longest ones are public keys.
const SECRET_MAX: u64 = 64 << 10;

/// What the variables begin with that are meant for secrets of webhooks.
const VARIABLES: &str = "RELAY_SECRET";

/// Where a secret is: the text itself, `@FILE` or `env:NAME`. Only the last two are ever shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct SecretSource(Place);

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Text(Secret),
    File(PathBuf),
    Variable(String),
}

impl From<String> for SecretSource {
    fn from(text: String) -> Self {
        Self(match (text.strip_prefix('@'), text.strip_prefix("env:")) {
            (Some(file), _) => Place::File(file.into()),
            (_, Some(name)) => Place::Variable(name.to_owned()),
            _ => Place::Text(text.into()),
        })
    }
}

impl From<PathBuf> for SecretSource {
    fn from(file: PathBuf) -> Self {
        Self(Place::File(file))
    }
}

/// As it was written, but for a secret.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Text(_) => f.write_str("VALUE"),
            Place::File(file) => write!(f, "@{}", file.display()),
            Place::Variable(name) => write!(f, "env:{name}"),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretSource({self})")
    }
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{from}: {problem}")]
pub struct SecretError {
    from: SecretSource,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("this variable is not set")]
    NotSet,
    #[error("it is not text in UTF-8")]
    NotText,
    #[error("it is empty")]
    Empty,
    #[error("a file that may have come with a project can name only files beside or below it")]
    Elsewhere,
    #[error(
        "a file that may have come with a project can name only variables that begin with {VARIABLES}: name this one so, \
         or write it into a file of your own, ~/.config/relay/relay.toml"
    )]
    OtherVariable,
}

impl SecretSource {
    /// Fetches the secret. The end of its line is not part of it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text = match &self.0 {
            Place::Text(secret) => Ok(secret.expose().to_owned()),
            Place::File(file) => {
                let bytes = File::open(file).map_err(ReadError::from).and_then(|file| read(file, SECRET_MAX));
                let text = bytes.map_err(Problem::from);
                text.and_then(|bytes| String::from_utf8(bytes).map_err(|_| Problem::NotText))
            }
            Place::Variable(name) => env::var(name).map_err(|error| match error {
                env::VarError::NotPresent => Problem::NotSet,
                env::VarError::NotUnicode(_) => Problem::NotText,
            }),
        };
        let line = text.and_then(|text| {
            let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
            if line.trim().is_empty() { Err(Problem::Empty) } else { Ok(line.into()) }
        });
        line.map_err(|problem| self.but(problem))
    }

    /// Whether it is the secret itself, for all to see who see where that stands.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.0, Place::Text(_))
    }

    /// Whether it is such a text itself.
    pub(crate) fn is_text_like(&self, is_such: impl FnOnce(&str) -> bool) -> bool {
        matches!(&self.0, Place::Text(text) if is_such(text.expose()))
    }

    /// Takes it as seen from a configuration file in this directory. Of one that is `strangers`, it must not lead to
    /// anything that is the user's and was not meant for it.
    ///
    /// # Errors
    /// Where it does.
    pub(crate) fn seen_from(&mut self, directory: &Path, strangers: bool) -> Result<(), SecretError> {
        let beside = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let problem = match &mut self.0 {
            Place::Variable(name) if strangers && !name.starts_with(VARIABLES) => Some(Problem::OtherVariable),
            Place::File(file) if strangers && !is_below(file, beside) => Some(Problem::Elsewhere),
            Place::File(file) => {
                *file = beside.join(&*file);
                None
            }
            _ => None,
        };
        problem.map_or(Ok(()), |problem| Err(self.but(problem)))
    }

    fn but(&self, problem: Problem) -> SecretError {
        SecretError { from: self.clone(), problem }
    }
}

/// Whether a path leads to a place below the directory, also where it is a link.
fn is_below(file: &Path, directory: &Path) -> bool {
    let mut parts = file.components();
    let stays = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let leads_out = match (canonicalize(directory.join(file)), canonicalize(directory)) {
        (Ok(file), Ok(directory)) => !file.starts_with(directory),
        // There is nothing to read.
        _ => false,
    };
    stays && !leads_out
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is too large.
    #[error("it has more than {} KiB", .0 >> 10)]
    TooLarge(u64),
}

/// All that there is to read, if it is no more than `limit` bytes.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn read(from: impl Read, limit: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut bytes)?;
    if read as u64 > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::fs::{create_dir, write};

    use super::*;

    fn source(text: &str) -> SecretSource {
        text.to_owned().into()
    }

    #[test]
    fn a_strangers_file_reaches_what_came_with_it_and_nothing_of_the_users() {
        let directory = tempfile::tempdir().unwrap();
        let (home, project) = (directory.path(), directory.path().join("project"));
        create_dir(&project).unwrap();
        write(home.join("own.txt"), "own").unwrap();
        write(project.join("theirs.txt"), "theirs\n").unwrap();
        std::os::unix::fs::symlink("../own.txt", project.join("link.txt")).unwrap();
        let own = home.join("own.txt");
        let absolute = format!("@{}", own.display());
        for (text, is_taken) in [
            ("whsec_text", true),
            ("@theirs.txt", true),
            ("@./theirs.txt", true),
            ("@missing.txt", true),
            ("@link.txt", false),
            ("@../own.txt", false),
            ("@../project/theirs.txt", false),
            (&absolute, false),
            ("env:RELAY_SECRET_STRIPE", true),
            ("env:RELAY_TOKEN", false),
            ("env:AWS_SECRET_ACCESS_KEY", false),
        ] {
            assert_eq!(source(text).seen_from(&project, true).is_ok(), is_taken, "{text}");
            assert!(source(text).seen_from(&project, false).is_ok(), "{text}: the user's own file may");
        }
        let mut beside = source("@theirs.txt");
        beside.seen_from(&project, true).unwrap();
        assert_eq!(beside.read().unwrap().expose(), "theirs");
        let error = source("@../own.txt").seen_from(&project, true).unwrap_err().to_string();
        assert!(error.starts_with("@../own.txt: ") && error.contains("beside or below"), "{error}");
    }

    #[test]
    fn a_secret_is_not_shown_and_where_it_is_may_be() {
        for (text, shown) in [("whsec_1", "VALUE"), ("@a b", "@a b"), ("env:X", "env:X")] {
            assert_eq!(source(text).to_string(), shown);
            assert!(!format!("{:?}", source(text)).contains("whsec"));
        }
        assert!(source(" \n").read().unwrap_err().to_string().contains("empty"));
    }
}
