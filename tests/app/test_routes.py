"""Where a proxied route stands and what is below its mount, through the whole stack."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Site, own_view, route
from tests.support.wire import received


def target_of(site: Site, path: str) -> str:
    """The target that the upstream saw."""
    return received(site.get(path)).target


def ask(site: Site, target: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    """The answer to a request whose target and fields are given as bytes."""
    lines = [b"GET %b HTTP/%b" % (target, version), *(fields or (b"Host: a",)), b"Connection: close", b"", b""]
    return site.raw(b"\r\n".join(lines))


# Behind the application's own


def declared_late(config: Configurator) -> None:
    own_view(config, "own", "/r/own")


def declared_after_commit(config: Configurator) -> None:
    config.commit()
    own_view(config, "own", "/r/own")


def declared_in_an_include(config: Configurator) -> None:
    config.include(lambda config: own_view(config, "own", "/own"), route_prefix="/r")


def declared_after_an_imperative_one(config: Configurator) -> None:
    config.add_proxy_route("other", prefix="/r/own", upstream="http://127.0.0.1:9", public=True)
    config.commit()
    own_view(config, "own", "/r/own")


@pytest.mark.parametrize(
    "configure",
    [declared_late, declared_after_commit, declared_in_an_include, declared_after_an_imperative_one],
    ids=lambda configure: configure.__name__,
)
def test_the_applications_routes_come_first(
    configure: Callable[[Configurator], None], origin: MakeOrigin, site: MakeSite
) -> None:
    """However late the application adds a route of its own, it is asked before the proxied ones."""
    made = site(route("r", origin(echo).url), configure=configure)
    assert made.get("/r/own").body == b"own"
    assert target_of(made, "/r/else") == "/else"


def test_under_autocommit_too(origin: MakeOrigin) -> None:
    """Under autocommit a route is in place at once, and is still put behind those that come later."""
    config = Configurator(settings=route("r", origin(echo).url), autocommit=True)
    config.include("pyramid_threaded_proxy")
    own_view(config, "own", "/r/own")
    assert Request.blank("/r/own").get_response(config.make_wsgi_app()).body == b"own"


# Among themselves


@pytest.mark.parametrize("first", ["short", "long"])
def test_the_longest_prefix_wins(first: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Of nested mounts the longer one is asked first, wherever it was declared."""
    url = origin(echo).url
    both = {"short": route("short", url + "/s", prefix="/a"), "long": route("long", url + "/l", prefix="/a/b")}
    made = site({**both.pop(first), **next(iter(both.values()))})
    assert target_of(made, "/a/b/c") == "/l/c"
    assert target_of(made, "/a/bc") == "/s/bc"


def test_patterns_go_before_prefixes(origin: MakeOrigin, site: MakeSite) -> None:
    """A pattern is asked before a prefix that takes the same URLs, whatever was declared first."""
    url = origin(echo).url
    settings = route("p", url + "/prefix", prefix="/a/b")
    settings |= {
        "proxy.routes.q.pattern": "/a/{x}",
        "proxy.routes.q.upstream": url + "/pattern/{x}",
        "proxy.routes.q.public": "true",
    }
    made = site(settings)
    assert target_of(made, "/a/b") == "/pattern/b"
    assert target_of(made, "/a/b/c") == "/prefix/c"


def test_order_goes_before_all(origin: MakeOrigin, site: MakeSite) -> None:
    """A lower `order` is asked first, though its prefix is the shorter one."""
    url = origin(echo).url
    made = site({**route("long", url + "/l", prefix="/a/b"), **route("short", url + "/s", prefix="/a", order="-1")})
    assert target_of(made, "/a/b/c") == "/s/b/c"


# Mounts


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/reports", "/v2"),
        ("/reports?q", "/v2?q"),
        ("/reports/", "/v2/"),
        ("/reports/a//b", "/v2/a//b"),
        ("/%72eports/x", "/v2/x"),
        ("/reports/%7Ex/%2525/%C3%A9", "/v2/%7Ex/%2525/%C3%A9"),
        ("/reports/a%2Fb%3Bc", "/v2/a%2Fb%3Bc"),
        ("/reports/x?a=%zz/../&b[]=\\", "/v2/x?a=%zz/../&b[]=\\"),
        ("http://elsewhere/reports/x?y", "/v2/x?y"),
    ],
)
def test_what_is_below_a_prefix(path: str, target: str, origin: MakeOrigin, site: MakeSite) -> None:
    """The rest behind the mount goes up with the client's own bytes, and the query untouched."""
    assert target_of(site(route("reports", origin(echo).url + "/v2")), path) == target


