"""Applications under real waitress, and what they are made of."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import waitress
from pyramid.authorization import ACLHelper, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.response import Response
from waitress import wasyncore

from pyramid_threaded_proxy.detach.resting import Resting
from tests.support.closing import Closing
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Answer, Wire, over_http


class Site(Closing):
    """A Pyramid application with the add-on, under real waitress in a thread of this process.

    `settings` are Pyramid's; `configure` is called with the Configurator after the include. Further options are
    waitress's.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        configure: Callable[[Configurator], None] | None = None,
        sockets: int = 1,
        wrap: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        config = Configurator(settings=settings)
        config.include("pyramid_threaded_proxy")
        if configure is not None:
            configure(config)
        self.application = config.make_wsgi_app()
        self.registry = config.registry
        self.engine = config.registry["pyramid_threaded_proxy.engine"]
        application = wrap(self.application) if wrap is not None else self.application
        listen = " ".join(["127.0.0.1:0"] * sockets)
        self.server = waitress.create_server(application, listen=listen, **{"threads": 4, **options})
        self.map = self.server.map if sockets > 1 else self.server._map
        self.ports = [port for _, port in self.server.effective_listen] if sockets > 1 else [self.server.effective_port]
        self.port = int(self.ports[0])
        self.authority = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.authority}"
        self._thread = threading.Thread(target=self.server.run, name="waitress-main", daemon=True)
        self._thread.start()

    @property
    def channels(self) -> list[Any]:
        """The channels that waitress knows, those that rest too."""
        entries = list(self.map.values())
        rest = [channel for entry in entries if isinstance(entry, Resting) for channel in entry]
        return [*(entry for entry in entries if hasattr(entry, "requests")), *rest]

    def on_main_thread(self, thunk: Callable[[], None]) -> None:
        """Run `thunk` on waitress's own thread and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                thunk()
            finally:
                done.set()

        trigger = next(entry for entry in list(self.map.values()) if hasattr(entry, "pull_trigger"))
        with suppress(OSError):  # a stock trigger's own write, where the thunk has closed it before
            trigger.pull_trigger(run)
        assert done.wait(PATIENCE)

    def parked(self, events: int) -> int:
        """How many exchanges wait for a socket to be ready for one of `events`."""
        tasks = [task for loop in list(self.engine.scheduler._loops) for task in list(loop.tasks)]
        return sum(1 for task in tasks if getattr(task.wait, "events", 0) & events)

    def idle(self) -> int:
        """How many connections to upstreams are kept."""
        return sum(len(pool._idle) for pool in self.engine.upstreams.pools())

    def client(self) -> Wire:
        """A raw connection."""
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE))

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: Any = None) -> Answer:
        """One request on a connection of its own."""
        return over_http(self.port, path, method, body, headers)

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return everything until the server closes."""
        client = self.client()
        try:
            client.send(request)
            return client.rest()
        finally:
            client.close()

    def close(self) -> None:
        wait_until(lambda: self.engine.admission.in_flight == 0, "the end of all exchanges")
        self.engine.close()
        self.on_main_thread(lambda: wasyncore.close_all(self.map, ignore_all=True))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.server.task_dispatcher.shutdown()


def undetachable(application: Any) -> Any:
    """Hides the connection, as other servers do: exchanges are streamed."""

    def inner(environ: dict[str, Any], start_response: Any) -> Any:
        del environ["waitress.client_disconnected"]
        return application(environ, start_response)

    return inner


#: Options of `Site` for the ways of an answer: detached under both of waitress's loops, and streamed by its thread.
MODES: dict[str, dict[str, Any]] = {
    "poll": {"asyncore_use_poll": True},
    "select": {"asyncore_use_poll": False},
    "streamed": {"wrap": undetachable},
}
#: Those of them in which the connection is the package's own.
DETACHED = ["poll", "select"]


#: What the fixture `site` is.
MakeSite = Callable[..., Site]


#: An upstream that is never asked: nobody listens there.
NOWHERE = "http://127.0.0.1:9"


def route(name: str, upstream: str, **keys: str) -> dict[str, str]:
    """Settings of a route `name` below ``/name``, public if no `permission` is given; keys have ``__`` for ``.``."""
    values = {"prefix": f"/{name}", "upstream": upstream} | ({} if "permission" in keys else {"public": "true"})
    values.update({key.replace("__", "."): value for key, value in keys.items()})
    return {f"proxy.routes.{name}.{key}": value for key, value in values.items()}


class Policy:
    """A security policy: the user is whoever X-User says, ACLs are asked."""

    def __init__(self) -> None:
        self._acls = ACLHelper()

    def identity(self, request: Any) -> str | None:
        return request.headers.get("X-User")  # type: ignore[no-any-return]

    authenticated_userid = identity

    def permits(self, request: Any, context: Any, permission: str) -> Any:
        user = self.identity(request)
        return self._acls.permits(context, [Everyone, Authenticated, user] if user else [Everyone], permission)

    def remember(self, request: Any, userid: str, **kw: Any) -> list[tuple[str, str]]:
        return []

    def forget(self, request: Any, **kw: Any) -> list[tuple[str, str]]:
        return []


class Anybody(Policy):
    """A security policy under which everybody may do everything."""

    def permits(self, request: Any, context: Any, permission: str) -> bool:
        return True


def with_policy(config: Configurator) -> None:
    """An application that knows its users by `Policy`."""
    config.set_security_policy(Policy())


def own_view(config: Configurator, name: str = "own", pattern: str = "/own") -> None:
    """A view of the application's that answers ``own``."""
    config.add_route(name, pattern)
    config.add_view(lambda request: Response("own"), route_name=name)


def with_view(
    view: Callable[[Any], Any], pattern: str = "/own*rest", policy: Any = None
) -> Callable[[Configurator], None]:
    """Configures a view of the application's, and a security policy."""

    def configure(config: Configurator) -> None:
        if policy is not None:
            config.set_security_policy(policy)
        config.add_route("own", pattern)
        config.add_view(view, route_name="own")

    return configure


def fetching(
    site: MakeSite, url: str, configure: Callable[[Configurator], None] | None = None, **keywords: Any
) -> Site:
    """A site whose view at ``/f`` fetches `url`."""

    def set_up(config: Configurator) -> None:
        config.add_route("f", "/f")
        config.add_view(lambda request: request.proxy_fetch(url, **keywords), route_name="f")
        if configure is not None:
            configure(config)

    return site(configure=set_up)
