"""CPU, memory and threads of all of a server's processes, as ``/proc`` accounts for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

#: Clock ticks a second, the unit of CPU times in ``/proc``.
TICKS = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """What is used of one process's ``/proc/PID/stat``."""

    pid: int
    parent: int
    ticks: int
    threads: int


class Usage(NamedTuple):
    """Of a process and all its descendants: CPU in seconds since they began, resident bytes, threads."""

    cpu: float
    rss: int
    threads: int


def parse_stat(text: str) -> Stat:
    """Read ``/proc/PID/stat`` (proc(5)); CPU counts utime, stime and those of children that were waited for."""
    # A process's name may hold blanks and parentheses; the last one ends it.
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(")")[2].split()
    return Stat(int(pid), int(fields[1]), sum(map(int, fields[11:15])), int(fields[17]))


def parse_rss(text: str) -> int:
    """Resident bytes, from ``/proc/PID/status``; a process that has ended has none."""
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            amount, unit = line.split()[1:]
            if unit != "kB":
                raise ValueError(f"VmRSS in {unit}, not in kB: {line!r}")
            return int(amount) * 1024
    return 0


def parse_written(text: str) -> int:
    """Bytes that were written to files of a disk, from ``/proc/PID/io``, those that were taken back included."""
    for line in text.splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def written(root: int) -> int:
    """Bytes that a process and its descendants have written to files of a disk."""
    total = 0
    for stat in tree(root):
        try:
            total += parse_written(Path(f"/proc/{stat.pid}/io").read_text(encoding="latin-1"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def parse_machine_ticks(text: str) -> int:
    """Ticks that all cores together were busy, from ``/proc/stat``; idle and waiting for disks is not busy."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def descendants(root: int, stats: Iterable[Stat]) -> list[Stat]:
    """`root` and everything below it."""
    known = list(stats)
    found = [stat for stat in known if stat.pid == root]
    for parent in found:
        found.extend(stat for stat in known if stat.parent == parent.pid)
    return found


def _stat(pid: int) -> Stat | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="latin-1"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(root: int) -> list[Stat]:
    """A process and its descendants, as they are now."""
    stats = (_stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return descendants(root, [stat for stat in stats if stat is not None])


def _rss(pid: int) -> int:
    try:
        return parse_rss(Path(f"/proc/{pid}/status").read_text(encoding="latin-1"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def usage_of(pids: Iterable[int]) -> Usage:
    """What processes have used and hold; those that have ended are left out."""
    stats = [stat for stat in map(_stat, pids) if stat is not None]
    return Usage(
        sum(stat.ticks for stat in stats) / TICKS,
        sum(_rss(stat.pid) for stat in stats),
        sum(stat.threads for stat in stats),
    )


def machine_cpu() -> float:
    """CPU seconds that the whole machine has been busy."""
    return parse_machine_ticks(Path("/proc/stat").read_text(encoding="latin-1")) / TICKS


def parse_switches(text: str) -> int:
    """How often a thread began to run, from its ``status``: it had waited, or another one ran in its place."""
    names = ("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def switches(root: int) -> int:
    """How often the threads of a process and of its descendants have begun to run."""
    total = 0
    for stat in tree(root):
        for path in Path(f"/proc/{stat.pid}/task").glob("*/status"):
            try:
                total += parse_switches(path.read_text(encoding="latin-1"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return total


def usage(root: int) -> Usage:
    """What a process and its descendants have used and hold."""
    return usage_of(stat.pid for stat in tree(root))


class Watch:
    """Looks at a process tree ten times a second in a thread of its own, and keeps the most that it saw.

    Processes that begin during the watch are only counted when it ends: to look for them costs too much.
    """

    def __init__(self, root: int, every: float = 0.1) -> None:
        self._root = root
        self._every = every
        self._pids = [stat.pid for stat in tree(root)]
        self._end = threading.Event()
        self.before = self.most = usage(root)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._look(self._pids)

    def _look(self, pids: Iterable[int]) -> None:
        now = usage_of(pids)
        self.most = Usage(now.cpu, max(now.rss, self.most.rss), max(now.threads, self.most.threads))

    @property
    def growth(self) -> int:
        """Bytes by which the resident memory had grown at most."""
        return self.most.rss - self.before.rss

    @property
    def cpu(self) -> float:
        """CPU seconds from the beginning to the end of the watch."""
        return self.most.cpu - self.before.cpu

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._look(stat.pid for stat in tree(self._root))
