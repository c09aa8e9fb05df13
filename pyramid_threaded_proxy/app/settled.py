"""What a front server is told of a permitted request: where it goes, and each field that is not simply the client's.

The names that the application decides about are the same for all requests of a route, so that an exported
configuration can have them: the front deletes all of these, and sends those that it was given. `digest_of` tells
whether its configuration was made of the routes that there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pyramid_threaded_proxy.app.copy_source import OPAQUE, SOURCES
from pyramid_threaded_proxy.app.front import FrontFault
from pyramid_threaded_proxy.app.routes import Route, Rules
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, FORWARDED, IDENTITY, OF_A_FRONT, Fields
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.settings.process_table import ProcessSettings

#: Raised where other fields or targets are told, or exported configurations read them otherwise.
_FORMAT = 1
#: What a front makes itself, from what it knows of its own connections.
_OF_THE_FRONT = CONNECTION_FIELDS | {"host"}
#: Fields that belong to the message that a client sends, and to no other.
_OF_THE_MESSAGE = frozenset({"content-type"})
#: Of a route's settings, those that no front holds: they may change without a new configuration.
_ASKED = frozenset({
    "permission", "factory", "require_csrf", "recheck", "log_error_body", "max_exchanges_per_user",
    *(f"hooks_{name}" for name in ("request", "response", "headers", "body", "complete", "error")),
})  # fmt: skip


def settled_names(rules: Rules) -> frozenset[str]:
    """The lower-case names that the application decides about on a route: what else the client sent goes up as it is,
    where `request.only` lets it."""
    sending = rules.request
    settings = sending.settings
    names = sending.fields.never | sending.rules.names | FORWARDED | IDENTITY | OF_A_FRONT
    names |= {name.lower() for name in settings.request_remove} | {"via", sending.request_id_header.lower()}
    names |= {"destination", "if", *SOURCES.values(), *OPAQUE.values()}
    if settings.request_origin == "upstream":
        names |= {"origin", "referer"}
    if rules.answer.filters:
        names |= {"accept-encoding"}
    return names - _OF_THE_FRONT - _OF_THE_MESSAGE - {""}


def settled_fields(prepared: PreparedExchange, route: Route, environ: Mapping[str, Any]) -> Fields:
    """The answer to a front: target, Host, protocol to switch to, all names that go up, and the values of the settled.

    Raises `FrontFault` where a `request` hook has done what a front can't be told of.
    """
    sent, names = prepared.exchange.request, route.settled
    up = [(name, value) for name, value in sent.final_fields() if name.lower() not in _OF_THE_FRONT]
    if prepared.policy.hooks.request is not None:
        _check_hook(prepared, route, environ)
        _check_names(up, route.rules, environ, names)
    told = _joined(field for field in up if field[0].lower() in names)
    host = next(value for name, value in sent.final_fields() if name.lower() == "host")
    fields = [("X-Proxy-Target", sent.target), ("X-Proxy-Host", host)]
    if prepared.upgrade:
        fields.append(("X-Proxy-Upgrade", ", ".join(prepared.upgrade)))
    fields.append(("X-Proxy-Fields", ", ".join(sorted({name.lower() for name, _ in up}))))
    return fields + told


def _joined(fields: Iterable[tuple[str, str]]) -> Fields:
    """Each name once: values of the same one make a list (RFC 9110 5.3)."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in fields:
        before = found.get(name.lower())
        found[name.lower()] = (name, value) if before is None else (before[0], f"{before[1]}, {value}")
    return list(found.values())


def _check_hook(prepared: PreparedExchange, route: Route, environ: Mapping[str, Any]) -> None:
    sent = prepared.exchange.request
    body = sent.body
    is_given = body is not None and (body.data is not None or body.owned)
    is_gone = body is None and environ.get("CONTENT_LENGTH", "") not in ("", "0")
    if is_given or is_gone or sent.method != environ["REQUEST_METHOD"]:
        raise FrontFault("its request hook changed the method or the body, which the front moves itself")
    if prepared.destination.origin not in [upstream.origin for upstream in route.balancer.upstreams]:
        raise FrontFault("its request hook turned it to another server, which the front does not know")


def _check_names(up: Fields, rules: Rules, environ: Mapping[str, Any], names: frozenset[str]) -> None:
    """Whether what else goes up is the client's own, so that a front which leaves it alone sends the same."""
    theirs = {name.lower(): value for name, value in rules.request.fields.select(environ)}
    ours = {name.lower(): value for name, value in up}
    for name in sorted((theirs.keys() | ours.keys()) - names):
        if theirs.get(name) != ours.get(name):
            raise FrontFault(
                f"its request hook changed {name}, which the front would send as the client did: name it in "
                "request.remove, which is applied before the hook"
            )


def digest_of(routes: Iterable[Route], process: ProcessSettings) -> str:
    """32 digits that differ where something does that a front was told of; `routes` are in matching order."""
    known = [_known_of(route) for route in routes]
    known.append({
        "via": process.via, "own_cookies": process.own_cookies, "request_id": process.request_id_header,
        "prefix": process.verify_prefix, "engines": (process.engine, process.verify_engine), "format": _FORMAT,
    })  # fmt: skip
    text = json.dumps(known, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _known_of(route: Route) -> dict[str, Any]:
    held = {name: value for name, value in asdict(route.settings).items() if name not in _ASKED}
    return held | {"mount": route.mount, "settled": route.settled}


def _plain(value: Any) -> Any:
    """Sets have no order; what else is no JSON can't be told apart by what it is."""
    return sorted(value) if isinstance(value, (set, frozenset)) else type(value).__name__
