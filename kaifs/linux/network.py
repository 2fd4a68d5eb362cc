"""What kaifs does inside a network namespace, and which addresses the machine answers to.

Source: rtnetlink(7), netdevice(7).
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1

_RTM_NEWROUTE: Final = 24
_NLM_F_REQUEST: Final = 1
_NLM_F_ACK: Final = 4
_NLM_F_REPLACE: Final = 0x100
_NLM_F_CREATE: Final = 0x400
_NLMSG_ERROR: Final = 2
_RTA_DST: Final = 1
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_PROHIBIT: Final = 8


def local_addresses() -> frozenset[IPv4Address]:
    """Return every IPv4 address at which this machine, in this namespace, can be reached."""
    found = set()
    address = None
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        text = line.strip()
        if text.startswith("|--"):
            address = IPv4Address(text[3:].strip())
        elif text == "/32 host LOCAL" and address is not None:
            found.add(address)
    return frozenset(found)


def bring_up(interface: str) -> None:
    """Switch *interface* of this namespace on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as query:
        name = interface.encode()
        answer = fcntl.ioctl(query, _SIOCGIFFLAGS, struct.pack("16sh22x", name, 0))
        flags = struct.unpack_from("h", answer, 16)[0]
        fcntl.ioctl(query, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _IFF_UP))


def prohibit(networks: Iterable[IPv4Network]) -> None:
    """Let nothing in this namespace send to *networks*: a connection there is EACCES at once.

    The way to a gateway is not affected: what it forwards is addressed to others.
    """
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as kernel:
        for network in networks:
            kernel.send(_prohibiting(network))
            answer = kernel.recv(4096)
            if struct.unpack_from("=H", answer, 4)[0] != _NLMSG_ERROR:
                raise OSError(f"{network}: the kernel's answer makes no sense")
            if code := -struct.unpack_from("=i", answer, 16)[0]:
                raise OSError(code, os.strerror(code), str(network))


def _prohibiting(network: IPv4Network) -> bytes:
    route = struct.pack(
        "=BBBBBBBBI",
        socket.AF_INET,
        network.prefixlen,
        0,
        0,
        _RT_TABLE_MAIN,
        _RTPROT_STATIC,
        0,
        _RTN_PROHIBIT,
        0,
    )
    destination = struct.pack("=HH4s", 8, _RTA_DST, network.network_address.packed)
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE
    length = 16 + len(route) + len(destination)
    return struct.pack("=IHHII", length, _RTM_NEWROUTE, flags, 1, 0) + route + destination
