"""The recipe for Flask: below a prefix, with a session of its own beside the application's. Django's test is
`tests/site/test_django.py`."""

from __future__ import annotations

import http.cookiejar
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask, redirect, request, session, url_for
from waitress.adjustments import Adjustments
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.support.backends import under_waitress
from tests.support.recipes import basic, members, settings
from tests.support.site import MakeSite


def tool(cookie: str) -> Any:
    """A login, and a page that knows who logged in."""
    made = Flask("tool")
    made.config.update(SECRET_KEY="x", SESSION_COOKIE_NAME=cookie)

    @made.get("/")
    def index() -> str:
        return f"{session.get('name', 'nobody')}, let in as {request.headers.get('X-Remote-User')}"

    @made.get("/login")
    def login() -> Any:
        session["name"] = request.args["name"]
        return redirect(url_for("index", _external=True))

    @made.get("/links")
    def links() -> str:
        return url_for("index", _external=True)

    made.wsgi_app = ProxyFix(made.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    return made


def browser() -> tuple[http.cookiejar.CookieJar, urllib.request.OpenerDirector]:
    jar = http.cookiejar.CookieJar()
    return jar, urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))


@pytest.mark.parametrize(("cookie", "name"), [("tool_session", "Ann"), ("session", "nobody")])
def test_flask(cookie: str, name: str, site: MakeSite, stack: ExitStack) -> None:
    """A login at Flask leads back through the mount and holds, unless its cookie has the name of the application's."""
    url = stack.enter_context(under_waitress(tool(cookie)))
    made = site(settings("Flask", url), configure=members)
    jar, opener = browser()
    asked = urllib.request.Request(f"{made.url}/tool/login?name=Ann", headers=basic("ann"))
    with opener.open(asked) as answer:
        assert (answer.geturl(), answer.read().decode()) == (f"{made.url}/tool/", f"{name}, let in as ann")
    assert [(one.name, one.path) for one in jar] == ([(cookie, "/tool")] if name == "Ann" else [])
    with pytest.raises(urllib.error.HTTPError, match="403"):
        opener.open(urllib.request.Request(f"{made.url}/tool/", headers=basic("bob")))


def test_flask_is_told_nothing(site: MakeSite, stack: ExitStack) -> None:
    """waitress with its defaults keeps the public host to itself, so that Flask's links lead past the site."""
    assert Adjustments().clear_untrusted_proxy_headers
    url = stack.enter_context(under_waitress(tool("tool_session"), clear_untrusted_proxy_headers=True))
    made = site(settings("Flask", url), configure=members)
    shown = made.get("/tool/links", basic("ann"))
    assert (shown.status, shown.body) == (200, f"{url}/tool/".encode())
