"""The recipe for Jupyter: a kernel is started and runs a cell over its WebSocket, as JupyterLab has it do."""

from __future__ import annotations

import json
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.recipes import basic, members, need_recipe, program, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import PATIENCE


@pytest.fixture
def notebooks(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Site:
    """A site with a Jupyter server behind it."""
    need_recipe("jupyter_server", "ipykernel")
    command = [sys.executable, "-m", "jupyter_server", "--ip=127.0.0.1", "--port={port}", "--no-browser"]
    command += ["--allow-root", "--ServerApp.base_url=/notebooks", "--IdentityProvider.token=CHANGE-ME"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environ = {**folders, "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    url = stack.enter_context(program(tmp_path, *command, ready="/notebooks/api", **environ))
    return site(settings("Jupyter", url), configure=members)


def open_kernel(made: Site, kernel: str, user: str, origin: str) -> ClientConnection:
    """The WebSocket of a kernel, as a page of `origin` opens it."""
    url = f"ws://{made.authority}/notebooks/api/kernels/{kernel}/channels"
    return connect(url, additional_headers=basic(user), origin=origin, proxy=None)  # type: ignore[arg-type]


def execute(cell: str) -> str:
    """The message that runs a cell."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": "",
        "version": "5.3",
    }
    content = {"code": cell, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    return json.dumps({**message, "buffers": []})


def result(kernel: ClientConnection) -> Any:
    """What the cell's last line is worth."""
    while True:
        message = json.loads(kernel.recv(PATIENCE))
        assert message["msg_type"] != "error", message
        if message["msg_type"] == "execute_result":
            return message["content"]["data"]["text/plain"]


def test_a_cell_runs(notebooks: Site) -> None:
    """Through the site by a page of the site; nobody else gets a kernel, nor a stranger's page the one that runs."""
    fields = {"Content-Type": "application/json", "Origin": notebooks.url}
    refused = notebooks.get("/notebooks/api/kernels", basic("bob") | fields, "POST", b"{}")
    assert refused.status == 403
    started = notebooks.get("/notebooks/api/kernels", basic("ann") | fields, "POST", b"{}")
    assert started.status == 201, started.body
    kernel = json.loads(started.body)["id"]
    for user, origin in (("bob", notebooks.url), ("ann", "http://evil.example")):
        with pytest.raises(InvalidStatus, match="403"):
            open_kernel(notebooks, kernel, user, origin)
    with open_kernel(notebooks, kernel, "ann", notebooks.url) as opened:
        opened.send(execute("6 * 7"))
        assert result(opened) == "42"
    ended = notebooks.get(f"/notebooks/api/kernels/{kernel}", basic("ann") | fields, "DELETE")
    assert ended.status == 204
