"""An application, an upstream, and a table of raw requests for both: as the relay does, others should do."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha1
from typing import Any, NamedTuple

from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.httpexceptions import HTTPForbidden, HTTPFound
from pyramid.request import Request
from pyramid.response import Response

from tests.support.fronts import KEY, Root
from tests.support.site import Policy, own_view
from tests.support.wire import OriginWire
from tests.support.wire import Request as Received

# The application


class Users(Policy):
    """The user is whoever the cookie `session` says."""

    def identity(self, request: Any) -> str | None:
        return request.cookies.get("session")  # type: ignore[no-any-return]

    authenticated_userid = identity


def refused(error: Any, request: Request) -> Response:
    """Whoever is not known is sent to the log-in page, as most applications do."""
    return Response("not yours", 403) if request.authenticated_userid else HTTPFound("/login?from=here")


def renewing(handler: Any, registry: Any) -> Any:
    """A tween that renews the session, and sets a field, on each answer to somebody who is known."""

    def tween(request: Request) -> Response:
        response = handler(request)
        if request.cookies.get("renew"):
            response.set_cookie("session", "renewed")
            response.headers["X-Frame-Options"] = "DENY"
        return response

    return tween


def configure(config: Configurator) -> None:
    config.set_security_policy(Users())
    config.set_root_factory(Root)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.add_view(refused, context=HTTPForbidden)
    config.add_tween(f"{__name__}.renewing")
    own_view(config)


def settings_of(upstream: str) -> dict[str, str]:
    """One route for each subject; the mounts `/files` and `/files/inner` are nested."""
    common = {"permission": "view", "request.set.X-User": "{userid}"}
    routes = {
        "files": {**common, "upstream": f"{upstream}/base"},
        "inner": {**common, "prefix": "/files/inner", "permission": "look", "upstream": f"{upstream}/other"},
        "root": {**common, "upstream": upstream},
        "strict": {**common, "upstream": f"{upstream}/s", "methods": "GET POST"},
        "fields": {
            **common, "upstream": f"{upstream}/f", "request.set.X-Route": "{route}", "request.remove": "X-Unwanted",
            "request.cookies": "theme", "request.authorization": "pass", "response.set.X-Frame-Options": "SAMEORIGIN",
            "response.remove": "X-Powered-By",
        },
        "open": {"public": "true", "upstream": f"{upstream}/o", "request.set.X-User": "{userid}"},
        "ws": {**common, "upstream": f"{upstream}/ws", "upgrade": "websocket"},
        "checked": {**common, "upstream": f"{upstream}/c", "require_csrf": "true"},
        "host": {**common, "upstream": f"{upstream}/h", "preserve_host": "true", "forwarded": "none"},
        "gone": {**common, "upstream": "http://127.0.0.1:9/g"},
    }  # fmt: skip
    told = {
        f"proxy.routes.{name}.{key}": value
        for name, keys in routes.items()
        for key, value in ({"prefix": f"/{name}"} | keys).items()
    }
    return told | {"proxy.own_cookies": "session renew csrf_token"}


def script(wire: OriginWire) -> None:
    """An upstream whose answers are of the kind that the last segment of the path says."""
    with suppress(AssertionError):  # a body that is faulty never ends here
        while (request := wire.request()) is not None:
            if not answered(wire, request):
                return


def answered(wire: OriginWire, request: Received) -> bool:
    """Whether the connection goes on."""
    kind = request.target.partition("?")[0].rpartition("/")[2]
    if kind == "broken":
        wire.send(b"garbage\r\n\r\n")
        return False
    if (request.one("Upgrade") or "").lower() == "websocket":
        key = f"{request.one('Sec-WebSocket-Key')}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
        lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
        lines.append(f"Sec-WebSocket-Accept: {b64encode(sha1(key.encode()).digest()).decode()}")
        wire.send("\r\n".join([*lines, "", ""]).encode())
        while data := wire.receive():
            wire.send(data)
        return False
    status, fields = ANSWERS.get(kind, ("200 OK", ["Content-Type: text/plain"]))
    own = [f"Location: http://{request.one('Host')}/base/there"] if kind == "moved" else []
    wire.answer(b"" if request.method == "HEAD" or status[0] == "3" else b"theirs", *fields, *own, status=status)
    return True


#: What the upstream answers, by the last segment of the path: status and fields.
ANSWERS: dict[str, tuple[str, list[str]]] = {
    "typed": ("200 OK", ["Content-Type: image/x-thing", "X-Theirs: 1", "Server: theirs", "ETag: \"1\""]),
    "powered": ("200 OK", ["X-Powered-By: magic", "X-Frame-Options: ALLOW"]),
    "cookies": ("200 OK", ["Set-Cookie: theirs=1; Path=/", "Set-Cookie: more=2; Path=/base; HttpOnly"]),
    "own-cookie": ("200 OK", ["Set-Cookie: session=stolen; Path=/"]),
    "domain-cookie": ("200 OK", ["Set-Cookie: theirs=1; Domain=example.com; Path=/base/x"]),
    "moved": ("302 Found", []),
    "moved-path": ("302 Found", ["Location: /base/there?q"]),
    "moved-away": ("302 Found", ["Location: http://elsewhere.example/x"]),
    "public": ("200 OK", ["Cache-Control: public, max-age=60"]),
    "kept": ("200 OK", ["Cache-Control: max-age=60"]),
    "private": ("200 OK", ["Cache-Control: private, max-age=60"]),
    "commands": ("200 OK", ["X-Accel-Redirect: /own", "X-Sendfile: /etc/passwd", "X-Accel-Expires: 60"]),
    "clearing": ("200 OK", ["Clear-Site-Data: \"*\"", "Service-Worker-Allowed: /"]),
    "hop": ("200 OK", ["Connection: X-Hop", "X-Hop: 1", "X-Not-Hop: 1"]),
    "partial": ("206 Partial Content", ["Content-Range: bytes 0-5/100"]),
    "unsatisfied": ("416 Range Not Satisfiable", ["Content-Range: bytes */100"]),
    "unchanged": ("304 Not Modified", ["ETag: \"1\""]),
    "missing": ("404 Not Found", ["Content-Type: text/plain"]),
    "forbidden": ("403 Forbidden", ["Content-Type: text/plain"]),
    "unknown": ("401 Unauthorized", ["WWW-Authenticate: Basic"]),
    "failing": ("500 Internal Server Error", ["Content-Type: text/plain"]),
    "unavailable": ("503 Service Unavailable", ["Retry-After: 5"]),
    "teapot": ("418 Teapot", []),
}  # fmt: skip


# The table


class Case(NamedTuple):
    """A request, and which of the client's answer has to be the same."""

    raw: bytes
    #: ``whole``, ``status``, or nothing but that it is refused where the relay refuses it.
    answer: str = "whole"


