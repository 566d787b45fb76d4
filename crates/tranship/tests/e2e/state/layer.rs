//! What a container wrote over its image.

use tranship_testkit::testbed::Options;

use super::{assert_none, compare};
use crate::world::World;

const LISTING: &str = include_str!("scripts/listing.py");

/// Does to a Debian system what people do to containers that they should not have changed.
const CHANGES: &str = r#"
set -e
# Deleted: a file, a link, a directory with all that it holds.
rm /etc/nginx/mime.types /etc/nginx/koi-utf
rm -r /etc/nginx/snippets
# Replaced: by a file of other content, by one of the same size and time, by a link, by a directory.
echo changed > /etc/nginx/nginx.conf
cp -p /etc/debian_version /tmp/old
tr 0-9. 1-90, < /tmp/old > /etc/debian_version
touch -r /tmp/old /etc/debian_version
ln -sf /etc/debian_version /etc/nginx/uwsgi_params
rm /etc/nginx/scgi_params
mkdir /etc/nginx/scgi_params
echo inside > /etc/nginx/scgi_params/file
# A directory replaced by a file, by a link, and by a directory that shows nothing of the old one.
rm -r /etc/nginx/sites-available
echo 'no directory any more' > /etc/nginx/sites-available
rm -r /etc/nginx/modules-enabled
ln -s /nowhere /etc/nginx/modules-enabled
rm -r /usr/share/perl5/Debian
mkdir /usr/share/perl5/Debian
echo new > /usr/share/perl5/Debian/only
# Deleted and made again, with something below it that was there before.
rm -r /usr/share/redis-test /etc/redis 2> /dev/null || true
mkdir -p /etc/redis
echo again > /etc/redis/redis.conf
# Renamed, linked, moved deep.
mv /etc/nginx/conf.d /etc/nginx/conf.d-renamed
mv /etc/nginx/fastcgi.conf /opt/fastcgi.conf
ln /etc/nginx/proxy_params /root/linked
ln -s ../etc/passwd /root/link
# Only attributes.
chmod 600 /etc/passwd-
chmod 4755 /usr/bin/env
chown 1234:5678 /etc/shells
chgrp 5 /usr/local
touch -d '2001-02-03 04:05:06.789' /etc/fstab
setfattr -n user.note -v kept /etc/hostname-of-old /etc/profile 2> /dev/null || setfattr -n user.note -v kept /etc/profile
setfacl -m u:4321:r /etc/bash.bashrc
cp /usr/bin/id /usr/local/bin/capable
setcap cap_net_raw+ep /usr/local/bin/capable
# New: packages, caches, sparse files, odd names, a FIFO, times of directories.
dpkg -i /opt/later/*.deb > /dev/null
python3 -m compileall -q /usr/lib/python3/dist-packages || true
truncate -s 64M /var/lib/sparse
echo data | dd of=/var/lib/sparse bs=1M seek=32 conv=notrunc status=none
mkfifo /var/lib/fifo
mkdir -p "/srv/with
newline/ "
head -c 3000000 /dev/urandom > /srv/random
touch /srv/.wh.not-a-whiteout 2> /dev/null || true
touch -d '1999-09-09' /srv "/srv/with
newline"
"#;

/// What the engine itself puts into every container.
const OF_THE_ENGINE: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/mtab",
    ".dockerenv",
];

/// What the container sees, and what the engine says that it changed.
fn view(world: &World, node: &tranship_testkit::testbed::Node) -> (Vec<String>, Vec<String>) {
    let arguments: Vec<&str> = std::iter::once("/")
        .chain(OF_THE_ENGINE.iter().copied())
        .collect();
    let listing = world.python(node, &["--privileged"], LISTING, &arguments);
    // The engine makes the root and /etc anew with every container, unless the container wrote there.
    let listing = listing
        .lines()
        .filter(|line| !line.starts_with("b'.' "))
        .map(ToOwned::to_owned);
    let mut changes: Vec<String> = node
        .exec_ok(["docker", "diff", "web"])
        .unwrap()
        .lines()
        .filter(|line| {
            // Files that the engine binds over count as changed once somebody looked at the container through its API.
            let path = line.split_once(" /").map_or("", |(_, path)| path);
            !OF_THE_ENGINE.contains(&path)
        })
        .map(ToOwned::to_owned)
        .collect();
    changes.sort();
    (listing.collect(), changes)
}

#[test]
fn the_container_sees_the_same_files_there() {
    same_files_there(Options::default());
}

#[test]
fn the_container_sees_the_same_files_there_where_containerd_keeps_its_layer() {
    same_files_there(Options::default().containerd_stores(&["a", "b"]));
}

fn same_files_there(options: Options) {
    let world = world!(options);
    let image = world.a.load_image("state:1").unwrap();
    world.hold_from(&image, &[], &["sleep", "infinity"]);
    let untouched = view(&world, &world.a);
    let output = world
        .a
        .exec(["docker", "exec", "--privileged", "web", "sh", "-c", CHANGES])
        .unwrap();
    assert!(output.success(), "{}{}", output.stdout, output.stderr);
    let before = view(&world, &world.a);
    assert!(
        compare(&untouched.0, &before.0).len() > 100,
        "nothing was changed"
    );
    world.migrate(&["--mode", "cold"]).expect(0);
    let after = view(&world, &world.b);
    assert_none(&compare(&before.0, &after.0), "what the container sees");
    assert_none(&compare(&before.1, &after.1), "what the engine calls changes");
    // What was installed works.
    world.inside(
        &world.b,
        "tree --version && dpkg --status tree | grep -q '^Status: install ok installed'",
    );

    // Back: what was done at b in between is seen at a, deletions of its own additions included.
    world.inside(
        &world.b,
        "rm -r /srv/with* /etc/redis && mv /opt/fastcgi.conf /etc/nginx/ && dpkg -r tree >/dev/null && chmod 755 /usr/bin/env",
    );
    let before = view(&world, &world.b);
    let options = ["--mode", "warm", "--replace"];
    world.migrate_between("b", "a", &options).expect(0);
    let after = view(&world, &world.a);
    assert_none(
        &compare(&before.0, &after.0),
        "what the container sees after the way back",
    );
    assert_none(
        &compare(&before.1, &after.1),
        "what the engine calls changes after the way back",
    );
}

#[test]
fn a_layer_that_stays_behind_is_said_and_what_the_image_has_does_not_travel() {
    let world = world!();
    world.hold(&[], &["sleep", "infinity"]);
    world.inside(
        &world.a,
        "head -c 5000000 /dev/urandom > /root/written; rm /etc/group",
    );
    let plan = world.findings("web", &["--mode", "cold", "--without-layer"]);
    assert!(
        plan.iter().any(|(code, _)| code == "layer.left-behind"),
        "{plan:?}"
    );
    let view = world
        .migrate(&["--mode", "cold", "--rename", "web", "--json"])
        .expect(0)
        .json();
    let rounds = view[0]["rounds"].as_array().unwrap();
    let literal: u64 = rounds.iter().map(|r| r["literal_bytes"].as_u64().unwrap()).sum();
    assert!(
        (5_000_000..5_500_000).contains(&literal),
        "{literal} bytes of layer for 5000000"
    );
    world.inside(&world.b, "test -s /root/written && ! test -e /etc/group");
    world
        .migrate_between("b", "a", &["--mode", "cold", "--without-layer", "--replace"])
        .expect(0);
    world.inside(&world.a, "! test -e /root/written && test -e /etc/group");
}

#[test]
fn planning_writes_nothing_into_the_layer() {
    let world = world!();
    world.hold(&[], &["sleep", "infinity"]);
    world.inside(&world.a, "chmod 600 /etc/passwd; echo x > /root/x");
    let changes = || {
        let said = world.a.exec_ok(["docker", "diff", "web"]).unwrap();
        let mut lines: Vec<String> = said.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        lines
    };
    let before = changes();
    world.findings("web", &["--mode", "cold"]);
    assert_eq!(changes(), before);
}
