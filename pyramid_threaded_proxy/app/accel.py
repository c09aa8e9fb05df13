"""`proxy.engine = accel`: a permitted request is handed back to nginx, which moves its bytes (``X-Accel-Redirect``).

The redirect leads to a named location of nginx's: it keeps the method and the body, and takes its target byte for byte
from a field, where a location with a path makes a GET of it and unescapes ``%2F``. What else is told is what a front
that asks is told (`verify`). Whoever does not bear the key, or bears it with another digest of the routes, is relayed
by this process, so that no target leaks; and so is a request whose hook has done what nginx can't be told of.
"""

from __future__ import annotations

from typing import Any

from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.front import Front, FrontFault, has_key
from pyramid_threaded_proxy.app.response import ProxyResponse
from pyramid_threaded_proxy.app.settled import settled_fields

#: What stands before a route's name in the names of nginx's locations.
LOCATION = "@proxied_"


def came_by_nginx(engine: Engine, environ: dict[str, Any]) -> bool:
    """Whether nginx moves the bytes of this request; from here on it counts as the client's own connection."""
    secret = engine.settings.accel_secret
    if secret is None or not has_key(environ, secret):
        return False
    front = Front(environ)
    if not front.is_trusted:
        engine.front_log.untrusted(front.peer()[0])
    front.put_into(environ)
    if environ.get("HTTP_X_PROXY_DIGEST") == engine.digest:
        return True
    engine.front_log.stale(str(environ.get("HTTP_X_PROXY_DIGEST", ""))[:32], engine.digest)
    return False


def handed_over(engine: Engine, answer: ProxyResponse, request: Request) -> Response:
    """The answer that has nginx fetch what `answer` stands for; the same answer where nginx can't."""
    prepared = answer.prepared
    name = prepared.exchange.route
    try:
        fields = settled_fields(prepared, engine.routes[name], request.environ)
    except FrontFault as fault:
        engine.front_log.relayed(f"{name}: {fault}")
        return answer
    prepared.release()
    return Response(headerlist=[("X-Accel-Redirect", f"{LOCATION}{name}"), ("Content-Length", "0"), *fields])
