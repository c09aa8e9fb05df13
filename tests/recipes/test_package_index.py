"""The recipe for pypiserver: twine uploads what pip installs, each as somebody who may."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.recipes import members, need_recipe, program, settings
from tests.support.site import MakeSite, Site

WHEEL = "carrot-1.0-py3-none-any.whl"


def wheel(folder: Path) -> Path:
    """A package with one module."""
    about = "carrot-1.0.dist-info"
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as files:
        files.writestr("carrot.py", "colour = 'orange'\n")
        files.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carrot\nVersion: 1.0\n")
        files.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        files.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Site:
    """A site with pypiserver behind it."""
    need_recipe("pypiserver", "twine")
    (tmp_path / "packages").mkdir()
    command = ["-m", "pypiserver", "run", "-i", "127.0.0.1", "-p", "{port}", "-P", ".", "-a", ".", "packages"]
    url = stack.enter_context(program(tmp_path, sys.executable, *command))
    return site(settings("pypiserver", url), configure=members)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def upload(index: Site, folder: Path, user: str) -> subprocess.CompletedProcess[str]:
    options = ["--non-interactive", "--disable-progress-bar", "-u", user, "-p", "secret"]
    return run(folder, "twine", "upload", *options, "--repository-url", f"{index.url}/pypi/upload/", WHEEL)


def install(index: Site, folder: Path, user: str) -> subprocess.CompletedProcess[str]:
    where = f"http://{user}:secret@{index.authority}/pypi/simple/"
    options = ["-vv", "--isolated", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    return run(folder, "pip", "install", *options, "--target", "installed", "--index-url", where, "carrot")


def test_twine_and_pip(index: Site, tmp_path: Path) -> None:
    """Who may write uploads, who may read installs; each is refused what he may not."""
    wheel(tmp_path)
    refused = upload(index, tmp_path, "reader")
    assert (refused.returncode != 0, "403" in refused.stdout) == (True, True), refused.stdout
    assert upload(index, tmp_path, "ann").returncode == 0
    assert (tmp_path / "packages" / WHEEL).read_bytes() == (tmp_path / WHEEL).read_bytes()
    refused = install(index, tmp_path, "bob")
    assert (refused.returncode != 0, "403" in refused.stdout + refused.stderr) == (True, True), (
        refused.stdout + refused.stderr
    )
    installed = install(index, tmp_path, "reader")
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (tmp_path / "installed" / "carrot.py").read_text(encoding="utf-8") == "colour = 'orange'\n"
