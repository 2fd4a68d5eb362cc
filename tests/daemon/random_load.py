"""Random changes of files, checked against a model at every step, as fsx does.

Usage: random_load.py IGNORED, in an empty folder. What is there in the end depends on the
seed only. Any error, and any byte that is not as it should be, ends it with a status.
"""

import mmap
import os
import random
import sys

SIZE_MAX = 300_000
FILES = 6
STEPS = 1500


class File:
    """One file, and what should be in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = bytearray()
        self.fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, rng: random.Random) -> None:
        offset, data = rng.randrange(SIZE_MAX), rng.randbytes(rng.choice([1, 100, 5000, 70_000]))
        assert os.pwrite(self.fd, data, offset) == len(data)
        self._put(offset, data)

    def map(self, rng: random.Random) -> None:
        if not self.model:
            return
        with mmap.mmap(self.fd, len(self.model)) as memory:
            offset = rng.randrange(len(self.model))
            data = rng.randbytes(min(3000, len(self.model) - offset))
            memory[offset : offset + len(data)] = data
        self._put(offset, data)

    def truncate(self, rng: random.Random) -> None:
        size = rng.randrange(SIZE_MAX)
        os.ftruncate(self.fd, size)
        self.model = self.model[:size].ljust(size, b"\0")

    def append(self, rng: random.Random) -> None:
        data = rng.randbytes(rng.choice([1, 300, 9000]))
        fd = os.open(self.name, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, data) == len(data)
        os.close(fd)
        self.model += data

    def check(self, rng: random.Random) -> None:
        assert os.fstat(self.fd).st_size == len(self.model), self.name
        assert os.pread(self.fd, len(self.model) + 1, 0) == self.model, self.name

    def sync(self, rng: random.Random) -> None:
        os.fsync(self.fd)

    def reopen(self, rng: random.Random) -> None:
        os.close(self.fd)
        self.fd = os.open(self.name, os.O_RDWR)

    def rename(self, rng: random.Random) -> None:
        new = self.name.partition(".")[0] + f".{rng.randrange(1000)}"
        os.rename(self.name, new)
        self.name = new
        assert os.path.samestat(os.stat(new), os.fstat(self.fd))

    def replace(self, rng: random.Random) -> None:
        """Unlink it while it is open; go on with it; then begin anew."""
        os.unlink(self.name)
        self.write(rng)
        self.check(rng)
        os.close(self.fd)
        assert not os.path.exists(self.name)
        self.__init__(self.name)  # type: ignore[misc]  # it is another file from here on

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.model) < offset:
            self.model = self.model.ljust(offset, b"\0")
        self.model[offset : offset + len(data)] = data


def main() -> None:
    """Change files."""
    rng = random.Random(11)
    files = [File(f"file{number}") for number in range(FILES)]
    ways = [
        *(File.write, File.write, File.map, File.truncate, File.append, File.check, File.check),
        *(File.sync, File.reopen, File.rename, File.replace),
    ]
    for number in range(STEPS):
        rng.choice(ways)(rng.choice(files), rng)
        if number % 50 == 0:
            os.mkdir(f"d{number}")
            assert os.path.isdir(f"d{number}")
            if rng.random() < 0.5:
                os.rmdir(f"d{number}")
    for file in files:
        file.check(rng)
    print(len(os.listdir()), file=sys.stderr)


if __name__ == "__main__":
    main()
