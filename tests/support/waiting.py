"""Waiting for what should come about."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

#: Seconds after which something that should have happened has not.
PATIENCE = 10.0


def wait_until(condition: Callable[[], Any], what: str = "the condition", timeout: float = PATIENCE) -> Any:
    """Poll for something that can't be waited on otherwise; returns its true value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout:g} s")
        select.select([], [], [], 0.005)
    return value
