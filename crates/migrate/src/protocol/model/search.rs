//! Breadth first through everything that can happen, then backwards from the good ends.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use super::world::{Model, Next, Step, World};
use crate::protocol::destination::Destination;
use crate::protocol::source::Source;

/// What a search found.
pub(super) struct Outcome {
    pub states: usize,
    pub transitions: usize,
    /// The longest of the shortest ways.
    pub depth: usize,
    /// Views of a source in doubt.
    pub doubts: usize,
    pub found: Option<Found>,
}

/// A promise that is broken, and the shortest way there.
pub(super) struct Found {
    pub what: &'static str,
    pub trace: Vec<String>,
}

/// Fast, and good enough for small keys: multiply and rotate.
#[derive(Default)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }
    fn write_u8(&mut self, byte: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u8(value.to_le_bytes()[0]);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

struct Graph {
    worlds: Vec<World>,
    /// Whence each world was first reached, and by what.
    from: Vec<(u32, Option<Step>)>,
    /// Steps that happen by themselves, backwards.
    progress: Vec<(u32, u32)>,
    /// Steps that the source's host needs nobody for, backwards.
    alone: Vec<(u32, u32)>,
}

impl Graph {
    fn trace(&self, mut at: u32) -> Vec<String> {
        let last = self.worlds[at as usize];
        let mut trace = vec![format!("=> {last:?}")];
        while let (before, Some(step)) = self.from[at as usize] {
            trace.push(format!("{step:?}"));
            at = before;
        }
        trace.reverse();
        trace
    }

    fn depth(&self, mut at: u32) -> usize {
        let mut depth = 0;
        while let (before, Some(_)) = self.from[at as usize] {
            depth += 1;
            at = before;
        }
        depth
    }

    /// The first world from which no `goal` can be reached over `edges` (backward pairs), among those that must reach it.
    fn dead_end(
        &self,
        edges: &mut [(u32, u32)],
        goal: impl Fn(&World) -> bool,
        must: impl Fn(&World) -> bool,
    ) -> Option<u32> {
        edges.sort_unstable();
        let mut reached = vec![false; self.worlds.len()];
        let mut waiting: Vec<u32> = Vec::new();
        for (index, world) in (0u32..).zip(&self.worlds) {
            if goal(world) {
                reached[index as usize] = true;
                waiting.push(index);
            }
        }
        while let Some(to) = waiting.pop() {
            let first = edges.partition_point(|(t, _)| *t < to);
            for (_, from) in edges[first..].iter().take_while(|(t, _)| *t == to) {
                if !reached[*from as usize] {
                    reached[*from as usize] = true;
                    waiting.push(*from);
                }
            }
        }
        (0u32..)
            .zip(&self.worlds)
            .find(|(i, w)| !reached[*i as usize] && must(w))
            .map(|(i, _)| i)
    }
}

/// Goes through all states, `most` at most.
pub(super) fn search(model: &Model, most: usize) -> Outcome {
    let mut known: HashMap<World, u32, BuildHasherDefault<Mixer>> = HashMap::default();
    let first = model.first();
    known.insert(first, 0);
    let mut graph = Graph {
        worlds: vec![first],
        from: vec![(0, None)],
        progress: Vec::new(),
        alone: Vec::new(),
    };
    let mut out: Vec<Next> = Vec::new();
    let mut transitions = 0;
    let mut found = None;
    let mut at: usize = 0;
    while let Some(world) = graph.worlds.get(at).copied() {
        let here = u32::try_from(at).unwrap();
        if let Some(what) = model.broken(&world) {
            found = Some(Found {
                what,
                trace: graph.trace(here),
            });
            break;
        }
        model.next(&world, &mut out);
        for next in out.drain(..) {
            if next.world == world {
                continue;
            }
            transitions += 1;
            let fresh = u32::try_from(graph.worlds.len()).unwrap();
            let there = *known.entry(next.world).or_insert(fresh);
            if there == fresh {
                graph.worlds.push(next.world);
                graph.from.push((here, Some(next.step)));
            }
            if next.progress {
                graph.progress.push((there, here));
            }
            if next.alone {
                graph.alone.push((there, here));
            }
        }
        at += 1;
        assert!(graph.worlds.len() < most, "more than {most} states");
    }
    drop(known);
    let states = graph.worlds.len();
    let depth = graph.depth(u32::try_from(states - 1).unwrap());
    let mut doubts = 0;
    if found.is_none() {
        let mut progress = std::mem::take(&mut graph.progress);
        let dead = graph.dead_end(&mut progress, |w| model.is_good_end(w), |_| true);
        found = dead.map(|at| Found {
            what: "no good end can be reached",
            trace: graph.trace(at),
        });
    }
    if found.is_none() {
        let mut alone = std::mem::take(&mut graph.alone);
        let dead = graph.dead_end(&mut alone, |w| model.serves_here(w), |w| model.is_the_sources(w));
        found = dead.map(|at| Found {
            what: "the source cannot come back by itself before the commit",
            trace: graph.trace(at),
        });
    }
    if found.is_none() {
        let (count, needless) = needless_doubt(&graph);
        doubts = count;
        found = needless.map(|at| Found {
            what: "the source is in doubt although it could know",
            trace: graph.trace(at),
        });
    }
    Outcome {
        states,
        transitions,
        depth,
        doubts,
        found,
    }
}

/// A source in doubt must be one that cannot know: what it sees must be so in worlds where the destination has the
/// container and in worlds where it has not, or will not. Gives the number of views and a world where that is not so.
fn needless_doubt(graph: &Graph) -> (usize, Option<u32>) {
    let mut views: HashMap<Source, (HashSet<Option<Destination>>, u32)> = HashMap::new();
    for (index, world) in (0u32..).zip(&graph.worlds) {
        if let Some(source) = world.source
            && source.is_committed()
        {
            let (kinds, _) = views.entry(source).or_insert_with(|| (HashSet::new(), index));
            kinds.insert(world.destination.map(|d| Destination::holding(d.held)));
        }
    }
    let needless = views
        .values()
        .find(|(kinds, _)| kinds.len() < 2)
        .map(|(_, index)| *index);
    (views.len(), needless)
}
