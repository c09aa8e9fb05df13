"""Admission: an exchange gets its slot, or the client is told to come back.

A slot has one owner at a time. Until the detach that is whoever will surely end: waitress's task, which gives it back
when it ends otherwise, or, under another server, the response. From the detach on it is the exchange. The environ only
remembers it, for a request that is tried again (pyramid_retry) and must not be refused its own slot.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPException, HTTPServiceUnavailable, HTTPTooManyRequests

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.tracing import active_span
from pyramid_threaded_proxy.detach.access import at_task_end, descriptor_of, received_at
from pyramid_threaded_proxy.detach.channel import DetachableChannel
from pyramid_threaded_proxy.events import ExchangeStarted
from pyramid_threaded_proxy.exceptions import DescriptorsExhausted, ThreadsExhausted, TooManyExchanges, UpstreamsResting
from pyramid_threaded_proxy.limits.admission import Slot
from pyramid_threaded_proxy.relay.prepared import PreparedExchange

if TYPE_CHECKING:
    from pyramid_threaded_proxy.shared.site import SharedSite

#: Where the environ refers to the slot that its request was given.
SLOT = "pyramid_threaded_proxy.place"


def admit(
    engine: Engine, prepared: PreparedExchange, environ: dict[str, Any], channel: DetachableChannel | None
) -> None:
    """Take a slot for the exchange, or the one that an earlier try of this request has.

    Raises `TooManyExchanges`, and `UpstreamsResting` where nobody can be asked. A response that was admitted already,
    by the tween of a subrequest, keeps its slot. In the thread of the request.
    """
    choice = prepared.destination.choice
    if choice is not None and choice.resting:
        raise UpstreamsResting(prepared.exchange.route, choice.retry_after())
    known = environ.get(SLOT)
    earlier: Slot | None = known() if known is not None else None
    slot = prepared.slot or earlier
    if slot is None or not slot.held:
        slot = _new_slot(engine, prepared, channel)
    if slot is not earlier:
        environ[SLOT] = weakref.ref(slot)  # weak: an environ is often part of a cycle, and so dies late
        if channel is not None:
            at_task_end(channel, slot.release)
    is_new, prepared.slot = prepared.slot is None, slot
    if is_new:
        prepared.span_parent = active_span()
    if engine.status is not None and channel is not None:
        prepared.exchange.stats.authorized = max(0.0, time.time() - received_at(channel))
    if is_new and engine.registry.has_listeners:
        engine.registry.notify(ExchangeStarted(prepared.exchange))


def _new_slot(engine: Engine, prepared: PreparedExchange, channel: DetachableChannel | None) -> Slot:
    exchange = prepared.exchange
    try:
        if channel is not None:
            _check_system(engine, channel)
        if engine.shared is not None:
            _join(engine.shared)
        return engine.admission.admit(exchange.route, exchange.userid, prepared.policy.limits)
    except TooManyExchanges as error:
        engine.limit_log.reached(error)
        prepared.release()
        raise


def _check_system(engine: Engine, channel: DetachableChannel) -> None:
    """Whether there are files and threads left; the client's own socket tells how many files are open."""
    number, with_select = descriptor_of(channel)
    if with_select:
        engine.descriptors.with_select()
    try:
        engine.descriptors.check(number)
        engine.scheduler.start()  # here, where a refusal can still be told: the first exchange starts the threads
    except DescriptorsExhausted as error:
        raise TooManyExchanges("open files") from error
    except ThreadsExhausted as error:
        raise TooManyExchanges("threads of the system") from error


def _join(shared: SharedSite) -> None:
    """With the first exchange: from here on this process hears what others close."""
    try:
        shared.start()
    except ThreadsExhausted as error:
        raise TooManyExchanges("threads of the system") from error


def unavailable(error: TooManyExchanges | UpstreamsResting) -> HTTPException:
    """The HTTP exception for an exchange that was not admitted."""
    kind = HTTPTooManyRequests if error.status == 429 else HTTPServiceUnavailable
    resting = isinstance(error, UpstreamsResting)
    what = "The server behind this page does not answer." if resting else "Too many requests are in progress."
    return kind(f"{what} Please try again later.", headers={"Retry-After": str(error.retry_after)})
