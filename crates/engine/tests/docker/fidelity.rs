//! A container made again is the same container.

use tranship_core::Engine as _;
use tranship_engine::recreate::differences;

use crate::hosts::{Host, hosts, make, same};

/// Files that the option mixes refer to, and networks.
const SETUP: &str = r#"
echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["swapon"],"action":"SCMP_ACT_ERRNO"}]}' > /root/seccomp.json
docker network create --subnet 172.30.0.0/16 --gateway 172.30.0.1 --ip-range 172.30.5.0/24 \
    --aux-address router=172.30.5.7 --ipv6 --subnet fd00:30::/64 --opt com.docker.network.bridge.name=brx \
    --opt com.docker.network.driver.mtu=1400 --label purpose=test --label empty= front
docker network create --internal --attachable --subnet 172.31.0.0/16 back
docker network create plainnet
"#;

/// Option mixes for `docker create`, image and command included.
const MIXES: &[(&str, &str)] = &[
    (
        "everything",
        "--entrypoint /bin/sh -e X=1 -e 'Y=a b' -e EMPTY= -u 1000:1000 -w /www -l l1=v1 -l empty= -l 'com.x/y=ü \"q\"' \
         --expose 9000/udp -p 8081:80 -p 127.0.0.1:5353:53/udp -p 7000-7002:7000-7002 -p 80 -p '[::1]:8443:443' \
         --restart on-failure:3 --health-cmd 'true || exit 1' --health-interval 5s --health-timeout 2s \
         --health-retries 4 --health-start-period 1s --health-start-interval 1s \
         -m 64m --memory-swap 128m --memory-reservation 32m --memory-swappiness 10 --cpus 0.5 --cpu-shares 512 \
         --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit 50 --ulimit nofile=100:200 --ulimit core=0 \
         --cap-add NET_ADMIN --cap-add sys_time --cap-drop MKNOD \
         --security-opt no-new-privileges --security-opt seccomp=/root/seccomp.json \
         --device /dev/null:/dev/xnull:rw --device /dev/zero --device-cgroup-rule 'c 1:3 rwm' \
         --sysctl net.core.somaxconn=99 --shm-size 32m --tmpfs /t1:size=1m,noexec --tmpfs /t3 \
         --mount type=tmpfs,dst=/t2,tmpfs-size=1m,tmpfs-mode=1770 \
         --log-driver json-file --log-opt max-size=1m --log-opt max-file=2 \
         --dns 1.1.1.1 --dns-search ex.org --dns-option ndots:2 --add-host h:1.2.3.4 --add-host g:host-gateway \
         --init --stop-signal SIGINT --stop-timeout 3 \
         --network name=front,alias=w1,alias=w2,ip=172.30.5.9,ip6=fd00:30::99,mac-address=02:11:22:33:44:55 \
         --network name=back,alias=z,ip=172.31.7.7 \
         --hostname hh --domainname dom.ex --ipc shareable --cgroupns private --read-only --group-add 20 \
         --group-add 1234 --oom-score-adj 100 --annotation a.b=c -t -i IMAGE -c 'sleep 1000'",
    ),
    ("bare", "IMAGE"),
    (
        "privileged",
        "--privileged --pid host --uts host --ipc host --cgroupns host IMAGE sleep 1000",
    ),
    ("hostnet", "--network host --userns host IMAGE sleep 1000"),
    ("hostnamed", "--network host --hostname own IMAGE sleep 1000"),
    ("nonet", "--network none IMAGE sleep 1000"),
    (
        "unmasked",
        "--security-opt systempaths=unconfined --security-opt seccomp=unconfined IMAGE sleep 1000",
    ),
    (
        "labelled",
        "--security-opt label=disable --security-opt no-new-privileges=true IMAGE sleep 1000",
    ),
    (
        "unlimited",
        "--cap-add ALL --pids-limit -1 --memory 64m --memory-swap -1 --stop-timeout -1 --ipc private IMAGE sleep 9",
    ),
    (
        "quota",
        "--cpu-period 50000 --cpu-quota 25000 --oom-kill-disable -m 32m --blkio-weight 300 IMAGE sleep 1000",
    ),
    (
        "limits",
        "--device-read-bps /dev/zero:1mb --device-write-iops /dev/zero:100 IMAGE sleep 1000",
    ),
    ("no-health", "--no-healthcheck --rm IMAGE sleep 1000"),
    ("always", "--restart always --log-driver none -P IMAGE sleep 1000"),
    (
        "unless",
        "--restart unless-stopped --log-driver local --stop-signal 9 IMAGE sleep 1000",
    ),
    (
        "aliases",
        "--network plainnet --network-alias one --network-alias two --expose 1-3/tcp IMAGE sleep 1000",
    ),
    ("mac", "--mac-address 02:99:99:99:99:01 IMAGE sleep 1000"),
    (
        "second-mac",
        "--network plainnet --network name=back,mac-address=02:77:77:77:77:01 IMAGE sleep 1000",
    ),
    (
        "driver-opt",
        "--network name=plainnet,driver-opt=com.docker.network.endpoint.sysctls=x IMAGE sleep 1000",
    ),
    (
        "link-local",
        "--network plainnet --link-local-ip 169.254.8.8 IMAGE sleep 1000",
    ),
    ("runtime", "--runtime io.containerd.runc.v2 IMAGE sleep 1000"),
    ("reset", "--entrypoint '' IMAGE sleep 1000"),
    ("only-entrypoint", "--entrypoint /bin/top IMAGE"),
    ("cgroup-parent", "--cgroup-parent /elsewhere IMAGE sleep 1000"),
    ("tty", "-t -i -a stdin -a stdout IMAGE sh"),
];

