//! Bringing an agent to a host behind a real `sshd`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod host;
mod uploads;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::{Host, Setup, agent_script, free_port, program, skipped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tranship_core::fault::{Explain, Fault};
use tranship_wire::WireError;
use tranship_wire::bootstrap::{
    AgentStream, BootstrapEvent, BootstrapOptions, Origin, connect as connect_with,
};
use tranship_wire::ssh::SshTransport;

/// Larger than several pieces of an upload.
const SIZE: usize = 1 << 20;

fn own() -> String {
    agent_script("tranship 0.2.0 1 2", SIZE)
}

async fn connect(ssh: &SshTransport, options: &BootstrapOptions) -> Result<AgentStream, WireError> {
    timeout(Duration::from_secs(60), connect_with(ssh, options, &|_| {}))
        .await
        .unwrap()
}

async fn fault(ssh: &SshTransport, options: &BootstrapOptions) -> Fault {
    connect(ssh, options).await.unwrap_err().into_fault()
}

/// The first line that the agent says.
async fn greeting(stream: &mut AgentStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

/// Bytes of any kind get through untouched, and the end is a clean one.
async fn assert_works(mut stream: AgentStream) {
    assert!(
        greeting(&mut stream)
            .await
            .starts_with(&format!("I am {} with agent --stdio", stream.path()))
    );
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 256) as u8).collect();
    stream.write_all(b"echo\n").await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (written, read) = tokio::join!(
        async {
            writer.write_all(&bytes).await?;
            writer.shutdown().await
        },
        async {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.map(|_| got)
        }
    );
    written.unwrap();
    assert!(read.unwrap() == bytes);
}

fn uploaded() -> Origin {
    Origin::Uploaded {
        bytes: own().len() as u64,
    }
}

/// Whoever comes while another one uploads finds the whole binary under its name, or none.
#[tokio::test]
async fn a_binary_that_does_not_run_there_is_named() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options("#!/nonexistent/ld-musl.so\n");
    let fault = fault(&host.ssh(), &options).await;
    assert_eq!(fault.code, "bootstrap.cannot-run");
    assert!(fault.hint.is_some());
}

#[tokio::test]
async fn nothing_is_uploaded_if_that_is_forbidden() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let mut options = host.options(&own());
    options.no_bootstrap = true;
    let fault = fault(&host.ssh(), &options).await;
    assert_eq!(fault.code, "bootstrap.refused");
    assert!(fault.message.contains("no tranship in its PATH"), "{fault}");
    assert!(fault.hint.unwrap().contains("tranship 0.2.0"));
    assert_eq!(host.cached(), Vec::<String>::new());
}

#[tokio::test]
async fn an_installed_one_is_used_if_it_is_new_enough() {
    for (line, version, runs) in [
        ("tranship 0.2.0 1 2", "0.2.0", true),
        ("tranship 0.10.0 2 3", "0.10.0", true),
        ("tranship 0.1.9 1 2", "0.1.9", false),
        ("tranship 9.0.0 7 8", "9.0.0", false),
        ("usage: tranship COMMAND", "", false),
    ] {
        let Some(host) = Host::start(&Setup {
            installed: Some(line),
            ..Setup::default()
        }) else {
            return;
        };
        let mut options = host.options(&own());
        let stream = connect(&host.ssh(), &options).await.unwrap();
        match stream.origin() {
            Origin::Installed(installed) if runs => {
                assert_eq!(installed.version.to_string(), version);
                assert_eq!(Path::new(stream.path()), host.path("bin/tranship"));
            }
            Origin::Uploaded { .. } if !runs => {}
            other => panic!("{line}: {other:?}"),
        }
        assert_works(stream).await;
        if runs {
            options.force_own = true;
            assert_eq!(
                *connect(&host.ssh(), &options).await.unwrap().origin(),
                uploaded()
            );
        }
    }
}

#[tokio::test]
async fn a_noisy_login_shell_does_no_harm() {
    let noise = r#"printf "Welcome to the host"; seq 1 3000; printf "tranship-0 decide\nno end of line"
        echo "and on standard error" >&2; eval "$SSH_ORIGINAL_COMMAND""#;
    let Some(host) = Host::start(&Setup {
        shell: Some(noise),
        ..Setup::default()
    }) else {
        return;
    };
    std::fs::write(
        host.path("home/.bashrc"),
        "echo a word from bash; printf another\n",
    )
    .unwrap();
    let options = host.options(&own());
    for origin in [uploaded(), Origin::Cached] {
        let stream = connect(&host.ssh(), &options).await.unwrap();
        assert_eq!(*stream.origin(), origin);
        assert_works(stream).await;
    }
}

