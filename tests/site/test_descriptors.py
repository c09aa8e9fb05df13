"""Nothing is left behind: descriptors, threads and places after thousands of exchanges that end in every way."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from tests.support.detaching import connections, slow_client
from tests.support.leaks import open_descriptors
from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, get, post

#: By the number of listening sockets.
EXCHANGES = {1: 2000, 2: 500}
CLIENTS = 8

#: More than the buffers between an upstream and a client that doesn't read can hold.
FLOOD = 12_000_000


def upstream_script(wire: OriginWire) -> None:
    """Each request's target says how its exchange ends."""
    while (request := wire.request()) is not None:
        kind = request.target.rpartition("/")[2]
        if kind in ENDINGS:
            return ENDINGS[kind](wire)
        wire.answer(b"x" * (300_000 if kind == "big" else 10))


def reset(wire: OriginWire) -> None:
    wire.reset()


def garbage(wire: OriginWire) -> None:
    wire.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def half_a_head(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-")


def short(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)


def without_end(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")


def until_close(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)


def silent(wire: OriginWire) -> None:
    wire.wait_closed()


def stops(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    wire.wait_closed()


def flood(wire: OriginWire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD + b"x" * FLOOD)


ENDINGS: dict[str, Callable[[OriginWire], None]] = {
    "reset": reset,
    "garbage": garbage,
    "half-a-head": half_a_head,
    "short": short,
    "without-end": without_end,
    "until-close": until_close,
    "silent": silent,
    "stops": stops,
    "flood": flood,
}


def ordinary(request: bytes) -> Callable[[Site], str]:
    """Sends a request and reads to the end, whatever comes; returns the status, or how the connection ended."""

    def run(site: Site) -> str:
        client = site.client()
        try:
            client.send(request)
            return client.rest()[9:12].decode()
        except ConnectionResetError:
            return "reset"
        finally:
            client.close()

    return run


def leaves(request: bytes, after_head: bool) -> Callable[[Site], str]:
    """Goes away before the head, or after it."""

    def run(site: Site) -> str:
        client = site.client()
        client.send(request)
        if after_head:
            client.until(b"\r\n\r\n")
        client.close()
        return "left"

    return run


def never_reads(site: Site) -> str:
    """Asks for much and takes nothing, until the server resets the connection."""
    client = slow_client(site)
    client.send(get("/full/flood"))
    wait_until(lambda: client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "the reset")
    client.close()
    return "reset"


def own(target: str) -> bytes:
    return get(target, "Connection: close")


def configure(config: Configurator) -> None:
    """A route whose hook raises, a view that answers after all, a view whose place is never used."""

    def abandons(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            response = handler(request)
            return Response("instead") if request.path_info.endswith("/abandoned") else response

        return tween

    config.registry["abandons"] = abandons
    config.add_tween(f"{__name__}.abandoning_tween")


def abandoning_tween(handler: Any, registry: Any) -> Any:
    """The tween of `configure`."""
    return registry["abandons"](handler, registry)


def raising_hook(exchange: Any) -> None:
    """A hook of the application's that fails."""
    raise RuntimeError("the hook")


BODY = b"y" * 100_000

#: What a client does, and what it may see.
KINDS: dict[str, tuple[Callable[[Site], str], set[str]]] = {
    "whole": (ordinary(own("/r/whole")), {"200"}),
    "big": (ordinary(own("/r/big")), {"200"}),
    "with a body": (ordinary(post("/r/whole", BODY, "Connection: close")), {"200"}),
    "until close": (ordinary(own("/r/until-close")), {"200"}),
    "until close, 1.0": (ordinary(get("/r/until-close", version="1.0")), {"200"}),
    "refused": (ordinary(own("/refused/x")), {"502"}),
    "reset": (ordinary(own("/r/reset")), {"502"}),
    "garbage": (ordinary(own("/r/garbage")), {"502"}),
    "half a head": (ordinary(own("/r/half-a-head")), {"502"}),
    "short": (ordinary(own("/r/short")), {"reset", "200"}),
    "without end": (ordinary(own("/r/without-end")), {"reset", "200"}),
    "client gone before the head": (leaves(own("/r/silent"), False), {"left"}),
    "client gone after the head": (leaves(own("/r/stops"), True), {"left"}),
    "read time-out": (ordinary(own("/slow/silent")), {"504"}),
    "read time-out in the body": (ordinary(own("/slow/stops")), {"reset", "200", "504"}),
    "client time-out": (never_reads, {"reset"}),
    "hook": (ordinary(own("/hook/whole")), {"500"}),
    "abandoned": (ordinary(own("/r/abandoned")), {"200"}),
    "bad path": (ordinary(own("/r/%2e%2e/x")), {"400"}),
    "bad host": (ordinary(b"GET /r/x HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n"), {"400"}),
    "method": (ordinary(b"BREW /few/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), {"405"}),
    "too large": (ordinary(post("/few/x", BODY, "Connection: close")), {"413"}),
}


def settings(url: str, refused: str) -> dict[str, str]:
    """No upstream rests however often it fails: the next exchange is to fail as well."""
    keys: dict[str, dict[str, str]] = {
        "r": {},
        "refused": {},
        "slow": {"read_timeout": "250ms"},
        "full": {"send_timeout": "250ms"},
        "hook": {"hooks__headers": f"{__name__}.raising_hook"},
        "few": {"methods": "GET POST", "max_body": "1000"},
    }
    made = {"proxy.threads": "4"}
    for name, others in keys.items():
        made |= route(name, refused if name == "refused" else url, health__fails="0", **others)
    return made


def run(site: Site, count: int) -> Counter[str]:
    """Let `count` clients do all kinds in turn, a few at a time; what they see is checked."""
    kinds = list(KINDS)

    def one(number: int) -> str:
        client, expected = KINDS[kinds[number % len(kinds)]]
        seen = client(site)
        assert seen in expected, (kinds[number % len(kinds)], seen)
        return seen

    with ThreadPoolExecutor(CLIENTS) as pool:
        return Counter(pool.map(one, range(count)))


def what_is_open(site: Site, upstream: Any) -> tuple[int, list[str]]:
    """The number of descriptors and the names of the threads, when all is quiet and nothing is kept for reuse."""
    assert site.get("/r/whole").status == 200  # behind it no connection waits to be accepted
    wait_until(lambda: not connections(site) and not site.engine.admission.in_flight, "the end of all exchanges")
    for wire in upstream.wires:
        with suppress(OSError):
            wire.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not any(pool._idle for pool in site.engine.upstreams.pools()), "the end of kept connections")
    wait_until(lambda: all(wire.sock.fileno() < 0 for wire in upstream.wires), "the upstream's end of them")
    site.engine.pipes.close()
    wait_until(lambda: not any("(_run)" in thread.name for thread in threading.enumerate()), "the upstream's threads")
    names = sorted(thread.name for thread in threading.enumerate())
    # The pool grows when it must, and never beyond its size: that is no leak.
    pool = [name for name in names if name.startswith("pproxy-pool")]
    assert len(pool) <= site.engine.settings.threads
    return len(open_descriptors()), [name for name in names if name not in pool]


def test_nothing_is_left_behind(
    origin: MakeOrigin, site: MakeSite, sockets: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After 2,000 exchanges, of every kind, the process has as many descriptors, threads and places as before."""
    caplog.set_level(logging.ERROR, "waitress.queue")
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")
    upstream = origin(upstream_script)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    app = site(settings(upstream.url, refused), configure=configure, sockets=sockets)
    run(app, 10 * len(KINDS))  # so that all threads have started
    before = what_is_open(app, upstream)
    caplog.clear()
    run(app, EXCHANGES[sockets])
    seen = []

    def as_before() -> bool:
        seen.append(what_is_open(app, upstream))
        return seen[-1] == before

    # Seldom one socket that no Python object has is there for a moment more; what stays is a leak.
    with suppress(AssertionError):
        wait_until(as_before)
    assert seen[-1] == before
    ended = {record.getMessage().split()[-2] for record in caplog.records if record.name.endswith(".access")}
    assert ended >= {
        "whole", "connect-failed", "upstream-gone", "answer-refused", "read-timeout", "hook-failed", "client-gone",
        "client-timeout",
    }  # fmt: skip


def test_places_at_the_limit(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """Clients that are turned away with 503 take no place along, and after those in flight left all are free."""
    upstream = origin(upstream_script)
    app = site({**settings(upstream.url, upstream.url), "proxy.max_exchanges": "5"}, sockets=sockets)
    for _ in range(10):
        held = [app.client() for _ in range(5)]
        for client in held:
            client.send(get("/r/silent"))
        wait_until(lambda: app.engine.admission.in_flight == 5, "five exchanges")
        for _ in range(5):
            answer = app.get("/r/whole")
            assert answer.status == 503
            assert answer.one("Retry-After")
        for client in held:
            client.close()
        wait_until(lambda: app.engine.admission.in_flight == 0, "their end")
    assert app.get("/r/whole").status == 200
