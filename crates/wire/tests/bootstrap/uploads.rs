//! What an upload leaves on the host, whatever happens to it.

use super::*;

#[tokio::test]
async fn a_fresh_host_gets_the_binary_once() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let mut options = host.options(&own());
    options.arguments = vec!["--log=debug".into()];
    let events = Mutex::new(Vec::new());
    let stream = connect_with(&host.ssh(), &options, &|event| events.lock().unwrap().push(event))
        .await
        .unwrap();
    assert_eq!(*stream.origin(), uploaded());
    let path = host
        .cache()
        .join(format!("tranship-0.2.0-{}", &options.sha256[..16]));
    assert_eq!(Path::new(stream.path()), path);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), own());
    assert_eq!((Host::mode(&path), Host::mode(&host.cache())), (0o700, 0o700));
    let events = events.into_inner().unwrap();
    let total = own().len() as u64;
    assert!(matches!(events.first(), Some(BootstrapEvent::Connected { .. })));
    assert!(events.contains(&BootstrapEvent::Uploading { sent: 0, total }));
    assert!(events.contains(&BootstrapEvent::Uploading { sent: total, total }));
    assert!(matches!(events.last(), Some(BootstrapEvent::Starting { .. })));
    assert_works(stream).await;

    let stream = connect(&host.ssh(), &options).await.unwrap();
    assert_eq!(*stream.origin(), Origin::Cached);
    assert_works(stream).await;
    assert_eq!(host.cached().len(), 1, "{:?}", host.cached());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_upload_at_once_do_not_get_into_each_other_s_way() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());
    let path = host
        .cache()
        .join(format!("tranship-0.2.0-{}", &options.sha256[..16]));
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let (stop, path) = (Arc::clone(&stop), path.clone());
        move || {
            let (whole, mut seen) = (own(), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                if let Ok(there) = std::fs::read_to_string(&path) {
                    assert!(there == whole, "{} bytes of {}", there.len(), whole.len());
                    seen += 1;
                }
            }
            seen
        }
    });
    let ssh = host.ssh();
    let all = futures_util::future::join_all((0..8).map(|_| connect(&ssh, &options)));
    for stream in all.await {
        let stream = stream.unwrap();
        assert!(*stream.origin() == uploaded() || *stream.origin() == Origin::Cached);
        assert_works(stream).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(watcher.join().unwrap() > 0);
    assert_eq!(host.cached().len(), 1, "{:?}", host.cached());
}

#[tokio::test]
async fn a_damaged_binary_is_replaced() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());
    let path = connect(&host.ssh(), &options).await.unwrap().path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    // Still a script that runs; only the hash can tell.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    // Put in its place, for it cannot be written to while the kernel is starting it.
    let damaged = host.path("damaged");
    std::fs::write(&damaged, bytes).unwrap();
    std::fs::rename(&damaged, &path).unwrap();
    let stream = connect(&host.ssh(), &options).await.unwrap();
    assert_eq!(*stream.origin(), uploaded());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), own());
    assert_works(stream).await;
}

#[tokio::test]
async fn an_upload_that_is_not_what_was_announced_never_gets_a_name() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let mut options = host.options(&own());
    options.sha256 = host::sha256(b"something else");
    let fault = fault(&host.ssh(), &options).await;
    assert_eq!(fault.code, "bootstrap.hash");
    assert!(fault.message.contains(&options.sha256), "{fault}");
    assert_eq!(host.cached(), Vec::<String>::new());
}

#[tokio::test]
async fn without_a_usable_cache_the_fallback_is_taken() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    std::fs::remove_dir(host.path("cache")).unwrap();
    std::fs::write(host.path("cache"), "a file in its place").unwrap();
    let options = host.options(&own());
    let uid = rustix::process::geteuid().as_raw();
    let fallback = host.path("fallback").join(format!("tranship-{uid}"));
    for origin in [uploaded(), Origin::Cached] {
        let stream = connect(&host.ssh(), &options).await.unwrap();
        assert_eq!(*stream.origin(), origin);
        assert!(
            Path::new(stream.path()).starts_with(&fallback),
            "{}",
            stream.path()
        );
        assert_eq!(Host::mode(&fallback), 0o700);
        assert_works(stream).await;
    }
}

