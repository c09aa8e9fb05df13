"""What the tests of detach and give back share."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile
from typing import Any

from pyramid.config import Configurator
from pyramid.response import Response

from tests.support.peers import PATIENCE, Origin, OriginWire, Script, Site, Wire

MakeOrigin = Callable[[Script], Origin]
MakeSite = Callable[..., Site]


class Gate:
    """An upstream that answers nothing until it is opened."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            self.asked.release()
            assert self.opened.wait(PATIENCE)
            wire.answer(request.target.encode())

    def wait_asked(self, count: int = 1) -> None:
        """Wait until `count` more requests have arrived."""
        for _ in range(count):
            assert self.asked.acquire(timeout=PATIENCE)


class Silent:
    """An upstream that never answers, and knows when it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)

    def __call__(self, wire: OriginWire) -> None:
        assert wire.request() is not None
        self.asked.release()
        wire.wait_closed()
        self.let_go.release()


class CheckedTable(dict[int, Any]):
    """A table of waitress's that notes which threads change it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changed_by: set[str] = set()

    def _note(self) -> None:
        self.changed_by.add(threading.current_thread().name)

    def __setitem__(self, key: int, value: Any) -> None:
        self._note()
        super().__setitem__(key, value)

    def __delitem__(self, key: int) -> None:
        self._note()
        super().__delitem__(key)

    def pop(self, *arguments: Any) -> Any:
        self._note()
        return super().pop(*arguments)


def own_view(config: Configurator) -> None:
    """A view of the application's at /own."""
    config.add_route("own", "/own")
    config.add_view(lambda request: Response("own"), route_name="own")


def servers(site: Site) -> list[Any]:
    """Waitress's server for each listening socket."""
    return [entry for entry in list(site.map.values()) if hasattr(entry, "active_channels")]


def connections(site: Site) -> set[Any]:
    """All open channels, those out of waitress's tables too."""
    away = [getattr(server.trigger, "away", ()) for server in servers(site)]
    return {*site.channels, *(channel for channels in away for channel in list(channels))}


def in_tables(site: Site, channel: Any) -> bool:
    """Whether waitress knows the channel; the same in both of its tables."""
    known = []
    site.on_main_thread(
        lambda: known.extend([channel in site.map.values(), channel in channel.server.active_channels.values()])
    )
    assert known[0] == known[1]
    return bool(known[0])


def get(target: str, *fields: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: a", *fields, "", ""]).encode()


def read_answer(client: Wire) -> tuple[str, dict[str, str], bytes]:
    """One answer with Content-Length: its first line, its fields, its body."""
    first, fields = client.head()
    return first, fields, client.exactly(int(fields["content-length"]))


def body(client: Wire) -> bytes:
    return read_answer(client)[2]


def post(target: str, data: bytes, *fields: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: a", f"Content-Length: {len(data)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + data


#: More than the kernel's buffers hold, less than waitress's.
BIG = 10_000_000


def big_view(config: Configurator) -> None:
    """A view of the application's with a big body, and one at /own."""
    config.add_route("big", "/big")
    config.add_view(lambda request: Response(b"x" * BIG), route_name="big")
    own_view(config)


def slow_client(site: Site) -> Wire:
    """A connection that takes little ahead of its reader."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", site.port))
    return Wire(sock)


@contextmanager
def strangers() -> Iterator[list[int]]:
    """Files that take the descriptor numbers which are free; in the end nobody may have written to them."""
    with ExitStack() as stack:
        numbers = [stack.enter_context(TemporaryFile()).fileno() for _ in range(50)]
        yield numbers
        assert all(os.fstat(number).st_size == 0 for number in numbers)
