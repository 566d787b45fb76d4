#!/usr/bin/env python3
"""append-service DIRECTORY [PORT]: appends lines that come over TCP to DIRECTORY/log, durably.

A line `TEXT` is written as `SEQUENCE START TEXT` and answered with `SEQUENCE START` once fsync has returned. START counts
how often the service was started with this directory; it is durable before the first line is taken. `?` is answered with
both numbers and writes nothing. Two services with one directory refuse each other.
"""
import fcntl
import os
import signal
import socketserver
import sys
import threading

directory = sys.argv[1]
port = int(sys.argv[2]) if len(sys.argv) > 2 else 7000


def durable(name, data):
    path = os.path.join(directory, name)
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    there = os.open(directory, os.O_RDONLY)
    os.fsync(there)
    os.close(there)


lock = open(os.path.join(directory, "lock"), "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    with open(os.path.join(directory, "starts"), "rb") as file:
        start = int(file.read()) + 1
except FileNotFoundError:
    start = 1
durable("starts", b"%d" % start)

log = open(os.path.join(directory, "log"), "a+b", buffering=0)
log.seek(0)
content = log.read()
whole = content.rfind(b"\n") + 1
if whole != len(content):
    # The tail of a write that was cut off: nobody was told that it is there.
    log.truncate(whole)
    os.fsync(log.fileno())
sequence = content.count(b"\n", 0, whole)
turn = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global sequence
        for line in self.rfile:
            if not line.endswith(b"\n"):
                return
            with turn:
                if line != b"?\n":
                    data = b"%d %d %s" % (sequence + 1, start, line)
                    written = 0
                    while written < len(data):
                        written += log.write(data[written:])
                    os.fsync(log.fileno())
                    sequence += 1
                answer = b"%d %d\n" % (sequence, start)
            self.wfile.write(answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def stop(*_):
    with turn:
        os._exit(0)


server = Server(("", port), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop).start())
print(f"start {start}, {sequence} lines", flush=True)
server.serve_forever()
