"""`user.kaifs.*`: what a view says about itself.

Answered on the top directory of a view when asked for by name, never listed
(so that rsync and diff see nothing), never set.
"""

from typing import Final

import msgspec

from kaifs.base.clock import format_time
from kaifs.base.errors import NoAttributeError
from kaifs.base.types import RootId
from kaifs.meta.records import RootKind
from kaifs.store.roots import Root
from kaifs.store.store import Store
from kaifs.tree.tested import shown_status

MARK_PREFIX: Final = b"user.kaifs."


class _Lineage(msgspec.Struct):
    """The one field of a version's record that a mark needs."""

    parent: str | None = None


def view_mark(store: Store, root_id: RootId, name: bytes) -> bytes:
    """Return the value of the mark *name* (`user.kaifs.…`) of the view that shows *root_id*.

    ============ ================ ============================== ========================
    mark         version          snapshot                       current
    ============ ================ ============================== ========================
    agent        the agent's name the same                       the same
    version      its label        label that it is based on      label that it is based on
    parent       parent's label   label that it is based on      label that it is based on
    hash         manifest hash    none                           none
    status       sealed           its status                     writable or superseded
    created      when             when                           when the agent was made
    ============ ================ ============================== ========================

    Raises:
        NoAttributeError: the view has no such mark.
    """
    marks = _marks(store, store.root(root_id)) if store.has_root(root_id) else {}
    value = marks.get(name.removeprefix(MARK_PREFIX).decode("ascii", "replace"))
    if not value:
        raise NoAttributeError
    return value.encode()


def _marks(store: Store, root: Root) -> dict[str, str]:
    agent = store.agent_by_id(root.agent_id)
    if agent is None:
        return {}
    marks = {"agent": agent.name}
    if root.kind is RootKind.VERSION:
        version = store.find_version(agent.agent_id, root.name)
        if version is not None:
            lineage = msgspec.json.decode(version.record, type=_Lineage)
            marks |= {
                "version": version.label,
                "parent": lineage.parent or "",
                "hash": version.hash,
                "status": "sealed",
                "created": format_time(version.created_ns),
            }
    elif root.kind is RootKind.SNAPSHOT:
        snapshot = store.find_snapshot(agent.agent_id, root.name)
        if snapshot is not None:
            marks |= {
                "version": snapshot.version,
                "parent": snapshot.version,
                "status": shown_status(store, snapshot),
                "created": format_time(snapshot.created_ns),
            }
    elif agent.head == root.root_id:
        marks |= {
            "version": agent.version,
            "parent": agent.version,
            "status": "writable",
            "created": format_time(agent.created_ns),
        }
    else:
        marks["status"] = "superseded"
    return marks
