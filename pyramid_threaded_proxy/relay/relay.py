"""One exchange, top to bottom: connect, send, wait for the head, run hooks and overrides, move the body, give back.

Everything in `Relay` is steps of one task (see `loop.task`). The moment after which an answer can only be broken off
is `Client.open`: from then on the client has a head.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any, Protocol

import webob

from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    ClientGone,
    ClientTimedOut,
    ConnectFailed,
    ExchangeFailed,
    HookFailed,
    ReadTimedOut,
    RelayFailed,
    UpstreamGone,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import Body, UpstreamAnswer
from pyramid_threaded_proxy.hooks import run_answering_hook, run_hook
from pyramid_threaded_proxy.http.fields import merge_application_fields
from pyramid_threaded_proxy.http.framing import CLOSE, LENGTH, NO_BODY, Framing, answer_framing, keeps_alive
from pyramid_threaded_proxy.http.head import HeadReader, ResponseHead, render_head
from pyramid_threaded_proxy.http.names import connection_options
from pyramid_threaded_proxy.limits.descriptors import Descriptors
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.syscalls import receive
from pyramid_threaded_proxy.loop.waits import CHECK_CANCELLED, IN_BATCH, Call, Ready, Steps
from pyramid_threaded_proxy.relay.answer_body import BodyMover, BodyReader, body_reader
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.own_answer import error_response, opening, send_response
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.request_body import send_body, send_now
from pyramid_threaded_proxy.relay.transfer import Pipes, upstream_gone
from pyramid_threaded_proxy.relay.tunnel import tunnel
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.connections import Connection, OriginPool

log = logging.getLogger("pyramid_threaded_proxy.relay")

#: RFC 9110 9.2.2, less TRACE, which never goes up.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
#: Interim answers that one exchange may have before its final one.
MOST_INTERIM = 16


class RelayContext(Protocol):
    """Where a relay lives."""

    pipes: Pipes
    descriptors: Descriptors

    def pool(self, prepared: PreparedExchange, watched: bool) -> OriginPool:
        """The connections to where `fetch` goes; `watched` for an exchange that runs in a loop."""

    def upstream_changed(self, route: str, upstream: Upstream, reason: str) -> Steps:
        """Steps: an upstream began to rest, for `reason`, or is back (see its `health`): tell log and subscribers."""

    def ended(self, prepared: PreparedExchange) -> None:
        """The last byte is out, or there will be none: its place is free. Called once, in any case."""

    def close_body(self, body: Body, in_loop: bool) -> None:
        """Close a body of the application's: its code may block, and so runs in a pool thread where there are some."""

    def report(self, prepared: PreparedExchange) -> Steps | None:
        """Tell the log; steps that tell hooks and subscribers, None where there are none."""


