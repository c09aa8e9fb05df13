"""What `detach` relies on in waitress, attribute by attribute: fails the day that a release changes one.

Runs against the installed waitress, and against every supported release in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import waitress
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer
from waitress.task import Task, WSGITask
from waitress.trigger import trigger as Trigger
from waitress.utilities import BadRequest, RequestEntityTooLarge

from pyramid_threaded_proxy.detach import defaults
from pyramid_threaded_proxy.detach.asked_first import asked_path_info
from pyramid_threaded_proxy.detach.channel import _DEFAULTS, DetachableChannel
from pyramid_threaded_proxy.detach.epilogue import Finished, run_epilogue
from pyramid_threaded_proxy.detach.late_body import RequestTimeout
from tests.support.detaching import connections
from tests.support.origin import MakeOrigin, echo
from tests.support.paths import ROOT
from tests.support.programs import leave_out
from tests.support.site import MakeSite, own_view, route
from tests.support.uploads import CONTINUE
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire, body, get, post

RELEASES = ["3.0.0", "3.0.1", "3.0.2"]


class Noted(BaseException):
    """What no `except Exception` catches."""


class Stock:
    """Stock waitress with one request in its worker; `seen` is what the application saw."""

    def __init__(self, channel_class: type[HTTPChannel] = HTTPChannel, request: bytes = post("/x", b"body")) -> None:
        self.environ: dict[str, Any] = {}
        self.called, self.go_on = threading.Event(), threading.Event()
        self.server = waitress.create_server(self._application, listen="127.0.0.1:0", threads=1)
        self.server.channel_class = channel_class
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.client = Wire(socket.create_connection(("127.0.0.1", self.server.effective_port)))
        self.client.send(request)
        assert self.called.wait(PATIENCE)
        self.channel = self.environ["waitress.client_disconnected"].__self__

    def _application(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environ = environ
        self.called.set()
        assert self.go_on.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def on_main_thread(self, thunk: Any) -> None:
        done = threading.Event()
        with suppress(OSError):  # its own write, where the thunk has closed it before
            self.server.trigger.pull_trigger(lambda: (thunk(), done.set()))
        assert done.wait(PATIENCE)

    def close(self) -> None:
        self.go_on.set()
        self.server.task_dispatcher.shutdown()
        self.client.close()
        if self.thread.is_alive():
            self.on_main_thread(lambda: wasyncore.close_all(self.server._map))
            self.thread.join(PATIENCE)
        wasyncore.close_all(self.server._map)


@pytest.fixture
def stock() -> Iterator[Stock]:
    running = Stock()
    yield running
    running.close()


def test_where_the_classes_are_looked_up() -> None:
    """Servers find their channel class, and channels their task and parser, as attributes of their classes."""
    assert issubclass(BaseWSGIServer.__dict__["channel_class"], HTTPChannel)
    assert HTTPChannel.__dict__["task_class"] is WSGITask
    assert HTTPChannel.__dict__["parser_class"] is HTTPRequestParser
    assert not hasattr(HTTPChannel, "__slots__")
    assert issubclass(WSGITask, Task)


def test_the_channel_is_found_in_the_environ(stock: Stock) -> None:
    """`waitress.client_disconnected` is a method of the live channel, which knows its server, request and socket."""
    channel = stock.channel
    assert type(channel) is HTTPChannel
    assert stock.environ["waitress.client_disconnected"]() is False
    assert channel.server is stock.server
    assert channel.adj is stock.server.adj
    assert channel.addr == stock.client.sock.getsockname()
    assert channel._map is stock.server._map
    assert channel._fileno == channel.socket.fileno()
    assert stock.server._map[channel._fileno] is stock.server.active_channels[channel._fileno] is channel
    assert channel.connected is True
    assert channel.will_close is False
    assert channel.total_outbufs_len == 0
    assert [type(request) for request in channel.requests] == [HTTPRequestParser]
    assert channel.socket.getblocking() is False


def test_the_lock_is_reentrant(stock: Stock) -> None:
    """`outbuf_lock` can be taken twice by one thread, and keeps others out; `requests_lock` is there."""
    lock = stock.channel.outbuf_lock
    taken = []
    with lock, lock:
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]
    with stock.channel.requests_lock:
        pass


def test_closing_takes_the_number_away(stock: Stock) -> None:
    """`handle_close` and `close` end the connection, leave both tables and set `_fileno` to None; twice is harmless."""
    channel = stock.channel
    stock.on_main_thread(channel.handle_close)
    stock.on_main_thread(channel.close)
    assert channel._fileno is None
    assert channel.connected is False
    assert channel not in stock.server._map.values()
    assert channel not in stock.server.active_channels.values()
    assert stock.client.rest() == b""


def test_a_base_exception_skips_the_epilogue() -> None:
    """`service` lets a BaseException of its task pass: the request stays first, nothing is written or closed."""

    class NotingTask(WSGITask):
        def finish(self) -> None:
            noted.append((self.status, self.response_headers, self.wrote_header, self.close_on_finish))
            raise Noted

    class NotingChannel(HTTPChannel):
        task_class = NotingTask

        def service(self) -> None:
            try:
                super().service()
            except Noted:
                ended.set()

    noted: list[Any] = []
    ended = threading.Event()
    running = Stock(NotingChannel)
    try:
        running.go_on.set()
        assert ended.wait(PATIENCE)
        # The body was written before: what `finish` sees of an empty answer is shown by every detach.
        assert noted == [("200 OK", noted[0][1], True, False)]
        assert len(running.channel.requests) == 1
        assert running.channel.close_when_flushed is False
    finally:
        running.close()


def test_the_epilogue_runs_behind_any_task(stock: Stock) -> None:
    """`service` asks the channel itself for `task_class`, and needs of a task `service` and `close_on_finish` alone."""
    channel = stock.channel
    request = channel.requests[0]
    stream = request.get_body_stream()

    class Done:
        close_on_finish = False

        def service(self) -> None:
            pass

    # The worker is still in the application: only the epilogue is looked at here.
    channel.task_class = lambda channel, request: Done()
    HTTPChannel.service(channel)
    del channel.task_class
    assert channel.requests == []
    assert stream.closed
    channel.requests.append(request)  # the worker's own epilogue wants it


def test_what_the_epilogue_does(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the only request of a connection without output: what `run_epilogue` does in its place, and no more."""
    channel = stock.channel
    request = channel.requests[0]
    pulls: list[None] = []
    monkeypatch.setattr(stock.server, "pull_trigger", lambda: pulls.append(None))

    def ended(end: Any) -> tuple[dict[str, Any], int, list[Any], bool]:
        """The channel's attributes that changed, and what else did."""
        before = {**vars(channel), "last_activity": 0.0}
        channel.last_activity, channel.requests[:] = 0.0, [request]
        closed: list[None] = []
        with monkeypatch.context() as patch:
            patch.setattr(request, "close", lambda: closed.append(None))
            end()
        changed = {name: type(value) for name, value in vars(channel).items() if value != before.get(name)}
        seen = (changed, len(pulls), list(channel.requests), bool(closed))
        pulls.clear()
        return seen

    def stocks() -> None:
        channel.task_class = Finished
        HTTPChannel.service(channel)

    channel.unwatched = True
    assert (channel.request, channel.current_outbuf_count) == (None, 0)
    expected = ended(stocks)
    assert expected == ({"last_activity": float}, 1, [], True)
    assert ended(lambda: run_epilogue(channel, close=False)) == expected
    counts = []
    for end in (stocks, lambda: run_epilogue(channel, close=False)):
        channel.current_outbuf_count = 5
        ended(end)
        counts.append(channel.current_outbuf_count)
    assert counts == [channel.adj.outbuf_high_watermark] * 2
    channel.current_outbuf_count = 0
    channel.requests.append(request)  # the worker's own epilogue wants it


