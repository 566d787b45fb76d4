//! Live mode by itself, where nothing speaks against it, and cold mode where something turns out to.

use super::{nothing_dumped, numbers, without_gap};
use crate::world::{inspect, is_running, migrate_args, wait_until};

/// Counts into its volume, and watches a child as a debugger does: what is watched already, CRIU cannot stop.
const WATCHED: &str = "import ctypes, os, signal, time
child = os.fork()
if child == 0:
    while True: time.sleep(1)
libc = ctypes.CDLL(None)
assert libc.ptrace(16, child, 0, 0) == 0
os.waitpid(child, 0)
assert libc.ptrace(7, child, 0, 0) == 0
i = 0
while True:
    i += 1; print(i, flush=True); open('/srv/count', 'w').write(str(i)); time.sleep(0.05)";

#[test]
fn auto_takes_memory_along_where_nothing_speaks_against_it() {
    let world = world!();
    world.count(&["-v", "data:/srv"]);
    let mut args = migrate_args("web", "a", "b", &["--json"]);
    args[0] = "plan";
    let plan = &world.run(&args).expect(0).json()[0];
    assert_eq!(
        (&plan["mode"], &plan["options"]["mode"]),
        (&"live".into(), &"auto".into())
    );
    args.pop();
    let shown = world.run(&args).expect(0).stdout;
    for words in ["live: it is paused here", "because", "it keeps state"] {
        assert!(shown.contains(words), "{words:?} is not in\n{shown}");
    }
    let view = world.migrate(&["--json"]).expect(0).json()[0].clone();
    assert_eq!(
        (&view["mode"], &view["status"]),
        (&"live".into(), &"complete".into())
    );
    assert!(view["mode_reason"].as_str().unwrap().contains("memory"));
    wait_until(|| numbers(&world.b).len() > 5);
    let (here, there) = (numbers(&world.a), numbers(&world.b));
    without_gap(&[here, there].concat());
    nothing_dumped(&world.a);

    // One end that cannot is enough for cold mode, which says why.
    world.b.sh("mv $(command -v criu) /tmp/criu.away").unwrap();
    let options = [
        "--json",
        "--on-source",
        "remove",
        "--replace",
        "--volume-conflict",
        "replace",
    ];
    let view = world.migrate_between("b", "a", &options).expect(0).json()[0].clone();
    assert_eq!(
        (&view["mode"], &view["status"]),
        (&"cold".into(), &"complete".into())
    );
    let why = view["mode_reason"].as_str().unwrap();
    assert!(why.contains("not live: at the source: there is no CRIU"), "{why}");
    wait_until(|| numbers(&world.a).first() == Some(&1));
}

#[test]
fn what_only_a_dump_can_tell_makes_it_cold_in_the_same_command() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        "-v",
        "data:/srv",
        "--restart",
        "always",
        "--stop-signal",
        "KILL",
        &image,
        "python3",
        "-c",
        WATCHED,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| numbers(&world.a).len() > 5);
    let before = world.inventories();
    let life = inspect(&world.a, "web", "{{.State.StartedAt}} {{.State.Pid}}");

    // Who asked for live mode gets that or nothing.
    world
        .migrate(&["--mode", "live"])
        .expect(4)
        .saying(&["live.dump", "cannot be dumped", "--mode cold"]);
    assert_eq!(world.inventories(), before);
    assert_eq!(
        inspect(&world.a, "web", "{{.State.StartedAt}} {{.State.Pid}}"),
        life
    );
    without_gap(&numbers(&world.a));
    nothing_dumped(&world.a);

    let moved = world
        .migrate(&["--json"])
        .expect(0)
        .saying(&["not in live mode: the memory of web cannot be dumped"]);
    let views = moved.json();
    assert_eq!(views.as_array().unwrap().len(), 1, "{views}");
    assert_eq!(
        (&views[0]["mode"], &views[0]["status"]),
        (&"cold".into(), &"complete".into())
    );
    let why = views[0]["mode_reason"].as_str().unwrap();
    assert!(
        why.contains("not live: the memory of web cannot be dumped"),
        "{why}"
    );
    println!("{why}");
    assert!(is_running(&world.b, "web") && !is_running(&world.a, "web"));
    wait_until(|| !numbers(&world.b).is_empty());
    assert_eq!(numbers(&world.b)[0], 1, "it was started afresh");
    // Both tries are on record, and nothing is left of the first.
    let list = world.run(&["list", "--json"]).expect(0).json();
    let outcome = |at: usize| list[at]["outcome"].as_str().unwrap_or_default().to_owned();
    assert_eq!(outcome(0), "complete", "{list}");
    assert!(outcome(1).contains("live.dump"), "{list}");
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}
