"""Envoy's configuration: `ext_authz` asks, and a Lua filter behind it puts what the application told in its place.

It is JSON, which is YAML, because nothing has to be quoted twice there. Paths are not normalised on the way to the
application: it judges the raw target, and what it tells is what is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyramid_threaded_proxy.engines import lua
from pyramid_threaded_proxy.engines.site import AUTHORITIES, UNTOLD, FrontedRoute, FrontedSite
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX

Json = dict[str, Any]

_HTTP = "envoy.filters.http"
#: More than any number of connections: what may be in flight is said for each route, or not at all.
_MANY = 2**31 - 1
_BALANCE = {"round_robin": "ROUND_ROBIN", "least_exchanges": "LEAST_REQUEST", "user_hash": "MAGLEV"}


def files(site: FrontedSite) -> dict[str, str]:
    """The one file that Envoy is started with."""
    return {"envoy.yaml": f"# {site.made_by('envoy')}\n{json.dumps(_configuration(site), indent=1)}\n"}


def _configuration(site: FrontedSite) -> Json:
    chain = {"filters": [_typed("envoy.filters.network.http_connection_manager", _MANAGER, _manager(site))]}
    listener = {"name": "site", "address": _socket(site.listen), "filter_chains": [chain]}
    clusters = [_application(site), *(_cluster(number, route) for number, route in enumerate(site.routes))]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _typed(name: str, kind: str, values: Mapping[str, Any]) -> Json:
    return {"name": name, "typed_config": _of_type(kind, values)}


def _of_type(kind: str, values: Mapping[str, Any]) -> Json:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values}


_MANAGER = "filters.network.http_connection_manager.v3.HttpConnectionManager"
_MUTATION = "filters.http.header_mutation.v3.HeaderMutation"
_MUTATION_OF_ROUTE = "filters.http.header_mutation.v3.HeaderMutationPerRoute"
_EARLY = "http.early_header_mutation.header_mutation.v3.HeaderMutation"
_AUTHZ = "filters.http.ext_authz.v3.ExtAuthz"
_AUTHZ_OF_ROUTE = "filters.http.ext_authz.v3.ExtAuthzPerRoute"
_LUA = "filters.http.lua.v3.Lua"
_LUA_OF_ROUTE = "filters.http.lua.v3.LuaPerRoute"
_ROUTER = "filters.http.router.v3.Router"
_PROTOCOLS = "upstreams.http.v3.HttpProtocolOptions"
_TLS = "transport_sockets.tls.v3.UpstreamTlsContext"


def _socket(address: str) -> Json:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def _manager(site: FrontedSite) -> Json:
    waits = max((route.settings.client_body_timeout for route in site.routes), default=60.0)
    return {
        "stat_prefix": "site",
        "codec_type": "HTTP1",
        "http_protocol_options": {
            "accept_http_10": True,
            "ignore_http_11_upgrade": [_match(_other_than("websocket"))],
        },
        "common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"},
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "skip_xff_append": True,
        "generate_request_id": False,
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "request_headers_timeout": _duration(waits),
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": True}],
        "early_header_mutation_extensions": [_typed("who_asks", _EARLY, {"mutations": _who_asks()})],
        "local_reply_config": {"mappers": [_as_bad_gateway()]},
        "http_filters": _filters(site),
        "route_config": {"virtual_hosts": _hosts(site)},
    }


def _match(expression: str) -> Json:
    return {"safe_regex": {"regex": expression}}


def _other_than(word: str) -> str:
    """An expression, of those without look-ahead, for whatever is not a word in some case."""
    ways = [f"{word[:count]}(?:[^{letter}].*)?" for count, letter in enumerate(word)]
    return f"(?i)(?:{'|'.join([*ways, f'{word}.+'])})"


def _as_bad_gateway() -> Json:
    """Envoy says 503 where no answer came; as the relay, 502."""
    return {"filter": {"response_flag_filter": {"flags": ["UF", "UC", "UPE", "URX"]}}, "status_code": 502}


def _who_asks() -> list[Json]:
    """Nothing that the client says of it; what it asks for is kept before Envoy changes it."""
    return [
        *({"remove": name} for name in sorted(UNTOLD)),
        *map(_remove, ("x-forwarded-", "x-proxy-", "x-envoy-")),
        _set("x-original-upgrade", "%REQ(upgrade)%"),
        _set("x-original-connection", "%REQ(connection)%"),
        _set("x-forwarded-for", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        _set("x-forwarded-host", "%REQ(:authority)%"),
    ]


def _set(name: str, value: str) -> Json:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _remove(prefix: str) -> Json:
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def _filters(site: FrontedSite) -> list[Json]:
    code = lua.code(site, "envoy")
    return [
        _typed(f"{_HTTP}.header_mutation", _MUTATION, {"mutations": {}}),
        _typed(f"{_HTTP}.ext_authz", _AUTHZ, _question(site)),
        _typed(f"{_HTTP}.lua", _LUA, {"default_source_code": {"inline_string": code}, "clear_route_cache": False}),
        _typed(f"{_HTTP}.router", _ROUTER, {"suppress_envoy_headers": True}),
    ]


def _question(site: FrontedSite) -> Json:
    told = sorted({name for route in site.routes for name in route.settled})
    proof = {"X-Proxy-Key": site.secret, "X-Proxy-Digest": site.digest}
    upstream = {"patterns": [*({"exact": name} for name in told), {"prefix": "x-proxy-"}]}
    return {
        "http_service": {
            "server_uri": {"uri": f"http://{site.application}", "cluster": "application", "timeout": "60s"},
            "path_prefix": site.verify_path,
            "authorization_request": {"headers_to_add": [{"key": name, "value": proof[name]} for name in proof]},
            "authorization_response": {
                "allowed_upstream_headers": upstream,
                "allowed_client_headers_on_success": {"patterns": [{"exact": "set-cookie"}]},
            },
        },
        "allowed_headers": {"patterns": [_match("[^:].*")]},
        "disallowed_headers": {"patterns": [{"prefix": "x-envoy-"}, *({"exact": name} for name in _OF_THE_CONNECTION)]},
        "status_on_error": {"code": "ServiceUnavailable"},
    }


_OF_THE_CONNECTION = ("connection", "upgrade", "transfer-encoding", "te", "expect")


_OF_ENVOY = ("x-envoy-internal", "x-envoy-external-address")


def _hosts(site: FrontedSite) -> list[Json]:
    """One for all: which routes are for which Host is said by these, in the order in which they match."""
    routes = [_route(site, number, route) for number, route in enumerate(site.routes)]
    return [{"name": "site", "domains": ["*"], "routes": [_two_hosts(), *routes, _to_the_application()]}]


def _two_hosts() -> Json:
    """Envoy makes one Host with a comma of two, where the application would see one of them."""
    match = {"prefix": "/", "headers": [{"name": ":authority", "string_match": {"contains": ","}}]}
    off = {f"{_HTTP}.ext_authz": _of_type(_AUTHZ_OF_ROUTE, {"disabled": True})}
    off[f"{_HTTP}.lua"] = _of_type(_LUA_OF_ROUTE, {"disabled": True})
    return {"match": match, "direct_response": {"status": 400}, "typed_per_filter_config": off}


def _route(site: FrontedSite, number: int, route: FrontedRoute) -> Json:
    settings = route.settings
    action: Json = {
        "cluster": f"proxied_{number}",
        "timeout": _duration(settings.total_timeout or 0.0),
        "idle_timeout": _duration(settings.idle_timeout if settings.upgrade else settings.read_timeout),
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": "websocket" in settings.upgrade}],
    }
    if settings.retries:
        action["retry_policy"] = {"retry_on": "connect-failure", "num_retries": settings.retries}
    if settings.balance == "user_hash":
        action["hash_policy"] = [{"connection_properties": {"source_ip": True}}]
    mutations = {
        "request_mutations": [_set("x-proxy-route", route.name)],
        "response_mutations": [_remove("x-proxy-"), _remove("x-envoy-")],
    }
    return {
        "match": _matched(route), "route": action,
        "typed_per_filter_config": {f"{_HTTP}.header_mutation": _of_type(_MUTATION_OF_ROUTE, {"mutations": mutations})},
    }  # fmt: skip


def _matched(route: FrontedRoute) -> Json:
    made: Json
    if route.settings.pattern is not None:
        made = _match(route.expression)
    else:
        made = {"path_separated_prefix": route.mount} if route.mount else {"prefix": "/"}
    host = route.settings.host
    if host is not None:
        name = re.escape(host.removeprefix("*"))
        named = _match(f"(?i){'.+' if host.startswith('*') else ''}{name}(?::[0-9]*)?")
        made["headers"] = [{"name": ":authority", "string_match": named}]
    return made


def _to_the_application() -> Json:
    """What is no proxied path, is the application's."""
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "application", "timeout": "0s", "idle_timeout": "3600s",
            "upgrade_configs": [{"upgrade_type": "websocket", "enabled": True}],
        },
        "request_headers_to_remove": ["x-original-connection", "x-original-upgrade", *_OF_ENVOY],
        "typed_per_filter_config": {
            f"{_HTTP}.ext_authz": _of_type(_AUTHZ_OF_ROUTE, {"disabled": True}),
            f"{_HTTP}.lua": _of_type(_LUA_OF_ROUTE, {"disabled": True}),
        },
    }  # fmt: skip


