//! `tranship doctor [NODE...]`: what each node can do, what each pair of nodes can do, and what to change.

use serde::Serialize;
use tranship_agent::api::{Expect, Reach};
use tranship_core::node::{ImageStore, NodeFacts};
use tranship_core::{Fault, FaultKind, MigrationId};

use super::Context;
use crate::cli::DoctorArgs;
use crate::connect::{self, Connection};
use crate::render::bytes;
use crate::ui::Style;

/// Less free space than this is worth a word.
const LOW_SPACE: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Good,
    Note,
    Bad,
}

#[derive(Debug, Clone, Serialize)]
struct Check {
    /// What was looked at.
    what: String,
    verdict: Verdict,
    /// What was seen.
    seen: String,
    /// What to change.
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    node: String,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<NodeFacts>,
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, verdict: Verdict, what: &str, seen: impl Into<String>, remedy: Option<&str>) {
        self.0.push(Check {
            what: what.into(),
            verdict,
            seen: seen.into(),
            remedy: remedy.map(str::to_owned),
        });
    }
}

/// Looks at every node and every pair. Anything bad makes the exit code 1.
pub async fn run(context: &Context, args: &DoctorArgs) -> Vec<Fault> {
    let mut reports = Vec::new();
    let mut reached: Vec<(Connection, NodeFacts)> = Vec::new();
    let mut faults = Vec::new();
    for address in &args.nodes {
        let mut checks = Checks(Vec::new());
        match connect::connect(context, address).await {
            Err(fault) => {
                checks.add(
                    Verdict::Bad,
                    "connection",
                    fault.to_string(),
                    fault.hint.as_deref(),
                );
                faults.push(fault.on_node(address.to_string()));
                reports.push(Report {
                    node: address.to_string(),
                    checks: checks.0,
                    facts: None,
                });
            }
            Ok(connection) => {
                checks.add(Verdict::Good, "connection", how(&connection), None);
                match connection.client.node().await {
                    Err(fault) => {
                        checks.add(Verdict::Bad, "engine", fault.to_string(), fault.hint.as_deref());
                        faults.push(fault.on_node(address.to_string()));
                        reports.push(Report {
                            node: address.to_string(),
                            checks: checks.0,
                            facts: None,
                        });
                    }
                    Ok(facts) => {
                        node_checks(&mut checks, &facts);
                        reports.push(Report {
                            node: address.to_string(),
                            checks: checks.0,
                            facts: Some(facts.clone()),
                        });
                        reached.push((connection, facts));
                    }
                }
            }
        }
    }
    for (a_index, a) in reached.iter().enumerate() {
        for (b_index, b) in reached.iter().enumerate() {
            if a_index != b_index {
                reports.push(pair(a, b).await);
            }
        }
    }
    let bad = reports
        .iter()
        .flat_map(|r| &r.checks)
        .filter(|c| c.verdict == Verdict::Bad)
        .count();
    if let Err(fault) = print(context, &reports) {
        faults.push(fault);
    }
    if bad > 0 && faults.is_empty() {
        faults.push(
            Fault::new(
                "doctor.findings",
                FaultKind::Environment,
                format!("{bad} thing(s) stand in the way"),
            )
            .with_hint("each line marked ✗ says what to change"),
        );
    }
    faults
}

fn how(connection: &Connection) -> String {
    let hello = &connection.hello;
    let way = &connection.way;
    format!(
        "{way}; agent {} (protocol {}–{})",
        hello.version, hello.protocol_min, hello.protocol_max
    )
}

fn node_checks(checks: &mut Checks, facts: &NodeFacts) {
    let engine = &facts.engine;
    checks.add(
        Verdict::Good,
        "host",
        format!(
            "{} ({} {}, kernel {})",
            facts.host_name, engine.os, engine.architecture, engine.kernel
        ),
        None,
    );
    checks.add(
        Verdict::Good,
        "engine",
        format!("{} {} (API {})", engine.kind, engine.version, engine.api_version),
        None,
    );
    let store = format!(
        "{:?} image store, storage driver {}",
        engine.image_store, engine.storage_driver
    )
    .to_lowercase();
    match engine.image_store {
        ImageStore::Classic => checks.add(Verdict::Good, "images", store, None),
        ImageStore::Containerd if engine.containerd_seen => {
            checks.add(Verdict::Good, "images", format!("{store}, read from containerd"), None);
        }
        ImageStore::Containerd if facts.user_id == 0 => checks.add(
            Verdict::Note,
            "images",
            format!("{store}: containerd does not answer, or its files are not seen: whole images travel, and what containers wrote into their layers does not"),
            Some("the agent looks for it in /run/containerd and /run/docker/containerd, or where `docker info` says"),
        ),
        _ => checks.add(
            Verdict::Note,
            "images",
            format!("{store}: whole images travel, present layers included"),
            None,
        ),
    }
    if facts.user_id == 0 {
        checks.add(Verdict::Good, "privileges", "the agent runs as root", None);
    } else {
        checks.add(
            Verdict::Note,
            "privileges",
            format!("the agent runs as user {}", facts.user_id),
            Some("log in as root to let it read layers straight from the engine's storage"),
        );
    }
    if facts.direct_layers {
        checks.add(
            Verdict::Good,
            "layers",
            "read straight from the engine's storage",
            None,
        );
    } else {
        checks.add(
            Verdict::Note,
            "layers",
            "read through the engine, which is slower",
            None,
        );
    }
    let data = match engine.containerd_root.as_str() {
        "" => engine.root_directory.clone(),
        containerd => format!("{} and {containerd}", engine.root_directory),
    };
    match facts.free_bytes {
        None => checks.add(
            Verdict::Note,
            "space",
            format!("not known: {} cannot be looked at", data),
            None,
        ),
        Some(free) if free < LOW_SPACE => {
            checks.add(
                Verdict::Bad,
                "space",
                format!("{} free for {}", bytes(free), data),
                Some("free some space"),
            );
        }
        Some(free) => checks.add(
            Verdict::Good,
            "space",
            format!("{} free for {}", bytes(free), data),
            None,
        ),
    }
    if let Some(inodes) = facts.free_inodes
        && inodes < 10_000
    {
        checks.add(
            Verdict::Bad,
            "inodes",
            format!("{inodes} free for {}", data),
            Some("free some inodes"),
        );
    }
    let skew = tranship_agent::node::now_ms().abs_diff(facts.clock_ms);
    if skew > 10_000 {
        checks.add(
            Verdict::Note,
            "clock",
            format!("{} s away from this machine's", skew / 1000),
            Some("synchronise it (NTP)"),
        );
    } else {
        checks.add(Verdict::Good, "clock", "agrees with this machine's", None);
    }
    memory(checks, facts);
    for limit in &facts.limits {
        checks.add(Verdict::Note, "limits", limit.clone(), None);
    }
}

