"""What several keys of one route must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyramid_threaded_proxy.settings.section import Section
from pyramid_threaded_proxy.settings.sources import Entry
from pyramid_threaded_proxy.settings.urls import check_upstream, pattern_names
from pyramid_threaded_proxy.settings.values import (
    TEMPLATE_NAMES,
    ValueFault,
    check_placeholders,
    placeholders,
)

# What several keys must agree on


def place_faults(section: Section, origin: str) -> Iterator[str]:
    if "upstream" not in section.entries:
        yield f"{section.home}upstream ({origin}): is missing; allowed: {section.keys['upstream'].allowed}"
    prefix, pattern = section.entries.get("prefix"), section.entries.get("pattern")
    if prefix and pattern:
        yield prefix.fault(f"stands beside {pattern.key} ({pattern.origin}): give one of them")
    if not prefix and not pattern and not section.good("host"):
        yield f"{section.home}prefix ({origin}): is missing: give prefix or pattern"


def status_faults(entries: Mapping[str, Entry]) -> Iterator[str]:
    """A status page that nobody is asked for, and permissions without a page."""
    prefix, permission = entries.get("status.prefix"), entries.get("status.permission")
    if prefix and not permission:
        yield prefix.fault("stands without proxy.status.permission: the page would be open to everybody")
    for name in ("status.permission", "status.control_permission"):
        if name in entries and not prefix:
            yield entries[name].fault("stands without proxy.status.prefix: there is no page to see")


def front_faults(entries: Mapping[str, Entry]) -> Iterator[str]:
    """A place to ask at that anybody could, or that nobody reads; and a hand-over that nobody may ask for."""
    given = [entries[name] for name in ("verify.prefix", "verify.engine", "verify.secret") if name in entries]
    for name in ("verify.prefix", "verify.engine", "verify.secret"):
        if given and name not in entries:
            yield f"proxy.{name} ({given[0].origin}): is missing: {given[0].key} needs it"
    prefix = entries.get("verify.prefix")
    if prefix and prefix.value == "/":
        yield prefix.fault("would take every request")
    engine, secret = entries.get("engine"), entries.get("accel.secret")
    if engine and engine.value == "accel" and not secret:
        yield f"proxy.accel.secret ({engine.origin}): is missing: proxy.engine = accel needs it"
    if secret and (engine is None or engine.value != "accel"):
        yield secret.fault("stands without proxy.engine = accel")


def tls_faults(section: Section, values: dict[str, Any]) -> Iterator[str]:
    if values["tls_key_file"] is not None and values["tls_cert_file"] is None and "tls.cert_file" not in section.bad:
        yield section.entries["tls.key_file"].fault("stands without tls.cert_file, whose key it would be")
    if not values["tls_verify"] and values["tls_ca_file"] is not None:
        yield section.entries["tls.ca_file"].fault("is at odds with tls.verify = false: nothing is verified")


def access_faults(section: Section, values: dict[str, Any]) -> Iterator[str]:
    permission, public = section.entries.get("permission"), section.entries.get("public")
    if permission and public and values["public"]:
        yield public.fault(f"stands beside {permission.key} ({permission.origin}): give one of them")


def pattern_faults(section: Section, values: dict[str, Any]) -> Iterator[str]:
    """Placeholders against the pattern; where that can't be read, nobody knows which names there are."""
    if "pattern" in section.bad:
        return
    names = pattern_names(values["pattern"]) if section.good("pattern") else None
    if section.good("upstream"):
        for url in values["upstream"]:
            try:
                check_upstream(url, names)
            except ValueFault as fault:
                yield section.entries["upstream"].fault(str(fault))
    yield from template_faults(section, TEMPLATE_NAMES | (names or frozenset()))


def template_faults(section: Section, known: frozenset[str]) -> Iterator[str]:
    for path, entry in section.entries.items():
        if path.startswith(("request.set.", "request.add.", "query.set.")) and section.good(path):
            try:
                check_placeholders(placeholders(str(entry.value)), known)
            except ValueFault as fault:
                yield entry.fault(str(fault))


def contradictions(section: Section, values: dict[str, Any]) -> Iterator[str]:
    """Fields that are removed and put there, or have a default that another override leaves no room for."""
    for path, other in clashes(values):
        yield section.entries[path].fault(f"is at odds with {section.home}{other}: give one of them")


def replace_faults(section: Section) -> Iterator[str]:
    """A URL whose scheme alone has become the name, as ini files end a name at its first colon."""
    for path, entry in section.entries.items():
        old = path.removeprefix("response.replace.")
        if old in ("http", "https", "ws", "wss") and old != path and " = " in str(entry.value):
            yield entry.fault("has lost its colon: ini files end a name there, so write this one in YAML (proxy.file)")


def origin_faults(section: Section, values: dict[str, Any]) -> Iterator[str]:
    if values["request_origin"] == "upstream" and values["preserve_host"]:
        yield section.entries["request.origin"].fault("is at odds with preserve_host: the upstream gets our own Host")


def clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The paths of overrides that leave each other no effect; `values` are a route's, under their attributes."""
    yield from _shared("request.remove", values["request_remove"], values, ("request.set",))
    yield from _shared("response.remove", values["response_remove"], values, ("response.set", "response.default"))
    for name, _ in values["response_default"]:
        yield from _shared(f"response.default.{name}", (name,), values, ("response.set", "response.add"))


def _shared(
    path: str, names: Iterable[str], values: Mapping[str, Any], others: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """`path`, which is about `names`, beside each of the `others` that puts such a field."""
    for other in others:
        put = {name.lower(): name for name, _ in values[other.replace(".", "_")]}
        for name in names:
            if (found := put.get(name.lower())) is not None:
                yield path, f"{other}.{found}"
