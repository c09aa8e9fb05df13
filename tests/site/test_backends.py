"""Real backends with real clients: Flask behind ProxyFix, Starlette under uvicorn, wsgidav with litmus."""

from __future__ import annotations

import http.cookiejar
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import waitress
from flask import Flask, redirect, request, session, url_for
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from waitress import wasyncore
from werkzeug.middleware.proxy_fix import ProxyFix
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import PATIENCE

TRUSTING = {"trusted_proxy": "*", "trusted_proxy_headers": "x-forwarded-proto x-forwarded-host x-forwarded-for"}


@contextmanager
def under_waitress(application: Any) -> Iterator[str]:
    """A WSGI application as an upstream; gives its URL."""
    server = waitress.create_server(application, listen="127.0.0.1:0", threads=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map, ignore_all=True))
        thread.join(PATIENCE)
        server.task_dispatcher.shutdown()


@contextmanager
def under_uvicorn(application: Any) -> Iterator[str]:
    """An ASGI application as an upstream that believes its proxy; gives its URL."""
    config = uvicorn.Config(
        application, port=0, log_config=None, lifespan="off", proxy_headers=True, forwarded_allow_ips="127.0.0.1"
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


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


class Root:
    """Everybody may use /dav, and nobody /dav/private."""

    def __init__(self, request: Any) -> None:
        self.__acl__ = [(Allow, Everyone, "use")]


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
    settings = {
        **route("dav", url + "/dav", prefix=mount, permission="use"),
        **route("private", url + "/dav/private", prefix=f"{mount}/private", permission="admin"),
    }
    settings = {key: value for key, value in settings.items() if not key.endswith(".public")}

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(Root)

    return site(settings, configure=configure)


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
    through = passed(program, f"{made.url}{mount}/", suites, tmp_path)
    alone = passed(program, made.engine.routes["dav"].settings.upstream[0] + "/", suites, tmp_path)
    assert through == alone
    assert "copymove" in through


def passed(program: str, url: str, suites: str, folder: Path) -> dict[str, str]:
    """litmus's summary of each suite."""
    environ = {**os.environ, "TESTS": suites}
    done = subprocess.run(
        [program, "-k", url], env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("<- summary")]
    return {line.split("`")[1].split("'")[0]: line for line in lines}
