"""HAProxy's configuration: an action in Lua asks the application, and makes the request what the answer says.

The Lua stands in a file beside the configuration, which is to be kept with it: what routes do to fields is a table
above the code of `haproxy.lua`. What was refused is handed to the application, which refuses it with its own page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyramid_threaded_proxy.engines import lua
from pyramid_threaded_proxy.engines.site import UNTOLD, FrontedRoute, FrontedSite, milliseconds
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX

Lines = Iterator[str]


def files(site: FrontedSite) -> dict[str, str]:
    """The configuration, and the Lua that it loads from its own folder."""
    return {"haproxy.cfg": "\n".join(_configuration(site)) + "\n", "haproxy.lua": _lua(site)}


def word(text: str) -> str:
    """Text as one word of the configuration, in which nothing is expanded."""
    return "'" + text.replace("'", "'\\''") + "'"


def _configuration(site: FrontedSite) -> Lines:
    yield f"# {site.made_by('haproxy')}"
    yield from (
        "global",
        "    default-path config",
        "    lua-load haproxy.lua",
        "    httpclient.ssl.verify none",
    )
    yield from _section("defaults", _defaults(site))
    yield from _section("frontend site", _frontend(site))
    yield from _section("backend application", _application(site))
    for number, route in enumerate(site.routes):
        yield from _section(f"backend proxied_{number}", _backend(route))


def _section(head: str, lines: Iterable[str]) -> Lines:
    yield head
    for line in lines:
        yield f"    {line}"


def _defaults(site: FrontedSite) -> Lines:
    body = max((route.settings.client_body_timeout for route in site.routes), default=60.0)
    send = max((route.settings.send_timeout for route in site.routes), default=60.0)
    yield from ("mode http", "timeout connect 5s", "timeout http-request 60s", "timeout http-keep-alive 120s")
    yield f"timeout client {milliseconds(max(body, send))}"
    yield "timeout server 1h"
    yield "http-reuse safe"


def _frontend(site: FrontedSite) -> Lines:
    yield f"bind {site.listen}"
    yield "http-request return status 400 unless { req.fhdr_cnt(host) eq 1 }"
    for name in sorted(UNTOLD):
        yield f"http-request del-header {name}"
    yield from ("http-request del-header x-forwarded- -m beg", "http-request set-header X-Forwarded-For %[src]")
    yield "http-request set-header X-Forwarded-Host %[req.hdr(host)] if { req.hdr(host) -m found }"
    yield from ("http-request set-header X-Forwarded-Proto http", _FORWARDED_TLS)
    for route in site.routes:
        where = f"{{ path,url_dec -m reg {word(route.expression)} }}{_host(route.settings.host)}"
        yield f"http-request set-var(txn.route) str({route.name}) if {where} !{{ var(txn.route) -m found }}"
    yield "http-request lua.ask if { var(txn.route) -m found }"
    # Also where the Lua failed in its midst.
    yield f"http-request return status 503 if {{ var(txn.route) -m found }} !{_VERIFIED} !{_REFUSED}"
    for number, route in enumerate(site.routes):
        yield from _limits(number, route)
    for number, route in enumerate(site.routes):
        yield f"use_backend proxied_{number} if {_VERIFIED} {{ var(txn.route) -m str {route.name} }}"
    yield "default_backend application"


_VERIFIED, _REFUSED = "{ var(txn.outcome) -m str verified }", "{ var(txn.outcome) -m str refused }"
_FORWARDED_TLS = "http-request set-header X-Forwarded-Proto https if { ssl_fc }"


def _host(host: str | None) -> str:
    if host is None:
        return ""
    asked = "req.hdr(host),lower,regsub(:[0-9]*$,),regsub([.]$,)"
    return f" {{ {asked} -m end {host[1:]} }}" if host.startswith("*") else f" {{ {asked} -m str {host} }}"


def _limits(number: int, route: FrontedRoute) -> Lines:
    ours = f"{{ var(txn.route) -m str {route.name} }} {_VERIFIED}"
    # waitress's own limit, where none is set.
    most = 2**30 if route.settings.max_body is None else route.settings.max_body
    yield f"http-request return status 413 if {ours} {{ req.hdr_val(content-length) gt {most} }}"
    if (limit := route.settings.max_exchanges) is not None:
        yield f"http-request return status 503 hdr Retry-After 1 if {ours} {{ be_conn(proxied_{number}) ge {limit} }}"


def _application(site: FrontedSite) -> Lines:
    yield f"server application {site.application}"


def _backend(route: FrontedRoute) -> Lines:
    settings = route.settings
    balance = {"round_robin": "roundrobin", "least_exchanges": "leastconn", "user_hash": "source"}
    yield f"balance {balance[settings.balance]}"
    yield f"timeout connect {milliseconds(settings.connect_timeout)}"
    yield f"timeout server {milliseconds(settings.read_timeout)}"
    yield f"timeout tunnel {milliseconds(settings.idle_timeout)}"
    yield f"retries {settings.retries}"
    if settings.retries and len(route.upstreams) > 1:
        yield "option redispatch 1"
    if settings.health_path is not None:
        yield "option httpchk"
        authority = route.upstreams[0].origin.authority
        yield f"http-check send meth GET uri {word(settings.health_path)} ver HTTP/1.1 hdr Host {authority}"
        yield "http-check expect status 200-399"
    yield from ("http-response lua.answer", "http-response return status 502 if !{ var(txn.answered) -m found }")
    for number, upstream in enumerate(route.upstreams):
        yield f"server upstream_{number} {_address(upstream)}{_options(route, upstream)}"


def _address(upstream: Upstream) -> str:
    origin = upstream.origin
    return f"unix@{origin.path}" if origin.scheme == UNIX else f"{origin.host}:{origin.port}"


def _options(route: FrontedRoute, upstream: Upstream) -> str:
    settings = route.settings
    options = [f"pool-max-conn {settings.keepalive}"]
    if settings.health_path is not None:
        options.append(f"check inter {milliseconds(settings.health_interval)}")
    if upstream.origin.scheme == "https":
        name = settings.tls_server_name or upstream.origin.host
        options += ["ssl", "ssl-min-ver TLSv1.2", f"sni str({name})"]
        if settings.tls_verify:
            options += [
                "verify required",
                f"verifyhost {name}",
                f"ca-file {word(settings.tls_ca_file or '@system-ca')}",
            ]
        else:
            options.append("verify none")
        if settings.tls_cert_file is not None:
            options.append(f"crt {word(settings.tls_cert_file)}")
    return "".join(f" {option}" for option in options)


def _lua(site: FrontedSite) -> str:
    url = f"http://{site.application}{site.verify_path}"
    return lua.code(site, "haproxy", key=site.secret, digest=site.digest, url=url)
