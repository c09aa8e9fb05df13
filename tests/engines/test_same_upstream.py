"""One table of raw requests, put to the relay in the process and to each real engine with its exported configuration.

The upstream must see the same request line, fields and body, or nothing; and where the table says so, the client the
same answer. What differs by an engine's nature has its entry in `DIFFERS`, with the reason in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.support.front_cases import CASES, configure, script, settings_of
from tests.support.fronts import ACCEPTED, COMMANDS, KEY, TRUSTED, RealFront, verifying
from tests.support.origin import Origin
from tests.support.outcomes import Outcome, Sent, put
from tests.support.site import Site
from tests.support.waiting import wait_until

# What differs


class Differs(NamedTuple):
    """How an engine may differ in some cases, and why it does; an entry that is not needed is a fault as well."""

    #: An expression for the names of the cases.
    cases: str
    why: str
    #: Nothing arrives, where the relay sends something.
    nothing: bool = False
    #: Something arrives where the relay sends nothing, and says of nobody what is not so.
    arrives: bool = False
    #: The path is escaped otherwise, and names the same resource (RFC 3986 6.2.2).
    escapes: bool = False
    #: Of what arrives, or of what the client gets, these fields may differ.
    fields: tuple[str, ...] = ()
    #: It depends on what comes together, so that it is not needed each time.
    at_times: bool = False


Pairs = tuple[tuple[str, str], ...]


def allowed_up(entries: list[Differs], expected: Outcome, found: Outcome) -> bool:
    """Whether what arrived differs as these entries say, and in no other way."""
    if any(entry.nothing for entry in entries) and expected.arrived and not found.arrived:
        return True
    if any(entry.arrives for entry in entries):
        return not expected.arrived and len(found.arrived) == 1 and is_honest(found.arrived[0])
    ours, theirs = ([_without(sent, entries) for sent in _once(outcome)] for outcome in (expected, found))
    return ours == theirs


def allowed_down(entries: list[Differs], expected: Outcome, found: Outcome) -> bool:
    """Whether the client's answer differs in the entries' fields alone."""
    ours, theirs = expected.answer, found.answer
    same = (ours.status, ours.body) == (theirs.status, theirs.body)
    return same and _others(ours.fields, entries) == _others(theirs.fields, entries)


def _others(fields: Pairs, entries: list[Differs]) -> Pairs:
    names = {name for entry in entries for name in entry.fields}
    return tuple(field for field in fields if field[0] not in names)


def _without(sent: Sent, entries: list[Differs]) -> Sent:
    target = normal(sent.target) if any(entry.escapes for entry in entries) else sent.target
    return replace(sent, target=target, fields=_others(sent.fields, entries))


def normal(target: str) -> str:
    """A target whose path is escaped as little as it can be; an escaped slash stays what it is."""

    def less(found: re.Match[str]) -> str:
        letter = chr(int(found[1], 16))
        return letter if letter.isascii() and (letter.isalnum() or letter in "-._~") else found[0].upper()

    path, mark, query = target.partition("?")
    return quote(re.sub("%([0-9A-Fa-f]{2})", less, path), safe="%/!$&'()*+,;=:@[]~") + mark + query


def is_honest(sent: Sent) -> bool:
    """Whether a request is where alice may go, and says that it is hers."""
    fields = dict(sent.fields)
    told = [fields.get("x-user", "alice"), fields.get("x-forwarded-for", "127.0.0.1")]
    return told == ["alice", "127.0.0.1"] and re.fullmatch(r"/(?:base|o|f)/[^/.]+", sent.target) is not None


_AUTHORITY = "the authority of an absolute target is the Host (RFC 9112 3.2.2), which waitress does not look at"
_LF = "a bare LF ends a line (RFC 9112 2.2), so that what is behind it is a field as any other"
_VERSION = "the question is asked in HTTP/1.1, whatever the client speaks"
_REFUSED = "it refuses what waitress takes"
_SECOND = "the application's own relay sends it, behind the engine: its address is in the list"
_TAKEN = "Connection takes Cookie away before the question, so that nobody is known"
_HOP = "what Connection names is not deleted for that"

#: Of what the upstream sees, for each engine.
UP: dict[str, list[Differs]] = {
    "nginx": [
        Differs(".*: bare LF", _LF, arrives=True),
        Differs(".*: folded|both framings|no Host in HTTP/1.0|another version", _REFUSED, nothing=True),
        Differs("HTTP/1.0", _VERSION, fields=("via",)),
        Differs(".*: hop.*", _HOP, fields=("x-hop",)),
        Differs(
            ".*: unknown forwarded", "fields can't be deleted by how their names begin: the known ones are listed",
            fields=("x-forwarded-anything",),
        ),
    ],
    "haproxy": [
        Differs(".*: bare LF", _LF, arrives=True),
        Differs("target http://evil.example/.*|no Host in HTTP/1.0", _REFUSED, nothing=True),
        Differs("HTTP/1.0|another version", _VERSION, fields=("via",)),
        Differs(".*: folded", "the folding's white space stays", fields=("x-theirs",)),
        Differs("expect|.*: expects something", "Expect goes on to the upstream", fields=("expect",)),
        Differs("chunks with a trailer", "trailers go on to the upstream", fields=("trailer x-user",)),
        Differs(
            ".*: the answer's.*", "all of a client's X-Proxy- fields are deleted",
            fields=("x-proxy-x", "x-proxy-answer-x"),
        ),
    ],
    "envoy": [
        Differs(".*: bare LF", _LF, arrives=True),
        Differs(".*: bare CR", "a bare CR is left out of a value", arrives=True),
        Differs("target /(?:%66|f%69).*", _SECOND, fields=("x-forwarded-for",)),
        Differs("target /files/%69nner/x", "an inner mount that is escaped otherwise is not found", nothing=True),
        Differs("target http://evil.example/.*", _AUTHORITY, fields=("x-forwarded-host",)),
        Differs("target https://.*|method BREW|both framings|no Host in HTTP/1.0", _REFUSED, nothing=True),
        Differs(".*: (?:forwarded|Host) named in Connection", _REFUSED, nothing=True),
        Differs(".*: cookie named in Connection", _TAKEN, nothing=True),
        Differs(".*: upgrade on an ordinary route", "it refuses an upgrade where none is allowed", nothing=True),
        Differs(".*: cookies in another line", "lines of Cookie are joined by a comma", fields=("cookie",)),
        Differs("HTTP/1.0|another version", _VERSION, fields=("via",)),
        Differs(
            ".*: the answer's.*", "all of a client's X-Proxy- fields are deleted",
            fields=("x-proxy-x", "x-proxy-answer-x"),
        ),
    ],
    "caddy": [
        Differs(".*: bare LF", _LF, arrives=True),
        Differs(
            r'target /files/(?:[<"{|^`].*|x[|^]y|\$\{x\})', "Go escapes what RFC 3986 does not allow raw, and "
            "nothing is sent but the target as it was told", nothing=True,
        ),
        Differs("target http://evil.example/.*", _AUTHORITY, fields=("x-forwarded-host",)),
        Differs(".*: .* named in Connection|.*: hop.*", _SECOND, fields=("x-forwarded-for",)),
        Differs("fields(?: with rules)?: cookie named in Connection", _TAKEN, nothing=True),
        Differs(".*: via", "it would stand in the question with Caddy's own, so it is not told", fields=("via",)),
        Differs(".*: expects something|another version", _REFUSED, nothing=True),
        Differs("HTTP/1.0", _VERSION, fields=("via",)),
        Differs("no Host in HTTP/1.0", _VERSION, fields=("via", "x-forwarded-host")),
    ],
    "traefik": [
        Differs(".*", "Go asks for gzip where the client did not, and undoes it", fields=("accept-encoding",)),
        Differs(".*: empty host", "an empty Host is taken for none", arrives=True),
        Differs(".*: bare LF", _LF, arrives=True),
        Differs("target /files/Ã¤", "raw bytes in a path are escaped before anybody is asked", arrives=True),
        Differs("target /(?:files|root)//.*|target /files/x//y", "two slashes are one for it", nothing=True),
        Differs(
            r'target /files/(?:%41|a%2fb|[<"{|^`].*|x[|^]y|\$\{x\})', "paths are normalised", escapes=True,
        ),
        Differs("target http://evil.example/.*", _AUTHORITY, fields=("x-forwarded-host",)),
        Differs(".*: cookie named in Connection", _TAKEN, nothing=True),
        Differs(".*: expects something|another version", _REFUSED, nothing=True),
        Differs("expect", "Expect goes on to the upstream", fields=("expect",)),
        Differs("HTTP/1.0", _VERSION, fields=("via",)),
        Differs("no Host in HTTP/1.0", _VERSION, fields=("via", "x-forwarded-host")),
        Differs("switched in another case", "Upgrade stays as it was written", fields=("upgrade",)),
        Differs("two protocols", "only a lone `websocket` is switched to", fields=("upgrade",)),
    ],
}  # fmt: skip

#: Of what the client gets.
DOWN: dict[str, list[Differs]] = {
    "nginx": [
        Differs(
            "answer (?:domain-)?cookies?.*", "attributes stand in another order, and `Domain` is emptied, not left out",
            fields=("set-cookie",),
        ),
        Differs("answer own-cookie.*", "an own cookie is confined to the mount, not dropped", fields=("set-cookie",)),
        Differs("answer public.*", "Cache-Control with `public` becomes `private` alone", fields=("cache-control",)),
        Differs("answer hop.*", _HOP, fields=("x-hop",)),
        Differs(
            "renewed session.*", "of the application's own fields only Set-Cookie comes along",
            fields=("x-frame-options", "set-cookie"),
        ),
    ],
    "haproxy": [],
    "envoy": [],
    "caddy": [
        Differs(
            "answer (?!typed|ordinary|missing|forbidden|failing).*",
            "where the body comes together with the head, a type is guessed that nobody gave",
            fields=("content-type",), at_times=True,
        ),
        Differs("answer own-cookie.*", "of an own cookie an empty field is left", fields=("set-cookie",)),
        Differs(
            "renewed session.*", "of the application's own fields only Set-Cookie comes along",
            fields=("x-frame-options",),
        ),
    ],
    "traefik": [
        Differs(".*", "nothing that it was told stands on the answer", fields=("x-request-id",)),
        Differs("answer .*|renewed session.*", "it can't change Cache-Control", fields=("cache-control",)),
        Differs("answer .*cookies?.*|renewed session.*", "it can't change cookies", fields=("set-cookie",)),
        Differs("answer moved.*", "it can't change Location", fields=("location",)),
        Differs("renewed session.*", "nothing that it was told stands on the answer", fields=("x-frame-options",)),
    ],
}  # fmt: skip


# The engines


@pytest.fixture(scope="module")
def upstream() -> Iterator[Origin]:
    """One upstream for all: what arrives there is written down."""
    with Origin(script) as made:
        yield made


#: Each engine asks; and nginx is handed what it is to fetch, which makes no other difference than nginx makes.
WAYS = [*COMMANDS, "accel"]


def settings(upstream: Origin, way: str) -> dict[str, str]:
    by = {"proxy.engine": "accel", "proxy.accel.secret": KEY} if way == "accel" else verifying(way)
    return by | settings_of(upstream.url)


@pytest.fixture(scope="module")
def relayed(upstream: Origin) -> dict[str, Outcome]:
    """What comes of each case in the process."""
    with Site(settings(upstream, "nginx"), configure) as site:
        return {name: put(site.port, upstream, case.raw) for name, case in CASES.items()}


class Fronted(NamedTuple):
    """An engine in front of an application of its own, and what came of each case there."""

    engine: str
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module", params=WAYS)
def fronted(request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory) -> Fronted:
    """Each engine, with the configuration that is exported for it, and the real application behind it."""
    way = request.param
    name = "nginx" if way == "accel" else way
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings(upstream, way), configure, **TRUSTED))
        folder = tmp_path_factory.mktemp(way)
        front = stack.enter_context(RealFront(site, name, folder, accepted=ACCEPTED.get(name, ())))
        wait_until(lambda: front.get("/own").status == 200, f"{name} with its routes")
        return Fronted(name, {name: put(front.port, upstream, case.raw) for name, case in CASES.items()})


# The tests


def test_the_relay_sends_and_refuses(relayed: dict[str, Outcome]) -> None:
    """The table has enough of both, and what is sent is what was asked for: else likeness would say nothing."""
    sent = [outcome for outcome in relayed.values() if outcome.arrived]
    assert len(sent) > 200
    assert len(relayed) - len(sent) > 100
    assert relayed["target /files/a%2Fb"].arrived[0].target == "/base/a%2Fb"
    assert relayed["target /files/inner/x"].arrived[0].target == "/other/x"
    assert not relayed["bob at /files/x"].arrived
    assert relayed["bob at /files/inner/x"].arrived


def test_the_upstream_sees_the_same(fronted: Fronted, relayed: dict[str, Outcome]) -> None:
    """Request line, fields and body are those of the relay, or nothing arrives; but where the table says why not."""
    faults: list[str] = []
    needed: set[Differs] = set()
    for name, found in fronted.outcomes.items():
        expected, entries = relayed[name], entries_for(UP[fronted.engine], name)
        if _once(expected) == _once(found):
            continue
        needed.update(entries)
        if not allowed_up(entries, expected, found):
            faults.append(f"{name}: {difference(expected, found)}")
    assert not faults, "\n".join(faults)
    assert [entry.cases for entry in UP[fronted.engine] if entry not in needed] == []


def test_the_client_gets_the_same(fronted: Fronted, relayed: dict[str, Outcome]) -> None:
    """Status, fields and body of an upstream's answer are those that the relay sends, but where the table says why not.

    Where nothing arrived nobody is told that it went well, but with what the application answers by itself.
    """
    faults: list[str] = []
    needed: set[Differs] = set()
    for name, found in fronted.outcomes.items():
        expected, entries = relayed[name], entries_for(DOWN[fronted.engine], name)
        if not expected.arrived or not found.arrived:
            wrong = not found.arrived and found.answer.status // 100 == 2 and expected.answer != found.answer
        elif CASES[name].answer == "whole" and expected.answer != found.answer:
            needed.update(entries)
            wrong = not allowed_down(entries, expected, found)
        else:
            wrong = (
                expected.answer.status != found.answer.status
                and not {name, f"{fronted.engine}: {name}"} & OF_THE_ENGINE
            )
        if wrong:
            faults.append(f"{name}: {expected.answer} became {found.answer}")
    assert not faults, "\n".join(faults)
    assert [entry.cases for entry in DOWN[fronted.engine] if entry not in needed and not entry.at_times] == []


#: What goes wrong with an upstream is told by each engine's own status; and who switches nothing answers otherwise.
OF_THE_ENGINE = {"no answer", "traefik: two protocols"}


@pytest.mark.parametrize("user", [None, "bob"])
def test_the_application_refuses_by_itself(fronted: Fronted, relayed: dict[str, Outcome], user: str | None) -> None:
    """Whoever may not pass sees the application's own page or is sent to its log-in, as in the process."""
    expected, found = (outcomes[f"{user} at /files/x"].answer for outcomes in (relayed, fronted.outcomes))
    assert (found.status, dict(found.fields).get("location")) == (
        expected.status, dict(expected.fields).get("location"),
    )  # fmt: skip
    if user is not None:
        assert found.body == expected.body == b"not yours"


def entries_for(entries: list[Differs], name: str) -> list[Differs]:
    """All that speak of a case."""
    return [entry for entry in entries if re.fullmatch(entry.cases, name)]


def _once(outcome: Outcome) -> list[Sent]:
    """What arrived, without what was the same once more: each tries again by its own rules."""
    return list(dict.fromkeys(outcome.arrived))


def difference(expected: Outcome, found: Outcome) -> str:
    """What is not the same about what arrived."""
    if len(expected.arrived) != 1 or len(found.arrived) != 1:
        return f"{expected.arrived} became {found.arrived}"
    ours, theirs = expected.arrived[0], found.arrived[0]
    lines = (ours.method, ours.target, ours.body[:50]), (theirs.method, theirs.target, theirs.body[:50])
    lost, more = set(ours.fields) - set(theirs.fields), set(theirs.fields) - set(ours.fields)
    return f"{lines[0]} became {lines[1]}; lost {sorted(lost)}, has besides {sorted(more)}"
