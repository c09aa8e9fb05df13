"""The demo's two child processes. Each holds a pipe from the demo as its standard input and ends when that ends."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import subprocess
import sys
import threading


class UpstreamFailed(Exception):
    """The demo's upstream could not be started, most often because its port is taken."""


class Child:
    """A process of a module of this package; at most one at a time. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process, if there is one, and wait for that."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _start(self, module: str, *arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        if self._process is None:
            atexit.register(self.stop)
        self.stop()
        command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
        # A session of its own: Ctrl-C is for the demo alone, whose end then ends the child.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stdout, bufsize=0, start_new_session=True
        )
        return self._process


class Upstream(Child):
    """The process behind the proxied route: ``python -m pyramid_threaded_proxy.demo.upstream``."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.host = host
        self.port = port

    def ensure(self) -> None:
        """Start the process unless it runs; return when it listens. Raises `UpstreamFailed`."""
        with self._lock:
            if self.running():
                return
            process = self._start("upstream", self.host, str(self.port), stdout=subprocess.PIPE)
            assert process.stdout is not None
            with process.stdout as output:
                ready = output.readline()
            if not ready:
                self.stop()
                raise UpstreamFailed(
                    f"The demo's upstream can't listen on {self.host}:{self.port}. Does another demo run?"
                )

    def held(self) -> int:
        """How many slow requests it holds at this moment. Raises `OSError` if it does not answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=2)
        try:
            connection.request("GET", "/held")
            return int(json.load(connection.getresponse())["held"])
        finally:
            connection.close()


class SlowClient(Child):
    """The process behind the button: ``python -m pyramid_threaded_proxy.demo.client``."""

    def start(self, url: str, cookie: str, count: int, seconds: float) -> bool:
        """Open `count` requests of `seconds` at `url` as the user of `cookie`; False if the last ones still run."""
        with self._lock:
            if self.running():
                return False
            process = self._start("client", url, str(count), str(seconds))
            assert process.stdin is not None
            # Not an argument: every user of this machine can read those.
            process.stdin.write(cookie.encode("latin-1") + b"\n")
            return True


def exit_with_parent() -> None:
    """For a child process: end it at once when the demo is gone, however that went."""
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    # The descriptor itself: a thread inside sys.stdin would hold its lock while the interpreter shuts down.
    while os.read(0, 4096):
        pass
    os._exit(0)
