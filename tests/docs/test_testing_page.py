"""The page about tests: its application and its tests, as a reader would have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.docs import blocks


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    """The files that the page shows, laid out as it says, run with pytest, and each test of it passes."""
    tests = 0
    for block in blocks("testing.md", "python"):
        first, _, rest = block.text.partition("\n")
        path = tmp_path / first.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(rest, encoding="utf-8")
        tests += rest.count("\ndef test_")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert f"{tests} passed" in done.stdout
