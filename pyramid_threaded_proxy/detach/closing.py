"""How a connection is closed behind an answer, so that its client can read that."""

from __future__ import annotations

from typing import Any

from pyramid_threaded_proxy.loop.loop import Loop


def linger(channel: Any, loop: Loop | None) -> None:
    """Have a loop close a connection that was answered, when its client has closed or had time to (RFC 9112 9.6).

    Waitress closes its own descriptor meanwhile: the loop has another one, of the same connection.
    """
    if channel.ended or not channel.connected or channel.total_outbufs_len or loop is None or loop.dead:
        return
    channel.ended = True
    try:
        sock = channel.socket.dup()
    except OSError:
        return  # closed, or no descriptor is left: then as waitress does it
    loop.lingering.take(sock)
