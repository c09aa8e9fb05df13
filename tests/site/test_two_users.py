"""Two users on reused upstream connections never see each other's bytes, whatever goes wrong between them."""

from __future__ import annotations

import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.origin import MakeOrigin
from tests.support.site import MakeSite, Site, route, with_policy
from tests.support.waiting import wait_until
from tests.support.wire import Closed, OriginWire, Request, Wire

EXCHANGES = 20_000
CLIENTS = 12
USERS = ("alice", "bob")
#: How often a request's body repeats its token.
SIZES = (0,) * 60 + (1,) * 20 + (500,) * 19 + (30_000,)
TOKEN = re.compile(rb"(?:alice|bob)-[0-9]{2}-[0-9]{5}")

Fault = Callable[[OriginWire, Request, bytes, random.Random], bool]


def whole(token: bytes, generator: random.Random, *fields: bytes) -> bytes:
    """A good answer that bears the token in head and body, with a length or in chunks."""
    body = token + b":" + b"." * generator.choice((0, 1, 50, 3_000, 70_000)) + b":" + token
    head = b"\r\n".join([b"HTTP/1.1 200 OK", b"X-Token: " + token, *fields])
    if generator.random() < 0.5:
        return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
    middle = generator.randrange(1, len(body))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:middle], body[middle:]))
    return b"%b\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (head, chunks)


# What an upstream does wrong. Each returns whether its connection goes on.


