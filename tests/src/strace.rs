//! What a running program asks of the system, seen and meddled with by strace. It needs root, or a system that lets its
//! users look into their own processes.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::Process;
use crate::tools::program;

/// strace, attached to a process and all its threads. The process goes on untouched when this is dropped.
#[derive(Debug)]
pub struct Strace {
    process: Process,
    log: PathBuf,
}

impl Strace {
    /// Attaches to a process and returns once it is watched. `what` are strace's own words, such as `-e inject=…`.
    pub async fn attach(pid: u32, what: &[&str]) -> Self {
        let home = Arc::new(tempfile::tempdir().expect("a directory"));
        let log = home.path().join("calls");
        let own =
            ["-f", "-y", "-s", "6000", "-o", &log.display().to_string(), "-p", &pid.to_string()].map(str::to_owned);
        let words = what.iter().map(|word| (*word).to_owned()).chain(own);
        let strace = program("strace").display().to_string();
        let mut process = Self::start(home, &strace, words).await;
        process.error_line("attached").await;
        Self { process, log }
    }

    async fn start(home: Arc<TempDir>, strace: &str, words: impl Iterator<Item = String>) -> Process {
        Process::spawn_in(home, strace, words, &[]).await
    }

    /// Lets go of the process, and returns the calls that it made, in the order in which they began.
    pub async fn end(mut self) -> Vec<Call> {
        self.process.signal(Signal::INT);
        self.process.wait().await;
        calls(&std::fs::read_to_string(&self.log).expect("strace writes what it sees"))
    }
}

/// A system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Its arguments, as strace writes them: descriptors with what they lead to, bytes as in C.
    pub arguments: String,
    /// When it began, and when it ended: numbers that grow with time.
    pub at: (usize, usize),
    /// Whether it ended, and without an error.
    pub succeeded: bool,
}

/// Reads what strace has written. Where calls of several threads overlap, it writes them in two lines.
fn calls(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let succeeded = |rest: &str| rest.rsplit_once(" = ").is_some_and(|(_, value)| !value.starts_with(['-', '?']));
        if let Some((_, resumed)) = rest.split_once(" resumed>").filter(|_| rest.starts_with("<... ")) {
            // A thread makes one call at a time.
            let begun =
                calls.iter_mut().rfind(|call| call.at.1 == usize::MAX && call.name.starts_with(&format!("{thread} ")));
            if let Some(call) = begun {
                call.at.1 = at;
                call.succeeded = succeeded(resumed);
            }
        } else if let Some((name, arguments)) = rest.split_once('(') {
            let unfinished = arguments.ends_with("<unfinished ...>");
            let ended = if unfinished { usize::MAX } else { at };
            let succeeded = !unfinished && succeeded(arguments);
            // With its thread, for as long as its end is looked for.
            calls.push(Call {
                name: format!("{thread} {name}"),
                arguments: arguments.to_owned(),
                at: (at, ended),
                succeeded,
            });
        }
    }
    for call in &mut calls {
        call.name = call.name.split_once(' ').map_or_else(String::new, |(_, name)| name.to_owned());
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_overlap_are_put_together() {
        let text = "10 fdatasync(7</d/inbox.db-wal> <unfinished ...>\n\
                    11 write(3<socket:[5]>, \"a (b) = c\", 9) = 9\n\
                    10 <... fdatasync resumed>)         = -1 EIO (Input/output error) (INJECTED)\n\
                    10 fdatasync(7</d/inbox.db-wal>)    = 0\n\
                    11 +++ exited with 0 +++\n";
        let calls = calls(text);
        let seen: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.at, call.succeeded)).collect();
        assert_eq!(seen, [("fdatasync", (0, 2), false), ("write", (1, 1), true), ("fdatasync", (3, 3), true)]);
    }
}
