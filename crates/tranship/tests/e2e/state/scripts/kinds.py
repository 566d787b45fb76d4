# Fills a directory with every kind of entry that Linux has, awkward ones first. Needs a privileged container.
# Argument: DIRECTORY
import os
import random
import socket
import stat
import subprocess
import sys

os.umask(0)
os.chdir(sys.argv[1])
chance = random.Random(7)
SECOND = 1_000_000_000


def write(name, data=b"", mode=0o644):
    with open(name, "wb") as file:
        file.write(data)
    os.chmod(name, mode)


def run(*words):
    subprocess.run(words, check=True)


# Modes and owners.
os.mkdir("modes")
for mode in (0, 0o400, 0o600, 0o644, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777):
    write(f"modes/file-{mode:o}", b"%o" % mode, mode)
    os.mkdir(f"modes/dir-{mode:o}")
    os.chmod(f"modes/dir-{mode:o}", mode)
os.mkdir("owners")
for uid, gid in ((0, 12345), (12345, 0), (65534, 65534), (4294967294, 4294967294), (70000, 2147483648)):
    write(f"owners/{uid}-{gid}", b"owned", 0o4755)
    os.chown(f"owners/{uid}-{gid}", uid, gid)
    os.chmod(f"owners/{uid}-{gid}", 0o4755)
    os.mkdir(f"owners/dir-{uid}")
    os.chown(f"owners/dir-{uid}", uid, gid)

# Sizes and holes.
os.mkdir("sizes")
for size in (0, 1, 4095, 4096, 4097, 65536, 1_000_003):
    write(f"sizes/{size}", chance.randbytes(size))
write("sizes/same-1", b"the same" * 5000)
write("sizes/same-2", b"the same" * 5000)
write("sizes/zeros", bytes(200_000))
write("sizes/big", chance.randbytes(24 << 20))
os.mkdir("holes")
MEBI = 1 << 20
for name, size, places in (
    ("start", 3 * MEBI, [2 * MEBI]),
    ("middle", 3 * MEBI, [0, 2 * MEBI]),
    ("end", 3 * MEBI, [0]),
    ("nothing-else", 5 * MEBI, []),
    ("many", 8 * MEBI, range(0, 8 * MEBI, 128 << 10)),
    ("odd", 2 * MEBI + 17, [MEBI + 4096]),
    ("large", 300 * MEBI, [150 * MEBI]),
):
    with open(f"holes/{name}", "wb") as file:
        for place in places:
            file.seek(place)
            file.write(chance.randbytes(4096))
        file.truncate(size)

# Attributes.
os.mkdir("attributes")
write("attributes/file", b"with attributes")
os.mkdir("attributes/dir")
os.symlink("file", "attributes/link")
for name in ("attributes/file", "attributes/dir"):
    os.setxattr(name, "user.text", b"plain")
    os.setxattr(name, "user.binary", bytes(range(256)))
    os.setxattr(name, "user.empty", b"")
    os.setxattr(name, "user.é\n=odd", b"x")
    os.setxattr(name, "user.long", chance.randbytes(2500))
    os.setxattr(name, "trusted.secret", b"for root only")
    os.setxattr(name, "security.other", b"of some module")
