"""A crowd that comes at once: how soon so many exchanges, each with an upstream connection of its own, are under way.

``python -m benchmarks.crowd [COUNT …]`` prints for each count the seconds from the first request that a client sends
until the last one has reached the upstream, the site's processor time until its clients are gone, and beside them, from
the same run, the seconds of a bare loop that connects, sends and accepts as often. Up to `MOST_STOCK` it prints as well
how long the same application without the add-on needs to answer as many clients from its own view. The upstream and
the sites are processes of their own; the clients are connected before.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any

_HEAD = b"GET /crowd/ HTTP/1.1\r\nHost: a\r\n\r\n"
_OWN = b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n"
_PATIENCE = 60.0
#: Stock waitress's time grows with the square of it.
MOST_STOCK = 3000


def _raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _upstream() -> None:
    """Accept and read heads; tell for each `COUNT` on the standard input when so many have come, and drop them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=65535)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    for line in sys.stdin:
        held = _take(listener, int(line))
        print(time.monotonic(), flush=True)
        for sock in held:
            sock.close()


def _take(listener: socket.socket, count: int) -> list[socket.socket]:
    poll, held, heads = select.epoll(), {}, 0
    poll.register(listener, select.EPOLLIN)
    while heads < count:
        for number, _ in poll.poll():
            if number != listener.fileno():
                if held[number].recv(65536).endswith(b"\r\n\r\n"):
                    heads += 1
                poll.unregister(number)
                continue
            try:
                while True:
                    sock = listener.accept()[0]
                    held[sock.fileno()] = sock
                    poll.register(sock, select.EPOLLIN)
            except BlockingIOError:
                pass
    poll.close()
    return list(held.values())


def _site(port: int | None) -> None:
    """Serve an application with a route to the upstream, or one without the add-on."""
    from pyramid.config import Configurator
    from pyramid.response import Response
    from waitress import create_server

    logging.getLogger("waitress.queue").disabled = True  # it paces the server
    settings = {
        "proxy.max_exchanges": "20000",
        "proxy.routes.crowd.prefix": "/crowd",
        "proxy.routes.crowd.upstream": f"http://127.0.0.1:{port}",
        "proxy.routes.crowd.public": "true",
        "proxy.routes.crowd.keepalive": "0",
        "proxy.routes.crowd.retries": "0",
        "proxy.own_cookies": "",
    }
    config = Configurator(settings={} if port is None else settings)
    if port is not None:
        config.include("pyramid_threaded_proxy")
    config.add_route("own", "/own")
    config.add_view(lambda request: Response("own"), route_name="own")
    options: dict[str, Any] = {"asyncore_use_poll": True, "connection_limit": 20000, "backlog": 20000}
    server = create_server(config.make_wsgi_app(), listen="127.0.0.1:0", **options)
    print(server.effective_port, flush=True)
    server.run()


class _Process:
    """One of the two others."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", __spec__.name, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.line())

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def cpu(self) -> float:
        """The seconds of processor time that it has used."""
        with open(f"/proc/{self._process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def _bare(upstream: _Process, count: int) -> float:
    """Connect and send so often, in a bare loop."""
    upstream.tell(str(count))
    begun = time.monotonic()
    clients = []
    for _ in range(count):
        clients.append(socket.create_connection(("127.0.0.1", upstream.port)))
        clients[-1].sendall(_HEAD)
    took = float(upstream.line()) - begun
    for client in clients:
        client.close()
    return took


class _OwnView(threading.Thread):
    """Asks for the application's own view meanwhile."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._sock = socket.create_connection(("127.0.0.1", port))
        self.over = False
        self.took: list[float] = []
        self.start()

    def run(self) -> None:
        while not self.over:
            begun = time.monotonic()
            self._sock.sendall(_OWN)
            self._sock.recv(65536)
            self.took.append(time.monotonic() - begun)
            time.sleep(0.005)
        self._sock.close()

    def p99(self) -> float:
        self.over = True
        self.join()
        return sorted(self.took)[int(len(self.took) * 0.99)]


def _crowd(upstream: _Process, site: _Process, count: int) -> tuple[float, float]:
    """Ask the site so often at once; seconds, and the 99th percentile of its own view meanwhile."""
    clients = [socket.create_connection(("127.0.0.1", site.port), timeout=_PATIENCE) for _ in range(count)]
    own = _OwnView(site.port)
    upstream.tell(str(count))
    begun = time.monotonic()
    for client in clients:
        client.sendall(_HEAD)
    took = float(upstream.line()) - begun
    for client in clients:
        client.close()
    return took, own.p99()


def _own_views(count: int) -> float:
    """Ask the application without the add-on so often at once for its own view; seconds until all have an answer."""
    site = _Process("--stock")
    try:
        clients = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(count)]
        poll = select.epoll()
        for client in clients:
            poll.register(client, select.EPOLLIN)
        begun = time.monotonic()
        for client in clients:
            client.sendall(_OWN)
        waiting = count
        while waiting:
            for number, _ in poll.poll():
                poll.unregister(number)
                waiting -= 1
        took = time.monotonic() - begun
        poll.close()
        for client in clients:
            client.close()
    finally:
        site.stop()
    return took


def main(counts: list[int]) -> None:
    """Print a line of JSON for each round of each count, and one for the application without the add-on."""
    _raise_limit()
    upstream = _Process("--upstream")
    site = _Process("--site", str(upstream.port))
    try:
        _crowd(upstream, site, 100)
        for count in counts:
            for _ in range(3):
                bare = _bare(upstream, count)
                used = site.cpu()
                took, p99 = _crowd(upstream, site, count)
                found = {"count": count, "seconds": took, "cpu": site.cpu() - used, "bare": bare}
                found |= {"ratio": took / bare, "own_p99_ms": p99 * 1000}
                print(json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)
                time.sleep(1)
            if count <= MOST_STOCK:
                print(json.dumps({"count": count, "own_views_without_add_on": round(_own_views(count), 3)}), flush=True)
    finally:
        site.stop()
        upstream.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--upstream"]:
        _raise_limit()
        _upstream()
    elif sys.argv[1:2] == ["--site"]:
        _raise_limit()
        _site(int(sys.argv[2]))
    elif sys.argv[1:2] == ["--stock"]:
        _raise_limit()
        _site(None)
    else:
        main([int(count) for count in sys.argv[1:]] or [3000, 9000])
