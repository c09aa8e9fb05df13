"""Real servers with their exported configurations, a real application behind them, scripted upstreams behind both."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response

from tests.engines.conftest import ACCEL, HANDSHAKE, SHOWING, Way, guarded, holding, switching
from tests.support.fronts import KEY, TRUSTED, with_root
from tests.support.origin import MakeOrigin, MakeTls, Origin, answering, echo
from tests.support.site import MakeSite
from tests.support.wire import OriginWire, Request, received


def plain(request: Request) -> set[tuple[str, str]]:
    """The fields of a request, without what differs from one to the next."""
    return {(name.lower(), value) for name, value in request.fields if name.lower() not in OF_THE_MOMENT}


#: Besides these; Envoy tells the length of no body.
OF_THE_MOMENT = ("x-request-id", "content-length")


SPOOFED = {
    "X-Who": "root", "X-Remote-User": "root", "Remote-User": "root", "True-Client-IP": "8.8.8.8", "Forwarded": "for=x",
    "X-Forwarded-For": "8.8.8.8", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil", "X-Forwarded-User": "root", "X-Real-IP": "8.8.8.8", "X-Proxy-Key": KEY,
    "X-Proxy-Route": "other", "X-Proxy-Target": "/admin", "X-Original-URI": "/r/admin", "X-Original-Method": "GET",
    "X-Original-URL": "/admin", "X-Rewrite-URL": "/admin", "X-HTTP-Method-Override": "DELETE", "Proxy": "evil",
    "Cookie": "session=mine; a=b", "Authorization": "Basic x", "X-Request-Id": "of-the-client", "X-Forwarded-Uri": "/q",
}  # fmt: skip


@holding("traefik")  # whose targets are normalised
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PROPFIND"])
def test_the_upstream_sees_what_the_relay_would_send(origin: MakeOrigin, site: MakeSite, way: Way, method: str) -> None:
    """Line and fields, whatever the client claims to be: the same request by the relay and by the front."""
    upstream = origin(echo)
    settings = {
        **guarded("r", f"{upstream.url}/base", forwarded="both", request__origin="upstream"),
        "proxy.routes.r.request.set.X-Who": "{userid}", **way.settings,
    }  # fmt: skip
    there = site(settings, configure=with_root)
    fields = {**SPOOFED, "Host": there.authority, "Origin": there.url, "X-User": "alice", "Accept": "x/y"}
    del fields["X-Proxy-Key"]  # to the relay it is a front's
    target, body = "/r/a%2Fb;c=%41/d?e=%2e%2e&f", b"body" if method == "POST" else None
    assert there.get(target, fields, method, body).status == 200
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    assert front.get(target, fields | {"X-Proxy-Key": KEY}, method, body).status == 200
    relayed, moved = upstream.requests
    assert (moved.method, moved.target, moved.body) == (relayed.method, relayed.target, relayed.body)
    assert plain(moved) == plain(relayed)
    assert moved.one("X-Who") == "alice"


TARGETS = (
    "/r/../x", "/r/%2e%2e/x", "/r/..%2fx", "//r/x", "/r%2Fx", "/r/%ff", "/r/a%5Cb", "/x/../r/x", "/R/x", "/rx",
    "/r/%00", "/r//inner/x", "/r/./x", "/r/x%0a", "/r/;/../inner", "/r/%zz", "/r", "/r?q", "/inner/../r/x",
)  # fmt: skip


def test_what_could_mean_something_else_goes_nowhere(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """Dots, slashes and escapes: refused as the relay refuses them, with the same status, and nothing goes up.

    Caddy and Traefik look for the route of a path that they have cleaned: one of another route is 404.
    """
    upstream = origin(echo)
    settings = {**guarded("r", upstream.url), **guarded("inner", upstream.url, prefix="/r/inner"), **way.settings}
    there = site(settings, configure=with_root, **TRUSTED)
    front = way.start(there)
    for target in TARGETS:
        status, expected = front.get(target).status, there.get(target, {"X-User": "alice"}).status
        assert status == expected or (way.engine in ("caddy", "traefik") and status in (400, 404)), target
    assert upstream.accepted == 0


def test_refusals_are_the_applications_own(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """Its pages, redirects and cookies come to the client, also for uploads, and nothing goes up."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        with_root(config)

        def forbidden(request: Any) -> Any:
            if "login" in request.path:
                return HTTPFound("/login", headers=[("Set-Cookie", "next=x"), ("Set-Cookie", "and=y")])
            return Response("who are you?", status=401 if "who" in request.path else 200)

        config.add_forbidden_view(forbidden)

    front = way.start(
        site({**guarded("r", upstream.url, methods="GET POST"), **way.settings}, configure=configure, **TRUSTED)
    )
    bob = {"X-User": "bob"}
    assert (front.get("/r/who", bob).status, front.get("/r/who", bob).body) == (401, b"who are you?")
    redirected = front.get("/r/login", bob, "POST", b"x" * 300_000)
    assert (redirected.status, redirected.one("Location")) == (302, f"{front.url}/login")
    assert redirected.all("Set-Cookie") == ["next=x", "and=y"]
    page = front.get("/r/page", bob)
    assert (page.status, page.body) == ((403, b"") if way.engine in SHOWING else (200, b"who are you?"))
    allowed = front.get("/r/x", method="PUT", body=b"x")
    assert (allowed.status, allowed.one("Allow")) == (405, "GET, HEAD, POST")
    assert upstream.accepted == 0


