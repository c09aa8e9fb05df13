"""The status page in a real browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.response import Response

from tests.site.test_demo import Browser, eventually
from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, route, with_view
from tests.support.status import COOKIE, STATUS, watched
from tests.support.wire import OriginWire

EVIL = "</script><img src=x onerror=\"document.title='owned'\">"


class Watching(Browser):
    """A browser that remembers what its console said and what it asked for."""

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(program, folder)
        self.console: list[str] = []
        self.asked: list[str] = []

    def read(self) -> dict[str, Any]:
        message = super().read()
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        return message

    def visit(self, site: Site, user: str, scripts: bool = True) -> None:
        """Open the status page as `user`."""
        self.call("Storage.setCookies", cookies=[{"name": COOKIE, "value": user, "url": site.url}])
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Log", "Runtime", "Network", "Page"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=f"{site.url}/status")
        eventually(lambda: bool(self.text("h1")))

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def press(self, selector: str) -> None:
        """A real click, where the element is: works without scripts of the page."""
        eventually(lambda: bool(self.text(selector)))
        box = self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            "one.scrollIntoView({block: 'center'});"
            " const {x, y, width, height} = one.getBoundingClientRect();"
            " return JSON.stringify([x + width / 2, y + height / 2]) })()"
        )
        x, y = json.loads(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@pytest.fixture
def browser(need_program: Callable[[str], str], tmp_path: Path) -> Iterator[Watching]:
    made = Watching(need_program("chromium"), tmp_path / "profile")
    yield made
    made.stop()


@pytest.fixture
def here(origin: MakeOrigin, site: MakeSite) -> Iterator[Site]:
    """A site whose route answers at once, but for `/r/held`, which lasts until the test is over."""
    over = threading.Event()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if "held" in request.target:
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                over.wait(60)
            elif "bad" in request.target:
                return wire.send(b"HTTP/1.1 200 <img src=x onerror=alert(1)>\r\nContent-Length: x\r\n\r\n")
            wire.answer(b"x" * 1000)

    settings = STATUS | route("r", f"{origin(script).url} {origin(script).url}", health__fails="0")
    yield site(settings, configure=watched)
    over.set()


def test_the_page_moves_under_load(browser: Watching, here: Site) -> None:
    """Plots, tiles and tables follow what happens; nothing is complained about, nothing comes from elsewhere."""
    browser.visit(here, "watcher")
    before = browser.value("document.querySelector('[data-plot=ended] svg .f0').getAttribute('d')")
    for _ in range(50):
        here.get("/r/x", {"X-User": "ann"})
    eventually(lambda: browser.text("#live") == "live")
    eventually(lambda: browser.text("#tile-rate") not in ("0", ""))
    after = browser.value("document.querySelector('[data-plot=ended] svg .f0').getAttribute('d')")
    assert after != before
    eventually(lambda: browser.text("#tile-down") != "0 B/s")
    assert browser.console == []
    assert {url.split("?")[0] for url in browser.asked if not url.startswith("data:")} == {
        f"{here.url}/status", f"{here.url}/status/status.json"
    }  # fmt: skip


def test_the_console_would_say_of_the_policy(browser: Watching, here: Site) -> None:
    """What the page's policy forbids is refused by the browser and said there, so silence elsewhere means something."""
    browser.visit(here, "watcher")
    eventually(lambda: browser.text("#live") == "live")
    assert browser.console == []
    browser.value("document.body.append(Object.assign(document.createElement('img'), {src: '/own.png'}))")
    eventually(lambda: browser.value("1") and any("Content Security Policy" in line for line in browser.console))


def test_a_hidden_page_asks_nothing(browser: Watching, here: Site) -> None:
    """While nobody sees it no request is made, and at once when somebody does again."""
    browser.visit(here, "watcher")
    eventually(lambda: browser.text("#live") == "live")
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.value(hide % "true" + tell)
    before = len(browser.asked)
    # Two and a half seconds, because a page that is seen asks every two.
    browser.call("Runtime.evaluate", expression="new Promise(go => setTimeout(go, 2500))", awaitPromise=True)
    assert len(browser.asked) == before
    browser.value(hide % "false" + tell)
    eventually(lambda: browser.value("1") and len(browser.asked) > before)


def test_an_attackers_texts_are_texts(browser: Watching, here: Site) -> None:
    """User agent, user's name, path and an upstream's error reach the page as what they are."""
    client = here.client()
    user = EVIL.replace('"', "'")
    client.send(f"GET /r/held/<b>x</b> HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\nUser-Agent: {user}\r\n\r\n".encode())
    client.until(b"hello")
    here.get("/r/bad", {"X-User": user})
    browser.visit(here, "watcher")
    eventually(lambda: browser.text("#live") == "live")
    assert user in browser.text("#exchanges")
    assert user in browser.text("#failures")
    assert browser.value("document.title") == "Proxy status"
    assert browser.value("document.querySelectorAll('main img, main b:not(figcaption b)').length") == 0
    assert browser.console == []
    client.close()


