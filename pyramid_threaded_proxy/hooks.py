"""The application's hooks: their order, their types, and what is made of what they return or raise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from webob import Response

from pyramid_threaded_proxy.exceptions import ExchangeFailed, HookFailed
from pyramid_threaded_proxy.exchange import Exchange

log = logging.getLogger("pyramid_threaded_proxy.hooks")

RequestHook = Callable[[Any, Exchange], Response | None]
ExchangeHook = Callable[[Exchange], Any]
#: What a hook answers instead, if it does.
Instead = Response | None
BodyHook = Callable[[Exchange, Iterator[bytes]], Iterable[bytes] | None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the application wants to be asked about, in the order of an exchange.

    `request` runs in the thread that called the view, with the live Pyramid request. All others run in a pool thread.
    """

    #: Before anything is sent; may change ``exchange.request`` or return a response to answer with instead.
    request: RequestHook | None = None
    #: The upstream's head is here and nothing has been written; may return a response to answer with instead.
    response: ExchangeHook | None = None
    #: After the declared overrides, before the head is written; may change ``exchange.response``.
    headers: ExchangeHook | None = None
    #: The answer's body as it comes: a generator of bytes over an iterator of bytes; None leaves it as it is.
    body: BodyHook | None = None
    #: The last byte is written.
    complete: ExchangeHook | None = None
    #: Anything failed; may return a response while the head is not out.
    error: ExchangeHook | None = None

    @classmethod
    def taken_from(cls, keywords: dict[str, Any]) -> Hooks:
        """The hooks that a view gives as ``on_NAME``; they are taken out of `keywords`."""
        return cls(**{name: keywords.pop(f"on_{name}", None) for name in NAMES})

    def or_else(self, other: Hooks) -> Hooks:
        """Each of these, or where there is none that of `other`."""
        return Hooks(**{name: getattr(self, name) or getattr(other, name) for name in NAMES})


#: The names of all hooks, in the order of an exchange.
NAMES = tuple(field.name for field in fields(Hooks))


def run_hook(name: str, hook: ExchangeHook, exchange: Exchange) -> Any:
    """Call one of the application's hooks; raises `HookFailed`, after its traceback was logged. A pool thread."""
    try:
        return hook(exchange)
    except ExchangeFailed:
        raise  # what reading the body has met is no fault of the hook's
    except Exception as error:
        log.exception("the %s hook of %s raised", name, exchange.route)
        raise HookFailed(f"the {name} hook raised {type(error).__name__}") from error


def _returned_or_raised(hook: ExchangeHook, exchange: Exchange) -> Any:
    try:
        return hook(exchange)
    except Exception as error:
        if isinstance(error, Response):
            return error
        raise


def run_answering_hook(name: str, hook: ExchangeHook, exchange: Exchange) -> Response | None:
    """Call a hook that may return a response to answer with instead, or raise one, as views may raise Pyramid's HTTP
    exceptions. Raises `HookFailed`. A pool thread."""
    answer = run_hook(name, partial(_returned_or_raised, hook), exchange)
    if answer is None or isinstance(answer, Response):
        return answer
    log.error("the %s hook of %s returned %r, not a response or None", name, exchange.route, type(answer))
    raise HookFailed(f"the {name} hook returned {type(answer).__name__}, not a response or None")
