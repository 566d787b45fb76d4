//! The second half of `cargo xtask bench image`: an image of 1 GiB in ten layers of which none, five or nine are there, by every way of
//! ours and by what a user would do instead.

use std::path::Path;
use std::time::{Duration, Instant};

use tranship_testkit::testbed::{Node, NodeProcess, Options, Testbed};

use super::image::{clear, ours_by};
use super::measure::{machine, median};

/// Bytes of a layer; ten of them are 1 GiB.
const LAYER: u64 = (1 << 30) / 10;
/// Where the registry of `a` is reached.
const REGISTRY: &str = "a:5443";

/// A way to bring the image over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Save,
    PushPull,
    Skopeo,
    Auto,
    Stream,
    Layers,
}

const WAYS: [(Way, &str); 6] = [
    (Way::Save, "`docker save \\| ssh \\| docker load`"),
    (Way::PushPull, "`docker push`, `docker pull`"),
    (Way::Skopeo, "`skopeo copy`"),
    (Way::Auto, "auto"),
    (Way::Stream, "stream"),
    (Way::Layers, "layers"),
];

/// Runs it `runs` times and prints a table of medians.
pub(super) fn run(tranship: &Path, runs: usize, small: bool) -> Result<(), Box<dyn std::error::Error>> {
    println!("starting two hosts for the image of ten layers …");
    let bed = Testbed::up(Options::default())?;
    let [a, b] = bed.array();
    build(&a, if small { LAYER / 10 } else { LAYER })?;
    a.exec_ok([
        "docker",
        "run",
        "-d",
        "--name",
        "ten",
        "--network",
        "none",
        "ten:10",
    ])?;
    let mut registry = Registry::begin(&a, &b)?;
    // Everything that is set up once.
    ours_by(tranship, &bed, "ten", &[])?;
    clear(&b)?;
    let names: Vec<&str> = WAYS.iter().map(|(_, name)| *name).collect();
    let mut rows = Vec::new();
    for present in [0_usize, 5, 9] {
        let mut medians = Vec::new();
        for (way, name) in WAYS {
            let (mut times, mut wire) = (Vec::new(), 0);
            for run in 0..runs {
                println!(
                    "{present} of 10 layers there, {name}, run {} of {runs} …",
                    run + 1
                );
                registry.prepare(&a, &b, present, way)?;
                let before = b.link_bytes()?.received;
                times.push(measured(way, tranship, &bed)?);
                wire = b.link_bytes()?.received - before;
            }
            medians.push((median(times), wire));
        }
        let cells: Vec<String> = medians
            .iter()
            .map(|(time, wire)| format!("{:.2} s, {:.0} MB", time.as_secs_f64(), *wire as f64 / 1e6))
            .collect();
        let row = format!("| {present} | {} |", cells.join(" | "));
        // The whole takes long: whoever ends it has what was measured so far.
        println!("{row}");
        rows.push(row);
    }
    registry.end(&a)?;
    println!(
        "\nimage of {} MB in 10 layers; seconds and bytes that came to the destination, medians of {runs} runs; {}\n",
        (if small { LAYER / 10 } else { LAYER }) * 10 / 1_000_000,
        machine()
    );
    println!("| layers there | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

/// `ten:1` to `ten:10`, each with one layer of random bytes more.
fn build(a: &Node, layer: u64) -> Result<(), Box<dyn std::error::Error>> {
    a.load_image("busybox")?;
    a.sh(&format!(
        "mkdir -p /srv/ten && cd /srv/ten && export DOCKER_BUILDKIT=0; below=tranship-test/busybox:1; \
         for n in 1 2 3 4 5 6 7 8 9 10; do head -c {layer} /dev/urandom > part; \
         printf \"FROM $below\\nCOPY part /$n\\nCMD [\\\"sleep\\\",\\\"99999\\\"]\\nSTOPSIGNAL KILL\\n\" > Dockerfile; \
         docker build -q -t ten:$n . >/dev/null; below=ten:$n; done"
    ))?;
    Ok(())
}

fn measured(way: Way, tranship: &Path, bed: &Testbed) -> Result<Duration, Box<dyn std::error::Error>> {
    let [a, b] = bed.array();
    let ours = |strategy: &str| ours_by(tranship, bed, "ten", &["--image-strategy", strategy]);
    let begun = Instant::now();
    match way {
        Way::Save => a.sh("docker save ten:10 | ssh root@b docker load >/dev/null")?,
        Way::PushPull => {
            a.sh(&format!("docker tag ten:10 {REGISTRY}/ten:10 && docker push -q {REGISTRY}/ten:10"))?;
            b.sh(&format!("docker pull -q {REGISTRY}/ten:10"))?
        }
        // Straight into the other engine, whose socket ssh carries.
        Way::Skopeo => a.sh(
            "rm -f /run/b.sock; ssh -fnNT -M -S /run/b.ctl -o ExitOnForwardFailure=yes -L /run/b.sock:/var/run/docker.sock root@b && \
             skopeo copy -q --dest-daemon-host unix:///run/b.sock docker-daemon:ten:10 docker-daemon:ten:10; \
             status=$?; ssh -S /run/b.ctl -O exit root@b 2>/dev/null; exit $status",
        )?,
        // What is measured of ours is the image's part, as before.
        Way::Auto => return Ok(ours("auto")?.image),
        Way::Stream => return Ok(ours("stream")?.image),
        Way::Layers => return Ok(ours("layers")?.image),
    };
    Ok(begun.elapsed())
}

/// `docker-registry` at `a`, known to both engines.
struct Registry {
    process: NodeProcess,
}

impl Registry {
    fn begin(a: &Node, b: &Node) -> Result<Self, Box<dyn std::error::Error>> {
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()])?;
        let config = "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: /srv/registry}}\n\
            http: {addr: 0.0.0.0:5443, secret: x, tls: {certificate: /root/registry.crt, key: /root/registry.key}}\n";
        let root = a.root()?.join("root");
        std::fs::write(root.join("registry.crt"), made.cert.pem())?;
        std::fs::write(root.join("registry.key"), made.signing_key.serialize_pem())?;
        std::fs::write(root.join("registry.yml"), config)?;
        for node in [a, b] {
            let directory = node.root()?.join("etc/docker/certs.d").join(REGISTRY);
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join("ca.crt"), made.cert.pem())?;
        }
        Ok(Self { process: serve(a)? })
    }

    /// An empty registry and an empty destination, but for the lower layers. Docker sees that a layer is there only where it pulled it, so
    /// that for its own way the lower layers come by that way.
    fn prepare(
        &mut self,
        a: &Node,
        b: &Node,
        present: usize,
        way: Way,
    ) -> Result<(), Box<dyn std::error::Error>> {
        clear(b)?;
        if way == Way::PushPull {
            self.end(a)?;
            a.sh("rm -rf /srv/registry")?;
            self.process = serve(a)?;
        }
        if present > 0 {
            let lower = format!("ten:{present}");
            if way == Way::PushPull {
                a.sh(&format!(
                    "docker tag {lower} {REGISTRY}/{lower} && docker push -q {REGISTRY}/{lower}"
                ))?;
                b.sh(&format!("docker pull -q {REGISTRY}/{lower}"))?;
            } else {
                a.sh(&format!(
                    "docker save {lower} | ssh root@b docker load >/dev/null"
                ))?;
            }
        }
        b.sh("sync")?;
        Ok(())
    }

    fn end(&mut self, a: &Node) -> Result<(), Box<dyn std::error::Error>> {
        a.sh("kill $(cat /root/registry.pid)")?;
        self.process.wait()?;
        Ok(())
    }
}

fn serve(a: &Node) -> Result<NodeProcess, Box<dyn std::error::Error>> {
    let process = a.spawn(["sh", "-c", "echo $$ > /root/registry.pid; exec docker-registry serve /root/registry.yml > /root/registry.log 2>&1"])?;
    a.sh(
        "for n in $(seq 100); do curl -sk -o /dev/null https://a:5443/v2/ && exit 0; sleep 0.1; done; exit 1",
    )?;
    Ok(process)
}
