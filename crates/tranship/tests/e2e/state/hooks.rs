//! The user's commands around the freeze.

use std::fmt::Write as _;

use super::{assert_none, volume};
use crate::world::{World, inspect, is_running};

/// A container that notes what hooks did in its volume, and one thing that tells whether it was stopped.
fn hooked(options: &[&str]) -> Option<World> {
    let world = World::with(tranship_testkit::testbed::Options::default())?;
    world.hold(&[&["-v", "data:/data"], options].concat(), &["sleep", "infinity"]);
    world.inside(&world.a, "echo begun > /data/notes");
    Some(world)
}

fn notes(world: &World, node: &tranship_testkit::testbed::Node) -> String {
    world.inside(node, "cat /data/notes")
}

/// What only a stop, a start or another process would change.
fn process(world: &World) -> String {
    inspect(
        &world.a,
        "web",
        "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.State.Status}}",
    )
}

#[test]
fn hooks_of_labels_flags_and_file_run_at_their_times() {
    let Some(world) = hooked(&[
        "--label",
        "tranship.hook.pre-freeze=echo label-pre >> /data/notes",
        "--label",
        "tranship.hook.post-start=echo label-start >> /data/notes",
        "--label",
        "tranship.hook.thaw=echo label-thaw >> /data/notes",
    ]) else {
        return;
    };
    let file = world.state.path().join("hooks.toml");
    let mut text = String::new();
    for (when, place, command) in [
        ("pre-freeze", "container", "echo file-pre >> /data/notes"),
        (
            "post-freeze",
            "host",
            "echo $TRANSHIP_HOOK $TRANSHIP_CONTAINER > /run/host-post",
        ),
        ("post-start", "container", "echo file-start >> /data/notes"),
        (
            "pre-freeze",
            "host",
            "docker inspect -f '{{.State.Running}}' web > /run/host-pre",
        ),
    ] {
        writeln!(
            text,
            "[[hook]]\nwhen = {when:?}\nwhere = {place:?}\ncommand = {command:?}\ntimeout = 9\n"
        )
        .unwrap();
    }
    std::fs::write(&file, text).unwrap();
    let options = [
        "--mode",
        "cold",
        "--hooks",
        file.to_str().unwrap(),
        "--hook-pre-freeze",
        "echo flag-pre >> /data/notes",
        "--hook-post-freeze",
        "docker inspect -f '{{.State.Running}}' web > /run/host-frozen",
        "--hook-post-start",
        "echo flag-start >> /data/notes",
        "--hook-thaw",
        "echo flag-thaw >> /data/notes",
    ];
    let plan = world.run(&{
        let mut args = crate::world::migrate_args("web", "a", "b", &options);
        args[0] = "plan";
        args
    });
    for word in [
        "pre-freeze",
        "post-freeze",
        "thaw",
        "label-pre",
        "file-start",
        "on the host",
    ] {
        assert!(plan.stdout.contains(word), "{word:?} is not in\n{}", plan.stdout);
    }
    assert_eq!(notes(&world, &world.a), "begun\n", "planning runs nothing");
    world.migrate(&options).expect(0);
    assert_eq!(
        notes(&world, &world.b),
        "begun\nlabel-pre\nfile-pre\nflag-pre\nlabel-start\nfile-start\nflag-start\n"
    );
    assert_eq!(
        world
            .a
            .sh("cat /run/host-pre /run/host-post /run/host-frozen")
            .unwrap(),
        "true\npost-freeze web\nfalse\n"
    );
    let left = world.a.sh(&format!("cat {}/notes", volume("data"))).unwrap();
    assert_eq!(
        left, "begun\nlabel-pre\nfile-pre\nflag-pre\n",
        "the source after the freeze"
    );
}

#[test]
fn a_hook_that_fails_before_the_freeze_leaves_everything_running() {
    let Some(world) = hooked(&["--restart", "always"]) else {
        return;
    };
    let before = (world.inventories(), process(&world));
    for (mode, hook, code, text) in [
        ("cold", "echo sorry >&2; exit 3", "hook.failed", "sorry"),
        ("warm", "sleep 60", "hook.timeout", "within 1 s"),
        ("cold", "no-such-command-here", "hook.failed", "127"),
    ] {
        world
            .migrate(&[
                "--mode",
                mode,
                "--hook-pre-freeze",
                hook,
                "--hook-timeout",
                "1",
                "--hook-post-freeze",
                "touch /run/was-frozen",
                "--hook-thaw",
                "echo thawed >> /data/notes",
            ])
            .expect(4)
            .saying(&[code, text, "rolled back"]);
        assert_eq!((world.inventories(), process(&world)), before, "{hook}");
    }
    assert_eq!(
        notes(&world, &world.a),
        "begun\nthawed\nthawed\nthawed\n",
        "the thaw hook ran each time"
    );
    assert!(
        !world.a.exec(["test", "-e", "/run/was-frozen"]).unwrap().success(),
        "it was frozen"
    );
}

#[test]
fn a_hook_that_fails_in_the_freeze_or_after_it_puts_the_source_back() {
    let Some(world) = hooked(&["--restart", "always"]) else {
        return;
    };
    let before = (world.inventories(), process(&world));
    // Paused and going on: the same process as before, if it is not decided yet that it goes. Else it starts afresh.
    for (flag, hook, code) in [
        ("--hook-post-freeze", "exit 4", "hook.failed"),
        ("--hook-post-freeze", "sleep 60", "hook.timeout"),
        ("--hook-post-start", "exit 5", "hook.failed"),
        ("--hook-post-start", "sleep 60", "hook.timeout"),
    ] {
        world
            .migrate(&[
                "--mode",
                "warm",
                flag,
                hook,
                "--hook-timeout",
                "1",
                "--hook-pre-freeze",
                "echo quiet >> /data/notes",
                "--hook-thaw",
                "echo loud >> /data/notes",
            ])
            .expect(4)
            .saying(&[code, "rolled back"]);
        assert_eq!(world.inventories(), before.0, "{flag} {hook}");
        if flag == "--hook-post-freeze" {
            assert_eq!(process(&world), before.1, "{flag} {hook}");
        } else {
            assert!(process(&world).ends_with(" 0 running"), "{flag} {hook}");
        }
    }
    assert_eq!(
        notes(&world, &world.a),
        format!("begun\n{}", "quiet\nloud\n".repeat(4))
    );
    // Stopped and started again.
    for flag in ["--hook-post-freeze", "--hook-post-start"] {
        world
            .migrate(&["--mode", "cold", flag, "false"])
            .expect(4)
            .saying(&["hook.failed"]);
        assert!(is_running(&world.a, "web"), "{flag}");
        assert_eq!(world.inventories(), before.0, "{flag}");
        assert_eq!(
            inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
            "always"
        );
    }
    world
        .migrate(&["--mode", "warm", "--hook-post-start", "true"])
        .expect(0);
    assert_none(&world.differences(&volume("data"), &volume("data")), "after all");
}

#[test]
fn a_hook_that_cannot_be_is_refused() {
    let Some(world) = hooked(&["--label", "tranship.hook.post-freeze=true"]) else {
        return;
    };
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["hook.frozen"]);
    let file = world.state.path().join("hooks.toml");
    for text in [
        "[[hook]]\nwhen = \"never\"\ncommand = \"true\"",
        "[[hook]]\nwhen = \"thaw\"\ncomand = \"x\"",
        "when",
    ] {
        std::fs::write(&file, text).unwrap();
        world
            .migrate(&["--mode", "cold", "--hooks", file.to_str().unwrap()])
            .expect(2)
            .saying(&["usage.hooks"]);
    }
}
