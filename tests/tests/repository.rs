//! Rules about the tree itself, which no compiler checks.
//!
//! Each rule is a function from texts to complaints; beside the test that holds the tree to it stands one line
//! that breaks it, so that a rule which has stopped looking is noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::{collections::BTreeMap, path::Path, process::Command};

/// The files of the tree by their path from its root: all that git tracks or would.
type Tree = BTreeMap<String, String>;

/// This file names what it forbids.
const SELF: &str = "tests/tests/repository.rs";

#[test]
fn builds_with_any_current_stable_toolchain() {
    check(needs_another_toolchain, &[("rust-toolchain.toml", ""), ("a/src/lib.rs", "#![feature(x)]")]);
}

/// A pinned toolchain is a download on the first build, and a nightly one a moving target.
fn needs_another_toolchain(tree: &Tree) -> Vec<String> {
    let pins = tree.keys().filter(|path| matches!(file_name(path), "rust-toolchain" | "rust-toolchain.toml"));
    let pins = pins.map(|path| format!("{path}: pins a toolchain; `rust-version` in Cargo.toml is enough"));
    let unstable = matches(tree, |_| true, &["#![feature(", "RUSTC_BOOTSTRAP", "+nightly"], "is not stable Rust");
    pins.chain(unstable).collect()
}

#[test]
fn every_package_takes_the_workspace_lints() {
    let without = "[package]\nname = \"x\"\n";
    let other = "[package]\nname = \"x\"\n[lints]\nworkspace = false\n";
    check(lints_of_its_own, &[("x/Cargo.toml", without), ("x/Cargo.toml", other), ("Cargo.toml", "[workspace]\n")]);
}

fn lints_of_its_own(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| file_name(path) == "Cargo.toml") {
        let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let lookup = |keys: &[&str]| {
            let first = manifest.get(keys[0]);
            keys[1..].iter().fold(first, |value, key| value?.get(key)).cloned()
        };
        if lookup(&["package"]).is_some() {
            // A workspace of its own, such as the fuzz targets, has nothing to inherit from.
            let inherits = lookup(&["lints", "workspace"]) == Some(true.into());
            if !inherits && lookup(&["workspace"]).is_none() {
                complaints.push(format!("{path}: lacks `[lints] workspace = true`"));
            }
        } else if lookup(&["workspace", "lints", "rust", "unsafe_code"]) != Some("forbid".into()) {
            complaints.push(format!("{path}: the workspace does not forbid unsafe code"));
        }
    }
    complaints
}

#[test]
fn no_code_is_unsafe() {
    check(unsafe_code, &[("a/src/lib.rs", "fn f() { unsafe { g() } }"), ("protocol/fuzz/a.rs", "unsafe fn f() {}")]);
}

