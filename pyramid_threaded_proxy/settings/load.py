"""From ini, YAML or keyword arguments to frozen settings, with every mistake named at once.

`settings_sources` lays out what was written as one flat list of entries, `settings_table` says which keys there
are, `settings_values` and `settings_urls` read single values. Here they come together, and what several keys must
agree on is checked. All of it runs while the application is configured, `fetch_settings` in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from pyramid_threaded_proxy.settings.agreement import (
    access_faults,
    clashes,
    contradictions,
    front_faults,
    origin_faults,
    pattern_faults,
    place_faults,
    replace_faults,
    status_faults,
    template_faults,
    tls_faults,
)
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS, ProcessSettings
from pyramid_threaded_proxy.settings.reference import reference_markdown
from pyramid_threaded_proxy.settings.section import DEFAULTS, Section, is_empty
from pyramid_threaded_proxy.settings.sources import Entry, YamlFile, ini_entries, mapping_entries
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS, RouteSettings, Settings
from pyramid_threaded_proxy.settings.values import (
    TEMPLATE_NAMES,
    ValueFault,
)
from pyramid_threaded_proxy.settings.values import path as file_name

__all__ = [
    "ProcessSettings",
    "RouteSettings",
    "Settings",
    "SettingsError",
    "fetch_settings",
    "load_settings",
    "overlaid",
    "reference_markdown",
    "route_from_keywords",
]

#: Looks at what only the application can tell, names that are imported and files that are used: yields the path of
#: each faulty key, and what is wrong with it.
Judge = Callable[[RouteSettings], Iterable[tuple[str, str]]]

_FETCH_KEYS = tuple(key for key in ROUTE_KEYS if key.fetch)
_FETCH_DEFAULTS = {key.attribute: DEFAULTS[key] for key in ROUTE_KEYS} | {"upstream": ()}

_BY_ATTRIBUTE = {key.attribute: key for key in ROUTE_KEYS}
_FIELD = re.compile(r"(?<![^.])(?:request|response)\.(?:set|add|default)\..*", re.DOTALL)
_NAME_RULE = "the name of a route is letters, digits, _ and -"


def nothing_to_say(route: RouteSettings) -> Iterable[tuple[str, str]]:
    """A `Judge` that finds no fault."""
    return ()


def load_settings(
    ini: Mapping[str, object], resolve_path: Callable[[str], str], judge: Judge = nothing_to_say
) -> Settings:
    """The settings under ``proxy.`` in Pyramid's settings, and those of the YAML file that ``proxy.file`` names.

    `resolve_path` turns that name, a path or an asset spec, into the path of a file; `judge` looks at each route.
    Raises `SettingsError`.
    """
    faults: list[str] = []
    written = _merged(ini_entries(ini), faults)
    entries = {**_merged(_yaml_entries(written.get("proxy.file"), resolve_path, faults), faults), **written}
    process, routes = _divided(entries.values(), faults)
    settings = Settings(_process(process, faults), tuple(_routes(routes, faults, judge)))
    if faults:
        raise SettingsError(faults)
    return settings


def route_from_keywords(
    name: str, keywords: Mapping[str, object], origin: str = "add_proxy_route()", judge: Judge = nothing_to_say
) -> RouteSettings:
    """The settings of a route declared in Python, its keys written with ``_`` for ``.``. Raises `SettingsError`."""
    faults: list[str] = []
    if not isinstance(name, str) or not _is_name(name):
        raise SettingsError([Entry("NAME", name, origin).fault(_NAME_RULE)])
    home = f"proxy.routes.{name}."
    section = Section(home, ROUTE_KEYS, _keyword_entries(home, keywords, origin, faults), faults, in_python=True)
    route = _route(name, section, origin, judge)
    if faults:
        raise SettingsError(faults)
    return route


def fetch_settings(name: str, keywords: Mapping[str, object], origin: str) -> RouteSettings:
    """The settings of one `request.proxy_fetch` or `request.proxy_forward`. Raises `SettingsError`.

    Keys that declare a route are unknown here; in the result they stand at their defaults, `upstream` is empty.
    """
    if not keywords:
        return _fetch_defaults(name)
    faults: list[str] = []
    section = Section("", _FETCH_KEYS, _keyword_entries("", keywords, origin, faults), faults, in_python=True)
    values = section.values()
    faults.extend(template_faults(section, TEMPLATE_NAMES))
    faults.extend(contradictions(section, values))
    faults.extend(tls_faults(section, values))
    faults.extend(origin_faults(section, values))
    if faults:
        raise SettingsError(faults)
    return RouteSettings(**_FETCH_DEFAULTS | values, name=name)


def overlaid(route: RouteSettings, given: RouteSettings, keys: Iterable[str]) -> RouteSettings:
    """A route's settings with those that a view gives under the attributes `keys`. Raises `SettingsError` where the
    two are at odds."""
    settings = replace(route, **{key: getattr(given, key) for key in keys})
    values = {name: getattr(settings, name) for name in RouteSettings.__dataclass_fields__}
    faults = [f"proxy_forward(): {path} is at odds with {other} of {route.name}" for path, other in clashes(values)]
    if faults:
        raise SettingsError(faults)
    return settings


@lru_cache(maxsize=64)
def _fetch_defaults(name: str) -> RouteSettings:
    return RouteSettings(**_FETCH_DEFAULTS, name=name)


# Entries: from the sources to one place each


def _yaml_entries(entry: Entry | None, resolve_path: Callable[[str], str], faults: list[str]) -> Iterator[Entry]:
    """The YAML file's entries; a name that can't be read as one is reported with the process's other settings."""
    if entry is None:
        return
    try:
        path = resolve_path(file_name(entry.value))
    except ValueFault:
        return
    except Exception as error:  # An asset spec names a package, and importing one can raise anything.
        faults.append(entry.fault(f"can't be resolved: {error}"))
        return
    found = YamlFile(path)
    faults.extend(found.faults)
    for inner in found.entries:
        if inner.key == "proxy.file":
            faults.append(inner.fault("is known in the ini settings alone: one file can't name another"))
        else:
            yield inner


