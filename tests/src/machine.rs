//! A machine of a test's own: this system as it is, started anew under systemd, where whatever is done is gone at the end.
//!
//! ```text
//!   this machine's files ──► an overlay in memory ──► systemd-nspawn: processes, systemd and a loopback of its own
//! ```
//!
//! Nothing is downloaded, and it starts in less than a second. It needs root, as mounting does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::tools::program;

/// How long a script may take.
const WITHIN: Duration = Duration::from_secs(120);

/// Mounts the overlay where no other process sees it, and starts the machine there.
const START: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/whole
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/whole
# Where this is a container, packages start nothing. And no index of all manual pages is made for each.
rm -f /mnt/whole/usr/sbin/policy-rc.d /mnt/whole/var/lib/man-db/auto-update
# The only thing that it is started for. Nothing else of the system is, but what this asks for.
cat >/mnt/whole/etc/systemd/system/relay-tests.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c "cd /test && sh -eux ./script >said 2>&1; systemctl exit \$?"
END
exec "$2" --quiet --register=no --keep-unit --link-journal=no --machine="relay-tests-$$" --private-network \
  --directory=/mnt/whole --bind="$1":/test --boot systemd.unit=relay-tests.service
"#;

/// Runs a shell script as root on a machine with the files of `directory` in `/test`, where it begins. Returns what it said,
/// with each of its commands; panics with that where one of them fails.
pub async fn on_own_machine(directory: &Path, script: &str) -> String {
    std::fs::write(directory.join("script"), script).expect("a script");
    let mut machine = Command::new(program("unshare"));
    machine.args(["--mount", "sh", "-euc", START, "sh"]).arg(directory).arg(program("systemd-nspawn"));
    let ended = timeout(WITHIN, machine.kill_on_drop(true).stdin(Stdio::null()).output()).await;
    let said = std::fs::read_to_string(directory.join("said")).unwrap_or_default();
    match ended {
        Ok(Ok(ended)) if ended.status.success() => said,
        Ok(Ok(ended)) => panic!("{}\n{}{said}", ended.status, String::from_utf8_lossy(&ended.stdout)),
        Ok(Err(error)) => panic!("cannot start {machine:?}: {error}"),
        Err(_) => panic!("not done within {WITHIN:?}:\n{said}"),
    }
}
