"""The page of deploying: its HAProxy starts as it is, its health check works, and a restart loses nothing."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pyramid.config import Configurator

from tests.site.test_several_processes import OPERATING, Load, inherit, listening_socket
from tests.support.docs import BIN, blocks, example_modules
from tests.support.origin import Origin, echo
from tests.support.paths import ROOT
from tests.support.processes import free_port, listening, write_site
from tests.support.programs import program_path
from tests.support.site import MakeSite
from tests.support.waiting import wait_until
from tests.support.wire import over_http

PAGE = "deploying.md"


def example(name: str) -> str:
    """The example whose first line is this comment."""
    (found,) = [block.text for block in blocks(PAGE, "text") if block.text.startswith(f"# {name}\n")]
    return found


@contextmanager
def haproxy(folder: Path, site: int) -> Iterator[int]:
    """The page's HAProxy before a site on a port; gives its own."""
    port, text = free_port(), example("haproxy.cfg")
    for written, here in (("bind :80\n", f"bind 127.0.0.1:{port}\n"), ("127.0.0.1:6543", f"127.0.0.1:{site}")):
        assert text.count(written) == 1
        text = text.replace(written, here)
    (folder / "haproxy.cfg").write_text(text)
    command = [program_path("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
    with listening(command, port):
        yield port


def test_the_health_check(site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's check is content with the page's view, and with nothing else."""
    (module,) = example_modules(PAGE, tmp_path, monkeypatch)

    def configure(config: Configurator) -> None:
        config.include(module.includeme)

    here = site({}, configure=configure)
    (check,) = re.findall(r"^HEALTHCHECK .* CMD \[(.*)\]$", example("Dockerfile"), re.MULTILINE)
    program, option, code = re.findall(r'"([^"]*)"', check)
    assert program == "python"
    for path, well in (("/healthy", True), ("/unknown", False)):
        said = code.replace("127.0.0.1:6543/healthy", here.authority + path)
        assert said != code
        done = subprocess.run([sys.executable, option, said], capture_output=True, timeout=60, check=False)
        assert (done.returncode == 0) is well


def test_the_dockerfile_runs_what_there_is() -> None:
    """It starts a command that exists, and installs extras that there are."""
    text = example("Dockerfile")
    (command,) = re.findall(r'^CMD \["(\w+)"', text, re.MULTILINE)
    assert shutil.which(command, path=BIN)
    (installed,) = re.findall(r"pyramid_threaded_proxy\[([\w,]+)\]", text)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in project for extra in installed.split(","))


def test_a_rolling_restart_behind_haproxy(stack: ExitStack, tmp_path: Path) -> None:
    """Four processes on one socket, each stopped and replaced in turn under load: not one request is lost, and none
    had to be sent again."""
    listening = listening_socket(stack)
    ini = write_site(tmp_path, stack.enter_context(Origin(echo)).authority)
    application, made = tmp_path / "application.py", "    return config.make_wsgi_app()"
    text = application.read_text(encoding="utf-8")
    assert made in text
    application.write_text(text.replace(made, f'    config.include("health")\n{made}'), encoding="utf-8")
    (view,) = blocks(PAGE, "python")
    (tmp_path / "health.py").write_text(view.text, encoding="utf-8")
    script = tmp_path / "serve.py"
    script.write_text(blocks(OPERATING.name, "python")[0].text, encoding="utf-8")
    running = [inherit(stack, ini, script, listening) for _ in range(4)]
    assert over_http(listening.getsockname()[1], "/healthy").status == 200  # before HAProxy looks for the first time
    port = stack.enter_context(haproxy(tmp_path, listening.getsockname()[1]))
    wait_until(lambda: over_http(port, "/healthy").status == 200, "a site that is well")
    stopped = []
    with Load(port, clients=2) as load:
        load.wait_for({process.pid for process in running}, 5)
        for _ in range(4):
            stopped.append(running.pop(0))
            stopped[-1].tell(signal.SIGTERM)
            running.append(inherit(stack, ini, script, listening))
            assert stopped[-1].ended() == -15
            load.wait_for({running[-1].pid}, 5)
    assert (load.lost, load.retried) == ([], 0)
    assert set(load.answers) == {process.pid for process in (*stopped, *running)}
