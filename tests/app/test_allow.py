"""What a view may fetch from, through the whole stack, and what a fetch never does on its own."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

import pyramid_threaded_proxy
from tests.support.names import NameServer
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, Site, route
from tests.support.wire import Answer, OriginWire, received


def configure(config: Configurator) -> None:
    """Views that fetch, forward, and set in a hook, whatever URL the query names."""

    def set_url(request: Request, exchange: Any) -> None:
        exchange.request.url = request.params["url"]

    def forward(request: Request) -> Response:
        return request.proxy_forward(request.params["url"], request_remove="Cookie")

    views: dict[str, Callable[[Request], Response]] = {
        "fetch": lambda request: request.proxy_fetch(request.params["url"]),
        "forward": forward,
        "hook": lambda request: request.proxy_fetch(request.params["good"], on_request=set_url),
        "forward-hook": lambda request: request.proxy_forward(request.params["good"], on_request=set_url),
        "named": lambda request: request.proxy_forward("r", "/below"),
    }
    for name, view in views.items():
        config.add_route(name, f"/{name}")
        config.add_view(view, route_name=name)


def allowing(site: MakeSite, *entries: str, **more: Any) -> Site:
    settings = {"proxy.fetch.allow": " ".join(entries)} | more.pop("settings", {})
    return site(settings, configure=more.pop("configure", configure), **more)


# Views


@pytest.mark.parametrize("view", ["fetch", "forward"])
def test_what_is_let_in_is_asked(origin: MakeOrigin, site: MakeSite, view: str) -> None:
    """An origin, a host and a network each let a view reach the upstream."""
    upstream = origin(echo)
    for entry in (upstream.url, "localhost", "127.0.0.0/8"):
        url = f"http://localhost:{upstream.port}/x" if entry == "localhost" else f"{upstream.url}/x"
        assert received(allowing(site, entry).get(f"/{view}?url={url}")).target.startswith("/x")


@pytest.mark.parametrize("view", ["fetch", "forward"])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "localhost",
     "localhost.", "127.0.0.1.", "LOCALHOST", "%31%32%37.0.0.1", "127%2e0.0.1", "①②⑦.0.0.1", "127。0。0。1"],
)  # fmt: skip
def test_this_machine_is_not_asked_in_any_spelling(origin: MakeOrigin, site: MakeSite, view: str, host: str) -> None:
    """Where only other hosts and networks are let in, no spelling of this machine's address reaches it."""
    upstream = origin(echo)
    made = allowing(site, "*.internal", "api.example", "10.0.0.0/8", f"http://api.example:{upstream.port}")
    assert made.get(f"/{view}?url={quote(f'http://{host}:{upstream.port}/')}").status in (500, 502)
    assert upstream.accepted == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "2130706433", "127.1", "localhost", "[::ffff:127.0.0.1]"])
def test_spellings_of_a_permitted_address(origin: MakeOrigin, site: MakeSite, host: str) -> None:
    """What a name or a spelling resolves to decides where networks are let in."""
    upstream = origin(echo)
    made = allowing(site, "127.0.0.0/8")
    assert made.get(f"/fetch?url=http://{host}:{upstream.port}/").status == 200
    assert upstream.accepted == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://api.internal@127.0.0.1:PORT/",
        "http://127.0.0.1:PORT#@api.internal/",
        "http://127.0.0.1:PORT\\@api.internal/",
        "http://127.0.0.1:PORT\\.api.internal/",
        "http://127.0.0.1:PORT%00.api.internal/",
        "http://127.0.0.1%23.api.internal:PORT/",
        "http://127.0.0.1%2f.api.internal:PORT/",
        "http://127.0.0.1:PORT?.api.internal/",
        "http:127.0.0.1:PORT/.api.internal",
        "//127.0.0.1:PORT/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:PORT/",
    ],
)
def test_urls_that_readers_disagree_on(origin: MakeOrigin, site: MakeSite, names: NameServer, url: str) -> None:
    """What one reader of URLs takes for a permitted host and another for this machine reaches neither."""
    upstream = origin(echo)
    made = allowing(site, "*.internal", "*.api.internal", "api.internal")
    answer = made.get(f"/fetch?url={quote(url.replace('PORT', str(upstream.port)), safe='')}")
    assert answer.status in (500, 502)
    assert upstream.accepted == 0


def test_a_name_is_resolved_once(origin: MakeOrigin, site: MakeSite, names: NameServer) -> None:
    """The address that was judged is the one that is used: nobody asks the resolver a second time."""
    upstream = origin(echo)
    names.known["rebind.example"] = iter([["127.0.0.1"], ["127.0.0.66"]])
    made = allowing(site, "127.0.0.1/32")
    request = received(made.get(f"/fetch?url=http://rebind.example:{upstream.port}/x"))
    assert request.one("Host") == f"rebind.example:{upstream.port}"
    assert names.asked.count("rebind.example") == 1


def test_rebinding_gets_nowhere(origin: MakeOrigin, site: MakeSite, names: NameServer) -> None:
    """A name that turns to an address outside is refused, although a connection to its first address is kept."""
    upstream = origin(echo)
    names.known["rebind.example"] = iter([["127.0.0.1"], ["127.0.0.66"]])
    made = allowing(site, "127.0.0.1/32")
    url = f"/fetch?url=http://rebind.example:{upstream.port}/x"
    assert made.get(url).status == 200
    assert made.get(url).status == 502
    assert upstream.accepted == 1


