//! Who looks on from outside: a poller that counts instances, and a client that remembers what was acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tranship_testkit::testbed::Node;

/// Where the service listens.
pub const PORT: u16 = 7000;

/// Looks every 20 ms how many instances run on both hosts, and notes when the source's did.
pub struct Poller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
    source_since: Arc<Mutex<Option<Instant>>>,
}

struct Seen {
    looks: usize,
    longest: Duration,
    twice: Option<String>,
}

impl Poller {
    pub fn start(a: &Node, b: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let source_since = Arc::new(Mutex::new(None));
        let (a, b, told, since) = (a.clone(), b.clone(), Arc::clone(&stop), Arc::clone(&source_since));
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            let mut seen = Seen {
                looks: 0,
                longest: Duration::ZERO,
                twice: None,
            };
            while !told.load(Ordering::Relaxed) {
                let look = Instant::now();
                // The source is looked at before and after, so that a hand-over in between does not count.
                let (first, there, second) = (
                    a.running_containers(),
                    b.running_containers(),
                    a.running_containers(),
                );
                if !first.is_empty() && !there.is_empty() && !second.is_empty() && seen.twice.is_none() {
                    seen.twice = Some(format!(
                        "{second:?} and {there:?} after {:.2} s",
                        begun.elapsed().as_secs_f64()
                    ));
                }
                let mut since = since.lock().unwrap();
                if second.is_empty() {
                    *since = None;
                } else {
                    since.get_or_insert(look);
                }
                drop(since);
                seen.looks += 1;
                std::thread::sleep(Duration::from_millis(20));
                seen.longest = seen.longest.max(look.elapsed());
            }
            seen
        });
        Self {
            stop,
            thread,
            source_since,
        }
    }

    /// Since when the source's instance has been running, if it is.
    pub fn source_since(&self) -> Option<Instant> {
        *self.source_since.lock().unwrap()
    }

    /// Ends the looking; `one` says that two instances are not allowed.
    pub fn end(self, one: bool) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().unwrap();
        assert!(seen.looks > 0, "nobody looked");
        if one {
            assert_eq!(seen.twice, None, "two instances ran");
        }
    }
}

/// A line that the service answered for.
struct Acknowledged {
    sequence: u64,
    text: String,
}

/// Sends lines to whichever host answers, and remembers those that were answered for.
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Acknowledged>>,
}

fn connect(address: Ipv4Addr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), Duration::from_millis(250))?;
    // A paused service answers nothing for as long as it is paused.
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn ask(stream: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<u64> {
    stream.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 || !answer.ends_with('\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let sequence = answer.split(' ').next().and_then(|n| n.parse().ok());
    sequence.ok_or_else(|| std::io::Error::other(answer))
}

impl Writer {
    pub fn start(hosts: [Ipv4Addr; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            let mut number = 0;
            while !told.load(Ordering::Relaxed) {
                let Some(mut stream) = hosts.iter().find_map(|host| connect(*host).ok()) else {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                while !told.load(Ordering::Relaxed) {
                    number += 1;
                    let text = number.to_string();
                    // Without an answer it may have been written or not; nobody was told.
                    let Ok(sequence) = ask(&mut stream, &format!("{text}\n")) else {
                        break;
                    };
                    acknowledged.push(Acknowledged { sequence, text });
                    counted.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(8));
                }
            }
            acknowledged
        });
        Self { stop, count, thread }
    }

    /// How many lines were answered for so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends the writing without a look at what was written.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }

    /// Ends the writing. Every line that was answered for must be in the log that `read` gives, at its place; returns how
    /// many there were.
    pub fn end(self, read: impl FnOnce() -> String) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.thread.join().unwrap();
        let log = read();
        let lines: Vec<&str> = log.lines().collect();
        let mut start_before = 0;
        for (index, line) in lines.iter().enumerate() {
            let mut words = line.splitn(3, ' ');
            let sequence: usize = words.next().unwrap().parse().unwrap();
            let start: u64 = words.next().unwrap().parse().unwrap();
            assert_eq!(sequence, index + 1, "the log has a gap or a double");
            assert!(
                start >= start_before,
                "an earlier instance wrote after a later one: {line}"
            );
            start_before = start;
        }
        for line in &acknowledged {
            let index = usize::try_from(line.sequence).unwrap() - 1;
            let there = lines.get(index).and_then(|l| l.splitn(3, ' ').nth(2));
            assert_eq!(
                there,
                Some(line.text.as_str()),
                "line {} was answered for and is missing",
                line.sequence
            );
        }
        acknowledged.len()
    }
}