def _hints(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    hint = b"HTTP/1.1 103 Early Hints\r\nX-Token: " + token + b"\r\n\r\n"
    wire.send(hint * generator.randrange(1, 4) + whole(token, generator))
    return True


def _hints_then_nothing(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(b"HTTP/1.1 103 Early Hints\r\nX-Token: " + token + b"\r\n\r\n")
    return False


def _twice(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    # In one piece: what comes only when the next request is under way can't be told from its answer, by nobody.
    answer = b"HTTP/1.1 200 OK\r\nX-Token: %b\r\nContent-Length: %d\r\n\r\n%b" % (token, len(token), token)
    wire.send(answer * 2)
    return True


def _cut(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    answer = whole(token, generator)
    wire.send(answer[: generator.randrange(len(answer))])
    return False


def _reset(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    answer = whole(token, generator)
    wire.send(answer[: generator.randrange(len(answer))])
    wire.reset()
    return False


def _too_much(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(b"HTTP/1.1 200 OK\r\nX-Token: %b\r\nContent-Length: %d\r\n\r\n%b" % (token, len(token), token * 2))
    return True


def _ambiguous(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    second = generator.choice((b"Transfer-Encoding: chunked", b"Content-Length: 4"))
    head = b"HTTP/1.1 200 OK\r\nX-Token: " + token + b"\r\nContent-Length: 3\r\n" + second
    wire.send(head + b"\r\n\r\n0\r\n\r\n" + token)
    return True


def _bodiless_with_body(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(b"HTTP/1.1 204 No Content\r\nX-Token: " + token + b"\r\n\r\n" + token)
    return True


def _closing(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(whole(token, generator, b"Connection: close"))
    return False


def _close_delimited(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(b"HTTP/1.1 200 OK\r\nX-Token: " + token + b"\r\n\r\n" + token + b":" + token)
    return False


def _closing_unsaid(wire: OriginWire, request: Request, token: bytes, generator: random.Random) -> bool:
    wire.send(whole(token, generator))
    return False


FAULTS: tuple[Fault, ...] = (
    _hints, _hints_then_nothing, _twice, _cut, _reset, _too_much, _ambiguous, _bodiless_with_body,
    _closing, _close_delimited, _closing_unsaid,
)  # fmt: skip


class Upstream:
    """Answers with the token that a request bears, and now and then wrongly."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.connections = 0
        self.seen: Counter[str] = Counter()
        self.mixed: list[Request] = []

    def script(self, wire: OriginWire) -> None:
        self.connections += 1
        generator = random.Random(self.seed * 1_000_003 + self.connections)
        while True:
            if generator.random() < 0.03:
                if not self._early(wire, generator):
                    return
                continue
            request = wire.request()
            if request is None or not self._answer(wire, request, generator):
                return

    def _answer(self, wire: OriginWire, request: Request, generator: random.Random) -> bool:
        token = request.target.removeprefix("/").encode()
        if request.one("X-User") != token.split(b"-")[0].decode() or set(TOKEN.findall(request.raw)) != {token}:
            self.mixed.append(request)
        if generator.random() < 0.12:
            fault = generator.choice(FAULTS)
            self.seen[fault.__name__] += 1
            return fault(wire, request, token, generator)
        wire.send(whole(token, generator))
        return True

    def _early(self, wire: OriginWire, generator: random.Random) -> bool:
        """Answers once the head is there, and then takes the body, or not."""
        try:
            head = wire.until(b"\r\n\r\n")
        except Closed:
            return False  # the proxy closed
        self.seen["early"] += 1
        token = head.split(b" ")[1].removeprefix(b"/")
        wire.send(whole(token, generator))
        if generator.random() < 0.5:
            return False
        length = re.search(rb"Content-Length: (\d+)", head)
        try:
            body = wire.exactly(int(length[1]) if length else 0)
        except Closed:
            return False  # the proxy has its answer, and kept the rest of the body
        return set(TOKEN.findall(body)) <= {token}


class Client:
    """One user's connection after the other, each with many exchanges, some left in the middle."""

    def __init__(self, site: Site, number: int, seed: int, exchanges: int) -> None:
        self._site = site
        self._user = USERS[number % 2]
        self._number = number
        self._generator = random.Random(seed * 7_919 + number)
        self._left = exchanges
        self._count = 0
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        try:
            while self._left > 0:
                self._connection()
        except Exception as error:
            self.faults.append(repr(error))

    def _connection(self) -> None:
        client = self._site.client()
        try:
            while self._left > 0 and self._exchange(client):
                pass
        except (ConnectionError, AssertionError):
            self.outcomes["broken"] += 1  # closed in an answer: `Wire` says so by an AssertionError
        finally:
            self._check(client.buffer)
            client.close()

    def _exchange(self, client: Wire) -> bool:
        """One request and its answer; whether the connection goes on."""
        self._left -= 1
        self._count += 1
        self._token = token = f"{self._user}-{self._number:02}-{self._count:05}".encode()
        body = token * self._generator.choice(SIZES)
        method = b"POST" if body else b"GET"
        self._send(client, method, body)
        chance = self._generator.random()
        if chance < 0.01:
            self.outcomes["left"] += 1
            client.reset() if chance < 0.005 else client.close()
            return False
        return self._answer(client)

    def _send(self, client: Wire, method: bytes, body: bytes) -> None:
        token = self._token
        client.send(
            b"%b /r/%b HTTP/1.1\r\nHost: a\r\nX-User: %b\r\nX-Asked: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (method, token, self._user.encode(), token, len(body), body)
        )

    def _answer(self, client: Wire) -> bool:
        while (head := client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 1"):
            self._check(head)
        status = head[9:12]
        body = self._body(client, head.lower())
        self._check(head + body)
        if status == b"200":
            assert TOKEN.findall(head) == [self._token], head
            if body:
                # Of an answer with bytes behind it the client gets what was framed: the token alone (`_too_much`).
                whole = body.startswith(self._token + b":") and body.endswith(b":" + self._token)
                bears = whole or body == self._token
                if not bears:
                    self.faults.append(f"{self._token!r} got {body[:60]!r} … {body[-60:]!r}")
        self.outcomes[status.decode()] += 1
        return b"connection: close" not in head.lower()

    def _body(self, client: Wire, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(client.until(b"\r\n"), 16):
                body += client.exactly(size)
                client.exactly(2)
            client.exactly(2)
            return body
        length = re.search(rb"content-length: (\d+)", head)
        return client.exactly(int(length[1])) if length and not head.startswith(b"http/1.1 204") else b""

    def _check(self, received: bytes) -> None:
        """No token but this exchange's own, in head, body, or what was left."""
        for found in set(TOKEN.findall(received)) - {self._token}:
            self.faults.append(f"{self._token!r} saw {found!r}")


def test_nobody_sees_anothers_bytes(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """20,000 exchanges of two users with faults of each kind: every byte that arrives belongs to its own exchange."""
    seed = int(os.environ.get("TWO_USERS_SEED") or random.randrange(1 << 30))
    print(f"TWO_USERS_SEED={seed}")
    caplog.set_level("CRITICAL", "waitress.queue")
    caplog.set_level("CRITICAL", "pyramid_threaded_proxy")
    upstream = Upstream(seed)
    settings = route("r", origin(upstream.script).url) | {
        "proxy.routes.r.request.set.X-User": "{userid}",
        "proxy.routes.r.read_timeout": "5s",
    }
    here = site(settings, configure=with_policy)
    clients = [Client(here, number, seed, EXCHANGES // CLIENTS + 1) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes: Counter[str] = sum((client.outcomes for client in clients), Counter())
    print(dict(outcomes), dict(upstream.seen), f"{upstream.connections} upstream connections")
    assert [fault for client in clients for fault in client.faults] == []
    assert upstream.mixed == []
    assert outcomes.total() >= EXCHANGES
    assert outcomes["200"] > 0.8 * EXCHANGES
    assert min(outcomes["502"], outcomes["broken"], outcomes["left"]) > 50
    assert set(upstream.seen) == {fault.__name__ for fault in FAULTS} | {"early"}
    assert upstream.connections < EXCHANGES / 4  # they are reused


def test_an_answer_before_its_request_ends_the_connection(origin: MakeOrigin, site: MakeSite) -> None:
    """What comes on an idle connection is nobody's answer: the next user is asked for on a new one."""
    idle = threading.Event()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(request.target.encode())
            if request.target == "/alice":
                assert idle.wait(10)
                wire.answer(b"/alice's second")

    upstream = origin(script)
    here = site(route("r", upstream.url))
    assert here.get("/r/alice").body == b"/alice"
    idle.set()
    wait_until(lambda: upstream.wires[0].sock.fileno() < 0, "the end of the connection")
    assert here.get("/r/bob").body == b"/bob"
    assert upstream.accepted == 2
