"""One connection: what goes wrong there is one error, without secrets."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyramid_threaded_proxy.shared.store import Store, StoreAway
from tests.support.certificates import Authority
from tests.support.processes import free_port
from tests.support.programs import program_path
from tests.support.redis_server import RedisServer


def test_answers_come_in_order(redis_server: RedisServer) -> None:
    """Several commands are one round trip."""
    store = Store(redis_server.url, 5)
    assert store.ask(("SET", "a", 1), ("INCR", "a"), ("GET", "a")) == [True, 2, b"2"]
    store.close()


def test_what_is_refused_is_an_error(redis_server: RedisServer) -> None:
    """One refused command is enough; its text is Redis's, and not the command's."""
    store = Store(redis_server.url, 5)
    with pytest.raises(StoreAway, match=r"^value is not an integer"):
        store.ask(("SET", "a", "secret"), ("INCR", "a"))
    store.close()


def test_nobody_there() -> None:
    """A refused connection."""
    with pytest.raises(StoreAway, match="refused"):
        Store(f"redis://127.0.0.1:{free_port()}", 5).ask(("PING",))


def test_a_server_that_hangs(redis_server: RedisServer) -> None:
    """It is waited for as long as was said, and asked once."""
    store = Store(redis_server.url, 0.1)
    store.ask(("PING",))
    redis_server.hold()
    began = time.monotonic()
    with pytest.raises(StoreAway, match=r"(?i)time"):
        store.ask(("PING",))
    assert time.monotonic() - began < 2
    store.close()


def test_a_wrong_password(tmp_path: Path, stack: ExitStack) -> None:
    """The error has neither the password that was given nor the right one; with the right one it is let in."""
    server = RedisServer(program_path("redis-server"), tmp_path, "--requirepass", "r1ght p@ss")
    stack.callback(server.close)
    with pytest.raises(StoreAway) as caught:
        Store(f"redis://:wr0ng@127.0.0.1:{server.port}/0", 5).ask(("PING",))
    assert not {"wr0ng", "r1ght"} & set(str(caught.value).replace(":", " ").split())
    store = Store(f"redis://default:r1ght%20p%40ss@127.0.0.1:{server.port}/0", 5)
    assert store.ask(("PING",)) == [True]
    store.close()


def test_tls(tmp_path: Path, stack: ExitStack, authority: Authority) -> None:
    """`rediss://` with an authority of the site's own; one that nobody knows is refused."""
    certificate, key = authority.issue("redis", "IP:127.0.0.1")
    port = free_port()
    options = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority.ca_file)
    server = RedisServer(program_path("redis-server"), tmp_path, *options, *files, port=port)
    stack.callback(server.close)
    store = Store(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca_file}", 5)
    assert store.ask(("PING",)) == [True]
    store.close()
    with pytest.raises(StoreAway, match=r"(?i)certificate"):
        Store(f"rediss://127.0.0.1:{port}/0", 5).ask(("PING",))