/// The lint sees the workspace's own crates; this sees the fuzz targets and what is behind a `cfg` too.
fn unsafe_code(tree: &Tree) -> Vec<String> {
    matches(&code(tree), |_| true, &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("], "is unsafe")
}

#[test]
fn bincode_lives_in_one_file() {
    check(
        bincode_elsewhere,
        &[("relay-client/src/session.rs", "use bincode::Encode;"), ("tests/Cargo.toml", "bincode.workspace = true")],
    );
}

/// It is not maintained, so that another encoder must be able to take its place in one file.
fn bincode_elsewhere(tree: &Tree) -> Vec<String> {
    let home = |path: &str| path == "protocol/src/message.rs";
    let mut complaints = matches(&code(tree), |path| !home(path), &["bincode"], "belongs in protocol/src/message.rs");
    let manifest =
        |path: &str| file_name(path) == "Cargo.toml" && !matches!(path, "Cargo.toml" | "protocol/Cargo.toml");
    complaints.extend(matches(tree, manifest, &["bincode"], "is for the protocol crate alone"));
    complaints
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let home = format!("see {}notes", HOME);
    check(
        private_words,
        &[("README.md", home.as_str()), ("package-lock.json", "{\"resolved\": \"https://a.example/x\"}")],
    );
}

/// Where an administrator's files are; put together, so that this file does not name it either.
const HOME: &str = concat!("/ro", "ot/");

/// Paths of one machine, and the addresses that one machine's package client happened to use.
fn private_words(tree: &Tree) -> Vec<String> {
    let mut complaints = matches(tree, |_| true, &[HOME], "means nothing on another machine");
    let is_json = |path: &str| path.ends_with(".json");
    complaints.extend(matches(tree, is_json, &["\"resolved\":"], "is a download address of one machine"));
    complaints
}

#[test]
fn pages_show_everything_as_text() {
    let [page, other] = ["relay-client/inspector-web/src/a.tsx", "relay-server/admin-web/src/a.tsx"];
    check(
        markup_from_data,
        &[(page, "element.innerHTML = body;"), (other, "<p dangerouslySetInnerHTML={{ __html: body }} />")],
    );
}

/// What strangers send is never read as HTML or as a program by the page that shows it.
fn markup_from_data(tree: &Tree) -> Vec<String> {
    let pages = ["relay-client/inspector-web/src/", "relay-server/admin-web/src/"];
    let page = |path: &str| pages.iter().any(|page| path.starts_with(page));
    let sinks = [
        "nnerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "createContextualFragment",
        "setHTML",
        "DOMParser",
        "document.write",
        "srcdoc",
        "eval(",
        "new Function",
        "javascript:",
    ];
    matches(tree, page, &sinks, "may run what a stranger has sent; show it as text")
}

#[test]
fn links_in_documents_lead_somewhere() {
    check(
        broken_links,
        &[
            ("docs/a.md", "see [b](b.md)"),
            ("docs/a.md", "see [up](../../outside.md)"),
            ("docs/a.md", "# One\nsee [two](#two)"),
            ("docs/a.md", "see [it](a.md#missing)"),
        ],
    );
    let whole = "# The `one` & only\n[self](#the-one--only) [out](https://example.com/x.md)\n```\n[no](link)\n```\n";
    let tree = [("docs/a.md", whole), ("b.md", "[a](docs/a.md#the-one--only) [dir](docs) [dir](docs/)")];
    assert_eq!(broken_links(&tree_of(&tree)), Vec::<String>::new());
}

fn broken_links(tree: &Tree) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| path.ends_with(".md")) {
        let local = |link: &&str| !link.contains("://") && !link.starts_with("mailto:");
        for link in links(text).filter(local) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if target.is_empty() { Some(path.clone()) } else { beside(path, target) };
            let found = file.is_some_and(|file| match tree.get(&file) {
                Some(text) => anchor.is_empty() || anchors(text).any(|known| known == anchor),
                None => tree.keys().any(|path| Path::new(path).starts_with(&file)),
            });
            if !found {
                complaints.push(format!("{path}: the link to {link} leads nowhere"));
            }
        }
    }
    complaints
}

/// The targets of `[text](target)` outside of code blocks.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    let tails = prose.flat_map(|part| part.split("](").skip(1));
    tails.filter_map(|tail| tail.split([')', ' ', '\n']).next())
}

/// `target` as seen from the file at `path`, or nothing where it leaves the tree.
fn beside(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The names that a document's headings can be linked by, as common renderers make them.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let prose = text.split("```").step_by(2);
    let headings = prose.flat_map(str::lines).filter(|line| line.starts_with('#'));
    headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

/// Holds the tree to a rule, and the rule to each file that breaks it.
fn check(rule: fn(&Tree) -> Vec<String>, broken: &[(&str, &str)]) {
    for file in broken {
        assert!(!rule(&tree_of(&[*file])).is_empty(), "the rule does not notice {file:?}");
    }
    let complaints = rule(&tree());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// One complaint for each line of a file that `which` picks and that has one of `words`.
fn matches(tree: &Tree, which: impl Fn(&str) -> bool, words: &[&str], why: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| which(path)) {
        for (number, line) in (1..).zip(text.lines()) {
            for word in words.iter().filter(|word| line.contains(**word)) {
                complaints.push(format!("{path}:{number}: `{word}` {why}"));
            }
        }
    }
    complaints
}

/// The Rust files, without their comments.
fn code(tree: &Tree) -> Tree {
    let files = tree.iter().filter(|(path, _)| path.ends_with(".rs"));
    let bare = |line: &str| line.split("//").next().unwrap().to_owned() + "\n";
    files.map(|(path, text)| (path.clone(), text.lines().map(bare).collect())).collect()
}

fn tree() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = git.output().expect("git is there: run tests/run, which installs it");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).unwrap();
    let texts = paths.split_terminator('\0').filter(|path| *path != SELF).filter_map(|path| {
        // Not text, or deleted and not yet committed.
        let text = std::fs::read_to_string(root.join(path)).ok()?;
        Some((path.to_owned(), text))
    });
    let tree: Tree = texts.collect();
    assert!(tree.contains_key("Cargo.toml") && tree.contains_key("protocol/src/lib.rs"), "this is the whole tree");
    tree
}

fn tree_of(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}
