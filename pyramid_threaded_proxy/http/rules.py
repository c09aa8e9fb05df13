"""Field overrides of a route: compiled and checked at start-up, applied to each exchange.

The order is remove, set, add, default. `ValueRefused` names the field at fault, when compiling and when a template's
value can't be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.names import (
    CONNECTION_FIELDS,
    NOT_IN_A_VALUE,
    TOKEN,
    Fields,
    NameTable,
)

Pairs = Iterable[tuple[str, str]]

_PART = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|([{}])")


class _Template:
    """One field with a value such as ``user {userid}``, split into parts once."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._parts = _template_parts(name, text.strip(" \t"))
        self.placeholders = frozenset(self._parts[1::2])
        for literal in self._parts[::2]:
            _wire_value(name, literal)

    def value(self, values: Mapping[str, str | None]) -> str | None:
        """The value on the wire; None where one of its placeholders has none."""
        parts = self._parts.copy()
        for index in range(1, len(parts), 2):
            value = values[parts[index]]
            if value is None:
                return None
            parts[index] = value
        text = _wire_value(self.name, "".join(parts))
        # A recipient strips it, and so would see the name of another user (RFC 9110 5.5).
        if text.strip(" \t") != text:
            raise ValueRefused(f"the value of {self.name} begins or ends with white space: {text!r}")
        return text


class RequestRules:
    """The overrides of the fields sent upstream; values are templates."""

    def __init__(self, setting: list[_Template], adding: list[_Template], removed: frozenset[str]) -> None:
        self._setting = setting
        self._adding = adding
        self.names = frozenset(template.name.lower() for template in setting + adding)
        self.placeholders = frozenset(name for template in setting + adding for name in template.placeholders)
        gone = removed | {template.name.lower() for template in setting}
        self._gone = NameTable(lambda name: name.lower() in gone) if gone else None

    @classmethod
    def compile(cls, set: Pairs, add: Pairs, remove: Iterable[str]) -> RequestRules:
        """Check and compile. `names` are then those that are set or added (lower case): the client's own are deleted
        before; `placeholders` are the names that the templates use. Raises `ValueRefused`.
        """
        setting, adding, removing = list(set), list(add), list(remove)
        _check_names([*setting, *adding], removing, refused=CONNECTION_FIELDS | {"host"})
        _refuse_repeated("set", setting)
        _refuse_shared("set", setting, "remove", removing)
        return cls(
            [_Template(*pair) for pair in setting],
            [_Template(*pair) for pair in adding],
            frozenset(name.lower() for name in removing),
        )

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self._gone is not None or self._setting or self._adding)

    def apply(self, fields: Fields, values: Mapping[str, str | None]) -> Fields:
        """The fields after the overrides. A template that uses a value of None leaves its field out.

        Raises `ValueRefused` for a value with a control character, or with white space at an end.
        """
        if self._gone is not None:
            fields = _without(fields, self._gone)
        made = [(item.name, value) for item in self._setting if (value := item.value(values)) is not None]
        made += [(item.name, value) for item in self._adding if (value := item.value(values)) is not None]
        return fields + made


class ResponseRules:
    """The overrides of the fields sent to the client; values are literal text."""

    def __init__(self, made: Fields, default: Fields, gone: frozenset[str]) -> None:
        self._made = made
        self._default = [(name.lower(), (name, value)) for name, value in default]
        self._gone = NameTable(lambda name: name.lower() in gone) if gone else None

    @classmethod
    def compile(cls, set: Pairs, add: Pairs, default: Pairs, remove: Iterable[str]) -> ResponseRules:
        """Check and compile. Raises `ValueRefused` for a contradiction, such as a default for what is set."""
        setting, adding, defaults, removing = list(set), list(add), list(default), list(remove)
        _check_names([*setting, *adding, *defaults], removing, refused=CONNECTION_FIELDS)
        for kind, pairs in (("set", setting), ("default", defaults)):
            _refuse_repeated(kind, pairs)
            _refuse_shared(kind, pairs, "remove", removing)
        _refuse_shared("default", defaults, "set", [name for name, _ in setting])
        _refuse_shared("default", defaults, "add", [name for name, _ in adding])
        gone = frozenset(name.lower() for name in removing) | {name.lower() for name, _ in setting}
        return cls(_literal(setting + adding), _literal(defaults), gone)

    def apply(self, fields: Fields) -> Fields:
        """The fields after the overrides."""
        if self._gone is not None:
            fields = _without(fields, self._gone)
        if self._made:
            fields = fields + self._made
        if self._default:
            present = {name.lower() for name, _ in fields}
            fields = fields + [field for lower, field in self._default if lower not in present]
        return fields


def _without(fields: Fields, gone: NameTable[bool]) -> Fields:
    return [field for field in fields if not gone[field[0]]]


def _template_parts(name: str, text: str) -> list[str]:
    """Literal text at even places, names of placeholders at odd ones."""
    parts, end = [""], 0
    for match in _PART.finditer(text):
        if match[2]:
            raise ValueRefused(f"the value of {name} holds a single brace: {text!r}; write {{{{ or }}}} for a brace")
        parts[-1] += text[end : match.start()]
        if match[1]:
            parts += [match[1], ""]
        else:
            parts[-1] += match[0][0]
        end = match.end()
    parts[-1] += text[end:]
    return parts


def _wire_value(name: str, value: str) -> str:
    """The UTF-8 bytes of a value, held in text (latin-1)."""
    text = value
    if not value.isascii():
        try:
            text = value.encode("utf-8").decode("latin-1")
        except UnicodeEncodeError:
            raise ValueRefused(f"the value of {name} can't be written in UTF-8: {value!r}") from None
    if NOT_IN_A_VALUE.search(text):
        raise ValueRefused(f"the value of {name} holds a control character: {value!r}")
    return text


def _literal(pairs: Fields) -> Fields:
    return [(name, _wire_value(name, value).strip(" \t")) for name, value in pairs]


def _check_names(pairs: Fields, removed: list[str], refused: frozenset[str]) -> None:
    for name in [*(name for name, _ in pairs), *removed]:
        if not TOKEN.fullmatch(name):
            raise ValueRefused(f"{name!r} is not a field name (RFC 9110 5.1)")
        if name.lower() in refused:
            raise ValueRefused(f"{name} can't be overridden: framing, routing and hop-by-hop fields are made anew")


def _refuse_repeated(kind: str, pairs: Fields) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name.lower() in seen:
            raise ValueRefused(f"{kind} names {name} more than once")
        seen.add(name.lower())


def _refuse_shared(kind: str, pairs: Fields, other: str, names: list[str]) -> None:
    shared = {name.lower() for name in names}
    for name, _ in pairs:
        if name.lower() in shared:
            raise ValueRefused(f"{name} is in both {kind} and {other}: one of them has no effect")