def test_a_channel_has_its_values_itself() -> None:
    """None that its class gives is looked up there, neither waitress's nor ours; what has changed has stayed."""
    made = Stock(DetachableChannel)
    try:
        own = vars(made.channel)
        assert {"will_close", "total_outbufs_len", "handover", "unread"} <= _DEFAULTS.keys() <= own.keys()
        assert own["connected"] is True
        assert own["addr"] is not None
    finally:
        made.close()


def test_what_keeps_a_channel_from_being_read(stock: Stock) -> None:
    """`DetachableChannel.readable` asks what stock's asks, but for requests in work."""
    asked = HTTPChannel.readable.__code__.co_names
    assert set(asked) == {
        "will_close", "close_when_flushed", "len", "requests", "adj", "channel_request_lookahead", "total_outbufs_len"
    }  # fmt: skip
    assert not HTTPChannel.readable(stock.channel)  # its request is in work
    stock.channel.unread = stock.channel.sending = False
    stock.channel.resting = SimpleNamespace(wanted=False)
    assert DetachableChannel.readable(stock.channel)
    for name in ("will_close", "close_when_flushed", "total_outbufs_len"):
        setattr(stock.channel, name, 1)
        assert not DetachableChannel.readable(stock.channel)
        setattr(stock.channel, name, 0)


