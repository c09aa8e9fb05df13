"""Routes by host, `{mount}`, `request.origin`, query parameters and preflights, through the whole stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy import SettingsError
from pyramid_threaded_proxy.app.host import is_for, may_meet
from tests.support.origin import Origin, Script, echo
from tests.support.site import Site, route, with_policy
from tests.support.wire import Answer, OriginWire, received

MakeOrigin = Callable[[Script], Origin]
MakeSite = Callable[..., Site]


def of_host(name: str, upstream: str, host: str, **keys: str) -> dict[str, str]:
    """Settings of a public route that stands for a host."""
    settings = route(name, upstream, host=host, **keys)
    if "prefix" not in keys:
        del settings[f"proxy.routes.{name}.prefix"]
    return settings


@pytest.mark.parametrize(
    ("host", "asked", "expected"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.EXAMPLE:8080", True),
        ("a.example", "a.example.", True),
        ("a.example", "b.a.example", False),
        ("*.example", "b.a.example:1", True),
        ("*.example", "example", False),
        ("*.example", ".example", False),
        ("*.example", "evilexample", False),
        ("[::1]", "[::1]:80", True),
        (None, "whatever", True),
    ],
)
def test_which_host(host: str | None, asked: str, expected: bool) -> None:
    """Case, port and a last dot say nothing; a star stands for one label or more."""
    assert is_for(host, asked) is expected


def test_hosts_that_meet() -> None:
    """Two routes can be asked for the same host if one of them says none, or a star covers the other's."""
    assert may_meet(None, "a.b")
    assert may_meet("*.b", "a.b")
    assert may_meet("x.a.b", "*.b")
    assert may_meet("*.a.b", "*.b")
    assert not may_meet("a.b", "c.b")
    assert not may_meet("b", "*.b")


def test_a_route_by_host(origin: MakeOrigin, site: MakeSite) -> None:
    """Only requests for its host are a route's; paths go up as they are, and the application keeps the other hosts."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.add_route("home", "/")
        config.add_view(lambda request: Response("own"), route_name="home")

    settings = of_host("pypi", upstream.url, "pypi.example.com", before="true")
    settings |= of_host("stars", upstream.url + "/star", "*.example.com", before="true")
    made = site(settings, configure=configure)
    request = received(made.get("/static/x", {"Host": "pypi.example.com:8080"}))
    assert (request.target, request.one("X-Forwarded-Prefix")) == ("/static/x", None)
    assert request.one("X-Forwarded-Host") == "pypi.example.com:8080"
    assert received(made.get("/", {"Host": "Pypi.Example.Com"})).target == "/"
    assert received(made.get("/x", {"Host": "a.example.com"})).target == "/star/x"
    assert made.get("/", {"Host": "example.com"}).body == b"own"
    assert made.get("/x", {"Host": "example.com", "X-Forwarded-Host": "pypi.example.com"}).status == 404


def test_host_and_prefix(origin: MakeOrigin, site: MakeSite) -> None:
    """A route for a host goes before one for any, and its inner mount is guarded as any other's."""
    upstream = origin(echo)
    settings = of_host("inner", upstream.url + "/inner", "a.example", prefix="/a/b")
    made = site(settings | route("a", upstream.url + "/outer"))
    for host, path, target in (
        ("a.example", "/a/b/x", "/inner/x"),
        ("b.example", "/a/b/x", "/outer/b/x"),
        ("a.example", "/a/c", "/outer/c"),
    ):
        assert received(made.get(path, {"Host": host})).target == target
    assert made.get("/a//b/x", {"Host": "a.example"}).status == 400


def test_own_urls_on_a_host(origin: MakeOrigin, site: MakeSite) -> None:
    """Location is mapped to the public host, and cookies lose their Domain."""

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            host = request.one("Host")
            wire.answer(
                b"", f"Location: http://{host}/there", f"Set-Cookie: a=b; Domain={host}; Path=/", status="302 Found"
            )

    answer = site(of_host("pypi", origin(script).url, "pypi.example.com")).get("/", {"Host": "pypi.example.com"})
    assert answer.one("Location") == "http://pypi.example.com/there"
    assert answer.one("Set-Cookie") == "a=b; Path=/"


@pytest.mark.parametrize("host", ["a.example:80", "http://a", "*", "a b", "*.*.b", ""])
def test_a_bad_host(host: str) -> None:
    """A port, a scheme or a bare star is a fault at start-up."""
    config = Configurator(settings=of_host("r", "http://127.0.0.1:9", host))
    with pytest.raises(SettingsError, match=r"proxy\.routes\.r\.host"):
        config.include("pyramid_threaded_proxy")


def test_the_mount_in_templates(origin: MakeOrigin, site: MakeSite) -> None:
    """`{mount}` is the whole public path: devpi is told by it where it stands."""
    settings = route("devpi", origin(echo).url, request__set__X_Outside_Url="{scheme}://{host}{mount}")
    settings["proxy.routes.devpi.request.set.X-Outside-Url"] = settings.pop(
        "proxy.routes.devpi.request.set.X_Outside_Url"
    )
    made = site(settings, url_prefix="/app")
    answer = received(made.get("/app/devpi/x", {"Host": "pypi.example"}))
    assert answer.one("X-Outside-Url") == "http://pypi.example/app/devpi"


# request.origin


