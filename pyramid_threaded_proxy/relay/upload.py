"""A request's body on its way up, before the answer comes and beside it.

The head of an answer does not end an upload (RFC 9112 9.5): an upstream may say its first word and read on. So what
sends the body are steps of their own. They run alone until the upstream has said its final head, and then beside the
steps that pass the answer on. What ends them early is an upstream that closes, or refuses the request and has said so
to the end.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

from pyramid_threaded_proxy.exceptions import ExchangeFailed, UpstreamGone
from pyramid_threaded_proxy.exchange import Body
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.poller import READ, WRITE
from pyramid_threaded_proxy.loop.waits import Hop, Ready, Steps, Wait
from pyramid_threaded_proxy.relay.answer_head import SPOILED, AnswerHead
from pyramid_threaded_proxy.relay.request_body import BLOCK, blocks


class Upload:
    """One body on one connection. Belongs to the exchange's task."""

    def __init__(self, endpoint: Endpoint, steps: Any) -> None:
        self._endpoint = endpoint
        self._steps = steps
        self._value: Any = None  # what the sender's last wait has brought, which it was not told yet
        self._away = False  # in a mover
        self._spooled: IO[bytes] | None = None
        #: Whether there is more to send.
        self.under_way = True
        #: Whether the upstream took all of it.
        self.whole = False
        #: Whether the upstream reset the connection: an end that it says behind that is none.
        self.reset = False

    def until_answered(self, answer: AnswerHead) -> Any:
        """Steps: send until all was taken, or the upstream has said its last word; whether all was taken."""
        try:
            while (wait := self._advance()) is not None:
                if isinstance(wait, Ready):
                    self._hear_beside(wait)
                self._note(wait)
                self._value = yield wait
                # Seen behind other waits too: an upstream that reads on may have refused a body without an end.
                unheard = not isinstance(wait, Ready) or self._speaks(wait)
                if unheard and (yield from answer.hear_early(self._endpoint)):
                    if answer.final is not None:
                        return False
                    self.stop()
        except UpstreamGone:
            self.stop()  # it may have answered before; if it has not, reading its head says so
        except BaseException:
            self.stop()
            raise
        yield from self.come_home()
        if answer.spoiled:
            raise UpstreamGone(SPOILED)
        return self.whole

    def beside(self, down: Steps) -> Steps:
        """Steps: those of `down`, which pass the answer on, and between them what goes up.

        Either may have to wait for the other: an upstream that is not read from may not read on.
        """
        upper = self._advance()
        lower = _go_on(down, None)
        while upper is not None and lower is not None:
            try:
                if isinstance(upper, Ready) and isinstance(lower, Ready):
                    yield _Either(upper, lower)
                    self._value = brought = _LOOK
                else:
                    self._value = yield from self._unless_ready(upper)
                    brought = yield from self._unless_ready(lower)
                upper = self._advance()
            except GeneratorExit:
                down.close()
                raise
            except BaseException as error:
                self.stop()
                upper, lower = None, _throw(down, error)
            else:
                lower = _go_on(down, brought)
        if lower is not None:
            yield from _rest(down, lower)
        elif upper is not None and self.under_way:
            self._note(upper)
            self._value = yield upper

    def finish(self) -> Steps:
        """Steps: the answer is out, and what is left goes up. An upstream that takes no more is no failure then."""
        try:
            while (wait := self._advance()) is not None:
                self._note(wait)
                self._value = yield wait
        except ExchangeFailed:
            self.stop()

    def come_home(self) -> Steps:
        """Steps: back in the first loop, where connections are kept."""
        if self._away:
            self._away = False
            yield Hop(True, self._endpoint)

    def stop(self) -> None:
        """Send no more."""
        self.under_way = False
        self._steps.close()
        if self._spooled is not None:
            self._spooled.close()

    def spool(self, body: Body, most: int) -> None:
        """Take what is left of a body that comes from the client itself, `most` bytes of it in memory.

        Otherwise a client that reads only when it has sent all, and we, would wait for each other. May block.
        """
        if body.owned or (body.file is not None and body.start is not None) or body.data is not None:
            return
        self._spooled = spooled = tempfile.SpooledTemporaryFile(most)  # noqa: SIM115
        for block in body.chunks if body.chunks is not None else blocks(body):
            spooled.write(block)
        if body.chunks is not None:
            body.chunks = iter(lambda: spooled.read(BLOCK), b"")
        else:
            body.file, body.unread = spooled, spooled.tell()
        spooled.seek(0)

    def _advance(self) -> Wait | None:
        """What the sender waits for next; None when it has ended."""
        if not self.under_way:
            return None
        value, self._value = self._value, None
        try:
            wait: Wait = self._steps.send(value)
            return wait
        except StopIteration:
            self.whole, self.under_way = True, False
        except UpstreamGone as error:
            self.under_way, self.reset = False, error.reset
        return None

    def _hear_beside(self, wait: Ready) -> None:
        """Wait for the upstream's word as well as for what the sender waits for."""
        if wait.endpoint is self._endpoint:
            wait.events = READ | WRITE
        else:
            wait.other, wait.other_events = self._endpoint, READ

    def _speaks(self, wait: Ready) -> bool:
        """Whether the upstream may have said something; where the client is waited for, it has said or done so."""
        endpoint, events = self._value
        return endpoint is self._endpoint and (endpoint is not wait.endpoint or events & READ)

    def _note(self, wait: Wait) -> None:
        if isinstance(wait, Hop):
            self._away = not wait.home

    def _unless_ready(self, wait: Wait) -> Any:
        """Steps: a wait for anything but a socket; who waits for one only looks, as the other side goes on."""
        if isinstance(wait, Ready):
            return _LOOK
        self._note(wait)
        return (yield wait)


#: What a side is told that has to look for itself whether its socket is ready.
_LOOK = (None, 0)


class _Either(Ready):
    """Waits for what goes up or for what comes down, whichever can go on.

    A move of either starts both clocks anew: one that waits may be waiting for the other. An upstream that has not
    got the whole request need not say anything, so `read_timeout` does not count; a client is to blame before it.
    """

    __slots__ = ()

    def __init__(self, up: Ready, down: Ready) -> None:
        same = down.endpoint is up.endpoint
        first = up if down.events & READ or up.timeout < down.timeout else down
        if same:
            super().__init__(up.endpoint, up.events | down.events, first.timeout, first.expired)
        else:
            super().__init__(up.endpoint, up.events, first.timeout, first.expired, down.endpoint, down.events)


def _go_on(steps: Steps, value: Any) -> Wait | None:
    """What the steps wait for next; None at their end."""
    try:
        return steps.send(value)
    except StopIteration:
        return None


def _throw(steps: Steps, error: BaseException) -> Wait | None:
    """The same, where the last wait has failed."""
    try:
        return steps.throw(error)
    except StopIteration:
        return None


def _rest(steps: Steps, wait: Wait | None) -> Steps:
    """Steps: `wait`, and then what is left of those."""
    while wait is not None:
        try:
            value = yield wait
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            wait = _throw(steps, error)
        else:
            wait = _go_on(steps, value)
