"""The page of rules: its examples are held to the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from pyramid_threaded_proxy import exceptions
from pyramid_threaded_proxy.http import fields, framing, head, names, target
from pyramid_threaded_proxy.settings import values as settings_values
from pyramid_threaded_proxy.settings.allowlist import AllowList
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.docs import quoted, rows, section
from tests.support.origin import MakeOrigin, answering
from tests.support.site import MakeSite, route

RULES = "accepted-and-refused.md"


def examples(heading: str, word: str) -> Iterator[tuple[str, str]]:
    """Each example of the tables whose first column's head begins with `word`, and its source."""
    text = section(RULES, heading)
    tables = re.split(rf"^\| (?={word} \| such as)", text, flags=re.MULTILINE)[1:]
    assert tables
    for table in tables:
        for row in rows("| " + re.split(r"^$", table, flags=re.MULTILINE)[0]):
            for example in quoted(row[1]):
                yield example, row[2]


def check_refused(error: type[Exception], source: str, judge: Callable[[], object]) -> None:
    """The refusal names the standard that the page names."""
    with pytest.raises(error) as caught:
        judge()
    named = re.findall(r"RFC \d+", source)
    assert not named or any(standard in str(caught.value) for standard in named)


def test_targets_on_the_page() -> None:
    """Each example of a refused target is refused by that standard, each accepted one is accepted."""
    for example, source in examples("The request target", "refused"):
        check_refused(exceptions.TargetRefused, source, lambda raw=example: target.split_target(raw))
    for example, _ in examples("The request target", "accepted"):
        assert example.endswith("?".join(part for part in target.split_target(example) if part is not None))


def test_hosts_on_the_page() -> None:
    """Likewise for Host."""
    for example, source in examples("Host", "refused"):
        check_refused(exceptions.FieldRefused, source, lambda value=example: fields.check_host(value, "1.1"))
    check_refused(exceptions.FieldRefused, "", lambda: fields.check_host(None, "1.1"))
    accepted = re.search(r"^Accepted: (.*)$", section(RULES, "Host"), re.MULTILINE)
    assert accepted is not None
    for example in quoted(accepted[1]):
        fields.check_host(example, "1.1")


def test_heads_on_the_page() -> None:
    """Likewise for status lines and field lines of an answer."""
    for example, source in examples("The answer's head", "refused"):
        lines = [example] if re.match("HTTP|ICY", example) else ["HTTP/1.1 200 OK", example]
        text = "".join(f"{line}\r\n" for line in lines).encode()
        check_refused(exceptions.AnswerRefused, source, lambda text=text: head.parse_head(text, 200))
    assert head.parse_head(b"HTTP/1.1 200\r\n", 200).reason == ""


def test_framing_on_the_page() -> None:
    """Likewise for framing fields; a row with two different ones, or a repeated one, is about both together."""
    for row in rows(section(RULES, "The answer's framing")):
        together = [tuple(example.split(": ", 1)) for example in quoted(row[1])]
        alone = [[field] for field in together] if len(together) == 3 else [together] if together else []
        for one in alone:
            read = head.ResponseHead(1, 200, "OK", one)  # type: ignore[arg-type]
            check_refused(exceptions.AnswerRefused, row[2], lambda read=read: framing.answer_framing("HEAD", read))


def test_chunks_on_the_page() -> None:
    """Likewise for sizes of chunks."""
    for example, source in examples("Chunks", "refused"):
        data = f"{example}\r\nhello\r\n".encode()
        check_refused(exceptions.AnswerRefused, source, lambda data=data: framing.ChunkedReader(True).feed(data))


def test_hop_by_hop_fields_on_the_page() -> None:
    """The page names each hop-by-hop field that the code knows, and no other."""
    text = section(RULES, "The request's fields")
    named = [name for row in rows(text) if row[0].startswith("Never sent up") for name in quoted(row[0])]
    assert {name.lower() for name in named} == names.HOP_BY_HOP


def test_protocols_on_the_page() -> None:
    """Each protocol that `upgrade` never names is refused at start-up."""
    found = re.search(r"^\| other versions of HTTP.*$", section(RULES, "Upgrades"), re.MULTILINE)
    assert found is not None
    for example in quoted(found[0]):
        with pytest.raises(settings_values.ValueFault):
            settings_values.protocol(example)


def test_switches_on_the_page(origin: MakeOrigin, site: MakeSite) -> None:
    """Each 101 of the table, as an answer to a request for websocket, is 502 for the client."""
    text = section(RULES, "Upgrades")
    switches = [quoted(row[1]) for row in rows(text[text.index("| refused | such as | source |") :])]
    assert len(switches) == 4
    for lines in switches:
        head = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""])
        running = site(route("ws", origin(answering(head.encode())).url, upgrade="websocket"))
        assert running.get("/ws/", {"Connection": "Upgrade", "Upgrade": "websocket"}).status == 502, lines


def test_allowed_upstreams_on_the_page() -> None:
    """Each entry in the table of `fetch.allow` lets in what stands beside it, and not what it doesn't."""
    for entry, inside, outside in rows(section("fetching.md", "URLs from outside")):
        allow = AllowList(quoted(entry))
        for url in (*quoted(inside), *quoted(outside)):
            there, _ = split_url(url)
            permitted = allow.permits_name(there.scheme, there.host, there.port) or allow.permits_address(there.host)
            assert permitted is (url in quoted(inside)), (entry, url)
