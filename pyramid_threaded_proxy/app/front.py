"""A front server that moves the bytes itself, and what the application knows of one: who it is, and what it asks about.

nginx, HAProxy, Envoy, Caddy and Traefik each tell the asked method and target in one place of their own. That one is
read and no other is: a field that a front does not overwrite is the client's.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyramid.exceptions import URLDecodeError
from pyramid.interfaces import IRoutesMapper
from pyramid.request import Request

from pyramid_threaded_proxy.detach.access import peer
from pyramid_threaded_proxy.exceptions import ProxyError
from pyramid_threaded_proxy.http.names import TOKEN

#: Where the environ of a request that a front asks about, or moves, keeps its `Front`.
FRONT = "pyramid_threaded_proxy.front"
#: What of an environ speaks of the question itself, its connection and its body, and not of what is asked about.
_OF_THE_QUESTION = ("webob.", "waitress.", "bfg.", "pyramid_threaded_proxy.", "HTTP_X_PROXY_", "HTTP_X_ORIGINAL_")
_ITS_FIELDS = frozenset({
    "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_CONNECTION", "HTTP_UPGRADE", "RAW_URI",
    "HTTP_X_FORWARDED_METHOD", "HTTP_X_FORWARDED_URI", "HTTP_X_FORWARDED_PREFIX",
})  # fmt: skip
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class Source(NamedTuple):
    """Where one kind of front tells what is asked: keys of the environ. None: by the question's own request line."""

    method: str | None
    target: str | None
    #: The protocols that a connection is to be switched to; the key of a WebSocket stands for ``websocket``.
    upgrade: str
    #: Whether the client sees the answer to a question that was refused as it is.
    shows_refusals: bool


_ORIGINAL = Source("HTTP_X_ORIGINAL_METHOD", "HTTP_X_ORIGINAL_URI", "HTTP_X_ORIGINAL_UPGRADE", False)
_FORWARDED = Source("HTTP_X_FORWARDED_METHOD", "HTTP_X_FORWARDED_URI", "HTTP_X_ORIGINAL_UPGRADE", True)
SOURCES: dict[str, Source] = {
    "nginx": _ORIGINAL,
    "haproxy": _ORIGINAL,
    "caddy": _FORWARDED,
    "traefik": _FORWARDED._replace(upgrade="HTTP_SEC_WEBSOCKET_KEY"),
    "envoy": Source(None, None, "HTTP_X_ORIGINAL_UPGRADE", True),
}


class FrontFault(ProxyError):
    """A front that has the key does not say what it asks, or can't be told the answer; the text says why."""


class Front:
    """The front that a request came by, which for an upstream is us: what it knows of its client counts as if the
    client's connection were our own. Its key was right; it is believed as far as waitress trusts it, and in who the
    client is, but not in what the client may have said itself."""

    __slots__ = ("_address", "_chain", "_trusted")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        address, trusted = peer(environ)
        self._trusted = trusted - {"x-forwarded-prefix", "forwarded"}
        told: str = environ.get("HTTP_X_FORWARDED_FOR", "") if "x-forwarded-for" in self._trusted else ""
        self._chain, _, last = (part.strip(" \t") for part in told.rpartition(","))
        self._address = last or address

    def put_into(self, environ: dict[str, Any]) -> None:
        """From here on the request is one that its client has sent to us."""
        environ.pop("HTTP_X_FORWARDED_FOR", None)
        if self._chain:
            environ["HTTP_X_FORWARDED_FOR"] = self._chain
        environ.pop("HTTP_FORWARDED", None)
        environ[FRONT] = self

    @property
    def is_trusted(self) -> bool:
        """Whether waitress believes it who its clients are."""
        return bool(self._trusted)

    def peer(self) -> tuple[str | None, frozenset[str]]:
        """As `detach.access.peer`: the address at the other end of the client's connection, and which fields count."""
        return self._address, self._trusted


def has_key(environ: Mapping[str, Any], secret: str) -> bool:
    """Whether the request bears the secret; in a time that does not depend on what it bears instead."""
    given: str = environ.get("HTTP_X_PROXY_KEY", "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), secret.encode("ascii"))


def asked_environ(environ: Mapping[str, Any], source: Source, prefix: str) -> dict[str, Any] | None:
    """The environ of the request that is asked about, without a body; None where no such one would get to the
    application: it is not below SCRIPT_NAME, or its method is not in upper case, which waitress refuses.

    Raises `FrontFault` where the front has not said what it asks. `prefix` is `proxy.verify.prefix`.
    """
    script_name: str = environ.get("SCRIPT_NAME", "")
    method = environ["REQUEST_METHOD"] if source.method is None else environ.get(source.method, "")
    if not TOKEN.fullmatch(method):
        raise FrontFault("it did not say which method is asked about")
    if method != method.upper():  # as waitress, which takes none in lower case
        return None
    target = _behind(environ, prefix) if source.target is None else environ.get(source.target, "")
    if not target:
        raise FrontFault("it did not say which target is asked about")
    path, _, query = _ABSOLUTE_FORM.sub("", target, count=1).partition("?")
    path_info = "/" + unquote(path, "latin-1").lstrip("/")  # as waitress: leading slashes are one
    if script_name and not (path_info + "/").startswith(script_name + "/"):
        return None
    kept = {
        key: value for key, value in environ.items() if key not in _ITS_FIELDS and not key.startswith(_OF_THE_QUESTION)
    }
    kept |= {"REQUEST_METHOD": method, "REQUEST_URI": target, "QUERY_STRING": query, "SERVER_PROTOCOL": "HTTP/1.1"}
    kept["PATH_INFO"] = path_info[len(script_name) :]
    return kept | _asked_connection(environ, source)


def _behind(environ: Mapping[str, Any], prefix: str) -> str:
    """What stands behind the endpoint's own path in the target, byte for byte."""
    target: str = environ.get("REQUEST_URI") or environ.get("RAW_URI") or ""
    rest = target.removeprefix(environ.get("SCRIPT_NAME", "") + prefix)
    return rest if rest != target and rest.startswith("/") else ""


def _asked_connection(environ: Mapping[str, Any], source: Source) -> dict[str, str]:
    """What the client said of its own connection, as far as the front tells it: servers keep it to themselves."""
    upgrade: str = environ.get(source.upgrade, "")
    if upgrade and source.upgrade.endswith("WEBSOCKET_KEY"):
        upgrade = "websocket"
    options = environ.get("HTTP_X_ORIGINAL_CONNECTION") or ("upgrade" if upgrade else "")
    return {"HTTP_CONNECTION": options} | ({"HTTP_UPGRADE": upgrade} if upgrade else {}) if options else {}


def leads_elsewhere(request: Request, route: str) -> bool:
    """Whether another route than the one that the front means, or none of ours, would answer the request."""
    mapper = request.registry.queryUtility(IRoutesMapper)
    try:
        found = mapper(request)["route"]
    except URLDecodeError:
        return False  # refused below, as it always is
    return found is None or found.name != route
