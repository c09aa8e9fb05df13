"""``request.proxy_forward``: a view of the application's own forwards the client's request as a route would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy import SettingsError, ValueRefused
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import NOWHERE, MakeSite, Policy, route, with_view
from tests.support.wire import received

#: A view, in an application that knows its users.
own = partial(with_view, pattern="/own/{name}", policy=Policy())


def nobodys(url: str, **keys: str) -> dict[str, str]:
    """A route that nobody may use himself."""
    return route("r", url + "/base", permission="never", **keys)


def test_by_route(origin: MakeOrigin, site: MakeSite) -> None:
    """By a route's name the request goes below its upstream by its settings; its permission is not asked."""
    upstream = origin(echo)
    settings = nobodys(upstream.url) | {"proxy.routes.r.request.set.X-Route": "{route}"}
    made = site(settings, configure=own(lambda request: request.proxy_forward("r", "a%2Fb/c")))
    assert made.get("/r/x").status == 403
    request = received(made.get("/own/x?q=%zz", {"X-Own": "1", "Cookie": "a=1; session=S"}, "PUT", b"body"))
    assert (request.method, request.target, request.body) == ("PUT", "/base/a%2Fb/c?q=%zz", b"body")
    assert (request.one("X-Own"), request.one("Cookie"), request.one("X-Route")) == ("1", "a=1", "r")
    assert request.one("X-Forwarded-For") == "127.0.0.1"
    assert request.one("X-Forwarded-Prefix") is None


@pytest.mark.parametrize(
    ("path", "target"),
    [("", "/base"), ("/", "/base/"), ("a", "/base/a"), ("/a//b", "/base/a//b"), ("a%20b%3F", "/base/a%20b%3F")],
)
def test_paths(path: str, target: str, origin: MakeOrigin, site: MakeSite) -> None:
    """The path, escaped, is joined to the base with one slash."""
    made = site(nobodys(origin(echo).url), configure=own(lambda request: request.proxy_forward("r", path)))
    assert received(made.get("/own/x")).target == target


@pytest.mark.parametrize("path", ["a?b", "a#b"])
def test_a_path_with_a_query(path: str, site: MakeSite) -> None:
    """A path with a query or fragment is the view's mistake, and is named."""
    assert f"path={path!r}" in raised(site, lambda request: request.proxy_forward("r", path), ValueRefused)


@pytest.mark.parametrize("path", ["../a", "a/%2e%2e", "a\\b", "a%zz", "a b", "a\r\nb", "\xe9"])
def test_a_path_that_is_refused(path: str, site: MakeSite) -> None:
    """A path that could mean something else is a 400: views make it of what the client sent."""
    made = site(nobodys(NOWHERE), configure=own(lambda request: request.proxy_forward("r", path)))
    assert made.get("/own/x").status == 400


@pytest.mark.parametrize(
    ("url", "target"),
    [("/x/y", "/x/y?q=1"), ("/x?own", "/x?own"), ("", "/?q=1"), ("/a%2Fb?", "/a%2Fb?")],
)
def test_by_url(url: str, target: str, origin: MakeOrigin, site: MakeSite) -> None:
    """A URL is taken as given; the client's query is added where it has none."""
    upstream = origin(echo)
    made = site(configure=own(lambda request: request.proxy_forward(upstream.url + url)))
    request = received(made.get("/own/x?q=1", {"X-Own": "1"}))
    assert (request.target, request.one("X-Own"), request.one("Host")) == (target, "1", upstream.authority)


def test_a_url_takes_no_path(site: MakeSite) -> None:
    """A path beside a URL is the view's mistake."""
    assert "`path`" in raised(site, lambda request: request.proxy_forward(NOWHERE, "x"), ValueRefused)


@pytest.mark.parametrize("name", ["nothing", "ftp://a", "http://a/../b", ""])
def test_neither_a_route_nor_a_url(name: str, site: MakeSite) -> None:
    """What is neither the name of a route nor a URL that can be asked is refused."""
    assert name in raised(site, lambda request: request.proxy_forward(name), ValueRefused)


