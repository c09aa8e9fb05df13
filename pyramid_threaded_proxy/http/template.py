"""Text with ``{placeholders}``: the values of fields sent upstream, and the URL of a pattern route's upstream."""

from __future__ import annotations

import re

from pyramid_threaded_proxy.exceptions import ValueRefused

_DOUBLED = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")
_PLAIN = re.compile(r"\{([^{}]*)\}|([{}])")


def template_parts(text: str, *, doubled: bool = True) -> list[str]:
    """Literal text at even places, names of placeholders at odd ones.

    `doubled` reads ``{{`` and ``}}`` as the braces themselves. Raises `ValueRefused` for any other brace that belongs
    to no placeholder. Which names are known is the caller's to judge.
    """
    parts, end = [""], 0
    for match in (_DOUBLED if doubled else _PLAIN).finditer(text):
        parts[-1] += text[end : match.start()]
        end = match.end()
        name, single = match.groups()
        if single:
            remedy = f": write {single * 2} for the character itself" if doubled else ", which is not part of a {name}"
            raise ValueRefused(f"has a single {single}{remedy}")
        if name is None:
            parts[-1] += match[0][0]
        else:
            parts += [name, ""]
    parts[-1] += text[end:]
    return parts
