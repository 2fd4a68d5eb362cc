"""What kaifs is for: snapshots, versions, rollback and diff of trees of several sizes.

One store has an agent of each size, made once. Beside it, where they do the same job:
`btrfs subvolume snapshot`, `cp -a`, `git worktree add`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kaifs.control.client import call
from kaifs.service import embedded
from kaifs.service.context import Caller, Context
from kaifs.service.diff import Params as DiffParams
from kaifs.service.discard import Params as DiscardParams
from kaifs.service.gc import Params as GcParams
from kaifs.service.import_ import Params as ImportParams
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from kaifs.service.snapshot import Params as SnapshotParams
from kaifs.service.steps import Data, End, Entry, Item
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from tools.bench.materials import Materials
from tools.bench.run import Figures, Rows, Sample, settle
from tools.bench.systems import (
    MAIN,
    UnavailableError,
    btrfs,
    mounted,
    server_of,
)

PER_FOLDER = 100
PEERS_MAX = 100_000
"""Files of the largest tree that peers are given: what copies takes too long beyond."""
COPIES_OFTEN = 1000
"""Files of trees that are copied more than once."""
BTRFS, COPY, WORKTREE = "btrfs", "cp -a", "git worktree"
KAIFS = (sys.executable, "-m", "kaifs")
_US = 1e6


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done."""

    sizes: tuple[int, ...]
    turns: int
    snapshots: int
    starts: int


WHOLE = Plan((1_000, 100_000, 1_000_000), 7, 1000, 15)
QUICK = Plan((1_000, 10_000), 3, 100, 5)


