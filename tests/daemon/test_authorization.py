"""Who may do what: every verb, embedded and over the socket, and the mount.

Store owner and root may do all, an agent's owner that agent's verbs, others read
what modes let them read. The rest is E105, or EACCES on the mount.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kaifs.api.access import call
from kaifs.control.client import shutdown
from kaifs.daemon import lifecycle
from kaifs.meta.records import RootState
from kaifs.service.host_source import HostSource
from kaifs.service.key import Generate
from kaifs.service.steps import CHUNK_SIZE, Data, End, Entry, Item
from kaifs.service.suite import TestCase, TestSuite
from kaifs.service.suite_runner import SuiteRun, TestResult
from kaifs.service.testing import report_items
from kaifs.service.verbs import VERBS
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from tests.daemon.site import check_store
from tests.daemon.users import (
    AGENT_OWNER,
    DONE,
    EVERYBODY,
    MEMBER,
    ROOT,
    STORE_OWNER,
    STRANGER,
    User,
    outcome_for,
    public_folder,
)

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: becomes other users"),
]

GROUP = MEMBER.groups[0]
SUITE = TestSuite(test=(TestCase(name="none", command="true"),))
PASSED = SuiteRun(
    result=TestResult(success=True, passed_tests=1, total_tests=1), duration_s=0.1, log=b""
)

OWNERS = {AGENT_OWNER, STORE_OWNER, ROOT}
KEEPERS = {STORE_OWNER, ROOT}
READERS = {MEMBER, *OWNERS}
ANYBODY = set(EVERYBODY)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to call one verb; `{n}` in its parameters differs from user to user."""

    verb: str
    allowed: set[User]
    params: dict[str, Any] = field(default_factory=dict)
    source: Callable[["Ground"], Iterator[Item]] | None = None

    def __str__(self) -> str:
        words = [self.verb, *(str(value) for value in self.params.values())]
        return " ".join(words)

    def act(self, ground: "Ground", number: int) -> Any:
        """Do it; *number* tells users apart."""
        params = VERBS[self.verb].params(**_filled(self.params, number))
        source = None if self.source is None else self.source(ground)
        return call(ground.store, self.verb, params, source=source, on_output=lambda _: None)


def _filled(params: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        name: value.replace("{n}", str(number)) if isinstance(value, str) else value
        for name, value in params.items()
    }


@dataclass(frozen=True, slots=True)
class Ground:
    """A store of STORE_OWNER's.

    `theirs` belongs to AGENT_OWNER: 1.0.0 is open, 1.1.0 has a file that only its
    owner may read. `closed` is open to GROUP alone. `root` is root's.
    """

    folder: Path
    is_mounted: bool

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def items(self) -> Iterator[Item]:
        """Yield the source's items."""
        return iter(HostSource(self.source, self.store))

    def report(self) -> Iterator[Item]:
        """Yield a report of tests that passed."""
        return report_items(PASSED)

    def state(self) -> bytes:
        """Return what root is told of everything, to compare before with after."""
        told = [call(self.store, "list", VERBS["list"].params())]
        for agent in ("theirs", "closed", "root"):
            told.append(call(self.store, "list", VERBS["list"].params(agent=agent)))
            told.append(call(self.store, "policy", VERBS["policy"].params(agent=agent)))
        snapshots = call(self.store, "snapshots", VERBS["snapshots"].params()).snapshots
        told += [msgspec.structs.replace(one, age_seconds=0) for one in snapshots]
        return msgspec.json.encode(told)


