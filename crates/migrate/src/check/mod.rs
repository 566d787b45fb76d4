//! Everything that can stand in the way of a container, found by comparing both sides. One rule per function.

mod live;
mod network;

pub(crate) use self::live::connections;

use std::collections::BTreeSet;

use tranship_core::container::ContainerState;
use tranship_core::node::{ArrivalFacts, ContainerReport, ImageStore, NodeFacts, Survey};

use crate::options::OnSource;
use crate::plan::{Finding, Mode, Plan, Severity};

/// Keeps this much of the destination's disk free beyond what the image needs.
const SPACE_RESERVE: u64 = 64 << 20;

pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, code: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let remedy = remedy.into();
        self.0.push(Finding {
            code: code.into(),
            severity,
            message: message.into(),
            remedy: (!remedy.is_empty()).then_some(remedy),
        });
    }

    pub(crate) fn conflict(&mut self, code: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Conflict, code, message, remedy);
    }

    pub(crate) fn warning(&mut self, code: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, code, message, remedy);
    }

    pub(crate) fn note(&mut self, code: &str, message: impl Into<String>) {
        self.add(Severity::Note, code, message, "");
    }
}

pub(crate) fn findings(
    plan: &Plan,
    report: &ContainerReport,
    arrival: &ArrivalFacts,
    source: &NodeFacts,
    survey: &Survey,
) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    state(&mut found, plan);
    ties(&mut found, plan, survey);
    uncarried(&mut found, plan);
    kinds(&mut found, source, survey);
    same_engine(&mut found, plan, survey);
    name(&mut found, plan, survey);
    network::ports(&mut found, plan, survey);
    network::networks(&mut found, plan, survey);
    image(&mut found, plan, arrival, source, survey);
    resources(&mut found, plan, arrival, survey);
    space(&mut found, plan, survey);
    if plan.mode == Mode::Live {
        live::live(&mut found, plan, report, source, survey);
    }
    clocks_and_notes(&mut found, report, source, survey);
    found.0
}

/// What of two nodes keeps memory from going on at the second, whatever the container.
#[must_use]
pub fn between(source: &NodeFacts, destination: &NodeFacts) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    live::between(&mut found, source, destination);
    found.0.retain(|finding| finding.severity == Severity::Conflict);
    found.0
}

fn state(found: &mut Findings, plan: &Plan) {
    let spec = plan.spec();
    match spec.status.state {
        ContainerState::Running => {}
        ContainerState::Paused => found.conflict(
            "container.paused",
            format!("{} is paused", spec.name),
            format!("`docker unpause {}` first", spec.name),
        ),
        ContainerState::Restarting => found.conflict(
            "container.restarting",
            format!(
                "{} is in a restart loop (exit code {})",
                spec.name, spec.status.exit_code
            ),
            "mend or stop it first; a container that does not run here would not run there",
        ),
        other => found.conflict(
            "container.not-running",
            format!("{} does not run, it is {other}", spec.name),
            format!("`docker start {}` first", spec.name),
        ),
    }
    // An engine that is ended in order thaws what is paused, and it would run at both ends: what stands still is ended before the commit.
    if spec.auto_remove && plan.mode.is_stateful() {
        found.conflict(
            "container.auto-remove",
            format!(
                "{} was made with --rm: once stopped it is gone, and could not be put back",
                spec.name
            ),
            "use --mode stateless, which stops it only when it serves there",
        );
    }
    if spec.auto_remove && plan.options.on_source == OnSource::Stop {
        found.note(
            "container.auto-remove",
            "made with --rm: it will be gone at the source after the hand-over",
        );
    }
}