#[tokio::test]
async fn endless_noise_and_no_shell_are_told_apart() {
    for (shell, code, text) in [
        ("yes", "bootstrap.noise", ""),
        (
            "echo This account is not available.; exit 1",
            "bootstrap.shell",
            "This account is not available.",
        ),
        (
            "echo only to stderr >&2; exit 127",
            "bootstrap.shell",
            "only to stderr",
        ),
        ("exit 0", "bootstrap.shell", "without a word"),
    ] {
        let Some(host) = Host::start(&Setup {
            shell: Some(shell),
            ..Setup::default()
        }) else {
            return;
        };
        let fault = fault(&host.ssh(), &host.options(&own())).await;
        assert_eq!(fault.code, code, "{shell}: {fault}");
        assert!(fault.message.contains(text), "{shell}: {fault}");
    }
}

#[tokio::test]
async fn a_shell_that_hangs_is_given_up() {
    let Some(host) = Host::start(&Setup {
        shell: Some("exec sleep 15"),
        ..Setup::default()
    }) else {
        return;
    };
    let mut options = host.options(&own());
    options.login_time = Duration::from_secs(1);
    assert_eq!(fault(&host.ssh(), &options).await.code, "bootstrap.timeout");
}

#[tokio::test]
async fn every_login_shell_will_do() {
    for shell in ["dash", "bash", "zsh", "tcsh", "fish", "ksh"] {
        if program(shell).is_none() {
            skipped(&format!("no {shell}"));
            continue;
        }
        let script = format!("exec {shell} -c \"$SSH_ORIGINAL_COMMAND\"");
        let Some(host) = Host::start(&Setup {
            shell: Some(&script),
            ..Setup::default()
        }) else {
            return;
        };
        let options = host.options(&own());
        for origin in [uploaded(), Origin::Cached] {
            let stream = connect(&host.ssh(), &options)
                .await
                .unwrap_or_else(|error| panic!("{shell}: {}", error.into_fault()));
            assert_eq!(*stream.origin(), origin, "{shell}");
            assert_works(stream).await;
        }
    }
}

#[tokio::test]
async fn the_tools_of_busybox_will_do() {
    let Some(busybox) = program("busybox") else {
        return skipped("no busybox");
    };
    // Only busybox: the PATH that the script adds to leads nowhere else first.
    let script = format!("exec {} sh -c \"$SSH_ORIGINAL_COMMAND\"", busybox.display());
    let Some(host) = Host::start(&Setup {
        shell: Some(&script),
        ..Setup::default()
    }) else {
        return;
    };
    for tool in [
        "sh", "id", "find", "head", "cut", "mktemp", "chmod", "mv", "rm", "ls", "grep", "tail", "wc",
    ]
    .into_iter()
    .chain(["df", "mkdir", "touch", "uname", "sha256sum", "cat"])
    {
        std::os::unix::fs::symlink(&busybox, host.path("bin").join(tool)).unwrap();
    }
    let options = host.options(&own());
    for origin in [uploaded(), Origin::Cached] {
        let stream = connect(&host.ssh(), &options).await.unwrap();
        assert_eq!(*stream.origin(), origin);
        assert_works(stream).await;
    }
}

#[tokio::test]
async fn any_tool_that_computes_the_hash_will_do() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());
    // A shell finds no program in what is not executable, so hiding one needs a shell that sees only the others.
    for hidden in [
        &["sha256sum"][..],
        &["sha256sum", "shasum"],
        &["sha256sum", "shasum", "openssl"],
    ] {
        let tools = host.path("tools");
        let _ = std::fs::remove_dir_all(&tools);
        std::fs::create_dir(&tools).unwrap();
        for directory in ["/usr/bin", "/bin"] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name();
                if !hidden.iter().any(|tool| name == *tool) {
                    let _ = std::os::unix::fs::symlink(entry.path(), tools.join(name));
                }
            }
        }
        let script = include_str!("../../src/bootstrap/script.sh");
        let function =
            &script[script.find("have() {").unwrap()..script.find("# A directory of our").unwrap()];
        let output = std::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{function}\nhash \"$1\""))
            .arg("sh")
            .arg(&options.binary)
            .env("PATH", &tools)
            .output()
            .unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(
            [options.sha256.as_str(), "none"].contains(&found.trim()),
            "{hidden:?}: {found}"
        );
        let left = ["shasum", "openssl", "busybox"]
            .iter()
            .any(|tool| !hidden.contains(tool) && tools.join(tool).exists());
        assert_eq!(found.trim() == "none", !left, "{hidden:?}");
    }
}

