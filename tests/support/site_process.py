"""An application under waitress in a process of its own, which tells what it holds: nobody else's memory is counted."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pyramid_threaded_proxy.accesslog import JsonFormatter, access_log
from tests.support.paths import ROOT
from tests.support.site import Anybody, Policy
from tests.support.waiting import PATIENCE, wait_until


class Vitals(NamedTuple):
    """What a process holds; `memory` is in bytes."""

    descriptors: int
    threads: list[str]
    in_flight: int
    memory: int


class SiteProcess:
    """Starts the process, and asks it. `settings` are Pyramid's, `options` waitress's (`untuned`: no other than these);
    `limits` are for `setrlimit`."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str],
        python: tuple[str, ...] = ("-X", "dev"),
        limits: dict[str, int] | None = None,
        **options: Any,
    ) -> None:
        self.log_path = folder / "site.log"
        told = json.dumps([settings, options, limits or {}])
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *python, "-m", __name__, told], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log
        self.port = int(line)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text()

    def get(self, path: str, user: str = "") -> bytes:
        """The body of one of the application's own pages, or of the status page."""
        with closing(self._connect()) as connection:
            return _read(connection, path, user)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def vitals(self) -> Vitals:
        """What it holds at this moment."""
        return Vitals(*json.loads(self.get("/vitals")))

    def quiet_vitals(self) -> Vitals:
        """What it holds when nothing is in flight and nothing is kept for reuse; at least one exchange has been."""
        wait_until(lambda: self.vitals().in_flight == 0, "the end of all exchanges")
        seen: list[Vitals] = []
        # All on one connection: one for each would be counted, or not, while it is closed.
        with closing(self._connect()) as connection:
            _read(connection, "/forget")

            def settled() -> bool:
                seen.append(Vitals(*json.loads(_read(connection, "/vitals"))))
                return len(seen) > 20 and len({vitals.descriptors for vitals in seen[-20:]}) == 1

            wait_until(settled, "an end of closing")
        return seen[-1]

    def forget_peak(self) -> None:
        """`peak` counts from here on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most bytes of memory that the process has had at once."""
        return _status(self.process.pid, "VmHWM")

    def __enter__(self) -> SiteProcess:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


def _read(connection: http.client.HTTPConnection, path: str, user: str = "") -> bytes:
    connection.request("GET", path, headers={"X-User": user} if user else {})
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    return body


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


# In the process


def _with_silent_names() -> None:
    """The name server of names below ``.silent`` never answers; all others are the system's."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".silent"):
            threading.Event().wait()
        return real(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def _write_access_log(path: str) -> None:
    """As JSON, to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonFormatter())
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False


def _main(settings: dict[str, str], options: dict[str, Any], limits: dict[str, int]) -> None:
    import gc
    import resource

    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import Response
    from waitress import create_server

    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    _with_silent_names()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.getLogger("pyramid_threaded_proxy.operator_log").setLevel(logging.ERROR)
    if "test.access_log" in settings:
        _write_access_log(settings["test.access_log"])
    config = Configurator(settings=settings)
    config.include("pyramid_threaded_proxy")
    if "test.users" in settings:
        config.set_security_policy(Policy())
        config.set_root_factory(settings["test.users"])
    elif "proxy.status.prefix" in settings:
        config.set_security_policy(Anybody())
    engine = config.registry["pyramid_threaded_proxy.engine"]

    def vitals(request: Request) -> Response:
        threads = sorted(thread.name for thread in threading.enumerate())
        held = [len(os.listdir("/proc/self/fd")), threads, engine.admission.in_flight, _status(os.getpid(), "VmRSS")]
        return Response(json_body=held)

    def forget(request: Request) -> Response:
        engine.drain()
        engine.pipes.close()
        gc.collect()  # an error's traceback may keep a file of waitress's for a while
        return Response()

    def own(request: Request) -> Response:
        return Response("own")

    def logout(request: Request) -> Response:
        return Response(str(request.proxy_exchanges.close(userid=request.authenticated_userid)))

    for view in (vitals, forget, own, logout):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)
    if not options.pop("untuned", False):
        options = {"threads": 4, "asyncore_use_poll": True, "connection_limit": 5000, "backlog": 2000, **options}
    server = create_server(config.make_wsgi_app(), listen="127.0.0.1:0", **options)
    print(server.effective_port, flush=True)
    server.run()


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
