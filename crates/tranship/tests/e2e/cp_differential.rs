//! Random trees and random forms of the command, by `docker cp` and by `tranship cp`, with `--delta` every other time: what is there
//! afterwards is equal in every respect, and so is the exit code.
//!
//! `TRANSHIP_CP_SEEDS=0..5000` says which forms are tried. `docs/cp.md` lists the differences that are meant; the forms that
//! lead to them are not made here.

use tranship_testkit::testbed::Options;

use crate::world::{World, program};

const SCRIPT: &str = include_str!("cp_differential.sh");
/// Forms that are tried without further ado: two copies by docker and two by tranship take about half a second.
const FORMS: std::ops::Range<u64> = 0..150;

/// Numbers that depend on the seed alone (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.next().is_multiple_of(of)
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[usize::try_from(self.next() % list.len() as u64).unwrap()]
    }
}

/// What may be in a tree; the content of files is the seed's.
const PARTS: [&str; 14] = [
    "echo $S >f1; chmod 640 f1",
    "seq 1 40000 >f2; echo 2$S >>f2; chown 7:8 f2; chmod 4755 f2",
    "mkdir d1; echo a$S >d1/a; mkdir -p d1/b; echo c >d1/b/c; chmod 700 d1/b",
    "mkdir -p d1/e; chmod 1777 d1/e",
    "mkdir -p d1; mkfifo d1/p",
    "mkdir -p d1; echo h >d1/h1; ln d1/h1 d1/h2",
    "mkdir -p d1; ln -s ../f1 d1/l",
    "mkdir -p d2/d1; echo $S >d2/d1/a; chown 9:9 d2",
    "mkdir -p d2; echo $S >d2/d1x",
    "ln -s f1 lf",
    "ln -s d1 ld",
    "ln -s nowhere lx",
    "echo $S >x:y",
    "echo $S >'sp ace'",
];
const NAMES: [&str; 16] = [
    "f1", "f2", "d1", "d1/b", "d1/a", "d2", "d2/d1", "lf", "ld", "lx", "ld/a", "x:y", "'sp ace'", "new",
    "new/x", "f1/x",
];
const ENDS: [&str; 9] = ["", "", "", "", "/", "/", "/.", "/..", "//"];

fn tree(chance: &mut Chance, seed: u64) -> String {
    let mut script = format!("S={seed}; ");
    for part in PARTS {
        if !chance.one_in(4) {
            script += part;
            script += "; ";
        }
    }
    script + "find . -exec touch -h -d '2001-02-03 04:05:06.789' {} +"
}

fn path(chance: &mut Chance) -> String {
    if chance.one_in(12) {
        return ".".to_owned();
    }
    format!("{}{}", chance.of(&NAMES), chance.of(&ENDS))
}

/// The trees here and in the container, and the form.
fn form(seed: u64) -> [String; 3] {
    let mut chance = Chance(seed);
    let (here, inside) = (tree(&mut chance, seed), tree(&mut chance, seed + 1_000_000));
    let local = format!("{}{}", chance.of(&["", "./", "/srv/h/"]), path(&mut chance));
    let remote = format!(
        "@:{}{}",
        chance.of(&["/w/", "w/", "/w/../w/", "../w/"]),
        path(&mut chance)
    );
    let flags = chance.of(&["", "", "", "-L ", "-a ", "-a -L "]);
    let form = if chance.one_in(2) {
        // Docker looks for `missing/..` at one place and cleans it at another.
        format!("{flags}{local} {}", remote.trim_end_matches("/.."))
    } else {
        format!("{flags}{remote} {local}")
    };
    [here, inside, form]
}

#[test]
fn random_forms_do_what_docker_does() {
    let Some(world) = World::with(Options::default()) else {
        return;
    };
    let node = &world.a;
    let root = node.root().unwrap();
    std::fs::copy(program(), root.join("usr/local/bin/tranship")).unwrap();
    std::fs::write(root.join("srv/form.sh"), SCRIPT).unwrap();
    let image = node.load_image("busybox").unwrap();
    for name in ["docker", "tranship"] {
        node.sh(&format!(
            "docker run -d --name c{name} --network none {image} sleep 86400
             docker inspect -f '{{{{.State.Pid}}}}' c{name} >/srv/pid.{name}"
        ))
        .unwrap();
    }
    let seeds = std::env::var("TRANSHIP_CP_SEEDS").ok();
    let seeds = seeds.map_or(FORMS, |text| {
        let (from, to) = text.split_once("..").unwrap();
        from.parse().unwrap()..to.parse().unwrap()
    });
    let mut different = Vec::new();
    for seed in seeds.clone() {
        let [here, inside, form] = form(seed);
        let done = node
            .command(["sh", "/srv/form.sh"])
            .unwrap()
            .env("BUILD", here)
            .env("BUILD_INSIDE", inside)
            .env("FORM", &form)
            .env("OPTIONS", if seed % 2 == 1 { "--delta" } else { "" })
            .output()
            .unwrap();
        if !done.status.success() {
            let told = String::from_utf8_lossy(&done.stdout);
            different.push(format!("seed {seed}: cp {form}\n{told}"));
        }
    }
    println!("{} forms, {} different", seeds.end - seeds.start, different.len());
    assert!(different.is_empty(), "\n{}", different.join("\n"));
}
