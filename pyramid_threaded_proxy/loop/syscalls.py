"""Small sends and receives on sockets that don't block, without letting go of the interpreter's lock.

`socket.send` and `socket.recv` release the lock around the system call. Where another core waits for it, that wakes a
thread there for a very short call, and takes the lock back from it or waits: which costs more than the call.
So where there are several cores, what is short is called through `ctypes.PyDLL`, which keeps the lock. What goes wrong
in such a call is done again by the socket's own method, which raises as it should.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

try:
    import ctypes
except ImportError:  # pragma: no cover: a Python that was built without libffi
    ctypes = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pyramid_threaded_proxy.loop.endpoint import Endpoint

#: Bytes: what is longer is copied long enough for other threads to make use of the time.
SMALL = 16 * 1024
#: Where an argument is passed in a register of 64 bits, into which a C int is widened: declaring each argument's type
#: would make an object of it for each call.
_WIDENING = ("x86_64", "aarch64")


def _libc() -> Any:
    """The C library's functions; None where nobody waits on another core, or the system is not such a Linux."""
    if ctypes is None or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    if os.uname().machine not in _WIDENING or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    library = ctypes.PyDLL(None)
    library.send.restype = library.recv.restype = ctypes.c_ssize_t
    return library


_LIBC = _libc()
#: Whether such calls are made here.
KEEPS_LOCK = _LIBC is not None
#: Plain numbers: to join two of the socket module's is a call of Python's.
_SEND_FLAGS = int(getattr(socket, "MSG_DONTWAIT", 0)) | int(getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE_FLAGS = int(getattr(socket, "MSG_DONTWAIT", 0))


def send(endpoint: Endpoint, data: bytes | memoryview) -> int:
    """Send what can be sent at once; returns how much that was. Raises as `socket.send`. In the socket's own thread."""
    sock, size = endpoint.sock, len(data)
    if _LIBC is not None and size <= SMALL and type(data) is bytes and endpoint.raw:
        # The number is the socket's own word: -1 once it is closed, and never a stranger's.
        sent: int = _LIBC.send(sock.fileno(), data, size, _SEND_FLAGS)
        if sent >= 0:
            return sent
    return sock.send(data)


def send_small(sock: socket.socket, data: bytes) -> int:
    """Send what can be sent at once; returns how much that was, -1 where `sock` itself must be asked.

    In any thread, for a plain socket that does not block.
    """
    size = len(data)
    if _LIBC is None or size > SMALL or type(data) is not bytes:
        return -1
    return int(_LIBC.send(sock.fileno(), data, size, _SEND_FLAGS))


class Receiver:
    """Where one thread receives small messages; what is in it belongs to whoever was last read from."""

    def __init__(self) -> None:
        if _LIBC is not None:
            self._buffer: Any = (ctypes.c_char * SMALL)()
            self._pointer = ctypes.byref(self._buffer)

    def take(self, sock: socket.socket) -> bytes | None:
        """What is there, `SMALL` bytes at most, b"" at the end; None where `sock` itself must be asked."""
        if _LIBC is None:
            return None
        count: int = _LIBC.recv(sock.fileno(), self._pointer, SMALL, _RECEIVE_FLAGS)
        if count < 0:
            return None
        data: bytes = self._buffer[:count]
        return data


def receive(endpoint: Endpoint) -> bytes:
    """Receive what is there, `SMALL` bytes at most; b"" at the end. Raises as `socket.recv`. In the socket's thread."""
    loop = endpoint.loop
    if loop is not None and endpoint.raw:
        data = loop.receiver.take(endpoint.sock)
        if data is not None:
            return data
    return endpoint.sock.recv(SMALL)
