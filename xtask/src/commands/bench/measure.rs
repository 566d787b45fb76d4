//! What a case costs: time, processor, memory, bytes on the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tranship_testkit::testbed::Node;

/// Programs that carry data for others; their memory counts for whoever moves it through them.
const CARRIERS: [&str; 3] = ["ssh", "sshd", "sshd-session"];
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// From start to end.
    pub(super) time: Duration,
    /// From start until everything is on the disk; zero where that was not measured.
    pub(super) durable: Duration,
    /// Processor time of all processes of both hosts, in user and kernel mode.
    pub(super) processor: Duration,
    /// The most that the moving processes of both hosts held at once, anonymous memory only, in bytes.
    pub(super) memory: u64,
    /// Bytes that crossed the cable between the hosts.
    pub(super) wire: u64,
}

/// Measures what `work` costs the two hosts, where `program` is what moves the data.
pub(super) fn cost<T>(
    nodes: [&Node; 2],
    program: &'static str,
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error>>,
) -> Result<(Cost, T), Box<dyn std::error::Error>> {
    let wire = || -> Result<u64, Box<dyn std::error::Error>> {
        let bytes = nodes[1].link_bytes()?;
        Ok(bytes.received + bytes.sent)
    };
    let processor = || -> Result<Duration, Box<dyn std::error::Error>> {
        Ok(nodes[0].processor_time()? + nodes[1].processor_time()?)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let peak = Arc::new(AtomicU64::new(0));
    let looker = {
        let (stop, peak) = (Arc::clone(&stop), Arc::clone(&peak));
        let nodes = nodes.map(Node::clone);
        let mut movers = CARRIERS.to_vec();
        movers.push(program);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = nodes.iter().map(|node| node.memory_of(&movers)).sum();
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        })
    };
    let (wire_before, processor_before) = (wire()?, processor()?);
    let begun = Instant::now();
    let result = work();
    let time = begun.elapsed();
    let (wire_after, processor_after) = (wire()?, processor()?);
    stop.store(true, Ordering::Relaxed);
    looker.join().map_err(|_| "the measuring thread ended early")?;
    let cost = Cost {
        time,
        durable: Duration::ZERO,
        processor: processor_after.saturating_sub(processor_before),
        memory: peak.load(Ordering::Relaxed),
        wire: wire_after - wire_before,
    };
    Ok((cost, result?))
}

/// The median of each figure by itself; the largest for memory.
pub(super) fn medians(costs: &[Cost]) -> Cost {
    let middle = |figure: fn(&Cost) -> u64| {
        let mut values: Vec<u64> = costs.iter().map(figure).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Cost {
        time: median(costs.iter().map(|c| c.time).collect()),
        durable: median(costs.iter().map(|c| c.durable).collect()),
        processor: median(costs.iter().map(|c| c.processor).collect()),
        memory: costs.iter().map(|c| c.memory).max().unwrap_or_default(),
        wire: middle(|c| c.wire),
    }
}

pub(super) fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The machine in words, for the table.
pub(super) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let count = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{count} × {model}, Linux {}, both hosts on this machine",
        kernel.trim()
    )
}
