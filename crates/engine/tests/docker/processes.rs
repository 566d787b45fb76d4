//! Pausing, killing, and running commands.

use std::time::{Duration, Instant};

use tranship_core::container::ContainerState;
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::hosts::{BUSYBOX, Host, hosts};

async fn state(host: &Host, id: &ContainerId) -> ContainerState {
    host.engine.status(id).await.unwrap().state
}

#[tokio::test]
async fn a_paused_container_goes_on_or_is_killed_without_running_again() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    // Several processes write whenever they get the chance, and none of them minds a signal that it can catch.
    let script = "trap \"\" TERM INT HUP; for n in 1 2 3 4; do (while :; do echo $n >> /v/log; done) & done; \
                  while :; do echo main >> /v/log; done";
    let log = "wc -c < /var/lib/docker/volumes/paused-log/_data/log";
    let size = || -> u64 { a.node.sh(log).unwrap().trim().parse().unwrap() };
    for round in 0..3 {
        let id = a.docker(&format!(
            "run -d --name paused --restart always -v paused-log:/v {BUSYBOX} sh -c '{script}'"
        ));
        let id = ContainerId::new(id).unwrap();
        let begin = Instant::now();
        while a.node.sh(log).map_or(0, |text| text.trim().parse().unwrap_or(0)) < 1000 {
            assert!(begin.elapsed() < Duration::from_secs(20));
        }
        a.engine.pause(&id).await.unwrap();
        a.engine.pause(&id).await.unwrap();
        assert_eq!(state(&a, &id).await, ContainerState::Paused);
        let frozen = size();
        assert_eq!(size(), frozen);
        let refused = a.engine.exec(&id, "true", Duration::from_secs(9)).await;
        assert!(
            matches!(refused, Err(EngineError::Conflict { .. })),
            "{refused:?}"
        );
        if round == 0 {
            a.engine.unpause(&id).await.unwrap();
            a.engine.unpause(&id).await.unwrap();
            assert_eq!(state(&a, &id).await, ContainerState::Running);
            let begin = Instant::now();
            while size() == frozen {
                assert!(begin.elapsed() < Duration::from_secs(20));
            }
            a.engine.pause(&id).await.unwrap();
        }
        let frozen = size();
        a.engine.kill(&id).await.unwrap();
        assert_eq!(state(&a, &id).await, ContainerState::Exited);
        assert_eq!(size(), frozen, "something ran between the thaw and the kill");
        a.engine.kill(&id).await.unwrap();
        for refused in [a.engine.pause(&id).await, a.engine.unpause(&id).await] {
            assert!(
                matches!(
                    refused,
                    Err(EngineError::Conflict { .. } | EngineError::Failed { .. })
                ),
                "{refused:?}"
            );
        }
        a.docker("rm -fv paused");
    }
    a.docker("volume rm paused-log");
}

#[tokio::test]
async fn killed_is_gone() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    let run = |options: &str, command: &str| {
        let id = a.docker(&format!("run -d {options} {BUSYBOX} {command}"));
        ContainerId::new(id).unwrap()
    };
    let running = run("--name killed-running --restart always", "sleep 1000");
    let passing = run("--name killed-passing --rm", "sleep 1000");
    let looping = run("--name killed-looping --restart always", "false");
    let indirect = run("--name killed-indirect", "sleep 1000");
    a.engine.kill(&running).await.unwrap();
    assert_eq!(state(&a, &running).await, ContainerState::Exited);
    a.engine.kill(&passing).await.unwrap();
    a.engine.pause(&indirect).await.unwrap();
    a.indirect().kill(&indirect).await.unwrap();
    assert_eq!(state(&a, &indirect).await, ContainerState::Exited);
    // Between two lives there is nothing to kill.
    let begin = Instant::now();
    while state(&a, &looping).await != ContainerState::Restarting {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    a.engine.kill(&looping).await.unwrap();
    assert_eq!(state(&a, &looping).await, ContainerState::Exited);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for id in [&running, &looping] {
        assert_eq!(state(&a, id).await, ContainerState::Exited);
    }
    let nobody = ContainerId::new("0".repeat(64)).unwrap();
    let missing = a.engine.kill(&nobody).await;
    assert!(
        matches!(
            missing,
            Err(EngineError::NotFound {
                what: "container",
                ..
            })
        ),
        "{missing:?}"
    );
    a.docker("rm -f killed-running killed-looping killed-indirect");
}

#[tokio::test]
async fn commands_run_inside_and_say_how_they_ended() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    let id = a.docker(&format!(
        "run -d --name commands -u 1000:1000 -e X=1 {BUSYBOX} sleep 1000"
    ));
    let id = ContainerId::new(id).unwrap();
    let long = Duration::from_secs(30);
    let run = async |command: &str| {
        let ended = a.engine.exec(&id, command, long).await.unwrap();
        (ended.exit_code, ended.output)
    };
    assert_eq!(run("id -u; echo \"$X\"").await, (Some(0), "1000\n1\n".into()));
    assert_eq!(run("echo out; echo err >&2; exit 7").await.0, Some(7));
    assert!(run("echo err >&2").await.1.contains("err"));
    // A command that is not there is the command's business, not the shell's.
    let (code, output) = run("no-such-command").await;
    assert!(
        code == Some(127) && output.contains("no-such-command"),
        "{code:?} {output}"
    );
    let (code, output) = run("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done").await;
    assert!(
        code == Some(0) && output.len() <= 4096 && output.ends_with("line 19999\n"),
        "{output}"
    );
    // What it leaves behind holds its output open.
    assert_eq!(
        run("sleep 1000 & echo started").await,
        (Some(0), "started\n".into())
    );
    assert_eq!(run("sleep 0.3; echo late").await, (Some(0), "late\n".into()));
    let late = a
        .engine
        .exec(&id, "echo begun; sleep 1000", Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!((late.exit_code, late.output.as_str()), (None, "begun\n"));
    a.docker("rm -f commands");
    let gone = a.engine.exec(&id, "true", long).await;
    assert!(
        matches!(
            gone,
            Err(EngineError::NotFound {
                what: "container",
                ..
            })
        ),
        "{gone:?}"
    );
}

#[tokio::test]
async fn no_shell_is_said() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.node
        .sh("mkdir -p /root/bare && cp /bin/busybox /root/bare/busybox && tar -C /root/bare -c busybox | docker import - bare:1")
        .unwrap();
    let id = a.docker("run -d --name bare-one bare:1 /busybox sleep 1000");
    let id = ContainerId::new(id).unwrap();
    let refused = a.engine.exec(&id, "true", Duration::from_secs(30)).await;
    assert!(
        matches!(&refused, Err(EngineError::Unsupported { message }) if message.contains("no shell")),
        "{refused:?}"
    );
    a.engine.kill(&id).await.unwrap();
    let refused = a.engine.exec(&id, "true", Duration::from_secs(30)).await;
    assert!(
        matches!(refused, Err(EngineError::Conflict { .. })),
        "{refused:?}"
    );
    a.docker("rm -f bare-one");
}
