"""What a scenario works with: servers that are started for it, their place on the cores, loads, and samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, servers
from benchmarks.accounts import Watch, switches
from benchmarks.processes import Load, Service, free_port
from benchmarks.servers import Origins

GIB = 1 << 30


class Sizes(NamedTuple):
    """How much is done; a quick run does less of the same."""

    rounds: int
    own_rounds: int
    """Of own views, which vary most."""
    seconds: float
    share: int
    """Bulk is divided by it."""
    held: tuple[int, ...]
    in_flight: tuple[int, ...]
    slow_seconds: float
    lasting_seconds: float


FULL = Sizes(5, 7, 2.0, 1, (3000, 9000), (10, 100, 1000, 9000, 10000), 20.0, 10.0)
QUICK = Sizes(2, 2, 1.0, 8, (3000,), (10, 100, 1000), 5.0, 3.0)


class Measured(NamedTuple):
    """What one run of a load showed: the client's figures, and the server's CPU seconds and memory."""

    client: dict[str, Any]
    cpu: float
    watch: Watch


class Bench:
    """One run of the benchmarks. Samples are kept as data, server, rounds."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.left_out = servers.missing()
        self.notes: list[str] = []
        self._origins = Origins(free_port(), free_port(), free_port(), folder)

    @contextmanager
    def upstreams(self) -> Iterator[None]:
        """The upstreams of all scenarios."""
        origins = self._origins
        servers.make_files(origins.folder)
        with ExitStack() as stack:
            for service in (
                servers.nginx_files(origins.folder, origins.files, secure=False),
                servers.nginx_files(origins.folder, origins.secure, secure=True),
                servers.stream_origin(origins.folder, origins.stream),
            ):
                stack.enter_context(service)
            yield

    @property
    def stream_port(self) -> int:
        """Where `benchmarks.origin` listens, for whoever asks it directly."""
        return self._origins.stream

    def warm(self, path: str) -> None:
        """Have the kernel hold a file before it is downloaded by anyone."""
        file = self._origins.folder / "www" / path.lstrip("/")
        if file.is_file():
            with file.open("rb", buffering=0) as content:
                while content.read(1 << 20):
                    pass

    @contextmanager
    def running(self, *names: str, secure: bool = False) -> Iterator[dict[str, Service]]:
        """Those of the servers that are installed, by name."""
        with ExitStack() as stack:
            present = [name for name in names if name not in self.left_out]
            stack.callback(machine.pin, os.getpid(), machine.ALL)
            yield {name: stack.enter_context(servers.start(name, self._origins, secure)) for name in present}

    def place(self, service: Service, alone: bool) -> None:
        """Put the server alone on one core and all else on the others; or everything anywhere."""
        # All servers are children of this process, and loads inherit its place: so the one that counts comes last.
        machine.pin(os.getpid(), machine.OTHERS if alone else machine.ALL)
        machine.pin(service.pid, machine.ALONE if alone else machine.ALL)

    def rounds(self, running: dict[str, Service], count: int | None = None) -> Iterator[tuple[str, Service, bool]]:
        """Interleaved: in each round every server in turn, alone on a core and then anywhere."""
        for _ in range(count or self.sizes.rounds):
            for alone in (True, False):
                for name, service in running.items():
                    self.place(service, alone)
                    yield name, service, alone

    def own_rounds(self, running: dict[str, Service]) -> Iterator[tuple[str, Service, bool]]:
        """The same, as often as own views are asked for."""
        return self.rounds(running, self.sizes.own_rounds)

    @staticmethod
    def measure(service: Service, load: str, **arguments: Any) -> Measured:
        """Run a load to its end; what the load sets up is not measured."""
        with Load(load, port=service.port, **arguments) as client:
            client.ready()
            with Watch(service.pid) as watch:
                client.go()
                result = client.wait()
        return Measured(result, watch.cpu, watch)

    def measure_small(self, data: str, name: str, service: Service, alone: bool, **arguments: Any) -> None:
        """Have wrk ask, and record requests a second, latencies, and CPU-s for 1,000 requests."""
        before = switches(service.pid)
        measured = self.measure(service, "wrk", seconds=self.sizes.seconds, **arguments)
        place, answers = "one" if alone else "two", measured.client["answers"]
        self.record(f"{data}.{place}", name, measured.client["rate"])
        self.record(f"{data}.{place}.p50", name, measured.client["p50"])
        self.record(f"{data}.{place}.p99", name, measured.client["p99"])
        self.record(f"{data}.{place}.cpu", name, 1e3 * measured.cpu / answers)
        self.record(f"{data}.{place}.switches", name, (switches(service.pid) - before) / answers)

    def can_hold(self, count: int) -> bool:
        """Whether a server may have the descriptors for so many exchanges; if not, a note says so."""
        needed, most = 2 * count + 500, machine.raise_descriptor_limit()
        if needed > most:
            self.notes.append(f"{count:,} at once needs {needed:,} descriptors in a process, and {most:,} are allowed")
        return needed <= most

    def record(self, data: str, server: str, value: float) -> None:
        """Keep one sample."""
        self.samples.setdefault(data, {}).setdefault(server, []).append(value)
