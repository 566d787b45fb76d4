//! Beds come and go without a trace.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;

use common::{Namespaces, TestResult, eventually, kinds, subnet, traces};
use tranship_testkit::require_testbed;
use tranship_testkit::testbed::{Dirs, Error, Options, Testbed, beds, collect_garbage};

#[test]
fn down_leaves_nothing() -> TestResult {
    require_testbed!();
    let options = Options {
        nodes: 2,
        ..Options::default()
    }
    .small_disk("b", "/srv/small", 32 << 20);
    let bed = Testbed::up(options)?;
    let name = bed.name().to_owned();
    let [a, b] = bed.array();
    let subnet = subnet(&a);
    let image = a.load_image("busybox")?;
    a.exec_ok([
        "docker",
        "run",
        "--detach",
        "--publish",
        "8080:8080",
        "--volume",
        "data:/data",
        &image,
    ])?;
    // A frozen process is hard to kill.
    b.load_image("busybox")?;
    b.exec_ok(["docker", "run", "--detach", "--name", "paused", &image])?;
    b.exec_ok(["docker", "pause", "paused"])?;
    let mut command = b.spawn(["sleep", "1000"])?;

    let namespaces = Namespaces::of(&bed.all());
    let seen = kinds(&traces(&name, subnet, &namespaces));
    for kind in ["directory", "link", "cgroup", "process", "loop"] {
        assert!(seen.contains(kind), "the test would not notice a leftover {kind}");
    }
    assert!(!seen.contains("mount"), "a node's mounts are seen on the host");

    drop((a, b));
    bed.down()?;
    assert!(!command.wait()?.success(), "a command outlived its node");
    assert_eq!(traces(&name, subnet, &namespaces), Vec::<String>::new());
    assert!(!beds(&Dirs::default())?.contains(&name));
    Ok(())
}

#[test]
fn the_last_handle_takes_the_bed_down() -> TestResult {
    require_testbed!();
    let [a, b] = Testbed::nodes()?;
    let (config, root) = (a.ssh_config().to_owned(), a.log_dir());
    drop(a);
    assert!(b.exec(["true"])?.success());
    assert!(config.exists() && root.exists());
    drop(b);
    assert!(!config.exists() && !root.exists());
    Ok(())
}

/// Not a test: the process that `a_dead_owner_s_bed_is_collected` kills. Does nothing unless given a name.
#[test]
#[ignore = "run by another test"]
fn hold_a_bed() -> TestResult {
    let mut name = String::new();
    std::io::stdin().read_line(&mut name)?;
    if name.trim().is_empty() {
        return Ok(());
    }
    let _bed = Testbed::up(Options {
        nodes: 1,
        name: Some(name.trim().to_owned()),
        ..Options::default()
    })?;
    writeln!(std::io::stdout(), "\nHELD")?;
    thread::park();
    Ok(())
}

