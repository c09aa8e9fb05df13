"""A site with a status page: `watcher` may look, `operator` may also act, a stranger may neither."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

from pyramid.authorization import Allow
from pyramid.config import Configurator

from tests.support.site import Policy, Site
from tests.support.wire import Answer

STATUS = {
    "proxy.status.prefix": "/status",
    "proxy.status.permission": "watch",
    "proxy.status.control_permission": "control",
    "proxy.own_cookies": "session",
}
#: Who passes as whom, in a browser as well.
COOKIE = "user"


class Root:
    """Two who may look, one of whom may act."""

    __acl__ = ((Allow, "watcher", "watch"), (Allow, "operator", ("watch", "control")))

    def __init__(self, request: Any) -> None:
        pass


class CookiePolicy(Policy):
    """The user is whoever X-User or the cookie says."""

    def identity(self, request: Any) -> str | None:
        return super().identity(request) or request.cookies.get(COOKIE)

    authenticated_userid = identity


def watched(config: Configurator) -> None:
    """Configure the application so that the status page has whom to ask."""
    config.set_root_factory(Root)
    config.set_security_policy(CookiePolicy())


def page(site: Site, user: str = "operator", query: str = "") -> tuple[str, str, str]:
    """The page's text, its token and its cookie."""
    answer = site.get("/status" + query, {"X-User": user})
    assert answer.status == 200
    text = answer.body.decode()
    token = re.search(r'data-token="([^"]*)"', text)
    assert token is not None
    return text, token[1], (answer.one("Set-Cookie") or "").split(";")[0]


def act(
    site: Site, action: str, user: str = "operator", headers: dict[str, str] | None = None, **values: str
) -> Answer:
    """Send a form as the page does; `headers` replace the page's own."""
    fields = {"Content-Type": "application/x-www-form-urlencoded", "X-User": user, "Origin": site.url}
    return site.get(f"/status/do/{action}", fields | (headers or {}), "POST", urllib.parse.urlencode(values))
