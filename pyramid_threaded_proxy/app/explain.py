"""What would happen to a request: asked of the application's own router, policy and views, and nothing is sent.

The view behind a declared route is told by a private key of the environ that it is only asked; so no slot is taken, no
thread started, no socket opened. What is the application's own runs as ever: tweens, root factories, the security
policy, and a `request` hook; whoever has made those do something has them do it now. A route of the application's own
is named, and its view is not called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from pyramid.exceptions import URLDecodeError
from pyramid.httpexceptions import HTTPException
from pyramid.interfaces import IDefaultPermission, IRoutesMapper, ISecurityPolicy
from pyramid.request import Request
from pyramid.response import Response
from pyramid.security import remember

from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.recheck import EXPLAINED

_SECRET = re.compile(r"authorization|cookie|key|token|secret|password|csrf", re.IGNORECASE)


class CannotRemember(Exception):
    """The application's security policy makes no cookies for a user who is only named; the text says what to do."""


@dataclass
class Asked:
    """The request that is asked about. `fields` are the client's, `target` is as a client would send it."""

    method: str
    target: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    userid: str | None = None
    address: str = "127.0.0.1"
    body: bytes = b""


@dataclass
class Explanation:
    """What was found, in the order in which it is decided."""

    request: str
    #: ``pass``, a status, or ``application`` where a view of the application's own would answer.
    outcome: str = ""
    why: str = ""
    route: str = ""
    mount: str = ""
    userid: str = ""
    context: str = ""
    permission: str = ""
    decided: str = ""
    csrf: str = ""
    limits: str = ""
    upstream: str = ""
    head: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    hook: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the request would go up."""
        return self.outcome == "pass"


class Explainer:
    """Asks one application. Not for a process that serves: it is meant for a console."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._registry = application.registry
        self._engine: Engine = application.registry[ENGINE]

    def explain(self, asked: Asked) -> Explanation:
        """What would happen to `asked`. Raises `CannotRemember`, and what the application's own code raises."""
        found = Explanation(f"{asked.method} {asked.target}" + (f" as {asked.userid}" if asked.userid else ""))
        environ = environ_of(asked)
        if asked.userid is not None:
            environ["HTTP_COOKIE"] = "; ".join(filter(None, [environ.get("HTTP_COOKIE"), self._cookies_of(asked)]))
        route = self._matched(environ, found)
        if route is None:
            return found
        self._ask(environ, route, found)
        return found

    def _matched(self, environ: dict[str, Any], found: Explanation) -> Route | None:
        """Our route; None where another one, or none, takes the request."""
        mapper = self._registry.queryUtility(IRoutesMapper)
        with self._application.request_context(dict(environ)) as request:
            try:
                match = mapper(request)["route"] if mapper is not None else None
            except URLDecodeError:
                found.outcome, found.why = "400", "the path's escapes are not UTF-8 (RFC 3987 3.2)"
                return None
        if match is None:
            found.outcome, found.why = (
                "application",
                "no route matches: the application's traversal, or its 404, answers",
            )
            return None
        found.route = match.name
        route = self._engine.routes.get(match.name)
        if route is None:
            found.outcome, found.why = "application", f"the application's own route {match.name!r} takes it"
        return route

    def _ask(self, environ: dict[str, Any], route: Route, found: Explanation) -> None:
        told: list[Response] = []
        environ[EXPLAINED] = told.append
        with self._application.request_context(environ) as request:
            # Afterwards Pyramid forgets the context.
            request.add_finished_callback(lambda request: self._note_access(request, route, found))
            try:
                response = self._application.invoke_request(request)
            except HTTPException as error:
                response = error
            userid = request.authenticated_userid
        found.userid = "" if userid is None else str(userid)
        found.mount = route.mount or route.settings.pattern or "/"
        found.limits = _limits(route, self._engine)
        if told:
            found.outcome = "pass"
            found.why = "it is let in"
            _note_sent(told[0], route, found)
        else:
            found.outcome = str(response.status_int)
            found.why = _reason(request, response)

    def _note_access(self, request: Request, route: Route, found: Explanation) -> None:
        """Context, permission, and the entry that decided. The policy is asked once more: only it knows."""
        settings = route.settings
        context = getattr(request, "context", None)
        found.context = "" if context is None else f"{type(context).__module__}.{type(context).__qualname__}"
        found.csrf = "checked" if type(getattr(request, "exception", None)).__name__.startswith("BadCSRF") else ""
        if settings.public:
            found.permission, found.decided = "none: the route is public", ""
            return
        permission = settings.permission or self._registry.queryUtility(IDefaultPermission)
        policy = self._registry.queryUtility(ISecurityPolicy)
        found.permission = str(permission)
        if context is not None and policy is not None:
            found.decided = _shown_decision(policy.permits(request, context, permission))

    def _cookies_of(self, asked: Asked) -> str:
        """The cookies that the application's own `remember` makes for a user; a session's as well."""
        response = Response()
        with self._application.request_context(environ_of(Asked("GET", "/", address=asked.address))) as request:
            for name, value in remember(request, asked.userid):
                response.headers.add(name, value)
            request._process_response_callbacks(response)
        cookies = SimpleCookie()
        for value in response.headers.getall("Set-Cookie"):
            cookies.load(value)
        if not cookies:
            raise CannotRemember(
                "the security policy's remember() made no cookie for this user: give the request's own credentials "
                "with --header, such as --header 'Authorization: …'"
            )
        return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in cookies.items())


