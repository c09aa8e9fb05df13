"""What stands between an answer's body and the client: texts that are replaced, and the application's `body` hook.

A hook is a generator that runs in a pool thread, in turns with its exchange's task: it is asked for its next bytes when
the client has taken the last ones, and what it asks for itself is received then. So both sides wait for it, and no
more is held than a piece on either side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pyramid_threaded_proxy.exceptions import AnswerRefused, ExchangeFailed, HookFailed
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.hooks import BodyHook
from pyramid_threaded_proxy.http.framing import LAST_CHUNK, chunk
from pyramid_threaded_proxy.http.head import ResponseHead
from pyramid_threaded_proxy.http.replacing import Replacing, replacing_in
from pyramid_threaded_proxy.loop.dialogue import Dialogue
from pyramid_threaded_proxy.loop.waits import Ready, Returning, Steps, Yield
from pyramid_threaded_proxy.relay.answer_body import A_TURN
from pyramid_threaded_proxy.relay.answer_source import Source, coding_of, next_of
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy
from pyramid_threaded_proxy.relay.transfer import Moved

log = logging.getLogger("pyramid_threaded_proxy.body_filter")

#: Bytes: a longer piece of a filter's goes to the client bit by bit.
_MOST_AT_ONCE = 256 * 1024

#: Steps that bring the next bytes for the client; b"" at the end.
NextPiece = Callable[[], Returning[bytes]]

_END = object()


class BodyFilters:
    """What is done to the body of one answer; its fields have been looked at."""

    def __init__(self, hook: BodyHook | None, replacing: Replacing | None, coding: str) -> None:
        self.hook = hook
        self.replacing = replacing
        #: The content coding that is undone first; empty for none.
        self.coding = coding


def filters_for(policy: AnswerPolicy, head: ResponseHead, has_body: bool) -> BodyFilters | None:
    """What is done to the body behind `head`; None where nothing is.

    Raises `AnswerRefused` for a body that can't be looked into: a part (RFC 9110 15.3.7) or an encoded one.
    """
    settings, hook = policy.settings, policy.hooks.body
    if hook is None and not settings.response_replace:
        return None
    content_type = next((value for name, value in head.fields if name.lower() == "content-type"), "")
    replacing = replacing_in(content_type, settings.response_replace)
    untold = head.status == 304 and not content_type  # of a text or not: a weak ETag is right for both
    if hook is None and replacing is None and not untold:
        return None
    if not has_body:
        return BodyFilters(hook, replacing, "")
    if head.status == 206:
        raise AnswerRefused("206 Partial Content, which was not asked for: a part can't be filtered")
    coding = coding_of(head.fields)
    if coding and settings.response_encoded == "refuse":
        raise AnswerRefused(f"it has the content coding {coding}, and response.encoded is refuse")
    return BodyFilters(hook, replacing, coding)


class _Replaced:
    """A body with its texts replaced."""

    def __init__(self, source: Source, replacing: Replacing) -> None:
        self._source = source
        self._replacing = replacing
        self._ended = False

    def wait(self) -> Ready:
        return self._source.wait()

    def take(self) -> bytes | None:
        while not self._ended:
            data = self._source.take()
            if data is None:
                return None
            self._ended = not data
            if made := self._replacing.feed(data) if data else self._replacing.end():
                return made
        return b""


class Chunks:
    """An answer's body as its filter gets it: bytes that are not empty. For the filter alone, while it runs."""

    def __init__(self) -> None:
        #: How the filter asks for more than `ready`; None while it does not run.
        self.ask: Callable[[], bytes] | None = None
        #: What came already, b"" for the end.
        self.ready: bytes | None = None
        #: Whether it has asked for any.
        self.begun = False
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._over:
            raise StopIteration
        self.begun = True
        data, self.ready = self.ready, None
        if data is None:
            data = self._asked_for()
        if not data:
            self._over = True
            raise StopIteration
        return data

    def _asked_for(self) -> bytes:
        if self.ask is None:
            raise RuntimeError("chunks are for the body filter alone, while it runs")
        try:
            return self.ask()
        except BaseException:
            self._over = True
            raise


class HookedBody:
    """What a `body` hook makes of a body. Of the exchange's task, and of the pool thread while the hook runs."""

    def __init__(self, hook: BodyHook, exchange: Exchange, source: Source) -> None:
        self._hook = hook
        self._exchange = exchange
        self._source = source
        self._chunks = Chunks()
        self._made: Any = None

    def start(self) -> Returning[bool]:
        """Steps: call the hook; whether it wants to filter this body. Raises `HookFailed`."""
        self._made = yield from self._run(self._call)
        if self._made is None and self._chunks.begun:
            raise HookFailed("the body hook has read of the body, and then left it as it is")
        return self._made is not None

    def next(self) -> Returning[bytes]:
        """Steps: the filter's next bytes; b"" at its end. Raises `HookFailed`, and what the body's source raises."""
        if self._chunks.ready is None:
            self._chunks.ready = self._source.take()
        return (yield from self._run(self._step))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the generator. A pool thread: it runs code of the application's."""
        close = getattr(self._made, "close", None)
        if close is not None:
            close()

    def _run(self, function: Callable[[], Any]) -> Returning[Any]:
        dialogue = Dialogue(lambda: next_of(self._source), function)
        self._chunks.ask = dialogue.ask
        try:
            return (yield from dialogue.steps())
        finally:
            self._chunks.ask = None

    def _call(self) -> Any:
        with _told(self._exchange):
            made = self._hook(self._exchange, self._chunks)
            return None if made is None else iter(made)

    def _step(self) -> bytes:
        with _told(self._exchange):
            while (data := next(self._made, _END)) is not _END:
                if not isinstance(data, (bytes, bytearray, memoryview)):
                    raise TypeError(f"a body filter gives bytes, not {type(data).__name__}")
                if data:
                    return bytes(data)
        return b""


class _told:
    """Around code of a filter: what it raises is logged, and ends the exchange; what its source raises just does."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ExchangeFailed):
            log.error("the body hook of %s raised", self._exchange.route, exc_info=error)
            raise HookFailed(f"the body hook raised {type(error).__name__}") from error


def replaced(source: Source, replacing: Replacing | None) -> Source:
    """A body with its texts replaced, where there are some."""
    return source if replacing is None else _Replaced(source, replacing)


def send_filtered(next_piece: NextPiece, client: Client, moved: Moved, hop: Callable[[], Steps]) -> Steps:
    """Steps: send what a filter makes to the client, as chunks where it can tell them; `hop` is asked behind each."""
    chunked, turn = client.passes_framing and client.minor > 0, 0
    while piece := (yield from next_piece()):
        for start in range(0, len(piece), _MOST_AT_ONCE):
            part = piece[start : start + _MOST_AT_ONCE]
            yield from client.send(b"".join(chunk(part)) if chunked else part)
            moved(len(part))
        yield from hop()
        if (turn := turn + len(piece)) >= A_TURN:
            turn = 0
            yield Yield()
    if chunked:
        yield from client.send(LAST_CHUNK)
