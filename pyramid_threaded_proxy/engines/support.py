"""What each engine can hold of the settings: the one table that exports are judged by, and that the docs show.

A cell is empty where the engine does exactly what the relay does; ``~ …`` where it comes near, which is warned of; and
``x …`` where it can't, which is refused. Keys at their defaults are not asked about, but those in `ALWAYS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pyramid_threaded_proxy.engines.site import FrontedRoute, FrontedSite
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.section import DEFAULTS
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS
from pyramid_threaded_proxy.upstream.balance import Upstream

#: Those that there are exports for.
ENGINES = ("nginx", "haproxy", "envoy", "caddy", "traefik")


class Row(NamedTuple):
    """What is said of one key, or of several that are alike."""

    keys: str
    nginx: str = ""
    haproxy: str = ""
    envoy: str = ""
    caddy: str = ""
    traefik: str = ""

    def cell(self, engine: str) -> str:
        """What is said of it for one engine."""
        return str(getattr(self, engine))


def _all(text: str) -> dict[str, str]:
    return dict.fromkeys(Row._fields[1:], text)


_NO_TARGET = "x it can't send a target that it is told"
_LIKE_LUA = {
    "rewrite_cookies": "~ paths are compared by the letter, escapes included",
    "rewrite_location": "~ `Refresh` is left alone, and URLs are compared by the letter",
    "cache": "~ of `Cache-Control` with quotes only `private` is left",
    "request.buffering": "~ bodies stream in any case",
    "max_body": "~ a body without a length is not measured",
}
_ON_ANSWER = "x the answer does not come back to the application"
ROWS: tuple[Row, ...] = (
    Row("prefix", traefik="~ paths are normalised on their way, and escapes with them"),
    Row("permission public factory methods order before origins require_csrf host"),
    Row("pattern", traefik=_NO_TARGET),
    Row(
        "upstream",
        **_all("~ behind one of several upstreams with different names each gets the Host of the one that we chose"),
    ),
    Row("slash request.origin preserve_host"),
    Row("query.remove query.only query.set", traefik=_NO_TARGET),
    Row(
        "preflight",
        **dict.fromkeys(
            ("nginx", "caddy", "traefik"),
            "~ other fields of a preflight than those that the relay lets through go up as well",
        ),
    ),
    Row("request.set request.remove request.cookies request.authorization request.overrides forwarded"),
    Row("request.only", **dict.fromkeys(("caddy", "traefik"), "x it can't delete what it does not know")),
    Row("request.add"),
    Row(
        "request.buffering",
        **dict.fromkeys(("haproxy", "envoy", "caddy", "traefik"), _LIKE_LUA["request.buffering"]),
    ),
    Row("response.set response.remove"),
    Row("response.add response.default", traefik="x it can only set and remove fields"),
    Row("response.only", **_all("x it would have to know every other name")),
    Row("response.replace response.encoded", **_all(_ON_ANSWER)),
    Row(
        "own_cookies",
        nginx="~ an upstream may set a cookie of the application's name, confined to the mount; none goes up",
        caddy="~ of an upstream's cookie with an own name an empty field is left",
        traefik="~ an upstream may set them",
    ),
    Row(
        "rewrite_cookies",
        nginx="~ `Domain` is emptied rather than left out",
        **dict.fromkeys(("haproxy", "envoy", "caddy"), _LIKE_LUA["rewrite_cookies"]),
        traefik="x it can't change cookies",
    ),
    Row(
        "rewrite_location",
        nginx="~ `Content-Location` is left alone",
        **dict.fromkeys(("haproxy", "envoy", "caddy"), _LIKE_LUA["rewrite_location"]),
        traefik="x it can't change `Location`",
    ),
    Row(
        "cache",
        nginx="~ of `Cache-Control` with `public` or `s-maxage` only `private` is left",
        **dict.fromkeys(("haproxy", "envoy"), _LIKE_LUA["cache"]),
        caddy="~ directives of `Cache-Control` are found by an expression",
        traefik="x it can't change `Cache-Control`",
    ),
    Row(
        "upgrade",
        envoy="~ only `websocket`, and where none is allowed it is refused",
        traefik="~ only a lone `websocket`",
    ),
    Row("recheck", **_all("x nobody asks again while bytes flow")),
    Row(
        "hooks.request",
        **(_all("~ what it does besides path and settled fields is refused with 503") | {"traefik": _NO_TARGET}),
    ),
    Row("hooks.response hooks.headers hooks.body hooks.complete hooks.error", **_all(_ON_ANSWER)),
    Row("connect_timeout"),
    Row(
        "send_timeout client_body_timeout",
        haproxy="~ the longest of all routes counts for all clients",
        envoy="~ `read_timeout` counts for both ways",
        caddy="~ it counts for the upstream's side alone",
        traefik="x it has none",
    ),
    Row(
        "read_timeout",
        **dict.fromkeys(
            ("nginx", "envoy", "caddy"), "~ on a route with `upgrade`, `idle_timeout` counts for answers as well"
        ),
        traefik="~ it counts for the head alone",
    ),
    Row("idle_timeout", traefik="x it has none"),
    Row(
        "total_timeout",
        **dict.fromkeys(("nginx", "haproxy", "caddy", "traefik"), "x it has none"),
        envoy="~ it counts from the end of the request's body, and ends no switched connection",
    ),
    Row("log_error_body", **_all("~ it is not logged")),
    Row(
        "max_exchanges",
        nginx="~ those that are refused count while they are asked about",
        caddy="x it has no such limit",
        traefik="~ above it clients get 429",
    ),
    Row("max_exchanges_per_user", **_all("x it does not know the user")),
    Row(
        "max_body",
        **dict.fromkeys(("haproxy", "envoy"), _LIKE_LUA["max_body"]),
        caddy="~ it is measured while it goes up",
        traefik="~ the body is stored first",
    ),
    Row(
        "max_head",
        nginx="~ headers of more than that are a 502, by nginx's own count",
        haproxy="~ its own buffers are the limit",
        envoy="~ in whole KiB",
        traefik="x it has no such limit",
    ),
    Row("buffer", **_all("~ it has buffers of its own")),
    Row("retries", **_all("~ by its own rules for what may be tried again")),
    Row("balance", **_all("~ by the client's address, where it should be by the user")),
    Row("health.fails health.pause", **_all("~ by its own rules")),
    Row("health.path health.interval", nginx="x it has no active probes", caddy="~ a redirect is not well"),
    Row("keepalive", envoy="~ only 0 is told from the rest"),
    Row(
        "keepalive_time",
        haproxy="~ it closes idle ones by its own rules",
        **dict.fromkeys(("caddy", "traefik"), "~ it counts from the last use"),
    ),
    Row("tls.verify tls.ca_file tls.cert_file"),
    Row(
        "tls.server_name",
        **dict.fromkeys(("nginx", "haproxy"), "x it believes no certificate of an address: set the name that it has"),
    ),
    Row("tls.key_file", haproxy="~ it has to stand beside `tls.cert_file`, under that name with `.key` behind it"),
)  # fmt: skip


def _has_no_name(route: FrontedRoute, upstream: Upstream) -> bool:
    """Whether an upstream's certificate would have to be that of an address."""
    settings, origin = route.settings, upstream.origin
    if origin.scheme != "https" or not settings.tls_verify or settings.tls_server_name is not None:
        return False
    return re.fullmatch(r"[0-9.]+|\[.*\]", origin.host) is not None


