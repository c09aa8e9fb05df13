"""An exchange dies with its end: nothing of it waits for the cyclic collector, which would run more often for it.

One that failed, or had a hook, is left to it: an error knows the frames that it came through, and they the exchange.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.origin import MakeOrigin, Script, answering, echo
from tests.support.site import MakeSite, route
from tests.support.uploads import put
from tests.support.waiting import wait_until
from tests.support.wire import Wire, get, post

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


#: What the upstream does, what the client sends, and keys of the route.
KINDS: dict[str, tuple[Script, bytes, dict[str, Any]]] = {
    "answer with a length": (echo, get("/r/x"), {}),
    "chunked answer": (answering(*[CHUNKED] * 9), get("/r/x"), {}),
    "upload": (echo, post("/r/x", b"x" * 1000), {}),
    "streamed upload": (echo, put("/r/x", 5) + b"hello", {"request__buffering": "false"}),
    "texts replaced": (echo, get("/r/x"), {"response__replace__x": "y"}),
    "log of an error": (answering(CHUNKED.replace(b"200 OK", b"500 No")), get("/r/x"), {"log_error_body": "1KiB"}),
}


@pytest.fixture
def garbage() -> Iterator[Callable[[], list[str]]]:
    """Tells what only the collector found since the last call."""

    def found() -> list[str]:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        names = [type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("pyramid_threaded_proxy")]
        gc.garbage.clear()
        gc.collect()
        return sorted(names)

    gc.disable()
    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_dies_with_its_end(
    kind: str, origin: MakeOrigin, site: MakeSite, garbage: Callable[[], list[str]]
) -> None:
    """Whatever was sent, and however the answer came."""
    script, request, keys = KINDS[kind]
    running = site(route("r", origin(script).url, **keys))

    def exchange() -> None:
        client: Wire = running.client()
        client.send(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        client.rest()
        client.close()
        wait_until(lambda: running.engine.admission.in_flight == 0, "its end")

    exchange()
    garbage()
    for _ in range(3):
        exchange()
    wait_until(lambda: not running.channels, "the end of the connections")
    assert garbage() == []
