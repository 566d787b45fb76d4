//! Processes that go on at another host where they were: the same memory, the same open files, no start in between.

mod auto;
pub(crate) mod failures;
mod languages;
mod programs;
pub(crate) mod redis;
mod tracked;

use serde_json::Value;
use tranship_testkit::testbed::Node;

use crate::world::{World, inspect, wait_until};

/// Counts, a line for each number: the shell's variable is nowhere but in memory.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

impl World {
    /// Runs the counter at `a` as `web`, until it has counted a little.
    pub(crate) fn count(&self, options: &[&str]) {
        let image = self.a.load_image("python").unwrap();
        let client = self.a.engine().client();
        let mut args = vec![client, "run", "-d", "--name", "web", "--restart", "always"];
        args.extend(options);
        args.extend([image.as_str(), "sh", "-c", COUNTER]);
        self.a.exec_ok(&args).unwrap();
        wait_until(|| numbers(&self.a).len() > 10);
    }

    /// The migration's timeline and figures.
    pub(crate) fn live(&self, from: &str, to: &str, options: &[&str]) -> Value {
        let mut all = vec!["--mode", "live", "--json"];
        all.extend(options);
        let outcome = self.migrate_between(from, to, &all).expect(0);
        outcome.json()[0].clone()
    }
}

/// What the counter has written at a node.
pub(crate) fn numbers(node: &Node) -> Vec<u64> {
    let log = node.exec_ok([node.engine().client(), "logs", "web"]).unwrap();
    log.lines().map(|line| line.parse().unwrap()).collect()
}

/// They go up by one, from the first to the last.
#[track_caller]
pub(crate) fn without_gap(numbers: &[u64]) {
    for pair in numbers.windows(2) {
        assert_eq!(pair[0] + 1, pair[1], "a gap or a repetition");
    }
}

/// Nothing of any memory is left on a node.
#[track_caller]
pub(crate) fn nothing_dumped(node: &Node) {
    let left = node
        .sh("ls -d /dev/shm/tranship-memory /var/lib/docker/tranship-memory /var/lib/docker/containers/*/checkpoints/* /tmp/ctrd-checkpoint* /var/lib/containers/storage/tranship-memory /var/lib/containers/storage/overlay-containers/*/userdata/checkpoint 2>/dev/null || true")
        .unwrap();
    assert_eq!(left, "", "dumps are left");
}

/// When the container's processes were started, by the engine's books, and the number of its main process.
pub(crate) fn life(node: &Node) -> String {
    inspect(node, "web", "{{.State.StartedAt}} {{.State.Pid}}")
}
