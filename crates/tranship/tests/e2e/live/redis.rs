//! A database that keeps everything in memory and nothing on disk: no write that it acknowledged is ever missing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tranship_testkit::testbed::Options;

use super::nothing_dumped;
use crate::world::{World, ask, converse, wait_until};

const PORT: u16 = 6379;

/// Sets keys, one after the other, at whichever host answers; those that were acknowledged.
fn client(name: usize, hosts: [Ipv4Addr; 2], stop: &AtomicBool, count: &AtomicUsize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut stream) = hosts.iter().find_map(|host| converse(*host, PORT).ok()) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let key = format!("{name}-{number}");
            match ask(&mut stream, &format!("SET {key} {number}\r\n")) {
                Ok(answer) => {
                    assert_eq!(answer, "+OK");
                    acknowledged.push(key);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // It may have been set or not; nobody was told.
                Err(_) => break,
            }
        }
    }
    acknowledged
}

fn keys(world: &World, at_b: bool) -> BTreeSet<String> {
    let node = if at_b { &world.b } else { &world.a };
    let list = node
        .exec_ok([
            node.engine().client(),
            "exec",
            "web",
            "redis-cli",
            "--raw",
            "keys",
            "*",
        ])
        .unwrap();
    list.lines().map(str::to_owned).collect()
}

#[test]
fn no_write_that_was_acknowledged_is_missing() {
    nothing_is_missing(Options::default());
}

/// Redis moves to and fro under load.
pub(crate) fn nothing_is_missing(options: Options) {
    let world = world!(options);
    let client_of = world.a.engine().client();
    let image = world.a.load_image("state:1").unwrap();
    let run = [
        client_of,
        "run",
        "-d",
        "--name",
        "web",
        "--restart",
        "always",
        "-p",
        "6379:6379",
        &image,
        "redis-server",
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
    ];
    world.a.exec_ok(run).unwrap();
    let hosts = [world.a.address(), world.b.address()];
    wait_until(|| {
        converse(hosts[0], PORT)
            .and_then(|mut s| ask(&mut s, "PING\r\n"))
            .is_ok()
    });
    let run_id = |world: &World, at_b: bool| {
        let node = if at_b { &world.b } else { &world.a };
        node.sh(&format!(
            "{client_of} exec web redis-cli info server | grep run_id"
        ))
        .unwrap()
    };
    let life = run_id(&world, false);

    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..3)
        .map(|name| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || client(name, hosts, &stop, &count))
        })
        .collect();
    let more = |than: usize| wait_until(|| count.load(Ordering::Relaxed) > than);
    more(200);
    let moves = if crate::state::long() { 50 } else { 3 };
    let mut at_b = false;
    let mut downtimes = Vec::new();
    for number in 0..moves {
        let (from, to) = if at_b { ("b", "a") } else { ("a", "b") };
        let report = world.live(from, to, &["--on-source", "remove"]);
        at_b = !at_b;
        downtimes.push(report["downtime_ms"].as_u64().unwrap());
        more(count.load(Ordering::Relaxed) + 100);
        assert_eq!(run_id(&world, at_b), life, "it was started anew in move {number}");
    }
    stop.store(true, Ordering::Relaxed);
    let held = keys(&world, at_b);
    let mut acknowledged = 0;
    for client in clients {
        let written = client.join().unwrap();
        acknowledged += written.len();
        let missing: Vec<_> = written.iter().filter(|key| !held.contains(*key)).collect();
        // Those that were acknowledged after the keys were listed.
        let late: BTreeSet<String> = if missing.is_empty() {
            BTreeSet::new()
        } else {
            keys(&world, at_b)
        };
        let lost: Vec<_> = missing.into_iter().filter(|key| !late.contains(*key)).collect();
        assert!(
            lost.is_empty(),
            "{} acknowledged writes are lost: {:?}",
            lost.len(),
            lost.first()
        );
    }
    downtimes.sort_unstable();
    println!(
        "{moves} moves, {acknowledged} acknowledged writes, none missing; downtime median {} ms, longest {} ms",
        downtimes[downtimes.len() / 2],
        downtimes[downtimes.len() - 1]
    );
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}
