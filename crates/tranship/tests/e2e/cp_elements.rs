//! One storage element as an archive, by a filter, and what it differs in from its ancestor.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tranship_agent::AgentClient;
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_core::Fault;
use tranship_testkit::testbed::Options;
use tranship_wire::h2::{Client, ClientOptions};

use crate::world::World;

/// A host with containers, and its agent.
struct Bench {
    world: World,
    agent: AgentClient,
    /// Joins this process to it; ended before the runtime is.
    _joined: tokio::process::Child,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Option<Self> {
        let world = World::with(Options::default())?;
        let image = world.a.load_image("busybox").unwrap();
        let script = format!(
            "set -e
            run() {{ name=$1; shift; docker run -d --name $name --network none \"$@\" {image} sleep 86400; }}
            run c1 -v data:/data --tmpfs /m; run c2; run ro --read-only
            docker create --name k1 --network none -v data:/data {image} sleep 86400
            mkdir -p /srv/dir /srv/fixed && echo host >/srv/dir/f && mount -t tmpfs -o ro none /srv/fixed
            for c in c1 c2; do docker exec $c sh -c 'mkdir /both && echo same >/both/f && touch -d \"2001-02-03 04:05:06\" /both/f /both'; done
            docker exec c1 sh -c 'echo new >/etc/new && rm /etc/group && echo in >/data/f && echo m >/m/f &&
                ln /etc/new /etc/again && mkdir -p /own/sub && rm -r /www && mkdir /www && echo h >/www/h'"
        );
        world.a.sh(&script).unwrap();
        // Starts the agent there.
        world.run(&["doctor", "ssh://root@a"]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        // The agent asks the kernel who speaks to it, so somebody on the host itself has to.
        let script = "exec /root/.cache/tranship/bin/tranship-* agent --stdio";
        let mut command = world.a.command(["sh", "-c", script]).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let agent = runtime.block_on(async {
            let mut joined = tokio::process::Command::from(command)
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let stream = tokio::io::join(joined.stdout.take().unwrap(), joined.stdin.take().unwrap());
            let client = Client::connect(stream, &ClientOptions::new("a")).await.unwrap();
            (AgentClient::new(client), joined)
        });
        let (agent, joined) = agent;
        Some(Self {
            world,
            agent,
            _joined: joined,
            runtime,
        })
    }

    /// The names in the archive, with the lengths of files.
    fn get(&self, element: &str, query: &str) -> Result<BTreeMap<String, u64>, Fault> {
        let bytes = self.runtime.block_on(async {
            let mut pieces = self.agent.export_element(element, query).await?;
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece.map_err(tranship_wire::WireError::into_fault)?);
            }
            Ok::<_, Fault>(bytes)
        })?;
        let mut reader = Reader::new(&bytes[..], ReadOptions::like_docker());
        let mut names = BTreeMap::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.insert(String::from_utf8(entry.path).unwrap(), entry.size);
        }
        Ok(names)
    }

    fn put(&self, element: &str, query: &str, archive: Vec<u8>) -> Result<u64, Fault> {
        let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from(archive))]);
        let done = self
            .runtime
            .block_on(self.agent.import_element(element, query, pieces));
        done.map(|done| done.entries)
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
        result.unwrap_err().code
    }

    fn status(&self, element: &str, query: &str) -> String {
        let done = self.runtime.block_on(self.agent.stat_element(element, query));
        done.map_or_else(
            |fault| fault.message,
            |stat| format!("{} {}", stat.name, stat.size),
        )
    }

    fn shell(&self, container: &str, command: &str) -> String {
        self.world
            .a
            .exec_ok(["docker", "exec", container, "sh", "-c", command])
            .unwrap()
    }
}

/// An archive of `x`, `d/y` and `e/z`.
fn archive() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for name in ["d", "e"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    for name in ["x", "d/y", "e/z"] {
        std::fs::write(directory.path().join(name), name).unwrap();
    }
    let output = Command::new("tar")
        .args(["c", "x", "d", "e"])
        .current_dir(directory.path())
        .stderr(Stdio::inherit())
        .output();
    output.unwrap().stdout
}

