//! What keeps memory from travelling: at either node, between them, and in the container.

use std::collections::BTreeSet;

use tranship_core::memory::Obstacle;
use tranship_core::node::{ContainerReport, NodeFacts, Survey};

use super::Findings;
use crate::elements::{ElementPlan, Making, Target};
use crate::options::MoveOptions;
use crate::plan::Plan;

/// What a person can do instead, whatever stands in the way.
const INSTEAD: &str = "or --mode warm, which carries everything but memory";
/// Memory that the destination keeps free beyond what the container uses.
const MEMORY_RESERVE: u64 = 128 << 20;

/// Rules of live mode.
pub(super) fn live(
    found: &mut Findings,
    plan: &Plan,
    report: &ContainerReport,
    source: &NodeFacts,
    survey: &Survey,
) {
    let there = &survey.node;
    for (node, place) in [(source, "at the source"), (there, "at the destination")] {
        for obstacle in &node.live.obstacles {
            obstructed(found, obstacle, place);
        }
        // Silence is no consent: an agent of an older version does not know the question.
        if node.live.obstacles.is_empty() && node.live.criu.is_empty() {
            let silent = Obstacle::new("live.unknown", "the agent says nothing of dumps of memory", "");
            obstructed(found, &silent, place);
        }
    }
    if !(source.direct_files && there.direct_files) {
        found.conflict(
            "live.files",
            "memory is carried only where both agents reach files themselves",
            format!("log in as root at both ends, {INSTEAD}"),
        );
    }
    match &report.memory {
        None => found.conflict(
            "live.unseen",
            "the agent at the source does not see the container's processes",
            format!("run the engine and the agent in the same namespaces, {INSTEAD}"),
        ),
        Some(memory) => {
            for obstacle in &memory.obstacles {
                obstructed(found, obstacle, "");
            }
            if memory.locks && !(source.live.restores_locks && there.live.restores_locks) {
                found.conflict(
                    "live.locks",
                    "it holds locks on files, which a restore by the engine leaves out unless it is told to",
                    format!("put the line `file-locks` into /etc/criu/runc.conf at both ends, {INSTEAD}"),
                );
            }
            if memory.connections > 0 {
                found.warning(
                    "live.connections",
                    format!(
                        "{} connection(s) are closed when it goes on there; clients connect anew",
                        memory.connections
                    ),
                    "",
                );
            }
            let needed = memory.bytes.saturating_mul(2).saturating_add(MEMORY_RESERVE);
            if there.live.free_memory < needed {
                found.conflict(
                    "live.memory",
                    format!(
                        "it uses {} MiB of memory, and the destination has {} MiB left, too few for it and its dump",
                        memory.bytes >> 20,
                        there.live.free_memory >> 20
                    ),
                    format!("free memory there, {INSTEAD}"),
                );
            }
        }
    }
    if plan.tracked_memory {
        found.note(
            "live.tracked",
            "the kernel tells which pages are written, so that the freeze dumps no others, where that pays (--memory-tracking off dumps all)",
        );
    }
    between(found, source, there);
    let is_reused = |element: &ElementPlan| {
        let of = match &element.target {
            Target::Volume { making, .. } | Target::Bind { making, .. } => Some(*making),
            _ => None,
        };
        of == Some(Making::Reuse)
    };
    if plan.elements.iter().any(is_reused) || !plan.options.shared_bind.is_empty() {
        found.conflict(
            "live.other-data",
            "its processes would go on with files that are not those that they had open",
            format!("carry them as well, {INSTEAD}"),
        );
    }
    if plan.options.without_volumes
        || plan.options.without_layer
        || !plan.options.exclude.is_empty()
        || !plan.options.exclude_volumes.is_empty()
        || !plan.options.volumes.is_empty()
    {
        found.warning(
            "live.incomplete",
            "what stays behind may be open in a process, which cannot go on without it then",
            "",
        );
    }
}

