"""What the programs work on: made here, the same for all systems, and new in each turn.

kaifs stores the same bytes once, so a turn that unpacked what an earlier one has
unpacked would be flattered.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tools.bench.run import Scale
from tools.bench.systems import UnavailableError, require

MEDIAN_SIZE = 3200
SPREAD = 1.6
"""Of the logarithm of sizes: 95 % below 45 KB. Of 13,000 Python files it was 51 KB."""
SIZE_MAX = 200_000
FOLDER_FILES = 25
WHEELS = ("attrs", "markdown-it-py", "mdurl", "packaging", "rich", "trio")
"""Pure Python, of the development environment: some 400 files."""
NPM_PACKAGES = 40
NPM_FILES = 15
C_FILES = 40
C_FUNCTIONS = 25
LOCK = Path(__file__).parents[2] / "requirements.lock"


def tree(files: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield paths and contents like those of a source tree; folders follow from the paths."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    text = base64.encodebytes(chance.randbytes(2 << 20))
    for number in range(files):
        folder = number // FOLDER_FILES
        size = min(SIZE_MAX, int(chance.lognormvariate(math.log(MEDIAN_SIZE), SPREAD)))
        start = chance.randrange(len(text) - size)
        head = f"# file {number} of tree {seed}\n".encode()
        yield (
            f"d{folder % 8}/sub{folder // 8}/f{number}.py",
            (head + text[start : start + size])[:size],
        )


def pack(path: Path, entries: Iterator[tuple[str, bytes]], *, gzip: bool = False) -> None:
    """Make a tar of files."""
    with tarfile.open(path, "w:gz" if gzip else "w") as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = 1_700_000_000
            archive.addfile(member, io.BytesIO(content))


class Materials:
    """Everything that is read by the programs, below one folder on the host."""

    def __init__(self, folder: Path, cache: Path, scale: Scale) -> None:
        self.folder = folder
        self._scale = scale
        folder.mkdir()
        self.environment = os.environ | self._git() | {"PYTHONDONTWRITEBYTECODE": ""}
        self.missing: dict[str, str] = {}
        """Programs that cannot be run here, by the first word of the row, and why."""
        self.wheels = cache / "wheels"
        self.npm = folder / "npm"
        self.npm_cache = folder / "npm-cache"
        self.c_project = folder / "project.tar"
        for what, make in (
            ("pip", self._get_wheels),
            ("npm", self._make_npm),
            ("C", self._make_c_project),
            ("git", lambda: require("git")),
        ):
            try:
                make()
            except (UnavailableError, OSError, subprocess.SubprocessError) as error:
                self.missing[what] = str(error)
        pack(folder / "repository.tar", tree(scale.repository_files, 1))
        pack(folder / "v1.tar", tree(scale.tree_files, 2))
        pack(folder / "modules.tar", self._modules())
        self._tar_turn = -1

    def tar(self, turn: int) -> Path:
        """Return a source tree to unpack, another one in each turn."""
        path = self.folder / "tree.tar"
        if self._tar_turn != turn:
            pack(path, tree(self._scale.tree_files, 1000 + turn))
            self._tar_turn = turn
        return path

    def _git(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(
            "[user]\nname = bench\nemail = bench@localhost\n"
            "[gc]\nauto = 0\n[maintenance]\nauto = false\n[safe]\ndirectory = *\n"
            "[init]\ndefaultBranch = main\n[advice]\ndetachedHead = false\n"
        )
        return {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}

    def _get_wheels(self) -> None:
        if self.wheels.is_dir():
            return
        blocks = LOCK.read_text().replace(" \\\n", " ").splitlines()
        locked = [line for line in blocks if line.partition("==")[0] in WHEELS]
        wanted = self.folder / "wheels.txt"
        wanted.write_text("\n".join(line.partition("  #")[0] for line in locked) + "\n")
        target = self.wheels.with_name("wheels.new")
        shutil.rmtree(target, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "-qq", "--no-input", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "download", "--no-deps", "--only-binary=:all:", "-d", target, "-r", wanted],
            check=True,
        )
        target.rename(self.wheels)

    def _make_npm(self) -> None:
        require("npm")
        self.npm.mkdir()
        dependencies = {}
        for number in range(NPM_PACKAGES):
            name = f"package-{number}"
            manifest = json.dumps({"name": name, "version": "1.0.0", "main": "f0.js"})
            files = [("package/package.json", manifest.encode())]
            files += [
                (f"package/lib{index % 3}/f{index}.js", content)
                for index, (_, content) in enumerate(tree(NPM_FILES, 100 + number))
            ]
            pack(self.npm / f"{name}.tgz", iter(files), gzip=True)
            dependencies[name] = f"file:{self.npm / name}.tgz"
        manifest = json.dumps({"name": "bench", "version": "1.0.0", "dependencies": dependencies})
        (self.npm / "package.json").write_text(manifest)

    def _make_c_project(self) -> None:
        require("gcc", "make")
        pack(self.c_project, c_files())

    def _modules(self) -> Iterator[tuple[str, bytes]]:
        names = [f"m{number}" for number in range(self._scale.modules)]
        imports = "".join(f"from bundle import {name}\n" for name in names)
        yield "bundle/__init__.py", imports.encode()
        for number, name in enumerate(names):
            body = "".join(
                f"def f{index}(a, b={index}):\n    '''Return {number}.'''\n    return a * b + {number}\n\n"
                for index in range(20)
            )
            yield f"bundle/{name}.py", body.encode()


def c_files() -> Iterator[tuple[str, bytes]]:
    """Yield a program of many small files."""
    yield (
        "Makefile",
        b"OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        b"program: $(OBJECTS)\n\t$(CC) -o $@ $(OBJECTS)\n%.o: %.c all.h\n\t$(CC) -O1 -c -o $@ $<\n",
    )
    declared = "".join(f"int f{number}(int);\n" for number in range(C_FILES))
    yield (
        "all.h",
        f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{declared}".encode(),
    )
    calls = "".join(f"    sum += f{number}(sum);\n" for number in range(C_FILES))
    yield (
        "main.c",
        f'#include "all.h"\nint main(void) {{\n    int sum = 1;\n{calls}    return sum & 1;\n}}\n'.encode(),
    )
    for number in range(C_FILES):
        helpers = "".join(
            f"static int h{index}(int x) {{ for (int i = 0; i < x; i++) x ^= i * {index + 3}; return x + {number}; }}\n"
            for index in range(C_FUNCTIONS)
        )
        used = " + ".join(f"h{index}(x)" for index in range(C_FUNCTIONS))
        yield (
            f"f{number}.c",
            f'#include "all.h"\n{helpers}int f{number}(int x) {{ return {used}; }}\n'.encode(),
        )
