"""Whoever copies a cached listing holds its page, and may need the server to finish.

The kernel copies a directory's cached listing under the lock of its page. Where it copies to
may be a file of the same mount, mapped and not in memory: a READ, which the server must answer
while it has that listing dropped.
"""

import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.daemon.site import wait_until
from tests.fuse.conftest import MountedStore

pytestmark = [pytest.mark.fuse, pytest.mark.root]

ROUNDS = 12
"""In each, the server turns to the switch or to the READ first, as it happens."""
PAGE = mmap.PAGESIZE

LIST_INTO_FILE = """
import ctypes, mmap, os, sys
folder, file, page = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(file, os.O_RDWR)
memory = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
memory.madvise(mmap.MADV_RANDOM)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page * mmap.PAGESIZE
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
listing = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
print("ready", flush=True)
sys.stdin.readline()
libc = ctypes.CDLL(None, use_errno=True)
libc.getdents64.restype = ctypes.c_ssize_t
assert libc.getdents64(listing, ctypes.c_void_p(address), mmap.PAGESIZE) > 0, ctypes.get_errno()
"""


def test_a_listing_that_is_read_into_a_file_of_the_mount_does_not_stop_the_server(
    tmp_path: Path,
) -> None:
    mounted = MountedStore(tmp_path, {"transport": "kernel", "agents": ["bot", "other"]})
    connection = Path(f"/sys/fs/fuse/connections/{os.minor(os.stat(mounted.mountpoint).st_dev)}")
    # Nothing else frees who waits for a server that waits for them.
    rescue = threading.Timer(30, lambda: (connection / "abort").write_text("1"))
    rescue.start()
    try:
        for number in range(20):
            (mounted.current / f"file-{number}").write_bytes(b"")
        mounted.seal("1.0.0")
        file = mounted.mountpoint / "other/current/file"
        file.write_bytes(os.urandom(ROUNDS * PAGE))
        mounted.flush()
        for page in range(ROUNDS):
            os.listdir(mounted.current)
            lister = subprocess.Popen(
                [sys.executable, "-c", LIST_INTO_FILE, mounted.current, file, str(page)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert lister.stdout is not None
            assert lister.stdin is not None
            assert lister.stdout.readline() == b"ready\n"
            mounted.signal(signal.SIGSTOP)
            lister.stdin.write(b"\n")
            lister.stdin.close()
            wait_until(lambda: int((connection / "waiting").read_text()) > 0)
            mounted.send("rollback", "bot", "1.0.0")
            mounted.signal(signal.SIGCONT)
            mounted.answered()
            assert lister.wait(20) == 0
            lister.stdout.close()
        assert rescue.is_alive(), "the server had to be freed"
    finally:
        rescue.cancel()
        mounted.end()