/// Connections are closed in every mode. To keep them, it would take more than a dump that has them:
///
/// * the kernel acknowledges what arrives for a paused container, which is in no dump of before; and it tells the peers when the container
///   is ended. CRIU's lock on the network ends with a dump that leaves the processes where they are (`--leave-running`);
/// * an engine's restore does not take `tcp-established`, which a restore of connections needs;
/// * their own address has to be there, and no longer here.
pub(crate) fn connections(found: &mut Findings, options: &MoveOptions) {
    if !options.tcp.is_close() {
        found.conflict(
            "live.tcp-keep",
            "established TCP connections cannot be kept: what the kernel here acknowledges once memory was dumped would be missing there, \
             and the engine there does not let CRIU take connections up again",
            "leave out --tcp keep: clients connect anew then, and a proxy before both hosts can hide that from them",
        );
    }
}

fn obstructed(found: &mut Findings, obstacle: &Obstacle, place: &str) {
    let message = if place.is_empty() {
        obstacle.message.clone()
    } else {
        format!("{place}: {}", obstacle.message)
    };
    let remedy = if obstacle.remedy.is_empty() {
        INSTEAD.trim_start_matches("or ").to_owned()
    } else {
        format!("{}, {INSTEAD}", obstacle.remedy)
    };
    found.conflict(&obstacle.code, message, remedy);
}

pub(super) fn between(found: &mut Findings, source: &NodeFacts, there: &NodeFacts) {
    if version(&there.live.criu) < version(&source.live.criu) {
        found.conflict(
            "live.criu-version",
            format!(
                "CRIU is {} at the source and {} at the destination, which may not know what that writes",
                source.live.criu, there.live.criu
            ),
            format!("install the same CRIU there, {INSTEAD}"),
        );
    }
    if source.engine.cgroup_version != there.engine.cgroup_version {
        found.conflict(
            "live.cgroups",
            format!(
                "the kernel's cgroups are version {} at the source and {} at the destination",
                source.engine.cgroup_version, there.engine.cgroup_version
            ),
            INSTEAD.trim_start_matches("or "),
        );
    }
    let has: BTreeSet<&String> = there.live.cpu_features.iter().collect();
    let missing: Vec<&str> = source
        .live
        .cpu_features
        .iter()
        .filter(|feature| !has.contains(feature))
        .map(String::as_str)
        .filter(|feature| source.engine.architecture != "amd64" || is_used_by_programs(feature))
        .collect();
    if !missing.is_empty() {
        found.conflict(
            "live.processor",
            format!(
                "the destination's processor lacks what the source's has ({}), and the program may use it",
                missing.join(", ")
            ),
            format!("move to a processor that has all of it, {INSTEAD}"),
        );
    }
    if version(&there.engine.kernel) < version(&source.engine.kernel) {
        found.warning(
            "live.kernel",
            format!(
                "the kernel there ({}) is older than here ({}), and may lack what the program uses",
                there.engine.kernel, source.engine.kernel
            ),
            "",
        );
    }
}

/// Whether programs look for this feature of x86, and not the kernel or a hypervisor alone, whose words are among them.
fn is_used_by_programs(feature: &str) -> bool {
    const BEGINNINGS: [&str; 22] = [
        "sse", "ssse", "avx", "aes", "bmi", "fma", "sha", "xsave", "vaes", "vpclmul", "pclmul", "gfni",
        "rdrand", "rdseed", "clflush", "clwb", "amx", "cx", "mmx", "3dnow", "movdir", "fsrm",
    ];
    const WHOLE: [&str; 20] = [
        "abm",
        "adx",
        "cmov",
        "erms",
        "f16c",
        "fsgsbase",
        "fxsr",
        "hle",
        "lahf_lm",
        "movbe",
        "popcnt",
        "ospke",
        "pku",
        "rdpid",
        "rdtscp",
        "rtm",
        "serialize",
        "tbm",
        "user_shstk",
        "xop",
    ];
    BEGINNINGS.iter().any(|beginning| feature.starts_with(beginning)) || WHOLE.contains(&feature)
}

/// The first two numbers of a version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
