//! Ports, networks and addresses that are taken at the destination.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tranship_core::NetworkSpec;
use tranship_core::container::PublishedPort;
use tranship_core::network::Subnet;
use tranship_core::node::Survey;

use super::Findings;
use crate::plan::Plan;

/// The host's ports as they will be at the destination.
pub(super) fn wanted_ports(plan: &Plan) -> impl Iterator<Item = (PublishedPort, u16)> + '_ {
    // The engine notes ports of such containers and publishes none.
    let published = !matches!(plan.spec().network_mode.as_str(), "host" | "none");
    let ports = plan.spec().ports.iter().filter(move |_| published);
    ports.filter_map(|port| {
        let old = port.host_port?;
        Some((
            port.clone(),
            plan.create.publish.get(&old).copied().unwrap_or(old),
        ))
    })
}

pub(super) fn addresses_meet(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            a == b || a.is_unspecified() && a.is_ipv4() == b.is_ipv4() || b.is_unspecified()
        }
        _ => true,
    }
}

pub(super) fn ports(found: &mut Findings, plan: &Plan, survey: &Survey) {
    let own: BTreeSet<u16> = plan.spec().ports.iter().filter_map(|p| p.host_port).collect();
    for old in plan.create.publish.keys() {
        if !own.contains(old) {
            found.conflict(
                "port.not-published",
                format!(
                    "--publish {old}=… : {} does not publish port {old}",
                    plan.spec().name
                ),
                format!(
                    "it publishes: {}",
                    own.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
                ),
            );
        }
    }
    let makes_way = plan.options.replace.then_some(plan.create.name.as_str());
    for (port, wanted) in wanted_ports(plan) {
        if let Some(address) = port.host_address
            && !address.is_unspecified()
            && !address.is_loopback()
            && !survey.node.addresses.is_empty()
            && !survey.node.addresses.contains(&address)
        {
            found.conflict(
                "port.address",
                format!(
                    "port {wanted} is published on the address {address}, which the destination does not have"
                ),
                "make the container again without that address",
            );
        }
        let taken = survey.ports.iter().find(|used| {
            used.port == wanted
                && used.protocol == port.protocol
                && addresses_meet(
                    port.host_address,
                    Some(used.address).filter(|a| !a.is_unspecified()),
                )
                && (makes_way.is_none() || used.container.as_deref() != makes_way)
        });
        if let Some(used) = taken {
            let by = used
                .container
                .as_ref()
                .map_or("a process".to_owned(), |c| format!("the container {c:?}"));
            found.conflict(
                "port.taken",
                format!(
                    "port {wanted}/{} is taken at the destination by {by}",
                    port.protocol
                ),
                format!(
                    "--publish {}=NEW publishes it elsewhere",
                    port.host_port.unwrap_or(wanted)
                ),
            );
        }
    }
    if plan.spec().ports.iter().any(|p| p.host_port.is_none()) {
        found.note(
            "port.ephemeral",
            "some of its ports are chosen by the engine, and will be others there",
        );
    }
    if plan.spec().network_mode == "host" {
        found.warning(
            "network.host",
            "it uses the host's network: what it listens on there is not known beforehand and may be taken",
            "",
        );
    }
}

pub(super) fn networks(found: &mut Findings, plan: &Plan, survey: &Survey) {
    let spec = plan.spec();
    for network in &spec.networks {
        let fixed: Vec<IpAddr> = spec
            .attachments
            .iter()
            .filter(|a| a.network == network.name)
            .flat_map(|a| a.fixed_addresses.clone())
            .collect();
        if network.scope != "local" {
            found.conflict(
                "network.scope",
                format!(
                    "the network {:?} has the scope {}, and can't be made on a single host",
                    network.name, network.scope
                ),
                "move the container to a local network first",
            );
            continue;
        }
        let drivers = &survey.node.engine.network_drivers;
        if !drivers.is_empty() && !drivers.contains(&network.driver) {
            found.conflict(
                "network.driver",
                format!(
                    "the network {:?} needs the driver {:?}, which the destination lacks",
                    network.name, network.driver
                ),
                "install the plug-in there",
            );
            continue;
        }
        match survey.networks.iter().find(|n| n.name == network.name) {
            Some(there) => existing_network(found, plan, network, there, &fixed),
            None => new_network(found, plan, network, &fixed, survey),
        }
    }
}

fn existing_network(
    found: &mut Findings,
    plan: &Plan,
    mine: &NetworkSpec,
    there: &NetworkSpec,
    fixed: &[IpAddr],
) {
    let differences = mine.differences(there);
    if !differences.is_empty() {
        let message = format!(
            "the network {:?} at the destination is another one: {}",
            mine.name,
            differences.join("; ")
        );
        if plan.options.reuse_networks {
            found.warning("network.differs", message, "");
        } else {
            found.conflict("network.differs", message, "--reuse-networks takes it as it is");
            return;
        }
    }
    if plan.create.drop_fixed_addresses {
        return;
    }
    let makes_way = plan.options.replace.then_some(plan.create.name.as_str());
    for address in fixed {
        let holder = there
            .used
            .iter()
            .find(|(name, list)| list.contains(address) && Some(name.as_str()) != makes_way);
        if let Some((holder, _)) = holder {
            found.conflict(
                "network.address-taken",
                format!(
                    "the address {address} in the network {:?} is taken at the destination by {holder}",
                    mine.name
                ),
                "--new-subnets gives up fixed addresses",
            );
        }
        let inside = there
            .pools
            .iter()
            .filter_map(|p| Subnet::parse(&p.subnet))
            .any(|s| s.contains(*address));
        if !inside {
            found.conflict(
                "network.address-outside",
                format!(
                    "the address {address} does not lie in the network {:?} at the destination",
                    mine.name
                ),
                "--new-subnets gives up fixed addresses",
            );
        }
    }
}

fn new_network(found: &mut Findings, plan: &Plan, mine: &NetworkSpec, fixed: &[IpAddr], survey: &Survey) {
    found.note(
        "network.new",
        format!("the network {:?} will be made at the destination", mine.name),
    );
    if plan.options.new_subnets {
        if !fixed.is_empty() {
            found.warning(
                "network.addresses-dropped",
                format!("its fixed addresses in {:?} are given up", mine.name),
                "",
            );
        }
        return;
    }
    for pool in mine
        .pools
        .iter()
        .filter_map(|p| Subnet::parse(&p.subnet).map(|s| (p, s)))
    {
        for other in &survey.networks {
            let clash = other
                .pools
                .iter()
                .find(|p| Subnet::parse(&p.subnet).is_some_and(|s| s.overlaps(&pool.1)));
            if let Some(clash) = clash {
                found.conflict(
                    "network.overlap",
                    format!(
                        "the subnet {} of {:?} overlaps {} of the network {:?} at the destination",
                        pool.0.subnet, mine.name, clash.subnet, other.name
                    ),
                    "--new-subnets lets the engine there choose another",
                );
            }
        }
        if let Some(address) = survey.node.addresses.iter().find(|a| pool.1.contains(**a)) {
            // Bridges of the engine's own networks were compared above, by name.
            let of_a_network = survey.networks.iter().any(|n| {
                n.pools
                    .iter()
                    .any(|p| Subnet::parse(&p.subnet).is_some_and(|s| s.contains(*address)))
            });
            if !of_a_network {
                found.conflict(
                    "network.overlap",
                    format!(
                        "the subnet {} of {:?} holds the destination's own address {address}",
                        pool.0.subnet, mine.name
                    ),
                    "--new-subnets lets the engine there choose another",
                );
            }
        }
    }
}
