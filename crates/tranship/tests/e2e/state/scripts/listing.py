# Prints one line per entry below a directory, with everything that a file system tells about it.
# Arguments: DIRECTORY [EXCLUDED ...], the latter as paths below it. Paths may be longer than the system's limit for one.
import hashlib
import os
import stat
import sys

root = sys.argv[1]
excluded = {os.fsencode(p).strip(b"/") for p in sys.argv[2:]}
seen = {}


def attributes(name, directory):
    # Attributes have no call relative to a directory: go there.
    os.fchdir(directory)
    facts = {}
    for key in os.listxattr(name, follow_symlinks=False):
        facts[key] = os.getxattr(name, key, follow_symlinks=False).hex()
    return sorted(facts.items())


def content(name, directory, size):
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    digest, at, pieces = hashlib.sha256(), 0, []
    while at < size:
        try:
            begin = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(file, begin, os.SEEK_HOLE)
        pieces.append((begin, end))
        os.lseek(file, begin, os.SEEK_SET)
        left = end - begin
        digest.update(b"%d:" % begin)
        while left:
            data = os.read(file, min(left, 1 << 20))
            if not data:
                raise SystemExit(f"{name!r} ends early")
            digest.update(data)
            left -= len(data)
        at = end
    os.close(file)
    return digest.hexdigest(), pieces


def show(path, name, directory):
    s = os.lstat(name, dir_fd=directory) if directory is not None else os.lstat(name)
    facts = [f"{s.st_mode:o}", f"{s.st_uid}:{s.st_gid}", f"t={s.st_mtime_ns}"]
    if not stat.S_ISDIR(s.st_mode):
        # A name of several for one file is told by the first of them.
        if s.st_nlink > 1:
            first = seen.setdefault((s.st_dev, s.st_ino), path)
            facts.append(f"links={s.st_nlink} first={first!r}")
        facts.append(f"size={s.st_size}")
    if stat.S_ISLNK(s.st_mode):
        facts.append(f"-> {os.readlink(name, dir_fd=directory)!r}")
    if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode):
        facts.append(f"device={os.major(s.st_rdev)}:{os.minor(s.st_rdev)}")
    if stat.S_ISREG(s.st_mode):
        digest, pieces = content(name, directory, s.st_size)
        # The number of blocks counts attributes in blocks of their own, so the data's places say more about holes.
        facts.append(f"sha256={digest} data={pieces if len(pieces) < 20 else len(pieces)}")
    facts.append(f"x={attributes(name, directory)}")
    print(repr(path), *facts)


def walk(directory, path):
    for name in sorted(os.listdir(directory)):
        name = os.fsencode(name)
        here = path + b"/" + name if path else name
        if here in excluded:
            continue
        show(here, name, directory)
        if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            walk(below, here)
            os.close(below)


sys.setrecursionlimit(5000)
top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
show(b".", b".", top)
walk(top, b"")
