"""Puts slow, large or long-lived backends behind a Pyramid application's own authorization.

Pyramid decides who may pass; then the client's connection is detached from waitress, a small relay moves the bytes,
and waitress gets the connection back. The way of a request, by module:

=================  =====================================================================================
`config`           declares routes and views          `settings`  reads ini and YAML
`views`            a request that was let in          `forward`   becomes what is sent
`request`          ``proxy_fetch``, ``proxy_forward``  `response`  `ProxyResponse`: what to fetch
`tween`            admits it                          `in_flight`, `recheck`  end it early
`engine`           what an application has of all below
`detach`           takes waitress's connection        `stream`    does without, under other servers
`relay`            one exchange, top to bottom        `hooks`     the application's say in it
`upstream`         connections to backends            `body`, `transfer`  move the bytes
`tasks`            what an exchange waits for         `scheduler`, `pool`, `poller`, `timers`  run it
`head` `framing` `fields` `target` `cookies` `forwarded` `rules`   pure bytes and text: the rules of HTTP
=================  =====================================================================================

It is no cache, no load balancer for the public Internet, and it never decides who may pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid_threaded_proxy.app.request_methods import ProxyTargetRefused
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.events import ExchangeFinished, ExchangeStarted, UpstreamDown, UpstreamUp
from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    BodyTooLarge,
    ClientGone,
    ClientTimedOut,
    ConnectFailed,
    ConnectTimedOut,
    ExchangeClosed,
    ExchangeFailed,
    FieldRefused,
    HookFailed,
    PermissionWithdrawn,
    ProtocolRefused,
    ProxyError,
    ProxyResponseError,
    ReadTimedOut,
    RelayFailed,
    RequestRefused,
    SendTimedOut,
    TargetRefused,
    TooManyExchanges,
    TotalTimedOut,
    TunnelIdle,
    UpstreamGone,
    UpstreamsResting,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import Exchange, Stats
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.settings.errors import SettingsError

if TYPE_CHECKING:
    from pyramid.config import Configurator

__all__ = [
    "AnswerRefused",
    "BodyTooLarge",
    "ClientGone",
    "ClientTimedOut",
    "ConnectFailed",
    "ConnectTimedOut",
    "Exchange",
    "ExchangeClosed",
    "ExchangeFailed",
    "ExchangeFinished",
    "ExchangeStarted",
    "FieldRefused",
    "HookFailed",
    "InFlight",
    "PermissionWithdrawn",
    "ProtocolRefused",
    "ProxyError",
    "ProxyResponse",
    "ProxyResponseError",
    "ProxyTargetRefused",
    "ReadTimedOut",
    "RelayFailed",
    "RequestRefused",
    "SendTimedOut",
    "SettingsError",
    "Stats",
    "TargetRefused",
    "TooManyExchanges",
    "TotalTimedOut",
    "TunnelIdle",
    "UpstreamDown",
    "UpstreamGone",
    "UpstreamUp",
    "UpstreamsResting",
    "ValueRefused",
    "includeme",
]


def includeme(config: Configurator) -> None:
    """``config.include("pyramid_threaded_proxy")``, or ``pyramid.includes = pyramid_threaded_proxy``."""
    from pyramid_threaded_proxy.app.config import include

    include(config)
