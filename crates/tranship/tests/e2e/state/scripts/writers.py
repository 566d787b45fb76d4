# Writers that do their worst to whoever copies the directory while they run. Each runs until it is ended.
# Arguments: DIRECTORY WRITER
import mmap
import os
import random
import shutil
import sys
import time

directory = os.path.join(sys.argv[1], sys.argv[2])
os.makedirs(directory, exist_ok=True)
os.chdir(directory)
os.nice(10)
chance = random.Random(sys.argv[2])
PAGE = 4096


def tick():
    """Writes of the same length, many within one tick of the clock that stamps files."""
    files = [os.open(f"{n:03}", os.O_RDWR | os.O_CREAT, 0o644) for n in range(200)]
    for file in files:
        os.pwrite(file, bytes(PAGE), 0)
    while True:
        file = chance.choice(files)
        for _ in range(chance.randrange(1, 5)):
            os.pwrite(file, chance.randbytes(16), chance.randrange(PAGE - 16))


def stamps():
    """Writes whose traces in size and time of change are wiped away."""
    moment = 1_500_000_000_123_456_789
    while True:
        name = f"{chance.randrange(100):03}"
        with open(name, "wb") as file:
            file.write(chance.randbytes(1000))
        os.utime(name, ns=(moment, moment))


def renames():
    """A storm of renames: files and directories that trade places."""
    for n in range(60):
        os.makedirs(f"d{n}/e", exist_ok=True)
        for m in range(5):
            with open(f"d{n}/e/{m}", "w") as file:
                file.write(f"{n} {m} " + "x" * chance.randrange(20000))
    while True:
        a, b = (f"d{chance.randrange(60)}" for _ in range(2))
        if chance.random() < 0.5:
            a, b = f"{a}/e/{chance.randrange(5)}", f"{b}/e/{chance.randrange(5)}"
        if a == b:
            continue
        os.rename(a, "between")
        os.rename(b, a)
        os.rename("between", b)


def logs():
    """Logs that grow, and are rotated away."""
    lines = 0
    while True:
        with open("log", "ab") as file:
            for _ in range(200):
                file.write(b"%09d something happened, at great length and in detail\n" % lines)
                lines += 1
        if lines % 20000 == 0:
            os.rename("log", f"log.{lines // 20000 % 7}")


def truncations():
    """Files cut short and grown, with holes."""
    while True:
        name = f"{chance.randrange(40):02}"
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, chance.randrange(300_000))
        os.pwrite(file, chance.randbytes(700), chance.randrange(400_000))
        os.ftruncate(file, chance.randrange(1, 500_000))
        os.close(file)


def memory():
    """Writes through a mapping: the kernel stamps the file at the first write to a clean page, not at the next ones."""
    size = 1 << 20
    file = os.open("mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, size)
    mapped = mmap.mmap(file, size)
    # All pages are dirty from here on, and no write changes a time until the kernel has written them back.
    for page in range(0, size, PAGE):
        mapped[page] = 1
    turn = 0
    while True:
        turn += 1
        place = chance.randrange(size - 8)
        mapped[place : place + 8] = turn.to_bytes(8, "little")


def kinds():
    """Names that are a file, a directory, a link, a FIFO in turn."""
    while True:
        name = f"{chance.randrange(30):02}"
        kind = chance.randrange(5)
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name)
        elif os.path.lexists(name):
            os.unlink(name)
        if kind == 0:
            with open(name, "wb") as file:
                file.write(chance.randbytes(chance.randrange(9000)))
        elif kind == 1:
            os.makedirs(f"{name}/inner")
            with open(f"{name}/inner/file", "wb") as file:
                file.write(b"inside")
        elif kind == 2:
            os.symlink(f"{chance.randrange(30):02}", name)
        elif kind == 3:
            os.mkfifo(name)
        elif os.path.isfile("00"):
            os.link("00", name)


def deletions():
    """Trees that are gone while somebody looks at them."""
    turn = 0
    while True:
        turn += 1
        top = f"tree-{turn % 4}"
        if os.path.isdir(top):
            shutil.rmtree(top)
        for n in range(10):
            os.makedirs(f"{top}/{n}/deep/er")
            for m in range(12):
                with open(f"{top}/{n}/deep/er/{m}", "w") as file:
                    file.write(f"{turn} {n} {m}\n" * 50)


def attributes():
    """Modes, owners, times and attributes that change while the content does not."""
    for n in range(100):
        with open(f"{n:02}", "w") as file:
            file.write(str(n))
    while True:
        name = f"{chance.randrange(100):02}"
        choice = chance.randrange(4)
        if choice == 0:
            os.chmod(name, chance.choice((0o600, 0o644, 0o4755, 0o2711, 0)))
        elif choice == 1:
            os.chown(name, chance.randrange(70000), chance.randrange(70000))
        elif choice == 2:
            os.utime(name, ns=(chance.randrange(2**60), chance.randrange(2**60)))
        else:
            os.setxattr(name, "user.note", chance.randbytes(chance.randrange(60)))


print("writing", flush=True)
{"tick": tick, "stamps": stamps, "renames": renames, "logs": logs, "truncations": truncations, "memory": memory,
 "kinds": kinds, "deletions": deletions, "attributes": attributes}[sys.argv[2]]()  # fmt: skip
