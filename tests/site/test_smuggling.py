"""Bytes of known attacks, through the whole stack: the upstream gets what was permitted, well-formed, or nothing.

The families are those of public research (Linhart 2005; Kettle, "HTTP Desync Attacks" 2019 and "Browser-Powered Desync
Attacks" 2022; Grenfeldt et al., "Attacking Websites Using HTTP Request Smuggling" 2021) and of RFC 9112 11.2.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.response import Response
from webob import Request as WebObRequest

from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Request, received

SENTINEL = b"GET /r/sentinel HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PREFIX = b"GET /r/smuggled HTTP/1.1\r\nHost: b\r\nX: y\r\n"
WELL_FORMED = re.compile(
    rb"[A-Z]+ /[!-~]* HTTP/1\.1\r\n"
    rb"(?:[!#$%&'*+.^`|~0-9A-Za-z-]+: (?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?\r\n)+\r\n"
)


def post(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST /r/a " + version, b"Host: a", *lines, b"", b""]) + body


def get(target: bytes = b"/r/a", *lines: bytes, host: bytes | None = b"Host: a") -> bytes:
    head = [b"GET " + target + b" HTTP/1.1", *([host] if host is not None else []), *lines, b"", b""]
    return b"\r\n".join(head)


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"

#: What is to go up of each payload: the method, target and body of one request; None where nothing may.
ONE = ("POST", "/a", b"")
FRAMING: dict[str, tuple[bytes, tuple[str, str, bytes] | None]] = {
    "CL.TE": (post(b"Content-Length: 50", CHUNKED, body=END + PREFIX), ONE),
    "TE.CL": (post(CHUNKED, b"Content-Length: 4", body=b"29\r\n" + PREFIX + b"\r\n" + END), ("POST", "/a", PREFIX)),
    "TE before a space": (post(b"Transfer-Encoding : chunked", b"Content-Length: 5", body=END), None),
    "TE behind a tab": (post(b"Transfer-Encoding:\tchunked", body=END), ONE),
    "TE in odd case": (post(b"tRANSFER-eNCODING: cHUNKED", body=END), ONE),
    "TE behind a vertical tab": (post(b"Transfer-Encoding: \x0bchunked", b"Content-Length: 5", body=END), None),
    "TE with a NUL": (post(b"Transfer-Encoding: chunked\0", b"Content-Length: 5", body=END), None),
    "TE unknown": (post(b"Transfer-Encoding: xchunked", b"Content-Length: 5", body=END), None),
    "TE quoted": (post(b'Transfer-Encoding: "chunked"', b"Content-Length: 5", body=END), None),
    "TE then identity": (post(b"Transfer-Encoding: chunked, identity", b"Content-Length: 5", body=END), None),
    "TE twice, identity last": (post(CHUNKED, b"Transfer-Encoding: identity", b"Content-Length: 5", body=END), None),
    "TE twice, identity first": (post(b"Transfer-Encoding: identity", CHUNKED, b"Content-Length: 5", body=END), None),
    "TE behind gzip": (post(b"Transfer-Encoding: gzip, chunked", body=END), None),
    "TE behind a bare LF": (post(b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 5", body=END), None),
    "TE behind a bare CR": (post(b"X: y\rTransfer-Encoding: chunked", b"Content-Length: 5", body=END), None),
    "TE folded into Host": (post(b" Transfer-Encoding: chunked", b"Content-Length: 5", body=END), None),
    "TE with an underscore": (post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=END), ("POST", "/a", END)),
    "TE in HTTP/1.0": (post(CHUNKED, b"Content-Length: 5", body=END, version=b"HTTP/1.0"), None),
    "TE in HTTP/2.0": (post(CHUNKED, b"Content-Length: 5", body=END, version=b"HTTP/2.0"), None),
    "CL.0": (get(b"/r/a", b"Content-Length: 41") + PREFIX, ("GET", "/a", PREFIX)),
    "CL twice": (post(b"Content-Length: 3", b"Content-Length: 0", body=b"abc"), None),
    "CL twice the same": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), None),
    "CL as a list": (post(b"Content-Length: 3, 3", body=b"abc"), None),
    "CL with plus": (post(b"Content-Length: +3", body=b"abc"), None),
    "CL with minus": (post(b"Content-Length: -3", body=b"abc"), None),
    "CL in hex": (post(b"Content-Length: 0x3", body=b"abc"), None),
    "CL with an underscore inside": (post(b"Content-Length: 0_3", body=b"abc"), None),
    "CL empty": (post(b"Content-Length: "), None),
    "CL with a space": (post(b"Content-Length: 3 3", body=b"abc"), None),
    "CL of another script": (post(b"Content-Length: \xb3", body=b"abc"), None),
    "CL with an underscore": (post(b"Content_Length: 3"), ONE),
    "chunk size 0x": (post(CHUNKED, body=b"0x3\r\nabc\r\n" + END), None),
    "chunk size _": (post(CHUNKED, body=b"0_3\r\nabc\r\n" + END), None),
    "chunk size minus": (post(CHUNKED, body=b"-1\r\nabc\r\n" + END), None),
    "chunk size plus": (post(CHUNKED, body=b"+3\r\nabc\r\n" + END), None),
    "chunk size and a space": (post(CHUNKED, body=b"3 \r\nabc\r\n" + END), None),
    "chunk size and LF": (post(CHUNKED, body=b"3\nabc\r\n" + END), None),
    "chunk extension": (post(CHUNKED, body=b"3;a=b\r\nabc\r\n" + END), ("POST", "/a", b"abc")),
    "chunk extension with LF": (post(CHUNKED, body=b"3;\nx\r\nabc\r\n" + END), None),
    "chunk without its end": (post(CHUNKED, body=b"3\r\nabcXX" + END), None),
    "chunk of 2**64 + 3": (post(CHUNKED, body=b"10000000000000003\r\nabc\r\n" + END), None),
    "trailer": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX-User: admin\r\n\r\n"), ("POST", "/a", b"abc")),
    "GET with chunks": (get(b"/r/a", CHUNKED) + b"3\r\nabc\r\n" + END, ("GET", "/a", b"abc")),
}  # fmt: skip

HEADS: dict[str, tuple[bytes, tuple[str, str, bytes] | None]] = {
    "plain": (get(), ("GET", "/a", b"")),
    "absolute-form": (get(b"http://evil.example/r/a"), ("GET", "/a", b"")),
    "absolute-form with a user": (get(b"http://u:p@evil.example:99/r/a?q"), ("GET", "/a?q", b"")),
    "authority-form": (get(b"evil.example:80"), None),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "CONNECT": (b"CONNECT /r/a HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "TRACE": (b"TRACE /r/a HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "two slashes": (get(b"//r/a"), None),
    "dots": (get(b"/r/../own"), None),
    "escaped dots": (get(b"/r/%2e%2e/own"), None),
    "dots behind an escaped slash": (get(b"/r/x%2f..%2fown"), None),
    "tab in the target": (get(b"/r/\ta"), None),
    "space in the target": (get(b"/r/a b"), None),
    "escaped line end": (get(b"/r/a%0d%0aX:%20y"), None),
    "fragment": (get(b"/r/a#b"), None),
    "NUL": (get(b"/r/a%00"), None),
    "backslash": (get(b"/r/a\\b"), None),
    "method with a control": (b"G\x01T /r/a HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "method in lower case": (b"get /r/a HTTP/1.1\r\nHost: a\r\n\r\n", None),
    "no Host": (get(host=None), None),
    "two Hosts": (get(host=b"Host: a\r\nHost: b"), None),
    "empty Host": (get(host=b"Host: "), None),
    "Host with a path": (get(host=b"Host: a/b"), None),
    "Host with a user": (get(host=b"Host: u@b"), None),
    "Host with a space": (get(host=b"Host: a b"), None),
    "Host folded": (get(host=b"Host: a\r\n b"), None),
    "value with NUL": (get(b"/r/a", b"X-A: b\0c"), None),
    "value with CR": (get(b"/r/a", b"X-A: b\rc"), None),
    "value with LF": (get(b"/r/a", b"X-A: b\nX-User: admin"), None),
    "value with DEL": (get(b"/r/a", b"X-A: b\x7fc"), None),
    "value with ESC": (get(b"/r/a", b"X-A: b\x1bc"), None),
    "folded value": (get(b"/r/a", b"X-A: b\r\n c"), ("GET", "/a", b"")),
    "name with a space": (get(b"/r/a", b"X A: b"), None),
    "empty name": (get(b"/r/a", b": b"), None),
    "line without a colon": (get(b"/r/a", b"nocolon"), None),
    "Expect": (post(b"Expect: 100-continue", b"Content-Length: 3", body=b"abc"), ("POST", "/a", b"abc")),
    "line ends in front": (b"\r\n\r\n" + get(), ("GET", "/a", b"")),
    "h2c": (
        get(b"/r/a", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM"),
        ("GET", "/a", b""),
    ),
}  # fmt: skip


class Stack(NamedTuple):
    """A site in front of an upstream that writes down what it gets; and what Pyramid was asked for."""

    site: Site
    requests: list[Request]
    left: list[bytes]
    asked: list[str]

    def __repr__(self) -> str:
        return "<Stack>"


@pytest.fixture(params=["true", "false"], ids=["buffered", "streamed"])
def stack_of_all(origin: MakeOrigin, site: MakeSite, request: pytest.FixtureRequest) -> Stack:
    """Of routes whose bodies are received first, and of ones whose bodies stream."""
    requests: list[Request] = []
    left: list[bytes] = []
    asked: list[str] = []
    lock = threading.Lock()

    def script(wire: OriginWire) -> None:
        with suppress(AssertionError):  # a body that streams and is faulty never ends here
            while (sent := wire.request()) is not None:
                with lock:
                    requests.append(sent)
                wire.answer(b"" if sent.method == "HEAD" else b"ok")
            left.append(wire.buffer)

    def found(event: ContextFound) -> None:
        asked.append(event.request.path_qs.removeprefix("/r") or "/")

    def configure(config: Configurator) -> None:
        config.add_subscriber(found, ContextFound)
        config.add_route("own", "/own")
        config.add_view(lambda request: Response("own"), route_name="own")

    made = site(
        route("r", origin(script).url, upgrade="websocket", request__buffering=request.param)
        | {"proxy.own_cookies": "session auth_tkt"},
        configure=configure,
    )
    return Stack(made, requests, left, asked)


def send(stack: Stack, payload: bytes) -> bytes:
    """Send the payload and a whole request behind it, and read until the server closes."""
    client = stack.site.client()
    try:
        client.send(payload + SENTINEL)
        wait_until(lambda: client.is_closed() or _has_answer(client), "an answer", 0.5)
    except AssertionError:  # it waits for more of the body: that is no request, and never will be
        client.half_close()
    except ConnectionError:
        pass
    try:
        return client.rest()
    except ConnectionError:
        return client.buffer
    finally:
        client.close()


def _has_answer(client: Any) -> bool:
    client.sock.settimeout(0.01)
    try:
        client.buffer += client.receive()
    except TimeoutError:
        pass
    client.sock.settimeout(10)
    return b"HTTP/1." in client.buffer


def check_whole(stack: Stack) -> None:
    """All that went up is well-formed and was asked of Pyramid, request by request; nothing else went up."""
    for request in stack.requests:
        head = request.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert WELL_FORMED.fullmatch(head), head
        names = [name.lower() for name, _ in request.fields]
        assert names.count("host") == 1
        assert names.count("content-length") + names.count("transfer-encoding") <= 1
        assert not {"te", "trailer", "keep-alive", "expect", "http2-settings", "proxy-connection"} & set(names)
    assert stack.left == [b""] * len(stack.left)
    unasked = Counter(request.target for request in stack.requests) - Counter(stack.asked)
    assert not unasked


@pytest.mark.parametrize("name", [*FRAMING, *HEADS])
def test_payloads(stack_of_all: Stack, name: str) -> None:
    """Of each payload exactly the permitted request goes up, or none; what is behind it is a request of its own."""
    payload, expected = (FRAMING | HEADS)[name]
    answer = send(stack_of_all, payload)
    first = [request for request in stack_of_all.requests if request.target != "/sentinel"]
    assert [(request.method, request.target, request.body) for request in first] == ([expected] if expected else [])
    if expected is None and answer:
        assert re.match(rb"HTTP/1\.[01] (?:400|404|405|413|501) ", answer), answer[:100]
    check_whole(stack_of_all)


@pytest.mark.parametrize("name", ["CL.TE", "TE.CL"])
def test_two_framings_end_the_connection(stack_of_all: Stack, name: str) -> None:
    """After a request with both framings nothing on the connection is believed any more (RFC 9112 6.1)."""
    answer = send(stack_of_all, FRAMING[name][0])
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert [request.target for request in stack_of_all.requests] == ["/a"]


# Hypothesis

_LINES = [
    CHUNKED, b"Transfer-Encoding: identity", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked",
    b"transfer-encoding: Chunked", b"Transfer-Encoding: chunked, chunked", b"X: y\r\n Transfer-Encoding: chunked",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 300", b"content-length: 05", b"Content-Length:",
    b"Connection: Content-Length", b"Connection: close, Host", b"Connection: Upgrade", b"Upgrade: websocket",
    b"Connection:", b"Connection: Transfer-Encoding, X-Forwarded-For", b"Expect: 100-continue", b"TE: trailers",
    b"Trailer: X-User", b"Host: b", b"X-A: \xff\xfe", b"X-A:", b"X_A: b", b"Keep-Alive: timeout=5",
    b"Cookie: session=1; a=b", b"Proxy-Connection: keep-alive", b"Content-Type: text/plain",
]  # fmt: skip
_STARTS = [
    b"GET /r/a HTTP/1.1", b"POST /r/a?b HTTP/1.1", b"POST /r/a HTTP/1.0", b"HEAD /r/a HTTP/1.1", b"PUT /r HTTP/1.1",
    b"GET http://x/r/a HTTP/1.1", b"GET /own HTTP/1.1", b"GET /r/a", b"OPTIONS /r/a HTTP/1.2",
]  # fmt: skip
_BODIES = [b"", END, b"5\r\nhello\r\n" + END, b"hello", PREFIX + b"\r\n", b"0\r\nX-User: a\r\n\r\n", b"\r\n"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(_STARTS), st.lists(st.sampled_from(_LINES), max_size=4), st.sampled_from(_BODIES)),
        min_size=1,
        max_size=3,
    )
)
def test_any_mixture(stack_of_all: Stack, parts: list[tuple[bytes, list[bytes], bytes]]) -> None:
    """However lines of attacks are mixed and pipelined, what goes up is well-formed and was asked of Pyramid."""
    payload = b"".join(b"\r\n".join([start, b"Host: a", *lines, b"", b""]) + body for start, lines, body in parts)
    client = stack_of_all.site.client()
    client.send(payload + SENTINEL)
    client.half_close()
    client.wait_closed()
    client.close()
    wait_until(lambda: stack_of_all.site.engine.admission.in_flight == 0, "the end of all exchanges")
    check_whole(stack_of_all)


# Fields


def fields_sent(stack: Stack, *lines: bytes) -> list[tuple[str, str]]:
    send(stack, get(b"/r/a", *lines))
    check_whole(stack)
    return stack.requests[0].fields


def test_connection_takes_nothing_of_ours(stack_of_all: Stack) -> None:
    """What any Connection field names, the first being empty, is gone before our own fields are set."""
    fields = fields_sent(
        stack_of_all,
        b"Connection: ",
        b"Connection: X-Forwarded-For, X-Remote-User, Host, Via",
        b"Connection: X-Secret, , Content-Length",
        b"X-Secret: 1",
        b"X-Remote-User: admin",
        b"X-Kept: 1",
    )
    assert [(name, value) for name, value in fields if name not in ("Host", "X-Request-Id")] == [
        ("X-Kept", "1"),
        ("Via", "1.1 pyramid_threaded_proxy"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "a"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Prefix", "/r"),
    ]


def test_spoofed_fields_do_not_survive(stack_of_all: Stack) -> None:
    """What only a proxy may say, in any spelling, is not the client's to say."""
    names = [
        "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded-Port",
        "X-Forwarded-User", "X-Forwarded-Anything", "Forwarded", "X-Real-IP", "Proxy", "x-FORWARDED-for",
        "X_Forwarded_For", "X-Forwarded_For", "X_Real_IP", "Authorization", "Proxy-Authorization", "X_Remote_User",
    ]  # fmt: skip
    fields = fields_sent(stack_of_all, *(f"{name}: for=6.6.6.6".encode() for name in names))
    assert [value for _, value in fields if "6.6.6.6" in value] == []
    assert dict(fields)["X-Forwarded-For"] == "127.0.0.1"
    assert not any("_" in name for name, _ in fields)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Cookie: session=secret"],
        [b"Cookie: a=b; session=secret"],
        [b"Cookie: a=b,session=secret"],
        [b"Cookie: a=b, session=secret; c=d"],
        [b"Cookie: a=b", b"Cookie: session=secret"],
        [b"Cookie: session=secret", b"Cookie: a=b"],
        [b"cookie: a=b;session =secret"],
        [b'Cookie: a="b; session=secret"'],
        [b'Cookie: a="b; session="secret"'],
        [b"Cookie: a=b;\tsession=secret"],
        [b"Cookie: $Version=1; session=secret; $Path=/"],
        [b"Cookie: ;;;session=secret"],
        [b"Cookie: a=b&session=secret; session=secret"],
        [b"Cookie: SESSION=secret; session=secret"],
        [b'Cookie: session="secret"'],
        [b"Cookie: a=b\r\n session=secret"],
    ],
)
def test_own_cookies_stay_home(stack_of_all: Stack, lines: list[bytes]) -> None:
    """Neither WebOb, the application's reader, nor Python's finds an own cookie in what goes up."""
    sent = dict(fields_sent(stack_of_all, *lines)).get("Cookie", "")
    assert "session" not in WebObRequest.blank("/", headers={"Cookie": sent}).cookies
    assert "session" not in SimpleCookie(sent)


