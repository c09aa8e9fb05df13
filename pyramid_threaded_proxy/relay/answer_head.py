"""Hearing an upstream until its final head: interim answers go on to who can have them, a switch must be asked for."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyramid_threaded_proxy.exceptions import AnswerRefused, UpstreamGone
from pyramid_threaded_proxy.http.framing import answer_framing
from pyramid_threaded_proxy.http.head import HeadReader, ResponseHead
from pyramid_threaded_proxy.http.names import connection_options
from pyramid_threaded_proxy.loop.endpoint import Endpoint
from pyramid_threaded_proxy.loop.syscalls import receive
from pyramid_threaded_proxy.loop.waits import Steps
from pyramid_threaded_proxy.relay.client import Client
from pyramid_threaded_proxy.relay.prepared import PreparedExchange
from pyramid_threaded_proxy.relay.transfer import upstream_gone

_ANY_HEAD = b"HTTP/"
SPOILED = "bytes came behind its last answer (RFC 9112 6.3)"
#: Interim answers that one exchange may have before its final one.
MOST_INTERIM = 16

#: Whether the upstream has said its last word: known at once, or by steps that find out. Most answers have no interim
#: head, and a generator for each piece that is heard would cost them all.
LastWord = bool | Generator[Any, Any, bool]


class AnswerHead:
    """What an upstream has said, up to its final head. Belongs to the exchange's task."""

    def __init__(self, prepared: PreparedExchange, client: Client) -> None:
        self._prepared = prepared
        self._client = client
        self._reader = HeadReader(prepared.policy.settings.max_head)
        self._interim = 0
        #: The final head, or that of a switch.
        self.final: ResponseHead | None = None
        #: Whether a byte of the answer was received.
        self.heard = False
        #: Whether the connection brought an empty line of an earlier answer's before this one.
        self.untidy = False
        #: Whether it brought other bytes, so that nobody can tell where this answer begins.
        self.spoiled = False
        self._may_be_late = False

    def begin(self, reused: bool) -> None:
        """A try begins, on a connection that has brought another answer before if it is `reused`."""
        self._may_be_late = reused
        self.untidy = self.spoiled = False

    @property
    def started(self) -> bool:
        """Whether a head has begun."""
        return self._reader.started

    @property
    def rest(self) -> bytes:
        """What came behind the final head."""
        return self._reader.rest

    def take_rest(self) -> bytes:
        """The same, and nothing holds it here any more."""
        rest, self._reader.rest = self._reader.rest, b""
        return rest

    def hear(self, endpoint: Endpoint) -> LastWord:
        """Take what the upstream says; whether that was its last word."""
        try:
            data = receive(endpoint)
        except BlockingIOError:
            return False  # what made it readable was TLS's own
        except OSError as error:
            raise upstream_gone(error) from None
        if not data:
            return True
        if self._may_be_late:
            if data[:5] == _ANY_HEAD:
                self._may_be_late = False
            elif not (data := self._without_late_bytes(data)):
                return False
        self.heard = True
        head = self._reader.feed(data)
        if head is None:
            return False
        if head.status < 200:
            return self._hear_interim(head)
        self.final = head
        return True

    def _without_late_bytes(self, data: bytes) -> bytes:
        """What begins no head was sent behind the connection's last answer, and has come too late to be seen there.

        An empty line is dropped. Other bytes are nobody's either (RFC 9112 6.3): the connection is as good as closed,
        and what was asked is asked on a fresh one, where that may be done.
        """
        if (begun := data.lstrip(b"\r\n")) != data:
            self.untidy = True
        if begun:
            self._may_be_late = False
            if not begun.startswith(_ANY_HEAD[: len(begun)]):
                self.spoiled = True
                raise UpstreamGone(SPOILED)
        return begun

    def hear_early(self, endpoint: Endpoint) -> Any:
        """Steps: the same, while the upstream is still sent to."""
        last = self.hear(endpoint)
        return last if isinstance(last, bool) else (yield from last)

    def _hear_interim(self, head: ResponseHead) -> Generator[Any, Any, bool]:
        """Steps: an interim head, and whatever came behind it."""
        found: ResponseHead | None = head
        while found is not None:
            if found.status >= 200 or (yield from self._is_switch(found)):
                self.final = found
                return True
            found = self._reader.feed(self._reader.rest) if self._reader.rest else None
        return False

    def _is_switch(self, head: ResponseHead) -> Any:
        """Steps: other interim heads go on to who can have them; 100 is an answer to us alone (RFC 9110 15.2)."""
        if head.status == 101:
            check_switch(head, self._prepared.upgrade)
            return True
        self._interim += 1
        if self._interim > MOST_INTERIM:
            raise AnswerRefused(f"more than {MOST_INTERIM} interim answers")
        if head.status != 100:
            yield from self._pass_interim_on(head)
        return False

    def _pass_interim_on(self, head: ResponseHead) -> Steps:
        prepared = self._prepared
        answer_framing(prepared.exchange.request.method, head)
        fields = prepared.policy.answer_fields.select(head.fields, prepared.public)
        yield from self._client.send(self._client.interim(head.status, head.reason, fields))


def check_switch(head: ResponseHead, asked: tuple[str, ...]) -> None:
    """A 101 must be for one of the protocols that were asked for, and say so in both fields (RFC 9110 7.8)."""
    named = [value for name, value in head.fields if name.lower() == "upgrade"]
    options = connection_options(value for name, value in head.fields if name.lower() == "connection")
    if not asked:
        raise AnswerRefused("101 Switching Protocols, which nobody asked for (RFC 9110 15.2.2)")
    if len(named) != 1 or named[0].lower() not in asked or "upgrade" not in options:
        raise AnswerRefused("101 Switching Protocols to a protocol that was not asked for (RFC 9110 7.8)")
