//! Moving a process with a gigabyte in memory, of which a hundredth changes every second: against what docker offers for it, and against
//! the mere dump and restore without any copying.

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::Node;

use super::measure::{machine, median};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Fills its memory with what does not compress, and changes every hundredth page once a second, always to something else.
const PROGRAM: &str = "import mmap, os, sys, time
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 1 << 20): memory[at:at + (1 << 20)] = os.urandom(1 << 20)
print('filled', flush=True)
while True:
    word = os.urandom(8)
    for at in range(0, size, 409600): memory[at:at + 8] = word
    time.sleep(1)
";

/// How a way did.
#[derive(Debug, Default)]
struct Way {
    downtime: Vec<Duration>,
    total: Vec<Duration>,
}

/// Runs the ways in turn and prints a table of medians.
pub(super) fn run(runs: usize, small: bool) -> Outcome {
    let bed = super::hosts()?;
    let [a, b] = bed.array();
    let image = a.load_image("python")?;
    b.load_image("python")?;
    let size: u64 = if small { 64 << 20 } else { 1 << 30 };
    let mut ways = [Way::default(), Way::default(), Way::default()];
    let mut sent = Vec::new();
    for run in 0..runs {
        println!("tranship, run {} of {runs} …", run + 1);
        start(&a, &image, size)?;
        let report = a.sh(
            "tranship migrate box --from ssh://root@a --to ssh://root@b --mode live --json --on-source remove 2> /run/bench.log || { cat /run/bench.log >&2; exit 1; }",
        )?;
        let report: Value = serde_json::from_str(&report)?;
        let ms = |key: &str| Duration::from_millis(report[0][key].as_u64().unwrap_or_default());
        note(&mut ways[0], ms("downtime_ms"), ms("total_ms"));
        let frozen = report[0]["rounds"]
            .as_array()
            .and_then(|rounds| rounds.last().cloned());
        sent.push(frozen.and_then(|r| r["wire_bytes"].as_u64()).unwrap_or_default());
        b.sh("docker rm -f box")?;

        println!("docker checkpoint, copy, start, run {} of {runs} …", run + 1);
        start(&a, &image, size)?;
        create(&b, &image, size)?;
        let begun = Instant::now();
        a.sh("docker checkpoint create box bench")?;
        copy(&a)?;
        b.sh("docker start --checkpoint bench box")?;
        let took = begun.elapsed();
        note(&mut ways[1], took, took);
        forget([&a, &b])?;

        println!("dump and restore alone, run {} of {runs} …", run + 1);
        start(&a, &image, size)?;
        let begun = Instant::now();
        a.sh(
            "id=$(docker inspect -f '{{.Id}}' box) && runc --root /run/docker/runtime-runc/moby checkpoint --tcp-established --file-locks \
             --image-path /dev/shm/bench --work-path /dev/shm/bench.work $id",
        )?;
        let dump = begun.elapsed();
        a.sh(LINKS)?;
        let begun = Instant::now();
        a.sh("docker start --checkpoint bench box")?;
        let took = dump + begun.elapsed();
        note(&mut ways[2], took, took);
        a.sh("rm -rf /dev/shm/bench /dev/shm/bench.work")?;
        forget([&a, &b])?;
    }
    print(&ways, &mut sent, runs, size);
    Ok(())
}

/// Lays the dump out for the engine: small images as files, large ones as relative links.
const LINKS: &str = "while [ \"$(docker inspect -f '{{.State.Running}}' box)\" = true ]; do sleep 0.05; done
    to=/var/lib/docker/containers/$(docker inspect -f '{{.Id}}' box)/checkpoints/bench; mkdir -p $to
    for f in /dev/shm/bench/*; do
        if [ $(stat -c %s $f) -gt 65536 ]; then ln -s ../../../../../../../../../..$f $to/; else cp $f $to/; fi
    done";

fn note(way: &mut Way, downtime: Duration, total: Duration) {
    way.downtime.push(downtime);
    way.total.push(total);
}

fn arguments(image: &str, size: u64) -> String {
    format!("--name box {image} python3 -c \"$PROGRAM\" {size}")
}

fn start(node: &Node, image: &str, size: u64) -> Outcome {
    node.sh(&format!(
        "PROGRAM='{}'; docker run -d {} && until docker logs box | grep -q filled; do sleep 0.1; done; sleep 1",
        PROGRAM.replace('\'', "'\\''"),
        arguments(image, size)
    ))?;
    Ok(())
}

fn create(node: &Node, image: &str, size: u64) -> Outcome {
    node.sh(&format!(
        "PROGRAM='{}'; docker create {}",
        PROGRAM.replace('\'', "'\\''"),
        arguments(image, size)
    ))?;
    Ok(())
}

/// What a person would do: the checkpoint's directory as an archive through ssh.
fn copy(from: &Node) -> Outcome {
    from.sh(
        "tar -C /var/lib/docker/containers/$(docker inspect -f '{{.Id}}' box)/checkpoints -cf - bench |
         ssh root@b 'to=/var/lib/docker/containers/$(docker inspect -f \"{{.Id}}\" box)/checkpoints; mkdir -p $to && tar -C $to -xf -'",
    )?;
    Ok(())
}

fn forget(nodes: [&Node; 2]) -> Outcome {
    for node in nodes {
        node.sh("docker rm -f box > /dev/null 2>&1 || true")?;
    }
    Ok(())
}

fn print(ways: &[Way; 3], sent: &mut [u64], runs: usize, size: u64) {
    let [ours, docker, raw] = ways;
    let middle = |list: &[Duration]| median(list.to_vec());
    let ours_down = middle(&ours.downtime).as_secs_f64();
    println!();
    println!(
        "{} MiB, every hundredth page changed once a second; medians of {runs} runs; {}",
        size >> 20,
        machine()
    );
    println!("| way | downtime | total | downtime, by tranship's |");
    println!("|---|---|---|---|");
    for (name, way) in [
        (
            "`docker checkpoint create`, copy, `docker start --checkpoint`",
            docker,
        ),
        ("dump and restore on one host, nothing copied", raw),
        ("`tranship migrate --mode live`", ours),
    ] {
        let down = middle(&way.downtime).as_secs_f64();
        println!(
            "| {name} | {down:.2} s | {:.2} s | {:.2} |",
            middle(&way.total).as_secs_f64(),
            down / ours_down
        );
    }
    sent.sort_unstable();
    let frozen = sent.get(sent.len() / 2).copied().unwrap_or_default();
    println!(
        "sent in the freeze: {:.1} MB; a hundredth of the memory is {:.1} MB",
        megabytes(frozen),
        megabytes(size / 100)
    );
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
