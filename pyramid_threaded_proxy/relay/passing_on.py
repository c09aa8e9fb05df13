"""An answer on its way from the upstream to the client: hooks and overrides, its head, and its body.

A body that nobody looks into goes as it is, in the kernel where it can (`answer_body`). One that a `response` hook has
read from, or that is filtered, is taken apart here first (`answer_source`, `body_filter`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from pyramid_threaded_proxy.exchange import UpstreamAnswer
from pyramid_threaded_proxy.hooks import ExchangeHook, Instead, run_answering_hook
from pyramid_threaded_proxy.http.fields import merge_application_fields
from pyramid_threaded_proxy.http.filtered import fields_of_filtered
from pyramid_threaded_proxy.http.framing import CHUNKED, LENGTH, NO_BODY, Framing
from pyramid_threaded_proxy.http.head import ResponseHead
from pyramid_threaded_proxy.loop.dialogue import Dialogue
from pyramid_threaded_proxy.loop.waits import IN_BATCH, Hop, Returning, Steps
from pyramid_threaded_proxy.relay.answer_body import BodyMover, BodyReader, Incoming, Piece, Rechunked, body_reader
from pyramid_threaded_proxy.relay.answer_head import AnswerHead
from pyramid_threaded_proxy.relay.answer_source import (
    AnswerSource,
    BodyInHand,
    Noting,
    decoded_beginning,
    next_of,
    payload_reader,
)
from pyramid_threaded_proxy.relay.body_filter import (
    BodyFilters,
    HookedBody,
    NextPiece,
    filters_for,
    replaced,
    send_filtered,
)
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.own_answer import ask_headers_hook, opening
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.transfer import WORTH_MOVING, Pipes

#: A body that is looked into is taken in pieces of `buffer`, so many: one waits, one is worked on, and there is what is
#: made of it, and what is sent of that.
_PIECES_IN_BUFFER = 4
#: An answer from this status on is an error (RFC 9110 15.5).
ERROR = 400
#: Bytes: more at a time saves nothing.
_LARGEST_PIECE = 256 * 1024


class Holder(Protocol):
    """Who has the connection that the answer comes on."""

    @property
    def pipes(self) -> Pipes:
        """For bodies that go through the kernel."""

    def note_stray_bytes(self) -> None:
        """Bytes came behind a whole answer."""

    def drop_connection(self) -> None:
        """Nothing more is wanted of it."""

    def answer_instead(self, response: Any) -> Steps:
        """Steps: a response of a hook's takes the answer's place."""


class PassingOn:
    """The steps of one answer. Belongs to the task that runs them."""

    _hand: BodyInHand | None = None
    _in_mover = False
    _to_note = 0
    _noting: Noting | None = None

    def __init__(
        self, prepared: PreparedExchange, client: Client, answer: AnswerHead, incoming: Incoming, holder: Holder
    ) -> None:
        self._prepared = prepared
        self._exchange = prepared.exchange
        self._policy = prepared.policy
        self._client = client
        self._answer = answer
        self._incoming = incoming
        self._holder = holder
        self._source: AnswerSource | None = None
        #: What the application makes of the body; it must be closed when the exchange ends.
        self.hooked: HookedBody | None = None

    def steps(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        """Steps: the whole answer."""
        most = self._policy.settings.log_error_body
        if most is None or head.status < ERROR or framing is NO_BODY:
            return self._steps(head, framing, length)
        self._to_note = most
        return self._steps_noting(head, framing, length)

    def _steps_noting(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        """Steps: the same; the beginning of the body is kept for the log, however it ends."""
        self._body_source(framing, length)
        try:
            yield from self._steps(head, framing, length)
        finally:
            assert self._noting is not None
            noted = self._noting.noted
            self._prepared.error_body = head.status, decoded_beginning(noted, head.fields, self._to_note)

    def _steps(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        if framing is NO_BODY and self._answer.take_rest():
            self._holder.note_stray_bytes()
        yield IN_BATCH
        exchange, policy = self._exchange, self._policy
        fields = self._prepared.fields_for_client(head.fields)
        filters = None
        if policy.filters and (filters := filters_for(policy, head, framing is not NO_BODY)) is not None:
            fields = fields_of_filtered(fields)
        exchange.response = answer = UpstreamAnswer(head.status, head.reason, fields)
        if policy.hooks.response is not None:
            instead = yield from self._ask_response_hook(policy.hooks.response, answer, head, framing, length)
            if instead is not None:
                return (yield from self._holder.answer_instead(instead))
            fields = answer.final_fields()
        if self._prepared.application_fields:
            fields = merge_application_fields(fields, self._prepared.application_fields)
        answer.fields = policy.rules.apply(fields)
        if policy.hooks.headers is not None:
            answer = yield from ask_headers_hook(policy.hooks.headers, exchange, answer)
        shown, shown_length = _towards_client(self._prepared.head_only, answer.status, head, framing, length)
        if shown is NO_BODY and filters is not None:
            shown_length = None  # of a body that would have another one
        if shown is NO_BODY and framing is not NO_BODY:
            self._holder.drop_connection()  # a body that the client does not get is left unread
            return (yield from self._client.send(opening(self._client, answer, shown, shown_length)))
        if filters is not None and framing is not NO_BODY:
            pieces = yield from self._filtered(filters, framing, length)
            if pieces is not None:
                return (yield from self._send_filtered(answer, pieces))
            if filters.coding:
                answer.fields.append(("Content-Encoding", filters.coding))
        yield from self._send_as_it_came(answer, shown, shown_length, (framing, length))

    # The body as it came

    def _send_as_it_came(
        self, answer: UpstreamAnswer, shown: Framing, shown_length: int | None, framed: tuple[Framing, int]
    ) -> Steps:
        if self._source is None:
            reader = body_reader(*framed, self._client)
            unsent, brought = self._begin(answer, shown, shown_length, reader)
        else:
            reader = self._source.remaining(self._client.passes_framing and self._client.minor > 0)
            unsent, brought = self._begin_after_read(answer, shown, shown_length, reader)
        yield IN_BATCH
        unsent = self._client.send_now(unsent)
        if unsent:
            yield from self._client.send(unsent)
        del unsent
        self._exchange.stats.bytes_down += brought
        if framed[0] is not NO_BODY and not reader.done:
            buffer, timeouts = self._policy.settings.buffer, self._policy.timeouts
            mover = BodyMover(self._incoming, self._client, self._holder.pipes, buffer, timeouts, self._moved_down)
            yield from mover.move(reader)
        if reader.stray:
            self._holder.note_stray_bytes()

    def _begin(
        self, answer: UpstreamAnswer, framing: Framing, length: int | None, reader: BodyReader
    ) -> tuple[bytes | memoryview, int]:
        """The head and what of the body came with it, to be sent, and that body's length.

        In a function of its own so that it holds none of it while the rest of the body is moved.
        """
        pieces = reader.feed(self._answer.take_rest())  # before the head is out: what is wrong here can still be told
        return b"".join([opening(self._client, answer, framing, length), *pieces]), reader.payload

    def _begin_after_read(
        self, answer: UpstreamAnswer, framing: Framing, length: int | None, reader: BodyReader
    ) -> tuple[bytes | memoryview, int]:
        """The same where a hook has read of the body. All that was received goes on first."""
        assert self._source is not None
        data = self._put_back(self._source).take_received()
        if reader.done and framing is not NO_BODY:
            pieces: list[Piece] = [data]
            framing, length = LENGTH, len(data)
        else:
            pieces = reader.passing([data]) if isinstance(reader, Rechunked) else [data]
        return b"".join([opening(self._client, answer, framing, length), *pieces]), len(data)

    def _moved_down(self, count: int) -> None:
        self._exchange.stats.bytes_down += count

    # The body is looked into

    def _body_source(self, framing: Framing, length: int) -> AnswerSource:
        if self._source is None:
            most = min(self._policy.settings.buffer // _PIECES_IN_BUFFER, _LARGEST_PIECE)
            reader = payload_reader(framing, length)
            if self._to_note:
                reader = self._noting = Noting(reader, self._to_note)
            self._source = AnswerSource(self._incoming, framing, reader, self._answer.take_rest(), most)
        return self._source

    def _put_back(self, source: AnswerSource) -> AnswerSource:
        """What a hook has read comes once more."""
        if self._hand is not None:
            source.put_back(bytes(self._hand.taken))
            self._hand = None
        return source

    def _ask_response_hook(
        self, hook: ExchangeHook, answer: UpstreamAnswer, head: ResponseHead, framing: Framing, length: int
    ) -> Returning[Instead]:
        """Steps: what the hook answers instead; meanwhile it may read the body."""

        def more() -> Returning[bytes]:
            return next_of(self._body_source(framing, length))

        dialogue = Dialogue(more, run_answering_hook, "response", hook, self._exchange)
        hand = self._hand = BodyInHand(dialogue.ask, head.fields)
        answer.reader = hand.read if framing is not NO_BODY else _nothing
        try:
            return (yield from dialogue.steps())
        finally:
            answer.reader = None

    def _filtered(self, filters: BodyFilters, framing: Framing, length: int) -> Returning[NextPiece | None]:
        """Steps: what brings the body as it was made; None where the `body` hook leaves it as it is."""
        source = self._put_back(self._body_source(framing, length))
        source.decode(filters.coding)
        body = replaced(source, filters.replacing)
        if filters.hook is not None:
            hooked = self.hooked = HookedBody(filters.hook, self._exchange, body)
            if (yield from hooked.start()):
                return hooked.next
        return None if filters.replacing is None else partial(next_of, body)

    def _send_filtered(self, answer: UpstreamAnswer, next_piece: NextPiece) -> Steps:
        source, client = self._source, self._client
        assert source is not None
        yield from client.send(opening(client, answer, CHUNKED, None))
        yield from send_filtered(next_piece, client, self._moved_down, self._hop)
        if self._in_mover:
            assert client.endpoint is not None
            yield Hop(True, self._incoming.endpoint, client.endpoint)
        if not source.ended:
            self._holder.drop_connection()  # the filter wanted no more
        elif source.reader.stray:
            self._holder.note_stray_bytes()

    def _hop(self) -> Steps:
        """Steps: go on where big bodies disturb nobody, once this is one."""
        big = self._exchange.stats.bytes_down >= WORTH_MOVING
        if big and not self._in_mover and not self._incoming.beside and self._client.endpoint is not None:
            self._in_mover = True
            yield Hop(False, self._incoming.endpoint, self._client.endpoint)


def _nothing(limit: int) -> bytes:
    """What is read of an answer without a body."""
    return b""


def _towards_client(
    head_only: bool, status: int, head: ResponseHead, framing: Framing, length: int
) -> tuple[Framing, int | None]:
    """The answer's framing for this client. A hook may have changed method or status, a view the method."""
    if head_only or status in (204, 304):
        return NO_BODY, None if status == 204 else _said_length(head)
    if framing is NO_BODY:
        return LENGTH, 0  # the client waits for a body, and there is none
    return framing, length if framing is LENGTH else None


def _said_length(head: ResponseHead) -> int | None:
    """The Content-Length of an answer to HEAD, or of a 304: it may have one without a body (RFC 9110 8.6)."""
    return next((int(value) for name, value in head.fields if name.lower() == "content-length"), None)
