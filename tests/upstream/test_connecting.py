"""How connections to upstreams are made: names, addresses, families, one deadline; and when idle ones are dropped."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from select import select

import pytest
from webtest import TestApp

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut
from pyramid_threaded_proxy.loop.waits import AnyReady, Kept, TimeIsUp
from pyramid_threaded_proxy.upstream import connections as upstream_module
from pyramid_threaded_proxy.upstream import names as names_module
from pyramid_threaded_proxy.upstream.connecting import NEXT_AFTER
from pyramid_threaded_proxy.upstream.connections import IDLE_SECONDS, Connection, OriginPool
from pyramid_threaded_proxy.upstream.names import LOOK_UP_SECONDS, addresses_of
from pyramid_threaded_proxy.upstream.origin import Origin as Address
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.clock import Clock
from tests.support.names import NameServer
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, route
from tests.support.upstreams import FullBacklog, connected, connection_on, pool_at
from tests.support.waiting import wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def names(names: NameServer) -> NameServer:
    """The same, and nobody else is asked."""
    names.addresses = ()
    return names


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that connections age by."""
    made = Clock()
    monkeypatch.setattr(upstream_module, "time", made)
    return made


def at_name(port: int, name: str = "name") -> Address:
    return Address("http", name, port)


def pool_of(name: str = "name") -> OriginPool:
    return pool_at(Address("http", name, 80))


def listening(stack: ExitStack, *hosts: str) -> tuple[int, dict[str, socket.socket]]:
    """Listeners on the same port of several addresses."""
    first = stack.enter_context(socket.create_server((hosts[0], 0)))
    port = first.getsockname()[1]
    others = {host: stack.enter_context(socket.create_server((host, port))) for host in hosts[1:]}
    return port, {hosts[0]: first, **others}


def peer(connection: Connection) -> str:
    """The address that it goes to."""
    return str(connection.sock.getpeername()[0])


# Addresses


def test_families_alternate(names: NameServer) -> None:
    """The system's order is kept within a family; the families take turns, that of the first address first."""
    names.addresses = ("::1", "::2", "::3", "10.0.0.1", "::1")
    assert addresses_of(Address("http", "name", 80)) == ["::1", "10.0.0.1", "::2", "::3"]
    names.addresses = ("10.0.0.1", "10.0.0.2")
    assert addresses_of(Address("http", "name", 80)) == ["10.0.0.1", "10.0.0.2"]


def test_an_address_that_refuses_costs_nothing(names: NameServer, stack: ExitStack) -> None:
    """The next address is tried at once, and the one that failed comes last from then on, across look-ups too."""
    port, _ = listening(stack, "127.0.0.2")
    names.addresses = ("127.0.0.1", "127.0.0.2")
    pool = pool_at(at_name(port))
    begun = time.monotonic()
    connection = connected(pool, 5.0)
    assert (peer(connection), time.monotonic() - begun < NEXT_AFTER) == ("127.0.0.2", True)
    connection.close()
    port_2 = stack.enter_context(socket.create_server(("127.0.0.1", port)))
    pool._names._names.clear()
    connection = connected(pool, 5.0)
    assert (peer(connection), len(names.asked)) == ("127.0.0.2", 2)
    connection.close()
    port_2.close()


def test_a_silent_address_is_overtaken(names: NameServer, stack: ExitStack) -> None:
    """After 250 ms the next address is tried while the first goes on (RFC 8305 5); from then on it comes first."""
    full = stack.enter_context(FullBacklog("127.0.0.1"))
    stack.enter_context(socket.create_server(("127.0.0.2", full.port)))
    names.addresses = ("127.0.0.1", "127.0.0.2")
    pool = pool_at(at_name(full.port))
    for least in (NEXT_AFTER, 0.0):
        begun = time.monotonic()
        connection = connected(pool, 5.0)
        assert peer(connection) == "127.0.0.2"
        assert least <= time.monotonic() - begun < least + 0.2
        connection.close()


def test_a_slow_address_may_still_win(names: NameServer, stack: ExitStack) -> None:
    """The first goes on while the second is tried, and wins if it is there first; the other is closed."""
    fulls = [stack.enter_context(FullBacklog("127.0.0.1"))]
    fulls.append(stack.enter_context(FullBacklog("127.0.0.2", fulls[0].port)))
    names.addresses = ("127.0.0.1", "127.0.0.2")
    steps = pool_at(at_name(fulls[0].port)).connect(9.0)
    wait = steps.send(None)
    if isinstance(wait, Kept):  # the look-up, where it has taken a moment
        wait.block()
        wait = steps.send(None)
    with pytest.raises(TimeIsUp):
        wait.block()
    both = steps.throw(TimeIsUp(""))
    assert isinstance(both, AnyReady)
    first, second = both.wanted
    stack.enter_context(fulls[0]._listener.accept()[0])
    wait_until(lambda: _accept(fulls[0], stack) and select([], [first.sock], [], 0)[1], "the first to be connected")
    with pytest.raises(StopIteration) as end:
        steps.send((first, 4))
    assert peer(end.value.value) == "127.0.0.1"
    assert second.sock.fileno() < 0
    end.value.value.close()


