"""What the recipes share: the settings of their page, an application whose users log in, and programs as upstreams."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pyramid.authentication import extract_http_basic_credentials
from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden, HTTPUnauthorized
from pyramid.security import forget

from tests.support.docs import blocks, ini, section
from tests.support.processes import free_port
from tests.support.site import Policy
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import over_http

_INI = re.compile(r"^```ini\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_UPSTREAM = re.compile(r"https?://\w+\.internal(?::\d+)?")


def need_recipe(*names: str) -> None:
    """Modules of the extra `recipes`; without them the test is left out, in CI too, but not in ``make recipes``.

    They are not imported: what their programs do to Python (pypiserver's bottle puts a finder of its own into
    `sys.meta_path`) is not for other tests.
    """
    for name in names:
        if find_spec(name) is None:
            assert not os.environ.get("RECIPES"), f"{name} is not installed"
            pytest.skip(f"heavy: make recipes installs {name}")


def recipe_program(name: str) -> str:
    """The path of a program of Debian's that ``make recipes`` asks for; without it the test is left out elsewhere."""
    path = shutil.which(name)
    if path is None:
        assert not os.environ.get("RECIPES"), f"{name} is not installed"
        pytest.skip(f"heavy: make recipes asks for {name}")
    return path


def settings(heading: str, upstream: str) -> dict[str, str]:
    """The first lines of the page and those below one heading, with the upstream where the test has it."""
    parser = ini()
    for text in [blocks("recipes.md", "ini")[0].text, *_INI.findall(section("recipes.md", heading))]:
        parser.read_string("[app:main]\n" + _UPSTREAM.sub(upstream, text))
    return dict(parser["app:main"])


class Members(Policy):
    """Programs log in by HTTP Basic with the password `secret`, or name a user in X-Member; browsers do in a cookie."""

    def identity(self, request: Any) -> str | None:
        given = extract_http_basic_credentials(request)
        if given is not None:
            return given.username if given.password == "secret" else None
        return request.headers.get("X-Member") or request.cookies.get("auth_tkt")  # type: ignore[no-any-return]

    authenticated_userid = identity

    def forget(self, request: Any, **kw: Any) -> list[tuple[str, str]]:
        return [("WWW-Authenticate", 'Basic realm="site"')]


class Root:
    """Ann may `read` and `write`; Bob, who can log in as well, may neither."""

    __acl__ = (Allow, "ann", ("read", "write")), (Allow, "reader", "read")

    def __init__(self, request: Any) -> None:
        pass


def forbidden(request: Any) -> Any:
    """Whoever is not logged in is asked to, because many programs send no password before."""
    return HTTPForbidden() if request.identity else HTTPUnauthorized(headers=forget(request))


def members(config: Configurator) -> None:
    """The application of the recipes."""
    config.set_security_policy(Members())
    config.set_root_factory(Root)
    config.add_forbidden_view(forbidden)


def basic(user: str) -> dict[str, str]:
    """The field by which a user logs in."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:secret".encode()).decode()}


def _answers(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    if process.poll() is not None:
        return True
    try:
        return over_http(port, path).status < 500
    except OSError:
        return False


@contextmanager
def program(folder: Path, *command: str, ready: str = "/", port: int | None = None, **environ: str) -> Iterator[str]:
    """A program as an upstream, from when it answers `ready`; ``{port}`` in its command is its port. Gives its URL."""
    port = port or free_port()
    log = folder / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environ},
        )  # fmt: skip
    try:
        wait_until(lambda: _answers(process, port, ready), f"an answer of {command[0]}", 3 * PATIENCE)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE)
