"""What follows `-o` on a mount's command line.

Every option of the surface is checked here, also those that a transport makes
no use of; what mount(8) and fstab(5) add for themselves is accepted and left
alone; anything else is an error, so that a misspelt option is never silently
without effect.
"""

import grp
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from kaifs.base.errors import BadLabelError, BadNameError, MountOptionError
from kaifs.base.label import parse_label

Transport = Literal["auto", "kernel", "pyfuse3"]

COMMIT_MAX_S: Final = 3600.0
DAY_NS: Final = 24 * 3600 * 10**9
_ZSTD_DEFAULT: Final = 3
_ZSTD_MAX: Final = 19
_BUSYPOLL_MAX_US: Final = 1_000_000
_SCRUB_MAX_DAYS: Final = 3650
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}

IGNORED: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group"),
        *("_netdev", "nofail", "async", "diratime", "nodiratime", "norelatime", "silent", "loud"),
    }
)
"""For mount(8), systemd or fstab(5), or how kaifs is anyway."""
STORE_WIDE: Final = {
    "commit_s": "commit",
    "zstd_level": "compress",
    "time_retention": "time",
    "cache_size": "cache",
    "scrub_ns": "scrub",
}
"""Options that are not of one mount alone: by field, what users call them."""
IGNORED_PREFIXES: Final = ("x-", "X-", "comment=")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Mount options, checked."""

    read_only: bool = False
    agent: str = ""
    """Whose folder is the root of the mount; empty: all agents."""
    view: str = ""
    """`current`, `@versions/LABEL` or `@snapshots/ID` of *agent*; empty: its folder."""
    allow_other: bool | None = None
    """None: as is the custom, yes for root and no for others."""
    uid: int | None = None
    """Who owns the folders of the mount that belong to no agent."""
    gid: int | None = None
    transport: Transport = "auto"
    commit_s: float = 5.0
    """Seconds between two epochs while something changes."""
    zstd_level: int | None = None
    """zstd level for new blocks; None: not compressed."""
    time_retention: str = ""
    busypoll_us: int = 100
    """How long the next request is asked for before going to sleep. Costs: docs/OPERATIONS.md."""
    latency: Literal["auto", "off"] = "auto"
    cache_size: int | None = None
    """Bytes of decoded nodes kept in memory; None: the store's default."""
    mount_flags: tuple[str, ...] = ()
    """What the kernel is told as it is: `noatime`, `nodev`, …"""
    scrub_ns: int = 30 * DAY_NS
    """From the end of a scrub to the next one in the background; 0: none."""
    text: str = ""
    """As it was given."""

    @property
    def shows_sealed(self) -> bool:
        """Whether the mount is one view that can never change."""
        return self.view.startswith("@versions/")


def parse_options(given: list[str]) -> MountOptions:
    """Return the options in *given*: the values of any number of `-o`, later ones win.

    Raises:
        MountOptionError: One is unknown, has a bad value, or contradicts another.
    """
    options = MountOptions(text=",".join(given))
    for option in options.text.split(","):
        if option and option not in IGNORED and not option.startswith(IGNORED_PREFIXES):
            options = _apply(options, option)
    if options.view and not options.agent:
        raise MountOptionError("view= needs agent=")
    if options.shows_sealed:
        options = replace(options, read_only=True)
    return options


def _apply(options: MountOptions, option: str) -> MountOptions:
    name, has_value, value = option.partition("=")
    if not has_value and name in _FLAGS:
        return _FLAGS[name](options)
    if has_value and name in _VALUES:
        try:
            return _VALUES[name](options, value)
        except (ValueError, BadNameError, BadLabelError) as error:
            raise MountOptionError(f"{option}: {error}") from error
    if name in _FLAGS or name in _VALUES:
        needs = "takes no value" if has_value else "needs a value"
        raise MountOptionError(f"{name} {needs}")
    raise MountOptionError(f"unknown: {option}")


def _kernel_flag(flag: str, *opposites: str) -> Callable[[MountOptions], MountOptions]:
    def apply(options: MountOptions) -> MountOptions:
        others = tuple(f for f in options.mount_flags if f not in (flag, *opposites))
        return replace(options, mount_flags=(*others, flag))

    return apply


def _read_write(options: MountOptions) -> MountOptions:
    return replace(options, read_only=False)


