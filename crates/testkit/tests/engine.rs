//! Nodes behave like servers with a container engine.

mod common;

use std::fs;
use std::os::unix::net::UnixStream;

use common::{TestResult, eventually, get};
use tranship_testkit::require_testbed;
use tranship_testkit::testbed::{Engine, Error, Node, Options, Testbed};

fn health(node: &Node, container: &str) -> String {
    let format = "{{.State.Health.Status}}";
    node.exec_ok(["docker", "inspect", "--format", format, container])
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[test]
fn the_web_image_serves_and_becomes_healthy() -> TestResult {
    require_testbed!();
    let [a, b] = Testbed::nodes()?;
    let image = a.load_image("web:1")?;
    assert_eq!(image, "tranship-test/web:1");
    a.exec_ok([
        "docker",
        "run",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8080:8080",
        &image,
    ])?;
    eventually("the container is healthy", || health(&a, "web") == "healthy");
    assert!(get(a.address(), 8080, "/")?.contains("web here"));
    let id = a.exec_ok(["docker", "inspect", "--format", "{{slice .Id 0 12}}", "web"])?;
    assert_eq!(get(a.address(), 8080, "/host")?.trim(), id.trim());

    let layers = |node: &Node, image: &str| -> Result<Vec<String>, Error> {
        let format = r#"{{join .RootFS.Layers "\n"}}"#;
        let text = node.exec_ok(["docker", "image", "inspect", "--format", format, image])?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let next = b.load_image("web:2")?;
    let (old, new) = (layers(&a, &image)?, layers(&b, &next)?);
    assert!(old.len() >= 10, "{} layers", old.len());
    assert_eq!(new.len(), old.len() + 1);
    assert_eq!(new[..old.len()], old[..]);
    assert!(matches!(a.load_image("nonesuch"), Err(Error::NoImage(_))));
    Ok(())
}

#[test]
fn the_image_with_state_keeps_it_over_a_restart() -> TestResult {
    require_testbed!();
    let [a] = Testbed::nodes()?;
    let image = a.load_image("state:1")?;
    let python = a.load_image("python")?;
    a.sh(&format!(
        "docker run -d --name database -v rows:/var/lib/postgresql/data {image} run-postgres
         docker run -d --name log -p 7000:7000 -v lines:/lines {python} append-service /lines
         docker run --rm {image} sh -c 'redis-server --version && ls /opt/later/*.deb'
         docker run --rm {python} sh -c 'getcap / && getfacl / && getfattr /'"
    ))?;
    let query = |sql: &str| {
        a.exec([
            "docker", "exec", "database", "psql", "-h", "/tmp", "-U", "postgres", "-qAtc", sql,
        ])
    };
    eventually("the database answers", || {
        query("select 1").is_ok_and(|o| o.stdout == "1\n")
    });
    assert!(query("create table t(n int); insert into t values (42)")?.success());
    let say = |line: &str| -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect((a.address(), 7000))?;
        std::io::Write::write_all(&mut stream, line.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        std::io::read_to_string(stream)
    };
    eventually("the service answers", || {
        say("?\n").is_ok_and(|answer| answer == "0 1\n")
    });
    assert_eq!(say("one\ntwo\n")?, "1 1\n2 1\n");
    a.sh("docker kill database log && docker start database log")?;
    eventually("the database answers again", || {
        query("select n from t").is_ok_and(|o| o.stdout == "42\n")
    });
    eventually("the service answers again", || {
        say("?\n").is_ok_and(|answer| answer == "2 2\n")
    });
    let log = a.sh("cat /var/lib/docker/volumes/lines/_data/log")?;
    assert_eq!(log, "1 1 one\n2 1 two\n");
    Ok(())
}

#[test]
fn a_reboot_keeps_the_disk_and_loses_the_memory() -> TestResult {
    require_testbed!();
    let options = Options {
        nodes: 2,
        ..Options::default()
    }
    .small_disk("a", "/srv/small", 16 << 20);
    let [a, b] = Testbed::up(options)?.array();
    let image = a.load_image("busybox")?;
    a.exec_ok(["docker", "run", "--detach", "--name", "once", &image])?;
    a.exec_ok([
        "docker",
        "run",
        "--detach",
        "--name",
        "web",
        "--restart",
        "always",
        "-p",
        "8080:8080",
        &image,
    ])?;
    a.sh("echo kept > /root/file; echo kept > /srv/small/file; echo lost > /run/file; echo lost > /tmp/file; sync")?;
    a.reboot()?;
    assert_eq!(
        a.sh("cat /root/file /srv/small/file; ls /run/file /tmp/file || true")?,
        "kept\nkept\n"
    );
    eventually("the container is back", || get(a.address(), 8080, "/").is_ok());
    let running = a.exec_ok(["docker", "ps", "--format", "{{.Names}}"])?;
    assert_eq!(running.trim(), "web");
    assert!(b.exec(["ssh", "a", "true"])?.success());

    a.power_off()?;
    assert!(!a.is_running());
    assert!(matches!(a.exec(["true"]), Err(Error::NodeOff(name)) if name == "a"));
    assert!(!b.exec(["ping", "-c1", "-W1", "a"])?.success());
    a.power_on()?;
    assert!(b.exec(["ping", "-c1", "-W5", "a"])?.success());
    Ok(())
}

#[test]
fn a_killed_engine_leaves_its_containers_and_comes_back() -> TestResult {
    require_testbed!();
    let [a] = Testbed::nodes()?;
    let image = a.load_image("busybox")?;
    a.exec_ok([
        "docker",
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        "host",
        &image,
    ])?;
    eventually("the container serves", || get(a.address(), 8080, "/").is_ok());
    assert!(UnixStream::connect(a.engine_socket()?).is_ok());
    a.kill_engine()?;
    assert!(!a.exec(["docker", "ps"])?.success());
    assert!(get(a.address(), 8080, "/").is_ok(), "the container goes on");
    a.restart_engine()?;
    assert!(a.exec(["docker", "ps"])?.success());
    a.restart_engine()?;
    assert!(a.exec(["docker", "ps"])?.success());
    Ok(())
}

#[test]
fn the_inventory_tells_what_was_left() -> TestResult {
    require_testbed!();
    let [a] = Testbed::nodes()?;
    let image = a.load_image("busybox")?;
    let before = a.inventory()?;
    assert!(
        before
            .iter()
            .any(|line| line.starts_with("image tranship-test/busybox:1 sha256:")),
        "{before:?}"
    );
    a.sh(&format!(
        "docker network create n && docker volume create vol && docker tag {image} other:1 &&
         docker run --detach --name web --restart always --network n --volume vol:/v {image}"
    ))?;
    let during = a.inventory()?;
    let new: Vec<&str> = during
        .iter()
        .filter(|line| !before.contains(line))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(new, ["container", "image", "network", "volume"]);
    let container = during
        .iter()
        .find(|line| line.starts_with("container "))
        .expect("a container");
    assert!(
        container.contains(" running ") && container.ends_with("restart=always"),
        "{container}"
    );
    a.sh("docker rm --force web && docker network rm n && docker volume rm vol && docker rmi other:1")?;
    assert_eq!(a.inventory()?, before);
    a.restart_engine()?;
    assert_eq!(a.inventory()?, before);
    Ok(())
}

#[test]
fn a_small_disk_runs_full() -> TestResult {
    require_testbed!();
    let options = Options {
        nodes: 1,
        ..Options::default()
    }
    .small_disk("a", "/var/lib/docker", 64 << 20);
    let [a] = Testbed::up(options)?.array();
    a.load_image("busybox")?;
    match a.load_image("web:1") {
        Err(Error::Failed {
            place,
            stderr,
            stdout,
            ..
        }) => {
            assert_eq!(place, "a");
            assert!(
                format!("{stderr}{stdout}").contains("no space left"),
                "{stderr}{stdout}"
            );
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn commands_bring_back_what_they_say() -> TestResult {
    require_testbed!();
    let [a] = Testbed::nodes()?;
    let output = a.exec(["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!(
        (
            output.status.code(),
            output.stdout.as_str(),
            output.stderr.as_str()
        ),
        (Some(7), "out\n", "err\n")
    );
    let error = a
        .exec_ok(["sh", "-c", "echo said; echo complained >&2; exit 7"])
        .expect_err("status 7");
    let text = error.to_string();
    assert!(
        ["a: `sh", "said", "complained", "7"]
            .iter()
            .all(|part| text.contains(part)),
        "{text}"
    );
    let big = vec![b'x'; 3 << 20];
    assert_eq!(
        a.exec_with_input(["wc", "-c"], &big)?.stdout.trim(),
        big.len().to_string()
    );
    assert!(
        a.exec_with_input(["true"], &big)?.success(),
        "a command may leave its input unread"
    );
    assert_eq!(
        a.exec_ok(["env"])?.lines().find(|line| line.starts_with("HOME=")),
        Some("HOME=/root")
    );
    fs::write(a.root()?.join("root/from-host"), "hello")?;
    assert_eq!(a.exec_ok(["cat", "/root/from-host"])?, "hello");

    let running = a.spawn(["sleep", "4711"])?;
    let count = || {
        a.sh("pgrep -cxf 'sleep 4711' || true")
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    eventually("the command runs", || count() == "1");
    drop(running);
    eventually("the command ended with its handle", || count() == "0");
    Ok(())
}

#[test]
fn podman_nodes_answer_their_api() -> TestResult {
    require_testbed!();
    let bed = Testbed::up(Options {
        nodes: 2,
        engine: Engine::Podman,
        ..Options::default()
    })?;
    let [a, b] = bed.array();
    let before = a.inventory()?;
    let image = a.load_image("busybox")?;
    a.exec_ok([
        "podman",
        "run",
        "--detach",
        "--name",
        "web",
        "--publish",
        "8080:8080",
        &image,
    ])?;
    eventually("the container serves", || get(a.address(), 8080, "/").is_ok());
    assert!(UnixStream::connect(a.engine_socket()?).is_ok());
    let new = a
        .inventory()?
        .iter()
        .filter(|line| !before.contains(line))
        .count();
    assert_eq!(new, 2, "a container and an image");
    a.kill_engine()?;
    assert!(UnixStream::connect(a.engine_socket()?).is_err());
    a.restart_engine()?;
    assert!(UnixStream::connect(a.engine_socket()?).is_ok());
    assert_eq!(b.inventory()?, before);
    Ok(())
}