@pytest.mark.parametrize(
    ("sent", "origin_up", "referer_up"),
    [
        ("http://site.example", "{up}", "{up}/base/page?x=1"),
        ("http://SITE.example:80", "{up}", "{up}/base/page?x=1"),
        ("https://friend.example", "{up}", "{up}/base/page?x=1"),
        ("http://evil.example", "http://evil.example", "http://evil.example/j/page?x=1"),
        ("null", "null", "null/j/page?x=1"),
    ],
)
def test_the_origin_of_the_upstream(
    sent: str, origin_up: str, referer_up: str, origin: MakeOrigin, site: MakeSite
) -> None:
    """Our own origin, and what `origins` lets in, becomes the backend's; a foreign page's stays for it to refuse."""
    upstream = origin(echo)
    settings = route(
        "j", upstream.url + "/base", request__origin="upstream", origins="https://friend.example", upgrade="websocket"
    )
    fields = {"Host": "site.example", "Origin": sent, "Referer": f"{sent}/j/page?x=1"}
    request = received(site(settings).get("/j/x", fields))
    assert request.one("Origin") == origin_up.format(up=upstream.url)
    assert request.one("Referer") == referer_up.format(up=upstream.url)
    assert received(site(route("j", upstream.url)).get("/j/x", fields)).one("Origin") == sent


def test_a_referer_from_elsewhere_on_the_site(origin: MakeOrigin, site: MakeSite) -> None:
    """A page of the application's own that is not below the mount is told as the backend's root."""
    upstream = origin(echo)
    fields = {"Host": "site.example", "Referer": "http://site.example/secret/page"}
    request = received(site(route("j", upstream.url, request__origin="upstream")).get("/j/x", fields))
    assert request.one("Referer") == upstream.url + "/"


def test_origin_beside_preserve_host() -> None:
    """With our own Host the backend compares with ours: one of the two is enough."""
    settings = route("r", "http://127.0.0.1:9", request__origin="upstream", preserve_host="true")
    with pytest.raises(SettingsError, match=r"request\.origin .*at odds with preserve_host"):
        Configurator(settings=settings).include("pyramid_threaded_proxy")


# Query


def test_a_backends_key(origin: MakeOrigin, site: MakeSite) -> None:
    """The client neither sees nor chooses it, and its own parameters stay as they came."""
    settings = route("r", origin(echo).url, query__set__key="s3cret", query__remove="debug")
    settings["proxy.routes.r.query.set.map"] = "{route}.map"
    made = site(settings)
    answer = received(made.get("/r/x?KEY=mine&a=%20+&debug=1&map=other"))
    assert answer.target == "/x?a=%20+&key=s3cret&map=r.map"
    assert received(made.get("/r/x")).target == "/x?key=s3cret&map=r.map"


def test_a_bad_target_is_judged_first(origin: MakeOrigin, site: MakeSite) -> None:
    """A query that breaks a rule is refused, whether or not the parameter would have been removed."""
    made = site(route("r", origin(echo).url, query__remove="x"))
    assert b"400 Bad Request" in made.raw(b"GET /r?x=\xff HTTP/1.0\r\nHost: a\r\n\r\n").split(b"\r\n")[0]


def test_a_patterns_own_parameters(origin: MakeOrigin, site: MakeSite) -> None:
    """The client can't double a parameter that the pattern's upstream has."""
    settings = route("r", origin(echo).url + "/wms?layer={layer}")
    settings["proxy.routes.r.pattern"] = "/maps/{layer}"
    del settings["proxy.routes.r.prefix"]
    assert received(site(settings).get("/maps/roads?LAYER=secret&x=1")).target == "/wms?layer=roads&x=1"


# Preflights

PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
SECRETS = {"Cookie": "other=1", "Authorization": "Basic x", "X-Api-Key": "x", "X-User": "bob"}


def guarded(upstream: str, **keys: str) -> dict[str, str]:
    settings = route("r", upstream, permission="view", **keys)
    settings.pop("proxy.routes.r.public", None)
    return settings


def asked(site: Site, fields: dict[str, str], method: str = "OPTIONS", body: bytes | None = None) -> Answer:
    return site.get("/r/x", fields, method=method, body=body)


def test_a_preflight_passes(origin: MakeOrigin, site: MakeSite) -> None:
    """It goes up without the permission, and with nothing in it of who asks, not even what the route sets."""

    def hook(request: Any, exchange: Any) -> None:
        raise AssertionError("the request hook is for who was let in")

    settings = guarded(origin(echo).url, preflight="pass", methods="GET PUT")
    settings["proxy.routes.r.request.set.X-Key"] = "k"
    settings["proxy.routes.r.request.authorization"] = "pass"
    settings["proxy.routes.r.request.set.X-User-Id"] = "{userid}"
    settings["proxy.routes.r.hooks.request"] = hook  # type: ignore[assignment]
    made = site(settings, configure=with_policy)
    request = received(asked(made, {**PREFLIGHT, **SECRETS, "Access-Control-Request-Headers": "x"}, body=b"body"))
    assert (request.method, request.target, request.body) == ("OPTIONS", "/x", b"")
    assert request.one("Access-Control-Request-Headers") == "x"
    names = {name.lower() for name, _ in request.fields}
    assert not names & {"cookie", "authorization", "x-api-key", "x-user", "x-key", "x-user-id", "content-length"}
    assert made.get("/r/x", {"X-User": "bob"}).status == 403


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"Origin": "https://app.example"}, "OPTIONS"),
        ({"Access-Control-Request-Method": "PUT"}, "OPTIONS"),
        (PREFLIGHT, "GET"),
        (PREFLIGHT, "POST"),
    ],
)
def test_what_is_no_preflight(fields: dict[str, str], method: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Anything else needs the permission."""
    made = site(guarded(origin(echo).url, preflight="pass"), configure=with_policy)
    assert asked(made, fields, method).status == 403


def test_preflights_ask_by_default(origin: MakeOrigin, site: MakeSite) -> None:
    """As any request: nothing is let through by omission."""
    made = site(guarded(origin(echo).url), configure=with_policy)
    assert asked(made, PREFLIGHT).status == 403
