#!/bin/sh
# The bed's switch: a bridge in a network namespace of its own, with a cable to the host.
#
# A namespace of its own keeps bridged packets away from the host's packet filter. Runs inside it and stays, as the
# namespace lives as long as this process.
# In: TB_CALLER (a pid in the host's network namespace), TB_HOST_LINK, TB_HOST_ADDRESS, TB_PIDFILE.
set -eu
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || true
ip link set lo up
ip link add br0 type bridge stp_state 0 forward_delay 0
ip link set br0 up

nsenter --net="/proc/$TB_CALLER/ns/net" ip -batch - <<BATCH
link add $TB_HOST_LINK type veth peer name uplink netns $$
address add $TB_HOST_ADDRESS dev $TB_HOST_LINK
link set $TB_HOST_LINK up
BATCH
ip link set uplink master br0 up

read -r stat < /proc/self/stat
# shellcheck disable=SC2086
set -- $stat
echo "$1 ${22}" > "$TB_PIDFILE.new"
mv "$TB_PIDFILE.new" "$TB_PIDFILE"
exec sleep infinity
