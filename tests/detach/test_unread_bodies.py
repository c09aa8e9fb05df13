"""Bodies that were left in the socket, where somebody gets in between: no byte of one is ever lost, or run."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy.detach import task
from tests.detach.test_late_body import reading
from tests.support.detaching import servers
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, with_policy
from tests.support.uploads import chunks, put, put_chunked, streaming
from tests.support.waiting import wait_until
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


class Wrapped:
    """What middleware puts in the place of ``wsgi.input``, to count or to limit what is read."""

    reads = threading.Event()

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        self.reads.set()
        data: bytes = self._file.read(size)
        return data


def wraps(app: Any) -> Any:
    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"] = Wrapped(environ["wsgi.input"])
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return middleware


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_behind_an_input_that_middleware_wraps(origin: MakeOrigin, site: MakeSite, chunked: bool) -> None:
    """Through middleware that wraps ``wsgi.input`` the body arrives whole, and the connection goes on."""
    where = site(streaming(origin(echo).url), wrap=wraps)
    client = where.client()
    for _ in range(2):
        client.send(put_chunked("/r/x") if chunked else put("/r/x", 6))
        client.send(chunks(b"abcdef", 4) if chunked else b"abcdef")
        assert b"abcdef" in read_answer(client)[2].replace(b"\r\n2\r\n", b"")
    client.close()


def test_a_wrapped_input_holds_up_nobody_else(origin: MakeOrigin, site: MakeSite) -> None:
    """Reading through such a wrapper waits for the client in the request's own thread, never in a loop's."""
    where = site(streaming(origin(echo).url), wrap=wraps, threads=2)
    slow, other = where.client(), where.client()
    Wrapped.reads.clear()
    slow.send(put("/r/slow", 6) + b"abc")
    Wrapped.reads.wait(1)
    other.send(get("/r/other"))
    assert b"GET /other" in read_answer(other)[2]
    slow.send(b"def")
    assert read_answer(slow)[2].endswith(b"abcdef")
    slow.close()
    other.close()


def test_two_lengths(origin: MakeOrigin, site: MakeSite) -> None:
    """Beside Transfer-Encoding a Content-Length means nothing (RFC 9112 6.3): who reads gets what is sent."""
    where = reading(origin, site, lambda request: request.body)
    client = where.client()
    client.send(put_chunked("/r/own", "X-Own: 1", "Content-Length: 3"))
    client.send(chunks(b"ok=1evil", 8))
    assert read_answer(client)[2] == b"ok=1evil"
    client.close()


def test_a_field_does_not_have_a_body_taken_before_anybody_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """With a body no other protocol is asked for, so an Upgrade field changes nothing: refused is refused by the head,
    what streams streams, and what comes behind it is no request."""
    upstream = origin(echo)
    where = site(streaming(upstream.url, permission="view"), configure=with_policy)
    client = where.client()
    client.send(put("/r/x", 100_000_000, "Upgrade: h2c"))
    assert read_answer(client)[0] == "HTTP/1.1 403 Forbidden"
    assert client.rest() == b""
    client.close()
    assert upstream.accepted == 0


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_an_upload_with_an_upgrade_field(origin: MakeOrigin, site: MakeSite, chunked: bool) -> None:
    """curl's --http2 asks for h2c with each upload: that streams, and what comes behind it is no request."""
    upstream = origin(echo)
    where = site(streaming(upstream.url, upgrade="websocket"))
    fields = ("Connection: Upgrade", "Upgrade: h2c, websocket")
    client = where.client()
    client.send(put_chunked("/r/x", *fields) if chunked else put("/r/x", 6, *fields))
    client.send((chunks(b"abcdef", 6) if chunked else b"abcdef") + get("/r/next"))
    _, found, body = read_answer(client)
    assert (found["connection"], body.count(b" HTTP/1.1\r\n")) == ("close", 1)
    assert b"abcdef" in body
    assert client.rest() == b""
    client.close()


def test_what_streams_has_one_reader(origin: MakeOrigin, site: MakeSite) -> None:
    """Who reads the input of a request whose body is on its way upstream gets an error, and takes nothing of it."""
    kept: list[Any] = []
    upstream = origin(echo)

    def tween(handler: Any, registry: Any) -> Any:
        return lambda request: (kept.append(request.environ["wsgi.input"]), handler(request))[1]

    def configure(config: Configurator) -> None:
        config.add_tween(f"{__name__}.tween", under="pyramid_threaded_proxy.tween.proxy_tween_factory")

    globals()["tween"] = tween
    where = site(streaming(upstream.url), configure=configure)
    client = where.client()
    client.send(put("/r/x", 6) + b"abc")
    wait_until(lambda: upstream.wires and upstream.wires[0].buffer, "the upstream to have what came")
    with pytest.raises(OSError, match="on its way"):
        kept[0].read()
    client.send(b"def")
    assert read_answer(client)[2].endswith(b"abcdef")
    client.close()
