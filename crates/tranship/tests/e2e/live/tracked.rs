//! Memory of which the kernel tells what was written: dumps that follow each other, each with what was written since the one before.
//!
//! Where the kernel does not tell, as on many machines, the same is moved by dumps of all of it: what is looked for is the same,
//! but for the dumps themselves. `cargo xtask kernel` runs these tests on a kernel that tells.

use std::collections::BTreeSet;
use std::time::Duration;

use tranship_testkit::testbed::{Engine, Node, Options};

use super::nothing_dumped;
use crate::world::{World, finish, inspect, is_running, reached, wait_until};

/// Knows what every page must hold, writes some in every way there is, and says a number whenever all of them were right.
const LOOKS_AT_EVERY_PAGE: &str = r#"
import array, ctypes, mmap, os, random, struct, sys, time
PAGE, PAGES, KEPT, HUGE = 4096, 40960, 64, 2 << 20
def stamp(memory, page, value): memory[page * PAGE:page * PAGE + 8] = struct.pack("<Q", value)
def held(memory, page): return struct.unpack_from("<Q", memory, page * PAGE)[0]
def wrong(*what):
    print("WRONG", *what, flush=True)
    sys.exit(1)
anonymous = lambda pages: mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory, kept, shared = anonymous(PAGES), anonymous(KEPT), mmap.mmap(-1, 64 * PAGE)
# A huge page is written as a whole, and so much is not followed.
for ours in (memory, kept): ours.madvise(mmap.MADV_NOHUGEPAGE)
expected = array.array("Q", range(1, PAGES + 1))
stamps = memoryview(memory).cast("Q")[::PAGE // 8]
stamps[:] = memoryview(expected)
serial = PAGES
if os.fork() == 0:
    number = 0
    while True:
        number += 1
        stamp(shared, number % 63, number)
        page = random.randrange(PAGES)
        if held(memory, page) != page + 1: stamp(shared, 63, 1 + page)
        time.sleep(0.02)
# Page tables that move as a whole, and huge pages of zeros: the kernel marks neither.
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
first = -(-libc.mmap(None, 6 * HUGE, 3, 0x22, -1, 0) // HUGE) * HUGE
places = [first + place * HUGE for place in range(5)]
libc.madvise(places[0], 3 * HUGE, 15)
libc.madvise(places[3], 2 * HUGE, 14)
for place, value in enumerate((1, 2, 3, 7, 7)): ctypes.memset(places[place], value, HUGE)
of_place, moved, zeros = [1, 2, 3], 0, None
# In one call, since CRIU refuses to follow a dump in which nothing was there.
def move():
    libc.mremap(places[2], HUGE, HUGE, 3, places[moved % 2])
    of_place[moved % 2] = of_place[2]
    libc.mmap(places[2], HUGE, 3, 0x32, -1, 0)
    libc.madvise(places[2], HUGE, 15)
    of_place[2] = 1 + of_place[2] % 3
    ctypes.memset(places[2], of_place[2], HUGE)
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
filled = libc.mmap(None, 8 * HUGE, 3, 0x22, -1, 0)
libc.madvise(filled, 8 * HUGE, 15)
for value in (1, 2, 3, 7): ctypes.memset(filled + value * HUGE, value, HUGE)
def is_filled(place, value): return libc.memcmp(places[place], filled + value * HUGE, HUGE) == 0
reading, writing = os.pipe()
whole = memoryview(memory)
mapped, of_mapped = anonymous(1), [0]
dropped = set()
number = 0
while True:
    for _ in range(5):
        serial += 1
        page = random.randrange(PAGES)
        stamp(memory, page, serial); expected[page] = serial
        # What the kernel writes for the process.
        serial += 1
        page = random.randrange(PAGES)
        os.write(writing, struct.pack("<Q", serial)); os.readv(reading, [whole[page * PAGE:page * PAGE + 8]]); expected[page] = serial
        time.sleep(0.02)
    if stamps != memoryview(expected):
        for page in range(PAGES):
            if held(memory, page) != expected[page]: wrong("memory", page, held(memory, page), expected[page])
    # Memory that comes and goes.
    for page, value in enumerate(of_mapped):
        if held(mapped, page) != value: wrong("mapped", page)
    mapped.close()
    mapped = anonymous(random.randrange(16, 64)); of_mapped = []
    for page in range(len(mapped) // PAGE):
        serial += 1
        stamp(mapped, page, serial); of_mapped.append(serial)
    # Pages that are given back are zeros.
    for page in range(KEPT):
        if (held(kept, page) == 0) != (page in dropped or number == 0): wrong("kept", page)
    for page in range(KEPT): stamp(kept, page, 1)
    dropped = set(random.sample(range(KEPT), 10))
    for page in dropped: kept.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)
    for place in (0, 1, 2):
        if not is_filled(place, of_place[place]): wrong("moved", place, moved)
    if number % 3 == 0:
        move(); moved += 1
    for place in (3, 4):
        if zeros is not None and not is_filled(place, 0 if place == zeros else 7): wrong("zeros", place)
    if number % 11 == 0:
        if zeros is not None:
            # Mapped afresh they are huge again: small pages of zeros are nothing to CRIU.
            libc.mmap(places[zeros], HUGE, 3, 0x32, -1, 0)
            libc.madvise(places[zeros], HUGE, 14)
            ctypes.memset(places[zeros], 7, HUGE)
        zeros = 3 + number % 2
        libc.madvise(places[zeros], HUGE, 4)
        # At once, for the same reason as there.
        ctypes.string_at(places[zeros], 1)
    if held(shared, 63): wrong("the child's", held(shared, 63) - 1)
    number += 1
    print(number, flush=True)
"#;

/// Tries at two moves with dumps that follow each other.
const MOVES: usize = 5;
/// What is said where dumps do not follow each other although the kernel tells what was written.
const GIVEN_UP: &str = "is dumped whole from here on: ";
/// What CRIU says of a dump that cannot follow.
const REFUSES: &str = "in parent pagemap";

impl World {
    fn look_at_every_page(&self) {
        let image = self.a.load_image("python").unwrap();
        let run = [
            self.a.engine().client(),
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            &image,
            "python3",
            "-c",
            LOOKS_AT_EVERY_PAGE,
        ];
        self.a.exec_ok(run).unwrap();
        self.looks_on(&self.a);
    }

    /// It looks at everything a few times more at this node, and all of it is right.
    #[track_caller]
    fn looks_on(&self, node: &Node) {
        let before = looks(node);
        wait_until(|| looks(node) > before + 3);
        assert!(is_running(node, "web"));
    }
}

/// The last number that it said. Anything else that it said is what was wrong.
#[track_caller]
fn looks(node: &Node) -> u64 {
    let log = node.exec_ok([node.engine().client(), "logs", "web"]).unwrap();
    log.lines()
        .map(|line| line.parse::<u64>().unwrap_or_else(|_| panic!("{line}")))
        .next_back()
        .unwrap_or_default()
}

fn tells_what_is_written(node: &Node) -> bool {
    let checked = node.exec(["criu", "check", "--feature", "mem_dirty_track"]);
    checked.unwrap().success()
}

/// Bytes of pages in each of the dumps at the source, by their numbers; of one that stands alone in the first place.
fn dumps(node: &Node) -> Vec<u64> {
    let said = node
        .sh("cd /dev/shm/tranship-memory/*/images && for d in . $(ls -d [0-9]* 2>/dev/null | sort -n); do cat $d/pages-*.img 2>/dev/null | wc -c; done")
        .unwrap();
    said.lines().map(|line| line.trim().parse().unwrap()).collect()
}

/// Each dump of those that follow the first is much smaller, and there is one more in the freeze.
#[track_caller]
fn are_tracked(dumps: &[u64]) {
    let [alone, first, since @ ..] = dumps else {
        panic!("all of it was dumped each time: {dumps:?}");
    };
    assert_eq!(*alone, 0);
    assert!(since.len() >= 2, "{dumps:?}");
    assert!(since.iter().all(|bytes| bytes * 4 < *first), "{dumps:?}");
}

/// There and back. CRIU refuses to follow a dump that saw the program in the few instructions in which it has nothing where something was and
/// will be: then nothing may be lost either, and it moves once more.
fn every_page_is_right_there(options: Options) {
    let world = world!(options);
    world.look_at_every_page();
    let tells = tells_what_is_written(&world.a);
    assert!(tells || std::env::var_os("TRANSHIP_TEST_TRACKS").is_none());
    let (mut source, mut destination) = (("a", &world.a), ("b", &world.b));
    let mut as_wanted = BTreeSet::new();
    for _ in 0..MOVES {
        source.1.sh("rm -f /run/tranship/fail-point.reached").unwrap();
        world.arm(source.1, "source.delta-done=hold");
        let mut child = world.begin_between(source.0, destination.0, &["--mode", "live", "--replace"]);
        let held = || reached(source.1, "source.delta-done");
        wait_until(|| held() || child.try_wait().unwrap().is_some());
        if !held() {
            world.arm(source.1, "");
            finish(child)
                .expect(4)
                .saying(&[REFUSES, "--memory-tracking off"]);
            world.looks_on(source.1);
            nothing_dumped(source.1);
            continue;
        }
        let dumps = dumps(source.1);
        println!("bytes of pages in the dumps: {dumps:?}");
        let unmarked = source.1.sh("cat /dev/shm/tranship-memory/*/work/compared");
        world.arm(source.1, "");
        let moved = finish(child).expect(0);
        if let Ok(unmarked) = unmarked {
            println!("pages that the kernel had not marked: {unmarked}");
            are_tracked(&dumps);
            as_wanted.insert(source.0);
        } else {
            assert_eq!(dumps.len(), 1);
            if tells {
                let told = moved.stderr.lines().find(|line| line.contains(GIVEN_UP));
                let told = told.unwrap_or_else(|| panic!("{}", moved.stderr));
                println!("{told}");
                // Or much was written just then.
                assert!(told.contains(REFUSES) || told.contains("dumped again"));
            } else {
                as_wanted.insert(source.0);
            }
        }
        let counted = looks(source.1);
        wait_until(|| looks(destination.1) > counted);
        assert_eq!(inspect(destination.1, "web", "{{.RestartCount}}"), "0");
        world.looks_on(destination.1);
        nothing_dumped(&world.a);
        nothing_dumped(&world.b);
        if as_wanted.len() == 2 {
            return;
        }
        std::mem::swap(&mut source, &mut destination);
    }
    panic!("dumps followed each other in moves from {as_wanted:?} alone");
}

#[test]
fn every_page_is_right_at_the_other_host() {
    every_page_is_right_there(Options::default());
}

#[test]
fn with_podman_every_page_is_right_at_the_other_host() {
    every_page_is_right_there(Options {
        engine: Engine::Podman,
        ..Options::default()
    });
}

#[test]
fn every_page_is_right_when_it_goes_back() {
    let world = world!();
    world.look_at_every_page();
    // Before the commit it is let go on, and what was written since is no secret to the next try.
    for place in ["source.delta-done", "source.frozen"] {
        world.arm(&world.a, &format!("{place}=fail"));
        world.migrate(&["--mode", "live"]).expect(4);
        world.arm(&world.a, "");
        world.looks_on(&world.a);
    }
    // After it, from all that was dumped.
    for harm in [
        "rm /dev/shm/tranship-memory/*/images/core-1.img /dev/shm/tranship-memory/*/images/*/core-1.img || true",
        "cd /dev/shm/tranship-memory/*/images; if [ -d 1 ]; then rm 1/pagemap-1.img; else rm pagemap-1.img; fi",
        "cd /dev/shm/tranship-memory/*/images; if [ -d 1 ]; then mv 1 7; else rm pagemap-1.img; fi",
    ] {
        let child = world.begin_held(&world.b, "destination.committed", &["--mode", "live"]);
        world.b.sh(harm).unwrap();
        world.arm(&world.b, "");
        let outcome = finish(child).expect(4);
        assert!(!outcome.stderr.contains("afresh"), "{}", outcome.stderr);
        world.looks_on(&world.a);
        assert!(!is_running(&world.b, "web"));
        nothing_dumped(&world.a);
        nothing_dumped(&world.b);
    }
    let counted = looks(&world.a);
    world.migrate(&["--mode", "live"]).expect(0);
    wait_until(|| looks(&world.b) > counted);
}

#[test]
fn a_dump_that_cannot_follow_the_one_before_loses_nothing() {
    let world = world!();
    world.look_at_every_page();
    if tells_what_is_written(&world.a) {
        // A map of pages without pages: what was not written since is nowhere then.
        let spoil = "cd /dev/shm/tranship-memory/*/images/2 && head -c 14 pagemap-1.img > new && mv new pagemap-1.img";
        // In the freeze all of it would have to travel: it goes on here.
        let child = world.begin_held(&world.a, "source.frozen", &["--mode", "live"]);
        world.a.sh(spoil).unwrap();
        world.arm(&world.a, "");
        finish(child).expect(4);
        world.looks_on(&world.a);
        nothing_dumped(&world.a);
        // Before it, all of it is dumped once more.
        let child = world.begin_held(&world.a, "source.bulk", &["--mode", "live"]);
        world.a.sh(spoil).unwrap();
        // Long enough for the next round to dump it again, also where everything takes long.
        std::thread::sleep(Duration::from_secs(60));
        world.arm(&world.a, "source.delta-done=hold");
        wait_until(|| reached(&world.a, "source.delta-done"));
        let dumps = dumps(&world.a);
        assert!(dumps.len() == 1 && dumps[0] > 80 << 20, "{dumps:?}");
        world.arm(&world.a, "");
        finish(child).expect(0);
    } else {
        world
            .migrate(&["--mode", "live", "--memory-tracking", "off"])
            .expect(0);
    }
    world.looks_on(&world.b);
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}
