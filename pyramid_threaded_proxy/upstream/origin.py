"""Where an upstream listens."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from pyramid_threaded_proxy.http.names import PORTS

#: The scheme of an upstream behind a Unix socket; its host is the socket's path, escaped.
UNIX = "http+unix"


class Origin(NamedTuple):
    """Where an upstream listens (RFC 9110 4.3.1)."""

    scheme: str
    host: str
    port: int
    #: The address to connect to where a name was looked up, and judged, before.
    address: str | None = None

    @property
    def authority(self) -> str:
        """As the Host field has it: the port only where it is not the scheme's own. A Unix socket has no name."""
        return _authority(self)

    @property
    def as_pages_have_it(self) -> str:
        """As the Origin of the upstream's own pages, if browsers were to get these from it."""
        return f"{'http' if self.scheme == UNIX else self.scheme}://{self.authority}"

    @property
    def path(self) -> str:
        """The file of a Unix socket."""
        return unquote(self.host)

    def __str__(self) -> str:
        return _url(self)


# Each exchange asks for both.


@lru_cache(maxsize=1024)
def _authority(origin: Origin) -> str:
    if origin.scheme == UNIX:
        return "localhost"
    return origin.host if origin.port == PORTS[origin.scheme] else f"{origin.host}:{origin.port}"


@lru_cache(maxsize=1024)
def _url(origin: Origin) -> str:
    url = f"{origin.scheme}://{origin.host}"
    return url if origin.scheme == UNIX else f"{url}:{origin.port}"
