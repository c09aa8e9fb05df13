"""Caddy's configuration, as a Caddyfile: each proxied path is asked about first, in the way of `forward_auth`.

`forward_auth` itself would send the client's `Upgrade` and query along with the question, so what it stands for is
written out. Where Go would escape a target anew, what it came to is compared with what the application told, and
nothing is sent that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyramid_threaded_proxy.engines.site import (
    FOR_SHARED_CACHES,
    NEVER_DOWN,
    UNTOLD,
    FrontedRoute,
    FrontedSite,
    escaped,
    milliseconds,
    shown_name,
)
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX

#: Whatever else a client names there would be gone when the application's fields have been put in its place.
_USUAL_CONNECTION = r"(?i)^(?:(?:close|keep-alive|upgrade|te|http2-settings)[, ]*)*$"
#: The path that a target's takes the place of: no query has it.
_PLACE = "/.proxied-{digest}"
#: Variables stand for the two letters that can't be escaped in every place.
_OPEN = "{vars.open}"
_QUERY = "proxied=target"
TARGET_IS_SENT = "{http.request.uri} {vars.x_proxy_target}"

Lines = Iterator[str]
#: Expressions and what takes the place of what they match, both as tokens.
Replacements = Iterator[tuple[str, str]]

#: What Caddy makes anew after the question: it is put in its place where the bytes are sent, not before.
_MADE_BY_CADDY = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via")


def files(site: FrontedSite) -> dict[str, str]:
    """The one file that Caddy is started with."""
    return {"Caddyfile": "\n".join(_configuration(site)) + "\n"}


def quoted(text: str) -> str:
    """Text as one token in which nothing is a placeholder, or of the environment, but what stands for two letters."""
    return "`" + text.replace("{", _OPEN).replace("`", "{vars.backtick}") + "`"


def expression(text: str) -> str:
    """An expression, or what replaces it, as one token."""
    return f"`{text}`"


def _configuration(site: FrontedSite) -> Lines:
    host, _, port = site.listen.rpartition(":")
    yield f"# {site.made_by('caddy')}"
    yield from _block("", _options(site))
    yield from _block(f"http://:{port}", _site(site, host))


def _block(head: str, lines: Iterable[str]) -> Lines:
    yield f"{head} {{".lstrip()
    for line in lines:
        yield f"\t{line}"
    yield "}"


def _options(site: FrontedSite) -> Lines:
    yield "admin off"
    yield "persist_config off"
    yield "auto_https off"
    waits = max((route.settings.client_body_timeout for route in site.routes), default=60.0)
    yield from _block("servers", ["protocols h1", *_block("timeouts", [f"read_header {milliseconds(waits)}"])])


def _site(site: FrontedSite, host: str) -> Lines:
    yield f"bind {host}"
    yield r'vars open "\{"'
    yield 'vars backtick "`"'
    for number, route in enumerate(site.routes):
        yield f"@mount_{number} " + _matcher(route)
        yield from _block(f"handle @mount_{number}", _block("route", _asked(site, number, route)))
    yield from _block("handle", _block("route", _to_the_application(site)))


def _matcher(route: FrontedRoute) -> str:
    lines = [
        f"path_regexp {expression(route.expression)}",
        f"vars_regexp {{http.request.header.Connection}} {expression(_USUAL_CONNECTION)}",
    ]
    if route.settings.host is not None:
        lines.append(f"host {route.settings.host}")
    return "{\n" + "\n".join(f"\t\t{line}" for line in lines) + "\n\t}"


def _asked(site: FrontedSite, number: int, route: FrontedRoute) -> Lines:
    if route.settings.max_body is not None:
        yield from _block("request_body", [f"max_size {max(1, route.settings.max_body)}B"])
    yield from _block(f"reverse_proxy {site.application}", _question(site, route))
    yield f"@rewritten not vars {TARGET_IS_SENT}"
    yield "error @rewritten 404"
    yield from _block("header", _put_on_answers(site, route))
    defaults = [*route.settings.response_default, *([("Cache-Control", "private")] if route.is_private else [])]
    yield from (f"header ?{name} {quoted(value)}" for name, value in defaults)
    yield from _block("reverse_proxy " + " ".join(map(_address, route.upstreams)), _upstream(site, route))


def _question(site: FrontedSite, route: FrontedRoute) -> Lines:
    yield "method GET"
    yield f"rewrite {site.verify_path}?"
    asked = {
        "X-Proxy-Key": quoted(site.secret), "X-Proxy-Digest": site.digest, "X-Proxy-Route": route.name,
        "X-Forwarded-Method": "{http.request.orig_method}", "X-Forwarded-Uri": "{http.request.orig_uri}",
        "X-Original-Upgrade": "{http.request.header.Upgrade}",
    }  # fmt: skip
    yield from _told(name.lower() for name in asked)
    yield from (f"header_up {name} {value}" for name, value in asked.items())
    yield "header_up -Upgrade"
    yield "header_up -Connection"
    yield "header_down -X-Proxy-*"
    yield from _block("transport http", ["compression off"])
    yield "@elsewhere status 404"
    yield from _block("handle_response @elsewhere", _to_the_application(site))
    yield "@yes status 200"
    yield from _block("handle_response @yes", _block("route", _granted(route, site.digest)))


def _told(names: Iterable[str] = ()) -> Lines:
    """Nothing that the client says of who asks goes to the application; `names` are set, and so are not deleted."""
    for name in sorted(UNTOLD - {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", *names}):
        yield f"header_up -{shown_name(name)}"
    yield "header_up -*_*"
    yield "header_up -Via"


def _granted(route: FrontedRoute, digest: str) -> Lines:
    """What the application has told takes the place of what the client sent."""
    for name in ("X-Proxy-Target", "X-Proxy-Host", *map(shown_name, _MADE_BY_CADDY)):
        yield f"vars {_variable(name)} {_told_as(name)}"
    yield from _block("copy_response_headers", ["include Set-Cookie"])
    yield "request_header -X-Forwarded-*"
    yield "request_header -*_*"
    yield from (f"request_header -{shown_name(name)}" for name in sorted({*route.deleted, "te"} - {"connection"}))
    for number, name in enumerate([*map(shown_name, route.settled), "Upgrade"]):
        told = _told_as("X-Proxy-Upgrade" if name == "Upgrade" else name)
        yield f'@told_{number} not vars {told} ""'
        yield f"request_header @told_{number} {name} {told}"
    # A path alone leaves the client's query as it was. `rewrite` would forget how a path was escaped, and write a query
    # anew, which `uri replace` does not.
    place = _PLACE.format(digest=digest)
    yield f"@target vars_regexp target {_told_as('X-Proxy-Target')} {expression('^([^?]*)[?]?(.*)$')}"
    yield f"rewrite @target {place}"
    yield f"uri replace {place} {{http.regexp.target.1}} 1"
    yield f"@query not vars {TARGET_IS_SENT}"
    again = [
        f"rewrite {place}?{_QUERY}",
        f"uri replace {_QUERY} {{http.regexp.target.2}} 1",
        f"uri replace {place} {{http.regexp.target.1}} 1",
    ]
    yield from _block("route @query", again)  # of several rewrites in one block the first alone counts


def _told_as(name: str) -> str:
    return f"{{http.reverse_proxy.header.{name}}}"


def _variable(name: str) -> str:
    return name.lower().replace("-", "_")


def _address(upstream: Upstream) -> str:
    origin = upstream.origin
    return f"unix/{origin.path}" if origin.scheme == UNIX else f"{origin.host}:{origin.port}"


def _upstream(site: FrontedSite, route: FrontedRoute) -> Lines:
    yield "header_up Host {vars.x_proxy_host}"
    for name in _MADE_BY_CADDY:
        told = name in route.settled and (name in _told_always(route) or (name == "via" and site.process.via))
        yield f"header_up {shown_name(name)} {{vars.{_variable(name)}}}" if told else f"header_up -{shown_name(name)}"
    yield from _answer_fields(site, route)
    yield from _balancing(route)
    yield "flush_interval -1"
    yield from _block("transport http", _transport(route))


def _told_always(route: FrontedRoute) -> tuple[str, ...]:
    """The forwarded fields that the application tells with each target; a header can't be deleted by a condition."""
    return _MADE_BY_CADDY[:3] if route.settings.forwarded in ("x-forwarded", "both") else ()


