"""Real peers for tests: a scripted upstream, an application under waitress, a client that speaks bytes."""

from __future__ import annotations

import http.client
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import waitress
from pyramid.authorization import ACLHelper, Authenticated, Everyone
from pyramid.config import Configurator
from waitress import wasyncore

#: Seconds after which something that should have happened has not.
PATIENCE = 10.0


def wait_until(condition: Callable[[], Any], what: str = "the condition", timeout: float = PATIENCE) -> Any:
    """Poll for something that can't be waited on otherwise; returns its true value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout:g} s")
        select.select([], [], [], 0.005)
    return value


#: The threads that were there when the present test began; one that blocks may outlive the test that made it.
EARLIER: set[threading.Thread] = set()


def own_threads(*prefixes: str) -> list[str]:
    """The names of the threads that this test's own doings have started, those with one of the prefixes."""
    return sorted(thread.name for thread in set(threading.enumerate()) - EARLIER if thread.name.startswith(prefixes))


def open_descriptors() -> set[str]:
    """What this process has open, as ``number -> target``."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return found


class Request(NamedTuple):
    """A request as an upstream received it."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """The value of a field that may be there once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


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
            assert data, f"closed before {mark!r}; had {self.buffer[-200:]!r}"
            self.buffer += data
        end = self.buffer.index(mark) + len(mark)
        found, self.buffer = self.buffer[:end], self.buffer[end:]
        return found

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.receive()
            assert data, f"closed after {len(self.buffer)} of {count} bytes"
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

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class OriginWire(Wire):
    """The upstream's end of one connection."""

    def request(self) -> Request | None:
        """The next request, None when the proxy closed instead."""
        try:
            head = self.until(b"\r\n\r\n")
        except (AssertionError, OSError):
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        lower = {name.lower(): value for name, value in fields}
        if "content-length" in lower:
            body = self.exactly(int(lower["content-length"]))
        elif lower.get("transfer-encoding") == "chunked":
            body = self._chunks()
        else:
            body = b""
        return Request(method, target, fields, body, head + body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.until(b"\r\n"), 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n"
        return body

    def answer(self, body: bytes = b"", *fields: str, status: str = "200 OK") -> None:
        """An ordinary answer with Content-Length."""
        lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)


Script = Callable[[OriginWire], None]


class Origin:
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
            wire = OriginWire(sock)
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

    def __enter__(self) -> Origin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(BaseException):
                self.close()


def echo(wire: OriginWire) -> None:
    """Answers every request with the request's own bytes."""
    while (request := wire.request()) is not None:
        wire.answer(b"" if request.method == "HEAD" else request.raw, "Content-Type: text/plain")


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


class Site:
    """A Pyramid application with the add-on, under real waitress in a thread of this process.

    `settings` are Pyramid's; `configure` is called with the Configurator after the include. Further options are
    waitress's.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        configure: Callable[[Configurator], None] | None = None,
        sockets: int = 1,
        wrap: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        config = Configurator(settings=settings)
        config.include("pyramid_threaded_proxy")
        if configure is not None:
            configure(config)
        self.application = config.make_wsgi_app()
        self.registry = config.registry
        self.engine = config.registry["pyramid_threaded_proxy.engine"]
        application = wrap(self.application) if wrap is not None else self.application
        listen = " ".join(["127.0.0.1:0"] * sockets)
        self.server = waitress.create_server(application, listen=listen, **{"threads": 4, **options})
        self.map = self.server.map if sockets > 1 else self.server._map
        self.ports = [port for _, port in self.server.effective_listen] if sockets > 1 else [self.server.effective_port]
        self.port = int(self.ports[0])
        self.authority = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.authority}"
        self._thread = threading.Thread(target=self.server.run, name="waitress-main", daemon=True)
        self._thread.start()

    @property
    def channels(self) -> list[Any]:
        """The channels in waitress's map."""
        return [entry for entry in list(self.map.values()) if hasattr(entry, "requests")]

    def on_main_thread(self, thunk: Callable[[], None]) -> None:
        """Run `thunk` on waitress's own thread and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                thunk()
            finally:
                done.set()

        trigger = next(entry for entry in list(self.map.values()) if hasattr(entry, "pull_trigger"))
        with suppress(OSError):  # a stock trigger's own write, where the thunk has closed it before
            trigger.pull_trigger(run)
        assert done.wait(PATIENCE)

    def parked(self, events: int) -> int:
        """How many exchanges wait for a socket to be ready for one of `events`."""
        tasks = [task for loop in list(self.engine.scheduler._loops) for task in list(loop.tasks)]
        return sum(1 for task in tasks if getattr(task.wait, "events", 0) & events)

    def client(self) -> Wire:
        """A raw connection."""
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE))

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: Any = None) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.getheaders(), response.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return everything until the server closes."""
        client = self.client()
        try:
            client.send(request)
            return client.rest()
        finally:
            client.close()

    def close(self) -> None:
        wait_until(lambda: self.engine.admission.in_flight == 0, "the end of all exchanges")
        self.engine.close()
        self.on_main_thread(lambda: wasyncore.close_all(self.map, ignore_all=True))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.server.task_dispatcher.shutdown()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(BaseException):
                self.close()


class Answer(NamedTuple):
    """An answer as a client received it."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """The value of a field that may be there once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


def route(name: str, upstream: str, **keys: str) -> dict[str, str]:
    """Settings of a public route `name` below ``/name``; keys are written with ``__`` for ``.``."""
    values = {"prefix": f"/{name}", "upstream": upstream, "public": "true"}
    values.update({key.replace("__", "."): value for key, value in keys.items()})
    return {f"proxy.routes.{name}.{key}": value for key, value in values.items()}


def received(answer: Answer) -> Request:
    """The request that an `echo` upstream has sent back, as it received it."""
    assert answer.status == 200, answer
    head, _, body = answer.body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Request(method, target, fields, body, answer.body)


class Policy:
    """A security policy: the user is whoever X-User says, ACLs are asked."""

    def __init__(self) -> None:
        self._acls = ACLHelper()

    def identity(self, request: Any) -> str | None:
        return request.headers.get("X-User")  # type: ignore[no-any-return]

    authenticated_userid = identity

    def permits(self, request: Any, context: Any, permission: str) -> Any:
        user = self.identity(request)
        return self._acls.permits(context, [Everyone, Authenticated, user] if user else [Everyone], permission)

    def remember(self, request: Any, userid: str, **kw: Any) -> list[tuple[str, str]]:
        return []

    def forget(self, request: Any, **kw: Any) -> list[tuple[str, str]]:
        return []
