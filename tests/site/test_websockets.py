"""WebSockets of a real library, client and server, talk through a switched connection as if it were not there."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.config import Configurator
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import wait_until

MIB = 1 << 20
TEXT = "Grüße, 世界 🌍 "


class Peer:
    """A WebSocket server that runs `handler` for each connection, and remembers their requests."""

    def __init__(self, handler: Callable[[ServerConnection], None], **options: Any) -> None:
        self.requests: list[Any] = []
        self._handler = handler
        self._server: Server = serve(self._run, "127.0.0.1", 0, max_size=32 * MIB, **options)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _run(self, connection: ServerConnection) -> None:
        self.requests.append(connection.request)
        with suppress(ConnectionClosed):
            self._handler(connection)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)


@contextmanager
def served(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[Peer]:
    peer = Peer(handler, **options)
    try:
        yield peer
    finally:
        peer.close()


def echo_messages(connection: ServerConnection) -> None:
    """Sends each message back as the kind that it was."""
    for message in connection:
        connection.send(message)


def dial(site: Site, path: str = "/ws/x", **options: Any) -> ClientConnection:
    options = {"max_size": 32 * MIB, "proxy": None, **options}
    return connect(f"ws://{site.authority}{path}", **options)


@pytest.fixture
def here(site: MakeSite) -> Iterator[Site]:
    """A site in front of an echo."""
    with served(echo_messages) as peer:
        yield site(route("ws", peer.url, upgrade="websocket"))


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_come_back(here: Site, compression: str | None) -> None:
    """Text and bytes, empty and long, compressed by the two ends or not, arrive as they were sent."""
    with dial(here, compression=compression) as client:
        assert bool(client.protocol.extensions) is (compression is not None)
        noise = random.Random(1).randbytes(70_000)
        for message in ("", "a", TEXT * 1000, b"", b"\0" * 125, bytes(range(256)) * 300, noise):
            client.send(message)
            assert client.recv(timeout=10) == message


def test_fragments_stay_fragments(site: MakeSite) -> None:
    """A message sent in pieces arrives in as many, both ways."""
    counts: list[int] = []

    def handler(connection: ServerConnection) -> None:
        pieces = list(connection.recv_streaming())
        counts.append(len(pieces))
        connection.send(iter(pieces))

    with served(handler) as peer, dial(site(route("ws", peer.url, upgrade="websocket"))) as client:
        sent = [TEXT * 10, "", "b" * 70_000, "c"]
        client.send(iter(sent))
        received = list(client.recv_streaming())
    assert [piece for piece in received if piece] == [piece for piece in sent if piece]
    assert counts[0] >= len(sent)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_a_message_of_16_mib(here: Site, compression: str | None) -> None:
    """What no buffer of ours could hold arrives whole, while the other way is used as well."""
    message = random.Random(2).randbytes(16 * MIB)
    with dial(here, compression=compression, ping_interval=None) as client:
        client.send(message)
        client.send("behind it")
        assert client.recv(timeout=30) == message
        assert client.recv(timeout=10) == "behind it"


def test_pings_are_answered_by_the_other_end(site: MakeSite) -> None:
    """Ping and pong pass with their bytes, from either end."""
    answered = threading.Event()

    def handler(connection: ServerConnection) -> None:
        assert connection.ping(b"from the server").wait(10)
        answered.set()
        echo_messages(connection)

    with served(handler) as peer, dial(site(route("ws", peer.url, upgrade="websocket"))) as client:
        assert client.ping(b"from the client").wait(10)
        assert answered.wait(10)
        assert client.latency > 0


@pytest.mark.parametrize("code", [CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, 3000, 4999])
@pytest.mark.parametrize("first", ["client", "server"])
def test_close_codes_pass(site: MakeSite, code: int, first: str) -> None:
    """Whoever closes first, the other one reads its code and reason."""
    seen: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        if first == "server":
            connection.close(code, "the reason")
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=10)
        seen.append((connection.close_code, connection.close_reason))

    with served(handler) as peer:
        made = site(route("ws", peer.url, upgrade="websocket"))
        with dial(made) as client:
            if first == "client":
                client.close(code, "the reason")
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=10)
            assert (client.close_code, client.close_reason) == (code, "the reason")
        wait_until(lambda: seen, "the server's end")
    assert seen == [(code, "the reason")]


def test_a_lost_connection_is_1006_on_the_other_end(site: MakeSite) -> None:
    """Without a close frame the other end sees a lost connection, not an orderly end."""
    seen: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        with pytest.raises(ConnectionClosedError):
            connection.recv(timeout=10)
        seen.append(connection.close_code)

    with served(handler) as peer:
        made = site(route("ws", peer.url, upgrade="websocket"))
        with dial(made) as client:
            wait_until(lambda: peer.requests, "the connection")
            client.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: seen, "the server's end")
    assert seen == [CloseCode.ABNORMAL_CLOSURE]


def test_subprotocols_are_agreed_end_to_end(site: MakeSite) -> None:
    """What the client offers goes up, and what the server picks comes down."""
    with served(echo_messages, subprotocols=[Subprotocol("chat.v2"), Subprotocol("chat.v1")]) as peer:
        made = site(route("ws", peer.url, upgrade="websocket"))
        with dial(made, subprotocols=[Subprotocol("other"), Subprotocol("chat.v1")]) as client:
            assert client.subprotocol == "chat.v1"
    assert peer.requests[0].headers["Sec-WebSocket-Protocol"] == "other, chat.v1"


def test_what_goes_up_with_the_handshake(site: MakeSite) -> None:
    """Path and query as they came, our own forwarded fields, and none of the application's cookies."""
    with served(echo_messages) as peer:
        made = site(route("ws", peer.url + "/base", upgrade="websocket"))
        fields = {"Cookie": "session=secret; theirs=1", "Authorization": "Basic x", "X-Forwarded-For": "6.6.6.6"}
        with dial(made, "/ws/a%2Fb?q=1", additional_headers=fields):
            wait_until(lambda: peer.requests, "the handshake")
    request = peer.requests[0]
    assert request.path == "/base/a%2Fb?q=1"
    assert request.headers["Cookie"] == "theirs=1"
    assert request.headers["X-Forwarded-For"] == "127.0.0.1"
    assert "Authorization" not in request.headers
    assert request.headers["Host"] == peer.url.removeprefix("http://")


