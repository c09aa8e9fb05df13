"""Fixtures for the tests of whole applications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser


@pytest.fixture
def browser(need_program: Callable[[str], str], tmp_path: Path) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    made = Browser(need_program("chromium"), tmp_path / "profile")
    yield made
    made.stop()
