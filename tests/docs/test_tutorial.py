"""The tutorial, as a reader would do it."""

from __future__ import annotations

import doctest
import os
import re
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support.docs import BIN, Block, blocks, ini
from tests.support.processes import free_port
from tests.support.waiting import wait_until


def listens(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
    except OSError:
        return False
    return True


class Reader:
    """Does in a folder what the tutorial says, from top to bottom, on free ports."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.parser = ini()
        self.ports: dict[str, str] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "PATH": BIN, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        # What installing the library would leave.
        made = folder / "library-1.0.dist-info"
        made.mkdir()
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: library\nVersion: 1.0\n")
        (made / "entry_points.txt").write_text("[paste.app_factory]\nmain = library:main\n")

    def follow(self, block: Block) -> None:
        """Type a command, or write a file; who changed a file starts the server anew."""
        if block.language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                self.type(command, output)
            return
        self.stop()
        if block.language in ("python", "text"):
            path = self.folder / block.text.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        else:
            self.parser.read_string(block.text)
            with open(self.folder / "development.ini", "w", encoding="utf-8") as file:
                self.parser.write(file)

    def type(self, command: str, output: str) -> None:
        if command.startswith("pip "):
            return
        if command.startswith("python3 -m http.server "):
            self.start(command, "9000")
        elif command.startswith("pserve") and not output:
            self.serve()
        else:
            self.run(command, output)

    def serve(self) -> None:
        self.server = self.start("pserve development.ini", "6543")

    def start(self, command: str, port: str) -> subprocess.Popen[bytes]:
        """Start a server in the background, on a free port in place of `port`."""
        self.ports.setdefault(port, str(free_port()))
        path = self.folder / "development.ini"
        path.write_text(self.on_free_ports(path.read_text(encoding="utf-8")), encoding="utf-8")
        log = self.folder / f"{port}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command.replace(port, self.ports[port]).split(),
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.stack.callback(lambda: (process.terminate(), process.wait()))
        wait_until(lambda: process.poll() is not None or listens(self.ports[port]), command, timeout=30)
        assert process.poll() is None, log.read_text()
        return process

    def on_free_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
            self.server = None

    def run(self, command: str, output: str) -> None:
        if command.startswith("curl") and self.server is None:
            self.serve()
        if command == "cat access.log":
            wait_until(lambda: (self.folder / "access.log").read_text().endswith("\n"), "the log's line")
        done = subprocess.run(
            self.on_free_ports(command),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        got = (done.stdout + done.stderr).replace("\r\n", "\n")
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if command == "cat access.log":
            output, got = (re.sub(r"\b[0-9a-f]{32}\b", "0", text) for text in (output, got))
            output, got = (re.sub(r"\d+", "0", re.sub(r"/[A-Z][a-z]{2}/", "/", text)) for text in (output, got))
        assert doctest.OutputChecker().check_output(output, got, flags), f"$ {command}\n{got}"


def test_tutorial(tmp_path: Path, stack: ExitStack, need_program: Callable[[str], str]) -> None:
    """Who does what the tutorial says sees what it shows."""
    need_program("curl")
    reader = Reader(tmp_path, stack)
    for block in blocks("tutorial.md"):
        reader.follow(block)