/// Whether `--mode live` would do here.
fn memory(checks: &mut Checks, facts: &NodeFacts) {
    let live = &facts.live;
    if live.obstacles.is_empty() && !live.criu.is_empty() {
        checks.add(
            Verdict::Good,
            "memory",
            format!(
                "dumped and restored by CRIU {}; {} available; the kernel {} which pages are written",
                live.criu,
                bytes(live.free_memory),
                if live.tracks_memory {
                    "tells"
                } else {
                    "does not tell"
                }
            ),
            None,
        );
    }
    for obstacle in &live.obstacles {
        let remedy = (!obstacle.remedy.is_empty()).then_some(obstacle.remedy.as_str());
        checks.add(
            Verdict::Note,
            "memory",
            format!("no --mode live: {}", obstacle.message),
            remedy,
        );
    }
}

async fn pair(from: &(Connection, NodeFacts), to: &(Connection, NodeFacts)) -> Report {
    let mut checks = Checks(Vec::new());
    match direct(&from.0, &to.0).await {
        Ok(address) => checks.add(
            Verdict::Good,
            "data path",
            format!("directly to {address} (TLS 1.3)"),
            None,
        ),
        Err(fault) => checks.add(
            Verdict::Note,
            "data path",
            format!("through the caller, because the direct way is closed: {fault}"),
            Some("let the source reach the destination by TCP for faster transfers"),
        ),
    }
    let (a, b) = (&from.1.engine, &to.1.engine);
    if a.architecture == b.architecture && a.os == b.os {
        checks.add(
            Verdict::Good,
            "platform",
            format!("both {}/{}", a.os, a.architecture),
            None,
        );
    } else {
        checks.add(
            Verdict::Bad,
            "platform",
            format!("{}/{} and {}/{}", a.os, a.architecture, b.os, b.architecture),
            Some("images for one do not run on the other"),
        );
    }
    if a.image_store == b.image_store {
        checks.add(Verdict::Good, "image ids", "stay the same", None);
    } else {
        checks.add(
            Verdict::Bad,
            "image ids",
            format!(
                "{:?} and {:?} stores give different ids",
                a.image_store, b.image_store
            ),
            Some("use the same image store at both ends"),
        );
    }
    if a.cgroup_version != b.cgroup_version {
        checks.add(
            Verdict::Note,
            "cgroups",
            format!(
                "version {} and {}: some limits differ in meaning",
                a.cgroup_version, b.cgroup_version
            ),
            None,
        );
    }
    if from.1.live.obstacles.is_empty() && to.1.live.obstacles.is_empty() {
        let mut found = tranship_migrate::check::between(&from.1, &to.1)
            .into_iter()
            .peekable();
        if found.peek().is_none() {
            checks.add(Verdict::Good, "memory", "goes on there (--mode live)", None);
        }
        for finding in found {
            checks.add(
                Verdict::Note,
                "memory",
                format!("no --mode live: {}", finding.message),
                finding.remedy.as_deref(),
            );
        }
    }
    Report {
        node: format!("{} → {}", from.0.label, to.0.label),
        checks: checks.0,
        facts: None,
    }
}

/// Whether `from` can dial `to`; nothing is left open.
async fn direct(from: &Connection, to: &Connection) -> Result<String, Fault> {
    let id = MigrationId::new(format!("doctor{}", tranship_agent::node::now_ms()))
        .map_err(|e| Fault::new("doctor.id", FaultKind::Bug, e.to_string()))?;
    let expected = to
        .client
        .expect(&Expect {
            id,
            source: from.hello.fingerprint,
        })
        .await?;
    Ok(from
        .client
        .reach(&Reach {
            offer: expected.offer,
        })
        .await?
        .address)
}

fn print(context: &Context, reports: &[Report]) -> Result<(), Fault> {
    if context.ui.json {
        return context.ui.json(&reports);
    }
    for report in reports {
        context.ui.line(&context.ui.paint(Style::Bold, &report.node))?;
        for check in &report.checks {
            let (style, mark) = match check.verdict {
                Verdict::Good => (Style::Good, "✓"),
                Verdict::Note => (Style::Warn, "!"),
                Verdict::Bad => (Style::Bad, "✗"),
            };
            let seen = crate::failure::one_line(&check.seen);
            context.ui.line(&format!(
                "  {} {:<11} {seen}",
                context.ui.paint(style, mark),
                check.what
            ))?;
            if let Some(remedy) = &check.remedy {
                context
                    .ui
                    .line(&format!("                → {}", crate::failure::one_line(remedy)))?;
            }
        }
    }
    Ok(())
}
