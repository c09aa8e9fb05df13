"""The access log: one line an exchange, with all that an operator needs and nothing that is secret."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.config import Configurator

from pyramid_threaded_proxy import ExchangeFinished, accesslog
from pyramid_threaded_proxy.exceptions import ClientGone, ClientTimedOut, ReadTimedOut, UpstreamGone
from pyramid_threaded_proxy.exchange import Exchange, UpstreamAnswer, UpstreamRequest
from pyramid_threaded_proxy.loop import log_writer
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import wait_until

LINE = re.compile(
    r'(?P<client>\S+) - (?P<user>\S+) \[(?P<time>[^]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<size>\d+) '
    r'"(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<route>\S+) (?P<upstream>\S+) (?P<attempts>\d+) '
    r"(?P<times>[-0-9.]+/[-0-9.]+/[-0-9.]+) (?P<up>\d+)/(?P<down>\d+) (?P<end>\S+) (?P<id>\S+)"
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
    origin: MakeOrigin, site: MakeSite, lines: Callable[[int], list[dict[str, str]]]
) -> None:
    """Combined format, then route, upstream, attempts, three times, bytes both ways, and how it ended."""
    upstream = origin(answering(*[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"] * 2))
    where = site(route("reports", upstream.url))
    where.get("/reports/a", {"Referer": "http://b/c", "User-Agent": "me/1 (x)"}, "POST", b"abc")
    wait_until(lambda: where.engine.admission.in_flight == 0)
    where.get("/reports/a")
    first, second = lines(2)
    assert re.fullmatch("[0-9a-f]{32}", first.pop("id"))
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
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture,
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
    origin: MakeOrigin, site: MakeSite, lines: Callable[[int], list[dict[str, str]]]
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


def test_a_record_bears_the_values_of_its_line(caplog: pytest.LogCaptureFixture) -> None:
    """What the line says stands in the record's attributes as well, as numbers where it is numbers."""
    caplog.set_level(logging.INFO, accesslog.access_log.name)
    made = exchange(userid="ann", log_values=("GET", "/a", "HTTP/1.1", "-", "me/1"))
    made.stats.bytes_down, made.stats.first_byte = 5, made.stats.started + 0.25
    accesslog.write(made)
    (record,) = caplog.records
    said = {name: getattr(record, name) for name in accesslog.VALUES}
    assert said == {
        "client_addr": "10.0.0.1", "userid": "ann", "method": "GET", "path": "/a", "protocol": "HTTP/1.1",
        "status": 500, "referer": "-", "user_agent": "me/1", "route": "r", "upstream": "http://a:80", "attempts": 0,
        "connect_seconds": None, "first_byte_seconds": 0.25, "total_seconds": 0.0, "bytes_up": 0, "bytes_down": 5,
        "ended": "whole", "request_id": made.request_id,
    } | {"status": said["status"]}  # fmt: skip
    assert set(accesslog._values(made)) == set(accesslog.VALUES)


def json_line(record: logging.LogRecord) -> dict[str, Any]:
    """The one line that `JsonFormatter` makes of a record."""
    line = accesslog.JsonFormatter().format(record)
    assert line.isascii()
    assert "\n" not in line
    read: dict[str, Any] = json.loads(line)
    return read


@given(st.text(), st.text(), st.text())
def test_a_json_line_is_one_line(user: str, path: str, agent: str) -> None:
    """Whatever a client sends stays one object on one line, and can be read back as it was."""
    made = exchange(userid=user, log_values=("GET", path, "HTTP/1.1", "-", agent))
    values = accesslog._values(made)
    read = json_line(accesslog._record(accesslog._line(values), values))
    assert (read["userid"], read["path"], read["user_agent"]) == (user, path, agent)
    assert list(read) == ["time", *accesslog.VALUES]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read["time"])


def test_a_json_line_of_another_logger() -> None:
    """Records that are no exchange's have level, logger and message, and their traceback."""
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.Logger("x.y").makeRecord("x.y", logging.ERROR, "", 0, "no %s", ("way",), sys.exc_info())
    read = json_line(record)
    assert (read["level"], read["logger"], read["message"]) == ("ERROR", "x.y", "no way")
    assert read["traceback"].endswith("ValueError: a\nb")


