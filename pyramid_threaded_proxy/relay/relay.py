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
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.hooks import run_answering_hook
from pyramid_threaded_proxy.http.framing import CLOSE, NO_BODY, Framing, answer_framing, keeps_alive
from pyramid_threaded_proxy.http.head import ResponseHead, render_head
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.loop.waits import CHECK_CANCELLED, Call, Ready, Steps
from pyramid_threaded_proxy.relay.answer_body import Incoming
from pyramid_threaded_proxy.relay.answer_head import AnswerHead
from pyramid_threaded_proxy.relay.attempts import FAILED_TRY, Attempts, AttemptsContext
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.client_body import ClientBody
from pyramid_threaded_proxy.relay.own_answer import error_response, send_response
from pyramid_threaded_proxy.relay.passing_on import PassingOn
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.request_body import send_body, send_now
from pyramid_threaded_proxy.relay.switching import switch
from pyramid_threaded_proxy.relay.transfer import Pipes
from pyramid_threaded_proxy.relay.upload import Upload
from pyramid_threaded_proxy.upstream.connections import Connection

log = logging.getLogger("pyramid_threaded_proxy.relay")

#: A whole answer from this status on refuses the request: nobody needs the rest of it (RFC 9112 9.5).
REFUSES = 400


class Closing(Protocol):
    """What is closed when an exchange ends."""

    def close(self) -> None:
        """May run code of the application's."""


class RelayContext(AttemptsContext, Protocol):
    """Where a relay lives."""

    pipes: Pipes

    def ended(self, prepared: PreparedExchange) -> None:
        """The last byte is out, or there will be none: its place is free. Called once, in any case."""

    def close_body(self, body: Closing, share: str | None) -> None:
        """Close a body of the application's: its code may block, and so runs in a thread of `share`, if that is one."""

    def report(self, prepared: PreparedExchange) -> Steps | None:
        """Tell the log; steps that tell hooks and subscribers, None where there are none."""


class Relay:
    """The steps of one exchange. Everything belongs to the task that runs them."""

    _client_body: ClientBody | None = None

    def __init__(self, prepared: PreparedExchange, client: Client, context: RelayContext) -> None:
        self._prepared = prepared
        self._exchange = prepared.exchange
        self._policy = prepared.policy
        self._client = client
        self._context = context
        self._connection: Connection | None = None
        self._upload: Upload | None = None
        self._passing: PassingOn | None = None
        self._closed = False
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
        if self._connection is not None or self._upload is not None:
            self.drop_connection()
        if not self._closed:
            self._closed = True
            self._client.break_off()
        body = self._exchange.request.body
        if body is not None and body.owned:
            self._close_body(body)
        passing, self._passing = self._passing, None  # they know each other: nobody else would let go of them soon
        if passing is not None and passing.hooked is not None:
            self._close_body(passing.hooked)
        self._exchange.stats.finished = time.monotonic()
        self._attempts.release()
        self._context.ended(self._prepared)

    def _close_body(self, body: Closing) -> None:
        in_loop = self._client.endpoint is not None
        self._context.close_body(body, self._exchange.route if in_loop else None)

    # The request goes up

    def _ask(self) -> Any:
        """Steps: the answer's final head, framing and length, from the first try that brings one."""
        while True:
            try:
                return (yield from self._attempt())
            except FAILED_TRY as error:
                self.drop_connection()
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
            if body is not None and body.streams:
                steps = yield from self._body_that_streams(body).begin(endpoint, rest)
            else:
                steps = send_body(endpoint, rest, body, timeout, self._moved_up)
            upload = self._upload = Upload(endpoint, steps)
            if (yield from upload.until_answered(answer)):
                self._upload = None  # nothing more goes up
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

    def _body_that_streams(self, body: Body) -> ClientBody:
        """The same for all tries: the client was told once to send it."""
        if self._client_body is None:
            settings = self._policy.settings
            self._client_body = ClientBody(self._client, body, settings, self._context.pipes, self._moved_up)
        return self._client_body

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
        assert self._connection is not None
        upload, incoming = self._upload, Incoming(self._connection.endpoint, self._policy.timeouts.read)
        if upload is not None and not upload.whole:
            incoming.stand_beside(upload, refused=head.status >= REFUSES)
        passing = self._passing = PassingOn(self._prepared, self._client, self._answer, incoming, self)
        if upload is None or not upload.under_way:
            yield from passing.steps(head, framing, length)
        else:
            body = self._exchange.request.body
            if self._client.endpoint is None and body is not None:
                upload.spool(body, self._policy.settings.buffer)
            if head.status < REFUSES:
                self._client.body_flows(True)
            yield from upload.beside(passing.steps(head, framing, length))
            if upload.under_way and head.status < REFUSES:
                self._client.answered()
                yield from upload.finish()
            yield from upload.come_home()
        self._keep_connection(head, framing)

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
            yield from self.answer_instead(instead)
        self.drop_connection()

    def _moved_up(self, count: int) -> None:
        self._exchange.stats.bytes_up += count

    def _moved_down(self, count: int) -> None:
        self._exchange.stats.bytes_down += count

    @property
    def pipes(self) -> Pipes:
        """For bodies that go through the kernel."""
        return self._context.pipes

    def note_stray_bytes(self) -> None:
        """Bytes came behind a whole answer: they are nobody's, and the connection is out of step (RFC 9112 6.3)."""
        if self._connection is not None:
            self._connection.pool.note_stray_bytes()
            self.drop_connection()

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
            self.drop_connection()

    def drop_connection(self) -> None:
        """Close the upstream's connection: nothing more is wanted of it."""
        if self._upload is not None:
            self._upload.stop()
            self._client.body_flows(False)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def answer_instead(self, response: webob.Response) -> Steps:
        """Steps: a response of a hook's or of ours; the upstream's body is dropped."""
        self.drop_connection()
        return send_response(response, self._prepared, self._client)

    # It failed

    def _fail(self, error: ExchangeFailed) -> Steps:
        """Steps: tell the hook and, while the client has no head yet and is still there, the client."""
        exchange = self._exchange
        exchange.error = error
        self.drop_connection()
        instead = None
        if self._policy.hooks.error is not None:
            try:
                instead = yield Call(run_answering_hook, "error", self._policy.hooks.error, exchange)
            except (HookFailed, ThreadsExhausted):
                pass  # a traceback is in the log, and the first error is the one that counts
        if self._client.opened or isinstance(error, (ClientGone, ClientTimedOut)):
            return
        yield from self.answer_instead(instead or error_response(error, self._prepared.accept))
        self._closed = True
        self._client.close()
