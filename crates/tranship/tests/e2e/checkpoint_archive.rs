//! Memory that leaves its node as an archive, and comes back to it.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tranship_testkit::testbed::Link;

use crate::checkpoint::{STORE, counts_on, state};
use crate::live::{nothing_dumped, numbers, without_gap};
use crate::world::{Outcome, World, finish, is_running, reached, wait_until};

/// What is in the memory of the counter.
const SCRIPT: &str = "while :; do";

impl World {
    pub(crate) fn archive(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// Exports `web@…` into a file.
    pub(crate) fn export(&self, what: &str, file: &Path, options: &[&str]) -> Outcome {
        let mut all = vec!["-o", file.to_str().unwrap()];
        all.extend(options);
        self.checkpoint("export", what, &all)
    }

    /// Imports a file.
    pub(crate) fn import(&self, file: &Path, container: &str, options: &[&str]) -> Outcome {
        let mut args = vec!["checkpoint", "import", file.to_str().unwrap(), container];
        args.extend(options);
        self.run(&args)
    }
}

/// Where a text begins.
fn position(content: &[u8], text: &str) -> Option<usize> {
    let mut windows = content.windows(text.len());
    windows.position(|part| part == text.as_bytes())
}

/// What is among the checkpoints of a node, notes about exported ones left out.
fn kept(world: &World) -> String {
    let find = format!("find {STORE} -mindepth 2 -maxdepth 2 ! -name '.exported-*'");
    world.a.sh(&find).unwrap()
}

/// How many notes there are that containers of exported checkpoints were started since.
fn started_since(world: &World) -> usize {
    let find = format!("find {STORE} -path '*/.exported-*/started-since'");
    world.a.sh(&find).unwrap().lines().count()
}

#[test]
fn an_exported_checkpoint_comes_back_and_goes_on_once() {
    let world = world!();
    world.count(&["-v", "data:/srv"]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let before = numbers(&world.a);
    let (plain, small, sealed) = (
        world.archive("plain.tar"),
        world.archive("small.tar.zst"),
        world.archive("sealed.tar"),
    );

    // Whether others can read it is for its user to say.
    world.export("web@one", &plain, &[]).expect(2);
    world
        .export("web@one", &plain, &["--encrypted", "--unencrypted"])
        .expect(2);
    let options = ["--unencrypted", "--compress", "none", "--json"];
    let exported = world
        .export("web@one", &plain, &options)
        .expect(0)
        .saying(&["passwords and keys"]);
    let size = std::fs::metadata(&plain).unwrap().len();
    assert_eq!(exported.json()["bytes"], size);
    assert_eq!(exported.json()["memory"], "unencrypted");
    world.export("web", &small, &["--unencrypted"]).expect(0);
    world.export("web@one", &sealed, &["--encrypted"]).expect(0);
    for file in [&plain, &small, &sealed] {
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(position(&std::fs::read(&sealed).unwrap(), SCRIPT), None);
    assert!(std::fs::metadata(&small).unwrap().len() < size / 2);
    let listed = |file: &Path| {
        let listed = Command::new("tar").arg("-tf").arg(file).output().unwrap();
        assert!(listed.status.success());
        String::from_utf8(listed.stdout).unwrap()
    };
    let names = listed(&plain);
    let begins = "tranship.json\ntranship.hmac\nconfig.dump\nspec.dump\ncheckpoint/\ncheckpoint/";
    assert!(names.starts_with(begins), "{names}");
    for name in ["checkpoint/inventory.img", "checkpoint/files.img"] {
        assert!(names.contains(name), "{names}");
    }
    assert_eq!(listed(&sealed), "tranship.json\ntranship.hmac\nmemory.sealed\n");
    world
        .export("web@one", &plain, &["--encrypted"])
        .expect(1)
        .saying(&["archive.exists"]);
    let left = std::fs::read_dir(world.state.path()).unwrap();
    let part = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".part")
    });
    assert_eq!(part.count(), 0);

    // As long as it is there, nothing has to come back.
    let web = "ssh://root@a//web";
    world
        .import(&sealed, web, &["--name", "two"])
        .expect(1)
        .saying(&["checkpoint.present"]);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert!(world.checkpoints().is_empty());
    assert_eq!(world.policy(), "always");

