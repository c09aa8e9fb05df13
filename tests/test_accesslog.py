"""The access log: one line an exchange, with all that an operator needs and nothing that is secret."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Origin, Script, Site, answering, echo, in_turn, route, wait_until

from pyramid_threaded_proxy import accesslog
from pyramid_threaded_proxy.exceptions import ClientGone, ClientTimedOut, ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.exchange import Exchange, UpstreamAnswer, UpstreamRequest

LINE = re.compile(
    r'(?P<client>\S+) - (?P<user>\S+) \[(?P<time>[^]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<size>\d+) '
    r'"(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<route>\S+) (?P<upstream>\S+) (?P<attempts>\d+) '
    r"(?P<times>[-0-9.]+/[-0-9.]+/[-0-9.]+) (?P<up>\d+)/(?P<down>\d+) (?P<end>\S+)"
)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[dict[str, str]]]:
    """Waits for so many lines, and gives them taken apart."""
    caplog.set_level(logging.INFO, accesslog.access_log.name)

    def read(count: int) -> list[dict[str, str]]:
        def written() -> list[str]:
            return [entry.getMessage() for entry in caplog.records if entry.name == accesslog.access_log.name]

        wait_until(lambda: len(written()) >= count, f"{count} lines")
        found = [LINE.fullmatch(line) for line in written()]
        assert all(found), written()
        return [match.groupdict() for match in found if match]

    return read


def exchange(**values: Any) -> Exchange:
    """An exchange that is over."""
    made = Exchange("r", UpstreamRequest("GET", "http://a:80", "/", [], None), None, "10.0.0.1", None)  # type: ignore[arg-type]
    made.stats.finished = made.stats.started
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_a_line_holds_what_is_documented(
    origin: Callable[[Script], Origin], site: Callable[..., Site], lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """Combined format, then route, upstream, attempts, three times, bytes both ways, and how it ended."""
    upstream = origin(answering(*[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"] * 2))
    where = site(route("reports", upstream.url))
    where.get("/reports/a", {"Referer": "http://b/c", "User-Agent": "me/1 (x)"}, "POST", b"abc")
    wait_until(lambda: where.engine.admission.in_flight == 0)
    where.get("/reports/a")
    first, second = lines(2)
    when = time.strptime(first.pop("time"), "%d/%b/%Y:%H:%M:%S +0000")
    assert abs(time.mktime(when) - time.mktime(time.gmtime())) < 60
    connect, first_byte, total = map(float, first.pop("times").split("/"))
    assert 0 <= connect <= first_byte <= total < 10
    assert first == {
        "client": "127.0.0.1", "user": "-", "request": "POST /reports/a HTTP/1.1", "status": "200", "size": "5",
        "referer": "http://b/c", "agent": "me/1 (x)", "route": "reports", "upstream": upstream.url, "attempts": "1",
        "up": "3", "down": "5", "end": "whole",
    }  # fmt: skip
    assert second["times"].startswith("-/")  # over the connection that was kept: none was made


def test_nothing_secret_is_logged(
    origin: Callable[[Script], Origin], site: Callable[..., Site], caplog: pytest.LogCaptureFixture,
    lines: Callable[[int], list[dict[str, str]]],
) -> None:  # fmt: skip
    """No query, of the target or of Referer, no cookie and no credentials, in any record of any logger."""
    caplog.set_level(logging.DEBUG)
    where = site(route("r", origin(in_turn(echo, answering(b"x"))).url))
    for _ in range(2):
        where.get(
            "/r/a?token=hush1",
            {
                "Cookie": "session=hush2", "Authorization": "Basic hush3", "Referer": "http://b/c?t=hush4#hush5",
                "Proxy-Authorization": "hush6", "Connection": "close",
            },
        )  # fmt: skip
    assert [line["referer"] for line in lines(2)] == ["http://b/c"] * 2
    assert [line["request"] for line in lines(2)] == ["GET /r/a HTTP/1.1"] * 2
    assert "hush" not in caplog.text


def test_a_client_can_not_write_lines_of_its_own(lines: Callable[[int], list[dict[str, str]]]) -> None:
    """Control characters, quotes and backslashes of the client's are escaped."""
    accesslog.write(exchange(log_values=("GET", '/a"b', "HTTP/1.1", "c\\d", "e\r\nf\x1b[2J\x7f\xff\0"), userid="x y\n"))
    (line,) = lines(1)
    assert line["request"] == "GET /a\\x22b HTTP/1.1"
    assert line["referer"] == "c\\x5cd"
    assert line["agent"] == "e\\x0d\\x0af\\x1b[2J\\x7f\\xff\\x00"
    assert line["user"] == "x\\x20y\\x0a"


def test_control_characters_of_a_real_client(
    origin: Callable[[Script], Origin], site: Callable[..., Site], lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """What waitress lets through of a User-Agent is escaped."""
    where = site(route("r", origin(echo).url))
    where.raw(b'GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: a"b\tc\xff\r\n\r\n')
    assert lines(1)[0]["agent"] == "a\\x22b\\x09c\\xff"


@given(st.text(max_size=20))
def test_whatever_is_shown_stays_in_its_quotes(text: str) -> None:
    """No text ends its quoted part, its line, or the ASCII alphabet."""
    assert re.fullmatch(r"[ -~]*", shown := accesslog._shown(text))
    assert '"' not in shown
    assert len(re.findall(r"\\(?!x[0-9a-f]{2,})", shown)) == 0


@pytest.mark.parametrize(
    ("error", "status", "shown", "end"),
    [
        (None, 206, "206", "whole"),
        (UpstreamGone("x"), None, "502", "upstream-gone"),
        (UpstreamGone("x"), 200, "200", "upstream-gone"),
        (ReadTimedOut("x"), None, "504", "read-timeout"),
        (ClientGone("x"), None, "499", "client-gone"),
        (ClientGone("x"), 200, "499", "client-gone"),
        (ClientTimedOut("x"), 200, "408", "client-timeout"),
        (ValueError("x"), None, "500", "failed"),
    ],
)
def test_the_status_and_how_it_ended(
    lines: Callable[[int], list[dict[str, str]]], error: Exception | None, status: int | None, shown: str, end: str
) -> None:
    """The status that the client got or would have got; 499 and 408 where it was the client that ended it."""
    answer = None if status is None else UpstreamAnswer(status, "", [])
    accesslog.write(exchange(error=error, response=answer))
    (line,) = lines(1)
    assert (line["status"], line["end"]) == (shown, end)


def test_the_log_costs_nothing_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below INFO nothing is made up."""
    monkeypatch.setattr(accesslog, "_shown", lambda text: pytest.fail("made for nobody"))
    monkeypatch.setattr(accesslog.access_log, "isEnabledFor", lambda level: False)
    accesslog.write(exchange())


def test_the_error_itself_is_there_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG a second line says what broke, under the request's id."""
    caplog.set_level(logging.DEBUG, accesslog.access_log.name)
    made = exchange(error=UpstreamGone("closed with 5 bytes of its answer missing"))
    accesslog.write(made)
    assert caplog.records[-1].getMessage() == f"r {made.request_id}: closed with 5 bytes of its answer missing"
