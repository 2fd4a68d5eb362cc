"""The daemon's own process: what `kaifs mount` starts.

It becomes the supervisor if the mount can survive its server, and starts that with the
same command. Nothing is imported here that a supervisor does not need.
"""

import argparse
import contextlib
import gc
import logging
import sys
import traceback
from pathlib import Path

from kaifs.control.places import log_path
from kaifs.daemon.handover import EXIT_AGAIN, Kept, Line

log = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_BUG = 70


def main() -> int:
    """Serve as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="kaifs-daemon")
    parser.add_argument("store", type=Path)
    parser.add_argument("mountpoint", type=Path, nargs="?")
    parser.add_argument("-o", dest="options", default="")
    parser.add_argument("-f", dest="foreground", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--end-fd", type=int, default=-1)
    parser.add_argument("--supervisor-fd", type=int, default=-1)
    args = parser.parse_args()
    if args.supervisor_fd < 0 and args.mountpoint is not None and is_supervised(args.options):
        from kaifs.daemon.supervisor import supervise

        command = server_command(args.store, args.mountpoint, args.options, args.foreground)
        fds = [args.ready_fd] if args.ready_fd >= 0 else []

        def serve(line: int) -> int:
            args.supervisor_fd = line
            return _serve(args)

        return supervise(
            command, log_path(args.store), fds, foreground=args.foreground, serve=serve
        )
    return _serve(args)


def is_supervised(options: str) -> bool:
    """Return whether a mount with these options may survive its server, so that it gets a supervisor."""
    transports = [one for one in options.split(",") if one.startswith("transport=")]
    return transports[-1:] != ["transport=pyfuse3"]


def server_command(store: Path, mountpoint: Path, options: str, foreground: bool) -> list[str]:
    """Return the command that starts a server, but for descriptors that it inherits."""
    command = [sys.executable, "-m", "kaifs.daemon.main", str(store), str(mountpoint)]
    return [*command, "-o", options, *(["-f"] if foreground else [])]


def _serve(args: argparse.Namespace) -> int:
    # What the store's lock tells others about its holder.
    sys.argv = ["kaifs", "mount", str(args.store), str(args.mountpoint or "(for sandboxes)")]
    from kaifs.daemon.helper_process import start_helper

    helper = start_helper()
    # What is loaded stays: looking for cycles in it is in vain, now and later.
    gc.disable()
    from kaifs.base.errors import KaifsError
    from kaifs.daemon.app import Settings, run
    from kaifs.daemon.log import log_to_file
    from kaifs.daemon.options import parse_options

    gc.freeze()
    gc.enable()
    line, kept = None, None
    if args.supervisor_fd >= 0:
        line = Line.of(args.supervisor_fd)
        line.send("loaded")
        try:
            kept = Kept.receive(line)
        except EOFError:
            # Whoever wanted a successor does not need it any more.
            return EXIT_FAILURE
    if kept is not None:
        log_to_file(log_path(args.store))
    try:
        settings = Settings(
            args.store,
            args.mountpoint,
            parse_options([args.options]),
            foreground=args.foreground,
            ready_fd=args.ready_fd,
            end_fd=args.end_fd,
            line=line,
            kept=kept,
            helper=helper,
        )
        if run(settings):
            return EXIT_AGAIN
    except KaifsError as error:
        if kept is not None:
            log.error("not_taken_over", extra={"error": str(error)})  # noqa: TRY400 - expected
        _tell_failure(args.ready_fd, error)
        return EXIT_FAILURE
    except Exception as error:
        log.exception("bug")
        traceback.print_exc()
        _tell_failure(args.ready_fd, error)
        return EXIT_BUG
    return 0


def _tell_failure(fd: int, error: Exception) -> None:
    from kaifs.control.messages import failure_of
    from kaifs.daemon.app import tell_ready

    # Closed already if the mount was announced, or nobody waits any more.
    with contextlib.suppress(OSError):
        tell_ready(fd, failure_of(error))


if __name__ == "__main__":
    sys.exit(main())
