"""What comes of a raw request: what arrives at the upstream, and what the client is told."""

from __future__ import annotations

import http.client
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from tests.support.origin import Origin
from tests.support.waiting import PATIENCE
from tests.support.wire import Request

#: Fields of the connection that a message came by: each server has its own.
_OF_THE_HOP = frozenset({"connection", "keep-alive", "content-length", "transfer-encoding"})
#: Fields by which each server signs an answer.
_OF_A_SERVER = frozenset({"date", "server", "via"})
_LIST = re.compile(r" *, *")


@dataclass(frozen=True)
class Sent:
    """A request as an upstream got it, less what belongs to the hop: names in lower case and sorted, repeated fields
    as one list."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class Got:
    """An answer as a client got it, the same way; `status` is 0 where the connection was closed instead."""

    status: int
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """What came of a request: all that arrived at the upstream, and what the client was told."""

    arrived: tuple[Sent, ...]
    answer: Got


def _plain(fields: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        if name.lower() not in _OF_THE_HOP:
            found.setdefault(name.lower(), []).append(value)
    if "x-request-id" in found:
        found["x-request-id"] = [f"{len(value)} characters" for value in found["x-request-id"]]
    lists = {
        name: values if name == "set-cookie" else [_LIST.sub(", ", ",".join(values))] for name, values in found.items()
    }
    return tuple(sorted((name, value) for name, values in lists.items() for value in values))


def _as_sent(request: Request) -> Sent:
    return Sent(request.method, request.target, _plain(request.fields), request.body)


def put(port: int, origin: Origin, raw: bytes) -> Outcome:
    """Send bytes on a connection of their own and read one answer; nobody else may use the origin meanwhile."""
    before = len(origin.requests)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        answer = _answer_to(sock, raw)
    return Outcome(tuple(_as_sent(request) for request in origin.requests[before:]), answer)


def _answer_to(sock: socket.socket, raw: bytes) -> Got:
    with suppress(ConnectionError):  # refused before all was sent
        sock.sendall(raw)
    response = http.client.HTTPResponse(sock, method=raw.partition(b" ")[0].decode("latin-1"))
    try:
        response.begin()
        body = b"" if response.status == 101 else response.read()
    except (http.client.HTTPException, ConnectionError):
        return Got(0)
    finally:
        response.close()
    fields = [field for field in response.getheaders() if field[0].lower() not in _OF_A_SERVER]
    return Got(response.status, _plain(fields), body)