#[test]
fn a_dead_owner_s_bed_is_collected() -> TestResult {
    require_testbed!();
    let dirs = Dirs::default();
    let name = format!("crash-{}", std::process::id());
    let mut owner = Command::new("/proc/self/exe")
        .args(["--exact", "hold_a_bed", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    writeln!(owner.stdin.take().expect("a pipe"), "{name}")?;
    let lines = BufReader::new(owner.stdout.take().expect("a pipe")).lines();
    let held = lines.map_while(Result::ok).any(|line| line == "HELD");
    assert!(held, "the owner brought up no bed");

    let bed = Testbed::attach(&dirs, &name)?;
    let (subnet, namespaces) = (subnet(&bed.node("a")?), Namespaces::of(&bed.all()));
    let removed = collect_garbage(&dirs)?;
    assert!(!removed.contains(&name), "a bed was taken from a living owner");
    assert!(bed.node("a")?.is_running());

    owner.kill()?;
    owner.wait()?;
    assert!(bed.owner().starts_with("dead"), "{}", bed.owner());
    // Any bed that comes up in the meantime may collect it as well.
    collect_garbage(&dirs)?;
    eventually("the dead bed is gone", || {
        traces(&name, subnet, &namespaces).is_empty()
    });
    Ok(())
}

#[test]
fn a_half_made_bed_is_collected() -> TestResult {
    require_testbed!();
    let dirs = Dirs::default();
    let name = format!("half-{}", std::process::id());
    fs::create_dir_all(dirs.state.join("beds").join(&name).join("nodes/a"))?;
    collect_garbage(&dirs)?;
    assert!(!beds(&dirs)?.contains(&name));
    Ok(())
}

#[test]
fn what_was_being_removed_is_removed() -> TestResult {
    require_testbed!();
    let dirs = Dirs::default();
    // No process has this pid and start time.
    let half = dirs
        .state
        .join("trash")
        .join(format!("half-{}.1-1", std::process::id()));
    fs::create_dir_all(half.join("nodes/a"))?;
    collect_garbage(&dirs)?;
    assert!(!half.exists());
    Ok(())
}

#[test]
fn beds_come_up_side_by_side() -> TestResult {
    require_testbed!();
    let up = || {
        Testbed::up(Options {
            nodes: 2,
            ..Options::default()
        })
    };
    let [first, second, third] =
        thread::scope(|scope| [scope.spawn(up), scope.spawn(up), scope.spawn(up)].map(|job| job.join()));
    let join = |result: thread::Result<_>| result.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    let (first, second, third): (Testbed, Testbed, Testbed) = (join(first)?, join(second)?, join(third)?);
    for bed in [&first, &second, &third] {
        let [a, b] = bed.array();
        assert_eq!(a.exec_ok(["hostname"])?.trim(), "a");
        assert!(
            a.exec(["ping", "-c1", "-W5", &b.address().to_string()])?
                .success()
        );
    }
    let ([a], [other]) = (first.array(), second.array());
    assert_ne!(subnet(&a), subnet(&other));
    let across = a.exec(["ping", "-c1", "-W1", &other.address().to_string()])?;
    assert!(!across.success(), "beds can reach each other");
    Ok(())
}

#[test]
fn a_name_is_taken_once() -> TestResult {
    require_testbed!();
    let name = format!("once-{}", std::process::id());
    let options = Options {
        nodes: 1,
        name: Some(name.clone()),
        ..Options::default()
    };
    let _bed = Testbed::up(options.clone())?;
    assert!(matches!(Testbed::up(options), Err(Error::BedExists(taken)) if taken == name));
    Ok(())
}

#[test]
fn a_persistent_bed_stays_until_taken_down() -> TestResult {
    require_testbed!();
    let dirs = Dirs::default();
    let name = format!("stays-{}", std::process::id());
    let bed = Testbed::up(Options {
        nodes: 1,
        name: Some(name.clone()),
        persistent: true,
        ..Options::default()
    })?;
    drop(bed);
    collect_garbage(&dirs)?;
    let bed = Testbed::attach(&dirs, &name)?;
    let node = bed.node("a")?;
    assert!(node.exec(["true"])?.success());
    node.restart_engine()?;
    let (subnet, namespaces) = (subnet(&node), Namespaces::of(&bed.all()));
    tranship_testkit::testbed::down(&dirs, &name)?;
    // Its processes are children of this one, which reaps them a moment later.
    eventually("nothing is left", || {
        traces(&name, subnet, &namespaces).is_empty()
    });
    assert!(matches!(
        tranship_testkit::testbed::down(&dirs, &name),
        Err(Error::NoBed(_))
    ));
    Ok(())
}

#[test]
fn impossible_options_are_refused() -> TestResult {
    require_testbed!();
    let none = Options {
        nodes: 0,
        ..Options::default()
    };
    assert!(matches!(Testbed::up(none), Err(Error::BadOptions(_))));
    let disk = Options {
        nodes: 1,
        ..Options::default()
    }
    .small_disk("b", "/x", 1 << 20);
    assert!(matches!(Testbed::up(disk), Err(Error::BadOptions(_))));
    let name = Options {
        name: Some("../up".to_owned()),
        ..Options::default()
    };
    assert!(matches!(Testbed::up(name), Err(Error::BadName(_))));
    Ok(())
}
