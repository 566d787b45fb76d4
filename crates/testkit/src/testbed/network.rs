//! Addresses, and cables that can be cut or slowed.
//!
//! A bed is `198.18.X.0/24` (a range set aside for benchmarks, clear of what engines hand out): the host is `.1`, the
//! nodes follow from `.10`. Every node has a cable from its `eth0` to a port of the bed's switch. Cutting happens at
//! the port, so that a node sees what a real one would: its interface is up, the carrier is gone, nothing arrives.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use super::error::{AtPath, Error, Result};
use super::process::ProcessId;
use super::run::{HOST, checked, host, output};

/// The state of a node's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link<'a> {
    /// Cut: packets vanish both ways, no connection is reset.
    Down,
    /// Whole and as fast as the machine.
    Up,
    /// Whole and slowed, both ways each, to a rate as `tc` takes it: `100mbit`, `2gbit`, `500kbit`.
    Rate(&'a str),
}

/// Bytes that crossed a node's cable since the node was switched on, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBytes {
    /// Received by the node.
    pub received: u64,
    /// Sent by the node.
    pub sent: u64,
}

/// The host's address in a bed.
pub(crate) fn host_address(subnet: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, subnet, 1)
}

/// A node's address; `index` counts from 0.
pub(crate) fn node_address(subnet: u8, index: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, subnet, node_byte(index))
}

/// A node's hardware address: the same after every start, so that the neighbours' tables stay right.
pub(crate) fn node_mac(subnet: u8, index: usize) -> String {
    format!("02:00:c6:12:{subnet:02x}:{:02x}", node_byte(index))
}

fn node_byte(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX).saturating_add(10)
}

/// The host's end of the cable into a bed.
pub(crate) fn host_link(subnet: u8) -> String {
    format!("tship{subnet}")
}

/// The switch's port for a node.
pub(crate) fn port(node: &str) -> String {
    format!("port-{node}")
}

/// Third bytes of the bed range that the host knows from elsewhere.
pub(crate) fn subnets_in_use() -> Result<BTreeSet<u8>> {
    let addresses = checked(HOST, host("ip").args(["-4", "-o", "address", "show"]))?;
    let routes = checked(HOST, host("ip").args(["-4", "route", "show"]))?;
    let words = addresses.split_whitespace().chain(routes.split_whitespace());
    Ok(words
        .filter_map(|word| word.strip_prefix("198.18.")?.split('.').next()?.parse().ok())
        .collect())
}

/// Pulls the host's cable out of a bed, if it is still there.
pub(crate) fn unplug_host(subnet: u8) -> Result<()> {
    let link = host_link(subnet);
    let exists = || Path::new("/sys/class/net").join(&link).exists();
    if !exists() {
        return Ok(());
    }
    let mut command = host("ip");
    let result = output(HOST, command.args(["link", "delete", &link]))?;
    // It also vanishes by itself when the switch ends.
    if result.success() || !exists() {
        Ok(())
    } else {
        Err(super::run::failed(
            HOST,
            &format!("ip link delete {link}"),
            result,
        ))
    }
}

/// Pulls a node's cable out of the switch, if it is still there.
pub(crate) fn unplug(node: &str, switch: ProcessId) -> Result<()> {
    let port = port(node);
    let present = |args: &[&str]| output(node, in_namespace(switch, "ip").args(args));
    let deleted = present(&["link", "delete", &port])?;
    // It also vanishes by itself, when the kernel gets to it.
    if deleted.success() || !present(&["link", "show", &port])?.success() {
        Ok(())
    } else {
        Err(super::run::failed(
            node,
            &format!("ip link delete {port}"),
            deleted,
        ))
    }
}

/// A command in the network namespace of a process.
fn in_namespace(process: ProcessId, program: &str) -> Command {
    let mut command = host("nsenter");
    command
        .arg(format!("--net=/proc/{}/ns/net", process.pid))
        .arg(program);
    command
}

/// `up`, `down` or the rate, as the switch's port says.
pub(crate) fn link_state(node: &str, switch: ProcessId) -> Result<String> {
    let port = port(node);
    let ask = |program: &str, args: &[&str]| checked(node, in_namespace(switch, program).args(args));
    let link = ask("ip", &["-o", "link", "show", &port])?;
    if !link.split(['<', '>', ',']).any(|flag| flag == "UP") {
        return Ok("down".to_owned());
    }
    let shaper = ask("tc", &["qdisc", "show", "dev", &port])?;
    let mut words = shaper.split_whitespace().skip_while(|word| *word != "rate");
    Ok(words.nth(1).map_or_else(|| "up".to_owned(), str::to_owned))
}

/// Sets the state of a node's cable.
pub(crate) fn set_link(
    node: &str,
    switch: ProcessId,
    node_process: Option<ProcessId>,
    link: Link<'_>,
) -> Result<()> {
    let port = port(node);
    let ends = [
        Some((switch, port.as_str())),
        node_process.map(|process| (process, "eth0")),
    ];
    let state = if link == Link::Down { "down" } else { "up" };
    checked(
        node,
        in_namespace(switch, "ip").args(["link", "set", &port, state]),
    )?;
    for (process, device) in ends.into_iter().flatten() {
        match link {
            Link::Down => {}
            Link::Up => {
                // Fails where no rate was set.
                output(
                    node,
                    in_namespace(process, "tc").args(["qdisc", "delete", "dev", device, "root"]),
                )?;
            }
            Link::Rate(rate) => {
                let burst = burst_bytes(rate).to_string();
                let mut tc = in_namespace(process, "tc");
                tc.args(["qdisc", "replace", "dev", device, "root", "tbf"]);
                checked(node, tc.args(["rate", rate, "burst", &burst, "latency", "50ms"]))?;
            }
        }
    }
    Ok(())
}

/// What may pass at once: ten milliseconds' worth, within reason.
fn burst_bytes(rate: &str) -> u64 {
    let digits = rate.len() - rate.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = rate.split_at(digits);
    let number: u64 = number.parse().unwrap_or(0);
    let bytes_per_second = match unit.to_ascii_lowercase().as_str() {
        "gbit" => number.saturating_mul(125_000_000),
        "mbit" => number.saturating_mul(125_000),
        "kbit" => number.saturating_mul(125),
        _ => 12_500_000,
    };
    (bytes_per_second / 100).clamp(16 * 1024, 4 * 1024 * 1024)
}

/// Reads a node's counters through its own `/sys`.
pub(crate) fn link_bytes(process: ProcessId) -> Result<LinkBytes> {
    let read = |name: &str| {
        let path = Path::new("/proc").join(format!(
            "{}/root/sys/class/net/eth0/statistics/{name}",
            process.pid
        ));
        let text = fs::read_to_string(&path).at("read", &path)?;
        text.trim().parse().map_err(|error| Error::Io {
            action: "understand",
            path: path.clone(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
        })
    };
    Ok(LinkBytes {
        received: read("rx_bytes")?,
        sent: read("tx_bytes")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_follow_the_rate() {
        assert_eq!(burst_bytes("100mbit"), 125_000);
        assert_eq!(burst_bytes("64kbit"), 16 * 1024);
        assert_eq!(burst_bytes("10gbit"), 4 * 1024 * 1024);
    }

    #[test]
    fn every_node_has_its_own_address() {
        assert_eq!(node_address(7, 0).to_string(), "198.18.7.10");
        assert_eq!(node_mac(7, 25), "02:00:c6:12:07:23");
    }
}