CASES = [
    # What anybody may ask, and what modes close.
    Case("status", ANYBODY),
    Case("list", ANYBODY),
    Case("list", ANYBODY, {"agent": "theirs"}),
    Case("list", READERS - {AGENT_OWNER}, {"agent": "closed"}),
    Case("show", ANYBODY, {"reference": "theirs@1.1.0"}),
    Case("show", ANYBODY, {"reference": "theirs@1.0.0", "has_files": True}),
    Case("show", OWNERS, {"reference": "theirs@1.1.0", "has_files": True}),
    Case("show", READERS - {AGENT_OWNER}, {"reference": "closed@1.0.0"}),
    Case("show", ANYBODY, {"reference": "theirs/@snapshots/kept", "has_log": True}),
    Case("manifest", ANYBODY, {"reference": "theirs@1.0.0"}),
    Case("manifest", OWNERS, {"reference": "theirs@1.1.0"}),
    Case("manifest", READERS - {AGENT_OWNER}, {"reference": "closed"}),
    Case("diff", ANYBODY, {"old": "theirs@1.0.0", "new": "theirs@1.0.0"}),
    Case("diff", OWNERS, {"old": "theirs@1.0.0", "new": "theirs@1.1.0"}),
    Case("export", ANYBODY, {"reference": "theirs@1.0.0"}),
    Case("export", OWNERS, {"reference": "theirs@1.1.0"}),
    Case("export", READERS - {AGENT_OWNER}, {"reference": "closed@1.0.0"}),
    Case("log", ANYBODY, {"agent": "theirs"}),
    Case("log", READERS - {AGENT_OWNER}, {"agent": "closed"}),
    Case("log", OWNERS, {"agent": "theirs", "path": b"secret"}),
    Case("snapshots", ANYBODY),
    Case("snapshots", READERS - {AGENT_OWNER}, {"agent": "closed"}),
    Case("policy", ANYBODY, {"agent": "theirs"}),
    Case("policy", READERS - {AGENT_OWNER}, {"agent": "closed"}),
    Case("key", ANYBODY),
    Case("verify", ANYBODY, {"references": ("theirs@1.0.0",)}),
    Case("verify", OWNERS, {"references": ("theirs@1.1.0",)}),
    Case("verify", READERS - {AGENT_OWNER}, {"references": ("closed@1.0.0",)}),
    Case("verify", ANYBODY),
    Case("quarantine-list", ANYBODY),
    Case("quarantine-list", READERS - {AGENT_OWNER}, {"agent": "closed"}),
    # What an agent's owner may.
    Case("seal", OWNERS, {"agent": "theirs", "label": "2.{n}.0"}),
    Case("seal", KEEPERS, {"agent": "root", "label": "2.{n}.0"}),
    Case("seal", OWNERS, {"agent": "theirs", "label": "3.{n}.0", "source": "root@1.0.0"}),
    Case("seal", KEEPERS, {"agent": "theirs", "label": "4.{n}.0", "source": "closed"}),
    Case("rollback", OWNERS, {"agent": "theirs", "version": "1.0.0"}),
    Case("rollback", KEEPERS, {"agent": "root", "version": "1.0.0"}),
    Case("snapshot", OWNERS, {"reference": "theirs", "name": "new{n}"}),
    Case("snapshot", KEEPERS, {"reference": "root@1.0.0", "name": "new{n}"}),
    Case("discard", OWNERS, {"reference": "theirs/@snapshots/gone{n}"}),
    Case("rebase", OWNERS, {"reference": "theirs/@snapshots/based{n}"}),
    Case("test", OWNERS, {"reference": "theirs/@snapshots/tested", "suite": SUITE}, Ground.report),
    Case("commit", OWNERS, {"reference": "theirs/@snapshots/passed{n}", "label": "5.{n}.0"}),
    Case("remove", OWNERS, {"reference": "theirs@0.{n}.0"}),
    Case("remove", KEEPERS, {"reference": "root@0.{n}.0"}),
    Case("import", OWNERS, {"agent": "theirs", "label": "6.{n}.0"}, Ground.items),
    Case("policy", OWNERS, {"agent": "theirs", "on_damage": "keep"}),
    Case("prune", OWNERS, {"agent": "theirs", "is_dry_run": True}),
    Case("sign", OWNERS, {"reference": "theirs@1.0.0"}),
    Case("quarantine-add", OWNERS, {"reference": "theirs@0.{n}.1", "reason": "odd"}),
    Case("quarantine-release", OWNERS, {"reference": "theirs@0.{n}.2"}),
    # What the store's owner may.
    Case("import", KEEPERS, {"agent": "made{n}", "label": "1.0.0"}, Ground.items),
    Case("key", KEEPERS, {"action": Generate()}),
    Case("gc", KEEPERS),
    Case("fsck", KEEPERS),
    Case("scrub", KEEPERS),
]
"""Whatever needs something to be there finds it for each user: see `_fill`."""
ALLOWED_ERRORS = {"key": "E17", "sign": "E17", "prune": "E18"}
"""Beginning of a code that is no question of rights: there is a key already, or no rule."""


