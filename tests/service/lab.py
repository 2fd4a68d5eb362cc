"""Commands run by real processes on a folder that holds a snapshot's files."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kaifs.service.steps import Item
from kaifs.service.suite import TestSuite
from kaifs.service.suite_runner import Execution, OnSuiteProgress, SuiteRunner
from kaifs.service.testing import Order, report_items
from kaifs.tree.tree import Tree
from tests.service.desk import Desk

OUTPUT_KEPT = 64 << 10


class LocalExecutor:
    """Runs commands in a folder, without any isolation."""

    def __init__(self, folder: Path, unenforced: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._unenforced = unenforced
        self._reports = folder.with_name(folder.name + ".reports")
        self._reports.mkdir(exist_ok=True)

    @property
    def report_folder(self) -> str:
        return str(self._reports)

    def run(
        self, command: str | tuple[str, ...], env: Mapping[str, str], timeout_s: float
    ) -> Execution:
        for path in self._reports.iterdir():
            path.unlink()
        arguments = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        begun = time.monotonic()
        process = subprocess.Popen(
            arguments,
            cwd=self._folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = False
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        status = process.returncode
        return Execution(
            128 - status if status < 0 else status,
            output[-OUTPUT_KEPT:],
            time.monotonic() - begun,
            timed_out=timed_out,
            dropped=max(0, len(output) - OUTPUT_KEPT),
            reports=tuple(
                (path.name, path.read_bytes()) for path in sorted(self._reports.glob("*.xml"))
            ),
            unenforced=self._unenforced,
        )


class Lab:
    """Tests the snapshots of a desk: exports one, runs its suite there, reports."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self._folder = folder
        self._runs = 0
        self.unenforced: tuple[str, ...] = ()
        """What the executors say of limits."""

    def snapshot(self, reference: str, name: str) -> Tree:
        """Return the tree of a snapshot."""
        store = self.desk.store
        return self.desk.forest.tree(store.get_snapshot(store.get_agent(reference), name).root)

    def test(
        self, reference: str, on_progress: OnSuiteProgress | None = None, **params: Any
    ) -> Any:
        """Run the verb `test`, with the commands in local processes."""
        order = bytearray()

        def report() -> Iterator[Item]:
            found = msgspec.json.decode(bytes(order), type=Order)
            self._runs += 1
            folder = self._folder / f"run-{self._runs}"
            self.desk.export(f"{found.snapshot.agent_id}/@snapshots/{found.snapshot.id}", folder)
            runner = SuiteRunner(LocalExecutor(folder, self.unenforced), on_progress)
            yield from report_items(runner.run(found.suite))

        return self.desk.run("test", items=report(), output=order, reference=reference, **params)


def suite(*commands: str, **fields: Any) -> TestSuite:
    """Return a suite of shell commands called 1, 2, 3 …."""
    cases = [
        {"name": str(number), "command": command, **fields}
        for number, command in enumerate(commands, 1)
    ]
    return msgspec.convert({"test": cases}, TestSuite)
