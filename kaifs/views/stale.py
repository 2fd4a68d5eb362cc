"""Which remembered names a change of the registry makes wrong."""

from dataclasses import dataclass

from kaifs.base.errors import KaifsError
from kaifs.base.types import TOP_INO, KernelNode, RootId, kernel_node
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
                return _inside_switched_view(namespace, change)
            folder = virtual_node(Kind.AGENT, change.agent_id)
            return [StaleName(namespace.shown_node(folder), CURRENT)]


def _inside_switched_view(namespace: Namespace, change: HeadSwitched) -> list[StaleName]:
    """Return all names in the top directory of a mount whose root is the switched view itself.

    Its node cannot be another one, so what is below it is.
    """
    try:
        if namespace.shown_node(kernel_node(change.new, TOP_INO)) != ROOT_NODE:
            return []
    except KaifsError:
        return []
    names = _top_names(namespace.forest, change.old) | _top_names(namespace.forest, change.new)
    return [StaleName(ROOT_NODE, name) for name in sorted(names)]


def _top_names(forest: Forest, root: RootId) -> set[bytes]:
    if not forest.store.has_root(root):
        return set()
    return {entry.name for entry in forest.tree(root).entries(TOP_INO)}
