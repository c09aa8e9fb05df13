"""A real browser, spoken to by its own protocol."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

#: Seconds: far more than anything here takes. Whoever waits so long has failed.
DEADLINE = 30

_ALL_TEXT = """function said(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (["SCRIPT", "STYLE"].includes(node.nodeName)) return "";
  return [...node.childNodes, ...(node.shadowRoot?.childNodes ?? [])].map(said).join(" ");
}"""


class Browser:
    """A headless Chromium, spoken to over its debugging pipe: JSON objects, each ended by a NUL."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
    )

    def __init__(self, program: str, folder: Path) -> None:
        # Chromium reads from descriptor 3 and writes to 4.
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 0</dev/null 1>&2', "sh", program, *self.FLAGS.split()]
        command.append(f"--user-data-dir={folder}")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.received = b""
        self.sent = 0
        self.session: dict[str, str] = {}

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Carry out a command of the DevTools protocol and return its result."""
        assert self.process.stdin is not None
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.sent:
            pass
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\0" not in self.received:
            assert select.select([self.process.stdout], [], [], DEADLINE)[0], "the browser is silent"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, "the browser ended"
            self.received += piece
        message, _, self.received = self.received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str, cookie: str) -> None:
        name, value = cookie.split("=", 1)
        self.call("Storage.setCookies", cookies=[{"name": name, "value": value, "url": url}])
        target = self.call("Target.createTarget", url=url)["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def text(self, selector: str) -> str:
        """The text of an element; empty while it is not there."""
        expression = f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"
        return str(self.call("Runtime.evaluate", expression=expression)["result"]["value"])

    def page(self) -> str:
        """All that the page says, also where its parts are components with a tree of their own."""
        return str(self.call("Runtime.evaluate", expression=f"({_ALL_TEXT})(document)")["result"].get("value", ""))

    def click(self, selector: str) -> None:
        self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)}).click()")

    def stop(self) -> None:
        with self.process:
            self.process.kill()
