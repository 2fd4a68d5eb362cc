"""Whether the versions of an agent descend from one another as their records say.

A record holds the SHA-256 of its parent's record. So what a record is now is
compared with what its children say that it was: a version whose children agree on
another hash is not what it was. Where they do not agree, one of them is at fault:
the one that disagrees. Where there is one child only, a signature that holds
decides, and without one the parent is taken to be at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from kaifs.base.errors import KaifsError
from kaifs.meta.records import VERSION, AgentRecord, VersionRecord
from kaifs.service.context import Context
from kaifs.service.findings import Finding, Findings
from kaifs.service.record import record_hash
from kaifs.service.signing import describe_signature

_finding: Final = partial(Finding, "lineage")
_damage: Final = partial(Finding, "lineage", is_damage=True)


class _Descent(msgspec.Struct, rename="camel"):
    """The fields of a record that lineage rests on."""

    parent: str = ""
    parent_hash: str = ""


@dataclass(frozen=True, slots=True)
class Relative:
    """One version, as its record tells where it comes from."""

    label: str
    parent: str
    """Label; empty if it has none."""
    parent_hash: str
    hash: str
    """SHA-256 of its record."""
    created_ns: int
    is_aside: bool
    """Whether it is in quarantine."""


class Lineage:
    """The versions of one agent, those in quarantine too. O(versions) to make."""

    def __init__(self, context: Context, agent: AgentRecord) -> None:
        store = context.store
        self.relatives: dict[str, Relative] = {}
        self._children: dict[str, list[Relative]] = {}
        self._by_label: dict[str, VersionRecord] = {}
        for version in store.versions(agent.agent_id):
            self._add(version, is_aside=False)
        for aside in store.quarantined(agent.agent_id):
            if aside.version:
                self._add(VERSION.decode(aside.version), is_aside=True)
        self.cyclic = _cyclic(self.relatives)
        """Labels of versions that descend from themselves."""

    def _add(self, version: VersionRecord, *, is_aside: bool) -> None:
        try:
            descent = msgspec.json.decode(version.record, type=_Descent)
        except msgspec.MsgspecError:
            descent = _Descent()
        relative = Relative(
            version.label,
            descent.parent,
            descent.parent_hash,
            record_hash(version.record),
            version.created_ns,
            is_aside,
        )
        self.relatives[version.label] = relative
        self._by_label[version.label] = version
        if relative.parent:
            self._children.setdefault(relative.parent, []).append(relative)

    def version(self, label: str) -> VersionRecord | None:
        """Return the version *label*, in quarantine or not."""
        return self._by_label.get(label)

    def children(self, relative: Relative) -> list[Relative]:
        """Return the versions that say that they were made from *relative*, and can have been.

        One that is older was made from another version that had that label before.
        """
        return [
            child
            for child in self._children.get(relative.label, [])
            if child.created_ns >= relative.created_ns
        ]


def check_lineage(context: Context, lineage: Lineage, version: VersionRecord) -> Findings:
    """Return what is wrong with where *version* comes from, and with what comes from it."""
    own = lineage.relatives.get(version.label)
    if own is None:
        return Findings()
    errors: list[Finding] = []
    warnings: list[Finding] = []
    children = lineage.children(own)
    strange = [child.label for child in children if child.parent_hash != own.hash]
    if strange and _is_at_fault(context, version, len(strange), len(children)):
        text = f"its record is not the one that {', '.join(strange[:5])} came from"
        errors.append(_damage(text))
    elif strange:
        warnings.append(_finding(f"{', '.join(strange[:5])} says that its record was another"))
    _check_parent(context, lineage, own, errors, warnings)
    if own.label in lineage.cyclic:
        errors.append(_damage("it descends from itself"))
    return Findings(tuple(errors), tuple(warnings))


def _check_parent(
    context: Context,
    lineage: Lineage,
    own: Relative,
    errors: list[Finding],
    warnings: list[Finding],
) -> None:
    if not own.parent:
        if own.parent_hash:
            errors.append(_damage("its record has the hash of a parent and no parent"))
        return
    if not own.parent_hash:
        errors.append(_damage(f"its record has no hash of its parent {own.parent}"))
        return
    parent = lineage.relatives.get(own.parent)
    if parent is None:
        warnings.append(_finding(f"its parent {own.parent} is not there any more"))
        return
    if parent.created_ns > own.created_ns:
        text = f"its parent {own.parent} is not there any more: another version has the label"
        warnings.append(_finding(text))
        return
    if own.parent_hash != parent.hash:
        siblings = lineage.children(parent)
        strange = sum(child.parent_hash != parent.hash for child in siblings)
        version = lineage.version(parent.label)
        assert version is not None, "it is a relative"
        if _is_at_fault(context, version, strange, len(siblings)):
            errors.append(_finding(f"the record of its parent {own.parent} is another by now"))
        else:
            text = f"it says that the record of its parent {own.parent} was another"
            errors.append(_damage(text))
    if parent.is_aside:
        warnings.append(_finding(f"its parent {own.parent} is in quarantine"))


def _is_at_fault(context: Context, parent: VersionRecord, strange: int, children: int) -> bool:
    """Return whether a parent is at fault of whose *children* *strange* say that it was another."""
    if strange < children:
        return False
    try:
        signature = describe_signature(context, parent)
    except KaifsError:
        signature = None
    # Who signs a record vouches for these bytes; the child's may be anybody's.
    return children > 1 or signature is None or signature.status != "good"


def _cyclic(relatives: dict[str, Relative]) -> set[str]:
    """Return the labels of those that descend from themselves. O(versions)."""
    found: set[str] = set()
    done: set[str] = set()
    for start in relatives:
        path: dict[str, None] = {}
        label = start
        while label in relatives and label not in done and label not in path:
            path[label] = None
            label = relatives[label].parent
        if label in path:
            walked = list(path)
            found.update(walked[walked.index(label) :])
        done.update(path)
    return found
