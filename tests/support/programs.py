"""Real servers and browsers, where they are installed."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest


def leave_out(reason: str) -> NoReturn:
    """Skip the test for want of something, but never in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and in CI nothing may be left out")
    pytest.skip(reason)


def program_path(name: str) -> str:
    """The path of a real server or browser; without it the test is left out, but never in CI."""
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", str(Path(sys.executable).parent)]))
    if path is None:
        leave_out(f"{name} is not installed")
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
