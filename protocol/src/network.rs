//! Networks of addresses, as people write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IP network such as `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {EXPECTED}")]
pub struct NetworkError(
    /// The text.
    pub String,
);

/// What a text was to be that is none.
pub const EXPECTED: &str = "an address or a network, such as 10.0.0.0/8";

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix {
            prefix if prefix == whole => self.address.fmt(f),
            prefix => write!(f, "{}/{prefix}", self.first()),
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let invalid = || NetworkError(text.to_owned());
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let widest: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(widest), str::parse).map_err(|_| invalid())?;
        // One of IPv4 in IPv6 clothes is the one of IPv4, as its addresses are.
        if prefix > widest {
            return Err(invalid());
        }
        match (address.to_canonical(), prefix.checked_sub(96)) {
            (inner @ IpAddr::V4(_), Some(prefix)) if address.is_ipv6() => Ok(Self { address: inner, prefix }),
            _ => Ok(Self { address, prefix }),
        }
    }
}

impl Network {
    /// That of so many bits around an address; none where an address has fewer.
    #[must_use]
    pub fn of(address: IpAddr, prefix: u8) -> Option<Self> {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= whole).then_some(Self { address, prefix })
    }

    /// The bits that all of its addresses have in common.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.prefix
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from(u32::from(address) & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from(u128::from(address) & mask).into()
            }
        }
    }

    /// Whether `address` is in the network. An IPv4 address in IPv6 clothes is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix);
                (u32::from(net) ^ u32::from(ip)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix);
                (u128::from(net) ^ u128::from(ip)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn networks_contain_what_they_say() {
        let net = |text: &str| text.parse::<Network>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(net("10.0.0.0/8").contains(ip("10.255.0.1")) && !net("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(net("10.0.0.0/8").contains(ip("::ffff:10.1.2.3")));
        let shown =
            ["10.1.2.3/8", "192.0.2.7/32", "2001:db8:1::/32", "::/0", "0.0.0.0/0"].map(|text| net(text).to_string());
        assert_eq!(shown, ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::/0", "0.0.0.0/0"]);
        assert!(net("192.0.2.1").contains(ip("192.0.2.1")) && !net("192.0.2.1").contains(ip("192.0.2.2")));
        assert!(net("0.0.0.0/0").contains(ip("8.8.8.8")) && !net("0.0.0.0/0").contains(ip("::1")));
        assert!(
            net("2001:db8::/32").contains(ip("2001:db8:1::1")) && !net("2001:db8::/32").contains(ip("2001:db9::1"))
        );
    }
    #[test]
    fn one_of_ipv4_in_ipv6_clothes_is_the_one_of_ipv4() {
        let net = |text: &str| text.parse::<Network>().unwrap();
        assert_eq!(net("::ffff:192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(net("::ffff:192.0.2.0/120").to_string(), "192.0.2.0/24");
        assert_eq!(net("::/0").to_string(), "::/0");
        assert!("::ffff:192.0.2.1/129".parse::<Network>().is_err());
    }
}
