"""How things are at this moment in one engine, as its status shows them (`status.Observed`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.limits.admission import Admission
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.connections import Upstreams


class EngineObserved:
    """Reads what the engine's parts say of themselves. Any thread."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        admission: Admission,
        in_flight: InFlight,
        connections: Upstreams,
        scheduler: Scheduler,
    ) -> None:
        self._routes = routes
        self._admission = admission
        self._in_flight = in_flight
        self._connections = connections
        self._scheduler = scheduler
        #: Set when the process is told to stop.
        self.stops = False

    def exchanges(self) -> Iterable[Exchange]:
        return self._in_flight

    def active(self) -> dict[str, int]:
        return self._admission.by_route()

    def limits(self) -> dict[str, int]:
        most = self._admission.max_exchanges
        return {name: min(most, route.settings.max_exchanges or most) for name, route in self._routes.items()}

    def upstreams(self) -> Iterator[tuple[str, Upstream, int]]:
        idle: dict[str, int] = {}
        for pool in self._connections.pools():
            idle[pool.name] = idle.get(pool.name, 0) + pool.idle
        for name, route in self._routes.items():
            for upstream in route.balancer.upstreams:
                yield name, upstream, idle.get(str(upstream.origin), 0)

    def max_exchanges(self) -> int:
        return self._admission.max_exchanges

    def pool_busy(self) -> int:
        return self._scheduler.pool.busy

    def draining(self) -> bool:
        return self.stops

    def close(self, request_id: str) -> int:
        return self._in_flight.close(request_id=request_id)
