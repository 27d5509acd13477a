//! A program of the operator's that sets and removes the records which prove the domain, called as other ACME clients call
//! theirs: with the arguments of lego's `exec` provider and the environment of certbot's manual hooks.
//!
//! ```text
//!   PROGRAM present _acme-challenge.relay.example.com. VALUE
//!   PROGRAM cleanup _acme-challenge.relay.example.com. VALUE
//! ```

use std::io;
use std::path::{self, Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::log::harmless;

/// For one call. Providers' APIs take seconds.
const WITHIN: Duration = Duration::from_secs(120);

/// How much is told of what it says on standard error, in bytes; of more, the end.
const SAID: usize = 1000;

/// The program.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    program: PathBuf,
    /// Whose certificate it is.
    domain: String,
}

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Present,
    Cleanup,
}

/// Why a hook has not done it.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It does not run.
    #[error("the hook {} cannot be run: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It says that it has not.
    #[error("the hook {} failed ({call}, {status}): {said}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was to do.
        call: String,
        /// Its exit code, or the signal that ended it.
        status: ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// It did not end.
    #[error("the hook {} was ended, because it was not done within {} s ({call}): {said}", program.display(), WITHIN.as_secs())]
    Slow {
        /// The program.
        program: PathBuf,
        /// What it was to do.
        call: String,
        /// The end of what it said.
        said: String,
    },
}

/// A process with its children: a process group, which ends with this.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // Where nobody of it is left, there is nothing to end.
        let _ = self.0.map(|leader| kill_process_group(leader, Signal::KILL));
    }
}

impl Hook {
    pub(crate) fn new(program: &Path, domain: &str) -> Self {
        // Without a slash it would be looked for among the commands of the machine.
        let program = path::absolute(program).unwrap_or_else(|_| program.to_owned());
        Self { program, domain: domain.to_owned() }
    }

    /// Runs it to its end. What it leaves running ends with it.
    pub(super) async fn run(&self, task: Task, name: &str, value: &str) -> Result<(), HookError> {
        let word = match task {
            Task::Present => "present",
            Task::Cleanup => "cleanup",
        };
        let program = || self.program.clone();
        let call = || format!("{word} {name} {value}");
        let failed = |error| HookError::Start { program: program(), error };
        let mut command = Command::new(&self.program);
        command.args([word, name, value]).process_group(0).kill_on_drop(true);
        command.env("CERTBOT_DOMAIN", &self.domain).env("CERTBOT_VALIDATION", value);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let mut stderr = child.stderr.take();
        let mut said = Vec::new();
        let done = timeout(WITHIN, async {
            let reading = tail(stderr.as_mut(), &mut said);
            tokio::pin!(reading);
            // Somebody whom it leaves running may hold the pipe.
            tokio::select! {
                status = child.wait() => status,
                () = &mut reading => child.wait().await,
            }
        });
        let status = done.await;
        drop(group);
        // What is left of it in the pipe.
        let _ = timeout(Duration::from_secs(1), tail(stderr.as_mut(), &mut said)).await;
        let said = String::from_utf8_lossy(&said);
        let said: Vec<_> = said.lines().map(|line| harmless(line.trim())).filter(|line| !line.is_empty()).collect();
        let said = said.join(" | ");
        let why = || if said.is_empty() { "it does not say why".to_owned() } else { said.clone() };
        let Ok(status) = status else {
            return Err(HookError::Slow { program: program(), call: call(), said: why() });
        };
        let status = status.map_err(failed)?;
        if !status.success() {
            let said = why();
            return Err(HookError::Failed { program: program(), call: call(), status, said });
        }
        if !said.is_empty() {
            tracing::info!(hook = %self.program.display(), call = call(), said, "the hook says");
        }
        Ok(())
    }
}

/// Reads to the end, and keeps the last [`SAID`] bytes.
async fn tail(from: Option<&mut (impl AsyncRead + Unpin)>, said: &mut Vec<u8>) {
    let Some(from) = from else { return };
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        said.extend_from_slice(buffer.get(..length).unwrap_or_default());
        said.drain(..said.len().saturating_sub(SAID));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NAME: &str = "_acme-challenge.relay.example.com.";

    fn hook(place: &Path, script: &str) -> Hook {
        let program = place.join("hook");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Hook::new(&program, "relay.example.com")
    }

    #[tokio::test]
    async fn it_is_called_as_others_call_theirs() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let script = format!("echo \"$# $1 $2 $3 $CERTBOT_DOMAIN $CERTBOT_VALIDATION\" >> {}", out.display());
        let hook = hook(place.path(), &script);
        hook.run(Task::Present, NAME, "-v1").await.unwrap();
        hook.run(Task::Cleanup, NAME, "-v1").await.unwrap();
        let line = |word| format!("3 {word} {NAME} -v1 relay.example.com -v1\n");
        assert_eq!(fs::read_to_string(&out).unwrap(), line("present") + &line("cleanup"));
    }

    #[tokio::test]
    async fn what_it_says_is_told_at_its_end() {
        let place = tempfile::tempdir().unwrap();
        let hook = hook(place.path(), "seq 1 10000 >&2; printf 'no such \\033[1mzone\\n' >&2; exit 3");
        let error = hook.run(Task::Present, NAME, "v").await.unwrap_err().to_string();
        assert!(error.contains("(present _acme-challenge.relay.example.com. v, exit status: 3)"), "{error}");
        assert!(error.contains("zone") && !error.contains('\u{1b}') && error.len() < 2 * SAID, "{error}");
        let gone = Hook::new(&place.path().join("none"), "relay.example.com");
        let error = gone.run(Task::Present, NAME, "v").await.unwrap_err().to_string();
        assert!(error.contains("cannot be run") && error.contains("none"), "{error}");
    }

    /// Whether a process runs, and is not only remembered.
    fn runs(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
    }

    async fn ends(pid: &str) {
        while runs(pid) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[tokio::test]
    async fn what_it_leaves_behind_does_not_live_on() {
        let place = tempfile::tempdir().unwrap();
        let left = place.path().join("left");
        let hook = hook(place.path(), &format!("sleep 1000 & echo $! > {}", left.display()));
        hook.run(Task::Present, NAME, "v").await.unwrap();
        ends(&fs::read_to_string(&left).unwrap()).await;
    }

    /// Time stands still but for waits, so that two minutes are over as soon as nobody does anything.
    #[tokio::test(start_paused = true)]
    async fn it_is_ended_when_it_takes_too_long() {
        let place = tempfile::tempdir().unwrap();
        let (own, left) = (place.path().join("own"), place.path().join("left"));
        let hang = format!("sleep 1000 & echo $! > {}; echo $$ > {}; wait", left.display(), own.display());
        let hook = hook(place.path(), &hang);
        let run = hook.run(Task::Present, NAME, "v");
        let error = run.await.unwrap_err();
        assert!(matches!(error, HookError::Slow { .. }) && error.to_string().contains("120 s"), "{error}");
        for file in [&own, &left] {
            // It may have been ended before it wrote that.
            if let Ok(pid) = fs::read_to_string(file) {
                ends(&pid).await;
            }
        }
    }
}
