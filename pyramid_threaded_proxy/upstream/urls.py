"""What an upstream's URL says. The one module that knows urllib3, which reads the authority of a URL."""

from __future__ import annotations

from urllib.parse import quote, unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.http.names import PORTS
from pyramid_threaded_proxy.upstream.origin import UNIX, Origin


def split_url(url: str) -> tuple[Origin, str]:
    """Split an upstream's URL into its origin and the rest, byte for byte. Raises `ValueRefused`."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or (scheme not in PORTS and scheme != UNIX):
        raise ValueRefused(f"{url!r}: an upstream's URL begins with http://, https:// or http+unix://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    if scheme == UNIX:
        return Origin(UNIX, _socket_path(url, authority), 0), target
    try:
        parsed = parse_url(f"http://{authority}")
    except LocationParseError as error:
        raise ValueRefused(f"{url!r}: {error}") from None
    if not parsed.host or parsed.auth is not None or "@" in authority:
        raise ValueRefused(f"{url!r}: host[:port] is wanted, without a user")
    if parsed.port == 0:
        raise ValueRefused(f"{url!r}: port 0 can't be connected to")
    return Origin(scheme, parsed.host, parsed.port or PORTS[scheme]), target


def _socket_path(url: str, authority: str) -> str:
    """The path of a Unix socket, escaped in one way: so that equal paths are one origin."""
    path = unquote(authority)
    if not path.startswith("/") or "\0" in path:
        raise ValueRefused(f"{url!r}: the escaped path of a socket is wanted, such as http+unix://%2Frun%2Fapp.sock/")
    return quote(path, safe="")