def request(
    target: str, *fields: str, method: str = "GET", user: str | None = "alice", body: bytes | None = None,
    version: str = "1.1",
) -> bytes:  # fmt: skip
    """A request on a connection of its own; a `body` has its length told. A Cookie stands with the session's."""
    cookies = [] if user is None else [f"session={user}"]
    cookies += [field.removeprefix("Cookie: ") for field in fields if field.startswith("Cookie: ")]
    fields = tuple(field for field in fields if not field.startswith("Cookie: "))
    lines = [f"{method} {target} HTTP/{version}"]
    if not any(field.lower().startswith("host:") for field in fields):
        lines.append("Host: a.example")
    if cookies:
        lines.append(f"Cookie: {'; '.join(cookies)}")
    if not any(field.lower().startswith("connection:") for field in fields):
        lines.append("Connection: close")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1") + (body or b"")


def chunked(target: str, *fields: str, body: bytes = b"3\r\nabc\r\n0\r\n\r\n") -> bytes:
    return request(target, "Transfer-Encoding: chunked", *fields, method="POST") + body


def _table() -> Iterator[tuple[str, Case]]:
    """The cases by name."""
    for target in TARGETS:
        yield f"target {target}", Case(request(target), "status")
    for method in ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "BREW", "get", "TRACE", "CONNECT"):
        body = b"abc" if method in ("POST", "PUT", "PATCH", "BREW") else None
        yield f"method {method}", Case(request("/files/x", method=method, body=body), "status")
        yield f"method {method} where two are allowed", Case(request("/strict/x", method=method, body=body), "status")
    for target in ("/files/x", "/files/inner/x", "/open/x", "/files", "/own", "/nothing", "/files/../open/x"):
        for user in (None, "bob", "mallory", "alice"):
            yield f"{user} at {target}", Case(request(target, user=user), "status")
            yield f"{user} posts to {target}", Case(request(target, method="POST", body=b"abc", user=user), "status")
    for name, lines in FIELDS.items():
        yield f"fields: {name}", Case(request("/files/x", *lines), "status")
        yield f"fields on an open route: {name}", Case(request("/open/x", *lines, user=None), "status")
        yield f"fields with rules: {name}", Case(request("/fields/x", *lines), "status")
    for kind in ("ordinary", *ANSWERS):
        yield f"answer {kind}", Case(request(f"/files/{kind}"))
        yield f"answer {kind} on an open route", Case(request(f"/open/{kind}", user=None))
        yield f"answer {kind} with rules", Case(request(f"/fields/{kind}"))
    yield from OTHERS.items()


