//! Files that are there as a whole or not at all.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::platform::create_private_file;

/// Puts what `write` writes into `file`, which only its owner can read where it is `private`. Readers see the old file or
/// the new one, and never a part. What must outlast a power cut, `write` flushes to the disk: that can take its time.
///
/// # Errors
/// Where the directory does not take it. The old file is then still there.
pub(crate) fn replace(file: &Path, private: bool, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    put(file, private, write, |beside, file| fs::rename(beside, file))
}

/// The same where there is no file yet: of several who do so at once, one succeeds.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], and where the directory does not take it.
pub(crate) fn create(file: &Path, private: bool, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    put(file, private, write, |beside, file| {
        fs::hard_link(beside, file)?;
        fs::remove_file(beside)
    })
}

fn put(
    file: &Path,
    private: bool,
    write: impl FnOnce(&mut File) -> io::Result<()>,
    place: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut beside = name.to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = file.with_file_name(beside);
    // Left behind by a process of the same number that was killed in the middle.
    let _ = fs::remove_file(&beside);
    let new = if private { create_private_file(&beside) } else { File::create_new(&beside) };
    let written = new.and_then(|mut new| write(&mut new)).and_then(|()| place(&beside, file));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private_where_it_must_be() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.json");
        for (contents, private) in [(&b"one"[..], false), (b"two", true)] {
            replace(&file, private, |new| new.write_all(contents)).unwrap();
            assert_eq!(fs::read(&file).unwrap(), contents);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(replace(&file, true, |_| Err(io::ErrorKind::StorageFull.into())).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"two", "what fails changes nothing");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
        let again = create(&file, true, |_| Ok(())).unwrap_err();
        assert_eq!((again.kind(), fs::read(&file).unwrap()), (io::ErrorKind::AlreadyExists, b"two".to_vec()));
        fs::remove_file(&file).unwrap();
        create(&file, true, |new| new.write_all(b"three")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"three");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(replace(&directory.path().join("nowhere/a"), false, |_| Ok(())).is_err());
        assert!(replace(Path::new("/"), false, |_| Ok(())).is_err());
    }
}
