"""A switched connection (RFC 9110 7.8): bytes go both ways as they come, until both sides have closed.

A quiet tunnel holds no thread and no buffer. What one side sends faster than the other takes stays in the kernel:
nothing is read for a side that still has bytes of ours to take.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pyramid_threaded_proxy.exceptions import ClientGone, ExchangeFailed, TunnelIdle, UpstreamGone
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, RESET, WRITE
from pyramid_threaded_proxy.loop.waits import Ready

#: Bytes read at a time.
_AT_ONCE = 64 * 1024
#: Reads in a row before other tasks have their turn.
_TURNS = 8


class _Way:
    """One direction: what was read from `source` and not yet taken by `target`."""

    __slots__ = ("broke", "gone_source", "gone_target", "moved", "open", "pending", "source", "target")

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
        #: The upstream broke: the client may still read what it has said before.
        self.broke: UpstreamGone | None = None

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
            self._break(self.gone_target, error)
            self.drop()
            return False
        self.moved(sent)
        self.pending = memoryview(self.pending)[sent:] if sent < len(self.pending) else b""
        return not self.pending

    def _read(self) -> bool:
        try:
            self.pending = self.source.sock.recv(_AT_ONCE)
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(self.gone_source, error)
            self.pending = b""
        if not self.pending:
            self.open = False
            self._pass_end_on()
            return False
        return True

    def _break(self, kind: type[ExchangeFailed], error: OSError) -> None:
        """A side broke: the upstream's end is passed on as any other, behind what it has said; the client's is all."""
        gone = kind(f"the switched connection broke: {error.strerror}")
        if not isinstance(gone, UpstreamGone):
            raise gone
        self.broke = gone

    def drop(self) -> None:
        """Nothing more goes this way: its target is gone."""
        self.open, self.pending = False, b""

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
) -> Any:
    """Steps: until both sides have closed. `early` and `moved` are for the way up, then for the way down.

    Where the upstream resets, the client's side is half-closed behind all that came before, so that it can read that;
    the `UpstreamGone` is returned, None where nothing broke. Raises `ClientGone` when the client resets, `TunnelIdle`
    after `idle_timeout` seconds without a move.
    """
    client.may_half_close = upstream.may_half_close = True
    up = _Way(client, upstream, early[0], moved[0], (ClientGone, UpstreamGone))
    down = _Way(upstream, client, early[1], moved[1], (UpstreamGone, ClientGone))
    while True:
        up.advance()
        down.advance()
        if down.broke is not None or up.broke is not None:
            up.drop()  # what the client says has nowhere to go
        if up.done and down.done:
            return up.broke or down.broke
        reset, events = yield Ready(client, _wanted(up, down), idle_timeout, TunnelIdle, upstream, _wanted(down, up))
        if events & RESET:
            if reset is client:
                raise ClientGone("the client reset the switched connection")
            up.drop()
            up.broke = up.broke or UpstreamGone("the upstream reset the switched connection")


def _wanted(outward: _Way, inward: _Way) -> int:
    """What to wait for on the socket that is `outward`'s source and `inward`'s target."""
    wants_read = outward.open and not outward.pending
    return (READ if wants_read else 0) | (WRITE if inward.pending else 0)
