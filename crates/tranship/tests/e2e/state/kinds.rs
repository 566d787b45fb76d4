//! Every kind of entry of a file system is the same after a move.

use super::{assert_none, compare, volume};

/// Makes a tree of all kinds.
const KINDS: &str = include_str!("scripts/kinds.py");

/// Makes directories below each other until no path can name them any more.
const DEEPER: &str = r#"
import os
os.chdir("/data")
for depth in range(400):
    os.mkdir("one-more-directory")
    os.chdir("one-more-directory")
    if depth % 50 == 49:
        with open("file", "w") as file:
            file.write(str(depth))
"#;

#[test]
fn every_kind_of_entry_is_the_same_there() {
    let world = world!();
    let image = world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    let made = world.python(&world.a, &["--privileged"], KINDS, &["/data"]);
    let before = world.listing(&world.a, &image, "data");
    assert_eq!(
        made.trim(),
        before.len().to_string(),
        "the listing shows everything"
    );
    let view = world.migrate(&["--mode", "cold", "--json"]).expect(0).json();
    let round = view[0]["rounds"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(round["frozen"], true);
    assert_none(
        &world.differences(&volume("data"), &volume("data")),
        "by rsync, from a to b",
    );
    let after = world.listing(&world.b, &image, "data");
    assert_none(&compare(&before, &after), "by every fact");
    assert_none(
        &compare(&before, &world.listing(&world.a, &image, "data")),
        "the source itself was changed",
    );

    // What is equal above would not be if any of these were lost.
    let data = volume("data");
    for (change, back) in [
        (
            "touch -hd @5.000000001 links/dangling",
            "touch -hd @5 links/dangling",
        ),
        ("chmod u-s modes/file-4755", "chmod u+s modes/file-4755"),
        ("truncate -s 0 sizes/1", "true"),
        ("mkdir empty/more", "rmdir empty/more"),
        ("cp -p links/second copy && mv copy links/second", "true"),
    ] {
        world.b.sh(&format!("cd {data} && {change}")).unwrap();
        assert!(
            !world.differences(&data, &data).is_empty(),
            "rsync does not see: {change}"
        );
        let now = world.listing(&world.b, &image, "data");
        assert!(
            !compare(&before, &now).is_empty(),
            "the listing does not see: {change}"
        );
        world.b.sh(&format!("cd {data} && {back}")).unwrap();
    }

    // And back, over what the first move left at a.
    let options = ["--mode", "warm", "--replace", "--volume-conflict", "replace"];
    let left = world.listing(&world.b, &image, "data");
    world.migrate_between("b", "a", &options).expect(0);
    assert_none(
        &compare(&left, &world.listing(&world.a, &image, "data")),
        "by every fact, from b to a",
    );
    assert_none(
        &world.differences_between(&world.b, &data, "a", &data),
        "by rsync, from b to a",
    );
}

#[test]
fn directories_deeper_than_a_path_can_say_and_holes_larger_than_the_disk_are_the_same_there() {
    let world = world!();
    let image = world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    world.python(&world.a, &[], DEEPER, &[]);
    world.inside(
        &world.a,
        "truncate -s 4T /data/hole; echo x | dd of=/data/hole bs=1M seek=2000000 conv=notrunc 2> /dev/null",
    );
    let before = world.listing(&world.a, &image, "data");
    assert!(before.len() > 400, "{}", before.len());
    world.migrate(&["--mode", "cold"]).expect(0);
    assert_none(
        &compare(&before, &world.listing(&world.b, &image, "data")),
        "by every fact",
    );
}
