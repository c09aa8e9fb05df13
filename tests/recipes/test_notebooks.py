"""The recipe for JupyterLab: its page in Chromium runs a cell, over the WebSocket of a kernel."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.browser import DEADLINE, Browser
from tests.support.recipes import basic, members, need_recipe, program, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import wait_until

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
CELL = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": "6 * 7"}
NOTEBOOK = {"cells": [CELL], "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def jupyter(folder: Path, *options: str, token: str = "") -> AbstractContextManager[str]:
    """A JupyterLab with a notebook of one cell; gives its URL."""
    need_recipe("jupyterlab", "ipykernel")
    (folder / "sums.ipynb").write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", "--port={port}", "--no-browser", *options]
    command += ["--allow-root", "--ServerApp.base_url=/notebooks", f"--IdentityProvider.token={token}"]
    folders = {f"JUPYTER_{kind}_DIR": str(folder) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environ = {**folders, "HOME": str(folder), "IPYTHONDIR": str(folder)}
    return program(folder, *command, ready="/notebooks/api", **environ)


@pytest.fixture
def notebooks(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Site:
    """A site with JupyterLab behind it."""
    return site(settings("JupyterLab", stack.enter_context(jupyter(tmp_path))), configure=members)


def open_kernel(made: Site, kernel: str, user: str, origin: str) -> ClientConnection:
    """The WebSocket of a kernel, as a page of `origin` opens it."""
    url = f"ws://{made.authority}/notebooks/api/kernels/{kernel}/channels"
    return connect(url, additional_headers=basic(user), origin=origin, proxy=None)  # type: ignore[arg-type]


def asked_by(made: Site, origin: str, **fields: str) -> int:
    """What a page of `origin` gets that a member has open and that asks for a kernel; it knows Jupyter's `_xsrf`."""
    cookies = [
        value for name, value in made.get("/notebooks/lab", basic("ann") | fields).fields if name == "Set-Cookie"
    ]
    xsrf = next((value.partition(";")[0] for value in cookies if value.startswith("_xsrf=")), "_xsrf=none")
    fields |= {"Origin": origin, "Cookie": xsrf, "X-XSRFToken": xsrf.removeprefix("_xsrf=")}
    return made.get("/notebooks/api/kernels", basic("ann") | fields, "POST", b"{}").status


def press_shift_and_enter(browser: Browser) -> None:
    """The keys that run a cell."""
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8}
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, **key)


def test_the_page(notebooks: Site, browser: Browser) -> None:
    """A cell of a notebook that is open in Chromium runs, and what it gives appears below it."""
    browser.open(f"{notebooks.url}/notebooks/lab/tree/sums.ipynb", "auth_tkt=ann")
    wait_until(lambda: "6 * 7" in browser.text(".jp-Notebook .cm-content"), "the notebook", 2 * DEADLINE)
    wait_until(lambda: "Idle" in browser.text("#jp-main-statusbar"), "a kernel", 2 * DEADLINE)
    browser.call("Runtime.evaluate", expression="document.querySelector('.jp-Notebook .cm-content').focus()")
    press_shift_and_enter(browser)
    wait_until(lambda: browser.text(".jp-OutputArea-output").strip() == "42", "what the cell gives", DEADLINE)


def test_whoever_may_not(notebooks: Site) -> None:
    """A kernel that runs is neither another user's nor a stranger's page's, nor may such a page start one."""
    assert asked_by(notebooks, "http://evil.example") == 404
    assert asked_by(notebooks, notebooks.url) == 201
    assert notebooks.get("/notebooks/api/kernels", basic("bob")).status == 403
    (kernel,) = json.loads(notebooks.get("/notebooks/api/kernels", basic("ann")).body)
    for user, origin in (("bob", notebooks.url), ("ann", "http://evil.example")):
        with pytest.raises(InvalidStatus, match="403"):
            open_kernel(notebooks, kernel["id"], user, origin)
    with open_kernel(notebooks, kernel["id"], "ann", notebooks.url) as opened:
        assert opened.close_code is None


@pytest.mark.parametrize("remote", [False, True])
def test_the_origin(site: MakeSite, stack: ExitStack, tmp_path: Path, remote: bool) -> None:
    """Jupyter refuses the site's own pages without `request.origin`; `preserve_host` needs that it takes any Host."""
    url = stack.enter_context(jupyter(tmp_path, f"--ServerApp.allow_remote_access={remote}"))
    page = settings("JupyterLab", url)
    without = {key: value for key, value in page.items() if key != "proxy.routes.notebooks.request.origin"}
    preserved = without | {"proxy.routes.notebooks.preserve_host": "true"}
    public = "www.example.com"
    asked = [
        asked_by(site(given, configure=members), f"http://{public}", Host=public)
        for given in (page, without, preserved)
    ]
    assert asked == [201, 404, 201 if remote else 403]


def test_a_token_in_every_request(site: MakeSite, stack: ExitStack, tmp_path: Path) -> None:
    """Why Jupyter has none: with it, it would take a stranger's page for the member."""
    token = {"proxy.routes.notebooks.request.set.Authorization": "token known-to-the-proxy"}
    url = stack.enter_context(jupyter(tmp_path, token="known-to-the-proxy"))
    made = site(settings("JupyterLab", url) | token, configure=members)
    assert asked_by(made, "http://evil.example") == 201