def test_a_channel_reads_through_recv() -> None:
    """`handle_read` asks `self.recv`, which ours answers first where a request begins."""
    assert {"recv", "recv_bytes", "received"} <= set(HTTPChannel.handle_read.__code__.co_names)


def test_a_task_writes_its_head_first() -> None:
    """`Task.write` makes the head, writes it with `write_soon`, even an empty one, and then what was given."""
    said = Task.write.__code__.co_names
    assert said.index("build_response_header") < said.index("write_soon")
    assert "write_soon" not in HTTPChannel.service.__code__.co_names
    assert {"total_outbufs_len", "will_close", "close_when_flushed"} == set(HTTPChannel.writable.__code__.co_names)


def test_output_is_flushed_through_send(stock: Stock) -> None:
    """`_flush_some` sends what `write_soon` has left with `self.send`, and counts `total_outbufs_len` down."""
    channel, sent = stock.channel, []

    def sending(data: bytes, do_close: bool = True) -> int:
        sent.append((data, do_close))
        return len(data)

    with channel.outbuf_lock:
        channel.send = sending
        channel.write_soon(b"data")
        assert channel.total_outbufs_len in (0, 4)
        channel._flush_some(do_close=False)
        assert channel.total_outbufs_len == 0
        del channel.send
    assert sent == [(b"data", False)]
    assert type(sent[0][0]) is bytes


def test_thunks_run_on_the_main_thread(stock: Stock) -> None:
    """`pull_trigger` appends before it pulls; the main thread reads with `recv` first and runs all thunks after."""
    trigger, order = stock.server.trigger, []
    original = trigger.recv

    def reading(size: int) -> Any:
        order.append("recv")
        return original(size)

    trigger.recv = reading
    stock.on_main_thread(lambda: order.append(threading.current_thread()))
    assert order[-2:] == ["recv", stock.thread]
    assert type(trigger) is Trigger
    assert trigger._closed is False
    assert callable(trigger._physical_pull)


def test_a_closed_trigger_says_so() -> None:
    """After `close` a trigger is out of the map and `_closed`; `_physical_pull` is what would write to its pipe."""
    table: dict[int, Any] = {}
    trigger = Trigger(table)
    trigger.close()
    assert trigger._closed is True
    assert table == {}
    pulled = []
    trigger._physical_pull = lambda: pulled.append(True)
    trigger.pull_trigger(lambda: None)
    assert pulled == [True]


def test_maintenance_looks_at_idle_channels_alone(stock: Stock) -> None:
    """`maintenance` walks `active_channels`, and spares those with requests."""
    stock.on_main_thread(lambda: stock.server.maintenance(10**12))
    assert stock.channel.will_close is False


def test_maintenance_tells_when_it_runs(stock: Stock) -> None:
    """`readable` runs it, and moves `next_channel_cleanup` on."""
    names = list(BaseWSGIServer.readable.__code__.co_names)
    assert {"maintenance", "next_channel_cleanup"} <= set(names)
    stock.server.next_channel_cleanup = 0
    assert BaseWSGIServer.readable(stock.server)
    assert stock.server.next_channel_cleanup > 0


