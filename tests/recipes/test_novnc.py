"""The recipe for noVNC: Chromium shows a desktop of TigerVNC's, which it reaches by websockify's WebSocket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.browser import DEADLINE, Browser
from tests.support.processes import free_port, listening
from tests.support.recipes import members, program, recipe_program, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import wait_until

#: Where Debian has them.
PAGES = "/usr/share/novnc"
WIDTH = 320


@contextmanager
def screen(folder: Path) -> Iterator[int]:
    """A desktop without anything on it; gives the port of its VNC server."""
    port = free_port()
    number = f":{port}"  # the display's, which nobody else has
    command = [recipe_program("Xtigervnc"), number, "-localhost", "-rfbport", str(port)]
    command += [
        "-SecurityTypes",
        "None",
        "-desktop",
        "the shop's till",
        "-geometry",
        f"{WIDTH}x200",
        "-nolisten",
        "local",
    ]
    with (folder / "screen.log").open("wb") as log, listening(command, port, log):
        yield port


@pytest.fixture
def desktop(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Site:
    """A site with noVNC's page and a desktop behind it."""
    websockify = recipe_program("websockify")
    target = f"127.0.0.1:{stack.enter_context(screen(tmp_path))}"
    command = [websockify, f"--web={PAGES}", "127.0.0.1:{port}", target]
    url = stack.enter_context(program(tmp_path, *command, ready="/vnc.html"))
    return site(settings("noVNC", url), configure=members)


def test_a_desktop(desktop: Site, browser: Browser) -> None:
    """The page says whose desktop it is connected to, and draws it; who may not is refused page and WebSocket."""
    browser.open(f"{desktop.url}/desktop/vnc.html?path=desktop/websockify&autoconnect=true", "auth_tkt=ann")
    wait_until(lambda: browser.text("#noVNC_status").endswith("the shop's till"), "the connection", DEADLINE)
    drawn = browser.call("Runtime.evaluate", expression="document.querySelector('#noVNC_container canvas').width")
    assert drawn["result"]["value"] == WIDTH
    bob = {"X-Member": "bob"}
    assert desktop.get("/desktop/vnc.html", bob).status == 403
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{desktop.authority}/desktop/websockify", additional_headers=bob, proxy=None)


def test_a_page_that_is_not_told_where(desktop: Site, browser: Browser) -> None:
    """Without `path` it asks the site's root, where nobody is."""
    browser.open(f"{desktop.url}/desktop/vnc.html?autoconnect=true", "auth_tkt=ann")
    wait_until(lambda: "Failed to connect" in browser.text("#noVNC_status"), "the failure", DEADLINE)
