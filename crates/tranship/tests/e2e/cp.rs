//! `tranship cp` against a real engine: what docker's own tests and its users expect of `docker cp`.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::world::{Outcome, World, finish, inspect};

/// Containers `c1`, which runs, and `k1`, which was never started, on one host, and files of this machine.
struct Bench {
    world: World,
    files: PathBuf,
}

macro_rules! bench {
    () => {
        match Bench::new() {
            Some(bench) => bench,
            None => return,
        }
    };
}

impl Bench {
    fn new() -> Option<Self> {
        let world = World::with(tranship_testkit::testbed::Options::default())?;
        let image = world.a.load_image("busybox").unwrap();
        for start in [
            vec!["run", "-d", "--name", "c1", "--network", "none", "-w", "/home"],
            vec!["create", "--name", "k1", "--network", "none"],
        ] {
            let mut args = vec!["docker"];
            args.extend(start);
            args.extend([image.as_str(), "sleep", "86400"]);
            world.a.exec_ok(&args).unwrap();
        }
        let files = world.state.path().join("files");
        std::fs::create_dir_all(files.join("d/b")).unwrap();
        std::fs::create_dir_all(files.join("o")).unwrap();
        std::fs::write(files.join("f"), "F\n").unwrap();
        std::fs::write(files.join("d/a"), "a\n").unwrap();
        std::fs::write(files.join("d/b/bb"), "bb\n").unwrap();
        let bench = Self { world, files };
        bench.shell("mkdir -p /tmp /td/e /some/path; echo T >/t; echo x >/td/x; echo inner >/some/path/test");
        Some(bench)
    }

    /// Runs a command of the shell in `c1`.
    fn shell(&self, command: &str) -> String {
        let args = ["docker", "exec", "c1", "sh", "-c", command];
        self.world.a.exec_ok(args).unwrap()
    }

    /// `tranship cp` in the directory of files; `c1:…` and `k1:…` are on host a.
    fn cp(&self, args: &[&str]) -> Outcome {
        self.cp_with(args, None)
    }

    fn cp_with(&self, args: &[&str], input: Option<&[u8]>) -> Outcome {
        let mut all = vec!["cp".to_owned()];
        for arg in args {
            let remote = ["c1:", "k1:", "ro:", "volume:"]
                .iter()
                .any(|name| arg.starts_with(name));
            let node = if remote { "ssh://root@a//" } else { "" };
            all.push(format!("{node}{arg}"));
        }
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut command = self.world.command(&all);
        command.current_dir(&self.files);
        if let Some(input) = input {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(input).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            command.stdin(file);
        }
        finish(command.spawn().unwrap())
    }

    #[track_caller]
    fn done(&self, args: &[&str]) {
        self.cp(args).expect(0);
    }

    #[track_caller]
    fn refused(&self, args: &[&str], text: &str) {
        self.cp(args).expect(1).saying(&[text]);
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.files.join(path)).unwrap()
    }
}

#[test]
fn in_by_the_rules_of_docker() {
    let b = bench!();
    b.done(&["f", "c1:/tmp"]);
    b.done(&["f", "c1:/tmp/new"]);
    b.done(&["f", "c1:tmp/rel"]);
    assert_eq!(b.shell("cat /tmp/f /tmp/new /tmp/rel"), "F\nF\nF\n");
    b.refused(&["f", "c1:/nodir/"], "no such directory");
    b.refused(&["f", "c1:/no/such/x"], "Could not find the file /no/such");
    b.done(&["d/a", "c1:/tmp/new"]);
    b.done(&["d", "c1:/tmp"]);
    b.done(&["d", "c1:/newd"]);
    b.done(&["d/.", "c1:/tmp"]);
    let seen = b.shell("cat /tmp/new /tmp/d/b/bb /newd/a /tmp/a; ls -d /newd/d 2>/dev/null || echo none");
    assert_eq!(seen, "a\nbb\na\na\nnone\n");
    b.refused(&["d", "c1:/etc/passwd"], "cannot copy directory");
    b.shell("mkdir -p /s/dir; ln -s t /s/l; ln -s dir /s/ld");
    b.done(&["f", "c1:/s/l"]);
    b.done(&["f", "c1:/s/ld"]);
    assert_eq!(b.shell("cat /s/t /s/dir/f; readlink /s/l"), "F\nF\nt\n");
    b.refused(&["f", "d"], "must specify at least one container");
    std::fs::write(b.files.join("a:b"), "AB").unwrap();
    b.done(&["./a:b", "c1:/tmp"]);
    assert_eq!(b.shell("cat /tmp/a:b"), "AB");
    b.done(&["f", "d", "c1:/td/e"]);
    b.refused(&["f", "d", "c1:/td/none"], "must be a directory");
    b.done(&["--chown", "7:8", "f", "c1:/tmp/own"]);
    b.done(&["--exclude", "b", "d", "c1:/tmp/some"]);
    assert_eq!(
        b.shell("stat -c %u:%g /tmp/own; ls /tmp/some /td/e"),
        "7:8\n/td/e:\nd\nf\n\n/tmp/some:\na\n"
    );
}

