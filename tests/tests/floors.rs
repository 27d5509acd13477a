//! Versions below which a dependency has a known hole.
//!
//! The advisory database may be old, or absent, where this is built, so the floors stand here, over the very
//! file that says what is linked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;

type Version = (u64, u64, u64);

/// Package, lowest version without the hole, and the hole.
const FLOORS: &[(&str, Version, &str)] = &[
    ("hyper", (1, 12, 0), "Content-Length kept beside Transfer-Encoding: request smuggling"),
    ("h2", (0, 4, 20), "refused streams not counted among local resets; below 0.4.16 RUSTSEC-2026-0258"),
    ("tungstenite", (0, 30, 0), "the cap on the write buffer was documented and not applied"),
    ("rustls", (0, 23, 46), "below 0.23.18 RUSTSEC-2024-0399: a stranger's handshake panics"),
    ("rustls-webpki", (0, 103, 13), "RUSTSEC-2026-0098, -0099 and -0104: how certificates are checked"),
];

/// The write-ahead log of earlier ones could lose a commit to a race with its own reset.
const SQLITE_FLOOR: Version = (3, 51, 3);

#[test]
fn locked_versions_are_above_the_floors() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let lock = std::fs::read_to_string(lock).unwrap();
    let faults = below_floors(&lock);
    assert!(faults.is_empty(), "run `cargo update`:\n{}", faults.join("\n"));
}

#[test]
fn bundled_sqlite_is_above_its_floor() {
    let linked = rusqlite::version();
    assert!(version(linked) >= (SQLITE_FLOOR, true), "SQLite {linked} is linked; at least {SQLITE_FLOOR:?} is needed");
}

/// One sentence for each locked package that is too old, and for each that is not there: a floor under a
/// package that is gone protects nobody.
fn below_floors(lock: &str) -> Vec<String> {
    let lock: toml::Table = lock.parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut faults = Vec::new();
    for &(name, floor, hole) in FLOORS {
        let locked = || packages.iter().filter(|package| package["name"].as_str() == Some(name));
        let versions: Vec<&str> = locked().map(|package| package["version"].as_str().unwrap()).collect();
        if versions.is_empty() {
            faults.push(format!("{name} is not in Cargo.lock: take it out of the floors"));
        }
        for old in versions.iter().filter(|found| version(found) < (floor, true)) {
            faults.push(format!("{name} {old} is older than {floor:?}: {hole}"));
        }
    }
    faults
}

/// Three numbers, and whether it is a release: a pre-release sorts before the release that it leads to.
fn version(text: &str) -> (Version, bool) {
    let text = text.split('+').next().unwrap();
    let (numbers, release) = text.split_once('-').map_or((text, true), |(numbers, _)| (numbers, false));
    let numbers: Vec<u64> = numbers.split('.').map(|number| number.parse().expect(text)).collect();
    let [major, minor, patch] = numbers[..] else { panic!("not a version: {text}") };
    ((major, minor, patch), release)
}

#[test]
fn an_old_or_missing_package_is_noticed() {
    let lock = |hyper: &str| {
        let rest = FLOORS.iter().filter(|(name, ..)| *name != "hyper");
        let at_floor = rest.map(|(name, (major, minor, patch), _)| (*name, format!("{major}.{minor}.{patch}")));
        let all = at_floor.chain([("hyper", hyper.to_owned())]);
        all.map(|(name, version)| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n"))
            .collect::<String>()
    };
    assert_eq!(below_floors(&lock("1.12.0")), Vec::<String>::new());
    assert_eq!(below_floors(&lock("1.100.0+build.1")), Vec::<String>::new());
    assert!(below_floors(&lock("1.9.99"))[0].starts_with("hyper 1.9.99 is older"));
    assert!(below_floors(&lock("1.12.0-rc.1"))[0].starts_with("hyper 1.12.0-rc.1 is older"));
    let both = lock("1.12.0") + &lock("0.14.32");
    assert_eq!(below_floors(&both).len(), 1, "a second, older copy counts too");
    let none = lock("1.12.0").replace("name = \"hyper\"", "name = \"other\"");
    assert!(below_floors(&none)[0].contains("not in Cargo.lock"));
}