def test_an_entry_of_the_table_hears(stock: Stock) -> None:
    """It is asked in each turn, and told by `handle_read_event`; `readwrite` takes epoll's bits."""
    heard, sockets = threading.Event(), socket.socketpair()
    sockets[1].send(b"x")

    class Entry:
        accepting = False
        asked = 0

        def readable(self) -> bool:
            self.asked += 1
            return True

        def writable(self) -> bool:
            return False

        def handle_read_event(self) -> None:
            sockets[0].recv(1)
            heard.set()

    entry = Entry()
    with sockets[0], sockets[1]:
        stock.on_main_thread(lambda: stock.server._map.update({sockets[0].fileno(): entry}))
        assert heard.wait(PATIENCE)
        stock.on_main_thread(lambda: stock.server._map.pop(sockets[0].fileno()))
    assert entry.asked
    assert (select.EPOLLIN, select.EPOLLERR, select.EPOLLHUP) == (select.POLLIN, select.POLLERR, select.POLLHUP)
    assert "POLLIN" in wasyncore.readwrite.__code__.co_names


def test_a_channel_is_forgotten_before_its_socket_is_closed() -> None:
    """`dispatcher.close` calls `del_channel` first."""
    names = wasyncore.dispatcher.close.__code__.co_names
    assert names.index("del_channel") < names.index("close")


def test_what_raises_through_the_loop(stock: Stock) -> None:
    """A thunk's exception is swallowed; a KeyboardInterrupt behind the thunks ends the loop."""
    trigger, original = stock.server.trigger, stock.server.trigger.handle_read

    def swallowed() -> None:
        raise KeyboardInterrupt

    trigger.pull_trigger(swallowed)
    stock.on_main_thread(lambda: None)
    assert stock.thread.is_alive()

    def reading() -> None:
        original()
        raise KeyboardInterrupt

    stock.go_on.set()
    assert body(stock.client) == b"ok"
    trigger.handle_read = reading

    def ended() -> bool:
        trigger.pull_trigger()  # again and again: a read that is under way takes the first one's byte
        return not stock.thread.is_alive()

    wait_until(ended, "the end of the loop")


def test_what_tells_whether_waitress_is_busy(stock: Stock) -> None:
    """The dispatcher's queue and its count of busy workers; a channel's partly received request and its times."""
    dispatcher = stock.server.task_dispatcher
    assert len(dispatcher.queue) == 0
    assert dispatcher.active_count == 1
    assert stock.server.adj.backlog > 0
    assert stock.server.socket.fileno() == stock.server._fileno
    assert stock.channel.request is None
    stock.on_main_thread(lambda: stock.channel.received(b"GET / HT"))
    assert isinstance(stock.channel.request, HTTPRequestParser)
    with socket.create_connection(("127.0.0.1", stock.server.effective_port)):
        fresh = wait_until(lambda: [entry for entry in list(stock.server.active_channels.values())
                                    if entry is not stock.channel])[0]  # fmt: skip
        assert fresh.last_activity == fresh.creation_time
    stock.go_on.set()
    assert body(stock.client) == b"ok"
    wait_until(lambda: dispatcher.active_count == 0, "the worker's end")
    assert stock.channel.last_activity > stock.channel.creation_time


def test_connection_close_is_read_when_the_head_is_made(stock: Stock) -> None:
    """`build_response_header` asks the request's field then, so that it can still be set in the task."""
    stock.channel.requests[0].headers["CONNECTION"] = "close"
    stock.go_on.set()
    assert stock.client.head()[1]["connection"] == "close"
    assert stock.client.rest() == b"ok"


def test_what_is_read_of_adjustments() -> None:
    """The settings of waitress that are looked at exist under their names."""
    adj = Adjustments(ident="x", trusted_proxy="*", trusted_proxy_headers={"x-forwarded-for"})
    assert adj.ident == "x"
    assert adj.trusted_proxy == "*"
    assert set(adj.trusted_proxy_headers) == {"x-forwarded-for"}
    assert Adjustments().trusted_proxy is None


