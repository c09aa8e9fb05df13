"""The soak: many exchanges of forty kinds by two users, every body compared, nothing lost, crossed or leaked.

``python -m tests.support.soak COUNT`` (`make soak`) runs it and prints its figures; the exit status says how it ended.
Clients, upstreams, access log and metrics count each exchange, and must agree.
The application and its upstreams are processes of their own. What goes wrong goes wrong on purpose, and each kind has
the ends that it may have: whatever else a client sees is a fault.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pyramid.authorization import Allow, Authenticated

from pyramid_threaded_proxy.loop.scheduler import RECHECKERS
from tests.support.books import BROKEN, LEFT, Books
from tests.support.fault_origin import OriginProcess, sealed
from tests.support.site import route
from tests.support.site_process import SiteProcess, Vitals
from tests.support.waiting import wait_until
from tests.support.wire import Wire

NAME = "tests.support.soak"  # by which the application finds what stands here
CLIENTS = 12
#: Threads for the application's own code.
POOL = 8
USERS = ("alice", "bob")
#: Seconds in which an exchange has ended, or is lost.
PATIENCE = 60.0
#: Bytes that the process may have grown by: what its allocator keeps.
GROWTH = 16 << 20
#: How often an upstream is killed, of the times at which it could be.
KILLS = 0.1


class Root:
    """Whoever is known may view."""

    __acl__ = ((Allow, Authenticated, "view"),)

    def __init__(self, request: Any) -> None:
        pass


def hook(exchange: Any) -> None:
    """A hook that leaves the answer as it is."""


def raising_hook(exchange: Any) -> None:
    """A hook that fails."""
    raise LookupError("a hook of the soak's")


class Crossed(Exception):
    """Something that belongs to another exchange."""


class Client:
    """One user's exchanges, one after the other, on kept connections as long as those last."""

    def __init__(self, soak: Soak, number: int, exchanges: int) -> None:
        self.soak = soak
        self.user = USERS[number % 2]
        self._number = number
        self._left = exchanges
        self._count = 0
        self._random = random.Random(f"{soak.seed}-{number}")
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            for name in self._kinds():
                self._one(name)
        finally:
            self.close()

    def _kinds(self) -> Iterator[str]:
        """What comes next: each deck holds every kind, as often as it counts."""
        deck: list[str] = []
        for _ in range(self._left):
            if not deck:
                deck = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
                if (self._number % CLIENTS or self._count) and self._random.random() > KILLS:
                    deck.remove("killed")
                self._random.shuffle(deck)
            yield deck.pop()

    def _one(self, name: str) -> None:
        self._count += 1
        kind = KINDS[name]
        if self._random.random() < 0.02:
            self.close()
        try:
            seen = kind.run(self)
        except Exception as error:
            self.close()
            seen = f"crossed: {error}" if isinstance(error, Crossed) else f"lost: {error!r}"
        self.soak.saw(name, seen)

    def target(self, framing: str, size: int, stage: str = "whole", how: str = "-") -> str:
        """A target that no other exchange has, and whose body nobody else gets."""
        return f"/{framing}/{stage}/{how}/{self.user}-{self._number}-{self._count}/{size}"

    def connection(self) -> http.client.HTTPConnection:
        """The kept connection, or a new one."""
        if self._connection is None:
            self._connection = self.connect()
        return self._connection

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.soak.port, timeout=PATIENCE)

    def close(self) -> None:
        """The next exchange has a new connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def wire(self) -> Wire:
        """A connection that speaks bytes."""
        sock = socket.create_connection(("127.0.0.1", self.soak.port), timeout=PATIENCE)
        wire = Wire(sock)
        sock.settimeout(PATIENCE)
        return wire

    def head(self, mount: str, target: str) -> bytes:
        return f"GET {mount}{target} HTTP/1.1\r\nHost: a\r\nX-User: {self.user}\r\n\r\n".encode()


# What a kind of exchange does; each returns what it saw: "whole", a status, "broken" or "left".


def ask(
    client: Client, mount: str, target: str, body: Any = None, connection: http.client.HTTPConnection | None = None
) -> str:
    """Ask, and compare every byte of a whole answer."""
    connection = connection or client.connection()
    method, saw = "GET" if body is None else "POST", client.soak.books.saw
    try:
        connection.request(method, mount + target, body, {"X-User": client.user})
        response = connection.getresponse()
        received = response.read()
    except TimeoutError:
        raise
    except (http.client.HTTPException, ConnectionError) as error:
        client.close()
        got = len(error.partial) if isinstance(error, http.client.IncompleteRead) else 0
        saw(mount + target, method, BROKEN, down=got)
        return "broken"
    saw(mount + target, method, str(response.status), 0 if body is None else len(sealed(target)), len(received))
    if response.status == 418:
        raise Crossed(f"{target}: {received!r}")
    if response.status != 200:
        return str(response.status)
    if received != sealed(target):
        raise Crossed(f"{target}: {len(received)} bytes are not its own")
    return "whole"


def whole(client: Client, framing: str, size: int, mount: str = "/r") -> str:
    return ask(client, mount, client.target(framing, size))


def upload(client: Client, size: int, chunked: bool) -> str:
    """The upstream has 418 for a body that is another's, or not whole."""
    target = client.target("length", size)
    body = sealed(target)
    return ask(client, "/r", target, iter([body[: size // 2], body[size // 2 :]]) if chunked else body)


def fault(client: Client, framing: str, stage: str, how: str, mount: str = "/r") -> str:
    return ask(client, "/hasty" if how == "hang" else mount, client.target(framing, 20_000, stage, how))


def killed(client: Client) -> str:
    seen = fault(client, "length", "before", "kill", "/mortal")
    client.soak.mortal.restart_if_dead()
    return seen


def old_client(client: Client) -> str:
    """HTTP/1.0."""
    with closing(client.connect()) as connection:
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
        return ask(client, "/r", client.target("chunked", 20_000), connection=connection)


def pipelined(client: Client) -> str:
    """Two requests at once; their answers come in order."""
    targets = [client.target("length", size) for size in (100, 30_000)]
    with closing(client.wire()) as wire:
        wire.send(b"".join(client.head("/r", target) for target in targets))
        for target in targets:
            first, fields = wire.head()
            if first != "HTTP/1.1 200 OK":
                return first.split()[1]
            received = wire.exactly(int(fields["content-length"]))
            client.soak.books.saw(f"/r{target}", "GET", "200", 0, len(received))
            if received != sealed(target):
                raise Crossed(f"{target}, pipelined")
    return "whole"


def leaves(client: Client, after_head: bool, by_reset: bool) -> str:
    """Goes away before the answer, or in it."""
    target = client.target("chunked", 2_000_000)
    client.soak.books.saw(f"/r{target}", "GET", LEFT)
    with closing(client.wire()) as wire:
        wire.send(client.head("/r", target))
        if after_head:
            with suppress(ConnectionError):
                wire.until(b"\r\n\r\n")
        if by_reset:
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "left"


def own(client: Client) -> str:
    """A page of the application's own, which knows of no proxy."""
    connection = client.connection()
    connection.request("GET", "/own")
    answer = connection.getresponse().read()
    if answer != b"own":
        raise Crossed(f"/own: {answer[:60]!r}")
    return "whole"


def refused_method(client: Client) -> str:
    connection = client.connection()
    connection.request("BREW", "/few/x", headers={"X-User": client.user})
    response = connection.getresponse()
    response.read()
    client.soak.saw_refused("few", "method")
    return str(response.status)


class Kind(NamedTuple):
    """What a client does, how it may end, and how often it comes for each time of a rare one."""

    run: Callable[[Client], str]
    ends: set[str]
    weight: int = 1


def _kinds() -> Iterator[tuple[str, Kind]]:
    for framing, size in [(f, s) for f in ("length", "chunked", "close") for s in (0, 3_000, 300_000)]:
        if (framing, size) != ("close", 0):
            yield f"{framing}, {size} bytes", Kind(partial(whole, framing=framing, size=size), {"whole"}, 4)
    for size, chunked in ((10, False), (20_000, False), (300_000, False), (20_000, True)):
        name = f"upload, {size} bytes{', chunked' if chunked else ''}"
        yield name, Kind(partial(upload, size=size, chunked=chunked), {"whole"}, 3)
    for framing, stage, how, *ends in FAULTS:
        yield f"{how} at {stage}, {framing}", Kind(partial(fault, framing=framing, stage=stage, how=how), set(ends))
    yield "killed", Kind(killed, {"502"})
    yield (
        "beside a kill",
        Kind(partial(whole, framing="length", size=3_000, mount="/mortal"), {"whole", "502", "broken"}),
    )
    yield "HTTP/1.0", Kind(old_client, {"whole"})
    yield "pipelined", Kind(pipelined, {"whole"})
    yield "leaves before the head", Kind(partial(leaves, after_head=False, by_reset=False), {"left"})
    yield "leaves in the body", Kind(partial(leaves, after_head=True, by_reset=False), {"left"})
    yield "resets in the body", Kind(partial(leaves, after_head=True, by_reset=True), {"left"})
    yield "a hook", Kind(partial(whole, framing="length", size=3_000, mount="/hook"), {"whole"})
    yield "a hook that raises", Kind(partial(whole, framing="length", size=3_000, mount="/raising"), {"500"})
    yield "two upstreams", Kind(partial(whole, framing="chunked", size=3_000, mount="/two"), {"whole"}, 3)
    yield "nobody listens", Kind(partial(whole, framing="length", size=0, mount="/nobody"), {"502"})
    yield "rechecked", Kind(partial(fault, framing="length", stage="body", how="pause", mount="/asked"), {"whole"})
    yield "own view", Kind(own, {"whole"}, 3)
    yield "refused method", Kind(refused_method, {"405"})


#: Framing, stage and how of `fault_origin`, and what a client may see of it.
FAULTS = (
    ("length", "before", "reset", "502"),
    ("length", "before", "close", "502"),
    ("length", "before", "hang", "504"),
    ("length", "before", "garbage", "502"),
    ("length", "head", "reset", "502"),
    ("length", "head", "close", "502"),
    ("length", "body", "reset", "broken", "502"),
    ("length", "body", "close", "broken"),
    ("length", "body", "hang", "broken", "504"),
    ("chunked", "body", "reset", "broken", "502"),
    ("chunked", "body", "close", "broken"),
    ("chunked", "body", "garbage", "broken"),
    ("chunked", "size-line", "close", "broken"),
    ("chunked", "size-line", "garbage", "broken"),
)
KINDS = dict(_kinds())
#: Threads that a lane may start whenever it first needs as many: never more, and each once.
LANES = [
    f"pproxy-{lane}-{number}" for lane, most in (("recheck", RECHECKERS), ("pool", POOL)) for number in range(most)
]


class Figures(NamedTuple):
    """How a soak went."""

    exchanges: int
    seconds: float
    seen: dict[str, Counter[str]]
    faults: list[str]
    before: Vitals
    after: Vitals
    #: Where the counts of clients, upstreams, access log and metrics differ.
    differences: list[str]
    #: Exchanges that were compared, those among them that clients left, and what upstreams were asked.
    compared: tuple[int, int, int] = (0, 0, 0)

    @property
    def leaks(self) -> list[str]:
        """What the process holds that it did not hold before."""
        found = []
        if self.after.descriptors > self.before.descriptors:
            found.append(f"{self.after.descriptors - self.before.descriptors} descriptors")
        if more := Counter(self.after.threads) - (Counter(self.before.threads) | Counter(LANES)):
            found.append(f"threads: {', '.join(more)}")
        if self.after.in_flight:
            found.append(f"{self.after.in_flight} slots")
        if self.after.memory - self.before.memory > GROWTH:
            found.append(f"{self.after.memory - self.before.memory} bytes")
        return found

    def __str__(self) -> str:
        lost = sum(fault.startswith("lost") for fault in self.faults)
        crossed = sum(fault.startswith("crossed") for fault in self.faults)
        lines = [
            f"{self.exchanges} exchanges of {len(self.seen)} kinds by {len(USERS)} users in {self.seconds:.0f} s: "
            f"lost {lost}, crossed {crossed}, ended otherwise {len(self.faults) - lost - crossed}, "
            f"leaks {', '.join(self.leaks) or 0}",
            *(f"  {name}: {', '.join(f'{count} {end}' for end, count in ends.items())}"
              for name, ends in sorted(self.seen.items())),
            f"held before and after: descriptors {self.before.descriptors} and {self.after.descriptors}, "
            f"threads {len(self.before.threads)} and {len(self.after.threads)}, "
            f"MiB {self.before.memory >> 20} and {self.after.memory >> 20}",
            "counted by clients, upstreams, access log and metrics: {} exchanges, {} of which their clients left; "
            "upstreams were asked {} times; differences {}".format(*self.compared, len(self.differences)),
            *self.faults[:20],
            *self.differences[:20],
        ]  # fmt: skip
        return "\n".join(lines)


class Soak:
    """One run: its processes, and what its clients see. Any of the clients' threads calls `saw`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self._folder = folder
        self._lock = threading.Lock()
        self._seen: dict[str, Counter[str]] = {}
        self.books = Books()
        self._faults: list[str] = []

    def run(self, count: int) -> Figures:
        """`count` exchanges, behind some that bring the process to its full size."""
        with ExitStack() as stack:
            logs = [self._folder / name for name in ("first", "second", "mortal")]
            first, second, self.mortal = (stack.enter_context(OriginProcess(log)) for log in logs)
            access = self._folder / "access.log"
            settings = _settings(first, second, self.mortal) | {"test.access_log": str(access)}
            self._proxy = stack.enter_context(SiteProcess(self._folder, settings))
            self.port = self._proxy.port
            self._clients(max(count // 10, 20 * CLIENTS))
            before = self._proxy.quiet_vitals()
            self._seen.clear()
            began = time.monotonic()
            self._clients(count, CLIENTS)
            seconds = time.monotonic() - began
            after = self._proxy.quiet_vitals()
            wait_until(lambda: access.read_bytes().count(b"\n") >= self.books.least, "the access log")
            metrics = self._proxy.get("/status/metrics", user="alice").decode()
            differences = self.books.differences(access, logs, metrics)
        for word in ("unforeseen", "ResourceWarning", "Exception ignored", "step of the loop failed"):
            if word in self._proxy.log:
                self._faults.append(f"the log says {word!r}: {self._proxy.log_path}")
        total = sum(ends.total() for ends in self._seen.values())
        asked = sum(log.read_bytes().count(b"\n") for log in logs)
        told = len(self.books.clients)
        compared = (told, told - self.books.least, asked)
        return Figures(total, seconds, self._seen, self._faults, before, after, differences, compared)

    def _clients(self, count: int, first: int = 0) -> None:
        clients = [Client(self, first + number, -(-count // CLIENTS)) for number in range(CLIENTS)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def saw_refused(self, route: str, reason: str) -> None:
        """A request got no exchange."""
        with self._lock:
            self.books.refused[route, reason] += 1

    def saw(self, kind: str, what: str) -> None:
        """An exchange has ended."""
        expected = what in KINDS[kind].ends
        with self._lock:
            self._seen.setdefault(kind, Counter())[what if expected else "FAULT"] += 1
            if not expected:
                self._faults.append(f"{what} ({kind})")


def _settings(first: OriginProcess, second: OriginProcess, mortal: OriginProcess) -> dict[str, str]:
    keys: dict[str, tuple[str, dict[str, str]]] = {
        "r": (first.url, {}),
        "hasty": (first.url, {}),
        "two": (f"{first.url} {second.url}", {}),
        "mortal": (mortal.url, {}),
        "hook": (first.url, {"hooks__headers": f"{NAME}.hook"}),
        "raising": (first.url, {"hooks__headers": f"{NAME}.raising_hook"}),
        "nobody": ("http://127.0.0.1:9", {}),
        "asked": (first.url, {"permission": "view", "recheck": "50ms", "factory": f"{NAME}.Root"}),
        "few": (first.url, {"methods": "GET"}),
    }
    made = {
        "test.users": f"{NAME}.Root", "proxy.status.prefix": "/status", "proxy.status.permission": "view",
        "proxy.own_cookies": "session", "proxy.threads": str(POOL),
    }  # fmt: skip
    for name, (url, others) in keys.items():
        # On a busy machine a healthy upstream may be slow: only what hangs on purpose is given up soon.
        patience = "500ms" if name == "hasty" else f"{PATIENCE / 2:g}s"
        always = {"read_timeout": patience, "health__fails": "0", "request__set__X-User": "{userid}"}
        made |= route(name, url, **always, **others)
    return made


def main(arguments: list[str]) -> int:
    """Run it, print its figures; 0 if nothing was lost, crossed, leaked or counted otherwise."""
    count = int(arguments[0]) if arguments else 100_000
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 30)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = Soak(Path(folder), seed).run(count)
    print(figures)
    return 1 if figures.faults or figures.leaks or figures.differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
