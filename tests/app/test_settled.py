"""What fronts are told, by name, and the digest of what they were configured with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyramid_threaded_proxy.app.settled import settled_names
from tests.support.fronts import verifying, with_root
from tests.support.paths import ROOT
from tests.support.site import NOWHERE, MakeSite, Site, route


def names(there: Site) -> frozenset[str]:
    found = there.engine.routes["r"].settled
    assert found == settled_names(there.engine.routes["r"].rules)
    return found


def test_the_names_hold_whatever_could_fool_an_upstream(site: MakeSite) -> None:
    """Cookies, credentials, who asks, where from, overrides, and the fields of fronts; not the front's own business."""
    found = names(
        site({**route("r", NOWHERE, request__remove="X-Gone"), **verifying(), "proxy.own_fields": "X-API-Key"})
    )
    assert found > {
        "cookie", "authorization", "x-forwarded-for", "x-forwarded-user", "forwarded", "x-real-ip", "remote-user",
        "x-original-url", "x-http-method-override", "x-proxy-key", "x-original-uri", "x-api-key", "x-gone",
        "x-request-id", "via", "destination", "x-amz-copy-source", "x-copy-from",
    }  # fmt: skip
    assert found.isdisjoint({"host", "connection", "content-length", "content-type", "accept", "origin", ""})


def digest(site: MakeSite, **keys: str) -> str:
    settings = {**route("r", NOWHERE, permission="view"), **verifying()}
    settings |= {f"proxy.{name.replace('__', '.')}": value for name, value in keys.items()}
    return str(site(settings, configure=with_root).engine.digest)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"routes__r__upstream": "http://other"}, True),
        ({"routes__r__request.set.X": "y"}, True),
        ({"routes__r__response.remove": "X"}, True),
        ({"routes__r__upgrade": "websocket"}, True),
        ({"routes__r__require_csrf": "true"}, True),  # its header stays home
        ({"own_cookies": "other"}, True),
        ({"verify__engine": "caddy"}, True),
        ({"routes__s__prefix": "/s", "routes__s__upstream": NOWHERE, "routes__s__public": "true"}, True),
        ({"routes__r__permission": "look"}, False),
        ({"routes__r__recheck": "5s"}, False),
        ({"verify__secret": "another-key-of-the-front"}, False),
        ({"threads": "3"}, False),
    ],
)
def test_the_digest_is_of_what_fronts_hold(site: MakeSite, change: dict[str, str], differs: bool) -> None:
    """It changes with what a configuration is made of, and not with who may pass."""
    assert (digest(site) != digest(site, **change)) is differs


def test_the_digest_is_the_same_in_every_process(site: MakeSite) -> None:
    """However Python orders its sets in another one."""
    program = (
        "from tests.support.site import route, NOWHERE\nfrom tests.support.fronts import verifying\n"
        "from pyramid.config import Configurator\n"
        "settings = {**route('r', NOWHERE, upgrade='a b c', request__only='x y z'), **verifying()}\n"
        "config = Configurator(settings=settings)\n"
        "config.include('pyramid_threaded_proxy')\nconfig.make_wsgi_app()\n"
        "print(config.registry['pyramid_threaded_proxy.engine'].digest)\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == 32
