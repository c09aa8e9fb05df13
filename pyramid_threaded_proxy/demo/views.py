"""The demo's own pages: the page, its clock and counter, the login, the button."""

from __future__ import annotations

import http.client
import threading
import time
from html import escape
from pathlib import Path

from pyramid.config import Configurator
from pyramid.csrf import get_csrf_token, new_csrf_token
from pyramid.httpexceptions import HTTPForbidden, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response
from pyramid.security import forget, remember

from .security import password_matches

PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; img-src data:;"
    " script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)
COUNT = 200
SECONDS = 20


def includeme(config: Configurator) -> None:
    config.add_route("page", "/")
    config.add_route("login", "/login", request_method="POST")
    config.add_route("logout", "/logout", request_method="POST")
    config.add_route("clock", "/clock")
    config.add_route("held", "/held")
    config.add_route("slow", "/slow", request_method="POST")
    config.add_view(page, route_name="page")
    config.add_view(login, route_name="login")
    config.add_view(logout, route_name="logout")
    config.add_view(clock, route_name="clock", renderer="json", http_cache=0)
    config.add_view(held, route_name="held", renderer="json", http_cache=0)
    config.add_view(slow, route_name="slow", renderer="json", permission="view")
    config.add_forbidden_view(forbidden)


def page(request: Request, message: str = "") -> Response:
    """The page, with what it has to know about the user written into its placeholders."""
    values = {
        "csrf_token": get_csrf_token(request),
        "userid": request.authenticated_userid or "",
        "may_view": "yes" if request.has_permission("view") else "no",
        "message": message,
        "count": str(COUNT),
        "seconds": str(SECONDS),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"[[{name}]]", escape(value))
    return Response(text, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"})


def login(request: Request) -> Response:
    user = request.POST.get("user", "")
    if not password_matches(user, request.POST.get("password", "")):
        response = page(request, "That user and password do not match.")
        response.status_int = 403
        return response
    # A session from before the login, known to somebody else perhaps, must not become the user's.
    request.session.invalidate()
    new_csrf_token(request)
    return HTTPSeeOther(request.route_path("page"), headers=remember(request, user))


def logout(request: Request) -> Response:
    request.session.invalidate()
    return HTTPSeeOther(request.route_path("page"), headers=forget(request))


def clock(request: Request) -> dict[str, str]:
    return {"time": time.strftime("%H:%M:%S")}


def held(request: Request) -> dict[str, object]:
    """What the upstream holds, and how many waitress threads there are to hold it."""
    try:
        number = request.registry.demo_upstream.held()
    except (OSError, http.client.HTTPException):
        number = None
    threads = sum(thread.name.startswith("waitress-") for thread in threading.enumerate())
    return {"held": number, "threads": threads, "running": request.registry.demo_client.running()}


def slow(request: Request) -> dict[str, object]:
    """The button: a process of its own opens the slow requests, as the user who asked."""
    # The server's own port, not the Host field: the cookie goes to nobody else.
    url = f"http://127.0.0.1:{request.environ['SERVER_PORT']}{request.script_name}/reports/slow"
    if not request.registry.demo_client.start(url, request.headers["Cookie"], COUNT, SECONDS):
        request.response.status_int = 409
        return {"message": "The last ones are still running."}
    return {"message": f"Opening {COUNT} requests of {SECONDS} seconds."}


def forbidden(request: Request) -> Response:
    """Who is not logged in is sent to the login; who is, is told no."""
    if request.authenticated_userid is None and request.method in ("GET", "HEAD"):
        return HTTPSeeOther(request.route_path("page"))
    return HTTPForbidden("You may not view this.")
