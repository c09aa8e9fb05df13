"""Names as a test says them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support.waiting import PATIENCE


class NameServer:
    """In place of the system's look-up: says what it is told to, notes who was asked for, is silent where it shall be.

    `known` has for a name what its look-ups find, one after the other, and `addresses` what all other names have, if it
    is set; where that is nothing, the look-up fails. All else is left to the system, but not names that tests made up.
    """

    real = staticmethod(socket.getaddrinfo)

    def __init__(self, addresses: tuple[str, ...] | None = None) -> None:
        self.known: dict[str, Iterator[Sequence[str]]] = {}
        self.addresses = addresses
        self.asked: list[str] = []
        self.silent: dict[str, threading.Event] = {}

    def __call__(self, host: str, port: Any, *rest: Any, **options: Any) -> list[Any]:
        if not host[0].isalpha():
            return self.real(host, port, *rest, **options)
        self.asked.append(host)
        if host in self.silent:
            self.silent[host].wait(PATIENCE * 6)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        found = next(self.known[host]) if host in self.known else self.addresses
        if found is None and not host.endswith((".example", ".internal")):
            return self.real(host, port, *rest, **options)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]
