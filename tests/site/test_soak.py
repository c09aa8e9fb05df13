"""The soak (`make soak`), in short: what its figures would say of a fault, and that there is none."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.support.site_process import Vitals
from tests.support.soak import KINDS, Figures, Soak


def test_two_thousand_exchanges(tmp_path: Path) -> None:
    """Of forty kinds by two users: every body is its own, nothing is lost, crossed or leaked."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(1 << 30))
    print(f"SOAK_SEED={seed}")
    figures = Soak(tmp_path, seed).run(2_000)
    print(figures)
    assert (figures.faults, figures.leaks) == ([], [])
    assert figures.exchanges >= 2_000
    assert len(KINDS) == 40
    assert figures.seen.keys() == KINDS.keys()


def test_what_a_soak_would_say_of_leaks() -> None:
    """A descriptor, a thread, a slot or memory that is there afterwards, and was not before, is a leak."""
    before = Vitals(10, ["a", "b"], 0, 1 << 20)
    after = Vitals(11, ["a", "b", "b"], 2, 1 << 30)
    figures = Figures(1, 1.0, {}, ["lost: x", "crossed: y", "200 (z)"], before, after)
    assert figures.leaks == ["1 descriptors", "threads: b", "2 slots", f"{(1 << 30) - (1 << 20)} bytes"]
    assert "lost 1, crossed 1, ended otherwise 1, leaks 1 descriptors, threads: b" in str(figures)
    assert figures._replace(after=before).leaks == []
