"""Show the store, its daemon, its mounts, and what takes the space."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kaifs.api.access import find_daemon
from kaifs.cli.output import coloured, format_age, format_size, print_json, table
from kaifs.cli.session import call, store_of

if TYPE_CHECKING:
    from kaifs.control.info import DaemonInfo


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    measure = parser.add_mutually_exclusive_group()
    measure.add_argument(
        "--space",
        dest="measure",
        action="store_const",
        const="always",
        default="auto",
        help="measure what trees have to themselves, however long it takes",
    )
    measure.add_argument(
        "--brief",
        dest="measure",
        action="store_const",
        const="never",
        help="do not measure it (default: if it takes about a second)",
    )


def run(args: argparse.Namespace) -> int:
    """Show them."""
    from kaifs.service.status import Params

    info = find_daemon(store_of(args))
    found = call(args, "status", Params(measure=args.measure), has_progress=True)
    daemon, mounts = _daemon(info)
    if args.json:
        own = {"store": found.store, "space": found.space, "scrub": found.scrub}
        print_json({**own, "daemon": daemon, "mounts": mounts})
        return 0
    state = "changes not on disk yet" if found.store.is_dirty else "all on disk"
    _line("Store", f"{found.store.path} (format {found.store.format_version}, {state})")
    if daemon is None:
        _line("Daemon", "none")
    else:
        uptime = format_age(daemon["uptime"])
        _line("Daemon", f"pid {daemon['pid']}, supervisor {daemon['supervisorPid']}, up {uptime}")
    for mount in mounts:
        agent = f", agent {mount['agent']}" if mount["agent"] else ""
        options = f"; {mount['options']}" if mount["options"] else ""
        _line(
            "Mount",
            f"{mount['mountpoint']} ({mount['transport']}: {mount['reason']}{agent}{options})",
        )
        survives = "survives" if mount["survives"] else "does not survive"
        _line("", f"{survives} the death of its server: {mount['survivesReason']}")
    space = found.space
    _line(
        "Space",
        f"{format_size(space.logical)} logical, {format_size(space.stored)} stored, "
        f"{format_size(space.unique)} unique",
    )
    _line("Scrub", _scrub(found.scrub))
    if space.agents:
        print()
        print(table([("TREE", "LOGICAL", "UNIQUE"), *_rows(space.agents)]))
    return 0


def _scrub(scrub: Any) -> str:
    told = (
        [f"last ended {scrub.finished}, {scrub.damaged} damaged"] if scrub.finished else ["never"]
    )
    if scrub.started:
        told.append(f"under way since {scrub.started}, {format_size(scrub.done)} read")
    if scrub.next:
        told.append(f"next {scrub.next}")
    return "; ".join(told)


def _daemon(info: DaemonInfo | None) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    if info is None:
        return None, []
    from kaifs.base.clock import SystemClock

    uptime = (SystemClock().now_ns() - info.started_ns) / 1e9
    daemon = {"pid": info.pid, "supervisorPid": info.supervisor_pid, "uptime": round(uptime, 3)}
    mounts = [
        {
            "mountpoint": mount.mountpoint,
            "transport": mount.transport,
            "reason": mount.reason,
            "agent": mount.agent,
            "options": mount.options,
            "survives": mount.survives,
            "survivesReason": mount.survives_reason,
        }
        for mount in info.mounts
    ]
    return daemon, mounts


def _rows(agents: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for agent in agents:
        rows.append((agent.agent, format_size(agent.logical), _measured(agent.unique)))
        rows += [
            (
                f"{agent.agent}@{version.version}",
                format_size(version.logical),
                _measured(version.unique),
            )
            for version in agent.versions
        ]
    return rows


def _measured(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _line(name: str, text: str) -> None:
    print(coloured(f"{name}:".ljust(10), "bold") + text)