    // What is not this checkpoint, of this container and of this node, whole and unchanged, leaves nothing.
    let image = world.a.load_image("busybox").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "other",
        image.as_str(),
        "sleep",
        "9999",
    ];
    world.a.exec_ok(run).unwrap();
    for file in [&plain, &sealed] {
        world
            .import(file, "ssh://root@a//other", &[])
            .expect(1)
            .saying(&["checkpoint.other-container"]);
    }
    let damaged = world.archive("damaged.tar");
    let content = std::fs::read(&plain).unwrap();
    let at = |text: &str| position(&content, text).unwrap();
    // Its command is in spec.dump as well.
    let in_memory = at("checkpoint/pages-") + position(&content[at("checkpoint/pages-")..], SCRIPT).unwrap();
    for (place, code) in [
        (at("started_at") + 14, "checkpoint.foreign"),
        (in_memory, "checkpoint.archive"),
    ] {
        let mut content = content.clone();
        content[place] ^= 1;
        std::fs::write(&damaged, &content).unwrap();
        world.import(&damaged, web, &[]).expect(1).saying(&[code]);
        assert_eq!(kept(&world), "");
    }
    for file in [&plain, &small, &sealed] {
        let content = std::fs::read(file).unwrap();
        std::fs::write(&damaged, &content[..content.len() - 600]).unwrap();
        world
            .import(&damaged, web, &[])
            .expect(1)
            .saying(&["checkpoint.archive"]);
        assert_eq!(kept(&world), "");
    }
    assert_eq!(world.policy(), "always");

    let imported = world
        .import(&small, web, &["--name", "two", "--json"])
        .expect(0)
        .json();
    assert_eq!(imported["name"], "two");
    assert_eq!(imported["state"], "ready");
    assert_eq!(world.policy(), "no", "it waits, as before");
    let modes = world.a.sh(&format!("find {STORE} -printf '%m %y\\n' | sort -u"));
    assert_eq!(modes.unwrap().trim(), "600 f\n700 d");
    let readable = world
        .a
        .sh(&format!("grep -rlaF '{SCRIPT}' {STORE} || true"))
        .unwrap();
    assert_eq!(readable, "", "it can be read on the disk");
    world
        .import(&sealed, web, &[])
        .expect(1)
        .saying(&["checkpoint.present"]);
    world.checkpoint("restore", "web@two", &[]).expect(0);
    counts_on(&world);
    let all = numbers(&world.a);
    without_gap(&all);
    assert!(all.len() > before.len());
    assert_eq!(world.policy(), "always");
    nothing_dumped(&world.a);

    // Once is once, whatever is kept elsewhere.
    let used = |world: &World| {
        for file in [&plain, &small, &sealed] {
            world
                .import(file, web, &[])
                .expect(1)
                .saying(&["checkpoint.started-since"]);
        }
        assert_eq!(kept(world), "");
        assert!(world.checkpoints().is_empty());
    };
    used(&world);
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    used(&world);
    assert_eq!(state(&world.a), "exited");
    // The notes go with the container.
    world.a.exec_ok(["docker", "rm", "web"]).unwrap();
    world.import(&sealed, web, &[]).expect(1);
    world.a.kill_running("agent --serve");
    assert!(world.checkpoints().is_empty());
    assert_eq!(world.a.sh(&format!("ls -A {STORE}")).unwrap(), "");
}

