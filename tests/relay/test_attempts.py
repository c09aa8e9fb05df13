"""What is tried again, where, and how often; and what never is."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyramid.config import Configurator
from webtest import TestApp

from tests.support.origin import MakeOrigin, Origin, answering, echo, in_turn
from tests.support.site import MakeSite, route
from tests.support.upstreams import FullBacklog
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DEAD = ("http://127.0.0.1:9", "http://127.0.0.1:1", "http://127.0.0.1:7")


def closing(wire: OriginWire) -> None:
    """Takes the request, and closes without a word."""
    wire.request()


def keys(*urls: str, **others: str) -> dict[str, str]:
    """A route whose upstreams are asked in this order, and never rest."""
    return route("r", " ".join(urls), health__fails="0", **others)


# No connection


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_a_failed_connect_goes_on_with_the_next(origin: MakeOrigin, site: MakeSite, method: str) -> None:
    """Nothing was sent: every method, with its body, goes to the next upstream, under that one's Host and base."""
    alive = origin(echo)
    body = b"body" if method != "GET" else None
    request = received(site(keys(DEAD[0] + "/a", alive.url + "/b")).get("/r/x", method=method, body=body))
    assert (request.method, request.target, request.body) == (method, "/b/x", body or b"")
    assert request.one("Host") == alive.authority


@pytest.mark.parametrize(("retries", "status"), [("0", 502), ("1", 502), ("2", 200), ("9", 200)])
def test_so_many_further_tries(origin: MakeOrigin, site: MakeSite, retries: str, status: int) -> None:
    """`retries` bounds the further tries; each upstream is tried once."""
    where = site(keys(*DEAD[:2], origin(echo).url, retries=retries))
    assert where.get("/r/").status == status