@pytest.mark.parametrize("path", ["/reportsx", "/report", "/REPORTS", "/other/reports", "/reports/%0Ax", "/"])
def test_what_is_not_below_a_prefix(path: str, site: MakeSite) -> None:
    """A URL that is not below the mount is the application's own 404."""
    assert site(route("reports", "http://127.0.0.1:9")).get(path).status == 404


@pytest.mark.parametrize("target", [b"//reports", b"//reports/x", b"/reports%2Fx", b"/reports%2fx/y"])
def test_what_only_looks_as_if_below(target: bytes, site: MakeSite) -> None:
    """What Pyramid takes for the mount, but isn't when read raw, is refused."""
    answer = ask(site(route("reports", "http://127.0.0.1:9")), target)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_prefix_of_everything(origin: MakeOrigin, site: MakeSite) -> None:
    """The prefix ``/`` takes whatever the application leaves."""
    made = site(route("all", origin(echo).url, prefix="/"), configure=lambda config: own_view(config, "own", "/own"))
    assert made.get("/own").body == b"own"
    assert target_of(made, "/") == "/"
    assert target_of(made, "/a/b?c") == "/a/b?c"


@pytest.mark.parametrize("prefix", ["/berichte/%C3%BCber", "/berichte/%c3%bcber"])
def test_a_prefix_outside_ascii(prefix: str, origin: MakeOrigin, site: MakeSite) -> None:
    """A prefix outside ASCII is written escaped, and matches however its escapes are spelt."""
    made = site(route("r", origin(echo).url, prefix=prefix))
    assert target_of(made, "/berichte/%C3%BCber/a") == "/a"
    assert target_of(made, "/berichte/%c3%bcber/%c3%a9") == "/%c3%a9"


def test_a_route_prefix(origin: MakeOrigin, site: MakeSite) -> None:
    """The route prefix of an include is part of the mount."""
    url = origin(echo).url

    def inner(config: Configurator) -> None:
        config.add_proxy_route("r", prefix="/reports", upstream=url, public=True)

    made = site(configure=lambda config: config.include(inner, route_prefix="/inner"))
    request = received(made.get("/inner/reports/x"))
    assert request.target == "/x"
    assert request.one("X-Forwarded-Prefix") == "/inner/reports"


def test_a_route_prefix_with_a_prefix_of_everything(origin: MakeOrigin, site: MakeSite) -> None:
    """The prefix ``/`` below a route prefix takes what is below that, and nothing else."""
    url = origin(echo).url

    def inner(config: Configurator) -> None:
        config.add_proxy_route("r", prefix="/", upstream=url + "/v", public=True)

    made = site(configure=lambda config: config.include(inner, route_prefix="/inner"))
    assert target_of(made, "/inner/x") == "/v/x"
    assert target_of(made, "/inner/") == "/v/"
    assert made.get("/innerx").status == 404


def test_a_script_name(origin: MakeOrigin, site: MakeSite) -> None:
    """waitress's ``url_prefix`` is part of the mount."""
    made = site(route("reports", origin(echo).url), url_prefix="/app")
    request = received(made.get("/app/reports/x"))
    assert request.target == "/x"
    assert request.one("X-Forwarded-Prefix") == "/app/reports"


def test_a_script_name_of_a_url_map(origin: MakeOrigin, site: MakeSite) -> None:
    """What a URL map moves from PATH_INFO to SCRIPT_NAME is part of the mount, escaped."""

    def mapped(application: Any) -> Any:
        def url_map(environ: dict[str, Any], start_response: Any) -> Any:
            prefix = "/\xc3\xa9t\xc3\xa9"
            assert environ["PATH_INFO"].startswith(prefix)
            environ["SCRIPT_NAME"] = prefix
            environ["PATH_INFO"] = environ["PATH_INFO"][len(prefix) :]
            return application(environ, start_response)

        return url_map

    made = site(route("reports", origin(echo).url), wrap=mapped)
    request = received(made.get("/%C3%A9t%c3%a9/reports/x"))
    assert request.target == "/x"
    assert request.one("X-Forwarded-Prefix") == "/%C3%A9t%C3%A9/reports"


