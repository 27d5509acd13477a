//! What is generated from the command line's own definition: completions for shells, and manual pages.

use std::{io, path::Path};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;

/// The completion script of a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "relay", &mut script);
    script
}

/// Writes `relay.1` and a page per command into a directory, which is made where it is missing.
///
/// # Errors
/// Where the directory does not take them.
pub fn manual(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_learns_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions(*shell)).unwrap();
            for word in ["listen", "login", "relay-ca"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("man1");
        manual(&inside).unwrap();
        for page in ["relay.1", "relay-http.1", "relay-config-check.1"] {
            let text = std::fs::read_to_string(inside.join(page)).unwrap();
            assert!(text.contains(".TH"), "{page}");
        }
        assert!(!inside.join("relay-man.1").exists(), "what is hidden has no page");
    }
}
