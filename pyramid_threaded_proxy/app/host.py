"""Routes that stand for a host: a predicate of Pyramid's, and which hosts meet."""

from __future__ import annotations

from typing import Any

from pyramid.request import Request


class HostPredicate:
    """Whether a request is for a route's host, as waitress trusts Host; its port says nothing."""

    def __init__(self, value: str, config: Any) -> None:
        self._value = value

    def text(self) -> str:
        return f"proxied_host = {self._value}"

    phash = text

    def __call__(self, info: Any, request: Request) -> bool:
        return is_for(self._value, request.environ.get("HTTP_HOST") or request.environ.get("SERVER_NAME", ""))


def is_for(host: str | None, asked: str) -> bool:
    """Whether a Host field, with or without a port, is for a route's `host`; None stands for any."""
    if host is None:
        return True
    end = asked.find("]") + 1 if asked.startswith("[") else asked.find(":")
    name = (asked[:end] if end > 0 else asked).lower().removesuffix(".")
    return _is_below(name, host) if host.startswith("*") else name == host


def may_meet(one: str | None, other: str | None) -> bool:
    """Whether some host is for both."""
    if one is None or other is None or one == other:
        return True
    return _is_below(other, one) or _is_below(one, other)


def _is_below(name: str, star: str) -> bool:
    """Whether a host, or all below one, is below the domain of ``*.domain``."""
    return star.startswith("*") and name.removeprefix("*").endswith(star[1:]) and name != star[1:]
