"""Requests whose head alone is handed to the application, while their body waits in the socket.

Waitress takes a whole body before it calls anybody. Where an application has routes whose bodies stream, a request that
may be for one of them is called with what came of its body by then; the rest stays in the kernel, unread, until
somebody wants it (see `late_body`), or the request is over. Main thread, but for `ask_first`.
"""

from __future__ import annotations

from typing import Any, Protocol

from pyramid_threaded_proxy.detach.applications import Applications
from pyramid_threaded_proxy.loop.loop import Loop


class Application(Protocol):
    """An application that has routes whose bodies stream."""

    def asks_first(self, method: str, path_info: str, host: str | None) -> bool:
        """Whether a request may be for such a route. `host` is None where it can't be told yet.

        Waitress's main thread, for each request with a body: what it says of too many costs these a worker's time.
        """

    def loop_for_refused(self) -> Loop | None:
        """A loop in which connections linger that were answered before their body was read; None if there is none."""


class Unread:
    """The body of a request whose head alone was handed over.

    Belongs to the request's worker, and from a detach on to the exchange. It stands at the request for as long as the
    body was not read to its end: as long nothing on the connection is the next request's.
    """

    __slots__ = ("application", "early", "expects", "fault", "flows", "length", "streams")

    def __init__(self, application: Application, early: bytes, length: int | None, expects: bool) -> None:
        self.application = application
        #: What came with the head: the beginning of the body, and for a chunked one perhaps more than that.
        self.early = early
        #: In bytes; None for a chunked body.
        self.length = length
        #: Whether the client waits for a 100 before it sends the body (RFC 9110 10.1.1).
        self.expects = expects
        #: Why it can't be read any more.
        self.fault: BaseException | None = None
        #: Whether it is answered while it still flows, so that the connection may last.
        self.flows = False
        #: Whether the relay reads it from the socket, and nobody else may.
        self.streams = False


_applications: Applications[Application] = Applications()


def ask_first(application: Application) -> None:
    """Hand over what `application` says by its head alone, from now on. Any thread."""
    _applications.add(application)


def asks_anybody() -> bool:
    """Whether there are such applications at all."""
    return bool(_applications.known)


def left_unread(request: Any, early: bytes) -> Unread | None:
    """What is left of the body of a request whose head is complete, if an application is to be asked before it."""
    path, host = asked_path_info(request), asked_host(request)
    for application in _applications:
        if application.asks_first(request.command, path, host):
            length = None if request.chunked else request.content_length
            return Unread(application, early, length, request.expect_continue)
    return None


def asked_path_info(request: Any) -> str:
    """PATH_INFO as `WSGITask.get_environment` will make it."""
    path, prefix = str(request.path), request.adj.url_prefix
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    if prefix and (path + "/").startswith(prefix + "/"):
        path = path[len(prefix) :]
    return path


def asked_host(request: Any) -> str | None:
    """The Host that was asked, as far as it is known: a trusted peer may say another one."""
    headers = request.headers
    if request.adj.trusted_proxy and ("X_FORWARDED_HOST" in headers or "FORWARDED" in headers):
        return None
    return str(headers.get("HOST", ""))


def is_full(channel: Any) -> bool:
    """Main thread. Whether what the client sends is to stay where it is: it is no request, or is one too many."""
    requests = channel.requests
    if not requests:
        return False
    if len(requests) > channel.adj.channel_request_lookahead:
        return True
    # As long as the body of the first is unread another thread may parse what came behind it: nobody knows yet what the
    # last one is.
    try:
        return requests[0].unread is not None or requests[-1].unread is not None
    except IndexError:  # another thread has taken the last one out meanwhile
        return False
