"""Where an exchange goes: an origin and a target there, and the other upstreams of a route that may take its place."""

from __future__ import annotations

from collections.abc import Callable

from pyramid_threaded_proxy.exceptions import RequestRefused, ValueRefused
from pyramid_threaded_proxy.exchange import UpstreamRequest
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.upstream.balance import Balancer, Upstream
from pyramid_threaded_proxy.upstream.origin import Origin


class UpstreamChoice:
    """The upstream of a route that one exchange was given, and how it goes on with another.

    `target_of` makes the exchange's target at an upstream; `user` is whose exchange it is (see `Balancer.choose`).
    `keep_host` says that the Host field is the same for all of them. Belongs to the exchange: made in the thread that
    calls the view, and touched by its task from then on. `second`, where there is one, writes what besides the target
    depends on the upstream.
    """

    __slots__ = ("_balancer", "_keep_host", "_second", "_target_of", "_tried", "resting", "trial", "upstream", "user")

    def __init__(
        self,
        balancer: Balancer,
        user: str,
        target_of: Callable[[Upstream], str],
        keep_host: bool = False,
        second: Callable[[Upstream, Fields], Fields] | None = None,
    ) -> None:
        chosen = balancer.choose(user)
        self.upstream, self.trial = chosen or (balancer.upstreams[0], None)
        #: Whether all are down, and nobody may try one now: nothing is to be sent.
        self.resting = chosen is None
        self._balancer = balancer
        self.user = user
        self._target_of = target_of
        self._keep_host = keep_host
        self._second = second
        self._tried = [self.upstream]

    @property
    def target(self) -> str:
        """The exchange's target at the chosen upstream. Raises `RequestRefused` or `ValueRefused`."""
        return self._target_of(self.upstream)

    def fields(self, fields: Fields) -> Fields:
        """The request's fields as the chosen upstream is sent them. Raises what `second` does."""
        return fields if self._second is None else self._second(self.upstream, fields)

    @property
    def counts_flights(self) -> bool:
        """Whether the balancer wants to know who is under way where."""
        return self._balancer.counts_flights

    @property
    def is_alone(self) -> bool:
        """Whether the route has no other upstream."""
        return len(self._balancer.upstreams) == 1

    def retry_after(self) -> int:
        """Whole seconds until one of the upstreams is tried again."""
        return self._balancer.retry_after()

    def next_upstream(self, request: UpstreamRequest) -> bool:
        """Turn to one that was not tried and is not down, and `request` with it; whether there is one."""
        chosen = self._balancer.next(self.user, self._tried)
        if chosen is None:
            return False
        self.end_trial()
        (other, self.trial), old = chosen, self.upstream
        self.upstream = other
        self._tried.append(other)
        try:
            target, fields = self.target, self.fields(request.fields)
        except (RequestRefused, ValueRefused):
            return False  # its own base makes another path of it
        request.target, request.fields = target, fields
        request.origin = str(other.origin)
        if not self._keep_host:
            request.fields = [_told(field, old.origin, other.origin) for field in request.fields]
        return True

    def end_trial(self) -> None:
        """Another exchange may try the upstream now, if this one had leave to."""
        trial, self.trial = self.trial, None
        if trial is not None:
            self.upstream.health.give_back(trial)


def _told(field: tuple[str, str], old: Origin, other: Origin) -> tuple[str, str]:
    """A field that says which upstream is meant, for another one."""
    name, value = field
    if field == ("Host", old.authority):
        return name, other.authority
    if name in ("Origin", "Referer") and (value + "/").startswith(old.as_pages_have_it + "/"):
        return name, other.as_pages_have_it + value[len(old.as_pages_have_it) :]
    return field


class Destination:
    """Where an exchange goes. `permit`, where there is one, judges an origin that a hook turns it to, or pins it."""

    __slots__ = ("choice", "origin", "permit", "target")

    def __init__(
        self,
        origin: Origin,
        target: str,
        choice: UpstreamChoice | None = None,
        permit: Callable[[Origin], Origin] | None = None,
    ) -> None:
        self.origin = origin
        self.target = target
        #: Which of a route's upstreams the origin is; None where it is none of them.
        self.choice = choice
        self.permit = permit

    def turn_to(self, origin: Origin) -> None:
        """A hook has said where it goes: whatever that is, it is nobody's choice among upstreams any more."""
        if self.choice is not None:
            self.choice.end_trial()
            self.choice = None
        if origin != self.origin:
            self.origin = origin if self.permit is None else self.permit(origin)

    @property
    def is_alone(self) -> bool:
        """Whether there is no other upstream that could be asked instead."""
        return self.choice is None or self.choice.is_alone

    def fields(self, fields: Fields) -> Fields:
        """The request's fields as they go there."""
        return fields if self.choice is None else self.choice.fields(fields)

    def next_upstream(self, request: UpstreamRequest) -> bool:
        """Turn to another upstream of the route's; whether there is one that may be asked."""
        choice = self.choice
        if choice is None or not choice.next_upstream(request):
            return False
        self.origin = choice.upstream.origin
        return True
