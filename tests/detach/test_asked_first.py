"""Hand-over by the head: refused is refused before the body, and what follows a body is never before its time."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from tests.support.bodies import content
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Site, own_view, route, with_policy
from tests.support.uploads import CONTINUE, chunks, put, put_chunked, streaming
from tests.support.waiting import wait_until
from tests.support.wire import get, read_answer

GIB = 1 << 30
POLLS = pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])


def guarded(upstream: str, **keys: str) -> dict[str, Any]:
    """A streaming route that needs a permission, which nobody has where the context has no ACL."""
    return streaming(upstream, permission="view", **keys)


@POLLS
@pytest.mark.parametrize("expect", [True, False], ids=["expect", "at once"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_refused_before_the_body(
    origin: MakeOrigin, site: MakeSite, sockets: int, chunked: bool, expect: bool, poll: bool
) -> None:
    """A refused upload is answered while its body has not come, without a 100; then the connection is closed."""
    upstream = origin(echo)
    where = site(guarded(upstream.url), configure=with_policy, sockets=sockets, asyncore_use_poll=poll)
    fields = ("Expect: 100-continue",) if expect else ()
    client = where.client()
    client.send(put_chunked("/r/x", *fields) if chunked else put("/r/x", GIB, *fields))
    first, found, _ = read_answer(client)
    assert (first, found["connection"]) == ("HTTP/1.1 403 Forbidden", "close")
    assert client.rest() == b""
    assert upstream.accepted == 0
    client.close()


@POLLS
def test_a_refusal_survives_what_the_client_still_sends(origin: MakeOrigin, site: MakeSite, poll: bool) -> None:
    """A client that reads only when it has sent all of 900 KB gets the whole refusal, and no reset."""
    where = site(guarded(origin(echo).url), configure=with_policy, asyncore_use_poll=poll)
    client = where.client()
    client.send(put("/r/x", 900_000))
    wait_until(lambda: client.sock.recv(1, 2), "the answer")  # MSG_PEEK
    client.send(bytes(900_000))
    client.half_close()
    assert client.rest().startswith(b"HTTP/1.1 403 Forbidden\r\n")
    client.close()


def test_bytes_behind_a_refused_body_are_no_request(origin: MakeOrigin, site: MakeSite) -> None:
    """The body of a refused upload is never run, though it looks like a request."""
    asked: list[str] = []

    def configure(config: Configurator) -> None:
        with_policy(config)
        config.add_route("own", "/own")
        config.add_view(lambda request: asked.append(request.path) or Response("own"), route_name="own")

    where = site(guarded(origin(echo).url), configure=configure)
    for head in (put("/r/x", 5000), put_chunked("/r/x"), put("/r/x", 5000, "Expect: 100-continue")):
        answer = where.raw(head + get("/own"))
        assert answer.count(b"HTTP/1.1 ") == 1
    client = where.client()
    client.send(put("/r/x", 5000))
    read_answer(client)
    client.send(get("/own"))
    assert client.rest() == b""
    client.close()
    assert asked == []


@pytest.mark.parametrize("lookahead", [0, 2])
@POLLS
def test_pipelined(origin: MakeOrigin, site: MakeSite, sockets: int, poll: bool, lookahead: int) -> None:
    """Uploads between other requests on one connection, sent at once or byte by byte, are each answered in turn."""
    where = site(
        streaming(origin(echo).url), configure=own_view, sockets=sockets, asyncore_use_poll=poll,
        channel_request_lookahead=lookahead,
    )  # fmt: skip
    data = content(3000)
    sent = [get("/own"), put("/r/1", 3000) + data, get("/own"), put_chunked("/r/2") + chunks(data, 700), get("/r/3")]
    for size in (1 << 20, 997):
        client = where.client()
        for start in range(0, len(b"".join(sent)), size):
            client.send(b"".join(sent)[start : start + size])
        bodies = [read_answer(client)[2] for _ in sent]
        assert (bodies[0], bodies[2]) == (b"own", b"own")
        assert [bodies[at].split(b" ")[1] for at in (1, 3, 4)] == [b"/1", b"/2", b"/3"]
        assert data in bodies[1]
        client.close()


def test_other_routes_are_handed_over_whole(origin: MakeOrigin, site: MakeSite) -> None:
    """The application's own views, and routes that buffer, are called when the body is there, and not before."""
    called: list[str] = []

    def configure(config: Configurator) -> None:
        for name, pattern in (("own", "/own"), ("inside", "/r/own"), ("post", "/r/post")):
            config.add_route(name, pattern, **({"request_method": "POST"} if name == "post" else {}))
            config.add_view(lambda request: called.append(request.path) or Response("own"), route_name=name)

    upstream = origin(echo)
    where = site(
        streaming(upstream.url) | route("b", upstream.url) | {"proxy.routes.b.prefix": "/r/b"}, configure=configure
    )
    for path in ("/own", "/r/own", "/r/b/x", "/r/post"):
        client, before = where.client(), len(upstream.requests)
        client.send(put(path, 3, method="POST") + b"ab")
        own = where.client()
        own.send(get("/own"))
        read_answer(own)
        own.close()
        assert called == ["/own"]
        assert len(upstream.requests) == before
        client.send(b"c")
        read_answer(client)
        called.clear()
        client.close()


def test_a_body_that_is_there_is_handed_over_with_its_head(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the whole body came with the head there is nothing to wait for: a refusal leaves the connection open."""
    where = site(guarded(origin(echo).url), configure=with_policy)
    client = where.client()
    for _ in range(2):
        client.send(put("/r/x", 5, "Expect: 100-continue") + b"hello")
        first, fields, _ = read_answer(client)
        assert (first, fields.get("connection")) == ("HTTP/1.1 403 Forbidden", None)
    client.close()


def test_waitresss_limit_is_asked_of_who_reads(origin: MakeOrigin, site: MakeSite) -> None:
    """A body over waitress's limit is refused to whom it is refused anyway with 403, and to others with 413."""
    settings = guarded(origin(echo).url) | {"proxy.routes.p.prefix": "/p", "proxy.routes.p.public": "true"}
    settings |= {"proxy.routes.p.upstream": origin(echo).url, "proxy.routes.p.request.buffering": "false"}
    where = site(settings, configure=with_policy, max_request_body_size=1000)
    for path, status in (("/r/x", b"403"), ("/p/x", b"413")):
        answer = where.raw(put(path, 1001, "Expect: 100-continue"))
        assert answer.split(b" ")[1] == status
        assert CONTINUE not in answer


def test_a_client_that_leaves(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that leaves behind its head costs nothing that stays."""
    where = site(streaming(origin(echo).url))
    for _ in range(3):
        client = where.client()
        client.send(put("/r/x", 1000) + b"some")
        client.reset()
    wait_until(lambda: not where.channels, "the end of their connections")


def test_no_threads_for_who_does_not_stream(origin: MakeOrigin, site: MakeSite) -> None:
    """Without such a route, a body is waited for as waitress waits."""
    where: Site = site(route("r", origin(echo).url, permission="view"), configure=with_policy)
    client = where.client()
    client.send(put("/r/x", 3) + b"ab")
    other = where.client()
    other.send(get("/nothing"))
    read_answer(other)
    assert not client.is_closed()
    client.send(b"c")
    assert read_answer(client)[0] == "HTTP/1.1 403 Forbidden"
    client.close()
    other.close()