@pytest.fixture(scope="module", params=["embedded", "socket"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A store that everybody gets to, with a daemon and without."""
    is_mounted = request.param == "socket"
    with public_folder("rights") as folder:
        found = Ground(folder, is_mounted)
        _fill(found)
        if is_mounted:
            lifecycle.mount(found.store, found.mountpoint, [])
        yield found
        if is_mounted:
            lifecycle.umount(found.mountpoint)
        check_store(found.store)


def _fill(ground: Ground) -> None:
    ground.mountpoint.mkdir()
    ground.source.mkdir()
    (ground.source / "a.txt").write_text("open to all\n")
    _make_agents(ground)
    for agent in ("theirs", "closed", "root"):
        _take(ground, agent, "1.0.0")
    for number in range(len(EVERYBODY)):
        for agent, patch in (("theirs", 0), ("theirs", 1), ("theirs", 2), ("root", 0)):
            label = f"0.{number}.{patch}"
            params = VERBS["seal"].params(
                agent=agent, label=label, source=f"{agent}@1.0.0", moves_current=False
            )
            call(ground.store, "seal", params)
        aside = VERBS["quarantine-add"].params(reference=f"theirs@0.{number}.2", reason="odd")
        # In another process: it is logged as the error that it stands for.
        said = outcome_for(ROOT, partial(call, ground.store, "quarantine-add", aside))
        assert said == DONE
    for name in ("kept", "tested", *_numbered("gone"), *_numbered("based"), *_numbered("passed")):
        params = VERBS["snapshot"].params(reference="theirs", name=name)
        call(ground.store, "snapshot", params)
    for name in _numbered("passed"):
        tested = VERBS["test"].params(reference=f"theirs/@snapshots/{name}", suite=SUITE)
        call(ground.store, "test", tested, source=ground.report())
    secret = ground.source / "secret"
    secret.write_text("closed to others\n")
    secret.chmod(0o600)
    _take(ground, "theirs", "1.1.0")
    secret.unlink()
    for folder, folders, files in os.walk(ground.store):
        for name in ("", *folders, *files):
            os.chown(os.path.join(folder, name), STORE_OWNER.uid, STORE_OWNER.uid)
    # As docs/OPERATIONS.md says for a store that others use.
    ground.store.chmod(0o711)
    (ground.store / "run").chmod(0o711)


def _make_agents(ground: Ground) -> None:
    store = Store.create(ground.store)
    forest = Forest(store)
    for name, uid, gid, mode in (
        ("theirs", AGENT_OWNER.uid, AGENT_OWNER.uid, 0o755),
        ("closed", 0, GROUP, 0o750),
        ("root", 0, 0, 0o755),
    ):
        tree = forest.new_tree(0o755, uid, gid)
        store.set_root_state(tree.root, RootState.WRITABLE)
        store.add_agent(name, uid, gid, tree.root, mode)
    store.commit()
    store.close()


def _take(ground: Ground, agent: str, label: str) -> None:
    owner = AGENT_OWNER.uid if agent == "theirs" else 0
    for path in (ground.source, *ground.source.iterdir()):
        os.chown(path, owner, owner)
    params = VERBS["import"].params(agent=agent, label=label)
    call(ground.store, "import", params, source=ground.items())


def _numbered(name: str) -> list[str]:
    return [f"{name}{number}" for number in range(len(EVERYBODY))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_verb_does_what_its_caller_may_and_nothing_else(ground: Ground, case: Case) -> None:
    """Without a daemon only those who may open the store's files get anywhere."""
    allowed = case.allowed if ground.is_mounted else case.allowed & KEEPERS
    # Without a daemon who is refused has not even opened the store.
    before = ground.state() if ground.is_mounted else b""
    said = {user: _try(ground, case, user) for user in EVERYBODY if user not in allowed}

    assert said == dict.fromkeys(said, "E105")
    assert (ground.state() if ground.is_mounted else b"") == before
    for user in allowed:
        told = _try(ground, case, user)
        assert told == DONE or told.startswith(ALLOWED_ERRORS.get(case.verb, DONE)), user


def _try(ground: Ground, case: Case, user: User) -> str:
    return outcome_for(user, lambda: case.act(ground, EVERYBODY.index(user)))


def test_every_verb_is_in_the_matrix() -> None:
    assert {case.verb for case in CASES} >= VERBS.keys() - ELSEWHERE


ELSEWHERE = {"repair", "complete"}
"""Checked where they are tested: one works on a closed store, one tells nothing but names."""


# --- the socket ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mounted() -> Iterator[Ground]:
    """The same, mounted."""
    with public_folder("rights-mount") as folder:
        found = Ground(folder, is_mounted=True)
        _fill(found)
        lifecycle.mount(found.store, found.mountpoint, [])
        yield found
        lifecycle.umount(found.mountpoint)


@pytest.mark.parametrize("user", [STRANGER, MEMBER, AGENT_OWNER])
def test_only_the_store_s_owner_ends_the_daemon(mounted: Ground, user: User) -> None:
    assert outcome_for(user, lambda: shutdown(mounted.store, lazy=True)) == "E105"

    assert call(mounted.store, "list", VERBS["list"].params()).agents


@pytest.mark.parametrize(
    ("user", "expected"),
    [(STRANGER, "E105"), (MEMBER, "E105"), (AGENT_OWNER, DONE), (STORE_OWNER, DONE), (ROOT, DONE)],
)
def test_a_snapshot_is_attached_by_its_owner_alone(
    mounted: Ground, user: User, expected: str
) -> None:
    from kaifs.control.client import attach
    from kaifs.control.messages import AttachParams

    params = AttachParams(reference="theirs/@snapshots/kept")

    assert outcome_for(user, lambda: attach(mounted.store, params).close()) == expected


@pytest.mark.parametrize("user", [STRANGER, AGENT_OWNER])
def test_a_closed_store_is_e105_for_strangers(user: User) -> None:
    """Also where not even its folder can be looked into."""
    with public_folder("rights-closed") as folder:
        Store.create(folder / "store").close()

        def act() -> None:
            call(folder / "store", "list", VERBS["list"].params())

        assert outcome_for(user, act) == "E105"


def sent(mode: int, *, uid: int = 0, rdev: int = 0, name: bytes = b"f") -> Iterator[Item]:
    """Yield what a client of the socket can send, whatever it could make itself."""
    top = Entry(b"", stat.S_IFDIR | 0o755, uid, uid, 0, 0, 0, 0)
    yield top
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    xattrs = () if stat.S_ISCHR(mode) else ((b"security.capability", capability),)
    yield Entry(name, mode, uid, uid, 4, rdev, 0, 0, xattrs)
    if stat.S_ISREG(mode):
        yield Data(0, b"evil")
    yield End()


def test_an_agent_s_owner_imports_nothing_that_they_could_not_make(mounted: Ground) -> None:
    """No file of somebody else's, no set-id, no capability, no device."""
    params = VERBS["import"].params(agent="theirs", label="7.0.0")

    def bring(items: Iterator[Item]) -> str:
        return outcome_for(AGENT_OWNER, lambda: call(mounted.store, "import", params, source=items))

    assert bring(sent(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))) == "E105"
    assert bring(sent(stat.S_IFREG | 0o6755)) == DONE

    status = (mounted.mountpoint / "theirs/@versions/7.0.0/f").stat()
    assert (status.st_uid, status.st_gid) == (AGENT_OWNER.uid, AGENT_OWNER.uid)
    assert stat.S_IMODE(status.st_mode) == 0o755
    assert not os.listxattr(mounted.mountpoint / "theirs/@versions/7.0.0/f")


def test_an_item_larger_than_allowed_is_refused(mounted: Ground) -> None:
    params = VERBS["import"].params(agent="theirs", label="7.1.0")

    def items() -> Iterator[Item]:
        yield Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, 0)
        yield Entry(b"f", stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, 0)
        yield Data(0, bytes(CHUNK_SIZE + 1))

    said = outcome_for(AGENT_OWNER, lambda: call(mounted.store, "import", params, source=items()))

    assert said.startswith("E1")