def test_keys_change_a_route(origin: MakeOrigin, site: MakeSite) -> None:
    """Keys given by the view replace the route's own, the others stay; hooks of the route stay, unless given."""
    heard: list[str] = []

    def configure(config: Configurator) -> None:
        config.add_proxy_route(
            "r", prefix="/r", upstream=upstream.url, public=True, response_set={"X-A": "route", "X-B": "route"},
            request_set={"X-Up": "route"}, hooks_headers=lambda exchange: heard.append("route"),
        )  # fmt: skip
        with_view(
            lambda request: request.proxy_forward(
                "r", "x", response_set={"X-A": "view"}, on_complete=lambda exchange: heard.append("view")
            )
        )(config)

    upstream = origin(echo)
    answer = site(configure=configure).get("/own/x")
    assert (answer.one("X-A"), answer.one("X-B")) == ("view", None)
    assert received(answer).one("X-Up") == "route"
    assert heard[0] == "route"


def test_a_bad_key(site: MakeSite) -> None:
    """A keyword that is no key of a fetch is a `SettingsError` that names it."""
    view: Any = lambda request: request.proxy_forward("r", read_timout=1)  # noqa: E731
    assert "read_timout" in raised(site, view, SettingsError)


@pytest.mark.parametrize(("mount", "location", "cookie"), [
    (None, "/base/next", "a=1; Path=/base"), ("/own/x", "/own/x/next", "a=1; Path=/own/x"),
])  # fmt: skip
def test_a_mount(mount: str | None, location: str, cookie: str, origin: MakeOrigin, site: MakeSite) -> None:
    """`mount` names the public path: Location and cookies are mapped to it; without it they are left."""
    upstream = origin(
        answering(
            b"HTTP/1.1 302 Found\r\nLocation: /base/next\r\nSet-Cookie: a=1; Path=/base\r\nContent-Length: 0\r\n\r\n"
        )
    )
    made = site(nobodys(upstream.url), configure=own(lambda request: request.proxy_forward("r", "x", mount=mount)))
    answer = made.get("/own/x")
    assert (answer.one("Location"), answer.one("Set-Cookie")) == (location, cookie)


def test_a_mount_for_a_url(origin: MakeOrigin, site: MakeSite) -> None:
    """With a URL, what is below it is mapped to the mount, and the mount is sent as X-Forwarded-Prefix."""
    seen: list[Any] = []

    def script(wire: Any) -> None:
        seen.append(wire.request())
        wire.answer(b"", "Location: /base/next")

    upstream = origin(script)
    made = site(configure=own(lambda request: request.proxy_forward(upstream.url + "/base", mount="/own/x")))
    assert made.get("/own/x").one("Location") == "/own/x/next"
    assert seen[0].one("X-Forwarded-Prefix") == "/own/x"


def test_a_pattern_route(origin: MakeOrigin, site: MakeSite) -> None:
    """The upstream's placeholders are filled with what the view's own route matched."""
    settings = route("p", origin(echo).url + "/x/{name}", pattern="/p/{name}")
    del settings["proxy.routes.p.prefix"]
    made = site(settings, configure=own(lambda request: request.proxy_forward("p")))
    assert received(made.get("/own/a%20%3Fb?q")).target == "/x/a%20%3Fb?q"


def test_the_body_that_the_view_has_read(origin: MakeOrigin, site: MakeSite) -> None:
    """The view may have read the form: the body goes up whole."""

    def view(request: Request) -> Any:
        assert request.POST["a"] == "1"
        return request.proxy_forward("r", "x")

    made = site(nobodys(origin(echo).url), configure=own(view))
    fields = {"Content-Type": "application/x-www-form-urlencoded"}
    assert received(made.get("/own/x", fields, "POST", b"a=1&b=2")).body == b"a=1&b=2"


def raised(
    site: MakeSite, view: Callable[[Request], Any], expected: type[Exception], settings: dict[str, str] | None = None
) -> str:
    """The text of what the view raises."""
    found: list[str] = []

    def catching(request: Request) -> Any:
        try:
            view(request)
        except expected as error:
            found.append(str(error))
        return Response("caught")

    assert site(settings or nobodys(NOWHERE), configure=own(catching)).get("/own/x").body == b"caught"
    assert found, f"{expected.__name__} was not raised"
    return found[0]


def test_a_view_that_contradicts_its_route(site: MakeSite) -> None:
    """Keys of the view and of the route that leave each other no effect are refused, as they are within one route."""
    settings = nobodys(NOWHERE, request__remove="x-a")

    def view(request: Request) -> Any:
        return request.proxy_forward("r", "x", request_set={"X-A": "1"})

    said = raised(site, view, SettingsError, settings)
    assert said == "proxy_forward(): request.remove is at odds with request.set.X-A of r"
