//! Disks of a test's own: small ones, and ones whose power fails. They need root, as mounting does, and go with the last
//! process that has them.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::tools::{output, program};

/// What is mounted for one program, in a mount namespace of its own.
#[derive(Clone, Debug)]
pub enum Disk {
    /// Memory, of so many KiB.
    Small(u32),
    /// A file with an ext4 in it.
    Image(PathBuf),
}

impl Disk {
    /// An empty ext4 of 64 MiB in a new file.
    pub async fn image(file: &Path) -> Self {
        std::fs::File::create(file).and_then(|file| file.set_len(64 << 20)).expect("a file");
        output(Command::new(program("mkfs.ext4")).args(["-q", "-F"]).arg(file)).await;
        Self::Image(file.to_owned())
    }

    /// What the disk has now, as another one: what would be there after a power cut. Nobody must write meanwhile, so whoever
    /// does is to be stopped by SIGSTOP. What they have written and not synced is in the system's memory, and not in the copy.
    pub fn after_power_cut(&self, copy: &Path) -> Self {
        let Self::Image(file) = self else { panic!("memory keeps nothing without power") };
        std::fs::copy(file, copy).expect("a copy");
        Self::Image(copy.to_owned())
    }

    /// The words before a program's that make it see this disk at a path.
    pub(crate) fn mounted_at(&self, path: &Path) -> Vec<String> {
        let mount = match self {
            Self::Small(kib) => format!("-t tmpfs -o size={kib}k,mode=700 none"),
            Self::Image(file) => format!("-o loop {}", file.display()),
        };
        let path = path.display();
        let script = format!("PATH=$PATH:/usr/sbin:/sbin; mkdir -p {path} && mount {mount} {path} && exec \"$@\"");
        let unshare = program("unshare").display().to_string();
        [&unshare, "--mount", "/bin/sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }
}
