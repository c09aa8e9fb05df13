"""Small sends and receives: the same with and without letting go of the interpreter's lock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.loop import syscalls
from pyramid_threaded_proxy.loop.endpoint import Endpoint, TlsEndpoint
from pyramid_threaded_proxy.loop.syscalls import SMALL, Receiver, receive, send, send_small

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the lock is always let go of")

#: Prints whether the lock is kept, in a process of its own that may use so many cores.
CHOICE = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
from pyramid_threaded_proxy.loop import syscalls
print(syscalls._LIBC is not None, len(os.sched_getaffinity(0)))
"""


@pytest.fixture(params=["kept", "let go"])
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, whatever this machine would choose."""
    if request.param == "let go":
        monkeypatch.setattr(syscalls, "_LIBC", None)
    elif sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        monkeypatch.setattr(syscalls, "_LIBC", syscalls._libc())
        assert syscalls._LIBC is not None
    else:
        pytest.skip("elsewhere the lock is always let go of")
    return str(request.param)


@pytest.fixture
def ends(stack: ExitStack) -> tuple[Endpoint, Endpoint]:
    """Two ends of a connection."""
    near, far = map(stack.enter_context, socket.socketpair())
    near.setblocking(False)
    far.setblocking(False)
    return Endpoint(near), Endpoint(far)


def heard(endpoint: Endpoint, receiver: Receiver) -> bytes:
    """What an endpoint receives in a loop that has this receiver."""
    loop: Any = SimpleNamespace(receiver=receiver)
    endpoint.loop = loop
    return receive(endpoint)


@linux
@pytest.mark.parametrize("cores", [1, 2])
def test_the_lock_is_kept_where_another_core_may_wait_for_it(cores: int) -> None:
    """On a single core nobody does, and then the plain call is the quicker one."""
    told = subprocess.run(
        [sys.executable, "-c", CHOICE.format(cores=cores)], capture_output=True, text=True, check=True
    )
    kept, found = told.stdout.split()
    assert kept == str(int(found) > 1)


@pytest.mark.parametrize("size", [1, 1000, SMALL, SMALL + 1, 3 * SMALL])
def test_what_is_sent_is_received(lock: str, ends: tuple[Endpoint, Endpoint], size: int) -> None:
    """Bytes of any size, zeros among them, and views of bytes."""
    near, far = ends
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    for given_as in (data, memoryview(data)):
        assert send(near, given_as) == size
        came = b""
        receiver = Receiver()
        while len(came) < size:
            came += heard(far, receiver)
        assert came == data


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20))
def test_what_was_received_stays(messages: list[bytes]) -> None:
    """A receiver is used for one peer after the other: what the first one sent is no longer in it, but in the bytes."""
    receiver, came = Receiver(), []
    for message in messages:
        with ExitStack() as stack:
            near, far = map(stack.enter_context, socket.socketpair())
            near.send(message)
            came.append(heard(Endpoint(far), receiver))
    assert came == messages


def test_nothing_to_receive_and_no_room_to_send(lock: str, ends: tuple[Endpoint, Endpoint]) -> None:
    """Both are BlockingIOError, as of any socket that does not block; what had room was sent."""
    near, far = ends
    with pytest.raises(BlockingIOError):
        heard(far, Receiver())
    sent: list[int] = []

    def fill() -> None:
        while True:
            sent.append(send(near, b"x" * 1000))

    with pytest.raises(BlockingIOError):
        fill()
    receiver, left = Receiver(), sum(sent)
    while left:
        left -= len(heard(far, receiver))
    with pytest.raises(BlockingIOError):
        heard(far, receiver)


def test_the_end_and_a_broken_connection(lock: str, ends: tuple[Endpoint, Endpoint]) -> None:
    """The end is b""; sending to who has gone is an OSError, and no signal."""
    near, far = ends
    far.sock.close()
    assert heard(near, Receiver()) == b""
    with pytest.raises(BrokenPipeError):
        send(near, b"x")


def test_a_closed_socket_is_nobodys(lock: str, ends: tuple[Endpoint, Endpoint], stack: ExitStack) -> None:
    """Its number may be a stranger's by now: that one hears nothing, and nothing of it is read."""
    near, _ = ends
    number = near.fd
    near.sock.close()
    strangers = [stack.enter_context(each) for each in socket.socketpair()]
    assert number in [each.fileno() for each in strangers]
    for each in strangers:
        each.send(b"a secret")
    with pytest.raises(OSError, match="Bad file descriptor"):
        send(near, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        heard(near, Receiver())
    assert [each.recv(100) for each in strangers] == [b"a secret", b"a secret"]


def test_a_small_send_says_where_the_socket_must_be_asked(lock: str, ends: tuple[Endpoint, Endpoint]) -> None:
    """It sends what can be sent at once, and otherwise nothing at all: what is long, no bytes, or has no room."""
    near, far = ends
    took = send_small(near.sock, b"small\0")
    assert took == (6 if lock == "kept" else -1)
    view: Any = memoryview(b"a view")
    assert [send_small(near.sock, data) for data in (view, b"x" * (SMALL + 1))] == [-1, -1]
    if took > 0:
        assert far.sock.recv(2 * SMALL) == b"small\0"
    with pytest.raises(BlockingIOError):
        far.sock.recv(1)
    while send_small(near.sock, b"x" * 1000) > 0:
        pass
    near.sock.close()
    assert send_small(near.sock, b"x") == -1


def test_what_is_encrypted_goes_through_its_socket(lock: str) -> None:
    """A TLS connection's descriptor carries other bytes than those that are to be sent."""

    class Told:
        """A socket that encrypts."""

        def fileno(self) -> int:
            return 1

        def send(self, data: bytes) -> int:
            return -len(data)

        def recv(self, size: int) -> bytes:
            return b"%d" % size

    told: Any = Told()
    endpoint = TlsEndpoint(told)
    assert send(endpoint, b"four") == -4
    assert heard(endpoint, Receiver()) == b"%d" % SMALL
