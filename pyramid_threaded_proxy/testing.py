"""For the tests of applications that proxy: an upstream that answers as the test tells it.

It is a real HTTP server on the loopback address, so that everything between the view and the wire is tested as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Any

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

#: Statuses whose answers have no body (RFC 9110 6.4.1).
_WITHOUT_BODY = {204, 304}


@dataclass(frozen=True)
class ReceivedRequest:
    """A request that a `ScriptedUpstream` has got."""

    #: In upper case, as it came.
    method: str
    #: As it stood in the request line, with the query.
    target: str
    #: Case-insensitive; `get_all()` gives a repeated field's values.
    headers: Message
    #: Whole; a chunked one without its framing.
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query, escaped as it came."""
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterable[bytes]
    #: Bytes that are announced and never sent.
    missing: int = 0


@dataclass
class _Script:
    """What is shared by the test and the threads of the connections; `changed` guards all of it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    answers: dict[tuple[str | None, str], _Answer] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    received: list[ReceivedRequest] = field(default_factory=list)
    closed: bool = False

    def answer_to(self, request: ReceivedRequest) -> _Answer:
        """Waits while the path is held. A path that nobody gave an answer gets 404, which names it."""
        with self.changed:
            self.received.append(request)
            self.changed.notify_all()
            self.changed.wait_for(lambda: request.path not in self.held or self.closed)
            found = self.answers.get((request.method, request.path)) or self.answers.get((None, request.path))
        return found or _Answer(404, [], f"no answer was scripted for {request.method} {request.path}".encode())


class ScriptedUpstream:
    """An upstream for tests: a context manager, and a server in threads of its own while the block lasts.

    A path is given as the upstream gets it, escaped, without a query. The last answer that was given for a path counts.
    A path without one gets 404. All methods may be called in any thread.
    """

    def __init__(self) -> None:
        self._script = _Script()
        self._server = _Server(self._script)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        #: Its URL without a slash at the end, for `upstream` in the settings.
        self.url: str = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ScriptedUpstream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._script.changed:
            self._script.closed = True
            self._script.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.end()

    def answer(
        self,
        path: str,
        body: bytes | str | Iterable[bytes] = b"",
        *,
        status: int = 200,
        headers: Headers = (),
        method: str | None = None,
    ) -> None:
        """Answer requests for `path` so, those of `method` or else all; text is sent as UTF-8.

        Without a Content-Type in `headers` it is ``text/plain`` for text, or ``application/octet-stream``. An iterable
        of bytes is sent in chunks, as it gives them, and so can be sent once. HEAD is answered as GET is, without the
        body, unless it has an answer of its own.
        """
        content = body.encode() if isinstance(body, str) else body
        kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/octet-stream"
        given = _pairs(headers, "" if status in _WITHOUT_BODY else kind)
        self._give(path, _Answer(status, given, content), method)

    def break_off(self, path: str, body: bytes = b"", *, headers: Headers = (), method: str | None = None) -> None:
        """Answer with 200, announce one byte more than `body` has, and close the connection behind it."""
        self._give(path, _Answer(200, _pairs(headers, "application/octet-stream"), body, missing=1), method)

    def hold(self, path: str) -> None:
        """From now on requests for `path` are received, and wait for their answers until `release()`, or the end."""
        with self._script.changed:
            self._script.held.add(path)

    def release(self, path: str) -> None:
        """Answer what waits for `path`, and what comes from now on."""
        with self._script.changed:
            self._script.held.discard(path)
            self._script.changed.notify_all()

    def wait_for(self, path: str, *, timeout: float = 10.0) -> ReceivedRequest:
        """The last request for `path`; waits until there is one. Raises `TimeoutError` after `timeout` seconds."""
        with self._script.changed:
            if self._script.changed.wait_for(lambda: self._last(path) is not None, timeout):
                found = self._last(path)
                assert found is not None
                return found
        raise TimeoutError(f"nobody has asked for {path}, but for {[request.target for request in self.requests]}")

    @property
    def requests(self) -> list[ReceivedRequest]:
        """What it was asked so far, in the order in which it came."""
        with self._script.changed:
            return list(self._script.received)

    def _last(self, path: str) -> ReceivedRequest | None:
        return next((one for one in reversed(self._script.received) if one.path == path), None)

    def _give(self, path: str, answer: _Answer, method: str | None) -> None:
        if not path.startswith("/") or "?" in path:
            raise ValueError(f"{path!r} is no path: it begins with a slash and has no query")
        with self._script.changed:
            self._script.answers[method, path] = answer
            if method == "GET":
                self._script.answers.setdefault(("HEAD", path), answer)


def _pairs(headers: Headers, content_type: str) -> list[tuple[str, str]]:
    """The fields, with a Content-Type where there is none."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if content_type and not any(name.lower() == "content-type" for name, _ in pairs):
        pairs.append(("Content-Type", content_type))
    return pairs


class _Server(ThreadingHTTPServer):
    """The listening socket, and every connection that was made to it: `end` closes them and waits for their threads."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, script: _Script) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.script = script
        self._open: set[socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault of the test's."""

    def end(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(SHUT_RDWR)
            except OSError:
                pass  # it is closed already
        self.server_close()


class _Connection(BaseHTTPRequestHandler):
    """One connection: its requests one after the other, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = _read_body(self.rfile, self.headers)
        request = ReceivedRequest(self.command, self.raw_requestline.split()[1].decode("latin-1"), self.headers, body)
        self._send(self.server.script.answer_to(request))

    def _send(self, answer: _Answer) -> None:
        """The whole answer, or as much of it as was scripted."""
        whole = answer.body if isinstance(answer.body, bytes) else None
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if whole is None:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.status not in _WITHOUT_BODY:
            self.send_header("Content-Length", str(len(whole) + answer.missing))
        self.end_headers()
        if self.command != "HEAD" and answer.status not in _WITHOUT_BODY:
            self._send_body(answer)
        if answer.missing:
            self.close_connection = True

    def _send_body(self, answer: _Answer) -> None:
        if isinstance(answer.body, bytes):
            self.wfile.write(answer.body)
            return
        for piece in answer.body:
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        """The test's output stays its own."""


def _read_body(stream: BufferedIOBase, headers: Message) -> bytes:
    """A request's body; trailers are dropped."""
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("Content-Length", 0)))
    pieces = []
    while size := int(stream.readline().partition(b";")[0], 16):
        pieces.append(stream.read(size))
        stream.readline()
    while stream.readline() not in (b"\r\n", b""):
        pass
    return b"".join(pieces)