def _answer_fields(site: FrontedSite, route: FrontedRoute) -> Lines:
    """What never comes down, what is removed, and what of the upstream's own places is told in public words."""
    settings = route.settings
    hidden = ["X-Accel-*", "X-Lighttpd-Send-*", *NEVER_DOWN, *settings.response_remove]
    hidden += [*(name for name, _ in settings.response_set), site.process.request_id_header]
    if route.is_private:
        hidden += FOR_SHARED_CACHES
        yield from (f"header_down Cache-Control {expression(old)} {quoted(new)}" for old, new in _PRIVATE)
    yield from (f"header_down -{name}" for name in dict.fromkeys(filter(None, hidden)))
    if settings.rewrite_location is not None:
        for name in ("Location", "Content-Location"):
            yield from (f"header_down {name} {old} {new}" for old, new in _locations(route))
    own = "|".join(map(escaped, sorted(site.process.own_cookies)))
    if own:
        yield f'header_down Set-Cookie {expression(f"^ *(?:{own}) *=.*$")} ""'
    if settings.rewrite_cookies is not None:
        yield from (f"header_down Set-Cookie {old} {new}" for old, new in _cookies(route))


#: Of `Cache-Control`, one after the other: public ones become private, and what was private stays as it was.
_PRIVATE = (
    ("^(.*)$", "private, $1"),
    ("(?i)^private, ((?:.*[, ])?(?:private|no-store)(?:[, ].*)?)$", "$1"),
    ('(?i), *(?:public|s-maxage *=[^,]*|private *= *"[^"]*")', ""),
)


