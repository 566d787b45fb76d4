#!/bin/sh
# Starts a node, first half: plugs it into the switch and enters a process tree of its own.
#
# Runs in the node's mount, uts, ipc, network and cgroup namespaces, still among the host's processes.
# In: TB_NODE, TB_SWITCH (pid), TB_PORT, TB_MAC, TB_ADDRESS, TB_HOMES, TB_SCRIPTS and what root.sh wants.
set -eu
for group in $TB_HOMES; do
    echo 0 > "$group/cgroup.procs"
done
echo "$TB_NODE" > /proc/sys/kernel/hostname

switch="nsenter --net=/proc/$TB_SWITCH/ns/net"
# After a power cut the old cable may still be there.
$switch ip link delete "$TB_PORT" 2>/dev/null || true
$switch ip link add "$TB_PORT" type veth peer name eth0 address "$TB_MAC" netns $$
$switch ip link set "$TB_PORT" master br0 up
ip -batch - <<BATCH
link set lo up
address add $TB_ADDRESS dev eth0
link set eth0 up
BATCH
exec unshare --pid --fork --kill-child sh "$TB_SCRIPTS/root.sh"
