"""Real work: what people and programs do all day, by the programs that they use."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.bench.materials import Materials
from tools.bench.run import Scale, Stopwatch, drop_caches

TRANSACTIONS = 30
ROWS = 20_000
REPEATS = 2
"""Times that what only reads is done in a turn."""
CHANGED = 20
"""Files that differ between the two versions."""


class Work:
    """Runs programs on one system."""

    def __init__(self, materials: Materials) -> None:
        self._materials = materials

    def changes(self, watch: Stopwatch, scale: Scale) -> None:
        """What makes and removes files."""
        top = watch.system.top / "work"
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        tree, copy, clone = top / "tree", top / "copy", top / "clone"
        tree.mkdir()
        tar = self._materials.tar(watch.turn)
        files = f"{scale.tree_files:,} files"
        with watch(f"untar, {files}"):
            self._run("tar", "xf", tar, "-C", tree)
        with watch(f"cp -a, {files}"):
            self._run("cp", "-a", tree, copy)
        with watch(f"rm -rf, {files}"):
            self._run("rm", "-rf", copy)
        if self._has("git"):
            self._run("git", "init", "-q", tree)
            with watch(f"git add + commit, {files}"):
                self._run("git", "-C", tree, "add", "-A")
                self._run("git", "-C", tree, "commit", "-qm", "all")
            with watch(f"git clone, {files}"):
                self._run("git", "clone", "-q", tree, clone)
        if self._has("pip"):
            with watch("pip install of wheels"):
                self._pip(top / "prefix")
        if self._has("npm"):
            self._npm(watch, top / "npm")
        if self._has("C"):
            (top / "project").mkdir()
            self._run("tar", "xf", self._materials.c_project, "-C", top / "project")
            with watch("C build, make -j"):
                self._run("make", "-s", f"-j{os.cpu_count()}", "-C", top / "project")
        databases(watch, top)
        shutil.rmtree(top)

    def reads(self, watch: Stopwatch, scale: Scale) -> None:
        """What only looks, warm; last, Python cold."""
        top = watch.system.top / "read"
        if not (top / "complete").exists():
            self.lay_out(watch, scale)
        repository = str(top / "repository")
        files = f"{scale.repository_files:,} files"
        rows: list[tuple[str, Callable[[], None]]] = [
            (f"find, {files}", lambda: self._run("find", repository)),
            (f"ls -lR, {files}", lambda: self._run("ls", "-lR", repository)),
            (
                f"grep -r, {files}",
                lambda: self._run("grep", "-r", "-F", "no such word", repository, status=1),
            ),
            (
                f"diff -r of two versions, {scale.tree_files:,} files",
                lambda: self._run("diff", "-rq", top / "v1", top / "v2", status=1),
            ),
            (f"Python importing {scale.modules} modules, warm", lambda: start_python(top)),
        ]
        if self._has("git"):
            rows.append(
                (
                    f"git status, {files}",
                    lambda: self._run("git", "-C", repository, "status", "--porcelain"),
                )
            )
        for row, action in rows:
            action()
            for _ in range(REPEATS):
                with watch(row):
                    action()
        drop_caches()
        start_python(None)
        with watch(f"Python importing {scale.modules} modules, cold"):
            start_python(top)

    def lay_out(self, watch: Stopwatch, scale: Scale) -> None:
        """Make what is read, once."""
        top = watch.system.top / "read"
        shutil.rmtree(top, ignore_errors=True)
        folder = self._materials.folder
        for name in ("repository", "v1", "v2", "modules"):
            (top / name).mkdir(parents=True)
            source = "v1" if name == "v2" else name
            self._run("tar", "xf", folder / f"{source}.tar", "-C", top / name)
        for path in sorted((top / "v2").rglob("*.py"))[:CHANGED]:
            path.write_text("changed\n")
        if self._has("git"):
            repository = top / "repository"
            self._run("git", "init", "-q", repository)
            self._run("git", "-C", repository, "add", "-A")
            self._run("git", "-C", repository, "commit", "-qm", "all")
        self._run(sys.executable, "-m", "compileall", "-q", top / "modules")
        (top / "complete").touch()

    def _pip(self, prefix: Path) -> None:
        wheels = sorted(self._materials.wheels.glob("*.whl"))
        pip = [sys.executable, "-m", "pip", "-qq", "--no-input", "--disable-pip-version-check"]
        where: list[str | Path] = [
            "--prefix",
            prefix,
            "--ignore-installed",
            "--no-warn-script-location",
        ]
        how = ["--no-deps", "--no-index", "--no-cache-dir", "--root-user-action=ignore"]
        self._run(*pip, "install", *how, *where, *wheels)

    def _npm(self, watch: Stopwatch, folder: Path) -> None:
        folder.mkdir()
        shutil.copy(self._materials.npm / "package.json", folder)
        cache = f"--cache={self._materials.npm_cache}"
        how = ["--offline", "--no-audit", "--no-fund", "--silent", cache]
        if not self._materials.npm_cache.exists():
            # Of npm's own cache, which is on the host, all find the same.
            self._run("npm", "install", *how, "--prefix", folder)
            self._run("rm", "-rf", folder / "node_modules", folder / "package-lock.json")
        with watch("npm install of tarballs"):
            self._run("npm", "install", *how, "--prefix", folder)

    def _has(self, what: str) -> bool:
        return what not in self._materials.missing

    def _run(self, *words: str | Path, status: int = 0) -> None:
        run(words, self._materials.environment, status)


def run(words: Sequence[str | Path], environment: dict[str, str], status: int = 0) -> None:
    """Run a program.

    Raises:
        CalledProcessError: it ends with another status.
    """
    # A pipe: grep and others do less when what they print is thrown away.
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != status:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {said}")


def start_python(top: Path | None) -> None:
    """Start Python without its own packages, and import the modules."""
    program = (
        "pass"
        if top is None
        else f"import sys; sys.path.insert(0, {str(top / 'modules')!r}); import bundle"
    )
    run([sys.executable, "-E", "-s", "-S", "-c", program], dict(os.environ))


def databases(watch: Stopwatch, top: Path) -> None:
    """SQLite as it is by default: a rollback journal, and fsync for each transaction."""
    with contextlib.closing(sqlite3.connect(top / "db", isolation_level=None)) as database:
        database.execute("create table t (id integer primary key, text)")
        with watch("SQLite, an insert in its own transaction", TRANSACTIONS):
            for number in range(TRANSACTIONS):
                database.execute("insert into t (text) values (?)", (f"row {number}",))
        with watch(f"SQLite, {ROWS:,} inserts in one transaction"):
            database.execute("begin")
            database.executemany(
                "insert into t (text) values (?)",
                ((f"row {number} " * 5,) for number in range(ROWS)),
            )
            database.execute("commit")
