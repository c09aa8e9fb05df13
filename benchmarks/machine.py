"""The machine: its cores, its limits, and what the report says of it."""

from __future__ import annotations

import os
import platform
import resource
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.accounts import tree

#: Cores that this process was given; the first is the server's when it is to be alone.
CORES = sorted(os.sched_getaffinity(0))
ALONE = {CORES[0]}
OTHERS = set(CORES[1:]) or ALONE
ALL = set(CORES)


def pin(root: int, cores: set[int]) -> None:
    """Place every thread of a process and of its descendants; threads made later inherit it."""
    for stat in tree(root):
        for task in os.listdir(f"/proc/{stat.pid}/task"):
            try:
                os.sched_setaffinity(int(task), cores)
            except ProcessLookupError:
                continue


def raise_descriptor_limit(wanted: int = 65536) -> int:
    """Let this process and those that it starts have many descriptors; returns how many they may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, soft), max(wanted, hard)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def load_average() -> float:
    """Processes that ran or wanted to, over the last minute."""
    return os.getloadavg()[0]


def taken() -> dict[str, Any]:
    """When figures are taken, and on what."""
    return {"taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": describe()}


def describe() -> dict[str, str]:
    """What the figures were taken on."""
    packages = ("pyramid", "waitress", "urllib3", "webob")
    return {
        "cores": str(len(CORES)),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
