"""What a review of threads and ownership found: each way to hold up, break or fool the relay that was once open."""

from __future__ import annotations

import io
import threading
from contextlib import closing
from typing import Any

import pytest

from pyramid_threaded_proxy.detach.channel import DetachedConnection
from pyramid_threaded_proxy.loop.task import Task
from pyramid_threaded_proxy.loop.waits import Call
from pyramid_threaded_proxy.relay.recheck import PermissionWatch
from pyramid_threaded_proxy.upstream import connections as upstream_module
from pyramid_threaded_proxy.upstream.probes import Probes
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, route, with_view
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire


def test_a_slow_complete_hook_touches_no_socket(origin: MakeOrigin, site: MakeSite) -> None:
    """A hook that outlasts its answer by far leaves the connection, which is waitress's or closed by then, alone."""
    held, gate, in_hook = threading.Event(), threading.Event(), threading.Event()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target == "/held":
                held.set()
                gate.wait(PATIENCE)
            wire.answer(b"ok")

    def complete(exchange: Any) -> None:
        in_hook.set()
        gate.wait(PATIENCE)

    upstream = origin(script)
    here = site(
        route("r", upstream.url),
        configure=with_view(lambda request: request.proxy_fetch(upstream.url + "/x", on_complete=complete)),
    )
    innocent = here.client()
    innocent.send(b"GET /r/held HTTP/1.1\r\nHost: a\r\n\r\n")
    assert held.wait(PATIENCE)
    assert here.get("/own", {"Connection": "close"}).body == b"ok"
    kept = here.client()
    kept.send(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
    kept.until(b"\r\n\r\nok")
    assert in_hook.wait(PATIENCE)
    loop = here.engine.scheduler.loop
    tasks = set(loop.tasks)
    wait_until(lambda: all(task.lasting for task in tasks), "the tasks to last")
    assert here.engine.scheduler.loop is loop
    kept.send(b"GET /r/again HTTP/1.1\r\nHost: a\r\n\r\n")
    kept.until(b"\r\n\r\nok")
    gate.set()
    innocent.until(b"\r\n\r\nok")
    for client in (innocent, kept):
        client.close()


def test_what_was_told_to_end_is_not_sent(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that is closed while its connection is made sends nothing, be the connection ready a moment later."""
    connecting, go_on = threading.Event(), threading.Event()
    upstream = origin(echo)
    here = site(route("r", upstream.url))
    connect = upstream_module.OriginPool.connect

    def slowly(self: Any, *arguments: Any) -> Any:
        connecting.set()
        yield Call(go_on.wait, PATIENCE)
        return (yield from connect(self, *arguments))

    monkeypatch.setattr(upstream_module.OriginPool, "connect", slowly)
    client = here.client()
    client.send(b"POST /r/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    assert connecting.wait(PATIENCE)
    assert here.engine.in_flight.close(route="r") == 1
    go_on.set()
    assert client.head()[0].startswith("HTTP/1.1 503 ")
    client.close()
    wait_until(lambda: not here.engine.admission.in_flight, "the end of the exchange")
    with closing(here.client()) as next_client:  # whose connection the origin accepts behind that of the one before
        next_client.send(b"GET /r/next HTTP/1.1\r\nHost: a\r\n\r\n")
        next_client.until(b"GET /next HTTP/1.1")
    assert [request.target for request in upstream.requests] == ["/next"]


def test_a_fast_stream_of_small_chunks_can_be_ended(origin: MakeOrigin, site: MakeSite) -> None:
    """While both sides are as fast as the mover, other bodies move on and the exchange hears that it is to end."""
    block = b"40\r\n" + bytes(64) + b"\r\n"

    def script(wire: OriginWire) -> None:
        request = wire.request()
        if request is None:
            return
        if request.target == "/big":
            wire.answer(bytes(3_000_000))
            return
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            wire.send(block * 8000)

    here = site(route("r", origin(script).url))
    readers = []
    for _ in range(2):
        client = here.client()
        client.send(b"GET /r/endless HTTP/1.1\r\nHost: a\r\n\r\n")
        reader = threading.Thread(target=client.wait_closed)
        reader.start()
        readers.append((reader, client))
    wait_until(lambda: all(one.stats.bytes_down > 1_000_000 for one in here.engine.in_flight), "the streams to run")
    assert len(here.get("/r/big").body) == 3_000_000
    wait_until(lambda: len(here.engine.in_flight) == 2, "the end of the third")
    assert here.engine.in_flight.close(route="r") == 2
    for reader, client in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
        client.close()


def test_a_slow_file_of_a_view_holds_nobody_up(origin: MakeOrigin, site: MakeSite) -> None:
    """A file object whose `read` blocks is read in the pool: other exchanges go on meanwhile."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.inner = io.BytesIO(b"x" * 100_000)

        def tell(self) -> int:
            return self.inner.tell()

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.inner.seek(offset, whence)

        def read(self, size: int = -1) -> bytes:
            reading.set()
            go_on.wait(PATIENCE)
            return self.inner.read(size)

    upstream = origin(echo)
    here = site(
        route("r", upstream.url),
        configure=with_view(lambda request: request.proxy_fetch(upstream.url, method="PUT", body=Slow())),
    )
    client = here.client()
    client.send(b"GET /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert reading.wait(PATIENCE)
    assert here.get("/r/").status == 200
    go_on.set()
    assert client.rest().endswith(b"x" * 1000)
    client.close()


def test_a_server_that_refuses_the_head_leaves_nothing_behind(origin: MakeOrigin, site: MakeSite) -> None:
    """Streamed: when `start_response` raises, the place and the upstream's connection are given back."""
    upstream = origin(echo)
    here = site(route("r", upstream.url))

    def refusing(status: str, fields: Any, exc_info: Any = None) -> Any:
        raise ValueError("no")

    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/r/x", "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_NAME": "a",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "a", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "REMOTE_ADDR": "127.0.0.1",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no"):
        here.application(environ, refusing)
    assert here.engine.admission.in_flight == 0
    assert len(here.engine.in_flight) == 0


def test_the_hand_over_comes_last(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker touches neither exchange, channel nor threads once the loop has them: they may be over by then.

    Probes that began behind it could start the threads of an application anew that had just been closed.
    """
    order: list[str] = []

    def noted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(self: Any, *arguments: Any) -> Any:
            if threading.current_thread().name.startswith("waitress-"):
                order.append(f"{owner.__name__}.{name}")
            return original(self, *arguments)

        monkeypatch.setattr(owner, name, call)

    steps = ((Probes, "start"), (PermissionWatch, "start"), (DetachedConnection, "join_stop"), (Task, "post"))
    for owner, name in steps:
        noted(owner, name)
    assert site(route("r", origin(echo).url, recheck="5s", health__path="/")).get("/r/").status == 200
    assert sorted(order[:-1]) == ["DetachedConnection.join_stop", "PermissionWatch.start", "Probes.start"]
    assert order[-1] == "Task.post"
