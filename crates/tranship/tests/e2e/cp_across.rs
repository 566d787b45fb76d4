//! `tranship cp` between containers of two hosts: from agent to agent, and through the caller where that is not possible.

use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::{Link, Node, Options};

use crate::world::{Outcome, World, finish, wait_until};

/// Two hosts with a running container `c1` each.
struct Pair(World);

macro_rules! pair {
    () => {
        match Pair::new() {
            Some(pair) => pair,
            None => return,
        }
    };
}

/// Everything about a tree that a copy keeps.
const LOOK: &str = "cd /srv/tree && find . | sort | while read -r f; do stat -c '%n %F %a %u:%g %Y %h' \"$f\"; \
    readlink \"$f\"; [ -f \"$f\" ] && md5sum <\"$f\"; done; true";

impl Pair {
    fn new() -> Option<Self> {
        let world = World::with(Options::default())?;
        for node in [&world.a, &world.b] {
            let image = node.load_image("busybox").unwrap();
            let all = "docker run -d --name c1 --network none -v data:/data -v rv:/r:ro --tmpfs /m:size=1m";
            node.sh(&format!(
                "{all} {image} sleep 86400 && docker create --name k1 --network none {image} sleep 86400"
            ))
            .unwrap();
        }
        let pair = Self(world);
        pair.shell(
            &pair.0.a,
            "mkdir -p /srv/tree/sub && cd /srv/tree && dd if=/dev/urandom of=big bs=1M count=24 2>/dev/null && \
             echo x >sub/f && ln sub/f sub/g && ln -s /nowhere link && mkfifo pipe && chown 7:8 sub && \
             chmod 1750 sub && chmod 4755 big && touch -d '2001-02-03 04:05:06' sub/f sub",
        );
        Some(pair)
    }

    fn shell(&self, node: &Node, command: &str) -> String {
        node.exec_ok(["docker", "exec", "c1", "sh", "-c", command])
            .unwrap()
    }

    /// `tranship cp` from host a to host b.
    fn cp(&self, options: &[&str], from: &str, to: &str) -> Outcome {
        finish(self.begin(options, from, to))
    }

    fn begin(&self, options: &[&str], from: &str, to: &str) -> std::process::Child {
        let (from, to) = (format!("ssh://root@a//{from}"), format!("ssh://root@b//{to}"));
        let mut args = vec!["cp"];
        args.extend(options);
        args.extend([from.as_str(), to.as_str()]);
        self.0.command(&args).spawn().unwrap()
    }

    /// Names of the container of host b that an unfinished copy would leave.
    fn left_over(&self) -> String {
        let seek = "find /srv /m /data -name '.tranship-*' -o -path '/srv/tree*' -name big";
        self.shell(&self.0.b, seek)
    }
}

