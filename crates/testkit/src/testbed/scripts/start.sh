#!/bin/sh
# What a node runs: sshd, the container engine, and then nothing, until the node is switched off.
cd /
/usr/sbin/sshd
/usr/local/sbin/testbed-engine start
exec sleep infinity
