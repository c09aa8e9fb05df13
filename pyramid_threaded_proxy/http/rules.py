"""Field overrides of a route: compiled at start-up, applied to each exchange.

The order is remove, set, add, default. Their names, and what is at odds in them, are judged with the settings that they
come from (`settings/`). `ValueRefused` names the field whose value can't be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.names import (
    NOT_IN_A_VALUE,
    Fields,
    NameTable,
)
from pyramid_threaded_proxy.http.template import template_parts

Pairs = Iterable[tuple[str, str]]


class _Template:
    """One field with a value such as ``user {userid}``, split into parts once."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._parts = template_parts(text.strip(" \t"))
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
        """Compile. `names` are then those that are set or added (lower case): the client's own are deleted before;
        `placeholders` are the names that the templates use. Raises `ValueRefused` for a text that is no template.
        """
        return cls(
            [_Template(*pair) for pair in set],
            [_Template(*pair) for pair in add],
            frozenset(name.lower() for name in remove),
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
        """Compile. Raises `ValueRefused` for a value that can't be written."""
        setting = list(set)
        gone = frozenset(name.lower() for name in [*remove, *(name for name, _ in setting)])
        return cls(_literal([*setting, *add]), _literal(default), gone)

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


def _literal(pairs: Pairs) -> Fields:
    return [(name, _wire_value(name, value).strip(" \t")) for name, value in pairs]
