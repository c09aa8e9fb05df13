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
from pyramid_threaded_proxy.hooks import run_answering_hook
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
from pyramid_threaded_proxy.relay.own_answer import ask_headers_hook, error_response, opening, send_response
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.request_body import send_body, send_now
from pyramid_threaded_proxy.relay.switching import switch
from pyramid_threaded_proxy.relay.transfer import Pipes
from pyramid_threaded_proxy.relay.upload import Upload
from pyramid_threaded_proxy.upstream.connections import Connection

log = logging.getLogger("pyramid_threaded_proxy.relay")

#: A whole answer from this status on refuses the request: nobody needs the rest of it (RFC 9112 9.5).
REFUSES = 400


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
    _upload: Upload | None = None
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
                    yield from self._come_down(head, framing, length)
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
        self._drop_connection()
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
        answer.begin(connection.reused)
        if rest := self._send_head(endpoint):
            body, timeout = self._exchange.request.body, self._policy.timeouts.send
            self._upload = Upload(endpoint, send_body(endpoint, rest, body, timeout, self._moved_up))
            yield from self._upload.until_answered(answer)
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

    # The answer comes down

    def _come_down(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        """Steps: pass the answer on, beside what still goes up; the connection is kept, or closed."""
        upload = self._upload
        if upload is None or not upload.under_way:
            yield from self._pass_on(head, framing, length)
        else:
            body = self._exchange.request.body
            if self._client.endpoint is None and body is not None:
                upload.spool(body, self._policy.settings.buffer)
            yield from upload.beside(self._pass_on(head, framing, length))
            if upload.under_way and head.status < REFUSES:
                self._client.answered()
                yield from upload.finish()
            yield from upload.come_home()
        self._keep_connection(head, framing)

    def _pass_on(self, head: ResponseHead, framing: Framing, length: int) -> Steps:
        if framing is NO_BODY and self._answer.take_rest():
            self._note_stray_bytes()
        yield IN_BATCH
        exchange, policy = self._exchange, self._policy
        fields = self._prepared.fields_for_client(head.fields)
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
            answer = yield from ask_headers_hook(policy.hooks.headers, exchange, answer)
        shown, shown_length = _towards_client(self._prepared.head_only, answer.status, head, framing, length)
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
            yield from self._move_rest(reader, head.status)
        if reader.stray:
            self._note_stray_bytes()

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
        assert self._connection is not None
        if self._upload is not None:  # a hook's: what was asked for another protocol has none of the client's
            self._upload.stop()
            yield from self._upload.come_home()
        moved = (self._moved_up, self._moved_down)
        steps = switch(self._prepared, self._client, head, rest, self._connection.endpoint, moved)
        if (instead := (yield from steps)) is not None:
            yield from self._answer_instead(instead)
        self._drop_connection()

    def _moved_up(self, count: int) -> None:
        self._exchange.stats.bytes_up += count

    def _moved_down(self, count: int) -> None:
        self._exchange.stats.bytes_down += count

    def _move_rest(self, reader: BodyReader, status: int) -> Steps:
        assert self._connection is not None
        source, buffer = self._connection.endpoint, self._policy.settings.buffer
        mover = BodyMover(source, self._client, self._context.pipes, buffer, self._policy.timeouts, self._moved_down)
        if self._upload is not None and not self._upload.whole:
            yield from mover.move_beside(reader, self._upload, refused=status >= REFUSES)
        yield from mover.move(reader)

    def _note_stray_bytes(self) -> None:
        """Bytes came behind a whole answer: they are nobody's, and the connection is out of step (RFC 9112 6.3)."""
        if self._connection is not None:
            self._connection.pool.note_stray_bytes()
            self._drop_connection()

    def _keep_connection(self, head: ResponseHead, framing: Framing) -> None:
        """Only a connection whose messages both ended where their framing says is used again."""
        connection, upload = self._connection, self._upload
        if connection is None:
            return
        # After an upgrade was asked for, what the upstream takes the connection for is anybody's guess.
        sent = (upload is None or upload.whole) and not self._prepared.upgrade
        if head.status == 204 and (head.codings or any(map(int, head.lengths))):
            connection.pool.note_stray_bytes()  # it announces them
        stray = self._answer.untidy or (framing is NO_BODY and connection.pool.sends_stray_bytes)
        if sent and framing is not CLOSE and keeps_alive(head) and not stray:
            self._connection = None
            self._attempts.keep(connection)
        else:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._upload is not None:
            self._upload.stop()
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
