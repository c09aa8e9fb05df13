"""What an operator reads: a line for each limit, each refused answer and how each exchange ended; no secrets in any."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy.app import operator_log
from pyramid_threaded_proxy.app.operator_log import QUIET, LimitLog
from pyramid_threaded_proxy.exceptions import TooManyExchanges
from pyramid_threaded_proxy.limits.admission import Admission, Limits
from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire

PACKAGE = "pyramid_threaded_proxy"


def package_lines(caplog: pytest.LogCaptureFixture, module: str = "") -> list[str]:
    """What the package, or one module of it, has logged."""
    name = f"{PACKAGE}.{module}" if module else PACKAGE
    return [record.getMessage() for record in caplog.records if record.name.startswith(name)]


def test_a_limit_is_told_of_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once at first, then once in `QUIET` seconds with the number of refusals since; each limit for itself."""
    now = [1000.0]
    monkeypatch.setattr(operator_log.time, "monotonic", lambda: now[0])
    log = LimitLog()
    for seconds in (0.0, 0.1, QUIET - 0.01, QUIET, QUIET + 1, 2 * QUIET - 0.01, 3 * QUIET):
        now[0] = 1000.0 + seconds
        log.reached(TooManyExchanges("proxy.max_exchanges (5)"))
        if seconds == 0.1:
            log.reached(TooManyExchanges("proxy.routes.r.max_exchanges_per_user (1)", status=429))
    assert package_lines(caplog) == [
        "a request was refused with 503: the limit is reached: proxy.max_exchanges (5)",
        "a request was refused with 429: the limit is reached: proxy.routes.r.max_exchanges_per_user (1)",
        "a request was refused with 503: the limit is reached: proxy.max_exchanges (5) (2 more since the last line)",
        "a request was refused with 503: the limit is reached: proxy.max_exchanges (5) (2 more since the last line)",
    ]


@pytest.mark.parametrize(
    ("limits", "user", "setting"),
    [
        (Limits(None, None), None, "proxy.max_exchanges (1)"),
        (Limits(1, None), None, "proxy.routes.r.max_exchanges (1)"),
        (Limits(None, 1), "ann", "proxy.routes.r.max_exchanges_per_user (1)"),
    ],
)
def test_a_limit_is_named_by_its_setting(limits: Limits, user: str | None, setting: str) -> None:
    """The operator reads which setting to change; a user's name is not in it."""
    admission = Admission(1)
    place = admission.admit("r", user, limits)
    with pytest.raises(TooManyExchanges, match=re.escape(setting)) as caught:
        admission.admit("r", user, limits)
    assert "ann" not in str(caught.value)
    place.release()


HUSH = b"hush-hush"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

#: Answers that break a rule, each with a secret in it, and what the line says of the rule.
REFUSED: dict[str, tuple[bytes, str]] = {
    "no-http": (b"password=hush-hush and more\r\n\r\n", "no status line"),
    "reason": (b"HTTP/1.1 200 hush-hush\x00\r\n\r\n", "control character"),
    "control": (HEAD + b"Set-Cookie: s=hush-hush\x00\r\n\r\n", "b'Set-Cookie'"),
    "bare-lf": (HEAD + b"Authorization: hush-hush\nA: b\r\n\r\n", "b'Authorization'"),
    "no-colon": (HEAD + b"A: b\r\nhush-hush\r\n\r\n", "field"),
    "folded": (HEAD + b"A: b\r\n hush-hush\r\n\r\n", "fold"),
    "long": (b"HTTP/1.1 200 hush-hush\r\nX: hush-hush\r\nA: " + b"x" * 70_000, "longer than 65536"),
    "lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: hush-hush\r\n\r\n", "more than one Content-Length"),
    "length": (HEAD + b"Content-Length: hush-hush\r\n\r\n", "Content-Length is not"),
    "coding": (HEAD + b"Transfer-Encoding: hush-hush\r\n\r\n", "Transfer-Encoding is not"),
    "size-line": (CHUNKED + b"hush-hush\r\n", "size line"),
    "late-size-line": (CHUNKED + b"2\r\nokhush-hush\r\n", "no CRLF"),
    "long-size-line": (CHUNKED + b"2;hush-hush" + b"x" * 300, "longer than 256"),
    "trailer": (CHUNKED + b"0\r\nX: hush-hush\x00\r\n\r\n", "b'X'"),
    "long-trailers": (CHUNKED + b"0\r\nX: hush-hush" + b"x" * 9000, "longer than 8192"),
    "switch": (b"HTTP/1.1 101 hush-hush\r\nUpgrade: hush-hush\r\nConnection: upgrade\r\n\r\n", "101"),
}


