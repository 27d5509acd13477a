//! Which program has a port, as Linux tells it; elsewhere nobody knows.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// For what a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
}

/// The program that keeps others from `address`, such as `nginx (process 812)`. Of other users' programs only root is told.
pub(super) fn holder(kind: Kind, address: SocketAddr) -> Option<String> {
    // proc(5): 0A is a listening socket, 07 one of UDP that is bound.
    let (tables, state) = match kind {
        Kind::Tcp => (["tcp", "tcp6"], "0A"),
        Kind::Udp => (["udp", "udp6"], "07"),
    };
    let lines = tables.map(|table| fs::read_to_string(Path::new("/proc/net").join(table)).unwrap_or_default()).concat();
    let inode = lines.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, found, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_it = *found == state && overlaps(parse(local)?, address);
        is_it.then(|| (*inode).to_owned())
    })?;
    let socket = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        // Not `self`, which is this one by another name.
        process.file_name().to_str()?.parse::<u32>().ok()?;
        let open = fs::read_dir(process.path().join("fd")).ok()?;
        let mut links = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str()).then_some(())?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()))
    })
}

/// Whether who has `there` keeps others from `wanted`.
fn overlaps(there: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (there.ip().to_canonical(), wanted.ip().to_canonical());
    there.port() == wanted.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// An address as the tables have it: each four bytes in the order of the machine, then the port.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':').filter(|(ip, _)| matches!(ip.len(), 8 | 32))?;
    let words: Option<Vec<u32>> =
        ip.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()).collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip: IpAddr = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?).into(),
    };
    Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn this_program_is_found() {
        let own = format!("(process {})", std::process::id());
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let tcp = std::net::TcpListener::bind(any).unwrap();
            let found = holder(Kind::Tcp, tcp.local_addr().unwrap()).unwrap();
            assert!(found.ends_with(&own), "{found}");
            let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, tcp.local_addr().unwrap().port()));
            assert_eq!(holder(Kind::Tcp, everywhere), Some(found));
            let udp = std::net::UdpSocket::bind(any).unwrap();
            assert!(holder(Kind::Udp, udp.local_addr().unwrap()).unwrap().ends_with(&own));
            let address = tcp.local_addr().unwrap();
            drop(tcp);
            assert_eq!(holder(Kind::Tcp, address), None);
        }
    }

    #[test]
    fn what_is_no_address_is_passed_over() {
        for text in ["", "local_address", "0100007F", "0100007F:", ":0035", "01:0035", "\u{e9}\u{e9}\u{e9}\u{e9}:0035"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
