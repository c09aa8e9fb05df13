"""Scripted upstreams."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

from tests.support.closing import Closing
from tests.support.waiting import PATIENCE
from tests.support.wire import Closed, OriginWire, Request

Script = Callable[[OriginWire], None]


class Origin(Closing):
    """An upstream whose every connection runs `script` in a thread of its own, and is closed when that returns.

    An exception in a script fails the test when the origin is closed, unless the proxy's end was closed.
    `listener` is another socket to listen on; `wrap` makes something else, such as TLS, of each accepted one.
    """

    def __init__(
        self,
        script: Script,
        listener: socket.socket | None = None,
        wrap: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        self._script = script
        self._wrap = wrap
        self._listener = listener or socket.create_server(("127.0.0.1", 0), backlog=512)
        name = self._listener.getsockname()
        self.port: int = 0 if isinstance(name, str) else name[1]
        self.url = f"http{'s' if wrap else ''}://127.0.0.1:{self.port}"
        if isinstance(name, str):
            self.url = f"http+unix://{quote(name, safe='')}"
        self.authority = f"127.0.0.1:{self.port}"
        self.accepted = 0
        self.requests: list[Request] = []
        self.wires: list[OriginWire] = []
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            wire = OriginWire(sock, self.requests)
            self.wires.append(wire)
            thread = threading.Thread(target=self._run, args=(wire,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, wire: OriginWire) -> None:
        try:
            if self._wrap is not None:
                wire.sock = self._wrap(wire.sock)
            self._script(wire)
        except (ConnectionError, TimeoutError):
            pass
        except OSError as error:
            if wire.sock.fileno() >= 0:
                self._errors.append(error)
        except BaseException as error:
            self._errors.append(error)
        finally:
            wire.close()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        self.stop_listening()
        for wire in self.wires:
            with suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]


#: What the fixture `origin` is.
MakeOrigin = Callable[[Script], Origin]
#: What the fixture `tls_origin` is.
MakeTls = Callable[..., Origin]


def echo(wire: OriginWire) -> None:
    """Answers every whole request with the request's own bytes."""
    with suppress(Closed):
        while (request := wire.request()) is not None:
            wire.answer(b"" if request.method == "HEAD" else request.raw, "Content-Type: text/plain")


def silent(wire: OriginWire) -> None:
    """Takes a request, and says nothing until the proxy closes."""
    with suppress(Closed):
        wire.request()
        wire.wait_closed()


def beginning(wire: OriginWire) -> None:
    """Begins a chunked answer that does not end until the proxy closes."""
    wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    wire.wait_closed()


def answering(*answers: bytes) -> Script:
    """A script that answers the requests of a connection with the given bytes, then closes it."""

    def script(wire: OriginWire) -> None:
        for answer in answers:
            if wire.request() is None:
                return
            wire.send(answer)

    return script


def in_turn(*scripts: Script) -> Script:
    """A script that runs the next of `scripts` for each connection, and the last one for all further connections."""
    turn = itertools.count()

    def script(wire: OriginWire) -> None:
        scripts[min(next(turn), len(scripts) - 1)](wire)

    return script


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
