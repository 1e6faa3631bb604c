"""Through which network interface a process meets the others."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from ipaddress import ip_address
from typing import Any

import psutil

# Of the block that is kept for documentation (RFC 5737): asking for the way there sends nothing.
_SOMEWHERE_ELSE = "192.0.2.1"


def use_interface_to(address: str, environment: MutableMapping[str, str] | None = None) -> None:
    """Let gloo listen where the other hosts reach this one; a GLOO_SOCKET_IFNAME that is set stays.

    By itself gloo listens at the address of the host's own name. Many hosts give their name a loopback address (Debian
    does), which no other host reaches: the processes of several hosts would wait for each other until the time is out.

    Args:
        address: of rank 0's host, by name or number.
        environment: where to set it; by default this process's.
    """
    env = os.environ if environment is None else environment
    name = None if "GLOO_SOCKET_IFNAME" in env else interface_to(address)
    if name:
        env["GLOO_SOCKET_IFNAME"] = name


def interface_to(address: str) -> str | None:
    """The interface on the way to an address, on that host itself the one that has it; None for a loopback one.

    Where the address is a name that its own host gives a loopback address, it is the interface of the default route.
    """
    if _is_loopback(address):
        return None
    own = _own_address(address)
    if own and _is_loopback(own):
        own = _own_address(_SOMEWHERE_ELSE)
    if not own or _is_loopback(own):
        return None
    interfaces: dict[str, list[Any]] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            return name
    return None


def _own_address(address: str) -> str | None:
    """This host's address as one that it talks to sees it; None where there is no way there."""
    try:
        (family, kind, _, _, there), *_ = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(there)  # a datagram socket: this only chooses the way
            own: str = probe.getsockname()[0]
            return own.partition("%")[0]
    except OSError:
        return None


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
