//! Memory that leaves its node as an image: what skopeo, a registry and podman make of it.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::Value;
use tranship_testkit::testbed::Node;

use crate::checkpoint::counts_on;
use crate::image_ways::DockerRegistry;
use crate::live::{nothing_dumped, numbers, without_gap};

const PODMAN: &str = "podman --root /root/pod --runroot /root/pod.run --storage-driver vfs";

fn json(node: &Node, command: &str) -> Value {
    serde_json::from_str(&node.sh(command).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_goes_to_a_registry_as_an_image() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let before = numbers(&world.a);
    let file = world.archive("one.oci.tar");
    // Nobody could read one that is encrypted, and that it can be read has to be said.
    world.export("web@one", &file, &["--oci"]).expect(2);
    world
        .export("web@one", &file, &["--oci", "--encrypted"])
        .expect(2);
    assert!(!file.exists());
    let exported = world
        .export("web@one", &file, &["--oci", "--unencrypted", "--json"])
        .expect(0)
        .saying(&["passwords and keys"]);
    assert_eq!(exported.json()["oci"], true);
    let about = std::fs::metadata(&file).unwrap();
    assert_eq!(exported.json()["bytes"], about.len());
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    world.checkpoint("rm", "web@one", &[]).expect(0);

    // Another host has nothing but the file, and a registry nothing but what skopeo brings there.
    let registry = DockerRegistry::begin(&world, &world.b);
    registry.log_in(&world.b);
    let b = &world.b;
    std::fs::copy(&file, b.root().unwrap().join("root/one.tar")).unwrap();
    let there = format!("{}/kept/web:one", registry.name);
    b.sh(&format!(
        "export HOME=/root; skopeo copy -q --dest-cert-dir /etc/docker/certs.d/{0} \
         --authfile /root/.docker/config.json oci-archive:/root/one.tar docker://{there}",
        registry.name
    ))
    .unwrap();
    let manifest: Value = serde_json::from_str(&registry.get(b, "kept/web/manifests/one")).unwrap();
    let says = &manifest["annotations"];
    assert_eq!(says["org.criu.checkpoint.container.name"], "web");
    assert_eq!(says["org.criu.checkpoint.engine.name"], "docker");
    assert_eq!(says["io.kubernetes.cri-o.annotations.checkpoint.name"], "web");
    assert_eq!(says["io.podman.annotations.checkpoint.runtime.name"], "runc");
    let criu = b.sh("criu --version").unwrap();
    let number = says["org.criu.checkpoint.criu.version"].as_str().unwrap();
    let version = criu.lines().next().unwrap().trim_start_matches("Version: ");
    assert!(
        number.starts_with(version.split('.').next().unwrap()),
        "{number} {criu}"
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);

    // Podman takes it for a checkpoint, from the file and from the registry.
    let login = format!(
        "--cert-dir /etc/docker/certs.d/{} --authfile /root/.docker/config.json",
        registry.name
    );
    let loaded = b.sh(&format!("{PODMAN} load -q -i /root/one.tar")).unwrap();
    assert!(loaded.contains("localhost/checkpoint/web:one"), "{loaded}");
    b.sh(&format!("{PODMAN} pull -q {login} {there}")).unwrap();
    for name in ["localhost/checkpoint/web:one", there.as_str()] {
        let image = &json(b, &format!("{PODMAN} image inspect {name}"))[0];
        assert_eq!(image["Annotations"], *says, "{name}");
        let mounted = b.sh(&format!("{PODMAN} image mount {name}")).unwrap();
        let files = b.sh(&format!("ls {0} {0}/checkpoint", mounted.trim())).unwrap();
        for file in ["config.dump", "spec.dump", "inventory.img", "files.img"] {
            assert!(files.contains(file), "{file}: {files}");
        }
        b.sh(&format!("{PODMAN} image unmount {name}")).unwrap();
    }
    // It does not restore it, although it has the container's image: what it needs beside the dump is of its own making.
    let python = b.load_image("python").unwrap();
    b.sh(&format!("docker save {python} | {PODMAN} load -q")).unwrap();
    let restore = format!("{PODMAN} --runtime runc container restore localhost/checkpoint/web:one");
    let refused = b.exec(["sh", "-c", &restore]).unwrap();
    assert!(!refused.success());
    let said = &refused.stderr;
    assert!(said.contains("unable to import checkpoint from image"), "{said}");
    assert_eq!(b.sh(&format!("{PODMAN} ps -aq")).unwrap(), "");

    // The layer is the archive: it comes back as one.
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let layer = world.archive("layer.tar");
    let mut tar = std::process::Command::new("tar");
    let unpacked = tar
        .arg("-xOf")
        .arg(&file)
        .arg(&blob)
        .stdout(File::create(&layer).unwrap());
    assert!(unpacked.stdin(Stdio::null()).status().unwrap().success());
    world.import(&layer, "ssh://root@a//web", &[]).expect(0);
    world.checkpoint("restore", "web@one", &[]).expect(0);
    counts_on(&world);
    let all = numbers(&world.a);
    without_gap(&all);
    assert!(all.len() > before.len());
    nothing_dumped(&world.a);
}
