"""From ini, YAML or keyword arguments to frozen settings, with every mistake named at once.

`settings_sources` lays out what was written as one flat list of entries, `settings_table` says which keys there
are, `settings_values` and `settings_urls` read single values. Here they come together, and what several keys must
agree on is checked. All of it runs while the application is configured, `fetch_settings` in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pyramid.exceptions import ConfigurationError

from pyramid_threaded_proxy.exceptions import ProxyError
from pyramid_threaded_proxy.settings.sources import Entry, YamlFile, ini_entries, mapping_entries
from pyramid_threaded_proxy.settings.table import (
    PROCESS_KEYS,
    ROUTE_KEYS,
    Key,
    ProcessSettings,
    RouteSettings,
    Settings,
    reference_markdown,
)
from pyramid_threaded_proxy.settings.urls import check_upstream, pattern_names
from pyramid_threaded_proxy.settings.values import (
    TEMPLATE_NAMES,
    ValueFault,
    check_placeholders,
    nearest,
    placeholders,
)
from pyramid_threaded_proxy.settings.values import path as file_name

__all__ = [
    "ProcessSettings",
    "RouteSettings",
    "Settings",
    "SettingsError",
    "fetch_settings",
    "load_settings",
    "reference_markdown",
    "route_from_keywords",
]

_FETCH_KEYS = tuple(key for key in ROUTE_KEYS if key.fetch)
_DEFAULTS = {key: key.unread() for key in (*PROCESS_KEYS, *ROUTE_KEYS)}
_FETCH_DEFAULTS = {key.attribute: _DEFAULTS[key] for key in ROUTE_KEYS} | {"upstream": ()}

_BY_ATTRIBUTE = {key.attribute: key for key in ROUTE_KEYS}
_LOCAL = frozenset(key.path for key in ROUTE_KEYS if not key.fetch)
_FIELD = re.compile(r"(?<![^.])(?:request|response)\.(?:set|add|default)\..*", re.DOTALL)
_NAME_RULE = "the name of a route is letters, digits, _ and -"


class SettingsError(ProxyError, ConfigurationError):
    """Settings are wrong; `faults` holds one line for each mistake."""

    def __init__(self, faults: Iterable[str]) -> None:
        # A fault stays on its line whatever key, value or foreign error it quotes.
        self.faults = tuple("".join(c if c.isprintable() else ascii(c)[1:-1] for c in fault) for fault in faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


def load_settings(ini: Mapping[str, object], resolve_path: Callable[[str], str]) -> Settings:
    """The settings under ``proxy.`` in Pyramid's settings, and those of the YAML file that ``proxy.file`` names.

    `resolve_path` turns that name, a path or an asset spec, into the path of a file. Raises `SettingsError`.
    """
    faults: list[str] = []
    written = _merged(ini_entries(ini), faults)
    entries = {**_merged(_yaml_entries(written.get("proxy.file"), resolve_path, faults), faults), **written}
    process, routes = _divided(entries.values(), faults)
    settings = Settings(_process(process, faults), tuple(_routes(routes, faults)))
    if faults:
        raise SettingsError(faults)
    return settings


def route_from_keywords(name: str, keywords: Mapping[str, object], origin: str = "add_proxy_route()") -> RouteSettings:
    """The settings of a route declared in Python, its keys written with ``_`` for ``.``. Raises `SettingsError`."""
    faults: list[str] = []
    if not isinstance(name, str) or not _is_name(name):
        raise SettingsError([Entry("NAME", name, origin).fault(_NAME_RULE)])
    home = f"proxy.routes.{name}."
    section = _Section(home, ROUTE_KEYS, _keyword_entries(home, keywords, origin, faults), faults, in_python=True)
    route = _route(name, section, origin)
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
    section = _Section("", _FETCH_KEYS, _keyword_entries("", keywords, origin, faults), faults, in_python=True)
    values = section.values()
    faults.extend(_template_faults(section, TEMPLATE_NAMES))
    faults.extend(_contradictions(section, values))
    faults.extend(_tls_faults(section, values))
    if faults:
        raise SettingsError(faults)
    return RouteSettings(**_FETCH_DEFAULTS | values, name=name)


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
        elif not path and not _is_empty(entry):
            faults.append(entry.fault("is not a setting but a group of them: write proxy.routes.NAME.KEY"))
        elif tail:
            routes.setdefault(name, {})[path] = entry
    return process, routes


def _is_empty(entry: Entry) -> bool:
    return isinstance(entry.value, Mapping) and not entry.value


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None


class _Section:
    """The entries of one mapping, read by the rows of the table that belong to it."""

    def __init__(
        self, home: str, keys: tuple[Key, ...], entries: dict[str, Entry], faults: list[str], *, in_python: bool = False
    ) -> None:
        self.home = home
        self.keys = {key.path: key for key in keys}
        self.entries = entries
        self.faults = faults
        self.in_python = in_python
        #: Paths of entries that were reported.
        self.bad: set[str] = set()

    def values(self) -> dict[str, Any]:
        """Every key's value under its attribute; what is faulty is reported and stands at its default."""
        values = {key.attribute: _DEFAULTS[key] for key in self.keys.values()}
        for path, entry in self.entries.items():
            key = self._row(path)
            try:
                if key is None:
                    self._check_empty(path, entry)
                elif key.names is None:
                    values[key.attribute] = key.reader(entry.value)
                else:
                    values[key.attribute] += self._field(key, path, entry)
            except ValueFault as fault:
                self.bad.add(path)
                # A group's allowed values say nothing about the names in it.
                self.faults.append(entry.fault(str(fault), "" if key is None or key.names else key.allowed))
        return values

    def good(self, path: str) -> bool:
        """Whether this was given and can be read."""
        return path in self.entries and path not in self.bad

    def _row(self, path: str) -> Key | None:
        if path in self.keys:
            return self.keys[path]
        key = self.keys.get(".".join(path.split(".", 2)[:2]))
        return key if key and key.names else None

    def _field(self, key: Key, path: str, entry: Entry) -> tuple[tuple[str, str], ...]:
        if path == key.path:
            if _is_empty(entry):
                return ()
            raise ValueFault("must be a mapping from names of fields to values")
        assert key.names is not None
        return ((key.names(path.removeprefix(f"{key.path}.")), key.reader(entry.value)),)

    def _check_empty(self, path: str, entry: Entry) -> None:
        """Refuses an entry that has no row, unless it is a group without anything in it."""
        row = next((key for name, key in self.keys.items() if name.startswith(f"{path}.")), None)
        if row and not _is_empty(entry):
            example = row.attribute if self.in_python else self.home + row.path
            raise ValueFault(f"is a group of settings, such as {example}")
        if not row and not (_is_empty(entry) and not path):
            raise ValueFault(self._unknown(path))

    def _unknown(self, path: str) -> str:
        if any(path.startswith(f"{key}.") for key in self.keys):
            return "is unknown: what stands before its last dot takes one value, not a mapping"
        belongs = "belongs to a declared route and is unknown here" if path in _LOCAL else "is unknown"
        known = self.keys.values()
        if self.in_python:
            return belongs + nearest(path, [key.attribute for key in known])
        # What follows the group is the field's name and is kept as it is.
        field = path.split(".", 2)[2] if path.count(".") >= 2 else "FIELD"
        names = [f"{self.home}{key.path}{f'.{field}' if key.names else ''}" for key in known]
        if self.home == "proxy." and "." in path:
            names.append(f"proxy.routes.{path.partition('.')[2]}")
        return belongs + nearest(self.home + path, names)


