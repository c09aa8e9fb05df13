"""How a channel receives and sends what is small: the beginning of a request, and an answer with its head."""

from __future__ import annotations

import socket
from typing import Any

from waitress.channel import HTTPChannel

from pyramid_threaded_proxy.detach.resting import Resting
from pyramid_threaded_proxy.loop.syscalls import KEEPS_LOCK, SMALL, send_small


class SmallMessages(HTTPChannel):
    """A waitress channel that takes less time for small messages."""

    head = b""  # the task's worker thread: the head of its answer, which waits for what follows it
    resting: Resting  # of its loop
    at_rest = False  # set and cleared by the main thread; a worker that changes what is asked of the channel looks
    sending = False  # a worker thread sends what it has just written, and says so where some is left

    def writable(self) -> bool:
        """Main thread, each turn. Stock waitress would turn in vain as long as a worker is about to send."""
        return (self.total_outbufs_len and not self.sending) or self.will_close or self.close_when_flushed

    def write_soon(self, data: Any) -> int:
        """A worker thread. The head that waits goes out with `data`, where that is small: one call and one packet less.

        As stock waitress does it each of them is sent alone.
        """
        if head := self.head:
            if not data:
                return 0  # what follows comes yet
            self.head = b""
            if type(data) is bytes and len(data) <= SMALL:
                data = head + data
            else:
                self.write_soon(head)
        if self.total_outbufs_len:  # it may have to wait for the main thread, which was woken when some was left
            return int(HTTPChannel.write_soon(self, data))
        self.sending = True
        try:
            return int(HTTPChannel.write_soon(self, data))
        finally:
            self.sending = False
            if self.total_outbufs_len:
                self.server.pull_trigger()
                self.resting.wake(self)

    if KEEPS_LOCK:  # elsewhere they would cost a call each, and be of no use

        def recv(self, buffer_size: int) -> bytes:
            """Main thread. The beginning of a request, without letting go of the interpreter's lock."""
            data: bytes | None = None
            if self.request is None and type(self.socket) is socket.socket:  # what an SSLSocket has is not for us
                data = self.server.trigger.receiver.take(self.socket)
            return data or HTTPChannel.recv(self, buffer_size)

        def send(self, data: bytes, do_close: bool = True) -> int:
            """A small answer, without letting go of that lock: the worker would meet the other threads each time."""
            if type(self.socket) is socket.socket:
                sent = send_small(self.socket, data)
                if sent >= 0:
                    return sent
            return int(HTTPChannel.send(self, data, do_close))
