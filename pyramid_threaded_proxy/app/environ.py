"""What the client sent, read from the WSGI environ: its target, its body, and who it is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import IO, Any

from pyramid.request import Request

from pyramid_threaded_proxy.app.front import FRONT, Front
from pyramid_threaded_proxy.detach import access
from pyramid_threaded_proxy.detach.channel import DetachableChannel
from pyramid_threaded_proxy.exceptions import BodyTooLarge, ProtocolRefused, TargetRefused
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.http.fields import check_host
from pyramid_threaded_proxy.http.target import escaped_path, public_path_matches, split_target
from pyramid_threaded_proxy.relay.recheck import EXPLAINED
from pyramid_threaded_proxy.settings.table import RouteSettings

log = logging.getLogger("pyramid_threaded_proxy.request_source")

Environ = Mapping[str, Any]

_BLOCK = 64 * 1024
#: Characters of a client's text that the access log shows: a line is written in the loop's thread.
_SHOWN = 1024
#: Before a URL's host a name and password may stand (RFC 3986 3.2.1).
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@")


@cache
def _environ_key(header: str) -> str:
    """Where WSGI puts a field; of the few names that the settings give."""
    return "HTTP_" + header.upper().replace("-", "_")


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")


class ClientRequest:
    """What the client sent, read from the WSGI environ, and the live channel that it came on.

    Made once for each request, in its thread, and used there alone.
    """

    __slots__ = ("channel", "environ", "known_request_id", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.environ: Environ = request.environ
        #: None where the connection can't be detached.
        self.channel = access.channel_of(self.environ)
        #: Where somebody has asked for it.
        self.known_request_id: str | None = None

    @property
    def can_be_detached(self) -> bool:
        """Whether the connection can be the relay's; a request that is only explained is taken for one that can."""
        return self.channel is not None or EXPLAINED in self.environ

    def request_id(self) -> str:
        """The id of the exchange that there will be."""
        if self.known_request_id is None:
            self.known_request_id = os.urandom(16).hex()
        return self.known_request_id

    def raw_target(self) -> tuple[str, str | None]:
        """The client's path and query, byte for byte, and surely those that Pyramid has seen. Raises `TargetRefused`.

        A subrequest has no raw target: its own is PATH_INFO, escaped.
        """
        environ = self.environ
        path_info, script_name = environ.get("PATH_INFO", ""), environ.get("SCRIPT_NAME", "")
        raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
        if raw is None:
            query = environ.get("QUERY_STRING") or None
            path = escaped_path(script_name + path_info) or "/"
            return split_target(path if query is None else f"{path}?{query}")
        path, query = split_target(raw)
        if script_name and (taken := _taken_away(path, path_info, script_name)):
            # A front server took a prefix away, and something behind it says what it was: the public path has it.
            path = escaped_path(taken) + path
        elif script_name and path_info == "/" and public_path_matches(path, "", script_name):
            path_info = ""  # middleware that splits the path made a slash of nothing
        if not public_path_matches(path, path_info, script_name) or (query or "") != environ.get("QUERY_STRING", ""):
            given = script_name + path_info
            log.warning("refused: the target was sent as %r, and something made %r of it", path, given)
            raise TargetRefused("the path or query was rewritten on its way to the application")
        return path, query

    def check_message(self) -> None:
        """Refuse what servers let through and RFC 9112 does not: a faulty Host, framing that only HTTP/1.1 has."""
        protocol = self.environ.get("SERVER_PROTOCOL", "HTTP/1.1")
        check_host(self.environ.get("HTTP_HOST"), protocol)
        if protocol != "HTTP/1.1" and "HTTP_TRANSFER_ENCODING" in self.environ:
            raise ProtocolRefused("Transfer-Encoding in a request that is not HTTP/1.1 (RFC 9112 6.1)")

    def body(self, settings: RouteSettings) -> Body | None:
        """The request body, from its beginning, however much of it the application has read.

        Raises `BodyTooLarge` when it is larger than `max_body` bytes.
        """
        max_body = settings.max_body
        environ = self.environ
        file = environ["wsgi.input"]
        # Only while nobody has put another one in its place: what was looked at is what is sent.
        if self.channel is not None and access.is_own_body(self.channel, file):
            return self._own_body(self.channel, file, settings)
        text = environ.get("CONTENT_LENGTH") or ""
        if self.channel is not None and access.came_by_its_head(self.channel) and not self._has_a_copy():
            # Middleware has wrapped it: who reads through that later, in a loop, must not wait for the client.
            self.receive(settings)
            if not text:
                return Body(chunks=blocks_of(file, max_body))
        if text:
            return self._body_of_length(text, max_body)
        if environ.get("wsgi.input_terminated") and environ.get("HTTP_TRANSFER_ENCODING"):
            return Body(chunks=blocks_of(file, max_body))
        return None

    def _own_body(self, channel: DetachableChannel, file: IO[bytes], settings: RouteSettings) -> Body | None:
        unread = access.unread_body(channel)
        if unread is not None:
            most = access.most_body(channel) if settings.max_body is None else settings.max_body
            _check_size(unread.length or 0, most)
            if not settings.request_buffering:
                return Body.of_client(unread.length, most)
            file = access.receive_body(channel)
        length = access.received_length(channel)
        _check_size(length, settings.max_body)
        return Body(file=file, length=length, start=0) if length else None

    def receive(self, settings: RouteSettings) -> None:
        """Receive a body that was left unread. Waits for the client; raises `BodyTooLarge`, and `BodyFault`."""
        channel = self.channel
        unread = None if channel is None else access.unread_body(channel)
        if channel is not None and unread is not None:
            _check_size(unread.length or 0, settings.max_body)
            access.receive_body(channel)

    def _has_a_copy(self) -> bool:
        """Whether ``wsgi.input`` is WebOb's copy, or what the application has put there."""
        return bool(self.environ.get("webob.is_body_seekable"))

    def _body_of_length(self, text: str, max_body: int | None) -> Body | None:
        if not (text.isascii() and text.isdigit()):
            raise ProtocolRefused("Content-Length is not a number (RFC 9110 8.6)")
        length = int(text)
        _check_size(length, max_body)
        seekable = self._has_a_copy()  # then, once the request is over, nobody else closes it
        file = self.environ["wsgi.input"]
        return Body(file=file, length=length, start=0 if seekable else None, owned=seekable) if length else None

    def asks_for_a_page(self) -> bool:
        """Whether it may be sent elsewhere: what asks for another protocol, or brings a body, goes where it says."""
        environ = self.environ
        return environ["REQUEST_METHOD"] in ("GET", "HEAD") and "HTTP_UPGRADE" not in environ

    def wants_head_alone(self) -> bool:
        """Whether the client sent HEAD, whatever became of it since: it decides whether an answer has a body."""
        channel = self.channel
        return (access.sent_method(channel) if channel is not None else self.environ["REQUEST_METHOD"]) == "HEAD"

    def public_url(self) -> str:
        """Scheme and authority as the client sees them, after waitress's trust."""
        host = self.environ.get("HTTP_HOST")
        return f"{self.environ['wsgi.url_scheme']}://{host}" if host else str(self.request.host_url)

    def given_id(self, header: str) -> str | None:
        """What a peer that waitress trusts calls this request, in the field `header`; None where it says nothing.

        A front that moves the bytes calls it nothing: what comes in the field is its client's.
        """
        value = self.environ.get(_environ_key(header)) if header else None
        if value is None or not _REQUEST_ID.fullmatch(value) or not self.sender()[2]:
            return None
        return str(value)

    def sender(self) -> tuple[str | None, frozenset[str], bool]:
        """Who sent it, as `access.peer` has it, and whether that one may also say who asks (`names.IDENTITY`)."""
        front = self.environ.get(FRONT)
        if isinstance(front, Front):
            return *front.peer(), False
        address, trusted = access.peer(self.environ)
        return address, trusted, bool(trusted)

    def log_values(self) -> tuple[str, str, str, str, str]:
        """What the access log shows: no query and no user of a URL, in target or Referer, gets there."""
        environ = self.environ
        target: str = environ.get("REQUEST_URI") or environ.get("RAW_URI") or environ.get("PATH_INFO", "-")
        return (
            environ.get("REQUEST_METHOD", "-")[:_SHOWN],
            _shown_url(target),
            environ.get("SERVER_PROTOCOL", "-"),
            _shown_url(environ.get("HTTP_REFERER", "-")),
            environ.get("HTTP_USER_AGENT", "-")[:_SHOWN],
        )