def _application(site: FrontedSite) -> Json:
    return {
        "name": "application", "connect_timeout": "5s", "type": "STRICT_DNS",
        "load_assignment": _assignment("application", [_socket(site.application)]),
        "circuit_breakers": _at_most(None),
    }  # fmt: skip


def _assignment(name: str, addresses: Iterable[Json]) -> Json:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _at_most(exchanges: int | None) -> Json:
    names = ("max_connections", "max_pending_requests", "max_retries")
    return {"thresholds": [{**dict.fromkeys(names, _MANY), "max_requests": _MANY if exchanges is None else exchanges}]}


def _cluster(number: int, route: FrontedRoute) -> Json:
    settings, name = route.settings, f"proxied_{number}"
    is_unix = any(upstream.origin.scheme == UNIX for upstream in route.upstreams)
    made: Json = {
        "name": name,
        "connect_timeout": _duration(settings.connect_timeout),
        "type": "STATIC" if is_unix else "STRICT_DNS",
        "lb_policy": _BALANCE[settings.balance],
        "load_assignment": _assignment(name, map(_address, route.upstreams)),
        "circuit_breakers": _at_most(settings.max_exchanges),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _protocol(route)
        },
    }
    if settings.health_path is not None:
        made["health_checks"] = [_probe(route)]
        # Else it would send to those that are down as well, once fewer than half are up.
        made["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    if route.upstreams[0].origin.scheme == "https":
        made["transport_socket"] = _typed("envoy.transport_sockets.tls", _TLS, _tls(route))
    return made


def _address(upstream: Upstream) -> Json:
    origin = upstream.origin
    return {"pipe": {"path": origin.path}} if origin.scheme == UNIX else _socket(f"{origin.host}:{origin.port}")


def _protocol(route: FrontedRoute) -> Json:
    settings = route.settings
    common: Json = {"max_connection_duration": _duration(settings.keepalive_time)}
    if not settings.keepalive:
        common["max_requests_per_connection"] = 1
    common["max_response_headers_kb"] = max(1, min(8192, settings.max_head // 1024))
    protocol: Json = {"http_protocol_options": {}}
    return _of_type(_PROTOCOLS, {"common_http_protocol_options": common, "explicit_http_config": protocol})


def _probe(route: FrontedRoute) -> Json:
    settings = route.settings
    interval = _duration(settings.health_interval)
    return {
        "timeout": _duration(settings.connect_timeout), "interval": interval, "no_traffic_interval": interval,
        "unhealthy_threshold": 1, "healthy_threshold": 1,
        "http_health_check": {
            "path": settings.health_path, "host": route.upstreams[0].origin.authority,
            "expected_statuses": [{"start": 200, "end": 400}],
        },
    }  # fmt: skip


def _tls(route: FrontedRoute) -> Json:
    settings = route.settings
    common: Json = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}}
    if settings.tls_verify:
        kind = "IP_ADDRESS" if re.fullmatch(r"[0-9.]+|.*:.*", route.tls_name) else "DNS"
        common["validation_context"] = {
            "trusted_ca": {"filename": settings.tls_ca_file or AUTHORITIES},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": route.tls_name}}],
        }
    if settings.tls_cert_file is not None:
        certificate = {
            "certificate_chain": {"filename": settings.tls_cert_file},
            "private_key": {"filename": route.tls_key_file},
        }
        common["tls_certificates"] = [certificate]
    return {"sni": route.tls_name, "common_tls_context": common}


def _duration(seconds: float) -> str:
    return f"{seconds:.3f}s"
