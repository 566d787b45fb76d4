#!/bin/sh
# The guest's init: makes of it what the testbed expects of a machine, runs the tests, switches the machine off.
#
# The kernel talks to the first serial line, this and the tests to the second. The disk is at /disk; its `settings` set
# PROGRAM (where the tests look for the program under test), TOOLS (programs that the testbed asks for) and the arguments.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
trap 'sync; busybox poweroff -f' EXIT

mount -t devtmpfs dev /dev
stty -F /dev/ttyS1 115200 raw -echo
exec > /dev/ttyS1 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
echo "guest: Linux $(uname -r), up after $(cut -d ' ' -f 1 /proc/uptime) s"

# Control groups of version 1, as on a machine where Docker and CRIU find most.
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
echo madvise > /sys/kernel/mm/transparent_hugepage/enabled

mkdir -p /lib/modules /var/cache/tranship-testbed /var/lib/tranship-testbed
mount --bind /disk/modules /lib/modules
mount --bind /disk/cache /var/cache/tranship-testbed
mount --bind /disk/state /var/lib/tranship-testbed
mount --bind /disk/tmp /tmp
mount --make-rshared /

# Nodes cannot load what they and CRIU use. What is built in or absent fails; what is really missing shows where it is used.
ln -s /usr/bin/busybox /usr/sbin/modprobe
for module in bridge veth br_netfilter loop tun fuse dummy macvlan sch_tbf nf_tables nft_compat nft_chain_nat nf_nat \
    nf_conntrack nf_conntrack_netlink xt_addrtype xt_comment xt_conntrack xt_mark xt_MASQUERADE xt_multiport \
    xt_tcpudp iptable_nat iptable_filter unix_diag inet_diag tcp_diag udp_diag raw_diag af_packet_diag netlink_diag; do
    modprobe -q "$module" 2> /dev/null || true
done
ip link set lo up

# shellcheck source=/dev/null
. /disk/settings
# Nothing can be installed here. A test that uses such a program fails, and says so.
for tool in $TOOLS; do
    case $tool in
        /*) [ -e "$tool" ] || : > "$tool" ;;
        *) command -v "$tool" > /dev/null || {
            printf '#!/bin/sh\necho "%s: there is none in the guest" >&2\nexit 127\n' "$tool" > "/usr/local/bin/$tool"
            chmod 755 "/usr/local/bin/$tool"
        } ;;
    esac
done
mkdir -p "$(dirname "$PROGRAM")"
ln -s /disk/bin/tranship "$PROGRAM"

criu check --feature mem_dirty_track

export TRANSHIP_TEST_SKIPS=/run/skips TRANSHIP_TEST_PATIENCE=5 TRANSHIP_TEST_TRACKS=1
: > "$TRANSHIP_TEST_SKIPS"
status=0
cd /tmp
/disk/bin/e2e --test-threads 1 --color never --nocapture "$@" || status=$?
while read -r reason; do
    echo "guest: skipped: $reason"
done < "$TRANSHIP_TEST_SKIPS"
echo "guest: the tests ended with status $status after $(cut -d ' ' -f 1 /proc/uptime) s"