def test_of_several_addresses_a_permitted_one_is_used(origin: MakeOrigin, site: MakeSite, names: NameServer) -> None:
    """A name with addresses inside and outside is asked at the one inside."""
    upstream = origin(echo)
    names.known["two.example"] = iter([["192.0.2.1", "127.0.0.1"]])
    made = allowing(site, "127.0.0.0/8")
    assert made.get(f"/fetch?url=http://two.example:{upstream.port}/").status == 200


def test_kept_connections_are_each_names_own(origin: MakeOrigin, site: MakeSite, names: NameServer) -> None:
    """Two names that have one address share no connection, so that none is used for a name it was not made for."""
    upstream = origin(echo)
    made = allowing(site, "127.0.0.1")
    for name in ("one.example", "two.example"):
        names.known[name] = iter([["127.0.0.1"]])
        assert made.get(f"/fetch?url=http://{name}:{upstream.port}/").status == 200
    assert upstream.accepted == 2


def test_a_name_that_does_not_resolve(site: MakeSite, names: NameServer) -> None:
    """It is a bad gateway, whatever is let in."""
    assert allowing(site, "10.0.0.0/8").get("/fetch?url=http://nowhere.example/").status == 502
    assert allowing(site, "nowhere.example").get("/fetch?url=http://nowhere.example/").status == 502


@pytest.mark.parametrize("view", ["hook", "forward-hook"])
def test_what_a_hook_sets_is_judged(origin: MakeOrigin, site: MakeSite, view: str) -> None:
    """A request hook can't lead out of the list, nor by another port of the same host."""
    good, bad = origin(echo), origin(echo)
    made = allowing(site, good.url)
    assert made.get(f"/{view}?good={good.url}/&url={good.url}/changed").status == 200
    assert made.get(f"/{view}?good={good.url}/&url={bad.url}/").status == 502
    assert (good.accepted, bad.accepted) == (1, 0)


def test_declared_routes_are_not_judged(origin: MakeOrigin, site: MakeSite) -> None:
    """The list holds for what views name; a declared route, in `proxy_forward` too, is the operator's word."""
    upstream = origin(echo)
    made = allowing(site, "10.0.0.0/8", settings=route("r", upstream.url))
    assert made.get("/r/x").status == 200
    assert received(made.get("/named")).target == "/below"


def test_a_refusal_is_rendered_by_the_applications_views(site: MakeSite) -> None:
    """`ProxyTargetRefused` is a 502 with the package's name, which exception views and callers can catch."""
    caught: list[Exception] = []

    def view(error: Exception, request: Request) -> Response:
        caught.append(error)
        return Response("our own page", 502)

    def with_view(config: Configurator) -> None:
        configure(config)
        config.add_exception_view(view, context=pyramid_threaded_proxy.ProxyTargetRefused)

    made = allowing(site, "10.0.0.0/8", configure=with_view)
    answer = made.get("/fetch?url=http://127.0.0.1:9/secret")
    assert (answer.status, answer.body) == (502, b"our own page")
    assert "127.0.0.1" not in str(caught[0])
    plain = allowing(site, "10.0.0.0/8").get("/fetch?url=http://127.0.0.1:9/secret")
    assert (plain.status, b"127.0.0.1" in plain.body) == (502, False)


# What a fetch never does on its own


def test_environment_proxies_and_netrc_are_ignored(
    origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither HTTP_PROXY nor a password in ~/.netrc has a say."""
    proxy, upstream = origin(echo), origin(echo)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy.url)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\ndefault login u password p\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    request = received(allowing(site, upstream.url).get(f"/fetch?url={upstream.url}/x"))
    assert (request.target, request.one("Authorization")) == ("/x", None)
    assert proxy.accepted == 0


def fetched(origin: MakeOrigin, site: MakeSite, answer: bytes, fields: dict[str, str] | None = None) -> Answer:
    upstream = origin(answering(answer))
    return allowing(site, upstream.url).get(f"/fetch?url={upstream.url}/", fields)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_passed_on(origin: MakeOrigin, site: MakeSite, status: int) -> None:
    """The client decides where it goes: Location comes as it is, and nobody was asked there."""
    other = origin(echo)
    answer = fetched(
        origin, site, f"HTTP/1.1 {status} Moved\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert (answer.status, answer.one("Location")) == (status, f"{other.url}/x")
    assert other.accepted == 0


def test_bodies_are_not_decoded(origin: MakeOrigin, site: MakeSite) -> None:
    """A gzip body keeps its coding, its length and its bytes; a broken one too."""
    for body in (gzip.compress(b"hello" * 100), b"\x1f\x8bnot gzip"):
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        answer = fetched(origin, site, head + body, {"Accept-Encoding": "gzip"})
        assert (answer.one("Content-Encoding"), answer.body) == ("gzip", body)


def test_cookies_are_not_remembered(origin: MakeOrigin, site: MakeSite) -> None:
    """What an upstream sets in one fetch is not sent with the next, and the client's own cookies never are."""
    cookies: list[Any] = []

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            cookies.append(request.one("Cookie"))
            wire.answer(b"", "Set-Cookie: theirs=1; Path=/")

    upstream = origin(script)
    made = allowing(site, upstream.url)
    for _ in range(3):
        assert made.get(f"/fetch?url={upstream.url}/", {"Cookie": "mine=1"}).status == 200
    assert cookies == [None] * 3
    assert upstream.accepted == 1
