"""How connections to upstreams are made: names, addresses, families, one deadline; and when idle ones are dropped."""

from __future__ import annotations

import socket
from itertools import repeat
from typing import Any

import pytest

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut
from pyramid_threaded_proxy.upstream import connections as upstream_module
from pyramid_threaded_proxy.upstream.connections import (
    IDLE_SECONDS,
    LOOK_UP_SECONDS,
    OriginPool,
    addresses_of,
    split_url,
)
from pyramid_threaded_proxy.upstream.origin import Origin as Address
from tests.support.clock import Clock
from tests.support.names import Names
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that connections age by."""
    made = Clock()
    monkeypatch.setattr(upstream_module, "time", made)
    return made


def tried(monkeypatch: pytest.MonkeyPatch, works: str = "", blocks: str = "") -> list[tuple[str, float]]:
    """Connects nowhere, but to the address that works; returns what was tried, and the seconds that each was given."""
    found: list[tuple[str, float]] = []

    def connect(self: Any) -> None:
        found.append((self.host, self.timeout))
        if self.host == blocks:
            raise upstream_module.ConnectTimeoutError(self, "timed out")
        if self.host != works:
            raise upstream_module.NewConnectionError(self, "refused") from ConnectionRefusedError(111, "refused")
        self.sock = socket.socket()

    monkeypatch.setattr(upstream_module.HTTPConnection, "connect", connect)
    return found


def pool_of(name: str = "name") -> OriginPool:
    return OriginPool(Address("http", name, 80), None)


# Addresses


def test_families_alternate(names: Names) -> None:
    """The system's order is kept within a family; the families take turns, that of the first address first."""
    names.known["name"] = repeat(("::1", "::2", "::3", "10.0.0.1", "::1"))
    assert addresses_of(Address("http", "name", 80)) == ["::1", "10.0.0.1", "::2", "::3"]
    names.known["name"] = repeat(("10.0.0.1", "10.0.0.2"))
    assert addresses_of(Address("http", "name", 80)) == ["10.0.0.1", "10.0.0.2"]


