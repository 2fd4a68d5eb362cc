"""From exceptions to what a system call returns. The one place that does.

An expected failure has its errno; anything else is a bug, which is logged with
its traceback and answered with EIO. Neither ends the server.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from kaifs.base.errors import FileError, KaifsError

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def errno_of(error: Exception, request: str) -> int:
    """Return the errno that answers *request*, which failed with *error*.

    What a file system refuses every day (`FileError`) is not logged.
    """
    if isinstance(error, FileError):
        return error.errno
    if isinstance(error, KaifsError):
        log.warning("request_failed", extra={"request": request, "error": str(error)})
        return error.errno
    log.error("request_crashed", extra={"request": request}, exc_info=error)
    return errno.EIO


def replies(
    reply_error: Callable[[int], Exception],
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """Return a decorator of a transport's request methods.

    Args:
        reply_error: Makes the exception by which the transport sends an errno.
    """

    def decorate(
        request: Callable[P, Coroutine[Any, Any, R]],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        @functools.wraps(request)
        async def answered(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await request(*args, **kwargs)
            # A bug answers EIO and is logged; the server goes on.
            except Exception as error:  # noqa: BLE001
                raise reply_error(errno_of(error, request.__name__)) from None

        return answered

    return decorate
