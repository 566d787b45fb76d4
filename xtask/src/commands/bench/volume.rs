//! Copying a volume between two hosts, against `tar | ssh | tar` and `rsync` over ssh between the same hosts; and what a freeze
//! lasts.

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::Node;

use super::measure::{Cost, cost, machine, medians};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The volume that is copied, on both hosts.
const VOLUME: &str = "data";
const DIRECTORY: &str = "/var/lib/docker/volumes/data/_data";

/// One row of the table.
struct Case {
    letter: &'static str,
    what: &'static str,
    /// Shell script that fills the source's directory, which is empty and current; `$N` is the share of the whole, 1 or 10.
    fill: &'static str,
    /// Shell script that changes it after the first copy, where the second copy is what is measured.
    change: Option<&'static str>,
    /// What `change` changes, in bytes; 0 if that says nothing.
    changed: u64,
}

const CASES: [Case; 5] = [
    Case {
        letter: "a",
        what: "one file of 2 GiB of random bytes",
        fill: "head -c $((2147483648 / N)) /dev/urandom > random",
        change: None,
        changed: 0,
    },
    Case {
        letter: "b",
        what: "100,000 files of 4 KiB",
        fill: SMALL_FILES,
        change: None,
        changed: 0,
    },
    Case {
        letter: "c",
        what: "a Debian root tree",
        fill: "docker export root | tar -xf -",
        change: None,
        changed: 0,
    },
    Case {
        letter: "d",
        what: "again after 1 % of the bytes changed in 10 % of 1,000 files of 1 MiB",
        fill: "head -c $((1048576000 / N)) /dev/urandom | split -b 1048576 -a 4 -d - file",
        // A tenth of every tenth file, at a place of its own.
        change: Some(
            "i=0; for f in file*0; do i=$((i + 1)); head -c 104857 /dev/urandom |
                 dd of=$f bs=65536 seek=$((i * 9973 % 943719)) oflag=seek_bytes conv=notrunc status=none; done",
        ),
        changed: 10_485_700,
    },
    Case {
        letter: "e",
        what: "100,000 files, nothing changed",
        fill: SMALL_FILES,
        change: Some("true"),
        changed: 0,
    },
];

/// A hundred directories of a thousand files.
const SMALL_FILES: &str = "head -c $((409600000 / N)) /dev/urandom > /run/random
    for d in $(seq 0 $((100 / N - 1))); do mkdir dir$d
        dd if=/run/random bs=4096000 skip=$d count=1 status=none | (cd dir$d && split -b 4096 -a 3 -d - file); done
    rm /run/random";

/// Where copies go that were measured, on the file system of the volumes.
const ASIDE: &str = "/var/lib/docker/aside";
/// The ways of copying.
const WAYS: [&str; 3] = ["tar | ssh | tar", "rsync -aHAX", "tranship"];

