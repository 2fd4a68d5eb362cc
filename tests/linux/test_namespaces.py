"""Mounts by descriptor, and id maps. The sandbox's tests have the rest."""

import errno
import itertools
import os
from pathlib import Path

import pytest

from kaifs.linux.namespaces import _identity_but, keep_descriptors, open_plainly


def test_path_is_opened_only_if_no_part_of_it_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    real = tmp_path.resolve()

    os.close(open_plainly(real / "folder" / "file"))
    for path in (real / "link", real / "link" / "file", Path(f"/proc/self/cwd{real}")):
        with pytest.raises(OSError, match="symbolic links") as caught:
            open_plainly(path)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(("inside", "outside"), [(0, 5), (5, 0), (7, 7), (0, 1 << 31)])
def test_map_but_one_is_the_identity_for_all_others_and_overlaps_nowhere(
    inside: int, outside: int
) -> None:
    lines = [tuple(map(int, line.split())) for line in _identity_but(inside, outside).splitlines()]
    runs = sorted((first, first + count) for first, _, count in lines)

    assert lines[0] == (inside, outside, 1)
    assert all(first == at for first, at, _ in lines[1:])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(runs))


def test_descriptors_but_the_kept_end_with_an_exec() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.set_inheritable(reading, True)
        keep_descriptors({writing})
        os._exit(os.get_inheritable(reading) * 2 + os.get_inheritable(writing))
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)

    assert os.waitstatus_to_exitcode(status) == 1
