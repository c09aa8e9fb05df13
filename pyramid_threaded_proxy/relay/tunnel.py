"""A switched connection (RFC 9110 7.8): bytes go both ways as they come, until both sides have closed.

A quiet tunnel holds no thread and no buffer. What one side sends faster than the other takes stays in the kernel:
nothing is read for a side that still has bytes of ours to take.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeFailed, TunnelIdle, UpstreamGone
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, RESET, WRITE
from pyramid_threaded_proxy.loop.waits import Ready, Steps

#: Bytes read at a time.
_AT_ONCE = 64 * 1024
#: Reads in a row before other tasks have their turn.
_TURNS = 8


class _Way:
    """One direction: what was read from `source` and not yet taken by `target`."""

    __slots__ = ("gone_source", "gone_target", "moved", "open", "pending", "source", "target")

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        early: bytes,
        moved: Callable[[int], None],
        gone: tuple[type[ExchangeFailed], type[ExchangeFailed]],
    ) -> None:
        self.source = source
        self.target = target
        self.pending: bytes | memoryview = early
        self.moved = moved
        self.gone_source, self.gone_target = gone
        self.open = True

    def advance(self) -> None:
        """Move what moves without waiting; an end is passed on once everything before it was taken."""
        for _ in range(_TURNS):
            if self.pending and not self._write():
                return
            if not self.open or not self._read():
                return

    def _write(self) -> bool:
        try:
            sent = self.target.sock.send(self.pending)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self.gone_target(f"the switched connection broke: {error.strerror}") from None
        self.moved(sent)
        self.pending = memoryview(self.pending)[sent:] if sent < len(self.pending) else b""
        return not self.pending

    def _read(self) -> bool:
        try:
            self.pending = self.source.sock.recv(_AT_ONCE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self.gone_source(f"the switched connection broke: {error.strerror}") from None
        if not self.pending:
            self.open = False
            self._pass_end_on()
            return False
        return True

    def _pass_end_on(self) -> None:
        try:
            self.target.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side closed first

    @property
    def done(self) -> bool:
        """Whether nothing more will go this way."""
        return not self.open and not self.pending


def tunnel(
    client: Endpoint,
    upstream: Endpoint,
    early: tuple[bytes, bytes],
    idle_timeout: float,
    moved: tuple[Callable[[int], None], Callable[[int], None]],
) -> Steps:
    """Steps: until both sides have closed. `early` and `moved` are for the way up, then for the way down.

    Raises `ClientGone` or `UpstreamGone` when a side resets, `TunnelIdle` after `idle_timeout` seconds without a move.
    """
    client.may_half_close = upstream.may_half_close = True
    up = _Way(client, upstream, early[0], moved[0], (ClientGone, UpstreamGone))
    down = _Way(upstream, client, early[1], moved[1], (UpstreamGone, ClientGone))
    while True:
        up.advance()
        down.advance()
        if up.done and down.done:
            return
        reset, events = yield Ready(client, _wanted(up, down), idle_timeout, TunnelIdle, upstream, _wanted(down, up))
        if events & RESET:
            _on_reset(up if reset is upstream else down)


def _on_reset(towards: _Way) -> None:
    """A side has reset: what goes towards it is lost. What came from it before may still be read, or says so itself."""
    if towards.gone_target is ClientGone:
        raise ClientGone("the client reset the switched connection")
    towards.open, towards.pending = False, b""


def _wanted(outward: _Way, inward: _Way) -> int:
    """What to wait for on the socket that is `outward`'s source and `inward`'s target."""
    wants_read = outward.open and not outward.pending
    return (READ if wants_read else 0) | (WRITE if inward.pending else 0)
