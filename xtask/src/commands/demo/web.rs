//! A web service that keeps nothing, under load. Shows every request that failed, if any.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Stage, show_containers};

const PORT: u16 = 8080;

/// What the client saw.
#[derive(Debug, Default)]
struct Seen {
    /// Requests that were answered, by the node that answered.
    answered: [u64; 2],
    /// Requests that neither node answered.
    failed: u64,
    /// The longest time between two answers.
    longest_gap: Duration,
}

/// Moves the service while a client asks.
pub(super) fn run(stage: &Stage, mode: &str) -> Result<(), Box<dyn Error>> {
    let (a, b) = (&stage.a, &stage.b);
    let image = a.load_image("web:1")?;
    a.exec_ok([
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        "--restart",
        "always",
        "-p",
        "8080:8080",
        &image,
    ])?;
    let backends = [a.address(), b.address()];
    wait_until_served(backends[0])?;
    show_containers(a, false)?;
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || ask_without_end(backends, &stop))
    };
    std::thread::sleep(Duration::from_millis(500));
    let moved = stage.migrate("web", mode);
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let seen = client.join().map_err(|_| "the client ended early")?;
    show_containers(a, true)?;
    show_containers(b, true)?;
    println!(
        "\nthe client, which knows both addresses as a load balancer does: {} answers from a, {} from b, {} failed; \
         longest time between two answers {} ms",
        seen.answered[0],
        seen.answered[1],
        seen.failed,
        seen.longest_gap.as_millis()
    );
    moved?;
    if seen.answered[1] == 0 {
        return Err("the service did not answer at its new place".into());
    }
    if mode == "stateless" && seen.failed > 0 {
        return Err(format!("{} requests failed, and none should have", seen.failed).into());
    }
    Ok(())
}

fn wait_until_served(address: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if get(address) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the web service did not begin to answer within 30 s".into())
}

fn ask_without_end(backends: [Ipv4Addr; 2], stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut last = Instant::now();
    let mut current = 0;
    while !stop.load(Ordering::Relaxed) {
        // A request fails only if neither backend answers it.
        let answered = [current, 1 - current].into_iter().find(|n| get(backends[*n]));
        match answered {
            Some(node) => {
                current = node;
                seen.answered[node] += 1;
                seen.longest_gap = seen.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            None => seen.failed += 1,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// One request; whether it was answered with status 200 and a whole body.
fn get(address: Ipv4Addr) -> bool {
    let answer = || -> std::io::Result<Vec<u8>> {
        let to = SocketAddr::from((address, PORT));
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        Ok(body)
    };
    answer().is_ok_and(|body| body.starts_with(b"HTTP/1.") && body.get(9..12) == Some(b"200"))
}