_FLAGS: Final[dict[str, Callable[[MountOptions], MountOptions]]] = {
    "ro": lambda options: replace(options, read_only=True),
    "rw": _read_write,
    "allow_other": lambda options: replace(options, allow_other=True),
    # Always on, so that the kernel checks modes.
    "default_permissions": lambda options: options,
    "noatime": _kernel_flag("noatime", "relatime"),
    "relatime": _kernel_flag("relatime", "noatime"),
    "dev": _kernel_flag("dev", "nodev"),
    "nodev": _kernel_flag("nodev", "dev"),
    "suid": _kernel_flag("suid", "nosuid"),
    "nosuid": _kernel_flag("nosuid", "suid"),
    "exec": _kernel_flag("exec", "noexec"),
    "noexec": _kernel_flag("noexec", "exec"),
}


def _agent(options: MountOptions, value: str) -> MountOptions:
    # Not at the top: who mounts needs no store for any other option, and it takes long to load.
    from kaifs.store.registry import check_agent_name

    check_agent_name(value)
    return replace(options, agent=value)


def _view(options: MountOptions, value: str) -> MountOptions:
    from kaifs.store.registry import check_snapshot_name

    folder, slash, name = value.rstrip("/").partition("/")
    if folder == "@versions" and slash:
        parse_label(name)
    elif folder == "@snapshots" and slash:
        check_snapshot_name(name)
    elif folder != "current" or slash:
        raise ValueError("neither current nor @versions/LABEL nor @snapshots/ID")
    return replace(options, view=folder + slash + name)


def _uid(options: MountOptions, value: str) -> MountOptions:
    if value.isdecimal():
        return replace(options, uid=_number(value, 2**32 - 2))
    try:
        return replace(options, uid=pwd.getpwnam(value).pw_uid)
    except KeyError:
        raise ValueError("no such user") from None


def _gid(options: MountOptions, value: str) -> MountOptions:
    if value.isdecimal():
        return replace(options, gid=_number(value, 2**32 - 2))
    try:
        return replace(options, gid=grp.getgrnam(value).gr_gid)
    except KeyError:
        raise ValueError("no such group") from None


def _transport(options: MountOptions, value: str) -> MountOptions:
    match value:
        case "auto" | "kernel" | "pyfuse3":
            return replace(options, transport=value)
        case _:
            raise ValueError("auto, kernel or pyfuse3")


def _commit(options: MountOptions, value: str) -> MountOptions:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise ValueError("a number of seconds")
    seconds = float(value)
    if not 0.01 <= seconds <= COMMIT_MAX_S:
        raise ValueError(f"from 0.01 to {COMMIT_MAX_S:.0f} seconds")
    return replace(options, commit_s=seconds)


def _compress(options: MountOptions, value: str) -> MountOptions:
    if value == "none":
        return replace(options, zstd_level=None)
    name, colon, level = value.partition(":")
    if name != "zstd":
        raise ValueError("none, zstd or zstd:LEVEL")
    if not colon:
        return replace(options, zstd_level=_ZSTD_DEFAULT)
    return replace(options, zstd_level=_number(level, _ZSTD_MAX, least=1))


def _time(options: MountOptions, value: str) -> MountOptions:
    if not re.fullmatch(r"off|all|[0-9]{1,6}[smhdwy]?(:[0-9]{1,6}[smhdwy]?)*", value):
        raise ValueError("off, all, or spans such as 24h or 1h:30d")
    return replace(options, time_retention=value)


def _busypoll(options: MountOptions, value: str) -> MountOptions:
    return replace(options, busypoll_us=_number(value, _BUSYPOLL_MAX_US))


def _latency(options: MountOptions, value: str) -> MountOptions:
    match value:
        case "auto" | "off":
            return replace(options, latency=value)
        case _:
            raise ValueError("auto or off")


def _cache(options: MountOptions, value: str) -> MountOptions:
    found = re.fullmatch(r"([0-9]{1,15})([kmgt]?)", value.lower())
    if found is None:
        raise ValueError("a number of bytes, K, M, G and T allowed")
    return replace(options, cache_size=int(found[1]) << _UNITS[found[2]])


def _scrub(options: MountOptions, value: str) -> MountOptions:
    days = 0 if value == "off" else _number(value, _SCRUB_MAX_DAYS, least=1)
    return replace(options, scrub_ns=days * DAY_NS)


def _number(text: str, most: int, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise ValueError(f"a number from {least} to {most}")
    return int(text)


_VALUES: Final[dict[str, Callable[[MountOptions, str], MountOptions]]] = {
    "agent": _agent,
    "view": _view,
    "uid": _uid,
    "gid": _gid,
    "transport": _transport,
    "commit": _commit,
    "compress": _compress,
    "time": _time,
    "busypoll": _busypoll,
    "latency": _latency,
    "cache": _cache,
    "scrub": _scrub,
}
