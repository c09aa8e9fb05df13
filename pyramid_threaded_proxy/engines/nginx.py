"""nginx's configuration: `auth_request` asks the application, and what was refused is handed to it; or, with
`engine = accel`, the application gets each request, and hands back what nginx is to fetch.

nginx has no way to delete a field by the beginning of its name, to look at each of several `Set-Cookie`, or to answer
with a status that it is told: so the names to delete are listed, and the application refuses by itself, with its own
page, what it has refused when it was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from pyramid_threaded_proxy.app.accel import LOCATION
from pyramid_threaded_proxy.app.host import is_for
from pyramid_threaded_proxy.engines.site import (
    ACCEL,
    AUTHORITIES,
    FOR_SHARED_CACHES,
    NEVER_DOWN,
    UNTOLD,
    FrontedRoute,
    FrontedSite,
    escaped,
    milliseconds,
    shown_name,
)
from pyramid_threaded_proxy.http.names import HOP_BY_HOP
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX

_IGNORED = "proxy_ignore_headers " + " ".join(f"X-Accel-{name}" for name in ACCEL) + ";"

Lines = Iterator[str]


def files(site: FrontedSite) -> dict[str, str]:
    """The one file that nginx is started with."""
    return {"nginx.conf": "\n".join(_configuration(site)) + "\n"}


def quoted(text: str) -> str:
    """Text as a parameter; a variable stands for the dollar, which can't be escaped."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text).replace("$", "${dollar}") + '"'


def literal(text: str) -> str:
    """Text as a parameter in which no variable counts."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def variable(name: str) -> str:
    """The part of a variable's name that stands for a field or a route."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _configuration(site: FrontedSite) -> Lines:
    yield f"# {site.made_by('nginx')}"
    # Three connections for each request at most: the client's, the upstream's, and the application's.
    yield "worker_processes auto; worker_rlimit_nofile 16384;"
    yield "events { worker_connections 8192; }"
    yield "http {"
    yield from _indented(_http(site))
    yield "}"


def _indented(lines: Iterable[str]) -> Lines:
    for line in lines:
        yield f"    {line}"


def _http(site: FrontedSite) -> Lines:
    yield "variables_hash_max_size 4096; variables_hash_bucket_size 128;"
    yield "proxy_headers_hash_max_size 4096; proxy_headers_hash_bucket_size 128; server_names_hash_bucket_size 128;"
    yield "underscores_in_headers off; ignore_invalid_headers on; merge_slashes off; absolute_redirect off;"
    yield 'geo $dollar { default "$"; }'
    yield 'map $proxy_upgrade $proxy_connection { default "Upgrade"; "" ""; }'
    yield 'map $http_upgrade $application_connection { default "Upgrade"; "" ""; }'
    yield "limit_conn_zone $proxy_route zone=proxied_routes:1m;"
    yield f"upstream application {{ server {site.application}; keepalive 32; }}"
    yield "upstream nobody { server 127.0.0.1:1 down; }  # for a target that was not told"
    for number, route in enumerate(site.routes):
        yield from _upstream(number, route)
    for route in site.routes:
        yield from _maps(route)
    hosts = sorted({route.settings.host for route in site.routes if route.settings.host is not None})
    yield from _server(site, None)
    for host in hosts:
        yield from _server(site, host)


def _upstream(number: int, route: FrontedRoute) -> Lines:
    settings = route.settings
    yield f"upstream proxied_{number} {{"
    if settings.balance == "least_exchanges":
        yield "    least_conn;"
    elif settings.balance == "user_hash":
        yield "    hash $remote_addr consistent;"
    for upstream in route.upstreams:
        patience = f"max_fails={settings.health_fails} fail_timeout={max(1, round(settings.health_pause))}s"
        yield f"    server {_address(upstream)} {patience};"
    if settings.keepalive:
        yield f"    keepalive {settings.keepalive}; keepalive_time {milliseconds(settings.keepalive_time)};"
    yield "}"
    yield f'map $proxy_target $proxied_{number} {{ default proxied_{number}; "" nobody; }}'


