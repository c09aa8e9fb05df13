"""A connection is switched to another protocol: the 101 goes on, and then bytes both ways (RFC 9110 7.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyramid_threaded_proxy.exceptions import HookFailed, ValueRefused
from pyramid_threaded_proxy.exchange import UpstreamAnswer
from pyramid_threaded_proxy.hooks import run_answering_hook
from pyramid_threaded_proxy.http.fields import merge_application_fields
from pyramid_threaded_proxy.http.head import ResponseHead
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.waits import Call
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.own_answer import ask_headers_hook
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.tunnel import tunnel


def switch(
    prepared: PreparedExchange,
    client: Client,
    head: ResponseHead,
    rest: bytes,
    upstream: Endpoint,
    moved: tuple[Callable[[int], None], Callable[[int], None]],
) -> Any:
    """Steps: until both sides have closed; returns a hook's response where that is to be sent in place of the 101.

    `rest` is what came behind the head. Neither connection carries HTTP again.
    """
    exchange, policy = prepared.exchange, prepared.policy
    protocol = next(value for name, value in head.fields if name.lower() == "upgrade")
    fields = prepared.fields_for_client(head.fields)
    answer = UpstreamAnswer(101, head.reason, merge_application_fields(fields, prepared.application_fields))
    exchange.response = answer
    hook = policy.hooks.response
    if hook is not None and (instead := (yield Call(run_answering_hook, "response", hook, exchange))):
        return instead
    answer.fields = policy.rules.apply(answer.fields)
    if policy.hooks.headers is not None:
        answer = yield from ask_headers_hook(policy.hooks.headers, exchange, answer)
    if answer.status != 101:
        raise HookFailed("the headers hook changed the status of a 101")
    early = yield Call(client.early_bytes)
    try:
        opening = client.switch(answer.reason, list(answer.fields), protocol)
    except ValueRefused as error:
        raise HookFailed(str(error)) from None
    yield from client.send(opening)
    assert client.endpoint is not None
    exchange.error = yield from tunnel(client.endpoint, upstream, (early, rest), policy.timeouts.idle, moved)
    return None