def _accept(full: FullBacklog, stack: ExitStack) -> bool:
    full._listener.settimeout(0.05)
    try:
        stack.enter_context(full._listener.accept()[0])
    except TimeoutError:
        pass
    return True


def test_look_ups_age(names: NameServer, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    """A name is looked up again when its addresses are old; a name that is gone by then is a failed connect."""
    clock = Clock()
    monkeypatch.setattr(names_module, "time", clock)
    port, _ = listening(stack, "127.0.0.2")
    names.addresses = ("127.0.0.1",)
    pool = pool_at(at_name(port))
    for _ in range(2):
        with pytest.raises(ConnectFailed, match=rf"^http://name:{port}: Connection refused$"):
            connected(pool, 1.0)
    assert len(names.asked) == 1
    names.addresses = ("127.0.0.2",)
    clock.ahead = LOOK_UP_SECONDS + 0.1
    connected(pool, 1.0).close()
    names.addresses = ()
    clock.ahead *= 2
    with pytest.raises(ConnectFailed, match=r"the name 'name' can't be resolved: Name or service not known$"):
        connected(pool, 1.0)


def test_one_time_out_for_all_addresses(names: NameServer, stack: ExitStack) -> None:
    """Where one address refuses and another is silent, it is a time-out, with the whole time."""
    full = stack.enter_context(FullBacklog("127.0.0.2"))
    names.addresses = ("127.0.0.1", "127.0.0.2")
    begun = time.monotonic()
    with pytest.raises(ConnectTimedOut, match=rf"^http://name:{full.port}: not connected after 0\.4 s$"):
        connected(pool_at(at_name(full.port)), 0.4)
    assert 0.4 <= time.monotonic() - begun < 0.6


def test_a_look_up_that_takes_all_the_time(names: NameServer) -> None:
    """A name server that is silent is waited for no longer than the time-out."""
    names.silent["name"] = threading.Event()
    begun = time.monotonic()
    with pytest.raises(ConnectTimedOut, match=r"^http://name:80: not connected after 0\.2 s$"):
        connected(pool_of(), 0.2)
    assert time.monotonic() - begun < 0.4
    names.silent["name"].set()


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_names_that_can_not_be_looked_up(host: str) -> None:
    """What the system's encoding of names refuses is a failed connect as well."""
    with pytest.raises(ConnectFailed, match="can't be resolved"):
        connected(pool_of(host), 1.0)


def test_a_pinned_address_is_the_only_one(names: NameServer, stack: ExitStack) -> None:
    """Where an address was judged before, the name is not looked up again."""
    port, _ = listening(stack, "127.0.0.9")
    connection = connected(pool_at(Address("http", "name", port, "127.0.0.9")), 1.0)
    assert (peer(connection), len(names.asked)) == ("127.0.0.9", 0)
    connection.close()


def test_a_name_with_a_dead_address(origin: MakeOrigin, site: MakeSite, names: NameServer) -> None:
    """A real connection: of a name's two addresses the one that refuses is passed over."""
    upstream = origin(echo)
    names.addresses = ("::1", "127.0.0.1")
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


def test_no_connection_of_another_routes(origin: MakeOrigin, site: MakeSite) -> None:
    """With `keepalive` 0 each exchange really has its own, whatever another route of the same origin has kept."""
    upstream = origin(echo)
    where = site(route("kept", upstream.url) | route("own", upstream.url, keepalive="0"))
    for _ in range(5):
        where.get("/kept/")
        where.get("/own/")
    assert upstream.accepted == 1 + 5


@pytest.mark.parametrize("streamed", [False, True])
def test_keepalive_time(origin: MakeOrigin, site: MakeSite, streamed: bool) -> None:
    """A connection older than `keepalive_time` is neither used again nor kept, however busy it was."""
    upstream = origin(echo)
    where = site(route("r", upstream.url, keepalive_time="300ms") | route("s", upstream.url))
    get = TestApp(where.application).get if streamed else where.get
    get("/r/")
    get("/r/")
    assert upstream.accepted == 1
    made = time.monotonic()
    wait_until(lambda: time.monotonic() > made + 0.3)
    get("/s/")
    assert upstream.accepted == 1, "one route's limit is not another's"
    get("/r/")
    assert upstream.accepted == 2


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
    pool = pool_of("127.0.0.1")
    pairs = [socket.socketpair() for _ in range(3)]
    old, young, new = (connection_on(near, pool) for near, _ in pairs)
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
