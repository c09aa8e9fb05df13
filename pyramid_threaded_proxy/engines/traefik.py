"""Traefik's configuration: `ForwardAuth` asks, and the path is then rewritten by Traefik itself.

No middleware of Traefik's can send a target that it was told. So only routes whose target is the base and what stands
behind the mount are exported, paths are left as they came, and what the application has judged is what is rewritten.
It is JSON, which is YAML: one file that Traefik is started with, in its folder, and one of routes that it names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyramid_threaded_proxy.engines.site import (
    ACCEL,
    FOR_SHARED_CACHES,
    NEVER_DOWN,
    UNTOLD,
    FrontedRoute,
    FrontedSite,
    milliseconds,
    shown_name,
)
from pyramid_threaded_proxy.http.names import OF_A_FRONT
from pyramid_threaded_proxy.upstream.balance import Upstream

Json = dict[str, Any]

_STRATEGY = {"round_robin": "wrr", "least_exchanges": "p2c", "user_hash": "hrw"}
#: Escapes that Traefik would refuse before anybody is asked.
_ESCAPES = ("Slash", "BackSlash", "NullCharacter", "Semicolon", "Percent", "QuestionMark", "Hash")
_SWITCHING = "HeaderRegexp(`Upgrade`, `(?i)^websocket$`)"


def files(site: FrontedSite) -> dict[str, str]:
    """The file that Traefik is started with, and the one that it reads routes from."""
    return {"traefik.yaml": _text(site, _started_with(site)), "routes.yaml": _text(site, {"http": _routes(site)})}


def _text(site: FrontedSite, values: Json) -> str:
    return f"# {site.made_by('traefik')}\n{json.dumps(values, indent=1)}\n"


def _started_with(site: FrontedSite) -> Json:
    http = {
        "sanitizePath": False, "aliasHeadersStrategy": "delete",
        "encodedCharacters": {f"allowEncoded{name}": True for name in _ESCAPES},
    }  # fmt: skip
    entry = {
        "address": site.listen,
        "http": http,
        "transport": {"respondingTimeouts": {"readTimeout": "0s", "idleTimeout": "120s"}},
        "forwardedHeaders": {"notAppendXForwardedFor": True},
    }
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN"},
        "entryPoints": {"site": entry},
        # Until routes are read every request is a 404: at once, and not after two seconds.
        "providers": {"providersThrottleDuration": "10ms", "file": {"filename": "routes.yaml", "watch": False}},
    }


def _routes(site: FrontedSite) -> Json:
    made: Json = {"routers": {}, "middlewares": {}, "services": {}, "serversTransports": {}}
    made["routers"]["application"] = _router("PathPrefix(`/`)", 1, ["untold"], "application")
    made["middlewares"]["untold"] = _request_fields(dict.fromkeys(map(shown_name, UNTOLD), ""))
    made["services"]["application"] = _service([f"http://{site.application}"], True)
    for number, route in enumerate(site.routes):
        _add(made, site, number, route)
    return made


def _add(made: Json, site: FrontedSite, number: int, route: FrontedRoute) -> None:
    """One route: its rule, what happens to a request step by step, and where it goes."""
    name, priority = f"proxied_{number}", 10_000 - 2 * number
    steps = _steps(site, route)
    for step, middleware in steps.items():
        made["middlewares"][f"{name}_{step}"] = middleware
    every = [f"{name}_{step}" for step in steps]
    plain = [one for one in every if not one.endswith("_switch")]
    rule = _rule(route)
    made["routers"][name] = _router(rule, priority, [one for one in every if one in plain], name)
    if "websocket" in route.settings.upgrade:
        switched = [one for one in every if not one.endswith("_stay")]
        made["routers"][f"{name}_switched"] = _router(f"{rule} && {_SWITCHING}", priority + 1, switched, name)
    made["services"][name] = _upstreams(route, name)
    made["serversTransports"][name] = _transport(route)


def _router(rule: str, priority: int, middlewares: list[str], service: str) -> Json:
    return {
        "rule": rule, "priority": priority, "entryPoints": ["site"], "middlewares": middlewares, "service": service,
    }  # fmt: skip


def _rule(route: FrontedRoute) -> str:
    path = f"Path(`{route.mount}`) || PathPrefix(`{route.mount}/`)" if route.mount else "PathPrefix(`/`)"
    host = route.settings.host
    if host is None:
        return f"({path})"
    name = re.escape(host.removeprefix("*"))
    return f"({path}) && HostRegexp(`^{'.+' if host.startswith('*') else ''}{name}$`)"


def _steps(site: FrontedSite, route: FrontedRoute) -> dict[str, Json]:
    settings = route.settings
    proof = {"X-Proxy-Key": site.secret, "X-Proxy-Digest": site.digest, "X-Proxy-Route": route.name}
    steps: dict[str, Json] = {"proof": _request_fields(_nothing_said() | proof)}
    if settings.max_exchanges is not None:
        source = {"requestHeaderName": "X-Proxy-Route"}
        steps["limit"] = {"inFlightReq": {"amount": settings.max_exchanges, "sourceCriterion": source}}
    steps["ask"] = {"forwardAuth": _question(site, route)}
    if settings.max_body is not None:
        steps["body"] = {"buffering": {"maxRequestBodyBytes": max(1, settings.max_body)}}
    base = route.upstreams[0].base.rstrip("/")
    steps["path"] = {"replacePathRegex": _replacement(route.mount, base)}
    asked = dict.fromkeys(map(shown_name, sorted(OF_A_FRONT)), "")
    steps["clean"] = _request_fields({"X-Replaced-Path": "", "Te": "", **asked})
    steps["stay"] = _request_fields({"Upgrade": "", "Connection": ""})
    steps["answer"] = {"headers": {"customResponseHeaders": _answer_fields(site, route)}}
    if settings.retries:
        steps["again"] = {"retry": {"attempts": settings.retries + 1}}
    return steps


def _replacement(mount: str, base: str) -> Json:
    """A base without a path still needs one."""
    return {"regex": f"^{re.escape(mount)}(/.*)?$", "replacement": base.replace("$", "$$") + "$1"}


def _request_fields(fields: Mapping[str, str]) -> Json:
    return {"headers": {"customRequestHeaders": dict(fields)}}


def _nothing_said() -> dict[str, str]:
    """What the client says of who asks, less what Traefik has put in its place by then."""
    made = {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
    return dict.fromkeys(map(shown_name, sorted(UNTOLD - made)), "")


def _question(site: FrontedSite, route: FrontedRoute) -> Json:
    names = "|".join(re.escape(name) for name in route.settled)
    return {
        "address": f"http://{site.application}{site.verify_path}",
        "trustForwardHeader": False,
        "preserveLocationHeader": True,
        "maxResponseBodySize": 2**20,
        # What of these the application does not tell is deleted, and what it tells takes the client's place.
        "authResponseHeadersRegex": f"(?i)^(?:{names}|x-forwarded-.*)$",
        "addAuthCookiesToResponse": sorted(site.process.own_cookies),
    }


def _answer_fields(site: FrontedSite, route: FrontedRoute) -> dict[str, str]:
    settings = route.settings
    names = [*NEVER_DOWN, *(f"X-Accel-{name}" for name in ACCEL), *settings.response_remove]
    names += FOR_SHARED_CACHES if route.is_private else ()
    return {**dict.fromkeys(names, ""), **dict(settings.response_set)}


def _service(urls: Iterable[str], pass_host: bool) -> Json:
    servers = [{"url": url} for url in urls]
    forwarding = {"flushInterval": "-1ms"}
    return {"loadBalancer": {"servers": servers, "passHostHeader": pass_host, "responseForwarding": forwarding}}


def _upstreams(route: FrontedRoute, name: str) -> Json:
    settings = route.settings
    made = _service(map(_url, route.upstreams), settings.preserve_host)
    made["loadBalancer"] |= {"serversTransport": name, "strategy": _STRATEGY[settings.balance]}
    if settings.health_path is not None:
        made["loadBalancer"]["healthCheck"] = {
            "path": settings.health_path, "interval": milliseconds(settings.health_interval),
            "timeout": milliseconds(settings.connect_timeout),
        }  # fmt: skip
    return made


def _url(upstream: Upstream) -> str:
    origin = upstream.origin
    return f"{origin.scheme}://{origin.authority}"


def _transport(route: FrontedRoute) -> Json:
    settings = route.settings
    made: Json = {
        "maxIdleConnsPerHost": settings.keepalive or -1,
        "disableHTTP2": True,
        "forwardingTimeouts": {
            "dialTimeout": milliseconds(settings.connect_timeout),
            "responseHeaderTimeout": milliseconds(settings.read_timeout),
            "idleConnTimeout": milliseconds(settings.keepalive_time),
        },
        "insecureSkipVerify": not settings.tls_verify,
    }
    if settings.tls_server_name is not None:
        made["serverName"] = settings.tls_server_name
    if settings.tls_ca_file is not None:
        made["rootCAs"] = [settings.tls_ca_file]
    if settings.tls_cert_file is not None:
        made["certificates"] = [{"certFile": settings.tls_cert_file, "keyFile": route.tls_key_file}]
    return made
