//! Copying files into and out of a container, against `docker cp`; and from a container to one of another host, against
//! `docker cp | ssh | docker cp`.

use std::error::Error;

use tranship_testkit::testbed::Node;

use super::measure::{Cost, cost, machine, medians};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Where the files are: on the host, and in its container by the same path.
const DIRECTORY: &str = "/srv/bench";

/// Which way files go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
    Across,
}

/// One row of the table.
struct Case {
    letter: &'static str,
    what: &'static str,
    direction: Direction,
    /// Shell script that fills the directory `tree`, which is current; `$N` is the share of the whole, 1 or 10.
    fill: &'static str,
}

const LARGE: &str = "head -c $((1073741824 / N)) /dev/urandom > random";
/// A hundred directories of two hundred files of 4 KiB.
const SMALL: &str = "head -c $((81920000 / N)) /dev/urandom > /run/random
    for d in $(seq 0 $((100 / N - 1))); do mkdir dir$d
        dd if=/run/random bs=819200 skip=$d count=1 status=none | (cd dir$d && split -b 4096 -a 3 -d - file); done
    rm /run/random";

const CASES: [Case; 6] = [
    Case {
        letter: "a",
        what: "one file of 1 GiB, in",
        direction: Direction::In,
        fill: LARGE,
    },
    Case {
        letter: "b",
        what: "one file of 1 GiB, out",
        direction: Direction::Out,
        fill: LARGE,
    },
    Case {
        letter: "c",
        what: "20,000 files of 4 KiB, in",
        direction: Direction::In,
        fill: SMALL,
    },
    Case {
        letter: "d",
        what: "20,000 files of 4 KiB, out",
        direction: Direction::Out,
        fill: SMALL,
    },
    Case {
        letter: "e",
        what: "one file of 1 GiB, to another host",
        direction: Direction::Across,
        fill: LARGE,
    },
    Case {
        letter: "f",
        what: "20,000 files of 4 KiB, to another host",
        direction: Direction::Across,
        fill: SMALL,
    },
];

/// Runs the cases and prints a table of medians.
pub(super) fn run(runs: usize, rows: &[String], small: bool) -> Outcome {
    let bed = super::hosts()?;
    let [a, b] = bed.array();
    for node in [&a, &b] {
        let image = node.load_image("busybox")?;
        node.sh(&format!(
            "docker run -d --name box --network none {image} sleep 86400 && docker exec box mkdir -p {DIRECTORY}"
        ))?;
    }
    // Everything that is set up once: the agents, ssh's caches.
    a.sh("tranship cp box:/bin/busybox ssh://root@b//box:/tmp/warm-up && docker cp box:/bin/busybox /tmp/warm-up")?;
    let share = if small { 10 } else { 1 };
    let wanted = |letter: &str| rows.is_empty() || rows.iter().any(|row| row == letter);
    let mut table = Vec::new();
    for case in CASES.iter().filter(|case| wanted(case.letter)) {
        table.push((case, measure([&a, &b], case, runs, share)?));
    }
    print(&table, runs, share);
    Ok(())
}