def _locations(route: FrontedRoute) -> Replacements:
    mount, public = route.mount, "{http.request.scheme}://{http.request.hostport}"
    for old, new in route.settings.rewrite_location or ():
        yield expression(f"^{escaped(old)}"), quoted(new.replace("$", "$$"))
    for upstream in route.upstreams:
        base = escaped(upstream.base.rstrip("/"))
        authority = escaped(upstream.origin.authority)
        yield expression(f"^(?i:https?://{authority}){base}([/?#].*)?$"), f'"{public}{mount}$1"'
        yield expression(f"^{base}([/?#].*)?$"), f'"{mount}$1"'


def _cookies(route: FrontedRoute) -> Replacements:
    """Each cookie without `Domain`, and with a `Path` at the mount or below it."""
    mount = route.mount
    yield expression(r"(?i); *domain *=[^;]*"), '""'
    yield expression("^(.+)$"), f'"$1; Path={mount or "/"}"'
    for upstream in route.upstreams:
        base = escaped(upstream.base.rstrip("/"))
        inner = expression(rf"(?i)^(.*?); *path *= *{base}(/[^; ][^;]*)(.*); Path=[^;]*$")
        yield inner, f'"$1$3; Path={mount}$2"'
    yield expression(r"(?i)^(.*?); *path *=[^;]*(.*; Path=[^;]*)$"), '"$1$2"'


def _put_on_answers(site: FrontedSite, route: FrontedRoute) -> Lines:
    settings = route.settings
    yield "defer"
    yield from (f"{name} {quoted(value)}" for name, value in settings.response_set)
    yield from (f"+{name} {quoted(value)}" for name, value in settings.response_add)
    if site.process.request_id_header:
        yield f"{site.process.request_id_header} {{http.request.header.{site.process.request_id_header}}}"


def _balancing(route: FrontedRoute) -> Lines:
    settings = route.settings
    policy = {"round_robin": "round_robin", "least_exchanges": "least_conn", "user_hash": "client_ip_hash"}
    yield f"lb_policy {policy[settings.balance]}"
    yield f"lb_retries {settings.retries}"
    if settings.health_fails and len(route.upstreams) > 1:
        yield f"max_fails {settings.health_fails}"
        yield f"fail_duration {milliseconds(settings.health_pause)}"
    if settings.health_path is not None:
        yield f"health_uri {quoted(settings.health_path)}"
        yield f"health_interval {milliseconds(settings.health_interval)}"


def _transport(route: FrontedRoute) -> Lines:
    settings = route.settings
    yield "compression off"
    yield f"dial_timeout {milliseconds(settings.connect_timeout)}"
    yield f"response_header_timeout {milliseconds(settings.read_timeout)}"
    yield f"read_timeout {milliseconds(route.longest_read)}"
    yield f"write_timeout {milliseconds(settings.send_timeout)}"
    yield f"max_response_header {settings.max_head}B"
    yield f"keepalive {milliseconds(settings.keepalive_time)}" if settings.keepalive else "keepalive off"
    if settings.keepalive:
        yield f"keepalive_idle_conns_per_host {settings.keepalive}"
    if route.upstreams[0].origin.scheme == "https":
        yield from _tls(route)


def _tls(route: FrontedRoute) -> Lines:
    settings = route.settings
    yield "tls"
    yield f"tls_server_name {route.tls_name}"
    if not settings.tls_verify:
        yield "tls_insecure_skip_verify"
    if settings.tls_ca_file is not None:
        yield f"tls_trust_pool file {quoted(settings.tls_ca_file)}"
    if settings.tls_cert_file is not None:
        yield f"tls_client_auth {quoted(settings.tls_cert_file)} {quoted(route.tls_key_file or '')}"


def _to_the_application(site: FrontedSite) -> Lines:
    lines = [*_told(), "flush_interval -1", *_block("transport http", ["compression off"])]
    yield from _block(f"reverse_proxy {site.application}", lines)
