//! The disk under the data directory: room, and whether what is written there stays.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::finding::Finding;
use super::patient::Patient;

/// Longer than this, and whoever sends a webhook waits for the disk.
const SLOW: Duration = Duration::from_millis(100);

/// How often it is tried to be faster than that.
const TRIES: usize = 5;

pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    let Some(directory) = patient.config.data_dir.clone() else { return Vec::new() };
    let floor = patient.config.limits.inbox_free;
    // It may hang.
    let look = tokio::task::spawn_blocking(move || look(&directory, floor));
    match tokio::time::timeout(Duration::from_secs(30), look).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::unknown("disk.write", error.to_string())],
        Err(_) => vec![Finding::wrong("disk.write", "the disk under the data directory hangs")],
    }
}

/// `floor` is what the relay leaves free.
fn look(directory: &Path, floor: u64) -> Vec<Finding> {
    let shown = directory.display();
    let metadata = match fs::metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![Finding::unknown("disk.room", format!("{shown} is not there yet; the relay makes it"))];
        }
        Err(error) => return vec![Finding::unknown("disk.room", format!("cannot look at {shown}: {error}"))],
    };
    let room = match rustix::fs::statvfs(directory) {
        Ok(disk) => room(&shown.to_string(), disk.f_bavail.saturating_mul(disk.f_frsize), floor),
        Err(error) => Finding::unknown("disk.room", format!("cannot tell how much is free under {shown}: {error}")),
    };
    let written = match write_at_best(directory) {
        Ok(took) if took > SLOW => Finding::wrong(
            "disk.write",
            format!("{shown} takes {} ms to write 4 KiB and to confirm them: webhooks wait for that", took.as_millis()),
        )
        .mend(["a --data-dir on a faster disk, which is not of the network"]),
        Ok(took) => {
            Finding::ok("disk.write", format!("{shown} wrote 4 KiB and confirmed them in {} us", took.as_micros()))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::unknown("disk.write", format!("this user may not write into {shown}"))
                .mend([format!("sudo -u '#{}' relay-server doctor ...", metadata.uid())])
        }
        Err(error) => Finding::wrong("disk.write", format!("{shown} cannot be written to: {error}")),
    };
    vec![room, written]
}

fn room(shown: &str, free: u64, floor: u64) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    let found = format!("{} MiB are free under {shown}", mib(free));
    match free < floor {
        true => Finding::wrong(
            "disk.room",
            format!("{found}, and no webhook goes into an inbox with less than {} MiB (inbox_free)", mib(floor)),
        )
        .mend([format!("make room, or df -h {shown}")]),
        false => Finding::ok("disk.room", found),
    }
}

/// The shortest of a few times, or the first that is not long: where others write much at this moment, that is over soon.
fn write_at_best(directory: &Path) -> io::Result<Duration> {
    let mut best = write(directory)?;
    for _ in 1..TRIES {
        if best <= SLOW {
            break;
        }
        best = best.min(write(directory)?);
    }
    Ok(best)
}

/// How long it takes until something new is on the disk. It is removed again.
fn write(directory: &Path) -> io::Result<Duration> {
    let path = directory.join(format!("doctor-{:016x}", fastrand::u64(..)));
    let begin = Instant::now();
    let written = (|| {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        file.write_all(&[0x64; 4096])?;
        file.sync_all()
    })();
    let took = begin.elapsed();
    // Where it was never made, there is nothing to remove.
    let removed = fs::remove_file(&path);
    written.and(removed).map(|()| took)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_directory_is_looked_at_and_left_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let findings = look(place.path(), 0);
        assert!(findings[0].verdict == Verdict::Ok && findings[1].check == "disk.write", "{findings:?}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let full = look(place.path(), u64::MAX);
        assert!(full[0].verdict == Verdict::Wrong && full[0].found.contains("inbox_free"), "{full:?}");
        let missing = look(&place.path().join("none"), 0);
        assert!(missing.len() == 1 && missing[0].verdict == Verdict::Unknown, "{missing:?}");
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(look(&file, 0)[1].verdict, Verdict::Wrong, "no directory");
    }
}
