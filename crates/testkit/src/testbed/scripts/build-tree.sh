#!/bin/sh
# Builds the nodes' root file system and what the test images are made of.
#
# Runs in mount, pid and uts namespaces of its own: whatever it mounts or starts ends with it.
# In: TB_DIR (empty directory), TB_MIRROR, TB_SUITE, TB_PACKAGES, TB_IMAGE_PACKAGES (GROUP:PACKAGE,PACKAGE ...),
# TB_NEXT_SUITE and TB_NEXT_PACKAGES (packages of a later release).
# Out: TB_DIR/root, TB_DIR/base.tar, TB_DIR/debs/GROUP/*.deb
set -eu
root=$TB_DIR/root
mount -t proc proc /proc

debootstrap --variant=minbase "$TB_SUITE" "$root" "$TB_MIRROR"

printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/hosts "$root/etc/hosts"
# The host's proxy for apt, if it has one.
apt-config dump --format '%f "%v";%n' 2>/dev/null |
    grep -iE '^Acquire::https?::Proxy' > "$root/etc/apt/apt.conf.d/90testbed-proxy" || true

inside() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive "$@"
}

inside apt-get update -qq

# Packages for images, each group without what an earlier one has.
for group in $TB_IMAGE_PACKAGES; do
    name=${group%%:*}
    packages=$(echo "${group#*:}" | tr , ' ')
    mkdir -p "$root/debs/partial"
    # shellcheck disable=SC2086
    inside apt-get install -y -qq --no-install-recommends --download-only -o Dir::Cache::archives=/debs $packages
    mkdir -p "$TB_DIR/debs/$name"
    for deb in "$root"/debs/*.deb; do
        file=${deb##*/}
        found=$(find "$TB_DIR/debs" -name "$file")
        [ -n "$found" ] || mv "$deb" "$TB_DIR/debs/$name/"
    done
    rm -rf "$root/debs"
done

# The images' base: the bare system before the nodes' own packages, without what no container needs.
umount -R "$root/dev" "$root/proc" "$root/run"
tar -C "$root" --numeric-owner --sort=name \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
    --exclude='./usr/share/locale/*' --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./var/cache/debconf/*' --exclude='./var/log/*' --exclude='./usr/sbin/policy-rc.d' \
    --exclude='./etc/apt/sources.list' --exclude='./etc/apt/apt.conf.d/90testbed-proxy' \
    --exclude='./etc/hosts' --exclude='./etc/resolv.conf' \
    -cf "$TB_DIR/base.tar" .
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"

# shellcheck disable=SC2086
inside apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io $TB_PACKAGES

# CRIU before 4.2 dumps no process with an internet socket on kernels from 6.16 on; Debian's next release has a newer one.
printf 'deb %s %s main\n' "$TB_MIRROR" "$TB_NEXT_SUITE" > "$root/etc/apt/sources.list.d/next.list"
printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n' "$TB_NEXT_SUITE" > "$root/etc/apt/preferences.d/next"
# A mirror may be a frozen one, whose list of a release under work has outlived its date; it is signed all the same.
inside apt-get update -qq -o Acquire::Check-Valid-Until=false
# shellcheck disable=SC2086
inside apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io -t "$TB_NEXT_SUITE" $TB_NEXT_PACKAGES
rm "$root/etc/apt/sources.list.d/next.list" "$root/etc/apt/preferences.d/next"

# Restores by an engine bring locks on files back only if this says so.
mkdir -p "$root/etc/criu"
echo file-locks > "$root/etc/criu/runc.conf"

# Two plain users: one who may use the engine and one who may not. `*` is no password, yet no locked account.
inside useradd --create-home --shell /bin/bash --groups docker --password '*' deploy
inside useradd --create-home --shell /bin/bash --password '*' guest

cat > "$root/etc/ssh/sshd_config.d/testbed.conf" <<'CONF'
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 500:30:1000
MaxSessions 500
PerSourcePenalties no
AcceptEnv LANG LC_*
CONF
mkdir -p "$root/etc/containers"
cat > "$root/etc/containers/containers.conf" <<'CONF'
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
CONF

rm -f "$root"/etc/ssh/ssh_host_* "$root/usr/sbin/policy-rc.d" "$root/etc/apt/apt.conf.d/90testbed-proxy" \
    "$root/etc/resolv.conf" "$root/etc/hosts" "$root/etc/hostname" "$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
mkdir -p "$root/images" "$root/var/lib/docker" "$root/var/lib/containerd" "$root/var/lib/containers" "$root/dev/net"
umount -R "$root/dev" "$root/proc" "$root/run"