/// Measures docker's way and ours in turn.
fn measure(nodes: [&Node; 2], case: &Case, runs: usize, share: u32) -> Outcome<[Vec<Cost>; 2]> {
    let [a, _] = nodes;
    println!("({}) {}: preparing …", case.letter, case.what);
    a.sh(&format!(
        "mkdir -p {DIRECTORY}/tree && cd {DIRECTORY}/tree && N={share} && {}",
        case.fill
    ))?;
    if case.direction != Direction::In {
        a.sh(&format!("docker cp {DIRECTORY}/tree box:{DIRECTORY}"))?;
    }
    let mut costs = [Vec::new(), Vec::new()];
    for run in 0..runs {
        for (program, list) in ["docker", "tranship"].into_iter().zip(&mut costs) {
            println!("({}) {program}, run {} of {runs} …", case.letter, run + 1);
            let target = format!("{DIRECTORY}/{program}-{run}");
            let script = prepare(nodes, case.direction, program, &target)?;
            let (measured, _) = cost(nodes, program, || Ok(a.sh(&script)?))?;
            list.push(measured);
            same(nodes, case.direction, &format!("{target}/tree"))?;
        }
    }
    // Small files stay until the bed is taken down, out of the way.
    let away = match case.fill == LARGE {
        true => format!("rm -rf {DIRECTORY}/*"),
        false => format!(
            "mkdir -p {DIRECTORY}/x {DIRECTORY}-{0} && mv {DIRECTORY}/* {DIRECTORY}-{0}",
            case.letter
        ),
    };
    for node in nodes {
        node.sh(&format!("{away} && docker exec box sh -c '{away}'"))?;
    }
    Ok(costs)
}

/// Makes the directory that a copy goes to, and the script that copies. Every copy has a directory of its own, which stays until all
/// are made: for minutes ext4 passes over the number of every file that was deleted, one by one, each time a file is made.
fn prepare(nodes: [&Node; 2], direction: Direction, program: &str, target: &str) -> Outcome<String> {
    let [a, b] = nodes;
    let inside = format!("docker exec box mkdir -p {target}");
    let script = match direction {
        Direction::In => {
            a.sh(&inside)?;
            format!("{program} cp {DIRECTORY}/tree box:{target}")
        }
        Direction::Out => {
            a.sh(&format!("mkdir -p {target}"))?;
            format!("{program} cp box:{DIRECTORY}/tree {target}")
        }
        Direction::Across => {
            b.sh(&inside)?;
            match program {
                "docker" => format!("docker cp box:{DIRECTORY}/tree - | ssh root@b docker cp - box:{target}"),
                _ => format!("tranship cp box:{DIRECTORY}/tree ssh://root@b//box:{target}"),
            }
        }
    };
    a.sh("sync")?;
    Ok(script)
}

/// A copy that is not equal measures nothing.
fn same(nodes: [&Node; 2], direction: Direction, target: &str) -> Outcome {
    let [a, b] = nodes;
    let sums = |place: &str| format!("cd {place} && find . -type f | LC_ALL=C sort | xargs md5sum | md5sum");
    let wanted = a.sh(&sums(&format!("{DIRECTORY}/tree")))?;
    let inside = |node: &Node| {
        let pid = node.sh("docker inspect -f '{{.State.Pid}}' box")?;
        node.sh(&sums(&format!("/proc/{}/root{target}", pid.trim())))
    };
    let got = match direction {
        Direction::In => inside(a)?,
        Direction::Out => a.sh(&sums(target))?,
        Direction::Across => inside(b)?,
    };
    if wanted == got {
        Ok(())
    } else {
        Err("the copy differs from what was copied".into())
    }
}

fn print(table: &[(&Case, [Vec<Cost>; 2])], runs: usize, share: u32) {
    let scale = if share == 1 {
        String::new()
    } else {
        format!("; everything 1/{share} as large")
    };
    println!("\nmedians of {runs} runs; {}{scale}", machine());
    println!(
        "\n| case | `docker cp` | `tranship cp` | tranship is faster | processor, docker and tranship | on the wire |"
    );
    println!("|---|---|---|---|---|---|");
    for (case, costs) in table {
        let [docker, ours] = [medians(&costs[0]), medians(&costs[1])];
        println!(
            "| ({}) {} | {:.2} s | {:.2} s | {:.2} × | {:.2} s, {:.2} s | {:.1} MB |",
            case.letter,
            case.what,
            docker.time.as_secs_f64(),
            ours.time.as_secs_f64(),
            docker.time.as_secs_f64() / ours.time.as_secs_f64().max(0.001),
            docker.processor.as_secs_f64(),
            ours.processor.as_secs_f64(),
            ours.wire as f64 / 1e6,
        );
    }
}
