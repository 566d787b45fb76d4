//! Which mode `auto` takes of a container that keeps state, and what it says of that.

use tranship_core::memory::{MemoryReport, Obstacle};

use super::*;

/// A container that wrote into its layer, with this change.
fn stateful(change: impl FnOnce(&mut Sides)) -> Sides {
    let mut sides = sides();
    sides.report.changes = LayerChanges {
        files: 1,
        bytes: 9,
        examples: vec!["/x".into()],
    };
    change(&mut sides);
    sides
}

/// It is live, and says why.
#[track_caller]
fn live(change: impl FnOnce(&mut Sides)) -> Plan {
    let plan = stateful(change).plan();
    assert_eq!(plan.mode, Mode::Live, "{:#?}", plan.findings);
    assert!(codes(&plan, Severity::Note).contains(&"mode.live"));
    assert!(plan.mode_reason().unwrap().contains("memory"));
    assert_eq!(plan.options.mode, ModeRequest::Auto, "as it was asked for");
    plan
}

/// It is cold, and this is why it is not live.
#[track_caller]
fn cold(because: &str, change: impl FnOnce(&mut Sides)) -> Plan {
    let plan = stateful(change).plan();
    assert_eq!(plan.mode, Mode::Cold, "{:#?}", plan.findings);
    let why = plan.mode_reason().unwrap_or_default();
    assert!(why.contains("not live: ") && why.contains(because), "{why}");
    assert_eq!(plan.options.mode, ModeRequest::Auto, "as it was asked for");
    // What keeps it from live mode is no conflict of a mode that does not need it.
    let found = plan.findings.iter().any(|f| f.code.starts_with("live."));
    assert!(!found, "{:#?}", plan.findings);
    plan
}

fn memory_of(sides: &mut Sides) -> &mut MemoryReport {
    sides.report.memory.as_mut().unwrap()
}

#[test]
fn memory_goes_along_where_nothing_speaks_against_it() {
    let plan = live(|_| {});
    let labels: Vec<String> = plan.elements.iter().map(|e| e.label()).collect();
    assert_eq!(labels, ["the container's layer", "the container's memory"]);
    // Connections are closed in cold mode as well.
    let plan = live(|s| memory_of(s).connections = 3);
    assert_eq!(codes(&plan, Severity::Warning), ["live.connections"]);
    // Without state there is nothing to stop for.
    let plan = sides().plan();
    assert_eq!((plan.mode, plan.mode_reason()), (Mode::Stateless, None));
    // Who asked for a mode gets it, and need not be told why.
    let plan = stateful(|s| s.options.mode = ModeRequest::Cold).plan();
    assert_eq!((plan.mode, plan.mode_reason()), (Mode::Cold, None));
}

#[test]
fn whatever_stands_in_its_way_makes_it_cold() {
    let obstacle = || Obstacle::new("live.criu", "there is no CRIU", "");
    cold("at the source: there is no CRIU", |s| {
        s.source.live.obstacles.push(obstacle());
    });
    cold("at the destination: there is no CRIU", |s| {
        s.survey.node.live.obstacles.push(obstacle());
    });
    cold("terminal", |s| {
        memory_of(s)
            .obstacles
            .push(Obstacle::new("live.terminal", "it has a terminal", ""));
    });
    cold("does not see", |s| s.report.memory = None);
    cold("locks", |s| {
        memory_of(s).locks = true;
        s.survey.node.live.restores_locks = false;
    });
    // What live mode warns of is enough: nobody asked for it.
    cold("stays behind", |s| s.options.exclude.push("*.tmp".into()));
    cold("is older than here", |s| {
        s.source.engine.kernel = "6.9".into();
        s.survey.node.engine.kernel = "6.1".into();
    });
}

#[test]
fn without_root_it_is_cold() {
    let plan = stateful(|s| {
        s.report.changes = LayerChanges::default();
        s.report.spec.mounts.push(data_volume());
        s.source.direct_files = false;
    })
    .plan();
    assert_eq!(plan.mode, Mode::Cold);
    assert!(plan.mode_reason().unwrap().contains("both agents reach files"));
}

#[test]
fn what_is_in_the_way_of_both_does_not_decide() {
    let taken = |s: &mut Sides| {
        s.report.spec.ports.push(port(None, 80, "tcp"));
        s.survey.ports.push(used("0.0.0.0", 80, "tcp", Some("other")));
    };
    let plan = live(taken);
    assert_eq!(codes(&plan, Severity::Conflict), ["port.taken"]);
}

#[test]
fn its_dump_has_to_fit_in_memory_at_both_ends() {
    let needed = (3 << 30) + (64 << 20);
    let free = |here: u64, there: u64| {
        move |s: &mut Sides| {
            memory_of(s).bytes = 1 << 30;
            s.source.live.free_memory = here;
            s.survey.node.live.free_memory = there;
        }
    };
    live(free(needed, needed));
    cold("the source's disk", free(needed - 1, needed));
    cold("the destination's disk", free(needed, needed - 1));
}

#[test]
fn a_freeze_that_is_to_be_short_is_not_made_longer_by_memory() {
    let within = |ms: u64| {
        move |s: &mut Sides| {
            memory_of(s).bytes = 1_200_000_000;
            s.options.max_downtime_ms = Some(ms);
        }
    };
    // Two seconds for its memory, beside what any freeze takes.
    live(within(4_000));
    cold("--max-downtime", within(2_000));
    // Too short for either mode.
    live(within(10));
}

#[test]
fn what_a_try_has_shown_counts_for_more_than_all_facts() {
    let sides = stateful(|_| {});
    let containers = [(MigrationId::new("m1").unwrap(), vec![sides.report.clone()])];
    let plan = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &containers,
        source_node: &sides.source,
        survey: &sides.survey,
        options: &sides.options,
        not_live: Some("the memory of web cannot be dumped: it uses io_uring"),
    })
    .remove(0);
    assert_eq!(plan.mode, Mode::Cold);
    assert!(plan.mode_reason().unwrap().ends_with("it uses io_uring"));
}
