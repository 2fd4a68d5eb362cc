"""Rollback in a loop under readers and writers: no error, no mixture, nothing lost.

`KAIFS_STORM_S=60` is the long form.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kaifs.control.client import call
from kaifs.service.list_ import Params as ListParams
from kaifs.service.rollback import Params as RollbackParams
from kaifs.service.seal import Params as SealParams
from tests.daemon.site import Site, check_store

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]

SECONDS = float(os.environ.get("KAIFS_STORM_S", "3"))
READERS = 8
WRITERS = 2
FILES = 20
WORDS = {"1.0.0": ("old\n", 500), "1.1.0": ("the new one\n", 3000)}
CONTENTS = {label: word * times for label, (word, times) in WORDS.items()}
"""Of different sizes, in pages too: bytes of the one cut to the size of the other would show."""

READER = """
import json, os, sys

current, words = sys.argv[1], json.loads(sys.argv[2])
contents = [word * times for word, times in words]
troubles, scans = [], 0
os.set_blocking(0, False)

def stopped():
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False

while not stopped():
    try:
        for number in range(FILES):
            path = f"{current}/tree/f{number}"
            with open(path) as file:
                text = file.read()
                size = os.fstat(file.fileno()).st_size
            if text not in contents or size != len(text):
                troubles.append(f"{path}: {len(text)} of {size} bytes: {text[:20]!r}")
        # All through one directory: one state.
        folder = os.open(f"{current}/tree", os.O_RDONLY | os.O_DIRECTORY)
        names = os.listdir(folder)
        texts = set()
        for name in names:
            with open(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
                texts.add(file.read())
        os.close(folder)
        if len(names) != FILES or len(texts) != 1 or not texts <= set(contents):
            troubles.append(f"a mixture: {len(names)} names, {[text[:20] for text in texts]}")
        scans += 1
    except OSError as error:
        troubles.append(repr(error))
print(json.dumps([scans, troubles[:5]]))
""".replace("FILES", str(FILES))

WRITER = """
import json, os, sys

current, who = sys.argv[1:]
kept, number = [], 0
os.set_blocking(0, False)
while True:
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
    number += 1
    try:
        os.makedirs(f"{current}/{who}", exist_ok=True)
        with open(f"{current}/{who}/{number}", "w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        kept.append(number)
    except OSError:
        # What is open when current is switched stays on the old view, which takes no more.
        pass
print(json.dumps(kept))
"""


def _start(running: ExitStack, program: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *arguments]
    process = running.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    running.callback(process.kill)
    return process


@pytest.mark.parametrize("transport", ["pyfuse3", "kernel"])
def test_no_reader_sees_an_error_or_a_mixture_and_no_write_is_lost(
    site: Site, transport: str
) -> None:
    site.mount(f"transport={transport}")
    (site.mountpoint / "agent").mkdir()
    (site.current / "tree").mkdir()
    for label, content in CONTENTS.items():
        for number in range(FILES):
            (site.current / f"tree/f{number}").write_text(content)
        call(site.store, "seal", SealParams(agent="agent", label=label))
    current = str(site.current)
    with ExitStack() as running:
        words = json.dumps([*WORDS.values()])
        readers = [_start(running, READER, current, words) for _ in range(READERS)]
        writers = [_start(running, WRITER, current, f"writer{n}") for n in range(WRITERS)]

        rollbacks = 0
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or rollbacks < 2:
            label = [*CONTENTS][rollbacks % 2]
            call(site.store, "rollback", RollbackParams(agent="agent", version=label))
            assert (site.current / "tree/f0").read_text()[:20] == CONTENTS[label][:20]
            rollbacks += 1
        read = [json.loads(reader.communicate()[0]) for reader in readers]
        written = [json.loads(writer.communicate()[0]) for writer in writers]

    assert [troubles for _, troubles in read] == [[]] * READERS
    assert all(scans for scans, _ in read)
    kept = {f"writer{number}": set(numbers) for number, numbers in enumerate(written)}
    assert all(kept.values())
    views = [site.current, *(site.mountpoint / "agent/@versions").iterdir()]
    for who, numbers in kept.items():
        found = set().union(*(_written(view / who) for view in views))
        assert numbers <= found
    backups = len(call(site.store, "list", ListParams(agent="agent")).versions) - len(CONTENTS)
    print(f"{transport}: {rollbacks} rollbacks, {backups} backups, {read=}"[:500])
    site.umount()
    check_store(site.store)


def _written(folder: Path) -> set[int]:
    """Return the numbers of the files that are whole."""
    if not folder.exists():
        return set()
    return {int(path.name) for path in folder.iterdir() if path.read_text() == path.name}
