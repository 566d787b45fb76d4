//! A service that writes each line that it is sent to its volume, durably, and answers then. Shows that no line that it answered
//! for was lost.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tranship_testkit::testbed::Node;

use super::{Stage, show_containers};

const PORT: u16 = 7000;
const LOG: &str = "/var/lib/docker/volumes/lines/_data/log";

/// What the client saw.
#[derive(Debug, Default)]
struct Seen {
    /// Lines that were answered for, with the place in the log that the answer named, by the node that answered.
    answered: [Vec<(u64, String)>; 2],
    /// The longest time between two answers.
    longest_gap: Duration,
}

/// Moves the service while a client writes.
pub(super) fn run(stage: &Stage, mode: &str) -> Result<(), Box<dyn Error>> {
    let (a, b) = (&stage.a, &stage.b);
    println!("\nA service with a volume: it answers for a line once fsync has returned.");
    let image = a.load_image("python")?;
    let options = ["-p", "7000:7000", "-v", "lines:/lines", "--restart", "always"];
    a.exec_ok(
        ["docker", "run", "-d", "--name", "lines"]
            .iter()
            .chain(&options)
            .chain(&[image.as_str(), "append-service", "/lines"]),
    )?;
    let hosts = [a.address(), b.address()];
    wait_until_answered(hosts[0])?;
    // Something to carry beside the lines.
    a.sh("head -c 200000000 /dev/urandom > /var/lib/docker/volumes/lines/_data/ballast")?;
    show_containers(a, false)?;
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || write_without_end(hosts, &stop))
    };
    std::thread::sleep(Duration::from_secs(1));
    let moved = stage.migrate("lines", mode);
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let seen = client.join().map_err(|_| "the client ended early")?;
    show_containers(a, true)?;
    show_containers(b, true)?;
    moved?;
    let lost = lost(b, &seen)?;
    println!(
        "\nthe client: {} lines answered for by a, {} by b; {lost} of them are missing in the volume on b; longest time between \
         two answers {} ms",
        seen.answered[0].len(),
        seen.answered[1].len(),
        seen.longest_gap.as_millis()
    );
    if seen.answered[1].is_empty() {
        return Err("the service did not answer at its new place".into());
    }
    if lost > 0 {
        return Err(format!("{lost} lines were lost, and none should have been").into());
    }
    Ok(())
}

/// Lines that were answered for and are not where the answer said.
fn lost(node: &Node, seen: &Seen) -> Result<usize, Box<dyn Error>> {
    let log = node.sh(&format!("cat {LOG}"))?;
    // `SEQUENCE START TEXT`
    let lines: Vec<&str> = log
        .lines()
        .map(|line| line.splitn(3, ' ').nth(2).unwrap_or_default())
        .collect();
    let missing = seen.answered.iter().flatten().filter(|(sequence, text)| {
        let index = usize::try_from(sequence.saturating_sub(1)).unwrap_or(usize::MAX);
        lines.get(index).is_none_or(|line| line != text)
    });
    Ok(missing.count())
}

fn write_without_end(hosts: [Ipv4Addr; 2], stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let Some((node, mut stream)) = (0..2).find_map(|n| Some((n, connect(hosts[n]).ok()?))) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let text = format!("line {number} of the client");
            // Without an answer the client knows nothing of this line, and goes on with another.
            let Ok(sequence) = append(&mut stream, &text) else {
                break;
            };
            seen.answered[node].push((sequence, text));
            seen.longest_gap = seen.longest_gap.max(last.elapsed());
            last = Instant::now();
        }
    }
    seen
}

fn connect(host: Ipv4Addr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((host, PORT)), Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn append(stream: &mut BufReader<TcpStream>, text: &str) -> std::io::Result<u64> {
    stream.get_mut().write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    let sequence = answer.split(' ').next().and_then(|number| number.parse().ok());
    sequence.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

fn wait_until_answered(host: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let answered = connect(host).and_then(|mut stream| {
            stream.get_mut().write_all(b"?\n")?;
            stream.read_line(&mut String::new())
        });
        if answered.is_ok_and(|bytes| bytes > 0) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the service did not begin to answer within 30 s".into())
}
