"""One tree has one hash and one tree digest, in any store, by any history."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaifs.service.record import decode_record
from tests.service.desk import Desk, facts

NAMES = st.sampled_from(["a", "b", "c d", "é", "x*"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
FILES = st.dictionaries(PATHS, st.sampled_from([b"", b"one", b"two" * 400]), max_size=8)
MTIME_NS = 1_500_000_000_987_654_321


def write(top: Path, files: dict[str, bytes], linked: bool) -> None:
    """Make a folder with *files*; a path below a file is left out."""
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    made = []
    for path, payload in files.items():
        place = top / path
        if any((top / above).is_file() for above in Path(path).parents) or place.is_dir():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(payload)
        place.chmod(0o640 if payload else 0o755)
        made.append(place)
    if linked and made:
        os.link(made[0], top / "link")
        os.setxattr(made[0], "user.colour", b"blue")
        os.symlink("a", top / "symlink")
    for folder, folders, names in os.walk(top, topdown=False):
        for name in (*folders, *names, ""):
            os.utime(Path(folder, name), ns=(0, MTIME_NS), follow_symlinks=False)


def digests(desk: Desk, agent: str, label: str) -> tuple[str, str]:
    record = decode_record(desk.store.get_version(desk.store.get_agent(agent), label).record)
    return record.hash, record.tree_digest


@settings(max_examples=8)
@given(before=FILES, files=FILES, linked=st.tuples(st.booleans(), st.booleans()))
def test_by_another_history_on_another_store(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, bytes],
    files: dict[str, bytes],
    linked: tuple[bool, bool],
) -> None:
    """First import; over any other version; after an export; each gives the same two digests."""
    top = tmp_path_factory.mktemp("same")
    desk, other = Desk(top / "first"), Desk(top / "second")
    try:
        write(top / "source", files, linked[0])
        desk.take("bot", "1.0.0", top / "source")
        desk.export("bot@1.0.0", top / "out")

        write(top / "before", before, linked[1])
        other.take("bot", "0.1.0", top / "before")
        other.take("bot", "1.0.0", top / "source")
        other.take("again", "7.0.0", top / "out")

        assert facts(top / "out") == facts(top / "source")
        expected = digests(desk, "bot", "1.0.0")
        assert digests(other, "bot", "1.0.0") == expected
        assert digests(other, "again", "7.0.0") == expected
    finally:
        desk.store.close()
        other.store.close()
        shutil.rmtree(top)


def test_the_hash_is_portable_and_the_tree_digest_has_the_rest(desk: Desk, tmp_path: Path) -> None:
    """Times and attributes change the one and not the other."""
    write(tmp_path / "source", {"d/a": b"one"}, linked=False)
    desk.take("bot", "1.0.0", tmp_path / "source")
    os.utime(tmp_path / "source/d/a", ns=(0, MTIME_NS + 1))
    desk.take("bot", "1.1.0", tmp_path / "source")
    os.setxattr(tmp_path / "source/d", "user.x", b"y")
    desk.take("bot", "1.2.0", tmp_path / "source")

    found = [digests(desk, "bot", label) for label in ("1.0.0", "1.1.0", "1.2.0")]

    assert len({digest for digest, _ in found}) == 1
    assert len({digest for _, digest in found}) == 3