/// The program that moves the data.
fn program(way: &'static str) -> &'static str {
    way.split(' ').next().unwrap_or(way)
}

/// Runs the cases and prints a table of medians.
pub(super) fn run(runs: usize, rows: &[String], small: bool) -> Outcome {
    let bed = super::hosts()?;
    let [a, b] = bed.array();
    let image = a.load_image("state:1")?;
    a.exec_ok(["docker", "create", "--name", "root", &image])?;
    // Everything that is set up once: the agents, ssh's caches.
    a.sh("docker volume create warm-up && tranship volume copy warm-up ssh://root@b//warm-up --quiet")?;
    let share = if small { 10 } else { 1 };
    let wanted = |letter: &str| rows.is_empty() || rows.iter().any(|row| row == letter);
    let mut table = Vec::new();
    for case in CASES.iter().filter(|case| wanted(case.letter)) {
        table.push((case, copies([&a, &b], case, runs, share)?));
    }
    let mut freezes = Vec::new();
    if wanted("f") {
        freezes.push((
            "100,000 files, nothing changed",
            freeze(&a, &b, SMALL_FILES, "true", runs, share)?,
        ));
    }
    if wanted("g") {
        let fill = "head -c $((1073741824 / N)) /dev/urandom | split -b 16777216 -a 3 -d - file";
        // In the container, whose volume is at /data.
        let dirty = "cd /data && for f in file*; do head -c 163840 /dev/urandom | dd of=$f bs=16384 seek=7 conv=notrunc; done";
        freezes.push((
            "1 GiB, 10 MiB of it changed right before",
            freeze(&a, &b, fill, dirty, runs, share)?,
        ));
    }
    print(&table, &freezes, runs, share);
    Ok(())
}

/// Measures all ways of one case.
fn copies(nodes: [&Node; 2], case: &Case, runs: usize, share: u32) -> Outcome<Vec<Vec<Cost>>> {
    let [a, b] = nodes;
    println!("({}) {}: preparing …", case.letter, case.what);
    clear(a)?;
    clear(b)?;
    a.sh(&format!(
        "docker volume create {VOLUME} && cd {DIRECTORY} && N={share} && {} && sync",
        case.fill
    ))?;
    let mut costs = vec![Vec::new(); WAYS.len()];
    for run in 0..runs {
        for (index, way) in WAYS.iter().enumerate() {
            println!("({}) {way}, run {} of {runs} …", case.letter, run + 1);
            clear(b)?;
            b.sh("sync")?;
            if let Some(change) = case.change {
                copy(a, b, way)?;
                a.sh(&format!("cd {DIRECTORY} && {change}"))?;
                a.sh("sync")?;
            }
            let begun = Instant::now();
            let (mut measured, ()) = cost(nodes, program(way), || copy(a, b, way))?;
            b.sh(&format!("sync -f {DIRECTORY}"))?;
            measured.durable = begun.elapsed();
            if let Some(list) = costs.get_mut(index) {
                list.push(measured);
            }
            same(a)?;
        }
    }
    clear(a)?;
    clear(b)?;
    Ok(costs)
}

/// Copies, started by somebody who is logged in at the source. `tranship` ends only when the copy is on the disk; the others leave
/// that to the kernel.
fn copy(a: &Node, b: &Node, way: &str) -> Outcome {
    match way {
        "tranship" => {
            let said = a.exec_ok([
                "tranship",
                "volume",
                "copy",
                VOLUME,
                &format!("ssh://root@b//{VOLUME}"),
                "--update",
                "--json",
            ]);
            said?;
        }
        "rsync -aHAX" => {
            make(b)?;
            a.sh(&format!(
                "rsync -aHAX --numeric-ids --delete {DIRECTORY}/ root@b:{DIRECTORY}/"
            ))?;
        }
        _ => {
            make(b)?;
            let pack = "tar --numeric-owner --xattrs --xattrs-include='*' --acls";
            a.sh(&format!(
                "{pack} -C {DIRECTORY} -cf - . | ssh root@b \"{pack} -C {DIRECTORY} -xpf -\""
            ))?;
        }
    }
    Ok(())
}

fn make(node: &Node) -> Outcome {
    node.exec_ok(["docker", "volume", "create", VOLUME])?;
    Ok(())
}

/// A copy that is not equal measures nothing.
fn same(a: &Node) -> Outcome {
    let said = a.sh(&format!(
        "rsync -aHAXn --numeric-ids --delete -i {DIRECTORY}/ root@b:{DIRECTORY}/"
    ))?;
    if said.is_empty() {
        Ok(())
    } else {
        let lines = said.lines().count();
        Err(format!(
            "the copy differs in {lines} entries:\n{}",
            said.lines().take(10).collect::<Vec<_>>().join("\n")
        )
        .into())
    }
}

/// Takes the volume away. Its files are emptied but stay until the bed is taken down: for minutes ext4 passes over the number of
/// every file that was deleted, one by one, each time a file is made, and the next way would pay for the one before.
fn clear(node: &Node) -> Outcome {
    node.sh(&format!(
        "docker rm -f moving >/dev/null 2>&1 || true
         if [ -d {DIRECTORY} ]; then
             mkdir -p {ASIDE}; kept={ASIDE}/$(date +%s%N); mv {DIRECTORY} $kept; mkdir {DIRECTORY}
             find $kept -xdev -type f -size +0 -print0 | xargs -0 -r truncate -s 0
         fi
         docker volume rm {VOLUME} >/dev/null 2>&1 || true
         rm -rf /var/lib/docker/tranship"
    ))?;
    Ok(())
}

/// What a freeze lasted: the last look alone, and from stop to start.
struct Freeze {
    look: Duration,
    downtime: Duration,
}

/// Moves a container whose volume is as `fill` made it, and as `dirty` changed it right before the freeze.
fn freeze(a: &Node, b: &Node, fill: &str, dirty: &str, runs: usize, share: u32) -> Outcome<Vec<Freeze>> {
    let image = a.load_image("python")?;
    b.load_image("python")?;
    clear(a)?;
    a.sh(&format!(
        "docker volume create {VOLUME} && cd {DIRECTORY} && N={share} && {fill} && sync
         docker run -d --name moving --stop-signal KILL -v {VOLUME}:/data {image} sleep infinity"
    ))?;
    let mut freezes = Vec::new();
    for run in 0..runs {
        println!("freeze, run {} of {runs} …", run + 1);
        clear(b)?;
        let view = a.exec_ok([
            "tranship",
            "migrate",
            "moving",
            "--to",
            "ssh://root@b",
            "--mode",
            "warm",
            "--hook-pre-freeze",
            dirty,
            "--json",
            "--quiet",
        ])?;
        let views: Value = serde_json::from_str(&view)?;
        let milliseconds = |value: &Value| {
            value
                .as_u64()
                .map(Duration::from_millis)
                .ok_or("the report lacks a time")
        };
        let last = views[0]["rounds"]
            .as_array()
            .and_then(|rounds| rounds.last())
            .ok_or("no rounds")?;
        freezes.push(Freeze {
            look: milliseconds(&last["took_ms"])?,
            downtime: milliseconds(&views[0]["downtime_ms"])?,
        });
        a.exec_ok(["docker", "start", "moving"])?;
    }
    clear(a)?;
    clear(b)?;
    Ok(freezes)
}

fn print(table: &[(&Case, Vec<Vec<Cost>>)], freezes: &[(&str, Vec<Freeze>)], runs: usize, share: u32) {
    let scale = if share == 1 {
        String::new()
    } else {
        format!("; everything 1/{share} as large")
    };
    println!(
        "\nmedians of {runs} runs, largest memory of all; {}{scale}",
        machine()
    );
    println!(
        "\n| case | way | time | tranship is faster | until it is on the disk | tranship is faster | processor, both hosts | memory, both hosts | on the wire |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (case, costs) in table {
        let medians: Vec<Cost> = costs.iter().map(|list| medians(list)).collect();
        let ours = medians.last().copied().unwrap_or_default();
        for (way, cost) in WAYS.iter().zip(&medians) {
            let ratio = |theirs: Duration, ours: Duration| match *way {
                "tranship" => String::new(),
                _ => format!("{:.1} ×", theirs.as_secs_f64() / ours.as_secs_f64().max(0.001)),
            };
            let share = f64::from(share) * cost.wire as f64 / case.changed.max(1) as f64;
            let wire = match case.changed {
                0 => format!("{:.1} MB", cost.wire as f64 / 1e6),
                _ => format!("{:.1} MB, {share:.2} × what changed", cost.wire as f64 / 1e6),
            };
            println!(
                "| ({}) {} | `{}` | {:.2} s | {} | {:.2} s | {} | {:.2} s | {:.0} MB | {wire} |",
                case.letter,
                case.what,
                way.replace('|', "\\|"),
                cost.time.as_secs_f64(),
                ratio(cost.time, ours.time),
                cost.durable.as_secs_f64(),
                ratio(cost.durable, ours.durable),
                cost.processor.as_secs_f64(),
                cost.memory as f64 / 1e6,
            );
        }
    }
    if !freezes.is_empty() {
        println!("\n| freeze (warm) | last round | downtime |");
        println!("|---|---|---|");
    }
    for (what, list) in freezes {
        let middle =
            |figure: fn(&Freeze) -> Duration| super::measure::median(list.iter().map(figure).collect());
        println!(
            "| {what} | {:.2} s | {:.2} s |",
            middle(|f| f.look).as_secs_f64(),
            middle(|f| f.downtime).as_secs_f64()
        );
    }
}
