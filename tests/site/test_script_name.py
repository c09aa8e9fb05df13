"""SCRIPT_NAME: front servers that take the prefix away and those that leave it, by each way of telling what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.docs import rows, section
from tests.support.origin import Origin, Script, echo
from tests.support.programs import applications_module
from tests.support.site import Site, route
from tests.support.wire import OriginWire, received

PrefixMiddleware = applications_module("paste.deploy.config").PrefixMiddleware
URLMap = applications_module("paste.urlmap").URLMap

MakeOrigin = Callable[[Script], Origin]
MakeSite = Callable[..., Site]


class XScriptName:
    """The snippet that many sites have: the front server says in a field what it has taken away, or left."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if script_name := environ.get("HTTP_X_SCRIPT_NAME", ""):
            environ["SCRIPT_NAME"] = script_name
            if environ["PATH_INFO"].startswith(script_name):
                environ["PATH_INFO"] = environ["PATH_INFO"][len(script_name) :]
        return self._application(environ, start_response)


def urlmap(application: Any) -> Any:
    mapped = URLMap()
    mapped["/app"] = application
    return mapped


def filtered(application: Any) -> Any:
    return PrefixMiddleware(urlmap(application), prefix="/site")


#: Each way of telling SCRIPT_NAME: options of the site, and whether a front server may strip.
WAYS: dict[str, dict[str, Any]] = {
    "`url_prefix` of waitress": {"url_prefix": "/app"},
    "PasteDeploy's `prefix` filter": {"wrap": lambda application: PrefixMiddleware(application, prefix="/app")},
    "middleware that reads `X-Script-Name`": {"wrap": XScriptName},
    "PasteDeploy's `urlmap`, or `[composite:…]`": {"wrap": urlmap},
    "PasteDeploy's `prefix` filter, in front of a `[composite:…]`": {"wrap": filtered},
}
FRONTS = {"leaves it": "/app", "strips it": ""}
#: Where two things say the prefix, the front server may strip what the first of them says.
TWO = {"leaves it": "/site/app", "strips it": "/app"}


def docs_table() -> dict[tuple[str, str], str]:
    found = rows(section("accepted-and-refused.md", "A prefix in front of the application"))
    return {(way, front): cell for way, *cells in found for front, cell in zip(FRONTS, cells, strict=True)}


def test_the_table_is_whole() -> None:
    """Each way and each kind of front server has its cell in the docs."""
    assert set(docs_table()) == {(way, front) for way in WAYS for front in FRONTS}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_front_server(way: str, front: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Where the table says so, the upstream gets the client's own bytes, and is told the whole public mount."""

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target.endswith("/away"):
                wire.answer(b"", f"Location: http://{request.one('Host')}/v2/there", status="302 Found")
            else:
                wire.answer(request.raw)

    upstream = origin(script)
    made = site(route("reports", upstream.url + "/v2"), **WAYS[way])
    fields = {"X-Script-Name": "/app"}
    fronts = TWO if WAYS[way].get("wrap") is filtered else FRONTS
    answer = made.get(fronts[front] + "/reports/x%2Fy?z=%20", fields)
    if not docs_table()[way, front].startswith("yes"):
        assert (docs_table()[way, front], answer.status) == ("404: it maps by the prefix, which is gone", 404)
        return
    assert received(answer).target == "/v2/x%2Fy?z=%20"
    assert received(answer).one("X-Forwarded-Prefix") == fronts["leaves it"] + "/reports"
    away = made.get(fronts[front] + "/reports/away", fields)
    assert away.one("Location") == made.url + fronts["leaves it"] + "/reports/there"


def test_a_rewritten_path_is_still_refused(origin: MakeOrigin, site: MakeSite) -> None:
    """Middleware that changes more than the prefix, or the query, would have another thing authorized than sent."""

    def rewriting(application: Any) -> Any:
        def rewrite(environ: dict[str, Any], start_response: Any) -> Any:
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/app", "/reports/public"
            return application(environ, start_response)

        return rewrite

    made = site(route("reports", origin(echo).url), wrap=rewriting)
    assert made.get("/reports/secret").status == 400
    assert made.get("/app/reports/secret").status == 400
    assert made.get("/app/reports/public").status == 200


@pytest.mark.parametrize("sent", ["/app", "/app/", "/app/x"])
def test_the_root_below_a_prefix(sent: str, origin: MakeOrigin, site: MakeSite) -> None:
    """The prefix filter makes "/" of an empty path; the mount is meant, with and without its slash."""
    made = site(route("all", origin(echo).url, prefix="/", slash="pass"), **WAYS["PasteDeploy's `prefix` filter"])
    answer = made.get(sent)
    assert received(answer).target == (sent.removeprefix("/app") or "/")
