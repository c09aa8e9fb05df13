"""Who runs what: hooks and events in their threads, and exchanges that wait in none."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.threadlocal import get_current_request

from pyramid_threaded_proxy import ExchangeFinished, ExchangeStarted
from pyramid_threaded_proxy.exchange import Exchange
from tests.support.leaks import own_threads
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, fetching, route
from tests.support.waiting import wait_until
from tests.support.wire import Answer, OriginWire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_a_hook_that_blocks_holds_one_thread(origin: MakeOrigin, site: MakeSite) -> None:
    """While one hook sleeps, other exchanges, with hooks of their own, go on."""
    inside, go_on = threading.Event(), threading.Event()

    def on_headers(exchange: Exchange) -> None:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(10)

    where = fetching(site, origin(echo).url, on_headers=on_headers)
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(where.get("/f")))
    slow.start()
    assert inside.wait(10)
    assert [where.get("/f").status for _ in range(5)] == [200] * 5
    assert answers == []
    go_on.set()
    slow.join(10)
    assert answers[0].status == 200


def test_events(origin: MakeOrigin, site: MakeSite) -> None:
    """Started is sent in the request's thread, Finished in a pool thread where there is no current request."""
    events: list[tuple[Any, str, bool]] = []

    def heard(event: Any) -> None:
        events.append((event, threading.current_thread().name, get_current_request() is not None))

    def configure(config: Configurator) -> None:
        config.add_subscriber(heard, ExchangeStarted)
        config.add_subscriber(heard, ExchangeFinished)

    in_hook: list[Any] = []
    where = fetching(
        site,
        origin(in_turn(answering(OK), answering(b""))).url,
        configure,
        on_headers=lambda exchange: in_hook.append(get_current_request()),
    )
    for count in (2, 4):
        where.get("/f")
        wait_until(lambda count=count: len(events) == count, "the events")
    assert [type(event) for event, _, _ in events] == [ExchangeStarted, ExchangeFinished] * 2
    assert events[0][0].exchange is events[1][0].exchange
    assert [current for _, _, current in events] == [True, False, True, False]
    assert [thread.startswith("pproxy-pool") for _, thread, _ in events] == [False, True, False, True]
    assert events[1][0].exchange.error is None
    assert type(events[3][0].exchange.error).__name__ == "UpstreamGone"
    assert in_hook == [None]


def test_a_subscriber_that_raises_harms_nobody(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of a Finished subscriber is logged."""

    def configure(config: Configurator) -> None:
        config.add_subscriber(lambda event: 1 / 0, ExchangeFinished)

    where = fetching(site, origin(echo).url, configure)
    assert [where.get("/f").status for _ in range(2)] == [200, 200]
    wait_until(lambda: sum(bool(entry.exc_info) for entry in caplog.records) == 2)


def test_a_quiet_exchange_holds_no_thread(origin: MakeOrigin, site: MakeSite) -> None:
    """200 exchanges wait for their upstream with the threads that 20 had; then all are answered."""
    go_on = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        assert go_on.wait(20)
        wire.send(OK)

    def names() -> set[str]:
        return set(own_threads("pproxy", "waitress"))

    where = site({"proxy.threads": "2", **route("r", origin(script).url)}, connection_limit=500)
    clients, threads = [], []
    for count in (20, 180):
        for _ in range(count):
            clients.append(where.client())
            clients[-1].send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        wait_until(lambda: where.parked(1) == len(clients), "all exchanges to wait for their upstream")
        threads.append(names())
    assert threads[0] == threads[1]
    assert [name for name in threads[1] if name.startswith("pproxy-pool")] == []
    go_on.set()
    assert [client.rest().endswith(b"hello") for client in clients] == [True] * 200
    for client in clients:
        client.close()
