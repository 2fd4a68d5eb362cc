"""Show a version's record, or a snapshot. With --json also the version's files."""

import argparse
from typing import Any

from kaifs.cli.output import coloured, format_size, print_json
from kaifs.cli.session import call


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from kaifs.service.show import Params

    found = call(args, "show", Params(reference=args.reference, has_files=args.json))
    if args.json:
        import msgspec

        if found.snapshot is not None:
            print_json(found.snapshot)
        else:
            print_json({**msgspec.to_builtins(found.version), "files": found.files})
    elif found.snapshot is not None:
        _print(_snapshot_lines(found.snapshot))
    else:
        _print(_version_lines(found))
    return 0


def _version_lines(found: Any) -> list[tuple[str, str]]:
    record, metadata = found.version, found.version.metadata
    current = " (current)" if found.is_current else ""
    lines = [
        ("Version", f"{found.agent}@{record.version}{current}"),
        ("Hash", record.hash),
        ("Parent", record.parent or ""),
        ("Created", f"{metadata.created} by {metadata.author}"),
        ("Type", metadata.snapshot_type),
        ("Size", format_size(found.size)),
        ("Commit", metadata.commit_hash),
        ("Tags", ", ".join(metadata.tags)),
        ("Notes", metadata.notes),
        ("State", metadata.agent_state_checksum),
        ("Config", metadata.config_checksum),
    ]
    return [(name, text) for name, text in lines if text]


def _snapshot_lines(snapshot: Any) -> list[tuple[str, str]]:
    permissions = snapshot.isolation.permissions
    return [
        ("Snapshot", snapshot.id),
        ("Agent", snapshot.agent_id),
        ("Version", snapshot.version or "-"),
        ("Status", snapshot.status),
        ("Created", snapshot.created),
        ("Path", snapshot.path),
        ("Access", "read-only" if permissions.read_only else "writable"),
    ]


def _print(lines: list[tuple[str, str]]) -> None:
    for name, text in lines:
        print(coloured(f"{name}:".ljust(10), "bold") + text)
