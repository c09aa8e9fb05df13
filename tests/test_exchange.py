"""The values of an exchange, as hooks and events see them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ValueRefused
from pyramid_threaded_proxy.exchange import Body, Exchange, UpstreamAnswer, UpstreamRequest
from pyramid_threaded_proxy.http.names import Fields


def asked() -> UpstreamRequest:
    """A request with two fields of one name."""
    return UpstreamRequest("GET", "http://a:80", "/b?c", [("Host", "a"), ("X", "1"), ("x", "2")], None)


def test_a_requests_url_is_its_origin_and_target() -> None:
    """Reading it changes nothing; setting it is remembered until the request is settled."""
    sent = asked()
    assert (sent.url, sent.changed_url) == ("http://a:80/b?c", None)
    sent.url = "http://d/e"
    assert (sent.url, sent.changed_url, sent.origin) == ("http://d/e", "http://d/e", "http://a:80")
    sent.settle("http://d:80", "/e", [("Host", "d")])
    assert (sent.url, sent.changed_url, sent.final_fields()) == ("http://d:80/e", None, [("Host", "d")])
    assert dict(sent.headers) == {"Host": "d"}


def test_headers_are_a_view_of_the_fields() -> None:
    """Repeated fields are all there, names have no case, and what is changed is what is sent."""
    sent = asked()
    assert sent.headers.getall("X") == ["1", "2"]
    sent.headers["x"] = "3"
    sent.headers.add("Y", "4")
    assert sorted(sent.final_fields()) == [("Host", "a"), ("Y", "4"), ("x", "3")]


def test_an_answers_status_takes_its_reason_along() -> None:
    """Another status drops the upstream's reason phrase, the same one keeps it."""
    answer = UpstreamAnswer(200, "Fine", [("X", "1")])
    answer.status = 200
    assert answer.reason == "Fine"
    answer.status = 404
    assert (answer.status, answer.reason) == (404, "")
    answer.headers["X"] = "2"
    assert answer.final_fields() == [("X", "2")]


@pytest.mark.parametrize("value", [199, 600, "200", "200 OK", 200.0, True, None])
def test_an_answers_status_is_an_integer_of_a_final_answer(value: Any) -> None:
    """Anything else is refused where it is set, by name."""
    answer = UpstreamAnswer(200, "OK", [])
    with pytest.raises(ValueRefused, match=r"exchange\.response\.status must be an integer from 200 to 599"):
        answer.status = value
    assert answer.status == 200


@pytest.mark.parametrize(
    ("body", "repeatable", "length"),
    [
        (Body(data=b"abc"), True, 3),
        (Body(file=BytesIO(b"abc"), length=3, start=0), True, 3),
        (Body(file=BytesIO(b"abc"), length=3), False, 3),
        (Body(chunks=iter([b"abc"])), False, None),
    ],
    ids=["bytes", "file", "stream", "iterable"],
)
def test_a_body_knows_whether_it_can_be_sent_again(body: Body, repeatable: bool, length: int | None) -> None:
    """Bytes and files that can go back can; whatever is read once can't."""
    assert (body.repeatable, body.length) == (repeatable, length)


class Stream:
    """An iterator that counts how often it was closed."""

    closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        raise StopIteration

    def close(self) -> None:
        self.closed += 1


def test_a_body_closes_what_is_its_own() -> None:
    """What a view gave is closed, iterable or file; the client's own body belongs to the server."""
    chunks, given, received = Stream(), BytesIO(b"abc"), BytesIO(b"abc")
    Body(chunks=iter(chunks), owned=True).close()
    Body(file=given, length=3, start=0, owned=True).close()
    Body(file=received, length=3, start=0).close()
    Body(chunks=iter([b""]), owned=True).close()
    assert (chunks.closed, given.closed, received.closed) == (1, True, False)


def _exchange(fields: Fields | None = None) -> Exchange:
    sent = UpstreamRequest("GET", "http://a:80", "/secret", fields or [], None)
    return Exchange("r", sent, "user", "10.0.0.1", None)  # type: ignore[arg-type]


def test_a_request_id_is_made_once() -> None:
    """32 hexadecimal digits, the same each time, and another one for each exchange."""
    first, second = _exchange(), _exchange()
    assert re.fullmatch("[0-9a-f]{32}", first.request_id)
    assert first.request_id == first.request_id
    assert first.request_id != second.request_id


def test_an_exchange_shows_itself_without_secrets() -> None:
    """What a log shows of it: route, method, origin and status, no target and no field."""
    made = _exchange([("Cookie", "secret")])
    assert repr(made) == "<Exchange r GET http://a:80 status=None admitted>"
    made.response = UpstreamAnswer(404, "", [])
    assert repr(made) == "<Exchange r GET http://a:80 status=404 admitted>"


def test_each_exchange_has_a_state_of_its_own() -> None:
    """What one hook remembers, no other exchange sees."""
    first, second = _exchange(), _exchange()
    first.state["x"] = 1
    assert second.state == {}


def test_an_exchange_says_how_far_it_is() -> None:
    """The stage follows from what its stats have seen, and stands in its repr."""
    made = _exchange()
    stages = [made.stage]
    made.stats.attempts = 1
    stages.append(made.stage)
    made.stats.first_byte, made.response = 1.0, UpstreamAnswer(200, "", [])
    stages.append(made.stage)
    made.response = UpstreamAnswer(101, "", [])
    stages.append(made.stage)
    made.stats.finished = 2.0
    assert [*stages, made.stage] == ["admitted", "asking", "answering", "switched", "ended"]
    assert repr(made).endswith(" ended>")
