"""What one application has of the relay: its loops, its connections, its limits. The same for every way in."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from pyramid.registry import Registry
from zope.interface import providedBy

from pyramid_threaded_proxy import accesslog
from pyramid_threaded_proxy.app.mounts import Mounts
from pyramid_threaded_proxy.app.observed import EngineObserved
from pyramid_threaded_proxy.app.operator_log import FailureLog, FrontLog, LimitLog, MisuseLog
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.app.shared import shared_site
from pyramid_threaded_proxy.app.streamed import StreamedRoutes
from pyramid_threaded_proxy.app.tracing import end_span
from pyramid_threaded_proxy.events import ExchangeFinished, UpstreamDown, UpstreamUp
from pyramid_threaded_proxy.exceptions import ExchangeClosed, ExchangeFailed, HookFailed, ThreadsExhausted
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.hooks import ExchangeHook, run_hook
from pyramid_threaded_proxy.limits.admission import Admission
from pyramid_threaded_proxy.limits.descriptors import Descriptors
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.loop.endpoint import LoopOfTasks
from pyramid_threaded_proxy.loop.scheduler import Scheduler
from pyramid_threaded_proxy.loop.waits import Call, Steps
from pyramid_threaded_proxy.relay.client import Channel, SocketClient, StreamClient
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.recheck import PermissionWatch
from pyramid_threaded_proxy.relay.relay import Closing, Relay
from pyramid_threaded_proxy.relay.stream import StreamedAnswer
from pyramid_threaded_proxy.relay.transfer import Pipes
from pyramid_threaded_proxy.settings.allowlist import AllowList
from pyramid_threaded_proxy.settings.load import ProcessSettings
from pyramid_threaded_proxy.status.published import published
from pyramid_threaded_proxy.status.status import Status
from pyramid_threaded_proxy.status.ticker import Ticker
from pyramid_threaded_proxy.upstream.balance import Upstream
from pyramid_threaded_proxy.upstream.connections import OriginPool, Upstreams
from pyramid_threaded_proxy.upstream.probes import Probes

log = logging.getLogger("pyramid_threaded_proxy.engine")


class Engine:
    """Everything that the exchanges of one application registry share. Any thread may start an exchange."""

    def __init__(self, registry: Registry, settings: ProcessSettings) -> None:
        self.registry = registry
        self.settings = settings
        self.limit_log = LimitLog()
        self.scheduler = Scheduler(settings.threads, self.limit_log.waits)
        self.pipes = Pipes()
        self.upstreams = Upstreams(lambda: self.scheduler.loop)
        self.descriptors = Descriptors()
        self.in_flight = InFlight(self._closed)
        #: The other processes; None where nothing is shared with them.
        self.shared = shared_site(settings.shared, self.in_flight, self._report)
        self.admission = Admission(settings.max_exchanges, self.shared)
        self.misuse_log = MisuseLog()
        self.failure_log = FailureLog()
        self.front_log = FrontLog()
        #: Of the routes, once the application is created, where a front server may ask.
        self.digest = ""
        self.allow = None if settings.fetch_allow is None else AllowList(settings.fetch_allow)
        #: Pyramid's router, once the application is created.
        self.router: Callable[..., Any] | None = None
        #: The declared routes by name; complete, and never changed, once the application is created.
        self.routes: dict[str, Route] = {}
        self.probes = Probes(self.scheduler, self.upstreams, self._probe_found)
        self.observed = EngineObserved(self.routes, self.admission, self.in_flight, self.upstreams, self.scheduler)
        #: Where its proxied routes stand; None until the application is created.
        self.mounts: Mounts | None = None
        #: What is known of routes whose bodies stream; None where there are none.
        self.streamed: StreamedRoutes | None = None
        #: Who counts; None while nobody wants to know.
        self.status: Status | None = None
        self._ticker: Ticker | None = None
        self._said_streaming = False
        # The loop in whose time this process was told to let exchanges end at a stop.
        self._joined: LoopOfTasks | None = None

    def count(self) -> Status:
        """Count from now on, and keep a history; returns what counts. Before the first exchange: at start-up."""
        if self.status is None:
            self.status = Status(self.observed, self.routes_upstreams)
            self.status.elsewhere = self.shared
            self._ticker = Ticker(self.status, self.scheduler)
        return self.status

    def _closed(self, what: Mapping[str, str]) -> None:
        """The application has closed exchanges: the other processes are to do so too."""
        if self.shared is not None:
            self.shared.closed(what)

    def _report(self, process: str) -> str | None:
        """What this process says of itself to the others; None while nobody counts."""
        return None if self.status is None else published(self.status, process)

    def routes_upstreams(self, route: str) -> frozenset[str]:
        """The URLs of a route's upstreams: what may be a label."""
        found = self.routes.get(route)
        return frozenset() if found is None else frozenset(upstream.url for upstream in found.balancer.upstreams)

    def relay(self, prepared: PreparedExchange, channel: Channel) -> None:
        """Run an exchange in the loop, on a connection that was detached."""
        client = SocketClient(channel, prepared.policy.timeouts.send)
        relay = Relay(prepared, client, self)
        task = self.scheduler.task(relay.run(), client.endpoint, channel.on_lasting)
        task.share = prepared.exchange.route
        self.in_flight.add(prepared.exchange, task.cancel)
        if (total := prepared.policy.timeouts.total) is not None:
            task.limit = prepared.exchange.stats.started + total
        self.probes.start()
        if self._ticker is not None:
            self._ticker.start()
        if prepared.recheck is not None:
            unanswered = self.limit_log.unanswered
            PermissionWatch(self.scheduler, task, prepared.exchange, prepared.recheck, unanswered).start()
        if self._joined is not task.loop:  # a new process has a new one
            self._joined = task.loop
            channel.join_stop(self, self.scheduler.loop)
        # Last: from here on the loop owns the exchange and the channel, and may be done with both already.
        task.post(task.start)

    def stream(self, prepared: PreparedExchange) -> StreamedAnswer:
        """Run an exchange in this very thread, as a WSGI iterable."""
        if not self._said_streaming:
            self._said_streaming = True
            log.warning(
                "this server's connections can't be detached: each proxied answer is streamed and holds a worker thread"
            )
        client = StreamClient()
        relay = Relay(prepared, client, self)
        answer = StreamedAnswer(relay.run(), client, prepared)
        # Weakly: middleware may drop the answer without closing it, and then nobody is in flight any more.
        known = weakref.ref(answer)

        def cancel(error: ExchangeFailed) -> None:
            if (found := known()) is not None:
                found.cancel(error)

        self.in_flight.add(prepared.exchange, cancel)
        self.probes.start()
        return answer

    def pool(self, prepared: PreparedExchange, watched: bool) -> OriginPool:
        """The connections to where an exchange goes (`relay.RelayContext`)."""
        return self.upstreams.pool(prepared.destination.origin, watched, prepared.policy.tls)

    def upstream_changed(self, route: str, upstream: Upstream, reason: str) -> Steps:
        """Steps: an upstream was marked down, or is up again (`relay.RelayContext`)."""
        event = self._changed(route, upstream, reason)
        if self.registry.has_listeners:
            yield from self._told(event)

    def _probe_found(self, route: str, upstream: Upstream, reason: str) -> None:
        """The same for what a probe has found, in the loop: it does not wait for the application's subscribers."""
        event = self._changed(route, upstream, reason)
        if self.registry.has_listeners:
            try:
                self.scheduler.pool.submit(self._notify, event, route)
            except ThreadsExhausted as error:
                log.error("the subscribers of %s are not told: %s", type(event).__name__, error)

    def _changed(self, route: str, upstream: Upstream, reason: str) -> UpstreamDown | UpstreamUp:
        if self.status is not None:
            self.status.reasons[route, upstream.url] = reason
        return _change(route, upstream, reason)

    def ended(self, prepared: PreparedExchange) -> None:
        """The exchange's last byte is out, or there will be none (`relay.RelayContext`)."""
        self.in_flight.remove(prepared.exchange)
        prepared.release()

    def close_body(self, body: Closing, share: str | None) -> None:
        """Close a body of the application's (`relay.RelayContext`)."""
        if share is not None:
            try:
                self.scheduler.pool.submit(_close_body, body, share)
                return
            except ThreadsExhausted:
                pass  # late for others is better than never
        _close_body(body)

    def report(self, prepared: PreparedExchange) -> Steps | None:
        """The access log; then steps that tell the `complete` hook and the subscribers (`relay.RelayContext`)."""
        exchange, hook = prepared.exchange, prepared.policy.hooks.complete
        if exchange.error is not None:
            hook = None
            self.failure_log.failed(exchange)
        if prepared.error_body is not None:
            self.failure_log.answered(exchange, *prepared.error_body)
        event = ExchangeFinished(exchange) if self.registry.has_listeners else None
        if event is not None and not self.registry.adapters.subscriptions([providedBy(event)], None):
            event = None
        if exchange.span is not None:
            end_span(exchange)
        if self.status is not None:
            self.status.ended(exchange)
        nobody_asks = hook is None and event is None
        accesslog.write(exchange, later=nobody_asks)
        return None if nobody_asks else self._tell(exchange, hook, event)

    def _tell(self, exchange: Exchange, hook: ExchangeHook | None, event: ExchangeFinished | None) -> Steps:
        if hook is not None:
            try:
                yield Call(run_hook, "complete", hook, exchange)
            except HookFailed:
                pass  # its traceback is in the log, and the client has its answer
            except ThreadsExhausted as error:
                log.error("the complete hook of %s is not called: %s", exchange.route, error)
        if event is not None:
            yield from self._told(event)

    def _told(self, event: object) -> Steps:
        try:
            yield Call(self._notify, event)
        except ThreadsExhausted as error:
            log.error("the subscribers of %s are not told: %s", type(event).__name__, error)

    def _notify(self, event: object) -> None:
        try:
            self.registry.notify(event)
        except Exception:
            log.exception("a subscriber of %s raised", type(event).__name__)

    # When the process stops (`stopping.Relaying`)

    @property
    def drain_timeout(self) -> float:
        return self.settings.drain_timeout

    def drain(self) -> None:
        self.observed.stops = True
        self.scheduler.let_clients_go()
        self.scheduler.loop.post(self._close_idle)

    def _close_idle(self) -> None:
        for pool in self.upstreams.pools():
            pool.close()

    def busy(self) -> bool:
        unheard = self.shared is not None and self.shared.busy()
        return bool(self.in_flight) or self.scheduler.busy() or unheard

    def cut(self) -> None:
        self.in_flight.cancel_all(ExchangeClosed("the process stops"))

    def close(self) -> None:
        """End the threads and close what is kept. For tests, and for processes that go on without the application."""
        for known in (self.mounts, self.streamed):
            if known is not None:
                known.close()
        self.probes.stop()
        self.scheduler.stop()
        for pool in self.upstreams.pools():
            pool.close()
        self.pipes.close()
        if self.shared is not None:
            self.shared.stop(timeout=2.0)  # last: what was broken off has given its places back


def _change(route: str, upstream: Upstream, reason: str) -> UpstreamDown | UpstreamUp:
    """Log that an upstream is down, for `reason`, or is back; the event that tells of it."""
    if reason:
        log.warning("upstream %s of %s is down: %s", upstream.url, route, reason)
        return UpstreamDown(upstream.url, route)
    log.warning("upstream %s of %s is up again", upstream.url, route)
    return UpstreamUp(upstream.url, route)


def _close_body(body: Closing) -> None:
    try:
        body.close()
    except Exception:
        log.exception("closing a body that the application gave or filters raised")