fn ties(found: &mut Findings, plan: &Plan, survey: &Survey) {
    let spec = plan.spec();
    let ties = &spec.ties;
    let engine = &survey.node.engine;
    let network_links = spec.attachments.iter().flat_map(|a| a.links.iter());
    let links: BTreeSet<&String> = ties.links.iter().chain(network_links).collect();
    if !links.is_empty() {
        let list: Vec<&str> = links.iter().map(|l| l.as_str()).collect();
        found.conflict(
            "network.links",
            format!(
                "{} is linked to other containers ({}), and links cannot leave their host",
                spec.name,
                list.join(", ")
            ),
            "put the containers on a user-defined network, where they find each other by name",
        );
    }
    for shared in &ties.shared_namespaces {
        found.conflict(
            "namespace.shared",
            format!(
                "{} shares a namespace with another container ({shared})",
                spec.name
            ),
            "a container cannot leave one that it shares a namespace with; make it again without that",
        );
    }
    if let Some(orchestrator) = &ties.orchestrator {
        found.conflict(
            "container.orchestrated",
            format!(
                "{} belongs to {orchestrator}, which would start it again",
                spec.name
            ),
            format!("move it with {orchestrator}'s own means"),
        );
    }
    if !ties.runtime.is_empty() && !engine.runtimes.is_empty() && !engine.runtimes.contains(&ties.runtime) {
        found.conflict(
            "runtime.missing",
            format!(
                "it needs the runtime {:?}, which the engine there does not have",
                ties.runtime
            ),
            format!(
                "add it to the engine there; it has: {}",
                engine.runtimes.join(", ")
            ),
        );
    }
    // "none" is not a plug-in, and no engine lists it.
    if !matches!(ties.log_driver.as_str(), "" | "none")
        && !engine.log_drivers.is_empty()
        && !engine.log_drivers.contains(&ties.log_driver)
    {
        found.conflict(
            "log-driver.missing",
            format!(
                "it logs by the driver {:?}, which the engine there does not have",
                ties.log_driver
            ),
            format!(
                "install the plug-in there; it has: {}",
                engine.log_drivers.join(", ")
            ),
        );
    }
    for request in &ties.device_requests {
        let nvidia = engine.runtimes.iter().any(|r| r.contains("nvidia"));
        if !nvidia {
            found.conflict(
                "device.request",
                format!("it asks for {request}, which the engine there does not offer"),
                "install the device's runtime there",
            );
        }
    }
    if let Some(profile) = &ties.apparmor_profile
        && !engine.security_options.iter().any(|o| o.contains("apparmor"))
    {
        found.warning(
            "security.apparmor",
            format!("its AppArmor profile {profile:?} means nothing there: the host has no AppArmor"),
            "",
        );
    }
}

/// What the engine here says that no other could be asked to make.
fn uncarried(found: &mut Findings, plan: &Plan) {
    for obstacle in &plan.spec().ties.uncarried {
        found.conflict(&obstacle.code, obstacle.message.clone(), obstacle.remedy.clone());
    }
}

/// Engines describe and make containers each in its own words.
fn kinds(found: &mut Findings, source: &NodeFacts, survey: &Survey) {
    let (here, there) = (&source.engine.kind, &survey.node.engine.kind);
    if here != there {
        found.conflict(
            "engine.kind",
            format!("the engines are of two kinds ({here} here, {there} there), between which containers are not moved yet"),
            "move it to a node with the same engine",
        );
    }
}

/// Two addresses, and two agents, may lead to one engine. A container that is its own obstacle would be stopped, and with
/// `--replace` removed.
fn same_engine(found: &mut Findings, plan: &Plan, survey: &Survey) {
    if survey.containers.iter().any(|c| c.id == plan.spec().id) {
        found.conflict(
            "plan.same-node",
            format!(
                "the destination's engine holds {} itself: both addresses lead to the same engine",
                plan.spec().name
            ),
            "--from and --to name two different nodes",
        );
    }
}

fn name(found: &mut Findings, plan: &Plan, survey: &Survey) {
    let name = &plan.create.name;
    let taken = survey
        .containers
        .iter()
        .find(|c| c.names.iter().any(|n| n == name));
    match taken {
        None => {}
        Some(other) if plan.options.replace && other.state == "paused" => found.conflict(
            "name.paused",
            format!("the container {name:?} at the destination is paused, and could not be put back so"),
            "`docker unpause` it there, or remove it yourself",
        ),
        Some(_) if plan.options.replace => {
            found.warning(
                "name.replaced",
                format!("the container {name:?} at the destination makes way"),
                "",
            );
        }
        Some(other) => found.conflict(
            "name.taken",
            format!(
                "there is a container {name:?} at the destination already ({})",
                other.state
            ),
            "--rename NAME gives this one another name, --replace removes that one",
        ),
    }
}

