"""POSIX ACLs are enforced, inherited and kept in step with modes, as on ext4."""

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.fuse.abilities import can
from tests.fuse.conftest import MountedStore
from tests.fuse.system_calls import STRANGER, as_stranger

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def shell(place: Path, script: str) -> str:
    """Run *script* in *place*; return its output, and the errors that it counted on."""
    done = subprocess.run(
        ["sh", "-ec", f"umask 022\n{script}"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A folder outside of any mount that everybody may enter."""
    place = tmp_path / "reference"
    place.mkdir(0o755)
    return place


SHOW = "getfacl -cp --absolute-names * 2>&1; stat -c '%n %A' *"
SCRIPTS = {
    "a user": f"touch f; setfacl -m u:1000:rw f; {SHOW}",
    "a mask": f"touch f; setfacl -m u:1000:rwx,g:7:rx,m::r f; {SHOW}",
    "chmod after": f"touch f; setfacl -m u:1000:rwx f; chmod 2640 f; {SHOW}",
    "chmod of a mode": f"touch f; chmod 604 f; setfacl -m o::- f; {SHOW}",
    "removed": f"touch f; setfacl -m u:1000:rwx,g::rw f; setfacl -x u:1000 f; {SHOW}",
    "all removed": f"touch f; setfacl -m u:1000:rwx,g::rw f; setfacl -b f; {SHOW}",
    "default removed": f"mkdir d; setfacl -d -m u:1000:rwx d; setfacl -k d; {SHOW}",
    "copied": f"touch f; setfacl -m u:1000:r f; cp -p f g; cp -a f h; {SHOW}",
    "nonsense": f"touch f; setfacl -d -m u:1000:r f 2>&1 || echo refused; {SHOW}",
    "a link": f"touch f; ln -s f l; setfacl -m u:1000:r l; {SHOW}",
}
INHERITED = {
    "by files": f"mkdir d; setfacl -d -m u:1000:rwx d; cd d; touch f; mkfifo p; mknod n c 1 3; {SHOW}",
    "by directories": f"mkdir d; setfacl -d -m u:1000:rwx,o::- d; cd d; mkdir -p s/t; {SHOW}; cd s; {SHOW}",
    "only a mode": f"mkdir d; setfacl -d -m g::rw,o::r d; cd d; touch f; mkdir s; {SHOW}",
    "a wide umask": f"mkdir d; setfacl -d -m u:1000:rwx d; umask 077; cd d; touch f; mkdir s; {SHOW}",
    "a symbolic link": f"mkdir d; setfacl -d -m u:1000:rwx d; cd d; touch f; ln -s f l; {SHOW}",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_lists_and_modes_are_in_step_as_on_ext4(folder: Path, reference: Path, script: str) -> None:
    assert shell(folder, script) == shell(reference, script)


@pytest.mark.parametrize("script", INHERITED.values(), ids=INHERITED.keys())
def test_default_lists_are_inherited_as_on_ext4(
    transport: str, folder: Path, reference: Path, script: str
) -> None:
    here, there = shell(folder, script), shell(reference, script)

    if can(transport, "default lists replace the umask"):
        assert here == there
    else:
        # The same entries; what the umask takes off is missing.
        assert [line.split(":")[:2] for line in here.splitlines() if ":" in line] == [
            line.split(":")[:2] for line in there.splitlines() if ":" in line
        ]


def read(name: str) -> None:
    os.close(os.open(name, os.O_RDONLY))


def write(name: str) -> None:
    os.close(os.open(name, os.O_WRONLY))


def test_the_kernel_enforces_lists(folder: Path, reference: Path) -> None:
    for place in (folder, reference):
        shell(
            place,
            f"""
            for f in none read both masked denied; do echo x > $f; chmod 640 $f; done
            setfacl -m u:{STRANGER}:r read
            setfacl -m u:{STRANGER}:rw both
            setfacl -m u:{STRANGER}:rw,m::r masked
            chmod 666 denied; setfacl -m u:{STRANGER}:- denied
            """,
        )
        results = {
            name: (
                as_stranger(place, lambda name=name: read(name)),  # type: ignore[misc]
                as_stranger(place, lambda name=name: write(name)),  # type: ignore[misc]
            )
            for name in ("none", "read", "both", "masked", "denied")
        }
        denied = errno.EACCES
        assert results == {
            "none": (denied, denied),
            "read": (0, denied),
            "both": (0, 0),
            "masked": (0, denied),
            "denied": (denied, denied),
        }


def test_a_change_of_a_list_holds_at_once(folder: Path) -> None:
    """The kernel remembers lists; a chmod changes the mask behind them."""
    (folder / "file").write_bytes(b"x")
    (folder / "file").chmod(0o600)
    assert as_stranger(folder, lambda: read("file")) == errno.EACCES

    shell(folder, f"setfacl -m u:{STRANGER}:r file")
    assert as_stranger(folder, lambda: read("file")) == 0

    (folder / "file").chmod(0o600)
    assert as_stranger(folder, lambda: read("file")) == errno.EACCES
    assert as_stranger(folder, lambda: os.setxattr("file", "user.x", b"")) == errno.EACCES


def test_only_the_owner_changes_a_list(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "own").touch()
    os.chown(folder / "own", STRANGER, 0)
    (folder / "own").chmod(0o2755)

    def change(name: str) -> None:
        done = subprocess.run(["setfacl", "-m", "u:1000:rwx", name], check=False)
        if done.returncode:
            raise OSError(errno.EPERM, "refused")

    assert as_stranger(folder, lambda: change("file")) == errno.EPERM
    assert as_stranger(folder, lambda: change("own")) == 0


def test_a_list_by_who_is_not_in_the_group_takes_set_gid_away(
    transport: str, folder: Path, reference: Path
) -> None:
    for place in (folder, reference):
        (place / "own").touch()
        os.chown(place / "own", STRANGER, 0)
        (place / "own").chmod(0o2755)

        def change() -> None:
            subprocess.run(["setfacl", "-m", "u:1000:rwx", "own"], check=True)

        assert as_stranger(place, change) == 0
    has_bit = bool((folder / "own").stat().st_mode & stat.S_ISGID)
    assert has_bit is not can(transport, "lists take set-gid away")
    assert not (reference / "own").stat().st_mode & stat.S_ISGID


def test_lists_are_in_versions_and_survive(shared: MountedStore, folder: Path) -> None:
    (folder / "file").touch()
    shell(folder, f"setfacl -m u:{STRANGER}:r,u:1000:rw file; chmod o= file")

    version = shared.seal(f"6.{os.getpid()}.0")

    assert f"user:{STRANGER}:r--" in shell(version / folder.name, "getfacl -cpn file")
    assert as_stranger(version / folder.name, lambda: read("file")) == 0
    assert as_stranger(version / folder.name, lambda: write("file")) == errno.EACCES
