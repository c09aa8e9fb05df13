"""What engines that run Lua are told of a site: a table that stands above the code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files as resources

from pyramid_threaded_proxy.engines.site import FOR_SHARED_CACHES, NEVER_DOWN, FrontedRoute, FrontedSite
from pyramid_threaded_proxy.http.names import HOP_BY_HOP


def code(site: FrontedSite, engine: str, **values: str) -> str:
    """The table `site`, what is common to all, and the engine's own code; `values` are the engine's, of text."""
    lines = [
        f"-- {site.made_by(engine)} It may hold the key.",
        "local site = {",
        *(f"    {name} = {text(value)}," for name, value in values.items()),
        f"    hop_by_hop = {text(' '.join(sorted(HOP_BY_HOP - {'transfer-encoding', 'upgrade', 'connection'})))},",
        f"    own_cookies = {_names(site.process.own_cookies)},",
        "    routes = {},",
        "}",
        *(f"site.routes[{text(route.name)}] = {_table(_route(route))}" for route in site.routes),
        "",
    ]
    return "\n".join([*lines, *(_read(name) for name in ("answers", engine))])


def _read(name: str) -> str:
    return resources(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def text(value: str) -> str:
    """Text as a string of Lua's: bytes that are not plain are escaped by their numbers."""
    escaped = re.sub(rb"[^ !#-\[\]-~]", lambda match: b"\\%03d" % match[0][0], value.encode("utf-8", "surrogatepass"))
    return '"' + escaped.decode("ascii") + '"'


def _route(route: FrontedRoute) -> Mapping[str, str]:
    settings = route.settings
    hidden = {name.lower() for name in (*NEVER_DOWN, *(FOR_SHARED_CACHES if route.is_private else ()))}
    removed = [*settings.response_remove, *(name for name, _ in settings.response_set)]
    is_prefix = settings.pattern is None
    upstreams = [
        _table({
            "scheme": text("https" if one.origin.scheme == "https" else "http"),
            "authority": text(one.origin.authority.lower()), "base": text(one.base.rstrip("/")),
        })
        for one in route.upstreams
    ]  # fmt: skip
    return {
        "mount": text(route.mount), "settled": _names(route.settled), "hidden": _names(hidden),
        "removed": _list(map(text, removed)), "put": _pairs([*settings.response_set, *settings.response_add]),
        "default": _pairs(settings.response_default), "private": "true" if route.is_private else "false",
        "locations": "nil" if settings.rewrite_location is None or not is_prefix else _pairs(settings.rewrite_location),
        "cookies": "nil" if settings.rewrite_cookies is None else _pairs(settings.rewrite_cookies),
        "upstreams": _list(upstreams if is_prefix else []),
        "most": "nil" if settings.max_body is None else str(settings.max_body),
    }  # fmt: skip


def _names(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f"[{text(name)}] = true" for name in sorted(names)) + " }"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return _list(_list([text(one), text(other)]) for one, other in pairs)


def _list(values: Iterable[str]) -> str:
    return "{ " + ", ".join(values) + " }"


def _table(values: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {value}" for name, value in values.items()) + " }"