#[test]
fn other_nodes_and_other_keys_take_nothing_back() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let (plain, sealed) = (world.archive("plain.tar"), world.archive("sealed.tar"));
    world.export("web@one", &plain, &["--unencrypted"]).expect(0);
    world.export("web@one", &sealed, &["--encrypted"]).expect(0);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    let image = world.b.load_image("python").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        image.as_str(),
        "sleep",
        "9999",
    ];
    world.b.exec_ok(run).unwrap();
    let there = "ssh://root@b//web";
    let refused = |code: &str| {
        for file in [&plain, &sealed] {
            world.import(file, there, &[]).expect(1).saying(&[code]);
        }
    };
    refused("checkpoint.key");
    let create = ["checkpoint", "create", "--leave-running", there, "--name", "own"];
    world.run(&create).expect(0);
    refused("checkpoint.foreign");
    let list = world
        .run(&["checkpoint", "ls", "ssh://root@b", "--json"])
        .expect(0);
    assert_eq!(list.json().as_array().unwrap().len(), 1);

    // A file that a shell makes is as open as the shell has it.
    let open = world.archive("open.tar");
    world.import(&sealed, "ssh://root@a//web", &[]).expect(0);
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let to = File::create(&open).unwrap();
        to.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        let export = ["checkpoint", "export", "ssh://root@a//web@one", "--unencrypted"];
        let mut command = world.command(&export);
        command.stdout(to);
        let said = finish(command.spawn().unwrap()).expect(0).stderr;
        assert_eq!(said.contains("can be read by others"), warned, "{said}");
    }
    world.checkpoint("rm", "web@one", &[]).expect(0);

    // Through pipes, as to and from another program.
    let piped = world.archive("piped.tar");
    world.import(&sealed, "ssh://root@a//web", &[]).expect(0);
    let export = ["checkpoint", "export", "ssh://root@a//web@one", "--encrypted"];
    let mut command = world.command(&export);
    command.stdout(File::create(&piped).unwrap());
    finish(command.spawn().unwrap()).expect(0);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    let mut command = world.command(&["checkpoint", "import", "-", "ssh://root@a//web"]);
    command.stdin(File::open(&piped).unwrap());
    finish(command.spawn().unwrap()).expect(0);
    world.checkpoint("restore", "web", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
}

#[test]
fn agents_that_die_while_a_checkpoint_comes_back_leave_nothing() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let file = world.archive("plain.tar");
    world.export("web@one", &file, &["--unencrypted"]).expect(0);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    let web = "ssh://root@a//web";
    world.arm(&world.a, "checkpoint.imported=die");
    assert_ne!(world.import(&file, web, &[]).code, 0);
    assert!(reached(&world.a, "checkpoint.imported"));
    world.arm(&world.a, "");
    assert!(world.checkpoints().is_empty());
    assert_eq!(kept(&world), "");
    assert_eq!(world.policy(), "always");

    // Nothing else begins with the container meanwhile, and one that is started by hand then does not get it any more.
    world.a.sh("rm -f /run/tranship/fail-point.reached").unwrap();
    world.arm(&world.a, "checkpoint.imported=hold");
    let args = ["checkpoint", "import", file.to_str().unwrap(), web];
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| reached(&world.a, "checkpoint.imported"));
    world
        .checkpoint("create", "web", &[])
        .expect(1)
        .saying(&["checkpoint.not-running"]);
    assert!(world.checkpoints().is_empty(), "it is listed before it is whole");
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.arm(&world.a, "");
    finish(child).expect(1).saying(&["checkpoint.started-since"]);
    assert_eq!(kept(&world), "");
    assert_eq!(world.policy(), "always");

    // Nor one that is started at the very moment when its policy is parked.
    world.checkpoint("create", "web", &["--name", "mid"]).expect(0);
    let mid = world.archive("mid.tar");
    world.export("web@mid", &mid, &["--encrypted"]).expect(0);
    world.checkpoint("rm", "web@mid", &[]).expect(0);
    world.arm(&world.a, "checkpoint.parked=hold");
    let args = ["checkpoint", "import", mid.to_str().unwrap(), web];
    let child = world.command(&args).spawn().unwrap();
    let before = started_since(&world);
    wait_until(|| reached(&world.a, "checkpoint.parked"));
    assert_eq!(world.policy(), "no");
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.arm(&world.a, "");
    finish(child).expect(1).saying(&["checkpoint.started-since"]);
    assert_eq!(kept(&world), "");
    assert_eq!(world.policy(), "always");
    // An engine may forget that start, so it is noted for every copy.
    assert_eq!(started_since(&world), before + 1);

    // Nor does one that is started by hand after it came back.
    world.checkpoint("create", "web", &["--name", "two"]).expect(0);
    let second = world.archive("second.tar");
    world.export("web@two", &second, &["--encrypted"]).expect(0);
    world.checkpoint("rm", "web@two", &[]).expect(0);
    world.import(&second, web, &[]).expect(0);
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    assert_eq!(world.checkpoints()[0]["state"], "started-since");
    for options in [&[][..], &["--changed-files"]] {
        world
            .checkpoint("restore", "web@two", options)
            .expect(1)
            .saying(&["checkpoint.started-since"]);
    }
    world
        .import(&second, web, &["--name", "three"])
        .expect(1)
        .saying(&["checkpoint.started-since"]);
    assert!(!is_running(&world.a, "web"));
}

