//! What the process has of the machine.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// What the process has at this moment. What the system does not tell is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Bytes of memory.
    pub(super) resident: Option<u64>,
    /// Descriptors that are open.
    pub(super) descriptors: Option<u64>,
    /// Descriptors that may be.
    pub(super) descriptors_max: Option<u64>,
    /// Time of processors since the start.
    pub(super) cpu: Duration,
}

impl Process {
    /// Asks the system.
    pub(super) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").ok();
        let resident = status.as_deref().and_then(resident);
        // One of them is that of the list itself.
        let open = fs::read_dir("/proc/self/fd").ok().map(|list| list.count().saturating_sub(1));
        let descriptors = open.and_then(|open| u64::try_from(open).ok());
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::try_from(cpu).unwrap_or_default();
        Self { resident, descriptors, descriptors_max: getrlimit(Resource::Nofile).current, cpu }
    }
}

/// The bytes in the line `VmRSS:     1234 kB`, whose kilobytes have 1024 (proc_pid_status(5)).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn memory_is_read_as_the_system_writes_it() {
        assert_eq!(resident("VmHWM:\t    9 kB\nVmRSS:\t    1234 kB\nRssAnon:\t 7 kB\n"), Some(1234 * 1024));
        assert_eq!(resident("VmHWM:\t 9 kB\n"), None);
    }

    #[test]
    fn descriptors_are_counted() {
        let before = Process::read();
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let after = Process::read();
        // Tests beside this one open and close some.
        assert!(after.descriptors.unwrap() > before.descriptors.unwrap() + 50, "{before:?} {after:?}");
        assert!(after.descriptors_max.unwrap() > after.descriptors.unwrap() && after.cpu >= before.cpu);
        assert!(after.resident.unwrap() > 1 << 20);
        drop(files);
    }
}
