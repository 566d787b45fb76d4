//! What containers hold, on its way between real hosts. One file per kind of question.
//!
//! Equality is never told by the program under test: `rsync` compares the two hosts' directories over ssh, and a Python
//! script lists every fact that a file system tells about a file, holes included.

mod append;
mod attributes;
mod conflicts;
mod hooks;
mod interrupted;
mod kinds;
mod layer;
mod postgres;
mod transfer;
mod volumes;
mod writers;

use serde_json::Value;
use tranship_testkit::testbed::Node;

use crate::world::{World, reached, wait_until};

/// Prints one line per entry of a tree, with everything that there is to say about it.
const LISTING: &str = include_str!("scripts/listing.py");

impl World {
    /// Runs a container of the small image with Python at `a`, by the name `web`, and returns the image's name. Nothing in it
    /// listens to the signal that would stop it in order.
    fn hold(&self, options: &[&str], command: &[&str]) -> String {
        let image = self.a.load_image("python").unwrap();
        self.hold_from(&image, options, command);
        image
    }

    fn hold_from(&self, image: &str, options: &[&str], command: &[&str]) {
        let mut args = vec!["docker", "run", "-d", "--name", "web", "--stop-signal", "KILL"];
        args.extend(options);
        args.push(image);
        args.extend(command);
        self.a.exec_ok(&args).unwrap();
    }

    /// Runs a shell script in `web` on that host.
    #[track_caller]
    fn inside(&self, node: &Node, script: &str) -> String {
        node.exec_ok(["docker", "exec", "web", "sh", "-ec", script])
            .unwrap()
    }

    /// Runs a Python script in `web` on that host.
    #[track_caller]
    fn python(&self, node: &Node, options: &[&str], script: &str, arguments: &[&str]) -> String {
        let mut args = vec!["docker", "exec", "-i"];
        args.extend(options);
        args.extend(["web", "python3", "-"]);
        args.extend(arguments);
        let output = node.exec_with_input(&args, script.as_bytes()).unwrap();
        assert!(
            output.success(),
            "the script failed: {}\n{}",
            output.stdout,
            output.stderr
        );
        output.stdout
    }

    /// What rsync would change to make a directory of `b` equal to one of `a`: nothing if they are equal.
    fn differences(&self, here: &str, there: &str) -> Vec<String> {
        self.differences_between(&self.a, here, "b", there)
    }

    fn differences_between(&self, from: &Node, here: &str, to: &str, there: &str) -> Vec<String> {
        let (here, there) = (format!("{here}/"), format!("root@{to}:{there}/"));
        // A window of -1 makes rsync compare nanoseconds; the rest is mode, owners, times, links, ACLs and attributes.
        let said = from
            .exec_ok([
                "rsync",
                "-aHAXSn",
                "--delete",
                "--checksum",
                "--numeric-ids",
                "--modify-window=-1",
                "-i",
                &here,
                &there,
            ])
            .unwrap();
        said.lines().map(ToOwned::to_owned).collect()
    }

    /// Every fact about every entry of a volume, from a privileged container of its own.
    fn listing(&self, node: &Node, image: &str, volume: &str) -> Vec<String> {
        let mount = format!("{volume}:/listed:ro");
        let args = [
            "docker",
            "run",
            "--rm",
            "-i",
            "--privileged",
            "--network",
            "none",
            "-v",
            &mount,
            image,
            "python3",
            "-",
            "/listed",
        ];
        let output = node.exec_with_input(args, LISTING.as_bytes()).unwrap();
        assert!(output.success(), "{}", output.stderr);
        output.stdout.lines().map(ToOwned::to_owned).collect()
    }

    fn wait_for_point(&self, node: &Node, point: &str) {
        wait_until(|| reached(node, point));
    }
}

/// Where Docker keeps a volume.
fn volume(name: &str) -> String {
    format!("/var/lib/docker/volumes/{name}/_data")
}

/// The volume that a container has at a path.
fn volume_at(node: &Node, container: &str, path: &str) -> String {
    let mounts: Value =
        serde_json::from_str(&crate::world::inspect(node, container, "{{json .Mounts}}")).unwrap();
    let found = mounts
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["Destination"] == path)
        .unwrap_or_else(|| panic!("nothing is mounted at {path}: {mounts}"));
    found["Name"].as_str().unwrap().to_owned()
}

/// Lines that only one of two listings has; `-` before, `+` after.
fn compare(before: &[String], after: &[String]) -> Vec<String> {
    use std::collections::BTreeSet;
    let (old, new): (BTreeSet<&String>, BTreeSet<&String>) =
        (before.iter().collect(), after.iter().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let come = new.difference(&old).map(|line| format!("+ {line}"));
    gone.chain(come).collect()
}

/// Ends the test with the differences, if there are any.
#[track_caller]
fn assert_none(differences: &[String], what: &str) {
    assert!(
        differences.is_empty(),
        "{what}: {} differences\n{}",
        differences.len(),
        differences
            .iter()
            .take(40)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

/// Tests that take their time run whole where this is set.
pub(crate) fn long() -> bool {
    std::env::var_os("TRANSHIP_TEST_LONG").is_some_and(|v| v == "1")
}