#[test]
fn elements_go_out_by_a_filter_and_against_an_ancestor() {
    let Some(b) = Bench::new() else { return };
    let has = |names: &BTreeMap<String, u64>, name: &str| names.contains_key(name);
    // The layer against its image: what is new, what is changed, and marks for what is gone.
    let difference = b.get("layer/c1", "ancestor=image").unwrap();
    for name in [
        "etc/",
        "etc/new",
        "etc/again",
        "etc/.wh.group",
        "own/sub/",
        "both/f",
        "www/h",
        "www/.wh..wh..opq",
    ] {
        assert!(has(&difference, name), "{name} is not in {difference:?}");
    }
    for name in ["bin/busybox", "etc/passwd", "data/f", "m/f", "etc/group"] {
        assert!(!has(&difference, name), "{name} is in {difference:?}");
    }
    let filtered = "include=etc&exclude=&strip=etc&rebase=new/place&ancestor=image";
    let names: Vec<_> = b.get("layer/c1", filtered).unwrap().into_keys().collect();
    assert!(
        names.contains(&"new/place/new".to_owned()) && names.iter().all(|n| n.starts_with("new/place/")),
        "{names:?}"
    );
    // All of it, without what is mounted; of one that does not run as well.
    for container in ["layer/c1", "layer/k1"] {
        let all = b.get(container, "").unwrap();
        assert!(
            has(&all, "bin/busybox") && !has(&all, "data/f") && !has(&all, "m/f"),
            "{container}: {all:?}"
        );
    }
    assert!(has(&b.get("layer/c1", "").unwrap(), "data/"));
    let headers = b
        .get("layer/c1", "include=bin&exclude=&headers-only=true")
        .unwrap();
    assert!(headers.get("bin/busybox") == Some(&0), "{headers:?}");
    // Against another container: what both wrote alike does not go.
    let difference = b.get("layer/c1", "ancestor=container:c2").unwrap();
    assert!(
        has(&difference, "etc/new") && has(&difference, "etc/.wh.group"),
        "{difference:?}"
    );
    assert!(
        !has(&difference, "both/f") && !has(&difference, "bin/busybox"),
        "{difference:?}"
    );
    // A volume against a snapshot of it and against another volume.
    b.world
        .run(&["volume", "snapshot", "ssh://root@a//data"])
        .expect(0);
    let listed = b
        .world
        .run(&["volume", "ls", "ssh://root@a", "--json"])
        .expect(0)
        .json();
    let time = listed
        .as_array()
        .unwrap()
        .iter()
        .find_map(|v| v["snapshots"][0]["timestamp"].as_u64());
    b.shell("c1", "echo more >/data/g; rm /data/f; mkdir /data/d");
    let query = format!("ancestor=snapshot:{}", time.unwrap());
    let names: Vec<_> = b.get("volume/data", &query).unwrap().into_keys().collect();
    assert_eq!(names, [".wh.f", "d/", "g"]);
    b.world.a.sh("docker volume create other").unwrap();
    let names: Vec<_> = b
        .get("volume/data", "ancestor=volume:other")
        .unwrap()
        .into_keys()
        .collect();
    assert_eq!(names, ["d/", "g"]);
    let names: Vec<_> = b.get("bind/%2Fsrv%2Fdir", "").unwrap().into_keys().collect();
    assert_eq!(names, ["./", "f"]);
    assert!(has(&b.get("tmpfs/c1:%2Fm", "").unwrap(), "f"));
}

#[test]
fn elements_take_archives_in_and_say_what_is_wrong() {
    let Some(b) = Bench::new() else { return };
    let put = |element: &str, query: &str| b.put(element, query, archive());
    assert_eq!(put("layer/c1", "").unwrap(), 5);
    assert_eq!(
        put("layer/c1", "include=d&exclude=&strip=d&rebase=opt/new").unwrap(),
        2
    );
    assert_eq!(b.shell("c1", "cat /x /d/y /e/z /opt/new/y"), "xd/ye/zd/y");
    put("tmpfs/c1:%2Fm", "").unwrap();
    put("volume/data", "rebase=in").unwrap();
    put("bind/%2Fsrv%2Fdir", "exclude=e").unwrap();
    assert_eq!(b.shell("c1", "cat /m/x /data/in/x"), "xx");
    assert_eq!(b.world.a.sh("ls /srv/dir").unwrap(), "d\nf\nx\n");
    // One that does not run: through the engine, but never into what is mounted there.
    put("layer/k1", "").unwrap();
    assert_eq!(Bench::code(put("layer/k1", "rebase=data")), "element.covered");
    assert_eq!(b.world.a.sh("docker cp k1:/d/y - | tar xO").unwrap(), "d/y");
    // What is wrong.
    for (element, query, code) in [
        ("layer/ro", "", "file.read-only"),
        ("bind/%2Fsrv%2Ffixed", "", "file.read-only"),
        ("layer/nobody", "", "container.not-found"),
        ("volume/nothing", "", "volume.not-found"),
        ("bind/%2Fno%2Fsuch", "", "archive.not-found"),
        ("bind/srv", "", "request.path"),
        ("disk/x", "", "store.not-found"),
        ("tmpfs/k1:%2Fm", "", "container.not-running"),
        ("volume/data", "include=..", "archive.filter-path"),
        ("volume/data", "strip=nowhere", "archive.filter-outside"),
        ("volume/data", "ancestor=image", "request.invalid"),
        ("bind/%2Fsrv%2Fdir", "rebase=f", "archive.not-a-directory"),
    ] {
        assert_eq!(Bench::code(put(element, query)), code, "PUT {element}?{query}");
    }
    assert!(Bench::code(b.put("volume/data", "", vec![b'x'; 2000])).starts_with("archive."));
    for (element, query, code) in [
        ("volume/data", "ancestor=image", "element.ancestor"),
        ("layer/c1", "ancestor=image:other", "element.ancestor"),
        ("layer/c1", "ancestor=container:nobody", "container.not-found"),
        ("volume/data", "ancestor=snapshot:7", "snapshot.not-found"),
        ("layer/c1", "ancestor=yesterday", "request.invalid"),
    ] {
        assert_eq!(Bench::code(b.get(element, query)), code, "GET {element}?{query}");
    }
    for (element, query, text) in [
        ("layer/c1", "include=x", "x 1"),
        ("volume/data", "include=in/x", "x 1"),
        ("layer/k1", "include=x", "x 1"),
        ("bind/srv", "", "status 400"),
        ("layer/c1", "include=nope", "status 404"),
        ("tmpfs/k1:%2Fm", "", "status 409"),
        ("layer/c1", "include=x&include=d", "status 422"),
    ] {
        let seen = b.status(element, query);
        assert!(seen.contains(text), "HEAD {element}?{query}: {seen}");
    }
    assert!(b.status("volume/data", "").starts_with("/ "));
}