#[test]
fn out_by_the_rules_of_docker() {
    let b = bench!();
    b.done(&["c1:/t", "o"]);
    b.done(&["c1:/t", "o/n"]);
    b.done(&["c1:/td", "o/new"]);
    b.done(&["c1:/td/.", "o"]);
    assert_eq!(
        b.read("o/t") + &b.read("o/n") + &b.read("o/new/x") + &b.read("o/x"),
        "T\nT\nx\nx\n"
    );
    b.refused(&["c1:/t", "o/miss/"], "no such directory");
    b.refused(&["c1:/t", "o/miss/x"], "does not exist");
    b.refused(&["c1:/td", "o/n"], "cannot copy directory");
    b.refused(&["c1:/td/.", "o/n"], "cannot copy directory");
    b.refused(&["c1:/nope", "o"], "Could not find the file /nope");
    b.refused(&["c1:/etc/passwd/", "o"], "not a directory");
    b.shell("ln -s /some/path/test /al; ln -s /nope /dang; echo 7 >/te:s:t");
    b.done(&["c1:/al", "o"]);
    b.done(&["c1:/dang", "o"]);
    let link = |name: &str| std::fs::read_link(b.files.join(name)).unwrap();
    assert_eq!(link("o/al"), Path::new("/some/path/test"));
    assert_eq!(link("o/dang"), Path::new("/nope"));
    b.done(&["-L", "c1:/al", "o/r"]);
    b.refused(&["-L", "c1:/dang", "o"], "/nope");
    b.done(&["c1:/../../some/path/test", "o"]);
    b.done(&["c1:/te:s:t", "o"]);
    assert_eq!(
        b.read("o/r") + &b.read("o/test") + &b.read("o/te:s:t"),
        "inner\ninner\n7\n"
    );
    symlink("t", b.files.join("o/lt")).unwrap();
    symlink("nx", b.files.join("o/lb")).unwrap();
    for to in ["o/lt", "o/lb"] {
        b.done(&["c1:/td/x", to]);
    }
    assert_eq!(b.read("o/t") + &b.read("o/nx"), "x\nx\n");
    assert_eq!((link("o/lt"), link("o/lb")), ("t".into(), "nx".into()));
}

#[test]
fn patterns_are_matched_at_the_container_s_end() {
    let b = bench!();
    b.shell("mkdir -p /g/in /g/inner; for f in a.log b.log b.log.1 .c.log in/d.log inner/e.log 'x*'; do echo $f >\"/g/$f\"; done");
    b.shell("ln -s /g/in /g/link");
    let names = |directory: &str| {
        let entries = std::fs::read_dir(b.files.join(directory)).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    };
    for (pattern, found) in [
        ("c1:/g/*.log", "a.log b.log"),
        ("c1:/g/[!a]*.log*", "b.log b.log.1"),
        ("c1:/g/.*", ".c.log"),
        // Components, never beginnings of texts; and a link on the way is followed in the container.
        ("c1:/g/in/*", "d.log"),
        ("c1:/g/*n*/?.log", "d.log e.log"),
        ("c1:/g/l*", "link"),
        ("c1:/g/x\\*", "x*"),
        // The engine only gives whole directories out of one that never ran.
        ("k1:/e?c/pass*", "passwd"),
    ] {
        let _ = std::fs::remove_dir_all(b.files.join("o"));
        std::fs::create_dir(b.files.join("o")).unwrap();
        b.done(&["--glob", pattern, "o"]);
        assert_eq!(names("o"), found, "{pattern}");
    }
    b.refused(&["--glob", "c1:/g/*.txt", "o"], "nothing matches /g/*.txt");
    b.refused(&["--glob", "c1:/g/*.log", "o/none"], "must be a directory");
    b.refused(&["--glob", "c1:/g/*.log", "-"], "one source");
    // Without the option they are names.
    b.refused(&["c1:/g/*.log", "o"], "Could not find the file /g/*.log");
    b.done(&["c1:/g/x*", "o"]);
    b.done(&["--glob", "c1:/g/*.log", "k1:/tmp"]);
}