#: Asked about whatever they are set to: defaults that an engine may not keep.
ALWAYS: dict[str, Callable[[FrontedRoute], bool]] = {
    "rewrite_cookies": lambda route: route.settings.rewrite_cookies is not None,
    "rewrite_location": lambda route: route.settings.rewrite_location is not None,
    "cache": lambda route: route.is_private,
    "own_cookies": lambda route: True,
    # One upstream, or several of one name, is the usual case.
    "upstream": lambda route: len({upstream.origin.authority for upstream in route.upstreams}) > 1,
    "tls.server_name": lambda route: any(_has_no_name(route, upstream) for upstream in route.upstreams),
    "read_timeout": lambda route: bool(route.settings.upgrade),
}
#: All keys that are judged.
KNOWN = frozenset(key for row in ROWS for key in row.keys.split())
_DEFAULTS = {key.path: DEFAULTS[key] for key in (*PROCESS_KEYS, *ROUTE_KEYS)}


class Finding(NamedTuple):
    """A key that is not held exactly, and the names of the routes that it is about."""

    key: str
    routes: tuple[str, ...]
    why: str
    refused: bool

    def __str__(self) -> str:
        return f"{self.key} ({', '.join(self.routes)}): {self.why}"


def is_used(key: str, route: FrontedRoute) -> bool:
    """Whether a route says anything with a key."""
    if key in ALWAYS:
        return ALWAYS[key](route)
    value: Any = getattr(route.settings, key.replace(".", "_"))
    return bool(value != _DEFAULTS[key])


def findings(engine: str, site: FrontedSite) -> Iterator[Finding]:
    """What of a site's settings the engine holds nearly or not at all, in the table's order."""
    for row in ROWS:
        cell = row.cell(engine)
        if not cell:
            continue
        for key in row.keys.split():
            names = tuple(route.name for route in site.routes if is_used(key, route))
            if names:
                yield Finding(key, names, cell[1:].strip(), cell.startswith("x"))


def table_markdown() -> str:
    """The page ``docs/engine-table.md``: the keys by row, a sign for each engine, and what the signs mean."""
    return _INTRODUCTION + _table()


_INTRODUCTION = """\
# What each engine can hold

<!-- Made by `python -m pyramid_threaded_proxy.engines > docs/engine-table.md`; edit `engines/support.py` instead. -->

The page of [engines](engines.md) says what this is about. In the table `=` is exact: what the relay does. `~` comes
near: an export warns of it. `no` can't be done: an export ends with status 3, unless `--accept KEY` leaves it out. The
numbers are those of the reasons below.

"""


def _table() -> str:
    lines = ["| keys | " + " | ".join(ENGINES) + " |", "| --- |" + " --- |" * len(ENGINES)]
    notes: dict[str, int] = {}
    for row in ROWS:
        cells = []
        for engine in ENGINES:
            sign, _, why = row.cell(engine).partition(" ")
            number = notes.setdefault(why, len(notes) + 1) if why else 0
            cells.append({"": "=", "~": "~", "x": "no"}[sign] + (f" ({number})" if number else ""))
        keys = " ".join(f"`{key}`" for key in row.keys.split())
        lines.append(f"| {keys} | {' | '.join(cells)} |")
    said = [f"{number}. {why[:1].upper()}{why[1:]}." for why, number in notes.items()]
    return "\n".join([*lines, "", *said]) + "\n"
