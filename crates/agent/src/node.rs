//! What this node says about itself: facts that come from the kernel rather than from the engine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tranship_core::container::MountKind;
use tranship_core::ids::ContainerName;
use tranship_core::memory::{LiveFacts, Obstacle};
use tranship_core::network::kernel_socket_address;
use tranship_core::node::{
    ArrivalFacts, ContainerReport, ElementSize, EngineFacts, ImageStore, NodeFacts, PortInUse, Survey,
    SurveyRequest,
};
use tranship_core::storage::{ElementAt, ElementPlace, VolumeUser};
use tranship_core::{ContainerSpec, Engine, Fault};
use tranship_migrate::Ports;
use tranship_migrate::images::ImageWays;

use crate::guids::Guids;

/// Milliseconds since 1970. For people and records only: no decision depends on it.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one clock on the wall that people are shown"
)]
pub fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    #[cfg(feature = "fail-points")]
    let now = match tranship_migrate::failpoint::setting("clock").and_then(|ms| ms.parse().ok()) {
        Some(skew) => now.saturating_add_signed(skew),
        None => now,
    };
    now
}

/// Collects the facts about this node. What `images` keeps of layers makes way for others, and counts as free.
///
/// # Errors
/// What the engine says; what the kernel does not tell is left out.
pub async fn facts(engine: &dyn Engine, images: &dyn ImageWays) -> Result<NodeFacts, Fault> {
    let engine_facts = engine.facts().await?;
    let user_id = rustix::process::getuid().as_raw();
    let direct_layers = user_id == 0
        && engine_facts.image_store == ImageStore::Classic
        && engine_facts.storage_driver == "overlay2";
    let direct_files = reaches_files(user_id, &engine_facts);
    let (free_bytes, free_inodes) = free(&engine_facts, images).await;
    let mut limits = Vec::new();
    if user_id != 0 {
        limits.push(
            "the agent does not run as root: layers and files are read through the engine, which takes longer"
                .to_owned(),
        );
    }
    if engine_facts.rootless {
        limits.push(
            "the engine runs without root: ports below 1024 and some limits are not available".to_owned(),
        );
    }
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(NodeFacts {
        host_name,
        tranship_version: env!("CARGO_PKG_VERSION").to_owned(),
        user_id,
        clock_ms: now_ms(),
        engine: engine_facts,
        free_bytes,
        free_inodes,
        direct_layers,
        direct_files,
        addresses: addresses(),
        limits,
        live: engine.live_facts().await.unwrap_or_else(|error| LiveFacts {
            obstacles: vec![Obstacle::new("live.unknown", error.to_string(), "")],
            ..LiveFacts::default()
        }),
    })
}

/// Bytes and inodes free for the engine's data. Where containerd keeps images and layers, the smaller of both: each has to take in a
/// part of what comes.
async fn free(engine: &EngineFacts, images: &dyn ImageWays) -> (Option<u64>, Option<u64>) {
    let mut roots = vec![engine.root_directory.as_str()];
    if engine.containerd_seen {
        roots.push(&engine.containerd_root);
    }
    let (mut bytes, mut inodes) = (Vec::new(), Vec::new());
    for root in roots.into_iter().map(Path::new) {
        let Ok(space) = rustix::fs::statvfs(root) else {
            return (None, None);
        };
        let kept = images.kept_bytes(root).await;
        bytes.push(space.f_bavail.saturating_mul(space.f_frsize).saturating_add(kept));
        // Some file systems (btrfs) have no fixed number of inodes and say 0 of 0.
        inodes.extend((space.f_files > 0).then_some(space.f_favail));
    }
    (bytes.into_iter().min(), inodes.into_iter().min())
}

