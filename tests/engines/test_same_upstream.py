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

import pytest

from tests.support.front_cases import CASES, configure, script, settings_of
from tests.support.fronts import COMMANDS, TRUSTED, RealFront, verifying
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
    #: Of what arrives, or of what the client gets, these fields may differ.
    fields: tuple[str, ...] = ()

    def allows_up(self, expected: Outcome, found: Outcome) -> bool:
        """Whether what arrived differs in this way and no other."""
        if self.nothing:
            return bool(expected.arrived) and not found.arrived
        if self.arrives:
            return not expected.arrived and len(found.arrived) == 1 and is_honest(found.arrived[0])
        return [_without(sent, self.fields) for sent in expected.arrived] == [
            _without(sent, self.fields) for sent in found.arrived
        ]

    def allows_down(self, expected: Outcome, found: Outcome) -> bool:
        """Whether the client's answer differs in these fields alone."""
        ours, theirs = expected.answer, found.answer
        same = (ours.status, ours.body) == (theirs.status, theirs.body)
        return same and _others(ours.fields, self.fields) == _others(theirs.fields, self.fields)


Pairs = tuple[tuple[str, str], ...]


def _others(fields: Pairs, names: tuple[str, ...]) -> Pairs:
    return tuple(field for field in fields if field[0] not in names)


def _without(sent: Sent, names: tuple[str, ...]) -> Sent:
    return replace(sent, fields=_others(sent.fields, names))


def is_honest(sent: Sent) -> bool:
    """Whether a request is where alice may go, and says that it is hers."""
    fields = dict(sent.fields)
    told = [fields.get("x-user", "alice"), fields.get("x-forwarded-for", "127.0.0.1")]
    return told == ["alice", "127.0.0.1"] and re.fullmatch(r"/(?:base|o|f)/x", sent.target) is not None


_AUTHORITY = "the authority of an absolute target is the Host (RFC 9112 3.2.2), which waitress does not look at"
_LF = "a bare LF ends a line (RFC 9112 2.2), so that what is behind it is a field as any other"
_VERSION = "the question is asked in HTTP/1.1, whatever the client speaks"
_REFUSED = "it refuses what waitress takes"
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
    "haproxy": [
        Differs("answer cookies.*|renewed session and.*", "attributes stand in another order", fields=("set-cookie",)),
    ],
}  # fmt: skip


# The engines


@pytest.fixture(scope="module")
def upstream() -> Iterator[Origin]:
    """One upstream for all: what arrives there is written down."""
    with Origin(script) as made:
        yield made


def settings(upstream: Origin, engine: str) -> dict[str, str]:
    return verifying(engine) | settings_of(upstream.url)


@pytest.fixture(scope="module")
def relayed(upstream: Origin) -> dict[str, Outcome]:
    """What comes of each case in the process."""
    with Site(settings(upstream, "nginx"), configure) as site:
        return {name: put(site.port, upstream, case.raw) for name, case in CASES.items()}


class Fronted(NamedTuple):
    """An engine in front of an application of its own, and what came of each case there."""

    engine: str
    outcomes: dict[str, Outcome]


#: Keys that an engine does not hold, and that are left out.
ACCEPTED: dict[str, tuple[str, ...]] = {}


@pytest.fixture(scope="module", params=[*COMMANDS])
def fronted(request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory) -> Fronted:
    """Each engine, with the configuration that is exported for it, and the real application behind it."""
    name = request.param
    with ExitStack() as stack:
        site = stack.enter_context(Site(settings(upstream, name), configure, **TRUSTED))
        folder = tmp_path_factory.mktemp(name)
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
    faults, needed = [], set()
    for name, found in fronted.outcomes.items():
        expected = relayed[name]
        entry = entry_for(UP[fronted.engine], name)
        if _once(expected) == _once(found):
            continue
        if entry is not None and entry.allows_up(expected, found):
            needed.add(entry)
        else:
            faults.append(f"{name}: {difference(expected, found)}")
    assert not faults, "\n".join(faults)
    assert [entry.cases for entry in UP[fronted.engine] if entry not in needed] == []


def test_the_client_gets_the_same(fronted: Fronted, relayed: dict[str, Outcome]) -> None:
    """Status, fields and body of an upstream's answer are those that the relay sends, but where the table says why not.

    What is refused is refused: by a status of the same kind, or, where the engine has read no request, by closing.
    """
    faults, needed = [], set()
    for name, found in fronted.outcomes.items():
        expected = relayed[name]
        entry = entry_for(DOWN[fronted.engine], name)
        if not expected.arrived or not found.arrived:
            if not found.arrived and found.answer.status // 100 == 2 and expected.answer.status != found.answer.status:
                faults.append(f"{name}: {expected.answer.status} became {found.answer.status} of nothing")
        elif CASES[name].answer == "whole" and expected.answer != found.answer:
            if entry is not None and entry.allows_down(expected, found):
                needed.add(entry)
            else:
                faults.append(f"{name}: {expected.answer} became {found.answer}")
        elif expected.answer.status != found.answer.status and name != "no answer":
            faults.append(f"{name}: {expected.answer.status} became {found.answer.status}")
    assert not faults, "\n".join(faults)
    assert [entry.cases for entry in DOWN[fronted.engine] if entry not in needed] == []


@pytest.mark.parametrize("user", [None, "bob"])
def test_the_application_refuses_by_itself(fronted: Fronted, relayed: dict[str, Outcome], user: str | None) -> None:
    """Whoever may not pass sees the application's own page or is sent to its log-in, as in the process."""
    expected, found = (outcomes[f"{user} at /files/x"].answer for outcomes in (relayed, fronted.outcomes))
    assert (found.status, dict(found.fields).get("location")) == (
        expected.status, dict(expected.fields).get("location"),
    )  # fmt: skip
    if user is not None:
        assert found.body == expected.body == b"not yours"


def entry_for(entries: list[Differs], name: str) -> Differs | None:
    return next((entry for entry in entries if re.fullmatch(entry.cases, name)), None)


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
