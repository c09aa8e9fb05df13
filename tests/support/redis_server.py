"""A real redis-server, which a test may hold, fill, kill and start again."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tests.support.processes import free_port
from tests.support.waiting import PATIENCE, wait_until


class RedisServer:
    """Runs when it is made, on a port of its own; keeps nothing on disk, so that a new start finds it empty."""

    def __init__(self, program: str, folder: Path, *options: str, port: int = 0) -> None:
        self._program = program
        self._folder = folder
        self._options = options
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Run it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", str(self._folder), *self._options,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(self._listens, "a redis-server that listens")

    def _listens(self) -> bool:
        assert self._process.poll() is None, "the redis-server has ended"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
            return True
        return False

    def kill(self) -> None:
        """End it at once; its data are lost."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def restart(self) -> None:
        """Kill it, and start it anew, without data."""
        self.kill()
        self.start()

    def hold(self) -> None:
        """It takes connections and bytes, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers what has come meanwhile."""
        self._process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """It refuses whatever takes memory."""
        self.ask("CONFIG", "SET", "maxmemory", "1")

    def make_room(self) -> None:
        """It takes all again."""
        self.ask("CONFIG", "SET", "maxmemory", "0")

    def ask(self, *command: Any) -> Any:
        """What it answers to a command of the test's own."""
        client = Redis(port=self.port, socket_timeout=PATIENCE, protocol=2, decode_responses=True)
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def places(self) -> dict[str, int]:
        """How many places each user has in all processes that it takes for alive, by ``ROUTE USER``."""
        found: dict[str, int] = {}
        try:
            for name in self.ask("ZRANGE", "pproxy:processes", 0, -1):
                for field, count in self.ask("HGETALL", f"pproxy:places:{name}").items():
                    key = " ".join(field.strip('[]"').split('", "'))
                    found[key] = found.get(key, 0) + int(count)
        except RedisError:
            return {}
        return found

    def close(self) -> None:
        """End it, whatever state it is in."""
        with suppress(ProcessLookupError):
            self.kill()