/// Whether the engine's adapter will find files without the engine: as root, where the engine does not shift user ids and
/// its data are seen from here.
fn reaches_files(user_id: u32, engine: &EngineFacts) -> bool {
    let shifted = engine.rootless || engine.security_options.iter().any(|o| o.contains("name=userns"));
    let volumes = Path::new(&engine.root_directory).join("volumes");
    let layers = match engine.image_store {
        ImageStore::Containerd => engine.containerd_seen && engine.storage_driver == "overlayfs",
        ImageStore::Podman => engine.storage_driver == "overlay",
        _ => engine.storage_driver == "overlay2",
    };
    user_id == 0 && !shifted && layers && volumes.is_dir()
}

/// Whether this process reaches the files of storage elements itself.
pub(crate) async fn reached(ports: &Ports) -> bool {
    let facts = ports.engine.facts().await;
    facts.is_ok_and(|facts| reaches_files(rustix::process::getuid().as_raw(), &facts))
}

/// Addresses of this machine's interfaces, loopback left out.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces
        .into_iter()
        .filter(|i| !i.is_loopback())
        .map(|i| i.ip())
        .collect()
}

/// Addresses at which another machine could reach this one, likely ones first: bridges that engines make for their
/// containers come last, link-local ones not at all.
#[must_use]
pub fn reachable_addresses() -> Vec<IpAddr> {
    let mut interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.retain(|i| match i.ip() {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && (v6.segments()[0] & 0xffc0) != 0xfe80,
    });
    let inner = |name: &str| {
        ["docker", "br-", "veth", "podman", "cni", "virbr"]
            .iter()
            .any(|p| name.starts_with(p))
    };
    interfaces.sort_by_key(|i| (inner(&i.name), i.ip().is_ipv6()));
    interfaces.into_iter().map(|i| i.ip()).collect()
}

/// Everything about one container that a plan needs.
///
/// # Errors
/// What the engine says, `container.not-found` above all.
pub async fn report(
    ports: &Ports,
    guids: &Guids,
    container: &ContainerName,
) -> Result<ContainerReport, Fault> {
    let engine = ports.engine.as_ref();
    let spec = engine.inspect(container).await?;
    let changes = engine.layer_changes(&spec.id).await?;
    let tag = spec.image.tags.first().map(String::as_str);
    let archive_bytes = engine.archive_sizes(&spec.image, tag).await.unwrap_or_default();
    let mut volumes = engine.volume_specs().await?;
    volumes.retain(|v| {
        spec.mounts
            .iter()
            .any(|m| m.kind == MountKind::Volume && m.name == v.name)
    });
    for volume in &mut volumes {
        volume.guid = guids.of(volume);
    }
    let sizes = sizes(ports, &spec).await;
    let binds = spec.mounts.iter().filter(|m| m.kind == MountKind::Bind);
    let bind_files = binds
        .filter(|m| Path::new(&m.source).exists() && !Path::new(&m.source).is_dir())
        .map(|m| m.source.clone())
        .collect();
    let mounted_below = mounted_below(ports, &spec).await;
    // Other modes do not need it.
    let memory = engine.memory(&spec).await.unwrap_or_else(|error| {
        tracing::debug!("the container's memory: {error}");
        None
    });
    Ok(ContainerReport {
        memory,
        bind_users: bind_users(engine, &spec).await?,
        spec,
        changes,
        archive_bytes,
        volumes,
        sizes,
        bind_files,
        mounted_below,
        notes: BTreeMap::default(),
    })
}

/// Who else mounts what a container mounts from its host, by path on the host.
async fn bind_users(
    engine: &dyn Engine,
    spec: &ContainerSpec,
) -> Result<BTreeMap<String, Vec<VolumeUser>>, Fault> {
    let mut users = BTreeMap::new();
    for mount in spec.mounts.iter().filter(|m| m.kind == MountKind::Bind) {
        let mut others = engine.path_users(&mount.source).await?;
        others.retain(|user| user.container != spec.id);
        if !others.is_empty() {
            users.insert(mount.source.clone(), others);
        }
    }
    Ok(users)
}

