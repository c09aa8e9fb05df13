"""What is run. Each module has `run(bench)`, and says at its top what it does."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.scenarios import (
    beside,
    bodies,
    chunked,
    downloads,
    engines,
    filtered,
    held,
    https,
    in_flight,
    mixed,
    own_view,
    single,
    slow_readers,
    small_answers,
    streamed_uploads,
    tunnels,
    uploads,
)

#: In the table's order.
SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "downloads": downloads.run,
    "single": single.run,
    "bodies": bodies.run,
    "chunked": chunked.run,
    "https": https.run,
    "filtered": filtered.run,
    "uploads": uploads.run,
    "streamed_uploads": streamed_uploads.run,
    "own_view": own_view.run,
    "small_answers": small_answers.run,
    "held": held.run,
    "beside": beside.run,
    "tunnels": tunnels.run,
    "slow_readers": slow_readers.run,
    "mixed": mixed.run,
    "in_flight": in_flight.run,
    "engines": engines.run,
}
