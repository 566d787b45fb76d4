//! Nodes reach each other, over cables that can be cut and slowed.

mod common;

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use common::{TestResult, eventually, ssh};
use tranship_testkit::require_testbed;
use tranship_testkit::testbed::{Link, Options, Testbed};

#[test]
fn everybody_may_log_in_everywhere() -> TestResult {
    require_testbed!();
    let bed = Testbed::up(Options {
        nodes: 3,
        ..Options::default()
    })?;
    for node in bed.all() {
        for user in ["root", "deploy", "guest"] {
            let output = ssh(
                bed.ssh_config(),
                &format!("{user}@{}", node.name()),
                "echo $(id -un) at $(hostname)",
            )?;
            assert_eq!(
                output.stdout.trim(),
                format!("{user} at {}", node.name()),
                "{}",
                output.stderr
            );
        }
    }
    for from in bed.all() {
        for to in bed.all() {
            let said = from.exec_ok(["ssh", "-o", "StrictHostKeyChecking=yes", to.name(), "hostname"])?;
            assert_eq!(said.trim(), to.name());
        }
    }
    let [a] = bed.array();
    assert_eq!(
        a.exec_ok([
            "su",
            "-",
            "deploy",
            "-c",
            "ssh -o StrictHostKeyChecking=yes b id -un"
        ])?
        .trim(),
        "deploy"
    );
    Ok(())
}

#[test]
fn only_members_of_the_group_may_use_the_engine() -> TestResult {
    require_testbed!();
    let bed = Testbed::up(Options {
        nodes: 1,
        ..Options::default()
    })?;
    assert!(ssh(bed.ssh_config(), "deploy@a", "docker ps")?.success());
    let refused = ssh(bed.ssh_config(), "guest@a", "docker ps")?;
    assert!(
        !refused.success() && refused.stderr.contains("permission denied"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn another_host_key_is_refused() -> TestResult {
    require_testbed!();
    let [a] = Testbed::nodes()?;
    a.sh("rm /etc/ssh/ssh_host_ed25519_key* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key")?;
    // The running sshd has the old key in memory.
    a.reboot()?;
    let refused = ssh(a.ssh_config(), "a", "true")?;
    assert!(
        !refused.success() && refused.stderr.contains("verification failed"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn a_cut_cable_stalls_and_a_mended_one_goes_on() -> TestResult {
    require_testbed!();
    let [a, b] = Testbed::nodes()?;
    let mut listener = b.spawn(["busybox", "nc", "-l", "-p", "9000"])?;
    eventually("the listener is there", || {
        b.exec(["sh", "-c", "ss -ltn | grep -q :9000"])
            .is_ok_and(|output| output.success())
    });
    let mut sender = a.spawn(["busybox", "nc", "b", "9000"])?;
    let mut input = sender.stdin().expect("a pipe");
    let mut output = listener.stdout().expect("a pipe");
    let mut heard = [0; 6];
    input.write_all(b"before")?;
    output.read_exact(&mut heard)?;
    assert_eq!(&heard, b"before");

    b.set_link(Link::Down)?;
    assert!(!a.exec(["ping", "-c1", "-W1", "b"])?.success());
    assert!(b.exec(["true"])?.success(), "commands do not need the cable");
    assert_eq!(b.link_state(), "down");
    input.write_all(b"during")?;
    thread::sleep(Duration::from_millis(300));
    assert!(
        sender.try_wait()?.is_none() && listener.try_wait()?.is_none(),
        "a cut cable resets no connection"
    );

    b.set_link(Link::Up)?;
    output.read_exact(&mut heard)?;
    assert_eq!(&heard, b"during");
    assert!(a.exec(["ping", "-c1", "-W5", "b"])?.success());
    Ok(())
}

#[test]
fn a_slow_cable_is_slow_both_ways_and_bytes_are_counted() -> TestResult {
    require_testbed!();
    const SENT: u64 = 4_000_000;
    let [a, b] = Testbed::nodes()?;
    let transfer =
        |from: &str, to: &str| format!("head -c {SENT} /dev/urandom | ssh {to} 'cat > /tmp/from-{from}'");
    a.set_link(Link::Rate("40mbit"))?;
    assert!(
        a.link_state().eq_ignore_ascii_case("40mbit"),
        "{}",
        a.link_state()
    );
    for (node, from, to) in [(&a, "a", "b"), (&b, "b", "a")] {
        let before = (a.link_bytes()?, b.link_bytes()?);
        let begin = Instant::now();
        node.sh(&transfer(from, to))?;
        let took = begin.elapsed();
        let after = (a.link_bytes()?, b.link_bytes()?);
        assert!(took > Duration::from_millis(600), "{from} to {to}: {took:?}");
        let sent_by_a = after.0.sent - before.0.sent;
        let sent_by_b = after.1.sent - before.1.sent;
        let (forth, back) = if from == "a" {
            (sent_by_a, sent_by_b)
        } else {
            (sent_by_b, sent_by_a)
        };
        assert!(
            forth > SENT && forth < SENT * 12 / 10,
            "{from} sent {forth} bytes"
        );
        assert!(back < SENT / 5, "{to} sent {back} bytes");
    }
    a.set_link(Link::Up)?;
    let begin = Instant::now();
    a.sh(&transfer("a", "b"))?;
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(a.set_link(Link::Rate("fast")).is_err());
    Ok(())
}
