"""Both ends of a connection as bytes, and the messages on it."""

from __future__ import annotations

import http.client
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.support.waiting import PATIENCE


class Message:
    """What a request and an answer have in common; each has its `fields`."""

    fields: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """The value of a field that may be there once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


@dataclass(frozen=True)
class Request(Message):
    """A request as an upstream received it."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    raw: bytes


@dataclass(frozen=True)
class Answer(Message):
    """An answer as a client received it."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class Closed(AssertionError):
    """The peer closed before what was waited for."""


class Wire:
    """A socket with the words that tests use on both ends."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        return self.sock.recv(65536)

    def until(self, mark: bytes) -> bytes:
        """All up to and with `mark`."""
        while mark not in self.buffer:
            data = self.receive()
            if not data:
                raise Closed(f"closed before {mark!r}; had {self.buffer[-200:]!r}")
            self.buffer += data
        end = self.buffer.index(mark) + len(mark)
        found, self.buffer = self.buffer[:end], self.buffer[end:]
        return found

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.receive()
            if not data:
                raise Closed(f"closed after {len(self.buffer)} of {count} bytes")
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def rest(self) -> bytes:
        """Everything until the peer closes in an orderly way; a reset raises ConnectionResetError."""
        while data := self.receive():
            self.buffer += data
        found, self.buffer = self.buffer, b""
        return found

    def head(self) -> tuple[str, dict[str, str]]:
        """The next head: its first line, and its fields by lower-case name."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")[:-2]
        return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def rest_or_reset(self) -> bytes:
        """Everything until the peer closes, in whatever way."""
        with suppress(ConnectionResetError):
            while data := self.receive():
                self.buffer += data
        found, self.buffer = self.buffer, b""
        return found

    def is_closed(self) -> bool:
        """Whether the peer has closed or reset; never waits."""
        if not select.select([self.sock], [], [], 0)[0]:
            return False
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def wait_closed(self, timeout: float = PATIENCE) -> None:
        """Wait until the peer closes or resets; bytes that come are thrown away."""
        self.sock.settimeout(timeout)
        with suppress(ConnectionError):
            while self.sock.recv(65536):
                pass

    def is_reset(self) -> bool:
        """Whether the peer ends with a reset, whatever comes before; closed in any case."""
        try:
            self.rest()
        except ConnectionResetError:
            return True
        finally:
            self.close()
        return False

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class OriginWire(Wire):
    """The upstream's end of one connection; `requests` gets what came on it."""

    def __init__(self, sock: socket.socket, requests: list[Request] | None = None) -> None:
        super().__init__(sock)
        self._requests = [] if requests is None else requests

    def request(self) -> Request | None:
        """The next request, None when the proxy closed instead. Raises `Closed` where it did so within its body."""
        try:
            head = self.until(b"\r\n\r\n")
        except (Closed, OSError):
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        lower = {name.lower(): value for name, value in fields}
        if "content-length" in lower:
            body = self.exactly(int(lower["content-length"]))
        elif lower.get("transfer-encoding") == "chunked":
            body, trailers = self._chunks()
            fields += [(f"trailer {name}", value) for name, value in trailers]
        else:
            body = b""
        self._requests.append(Request(method, target, fields, body, head + body))
        return self._requests[-1]

    def _chunks(self) -> tuple[bytes, list[tuple[str, str]]]:
        """A body, and the fields behind it."""
        body, trailers = b"", []
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        while (line := self.until(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            trailers.append((name, value.strip()))
        return body, trailers

    def answer(self, body: bytes = b"", *fields: str, status: str = "200 OK") -> None:
        """An ordinary answer with Content-Length."""
        lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)


def over_http(
    port: int, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.getheaders(), response.read())
    finally:
        connection.close()


def get(target: str, *fields: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: a", *fields, "", ""]).encode()


def post(target: str, data: bytes, *fields: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: a", f"Content-Length: {len(data)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + data


def read_answer(client: Wire) -> tuple[str, dict[str, str], bytes]:
    """One answer with Content-Length: its first line, its fields, its body."""
    first, fields = client.head()
    return first, fields, client.exactly(int(fields["content-length"]))


def body(client: Wire) -> bytes:
    return read_answer(client)[2]


def received(answer: Answer) -> Request:
    """The request that an `echo` upstream has sent back, as it received it."""
    assert answer.status == 200, answer
    head, _, body = answer.body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Request(method, target, fields, body, answer.body)
