"""Real servers and browsers, where they are installed."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any

import pytest


def program_path(name: str) -> str:
    """The path of a real server or browser; without it the test is left out, but never in CI."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and in CI nothing may be left out")
        pytest.skip(f"{name} is not installed")
    return path


def applications_module(name: str, heavy: bool = False) -> Any:
    """A module of the extra `applications`; without it the tests are left out, but never in CI.

    `heavy` ones are of the extra `heavy_applications`, and left out wherever they are not installed, but in
    ``make applications``.
    """
    if os.environ.get("HEAVY" if heavy else "CI"):
        return importlib.import_module(name)
    if heavy:
        return pytest.importorskip(name, reason="heavy: make applications installs it")
    return pytest.importorskip(name, reason="the extra `applications` is not installed")
