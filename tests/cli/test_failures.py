"""How a command fails: one line, one code, an exit status, and an unharmed store."""

import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaifs.cli.main import main
from kaifs.linux.files import lock_owner
from kaifs.store.store import LOCK_NAME, Store
from tests.cli.conftest import Done, Shell


def expect(done: Done, code: str, *, status: int = 1) -> str:
    """Check that a command failed with *code* and said so in one line; return the line."""
    assert done.status == status
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert re.match(rf"kaifs: {code}: \S.*", line)
    return line


def test_bad_input_is_refused_with_its_code(bot: Shell, folder: Path, tmp_path: Path) -> None:
    """Issue 2, last point."""
    before = bot.fine("status", "--json")

    expect(bot("import", "bot", tmp_path / "none", "--as", "2.0.0"), "E130")
    expect(bot("import", "bot", folder / "a.txt", "--as", "2.0.0"), "E130")
    expect(bot("import", "bot", tmp_path, "--as", "2.0.0"), "E130")
    expect(bot("import", "bot", folder, "--as", "v2"), "E120")
    expect(bot("import", "bot", folder, "--as", "1.0.0"), "E126")
    expect(bot("import", "s-bot", folder, "--as", "1.0.0"), "E121")
    expect(bot("export", "bot", folder), "E132")
    expect(bot("show", "nobody"), "E123")
    expect(bot("discard", "s-none"), "E124")
    expect(bot("remove", "bot@1.0.0"), "E128")
    expect(bot("show", "bot@9.0.0"), "E101")

    assert bot.fine("status", "--json") == before


def test_the_specifications_message_is_kept_word_for_word(bot: Shell) -> None:
    done = bot("rollback", "-q", "bot", "9.9.9")

    assert expect(done, "E101") == (
        "kaifs: E101: Invalid rollback version - version does not exist or is corrupted (bot@9.9.9)"
    )


def test_with_json_the_error_is_a_document_too(bot: Shell) -> None:
    done = bot("show", "bot@9.9.9", "--json")

    error = done.document["error"]
    assert done.status == 1
    assert error["code"] == "E101"
    assert error["message"].startswith("Invalid rollback version - ")
    assert error["details"] == {"subject": "bot@9.9.9"}
    assert len(done.err.splitlines()) == 1


def test_a_store_that_is_none_or_newer_is_refused(kaifs: Shell) -> None:
    expect(kaifs("list"), "E110")
    kaifs.fine("init")
    expect(kaifs("init"), "E111")
    superblock = kaifs.store / "superblock"
    sound = superblock.read_bytes()
    # FORMAT.md: magic (8 bytes), format version (4 bytes, little-endian).
    newer = bytearray(sound)
    struct.pack_into("<I", newer, 8, 99)
    superblock.write_bytes(newer)

    expect(kaifs("list"), "E113")
    superblock.write_bytes(sound)


def test_a_limit_that_makes_no_sense_is_refused_and_nothing_is_made(bot: Shell) -> None:
    expect(bot("snapshot", "-q", "bot", "--memory", "much"), "E140")

    assert bot.fine("snapshots") == ""


def test_mounts_helper_fails_as_mount_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mount -t kaifs` runs `mount.kaifs STORE MNT -o rw`; 32 is its "mount failure"."""
    monkeypatch.setattr("sys.argv", ["/usr/sbin/mount.kaifs"])

    status = main([str(tmp_path / "store"), str(tmp_path), "-o", "rw"])

    assert status == 32
    assert capsys.readouterr().err.startswith("kaifs: E110: ")


def test_ctrl_c_leaves_the_store_as_it_was(bot: Shell, tmp_path: Path) -> None:
    before = bot.fine("status", "--json")
    source = tmp_path / "large"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        # Nothing to store, but half a minute to hash.
        file.truncate(50 << 30)
    process = bot.start("import", "large", source, "--as", "1.0.0")
    while lock_owner(bot.store / LOCK_NAME) is None:
        assert process.poll() is None
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (130, b"", b"")
    assert bot.fine("status", "--json") == before


def test_a_reader_that_has_seen_enough_is_no_error(bot: Shell, tmp_path: Path) -> None:
    """`kaifs manifest A@V | head`."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"a-file-with-a-long-name-{number}").touch()
    bot.fine("import", "many", many, "--as", "1.0.0")
    process = bot.start("manifest", "many@1.0.0")
    assert process.stdout is not None
    assert process.stdout.read(6) == b"#mtree"
    process.stdout.close()
    assert process.stderr is not None

    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


def test_a_bug_exits_with_70_and_its_traceback_is_in_the_log(
    bot: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: object) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr("kaifs.cli.list_.run", broken)

    status = main(["list", "--store", str(bot.store)])

    err = capsys.readouterr().err
    assert status == 70
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    log = bot.store / "run" / "kaifs.log"
    assert str(log) in err
    assert 'RuntimeError("boom")' in log.read_text()


def test_a_second_verb_waits_for_the_first(bot: Shell) -> None:
    store = Store.open(bot.store)
    process = bot.start("list")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1.0)

    store.close()
    out, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"AGENT")


@pytest.mark.slow
def test_a_second_verb_gives_up_and_names_the_first(bot: Shell) -> None:
    store = Store.open(bot.store)
    try:
        line = expect(bot("list"), "E112")
    finally:
        store.close()

    assert str(os.getpid()) in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_full_disk_leaves_the_store_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    shell = Shell(small_disk / "store")
    shell.fine("init")
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"fits")
    shell.fine("import", "bot", source, "--as", "1.0.0")
    (source / "large").write_bytes(os.urandom(16 << 20))
    before = shell.fine("list", "bot")

    expect(shell("import", "bot", source, "--as", "2.0.0"), "E115")

    assert shell.fine("list", "bot") == before
    assert shell.fine("fsck") == "✅ Clean\n"
    (source / "large").unlink()
    shell.fine("import", "bot", source, "--as", "2.0.0")
