"""The settings of the whole process, ``proxy.…``: their values as a frozen dataclass, and the rows that say how each is
read. A new one is a row here and a field of the dataclass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pyramid_threaded_proxy.settings import urls, values
from pyramid_threaded_proxy.settings.keys import DURATION, SECRET, Key


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
    #: Who moves the bytes of requests that a front server with the right key hands over.
    engine: Literal["relay", "accel"] = "relay"
    accel_secret: str | None = None
    #: Where front servers ask; None: nowhere.
    verify_prefix: str | None = None
    verify_engine: Literal["nginx", "haproxy", "envoy", "caddy", "traefik"] | None = None
    verify_secret: str | None = None
    #: The URL of a Redis or Valkey that other processes of the site use too.
    shared: str | None = None

    @property
    def fronted(self) -> bool:
        """Whether a front server may move the bytes."""
        return self.engine != "relay" or self.verify_prefix is not None


def _secret(value: object) -> str:
    """What only we and a front server know; it stands in a field."""
    word = values.text(value)
    if not re.fullmatch(r"[!-~]{16,}", word):
        raise values.ValueFault("is too short, or no field could hold it")
    return word


PROCESS_KEYS: tuple[Key, ...] = (
    Key("file", values.path, None, "a path or an asset spec", "a YAML file with more settings; ini wins over it"),
    Key(
        "threads", values.integer(1, 1000), "8", "1 to 1000",
        "threads for the application's own code, such as hooks; one route gets half of those that are free",
    ),
    Key(
        "max_exchanges", values.integer(1, 10**6), "1000", "1 to 1000000",
        "exchanges in flight in this process; above it 503 with `Retry-After`",
    ),
    Key(
        "drain_timeout", values.duration, "10s", DURATION,
        "how long a stopping process lets exchanges in flight finish",
    ),
    Key(
        "via", values.via, "pyramid_threaded_proxy", "a token, or host:port",
        "our name in the `Via` field sent upstream (RFC 9110 7.6.3); empty sends none",
    ),
    Key(
        "own_cookies", values.cookie_names, "session auth_tkt csrf_token", "names of cookies",
        "the application's own cookies: never sent upstream, and never set by an upstream",
    ),
    Key(
        "own_fields", values.request_fields, "", "names of fields",
        "request fields that are the application's own credentials (`X-API-Key`): never sent upstream",
    ),
    Key(
        "fetch.allow", values.list_of(values.fetch_target), None,
        "origins (`https://api.example.com`), hosts (`api.example.com`, `*.internal`), addresses and networks",
        "what `proxy_fetch`, and `proxy_forward` to a URL, may reach; a name that is let in by an address or network "
        "is resolved once, and that address is used",
        unset="any",
    ),
    Key(
        "request_id.header", values.request_id_field, "X-Request-Id", "the name of a field, or nothing",
        "bears the id of an exchange, upstream and on every answer and error page of ours. The id is made by us; one "
        "of `[A-Za-z0-9._-]`, 8 to 128 of them, is taken over from a peer that waitress trusts. Empty sends none",
    ),
    Key(
        "trace", values.choice("pass", "drop"), "pass", "`pass` or `drop`",
        "whether the client's `traceparent` and `tracestate` go upstream",
    ),
    Key(
        "status.prefix", urls.prefix, None, "a path from `/` on, as a route's `prefix`",
        "where the status page, its JSON and the metrics stand; needs `status.permission`",
        unset="off: nothing is counted",
    ),
    Key("status.permission", values.permission, None, "a permission's name", "the Pyramid permission to see them"),
    Key(
        "status.control_permission", values.permission, None, "a permission's name",
        "the Pyramid permission to close exchanges there, and to rest, drain and wake upstreams",
        unset="nobody may",
    ),
    Key(
        "engine", values.choice("relay", "accel"), "relay", "`relay` or `accel`",
        "`accel` hands a permitted request back to nginx, which moves its bytes, where the request bears "
        "`accel.secret` (see [Engines](engines.md)); all others are relayed by this process",
    ),
    Key(
        "accel.secret", _secret, None, SECRET,
        "what nginx sends in `X-Proxy-Key`; needed with `engine = accel`",
    ),
    Key(
        "verify.prefix", urls.prefix, None, "a path from `/` on, as a route's `prefix`; not `/`",
        "where a front server asks whether a request may pass (see [Engines](engines.md)); needs `verify.engine` and "
        "`verify.secret`",
        unset="off",
    ),
    Key(
        "verify.engine", values.choice("nginx", "haproxy", "envoy", "caddy", "traefik"), None,
        "`nginx`, `haproxy`, `envoy`, `caddy` or `traefik`",
        "which front server asks: it says where the asked method and target are read, and nowhere else",
    ),
    Key(
        "verify.secret", _secret, None, SECRET,
        "what the front server sends in `X-Proxy-Key`; without it the endpoint is a 404",
    ),
    Key(
        "shared", urls.shared, None, "`redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, or `rediss://` for TLS",
        "a Redis or Valkey by which several processes act as one site; needs the extra `redis`",
        unset="off",
    ),
)  # fmt: skip
