//! All cases, on several pairs of hosts at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use tranship_migrate::failpoint;
use tranship_testkit::testbed::missing_capability;

use crate::cases::{self, Case, Trouble};
use crate::run::Verdict;
use crate::scene::Scene;

/// Pairs of hosts at a time: the cases wait more than they work.
const WORLDS: usize = 5;
/// Fewer runs than this are no proof.
const ENOUGH: usize = 300;

type Outcomes = Mutex<Vec<(Case, Result<Verdict, String>)>>;

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// Works off cases until none is left. A scene that a case failed in is not used again.
fn work(queue: &Mutex<VecDeque<Case>>, outcomes: &Outcomes) {
    let mut scene = None;
    loop {
        let Some(case) = queue.lock().unwrap().pop_front() else {
            return;
        };
        let here = match scene.take() {
            Some(scene) => scene,
            None => match Scene::new() {
                Some(scene) => scene,
                None => return,
            },
        };
        let ended = catch_unwind(AssertUnwindSafe(|| here.run(&case)));
        let ended = ended.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default()
        });
        match &ended {
            Ok(verdict) => {
                println!(
                    "{case}: {}{} after {:.1} s, {} lines acknowledged",
                    if verdict.complete {
                        "complete"
                    } else {
                        "rolled back"
                    },
                    if verdict.in_doubt { " after doubt" } else { "" },
                    verdict.took.as_secs_f64(),
                    verdict.acknowledged
                );
                scene = Some(here);
            }
            Err(why) => {
                println!("{case}: FAILED: {why}\n{}", here.evidence());
            }
        }
        outcomes.lock().unwrap().push((case, ended));
    }
}

impl Scene {
    /// The last words of both agents and engines, and what the engines say of their containers, if they answer.
    fn evidence(&self) -> String {
        let mut text = String::new();
        for node in self.nodes() {
            let log = node
                .sh("tail -n 25 /var/lib/tranship/agent/agent.log; ls -t /var/lib/tranship/agent/logs/* | head -1 | xargs tail -n 40")
                .unwrap_or_default();
            let engine = node
                .sh("tail -n 40 /var/log/dockerd.log; for id in $(timeout 5 docker ps -aq); do timeout 5 docker inspect -f '{{json .State}}' $id || echo \"no word of $id: $?\"; done 2>&1")
                .unwrap_or_default();
            text.push_str(&format!("--- {}\n{log}\n{engine}\n", node.name()));
        }
        text
    }
}

/// What a fault hits, for the table.
fn kind(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Caller => "caller killed",
        Trouble::Agent(_) | Trouble::LonelyAgent(_) => "agent killed",
        Trouble::Everybody => "all killed",
        Trouble::EngineKilled(_) => "engine killed",
        Trouble::EngineRestarted(_) => "engine restarted",
        Trouble::Reboot(_) => "host rebooted",
        Trouble::Cable | Trouble::LongCable => "link cut",
        Trouble::Deaf(_) => "link half open",
        Trouble::FullDisks => "disks full",
        Trouble::Torn(_) | Trouble::Unwritten(_) => "journal torn",
    }
}

#[derive(Default)]
struct Row {
    runs: usize,
    complete: usize,
    back: usize,
    doubt: usize,
    failed: usize,
}

fn table(outcomes: &[(Case, Result<Verdict, String>)]) {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for (case, ended) in outcomes {
        for name in [kind(case.trouble), "~ all"] {
            let row = rows.entry(name).or_default();
            row.runs += 1;
            match ended {
                Ok(verdict) => {
                    row.complete += usize::from(verdict.complete);
                    row.back += usize::from(!verdict.complete);
                    row.doubt += usize::from(verdict.in_doubt);
                }
                Err(_) => row.failed += 1,
            }
        }
    }
    println!(
        "\n{:<18} {:>5} {:>9} {:>12} {:>20} {:>7}",
        "fault", "runs", "complete", "rolled back", "in doubt, resolved", "failed"
    );
    for (name, row) in rows {
        println!(
            "{:<18} {:>5} {:>9} {:>12} {:>20} {:>7}",
            name.trim_start_matches("~ "),
            row.runs,
            row.complete,
            row.back,
            row.doubt,
            row.failed
        );
    }
}

#[test]
fn whatever_fails_wherever_one_instance_is_left() {
    if let Some(reason) = missing_capability() {
        tranship_testkit::skipped(&reason);
        return;
    }
    let begun = Instant::now();
    let only = std::env::var("TRANSHIP_FAULTS").ok();
    let all = cases::all();
    let chosen = all
        .into_iter()
        .filter(|case| only.as_ref().is_none_or(|text| case.to_string().contains(text)));
    // What fails once in hundreds of runs is found by many runs of the same case.
    let times = number("TRANSHIP_FAULT_TIMES").unwrap_or(1);
    let planned: VecDeque<Case> = chosen.flat_map(|case| std::iter::repeat_n(case, times)).collect();
    let (whole, count) = (only.is_none(), planned.len());
    let queue = Mutex::new(planned);
    let outcomes: Outcomes = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..number("TRANSHIP_FAULT_WORLDS").unwrap_or(WORLDS).min(count) {
            scope.spawn(|| work(&queue, &outcomes));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    table(&outcomes);
    let reached: BTreeSet<&str> = outcomes
        .iter()
        .filter_map(|(_, ended)| ended.as_ref().ok())
        .flat_map(|verdict| verdict.reached.iter().map(String::as_str))
        .collect();
    let held: BTreeSet<(&str, &str)> = outcomes
        .iter()
        .filter(|(_, ended)| ended.is_ok())
        .map(|(case, _)| (case.place, kind(case.trouble)))
        .collect();
    let lines: usize = outcomes
        .iter()
        .filter_map(|(_, ended)| ended.as_ref().ok())
        .map(|verdict| verdict.acknowledged)
        .sum();
    println!(
        "{} runs in {:.0} s; {} of {} places reached, {} pairs of place and fault; {lines} lines acknowledged, none lost",
        outcomes.len(),
        begun.elapsed().as_secs_f64(),
        failpoint::ALL.iter().filter(|p| reached.contains(**p)).count(),
        failpoint::ALL.len(),
        held.len()
    );
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|(case, ended)| Some(format!("{case}: {}", ended.as_ref().err()?)))
        .collect();
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert_eq!(outcomes.len(), count, "not every case was run");
    if whole {
        let missed: Vec<_> = failpoint::ALL.iter().filter(|p| !reached.contains(**p)).collect();
        assert!(missed.is_empty(), "not reached: {missed:?}");
        let strange: Vec<_> = reached.iter().filter(|p| !failpoint::ALL.contains(p)).collect();
        assert!(strange.is_empty(), "not in the list of places: {strange:?}");
        assert!(count >= ENOUGH, "{count} runs are too few");
    }
}
