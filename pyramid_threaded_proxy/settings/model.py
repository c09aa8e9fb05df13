"""The settings as frozen dataclasses. A field bears the path of its row in the table, with ``_`` for ``.``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

FieldValues = tuple[tuple[str, str], ...]
Hook = str | Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What holds for the whole process: ``proxy.…``."""

    threads: int = 8
    max_exchanges: int = 1000
    via: str = "pyramid_threaded_proxy"
    own_cookies: frozenset[str] = frozenset({"session", "auth_tkt", "csrf_token"})
    #: Whether `own_cookies` was set, rather than left at its default.
    own_cookies_given: bool = False
    #: Origins, hosts and networks that `proxy_fetch` may reach; None stands for any.
    fetch_allow: tuple[str, ...] | None = None
    #: In seconds.
    drain_timeout: float = 10.0
    #: In lower case.
    own_fields: frozenset[str] = frozenset()
    #: The field that bears an exchange's id, both ways; empty stands for none.
    request_id_header: str = "X-Request-Id"
    trace: Literal["pass", "drop"] = "pass"
    #: Where the status page stands; None: there is none, and nothing is counted.
    status_prefix: str | None = None
    status_permission: str | None = None
    #: None: nobody may do anything there.
    status_control_permission: str | None = None


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What holds for one route: ``proxy.routes.NAME.…``. Durations are in seconds, sizes in bytes."""

    name: str
    prefix: str | None
    pattern: str | None
    #: The URLs as written; none for `request.proxy_fetch`.
    upstream: tuple[str, ...]
    permission: str | None
    public: bool
    require_csrf: bool | None
    factory: str | Callable[..., Any] | None
    #: None stands for any but CONNECT and TRACE. That GET lets HEAD in is not spelt out here.
    methods: tuple[str, ...] | None
    order: int
    before: bool
    host: str | None
    preflight: Literal["ask", "pass"]
    query_remove: tuple[str, ...]
    query_only: frozenset[str] | None
    query_set: FieldValues
    request_origin: Literal["pass", "upstream"]
    request_set: FieldValues
    request_add: FieldValues
    request_remove: tuple[str, ...]
    #: In lower case; None stands for any, as for `response_only`.
    request_only: frozenset[str] | None
    #: None stands for ``*``.
    request_cookies: frozenset[str] | None
    request_authorization: Literal["drop", "pass"]
    request_overrides: Literal["drop", "pass"]
    response_set: FieldValues
    response_add: FieldValues
    response_default: FieldValues
    response_remove: tuple[str, ...]
    response_only: frozenset[str] | None
    preserve_host: bool
    forwarded: Literal["x-forwarded", "rfc7239", "both", "none"]
    #: Rules that go before the usual mapping; None stands for false.
    rewrite_location: FieldValues | None
    rewrite_cookies: FieldValues | None
    slash: Literal["redirect", "pass"] | None
    #: In lower case.
    upgrade: tuple[str, ...]
    #: Besides the application's own; ``*`` among them stands for all.
    origins: tuple[str, ...]
    cache: Literal["private", "keep"]
    recheck: float | None
    hooks_request: Hook
    hooks_response: Hook
    hooks_headers: Hook
    hooks_complete: Hook
    hooks_error: Hook
    connect_timeout: float
    read_timeout: float
    send_timeout: float
    #: None stands for no limit.
    total_timeout: float | None
    idle_timeout: float
    #: None stands for no limit; the process has its own.
    max_exchanges: int | None
    max_exchanges_per_user: int | None
    #: None stands for waitress's own limit.
    max_body: int | None
    max_head: int
    buffer: int
    retries: int
    balance: Literal["round_robin", "least_exchanges", "user_hash"]
    #: 0: an upstream never rests.
    health_fails: int
    health_pause: float
    health_path: str | None
    health_interval: float
    keepalive: int
    keepalive_time: float
    tls_verify: bool
    tls_ca_file: str | None
    tls_cert_file: str | None
    tls_key_file: str | None
    tls_server_name: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an application; the routes are in the order of their declaration."""

    process: ProcessSettings
    routes: tuple[RouteSettings, ...]