def environ_of(asked: Asked) -> dict[str, Any]:
    """The WSGI environ that waitress would make of a request; the target may be a URL or a path."""
    parts = urlsplit(asked.target)
    absolute = bool(parts.scheme and parts.netloc)
    target = asked.target.partition("//")[2].partition("/")[1:] if absolute else ("", asked.target)
    raw = "".join(target) or "/"
    path, _, query = raw.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": asked.method,
        "SCRIPT_NAME": "",
        # As waitress: leading slashes are one, and escapes are gone.
        "PATH_INFO": "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/"),
        "QUERY_STRING": query,
        "REQUEST_URI": raw,
        "SERVER_NAME": parts.hostname or "localhost",
        "SERVER_PORT": str(parts.port or (443 if parts.scheme == "https" else 80)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": parts.netloc or "localhost",
        "REMOTE_ADDR": asked.address,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme if absolute else "http",
        "wsgi.input": BytesIO(asked.body),
        "wsgi.errors": None,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": True,
    }
    for name, value in asked.fields:
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


def _reason(request: Request, response: Response) -> str:
    """In words: what was raised, or only that a page of the application's answers."""
    error = getattr(request, "exception", None) or (response if isinstance(response, HTTPException) else None)
    if error is None:
        return f"the application answers with {response.status}"
    said = getattr(error, "detail", None) or getattr(error, "explanation", None) or str(error)
    return f"{type(error).__name__}: {said}"


def _shown_decision(result: Any) -> str:
    if hasattr(result, "ace"):
        return f"{result.ace!r} in the ACL of {type(result.context).__qualname__}"
    text = str(getattr(result, "msg", result))
    return text or type(result).__name__


def _limits(route: Route, engine: Engine) -> str:
    settings = route.settings
    most = [f"{engine.settings.max_exchanges} in the process"]
    if settings.max_exchanges is not None:
        most.append(f"{settings.max_exchanges} on the route")
    if settings.max_exchanges_per_user is not None:
        most.append(f"{settings.max_exchanges_per_user} for a user")
    return ", ".join(most)


def _note_sent(response: Any, route: Route, found: Explanation) -> None:
    prepared: PreparedExchange = response.prepared
    sent = prepared.exchange.request
    choice = prepared.destination.choice
    found.upstream = sent.origin if choice is None else choice.upstream.url
    found.head = [f"{sent.method} {sent.target} HTTP/1.1"]
    found.head += [f"{name}: {masked(name, value)}" for name, value in sent.final_fields()]
    found.answer = _answer_rules(route)
    if prepared.policy.hooks.request is not None:
        found.hook = "the request hook was called"


def _answer_rules(route: Route) -> list[str]:
    settings, said = route.settings, []
    for what in ("set", "add", "default"):
        said += [f"{what} {name}: {masked(name, value)}" for name, value in getattr(settings, f"response_{what}")]
    said += [f"remove {name}" for name in settings.response_remove]
    if settings.rewrite_location is not None:
        said.append("Location and Content-Location are mapped to the mount")
    if settings.rewrite_cookies is not None:
        said.append("cookies are confined to the mount")
    if settings.cache == "private" and not settings.public:
        said.append("Cache-Control is made private")
    return said


def masked(name: str, value: str) -> str:
    """A field's value without what may be a secret: cookies keep their names, credentials their scheme."""
    if name.lower() == "cookie":
        return "; ".join(f"{pair.partition('=')[0].strip()}=***" for pair in value.split(";"))
    if name.lower() in ("authorization", "proxy-authorization"):
        return f"{value.partition(' ')[0]} ***" if " " in value else "***"
    return "***" if _SECRET.search(name) else value


def as_json(found: Mapping[str, Any]) -> str:
    """One object, readable."""
    return json.dumps(found, indent=2, ensure_ascii=False, default=str)
