"""Answers that no upstream gave: a response of a hook's, or the page for an exchange that failed before its head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import webob
from webob.acceptparse import create_accept_header
from webob.exc import status_map

from pyramid_threaded_proxy.exceptions import ExchangeFailed, HookFailed, ThreadsExhausted, ValueRefused
from pyramid_threaded_proxy.exchange import Exchange, UpstreamAnswer
from pyramid_threaded_proxy.hooks import ExchangeHook, run_hook
from pyramid_threaded_proxy.http.fields import merge_application_fields
from pyramid_threaded_proxy.http.framing import CHUNKED, LAST_CHUNK, LENGTH, NO_BODY, Framing, chunk
from pyramid_threaded_proxy.loop.waits import Call, Steps
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.prepared import PreparedExchange

log = logging.getLogger("pyramid_threaded_proxy.own_answer")

#: Characters: reading a longer Accept takes WebOb long, and other exchanges wait meanwhile.
_LONGEST_ACCEPT = 1024
#: Our own preference comes first.
_FORMS = ("text/html", "application/json", "text/plain")

#: Iterators that run no code of the application's.
_IN_MEMORY: tuple[type, ...] = (type(iter([])), type(iter(())))

#: What the client is told; the exception itself is for the log.
_EXPLANATIONS = {
    500: "The request could not be completed.",
    403: "You may not go on with this request.",
    502: "The server behind this page could not be reached, or gave no valid answer.",
    503: "The request was ended by this server. Please try again later.",
    504: "The server behind this page did not answer in time.",
}


def error_response(error: ExchangeFailed, accept: str) -> webob.Response:
    """What the client gets for an exchange that failed before its head: WebOb's own, in a form that it accepts."""
    made = status_map[error.status](_EXPLANATIONS.get(error.status), json_formatter=_json_body)
    if error.status == 503:
        made.headers["Retry-After"] = "1"
    return _rendered(made, accept)


def _rendered(made: Any, accept: str) -> webob.Response:
    """An HTTP exception, of WebOb's or of Pyramid's, with its page, which it makes when it is called."""
    form = best_form(accept) if len(accept) <= _LONGEST_ACCEPT else _FORMS[0]
    return webob.Request.blank("/", headers={"Accept": form}).get_response(made)


def _json_body(body: str, status: str, title: str, environ: Mapping[str, Any]) -> dict[str, str]:
    """The members that WebOb's and Pyramid's own have, without the markup that `body` has."""
    return {"message": _EXPLANATIONS.get(int(status[:3]), title), "code": status, "title": title}


def best_form(accept: str) -> str:
    """Which of HTML, JSON and text to answer in: by quality, then as the client names them (RFC 9110 12.5.1).

    Text where it takes none of them: an error is better said than not.
    """
    parsed = create_accept_header(accept or None).parsed
    if parsed is None:
        return _FORMS[0]
    ranges = [(item[0].partition(";")[0].lower(), item[1], place) for place, item in enumerate(parsed)]
    best = (0.0, 0, _FORMS[-1])
    for form in _FORMS:
        for name in (form, form.partition("/")[0] + "/*", "*/*"):  # the most specific range decides
            found = [(quality, -place, form) for known, quality, place in ranges if known == name]
            if found:
                if max(found)[:2] > best[:2] and max(found)[0] > 0:
                    best = max(found)
                break
    return best[2]


def opening(client: Client, answer: UpstreamAnswer, framing: Framing, length: int | None) -> bytes:
    """Begin the answer; what overrides and hooks made of it is checked here. Raises `HookFailed`."""
    try:
        return client.open(answer.status, answer.reason, list(answer.fields), framing, length)
    except ValueRefused as error:
        raise HookFailed(str(error)) from None


def ask_headers_hook(hook: ExchangeHook, exchange: Exchange, answer: UpstreamAnswer) -> Any:
    """Steps: the answer as the hook leaves it; what it made is checked when it is written."""
    fresh = UpstreamAnswer(answer.status, answer.reason, answer.fields)
    exchange.response = fresh
    yield Call(run_hook, "headers", hook, exchange)
    fresh.fields = merge_application_fields([], fresh.final_fields())
    return fresh


def send_response(response: webob.Response, prepared: PreparedExchange, client: Client) -> Steps:
    """Steps: answer with a WebOb response, whose body is read, and closed, in the application's threads.

    One that is in memory needs none of them: whoever holds those must not hold up the page that says so.
    """
    if response.status_int < 200:
        raise HookFailed(f"a hook answered with the interim status {response.status_int}")
    if isinstance(response, Exception):
        response = _rendered(response, prepared.accept)
    try:
        yield from _send(response, prepared, client)
    except GeneratorExit:
        _close(response)
        raise
    except BaseException:
        yield from _closed(response)
        raise
    yield from _closed(response)


def _closed(response: webob.Response) -> Steps:
    """Steps: close it, where there is something to close."""
    if hasattr(response.app_iter, "close"):
        try:
            yield Call(_close, response)
        except ThreadsExhausted:
            _close(response)  # late for others is better than never


def _send(response: webob.Response, prepared: PreparedExchange, client: Client) -> Steps:
    chunks = iter(response.app_iter)
    header = prepared.policy.request_id_header
    ours = [(header, prepared.exchange.request_id)] if header else []
    fields = merge_application_fields(ours, response.headerlist)
    answer = UpstreamAnswer(response.status_int, response.status[4:], fields)
    answer.fields = merge_application_fields(answer.fields, prepared.application_fields)
    prepared.exchange.response = answer
    bodiless = prepared.head_only or answer.status in (204, 304)
    length = None if answer.status in (204, 304) else response.content_length
    framing = NO_BODY if bodiless else CHUNKED if length is None else LENGTH
    yield from client.send(opening(client, answer, framing, length))
    if not bodiless:
        yield from _send_chunks(chunks, framing, length, prepared, client)


def _send_chunks(
    chunks: Any, framing: Framing, length: int | None, prepared: PreparedExchange, client: Client
) -> Steps:
    chunked = framing is CHUNKED and client.passes_framing and client.minor > 0
    in_memory = isinstance(chunks, _IN_MEMORY)
    left = length or 0
    while (data := _next_chunk(chunks) if in_memory else (yield Call(_next_chunk, chunks))) is not None:
        if length is not None and (left := left - len(data)) < 0:
            raise HookFailed("a response's body is longer than its Content-Length")
        if data:
            yield from client.send(b"".join(chunk(data)) if chunked else data)
            prepared.exchange.stats.bytes_down += len(data)
    if left:
        raise HookFailed("a response's body is shorter than its Content-Length")
    if chunked:
        yield from client.send(LAST_CHUNK)


def _next_chunk(chunks: Any) -> bytes | None:
    """The next piece of an application's iterable; its code may block."""
    try:
        return next(chunks, None)
    except Exception as error:
        log.exception("the body of a hook's response broke")
        raise HookFailed(f"a response's body raised {type(error).__name__}") from error


def _close(response: webob.Response) -> None:
    close = getattr(response.app_iter, "close", None)
    try:
        if close is not None:
            close()
    except Exception:
        log.exception("closing the body of a hook's response raised")
