"""wrk (https://github.com/wg/wrk) asks on kept connections, each asking again as soon as it was answered.

A client in C, which takes little of the cores and so leaves the server loaded.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Any

from benchmarks.loads import ready
from benchmarks.loads.wire import BadAnswer

#: What wrk's units are in milliseconds.
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_PERCENTILE = re.compile(r"^ +(\d+)% +([\d.]+)(us|ms|s|m)$", re.MULTILINE)
_TOTAL = re.compile(r"^ +(\d+) requests in ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec: +([\d.]+)$", re.MULTILINE)
_FAILURES = re.compile(r"^ +(?:Socket errors|Non-2xx or 3xx responses): .*$", re.MULTILINE)


def parse(output: str) -> dict[str, Any]:
    """Requests a second, latencies in milliseconds. Raises `BadAnswer` where not all was answered by 200."""
    failures, total, rate = _FAILURES.search(output), _TOTAL.search(output), _RATE.search(output)
    latencies = {share: float(value) * _MILLISECONDS[unit] for share, value, unit in _PERCENTILE.findall(output)}
    if failures or total is None or rate is None or not {"50", "99"} <= set(latencies):
        raise BadAnswer(failures[0].strip() if failures else f"not what wrk prints: {output!r}")
    return {"answers": int(total[1]), "rate": float(rate[1]), "p50": latencies["50"], "p99": latencies["99"]}


def wrk(port: int, path: str, connections: int, seconds: float, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Requests a second and latencies in milliseconds; `seconds` are whole ones, one at least."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    for field in fields:
        command += ["--header", field]
    ready()
    ended = subprocess.run(
        [*command, "--latency", f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True
    )
    return parse(ended.stdout)