def test_a_clients_own_user_field_never_goes_up(origin: MakeOrigin, site: MakeSite) -> None:
    """On a public route too, a field that is set from identity comes from identity or not at all."""

    class Cookies(Policy):
        def identity(self, request: Any) -> str | None:
            return request.cookies.get("user")  # type: ignore[no-any-return]

        authenticated_userid = identity

    settings = route("r", origin(echo).url) | {"proxy.routes.r.request.set.X-User": "{userid}"}
    made = site(settings, configure=lambda config: config.set_security_policy(Cookies()))
    for spoofed in ("X-User", "x-user", "X_User", "X-USER"):
        for connection in ("keep-alive", "X-User", "close, x-user"):
            fields = {spoofed: "admin", "Connection": connection}
            assert received(made.get("/r/x", fields)).all("X-User") == []
            assert received(made.get("/r/x", fields | {"Cookie": "user=alice"})).all("X-User") == ["alice"]


#: Behind these the connection ends.
_LAST = {"CL.TE", "TE.CL", "h2c"}


@pytest.mark.parametrize("name", [name for name, (_, sent) in (FRAMING | HEADS).items() if sent and name not in _LAST])
def test_what_is_pipelined_behind_is_a_request_of_its_own(stack_of_all: Stack, name: str) -> None:
    """Where a permitted request lets the connection go on, the one behind it is sent as its own, whole and alone."""
    send(stack_of_all, (FRAMING | HEADS)[name][0])
    sentinel = stack_of_all.requests[-1]
    assert (sentinel.method, sentinel.target, sentinel.body) == ("GET", "/sentinel", b"")
    assert stack_of_all.asked[-1] == "/sentinel"
    assert len(stack_of_all.requests) == 2