def _keyword_entries(home: str, keywords: Mapping[str, object], origin: str, faults: list[str]) -> dict[str, Entry]:
    entries: list[Entry] = []
    for keyword, value in keywords.items():
        key = _BY_ATTRIBUTE.get(keyword)
        # Only a group's mapping is laid out: any other is a value, and the wrong one.
        if key and key.names:
            entries.extend(mapping_entries(home + key.path, value, origin))
        else:
            entries.append(Entry(home + (key.path if key else str(keyword)), value, origin))
    return {entry.key.removeprefix(home): entry for entry in _merged(entries, faults).values()}


def _merged(entries: Iterable[Entry], faults: list[str]) -> dict[str, Entry]:
    """One source's entries under their keys, a field's name in lower case; two of one key are a fault."""
    found: dict[str, Entry] = {}
    for entry in entries:
        key = _FIELD.sub(lambda match: match[0].lower(), entry.key)
        if key in found:
            faults.append(entry.fault(f"is given twice, also as {found[key].key} ({found[key].origin})"))
        found.setdefault(key, entry)
    return found


def _divided(entries: Iterable[Entry], faults: list[str]) -> tuple[dict[str, Entry], dict[str, dict[str, Entry]]]:
    """The process's entries under their paths, and those of each route under its name."""
    process: dict[str, Entry] = {}
    routes: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        head, _, tail = entry.key.removeprefix("proxy.").partition(".")
        name, _, path = tail.partition(".")
        if head != "routes":
            process[entry.key.removeprefix("proxy.")] = entry
        elif not path and not is_empty(entry):
            faults.append(entry.fault("is not a setting but a group of them: write proxy.routes.NAME.KEY"))
        elif tail:
            routes.setdefault(name, {})[path] = entry
    return process, routes


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None


def _process(entries: dict[str, Entry], faults: list[str]) -> ProcessSettings:
    values = Section("proxy.", PROCESS_KEYS, entries, faults).values()
    del values["file"]
    faults.extend(status_faults(entries))
    faults.extend(front_faults(entries))
    return ProcessSettings(**values, own_cookies_given="own_cookies" in entries)


def _routes(routes: dict[str, dict[str, Entry]], faults: list[str], judge: Judge) -> Iterator[RouteSettings]:
    for name, entries in routes.items():
        home, origin = f"proxy.routes.{name}", next(iter(entries.values())).origin
        if _is_name(name):
            yield _route(name, Section(f"{home}.", ROUTE_KEYS, entries, faults), origin, judge)
        else:
            faults.append(Entry(home, name, origin).fault(_NAME_RULE))


def _route(name: str, section: Section, origin: str, judge: Judge) -> RouteSettings:
    """One route; where anything about it was reported, its values are of no use."""
    values = section.values()
    section.faults.extend(place_faults(section, origin))
    section.faults.extend(access_faults(section, values))
    section.faults.extend(pattern_faults(section, values))
    section.faults.extend(contradictions(section, values))
    section.faults.extend(tls_faults(section, values))
    section.faults.extend(origin_faults(section, values))
    section.faults.extend(replace_faults(section))
    if values["host"] is not None and values["pattern"] is None:
        values["prefix"] = values["prefix"] or "/"
    route = RouteSettings(**values, name=name)
    known = {fault.partition(" = ")[0] for fault in section.faults}
    found = [(path, problem) for path, problem in judge(route) if section.good(path)]
    section.faults.extend(section.entries[path].fault(text) for path, text in found if section.home + path not in known)
    return route
