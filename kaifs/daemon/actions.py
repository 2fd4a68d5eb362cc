"""What requests of the kernel change outside trees: agents and snapshots.

The kernel has checked modes already; the verbs check again who may do what. A
verb that is asked for here by a mkdir runs to its end at once, which its few
steps allow: the caller is a request handler, which does not wait.

What verbs need is loaded when the first one is run, or by `load_verbs`: a mount is there without.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from kaifs.base.errors import AgentExistsError, DirectoryNotEmptyError
from kaifs.meta.records import RootState
from kaifs.service import context as service
from kaifs.service.reference import SNAPSHOTS, resolve_snapshot
from kaifs.service.verbs import VERBS
from kaifs.store.registry import check_agent_name
from kaifs.views.attributes import Caller

log = logging.getLogger(__name__)

_LOADED: Final = ("embedded", "snapshot", "discard", "seal", "rollback", "list_", "status", "show")
"""Modules of verbs that many will ask for. Others are loaded when they are asked for."""


def load_verbs() -> None:
    """Load the verbs that are likely to be asked for. In a worker thread: takes 100 ms."""
    for module in _LOADED:
        import_module(f"kaifs.service.{module}")


class StoreActions:
    """Changes of the registry on behalf of the mount's users."""

    def __init__(self, context: Callable[[service.Caller], service.Context]) -> None:
        self._context = context

    def make_agent(self, name: str, caller: Caller) -> None:
        """Make an agent with an empty current, owned by *caller*.

        Raises:
            BadNameError, AgentExistsError: The name cannot be had.
        """
        check_agent_name(name)
        context = self._context_of(caller)
        if context.store.find_agent(name) is not None:
            raise AgentExistsError(name)
        tree = context.forest.new_tree(0o755, caller.uid, caller.gid)
        context.store.set_root_state(tree.root, RootState.WRITABLE)
        context.store.add_agent(name, caller.uid, caller.gid, tree.root)
        log.info("agent_made", extra={"agent": name, "uid": caller.uid})

    def remove_agent(self, name: str, caller: Caller) -> None:
        """Remove an agent that has neither versions nor snapshots.

        Raises:
            DirectoryNotEmptyError: It has.
        """
        context = self._context_of(caller)
        agent = context.store.get_agent(name)
        context.require_owner(agent)
        store = context.store
        if store.labels(agent.agent_id) or store.snapshots(agent.agent_id):
            raise DirectoryNotEmptyError(name)
        store.remove_agent(name)
        log.info("agent_removed", extra={"agent": name, "uid": caller.uid})

    def make_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        """Make a writable snapshot of the agent's current, owned by *caller*."""
        self._run("snapshot", {"reference": agent, "name": name}, caller)

    def discard_snapshot(self, agent: str, name: str, caller: Caller) -> None:
        """Discard a snapshot with all that is in it."""
        self._run("discard", {"reference": f"{agent}/{SNAPSHOTS}/{name}"}, caller)

    def rename_snapshot(self, agent: str, name: str, new_name: str, caller: Caller) -> None:
        """Give a snapshot another name."""
        context = self._context_of(caller)
        found, snapshot = resolve_snapshot(context.store, f"{agent}/{SNAPSHOTS}/{name}")
        if caller.uid != snapshot.uid:
            context.require_owner(found)
        context.store.check_new_snapshot(found, new_name)
        context.store.rename_snapshot(snapshot, new_name)
        log.info("snapshot_renamed", extra={"agent": agent, "old": name, "new": new_name})

    def _run(self, verb: str, params: dict[str, Any], caller: Caller) -> None:
        from kaifs.service.embedded import run

        found = VERBS[verb]
        run(self._context_of(caller), found, found.params(**params))
        log.info("done", extra={"verb": verb, "uid": caller.uid})

    def _context_of(self, caller: Caller) -> service.Context:
        return self._context(service.Caller(caller.uid, caller.gid))