#[test]
fn a_restore_while_it_is_exported_leaves_no_copy_that_is_worth_something() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let file = world.archive("late.tar");
    world.arm(&world.a, "checkpoint.noted=hold");
    let export = [
        "checkpoint",
        "export",
        "ssh://root@a//web@one",
        "--encrypted",
        "-o",
        file.to_str().unwrap(),
    ];
    let child = world.command(&export).spawn().unwrap();
    wait_until(|| reached(&world.a, "checkpoint.noted"));
    world.checkpoint("restore", "web@one", &[]).expect(0);
    counts_on(&world);
    world.arm(&world.a, "");
    finish(child).expect(1).saying(&["checkpoint.started-since"]);
    assert!(!file.exists());
}

#[test]
fn what_moved_away_does_not_come_back_even_when_that_is_long_ago() {
    let world = world!();
    world.count(&[]);
    let options = ["--name", "one", "--leave-running"];
    world.checkpoint("create", "web", &options).expect(0);
    let file = world.archive("sealed.tar");
    world.export("web@one", &file, &["--encrypted"]).expect(0);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    // One that was left running goes back as often as it is asked to.
    let web = "ssh://root@a//web";
    world.import(&file, web, &[]).expect(0);
    assert!(is_running(&world.a, "web"));
    assert_eq!(world.policy(), "always");
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    for _ in 0..2 {
        world.checkpoint("restore", "web", &[]).expect(0);
        counts_on(&world);
        world.checkpoint("rm", "web@one", &[]).expect(0);
        world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
        world.import(&file, web, &[]).expect(0);
    }
    world.checkpoint("rm", "web@one", &[]).expect(0);
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.migrate(&["--mode", "cold"]).expect(0);
    let refused = || {
        world
            .import(&file, web, &[])
            .expect(1)
            .saying(&["container.moved"]);
        assert_eq!(kept(&world), "");
        assert!(!is_running(&world.a, "web"));
    };
    // An agent that begins notes it, and the record may go.
    world.a.kill_running("agent --serve");
    world.checkpoints();
    world.a.kill_running("agent --serve");
    world
        .a
        .sh("rm /var/lib/tranship/agent/departures/*.journal")
        .unwrap();
    refused();
    // Without the note it is not taken for one that stayed.
    world.a.sh(&format!("rm -r {STORE}/*/.exported-*")).unwrap();
    world
        .import(&file, web, &[])
        .expect(1)
        .saying(&["checkpoint.not-exported"]);
}

#[test]
fn an_export_that_breaks_off_leaves_no_file() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    let script = "import os, time\nkept = os.urandom(300 << 20)\nprint('ready', flush=True)\nwhile True: time.sleep(1)";
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        image.as_str(),
        "python3",
        "-c",
        script,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| {
        world
            .a
            .exec_ok(["docker", "logs", "web"])
            .unwrap()
            .contains("ready")
    });
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let directory = world.archive("archives");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("one.tar");
    let export = [
        "checkpoint",
        "export",
        "ssh://root@a//web@one",
        "--unencrypted",
        "--compress",
        "none",
        "-o",
        file.to_str().unwrap(),
    ];
    let begun = || {
        let child = world.command(&export).spawn().unwrap();
        while !std::fs::read_dir(&directory).unwrap().any(|entry| {
            let entry = entry.unwrap();
            entry.metadata().is_ok_and(|about| about.len() > 0)
        }) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    };
    let nothing_left = || assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    // Slowly enough that it is under way whenever this machine gets to break it off.
    world.a.set_link(Link::Rate("200mbit")).unwrap();
    let child = begun();
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
    finish(child).expect(4).saying(&["archive.aborted"]);
    nothing_left();
    let child = begun();
    assert!(world.a.kill_running("agent --serve") > 0);
    assert_ne!(finish(child).code, 0);
    nothing_left();
    world.a.set_link(Link::Up).unwrap();
    // Nothing was done to the checkpoint.
    world.run(&export).expect(0);
    world.checkpoint("restore", "web", &[]).expect(0);
    assert!(is_running(&world.a, "web"));
}
