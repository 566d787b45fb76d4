//! What two hosts hold, so that before and after can be compared: of the engine, of the system, and of the agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tranship_testkit::testbed::Node;

use crate::scene::engine_get;

/// Sorted lines, one per thing.
pub type Holdings = Vec<String>;

/// Containers, images, networks and volumes of an engine.
pub fn of_engine(node: &Node) -> Option<Holdings> {
    let list = |path: &str| engine_get(node, path);
    let mut lines = Vec::new();
    for container in list("/containers/json?all=1")?.as_array()? {
        let id = container["Id"].as_str()?;
        let Some(document) = list(&format!("/containers/{id}/json")) else {
            // Removed meanwhile.
            continue;
        };
        lines.push(format!(
            "container {} {id} {} {} restart={}",
            document["Name"],
            document["Image"],
            document["State"]["Status"],
            document["HostConfig"]["RestartPolicy"]["Name"]
        ));
    }
    for image in list("/images/json?all=1")?.as_array()? {
        lines.push(format!("image {} {}", image["Id"], image["RepoTags"]));
    }
    for network in list("/networks")?.as_array()? {
        let own = matches!(network["Name"].as_str(), Some("bridge" | "host" | "none"));
        // Those that every engine has get a new id at every start.
        let id = if own { "" } else { network["Id"].as_str()? };
        lines.push(format!("network {} {id}", network["Name"]));
    }
    for volume in list("/volumes")?["Volumes"].as_array().into_iter().flatten() {
        lines.push(format!("volume {}", volume["Name"]));
    }
    lines.sort();
    Some(lines)
}

/// Processes by program, and mounts; what bears the name of a container or a network sandbox bears only that.
pub fn of_system(node: &Node) -> Holdings {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for line in node.command_lines() {
        let mut words = line.split(' ');
        let program = words
            .next()
            .unwrap_or_default()
            .rsplit('/')
            .next()
            .unwrap_or_default();
        let kind = match program {
            // Names of connections; and what a program is called before it is another.
            p if p.starts_with("sshd") => "sshd",
            // The engine's own, for a moment at every look at a container's health.
            "runc" => continue,
            p if p.starts_with("tranship") => {
                if line.contains("--serve") {
                    // It comes and goes by itself.
                    continue;
                }
                "tranship"
            }
            p => p,
        };
        *count.entry(format!("process {kind}")).or_default() += 1;
    }
    if let Ok(root) = node.root()
        && let Some(process) = root.parent()
        && let Ok(text) = fs::read_to_string(process.join("mountinfo"))
    {
        for line in text.lines() {
            *count.entry(format!("mount {}", mount_kind(line))).or_default() += 1;
        }
    }
    count
        .into_iter()
        .map(|(what, many)| format!("{what} × {many}"))
        .collect()
}

/// Where something is mounted, without the parts that are new every time.
fn mount_kind(line: &str) -> String {
    let place = line.split(' ').nth(4).unwrap_or_default();
    let part = |part: &str| {
        let hash = part.len() >= 12 && part.chars().all(|c| c.is_ascii_hexdigit());
        if hash { "*".to_owned() } else { part.to_owned() }
    };
    place.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// Files that tranship leaves for a while at most: half-written ones, locks, what was set aside and what is in the making.
/// What arrived of a migration that failed is kept for the next try, and is no such file.
pub fn of_agent(node: &Node) -> Holdings {
    let Ok(root) = node.root() else { return Vec::new() };
    let mut found = Vec::new();
    for directory in ["run/tranship", "tmp", "var/tmp", "root/.cache/tranship/bin"] {
        for name in names(&root.join(directory)) {
            found.push(format!("/{directory}/{name}"));
        }
    }
    let state = root.join("var/lib/tranship/agent");
    for name in names(&state.join("locks")) {
        found.push(format!("lock {name}"));
    }
    for directory in ["aside", "content", "departures", "arrivals", "ways", ""] {
        for name in names(&state.join(directory)) {
            if name.ends_with(".new")
                || name.ends_with(".out")
                || name.ends_with(".trash")
                || (directory == "aside" && !name.starts_with("partial-"))
            {
                found.push(format!("{directory}/{name}"));
            }
        }
    }
    for name in names(&root.join("var/lib/docker/tranship")) {
        if !name.starts_with("partial-") {
            found.push(format!("beside the engine's data: {name}"));
        }
    }
    // Staging directories of rounds are beside the directories that they fill.
    for name in names(&root.join("var/lib/docker/volumes")) {
        for inside in names(&root.join("var/lib/docker/volumes").join(&name)) {
            if inside != "_data" && inside != "opts.json" {
                found.push(format!("volume {name}: {inside}"));
            }
        }
    }
    // What belongs to these tests, and what the engine makes for a moment.
    let foreign = [
        "fail-point",
        "fail-point.new",
        "fail-point.reached",
        "runc-process",
    ];
    found.retain(|name| {
        let last = name.rsplit('/').next().unwrap_or_default();
        !foreign
            .iter()
            .any(|f| last == *f || (*f == "runc-process" && last.starts_with(f)))
    });
    found.sort();
    found
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What only one of two has; `-` before, `+` after.
pub fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before
        .iter()
        .filter(|line| !after.contains(line))
        .map(|l| format!("- {l}"));
    let come = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(|l| format!("+ {l}"));
    gone.chain(come).collect()
}
