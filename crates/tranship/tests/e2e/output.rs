//! What people and programs read.

use crate::world::inspect;

#[test]
fn commands_speak_to_people_and_to_programs() {
    let world = world!();
    world.serve(&[]);
    // Before anything was moved.
    world.run(&["status"]).expect(1).saying(&["migrate.not-found"]);
    assert_eq!(
        world.run(&["list", "--json"]).expect(0).json(),
        serde_json::json!([])
    );

    let doctor = world.run(&["doctor", "ssh://root@a", "ssh://root@b"]).expect(0);
    for word in [
        "ssh://root@a",
        "engine",
        "docker 26",
        "space",
        "clock",
        "privileges",
        "→",
        "data path",
    ] {
        assert!(
            doctor.stdout.contains(word),
            "{word:?} is not in\n{}",
            doctor.stdout
        );
    }
    let doctor = world
        .run(&["doctor", "ssh://root@a", "ssh://root@b", "--json"])
        .expect(0)
        .json();
    assert_eq!(doctor[0]["facts"]["engine"]["kind"], "docker");
    assert_eq!(
        doctor.as_array().unwrap().len(),
        4,
        "two nodes and both directions"
    );

    let plan = world
        .run(&["plan", "web", "--from", "ssh://root@a", "--to", "ssh://root@b"])
        .expect(0);
    for word in [
        "web: ssh://root@a → ssh://root@b",
        "mode",
        "stateless",
        "to send",
        "no downtime",
    ] {
        assert!(plan.stdout.contains(word), "{word:?} is not in\n{}", plan.stdout);
    }

    let moved = world.migrate(&[]).expect(0);
    for word in ["complete", "total", "downtime none", "image", "█"] {
        assert!(
            moved.stdout.contains(word),
            "{word:?} is not in\n{}",
            moved.stdout
        );
    }
    assert!(
        !moved.stdout.contains('\u{1b}') && !moved.stderr.contains('\u{1b}'),
        "no colours where nobody looks"
    );

    let list = world.run(&["list"]).expect(0);
    assert!(
        list.stdout.contains("web") && list.stdout.contains("complete"),
        "{}",
        list.stdout
    );
    let id = world.run(&["list", "--json"]).json()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = world.run(&["status", &id]).expect(0);
    assert!(
        status.stdout.contains("source") && status.stdout.contains("destination"),
        "{}",
        status.stdout
    );
    let known = world
        .run(&["list", "--node", "ssh://root@b", "--json"])
        .expect(0)
        .json();
    assert_eq!(known[0]["migration"]["role"], "destination");
    assert_eq!(
        known[0]["migration"]["destination_container"].as_str().unwrap(),
        inspect(&world.b, "web", "{{.Id}}")
    );

    // A failure for programs is an object with a stable code.
    let failed = world.migrate_between("b", "a", &["--json"]).expect(1);
    let last: serde_json::Value = serde_json::from_str(failed.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "name.taken");

    assert!(
        world
            .run(&["completions", "bash"])
            .expect(0)
            .stdout
            .contains("migrate")
    );
    assert!(
        world
            .run(&["--version"])
            .expect(0)
            .stdout
            .starts_with("tranship ")
    );
    let quiet = world.run(&["list", "--quiet"]).expect(0);
    assert!(quiet.stderr.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_told_by_the_exit_code() {
    let world = world!();
    let mut child = world.command(&["completions", "zsh"]).spawn().unwrap();
    drop(child.stdout.take());
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}");
}
