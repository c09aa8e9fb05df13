"""Real backends with real clients: Flask behind ProxyFix, cookies as Spring has them, Starlette under uvicorn, wsgidav
with litmus. Apache and Django have files of their own."""

from __future__ import annotations

import http.cookiejar
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, redirect, request, session, url_for
from pyramid.config import Configurator
from pyramid.request import Request as PyramidRequest
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.middleware.proxy_fix import ProxyFix
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.support.backends import dav_settings, dav_users, litmus_summaries, under_uvicorn, under_waitress
from tests.support.site import MakeSite, Site, route

TRUSTING = {"trusted_proxy": "*", "trusted_proxy_headers": "x-forwarded-proto x-forwarded-host x-forwarded-for"}


# Flask: redirects and a login's cookie


def flask_application() -> Any:
    """A login that goes by url_for, with Flask's own session under a name that is not the site's."""
    made = Flask("tool")
    made.secret_key = "x"
    made.config.update(SESSION_COOKIE_NAME="tool_session", APPLICATION_ROOT="/")

    @made.get("/")
    def index() -> Any:
        return f"hello {session['user']}" if "user" in session else redirect(url_for("login"))

    @made.get("/login")
    def login() -> Any:
        session["user"] = request.args.get("user", "nobody")
        return redirect(url_for("index", _external=True))

    made.wsgi_app = ProxyFix(made.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("base", ["", "/"])
def test_a_login_at_flask(base: str, site: MakeSite, stack: ExitStack) -> None:
    """Flask believes X-Forwarded-Prefix: a browser is led to the login, and its cookie comes back."""
    made = site(route("tool", stack.enter_context(under_waitress(flask_application())) + base))
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with browser.open(f"{made.url}/tool") as answer:
        assert (answer.geturl(), answer.read()) == (f"{made.url}/tool/", b"hello nobody")
    with browser.open(f"{made.url}/tool/login?user=ann") as answer:
        assert (answer.geturl(), answer.read()) == (f"{made.url}/tool/", b"hello ann")
    assert [(cookie.name, cookie.path) for cookie in jar] == [("tool_session", "/tool")]


# A backend whose cookie differs from the application's in its case alone


def spring_like(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """What Spring Session and Spring Security send: SESSION, and a token for scripts; /me says who is logged in."""
    asked = PyramidRequest(environ)
    if asked.path_info == "/login":
        headers = [
            ("Set-Cookie", "SESSION=c3ByaW5n; Path=/; HttpOnly; SameSite=Lax"),
            ("Set-Cookie", "XSRF-TOKEN=t; Path=/"),
        ]
        start_response("302 Found", [*headers, ("Location", "/me")])
        return [b""]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("HTTP_COOKIE", "nobody").encode("latin-1")]


def remembering(request: Any) -> Response:
    """A view of the application's own, with the application's own `session`."""
    request.session["user"] = request.params.get("user") or request.session.get("user")
    return Response(str(request.session["user"]))


def test_a_login_at_spring(site: MakeSite, stack: ExitStack) -> None:
    """Its SESSION and the application's session live beside each other: each gets its own, and no other."""

    def configure(config: Configurator) -> None:
        config.set_session_factory(SignedCookieSessionFactory("x"))
        config.add_route("own", "/own")
        config.add_view(remembering, route_name="own")

    made = site(route("app", stack.enter_context(under_waitress(spring_like)), prefix="/"), configure=configure)
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    assert browser.open(f"{made.url}/own?user=ann").read() == b"ann"
    with browser.open(f"{made.url}/login") as answer:
        assert (answer.geturl(), answer.read()) == (f"{made.url}/me", b"SESSION=c3ByaW5n; XSRF-TOKEN=t")
    assert browser.open(f"{made.url}/own").read() == b"ann"
    assert {cookie.name for cookie in jar} == {"session", "SESSION", "XSRF-TOKEN"}


# Starlette: redirects made of Host and the scheme that was told


@pytest.mark.parametrize("preserve", ["false", "true"])
def test_slashes_at_starlette(preserve: str, site: MakeSite, stack: ExitStack) -> None:
    """Behind an https front Starlette redirects to https and the Host that it got: the client stays on the site."""

    async def items(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.url))

    url = stack.enter_context(under_uvicorn(Starlette(routes=[Route("/v1/items/", items)])))
    made = site(route("api", url + "/v1", preserve_host=preserve), **TRUSTING)
    fields = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "www.example"}
    answer = made.get("/api/items", fields)
    assert (answer.status, answer.one("Location")) == (307, "https://www.example/api/items/")
    assert made.get("/api/items/", fields).status == 200


# wsgidav: second targets


@pytest.fixture
def shares(tmp_path: Path) -> Path:
    for name in ("dav", "dav/private"):
        (tmp_path / name).mkdir()
    (tmp_path / "dav" / "a.txt").write_text("a")
    return tmp_path


def dav_site(site: MakeSite, shares: Path, stack: ExitStack, mount: str) -> Site:
    """wsgidav's share /dav at a mount, and what is private in it at a mount of its own."""
    application = WsgiDAVApp({
        "provider_mapping": {"/dav": str(shares / "dav")},
        "simple_dc": {"user_mapping": {"*": True}},
        "logging": {"enable": False},
        "verbose": 0,
    })  # fmt: skip
    url = stack.enter_context(under_waitress(application))
    return site(dav_settings(url, mount), configure=dav_users)


@pytest.mark.parametrize("mount", ["/dav", "/files"])
def test_copy_and_move(mount: str, site: MakeSite, shares: Path, stack: ExitStack) -> None:
    """COPY and MOVE arrive where they are meant to, with the mount as the share's own path and as another one."""
    made = dav_site(site, shares, stack, mount)
    copied = made.get(f"{mount}/a.txt", {"Destination": f"{made.url}{mount}/b%20c.txt"}, "COPY")
    assert (copied.status, (shares / "dav" / "b c.txt").read_text()) == (201, "a")
    moved = made.get(f"{mount}/a.txt", {"Destination": f"{mount}/d.txt"}, "MOVE")
    assert (moved.status, sorted(os.listdir(shares / "dav"))) == (201, ["b c.txt", "d.txt", "private"])


@pytest.mark.parametrize("mount", ["/dav", "/files"])
@pytest.mark.parametrize("rest", ["/private/x", "/%70rivate/x", "/x/../private/x", "//private/x"])
def test_what_is_private_stays_so(mount: str, rest: str, site: MakeSite, shares: Path, stack: ExitStack) -> None:
    """Nobody writes below an inner mount through the outer one."""
    made = dav_site(site, shares, stack, mount)
    for method in ("COPY", "MOVE"):
        answer = made.get(f"{mount}/a.txt", {"Destination": made.url + mount + rest}, method)
        assert answer.status in (400, 403)
    assert (os.listdir(shares / "dav" / "private"), (shares / "dav" / "a.txt").exists()) == ([], True)


@pytest.mark.parametrize("mount", ["/dav", "/files"])
def test_litmus(
    mount: str, site: MakeSite, shares: Path, stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str]
) -> None:
    """litmus finds of wsgidav behind the proxy what it finds of wsgidav alone, where the mount is the share's path;
    where it is not, what concerns COPY and MOVE."""
    program = need_program("litmus")
    made = dav_site(site, shares, stack, mount)
    suites = "basic copymove props locks http" if mount == "/dav" else "basic copymove"
    through = litmus_summaries(program, f"{made.url}{mount}/", suites, tmp_path)
    alone = litmus_summaries(program, made.engine.routes["dav"].settings.upstream[0] + "/", suites, tmp_path)
    assert through == alone
    assert "copymove" in through
