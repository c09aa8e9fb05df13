"""Names as a test says them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest


class Names:
    """In place of the system's look-up of names: knows those of the test, asks the system for all but test names.

    `known` has an iterator for each name, of the addresses that a look-up finds; where there are none, it fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, Iterator[Sequence[str]]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: Any, *rest: Any, **more: Any) -> Any:
        self.asked.append(host)
        if host not in self.known and not host.endswith((".example", ".internal")):
            return self._real(host, port, *rest, **more)
        addresses = next(self.known[host]) if host in self.known else ()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]
