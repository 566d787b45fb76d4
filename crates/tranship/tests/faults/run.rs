//! One migration with one fault, from the container's start to the comparison of before and after.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::{Duration, Instant};

use tranship_testkit::testbed::{Link, Node};

use crate::cases::{Case, Mode, Side, Trouble};
use crate::leftovers::difference;
use crate::scene::{Holdings, Keeper, Scene, arm, inspect, journals};
use crate::watch::{Poller, Writer};
use crate::world::finish;

/// How long a case may take until both sides agree.
const SETTLED: Duration = Duration::from_secs(180);
/// How long the source's container may be down after its agent or its host is back.
const BACK: Duration = Duration::from_secs(10);

/// How a case ended.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub complete: bool,
    pub in_doubt: bool,
    pub acknowledged: usize,
    pub took: Duration,
    pub reached: Vec<String>,
}

/// What the journals say of the migration of this case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct States {
    departure: String,
    arrival: String,
    fault: String,
}

fn wait_for(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

impl Scene {
    fn node(&self, side: Side) -> &Node {
        match side {
            Side::Source => &self.world.a,
            Side::Destination => &self.world.b,
        }
    }

    /// One case to its end. Panics where something is not as it must be.
    pub fn run(&self, case: &Case) -> Verdict {
        let begun = Instant::now();
        self.clear();
        self.set_up(case);
        let stateful = case.mode != Mode::Stateless;
        let hosts = [self.world.a.address(), self.world.b.address()];
        let writer = Writer::start(hosts);
        assert!(
            wait_for(Duration::from_secs(20), || writer.count() > 3),
            "the service does not answer"
        );
        let healthy = || {
            let document = inspect(&self.world.a);
            document.is_some_and(|d| d["State"]["Health"]["Status"] == "healthy")
        };
        assert!(
            wait_for(Duration::from_secs(20), healthy),
            "the container is not healthy"
        );
        let before = self.holdings();
        let known: BTreeSet<String> = [Side::Source, Side::Destination]
            .into_iter()
            .flat_map(|side| self.states(self.node(side), side).into_keys())
            .collect();
        let side = case.side();
        let hold = format!("{}=hold\n", case.place);
        let back = case
            .sent_back_at()
            .map_or_else(String::new, |place| format!("{place}=fail\n"));
        let (at_source, at_destination) = match side {
            Side::Source => (back + &hold, String::new()),
            Side::Destination => (back, hold),
        };
        arm(&self.world.a, &at_source);
        arm(&self.world.b, &at_destination);
        let kept = match case.trouble {
            Trouble::LonelyAgent(Side::Source) => [false, true],
            Trouble::LonelyAgent(Side::Destination) => [true, false],
            _ => [true, true],
        };
        let keeper = Keeper::start(self.nodes(), kept);
        let poller = Poller::start(&self.world.a, &self.world.b);
        let mut child = self.begin(case);
        let here = self.node(side);
        let there = || {
            // What an earlier case left behind with full disks is undone at any time, and passes the places of the way back as well.
            let ours = || {
                let departures = self.states(&self.world.a, Side::Source);
                departures.keys().any(|id| !known.contains(id))
            };
            self.reached(here).iter().any(|p| p == case.place) && (case.sent_back_at().is_none() || ours())
        };
        let arrived = wait_for(Duration::from_secs(30), || {
            there() || child.try_wait().is_ok_and(|status| status.is_some())
        });
        let passed = there();
        if !arrived || !passed {
            let _ = child.kill();
            panic!("the place was not reached: {}", finish(child).stderr);
        }
        self.make_trouble(case, &mut child);
        let troubled = Instant::now();
        let (states, in_doubt) = self.settle(&known, &mut child, case, troubled, &keeper, &poller);
        let settled = begun.elapsed();
        let outcome = finish(child);
        if std::env::var_os("TRANSHIP_FAULTS_SHOW").is_some() {
            let end = begun.elapsed();
            println!(
                "settled after {settled:?}, caller ended after {end:?}\n{}",
                outcome.stderr
            );
        }
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        let complete = states.departure == "complete";
        let survivor = if complete { &self.world.b } else { &self.world.a };
        let answered = writer.count();
        assert!(
            wait_for(Duration::from_secs(20), || writer.count() > answered + 2),
            "nobody answers after the end: {states:?}\n{}",
            outcome.stderr
        );
        let acknowledged = if stateful {
            writer.end(|| self.log(survivor))
        } else {
            // Two instances may run, and each has lines of its own.
            let count = writer.count();
            writer.stop();
            count
        };
        self.check_the_end(complete, &before);
        poller.end(stateful);
        let reached = self.nodes().into_iter().flat_map(|n| self.reached(n)).collect();
        keeper.end();
        self.clear();
        let empty = self.empty();
        self.same(&empty, "afterwards");
        Verdict {
            complete,
            in_doubt,
            acknowledged,
            took: begun.elapsed(),
            reached,
        }
    }

    fn make_trouble(&self, case: &Case, child: &mut Child) {
        let release = || {
            arm(
                self.node(case.side()),
                case.sent_back_at()
                    .map_or(String::new(), |p| {
                        if case.side() == Side::Source {
                            format!("{p}=fail\n")
                        } else {
                            String::new()
                        }
                    })
                    .as_str(),
            )
        };
        let kill_agent = |side| {
            self.node(side).kill_running("agent --serve");
        };
        let other = |side| match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        match case.trouble {
            Trouble::Caller => child.kill().unwrap(),
            Trouble::Agent(side) | Trouble::LonelyAgent(side) => kill_agent(side),
            Trouble::Everybody => {
                child.kill().unwrap();
                kill_agent(Side::Source);
                kill_agent(Side::Destination);
            }
            Trouble::EngineKilled(side) => {
                self.node(side).kill_engine().unwrap();
                release();
                std::thread::sleep(Duration::from_millis(300));
                self.node(side).restart_engine().unwrap();
            }
            Trouble::EngineRestarted(side) => self.node(side).restart_engine().unwrap(),
            Trouble::Reboot(side) => self.node(side).reboot().unwrap(),
            Trouble::Cable | Trouble::LongCable => {
                let long = case.trouble == Trouble::LongCable;
                self.world.b.set_link(Link::Down).unwrap();
                release();
                std::thread::sleep(Duration::from_secs(if long { 20 } else { 3 }));
                self.world.b.set_link(Link::Up).unwrap();
            }
            Trouble::Deaf(side) => {
                let from = self.node(other(side)).address();
                let rule = |verb: &str| {
                    let script = format!("iptables -w {verb} INPUT -s {from} -j DROP");
                    self.node(side).sh(&script).unwrap();
                };
                rule("-I");
                release();
                std::thread::sleep(Duration::from_secs(12));
                rule("-D");
            }
            Trouble::FullDisks => {
                self.fill_disks(!self.world.b.running_containers().is_empty());
                release();
                std::thread::sleep(Duration::from_secs(4));
                self.free_disks();
            }
            Trouble::Torn(side) => {
                kill_agent(side);
                self.change_journal(side, |bytes| {
                    // The beginning of a record such as a crash leaves it.
                    let part = bytes.get(..bytes.len().min(40)).unwrap_or_default().to_vec();
                    bytes.extend(part);
                });
            }
            Trouble::Unwritten(side) => {
                kill_agent(side);
                self.change_journal(side, |bytes| bytes.truncate(bytes.len().saturating_sub(7)));
            }
        }
        release();
    }

    /// Changes the newest journal of a side whose agent is dead.
    fn change_journal(&self, side: Side, change: impl FnOnce(&mut Vec<u8>)) {
        let state = self.node(side).root().unwrap().join("var/lib/tranship/agent");
        let directory = state.join(journals(side));
        let newest = std::fs::read_dir(directory)
            .unwrap()
            .flatten()
            .max_by_key(|e| e.metadata().unwrap().modified().unwrap());
        let path = newest.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    }

    /// Waits until both sides say the same, and looks meanwhile whether the source comes back in time.
    fn settle(
        &self,
        known: &BTreeSet<String>,
        child: &mut Child,
        case: &Case,
        troubled: Instant,
        keeper: &Keeper,
        poller: &Poller,
    ) -> (States, bool) {
        let mut in_doubt = false;
        let lonely = matches!(case.trouble, Trouble::LonelyAgent(_));
        let mut woken = false;
        loop {
            let newest = |side| {
                let states = self.states(self.node(side), side);
                states
                    .into_iter()
                    .find(|(id, _)| !known.contains(id))
                    .map(|(_, state)| state)
            };
            let (departure, fault) = newest(Side::Source).unwrap_or_default();
            let (arrival, _) = newest(Side::Destination).unwrap_or_default();
            let states = States {
                departure,
                arrival,
                fault,
            };
            in_doubt |= states.departure == "in-doubt";
            let over = child.try_wait().is_ok_and(|s| s.is_some());
            match (states.departure.as_str(), states.arrival.as_str()) {
                ("complete", "adopted") => return (states, in_doubt),
                ("rolled-back", "" | "discarded") => {
                    let back = keeper.back_at(0).unwrap_or(troubled).max(troubled);
                    let limit = BACK.saturating_sub(back.elapsed());
                    assert!(
                        wait_for(limit, || poller.source_since().is_some()),
                        "the source does not run again within {} s",
                        BACK.as_secs()
                    );
                    let since = poller.source_since().unwrap_or(back);
                    let down = since.saturating_duration_since(back);
                    assert!(
                        down <= BACK,
                        "the source came back after {:.1} s",
                        down.as_secs_f64()
                    );
                    return (states, in_doubt);
                }
                _ => {}
            }
            if over && lonely && !woken {
                // Nobody keeps the agents: the next command of a person brings them back.
                woken = true;
                let _status = self.world.run(&["status"]);
            }
            assert!(
                troubled.elapsed() < SETTLED,
                "not settled after {} s: {states:?}",
                SETTLED.as_secs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn check_the_end(&self, complete: bool, before: &Holdings) {
        let (a, b) = (&self.world.a, &self.world.b);
        let policy = |node: &Node| {
            inspect(node).map(|d| {
                d["HostConfig"]["RestartPolicy"]["Name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
        };
        let runs = |node: &Node| !node.running_containers().is_empty();
        if complete {
            assert!(
                wait_for(Duration::from_secs(10), || !runs(a) && runs(b)),
                "one instance, at the destination"
            );
            assert_eq!(policy(a).as_deref(), Some("no"), "the source's restart policy");
            assert_eq!(
                policy(b).as_deref(),
                Some("always"),
                "the destination's restart policy"
            );
        } else {
            assert!(
                wait_for(Duration::from_secs(10), || runs(a) && !runs(b)),
                "one instance, at the source"
            );
            self.same(before, "after the way back");
        }
    }

    /// Waits until both hosts hold this again.
    fn same(&self, wanted: &Holdings, when: &str) {
        let mut now = self.holdings();
        if wait_for(Duration::from_secs(15), || {
            now = self.holdings();
            &now == wanted
        }) {
            return;
        }
        let mut lines = Vec::new();
        for index in 0..2 {
            let name = ["a", "b"][index];
            for (before, after) in [
                (&wanted.engines[index], &now.engines[index]),
                (&wanted.systems[index], &now.systems[index]),
                (&wanted.agents[index], &now.agents[index]),
            ] {
                lines.extend(
                    difference(before, after)
                        .into_iter()
                        .map(|l| format!("{name}: {l}")),
                );
            }
        }
        panic!("left over {when}:\n{}", lines.join("\n"));
    }
}