/// What is mounted below the volumes and bind mounts of a container, by their paths in it. Nothing where this process does not see
/// the files.
async fn mounted_below(ports: &Ports, spec: &ContainerSpec) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    if !reached(ports).await {
        return found;
    }
    for mount in &spec.mounts {
        let at = match mount.kind {
            MountKind::Volume => ElementAt::Volume {
                name: mount.name.clone(),
            },
            MountKind::Bind => ElementAt::Bind {
                path: mount.source.clone(),
            },
            MountKind::Tmpfs | MountKind::Other => continue,
        };
        if let Ok(ElementPlace::Directory { path, .. }) = ports.directory(&at).await {
            let below = crate::mounts::below(&path);
            if !below.is_empty() {
                found.insert(mount.destination.clone(), below);
            }
        }
    }
    found
}

/// How much each storage element holds, as far as a quick look tells.
async fn sizes(ports: &Ports, spec: &ContainerSpec) -> BTreeMap<String, ElementSize> {
    // Through the engine nothing can be counted without reading it all.
    if !reached(ports).await {
        return BTreeMap::new();
    }
    let mut elements = vec![(
        "/".to_owned(),
        ElementAt::Layer {
            container: spec.id.clone(),
        },
    )];
    for mount in &spec.mounts {
        let at = match mount.kind {
            MountKind::Volume => ElementAt::Volume {
                name: mount.name.clone(),
            },
            MountKind::Tmpfs => ElementAt::Tmpfs {
                container: spec.id.clone(),
                path: mount.destination.clone(),
            },
            // Whether it comes along is not known yet, and it may be a whole disk.
            MountKind::Bind | MountKind::Other => continue,
        };
        elements.push((mount.destination.clone(), at));
    }
    let mut sizes = BTreeMap::new();
    for (path, at) in elements {
        let Ok(place) = ports.directory(&at).await else {
            continue;
        };
        if let Ok(Some(size)) = ports.storage.size(&place).await {
            sizes.insert(path, size);
        }
    }
    sizes
}

/// Answers what would be if these containers came here; `images` as in [`facts`].
///
/// # Errors
/// What the engine says.
pub async fn survey(
    engine: &dyn Engine,
    images: &dyn ImageWays,
    request: &SurveyRequest,
) -> Result<Survey, Fault> {
    let containers = engine.containers().await?;
    let mut ports: Vec<PortInUse> = Vec::new();
    for container in &containers {
        if container.state != "running" && container.state != "paused" && container.state != "restarting" {
            continue;
        }
        for port in &container.ports {
            if let Some(number) = port.host_port {
                ports.push(PortInUse {
                    protocol: port.protocol.clone(),
                    address: port.host_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                    port: number,
                    container: container.names.first().cloned(),
                });
            }
        }
    }
    for used in listening_ports() {
        // Ports that the engine's own proxy holds are named by their container already.
        if !ports.iter().any(|p| {
            p.port == used.port
                && p.protocol == used.protocol
                && p.container.is_some()
                && (p.address == used.address || p.address.is_unspecified())
        }) {
            ports.push(used);
        }
    }
    let mut arrivals = Vec::new();
    for spec in &request.containers {
        arrivals.push(arrival_facts(engine, spec).await?);
    }
    Ok(Survey {
        node: facts(engine, images).await?,
        networks: engine.networks().await?,
        volumes: engine.volumes().await?,
        volume_specs: engine.volume_specs().await?,
        containers,
        ports,
        arrivals,
    })
}

async fn arrival_facts(engine: &dyn Engine, spec: &ContainerSpec) -> Result<ArrivalFacts, Fault> {
    let known = engine.image(spec.image.id.as_str()).await?;
    let image_held = known.is_some_and(|known| known.is_whole(&spec.image));
    let layers_held = if image_held {
        spec.image.layers.len()
    } else {
        engine.layers_held(spec.image.known_layers()).await?
    };
    let tag_points_at = engine
        .image(&spec.image_reference)
        .await?
        .map(|i| i.id.to_string());
    let missing = |path: &String| !Path::new(path).exists();
    let binds = spec
        .mounts
        .iter()
        .filter(|m| m.kind == MountKind::Bind)
        .map(|m| m.source.clone());
    let filled = |path: &String| match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        // A file that is there is as much as a directory that holds something.
        Err(_) => Path::new(path).exists(),
    };
    Ok(ArrivalFacts {
        filled_bind_sources: binds.clone().filter(filled).collect(),
        bind_users: bind_users(engine, spec).await?,
        layers_held,
        image_held,
        tag_points_at,
        missing_devices: spec.ties.devices.iter().filter(|d| missing(d)).cloned().collect(),
        missing_bind_sources: binds.filter(missing).collect(),
    })
}

