//! Networks of a test's own, whose packets can be dropped and whose addresses can change. They need root, as network
//! namespaces do.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::process::{Process, binary};

/// A machine behind a cable: a network namespace with one device, whose other end is on this machine.
#[derive(Debug)]
pub struct Network {
    name: String,
    /// Of both devices, behind the letter that tells them apart.
    device: String,
    subnet: [u8; 3],
}

/// Which packets vanish, or are refused, seen from the machine behind the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What it sends.
    Out,
    /// What is sent to it.
    In,
}

impl Way {
    const fn chain(self) -> &'static str {
        match self {
            Self::Out => "OUTPUT",
            Self::In => "INPUT",
        }
    }
}

impl Network {
    /// A machine that has [`Network::address`] 2; the near end of the cable has [`Network::here`].
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Relaxed));
        // Of its own for some thousand networks that other tests have at the same time.
        let number = pid.wrapping_mul(16).wrapping_add(count);
        let subnet = [10, 100 + (number / 250 % 100) as u8, (number % 250) as u8];
        let network = Self { name: format!("relay{pid}-{count}"), device: format!("{pid:x}-{count}"), subnet };
        let Self { name, device, .. } = &network;
        network.ip(&format!("netns add {name}"));
        network.ip(&format!("link add h{device} type veth peer name c{device} netns {name}"));
        network.ip(&format!("addr add {}/24 dev h{device}", network.here()));
        network.ip(&format!("link set h{device} up"));
        network.ip(&format!("-n {name} link set lo up"));
        network.ip(&format!("-n {name} link set c{device} up"));
        network.move_to(2);
        network
    }

    /// The near end's address.
    pub fn here(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The near end has this address, too, for a server that is to be apart.
    pub fn another_here(&self, last: u8) -> Ipv4Addr {
        let address = self.address(last);
        self.ip(&format!("addr add {address}/24 dev h{}", self.device));
        address
    }

    /// The far end's address with this last number.
    pub fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// The far end's address is this and no other.
    pub fn move_to(&self, last: u8) {
        let Self { name, device, .. } = self;
        self.ip(&format!("-n {name} addr flush dev c{device}"));
        self.ip(&format!("-n {name} addr add {}/24 dev c{device}", self.address(last)));
    }

    /// Starts one of our binaries behind the cable.
    pub async fn spawn(&self, program: &str, arguments: impl IntoIterator<Item = String>) -> Process {
        let script = "PATH=$PATH:/usr/sbin:/sbin; exec ip netns exec \"$@\"";
        let mut all = vec!["-c".to_owned(), script.to_owned(), "sh".to_owned(), self.name.clone()];
        all.push(binary(program).await.display().to_string());
        all.extend(arguments);
        Process::spawn("/bin/sh", all).await
    }

    /// From now on these packets vanish without a word.
    pub fn drop_all(&self, way: Way) {
        self.iptables(&format!("-A {} -j DROP", way.chain()));
    }

    /// From now on packets of TCP are answered with a reset, as by a firewall that has learnt something new.
    pub fn refuse_all(&self, way: Way) {
        // The reset itself has to pass.
        let other = "-p tcp ! --tcp-flags RST RST";
        self.iptables(&format!("-A {} {other} -j REJECT --reject-with tcp-reset", way.chain()));
    }

    /// From now on the packets of one connection vanish: the one of this process behind the cable to `to`. That is what a
    /// router does which has forgotten it.
    pub fn drop_connection(&self, way: Way, process: &Process, to: SocketAddr) {
        let port = connection(process.pid(), to).unwrap_or_else(|| panic!("no connection to {to}"));
        let side = if way == Way::Out { "--sport" } else { "--dport" };
        self.iptables(&format!("-A {} -p tcp {side} {port} -j DROP", way.chain()));
    }

    /// All packets pass again.
    pub fn heal(&self) {
        self.iptables("-F");
    }

    fn iptables(&self, arguments: &str) {
        self.ip(&format!("netns exec {} iptables -w {arguments}", self.name));
    }

    fn ip(&self, arguments: &str) {
        assert!(try_ip(arguments), "ip {arguments}; this test needs root");
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The pair of devices goes with it, and so do its rules.
        try_ip(&format!("netns del {}", self.name));
    }
}

fn try_ip(arguments: &str) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("exec ip {arguments}")]).env("PATH", path).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The local port of a process' network's established connection to `to`, as Linux lists it.
fn connection(pid: u32, to: SocketAddr) -> Option<u16> {
    let SocketAddr::V4(to) = to else { return None };
    let list = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/tcp")).ok()?;
    // In hex, the address as the machine has it in memory: sl, local, remote, state (1 is established).
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(to.ip().octets()), to.port());
    list.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, port) = local.split_once(':').filter(|_| remote == wanted && state == "01")?;
        u16::from_str_radix(port, 16).ok()
    })
}
