"""A disk that does not answer holds up who reads from it, and nobody else."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.fuse.conftest import MountedStore


@pytest.mark.fuse
def test_other_requests_are_answered_while_the_disk_stands_still(
    mount_store: Callable[..., MountedStore],
) -> None:
    content = os.urandom(300_000)
    mounted = mount_store()
    (mounted.current / "cold").write_bytes(content)
    mounted.end()
    mounted = mount_store(stalled=True)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"print(open({str(mounted.current / 'cold')!r}, 'rb').read().hex())",
        ],
        stdout=subprocess.PIPE,
    )
    mounted.ask_until(True, "is-asked")

    other = mounted.current / "other"
    with other.open("wb", buffering=0) as file:
        file.write(b"written meanwhile")
        os.fsync(file.fileno())
    assert os.listdir(mounted.current) == ["cold", "other"]
    assert reader.poll() is None

    mounted.ask("wake")
    output, _ = reader.communicate(timeout=20)
    assert bytes.fromhex(output.decode()) == content
