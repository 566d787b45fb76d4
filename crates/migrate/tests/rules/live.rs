//! What keeps memory from travelling.

use tranship_core::memory::{LiveFacts, MemoryReport, Obstacle};
use tranship_migrate::options::{MemoryTracking, TcpConnections, VolumeConflict};

use super::*;

/// What the change makes a conflict in live mode, and nothing in warm mode, which is the way out.
#[track_caller]
fn obstructed(change: impl Fn(&mut Sides), expected: &[&str]) {
    for mode in [ModeRequest::Live, ModeRequest::Warm] {
        let mut sides = sides();
        sides.options.mode = mode;
        change(&mut sides);
        let plan = sides.plan();
        let found = codes(&plan, Severity::Conflict);
        let found: Vec<&str> = found.into_iter().filter(|c| c.starts_with("live.")).collect();
        let expected = if mode == ModeRequest::Live { expected } else { &[] };
        assert_eq!(found, expected, "{mode:?} {:#?}", plan.findings);
        for finding in plan.conflicts().filter(|f| f.code.starts_with("live.")) {
            let remedy = finding.remedy.as_deref().unwrap_or_default();
            assert!(remedy.contains("--mode warm"), "{finding:?}");
        }
    }
}

fn memory_of(sides: &mut Sides) -> &mut MemoryReport {
    sides.report.memory.as_mut().unwrap()
}

#[test]
fn nothing_stands_in_the_way_of_a_plain_container_and_its_memory_comes_last() {
    obstructed(|_| {}, &[]);
    let mut sides = sides();
    sides.options.mode = ModeRequest::Live;
    memory_of(&mut sides).bytes = 1_200_000_000;
    let plan = sides.plan();
    assert_eq!(plan.mode, Mode::Live);
    let labels: Vec<String> = plan.elements.iter().map(|e| e.label()).collect();
    assert_eq!(labels, ["the container's layer", "the container's memory"]);
    // Two seconds for its memory, beside what any freeze takes.
    assert!(
        (3_000..4_000).contains(&plan.prediction.downtime_ms),
        "{:?}",
        plan.prediction
    );
}

#[test]
fn the_kernel_is_asked_what_was_written_where_it_tells_and_both_ends_understand() {
    let tracked = |change: fn(&mut Sides)| {
        let mut sides = sides();
        sides.options.mode = ModeRequest::Live;
        change(&mut sides);
        let plan = sides.plan();
        assert_eq!(
            codes(&plan, Severity::Note).contains(&"live.tracked"),
            plan.tracked_memory
        );
        plan.tracked_memory
    };
    assert!(tracked(|_| {}));
    assert!(tracked(|s| s.survey.node.live.tracks_memory = false));
    assert!(!tracked(|s| s.source.live.tracks_memory = false));
    // An agent of an older version.
    assert!(!tracked(|s| s.survey.node.live.restores_tracked = false));
    assert!(!tracked(|s| s.options.memory_tracking = MemoryTracking::Off));
    assert!(!tracked(|s| s.options.mode = ModeRequest::Warm));
}

#[test]
fn either_node_has_to_be_able_to() {
    let obstacle = || Obstacle::new("live.criu", "there is no CRIU", "");
    obstructed(|s| s.source.live.obstacles.push(obstacle()), &["live.criu"]);
    obstructed(|s| s.survey.node.live.obstacles.push(obstacle()), &["live.criu"]);
    // Silence is no consent.
    obstructed(|s| s.source.live = LiveFacts::default(), &["live.unknown"]);
    let silent = |s: &mut Sides| {
        s.survey.node.live = LiveFacts {
            criu: String::new(),
            ..memory::live_facts()
        }
    };
    obstructed(silent, &["live.unknown", "live.criu-version"]);
    obstructed(|s| s.source.direct_files = false, &["live.files"]);
    obstructed(|s| s.survey.node.direct_files = false, &["live.files"]);
}

