"""A name space on a store in a temporary folder, without a mount."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kaifs.base.clock import ManualClock
from kaifs.base.types import KernelNode, RootId
from kaifs.store.store import Store
from kaifs.tree.forest import Forest
from kaifs.tree.fsck import check
from kaifs.views.attributes import Attributes, Caller
from kaifs.views.namespace import MountScope, Namespace
from tests.views.plain_actions import PlainActions

USER = Caller(1000, 100)


@dataclass
class Site:
    """A store with the agent `bot`, its name space, and the verbs."""

    store: Store
    forest: Forest
    actions: PlainActions
    clock: ManualClock
    forgotten: list[RootId] = field(default_factory=list)

    def namespace(self, agent: str = "", view: str = "", *, read_only: bool = False) -> Namespace:
        return Namespace(
            self.forest,
            self.actions,
            MountScope(agent, view),
            read_only,
            self.forgotten.append,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    clock = ManualClock()
    store = Store.create(tmp_path / "store", clock=clock)
    forest = Forest(store)
    actions = PlainActions(forest)
    actions.make_agent_owned("bot", USER.uid, USER.gid)
    yield Site(store, forest, actions, clock)
    findings = check(store)
    store.close()
    assert findings == []


@pytest.fixture
def namespace(site: Site) -> Namespace:
    return site.namespace()


def walk(namespace: Namespace, path: str) -> Attributes:
    """Look *path* up from the root of the mount."""
    found = namespace.getattr(KernelNode(1))
    for name in path.split("/"):
        below = namespace.lookup(found.node, name.encode())
        assert below is not None, path
        found = below
    return found


def listing(namespace: Namespace, path: str) -> list[str]:
    """Return the names in *path*, without `.` and `..`."""
    node = walk(namespace, path).node if path else KernelNode(1)
    names = [entry.name.decode() for entry in namespace.readdir(node, 0)]
    assert names[:2] == [".", ".."]
    return names[2:]