/// Ports that something on this machine listens on, as the kernel lists them.
#[must_use]
pub fn listening_ports() -> Vec<PortInUse> {
    let mut ports = Vec::new();
    for (file, protocol, listening) in [
        ("/proc/net/tcp", "tcp", "0A"),
        ("/proc/net/tcp6", "tcp", "0A"),
        ("/proc/net/udp", "udp", "07"),
        ("/proc/net/udp6", "udp", "07"),
    ] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        ports.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| parse_socket(line, protocol, listening)),
        );
    }
    ports.sort();
    ports.dedup();
    ports
}

/// A line of `/proc/net/tcp` and its like (proc(5)): number, local address, remote address, state.
fn parse_socket(line: &str, protocol: &str, wanted: &str) -> Option<PortInUse> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    if state != wanted {
        return None;
    }
    let (address, port) = kernel_socket_address(local)?;
    Some(PortInUse {
        protocol: protocol.to_owned(),
        address,
        port,
        container: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use async_trait::async_trait;
    use tranship_core::ImageSpec;
    use tranship_core::storage::Pipe;
    use tranship_migrate::images::{Fetched, ImageOrigin};
    use tranship_testkit::memory;

    /// Keeps so many bytes of layers.
    struct Keeps(u64);

    #[async_trait]
    impl ImageWays for Keeps {
        async fn serve(&self, _: &ImageSpec, _: Pipe, _: Arc<AtomicU64>) -> Result<(), Fault> {
            unreachable!()
        }

        async fn push(
            &self,
            _: &ImageSpec,
            _: &str,
            _: bool,
            _: Arc<AtomicU64>,
        ) -> Result<ImageOrigin, Fault> {
            unreachable!()
        }

        async fn fetch(
            &self,
            _: &ImageSpec,
            _: usize,
            _: &ImageOrigin,
            _: Option<Pipe>,
        ) -> Result<Fetched, Fault> {
            unreachable!()
        }

        async fn kept_bytes(&self, directory: &Path) -> u64 {
            assert_eq!(directory, Path::new("/"));
            self.0
        }
    }

    #[tokio::test]
    async fn what_makes_way_counts_as_free() {
        let engine = EngineFacts {
            root_directory: "/".into(),
            containerd_seen: false,
            ..memory::facts()
        };
        let (bytes, _) = free(&engine, &Keeps(1 << 60)).await;
        assert!(bytes.unwrap() > 1 << 60);
        let (bytes, _) = free(&engine, &Keeps(0)).await;
        assert!(bytes.unwrap() < 1 << 60);
    }

    #[test]
    fn sockets_are_read_as_the_kernel_writes_them() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1";
        let port = parse_socket(line, "tcp", "0A").unwrap();
        assert_eq!(
            (port.port, port.address.to_string().as_str()),
            (8080, "127.0.0.1")
        );
        assert!(
            parse_socket(&line.replace(" 0A ", " 01 "), "tcp", "0A").is_none(),
            "established is not listening"
        );
        let six = "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0";
        assert!(parse_socket(six, "tcp", "0A").unwrap().address.is_unspecified());
        for junk in ["", "x", "0: zz:zz zz 0A", "0: 00:00 0 0A"] {
            assert!(parse_socket(junk, "tcp", "0A").is_none());
        }
    }

    #[test]
    fn a_listener_of_ours_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(
            listening_ports()
                .iter()
                .any(|p| p.port == port && p.protocol == "tcp")
        );
    }
}
