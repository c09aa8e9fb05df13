"""Bodies that waitress receives whole: what has come is taken in a few large pieces, not in one small one a turn.

Each turn of waitress's loop costs more than to copy `recv_bytes`, and memory for a larger piece would be mapped by the
system for each read. So the pieces have one place, and several are taken in a turn.
"""

from __future__ import annotations

import socket
from typing import Any

from waitress.receiver import FixedStreamReceiver

#: Bytes of a piece: it is in the processor's cache still when it is written out.
PIECE = 256 * 1024
#: Bytes that are taken so in one turn, of all bodies: what else has come waits for another one.
A_TURN = 4 * PIECE


class BodyReceiver:
    """Where waitress's main thread receives pieces of bodies; that thread alone."""

    __slots__ = ("_buffer", "_left")

    def __init__(self) -> None:
        self._buffer: memoryview | None = None
        self._left = A_TURN

    def begin_turn(self) -> None:
        self._left = A_TURN

    def take_more(self, channel: Any) -> None:
        """Behind a read of waitress's: give the parser what else has come of a body whose length is known.

        Its last bytes are left to waitress, which looks what comes behind them; and so is whatever goes wrong.
        """
        request = channel.request
        receiver = request.body_rcv
        if type(receiver) is not FixedStreamReceiver or type(channel.socket) is not socket.socket:
            return
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE))
        last = channel.adj.recv_bytes
        while self._left > 0 and receiver.remain > last and not (channel.will_close or channel.close_when_flushed):
            try:
                count = channel.socket.recv_into(self._buffer, min(PIECE, receiver.remain - 1))
            except OSError:
                return
            if not count:
                return
            request.received(self._buffer[:count])
            self._left -= count
