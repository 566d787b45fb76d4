//! `cargo xtask bench image`: bringing an image over, side by side with what a user would do instead.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tranship_testkit::testbed::{Node, Options, Testbed};

use super::measure::{machine, median};
use crate::build;

/// One measurement of ours.
pub(super) struct Ours {
    pub(super) image: Duration,
    whole: Duration,
    bytes: u64,
}

/// Runs the benchmark `runs` times and prints a table of medians.
pub(super) fn run(runs: usize, small: bool) -> Result<(), Box<dyn std::error::Error>> {
    println!("building tranship (release) …");
    let tranship = build::release()?;
    println!("starting two hosts …");
    let bed = Testbed::up(Options::default())?;
    let [a, b] = bed.array();
    let first = a.load_image("web:1")?;
    let second = a.load_image("web:2")?;
    for (name, image) in [("one", &first), ("two", &second)] {
        a.exec_ok(["docker", "run", "-d", "--name", name, image])?;
    }
    // Everything that is set up once: the upload of tranship, the agents, ssh's caches.
    ours(&tranship, &bed, "one")?;
    clear(&b)?;
    let mut rows = Vec::new();
    for (case, container, image, present) in [
        ("fresh image", "one", &first, None),
        ("1 layer missing", "two", &second, Some("web:1")),
    ] {
        let (mut theirs, mut image_phase, mut whole, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for run in 0..runs {
            println!("{case}, run {} of {runs} …", run + 1);
            prepare(&b, present)?;
            theirs.push(pipeline(&a, image)?);
            prepare(&b, present)?;
            let measured = ours(&tranship, &bed, container)?;
            image_phase.push(measured.image);
            whole.push(measured.whole);
            bytes = measured.bytes;
        }
        clear(&b)?;
        rows.push((case, median(theirs), median(image_phase), median(whole), bytes));
    }
    let size = a.exec_ok(["docker", "image", "inspect", "--format", "{{.Size}}", &second])?;
    let layers = a.exec_ok([
        "docker",
        "image",
        "inspect",
        "--format",
        "{{len .RootFS.Layers}}",
        &second,
    ])?;
    println!(
        "\nimage of {} layers, {} MB; medians of {runs} runs; {}",
        layers.trim(),
        size.trim().parse::<u64>()? / 1_000_000,
        machine()
    );
    println!(
        "\n| case | `docker save \\| ssh \\| docker load` | tranship, image | ratio | tranship, whole migration | bytes of image sent |"
    );
    println!("|---|---|---|---|---|---|");
    for (case, theirs, image, whole, bytes) in rows {
        println!(
            "| {case} | {:.2} s | {:.2} s | {:.1} | {:.2} s | {:.1} MB |",
            theirs.as_secs_f64(),
            image.as_secs_f64(),
            theirs.as_secs_f64() / image.as_secs_f64().max(0.001),
            whole.as_secs_f64(),
            bytes as f64 / 1e6
        );
    }
    drop(bed);
    super::ways::run(&tranship, runs, small)
}

/// What a user does today, from the source, straight to the destination.
fn pipeline(a: &Node, image: &str) -> Result<Duration, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    a.sh(&format!(
        "set -o pipefail 2>/dev/null; docker save {image} | ssh root@b docker load >/dev/null"
    ))?;
    Ok(begun.elapsed())
}

/// A migration that leaves the source running, and takes the container away at the destination afterwards.
fn ours(tranship: &Path, bed: &Testbed, container: &str) -> Result<Ours, Box<dyn std::error::Error>> {
    ours_by(tranship, bed, container, &[])
}

/// The same with more options.
pub(super) fn ours_by(
    tranship: &Path,
    bed: &Testbed,
    container: &str,
    options: &[&str],
) -> Result<Ours, Box<dyn std::error::Error>> {
    let state = tempfile::tempdir()?;
    let begun = Instant::now();
    let output = Command::new(tranship)
        .args([
            "migrate",
            container,
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
        ])
        .args(["--mode", "stateless", "--on-source", "keep", "--json", "--quiet"])
        .args(options)
        .env("TRANSHIP_SSH_CONFIG", bed.ssh_config())
        .env("TRANSHIP_STATE_DIR", state.path())
        .stdin(Stdio::null())
        .output()?;
    let whole = begun.elapsed();
    if !output.status.success() {
        return Err(format!(
            "tranship: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let views: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let view = &views[0];
    let phase = view["phases"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["phase"] == "image");
    let took = phase
        .and_then(|p| p["took_ms"].as_u64())
        .ok_or("the report has no image phase")?;
    Ok(Ours {
        image: Duration::from_millis(took),
        whole,
        bytes: view["bytes_sent"].as_u64().unwrap_or(0),
    })
}

/// Nothing at the destination but, if asked for, one image.
fn prepare(b: &Node, present: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    clear(b)?;
    if let Some(image) = present {
        b.load_image(image)?;
    }
    b.sh("sync")?;
    Ok(())
}

pub(super) fn clear(b: &Node) -> Result<(), Box<dyn std::error::Error>> {
    b.sh("docker ps -aq | xargs -r docker rm -f >/dev/null; docker images -aq | sort -u | xargs -r docker rmi -f >/dev/null")?;
    Ok(())
}
