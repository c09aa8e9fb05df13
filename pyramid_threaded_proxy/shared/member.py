"""The thread of one process that speaks to the store: it joins, keeps the lease, and does what others order.

Nobody but this thread waits for the network. Who asks it something waits for `PATIENCE` at most, and not at all while
the store is known to be away or slow: `ready` says so.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from queue import Empty, SimpleQueue

from pyramid_threaded_proxy.shared import commands
from pyramid_threaded_proxy.shared.ledger import Ledger
from pyramid_threaded_proxy.shared.notice import Notice
from pyramid_threaded_proxy.shared.orders import Closed, GivenBack, Held, Order, Reports, Take
from pyramid_threaded_proxy.shared.store import Store, StoreAway

log = logging.getLogger("pyramid_threaded_proxy.shared")

#: Seconds for which whoever asks waits: with what waking a thread takes, less than 50 ms.
PATIENCE = 0.04
#: Seconds after which a connection that brings nothing is given up.
TIMEOUT = 0.5
#: Seconds between two signs of life.
BEAT = 1.0
#: Seconds between two tries to join.
RETRY = 0.5
#: Seconds until a store that was slow is asked again, and how often in a row it has to be slow to be told of.
SOON = 0.02
OFTEN = 5
#: Orders that are carried out in one round trip.
MOST_AT_ONCE = 500
#: Own closings that are said again where the store has lost its data: so many, for so many seconds.
MOST_KEPT = 1000
KEPT = 3600.0


class Member:
    """One process's membership. `order` may be called by any thread, `stop` as well; all else is the thread's own."""

    def __init__(self, url: str, name: str, notice: Notice) -> None:
        self.name = name
        #: Whether it is worth while to wait for an answer. Hopeful in the beginning: joining takes a moment.
        self.ready = True
        self._url = url
        self._notice = notice
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._ledger = Ledger()
        self._store: Store | None = None
        self._numbers = count(1)
        self._joining = ""
        self._birth = ""
        self._due = 0.0  # when the next sign of life, or the next try to join
        self._own: deque[Closed] = deque(maxlen=MOST_KEPT)
        self._unsaid: list[Closed] = []
        self._slow = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="pproxy-shared", daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """Have it done, soon. Never waits and takes no lock: the garbage collector may call it."""
        self._orders.put(order)

    def busy(self) -> bool:
        """Whether something was closed that the others don't know of yet, and could be told."""
        return self.ready and bool(self._unsaid or not self._orders.empty())

    def stop(self, timeout: float) -> None:
        """Say what is left to say, leave, and end the thread; waits for it, `timeout` seconds at most."""
        self._stopping = True
        self._orders.put(None)
        self._thread.join(timeout)

    def _main(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                log.exception("a fault of this package: places are counted by this process alone for a while")
                self._lost("a fault of this package")
        self._leave()

    def _turn(self) -> None:
        """Join if it is time; else do what was ordered, and show that this process lives."""
        if self._store is None and time.monotonic() >= self._due:
            self._join()
        orders = self._gather(max(0.0, self._due - time.monotonic()))
        if self._store is None:
            self._do_alone(orders)
            return
        try:
            self._do(self._store, orders)
        except StoreAway as error:
            self._lost(str(error))

    def _gather(self, patience: float) -> list[Order]:
        """What was ordered; waits until there is something, `patience` seconds at most."""
        found: list[Order] = []
        try:
            while len(found) < MOST_AT_ONCE:
                order = self._orders.get(timeout=patience) if not found and patience else self._orders.get_nowait()
                if order is None:
                    break
                found.append(order)
        except Empty:
            pass
        return found

    def _join(self) -> None:
        """Be there under a new name, with all that is held."""
        former, self._joining = self._joining, f"{self.name}:{next(self._numbers)}"
        store = Store(self._url, TIMEOUT)
        birth = secrets.token_hex(8)
        try:
            found = store.ask(commands.join(former, self._joining, birth, self._ledger.all()))[0].decode()
        except StoreAway as error:
            store.close()
            self._lost(str(error))
            return
        if self._birth and found != self._birth:  # its data were lost: what was closed must be said again
            horizon = time.monotonic() - KEPT
            self._unsaid = [closed for closed in self._own if closed.when > horizon]
        self._birth, self._store = found, store
        self._due = time.monotonic()  # there may be something to say
        self.ready = True
        self._notice.back("places")

    def _join_anew(self, store: Store) -> None:
        """It answers, but has taken this process for dead, or has lost its data."""
        log.info("proxy.shared: this process has to join anew")
        store.close()
        self._store = None
        self._due = time.monotonic()

    def _lost(self, reason: str) -> None:
        """From here on this process counts alone, until it has joined again."""
        self.ready = False
        store, self._store = self._store, None
        if store is not None:
            store.close()
        self._due = time.monotonic() + RETRY
        self._notice.away("places", reason)

    def _book(self, orders: Sequence[Order]) -> list[Take]:
        """Note what others have done already; the questions that are still to be asked.

        Places first that somebody took who gave up waiting: they may be given back by one of these very orders.
        """
        takes: list[Take] = []
        for order in orders:
            if isinstance(order, Take) and not order.given_up:
                takes.append(order)
            elif isinstance(order, (Held, Take)):
                self._ledger.hold(order.field)
            elif isinstance(order, Closed):
                self._own.append(order)
                self._unsaid.append(order)
        for order in orders:
            if isinstance(order, GivenBack):
                self._ledger.give_back(order.field)
        return takes

    def _do_alone(self, orders: Sequence[Order]) -> None:
        """The store is away: nobody can know more than this process does."""
        for take in self._book(orders):
            take.answer(None)
            self._ledger.hold(take.field)
        for order in orders:
            if isinstance(order, Reports):
                order.answer(None)
        del self._unsaid[:-MOST_KEPT]

    def _do(self, store: Store, orders: Sequence[Order]) -> None:
        """All of it in one round trip. Raises `StoreAway`; whoever waits has an answer even then."""
        takes = self._book(orders)
        reports = [order for order in orders if isinstance(order, Reports)]
        began = time.monotonic()
        news = self._news(began)
        asked = [commands.take(self._joining, take.field, take.most) for take in takes]
        try:
            answers = store.ask(*news, *asked, *([commands.REPORTS] if reports else []))
        except StoreAway:
            self._do_alone([*takes, *reports])
            raise
        self._unsaid.clear()
        for take, answer in zip(takes, answers[len(news) :], strict=False):
            self._settle(take, answer)
        for question in reports:
            question.answer(answers[-1])
        if commands.NOT_THERE in answers:
            self._join_anew(store)
            return
        self._note_pace(time.monotonic() - began)

    def _news(self, now: float) -> list[commands.Command]:
        """What the store is to know, without a question."""
        news = []
        if now >= self._due:
            self._due = now + BEAT
            news.append(commands.beat(self._joining))
        if changes := self._ledger.changes():
            news.append(commands.tell(self._joining, changes))
        for closed in self._unsaid:
            news += commands.say(self.name, now - closed.when, closed.what)
        return news

    def _settle(self, take: Take, answer: int) -> None:
        """Whoever gave up waiting was let in by this process's own counts."""
        if answer == commands.TAKEN:
            self._ledger.granted(take.field)
            take.answer(True)
        elif answer == commands.NONE_LEFT:
            if not take.answer(False):
                self._ledger.hold(take.field)
        else:
            self._do_alone([take])

    def _note_pace(self, seconds: float) -> None:
        """Whether it answers fast enough to be waited for; if not, it is asked again soon."""
        self.ready = seconds <= PATIENCE
        if self.ready:
            self._slow = 0
            self._notice.back("pace")
            return
        self._slow += 1
        self._due = time.monotonic() + SOON
        if self._slow == OFTEN:
            self._notice.away("pace", f"it takes {seconds * 1000:.0f} ms to answer")

    def _leave(self) -> None:
        """Say what is left to say, and give all places back; no more than one try."""
        orders = self._gather(0.0)
        if self._store is None:
            self._do_alone(orders)
            return
        try:
            self._do(self._store, orders)
            self._store.ask(commands.leave(self._joining))
        except StoreAway:
            pass  # its lease runs out
        self._store.close()
