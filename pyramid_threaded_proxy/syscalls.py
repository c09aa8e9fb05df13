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
    from pyramid_threaded_proxy.tasks import Endpoint

#: Bytes: what is longer is copied long enough for other threads to make use of the time.
SMALL = 16 * 1024


def _libc() -> Any:
    """The C library's functions; None where nobody waits on another core, or the system is not Linux."""
    if ctypes is None or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None
    library = ctypes.PyDLL(None)
    for function, pointer in ((library.send, ctypes.c_char_p), (library.recv, ctypes.c_void_p)):
        function.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t, ctypes.c_int)
        function.restype = ctypes.c_ssize_t
    return library


_LIBC = _libc()
#: Plain numbers: to join two of the socket module's is a call of Python's.
_SEND_FLAGS = int(getattr(socket, "MSG_DONTWAIT", 0)) | int(getattr(socket, "MSG_NOSIGNAL", 0))
_RECEIVE_FLAGS = int(getattr(socket, "MSG_DONTWAIT", 0))


def send(endpoint: Endpoint, data: bytes | memoryview) -> int:
    """Send what can be sent at once; returns how much that was. Raises as `socket.send`. In the socket's own thread."""
    if _LIBC is not None and endpoint.raw and type(data) is bytes and len(data) <= SMALL:
        # The number is the socket's own word: -1 once it is closed, and never a stranger's.
        sent: int = _LIBC.send(endpoint.sock.fileno(), data, len(data), _SEND_FLAGS)
        if sent >= 0:
            return sent
    return endpoint.sock.send(data)


class Receiver:
    """Where one loop receives small messages; what is in it belongs to whoever was last read from. Its thread alone."""

    def __init__(self) -> None:
        if _LIBC is not None:
            buffer = (ctypes.c_char * SMALL)()
            self.address = ctypes.addressof(buffer)
            self.view = memoryview(buffer).cast("B")


def receive(endpoint: Endpoint) -> bytes:
    """Receive what is there, `SMALL` bytes at most; b"" at the end. Raises as `socket.recv`. In the socket's thread."""
    loop = endpoint.loop
    if _LIBC is not None and loop is not None and endpoint.raw:
        receiver = loop.receiver
        count: int = _LIBC.recv(endpoint.sock.fileno(), receiver.address, SMALL, _RECEIVE_FLAGS)
        if count >= 0:
            return bytes(receiver.view[:count])
    return endpoint.sock.recv(SMALL)
