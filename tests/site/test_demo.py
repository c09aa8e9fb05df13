"""The demo as a user starts it: a real `pserve` with development.ini, on free ports."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyramid_threaded_proxy.demo.children import Upstream, UpstreamFailed
from pyramid_threaded_proxy.demo.client import slow_requests
from tests.support.browser import DEADLINE, Browser
from tests.support.paths import ROOT
from tests.support.processes import free_port
from tests.support.waiting import wait_until

INI = ROOT / "development.ini"
eventually = partial(wait_until, timeout=DEADLINE)


class Demo:
    """A running demo: its process, its two ports, and what it has logged."""

    def __init__(self, process: subprocess.Popen[str], upstream_port: int) -> None:
        assert process.stdout is not None
        self.process = process
        self.upstream_port = upstream_port
        self.log: list[str] = []
        for line in process.stdout:
            self.log.append(line)
            if match := re.search(r"Serving on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                break
        else:
            pytest.fail("pserve ended: " + "".join(self.log))
        self.reader = threading.Thread(target=self.log.extend, args=(process.stdout,))
        self.reader.start()

    def ask(
        self, path: str, cookie: str = "", *, method: str = "GET", body: str = "", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request on a connection of its own: status, fields and body of the answer."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()} | {"Cookie": cookie}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body=body.encode() or None, headers=fields)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def form(self, cookie: str = "") -> tuple[str, str]:
        """The session's cookie and the page's CSRF token."""
        _, fields, page = self.ask("/", cookie)
        token = re.search(rb'name="csrf_token" value="(\w+)"', page)
        assert token
        return fields.get("Set-Cookie", cookie).split(";")[0], token[1].decode()

    def login(self, user: str, password: str) -> tuple[int, str]:
        """The status and, after a success, the cookie."""
        cookie, token = self.form()
        body = f"user={user}&password={password}&csrf_token={token}"
        content_type = "application/x-www-form-urlencoded"
        status, fields, _ = self.ask("/login", cookie, method="POST", body=body, Content_Type=content_type)
        return status, fields.get("Set-Cookie", "").split(";")[0]

    def held(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ask("/held")[2])
        return answer

    def connect_upstream(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.upstream_port), timeout=DEADLINE)


@contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """development.ini on free ports, until the block ends."""
    upstream_port = free_port()
    text = INI.read_text(encoding="utf-8").replace("127.0.0.1:6544", f"127.0.0.1:{upstream_port}")
    ini = folder / "development.ini"
    ini.write_text(text.replace("listen = 127.0.0.1:6543", "listen = 127.0.0.1:0"), encoding="utf-8")
    command = [sys.executable, "-X", "dev", "-m", "pyramid.scripts.pserve", str(ini)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            demo = Demo(process, upstream_port)
            yield demo
        finally:
            process.terminate()
        demo.reader.join(DEADLINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture(scope="module")
def alice(demo: Demo) -> str:
    """The cookie of who may view the reports."""
    return demo.login("alice", "alice")[1]


def test_nobody_passes_before_the_login(demo: Demo) -> None:
    """The application's own forbidden view answers on the proxied route."""
    status, fields, _ = demo.ask("/reports/echo")
    assert (status, fields["Location"]) == (303, f"http://127.0.0.1:{demo.port}/")


def test_who_may_not_view_is_refused(demo: Demo) -> None:
    """A user without the permission gets neither the reports nor the button."""
    status, cookie = demo.login("bob", "bob")
    cookie, token = demo.form(cookie)
    assert status == 303
    assert demo.ask("/reports/echo", cookie)[0] == 403
    assert demo.ask("/slow", cookie, method="POST", X_CSRF_Token=token)[0] == 403


@pytest.mark.parametrize(("user", "password"), [("alice", "bob"), ("alice", ""), ("", ""), ("nobody", "")])
def test_a_wrong_password_is_refused(demo: Demo, user: str, password: str) -> None:
    """A login that fails gives no session that could pass."""
    status, cookie = demo.login(user, password)
    assert status == 403
    assert demo.ask("/reports/echo", cookie)[0] == 303


