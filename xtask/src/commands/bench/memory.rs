//! Moving a process with a gigabyte in memory, of which a hundredth changes every second: against what the engine offers for it, and
//! against the mere dump and restore without any copying.

use std::error::Error;
use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::{Engine, Node};

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
#[derive(Debug)]
struct Way {
    name: &'static str,
    downtime: Vec<Duration>,
    total: Vec<Duration>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            downtime: Vec::new(),
            total: Vec::new(),
        }
    }

    fn note(&mut self, downtime: Duration, total: Duration) {
        self.downtime.push(downtime);
        self.total.push(total);
    }

    /// A way that does nothing while the program runs.
    fn note_all(&mut self, took: Duration) {
        self.note(took, took);
    }
}

/// Two hosts, and what runs there.
struct Hosts {
    a: Node,
    b: Node,
    client: &'static str,
    image: String,
    size: u64,
}

/// Runs the ways in turn and prints a table of medians.
pub(super) fn run(runs: usize, small: bool, engine: Engine) -> Outcome {
    let bed = super::hosts_of(engine)?;
    let [a, b] = bed.array();
    let image = a.load_image("python")?;
    b.load_image("python")?;
    let hosts = Hosts {
        a,
        b,
        client: engine.client(),
        image,
        size: if small { 64 << 20 } else { 1 << 30 },
    };
    let mut ours = Way::new("`tranship migrate --mode live`");
    let mut others = match engine {
        Engine::Docker => vec![
            Way::new("`docker checkpoint create`, copy, `docker start --checkpoint`"),
            Way::new("dump and restore on one host, nothing copied"),
        ],
        Engine::Podman => vec![
            Way::new("`podman container checkpoint --export`, copy, `podman container restore --import`"),
            Way::new("the same with `--compress none`"),
            Way::new("`podman container checkpoint` and `restore` on one host, nothing copied"),
        ],
    };
    let mut sent = Vec::new();
    for run in 0..runs {
        println!("{}, run {} of {runs} …", ours.name, run + 1);
        hosts.start()?;
        sent.push(hosts.migrate(&mut ours)?);
        hosts.forget()?;
        for (which, way) in others.iter_mut().enumerate() {
            println!("{}, run {} of {runs} …", way.name, run + 1);
            hosts.start()?;
            match (engine, which) {
                (Engine::Docker, 0) => hosts.docker(way)?,
                (Engine::Docker, _) => hosts.dump_and_restore(way)?,
                (Engine::Podman, 0) => hosts.podman(way, "")?,
                (Engine::Podman, 1) => hosts.podman(way, "--compress none")?,
                (Engine::Podman, _) => hosts.podman_on_one_host(way)?,
            }
            hosts.forget()?;
        }
    }
    others.push(ours);
    print(&others, &mut sent, runs, hosts.size);
    Ok(())
}

impl Hosts {
    fn program(&self) -> String {
        format!("PROGRAM='{}'", PROGRAM.replace('\'', "'\\''"))
    }

    fn arguments(&self) -> String {
        format!("--name box {} python3 -c \"$PROGRAM\" {}", self.image, self.size)
    }

    fn start(&self) -> Outcome {
        let (program, client, arguments) = (self.program(), self.client, self.arguments());
        self.a.sh(&format!(
            "{program}; {client} run -d {arguments} && until {client} logs box | grep -q filled; do sleep 0.1; done; sleep 1"
        ))?;
        Ok(())
    }

    fn forget(&self) -> Outcome {
        for node in [&self.a, &self.b] {
            node.sh(&format!("{} rm -f box > /dev/null 2>&1 || true", self.client))?;
        }
        Ok(())
    }

    /// Bytes that were sent in the freeze.
    fn migrate(&self, way: &mut Way) -> Outcome<u64> {
        let report = self.a.sh(
            "tranship migrate box --from ssh://root@a --to ssh://root@b --mode live --json --on-source remove 2> /run/bench.log || { cat /run/bench.log >&2; exit 1; }",
        )?;
        let report: Value = serde_json::from_str(&report)?;
        let ms = |key: &str| Duration::from_millis(report[0][key].as_u64().unwrap_or_default());
        way.note(ms("downtime_ms"), ms("total_ms"));
        let rounds = report[0]["rounds"].as_array();
        let frozen = rounds.and_then(|rounds| rounds.last().cloned());
        Ok(frozen.and_then(|r| r["wire_bytes"].as_u64()).unwrap_or_default())
    }