def test_uploads(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """A body of some megabytes arrives whole, with a length and in chunks."""

    def measure(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(str(len(request.body)).encode())

    upstream = origin(measure)
    front = way.start(site({**guarded("r", upstream.url), **way.settings}, configure=with_root, **TRUSTED))
    assert front.get("/r/x", method="PUT", body=b"x" * 3_000_000).body == b"3000000"
    chunks = front.get("/r/x", {}, "PUT", iter([b"x" * 1000] * 100))
    assert chunks.body == b"100000"


def test_websockets(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """A page of the site's own opens one and bytes pass both ways; a foreign page's is 403."""
    upstream = origin(switching)
    ordinary = origin(echo)
    settings = {**guarded("r", upstream.url, upgrade="websocket"), **guarded("no", ordinary.url), **way.settings}
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    lines = f"Host: 127.0.0.1:{front.port}\r\nX-User: alice\r\n{HANDSHAKE}"
    with closing(front.client()) as client:
        client.send(f"GET /r/x HTTP/1.1\r\n{lines}Origin: {front.url}\r\n\r\n".encode())
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        client.send(b"\x00bytes")
        assert client.exactly(6) == b"\x00bytes"
    with closing(front.client()) as client:
        client.send(f"GET /r/x HTTP/1.1\r\n{lines}Origin: http://evil\r\n\r\n".encode())
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert upstream.accepted == 1
    with closing(front.client()) as client:
        client.send(f"GET /no/x HTTP/1.1\r\n{lines}\r\n".encode())
        status = 403 if way.engine == "envoy" else 200
        assert client.until(b"\r\n\r\n").startswith(f"HTTP/1.1 {status} ".encode())
    assert [request.one("Upgrade") for request in ordinary.requests] == ([] if status == 403 else [None])


@holding("traefik")
def test_fields_of_the_answer(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """Overrides, redirects, cookies and caching: as the relay has them, and no command to a front is obeyed."""
    head = (
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Gone: 1\r\nX-Set: theirs\r\nX-Default: theirs\r\n"
        "X-Accel-Redirect: /own\r\n"
        "Cache-Control: max-age=5\r\nSet-Cookie: a=b; Path=/base/x; Domain=up.example\r\nSet-Cookie: c=d; Path=/\r\n"
        "Clear-Site-Data: *\r\nLocation: {url}/base/next?q\r\nServer: theirs\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        "X-Sendfile: /etc/passwd\r\n\r\n"
    )  # fmt: skip
    served: list[Origin] = []

    def script(wire: OriginWire) -> None:
        while wire.request() is not None:
            wire.send(head.replace("{url}", served[0].url).encode())

    served.append(origin(script))
    settings = {**guarded("r", f"{served[0].url}/base", response__remove="X-Gone", permission="view"), **way.settings}
    more = {"set.X-Set": '$ours "\\" ; {x}', "add.X-Add": "ours", "default.X-Default": "ours", "default.X-Other": "a$b"}
    settings |= {f"proxy.routes.r.response.{name}": value for name, value in more.items()}
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    answer = front.get("/r/x")
    assert answer.one("X-Set") == '$ours "\\" ; {x}'
    assert (answer.one("X-Add"), answer.one("X-Default"), answer.one("X-Other")) == ("ours", "theirs", "a$b")
    assert (answer.one("X-Gone"), answer.one("Clear-Site-Data"), answer.one("X-Sendfile")) == (None, None, None)
    assert answer.one("Cache-Control") == "private, max-age=5"
    assert answer.one("Location") == f"{front.url}/r/next?q"
    domain = "; Domain=" if way.engine == "nginx" else ""
    assert answer.all("Set-Cookie") == [f"a=b; Path=/r/x{domain}", "c=d; Path=/r"]
    assert (answer.one("Server"), answer.one("Date")) == ("theirs", "Thu, 01 Jan 2026 00:00:00 GMT")
    assert len(str(answer.one("X-Request-Id"))) == 32


@holding("caddy", "traefik")
def test_only_some_fields_go_up(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """With `request.only` what is not named stays home."""
    upstream = origin(echo)
    front = way.start(
        site({**guarded("r", upstream.url, request__only="Accept"), **way.settings}, configure=with_root, **TRUSTED)
    )
    request = received(front.get("/r/x", {"Accept": "x/y", "X-Other": "z", "Cookie": "a=b"}))
    assert (request.one("Accept"), request.one("X-Other"), request.one("Cookie")) == ("x/y", None, None)


@holding("traefik")
def test_hosts_and_patterns(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """Routes for a host, for all below one and for any, and one with placeholders, lead where the relay's do."""
    upstream = origin(echo)
    settings = {
        **guarded("one", f"{upstream.url}/one", prefix="/x", host="one.example"),
        **guarded("star", f"{upstream.url}/star", prefix="/x", host="*.example"),
        **guarded("any", f"{upstream.url}/any", prefix="/x"), **way.settings,
    }  # fmt: skip
    pattern = {"pattern": r"/files/{kind:[a-z]+}/*rest", "upstream": upstream.url + "/{kind}/{rest}?of={kind}"}
    settings |= {f"proxy.routes.p.{name}": value for name, value in pattern.items()} | {
        "proxy.routes.p.permission": "view"
    }
    front = way.start(site(settings, configure=with_root, **TRUSTED))
    found = {
        host: received(front.get("/x/y", {"Host": host})).target
        for host in ("one.example", "two.example:80", "elsewhere", "ONE.example")
    }
    assert found == {
        "one.example": "/one/y", "two.example:80": "/star/y", "elsewhere": "/any/y", "ONE.example": "/one/y",
    }  # fmt: skip
    assert received(front.get("/files/abc/d%2Fe/f?q")).target == "/abc/d/e/f?of=abc&q"
    assert front.get("/files/A/d").status == 404


def test_a_stale_configuration_moves_nothing_by_itself(
    origin: MakeOrigin, site: MakeSite, asking: Way, caplog: pytest.LogCaptureFixture
) -> None:
    """Made of other routes, nginx that asks gets 503 for its clients; and one that is handed things is handed none."""
    upstream = origin(echo)
    there = site({**guarded("r", upstream.url), **asking.settings}, configure=with_root, **TRUSTED)
    assert asking.start(there, spoil=lambda text: text.replace(there.engine.digest, "0" * 32)).get("/r/x").status == 503
    assert (upstream.accepted, caplog.text.count("export it anew")) == (0, 1)


def test_a_stale_configuration_leaves_it_to_the_relay(
    origin: MakeOrigin, site: MakeSite, accel: Way, caplog: pytest.LogCaptureFixture
) -> None:
    """With `accel` the application relays by itself what nginx would send by other rules."""
    upstream = origin(echo)
    there = site({**guarded("r", upstream.url), **accel.settings}, configure=with_root, **TRUSTED)
    front = accel.start(there, spoil=lambda text: text.replace(there.engine.digest, "0" * 32))
    assert received(front.get("/r/x")).one("X-Forwarded-For") == "127.0.0.1"
    assert there.engine.upstreams.pools()
    assert caplog.text.count("export it anew") == 1


def test_without_the_application_nobody_gets_in(origin: MakeOrigin, site: MakeSite, asking: Way) -> None:
    """Nobody can be asked: that is the server's fault, and the upstream is left alone."""
    upstream = origin(echo)
    there = site({**guarded("r", upstream.url), **asking.settings}, configure=with_root, **TRUSTED)
    port = f'"port_value": {there.port}'
    front = asking.start(
        there, spoil=lambda text: text.replace(there.authority, "127.0.0.1:1").replace(port, '"port_value": 1')
    )
    assert front.get("/r/x").status >= 500
    assert upstream.accepted == 0


def test_without_the_key_nothing_is_handed_over(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that comes straight to the application is relayed to, and sees no target."""
    upstream = origin(echo)
    there = site({**guarded("r", f"{upstream.url}/secret"), **ACCEL}, configure=with_root)
    for key in ("", "x", KEY[:-1]):
        answer = there.get("/r/x", {"X-User": "alice", "X-Proxy-Key": key, "X-Proxy-Digest": there.engine.digest})
        assert received(answer).target == "/secret/x"
        assert [name for name, _ in answer.fields if name.lower().startswith(("x-accel", "x-proxy"))] == []
        assert received(answer).one("X-Proxy-Key") is None


def test_with_the_key_the_target_is_handed_over(site: MakeSite) -> None:
    """The named location, and what a question would be told; nothing goes up from here and no slot is taken."""
    there = site({**guarded("r", "http://up.example/base"), **ACCEL}, configure=with_root, **TRUSTED)
    fields = {"X-User": "alice", "X-Proxy-Key": KEY, "X-Proxy-Digest": there.engine.digest, "Cookie": "session=1; a=b"}
    answer = there.get("/r/a%2Fb?c", fields, "POST", b"body")
    assert (answer.status, answer.one("X-Accel-Redirect"), answer.one("X-Proxy-Target")) == (
        200, "@proxied_r", "/base/a%2Fb?c",
    )  # fmt: skip
    assert (answer.one("X-Proxy-Host"), answer.one("Cookie"), answer.body) == ("up.example", "a=b", b"")
    assert there.engine.admission.in_flight == 0


def test_what_nginx_cannot_be_told_of_is_relayed(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a hook puts a field that no configuration knows, this process sends it, and the log says why."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_proxy_route(
            "r", prefix="/r", upstream=upstream.url, permission="view",
            hooks_request=lambda request, exchange: exchange.request.headers.update({"X-Role": "admin"}),
        )  # fmt: skip

    there = site(ACCEL, configure=configure, **TRUSTED)
    fields = {"X-User": "alice", "X-Proxy-Key": KEY, "X-Proxy-Digest": there.engine.digest, "X-Role": "root"}
    assert received(there.get("/r/x", fields, "POST", b"body")).one("X-Role") == "admin"
    assert "relayed by this process rather than by nginx: r: its request hook changed x-role" in caplog.text


def test_tls_upstreams(tls_origin: MakeTls, authority: Any, site: MakeSite, asking: Way) -> None:
    """The upstream's certificate is verified: by the route's authority it is believed, by the system's it is not."""
    upstream = tls_origin(echo, "DNS:localhost")
    known = {"tls__ca_file": str(authority.ca_file), "tls__server_name": "localhost"}
    settings = {
        **guarded("r", upstream.url, **known), **guarded("system", upstream.url, tls__server_name="localhost"),
        **guarded("other", upstream.url, **known | {"tls__server_name": "other"}), **asking.settings,
    }  # fmt: skip
    front = asking.start(site(settings, configure=with_root, **TRUSTED))
    assert received(front.get("/r/x")).target == "/x"
    assert {front.get("/system/x").status, front.get("/other/x").status} <= {500, 502, 503}
    assert len(upstream.requests) == 1


def test_an_upstream_that_is_gone(site: MakeSite, asking: Way) -> None:
    """The front says so itself, HAProxy with another status than the relay."""
    front = asking.start(
        site({**guarded("r", "http://127.0.0.1:9"), **asking.settings}, configure=with_root, **TRUSTED)
    )
    assert front.get("/r/x").status == (503 if asking.engine == "haproxy" else 502)


def test_several_upstreams(origin: MakeOrigin, site: MakeSite, asking: Way) -> None:
    """Each in turn, and one that refuses is passed over."""
    one, other = origin(answering(*[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"] * 9)), origin(echo)
    urls = f"{one.url} {other.url} http://127.0.0.1:9"
    front = asking.start(site({**guarded("r", urls), **asking.settings}, configure=with_root, **TRUSTED))
    assert {front.get("/r/x").status for _ in range(6)} == {200}
    assert one.requests
    assert other.requests


def test_the_applications_own_pages(origin: MakeOrigin, site: MakeSite, way: Way) -> None:
    """What is no proxied route's comes from the application, with the client's address; the endpoint is nobody's.

    Envoy and Traefik show the answer to the question, which is about no page of the application's.
    """

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_route("own", "/r/own")
        config.add_view(lambda request: Response(f"{request.method} {request.client_addr}"), route_name="own")

    front = way.start(site({**guarded("r", "http://127.0.0.1:9"), **way.settings}, configure=configure, **TRUSTED))
    own = front.get("/r/own", {"X-Forwarded-For": "8.8.8.8"}, "POST", b"x")
    assert (own.status == 404) if way.engine in ("envoy", "traefik") else (own.body == b"POST 127.0.0.1")
    assert front.get("/_verify", {"X-Proxy-Key": KEY}).status == 404
    assert front.get("/.verify", {"X-Proxy-Key": KEY}).status == 404
