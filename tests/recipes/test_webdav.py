"""The recipe for WsgiDAV: litmus, which plays a whole DAV client, finds behind the proxy what it finds without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from wsgidav.wsgidav_app import WsgiDAVApp

from tests.support.backends import under_waitress
from tests.support.recipes import basic, members, settings
from tests.support.site import MakeSite, Site


@pytest.fixture
def share(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Site:
    """A site with WsgiDAV's share `/dav` at the mount `/dav`; the files are in `tmp_path / "share"`."""
    (tmp_path / "share").mkdir()
    application = WsgiDAVApp({
        "provider_mapping": {"/dav": str(tmp_path / "share")},
        "simple_dc": {"user_mapping": {"*": True}},
        "logging": {"enable": False},
        "verbose": 0,
    })  # fmt: skip
    url = stack.enter_context(under_waitress(application))
    return site(settings("WsgiDAV", url), configure=members)


def litmus(program: str, folder: Path, url: str, *login: str) -> list[str]:
    """What it says at the end of each suite."""
    environ = {**os.environ, "TESTS": "basic copymove props locks http"}
    command = [program, "-k", url, *login]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith("<- summary")]


def test_files_by_dav(share: Site, tmp_path: Path) -> None:
    """A file is written and moved by whoever may; the mount is the share's path, so what is listed is there."""
    sent = share.get("/dav/a.txt", basic("ann"), "PUT", b"text")
    moved = share.get("/dav/a.txt", basic("ann") | {"Destination": f"{share.url}/dav/b.txt"}, "MOVE")
    assert (sent.status, moved.status, os.listdir(tmp_path / "share")) == (201, 201, ["b.txt"])
    assert b"<ns0:href>/dav/b.txt<" in share.get("/dav/", basic("ann") | {"Depth": "1"}, "PROPFIND").body
    assert share.get("/dav/b.txt", basic("bob"), "DELETE").status == 403


def test_litmus_by_dav(share: Site, tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """Logged in to the application, litmus finds what it finds without the proxy; who may not is refused everything."""
    program = need_program("litmus")
    alone = litmus(program, tmp_path, share.engine.routes["dav"].settings.upstream[0] + "/")
    assert litmus(program, tmp_path, f"{share.url}/dav/", "ann", "secret") == alone
    assert sum(" 0 failed" in line for line in alone) >= 3
    refused = litmus(program, tmp_path, f"{share.url}/dav/", "bob", "secret")
    assert all(line.endswith("of 2 tests run: 1 passed, 1 failed. 50.0%") for line in refused)
    assert len(refused) == 5