#[test]
fn names_modes_and_times_survive() {
    let b = bench!();
    let names = b.files.join("nm");
    std::fs::create_dir(&names).unwrap();
    let long = "l".repeat(200);
    for name in ["a b", "ü", "n\nl", "b\\s", "-x", long.as_str()] {
        std::fs::write(names.join(name), name).unwrap();
    }
    let old = names.join("-x");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o640)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_millis(981_173_106_789);
    std::fs::File::open(&old).unwrap().set_modified(then).unwrap();
    b.done(&["nm", "c1:/tmp"]);
    b.done(&["c1:/tmp/nm", "o"]);
    for name in ["a b", "ü", "n\nl", "b\\s", "-x", long.as_str()] {
        assert_eq!(b.read(&format!("o/nm/{name}")), name);
    }
    let back = std::fs::metadata(b.files.join("o/nm/-x")).unwrap();
    assert_eq!(back.permissions().mode() & 0o7777, 0o640);
    let whole = std::time::UNIX_EPOCH + std::time::Duration::from_secs(981_173_106);
    assert_eq!(back.modified().unwrap(), whole);
}

#[test]
fn archives_in_and_out() {
    let b = bench!();
    let tar = |flags: &str| {
        let output = std::process::Command::new("tar")
            .args([&format!("c{flags}"), "-C"])
            .arg(&b.files)
            .arg("d")
            .output()
            .unwrap();
        output.stdout
    };
    for flags in ["", "z", "j", "J"] {
        b.shell("rm -rf /tmp/d");
        b.cp_with(&["-", "c1:/tmp"], Some(&tar(flags))).expect(0);
        assert_eq!(b.shell("cat /tmp/d/b/bb"), "bb\n", "tar c{flags}");
    }
    for to in ["c1:/t", "c1:/miss"] {
        let refused = b.cp_with(&["-", to], Some(&tar("")));
        refused.expect(1).saying(&["must be a directory"]);
    }
    b.cp_with(&["-", "c1:/tmp"], Some(b"garbage")).expect(1);
    b.cp_with(&["-", "c1:/tmp"], Some(b"")).expect(0);
    let whole = tar("z");
    b.cp_with(&["-", "c1:/tmp"], whole.get(..whole.len() / 2))
        .expect(1);
    let out = b.cp(&["c1:/td", "-"]).expect(0).stdout;
    assert!(out.starts_with("td/\0") && out.contains("td/x\0"));
}

#[test]
fn every_state_of_a_container() {
    let b = bench!();
    let docker = |args: &[&str]| {
        let mut all = vec!["docker"];
        all.extend(args);
        b.world.a.exec_ok(&all).unwrap()
    };
    let state = |name: &str| inspect(&b.world.a, name, "{{.State.Status}}");
    b.done(&["f", "k1:/tmp"]);
    b.done(&["k1:/bin/busybox", "o"]);
    b.done(&["c1:/t", "k1:/tmp/from-c1"]);
    // Docker itself hangs here for ever.
    b.done(&["k1:/bin/busybox", "k1:/tmp/again"]);
    assert_eq!(state("k1"), "created");
    docker(&["start", "k1"]);
    assert_eq!(docker(&["exec", "k1", "cat", "/tmp/f", "/tmp/from-c1"]), "F\nT\n");
    docker(&["pause", "c1"]);
    b.done(&["f", "c1:/tmp/paused"]);
    b.done(&["c1:/t", "o"]);
    assert_eq!(state("c1"), "paused");
    docker(&["unpause", "c1"]);
    docker(&["kill", "c1"]);
    b.done(&["d", "c1:/tmp"]);
    b.refused(&["f", "c1:/no/such/x"], "Could not find the file /no/such");
    docker(&["start", "c1"]);
    assert_eq!(b.shell("cat /tmp/d/a /tmp/paused"), "a\nF\n");
}