def many_files(files: int) -> Iterator[Item]:
    """Yield an agent of so many small files, a hundred in each folder."""
    yield Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 1, 1)
    for folder in range(-(-files // PER_FOLDER)):
        name = b"d%06d" % folder
        yield Entry(name, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 1, 1)
        for number in range(min(PER_FOLDER, files - folder * PER_FOLDER)):
            payload = b"file %d of folder %d\n" % (number, folder)
            path = b"%s/f%02d" % (name, number)
            yield Entry(path, stat.S_IFREG | 0o644, 0, 0, len(payload), 0, 1, 1)
            yield Data(0, payload)
    yield End()


def make_files(top: Path, files: int) -> None:
    """Make the same as `many_files` on the host."""
    path = b""
    for item in many_files(files):
        if isinstance(item, Entry):
            path = os.fsencode(top) + b"/" + item.path
            if stat.S_ISDIR(item.mode):
                os.mkdir(path)
        elif isinstance(item, Data):
            with open(path, "wb") as file:
                file.write(item.payload)


def agent_of(files: int) -> str:
    """Return the name of the agent that has so many files."""
    return f"a{files}"


class Product:
    """Measures the verbs; what it finds is in `rows`."""

    def __init__(self, base: Path, plan: Plan, materials: Materials) -> None:
        self._plan = plan
        self._environment = materials.environment | {"PYTHONPATH": str(Path(__file__).parents[2])}
        self._base = base / "product"
        self._base.mkdir()
        self._store = self._base / "store"
        self._mountpoint = self._base / "mnt"
        self._mountpoint.mkdir()
        self._number = 0
        self.rows: Rows = {}
        self.failed: dict[str, str] = {}

    def measure(self) -> None:
        """Measure everything; a part that fails is told, and the others go on."""
        Store.create(self._store).close()
        for part in (
            self._imports,
            self._starts,
            self._verb_alone,
            self._mount_ready,
            self._beside_mount,
            self._listing,
        ):
            began = time.perf_counter()
            try:
                part()
            except Exception as error:  # noqa: BLE001 - a row says that it failed, and why
                name = part.__name__.strip("_")
                self.failed[name] = f"{type(error).__name__}: {error}"
                print(f"bench: {name}: {self.failed[name]}", file=sys.stderr)
            print(
                f"  {part.__name__.strip('_')}: {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )

    # --- how it is noted -------------------------------------------------------------------

    @contextlib.contextmanager
    def _timed(self, row: str, system: str = MAIN, count: int = 1) -> Iterator[None]:
        cpu = self._server_cpu_ns()
        began = time.perf_counter_ns()
        yield
        took = time.perf_counter_ns() - began
        used = max(0, self._server_cpu_ns() - cpu) if system == MAIN else 0
        self._note(row, system, Sample(took / 1e3 / count, used / 1e3 / count, 0))

    def _note(self, row: str, system: str, sample: Sample) -> None:
        self.rows.setdefault(row, {}).setdefault(system, Figures()).samples.append(sample)

    def _server_cpu_ns(self) -> int:
        total = 0
        for pid in server_of(self._store):
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0])
        return total

    def _run(self, *words: str | Path, status: int = 0) -> None:
        done = subprocess.run(
            words, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode != status:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise UnavailableError(f"{words[0]} ended with {done.returncode}: {said}")

    def _kaifs(self, *words: str | Path, status: int = 0) -> None:
        self._run(*KAIFS, "--store", self._store, *words, status=status)

    def _new_name(self) -> str:
        self._number += 1
        return f"n{self._number}"

    # --- without a mount --------------------------------------------------------------------

    def _imports(self) -> None:
        """One agent of each size. In a child: its memory is not this process's."""
        for files in self._plan.sizes:
            with self._timed(f"import, {files:,} files, each file", count=files):
                in_child(partial(self._import, files))

    def _import(self, files: int) -> None:
        params = ImportParams(agent=agent_of(files), label="1.0.0")
        embedded.run_embedded(self._store, "import", params, source=many_files(files))

    def _starts(self) -> None:
        """How long commands take to start."""
        for _ in range(self._plan.starts):
            with self._timed("command line: --help", "python -c pass"):
                self._run(sys.executable, "-c", "pass")
            with self._timed("command line: --help"):
                self._run(*KAIFS, "--help")

    def _verb_alone(self) -> None:
        """What the daemon does for a snapshot between the barrier and the epoch."""
        store = Store.open(self._store)
        context = Context(store, Forest(store), Caller(os.getuid(), os.getgid()))
        try:
            for files in self._plan.sizes:
                # The first one reads what the others find in memory.
                embedded.run(
                    context,
                    VERBS["snapshot"],
                    SnapshotParams(reference=agent_of(files), name=self._new_name()),
                )
            store.commit()
            for _ in range(self._plan.turns):
                for files in self._plan.sizes:
                    params = SnapshotParams(reference=agent_of(files), name=self._new_name())
                    with self._timed(f"snapshot, the verb alone, {files:,} files"):
                        embedded.run(context, VERBS["snapshot"], params)
                store.commit()
        finally:
            store.close(commit=False)

    def _mount_ready(self) -> None:
        """From the command to the mount that answers; the store has all sizes."""
        for _ in range(self._plan.turns):
            with self._timed("mount ready, by the command"):
                self._kaifs("mount", self._store, self._mountpoint, "-o", "transport=kernel")
            self._kaifs("umount", self._mountpoint)

    # --- on a mount --------------------------------------------------------------------------

    def _beside_mount(self) -> None:
        with (
            contextlib.ExitStack() as stack,
            mounted(self._store, self._mountpoint, "transport=kernel"),
        ):
            peers = Peers(self._base, self._plan, self._run, stack)
            self.failed |= peers.unavailable
            self._folder_import(peers)
            for files in self._plan.sizes:
                self._snapshots(files, peers)
                self._versions(files)
            self._thousand(peers)
            self._collect()

    def _folder_import(self, peers: Peers) -> None:
        """The command, on a folder of the host, beside what copies that."""
        files = peers.sizes[-1]
        row = f"import of a folder, {files:,} files, each file"
        with self._timed(row, count=files):
            self._kaifs("import", "imported", peers.folder(files), "--as", "1.0.0")
        for name, make in peers.snapshots(files):
            if name == COPY:
                with self._timed(row, name, count=files):
                    make()
        peers.forget_copies()

    def _snapshots(self, files: int, peers: Peers) -> None:
        agent = agent_of(files)
        top = self._mountpoint / agent / "@snapshots"
        self._run("mkdir", top / self._new_name())
        shell = f"snapshot from a shell, {files:,} files"
        for turn in range(self._plan.turns):
            settle()
            with self._timed(shell):
                self._run("mkdir", top / self._new_name())
            with self._timed(f"snapshot by mkdir(2), {files:,} files"):
                (top / self._new_name()).mkdir()
            with self._timed(f"kaifs snapshot in all, {files:,} files"):
                self._kaifs("snapshot", agent, "--name", self._new_name())
            for name, make in peers.snapshots(files):
                # What copies takes long.
                if name == BTRFS or turn < (3 if files <= COPIES_OFTEN else 1):
                    with self._timed(shell, name):
                        make()
            peers.forget_copies()

    def _versions(self, files: int) -> None:
        agent = agent_of(files)
        current = self._mountpoint / agent / "current"
        many = f"{files:,} files"
        (current / "d000000" / "f00").write_text("changed first\n")
        # The first seal after a start reads the listings of all folders.
        call(self._store, "seal", SealParams(agent=agent))
        for turn in range(self._plan.turns):
            (current / "d000000" / "f01").write_text(f"changed in {turn}\n")
            settle()
            with self._timed(f"seal, one changed file, {many}"):
                call(self._store, "seal", SealParams(agent=agent))
            with self._timed(f"diff, one changed file, {many}"):
                call(
                    self._store,
                    "diff",
                    DiffParams(old=f"{agent}@1.0.{turn + 1}", new=f"{agent}@1.0.{turn + 2}"),
                )
            with self._timed(f"rollback, nothing dirty, {many}"):
                call(self._store, "rollback", RollbackParams(agent=agent, version="1.0.0"))
            newest = f"1.0.{turn + 2}"
            call(self._store, "rollback", RollbackParams(agent=agent, version=newest))
        for _ in range(min(3, self._plan.turns)):
            (current / "d000000" / "f02").write_text(f"{self._new_name()}\n")
            with self._timed(f"kaifs seal in all, one changed file, {many}"):
                self._kaifs("seal", agent)
            with self._timed(f"kaifs diff in all, one changed file, {many}"):
                self._kaifs("diff", f"{agent}@1.0.0", agent, status=1)

    def _thousand(self, peers: Peers) -> None:
        """Many snapshots of one agent, and what is there after them."""
        files = self._plan.sizes[min(1, len(self._plan.sizes) - 1)]
        count = self._plan.snapshots
        top = self._mountpoint / agent_of(files) / "@snapshots"
        row = f"{count:,} snapshots, each"
        names = [f"m{number}" for number in range(count)]
        settle()
        with self._timed(row, count=count):
            for name in names:
                (top / name).mkdir()
        for name, make in peers.snapshots(files):
            if name == BTRFS:
                with self._timed(row, name, count=count):
                    for _ in range(count):
                        make()
        with self._timed(f"first write into each of {count:,} snapshots", count=count):
            for name in names:
                (top / name / "d000000" / "f00").write_text(f"changed in {name}\n")
        with self._timed(f"listing of {count:,} snapshots"):
            os.listdir(top)

    def _collect(self) -> None:
        """Free what many snapshots leave, while a program looks at the mount."""
        files = self._plan.sizes[min(1, len(self._plan.sizes) - 1)]
        agent = agent_of(files)
        current = self._mountpoint / agent / "current"
        with Watcher(current) as watcher:
            time.sleep(1)
            self._note("longest pause of a program, nothing runs", MAIN, watcher.longest())
            for number in range(self._plan.snapshots):
                reference = f"{agent}/@snapshots/m{number}"
                call(self._store, "discard", DiscardParams(reference=reference))
            watcher.longest()
            total = sum(self._plan.sizes)
            with self._timed(f"gc, {total:,} files live, each file", count=total):
                call(self._store, "gc", GcParams())
            self._note("longest pause of a program during gc", MAIN, watcher.longest())

    def _listing(self) -> None:
        """Memory of a daemon that has shown everything."""
        files = self._plan.sizes[-1]
        with mounted(
            self._store, self._mountpoint, f"transport=kernel,agent={agent_of(files)},view=current"
        ):
            listing = f"ls -lR, {files:,} files, each file"
            with self._timed(listing, count=files), open(os.devnull, "wb") as sink:
                subprocess.run(
                    ["ls", "-lR", self._mountpoint], stdout=sink, check=True, env=os.environ
                )
            (pid,) = server_of(self._store)
            status = Path(f"/proc/{pid}/status").read_text()
            kib = int(status.split("RssAnon:")[1].split()[0])
            row = f"memory (RssAnon) after ls -lR, {files:,} files"
            self.rows[row] = {MAIN: Figures("KiB", [Sample(kib, 0, 0)])}


class Peers:
    """What else makes a second copy of a tree, for each size."""

    def __init__(
        self, base: Path, plan: Plan, run: Callable[..., None], stack: contextlib.ExitStack
    ) -> None:
        self._base = base / "peers"
        self._base.mkdir()
        self._run = run
        self._copies: list[Path] = []
        self._count = 0
        self.unavailable: dict[str, str] = {}
        self.sizes = [files for files in plan.sizes if files <= PEERS_MAX]
        self._btrfs: Path | None = None
        (self._base / "btrfs").mkdir()
        try:
            self._btrfs = stack.enter_context(btrfs(self._base / "btrfs")).top
        except UnavailableError as error:
            self.unavailable[BTRFS] = str(error)
        self._has_git = shutil.which("git") is not None
        for files in self.sizes:
            folder = self.folder(files)
            make_files(folder, files)
            if self._btrfs is not None:
                subvolume = self._btrfs / agent_of(files)
                self._run("btrfs", "subvolume", "create", subvolume)
                self._run("cp", "-a", f"{folder}/.", subvolume)
            if self._has_git:
                # Beside the folder: what copies the folder is not to copy the objects.
                apart = f"--separate-git-dir={folder}.git"
                self._run("git", "init", "-q", apart, folder)
                self._run("git", "-C", folder, "add", "-A")
                self._run("git", "-C", folder, "commit", "-qm", "all")

    def folder(self, files: int) -> Path:
        """Return the folder of the host that has so many files."""
        return self._base / agent_of(files)

    def snapshots(self, files: int) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what each peer does to make a copy."""
        if files > PEERS_MAX:
            files = self.sizes[-1]
            names = {BTRFS}
        else:
            names = {BTRFS, COPY, WORKTREE}
        folder = self.folder(files)
        if self._btrfs is not None:
            source = self._btrfs / agent_of(files)
            yield BTRFS, lambda: self._subvolume(source)
        if COPY in names:
            yield COPY, lambda: self._run("cp", "-a", folder, self._new_copy())
        if WORKTREE in names and self._has_git:
            yield (
                WORKTREE,
                lambda: self._run(
                    "git", "-C", folder, "worktree", "add", "-q", "--detach", self._new_copy()
                ),
            )

    def forget_copies(self) -> None:
        """Make room; nobody waits for that in the figures."""
        for copy in self._copies:
            shutil.rmtree(copy)
        self._copies.clear()

    def _subvolume(self, source: Path) -> None:
        assert self._btrfs is not None
        self._count += 1
        self._run("btrfs", "subvolume", "snapshot", source, self._btrfs / f"s{self._count}")

    def _new_copy(self) -> Path:
        self._count += 1
        self._copies.append(self._base / f"copy{self._count}")
        return self._copies[-1]


LOOKER = """
import os, sys, time
top, number, longest = sys.argv[1], 0, 0.0
folders = sorted(os.listdir(top))
os.set_blocking(0, False)
while True:
    began = time.perf_counter()
    os.statvfs(top)
    folder = f"{top}/{folders[number % len(folders)]}"
    os.path.lexists(f"{folder}/absent{number}")
    with open(f"{folder}/f{number % 90 + 3:02}", "rb") as file:
        file.read()
    number += 1
    longest = max(longest, time.perf_counter() - began)
    try:
        asked = os.read(0, 1)
    except BlockingIOError:
        continue
    if not asked:
        break
    print(longest, flush=True)
    longest = 0.0
"""


class Watcher:
    """A program that looks at files all the time, and tells how long it had to wait."""

    def __init__(self, top: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOKER, str(top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def longest(self) -> Sample:
        """Return the longest wait since this was asked before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"?")
        self._process.stdin.flush()
        return Sample(float(self._process.stdout.readline()) * _US, 0, 0)


def in_child(work: Callable[[], None]) -> None:
    """Do *work* in another process, and wait for it.

    Raises:
        UnavailableError: it failed.
    """
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(process, 0)[1]:
        raise UnavailableError("the child failed")
