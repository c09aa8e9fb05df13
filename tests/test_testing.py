"""The upstream that users' tests script: what it answers, what it notes, and that nothing of it stays behind."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from pyramid_threaded_proxy.testing import ScriptedUpstream


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def client(upstream: ScriptedUpstream) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(upstream.url).netloc, timeout=10)
    yield connection
    connection.close()


def get(client: http.client.HTTPConnection, target: str, method: str = "GET") -> tuple[int, bytes]:
    client.request(method, target)
    answer = client.getresponse()
    return answer.status, answer.read()


def test_it_answers_what_it_was_told(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """Status, fields and body, for the path without its query; the last script counts; one connection serves all."""
    upstream.answer("/a", "first")
    upstream.answer("/a", "größer", status=203, headers=[("X-A", "1"), ("X-A", "2")])
    client.request("GET", "/a?b=c")
    answer = client.getresponse()
    assert (answer.status, answer.read().decode()) == (203, "größer")
    assert answer.headers.get_all("X-A") == ["1", "2"]
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    upstream.answer("/a", b"{}", headers={"content-type": "application/json"})
    client.request("GET", "/a")
    assert (answer := client.getresponse()).headers.get_all("Content-Type") == ["application/json"]
    assert answer.read() == b"{}"


def test_methods_have_answers_of_their_own(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """HEAD gets what GET gets, without the body; an answer for one method does not answer others."""
    upstream.answer("/a", b"read", method="GET")
    upstream.answer("/a", b"written", method="POST", status=201)
    assert get(client, "/a") == (200, b"read")
    assert get(client, "/a", "POST") == (201, b"written")
    client.request("HEAD", "/a")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "4", b"")
    assert get(client, "/a", "DELETE")[0] == 404


def test_what_nobody_scripted_is_named(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """A 404 that says what was asked, and a script for what is no path is an error at once."""
    assert get(client, "/b?c") == (404, b"no answer was scripted for GET /b")
    with pytest.raises(ValueError, match="is no path"):
        upstream.answer("b", b"")
    with pytest.raises(ValueError, match="is no path"):
        upstream.answer("/b?c", b"")


def test_requests_are_noted(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """Method, target, fields and body, a chunked one without its framing, in the order in which they came."""
    upstream.answer("/a", status=204)
    client.request("PUT", "/a?x=%20", b"body", {"X-A": "1"})
    assert client.getresponse().read() == b""
    client.request("POST", "/a", iter([b"two ", b"pieces"]), encode_chunked=True)
    assert client.getresponse().read() == b""
    first, second = upstream.requests
    assert (first.method, first.target, first.path, first.body) == ("PUT", "/a?x=%20", "/a", b"body")
    assert first.headers["x-a"] == "1"
    assert (second.method, second.body) == ("POST", b"two pieces")
    assert upstream.wait_for("/a") == second


def test_an_iterable_is_sent_as_it_comes(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """Its pieces are chunks; the next is taken when the one before was sent."""
    go_on = threading.Event()

    def events() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        assert go_on.wait(10)
        yield b""
        yield b"data: 2\n\n"

    upstream.answer("/events", events(), headers={"Content-Type": "text/event-stream"})
    client.request("GET", "/events")
    answer = client.getresponse()
    assert answer.read1() == b"data: 1\n\n"
    go_on.set()
    assert answer.read() == b"data: 2\n\n"


def test_a_held_path_waits(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """The request is there, its answer is not; other paths are answered, and so is this one once it is released."""
    upstream.answer("/a", b"late")
    upstream.hold("/a")
    client.request("GET", "/a")
    assert upstream.wait_for("/a").method == "GET"
    other = http.client.HTTPConnection(urlsplit(upstream.url).netloc, timeout=10)
    assert get(other, "/b")[0] == 404
    other.close()
    upstream.release("/a")
    assert client.getresponse().read() == b"late"


def test_a_body_breaks_off(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """More is announced than comes."""
    upstream.break_off("/a", b"half")
    client.request("GET", "/a")
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.getresponse().read()
    assert caught.value.partial == b"half"


def test_waiting_for_nobody_ends(upstream: ScriptedUpstream, client: http.client.HTTPConnection) -> None:
    """The error names what was asked instead."""
    get(client, "/other?x")
    with pytest.raises(TimeoutError, match=r"nobody has asked for /a, but for \['/other\?x'\]"):
        upstream.wait_for("/a", timeout=0.01)


def test_nothing_stays_behind() -> None:
    """At the end connections are closed, those that wait for an answer too, and all threads are gone."""
    before = threading.active_count()
    with ScriptedUpstream() as upstream:
        upstream.hold("/a")
        clients = [http.client.HTTPConnection(urlsplit(upstream.url).netloc, timeout=10) for _ in range(3)]
        for client in clients[1:]:
            client.request("GET", "/a")
        clients[0].connect()
        upstream.wait_for("/a")
    assert threading.active_count() == before
    for client in clients:
        client.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(urlsplit(upstream.url).netloc, timeout=10).connect()
