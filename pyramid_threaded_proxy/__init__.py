"""Puts slow, large or long-lived backends behind a Pyramid application's own authorization.

Pyramid decides who may pass; then the client's connection is detached from waitress, a small relay moves the bytes,
and waitress gets the connection back. The way of a request, by room:

=============  ==========================================================================================
`settings/`    ini, YAML and keyword arguments become frozen settings, with every mistake named
`app/`         Pyramid: declares routes, judges the whole application, and makes a `ProxyResponse` of a request;
               `app/streamed` tells from a head which request may be for a route whose bodies stream
`tween`        admits it, under the application's exception views; `limits/` says how many there may be
`detach/`      all of waitress: takes its connection, and gives it back; `detach/asked_first` hands a request over by
               its head, `detach/late_body` receives the body if the application reads it
`relay/`       one exchange, top to bottom: up, head, body, down; `hooks` and `events` are the application's say in it;
               `relay/client_body` moves a body that streams
`upstream/`    all of urllib3: connections to backends, which of them is asked, and how they have been doing
`shared/`      what the processes of a site know of each other: users' places, closings, reports
`loop/`        threads, waiting, time: what runs an exchange and knows none
`http/`        pure bytes and text: the rules of HTTP
`engines/`     configurations for nginx, HAProxy and others that ask `app/verify` and move the bytes themselves
`accesslog`    one line an exchange
`status/`      one place that counts, and what an operator sees of it: metrics, page, JSON
`scripts`      `pproxy`: what the routes are, and what would become of a request
`testing`      for the tests of applications: an upstream that answers as it is told; knows nothing of the rest
=============  ==========================================================================================

Imports point down this table; `tests/test_imports.py` has the directions. `exchange` and `exceptions` are values that
all may know. `docs/contributing.md` says which room a change belongs to.

It is no cache, no load balancer for the public Internet, and it never decides who may pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid_threaded_proxy.app.request_methods import ProxyTargetRefused
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.events import ExchangeFinished, ExchangeStarted, UpstreamDown, UpstreamUp
from pyramid_threaded_proxy.exceptions import (
    AnswerRefused,
    BodyRefused,
    BodyTooLarge,
    ClientBodyTimedOut,
    ClientGone,
    ClientTimedOut,
    ConnectFailed,
    ConnectTimedOut,
    DescriptorsExhausted,
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
    ThreadsExhausted,
    TooManyExchanges,
    TotalTimedOut,
    TunnelIdle,
    UpstreamGone,
    UpstreamsResting,
    ValueRefused,
)
from pyramid_threaded_proxy.exchange import Exchange, Stats, UpstreamAnswer, UpstreamRequest
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.settings.errors import SettingsError

if TYPE_CHECKING:
    from pyramid.config import Configurator

__all__ = [
    "AnswerRefused",
    "BodyRefused",
    "BodyTooLarge",
    "ClientBodyTimedOut",
    "ClientGone",
    "ClientTimedOut",
    "ConnectFailed",
    "ConnectTimedOut",
    "DescriptorsExhausted",
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
    "ThreadsExhausted",
    "TooManyExchanges",
    "TotalTimedOut",
    "TunnelIdle",
    "UpstreamAnswer",
    "UpstreamDown",
    "UpstreamGone",
    "UpstreamRequest",
    "UpstreamUp",
    "UpstreamsResting",
    "ValueRefused",
    "includeme",
]


def includeme(config: Configurator) -> None:
    """``config.include("pyramid_threaded_proxy")``, or ``pyramid.includes = pyramid_threaded_proxy``."""
    from pyramid_threaded_proxy.app.config import include

    include(config)


for _name in __all__:
    globals()[_name].__module__ = __name__  # where users find it, whatever room it stands in
del _name