/// What to do where the image stores differ.
const STORES_ALIKE: &str =
    "use the same image store at both ends: `containerd-snapshotter` in the engine's configuration decides";

fn image(found: &mut Findings, plan: &Plan, arrival: &ArrivalFacts, source: &NodeFacts, survey: &Survey) {
    let spec = plan.spec();
    let (here, there) = (&source.engine, &survey.node.engine);
    if there.os != spec.image.os || !same_architecture(&there.architecture, &spec.image.architecture) {
        found.conflict(
            "image.platform",
            format!(
                "the image is for {}/{}, the destination is {}/{}",
                spec.image.os, spec.image.architecture, there.os, there.architecture
            ),
            "an image for the destination's platform is needed",
        );
    }
    if let Some(why) = &spec.ties.image_platform {
        found.conflict(
            "image.platforms",
            format!("what the image is for is not certain: {why}"),
            "make the container from an image for one platform only: `docker pull --platform`, and `docker rmi` of the others",
        );
    }
    if here.image_store != there.image_store {
        let severity = if here.kind == there.kind {
            Severity::Conflict
        } else {
            Severity::Warning
        };
        found.add(
            severity,
            "image.store",
            format!(
                "the image stores differ ({:?} here, {:?} there), and so would the image's id",
                here.image_store, there.image_store
            ),
            STORES_ALIKE,
        );
    }
    if let (Some(tag), Some(points_at)) = (&plan.transfer.tag, &arrival.tag_points_at)
        && points_at != spec.image.id.as_str()
    {
        if plan.options.retag {
            found.warning(
                "image.retag",
                format!("the tag {tag} moves there from {points_at} to this image"),
                "",
            );
        } else {
            found.conflict(
                "image.tag-taken",
                format!("the tag {tag} means another image at the destination ({points_at})"),
                "--retag moves the tag to this image",
            );
        }
    }
    if plan.transfer.tag.is_none() && !spec.image_reference.starts_with("sha256:") {
        found.warning(
            "image.tag-moved",
            format!(
                "{:?} no longer means the image that the container was made from; it moves by its id",
                spec.image_reference
            ),
            "",
        );
    }
    if !spec.image.repo_digests.is_empty() {
        found.note(
            "image.repo-digests",
            "the registry's digests of the image are not carried: engines learn them from registries only",
        );
    }
}

/// Engines say `x86_64` of themselves and `amd64` of images.
fn same_architecture(engine: &str, image: &str) -> bool {
    let go = |a: &str| match a {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "i386" | "i686" => "386".to_owned(),
        "armv7l" | "armv6l" => "arm".to_owned(),
        other => other.to_owned(),
    };
    go(engine) == go(image) || go(engine) == "amd64" && go(image) == "386"
}

fn resources(found: &mut Findings, plan: &Plan, arrival: &ArrivalFacts, survey: &Survey) {
    let ties = &plan.spec().ties;
    let engine = &survey.node.engine;
    for device in &arrival.missing_devices {
        found.conflict(
            "device.missing",
            format!("the device {device} does not exist at the destination"),
            "",
        );
    }
    if let Some(highest) = highest_cpu(&ties.cpuset)
        && engine.cpus > 0
        && highest >= engine.cpus
    {
        found.conflict(
            "resources.cpuset",
            format!(
                "it is pinned to the processors {}, the destination has {}",
                ties.cpuset, engine.cpus
            ),
            format!(
                "`docker update --cpuset-cpus …` first, within 0-{}",
                engine.cpus.saturating_sub(1)
            ),
        );
    }
    let limit = u64::try_from(ties.nano_cpus).unwrap_or(0);
    if engine.cpus > 0 && limit > engine.cpus.saturating_mul(1_000_000_000) {
        found.conflict(
            "resources.cpus",
            format!(
                "its limit is {} processors, the destination has {}",
                limit as f64 / 1e9,
                engine.cpus
            ),
            format!("`docker update --cpus {}` first", engine.cpus),
        );
    }
    let memory = u64::try_from(ties.memory).unwrap_or(0);
    if engine.memory > 0 && memory > engine.memory {
        found.warning(
            "resources.memory",
            format!(
                "its memory limit of {memory} bytes is more than the destination has ({})",
                engine.memory
            ),
            "",
        );
    }
}

