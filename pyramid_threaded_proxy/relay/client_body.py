"""A request's body that streams: from the client's own socket to the upstream's, as it comes.

A body of known length goes through a pipe inside the kernel where it can, a chunked one through the strict reader and
out again in chunks of ours: no size line of the client's ever goes up. What is held is bounded by `buffer`, whichever
side is slow; while nothing comes nothing is held, and no pipe.
"""

from __future__ import annotations

from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    BodyRefused,
    BodyTooLarge,
    ClientBodyTimedOut,
    ClientGone,
    RelayFailed,
    SendTimedOut,
)
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.http.framing import LAST_CHUNK, ChunkedReader, chunk
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.waits import Hop, Ready, Returning, Steps, Yield
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.request_body import BLOCK, send_all
from pyramid_threaded_proxy.relay.transfer import (
    A_TURN,
    WORTH_A_HOP,
    WORTH_MOVING,
    Moved,
    Pipes,
    client_gone,
    splice,
    upstream_gone,
)
from pyramid_threaded_proxy.settings.table import RouteSettings

#: Bytes that are copied before the other exchanges have their turn.
_A_COPIED_TURN = 1024 * 1024


class ClientBody:
    """One exchange's body. Belongs to its task; `body` knows how far it is."""

    def __init__(self, client: Client, body: Body, settings: RouteSettings, pipes: Pipes, moved: Moved) -> None:
        unread = client.unread_body()
        if unread is None or client.endpoint is None:
            raise RelayFailed("the request's body was read by somebody else")
        unread.streams = True
        self._client = client
        self._source: Endpoint = client.endpoint
        self._body = body
        self._settings = settings
        self._pipes = pipes
        self._moved = moved
        self._early = unread.early  # kept: as long as nothing else was taken, the body can be sent again
        self._expects = unread.expects
        self._turn = 0

    def begin(self, endpoint: Endpoint, head: bytes | memoryview) -> Returning[Steps]:
        """Steps: have the client send its body, if it waits for that, now that it is wanted (RFC 9110 10.1.1).

        What they return are the steps that send the head, or what is left of it, and the body from its beginning.
        These raise `UpstreamGone`, `SendTimedOut`, and what is the client's fault: `ClientGone`, `ClientBodyTimedOut`,
        `BodyRefused`, `BodyTooLarge`.
        """
        if self._expects:
            self._expects = False
            yield from self._client.send(self._client.interim(100, "Continue", []))
        if self._body.length is None:
            return self._send_chunked(endpoint, head)
        return self._send_length(endpoint, head, self._body.length)

    def _send_length(self, endpoint: Endpoint, head: bytes | memoryview, length: int) -> Steps:
        data = self._early[:length]
        left = length - len(data)
        yield from send_all(endpoint, b"".join((head, data)), self._settings.send_timeout)
        self._moved(len(data))
        if left >= WORTH_A_HOP:
            yield Hop(False, endpoint, self._source)
        if left >= WORTH_MOVING and endpoint.raw and self._source.raw:
            left = yield from self._splice(endpoint, left)
        while left:
            data = yield from self._receive(min(left, BLOCK, self._settings.buffer))
            left -= len(data)
            yield from self._pass_on(endpoint, data, len(data))
        self._end(self._early[length:])

    def _splice(self, endpoint: Endpoint, left: int) -> Returning[int]:
        """Steps: move the body through pipes, as long as these can be had; returns what is left of it then."""
        pipe = None
        try:
            while left or pipe is not None:
                pipe = pipe or self._pipes.take(wide=left >= WORTH_A_HOP)
                if pipe is None:
                    return left
                room = min(pipe.size, self._settings.buffer) - pipe.held
                if left and room > 0:
                    taken = splice(self._source.fd, pipe.target, min(left, room), client_gone)
                    if taken == 0:
                        raise _gone_early(left)
                    if taken is not None:
                        self._body.begun = True
                        left -= taken
                        pipe.held += taken
                if pipe.held:
                    sent = splice(pipe.source, endpoint.fd, pipe.held, upstream_gone)
                    if sent is None:
                        yield Ready(endpoint, WRITE, self._settings.send_timeout, SendTimedOut)
                    else:
                        pipe.held -= sent
                        self._moved(sent)
                        yield from self._next_turn(sent, A_TURN)
                else:
                    self._pipes.give_back(pipe)  # others may have it while this client is silent
                    pipe = None
                    if left:
                        yield self._silence()
        except BaseException:
            if pipe is not None:
                pipe.close()
            raise
        return 0

    def _send_chunked(self, endpoint: Endpoint, head: bytes | memoryview) -> Steps:
        reader, data, total, hopped = ChunkedReader(decode=True), self._early, 0, False
        yield from send_all(endpoint, head, self._settings.send_timeout)
        while True:
            pieces = _data_of(reader, data)
            size = sum(map(len, pieces))
            total += size
            if self._body.limit is not None and total > self._body.limit:
                raise BodyTooLarge(f"the request body is larger than {self._body.limit} bytes")
            last = LAST_CHUNK if reader.done else b""
            if pieces or last:
                framed = b"".join([*chunk(*pieces), last])
                del data, pieces
                yield from self._pass_on(endpoint, framed, size)
            if last:
                return self._end(reader.rest)
            if total >= WORTH_A_HOP and not hopped:
                hopped = True
                yield Hop(False, endpoint, self._source)
            data = yield from self._receive(min(BLOCK, self._settings.buffer))

    def _receive(self, most: int) -> Returning[bytes]:
        """Steps: what the client sends next."""
        while True:
            try:
                data = self._source.sock.recv(most)
            except BlockingIOError:
                yield self._silence()
            except OSError as error:
                raise client_gone(error) from None
            else:
                if not data:
                    raise _gone_early(None)
                self._body.begun = True
                return data

    def _silence(self) -> Ready:
        return Ready(self._source, READ, self._settings.client_body_timeout, ClientBodyTimedOut)

    def _pass_on(self, endpoint: Endpoint, data: bytes, count: int) -> Steps:
        yield from send_all(endpoint, data, self._settings.send_timeout)
        self._moved(count)
        yield from self._next_turn(count, _A_COPIED_TURN)

    def _next_turn(self, count: int, a_turn: int) -> Steps:
        self._turn += count
        if self._turn >= a_turn:
            self._turn = 0
            yield Yield()

    def _end(self, behind: bytes) -> None:
        """All of the body was taken; what came behind it is the next request's."""
        self._body.ended = True
        self._client.body_ended(behind)


def _gone_early(left: int | None) -> ClientGone:
    missing = "the end" if left is None else f"{left} bytes"
    return ClientGone(f"closed with {missing} of its request missing")


def _data_of(reader: ChunkedReader, data: bytes) -> list[bytes | memoryview]:
    """The data in a piece of a chunked body. The reader's rules are those for answers; the fault is the client's."""
    try:
        return reader.feed(data)
    except AnswerRefused as error:
        raise BodyRefused(f"the chunked request body is faulty: {error}") from None
