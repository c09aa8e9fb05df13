"""What ``make serve`` runs: a small application, and a slow upstream behind it.

::

    __init__.py   the application: routes, views, security
    security.py   two users, one permission
    views.py      the page, its clock and counter, the button
    page.html     all that the browser needs
    children.py   the two processes that the demo starts, and how they end with it
    upstream.py   the backend: slow answers, downloads, an event stream, an echo
    client.py     opens many slow requests at once, as a browser would not

``development.ini`` declares the proxied route; nothing in here knows how it works.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from pyramid.config import Configurator
from pyramid.events import NewRequest
from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.session import SignedCookieSessionFactory

from .children import SlowClient, Upstream, UpstreamFailed
from .security import Root, SecurityPolicy


def main(global_config: dict[str, str], **settings: str) -> object:
    """The application, for ``paste.app_factory``."""
    upstream = urlsplit(settings["proxy.routes.reports.upstream"])
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_security_policy(SecurityPolicy())
        # A new secret at each start: one from a public repository would sign anybody's cookies.
        config.set_session_factory(SignedCookieSessionFactory(secrets.token_hex(), httponly=True, reissue_time=300))
        config.set_default_csrf_options(require_csrf=True)
        config.registry.demo_upstream = Upstream(upstream.hostname or "127.0.0.1", upstream.port or 80)
        config.registry.demo_client = SlowClient()
        config.add_subscriber(start_upstream, NewRequest)
        config.include(".views")
        return config.make_wsgi_app()


def start_upstream(event: NewRequest) -> None:
    """The upstream starts with the first request: ``proutes`` and ``pviews`` load this application too."""
    try:
        event.request.registry.demo_upstream.ensure()
    except UpstreamFailed as error:
        raise HTTPServiceUnavailable(str(error)) from error
