"""What a front server's configuration is made of: the application's routes as the front has to know them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.http.names import FORWARDED, HOP_BY_HOP, IDENTITY, OF_A_FRONT
from pyramid_threaded_proxy.settings.process_table import ProcessSettings
from pyramid_threaded_proxy.settings.table import RouteSettings
from pyramid_threaded_proxy.upstream.balance import Upstream

#: What a client's request loses on its way to the application, and the question about it too.
UNTOLD = FORWARDED | IDENTITY | OF_A_FRONT
#: What an upstream's answer loses on its way to the client, besides what the engine makes anew itself.
NEVER_DOWN = (
    "Clear-Site-Data",
    "Service-Worker-Allowed",
    "X-Sendfile",
    "X-Lighttpd-Send-File",
    "X-Lighttpd-Send-Tempfile",
)
#: What it loses on a route that is private to who may use it.
FOR_SHARED_CACHES = ("CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Surrogate-Control")
#: Where Debian, and most others, keep the authorities that everybody trusts.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
#: Commands to nginx.
ACCEL = ("Redirect", "Expires", "Limit-Rate", "Buffering", "Charset")

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(?::((?:[^{}]|\{[^{}]*\})*))?\}|\*(\w+)$")


@dataclass(frozen=True)
class FrontedRoute:
    """One route, as a front has to know it."""

    settings: RouteSettings
    #: Its public path, escaped; "" at the root, and on a pattern route.
    mount: str
    #: An expression for the unescaped path that the route may take; the application has the last word.
    expression: str
    upstreams: tuple[Upstream, ...]
    #: The lower-case names of fields that the application decides about, and those of one connection.
    deleted: tuple[str, ...]
    #: Those of them that it may send in the client's place.
    settled: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name, of letters, digits, ``_`` and ``-``."""
        return self.settings.name

    @property
    def is_private(self) -> bool:
        """Whether its answers are kept out of shared caches."""
        return self.settings.cache == "private" and not self.settings.public

    @property
    def longest_read(self) -> float:
        """Seconds that an answer may pause, for engines that have one time-out for it and for a switched connection."""
        settings = self.settings
        return max(settings.read_timeout, settings.idle_timeout) if settings.upgrade else settings.read_timeout

    @property
    def tls_name(self) -> str:
        """The name that the upstreams' certificate is to have."""
        return self.settings.tls_server_name or self.upstreams[0].origin.host

    @property
    def tls_key_file(self) -> str | None:
        """The key of the certificate that the engine shows: it may stand in the same file."""
        return self.settings.tls_key_file or self.settings.tls_cert_file


@dataclass(frozen=True)
class FrontedSite:
    """A whole site. `listen` is where the front listens, `application` where the application does: ``host:port``."""

    routes: tuple[FrontedRoute, ...]
    process: ProcessSettings
    digest: str
    listen: str
    application: str

    def made_by(self, engine: str) -> str:
        """What a file says of itself in its first line."""
        routes = f"routes with the digest {self.digest}"
        return f"Made by `pproxy --export {engine}` of {routes}: make it anew when these change."

    @property
    def verify_path(self) -> str:
        """Where the application is asked."""
        return self.process.verify_prefix or ""

    @property
    def is_verified(self) -> bool:
        """Whether the front asks first; else it gets what it is to fetch from the application (`accel`)."""
        return self.process.verify_prefix is not None

    @property
    def secret(self) -> str:
        """What the front proves itself with, as it stands in a field."""
        return (self.process.verify_secret if self.is_verified else self.process.accel_secret) or ""


def fronted_site(engine: Engine, routes: Sequence[Route], listen: str, application: str) -> FrontedSite:
    """The site of an application; `routes` are in the order in which they match."""
    return FrontedSite(tuple(map(_fronted, routes)), engine.settings, engine.digest, listen, application)


def _fronted(route: Route) -> FrontedRoute:
    settled = route.settled
    return FrontedRoute(
        route.settings,
        route.mount if route.is_prefix else "",
        _prefix_expression(route.mount) if route.is_prefix else pattern_expression(route.settings.pattern or ""),
        route.balancer.upstreams,
        tuple(sorted(settled | HOP_BY_HOP)),
        tuple(sorted(settled - OF_A_FRONT)),
    )


def _prefix_expression(mount: str) -> str:
    return f"^{escaped(unquote(mount))}(?:/|$)" if mount else "^/"


def pattern_expression(pattern: str) -> str:
    """What a Pyramid route pattern takes, at least: the application is asked whether it really does."""
    pattern = "/" + re.sub(r"(?<!:)/:([A-Za-z_]\w*)", r"/{\1}", pattern).lstrip("/")
    parts, end = [], 0
    for found in _PLACEHOLDER.finditer(pattern):
        parts.append(escaped(unquote(pattern[end : found.start()])))
        parts.append(".*" if found[3] else f"(?:{found[2]})" if found[2] else "[^/]+")
        end = found.end()
    return f"^{''.join(parts)}{escaped(unquote(pattern[end:]))}$"


def escaped(text: str) -> str:
    """Text as an expression that matches it alone, in the dialect of Python and PCRE."""
    return re.sub(r"[^A-Za-z0-9/_\x80-\U0010ffff-]", lambda match: f"\\x{ord(match[0]):02x}", text)


def milliseconds(seconds: float) -> str:
    """A time as most engines write one; none is nothing, which would mean for ever."""
    return f"{max(1, round(seconds * 1000))}ms"


def shown_name(name: str) -> str:
    """A field's name as it is usually written."""
    return "-".join(word.capitalize() for word in name.split("-"))
