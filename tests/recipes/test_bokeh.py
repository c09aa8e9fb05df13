"""The recipe for Bokeh: Chromium shows its page, whose parts come by a WebSocket, as does what is said later."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support.browser import DEADLINE, Browser
from tests.support.processes import free_port
from tests.support.recipes import members, need_recipe, program, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import wait_until

#: The page tells the server by the WebSocket that it is there, and the server's answer comes by it.
PLOT = """
from bokeh.io import curdoc
from bokeh.models import Div
document = curdoc()
who = document.session_context.request.headers["X-Remote-User"]
shown = Div(text="nothing yet")
document.add_root(shown)
document.on_event("document_ready", lambda event: shown.update(text=f"drawn for {who}"))
"""


def plots(site: MakeSite, stack: ExitStack, folder: Path, *, told: bool) -> Site:
    """A site with Bokeh behind it, which is told the site's own host, or none."""
    need_recipe("bokeh")
    port = free_port()
    made = site(settings("Bokeh", f"http://127.0.0.1:{port}"), configure=members)
    (folder / "plot.py").write_text(PLOT, encoding="utf-8")
    command = [sys.executable, "-m", "bokeh", "serve", "plot.py", "--address=127.0.0.1", "--port={port}"]
    command += ["--prefix=/plots", *([f"--allow-websocket-origin={made.authority}"] if told else [])]
    stack.enter_context(program(folder, *command, ready="/plots/plot", port=port))
    return made


def test_a_page(site: MakeSite, stack: ExitStack, tmp_path: Path, browser: Browser) -> None:
    """What the server has drawn for its user appears; who may not is refused the page."""
    made = plots(site, stack, tmp_path, told=True)
    browser.open(f"{made.url}/plots/plot", "auth_tkt=ann")
    wait_until(lambda: "drawn for ann" in browser.page(), "what Bokeh draws", DEADLINE)
    assert made.get("/plots/plot", {"X-Member": "bob"}).status == 403


def test_an_origin_that_bokeh_was_not_told(site: MakeSite, stack: ExitStack, tmp_path: Path, browser: Browser) -> None:
    """The page is there, and stays empty: Bokeh refuses its WebSocket."""
    made = plots(site, stack, tmp_path, told=False)
    browser.open(f"{made.url}/plots/plot", "auth_tkt=ann")
    log = tmp_path / "program.log"
    wait_until(lambda: "Refusing websocket connection" in log.read_text(encoding="utf-8"), "the refusal", DEADLINE)
    assert "drawn" not in browser.page()
