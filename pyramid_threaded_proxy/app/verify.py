"""`proxy.verify`: a front server asks whether a request may pass, and then moves its bytes itself.

**What is read.** `X-Proxy-Key` (`proxy.verify.secret`; without it the endpoint is a plain 404), `X-Proxy-Digest` (of
the routes that the front was configured with; another one is 503), `X-Proxy-Route` (the name of the proxied route that
the front would use), and the asked method, target and protocol, each in one place alone:

================  ===========================  ==================================  =============================
`verify.engine`   method                       target, raw                         protocol to switch to
================  ===========================  ==================================  =============================
nginx, haproxy    ``X-Original-Method``        ``X-Original-URI``                  ``X-Original-Upgrade``
caddy             ``X-Forwarded-Method``       ``X-Forwarded-Uri``                 ``X-Original-Upgrade``
traefik           ``X-Forwarded-Method``       ``X-Forwarded-Uri``                 there is ``Sec-WebSocket-Key``
envoy             the question's own           behind the prefix, with its query   ``X-Original-Upgrade``
================  ===========================  ==================================  =============================

``X-Original-Connection`` may tell the client's `Connection`, whose options are names of fields that do not go up. The
client's other fields are read as they come, cookies and Content-Type included. Who the client is, and which host
and scheme it asked, is told by X-Forwarded-For, -Host and -Proto as far as `trusted_proxy` lets the front; its last
entry is the end of the client's connection with the front, which upstreams take for us. X-Forwarded-Prefix, Forwarded,
`Connection`, `Upgrade`, the request id, fields that name a user (`http.names.IDENTITY`) and a body of the question's
count for nothing.

**What comes.** 200 is yes, everything else is no. With a yes:

* ``X-Proxy-Target``: the target to send, and ``X-Proxy-Host``: the Host to send with it;
* ``X-Proxy-Upgrade``, where the connection may be switched: send `Upgrade` with it, and else none;
* each field that the application decides about (`settled.settled_names`) under its own name, at most once: the front
  deletes its client's, and sends these. One that is missing stays deleted. `Cookie` is one of them;
* ``X-Proxy-Fields``: the lower-case names of all fields that go up, Host and framing aside, for a front that can
  delete all others;
* what the application put on the answer: `Set-Cookie` as it is, other fields as ``X-Proxy-Answer-NAME``.

With a no the status is 401 where the application's is, else 403; ``X-Proxy-Status`` and ``X-Proxy-Location`` tell what
the client should see. A front that may also hand the request to the application, which then refuses it itself with its
own page. Caddy, Envoy and Traefik show their clients the answer to the question, so to these it is the application's
own, with its status, page and fields, unless that would count as a yes: then 403. A request that another route than
``X-Proxy-Route`` would answer, or none of ours, is refused with 404; no view of the application's runs for it.

The request that is asked about goes the usual way, through the application's execution policy, tweens, router, policy
and our own view, with a rewritten environ and without a body; only what the view makes of it is told, not sent. It
takes no slot: limits are the front's. All of it happens in the thread of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any
from urllib.parse import quote, unquote, urljoin

from pyramid.httpexceptions import HTTPNotFound
from pyramid.response import Response

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.front import SOURCES, Front, FrontFault, Source, asked_environ, has_key
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.settled import settled_fields
from pyramid_threaded_proxy.http.names import CONNECTION_FIELDS, Fields
from pyramid_threaded_proxy.relay.recheck import EXPLAINED

Policy = Callable[[dict[str, Any], Any], Response]


class Question(Front):
    """What one question is about, and what our own code on its way says to it. In the thread of the question."""

    __slots__ = ("answers", "route")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        super().__init__(environ)
        #: The name of the route that the front would use.
        self.route: str = environ.get("HTTP_X_PROXY_ROUTE", "")
        #: What our view made of it; of several tries the last one counts.
        self.answers: list[ProxyResponse] = []


class VerifyPolicy:
    """The execution policy of an application that fronts may ask: around its own, which sees what is asked about."""

    def __init__(self, engine: Engine, inner: Policy) -> None:
        settings = engine.settings
        assert settings.verify_prefix is not None
        assert settings.verify_engine is not None
        assert settings.verify_secret is not None
        self._engine, self._inner = engine, inner
        self._prefix, self._secret = settings.verify_prefix, settings.verify_secret
        self._path = unquote(self._prefix, "latin-1")
        self._source: Source = SOURCES[settings.verify_engine]

    def __call__(self, environ: dict[str, Any], router: Any) -> Response:
        if not self._is_question(environ["PATH_INFO"]):
            return self._inner(environ, router)
        if not has_key(environ, self._secret):
            return HTTPNotFound()
        try:
            return self._answered(environ, router)
        except FrontFault as fault:
            self._engine.front_log.faulty(str(fault))
            return _empty(503)

    def _is_question(self, path: str) -> bool:
        return path == self._path or (self._source.target is None and path.startswith(self._path + "/"))

    def _answered(self, environ: dict[str, Any], router: Any) -> Response:
        digest = environ.get("HTTP_X_PROXY_DIGEST", "")
        if digest != self._engine.digest:
            self._engine.front_log.stale(digest[:32], self._engine.digest)
            return _empty(503)
        question = Question(environ)
        if not question.is_trusted:
            self._engine.front_log.untrusted(question.peer()[0])
        asked = asked_environ(environ, self._source, self._prefix)
        if asked is None or question.route not in self._engine.routes:
            return self._refusal(HTTPNotFound(), environ)
        question.put_into(asked)
        asked |= {EXPLAINED: question.answers.append, "wsgi.input": BytesIO()}
        try:
            response = self._inner(asked, router)
            if question.answers and response.status_int == 204:
                return self._yes(question.answers[-1], asked, response)
        finally:
            for answer in question.answers:
                answer.prepared.release()
        return self._refusal(HTTPNotFound() if response.status_int == 204 else response, asked)

    def _yes(self, answer: ProxyResponse, asked: Mapping[str, Any], response: Response) -> Response:
        prepared = answer.prepared
        route = self._engine.routes[prepared.exchange.route]
        try:
            fields = settled_fields(prepared, route, asked)
        except FrontFault as fault:
            raise FrontFault(f"{prepared.exchange.route}: {fault}") from None
        if prepared.policy.request_id_header:
            fields.append((f"X-Proxy-Answer-{prepared.policy.request_id_header}", prepared.exchange.request_id))
        made = _empty(200)
        made.headerlist += [*fields, *_for_the_client(response)]
        return made

    def _refusal(self, response: Response, asked: Mapping[str, Any]) -> Response:
        """No: what the client should see is beside it, or, where clients see the answer itself, is the answer."""
        status, location = response.status_int, response.headers.get("Location")
        shown = self._source.shows_refusals and status >= 300 and not isinstance(response, ProxyResponse)
        if shown:
            made = response
        else:
            _discard(response)
            made = _empty(401 if status == 401 else 403)
        made.headers["X-Proxy-Status"] = str(status if status >= 300 else 403)
        if location is not None:
            made.headers["X-Proxy-Location"] = _absolute(location, asked)
            if made is response:
                made.headers["Location"] = _absolute(location, asked)
        return made


def _empty(status: int) -> Response:
    """Nobody keeps an answer to a question."""
    return Response(status=status, headerlist=[("Cache-Control", "no-store"), ("Content-Length", "0")])


def _absolute(location: str, asked: Mapping[str, Any]) -> str:
    """A redirect's goal, seen from what is asked about: WebOb would see it from the question."""
    path = quote(asked.get("SCRIPT_NAME", "") + asked.get("PATH_INFO", ""), "/;:@&=+$,", "latin-1")
    return urljoin(f"{asked['wsgi.url_scheme']}://{asked.get('HTTP_HOST') or asked['SERVER_NAME']}{path}", location)


def _for_the_client(response: Response) -> Fields:
    """What tweens, callbacks and subscribers have put on the answer that the client gets."""
    fields = [field for field in response.headerlist if field[0].lower() not in CONNECTION_FIELDS | {"content-type"}]
    return [(name if name.lower() == "set-cookie" else f"X-Proxy-Answer-{name}", value) for name, value in fields]


def _discard(response: Response) -> None:
    """A page that nobody sees; what an exception view would have fetched for it is not fetched."""
    if isinstance(response, ProxyResponse):
        response.prepared.exchange.request.close_body()
        response.prepared.release()
        return
    close = getattr(response.app_iter, "close", None)
    if close is not None:
        close()
