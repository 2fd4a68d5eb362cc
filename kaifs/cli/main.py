"""From the command line to an exit status, for every verb and every failure."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from kaifs import __version__
from kaifs.cli.arguments import HelpFormatter, TextFormatter, add_common

EXIT_FAILURE: Final = 1
EXIT_BUG: Final = 70
"""Source: EX_SOFTWARE of sysexits.h."""
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
COMPLETE: Final = "__complete"
"""By which shells ask what could come next. It is in no help."""
MOUNT_HELPER: Final = "mount.kaifs"
EXIT_MOUNT_FAILURE: Final = 32
"""Source: mount(8), exit status; what its helpers answer."""

VERBS: Final = {
    "init": "make a store",
    "import": "make a sealed version from a directory",
    "export": "write a tree to a directory or a tar stream",
    "mount": "mount a store",
    "umount": "unmount, when all is on disk",
    "restart": "let a new process go on with a mount, as for an upgrade",
    "status": "show store, daemon, mounts and space",
    "list": "list agents, or the versions of one",
    "log": "show the history of an agent, or of a path in it",
    "show": "show a version's record",
    "manifest": "print the canonical manifest",
    "seal": "make a version from current",
    "diff": "compare two trees",
    "rollback": "make current show an older version",
    "snapshot": "make a writable snapshot",
    "snapshots": "list snapshots",
    "run": "run a command in a snapshot's sandbox",
    "test": "run a test suite in a snapshot",
    "commit": "make a tested snapshot the next version",
    "discard": "remove a snapshot",
    "remove": "take a version away",
    "prune": "take away the versions that no rule keeps",
    "sign": "sign a version",
    "key": "show or change the keys that sign and are trusted",
    "verify": "check that versions are what they were",
    "quarantine": "list, add or release versions that are set aside",
    "policy": "show or set what is demanded of versions",
    "gc": "free what nothing reaches",
    "fsck": "check the store, and mend it",
    "scrub": "read everything, and heal what can be healed",
    "doctor": "tell what this machine lacks",
    "completion": "print what a shell needs to complete commands",
}
"""What each verb does, in the order of the help."""


class _VerbParser(argparse.ArgumentParser):
    """A verb's parser that learns its arguments when its verb is used."""

    def __init__(self, *, module: str, **options: Any) -> None:
        super().__init__(add_help=False, formatter_class=HelpFormatter, **options)
        self._module = module

    def parse_known_args(  # type: ignore[override]  # typeshed's overloads say the same in pieces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self.learn()
        arguments, command = self._split_command(list(args or []))
        found, rest = super().parse_known_args(arguments, namespace)
        if command is not None:
            found.command = command
        return found, rest

    def learn(self) -> None:
        """Declare the arguments, if that is still to be done."""
        if self._module:
            module = import_module(self._module)
            self._module = ""
            self.description = (module.__doc__ or "").strip()
            self.formatter_class = TextFormatter
            self.add_argument("-h", "--help", action="help", help="show this help message and exit")
            add_common(self)
            module.configure(self)
            self.set_defaults(run=module.run)

    def _split_command(self, arguments: list[str]) -> tuple[list[str], list[str] | None]:
        """Return what is before and after the first `--`, for a verb that runs a command.

        argparse would take away a `--` of the command's own as well.
        """
        if not self.get_default("takes_command") or "--" not in arguments:
            return arguments, None
        place = arguments.index("--")
        return arguments[:place], arguments[place + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_helper = os.path.basename(sys.argv[0]) == MOUNT_HELPER
    if is_helper:
        # mount(8) keeps `dev` and `suid` to itself, as they are its defaults, and passes their
        # opposites on; fusermount3 lets nobody but root have them. Like mount(8) it says nothing.
        arguments[:0] = ["mount", "--quiet", *(["-o", "dev,suid"] if os.geteuid() == 0 else [])]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if arguments[:1] == [COMPLETE]:
        from kaifs.cli.candidates import print_candidates

        return print_candidates(make_parser(), arguments[1:])
    args = _parse(arguments)
    # Not earlier: help is there without.
    from kaifs.api import access
    from kaifs.base.errors import KaifsError

    access.on_embedded = _warn_on_screen
    if is_helper:
        args.trouble = EXIT_MOUNT_FAILURE
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KaifsError as error:
        from kaifs.cli.output import tell_failure

        status = tell_failure(args, error)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python's own flush at exit must not
        # complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug becomes exit 70
        status = _tell_bug(args, error)
    return status


def make_parser(verb: str = "") -> argparse.ArgumentParser:
    """Return the parser of whole command lines: all, or those of *verb*, which is made sooner."""
    parser = argparse.ArgumentParser(
        prog="kaifs",
        description="The file system that agents run from.",
        formatter_class=HelpFormatter,
    )
    add_common(parser)
    parser.add_argument("--version", action="version", version=f"kaifs {__version__}")
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", dest="verb", required=True, parser_class=_VerbParser
    )
    for name in (verb,) if verb else VERBS:
        verbs.add_parser(name, help=VERBS[name], module=f"kaifs.cli.{_module(name)}")
    return parser


def _named_verb(arguments: Sequence[str]) -> str:
    """Return the verb, if nothing but options that every verb has stands before it; else nothing."""
    rest = iter(arguments)
    for word in rest:
        if word == "--store":
            next(rest, None)
        elif word not in ("--json", "-q", "--quiet") and not word.startswith("--store="):
            return word if word in VERBS else ""
    return ""


def _warn_on_screen() -> None:
    """Show what a verb warns of as a line on stderr; a daemon has its log."""
    from kaifs.daemon.log import warn_on_screen

    warn_on_screen()


def _parse(arguments: list[str]) -> argparse.Namespace:
    namespace = argparse.Namespace(store=None, json=False, quiet=False, trouble=EXIT_FAILURE)
    return make_parser(_named_verb(arguments)).parse_args(arguments, namespace)


def _module(verb: str) -> str:
    return verb + "_" if verb in ("import", "list") else verb


def _tell_bug(args: argparse.Namespace, error: Exception) -> int:
    from kaifs.cli.bugs import log_bug

    log = log_bug(args.store, error)
    where = f"; {log} has the details" if log else ""
    print(f"kaifs: a bug in kaifs: {type(error).__name__}: {error}{where}", file=sys.stderr)
    if args.json:
        from kaifs.cli.output import print_json

        print_json({"error": {"code": "BUG", "message": str(error), "details": {}}})
    return EXIT_BUG