def test_a_route_prefix_outside_ascii(origin: MakeOrigin, site: MakeSite) -> None:
    """A route prefix is written unescaped, as Pyramid wants it; the mount is escaped."""
    url = origin(echo).url

    def inner(config: Configurator) -> None:
        config.add_proxy_route("r", prefix="/reports", upstream=url, public=True)

    made = site(configure=lambda config: config.include(inner, route_prefix="/b\xfccher"))
    request = received(made.get("/b%C3%BCcher/reports/x"))
    assert request.target == "/x"
    assert request.one("X-Forwarded-Prefix") == "/b%C3%BCcher/reports"


def test_a_pattern_below_placeholders(origin: MakeOrigin, site: MakeSite) -> None:
    """A pattern may stand below a route prefix with placeholders; cookies are confined to what comes before them."""

    def script(wire: Any) -> None:
        request = wire.request()
        wire.answer(request.raw, "Set-Cookie: a=1; Path=/")

    url = origin(script).url

    def inner(config: Configurator) -> None:
        config.add_proxy_route("r", pattern="/x/{id}", upstream=url + "/{id}", public=True)

    made = site(configure=lambda config: config.include(inner, route_prefix="/t/{tenant}"))
    answer = made.get("/t/one/x/two")
    assert received(answer).target == "/two"
    assert answer.one("Set-Cookie") == "a=1; Path=/t"


@pytest.mark.parametrize("key", ["PATH_INFO", "QUERY_STRING"])
def test_a_rewritten_target_is_refused(key: str, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Where middleware changed path or query, nobody knows which one was meant: 400, and a line in the log."""

    def rewriting(application: Any) -> Any:
        def rewrite(environ: dict[str, Any], start_response: Any) -> Any:
            environ[key] += "/else"
            return application(environ, start_response)

        return rewrite

    made = site(route("reports", "http://127.0.0.1:9"), wrap=rewriting)
    assert made.get("/reports/x").status == 400
    assert any("something made" in record.getMessage() for record in caplog.records)


def test_a_tab_in_the_target_is_refused(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """waitress deletes tabs in targets: what reaches Pyramid is below the mount, what was sent is not."""
    answer = ask(site(route("reports", "http://127.0.0.1:9")), b"/re\tports/x")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_subrequest(origin: MakeOrigin, site: MakeSite) -> None:
    """A subrequest has no raw target: its target is its path, escaped, and its query."""

    def parent(request: Request) -> Response:
        child = Request.blank("/reports/a%20b%2Fc/%C3%A9?q=1")
        return request.invoke_subrequest(child, use_tweens=request.GET.get("tweens") == "on")

    def configure(config: Configurator) -> None:
        config.add_route("parent", "/parent")
        config.add_view(parent, route_name="parent")

    made = site(route("reports", origin(echo).url), configure=configure)
    for query in ("", "?tweens=on"):
        assert target_of(made, "/parent" + query) == "/a%20b/c/%C3%A9?q=1"


# Refused targets and messages


@pytest.mark.parametrize(
    "target",
    [
        b"/reports/..", b"/reports/../x", b"/reports/a/./b", b"/reports/%2e%2e/x", b"/reports/.%2E", b"/reports/..;x/y",
        b"/reports/a%2F..%2Fb", b"/reports/a%00", b"/reports/a\\b", b"/reports/a%5cb",
        b"/reports/%", b"/reports/%zz", b"/reports/%E9", b"/reports/a\xc3\xa9", b"/reports/a?b\xe9", b"/reports/%c2%85",
        b"/reports/a?b\x01", b"/reports/%C0%AE", b"/reports/%7f", b"/reports/x/%2e", b"/reports/./",
    ],
)  # fmt: skip
def test_refused_targets(target: bytes, site: MakeSite) -> None:
    """A target that could mean something else to the upstream is refused, and nothing is sent."""
    answer = ask(site(route("reports", "http://127.0.0.1:9")), target)
    assert answer.startswith(b"HTTP/1.1 400 "), answer


@pytest.mark.parametrize("target", [b"/reports/a#b", b"/reports/?a#b"])
def test_a_fragment_is_refused(target: bytes, site: MakeSite) -> None:
    """A fragment, which no request target has, is refused."""
    assert ask(site(route("reports", "http://127.0.0.1:9")), target).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("target", [b"/reports/%2500", b"/reports/%252e%252e/", b"/reports/...", b"/reports/a..b"])
def test_double_escapes_are_data(target: bytes, origin: MakeOrigin, site: MakeSite) -> None:
    """What is escaped twice means nothing here and goes up as it is."""
    answer = ask(site(route("reports", origin(echo).url)), target)
    assert b"\r\n\r\nGET %b HTTP/1.1\r\n" % target.removeprefix(b"/reports") in answer


@pytest.mark.parametrize("path", ["/reports/%FF", "/reports%2F%FF", "/%72eports/%E9/x?y=%FF"])
def test_escapes_that_are_not_utf8(path: str, site: MakeSite) -> None:
    """Below a mount, escapes that are not UTF-8 are a 400 that the application's exception view renders."""

    def refused(error: Exception, request: Request) -> Response:
        return Response(f"rendered {error}", status=400)

    made = site(
        route("reports", "http://127.0.0.1:9"),
        configure=lambda config: config.add_exception_view(refused, context="pyramid.httpexceptions.HTTPBadRequest"),
    )
    answer = made.get(path)
    assert (answer.status, answer.body[:9]) == (400, b"rendered ")


def test_escapes_that_are_not_utf8_elsewhere(site: MakeSite) -> None:
    """Elsewhere they are what the application makes of them."""

    def undecodable(error: Exception, request: Request) -> Response:
        return Response("the application's own", status=418)

    made = site(
        route("reports", "http://127.0.0.1:9"),
        configure=lambda config: config.add_exception_view(undecodable, context="pyramid.exceptions.URLDecodeError"),
    )
    assert made.get("/%FF").status == 418
    assert made.get("/reportsx/%FF").status == 418


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ((b"X: y",), b"1.1"),
        ((b"Host: a", b"Host: b"), b"1.1"),
        ((b"Host: a", b"Host: b"), b"1.0"),
        ((b"Host: a b",), b"1.1"),
        ((b"Host: a:99999",), b"1.1"),
        ((b"Host: u@a",), b"1.1"),
        ((b"Host: a/b",), b"1.1"),
        ((b"Host:",), b"1.1"),
        ((b"Host: a", b"Transfer-Encoding: chunked"), b"1.0"),
    ],
)
def test_refused_messages(fields: tuple[bytes, ...], version: bytes, site: MakeSite) -> None:
    """A Host that is missing, repeated or faulty, and Transfer-Encoding in HTTP/1.0, are refused."""
    answer = ask(site(route("reports", "http://127.0.0.1:9")), b"/reports/x", *fields, version=version)
    assert answer[9:13] == b"400 ", answer