def _process(entries: dict[str, Entry], faults: list[str]) -> ProcessSettings:
    values = _Section("proxy.", PROCESS_KEYS, entries, faults).values()
    del values["file"]
    return ProcessSettings(**values, own_cookies_given="own_cookies" in entries)


def _routes(routes: dict[str, dict[str, Entry]], faults: list[str]) -> Iterator[RouteSettings]:
    for name, entries in routes.items():
        home, origin = f"proxy.routes.{name}", next(iter(entries.values())).origin
        if _is_name(name):
            yield _route(name, _Section(f"{home}.", ROUTE_KEYS, entries, faults), origin)
        else:
            faults.append(Entry(home, name, origin).fault(_NAME_RULE))


def _route(name: str, section: _Section, origin: str) -> RouteSettings:
    """One route; where anything about it was reported, its values are of no use."""
    values = section.values()
    section.faults.extend(_place_faults(section, origin))
    section.faults.extend(_access_faults(section, values))
    section.faults.extend(_pattern_faults(section, values))
    section.faults.extend(_contradictions(section, values))
    section.faults.extend(_tls_faults(section, values))
    return RouteSettings(**values, name=name)


# What several keys must agree on


def _place_faults(section: _Section, origin: str) -> Iterator[str]:
    if "upstream" not in section.entries:
        yield f"{section.home}upstream ({origin}): is missing; allowed: {section.keys['upstream'].allowed}"
    prefix, pattern = section.entries.get("prefix"), section.entries.get("pattern")
    if prefix and pattern:
        yield prefix.fault(f"stands beside {pattern.key} ({pattern.origin}): give one of them")
    if not prefix and not pattern:
        yield f"{section.home}prefix ({origin}): is missing: give prefix or pattern"


