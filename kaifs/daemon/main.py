"""The daemon's own process: what `kaifs mount` starts."""

import argparse
import contextlib
import logging
import sys
import traceback
from pathlib import Path

from kaifs.base.errors import KaifsError
from kaifs.control.messages import failure_of
from kaifs.daemon.app import Settings, run, tell_ready
from kaifs.daemon.options import parse_options

log = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_BUG = 70


def main() -> int:
    """Serve as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="kaifs-daemon")
    parser.add_argument("store", type=Path)
    parser.add_argument("mountpoint", type=Path, nargs="?")
    parser.add_argument("-o", dest="options", default="")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--end-fd", type=int, default=-1)
    args = parser.parse_args()
    # What the store's lock tells others about its holder.
    sys.argv = ["kaifs", "mount", str(args.store), str(args.mountpoint or "(for sandboxes)")]
    try:
        options = parse_options([args.options])
        settings = Settings(
            args.store,
            args.mountpoint,
            options,
            ready_fd=args.ready_fd,
            end_fd=args.end_fd,
        )
        run(settings)
    except KaifsError as error:
        _tell_failure(args.ready_fd, error)
        return EXIT_FAILURE
    except Exception as error:
        log.exception("bug")
        traceback.print_exc()
        _tell_failure(args.ready_fd, error)
        return EXIT_BUG
    return 0


def _tell_failure(fd: int, error: Exception) -> None:
    # Closed already if the mount was announced, or nobody waits any more.
    with contextlib.suppress(OSError):
        tell_ready(fd, failure_of(error))


if __name__ == "__main__":
    sys.exit(main())