UPGRADE = ["Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]

TARGETS = [
    "/files", "/files/", "/files?", "/files?a=b", "/files/?", "/files/x?", "/files/a/b/c", "/files/x?a=b&c=%20d+e",
    "/files/x?a=%2F..%2F&b=//", "/files/x?a=b?c=d", "/files/a%20b", "/files/a+b", "/files/a%2Bb", "/files/%41",
    "/files/a%2Fb", "/files/a%2fb", "/files/a%252Fb", "/files/a%3Fb", "/files/a%23b", "/files/a%25b", "/files/%C3%A4",
    "/files/%E4", "/files/%", "/files/%4", "/files/%zz", "/files/a%00b", "/files/a%0Ab", "/files/a%0D%0AX:y",
    "/files/a%7Fb", "/files/a%5Cb", "/files/a\\b", "/files//x", "/files//", "/files/x//y", "/files///x", "//files/x",
    "/files/./x", "/files/.", "/files/..", "/files/../x", "/files/x/..", "/files/x/../y", "/files/../files/x",
    "/files/%2e/x", "/files/%2E%2E/x", "/files/%2e%2e%2fx", "/files/..%2fopen/x", "/files/x%2f..%2fy", "/files/.%2e/x",
    "/files/...", "/files/..x", "/files/x..", "/files/.hidden", "/files/..;/x", "/files/x;a=b/y", "/files/;x",
    "/files/..;a/x", "/files/x;..", "/Files/x", "/FILES/x", "/fileS", "/%66iles/x", "/f%69les/x", "/files%2Fx",
    "/files%2fx", "/filesx", "/files.x", "/files-x/y", "/files;x/y", "/files%20/x", "/files%00/x", "/file/x",
    "/files/inner", "/files/inner/", "/files/inner/x", "/files/innerx", "/files/inner?x", "/files/Inner/x",
    "/files/%69nner/x", "/files//inner/x", "/files/./inner/x", "/files/x/../inner/x", "/files/inner/../x",
    "/files/inner%2Fx", "/files/inner;a/x", "/files%2Finner/x", "/files/inner%2f..%2fx", "/root", "/root/", "/root/x",
    "/root?x", "/root//x", "/root/a%2Fb", "/open/../files/x", "/open/%2e%2e/files/x", "/own/../files/x",
    "/own/..%2ffiles/x", "/files/x y", "/files/x\ty", "/files/x#y", "/files/x?a#b", "/files/x?a b", "/files/<x>",
    "/files/\"x\"", "/files/{x}", "/files/x|y", "/files/x^y", "/files/`x`", "/files/[x]", "/files/x:y", "/files/x@y",
    "/files/!$&'()*+,=", "/files/~x_-.", "/files/\xe4", "/files/\xc3\xa4", "/files/x?\xe4", "/files/x?%",
    "/files/x?%zz",
    "/files/x?%00", "/files/x?%0d%0a", "/files/x?a=\"<>\"", "/files/$1", "/files/$uri", "/files/${x}", "/files/x?$a",
    "/files/{http.request.uri}", "/files/%(x)s", "/files/x?{y}", "/files/%7Bx%7D", "/files/%3Cx%3E", "/files/%22x%22",
    "http://a.example/files/x", "http://evil.example/files/x", "https://a.example/files/x?y", "files/x", "*", "/",
    "http://a.example/files/../x", "a.example:80", "/files/" + "x" * 1000, "/files/x?" + "y" * 1000,
    "/_verify/files/x", "/_verify", "/_verify/../files/x",
]  # fmt: skip

FIELDS: dict[str, list[str]] = {
    "ordinary": ["Accept: text/html", "User-Agent: me/1", "X-Theirs: 1", "Accept-Language: de"],
    "no others": [],
    "repeated": ["X-Theirs: 1", "X-Theirs: 2", "Accept: a", "Accept: b"],
    "empty": ["X-Theirs:", "Accept: "],
    "white space": ["X-Theirs:   a  b  ", "X-More:\ta\t"],
    "Latin-1": ["X-Theirs: \xe4\xf6"],
    "UTF-8": ["X-Theirs: \xc3\xa4"],
    "user": ["X-User: root"],
    "user in another case": ["x-uSER: root"],
    "user with an underscore": ["X_User: root"],
    "user twice": ["X-User: root", "X-User: admin"],
    "user named in Connection": ["Connection: close, X-User", "X-User: root"],
    "users of other proxies": ["X-Forwarded-User: root", "Remote-User: root", "X-Remote-User: root"],
    "original URI": ["X-Original-URI: /open/x", "X-Original-Method: GET", "X-Original-Upgrade: websocket"],
    "forwarded URI": ["X-Forwarded-Uri: /open/x", "X-Forwarded-Method: GET", "X-Forwarded-Path: /open/x"],
    "overridden URL": ["X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-HTTP-Method-Override: DELETE"],
    "the front's own": ["X-Proxy-Key: " + KEY, "X-Proxy-Digest: 0", "X-Proxy-Route: open"],
    "the answer's own": ["X-Proxy-Target: /admin", "X-Proxy-Host: evil.example", "X-Proxy-Fields: x", "X-Proxy-X: 1"],
    "the answer's fields": ["X-Proxy-Answer-X: 1", "X-Proxy-Status: 200", "X-Proxy-Location: /", "X-Proxy-Upgrade: x"],
    "forwarded": ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https"],
    "more forwarded": ["X-Forwarded-Prefix: /x", "X-Forwarded-Port: 1", "X-Forwarded-Server: x", "X-Forwarded-By: x"],
    "other forwarded": ["Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "Proxy: x", "True-Client-IP: 6.6.6.6"],
    "forwarded with underscores": ["X_Forwarded_For: 6.6.6.6", "X-Forwarded_For: 6.6.6.6", "X_Real_IP: 6.6.6.6"],
    "unknown forwarded": ["X-Forwarded-Anything: 1"],
    "forwarded named in Connection": ["Connection: close, X-Forwarded-For, X-Forwarded-Host"],
    "Host named in Connection": ["Connection: close, Host, Via, X-Request-Id"],
    "cookie named in Connection": ["Connection: close, Cookie"],
    "hop": ["Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: 1", "TE: trailers", "Proxy-Connection: close"],
    "hop in two lines": ["Connection: close", "Connection: X-Hop", "X-Hop: 1"],
    "proxy authorization": ["Proxy-Authorization: Basic eDp5"],
    "authorization": ["Authorization: Basic eDp5"],
    "request id": ["X-Request-Id: mine-mine-mine"],
    "via": ["Via: 1.1 other"],
    "cookies": ["Cookie: theme=dark; other=1"],
    "own cookie again": ["Cookie: theme=dark; session=mallory"],
    "cookies with a comma": ["Cookie: theme=dark, session=mallory"],
    "quoted cookie": ["Cookie: theme=\"dark; session=mallory\""],
    "cookies in another line": ["cookie: theme=dark; other=1"],
    "own cookie in another line": ["cookie: theme=dark; session=mallory"],
    "empty cookie": ["cookie: "],
    "unwanted": ["X-Unwanted: 1", "x-unwanted: 2", "X-Route: spoofed"],
    "range": ["Range: bytes=0-5", "If-Range: \"1\""],
    "conditional": ["If-None-Match: \"1\"", "If-Modified-Since: Sat, 28 Nov 2026 00:00:00 GMT"],
    "encoding": ["Accept-Encoding: gzip, br"],
    "no encoding": ["Accept-Encoding: identity"],
    "origin": ["Origin: http://evil.example", "Referer: http://evil.example/x"],
    "preflight": ["Origin: http://evil.example", "Access-Control-Request-Method: PUT"],
    "trace": ["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate: a=b"],
    "websocket's": ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"],
    "upgrade on an ordinary route": [*UPGRADE, "Upgrade: websocket"],
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAM"],
    "copy": ["Destination: http://a.example/open/y", "X-Copy-From: /open/x"],
    "second host": ["Host: a.example", "Host: evil.example"],
    "other host": ["Host: evil.example"],
    "host with a port": ["Host: a.example:81"],
    "bad host": ["Host: a/b"],
    "empty host": ["Host: "],
    "control": ["X-Theirs: a\x01b"],
    "NUL": ["X-Theirs: a\x00b"],
    "bare CR": ["X-Theirs: a\rX-User: root"],
    "bare LF": ["X-Theirs: a\nX-User: root"],
    "folded": ["X-Theirs: a\r\n b"],
    "name with a space": ["X-Theirs : a"],
    "templates": ["X-Theirs: $http_cookie {http.request.uri} %[path] %REQ(:path)% ${x}"],
    "expects something": ["Expect: something"],
    "long": ["X-Theirs: " + "x" * 3000],
}  # fmt: skip

OTHERS: dict[str, Case] = {
    "body": Case(request("/files/x", method="POST", body=b"abc"), "status"),
    "empty body": Case(request("/files/x", method="POST", body=b""), "status"),
    "body of a GET": Case(request("/files/x", body=b"abc"), "status"),
    "big body": Case(request("/files/x", method="PUT", body=b"x" * 100_000), "status"),
    "typed body": Case(request("/files/x", "Content-Type: a/b; c=d", method="POST", body=b"abc"), "status"),
    "encoded body": Case(request("/files/x", "Content-Encoding: gzip", method="POST", body=b"abc"), "status"),
    "chunks": Case(chunked("/files/x"), "status"),
    "chunks with an extension": Case(chunked("/files/x", body=b"3;a=b\r\nabc\r\n0\r\n\r\n"), "status"),
    "chunks with a trailer": Case(chunked("/files/x", body=b"3\r\nabc\r\n0\r\nX-User: root\r\n\r\n"), "status"),
    "no chunks": Case(chunked("/files/x", body=b"0\r\n\r\n"), "status"),
    "bad chunks": Case(chunked("/files/x", body=b"zz\r\nabc\r\n0\r\n\r\n"), ""),
    "both framings": Case(chunked("/files/x", "Content-Length: 3"), ""),
    "two lengths": Case(request("/files/x", "Content-Length: 4", method="POST", body=b"abc"), ""),
    "unknown coding": Case(request("/files/x", "Transfer-Encoding: gzip", method="POST"), ""),
    "expect": Case(request("/files/x", "Expect: 100-continue", method="POST", body=b"abc"), "status"),
    "expect and refused": Case(request("/files/x", "Expect: 100-continue", method="POST", body=b"abc", user="bob"), ""),
    "HTTP/1.0": Case(request("/files/x", version="1.0"), "status"),
    "no Host in HTTP/1.0": Case(b"GET /files/x HTTP/1.0\r\nCookie: session=alice\r\n\r\n", ""),
    "no Host": Case(b"GET /files/x HTTP/1.1\r\nCookie: session=alice\r\nConnection: close\r\n\r\n", ""),
    "HTTP/0.9": Case(b"GET /files/x\r\n\r\n", ""),
    "another version": Case(request("/files/x", version="2.0"), ""),
    "renewed session": Case(request("/files/x", "Cookie: renew=1")),
    "renewed session and other cookies": Case(request("/files/cookies", "Cookie: renew=1")),
    "CSRF without a token": Case(request("/checked/x", method="POST", body=b"abc"), "status"),
    "CSRF with another token": Case(
        request("/checked/x", "X-CSRF-Token: no", "Cookie: csrf_token=yes", method="POST", body=b"abc"), "status"
    ),
    "CSRF with its token": Case(
        request("/checked/x", "X-CSRF-Token: yes", "Cookie: csrf_token=yes", method="POST", body=b"abc"), "status"
    ),
    "CSRF is no matter of a GET": Case(request("/checked/x"), "status"),
    "another Host upstream": Case(request("/host/x"), "status"),
    "forwarded none": Case(request("/host/x", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6"), "status"),
    "nobody there": Case(request("/gone/x"), "status"),
    "no answer": Case(request("/files/broken"), "status"),
    "switched": Case(request("/ws/x", *UPGRADE, "Upgrade: websocket"), "status"),
    "switched in another case": Case(request("/ws/x", *UPGRADE, "Upgrade: WebSocket"), "status"),
    "switched by nobody": Case(request("/ws/x", *UPGRADE, "Upgrade: websocket", user=None), "status"),
    "switched by bob": Case(request("/ws/x", *UPGRADE, "Upgrade: websocket", user="bob"), "status"),
    "switched from elsewhere": Case(request("/ws/x", *UPGRADE, "Upgrade: websocket", "Origin: http://e.x"), "status"),
    "switched from here": Case(request("/ws/x", *UPGRADE, "Upgrade: websocket", "Origin: http://a.example"), "status"),
    "another protocol": Case(request("/ws/x", *UPGRADE, "Upgrade: other"), "status"),
    "two protocols": Case(request("/ws/x", *UPGRADE, "Upgrade: other, websocket"), "status"),
    "not switched at a mount for it": Case(request("/ws/x"), "status"),
    "switched below dots": Case(request("/ws/../files/x", *UPGRADE, "Upgrade: websocket"), "status"),
}  # fmt: skip

CASES = dict(_table())
