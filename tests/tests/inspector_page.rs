//! The inspector's page: that it is built from its sources, and that it does in a real browser what it is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use relay_tests::tools::{self, output};
use tokio::process::Command;

/// A file or directory of the client's sources.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../relay-client").join(name)
}

/// The script that builds the page.
fn build() -> Command {
    let mut build = Command::new(tools::program("node"));
    build.arg(source("inspector-web/build"));
    build
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

#[tokio::test]
async fn what_is_embedded_is_built_from_the_sources() {
    let built = tempfile::tempdir().unwrap();
    output(build().arg("--out").arg(built.path())).await;
    let (embedded, built) = (files(&source("src/inspector/dist")), files(built.path()));
    let names = built.keys().collect::<Vec<_>>();
    assert_eq!(names, ["app.css", "app.js", "index.html"]);
    assert_eq!(names, embedded.keys().collect::<Vec<_>>());
    let changed: Vec<_> = names.into_iter().filter(|name| built[*name] != embedded[*name]).collect();
    assert!(changed.is_empty(), "{changed:?} in src/inspector/dist differ: run relay-client/inspector-web/build");
}

#[tokio::test]
async fn its_parts_do_what_they_say() {
    let said = output(build().arg("--test")).await;
    assert!(
        said.contains("\n# fail 0\n") && said.contains("\n# skipped 0\n") && !said.contains("\n# pass 0\n"),
        "{said}"
    );
}
