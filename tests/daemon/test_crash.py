"""SIGKILL of the daemon under load: what was acknowledged is there, and nothing needs repair.

What a system call has sent to the daemon survives without fsync(2): names, modes,
attributes, snapshots. The bytes of a write(2) may still be in the kernel, so of
those only what was fsynced is promised.

It proves that the death of the process costs nothing; the page cache survives
it, so it says nothing about a loss of power.
"""

import copy
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kaifs.control.info import DaemonInfo
from tests.daemon.site import Site, check_store, kill

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

ROUNDS = int(os.environ.get("KAIFS_CRASH_ROUNDS", "6"))
"""`KAIFS_CRASH_ROUNDS=200` is the long form."""

WRITER = """
import os, random, sys

folder, seed = sys.argv[1:]
rng = random.Random(int(seed))
os.makedirs(folder)
for number in range(100000):
    name = f"f{rng.randrange(40)}"
    path = f"{folder}/{name}"
    content = f"{seed} {number} ".encode() * rng.choice([1, 50, 3000])
    way = rng.randrange(3)
    # "begin": the old content is no more promised. "done": the new one is.
    if way == 0:
        with open(path + ".new", "wb", 0) as file:
            file.write(content)
            os.fsync(file.fileno())
        print("begin", name, flush=True)
        os.rename(path + ".new", path)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    else:
        print("begin", name, flush=True)
        with open(path, "wb", 0) as file:
            file.write(content)
            os.fsync(file.fileno())
    if way == 2:
        os.link(path, f"{folder}/link{number}")
        os.unlink(f"{folder}/link{number}")
    print("done", name, content.hex(), flush=True)
"""


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_what_was_fsynced_survives_sigkill_at_any_moment(site: Site, transport: str) -> None:
    rng = random.Random(transport)
    promised: dict[Path, bytes] = {}
    site.mount(f"transport={transport}", "commit=1")
    (site.mountpoint / "agent").mkdir()
    for number in range(ROUNDS):
        info = site.infos[-1]
        folder = site.current / f"round{number}"
        recorded = _run_until_killed(folder, number, rng.randrange(5, 60), info)
        assert recorded, "a round that recorded nothing proves nothing"
        promised |= {folder / name: content for name, content in recorded.items()}

        check_store(site.store)
        site.mount(f"transport={transport}", "commit=1")

        for path, content in promised.items():
            assert path.read_bytes() == content
    site.umount()


def _run_until_killed(folder: Path, seed: int, lines: int, daemon: DaemonInfo) -> dict[str, bytes]:
    """Kill the daemon after so many records; return what is promised to be there, by name."""
    promised: dict[str, bytes] = {}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        for count, line in enumerate(writer.stdout):
            match line.split():
                case ["begin", name]:
                    promised.pop(name, None)
                case ["done", name, content]:
                    promised[name] = bytes.fromhex(content)
            if count == lines:
                kill(daemon)
        writer.kill()
    return promised


CHANGER = """
import json, os, random, sys

folder, seed = sys.argv[1:]
rng = random.Random(int(seed))
snapshots = os.path.join(os.path.dirname(folder), "@snapshots")
os.chdir(folder)
FOLDERS = ["", "a/", "b/", "a/c/"]
NAMES = ["x", "y", "z", "w", "long" * 40]

def path():
    return rng.choice(FOLDERS) + rng.choice(NAMES)

def write(path, text, synced):
    with open(path, "r+b", 0) as file:
        file.truncate(0)
        file.write(text.encode())
        if synced:
            os.fsync(file.fileno())

def create(path, mode):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

os.umask(0)
for number in range(100000):
    way, args = rng.choice([
        (os.mkdir, [rng.choice(FOLDERS[1:]).rstrip("/"), 0o755]),
        (create, [path(), 0o640]),
        (create, [path(), 0o604]),
        (os.rename, [path(), path()]),
        (os.rename, [path(), path()]),
        (os.unlink, [path()]),
        (os.rmdir, [rng.choice(FOLDERS[1:]).rstrip("/")]),
        (os.symlink, [f"leads {number}", path()]),
        (os.link, [path(), path()]),
        (os.chmod, [path(), rng.choice([0o600, 0o4755])]),
        (os.setxattr, [path(), "user.n", str(number)]),
        (write, [path(), f"{number} " * rng.choice([1, 60, 4000]), True]),
        (write, [path(), f"{number} " * 100, False]),
        (os.mkdir, [f"{snapshots}/s{seed}-{number}", 0o755]),
    ])
    print(json.dumps([way.__name__, *args]), flush=True)
    if way is os.setxattr:
        args[2] = args[2].encode()
    if way is os.chmod and os.path.islink(args[0]):
        print("refused", flush=True)
        continue
    try:
        way(*args)
    except OSError as error:
        if error.errno in (107, 103, 5):
            break
        print("refused", flush=True)
    else:
        print("done", flush=True)
"""


@dataclass
class Seen:
    """What a user sees of one object."""

    mode: int
    target: str = ""
    content: str | None = ""
    """None: nothing is promised."""
    xattrs: dict[str, str] = field(default_factory=dict)


