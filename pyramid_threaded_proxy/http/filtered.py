"""A body that is changed on its way: how it is asked for, and what of its fields still holds."""

from __future__ import annotations

from pyramid_threaded_proxy.http.names import Fields

#: What a changed body is not any more: its coding, its length, what it hashes to (RFC 9530), ranges of it.
_OF_THE_ORIGINAL = frozenset({
    "accept-ranges", "content-digest", "content-encoding", "content-length", "content-md5", "content-range", "digest",
    "repr-digest",
})  # fmt: skip
_OF_A_CODED_OR_PARTIAL_ONE = frozenset({"accept-encoding", "if-range", "range"})


def fields_of_filtered(fields: Fields) -> Fields:
    """The fields of an answer whose body is filtered: a strong ETag becomes a weak one (RFC 9110 8.8.3)."""
    kept = [field for field in fields if field[0].lower() not in _OF_THE_ORIGINAL]
    return [(name, _weak(value)) if name.lower() == "etag" else (name, value) for name, value in kept]


def fields_asking_plainly(fields: Fields) -> Fields:
    """The fields of a request whose answer is to be filtered: the whole of it is asked for, without a coding."""
    kept = [field for field in fields if field[0].lower() not in _OF_A_CODED_OR_PARTIAL_ONE]
    return [*kept, ("Accept-Encoding", "identity")]


def _weak(etag: str) -> str:
    return etag if etag.startswith("W/") else f"W/{etag}"