def _address(upstream: Upstream) -> str:
    origin = upstream.origin
    return literal(f"unix:{origin.path}") if origin.scheme == UNIX else f"{origin.host}:{origin.port}"


def _maps(route: FrontedRoute) -> Lines:
    """A default is put only where the upstream sent none."""
    for name, value in route.settings.response_default:
        yield f"map $upstream_http_{variable(name)} $default_{variable(route.name)}_{variable(name)} {{"
        yield f'    default ""; "" {quoted(value)};'
        yield "}"
    if route.is_private:
        yield f"map $upstream_http_cache_control $private_{variable(route.name)} {{"
        yield '    "" "private"; "~*(?:^|[, ])(?:private(?!=)|no-store)(?:$|[, ])" $upstream_http_cache_control;'
        yield '    "~*public|s-maxage|private" "private"; default "private, $upstream_http_cache_control";'
        yield "}"


def _server(site: FrontedSite, host: str | None) -> Lines:
    routes = [(number, route) for number, route in enumerate(site.routes) if _is_for(route.settings.host, host)]
    yield "server {"
    yield f"    listen {site.listen}{' default_server' if host is None else ''};"
    yield f"    server_name {'_' if host is None else host};"
    if not site.is_verified:
        for number, route in routes:
            yield from _location(f"{LOCATION}{route.name}", _fetched(site, number, route))
        yield from _location("/", _to_the_application(_proof(site)))
    else:
        yield from _location("= /.verify", _question(site))
        for number, route in routes:
            yield from _location(f"~ {literal(route.expression)}", _verified(site, number, route))
        yield from _location("/", _to_the_application({}))
        yield from _location("@application", _to_the_application({}))
        yield from _location("@unverified", ["return 503;"])
    yield "}"


def _location(place: str, lines: Iterable[str]) -> Lines:
    yield f"    location {place} {{"
    yield from _indented(_indented(lines))
    yield "    }"


def _proof(site: FrontedSite) -> dict[str, str]:
    return {"X-Proxy-Key": quoted(site.secret), "X-Proxy-Digest": site.digest}


def _is_for(route_host: str | None, host: str | None) -> bool:
    """Whether a route may take requests of a server block."""
    if route_host is None or host is None:
        return route_host is None
    return is_for(route_host, host.removeprefix("*")) if host != route_host else True