os.setxattr("attributes/link", "trusted.of-a-link", b"yes", follow_symlinks=False)
# In an overlay's upper directory these would mean something; here they mean nothing.
os.mkdir("attributes/opaque")
os.setxattr("attributes/opaque", "trusted.overlay.opaque", b"y")
os.mknod("attributes/whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
write("attributes/.wh.like-a-whiteout", b"but none")
os.mkdir("attributes/dir-2")
write("attributes/dir-2/.wh..wh..opq", b"nor this")
write("attributes/capable", b"#!/bin/sh\n", 0o755)
run("setcap", "cap_net_bind_service,cap_net_raw+ep", "attributes/capable")
write("attributes/capable-inherited", b"#!/bin/sh\n", 0o755)
run("setcap", "cap_sys_time+eip", "attributes/capable-inherited")
os.mkdir("acls")
write("acls/file", b"for some", 0o640)
run("setfacl", "-m", "u:1234:rwx,u:70000:r,g:5678:r-x,m::rwx", "acls/file")
os.mkdir("acls/dir", 0o750)
run("setfacl", "-m", "u:1234:rwx", "-d", "-m", "u:4321:rx,g:8765:rwx,o::-", "acls/dir")
write("acls/dir/inherits", b"from above", 0o666)
os.mkdir("acls/dir/below")
os.mkdir("acls/default-only")
run("setfacl", "-d", "-m", "g:9:r", "acls/default-only")

# Links.
os.makedirs("links/elsewhere/deep")
write("links/first", b"one file, four names")
for other in ("links/second", "links/elsewhere/third", "links/elsewhere/deep/fourth"):
    os.link("links/first", other)
os.setxattr("links/first", "user.shared", b"by all")
for name, target in (
    (b"dangling", b"nowhere/at/all"),
    (b"absolute", b"/etc/passwd"),
    (b"up", b"../../../../../../../../tmp/x"),
    (b"self", b"self"),
    (b"loop-1", b"loop-2"),
    (b"loop-2", b"loop-1"),
    (b"to-dir", b"elsewhere"),
    (b"newline", b"a\nb"),
    (b"bytes", b"\xff\xfe\x01"),
    (b"long", b"x/" * 2000),
    (b"dots", b"."),
):
    os.symlink(target, b"links/" + name)
os.link("links/dangling", "links/dangling-again", follow_symlinks=False)
os.chown("links/absolute", 1234, 5678, follow_symlinks=False)

# Names.
os.mkdir("names")
names = [
    b"new\nline", b" leading", b"trailing ", b"-rf", b"--", b"tab\there", b"\x01\x02\x7f", b"\xff\xfe\xfd", b"caf\xc3\xa9",
    b"cafe\xcc\x81", b"back\\slash", b"*", b"?[a-z]", b"'quote'", b'"double"', b"$HOME", b"`id`", b"a:b", b"...", b"..a", b"~",
    b"x" * 255, b"\xe2\x82\xac" * 85, b"\xfe" * 255, b"A", b"a", b"con", b"lost+found", b".tranship", b"name.part", b"#sharp",
]  # fmt: skip
for name in names:
    write(b"names/" + name, b"called " + name)
for name in names:
    os.mkdir(b"names/dir-" + name[:200])
    write(b"names/dir-" + name[:200] + b"/" + name, b"again")

# What is no file.
os.mkdir("special")
os.mkfifo("special/fifo", 0o640)
os.link("special/fifo", "special/fifo-again")
os.chown("special/fifo", 33, 44)
listener = socket.socket(socket.AF_UNIX)
listener.bind("special/socket")
listener.close()
os.mknod("special/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("special/block", stat.S_IFBLK | 0o660, os.makedev(7, 200))
os.mknod("special/big-numbers", stat.S_IFCHR | 0o600, os.makedev(4000, 1_000_000))

# Depth and breadth.
os.makedirs("deep/" + "/".join(["a-directory-deeper"] * 120))
os.mkdir("empty")
os.mkdir("empty/inner")
os.mkdir("broad")
for number in range(3000):
    write(f"broad/{number:05}", b"%d" % number)

# The root itself.
os.chmod(".", 0o1751)
os.chown(".", 4444, 5555)
os.setxattr(".", "user.root", b"of the volume")
run("setfacl", "-m", "u:77:rx", ".")

# Times, last and from below.
moments = [0, 1, -1, -SECOND + 1, -(2**31) * SECOND, (2**32) * SECOND, (2**32 + 86400) * SECOND + 999_999_999, 123_456_789]
everything = []
for here, directories, files in os.walk(b".", topdown=False):
    everything += [os.path.join(here, name) for name in sorted(files) + sorted(directories)]
for place, path in enumerate(everything):
    if place % 7 < 2:
        moment = moments[place // 7 % len(moments)]
    else:
        moment = 1_600_000_000 * SECOND + chance.randrange(10**17)
    os.utime(path, ns=(moment, moment), follow_symlinks=False)
os.utime(".", ns=(SECOND, 2 * SECOND + 7))
print(len(everything) + 1)