/// The highest number in a list such as `0-2,7`.
fn highest_cpu(list: &str) -> Option<u64> {
    list.split([',', '-']).filter_map(|n| n.trim().parse().ok()).max()
}

/// Bytes that an engine needs free to take in so many bytes of an image.
#[must_use]
pub fn room_for_image(bytes: u64) -> u64 {
    // `docker load` unpacks the archive before it makes layers of it: twice the bytes for a while.
    bytes.saturating_mul(2).saturating_add(SPACE_RESERVE)
}

fn space(found: &mut Findings, plan: &Plan, survey: &Survey) {
    let data = plan.prediction.data_bytes;
    let image = plan.prediction.bytes.saturating_sub(data);
    let needed = room_for_image(image).saturating_add(data);
    if plan.prediction.bytes == 0 {
        return;
    }
    if let Some(free) = survey.node.free_bytes
        && free < needed
    {
        found.conflict(
            "space.bytes",
            format!(
                "the engine there has {free} bytes free, image and data need {needed} while they are taken in"
            ),
            "`docker system prune` there, or free space otherwise",
        );
    }
    let copied = plan.elements.iter().filter(|e| e.copied);
    let entries: u64 = copied.filter_map(|e| e.size).map(|s| s.entries).sum();
    if let Some(inodes) = survey.node.free_inodes
        && inodes < entries.saturating_add(1_000)
    {
        found.conflict(
            "space.inodes",
            format!("the engine's disk there has only {inodes} inodes left"),
            "free some there",
        );
    }
}

fn clocks_and_notes(found: &mut Findings, report: &ContainerReport, source: &NodeFacts, survey: &Survey) {
    let skew = source.clock_ms.abs_diff(survey.node.clock_ms);
    if skew > 60_000 {
        found.warning(
            "clock.skew",
            format!(
                "the clocks of the two nodes differ by {} s; the container will see time jump",
                skew / 1000
            ),
            "",
        );
    }
    if source.engine.cgroup_version != survey.node.engine.cgroup_version {
        found.warning(
            "cgroup.version",
            format!(
                "cgroup version {} here and {} there: some limits mean something else",
                source.engine.cgroup_version, survey.node.engine.cgroup_version
            ),
            "",
        );
    }
    for (code, text) in &report.notes {
        found.note(code, text.clone());
    }
    let engine = &survey.node.engine;
    let by_layers = engine.image_store == ImageStore::Classic
        || (engine.containerd_seen && !report.spec.image.kept_layers.is_empty());
    if !by_layers && !report.spec.image.layers.is_empty() {
        found.note(
            "image.whole",
            "the engine there takes whole images only; layers that it holds travel again",
        );
    }
}

/// What several containers that move together want of the same thing.
pub(crate) fn between_plans(plans: &mut [Plan]) {
    for later in 1..plans.len() {
        let (before, rest) = plans.split_at_mut(later);
        let Some(plan) = rest.first_mut() else { continue };
        let mut found = Findings(Vec::new());
        for other in before.iter() {
            if other.spec().id == plan.spec().id {
                found.conflict(
                    "plan.twice",
                    format!("{} is named twice", plan.spec().name),
                    "name it once",
                );
            } else if other.create.name == plan.create.name {
                found.conflict(
                    "name.taken",
                    format!(
                        "{} and {} would both be called {:?}",
                        other.spec().name,
                        plan.spec().name,
                        plan.create.name
                    ),
                    "move them one by one, each with its own --rename",
                );
            }
            let theirs: Vec<_> = network::wanted_ports(other).collect();
            for (port, wanted) in network::wanted_ports(plan) {
                if theirs.iter().any(|(p, n)| {
                    *n == wanted
                        && p.protocol == port.protocol
                        && network::addresses_meet(p.host_address, port.host_address)
                }) {
                    found.conflict(
                        "port.taken",
                        format!(
                            "{} and {} would both publish port {wanted}",
                            other.spec().name,
                            plan.spec().name
                        ),
                        "give one of them another port with --publish OLD=NEW",
                    );
                }
            }
        }
        plan.findings.append(&mut found.0);
    }
}
