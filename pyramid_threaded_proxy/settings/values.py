"""Readers of single settings: each takes what ini, YAML or Python gave, and returns the value or raises `ValueFault`.

A reader judges one value alone; what several keys must agree on is judged in `settings`.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.settings import falsey, truthy

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, TOKEN
from pyramid_threaded_proxy.http.template import template_parts
from pyramid_threaded_proxy.settings.allowlist import check_entry

Reader = Callable[[object], Any]

#: What a value of `request.set` and `request.add` may name on every route.
TEMPLATE_NAMES = frozenset({"userid", "client_addr", "host", "scheme", "route", "request_id", "mount"})

#: Longest duration, in seconds: ten days, well below what epoll takes (2**31 ms).
MAX_SECONDS = 864_000
#: Largest size, in bytes: 1 PiB.
MAX_SIZE = 2**50

ONLY_SET_FIELDS = frozenset({"clear-site-data", "service-worker-allowed"})

# Unpaired surrogates can't be written as UTF-8, so they count as controls.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_CONTROL_NAMES = {"\r": "CR", "\n": "LF", "\0": "NUL"}


class ValueFault(ValueError):
    """A value is not what its key takes; the text says what is wrong with it and how to put it right."""


@dataclass(frozen=True, slots=True, repr=False)
class YamlScalar:
    """A plain YAML scalar that YAML did not read as text.

    `text` is what stands in the file, `kind` what YAML took it for. `value` is None where the two are too far
    apart to be used at all (``010``, ``1:30``, a date, nothing).
    """

    text: str
    value: bool | int | float | None
    kind: str

    def __repr__(self) -> str:
        return repr(self.text)

    def misread(self) -> ValueFault:
        """The fault that says so."""
        return ValueFault(f"YAML read {self.text!r} as {self.kind}: quote it")


def plain(value: object) -> object:
    """The value without its YAML wrapping."""
    if not isinstance(value, YamlScalar):
        return value
    if value.value is None:
        raise value.misread()
    return value.value


def nearest(word: str, known: Iterable[str], home: str = "") -> str:
    """``; did you mean …?`` with the known name that is most like `word`, or nothing; `home` stands before them all."""
    found = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {home}{found[0]}?" if found else ""


# Text, words and choices


def text(value: object, *, tab: bool = False) -> str:
    """Text of one line without control characters; `tab` lets HTAB in."""
    if isinstance(value, YamlScalar):
        raise value.misread()
    if not isinstance(value, str):
        raise ValueFault(f"must be text, not {type(value).__name__}")
    for found in _CONTROL.finditer(value):
        if not (tab and found[0] == "\t"):
            raise ValueFault(f"holds the character {_CONTROL_NAMES.get(found[0], f'U+{ord(found[0]):04X}')}")
    return value


def path(value: object) -> str:
    """A file's path or an asset specification."""
    name = text(value)
    if not name:
        raise ValueFault("is empty")
    return name


def words(value: object) -> list[str]:
    """A list of texts, or one text that is split at white space, line ends included."""
    if isinstance(value, str):
        return [text(word) for word in re.split(r"[ \t\r\n]+", value) if word]
    if isinstance(value, (list, tuple)):
        return [text(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(text(item) for item in value)
    return [text(value)]


def choice(*names: str) -> Reader:
    """One of these words."""

    def read(value: object) -> str:
        word = text(value)
        if word not in names:
            raise ValueFault("is none of them")
        return word

    return read


def list_of(item: Callable[[str], str]) -> Reader:
    """A tuple of words, each read by `item`; a word that is repeated counts once."""

    def read(value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item(word) for word in words(value)))

    return read


def boolean(value: object) -> bool:
    """A boolean, or one of the words that Pyramid's ``asbool`` knows; unlike there, any other word is a fault."""
    found = plain(value)
    if isinstance(found, bool):
        return found
    if isinstance(found, str) and found.lower() in truthy | falsey:
        return found.lower() in truthy
    raise ValueFault("is not a boolean")


# Numbers


def integer(minimum: int, maximum: int) -> Reader:
    """A whole number within these bounds, both included."""

    def read(value: object) -> int:
        number = plain(value)
        if isinstance(number, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", number):
            number = int(number)
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueFault("is not a whole number")
        if not minimum <= number <= maximum:
            raise ValueFault("is too small" if number < minimum else "is too large")
        return number

    return read


_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600}


def duration(value: object) -> float:
    """Seconds: a number above 0, or text with one of the units ``ms``, ``s``, ``m``, ``h``."""
    number = plain(value)
    if isinstance(number, str):
        number = _seconds(number)
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise ValueFault("is not a duration")
    if not 0 < number <= MAX_SECONDS:
        raise ValueFault("must be above 0 and at most 10 days")
    return float(number)


def _seconds(written: str) -> float:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)?", written)
    if match is None:
        raise ValueFault("is not a duration")
    amount, unit = float(match[1]), match[2]
    return amount / 1000 if unit == "ms" else amount * _SECONDS[unit]


_BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size(minimum: int) -> Reader:
    """Bytes: a whole number of at least `minimum`, or text with one of the units ``KiB``, ``MiB``, ``GiB``."""

    def read(value: object) -> int:
        number = plain(value)
        if isinstance(number, str):
            number = _size(number)
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueFault("is not a size")
        if not minimum <= number <= MAX_SIZE:
            raise ValueFault(f"must be {minimum} to {MAX_SIZE} bytes")
        return number

    return read


def _size(written: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([A-Za-z]*)", written)
    if match is None:
        raise ValueFault("is not a size")
    amount, unit = match.groups()
    if unit in _BYTES:
        return int(amount) * _BYTES[unit]
    if unit[0].upper() in "KMG" and unit[1:].lower() in ("", "b", "ib"):
        clear = f"{amount}{unit[0].upper()}iB"
        raise ValueFault(f"has a unit that may mean 1000 or 1024: write {clear}, or the number of bytes")
    raise ValueFault(f"has the unknown unit {unit!r}")


def rewriting(urls: bool) -> Reader:
    """A boolean, or rules ``FROM -> TO``: pairs of paths, or with `urls` also of URLs. None stands for false."""

    def read(value: object) -> tuple[tuple[str, str], ...] | None:
        if isinstance(plain(value), bool) or (isinstance(value, str) and "->" not in value):
            return () if boolean(value) else None
        found = " ".join(words(value)).split()
        rules = tuple(zip(found[::3], found[2::3], strict=False))
        if not found or len(found) % 3 or set(found[1::3]) != {"->"}:
            raise ValueFault("is neither true, false nor rules such as /app/ -> /tool/")
        for side in itertools.chain(*rules):
            if not re.fullmatch(r"/(?!/)[^\\]*" + (r"|https?://[^/?#\\]+(/[^\\]*)?" if urls else ""), side):
                raise ValueFault(f"{side!r} is no absolute path{' or URL' if urls else ''}")
            if not side.isascii() or not side.isprintable() or ";" in side:
                raise ValueFault(f"{side!r} holds a character that is escaped in URLs, or a semicolon")
        return rules

    return read


# Names


def token(word: str) -> str:
    """A token of RFC 9110 5.6.2."""
    if not TOKEN.fullmatch(word):
        raise ValueFault(f"{word!r} is not a token of RFC 9110 (letters, digits and !#$%&'*+-.^_`|~)")
    return word


def method(word: str) -> str:
    """A method's name; they are case-sensitive (RFC 9110 9.1)."""
    if token(word) != word.upper():
        raise ValueFault(f"{word!r} is not in upper case: write {word.upper()}")
    if word in ("CONNECT", "TRACE"):
        raise ValueFault(f"{word} is never proxied")
    return word


def methods(value: object) -> tuple[str, ...]:
    """At least one method."""
    found: tuple[str, ...] = list_of(method)(value)
    if not found:
        raise ValueFault("is empty: no request could pass")
    return found


def cookie_names(value: object) -> frozenset[str]:
    """Names of cookies (RFC 6265 4.1.1)."""
    return frozenset(list_of(token)(value))


def cookies_let_up(value: object) -> frozenset[str] | None:
    """Names of cookies, or None for ``*``."""
    names = words(value)
    if names == ["*"]:
        return None
    if "*" in names:
        raise ValueFault("names cookies beside *")
    return cookie_names(names)


def parameter(word: str) -> str:
    """The name of a query parameter, unescaped."""
    if not word or re.search(r"[\s&;=\[\]%+#]", word):
        raise ValueFault(f"{word!r} is not a parameter's name, unescaped")
    return word


def parameters(value: object) -> frozenset[str]:
    """Names of query parameters."""
    return frozenset(list_of(parameter)(value))


def host(value: object) -> str:
    """A host without a port, or ``*.`` and a domain; in lower case."""
    name = text(value).lower()
    if not re.fullmatch(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]", name):
        raise ValueFault("is not a host's name or address, without a port")
    return name


def duration_or_off(value: object) -> float | None:
    """A duration, or None for ``off``."""
    return None if plain(value) == "off" or plain(value) is False else duration(value)


def protocol(word: str) -> str:
    """A protocol's name for Upgrade, in lower case (RFC 9110 7.8); HTTP itself is never switched to."""
    name = word.lower()
    if not re.fullmatch(rf"{TOKEN.pattern}(/{TOKEN.pattern})?", name):
        raise ValueFault(f"{word!r} is not a protocol's name")
    if name.partition("/")[0] in ("h2", "h2c", "http", "tls"):
        raise ValueFault(f"{word!r} is never switched to: requests in it would pass unseen")
    return name


def origin(word: str) -> str:
    """An origin as browsers send it, or ``*``."""
    if word != "*" and not re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", word):
        raise ValueFault(f"{word!r} is neither an origin such as https://www.example.com nor *")
    return word.lower()


def fetch_target(word: str) -> str:
    """An origin, a host (``*.internal`` for all below it), an address or a network."""
    try:
        return check_entry(word)
    except ValueError as error:
        raise ValueFault(str(error)) from None


def via(value: object) -> str:
    """Empty, a pseudonym or host[:port] (RFC 9110 7.6.3)."""
    name = text(value)
    if name and not re.fullmatch(rf"{TOKEN.pattern}(:[0-9]{{1,5}})?", name):
        raise ValueFault("is neither a token nor host:port")
    return name


def request_id_field(value: object) -> str:
    """Empty, or the name of a field that may be made by us both ways."""
    name = text(value)
    if not name:
        return name
    response_field(name)
    return request_field(name)


def server_name(value: object) -> str:
    """A host name or address as certificates have them."""
    name = text(value)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?", name):
        raise ValueFault("is not a host name")
    return name


def permission(value: object) -> str:
    """A permission's name; what would let everybody in is refused."""
    name = text(value)
    if not name.strip():
        raise ValueFault("is empty: name a permission, or set `public` to true if none is wanted")
    if name == NO_PERMISSION_REQUIRED:
        raise ValueFault("names no permission: set `public` to true if none is wanted")
    return name


def dotted(value: object) -> Any:
    """A callable, or a dotted name that Pyramid resolves later."""
    if callable(value):
        return value
    name = text(value)
    if not re.fullmatch(r"\.*[^\W\d]\w*(\.\w+)*(:\w+(\.\w+)*)?", name):
        raise ValueFault("is not a dotted name")
    return name


# Fields


def request_field(word: str) -> str:
    """A name for `request.set`, `request.add` and `request.remove`."""
    name = _field(word)
    if name.lower() == "host":
        raise ValueFault("Host can't be overridden: see `preserve_host`")
    if "_" in name:
        hyphened = name.replace("_", "-")
        raise ValueFault(f"{name!r} has an underscore, which upstreams take for a hyphen: write {hyphened}")
    return name


def request_fields(value: object) -> frozenset[str]:
    """Names of the client's fields, in lower case."""
    return frozenset(name.lower() for name in list_of(request_field)(value))


def response_fields(value: object) -> frozenset[str]:
    """Names of the upstream's fields, in lower case."""
    return frozenset(name.lower() for name in list_of(response_field)(value))


def response_field(word: str) -> str:
    """A name for `response.set` and `response.remove`."""
    return _field(word)


def added_response_field(word: str) -> str:
    """A name for `response.add` and `response.default`."""
    name = _field(word)
    if name.lower() in ONLY_SET_FIELDS:
        raise ValueFault(f"{name} can only be put by `response.set`")
    return name


def _field(word: str) -> str:
    name = token(word)
    if name.lower() in CONNECTION_FIELDS:
        raise ValueFault(f"{name} belongs to one connection or frames the message: it can't be overridden")
    return name


def field_value(value: object) -> str:
    """A field's value (RFC 9110 5.5): no controls but HTAB, no white space around it."""
    found = text(value, tab=True)
    if found != found.strip(" \t"):
        raise ValueFault("begins or ends with white space")
    return found


def template(value: object) -> str:
    """A field's value with ``{placeholders}``; which of them are known depends on the route."""
    found = field_value(value)
    placeholders(found)
    return found


def placeholders(template: str) -> list[str]:
    """The names between braces, in order; ``{{`` and ``}}`` stand for the braces themselves."""
    try:
        return template_parts(template)[1::2]
    except ValueRefused as error:
        raise ValueFault(str(error)) from None


def check_placeholders(names: Iterable[str], known: frozenset[str]) -> None:
    """Refuses the first name that is not known."""
    for name in names:
        if name not in known:
            listed = ", ".join(f"{{{other}}}" for other in sorted(known)) or "none"
            raise ValueFault(f"has the unknown placeholder {{{name}}}{nearest(name, known)}; known here: {listed}")