def test_http_1_0_needs_no_host(origin: MakeOrigin, site: MakeSite) -> None:
    """An HTTP/1.0 request may come without Host."""
    answer = ask(site(route("reports", origin(echo).url)), b"/reports/x", b"X: y", version=b"1.0")
    assert b"GET /x HTTP/1.1\r\n" in answer


def test_the_fault_is_said(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """The refusal tells the client which rule its request breaks."""
    caplog.set_level(logging.INFO)
    answer = site(route("reports", "http://127.0.0.1:9")).get("/reports/%2e%2e/x")
    assert (answer.status, b"dot segment" in answer.body) == (400, True)


CATCH_ALL = ["/{user}/{index}", "/*rest"]


@pytest.mark.parametrize("pattern", CATCH_ALL)
def test_before_a_catch_all(pattern: str, origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """With `before` a route stands in front of the application's own; without it the warning says what is needed."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.add_route("all", pattern)
        config.add_view(lambda request: Response("own"), route_name="all")

    behind = site(route("reports", upstream.url), configure=configure)
    assert behind.get("/reports/x").body == b"own"
    assert "'all' takes requests below '/reports'" in caplog.text
    assert "proxy.routes.reports.before = true" in caplog.text
    caplog.clear()
    before = site(route("reports", upstream.url, before="true"), configure=configure)
    assert received(before.get("/reports/x")).target == "/x"
    assert before.get("/other/x").body == b"own"
    assert "takes requests" not in caplog.text


def test_an_own_view_for_options(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """A route of the application's for methods that the proxied one is not asked with takes nothing from it."""

    def configure(config: Configurator) -> None:
        for name, method in (("preflight", "OPTIONS"), ("put", "PUT")):
            config.add_route(name, "/reports/{rest:.*}", request_method=method)
            config.add_view(lambda request: Response("own"), route_name=name)

    made = site(route("reports", origin(echo).url, methods="GET POST"), configure=configure)
    assert made.get("/reports/x", method="OPTIONS").body == b"own"
    assert received(made.get("/reports/x")).target == "/x"
    assert "takes requests" not in caplog.text
    site(route("reports", origin(echo).url), configure=configure)
    assert "'put' takes requests" in caplog.text
    assert "'preflight' takes requests" not in caplog.text
