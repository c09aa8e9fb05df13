"""Waitress's tables: a channel in them costs the main thread a look each turn, so who is away for long leaves them."""

from __future__ import annotations

from typing import Any


def settle(channel: Any) -> None:
    """Main thread. In the tables or out of them, as the channel is at this moment: the last one decides right."""
    with channel.outbuf_lock:
        trigger = channel.server.trigger
        fd, away = channel._fileno, trigger.away
        if fd is None or channel.loop_ended:  # closed, or nobody's business any more
            away.discard(channel)
            return
        detached = channel.is_detached()
        channel.asked_out = detached
        (away.add if detached else away.discard)(channel)
        if channel.will_close and not detached:  # not when it can be written to: that may be never
            channel.handle_close()
            return
        trigger.resting.drop(fd)
        for table in (channel._map, channel.server.active_channels):
            if detached:
                table.pop(fd, None)
            else:
                table[fd] = channel
