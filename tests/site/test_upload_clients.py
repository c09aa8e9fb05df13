"""Real clients whose uploads stream: curl in four ways, and a browser with a form."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy, get_csrf_token
from pyramid.response import Response

from tests.support.bodies import content
from tests.support.browser import Browser
from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, with_policy
from tests.support.uploads import streaming
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Request

SIZE = 20_000_000


class Kept:
    """An upstream that keeps the requests that it had."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            self.requests.append(request)
            wire.answer(b"%d" % len(request.body))


WAYS: dict[str, list[str]] = {
    "length": ["-T", "{file}"],
    "chunked": ["-T", "-"],
    "waits": ["-T", "{file}", "-H", "Expect: 100-continue", "--expect100-timeout", "30"],
    "does not wait": ["-T", "{file}", "-H", "Expect: 100-continue", "--expect100-timeout", "0.001"],
}


def curl(program: str, where: Site, file: Path, way: str) -> tuple[str, bytes]:
    """Upload the file; the status and the answer's body."""
    options = [option.format(file=file) for option in WAYS[way]]
    with file.open("rb") as source:
        done = subprocess.run(
            [program, "-s", "-S", "-m", "60", "-w", "\n%{http_code}", *options, f"{where.url}/r/x"],
            stdin=source, capture_output=True, check=False,
        )  # fmt: skip
    body, _, status = done.stdout.rpartition(b"\n")
    return status.decode(), body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("buffering", ["true", "false"])
def test_curl(
    origin: MakeOrigin,
    site: MakeSite,
    tmp_path: Path,
    need_program: Callable[[str], str],
    way: str,
    buffering: str,
) -> None:
    """curl's upload arrives whole, with and without buffering."""
    kept = Kept()
    where = site(streaming(origin(kept).url, request__buffering=buffering))
    file = tmp_path / "file"
    file.write_bytes(content(SIZE))
    assert curl(need_program("curl"), where, file, way) == ("200", b"%d" % SIZE)
    assert kept.requests[0].body == file.read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_curl_is_refused(
    origin: MakeOrigin, site: MakeSite, tmp_path: Path, need_program: Callable[[str], str], way: str
) -> None:
    """curl has the refusal, however far its upload is, and nothing was asked of the upstream."""
    upstream = origin(Kept())
    where = site(streaming(upstream.url, permission="view"), configure=with_policy)
    file = tmp_path / "file"
    file.write_bytes(content(SIZE))
    status, body = curl(need_program("curl"), where, file, way)
    assert status == "403"
    assert b"Forbidden" in body
    assert upstream.accepted == 0


def form(request: Any) -> Response:
    """A page with a form that sends a file and, but at /without, its token."""
    token = "" if request.matched_route.name == "without" else get_csrf_token(request)
    return Response(
        f'<form method="post" enctype="multipart/form-data" action="/r/x"><input type="hidden" name="csrf_token" '
        f'value="{token}"><input type="file" name="file"><button>send</button></form>'
    )


def with_form(config: Configurator) -> None:
    """An own view with the form, and CSRF checks by default."""
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    for name in ("form", "without"):
        config.add_route(name, f"/{name}")
        config.add_view(form, route_name=name)


# A refused request is left to the collector, with its error's frames, and with it the file in which WebOb has the part:
# stock Pyramid under stock waitress warns of it too.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", ["form", "without"])
@pytest.mark.parametrize("buffering", ["true", "false"])
def test_a_browsers_form(
    origin: MakeOrigin, site: MakeSite, tmp_path: Path, browser: Browser, buffering: str, page: str
) -> None:
    """A form with a file and a CSRF token arrives whole; one without the token is refused, and nothing goes up."""
    kept = Kept()
    upstream = origin(kept)
    where = site(streaming(upstream.url, request__buffering=buffering), configure=with_form)
    file = tmp_path / "file"
    file.write_bytes(content(2_000_000))
    browser.open(f"{where.url}/{page}", "a=b")
    wait_until(lambda: browser.text("button") == "send", "the form")
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    chosen = browser.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=chosen, files=[str(file)])
    browser.click("button")
    if page == "form":
        wait_until(lambda: kept.requests, "the upload")
        assert file.read_bytes() in kept.requests[0].body
        assert kept.requests[0].one("Content-Length") == str(len(kept.requests[0].body))
    else:
        wait_until(lambda: "CSRF" in browser.text("body"), "the refusal")
        assert upstream.accepted == 0
        gc.collect()
