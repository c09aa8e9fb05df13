"""An upstream in a process of its own, whose answers go wrong where and how the request's target says.

``/FRAMING/STAGE/HOW/NUMBER/SIZE``: a body of SIZE bytes besides its seal, framed by `length`, `chunked` or `close`; at
STAGE (see `STAGES`, or `whole`) HOW (see `HOWS`) happens. ``/flood/FRAMING/SIZE`` sends as fast as it is taken; a POST
to ``/deaf`` is never read. Each request's target is written to a file as soon as it has come, where one is given.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE
from tests.support.wire import OriginWire, Request

#: Where an answer goes wrong: before its head, in its head, in its body (in a chunk's data), in a chunk's size line.
STAGES = ("before", "head", "body", "size-line")
#: How: reset, an end of the stream, silence, bytes that mean nothing, or the process is killed. It may `pause` as well.
HOWS = ("reset", "close", "hang", "garbage", "kill")
FRAMINGS = ("length", "chunked", "close")

_GARBAGE = b"\x00\xffSSH-2.0 garbage\n\r\x01: \n\n"


def sealed(target: str) -> bytes:
    """The body that belongs to a target, and to no other: its name, noise, and a checksum of both."""
    body = target.encode() + b"\n" + hashlib.shake_128(target.encode()).digest(int(target.rpartition("/")[2]))
    return body + hashlib.sha256(body).hexdigest().encode()


class OriginProcess:
    """The process, on a port that stays the same when it is killed and started again."""

    def __init__(self, log: Path = Path(os.devnull)) -> None:
        self.log = log
        self.port = 0
        self.kills = 0
        self._lock = threading.Lock()
        self.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, the first time on a port that no outgoing connection is ever given."""
        self.port = self.port or next(filter(_is_free, random.sample(range(20_000, 30_000), 100)))
        command = [sys.executable, "-m", __name__, str(self.port), str(self.log)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", self._process.communicate()[1]

    def wait_killed(self) -> None:
        """Wait until it has ended."""
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End it as if the machine had run out of memory."""
        self._process.kill()
        self.wait_killed()

    def restart_if_dead(self) -> None:
        """Start it again where it has killed itself. Any thread."""
        with self._lock:
            if self._process.poll() is not None:
                self.kills += 1
                self._collect()
                self.start()

    def _collect(self) -> None:
        errors = self._process.communicate(timeout=PATIENCE)[1]
        assert not errors, errors

    def __enter__(self) -> OriginProcess:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._collect()


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


# In the process


class _Broken(Exception):
    """This connection is over."""


class _Answer:
    """One answer, written stage by stage."""

    def __init__(self, wire: OriginWire, request: Request) -> None:
        self._wire = wire
        self._framing, self._stage, self._how, _, _ = request.target.lstrip("/").split("/")
        self._body = sealed(request.target)

    def send(self) -> bool:
        """Send it; whether the connection goes on."""
        self._at("before")
        wire, body, half = self._wire, self._body, len(self._body) // 2
        framing = {
            "length": b"Content-Length: %d\r\n" % len(body),
            "chunked": b"Transfer-Encoding: chunked\r\n",
            "close": b"Connection: close\r\n",
        }[self._framing]
        wire.send(b"HTTP/1.1 200 OK\r\nX-Half: ")
        self._at("head")
        wire.send(b"a head\r\n" + framing + b"\r\n")
        if self._framing == "chunked":
            wire.send(b"%x\r\n%b\r\n%x\r\n" % (half, body[:half], len(body) - half))
            self._at("body")
            wire.send(body[half:] + b"\r\n")
            self._at("size-line")
            wire.send(b"0\r\n\r\n")
        else:
            wire.send(body[:half])
            self._at("body")
            wire.send(body[half:])
        return self._framing != "close"

    def _at(self, stage: str) -> None:
        """Go wrong, if it is time."""
        if stage != self._stage:
            return
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "pause":
            return time.sleep(0.15)
        if self._how == "reset":
            self._wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._how == "hang":
            self._wire.wait_closed()
        if self._how == "garbage":
            self._wire.send(_GARBAGE)
        raise _Broken


def _flood(wire: OriginWire, framing: str, size: int) -> None:
    """Send `size` bytes as fast as they are taken."""
    wire.sock.settimeout(None)
    chunked = framing == "chunked"
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    wire.send(b"HTTP/1.1 200 OK\r\n")
    wire.send(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % size)
    for _ in range(size // 65536):
        wire.send(piece)
    if chunked:
        wire.send(b"0\r\n\r\n")


def _serve(wire: OriginWire, log: int) -> None:
    if wire.sock.recv(10, socket.MSG_PEEK) == b"POST /deaf":
        threading.Event().wait()
    while (request := wire.request()) is not None:
        os.write(log, f"{request.target}\n".encode())
        if request.target.startswith("/flood/"):
            _, _, framing, size = request.target.split("/")
            _flood(wire, framing, int(size))
        elif (user := request.one("X-User")) is not None and f"/{user}-" not in request.target:
            return wire.answer(b"another user", status="418 Wrong User")
        elif request.body and request.body != sealed(request.target):
            return wire.answer(b"another body", status="418 Wrong Body")
        elif not _Answer(wire, request).send():
            return


def _connection(sock: socket.socket, log: int) -> None:
    wire = OriginWire(sock)
    with suppress(_Broken, OSError, AssertionError):
        _serve(wire, log)
    wire.close()


def _main(port: int, log: int) -> None:
    # Small buffers, so that 500 floods are not a test of the system's memory.
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
    print("ready", flush=True)
    while True:
        threading.Thread(target=_connection, args=(listener.accept()[0], log), daemon=True).start()


if __name__ == "__main__":
    _main(int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
