//! A database under write load from outside: no commit that was acknowledged is ever missing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::{Client, NoTls};

use super::long;
use crate::world::{World, wait_until};

fn connect(host: Ipv4Addr) -> Result<Client, postgres::Error> {
    postgres::Config::new()
        .host(&host.to_string())
        .user("postgres")
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(1))
        // A server that is gone without a word is noticed; one that is paused is waited for.
        .keepalives_idle(Duration::from_secs(1))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(3)
        .connect(NoTls)
}

/// What a client knows at its end.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: Vec<i64>,
    /// Commits whose answer never came.
    unknown: u64,
}

/// Inserts rows, each a commit of its own, at whichever host answers.
fn client(name: i64, hosts: [Ipv4Addr; 2], stop: &AtomicBool, commits: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(mut server) = hosts.iter().find_map(|host| connect(*host).ok()) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let id = name * 1_000_000_000 + number;
            let insert = "insert into rows (id, text) values ($1::bigint, repeat(md5($1::bigint::text), 8))";
            match server.execute(insert, &[&id]) {
                Ok(_) => {
                    seen.acknowledged.push(id);
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    // 57P01 to 57P03: it shuts down, or begins to serve. Anything else is no matter of moving.
                    let refused = error.code().is_some_and(|code| !code.code().starts_with("57P"));
                    assert!(!refused, "{error}");
                    seen.unknown += 1;
                    break;
                }
            }
        }
    }
    seen
}

/// Looks whether both hosts serve at once: the first, the second, and the first again.
fn overlaps(hosts: [Ipv4Addr; 2], stop: &AtomicBool) -> Vec<String> {
    let started = |host: Ipv4Addr| -> Option<String> {
        let mut server = connect(host).ok()?;
        let row = server
            .query_one("select pg_postmaster_start_time()::text", &[])
            .ok()?;
        Some(row.get(0))
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
        if let Some(first) = started(one)
            && let Some(second) = started(other)
            && let Some(third) = started(one)
        {
            found.push(format!(
                "{one} since {first}, {other} since {second}, {one} since {third}"
            ));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    found
}

/// What the database holds, by itself sound.
fn rows(host: Ipv4Addr) -> (BTreeSet<i64>, u64) {
    let mut server = connect(host).unwrap();
    let read = server.query("select id, text from rows", &[]).unwrap();
    for row in &read {
        assert_eq!(row.get::<_, String>(1).len(), 256, "a row is damaged");
    }
    // The index that checks the primary key must agree with the table.
    let indexed: i64 = server
        .query_one("select count(*) from (select n from numbers order by n) s", &[])
        .unwrap()
        .get(0);
    assert_eq!(indexed, 1000);
    (read.iter().map(|row| row.get(0)).collect(), read.len() as u64)
}

fn prepare(world: &World) {
    let image = world.a.load_image("state:1").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            "--stop-signal",
            "INT",
            "-p",
            "5432:5432",
            "-v",
            "rows:/var/lib/postgresql/data",
            "--health-cmd",
            "pg_isready -q -h 127.0.0.1",
            "--health-interval",
            "500ms",
            "--health-start-period",
            "30s",
            &image,
            "run-postgres",
        ])
        .unwrap();
    wait_until(|| connect(world.a.address()).is_ok());
    // Without a key, so that a row that came twice would be seen.
    connect(world.a.address())
        .unwrap()
        .batch_execute(
            "create table rows (id bigint not null, text text not null); create index on rows (id);
             create table numbers (n bigint primary key); insert into numbers select generate_series(1, 1000);
             create table ballast as select n, repeat(md5(n::text), 30) as text from generate_series(1, 20000) n",
        )
        .unwrap();
}

#[test]
fn no_commit_that_was_acknowledged_is_lost() {
    let world = world!();
    prepare(&world);
    let hosts = [world.a.address(), world.b.address()];
    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (1..=3)
        .map(|name| {
            let (stop, commits) = (Arc::clone(&stop), Arc::clone(&commits));
            std::thread::spawn(move || client(name, hosts, &stop, &commits))
        })
        .collect();
    let wait_for_commits = || {
        let before = commits.load(Ordering::Relaxed);
        wait_until(|| commits.load(Ordering::Relaxed) >= before + 100);
    };
    let watcher = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || overlaps(hosts, &stop)
    });
    let moves = if long() { 20 } else { 4 };
    let mut held = 0;
    let mut downtimes = Vec::new();
    for turn in 0..moves {
        let (from, to) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let mode = if turn % 2 == 0 { "cold" } else { "warm" };
        let mode = if turn % 4 < 2 {
            mode
        } else if mode == "cold" {
            "warm"
        } else {
            "cold"
        };
        wait_for_commits();
        let options = [
            "--mode",
            mode,
            "--json",
            "--replace",
            "--volume-conflict",
            "replace",
        ];
        let options = if turn == 0 { &options[..3] } else { &options[..] };
        let view = world.migrate_between(from, to, options).expect(0).json();
        downtimes.push(format!("{mode} {}", view[0]["downtime_ms"]));
        let (now, there) = (hosts[(turn + 1) % 2], hosts[turn % 2]);
        assert!(connect(there).is_err(), "the source answers still");
        let (ids, count) = rows(now);
        assert_eq!(ids.len() as u64, count, "a row is there twice");
        assert!(ids.len() > held, "nothing was written since the last move");
        held = ids.len();
    }
    wait_for_commits();
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    let (ids, count) = rows(hosts[moves % 2]);
    assert_eq!(ids.len() as u64, count, "a row is there twice");
    let missing: Vec<&i64> = seen
        .iter()
        .flat_map(|s| &s.acknowledged)
        .filter(|id| !ids.contains(id))
        .collect();
    let acknowledged: usize = seen.iter().map(|s| s.acknowledged.len()).sum();
    let unknown: u64 = seen.iter().map(|s| s.unknown).sum();
    assert!(
        missing.is_empty(),
        "{} of {acknowledged} rows are missing: {missing:?}",
        missing.len()
    );
    assert!(
        ids.len() as u64 <= acknowledged as u64 + unknown,
        "rows that nobody wrote"
    );
    assert!(
        acknowledged > 100 * moves,
        "only {acknowledged} rows were written"
    );
    let overlaps = watcher.join().unwrap();
    assert!(overlaps.is_empty(), "both hosts served at once: {overlaps:?}");
    println!(
        "{moves} moves, {acknowledged} commits acknowledged, none lost; {unknown} unanswered; downtimes in ms: {downtimes:?}"
    );
}