    /// What a person would do with Docker: the checkpoint's directory as an archive through ssh.
    fn docker(&self, way: &mut Way) -> Outcome {
        self.b
            .sh(&format!("{}; docker create {}", self.program(), self.arguments()))?;
        let begun = Instant::now();
        self.a.sh("docker checkpoint create box bench")?;
        self.a.sh(
            "tar -C /var/lib/docker/containers/$(docker inspect -f '{{.Id}}' box)/checkpoints -cf - bench |
             ssh root@b 'to=/var/lib/docker/containers/$(docker inspect -f \"{{.Id}}\" box)/checkpoints; mkdir -p $to && tar -C $to -xf -'",
        )?;
        self.b.sh("docker start --checkpoint bench box")?;
        way.note_all(begun.elapsed());
        Ok(())
    }

    fn dump_and_restore(&self, way: &mut Way) -> Outcome {
        let begun = Instant::now();
        self.a.sh(
            "id=$(docker inspect -f '{{.Id}}' box) && runc --root /run/docker/runtime-runc/moby checkpoint --tcp-established --file-locks \
             --image-path /dev/shm/bench --work-path /dev/shm/bench.work $id",
        )?;
        let dump = begun.elapsed();
        self.a.sh(LINKS)?;
        let begun = Instant::now();
        self.a.sh("docker start --checkpoint bench box")?;
        way.note_all(dump + begun.elapsed());
        self.a.sh("rm -rf /dev/shm/bench /dev/shm/bench.work")?;
        Ok(())
    }

    /// What a person would do with Podman: its archive, in memory at both ends.
    fn podman(&self, way: &mut Way, compress: &str) -> Outcome {
        let begun = Instant::now();
        self.a.sh(&format!(
            "podman container checkpoint {compress} --export /dev/shm/box.tar box && scp -q /dev/shm/box.tar root@b:/dev/shm/"
        ))?;
        self.b.sh("podman container restore --import /dev/shm/box.tar")?;
        way.note_all(begun.elapsed());
        for node in [&self.a, &self.b] {
            node.sh("rm /dev/shm/box.tar")?;
        }
        Ok(())
    }

    fn podman_on_one_host(&self, way: &mut Way) -> Outcome {
        let begun = Instant::now();
        self.a
            .sh("podman container checkpoint box && podman container restore box")?;
        way.note_all(begun.elapsed());
        Ok(())
    }
}

/// Lays the dump out for the engine: small images as files, large ones as relative links.
const LINKS: &str = "while [ \"$(docker inspect -f '{{.State.Running}}' box)\" = true ]; do sleep 0.05; done
    to=/var/lib/docker/containers/$(docker inspect -f '{{.Id}}' box)/checkpoints/bench; mkdir -p $to
    for f in /dev/shm/bench/*; do
        if [ $(stat -c %s $f) -gt 65536 ]; then ln -s ../../../../../../../../../..$f $to/; else cp $f $to/; fi
    done";

fn print(ways: &[Way], sent: &mut [u64], runs: usize, size: u64) {
    let middle = |list: &[Duration]| median(list.to_vec()).as_secs_f64();
    let ours = ways.last().map_or(1.0, |ours| middle(&ours.downtime));
    println!();
    println!(
        "{} MiB, every hundredth page changed once a second; medians of {runs} runs; {}",
        size >> 20,
        machine()
    );
    println!("| way | downtime | of all runs | total | downtime, by tranship's |");
    println!("|---|---|---|---|---|");
    for way in ways {
        let down = middle(&way.downtime);
        let ends = |end: Option<&Duration>| end.map_or(0.0, Duration::as_secs_f64);
        println!(
            "| {} | {down:.2} s | {:.2} to {:.2} s | {:.2} s | {:.2} |",
            way.name,
            ends(way.downtime.iter().min()),
            ends(way.downtime.iter().max()),
            middle(&way.total),
            down / ours
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
