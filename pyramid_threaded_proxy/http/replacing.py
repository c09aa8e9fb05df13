"""Texts of an answer's body replaced by others, as it comes: what stands across a border of two pieces too.

However the body is cut, what comes out is what `bytes.replace` would make of the whole.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

_MEDIA_TYPE = re.compile(r"[ \t]*([^;, \t]+)")
_CHARSET = re.compile(r""";[ \t]*charset[ \t]*=[ \t]*["']?([^;"' \t]+)""", re.IGNORECASE)
_TEXTS = re.compile(
    r"text/.+|.+/(json|xml|javascript|ecmascript|xhtml|ndjson|x-javascript)|.+\+(json|xml|yaml)|.+/yaml"
)
#: Stands for what says nothing of its charset (RFC 8259 8.1; HTML and CSS say it inside, and are ASCII so far).
_USUAL_CHARSET = "utf-8"


class Replacer:
    """Replaces `old` by `new` in one body; `old` is not empty."""

    __slots__ = ("_held", "_new", "_old")

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old = old
        self._new = new
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What is settled by now; an end that may be the beginning of `old` is held back."""
        old = self._old
        *settled, last = (self._held + data).split(old)
        kept = self._beginning_at_end(last)
        self._held = last[len(last) - kept :]
        settled.append(last[: len(last) - kept])
        return self._new.join(settled)

    def end(self) -> bytes:
        """What was held back: nothing follows it."""
        held, self._held = self._held, b""
        return held

    def _beginning_at_end(self, data: bytes) -> int:
        """How many of the last bytes are a beginning of `old`: the most that could be one."""
        for length in range(min(len(self._old) - 1, len(data)), 0, -1):
            if data.endswith(self._old[:length]):
                return length
        return 0


class Replacing:
    """Several replacements in one body, one after the other."""

    def __init__(self, replacers: Iterable[Replacer]) -> None:
        self._replacers = tuple(replacers)

    def feed(self, data: bytes) -> bytes:
        """What is settled by now."""
        for replacer in self._replacers:
            data = replacer.feed(data)
        return data

    def end(self) -> bytes:
        """What was held back."""
        data = b""
        for replacer in self._replacers:
            data = replacer.feed(data) + replacer.end()
        return data


def replacing_in(content_type: str, texts: Iterable[tuple[str, str]]) -> Replacing | None:
    """What replaces `texts` in a body of this type; None where it is no text, or can hold none of them.

    They are written in the charset that the type names. What can't be written in it is not replaced.
    """
    found = _MEDIA_TYPE.match(content_type)
    if found is None or not _TEXTS.fullmatch(found[1].lower()):
        return None
    charset = _CHARSET.search(content_type)
    replacers = list(_replacers(texts, charset[1] if charset else _USUAL_CHARSET))
    return Replacing(replacers) if replacers else None


def _replacers(texts: Iterable[tuple[str, str]], charset: str) -> Iterable[Replacer]:
    try:
        codec = codecs.lookup(charset)
        if codec.encode("<")[0] != b"<":
            return  # of several bytes each: a text could be found between two characters
    except (LookupError, TypeError, ValueError):
        return  # nobody's, or a codec of Python's that is no charset
    for old, new in texts:
        try:
            yield Replacer(codec.encode(old)[0], codec.encode(new)[0])
        except UnicodeError:
            continue