def test_attempts_are_counted(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """The access log tells how often something was tried, and names the upstream that answered."""
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")
    alive = origin(echo)
    site(keys(*DEAD, alive.url, retries="3")).get("/r/")
    wait_until(lambda: caplog.records)
    assert f" r {alive.url} 4 " in caplog.records[-1].getMessage()


def test_a_body_that_is_read_once_goes_on_too(origin: MakeOrigin, site: MakeSite) -> None:
    """An iterable of a view's was not touched by a connect that failed."""

    def configure(config: Configurator) -> None:
        def hook(request: Any, exchange: Any) -> None:
            exchange.request.body = iter([b"one", b"two"])

        config.add_proxy_route("r", prefix="/r", upstream=[DEAD[0], origin(echo).url], public=True, hooks_request=hook)

    assert received(site(configure=configure).get("/r/", method="POST", body=b"x")).body == b"onetwo"


def test_a_connect_that_timed_out_goes_on(origin: MakeOrigin, site: MakeSite) -> None:
    """A connect time-out is a failed connect: each try has its own, and the next upstream is asked."""
    alive = origin(echo)
    with FullBacklog() as full:
        where = site(keys(full.url, alive.url, connect_timeout="200ms"))
        assert where.get("/r/", method="POST", body=b"x").status == 200
        assert site(keys(full.url, connect_timeout="200ms")).get("/r/").status == 504


@pytest.mark.parametrize(("preserve", "host"), [("true", "site.example"), ("false", None)])
def test_host_says_what_it_should(origin: MakeOrigin, site: MakeSite, preserve: str, host: str | None) -> None:
    """With `preserve_host` the next upstream gets the client's Host as the first would have."""
    alive = origin(echo)
    answer = site(keys(DEAD[0], alive.url, preserve_host=preserve)).get("/r/", {"Host": "site.example"})
    assert received(answer).one("Host") == (host or alive.authority)


# There is no other


class Restarting:
    """A backend that is started anew on its port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.first = stack.enter_context(Origin(echo))
        self.port, self.url = self.first.port, self.first.url
        self.again: Origin | None = None

    def stop(self) -> None:
        self.first.close()

    def start_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._start)
        timer.start()
        self._stack.callback(timer.join)

    def _start(self) -> None:
        self.again = self._stack.enter_context(Origin(echo, socket.create_server(("127.0.0.1", self.port))))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_backend_that_starts_anew(stack: ExitStack, site: MakeSite, method: str) -> None:
    """While the only upstream refuses, after it has accepted, every method is tried again; nobody sees it restart."""
    backend = Restarting(stack)
    where = site(route("r", backend.url))
    assert where.get("/r/").status == 200
    backend.stop()
    backend.start_after(0.5)
    body = b"body" if method == "POST" else None
    assert received(where.get("/r/x", method=method, body=body)).body == (body or b"")
    assert backend.again is not None
    assert backend.again.accepted == 1


def test_not_for_longer_than_the_time_out(stack: ExitStack, site: MakeSite) -> None:
    """One that stays away is a failure after `connect_timeout`, and from then on soon: nobody waits for it for long."""
    backend = Restarting(stack)
    where = site(route("r", backend.url, connect_timeout="500ms"))
    where.get("/r/")
    backend.stop()
    begun = time.monotonic()
    assert where.get("/r/").status == 502
    assert 0.2 < time.monotonic() - begun < 0.8
    wait_until(lambda: time.monotonic() - begun > 0.6)
    begun = time.monotonic()
    assert where.get("/r/").status == 502
    assert time.monotonic() - begun < 0.3


@pytest.mark.parametrize(("retries", "attempts"), [("0", 1), ("1", 2), ("3", 4)])
def test_the_only_one_was_never_there(
    site: MakeSite, caplog: pytest.LogCaptureFixture, retries: str, attempts: int
) -> None:
    """One that has never accepted is tried as often as `retries` says."""
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")
    assert site(route("r", DEAD[0], retries=retries)).get("/r/").status == 502
    wait_until(lambda: caplog.records)
    assert f" r {DEAD[0]} {attempts} " in caplog.records[-1].getMessage()


def test_a_client_that_leaves_in_the_pause(stack: ExitStack, site: MakeSite) -> None:
    """Nobody is waited for any more."""
    backend = Restarting(stack)
    where = site(route("r", backend.url))
    where.get("/r/")
    backend.stop()
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: where.engine.in_flight)
    client.close()
    begun = time.monotonic()
    wait_until(lambda: not where.engine.in_flight)
    assert time.monotonic() - begun < 2.0


def test_streamed_exchanges_wait_as_well(stack: ExitStack, site: MakeSite) -> None:
    """Where one thread drives the exchange, it waits for a backend that starts anew."""
    backend = Restarting(stack)
    application = TestApp(site(route("r", backend.url)).application)
    application.get("/r/")
    backend.stop()
    backend.start_after(0.3)
    assert application.get("/r/").status_int == 200


def test_once_more_where_nothing_was_said(origin: MakeOrigin, site: MakeSite) -> None:
    """A fresh connection to the only upstream that closes without a byte is followed by another, once."""
    assert site(route("r", origin(in_turn(closing, echo)).url)).get("/r/").status == 200
    twice = origin(in_turn(closing, closing, echo))
    assert site(route("s", twice.url)).get("/s/").status == 502
    assert twice.accepted == 2
    assert site(route("t", origin(in_turn(closing, echo)).url)).get("/t/", method="POST", body=b"x").status == 502


# It was sent


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("DELETE", 200), ("POST", 502)])
def test_only_what_is_idempotent_is_sent_again(origin: MakeOrigin, site: MakeSite, method: str, status: int) -> None:
    """An upstream that closes without an answer may have done it: only idempotent methods go on (RFC 9110 9.2.2)."""
    second = origin(echo)
    body = b"x" if method in ("PUT", "POST") else None
    assert site(keys(origin(closing).url, second.url)).get("/r/", method=method, body=body).status == status
    assert second.accepted == (status == 200)


def test_not_without_retries(origin: MakeOrigin, site: MakeSite) -> None:
    """With `retries` 0 nothing is tried again, not even where a kept connection was closed."""
    second = origin(echo)
    assert site(keys(origin(closing).url, second.url, retries="0")).get("/r/").status == 502
    where = site(route("s", origin(in_turn(answering(OK, b""), echo)).url, retries="0"))
    assert [where.get("/s/").status for _ in range(2)] == [200, 502]
    assert second.accepted == 0


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_not_after_a_byte_of_the_answer(origin: MakeOrigin, site: MakeSite, said: bytes) -> None:
    """Once an upstream has said anything, it has the request."""
    second = origin(echo)
    where = site(keys(origin(answering(said)).url, second.url))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"HTTP/1.1 502" in client.rest()
    client.close()
    assert second.accepted == 0


def test_not_after_a_read_time_out(origin: MakeOrigin, site: MakeSite) -> None:
    """Who is slow may still be at it."""
    second = origin(echo)
    where = site(keys(origin(lambda wire: wire.wait_closed()).url, second.url, read_timeout="50ms"))
    assert where.get("/r/").status == 504
    assert second.accepted == 0


def test_not_after_a_refused_answer(origin: MakeOrigin, site: MakeSite) -> None:
    """An invalid answer is one."""
    second = origin(echo)
    assert site(keys(origin(answering(b"nonsense\r\n\r\n")).url, second.url)).get("/r/").status == 502
    assert second.accepted == 0


def test_not_with_a_body_that_is_gone(origin: MakeOrigin, site: MakeSite) -> None:
    """An iterable that was sent can't be sent again."""
    second = origin(echo)
    first = origin(closing)

    def body() -> Iterator[bytes]:
        yield b"x"

    def configure(config: Configurator) -> None:
        def hook(request: Any, exchange: Any) -> None:
            exchange.request.body = body()

        config.add_proxy_route("r", prefix="/r", upstream=[first.url, second.url], public=True, hooks_request=hook)

    assert site(configure=configure).get("/r/", method="PUT", body=b"y").status == 502
    assert second.accepted == 0


def test_a_stale_connection_does_not_use_a_try_up(origin: MakeOrigin, site: MakeSite) -> None:
    """A kept connection that was closed says nothing of its upstream: one that is gone by then has its own try."""

    def last_words(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        wire.until(b"\r\n\r\n")
        first.stop_listening()

    first, second = origin(last_words), origin(echo)
    where = site(keys(first.url, second.url))
    statuses = [where.get("/r/").status for _ in range(3)]
    assert statuses == [200, 200, 200]
    assert (first.accepted, second.accepted) == (1, 1)
