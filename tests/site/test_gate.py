"""What an attacker tried: each way in that was once open, through the whole stack."""

from __future__ import annotations

import io
import struct
import threading
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy import SettingsError
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Policy, route, with_view
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received

GUARDED = {
    "proxy.routes.r.prefix": "/r",
    "proxy.routes.r.upstream": "http://127.0.0.1:1",
    "proxy.routes.r.permission": "view",
    "proxy.own_cookies": "session",
}


@pytest.mark.parametrize("autocommit", [False, True], ids=["commit", "autocommit"])
def test_a_policy_that_comes_too_late_is_a_start_up_error(autocommit: bool) -> None:
    """A view that was derived before the security policy was set asks nobody: the application does not start."""
    config = Configurator(settings=GUARDED, autocommit=autocommit)
    config.include("pyramid_threaded_proxy")
    config.commit()
    config.set_security_policy(Policy())
    with pytest.raises(SettingsError, match=r"proxy\.routes\.r: the security policy or default permission was set"):
        config.make_wsgi_app()


def test_csrf_options_that_come_too_late_are_a_start_up_error() -> None:
    """The same for CSRF, where the route leaves it to the application; a route that says for itself is not touched."""
    for key, fails in (({}, True), ({"proxy.routes.r.require_csrf": "false"}, False)):
        config = Configurator(settings=GUARDED | key)
        config.set_security_policy(Policy())
        config.include("pyramid_threaded_proxy")
        config.commit()
        config.set_default_csrf_options(require_csrf=True)
        if fails:
            with pytest.raises(SettingsError, match=r"proxy\.routes\.r: the CSRF options were set after"):
                config.make_wsgi_app()
        else:
            config.make_wsgi_app()


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_a_view_does_not_forward_what_is_never_sent(origin: MakeOrigin, site: MakeSite, method: str) -> None:
    """`proxy_forward` refuses CONNECT and TRACE as a declared route does: nothing goes up."""
    upstream = origin(echo)
    here = site(configure=with_view(lambda request: request.proxy_forward(upstream.url + "/x")))
    assert here.get("/own", method=method).status == 405
    assert upstream.accepted == 0


def test_a_view_forwards_only_what_the_route_allows(origin: MakeOrigin, site: MakeSite) -> None:
    """`proxy_forward` to a declared route keeps to that route's methods."""
    upstream = origin(echo)
    here = site(
        route("r", upstream.url, methods="GET"),
        configure=with_view(lambda request: request.proxy_forward("r", "/x")),
    )
    assert here.get("/own", method="DELETE").status == 405
    assert here.get("/own").status == 200
    assert upstream.accepted == 1


@pytest.mark.parametrize("how", ["view", "middleware"])
def test_the_body_that_was_looked_at_is_sent(origin: MakeOrigin, site: MakeSite, how: str) -> None:
    """A body that the application has put in the place of the client's goes up, not the client's."""
    upstream = origin(echo)

    def view(request: Any) -> Any:
        if how == "view":
            request.body = b"clean"
        return request.proxy_forward(upstream.url + "/x")

    def wrap(application: Any) -> Any:
        def middleware(environ: dict[str, Any], start_response: Any) -> Any:
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(b"clean"), "5"
            return application(environ, start_response)

        return middleware if how == "middleware" else application

    answer = site(configure=with_view(view), wrap=wrap).get("/own", method="POST", body=b"EVIL ORIGINAL")
    assert received(answer).body == b"clean"


def test_the_body_that_was_read_is_sent_whole(origin: MakeOrigin, site: MakeSite) -> None:
    """Reading the form, which WebOb does from a copy, takes nothing away from what goes up."""
    upstream = origin(echo)

    def view(request: Any) -> Any:
        assert request.POST["a"] == "1"
        return request.proxy_forward(upstream.url + "/x")

    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = site(configure=with_view(view)).get("/own", kind, "POST", b"a=1&b=2")
    assert received(answer).body == b"a=1&b=2"