fn ways(outcome: &Outcome) -> Vec<String> {
    let json: Value = outcome.json();
    let ways = json["ways"].as_array().unwrap();
    ways.iter()
        .map(|way| way["way"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn from_agent_to_agent() {
    let p = pair!();
    p.shell(&p.0.b, "mkdir -p /srv");
    let before = p.shell(&p.0.a, LOOK);
    let outcome = p.cp(&["--json"], "c1:/srv/tree", "c1:/srv").expect(0);
    assert_eq!(ways(&outcome), ["direct"]);
    let address = outcome.json()["ways"][0]["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with(&p.0.b.address().to_string()), "{address}");
    assert_eq!(outcome.json()["entries"], 7, "{}", outcome.stdout);
    assert_eq!(p.shell(&p.0.b, LOOK), before);
    // Again over what is there, into a volume, out of a container that never ran, and filtered.
    p.cp(&[], "c1:/srv/tree/.", "c1:/srv/tree")
        .expect(0)
        .saying(&["directly between the hosts"]);
    // But for the time of the directory itself, which is that of the copy then.
    let below = |text: &str| text.split_once('\n').unwrap().1.to_owned();
    assert_eq!(below(&p.shell(&p.0.b, LOOK)), below(&before));
    p.cp(
        &["--exclude", "big", "--chown", "3:4"],
        "c1:/srv/tree",
        "volume:data:/",
    )
    .expect(0);
    p.cp(&[], "k1:/bin/busybox", "k1:/tmp/again").expect(0);
    p.cp(&[], "volume:data:/", "c1:/none/").expect(0);
    let seen = p.shell(&p.0.b, "cd /data/tree; ls; stat -c %u:%g sub/f");
    assert_eq!(seen, "link\npipe\nsub\n3:4\n");
    // One host needs no way to another.
    let within = [
        "cp",
        "--json",
        "ssh://root@a//c1:/srv/tree",
        "ssh://root@a//k1:/tmp",
    ];
    assert_eq!(ways(&p.0.run(&within).expect(0)), ["within"]);
    let outcome = p
        .cp(&["--relay", "--json"], "c1:/srv/tree", "c1:/srv/relayed")
        .expect(0);
    assert_eq!(ways(&outcome), ["relay"]);
    let relayed = LOOK.replace("/srv/tree", "/srv/relayed");
    assert_eq!(p.shell(&p.0.b, &relayed), before);
    // No way in stays open for longer than a copy.
    let open = "ss -Hltnp | grep -c tranship || true";
    wait_until(|| p.0.b.sh(open).unwrap().trim() == "0");
}

#[test]
fn the_caller_carries_files_where_the_hosts_do_not_reach_each_other() {
    let p = pair!();
    p.shell(&p.0.b, "mkdir -p /srv");
    let before = p.shell(&p.0.a, LOOK);
    p.0.b
        .sh("iptables -I INPUT -p tcp ! --dport 22 --syn -j DROP")
        .unwrap();
    let begun = Instant::now();
    let args = [
        "cp",
        "--json",
        "ssh://root@a//c1:/srv/tree",
        "ssh://root@a//c1:/etc/passwd",
        "ssh://root@a//c1:/etc/group",
        "ssh://root@b//c1:/srv",
    ];
    let outcome = p.0.run(&args).expect(0);
    assert_eq!(ways(&outcome), ["relay", "relay", "relay"]);
    // What was found out once is not tried again for each source.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(p.shell(&p.0.b, LOOK), before);
}

#[test]
fn either_end_s_failure_is_told_with_its_code_and_leaves_nothing_half() {
    let p = pair!();
    p.shell(&p.0.b, "mkdir -p /srv");
    for relay in [&[][..], &["--relay"]] {
        p.cp(relay, "c1:/srv/tree", "c1:/r")
            .expect(1)
            .saying(&["error[file.read-only]", "ssh://root@b"]);
        p.cp(relay, "c1:/srv/tree/big", "c1:/m")
            .expect(1)
            .saying(&["error[archive.no-space]", "ssh://root@b"]);
        p.cp(relay, "c1:/srv/tree", "c1:/etc/passwd/x").expect(1);
        p.cp(relay, "c1:/nope", "c1:/srv")
            .expect(1)
            .saying(&["Could not find the file /nope", "ssh://root@a"]);
        assert_eq!(p.left_over(), "");
    }
    // An agent that dies under way, at either end.
    p.0.a.set_link(Link::Rate("40mbit")).unwrap();
    for (node, text) in [(&p.0.a, "ssh://root@a"), (&p.0.b, "ssh://root@b")] {
        let copy = p.begin(&[], "c1:/srv/tree", "c1:/srv");
        wait_until(|| p.left_over().contains(".tranship-"));
        assert!(node.kill_running("agent --serve") > 0);
        let outcome = finish(copy).expect(1).saying(&[text]);
        assert!(outcome.stderr.contains("error["), "{}", outcome.stderr);
        if text.ends_with('a') {
            wait_until(|| p.left_over().is_empty());
        } else {
            // Nobody was left to clean up; what has a name is whole.
            assert!(!p.left_over().contains("/big"));
        }
    }
}

#[test]
fn an_interrupt_ends_both_ends() {
    let p = pair!();
    // The agents are there: what goes over the slow link is the copy, and there is time to interrupt it.
    p.shell(&p.0.b, "mkdir -p /srv");
    p.cp(&[], "c1:/srv/tree/sub", "c1:/srv/warm-up").expect(0);
    p.0.a.set_link(Link::Rate("3mbit")).unwrap();
    for options in [&[][..], &["--relay"]] {
        let copy = p.begin(options, "c1:/srv/tree", "c1:/srv");
        wait_until(|| p.left_over().contains(".tranship-"));
        // Shells that run tests in the background have SIGINT ignored.
        let interrupt = ["-TERM", &copy.id().to_string()];
        assert!(
            std::process::Command::new("kill")
                .args(interrupt)
                .status()
                .unwrap()
                .success()
        );
        assert_ne!(finish(copy).code, 0);
        wait_until(|| p.left_over().is_empty());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(p.left_over(), "", "something goes on");
        let open = "ss -Htnp state established | grep -v :22 | grep -c tranship || true";
        wait_until(|| p.0.a.sh(open).unwrap().trim() == "0");
    }
}