def test_the_login_needs_its_token(demo: Demo) -> None:
    """A form of another site can't log somebody in."""
    cookie, _ = demo.form()
    assert demo.ask("/login", cookie, method="POST", body="user=alice&password=alice")[0] == 400


def test_the_login_gives_a_new_session(demo: Demo) -> None:
    """The token of the session before the login is worth nothing after it."""
    _, before = demo.form()
    _, cookie = demo.login("alice", "alice")
    assert demo.ask("/slow", cookie, method="POST", X_CSRF_Token=before)[0] == 400


def test_the_logout_ends_what_passes(demo: Demo) -> None:
    """After the logout the new cookie passes no more."""
    cookie, token = demo.form(demo.login("alice", "alice")[1])
    status, fields, _ = demo.ask("/logout", cookie, method="POST", X_CSRF_Token=token)
    assert status == 303
    assert demo.ask("/reports/echo", fields["Set-Cookie"].split(";")[0])[0] == 303


def test_the_upstream_learns_the_user_and_no_secret(demo: Demo, alice: str) -> None:
    """The echo shows the user's name as the application set it, and not the session's cookie."""
    status, fields, body = demo.ask("/reports/echo?a=%2F", alice, X_Remote_User="mallory")
    request_line, *lines = body.decode().splitlines()
    assert (status, request_line) == (200, "GET /echo?a=%2F HTTP/1.1")
    assert [line for line in lines if line.lower().startswith("x-remote-user")] == ["X-Remote-User: alice"]
    assert "session=" not in body.decode()
    assert fields["Content-Security-Policy"] == "sandbox"


def test_a_posted_body_arrives(demo: Demo, alice: str) -> None:
    """A request with a body and the CSRF token reaches the upstream whole; the token stays here."""
    cookie, token = demo.form(alice)
    status, _, body = demo.ask("/reports/echo", cookie, method="POST", body="x" * 100_000, X_CSRF_Token=token)
    assert status == 200
    assert body.endswith(b"\r\n\r\n" + b"x" * 100_000)
    assert token.encode() not in body


def test_a_download_arrives_whole(demo: Demo, alice: str) -> None:
    """8 MiB and a bit have the SHA-256 that the upstream names."""
    size = (8 << 20) + 3
    _, fields, body = demo.ask(f"/reports/download?bytes={size}", alice)
    named = demo.ask(f"/reports/download.sha256?bytes={size}", alice)[2]
    assert (int(fields["Content-Length"]), len(body)) == (size, size)
    assert hashlib.sha256(body).hexdigest() == named.decode().strip()


def test_head_has_no_body(demo: Demo, alice: str) -> None:
    """HEAD of the big download answers with its length alone."""
    status, fields, body = demo.ask("/reports/download", alice, method="HEAD")
    assert (status, fields["Content-Length"], body) == (200, str(1 << 30), b"")


def test_events_come_one_by_one(demo: Demo, alice: str) -> None:
    """The first events are here while the stream goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=DEADLINE)
    connection.request("GET", "/reports/events", headers={"Cookie": alice})
    with connection.getresponse() as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = [response.readline() for _ in range(4)]
    connection.close()
    assert (lines[0], lines[3]) == (b"id: 1\n", b"id: 2\n")


def test_slow_requests_hold_no_thread(demo: Demo, alice: str) -> None:
    """20 slow requests are held by 4 waitress threads while the clock answers; when their clients go they end."""
    with ExitStack() as connections:
        for _ in range(20):
            connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=DEADLINE)
            connections.callback(connection.close)
            connection.request("GET", f"/reports/slow?seconds={10 * DEADLINE}", headers={"Cookie": alice})
        eventually(lambda: demo.held()["held"] == 20)
        assert demo.held()["threads"] == 4
        assert demo.ask("/clock")[0] == 200
    eventually(lambda: demo.held()["held"] == 0)


def test_every_slow_request_is_answered(demo: Demo, alice: str) -> None:
    """What the button's process starts ends well, each on its own connection and all at the same moment."""
    url = f"http://127.0.0.1:{demo.port}/reports/slow"
    assert asyncio.run(slow_requests(url, alice, 100, "0.5")) == 100