/// Mixes over an image that has an opinion about everything.
const OPINIONATED: &[(&str, &str)] = &[
    ("as-is", "OPINION"),
    ("cmd", "OPINION other"),
    ("no-entrypoint", "--entrypoint '' OPINION sleep 1000"),
    ("new-entrypoint", "--entrypoint /bin/top OPINION"),
    (
        "env",
        "-e A=2 -e B -u 0 -w / --no-healthcheck -l from=container OPINION",
    ),
    ("health", "--health-retries 9 OPINION"),
    ("disconnected", "OPINION"),
];

const OPINION: &str = r#"
mkdir -p /root/opinion && cat > /root/opinion/Dockerfile <<'FILE'
FROM tranship-test/busybox:1
ENV A=1 B=2
LABEL from=image other=
USER 33:33
WORKDIR /www
EXPOSE 80/tcp 53/udp
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=3s --retries=2 CMD ["true"]
ENTRYPOINT ["/bin/sleep"]
CMD ["1000"]
FILE
DOCKER_BUILDKIT=0 docker build --network none -q -t opinion:1 /root/opinion
"#;

async fn carry_image(a: &Host, b: &Host, tag: &str) {
    let image = a.engine.image(tag).await.unwrap().unwrap();
    let archive = a.engine.export_image(&image, Some(tag), 0).await.unwrap();
    b.engine.import_image(archive.stream).await.unwrap();
    assert_eq!(b.engine.image(tag).await.unwrap().unwrap().id, image.id);
}

/// Makes the container on `b` as it is on `a` and compares.
async fn compare(a: &Host, b: &Host, name: &str) -> Vec<String> {
    let spec = a.inspect(name).await;
    let id = match make(b, &same(&spec)).await {
        Ok(id) => id,
        Err(error) => return vec![format!("{name}: {error:?}")],
    };
    let found = differences(&a.document(name), &b.document(id.as_str()));
    found.into_iter().map(|line| format!("{name}: {line}")).collect()
}

#[tokio::test]
async fn every_option_arrives() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.node.sh(SETUP).unwrap();
    a.node.sh(OPINION).unwrap();
    carry_image(&a, &b, "opinion:1").await;
    let mut wrong = Vec::new();
    for (name, options) in MIXES.iter().chain(OPINIONATED) {
        let options = options
            .replace("IMAGE", "tranship-test/busybox:1")
            .replace("OPINION", "opinion:1");
        let created = a.node.sh(&format!("docker create --name {name} {options}"));
        if let Err(error) = created {
            wrong.push(format!("{name} cannot be made at all: {error}"));
            continue;
        }
        if *name == "disconnected" {
            a.docker("network connect --alias other plainnet disconnected");
            a.docker("network disconnect bridge disconnected");
        }
        wrong.extend(compare(&a, &b, name).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Running ones: what the engine allocates then must neither travel nor count.
    for name in [
        "everything",
        "second-mac",
        "disconnected",
        "mac",
        "aliases",
        "always",
    ] {
        b.docker(&format!("rm -f {name}"));
        a.docker(&format!("start {name}"));
        wrong.extend(compare(&a, &b, name).await);
        b.docker(&format!("start {name}"));
        let (here, there) = (a.document(name), b.document(name));
        let running = differences(&here, &there);
        wrong.extend(running.into_iter().map(|line| format!("{name}, running: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    for (name, mac) in [
        ("everything", "02:11:22:33:44:55"),
        ("second-mac", "02:77:77:77:77:01"),
    ] {
        let networks = &b.document(name)["NetworkSettings"]["Networks"];
        let macs: Vec<_> = networks
            .as_object()
            .unwrap()
            .values()
            .map(|e| &e["MacAddress"])
            .collect();
        assert!(macs.iter().any(|found| *found == mac), "{name}: {macs:?}");
    }
    // A host name that the engine made up is made up anew.
    let id = b.docker("inspect -f '{{.Id}}' aliases");
    assert_eq!(b.docker("exec aliases hostname"), id[..12]);
    assert_eq!(b.docker("exec everything hostname"), "hh");

    for network in ["front", "back"] {
        let [here, there] = [&a, &b].map(|host| {
            let text = host.docker(&format!("network inspect {network}"));
            let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
            let fields = document[0].as_object_mut().unwrap();
            for key in ["Id", "Created", "Containers"] {
                fields.remove(key);
            }
            document
        });
        assert_eq!(here, there);
    }
}
