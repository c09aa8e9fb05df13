"""Real processes for tests: `pserve` with an application of its own, and what it has logged."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.origin import Gate
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire, get, read_answer

#: The application that the processes run. /own answers at once, /held asks the upstream and waits for it.
APPLICATION = '''
import http.client, os, signal, sys, threading, time
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_threaded_proxy.detach import server

def own(request):
    return Response("own")

def held(request):
    connection = http.client.HTTPConnection(request.registry.settings["upstream"])
    connection.request("GET", "/held")
    body = connection.getresponse().read()
    connection.close()
    print("held has been answered", flush=True)
    return Response(body)

def taken(request):
    """What the process has started, and whose its signals are."""
    handlers = [getattr(signal.getsignal(number), "__module__", None) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("pproxy"))
    return Response(json_body=[handlers, threads])

def fork(request):
    """The exit status of a child that is told to stop while it is the application's own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"x")  # from here on: Python forgets signals that come in the midst of a fork
        while True:
            time.sleep(0.01)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    os.kill(child, signal.SIGTERM)
    return Response(json_body=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def complete(exchange):
    """The `complete` hook: takes as long as the upstream likes."""
    connection = http.client.HTTPConnection(exchange.registry.settings["upstream"])
    connection.request("GET", "/complete")
    connection.getresponse().read()
    connection.close()
    print("the complete hook has run", flush=True)

def tell_pid(handler, registry):
    def tween(request):
        response = handler(request)
        response.headers["X-Pid"] = str(os.getpid())
        return response
    return tween

def main(global_config, **settings):
    config = Configurator(settings=settings)
    config.add_tween("application.tell_pid")
    for view in (own, held, taken, fork):
        config.add_route(view.__name__, "/" + view.__name__)
        config.add_view(view, route_name=view.__name__)
    server.FIRST_REQUEST = float(settings.get("first_request", server.FIRST_REQUEST))
    if "exit_on_sigterm" in settings:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    return config.make_wsgi_app()
'''

INI = """
[app:main]
use = call:application:main
pyramid.includes = pyramid_threaded_proxy
upstream = {upstream}
proxy.routes.r.prefix = /r
proxy.routes.r.upstream = http://{upstream}
proxy.routes.r.public = true
{settings}

[server:main]
use = egg:waitress#main
{server}
"""

#: The section of an ini file that has everything written to standard error, with the logger's name.
LOGGING = """
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(name)s: %(message)s
"""


def _lines(settings: dict[str, str]) -> str:
    return "\n".join(f"{key} = {value}" for key, value in settings.items())


def write_site(folder: Path, upstream: str, settings: dict[str, str] | None = None, **server: str) -> Path:
    """Write the application and its ini file, whose path is returned; `server` are waitress's settings."""
    (folder / "application.py").write_text(APPLICATION, encoding="utf-8")
    ini = folder / "site.ini"
    server = {"listen": "127.0.0.1:0", **server}
    text = INI.format(upstream=upstream, settings=_lines(settings or {}), server=_lines(server))
    ini.write_text(text + LOGGING, "utf-8")
    return ini


class Process:
    """A Python process of its own session; what it writes is read by a thread."""

    def __init__(self, folder: Path, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", *command], cwd=folder, env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, pass_fds=pass_fds,
        )  # fmt: skip
        self.pid = self.process.pid
        self.log: list[str] = []
        self._clients: list[Wire] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log.append(line)

    @property
    def text(self) -> str:
        """What it has written."""
        return "".join(self.log)

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until it has written something `count` times; what matched."""

        def matches() -> list[str]:
            found = re.findall(pattern, self.text)
            assert len(found) >= count or self._reader.is_alive(), f"it ended without {pattern!r}"
            return found if len(found) >= count else []

        try:
            found: list[str] = wait_until(matches, f"{pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it has written:\n{self.text[-4000:]}") from None
        return found

    def ports(self, count: int = 1) -> list[int]:
        """The ports that waitress says it listens on."""
        return [int(port) for port in self.wait_for(r"Serving on http://127\.0\.0\.1:(\d+)", count)]

    def connect(self, port: int) -> Wire:
        """A connection to it, closed when the test ends."""
        self._clients.append(Wire(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)))
        return self._clients[-1]

    def tell(self, number: int) -> None:
        """Send a signal to this process alone."""
        self.process.send_signal(number)

    def tell_all(self, number: int) -> None:
        """Send a signal to the process and its children, as a terminal does."""
        os.killpg(self.pid, number)

    def ended(self) -> int:
        """Its exit code; all that it has started has ended too, and nothing is left unread."""
        code = self.process.wait(PATIENCE)
        self.all_ended()
        return code

    def all_ended(self) -> None:
        """Wait until nobody has its output open any more."""
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), f"a child goes on:\n{self.text}"

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            self.tell_all(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for client in self._clients:
            client.close()


def pserve(ini: Path, *options: str) -> Process:
    return Process(ini.parent, "-m", "pyramid.scripts.pserve", *options, str(ini))


def ask(client: Wire, target: str) -> bytes:
    """The body of an answer on a kept connection."""
    client.send(get(target))
    first, _, body = read_answer(client)
    assert first == "HTTP/1.1 200 OK", body
    return body


def first_exchange(process: Process, port: int, gate: Gate | None = None) -> Wire:
    """Relay something and wait until the process has taken its signals; the connection is kept, a gate stays shut."""
    client = process.connect(port)
    if gate is not None:
        gate.opened.set()
    assert ask(client, "/r/first") == b"/first"
    if gate is not None:
        gate.wait_asked()
        gate.opened.clear()
    wait_until(lambda: b"stopping" in ask(client, "/taken"), "taking the signals")
    return client


def free_port() -> int:
    """A port on which nobody listens at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except OSError:
        return True
    return False


def wait_refused(port: int) -> None:
    """Wait until nobody listens."""
    wait_until(lambda: _is_refused(port), "an end of listening")


@contextmanager
def listening(
    command: Sequence[str | Path], port: int, said: Any = subprocess.DEVNULL, **options: Any
) -> Iterator[None]:
    """A program that listens on `port`, until it is told to end; what it says goes to `said`."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, **options)
    try:
        wait_until(lambda: not _is_refused(port), "somebody who listens")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)
