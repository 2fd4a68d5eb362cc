"""Which remembered names a change of the registry makes wrong."""

from contextlib import suppress
from dataclasses import dataclass

from kaifs.base.errors import KaifsError
from kaifs.base.types import TOP_INO, KernelNode, RootId, kernel_node
from kaifs.meta.records import RootState
from kaifs.store.changes import (
    AgentAdded,
    AgentRemoved,
    Change,
    HeadSwitched,
    SnapshotAdded,
    SnapshotRemoved,
    SnapshotRenamed,
    VersionAdded,
    VersionQuarantined,
    VersionReleased,
    VersionRemoved,
    VersionSigned,
)
from kaifs.tree.forest import Forest
from kaifs.views.folders import CURRENT, QUARANTINE, meta_names, signature_name
from kaifs.views.namespace import Namespace
from kaifs.views.numbers import ROOT_NODE, Kind, virtual_node


@dataclass(frozen=True, slots=True)
class StaleName:
    """A name that the kernel may have remembered wrongly, and the listing that it is in."""

    parent: KernelNode
    name: bytes


def stale_names(namespace: Namespace, change: Change) -> list[StaleName]:
    """Return the names of a mount that *change* made wrong, absent ones included."""
    found: list[StaleName]
    match change:
        case AgentAdded() | AgentRemoved():
            if namespace.scope.agent:
                return []
            return [StaleName(ROOT_NODE, change.name.encode())]
        case VersionAdded() | VersionRemoved() | VersionQuarantined() | VersionReleased():
            versions = virtual_node(Kind.VERSIONS, change.agent_id)
            meta = virtual_node(Kind.META, change.agent_id)
            found = [StaleName(versions, change.label.encode())]
            found += [StaleName(meta, name) for name in meta_names(change.label)]
            if isinstance(change, VersionQuarantined | VersionReleased):
                agent = namespace.shown_node(virtual_node(Kind.AGENT, change.agent_id))
                quarantine = virtual_node(Kind.QUARANTINE, change.agent_id)
                found += [
                    StaleName(agent, QUARANTINE),
                    StaleName(quarantine, change.label.encode()),
                ]
            return found
        case VersionSigned():
            meta = virtual_node(Kind.META, change.agent_id)
            return [StaleName(meta, signature_name(change.label))]
        case SnapshotAdded() | SnapshotRemoved():
            snapshots = virtual_node(Kind.SNAPSHOTS, change.agent_id)
            return [StaleName(snapshots, change.name.encode())]
        case SnapshotRenamed():
            snapshots = virtual_node(Kind.SNAPSHOTS, change.agent_id)
            return [StaleName(snapshots, name.encode()) for name in (change.old, change.new)]
        case HeadSwitched():
            if namespace.scope.view:
                return _inside_switched_view(namespace, change.new, [change.old])
            folder = virtual_node(Kind.AGENT, change.agent_id)
            return [StaleName(namespace.shown_node(folder), CURRENT)]


def virtual_folders(namespace: Namespace) -> list[KernelNode]:
    """Return the folders of a mount whose listings changes of the registry can make wrong."""
    if namespace.scope.view:
        return [ROOT_NODE]
    kinds = (Kind.AGENT, Kind.VERSIONS, Kind.SNAPSHOTS, Kind.META, Kind.QUARANTINE, Kind.CURRENT)
    found = [] if namespace.scope.agent else [ROOT_NODE]
    for agent in namespace.forest.store.agents():
        if namespace.scope.agent in ("", agent.name):
            nodes = (virtual_node(kind, agent.agent_id) for kind in kinds)
            found += [namespace.shown_node(node) for node in nodes]
    return found


def switched_names(namespace: Namespace) -> list[StaleName]:
    """Return the names that a switch can make wrong where the kernel cannot expire all names."""
    agents = [
        agent
        for agent in namespace.forest.store.agents()
        if namespace.scope.agent in ("", agent.name)
    ]
    if namespace.scope.view:
        return [
            stale
            for agent in agents
            if (former := _former_heads(namespace.forest, agent.agent_id))
            for stale in _inside_switched_view(namespace, agent.head, former)
        ]
    folders = (virtual_node(Kind.AGENT, agent.agent_id) for agent in agents)
    return [StaleName(namespace.shown_node(folder), CURRENT) for folder in folders]


def quarantined_roots(namespace: Namespace) -> list[RootId]:
    """Return the roots of which nothing must be read any more."""
    store = namespace.forest.store
    return [
        RootId(record.root)
        for agent in store.agents()
        for record in store.quarantined(agent.agent_id)
    ]


def _inside_switched_view(
    namespace: Namespace, head: RootId, former: list[RootId]
) -> list[StaleName]:
    """Return all names in the top directory of a mount whose root is the switched view itself.

    Its node cannot be another one, so what is below it is.
    """
    try:
        if namespace.shown_node(kernel_node(head, TOP_INO)) != ROOT_NODE:
            return []
    except KaifsError:
        return []
    names = set[bytes]().union(*(_top_names(namespace.forest, root) for root in [head, *former]))
    return [StaleName(ROOT_NODE, name) for name in sorted(names)]


def _former_heads(forest: Forest, agent_id: int) -> list[RootId]:
    """Return the trees that current showed and of which the kernel may have names.

    None of them is dropped before the kernel has forgotten those.
    """
    found = []
    for root_id in forest.store.unfinished_roots():
        with suppress(KaifsError):
            root = forest.store.root(root_id)
            if root.agent_id == agent_id and (
                root.state is RootState.SUPERSEDED or forest.has_due_backup(root)
            ):
                found.append(root_id)
    return found


def _top_names(forest: Forest, root: RootId) -> set[bytes]:
    """Return the names in the top directory, of a damaged one those that can be read."""
    names = set[bytes]()
    with suppress(KaifsError):
        if forest.store.has_root(root):
            names.update(entry.name for entry in forest.tree(root).entries(TOP_INO))
    return names
