"""What waitress does behind a task, for a request that was answered elsewhere. In the thread that owns the channel."""

from __future__ import annotations

import time
from typing import Any

from waitress.channel import HTTPChannel


class Finished:
    """Stands in for the task that the relay has done, so that waitress runs its own epilogue behind it."""

    close_on_finish = False

    def __init__(self, channel: Any, request: Any) -> None:
        del channel.task_class  # before the epilogue, which may let another worker in

    def service(self) -> None:
        """Nothing: the answer is written."""


class FinishedLast(Finished):
    """The same, for the last answer on its connection."""

    close_on_finish = True


def pop_request(channel: Any) -> bool:
    """Do what `HTTPChannel.service` does behind its task, where no more than this is to be done; whether it was."""
    with channel.requests_lock:
        if len(channel.requests) > 1 or channel.request is not None:
            return False
        if channel.current_outbuf_count:  # of an earlier answer: the next one begins a buffer of its own
            channel.current_outbuf_count = channel.adj.outbuf_high_watermark
        request = channel.requests.pop()
    request.close()
    channel.last_activity = time.time()
    return True


def run_epilogue(channel: Any, close: bool) -> None:
    """Have waitress end the request: close its body, start the next one or close the connection, wake its loop."""
    if not close and pop_request(channel):
        # Behind the pop: if the main thread looked before, it has said so.
        if channel.unwatched and channel.connected:
            channel.server.pull_trigger()
        return
    channel.task_class = FinishedLast if close else Finished
    HTTPChannel.service(channel)
    channel.resting.wake(channel)
