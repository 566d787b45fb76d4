//! Networks: what an engine's network is made of, and how two of them compare.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One network of one engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The engine's id.
    pub id: String,
    /// The name that containers use.
    pub name: String,
    /// `bridge`, `macvlan`, `overlay` …
    pub driver: String,
    /// `local` or `swarm`.
    pub scope: String,
    /// No way out of the host.
    pub internal: bool,
    /// IPv6 switched on.
    pub ipv6: bool,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// User's labels.
    pub labels: BTreeMap<String, String>,
    /// Address pools.
    pub pools: Vec<AddressPool>,
    /// Addresses in use by containers of this network, with the container's name.
    #[serde(default)]
    pub used: BTreeMap<String, Vec<IpAddr>>,
    /// The engine's own document, from which the network is made again.
    pub document: Value,
}

/// One pool of addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// The subnet in CIDR form.
    pub subnet: String,
    /// The gateway, if the engine names it.
    pub gateway: Option<String>,
    /// The part of the subnet that the engine hands out, if it is narrowed.
    pub range: Option<String>,
}

impl NetworkSpec {
    /// Networks that every engine has by itself; they are never made or compared.
    #[must_use]
    pub fn is_predefined(name: &str) -> bool {
        matches!(
            name,
            "bridge" | "default" | "host" | "none" | "podman" | "slirp4netns" | "pasta"
        )
    }

    /// In what `self` and `other` differ for a container that joins them, as words for a message.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, mine: String, theirs: String| {
            if mine != theirs {
                differences.push(format!("{what} {mine} there {theirs}"));
            }
        };
        compare("driver", self.driver.clone(), other.driver.clone());
        compare("internal", self.internal.to_string(), other.internal.to_string());
        compare("IPv6", self.ipv6.to_string(), other.ipv6.to_string());
        let subnets = |n: &Self| {
            let mut list: Vec<String> = n.pools.iter().map(|p| p.subnet.clone()).collect();
            list.sort();
            list.join("+")
        };
        compare("subnet", subnets(self), subnets(other));
        compare(
            "options",
            format!("{:?}", self.options),
            format!("{:?}", other.options),
        );
        differences
    }
}

/// A range of addresses in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// Reads `address/prefix`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                mine.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                mine.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

/// `ADDRESS:PORT` as `/proc/net/tcp` and its like have it (proc(5)): the address in hexadecimal words of the machine's byte order, the
/// port in hexadecimal. An IPv4 address in an IPv6 one is given as what it is.
#[must_use]
pub fn kernel_socket_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |index: usize| {
        let word = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0u8; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_symmetric_and_exact() {
        let s = |t| Subnet::parse(t).unwrap();
        assert!(s("10.0.0.0/8").overlaps(&s("10.9.0.0/16")));
        assert!(s("10.9.0.0/16").overlaps(&s("10.0.0.0/8")));
        assert!(!s("10.1.0.0/16").overlaps(&s("10.2.0.0/16")));
        assert!(s("0.0.0.0/0").overlaps(&s("10.2.0.0/16")));
        assert!(!s("fd00::/64").overlaps(&s("10.0.0.0/8")));
        assert!(s("fd00::/8").contains("fd01::1".parse().unwrap()));
        assert!(Subnet::parse("10.0.0.0/33").is_none() && Subnet::parse("x").is_none());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let read = |text| kernel_socket_address(text).map(|(address, port)| format!("{address} {port}"));
        assert_eq!(read("0100007F:1F90").as_deref(), Some("127.0.0.1 8080"));
        let six = "000000FD000000000000000001000000:0016";
        assert_eq!(read(six).as_deref(), Some("fd00::1 22"));
        let four_in_six = "0000000000000000FFFF0000020011AC:0016";
        assert_eq!(read(four_in_six).as_deref(), Some("172.17.0.2 22"));
        for junk in [
            "",
            "x",
            "0100007F",
            "zzzzzzzz:0016",
            "0100007F:zz",
            "00:00",
            "é00007F:0016",
        ] {
            assert_eq!(read(junk), None, "{junk}");
        }
    }
}