def refused_answers(wire: OriginWire) -> None:
    """The one that the target names."""
    request = wire.request()
    if request is not None:
        wire.send(REFUSED[request.target.partition("?")[0].lstrip("/")][0])
        wire.wait_closed()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_answer_names_its_rule(
    name: str, origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says which upstream on which route broke which rule, and shows nothing that may be a secret."""
    caplog.set_level(logging.DEBUG)
    upstream = origin(refused_answers)
    here = site(route("r", upstream.url))
    client = here.client()
    client.send(f"GET /r/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    client.wait_closed()
    client.close()
    wait_until(lambda: here.engine.admission.in_flight == 0)
    (line,) = wait_until(lambda: package_lines(caplog, "operator_log"))
    assert line.startswith(f"an answer of {upstream.url} on r was refused: ")
    assert REFUSED[name][1] in line
    assert HUSH.decode() not in caplog.text
    access, *_ = wait_until(lambda: package_lines(caplog, "access"))
    assert access.split()[-2] == "answer-refused"


# Nothing secret


SECRET_REQUEST = (
    "GET http://user:hush-a@here{path}?token=hush-b HTTP/1.1\r\nHost: here\r\nCookie: session=hush-c\r\n"
    "Authorization: Bearer hush-d\r\nProxy-Authorization: hush-e\r\nReferer: http://u:hush-f@b/c?t=hush-g#hush-h\r\n"
    "X-Api-Key: hush-i\r\n{more}\r\n"
)


class Upstream:
    """Answers that hold secrets, and go wrong as the target says."""

    def __call__(self, wire: OriginWire) -> None:
        request = wire.request()
        kind = request.target.partition("?")[0] if request is not None else ""
        fields = b"Set-Cookie: s=hush-j\r\nLocation: http://u:hush-k@b/?hush-l\r\n"
        if kind == "/reset":
            wire.reset()
        elif kind == "/silent":
            wire.wait_closed()
        elif kind == "/short":
            wire.send(HEAD + fields + b"Content-Length: 100\r\n\r\nhush-m")
        elif kind == "/garbage":
            wire.send(HEAD + fields + b"X: hush-n\x01\r\n\r\n")
        elif request is not None:
            wire.answer(b"hush-o", "Set-Cookie: s=hush-j", "Location: http://u:hush-k@b/?hush-l", "Connection: close")


def bad_field(exchange: Any) -> None:
    """A hook that sets what can't be sent."""
    exchange.response.headers["X-Bad"] = "hush-p\n"


def configure(config: Configurator) -> None:
    config.add_route("fetch", "/fetch")
    config.add_view(lambda request: request.proxy_fetch("http://u.invalid/?hush-q"), route_name="fetch")
    config.add_route("own", "/own")
    config.add_view(lambda request: Response("own"), route_name="own")


#: Paths, what else the request says, and how the access log says that it ended; None: there is no exchange.
ENDS: list[tuple[str, str, str | None]] = [
    ("/r/whole", "", "whole"),
    ("/r/reset", "", "upstream-gone"),
    ("/r/short", "", "upstream-gone"),
    ("/r/garbage", "", "answer-refused"),
    ("/r/silent", "", "read-timeout"),
    ("/refused/x", "", "connect-failed"),
    ("/hook/x", "", "hook-failed"),
    ("/fetch", "", "connect-failed"),
    ("/r/%2e%2e/hush", "", None),
    ("/r/x", "Connection: upgrade\r\nUpgrade: hush-r\r\nOrigin: http://hush-s\r\n", "whole"),
    ("/r/x", "Content-Length: 2000\r\n", None),
]


def converse(client: Wire, path: str, more: str) -> None:
    client.send(SECRET_REQUEST.format(path=path, more=more + "Connection: close\r\n" * (not more)).encode())
    client.half_close() if "Content-Length" in more else client.wait_closed()


def test_nothing_secret_is_logged_whatever_goes_wrong(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Cookies, credentials, queries and field values are in no record of any logger of the package, at DEBUG."""
    caplog.set_level(logging.DEBUG)
    url = origin(Upstream()).url
    here = site(
        route("r", url, read_timeout="100ms", max_exchanges="3", health__fails="0", request__authorization="pass")
        | route("refused", "http://127.0.0.1:1 http://127.0.0.1:2", health__fails="1")
        | route("hook", url, hooks__headers=f"{__name__}.bad_field"),
        configure=configure,
    )
    for path, more, _ in ENDS:
        client = here.client()
        converse(client, path, more)
        client.close()
    wait_until(lambda: not here.engine.busy(), "the end of all, and of its lines")
    wanted = [end for _, _, end in ENDS if end is not None]
    assert [line.split()[-2] for line in package_lines(caplog, "access") if '"GET' in line] == wanted
    records = [record for record in caplog.records if record.name.startswith(PACKAGE)]
    formatter = logging.Formatter("%(name)s %(message)s")
    assert [text for text in map(formatter.format, records) if "hush-" in text] == []
    assert any("is down" in text for text in map(formatter.format, records))


def test_the_access_log_shows_where_the_time_went(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow head shows in the second time, a slow body in the third."""
    caplog.set_level(logging.INFO)
    answer, finish = threading.Event(), threading.Event()

    def script(wire: OriginWire) -> None:
        if wire.request() is None:
            return
        answer.wait(0.3)  # nobody sets it: the head takes so long
        wire.send(HEAD + b"Content-Length: 2\r\n\r\na")
        finish.wait(0.3)
        wire.send(b"b")

    here = site(route("r", origin(script).url))
    assert here.get("/r/").body == b"ab"
    (line,) = wait_until(lambda: package_lines(caplog, "access"))
    connect, first_byte, total = map(float, line.split()[-4].split("/"))
    assert connect < 0.25
    assert first_byte - connect > 0.29
    assert total - first_byte > 0.29


def test_a_failure_is_told_of(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says route, upstream, rule and request, and a second failure of the same kind waits for its turn."""
    here = site(route("down", "http://127.0.0.1:9"))
    for _ in range(2):
        assert here.get("/down/x").status == 502
    wait_until(lambda: here.engine.admission.in_flight == 0)
    (record,) = [record for record in caplog.records if record.name == f"{PACKAGE}.operator_log"]
    assert record.levelname == "WARNING"
    pattern = r"an exchange with http://127\.0\.0\.1:9 on down failed: .+ \[ConnectFailed, request [0-9a-f]{32}\]"
    assert re.fullmatch(pattern, record.getMessage())


def test_a_client_that_leaves_is_no_failure(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Who closes the page is in the access log alone."""
    asked = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        asked.set()
        wire.wait_closed()

    here = site(route("r", origin(script).url))
    client = here.client()
    client.send(b"GET /r/x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    client.close()
    wait_until(lambda: here.engine.admission.in_flight == 0)
    assert package_lines(caplog, "operator_log") == []