def test_the_button_opens_its_requests_once(tmp_path: Path) -> None:
    """All 200 are held at once; a second press meanwhile is refused; the demo's end, however, ends its children."""
    with running(tmp_path) as demo:
        cookie, token = demo.form(demo.login("alice", "alice")[1])
        assert demo.ask("/slow", cookie, method="POST", X_CSRF_Token=token)[0] == 200
        assert demo.ask("/slow", cookie, method="POST", X_CSRF_Token=token)[0] == 409
        eventually(lambda: demo.held() == {"held": 200, "threads": 4, "running": True})
        assert demo.ask("/clock")[0] == 200
        shown = json.loads(demo.ask("/status/status.json", cookie)[2])
        assert (shown["in_flight"], shown["exchanges"][0]["user"]) == (200, "alice")
        assert b"GET /reports/slow" in demo.ask("/status", cookie)[2]
        assert demo.ask("/status", demo.login("bob", "bob")[1])[0] == 403
        with demo.connect_upstream() as connection:
            demo.process.send_signal(signal.SIGKILL)
            assert connection.recv(1) == b""
        # Both children have our standard output: its end says that neither is left.
        demo.reader.join(DEADLINE)
        assert not demo.reader.is_alive()


def test_an_interrupt_ends_it_cleanly(tmp_path: Path) -> None:
    """After Ctrl-C nothing is left behind, and nothing was complained about."""
    with running(tmp_path) as demo:
        cookie = demo.login("alice", "alice")[1]
        assert demo.ask("/reports/echo", cookie)[0] == 200
        demo.process.send_signal(signal.SIGINT)
        demo.process.wait(DEADLINE)
        demo.reader.join(DEADLINE)
        assert not demo.reader.is_alive()
    assert [line for line in demo.log if "Traceback" in line or "still running" in line] == []


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """Where something else has the upstream's port, the page says so."""
    with running(tmp_path) as demo, socket.create_server(("127.0.0.1", demo.upstream_port)):
        status, _, body = demo.ask("/")
    assert status == 503
    assert f"can't listen on 127.0.0.1:{demo.upstream_port}" in body.decode()


def test_the_upstream_starts_once() -> None:
    """A second `ensure` keeps the process; one that died is replaced."""
    upstream = Upstream("127.0.0.1", free_port())
    upstream.ensure()
    try:
        with socket.create_connection((upstream.host, upstream.port), timeout=DEADLINE) as first:
            upstream.ensure()
            assert upstream.held() == 0
            upstream.stop()
            assert first.recv(1) == b""
        with pytest.raises(OSError, match="refused"):
            upstream.held()
        upstream.ensure()
        assert upstream.held() == 0
    finally:
        upstream.stop()


def test_the_upstream_names_a_taken_port() -> None:
    """The error says which address could not be had."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UpstreamFailed, match=rf"127\.0\.0\.1:{port}"):
            Upstream("127.0.0.1", port).ensure()


def test_the_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """The button's 200 requests are shown as held while the clock goes on and the events come."""
    with running(tmp_path) as demo:
        cookie = demo.login("alice", "alice")[1]
        browser.open(f"http://127.0.0.1:{demo.port}/", cookie)
        eventually(lambda: browser.text("#open:enabled") == "Open 200 slow requests")
        assert browser.text("#logout strong") == "alice"
        browser.click("#open")
        eventually(lambda: browser.text("#held") == "200")
        clock = browser.text("#clock")
        eventually(lambda: browser.text("#clock") != clock)
        assert browser.text("#held") == "200"
        assert browser.text("#threads") == "4"
        event = browser.text("#events li")
        eventually(lambda: browser.text("#events li") not in ("", event))
        # All of them stand on the status page too, beside the page's own events.
        browser.open(f"http://127.0.0.1:{demo.port}/status", cookie)
        eventually(lambda: browser.text("#live") == "live")
        assert int(browser.text("#tile-in-flight")) >= 200
        assert browser.text("#exchanges tbody td") == "alice"
        slow = (
            "[...document.querySelectorAll('#exchanges tbody tr')].filter(row => /slow/.test(row.textContent)).length"
        )
        assert browser.call("Runtime.evaluate", expression=slow)["result"]["value"] == 200


