"""Each test of a real server runs twice: as it is, and with each channel resting that can, as where there are many."""

from __future__ import annotations

import pytest

from pyramid_threaded_proxy.detach import resting


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" in metafunc.fixturenames:
        metafunc.fixturenames.append("entries")
        metafunc.parametrize("entries", [resting.FEW, -1], ids=["few", "many"], indirect=True)


@pytest.fixture
def entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many entries of waitress's table are few."""
    monkeypatch.setattr(resting, "FEW", request.param)