#[test]
fn mounts_and_what_is_read_only() {
    let b = bench!();
    let image = b.world.a.load_image("busybox").unwrap();
    b.world.a.sh("echo host >/srv/bf").unwrap();
    let run = |name: &str, options: &[&str]| {
        let mut args = vec!["docker", "run", "-d", "--name", name, "--network", "none"];
        args.extend(options);
        args.extend([image.as_str(), "sleep", "86400"]);
        b.world.a.exec_ok(&args).unwrap();
    };
    let mounts = [
        "-v",
        "rv:/r:ro",
        "-v",
        "wv:/w",
        "-v",
        "/srv/bf:/bf",
        "--tmpfs",
        "/m",
        "--read-only",
    ];
    run("ro", &mounts);
    b.refused(&["f", "ro:/tmp"], "container rootfs is marked read-only");
    b.refused(&["f", "ro:/r"], "mounted volume is marked read-only");
    b.done(&["ro:/etc/passwd", "o"]);
    b.done(&["ro:/bf", "o"]);
    b.done(&["f", "ro:/w"]);
    b.done(&["f", "ro:/m"]);
    b.done(&["d", "volume:wv:/"]);
    b.done(&["volume:wv:/d/b", "o"]);
    let seen = b
        .world
        .a
        .exec_ok(["docker", "exec", "ro", "cat", "/w/f", "/m/f", "/w/d/a"])
        .unwrap();
    assert_eq!((seen.as_str(), b.read("o/b/bb").as_str()), ("F\nF\na\n", "bb\n"));
}

#[test]
fn a_mount_point_is_never_replaced() {
    let b = bench!();
    let image = b.world.a.load_image("busybox").unwrap();
    b.world.a.sh("echo host >/srv/bf").unwrap();
    let args = [
        "docker",
        "run",
        "-d",
        "--name",
        "ro",
        "-v",
        "/srv/bf:/bf",
        image.as_str(),
        "sleep",
        "86400",
    ];
    b.world.a.exec_ok(args).unwrap();
    b.refused(&["f", "ro:/bf"], "busy");
    b.refused(&["f", "ro:/etc/hosts"], "busy");
    let seen = b.world.a.exec_ok(["docker", "exec", "ro", "cat", "/bf"]).unwrap();
    assert_eq!(seen, "host\n");
}

#[test]
fn opposite_copies_at_once_do_not_wait_for_each_other() {
    let b = bench!();
    let docker = |args: &[&str]| b.world.a.exec_ok(args).unwrap();
    // More than all buffers between the two ends together: each download goes on while the other copy's upload begins.
    b.shell("dd if=/dev/zero of=/big bs=1M count=150 2>/dev/null");
    docker(&["docker", "kill", "c1"]);
    b.done(&["c1:/big", "k1:/big"]);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| b.done(&["c1:/big", "k1:/tmp/x"]));
            scope.spawn(|| b.done(&["k1:/big", "c1:/tmp/x"]));
        });
    }
    b.done(&["k1:/big", "k1:/tmp/within"]);
}

#[test]
fn many_copies_at_once() {
    let b = bench!();
    // The first one brings the program to the host.
    b.done(&["c1:/t", "o"]);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let b = &b;
            scope.spawn(move || {
                b.done(&["d", &format!("c1:/tmp/in{number}")]);
                b.done(&["c1:/td", &format!("o/out{number}")]);
            });
        }
    });
    assert_eq!(b.shell("cat /tmp/in*/a | wc -l").trim(), "10");
}

#[test]
fn docker_s_own_client_is_answered() {
    let b = bench!();
    b.done(&["c1:/t", "o"]);
    let script = r#"
        S=unix://$(ls /run/tranship/docker*.sock | head -n 1)
        echo in >/tmp/in && docker -H $S cp /tmp/in c1:/tmp && docker -H $S cp c1:/td /tmp/out || exit 9
        cat /tmp/out/x
        docker -H $S cp c1:/nope /tmp 2>&1; docker -H $S cp k1:/bin/busybox - | tar t
    "#;
    let seen = b.world.a.sh(script).unwrap();
    assert!(seen.contains("x\n") && seen.contains("busybox"), "{seen}");
    assert!(
        seen.contains("Could not find the file /nope in container c1"),
        "{seen}"
    );
    assert_eq!(b.shell("cat /tmp/in"), "in\n");
}