class Expected:
    """What was acknowledged: a folder by paths, hard links as one object."""

    def __init__(self) -> None:
        self.objects: dict[str, Seen] = {}
        self.snapshots: dict[str, dict[str, Seen]] = {}

    def apply(self, name: str, args: list[Any], *, is_done: bool = True) -> None:
        """Do what a system call has done, or may have done."""
        objects, path = self.objects, args[0]
        match name:
            case "mkdir" if "@snapshots" in path:
                self.snapshots[os.path.basename(path)] = copy.deepcopy(objects)
            case "mkdir":
                objects[path] = Seen(stat.S_IFDIR | args[1])
            case "create":
                objects[path] = Seen(stat.S_IFREG | args[1])
            case "rename":
                source, target = args
                if objects[source] is not objects.get(target):
                    objects[target] = objects.pop(source)
            case "unlink" | "rmdir":
                del objects[path]
            case "symlink":
                objects[args[1]] = Seen(stat.S_IFLNK | 0o777, args[0])
            case "link":
                objects[args[1]] = objects[path]
            case "chmod":
                kind = stat.S_IFMT(objects[path].mode)
                objects[path].mode = kind | args[1]
            case "setxattr":
                objects[path].xattrs[args[1]] = args[2]
            case "write":
                text, is_synced = args[1:]
                objects[path].content = text if is_synced and is_done else None

    def links(self) -> dict[str, int]:
        """Return how many names each file has."""
        counts: dict[int, int] = {}
        for seen in self.objects.values():
            counts[id(seen)] = counts.get(id(seen), 0) + 1
        return {path: counts[id(seen)] for path, seen in self.objects.items()}


def look(folder: Path) -> dict[str, Seen]:
    """Return what is in *folder*."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        seen = Seen(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            seen.target = os.readlink(path)
        else:
            seen.xattrs = {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}
        if stat.S_ISREG(status.st_mode):
            seen.content = path.read_text()
        found[str(path.relative_to(folder))] = seen
    return found


def differences(expected: dict[str, Seen], found: dict[str, Seen]) -> list[str]:
    """Return what is not as it was promised."""
    wrong = [f"{path} is missing" for path in expected.keys() - found.keys()]
    wrong += [f"{path} is there" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        promised, seen = expected[path], found[path]
        if promised.content is None:
            promised = copy.copy(promised)
            promised.content = seen.content
            # A write takes set-id bits away when it gets here, which may be later.
            promised.mode = seen.mode if promised.mode & 0o6000 else promised.mode
        if promised != seen:
            wrong.append(f"{path}: {seen} and not {promised}"[:300])
    return wrong


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_what_was_acknowledged_survives_sigkill_without_fsync(
    site: Site, tmp_path: Path, transport: str
) -> None:
    rng = random.Random(transport)
    options = (f"transport={transport}", "commit=1" if transport == "kernel" else "commit=60")
    site.mount(*options)
    (site.mountpoint / "agent").mkdir()
    expected = Expected()
    done = 0
    for number in range(ROUNDS):
        calls, last = _change_until_killed(
            site.current, number, rng.randrange(50, 900), site.infos[-1]
        )
        done += len(calls)
        for name, *args in calls:
            expected.apply(name, args)
        _check_copy(site, tmp_path / "copy")
        site.mount(*options)

        possible = [expected]
        if last is not None:
            # It was begun and not answered: done or not, but not half.
            possible.append(copy.deepcopy(expected))
            _apply_if_possible(possible[1], last)
        found = look(site.current)
        wrong = [differences(one.objects, found) for one in possible]
        assert [] in wrong, wrong[0]
        expected = possible[wrong.index([])]
        names = {path.name for path in (site.current.parent / "@snapshots").iterdir()}
        assert names == expected.snapshots.keys()
        for name, objects in expected.snapshots.items():
            wrong = [differences(objects, look(site.current.parent / "@snapshots" / name))]
            assert wrong == [[]]
            (site.current.parent / "@snapshots" / name).rmdir()
        expected.snapshots.clear()
        for path, seen in expected.objects.items():
            seen.content = found[path].content
        for path, count in expected.links().items():
            if stat.S_ISREG(expected.objects[path].mode):
                assert (site.current / path).lstat().st_nlink == count
    assert done > ROUNDS * 20, "too little was done to prove anything"
    site.umount()


def _apply_if_possible(expected: Expected, call: list[Any]) -> None:
    try:
        expected.apply(call[0], call[1:], is_done=False)
    except KeyError:
        # It would have been refused.
        return


def _change_until_killed(
    folder: Path, seed: int, lines: int, daemon: DaemonInfo
) -> tuple[list[list[Any]], list[Any] | None]:
    """Kill the daemon at some moment; return the calls that were done, and the unanswered one."""
    calls: list[list[Any]] = []
    begun: list[Any] | None = None
    with subprocess.Popen(
        [sys.executable, "-c", CHANGER, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as changer:
        assert changer.stdout is not None
        for count, line in enumerate(changer.stdout):
            if line == "done\n":
                assert begun is not None
                calls.append(begun)
                begun = None
            elif line == "refused\n":
                begun = None
            else:
                begun = json.loads(line)
            if count == lines:
                kill(daemon)
        changer.kill()
    return calls, begun


def _check_copy(site: Site, folder: Path) -> None:
    """Check what a recovery makes, and leave it to the mount to make it."""
    shutil.copytree(site.store, folder, ignore=shutil.ignore_patterns("run"))
    check_store(folder)
    shutil.rmtree(folder)
