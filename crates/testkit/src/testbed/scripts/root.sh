#!/bin/sh
# Starts a node, second half: builds its file system, moves into it and becomes its init.
#
# Runs as process 1 of the node's process tree, in its own mount namespace, with the host's files still in view.
# In: TB_DIR (the node's directory on the host), TB_TREE, TB_IMAGES, TB_CGROUP_MOUNTS (DIRECTORY:OPTIONS ..., empty
#     for version 2), TB_DISKS (PATH:IMAGE ...), TB_ENGINE.
set -eu
root=$TB_DIR/root

# The host's /proc tells this process's pid and start time as the host sees them.
read -r stat < /proc/self/stat
# shellcheck disable=SC2086
set -- $stat
echo "$1 ${22}" > "$TB_DIR/pid.new"
mv "$TB_DIR/pid.new" "$TB_DIR/pid"

mount -t overlay -o "lowerdir=$TB_TREE,upperdir=$TB_DIR/upper,workdir=$TB_DIR/work" overlay "$root"

# A /dev of its own: device nodes made or removed here are nobody else's.
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty kmsg fuse userfaultfd loop-control loop0 loop1 loop2 loop3 loop4 \
    loop5 loop6 loop7; do
    if [ -e "/dev/$device" ]; then
        cp -a "/dev/$device" "$root/dev/$device"
    fi
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/net"
mknod -m 666 "$root/dev/net/tun" c 10 200
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
if [ -n "$TB_CGROUP_MOUNTS" ]; then
    mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
    for entry in $TB_CGROUP_MOUNTS; do
        mkdir "$root/sys/fs/cgroup/${entry%%:*}"
        mount -t cgroup -o "${entry#*:}" cgroup "$root/sys/fs/cgroup/${entry%%:*}"
    done
    # Controllers that share a hierarchy are looked for under their own names.
    for entry in $TB_CGROUP_MOUNTS; do
        for controller in $(echo "${entry#*:}" | tr , ' '); do
            case $controller in none | name=*) continue ;; esac
            [ -e "$root/sys/fs/cgroup/$controller" ] ||
                ln -s "${entry%%:*}" "$root/sys/fs/cgroup/$controller"
        done
    done
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    for controller in $(cat "$root/sys/fs/cgroup/cgroup.controllers"); do
        echo "+$controller" > "$root/sys/fs/cgroup/cgroup.subtree_control" || true
    done
fi

mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
for store in docker containerd containers; do
    mount --bind "$TB_DIR/$store" "$root/var/lib/$store"
done
mount --bind "$TB_DIR/log" "$root/var/log"
mount --bind "$TB_IMAGES" "$root/images"
mount -o remount,bind,ro "$root/images"
for entry in $TB_DISKS; do
    mkdir -p "$root/${entry%%:*}"
    mount -o loop "${entry#*:}" "$root/${entry%%:*}"
done

mkdir "$root/run/old" "$root/run/sshd" "$root/run/lock"
cd "$root"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
mount --make-rshared /
exec chroot / /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 TESTBED_ENGINE="$TB_ENGINE" /usr/bin/tini -g -- /usr/local/sbin/testbed-start
