"""The process that runs hooks and calls webhooks for one alert, and then ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import IO, Final

import msgspec

from kaifs.service.alerting import CLEAN_ENVIRONMENT, Errand, Hook, Webhook
from kaifs.service.alerts import Alert

_TEMPORARY: Final = frozenset({408, 425, 429})
"""Statuses below 500 after which it is tried again. Source: RFC 9110, RFC 8470, RFC 6585."""


class _Unfollowing(urllib.request.HTTPRedirectHandler):
    """A hook is where the settings say, nowhere else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        return None


def main() -> int:
    """Do the errand that is told on standard input; exit status 1 if something of it failed."""
    errand = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    _become(errand.uid, errand.gid)
    done = [run_hook(hook, errand.alert) for hook in errand.settings.hook]
    done += [call_webhook(webhook, errand.alert) for webhook in errand.settings.webhook]
    return 0 if all(done) else 1


def _become(uid: int, gid: int) -> None:
    """Give up root's rights for those of the settings' owner, before anything of theirs is used."""
    if os.geteuid() == 0 and uid != 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def run_hook(hook: Hook, alert: Alert) -> bool:
    """Run a program with *alert* on its standard input; return whether it ended well in time."""
    environment = {
        **CLEAN_ENVIRONMENT,
        "KAIFS_EVENT": alert.event,
        "KAIFS_AGENT": alert.agent,
        "KAIFS_VERSION": alert.version,
        "KAIFS_STORE": alert.store,
        "KAIFS_REASON": alert.reason,
    }
    try:
        process = subprocess.Popen(
            hook.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return False
    with process:
        try:
            process.communicate(msgspec.json.encode(alert), hook.timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return False
    return process.returncode == 0


def call_webhook(webhook: Webhook, alert: Alert) -> bool:
    """Send *alert*; return whether it was taken, after as many tries as are allowed."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "kaifs",
        **webhook.headers,
    }
    payload = msgspec.json.encode(alert)
    request = urllib.request.Request(webhook.url, payload, headers, method="POST")  # noqa: S310 - the settings allow http and https only
    # Without a proxy from the environment, which is nobody's here.
    opener = urllib.request.build_opener(_Unfollowing, urllib.request.ProxyHandler({}))
    wait_s = webhook.backoff
    for left in reversed(range(webhook.tries)):
        try:
            with opener.open(request, timeout=webhook.timeout):
                return True
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in _TEMPORARY:
                return False
        except (OSError, ValueError):
            pass
        if left:
            time.sleep(wait_s)
            wait_s *= 2
    return False


if __name__ == "__main__":
    sys.exit(main())
