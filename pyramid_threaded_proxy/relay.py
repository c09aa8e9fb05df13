"""One exchange, top to bottom: connect, send, wait for the head, run hooks and overrides, move the body, give back.

Everything in `Relay` is steps of one task (see `tasks`). The moment after which an answer can only be broken off
is `Client.open`: from then on the client has a head.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

import webob
from webob.exc import status_map

from pyramid_threaded_proxy.body import BodyMover, body_reader
from pyramid_threaded_proxy.client import Client
from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    ClientGone,
    ClientTimedOut,
    ExchangeFailed,
    HookFailed,
    ReadTimedOut,
    RelayFailed,
    UpstreamGone,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import UpstreamAnswer
from pyramid_threaded_proxy.fields import merge_application_fields
from pyramid_threaded_proxy.framing import Framing, answer_framing, keeps_alive
from pyramid_threaded_proxy.head import HeadReader, ResponseHead, render_head
from pyramid_threaded_proxy.hooks import run_answering_hook, run_hook
from pyramid_threaded_proxy.poller import READ
from pyramid_threaded_proxy.request_body import send_body
from pyramid_threaded_proxy.route import Fetch
from pyramid_threaded_proxy.tasks import Call, Endpoint, Ready, Steps
from pyramid_threaded_proxy.transfer import Pipes, read_some
from pyramid_threaded_proxy.upstream import Connection, OriginPool

log = logging.getLogger(__name__)

#: RFC 9110 9.2.2, less TRACE, which never goes up.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
#: Interim answers that one exchange may have before its final one.
MOST_INTERIM = 16
#: Bytes read at a time while a head is expected: most small answers come whole.
HEAD_READ = 64 * 1024

#: What the client is told; the exception itself is for the log.
_EXPLANATIONS = {
    500: "The request could not be completed.",
    502: "The server behind this page could not be reached, or gave no valid answer.",
    503: "The request was ended by this server. Please try again later.",
    504: "The server behind this page did not answer in time.",
}


class Host(Protocol):
    """Where a relay lives."""

    pipes: Pipes

    def ended(self, fetch: Fetch) -> None:
        """The last byte is out, or there will be none: its place is free. Called once, in any case."""

    def report(self, fetch: Fetch) -> Steps:
        """Steps: tell the log, the hooks and the subscribers."""


class Relay:
    """The steps of one exchange. Everything belongs to the task that runs them."""

    def __init__(self, fetch: Fetch, client: Client, pool: OriginPool, host: Host) -> None:
        self._fetch = fetch
        self._exchange = fetch.exchange
        self._policy = fetch.policy
        self._client = client
        self._pool = pool
        self._host = host
        self._connection: Connection | None = None
        self._reader = HeadReader(self._policy.max_head)
        self._heard = False  # a byte of the answer was received
        self._request_sent = False
        self._closed = False

    def run(self) -> Steps:
        """Steps: the whole exchange. Whatever happens, the client, the connection and the place are given back."""
        try:
            try:
                yield from self._client.ready()
                yield from self._answer()
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
        yield from self._host.report(self._fetch)

    def _release(self) -> None:
        """Give back what is still held; after a whole answer that is the place alone."""
        if self._connection is not None:
            self._connection.close()
        if not self._closed:
            self._closed = True
            self._client.break_off()
        body = self._exchange.request.body
        if body is not None:
            body.close()
        self._exchange.stats.finished = time.monotonic()
        self._host.ended(self._fetch)

    # The request goes up

    def _answer(self) -> Steps:
        head = yield from self._ask()
        self._exchange.stats.first_byte = time.monotonic()
        framing, length = answer_framing(self._exchange.request.method, head)
        rest = self._reader.rest
        if framing is Framing.NONE and rest:
            raise AnswerRefused("bytes came behind an answer that has no body (RFC 9112 6.3)")
        yield from self._pass_on(head, framing, length, rest)

    def _ask(self) -> Any:
        """Steps: the final head of the answer; asks once more where RFC 9110 9.2.2 allows it."""
        connection = self._pool.take()
        while True:
            if connection is None:
                connection = yield from self._connect()
            self._connection = connection
            self._exchange.stats.attempts += 1
            try:
                yield from self._send(connection.endpoint)
                return (yield from self._read_head(connection.endpoint))
            except UpstreamGone:
                if not self._may_ask_again(connection):
                    raise
                self._drop_connection()
                connection = None

    def _connect(self) -> Any:
        connection = yield Call(self._pool.connect, self._policy.connect_timeout)
        self._exchange.stats.connected = time.monotonic()
        return connection

    def _may_ask_again(self, connection: Connection) -> bool:
        """A kept connection that turns out to be closed says nothing of the request (RFC 9112 9.3.1)."""
        request = self._exchange.request
        return (
            connection.reused
            and not self._heard
            and request.method in IDEMPOTENT
            and (request.body is None or request.body.repeatable)
        )

    def _send(self, endpoint: Endpoint) -> Steps:
        request = self._exchange.request
        stats = self._exchange.stats
        stats.bytes_up = 0
        try:
            head = render_head(f"{request.method} {request.target} HTTP/1.1", request.fields)
        except ValueRefused as error:
            raise HookFailed(str(error)) from None

        def moved(count: int) -> None:
            stats.bytes_up += count

        self._request_sent = yield from send_body(endpoint, head, request.body, self._policy.send_timeout, moved)

    def _read_head(self, endpoint: Endpoint) -> Any:
        """Steps: the final head. Interim ones go on to who can have them; 100 is an answer to us alone."""
        for _ in range(MOST_INTERIM + 1):
            head = yield from self._next_head(endpoint)
            if head.status >= 200:
                return head
            if head.status == 101:
                raise AnswerRefused("101 Switching Protocols, which nobody asked for (RFC 9110 15.2.2)")
            if head.status != 100:
                yield from self._pass_interim_on(head)
        raise AnswerRefused(f"more than {MOST_INTERIM} interim answers")

    def _next_head(self, endpoint: Endpoint) -> Any:
        """Steps: the next head, interim or final; what came behind it is in the reader's `rest`."""
        timeout = self._policy.read_timeout
        rest, self._reader = self._reader.rest, HeadReader(self._policy.max_head)
        head = self._reader.feed(rest) if rest else None
        while head is None:
            yield Ready(endpoint, READ, timeout, ReadTimedOut)
            data = yield from read_some(endpoint, HEAD_READ, timeout)
            if not data:
                raise UpstreamGone("closed in its head" if self._reader.started else "closed without an answer")
            self._heard = True
            head = self._reader.feed(data)
        return head

    def _pass_interim_on(self, head: ResponseHead) -> Steps:
        answer_framing(self._exchange.request.method, head)
        fields = self._policy.answer_fields.select(head.fields, self._fetch.public_url, self._fetch.mount)
        yield from self._client.send(self._client.interim(head.status, head.reason, fields))

    # The answer comes down

    def _pass_on(self, head: ResponseHead, framing: Framing, length: int, rest: bytes) -> Steps:
        exchange, policy = self._exchange, self._policy
        fields = policy.answer_fields.select(head.fields, self._fetch.public_url, self._fetch.mount)
        exchange.response = answer = UpstreamAnswer(head.status, head.reason, fields)
        if policy.hooks.response is not None:
            instead = yield Call(run_answering_hook, "response", policy.hooks.response, exchange)
            if instead is not None:
                return (yield from self._send_response(instead))
        answer.fields = merge_application_fields(answer.final_fields(), self._fetch.application_fields)
        answer = yield from self._override(answer)
        if framing is not Framing.NONE and answer.status in (204, 304):
            framing, rest = Framing.NONE, b""  # a hook took the body away: the rest of it is left unread
            yield from self._write_answer(answer, framing, None)
            return self._drop_connection()
        shown = _shown_length(head, framing, length)
        reader = body_reader(framing, length, self._client)
        opening = self._open(answer, framing, shown)
        pieces = reader.feed(rest)
        yield from self._write_first(opening, pieces)
        if framing is not Framing.NONE and not reader.done:
            yield from self._move_rest(reader)
        self._keep_connection(head, framing)

    def _override(self, answer: UpstreamAnswer) -> Any:
        """Steps: the declared overrides, then the `headers` hook; what both made is checked when it is written."""
        hook = self._policy.hooks.headers
        answer.fields = self._policy.rules.apply(answer.fields)
        if hook is not None:
            fresh = UpstreamAnswer(answer.status, answer.reason, answer.fields)
            self._exchange.response = fresh
            yield Call(run_hook, "headers", hook, self._exchange)
            fresh.fields = merge_application_fields([], fresh.final_fields())
            return fresh
        return answer

    def _open(self, answer: UpstreamAnswer, framing: Framing, length: int | None) -> bytes:
        try:
            return self._client.open(answer.status, answer.reason, list(answer.fields), framing, length)
        except ValueRefused as error:
            raise HookFailed(str(error)) from None

    def _write_first(self, opening: bytes, pieces: list[bytes | memoryview]) -> Steps:
        """The head and what came with it, in one go where the client takes it."""
        body = sum(map(len, pieces))
        rest = self._client.send_now(b"".join([opening, *pieces]))
        if rest:
            yield from self._client.send(rest)
        self._exchange.stats.bytes_down += body

    def _move_rest(self, reader: Any) -> Steps:
        assert self._connection is not None
        stats = self._exchange.stats

        def moved(count: int) -> None:
            stats.bytes_down += count

        policy = self._policy
        timeouts = (policy.read_timeout, policy.send_timeout)
        mover = BodyMover(self._connection.endpoint, self._client, self._host.pipes, policy.buffer, timeouts, moved)
        yield from mover.move(reader)

    def _keep_connection(self, head: ResponseHead, framing: Framing) -> None:
        """Only a connection whose messages both ended where their framing says is used again."""
        connection = self._connection
        assert connection is not None
        if self._request_sent and framing is not Framing.CLOSE and keeps_alive(head):
            self._connection = None
            self._pool.give_back(connection)
        else:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # Answers of our own

    def _send_response(self, response: webob.Response) -> Steps:
        """Steps: answer with a response of a hook's or of ours; the upstream's body is dropped."""
        self._drop_connection()
        try:
            chunks = iter(response.app_iter)
            fields = merge_application_fields([], response.headerlist)
            answer = UpstreamAnswer(response.status_int, response.status[4:], fields)
            answer.fields = merge_application_fields(answer.fields, self._fetch.application_fields)
            self._exchange.response = answer
            bodiless = self._fetch.head_only or answer.status in (204, 304)
            length = None if answer.status in (204, 304) else response.content_length
            framing = Framing.NONE if bodiless else Framing.CHUNKED if length is None else Framing.LENGTH
            yield from self._write_answer(answer, framing, length)
            if not bodiless:
                yield from self._send_chunks(chunks, framing, length)
        finally:
            close = getattr(response.app_iter, "close", None)
            if close is not None:
                yield Call(close)

    def _write_answer(self, answer: UpstreamAnswer, framing: Framing, length: int | None) -> Steps:
        yield from self._client.send(self._open(answer, framing, length))

    def _send_chunks(self, chunks: Any, framing: Framing, length: int | None) -> Steps:
        chunked = framing is Framing.CHUNKED and self._client.passes_framing and self._client.minor > 0
        left = length or 0
        while (chunk := (yield Call(_next_chunk, chunks))) is not None:
            if length is not None and (left := left - len(chunk)) < 0:
                raise HookFailed("a response's body is longer than its Content-Length")
            if chunk:
                yield from self._client.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                self._exchange.stats.bytes_down += len(chunk)
        if left:
            raise HookFailed("a response's body is shorter than its Content-Length")
        if chunked:
            yield from self._client.send(b"0\r\n\r\n")

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
        yield from self._send_response(instead or error_response(error, self._fetch.accept))
        self._closed = True
        self._client.close()


def error_response(error: ExchangeFailed, accept: str) -> webob.Response:
    """What the client gets for an exchange that failed before its head: WebOb's own, in a form that it accepts."""
    made = status_map[error.status](_EXPLANATIONS.get(error.status))
    if error.status == 503:
        made.headers["Retry-After"] = "1"
    return webob.Request.blank("/", headers={"Accept": accept or "*/*"}).get_response(made)


def _next_chunk(chunks: Any) -> bytes | None:
    """The next piece of an application's iterable. A pool thread."""
    try:
        return next(chunks, None)
    except Exception as error:
        log.exception("the body of a hook's response broke")
        raise HookFailed(f"a response's body raised {type(error).__name__}") from error


def _shown_length(head: ResponseHead, framing: Framing, length: int) -> int | None:
    """The Content-Length to show: answers to HEAD, and 304, may have one without a body (RFC 9110 8.6)."""
    if framing is Framing.LENGTH:
        return length
    if framing is Framing.NONE and head.status != 204:
        return next((int(value) for name, value in head.fields if name.lower() == "content-length"), None)
    return None