def _tls_faults(section: _Section, values: dict[str, Any]) -> Iterator[str]:
    if values["tls_key_file"] is not None and values["tls_cert_file"] is None and "tls.cert_file" not in section.bad:
        yield section.entries["tls.key_file"].fault("stands without tls.cert_file, whose key it would be")
    if not values["tls_verify"] and values["tls_ca_file"] is not None:
        yield section.entries["tls.ca_file"].fault("is at odds with tls.verify = false: nothing is verified")


def _access_faults(section: _Section, values: dict[str, Any]) -> Iterator[str]:
    permission, public = section.entries.get("permission"), section.entries.get("public")
    if permission and public and values["public"]:
        yield public.fault(f"stands beside {permission.key} ({permission.origin}): give one of them")


def _pattern_faults(section: _Section, values: dict[str, Any]) -> Iterator[str]:
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
    yield from _template_faults(section, TEMPLATE_NAMES | (names or frozenset()))


def _template_faults(section: _Section, known: frozenset[str]) -> Iterator[str]:
    for path, entry in section.entries.items():
        if path.startswith(("request.set.", "request.add.")) and section.good(path):
            try:
                check_placeholders(placeholders(str(entry.value)), known)
            except ValueFault as fault:
                yield entry.fault(str(fault))


def _contradictions(section: _Section, values: dict[str, Any]) -> Iterator[str]:
    """Fields that are removed and put there, or have a default that another override leaves no room for."""
    yield from _clashes(section, "request.remove", values["request_remove"], values, ("request.set",))
    others = ("response.set", "response.default")
    yield from _clashes(section, "response.remove", values["response_remove"], values, others)
    for name, _ in values["response_default"]:
        yield from _clashes(section, f"response.default.{name}", (name,), values, ("response.set", "response.add"))


def _clashes(
    section: _Section, path: str, names: Iterable[str], values: dict[str, Any], others: tuple[str, ...]
) -> Iterator[str]:
    """Faults of the entry at `path`, which is about `names`, where one of the `others` puts such a field."""
    for other in others:
        put = {name.lower() for name, _ in values[other.replace(".", "_")]}
        for name in names:
            if name.lower() in put:
                yield section.entries[path].fault(f"is at odds with {section.home}{other}.{name}: give one of them")