def test_sorting_and_filter_work(browser: Watching, here: Site) -> None:
    """A click on a column's head sorts by it, a second one the other way; the filter leaves what it names."""
    clients = []
    for user in ("bob", "ann", "eve"):
        client = here.client()
        client.send(f"GET /r/held HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n".encode())
        client.until(b"hello")
        clients.append(client)
    browser.visit(here, "watcher")
    users = "[...document.querySelectorAll('#exchanges tbody tr')].map(row => row.cells[0].textContent).join()"
    eventually(lambda: browser.value(users) == "bob,ann,eve")
    browser.click("#exchanges th button")
    assert browser.value(users) == "ann,bob,eve"
    browser.click("#exchanges th button")
    assert browser.value(users) == "eve,bob,ann"
    browser.value("filter.user.value = 'ann'; filter.oninput()")
    eventually(lambda: browser.value(users) == "ann")
    for client in clients:
        client.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["with-script", "without"])
def test_an_exchange_is_closed_and_an_upstream_rested(browser: Watching, here: Site, scripts: bool) -> None:
    """The forms do what they say, with the page's script and without it."""
    client = here.client()
    client.send(b"GET /r/held HTTP/1.1\r\nHost: a\r\nX-User: ann\r\n\r\n")
    client.until(b"hello")
    browser.visit(here, "operator", scripts)
    eventually(lambda: browser.text("#exchanges tbody td") == "ann")
    browser.press("#exchanges form[action$=close] button")
    client.wait_closed()
    eventually(lambda: browser.text("#exchanges tbody td") == "")
    browser.press("#upstreams form[action$=rest] button")
    eventually(lambda: browser.text("#upstreams .tag.resting") == "resting")
    upstream = here.engine.routes["r"].balancer.upstreams[0]
    assert upstream.health.down
    for _ in range(4):
        assert here.get("/r/x").status == 200
    assert upstream.health.down
    assert browser.console == []
    client.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_have_enough_contrast(browser: Watching, here: Site, scheme: str) -> None:
    """Text on its card has the contrast that WCAG 2.2 asks for (4.5 to 1)."""
    browser.visit(here, "watcher")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    contrast = """(() => {
      const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(n => n / 255)
        .map(n => n <= .04045 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b }
      const card = light(getComputedStyle(document.querySelector('.card')).backgroundColor)
      return Math.min(...['.tiles dt', '.tiles dd', 'thead th', 'summary', '.key'].map(one => {
        const text = light(getComputedStyle(document.querySelector(one)).color)
        return (Math.max(card, text) + .05) / (Math.min(card, text) + .05) }))
    })()"""
    assert browser.value(contrast) >= 4.5


def test_another_sites_form_is_refused(browser: Watching, here: Site, site: MakeSite) -> None:
    """A page on a second real site that posts the form, in the browser of who may close exchanges, closes none.

    Both sites are on one machine, so the browser counts them as same-site and sends the cookies: the token and the
    origin are what is left.
    """
    client = here.client()
    client.send(b"GET /r/held HTTP/1.1\r\nHost: a\r\nX-User: ann\r\n\r\n")
    client.until(b"hello")
    browser.visit(here, "operator")
    eventually(lambda: browser.text("#exchanges tbody td") == "ann")
    copied = browser.value("document.querySelector('#exchanges form[action$=close]').outerHTML")
    action = f"{here.url}/status/do/close"

    def trap(request: Any) -> Response:
        return Response(copied.replace("/status/do/close", action).replace("<form", "<form id=trap", 1))

    second = site({}, configure=with_view(trap))
    with_token = [True, False]
    for token in with_token:
        browser.call("Page.navigate", url=f"{second.url}/own")
        eventually(lambda: bool(browser.text("#trap button")))
        assert browser.value("trap.action") == action
        assert browser.value("trap.csrf.value")
        if not token:
            browser.value("trap.csrf.value = ''")
        browser.value("trap.submit()")
        eventually(lambda: browser.value("location.href") == action)
        eventually(lambda: "403" in browser.text("body"))
    assert here.engine.admission.in_flight == 1
    client.close()


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_who_wishes_less_motion_sees_none(browser: Watching, here: Site, wish: str) -> None:
    """Nothing of the page moves by itself then; else its controls change colour gently."""
    browser.visit(here, "operator")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": wish}])
    moving = """[...document.querySelectorAll('*')].filter(one => {
      const style = getComputedStyle(one)
      return style.animationName != 'none' || style.transitionDuration.split(', ').some(time => time != '0s')
    }).length"""
    assert (browser.value(moving) == 0) == (wish == "reduce")


def test_no_colour_stands_alone(browser: Watching, here: Site) -> None:
    """Each series of a plot has a sign of its own beside its colour, and each state of a row its word."""
    browser.visit(here, "watcher")
    signs = """JSON.stringify([...document.querySelectorAll('figure')].map(one =>
      [...one.querySelectorAll('.key > span')].map(sign => sign.textContent)))"""
    plots = json.loads(browser.value(signs))
    assert plots
    for plot in plots:
        assert plot
        assert "" not in plot
        assert len(set(plot)) == len(plot)
    assert browser.text("#upstreams .tag") == "up"
