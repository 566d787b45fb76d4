//! A service that says that a line is durable only once it is: no line that it answered for is ever missing.

use std::io::BufReader;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{long, volume};
use crate::world::{self, World, wait_until};

const PORT: u16 = 7000;

/// A line that the service answered for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Acknowledged {
    sequence: u64,
    /// How often the service had been started then.
    start: u64,
    text: String,
}

fn connect(address: Ipv4Addr) -> std::io::Result<BufReader<TcpStream>> {
    world::converse(address, PORT)
}

fn ask(stream: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<(u64, u64)> {
    let answer = world::ask(stream, line)?;
    let numbers = answer
        .split_once(' ')
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| std::io::Error::other(answer))
}

/// Appends lines, one connection at a time, to whichever host answers, until told to stop.
fn client(name: usize, hosts: [Ipv4Addr; 2], stop: &AtomicBool, count: &AtomicUsize) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut stream) = hosts.iter().find_map(|host| connect(*host).ok()) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let text = format!("{name}-{number}");
            match ask(&mut stream, &format!("{text}\n")) {
                Ok((sequence, start)) => {
                    acknowledged.push(Acknowledged {
                        sequence,
                        start,
                        text,
                    });
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // It may have been written or not; nobody was told.
                Err(_) => break,
            }
        }
    }
    acknowledged
}

/// Looks whether both hosts answer at once: the first, the second, and the first again.
fn overlaps(hosts: [Ipv4Addr; 2], stop: &AtomicBool) -> Vec<String> {
    let answers = |host: Ipv4Addr| {
        connect(host).and_then(|mut stream| {
            stream
                .get_ref()
                .set_read_timeout(Some(Duration::from_millis(300)))?;
            ask(&mut stream, "?\n")
        })
    };
    let mut found = Vec::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let (one, other) = if turn % 2 == 0 {
            (hosts[0], hosts[1])
        } else {
            (hosts[1], hosts[0])
        };
        if let Ok(first) = answers(one)
            && let Ok(second) = answers(other)
            && let Ok(third) = answers(one)
        {
            found.push(format!(
                "{one} said {first:?}, {other} said {second:?}, {one} said {third:?}"
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    found
}

/// Every line that was answered for is there, once, at its place; and the places are without a gap.
fn check(world: &World, at_b: bool, acknowledged: &[Acknowledged]) {
    let node = if at_b { &world.b } else { &world.a };
    let log = node.sh(&format!("cat {}/log", volume("lines"))).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let mut start_before = 0;
    for (index, line) in lines.iter().enumerate() {
        let mut words = line.splitn(3, ' ');
        let sequence: u64 = words.next().unwrap().parse().unwrap();
        let start: u64 = words.next().unwrap().parse().unwrap();
        assert_eq!(sequence, index as u64 + 1, "the log has a gap or a double");
        assert!(
            start >= start_before,
            "an earlier instance wrote after a later one: {line}"
        );
        start_before = start;
    }
    for line in acknowledged {
        let there = usize::try_from(line.sequence - 1)
            .ok()
            .and_then(|index| lines.get(index))
            .copied();
        let text = format!("{} {} {}", line.sequence, line.start, line.text);
        assert_eq!(
            there,
            Some(text.as_str()),
            "a line that was answered for is missing"
        );
    }
}

#[test]
fn no_line_that_was_answered_for_is_lost() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    let options = [
        "-p",
        "7000:7000",
        "-v",
        "lines:/lines",
        "--restart",
        "always",
        "--stop-signal",
        "TERM",
    ];
    world.hold_from(&image, &options, &["append-service", "/lines"]);
    let hosts = [world.a.address(), world.b.address()];
    wait_until(|| connect(hosts[0]).is_ok());
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..3)
        .map(|name| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || client(name, hosts, &stop, &count))
        })
        .collect();
    let wait_for_lines = || {
        let before = count.load(Ordering::Relaxed);
        wait_until(|| count.load(Ordering::Relaxed) >= before + 200);
    };
    let watcher = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || overlaps(hosts, &stop)
    });
    let moves = if long() { 20 } else { 6 };
    for turn in 0..moves {
        let (from, to) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let mode = if turn % 4 < 2 { "cold" } else { "warm" };
        wait_for_lines();
        let options = ["--mode", mode, "--replace", "--volume-conflict", "replace"];
        let options = if turn == 0 { &options[..2] } else { &options[..] };
        // A move that fails in the middle is one more thing that must lose nothing.
        if turn % 3 == 1 {
            let node = if to == "b" { &world.b } else { &world.a };
            world.arm(node, "destination.started=fail");
            world.migrate_between(from, to, options).expect(4);
            world.arm(node, "none");
        }
        world.migrate_between(from, to, options).expect(0);
    }
    wait_for_lines();
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged: Vec<Acknowledged> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
    acknowledged.sort_by_key(|line| line.sequence);
    let doubles = acknowledged
        .windows(2)
        .filter(|w| w[0].sequence == w[1].sequence)
        .count();
    assert_eq!(doubles, 0, "two lines were given the same place");
    check(&world, moves % 2 == 1, &acknowledged);
    let starts: std::collections::BTreeSet<u64> = acknowledged.iter().map(|line| line.start).collect();
    assert!(
        starts.len() > moves,
        "it was written between all moves: {starts:?}"
    );
    let overlaps = watcher.join().unwrap();
    assert!(overlaps.is_empty(), "both hosts answered at once: {overlaps:?}");
}
