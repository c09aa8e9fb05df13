"""Which upstreams a view may name: origins, hosts, addresses and networks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from pyramid_threaded_proxy.http.names import PORTS

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?/?")


def check_entry(word: str) -> str:
    """The entry in lower case; raises `ValueError` for what is none of the four kinds."""
    entry = word.lower()
    if _network(entry) is not None or _ORIGIN.fullmatch(entry):
        return entry
    if "/" in entry or ":" in entry or entry.replace(".", "").isdigit() or not _HOST.fullmatch(entry):
        raise ValueError(f"{word!r} is neither an origin, a host, an address nor a network")
    return entry


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        return None


def address_of(host: str) -> Address | None:
    """The address that a host is written as; None for a name. An IPv4 address in IPv6 clothes counts as what it is."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


class AllowList:
    """Compiled once. Any thread."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._origins: set[tuple[str, str, int]] = set()
        self._hosts: set[str] = set()
        self._below: list[str] = []
        self.networks: list[Network] = []
        for entry in map(check_entry, entries):
            network, origin = _network(entry), _ORIGIN.fullmatch(entry)
            if network is not None:
                self.networks.append(network)
            elif origin is not None:
                self._origins.add((origin[1], origin[2], int(origin[3] or PORTS[origin[1]])))
            elif entry.startswith("*."):
                self._below.append(entry[1:])
            else:
                self._hosts.add(entry)

    def permits_name(self, scheme: str, host: str, port: int) -> bool:
        """Whether an origin is let in as it is written, whatever its address."""
        if scheme not in PORTS:
            return False  # a Unix socket's path is no name, whatever it ends in
        host = host.lower().rstrip(".")
        if (scheme, host, port) in self._origins or host in self._hosts:
            return True
        return address_of(host) is None and any(host.endswith(end) and host != end for end in self._below)

    def permits_address(self, text: str) -> bool:
        """Whether an address lies in one of the networks."""
        address = address_of(text.partition("%")[0])
        return address is not None and any(
            address.version == network.version and address in network for network in self.networks
        )