#: The places and sizes of all cards of the page, and of what stands in a line with what changes.
PLACES = """JSON.stringify([...document.querySelectorAll("section, section p, #bars, #open")].map(one => {
  const {x, y, width, height} = one.getBoundingClientRect();
  return [one.id || one.tagName, x, y, width, height].join(" ");
}))"""


def value(browser: Browser, expression: str) -> Any:
    """What an expression is in the page."""
    result = browser.call("Runtime.evaluate", expression=expression)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")


def test_what_changes_on_the_page_moves_nothing(browser: Browser, tmp_path: Path) -> None:
    """One answer is one answer; whatever the clock says, how it went, and what the stream brings, the cards stay."""
    with running(tmp_path) as demo:
        cookie = demo.login("alice", "alice")[1]
        browser.open(f"http://127.0.0.1:{demo.port}/", cookie)
        eventually(lambda: browser.text("#open:enabled"))
        eventually(lambda: browser.text("#events li"))

        def after(what: str, found: str = PLACES) -> Any:
            """What is found at once after something was shown, before the page's own next answer."""
            return value(browser, f"(() => {{ {what}; return {found}; }})()")

        words = "document.querySelector('#streak').parentElement.textContent"
        one = "streak = 0; showClock({time: '12:00:00'}, 5)"
        assert after(one, words) == "5 ms for the last answer, 1 answer in a row"
        assert after("showClock(null, 9)", words) == "no answer for the last answer, 0 answers in a row"
        places = after(one)
        assert places.count("SECTION") == 4
        assert after("showClock(null, 9)") == places
        assert after("streak = 99999; showClock({time: '23:59:59'}, 12345)") == places
        assert after("for (let one = 0; one < 9; one++) showEvent({data: `event ${one}`})") == places
        assert after("showHeld({held: 12345, threads: 4, running: true}); showHeld({held: 0, threads: 4})") == places


@pytest.mark.parametrize("user", ["", "bob", "alice"])
def test_links_lead_somewhere(browser: Browser, tmp_path: Path, user: str) -> None:
    """Who may follow them gets links, and each is answered; who may not gets their words alone."""
    with running(tmp_path) as demo:
        cookie = demo.login(user, user)[1] if user else demo.form()[0]
        browser.open(f"http://127.0.0.1:{demo.port}/", cookie)
        eventually(lambda: ":" in browser.text("#clock"))
        found = value(browser, "JSON.stringify([...document.links].map(link => link.pathname + link.search))")
        links = json.loads(found)
        assert "What else the backend has" in browser.text("main")
        if user != "alice":
            assert links == []
            return
        assert len(links) == 5
        for link in links:
            if "1073741824" not in link and "events" not in link:  # those have tests of their own
                assert demo.ask(link, cookie)[0] == 200


@pytest.mark.parametrize("which", ["the demo", "its backend"])
def test_a_busy_port(which: str, tmp_path: Path) -> None:
    """What `make serve` runs ends with one clear line where somebody has one of the two ports."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        busy, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        own, backend = (busy, free) if which == "the demo" else (free, busy)
        text = INI.read_text(encoding="utf-8").replace("127.0.0.1:6543", f"127.0.0.1:{own}")
        ini = tmp_path / "development.ini"
        ini.write_text(text.replace("127.0.0.1:6544", f"127.0.0.1:{backend}"), encoding="utf-8")
        command = [sys.executable, "-m", "pyramid_threaded_proxy.demo", str(ini)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"The demo can't listen on 127.0.0.1:{busy}: Address already in use. Does another demo run?\n"
    )
