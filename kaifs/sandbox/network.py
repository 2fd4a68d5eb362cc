"""A network of the sandbox's own: slirp4netns, for root as for everybody else.

Nothing of the machine's configuration changes (no bridge, forwarding or
firewall), so no crash leaves any of it behind. slirp4netns makes the sandbox's
connections from the host, so what they may not reach is prohibited by routes
in the sandbox's namespace, over which the command has no rights.
"""

import os
import select
import signal
import subprocess
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.network import bring_up, local_addresses, prohibit
from kaifs.sandbox.names import VARIABLE

NETWORK: Final = IPv4Network("198.18.0.0/24")
"""From a range that is in no one's network. Source: RFC 2544."""
GATEWAY: Final = IPv4Address("198.18.0.2")
NAME_SERVER: Final = IPv4Address("198.18.0.3")
"""Passes questions on to the host's name server."""
_INTERFACE: Final = "tap0"
_READY_S: Final = 10.0
_END_S: Final = 2.0
# Where clouds answer questions about the machine, with its credentials.
_LINK_LOCAL: Final = IPv4Network("169.254.0.0/16")


def prohibited_networks() -> list[IPv4Network]:
    """Return what a sandbox may not reach: every address that the machine has now."""
    own = [IPv4Network(address) for address in sorted(local_addresses())]
    return [IPv4Network(GATEWAY), _LINK_LOCAL, *(one for one in own if not one.is_loopback)]


def close_ways(networks: list[IPv4Network]) -> None:
    """Prohibit *networks* and switch loopback on, in this process's namespace."""
    bring_up("lo")
    prohibit(networks)


class UserNetwork:
    """The process that carries a sandbox's packets. It ends when this process does."""

    def __init__(self, pid: int, name: str) -> None:
        """Connect the network namespace of process *pid* of the sandbox *name*.

        Raises:
            SnapshotIsolationError: slirp4netns is missing or fails.
        """
        ready, announce = os.pipe2(os.O_CLOEXEC)
        watched, self._lifeline = os.pipe2(os.O_CLOEXEC)
        errors = os.memfd_create("slirp4netns", os.MFD_CLOEXEC)
        # Its own sandbox wants to be root in the user namespace, where a user is only himself.
        is_root = os.geteuid() == 0
        command = [
            "slirp4netns",
            "--configure",
            f"--cidr={NETWORK}",
            "--mtu=65520",
            "--disable-host-loopback",
            *(["--enable-sandbox"] if is_root else []),
            "--enable-seccomp",
            f"--ready-fd={announce}",
            f"--exit-fd={watched}",
            str(pid),
            _INTERFACE,
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"PATH": os.environ.get("PATH", os.defpath), VARIABLE: name},
                pass_fds=(announce, watched),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise SnapshotIsolationError(
                f"network bridge: slirp4netns: {error.strerror}"
            ) from error
        finally:
            os.close(announce)
            os.close(watched)
        try:
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            if not poll.poll(_READY_S * 1000) or not os.read(ready, 1):
                self.close()
                said = os.pread(errors, 4096, 0).decode(errors="replace").strip()
                reason = "; ".join(said.splitlines()) or "not ready"
                raise SnapshotIsolationError(f"network bridge: slirp4netns: {reason}")
        finally:
            os.close(ready)
            os.close(errors)

    def close(self) -> None:
        """End it."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
