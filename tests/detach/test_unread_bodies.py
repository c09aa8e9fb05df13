"""Bodies that were left in the socket, where somebody gets in between: no byte of one is ever lost, or run."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy.detach import task
from tests.detach.test_late_body import reading
from tests.support.detaching import servers
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite
from tests.support.uploads import chunks, put, put_chunked, streaming
from tests.support.wire import get, read_answer


def test_nothing_is_read_before_what_came_behind_is_parsed(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker parses what came behind its body; until it knows that another body begins, the main thread does not
    take that for a request."""
    called = threading.Event()
    where = reading(origin, site, lambda request: (called.set(), request.body)[1], channel_request_lookahead=9)
    client, smuggled, left_unread = where.client(), get("/r/smuggled"), task.left_unread

    def slowly(request: Any, early: bytes) -> Any:
        if request.path == "/r/last":
            client.send(smuggled)
            for _ in range(3):
                turned = threading.Event()
                servers(where)[0].trigger.pull_trigger(turned.set)
                turned.wait(1)
        return left_unread(request, early)

    monkeypatch.setattr(task, "left_unread", slowly)
    client.send(put("/r/own", 3, "X-Own: 1"))
    assert called.wait(10)
    client.send(b"abc" + get("/r/second") + put("/r/last", len(smuggled), "Connection: close"))
    assert read_answer(client)[2] == b"abc"
    assert b"GET /second" in read_answer(client)[2]
    last = client.rest()
    assert last.count(b"HTTP/1.1 200 ") == 1
    assert last.endswith(smuggled)
    client.close()


def test_a_fault_that_was_swallowed(origin: MakeOrigin, site: MakeSite) -> None:
    """What was read of a body is gone: whoever hides that it broke off has nothing sent, neither the rest of the body
    nor the next request in its place."""
    swallowed = threading.Event()

    def tween(handler: Any, registry: Any) -> Any:
        def read_and_hide(request: Any) -> Any:
            try:
                request.environ["wsgi.input"].read()
            except BaseException:
                swallowed.set()
            return handler(request)

        return read_and_hide

    def configure(config: Configurator) -> None:
        config.registry.tween = tween
        config.add_tween(f"{__name__}.tween_of_registry")

    upstream = origin(echo)
    where = site(streaming(upstream.url), configure=configure, channel_timeout=1)
    client = where.client()
    client.send(put("/r/x", 10) + b"abc")
    assert swallowed.wait(10)
    client.send(b"defghij" + get("/r/next"))
    assert read_answer(client)[0] == "HTTP/1.1 408 Request Timeout"
    assert client.rest() == b""
    assert upstream.accepted == 0
    client.close()


def tween_of_registry(handler: Any, registry: Any) -> Any:
    return registry.tween(handler, registry)


def test_two_lengths(origin: MakeOrigin, site: MakeSite) -> None:
    """Beside Transfer-Encoding a Content-Length means nothing (RFC 9112 6.3): who reads gets what is sent."""
    where = reading(origin, site, lambda request: request.body)
    client = where.client()
    client.send(put_chunked("/r/own", "X-Own: 1", "Content-Length: 3"))
    client.send(chunks(b"ok=1evil", 8))
    assert read_answer(client)[2] == b"ok=1evil"
    client.close()