def test_addresses_are_tried_in_turn_within_one_deadline(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address has its share of the time that is left, so that one which is silent leaves some to the others."""
    names.known["name"] = repeat(("10.0.0.1", "::1", "10.0.0.2"))
    found = tried(monkeypatch, works="10.0.0.2")
    pool_of().connect(6.0).close()
    assert [address for address, _ in found] == ["10.0.0.1", "::1", "10.0.0.2"]
    assert [round(share) for _, share in found] == [2, 3, 6]


def test_what_failed_is_tried_last(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next connection begins where the last one came through, until the name is looked up again."""
    names.known["name"] = repeat(("10.0.0.1", "10.0.0.2"))
    found, pool = tried(monkeypatch, works="10.0.0.2"), pool_of()
    for _ in range(3):
        pool.connect(1.0).close()
    assert [address for address, _ in found] == ["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.2"]
    assert names.asked == ["name"]


def test_look_ups_age(names: Names, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A name is looked up again when its addresses are old; a name that is gone by then is a failed connect."""
    names.known["name"] = repeat(("10.0.0.1",))
    found, pool = tried(monkeypatch, works="10.0.0.2"), pool_of()
    with pytest.raises(ConnectFailed, match=r"^http://name:80: refused$"):
        pool.connect(1.0)
    names.known["name"] = repeat(("10.0.0.2",))
    clock.ahead = LOOK_UP_SECONDS + 0.1
    pool.connect(1.0).close()
    assert [address for address, _ in found] == ["10.0.0.1", "10.0.0.2"]
    names.known["name"] = repeat(())
    clock.ahead *= 2
    with pytest.raises(ConnectFailed, match=r"the name 'name' can't be resolved: Name or service not known$"):
        pool.connect(1.0)


def test_the_last_failure_is_told(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no address answers, a time-out of the last one is a time-out, with the whole time."""
    names.known["name"] = repeat(("10.0.0.1", "10.0.0.2"))
    tried(monkeypatch, blocks="10.0.0.2")
    with pytest.raises(ConnectTimedOut, match=r"^http://name:80: not connected after 4 s$"):
        pool_of().connect(4.0)


def test_a_look_up_that_takes_all_the_time(names: Names, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Nothing is tried after the deadline."""
    found = tried(monkeypatch)

    def slow(origin: Address) -> list[str]:
        clock.ahead = 9.0
        return ["10.0.0.1"]

    monkeypatch.setattr(upstream_module, "addresses_of", slow)
    with pytest.raises(ConnectTimedOut):
        pool_of().connect(5.0)
    assert found == []


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_names_that_can_not_be_looked_up(host: str) -> None:
    """What the system's encoding of names refuses is a failed connect as well."""
    with pytest.raises(ConnectFailed, match="can't be resolved"):
        pool_of(host).connect(1.0)


def test_a_pinned_address_is_the_only_one(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an address was judged before, the name is not looked up again."""
    found = tried(monkeypatch, works="10.0.0.9")
    OriginPool(Address("http", "name", 80, "10.0.0.9"), None).connect(1.0).close()
    assert ([address for address, _ in found], names.asked) == (["10.0.0.9"], [])


def test_a_name_with_a_dead_address(origin: MakeOrigin, site: MakeSite, names: Names) -> None:
    """A real connection: of a name's two addresses the one that refuses is passed over."""
    upstream = origin(echo)
    names.known["name"] = repeat(("::1", "127.0.0.1"))
    assert site(route("r", f"http://name:{upstream.port}")).get("/r/").status == 200


@pytest.mark.parametrize(
    ("url", "text", "authority"),
    [
        ("https://a/x", "https://a:443", "a"), ("https://a:80", "https://a:80", "a:80"),
        ("http://a:443", "http://a:443", "a:443"), ("HTTPS://[::1]:8443/", "https://[::1]:8443", "[::1]:8443"),
    ],
)  # fmt: skip
def test_origins(url: str, text: str, authority: str) -> None:
    """Each scheme has its own default port, which Host leaves out."""
    found = split_url(url)[0]
    assert (str(found), found.authority) == (text, authority)


# Keeping


@pytest.mark.parametrize(("keepalive", "accepted"), [("0", 2), ("1", 1)])
def test_keepalive(origin: MakeOrigin, site: MakeSite, keepalive: str, accepted: int) -> None:
    """`keepalive` says how many idle connections are kept; with 0 each exchange has its own."""
    upstream = origin(echo)
    where = site(route("r", upstream.url, keepalive=keepalive))
    for _ in range(2):
        where.get("/r/")
    assert upstream.accepted == accepted


def test_long_idle_connections_are_dropped(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop drops what was idle for long, and leaves what was used since."""
    monkeypatch.setattr(upstream_module, "IDLE_SECONDS", 0.1)
    upstream = origin(answering(OK, OK, OK))
    where = site(route("r", upstream.url))
    for _ in range(2):
        where.get("/r/")
        wait_until(lambda: where.idle() == 1)
        wait_until(lambda: where.idle() == 0, "the connection to be dropped")
    assert upstream.accepted == 2


def test_streamed_exchanges_drop_them_as_well(clock: Clock) -> None:
    """Where no loop watches, an old connection is dropped before one is taken or kept."""
    pool = pool_of()
    pairs = [socket.socketpair() for _ in range(3)]
    old, young, new = (upstream_module.Connection(near, pool) for near, _ in pairs)
    pool.give_back(old, 9)
    clock.ahead = IDLE_SECONDS / 2
    pool.give_back(young, 9)
    clock.ahead = IDLE_SECONDS + 1
    pool.give_back(new, 9)
    assert [near.fileno() < 0 for near, _ in pairs] == [True, False, False]
    clock.ahead = 2 * IDLE_SECONDS + 9
    assert pool.take() is None
    for _, far in pairs:
        far.close()