def test_who_may_not_pass_gets_no_handshake(site: MakeSite) -> None:
    """The permission is asked before the upgrade: 403 for others, and nothing goes up for them."""

    class Root:
        __acl__ = ((Allow, "alice", "view"),)

        def __init__(self, request: Any) -> None:
            pass

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(Root)

    with served(echo_messages) as peer:
        settings = route("ws", peer.url, upgrade="websocket", permission="view")
        made = site(settings, configure=configure)
        with pytest.raises(InvalidStatus) as refused, dial(made, additional_headers={"X-User": "bob"}):
            pass
        assert refused.value.response.status_code == 403
        assert peer.requests == []
        with dial(made, additional_headers={"X-User": "alice"}) as client:
            client.send("hello")
            assert client.recv(timeout=10) == "hello"


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_foreign_pages_are_refused(here: Site, origin: Any) -> None:
    """A page of another site's gets 403, whatever cookies its browser would have sent along."""
    with pytest.raises(InvalidStatus) as refused, dial(here, origin=origin):
        pass
    assert refused.value.response.status_code == 403
    with dial(here, origin=here.url) as client:  # type: ignore[arg-type]
        client.send("own")
        assert client.recv(timeout=10) == "own"


def test_a_handshake_that_the_server_refuses_is_an_answer(site: MakeSite) -> None:
    """What the upstream says instead of 101 reaches the client with its body."""

    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(418, "no coffee\n")

    with served(echo_messages, process_request=refuse) as peer:
        made = site(route("ws", peer.url, upgrade="websocket"))
        with pytest.raises(InvalidStatus) as refused, dial(made):
            pass
        assert (refused.value.response.status_code, refused.value.response.body) == (418, b"no coffee\n")


def test_many_at_once(here: Site) -> None:
    """Thirty connections with traffic both ways never see each other's messages."""
    faults: list[Any] = []

    def talk(number: int) -> None:
        generator = random.Random(number)
        try:
            with dial(here) as client:
                for turn in range(10):
                    message = f"{number}:{turn}:" + "x" * generator.randrange(100_000)
                    client.send(message)
                    if client.recv(timeout=20) != message:
                        faults.append((number, turn))
        except Exception as error:
            faults.append((number, repr(error)))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
