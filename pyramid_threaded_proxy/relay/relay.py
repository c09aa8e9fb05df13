"""One exchange, top to bottom: connect, send, wait for the head, run hooks and overrides, move the body, give back.

Everything in `Relay` is steps of one task (see `loop.task`). The moment after which an answer can only be broken off
is `Client.open`: from then on the client has a head.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

import webob

from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    ClientGone,
    ClientTimedOut,
    ExchangeFailed,
    HookFailed,
    ReadTimedOut,
    RelayFailed,
    ThreadsExhausted,
    UpstreamGone,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import Body, UpstreamAnswer
from pyramid_threaded_proxy.hooks import run_answering_hook, run_hook
from pyramid_threaded_proxy.http.fields import merge_application_fields
from pyramid_threaded_proxy.http.framing import CLOSE, LENGTH, NO_BODY, Framing, answer_framing, keeps_alive
from pyramid_threaded_proxy.http.head import ResponseHead, render_head
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.waits import CHECK_CANCELLED, IN_BATCH, Call, Ready, Steps
from pyramid_threaded_proxy.relay.answer_body import BodyMover, BodyReader, body_reader
from pyramid_threaded_proxy.relay.answer_head import AnswerHead
from pyramid_threaded_proxy.relay.attempts import FAILED_TRY, Attempts, AttemptsContext
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.own_answer import error_response, opening, send_response
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.request_body import send_body, send_now
from pyramid_threaded_proxy.relay.transfer import Pipes
from pyramid_threaded_proxy.relay.tunnel import tunnel
from pyramid_threaded_proxy.upstream.connections import Connection

log = logging.getLogger("pyramid_threaded_proxy.relay")


class RelayContext(AttemptsContext, Protocol):
    """Where a relay lives."""

    pipes: Pipes

    def ended(self, prepared: PreparedExchange) -> None:
        """The last byte is out, or there will be none: its place is free. Called once, in any case."""

    def close_body(self, body: Body, share: str | None) -> None:
        """Close a body of the application's: its code may block, and so runs in a thread of `share`, if that is one."""

    def report(self, prepared: PreparedExchange) -> Steps | None:
        """Tell the log; steps that tell hooks and subscribers, None where there are none."""


class Relay:
    """The steps of one exchange. Everything belongs to the task that runs them."""

    _connection: Connection | None = None
    _request_sent = False
    _closed = False

    def __init__(self, prepared: PreparedExchange, client: Client, context: RelayContext) -> None:
        self._prepared = prepared
        self._exchange = prepared.exchange
        self._policy = prepared.policy
        self._client = client
        self._context = context
        self._answer = AnswerHead(prepared, client)
        self._attempts = Attempts(prepared, self._answer, context, watched=client.endpoint is not None)

    def run(self) -> Steps:
        """Steps: the whole exchange. Whatever happens, the client, the connection and the place are given back."""
        try:
            try:
                yield CHECK_CANCELLED
                if not self._client.is_ready():
                    yield from self._client.ready()
                head, framing, length = yield from self._ask()
                if head.status == 101:
                    yield from self._switch(head, self._answer.rest)
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
            in_loop = self._client.endpoint is not None
            self._context.close_body(body, self._exchange.route if in_loop else None)
        self._exchange.stats.finished = time.monotonic()
        self._attempts.release()
        self._context.ended(self._prepared)

    # The request goes up

    def _ask(self) -> Any:
        """Steps: the answer's final head, framing and length, from the first try that brings one."""
        while True:
            try:
                return (yield from self._attempt())
            except FAILED_TRY as error:
                self._drop_connection()
                if not (yield from self._attempts.go_on(error)):
                    raise

    def _attempt(self) -> Any:
        """Steps: ask one upstream on one connection."""
        answer = self._answer
        connection = self._connection = self._attempts.take()
        if connection is None:
            connection = self._connection = yield from self._attempts.connect()
            yield CHECK_CANCELLED  # it may have been told to end while it connected
        endpoint = connection.endpoint
        rest = self._send_head(endpoint)
        self._request_sent = not rest or (yield from self._send(endpoint, rest))
        while answer.final is None:
            yield Ready(endpoint, READ, self._policy.timeouts.read, ReadTimedOut)
            last = answer.hear(endpoint)
            if (last if isinstance(last, bool) else (yield from last)) and answer.final is None:
                raise UpstreamGone("closed in its head" if answer.started else "closed without an answer")
        self._exchange.stats.first_byte = now = time.monotonic()
        framing, length = answer_framing(self._exchange.request.method, answer.final)
        if (news := self._attempts.succeeded(now)) is not None:
            yield from news
        return answer.final, framing, length

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
        body, timeout = self._exchange.request.body, self._policy.timeouts.send
        return send_body(endpoint, head, body, timeout, self._moved_up, lambda: self._answer.hear_early(endpoint))

    # The answer comes down

    def _pass_on(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        if framing is NO_BODY and self._answer.rest:
            raise AnswerRefused("bytes came behind an answer that has no body (RFC 9112 6.3)")
        yield IN_BATCH
        exchange, policy = self._exchange, self._policy
        fields = policy.answer_fields.select(head.fields, *self._prepared.public[:2])
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
        pieces = reader.feed(self._answer.take_rest())  # before the head is out: what is wrong here can still be told
        return b"".join([opening(self._client, answer, framing, length), *pieces]), sum(map(len, pieces))

    # Or the connection is switched to another protocol

    def _switch(self, head: ResponseHead, rest: bytes) -> Steps:
        """Steps: pass the 101 on, and then bytes both ways. Neither connection carries HTTP again."""
        client, connection = self._client, self._connection
        assert connection is not None
        protocol = next(value for name, value in head.fields if name.lower() == "upgrade")
        fields = self._policy.answer_fields.select(head.fields, *self._prepared.public[:2])
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
        yield from tunnel(client.endpoint, connection.endpoint, (early, rest), self._policy.timeouts.idle, moved)
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
        source, buffer = self._connection.endpoint, self._policy.settings.buffer
        mover = BodyMover(source, self._client, self._context.pipes, buffer, self._policy.timeouts, self._moved_down)
        yield from mover.move(reader)

    def _keep_connection(self, head: ResponseHead, framing: Framing) -> None:
        """Only a connection whose messages both ended where their framing says is used again."""
        connection = self._connection
        assert connection is not None
        # After an upgrade was asked for, what the upstream takes the connection for is anybody's guess.
        if self._request_sent and framing is not CLOSE and not self._prepared.upgrade and keeps_alive(head):
            self._connection = None
            self._attempts.keep(connection)
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
            except (HookFailed, ThreadsExhausted):
                pass  # a traceback is in the log, and the first error is the one that counts
        if self._client.opened or isinstance(error, (ClientGone, ClientTimedOut)):
            return
        yield from self._answer_instead(instead or error_response(error, self._prepared.accept))
        self._closed = True
        self._client.close()


def _said_length(head: ResponseHead) -> int | None:
    """The Content-Length of an answer to HEAD, or of a 304: it may have one without a body (RFC 9110 8.6)."""
    return next((int(value) for name, value in head.fields if name.lower() == "content-length"), None)