def _taken_away(path: str, path_info: str, script_name: str) -> str:
    """With which segments SCRIPT_NAME begins that `path` lacks; PATH_INFO, which Pyramid judges, is its end anyhow."""
    for end in (index for index, character in enumerate(f"{script_name}/") if character == "/"):
        if public_path_matches(path, path_info, script_name[end:]):
            return script_name[:end]
    return ""


def _check_size(length: int, max_body: int | None) -> None:
    if max_body is not None and length > max_body:
        raise BodyTooLarge(f"the request body is larger than {max_body} bytes")


def blocks_of(file: IO[bytes], max_body: int | None) -> Iterator[bytes]:
    """A body whose length the server doesn't know, or that may turn out too large: `BodyTooLarge` then."""
    total = 0
    while block := file.read(_BLOCK):
        total += len(block)
        _check_size(total, max_body)
        yield block


def _shown_url(url: str) -> str:
    """A URL or path without query, fragment and user."""
    url = url.partition("?")[0].partition("#")[0]
    return (_USER.sub(r"\1", url) if "@" in url else url)[:_SHOWN]


def given_body(value: Any) -> Body | None:
    """A body that a view or hook gives: bytes, a file, an iterable of bytes, or None. Raises `TypeError`."""
    if value is None or isinstance(value, Body):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Body(data=bytes(value)) if len(value) else None
    if isinstance(value, (str, Mapping)):
        raise TypeError(f"a body is bytes, a file, an iterable of bytes or the request, not {type(value).__name__}")
    if hasattr(value, "read"):
        return _file_body(value)
    if not isinstance(value, Iterable):
        raise TypeError(f"a body is bytes, a file, an iterable of bytes or the request, not {type(value).__name__}")
    return Body(chunks=_Chunks(value), owned=True)


class _Chunks:
    """An iterable of the application's, as an iterator. Closed once, at the latest when nobody refers to it."""

    def __init__(self, value: Iterable[bytes], *besides: Any) -> None:
        self._open: list[Any] = [value, *besides]
        self._chunks = iter(value)
        if self._chunks is not value:
            self._open.insert(0, self._chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        while self._open:
            close = getattr(self._open.pop(0), "close", None)
            try:
                if close is not None:
                    close()
            except Exception:  # whatever is given back behind it must be given back all the same
                log.exception("closing the body that a view gave raised")

    __del__ = close


def _file_body(file: Any) -> Body:
    try:
        start = file.tell()
        length = file.seek(0, 2) - start
        file.seek(start)
    except (OSError, AttributeError, TypeError):
        return Body(chunks=_Chunks(blocks_of(file, None), file), owned=True)
    return Body(file=file, length=length, start=start, owned=True)
