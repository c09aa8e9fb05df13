"""Client processes that make the load; `benchmarks.processes.Load` runs them.

Each module has one function of its own name. It sets up, calls `ready`, which returns when the load may begin, and
returns what it measured.
"""

from __future__ import annotations

import sys


def ready() -> None:
    """Say that everything is set up, and wait for the word to begin; without it there is nothing to do."""
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        raise SystemExit(0)