@pytest.mark.parametrize("path", ["/own", "/r/denied"])
def test_bytes_after_a_request_for_an_upgrade_are_never_run(origin: MakeOrigin, site: MakeSite, path: str) -> None:
    """A request that comes in a later packet, before the refused upgrade has its answer, is not run: all ends there."""
    gate, entered, run = threading.Event(), threading.Event(), []

    def own(request: Any) -> Response:
        entered.set()
        gate.wait(10)
        return Response("own")

    def hold(wire: OriginWire) -> None:
        while wire.request() is not None:
            entered.set()
            gate.wait(10)
            wire.answer(b"no")

    def configure(config: Configurator) -> None:
        with_view(own)(config)
        config.add_route("secret", "/secret")
        config.add_view(lambda request: run.append(1) or Response("secret"), route_name="secret")

    here = site(route("r", origin(hold).url, upgrade="websocket"), configure=configure)
    client = here.client()
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
    assert entered.wait(10)
    client.send(b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n")
    gate.set()
    everything = client.rest_or_reset()
    client.close()
    assert everything.count(b"HTTP/1.1 ") <= 1
    assert run == []


def test_a_refused_upgrade_leaves_no_connection_behind(origin: MakeOrigin, site: MakeSite) -> None:
    """The upstream's connection on which an upgrade was asked for is not used again."""
    upstream = origin(echo)
    here = site(route("r", upstream.url, upgrade="websocket"))
    assert b"Upgrade: websocket" in here.get("/r/", {"Connection": "Upgrade", "Upgrade": "websocket"}).body
    here.get("/r/")
    assert upstream.accepted == 2


def test_an_expectation_without_a_body_does_not_melt_requests(origin: MakeOrigin, site: MakeSite) -> None:
    """`Expect: 100-continue` on a request without a body is nothing to wait for: the next request is its own."""
    upstream = origin(echo)
    everything = site(route("r", upstream.url)).raw(
        b"GET /r/first HTTP/1.1\r\nHost: one\r\nX-One: 1\r\nExpect: 100-continue\r\n\r\n"
        b"POST /r/second HTTP/1.1\r\nHost: two\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    )
    first, second = everything.index(b"GET /first"), everything.index(b"POST /second")
    assert first < second
    assert b"X-One" not in everything[second:]
    assert b"X-Forwarded-Host: two" in everything[second:]


def test_a_recheck_asks_for_the_same_user(origin: MakeOrigin, site: MakeSite) -> None:
    """When somebody else has taken over the session, the stream of the former user ends, whoever has the permission."""
    user, over = ["alice"], threading.Event()

    class Session(Policy):
        def authenticated_userid(self, request: Any) -> str | None:
            return user[0]

        def permits(self, request: Any, context: Any, permission: str) -> bool:
            return True

    def script(wire: OriginWire) -> None:
        if wire.request() is not None:
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
            wire.wait_closed()
            over.set()

    settings = route("r", origin(script).url, recheck="50ms", permission="view")
    here = site(
        settings | {"proxy.own_cookies": "session"},
        configure=lambda config: config.set_security_policy(Session()),
    )
    client = here.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.until(b"ok\r\n")
    user[0] = "bob"
    assert over.wait(10)
    client.close()


def test_a_long_accept_field_holds_nobody_up(origin: MakeOrigin, site: MakeSite) -> None:
    """An Accept field of 200 KB is not read: the error page is the one for clients that say nothing."""
    here = site(route("r", "http://127.0.0.1:1"))
    for times, kind in ((1, "application/json"), (12_000, "text/html; charset=UTF-8")):
        answer = here.get("/r/", {"Accept": ",".join(["application/json"] * times)})
        assert (answer.status, answer.one("Content-Type")) == (502, kind)


def test_the_access_log_cuts_what_a_client_says(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A User-Agent of 200 KB makes a line of a few KB."""
    caplog.set_level("INFO", "pyramid_threaded_proxy.access")
    here = site(route("r", origin(echo).url))
    assert here.get("/r/", {"User-Agent": "\xff" * 200_000}).status == 200
    wait_until(lambda: [record for record in caplog.records if record.name == "pyramid_threaded_proxy.access"])
    line = next(record for record in caplog.records if record.name == "pyramid_threaded_proxy.access")
    assert len(line.getMessage()) < 10_000


def test_a_reset_after_a_half_close_ends_the_tunnel(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that first half-closes and then resets is gone: its place and its upstream are free at once."""
    closed, over = threading.Event(), threading.Event()

    def script(wire: OriginWire) -> None:
        if wire.request() is not None:
            wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while wire.receive():
                pass
            closed.set()
            over.wait(10)

    here = site(route("r", origin(script).url, upgrade="websocket"))
    client = here.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    client.until(b"\r\n\r\n")
    client.half_close()
    assert closed.wait(10)
    assert here.engine.admission.in_flight == 1
    client.sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: here.engine.admission.in_flight == 0, "the free place", timeout=3)
    over.set()


def test_a_head_that_was_made_a_get_has_no_body(origin: MakeOrigin, site: MakeSite) -> None:
    """Whatever a tween makes of the method, a client that asked with HEAD gets no body: it would be its next answer."""
    upstream = origin(echo)

    def view(request: Any) -> Any:
        request.method = "GET"
        return request.proxy_forward(upstream.url)

    everything = site(configure=with_view(view)).raw(b"HEAD /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert everything.endswith(b"\r\n\r\n")
    assert everything.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("how", ["answers", "raises"])
def test_a_given_body_is_closed_where_no_exchange_starts(site: MakeSite, how: str) -> None:
    """A request hook that answers or raises leaves the file that the view gave closed."""
    file = io.BytesIO(b"abc")

    def hook(request: Any, exchange: Any) -> Response:
        if how == "raises":
            raise ValueError("no")
        return Response("instead")

    def view(request: Any) -> Any:
        try:
            return request.proxy_fetch("http://127.0.0.1:1/", method="PUT", body=file, on_request=hook)
        except ValueError:
            return Response("instead")

    assert site(configure=with_view(view)).get("/own").body == b"instead"
    assert file.closed


def test_a_hook_answers_with_a_final_status(origin: MakeOrigin, site: MakeSite) -> None:
    """A `response` hook that returns an interim status is a failed exchange: the client would wait for ever."""
    upstream = origin(echo)
    view = with_view(
        lambda request: request.proxy_fetch(upstream.url, on_response=lambda exchange: Response(status=103))
    )
    assert site(configure=view).get("/own").status == 500


@pytest.mark.parametrize("path", ["/a//secret/x", "/a/secret;v=1/x", "/a/%73ecret;/x", "/a/x/..;/secret"])
def test_a_path_that_could_mean_a_guarded_mount_is_refused(origin: MakeOrigin, site: MakeSite, path: str) -> None:
    """Where a mount lies inside another, what a lenient upstream takes for the inner one is 400 on the outer."""
    upstream = origin(echo)
    settings = route("a", upstream.url) | route("s", upstream.url + "/secret", prefix="/a/secret")
    here = site(settings)
    assert here.get(path).status == 400
    assert upstream.accepted == 0
    assert here.get("/a/secrets;v=1/x").status == 200
    assert here.get("/a/b//c").status == 200
