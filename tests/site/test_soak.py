"""The soak (`make soak`), in short: what its figures would say of a fault, and that there is none."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.support.books import Books
from tests.support.site_process import Vitals
from tests.support.soak import KINDS, Figures, Soak


def test_two_thousand_exchanges(tmp_path: Path) -> None:
    """Of forty kinds by two users: every body is its own, nothing is lost, crossed or leaked, and whoever counts
    has the same, exchange by exchange."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(1 << 30))
    print(f"SOAK_SEED={seed}")
    figures = Soak(tmp_path, seed).run(2_000)
    print(figures)
    assert (figures.faults, figures.leaks, figures.differences) == ([], [], [])
    assert figures.exchanges >= 2_000
    assert len(KINDS) == 40
    assert figures.seen.keys() == KINDS.keys()


def test_what_a_soak_would_say_of_leaks() -> None:
    """A descriptor, a thread, a slot or memory that is there afterwards, and was not before, is a leak."""
    before = Vitals(10, ["a", "b"], 0, 1 << 20)
    after = Vitals(11, ["a", "b", "b"], 2, 1 << 30)
    figures = Figures(1, 1.0, {}, ["lost: x", "crossed: y", "200 (z)"], before, after, [])
    assert figures.leaks == ["1 descriptors", "threads: b", "2 slots", f"{(1 << 30) - (1 << 20)} bytes"]
    assert "lost 1, crossed 1, ended otherwise 1, leaks 1 descriptors, threads: b" in str(figures)
    assert figures._replace(after=before).leaks == []


LINE = {
    "path": "/r/x", "route": "r", "method": "POST", "status": 200, "upstream": "http://u", "attempts": 2,
    "ended": "whole", "bytes_up": 3, "bytes_down": 5, "connect_seconds": 0.1, "first_byte_seconds": 0.2,
}  # fmt: skip
METRICS = """# TYPE proxy_exchanges counter
proxy_exchanges_total{route="r",method="POST",code="200",ended="whole"} 1
# TYPE proxy_body_bytes counter
proxy_body_bytes_total{route="r",direction="up"} 3
proxy_body_bytes_total{route="r",direction="down"} 5
# TYPE proxy_exchange_duration_seconds_count gauge
proxy_exchange_duration_seconds_count{route="r",kind="request"} 1
# TYPE proxy_upstream_connect_seconds_count gauge
proxy_upstream_connect_seconds_count{route="r",upstream="http://u"} 1
# TYPE proxy_upstream_first_byte_seconds_count gauge
proxy_upstream_first_byte_seconds_count{route="r",upstream="http://u"} 1
# TYPE proxy_retries counter
proxy_retries_total{route="r",upstream="http://u"} 1
# TYPE proxy_exchanges_active gauge
proxy_exchanges_active{route="r"} 0
"""


def differences(tmp_path: Path, lines: list[dict[str, object]], asked: str, metrics: str) -> list[str]:
    """Of one exchange that a client, its upstream, the log and the metrics have counted."""
    books = Books()
    books.saw("/r/x", "POST", "200", 3, 5)
    (tmp_path / "log").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "asked").write_text(asked)
    return books.differences(tmp_path / "log", [tmp_path / "asked"], metrics)


def test_the_books_agree(tmp_path: Path) -> None:
    """Where all have the same there is no difference."""
    assert differences(tmp_path, [LINE], "/x\n", METRICS) == []


@pytest.mark.parametrize(
    "line",
    [{"status": 502}, {"bytes_down": 4}, {"bytes_up": 4}, {"ended": "closed"}, {"method": "PUT"}, {"attempts": 1}],
)
def test_each_thing_that_is_counted_otherwise_is_said(line: dict[str, object], tmp_path: Path) -> None:
    """An exchange of which the log has something else."""
    found = differences(tmp_path, [LINE | line], "/x\n/x\n", METRICS)
    assert any(text.startswith("/r/x: ") for text in found)


@pytest.mark.parametrize(
    ("lines", "asked", "old", "new"),
    [
        ([], "/x\n", "", ""), ([LINE, LINE], "/x\n", "", ""), ([LINE], "", "", ""),
        ([LINE, LINE | {"path": "/r/y"}], "/x\n/y\n", "", ""),
        ([LINE], "/x\n", 'ended="whole"} 1', 'ended="whole"} 2'),
        ([LINE], "/x\n", 'active{route="r"} 0', 'active{route="r"} 1'),
        ([LINE], "/x\n", 'direction="up"} 3', 'direction="up"} 4'),
    ],
)  # fmt: skip
def test_each_sum_that_is_another_is_said(
    lines: list[dict[str, object]], asked: str, old: str, new: str, tmp_path: Path
) -> None:
    """An exchange too many or too few, one that nobody was asked for, a sum, and what is still in flight."""
    assert differences(tmp_path, lines, asked, METRICS.replace(old, new) if old else METRICS)
