//! A terminal, as a person sits before it: tmux draws it, and tells what stands on it.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::command;
use crate::within;

/// A terminal with one program in it. Both end when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
    home: Arc<TempDir>,
}

impl Terminal {
    /// Starts one of our binaries in a terminal of this many columns and rows, in a home of its own, with these variables.
    pub async fn open(size: (usize, usize), variables: &[(&str, &str)], words: &[&str]) -> Self {
        let home = Arc::new(tempfile::tempdir().expect("a home"));
        let (binary, arguments) = words.split_first().expect("a program");
        let program = command(binary, home.path()).await.as_std().get_program().to_owned();
        let terminal = Self { socket: home.path().join("tmux"), home };
        let (columns, rows) = (size.0.to_string(), size.1.to_string());
        // The terminal stays when the program has ended, so that one can see what it leaves behind.
        let mut all = vec!["-f", "/dev/null", "start-server", ";", "set", "-g", "remain-on-exit", "on", ";"];
        all.extend(["set", "-g", "remain-on-exit-format", "", ";", "set", "-g", "set-clipboard", "on", ";"]);
        all.extend(["new-session", "-d", "-x", &columns, "-y", &rows, "env"]);
        let variables: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.extend(variables.iter().map(String::as_str));
        all.push(program.to_str().expect("a path in UTF-8"));
        all.extend(arguments);
        terminal.tmux(&all).await;
        terminal
    }

    /// The home of the program.
    pub fn home(&self) -> &Arc<TempDir> {
        &self.home
    }

    /// What stands there, without what has scrolled away and empty lines at the end.
    pub async fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).await.trim_end().to_owned()
    }

    /// As [`Terminal::text`], with what has scrolled away, and with the sequences for colours.
    pub async fn all(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e", "-S", "-"]).await.trim_end().to_owned()
    }

    /// Waits until it shows something. Returns all that it shows then.
    pub async fn until(&self, what: &str, shown: impl Fn(&str) -> bool) -> String {
        let last = std::sync::Mutex::new(String::new());
        let look = async {
            loop {
                let text = self.text().await;
                if shown(&text) {
                    return text;
                }
                last.lock().unwrap().clone_from(&text);
            }
        };
        match tokio::time::timeout(crate::PATIENCE, look).await {
            Ok(text) => text,
            Err(_) => panic!("{what}: nothing like it on the terminal:\n{}", last.lock().unwrap()),
        }
    }

    /// Waits until this stands there.
    pub async fn shows(&self, part: &str) -> String {
        self.until(part, |text| text.contains(part)).await
    }

    /// Presses keys, by tmux's names: `C-c`, `Enter`, `q`.
    pub async fn press(&self, keys: &[&str]) {
        let all: Vec<_> = ["send-keys"].iter().chain(keys).copied().collect();
        self.tmux(&all).await;
    }

    /// Types this, and Enter.
    pub async fn type_line(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]).await;
        self.press(&["Enter"]).await;
    }

    /// What a program has put on the clipboard last; nothing where none has.
    pub async fn clipboard(&self) -> String {
        let all = self.tmux(&["list-buffers", "-F", "#{buffer_name}"]).await;
        if all.is_empty() { String::new() } else { self.tmux(&["show-buffer"]).await }
    }

    /// Makes it wider or narrower.
    pub async fn resize(&self, columns: usize, rows: usize) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]).await;
    }

    /// Whether a program has taken all of it.
    pub async fn is_full(&self) -> bool {
        self.tmux(&["display", "-p", "#{alternate_on}"]).await.trim() == "1"
    }

    /// The process in it.
    pub async fn pid(&self) -> u32 {
        self.tmux(&["display", "-p", "#{pane_pid}"]).await.trim().parse().expect("a process id")
    }

    /// Waits for the program's end. Returns its exit code.
    pub async fn ended(&self) -> i32 {
        let ended = async {
            loop {
                // The status comes some time after the terminal was let go.
                let said = self.tmux(&["display", "-p", "#{pid}|#{pane_dead_status}|#{pane_dead_signal}"]).await;
                let Some((tmux, said)) = said.trim().split_once('|') else { continue };
                match said.split_once('|') {
                    Some(("", "")) | None => {
                        // It has been seen to sleep over its child's end for good. One more word of it does no harm.
                        let tmux = Pid::from_raw(tmux.parse().expect("a process id")).expect("a process");
                        let _ = kill_process(tmux, Signal::CHILD);
                    }
                    Some((status, "")) => return status.parse().expect("a status"),
                    Some((_, signal)) => panic!("ended by signal {signal}"),
                }
            }
        };
        within("the program's end", ended).await
    }

    /// Closes it, with whoever sits before it still looking.
    pub async fn close(&self) {
        self.tmux(&["kill-server"]).await;
    }

    async fn tmux(&self, arguments: &[&str]) -> String {
        let mut tmux = command("/usr/bin/env", self.home.path()).await;
        tmux.arg("tmux").arg("-S").arg(&self.socket).args(arguments).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        let done = tmux.stdin(Stdio::null()).output().await.expect("tmux starts; tests/run installs it");
        let Output { status, stdout, stderr } = done;
        assert!(status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("UTF-8")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may be closed already.
        let mut tmux = std::process::Command::new("tmux");
        let _ = tmux.arg("-S").arg(&self.socket).arg("kill-server").stderr(Stdio::null()).status();
    }
}