#[test]
fn the_two_have_to_fit_each_other() {
    let criu = |here: &'static str, there: &'static str| {
        move |s: &mut Sides| {
            s.source.live.criu = here.into();
            s.survey.node.live.criu = there.into();
        }
    };
    obstructed(criu("4.2.1", "4.2"), &[]);
    obstructed(criu("4.2", "4.10"), &[]);
    obstructed(criu("4.10", "4.2"), &["live.criu-version"]);
    obstructed(
        |s| s.survey.node.engine.cgroup_version = "2".into(),
        &["live.cgroups"],
    );
    let features = |here: &'static str, there: &'static str| {
        move |s: &mut Sides| {
            s.source.engine.architecture = "amd64".into();
            s.survey.node.engine.architecture = "amd64".into();
            s.source.live.cpu_features = here.split(' ').map(str::to_owned).collect();
            s.survey.node.live.cpu_features = there.split(' ').map(str::to_owned).collect();
        }
    };
    obstructed(features("sse2", "sse2 avx2"), &[]);
    obstructed(features("sse2 avx2", "sse2"), &["live.processor"]);
    // What only the kernel or a hypervisor knows of.
    obstructed(features("sse2 hypervisor pti tsc_known_freq", "sse2"), &[]);
}

#[test]
fn what_a_container_has_may_keep_it() {
    obstructed(|s| s.report.memory = None, &["live.unseen"]);
    let terminal = || Obstacle::new("live.terminal", "it has a terminal", "make it again without -t");
    obstructed(|s| memory_of(s).obstacles.push(terminal()), &["live.terminal"]);
    let locks = |here: bool, there: bool| {
        move |s: &mut Sides| {
            memory_of(s).locks = true;
            s.source.live.restores_locks = here;
            s.survey.node.live.restores_locks = there;
        }
    };
    obstructed(locks(true, true), &[]);
    obstructed(locks(true, false), &["live.locks"]);
    obstructed(locks(false, true), &["live.locks"]);
    // Twice what it uses, and a reserve of 128 MiB.
    let memory = |free: u64| {
        move |s: &mut Sides| {
            memory_of(s).bytes = 1 << 30;
            s.survey.node.live.free_memory = free;
        }
    };
    obstructed(memory((2 << 30) + (128 << 20)), &[]);
    obstructed(memory((2 << 30) + (128 << 20) - 1), &["live.memory"]);
}

#[test]
fn connections_are_kept_in_no_mode() {
    for mode in [
        ModeRequest::Auto,
        ModeRequest::Stateless,
        ModeRequest::Cold,
        ModeRequest::Warm,
        ModeRequest::Live,
    ] {
        let mut sides = sides();
        sides.options.mode = mode;
        sides.options.tcp = TcpConnections::Keep;
        let plan = sides.plan();
        assert_eq!(codes(&plan, Severity::Conflict), ["live.tcp-keep"], "{mode:?}");
        let finding = plan.conflicts().next().unwrap();
        assert!(finding.remedy.as_ref().unwrap().contains("leave out --tcp keep"));
        sides.options.tcp = TcpConnections::Close;
        assert_eq!(codes(&sides.plan(), Severity::Conflict), [""; 0], "{mode:?}");
    }
    // A node of an earlier version, which does not know the option, takes what nobody asked for.
    let text = |tcp| {
        serde_json::to_string(&MoveOptions {
            tcp,
            ..MoveOptions::default()
        })
        .unwrap()
    };
    assert!(!text(TcpConnections::Close).contains("tcp"));
    assert!(text(TcpConnections::Keep).contains(r#""tcp":"keep""#));
}

#[test]
fn its_files_have_to_be_its_own() {
    let volume = |conflict: VolumeConflict| {
        move |s: &mut Sides| {
            s.report.spec.mounts.push(data_volume());
            s.survey.volumes.push("data".into());
            s.options.volume_conflict = conflict;
        }
    };
    obstructed(volume(VolumeConflict::Rename), &[]);
    obstructed(volume(VolumeConflict::Reuse), &["live.other-data"]);
    let plan = |change: fn(&mut MoveOptions)| {
        let mut sides = sides();
        sides.options.mode = ModeRequest::Live;
        memory_of(&mut sides).connections = 3;
        change(&mut sides.options);
        let plan = sides.plan();
        codes(&plan, Severity::Warning)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(plan(|_| {}), ["live.connections"]);
    assert_eq!(
        plan(|o| o.exclude.push("*.tmp".into())),
        ["live.connections", "live.incomplete"]
    );
}
