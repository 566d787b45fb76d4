#!/bin/sh
# testbed-engine start|stop|kill: the container engine of this node, as an init system would handle it.
set -u
engine=${TESTBED_ENGINE:-$(cat /etc/testbed-engine)}
pidfile=/run/testbed-engine.pid

# The engine's process, if the one we started still runs.
running() {
    [ -s "$pidfile" ] || return 1
    pid=$(cat "$pidfile")
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ]
}

gone() {
    while running; do sleep 0.02; done
    rm -f "$pidfile" /run/docker.pid
}

case $engine in
docker) name=dockerd ;;
podman) name=podman ;;
*) echo "no engine $engine" >&2; exit 2 ;;
esac

case ${1:-} in
start)
    running && exit 0
    ulimit -S -n "$(ulimit -H -n)"
    if [ "$engine" = docker ]; then
        if ! [ -S /run/containerd/containerd.sock ]; then
            setsid containerd >> /var/log/containerd.log 2>&1 < /dev/null &
            tries=0
            while ! [ -S /run/containerd/containerd.sock ] && [ $tries -lt 1000 ]; do
                sleep 0.02
                tries=$((tries + 1))
            done
        fi
        rm -f /run/docker.pid
        setsid dockerd --experimental --exec-opt native.cgroupdriver=cgroupfs \
            --containerd /run/containerd/containerd.sock >> /var/log/dockerd.log 2>&1 < /dev/null &
    else
        mkdir -p /run/podman
        rm -f /run/podman/podman.sock
        setsid podman system service --time=0 unix:///run/podman/podman.sock \
            >> /var/log/podman.log 2>&1 < /dev/null &
    fi
    echo $! > "$pidfile"
    ;;
stop)
    running && kill -TERM "$pid"
    gone
    ;;
kill)
    running && kill -KILL "$pid"
    gone
    ;;
*)
    echo "usage: testbed-engine start|stop|kill" >&2
    exit 2
    ;;
esac