#[tokio::test]
async fn a_full_a_read_only_and_a_noexec_directory_are_told_apart() {
    let small = "mount -t tmpfs -o size=256k none $D/cache; mount -t tmpfs -o size=256k none $D/fallback;";
    let noexec = "mount -t tmpfs -o noexec none $D/cache; mount -t tmpfs -o noexec none $D/fallback;";
    let read_only = "mount -t tmpfs -o ro none $D/cache; mount -t tmpfs -o ro none $D/fallback;";
    for (mounts, code, text) in [
        (small, "bootstrap.no-space", "no space left in"),
        (noexec, "bootstrap.no-exec", "may not be run"),
        (read_only, "bootstrap.no-directory", "Read-only"),
    ] {
        let Some(host) = Host::start(&Setup {
            mounts: Some(mounts),
            ..Setup::default()
        }) else {
            return;
        };
        let fault = fault(&host.ssh(), &host.options(&own())).await;
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains(text), "{fault}");
    }
    // One usable directory is enough.
    let cache_only = "mount -t tmpfs -o noexec none $D/cache;";
    let Some(host) = Host::start(&Setup {
        mounts: Some(cache_only),
        ..Setup::default()
    }) else {
        return;
    };
    assert_works(connect(&host.ssh(), &host.options(&own())).await.unwrap()).await;
}

#[tokio::test]
async fn a_disk_that_fills_up_under_way_is_told_and_leaves_nothing() {
    let mounts = Some("mount -t tmpfs -o size=256k none $D/cache;");
    // What is left is seen only from inside.
    let shell = Some(
        r#"sh -c "$SSH_ORIGINAL_COMMAND"; cd "$HOME"
        (ls -A "$XDG_CACHE_HOME/tranship/bin"; echo end) >listing; mv listing left"#,
    );
    let Some(host) = Host::start(&Setup {
        mounts,
        shell,
        ..Setup::default()
    }) else {
        return;
    };
    // It looks as if there was space.
    host.add_program("df", "#!/bin/sh\necho none 9999999 1 9999998 1% /\n");
    let fault = fault(&host.ssh(), &host.options(&own())).await;
    assert_eq!(fault.code, "bootstrap.no-space", "{fault}");
    assert!(fault.message.contains("No space left"), "{fault}");
    // The script reports its failure before the shell around it looks.
    let looked = async {
        loop {
            match std::fs::read_to_string(host.path("home/left")) {
                Ok(left) => return left,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(10), looked).await.unwrap(), "end\n");
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&agent_script("tranship 0.2.0 1 2", 64 << 20));
    let begun = Arc::new(tokio::sync::Notify::new());
    let ssh = host.ssh();
    let progress = {
        let begun = Arc::clone(&begun);
        move |event| {
            if matches!(event, BootstrapEvent::Uploading { sent: 1.., .. }) {
                begun.notify_one();
            }
        }
    };
    tokio::select! {
        biased;
        () = begun.notified() => {}
        result = connect_with(&ssh, &options, &progress) => panic!("{result:?}"),
    }
    let gone = async {
        while !host.cached().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        timeout(Duration::from_secs(10), gone).await.is_ok(),
        "{:?}",
        host.cached()
    );
}

#[tokio::test]
async fn old_binaries_go_and_everything_else_stays() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());
    std::fs::create_dir_all(host.cache()).unwrap();
    for age in 1..=5_u64 {
        let file =
            std::fs::File::create(host.cache().join(format!("tranship-0.1.{age}-{age:016x}"))).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - age * 1000);
        file.set_modified(time).unwrap();
    }
    std::fs::write(host.cache().join("tranship-notes.txt"), "mine").unwrap();
    connect(&host.ssh(), &options).await.unwrap();
    let mut expected: Vec<String> = (1..=2_u64)
        .map(|age| format!("tranship-0.1.{age}-{age:016x}"))
        .collect();
    expected.push(format!("tranship-0.2.0-{}", &options.sha256[..16]));
    expected.push("tranship-notes.txt".into());
    assert_eq!(host.cached(), expected);
}
