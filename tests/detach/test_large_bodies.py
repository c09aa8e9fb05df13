"""Bodies that waitress receives whole, in large pieces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from pyramid.response import Response
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser

from pyramid_threaded_proxy.detach.large_bodies import A_TURN, PIECE, BodyReceiver
from tests.support.bodies import content
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MODES, MakeSite, route, with_view
from tests.support.uploads import chunks, put, put_chunked
from tests.support.waiting import wait_until
from tests.support.wire import Wire, get, read_answer

Pair = tuple[socket.socket, socket.socket]
MakeChannel = Callable[[int], Any]
LAST = 65536
#: Where something could be lost or taken twice.
SIZES = [LAST - 1, LAST + 1, PIECE, PIECE + LAST, PIECE + LAST + 1, A_TURN + 1, A_TURN + PIECE + LAST, 5_000_000]


@pytest.mark.parametrize("mode", ["poll", "select"])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_arrives(size: int, mode: str, origin: MakeOrigin, site: MakeSite) -> None:
    """An application and an upstream get each body as it was sent; what comes behind it is the next request."""

    def view(request: Any) -> Response:
        answer = Response(request.body)
        request.environ["wsgi.input"].close()  # WebOb leaves its copy to the garbage collector
        return answer

    upstream = origin(echo)
    where = site(route("r", upstream.url), configure=with_view(view), **MODES[mode])
    client, data = where.client(), content(size)
    for path in ("/own/x", "/r/x"):
        client.send(put(path, size) + data + get("/own/next"))
        assert read_answer(client)[2].rpartition(b"\r\n\r\n")[2] == data
        assert read_answer(client)[2] == b""
    assert upstream.requests[0].body == data
    client.close()


def test_chunks_are_waitress_s(origin: MakeOrigin, site: MakeSite) -> None:
    """A body whose length is not known is read by waitress's own parser, as it comes."""
    upstream, data = origin(echo), content(1_000_000)
    client = site(route("r", upstream.url)).client()
    client.send(put_chunked("/r/x") + chunks(data, 300_000))
    read_answer(client)
    assert upstream.requests[0].body == data
    client.close()


@pytest.mark.parametrize("how", [Wire.half_close, Wire.reset])
def test_a_client_that_leaves(how: Callable[[Wire], None], origin: MakeOrigin, site: MakeSite) -> None:
    """Nothing of a body that is not whole is sent on, and nothing stays."""
    upstream = origin(echo)
    where = site(route("r", upstream.url))
    client = where.client()
    client.send(put("/r/x", 2_000_000) + content(400_000))  # not so much that it is in a file, which waitress leaves
    how(client)
    wait_until(lambda: not where.channels, "the end of its connection")
    assert not upstream.accepted
    client.close()


# One turn


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's end of a connection, which does not block, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture
def channel_for(pair: Pair, stack: ExitStack) -> MakeChannel:
    """Makes what a channel of waitress's is once the head of a request with a body of that length has been read."""

    def make(length: int) -> Any:
        adjustments = Adjustments(recv_bytes=8192)
        parser = HTTPRequestParser(adjustments)
        parser.received(put("/r/x", length))
        stack.callback(parser.close)
        return SimpleNamespace(
            request=parser, socket=pair[0], adj=adjustments, will_close=False, close_when_flushed=False
        )

    return make


def test_all_that_has_come_is_taken(pair: Pair, channel_for: MakeChannel) -> None:
    """In one turn, but not the last byte, nor what is behind it."""
    ours, theirs = pair
    channel, data = channel_for(150_000), content(150_000)
    theirs.sendall(data[:100_000])
    BodyReceiver().take_more(channel)
    assert channel.request.body_bytes_received == 100_000
    theirs.sendall(data[100_000:] + b"next")
    BodyReceiver().take_more(channel)
    assert (channel.request.body_bytes_received, channel.request.completed) == (149_999, False)
    assert channel.request.received(ours.recv(8192)) == 1
    assert channel.request.completed
    assert channel.request.get_body_stream().read() == data


def test_others_have_their_turn(pair: Pair, channel_for: MakeChannel) -> None:
    """Clients that send faster than they are read do not hold the loop: what a turn takes of all of them is bounded."""
    ours, theirs = pair
    channel, data = channel_for(100 * A_TURN), content(PIECE)

    def send() -> None:
        with suppress(OSError):
            while True:
                theirs.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    receiver, rounds = BodyReceiver(), 0
    while channel.request.body_bytes_received < 3 * A_TURN:
        before = channel.request.body_bytes_received
        receiver.begin_turn()
        for _ in range(3):
            receiver.take_more(channel)
        rounds += 1
        assert channel.request.body_bytes_received - before < A_TURN + PIECE
    assert rounds >= 3
    ours.shutdown(socket.SHUT_RDWR)
    sender.join()


@pytest.mark.parametrize("what", ["will_close", "close_when_flushed"])
def test_a_connection_that_is_closed_is_not_read(what: str, pair: Pair, channel_for: MakeChannel) -> None:
    """Nobody wants the rest of the body."""
    channel = channel_for(1_000_000)
    setattr(channel, what, True)
    pair[1].sendall(content(100_000))
    BodyReceiver().take_more(channel)
    assert channel.request.body_bytes_received == 0


def test_what_went_wrong_is_left_to_waitress(pair: Pair, channel_for: MakeChannel) -> None:
    """An end, a socket that was closed, and a request without a body or in its head, change nothing."""
    ours, theirs = pair
    channel = channel_for(1_000_000)
    theirs.close()
    BodyReceiver().take_more(channel)
    ours.close()
    BodyReceiver().take_more(channel)
    assert (channel.request.body_bytes_received, channel.request.completed) == (0, False)
    channel.request = HTTPRequestParser(channel.adj)
    BodyReceiver().take_more(channel)
    channel.request.received(b"GET /")
    BodyReceiver().take_more(channel)
    assert not channel.request.headers_finished