#[tokio::test]
async fn a_fallback_that_is_not_ours_is_refused() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    std::fs::remove_dir(host.path("cache")).unwrap();
    std::fs::write(host.path("cache"), "a file in its place").unwrap();
    let options = host.options(&own());
    let uid = rustix::process::geteuid().as_raw();
    let fallback = host.path("fallback").join(format!("tranship-{uid}"));
    // Someone put a link there, with a binary that has the right name and content behind it.
    let trap = host.path("trap");
    std::fs::create_dir(&trap).unwrap();
    let name = format!("tranship-0.2.0-{}", &options.sha256[..16]);
    std::fs::write(trap.join(name), own()).unwrap();
    std::os::unix::fs::symlink(&trap, &fallback).unwrap();
    let told = fault(&host.ssh(), &options).await;
    assert_eq!(told.code, "bootstrap.no-directory");
    assert!(
        told.message.contains("belongs to another user or is a link"),
        "{told}"
    );
    if uid == 0 {
        std::fs::remove_file(&fallback).unwrap();
        std::fs::create_dir(&fallback).unwrap();
        std::os::unix::fs::chown(&fallback, Some(65534), None).unwrap();
        assert_eq!(fault(&host.ssh(), &options).await.code, "bootstrap.no-directory");
    }
}

#[tokio::test]
async fn the_ways_of_not_getting_in_are_told_apart() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());

    host.write_client_files("other_key", "host_key");
    let denied = fault(&host.ssh(), &options).await;
    assert_eq!(denied.code, "ssh.denied", "{denied}");

    host.write_client_files("user_key", "other_key");
    let changed = fault(&host.ssh(), &options).await;
    assert_eq!(changed.code, "ssh.host-key-changed", "{changed}");
    assert!(changed.hint.unwrap().contains("ssh-keygen -R '[127.0.0.1]:"));

    host.write_client_files("user_key", "");
    let unknown = fault(&host.ssh(), &options).await;
    assert_eq!(unknown.code, "ssh.host-key-unknown", "{unknown}");

    host.write_client_files("user_key", "host_key");
    let mut ssh = host.ssh();
    ssh.address.port = Some(free_port());
    let refused = fault(&ssh, &options).await;
    assert_eq!(refused.code, "ssh.refused", "{refused}");

    ssh.address.host = "no-such-host.invalid".into();
    let nowhere = fault(&ssh, &options).await;
    assert_eq!(nowhere.code, "ssh.unknown-host", "{nowhere}");

    ssh.address.host = "-oProxyCommand=true".into();
    assert_eq!(fault(&ssh, &options).await.code, "ssh.address");

    let mut ssh = host.ssh();
    ssh.options.extend(["-o".into(), "NoSuchOption=yes".into()]);
    let configuration = fault(&ssh, &options).await;
    assert_eq!(configuration.code, "ssh.configuration", "{configuration}");

    // And with everything right one does get in.
    assert_works(connect(&host.ssh(), &options).await.unwrap()).await;
}

#[tokio::test]
async fn a_host_that_accepts_and_says_nothing_is_given_up() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ssh = host.ssh();
    ssh.address.port = Some(silent.local_addr().unwrap().port());
    ssh.connect_timeout = Some(Duration::from_secs(1));
    let fault = fault(&ssh, &host.options(&own())).await;
    assert_eq!(fault.code, "ssh.timeout", "{fault}");
}

#[tokio::test]
async fn an_agent_that_fails_and_a_connection_that_breaks_are_no_clean_ends() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let options = host.options(&own());
    for (order, expected) in [
        ("fail\n", "with status 3: out of cheese"),
        ("die\n", "with status 255"),
    ] {
        let mut stream = connect(&host.ssh(), &options).await.unwrap();
        greeting(&mut stream).await;
        stream.write_all(order.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest))
            .await
            .unwrap();
        let error = read.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn dropping_the_stream_ends_ssh_and_what_it_runs() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let mut stream = connect(&host.ssh(), &host.options(&own())).await.unwrap();
    greeting(&mut stream).await;
    let marker = host.path("ssh_config").display().to_string();
    let running = || {
        let mut found = 0;
        for entry in std::fs::read_dir("/proc").unwrap() {
            let line = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.starts_with("ssh\0") && line.contains(&marker) {
                found += 1;
            }
        }
        found
    };
    assert_eq!(running(), 1);
    drop(stream);
    let gone = async {
        while running() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(Duration::from_secs(5), gone).await.is_ok());
}

#[tokio::test]
async fn what_a_shell_would_read_is_refused_before_anything_starts() {
    let Some(host) = Host::start(&Setup::default()) else {
        return;
    };
    let mut options = host.options(&own());
    options.arguments = vec!["$(touch /tmp/x)".into()];
    assert_eq!(
        connect(&host.ssh(), &options).await.unwrap_err().code(),
        "bootstrap.argument"
    );
    options.arguments.clear();
    options.version = "0.2.0; id".into();
    assert_eq!(
        connect(&host.ssh(), &options).await.unwrap_err().code(),
        "bootstrap.version"
    );
}
