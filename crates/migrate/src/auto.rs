//! What `auto` takes for a container that keeps state: live mode where nothing speaks against it, else cold mode.
//!
//! Warm mode is never taken without being asked for: what it pauses begins afresh there as after a power cut, and whether a program
//! bears that, its user knows. In cold mode it is told to end. In live mode it does not end at all.

use tranship_core::node::{ContainerReport, NodeFacts};

use crate::elements;
use crate::options::{ModeRequest, MoveOptions};
use crate::plan::{Finding, Mode, Plan, PlanInput, Severity};

/// As many times what the containers use must be free in memory for their dump to lie there, and as many bytes beyond it.
const DUMP_TIMES: u64 = 3;
const DUMP_MARGIN: u64 = 64 << 20;
/// What live mode warns of that is no worse in cold mode, which closes connections too.
const NO_WORSE: &str = "live.connections";

/// The mode of a group, and the request as every rule shall see it. For `auto`, cold mode stands for any that carries state.
pub(crate) fn mode_of(options: &MoveOptions, reports: &[ContainerReport]) -> (Mode, ModeRequest) {
    match options.mode {
        ModeRequest::Cold => (Mode::Cold, ModeRequest::Cold),
        ModeRequest::Warm => (Mode::Warm, ModeRequest::Warm),
        ModeRequest::Live => (Mode::Live, ModeRequest::Live),
        ModeRequest::Stateless => (Mode::Stateless, ModeRequest::Stateless),
        ModeRequest::Auto if reports.iter().any(|r| elements::keeps_state(r, options)) => {
            (Mode::Cold, ModeRequest::Cold)
        }
        ModeRequest::Auto => (Mode::Stateless, ModeRequest::Auto),
    }
}

/// Takes one of the two plans of the same containers, and notes why.
pub(crate) fn choose(
    input: &PlanInput<'_>,
    reports: &[ContainerReport],
    mut cold: Plan,
    mut live: Plan,
) -> Plan {
    let note = |code: &str, message: String, remedy: &str| Finding {
        code: code.into(),
        severity: Severity::Note,
        message,
        remedy: Some(remedy.into()),
    };
    let Some(why) = against_live(input, reports, &cold, &live) else {
        live.findings.push(note(
            "mode.live",
            "it keeps state, and nothing keeps its memory from going on there with it".into(),
            "--mode cold ends it here, and starts it afresh there",
        ));
        return live;
    };
    cold.findings.push(note(
        "mode.cold",
        format!("it keeps state, so it stops here before it starts there; not live: {why}"),
        "--mode warm pauses it in place of stopping it, and --mode live says all that keeps it from that",
    ));
    cold
}

/// The first thing that speaks against live mode.
fn against_live(
    input: &PlanInput<'_>,
    reports: &[ContainerReport],
    cold: &Plan,
    live: &Plan,
) -> Option<String> {
    if let Some(why) = input.not_live {
        return Some(why.to_owned());
    }
    // What is in the way of both is said either way.
    let own = |finding: &&Finding| match finding.severity {
        Severity::Conflict => !cold.findings.contains(finding),
        Severity::Warning => finding.code.starts_with("live.") && finding.code != NO_WORSE,
        Severity::Note => false,
    };
    if let Some(finding) = live.findings.iter().find(own) {
        return Some(finding.message.clone());
    }
    // Nobody asked for memory on a disk.
    let fits = |node: &NodeFacts| node.live.free_memory >= room_for_dumps(reports);
    for (node, place) in [
        (input.source_node, "the source"),
        (&input.survey.node, "the destination"),
    ] {
        if !fits(node) {
            return Some(format!(
                "a dump of its memory would lie on {place}'s disk, where it is not encrypted"
            ));
        }
    }
    let target = input.options.max_downtime_ms?;
    let longer = live.prediction.downtime_ms > target && cold.prediction.downtime_ms <= target;
    longer.then(|| "with its memory the freeze is expected to be longer than --max-downtime".into())
}

fn room_for_dumps(reports: &[ContainerReport]) -> u64 {
    let used = reports.iter().filter_map(|report| report.memory.as_ref());
    used.fold(0u64, |sum, memory| {
        sum.saturating_add(memory.bytes.saturating_mul(DUMP_TIMES))
            .saturating_add(DUMP_MARGIN)
    })
}