# --- the mount ----------------------------------------------------------------------------------


def _on_mount() -> dict[str, tuple[Callable[[Path], object], dict[User, str]]]:
    """Return what is done at a path, and what each user is told who is not allowed to."""
    closed_to = "EACCES"
    others = {STRANGER: closed_to, MEMBER: closed_to}
    all_but_root = {**others, AGENT_OWNER: closed_to}
    modes = {**others, STORE_OWNER: closed_to}
    sealed = dict.fromkeys((AGENT_OWNER, ROOT), "EROFS") | modes
    fixed = dict.fromkeys((AGENT_OWNER, ROOT), "EPERM") | modes
    closed = dict.fromkeys((STRANGER, AGENT_OWNER, STORE_OWNER), closed_to)
    return {
        "made{n}": (os.mkdir, all_but_root),
        "theirs/@snapshots/mine{n}": (os.mkdir, modes),
        "theirs/@snapshots/gone{n}": (os.rmdir, modes),
        "theirs/@snapshots/based{n}": (
            lambda path: path.rename(path.with_name("re" + path.name)),
            modes,
        ),
        "theirs/current/new{n}": (Path.touch, modes),
        "theirs/current/a.txt": (lambda path: os.setxattr(path, "user.x", b"x"), modes),
        "theirs/current": (lambda path: os.setxattr(path, "user.kaifs.version", b"x"), fixed),
        "theirs/@versions/1.0.0/a.txt": (lambda path: os.open(path, os.O_WRONLY), sealed),
        "theirs/@versions/1.0.0/new": (Path.touch, sealed),
        "theirs/@versions/1.0.0/./a.txt": (Path.read_bytes, {}),
        "theirs/@versions/1.1.0/secret": (Path.read_bytes, modes),
        "theirs/@meta/1.0.0.json": (Path.read_bytes, {}),
        "theirs/@meta/1.0.0.mtree": (Path.read_bytes, modes),
        "theirs": (lambda path: os.chmod(path, 0o777), dict.fromkeys(EVERYBODY, "EPERM")),
        "closed": (os.listdir, closed),
        "closed/current/a.txt": (Path.read_bytes, closed),
    }


_ON_MOUNT = _on_mount()


@pytest.mark.parametrize("place", _ON_MOUNT)
def test_the_mount_says_the_same_as_the_verbs(mounted: Ground, place: str) -> None:
    """Modes rule here: a store's owner who is not root gets what they would get on ext4."""
    act, refused = _ON_MOUNT[place]
    for number, user in enumerate(EVERYBODY):
        path = mounted.mountpoint / place.replace("{n}", str(number))

        said = outcome_for(user, partial(act, path))

        assert (user, said) == (user, refused.get(user, DONE))


def test_an_agent_is_removed_by_its_owner_alone(mounted: Ground) -> None:
    agent = mounted.mountpoint / "empty"
    agent.mkdir()
    for user in (STRANGER, MEMBER, AGENT_OWNER):
        assert outcome_for(user, lambda: os.rmdir(agent)) == "EACCES"
    assert outcome_for(ROOT, lambda: os.rmdir(agent)) == DONE