def _told(names: Iterable[str] = ()) -> Lines:
    """Who asks, as this front knows it: nothing that the client says of it."""
    for name in sorted(UNTOLD - {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", *names}):
        yield f'proxy_set_header {shown_name(name)} "";'
    yield "proxy_set_header Host $http_host;"
    yield "proxy_set_header X-Forwarded-For $remote_addr;"
    yield "proxy_set_header X-Forwarded-Host $http_host;"
    yield "proxy_set_header X-Forwarded-Proto $scheme;"
    yield "proxy_http_version 1.1;"


def _question(site: FrontedSite) -> Lines:
    """What the application is asked: `app.verify` says what it reads."""
    asked = {
        **_proof(site), "X-Proxy-Route": "$proxy_route",
        "X-Original-Method": "$request_method", "X-Original-URI": "$request_uri",
        "X-Original-Upgrade": "$http_upgrade", "X-Original-Connection": "$http_connection",
        "Content-Length": '""', "Connection": '""', "Upgrade": '""',
    }  # fmt: skip
    yield "internal;"
    yield from _told(name.lower() for name in asked)
    yield from (f"proxy_set_header {name} {value};" for name, value in asked.items())
    yield "proxy_pass_request_body off; client_max_body_size 0;"
    yield _IGNORED
    yield "proxy_buffer_size 64k; proxy_buffers 4 64k; proxy_busy_buffers_size 128k;"
    yield f"proxy_pass http://application{site.verify_path};"


def _to_the_application(fields: Mapping[str, str]) -> Lines:
    yield from _told(name.lower() for name in fields)
    yield from (f"proxy_set_header {name} {value};" for name, value in fields.items())
    yield "proxy_set_header Upgrade $http_upgrade;"
    yield "proxy_set_header Connection $application_connection;"
    # What is to be sent elsewhere afterwards has to be kept.
    yield f"client_max_body_size 0; proxy_request_buffering {'on' if fields else 'off'};"
    yield "proxy_buffering off; proxy_read_timeout 1h;"
    yield "proxy_pass_header Date; proxy_pass_header Server;"
    yield "proxy_pass http://application;"


def _verified(site: FrontedSite, number: int, route: FrontedRoute) -> Lines:
    """One route that is asked about, and sent where the answer says, with the fields that it has."""
    yield f'set $proxy_route "{route.name}";'
    yield "auth_request /.verify;"
    yield "auth_request_set $proxy_cookie $upstream_http_set_cookie;"
    yield "error_page 401 403 = @application;"
    yield "error_page 500 = @unverified;"
    yield from _values(route, "auth_request_set")
    yield from _moved(site, number, route)
    yield "add_header Set-Cookie $proxy_cookie always;"


def _fetched(site: FrontedSite, number: int, route: FrontedRoute) -> Lines:
    """One route that the application has handed back. Its cookies are kept by nginx itself."""
    yield f'set $proxy_route "{route.name}";'
    yield from _values(route, "set")
    yield from _moved(site, number, route)


def _values(route: FrontedRoute, how: str) -> Lines:
    """What the application tells, kept before the upstream's own answer takes its place."""
    for name in ("target", "host", "upgrade"):
        yield f"{how} $proxy_{name} $upstream_http_x_proxy_{name};"
    for name in route.settled:
        yield f"{how} $up_{variable(name)} $upstream_http_{variable(name)};"


def _moved(site: FrontedSite, number: int, route: FrontedRoute) -> Lines:
    scheme = "https" if route.upstreams[0].origin.scheme == "https" else "http"
    yield from _request_fields(route)
    yield from _answer_fields(route, site.process.request_id_header)
    yield from _limits(route)
    if scheme == "https":
        yield from _tls(route)
    yield f"proxy_pass {scheme}://$proxied_{number}$proxy_target;"


def _request_fields(route: FrontedRoute) -> Lines:
    settled = set(route.settled)
    for name in route.deleted:
        yield f"proxy_set_header {shown_name(name)} " + (f"$up_{variable(name)};" if name in settled else '"";')
    if route.settings.request_only is not None:
        yield "proxy_pass_request_headers off;"
        switching = [f"sec-websocket-{what}" for what in ("key", "version", "protocol", "extensions")]
        for name in sorted({*route.settings.request_only, *switching} - set(route.deleted)):
            yield f"proxy_set_header {shown_name(name)} $http_{variable(name)};"
    yield "proxy_set_header Host $proxy_host;"
    yield "proxy_set_header Upgrade $proxy_upgrade;"
    yield "proxy_set_header Connection $proxy_connection;"
    yield "proxy_http_version 1.1;"


def _answer_fields(route: FrontedRoute, request_id: str) -> Lines:
    """In the relay's order: what never comes down, then remove, set, add and default."""
    settings = route.settings
    put = [*settings.response_set, *settings.response_add]
    hidden = [*NEVER_DOWN, *map(shown_name, sorted(HOP_BY_HOP - {"connection", "transfer-encoding", "upgrade"}))]
    hidden += [*settings.response_remove, *(name for name, _ in settings.response_set)]
    if route.is_private:
        hidden += ["Cache-Control", *FOR_SHARED_CACHES]
    if request_id:
        hidden.append(request_id)
        yield f"add_header {request_id} $up_{variable(request_id)} always;"
    yield _IGNORED
    yield "proxy_pass_header Date; proxy_pass_header Server;"
    yield from (f"proxy_hide_header {name};" for name in dict.fromkeys(hidden))
    replaced = {name.lower() for name in [*settings.response_remove, *dict(settings.response_set)]}
    if route.is_private and "cache-control" not in replaced:
        yield f"add_header Cache-Control $private_{variable(route.name)} always;"
    yield from (f"add_header {name} {quoted(value)} always;" for name, value in put)
    for name, _ in settings.response_default:
        yield f"add_header {name} $default_{variable(route.name)}_{variable(name)} always;"
    yield from _rewriting(route)


def _rewriting(route: FrontedRoute) -> Lines:
    """The upstream's own URLs, and the paths of its cookies, become public ones; on a prefix route."""
    settings = route.settings
    if settings.pattern is not None:
        return
    mount = route.mount
    if settings.rewrite_location is not None:
        yield from (f"proxy_redirect {quoted(old)} {quoted(new)};" for old, new in settings.rewrite_location)
        yield f"proxy_redirect {literal(f'~^({escaped(mount)}(?:[/?#].*)?)$')} $1;"
        for upstream in route.upstreams:
            scheme = "https?" if upstream.origin.scheme == "https" else "http"
            base = escaped(upstream.base.rstrip("/"))
            authority = escaped(upstream.origin.authority)
            yield f"proxy_redirect {literal(f'~*^{scheme}://{authority}{base}((?:[/?#].*)?)$')} $scheme://$http_host{mount}$1;"
            yield f"proxy_redirect {literal(f'~^{base}((?:[/?#].*)?)$')} {mount}$1;"
    if settings.rewrite_cookies is not None:
        yield from (f"proxy_cookie_path {quoted(old)} {quoted(new)};" for old, new in settings.rewrite_cookies)
        yield 'proxy_cookie_domain "~." "";'
        yield f"proxy_cookie_path {literal(f'~^({escaped(mount)}(?:/.*)?)$')} $1;"
        for upstream in route.upstreams:
            base = escaped(upstream.base.rstrip("/"))
            yield f"proxy_cookie_path {literal(f'~^{base}(/.+)$')} {mount}$1;"
        yield f'proxy_cookie_path "~^." {mount or "/"};'


def _limits(route: FrontedRoute) -> Lines:
    settings = route.settings
    send = milliseconds(settings.send_timeout)
    yield f"proxy_connect_timeout {milliseconds(settings.connect_timeout)};"
    yield f"proxy_read_timeout {milliseconds(route.longest_read)}; proxy_send_timeout {send}; send_timeout {send};"
    yield f"client_body_timeout {milliseconds(settings.client_body_timeout)};"
    # waitress's own limit, where none is set.
    yield f"client_max_body_size {settings.max_body or 2**30 if settings.max_body != 0 else 1};"
    yield f"proxy_request_buffering {'on' if settings.request_buffering else 'off'}; proxy_buffering off;"
    size = settings.max_head
    yield f"proxy_buffer_size {size}; proxy_buffers 4 {size}; proxy_busy_buffers_size {2 * size};"
    yield f"proxy_next_upstream {'error' if settings.retries else 'off'};"
    yield f"proxy_next_upstream_tries {settings.retries + 1};"
    if settings.max_exchanges is not None:
        yield f"limit_conn proxied_routes {settings.max_exchanges}; limit_conn_status 503;"


def _tls(route: FrontedRoute) -> Lines:
    settings = route.settings
    yield f"proxy_ssl_server_name on; proxy_ssl_name {route.tls_name};"
    yield "proxy_ssl_protocols TLSv1.2 TLSv1.3;"
    if settings.tls_verify:
        yield "proxy_ssl_verify on; proxy_ssl_verify_depth 10;"
        yield f"proxy_ssl_trusted_certificate {literal(settings.tls_ca_file or AUTHORITIES)};"
    if settings.tls_cert_file is not None:
        yield f"proxy_ssl_certificate {literal(settings.tls_cert_file)};"
        yield f"proxy_ssl_certificate_key {literal(route.tls_key_file or '')};"
