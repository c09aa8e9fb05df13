"""Numbers as people read them."""

from __future__ import annotations

#: What stands for what is not known.
UNKNOWN = "\N{EN DASH}"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes: ``512 B``, ``1.2 GiB``."""
    unit = 0
    while count >= 999.5 and unit < len(_BYTES) - 1:
        count /= 1024
        unit += 1
    return f"{short(count) if unit else round(count)} {_BYTES[unit]}"


def short(number: float) -> str:
    """Two or three digits: ``0``, ``0.25``, ``7.5``, ``120``."""
    if number >= 99.5 or number == round(number):
        return str(round(number))
    return f"{number:.1f}" if number >= 9.95 else f"{number:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """A length of time: ``4 ms``, ``2.5 s``, ``3 h 12 min``."""
    if seconds < 0.9995:
        return f"{short(seconds * 1000) if seconds < 0.00995 else round(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{short(seconds)} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    for unit, length, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"
