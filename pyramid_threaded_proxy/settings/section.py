"""One mapping of settings, read by the rows of the table that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyramid_threaded_proxy.settings.keys import Key
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.sources import Entry
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS
from pyramid_threaded_proxy.settings.values import (
    ValueFault,
    nearest,
)

DEFAULTS = {key: key.unread() for key in (*PROCESS_KEYS, *ROUTE_KEYS)}
_LOCAL = frozenset(key.path for key in ROUTE_KEYS if not key.fetch)


#: What other programs call a setting.
_USUAL = {"timeout": "read_timeout"}


def is_empty(entry: Entry) -> bool:
    return isinstance(entry.value, Mapping) and not entry.value


class Section:
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
        values = {key.attribute: DEFAULTS[key] for key in self.keys.values()}
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
            if is_empty(entry):
                return ()
            raise ValueFault("must be a mapping from names of fields to values")
        assert key.names is not None
        return ((key.names(path.removeprefix(f"{key.path}.")), key.reader(entry.value)),)

    def _check_empty(self, path: str, entry: Entry) -> None:
        """Refuses an entry that has no row, unless it is a group without anything in it."""
        row = next((key for name, key in self.keys.items() if name.startswith(f"{path}.")), None)
        if row and not is_empty(entry):
            example = row.attribute if self.in_python else self.home + row.path
            raise ValueFault(f"is a group of settings, such as {example}")
        if not row and not (is_empty(entry) and not path):
            raise ValueFault(self._unknown(path))

    def _unknown(self, path: str) -> str:
        if any(path.startswith(f"{key}.") for key in self.keys):
            return "is unknown: what stands before its last dot takes one value, not a mapping"
        belongs = "belongs to a declared route and is unknown here" if path in _LOCAL else "is unknown"
        known = self.keys.values()
        if self.in_python:
            return belongs + nearest(_USUAL.get(path, path), [key.attribute for key in known])
        # What follows the group is the field's name and is kept as it is.
        field = path.split(".", 2)[2] if path.count(".") >= 2 else "FIELD"
        names = [f"{key.path}{f'.{field}' if key.names else ''}" for key in known]
        if self.home == "proxy." and "." in path:
            names.append(f"routes.{path.partition('.')[2]}")
        group = f"{path.partition('.')[0]}."
        if "." in path and any(name.startswith(group) for name in names):
            names = [name for name in names if name.startswith(group)]
        # Compared without what all names begin with: with it each of them would be like any other.
        return belongs + nearest(_USUAL.get(path, path), names, self.home)
