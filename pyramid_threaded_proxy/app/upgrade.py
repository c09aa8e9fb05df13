"""Upgrades: the protocols that are asked for upstream, and the Origin that may ask."""

from __future__ import annotations

import logging

from pyramid.httpexceptions import (
    HTTPForbidden,
)

from pyramid_threaded_proxy.app.environ import ClientRequest
from pyramid_threaded_proxy.app.refusals import note_refusal
from pyramid_threaded_proxy.app.routes import RequestPolicy
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.http.names import connection_options, without_default_port

log = logging.getLogger("pyramid_threaded_proxy.forward")


def asked_protocols(client: ClientRequest, sending: RequestPolicy, body: Body | None) -> tuple[str, ...]:
    """The protocols to ask for upstream: those of the client's that the route allows. Raises 403 for a foreign Origin.

    Where the connection can't be detached, in HTTP/1.0, or with a body, the request goes on as an ordinary one.
    """
    environ = client.environ
    asked = environ.get("HTTP_UPGRADE")
    if not asked or not sending.upgrade or body is not None or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        return ()
    if "upgrade" not in connection_options([environ.get("HTTP_CONNECTION", "")]) or not client.can_be_detached:
        return ()
    allowed = [name for word in asked.split(",") if (name := word.strip(" \t").lower()) in sending.upgrade]
    if allowed:
        try:
            _check_origin(client, sending)
        except HTTPForbidden:
            note_refusal(client.request, sending.settings.name, "origin")
            raise
    return tuple(dict.fromkeys(allowed))


def _check_origin(client: ClientRequest, sending: RequestPolicy) -> None:
    """A browser sends a site's cookies with another site's WebSocket: only Origin tells them apart (RFC 6455 10.2)."""
    origin = client.environ.get("HTTP_ORIGIN")
    if origin is None or "*" in sending.origins:
        return
    own = comparable(client.public_url())
    if comparable(origin) != own and comparable(origin) not in map(comparable, sending.origins):
        log.warning(
            "an upgrade was refused: its Origin is %r and the application's own is %r "
            "(behind a proxy, waitress's trusted_proxy decides what that is)",
            origin,
            own,
        )
        raise HTTPForbidden("This Origin may not open such a connection.")


def comparable(origin: str) -> str:
    """An origin in lower case, without its scheme's own port."""
    origin = origin.lower()
    return without_default_port(origin, origin.partition(":")[0])
