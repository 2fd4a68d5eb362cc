"""Alerts: what administrators are told of damage, and how.

At once, and without waiting for anybody: journald or syslog, at priority alert, and
the log. Then, by a process of its own, what the store's owner has set in
`STORE/alerts.toml`: programs are run, and web hooks are called. That process has an
environment of its own, no rights but those of the file's owner, and an end.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from kaifs.base.errors import AlertSettingsError
from kaifs.linux.syslog import ALERT, send_to_journal, send_to_syslog
from kaifs.service.alerts import Alert

log = logging.getLogger(__name__)

SETTINGS_NAME: Final = "alerts.toml"
_SIZE_MAX: Final = 1 << 16
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]
_started: Final[list[subprocess.Popen[bytes]]] = []
"""Processes that send alerts, to be reaped if they end before this one does."""
MESSAGE_ID: Final = "6ab5a4b1f0f34d0a9d0a3c6d54a1e102"
"""By which `journalctl MESSAGE_ID=…` finds alerts of kaifs."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=300)]


class Hook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program to be run, with the alert as JSON on its standard input."""

    command: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=100)]
    """Program, by its absolute path, and arguments."""
    timeout: _Seconds = 30.0
    """Seconds after which it is killed, with all that it started in its process group."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address to which the alert is sent by POST, as JSON."""

    url: Annotated[str, msgspec.Meta(pattern="^https?://[^ ]+$", max_length=4096)]
    headers: dict[_Text, _Text] = {}
    timeout: _Seconds = 10.0
    """Seconds for one try."""
    tries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5
    backoff: _Seconds = 1.0
    """Seconds before the second try; each wait after it is twice as long."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `alerts.toml` says: tables `[[hook]]` and `[[webhook]]`."""

    hook: Annotated[tuple[Hook, ...], msgspec.Meta(max_length=8)] = ()
    webhook: Annotated[tuple[Webhook, ...], msgspec.Meta(max_length=8)] = ()


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What the process that sends is told."""

    alert: Alert
    settings: Settings
    uid: int
    gid: int
    """With whose rights, if it is started by root."""


def announce(alert: Alert) -> None:
    """Tell the system's log and ours. Does not block and does not fail."""
    text = f"kaifs: {alert.event}: {alert.subject or alert.store}: {alert.reason}"
    fields = {
        "MESSAGE_ID": MESSAGE_ID,
        "KAIFS_EVENT": alert.event,
        "KAIFS_AGENT": alert.agent,
        "KAIFS_VERSION": alert.version,
        "KAIFS_STORE": alert.store,
        "KAIFS_ERRORS": "\n".join(alert.errors),
    }
    told = {"alert": alert.event, "subject": alert.subject, "reason": alert.reason}
    is_told = send_to_journal(text, fields, ALERT) or send_to_syslog(text, ALERT)
    log.critical("alert", extra={**told, "system_log": is_told})


def alert_embedded(alert: Alert) -> None:
    """Tell everybody; who is not told at once is told by a process that is left alone with it."""
    announce(alert)
    process = send_detached(alert)
    _started[:] = [one for one in _started if one.poll() is None]
    if process is not None:
        _started.append(process)


def send_detached(alert: Alert) -> subprocess.Popen[bytes] | None:
    """Start the process that does what the settings say, None if they say nothing.

    Does not fail: settings that cannot be used are told in the log.
    """
    try:
        found = load_settings(Path(alert.store))
        if found is None:
            return None
        settings, uid, gid = found
        return _start(Errand(alert=alert, settings=settings, uid=uid, gid=gid))
    except (AlertSettingsError, OSError) as error:
        log.warning("alert_not_sent", extra={"error": str(error)})
        return None


def load_settings(store: Path) -> tuple[Settings, int, int] | None:
    """Return what the store's owner has set, and owner and group of the file; None if nothing.

    Raises:
        AlertSettingsError: the file is not to be trusted, or makes no sense.
    """
    path = store / SETTINGS_NAME
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AlertSettingsError(f"{path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        owners = (0, os.geteuid(), os.stat(store).st_uid)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners:
            raise AlertSettingsError(f"{path}: it is no file of the store's owner")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AlertSettingsError(f"{path}: others may write to it")
        raw = file.read(_SIZE_MAX + 1)
    if len(raw) > _SIZE_MAX:
        raise AlertSettingsError(f"{path}: over {_SIZE_MAX} bytes")
    try:
        settings = msgspec.convert(tomllib.loads(raw.decode()), Settings)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise AlertSettingsError(f"{path}: {error}") from error
    if not settings.hook and not settings.webhook:
        return None
    return settings, status.st_uid, status.st_gid


def _start(errand: Errand) -> subprocess.Popen[bytes]:
    # Not a pipe: nobody is left to write to it. The errand is gone with the process.
    told = os.memfd_create("alert")
    try:
        os.write(told, msgspec.json.encode(errand))
        os.lseek(told, 0, os.SEEK_SET)
        return subprocess.Popen(
            [sys.executable, "-m", "kaifs.service.alert_sender"],
            stdin=told,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**CLEAN_ENVIRONMENT, "PYTHONPATH": str(_PACKAGE_ROOT)},
            start_new_session=True,
        )
    finally:
        os.close(told)


CLEAN_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""What a hook gets of an environment, beside `KAIFS_…`."""
