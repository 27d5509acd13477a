//! [BIND](https://www.isc.org/bind/), a name server that takes updates.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::process::Command;

use crate::tools::{output, program};
use crate::{Network, Process};

/// The server of `example.com`, on an address of its own, set up as `docs/self-hosting.md` says. Its key `relay-key` may change
/// `_acme-challenge.relay.example.com` and `proof.example.com`; its key `stranger` may change nothing.
#[derive(Debug)]
pub struct Bind {
    /// Its process.
    pub process: Process,
    address: Ipv4Addr,
    place: TempDir,
}

impl Bind {
    /// Starts it with these records, as zone files have them, and waits until it answers.
    pub async fn start<T: AsRef<str>>(network: &Network, records: &[T]) -> Self {
        let (place, address) = (tempfile::tempdir().expect("a directory"), network.another_here(53));
        let at = |name: &str| place.path().join(name).display().to_string();
        for key in ["relay-key", "stranger"] {
            std::fs::write(at(key), keygen(key).await).expect("a file");
        }
        let own = "$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\n";
        let rest: String = records.iter().map(|record| format!("{}\n", record.as_ref())).collect();
        std::fs::write(at("zone"), format!("{own}ns A {address}\n{rest}")).expect("a file");
        let page = include_str!("../../docs/self-hosting.md");
        let (_, documented) = page.split_once("```\ninclude ").expect("what BIND is told");
        let (documented, _) = documented.split_once("```").expect("its end");
        let documented = format!("include {documented}")
            .replace("/etc/bind/relay.key", &at("relay-key"))
            .replace("/var/lib/bind/example.com.zone", &at("zone"))
            .replace("update-policy {", "update-policy { grant relay-key name proof.example.com. TXT;");
        let config = format!(
            "options {{ directory \"{}\"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no;\n\
             pid-file none; session-keyfile \"{}\"; dnssec-validation no; }};\n\
             controls {{ }};\ninclude \"{}\";\n{documented}",
            place.path().display(),
            at("session.key"),
            at("stranger"),
        );
        std::fs::write(at("named.conf"), config).expect("a file");
        let named = program("named").display().to_string();
        let mut process = Process::spawn(&named, ["-g", "-n", "1", "-c", &at("named.conf")]).await;
        process.error_line(" running").await;
        Self { process, address, place }
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        (self.address, 53).into()
    }

    /// The file with a key of it.
    pub fn key_file(&self, key: &str) -> PathBuf {
        self.place.path().join(key)
    }

    /// The lines with which `nsupdate` does this with `relay-key`, for a shell.
    pub fn nsupdate(&self, change: &str) -> String {
        let (key, server) = (self.key_file("relay-key"), self.address);
        format!("nsupdate -k {} <<END\nserver {server}\n{change}\nsend\nEND\n", key.display())
    }
}

/// What `tsig-keygen` says: a new key of this name, as a file has it.
pub async fn keygen(name: &str) -> String {
    output(Command::new(program("tsig-keygen")).arg(name)).await
}
