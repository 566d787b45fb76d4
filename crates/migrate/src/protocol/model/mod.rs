//! Checks the ownership protocol by going through everything that can happen.

#![allow(
    clippy::print_stdout,
    reason = "a check that takes a while says what it looked at"
)]

mod flaws;
mod search;
mod there;
mod world;

use std::time::Instant;

use flaws::Flaw;
use search::{Found, search};
use world::{Config, Model};

const PLAIN: Config = Config {
    name: "cold, the source is removed",
    members: 1,
    warm: false,
    remove: true,
    loss: false,
    forgets: false,
};

fn configs() -> Vec<Config> {
    vec![
        PLAIN,
        Config {
            name: "warm, the source is kept",
            warm: true,
            remove: false,
            ..PLAIN
        },
        Config {
            name: "a host is destroyed",
            loss: true,
            ..PLAIN
        },
        Config {
            name: "the destination loses its records",
            forgets: true,
            ..PLAIN
        },
        Config {
            name: "two containers, cold, the source is removed",
            members: 2,
            ..PLAIN
        },
        Config {
            name: "two containers, warm, the source is kept",
            members: 2,
            warm: true,
            remove: false,
            ..PLAIN
        },
    ]
}

#[test]
fn nothing_that_can_happen_breaks_a_promise() {
    let begun = Instant::now();
    let mut states = 0;
    for config in configs() {
        let one = Instant::now();
        let result = search(&Model { config, flaw: None }, usize::MAX);
        if let Some(Found { what, trace }) = &result.found {
            panic!("{}: {what}\n{}", config.name, trace.join("\n"));
        }
        println!(
            "{}: {} states, {} transitions, {:.1} s; farthest {} steps; the source's doubt is justified in {} of its views",
            config.name,
            result.states,
            result.transitions,
            one.elapsed().as_secs_f64(),
            result.depth,
            result.doubts,
        );
        states += result.states;
    }
    println!("{states} states in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(states >= 1_000_000, "only {states} states");
}

#[test]
fn every_planted_bug_is_caught() {
    let begun = Instant::now();
    let mut escaped = Vec::new();
    for flaw in flaws::ALL {
        let one = Instant::now();
        let mut states = 0;
        let found = configs().into_iter().find_map(|config| {
            let model = Model {
                config,
                flaw: Some(*flaw),
            };
            let result = search(&model, usize::MAX);
            states += result.states;
            result.found.map(|found| (config.name, found))
        });
        match found {
            Some((name, Found { what, trace })) => println!(
                "{flaw:?}: {what} ({name}; {} steps, {states} states, {:.1} s)\n    {}",
                trace.len(),
                one.elapsed().as_secs_f64(),
                trace.join("\n    ")
            ),
            None => escaped.push(*flaw),
        }
    }
    println!(
        "{} of {} planted bugs caught in {:.1} s",
        flaws::ALL.len() - escaped.len(),
        flaws::ALL.len(),
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(escaped, Vec::<Flaw>::new());
}
