//! Where the name server listens, and under which addresses the world sees this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The port of DNS.
pub(super) const PORT: u16 = 53;

/// Why the addresses are not known.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Nothing on this machine says how the world sees it.
    #[error(
        "cannot tell under which address the world reaches this machine ({}): give it by --public-ip, such as \
         --public-ip 203.0.113.7", shown(.own)
    )]
    NoPublicAddress {
        /// Its own addresses.
        own: Vec<IpAddr>,
    },
}

fn shown(own: &[IpAddr]) -> String {
    match own {
        [] => "it has no route to the internet".to_owned(),
        own => format!(
            "its own is {}, which is private",
            own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The addresses that names of the zone lead to: those that were `given`, else the one that HTTPS is served on, else those
/// that this machine sends from, if they are public and HTTPS is served there. On loopback it is served through something else
/// on this machine.
pub(crate) fn seen_as(given: &[IpAddr], https: Option<SocketAddr>) -> Result<Vec<IpAddr>, PlaceError> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    if let Some(https) = https.filter(|https| !https.ip().is_unspecified() && !https.ip().is_loopback()) {
        return Ok(vec![https.ip()]);
    }
    let mut own = own_addresses();
    // 0.0.0.0 is no IPv6, while [::] is both.
    own.retain(|ip| ip.is_ipv4() || https.is_none_or(|https| https.is_ipv6()));
    let public: Vec<_> = own.iter().copied().filter(|ip| is_public(*ip)).collect();
    if public.is_empty() { Err(PlaceError::NoPublicAddress { own }) } else { Ok(public) }
}

/// Where the server listens unless it is told: on the public addresses as far as this machine has them, else on those
/// that it sends from. Never on all, because a resolver of the machine's own has port 53 of loopback.
pub(crate) fn listen_at(public: &[IpAddr]) -> Vec<SocketAddr> {
    let here: BTreeSet<_> = public.iter().copied().filter(|ip| UdpSocket::bind((*ip, 0)).is_ok()).collect();
    let addresses = if here.is_empty() { own_addresses().into_iter().collect() } else { here };
    addresses.into_iter().map(|ip| SocketAddr::from((ip, PORT))).collect()
}

/// The addresses that packets to the internet would carry. None is sent: connecting a UDP socket only chooses a route.
fn own_addresses() -> Vec<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849).
    let far: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let route = |(any, to): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((to, PORT)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    far.into_iter().filter_map(route).collect()
}

/// Whether the internet routes to it. What is left out is what machines are really given.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // RFC 6598: shared with other customers of the provider.
            let shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn what_was_said_comes_before_what_is_found() {
        let (given, https) = ("203.0.113.7".parse().unwrap(), "198.51.100.1:443".parse().ok());
        assert_eq!(seen_as(&[given], https).unwrap(), [given]);
        assert_eq!(seen_as(&[], https).unwrap(), ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        // The world comes to what stands before it.
        let behind = seen_as(&[], "127.0.0.1:8443".parse().ok());
        assert!(behind.is_err() || behind.is_ok_and(|found| found.iter().all(|ip| is_public(*ip))));
        // Of the addresses that the world knows, this machine has one; behind a translation it has none of them.
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(listen_at(&[given, loopback]), [SocketAddr::from((loopback, 53))]);
        assert!(listen_at(&[given]).iter().all(|address| !address.ip().is_unspecified() && address.port() == 53));
    }

    #[test]
    fn private_addresses_are_not_public() {
        for private in
            ["10.0.0.4", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.53", "169.254.1.1", "fd00::1", "fe80::1"]
        {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["203.0.113.7", "100.63.0.1", "2001:db8::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        let error = PlaceError::NoPublicAddress { own: vec!["10.0.0.4".parse().unwrap()] }.to_string();
        assert!(error.contains("10.0.0.4, which is private") && error.contains("--public-ip 203.0.113.7"), "{error}");
    }
}
