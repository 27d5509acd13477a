//! The random name of last time, so that a webhook's URL stays the same from day to day.
//!
//! A name is remembered per relay, token, working directory and, of several tunnels, label: a project keeps its URL, and nobody
//! else's token brings it back. Each such place is one small file that holds nothing but the name
//! and is replaced as a whole, so that no lock is needed and two clients at once cannot
//! spoil it. Remembering is a kindness: whatever fails here is logged and never fatal.
//!
//! A remembered name may be in use by another client in the same directory. The relay knows and
//! refuses (`name-in-use`); the session then asks for a fresh one and does not remember it, so that
//! the name stays with whoever came first.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};

use crate::atomic;
use crate::platform::{Base, base_directory, create_private_directory};
use crate::session::dial::RelayUrl;
use crate::value::{Secret, is_label};

/// The relay keeps a name for its token for 30 days after the last use. Long after that a file is
/// of no use, and temporary directories would leave files behind for ever.
const FORGET_AFTER: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What is remembered for one relay, token and working directory.
#[derive(Clone, Debug)]
pub struct Names {
    /// None where there is no home directory.
    file: Option<PathBuf>,
}

impl Names {
    /// Those in `$XDG_STATE_HOME/relay`, or else `~/.local/state/relay`, for the current directory.
    pub fn here(relay: &RelayUrl, token: Option<&Secret>) -> Self {
        match (base_directory(Base::State), std::env::current_dir()) {
            (Some(state), Ok(directory)) => Self::of(&state.join("relay"), relay, token, &directory),
            _ => Self { file: None },
        }
    }

    /// Those in a state directory, which is made when first needed.
    pub fn of(state: &Path, relay: &RelayUrl, token: Option<&Secret>, directory: &Path) -> Self {
        // Parts of fixed length, or closed by a byte that they cannot hold: no two places have the
        // same key. The file's name tells nothing of the token.
        let mut hash = Context::new(&SHA256);
        hash.update(relay.to_string().as_bytes());
        hash.update(b"\0");
        hash.update(&token.map(Secret::sha256).unwrap_or_default());
        hash.update(directory.as_os_str().as_encoded_bytes());
        Self { file: Some(state.join("names").join(hex(hash))) }
    }

    /// What is remembered for one of several tunnels.
    pub fn of_tunnel(&self, label: Option<&str>) -> Self {
        let (Some(file), Some(label)) = (&self.file, label) else { return self.clone() };
        let mut hash = Context::new(&SHA256);
        // Of fixed length, so that no label can stand in for another place.
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(label.as_bytes());
        Self { file: Some(file.with_file_name(hex(hash))) }
    }

    /// The name of last time. What could not be one, as in a damaged file, is none.
    pub fn remembered(&self) -> Option<String> {
        // A name has at most 63 bytes, and a newline follows it.
        let mut text = String::new();
        fs::File::open(self.file.as_ref()?).ok()?.take(65).read_to_string(&mut text).ok()?;
        Some(text.trim_end().to_owned()).filter(|name| is_label(name))
    }

    /// Remembers a name for the next time. Called again whenever it was used, so that it is not
    /// forgotten: files of names unused for 90 days are removed here.
    pub fn remember(&self, name: &str) {
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, name).and_then(|()| forget_unused(file)) {
            tracing::debug!(%error, file = %file.display(), "the tunnel's name is not remembered");
        }
    }
}

fn hex(hash: Context) -> String {
    let mut text = String::with_capacity(64);
    for byte in hash.finish().as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn write(file: &Path, name: &str) -> io::Result<()> {
    create_private_directory(file.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    atomic::replace(file, true, |new| writeln!(new, "{name}"))
}

fn forget_unused(kept: &Path) -> io::Result<()> {
    let directory = kept.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // Another client may be tidying up too: what is gone already is no failure.
    for entry in fs::read_dir(directory)?.flatten() {
        let modified = entry.metadata().and_then(|data| data.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > FORGET_AFTER) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::{os::unix::fs::PermissionsExt, time::SystemTime};

    use super::*;

    fn names(state: &Path, relay: &str, token: &str, directory: &str) -> Names {
        let token = Some(Secret::from(token.to_owned())).filter(|token| !token.expose().is_empty());
        Names::of(state, &relay.parse().unwrap(), token.as_ref(), Path::new(directory))
    }

    #[test]
    fn a_name_returns_to_its_place_only() {
        let state = tempfile::tempdir().unwrap();
        let here = names(state.path(), "a.example", "t", "/p");
        assert_eq!(here.remembered(), None);
        here.remember("first");
        here.remember("second");
        let again = names(state.path(), "https://A.example:443", "t", "/p");
        assert_eq!(again.remembered().as_deref(), Some("second"));
        for (relay, token, directory) in
            [("b.example", "t", "/p"), ("a.example", "u", "/p"), ("a.example", "", "/p"), ("a.example", "t", "/q")]
        {
            assert_eq!(names(state.path(), relay, token, directory).remembered(), None);
        }
        let (web, api) = (again.of_tunnel(Some("web")), again.of_tunnel(Some("api")));
        web.remember("other");
        assert_eq!((web.remembered().as_deref(), api.remembered()), (Some("other"), None));
        assert_eq!(again.of_tunnel(None).remembered().as_deref(), Some("second"));
        fs::remove_file(web.file.unwrap()).unwrap();
        let files: Vec<_> = fs::read_dir(state.path().join("names")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "nothing is left beside it");
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_no_name() {
        let state = tempfile::tempdir().unwrap();
        let names = names(state.path(), "a.example", "t", "/p");
        names.remember("x");
        let file = names.file.clone().unwrap();
        for damaged in [&b""[..], b"\n", b"\xff\xfe", b"a.b\n", b"../x\n", b"A B", &[b'a'; 1000]] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(names.remembered(), None, "{damaged:?}");
        }
        names.remember("healed");
        assert_eq!(names.remembered().as_deref(), Some("healed"));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        names.remember("nowhere to write");
        assert_eq!(names.remembered(), None);
        Names { file: None }.remember("x");
    }

    #[test]
    fn what_was_not_used_for_long_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (old, new) = (names(state.path(), "a.example", "t", "/old"), names(state.path(), "a.example", "t", "/new"));
        old.remember("old");
        let long_ago = SystemTime::now() - FORGET_AFTER - Duration::from_secs(60);
        let file = fs::File::options().write(true).open(old.file.as_ref().unwrap()).unwrap();
        file.set_modified(long_ago).unwrap();
        assert_eq!(old.remembered().as_deref(), Some("old"));
        new.remember("new");
        assert_eq!((old.remembered(), new.remembered().as_deref()), (None, Some("new")));
    }

    #[test]
    fn many_at_once_leave_one_whole_name() {
        let state = tempfile::tempdir().unwrap();
        let place = names(state.path(), "a.example", "t", "/p");
        place.remember("start");
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200).for_each(|_| place.remember(&"a".repeat(63))));
            scope.spawn(|| (0..200).for_each(|_| assert!(place.remembered().is_some())));
        });
        assert_eq!(place.remembered(), Some("a".repeat(63)));
    }
}
