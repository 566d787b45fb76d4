//! The port: elements over pipes of tasks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tranship_content::storage::DirectStorage;
use tranship_core::storage::{ElementPlace, ElementRoute, RoundOptions, Storage as _, SyncOptions};

fn place(path: &std::path::Path) -> ElementPlace {
    ElementPlace::Directory {
        path: path.to_path_buf(),
        overlay: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_element_goes_from_one_directory_to_another() {
    let at = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (a, b) = (at.path().join("a"), at.path().join("b"));
    fs::create_dir_all(a.join("in")).unwrap();
    fs::create_dir(&b).unwrap();
    for file in 0..300 {
        fs::write(a.join("in").join(file.to_string()), vec![file as u8; file * 1000]).unwrap();
    }
    let storage = DirectStorage::new(at.path().join("work"));
    let mut source = storage.source(&place(&a), &SyncOptions::default()).await.unwrap();
    let mut sink = storage.sink(&place(&b), ElementRoute::Tree).await.unwrap();
    for round in 0..3 {
        let (one, two) = tokio::io::duplex(64 << 10);
        let seen = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&seen);
        let options = RoundOptions {
            frozen: round > 0,
            durable: round > 1,
        };
        let (sent, taken) = tokio::join!(
            source.round(
                Box::new(one),
                options,
                Arc::new(move |so_far| counted.store(so_far.entries, Ordering::Relaxed))
            ),
            sink.round(Box::new(two), Arc::new(|_| ()))
        );
        let (sent, taken) = (sent.unwrap(), taken.unwrap());
        assert_eq!(sent.tree, taken.tree);
        assert_eq!(sent.entries, 302);
        assert_eq!(sent.changed_entries, if round == 0 { 302 } else { 0 });
        assert!(round > 0 || seen.load(Ordering::Relaxed) == 302);
    }
    for file in 0..300 {
        assert_eq!(
            fs::read(b.join("in").join(file.to_string())).unwrap(),
            vec![file as u8; file * 1000]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_it_meanwhile_takes_nothing_away_from_a_round() {
    let at = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| at.path().join(name));
    for directory in [&a, &b, &c] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(a.join("file"), "first").unwrap();
    let storage = DirectStorage::new(at.path().join("work"));
    let open = async || storage.source(&place(&a), &SyncOptions::default()).await.unwrap();
    let sink = async |path| storage.sink(&place(path), ElementRoute::Tree).await.unwrap();
    let (mut mover, mut to_b) = (open().await, sink(&b).await);
    let frozen = RoundOptions {
        frozen: true,
        durable: true,
    };
    for meets in [false, true] {
        let (one, two) = tokio::io::duplex(64 << 10);
        let moved = async {
            let mut begun = mover.begin(Box::new(one), frozen).await?;
            if meets {
                begun.meet().await?;
                // A snapshot of what is something else by now, while the round waits.
                fs::write(a.join("file"), "second").unwrap();
                let (mut reader, mut to_c) = (open().await, sink(&c).await);
                let (one, two) = tokio::io::duplex(64 << 10);
                let (sent, taken) = tokio::join!(
                    reader.round(Box::new(one), frozen, Arc::new(|_| ())),
                    to_c.round(Box::new(two), Arc::new(|_| ()))
                );
                sent.and(taken)?;
            }
            begun.go(Arc::new(|_| ())).await
        };
        let (sent, taken) = tokio::join!(moved, to_b.round(Box::new(two), Arc::new(|_| ())));
        sent.and(taken).unwrap();
    }
    for to in [&b, &c] {
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "second");
    }
}

#[tokio::test]
async fn records_of_an_earlier_boot_are_forgotten() {
    let at = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = DirectStorage::new(at.path().join("work"));
    storage.forget_earlier_boots();
    drop(
        storage
            .source(&place(at.path()), &SyncOptions::default())
            .await
            .unwrap(),
    );
    let element = fs::read_dir(at.path().join("work"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    storage.forget_earlier_boots();
    assert!(element.exists());
    fs::write(element.join("source/boot"), "another").unwrap();
    fs::create_dir(element.join("sink")).unwrap();
    storage.forget_earlier_boots();
    assert!(element.exists(), "the sink's are not older");
    fs::write(element.join("sink/boot"), "another").unwrap();
    storage.forget_earlier_boots();
    assert!(!element.exists());
}

#[tokio::test]
async fn a_broken_pipe_ends_the_round() {
    let at = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let storage = DirectStorage::new(at.path().join("work"));
    let mut source = storage
        .source(&place(at.path()), &SyncOptions::default())
        .await
        .unwrap();
    let (one, two) = tokio::io::duplex(1024);
    drop(two);
    let error = source
        .round(Box::new(one), RoundOptions::default(), Arc::new(|_| ()))
        .await
        .unwrap_err();
    assert_eq!(error.code, "content.link-lost");
}

#[tokio::test]
async fn what_only_the_engine_reaches_and_wrong_patterns_are_refused() {
    let storage = DirectStorage::new("/nonexistent");
    let archive = ElementPlace::Archive {
        container: "abc".parse().unwrap(),
        path: "/data".to_owned(),
    };
    let Err(error) = storage.sink(&archive, ElementRoute::Tree).await else {
        panic!("opened")
    };
    assert_eq!(error.code, "content.not-direct");
    let options = SyncOptions {
        exclude: vec!["!a".to_owned()],
        ..SyncOptions::default()
    };
    let Err(error) = storage
        .source(&place(std::path::Path::new("/tmp")), &options)
        .await
    else {
        panic!("opened")
    };
    assert_eq!(error.code, "content.pattern");
}
