"""Faults of real processes: upstreams that refuse, break off, hang, talk nonsense, are killed and come back."""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyramid_threaded_proxy.upstream import names as names_module
from tests.support.fault_origin import FRAMINGS, HOWS, STAGES, OriginProcess, sealed
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, own_view, route
from tests.support.site_process import SiteProcess
from tests.support.waiting import PATIENCE

EXCHANGES = 10_000
CLIENTS = 12
MIB = 1 << 20
TIMEOUTS = {"read_timeout": "250ms", "health__fails": "0"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[OriginProcess]:
    """One upstream, which a test leaves as it was."""
    with OriginProcess() as process:
        yield process
        process.restart_if_dead()


@pytest.fixture(scope="module")
def proxy(upstream: OriginProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    """One application before it."""
    with SiteProcess(tmp_path_factory.mktemp("site"), route("r", upstream.url, **TIMEOUTS)) as process:
        yield process


def ask(connection: http.client.HTTPConnection, route: str, target: str, method: str = "GET", body: bytes = b"") -> str:
    """Ask, and judge what comes: ``whole``, an error's status, or ``broken``. Anything else is a wrong body."""
    try:
        connection.request(method, route + target, body or None)
        response = connection.getresponse()
        received = response.read()
    except (http.client.HTTPException, ConnectionError):
        connection.close()
        return "broken"
    if response.status != 200:
        assert response.status in (502, 503, 504), response.status
        return str(response.status)
    assert received == sealed(target), f"{target}: {len(received)} bytes are not its own"
    return "whole"


def ask_once(proxy: SiteProcess, target: str) -> str:
    """The same on a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)) as connection:
        return ask(connection, "/r", target)


def is_an_end(framing: str, stage: str, how: str) -> bool:
    """Whether the fault is none: a body framed by close ends so, as far as anybody can tell."""
    return framing == "close" and stage == "body" and how in ("close", "kill", "garbage")


FAULTS = [
    (framing, stage, how)
    for framing in FRAMINGS
    for stage in STAGES
    for how in HOWS
    if (stage != "size-line" or framing == "chunked") and not is_an_end(framing, stage, how)
]


@pytest.mark.parametrize(("framing", "stage", "how"), FAULTS)
def test_a_fault_at_a_stage(framing: str, stage: str, how: str, upstream: OriginProcess, proxy: SiteProcess) -> None:
    """Before the answer's head is whole the client gets 502 or 504, behind it a broken connection; then all is well."""
    seen = ask_once(proxy, f"/{framing}/{stage}/{how}/1/100000")
    if stage in ("before", "head"):
        assert seen == ("504" if how == "hang" else "502")
    else:
        assert seen == "broken" or (how == "reset" and seen == "502")  # a reset takes along what was not read yet
    if how == "kill":
        upstream.wait_killed()
        assert ask_once(proxy, "/length/whole/-/2/10") == "502"
        upstream.restart_if_dead()
    assert ask_once(proxy, f"/{framing}/whole/-/3/100000") == "whole"


class Client:
    """Many exchanges of every kind, one after the other, on kept connections as long as those last."""

    def __init__(self, proxy: SiteProcess, upstreams: list[OriginProcess], seed: str, exchanges: int) -> None:
        self._proxy = proxy
        self._upstreams = upstreams
        self._random = random.Random(seed)
        self._exchanges = exchanges
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            self.faults.append(repr(error))

    def _run(self) -> None:
        done = 0
        while done < self._exchanges:
            with closing(self._connect()) as connection:
                for _ in range(min(self._random.randrange(1, 100), self._exchanges - done)):
                    done += 1
                    self._exchange(connection, done)

    def _exchange(self, connection: http.client.HTTPConnection, number: int) -> None:
        if self._random.random() < 0.02:
            return self._leave()
        seen = self._ask(connection, number)
        self.seen[seen] += 1
        if seen != "whole":
            for upstream in self._upstreams:
                upstream.restart_if_dead()

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy.port, timeout=PATIENCE)
        if self._random.random() < 0.1:
            connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
        return connection

    def _target(self, number: int) -> tuple[str, str]:
        """A route and a target."""
        framing, stage, how = self._random.choice(FAULTS)
        while framing == "close" and how == "kill":
            framing, stage, how = self._random.choice(FAULTS)
        # A killed process's connections end in an orderly way: nobody can tell that from the end of such a body.
        route = "/steady" if framing == "close" else self._random.choice(("/r", "/two"))
        size = self._random.choice((0, 10, 1000, 20_000, 200_000))
        rare = {"kill": 0.1, "hang": 0.2}.get(how, 1.0)
        if self._random.random() > 0.3 * rare:
            stage, how = "whole", "-"
        return route, f"/{framing}/{stage}/{how}/{number}-{self._random.randrange(1 << 30)}/{size}"

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> str:
        route, target = self._target(number)
        if self._random.random() < 0.15:
            return ask(connection, route, target, "POST", sealed(target))
        return ask(connection, route, target)

    def _leave(self) -> None:
        """Ask for much, and go away."""
        with socket.create_connection(("127.0.0.1", self._proxy.port), timeout=PATIENCE) as sock:
            sock.sendall(b"GET /r/chunked/whole/-/1/200000 HTTP/1.1\r\nHost: a\r\n\r\n")
            if self._random.random() < 0.5:
                with suppress(ConnectionError):
                    sock.recv(1000)
        self.seen["left"] += 1


def run(proxy: SiteProcess, upstreams: list[OriginProcess], seed: int, exchanges: int) -> Counter[str]:
    """Let all clients have their exchanges; what they have seen, which holds no wrong body."""
    clients = [Client(proxy, upstreams, f"{seed}-{number}", exchanges // CLIENTS + 1) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fault for client in clients for fault in client.faults] == []
    return sum((client.seen for client in clients), Counter())


def counts_of(proxy: SiteProcess) -> Counter[str]:
    """What the proxy's metrics say: exchanges by status and end, requests refused, and what is in flight."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(proxy.get("/status/metrics").decode()):
        for sample in family.samples:
            if sample.name == "proxy_exchanges_total":
                whole = "whole" if sample.labels["ended"] == "whole" else "not whole"
                found[f"{sample.labels['code']} {whole}"] += int(sample.value)
            elif sample.name == "proxy_refused_total":
                found["refused"] += int(sample.value)
            elif sample.name == "proxy_exchanges_active":
                found["active"] += int(sample.value)
    return found


def agree(seen: Counter[str], counted: Counter[str]) -> None:
    """The metrics count what the clients have counted, exchange by exchange.

    A broken answer has a good status and a bad end. What the proxy counts besides is those clients' who left: they are
    gone to it, or were served or failed before it could know; some may not have been heard at all.
    """
    counted["503 not whole"] += counted.pop("refused", 0)
    assert counted.pop("active", 0) == 0
    words = {"200 whole": "whole", "502 not whole": "502", "503 not whole": "503", "504 not whole": "504"}
    words["200 not whole"] = "broken"
    others = Counter({name: counted[name] - seen[word] for name, word in words.items()})
    others.update({name: count for name, count in counted.items() if name not in words})
    assert min(others.values()) >= 0, (seen, counted)
    assert set(+others) <= {"499 not whole", *words}
    assert others.total() <= seen["left"], (seen, counted)


def test_no_body_is_wrong_or_silently_short(tmp_path: Path) -> None:
    """10,000 exchanges with faults at random: a whole answer, a true error or a broken connection; nothing is left."""
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(1 << 30))
    print(f"FAULTS_SEED={seed}")
    with OriginProcess() as first, OriginProcess() as second, OriginProcess() as steady:
        two = f"{first.url} {second.url}"
        settings = {
            "proxy.threads": "2",
            **route("r", first.url, **TIMEOUTS),
            **route("steady", steady.url, **TIMEOUTS),
            **route("two", two, read_timeout="250ms", health__pause="200ms"),
            "proxy.status.prefix": "/status",
            "proxy.status.permission": "watch",
        }
        with SiteProcess(tmp_path, settings) as proxy:
            run(proxy, [first, second], seed, EXCHANGES // 5)
            before, counted = proxy.quiet_vitals(), counts_of(proxy)
            seen = run(proxy, [first, second], seed + 1, EXCHANGES)
            after = proxy.quiet_vitals()
            agree(seen, counts_of(proxy) - counted)
            print(dict(seen), first.kills + second.kills, "kills", before, after)
            assert seen.total() >= EXCHANGES
            assert seen["whole"] > EXCHANGES * 0.6
            assert min(seen["broken"], seen["502"], seen["left"]) > 100
            assert seen["504"] > 10
            assert first.kills > 3
            assert steady.kills == 0
            assert (after.descriptors, after.threads, after.in_flight) == (before.descriptors, before.threads, 0)
            assert after.memory - before.memory < 8 * MIB
        for word in ("Traceback", "unforeseen", "ResourceWarning", "Exception ignored"):
            assert word not in proxy.log, proxy.log


def test_a_name_that_stops_resolving(origin: MakeOrigin, site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known addresses are believed for a while; then it is 502, other pages stay up, and the name may come back."""
    upstream = origin(echo)
    here = site(route("r", f"http://name.test:{upstream.port}", keepalive="0"), configure=own_view)
    works = True
    looked_up = threading.Semaphore(0)

    def getaddrinfo(host: str, port: int, *arguments: object, **named: object) -> list[object]:
        if host == "name.test":
            looked_up.release()
            if not works:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = "127.0.0.1"
        return real(host, port, *arguments, **named)  # type: ignore[arg-type]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert here.get("/r/").status == 200
    works = False
    assert here.get("/r/").status == 200
    assert looked_up._value == 1
    monkeypatch.setattr(names_module, "LOOK_UP_SECONDS", 0.0)
    here.engine.upstreams.names._names.clear()
    assert here.get("/r/").status == 502
    assert here.get("/own").status == 200
    works = True
    assert here.get("/r/").status == 200


def upload(sock: socket.socket, size: int) -> bytes:
    """Send a body; what comes back, nothing if the connection is closed or reset."""
    head = f"POST /r/x HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
    try:
        sock.sendall(head + bytes(size))
        return sock.recv(1000)
    except ConnectionError:
        return b""


def test_a_full_disk_under_the_request_body(upstream: OriginProcess, tmp_path: Path) -> None:
    """A body that waitress can't store costs its client the connection; everybody else is served as before."""
    with SiteProcess(tmp_path, route("r", upstream.url), limits={"RLIMIT_FSIZE": MIB}, recv_bytes=262144) as proxy:
        assert ask_once(proxy, "/length/whole/-/1/10") == "whole"
        before = proxy.quiet_vitals()
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as sock:
                assert upload(sock, 8 * MIB) == b""
            assert proxy.get("/own") == b"own"
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE)
        target = "/length/whole/-/1/800000"
        assert ask(connection, "/r", target, "POST", sealed(target)) == "whole"
        connection.close()
        assert proxy.quiet_vitals()[:3] == before[:3]
