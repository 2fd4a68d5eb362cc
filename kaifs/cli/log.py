"""Show the history of an agent, newest first: what came from what, or what changed a path.

A version made after a rollback begins a branch. With PATH only versions that added,
deleted, changed or renamed it, or something below it, are shown.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from kaifs.cli.graph import Graph
from kaifs.cli.output import coloured, print_json, printable, warn
from kaifs.cli.retention import count
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("agent", metavar="AGENT")
    parser.add_argument("path", metavar="PATH", nargs="?", help="inside the agent, from its top")
    parser.add_argument("-n", "--limit", type=count, metavar="N", help="at most so many versions")
    parser.add_argument(
        "--follow", action="store_true", help="go on with the name that PATH had before a rename"
    )
    parser.add_argument("--oneline", action="store_true", help="a line for each version")


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from kaifs.service.log import Params

    params = Params(
        agent=args.agent,
        path=None if args.path is None else os.fsencode(args.path),
        follow=args.follow,
        limit=args.limit,
    )
    found = call(args, "log", params, has_progress=args.path is not None)
    if args.json:
        print_json(found.entries)
        return 0
    if found.damaged:
        warn(
            args,
            f"nothing can be told of versions whose records are damaged: {', '.join(found.damaged)}",
        )
    graph = Graph()
    for entry in found.entries:
        lines = _lines(entry, args)
        if entry is found.entries[-1] and not lines[-1]:
            del lines[-1]
        # What lies between the versions of a path is not shown: there is no graph to draw.
        if args.path is None:
            parent = entry.parent if entry.is_parent_here else None
            lines = list(graph.draw(entry.version, parent, lines))
        print("\n".join(lines))
    return 0


def _lines(entry: Any, args: argparse.Namespace) -> list[str]:
    """Return what is said of one version."""
    metadata = entry.metadata
    marks = ["current"] if entry.is_current else []
    marks += [f"tag: {printable(tag)}" for tag in metadata.tags]
    mark = coloured(f" ({', '.join(marks)})", "yellow") if marks else ""
    changes = [
        "\t".join(printable(part) for part in (change.status, change.old_path, change.path) if part)
        for change in entry.changes or ()
    ]
    notes = [printable(line) for line in metadata.notes.splitlines()]
    gone = "in quarantine" if entry.is_parent_quarantined else "removed"
    is_parent_gone = entry.parent is not None and not entry.is_parent_here
    if args.oneline:
        gap = f" (parent {entry.parent} {gone})" if is_parent_gone else ""
        title = f"{coloured(entry.version, 'bold')}{mark}{gap} {notes[0] if notes else ''}".rstrip()
        return [title, *changes]
    lines = [f"{coloured('version ' + entry.version, 'bold')}{mark}"]
    facts = (
        ("Parent", f"{entry.parent} ({gone})" if is_parent_gone else entry.parent),
        ("Type", metadata.snapshot_type + (", signed" if entry.is_signed else "")),
        ("Author", printable(metadata.author)),
        ("Date", metadata.created),
    )
    lines += [f"{name + ':':<8}{value}" for name, value in facts if value]
    if notes:
        lines += ["", *(f"    {line}" for line in notes)]
    if changes:
        lines += ["", *changes]
    return [*lines, ""]