@pytest.mark.parametrize(
    ("error", "status", "shown", "end"),
    [
        (None, 206, "206", "whole"),
        (UpstreamGone("x"), None, "502", "upstream-gone"),
        (UpstreamGone("x"), 200, "200", "upstream-gone"),
        (ReadTimedOut("x"), None, "504", "read-timeout"),
        (ClientGone("x"), None, "499", "client-gone"),
        (ClientGone("x"), 200, "499", "client-gone"),
        (ClientGone("x"), 101, "101", "client-gone"),
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


@pytest.fixture
def buffered(tmp_path: Path) -> Iterator[accesslog.BufferedFileHandler]:
    """The log's own handler, as an ini file names it."""
    (tmp_path / "log.ini").write_text(f"""
[loggers]
keys = root, access
[handlers]
keys = access
[formatters]
keys =
[logger_root]
handlers =
[logger_access]
level = INFO
handlers = access
qualname = {accesslog.access_log.name}
propagate = 0
[handler_access]
class = pyramid_threaded_proxy.accesslog.BufferedFileHandler
args = ({str(tmp_path / "access.log")!r},)
""")
    log = accesslog.access_log
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    root = logging.getLogger()
    roots, root_level = root.handlers[:], root.level
    logging.config.fileConfig(tmp_path / "log.ini", disable_existing_loggers=False)
    (handler,) = log.handlers
    assert isinstance(handler, accesslog.BufferedFileHandler)
    yield handler
    handler.close()
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)
    root.handlers[:] = roots
    root.setLevel(root_level)


def text(handler: accesslog.BufferedFileHandler) -> str:
    return Path(handler.baseFilename).read_text()


def in_one_turn(where: Site, function: Callable[[], None]) -> None:
    """Run `function` in a turn of the loop, and wait for the next one, and for the log's writer."""
    loop, done = where.engine.scheduler.start(), threading.Event()

    def run() -> None:
        loop.post(done.set)
        function()

    loop.post(run)
    assert done.wait(10)
    log_writer.flush(10)


def in_a_row(where: Site, function: Callable[[], None]) -> None:
    """The same, and wait for what is done a moment later."""
    in_one_turn(where, function)
    wait_until(lambda: not where.engine.scheduler.busy(), "the end of the row")
    log_writer.flush(10)


def routes_in(handler: accesslog.BufferedFileHandler) -> list[str]:
    return [line.split()[-7] for line in text(handler).splitlines()]


def test_the_lines_of_a_turn_are_written_together(
    site: MakeSite, buffered: accesslog.BufferedFileHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a loop's thread nothing is in the file, and everything is soon behind it, written in one go."""
    seen: list[str] = []

    def write_three() -> None:
        for number in range(3):
            accesslog.write(exchange(route=f"r{number}"))
            seen.append(text(buffered))

    flushes: list[str] = []
    flush = buffered.flush
    monkeypatch.setattr(buffered, "flush", lambda: (flush(), flushes.append(text(buffered))))
    in_one_turn(site(), write_three)
    assert seen == [""] * 3
    assert len(flushes) == 1
    assert routes_in(buffered) == ["r0", "r1", "r2"]


def test_lines_are_made_in_a_row(site: MakeSite, buffered: accesslog.BufferedFileHandler) -> None:
    """Those of exchanges that nobody asks for any more: a moment later, and in the file right behind it."""

    def write_three() -> None:
        for number in range(3):
            ended = exchange(route="early")
            accesslog.write(ended, later=True)
            ended.route = f"r{number}"

    in_a_row(site(), write_three)
    assert routes_in(buffered) == ["r0", "r1", "r2"]


def test_a_line_that_can_not_be_written(
    site: MakeSite, buffered: accesslog.BufferedFileHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its row are."""

    def refuse(record: logging.LogRecord) -> bool:
        if " r1 " in record.getMessage():
            raise LookupError("no r1")
        return True

    def write_three() -> None:
        for number in range(3):
            accesslog.write(exchange(route=f"r{number}"), later=True)

    buffered.addFilter(refuse)
    in_a_row(site(), write_three)
    assert routes_in(buffered) == ["r0", "r2"]
    assert "LookupError: no r1" in caplog.text


def test_a_line_that_can_not_be_formatted(
    site: MakeSite, buffered: accesslog.BufferedFileHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told as `logging` tells it; the others of its row are written."""

    class Refusing(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if " r1 " in record.getMessage():
                raise LookupError("no r1")
            return super().format(record)

    def write_three() -> None:
        for number in range(3):
            accesslog.write(exchange(route=f"r{number}"), later=True)

    buffered.setFormatter(Refusing())
    in_a_row(site(), write_three)
    assert routes_in(buffered) == ["r0", "r2"]
    assert "LookupError: no r1" in capsys.readouterr().err


def rename(ended: Exchange) -> None:
    """A `complete` hook: the exchange is the application's now."""
    ended.route = "renamed"


@pytest.mark.parametrize("asks", ["hook", "subscriber", "nobody"])
def test_a_line_is_made_before_anybody_is_told(
    origin: MakeOrigin, site: MakeSite, lines: Callable[[int], list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asks: str,
) -> None:  # fmt: skip
    """It does not wait for others then: what they make of the exchange is not what happened."""
    held: list[Callable[[], None]] = []

    def configure(config: Configurator) -> None:
        if asks == "subscriber":
            config.add_subscriber(lambda event: rename(event.exchange), ExchangeFinished)

    def hold(function: Callable[[], None]) -> bool:
        held.append(function)
        return True

    monkeypatch.setattr(accesslog, "run_in_batch", hold)
    hooks = {"hooks__complete": f"{__name__}.rename"} if asks == "hook" else {}
    site(route("r", origin(echo).url, **hooks), configure=configure).get("/r/1")
    if asks == "nobody":
        wait_until(lambda: held, "its line")
        assert not [entry for entry in caplog.records if entry.name == accesslog.access_log.name]
        held[0]()
    assert [line["route"] for line in lines(1)] == ["r"]
    assert len(held) == (asks == "nobody")


def test_other_threads_write_at_once(buffered: accesslog.BufferedFileHandler) -> None:
    """Such as the one that streams an answer."""
    accesslog.write(exchange(route="here"))
    assert " here " in text(buffered)


def test_a_loop_that_breaks_writes_what_it_has(site: MakeSite, buffered: accesslog.BufferedFileHandler) -> None:
    """No line is lost with it, and the next loop writes its own."""
    where = site()
    for name in ("r1", "r2"):
        loop = where.engine.scheduler.start()

        def write_and_die(name: str = name) -> None:
            accesslog.write(exchange(route=name))
            raise SystemExit

        loop.post(write_and_die)
        loop.thread.join(10)
        log_writer.flush(10)
        assert f" {name} " in text(buffered)


def test_a_log_that_was_moved_away(
    origin: MakeOrigin, site: MakeSite, buffered: accesslog.BufferedFileHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`logrotate` renames it: what comes from the next look on is in a new file, and nothing is lost."""
    monkeypatch.setattr(accesslog, "LOOK_EVERY", 0.05)
    where = site(route("r", origin(echo).url))
    path = Path(buffered.baseFilename)
    where.get("/r/1")
    wait_until(lambda: "/r/1 " in path.read_text(), "the first line")
    path.rename(path.with_suffix(".1"))
    sent = 1

    def another() -> bool:
        nonlocal sent
        sent += 1
        where.get(f"/r/{sent}")
        return path.exists()

    wait_until(another, "a new file")
    where.get("/r/last")
    wait_until(lambda: "/r/last " in path.read_text(), "the last line")
    lines = (path.with_suffix(".1").read_text() + path.read_text()).splitlines()
    assert [line.split()[6] for line in lines] == [*(f"/r/{number + 1}" for number in range(sent)), "/r/last"]


def test_a_clock_that_is_set_back(buffered: accesslog.BufferedFileHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at all the same."""
    path = Path(buffered.baseFilename)
    accesslog.write(exchange(route="first"))
    path.rename(path.with_suffix(".1"))
    now = time.time() - 3600
    monkeypatch.setattr(accesslog.time, "time", lambda: now)
    accesslog.write(exchange(route="second"))
    assert " second " in path.read_text()


def test_a_record_is_what_logging_makes(caplog: pytest.LogCaptureFixture) -> None:
    """The same attributes, of the same kinds; times and thread are those of this line."""
    caplog.set_level(logging.INFO, accesslog.access_log.name)
    accesslog.write(exchange(route="warm"))
    before = time.time()
    accesslog.write(exchange())
    ours = caplog.records[-1]
    for name in accesslog.VALUES:
        del ours.__dict__[name]
    stock = accesslog._new_record(ours.getMessage())
    assert {name: type(value) for name, value in vars(ours).items()} == {
        name: type(value) for name, value in vars(stock).items()
    } | ({"message": str, "asctime": str} if hasattr(ours, "asctime") else {"message": str})
    changing = {"created", "msecs", "relativeCreated", "message", "asctime"}
    for name in vars(stock).keys() - changing:
        assert getattr(ours, name) == getattr(stock, name), name
    assert before <= ours.created <= stock.created
    later = stock.relativeCreated - ours.relativeCreated
    assert 0 <= later == pytest.approx((stock.created - ours.created) * 1000, abs=1)
    assert ours.msecs == pytest.approx(ours.created % 1 * 1000, abs=1)
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(accesslog._record("", {}).threadName or ""), name="another")
    thread.start()
    thread.join()
    assert names == ["another"]


def test_a_factory_of_the_applications_makes_the_records(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`logging.setLogRecordFactory` holds for them."""

    class Record(logging.LogRecord):
        """One of its own."""

    caplog.set_level(logging.INFO, accesslog.access_log.name)
    former = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Record)
    try:
        accesslog.write(exchange())
    finally:
        logging.setLogRecordFactory(former)
    assert type(caplog.records[-1]) is Record
