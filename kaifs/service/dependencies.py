"""What a version needs: read from its tree when it is sealed, checked when it is verified.

Other agents are needed in a range of versions. A dependency is served by the
newest version that its range has; what that version needs counts too. So the
versions that a version needs form a graph, which must have every agent, a
version in every range, and no cycle: no agent may need itself, however far
around. Packages cannot be looked up here, so only what is written counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from kaifs.base.errors import AccessDeniedError, AgentManifestError, StoreDamagedError
from kaifs.meta.records import AgentRecord, VersionRecord
from kaifs.service.agent_manifest import AgentManifest, read_agent_manifest
from kaifs.service.context import Context
from kaifs.service.findings import Finding, Findings
from kaifs.service.packages import read_packages
from kaifs.service.ranges import parse_range
from kaifs.service.record import VersionDependency, decode_record
from kaifs.tree.tree import Tree

AGENT: Final = "agent"
"""The kind of a dependency on another agent."""
_SHOWN: Final = 5
"""Labels that are told where none fits, and steps of a long chain."""

_finding: Final = partial(Finding, "dependency")


def find_dependencies(tree: Tree, manifest: AgentManifest) -> tuple[VersionDependency, ...]:
    """Return what *tree* needs, sorted by kind, name and range."""
    found = read_packages(tree).dependencies
    for name, wanted in manifest.dependencies.items():
        found.add(VersionDependency(name=name, range=wanted, kind=AGENT))
    return tuple(sorted(found, key=lambda one: (one.kind, one.name, one.range)))


def check_dependencies(context: Context, agent: AgentRecord, version: VersionRecord) -> Findings:
    """Return what is wrong with what *version* of *agent* needs.

    Raises:
        StoreDamagedError: the version's record cannot be read.
    """
    check = _Check(context)
    check.walk(_Needy(agent.name, version.label), decode_record(version.record).dependencies)
    tree = context.forest.tree(version.root)
    try:
        read_agent_manifest(tree)
    except AgentManifestError as error:
        # Only what was sealed as a backup can have one.
        check.warnings.append(_finding(error.subject))
    check.warnings += map(_finding, read_packages(tree).warnings)
    return Findings(tuple(check.errors), tuple(check.warnings))


@dataclass(frozen=True, slots=True)
class _Needy:
    """A version that needs others."""

    agent: str
    label: str

    def __str__(self) -> str:
        return f"{self.agent}@{self.label}"


@dataclass(slots=True)
class _Step:
    """One version on the way from the one that is checked, and what it needs that is still to see."""

    needy: _Needy
    pending: list[VersionDependency]


class _Check:
    """Follows what versions need, depth first, each version once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.errors: list[Finding] = []
        self.warnings: list[Finding] = []

    def walk(self, needy: _Needy, needs: tuple[VersionDependency, ...]) -> None:
        """Check what *needy* needs, and what is needed for that."""
        seen = {needy}
        # A stack and no recursion: a chain may be as long as there are agents.
        chain = [_Step(needy, _agents(needs))]
        while chain:
            if not chain[-1].pending:
                chain.pop()
                continue
            dependency = chain[-1].pending.pop(0)
            if any(step.needy.agent == dependency.name for step in chain):
                self._error(chain, f"{dependency.name} again: a cycle")
                continue
            version = self._serve(chain, dependency)
            if version is None:
                continue
            served = _Needy(dependency.name, version.label)
            if served in seen:
                continue
            seen.add(served)
            try:
                below = decode_record(version.record).dependencies
            except StoreDamagedError as error:
                self._error(chain, f"{served}: {error.subject}")
                continue
            chain.append(_Step(served, _agents(below)))

    def _serve(self, chain: list[_Step], dependency: VersionDependency) -> VersionRecord | None:
        """Return the version that serves *dependency*; None, and an error or a warning, if none."""
        store = self._context.store
        wanted = f"{dependency.name} {dependency.range or '*'}"
        agent = store.find_agent(dependency.name)
        if agent is None:
            self._error(chain, f"{wanted}: there is no such agent")
            return None
        try:
            self._context.require_reader(agent)
        except AccessDeniedError:
            text = _told(chain, f"{wanted}: not checked: no permission to look into it")
            self.warnings.append(_finding(text))
            return None
        try:
            admitted = parse_range(dependency.range)
        except ValueError as error:
            self._error(chain, f"{wanted}: {error}")
            return None
        versions = store.versions(agent.agent_id)
        for version in reversed(versions):
            if admitted.has(version.label):
                return version
        labels = [version.label for version in reversed(versions)]
        shown = ", ".join(labels[:_SHOWN]) + (", …" if len(labels) > _SHOWN else "")
        self._error(chain, f"{wanted}: no version fits" + (f", of {shown}" if labels else ""))
        return None

    def _error(self, chain: list[_Step], what: str) -> None:
        self.errors.append(_finding(_told(chain, what)))


def _agents(dependencies: tuple[VersionDependency, ...]) -> list[VersionDependency]:
    return [dependency for dependency in dependencies if dependency.kind == AGENT]


def _told(chain: list[_Step], what: str) -> str:
    """Return what is needed and how it comes that it is."""
    steps = [str(step.needy) for step in chain[1:]]
    if len(steps) > _SHOWN:
        steps = [*steps[: _SHOWN - 1], "…", steps[-1]]
    return " → ".join(["needs", *steps, what]).replace("needs → ", "needs ", 1)
