"""What the application asks of the live channel: worker threads, while the request runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer

from pyramid_threaded_proxy.detach.asked_first import Unread
from pyramid_threaded_proxy.detach.channel import DetachableChannel
from pyramid_threaded_proxy.detach.defaults import improve
from pyramid_threaded_proxy.detach.late_body import receive_late
from pyramid_threaded_proxy.detach.task import Handover


def install() -> None:
    """Have servers that start from now on make channels that can be detached, with defaults for many of them."""
    improve()
    if BaseWSGIServer.channel_class is HTTPChannel:
        BaseWSGIServer.channel_class = DetachableChannel


def channel_of(environ: Mapping[str, Any]) -> DetachableChannel | None:
    """The live channel that this request came on, if it can be detached. Worker threads."""
    try:
        channel = environ["waitress.client_disconnected"].__self__
    except (KeyError, AttributeError):
        return None
    return channel if type(channel) is DetachableChannel else None


def offer(channel: DetachableChannel, handover: Handover) -> None:
    """Leave `handover` on the channel; the task that runs on it takes it up, or abandons it, when it ends."""
    if channel.handover is not None:
        channel.handover.abandon()
    channel.handover = handover
    channel.task_ends = channel.task_ends or (_nothing,)


def at_task_end(channel: DetachableChannel, end: Callable[[], None]) -> None:
    """Call `end` when the task that runs on the channel ends without a detach. In the task's worker thread."""
    channel.task_ends = (*channel.task_ends, end)


def _nothing() -> None:
    """Marks a task that has something to look after."""


def descriptor_of(channel: DetachableChannel) -> tuple[int, bool]:
    """The number of the client's socket, -1 when it is closed; and whether waitress's loop uses `select`."""
    number = channel._fileno
    return -1 if number is None else int(number), not channel.adj.asyncore_use_poll


def received_at(channel: DetachableChannel) -> float:
    """When bytes of the client's came last, by `time.time()`: while a request runs, those of this request."""
    return float(channel.last_activity)


def sent_method(channel: DetachableChannel) -> str:
    """The method that the client sent, whatever became of it since."""
    return str(channel.requests[0].command)


def is_own_body(channel: DetachableChannel, file: Any) -> bool:
    """Whether `file` is the ``wsgi.input`` that waitress gave the request: nobody has put another one in its place."""
    request = channel.requests[0]
    # Without a body waitress makes a new stream whenever it is asked.
    return request.body_rcv is not None and request.get_body_stream() is file


def unread_body(channel: DetachableChannel) -> Unread | None:
    """What is left of a body whose request was handed over by its head; None once it was received."""
    unread: Unread | None = channel.requests[0].unread
    return unread


def came_by_its_head(channel: DetachableChannel) -> bool:
    """Whether the request was handed over by its head, whatever became of its body since."""
    return channel.requests[0].late_body is not None


def most_body(channel: DetachableChannel) -> int:
    """The largest body that waitress takes, in bytes."""
    return int(channel.adj.max_request_body_size) - 1


def receive_body(channel: DetachableChannel) -> IO[bytes]:
    """Receive a body that was left unread, and the file with it. Waits for the client; raises `BodyFault`."""
    request = channel.requests[0]
    receive_late(channel, request)
    file: IO[bytes] = request.body_rcv.getfile()
    return file


def received_length(channel: DetachableChannel) -> int:
    """The length of a body that was received: whatever the application has read of it."""
    return len(channel.requests[0].body_rcv)


_NOTHING: frozenset[str] = frozenset()


def peer(environ: Mapping[str, Any]) -> tuple[str | None, frozenset[str]]:
    """The connection's other end: its address, before any trusted field replaced it, and what it is trusted with.

    That is the lower-case names of forwarded fields. A Unix socket's end has no address.
    """
    channel: Any = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    if channel is None:
        return environ.get("REMOTE_ADDR"), _NOTHING
    adj, address, trusted = getattr(channel, "adj", None), channel.addr[0], _NOTHING
    if adj is not None and adj.trusted_proxy and adj.trusted_proxy in ("*", address):
        # waitress knows no X-Forwarded-Prefix: a trusted peer is trusted with it.
        trusted = frozenset(adj.trusted_proxy_headers or ()) | {"x-forwarded-prefix"}
    return None if channel.addr[1] is None else str(address), trusted
