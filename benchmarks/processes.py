"""Starts and ends processes; nothing outlives the `with` that started it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent
#: Seconds that a process may take to start, or to end after it was asked to.
PATIENCE = 15.0


class ProcessFailed(Exception):
    """A process did not start, or ended when it should not have; the message ends with what it wrote."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Service:
    """A server's process; its output goes to a file in `folder`."""

    def __init__(self, name: str, arguments: list[str], port: int, folder: Path) -> None:
        self.name = name
        self.port = port
        self._log = folder / f"{name}-{port}.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT
            )
        self.pid = self._process.pid

    def _failure(self, what: str) -> ProcessFailed:
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
        return ProcessFailed(f"{self.name} {what}; it wrote: {tail.strip() or 'nothing'}")

    def wait_listening(self) -> None:
        """Wait until it accepts connections; raises `ProcessFailed`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if self._process.poll() is not None:
                raise self._failure(f"ended with {self._process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise self._failure(f"does not listen after {PATIENCE:g} s") from None
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Service:
        try:
            self.wait_listening()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Load:
    """A client process of `benchmarks.loads`. It says ``ready`` when set up, starts on `go`, and ends with JSON."""

    def __init__(self, name: str, **arguments: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.loads", name, json.dumps(arguments)]
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    def ready(self) -> Load:
        """Wait until it is set up."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            _, errors = self._process.communicate()
            raise ProcessFailed(f"the load {self._name} failed: {errors.strip()[-1500:]}")
        return self

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Tell it to end, if it lasts until it is told, and return what it measured."""
        output, errors = self._process.communicate()
        if self._process.returncode:
            raise ProcessFailed(f"the load {self._name} failed: {errors.strip()[-1500:]}")
        measured: dict[str, Any] = json.loads(output)
        return measured

    def wait(self) -> dict[str, Any]:
        """Let it come to its own end, and return what it measured."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        _, errors = self._process.communicate()
        if self._process.returncode or not line:
            raise ProcessFailed(f"the load {self._name} failed: {errors.strip()[-1500:]}")
        measured: dict[str, Any] = json.loads(line)
        return measured

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()