class Relay:
    """The steps of one exchange. Everything belongs to the task that runs them."""

    _connection: Connection | None = None
    _head: ResponseHead | None = None  # the final one
    _interim = 0
    _heard = False  # a byte of the answer was received
    _request_sent = False
    _flight: Upstream | None = None  # the one that counts this exchange among its own
    _closed = False

    def __init__(self, prepared: PreparedExchange, client: Client, pool: OriginPool, context: RelayContext) -> None:
        self._prepared = prepared
        self._exchange = prepared.exchange
        self._policy = prepared.policy
        self._client = client
        self._pool = pool
        self._context = context
        self._reader = HeadReader(self._policy.max_head)

    def run(self) -> Steps:
        """Steps: the whole exchange. Whatever happens, the client, the connection and the place are given back."""
        try:
            try:
                yield CHECK_CANCELLED
                if not self._client.is_ready():
                    yield from self._client.ready()
                head, framing, length = yield from self._ask()
                if head.status == 101:
                    yield from self._switch(head, self._reader.rest)
                else:
                    yield from self._pass_on(head, framing, length)
                self._closed = True
                self._client.close()
            except ExchangeFailed as error:
                yield from self._fail(error)
            except Exception as error:
                log.exception("%r ended with an unforeseen error", self._exchange)
                yield from self._fail(RelayFailed(f"{type(error).__name__}: {error}"))
        except ExchangeFailed as error:
            self._exchange.error = self._exchange.error or error
        finally:
            self._release()
        if (report := self._context.report(self._prepared)) is not None:
            yield from report

    def _release(self) -> None:
        """Give back what is still held; after a whole answer that is the place alone."""
        if self._connection is not None:
            self._connection.close()
        if not self._closed:
            self._closed = True
            self._client.break_off()
        body = self._exchange.request.body
        if body is not None and body.owned:
            self._context.close_body(body, self._client.endpoint is not None)
        self._exchange.stats.finished = time.monotonic()
        if self._flight is not None:
            self._flight.flights.pop()
        self._context.ended(self._prepared)

    # The request goes up

    def _ask(self) -> Any:
        """Steps: the answer's final head, framing and length; asks again where RFC 9110 9.2.2 allows it."""
        retries = self._policy.retries
        connection = self._turn_to_upstream(retries)
        while True:
            self._exchange.stats.attempts += 1
            try:
                if connection is None:
                    connection = yield from self._connect()
                endpoint = connection.endpoint
                rest = self._send_head(endpoint)
                self._request_sent = not rest or (yield from self._send(endpoint, rest))
                while self._head is None:
                    yield Ready(endpoint, READ, self._policy.read_timeout, ReadTimedOut)
                    last = self._hear(endpoint)
                    if (last if isinstance(last, bool) else (yield from last)) and self._head is None:
                        raise UpstreamGone("closed in its head" if self._reader.started else "closed without an answer")
                self._exchange.stats.first_byte = time.monotonic()
                framing, length = answer_framing(self._exchange.request.method, self._head)
            except (ConnectFailed, UpstreamGone, ReadTimedOut, AnswerRefused) as error:
                self._drop_connection()
                if self._was_stale(connection, error):
                    if not retries or not self._may_send_again():
                        raise
                    connection = None
                    continue
                yield from self._note_failure(error)
                if not retries or not self._may_go_on(error) or not self._prepared.move_on():
                    raise
                retries -= 1
                self._pool = self._context.pool(self._prepared, self._client.endpoint is not None)
                connection = self._turn_to_upstream(retries)
                continue
            if (choice := self._prepared.choice) is not None and choice.upstream.health.succeeded():
                yield from self._tell_change(choice.upstream, "")
            return self._head, framing, length

    def _was_stale(self, connection: Connection | None, error: ExchangeFailed) -> bool:
        """A kept connection that turns out to be closed says nothing of upstream or request (RFC 9112 9.3.1)."""
        return connection is not None and connection.reused and not self._heard and isinstance(error, UpstreamGone)

    def _turn_to_upstream(self, retries: int) -> Connection | None:
        """Count the exchange where it goes now; returns an idle connection if there is one."""
        prepared = self._prepared
        choice = prepared.choice
        self._exchange.stats.upstream = prepared.exchange.request.origin if choice is None else choice.upstream.url
        if choice is not None and choice.balancer.counts_flights:
            if self._flight is not None:
                self._flight.flights.pop()
            self._flight = choice.upstream
            self._flight.flights.append(None)
        self._connection = self._pool.take(look=not retries or not self._may_send_again())
        return self._connection

    def _note_failure(self, error: ExchangeFailed) -> Steps:
        choice = self._prepared.choice
        if choice is not None and choice.upstream.health.failed():
            yield from self._tell_change(choice.upstream, str(error))

    def _tell_change(self, upstream: Upstream, reason: str) -> Steps:
        return self._context.upstream_changed(self._exchange.route, upstream, reason)

    def _connect(self) -> Any:
        connection = yield Call(self._pool.connect, self._policy.connect_timeout)
        try:
            self._context.descriptors.check(connection.endpoint.fd)
        except ExchangeFailed:
            connection.close()
            raise
        self._exchange.stats.connected = time.monotonic()
        self._connection = connection
        yield CHECK_CANCELLED  # it may have been told to end while it connected
        return connection

    def _may_go_on(self, error: ExchangeFailed) -> bool:
        """Whether another upstream may be asked: it is certain that this one did nothing, or harmless if it did."""
        return isinstance(error, ConnectFailed) or (isinstance(error, UpstreamGone) and self._may_send_again())

    def _may_send_again(self) -> bool:
        request = self._exchange.request
        return not self._heard and request.method in IDEMPOTENT and (request.body is None or request.body.repeatable)

    def _send_head(self, endpoint: Endpoint) -> bytes | memoryview:
        """Write the request's head, or where a body follows none of it yet; returns what is left."""
        request = self._exchange.request
        self._exchange.stats.bytes_up = 0
        try:
            head = render_head(f"{request.method} {request.target} HTTP/1.1", request.fields)
        except ValueRefused as error:
            raise HookFailed(str(error)) from None
        return send_now(endpoint, head) if request.body is None else head

    def _send(self, endpoint: Endpoint, head: bytes | memoryview) -> Any:
        """Steps: send what is left of the head, and the body; returns whether all of it was taken."""
        body, timeout = self._exchange.request.body, self._policy.send_timeout
        return send_body(endpoint, head, body, timeout, self._moved_up, lambda: self._hear_early(endpoint))

    def _hear_early(self, endpoint: Endpoint) -> Any:
        """Steps: hear the upstream while it is still sent to."""
        last = self._hear(endpoint)
        return last if isinstance(last, bool) else (yield from last)

    def _hear(self, endpoint: Endpoint) -> bool | Generator[Any, Any, bool]:
        """Take what the upstream says; returns whether that was its last word, or steps that find out.

        The final head, or that of a switch, is `_head` then; what came behind it is in the reader's `rest`.
        """
        try:
            data = receive(endpoint)
        except BlockingIOError:
            return False  # what made it readable was TLS's own
        except OSError as error:
            raise upstream_gone(error) from None
        if not data:
            return True
        self._heard = True
        head = self._reader.feed(data)
        if head is None:
            return False
        if head.status < 200:
            return self._hear_interim(head)
        self._head = head
        return True

    def _hear_interim(self, head: ResponseHead) -> Generator[Any, Any, bool]:
        """Steps: an interim head, and whatever came behind it."""
        found: ResponseHead | None = head
        while found is not None:
            if found.status >= 200 or (yield from self._is_switch(found)):
                self._head = found
                return True
            found = self._reader.feed(self._reader.rest) if self._reader.rest else None
        return False

    def _is_switch(self, head: ResponseHead) -> Any:
        """Steps: other interim heads go on to who can have them; 100 is an answer to us alone (RFC 9110 15.2)."""
        if head.status == 101:
            self._check_switch(head)
            return True
        self._interim += 1
        if self._interim > MOST_INTERIM:
            raise AnswerRefused(f"more than {MOST_INTERIM} interim answers")
        if head.status != 100:
            yield from self._pass_interim_on(head)
        return False

    def _pass_interim_on(self, head: ResponseHead) -> Steps:
        answer_framing(self._exchange.request.method, head)
        fields = self._policy.answer_fields.select(head.fields, self._prepared.public_url, self._prepared.mount)
        yield from self._client.send(self._client.interim(head.status, head.reason, fields))

    # The answer comes down

    def _pass_on(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        if framing is NO_BODY and self._reader.rest:
            raise AnswerRefused("bytes came behind an answer that has no body (RFC 9112 6.3)")
        yield IN_BATCH
        exchange, policy = self._exchange, self._policy
        fields = policy.answer_fields.select(head.fields, self._prepared.public_url, self._prepared.mount)
        exchange.response = answer = UpstreamAnswer(head.status, head.reason, fields)
        if policy.hooks.response is not None:
            instead = yield Call(run_answering_hook, "response", policy.hooks.response, exchange)
            if instead is not None:
                return (yield from self._answer_instead(instead))
            fields = answer.final_fields()
        if self._prepared.application_fields:
            fields = merge_application_fields(fields, self._prepared.application_fields)
        answer.fields = policy.rules.apply(fields)
        if policy.hooks.headers is not None:
            answer = yield from self._ask_headers_hook(answer)
        shown, shown_length = self._towards_client(answer.status, head, framing, length)
        if shown is NO_BODY and framing is not NO_BODY:
            yield from self._client.send(opening(self._client, answer, shown, shown_length))
            return self._drop_connection()  # a body that the client does not get is left unread
        reader = body_reader(framing, length, self._client)
        unsent, brought = self._begin(answer, shown, shown_length, reader)
        yield IN_BATCH
        unsent = self._client.send_now(unsent)
        if unsent:
            yield from self._client.send(unsent)
        del unsent
        exchange.stats.bytes_down += brought
        if framing is not NO_BODY and not reader.done:
            yield from self._move_rest(reader)
        self._keep_connection(head, framing)

    def _begin(
        self, answer: UpstreamAnswer, framing: Framing, length: int | None, reader: BodyReader
    ) -> tuple[bytes | memoryview, int]:
        """The head and what of the body came with it, to be sent, and that body's length.

        In a function of its own so that it holds none of it while the rest of the body is moved.
        """
        rest, self._reader.rest = self._reader.rest, b""
        pieces = reader.feed(rest)  # before the head is out: what is wrong here can still be told
        return b"".join([opening(self._client, answer, framing, length), *pieces]), sum(map(len, pieces))

    # Or the connection is switched to another protocol

    def _check_switch(self, head: ResponseHead) -> None:
        """A 101 must be for one of the protocols that were asked for, and say so in both fields (RFC 9110 7.8)."""
        named = [value for name, value in head.fields if name.lower() == "upgrade"]
        options = connection_options(value for name, value in head.fields if name.lower() == "connection")
        if not self._prepared.upgrade:
            raise AnswerRefused("101 Switching Protocols, which nobody asked for (RFC 9110 15.2.2)")
        if len(named) != 1 or named[0].lower() not in self._prepared.upgrade or "upgrade" not in options:
            raise AnswerRefused("101 Switching Protocols to a protocol that was not asked for (RFC 9110 7.8)")

    def _switch(self, head: ResponseHead, rest: bytes) -> Steps:
        """Steps: pass the 101 on, and then bytes both ways. Neither connection carries HTTP again."""
        client, connection = self._client, self._connection
        assert connection is not None
        protocol = next(value for name, value in head.fields if name.lower() == "upgrade")
        fields = self._policy.answer_fields.select(head.fields, self._prepared.public_url, self._prepared.mount)
        answer = UpstreamAnswer(101, head.reason, merge_application_fields(fields, self._prepared.application_fields))
        self._exchange.response = answer
        hook = self._policy.hooks.response
        if hook is not None and (instead := (yield Call(run_answering_hook, "response", hook, self._exchange))):
            return (yield from self._answer_instead(instead))
        answer.fields = self._policy.rules.apply(answer.fields)
        if self._policy.hooks.headers is not None:
            answer = yield from self._ask_headers_hook(answer)
        if answer.status != 101:
            raise HookFailed("the headers hook changed the status of a 101")
        early = yield Call(client.early_bytes)
        try:
            opening = client.switch(answer.reason, list(answer.fields), protocol)
        except ValueRefused as error:
            raise HookFailed(str(error)) from None
        yield from client.send(opening)
        assert client.endpoint is not None
        moved = (self._moved_up, self._moved_down)
        yield from tunnel(client.endpoint, connection.endpoint, (early, rest), self._policy.idle_timeout, moved)
        self._drop_connection()

    def _moved_up(self, count: int) -> None:
        self._exchange.stats.bytes_up += count

    def _moved_down(self, count: int) -> None:
        self._exchange.stats.bytes_down += count

    def _towards_client(
        self, status: int, head: ResponseHead, framing: Framing, length: int
    ) -> tuple[Framing, int | None]:
        """The answer's framing for this client. A hook may have changed method or status, a view the method."""
        if self._prepared.head_only or status in (204, 304):
            return NO_BODY, None if status == 204 else _said_length(head)
        if framing is NO_BODY:
            return LENGTH, 0  # the client waits for a body, and there is none
        return framing, length if framing is LENGTH else None

    def _ask_headers_hook(self, answer: UpstreamAnswer) -> Any:
        """Steps: the answer as the hook leaves it; what it made is checked when it is written."""
        assert self._policy.hooks.headers is not None
        fresh = UpstreamAnswer(answer.status, answer.reason, answer.fields)
        self._exchange.response = fresh
        yield Call(run_hook, "headers", self._policy.hooks.headers, self._exchange)
        fresh.fields = merge_application_fields([], fresh.final_fields())
        return fresh

    def _move_rest(self, reader: BodyReader) -> Steps:
        assert self._connection is not None
        policy = self._policy
        timeouts = (policy.read_timeout, policy.send_timeout)
        mover = BodyMover(
            self._connection.endpoint, self._client, self._context.pipes, policy.buffer, timeouts, self._moved_down
        )
        yield from mover.move(reader)

    def _keep_connection(self, head: ResponseHead, framing: Framing) -> None:
        """Only a connection whose messages both ended where their framing says is used again."""
        connection = self._connection
        assert connection is not None
        # After an upgrade was asked for, what the upstream takes the connection for is anybody's guess.
        if self._request_sent and framing is not CLOSE and not self._prepared.upgrade and keeps_alive(head):
            self._connection = None
            self._pool.give_back(connection, self._policy.keepalive)
        else:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _answer_instead(self, response: webob.Response) -> Steps:
        """Steps: a response of a hook's or of ours; the upstream's body is dropped."""
        self._drop_connection()
        return send_response(response, self._prepared, self._client)

    # It failed

    def _fail(self, error: ExchangeFailed) -> Steps:
        """Steps: tell the hook and, while the client has no head yet and is still there, the client."""
        exchange = self._exchange
        exchange.error = error
        self._drop_connection()
        instead = None
        if self._policy.hooks.error is not None:
            try:
                instead = yield Call(run_answering_hook, "error", self._policy.hooks.error, exchange)
            except HookFailed:
                pass  # its traceback is in the log, and the first error is the one that counts
        if self._client.opened or isinstance(error, (ClientGone, ClientTimedOut)):
            return
        yield from self._answer_instead(instead or error_response(error, self._prepared.accept))
        self._closed = True
        self._client.close()


def _said_length(head: ResponseHead) -> int | None:
    """The Content-Length of an answer to HEAD, or of a 304: it may have one without a body (RFC 9110 8.6)."""
    return next((int(value) for name, value in head.fields if name.lower() == "content-length"), None)