def test_waitress_s_own_defaults() -> None:
    """In a process without the package they are the ones that it thinks it improves, as attributes of the class."""
    code = (
        "from waitress.adjustments import Adjustments as A; import json; "
        "print(json.dumps({name: vars(A)[name] for name in ('asyncore_use_poll', 'recv_bytes', 'connection_limit')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == defaults.STOCK


def test_what_a_server_is_told_stands() -> None:
    """Told settings are attributes of the instance; the others have the better defaults, but those of `select`."""
    defaults.improve()
    better = Adjustments()
    assert (better.asyncore_use_poll, better.recv_bytes) == (True, defaults.RECV_BYTES)
    assert better.connection_limit == defaults.connection_limit() > 100
    told = Adjustments(asyncore_use_poll="true", recv_bytes="8192", connection_limit="100")
    assert (told.asyncore_use_poll, told.recv_bytes, told.connection_limit) == (True, 8192, 100)
    with_select = Adjustments(asyncore_use_poll="false")
    assert (with_select.asyncore_use_poll, with_select.connection_limit) == (False, 100)
    assert Adjustments(asyncore_use_poll="false", connection_limit="500").connection_limit == 500


def test_what_is_read_of_a_request() -> None:
    """A parser returns how much it took, knows when it is complete, and keeps fields, version and body."""
    parser = HTTPRequestParser(Adjustments())
    data = b"POST /x HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
    taken = 0
    while not parser.completed:
        taken += parser.received((data + b"more")[taken:])
    assert taken == len(data)
    assert parser.version == "1.1"
    assert parser.connection_close is True
    assert parser.headers["UPGRADE"] == "h2c"
    assert len(parser.body_rcv) == 4
    stream = parser.get_body_stream()
    assert stream.read() == b"body"
    parser.close()
    assert stream.closed


def test_a_channel_makes_a_parser_for_each_request() -> None:
    """`received` makes `parser_class(adj)`, and asks no more when that took all bytes."""
    made = []

    class Greedy(HTTPRequestParser):
        def __init__(self, adj: Any) -> None:
            super().__init__(adj)
            made.append(self)

        def received(self, data: bytes) -> int:
            super().received(data)
            return len(data)

    class GreedyChannel(HTTPChannel):
        parser_class = Greedy

    running = Stock(GreedyChannel, get("/x"))
    running.on_main_thread(lambda: running.channel.received(get("/2") + get("/3")))
    assert len(made) == 2
    running.close()


HEAD = b"PUT /a%20b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
LATE = {
    b"Content-Length: 4": b"body",
    b"Transfer-Encoding: chunked": b"4\r\nbody\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("framing", LATE)
def test_a_parser_that_was_told_it_is_complete_goes_on(framing: bytes) -> None:
    """Complete it takes nothing; told that it is not, it receives the body to its end, and nothing behind."""
    parser, sent = HTTPRequestParser(Adjustments()), LATE[framing]
    head = HEAD + framing + b"\r\n\r\n"
    assert parser.body_rcv is None
    assert parser.received(head + b"4\r") == len(head)  # what came of the body is left to whoever called
    assert parser.body_rcv is not None
    assert (parser.completed, parser.error, parser.expect_continue) == (False, None, True)
    assert (parser.command, parser.path, parser.adj.url_prefix) == ("PUT", "/a b", "")
    assert (parser.chunked, parser.content_length) == ((False, 4) if sent == b"body" else (True, 0))
    parser.completed = True
    assert parser.received(sent) == 0
    parser.completed = False
    assert parser.received(sent + b"more") == len(sent)
    assert parser.completed is True
    assert parser.body_rcv.getfile().read() == b"body"
    parser.close()


def test_what_a_body_is_refused_for() -> None:
    """`error` tells of a length above the limit with the head, and of a faulty chunk once that came."""
    long = HTTPRequestParser(Adjustments(max_request_body_size=4))
    head = HEAD + b"Content-Length: 4\r\n\r\n"
    assert long.received(head) == len(head)
    assert type(long.error) is RequestEntityTooLarge
    assert long.body_rcv is not None
    faulty = HTTPRequestParser(Adjustments())
    faulty.received(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    assert faulty.error is None
    faulty.received(b"xyz\r\n")
    assert isinstance(faulty.error, BadRequest)


def test_an_error_s_task_answers_within_another(stock: Stock) -> None:
    """`error_task_class` needs the request's `error` alone, and answers with the code and reason of its class."""
    request = stock.channel.requests[0]
    request.error = RequestTimeout("nothing came")
    stock.channel.error_task_class(stock.channel, request).service()
    first, fields = stock.client.head()
    assert first == "HTTP/1.1 408 Request Timeout"
    assert fields["connection"] == "close"


@pytest.mark.parametrize("prefix", ["", "/a", "/a/b"])
@pytest.mark.parametrize("target", ["/", "/a", "/a/", "/a/b", "/a/b/c", "//a/b", "/ab", "/%61/b", "http://x/a/b", "*"])
def test_path_info_is_made_as_waitress_makes_it(stock: Stock, prefix: str, target: str) -> None:
    """What is told of a head before the task begins is what the application will see as PATH_INFO."""
    stock.channel.adj.url_prefix = prefix
    parser = HTTPRequestParser(stock.channel.adj)
    parser.received(f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n".encode())
    assert parser.error is None
    assert asked_path_info(parser) == WSGITask(stock.channel, parser).get_environment()["PATH_INFO"]


def test_what_late_bodies_wait_by(stock: Stock) -> None:
    """The two settings are numbers, and a 100 that was written goes out by `_flush_some`."""
    channel = stock.channel
    assert channel.adj.channel_timeout > 0
    assert channel.adj.max_request_body_size > 0
    channel.write_soon(CONTINUE)
    with channel.outbuf_lock:
        channel._flush_some(do_close=False)
    assert channel.total_outbufs_len == 0
    assert stock.client.exactly(len(CONTINUE)) == CONTINUE
    with channel.socket.dup() as own, pytest.raises(BlockingIOError):  # a duplicate does not block either
        own.recv(1)


def test_a_detach_leaves_an_ordinary_task(origin: MakeOrigin, site: MakeSite, sockets: int) -> None:
    """All of it together: own and relayed requests on one connection, of the class that servers were given."""
    app = site(route("r", origin(echo).url), configure=own_view, sockets=sockets)
    client = app.client()
    client.send((get("/own") + get("/r/x")) * 3)
    for _ in range(3):
        assert body(client) == b"own"
        assert body(client).startswith(b"GET /x ")
    (channel,) = connections(app)
    wait_until(lambda: type(channel) is DetachableChannel, "the give-back")
    client.close()


# Every supported release

OTHERS = [release for release in RELEASES if release != importlib.metadata.version("waitress")]


def install(release: str, folder: Path) -> None:
    """Put one release into a folder; without the package index the test is left out, but never in CI."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, f"waitress=={release}"], capture_output=True, text=True)
    if done.returncode:
        leave_out(f"waitress {release} can't be installed: {done.stderr.strip()[-200:]}")


@pytest.mark.skipif("PPROXY_OTHER_WAITRESS" in os.environ, reason="runs in the process that has another release")
@pytest.mark.parametrize("release", OTHERS)
def test_other_releases(release: str, tmp_path: Path) -> None:
    """The tests of this module and of detach pass with every other supported release of waitress."""
    install(release, tmp_path)
    names = (
        "detach/test_waitress_contract",
        "detach/test_asked_first",
        "detach/test_late_body",
        "detach/test_large_bodies",
        "detach/test_turns",
        "detach/test_crowd",
        "detach/test_races",
        "detach/test_end",
        "detach/test_select",
        "site/test_smoke",
    )
    modules = [f"tests/{name}.py" for name in names]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PPROXY_OTHER_WAITRESS": release}
    command = [sys.executable, "-X", "dev", "-m", "pytest", "-p", "no:cacheprovider", *modules]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_the_release_is_the_one_that_is_meant() -> None:
    """In a process for another release, that is the one which was imported."""
    assert importlib.metadata.version("waitress") in RELEASES
    expected = os.environ.get("PPROXY_OTHER_WAITRESS")
    if expected is not None:
        assert importlib.metadata.version("waitress") == expected
        assert str(Path(waitress.__file__).parent.parent) == os.environ["PYTHONPATH"]
