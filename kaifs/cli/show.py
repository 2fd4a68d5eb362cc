"""Show a version's record, or a snapshot. With --json also the version's files."""

import argparse
from typing import Any

from msgspec import UNSET

from kaifs.cli.output import coloured, format_size, print_json, printable
from kaifs.cli.session import call

_LINES = 20
"""Lines of output that are shown of a snapshot's tests."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="REF")


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from kaifs.service.show import Params

    params = Params(reference=args.reference, has_files=args.json, has_signature=True, has_log=True)
    found = call(args, "show", params)
    if args.json:
        import msgspec

        if found.snapshot is not None:
            log = None if found.log is None else found.log.decode("utf-8", "backslashreplace")
            shown = msgspec.to_builtins(found.snapshot)
            print_json({**shown, "evidence": found.evidence, "log": log})
        else:
            shown = msgspec.to_builtins(found.version)
            print_json({**shown, "files": found.files, "signature": found.signature})
    elif found.snapshot is not None:
        _print(_snapshot_lines(found.snapshot) + _evidence_lines(found.evidence))
        _print_log(found.log)
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
        ("Signed", _signed(found.signature)),
        ("Commit", metadata.commit_hash),
        ("Tags", ", ".join(metadata.tags)),
        ("Notes", metadata.notes),
        ("State", metadata.agent_state_checksum),
        ("Config", metadata.config_checksum),
    ]
    evidence = metadata.evidence
    told = [(name, text) for name, text in lines if text]
    return told if evidence is UNSET else told + _evidence_lines(evidence)


def _signed(signature: Any) -> str:
    if signature is None:
        return ""
    if signature.status == "good":
        return f"good, by {printable(signature.principals)} ({signature.kind} {signature.key})"
    return f"{signature.status}: {printable(signature.text)}"


def _evidence_lines(evidence: Any) -> list[tuple[str, str]]:
    """Return what is told of tests; nothing if there were none."""
    if evidence is None:
        return []
    outcome = "passed" if evidence.success else "failed"
    counts = f"{evidence.passed_tests}/{evidence.total_tests}"
    lines = [
        ("Tests", f"{outcome} ({counts}) in {evidence.duration_s} s, {evidence.tested_at}"),
        ("Suite", f"{evidence.suite or '-'} {evidence.suite_hash}"),
        ("Output", evidence.output_hash),
    ]
    lines += [("Command", printable(command)) for command in evidence.command]
    lines += [("Failure", printable(f"{one.test}: {one.error}")) for one in evidence.failures]
    limits, isolation = evidence.limits, evidence.isolation
    kind = f"container {isolation.image}" if isolation.container else "sandbox"
    text = f"{kind}, memory {limits.memory}, cpu {limits.cpu}, storage {limits.storage}, "
    lines.append(("Limits", text + f"pids {limits.pids}, network {isolation.network_mode}"))
    return lines + [("No limit", printable(limit)) for limit in evidence.unenforced]


def _print_log(log: bytes | None) -> None:
    if not log:
        return
    lines = log.decode("utf-8", "replace").splitlines()
    print()
    if len(lines) > _LINES:
        print(f"[{len(lines) - _LINES} lines before this: kaifs test --log]")
    for line in lines[-_LINES:]:
        print(printable(line))


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
